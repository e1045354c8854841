//! TurnstoneDB beside Redis on this machine: one command, one table.
//!
//! `cargo run --release -p turnstone-tests --bin side-by-side -- redis [--block 8s] [--rounds 1] [--only NAME]`
//! `cargo run --release -p turnstone-tests --bin side-by-side -- replication [--block 8s] [--rounds 1] [--only NAME]`
//!
//! Both servers run pinned to CPU 0, the generator to CPU 1. For each workload blocks alternate as ours, Redis, Redis,
//! ours, so that a drift of the machine hits both; figures are medians, ratios are medians of the ratios of neighbours.

use std::process::ExitCode;
use turnstone_tests::side_by_side;

fn main() -> ExitCode {
    match side_by_side::run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("side-by-side: {text}");
            ExitCode::FAILURE
        }
    }
}
