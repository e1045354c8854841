//! `turnstone-load`: devices that report themselves, as JSON, in transactions; to fill a server with what looks real.

pub mod record;

use crate::bench::workload::Numbers;
use hdrhistogram::Histogram;
use record::Record;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};
use turnstone_net::client::{ClientError, ClientSettings, Connection};
use turnstone_net::wire::ErrorCode;

/// A transaction that meets a conflict is tried so often...
const ATTEMPTS: u32 = 5;
/// ...after a pause that begins with this and doubles.
const PAUSE: Duration = Duration::from_millis(1);

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The server.
    pub target: ClientSettings,
    /// Connections, each with a thread.
    pub workers: u32,
    /// How long.
    pub duration: Duration,
    /// Which partition.
    pub partition: u8,
    /// Records in a transaction.
    pub batch: u32,
    /// How many devices there are.
    pub keys: u64,
    /// Bytes that are added to each record.
    pub padding: usize,
    /// The same seed makes the same records.
    pub seed: u64,
}

/// What was done.
pub struct Summary {
    /// Transactions committed.
    pub committed: u64,
    /// Attempts that met a conflict.
    pub conflicts: u64,
    /// Transactions given up, by code.
    pub errors: BTreeMap<&'static str, u64>,
    /// Bytes of keys and values in committed transactions.
    pub bytes: u64,
    /// From begin to committed, conflicts included, nanoseconds.
    pub latency: Histogram<u64>,
    /// From the first to the last.
    pub elapsed: Duration,
}

impl Summary {
    fn new() -> Summary {
        let latency = Histogram::new_with_bounds(1_000, 600_000_000_000, 3).expect("the bounds are in order");
        Summary { committed: 0, conflicts: 0, errors: BTreeMap::new(), bytes: 0, latency, elapsed: Duration::ZERO }
    }

    fn add(&mut self, other: &Summary) {
        self.committed += other.committed;
        self.conflicts += other.conflicts;
        self.bytes += other.bytes;
        for (word, count) in &other.errors {
            *self.errors.entry(word).or_default() += count;
        }
        self.latency.add(&other.latency).expect("both have the same bounds");
    }

    /// For people.
    pub fn text(&self, plan: &Plan) -> String {
        let seconds = self.elapsed.as_secs_f64().max(1e-9);
        let rate = |count: u64| count as f64 / seconds;
        let ms = |quantile| self.latency.value_at_quantile(quantile) as f64 / 1e6;
        let mut out = String::new();
        // Writing to memory cannot fail.
        let _ = writeln!(
            out,
            "{} transactions of {} records in {seconds:.3} s: {:.0}/s ({:.0} records/s), {:.1} MB/s",
            self.committed,
            plan.batch,
            rate(self.committed),
            rate(self.committed * u64::from(plan.batch)),
            rate(self.bytes) / 1e6
        );
        let (p50, p90, p99, most) = (ms(0.5), ms(0.9), ms(0.99), self.latency.max() as f64 / 1e6);
        let _ = writeln!(out, "  transaction ms:  p50 {p50:.3}  p90 {p90:.3}  p99 {p99:.3}  max {most:.3}");
        let errors: Vec<String> = self.errors.iter().map(|(word, count)| format!("{word} {count}")).collect();
        let errors = if errors.is_empty() { "no errors".to_owned() } else { format!("errors: {}", errors.join(", ")) };
        let _ = writeln!(out, "  conflicts {}, {errors}", self.conflicts);
        out
    }
}

/// Does it; an error if nobody could connect.
pub fn run(plan: &Plan) -> Result<Summary, String> {
    let mut connections = Vec::new();
    for _ in 0..plan.workers {
        connections.push(connect(plan).map_err(|error| error.to_string())?);
    }
    let began = Instant::now();
    let parts = std::thread::scope(|scope| {
        let workers: Vec<_> = connections
            .into_iter()
            .enumerate()
            .map(|(worker, connection)| scope.spawn(move || work(plan, worker as u64, connection, began)))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().map_err(|_| "a worker has panicked".to_owned()))
            .collect::<Result<Vec<_>, _>>()
    })?;
    let mut summary = Summary::new();
    parts.iter().for_each(|part| summary.add(part));
    summary.elapsed = began.elapsed();
    Ok(summary)
}

fn connect(plan: &Plan) -> Result<Connection, ClientError> {
    let mut connection = Connection::connect(&plan.target)?;
    connection.select(plan.partition)?;
    Ok(connection)
}

fn work(plan: &Plan, worker: u64, connection: Connection, began: Instant) -> Summary {
    let mut summary = Summary::new();
    let mut numbers = Numbers::new(plan.seed ^ (worker << 32));
    let mut connection = Some(connection);
    while began.elapsed() < plan.duration {
        let records: Vec<Record> =
            (0..plan.batch).map(|_| Record::draw(&mut numbers, plan.keys, plan.padding)).collect();
        let from = Instant::now();
        match attempts(plan, &mut connection, &records, &mut summary.conflicts) {
            Ok(()) => {
                summary.committed += 1;
                summary.bytes +=
                    records.iter().map(|record| (record.key.len() + record.value.len()) as u64).sum::<u64>();
                summary.latency.saturating_record(from.elapsed().as_nanos() as u64);
            }
            Err(error) => {
                *summary.errors.entry(error.word()).or_default() += 1;
                if error.is_fatal() {
                    connection = None;
                    std::thread::park_timeout(PAUSE * 100);
                }
            }
        }
    }
    summary
}

/// Commits these records, again if others were first.
fn attempts(
    plan: &Plan,
    connection: &mut Option<Connection>,
    records: &[Record],
    conflicts: &mut u64,
) -> Result<(), ClientError> {
    let mut pause = PAUSE;
    for attempt in 1.. {
        let at = match connection {
            Some(at) => at,
            None => connection.insert(connect(plan)?),
        };
        match commit(at, records) {
            Err(error) if error.code() == Some(ErrorCode::Conflict) && attempt < ATTEMPTS => {
                *conflicts += 1;
                std::thread::park_timeout(pause);
                pause *= 2;
            }
            done => return done,
        }
    }
    Ok(())
}

fn commit(connection: &mut Connection, records: &[Record]) -> Result<(), ClientError> {
    connection.begin()?;
    for record in records {
        if let Err(error) = connection.set(&record.key, &record.value) {
            if !error.is_fatal() {
                connection.abort()?;
            }
            return Err(error);
        }
    }
    connection.commit().map(drop)
}
