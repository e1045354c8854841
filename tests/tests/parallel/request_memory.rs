//! The memory that the requests and replies of all clients take together is limited by `request_memory`: long requests wait for
//! it or are refused, long replies and transactions are refused, and who asks for little notices nothing.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use turnstone_net::client::{ClientError, Connection};
use turnstone_net::tls::{ClientOffer, Role};
use turnstone_net::wire::{ErrorCode, Request};
use turnstone_tests::real::{TestHome, TestServer, eventually, figure};

const MIB: usize = 1 << 20;
const LIMIT: usize = 32 * MIB;
/// Beyond the limit: what clients have for nothing, buffers of TLS and of the ring, and what the allocator keeps.
const BESIDES: usize = 96 * MIB;
const PATIENCE: Duration = Duration::from_secs(60);

fn start(label: &str) -> (TestHome, TestServer) {
    let home = TestHome::new(label);
    // However slow the machine is, nobody is late.
    let patient = ["--request-timeout=5m", "--write-timeout=5m", "--max-tx-age=10m"];
    let flags = ["--executors=1", "--request-memory=32MiB", "--cache-size=1MiB"];
    let server = home.serve(&[&flags[..], &patient[..]].concat());
    (home, server)
}

/// The most memory that the server has had so far, bytes.
fn peak(server: &TestServer) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("it has memory");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok()).expect("a number") << 10
}

/// All memory is given back, and somebody was refused for want of it.
fn check_the_end(home: &TestHome, server: &TestServer, before: usize) {
    let mut client = home.connect(server, Role::Client, 0);
    eventually(PATIENCE, "memory is given back", || {
        figure(&client.stat().expect("figures"), "request_memory_used") == 0
    });
    let stat = client.stat().expect("figures");
    assert!(figure(&stat, "refused_for_memory") > 0 && figure(&stat, "request_memory") as usize == LIMIT, "{stat}");
    let grown = peak(server) - before;
    println!("{} MiB more at most, of {} MiB", grown / MIB, LIMIT / MIB);
    assert!(grown < LIMIT + BESIDES, "{} MiB more", grown / MIB);
}

fn is_busy<T>(answer: &Result<T, ClientError>) -> bool {
    answer.as_ref().is_err_and(|error| error.code() == Some(ErrorCode::Busy))
}

/// The status of the next reply of the v1 dialect to what was written by hand.
fn status(client: &mut Connection) -> u8 {
    let mut read = |length: usize| {
        let (mut bytes, mut at) = (vec![0; length], 0);
        while at < length {
            at += match client.raw_read(&mut bytes[at..]).expect("an answer") {
                0 => panic!("the connection ends"),
                n => n,
            };
        }
        bytes
    };
    let head = read(5);
    read(u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize);
    head[0]
}

#[test]
fn long_requests_wait_until_others_are_done_and_not_for_ever() {
    const CLIENTS: usize = 100;
    const LENGTH: usize = 4 * MIB;
    let (home, server) = start("long-requests");
    let before = peak(&server);
    let (refused, let_in) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let all_there = Barrier::new(CLIENTS + 1);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let offer = home.client(&server, Role::Client, ClientOffer::V1);
            let (refused, let_in, all_there) = (&refused, &let_in, &all_there);
            scope.spawn(move || {
                let mut client = Connection::connect(&offer).expect("it connects");
                client.select(1).expect("it is there");
                client.begin().expect("begun");
                all_there.wait();
                // All but the end of a request, then a pause.
                client.raw_write(&[&[0x02][..], &(LENGTH as u32).to_be_bytes()].concat()).expect("sent");
                for _ in 0..LENGTH / MIB - 1 {
                    client.raw_write(&vec![b'k'; MIB]).expect("sent");
                }
                thread::sleep(Duration::from_secs(1));
                client.raw_write(&vec![b'k'; MIB]).expect("sent");
                // No key is so long: it is not found.
                let count = match status(&mut client) {
                    2 => let_in,
                    7 => refused,
                    other => panic!("status {other}"),
                };
                count.fetch_add(1, Ordering::Relaxed);
                client.ping().expect("the connection is usable");
            });
        }
        all_there.wait();
        // Who asks for little is answered meanwhile.
        let mut small = home.connect(&server, Role::Client, 1);
        for n in 0..200u32 {
            small.set(&n.to_be_bytes(), b"small").expect("it is taken");
            assert_eq!(small.get(&n.to_be_bytes()).expect("it is there").as_deref(), Some(&b"small"[..]));
            thread::sleep(Duration::from_millis(10));
        }
    });
    println!("{refused:?} refused, {let_in:?} let in");
    assert!(refused.into_inner() > 0 && let_in.into_inner() >= 4);
    check_the_end(&home, &server, before);
}

#[test]
fn long_replies_are_refused_while_others_are_not_read() {
    const CLIENTS: usize = 60;
    const GETS: usize = 20;
    let (home, server) = start("long-replies");
    let mut writer = home.connect(&server, Role::Client, 1);
    for n in 0..8u8 {
        writer.set(&[n], &vec![n; 2 * MIB]).expect("written");
    }
    let before = peak(&server);
    let mut clients: Vec<Connection> = (0..CLIENTS).map(|_| home.connect(&server, Role::Client, 1)).collect();
    for client in &mut clients {
        for n in 0..GETS {
            client.send(&Request::Get { key: &[n as u8 % 8] }).expect("sent");
        }
        client.flush().expect("sent");
    }
    // They read nothing until there is no memory left.
    let mut small = home.connect(&server, Role::Client, 0);
    eventually(PATIENCE, "somebody is refused", || figure(&small.stat().expect("figures"), "refused_for_memory") > 0);
    writer.set(b"small", b"1").expect("who asks for little is answered");
    let (mut found, mut refused) = (0, 0);
    for client in &mut clients {
        for n in 0..GETS {
            let reply = client.receive().expect("a reply");
            match client.check(reply) {
                Ok(reply) => {
                    assert!(reply.body == vec![n as u8 % 8; 2 * MIB], "another value");
                    found += 1;
                }
                answer => {
                    assert!(is_busy(&answer), "{:?}", answer.err());
                    refused += 1;
                }
            }
        }
    }
    println!("{found} values, {refused} refused");
    assert!(found >= CLIENTS && refused > 0);
    drop(clients);
    check_the_end(&home, &server, before);
}

#[test]
fn open_transactions_count_and_go_on_when_a_write_is_refused() {
    const CLIENTS: usize = 20;
    let (home, server) = start("open-transactions");
    let before = peak(&server);
    let mut clients: Vec<Connection> = (0..CLIENTS).map(|_| home.connect(&server, Role::Client, 1)).collect();
    let mut taken = 0;
    for (i, client) in clients.iter_mut().enumerate() {
        client.begin().expect("begun");
        for n in 0..4u8 {
            let answer = client.set(&[i as u8, n], &vec![n; 3 * MIB]);
            assert!(answer.is_ok() || is_busy(&answer), "{:?}", answer.err());
            taken += usize::from(answer.is_ok());
        }
    }
    assert!(taken * 3 * MIB <= LIMIT + MIB && taken >= 4, "{taken} values of 3 MiB are held");
    for client in &mut clients {
        client.commit().expect("what was taken is committed");
    }
    let mut reader = home.connect(&server, Role::Client, 1);
    let found = (0..CLIENTS as u8).flat_map(|i| (0..4u8).map(move |n| [i, n]));
    let found = found.filter(|key| reader.get(key).expect("an answer").is_some()).count();
    assert_eq!(found, taken);
    check_the_end(&home, &server, before);
}
