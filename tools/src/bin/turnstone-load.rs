//! Realistic records into a server: `turnstone-load --home tsdata --workers 10 --duration 10s`.

use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use turnstone_net::client::ClientSettings;
use turnstone_net::tls::{ClientOffer, Role};
use turnstone_tools::home::Home;
use turnstone_tools::load::{self, Plan};
use turnstone_tools::units::parse_duration;

const TIMEOUT: Duration = Duration::from_secs(60);

/// Devices that report themselves as JSON, in transactions.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Directory with the client's certificate
    #[arg(long, value_name = "DIR", env = "TURNSTONE_HOME", default_value = ".")]
    home: PathBuf,
    /// The server
    #[arg(long, value_name = "HOST:PORT", default_value = "localhost:6379")]
    target: String,
    /// Connections
    #[arg(long, value_name = "N", default_value = "10", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    workers: u32,
    /// How long
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// Partition to write to
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u8).range(1..=16))]
    partition: u8,
    /// Records in a transaction
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch: u32,
    /// How many devices there are
    #[arg(long, value_name = "N", default_value = "1000000", value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// Bytes that are added to each record
    #[arg(long, value_name = "BYTES", default_value = "0")]
    padding: usize,
    /// The same seed makes the same records
    #[arg(long, value_name = "N", default_value = "1")]
    seed: u64,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse_from(turnstone_tools::dashes::two_dashes(std::env::args_os()));
    let Arguments { home, target, workers, duration, partition, batch, keys, padding, seed } = arguments;
    let files = Home::new(&home).tls_files(Role::Client);
    let target = ClientSettings { address: target, files, offer: ClientOffer::TURNSTONE2, timeout: TIMEOUT };
    let plan = Plan { target, workers, duration, partition, batch, keys, padding, seed };
    match load::run(&plan) {
        Ok(summary) => {
            print!("{}", summary.text(&plan));
            if summary.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(why) => {
            eprintln!("turnstone-load: {why}");
            ExitCode::FAILURE
        }
    }
}
