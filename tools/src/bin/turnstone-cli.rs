//! `turnstone-cli`: one command, a script from a pipe, or a prompt. Always over mutual TLS.
//!
//! Exit status: 0 done, 1 a command failed, 2 wrong usage, 5 no connection. A key that does not exist is no failure.

use std::ffi::OsString;
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use turnstone_net::client::{Address, ClientSettings, Connection};
use turnstone_net::tls::{ClientOffer, Role};
use turnstone_net::wire::{Dialect, partition_from_decimal};
use turnstone_tools::cli::run::{Ask, Connect};
use turnstone_tools::cli::{Command, Options, Outcome, Runner, UsageError, history, words};
use turnstone_tools::dashes;
use turnstone_tools::home::Home;
use turnstone_tools::units::parse_duration;

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const NO_CONNECTION: u8 = 5;

/// The partition of a single command, where none is named: the first that holds data.
const ONE_SHOT_PARTITION: u8 = 1;

#[derive(Parser)]
#[command(
    name = "turnstone-cli",
    version,
    about = "Talk to a TurnstoneDB server",
    after_help = "Examples:\n  turnstone-cli --home tsdata\n  turnstone-cli --home tsdata set mykey 'Hello Turnstone'\n  \
                  turnstone-cli --home tsdata --raw get mykey\n  turnstone-cli --home tsdata < script.txt\n\n\
                  'turnstone-cli help' lists the commands. Options come before the command."
)]
struct Arguments {
    /// The home directory; its certs/ is used to connect [env: TURNSTONE_HOME] [default: .]
    #[arg(long, value_name = "DIR")]
    home: Option<OsString>,
    /// The server's address [env: TURNSTONE_HOST] [default: localhost:6379]
    #[arg(long, value_name = "HOST:PORT")]
    host: Option<String>,
    /// Connect with the admin certificate instead of the client's
    #[arg(long)]
    admin: bool,
    /// Print values alone, bytes as they are
    #[arg(long)]
    raw: bool,
    /// The partition to start on [default: 1 for a single command, otherwise 0 until select]
    #[arg(long, value_name = "N", value_parser = partition)]
    partition: Option<u8>,
    /// How long to wait for the server
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = timeout)]
    timeout: Duration,
    /// Print the positions of commits
    #[arg(long, short)]
    verbose: bool,
    /// Ask for no confirmation
    #[arg(long)]
    yes: bool,
    /// In a script, go on after a command that failed
    #[arg(long)]
    keep_going: bool,
    /// The command; without one, commands are read from standard input
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn partition(text: &str) -> Result<u8, String> {
    partition_from_decimal(text.as_bytes()).ok_or_else(|| "partitions are 0 to 16".to_owned())
}

fn timeout(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    let words = dashes::two_dashes_before_command(std::env::args_os(), &["home", "host", "partition", "timeout"]);
    let arguments = Arguments::parse_from(words);
    let interactive = arguments.command.is_empty() && io::stdin().is_terminal();
    match start(&arguments, interactive) {
        Ok(status) => ExitCode::from(status),
        // Whoever read our output has gone, which is not our failure to report.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("turnstone-cli: {error}");
            ExitCode::from(FAILED)
        }
    }
}

fn start(arguments: &Arguments, interactive: bool) -> io::Result<u8> {
    let home = arguments.home.clone().or_else(|| std::env::var_os("TURNSTONE_HOME")).unwrap_or_else(|| ".".into());
    let home = Home::new(home);
    let host = arguments.host.clone().or_else(|| std::env::var("TURNSTONE_HOST").ok());
    let host = host.unwrap_or_else(|| "localhost:6379".to_owned());
    let address: Address = match host.parse() {
        Ok(address) => address,
        Err(error) => {
            eprintln!("turnstone-cli: --host: {error}");
            return Ok(USAGE);
        }
    };
    let role = if arguments.admin { Role::Admin } else { Role::Client };
    let files = home.tls_files(role);
    let timeout = arguments.timeout;
    let connect: Connect<'_, Connection> = Box::new(move |partition_hint| {
        Connection::connect(&ClientSettings {
            address: host.clone(),
            files: files.clone(),
            offer: ClientOffer { dialect: Dialect::Turnstone2, partition_hint },
            timeout,
        })
    });
    let can_ask = io::stdin().is_terminal() && io::stderr().is_terminal();
    let ask: Ask<'_> = Box::new(move |question| if can_ask { ask_person(question) } else { None });
    let options = Options { raw: arguments.raw, verbose: arguments.verbose, yes: arguments.yes };
    let one_shot = !arguments.command.is_empty();
    let partition = arguments.partition.or(one_shot.then_some(ONE_SHOT_PARTITION));
    let mut runner = Runner::new(connect, ask, options, partition);
    if one_shot {
        let words: Vec<_> = arguments.command.iter().map(|word| word.clone().into_vec()).collect();
        return single(&mut runner, &words);
    }
    if interactive {
        let shown = Address { host: address.client_host().to_owned(), port: address.port };
        return prompt(&mut runner, &shown.to_string());
    }
    script(&mut runner, arguments.keep_going)
}

fn ask_person(question: &str) -> Option<String> {
    eprint!("{question}");
    io::stderr().flush().ok()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).ok()?;
    Some(answer)
}

