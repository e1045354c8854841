//! Reading the lines of a change file back. What the writer never writes is refused, with the reason.

use crate::line::Place;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// A change, or a mark between changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Where in the history.
    pub place: Place,
    /// What it is.
    pub what: What<'a>,
}

/// How a value was written into its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// As a text.
    Text,
    /// As the JSON that it is.
    Json,
    /// As base64.
    Base64,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What<'a> {
    /// A key has a value.
    Set(At, Cow<'a, [u8]>, Cow<'a, [u8]>, Written),
    /// A key is gone.
    Delete(At, Cow<'a, [u8]>),
    /// Every key is gone.
    Flush(At),
    /// A copy begins.
    CopyBegin(u64),
    /// A row of it.
    CopyRow(Cow<'a, [u8]>, Cow<'a, [u8]>, Written),
    /// It is whole: what is older and was not in it is gone.
    CopyEnd(u64),
    /// Everything behind the line's place, up to this one, is taken back.
    Retract(Place),
}

/// Where in its transaction a change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// From 1.
    pub n: u32,
    /// How many there are.
    pub of: u32,
    /// When it was committed, milliseconds since 1970.
    pub ts: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw<'a> {
    partition: u8,
    #[serde(borrow)]
    position: Cow<'a, str>,
    tx: Option<u64>,
    n: Option<u32>,
    of: Option<u32>,
    #[serde(borrow)]
    op: Cow<'a, str>,
    #[serde(borrow)]
    key: Option<Cow<'a, str>>,
    #[serde(borrow)]
    key_encoding: Option<Cow<'a, str>>,
    // A value that is null is there.
    #[serde(borrow, default, deserialize_with = "present")]
    value: Option<&'a RawValue>,
    #[serde(borrow)]
    value_encoding: Option<Cow<'a, str>>,
    ts: Option<u64>,
    keys: Option<u64>,
    #[serde(borrow)]
    from: Option<Cow<'a, str>>,
}

fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Reads `partition:epoch:version`.
fn place(text: &str) -> Result<Place, String> {
    let mut parts = text.split(':');
    let mut next = |what: &str| {
        let part = parts.next().unwrap_or_default();
        let plain =
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) && (part == "0" || !part.starts_with('0'));
        let number = plain.then(|| part.parse::<u64>().ok()).flatten();
        number.ok_or_else(|| format!("'{}' is no position: no {what}", text.escape_debug()))
    };
    let (partition, epoch, version) = (next("partition")?, next("epoch")?, next("version")?);
    let partition = u8::try_from(partition).ok().filter(|p| (1..=16).contains(p));
    let partition = partition.ok_or_else(|| format!("'{text}' is of no user partition"))?;
    match parts.next() {
        None => Ok(Place { partition, epoch, version }),
        Some(_) => Err(format!("'{}' is no position: it has a fourth part", text.escape_debug())),
    }
}

