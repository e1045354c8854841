//! A leader that is lost with commits that no follower has, and what those who had read them come to.

use super::{PATIENCE, Replay, State, configure};
use crate::real::{TestHome, TestServer, eventually};
use serde_json::json;
use turnstone_net::client::Connection;
use turnstone_net::tls::Role;

const ONE: &[&str] = &["--executors", "1"];

fn key(n: u32) -> Vec<u8> {
    format!("key {n}").into_bytes()
}

/// What is there when it is over.
pub struct Promoted {
    /// The lost leader's home, whose consumers now read from the new leader.
    pub home: TestHome,
    /// The new leader's.
    pub leader_home: TestHome,
    /// The new leader.
    pub leader: TestServer,
    /// The last version that both histories have.
    pub common: u64,
    /// The newest version of the new one.
    pub newest: u64,
}

/// Loses a leader. `read` is called with its home, itself, and the last version that will be lost: those who read changes read up
/// to there, and stop.
pub fn lose(label: &str, read: impl FnOnce(&TestHome, &TestServer, u64)) -> Promoted {
    let home = TestHome::new(&format!("{label}-a"));
    let leader_home = TestHome::beside(&home, &format!("{label}-b"));
    let (mut lost_leader, mut follower) = (home.serve(ONE), leader_home.serve(ONE));
    let said = leader_home.order(&follower, 1, &["replicaof", &lost_leader.address, "1"]);
    assert!(said.starts_with("Replication started"), "{said}");
    let mut at = home.connect(&lost_leader, Role::Client, 1);
    for n in 0..50 {
        at.set(&key(n), b"both have it").unwrap();
    }
    let last = at.set(b"last", b"both have it").unwrap().unwrap();
    let order = ["wait", &format!("1:{}:{}", last.epoch, last.version), "10"];
    eventually(PATIENCE, "the follower has it", || leader_home.order(&follower, 1, &order).contains("OK"));
    // The follower is gone: what comes now it will not have.
    follower.kill();
    for n in 0..20 {
        at.set(&key(n), b"lost").unwrap();
    }
    let lost = at.del(b"last").unwrap().unwrap();
    read(&home, &lost_leader, lost.version);
    lost_leader.kill();
    let leader = leader_home.serve(ONE);
    eventually(PATIENCE, "the follower leads", || {
        leader_home.order(&leader, 1, &["promote", "force"]);
        leader_home.order(&leader, 1, &["role"]).starts_with("leader,")
    });
    let mut at = leader_home.connect(&leader, Role::Client, 1);
    for n in 40..60 {
        at.set(&key(n), b"new history").unwrap();
    }
    let newest = at.set(b"newest", b"1").unwrap().unwrap().version;
    configure(&home, &[("host", json!(leader.address))]);
    Promoted { home, leader_home, leader, common: last.version, newest }
}

impl Promoted {
    /// Whether files have what was lost taken back, and everything that came in its place.
    pub fn is_in(&self, replayed: &Replay) -> bool {
        replayed.retractions == [self.common] && replayed.last == self.newest
    }

    /// What the new leader has.
    pub fn contents(&self) -> std::collections::BTreeMap<Vec<u8>, Vec<u8>> {
        let mut at: Connection = self.leader_home.connect(&self.leader, Role::Client, 1);
        let keys = (0..60).map(key).chain([b"last".to_vec(), b"newest".to_vec()]);
        keys.filter_map(|key| at.get(&key).expect("it can be read").map(|value| (key, value))).collect()
    }

    /// Fails unless this is what the new leader has.
    pub fn check(&self, state: &State) {
        let values = |state: &State| state.iter().map(|(key, (_, value))| (key.clone(), value.clone())).collect();
        let state: std::collections::BTreeMap<_, _> = values(state);
        assert_eq!(state, self.contents());
    }
}
