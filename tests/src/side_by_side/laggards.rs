//! Followers that do not keep up, and what the leader's clients and its memory see of that: one that is stopped, one behind a
//! narrow way, and one that needs a copy of everything.

use super::replicated::{Pair, version};
use super::{Settings, generate, median};
use crate::proxy::Proxy;
use crate::real::figure;
use std::time::{Duration, Instant};

/// Of the narrow way, bytes per second.
const NARROW: u64 = 1_000_000;
/// Log is made faster than that: so many commits of so many bytes each second.
const LOAD: [&str; 8] = ["-c", "16", "--ratio", "0", "--rate", "5000", "-v", "1000"];
/// A copy is made of values of this size.
const COPIED_VALUE: usize = 256 << 10;
/// A block with a follower that keeps up, before one with a follower that does not.
const BEFORE: &str = "30s";
const PATIENCE: Duration = Duration::from_secs(600);

/// A follower that is stopped.
pub fn stopped(pair: &Pair, settings: &Settings) -> Result<(), String> {
    pair.catch_up()?;
    let named = format!("stopped for {}", settings.block);
    compare(
        pair,
        settings,
        &named,
        || {
            pair.follower.pause();
            Ok(())
        },
        || {
            pair.follower.go_on();
            Ok(())
        },
    )
}

/// A follower that gets a megabyte per second.
pub fn slow(pair: &Pair, settings: &Settings) -> Result<(), String> {
    pair.catch_up()?;
    let proxy = Proxy::narrow(pair.leader.server.port, NARROW);
    let named = format!("{} at {NARROW} B/s", settings.block);
    compare(
        pair,
        settings,
        &named,
        || pair.order(1, &format!("replicaof localhost:{} 1", proxy.port)).map(|_| ()),
        || pair.follow(),
    )
}

/// Blocks of load with a follower that keeps up, and with one that `hinder` keeps from it, until `let_go`.
fn compare(
    pair: &Pair,
    settings: &Settings,
    named: &str,
    hinder: impl Fn() -> Result<(), String>,
    let_go: impl Fn() -> Result<(), String>,
) -> Result<(), String> {
    let (mut before, mut during, mut grown) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..settings.rounds {
        before.push(p99(pair, BEFORE)?);
        let resident = pair.leader_resident();
        hinder()?;
        during.push(p99(pair, &settings.block)?);
        grown.push((pair.leader_resident() as f64 - resident as f64) / 1024.0);
        let written = version(&mut pair.at_leader());
        let_go()?;
        let free = Instant::now();
        // One that was stopped answers only now; it has made up for some by then.
        let behind = written - version(&mut pair.at_follower()).min(written);
        pair.catch_up()?;
        println!(
            "{named}: at least {behind} commits behind, caught up {:.2} s after it could",
            free.elapsed().as_secs_f64()
        );
    }
    let (before, during) = (median(before.into_iter()), median(during.into_iter()));
    println!(
        "5,000 SET/s of 1,000 B: p99 {before:.0} us beside a follower, {during:.0} us beside one {named}, ratio {:.2}; memory of the \
         leader {:+.0} MiB meanwhile",
        during / before,
        median(grown.into_iter())
    );
    Ok(())
}

fn p99(pair: &Pair, length: &str) -> Result<f64, String> {
    let words = [&LOAD[..], &["--warmup", "500ms", "--duration", length]].concat();
    let report = generate(&pair.homes[0], &pair.leader.peer.address, &words)?;
    Ok(report["write_us"]["p99"].as_f64().unwrap_or(f64::NAN))
}

/// A follower that has nothing, of a leader that has no log from its beginning: a copy, and commits beside it.
pub fn copied(settings: &Settings) -> Result<(), String> {
    let flags = ["--wal-max-size", "1MiB", "--wal-retention-bytes", "64MiB", "--checkpoint-interval", "1s"];
    let pair = Pair::start(settings, &flags)?;
    let mut leader = pair.at_leader();
    let started = Instant::now();
    let count = settings.copied / COPIED_VALUE as u64;
    pair.fill("copied", count, COPIED_VALUE, 8)?;
    println!("{count} values of {COPIED_VALUE} B written in {:.1} s", started.elapsed().as_secs_f64());
    let block = settings.block.as_str();
    // The beginning of the log goes.
    while figure(&leader.stat().map_err(|e| e.to_string())?, "wal_oldest_version") <= 1 {
        p99(&pair, block)?;
    }
    let mut alone = Vec::new();
    for _ in 0..settings.rounds.max(3) {
        alone.push(p99(&pair, block)?);
    }
    let resident = pair.leader_resident();
    let started = Instant::now();
    pair.follow()?;
    let (mut beside, mut most) = (Vec::new(), resident);
    let copying = || pair.at_follower().stat().is_ok_and(|stat| stat.contains("copying, "));
    while beside.is_empty() || copying() {
        beside.push(p99(&pair, block)?);
        most = most.max(pair.leader_resident());
        if started.elapsed() > PATIENCE {
            return Err(format!("no copy within {PATIENCE:?}: {}", pair.at_follower().stat().unwrap_or_default()));
        }
    }
    let took = started.elapsed();
    pair.catch_up()?;
    let digests = (pair.order(0, "digest")?, pair.order(1, "digest")?);
    if digests.0 != digests.1 {
        return Err(format!("leader and follower differ: {digests:?}"));
    }
    let worst = beside.iter().copied().fold(0.0, f64::max);
    let (alone, beside, blocks) = (median(alone.into_iter()), median(beside.iter().copied()), beside.len());
    println!(
        "a copy of {} MiB in {:.0} s; 5,000 SET/s of 1,000 B: p99 {alone:.0} us alone, {beside:.0} us beside it (median of \
         {blocks} blocks, the worst {worst:.0} us), ratio {:.2}; memory of the leader {:+} MiB at most; the digests are equal",
        settings.copied >> 20,
        took.as_secs_f64(),
        beside / alone,
        (most as i64 - resident as i64) / 1024
    );
    Ok(())
}
