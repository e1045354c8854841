//! The attack campaign in short: every case of certificates and bad bytes, a few thousand bad connections, every limit.
//! Bounds of latency belong to the program `attack`, which has the machine to itself.

use std::time::Duration;
use turnstone_tests::attack::campaign::{self, Scale};
use turnstone_tests::attack::{capacity, floods};

fn passes(result: Result<(), String>) {
    if let Err(missed) = result {
        panic!("{missed}");
    }
}

#[test]
fn bad_connections_are_refused_in_time_with_a_reason_and_leave_nothing_behind() {
    passes(campaign::run(&Scale {
        connections: 2000,
        per_second: 400.0,
        workers: 100,
        seed: 1,
        stretches: 1,
        alone: Duration::from_secs(1),
        pinned: false,
    }));
}

#[test]
fn limits_that_are_reached_keep_nobody_out_who_is_in_or_comes_later() {
    passes(floods::run());
}

#[test]
fn idle_connections_are_small() {
    passes(capacity::idle(500));
}
