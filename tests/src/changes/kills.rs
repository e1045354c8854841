//! Kills of server and consumer at random moments, while transactions come. What was acknowledged is in the published files
//! once, in order, whole; a published file never changes; the files come to what the server has.

use crate::changes::{self, Consumer, Replay, replay};
use crate::real::{TestHome, TestServer};
use crate::sim::Rng;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use turnstone_engine::codec::crc;
use turnstone_net::client::{ClientError, Connection};
use turnstone_net::tls::Role;

/// Small files and frequent checkpoints, so that kills meet all of them.
const SERVER: &[&str] = &[
    "--executors",
    "2",
    "--wal-max-size",
    "256KiB",
    "--checkpoint-bytes",
    "64KiB",
    "--checkpoint-wal-bytes",
    "512KiB",
    "--checkpoint-interval",
    "200ms",
    "--value-file-size",
    "1MiB",
];
const PARTITIONS: [u8; 2] = [1, 2];
const KEYS: u64 = 200;
/// In every so many rounds what is there is waited for.
const BREATH: u64 = 16;
/// The shortest pause before a kill, milliseconds.
const PAUSE_MS: u64 = 20;

/// What a campaign came to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Kills of servers.
    pub servers: u64,
    /// Kills of consumers.
    pub consumers: u64,
    /// Transactions that were acknowledged, and are in the files.
    pub acknowledged: u64,
    /// Lines in the files.
    pub lines: u64,
    /// Files.
    pub files: u64,
}

fn key(n: u64) -> Vec<u8> {
    // Some are no text.
    if n.is_multiple_of(5) {
        [b"\xff\x01".as_slice(), &n.to_be_bytes()].concat()
    } else {
        format!("key \"{n}\"").into_bytes()
    }
}

fn value(rng: &Rng) -> Vec<u8> {
    let length = if rng.percent(5) { 4096 + rng.below(20_000) } else { rng.below(300) };
    let seed = rng.below(u64::MAX);
    (0..length).map(|i| if seed.is_multiple_of(3) { (seed >> (i % 56)) as u8 } else { b' ' + (i % 90) as u8 }).collect()
}

/// What writers share with the campaign.
struct Writing {
    address: Mutex<String>,
    stop: AtomicBool,
    /// Versions of acknowledged transactions, by partition, with how many changes each has.
    acknowledged: Mutex<BTreeMap<(u8, u64), usize>>,
}

fn write(home: &TestHome, writing: &Writing, partition: u8, rng: &Rng) {
    let mut connection: Option<Connection> = None;
    while !writing.stop.load(Ordering::SeqCst) {
        let Some(at) = &mut connection else {
            let address = writing.address.lock().expect("no writer panics with it").clone();
            connection = connect(home, &address, partition).ok();
            if connection.is_none() {
                std::thread::park_timeout(Duration::from_millis(5));
            }
            continue;
        };
        match transaction(at, rng) {
            Ok(Some((version, changes))) => {
                let mut acknowledged = writing.acknowledged.lock().expect("no writer panics with it");
                acknowledged.insert((partition, version), changes);
            }
            Ok(None) => {}
            Err(_) => connection = None,
        }
    }
}

fn connect(home: &TestHome, address: &str, partition: u8) -> Result<Connection, ClientError> {
    let settings = turnstone_net::client::ClientSettings {
        address: address.to_string(),
        files: home.files(Role::Client),
        offer: turnstone_net::tls::ClientOffer::TURNSTONE2,
        timeout: Duration::from_secs(10),
    };
    let mut connection = Connection::connect(&settings)?;
    connection.select(partition)?;
    Ok(connection)
}