fn bytes(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

fn decoded<'a>(what: &str, text: &str) -> Result<Cow<'a, [u8]>, String> {
    STANDARD.decode(text).map(Cow::Owned).map_err(|error| format!("the {what} is no base64: {error}"))
}

/// Reads a line, without its end.
pub fn read(line: &[u8]) -> Result<Line<'_>, String> {
    let text = std::str::from_utf8(line).map_err(|_| "it is no UTF-8".to_string())?;
    let raw: Raw<'_> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let place_of = place(&raw.position)?;
    if place_of.partition != raw.partition {
        return Err(format!("partition is {}, and the position is {}", raw.partition, raw.position));
    }
    let key = match (raw.key, raw.key_encoding.as_deref()) {
        (None, None) => None,
        (Some(text), None) => Some(bytes(text)),
        (Some(text), Some("base64")) => Some(decoded("key", &text)?),
        _ => return Err("key_encoding is none that there is, or there is no key".to_string()),
    };
    let value = match (raw.value, raw.value_encoding.as_deref()) {
        (None, None) => None,
        (Some(json), Some("json")) => Some((Cow::Borrowed(json.get().as_bytes()), Written::Json)),
        (Some(json), encoding @ (None | Some("base64"))) => {
            let text: Cow<'_, str> = match serde_json::from_str::<Text<'_>>(json.get()) {
                Ok(Text(text)) => text,
                Err(_) => return Err("the value is no text, and is not marked as JSON".to_string()),
            };
            match encoding {
                None => Some((bytes(text), Written::Text)),
                Some(_) => Some((decoded("value", &text)?, Written::Base64)),
            }
        }
        _ => return Err("value_encoding is none that there is, or there is no value".to_string()),
    };
    let at = match (raw.tx, raw.n, raw.of, raw.ts) {
        (None, None, None, None) => None,
        (Some(tx), Some(n), Some(of), Some(ts))
            if tx == place_of.version && ((1..=of).contains(&n) || cfg!(feature = "planted")) =>
        {
            Some(At { n, of, ts })
        }
        _ => return Err("tx, n, of and ts do not fit together".to_string()),
    };
    let from = raw.from.as_deref().map(place).transpose()?;
    let what = match (&*raw.op, at, key, value, raw.keys, from) {
        ("set", Some(at), Some(key), Some((value, written)), None, None) => What::Set(at, key, value, written),
        ("delete", Some(at), Some(key), None, None, None) => What::Delete(at, key),
        ("flush", Some(at), None, None, None, None) => What::Flush(at),
        ("copy_begin", None, None, None, Some(keys), None) => What::CopyBegin(keys),
        ("copy", None, Some(key), Some((value, written)), None, None) => What::CopyRow(key, value, written),
        ("copy_end", None, None, None, Some(keys), None) => What::CopyEnd(keys),
        ("retract", None, None, None, None, Some(from)) if from.partition == place_of.partition => What::Retract(from),
        (op, ..) => {
            return Err(format!("op '{}' is none that there is, or lacks what belongs to it", op.escape_debug()));
        }
    };
    Ok(Line { place: place_of, what })
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::{self, InTransaction, Op};
    use crate::settings::ValueFormat;

    #[test]
    fn what_is_written_is_read() {
        let place = Place { partition: 7, epoch: 3, version: 41 };
        let keys: [&[u8]; 4] = [b"k", b"\xff\x00", "ä\"\\\n".as_bytes(), b" "];
        let values: [&[u8]; 7] = [b"", b"v", b"\xfe", b"null", b"12345678901234567890.0", b"{\"a\":[1,2]}", b"\"x\""];
        for format in ValueFormat::ALL {
            for key in keys {
                for value in values {
                    let mut out = Vec::new();
                    let at = InTransaction { n: 1, of: 2, ts: 99 };
                    line::put_change(place, at, Op::Set(key, value), format, &mut out);
                    let line = read(out.trim_ascii_end()).unwrap();
                    let What::Set(At { n: 1, of: 2, ts: 99 }, got, back, _) = &line.what else { panic!("{line:?}") };
                    assert_eq!((line.place, &**got, &**back), (place, key, value));
                    let mut out = Vec::new();
                    line::put_copy_row(place, key, value, format, &mut out);
                    assert!(
                        matches!(read(out.trim_ascii_end()).unwrap().what, What::CopyRow(k, v, _) if *k == *key && *v == *value)
                    );
                }
            }
        }
        let one = |put: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            put(&mut out);
            format!("{:?}", read(out.trim_ascii_end()).unwrap().what)
        };
        assert_eq!(one(&|out| line::put_copy_begin(place, 9, out)), "CopyBegin(9)");
        assert_eq!(one(&|out| line::put_copy_end(place, 9, out)), "CopyEnd(9)");
        assert!(one(&|out| line::put_retract(place, Place { version: 50, ..place }, out)).contains("version: 50"));
    }

    #[test]
    fn what_nobody_writes_is_refused() {
        let good = "{\"partition\":1,\"position\":\"1:3:4\",\"tx\":4,\"n\":1,\"of\":1,\"op\":\"set\",\
                    \"key\":\"k\",\"value\":\"v\",\"ts\":1}";
        assert!(read(good.as_bytes()).is_ok());
        for (from, to) in [
            ("\"partition\":1", "\"partition\":2"),
            ("1:3:4", "1:3"),
            ("1:3:4", "1:3:4:5"),
            ("1:3:4", "17:3:4"),
            ("\"tx\":4", "\"tx\":5"),
            ("\"n\":1", "\"n\":2"),
            ("\"n\":1", "\"n\":0"),
            ("\"set\"", "\"put\""),
            ("\"set\"", "\"delete\""),
            ("\"value\":\"v\"", "\"value\":1"),
            ("\"value\":\"v\"", "\"value\":\"v\",\"value_encoding\":\"base64\""),
            ("\"key\":\"k\"", "\"key\":\"k\",\"key_encoding\":\"hex\""),
            ("\"ts\":1", "\"ts\":1,\"more\":2"),
            ("\"ts\":1", "\"tz\":1"),
            ("\"ts\":1}", "\"ts\":1"),
            ("\"ts\":1}", "\"ts\":1}{}"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good);
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(read(b"\xff").is_err() && read(b"").is_err());
    }
}
