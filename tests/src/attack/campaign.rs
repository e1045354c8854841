//! The campaign against one server: each case once, with its line in the log; then all of them at random and at a fixed
//! rate, in stretches between which the good client is alone.

use super::good_client::{Block, GoodClient};
use super::report::{self, Bounds, Tally};
use super::watch::Watch;
use super::{Case, Ground, cases, frames};
use crate::real::{TestHome, TestServer, binary};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use turnstone_net::tls::Role;
use turnstone_tools::bench::workload::Numbers;

/// What servers under attack are started with. Replies that nobody takes are given up within the bound, too.
pub const FLAGS: [&str; 4] = ["--max-conns", "1000", "--write-timeout", "4s"];
/// Memory may grow by this much, and by half as much again while the attack goes on: clients that take no replies hold a
/// few MiB of them until their deadline.
const GROWTH_KIB: u64 = 16 << 10;
/// How many times longer the good client may wait at the 99th percentile.
const SLOWER: f64 = 2.0;
/// The good client's GETs per second.
const GOOD_RATE: u32 = 1000;
/// Between two cases whose lines are looked for: the log takes ten a second.
const PAUSE: Duration = Duration::from_millis(110);
/// Lines of refusals in a second at most, with the one that counts the rest.
const LINES_PER_SECOND: u64 = 11;
/// Deadlines and what waits for them are over after this.
const SETTLED: Duration = Duration::from_secs(8);
/// A worker's stack; there are many, most of them waiting.
const STACK: usize = 512 << 10;

/// How much of it, and how.
#[derive(Clone, Debug)]
pub struct Scale {
    /// Bad connections at random, beside one of each.
    pub connections: u64,
    /// Per second.
    pub per_second: f64,
    /// Attackers at a time.
    pub workers: usize,
    /// Where the choices start.
    pub seed: u64,
    /// Stretches with the good client alone in between.
    pub stretches: usize,
    /// How long it is alone each time.
    pub alone: Duration,
    /// Server on one CPU; good client, and attackers that let it go first, on another.
    pub pinned: bool,
}

/// Where attackers and the good client run when pinned.
pub const CLIENT_CPU: usize = 1;
/// Where the server runs when pinned.
pub const SERVER_CPU: &str = "0";

/// A server as it is attacked.
pub fn start(home: &TestHome, pinned: bool, flags: &[&str]) -> TestServer {
    let before: &[&str] = if pinned { &["taskset", "-c", SERVER_CPU] } else { &[] };
    home.try_serve_under(before, binary("turnstone"), &[&FLAGS, flags].concat()).expect("the server gets ready")
}

/// Runs it all and prints what came of it.
pub fn run(scale: &Scale) -> Result<(), String> {
    let home = TestHome::new("attack");
    let mut server = start(&home, scale.pinned, &[]);
    {
        let mut admin = home.connect(&server, Role::Admin, 1);
        admin.set(frames::BIG_KEY, &vec![9; frames::BIG_BYTES]).map_err(|e| e.to_string())?;
        // What a checkpoint opens stays open, and must not be taken for a leak.
        admin.checkpoint().map_err(|e| e.to_string())?;
        admin.get(frames::BIG_KEY).map_err(|e| e.to_string())?;
    }
    let ground = Ground::new(&home, &server);
    let cases = cases(&home);
    let watch = Watch { pid: server.pid() };
    let mut bounds = Bounds::default();
    let good = GoodClient::start(&home, &server, GOOD_RATE, scale.pinned.then_some(CLIENT_CPU));
    let mut alone = vec![good.alone(scale.alone)];
    let (resident, descriptors) = (watch.resident(), watch.no_files());
    let started = Instant::now();

    let mut tallies = one_of_each(&ground, &cases, &mut server, scale);
    good.take();
    let mut beside = Vec::new();
    for stretch in 0..scale.stretches {
        let share = scale.connections / scale.stretches as u64;
        let from = stretch as u64 * share;
        let count = if stretch + 1 == scale.stretches { scale.connections - from } else { share };
        let waited = watch.waited();
        let (came, block) = at_random(&ground, &cases, scale, from, count, &good);
        println!(
            "  the good client's p99 {:.0} us, worst {:.0} us; the server waited {:.0} ms for its CPU, the longest of its threads",
            block.quantile(0.99),
            block.quantile(1.0),
            watch.waited().saturating_sub(waited).as_secs_f64() * 1e3
        );
        beside.push(block);
        tallies.iter_mut().zip(came).for_each(|(all, more)| all.add(more));
        alone.push(good.alone(scale.alone));
    }
    let back = watch.no_files_back(descriptors, SETTLED);
    let (after, peak) = (watch.resident(), watch.peak());
    let seconds = started.elapsed().as_secs_f64();

    report::print(&cases, &tallies);
    println!();
    report::judge(&cases, &tallies, &mut bounds);
    judge_log(&cases, &tallies, &server.log(), seconds, &mut bounds);
    let (growth, most) = (after.saturating_sub(resident), peak.saturating_sub(resident));
    bounds.hold(growth <= GROWTH_KIB, &format!("memory {resident} KiB before, {after} after: {growth} KiB more"));
    bounds.hold(most <= GROWTH_KIB + GROWTH_KIB / 2, &format!("memory {peak} KiB at most: {most} KiB more"));
    let text = format!("descriptors without files {descriptors} before, {back} after");
    bounds.hold(back <= descriptors, &text);
    let failure = good.failure();
    let text = failure.as_deref().unwrap_or("none of the good client's GETs failed");
    bounds.hold(failure.is_none(), text);
    judge_latency(&alone, &beside, scale.pinned, &mut bounds);
    drop(good);
    judge_counters(&home, &server, &mut bounds);
    let (status, took) = server.stop();
    bounds.hold(status.success(), &format!("the server stops in order ({status} after {:.2} s)", took.as_secs_f64()));
    bounds.result()
}

