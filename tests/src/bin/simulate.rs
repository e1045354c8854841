//! Simulated clusters for as long as one likes: `cargo run --release --bin simulate -- [--seeds 200] [--from 0] …`; the flags
//! stand at the top of `tests/src/cluster/campaign.rs`.

use std::process::ExitCode;
use turnstone_tests::cluster::campaign::Campaign;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match Campaign::parse(&words).and_then(|campaign| campaign.run()) {
        Ok(_) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("simulate: {text}");
            ExitCode::FAILURE
        }
    }
}
