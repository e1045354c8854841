//! Simulated clusters (see `turnstone_tests::cluster`), in short; `simulate` runs more of them.
//!
//! `TURNSTONE_TRIES=N` sets how many seeds each planted bug gets, `TURNSTONE_BUG=NAME` takes one of them.

use std::time::Duration;
use turnstone_engine::env::Sabotage;
use turnstone_tests::cluster::campaign::Campaign;
use turnstone_tests::cluster::features::{Feature, Features};
use turnstone_tests::cluster::known::{KNOWN, MENDED};
use turnstone_tests::cluster::{Effort, run_seed};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn no_fault_loses_what_was_acknowledged_or_shows_what_may_vanish() {
    let campaign = Campaign::default();
    let sum = campaign.run().unwrap_or_else(|text| panic!("{text}"));
    let seeds = campaign.seeds;
    assert!(sum.acked > seeds * 50, "hardly anything was committed");
    assert!(sum.promotions >= seeds / 2 && sum.crashes >= seeds * 5, "hardly anything happened");
    assert!(sum.copies * 10 >= seeds && sum.orders >= seeds, "hardly any copy was taken, or order given");
}

/// The list of faults that are not mended yet tells the truth: each seed still shows its fault.
#[test]
fn each_known_fault_still_shows() {
    for known in KNOWN {
        let features = Some(Features::of(known.features));
        let effort = Effort { features, without: Features::NONE, ..Effort::default() };
        let outcome = std::panic::catch_unwind(|| run_seed(known.seed, effort, None));
        let what = match outcome {
            Ok(Ok(_)) => panic!("{}: seed {} shows nothing any more: delete its line", known.fault, known.seed),
            Ok(Err(what)) => what,
            Err(_) => "an assertion of the engine's".to_string(),
        };
        assert!(what.contains(known.says), "{}: seed {} shows something else: {what}", known.fault, known.seed);
        println!("{}: shown by seed {}: {what}", known.fault, known.seed);
    }
}

/// What a seed showed before its fault was mended it does not show any more.
#[test]
fn each_mended_fault_stays_away() {
    for mended in MENDED {
        let features = Some(Features::of(mended.features));
        let effort = Effort { features, without: Features::NONE, ..Effort::default() };
        if let Err(what) = run_seed(mended.seed, effort, None) {
            panic!("{}: seed {}: {what}", mended.fault, mended.seed);
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let effort = Effort { faults: Duration::from_secs(5), ..Effort::default() };
    for seed in (7000..7004).chain(100..112) {
        let trace = || run_seed(seed, effort, None).map(|(_, trace)| trace);
        assert_eq!(trace(), trace(), "seed {seed}");
    }
}

/// What a run has to try or check to find a bug.
fn features_for(bug: Sabotage) -> Features {
    match bug {
        Sabotage::RaisedAlone => Features::of(&[Feature::ZeroReplicas]),
        // Only who follows one that lags finds a shorter log that is nobody's best.
        Sabotage::AheadIsCut => Features::of(&[Feature::Lag]),
        Sabotage::OrderNotKept => Features::of(&[Feature::Orders, Feature::OrdersStand]),
        Sabotage::CircleNotLookedFor => Features::of(&[Feature::Orders, Feature::Circles]),
        Sabotage::ForgottenNotKept => Features::of(&[Feature::Forget]),
        Sabotage::NewcomerLeads => Features::of(&[Feature::Join]),
        // Who is told at once catches up within milliseconds.
        Sabotage::LearnerVotes | Sabotage::PutBackNotNoticed => Features::of(&[Feature::PutBack, Feature::SlowLinks]),
        Sabotage::RestartTellsLess => Features::of(&[Feature::MonotonicReads]),
        _ => Features::NONE,
    }
}

/// The test above, unchanged, on code with one rule broken.
#[test]
fn every_planted_bug_among_nodes_is_found() {
    let tries = number("TURNSTONE_TRIES").unwrap_or(3000);
    let mut missed = Vec::new();
    let only = std::env::var("TURNSTONE_BUG").ok();
    let seldom = Sabotage::SELDOM_SEEN.into_iter().filter(|_| only.is_some());
    let asked = |bug: &Sabotage| only.as_ref().is_none_or(|only| *only == format!("{bug:?}"));
    let all = Sabotage::BEYOND_PLAIN.into_iter().chain(Sabotage::AMONG_NODES).chain(seldom);
    for bug in all.filter(asked) {
        let features = features_for(bug);
        // A copy that is refused needs its time to be tried again.
        let faults = Duration::from_secs(if features == Features::NONE { 30 } else { 60 });
        let effort = Effort { faults, features: Some(features), without: Features::NONE, ..Effort::default() };
        let effort = |seed| Effort { quarrels: if seed % 2 == 0 { 0 } else { 100 }, ..effort };
        let found = (0..tries).find_map(|seed| {
            let effort = effort(seed);
            let outcome = std::panic::catch_unwind(|| run_seed(seed, effort, Some(bug)));
            match outcome {
                Ok(Ok(_)) => None,
                Ok(Err(what)) => Some((seed, what)),
                Err(_) => Some((seed, "an assertion of the engine's".to_string())),
            }
        });
        match found {
            Some((seed, what)) => {
                println!("{bug:?}: found by seed {seed}: {what}");
                // It is the bug's doing.
                run_seed(seed, effort(seed), None).expect("the code as it is passes the same seed");
            }
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found in {tries} seeds: {missed:?}");
}
