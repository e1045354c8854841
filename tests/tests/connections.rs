//! Connections that are awkward: cut into pieces while they wander, closed early, read slowly or not at all, silent.

use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};
use turnstone_net::client::Connection;
use turnstone_net::tls::{ClientOffer, Role, client_config};
use turnstone_net::wire::{Dialect, Reply, Request};
use turnstone_tests::real::{TestHome, TestServer};

const TWO: Dialect = Dialect::Turnstone2;
const PATIENCE: Duration = Duration::from_secs(20);

/// TLS by hand, so that a test decides when to read, and what to send behind a goodbye.
struct Hand {
    tls: ClientConnection,
    socket: TcpStream,
    plain: Vec<u8>,
    replies: usize,
}

impl Hand {
    fn connect(home: &TestHome, server: &TestServer, role: Role) -> Hand {
        let config = client_config(&home.files(role), ClientOffer::TURNSTONE2).expect("certificates");
        let name = ServerName::try_from("localhost").expect("a name");
        let mut tls = ClientConnection::new(config, name).expect("a client");
        let mut socket = TcpStream::connect(("127.0.0.1", server.port)).expect("connected");
        socket.set_nodelay(true).expect("no delay");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        while tls.is_handshaking() {
            tls.complete_io(&mut socket).expect("greeted");
        }
        Hand { tls, socket, plain: Vec::new(), replies: 0 }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.tls.writer().write_all(bytes).expect("encrypted");
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.socket).expect("sent");
        }
    }

    /// Reads once; false at the end of the stream.
    fn read(&mut self, buffer: &mut [u8]) -> bool {
        let n = match self.socket.read(buffer) {
            Ok(n) => n,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return true,
            Err(error) => panic!("no more bytes: {error}"),
        };
        let mut arrived = &buffer[..n];
        while !arrived.is_empty() {
            self.tls.read_tls(&mut arrived).expect("taken");
            let state = self.tls.process_new_packets().expect("decrypted");
            let start = self.plain.len();
            self.plain.resize(start + state.plaintext_bytes_to_read(), 0);
            self.tls.reader().read_exact(&mut self.plain[start..]).expect("it is there");
            if state.peer_has_closed() {
                return false;
            }
        }
        n > 0
    }

    /// Takes the replies that are whole; checks that they come in order.
    fn take(&mut self, mut each: impl FnMut(usize, &Reply<'_>)) {
        let mut at = 0;
        while let Some((reply, length)) = Reply::decode(TWO, &self.plain[at..]) {
            self.replies += 1;
            assert_eq!(reply.id as usize, self.replies, "replies come in the order of their requests");
            each(self.replies, &reply);
            at += length;
        }
        self.plain.drain(..at);
    }
}

fn frame(request: &Request<'_>, id: usize, out: &mut Vec<u8>) {
    request.encode_frame(TWO, id as u32, out).expect("it fits");
}

/// `rounds` of: select a partition, then write and read keys of that round.
fn wandering(rounds: usize, partitions: usize) -> (Vec<u8>, Vec<Option<Vec<u8>>>) {
    let (mut bytes, mut expected) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        expected.push(None);
        frame(&Request::Select { name: (1 + round % partitions).to_string().as_bytes() }, expected.len(), &mut bytes);
        for n in 0..3 {
            let (key, value) = (format!("key-{round}-{n}"), format!("{round}.{n}.").repeat(20));
            expected.push(None);
            frame(&Request::Set { key: key.as_bytes(), value: value.as_bytes() }, expected.len(), &mut bytes);
            expected.push(Some(value.into_bytes()));
            frame(&Request::Get { key: key.as_bytes() }, expected.len(), &mut bytes);
        }
    }
    (bytes, expected)
}

#[test]
fn pieces_of_a_pipeline_that_wanders_between_cores_arrive_whole_and_in_order() {
    let home = TestHome::new("pieces");
    for (executors, partitions) in [("2", 2), ("5", 16)] {
        let server = home.serve(&["--executors", executors]);
        for piece in [200, 1000, 5003] {
            let mut hand = Hand::connect(&home, &server, Role::Client);
            hand.socket.set_nonblocking(true).expect("non-blocking");
            let (bytes, expected) = wandering(300, partitions);
            let (mut pieces, started) = (bytes.chunks(piece), Instant::now());
            let mut buffer = vec![0; 65536];
            while hand.replies < expected.len() {
                if let Some(piece) = pieces.next() {
                    hand.send(piece);
                }
                hand.read(&mut buffer);
                hand.take(|n, reply| {
                    assert_eq!(reply.status, 0, "reply {n}");
                    if let Some(value) = &expected[n - 1] {
                        assert_eq!(reply.body, value, "reply {n}");
                    }
                });
                assert!(started.elapsed() < PATIENCE, "{} of {} replies came", hand.replies, expected.len());
            }
        }
    }
}

fn sets(count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    (1..=count).for_each(|id| frame(&Request::Set { key: b"k", value: &[7; 100] }, id, &mut bytes));
    bytes
}

