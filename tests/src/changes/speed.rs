//! How fast changes get into files, beside what bounds it: the encoder of lines alone, on the same rows, in the same run.

use super::{Consumer, configure};
use crate::real::{TestHome, TestServer, binary};
use crate::side_by_side::servers::{self, Usage};
use crate::sim::Rng;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use turnstone_cdc::ValueFormat;
use turnstone_cdc::cursor::Cursor;
use turnstone_cdc::line::{InTransaction, Op, Place, put_change};
use turnstone_net::tls::Role;

const VALUE: usize = 128;
/// No line of such a value is longer, bytes.
const LINE: u64 = 512;
/// Pairs of blocks with and without a consumer.
const PAIRS: usize = 5;

pub(super) fn bench(home: &TestHome, server: &TestServer, flags: &[&str]) -> Command {
    let mut command = Command::new(binary("turnstone-bench"));
    command.arg("-home").arg(home.path()).args(["-host", &server.address, "-ratio", "0", "--json"]).args(flags);
    if !flags.contains(&"-v") {
        command.args(["-v", "128"]);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::inherit());
    command
}

pub(super) fn per_second(child: Child) -> f64 {
    let output = child.wait_with_output().expect("the generator ends");
    let phases: Value = serde_json::from_slice(&output.stdout).expect("it answers JSON");
    phases[0]["per_second"].as_f64().expect("a figure")
}

pub(super) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Lines of the same shape as the load's, whose values are no text, encoded into memory.
fn encoder(rows: u64) -> f64 {
    let rng = Rng::new(1);
    let values: Vec<Vec<u8>> = (0..64).map(|_| (0..VALUE).map(|_| rng.next() as u8).collect()).collect();
    let mut out = Vec::new();
    let began = Instant::now();
    for version in 0..rows {
        let key = format!("{version:032}");
        let place = Place { partition: 1, epoch: 1, version };
        let at = InTransaction { n: 1, of: 1, ts: 1_700_000_000_000 + version };
        put_change(
            place,
            at,
            Op::Set(key.as_bytes(), &values[version as usize % values.len()]),
            ValueFormat::Text,
            &mut out,
        );
        if out.len() > 256 << 10 {
            out.clear();
        }
    }
    rows as f64 / began.elapsed().as_secs_f64()
}

fn wait_for_version(home: &TestHome, version: u64) {
    let path = Cursor::path(&home.path().join("cdc.state"), 1);
    let far = || Cursor::load(&path, 1).ok().flatten().is_some_and(|cursor| cursor.last >= version);
    crate::real::eventually(Duration::from_secs(300), "the consumer has everything", far);
}

/// The index goes on with what it was given; two CPUs have no third for that.
fn wait_until_idle(pid: u32) {
    let used = || Usage::of(pid).expect("the server runs");
    let idle = || {
        let before = used();
        std::thread::park_timeout(Duration::from_millis(200));
        used().since(&before).cpu < Duration::from_millis(10)
    };
    crate::real::eventually(Duration::from_secs(120), "the server has nothing left to do", idle);
}

/// Writes a file of so many bytes and removes it. A virtual machine may get memory from its host only when it touches it for the
/// first time: a file that grows into such memory was written at 400 MB/s here, and at 4,500 into memory that had been used.
fn touch_memory(directory: &Path, bytes: u64) {
    const PIECE: usize = 1 << 20;
    let path = directory.join("touched");
    let mut file = std::fs::File::create(&path).expect("a file");
    for _ in 0..bytes.div_ceil(PIECE as u64) {
        file.write_all(&[0; PIECE]).expect("there is room");
    }
    std::fs::remove_file(&path).expect("it goes");
}

fn clear(home: &TestHome) {
    let _ = std::fs::remove_dir_all(home.path().join("cdc_logs"));
    let _ = std::fs::remove_file(home.path().join("cdc.state.p01"));
}

