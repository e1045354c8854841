//! The command line of the campaign.

use super::campaign::{self, Scale};
use super::{capacity, floods};
use std::time::Duration;

const USAGE: &str = "usage: attack [--connections 100000] [--per-second 500] [--workers 160] [--seed 1] [--stretches 5] \
                     [--idle 2000] [--handshakes 10] [--only campaign|floods|idle|handshakes] [--unpinned]";

struct Options {
    scale: Scale,
    idle: usize,
    handshakes: Duration,
    only: Option<String>,
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Options, String> {
    let scale = Scale {
        connections: 100_000,
        per_second: 500.0,
        workers: 160,
        seed: 1,
        stretches: 5,
        alone: Duration::from_secs(10),
        pinned: true,
    };
    let mut options = Options { scale, idle: 2000, handshakes: Duration::from_secs(10), only: None };
    while let Some(word) = words.next() {
        if word == "--unpinned" {
            options.scale.pinned = false;
            continue;
        }
        let value = words.next().ok_or(USAGE)?;
        let number = || value.parse::<u64>().map_err(|_| format!("{word} {value}: a number is wanted\n{USAGE}"));
        match word.as_str() {
            "--connections" => options.scale.connections = number()?,
            "--per-second" => options.scale.per_second = number()?.max(1) as f64,
            "--workers" => options.scale.workers = number()?.max(1) as usize,
            "--seed" => options.scale.seed = number()?,
            "--stretches" => options.scale.stretches = number()?.max(1) as usize,
            "--idle" => options.idle = number()? as usize,
            "--handshakes" => options.handshakes = Duration::from_secs(number()?),
            "--only" => options.only = Some(value),
            _ => return Err(USAGE.to_string()),
        }
    }
    Ok(options)
}

/// Runs what the words ask for; the error names what was missed.
pub fn run(words: impl Iterator<Item = String>) -> Result<(), String> {
    let options = options(words)?;
    // Sockets of thousands of clients are held here as well.
    turnstone_executor::ring::sys::raise_limits();
    let wanted = |name: &str| options.only.as_deref().is_none_or(|only| only == name);
    let mut missed = Vec::new();
    let mut section = |name: &str, result: &dyn Fn() -> Result<(), String>| {
        if wanted(name) {
            println!("---- {name}");
            missed.extend(result().err().map(|text| format!("{name}: {text}")));
            println!();
        }
    };
    section("idle", &|| capacity::idle(options.idle));
    section("handshakes", &|| capacity::handshakes(options.handshakes, options.scale.pinned));
    section("floods", &floods::run);
    section("campaign", &|| campaign::run(&options.scale));
    if missed.is_empty() { Ok(()) } else { Err(missed.join("\n")) }
}
