//! Homes that lack a part of the log, as a copy or a restore that was broken off leaves them: nothing that was acknowledged is
//! missing without a word.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use turnstone_engine::codec::crc;
use turnstone_net::client::ClientError;
use turnstone_net::tls::Role;
use turnstone_net::wire::ErrorCode;
use turnstone_tests::real::TestHome;

const PARTITION: u8 = 3;
const KEYS: u32 = 120;
const FLAGS: [&str; 2] = ["--executors=1", "--wal-max-size=128KiB"];

type Files = BTreeMap<String, Vec<u8>>;

fn directory(home: &TestHome) -> PathBuf {
    home.path().join("data").join(PARTITION.to_string())
}

/// The files of the partition, but for the index, which can be built anew.
fn read(home: &TestHome) -> Files {
    let entries = fs::read_dir(directory(home)).expect("it is there").map(|entry| entry.expect("readable").path());
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).expect("a name").to_string();
    entries.filter(|path| path.is_file()).map(|path| (name(&path), fs::read(&path).expect("readable"))).collect()
}

/// Puts files in the place of what is there.
fn restore(home: &TestHome, files: &Files) {
    fs::remove_dir_all(directory(home)).expect("it goes");
    fs::create_dir(directory(home)).expect("made");
    for (name, bytes) in files {
        fs::write(directory(home).join(name), bytes).expect("written");
    }
}

/// A home whose server was killed behind so many acknowledged commits, and its files.
fn killed(label: &str) -> (TestHome, Files) {
    let home = TestHome::new(label);
    let mut server = home.serve(&FLAGS);
    let mut client = home.connect(&server, Role::Client, PARTITION);
    for n in 0..KEYS {
        client.set(&n.to_be_bytes(), &[n as u8; 100]).expect("acknowledged");
    }
    server.kill();
    let files = read(&home);
    (home, files)
}

/// Starts the server: either all keys are there, or the partition is offline. Answers what the log says in that case.
fn refused(home: &TestHome) -> Option<String> {
    let mut server = home.serve(&FLAGS);
    let mut client = home.connect(&server, Role::Client, PARTITION);
    let found: Vec<_> = (0..KEYS).map(|n| client.get(&n.to_be_bytes())).collect();
    let offline = code_of(&found[0]) == Some(ErrorCode::Offline);
    for (n, found) in found.iter().enumerate() {
        match found {
            Ok(value) => assert_eq!(value.as_deref(), Some(&[n as u8; 100][..]), "key {n}"),
            Err(error) => assert!(offline && error.code() == Some(ErrorCode::Offline), "key {n}: {error}"),
        }
    }
    assert!(server.stop().0.success());
    offline.then(|| server.log().join("\n"))
}

fn code_of<T>(answer: &Result<T, ClientError>) -> Option<ErrorCode> {
    answer.as_ref().err().and_then(ClientError::code)
}

fn segments(files: &Files) -> Vec<String> {
    files.keys().filter(|name| name.starts_with("wal-")).cloned().collect()
}

#[test]
fn a_log_without_its_newest_segment_or_a_part_of_it_is_refused_by_name() {
    let (home, whole) = killed("newest-segment");
    let names = segments(&whole);
    assert!(names.len() > 2, "{names:?}");
    let newest = names.last().expect("some").clone();
    let bytes = &whole[&newest];
    let used = bytes.chunks(4096).rposition(|block| block.iter().any(|b| *b != 0)).expect("it has batches") * 4096;
    for left in [None, Some(0), Some(used / 8192 * 4096), Some(bytes.len() - 4096)] {
        let mut files = whole.clone();
        match left {
            None => drop(files.remove(&newest)),
            Some(left) => drop(files.insert(newest.clone(), bytes[..left].to_vec())),
        }
        restore(&home, &files);
        let log = refused(&home).unwrap_or_else(|| panic!("{newest} with {left:?} bytes is taken for a log's end"));
        let place = format!("{newest} is damaged at offset {}", left.unwrap_or(0));
        assert!(log.contains("partition 3 is offline") && log.contains(&place), "{log}");
    }
    restore(&home, &whole);
    assert_eq!(refused(&home), None, "the whole log is read");
    // What says which one is the newest is missed, too.
    let mut files = whole.clone();
    files.remove("log-end");
    restore(&home, &files);
    assert!(refused(&home).is_some_and(|log| log.contains("log-end is damaged")));
    // An operator gives up what is missing, once: the file, or a part of it that ends within a batch, or within its padding.
    for left in [None, Some(4096 * 2), Some(used - 4096 + 500)] {
        files = whole.clone();
        match left {
            None => drop(files.remove(&newest)),
            Some(left) => drop(files.insert(newest.clone(), bytes[..left].to_vec())),
        }
        give_up(&home, &files);
    }
}

