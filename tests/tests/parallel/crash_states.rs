//! Crash states (see `turnstone_tests::crash`): every step of every workload is a place where the power may go.
//!
//! `TURNSTONE_SEEDS=N` sets how many seeds run, `TURNSTONE_SEED_FROM=S` where they begin, `TURNSTONE_SEED=S` runs one, for
//! a pasted failure.

use std::cell::RefCell;
use std::rc::Rc;
use turnstone_engine::env::Sabotage;
use turnstone_tests::crash::{Effort, Tally, neighbours, run_seed};

/// Every kind of step that a workload makes.
const KINDS: [&str; 36] = [
    "index create",
    "index ingest begun",
    "index ingest done",
    "index remove",
    "log flush",
    "log write",
    "manifest allocate",
    "manifest create",
    "manifest flush",
    "manifest remove",
    "manifest rename",
    "manifest write",
    "names sync",
    "newest segment flush",
    "newest segment write",
    "replayed log flush",
    "run create",
    "run flush",
    "run remove",
    "run write",
    "segment activate",
    "segment header flush",
    "segment header write",
    "segment recycle",
    "segment remove",
    "spare allocate",
    "spare create",
    "spare flush",
    "spare remove",
    "spare write",
    "value allocate",
    "value file create",
    "value file remove",
    "value file truncate",
    "value flush",
    "value write",
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn no_crash_loses_what_was_told_or_shows_half_a_transaction() {
    let tally = Rc::new(RefCell::new(Tally::default()));
    if let Some(seed) = number("TURNSTONE_SEED") {
        run_seed(seed, Effort::default(), None, &tally).unwrap();
        return;
    }
    let seeds = number("TURNSTONE_SEEDS").unwrap_or(400);
    let from = number("TURNSTONE_SEED_FROM").unwrap_or(0);
    for seed in from..from + seeds {
        if let Err(what) = run_seed(seed, Effort::default(), None, &tally) {
            panic!("{what}; repeat with TURNSTONE_SEED={seed}");
        }
    }
    let tally = tally.borrow();
    println!("seeds: {seeds}, recoveries: {}, distinct images: {}", tally.recoveries, tally.images.len());
    println!("with rot: {} ({} refused by name), index rebuilt: {}", tally.rotten.0, tally.rotten.1, tally.rebuilt);
    println!("without all of the log's files: {} ({} refused by name)", tally.lacking.0, tally.lacking.1);
    let (committed, conflicts, no_space) = tally.transactions;
    println!("transactions: {committed} committed, {conflicts} conflicts, {no_space} refused for space");
    for (kind, count) in &tally.cuts {
        println!("cut at {kind}: {count}");
    }
    if seeds >= 200 {
        assert!(tally.images.len() >= 100_000, "only {} distinct images", tally.images.len());
        // Every kind that there is: one that no longer occurs would go unnoticed otherwise.
        for kind in KINDS {
            let count = tally.cuts.get(kind).copied().unwrap_or(0);
            assert!(count >= 1000, "{kind} was cut only {count} times");
        }
        let known = |kind: &&str| KINDS.contains(kind);
        assert!(tally.cuts.keys().all(known), "kinds of steps that the list lacks: {:?}", tally.cuts.keys());
        assert!(
            tally.rebuilt >= 1000 && tally.rotten.1 >= 1000,
            "{} rebuilt, {:?} rotten",
            tally.rebuilt,
            tally.rotten
        );
        assert!(tally.lacking.1 >= 1000, "{:?} without all of the log's files", tally.lacking);
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let run = |seed| run_seed(seed, Effort::default(), None, &Rc::default()).unwrap();
    for seed in 5000..5010 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
    assert_ne!(run(5000), run(5001));
}

#[test]
fn logs_that_share_a_flush_lose_nothing() {
    let tally = Rc::new(RefCell::new(Tally::default()));
    let seeds = number("TURNSTONE_SEEDS").map_or(60, |seeds| seeds / 4);
    let (mut flushes, mut writes) = (0, 0);
    for seed in 0..seeds {
        match neighbours::run_seed(seed, None, &tally) {
            Ok((f, w)) => (flushes, writes) = (flushes + f, writes + w),
            Err(what) => panic!("seed {seed}: {what}"),
        }
    }
    let tally = tally.borrow();
    let shared = tally.cuts.get("shared flush").copied().unwrap_or(0);
    println!("shared: {flushes} flushes for {writes} log writes, {} recoveries", tally.recoveries);
    assert!(shared >= seeds * 10 && writes - flushes > seeds * 3, "hardly any flush was shared: {shared} cuts");
    let found =
        (0..100).find_map(|seed| neighbours::run_seed(seed, Some(Sabotage::FlushJoinedLate), &Rc::default()).err());
    println!("FlushJoinedLate: {}", found.expect("a write that joins a flush under way is lost"));
}

/// The tests above, unchanged, on code with one rule broken.
#[test]
fn every_planted_bug_is_found() {
    let effort = Effort { images_per_rare_step: 2, ..Effort::default() };
    // The same effort on the code as it is finds nothing.
    for seed in 0..60 {
        if let Err(what) = run_seed(seed, effort, None, &Rc::default()) {
            panic!("without a planted bug: {what}");
        }
    }
    // One of them shows where several logs share a flush, and is looked for there.
    for bug in Sabotage::ALL.into_iter().filter(|bug| *bug != Sabotage::FlushJoinedLate) {
        let found = (0..300).find_map(|seed| {
            let outcome = std::panic::catch_unwind(|| run_seed(seed, effort, Some(bug), &Rc::default()));
            match outcome {
                Ok(Ok(_)) => None,
                Ok(Err(what)) => Some((seed, what)),
                Err(_) => Some((seed, "an assertion of the engine's".to_string())),
            }
        });
        match found {
            Some((seed, what)) => println!("{bug:?}: found by seed {seed}: {what}"),
            None => panic!("{bug:?} was not found in 300 seeds"),
        }
    }
}
