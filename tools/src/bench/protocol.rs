//! Transactions as bytes, replies as outcomes. Pure.

use turnstone_net::wire::{Dialect, ErrorCode, Reply, Request, Status, reply};

use super::workload::Action;

/// What a peer speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speech {
    /// TurnstoneDB.
    Turnstone(Dialect),
    /// Redis.
    Resp,
}

/// What came of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done; this many of its keys were not there.
    Done {
        /// Keys not found.
        missing: u32,
    },
    /// Refused; the peer's word for why.
    Failed(String),
}

/// A reply that cannot be understood; the connection is of no more use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Garbled(pub String);

impl Speech {
    /// Appends what selects a partition; `false` where the protocol has none.
    pub fn select(self, partition: u8, out: &mut Vec<u8>) -> bool {
        match self {
            Speech::Turnstone(dialect) => {
                put(dialect, &Request::Select { name: partition.to_string().as_bytes() }, out);
                true
            }
            Speech::Resp => false,
        }
    }

    /// Appends a transaction on `keys`.
    pub fn transaction(self, action: Action, keys: &[Vec<u8>], value: &[u8], out: &mut Vec<u8>) {
        match self {
            Speech::Turnstone(dialect) => {
                let alone = dialect == Dialect::Turnstone2 && keys.len() == 1;
                if !alone {
                    put(dialect, &Request::Begin, out);
                }
                for key in keys {
                    match action {
                        Action::Read => put(dialect, &Request::Get { key }, out),
                        Action::Write => put(dialect, &Request::Set { key, value }, out),
                    }
                }
                if !alone {
                    put(dialect, &Request::Commit, out);
                }
            }
            Speech::Resp => {
                if keys.len() > 1 {
                    put_resp(&[b"MULTI"], out);
                }
                for key in keys {
                    match action {
                        Action::Read => put_resp(&[b"GET", key], out),
                        Action::Write => put_resp(&[b"SET", key, value], out),
                    }
                }
                if keys.len() > 1 {
                    put_resp(&[b"EXEC"], out);
                }
            }
        }
    }

    /// How many replies a transaction of `keys` keys has.
    pub fn replies(self, keys: usize) -> usize {
        match self {
            Speech::Turnstone(Dialect::Turnstone2) | Speech::Resp if keys == 1 => 1,
            _ => keys + 2,
        }
    }

    /// Reads one reply at the start of `bytes`: what it says and how long it is; `None` while it is incomplete.
    pub fn reply(self, bytes: &[u8]) -> Result<Option<(Outcome, usize)>, Garbled> {
        match self {
            Speech::Turnstone(dialect) => {
                let Some((frame, length)) = Reply::decode(dialect, bytes) else { return Ok(None) };
                let outcome = match Status::from_byte(frame.status) {
                    Some(Status::Ok) => Outcome::Done { missing: 0 },
                    Some(Status::NotFound) => Outcome::Done { missing: 1 },
                    status => Outcome::Failed(word(dialect, status, frame.body)),
                };
                Ok(Some((outcome, length)))
            }
            Speech::Resp => resp_reply(bytes),
        }
    }
}

fn put(dialect: Dialect, request: &Request<'_>, out: &mut Vec<u8>) {
    // Keys and values are far below what a frame takes; replies come in order, so ids need not differ.
    if request.encode_frame(dialect, 1, out).is_err() {
        unreachable!("options bound keys and values");
    }
}

/// The name of an error code, or of the status where the dialect has no codes.
fn word(dialect: Dialect, status: Option<Status>, body: &[u8]) -> String {
    match (reply::decode_error(dialect, body).0, status) {
        (Some(code), _) => ErrorCode::name(code).to_owned(),
        (None, Some(status)) => format!("{status:?}").to_uppercase(),
        (None, None) => "UNKNOWN_STATUS".to_owned(),
    }
}

