//! Kills of server and consumer while changes are written to files: `cdc-kills --rounds 300 --seed 7`.

use std::process::ExitCode;
use std::time::Instant;
use turnstone_tests::changes::kills;

fn main() -> ExitCode {
    let Some(length) = kills::arguments("cdc-kills") else { return ExitCode::from(2) };
    let began = Instant::now();
    let outcome = kills::campaign(length, &mut kills::Nobody).outcome;
    println!(
        "{} rounds (seed {}) in {:.0} s: {} kills of the server, {} of the consumer, {} transactions acknowledged, \
         {} lines in {} files: none missing, none twice, none torn, no file changed",
        length.rounds,
        length.seed,
        began.elapsed().as_secs_f64(),
        outcome.servers,
        outcome.consumers,
        outcome.acknowledged,
        outcome.lines,
        outcome.files
    );
    ExitCode::SUCCESS
}
