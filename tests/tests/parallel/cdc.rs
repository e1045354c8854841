//! Change data capture with real processes: what is committed is in the files once, in order, whole, whatever ends when.

use serde_json::json;
use std::collections::BTreeMap;
use std::io::BufRead;
use std::process::Command;
use std::time::Duration;
use turnstone_net::client::{ChangeEvent, ChangeStream, Connection};
use turnstone_net::tls::Role;
use turnstone_net::wire::change::Subscribe;
use turnstone_net::wire::{ErrorCode, Request};
use turnstone_tests::changes::log::subscribe;
use turnstone_tests::changes::{self, Consumer, PATIENCE, SmallDisk, files, follow, replay};
use turnstone_tests::real::{TestHome, TestServer, eventually};

const ONE: &[&str] = &["--executors", "1"];

/// A home whose consumer cuts often and serves no metrics.
fn home(label: &str, server: &[&str], more: &[(&str, serde_json::Value)]) -> (TestHome, TestServer) {
    let home = TestHome::new(label);
    let server = home.serve(server);
    follow(&home, &server, more);
    (home, server)
}

fn logs(home: &TestHome) -> std::path::PathBuf {
    home.path().join("cdc_logs")
}

/// Everything that the server has of these keys.
fn contents(connection: &mut Connection, keys: impl Iterator<Item = Vec<u8>>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    keys.filter_map(|key| connection.get(&key).expect("it can be read").map(|value| (key, value))).collect()
}

fn state(replay: &changes::Replay) -> BTreeMap<Vec<u8>, Vec<u8>> {
    replay.state.iter().map(|(key, (_, value))| (key.clone(), value.clone())).collect()
}

#[test]
fn changes_are_written_as_documented() {
    let (home, server) = home("cdc-lines", ONE, &[("partition", json!([1, 3])), ("value_format", json!("json"))]);
    let mut one = home.connect(&server, Role::Admin, 1);
    one.set(b"a", b"{\"n\": 12345678901234567890.10,\n \"x\": null}").unwrap();
    one.begin().unwrap();
    one.set(b"\xff\x00", b"\xfe").unwrap();
    one.set("ä \"quoted\"\n".as_bytes(), b"plain").unwrap();
    one.del(b"a").unwrap();
    one.commit().unwrap();
    let large = vec![b'x'; 100_000];
    one.set(b"large", &large).unwrap();
    one.set(b"null", b"null").unwrap();
    one.set(b"empty", b"").unwrap();
    let position = one.mset(&[(b"m1", b"1"), (b"m2", b"2")]).unwrap().unwrap();
    home.connect(&server, Role::Client, 3).set(b"k", b"in partition 3").unwrap();
    let mut consumer = Consumer::start(&home);
    consumer.published(1, position.version);
    consumer.published(3, 1);
    let text: String = files(&logs(&home), 1).iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let lines: Vec<&str> = text.lines().collect();
    let without_time = |line: &str| line.rsplit_once(",\"ts\":").expect("a change has a time").0.to_string();
    assert_eq!(
        without_time(lines[0]),
        "{\"partition\":1,\"position\":\"1:1:1\",\"tx\":1,\"n\":1,\"of\":1,\"op\":\"set\",\"key\":\"a\",\
         \"value\":{\"n\": 12345678901234567890.10,  \"x\": null},\"value_encoding\":\"json\""
    );
    assert_eq!(
        without_time(lines[1]),
        "{\"partition\":1,\"position\":\"1:1:2\",\"tx\":2,\"n\":1,\"of\":3,\"op\":\"set\",\"key\":\"a\""
            .replace("\"set\",\"key\":\"a\"", "\"delete\",\"key\":\"a\"")
    );
    assert!(
        text.contains("\"key\":\"/wA=\",\"key_encoding\":\"base64\",\"value\":\"/g==\",\"value_encoding\":\"base64\"")
    );
    assert!(text.contains("\"key\":\"null\",\"value\":null,\"value_encoding\":\"json\""));
    let replayed = replay(&logs(&home), 1);
    assert_eq!(replayed.state[b"large".as_slice()].1, large);
    assert_eq!(replayed.state[b"empty".as_slice()].1, b"");
    assert_eq!(replayed.changes.iter().map(|c| c.at.1).collect::<Vec<_>>(), [1, 3, 3, 3, 1, 1, 1, 2, 2]);
    assert_eq!(state(&replay(&logs(&home), 3))[b"k".as_slice()], b"in partition 3");
    // FlushDB is a change, too.
    one.call(&Request::FlushDb).unwrap();
    consumer.published(1, position.version + 1);
    assert!(replay(&logs(&home), 1).state.is_empty());
    assert!(consumer.stop().success());
}

