//! Change files that a test writes itself, in DuckDB. The loader is built here: it needs a library that the rest does not.

use serde_json::json;
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};
use turnstone_cdc::ValueFormat;
use turnstone_cdc::line::{self, InTransaction, Op, Place};
use turnstone_tests::changes::PATIENCE;
use turnstone_tests::changes::duck::{Loader, load_once, said, value as query};
use turnstone_tests::real::{TempDir, eventually, loader};

const FORMAT: ValueFormat = ValueFormat::Json;

/// Change files that a test writes itself.
struct Files {
    directory: TempDir,
    number: u64,
}

fn place(version: u64) -> Place {
    Place { partition: 1, epoch: 1, version }
}

fn set(version: u64, key: &str, value: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let at = InTransaction { n: 1, of: 1, ts: 1_700_000_000_000 + version };
    line::put_change(place(version), at, Op::Set(key.as_bytes(), value.as_bytes()), FORMAT, &mut out);
    out
}

fn delete(version: u64, key: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let at = InTransaction { n: 1, of: 1, ts: 1_700_000_000_000 + version };
    line::put_change(place(version), at, Op::Delete(key.as_bytes()), FORMAT, &mut out);
    out
}

impl Files {
    fn new(label: &str) -> Files {
        let directory = TempDir::new(label);
        std::fs::create_dir(directory.path().join("in")).unwrap();
        Files { directory, number: 0 }
    }
    fn input(&self) -> PathBuf {
        self.directory.path().join("in")
    }
    fn db(&self) -> PathBuf {
        self.directory.path().join("t.duckdb")
    }
    fn add(&mut self, lines: &[Vec<u8>]) -> PathBuf {
        self.number += 1;
        let path = self.input().join(format!("cdc-p01-{:012}-e1-{}-0.jsonl", self.number, self.number));
        std::fs::write(&path, lines.concat()).unwrap();
        path
    }
    /// With the epoch's id in its name, as consumers write them.
    fn add_of(&mut self, epoch: (u64, u64), lines: &[Vec<u8>]) -> PathBuf {
        let path = self.add(lines);
        let name = format!("cdc-p01-{:012}-e{}-{:016x}-{}-0.jsonl", self.number, epoch.0, epoch.1, self.number);
        let named = path.with_file_name(name);
        std::fs::rename(path, &named).unwrap();
        named
    }
    fn load(&self, more: &[&str]) -> std::process::Output {
        load_once(&self.input(), &self.db(), more)
    }
    fn query(&self, sql: &str) -> String {
        query(&self.db(), sql)
    }
    fn data(&self) -> String {
        self.query("SELECT coalesce(string_agg(key || '=' || value, ' ' ORDER BY key), '') FROM turnstone_data")
    }
}

#[test]
fn foreign_files_and_flags_are_not_passed_over_in_silence() {
    let mut files = Files::new("foreign");
    files.add(&[set(1, "a", "1")]);
    std::fs::write(files.input().join("cdc-1700000000.jsonl"), b"{\"op\":\"set\"}\n").unwrap();
    std::fs::write(files.input().join("notes.txt"), b"\n").unwrap();
    let output = files.load(&["-min-age", "1m", "-vacuum-interval", "1h"]);
    let said = said(&output);
    assert!(output.status.success() && said.contains("passed over one file of"), "{said}");
    assert!(said.contains("cdc-1700000000.jsonl the first") && !said.contains("notes.txt"), "{said}");
    assert!(said.contains("-min-age has no effect") && said.contains("-vacuum-interval has no effect"), "{said}");
    assert_eq!(files.data(), "a=1");
}

