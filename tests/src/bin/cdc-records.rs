//! Real records through change files and DuckDB, compared with the server: `cdc-records --records 1000000`.

use turnstone_tests::changes::records;

fn main() {
    let flag = std::env::args().skip_while(|argument| argument != "--records").nth(1);
    let records = flag.and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    turnstone_tests::real::loader();
    let report = records::run(records);
    println!(
        "{} records in {:.0} s, everything loaded after {:.0} s: {} keys, the tables equal the server; {} changes, the histories \
         equal the log; most memory, MiB: server {}, consumer {}, loader of files {}, loader at the server {}",
        report.records,
        report.seconds.0,
        report.seconds.1,
        report.keys,
        report.changes,
        report.peaks[0],
        report.peaks[1],
        report.peaks[2],
        report.peaks[3]
    );
}
