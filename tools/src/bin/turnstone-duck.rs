//! Change files into DuckDB: `turnstone-duck -input tsdata/cdc_logs -db analytics.duckdb`.

use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use turnstone_tools::duck::{self, Options};
use turnstone_tools::units::parse_duration;

const EXAMPLES: &str = "Examples:
  turnstone-duck -input tsdata/cdc_logs -db analytics.duckdb
  turnstone-duck -input tsdata/cdc_logs -db analytics.duckdb -archive loaded -once
  turnstone-duck -input tsdata/cdc_logs -db analytics.duckdb --read-copy shared.duckdb
  turnstone-duck -input tsdata/cdc_logs -db analytics.duckdb -once --export history

Ask with any DuckDB client, or:
  turnstone-duck -db analytics.duckdb --query \"SELECT key, json->>'$.device_type' AS type FROM turnstone_json\"";

/// Loads change files into DuckDB, each change exactly once.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// Directory of change files, as turnstone --mode cdc writes them
    #[arg(long, value_name = "DIR", required_unless_present = "query")]
    input: Option<PathBuf>,
    /// The database; made if it is not there
    #[arg(long, value_name = "FILE", default_value = "replica.duckdb")]
    db: PathBuf,
    /// Move loaded files there; without it they stay where they are
    #[arg(long, value_name = "DIR")]
    archive: Option<PathBuf>,
    /// End when everything that is there is loaded
    #[arg(long)]
    once: bool,
    /// How often to look for new files
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    poll: Duration,
    /// What DuckDB may take of memory
    #[arg(long, value_name = "SIZE", default_value = "1GB")]
    memory: String,
    /// Publish a copy of the database there, which others can open while this one is loaded
    #[arg(long, value_name = "FILE")]
    read_copy: Option<PathBuf>,
    /// How often at most
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    read_copy_interval: Duration,
    /// At the end, write the history there as Parquet, by partition and date
    #[arg(long, value_name = "DIR")]
    export: Option<PathBuf>,
    /// Load nothing: answer this query, a JSON object for each row
    #[arg(long, value_name = "SQL", conflicts_with_all = ["input", "archive", "read_copy", "export", "once"])]
    query: Option<String>,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

/// Whether to end, and a way to wait for it.
#[derive(Default)]
struct Stop {
    asked: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    fn is_asked(&self) -> bool {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    fn wait(&self, time: Duration) {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        // Whichever it was, the caller looks.
        let _ = self.changed.wait_timeout_while(asked, time, |asked| !*asked);
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse_from(turnstone_tools::dashes::two_dashes(std::env::args_os()));
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("turnstone-duck: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), String> {
    let Arguments { input, db, archive, once, poll, memory, read_copy, read_copy_interval, export, query } = arguments;
    let (input, sql) = (input.unwrap_or_default(), query.unwrap_or_default());
    if !sql.is_empty() {
        return duck::publish::answer(&db, &sql);
    }
    let options = Options { input, db, archive, once, poll, memory, read_copy, read_copy_interval, export };
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(|error| format!("signals cannot be caught: {error}"))?;
    let stop = Arc::new(Stop::default());
    let stopper = stop.clone();
    std::thread::spawn(move || {
        signals.forever().next();
        stopper.ask();
        // Once more ends it at once: what is committed is whole.
        if signals.forever().next().is_some() {
            std::process::exit(1);
        }
    });
    duck::run(&options, &|| stop.is_asked(), &|time| stop.wait(time))
}
