//! Real input: every package of the distribution, spread over all partitions, plus large values; killed and read back.

use std::collections::BTreeMap;
use turnstone_net::client::Connection;
use turnstone_net::tls::Role;
use turnstone_net::wire::Request;
use turnstone_tests::packages::packages;
use turnstone_tests::real::{TestHome, TestServer, figure};
use turnstone_tests::sim::Rng;

const PARTITIONS: usize = 16;
const LARGE: usize = 2000;

fn partition_of(key: &[u8]) -> u8 {
    let sum = key.iter().fold(7u32, |sum, b| sum.wrapping_mul(31).wrapping_add(u32::from(*b)));
    (sum % PARTITIONS as u32) as u8 + 1
}

fn large_key(n: usize) -> Vec<u8> {
    format!("large/{n:05}").into_bytes()
}

/// 4 KiB to 4 MiB, as many small as large in the logarithm; reproducible from its number.
fn large_value(n: usize) -> Vec<u8> {
    let rng = Rng::new(n as u64 + 77);
    let length = (4096.0 * 1024f64.powf(n as f64 / (LARGE - 1) as f64)) as usize;
    let mut value = Vec::with_capacity(length + 8);
    while value.len() < length {
        value.extend_from_slice(&rng.next().to_le_bytes());
    }
    value.truncate(length);
    value
}

/// Begin, sets, commit in one write; all replies must be good.
fn commit(connection: &mut Connection, pairs: &[(&[u8], &[u8])]) {
    let mut expected = 2;
    connection.send(&Request::Begin).expect("sent");
    for (key, value) in pairs {
        connection.send(&Request::Set { key, value }).expect("sent");
        expected += 1;
    }
    connection.send(&Request::Commit).expect("sent");
    connection.flush().expect("sent");
    for _ in 0..expected {
        let reply = connection.receive().expect("a reply");
        connection.check(reply).expect("a good one");
    }
}

fn read_back(home: &TestHome, server: &TestServer, packages: &BTreeMap<Vec<u8>, Vec<u8>>, when: &str) {
    let mut connections: Vec<Connection> =
        (1..=PARTITIONS as u8).map(|p| home.connect(server, Role::Client, p)).collect();
    let mut by_partition: Vec<Vec<&[u8]>> = vec![Vec::new(); PARTITIONS];
    for key in packages.keys() {
        by_partition[usize::from(partition_of(key)) - 1].push(key);
    }
    for (connection, keys) in connections.iter_mut().zip(by_partition) {
        for group in keys.chunks(200) {
            let values = connection.mget(group).expect("they can be read");
            for (key, value) in group.iter().zip(values) {
                assert_eq!(value.as_ref(), packages.get(*key), "{when}: {}", key.escape_ascii());
            }
        }
    }
    for n in 0..LARGE {
        let found = connections[n % PARTITIONS].get(&large_key(n)).expect("it can be read");
        assert!(found.as_deref() == Some(&large_value(n)[..]), "{when}: large value {n}");
    }
    println!("{when}: {} records and {LARGE} large values read back byte for byte", packages.len());
}

#[test]
fn sixty_thousand_packages_and_large_values_survive_kills() {
    let packages = packages();
    assert!(packages.len() >= 60_000, "only {} packages", packages.len());
    let home = TestHome::new("packages");
    let mut server = home.serve(&[]);
    {
        let mut connections: Vec<Connection> =
            (1..=PARTITIONS as u8).map(|p| home.connect(&server, Role::Client, p)).collect();
        let mut waiting: Vec<Vec<(&[u8], &[u8])>> = vec![Vec::new(); PARTITIONS];
        for (key, value) in &packages {
            let at = usize::from(partition_of(key)) - 1;
            waiting[at].push((key, value));
            if waiting[at].len() == 100 {
                commit(&mut connections[at], &std::mem::take(&mut waiting[at]));
            }
        }
        for n in 0..LARGE {
            let value = large_value(n);
            commit(&mut connections[n % PARTITIONS], &[(&large_key(n), &value)]);
        }
        for (at, rest) in waiting.iter().enumerate() {
            commit(&mut connections[at], rest);
        }
    }
    server.kill();
    let mut server = home.serve(&[]);
    read_back(&home, &server, &packages, "killed right after the last acknowledgement");

    // Killed again while checkpoints run on every partition.
    let admins: Vec<_> = (1..=PARTITIONS as u8)
        .map(|p| {
            let mut admin = home.connect(&server, Role::Admin, p);
            admin.set(b"/between/", b"restarts").expect("it is set");
            admin.send(&Request::Checkpoint).expect("sent");
            admin.flush().expect("sent");
            admin
        })
        .collect();
    let mut watcher = home.connect(&server, Role::Admin, 1);
    while figure(&watcher.stat().expect("stat answers"), "checkpoints") == 0 {}
    server.kill();
    drop(admins);
    let mut server = home.serve(&[]);
    read_back(&home, &server, &packages, "killed during checkpoints");
    let (status, _) = server.stop();
    assert!(status.success());
    let server = home.serve(&[]);
    read_back(&home, &server, &packages, "stopped in order");
}
