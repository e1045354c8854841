//! A server that the system gives little: few descriptors with many value files and as many connections as are let in. Nobody who
//! is in is put out, what was stored is read, refusals say why, and the process goes on.

use std::thread;
use std::time::Duration;
use turnstone_net::client::Connection;
use turnstone_net::tls::{ClientOffer, Role};
use turnstone_tests::real::{TestHome, TestServer, binary, figure};

const PARTITIONS: u8 = 16;
/// Each has a file of its own.
const VALUE: usize = 62 << 10;
const FLAGS: [&str; 3] = ["--value-file-size=64KiB", "--executors=1", "--overlay-budget=64MiB"];

fn value_files() -> u32 {
    std::env::var("TURNSTONE_VALUE_FILES").ok().and_then(|n| n.parse().ok()).unwrap_or(640) / u32::from(PARTITIONS)
}

fn value(partition: u8, number: u32) -> Vec<u8> {
    let mut value = vec![partition; VALUE];
    value[..4].copy_from_slice(&number.to_le_bytes());
    value
}

/// In every partition at the same time.
fn everywhere(home: &TestHome, server: &TestServer, work: impl Fn(u8, &mut Connection) + Sync) {
    // Few at a time: connections are what is short here.
    for some in (1..=PARTITIONS).collect::<Vec<_>>().chunks(4) {
        thread::scope(|scope| {
            for partition in some {
                let (work, settings) = (&work, home.client(server, Role::Client, ClientOffer::TURNSTONE2));
                scope.spawn(move || {
                    let mut connection = Connection::connect(&settings).expect("it connects");
                    connection.select(*partition).expect("it is there");
                    work(*partition, &mut connection);
                });
            }
        });
    }
}

fn read_all(partition: u8, connection: &mut Connection) {
    for number in 0..value_files() {
        let found = connection.get(format!("key-{number}").as_bytes()).expect("an old value is read");
        assert!(found == Some(value(partition, number)), "value {number} of partition {partition}");
    }
}

#[test]
fn few_descriptors_end_nothing() {
    let home = TestHome::new("few-descriptors");
    {
        let mut server = home.serve(&FLAGS);
        everywhere(&home, &server, |partition, connection| {
            for number in 0..value_files() {
                connection.set(format!("key-{number}").as_bytes(), &value(partition, number)).expect("it is written");
            }
        });
        assert!(server.stop().0.success());
    }
    for limit in [256, 512, 1024] {
        let shell = format!("ulimit -n {limit}; exec \"$0\" \"$@\"");
        let before = ["sh", "-c", &shell];
        let flags = [&FLAGS[..], &["--cache-size=1MiB", "--max-conns=2000"]].concat();
        let mut server = home.try_serve_under(&before, binary("turnstone"), &flags).expect("it gets ready");
        // As many as are let in, which stay.
        let mut idle = Vec::new();
        let settings = home.client(&server, Role::Client, ClientOffer::TURNSTONE2);
        let refused = loop {
            match Connection::connect(&settings) {
                Ok(connection) => idle.push(connection),
                Err(refused) => break refused,
            }
            assert!(idle.len() < 2000, "nobody was refused");
        };
        assert!(idle.len() >= limit / 8, "only {} connections with {limit} descriptors: {refused}", idle.len());
        let let_in = idle.len();
        // Room for those that work.
        idle.truncate(let_in - 8);
        thread::sleep(Duration::from_millis(200));
        for _ in 0..2 {
            everywhere(&home, &server, read_all);
            everywhere(&home, &server, |partition, connection| {
                connection.set(b"new", &value(partition, limit as u32)).expect("a large value is written");
            });
        }
        for connection in &mut idle {
            connection.ping().expect("who is in stays in");
        }
        idle[0].select(1).expect("it is there");
        let stat = idle[0].stat().expect("it answers");
        assert!(figure(&stat, "value_files") >= u64::from(value_files()), "{stat}");
        drop(idle);
        let (status, _) = server.stop();
        let log = server.log();
        assert!(status.success(), "{status}: {log:?}");
        assert!(log.iter().any(|line| line.contains(&format!("open files are limited to {limit}"))), "{log:?}");
        assert!(log.iter().any(|line| line.contains("descriptors are short")), "{log:?}");
        println!("{limit} descriptors, {} value files: {let_in} connections", value_files() * u32::from(PARTITIONS));
    }
}
