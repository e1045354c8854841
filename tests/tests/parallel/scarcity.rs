//! A server that the system gives little. With few descriptors, many value files and as many connections as are let in, no
//! connection that is in is put out; on a full disk what was stored is read, before and after a kill. Refusals say why, and the
//! process goes on.

use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::Duration;
use turnstone_net::client::Connection;
use turnstone_net::tls::{ClientOffer, Role};
use turnstone_net::wire::{ErrorCode, Request};
use turnstone_tests::changes::SmallDisk;
use turnstone_tests::real::{TestHome, TestServer, binary, eventually, figure};

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
        eventually(Duration::from_secs(10), "eight are gone", || {
            figure(&idle[0].stat().expect("it answers"), "connections") as usize <= let_in - 8
        });
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

/// Takes the space that a disk has left.
fn fill(disk: &Path, name: &str) {
    let mut filler = std::fs::File::create(disk.join(name)).expect("a name is free");
    while filler.write_all(&[7; 4096]).is_ok() {}
}

#[test]
fn a_full_disk_serves_reads_before_and_after_a_kill() {
    const LIVES: u32 = 3;
    let Some(disk) = SmallDisk::new("full-disk", 128 << 10) else {
        println!("NOT RUN: a small disk cannot be mounted here");
        return;
    };
    let home = TestHome::within(disk.path(), "home");
    let flags = &["--executors=1", "--wal-max-size=1MiB"];
    let mut server = home.serve(flags);
    let values = |partition: u8| [vec![partition; 20], vec![partition; 60 << 10]];
    for partition in 1..=3 {
        let mut connection = home.connect(&server, Role::Client, partition);
        for value in values(partition) {
            connection.set(value.len().to_string().as_bytes(), &value).expect("there is space");
        }
    }
    for life in 0..LIVES {
        fill(disk.path(), &format!("filler-{life}"));
        for partition in 1..=3 {
            let mut connection = home.connect(&server, Role::Client, partition);
            // What was set aside before is used up first.
            let refused = (0..200u32).find_map(|n| connection.set(&n.to_be_bytes(), &[9; 60 << 10]).err());
            assert_eq!(refused.expect("the disk is full").code(), Some(ErrorCode::NoSpace), "life {life}");
            for value in values(partition) {
                let found = connection.get(value.len().to_string().as_bytes()).expect("it is read");
                assert!(found == Some(value), "life {life}, partition {partition}");
            }
        }
        server.kill();
        let told: Vec<String> =
            server.log().into_iter().filter(|line| line.contains("the disk has no space")).collect();
        assert!(told.len() == 1 && told[0].contains("/data/") && told[0].contains(" bytes"), "life {life}: {told:?}");
        server = home.serve(flags);
    }
    fill(disk.path(), "filler-last");
    let mut connection = home.connect(&server, Role::Client, 1);
    assert!((0..200u32).any(|n| connection.set(&n.to_be_bytes(), &[9; 60 << 10]).is_err()), "the disk is full");
    for name in (0..LIVES).map(|life| format!("filler-{life}")).chain(["filler-last".to_string()]) {
        std::fs::remove_file(disk.path().join(name)).expect("it is there");
    }
    eventually(Duration::from_secs(20), "it takes writes again", || connection.set(b"new", &[1; 60 << 10]).is_ok());
    assert!(server.stop().0.success());
    let log = server.log();
    assert!(log.iter().any(|line| line.contains("the disk has space again")), "{log:?}");
}

/// Deletes every key of a partition.
fn empty(connection: &mut Connection) {
    let reply = connection.call(&Request::FlushDb).expect("it answers");
    connection.check(reply).expect("a partition is emptied");
}

/// Deletes until one is refused; answers how many were not.
fn delete_all_that_may_be(connection: &mut Connection, keys: u32) -> u32 {
    for n in 0..keys {
        match connection.del(format!("small-{n}").as_bytes()) {
            Ok(_) => {}
            Err(refused) => {
                assert_eq!(refused.code(), Some(ErrorCode::NoSpace), "{refused}");
                return n;
            }
        }
    }
    keys
}

