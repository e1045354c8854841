//! Two nodes and a partition that follows: the example as written, restarts of either side, and what is refused.

use std::time::Duration;
use turnstone_net::client::{ClientError, Connection};
use turnstone_net::tls::{Authority, Role, follower_config};
use turnstone_net::wire::{ErrorCode, Request};
use turnstone_tests::real::{self, TestHome, TestServer, figure};

const PATIENCE: Duration = Duration::from_secs(30);

fn eventually(what: &str, done: impl FnMut() -> bool) {
    real::eventually(PATIENCE, what, done);
}

fn version(connection: &mut Connection) -> u64 {
    figure(&connection.stat().expect("stat"), "version")
}

fn replica_of(connection: &mut Connection, port: u16, partition: &str) -> Result<(), ClientError> {
    let address = format!("localhost:{port}");
    let request = Request::ReplicaOf { address: address.as_bytes(), partition: partition.as_bytes() };
    let reply = connection.call(&request)?;
    connection.check(reply).map(drop)
}

fn run(connection: &mut Connection, request: &Request<'_>) -> Result<Vec<u8>, ClientError> {
    let reply = connection.call(request)?;
    connection.check(reply).map(|reply| reply.body)
}

/// The whole log as text: positions, times, operations.
fn log_of(connection: &mut Connection) -> Vec<u8> {
    let last = version(connection);
    let (mut text, mut next) = (Vec::new(), 1);
    while next <= last {
        let page = run(connection, &Request::ReadLog { version: next, limit_bytes: 1 << 20 }).expect("the log is read");
        let head = String::from_utf8_lossy(&page).into_owned();
        let after = head.lines().rev().find_map(|line| line.split_once("next ")).map(|(_, n)| n.trim().to_string());
        text.extend_from_slice(&page);
        next = after.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("a page says where to go on: {head}"));
    }
    text
}

fn code<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> Option<ErrorCode> {
    match answer {
        Err(ClientError::Server { code, .. }) => code,
        other => panic!("it was not refused: {other:?}"),
    }
}

struct Pair {
    homes: [TestHome; 2],
    leader: TestServer,
    follower: TestServer,
}

impl Pair {
    /// Different numbers of executors: partitions lie on different cores of the two.
    fn new(label: &str) -> Pair {
        let first = TestHome::new(&format!("{label}-leader"));
        let second = TestHome::beside(&first, &format!("{label}-follower"));
        let leader = first.serve(&["--executors", "2"]);
        let follower = second.serve(&["--executors", "3"]);
        Pair { homes: [first, second], leader, follower }
    }
    fn at_leader(&self, partition: u8) -> Connection {
        self.homes[0].connect(&self.leader, Role::Admin, partition)
    }
    fn at_follower(&self, partition: u8) -> Connection {
        self.homes[1].connect(&self.follower, Role::Admin, partition)
    }
    fn caught_up(&self, partition: u8) {
        let wanted = version(&mut self.at_leader(partition));
        let mut follower = self.at_follower(partition);
        eventually("the follower catches up", || version(&mut follower) >= wanted);
    }
}

#[test]
fn the_example_works_and_prints_as_written() {
    let pair = Pair::new("example");
    let mut leader = pair.at_leader(1);
    leader.set(b"before", b"1").expect("set");
    let address = format!("localhost:{}", pair.leader.port);
    let words = ["--admin", "--partition", "1", "replicaof", &address, "1"];
    let output = pair.homes[1].cli(&pair.follower, &words);
    let expected = format!("Replication started from localhost:{}/1\n", pair.leader.port);
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{output:?}");
    leader.set(b"after", b"2").expect("set");
    pair.caught_up(1);
    let mut reader = pair.homes[1].connect(&pair.follower, Role::Client, 1);
    assert_eq!(reader.get(b"before").expect("read").as_deref(), Some(&b"1"[..]));
    assert_eq!(reader.get(b"after").expect("read").as_deref(), Some(&b"2"[..]));
    match reader.set(b"here", b"no") {
        Err(ClientError::Server { code: Some(ErrorCode::NotLeader), text, .. }) => {
            assert!(text.contains(&format!("localhost:{}", pair.leader.port)), "it names the leader: {text}");
        }
        other => panic!("a follower took a write: {other:?}"),
    }
    let stat = leader.stat().expect("stat");
    assert!(stat.contains("\"replicas\":[{\"node\":"), "{stat}");
    eventually("the leader learns what is durable there", || {
        let stat = leader.stat().expect("stat");
        stat.contains("\"durable\":3,\"lag\":0")
    });
    assert_eq!(code(run(&mut pair.at_follower(1), &Request::FlushDb)), Some(ErrorCode::NotLeader));
}