#[test]
fn a_consumer_goes_on_where_it_was_and_publishes_what_it_has_at_sigterm() {
    let (home, server) = home("cdc-restart", ONE, &[("rotate_interval", json!("1h")), ("flush_interval", json!("1h"))]);
    let mut connection = home.connect(&server, Role::Client, 1);
    for round in 0..3u32 {
        let mut consumer = Consumer::start(&home);
        for n in 0..100 {
            connection.set(format!("{n}").as_bytes(), &round.to_be_bytes()).unwrap();
        }
        let growing = || {
            let part = logs(&home).join(format!("cdc-p01-{:012}.part", round + 1));
            std::fs::read_to_string(part).unwrap_or_default().lines().count()
        };
        eventually(PATIENCE, "the lines are in the growing file", || growing() == 100);
        assert_eq!(files(&logs(&home), 1).len(), round as usize, "nothing is published before it is time");
        assert!(consumer.stop().success());
        assert_eq!(files(&logs(&home), 1).len(), round as usize + 1);
    }
    let replayed = replay(&logs(&home), 1);
    assert_eq!((replayed.lines, replayed.last), (300, 300));
    assert_eq!(state(&replayed), contents(&mut connection, (0..100).map(|n| n.to_string().into_bytes())));
    // A second consumer of the same state is refused, and the first is not disturbed.
    let mut first = Consumer::start(&home);
    connection.set(b"more", b"1").unwrap();
    eventually(PATIENCE, "it follows", || first.log().iter().any(|line| line.contains("changes from version 301")));
    let mut second = Consumer::start(&home);
    assert!(!second.wait().success());
    assert!(first.stop().success());
    assert_eq!(replay(&logs(&home), 1).last, 301);
}

#[test]
fn all_partitions_are_followed_by_one_process() {
    let (home, server) = home("cdc-all", ONE, &[("partition", json!("*"))]);
    let mut consumer = Consumer::start(&home);
    for partition in 1..=16 {
        let mut connection = home.connect(&server, Role::Client, partition);
        for n in 0..20u32 {
            connection.set(&n.to_be_bytes(), &[partition]).unwrap();
        }
    }
    for partition in 1..=16 {
        consumer.published(partition, 20);
        let replayed = replay(&logs(&home), partition);
        assert_eq!((replayed.state.len(), replayed.lines), (20, 20));
        assert!(replayed.state.values().all(|(_, value)| *value == [partition]));
    }
    assert!(consumer.stop().success());
}

