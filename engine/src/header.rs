//! The first block of every file of ours: what it is, whose it is, and which format it has. A newer format is refused
//! by name instead of being misread.
//!
//! Layout, little-endian: `magic "TURNSTON" | kind u32 | format u16 | partition u16 | number u64 | crc u32`, zeros to 4096.

use crate::buffer::AlignedBuf;
use crate::codec::{Put, Take, crc};
use crate::disk::BLOCK;
use crate::error::Error;
use crate::types::PartitionId;

const MAGIC: &[u8; 8] = b"TURNSTON";

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A log segment; its number is the segment's.
    Segment = 1,
    /// A value-log file.
    Values = 2,
    /// A run.
    Run = 3,
    /// The manifest.
    Manifest = 4,
}

impl FileKind {
    /// The newest format that this program reads and the one it writes.
    pub fn format(self) -> u16 {
        1
    }
}

/// Builds the first block.
pub fn encode(kind: FileKind, partition: PartitionId, number: u64) -> AlignedBuf {
    encode_format(kind, kind.format(), partition, number)
}

fn encode_format(kind: FileKind, format: u16, partition: PartitionId, number: u64) -> AlignedBuf {
    let mut bytes = Vec::with_capacity(64);
    bytes.put(MAGIC);
    bytes.put_u32(kind as u32);
    bytes.put_u16(format);
    bytes.put_u16(u16::from(partition));
    bytes.put_u64(number);
    let sum = crc(&[&bytes]);
    bytes.put_u32(sum);
    let mut block = AlignedBuf::zeroed(BLOCK);
    block[..bytes.len()].copy_from_slice(&bytes);
    block
}

/// Checks the first block of `file`; `number` is what its name says.
pub fn check(bytes: &[u8], file: &str, kind: FileKind, partition: PartitionId, number: u64) -> Result<(), Error> {
    let damaged = |what: &str| Error::Corrupt { file: file.to_string(), offset: 0, what: what.to_string() };
    let mut take = Take(bytes);
    let mut read = || -> Result<_, crate::codec::Truncated> {
        let magic = take.bytes(8)?;
        let head = (take.u32()?, take.u16()?, take.u16()?, take.u64()?);
        Ok((magic, head, take.u32()?))
    };
    let (magic, (found, format, owner, serial), sum) = read().map_err(|_| damaged("the header is cut short"))?;
    if magic != MAGIC || sum != crc(&[&bytes[..24]]) {
        return Err(damaged("the header is not one of ours"));
    }
    if found != kind as u32 {
        return Err(damaged("it is a file of another kind"));
    }
    if format > kind.format() {
        return Err(Error::Newer { file: file.to_string(), format, known: kind.format() });
    }
    if owner != u16::from(partition) {
        return Err(damaged(&format!("it belongs to partition {owner}")));
    }
    if serial != number {
        return Err(damaged(&format!("it is number {serial} by its header")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_tell_kind_owner_number_and_format() {
        let block = encode(FileKind::Run, 3, 9);
        assert_eq!(check(&block, "run-9", FileKind::Run, 3, 9), Ok(()));
        assert!(matches!(check(&block, "run-9", FileKind::Values, 3, 9), Err(Error::Corrupt { .. })));
        assert!(matches!(check(&block, "run-9", FileKind::Run, 4, 9), Err(Error::Corrupt { .. })));
        assert!(matches!(check(&block, "run-8", FileKind::Run, 3, 8), Err(Error::Corrupt { .. })));
        let newer = encode_format(FileKind::Run, 2, 3, 9);
        assert_eq!(
            check(&newer, "run-9", FileKind::Run, 3, 9),
            Err(Error::Newer { file: "run-9".into(), format: 2, known: 1 })
        );
        for bit in 0..28 * 8 {
            let mut bad = AlignedBuf::copy_of(&block);
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(check(&bad, "run-9", FileKind::Run, 3, 9).is_err(), "bit {bit}");
        }
    }
}
