//! What a consumer of changes reads from files: lines of change files, cursors, its settings.

use super::Script;
use turnstone_cdc::ValueFormat;
use turnstone_cdc::cursor::{Cursor, Epoch};
use turnstone_cdc::line::{
    InTransaction, Op, Place, put_change, put_copy_begin, put_copy_end, put_copy_row, put_retract,
};
use turnstone_cdc::reader::{self, What};
use turnstone_tools::cdc_config;

fn place(script: &mut Script<'_>) -> Place {
    Place { partition: 1 + script.u8() % 16, epoch: script.u64(), version: script.u64() }
}

/// Whatever is written is read, and comes back as it went.
fn written(script: &mut Script<'_>) {
    let format = ValueFormat::ALL[usize::from(script.u8() % 3)];
    let (place, length) = (place(script), usize::from(script.u16() & 0xff));
    let key = script.bytes(length);
    let value = script.0;
    let mut out = Vec::new();
    put_change(place, InTransaction { n: 1, of: 1, ts: 7 }, Op::Set(key, value), format, &mut out);
    let text = out.strip_suffix(b"\n").expect("a line has an end");
    assert!(!text.contains(&b'\n'), "a line has one end");
    let line = reader::read(text).expect("what is written is read");
    let What::Set(_, got, back, written) = line.what else { panic!("a set was written") };
    assert_eq!((line.place, &*got), (place, key));
    let spaced = |bytes: &[u8]| -> Vec<u8> {
        bytes.iter().map(|b| if matches!(b, b'\n' | b'\r') { b' ' } else { *b }).collect()
    };
    match written {
        // JSON has no spaces around it in a line, and spaces for line ends.
        reader::Written::Json => assert_eq!(back.trim_ascii(), spaced(value).trim_ascii()),
        _ => assert_eq!(&*back, value),
    }
}

/// Lines: what is no line is refused, what is one comes back.
pub fn lines(input: &[u8]) {
    let mut script = Script(input);
    if script.u8() % 4 == 0 {
        written(&mut script);
        return;
    }
    let Ok(line) = reader::read(script.0) else { return };
    // A line that was read says where it is, and in a transaction that there is such a place.
    assert!((1..=16).contains(&line.place.partition));
    if let What::Set(at, ..) | What::Delete(at, _) | What::Flush(at) = line.what {
        assert!(at.n >= 1 && at.n <= at.of);
    }
}

/// Cursors: what is accepted is written as it was, and can be gone back in.
pub fn cursor(input: &[u8]) {
    let mut script = Script(input);
    let (partition, back) = (script.u8(), script.u64());
    let Ok(cursor) = Cursor::parse(script.0, partition) else { return };
    assert!(cursor.epochs.iter().all(|epoch| epoch.first_version <= cursor.last));
    assert_eq!(Cursor::parse(&cursor.text(), partition), Ok(cursor.clone()));
    let mut gone_back = cursor.clone();
    gone_back.go_back(back.min(cursor.last));
    assert_eq!(Cursor::parse(&gone_back.text(), partition), Ok(gone_back.clone()));
    assert!(gone_back.last <= cursor.last);
}

/// Files are at most a tebibyte: docs/cdc.md says so.
const LARGEST_FILE_MIB: u64 = 1 << 20;

/// Settings: what is accepted is valid, reads as itself when it is written out, and is of sizes that are allowed; errors stay
/// short.
pub fn config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match cdc_config::parse(super::config::FILE, text) {
        Ok(settings) => {
            assert_eq!(settings.validate(), Ok(()));
            assert!(settings.max_file_size_mb <= LARGEST_FILE_MIB, "{} MiB", settings.max_file_size_mb);
            assert_eq!(cdc_config::parse(super::config::FILE, &cdc_config::print(&settings)), Ok(settings));
        }
        Err(error) => super::config::short(&error, text),
    }
}

/// Lines of every kind, and a script that writes one.
pub fn seeds_lines() -> Vec<Vec<u8>> {
    let place = Place { partition: 1, epoch: 2, version: 3 };
    let mut seeds = Vec::new();
    let mut line = |put: &dyn Fn(&mut Vec<u8>)| {
        let mut seed = vec![1];
        put(&mut seed);
        seed.pop();
        seeds.push(seed);
    };
    let at = InTransaction { n: 1, of: 2, ts: 7 };
    line(&|out| put_change(place, at, Op::Set(b"k", b"{\"a\":1}"), ValueFormat::Json, out));
    line(&|out| put_change(place, at, Op::Set(b"\xff", b"\xfe"), ValueFormat::Text, out));
    line(&|out| put_change(place, at, Op::Delete(b"k"), ValueFormat::Text, out));
    line(&|out| put_change(place, at, Op::Flush, ValueFormat::Text, out));
    line(&|out| put_copy_begin(place, 7, out));
    line(&|out| put_copy_row(place, b"k", b"v", ValueFormat::Base64, out));
    line(&|out| put_copy_end(place, 7, out));
    line(&|out| put_retract(place, Place { version: 9, ..place }, out));
    let mut any = vec![0];
    any.extend([0; 20]);
    any.extend(b"key and \"value\"\n");
    seeds.push(any);
    seeds
}

/// Cursors before and behind a file.
pub fn seeds_cursor() -> Vec<Vec<u8>> {
    let mut cursor = Cursor::new(1);
    let seed = |cursor: &Cursor| [&[1], &5u64.to_le_bytes()[..], &cursor.text()].concat();
    let mut seeds = vec![seed(&cursor)];
    let epoch = |number, first_version| Epoch { number, id: 2, first_version };
    (cursor.last, cursor.files, cursor.epochs) = (9, 3, vec![epoch(1, 1), epoch(2, 7)]);
    let name = "cdc-p01-000000000003-e2-7-9.jsonl".to_string();
    cursor.sealed = Some(turnstone_cdc::cursor::Sealed { name, bytes: 7, crc: 8, announced: false });
    seeds.push(seed(&cursor));
    seeds
}

/// The sample file, one for each kind of value, and the largest file size that is taken.
pub fn seeds_config() -> Vec<Vec<u8>> {
    let texts = [
        cdc_config::sample_json(),
        "{\"partition\": [1, \"16\"], \"exec\": [\"gzip\", \"-k\"]}".to_string(),
        "{\n\"partition\": \"*\",\n\"hold\": \"1GiB\", \"max_file_size_mb\": 7}".to_string(),
        "{\"value_format\": \"base64\", \"start\": \"now\", \"on_purged\": \"stop\", \"flush_interval\": \"1h30m\"}"
            .to_string(),
        "{\"max_file_size_mb\": 1048576}".to_string(),
    ];
    texts.map(String::into_bytes).into()
}
