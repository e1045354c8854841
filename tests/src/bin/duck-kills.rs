//! Kills of server, consumer and loader while changes go into DuckDB: `duck-kills --rounds 300 --seed 7`.

use std::process::ExitCode;
use std::time::Instant;
use turnstone_tests::changes::duck::{self, Loader};
use turnstone_tests::changes::kills;

fn main() -> ExitCode {
    let Some(length) = kills::arguments("duck-kills") else { return ExitCode::from(2) };
    turnstone_tests::real::loader();
    let began = Instant::now();
    let mut loader: Option<Loader> = None;
    let finished = kills::campaign(length, &mut loader);
    let kills = loader.take().map_or(0, |loader| loader.kills);
    let logs = finished.home.path().join("cdc_logs");
    let output = duck::load_once(&logs, &duck::db(&finished.home), &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (partition, replayed) in &finished.replays {
        duck::compare(&duck::db(&finished.home), *partition, replayed);
    }
    let outcome = finished.outcome;
    println!(
        "{} rounds (seed {}) in {:.0} s: {} kills of the server, {} of the consumer, {kills} of the loader, {} \
         transactions acknowledged, {} lines in {} files: none missing, none twice, none torn; the tables equal them",
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