#[test]
fn everything_arrives_whole_through_restarts_of_either_side() {
    let mut pair = Pair::new("restarts");
    let large = |n: u32| vec![n as u8; 5000 + n as usize];
    let write = |pair: &Pair, from: u32, to: u32| {
        let mut leader = pair.at_leader(3);
        for n in from..to {
            let (key, other) = (format!("key {}", n % 97), format!("pair {}", n % 53));
            leader.begin().expect("begun");
            leader.set(key.as_bytes(), &n.to_le_bytes()).expect("set");
            if n % 7 == 0 {
                leader.set(other.as_bytes(), &large(n)).expect("set");
            } else {
                leader.del(other.as_bytes()).expect("deleted");
            }
            leader.commit().expect("committed");
        }
    };
    write(&pair, 0, 300);
    // The leader's partition 3 is partition 5 here: other numbers, other cores.
    replica_of(&mut pair.at_follower(5), pair.leader.port, "3").expect("it follows");
    write(&pair, 300, 400);
    run(&mut pair.at_leader(3), &Request::FlushDb).expect("flushed");
    write(&pair, 400, 500);
    pair.follower.kill();
    write(&pair, 500, 600);
    pair.follower = pair.homes[1].serve_on(pair.follower.port, &["--executors", "1"]);
    write(&pair, 600, 650);
    pair.leader.kill();
    pair.leader = pair.homes[0].serve_on(pair.leader.port, &["--executors", "1"]);
    write(&pair, 650, 700);
    let mut follower = pair.at_follower(5);
    let mut leader = pair.at_leader(3);
    let wanted = version(&mut leader);
    assert_eq!(wanted, 702, "700 transactions, a flush, and a new member");
    eventually("the follower catches up", || version(&mut follower) >= wanted);
    run(&mut follower, &Request::Checkpoint).expect("settled");
    for n in 0..97 {
        let key = format!("key {n}");
        let (there, here) = (leader.get(key.as_bytes()), follower.get(key.as_bytes()));
        assert_eq!(there.expect("read"), here.expect("read"), "{key}");
    }
    for n in 0..53 {
        let key = format!("pair {n}");
        let (there, here) = (leader.get(key.as_bytes()), follower.get(key.as_bytes()));
        assert_eq!(there.expect("read"), here.expect("read"), "{key}");
    }
    let stat = follower.stat().expect("stat");
    assert!(stat.contains("\"epoch\":2"), "the leader's second reign is known: {stat}");
    drop((follower, leader));
    // A stream holds up nobody's end, whichever side goes first.
    for server in [&mut pair.leader, &mut pair.follower] {
        let (status, took) = server.stop();
        assert!(status.success() && took < Duration::from_secs(3), "{status}, {took:?}");
    }
}

#[test]
fn a_log_is_the_same_on_both_nodes_byte_for_byte() {
    let pair = Pair::new("same");
    replica_of(&mut pair.at_follower(2), pair.leader.port, "2").expect("it follows");
    let writers: Vec<_> = (0..4u32)
        .map(|writer| {
            let settings =
                pair.homes[0].client(&pair.leader, Role::Client, turnstone_net::tls::ClientOffer::TURNSTONE2);
            std::thread::spawn(move || {
                let mut connection = Connection::connect(&settings).expect("it connects");
                connection.select(2).expect("selected");
                for n in 0..500u32 {
                    connection.set(&(writer * 1000 + n % 100).to_le_bytes(), &n.to_le_bytes()).expect("set");
                }
            })
        })
        .collect();
    writers.into_iter().for_each(|writer| writer.join().expect("it wrote"));
    pair.caught_up(2);
    let (there, here) = (log_of(&mut pair.at_leader(2)), log_of(&mut pair.at_follower(2)));
    assert!(there.len() > 2000 && there == here, "{} and {} bytes", there.len(), here.len());
}

