//! The server from outside: connections that move or are forwarded, limits, damage, orders to stop.

use std::io::Write;
use std::time::{Duration, Instant};
use turnstone_net::client::{ClientError, Connection};
use turnstone_net::tls::{Authority, ClientOffer, Role};
use turnstone_net::wire::{ErrorCode, Request};
use turnstone_tests::real::{TestHome, TestServer, binary, eventually, figure};

fn code(error: ClientError) -> Option<ErrorCode> {
    error.code()
}

/// Pipelined frames behind `select` keep their order, however often the connection moves or is forwarded.
fn wander(home: &TestHome, server: &TestServer, rounds: u32) {
    let mut connection =
        Connection::connect(&home.client(server, Role::Client, ClientOffer::TURNSTONE2)).expect("connects");
    for round in 0..rounds {
        let mut requests = Vec::new();
        let names: Vec<String> = (1..=16u8).map(|p| (u32::from(p) * (round * 2 + 1) % 16 + 1).to_string()).collect();
        let values: Vec<String> = names.iter().map(|n| format!("round {round} partition {n}")).collect();
        for (name, value) in names.iter().zip(&values) {
            requests.push(Request::Select { name: name.as_bytes() });
            requests.push(Request::Set { key: b"where", value: value.as_bytes() });
            requests.push(Request::Get { key: b"where" });
        }
        let ids: Vec<u32> = requests.iter().map(|r| connection.send(r).expect("sent")).collect();
        connection.flush().expect("sent");
        for (i, id) in ids.into_iter().enumerate() {
            let reply = connection.receive().expect("a reply");
            assert_eq!(reply.id, id, "replies come in the order of their requests");
            let reply = connection.check(reply).expect("a good one");
            if i % 3 == 2 {
                assert_eq!(reply.body, values[i / 3].as_bytes());
            }
        }
    }
}

fn basics(home: &TestHome, server: &TestServer) {
    let mut one = home.connect(server, Role::Client, 1);
    let mut two = home.connect(server, Role::Client, 1);
    one.begin().unwrap();
    two.begin().unwrap();
    assert_eq!(one.get(b"contended").unwrap(), None);
    two.set(b"contended", b"2").unwrap();
    one.set(b"other", b"1").unwrap();
    two.commit().unwrap();
    assert_eq!(code(one.commit().unwrap_err()), Some(ErrorCode::Conflict), "what it read has changed");
    assert_eq!(code(one.commit().unwrap_err()), Some(ErrorCode::TxRequired), "the transaction is gone");
    assert_eq!(one.get(b"contended").unwrap().as_deref(), Some(&b"2"[..]));
    assert_eq!(one.mget(&[b"contended", b"nothing"]).unwrap(), vec![Some(b"2".to_vec()), None]);
    let (count, position) = one.mdel(&[b"contended", b"nothing"]).unwrap();
    assert_eq!(count, 1);
    assert!(position.is_some());
    let long = vec![b'k'; 65_001];
    assert_eq!(code(one.set(&long, b"v").unwrap_err()), Some(ErrorCode::KeyTooLarge));
    assert_eq!(code(one.set(b"k", &vec![0; (4 << 20) + 1]).unwrap_err()), Some(ErrorCode::ValueTooLarge));
    assert_eq!(code(one.set(b"", b"v").unwrap_err()), Some(ErrorCode::KeyEmpty));
    let largest = vec![7; 4 << 20];
    one.set(b"largest", &largest).unwrap();
    assert_eq!(two.get(b"largest").unwrap(), Some(largest));
    assert_eq!(code(one.checkpoint().unwrap_err()), Some(ErrorCode::Denied), "a client may not");
    one.select(0).unwrap();
    assert_eq!(code(one.set(b"k", b"v").unwrap_err()), Some(ErrorCode::ReadOnly));
    assert_eq!(one.get(b"version").unwrap().as_deref(), Some(env!("CARGO_PKG_VERSION").as_bytes()));
    let partitions = one.get(b"partitions").unwrap().expect("it is there");
    let list: serde_json::Value = serde_json::from_slice(&partitions).expect("JSON");
    assert_eq!(list.as_array().map(Vec::len), Some(16));
    assert_eq!(list[0]["role"], "leader");
}

