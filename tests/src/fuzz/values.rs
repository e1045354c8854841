//! The reader of the value log.
//!
//! Even modes: any bytes behind a header, read at any pointer, the record's checksums mended if the mode says so; what is
//! read is what lies there, with the pointer's length and checksum. Odd modes: whole records with one damage; those outside
//! of it are read, and the others are refused as corrupt.

use super::memory::{MemoryEnv, at_once};
use super::{Damage, Script};
use std::rc::Rc;
use turnstone_engine::codec::crc;
use turnstone_engine::disk::BLOCK;
use turnstone_engine::header::{self, FileKind};
use turnstone_engine::leftovers::Leftovers;
use turnstone_engine::types::ValuePointer;
use turnstone_engine::vlog::{ValueLog, record};
use turnstone_engine::{Error, Settings, names};

const PARTITION: u8 = 3;
const FILE: u32 = 7;
/// The checked part of a header block.
const HEADER: usize = 28;

/// The target.
pub fn run(input: &[u8]) {
    let mut script = Script(input);
    let mode = script.u8();
    if mode & 1 == 0 { any_bytes(mode, script) } else { damaged(script) }
}

fn log(bytes: Vec<u8>) -> ValueLog<MemoryEnv> {
    let env = MemoryEnv::new([(names::values(FILE), bytes)]);
    let leftovers = Rc::new(Leftovers::new(env.clone()));
    ValueLog::new(env, PARTITION, &Settings::default(), leftovers)
}

fn any_bytes(mode: u8, mut script: Script<'_>) {
    let mut bytes = header::encode(FileKind::Values, PARTITION, u64::from(FILE)).to_vec();
    let offset = match mode & 2 {
        0 => BLOCK as u64 + u64::from(script.u16()),
        _ => script.u64(),
    };
    let mut pointer = ValuePointer { file: FILE, offset, length: script.u32(), checksum: script.u32() };
    let length = usize::from(script.u8());
    let key = script.bytes(length);
    bytes.extend_from_slice(script.0);
    if mode & 4 == 4
        && let Some(at) = usize::try_from(offset).ok().filter(|at| *at >= BLOCK)
        && let Some(record) = bytes.get_mut(at..)
    {
        mend(record, key, &mut pointer);
    }
    let read = at_once(log(bytes.clone()).read(key, pointer));
    match read {
        Ok(value) => {
            assert_eq!((value.len(), crc(&[&value])), (pointer.length as usize, pointer.checksum));
            let mut again = vec![0; record::length(key.len(), value.len())];
            record::encode(key, &value, &mut again);
            assert_eq!(again, bytes[offset as usize..][..again.len()], "what lies there");
        }
        Err(Error::Corrupt { file, .. }) => assert_eq!(file, names::values(FILE)),
        Err(error) => panic!("{error}"),
    }
}

/// Mends the checksums of a record as long as its lengths say, and those of the pointer if it belongs to the record.
fn mend(record: &mut [u8], key: &[u8], pointer: &mut ValuePointer) {
    let field = |at: usize| record.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize);
    let (Some(key_length), Some(value_length)) = (field(4), field(8)) else { return };
    let end = record::length(key_length, value_length);
    let Some(covered) = record.get(4..end) else { return };
    let sum = crc(&[covered]);
    pointer.checksum = crc(&[&covered[8 + key_length..]]);
    record[..4].copy_from_slice(&sum.to_le_bytes());
    if record[12..12 + key_length] == *key {
        pointer.length = value_length as u32;
    }
}

fn damaged(mut script: Script<'_>) {
    let mut bytes = header::encode(FileKind::Values, PARTITION, u64::from(FILE)).to_vec();
    let mut records = Vec::new();
    for _ in 0..1 + script.u8() % 6 {
        let (key, value) = (usize::from(script.u8()), usize::from(script.u8()));
        let (key, value) = (script.bytes(key), script.bytes(value));
        let start = bytes.len();
        bytes.resize(start + record::length(key.len(), value.len()), 0);
        record::encode(key, value, &mut bytes[start..]);
        let pointer =
            ValuePointer { file: FILE, offset: start as u64, length: value.len() as u32, checksum: crc(&[value]) };
        records.push((key, value, pointer, start..bytes.len()));
    }
    let whole = bytes.clone();
    Damage::take(&mut script, bytes.len()).apply(&mut bytes);
    let log = log(bytes.clone());
    let is_same = |range: std::ops::Range<usize>| bytes.get(range.clone()) == Some(&whole[range]);
    for (key, value, pointer, range) in records {
        let read = at_once(log.read(key, pointer));
        if is_same(range) && is_same(0..HEADER) {
            assert_eq!(read.as_deref(), Ok(value), "the damage is elsewhere");
        } else {
            assert!(matches!(read, Err(Error::Corrupt { .. })), "{read:?}");
        }
    }
}

/// Records that are read, in each mode.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut record = vec![0; record::length(3, 5)];
    record::encode(b"key", b"value", &mut record);
    let any = |mode: u8, offset: &[u8]| {
        let sum = crc(&[b"value"]).to_le_bytes();
        [&[mode], offset, &5_u32.to_le_bytes(), &sum, &[3], b"key", &record].concat()
    };
    let (near, far) = (0_u16.to_le_bytes(), (BLOCK as u64).to_le_bytes());
    let whole = [1, 2, 3, 5, b'k', b'e', b'y', b'v', b'a', b'l', b'u', b'e', 1, 0, b'k', 0, 9];
    vec![
        any(0, &near),
        any(2, &far),
        any(4, &near),
        any(6, &far),
        // A length that nothing backs.
        [[0, 0, 0].as_slice(), &u32::MAX.to_le_bytes(), &[0; 4], &[1, b'k']].concat(),
        [whole.as_slice(), &[0]].concat(),
        [whole.as_slice(), &[1], &4110_u32.to_le_bytes(), &[1, 0, 0, 0]].concat(),
        [whole.as_slice(), &[2, 0, 0, 0, 0], &4120_u32.to_le_bytes()].concat(),
    ]
}
