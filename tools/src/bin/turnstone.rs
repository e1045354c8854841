//! The server: `turnstone --init --home DIR`, `turnstone --home DIR`, `turnstone demo`.

use clap::{Arg, ArgAction, ArgMatches, Command};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use turnstone_cdc::run::{Context, Severity};
use turnstone_cdc::target::Target;
use turnstone_engine::env::Level;
use turnstone_executor::Log;
use turnstone_executor::log::Format;
use turnstone_tools::cdc_config;
use turnstone_tools::config::{self, Config};
use turnstone_tools::home::Home;
use turnstone_tools::init::{InitOptions, init};
use turnstone_tools::{demo, serve};

/// Wrong usage or settings.
const EXIT_USAGE: u8 = 2;
/// How often a start that takes long looks for signals.
const READY_LOOK: Duration = Duration::from_millis(50);

const EXAMPLES: &str = "Examples:
  turnstone --init --home tsdata                    make certificates and settings
  turnstone --init --home b --ca-from tsdata        a second node under the same CA
  turnstone --home tsdata                           start the server
  turnstone --mode cdc --home tsdata                write its changes to tsdata/cdc_logs
  turnstone demo                                    a temporary server and one transaction

Every key of turnstone.json is also a flag (--wal-max-size 64MB) and a variable (TURNSTONE_WAL_MAX_SIZE).";

fn command() -> Command {
    Command::new("turnstone")
        .version(env!("CARGO_PKG_VERSION"))
        .about("TurnstoneDB: a transactional key-value server")
        .after_help(EXAMPLES)
        .args_conflicts_with_subcommands(true)
        .arg(
            Arg::new("home")
                .long("home")
                .value_name("DIR")
                .env("TURNSTONE_HOME")
                .default_value("tsdata")
                .value_parser(clap::value_parser!(PathBuf))
                .help("Directory of settings, certificates and data"),
        )
        .arg(Arg::new("init").long("init").action(ArgAction::SetTrue).help("Make the home: CA, certificates, settings"))
        .arg(
            Arg::new("host")
                .long("host")
                .value_name("NAME")
                .action(ArgAction::Append)
                .value_delimiter(',')
                .requires("init")
                .help("With --init: names and addresses in the server's certificate beside localhost"),
        )
        .arg(
            Arg::new("ca-from")
                .long("ca-from")
                .value_name("DIR")
                .requires("init")
                .value_parser(clap::value_parser!(PathBuf))
                .help("With --init: use the CA of another home"),
        )
        .arg(
            Arg::new("mode")
                .long("mode")
                .value_name("MODE")
                .default_value("server")
                .value_parser(["server", "cdc"])
                .help("What to run: the server, or a consumer that writes its changes to files"),
        )
        .arg(
            Arg::new("stdout")
                .long("stdout")
                .action(ArgAction::SetTrue)
                .help("With --mode cdc: write the changes to standard output instead"),
        )
        .args(config::flag_args())
        .subcommand(
            Command::new("demo")
                .about("Start a temporary server and show a transaction")
                .arg(Arg::new("once").long("once").action(ArgAction::SetTrue).help("End after the transaction")),
        )
}

/// Many small pieces live long here (keys, values) while buffers come and go: the system's allocator spends about a
/// seventh of the core on that in a load of SETs, this one less (docs/performance.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let matches = command().get_matches_from(turnstone_tools::dashes::two_dashes(std::env::args_os()));
    let outcome = match matches.subcommand() {
        Some(("demo", arguments)) => run_demo(arguments.get_flag("once")),
        _ => run(&matches),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, text)) => {
            eprintln!("turnstone: {text}");
            ExitCode::from(code)
        }
    }
}

type Outcome = Result<(), (u8, String)>;

fn run(matches: &ArgMatches) -> Outcome {
    let home = Home::new(matches.get_one::<PathBuf>("home").cloned().unwrap_or_default());
    if matches.get_flag("init") {
        if let Some((key, _)) = config::flags_from(matches).first() {
            let text = format!("--init writes no settings: start without --init to use {key}, or edit turnstone.json");
            return Err((EXIT_USAGE, text));
        }
        let options = InitOptions {
            hosts: matches.get_many::<String>("host").map(|hosts| hosts.cloned().collect()).unwrap_or_default(),
            ca_from: matches.get_one::<PathBuf>("ca-from").cloned(),
        };
        let report = init(&home, &options).map_err(|e| (1, e.to_string()))?;
        print!("{report}");
        return Ok(());
    }
    if matches.get_one::<String>("mode").is_some_and(|mode| mode == "cdc") {
        if let Some((key, _)) = config::flags_from(matches).first() {
            let text = format!("{key} is a setting of the server; those of --mode cdc are in turnstone.cdc.json");
            return Err((EXIT_USAGE, text));
        }
        let settings = cdc_config::load(&home).map_err(|e| (EXIT_USAGE, e.to_string()))?;
        return consume_until_signal(&home, settings, matches.get_flag("stdout")).map_err(|e| (1, e));
    }
    if matches.get_flag("stdout") {
        return Err((EXIT_USAGE, "--stdout goes with --mode cdc".to_string()));
    }
    let flags = config::flags_from(matches);
    let config = Config::load(&home, &flags, std::env::vars()).map_err(|e| (EXIT_USAGE, e.to_string()))?;
    serve_until_signal(&home, &config).map_err(|e| (1, e))
}

