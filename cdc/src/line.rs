//! The lines of a change file: one JSON object each, the same bytes for the same change whenever it is written.
//!
//! `{"partition":1,"position":"1:3:1234","tx":1234,"n":1,"of":2,"op":"set","key":"k","value":"v","ts":1764252488123}`
//!
//! | field | in | meaning |
//! |---|---|---|
//! | `partition`, `position` | all | where in the history: `partition:epoch:version` |
//! | `tx`, `n`, `of` | changes | the transaction's version, the place in it from 1, how many changes it has |
//! | `op` | all | `set`, `delete`, `flush` (every key goes); `copy_begin`, `copy`, `copy_end`; `retract` |
//! | `key`, `key_encoding` | set, delete, copy | text, or with `"key_encoding":"base64"` |
//! | `value`, `value_encoding` | set, copy | text; with `"json"` the JSON that the value is; with `"base64"` its bytes |
//! | `ts` | changes | when the leader committed it, milliseconds since 1970 |
//! | `keys` | copy_begin, copy_end | how many rows the copy has; about, at its beginning |
//! | `from` | retract | the position up to which changes are taken back; `position` is the last that stays |
//!
//! A value that is JSON keeps its bytes, but for line ends between its parts, which become spaces.

use crate::settings::ValueFormat;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::IgnoredAny;

/// A place in a partition's history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The partition.
    pub partition: u8,
    /// The number of the epoch.
    pub epoch: u64,
    /// The version.
    pub version: u64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.partition, self.epoch, self.version)
    }
}

/// A place in a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InTransaction {
    /// From 1.
    pub n: u32,
    /// How many there are.
    pub of: u32,
    /// When it was committed, milliseconds since 1970.
    pub ts: u64,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// The key has this value from now on.
    Set(&'a [u8], &'a [u8]),
    /// The key is gone.
    Delete(&'a [u8]),
    /// Every key is gone.
    Flush,
}

fn head(place: Place, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"partition\":");
    number(u64::from(place.partition), out);
    out.extend_from_slice(b",\"position\":\"");
    number(u64::from(place.partition), out);
    out.push(b':');
    number(place.epoch, out);
    out.push(b':');
    number(place.version, out);
    out.push(b'"');
}

/// Appends the line of a change.
pub fn put_change(place: Place, at: InTransaction, op: Op<'_>, format: ValueFormat, out: &mut Vec<u8>) {
    head(place, out);
    out.extend_from_slice(b",\"tx\":");
    number(place.version, out);
    out.extend_from_slice(b",\"n\":");
    number(u64::from(at.n), out);
    out.extend_from_slice(b",\"of\":");
    number(u64::from(at.of), out);
    match op {
        Op::Set(key, value) => {
            out.extend_from_slice(b",\"op\":\"set\"");
            put_key(key, out);
            put_value(value, format, out);
        }
        Op::Delete(key) => {
            out.extend_from_slice(b",\"op\":\"delete\"");
            put_key(key, out);
        }
        Op::Flush => out.extend_from_slice(b",\"op\":\"flush\""),
    }
    out.extend_from_slice(b",\"ts\":");
    number(at.ts, out);
    out.extend_from_slice(b"}\n");
}

/// Appends the first line of a copy.
pub fn put_copy_begin(place: Place, keys: u64, out: &mut Vec<u8>) {
    copy_mark("copy_begin", place, keys, out);
}

/// Appends the last line of a copy.
pub fn put_copy_end(place: Place, keys: u64, out: &mut Vec<u8>) {
    copy_mark("copy_end", place, keys, out);
}

fn copy_mark(op: &str, place: Place, keys: u64, out: &mut Vec<u8>) {
    head(place, out);
    out.extend_from_slice(format!(",\"op\":\"{op}\",\"keys\":{keys}}}\n").as_bytes());
}

/// Appends a row of a copy; the place is that of the change that wrote it.
pub fn put_copy_row(place: Place, key: &[u8], value: &[u8], format: ValueFormat, out: &mut Vec<u8>) {
    head(place, out);
    out.extend_from_slice(b",\"op\":\"copy\"");
    put_key(key, out);
    put_value(value, format, out);
    out.extend_from_slice(b"}\n");
}

/// Appends a line that takes back everything behind `stays`, up to `from`.
pub fn put_retract(stays: Place, from: Place, out: &mut Vec<u8>) {
    head(stays, out);
    out.extend_from_slice(format!(",\"op\":\"retract\",\"from\":\"{from}\"}}\n").as_bytes());
}

fn put_key(key: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"key\":");
    match std::str::from_utf8(key) {
        Ok(text) => string(text, out),
        Err(_) => {
            base64(key, out);
            out.extend_from_slice(b",\"key_encoding\":\"base64\"");
        }
    }
}

