//! Three nodes, commits that followers must hold, a leader that is lost, one that is promoted, and the old one's return: the
//! walk-through of `docs/replication.md`, with its commands.

use std::time::Duration;
use turnstone_net::client::{ClientError, Connection};
use turnstone_net::tls::Role;
use turnstone_net::wire::{ErrorCode, Request};
use turnstone_tests::real::{self, TestHome, TestServer};

const PATIENCE: Duration = Duration::from_secs(30);
const FLAGS: [&str; 4] = ["--executors", "1", "--quorum-timeout", "1s"];

fn eventually(what: &str, done: impl FnMut() -> bool) {
    real::eventually(PATIENCE, what, done);
}

struct Cluster {
    homes: Vec<TestHome>,
    servers: Vec<TestServer>,
}

impl Cluster {
    /// Nodes whose partitions 1 follow the first one's.
    fn new(label: &str, nodes: usize) -> Cluster {
        let mut homes = vec![TestHome::new(&format!("{label}-0"))];
        for n in 1..nodes {
            homes.push(TestHome::beside(&homes[0], &format!("{label}-{n}")));
        }
        let servers = homes.iter().map(|home| home.serve(&FLAGS)).collect();
        let cluster = Cluster { homes, servers };
        for n in 1..nodes {
            let leader = format!("localhost:{}", cluster.servers[0].port);
            let said = cluster.cli(n, &["replicaof", &leader, "1"]);
            assert_eq!(said, format!("Replication started from {leader}/1\n"));
        }
        cluster
    }

    fn at(&self, node: usize) -> Connection {
        self.homes[node].connect(&self.servers[node], Role::Admin, 1)
    }

    /// What the command line prints, errors included.
    fn cli(&self, node: usize, words: &[&str]) -> String {
        self.homes[node].order(&self.servers[node], 1, words)
    }

    fn restart(&mut self, node: usize) {
        let port = self.servers[node].port;
        self.servers[node] = self.homes[node].serve_on(port, &FLAGS);
    }

    fn role(&self, node: usize) -> String {
        self.cli(node, &["role"])
    }

    /// Waits until all have the same digest at the same position.
    fn agree(&self, nodes: &[usize]) {
        eventually("all have the same contents", || {
            let digests: Vec<String> = nodes.iter().map(|n| self.cli(*n, &["digest"])).collect();
            !digests[0].contains("ERR") && digests.iter().all(|digest| *digest == digests[0])
        });
    }
}

fn code<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> Option<ErrorCode> {
    match answer {
        Err(ClientError::Server { code, .. }) => code,
        other => panic!("it was not refused: {other:?}"),
    }
}

fn key(n: u32) -> Vec<u8> {
    format!("key {n}").into_bytes()
}

#[test]
fn a_lost_leader_is_replaced_and_comes_back_as_a_follower() {
    let mut cluster = Cluster::new("failover", 3);
    eventually("both followers are members", || cluster.cli(0, &["replicas"]).matches(" member, ").count() == 3);
    assert_eq!(cluster.cli(0, &["min_replicas", "1"]), "OK\n");
    let mut leader = cluster.at(0);
    for n in 0..100 {
        leader.set(&key(n), b"first").expect("one of two followers holds it");
    }
    // One follower less is no matter, two are.
    cluster.servers[2].kill();
    for n in 100..200 {
        leader.set(&key(n), b"second").expect("the other follower holds it");
    }
    cluster.servers[1].kill();
    eventually("the leader misses its followers", || {
        matches!(leader.set(b"lost", b"?"), Err(ClientError::Server { code: Some(ErrorCode::NoQuorum), .. }))
    });
    assert_eq!(leader.get(&key(7)).expect("reads go on").as_deref(), Some(&b"first"[..]));
    cluster.restart(1);
    eventually("the follower is back", || leader.set(&key(200), b"third").is_ok());
    drop(leader);
    // The leader is lost. Two of three must agree to another: this one alone is not enough.
    cluster.servers[0].kill();
    let refused = cluster.cli(1, &["promote"]);
    assert!(refused.contains("NOQUORUM") && refused.contains("1 members agree"), "{refused}");
    assert_eq!(code(cluster.at(1).set(b"x", b"y")), Some(ErrorCode::NotLeader));
    cluster.restart(2);
    eventually("the two agree", || cluster.cli(2, &["promote"]) == "OK\n");
    let mut leader = cluster.at(2);
    for n in 0..=200 {
        assert!(leader.get(&key(n)).expect("read").is_some(), "key {n} was acknowledged");
    }
    for n in 201..300 {
        leader.set(&key(n), b"fourth").expect("the other one follows the new leader by itself");
    }
    let role = cluster.role(1);
    assert!(role.starts_with("follower of ") && role.contains(&cluster.servers[2].port.to_string()), "{role}");
    // The old leader comes back, and finds that it is none.
    cluster.restart(0);
    eventually("the old leader follows", || {
        let role = cluster.role(0);
        role.starts_with("follower of ") && role.contains(&cluster.servers[2].port.to_string())
    });
    leader.set(b"last", b"one").expect("set");
    cluster.agree(&[0, 1, 2]);
    // A leader that only was restarted leads again, once its followers agree.
    drop(leader);
    cluster.servers[2].kill();
    cluster.restart(2);
    let mut leader = cluster.at(2);
    eventually("it leads again", || leader.set(b"again", b"1").is_ok());
    cluster.agree(&[0, 1, 2]);
    // What was committed at the leader is read at a follower that waits for it.
    let position = cluster.cli(2, &["--verbose", "set", "waited", "for"]);
    let position = position.trim().rsplit(' ').next().expect("a position").to_string();
    assert!(cluster.cli(0, &["wait", &position, "10"]).starts_with("OK"), "{position}");
    assert_eq!(cluster.at(0).get(b"waited").expect("read").as_deref(), Some(&b"for"[..]));
    let far = position.rsplit_once(':').map(|(start, _)| format!("{start}:999999")).expect("a position");
    let late = cluster.cli(0, &["wait", &far, "1"]);
    assert!(late.contains("NOTYET"), "{late}");
}

