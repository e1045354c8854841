//! What a follower costs, and how far behind it is: two of our servers on this machine, the leader on CPU 0, the follower
//! and the generator on CPU 1. [`super::laggards`] has followers that do not keep up.

use super::servers::{self, Ours, Usage};
use super::{Settings, Workload, block, generate, laggards, median, microseconds, milliseconds, yardsticks};
use crate::attack::watch::Watch;
use crate::real::{TestHome, TestServer, binary, figure};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use turnstone_net::client::Connection;
use turnstone_net::tls::Role;
use turnstone_net::wire::Request;

const FOLLOWER_CPU: &str = "1";
/// The priority of what gets only what others leave.
const LEAST: i32 = 19;
const PATIENCE: Duration = Duration::from_secs(300);
/// Log for the catch-up, in bytes of keys and values.
const BACKLOG: u64 = 512 << 20;

pub struct Pair {
    pub leader: Ours,
    pub follower: TestServer,
    // They go when nobody writes into them any more.
    pub homes: [TestHome; 2],
}

impl Pair {
    /// Both, the leader with these flags.
    pub fn start(settings: &Settings, flags: &[&str]) -> Result<Pair, String> {
        let first = TestHome::new("replicated-leader");
        let second = match &settings.follower_in {
            Some(directory) => TestHome::beside_in(directory, &first, "replicated-follower"),
            None => TestHome::beside(&first, "replicated-follower"),
        };
        let leader = servers::start_ours(&first, flags)?;
        let follower = second.try_serve_under(&["taskset", "-c", FOLLOWER_CPU], binary("turnstone"), &[])?;
        Ok(Pair { leader, follower, homes: [first, second] })
    }

    /// What the command line answers to these words at a node.
    pub fn order(&self, node: usize, words: &str) -> Result<String, String> {
        let server = if node == 0 { &self.leader.server } else { &self.follower };
        let arguments: Vec<&str> = ["--admin", "--partition", "1"].into_iter().chain(words.split(' ')).collect();
        let output = self.homes[node].cli(server, &arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(text) } else { Err(format!("{words}: {text}")) }
    }

    /// The follower follows.
    pub fn follow(&self) -> Result<(), String> {
        self.order(1, &format!("replicaof {} 1", self.leader.peer.address)).map(|_| ())
    }

    /// A connection to the leader.
    pub fn at_leader(&self) -> Connection {
        self.homes[0].connect(&self.leader.server, Role::Admin, 1)
    }

    /// A connection to the follower.
    pub fn at_follower(&self) -> Connection {
        self.homes[1].connect(&self.follower, Role::Admin, 1)
    }