#[test]
fn what_came_before_a_goodbye_is_answered_and_what_comes_behind_it_harms_nobody() {
    let home = TestHome::new("goodbye");
    let server = home.serve(&["--executors", "2"]);
    for forwarded in [false, true] {
        let mut hand = Hand::connect(&home, &server, Role::Client);
        let mut buffer = vec![0; 65536];
        let selects = if forwarded { 20 } else { 1 };
        for n in 0..selects {
            let mut select = Vec::new();
            frame(&Request::Select { name: (1 + n % 2).to_string().as_bytes() }, n + 1, &mut select);
            hand.send(&select);
            while hand.replies < n + 1 {
                assert!(hand.read(&mut buffer));
                hand.take(|_, reply| assert_eq!(reply.status, 0));
            }
        }
        hand.replies = 0;
        hand.tls.writer().write_all(&sets(300)).expect("encrypted");
        hand.tls.send_close_notify();
        hand.send(&[]);
        hand.socket.shutdown(Shutdown::Write).expect("closed");
        while hand.read(&mut buffer) {}
        hand.take(|_, reply| assert_eq!(reply.status, 0));
        assert_eq!(hand.replies, 300, "forwarded: {forwarded}");
    }
    // Junk behind the goodbye, in one packet with it.
    let mut hand = Hand::connect(&home, &server, Role::Cdc);
    hand.tls.send_close_notify();
    let mut packet = Vec::new();
    hand.tls.write_tls(&mut packet).expect("to memory");
    packet.extend_from_slice(&[b'X'; 8000]);
    hand.socket.write_all(&packet).expect("sent");
    while hand.read(&mut vec![0; 65536]) {}
    for partition in [1, 2] {
        home.connect(&server, Role::Client, partition).ping().expect("both cores serve");
    }
}

fn resident_mib(server: &TestServer) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it is there");
    line.split_whitespace().nth(1).expect("a number").parse::<u64>().expect("a number") >> 10
}

#[test]
fn replies_that_nobody_reads_are_not_made() {
    let home = TestHome::new("unread");
    let server = home.serve(&["--executors", "2"]);
    for forwarded in [false, true] {
        let mut connection =
            Connection::connect(&home.client(&server, Role::Client, ClientOffer::TURNSTONE2)).expect("connected");
        for n in 0..if forwarded { 20 } else { 1 } {
            connection.select(1 + n % 2).expect("selected");
        }
        connection.begin().expect("begun");
        connection.set(b"big", &vec![9; 4 << 20]).expect("set");
        let before = resident_mib(&server);
        let ids: Vec<u32> = (0..300).map(|_| connection.send(&Request::Get { key: b"big" }).expect("queued")).collect();
        connection.flush().expect("sent");
        // The server has all it needs to make 1.2 GiB of replies; it is asked for something else meanwhile.
        let mut other = home.connect(&server, Role::Client, 1);
        let started = Instant::now();
        let mut most = 0;
        while started.elapsed() < Duration::from_secs(1) {
            other.ping().expect("it serves");
            most = most.max(resident_mib(&server));
        }
        assert!(most < before + 64, "forwarded: {forwarded}: {before} MiB became {most} MiB");
        for id in ids {
            let reply = connection.receive().expect("it comes");
            assert_eq!((reply.id, reply.body.len()), (id, 4 << 20));
        }
    }
}

#[test]
fn a_slow_reader_is_served_and_one_who_takes_nothing_is_not() {
    let home = TestHome::new("slow");
    let server = home.serve(&["--write-timeout", "1s"]);
    let mut writer = home.connect(&server, Role::Client, 1);
    let keys: Vec<String> = (0..8).map(|n| format!("k{n}")).collect();
    for key in &keys {
        writer.set(key.as_bytes(), &vec![1; 4 << 20]).expect("set");
    }
    for slow in [true, false] {
        let mut hand = Hand::connect(&home, &server, Role::Client);
        let mut bytes = Vec::new();
        frame(&Request::Select { name: b"1" }, 1, &mut bytes);
        frame(&Request::MGet(keys.iter().map(String::as_bytes).collect()), 2, &mut bytes);
        hand.send(&bytes);
        let (started, mut buffer) = (Instant::now(), vec![0; 128 << 10]);
        if !slow {
            // Nothing is read for longer than the limit.
            std::thread::park_timeout(Duration::from_millis(2500));
        }
        let mut open = true;
        while open && hand.replies < 2 {
            open = hand.read_or_end(&mut buffer);
            hand.take(|_, reply| assert_eq!(reply.status, 0));
            // 32 MiB at 10 MB/s take three times the limit.
            while slow && hand.plain.len() as f64 > started.elapsed().as_secs_f64() * 10e6 {
                std::thread::park_timeout(Duration::from_millis(2));
            }
        }
        assert_eq!(hand.replies == 2, slow, "after {:?}", started.elapsed());
    }
}

impl Hand {
    /// Reads once; a connection that was cut off has ended.
    fn read_or_end(&mut self, buffer: &mut [u8]) -> bool {
        match self.socket.peek(&mut [0]) {
            Ok(_) => self.read(buffer),
            Err(_) => false,
        }
    }
}

#[test]
fn who_says_nothing_does_not_lock_others_out() {
    let home = TestHome::new("silent");
    let server = home.serve(&["--max-handshakes", "8", "--handshake-timeout", "30s"]);
    let silent: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(("127.0.0.1", server.port)).expect("connected")).collect();
    for partition in 1..=16 {
        home.connect(&server, Role::Client, partition).ping().expect("let in");
    }
    drop(silent);
}

#[test]
fn an_order_to_stop_does_not_wait_for_idle_or_busy_connections() {
    let home = TestHome::new("stop");
    let mut server = home.serve(&["--executors", "2"]);
    let mut forwarded =
        Connection::connect(&home.client(&server, Role::Client, ClientOffer::TURNSTONE2)).expect("connected");
    (0..20).for_each(|n| forwarded.select(1 + n % 2).expect("selected"));
    let mut open = home.connect(&server, Role::Client, 3);
    open.begin().expect("begun");
    open.set(b"k", b"v").expect("set");
    let mut busy = home.connect(&server, Role::Client, 4);
    let load = std::thread::spawn(move || {
        let mut done = 0u64;
        while busy.set(b"k", b"v").is_ok() {
            done += 1;
        }
        done
    });
    let (status, took) = server.stop();
    assert!(status.success() && took < Duration::from_secs(10), "{status} after {took:?}");
    load.join().expect("it ends");
}