#[test]
fn what_was_shown_is_only_cut_by_force_and_kept_aside() {
    let mut cluster = Cluster::new("aside", 2);
    let mut old = cluster.at(0);
    old.set(b"shared", b"1").expect("set");
    eventually("it is there", || cluster.at(1).get(b"shared").expect("read").is_some());
    // Nobody else must hold a commit: whoever is promoted may lack some.
    cluster.servers[1].kill();
    old.set(b"only here", b"2").expect("set");
    old.set(b"large", &[7; 9000]).expect("set");
    drop(old);
    cluster.servers[0].kill();
    cluster.restart(1);
    assert_eq!(cluster.cli(1, &["promote"]), "OK\n");
    cluster.at(1).set(b"other", b"3").expect("set");
    cluster.restart(0);
    let leader = format!("localhost:{}", cluster.servers[1].port);
    let refused = cluster.cli(0, &["replicaof", &leader, "1"]);
    assert!(refused.contains("DIVERGED") && refused.contains("force"), "{refused}");
    assert!(cluster.at(0).get(b"only here").expect("read").is_some(), "nothing was changed");
    let forced = cluster.cli(0, &["replicaof", &leader, "1", "force"]);
    assert_eq!(forced, format!("Replication started from {leader}/1\n"));
    cluster.agree(&[0, 1]);
    assert_eq!(cluster.at(0).get(b"only here").expect("read"), None);
    let directory = cluster.homes[0].path().join("data/1");
    let names = std::fs::read_dir(&directory).expect("it is there").map(|entry| entry.expect("read").path());
    let cut: Vec<_> = names.filter(|path| path.extension().is_some_and(|e| e == "txt")).collect();
    let text = std::fs::read_to_string(cut.first().expect("what was cut is kept")).expect("text");
    assert!(text.contains("set \"only here\" \"2\"") && text.contains("\\x07\\x07"), "{text}");
}

#[test]
fn commits_under_a_quorum_wait_and_say_when_nobody_knows() {
    let mut cluster = Cluster::new("unknown", 2);
    eventually("the follower is a member", || cluster.cli(0, &["replicas"]).matches(" member, ").count() == 2);
    assert_eq!(cluster.cli(0, &["min_replicas", "1"]), "OK\n");
    let mut leader = cluster.at(0);
    leader.set(b"a", b"1").expect("set");
    // The follower hangs: what is sent to it now is not confirmed.
    cluster.servers[1].pause();
    let unknown = leader.set(b"b", b"2");
    assert_eq!(code(unknown), Some(ErrorCode::UnknownOutcome));
    let mut other = cluster.at(0);
    assert_eq!(other.get(b"b").expect("read"), None, "nobody reads what may vanish");
    assert_eq!(leader.get(b"b").expect("read"), None);
    assert_eq!(code(leader.set(b"c", b"3")), Some(ErrorCode::UnknownOutcome));
    leader.begin().expect("begun");
    leader.get(b"b").expect("read");
    leader.set(b"b", b"4").expect("set");
    assert_eq!(code(leader.commit()), Some(ErrorCode::NoQuorum), "its key has a version that nobody knows about");
    cluster.servers[1].go_on();
    eventually("it was committed after all", || other.get(b"b").expect("read").as_deref() == Some(&b"2"[..]));
    eventually("commits go on", || leader.set(b"d", b"5").is_ok());
    // A FlushDB waits, too, and shows nothing before.
    cluster.servers[1].pause();
    let flushed = leader.call(&Request::FlushDb).and_then(|reply| leader.check(reply).map(drop));
    assert_eq!(code(flushed), Some(ErrorCode::UnknownOutcome));
    assert!(other.get(b"d").expect("read").is_some());
    cluster.servers[1].go_on();
    eventually("it is carried out", || other.get(b"d").expect("read").is_none());
    eventually("commits go on", || leader.set(b"e", b"6").is_ok());
    cluster.agree(&[0, 1]);
    for server in &mut cluster.servers {
        let (status, took) = server.stop();
        assert!(status.success() && took < Duration::from_secs(5), "{status}, {took:?}");
    }
}