#[test]
fn what_the_log_does_not_reach_back_to_is_copied_or_refused() {
    let small =
        ["--executors", "1", "--wal-max-size", "64KiB", "--wal-retention-bytes", "64KiB", "--wal-retention", "1s"];
    let (home, server) = home("cdc-copy", &small, &[("on_purged", json!("stop"))]);
    let mut connection = home.connect(&server, Role::Admin, 1);
    let key = |n: u32| format!("key {n}").into_bytes();
    for n in 0..2000u32 {
        connection.set(&key(n % 500), format!("{n} {}", "x".repeat(200)).as_bytes()).unwrap();
    }
    connection.del(&key(7)).unwrap();
    connection.checkpoint().unwrap();
    eventually(PATIENCE, "the beginning of the log is gone", || {
        let stat: serde_json::Value = serde_json::from_str(&connection.stat().unwrap()).unwrap();
        stat["wal_oldest_version"].as_u64().unwrap() > 1
    });
    let mut consumer = Consumer::start(&home);
    assert!(!consumer.wait().success());
    eventually(PATIENCE, "it says why, and what to set", || {
        consumer.log().iter().any(|line| line.contains("COMPACTED") && line.contains("on_purged"))
    });
    changes::configure(&home, &[("on_purged", json!("copy"))]);
    let mut consumer = Consumer::start(&home);
    let last = connection.set(&key(8), b"behind the copy").unwrap().unwrap().version;
    consumer.published(1, last);
    let replayed = replay(&logs(&home), 1);
    assert_eq!(replayed.copies.len(), 1);
    let now = contents(&mut connection, (0..500).map(key));
    assert_eq!(now.len(), 499);
    assert_eq!(state(&replayed), now);
    assert!(consumer.stop().success());
    // The next one goes on behind the copy, from the log that its hold has kept.
    for n in 0..1000u32 {
        connection.set(&key(n % 500), format!("more {n} {}", "y".repeat(200)).as_bytes()).unwrap();
    }
    connection.checkpoint().unwrap();
    let mut consumer = Consumer::start(&home);
    consumer.published(1, last + 1000);
    let replayed = replay(&logs(&home), 1);
    assert_eq!((replayed.copies.len(), replayed.changes.len()), (1, 1001));
    assert_eq!(state(&replayed), contents(&mut connection, (0..500).map(key)));
}

#[test]
fn what_a_promotion_has_lost_is_taken_back() {
    let promoted = changes::promotion::lose("cdc-retract", |home, leader, lost| {
        follow(home, leader, &[]);
        let mut consumer = Consumer::start(home);
        consumer.published(1, lost);
        assert!(consumer.stop().success());
        assert!(!replay(&logs(home), 1).state.contains_key(b"last".as_slice()));
    });
    let home = &promoted.home;
    let mut consumer = Consumer::start(home);
    eventually(PATIENCE, "the consumer has the new history", || promoted.is_in(&replay(&logs(home), 1)));
    promoted.check(&replay(&logs(home), 1).state);
    assert!(consumer.log().iter().any(|line| line.contains("taken back")));
}

/// Lines that wait in a partition's growing file.
fn waiting(directory: &std::path::Path) -> usize {
    let parts = std::fs::read_dir(directory).into_iter().flatten().map(|entry| entry.expect("readable").path());
    let parts = parts.filter(|path| path.extension().is_some_and(|kind| kind == "part"));
    parts.map(|path| std::fs::read_to_string(path).unwrap_or_default().lines().count()).sum()
}

#[test]
fn a_directory_of_files_has_one_consumer() {
    let slow = |more: &[(&'static str, serde_json::Value)]| -> Vec<(&'static str, serde_json::Value)> {
        [&[("rotate_interval", json!("1h")), ("flush_interval", json!("1h"))], more].concat()
    };
    let (one, server) = home("cdc-owner-a", ONE, &slow(&[]));
    let shared = [("output_dir", json!(logs(&one)))];
    let (other, other_server) = home("cdc-owner-b", ONE, &slow(&shared));
    let (mut writer, mut stranger) =
        (one.connect(&server, Role::Client, 1), other.connect(&other_server, Role::Client, 1));
    for n in 0..5u8 {
        writer.set(&[b'k', n], b"ours").unwrap();
        stranger.set(&[b'k', n], b"theirs").unwrap();
    }
    let mut consumer = Consumer::start(&one);
    eventually(PATIENCE, "its lines are in the file", || waiting(&logs(&one)) == 5);
    for _ in 0..2 {
        let mut second = Consumer::start(&other);
        assert!(!second.wait().success());
        let log = second.log().join("\n");
        assert!(log.contains("cdc-p01.owner") && log.contains("another output_dir"), "{log}");
        // The other way round: when the first one is gone, its files are still its own.
        if waiting(&logs(&one)) == 5 {
            assert!(consumer.stop().success());
        }
    }
    let replayed = replay(&logs(&one), 1);
    assert_eq!(replayed.changes.len(), 5);
    assert!(state(&replayed).values().all(|value| value == b"ours"));
    let mut again = Consumer::start(&one);
    writer.set(b"k", b"more").unwrap();
    eventually(PATIENCE, "it goes on", || waiting(&logs(&one)) == 1);
    assert!(again.stop().success());
}

#[test]
fn lines_of_a_growing_file_that_somebody_removes_are_written_again() {
    let (home, server) = home("cdc-removed", ONE, &[("rotate_interval", json!("3s")), ("flush_interval", json!("3s"))]);
    let mut writer = home.connect(&server, Role::Client, 1);
    let mut consumer = Consumer::start(&home);
    let mut set = |range: std::ops::Range<u8>| {
        for n in range {
            writer.set(&[n], b"value").unwrap();
        }
    };
    set(0..5);
    consumer.published(1, 5);
    set(5..10);
    eventually(PATIENCE, "its lines are in the file", || waiting(&logs(&home)) == 5);
    for entry in std::fs::read_dir(logs(&home)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "part") {
            std::fs::remove_file(path).unwrap();
        }
    }
    set(10..15);
    consumer.published(1, 15);
    let log = consumer.log().join("\n");
    assert!(log.contains("written again"), "{log}");
    assert!(consumer.stop().success());
    let replayed = replay(&logs(&home), 1);
    assert_eq!(replayed.changes.len(), 15, "each once");
    assert_eq!(replayed.state.len(), 15);
}

