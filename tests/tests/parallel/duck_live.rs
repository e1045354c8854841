//! DuckDB behind a real server: by way of change files and without them, through kills, promotions and full disks.

use serde_json::json;
use turnstone_net::tls::Role;
use turnstone_tests::changes::duck::{self, Loader, each_row, load_once, said, stream_once, value as query};
use turnstone_tests::changes::{
    self, Consumer, PATIENCE, Replay, SmallDisk, State, follow, kills, promotion, records, replay,
};
use turnstone_tests::real::{TestHome, eventually, free_port, http_get};
use turnstone_tests::sim::Rng;

/// The current table of partition 1.
fn table(db: &std::path::Path) -> State {
    let mut state = State::new();
    each_row(db, "SELECT key, value, version FROM turnstone_data WHERE partition = 1", |row| {
        let text = |name: &str| row[name].as_str().expect("a text").as_bytes().to_vec();
        state.insert(text("key"), (row["version"].as_u64().expect("a number"), text("value")));
    });
    state
}

#[test]
fn changes_arrive_while_everything_runs() {
    let home = TestHome::new("duck-end-to-end");
    let server = home.serve(&["--executors", "1"]);
    let keys = [
        ("host", json!(server.address)),
        ("partition", json!([1, 2])),
        ("rotate_interval", json!("100ms")),
        ("flush_interval", json!("100ms")),
        ("value_format", json!("json")),
        ("metrics_addr", json!("")),
    ];
    changes::configure(&home, &keys);
    let mut consumer = Consumer::start(&home);
    let mut loader = Loader::start(&home);
    let mut last = [0; 2];
    for partition in [1, 2u8] {
        let mut connection = home.connect(&server, Role::Admin, partition);
        for n in 0..3000u32 {
            let key = format!("device-{}", n % 700);
            let value = format!("{{\"n\":{n},\"name\":\"{}\"}}", "x".repeat(n as usize % 50));
            connection.set(key.as_bytes(), value.as_bytes()).unwrap();
            if n % 7 == 0 {
                connection.begin().unwrap();
                connection.del(key.as_bytes()).unwrap();
                connection.set(&n.to_be_bytes(), b"\xff\xfe").unwrap();
                connection.commit().unwrap();
            }
        }
        connection.call(&turnstone_net::wire::Request::FlushDb).unwrap();
        for n in 0..500u32 {
            connection.set(format!("device-{n}").as_bytes(), b"{\"n\":1}").unwrap();
        }
        last[usize::from(partition) - 1] = connection.set(b"last", b"1").unwrap().unwrap().version;
    }
    for partition in [1, 2u8] {
        consumer.published(partition, last[usize::from(partition) - 1]);
    }
    assert!(consumer.stop().success());
    let logs = home.path().join("cdc_logs");
    let files = changes::files(&logs, 1).len() + changes::files(&logs, 2).len();
    assert!(files > 4, "{files} files");
    let db = duck::db(&home);
    // It has loaded what came, and at the end the rest is.
    let said_by_it = loader.stop();
    assert!(!said_by_it.contains("loaded 0 lines"), "{said_by_it}");
    let rest = load_once(&logs, &db, &[]);
    assert!(rest.status.success(), "{}", said(&rest));
    assert_eq!(query(&db, "SELECT count(*)::VARCHAR FROM turnstone_files"), files.to_string());
    for partition in [1, 2] {
        let replayed = replay(&logs, partition);
        assert_eq!(replayed.state.len(), 501);
        duck::compare(&db, partition, &replayed);
    }
    assert_eq!(
        query(&db, "SELECT sum((json->>'$.n')::BIGINT)::VARCHAR FROM turnstone_json WHERE key LIKE 'device-%'"),
        "1000"
    );
}