/// A transaction far larger than a log segment, with large and small values.
fn larger_than_a_segment(home: &TestHome, server: &TestServer) {
    let mut connection = home.connect(server, Role::Client, 5);
    let big = vec![b'b'; 3 << 20];
    connection.begin().unwrap();
    for n in 0..8u8 {
        connection.set(&[b'b', n], &big).unwrap();
    }
    for n in 0..8000u32 {
        connection.set(&n.to_be_bytes(), &[7; 3000]).unwrap();
    }
    connection.commit().unwrap();
    assert_eq!(connection.get(&7999u32.to_be_bytes()).unwrap(), Some(vec![7; 3000]));
    assert_eq!(connection.get(&[b'b', 3]).unwrap(), Some(big));
}

#[test]
fn it_serves_the_same_on_1_2_5_and_17_executors() {
    let home = TestHome::new("executors");
    for executors in ["1", "2", "5", "17"] {
        let mut server = home.serve(&["--executors", executors, "--wal-max-size", "1MiB"]);
        basics(&home, &server);
        wander(&home, &server, 6);
        larger_than_a_segment(&home, &server);
        let mut admin = home.connect(&server, Role::Admin, 5);
        admin.checkpoint().unwrap();
        assert!(figure(&admin.stat().unwrap(), "checkpoints") >= 1);
        assert_eq!(admin.get(&7999u32.to_be_bytes()).unwrap(), Some(vec![7; 3000]), "from the index");
        admin.call(&Request::FlushDb).and_then(|r| admin.check(r)).unwrap();
        assert_eq!(admin.get(b"where").unwrap(), None, "flushed");
        assert_eq!(figure(&admin.stat().unwrap(), "keys"), 0);
        let (status, took) = server.stop();
        assert!(status.success(), "executors {executors}: {status}");
        println!("{executors} executors: served, stopped in {took:?}");
    }
}

#[test]
fn stepping_down_refuses_writes_until_promoted_even_across_restarts() {
    let home = TestHome::new("roles");
    let mut server = home.serve(&[]);
    let mut admin = home.connect(&server, Role::Admin, 3);
    let first = admin.set(b"k", b"1").unwrap().expect("a position");
    admin.call(&Request::StepDown).and_then(|r| admin.check(r)).unwrap();
    assert_eq!(code(admin.set(b"k", b"2").unwrap_err()), Some(ErrorCode::NotLeader));
    assert_eq!(admin.get(b"k").unwrap().as_deref(), Some(&b"1"[..]), "reads go on");
    assert!(server.stop().0.success());
    let server = home.serve(&[]);
    let mut admin = home.connect(&server, Role::Admin, 3);
    assert_eq!(code(admin.set(b"k", b"2").unwrap_err()), Some(ErrorCode::NotLeader));
    admin.call(&Request::Promote { min_replicas: 0 }).and_then(|r| admin.check(r)).unwrap();
    let second = admin.set(b"k", b"2").unwrap().expect("a position");
    assert!(second.epoch > first.epoch && second.version > first.version, "{first} then {second}");
    // Nobody is there: it leads as before.
    let following = Request::ReplicaOf { address: b"localhost:1", partition: b"1" };
    let refused = admin.call(&following).and_then(|r| admin.check(r)).unwrap_err();
    assert_eq!(code(refused), Some(ErrorCode::Unreachable));
    admin.set(b"k", b"3").unwrap();
    let nobody = Request::ReplicaOf { address: b"", partition: b"" };
    admin.call(&nobody).and_then(|r| admin.check(r)).unwrap();
}

#[test]
fn one_connection_too_many_is_told_so_and_capacity_comes_back() {
    let home = TestHome::new("max-conns");
    let server = home.serve(&["--max-conns", "2"]);
    let first = home.connect(&server, Role::Client, 1);
    let second = home.connect(&server, Role::Client, 2);
    for offer in [ClientOffer::V1, ClientOffer::TURNSTONE2] {
        let mut third = Connection::connect(&home.client(&server, Role::Client, offer)).expect("the handshake is made");
        let reply = third.call(&Request::Ping).and_then(|r| third.check(r)).unwrap_err();
        assert_eq!(reply.word(), ErrorCode::Busy.name(), "{reply}");
    }
    drop(first);
    let deadline = Instant::now() + Duration::from_secs(5);
    while let Err(error) = home.try_connect(&server, Role::Client, 1) {
        assert!(Instant::now() < deadline, "capacity does not come back: {error}");
    }
    drop(second);
}

