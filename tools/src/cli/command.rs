//! The grammar: words become a command or an error that says how it is used.

use std::fmt;

use turnstone_net::client::Address;
use turnstone_net::wire::{MAX_PARTITION, partition_from_decimal};

use super::help::{self, COMMANDS};
use crate::nearest::nearest;
use crate::units::parse_size;

/// Bytes of log that a hold may pin when no limit is given (1 GiB).
pub const DEFAULT_HOLD_LIMIT: u64 = 1 << 30;

/// A command that can be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `ping`
    Ping,
    /// `select PARTITION`
    Select(u8),
    /// `get KEY`
    Get(Vec<u8>),
    /// `set KEY VALUE`
    Set(Vec<u8>, Vec<u8>),
    /// `del KEY`
    Del(Vec<u8>),
    /// `mget KEY…`
    MGet(Vec<Vec<u8>>),
    /// `mset KEY VALUE…`
    MSet(Vec<(Vec<u8>, Vec<u8>)>),
    /// `mdel KEY…`
    MDel(Vec<Vec<u8>>),
    /// `begin`
    Begin,
    /// `commit`
    Commit,
    /// `abort`
    Abort,
    /// `stat`
    Stat,
    /// `checkpoint`
    Checkpoint,
    /// `flushdb [--yes]`
    FlushDb {
        /// Whether it was confirmed on the line.
        yes: bool,
    },
    /// `stepdown`
    StepDown,
    /// `replicaof HOST:PORT PARTITION`, or `replicaof no one` for `None`.
    ReplicaOf(Option<(String, u8)>),
    /// Other orders about replication, as they are sent.
    Order(String),
    /// `wait POSITION [SECONDS]`
    Wait {
        /// Epoch; 0 for any.
        epoch: u64,
        /// Version.
        version: u64,
        /// How long at most.
        milliseconds: u32,
    },
    /// `hold NAME [LIMIT]`
    Hold(Vec<u8>, u64),
    /// `release NAME`
    Release(Vec<u8>),
    /// `log VERSION`
    Log(u64),
    /// `help [COMMAND]`
    Help(Option<&'static help::Entry>),
    /// `clear`
    Clear,
    /// `quit`
    Quit,
}

/// Entries are compared by name; it is unique.
impl PartialEq for help::Entry {
    fn eq(&self, other: &help::Entry) -> bool {
        self.name == other.name
    }
}

impl Eq for help::Entry {}

/// A line that is no command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageError {
    text: String,
}

