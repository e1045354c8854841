//! Two servers, the same load, alternating: what each operation costs.
//!
//! * [`alone`]: what has no counterpart: the v1 dialect, all partitions at once, readers beside writers, two executors.
//! * [`replicated`]: what a follower costs, and how far behind it is; [`laggards`]: those that do not keep up.
//! * [`servers`]: starting them pinned, and reading what they used.
//! * [`yardsticks`]: what the disk and TLS alone cost, measured in the same run.

mod alone;
mod laggards;
mod replicated;
pub mod servers;
pub mod yardsticks;

use crate::real::{TestHome, binary};
use serde_json::Value;
use servers::{Peer, Redis, Usage};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use turnstone_net::tls::Role;

const KEYS: &str = "100000";
/// Where the generator runs.
const CLIENT_CPU: &str = "1";

/// What is compared.
struct Workload {
    name: &'static str,
    connections: u32,
    depth: u32,
    reads: bool,
}

const WORKLOADS: [Workload; 5] = [
    Workload { name: "GET depth 16", connections: 50, depth: 16, reads: true },
    Workload { name: "GET depth 1", connections: 50, depth: 1, reads: true },
    Workload { name: "SET depth 16", connections: 50, depth: 16, reads: false },
    Workload { name: "SET depth 1", connections: 50, depth: 1, reads: false },
    Workload { name: "SET 1 client", connections: 1, depth: 1, reads: false },
];

struct Settings {
    /// A follower, and no other server.
    replicated: bool,
    block: String,
    rounds: usize,
    only: Option<String>,
    /// Where the follower's home is made: on a disk of its own, or in memory. Below the target directory if not set.
    follower_in: Option<PathBuf>,
    /// How much a copy has, bytes.
    copied: u64,
}

fn settings(words: impl Iterator<Item = String>) -> Result<Settings, String> {
    let usage = "usage: side-by-side redis [--block 8s] [--rounds 1] [--only 'SET depth 1'|alone|calm|executors]\n   or: \
                 side-by-side replication [--block 8s] [--rounds 1] [--only catch-up|quorum|cost|lag|stopped|\
                 slow|copy] [--follower-in DIR] [--copied 1GiB]";
    let mut settings = Settings {
        replicated: false,
        block: "8s".to_string(),
        rounds: 1,
        only: None,
        follower_in: None,
        copied: 1 << 30,
    };
    let mut words = words.peekable();
    match words.next().as_deref() {
        Some("redis") => {}
        Some("replication") => settings.replicated = true,
        _ => return Err(usage.to_string()),
    }
    while let Some(word) = words.next() {
        let value = words.next().ok_or(usage)?;
        match word.as_str() {
            "--block" => settings.block = value,
            "--rounds" => settings.rounds = value.parse().map_err(|_| usage)?,
            "--only" => settings.only = Some(value),
            "--follower-in" => settings.follower_in = Some(value.into()),
            "--copied" => settings.copied = turnstone_tools::units::parse_size(&value).map_err(|e| e.to_string())?,
            _ => return Err(usage.to_string()),
        }
    }
    Ok(settings)
}

/// One block: what the generator and the server did.
struct Block {
    per_second: f64,
    /// Server's processor time per operation, microseconds.
    cpu: f64,
    /// Shares of a core.
    server: f64,
    client: f64,
    p50: f64,
    p99: f64,
}

fn generate(home: &TestHome, address: &str, extra: &[&str]) -> Result<Value, String> {
    let output = Command::new(binary("turnstone-bench"))
        .arg("--home")
        .arg(home.path())
        .args(["--host", address, "--keys", KEYS, "--cores", CLIENT_CPU, "--json"])
        .args(extra)
        .output()
        .map_err(|e| format!("turnstone-bench: {e}"))?;
    // It fails when transactions were refused, and has its figures nevertheless.
    let phases: Value = serde_json::from_slice(&output.stdout).map_err(|_| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        format!("turnstone-bench failed: {text}")
    })?;
    let phase = phases[0].clone();
    if phase["errors"].as_object().is_some_and(|errors| !errors.is_empty()) {
        println!("refused: {} of {} transactions", phase["errors"], phase["transactions"]);
    }
    Ok(phase)
}

