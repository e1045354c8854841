//! What has no counterpart in the other server, measured by itself.

use super::servers::{self, Peer};
use super::{Block, Settings, Workload, block, generate, median};
use crate::real::{TestHome, binary, figure};
use turnstone_net::tls::Role;

/// A load with its name.
struct Alone<'a> {
    name: &'static str,
    workload: Workload,
    flags: &'a [&'a str],
    partitions: &'a [u8],
}

/// All partitions at once beside one, and the v1 dialect beside `turnstone/2`: by turns, since the machine changes from one
/// minute to the next.
pub fn dialects_and_partitions(home: &TestHome, ours: &servers::Ours, settings: &Settings) -> Result<(), String> {
    let all: Vec<u8> = (1..=16).collect();
    let set = |name, connections, depth, flags, partitions| {
        let workload = Workload { name: "", connections, depth, reads: false };
        Alone { name, workload, flags, partitions }
    };
    let pairs = [
        (
            set("turnstone/2 SET, 64 clients, 1 partition", 64, 1, &[][..], &[1][..]),
            // The same keys in all: a connection has its share of them, in one partition.
            set("turnstone/2 SET, 64 clients, 16 partitions", 64, 1, &["--partition", "1-16"], &all),
        ),
        (
            set("turnstone/2 SET, 50 clients, depth 1", 50, 1, &[], &[1]),
            set("v1 Begin Set Commit, 50 clients, depth 1", 50, 1, &["--dialect", "v1"], &[1]),
        ),
        (
            set("turnstone/2 SET, 50 clients, depth 16", 50, 16, &[], &[1]),
            set("v1 Begin Set Commit, 50 clients, depth 16", 50, 16, &["--dialect", "v1"], &[1]),
        ),
    ];
    println!(
        "{:<44} {:>9} {:>8} {:>6} {:>6} {:>8} {:>10}",
        "ours alone", "per s", "us", "srv", "client", "p50 us", "per flush"
    );
    for (one, other) in &pairs {
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for _ in 0..settings.rounds.max(1) {
            first.push(of_ours(home, ours, one, settings)?);
            second.push(of_ours(home, ours, other, settings)?);
            second.push(of_ours(home, ours, other, settings)?);
            first.push(of_ours(home, ours, one, settings)?);
        }
        for (Alone { name, .. }, blocks) in [(one, &first), (other, &second)] {
            let of = |what: fn(&(Block, f64)) -> f64| median(blocks.iter().map(what));
            println!(
                "{name:<44} {:>9.0} {:>8.2} {:>5.0}% {:>5.0}% {:>8.0} {:>10.1}",
                of(|(b, _)| b.per_second),
                of(|(b, _)| b.cpu),
                of(|(b, _)| b.server) * 100.0,
                of(|(b, _)| b.client) * 100.0,
                of(|(b, _)| b.p50),
                of(|(_, per_flush)| *per_flush)
            );
        }
        let ratios = second.iter().zip(&first).map(|((b, _), (a, _))| b.per_second / a.per_second);
        println!("{:<44} {:>9.2}", "  the second's rate over the first's", median(ratios));
    }
    Ok(())
}

/// A block, and its commits per flush.
fn of_ours(home: &TestHome, ours: &servers::Ours, of: &Alone, settings: &Settings) -> Result<(Block, f64), String> {
    let before = ours.counts(home, of.partitions);
    let b = block(home, &ours.peer, &of.workload, &settings.block, of.flags)?;
    let (commits, batches) = ours.counts(home, of.partitions);
    let per_flush = (commits - before.0) as f64 / ((batches - before.1) as f64).max(1.0);
    Ok((b, per_flush))
}

impl servers::Ours {
    /// Transactions and flushes of logs so far, of these partitions together.
    pub(super) fn counts(&self, home: &TestHome, partitions: &[u8]) -> (u64, u64) {
        let mut admin = home.connect(&self.server, Role::Admin, 1);
        partitions.iter().fold((0, 0), |(commits, batches), partition| {
            admin.select(*partition).expect("it is there");
            let stat = admin.stat().expect("it answers");
            // One that shares its flushes shares them with all others of its core: there is one core here.
            let shared = figure(&stat, "shared_flushes");
            let flushes = if shared > 0 { shared } else { batches + figure(&stat, "batches") };
            (commits + figure(&stat, "commits"), flushes)
        })
    }
}

