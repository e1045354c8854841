//! Copies between real nodes: for who is beyond the leader's log, through crashes and broken connections, and in the place
//! of another history.

use std::time::{Duration, Instant};
use turnstone_net::client::Connection;
use turnstone_net::tls::Role;
use turnstone_net::wire::Request;
use turnstone_tests::proxy::Proxy;
use turnstone_tests::real::{self, TestHome, TestServer, figure};

const PATIENCE: Duration = Duration::from_secs(60);
/// Hardly any log is kept, so that whoever was away needs a copy.
const FLAGS: [&str; 14] = [
    "--executors",
    "1",
    "--wal-max-size",
    "64KiB",
    "--wal-retention-bytes",
    "0",
    "--checkpoint-wal-bytes",
    "256KiB",
    "--checkpoint-bytes",
    "128KiB",
    "--checkpoint-interval",
    "100ms",
    "--copy-rate",
    "2MiB",
];

fn eventually(what: &str, done: impl FnMut() -> bool) {
    real::eventually(PATIENCE, what, done);
}

/// Overwrites, deletes and large values among many keys.
fn load(connection: &mut Connection, keys: u32, round: u32) {
    let numbers: Vec<u32> = (0..keys).collect();
    for group in numbers.chunks(500) {
        for n in group {
            let key = format!("key {n:06}").into_bytes();
            let length = if n % 97 == 0 { 9000 } else { 200 };
            let value = vec![(n + round) as u8; length + (n % 50) as usize];
            let request = if n % 13 == round % 13 {
                Request::Del { key: &key }
            } else {
                Request::Set { key: &key, value: &value }
            };
            connection.send(&request).expect("sent");
        }
        connection.flush().expect("sent");
        for _ in group {
            let reply = connection.receive().expect("a reply");
            connection.check(reply).expect("a good one");
        }
    }
}

struct Pair {
    homes: [TestHome; 2],
    servers: [TestServer; 2],
}

impl Pair {
    fn new(label: &str) -> Pair {
        let first = TestHome::new(&format!("{label}-leader"));
        let second = TestHome::beside(&first, &format!("{label}-follower"));
        let servers = [first.serve(&FLAGS), second.serve(&FLAGS)];
        Pair { homes: [first, second], servers }
    }

    fn at(&self, node: usize) -> Connection {
        self.homes[node].connect(&self.servers[node], Role::Admin, 1)
    }

    fn cli(&self, node: usize, words: &[&str]) -> String {
        self.homes[node].order(&self.servers[node], 1, words)
    }

    fn restart(&mut self, node: usize) {
        let port = self.servers[node].port;
        self.servers[node] = self.homes[node].serve_on(port, &FLAGS);
    }

    /// The leader's log no longer reaches back to `version`.
    fn purged_beyond(&self, version: u64) {
        let mut leader = self.at(0);
        let mut n = 0;
        eventually("old log goes", || {
            n += 1;
            leader.set(b"tick", format!("{n}").as_bytes()).expect("set");
            figure(&leader.stat().expect("stat"), "wal_oldest_version") > version
        });
    }

    fn agree(&self) {
        let mut digests = [String::new(), String::new()];
        let started = Instant::now();
        while digests[0].is_empty() || digests[0].contains("ERR") || digests[0] != digests[1] {
            assert!(started.elapsed() < PATIENCE, "they do not come to the same: {digests:?}, {:?}", self.at(1).stat());
            digests = [self.cli(0, &["digest"]), self.cli(1, &["digest"])];
        }
    }

    fn copying(&self) -> bool {
        // It answers nothing while it is opened anew.
        self.at(1).stat().is_ok_and(|stat| stat.contains("copying, "))
    }
}