#[test]
fn what_was_loaded_is_not_loaded_again_and_archived_files_leave() {
    let mut files = Files::new("duck-again");
    files.add(&[set(1, "a", "1"), set(2, "b", "2")]);
    files.add(&[set(3, "a", "3"), delete(4, "b")]);
    assert!(said(&files.load(&[])).contains("loaded 4 lines of 2 files"));
    assert_eq!(files.data(), "a=3");
    assert!(said(&files.load(&[])).contains("loaded 0 lines of 0 files"));
    let loaded: u64 =
        files.query("SELECT epoch(max(loaded_at))::BIGINT::VARCHAR FROM turnstone_files").parse().unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(loaded) < 900, "loaded at {loaded}, now it is {now}");
    let archive = files.directory.path().join("archive");
    let archived = files.load(&["-archive", &archive.display().to_string()]);
    assert!(said(&archived).contains("loaded 0 lines"), "{}", said(&archived));
    assert_eq!(std::fs::read_dir(&archive).unwrap().count(), 2);
    assert_eq!(std::fs::read_dir(files.input()).unwrap().count(), 0);
    // A consumer that began anew cuts elsewhere: every line is known, until one is not.
    files.number = 0;
    let name = files.input().join("cdc-p01-000000000001-e1-1-5.jsonl");
    std::fs::write(
        name,
        [set(1, "a", "1"), set(2, "b", "2"), set(3, "a", "3"), delete(4, "b"), set(5, "c", "5")].concat(),
    )
    .unwrap();
    assert!(files.load(&[]).status.success());
    assert_eq!(files.data(), "a=3 c=5");
    assert_eq!(
        files.query("SELECT string_agg(version::VARCHAR, ' ' ORDER BY version) FROM turnstone_history"),
        "1 2 3 4 5"
    );
}

#[test]
fn files_of_a_server_that_began_anew_are_another_history() {
    let mut files = Files::new("duck-anew");
    let loaded = files.add_of((1, 0xa), &[set(1, "a", "old"), set(2, "b", "old"), set(3, "c", "old")]);
    assert!(files.load(&[]).status.success());
    std::fs::remove_file(loaded).unwrap();
    // The new server is longer, shorter, or has the same numbers of everything.
    for (number, lines) in [
        (1, vec![set(1, "a", "new"), set(2, "b", "new"), set(3, "c", "new"), set(4, "d", "new")]),
        (1, vec![set(1, "x", "new")]),
        (0, vec![set(1, "a", "new"), set(2, "b", "new"), set(3, "c", "new")]),
    ] {
        files.number = number;
        let path = files.add_of((1, 0xb), &lines);
        let output = files.load(&[]);
        assert!(!output.status.success() && said(&output).contains("it is of another history"), "{}", said(&output));
        assert_eq!(files.data(), "a=old b=old c=old", "nothing of it is there");
        std::fs::remove_file(path).unwrap();
    }
    // What a line takes back may be written again by another epoch of the same number.
    files.number = 1;
    let mut back = Vec::new();
    line::put_retract(place(0), place(3), &mut back);
    files.add_of((1, 0xb), &[back, set(1, "a", "new")]);
    assert!(files.load(&[]).status.success());
    assert_eq!(files.data(), "a=new");
    files.add_of((1, 0xb), &[set(2, "b", "new")]);
    files.add_of((2, 0xc), &[]);
    assert!(files.load(&[]).status.success());
    assert_eq!(files.data(), "a=new b=new");
    // Of another epoch 2, which another node began: what is taken back stays in epoch 1.
    let mut back = Vec::new();
    line::put_retract(place(2), Place { epoch: 2, ..place(3) }, &mut back);
    files.add_of((1, 0xb), &[back]);
    files.add_of((2, 0xd), &[]);
    assert!(files.load(&[]).status.success());
}

#[test]
fn a_new_database_begins_with_the_first_file_or_a_copy_or_when_told_to() {
    let mut files = Files::new("duck-later");
    files.number = 3;
    files.add(&[set(14, "o", "14"), set(15, "p", "15")]);
    let output = files.load(&[]);
    assert!(
        !output.status.success() && said(&output).contains("bring the files from number 1 on"),
        "{}",
        said(&output)
    );
    assert_eq!(files.data(), "");
    let output = files.load(&["--begin-later"]);
    assert!(said(&output).contains("loaded 2 lines of 1 files"), "{}", said(&output));
    assert_eq!(files.data(), "o=14 p=15");
    // Lines that come too late are said to change nothing.
    files.number = 0;
    files.add(&[set(1, "a", "1")]);
    let output = files.load(&[]);
    assert!(said(&output).contains("1 of them were there already"), "{}", said(&output));
    let mut files = Files::new("duck-later-copy");
    files.number = 3;
    let mut copy = Vec::new();
    line::put_copy_begin(place(20), 1, &mut copy);
    line::put_copy_row(place(7), b"k", b"7", FORMAT, &mut copy);
    line::put_copy_end(place(20), 1, &mut copy);
    files.add(&[copy]);
    assert!(files.load(&[]).status.success());
    assert_eq!(files.data(), "k=7");
}