#[test]
fn changes_come_from_the_server_without_files() {
    let home = TestHome::new("duck-direct");
    let server = home.serve(&["--executors", "2"]);
    follow(&home, &server, &[("partition", json!([1, 2])), ("value_format", json!("json"))]);
    let db = home.path().join("direct.duckdb");
    let (port, mut last) = (free_port(), [0; 2]);
    let metrics = format!("127.0.0.1:{port}");
    let mut kills = 0;
    for round in 0..6u32 {
        let mut loader = Loader::from_server(&home, &db, &["--metrics", &metrics]);
        for partition in [1, 2u8] {
            let mut connection = home.connect(&server, Role::Admin, partition);
            for n in 0..200u32 {
                let key = format!("device-{}", n % 70);
                connection.begin().unwrap();
                connection.set(key.as_bytes(), format!("{{\"n\":{n}, \"round\":{round}}}").as_bytes()).unwrap();
                connection.set(&n.to_be_bytes(), &vec![b'x'; if n % 50 == 0 { 20_000 } else { 3 }]).unwrap();
                connection.commit().unwrap();
            }
            connection.del(b"device-3").unwrap();
            if round == 3 {
                connection.call(&turnstone_net::wire::Request::FlushDb).unwrap();
            }
            last[usize::from(partition) - 1] = connection.set(b"last", b"1").unwrap().unwrap().version;
        }
        if round % 2 == 0 {
            // At any moment.
            loader.end();
            kills += 1;
            continue;
        }
        let figure = |partition: u8| {
            format!("turnstone_duck_version{{partition=\"{partition}\"}} {}\n", last[usize::from(partition) - 1])
        };
        eventually(PATIENCE, "the metrics say that everything is loaded", || {
            let metrics = http_get(port, "/metrics");
            metrics.contains(&figure(1)) && metrics.contains(&figure(2))
        });
        assert!(http_get(port, "/health").ends_with("ok\n"));
        assert!(loader.stop().contains("loaded "));
    }
    assert_eq!(kills, 3);
    let rest = stream_once(&home, &db, &[]);
    assert!(rest.status.success() && said(&rest).contains("loaded 0 lines"), "{}", said(&rest));
    // The same changes as files have them; a database gets its changes one way.
    let mut consumer = Consumer::start(&home);
    for partition in [1, 2u8] {
        consumer.published(partition, last[usize::from(partition) - 1]);
    }
    assert!(consumer.stop().success());
    let logs = home.path().join("cdc_logs");
    for partition in [1, 2] {
        duck::compare(&db, partition, &replay(&logs, partition));
    }
    let refused = load_once(&logs, &db, &[]);
    assert!(!refused.status.success() && said(&refused).contains("go on with --from-server"), "{}", said(&refused));
    let by_files = duck::db(&home);
    assert!(load_once(&logs, &by_files, &[]).status.success());
    let refused = stream_once(&home, &by_files, &[]);
    assert!(!refused.status.success() && said(&refused).contains("go on with -input"), "{}", said(&refused));
    // Another server's history is not laid over this one.
    let other = TestHome::beside(&home, "duck-other");
    let other_server = other.serve(&["--executors", "1"]);
    other.connect(&other_server, Role::Client, 1).set(b"k", b"of another server").unwrap();
    changes::configure(&home, &[("host", json!(other_server.address))]);
    let refused = stream_once(&home, &db, &[]);
    assert!(!refused.status.success() && said(&refused).contains("is it another one"), "{}", said(&refused));
    duck::compare(&db, 1, &replay(&logs, 1));
    changes::configure(&home, &[("host", json!(server.address)), ("start", json!("copy"))]);
    // A copy, and the log behind it: all of it, though the copy is as old as its checkpoint.
    home.connect(&server, Role::Admin, 1).checkpoint().unwrap();
    let position = home.connect(&server, Role::Client, 1).set(b"behind", b"the copy").unwrap().unwrap();
    let copied = home.path().join("copied.duckdb");
    let shared = home.path().join("shared.duckdb");
    let copy = stream_once(&home, &copied, &["--id", "second", "--read-copy", &shared.display().to_string()]);
    assert!(copy.status.success(), "{}", said(&copy));
    for db in [&copied, &shared] {
        let sql = "SELECT version::VARCHAR FROM turnstone_watermark WHERE partition = 1";
        assert_eq!(query(db, sql), position.version.to_string());
    }
    let stat = home.connect(&server, Role::Client, 1).stat().unwrap();
    assert!(stat.contains("cdc-worker-1.duck"), "it holds the log under a name of its own: {stat}");
}