fn status(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Done | Outcome::Quit | Outcome::Clear => 0,
        Outcome::Failed => FAILED,
        Outcome::Lost => NO_CONNECTION,
    }
}

/// One command from the arguments. What it prints when the connection fails goes to standard error: it is no result.
fn single(runner: &mut Runner<'_, Connection>, words: &[Vec<u8>]) -> io::Result<u8> {
    if let Some(flag) = words.first().filter(|word| word.starts_with(b"-")) {
        eprintln!("turnstone-cli: unknown option '{}'; turnstone-cli --help lists them", flag.escape_ascii());
        return Ok(USAGE);
    }
    let command = match Command::parse(words) {
        Ok(Some(command)) => command,
        Ok(None) => return Ok(USAGE),
        Err(error) => {
            eprintln!("turnstone-cli: {error}");
            return Ok(USAGE);
        }
    };
    if command == Command::Begin {
        eprintln!("turnstone-cli: a transaction needs a prompt or a script; a single set commits by itself");
        return Ok(USAGE);
    }
    let mut out = Vec::new();
    let outcome = runner.run(&command, &mut out)?;
    if outcome == Outcome::Lost {
        io::stderr().lock().write_all(&out)?;
    } else {
        let mut stdout = io::stdout().lock();
        stdout.write_all(&out)?;
        stdout.flush()?;
    }
    Ok(status(outcome))
}

fn parse(line: &[u8]) -> Result<Option<Command>, UsageError> {
    if line.trim_ascii_start().starts_with(b"#") {
        return Ok(None);
    }
    let words = words::split(line).map_err(|error| UsageError::new(error.to_string()))?;
    Command::parse(&words)
}

/// Lines from a pipe or a file: no prompt, no banner, and the first failure ends it unless told otherwise.
fn script(runner: &mut Runner<'_, Connection>, keep_going: bool) -> io::Result<u8> {
    let mut input = io::stdin().lock();
    let mut stdout = io::stdout().lock();
    let mut worst = 0;
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let result = match parse(&line) {
            Ok(None) => continue,
            Ok(Some(command)) => {
                let outcome = runner.run(&command, &mut stdout)?;
                stdout.flush()?;
                if outcome == Outcome::Quit {
                    break;
                }
                if outcome == Outcome::Lost {
                    // What follows may belong to the transaction that was rolled back: not even --keep-going goes on.
                    return Ok(if worst == 0 { status(outcome) } else { worst });
                }
                status(outcome)
            }
            Err(error) => {
                eprintln!("turnstone-cli: line {number}: {error}");
                USAGE
            }
        };
        // The first failure decides the exit status.
        if result != 0 {
            worst = if worst == 0 { result } else { worst };
            if !keep_going {
                break;
            }
        }
    }
    if runner.in_transaction() {
        eprintln!("turnstone-cli: the script ended inside a transaction, which is rolled back; end it with commit");
        worst = if worst == 0 { FAILED } else { worst };
    }
    Ok(worst)
}

fn prompt(runner: &mut Runner<'_, Connection>, server: &str) -> io::Result<u8> {
    if let Err(error) = runner.open() {
        eprintln!("turnstone-cli: {error}");
        return Ok(if error.is_fatal() { NO_CONNECTION } else { FAILED });
    }
    let config = rustyline::Config::builder().history_ignore_space(true).build();
    let mut editor = DefaultEditor::with_config(config).map_err(io::Error::other)?;
    let file = history::path(|name| std::env::var(name).ok());
    let file = file.filter(|path| match history::prepare(path).map_err(ReadlineError::Io) {
        Ok(()) => editor.load_history(path).is_ok(),
        Err(error) => {
            eprintln!("no history: {}: {error}", path.display());
            false
        }
    });
    println!("Connected to {server}. 'help' lists the commands.");
    let mut worst = 0;
    loop {
        let transaction = if runner.in_transaction() { "(tx)" } else { "" };
        let line = match editor.readline(&format!("{server}[{}]{transaction}> ", runner.partition())) {
            Ok(line) => line,
            // Ctrl-C gives up the line, not the session.
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(io::Error::other(error)),
        };
        if line.trim().is_empty() {
            continue;
        }
        // History is a convenience: a full disk must not end the session.
        let _ = editor.add_history_entry(&line);
        let mut stdout = io::stdout().lock();
        match parse(line.as_bytes()) {
            Ok(None) => {}
            Err(error) => {
                writeln!(stdout, "ERR: {error}")?;
                worst = FAILED;
            }
            Ok(Some(command)) => match runner.run(&command, &mut stdout)? {
                Outcome::Quit => break,
                Outcome::Clear => write!(stdout, "\x1b[H\x1b[2J\x1b[3J")?,
                Outcome::Done => {}
                failed => worst = status(failed).max(worst),
            },
        }
        stdout.flush()?;
    }
    if let Some(file) = file
        && let Err(error) = editor.save_history(&file)
    {
        eprintln!("history was not saved: {}: {error}", file.display());
    }
    // A person has seen what failed; only a connection that is gone is worth a status of its own.
    Ok(if worst == NO_CONNECTION { NO_CONNECTION } else { 0 })
}
