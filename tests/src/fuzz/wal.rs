//! The reader of the log.
//!
//! Even modes: segments of any bytes, batch by batch, each with what the mode says mended: its place, its secret, its chain,
//! its lengths, its checksums. A batch that counts lies behind the one before it, within its file, and encodes to the bytes
//! that are there. Odd modes: a log that was written, with one damage in one segment. Exactly the batches before the
//! damage are read, and what later envelopes vouch for is told.

use super::memory::{MemoryEnv, at_once};
use super::{Damage, Script};
use turnstone_engine::buffer::round_up;
use turnstone_engine::codec::crc;
use turnstone_engine::disk::BLOCK;
use turnstone_engine::header::{self, FileKind};
use turnstone_engine::manifest::{Generation, Manifest};
use turnstone_engine::types::{Epoch, LogPosition};
use turnstone_engine::wal::body::{BODY_FORMAT, BODY_HEADER, Body, Operation};
use turnstone_engine::wal::envelope::{ENVELOPE_BYTES, Envelope};
use turnstone_engine::wal::scan::{Batch, Scanner};
use turnstone_engine::{Error, names};

const PARTITION: u8 = 3;
const SECRET: u64 = 0x5EC2_E75E_C2E7_5EC2;
/// The checked part of a header block.
const HEADER: usize = 28;
const BLOCKS_MAX: usize = 48;

/// The target.
pub fn run(input: &[u8]) {
    let mut script = Script(input);
    let mode = script.u8();
    if mode & 1 == 0 { any_bytes(mode, script) } else { damaged(script) }
}

fn manifest() -> Manifest {
    let generations = vec![Generation { secret: SECRET, start: LogPosition::new(1, BLOCK as u32) }];
    Manifest { generations, ..Manifest::default() }
}

/// What a walk over the log finds.
struct Walk {
    batches: Vec<Batch>,
    end: Option<Error>,
    position: LogPosition,
    vouched: LogPosition,
}

