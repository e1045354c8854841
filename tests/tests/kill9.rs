//! Real processes, real kills: what was acknowledged is there afterwards, whole.
//!
//! `TURNSTONE_KILLS=N` sets how often the server is killed under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use turnstone_net::client::Connection;
use turnstone_net::tls::Role;
use turnstone_tests::real::TestHome;
use turnstone_tests::sim::Rng;

const WRITERS: usize = 6;
const KEYS: usize = 5;
const SMALL: &[&str] = &[
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

/// How far a writer is: attempted and acknowledged transactions. It lives outside the victim.
#[derive(Default)]
struct Ledger {
    attempted: AtomicU64,
    acknowledged: AtomicU64,
}

fn key(writer: usize, k: usize) -> Vec<u8> {
    format!("writer-{writer}-key-{k}").into_bytes()
}

/// The value that transaction `n` gives key `k`: one in four is written to the value log at once.
fn value(n: u64, k: usize) -> Vec<u8> {
    let length = if (n + k as u64).is_multiple_of(4) { 5000 + (n % 977) as usize } else { 20 + (n % 300) as usize };
    let mut bytes = format!("{n:020}").into_bytes();
    bytes.resize(length.max(20), (n % 251) as u8);
    bytes
}

fn write(connection: &mut Connection, writer: usize, ledger: &Ledger, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        let n = ledger.acknowledged.load(Ordering::SeqCst).max(ledger.attempted.load(Ordering::SeqCst)) + 1;
        ledger.attempted.store(n, Ordering::SeqCst);
        let attempt = (|| {
            connection.begin()?;
            for k in 0..KEYS {
                connection.set(&key(writer, k), &value(n, k))?;
            }
            connection.commit()
        })();
        match attempt {
            Ok(_) => ledger.acknowledged.store(n, Ordering::SeqCst),
            // The server is gone; whether this one happened is not known.
            Err(_) => return,
        }
    }
}

fn check(home: &TestHome, server: &turnstone_tests::real::TestServer, ledgers: &[Arc<Ledger>]) {
    for (writer, ledger) in ledgers.iter().enumerate() {
        let mut connection = home.connect(server, Role::Client, partition(writer));
        let mut seen = None;
        for k in 0..KEYS {
            let found = connection.get(&key(writer, k)).expect("it can be read");
            let n = found.as_ref().map_or(0, |bytes| {
                let n = std::str::from_utf8(&bytes[..20]).expect("digits").parse().expect("a number");
                assert_eq!(bytes, &value(n, k), "the bytes of transaction {n}");
                n
            });
            assert_eq!(*seen.get_or_insert(n), n, "half a transaction of writer {writer} is there");
        }
        let n = seen.unwrap_or(0);
        let (acknowledged, attempted) =
            (ledger.acknowledged.load(Ordering::SeqCst), ledger.attempted.load(Ordering::SeqCst));
        assert!(n >= acknowledged, "writer {writer}: {acknowledged} was acknowledged, {n} is there");
        assert!(n <= attempted, "writer {writer}: {n} is there, {attempted} was attempted");
        // What was in doubt is decided now.
        ledger.acknowledged.store(n, Ordering::SeqCst);
        ledger.attempted.store(n, Ordering::SeqCst);
    }
}

fn partition(writer: usize) -> u8 {
    (writer % 4) as u8 * 4 + 1
}

#[test]
fn a_hundred_kills_under_load_lose_nothing_acknowledged() {
    let kills = std::env::var("TURNSTONE_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    let home = TestHome::new("kill9");
    let ledgers: Vec<Arc<Ledger>> = (0..WRITERS).map(|_| Arc::default()).collect();
    let rng = Rng::new(9);
    let mut during_start = 0;
    for round in 0..kills {
        let mut server = home.serve(SMALL);
        check(&home, &server, &ledgers);
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = ledgers
            .iter()
            .enumerate()
            .map(|(writer, ledger)| {
                let mut connection = home.connect(&server, Role::Client, partition(writer));
                let (ledger, stop) = (ledger.clone(), stop.clone());
                std::thread::spawn(move || write(&mut connection, writer, &ledger, &stop))
            })
            .collect();
        // The moment of the kill is the point of this test, so it is drawn, not waited for.
        std::thread::park_timeout(Duration::from_millis(5 + rng.below(250)));
        server.kill();
        stop.store(true, Ordering::SeqCst);
        writers.into_iter().for_each(|w| w.join().expect("a writer ends"));
        if round % 5 == 4 {
            // And once more, while it recovers.
            let early = home.kill_while_starting(SMALL, Duration::from_millis(rng.below(60)));
            during_start += u32::from(early);
        }
    }
    let server = home.serve(SMALL);
    check(&home, &server, &ledgers);
    let committed: u64 = ledgers.iter().map(|l| l.acknowledged.load(Ordering::SeqCst)).sum();
    println!(
        "{kills} kills under load, {during_start} while starting, {committed} transactions, nothing acknowledged lost"
    );
    assert!(committed > kills, "the load was real");
}

/// Flushes of the disk that holds the home, from the kernel's counters.
fn disk_flushes(home: &TestHome) -> u64 {
    use std::os::linux::fs::MetadataExt;
    let device = std::fs::metadata(home.path()).expect("it exists").st_dev();
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    let text = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).expect("the disk has counters");
    text.split_whitespace().nth(15).expect("flushes are counted").parse().expect("a number")
}

#[test]
fn a_thousand_lone_commits_flush_the_disk_a_thousand_times() {
    let home = TestHome::new("flushes");
    let server = home.serve(&[]);
    let mut connection = home.connect(&server, Role::Client, 1);
    connection.set(b"warm", b"up").expect("it is set");
    let before = disk_flushes(&home);
    for n in 0..1000u32 {
        connection.set(b"key", &n.to_le_bytes()).expect("it is set");
    }
    let flushes = disk_flushes(&home) - before;
    println!("1000 lone commits raised the disk's flush count by {flushes}");
    assert!(flushes >= 1000, "{flushes} flushes");
}
