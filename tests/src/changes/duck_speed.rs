//! How fast changes get into DuckDB, beside what bounds it: DuckDB's Appender alone, in the same run; and what memory a
//! backlog takes.

use super::duck::{self, Loader};
use super::speed::{bench, median, per_second};
use super::{Consumer, configure};
use crate::attack::watch::Watch;
use crate::real::{self, TempDir, TestHome, TestServer, figure, free_port, http_get};
use serde_json::json;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use turnstone_cdc::ValueFormat;
use turnstone_cdc::line::{InTransaction, Op, Place, put_change};
use turnstone_net::tls::Role;

/// Pairs of the loader and the Appender.
const PAIRS: usize = 3;
/// Commits per second beside which it is measured how soon one can be queried.
const RATE: &str = "20000";
/// Markers that are waited for.
const MARKERS: u32 = 200;
/// A file of lines has about so many bytes.
const FILE: usize = 100 << 20;

fn number(output: &std::process::Output) -> f64 {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("a figure")
}

/// Change files with so many rows: different keys, values of 128 B.
fn write_files(directory: &Path, rows: u64) {
    let (value, mut out, mut first, mut files) = (vec![b'v'; 128], Vec::new(), 1, 0);
    for version in 1..=rows {
        let place = Place { partition: 1, epoch: 1, version };
        let at = InTransaction { n: 1, of: 1, ts: 1_700_000_000_000 + version };
        put_change(place, at, Op::Set(format!("{version:032}").as_bytes(), &value), ValueFormat::Text, &mut out);
        if out.len() >= FILE || version == rows {
            files += 1;
            let name = format!("cdc-p01-{files:012}-e1-{first}-{version}.jsonl");
            std::fs::write(directory.join(name), &out).expect("it can be written");
            out.clear();
            first = version + 1;
        }
    }
}