/// Before and after a kill deletes go on for a while, and a partition is emptied, which leaves nothing of it behind.
#[test]
fn a_full_disk_can_be_emptied() {
    const KEYS: u32 = 2_000;
    // An eighth of a segment, less what is left to orders, 4 KiB for each delete on its own; and the log vouches for itself when it
    // is idle.
    const DUE: u32 = ((1 << 20) / 8 - (8 << 10)) / (4 << 10) * 3 / 4;
    for life in 0..2 {
        let Some(disk) = SmallDisk::new("emptied-disk", 128 << 10) else {
            println!("NOT RUN: a small disk cannot be mounted here");
            return;
        };
        let home = TestHome::within(disk.path(), "home");
        let flags = &["--executors=1", "--wal-max-size=1MiB"];
        let mut server = home.serve(flags);
        for partition in 1..=2 {
            let mut connection = home.connect(&server, Role::Client, partition);
            for n in 0..KEYS {
                connection.set(format!("small-{n}").as_bytes(), b"small").expect("there is space");
            }
        }
        fill(disk.path(), "filler");
        let until_refused = |connection: &mut Connection| {
            (0..10_000u32)
                .find_map(|n| connection.set(&n.to_be_bytes(), &[9; 1 << 10]).err())
                .expect("the disk is full")
        };
        for partition in 1..=2 {
            let refused = until_refused(&mut home.connect(&server, Role::Client, partition));
            assert_eq!(refused.code(), Some(ErrorCode::NoSpace), "{refused}");
        }
        if life > 0 {
            server.kill();
            server = home.serve(flags);
            // What the start has let go of is taken, too.
            fill(disk.path(), "filler-2");
        }
        let mut connection = home.connect(&server, Role::Client, 1);
        if life > 0 {
            until_refused(&mut connection);
        }
        let deleted = delete_all_that_may_be(&mut connection, KEYS);
        assert!(deleted >= DUE, "{deleted} deletes of {DUE} that are due, life {life}");
        let mut emptied = home.connect(&server, Role::Admin, 2);
        empty(&mut emptied);
        assert_eq!(emptied.get(b"small-0").expect("read"), None);
        server.kill();
        let mut server = home.serve(flags);
        let mut connection = home.connect(&server, Role::Client, 1);
        for n in 0..KEYS {
            let found = connection.get(format!("small-{n}").as_bytes()).expect("read");
            assert_eq!(found.is_some(), n >= deleted, "key {n}, life {life}");
        }
        let mut emptied = home.connect(&server, Role::Client, 2);
        assert_eq!(emptied.get(b"small-1999").expect("read"), None);
        std::fs::remove_file(disk.path().join("filler")).expect("it is there");
        eventually(Duration::from_secs(20), "it takes writes again", || connection.set(b"new", b"1").is_ok());
        assert!(server.stop().0.success());
        println!("life {life}: {deleted} deletes on a full disk");
    }
}

/// No file can be made any more: the node starts, serves reads, and empties a partition.
#[test]
fn a_disk_without_inodes_serves_reads_and_can_be_emptied() {
    let Some(disk) = SmallDisk::with_files("no-inodes", 128 << 10, 4_000) else {
        println!("NOT RUN: a small disk cannot be mounted here");
        return;
    };
    let home = TestHome::within(disk.path(), "home");
    let flags = &["--executors=1", "--wal-max-size=1MiB"];
    let mut server = home.serve(flags);
    for partition in 1..=3 {
        let mut connection = home.connect(&server, Role::Client, partition);
        for n in 0..20 {
            connection.set(format!("small-{n}").as_bytes(), b"small").expect("there is space");
            connection.set(format!("large-{n}").as_bytes(), &[7; 60 << 10]).expect("there is space");
        }
    }
    let use_up = |life: u32| {
        let names = (0..).map(|n| disk.path().join(format!("inode-{life}-{n}")));
        names.take_while(|name| std::fs::File::create(name).is_ok()).count()
    };
    for life in 0..2 {
        println!("life {life}: {} inodes were left", use_up(life));
        for partition in 1..=3 {
            let mut connection = home.connect(&server, Role::Client, partition);
            assert_eq!(connection.get(b"small-3").expect("read").as_deref(), Some(b"small".as_slice()));
            assert_eq!(connection.get(b"large-3").expect("read").map(|value| value.len()), Some(60 << 10));
            // What needs no file goes on, what does is refused.
            let refused = (0..2_000u32).find_map(|n| connection.set(&n.to_be_bytes(), &[9; 1 << 10]).err());
            assert_eq!(refused.expect("no segment can be made").code(), Some(ErrorCode::NoSpace));
            connection.del(b"small-0").expect("deletes go on");
        }
        server.kill();
        server = home.serve(flags);
    }
    use_up(2);
    let mut connection = home.connect(&server, Role::Admin, 3);
    empty(&mut connection);
    assert_eq!(connection.get(b"small-3").expect("read"), None);
    let mut other = home.connect(&server, Role::Client, 2);
    assert_eq!(other.get(b"small-3").expect("read").as_deref(), Some(b"small".as_slice()));
    assert!(server.stop().0.success());
}

#[test]
fn too_little_locked_memory_is_named_before_anything_starts() {
    let home = TestHome::new("memlock");
    let shell = "ulimit -l 64; exec \"$0\" \"$@\"";
    let refused = home.try_serve_under(&["sh", "-c", shell], binary("turnstone"), &["--executors=1"]);
    let why = refused.err().expect("it does not start");
    assert!(why.contains("RLIMIT_MEMLOCK") && why.contains("65536 bytes"), "{why}");
    home.serve(&["--executors=1"]);
}
