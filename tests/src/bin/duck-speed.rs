//! How fast changes get into DuckDB, and what memory a backlog takes: `duck-speed --rows 1000000`, `duck-speed --backlog 5GiB`.

use std::process::ExitCode;
use turnstone_tests::changes::duck_speed;
use turnstone_tools::units::parse_size;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (flag, value) = (arguments.next(), arguments.next());
    let number = value.as_deref().and_then(|text| parse_size(text).ok());
    match (flag.as_deref(), number) {
        (None, _) => measure(1_000_000),
        (Some("--rows"), Some(rows)) => measure(rows),
        (Some("--backlog"), Some(bytes)) => duck_speed::backlog(bytes),
        _ => {
            eprintln!("usage: duck-speed [--rows N | --backlog SIZE]");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn measure(rows: u64) {
    duck_speed::throughput(rows);
    duck_speed::latencies();
}