fn walk(segments: Vec<Vec<u8>>, start: LogPosition, chain: Option<u32>) -> Walk {
    let numbers: Vec<u32> = (1..=segments.len() as u32).collect();
    let bytes: usize = segments.iter().map(Vec::len).sum();
    let env = MemoryEnv::new(numbers.iter().map(|n| names::segment(*n)).zip(segments));
    let manifest = manifest();
    at_once(async {
        let mut scanner = Scanner::new(&env, PARTITION, &manifest, &numbers, start, chain);
        let mut batches = Vec::new();
        let end = loop {
            match scanner.next().await {
                Ok(Some(batch)) => batches.push(batch),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
            assert!(batches.len() * BLOCK <= bytes, "a walk comes to its end");
        };
        let position = scanner.position();
        let vouched = scanner.vouched_beyond().await.expect("what cannot be read vouches for nothing");
        Walk { batches, end, position, vouched }
    })
}

fn header_block(number: u32) -> Vec<u8> {
    header::encode(FileKind::Segment, PARTITION, u64::from(number)).to_vec()
}

fn any_bytes(mode: u8, mut script: Script<'_>) {
    let mut segments = vec![header_block(1)];
    let (mut chain, mut blocks) = (0, 0);
    while !script.is_over() && blocks < BLOCKS_MAX {
        let (op, mend) = (script.u8(), script.u8());
        let number = segments.len() as u32;
        let segment = segments.last_mut().expect("one at least");
        match op % 4 {
            3 => {
                let mut block = header_block(number + 1);
                if mend & 1 == 1 {
                    let bytes = script.bytes(HEADER);
                    block[..bytes.len()].copy_from_slice(bytes);
                }
                segments.push(block);
                blocks += 1;
            }
            kind => {
                let length = usize::from(script.u16()) % (2 * BLOCK);
                let mut piece = script.bytes(length).to_vec();
                let position = LogPosition::new(number, segment.len() as u32);
                mend_batch(&mut piece, mend, position, &mut chain);
                blocks += piece.len().div_ceil(BLOCK);
                segment.extend(piece);
                // The last piece may be the end of its file.
                if kind != 2 || !script.is_over() {
                    segment.resize(round_up(segment.len()), 0);
                }
            }
        }
    }
    let start = if mode & 2 == 0 { LogPosition::default() } else { LogPosition::new(1, BLOCK as u32) };
    let walk = walk(segments.clone(), start, (mode & 4 == 0).then_some(0));
    let mut before = LogPosition::default();
    for batch in &walk.batches {
        assert!(before < batch.position && batch.position < batch.end, "{before} {} {}", batch.position, batch.end);
        before = LogPosition(batch.end.0 - 1);
        let segment = &segments[batch.position.segment() as usize - 1];
        check_batch(batch, &segment[batch.position.offset() as usize..]);
    }
    if let Some(Error::Corrupt { file, .. } | Error::Newer { file, .. }) = &walk.end {
        assert!(names::number(file, "wal").is_some(), "{file}");
    } else if let Some(error) = walk.end {
        panic!("{error}");
    }
}

/// Mends what the bits of `mend` say, as far as the piece is long enough to be a batch.
fn mend_batch(piece: &mut [u8], mend: u8, position: LogPosition, chain: &mut u32) {
    if piece.len() < ENVELOPE_BYTES + BODY_HEADER {
        return;
    }
    let wanted = |bit: u8| mend >> bit & 1 == 1;
    let mut put = |at: usize, bytes: &[u8]| piece[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"TSWB");
    if wanted(0) {
        put(4, &[1, 0, 0, 0]);
    }
    if wanted(1) {
        put(16, &SECRET.to_le_bytes());
        put(24, &position.0.to_le_bytes());
    }
    if wanted(2) {
        put(48, &chain.to_le_bytes());
    }
    // Half of the batches that are mended so far have a few large values, and half none.
    let head = Envelope::length(usize::from(piece[56] % 4));
    if wanted(3) && piece.len() >= head + BODY_HEADER {
        let (head_bytes, body_bytes) = (head as u32, (piece.len() - head) as u32);
        piece[8..12].copy_from_slice(&head_bytes.to_le_bytes());
        piece[12..16].copy_from_slice(&body_bytes.to_le_bytes());
        if wanted(4) {
            piece[56] %= 4;
            piece[57..60].fill(0);
        }
        if wanted(5) {
            piece[head + 4..head + 6].copy_from_slice(&[1 + mend % 2, 0]);
        }
        if wanted(6) {
            let sum = crc(&[&piece[head + 4..]]).to_le_bytes();
            piece[head..head + 4].copy_from_slice(&sum);
            piece[52..56].copy_from_slice(&sum);
        }
        if wanted(7) {
            *chain = crc(&[&piece[..head - 4]]);
            piece[head - 4..head].copy_from_slice(&chain.to_le_bytes());
        }
    }
}

/// A batch encodes to the bytes that are there, but for flags, which are not looked at.
fn check_batch(batch: &Batch, bytes: &[u8]) {
    let head = Envelope::length(batch.envelope.pointers.len());
    let total = head + batch.envelope.body_length as usize;
    assert!(total <= bytes.len(), "a batch within its file");
    assert_eq!(batch.end.0 - batch.position.0, round_up(total) as u64);
    let mut again = vec![0; head];
    batch.envelope.encode(&mut again);
    assert_eq!(again[8..head - 4], bytes[8..head - 4], "the envelope");
    let mut again = Vec::new();
    let Body { epoch, first_version, commit_ms, transactions, before, format } = &batch.body;
    let transactions = transactions.iter().map(Vec::as_slice);
    encode_body(*epoch, *first_version, *commit_ms, transactions, (*format, *before), &mut again);
    assert_eq!(again[8..], bytes[head + 8..total], "the body");
    assert!(batch.body.last_version() >= first_version - 1);
}

/// A body as `docs/file-formats.md` describes it, written without the engine's help.
fn encode_body<'a>(
    epoch: Epoch,
    first_version: u64,
    commit_ms: u64,
    transactions: impl ExactSizeIterator<Item = &'a [Operation]>,
    (format, before): (u16, Option<u32>),
    out: &mut Vec<u8>,
) {
    let mut rest = [format.to_le_bytes(), u16::from(before.is_some()).to_le_bytes()].concat();
    for number in [epoch.number, epoch.id, first_version, commit_ms] {
        rest.extend(number.to_le_bytes());
    }
    rest.extend((transactions.len() as u32).to_le_bytes());
    if format > 1 {
        rest.extend(before.unwrap_or(0).to_le_bytes());
    }
    for operations in transactions {
        rest.extend((operations.len() as u32).to_le_bytes());
        for operation in operations {
            let (kind, key): (u8, &[u8]) = match operation {
                Operation::Set(key, _) => (1, key),
                Operation::SetLarge(key, ..) => (2, key),
                Operation::Delete(key) => (3, key),
                Operation::Flush => (4, &[]),
                Operation::Members(_) => (5, &[]),
            };
            rest.push(kind);
            rest.extend((key.len() as u16).to_le_bytes());
            rest.extend(key);
            match operation {
                Operation::Set(_, value) => {
                    rest.extend((value.len() as u32).to_le_bytes());
                    rest.extend(&value[..]);
                }
                Operation::SetLarge(_, length, sum) => rest.extend([length.to_le_bytes(), sum.to_le_bytes()].concat()),
                Operation::Delete(_) | Operation::Flush => {}
                Operation::Members(members) => turnstone_engine::wal::body::put_members(members, &mut rest),
            }
        }
    }
    out.extend(crc(&[&rest]).to_le_bytes());
    out.extend(rest);
}

