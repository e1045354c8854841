//! The body of a batch: what was committed. The same bytes on every node; replicas and change streams read it.
//!
//! Layout, little-endian (see `docs/file-formats.md`):
//! `crc u32 | format u16 | flags u16 | epoch u64 | epoch id u64 | first version u64 | commit ms u64 | transactions u32`,
//! then per transaction `operations u32` and its operations: `kind u8 | key length u16 | key`, followed for a value by
//! `length u32 | bytes`, for a large value by `length u32 | checksum u32` (its bytes are in the value log).
//! Transaction i has version `first version + i`. The CRC covers everything behind it.

use crate::codec::{Put, Take, Truncated, crc};
use crate::types::{Epoch, Key, Value, Version};

/// Newest format of bodies that this program writes and reads.
pub const BODY_FORMAT: u16 = 1;
/// Bytes before the first transaction.
pub const BODY_HEADER: usize = 4 + 2 + 2 + 8 * 4 + 4;

const KIND_SET: u8 = 1;
const KIND_SET_LARGE: u8 = 2;
const KIND_DELETE: u8 = 3;
const KIND_FLUSH: u8 = 4;

/// One change of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The key gets a value that rides in the log.
    Set(Key, Value),
    /// The key gets a value that was written to the value log: length and CRC-32.
    SetLarge(Key, u32, u32),
    /// The key goes.
    Delete(Key),
    /// Every key goes (FlushDB).
    Flush,
}

impl Operation {
    /// Bytes it takes in a body.
    pub fn encoded_len(&self) -> usize {
        match self {
            Operation::Set(key, value) => 1 + 2 + key.len() + 4 + value.len(),
            Operation::SetLarge(key, ..) => 1 + 2 + key.len() + 8,
            Operation::Delete(key) => 1 + 2 + key.len(),
            Operation::Flush => 1 + 2,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let (kind, key): (u8, &[u8]) = match self {
            Operation::Set(key, _) => (KIND_SET, key),
            Operation::SetLarge(key, ..) => (KIND_SET_LARGE, key),
            Operation::Delete(key) => (KIND_DELETE, key),
            Operation::Flush => (KIND_FLUSH, &[]),
        };
        out.put_u8(kind);
        out.put_u16(u16::try_from(key.len()).expect("keys are checked against a limit below 2^16 when written"));
        out.put(key);
        match self {
            Operation::Set(_, value) => {
                out.put_u32(u32::try_from(value.len()).expect("values are checked against a limit below 2^32"));
                out.put(value);
            }
            Operation::SetLarge(_, length, checksum) => {
                out.put_u32(*length);
                out.put_u32(*checksum);
            }
            Operation::Delete(_) | Operation::Flush => {}
        }
    }
}

/// A decoded body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// The reign it was written in.
    pub epoch: Epoch,
    /// Version of the first transaction; for an empty body, of the next one to come.
    pub first_version: Version,
    /// Wall clock of the leader, milliseconds.
    pub commit_ms: u64,
    /// The transactions, in order of their versions.
    pub transactions: Vec<Vec<Operation>>,
}

impl Body {
    /// Version of the last transaction; for an empty body, the one before the next to come.
    pub fn last_version(&self) -> Version {
        self.first_version + self.transactions.len() as u64 - 1
    }
}

/// Builds a body from transactions.
pub fn encode<'a>(
    epoch: Epoch,
    first_version: Version,
    commit_ms: u64,
    transactions: impl ExactSizeIterator<Item = &'a [Operation]>,
    out: &mut Vec<u8>,
) {
    let start = out.len();
    out.put_u32(0);
    out.put_u16(BODY_FORMAT);
    out.put_u16(0);
    out.put_u64(epoch.number);
    out.put_u64(epoch.id);
    out.put_u64(first_version);
    out.put_u64(commit_ms);
    out.put_u32(transactions.len() as u32);
    for operations in transactions {
        out.put_u32(operations.len() as u32);
        operations.iter().for_each(|operation| operation.encode(out));
    }
    let sum = crc(&[&out[start + 4..]]);
    out[start..start + 4].copy_from_slice(&sum.to_le_bytes());
}