/// Answers the version and how many keys it changed; nothing for a conflict.
fn transaction(connection: &mut Connection, rng: &Rng) -> Result<Option<(u64, usize)>, ClientError> {
    let count = 1 + rng.below(6);
    let keys: std::collections::BTreeSet<u64> = (0..count).map(|_| rng.below(KEYS)).collect();
    connection.begin()?;
    for n in &keys {
        if rng.percent(20) {
            connection.del(&key(*n))?;
        } else {
            connection.set(&key(*n), &value(rng))?;
        }
    }
    match connection.commit() {
        Ok(position) => Ok(Some((position.version, keys.len()))),
        Err(ClientError::Server { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What every published file was when it was first seen: its length, and a checksum.
#[derive(Default)]
struct Published(BTreeMap<PathBuf, (usize, u32)>);

impl Published {
    /// Looks at those that are new, and, if it must, at all of them.
    fn look(&mut self, logs: &Path, all: bool) {
        for partition in PARTITIONS {
            for path in changes::files(logs, partition) {
                let before = self.0.get(&path).copied();
                if before.is_some() && !all {
                    continue;
                }
                let bytes = std::fs::read(&path).expect("a published file stays");
                let now = (bytes.len(), crc(&[&bytes]));
                assert!(before.is_none_or(|before| before == now), "{} has changed", path.display());
                self.0.insert(path, now);
            }
        }
    }
}

/// How long a campaign is.
#[derive(Clone, Copy, Debug)]
pub struct Length {
    /// Rounds, each with a kill.
    pub rounds: u64,
    /// What all of it follows from, but for the timing.
    pub seed: u64,
    /// The longest pause before a kill, milliseconds.
    pub pace: u64,
}

impl Length {
    /// With the usual pace.
    pub fn of(rounds: u64, seed: u64) -> Length {
        Length { rounds, seed, pace: 420 }
    }
}

/// The length from the command line of a campaign's program; 300 rounds if it says nothing.
pub fn arguments(program: &str) -> Option<Length> {
    let mut length = Length::of(300, 1);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let number = arguments.next().and_then(|text| text.parse::<u64>().ok());
        match (argument.as_str(), number) {
            ("--rounds", Some(number)) => length.rounds = number,
            ("--seed", Some(number)) => length.seed = number,
            ("--pace", Some(number)) if number > PAUSE_MS => length.pace = number,
            _ => {
                eprintln!("usage: {program} [--rounds N] [--seed N] [--pace MS], a pace of more than {PAUSE_MS}");
                return None;
            }
        }
    }
    Some(length)
}

/// A campaign that is over: what it left can be looked at.
pub struct Finished {
    /// The server's and the consumer's home.
    pub home: TestHome,
    /// The server runs.
    pub server: TestServer,
    /// What the files of each partition come to.
    pub replays: BTreeMap<u8, Replay>,
    /// What was done.
    pub outcome: Outcome,
}

/// Something beside server and consumer that is killed, too.
pub trait Victim {
    /// Kills it, and starts it again.
    fn kill(&mut self, home: &TestHome);
}

/// No such thing.
pub struct Nobody;

impl Victim for Nobody {
    fn kill(&mut self, _home: &TestHome) {}
}

/// Kills, and looks.
pub fn campaign(length: Length, victim: &mut dyn Victim) -> Finished {
    let Length { rounds, seed, pace } = length;
    let rng = Rng::new(seed);
    let home = TestHome::new("cdc-kills");
    let mut server = home.serve(SERVER);
    let port = server.port;
    changes::configure(
        &home,
        &[
            ("host", json!(server.address)),
            ("partition", json!(PARTITIONS)),
            ("rotate_interval", json!("60ms")),
            ("flush_interval", json!("60ms")),
            ("value_format", json!(["text", "json", "base64"][rng.below(3) as usize])),
            ("metrics_addr", json!("")),
        ],
    );
    let writing = Arc::new(Writing {
        address: Mutex::new(server.address.clone()),
        stop: AtomicBool::new(false),
        acknowledged: Mutex::default(),
    });
    let logs = home.path().join("cdc_logs");
    let mut outcome = Outcome::default();
    let mut published = Published::default();
    std::thread::scope(|scope| {
        let writer = |(n, partition): (usize, u8)| {
            let (home, writing, rng) = (&home, writing.clone(), Rng::new(seed ^ ((n as u64 + 1) << 40)));
            scope.spawn(move || write(home, &writing, partition, &rng))
        };
        let writers: Vec<_> = PARTITIONS.into_iter().chain(PARTITIONS).enumerate().map(writer).collect();
        let mut consumer = Consumer::start(&home);
        for round in 0..rounds {
            std::thread::park_timeout(Duration::from_millis(PAUSE_MS + rng.below(pace - PAUSE_MS)));
            let which = rng.below(5);
            if which < 3 {
                consumer.kill();
                outcome.consumers += 1;
            }
            if which > 1 {
                server.kill();
                outcome.servers += 1;
                server = home.serve_on(port, SERVER);
            }
            if which < 3 {
                consumer = Consumer::start(&home);
            }
            if rng.percent(40) {
                victim.kill(&home);
            }
            if round.is_multiple_of(8) {
                published.look(&logs, round.is_multiple_of(512));
            }
            if round % 1000 == 999 {
                eprintln!("{} rounds", round + 1);
            }
            if round % BREATH == BREATH - 1 {
                // On a busy machine lives may all be too short for anything to be published.
                for partition in PARTITIONS {
                    consumer.published(partition, shown(&home, &server, partition));
                }
            }
        }
        writing.stop.store(true, Ordering::SeqCst);
        // Each may be in the middle of one more transaction.
        writers.into_iter().for_each(|writer| writer.join().expect("no writer panics"));
        for partition in PARTITIONS {
            consumer.published(partition, shown(&home, &server, partition));
        }
        assert!(consumer.stop().success());
    });
    published.look(&logs, true);
    outcome.files = published.0.len() as u64;
    let acknowledged = writing.acknowledged.lock().expect("the writers have ended").clone();
    outcome.acknowledged = acknowledged.len() as u64;
    let mut replays = BTreeMap::new();
    for partition in PARTITIONS {
        let replayed = replay(&logs, partition);
        outcome.lines += replayed.lines;
        compare(&home, &server, partition, &replayed, &acknowledged);
        replays.insert(partition, replayed);
    }
    Finished { home, server, replays, outcome }
}

fn shown(home: &TestHome, server: &TestServer, partition: u8) -> u64 {
    let stat = home.connect(server, Role::Client, partition).stat().expect("it answers");
    crate::real::figure(&stat, "version")
}

fn compare(
    home: &TestHome,
    server: &TestServer,
    partition: u8,
    replayed: &Replay,
    acknowledged: &BTreeMap<(u8, u64), usize>,
) {
    assert!(replayed.retractions.is_empty() && replayed.copies.is_empty(), "a hold has kept the log");
    let mut sizes: BTreeMap<u64, usize> = BTreeMap::new();
    for change in &replayed.changes {
        *sizes.entry(change.version).or_default() += 1;
    }
    for ((_, version), changes) in acknowledged.iter().filter(|((of, _), _)| *of == partition) {
        assert_eq!(
            sizes.get(version),
            Some(changes),
            "transaction {version} of partition {partition} was acknowledged"
        );
    }
    assert_eq!(sizes.len() as u64, shown(home, server, partition), "every version of the log is in the files");
    let mut connection = home.connect(server, Role::Client, partition);
    for n in 0..KEYS {
        let found = connection.get(&key(n)).expect("it can be read");
        let written = replayed.state.get(&key(n)).map(|(_, value)| value.clone());
        assert!(found == written, "key {n} of partition {partition} differs from what the files come to");
    }
}
