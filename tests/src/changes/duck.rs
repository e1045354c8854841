//! The loader as a process, and its database as somebody else's client sees it.

use super::kills::Victim;
use super::{PATIENCE, Replay};
use crate::real::{self, TestHome};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// A loader that watches a home's change files.
pub struct Loader {
    child: Child,
    /// How often it was killed.
    pub kills: u64,
}

/// A loader of files, to be started.
pub fn command(input: &Path, db: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(real::loader());
    command.arg("-input").arg(input).arg("-db").arg(db).args(["-poll", "50ms"]).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// A loader that reads from a home's server, to be started.
pub fn stream_command(home: &TestHome, db: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(real::loader());
    command.arg("--from-server").arg("--home").arg(home.path()).arg("-db").arg(db).args(["-poll", "50ms"]).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn start(home: &TestHome) -> Child {
    let logs = home.path().join("cdc_logs");
    std::fs::create_dir_all(&logs).expect("it can be made");
    command(&logs, &db(home), &[]).spawn().expect("turnstone-duck runs")
}

/// Where a home's database is.
pub fn db(home: &TestHome) -> PathBuf {
    home.path().join("analytics.duckdb")
}

/// Loads everything that is there; answers what it said.
pub fn load_once(input: &Path, db: &Path, more: &[&str]) -> Output {
    // Of whatever zone the host is, times are of UTC.
    let mut command = command(input, db, &[&["-once"], more].concat());
    command.env("TZ", "Asia/Kolkata").output().expect("turnstone-duck runs")
}

/// Loads everything that a home's server has; answers what it said.
pub fn stream_once(home: &TestHome, db: &Path, more: &[&str]) -> Output {
    stream_command(home, db, &[&["-once"], more].concat()).output().expect("turnstone-duck runs")
}

impl Loader {
    /// Starts one that reads from a home's server.
    pub fn from_server(home: &TestHome, db: &Path, more: &[&str]) -> Loader {
        Loader { child: stream_command(home, db, more).spawn().expect("turnstone-duck runs"), kills: 0 }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`.
    pub fn end(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    /// Waits until it has ended by itself; answers whether it ended well, and what it said.
    pub fn ends(&mut self) -> (bool, String) {
        let mut status = None;
        real::eventually(PATIENCE, "the loader ends", || {
            status = self.child.try_wait().expect("it is ours");
            status.is_some()
        });
        (status.is_some_and(|status| status.success()), self.ended())
    }

    /// Starts one.
    pub fn start(home: &TestHome) -> Loader {
        Loader { child: start(home), kills: 0 }
    }

    /// Starts one for these.
    pub fn watch(input: &Path, db: &Path, more: &[&str]) -> Loader {
        Loader { child: command(input, db, more).spawn().expect("turnstone-duck runs"), kills: 0 }
    }

    /// SIGTERM; answers what it said, if it ended well.
    pub fn stop(&mut self) -> String {
        Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().expect("kill runs");
        let (well, said) = self.ends();
        assert!(well, "{said}");
        said
    }
}

impl Victim for Option<Loader> {
    fn kill(&mut self, home: &TestHome) {
        let kills = self.as_ref().map_or(0, |loader| loader.kills + 1);
        if let Some(loader) = self {
            // It may have ended by itself: an error that must not happen.
            assert_eq!(loader.child.try_wait().expect("it is ours"), None, "{}", loader.ended());
            loader.child.kill().expect("it can be killed");
            loader.child.wait().expect("it ends");
        }
        *self = Some(Loader { child: start(home), kills });
    }
}

impl Loader {
    fn ended(&mut self) -> String {
        let mut said = String::new();
        let _ = self.child.stderr.take().map(|mut stderr| stderr.read_to_string(&mut said));
        said
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A key or a value as it was: columns have base64 of what is no text.
pub fn bytes(text: &str, encoding: &str) -> Vec<u8> {
    if encoding == "base64" { STANDARD.decode(text).expect("it is base64") } else { text.as_bytes().to_vec() }
}

/// What a query answers, a value for each row.
pub fn query(db: &Path, sql: &str) -> Vec<Value> {
    let mut rows = Vec::new();
    each_row(db, sql, |row| rows.push(row));
    rows
}

/// The only value of the only row that a query answers.
pub fn value(db: &Path, sql: &str) -> String {
    let rows = query(db, sql);
    let value = rows[0].as_object().and_then(|row| row.values().next()).expect("a value");
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// What a process wrote to its standard error.
pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Calls `take` with each row that a query answers, as it comes.
pub fn each_row(db: &Path, sql: &str, mut take: impl FnMut(Value)) {
    let mut command = Command::new(real::loader());
    command.arg("-db").arg(db).args(["--query", sql]).stdout(Stdio::piped());
    let mut child = command.spawn().expect("turnstone-duck runs");
    let rows = BufReader::new(child.stdout.take().expect("it is piped"));
    for line in rows.lines() {
        take(serde_json::from_str(&line.expect("it can be read")).expect("a row is JSON"));
    }
    assert!(child.wait().expect("it ends").success(), "{sql} failed");
}

/// Compares a partition's current table and its history with what the change files come to.
pub fn compare(db: &Path, partition: u8, replayed: &Replay) {
    let pair = |row: &Value, text: &str, encoding: &str| Some(bytes(row[text].as_str()?, row[encoding].as_str()?));
    let number = |row: &Value, name: &str| row[name].as_u64().expect("a number");
    let sql = format!(
        "SELECT key, key_encoding, value, value_encoding, version FROM turnstone_data WHERE partition = {partition}"
    );
    let mut found = BTreeMap::new();
    each_row(db, &sql, |row| {
        let key = pair(&row, "key", "key_encoding").expect("a key");
        let value = pair(&row, "value", "value_encoding").expect("a value");
        assert_eq!(found.insert(key, (number(&row, "version"), value)), None, "a key is there twice");
    });
    assert!(
        found == replayed.state,
        "partition {partition}: {} keys, {} in the files",
        found.len(),
        replayed.state.len()
    );
    let sql = format!(
        "SELECT version, n, of, key, key_encoding, value, value_encoding FROM turnstone_history
         WHERE partition = {partition} AND copy IS NULL ORDER BY version, n"
    );
    let mut changes = replayed.changes.iter();
    each_row(db, &sql, |row| {
        let change = changes.next().expect("the history has no more than the files");
        let at = (number(&row, "n") as u32, number(&row, "of") as u32);
        let got =
            (number(&row, "version"), at, pair(&row, "key", "key_encoding"), pair(&row, "value", "value_encoding"));
        assert!(
            got == (change.version, change.at, change.key.clone(), change.value.clone()),
            "{got:?} is not {change:?}"
        );
    });
    assert_eq!(changes.next(), None, "a change is missing in the history");
}
