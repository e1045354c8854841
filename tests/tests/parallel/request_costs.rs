//! What a request may cost: requests that want much are refused before they take it, and what was refused is not kept.

use std::time::{Duration, Instant};
use turnstone_net::client::{ClientError, Connection};
use turnstone_net::tls::{ClientOffer, Role};
use turnstone_net::wire::{ErrorCode, Request};
use turnstone_tests::real::{TestHome, TestServer, eventually};

const MIB: usize = 1 << 20;

fn code<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> Option<ErrorCode> {
    answer.expect_err("it is refused").code()
}

/// Bytes of memory that the server has.
fn memory(server: &TestServer) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it has memory");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok()).expect("a number") << 10
}

fn connect(home: &TestHome, server: &TestServer, role: Role) -> Connection {
    Connection::connect(&home.client(server, role, ClientOffer::TURNSTONE2)).expect("it connects")
}

/// The beginning of a request: its header says more than comes.
fn begin_request(connection: &mut Connection, opcode: u8, length: usize, sent: usize) {
    let mut frame = vec![opcode];
    frame.extend((length as u32).to_be_bytes());
    connection.raw_write(&frame).expect("sent");
    for _ in 0..sent / MIB {
        connection.raw_write(&vec![b'k'; MIB]).expect("sent");
    }
}

#[test]
fn what_a_role_may_not_ask_is_not_gathered_first() {
    let home = TestHome::new("not-gathered");
    let server = home.serve(&["--executors=1"]);
    let v1 = |role| Connection::connect(&home.client(&server, role, ClientOffer::V1)).expect("it connects");
    // Sixteen requests of 60 MiB that a consumer of changes may not send, all but the end of each.
    let before = memory(&server);
    let mut consumers: Vec<Connection> = (0..16).map(|_| v1(Role::Cdc)).collect();
    for consumer in &mut consumers {
        begin_request(consumer, 0x03, 60 * MIB, 59 * MIB);
    }
    let grown = memory(&server).saturating_sub(before);
    assert!(grown < 128 * MIB, "{} MiB more for requests that are refused", grown / MIB);
    // A name of a partition is a few bytes.
    let mut client = connect(&home, &server, Role::Client);
    let name = vec![0; 60 * MIB];
    assert_eq!(code(client.call(&Request::Select { name: &name })), Some(ErrorCode::RequestTooLarge));
    let name = [b'7'; 60_000];
    let refused = client.call(&Request::Select { name: &name }).expect_err("there is no such partition");
    assert!(refused.to_string().len() < 300, "{refused}");
    client.ping().expect("the connection is usable");
    let grown = memory(&server).saturating_sub(before);
    assert!(grown < 128 * MIB, "{} MiB more for names", grown / MIB);
}

#[test]
fn the_node_answers_few_of_its_own_keys_at_once() {
    let home = TestHome::new("node-keys");
    let server = home.serve(&["--executors=1"]);
    let mut client = connect(&home, &server, Role::Client);
    let before = memory(&server);
    assert_eq!(code(client.mget(&vec![&b"partitions"[..]; 100_000])), Some(ErrorCode::RequestTooLarge));
    assert_eq!(client.mget(&[&b"partitions"[..]; 64]).expect("so many are answered").len(), 64);
    let grown = memory(&server).saturating_sub(before);
    assert!(grown < 64 * MIB, "{} MiB more", grown / MIB);
}

#[test]
fn what_a_transaction_reads_is_limited_and_goes_with_its_age() {
    let home = TestHome::new("reads");
    let server = home.serve(&["--executors=1", "--max-tx-age=5s"]);
    let mut client = connect(&home, &server, Role::Client);
    client.select(1).expect("it is there");
    let before = memory(&server);
    client.begin().expect("begun");
    // No such key can exist, so nothing of it is kept.
    for n in 0..4u8 {
        assert_eq!(client.get(&vec![n; 60 * MIB]).expect("absent"), None);
    }
    let grown = memory(&server).saturating_sub(before);
    assert!(grown < 160 * MIB, "{} MiB more for keys that cannot exist", grown / MIB);
    client.abort().expect("over");
    // Keys that can exist are kept up to the limit.
    client.begin().expect("begun");
    let keys: Vec<Vec<u8>> = (0..2_000u32).map(|n| [&n.to_be_bytes()[..], &[b'k'; 60_000]].concat()).collect();
    let refused = keys.iter().find_map(|key| client.get(key).err()).expect("the limit is reached");
    assert_eq!(refused.code(), Some(ErrorCode::TxTooLarge));
    let full = memory(&server);
    assert!(full.saturating_sub(before) > 32 * MIB, "they are kept");
    // It ages, and with nothing but pings what it holds goes.
    let began = Instant::now();
    eventually(Duration::from_secs(20), "its memory is given back", || {
        client.ping().expect("it lives");
        full.saturating_sub(memory(&server)) > 32 * MIB
    });
    assert!(began.elapsed() > Duration::from_millis(500));
    assert_eq!(code(client.get(b"k")), Some(ErrorCode::TxTimeout));
}

#[test]
fn clients_leave_places_for_servers_and_admins() {
    let home = TestHome::new("places");
    let server = home.serve(&["--executors=1", "--max-conns=8"]);
    let clients: Vec<Connection> = (0..8).map(|_| connect(&home, &server, Role::Client)).collect();
    let refused = home.try_connect(&server, Role::Client, 1).map(|_| "let in");
    assert_eq!(code(refused), Some(ErrorCode::Busy));
    let mut admin = connect(&home, &server, Role::Admin);
    admin.ping().expect("an admin has a place");
    assert_eq!(clients.len(), 8);
}
