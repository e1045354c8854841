//! The reader of runs.
//!
//! Mode 0: any bytes behind a header. Mode 1: any bytes as chunks and footer, their lengths and checksums right. Both: the
//! entries of a chunk encode to the bytes that are there. Mode 2: a run that was written, with one damage: the chunks before
//! it are read, and then it is refused as corrupt.

use super::memory::{MemoryEnv, at_once};
use super::{Damage, Script};
use turnstone_engine::codec::{Take, crc};
use turnstone_engine::disk::BLOCK;
use turnstone_engine::header::{self, FileKind};
use turnstone_engine::manifest::{Mark, RunSummary};
use turnstone_engine::run::{RunReader, encode_entry};
use turnstone_engine::types::{Settled, ValuePointer};
use turnstone_engine::{Error, names};

const PARTITION: u8 = 3;
const NUMBER: u32 = 9;
/// The checked part of a header block.
const HEADER: usize = 28;

/// The target.
pub fn run(input: &[u8]) {
    let mut script = Script(input);
    let mut file = header::encode(FileKind::Run, PARTITION, u64::from(NUMBER)).to_vec();
    match script.u8() % 3 {
        0 => {
            file.extend_from_slice(script.0);
            read(&file);
        }
        1 => {
            pieces(&mut script, &mut file);
            read(&file);
        }
        _ => {
            let length = usize::from(script.u16());
            let ends = pieces(&mut Script(script.bytes(length)), &mut file);
            let whole = file.clone();
            let (expected, summary) = read(&whole);
            Damage::take(&mut script, file.len()).apply(&mut file);
            let untouched = |end: &usize| file.get(BLOCK..*end) == Some(&whole[BLOCK..*end]);
            let sound = file.get(..HEADER) == Some(&whole[..HEADER]);
            let count = if sound { ends.iter().take_while(|end| untouched(end)).count() } else { 0 };
            let (chunks, again) = read(&file);
            assert_eq!(chunks, count.min(expected), "the chunks before the damage");
            if let Some(again) = again {
                assert_eq!(Some(again), summary);
            } else if file == whole {
                assert_eq!(summary, None);
            }
        }
    }
}

/// Appends chunks and, unless the script ends before, a footer; answers where the chunks with entries end.
fn pieces(script: &mut Script<'_>, file: &mut Vec<u8>) -> Vec<usize> {
    let mut ends = Vec::new();
    while !script.is_over() {
        let length = script.u16();
        let bytes = script.bytes(usize::from(length & 0x7fff));
        let is_footer = length & 0x8000 != 0;
        if is_footer {
            file.extend(u32::MAX.to_le_bytes());
        }
        file.extend((bytes.len() as u32).to_le_bytes());
        file.extend(crc(&[bytes]).to_le_bytes());
        file.extend_from_slice(bytes);
        if is_footer {
            break;
        }
        if !bytes.is_empty() {
            ends.push(file.len());
        }
    }
    file.resize(file.len().next_multiple_of(BLOCK), 0);
    ends
}

/// Reads to the end; answers how many chunks with entries there were, and the footer.
fn read(file: &[u8]) -> (usize, Option<RunSummary>) {
    let env = MemoryEnv::new([(names::run(NUMBER), file.to_vec())]);
    let refused = |error: Error| match error {
        Error::Corrupt { file, .. } => assert_eq!(file, names::run(NUMBER)),
        error => panic!("{error}"),
    };
    let (mut at, mut chunks) = (BLOCK, 0);
    let mut reader = match at_once(RunReader::open(&env, PARTITION, NUMBER)) {
        Ok(reader) => reader,
        Err(error) => {
            refused(error);
            return (0, None);
        }
    };
    loop {
        match at_once(reader.next()) {
            Ok(Some(entries)) => {
                let mut again = Vec::new();
                for entry in &entries {
                    encode_entry(&entry.key, entry.version, &entry.settled, &mut again);
                }
                at += 8;
                assert_eq!(again, file[at..at + again.len()], "the entries");
                at += again.len();
                // Zeros, too, are chunks, without entries.
                chunks += usize::from(!entries.is_empty());
            }
            Ok(None) => break,
            Err(error) => {
                refused(error);
                return (chunks, None);
            }
        }
    }
    let summary = at_once(reader.summary()).expect("it was read to its end");
    let mut again = Vec::new();
    summary.encode(&mut again);
    assert_eq!(RunSummary::decode(&mut Take(&again)).as_ref(), Ok(&summary));
    assert!(again.len() <= file.len() - at, "nothing is invented");
    (chunks, Some(summary))
}

/// A small run in each mode.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut chunk = Vec::new();
    let place = ValuePointer { file: 2, offset: 4096, length: 5, checksum: 77 };
    encode_entry(b"a", 1, &Settled::Pointer(place), &mut chunk);
    encode_entry(b"bc", 2, &Settled::Tombstone, &mut chunk);
    let mut footer = Vec::new();
    let summary = RunSummary {
        number: NUMBER,
        base: true,
        mark: Mark { version: 2, run: NUMBER, ..Mark::default() },
        entries: 4,
        keys: 1,
        live: vec![(2, 18)],
        used: vec![(2, 8192)],
    };
    summary.encode(&mut footer);
    let length = (chunk.len() as u16).to_le_bytes();
    let last = (footer.len() as u16 | 0x8000).to_le_bytes();
    let script = [length.as_slice(), &chunk, &length, &chunk, &last, &footer].concat();
    let mut file = Vec::new();
    pieces(&mut Script(&script), &mut file);
    file.truncate(script.len() + 32);
    let total = (script.len() as u16).to_le_bytes();
    vec![
        [&[0], file.as_slice()].concat(),
        [&[1], script.as_slice()].concat(),
        [&[2], total.as_slice(), &script, &[0]].concat(),
        [&[2], total.as_slice(), &script, &[1], &4170_u32.to_le_bytes(), &[1, 0, 0, 0]].concat(),
        [&[2], total.as_slice(), &script, &[2, 0, 0, 0, 0], &4170_u32.to_le_bytes()].concat(),
    ]
}
