//! Requests: the payload shapes of both dialects, borrowed from the frame they came in.
//!
//! `str32` is a `u32` length and that many bytes.
//!
//! | opcode | payload |
//! |---|---|
//! | `Get`, `Del` | the key |
//! | `Set` | `str32` key, then the value up to the end |
//! | `Select`, `Release` | the name |
//! | `MGet`, `MDel` | `u32 n`, n × `str32` key |
//! | `MSet` | `u32 n`, n × (`str32` key, `str32` value) |
//! | `ReplicaOf` | `str32` address, then the remote partition's name up to the end |
//! | `Promote` | `u32` replicas that must confirm a commit |
//! | `Hold` | `str32` name, `u64` epoch, `u64` version, `u64` limit in bytes |
//! | `ReadLog` | `u64` version, `u32` limit in bytes |
//! | `Replication` | words, separated by blanks: see `docs/replication.md` |
//! | `Wait` | `u64` epoch, `u64` version, `u32` milliseconds |
//! | all others | ignored |
//!
//! Limits that are settings (key, value and transaction sizes) are the session's to check: a codec has no settings.

use std::fmt;

use super::{Dialect, ErrorCode, FrameTooLarge, Opcode, frame};

/// The most keys or pairs that one `MGet`, `MSet` or `MDel` may name. It bounds what a parsed request costs beside its
/// payload: 32 MiB of slices at worst.
pub const MAX_ITEMS: u32 = 1 << 20;

/// Why a payload was refused, ready to be sent back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireError {
    /// The stable code.
    pub code: ErrorCode,
    /// A sentence for people.
    pub text: String,
}

impl WireError {
    /// An error from its parts.
    pub fn new(code: ErrorCode, text: impl Into<String>) -> WireError {
        WireError { code, text: text.into() }
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, self.text)
    }
}

impl std::error::Error for WireError {}