/// A batch that was written: where, how long, what its envelope vouches for, and what it commits.
struct Written {
    segment: usize,
    range: std::ops::Range<usize>,
    head: usize,
    durable: LogPosition,
    body: Vec<Vec<Operation>>,
}

fn damaged(mut script: Script<'_>) {
    let mut segments = vec![header_block(1)];
    let mut written: Vec<Written> = Vec::new();
    let (mut version, mut chain, mut durable) = (1, 0, LogPosition::default());
    for _ in 0..script.u8() % 8 {
        let flags = script.u8();
        // A log never passes over an empty segment.
        if flags & 1 == 1 && segments.len() < 4 && segments.last().is_some_and(|segment| segment.len() > BLOCK) {
            segments.push(header_block(segments.len() as u32 + 1));
        }
        let body: Vec<Vec<Operation>> = (0..flags >> 1 & 3).map(|_| transaction(&mut script)).collect();
        let mut bytes = Vec::new();
        encode_body(
            Epoch { number: 1, id: 2 },
            version,
            9,
            body.iter().map(Vec::as_slice),
            (BODY_FORMAT, None),
            &mut bytes,
        );
        let large = body.iter().flatten().filter(|o| matches!(o, Operation::SetLarge(..))).count();
        let head = Envelope::length(large);
        let number = segments.len();
        let segment = segments.last_mut().expect("one at least");
        let start = segment.len();
        let envelope = Envelope {
            secret: SECRET,
            position: LogPosition::new(number as u32, start as u32),
            durable,
            published: durable,
            chain,
            body_length: bytes.len() as u32,
            body_crc: crc(&[&bytes[4..]]),
            pointers: (0..large).map(|n| (n as u32, 4096)).collect(),
            crc: 0,
        };
        segment.resize(start + head, 0);
        chain = envelope.encode(&mut segment[start..]);
        segment.extend(bytes);
        let range = start..segment.len();
        segment.resize(round_up(segment.len()), 0);
        version += body.len() as u64;
        // What is vouched for need not be all that was written before.
        written.push(Written { segment: number - 1, range, head, durable, body });
        durable = LogPosition::new(number as u32, segment.len() as u32 - u32::from(flags >> 3 & 1));
    }
    let whole = segments.clone();
    let hurt = usize::from(script.u8()) % segments.len();
    let length = segments[hurt].len();
    Damage::take(&mut script, length).apply(&mut segments[hurt]);

    let same = |segment: usize, range: std::ops::Range<usize>| {
        segments[segment].get(range.clone()) == Some(&whole[segment][range])
    };
    let readable = |w: &Written| same(w.segment, 0..HEADER) && same(w.segment, w.range.clone());
    let expected: Vec<&Written> = written.iter().take_while(|w| readable(w)).collect();
    let vouched = written[expected.len()..].iter().filter(|w| {
        let fits = segments[w.segment].len() >= w.range.end;
        fits && same(w.segment, 0..HEADER) && same(w.segment, w.range.start..w.range.start + w.head)
    });
    let vouched = vouched.map(|w| w.durable).max().unwrap_or_default();

    let walk = walk(segments.clone(), LogPosition::default(), Some(0));
    assert_eq!(walk.batches.len(), expected.len(), "the batches before the damage");
    for (batch, expected) in walk.batches.iter().zip(&expected) {
        assert_eq!(batch.body.transactions, expected.body);
        check_batch(batch, &segments[expected.segment][expected.range.start..]);
    }
    let end = expected.last().map(|w| LogPosition::new(w.segment as u32 + 1, round_up(w.range.end) as u32));
    assert_eq!(walk.position, end.unwrap_or_default());
    assert_eq!(walk.vouched, vouched, "what is vouched for beyond {}", walk.position);
    if let Some(error) = walk.end {
        assert!(matches!(error, Error::Corrupt { .. }) && !same(hurt, 0..HEADER), "{error}");
    }
}

