//! What a node does until it is back: a million keys over 16 partitions, after a clean stop and after a kill with a long log.
//! How long that takes is printed; what it reads is what it is held to, since that is the same on any machine.

use std::time::{Duration, Instant};
use turnstone_net::client::Connection;
use turnstone_net::tls::Role;
use turnstone_net::wire::Request;
use turnstone_tests::real::{TestHome, TestServer, figure};

const KEYS: u32 = 1_000_000;
const PER_TRANSACTION: u32 = 250;
/// A start without anything to replay reads at most this much, bytes: what is left of the last segment of each log, where
/// something could vouch for more, and a mebibyte of headers and manifests for each. No values. Of the index only what the
/// system did not have in memory counts.
const CLEAN: u64 = 16 * (11 << 20);

fn pipeline(connection: &mut Connection, requests: &[Request<'_>]) {
    for request in requests {
        connection.send(request).expect("sent");
    }
    connection.flush().expect("sent");
    for _ in requests {
        let reply = connection.receive().expect("a reply");
        connection.check(reply).expect("a good one");
    }
}

/// What a start took, up to the answer of a first transaction.
struct Start {
    server: TestServer,
    took: Duration,
    /// Bytes that came from the disk, as the kernel counts them.
    read: u64,
}

/// The first transaction reads `key` of partition 7.
fn start_and_read(home: &TestHome, flags: &[&str], key: &[u8], value: &[u8]) -> Start {
    let started = Instant::now();
    let server = home.serve(flags);
    let mut connection = home.connect(&server, Role::Client, 7);
    connection.begin().expect("begun");
    assert_eq!(connection.get(key).expect("read").as_deref(), Some(value));
    connection.set(b"first", b"after the start").expect("set");
    connection.commit().expect("committed");
    let took = started.elapsed();
    let io = std::fs::read_to_string(format!("/proc/{}/io", server.pid())).expect("Linux says");
    let read = io.lines().find_map(|line| line.strip_prefix("read_bytes: ")?.parse().ok()).expect("it is a number");
    Start { server, took, read }
}

#[test]
fn a_start_reads_the_log_behind_the_mark_once_and_little_else() {
    let home = TestHome::new("restart");
    // The log is held back from checkpoints, so that a kill leaves all of it to be replayed.
    let held = [
        "--checkpoint-wal-bytes",
        "1GiB",
        "--checkpoint-bytes",
        "1GiB",
        "--checkpoint-interval",
        "1h",
        "--overlay-budget",
        "16GiB",
    ];
    let mut server = home.serve(&[]);
    for partition in 1..=16u8 {
        let mut connection = home.connect(&server, Role::Client, partition);
        let keys: Vec<Vec<u8>> = (0..KEYS / 16).map(|n| format!("key-{partition:02}-{n:08}").into_bytes()).collect();
        for group in keys.chunks(PER_TRANSACTION as usize * 8) {
            let mut requests = Vec::new();
            for transaction in group.chunks(PER_TRANSACTION as usize) {
                requests.push(Request::MSet(transaction.iter().map(|k| (&k[..], &k[..])).collect()));
            }
            pipeline(&mut connection, &requests);
        }
    }
    let (status, _) = server.stop();
    assert!(status.success());
    let Start { server, took, read: clean } = start_and_read(&home, &held, b"key-07-00000042", b"key-07-00000042");
    println!(
        "clean start with {KEYS} keys to the first answered transaction: {:.3} s, {} KiB read",
        took.as_secs_f64(),
        clean >> 10
    );

    // 256 MiB of log in 280,000 records of 960 bytes and a key.
    let value = vec![b'v'; 960];
    let records = 280_000u32;
    for partition in 1..=16u8 {
        let mut connection = home.connect(&server, Role::Client, partition);
        let keys: Vec<Vec<u8>> = (0..records / 16).map(|n| format!("replayed-{n:08}").into_bytes()).collect();
        for group in keys.chunks(1000) {
            let requests: Vec<Request<'_>> = group.iter().map(|key| Request::Set { key, value: &value }).collect();
            pipeline(&mut connection, &requests);
        }
    }
    let mut admin = home.connect(&server, Role::Admin, 1);
    let mut log = 0;
    for partition in 1..=16u8 {
        admin.select(partition).expect("selected");
        log += figure(&admin.stat().expect("stat answers"), "wal_not_checkpointed_bytes");
    }
    assert!(log >= 256 << 20, "only {} MiB of log wait to be replayed", log >> 20);
    let mut server = server;
    server.kill();
    let Start { took, read: dirty, .. } = start_and_read(&home, &held, b"replayed-00000042", &value);
    println!(
        "after kill -9 with {} MiB of log in {records} records not checkpointed: {:.3} s, {} MiB read",
        log >> 20,
        took.as_secs_f64(),
        dirty >> 20
    );
    assert!(clean <= CLEAN, "a clean start read {clean} bytes");
    assert!(dirty <= log + CLEAN, "the start after the kill read {dirty} bytes for {log} of log");
}