fn serve_until_signal(home: &Home, config: &Config) -> Result<(), String> {
    let _lock = serve::lock(home)?;
    let log = serve::start_log(config)?;
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(|e| format!("signals cannot be caught: {e}"))?;
    for key in config.not_in_force() {
        log.line(Level::Warn, &format!("{key} is set, and checked, but not in force in this version"));
    }
    if config.truncate_corrupt_wal {
        log.line(Level::Warn, "truncate_corrupt_wal is on: a damaged log is cut instead of refused; turn it off again");
    }
    let server = serve::start(home, config, log.clone(), None, None)?;
    let ready = loop {
        if let Some(ready) = server.ready_within(READY_LOOK)? {
            break ready;
        }
        if signals.pending().any(|signal| signal != SIGHUP) {
            // Nothing was promised to anybody since the start, and a start may be cut off at any point.
            log.line(Level::Info, "stopped before it was ready");
            log.flush();
            std::process::exit(0);
        }
    };
    let offline: Vec<String> = ready.offline.iter().map(|(p, _)| p.to_string()).collect();
    let but = if offline.is_empty() { String::new() } else { format!(" (offline: {})", offline.join(", ")) };
    log.line(
        Level::Info,
        &format!(
            "ready in {:.3} s: {} partitions{but}, {} keys checkpointed, listening on {}",
            ready.took.as_secs_f64(),
            ready.open,
            ready.keys,
            server.address()
        ),
    );
    for signal in signals.forever() {
        if signal != SIGHUP {
            break;
        }
        match server.reload_certificates() {
            Ok(changes) if changes.is_empty() => {
                log.line(Level::Info, "certificates were read again, and none has changed")
            }
            Ok(changes) => {
                log.line(Level::Info, "certificates were read anew; new connections are greeted with them");
                changes.iter().for_each(|change| log.line(Level::Info, change));
            }
            Err(error) => log.line(Level::Error, &format!("the certificates stay as they were: {error}")),
        }
    }
    log.line(Level::Info, "stopping: no new connections, finishing what is in flight; once more to stop at once");
    server.shut_down();
    end_at_next_signal(signals);
    server.join()?;
    log.line(Level::Info, "stopped");
    log.flush();
    Ok(())
}

fn consume_until_signal(home: &Home, mut settings: turnstone_cdc::Settings, stdout: bool) -> Result<(), String> {
    let tls = cdc_config::tls_files(home, &settings);
    settings.output_dir = home.resolve(&settings.output_dir);
    settings.state_file = home.resolve(&settings.state_file);
    let log = Log::start(Format::Text, Level::Info).map_err(|e| format!("the log cannot be started: {e}"))?;
    let lines = log.clone();
    let line = move |severity, text: &str| {
        let level = match severity {
            Severity::Error => Level::Error,
            Severity::Warn => Level::Warn,
            Severity::Info => Level::Info,
        };
        lines.line(level, text);
    };
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(|e| format!("signals cannot be caught: {e}"))?;
    let target = if stdout { Target::Stdout } else { Target::Files(settings.output_dir.clone()) };
    let context = Arc::new(Context::new(settings, tls, target, Box::new(line)));
    let stopper = context.clone();
    std::thread::spawn(move || {
        signals.forever().next();
        (stopper.log)(Severity::Info, "stopping: publishing what is here; once more to stop at once");
        stopper.stop();
        end_at_next_signal(signals);
    });
    let ended = turnstone_cdc::run::run(&context);
    (context.log)(Severity::Info, "stopped");
    log.flush();
    ended
}

fn wait_for_signal(signals: &mut Signals) {
    signals.forever().next();
}

/// A second signal ends the process at once; what was acknowledged is on disk.
fn end_at_next_signal(mut signals: Signals) {
    std::thread::spawn(move || {
        if signals.forever().any(|signal| signal != SIGHUP) {
            std::process::exit(1);
        }
    });
}

fn run_demo(once: bool) -> Outcome {
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(|e| (1, format!("signals cannot be caught: {e}")))?;
    let demo = demo::start(&mut std::io::stdout()).map_err(|e| (1, e))?;
    if !once {
        println!("{}", demo.hint());
        wait_for_signal(&mut signals);
    }
    demo.end().map_err(|e| (1, e))
}
