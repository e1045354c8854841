//! `turnstone-bench`: load over mutual TLS, throughput and latency.
//!
//! Exit status: 0 done, 1 the run failed or a transaction was refused for another reason than a conflict, 2 wrong usage.

use std::process::ExitCode;
use std::time::Duration;

use turnstone_net::client::ClientSettings;
use turnstone_net::tls::{ClientOffer, Role};
use turnstone_net::wire::{Dialect, ErrorCode};
use turnstone_tools::bench::driver::{self, Figures, Part, Plan};
use turnstone_tools::bench::options::{DialectName, Options, Protocol};
use turnstone_tools::bench::protocol::Speech;
use turnstone_tools::bench::report;
use turnstone_tools::bench::workload::{Chooser, Numbers, Phase, share};
use turnstone_tools::home::Home;

const TIMEOUT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let options = Options::from_command_line(std::env::args_os());
    if !options.json {
        println!("{}", report::describe(&options));
    }
    let mut clean = true;
    let mut phases = Vec::new();
    for phase in Phase::of_ratio(options.ratio) {
        match run(&options, phase) {
            Ok(figures) => {
                clean &= figures.errors.keys().all(|word| word == ErrorCode::Conflict.name());
                if options.json {
                    phases.push(report::json(phase, &options, &figures));
                } else {
                    print!("{}", report::text(phase, &options, &figures));
                }
            }
            Err(error) => {
                eprintln!("turnstone-bench: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    if options.json {
        println!("{}", serde_json::Value::Array(phases));
    }
    if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(options: &Options, phase: Phase) -> Result<Figures, String> {
    let speech = match (options.protocol, options.dialect) {
        (Protocol::Resp, _) => Speech::Resp,
        (_, DialectName::V1) => Speech::Turnstone(Dialect::V1),
        (_, DialectName::Turnstone2) => Speech::Turnstone(Dialect::Turnstone2),
    };
    let offer =
        if speech == Speech::Turnstone(Dialect::Turnstone2) { ClientOffer::TURNSTONE2 } else { ClientOffer::V1 };
    let files = Home::new(&options.home).tls_files(Role::Client);
    let target = ClientSettings { address: options.host.clone(), files, offer, timeout: TIMEOUT };
    let connections = options.connections;
    let interval = options.rate.map(|rate| Duration::from_secs_f64(f64::from(connections) / rate));
    let mut numbers = Numbers::new(options.seed);
    let mut value = vec![0; options.value_bytes as usize];
    // Not compressible, and the same in every run with this seed.
    value.iter_mut().for_each(|byte| *byte = numbers.draw() as u8);
    let plan = Plan {
        target,
        speech,
        depth: options.depth as usize,
        batch: options.batch as usize,
        value,
        duration: options.duration,
        warmup: options.warmup,
        interval,
    };
    let parts = (0..connections).map(|i| {
        let keys = share(options.key_count(), connections, i);
        let chooser = Chooser::new(phase, i, keys, options.seed, &options.prefix, options.key_bytes as usize);
        let partitions = &options.partition.0;
        Part {
            chooser,
            transactions: share(options.operations, connections, i).div_ceil(u64::from(options.batch)),
            partition: partitions[i as usize % partitions.len()],
            offset: interval.map_or(Duration::ZERO, |interval| interval.mul_f64(f64::from(i) / f64::from(connections))),
        }
    });
    driver::run(&plan, parts.collect(), &options.cores)
}
