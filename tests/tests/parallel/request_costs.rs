//! What a request may cost: requests that want much are refused before they take it, and what was refused is not kept.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use turnstone_net::client::{ClientError, Connection};
use turnstone_net::tls::{ClientOffer, Role};
use turnstone_net::wire::{ErrorCode, Request};
use turnstone_tests::real::{TestHome, TestServer, figure};

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
fn what_a_transaction_reads_counts_and_keys_that_cannot_exist_do_not() {
    let home = TestHome::new("reads");
    let server = home.serve(&["--executors=1", "--max-tx-age=5m"]);
    let mut client = connect(&home, &server, Role::Client);
    client.select(1).expect("it is there");
    let before = memory(&server);
    client.begin().expect("begun");
    for n in 0..4u8 {
        assert_eq!(client.get(&vec![n; 60 * MIB]).expect("absent"), None);
    }
    let grown = memory(&server).saturating_sub(before);
    assert!(grown < 220 * MIB, "{} MiB more for keys that cannot exist", grown / MIB);
    let keys: Vec<Vec<u8>> = (0..2_000u32).map(|n| [&n.to_be_bytes()[..], &[b'k'; 60_000]].concat()).collect();
    let refused = keys.iter().find_map(|key| client.get(key).err()).expect("the limit is reached");
    assert_eq!(refused.code(), Some(ErrorCode::TxTooLarge));
}

/// Reads and writes some 55 MiB in a transaction; `false` if it became too old meanwhile.
fn fill_transaction(client: &mut Connection) -> bool {
    client.select(1).expect("it is there");
    client.begin().expect("begun");
    let too_old = |error: ClientError| assert_eq!(error.code(), Some(ErrorCode::TxTimeout));
    for n in 0..500u32 {
        let key = [&n.to_be_bytes()[..], &[b'k'; 60_000]].concat();
        let done = client.get(&key).map(drop).and_then(|()| client.set(&key, &[b'v'; 2]).map(drop));
        if let Err(error) = done {
            too_old(error);
            return false;
        }
    }
    true
}

#[test]
fn a_transaction_that_is_too_old_holds_nothing() {
    const AGE: Duration = Duration::from_secs(3);
    let home = TestHome::new("old-transactions");
    let server = home.serve(&["--executors=1", &format!("--max-tx-age={}s", AGE.as_secs())]);
    let before = memory(&server);
    let mut clients = Vec::new();
    // One after the other has a full transaction, which ages while its client does nothing but ping. What is freed stays with
    // the process for a while, so that only the sum of all tells whether it was freed.
    let mut full = 0;
    for _ in 0..16 {
        let mut client = connect(&home, &server, Role::Client);
        full += usize::from(fill_transaction(&mut client));
        let began = Instant::now();
        while began.elapsed() < AGE + Duration::from_millis(300) {
            client.ping().expect("it lives");
            thread::sleep(Duration::from_millis(20));
        }
        clients.push(client);
        if full == 6 {
            break;
        }
    }
    assert_eq!(full, 6, "the machine is too slow to fill a transaction within {AGE:?}");
    let grown = memory(&server).saturating_sub(before);
    assert!(grown < 3 * 64 * MIB, "{} MiB more behind six transactions that are too old", grown / MIB);
    // None that wrote is taken for one that wrote nothing.
    for mut client in clients {
        assert_eq!(code(client.commit()), Some(ErrorCode::TxTimeout));
        assert_eq!(client.get(&[&0u32.to_be_bytes()[..], &[b'k'; 60_000]].concat()).expect("absent"), None);
    }
}