#[test]
fn silent_and_slow_peers_meet_their_deadlines() {
    use std::io::Read;
    let home = TestHome::new("deadlines");
    let server = home.serve(&["--handshake-timeout", "300ms", "--idle-timeout", "600ms"]);
    let mut silent = std::net::TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    silent.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(silent.read(&mut [0; 16]).unwrap_or(0), 0, "closed without a word");
    let mut noise = std::net::TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    noise.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    noise.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = noise.read_to_end(&mut answer);
    assert!(answer.len() < 32, "an alert at most");
    let mut idle = home.connect(&server, Role::Client, 1);
    assert_eq!(idle.raw_read(&mut [0; 16]).unwrap_or(0), 0, "an idle connection is closed");
    home.connect(&server, Role::Client, 1).ping().unwrap();
}

#[test]
fn a_damaged_partition_is_offline_while_the_others_serve_and_can_be_cut() {
    let home = TestHome::new("damage");
    let mut server = home.serve(&[]);
    for partition in [6, 7] {
        let mut connection = home.connect(&server, Role::Client, partition);
        for n in 0..20u8 {
            connection.set(&[b'k', n], &[n; 100]).unwrap();
        }
    }
    server.kill();
    // The fifth batch of partition 7 loses a byte; later ones vouch for it.
    let path = home.path().join("data/7/wal-00000001");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096 * 5 + 30] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let mut server = home.serve(&[]);
    let mut healthy = home.connect(&server, Role::Client, 6);
    assert_eq!(healthy.get(&[b'k', 19]).unwrap(), Some(vec![19; 100]));
    let mut damaged = home.connect(&server, Role::Client, 7);
    assert_eq!(code(damaged.get(&[b'k', 0]).unwrap_err()), Some(ErrorCode::Offline));
    let stat = damaged.stat().unwrap();
    assert!(stat.starts_with("{\"partition\":7,\"state\":\"offline\",\"why\":") && stat.contains("20480"), "{stat}");
    let log = server.log().join("\n");
    assert!(log.contains("partition 7 is offline") && log.contains("wal-00000001 is damaged at offset 20480"), "{log}");
    assert!(server.stop().0.success());
    let server = home.serve(&["--truncate-corrupt-wal", "true"]);
    let mut cut = home.connect(&server, Role::Client, 7);
    assert_eq!(cut.get(&[b'k', 3]).unwrap(), Some(vec![3; 100]), "what lies before the damage");
    assert_eq!(cut.get(&[b'k', 4]).unwrap(), None, "what lies behind is given up");
    cut.set(b"k", b"goes on").unwrap();
}

#[test]
fn a_missing_or_garbled_index_is_rebuilt_by_itself() {
    let home = TestHome::new("index");
    let mut server = home.serve(&[]);
    let mut admin = home.connect(&server, Role::Admin, 2);
    for n in 0..500u32 {
        admin.set(&n.to_be_bytes(), format!("value {n}").as_bytes()).unwrap();
        if n % 100 == 99 {
            admin.del(&(n - 50).to_be_bytes()).unwrap();
            admin.checkpoint().unwrap();
        }
    }
    assert!(server.stop().0.success());
    let find = |home: &TestHome| {
        let data = home.path().join("data/2");
        let mut entries = std::fs::read_dir(data).unwrap().map(|e| e.unwrap().path());
        entries.find(|p| p.is_dir()).expect("an index directory")
    };
    for how in ["missing", "garbled"] {
        let index = find(&home);
        if how == "missing" {
            std::fs::remove_dir_all(&index).unwrap();
        } else {
            garble(&index);
        }
        let mut server = home.serve(&[]);
        let mut client = home.connect(&server, Role::Client, 2);
        for n in 0..500u32 {
            let deleted = n % 100 == 49;
            let expected = (!deleted).then(|| format!("value {n}").into_bytes());
            assert_eq!(client.get(&n.to_be_bytes()).unwrap(), expected, "{how}: key {n}");
        }
        let log = server.log().join("\n");
        assert!(log.contains("rebuilding the index") && log.contains("the index is rebuilt: 495 keys"), "{how}: {log}");
        assert!(server.stop().0.success());
    }
}

