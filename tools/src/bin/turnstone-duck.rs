//! Changes into DuckDB: `turnstone-duck -input tsdata/cdc_logs -db analytics.duckdb`.

use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use turnstone_tools::cdc_config;
use turnstone_tools::duck::{self, Options, Source, Ways};
use turnstone_tools::home::Home;
use turnstone_tools::units::parse_duration;

const EXAMPLES: &str = "Examples:
  turnstone-duck -input tsdata/cdc_logs -db analytics.duckdb
  turnstone-duck -input tsdata/cdc_logs -db analytics.duckdb -archive loaded -once
  turnstone-duck -input tsdata/cdc_logs -db analytics.duckdb --read-copy shared.duckdb
  turnstone-duck -input tsdata/cdc_logs -db analytics.duckdb -once --export history
  turnstone-duck --from-server --home tsdata -db analytics.duckdb

Ask with any DuckDB client, or:
  turnstone-duck -db analytics.duckdb --query \"SELECT key, json->>'$.device_type' AS type FROM turnstone_json\"";

/// Loads changes into DuckDB, each exactly once: from change files, or from the server.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// Directory of change files, as turnstone --mode cdc writes them
    #[arg(long, value_name = "DIR", required_unless_present_any = ["query", "from_server", "yardstick"])]
    input: Option<PathBuf>,
    /// Read from the server directly, without files: host, partition, id, value_format, start, on_purged, hold and the
    /// certificate are those of the home's turnstone.cdc.json
    #[arg(long, conflicts_with_all = ["input", "archive"])]
    from_server: bool,
    /// With --from-server: the server knows this consumer as ID.duck. A second database needs another ID [default: that of
    /// turnstone.cdc.json]
    #[arg(long, value_name = "ID", requires = "from_server")]
    id: Option<String>,
    /// With --from-server: the home with turnstone.cdc.json and the consumer's certificate
    #[arg(long, value_name = "DIR", env = "TURNSTONE_HOME", default_value = ".")]
    home: PathBuf,
    /// The database; made if it is not there
    #[arg(long, value_name = "FILE", default_value = "replica.duckdb")]
    db: PathBuf,
    /// Move loaded files there; without it they stay where they are
    #[arg(long, value_name = "DIR")]
    archive: Option<PathBuf>,
    /// Let a new database begin with a file that is neither the first of its sequence nor begins with a copy: it lacks what was
    /// before
    #[arg(long, requires = "input")]
    begin_later: bool,
    /// End when everything that is there is loaded
    #[arg(long)]
    once: bool,
    /// How often to look for new files, or to load what the server has sent
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
    /// Serve /metrics and /health there; without a host on this machine only
    #[arg(long, value_name = "HOST:PORT", default_value = "")]
    metrics: String,
    /// Load nothing: answer this query, a JSON object for each row
    #[arg(long, value_name = "SQL", conflicts_with_all = ["input", "from_server", "archive", "read_copy", "export", "once", "metrics"])]
    query: Option<String>,
    /// The original's: nothing is loaded before it is finished, so no age is waited for
    #[arg(long, value_name = "TIME", hide = true)]
    min_age: Option<String>,
    /// The original's: DuckDB gives space back by itself
    #[arg(long, value_name = "TIME", hide = true)]
    vacuum_interval: Option<String>,
    /// Load nothing: say how many rows per second DuckDB's Appender takes alone, so many rows into a new database
    #[arg(long, value_name = "ROWS", hide = true, conflicts_with_all = ["input", "from_server", "query"])]
    yardstick: Option<u64>,
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
    let Arguments { input, from_server, id, home, db, archive, begin_later, once, poll, .. } = arguments;
    let Arguments { memory, read_copy, read_copy_interval, export, metrics, query, .. } = arguments;
    if arguments.min_age.is_some() {
        eprintln!(
            "-min-age has no effect: files have their names once they are finished, and growing ones are not loaded"
        );
    }
    if arguments.vacuum_interval.is_some() {
        eprintln!("-vacuum-interval has no effect: DuckDB gives space back with its checkpoints");
    }
    if let Some(sql) = query {
        return duck::publish::answer(&db, &sql);
    }
    if let Some(rows) = arguments.yardstick {
        println!("{:.0}", duck::yardstick::appender(&db, rows)?);
        return Ok(());
    }
    let source = if from_server {
        let home = Home::new(home);
        let mut settings = cdc_config::load(&home).map_err(|error| error.to_string())?;
        settings.id = id.unwrap_or(settings.id);
        settings.validate().map_err(|error| format!("--{error}"))?;
        let tls = cdc_config::tls_files(&home, &settings);
        Source::Server(Box::new(settings), tls)
    } else {
        Source::Files(input.unwrap_or_default(), archive)
    };
    let options =
        Options { source, begin_later, db, once, poll, memory, read_copy, read_copy_interval, export, metrics };
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
    duck::run(&options, &Ways { stop: &|| stop.is_asked(), wait: &|time| stop.wait(time) })
}