#[test]
fn what_parts_is_refused_and_a_role_is_kept() {
    let mut pair = Pair::new("parts");
    pair.at_leader(1).set(b"a", b"1").expect("set");
    let mut follower = pair.at_follower(1);
    let port = pair.leader.port;
    replica_of(&mut follower, port, "1").expect("it follows");
    pair.caught_up(1);
    // Its own writes, in a reign of its own, are no prefix of anything. Before it holds the list of the members, which the leader
    // writes when it comes, it would lead by force only.
    let mut promote = || run(&mut follower, &Request::Promote { min_replicas: 0 });
    eventually("the follower holds the list of the members", || match promote() {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.code(), Some(ErrorCode::NoQuorum), "{error}");
            false
        }
    });
    follower.set(b"b", b"here").expect("a leader takes writes");
    let refused = replica_of(&mut follower, port, "1");
    assert_eq!(code(refused), Some(ErrorCode::Diverged));
    follower.set(b"c", b"here").expect("it leads as before");
    // Itself, nobody, a partition that is not there.
    assert_eq!(code(replica_of(&mut follower, pair.follower.port, "1")), Some(ErrorCode::Unsupported));
    assert_eq!(code(replica_of(&mut follower, turnstone_tests::real::free_port(), "1")), Some(ErrorCode::Unreachable));
    assert_eq!(code(replica_of(&mut follower, port, "17")), Some(ErrorCode::NoSuchPartition));
    // A chain: the other node's partition 4 follows this one's 1, on the same machine pair.
    let mut chained = pair.at_leader(4);
    replica_of(&mut chained, pair.follower.port, "1").expect("it follows");
    eventually("the chain ends", || chained.get(b"c").expect("read").is_some());
    // Following nobody leaves it stepped down, also after a restart, until it is promoted.
    run(&mut chained, &Request::ReplicaOf { address: b"", partition: b"" }).expect("it follows nobody");
    assert_eq!(code(chained.set(b"d", b"1")), Some(ErrorCode::NotLeader));
    drop(chained);
    pair.leader.kill();
    pair.leader = pair.homes[0].serve_on(port, &[]);
    let mut chained = pair.at_leader(4);
    assert_eq!(code(chained.set(b"d", b"1")), Some(ErrorCode::NotLeader));
    run(&mut chained, &Request::Promote { min_replicas: 0 }).expect("promoted");
    chained.set(b"d", b"1").expect("it leads");
}

#[test]
fn only_a_servers_certificate_replicates() {
    use std::io::{Read, Write};
    let mut pair = Pair::new("roles");
    for (role, allowed) in [(Role::Client, false), (Role::Cdc, false), (Role::Admin, false), (Role::Server, true)] {
        let config = follower_config(&pair.homes[0].files(role), 1).expect("it is made");
        let name = "localhost".try_into().expect("a name");
        let socket = std::net::TcpStream::connect(("127.0.0.1", pair.leader.port)).expect("it connects");
        socket.set_read_timeout(Some(PATIENCE)).expect("set");
        let tls = rustls::ClientConnection::new(config, name).expect("made");
        let mut stream = rustls::StreamOwned::new(tls, socket);
        let hello = turnstone_replication::wire::Hello {
            version: turnstone_replication::wire::PROTOCOL,
            node: 1,
            own: 1,
            partition: 1,
            last: 0,
            adopted: turnstone_engine::types::Epoch::default(),
            epochs: Vec::new(),
            address: ":1".to_string(),
            dialed: "localhost:1".to_string(),
            life: 1,
            ordered: turnstone_replication::wire::Ordered::No,
            wish: turnstone_replication::wire::Wish::Log,
            resume: None,
            sum: None,
        };
        let mut bytes = Vec::new();
        turnstone_replication::wire::Frame::Hello(hello).encode(&mut bytes);
        let mut answer = [0; 1];
        let answered = stream.write_all(&bytes).and_then(|()| stream.read_exact(&mut answer)).is_ok();
        assert_eq!(answered, allowed, "{role}");
    }
    let log = pair.leader.log().join("\n");
    assert!(log.contains("may not replicate"), "{log}");
}

/// Gives a home the number of another one.
fn take_number(from: &TestHome, to: &TestHome) {
    std::fs::create_dir_all(to.path().join("data")).expect("made");
    std::fs::copy(from.path().join("data/node"), to.path().join("data/node")).expect("copied");
}