#[test]
fn a_full_disk_is_waited_for() {
    let Some(disk) = SmallDisk::new("cdc-disk", 256) else {
        println!("NOT RUN: a small disk cannot be mounted here");
        return;
    };
    let output = disk.path().join("logs");
    let (home, server) = home("cdc-full", ONE, &[("output_dir", json!(output))]);
    let ballast = disk.path().join("ballast");
    let mut consumer = Consumer::start(&home);
    let mut connection = home.connect(&server, Role::Client, 1);
    let value = vec![b'v'; 1000];
    let mut set = |range: std::ops::Range<u32>| {
        let mut last = 0;
        for n in range {
            last = connection.set(&n.to_be_bytes(), &value).unwrap().unwrap().version;
        }
        last
    };
    let last = set(0..50);
    consumer.published(1, last);
    std::fs::write(&ballast, vec![0; 150 << 10]).unwrap();
    let last = set(50..150);
    eventually(PATIENCE, "the consumer meets the full disk", || {
        consumer.log().iter().any(|line| line.contains("No space left on device"))
    });
    std::fs::remove_file(&ballast).unwrap();
    consumer.published(1, last);
    let replayed = replay(&output, 1);
    assert_eq!((replayed.lines, replayed.state.len()), (150, 150));
    assert!(consumer.stop().success());
}

#[test]
fn changes_go_to_standard_output_and_to_a_hook() {
    let (home, server) = home("cdc-stdout", ONE, &[]);
    let marks = home.path().join("seen");
    let hook = json!(["sh", "-c", format!("echo \"$TURNSTONE_CDC_FILE $0\" >> {}", marks.display())]);
    changes::configure(&home, &[("exec", hook)]);
    let mut consumer = Consumer::start_with(&home, &["--stdout"]);
    let mut lines = consumer.stdout().lines();
    let mut connection = home.connect(&server, Role::Client, 1);
    for n in 0..10u32 {
        connection.set(&n.to_be_bytes(), b"v").unwrap();
        let line = lines.next().expect("a line").expect("it can be read");
        assert!(line.contains(&format!("\"tx\":{}", n + 1)), "{line}");
    }
    assert!(consumer.stop().success());
    assert!(!marks.exists(), "there was no file");
    let mut consumer = Consumer::start(&home);
    consumer.published(1, 10);
    assert!(consumer.stop().success());
    let seen = std::fs::read_to_string(&marks).unwrap();
    let expected: String =
        files(&logs(&home), 1).iter().map(|path| format!("{} {}\n", path.display(), path.display())).collect();
    assert_eq!(seen, expected, "the hook ran once for each file");
}

fn next(stream: &mut ChangeStream) -> ChangeEvent {
    stream.next(PATIENCE).expect("the stream lives").expect("something comes")
}

