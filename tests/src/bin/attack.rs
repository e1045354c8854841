//! The attack campaign against the real server: one command, one table, every bound checked.
//!
//! `cargo run --release -p turnstone-tests --bin attack -- [--connections 100000] [--seed 1] [--only SECTION] …`
//!
//! The server runs pinned to CPU 0. The good client runs on CPU 1, and so do the attackers, who let it go first: what it
//! waits for is the server.

use std::process::ExitCode;
use turnstone_tests::attack::options;

fn main() -> ExitCode {
    match options::run(std::env::args().skip(1)) {
        Ok(()) => {
            println!("every bound holds");
            ExitCode::SUCCESS
        }
        Err(text) => {
            eprintln!("attack: {text}");
            ExitCode::FAILURE
        }
    }
}