/// Why a body could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyError {
    /// The CRC differs, or the bytes contradict themselves.
    Damaged(&'static str),
    /// Written by a newer program.
    Newer(u16),
}

impl From<Truncated> for BodyError {
    fn from(_: Truncated) -> BodyError {
        BodyError::Damaged("a batch body ends too early")
    }
}

/// Reads a body; `check` is false only under a planted bug.
pub fn decode(bytes: &[u8], check: bool) -> Result<Body, BodyError> {
    let mut take = Take(bytes);
    let sum = take.u32()?;
    if check && sum != crc(&[take.0]) {
        return Err(BodyError::Damaged("a batch body fails its checksum"));
    }
    let format = take.u16()?;
    if format > BODY_FORMAT {
        return Err(BodyError::Newer(format));
    }
    take.u16()?;
    let epoch = Epoch { number: take.u64()?, id: take.u64()? };
    let (first_version, commit_ms) = (take.u64()?, take.u64()?);
    if first_version == 0 {
        return Err(BodyError::Damaged("a batch starts at version 0"));
    }
    let count = take.u32()?;
    if first_version.checked_add(u64::from(count)).is_none() {
        return Err(BodyError::Damaged("a batch has more versions than there are"));
    }
    let mut transactions = Vec::new();
    for _ in 0..count {
        let mut operations = Vec::new();
        for _ in 0..take.u32()? {
            operations.push(operation(&mut take)?);
        }
        transactions.push(operations);
    }
    if take.left() != 0 {
        return Err(BodyError::Damaged("bytes are left behind the last transaction of a batch"));
    }
    Ok(Body { epoch, first_version, commit_ms, transactions })
}

fn operation(take: &mut Take<'_>) -> Result<Operation, BodyError> {
    let kind = take.u8()?;
    let length = usize::from(take.u16()?);
    let key: Key = take.bytes(length)?.into();
    Ok(match kind {
        KIND_SET => {
            let length = take.u32()? as usize;
            Operation::Set(key, take.bytes(length)?.into())
        }
        KIND_SET_LARGE => Operation::SetLarge(key, take.u32()?, take.u32()?),
        KIND_DELETE => Operation::Delete(key),
        KIND_FLUSH if key.is_empty() => Operation::Flush,
        KIND_FLUSH => return Err(BodyError::Damaged("a flush names a key")),
        _ => return Err(BodyError::Damaged("an operation of unknown kind")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Vec<Vec<Operation>>, Vec<u8>) {
        let transactions = vec![
            vec![
                Operation::Set(b"a".as_slice().into(), b"1".as_slice().into()),
                Operation::Delete(b"b".as_slice().into()),
            ],
            vec![Operation::SetLarge(b"c".as_slice().into(), 5000, 77)],
            vec![Operation::Flush],
        ];
        let mut out = Vec::new();
        encode(Epoch { number: 3, id: 9 }, 41, 1_000, transactions.iter().map(Vec::as_slice), &mut out);
        (transactions, out)
    }

    #[test]
    fn a_body_comes_back_as_it_went() {
        let (transactions, bytes) = sample();
        let payload: usize = transactions.iter().map(|t| 4 + t.iter().map(Operation::encoded_len).sum::<usize>()).sum();
        assert_eq!(bytes.len(), BODY_HEADER + payload);
        let body = decode(&bytes, true).expect("a good body");
        assert_eq!(body.transactions, transactions);
        assert_eq!((body.first_version, body.last_version(), body.epoch.id), (41, 43, 9));
    }

    #[test]
    fn what_was_never_written_is_damage() {
        let (_, good) = sample();
        let last = good.len() - 3;
        assert_eq!(good[last], KIND_FLUSH);
        let with_key = [&good[..last], &[KIND_FLUSH, 1, 0, b'k']].concat();
        assert_eq!(decode(&with_key, false), Err(BodyError::Damaged("a flush names a key")));
        let mut late = good.clone();
        late[24..32].fill(0xff);
        assert_eq!(decode(&late, false), Err(BodyError::Damaged("a batch has more versions than there are")));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let (_, bytes) = sample();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad, true).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length], true).is_err());
            let _ = decode(&bytes[..length], false);
        }
    }
}