fn put_resp(words: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

fn line(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    Some((&bytes[..end], end + 2))
}

fn resp_reply(bytes: &[u8]) -> Result<Option<(Outcome, usize)>, Garbled> {
    let Some((head, mut length)) = line(bytes) else { return Ok(None) };
    let (kind, text) = head.split_first().ok_or_else(|| Garbled("an empty reply".to_owned()))?;
    let number = || {
        let number = std::str::from_utf8(text).ok().and_then(|text| text.parse::<i64>().ok());
        number.ok_or_else(|| Garbled(format!("'{}' is no number", text.escape_ascii())))
    };
    let outcome = match kind {
        b'+' | b':' => Outcome::Done { missing: 0 },
        b'-' => {
            let word = text.split(|b| *b == b' ').next().unwrap_or(text);
            Outcome::Failed(String::from_utf8_lossy(word).into_owned())
        }
        b'$' => match number()? {
            -1 => Outcome::Done { missing: 1 },
            n if n >= 0 => {
                length += n as usize + 2;
                if bytes.len() < length {
                    return Ok(None);
                }
                Outcome::Done { missing: 0 }
            }
            n => return Err(Garbled(format!("a string of {n} bytes"))),
        },
        b'*' => {
            let (mut missing, mut failed) = (0, None);
            for _ in 0..number()?.max(0) {
                match resp_reply(&bytes[length..])? {
                    None => return Ok(None),
                    Some((Outcome::Done { missing: n }, used)) => {
                        missing += n;
                        length += used;
                    }
                    Some((Outcome::Failed(word), used)) => {
                        failed = Some(word);
                        length += used;
                    }
                }
            }
            failed.map_or(Outcome::Done { missing }, Outcome::Failed)
        }
        other => return Err(Garbled(format!("a reply that starts with '{}'", other.escape_ascii()))),
    };
    Ok(Some((outcome, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: Speech = Speech::Turnstone(Dialect::Turnstone2);
    const V1: Speech = Speech::Turnstone(Dialect::V1);

    #[test]
    fn v1_transactions_are_the_originals_bytes() {
        let mut out = Vec::new();
        V1.transaction(Action::Write, &[b"key".to_vec()], b"value", &mut out);
        assert_eq!(out, b"\x10\0\0\0\0\x03\0\0\0\x0c\0\0\0\x03keyvalue\x11\0\0\0\0");
        assert_eq!((V1.replies(1), TWO.replies(1), TWO.replies(3), Speech::Resp.replies(1)), (3, 1, 5, 1));
    }

    #[test]
    fn resp_goes_out_and_comes_back() {
        let mut out = Vec::new();
        Speech::Resp.transaction(Action::Write, &[b"k".to_vec()], b"v", &mut out);
        assert_eq!(out, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n");
        let done = |missing| Outcome::Done { missing };
        let whole: [(&[u8], Outcome); 5] = [
            (b"+OK\r\n", done(0)),
            (b"$-1\r\n", done(1)),
            (b"$3\r\na\r\n\r\n", done(0)),
            (b"*2\r\n$1\r\na\r\n$-1\r\n", done(1)),
            (b"-ERR no\r\n", Outcome::Failed("ERR".to_owned())),
        ];
        for (bytes, outcome) in whole {
            assert_eq!(Speech::Resp.reply(bytes), Ok(Some((outcome, bytes.len()))));
            for cut in 0..bytes.len() {
                assert_eq!(Speech::Resp.reply(&bytes[..cut]), Ok(None), "{}", bytes[..cut].escape_ascii());
            }
        }
        assert!(Speech::Resp.reply(b"HTTP/1.1\r\n").is_err());
    }

    #[test]
    fn errors_are_named_by_code() {
        let mut out = Vec::new();
        reply::encode_error(Dialect::Turnstone2, 1, ErrorCode::Conflict, "why", &mut out);
        assert_eq!(TWO.reply(&out), Ok(Some((Outcome::Failed("CONFLICT".to_owned()), out.len()))));
    }
}
