//! Transcripts against a server made of a map.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use turnstone_net::wire::{Dialect, Reply};

use super::*;
use crate::cli::words::split;

const POSITION: Position = Position { partition: 1, epoch: 2, epoch_id: 3, version: 4 };

/// What the fake server knows, shared by all its connections.
#[derive(Default)]
struct World {
    map: BTreeMap<Vec<u8>, Vec<u8>>,
    log: Vec<String>,
    connections: usize,
    /// The next call breaks the connection.
    breaks: bool,
}

struct Fake(Rc<RefCell<World>>);

impl Link for Fake {
    fn call(&mut self, request: &Request<'_>) -> Result<OwnedReply, ClientError> {
        let mut world = self.0.borrow_mut();
        world.log.push(request.opcode().name().to_owned());
        if std::mem::take(&mut world.breaks) {
            return Err(ClientError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        let dialect = Dialect::Turnstone2;
        let mut out = Vec::new();
        match request {
            Request::Ping => reply::encode_ok(dialect, 1, &[b"PONG"], &mut out),
            Request::Get { key } => match world.map.get(*key) {
                Some(value) => reply::encode_ok(dialect, 1, &[value], &mut out),
                None => reply::encode_not_found(dialect, 1, &mut out),
            },
            Request::Set { key, value } => {
                world.map.insert(key.to_vec(), value.to_vec());
                reply::encode_committed(dialect, 1, POSITION, &mut out);
            }
            Request::MGet(keys) => {
                let values: Vec<_> = keys.iter().map(|key| world.map.get(*key)).collect();
                reply::encode_mget(dialect, 1, &values, &mut out);
            }
            Request::MDel(keys) => {
                let count = keys.iter().filter(|key| world.map.remove(**key).is_some()).count();
                reply::encode_deleted(dialect, 1, count as u32, Some(POSITION), &mut out);
            }
            Request::Commit => reply::encode_committed(dialect, 1, POSITION, &mut out),
            Request::Stat => reply::encode_ok(dialect, 1, &[b"{\"b\":1,\"a\":[]}"], &mut out),
            Request::Checkpoint => {
                let text = "role client may not checkpoint";
                reply::encode_error(dialect, 1, ErrorCode::Denied, text, &mut out);
            }
            _ => reply::encode_ok(dialect, 1, &[], &mut out),
        }
        let (reply, _) = Reply::decode(dialect, &out).unwrap();
        let reply = OwnedReply { status: reply.status, id: reply.id, body: reply.body.to_vec() };
        match Status::from_byte(reply.status) {
            Some(Status::Ok | Status::NotFound) => Ok(reply),
            _ => {
                let (code, text) = reply::decode_error(dialect, &reply.body);
                Err(ClientError::Server { status: reply.status, code, text })
            }
        }
    }
}

fn runner(world: &Rc<RefCell<World>>, options: Options, answer: Option<&'static str>) -> Runner<'static, Fake> {
    let world = world.clone();
    let connect = move |_| {
        world.borrow_mut().connections += 1;
        Ok(Fake(world.clone()))
    };
    Runner::new(Box::new(connect), Box::new(move |_| answer.map(str::to_owned)), options, None)
}

fn run(runner: &mut Runner<'_, Fake>, line: &str) -> (Outcome, String) {
    let command = Command::parse(&split(line.as_bytes()).unwrap()).unwrap().unwrap();
    let mut out = Vec::new();
    let outcome = runner.run(&command, &mut out).unwrap();
    (outcome, String::from_utf8_lossy(&out).into_owned())
}

fn transcript(options: Options, lines: &[(&str, &str)]) {
    let world = Rc::default();
    let mut runner = runner(&world, options, None);
    for (line, expected) in lines {
        assert_eq!(run(&mut runner, line).1, *expected, "{line}");
    }
}

#[test]
fn the_session_of_the_requirement() {
    transcript(
        Options::default(),
        &[
            ("select 1", "OK\n"),
            ("set mykey \"Hello Turnstone\"", "OK\n"),
            ("get mykey", "OK: Hello Turnstone\n"),
            ("begin", "OK\n"),
            ("set txkey \"This is atomic\"", "OK\n"),
            ("commit", "OK\n"),
            ("replicaof localhost:6379 1", "Replication started from localhost:6379/1\n"),
            ("replicaof no one", "OK\n"),
        ],
    );
}

#[test]
fn values_and_errors() {
    transcript(
        Options::default(),
        &[
            ("ping", "PONG\n"),
            ("get none", "(nil)\n"),
            ("set b \"\\xff\\x00\"", "OK\n"),
            ("get b", "OK: \\xff\\x00\n"),
            ("set e ''", "OK\n"),
            ("get e", "OK: \n"),
            ("mget e none b", "1) \n2) (nil)\n3) \\xff\\x00\n"),
            ("mdel e none b", "OK: 2\n"),
            ("stat", "{\n  \"b\": 1,\n  \"a\": []\n}\n"),
            ("checkpoint", "ERR: DENIED role client may not checkpoint\n"),
        ],
    );
}

#[test]
fn raw_output_is_the_value_alone() {
    let world = Rc::default();
    let mut runner = runner(&world, Options { raw: true, ..Options::default() }, None);
    run(&mut runner, "set b \"\\xff\\x00\"");
    let mut out = Vec::new();
    runner.run(&Command::Get(b"b".into()), &mut out).unwrap();
    runner.run(&Command::Get(b"none".into()), &mut out).unwrap();
    runner.run(&Command::MGet(vec![b"b".into(), b"none".into()]), &mut out).unwrap();
    assert_eq!(out, b"\xff\0\n\n\xff\0\n\n");
    assert_eq!(run(&mut runner, "stat").1, "{\"b\":1,\"a\":[]}\n");
}

#[test]
fn positions_are_printed_when_wanted() {
    let options = Options { verbose: true, ..Options::default() };
    transcript(options, &[("set k v", "OK 1:2:4\n"), ("commit", "OK 1:2:4\n"), ("mdel k", "OK: 1 1:2:4\n")]);
}

#[test]
fn outcomes() {
    let world = Rc::default();
    let mut runner = runner(&world, Options::default(), None);
    assert_eq!(run(&mut runner, "get none").0, Outcome::Done);
    assert_eq!(run(&mut runner, "checkpoint").0, Outcome::Failed);
    assert_eq!(run(&mut runner, "clear").0, Outcome::Clear);
    assert_eq!(run(&mut runner, "help get").0, Outcome::Done);
    assert_eq!(run(&mut runner, "quit").0, Outcome::Quit);
}

#[test]
fn flushdb_wants_the_number_or_yes() {
    let flushed = |options: Options, answer: Option<&'static str>, line: &str| {
        let world: Rc<RefCell<World>> = Rc::default();
        let mut runner = runner(&world, options, answer);
        run(&mut runner, "select 3");
        let (outcome, text) = run(&mut runner, line);
        let sent = world.borrow().log.contains(&"flushdb".to_owned());
        assert_eq!(sent, outcome == Outcome::Done, "{text}");
        sent
    };
    let yes = Options { yes: true, ..Options::default() };
    assert!(!flushed(Options::default(), None, "flushdb"));
    assert!(!flushed(Options::default(), Some(""), "flushdb"));
    assert!(!flushed(Options::default(), Some("1"), "flushdb"));
    assert!(!flushed(Options::default(), Some("y"), "flushdb"));
    assert!(flushed(Options::default(), Some("3\n"), "flushdb"));
    assert!(flushed(Options::default(), None, "flushdb --yes"));
    assert!(flushed(yes, None, "flushdb"));
}

#[test]
fn a_lost_connection_is_told_and_made_anew() {
    let world: Rc<RefCell<World>> = Rc::default();
    let mut runner = runner(&world, Options::default(), None);
    run(&mut runner, "select 7");
    run(&mut runner, "begin");
    assert!(runner.in_transaction());
    world.borrow_mut().breaks = true;
    let (outcome, text) = run(&mut runner, "get k");
    assert_eq!(outcome, Outcome::Lost);
    assert!(text.contains("connection lost; an open transaction was rolled back\n"), "{text}");
    assert!(!runner.in_transaction());

    // The next command runs on a new connection, on the same partition.
    world.borrow_mut().log.clear();
    assert_eq!(run(&mut runner, "get k"), (Outcome::Done, "(nil)\n".to_owned()));
    assert_eq!(world.borrow().log, ["select", "get"]);
    assert_eq!((world.borrow().connections, runner.partition()), (2, 7));

    // A write whose reply never came is not sent again, and the doubt is told.
    world.borrow_mut().log.clear();
    world.borrow_mut().breaks = true;
    let (_, text) = run(&mut runner, "set k v");
    assert!(text.contains("whether the last command was carried out is unknown"), "{text}");
    assert_eq!(world.borrow().log, ["set"]);
    run(&mut runner, "begin");
    world.borrow_mut().breaks = true;
    let (_, text) = run(&mut runner, "commit");
    assert!(text.contains("its outcome is unknown"), "{text}");
}

#[test]
fn the_transaction_is_tracked() {
    let world = Rc::default();
    let mut runner = runner(&world, Options::default(), None);
    for (line, open) in [("begin", true), ("commit", false), ("begin", true), ("abort", false)] {
        run(&mut runner, line);
        assert_eq!(runner.in_transaction(), open, "{line}");
    }
}
