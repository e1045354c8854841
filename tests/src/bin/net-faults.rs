//! Three real nodes under load while networks and processes fail: `cargo run --release -p turnstone-tests --bin net-faults --
//! [--rounds 200] [--seed 1]`.
//!
//! It makes its own network namespaces, and needs `ip`, `nft` and `unshare`; `docs/testing.md` says more.

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    turnstone_tests::net_faults::run(&words).unwrap_or_else(|text| {
        eprintln!("net-faults: {text}");
        ExitCode::FAILURE
    })
}