#[test]
fn only_consumers_and_admins_may_read_changes_and_a_name_reads_once() {
    let (home, server) = home("cdc-roles", ONE, &[]);
    let timeout = Duration::from_secs(10);
    let open = |role, subscribe: &Subscribe| ChangeStream::open(&server.address, &home.files(role), timeout, subscribe);
    for role in [Role::Client, Role::Server] {
        let refused = open(role, &subscribe(1, "x")).and_then(|mut stream| stream.next(PATIENCE));
        assert!(refused.is_err(), "{role} was let in");
    }
    let refused = |subscribe: &Subscribe| match next(&mut open(Role::Cdc, subscribe).expect("it connects")) {
        ChangeEvent::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&subscribe(0, "x")).code, ErrorCode::NoSuchPartition);
    assert_eq!(refused(&Subscribe { version: 99, ..subscribe(1, "x") }).code, ErrorCode::Unsupported);
    assert_eq!(refused(&Subscribe { last: u64::MAX, ..subscribe(1, "x") }).code, ErrorCode::Malformed);
    let ahead = refused(&Subscribe { last: 5, ..subscribe(1, "x") });
    assert_eq!((ahead.code, ahead.at), (ErrorCode::Diverged, 0), "{ahead:?}");
    let mut first = open(Role::Cdc, &subscribe(1, "twice")).unwrap();
    assert!(matches!(next(&mut first), ChangeEvent::Begun { last: 0, .. }));
    // Who has another certificate does not push it out.
    let stranger = open(Role::Admin, &subscribe(1, "twice")).and_then(|mut stream| stream.next(PATIENCE)).unwrap();
    let denied =
        |event: &Option<ChangeEvent>| matches!(event, Some(ChangeEvent::Refused(r)) if r.code == ErrorCode::Denied);
    assert!(denied(&stranger), "{stranger:?}");
    let mut other = open(Role::Admin, &subscribe(1, "of-an-admin")).unwrap();
    assert!(matches!(next(&mut other), ChangeEvent::Begun { .. }));
    drop(other);
    let mut second = open(Role::Cdc, &subscribe(1, "twice")).unwrap();
    assert!(matches!(next(&mut second), ChangeEvent::Begun { .. }));
    let ended = loop {
        match next(&mut first) {
            ChangeEvent::Progress(_) => {}
            other => break other,
        }
    };
    assert!(matches!(&ended, ChangeEvent::Refused(refusal) if refusal.code == ErrorCode::Busy), "{ended:?}");
    let mut connection = home.connect(&server, Role::Client, 1);
    connection.set(b"k", b"v").unwrap();
    let stat = connection.stat().unwrap();
    assert!(stat.contains("\"consumers\":[{\"name\":\"twice\""), "{stat}");
}