    /// Waits until the follower shows what the leader does; answers how long that took.
    pub fn catch_up(&self) -> Result<Duration, String> {
        let wanted = version(&mut self.at_leader());
        let mut follower = self.at_follower();
        let started = Instant::now();
        while version(&mut follower) < wanted {
            if started.elapsed() > PATIENCE {
                return Err(format!("the follower does not catch up: {}", follower.stat().unwrap_or_default()));
            }
            // Not more often: each question takes from the follower's CPU what it could catch up with.
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Ok(started.elapsed())
    }

    /// Writes so many values of `length` bytes at the leader, no two equal, `at_once` before each wait for the answers.
    pub fn fill(&self, prefix: &str, count: u64, length: usize, at_once: usize) -> Result<(), String> {
        let mut leader = self.at_leader();
        let mut value = vec![b'v'; length];
        let numbers: Vec<u64> = (0..count).collect();
        for group in numbers.chunks(at_once) {
            for n in group {
                value[..8].copy_from_slice(&n.to_le_bytes());
                let key = format!("{prefix}-{n:012}").into_bytes();
                leader.send(&Request::Set { key: &key, value: &value }).map_err(|e| e.to_string())?;
            }
            leader.flush().map_err(|e| e.to_string())?;
            for _ in group {
                let reply = leader.receive().and_then(|reply| leader.check(reply));
                reply.map_err(|e| e.to_string())?;
            }
        }
        Ok(())
    }

    /// Memory that the leader has, KiB.
    pub fn leader_resident(&self) -> u64 {
        Watch { pid: self.leader.peer.pid }.resident()
    }

    fn block(&self, workload: &Workload, length: &str, extra: &[&str]) -> Result<super::Block, String> {
        block(&self.homes[0], &self.leader.peer, workload, length, extra)
    }
}

/// The newest version that a node shows in the partition.
pub fn version(connection: &mut Connection) -> u64 {
    figure(&connection.stat().expect("it answers"), "version")
}

/// Runs what the settings ask for and prints the figures.
pub fn run(settings: &Settings) -> Result<(), String> {
    if settings.only.as_deref() == Some("copy") {
        return laggards::copied(settings);
    }
    // The log stays whole, for the catch-up.
    let pair = Pair::start(settings, &["--wal-retention-bytes", "64GiB", "--quorum-timeout", "60s"])?;
    println!("two CPUs: leader on 0, follower and generator on 1; 128 B values, mutual TLS 1.3 AES-128-GCM");
    println!("bare TLS echo of 200 B, one client: {}", yardsticks::echo(&pair.homes[0])?);
    println!("raw 4 KiB flush, one at a time, on CPU 0: {}", yardsticks::flushes(pair.homes[0].path(), 0)?);
    let wanted = |name: &str| settings.only.as_deref().is_none_or(|only| only == name);
    if wanted("catch-up") {
        catch_up(&pair)?;
    } else {
        pair.follow()?;
    }
    if wanted("quorum") {
        quorum(&pair, settings)?;
    }
    if wanted("cost") {
        cost(&pair, settings)?;
    }
    if wanted("lag") {
        lag(&pair, settings)?;
    }
    if wanted("stopped") {
        laggards::stopped(&pair, settings)?;
    }
    if wanted("slow") {
        laggards::slow(&pair, settings)?;
    }
    Ok(())
}

fn catch_up(pair: &Pair) -> Result<(), String> {
    let mut leader = pair.at_leader();
    pair.fill("backlog", BACKLOG / 1020, 1000, 1000)?;
    let bytes = figure(&leader.stat().map_err(|e| e.to_string())?, "log_bytes");
    let usage = || Ok::<_, String>((Usage::of(pair.leader.peer.pid)?, Usage::of(pair.follower.pid())?));
    let before = usage()?;
    pair.follow()?;
    let took = pair.catch_up()?;
    let after = usage()?;
    let rate = |bytes: u64, took: Duration| bytes as f64 / 1e6 / took.as_secs_f64();
    let bulk = yardsticks::bulk(&pair.homes[0])?;
    println!(
        "catch-up: {} MB of log in {:.2} s, {:.0} MB/s; bare TLS bulk transfer {bulk:.0} MB/s, ratio {:.2}; the leader used {:.2} s \
         of its core, the follower {:.2}",
        bytes / 1_000_000,
        took.as_secs_f64(),
        rate(bytes, took),
        rate(bytes, took) / bulk,
        after.0.since(&before.0).cpu.as_secs_f64(),
        after.1.since(&before.1).cpu.as_secs_f64()
    );
    Ok(())
}

/// One client's commits, with and without a follower that must hold them.
fn quorum(pair: &Pair, settings: &Settings) -> Result<(), String> {
    let workload = Workload { name: "", connections: 1, depth: 1, reads: false };
    let (mut local, mut held) = (Vec::new(), Vec::new());
    for round in 0..settings.rounds.max(2) * 2 {
        let with = round % 4 == 1 || round % 4 == 2;
        pair.order(0, if with { "min_replicas 1" } else { "min_replicas 0" })?;
        let b = pair.block(&workload, &settings.block, &[])?;
        if with { held.push(b.p50) } else { local.push(b.p50) }
    }
    pair.order(0, "min_replicas 0")?;
    let (local, held) = (median(local.into_iter()), median(held.into_iter()));
    println!("one client: commit p50 {local:.0} us local, {held:.0} us held by a follower, ratio {:.2}", held / local);
    Ok(())
}

/// Clients that leave both CPUs time to spare, as they wait for each other.
const CLIENTS: u32 = 50;
/// Clients of which some are always there for the leader, whatever takes from the CPU that they share with the follower.
const CROWD: u32 = 200;

/// What the leader pays for a follower: what it takes at most from clients that keep it busy; the same from fewer, who wait
/// behind the follower for their CPU; what it uses at a rate that it reaches either way; and what few clients get of it beside
/// a follower that has only what they leave of their CPU.
fn cost(pair: &Pair, settings: &Settings) -> Result<(), String> {
    for clients in [CROWD, CLIENTS] {
        for depth in [1, 16] {
            cost_of(pair, settings, clients, depth, None, "")?;
        }
    }
    for (depth, rate) in [(1, "30000"), (16, "200000")] {
        cost_of(pair, settings, CLIENTS, depth, Some(rate), &format!(" at {rate} SET/s"))?;
    }
    // Those that are at the least priority already stay there.
    let threads = ordinary_threads(pair.follower.pid())?;
    if !renice(&threads, LEAST) {
        println!("with the follower at nice {LEAST}: not measured, it needs the right to change priorities");
        return Ok(());
    }
    for depth in [1, 16] {
        cost_of(pair, settings, CLIENTS, depth, None, &format!(", follower at nice {LEAST}"))?;
    }
    // Some have ended by themselves.
    let is_there = |id: &&String| std::path::Path::new(&format!("/proc/{}/task/{id}", pair.follower.pid())).exists();
    let left: Vec<String> = threads.iter().filter(is_there).cloned().collect();
    if !renice(&left, 0) {
        println!("a thread of the follower may still be at nice {LEAST}");
    }
    Ok(())
}

/// Threads of a process that get as much of a CPU as others do.
fn ordinary_threads(pid: u32) -> Result<Vec<String>, String> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_err(|e| format!("the follower's threads: {e}"))?;
    // Behind the name in parentheses, nice is the 17th field.
    let is_ordinary = |id: &String| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{id}/stat")).ok();
        let fields = stat.as_deref().and_then(|stat| stat.rsplit_once(") "));
        fields.and_then(|(_, fields)| fields.split(' ').nth(16)) == Some("0")
    };
    Ok(threads.filter_map(|thread| thread.ok()?.file_name().into_string().ok()).filter(is_ordinary).collect())
}