impl UsageError {
    /// An error with this text.
    pub fn new(text: impl Into<String>) -> UsageError {
        UsageError { text: text.into() }
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for UsageError {}

impl Command {
    /// Reads a command from its words; `None` if there are none. Names may be in upper or lower case.
    pub fn parse(words: &[Vec<u8>]) -> Result<Option<Command>, UsageError> {
        let Some((name, arguments)) = words.split_first() else {
            return Ok(None);
        };
        let typed = String::from_utf8_lossy(name);
        let lower = typed.to_ascii_lowercase();
        let name = if lower == "exit" { "quit" } else { lower.as_str() };
        let entry = help::find(name).ok_or_else(|| unknown(&typed))?;
        let usage = || UsageError::new(format!("usage: {}", entry.usage()));
        let command = match (name, arguments) {
            ("ping", []) => Command::Ping,
            ("select", [partition]) => Command::Select(number_of_partition(partition)?),
            ("get", [key]) => Command::Get(key.clone()),
            ("set", [key, value]) => Command::Set(key.clone(), value.clone()),
            ("set", [_, _, _, ..]) => {
                return Err(UsageError::new("usage: set KEY VALUE; a value with blanks needs quotes: set k \"a b\""));
            }
            ("del", [key]) => Command::Del(key.clone()),
            ("mget", [_, ..]) => Command::MGet(arguments.to_vec()),
            ("mdel", [_, ..]) => Command::MDel(arguments.to_vec()),
            ("mset", [_, ..]) => {
                let (pairs, rest) = arguments.as_chunks::<2>();
                if !rest.is_empty() {
                    return Err(UsageError::new("usage: mset KEY VALUE…; the last key has no value"));
                }
                Command::MSet(pairs.iter().map(|[key, value]| (key.clone(), value.clone())).collect())
            }
            ("begin", []) => Command::Begin,
            ("commit", []) => Command::Commit,
            ("abort", []) => Command::Abort,
            ("stat", []) => Command::Stat,
            ("checkpoint", []) => Command::Checkpoint,
            ("flushdb", []) => Command::FlushDb { yes: false },
            ("flushdb", [yes]) if yes == b"--yes" => Command::FlushDb { yes: true },
            ("promote" | "min_replicas" | "replicas" | "role" | "digest", arguments) => order(name, arguments)?,
            ("replicaof", [_, _, force]) if force.eq_ignore_ascii_case(b"force") => order(name, arguments)?,
            ("wait", [position]) => wait(position, b"5")?,
            ("wait", [position, seconds]) => wait(position, seconds)?,
            ("stepdown", []) => Command::StepDown,
            ("replicaof", [no, one]) if no.eq_ignore_ascii_case(b"no") && one.eq_ignore_ascii_case(b"one") => {
                Command::ReplicaOf(None)
            }
            ("replicaof", [address, partition]) => {
                let address = String::from_utf8_lossy(address).into_owned();
                address.parse::<Address>().map_err(|error| UsageError::new(format!("replicaof: {error}")))?;
                Command::ReplicaOf(Some((address, number_of_partition(partition)?)))
            }
            ("hold", [name]) => Command::Hold(name_of_hold(name)?, DEFAULT_HOLD_LIMIT),
            ("hold", [name, limit]) => {
                let limit = parse_size(&String::from_utf8_lossy(limit))
                    .map_err(|error| UsageError::new(format!("hold: {error}")))?;
                Command::Hold(name_of_hold(name)?, limit)
            }
            ("release", [name]) => Command::Release(name_of_hold(name)?),
            ("log", [version]) => Command::Log(number(version, "log", "a version")?),
            ("help", []) => Command::Help(None),
            ("help", [name]) => {
                let typed = String::from_utf8_lossy(name);
                let lower = typed.to_ascii_lowercase();
                let found = help::find(if lower == "exit" { "quit" } else { &lower });
                Command::Help(Some(found.ok_or_else(|| unknown(&typed))?))
            }
            ("clear", []) => Command::Clear,
            ("quit", []) => Command::Quit,
            _ => return Err(usage()),
        };
        Ok(Some(command))
    }
}

/// The server reads these words; what is wrong with them is said here all the same.
fn order(name: &str, arguments: &[Vec<u8>]) -> Result<Command, UsageError> {
    let mut words = vec![name.to_owned()];
    words.extend(arguments.iter().map(|word| String::from_utf8_lossy(word).to_ascii_lowercase()));
    if words.iter().any(|word| word.is_empty() || word.contains(char::is_whitespace)) {
        // Joined it would be another order.
        return Err(UsageError::new(format!("{name}: an empty word, or one with a space, means nothing here")));
    }
    let text = words.join(" ");
    match turnstone_net::server::orders::parse(text.as_bytes()) {
        Ok(_) => Ok(Command::Order(text)),
        Err(_) if help::find(name).is_some_and(|entry| entry.arguments.is_empty()) => {
            Err(UsageError::new(format!("usage: {name}")))
        }
        Err(why) => Err(UsageError::new(format!("{name}: {why}"))),
    }
}

/// `PARTITION:EPOCH:VERSION`, as commits print it, or a version alone.
fn wait(position: &[u8], seconds: &[u8]) -> Result<Command, UsageError> {
    let text = String::from_utf8_lossy(position);
    let bad =
        || UsageError::new(format!("wait: '{}' is no position; it is PARTITION:EPOCH:VERSION", text.escape_debug()));
    let parts: Vec<&str> = text.split(':').collect();
    let part =
        |text: &str| text.parse::<u64>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit())).ok_or_else(bad);
    let (epoch, version) = match parts[..] {
        [version] => (0, part(version)?),
        [_, epoch, version] => (part(epoch)?, part(version)?),
        _ => return Err(bad()),
    };
    let seconds: u32 = number(seconds, "wait", "a number of seconds")?;
    Ok(Command::Wait { epoch, version, milliseconds: seconds.saturating_mul(1000) })
}

fn unknown(typed: &str) -> UsageError {
    let shown = typed.escape_debug();
    UsageError::new(match nearest(typed, COMMANDS.iter().map(|entry| entry.name)) {
        Some(right) => format!("unknown command '{shown}'; did you mean '{right}'?"),
        None => format!("unknown command '{shown}'; 'help' lists all"),
    })
}

/// Digits and nothing else: a mistyped number is an error, never 0.
fn number<N: std::str::FromStr>(word: &[u8], command: &str, what: &str) -> Result<N, UsageError> {
    let text = String::from_utf8_lossy(word);
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(number) if plain => Ok(number),
        _ => Err(UsageError::new(format!("{command}: '{}' is not {what}; write a whole number", text.escape_debug()))),
    }
}

fn number_of_partition(word: &[u8]) -> Result<u8, UsageError> {
    partition_from_decimal(word).ok_or_else(|| {
        let text = String::from_utf8_lossy(word);
        UsageError::new(format!("'{}' is no partition; they are 0 to {MAX_PARTITION}", text.escape_debug()))
    })
}