/// Each case alone, so that its line in the log can be told; those that wait for a deadline all at once.
fn one_of_each(ground: &Ground, cases: &[Case], server: &mut TestServer, scale: &Scale) -> Vec<Tally> {
    let mut tallies = vec![Tally::default(); cases.len()];
    let mut seen = server.log().len();
    for (i, case) in cases.iter().enumerate().filter(|(_, case)| !case.is_slow()) {
        let started = Instant::now();
        let how = case.run(ground, &mut Numbers::new(scale.seed));
        tallies[i].count(how, started.elapsed());
        let line = || {
            let log = server.log();
            let found = log[seen..].iter().find(|line| line.contains(case.reason)).cloned();
            seen = if found.is_some() { log.len() } else { seen };
            found
        };
        tallies[i].line = wait_for_line(case, line);
        while let Some(left) = PAUSE.checked_sub(started.elapsed()) {
            std::thread::park_timeout(left);
        }
        seen = server.log().len();
    }
    let before = server.log().len();
    std::thread::scope(|scope| {
        let slow = cases.iter().zip(&mut tallies).filter(|(case, _)| case.is_slow());
        for (case, tally) in slow {
            scope.spawn(move || {
                let started = Instant::now();
                let how = case.run(ground, &mut Numbers::new(scale.seed));
                tally.count(how, started.elapsed());
            });
        }
    });
    for (case, tally) in cases.iter().zip(&mut tallies).filter(|(case, _)| case.is_slow()) {
        tally.line =
            wait_for_line(case, || server.log()[before..].iter().find(|line| line.contains(case.reason)).cloned());
    }
    tallies
}

/// The log is written by a thread of its own, so its line may come a moment later.
fn wait_for_line(case: &Case, mut find: impl FnMut() -> Option<String>) -> String {
    if case.reason.is_empty() {
        return "-".to_string();
    }
    let started = Instant::now();
    loop {
        if let Some(line) = find() {
            // Without time and level.
            return line.splitn(3, ' ').nth(2).unwrap_or_default().trim().to_string();
        }
        if started.elapsed() > Duration::from_secs(1) {
            return String::new();
        }
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Connections `from` to `from + count`, each when it is due; and the good client until the last one begins: behind it
/// some only wait for their deadlines.
fn at_random(
    ground: &Ground,
    cases: &[Case],
    scale: &Scale,
    from: u64,
    count: u64,
    good: &GoodClient,
) -> (Vec<Tally>, Block) {
    let total: u64 = cases.iter().map(|case| case.weight).sum();
    let next = AtomicU64::new(0);
    let block = Mutex::new(Block::default());
    good.take();
    let started = Instant::now();
    let work = || {
        if scale.pinned {
            turnstone_executor::placement::pin_thread(CLIENT_CPU).expect("the CPU is there");
        }
        // The good client must not wait for the attackers' own work.
        turnstone_executor::ring::sys::be_nice();
        let mut tallies = vec![Tally::default(); cases.len()];
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n == count {
                *block.lock().expect("not poisoned") = good.take();
            }
            if n >= count {
                return tallies;
            }
            let due = Duration::from_secs_f64(n as f64 / scale.per_second);
            while let Some(left) = due.checked_sub(started.elapsed()).filter(|left| !left.is_zero()) {
                std::thread::park_timeout(left);
            }
            let mut numbers = Numbers::new(scale.seed ^ (from + n).wrapping_mul(0x1000_0001));
            let mut at = numbers.below(total);
            let chosen = cases.iter().position(|case| {
                let here = at < case.weight;
                at = at.saturating_sub(case.weight);
                here
            });
            let i = chosen.expect("below the total");
            let began = Instant::now();
            let how = cases[i].run(ground, &mut numbers);
            tallies[i].count(how, began.elapsed());
        }
    };
    let mut all = vec![Tally::default(); cases.len()];
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..scale.workers)
            .map(|_| std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work).expect("a thread"))
            .collect();
        for worker in workers {
            let tallies = worker.join().expect("an attacker does not panic");
            all.iter_mut().zip(tallies).for_each(|(all, more)| all.add(more));
        }
    });
    let seconds = started.elapsed().as_secs_f64();
    println!("{count} connections in {seconds:.1} s, {:.0} a second", count as f64 / seconds);
    (all, block.into_inner().expect("not poisoned"))
}