fn transaction(script: &mut Script<'_>) -> Vec<Operation> {
    let operation = |script: &mut Script<'_>| {
        let (kind, key) = (script.u8(), usize::from(script.u8() % 16));
        let key = script.bytes(key).into();
        match kind % 4 {
            0 => {
                let length = usize::from(script.u8());
                Operation::Set(key, script.bytes(length).into())
            }
            1 => Operation::SetLarge(key, script.u32(), 77),
            2 => Operation::Delete(key),
            _ => Operation::Flush,
        }
    };
    (0..script.u8() % 4).map(|_| operation(script)).collect()
}

/// Logs of a few batches, in each mode.
pub fn seeds() -> Vec<Vec<u8>> {
    let operations = [
        Operation::Set(b"a".as_slice().into(), b"1".as_slice().into()),
        Operation::Delete(b"b".as_slice().into()),
        Operation::SetLarge(b"c".as_slice().into(), 5000, 77),
        Operation::Flush,
    ];
    let mut batch = vec![0; Envelope::length(1)];
    batch[56] = 1;
    encode_body(Epoch { number: 3, id: 9 }, 41, 1_000, operations.chunks(3), (1, None), &mut batch);
    let piece = |op: u8, mend: u8| [&[op, mend], (batch.len() as u16).to_le_bytes().as_slice(), &batch].concat();
    let mut seeds = Vec::new();
    for mode in [0, 2, 4, 6] {
        seeds.push([vec![mode], piece(0, 0xff)].concat());
        seeds.push([vec![mode], piece(0, 0xff), piece(1, 0xff), vec![3, 0], piece(2, 0xff)].concat());
        seeds.push([vec![mode], piece(0, 0x7f)].concat());
    }
    // Two segments, three batches, one of them with each kind of operation.
    let log =
        [1, 3, 4, 4, 0, 1, b'k', 2, b'v', b'w', 1, 1, b'l', 0, 1, 0, 0, 2, 2, b'd', b'e', 3, 0, 5, 1, 0, 0, 0, 2, 0];
    seeds.push([log.as_slice(), &[0]].concat());
    seeds.push([log.as_slice(), &[0, 1], &4200_u32.to_le_bytes(), &[1, 0, 0, 0]].concat());
    seeds.push([log.as_slice(), &[1, 2, 0, 0, 0, 0], &4097_u32.to_le_bytes()].concat());
    seeds
}
