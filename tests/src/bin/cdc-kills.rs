//! Kills of server and consumer while changes are written to files: `cdc-kills --rounds 300 --seed 7`.

use std::process::ExitCode;
use std::time::Instant;
use turnstone_tests::changes::kills;

fn main() -> ExitCode {
    let (mut rounds, mut seed) = (300, 1);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let number = arguments.next().and_then(|text| text.parse::<u64>().ok());
        match (argument.as_str(), number) {
            ("--rounds", Some(number)) => rounds = number,
            ("--seed", Some(number)) => seed = number,
            _ => {
                eprintln!("usage: cdc-kills [--rounds N] [--seed N]");
                return ExitCode::from(2);
            }
        }
    }
    let began = Instant::now();
    let outcome = kills::campaign(rounds, seed, &mut kills::Nobody).outcome;
    println!(
        "{rounds} rounds (seed {seed}) in {:.0} s: {} kills of the server, {} of the consumer, {} transactions acknowledged, \
         {} lines in {} files: none missing, none twice, none torn, no file changed",
        began.elapsed().as_secs_f64(),
        outcome.servers,
        outcome.consumers,
        outcome.acknowledged,
        outcome.lines,
        outcome.files
    );
    ExitCode::SUCCESS
}