/// Overwrites every file of a directory with noise of the same length.
fn garble(directory: &std::path::Path) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            garble(&path);
        } else {
            let length = std::fs::metadata(&path).unwrap().len().min(1 << 20) as usize;
            let noise: Vec<u8> = (0..length).map(|i| (i * 31 + 7) as u8).collect();
            std::fs::write(&path, noise).unwrap();
        }
    }
}

#[test]
fn a_home_is_served_once_and_with_all_its_partitions() {
    let home = TestHome::new("refusals");
    let mut server = home.serve(&[]);
    let second = home.try_serve(binary("turnstone"), &[]).err().expect("refused");
    assert!(second.contains("another process"), "{second}");
    assert!(server.stop().0.success());
    let fewer = home.try_serve(binary("turnstone"), &["--number-of-partitions", "8"]).err().expect("refused");
    assert!(fewer.contains("holds partition 16"), "{fewer}");
    let unknown = home.path().join("turnstone.json");
    std::fs::write(&unknown, "{\n  \"max_con\": 5\n}\n").unwrap();
    let typo = home.try_serve(binary("turnstone"), &[]).err().expect("refused");
    assert!(typo.contains("turnstone.json:2") && typo.contains("max_conns"), "{typo}");
    std::fs::write(&unknown, "{ \"tls_client_auth\": false }").unwrap();
    let insecure = home.try_serve(binary("turnstone"), &[]).err().expect("refused");
    assert!(insecure.contains("tls_client_auth"), "{insecure}");
}

#[test]
fn a_fresh_home_with_untouched_partitions_is_small() {
    use std::os::unix::fs::MetadataExt;
    fn used(path: &std::path::Path) -> u64 {
        let metadata = std::fs::metadata(path).unwrap();
        let inside =
            if path.is_dir() { std::fs::read_dir(path).unwrap().map(|e| used(&e.unwrap().path())).sum() } else { 0 };
        metadata.blocks() * 512 + inside
    }
    let home = TestHome::new("fresh");
    let mut server = home.serve(&[]);
    home.connect(&server, Role::Client, 1).get(b"nothing").unwrap();
    let running = used(home.path());
    assert!(server.stop().0.success());
    let stopped = used(home.path());
    println!("a fresh home takes {} KiB running, {} KiB stopped", running >> 10, stopped >> 10);
    assert!(running.max(stopped) < 1 << 20);
}

#[test]
fn certificates_that_end_soon_are_told_of_and_a_hang_up_says_what_has_changed() {
    let home = TestHome::new("certificates");
    let certs = |name: &str| home.path().join("certs").join(name);
    let read = |name: &str| std::fs::read_to_string(certs(name)).expect("it is there");
    let authority = Authority::load(&read("ca.crt"), &read("ca.key")).expect("the CA");
    let issue = |days: u32| {
        let issued = authority.issue(Role::Server, &["localhost".to_string()], days).expect("issued");
        std::fs::write(certs("server.crt"), issued.cert_pem).expect("written");
        std::fs::write(certs("server.key"), issued.key_pem).expect("written");
    };
    issue(5);
    let mut server = home.serve(&["--executors=1"]);
    let says = |server: &mut TestServer, what: &str| {
        eventually(Duration::from_secs(30), what, || server.log().iter().any(|line| line.contains(what)));
    };
    says(&mut server, "server.crt (O=TurnstoneDB server, CN=server) expires in");
    let expires = |server: &TestServer| {
        let stat = home.connect(server, Role::Client, 0).stat().expect("figures");
        figure(&stat, "certificate_expires_ms")
    };
    let soon = expires(&server);
    server.hang_up();
    says(&mut server, "certificates were read again, and none has changed");
    issue(300);
    server.hang_up();
    says(&mut server, ") is gone");
    says(&mut server, "is new, and expires on");
    assert!(expires(&server) > soon, "the new one ends later");
    std::fs::write(certs("server.crt"), "nothing").expect("written");
    server.hang_up();
    says(&mut server, "the certificates stay as they were");
    home.connect(&server, Role::Client, 1).ping().expect("it serves");
}