#[test]
fn a_nodes_number_belongs_to_its_certificates_name_and_is_used_once() {
    let pair = Pair::new("identity");
    let mut leader = pair.at_leader(1);
    leader.set(b"k", b"v").expect("set");
    replica_of(&mut pair.at_follower(1), pair.leader.port, "1").expect("it follows");
    pair.caught_up(1);
    let port = pair.leader.port;
    let refused = |home: &TestHome, why: &str| {
        let server = home.serve(&["--executors", "1"]);
        match replica_of(&mut home.connect(&server, Role::Admin, 1), port, "1") {
            Err(ClientError::Server { code: Some(ErrorCode::Denied), text, .. }) => {
                assert!(text.contains(why), "{text}")
            }
            other => panic!("it was let in: {other:?}"),
        }
    };
    // A certificate for another host, the same number.
    let thief = TestHome::beside(&pair.homes[0], "identity-thief");
    take_number(&pair.homes[1], &thief);
    let certs = |name: &str| std::fs::read_to_string(pair.homes[0].path().join("certs").join(name)).expect("read");
    let authority = Authority::load(&certs("ca.crt"), &certs("ca.key")).expect("the CA");
    let issued = authority.issue(Role::Server, &["elsewhere.example".to_string()], 30).expect("issued");
    std::fs::write(thief.path().join("certs/server.crt"), issued.cert_pem).expect("written");
    std::fs::write(thief.path().join("certs/server.key"), issued.key_pem).expect("written");
    refused(&thief, "follows already, by another process");
    // Another key under the same name, while the true one is there.
    let other = TestHome::beside(&pair.homes[0], "identity-other");
    take_number(&pair.homes[1], &other);
    refused(&other, "follows already, by another process");
    // The same key and number, in a copy of the home.
    let twin = TestHome::beside(&pair.homes[0], "identity-twin");
    take_number(&pair.homes[1], &twin);
    for name in ["server.crt", "server.key"] {
        let from = pair.homes[1].path().join("certs").join(name);
        std::fs::copy(from, twin.path().join("certs").join(name)).expect("copied");
    }
    refused(&twin, "follows already, by another process");
    // The true one still follows, with a renewed certificate too: its key is another one, its name the same.
    leader.set(b"k", b"w").expect("set");
    pair.caught_up(1);
    let mut pair = pair;
    pair.follower.kill();
    // Also while the true one is away.
    eventually("it is gone", || !pair.homes[0].order(&pair.leader, 1, &["replicas"]).contains("behind"));
    refused(&thief, "another name in its certificate before");
    let issued = authority.issue(Role::Server, &[], 30).expect("issued");
    std::fs::write(pair.homes[1].path().join("certs/server.crt"), issued.cert_pem).expect("written");
    std::fs::write(pair.homes[1].path().join("certs/server.key"), issued.key_pem).expect("written");
    pair.follower = pair.homes[1].serve(&["--executors", "1"]);
    leader.set(b"k", b"x").expect("set");
    pair.caught_up(1);
    eventually("the log says so", || pair.leader.log().iter().any(|line| line.contains("has a new key")));
    // When it is forgotten another one may take its number.
    let number = std::fs::read_to_string(pair.homes[1].path().join("data/node")).expect("a number");
    let order = ["--admin", "--partition", "1", "replicas", "forget", number.trim()];
    pair.follower.kill();
    let output = pair.homes[0].cli(&pair.leader, &order);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "OK\n", "{output:?}");
    let server = thief.serve(&["--executors", "1"]);
    replica_of(&mut thief.connect(&server, Role::Admin, 1), pair.leader.port, "1").expect("it is the one now");
}

#[test]
fn an_order_about_members_waits_for_a_follower_that_is_just_being_made_one() {
    let pair = Pair::new("joining");
    for partition in 1..=8 {
        let number = partition.to_string();
        replica_of(&mut pair.at_follower(partition), pair.leader.port, &number).expect("it follows");
        assert_eq!(pair.homes[0].order(&pair.leader, partition, &["min_replicas", "0"]), "OK\n");
    }
}

/// With `min_replicas` 0 nobody promises it, but whoever plans a stop should need no `force` afterwards.
#[test]
fn an_orderly_stop_hands_over_all_that_was_answered() {
    let mut pair = Pair::new("handover");
    let ports = [pair.leader.port, pair.follower.port];
    replica_of(&mut pair.at_follower(2), ports[0], "2").expect("it follows");
    // Each time the other one leads.
    for round in 0..4 {
        let old = round % 2;
        let (home, server) = (&pair.homes[old], if old == 0 { &pair.leader } else { &pair.follower });
        let answered: Vec<(String, u32)> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4)
                .map(|writer| {
                    let mut connection = home.connect(server, Role::Client, 2);
                    scope.spawn(move || {
                        let key = format!("round {round} writer {writer}");
                        let written =
                            (1..).take_while(|n: &u32| connection.set(key.as_bytes(), &n.to_le_bytes()).is_ok());
                        (key.clone(), written.last().unwrap_or(0))
                    })
                })
                .collect();
            let mut watcher = home.connect(server, Role::Admin, 2);
            let before = version(&mut watcher);
            eventually("they write", || version(&mut watcher) > before + 1000);
            drop(watcher);
            server.ask_to_stop();
            writers.into_iter().map(|writer| writer.join().expect("a writer")).collect()
        });
        let (stopped, other) =
            if old == 0 { (&mut pair.leader, &pair.follower) } else { (&mut pair.follower, &pair.leader) };
        let (status, _) = stopped.wait_for_end();
        assert!(status.success(), "round {round}: {status}");
        let said = pair.homes[1 - old].order(other, 2, &["promote"]);
        assert!(!said.contains("ERR"), "round {round}: {said}");
        let mut reader = pair.homes[1 - old].connect(other, Role::Client, 2);
        for (key, last) in answered {
            let there = reader.get(key.as_bytes()).expect("read").expect("it was written");
            let there = u32::from_le_bytes(there.try_into().expect("four bytes"));
            assert!(there >= last, "round {round}: {key}: {last} was answered, {there} is there");
        }
        *stopped = pair.homes[old].serve_on(ports[old], &["--executors", "1"]);
        replica_of(&mut pair.homes[old].connect(stopped, Role::Admin, 2), ports[1 - old], "2").expect("without force");
    }
}