#[test]
fn an_archived_file_is_not_written_over() {
    let mut files = Files::new("duck-archive");
    let path = files.add(&[set(1, "a", "1")]);
    let archive = files.directory.path().join("archive");
    std::fs::create_dir(&archive).unwrap();
    let there = archive.join(path.file_name().unwrap());
    std::fs::write(&there, "another one\n").unwrap();
    let flags = ["-archive", &archive.display().to_string()];
    let output = files.load(&flags);
    assert!(!output.status.success() && said(&output).contains("with another content"), "{}", said(&output));
    assert_eq!(std::fs::read_to_string(&there).unwrap(), "another one\n");
    assert!(path.exists(), "it is loaded, and stays where it is");
    // The same file, which a loader could not remove behind its copy.
    std::fs::copy(&path, &there).unwrap();
    assert!(files.load(&flags).status.success());
    assert!(!path.exists());
}

#[test]
fn json_is_what_the_standard_says() {
    let mut files = Files::new("duck-json");
    let values = ["{\"a\":[1,null]}", "5", "nan", "Infinity", "-inf", "[1,]", "{\"a\":NaN}", "{'a':1}", "plain"];
    let text = |(n, value): (usize, &&str)| {
        let mut out = Vec::new();
        let at = InTransaction { n: 1, of: 1, ts: 1_700_000_000_000 };
        let op = Op::Set(value.as_bytes(), value.as_bytes());
        line::put_change(place(n as u64 + 1), at, op, ValueFormat::Text, &mut out);
        out
    };
    files.add(&values.iter().enumerate().map(text).collect::<Vec<_>>());
    assert!(files.load(&[]).status.success());
    let found = files.query("SELECT string_agg(key, ' ' ORDER BY key) FROM turnstone_json");
    assert_eq!(found, "5 {\"a\":[1,null]}");
    // Numbers that JSON does not have are null in answers, and texts stay what they are.
    let sql = "SELECT 'nan'::DOUBLE a, 1e400::DOUBLE b, -1e400::DOUBLE c, 1.5 d, 'say \"NaN\", inf' e, [1.0, 'nan'::DOUBLE] f";
    let output =
        Command::new(loader()).args(["-db", &files.db().display().to_string(), "--query", sql]).output().unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    let expected = json!({"a": null, "b": null, "c": null, "d": 1.5, "e": "say \"NaN\", inf", "f": [1.0, null]});
    assert_eq!(answer, expected);
}

#[test]
fn a_bad_line_stops_its_file_and_names_itself() {
    let mut files = Files::new("duck-bad");
    files.add(&[set(1, "a", "1")]);
    let bad = files.add(&[set(2, "b", "2"), b"{\"partition\":1,\"position\":\"1:1:3\"}\n".to_vec(), set(4, "c", "4")]);
    let output = files.load(&[]);
    assert!(!output.status.success());
    assert!(said(&output).contains(&format!("{}:2: ", bad.display())), "{}", said(&output));
    assert_eq!(files.data(), "a=1", "nothing of it is there, and what was before it is");
    let torn = [set(2, "b", "2"), set(3, "x", "3")].concat();
    std::fs::write(&bad, &torn[..torn.len() - 5]).unwrap();
    assert!(said(&files.load(&[])).contains("the file ends within this line"));
    let half = String::from_utf8(set(2, "b", "2")).unwrap().replace("\"of\":1", "\"of\":2");
    std::fs::write(&bad, half).unwrap();
    assert!(said(&files.load(&[])).contains("transaction 2 is not whole"));
    std::fs::write(&bad, [set(2, "b", "2"), set(2, "b", "2")].concat()).unwrap();
    assert!(said(&files.load(&[])).contains("change 1 of 1 of transaction 2 behind"));
    std::fs::write(&bad, set(2, "b", "2")).unwrap();
    assert!(files.load(&[]).status.success());
    assert_eq!(files.data(), "a=1 b=2");
    let third = files.add(&[set(3, "c", "3")]);
    files.add(&[set(4, "d", "4")]);
    std::fs::remove_file(third).unwrap();
    let output = files.load(&[]);
    assert!(!output.status.success() && said(&output).contains("number 3 of partition 1"), "{}", said(&output));
}