/// One request. Byte strings point into the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request<'a> {
    /// Are you there?
    Ping,
    /// Read one key. An empty key parses: no such key can exist, so it reads as absent.
    Get {
        /// The key.
        key: &'a [u8],
    },
    /// Write one key.
    Set {
        /// The key, at least one byte.
        key: &'a [u8],
        /// The value, possibly empty.
        value: &'a [u8],
    },
    /// Delete one key. An empty key parses: deleting what cannot exist succeeds and changes nothing.
    Del {
        /// The key.
        key: &'a [u8],
    },
    /// Choose a partition.
    Select {
        /// Its name, a decimal number.
        name: &'a [u8],
    },
    /// Read several keys.
    MGet(Vec<&'a [u8]>),
    /// Write several keys; the keys have at least one byte.
    MSet(Vec<(&'a [u8], &'a [u8])>),
    /// Delete several keys.
    MDel(Vec<&'a [u8]>),
    /// Open a transaction.
    Begin,
    /// Commit it.
    Commit,
    /// Discard it.
    Abort,
    /// Describe the partition.
    Stat,
    /// Follow a partition elsewhere; an empty address stops following.
    ReplicaOf {
        /// `host:port` of the leader.
        address: &'a [u8],
        /// The leader's name for the partition.
        partition: &'a [u8],
    },
    /// Become leader.
    Promote {
        /// Followers that must confirm a commit.
        min_replicas: u32,
    },
    /// Refuse writes until promoted.
    StepDown,
    /// Checkpoint now.
    Checkpoint,
    /// Delete everything.
    FlushDb,
    /// Keep log.
    Hold {
        /// The hold's name.
        name: &'a [u8],
        /// The epoch of the position to hold; not looked at when `version` is 0.
        epoch: u64,
        /// The first version to keep; 0 means from now on.
        version: u64,
        /// Bytes the hold may pin before it is given up.
        limit_bytes: u64,
    },
    /// Let a hold go.
    Release {
        /// Its name.
        name: &'a [u8],
    },
    /// Read changes.
    ReadLog {
        /// The first version wanted.
        version: u64,
        /// About how many bytes of changes to answer with.
        limit_bytes: u32,
    },
    /// An order about replication.
    Replication {
        /// Its words, separated by blanks.
        words: &'a [u8],
    },
    /// Wait until a position is shown.
    Wait {
        /// The position's epoch; 0 for any.
        epoch: u64,
        /// Its version.
        version: u64,
        /// How long at most.
        milliseconds: u32,
    },
    /// Close the connection.
    Quit,
}

impl<'a> Request<'a> {
    /// Reads the payload of a request. Counts and lengths are checked against the bytes at hand before anything is
    /// allocated for them.
    pub fn parse(opcode: Opcode, payload: &'a [u8]) -> Result<Request<'a>, WireError> {
        let mut reader = Reader { opcode, rest: payload };
        let request = match opcode {
            Opcode::Ping => return Ok(Request::Ping),
            Opcode::Begin => return Ok(Request::Begin),
            Opcode::Commit => return Ok(Request::Commit),
            Opcode::Abort => return Ok(Request::Abort),
            Opcode::Stat => return Ok(Request::Stat),
            Opcode::StepDown => return Ok(Request::StepDown),
            Opcode::Checkpoint => return Ok(Request::Checkpoint),
            Opcode::FlushDb => return Ok(Request::FlushDb),
            Opcode::Quit => return Ok(Request::Quit),
            Opcode::Get => Request::Get { key: reader.take_rest() },
            Opcode::Del => Request::Del { key: reader.take_rest() },
            Opcode::Select => Request::Select { name: reader.take_rest() },
            Opcode::Release => Request::Release { name: reader.take_rest() },
            Opcode::Set => {
                let key = reader.key()?;
                Request::Set { key, value: reader.take_rest() }
            }
            Opcode::MGet => Request::MGet(reader.keys()?),
            Opcode::MDel => Request::MDel(reader.keys()?),
            Opcode::MSet => {
                // A pair is at least two lengths.
                let count = reader.count(8)?;
                let mut pairs = Vec::with_capacity(count);
                for _ in 0..count {
                    let key = reader.key()?;
                    pairs.push((key, reader.str32("value")?));
                }
                Request::MSet(pairs)
            }
            Opcode::ReplicaOf => {
                let address = reader.str32("address")?;
                Request::ReplicaOf { address, partition: reader.take_rest() }
            }
            Opcode::Promote => Request::Promote { min_replicas: reader.u32("replica count")? },
            Opcode::Hold => Request::Hold {
                name: reader.str32("hold's name")?,
                epoch: reader.u64("epoch")?,
                version: reader.u64("version")?,
                limit_bytes: reader.u64("limit")?,
            },
            Opcode::Replication => Request::Replication { words: reader.take_rest() },
            Opcode::Wait => Request::Wait {
                epoch: reader.u64("epoch")?,
                version: reader.u64("version")?,
                milliseconds: reader.u32("timeout")?,
            },
            Opcode::ReadLog => Request::ReadLog { version: reader.u64("version")?, limit_bytes: reader.u32("limit")? },
        };
        reader.finish()?;
        Ok(request)
    }

    /// The key that a frame with this tag and payload is about, if it is one; nothing is checked.
    pub fn key_of(tag: u8, payload: &'a [u8]) -> Option<&'a [u8]> {
        match Opcode::from_byte(tag)? {
            Opcode::Get | Opcode::Del => Some(payload),
            opcode @ Opcode::Set => Reader { opcode, rest: payload }.key().ok(),
            _ => None,
        }
    }

    /// The opcode this request travels under.
    pub fn opcode(&self) -> Opcode {
        match self {
            Request::Ping => Opcode::Ping,
            Request::Get { .. } => Opcode::Get,
            Request::Set { .. } => Opcode::Set,
            Request::Del { .. } => Opcode::Del,
            Request::Select { .. } => Opcode::Select,
            Request::MGet(_) => Opcode::MGet,
            Request::MSet(_) => Opcode::MSet,
            Request::MDel(_) => Opcode::MDel,
            Request::Begin => Opcode::Begin,
            Request::Commit => Opcode::Commit,
            Request::Abort => Opcode::Abort,
            Request::Stat => Opcode::Stat,
            Request::ReplicaOf { .. } => Opcode::ReplicaOf,
            Request::Promote { .. } => Opcode::Promote,
            Request::StepDown => Opcode::StepDown,
            Request::Checkpoint => Opcode::Checkpoint,
            Request::FlushDb => Opcode::FlushDb,
            Request::Hold { .. } => Opcode::Hold,
            Request::Release { .. } => Opcode::Release,
            Request::ReadLog { .. } => Opcode::ReadLog,
            Request::Replication { .. } => Opcode::Replication,
            Request::Wait { .. } => Opcode::Wait,
            Request::Quit => Opcode::Quit,
        }
    }

    /// Appends the payload, without a frame around it.
    ///
    /// The lengths inside are 32 bits wide; what is longer is cut off by the check of the frame around it, so encode
    /// frames with [`Request::encode_frame`] unless the strings are known to be shorter.
    pub fn encode_payload(&self, out: &mut Vec<u8>) {
        match self {
            Request::Get { key } | Request::Del { key } => out.extend_from_slice(key),
            Request::Set { key, value } => {
                put_str32(out, key);
                out.extend_from_slice(value);
            }
            Request::Select { name } | Request::Release { name } => out.extend_from_slice(name),
            Request::MGet(keys) | Request::MDel(keys) => {
                put_u32(out, keys.len());
                keys.iter().for_each(|key| put_str32(out, key));
            }
            Request::MSet(pairs) => {
                put_u32(out, pairs.len());
                for (key, value) in pairs {
                    put_str32(out, key);
                    put_str32(out, value);
                }
            }
            Request::ReplicaOf { address, partition } => {
                put_str32(out, address);
                out.extend_from_slice(partition);
            }
            Request::Promote { min_replicas } => out.extend_from_slice(&min_replicas.to_be_bytes()),
            Request::Hold { name, epoch, version, limit_bytes } => {
                put_str32(out, name);
                for number in [epoch, version, limit_bytes] {
                    out.extend_from_slice(&number.to_be_bytes());
                }
            }
            Request::Replication { words } => out.extend_from_slice(words),
            Request::Wait { epoch, version, milliseconds } => {
                out.extend_from_slice(&epoch.to_be_bytes());
                out.extend_from_slice(&version.to_be_bytes());
                out.extend_from_slice(&milliseconds.to_be_bytes());
            }
            Request::ReadLog { version, limit_bytes } => {
                out.extend_from_slice(&version.to_be_bytes());
                out.extend_from_slice(&limit_bytes.to_be_bytes());
            }
            Request::Ping
            | Request::Begin
            | Request::Commit
            | Request::Abort
            | Request::Stat
            | Request::StepDown
            | Request::Checkpoint
            | Request::FlushDb
            | Request::Quit => {}
        }
    }

    /// Bytes that [`Request::encode_payload`] would append.
    pub fn payload_bytes(&self) -> u64 {
        let sum = |parts: &[&[u8]]| parts.iter().map(|part| part.len() as u64).sum::<u64>();
        match self {
            Request::Get { key } | Request::Del { key } => sum(&[key]),
            Request::Set { key, value } => 4 + sum(&[key, value]),
            Request::Select { name } | Request::Release { name } => sum(&[name]),
            Request::MGet(keys) | Request::MDel(keys) => 4 + 4 * keys.len() as u64 + sum(keys),
            Request::MSet(pairs) => 4 + pairs.iter().map(|(key, value)| 8 + sum(&[key, value])).sum::<u64>(),
            Request::ReplicaOf { address, partition } => 4 + sum(&[address, partition]),
            Request::Promote { .. } => 4,
            Request::Hold { name, .. } => 28 + sum(&[name]),
            Request::ReadLog { .. } => 12,
            Request::Replication { words } => sum(&[words]),
            Request::Wait { .. } => 20,
            _ => 0,
        }
    }

    /// Appends the whole frame. On an error `out` is unchanged.
    pub fn encode_frame(&self, dialect: Dialect, id: u32, out: &mut Vec<u8>) -> Result<(), FrameTooLarge> {
        let total = self.payload_bytes();
        let length = u32::try_from(total).map_err(|_| FrameTooLarge { length: total })?;
        out.reserve(dialect.header_bytes() + length as usize);
        frame::encode_header(dialect, frame::Header { tag: self.opcode().byte(), length, id }, out);
        self.encode_payload(out);
        Ok(())
    }
}

/// The keys of an `MGet` or `MDel`, or the pairs of an `MSet`, one after the other: for a request that is too long to be looked at
/// in one go. A key of the first two has an empty value.
#[derive(Clone)]
pub struct Items<'a> {
    reader: Reader<'a>,
    left: usize,
}

/// A key, and the value of a pair.
pub type Item<'a> = (&'a [u8], &'a [u8]);

impl<'a> Items<'a> {
    /// Reads the count.
    pub fn of(opcode: Opcode, payload: &'a [u8]) -> Result<Items<'a>, WireError> {
        let mut reader = Reader { opcode, rest: payload };
        let least = if opcode == Opcode::MSet { 8 } else { 4 };
        let left = reader.count(least)?;
        Ok(Items { reader, left })
    }

    /// How many are left.
    pub fn left(&self) -> usize {
        self.left
    }

    /// The next one; `None` behind the last, where nothing may follow.
    pub fn next_item(&mut self) -> Result<Option<Item<'a>>, WireError> {
        if self.left == 0 {
            return self.reader.finish().map(|()| None);
        }
        self.left -= 1;
        let item = match self.reader.opcode {
            Opcode::MSet => (self.reader.key()?, self.reader.str32("value")?),
            _ => (self.reader.str32("key")?, &[][..]),
        };
        Ok(Some(item))
    }
}

/// Takes fields off the front of a payload; every error names the opcode and the field.
#[derive(Clone)]
struct Reader<'a> {
    opcode: Opcode,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn malformed(&self, text: String) -> WireError {
        WireError::new(ErrorCode::Malformed, format!("{}: {text}", self.opcode.name()))
    }

    fn take<const N: usize>(&mut self, what: &str) -> Result<[u8; N], WireError> {
        match self.rest.split_first_chunk::<N>() {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(*bytes)
            }
            None => Err(self.malformed(format!("the {what} needs {N} bytes, {} are left", self.rest.len()))),
        }
    }

    fn u32(&mut self, what: &str) -> Result<u32, WireError> {
        Ok(u32::from_be_bytes(self.take(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, WireError> {
        Ok(u64::from_be_bytes(self.take(what)?))
    }

    fn str32(&mut self, what: &str) -> Result<&'a [u8], WireError> {
        let length = self.u32(what)?;
        match self.rest.split_at_checked(length as usize) {
            Some((bytes, rest)) => {
                self.rest = rest;
                Ok(bytes)
            }
            None => {
                Err(self
                    .malformed(format!("the {what} is announced with {length} bytes, {} are left", self.rest.len())))
            }
        }
    }

    /// A key that is going to be written.
    fn key(&mut self) -> Result<&'a [u8], WireError> {
        let key = self.str32("key")?;
        if key.is_empty() {
            return Err(WireError::new(ErrorCode::KeyEmpty, "a key has at least one byte"));
        }
        Ok(key)
    }

    /// A count of items of which each takes at least `least` bytes.
    fn count(&mut self, least: u64) -> Result<usize, WireError> {
        let count = self.u32("count")?;
        if u64::from(count) * least > self.rest.len() as u64 && !cfg!(feature = "planted") {
            return Err(self.malformed(format!("{count} items do not fit the {} bytes left", self.rest.len())));
        }
        if count > MAX_ITEMS {
            let text = format!("{}: {count} items in one request; the limit is {MAX_ITEMS}", self.opcode.name());
            return Err(WireError::new(ErrorCode::RequestTooLarge, text));
        }
        Ok(count as usize)
    }

    fn keys(&mut self) -> Result<Vec<&'a [u8]>, WireError> {
        let count = self.count(4)?;
        let mut keys = Vec::with_capacity(count);
        for _ in 0..count {
            keys.push(self.str32("key")?);
        }
        Ok(keys)
    }

    fn take_rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    fn finish(&self) -> Result<(), WireError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(self.malformed(format!("{} bytes follow the last field", self.rest.len())))
    }
}