fn block(home: &TestHome, peer: &Peer, workload: &Workload, length: &str, extra: &[&str]) -> Result<Block, String> {
    let ratio = if workload.reads { "1" } else { "0" };
    let (connections, depth) = (workload.connections.to_string(), workload.depth.to_string());
    let mut words =
        vec!["-c", &connections, "--depth", &depth, "--ratio", ratio, "--duration", length, "--warmup", "500ms"];
    words.extend_from_slice(peer.flags);
    words.extend_from_slice(extra);
    let before = Usage::of(peer.pid)?;
    let report = generate(home, &peer.address, &words)?;
    let used = Usage::of(peer.pid)?.since(&before);
    let number = |name: &str| report[name].as_f64().unwrap_or(0.0);
    let latency = &report[if workload.reads { "read_us" } else { "write_us" }];
    // The server's time is of the whole run, so operations are, too: the rate of the measured part stands for all of it.
    let operations = number("per_second") * used.wall.as_secs_f64();
    Ok(Block {
        per_second: number("per_second"),
        cpu: used.cpu.as_secs_f64() * 1e6 / operations.max(1.0),
        server: used.cpu.as_secs_f64() / used.wall.as_secs_f64(),
        client: number("client_cpu_seconds") / number("seconds").max(1e-9),
        p50: latency["p50"].as_f64().unwrap_or(0.0),
        p99: latency["p99"].as_f64().unwrap_or(0.0),
    })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// Runs what the words ask for and prints the table.
pub fn run(words: impl Iterator<Item = String>) -> Result<(), String> {
    let settings = settings(words)?;
    if settings.replicated {
        return replicated::run(&settings);
    }
    let home = TestHome::new("side-by-side");
    let mut ours = servers::start_ours(&home, &[])?;
    fill(&home, &ours.peer.address, ours.peer.flags)?;
    // GETs come from checkpointed data, as after a restart.
    {
        let mut admin = home.connect(&ours.server, Role::Admin, 1);
        admin.checkpoint().map_err(|e| e.to_string())?;
    }
    ours.server.stop();
    let mut ours = servers::start_ours(&home, &[])?;
    let redis = Redis::start(&home)?;
    fill(&home, &redis.peer.address, redis.peer.flags)?;
    println!(
        "two CPUs: servers on 0, generator on {CLIENT_CPU}; 128 B values, {KEYS} keys, mutual TLS 1.3 AES-128-GCM"
    );
    // A flush's end finds a core that sleeps sooner or later, depending on which core the disk interrupts.
    for cpu in [0, 1] {
        println!("raw 4 KiB flush, one at a time, on CPU {cpu}: {}", yardsticks::flushes(home.path(), cpu)?);
    }
    println!("raw 4 KiB through a core's ring, on CPU 0: {}", yardsticks::rounds(home.path())?);
    println!("bare TLS echo of 200 B, one client: {}\n", yardsticks::echo(&home)?);
    println!(
        "{:<14} {:>9} {:>9} {:>6} | {:>8} {:>8} {:>6} | {:>5} {:>5} {:>6} {:>6} | {:>8} {:>8} {:>9}",
        "",
        "ours/s",
        "redis/s",
        "ratio",
        "ours us",
        "redis us",
        "ratio",
        "srv",
        "srv R",
        "client",
        "cli R",
        "p50 us",
        "p50 R",
        "per flush"
    );
    // Every key is asked for once before GETs are compared; what that costs is a figure of its own.
    let first = Workload { name: "", connections: 50, depth: 16, reads: true };
    let cold = block(&home, &ours.peer, &first, "1s", &[])?;
    println!("{:<14} {:>9.0} {:>26.2}   soon after the restart", "GET, cold", cold.per_second, cold.cpu);
    block(&home, &ours.peer, &first, "4s", &[])?;
    block(&home, &redis.peer, &first, "1s", &[])?;
    for workload in &WORKLOADS {
        if settings.only.as_deref().is_none_or(|only| only == workload.name) {
            compare(&home, &ours, &redis, workload, &settings)?;
        }
    }
    drop(redis);
    let wanted = |name: &str| settings.only.as_deref().is_none_or(|only| only == name);
    if wanted("alone") {
        println!();
        alone::dialects_and_partitions(&home, &ours, &settings)?;
    }
    ours.server.stop();
    if wanted("calm") {
        println!();
        alone::readers_beside_writers(&home, &settings)?;
    }
    if wanted("executors") {
        println!();
        alone::one_and_two_executors(&home, &settings)?;
    }
    Ok(())
}

fn fill(home: &TestHome, address: &str, flags: &[&str]) -> Result<(), String> {
    let mut words = vec!["-c", "50", "-n", KEYS, "--depth", "16"];
    words.extend_from_slice(flags);
    generate(home, address, &words).map(drop)
}

fn compare(
    home: &TestHome,
    ours: &servers::Ours,
    redis: &Redis,
    workload: &Workload,
    settings: &Settings,
) -> Result<(), String> {
    let (mut mine, mut theirs) = (Vec::new(), Vec::new());
    let before = ours.counts(home, &[1]);
    for _ in 0..settings.rounds {
        mine.push(block(home, &ours.peer, workload, &settings.block, &[])?);
        theirs.push(block(home, &redis.peer, workload, &settings.block, &[])?);
        theirs.push(block(home, &redis.peer, workload, &settings.block, &[])?);
        mine.push(block(home, &ours.peer, workload, &settings.block, &[])?);
    }
    let (commits, batches) = ours.counts(home, &[1]);
    let per_flush = (commits - before.0) as f64 / ((batches - before.1) as f64).max(1.0);
    let of = |blocks: &[Block], what: fn(&Block) -> f64| median(blocks.iter().map(what));
    let ratio = |what: fn(&Block) -> f64| median(mine.iter().zip(&theirs).map(|(a, b)| what(a) / what(b)));
    println!(
        "{:<14} {:>9.0} {:>9.0} {:>6.2} | {:>8.2} {:>8.2} {:>6.2} | {:>4.0}% {:>4.0}% {:>5.0}% {:>5.0}% | {:>8.0} {:>8.0} {:>9.1}",
        workload.name,
        of(&mine, |b| b.per_second),
        of(&theirs, |b| b.per_second),
        ratio(|b| b.per_second),
        of(&mine, |b| b.cpu),
        of(&theirs, |b| b.cpu),
        ratio(|b| b.cpu),
        of(&mine, |b| b.server) * 100.0,
        of(&theirs, |b| b.server) * 100.0,
        of(&mine, |b| b.client) * 100.0,
        of(&theirs, |b| b.client) * 100.0,
        of(&mine, |b| b.p50),
        of(&theirs, |b| b.p50),
        per_flush
    );
    let (p99, p99_theirs) = (of(&mine, |b| b.p99), of(&theirs, |b| b.p99));
    println!("{:<14} p99 us: ours {p99:.0}, redis {p99_theirs:.0}", "");
    Ok(())
}

/// A length of time as the generator reads it.
fn milliseconds(text: &str) -> Result<u64, String> {
    let (digits, scale) = text.strip_suffix("ms").map_or((text.trim_end_matches('s'), 1000), |digits| (digits, 1));
    digits.parse().map(|n: u64| n * scale).map_err(|_| format!("{text} is no length of time: write 8s or 500ms"))
}

/// A duration as people read it.
pub fn microseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