#[test]
fn retractions_and_copies_are_applied() {
    let mut files = Files::new("duck-retract");
    let written = |put: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        put(&mut out);
        out
    };
    files.add(&[set(1, "a", "1"), set(2, "b", "2"), set(3, "a", "3"), delete(4, "b"), set(5, "c", "5")]);
    files.add(&[written(&|out| line::put_retract(place(2), place(5), out)), set(3, "d", "4")]);
    assert!(files.load(&[]).status.success());
    assert_eq!(files.data(), "a=1 b=2 d=4");
    let flush = |version| {
        let mut out = Vec::new();
        line::put_change(place(version), InTransaction { n: 1, of: 1, ts: 1 }, Op::Flush, FORMAT, &mut out);
        out
    };
    files.add(&[flush(4), set(5, "e", "5")]);
    assert!(files.load(&[]).status.success());
    assert_eq!(files.data(), "e=5");
    files.add(&[written(&|out| line::put_retract(place(4), place(5), out))]);
    assert!(files.load(&[]).status.success());
    assert_eq!(files.data(), "", "the flush stays");
    files.add(&[written(&|out| line::put_retract(place(3), place(4), out))]);
    assert!(files.load(&[]).status.success());
    assert_eq!(files.data(), "a=1 b=2 d=4", "the flush is taken back");
    files.add(&[
        written(&|out| line::put_copy_begin(place(50), 2, out)),
        written(&|out| line::put_copy_row(place(2), b"b", b"2", FORMAT, out)),
    ]);
    files.add(&[
        written(&|out| line::put_copy_row(place(40), b"e", b"40", FORMAT, out)),
        written(&|out| line::put_copy_end(place(50), 2, out)),
        set(51, "f", "51"),
    ]);
    assert!(files.load(&[]).status.success());
    assert_eq!(files.data(), "b=2 e=40 f=51");
    assert_eq!(files.query("SELECT version::VARCHAR FROM turnstone_watermark"), "51");
    files.add(&[set(52, "b", "52"), delete(53, "e"), written(&|out| line::put_retract(place(51), place(53), out))]);
    assert!(files.load(&[]).status.success());
    assert_eq!(files.data(), "b=2 e=40 f=51", "what the copy had is brought back from it");
}

#[test]
fn a_consumer_that_began_anew_changes_nothing_that_is_known() {
    let mut files = Files::new("duck-anew");
    let begin = |version| {
        let mut out = Vec::new();
        line::put_copy_begin(place(version), 2, &mut out);
        out
    };
    let row = |version, key: &str| {
        let mut out = Vec::new();
        line::put_copy_row(place(version), key.as_bytes(), format!("{version}").as_bytes(), FORMAT, &mut out);
        out
    };
    let end = |version| {
        let mut out = Vec::new();
        line::put_copy_end(place(version), 2, &mut out);
        out
    };
    // A copy that breaks off, begins again, and is whole; changes behind it.
    files.add(&[begin(50), row(10, "a")]);
    files.add(&[begin(50), row(10, "a")]);
    files.add(&[row(20, "b"), end(50), set(51, "a", "51"), set(52, "c", "52")]);
    assert!(files.load(&[]).status.success());
    assert_eq!(files.data(), "a=51 b=20 c=52");
    let copied = "SELECT string_agg(key, ' ' ORDER BY key) FROM turnstone_history WHERE op = 'copy'";
    assert_eq!(files.query(copied), "a b", "the rows that came twice are there once");
    // Begun anew, with the same copy cut elsewhere: older than what is here, over two files.
    for entry in std::fs::read_dir(files.input()).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    files.number = 0;
    files.add(&[begin(50)]);
    files.add(&[row(10, "a"), row(20, "b")]);
    files.add(&[end(50), set(51, "a", "51"), set(52, "c", "52"), set(53, "d", "53")]);
    let output = files.load(&[]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(files.data(), "a=51 b=20 c=52 d=53");
    assert_eq!(files.query(copied), "a b");
    // And with another history: no line takes back what is here.
    files.number = 0;
    for entry in std::fs::read_dir(files.input()).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let other = String::from_utf8(set(52, "x", "other")).unwrap().replace("1:1:52", "1:2:52");
    files.add(&[other.into_bytes()]);
    let output = files.load(&[]);
    assert!(!output.status.success() && said(&output).contains("another history"), "{}", said(&output));
    assert_eq!(files.data(), "a=51 b=20 c=52 d=53");
}

#[test]
fn others_read_a_copy_while_it_is_loaded_and_engines_read_parquet() {
    let mut files = Files::new("duck-publish");
    let copy = files.directory.path().join("shared.duckdb");
    let export = files.directory.path().join("history");
    files.add(&[set(1, "a", "{\"x\":1}"), set(2, "b", "2")]);
    let flags = ["--read-copy", &copy.display().to_string(), "--export", &export.display().to_string()];
    assert!(files.load(&flags).status.success());
    files.add(&[delete(3, "a")]);
    let keys = "SELECT string_agg(key, ' ' ORDER BY key) FROM turnstone_data";
    assert_eq!(query(&copy, keys), "a b");
    // One that holds the database, for which another one is refused; the copy of it can be read, and is replaced.
    let mut holder = Loader::watch(&files.input(), &files.db(), &["--read-copy", &copy.display().to_string()]);
    eventually(PATIENCE, "the copy has what was loaded", || query(&copy, keys) == "b");
    let refused = files.load(&[]);
    assert!(!refused.status.success() && said(&refused).contains("lock"), "{}", said(&refused));
    holder.stop();
    assert!(files.load(&flags).status.success());
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(export.join("manifest.json")).unwrap()).unwrap();
    assert_eq!((&manifest["rows"], &manifest["partitions"]), (&json!(3), &json!(["1:1:3"])));
    let mut read = BTreeSet::new();
    for name in manifest["files"].as_array().unwrap() {
        let name = name.as_str().unwrap();
        assert!(name.starts_with("partition=1/date=2023-11-14/"), "{name}");
        // Another implementation of the format than the one that wrote it.
        let file = std::fs::File::open(export.join(name)).unwrap();
        let reader = parquet::file::serialized_reader::SerializedFileReader::new(file).unwrap();
        for row in parquet::file::reader::FileReader::get_row_iter(&reader, None).unwrap() {
            let row = row.unwrap();
            let shown = |name: &str| row.get_column_iter().find(|(of, _)| *of == name).unwrap().1.to_string();
            read.insert(format!("{} {} {} {}", shown("version"), shown("op"), shown("key"), shown("value")));
        }
    }
    let wanted = ["1 \"set\" \"a\" \"{\"x\":1}\"", "2 \"set\" \"b\" \"2\"", "3 \"delete\" \"a\" null"];
    assert_eq!(read, wanted.map(String::from).into());
    let other = files.directory.path().join("in");
    let refused = files.load(&["--export", &other.display().to_string()]);
    assert!(said(&refused).contains("holds something else"), "{}", said(&refused));
}