/// What is missing is given up, and the log goes on without it.
fn give_up(home: &TestHome, files: &Files) {
    restore(home, files);
    let mut server = home.serve(&[&FLAGS[..], &["--truncate-corrupt-wal", "true"]].concat());
    let mut client = home.connect(&server, Role::Client, PARTITION);
    assert!(client.get(&0u32.to_be_bytes()).expect("it serves").is_some());
    assert_eq!(client.get(&(KEYS - 1).to_be_bytes()).expect("it serves"), None);
    server.kill();
    let mut server = home.serve(&FLAGS);
    let mut client = home.connect(&server, Role::Client, PARTITION);
    for n in 0..KEYS {
        client.set(&n.to_be_bytes(), &[n as u8; 100]).expect("it goes on");
    }
    server.kill();
    assert_eq!(refused(home), None);
}

#[test]
fn a_log_that_lacks_what_a_checkpoint_has_goes_on_behind_it() {
    let home = TestHome::new("short-behind-mark");
    let server = home.serve(&FLAGS);
    let mut admin = home.connect(&server, Role::Admin, PARTITION);
    for n in 0..10u32 {
        admin.set(&n.to_be_bytes(), b"settled").expect("acknowledged");
    }
    admin.checkpoint().expect("all of it is settled");
    drop(server);
    let mut files = read(&home);
    let newest = segments(&files).last().expect("some").clone();
    files.get_mut(&newest).expect("it is there").truncate(3 * 4096);
    fs::write(directory(&home).join(&newest), &files[&newest]).expect("cut");
    let mut server = home.serve(&[&FLAGS[..], &["--truncate-corrupt-wal", "true"]].concat());
    let mut client = home.connect(&server, Role::Client, PARTITION);
    for n in 10..200u32 {
        client.set(&n.to_be_bytes(), b"later").expect("it goes on");
    }
    server.kill();
    let length = fs::metadata(directory(&home).join(&newest)).expect("it is there").len();
    assert_eq!(length, 3 * 4096, "nothing was written behind what is left");
    let server = home.serve(&FLAGS);
    let mut client = home.connect(&server, Role::Client, PARTITION);
    for n in 0..200u32 {
        let expected = if n < 10 { b"settled".as_slice() } else { b"later" };
        assert_eq!(client.get(&n.to_be_bytes()).expect("it serves").as_deref(), Some(expected), "key {n}");
    }
}

#[test]
fn a_copy_of_a_home_that_broke_off_shows_everything_or_is_refused() {
    let (home, whole) = killed("broken-copy");
    let total: usize = whole.values().map(Vec::len).sum();
    let mut refusals = 0;
    for percent in (5..100).step_by(10) {
        let mut left = total * percent / 100;
        let mut files = Files::new();
        for (name, bytes) in &whole {
            if left == 0 {
                break;
            }
            let length = bytes.len().min(left);
            files.insert(name.clone(), bytes[..length].to_vec());
            left -= length;
        }
        restore(&home, &files);
        refusals += u32::from(refused(&home).is_some());
    }
    println!("{refusals} of 10 copies are refused");
    assert!(refusals >= 9);
}

#[test]
fn a_home_of_before_there_was_a_record_opens_and_has_one_from_its_next_write_on() {
    let (home, mut files) = killed("without-record");
    files.remove("log-end");
    let manifest = files.get_mut("manifest").expect("it is there");
    // Without the word on the record, the empty list of owners of holds, whether it learns, and the newest batch.
    let length = u32::from_le_bytes(manifest[4096..4100].try_into().expect("four")) as usize - 19;
    let sum = crc(&[&manifest[4104..4104 + length]]);
    manifest[4096..4100].copy_from_slice(&(length as u32).to_le_bytes());
    manifest[4100..4104].copy_from_slice(&sum.to_le_bytes());
    manifest[4104 + length..4104 + length + 19].fill(0);
    restore(&home, &files);
    assert_eq!(refused(&home), None);
    assert!(!read(&home).contains_key("log-end"), "reads need no record");
    let mut server = home.serve(&FLAGS);
    let mut client = home.connect(&server, Role::Client, PARTITION);
    client.set(b"one", b"more").expect("acknowledged");
    server.kill();
    let mut files = read(&home);
    assert!(files.contains_key("log-end"));
    let newest = segments(&files).last().expect("some").clone();
    files.remove(&newest);
    restore(&home, &files);
    assert!(refused(&home).is_some_and(|log| log.contains(&newest)));
}