fn judge_log(cases: &[Case], tallies: &[Tally], log: &[String], seconds: f64, bounds: &mut Bounds) {
    let silent: Vec<&str> =
        cases.iter().zip(tallies).filter(|(_, tally)| tally.line.is_empty()).map(|(case, _)| case.name).collect();
    let text = match silent.len() {
        0 => "the log names the reason of every case".to_string(),
        n => format!("the log names the reason of every case; it does not of {n}: {}", silent.join("; ")),
    };
    bounds.hold(silent.is_empty(), &text);
    let lines = log.iter().filter(|line| line.contains(" WARN ")).count() as u64;
    let most = (seconds.ceil() as u64 + 1) * LINES_PER_SECOND;
    bounds.hold(lines <= most, &format!("{lines} lines of the log in {seconds:.0} s, at most {most}"));
}

fn judge_latency(alone: &[Block], beside: &[Block], asserted: bool, bounds: &mut Bounds) {
    let p99 = |block: &Block| block.quantile(0.99);
    // Each stretch is held against its neighbours: the machine may change in the meantime.
    let mut ratios: Vec<f64> = beside
        .iter()
        .zip(alone.windows(2))
        .map(|(beside, alone)| p99(beside) / ((p99(&alone[0]) + p99(&alone[1])) / 2.0))
        .collect();
    ratios.sort_by(f64::total_cmp);
    // Of an even number the mean of the middle two.
    let middle = |at: usize| ratios.get(at).copied().unwrap_or(f64::NAN);
    let ratio = (middle(ratios.len() / 2) + middle(ratios.len().saturating_sub(1) / 2)) / 2.0;
    for (name, blocks) in [("alone", alone), ("beside", beside)] {
        let all = Block::together(blocks);
        println!(
            "good client {name}: {} GETs, p50 {:.0} us, p99 {:.0} us, p99.9 {:.0} us, worst {:.0} us",
            all.count(),
            all.quantile(0.5),
            all.quantile(0.99),
            all.quantile(0.999),
            all.quantile(1.0)
        );
    }
    let shown: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
    let text = format!("the good client's p99 is {ratio:.2} times what it is alone (stretches: {})", shown.join(", "));
    if asserted {
        bounds.hold(ratio <= SLOWER, &text);
    } else {
        println!("{text}");
    }
}

/// Partition 0 tells what was refused.
fn judge_counters(home: &TestHome, server: &TestServer, bounds: &mut Bounds) {
    let mut client = home.connect(server, Role::Client, 0);
    let refused = client.get(b"refused").expect("it serves").unwrap_or_default();
    let refused = String::from_utf8_lossy(&refused).into_owned();
    let counts: serde_json::Value = serde_json::from_str(&refused).unwrap_or_default();
    let counted = ["handshake", "certificate", "went_away", "handshake_timeout", "role", "encrypted", "request"];
    let missing: Vec<&str> =
        counted.into_iter().filter(|name| counts[name].as_u64().is_none_or(|count| count == 0)).collect();
    bounds.hold(missing.is_empty(), &format!("partition 0 counts the refusals: {refused} {}", missing.join(" ")));
}