#[test]
fn answers_are_appended_to_a_file_and_may_be_read_in_part() {
    let mut files = Files::new("duck-answers");
    files.add(&[set(1, "a", "1"), set(2, "b", "2")]);
    assert!(files.load(&[]).status.success());
    let ask = |sql: &str| {
        let mut command = Command::new(loader());
        command.arg("-db").arg(files.db()).args(["--query", sql]);
        command
    };
    let path = files.directory.path().join("answers.jsonl");
    for sql in [
        "SELECT key FROM turnstone_data ORDER BY key; ",
        "FROM range(1) -- the end",
        "WITH k AS (SELECT 7 AS n) FROM k",
    ] {
        let file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        assert!(ask(sql).stdout(file).status().unwrap().success(), "{sql}");
    }
    let expected = "{\"key\":\"a\"}\n{\"key\":\"b\"}\n{\"range\":0}\n{\"n\":7}\n";
    assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
    // Whoever reads has enough after a line.
    let mut child = ask("FROM range(10000000)").stdout(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert_eq!(first, "{\"range\":0}\n");
    assert!(child.wait().unwrap().success());
    for (sql, why) in [
        ("SELEC 1", "syntax error"),
        ("SELECT range::UTINYINT FROM range(300)", "out of range"),
        ("DELETE FROM turnstone_state", ""),
    ] {
        let output = ask(sql).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{sql}");
        assert!(said(&output).contains(why), "{sql}: {}", said(&output));
    }
    assert_eq!(files.query("SELECT count(*) FROM turnstone_data"), "2");
}

#[test]
fn what_is_no_database_stays_as_it_is() {
    let mut files = Files::new("duck-no-database");
    files.add(&[set(1, "a", "1")]);
    std::fs::write(files.db(), "some text").unwrap();
    let output = files.load(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said(&output).contains("t.duckdb") && said(&output).contains("not a valid DuckDB database"),
        "{}",
        said(&output)
    );
    assert_eq!(std::fs::read_to_string(files.db()).unwrap(), "some text");
}