fn name_of_hold(word: &[u8]) -> Result<Vec<u8>, UsageError> {
    if word.is_empty() {
        return Err(UsageError::new("a hold's name has at least one character"));
    }
    Ok(word.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::words::split;

    fn parse(line: &str) -> Result<Option<Command>, String> {
        Command::parse(&split(line.as_bytes()).unwrap()).map_err(|error| error.to_string())
    }

    fn good(line: &str) -> Command {
        parse(line).unwrap().unwrap()
    }

    #[test]
    fn commands() {
        assert_eq!(parse(""), Ok(None));
        assert_eq!(good("SELECT 16"), Command::Select(16));
        assert_eq!(good("set mykey \"Hello Turnstone\""), Command::Set(b"mykey".into(), b"Hello Turnstone".into()));
        let pairs = vec![(b"a".into(), b"1".into()), (b"b".into(), b"2".into())];
        assert_eq!(good("mset a 1 b 2"), Command::MSet(pairs));
        assert_eq!(good("promote"), Command::Order("promote".to_owned()));
        assert_eq!(good("promote 2 FORCE"), Command::Order("promote 2 force".to_owned()));
        assert_eq!(good("replicas"), Command::Order("replicas".to_owned()));
        assert_eq!(good("replicaof h:1 2 force"), Command::Order("replicaof h:1 2 force".to_owned()));
        assert_eq!(good("wait 1:3:77"), Command::Wait { epoch: 3, version: 77, milliseconds: 5000 });
        assert_eq!(good("wait 77 1"), Command::Wait { epoch: 0, version: 77, milliseconds: 1000 });
        assert_eq!(good("replicaof no ONE"), Command::ReplicaOf(None));
        assert_eq!(good("replicaof localhost:6379 1"), Command::ReplicaOf(Some(("localhost:6379".into(), 1))));
        assert_eq!(good("hold cdc"), Command::Hold(b"cdc".into(), DEFAULT_HOLD_LIMIT));
        assert_eq!(good("hold cdc 64MB"), Command::Hold(b"cdc".into(), 64 << 20));
        assert_eq!(good("log 12"), Command::Log(12));
        assert_eq!(good("flushdb --yes"), Command::FlushDb { yes: true });
        assert_eq!(good("exit"), Command::Quit);
        assert_eq!(good("help exit"), Command::Help(help::find("quit")));
    }

    #[test]
    fn unknown_commands_have_a_neighbour() {
        assert_eq!(parse("comit"), Err("unknown command 'comit'; did you mean 'commit'?".to_owned()));
        assert_eq!(parse("help comit"), Err("unknown command 'comit'; did you mean 'commit'?".to_owned()));
        assert_eq!(parse("xyzzyx"), Err("unknown command 'xyzzyx'; 'help' lists all".to_owned()));
    }

    #[test]
    fn wrong_counts_show_the_usage() {
        for entry in COMMANDS {
            let many = format!("{}{}", entry.name, " a".repeat(9));
            let unlimited = ["mget", "mdel"].contains(&entry.name);
            assert_eq!(parse(&many).is_ok(), unlimited, "{many}");
        }
        assert_eq!(parse("get"), Err("usage: get KEY".to_owned()));
        assert_eq!(parse("mget"), Err("usage: mget KEY…".to_owned()));
        assert!(parse("set k a b").unwrap_err().contains("needs quotes"));
        assert!(parse("mset a").unwrap_err().contains("the last key has no value"));
        assert!(parse("mset a 1 b").unwrap_err().contains("the last key has no value"));
        assert!(parse("flushdb --no").is_err());
    }

    #[test]
    fn wrong_numbers_are_errors_and_never_zero() {
        for line in
            ["promote x", "promote -1", "promote +1", "promote 1.5", "promote 4294967296", "promote ''", "promote 1x"]
        {
            assert!(parse(line).is_err(), "{line}");
        }
        for line in ["select 17", "select 01", "select x", "select ''", "select -1", "log x", "log -1", "hold a 5XB"] {
            assert!(parse(line).is_err(), "{line}");
        }
        for line in ["wait", "wait x", "wait 1:2", "wait 1:x:3", "wait 1:2:3 x", "min_replicas", "min_replicas x"] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(parse("replicaof h:x 1").is_err());
        assert!(parse("replicaof h:1 99").is_err());
        assert!(parse("hold ''").is_err());
    }

    #[test]
    fn every_command_has_help() {
        let list = help::text(None);
        for entry in COMMANDS {
            assert!(list.contains(&entry.usage()));
            assert_eq!(good(&format!("help {}", entry.name)), Command::Help(Some(entry)));
            assert!(help::text(Some(entry)).contains(entry.about));
        }
        assert!(list.lines().all(|line| line.chars().count() <= 110));
    }
}
