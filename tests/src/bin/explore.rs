//! Every state of three nodes' leadership within bounds: `cargo run --release --bin explore -- [--entries 5] [--crashes 2]
//! [--orders 3] [--returns 2] [--states 10000000]`.

use std::process::ExitCode;
use std::time::Instant;
use turnstone_replication::quorum::Broken;
use turnstone_tests::explore::{Bounds, explore};

fn main() -> ExitCode {
    let mut bounds = Bounds { entries: 5, crashes: 2, orders: 3, returns: 2, states: 10_000_000 };
    let words: Vec<String> = std::env::args().skip(1).collect();
    for pair in words.chunks(2) {
        let Some(number) = pair.get(1).and_then(|number| number.parse::<usize>().ok()) else {
            eprintln!("explore: '{}' needs a number", pair[0]);
            return ExitCode::FAILURE;
        };
        match pair[0].as_str() {
            "--entries" => bounds.entries = number,
            "--crashes" => bounds.crashes = number.min(255) as u8,
            "--orders" => bounds.orders = number.min(255) as u8,
            "--returns" => bounds.returns = number.min(255) as u8,
            "--states" => bounds.states = number,
            other => {
                eprintln!(
                    "explore: '{other}' is no flag; they are --entries, --crashes, --orders, --returns and --states"
                );
                return ExitCode::FAILURE;
            }
        }
    }
    let began = Instant::now();
    match explore(bounds, Broken::default()) {
        Ok(seen) => {
            println!("{bounds:?}: {seen:?} in {:.0?}", began.elapsed());
            ExitCode::SUCCESS
        }
        Err(what) => {
            eprintln!("explore: {what}");
            ExitCode::FAILURE
        }
    }
}