/// Gives threads this priority; answers whether that went well for all of them.
fn renice(threads: &[String], nice: i32) -> bool {
    let mut command = Command::new("renice");
    command.args(["-n", &nice.to_string(), "-p"]).args(threads).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn cost_of(
    pair: &Pair,
    settings: &Settings,
    clients: u32,
    depth: u32,
    rate: Option<&str>,
    how: &str,
) -> Result<(), String> {
    let workload = Workload { name: "", connections: clients, depth, reads: false };
    let extra: Vec<&str> = rate.iter().flat_map(|rate| ["--rate", rate]).collect();
    let (mut alone, mut beside, mut taken) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..settings.rounds.max(1) * 4 {
        let with = round % 4 == 1 || round % 4 == 2;
        if with {
            pair.follow()?;
            pair.catch_up()?;
        } else {
            pair.order(1, "replicaof no one")?;
        }
        let before = Usage::of(pair.follower.pid())?;
        let b = pair.block(&workload, &settings.block, &extra)?;
        if with {
            let used = Usage::of(pair.follower.pid())?.since(&before);
            taken.push(used.cpu.as_secs_f64() / used.wall.as_secs_f64());
            beside.push(b);
        } else {
            alone.push(b);
        }
    }
    pair.follow()?;
    let behind = pair.catch_up()?;
    let of = |blocks: &[super::Block], what: fn(&super::Block) -> f64| median(blocks.iter().map(what));
    let ratio = |what: fn(&super::Block) -> f64| of(&beside, what) / of(&alone, what);
    println!(
        "{clients} clients, depth {depth:<2}{how}: {:.0} SET/s alone, {:.0} with a follower, ratio {:.2}; leader's CPU per SET \
         {:.2} and {:.2} us, ratio {:.2}; p50 {:.0} and {:.0} us; caught up {:.2} s later; CPU 0: leader {:.0}% \
         and {:.0}%; CPU 1: generator {:.0}%, or {:.0}% and follower {:.0}%",
        of(&alone, |b| b.per_second),
        of(&beside, |b| b.per_second),
        ratio(|b| b.per_second),
        of(&alone, |b| b.cpu),
        of(&beside, |b| b.cpu),
        ratio(|b| b.cpu),
        of(&alone, |b| b.p50),
        of(&beside, |b| b.p50),
        behind.as_secs_f64(),
        of(&alone, |b| b.server) * 100.0,
        of(&beside, |b| b.server) * 100.0,
        of(&alone, |b| b.client) * 100.0,
        of(&beside, |b| b.client) * 100.0,
        median(taken.into_iter()) * 100.0
    );
    Ok(())
}

/// From a commit's answer at the leader until the follower shows it, beside a load of 70 % of what it takes.
fn lag(pair: &Pair, settings: &Settings) -> Result<(), String> {
    pair.catch_up()?;
    let most = pair.block(&Workload { name: "", connections: 50, depth: 1, reads: false }, "3s", &[])?.per_second;
    pair.catch_up()?;
    let rate = (most * 0.7).round().to_string();
    let length = format!("{}ms", milliseconds(&settings.block)? + 1000);
    let (home, address) = (&pair.homes[0], &pair.leader.peer.address);
    let times = std::thread::scope(|scope| {
        let words = ["-c", "50", "--ratio", "0", "--rate", &rate, "--duration", &length];
        let load = scope.spawn(move || generate(home, address, &words));
        let (mut leader, mut follower) = (pair.at_leader(), pair.at_follower());
        let (mut times, mut n) = (Vec::new(), 0u64);
        while !load.is_finished() {
            n += 1;
            let at = leader.set(b"lag", n.to_string().as_bytes()).map_err(|e| e.to_string())?;
            let at = at.ok_or("a commit has no position")?;
            let answered = Instant::now();
            let wait = Request::Wait { epoch: at.epoch, version: at.version, milliseconds: 10_000 };
            let reply = follower.call(&wait).and_then(|reply| follower.check(reply));
            reply.map_err(|e| e.to_string())?;
            times.push(microseconds(answered.elapsed()));
        }
        load.join().map_err(|_| "the generator panicked")??;
        Ok::<_, String>(times)
    });
    let mut times = times?;
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] / 1000.0;
    println!(
        "at {rate} SET/s (70 %): the follower shows a commit {:.2} ms after its answer (p50), {:.2} ms (p99), of {} commits",
        at(0.5),
        at(0.99),
        times.len()
    );
    Ok(())
}
