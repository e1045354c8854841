//! Flags of `turnstone-bench`, spelled as the original spells them, with one dash or two.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use turnstone_net::wire::partition_from_decimal;

use crate::dashes::two_dashes;
use crate::units::parse_duration;

/// What to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// TurnstoneDB's own, in the dialect of `--dialect`.
    Turnstone,
    /// Redis' own (RESP), over mutual TLS with the same certificates.
    Resp,
}

/// TurnstoneDB's dialects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DialectName {
    /// The original's: every write is Begin, Set, Commit.
    V1,
    /// Ours: a single write commits by itself.
    Turnstone2,
}

/// Everything that the command line says.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "turnstone-bench",
    version,
    about = "Load a TurnstoneDB server (or Redis) over mutual TLS and report throughput and latency",
    after_help = "Examples:\n  turnstone-bench --home tsdata -c 50 -n 100000 -ratio 0.5\n  \
                  turnstone-bench --home tsdata -c 64 -depth 16 -ratio 0 --duration 10s --warmup 1s -partition 1-16\n  \
                  turnstone-bench --home tsdata -c 16 -ratio 1 --rate 10000 --duration 30s --json\n\n\
                  Without -ratio there are two phases: all keys are written, then all are read. Long flags may have one \
                  dash or two.",
    disable_help_flag = false
)]
pub struct Options {
    /// The home directory; certs/client.* is used to connect
    #[arg(long, value_name = "DIR", env = "TURNSTONE_HOME", default_value = ".")]
    pub home: PathBuf,
    /// The server's address
    #[arg(long, alias = "addr", value_name = "HOST:PORT", env = "TURNSTONE_HOST", default_value = "localhost:6379")]
    pub host: String,
    /// Connections
    #[arg(short = 'c', value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub connections: u32,
    /// Operations per phase, all connections together
    #[arg(short = 'n', value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub operations: u64,
    /// The share of reads in a mixed phase, 0 to 1; negative for a write phase and then a read phase
    #[arg(long, value_name = "SHARE", default_value_t = -1.0, allow_negative_numbers = true)]
    pub ratio: f64,
    /// Transactions in flight per connection
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub depth: u32,
    /// Operations per transaction
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub batch: u32,
    /// Bytes of a value
    #[arg(short = 'v', value_name = "BYTES", default_value_t = 128, value_parser = clap::value_parser!(u32).range(0..=4_194_304))]
    pub value_bytes: u32,
    /// Bytes of a key; shorter keys are padded with 'x'
    #[arg(short = 'k', value_name = "BYTES", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=65_000))]
    pub key_bytes: u32,
    /// Different keys, all connections together [default: as many as operations]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: Option<u64>,
    /// What keys start with
    #[arg(long, value_name = "TEXT", default_value = "bench")]
    pub prefix: String,
    /// The partition, or several: 3, 1-16, 2,5,7; connections are dealt out in turn
    #[arg(long, alias = "db", value_name = "N", default_value = "1", value_parser = partitions)]
    pub partition: Partitions,
    /// Run for this long instead of -n operations
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Leave this long at the beginning out of the figures
    #[arg(long, value_name = "DURATION", default_value = "0", value_parser = duration)]
    pub warmup: Duration,
    /// Transactions per second, all connections together: an open loop
    #[arg(long, value_name = "PER_SECOND")]
    pub rate: Option<f64>,
    /// CPUs to run on, one thread each: 1 or 2,3
    #[arg(long, value_name = "CPUS", value_delimiter = ',')]
    pub cores: Vec<usize>,
    /// TurnstoneDB's dialect
    #[arg(long, value_enum, default_value_t = DialectName::Turnstone2)]
    pub dialect: DialectName,
    /// What to speak
    #[arg(long, value_enum, default_value_t = Protocol::Turnstone)]
    pub protocol: Protocol,
    /// Where the random choices of keys start
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// The partitions that connections are dealt out to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partitions(pub Vec<u8>);

fn partitions(text: &str) -> Result<Partitions, String> {
    let number = |text: &str| {
        partition_from_decimal(text.trim().as_bytes())
            .ok_or_else(|| format!("'{text}' is no partition; they are 0 to 16"))
    };
    let mut list = Vec::new();
    for part in text.split(',') {
        match part.split_once('-') {
            Some((from, to)) => {
                let (from, to) = (number(from)?, number(to)?);
                if from > to {
                    return Err(format!("'{part}' runs backwards"));
                }
                list.extend(from..=to);
            }
            None => list.push(number(part)?),
        }
    }
    Ok(Partitions(list))
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

impl Options {
    /// Reads the command line; prints help or what is wrong and ends the process where that is asked for.
    pub fn from_command_line(words: impl IntoIterator<Item = OsString>) -> Options {
        let options = Options::parse_from(two_dashes(words));
        if let Err(text) = options.check() {
            use clap::CommandFactory;
            Options::command().error(clap::error::ErrorKind::ArgumentConflict, text).exit();
        }
        options
    }

    fn check(&self) -> Result<(), String> {
        if self.ratio > 1.0 || self.ratio.is_nan() {
            return Err(format!("-ratio is the share of reads, 0 to 1 (or -1); {} is neither", self.ratio));
        }
        if self.rate.is_some_and(|rate| !(rate > 0.0 && rate <= 100_000_000.0)) {
            return Err("--rate is a number of transactions per second, above 0".to_owned());
        }
        if self.duration.is_some_and(|duration| duration <= self.warmup) {
            return Err("--duration must be longer than --warmup, which it includes".to_owned());
        }
        if self.protocol == Protocol::Resp && self.dialect == DialectName::V1 {
            return Err("--dialect v1 is TurnstoneDB's; it does not go with --protocol resp".to_owned());
        }
        Ok(())
    }

    /// How many different keys there are.
    pub fn key_count(&self) -> u64 {
        self.keys.unwrap_or(self.operations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Options {
        let words = line.split_whitespace().map(OsString::from);
        Options::try_parse_from(two_dashes(words)).expect(line)
    }

    #[test]
    fn the_requirements_line_and_the_originals_flags_are_read() {
        let options = parse("turnstone-bench --home tsdata -c 50 -n 100000 -ratio 0.5");
        assert_eq!((options.connections, options.operations, options.ratio), (50, 100_000, 0.5));
        assert_eq!(options.home, PathBuf::from("tsdata"));
        let options = parse("b -addr h:1 -db 3 -depth 16 -batch=2 -v 8 -k 16 -prefix p -ratio -1 -home x");
        assert_eq!((options.depth, options.batch, options.value_bytes, options.key_bytes), (16, 2, 8, 16));
        assert_eq!((options.host.as_str(), options.partition), ("h:1", Partitions(vec![3])));
        assert_eq!((options.ratio, options.prefix.as_str()), (-1.0, "p"));
        assert_eq!(parse("b -c8 -n=5").operations, 5);
    }

    #[test]
    fn partitions_are_lists_and_ranges() {
        assert_eq!(partitions("1-3,16"), Ok(Partitions(vec![1, 2, 3, 16])));
        assert!(partitions("17").is_err() && partitions("3-1").is_err() && partitions("").is_err());
    }

    #[test]
    fn contradictions_are_named() {
        assert!(parse("b -ratio 1.5").check().unwrap_err().contains("1.5"));
        assert!(parse("b --duration 1s --warmup 2s").check().is_err());
        assert!(parse("b --protocol resp --dialect v1").check().is_err());
        assert!(parse("b --rate 0").check().is_err());
        assert_eq!(parse("b --rate 10 -ratio 1").check(), Ok(()));
    }
}