/// Sends requests at once and answers their replies.
fn pipeline(connection: &mut Connection, requests: &[Request<'_>]) -> Vec<Vec<u8>> {
    let ids: Vec<u32> = requests.iter().map(|request| connection.send(request).expect("sent")).collect();
    connection.flush().expect("sent");
    let receive = |id| {
        let reply = connection.receive().expect("a reply");
        assert_eq!(reply.id, id, "replies come in the order of their requests");
        connection.check(reply).expect("a good one").body
    };
    ids.into_iter().map(receive).collect()
}

#[test]
fn requests_behind_a_long_one_are_answered_behind_it() {
    let home = TestHome::new("behind-long");
    let server = home.serve(&["--executors=2"]);
    let mut client = home.connect(&server, Role::Client, 1);
    let keys: Vec<Vec<u8>> = (0..3_000u32).map(|n| format!("key-{n:08}").into_bytes()).collect();
    let names: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    let pairs: Vec<(&[u8], &[u8])> = names.iter().map(|key| (*key, &[7; 400][..])).collect();
    let large = vec![9; 300 << 10];
    for partition in 1..=2 {
        client.select(partition).expect("it is there");
        client.mset(&pairs).expect("written");
        client.set(b"large", &large).expect("written");
    }
    let look = |client: &mut Connection| {
        let replies =
            pipeline(client, &[Request::MGet(names.clone()), Request::Get { key: b"key-00000001" }, Request::Ping]);
        assert!(replies[0].len() > 3_000 * 400 && replies[1] == [7; 400] && replies[2] == b"PONG");
        for got in pipeline(client, &vec![Request::Get { key: b"large" }; 12]) {
            assert!(got == large, "{} bytes", got.len());
        }
        // Replies that wait for their commit, between long ones.
        let set = Request::Set { key: b"between", value: b"1" };
        let get = Request::Get { key: b"large" };
        let replies =
            pipeline(client, &[get.clone(), set.clone(), get.clone(), set, get, Request::MGet(names.clone())]);
        assert!(replies[4] == large && replies[5].len() == replies[5].len().max(3_000 * 400));
        client.ping().expect("it goes on");
    };
    look(&mut client);
    // One that has moved often is forwarded to the core of its partition.
    for round in 0..40u8 {
        client.select(1 + round % 2).expect("it is there");
    }
    look(&mut client);
    client.select(1).expect("it is there");
    look(&mut client);
    // Goodbye does not overtake what was asked before.
    let mut leaving = home.connect(&server, Role::Client, 1);
    let requests = [Request::Get { key: b"large" }, Request::Set { key: b"last", value: b"1" }, Request::Quit];
    let ids: Vec<u32> = requests.iter().map(|request| leaving.send(request).expect("sent")).collect();
    leaving.flush().expect("sent");
    for id in &ids[..2] {
        let reply = leaving.receive().expect("a reply before the end");
        assert_eq!(reply.id, *id);
        leaving.check(reply).expect("a good one");
    }
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

/// Asks for one key, 500 times a second, for as long as `going` says; answers how long each took.
fn probe(mut connection: Connection, going: &AtomicBool) -> Vec<Duration> {
    const PAUSE: Duration = Duration::from_millis(2);
    let mut took = Vec::new();
    while going.load(Ordering::Relaxed) {
        let began = Instant::now();
        connection.get(b"probed").expect("a probe is answered");
        took.push(began.elapsed());
        thread::sleep(PAUSE.saturating_sub(began.elapsed()));
    }
    took.sort_unstable();
    took
}

/// Ends the prober, also where the work beside it panics: the test fails then, and does not hang.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

#[test]
fn a_million_keys_in_one_request_leave_the_core_to_others() {
    const KEYS: usize = 1 << 20;
    let home = TestHome::new("million");
    let server = home.serve(&["--executors=1"]);
    let mut client = home.connect(&server, Role::Client, 1);
    let stretch = |client: &mut Connection| figure(&client.stat().expect("figures"), "core_longest_stretch_us");
    let keys: Vec<Vec<u8>> =
        (0..KEYS).map(|n| format!("{:08x}", n.wrapping_mul(0x9E37_79B1) as u32).into_bytes()).collect();
    let names: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    let pairs: Vec<(&[u8], &[u8])> = names.iter().map(|key| (*key, &b"value"[..])).collect();
    // One entry more than the limit: refused by name, and nothing of it is there.
    assert_eq!(code(client.mget(&[&names[..], &names[..1]].concat())), Some(ErrorCode::RequestTooLarge));
    let mut run = |what: &str, work: &mut dyn FnMut(&mut Connection)| {
        let going = AtomicBool::new(true);
        let prober = home.connect(&server, Role::Client, 1);
        let (began, before) = (Instant::now(), stretch(&mut client));
        let took = thread::scope(|scope| {
            let probes = scope.spawn(|| probe(prober, &going));
            {
                let _ends = Ends(&going);
                work(&mut client);
            }
            probes.join().expect("the prober ends")
        });
        println!(
            "{what} of {KEYS} keys: {} ms; {} probes, median {} us, worst {} us; longest stretch of the core {} us \
             (before {before} us)",
            began.elapsed().as_millis(),
            took.len(),
            took[took.len() / 2].as_micros(),
            took[took.len() - 1].as_micros(),
            stretch(&mut client)
        );
    };
    run("MSET", &mut |client| assert!(client.mset(&pairs).expect("it is carried out").is_some()));
    run("MGET", &mut |client| {
        let values = client.mget(&names).expect("it is carried out");
        assert!(values.len() == KEYS && values.iter().all(|value| value.as_deref() == Some(b"value")));
    });
    run("MGET in a transaction", &mut |client| {
        client.begin().expect("begun");
        assert_eq!(client.mget(&names).expect("it is carried out").len(), KEYS);
        client.abort().expect("over");
    });
    run("MSET in a transaction", &mut |client| {
        client.begin().expect("begun");
        client.mset(&pairs).expect("it is carried out");
        client.commit().expect("it is committed");
    });
    run("MDEL", &mut |client| {
        assert_eq!(client.mdel(&names).expect("it is carried out").0 as usize, KEYS);
    });
    assert!(client.mget(&names).expect("it is carried out").iter().all(Option::is_none));
}

#[test]
fn a_transaction_of_too_many_small_entries_is_refused_by_name() {
    let home = TestHome::new("entries");
    let server = home.serve(&["--executors=1"]);
    let mut client = home.connect(&server, Role::Client, 1);
    client.begin().expect("begun");
    let keys: Vec<Vec<u8>> = (0..3_000_000u32).map(|n| n.to_be_bytes().to_vec()).collect();
    let mut written = 0;
    let refused = keys.chunks(100_000).find_map(|some| {
        let pairs: Vec<(&[u8], &[u8])> = some.iter().map(|key| (key.as_slice(), &b""[..])).collect();
        let answer = client.mset(&pairs).err();
        written += if answer.is_none() { some.len() } else { 0 };
        answer
    });
    assert_eq!(refused.expect("the limit is reached").code(), Some(ErrorCode::TxTooLarge));
    assert_eq!(written, 1_000_000, "an entry costs 64 bytes of 64 MiB");
    client.commit().expect("what was taken is committed");
    assert_eq!(client.get(&keys[999_999]).expect("it is there"), Some(Vec::new()));
    assert_eq!(client.get(&keys[1_000_000]).expect("it is not"), None);
}
