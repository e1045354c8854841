//! The load generator as people run it: its flags with one dash and two, its report, what it says when it cannot run.

use serde_json::Value;
use std::process::{Command, Output, Stdio};
use turnstone_net::tls::Role;
use turnstone_tests::real::{TestHome, TestServer, binary, figure, free_port};

fn run(home: &TestHome, words: &[&str]) -> Output {
    let mut command = Command::new(binary("turnstone-bench"));
    command.arg("--home").arg(home.path()).args(words).stdin(Stdio::null());
    command.output().expect("turnstone-bench runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs it to a good end; answers what it printed.
fn good(home: &TestHome, words: &[&str]) -> String {
    let output = run(home, words);
    assert!(output.status.success(), "{words:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// The same with `--json`; answers its phases.
fn phases(home: &TestHome, words: &[&str]) -> Vec<Value> {
    let printed = good(home, &[words, &["--json"]].concat());
    let value: Value = serde_json::from_str(&printed).unwrap_or_else(|e| panic!("{words:?}: {e}: {printed}"));
    value.as_array().expect("a list of phases").clone()
}

fn address(server: &TestServer) -> String {
    format!("localhost:{}", server.port)
}

fn number(phase: &Value, name: &str) -> f64 {
    phase[name].as_f64().unwrap_or_else(|| panic!("{name} is missing in {phase}"))
}

/// A phase that did what it was asked for, without errors, and measured it.
fn check(phase: &Value, transactions: u64, measured: &[&str]) {
    assert_eq!(phase["transactions"], transactions, "{phase}");
    assert_eq!(phase["errors"], serde_json::json!({}), "{phase}");
    assert!(number(phase, "per_second") > 0.0 && number(phase, "seconds") > 0.0, "{phase}");
    for name in ["read_us", "write_us"] {
        let latency = &phase[name];
        assert_eq!(latency.is_null(), !measured.contains(&name), "{name} in {phase}");
        if !latency.is_null() {
            let (p50, p99, max) = (number(latency, "p50"), number(latency, "p99"), number(latency, "max"));
            assert!(0.0 < p50 && p50 <= p99 && p99 <= max, "{latency}");
        }
    }
}

#[test]
fn the_requirements_line_runs_and_reports() {
    let home = TestHome::new("bench-flags");
    let server = home.serve(&[]);
    let to = address(&server);
    let printed = good(&home, &["-addr", &to, "-c", "50", "-n", "1000", "-ratio", "0.5"]);
    for expected in ["50 connections", "MIXED, 50 % reads: 1000 transactions", "p99.9", "no errors", "closed loop"] {
        assert!(printed.contains(expected), "{expected} is missing in\n{printed}");
    }
    // Without a ratio everything is written, then everything is read, and found.
    let both = phases(&home, &["--host", &to, "-c", "4", "-n", "200", "-depth", "8", "-v", "777", "-k", "40"]);
    assert_eq!((both[0]["phase"].as_str(), both[1]["phase"].as_str(), both.len()), (Some("WRITE"), Some("READ"), 2));
    check(&both[0], 200, &["write_us"]);
    check(&both[1], 200, &["read_us"]);
    assert_eq!((both[1]["not_found"].as_u64(), both[1]["value_bytes"].as_u64()), (Some(0), Some(777)));
    assert!(number(&both[1], "bytes_in") >= 200.0 * 777.0);
    let mut client = home.connect(&server, Role::Client, 1);
    let value = client.get(b"bench-3-49xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx").expect("it serves");
    assert_eq!(value.map(|value| value.len()), Some(777), "the last key of the last connection");
}

#[test]
fn prefix_batch_and_partitions_are_where_they_were_asked_for() {
    let home = TestHome::new("bench-places");
    let server = home.serve(&[]);
    let to = address(&server);
    let line = ["-addr", &to, "-c", "4", "-n", "400", "-ratio", "0", "-batch", "10", "-prefix", "mine", "-db", "3"];
    check(&phases(&home, &line)[0], 40, &["write_us"]);
    let mut client = home.connect(&server, Role::Admin, 3);
    assert_eq!(figure(&client.stat().expect("it serves"), "commits"), 40, "ten operations to a transaction");
    client.select(1).expect("it serves");
    assert_eq!(figure(&client.stat().expect("it serves"), "commits"), 0);
    check(
        &phases(&home, &["-addr", &to, "-c", "4", "-n", "40", "-ratio", "0", "-partition", "5-8"])[0],
        40,
        &["write_us"],
    );
    for partition in 5..=8 {
        client.select(partition).expect("it serves");
        assert_eq!(figure(&client.stat().expect("it serves"), "commits"), 10, "partition {partition}");
    }
}

#[test]
fn both_dialects_a_rate_and_a_duration_are_kept() {
    let home = TestHome::new("bench-pace");
    let server = home.serve(&[]);
    let to = address(&server);
    for dialect in ["v1", "turnstone2"] {
        let line = ["-addr", &to, "-c", "5", "-n", "100", "-depth", "4", "--dialect", dialect];
        let both = phases(&home, &line);
        check(&both[0], 100, &["write_us"]);
        check(&both[1], 100, &["read_us"]);
        assert_eq!(both[1]["not_found"], 0, "{dialect}");
    }
    let line = ["-addr", &to, "-c", "2", "-ratio", "1", "--rate", "200", "--duration", "1s", "--warmup", "200ms"];
    let paced = &phases(&home, &line)[0];
    // 0.8 s of it are measured: 160 transactions, whatever the server could do.
    assert!((120.0..=165.0).contains(&number(paced, "transactions")), "{paced}");
    assert!((0.6..=1.5).contains(&number(paced, "seconds")), "{paced}");
    assert_eq!((paced["rate"].as_f64(), paced["connections"].as_u64()), (Some(200.0), Some(2)));
}

#[test]
fn what_cannot_run_says_why() {
    let home = TestHome::new("bench-wrong");
    let server = home.serve(&["--max-conns", "3"]);
    let to = address(&server);
    let nobody = format!("localhost:{}", free_port());
    let elsewhere = home.path().join("nothing").display().to_string();
    let cases: [(&[&str], i32, &str); 9] = [
        (&["-addr", &nobody, "-n", "1"], 1, "nothing listens on"),
        (&["-addr", "localhost:port", "-n", "1"], 1, "port"),
        (&["-addr", &to, "-c", "8", "-n", "8"], 1, "BUSY"),
        (&["-addr", &to, "-c", "1", "-n", "1", "--home", &elsewhere], 2, "--home"),
        (&["-addr", &to, "-ratio", "1.5"], 2, "1.5"),
        (&["-addr", &to, "-c", "0"], 2, "0 is not in"),
        (&["-addr", &to, "-n", "many"], 2, "many"),
        (&["-addr", &to, "-partition", "17"], 2, "they are 0 to 16"),
        (&["-addr", &to, "-connections", "5"], 2, "connections"),
    ];
    for (words, status, expected) in cases {
        let output = run(&home, words);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{words:?}: {said}");
        assert!(said.contains(expected), "{words:?}: {expected} is missing in\n{said}");
    }
    // A partition that is there, in a place that has no certificates.
    let bare = Command::new(binary("turnstone-bench")).args(["-addr", &to, "-n", "1", "--home", &elsewhere]).output();
    let said = text(&bare.expect("it runs").stderr);
    assert!(said.contains("turnstone --init --home"), "{said}");
}