/// Measures with so many rows, and prints what it finds.
pub fn measure(rows: u64) {
    let home = TestHome::new("cdc-speed");
    let server = home.serve(&["--executors", "1", "--wal-retention-bytes", "64GiB"]);
    let keys = [("host", json!(server.address)), ("rotate_interval", json!("5s")), ("metrics_addr", json!(""))];
    configure(&home, &keys);
    let count = rows.to_string();
    let load = ["-c", "16", "-depth", "16", "-n", &count];
    per_second(bench(&home, &server, &load).spawn().expect("the generator runs"));
    let version = version(&home, &server);
    home.connect(&server, Role::Admin, 1).checkpoint().expect("it settles what was loaded");
    wait_until_idle(server.pid());

    touch_memory(home.path(), rows * LINE);
    let alone = encoder(rows);
    let began = Instant::now();
    let mut consumer = Consumer::start(&home);
    // The last lines wait for their file's age; the rate is taken from the growing files.
    let logs = home.path().join("cdc_logs");
    let written = || super::files(&logs, 1).iter().chain(&[part(&logs)]).map(|path| size(path)).sum::<u64>();
    let mut progress = Vec::new();
    let mut last = (0, Instant::now());
    while last.1.elapsed() < Duration::from_secs(2) || last.0 == 0 {
        let now = written();
        if now != last.0 {
            last = (now, Instant::now());
            progress.push((began.elapsed().as_secs_f64(), now));
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    wait_for_version(&home, version);
    let (first, last) = (progress[0], progress[progress.len() - 1]);
    let share = (last.1 - first.1) as f64 / last.1 as f64;
    let rate = version as f64 * share / (last.0 - first.0);
    println!(
        "catch-up: {rate:.0} lines/s of {VALUE} B values; the encoder alone {alone:.0} lines/s; ratio {:.2}",
        rate / alone
    );

    let mut latencies = Vec::new();
    let background = bench(&home, &server, &["-c", "16", "-depth", "4", "-rate", "20000", "-duration", "12s"])
        .spawn()
        .expect("the generator runs");
    std::thread::park_timeout(Duration::from_secs(1));
    let mut connection = home.connect(&server, Role::Client, 1);
    for n in 0..300u32 {
        let marker = format!("marker-{n}-{}", rows);
        connection.set(marker.as_bytes(), b"x").expect("it is committed");
        let committed = Instant::now();
        while !tail_has(&logs, marker.as_bytes()) {
            assert!(committed.elapsed() < Duration::from_secs(20), "a line never came");
            std::thread::park_timeout(Duration::from_micros(200));
        }
        latencies.push(committed.elapsed().as_secs_f64() * 1000.0);
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let rate = per_second(background);
    latencies.sort_by(f64::total_cmp);
    let at = |quantile: f64| latencies[(latencies.len() as f64 * quantile) as usize];
    println!("commit to file at {rate:.0} commits/s: p50 {:.1} ms, p99 {:.1} ms", at(0.5), at(0.99));
    assert!(consumer.stop().success());

    clear(&home);
    drop(server);
    slowdown();
}

/// What a consumer costs the server, which has CPU 0 for itself; generator and consumer share CPU 1.
fn slowdown() {
    let home = TestHome::new("cdc-cost");
    let ours = servers::start_ours(&home, &["--wal-retention-bytes", "1GiB"]).expect("it starts");
    let keys = [("host", json!(ours.peer.address)), ("rotate_interval", json!("5s")), ("metrics_addr", json!(""))];
    configure(&home, &[&keys[..], &[("start", json!("now"))]].concat());
    let block = |flags: &[&str]| {
        let before = Usage::of(ours.peer.pid).expect("it runs");
        let more = ["-c", "50", "-duration", "5s", "-keys", "100000", "--cores", "1"];
        let rate = per_second(bench(&home, &ours.server, &[&more, flags].concat()).spawn().expect("it runs"));
        let used = Usage::of(ours.peer.pid).expect("it runs").since(&before);
        (rate, used.cpu.as_secs_f64() / (rate * 5.0))
    };
    for (what, flags) in [
        ("depth 1, as fast as it goes", &["-depth", "1"][..]),
        ("depth 16, as fast as it goes", &["-depth", "16"]),
        ("20,000 SETs/s at depth 1", &["-depth", "1", "-rate", "20000"]),
        ("100,000 SETs/s at depth 16", &["-depth", "16", "-rate", "100000"]),
    ] {
        let (mut rates, mut costs) = (Vec::new(), Vec::new());
        for _ in 0..PAIRS {
            let without = block(flags);
            // It begins with what comes now, or it would have this block's log to read in the next.
            clear(&home);
            let mut consumer = Consumer::start(&home);
            let pid = consumer.pid().to_string();
            crate::real::eventually(super::PATIENCE, "it follows", || {
                consumer.log().iter().any(|line| line.contains("changes from version"))
            });
            let pinned = Command::new("taskset").args(["-a", "-c", "-p", "1", &pid]).stdout(Stdio::null()).status();
            assert!(pinned.is_ok_and(|status| status.success()), "taskset fails");
            let with = block(flags);
            assert!(consumer.stop().success());
            rates.push(with.0 / without.0);
            costs.push(with.1 / without.1);
        }
        println!(
            "{what}, with a consumer / without, medians of {PAIRS} pairs: rate {:.2}, the server's CPU for a SET {:.2}",
            median(rates),
            median(costs)
        );
    }
}

fn version(home: &TestHome, server: &TestServer) -> u64 {
    crate::real::figure(&home.connect(server, Role::Client, 1).stat().expect("it answers"), "version")
}

fn part(logs: &Path) -> std::path::PathBuf {
    let number = super::files(logs, 1).len() + 1;
    logs.join(format!("cdc-p01-{number:012}.part"))
}

fn size(path: &Path) -> u64 {
    path.metadata().map_or(0, |metadata| metadata.len())
}

/// Whether the end of the newest files has this text.
fn tail_has(logs: &Path, text: &[u8]) -> bool {
    use std::io::{Read, Seek, SeekFrom};
    const END: u64 = 1 << 20;
    let newest = super::files(logs, 1).into_iter().last();
    newest.into_iter().chain([part(logs)]).any(|path| {
        let Ok(mut file) = std::fs::File::open(&path) else { return false };
        let _ = file.seek(SeekFrom::Start(size(&path).saturating_sub(END)));
        let mut end = Vec::new();
        file.read_to_end(&mut end).is_ok() && end.windows(text.len()).any(|window| window == text)
    })
}