#[test]
fn a_consumers_hold_is_its_own_and_limited_and_operators_have_theirs() {
    let (home, server) = home("cdc-holds", &["--executors=1", "--max-consumer-hold=1MiB"], &[]);
    let mut admin = home.connect(&server, Role::Admin, 1);
    for n in 0..10u8 {
        admin.set(&[n], b"value").unwrap();
    }
    let open = |role, name: &str, hold| {
        let subscribe = Subscribe { hold, ..subscribe(1, name) };
        let mut stream = ChangeStream::open(&server.address, &home.files(role), PATIENCE, &subscribe).unwrap();
        let first = next(&mut stream);
        (stream, first)
    };
    let refused = |(_, event): (ChangeStream, ChangeEvent)| match event {
        ChangeEvent::Refused(refusal) => refusal.text,
        other => panic!("{other:?}"),
    };
    // A consumer neither takes nor releases what an operator keeps, and the other way round.
    home.order(&server, 1, &["hold", "nightly", "1MiB"]);
    assert!(refused(open(Role::Cdc, "nightly", 1000)).contains("is of an operator"));
    let is_begun = |(_, event): &(ChangeStream, ChangeEvent)| matches!(event, ChangeEvent::Begun { .. });
    assert!(is_begun(&open(Role::Cdc, "nightly", 0)), "who wants none releases none");
    eventually(PATIENCE, "its stream ends", || admin.stat().unwrap().contains("\"consumers\":[]"));
    let (mut stream, begun) = open(Role::Cdc, "reader", 1000);
    assert!(matches!(begun, ChangeEvent::Begun { .. }));
    assert!(admin.stat().unwrap().contains("\"name\":\"nightly\""));
    drop(stream);
    eventually(PATIENCE, "its stream ends", || admin.stat().unwrap().contains("\"consumers\":[]"));
    assert!(refused(open(Role::Admin, "reader", 1000)).contains("is of a consumer with another certificate"));
    assert!(is_begun(&open(Role::Admin, "reader", 0)));
    assert!(admin.stat().unwrap().contains("\"name\":\"reader\""), "it is kept");
    eventually(PATIENCE, "its stream ends", || admin.stat().unwrap().contains("\"consumers\":[]"));
    let answer = home.order(&server, 1, &["hold", "reader", "1MiB"]);
    assert!(answer.contains("is of a consumer"), "{answer}");
    assert!(refused(open(Role::Cdc, "greedy", 2 << 20)).contains("max_consumer_hold"));
    // So many of consumers leave as many to operators.
    for n in 1..64 {
        (stream, _) = open(Role::Cdc, &format!("reader-{n}"), 1000);
        drop(stream);
    }
    assert!(refused(open(Role::Cdc, "one-more", 1000)).contains("at most 64 holds of consumers"));
    home.order(&server, 1, &["hold", "weekly", "1MiB"]);
    assert!(admin.stat().unwrap().contains("\"name\":\"weekly\""));
    home.order(&server, 1, &["release", "reader"]);
    let (_stream, begun) = open(Role::Admin, "reader", 1000);
    assert!(matches!(begun, ChangeEvent::Begun { .. }), "an operator has released it: {begun:?}");
}

#[test]
fn a_consumer_that_grants_nothing_gets_nothing_and_costs_nothing() {
    let (home, server) = home("cdc-credit", ONE, &[]);
    let mut connection = home.connect(&server, Role::Client, 1);
    let credit = 100_000;
    let subscribe = Subscribe { credit, ..subscribe(1, "slow") };
    let mut stream = ChangeStream::open(&server.address, &home.files(Role::Cdc), PATIENCE, &subscribe).unwrap();
    assert!(matches!(next(&mut stream), ChangeEvent::Begun { .. }));
    let value = vec![7; 3000];
    for n in 0..4000u32 {
        connection.set(&n.to_be_bytes(), &value).unwrap();
    }
    let stat: serde_json::Value = serde_json::from_str(&connection.stat().unwrap()).unwrap();
    let sent = stat["consumers"][0]["sent"].as_u64().unwrap();
    assert!(sent * 3000 < credit + (2 << 20), "{sent} transactions were sent for {credit} bytes of credit");
    let mut seen = 0;
    while seen < 4000 {
        if let ChangeEvent::Batch(body) = next(&mut stream) {
            let head = turnstone_net::wire::change::body::head(&body, true).expect("a good body");
            assert_eq!(head.first_version, seen + 1);
            seen = head.last_version();
        }
    }
}

#[test]
fn wrong_settings_are_named() {
    let (home, _server) = home("cdc-wrong", ONE, &[("value_fromat", json!("json"))]);
    let run = |flags: &[&str]| {
        let mut command = Command::new(turnstone_tests::real::binary("turnstone"));
        let output = command.args(["--mode", "cdc", "--home"]).arg(home.path()).args(flags).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let error = run(&[]);
    assert!(error.contains("value_fromat") && error.contains("did you mean 'value_format'"), "{error}");
    assert!(run(&["--port", "1"]).contains("turnstone.cdc.json"));
}

#[test]
fn kills_lose_repeat_and_tear_nothing() {
    let outcome = changes::kills::campaign(changes::kills::Length::of(25, 7), &mut changes::kills::Nobody).outcome;
    println!("{outcome:?}");
    assert!(outcome.servers > 0 && outcome.consumers > 0 && outcome.acknowledged > 100, "{outcome:?}");
}