/// GETs at a fixed rate, alone and beside writers, while checkpoints and compactions go on; latency from the intended start.
pub fn readers_beside_writers(home: &TestHome, settings: &Settings) -> Result<(), String> {
    let mut ours = servers::start_ours(home, &["--checkpoint-wal-bytes", "2MiB"])?;
    let address = &ours.peer.address;
    generate(home, address, &["-c", "16", "--ratio", "1", "-n", "200000"])?;
    println!("16 connections, 10,000 GET/s, alone and beside 8 closed-loop durable writers");
    for _ in 0..settings.rounds.max(2) {
        let read = || {
            let words =
                ["-c", "16", "--ratio", "1", "--rate", "10000", "--duration", &settings.block, "--warmup", "1s"];
            let report = generate(home, address, &words)?;
            Ok::<_, String>((
                report["read_us"]["p99"].as_f64().unwrap_or(f64::NAN),
                report["per_second"].as_f64().unwrap_or(f64::NAN),
            ))
        };
        let (alone, _) = read()?;
        let before = Calm::of(&ours, home);
        // Longer than the readers at both ends, which begin with a second of warm-up.
        let length = format!("{}ms", super::milliseconds(&settings.block)? + 2500);
        let (beside, writes) = std::thread::scope(|scope| {
            let words = ["-c", "8", "--ratio", "0", "--duration", &length];
            let writers = scope.spawn(move || generate(home, address, &words));
            let beside = read();
            (beside, writers.join())
        });
        let (beside, rate) = beside?;
        let writes = writes.map_err(|_| "the writers' generator panicked")??;
        let after = Calm::of(&ours, home);
        println!(
            "GET p99 {alone:.0} us alone, {beside:.0} us beside ({:.2}); {rate:.0} GET/s beside {:.0} SET/s, {} checkpoints, \
             {} compactions; stretches over 5 ms of the core's own time: {}, longest since the start {} us",
            beside / alone,
            writes["per_second"].as_f64().unwrap_or(f64::NAN),
            after.checkpoints - before.checkpoints,
            after.compactions - before.compactions,
            after.long_stretches - before.long_stretches,
            after.longest
        );
    }
    ours.server.stop();
    Ok(())
}

/// What `stat` says of the house-keeping, and of how long it kept others waiting.
struct Calm {
    checkpoints: u64,
    compactions: u64,
    long_stretches: u64,
    longest: u64,
}

impl Calm {
    fn of(ours: &servers::Ours, home: &TestHome) -> Calm {
        let mut admin = home.connect(&ours.server, Role::Admin, 1);
        let stat = admin.stat().expect("it answers");
        Calm {
            checkpoints: figure(&stat, "checkpoints"),
            compactions: figure(&stat, "compactions"),
            long_stretches: figure(&stat, "core_long_stretches"),
            longest: figure(&stat, "core_longest_stretch_us"),
        }
    }
}

/// Processor time per commit on one executor and on two, each with a partition to itself; the generator shares CPU 1. With
/// as many clients in all each executor has half of them, so half as many commits share a flush; with twice as many, each
/// executor has as much to do as the one had.
pub fn one_and_two_executors(home: &TestHome, settings: &Settings) -> Result<(), String> {
    println!("server's processor time per commit, us, on one executor and on two (2 partitions)");
    let used = |executors: &str, connections, depth| {
        let cpus: &[&str] = if executors == "1" { &["taskset", "-c", "0"] } else { &["taskset", "-c", "0,1"] };
        let mut server = home.try_serve_under(cpus, binary("turnstone"), &["--executors", executors])?;
        let peer = Peer { address: format!("localhost:{}", server.port), pid: server.pid(), flags: &[] };
        let workload = Workload { name: "", connections, depth, reads: false };
        block(home, &peer, &workload, "1s", &["--partition", "1-2"])?;
        let cpu = block(home, &peer, &workload, &settings.block, &["--partition", "1-2"])?.cpu;
        server.stop();
        Ok::<_, String>(cpu)
    };
    for depth in [1, 16] {
        let one = used("1", 50, depth)?;
        let (two, twice) = (used("2", 50, depth)?, used("2", 100, depth)?);
        println!(
            "SET depth {depth:<2} {one:>6.2}, of two {two:>6.2} with as many clients in all, {twice:>6.2} with as many each: work \
             per CPU-second on two over one {:.2}, {:.2}",
            one / two,
            one / twice
        );
    }
    Ok(())
}