#[test]
fn who_is_beyond_the_log_gets_a_copy_by_itself_through_crashes_of_either_side() {
    let mut pair = Pair::new("copies");
    let mut leader = pair.at(0);
    load(&mut leader, 20_000, 0);
    load(&mut leader, 20_000, 1);
    pair.purged_beyond(20_000);
    let address = format!("localhost:{}", pair.servers[0].port);
    let said = pair.cli(1, &["replicaof", &address, "1"]);
    assert_eq!(said, format!("Replication started from {address}/1\n"));
    // The copy takes seconds at this rate: each side is killed in the middle of one, the leader with writes under way.
    eventually("a copy is under way", || pair.copying());
    pair.servers[1].kill();
    pair.restart(1);
    eventually("another copy is under way", || pair.copying());
    load(&mut leader, 3000, 2);
    drop(leader);
    pair.servers[0].kill();
    pair.restart(0);
    let mut leader = pair.at(0);
    eventually("yet another copy is under way", || pair.copying());
    load(&mut leader, 3000, 3);
    pair.agree();
    // From here on the log serves.
    leader.set(b"after", b"the copy").expect("set");
    eventually("the stream goes on", || {
        pair.at(1).get(b"after").is_ok_and(|value| value.as_deref() == Some(&b"the copy"[..]))
    });
    // Away for too long: a copy again, over what is there; nothing is shown of it before it is whole.
    let seen = figure(&leader.stat().expect("stat"), "version");
    pair.servers[1].stop();
    load(&mut leader, 20_000, 4);
    pair.purged_beyond(seen + 1);
    pair.restart(1);
    eventually("a last copy is under way", || pair.copying());
    assert_eq!(
        pair.at(1).get(b"after").expect("read").as_deref(),
        Some(&b"the copy"[..]),
        "the old contents are shown"
    );
    pair.agree();
    pair.servers[1].kill();
    pair.restart(1);
    pair.agree();
    assert!(pair.servers[0].log().join("\n").contains("gets a copy at version"));
}

#[test]
fn another_history_is_replaced_by_force_only_and_kept_aside() {
    let mut pair = Pair::new("replaced");
    load(&mut pair.at(0), 5000, 0);
    let mut other = pair.at(1);
    other.set(b"mine", b"only \"here\"").expect("set");
    load(&mut other, 300, 5);
    other.set(b"last", b"of mine").expect("set");
    pair.cli(1, &["checkpoint"]);
    eventually("it is settled", || {
        let stat = other.stat().expect("stat");
        figure(&stat, "keys_as_of_version") == figure(&stat, "version")
    });
    let address = format!("localhost:{}", pair.servers[0].port);
    let refused = pair.cli(1, &["replicaof", &address, "1"]);
    assert!(refused.contains("DIVERGED") && refused.contains("force"), "{refused}");
    assert_eq!(other.get(b"last").expect("read").as_deref(), Some(&b"of mine"[..]), "nothing was changed");
    drop(other);
    let said = pair.cli(1, &["replicaof", &address, "1", "force"]);
    assert_eq!(said, format!("Replication started from {address}/1\n"));
    pair.agree();
    assert_eq!(pair.at(1).get(b"last").expect("read"), None);
    let kept = std::fs::read_dir(pair.homes[1].path().join("data/1")).expect("the partition's directory");
    let kept: Vec<_> = kept.map(|entry| entry.expect("an entry").path()).collect();
    let text: String = kept
        .iter()
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("cut-")))
        .map(|path| std::fs::read_to_string(path).expect("text"))
        .collect();
    assert!(text.contains("set \"last\" \"of mine\""), "{kept:?}: {}", &text[..text.len().min(400)]);
    pair.servers[1].kill();
    pair.restart(1);
    let role = pair.cli(1, &["role"]);
    assert!(role.starts_with("follower of "), "{role}");
    pair.agree();
}

#[test]
fn a_copy_goes_on_where_it_broke_off() {
    let mut pair = Pair::new("resumed");
    let mut leader = pair.at(0);
    load(&mut leader, 40_000, 0);
    pair.purged_beyond(39_000);
    let proxy = Proxy::to(pair.servers[0].port);
    let said = pair.cli(1, &["replicaof", &format!("localhost:{}", proxy.port), "1"]);
    assert!(said.starts_with("Replication started"), "{said}");
    for piece in 1..=3 {
        let before = proxy.forwarded();
        eventually("some of the copy comes", || proxy.forwarded() > before + (2 << 20));
        assert!(pair.copying(), "the copy is whole before piece {piece}");
        proxy.break_all();
    }
    pair.agree();
    let log = pair.servers[0].log().join("\n");
    assert_eq!(log.matches("the rest of it").count(), 3, "{log}");
    assert_eq!(log.matches("gets a copy at version").count(), 4, "{log}");
    let forwarded = proxy.forwarded();
    let stat = leader.stat().expect("stat");
    let live = figure(&stat, "value_live_bytes");
    assert!(forwarded < live * 2, "{forwarded} bytes were sent for {live}");
}