/// Saturates: a frame that long has been refused by its total length already.
fn put_u32(out: &mut Vec<u8>, number: usize) {
    out.extend_from_slice(&u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes());
}

fn put_str32(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u32(out, bytes.len());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Request<'static>> {
        vec![
            Request::Ping,
            Request::Get { key: b"k" },
            Request::Get { key: b"" },
            Request::Set { key: b"k\0", value: b"" },
            Request::Set { key: b"key", value: b"value \xff" },
            Request::Del { key: b"k" },
            Request::Del { key: b"" },
            Request::Select { name: b"16" },
            Request::MGet(vec![]),
            Request::MGet(vec![b"a", b"", b"ccc"]),
            Request::MSet(vec![(b"a", b"1"), (b"b", b"")]),
            Request::MDel(vec![b"a", b"b"]),
            Request::Begin,
            Request::Commit,
            Request::Abort,
            Request::Stat,
            Request::ReplicaOf { address: b"", partition: b"" },
            Request::ReplicaOf { address: b"h:1", partition: b"2" },
            Request::Promote { min_replicas: 2 },
            Request::StepDown,
            Request::Checkpoint,
            Request::FlushDb,
            Request::Hold { name: b"cdc", epoch: 1, version: u64::MAX, limit_bytes: 1 << 40 },
            Request::Release { name: b"cdc" },
            Request::ReadLog { version: 5, limit_bytes: 65536 },
            Request::Replication { words: b"min_replicas 1" },
            Request::Wait { epoch: 3, version: 9, milliseconds: 1000 },
            Request::Quit,
        ]
    }

    fn payload(request: &Request<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        request.encode_payload(&mut out);
        out
    }

    #[test]
    fn every_opcode_round_trips() {
        let samples = samples();
        for opcode in Opcode::ALL {
            assert!(samples.iter().any(|request| request.opcode() == opcode), "no sample for {opcode:?}");
        }
        for request in &samples {
            let bytes = payload(request);
            assert_eq!(bytes.len() as u64, request.payload_bytes(), "{request:?}");
            assert_eq!(Request::parse(request.opcode(), &bytes).as_ref(), Ok(request));
        }
    }

    #[test]
    fn frames_carry_the_payload_behind_a_header() {
        for dialect in [Dialect::V1, Dialect::Turnstone2] {
            for request in samples() {
                let mut bytes = Vec::new();
                request.encode_frame(dialect, 9, &mut bytes).unwrap();
                let header = frame::decode_header(dialect, &bytes).unwrap();
                assert_eq!(header.tag, request.opcode().byte());
                assert_eq!(bytes[dialect.header_bytes()..], payload(&request));
                assert_eq!(header.length as usize, bytes.len() - dialect.header_bytes());
            }
        }
    }

    /// Every strict prefix of a structured payload is refused, and none of them panics.
    #[test]
    fn truncations_are_malformed() {
        let whole_payload = [
            Opcode::Set,
            Opcode::Get,
            Opcode::Del,
            Opcode::Select,
            Opcode::Release,
            Opcode::ReplicaOf,
            Opcode::Replication,
        ];
        for request in samples() {
            let bytes = payload(&request);
            for cut in 0..bytes.len() {
                let parsed = Request::parse(request.opcode(), &bytes[..cut]);
                if whole_payload.contains(&request.opcode()) {
                    continue;
                }
                assert_eq!(parsed.unwrap_err().code, ErrorCode::Malformed, "{request:?} cut at {cut}");
            }
        }
        for cut in 0..6 {
            let parsed = Request::parse(Opcode::Set, &b"\0\0\0\x02kkv"[..cut]);
            assert_eq!(parsed.unwrap_err().code, ErrorCode::Malformed);
        }
        assert_eq!(Request::parse(Opcode::ReplicaOf, b"\0").unwrap_err().code, ErrorCode::Malformed);
        assert_eq!(Request::parse(Opcode::ReplicaOf, b"\0\0\0\x32abc").unwrap_err().code, ErrorCode::Malformed);
    }

    #[test]
    fn trailing_bytes_are_malformed_where_there_is_a_shape() {
        for opcode in [Opcode::MGet, Opcode::MSet, Opcode::MDel, Opcode::Promote, Opcode::Hold, Opcode::ReadLog] {
            let sample = samples().into_iter().find(|request| request.opcode() == opcode).unwrap();
            let mut bytes = payload(&sample);
            bytes.push(0);
            assert_eq!(Request::parse(opcode, &bytes).unwrap_err().code, ErrorCode::Malformed, "{opcode:?}");
        }
        for opcode in [Opcode::Ping, Opcode::Begin, Opcode::Commit, Opcode::Abort, Opcode::Stat, Opcode::Quit] {
            assert!(Request::parse(opcode, b"ignored").is_ok());
        }
    }

    #[test]
    fn huge_counts_and_lengths_cost_nothing() {
        let error = Request::parse(Opcode::MGet, &[0xff; 8]).unwrap_err();
        assert_eq!(error.code, ErrorCode::Malformed);
        let error = Request::parse(Opcode::MSet, &[0x7f; 64]).unwrap_err();
        assert_eq!(error.code, ErrorCode::Malformed);
        let mut key_length_of_four_gib = vec![0, 0, 0, 1];
        key_length_of_four_gib.extend_from_slice(&[0xff; 4]);
        for opcode in [Opcode::MGet, Opcode::MDel] {
            assert_eq!(Request::parse(opcode, &key_length_of_four_gib).unwrap_err().code, ErrorCode::Malformed);
        }
        // Four million empty keys fit their payload, but not the limit on items.
        let mut many = (4_000_000_u32).to_be_bytes().to_vec();
        many.resize(4 + 16_000_000, 0);
        assert_eq!(Request::parse(Opcode::MDel, &many).unwrap_err().code, ErrorCode::RequestTooLarge);
    }

    #[test]
    fn empty_keys_are_refused_only_where_they_would_be_written() {
        assert_eq!(Request::parse(Opcode::Set, b"\0\0\0\0v").unwrap_err().code, ErrorCode::KeyEmpty);
        let bytes = payload(&Request::MSet(vec![(b"a", b"1"), (b"", b"2")]));
        assert_eq!(Request::parse(Opcode::MSet, &bytes).unwrap_err().code, ErrorCode::KeyEmpty);
        assert!(Request::parse(Opcode::Get, b"").is_ok());
        assert!(Request::parse(Opcode::Del, b"").is_ok());
    }

    #[test]
    fn errors_name_the_command_and_the_field() {
        let error = Request::parse(Opcode::Set, b"\0\0\0\x64abc").unwrap_err();
        assert_eq!(error.to_string(), "MALFORMED set: the key is announced with 100 bytes, 3 are left");
    }
}