/// The loader ÷ the Appender alone.
pub fn throughput(rows: u64) {
    let files = TempDir::new("duck-speed");
    write_files(files.path(), rows);
    let (mut ratios, mut rates) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        let databases = TempDir::new("duck-speed-db");
        let (loaded, raw) = (databases.path().join("loaded.duckdb"), databases.path().join("raw.duckdb"));
        let began = Instant::now();
        let output = duck::load_once(files.path(), &loaded, &[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let rate = rows as f64 / began.elapsed().as_secs_f64();
        let yardstick =
            Command::new(real::loader()).arg("-db").arg(&raw).args(["--yardstick", &rows.to_string()]).output();
        let yardstick = number(&yardstick.expect("turnstone-duck runs"));
        ratios.push(rate / yardstick);
        rates.push((rate, yardstick));
    }
    println!("loader and Appender alone, {rows} rows of 128 B, new keys, rows/s: {rates:.0?}");
    println!("ratio: median {:.2} of {PAIRS} pairs", median(ratios));
}

fn version_of(port: u16) -> u64 {
    let metrics = http_get(port, "/metrics");
    let line = metrics.lines().find_map(|line| line.strip_prefix("turnstone_duck_version{partition=\"1\"} "));
    line.map_or(0, |text| text.parse().expect("a number"))
}

/// From a commit's answer to the transaction of DuckDB that has it, beside a load at a fixed rate.
fn latency(home: &TestHome, server: &TestServer, port: u16, what: &str) {
    let mut load =
        bench(home, server, &["-c", "16", "-depth", "4", "-rate", RATE, "-duration", "20s", "-keys", "100000"]);
    let background = load.spawn().expect("the generator runs");
    std::thread::park_timeout(Duration::from_secs(2));
    let mut connection = home.connect(server, Role::Client, 1);
    let mut latencies = Vec::new();
    for n in 0..MARKERS {
        let position = connection.set(format!("marker-{n}").as_bytes(), b"x").expect("it is committed");
        let (version, committed) = (position.expect("it changed something").version, Instant::now());
        while version_of(port) < version {
            assert!(committed.elapsed() < Duration::from_secs(30), "it never came");
            std::thread::park_timeout(Duration::from_millis(2));
        }
        latencies.push(committed.elapsed().as_secs_f64() * 1000.0);
        std::thread::park_timeout(Duration::from_millis(10));
    }
    let rate = per_second(background);
    latencies.sort_by(f64::total_cmp);
    let at = |quantile: f64| latencies[(latencies.len() as f64 * quantile) as usize];
    println!(
        "commit to queryable {what}, at {rate:.0} commits/s: p50 {:.0} ms, p99 {:.0} ms, longest {:.0} ms",
        at(0.5),
        at(0.99),
        latencies[latencies.len() - 1]
    );
}

/// How soon a commit can be queried, by way of files and without them.
pub fn latencies() {
    let home = TestHome::new("duck-latency");
    let server = home.serve(&["--executors", "1"]);
    let often = json!("100ms");
    configure(
        &home,
        &[
            ("host", json!(server.address)),
            ("rotate_interval", often.clone()),
            ("flush_interval", often),
            ("metrics_addr", json!("")),
        ],
    );
    let (port, logs) = (free_port(), home.path().join("cdc_logs"));
    let metrics = format!("127.0.0.1:{port}");
    let mut consumer = Consumer::start(&home);
    real::eventually(super::PATIENCE, "the directory is made", || logs.is_dir());
    let mut loader = Loader::watch(&logs, &duck::db(&home), &["--metrics", &metrics]);
    wait_for_metrics(port);
    latency(&home, &server, port, "by way of files of 100 ms");
    assert!(consumer.stop().success());
    loader.stop();
    let (port, db) = (free_port(), home.path().join("direct.duckdb"));
    let metrics = format!("127.0.0.1:{port}");
    let mut loader = Loader::from_server(&home, &db, &["--metrics", &metrics]);
    wait_for_metrics(port);
    let stat = home.connect(&server, Role::Client, 1).stat().expect("it answers");
    let version = figure(&stat, "version");
    real::eventually(Duration::from_secs(120), "it has caught up", || version_of(port) >= version);
    latency(&home, &server, port, "from the server");
    loader.stop();
}

fn wait_for_metrics(port: u16) {
    real::eventually(super::PATIENCE, "it answers", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
}

/// Free bytes where homes are.
fn free_bytes(path: &Path) -> u64 {
    let output = Command::new("df").args(["--output=avail", "-B1"]).arg(path).output().expect("df runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().nth(1).and_then(|line| line.trim().parse().ok()).expect("df answers a number")
}

/// The memory that each process takes where the log has a backlog of so many bytes.
pub fn backlog(bytes: u64) {
    const VALUE: u64 = 2000;
    let home = TestHome::new("duck-backlog");
    let free = free_bytes(home.path());
    // The log and what is settled of it, the files, twice a database with history and state.
    assert!(free > bytes * 8, "{free} bytes are free, and a backlog of {bytes} takes eight times as much");
    let keep = ["--executors", "1", "--wal-retention-bytes", "64GiB", "--wal-retention", "24h"];
    let server = home.serve(&keep);
    configure(&home, &[("host", json!(server.address)), ("rotate_interval", json!("5s")), ("metrics_addr", json!(""))]);
    let rows = bytes / VALUE;
    let (count, keys) = (rows.to_string(), (rows / 4).to_string());
    let load = ["-c", "16", "-depth", "16", "-n", &count, "-keys", &keys, "-v", "2000"];
    per_second(bench(&home, &server, &load).spawn().expect("the generator runs"));
    let stat = home.connect(&server, Role::Client, 1).stat().expect("it answers");
    let version = figure(&stat, "version");
    let watch = Watch { pid: server.pid() };
    let before = (watch.resident() >> 10, watch.peak() >> 10);
    let began = Instant::now();
    let mut consumer = Consumer::start(&home);
    consumer.published_within(1, version, Duration::from_secs(600));
    let (consumed, consumer_peak) = (began.elapsed(), Watch { pid: consumer.pid() }.peak() >> 10);
    assert!(consumer.stop().success());
    let during = watch.peak() >> 10;
    let began = Instant::now();
    let logs = home.path().join("cdc_logs");
    let by_files = watched(duck::command(&logs, &duck::db(&home), &["-once"]));
    let loaded = began.elapsed();
    let began = Instant::now();
    let by_stream = watched(duck::stream_command(&home, &home.path().join("direct.duckdb"), &["-once"]));
    let streamed = began.elapsed();
    println!("a backlog of {rows} rows, {} MiB of values; most memory, MiB:", (rows * VALUE) >> 20);
    println!("server {} before ({} resident), {during} with a consumer from the beginning", before.1, before.0);
    println!("consumer {consumer_peak}, {:.0} s", consumed.as_secs_f64());
    println!(
        "loader of files {by_files}, {:.0} s; loader at the server {by_stream}, {:.0} s",
        loaded.as_secs_f64(),
        streamed.as_secs_f64()
    );
}

/// The most memory that a process had, MiB: ever, in the first quarter of its time, in the last.
struct Memory {
    ever: u64,
    first: u64,
    last: u64,
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (first quarter {}, last {})", self.ever, self.first, self.last)
    }
}

/// Runs a loader to its end; answers what memory it had.
fn watched(mut command: Command) -> Memory {
    let mut child = command.spawn().expect("turnstone-duck runs");
    let status = format!("/proc/{}/status", child.id());
    let mut seen = Vec::new();
    loop {
        // Once it has ended there is nothing to read.
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let figure = |name: &str| -> Option<u64> {
            text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
        };
        if let (Some(resident), Some(peak)) = (figure("VmRSS:"), figure("VmHWM:")) {
            seen.push((resident >> 10, peak >> 10));
        }
        if let Some(status) = child.try_wait().expect("it is ours") {
            assert!(status.success(), "it failed");
            break;
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let most = |part: &[(u64, u64)]| part.iter().map(|(resident, _)| *resident).max().unwrap_or(0);
    let quarter = seen.len() / 4;
    let ever = seen.last().map_or(0, |(_, peak)| *peak);
    Memory { ever, first: most(&seen[..quarter]), last: most(&seen[seen.len() - quarter..]) }
}
