//! Real records through all of it: written with overwrites and deletes while change files, DuckDB behind them and DuckDB at
//! the server follow; then every table equals the server, key by key, and every history the log.

use super::duck::{self, Loader};
use super::log::Log;
use super::{Change, Consumer, configure};
use crate::attack::watch::Watch;
use crate::packages::packages;
use crate::real::{TestHome, TestServer, figure};
use crate::sim::Rng;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use turnstone_net::client::Connection;
use turnstone_net::tls::Role;

/// Where the records go.
const PARTITIONS: [u8; 4] = [1, 2, 3, 4];
/// Most records of a transaction.
const MOST: u64 = 40;

type Packages = BTreeMap<Vec<u8>, Vec<u8>>;

fn partition_of(key: &[u8]) -> u8 {
    PARTITIONS[key.iter().fold(7usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte))) % 4]
}

/// Writes its partition's records in rounds, each a version of all of them, until so many records were written by all.
fn write(connection: &mut Connection, packages: &Packages, partition: u8, records: u64, written: &AtomicU64) {
    let own: Vec<(&Vec<u8>, &Vec<u8>)> = packages.iter().filter(|(key, _)| partition_of(key) == partition).collect();
    let rng = Rng::new(u64::from(partition));
    for round in 1u32.. {
        let mut rest = own.as_slice();
        while !rest.is_empty() {
            if written.load(Ordering::Relaxed) >= records {
                return;
            }
            let (some, more) = rest.split_at(rest.len().min(1 + rng.below(MOST) as usize));
            rest = more;
            connection.begin().expect("it begins");
            for (key, record) in some {
                let version = [record.as_slice(), format!("X-Round: {round}\n").as_bytes()].concat();
                connection.set(key, &version).expect("it is set");
            }
            if rng.percent(30) {
                connection.del(own[rng.below(own.len() as u64) as usize].0).expect("it is deleted");
            }
            connection.commit().expect("nobody else writes here");
            written.fetch_add(some.len() as u64, Ordering::Relaxed);
        }
    }
}

/// What a run came to.
#[derive(Debug, Default)]
pub struct Report {
    /// Records that were written.
    pub records: u64,
    /// Changes of the logs; each history has as many.
    pub changes: u64,
    /// Keys that the server has at the end; each table has as many.
    pub keys: u64,
    /// Seconds for writing, and until everything was loaded.
    pub seconds: (f64, f64),
    /// Most memory of server, consumer, loader of files, loader at the server, MiB.
    pub peaks: [u64; 4],
}

/// Runs it with so many records; what differs is a panic.
pub fn run(records: u64) -> Report {
    let packages = packages();
    let home = TestHome::new("cdc-records");
    let server = home.serve(&["--wal-retention-bytes", "64GiB"]);
    configure(
        &home,
        &[
            ("host", json!(server.address)),
            ("partition", json!(PARTITIONS)),
            ("rotate_interval", json!("500ms")),
            ("metrics_addr", json!("")),
        ],
    );
    let mut consumer = Consumer::start(&home);
    let (from_files, from_server) = (duck::db(&home), home.path().join("direct.duckdb"));
    let mut by_files = Loader::start(&home);
    let mut by_stream = Loader::from_server(&home, &from_server, &[]);
    let (written, began) = (AtomicU64::new(0), Instant::now());
    std::thread::scope(|scope| {
        for partition in PARTITIONS {
            let mut connection = home.connect(&server, Role::Client, partition);
            let (packages, written) = (&packages, &written);
            scope.spawn(move || write(&mut connection, packages, partition, records, written));
        }
    });
    let mut report = Report { records: written.load(Ordering::Relaxed), ..Report::default() };
    report.seconds.0 = began.elapsed().as_secs_f64();
    for partition in PARTITIONS {
        let stat = home.connect(&server, Role::Client, partition).stat().expect("it answers");
        consumer.published(partition, figure(&stat, "version"));
    }
    let peak = |pid| Watch { pid }.peak() >> 10;
    report.peaks = [server.pid(), consumer.pid(), by_files.pid(), by_stream.pid()].map(peak);
    assert!(consumer.stop().success());
    by_files.stop();
    by_stream.stop();
    let logs = home.path().join("cdc_logs");
    for rest in [duck::load_once(&logs, &from_files, &[]), duck::stream_once(&home, &from_server, &[])] {
        assert!(rest.status.success(), "{}", String::from_utf8_lossy(&rest.stderr));
    }
    report.seconds.1 = began.elapsed().as_secs_f64();
    for partition in PARTITIONS {
        let keys: Vec<&[u8]> = packages.keys().map(Vec::as_slice).filter(|k| partition_of(k) == partition).collect();
        let on_server = read(&home, &server, partition, &keys);
        report.keys += on_server.len() as u64;
        for db in [&from_files, &from_server] {
            compare_table(db, partition, &on_server);
        }
        let changes = [&from_files, &from_server].map(|db| compare_history(db, partition, &home, &server));
        assert_eq!(changes[0], changes[1]);
        report.changes += changes[0];
    }
    report
}

/// Everything that the server has.
fn read(home: &TestHome, server: &TestServer, partition: u8, keys: &[&[u8]]) -> Packages {
    let mut connection = home.connect(server, Role::Client, partition);
    let mut found = BTreeMap::new();
    for group in keys.chunks(200) {
        let values = connection.mget(group).expect("they can be read");
        found.extend(group.iter().zip(values).filter_map(|(key, value)| Some((key.to_vec(), value?))));
    }
    found
}

fn text(row: &Value, name: &str) -> Option<Vec<u8>> {
    let encoding = row[format!("{name}_encoding")].as_str()?;
    row[name].as_str().map(|text| duck::bytes(text, encoding))
}

fn compare_table(db: &Path, partition: u8, on_server: &Packages) {
    let sql =
        format!("SELECT key, key_encoding, value, value_encoding FROM turnstone_data WHERE partition = {partition}");
    let mut rows = 0;
    duck::each_row(db, &sql, |row| {
        let key = text(&row, "key").expect("a key");
        assert!(on_server.get(&key) == text(&row, "value").as_ref(), "{} differs", key.escape_ascii());
        rows += 1;
    });
    assert_eq!(rows, on_server.len(), "rows of partition {partition}");
}

/// Compares a history with the log; answers how many changes they have.
fn compare_history(db: &Path, partition: u8, home: &TestHome, server: &TestServer) -> u64 {
    let sql = format!(
        "SELECT version, n, of, key, key_encoding, value, value_encoding FROM turnstone_history
         WHERE partition = {partition} ORDER BY version, n"
    );
    let (mut log, mut changes) = (Log::of(home, server, partition), 0);
    duck::each_row(db, &sql, |row| {
        let number = |name: &str| row[name].as_u64().expect("a number");
        let at = (number("n") as u32, number("of") as u32);
        let (key, value) = (text(&row, "key"), text(&row, "value"));
        let logged = log.next().expect("the history has no more than the log");
        assert!(Change { version: number("version"), at, key, value } == logged, "{row} is not {logged:?}");
        changes += 1;
    });
    assert_eq!(log.next(), None, "the log has more than the history");
    changes
}