fn put_value(value: &[u8], format: ValueFormat, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"value\":");
    match (format, std::str::from_utf8(value)) {
        (ValueFormat::Text, Ok(text)) => string(text, out),
        (ValueFormat::Json, Ok(text)) if is_json(text) => {
            let spaced = |byte: &u8| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte };
            out.extend(text.as_bytes().iter().map(spaced));
            out.extend_from_slice(b",\"value_encoding\":\"json\"");
        }
        (ValueFormat::Json, Ok(text)) => string(text, out),
        _ => {
            base64(value, out);
            out.extend_from_slice(b",\"value_encoding\":\"base64\"");
        }
    }
}

/// Whether a text is JSON as RFC 8259 has it.
pub fn is_json(text: &str) -> bool {
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

fn base64(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let written = STANDARD.encode_slice(bytes, &mut out[start..]);
    out.truncate(start + written.expect("base64 takes four bytes for each three, rounded up"));
    out.push(b'"');
}

fn string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut done = 0;
    for (i, byte) in bytes.iter().enumerate() {
        if *byte >= b' ' && *byte != b'"' && *byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[done..i]);
        done = i + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => out.extend_from_slice(format!("\\u{control:04x}").as_bytes()),
        }
    }
    out.extend_from_slice(&bytes[done..]);
    out.push(b'"');
}

fn number(number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let (mut rest, mut at) = (number, digits.len());
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { partition: 1, epoch: 3, version: 1234 };

    fn set(key: &[u8], value: &[u8], format: ValueFormat) -> String {
        let mut out = Vec::new();
        put_change(PLACE, InTransaction { n: 1, of: 2, ts: 17 }, Op::Set(key, value), format, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_line_has_everything_in_a_fixed_order() {
        assert_eq!(
            set(b"k", b"v", ValueFormat::Text),
            "{\"partition\":1,\"position\":\"1:3:1234\",\"tx\":1234,\"n\":1,\"of\":2,\"op\":\"set\",\"key\":\"k\",\"value\":\"v\",\
             \"ts\":17}\n"
        );
        let mut out = Vec::new();
        put_change(PLACE, InTransaction { n: 2, of: 2, ts: 17 }, Op::Delete(b"k"), ValueFormat::Json, &mut out);
        put_change(PLACE, InTransaction { n: 1, of: 1, ts: 18 }, Op::Flush, ValueFormat::Json, &mut out);
        put_retract(PLACE, Place { version: 1300, ..PLACE }, &mut out);
        put_copy_begin(PLACE, 2, &mut out);
        put_copy_row(PLACE, b"a", b"1", ValueFormat::Json, &mut out);
        put_copy_end(PLACE, 1, &mut out);
        let lines: Vec<serde_json::Value> =
            out.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).unwrap()).collect();
        let ops: Vec<&str> = lines.iter().map(|line| line["op"].as_str().unwrap()).collect();
        assert_eq!(ops, ["delete", "flush", "retract", "copy_begin", "copy", "copy_end"]);
        assert_eq!(lines[2]["from"], "1:3:1300");
        assert_eq!(lines[4]["value"], 1);
    }

    #[test]
    fn what_is_no_text_is_marked_and_intact() {
        let line = set(b"\xff\x00", b"\xfe", ValueFormat::Text);
        assert!(
            line.contains(
                "\"key\":\"/wA=\",\"key_encoding\":\"base64\",\"value\":\"/g==\",\"value_encoding\":\"base64\""
            )
        );
        assert!(set(b"k", b"v", ValueFormat::Base64).contains("\"value\":\"dg==\",\"value_encoding\":\"base64\""));
    }

    #[test]
    fn text_is_escaped_as_json_wants_it() {
        let all: String = (0..=0x7f_u8).map(char::from).chain("äö€😀\u{2028}".chars()).collect();
        let line = set(all.as_bytes(), all.as_bytes(), ValueFormat::Text);
        let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(parsed["key"], all.as_str());
        assert_eq!(parsed["value"], all.as_str());
        assert_eq!(line.matches('\n').count(), 1);
    }

    #[test]
    fn json_stays_what_it_was() {
        let raw = |value: &[u8]| {
            let line = set(b"k", value, ValueFormat::Json);
            let value = line.split_once("\"value\":").unwrap().1.to_string();
            assert_eq!(line.matches('\n').count(), 1);
            value.rsplit_once(",\"ts\"").unwrap().0.to_string()
        };
        for value in
            ["123456789012345678901234567890", "1.10", "-0", "null", "{\"b\":1,\"a\":2}", "\"x\"", "1e999", " [1] "]
        {
            assert_eq!(raw(value.as_bytes()), format!("{value},\"value_encoding\":\"json\""));
        }
        assert_eq!(raw(b"{\r\n  \"a\": 1\n}"), "{    \"a\": 1 },\"value_encoding\":\"json\"");
        for other in ["", "nul", "{", "[1,]", "01", "hello"] {
            assert_eq!(raw(other.as_bytes()), format!("\"{other}\""), "no JSON, so a text");
        }
        assert_eq!(raw(b"\"\xff\""), "\"Iv8i\",\"value_encoding\":\"base64\"");
    }
}