#[test]
fn what_a_promotion_has_lost_is_taken_out_of_the_tables() {
    let db = |home: &TestHome| home.path().join("direct.duckdb");
    let promoted = promotion::lose("duck-retract", |home, leader, lost| {
        follow(home, leader, &[]);
        let mut consumer = Consumer::start(home);
        consumer.published(1, lost);
        assert!(consumer.stop().success());
        let logs = home.path().join("cdc_logs");
        for loaded in [load_once(&logs, &duck::db(home), &[]), stream_once(home, &db(home), &[])] {
            assert!(loaded.status.success(), "{}", said(&loaded));
        }
        for db in [duck::db(home), db(home)] {
            let table = table(&db);
            assert!(table[b"key 3".as_slice()].1 == b"lost" && !table.contains_key(b"last".as_slice()));
        }
    });
    let home = &promoted.home;
    let logs = home.path().join("cdc_logs");
    let mut consumer = Consumer::start(home);
    eventually(PATIENCE, "the consumer has the new history", || promoted.is_in(&replay(&logs, 1)));
    assert!(consumer.stop().success());
    for loaded in [load_once(&logs, &duck::db(home), &[]), stream_once(home, &db(home), &[])] {
        assert!(loaded.status.success(), "{}", said(&loaded));
    }
    let replayed = replay(&logs, 1);
    for db in [duck::db(home), db(home)] {
        promoted.check(&table(&db));
        duck::compare(&db, 1, &replayed);
    }
}

#[test]
fn full_disks_lose_nothing() {
    let (Some(of_server), Some(of_loader)) =
        (SmallDisk::new("duck-server-disk", 64 << 10), SmallDisk::new("duck-disk", 24 << 10))
    else {
        println!("NOT RUN: a small disk cannot be mounted here");
        return;
    };
    let home = TestHome::within(of_server.path(), "home");
    let server = home.serve(&["--executors", "1", "--wal-max-size", "1MiB"]);
    let elsewhere = turnstone_tests::real::TempDir::new("duck-full");
    let logs = elsewhere.path().join("logs");
    follow(&home, &server, &[("output_dir", json!(logs)), ("state_file", json!(elsewhere.path().join("state")))]);
    let mut consumer = Consumer::start(&home);
    eventually(PATIENCE, "the directory is made", || logs.is_dir());
    let db = of_loader.path().join("t.duckdb");
    let mut loader = Loader::watch(&logs, &db, &[]);
    // The server's disk fills up: commits are refused, and what was acknowledged stays.
    let mut connection = home.connect(&server, Role::Client, 1);
    let (mut acknowledged, mut refused) = (0, 0);
    let rng = Rng::new(5);
    for n in 0..80_000u32 {
        // What DuckDB does not make smaller.
        let value: String = (0..90).map(|_| format!("{:016x}", rng.next())).collect();
        match connection.set(format!("key {n}").as_bytes(), value.as_bytes()) {
            Ok(position) => acknowledged = position.expect("it changed something").version,
            Err(error) => {
                assert!(error.to_string().contains("space") || error.to_string().contains("FULL"), "{error}");
                refused += 1;
                break;
            }
        }
    }
    assert!(refused > 0, "{acknowledged} commits went onto a small disk");
    // So does the loader's, which ends and says so.
    let (well, why) = loader.ends();
    assert!(!well && (why.contains("space") || why.contains("No space")), "{why}");
    consumer.published(1, acknowledged);
    assert!(consumer.stop().success());
    let replayed = replay(&logs, 1);
    assert_eq!((replayed.last, replayed.state.len() as u64), (acknowledged, acknowledged));
    // What it has is whole; with room it goes on behind it.
    let moved = elsewhere.path().join("moved.duckdb");
    std::fs::copy(&db, &moved).unwrap();
    let wal = of_loader.path().join("t.duckdb.wal");
    if wal.exists() {
        std::fs::copy(wal, elsewhere.path().join("moved.duckdb.wal")).unwrap();
    }
    let before: u64 = query(&moved, "SELECT count(*)::VARCHAR FROM turnstone_history").parse().unwrap();
    assert!(before < acknowledged, "{before}");
    let rest = load_once(&logs, &moved, &[]);
    assert!(rest.status.success(), "{}", said(&rest));
    duck::compare(&moved, 1, &replayed);
}

#[test]
fn real_records_equal_the_server_and_its_log() {
    let report = records::run(20_000);
    println!("{report:?}");
    assert!(report.records >= 20_000 && report.changes > report.records && report.keys > 5_000, "{report:?}");
}

#[test]
fn kills_of_all_three_lose_repeat_and_tear_nothing() {
    let mut loader: Option<Loader> = None;
    let finished = kills::campaign(kills::Length::of(25, 11), &mut loader);
    assert!(loader.take().is_some_and(|loader| loader.kills > 3));
    let logs = finished.home.path().join("cdc_logs");
    let output = load_once(&logs, &duck::db(&finished.home), &[]);
    assert!(output.status.success(), "{}", said(&output));
    for (partition, replayed) in &finished.replays {
        let replayed: &Replay = replayed;
        duck::compare(&duck::db(&finished.home), *partition, replayed);
    }
}
