//! How fast changes get into files: `cdc-speed --rows 1000000`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let rows = match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => Some(1_000_000),
        (Some("--rows"), Some(text)) => text.parse().ok(),
        _ => None,
    };
    let Some(rows) = rows else {
        eprintln!("usage: cdc-speed [--rows N]");
        return ExitCode::from(2);
    };
    turnstone_tests::changes::speed::measure(rows);
    ExitCode::SUCCESS
}
