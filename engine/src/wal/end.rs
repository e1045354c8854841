//! Which segment is the newest one, and how long its file is: so that a file that is gone, or was cut short, is not taken for the
//! end of the log.
//!
//! Batches vouch for what is before them, so nothing in the log can tell that its newest segment is missing. The file `log-end`
//! has two slots of one block, written by turns. A record is written once a segment has its name durably, beside the first batch
//! that goes there, and nobody is told of that batch before both are flushed. So:
//!
//! - a recorded segment that is not there, or is shorter than recorded, is damage;
//! - a recorded segment without a batch is where a crash came in between: the log ends before it;
//! - a segment behind the recorded one has no batch that anybody was told of;
//! - the segments before it are whole up to the place that the record names as durable, whatever lies behind that.
//!
//! A record names the generation that its segment begins in. After a cut, or a copy that took the place of the log, the manifest
//! has another generation there, and the record counts no more.
//!
//! Layout of a slot, little-endian: `magic "TURNSEND" | format u16 | partition u16 | sequence u64 | generation's secret u64 |
//! segment u32 | length of its file u32 | durable up to u64 | crc u32`, zeros to 4096. A slot of zeros was never written.

use crate::buffer::AlignedBuf;
use crate::codec::{Put, Take, Truncated, crc};
use crate::disk::{BLOCK, Disk, DiskError, DiskErrorKind, File, IoClass, OpenMode};
use crate::env::{Env, Sabotage};
use crate::error::Error;
use crate::manifest::{Manifest, sync_names};
use crate::names;
use crate::types::{LogPosition, PartitionId};
use std::cell::Cell;

const MAGIC: &[u8; 8] = b"TURNSEND";
const FORMAT: u16 = 1;
/// Bytes of a slot before its checksum.
const SLOT_BYTES: usize = 44;

/// The newest segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndRecord {
    /// Secret of the generation that its first batch belongs to.
    pub secret: u64,
    /// Its number.
    pub segment: u32,
    /// Bytes of its file.
    pub length: u32,
    /// The log was flushed up to here when it was recorded.
    pub durable: LogPosition,
}

impl EndRecord {
    /// Of no segment.
    pub const NONE: EndRecord = EndRecord { secret: 0, segment: 0, length: 0, durable: LogPosition(0) };

    /// Whether it is of the log that `manifest` describes, and of a segment that recovery needs.
    pub fn counts(&self, manifest: &Manifest) -> bool {
        let start = LogPosition::new(self.segment, BLOCK as u32);
        self.segment != 0
            && self.segment >= manifest.mark.position.segment()
            && manifest.generation_at(start).is_some_and(|generation| generation.secret == self.secret)
    }

    /// What is wrong if the files of the partition, with their lengths, are these.
    pub fn missing_from(&self, files: &[(String, u64)]) -> Option<Error> {
        let file = names::segment(self.segment);
        let advice = "restore it, or start with truncate_corrupt_wal to give up what was in it";
        let damage = |offset, what: String| Some(Error::Corrupt { file: file.clone(), offset, what });
        match files.iter().find(|(name, _)| *name == file) {
            None => damage(0, format!("the newest segment of the log is missing; {advice}")),
            Some((_, length)) if *length < u64::from(self.length) => {
                damage(*length, format!("the file was {} bytes long and ends here; {advice}", self.length))
            }
            Some(_) => None,
        }
    }

    fn encode(&self, partition: PartitionId, sequence: u64) -> AlignedBuf {
        let mut bytes = Vec::with_capacity(SLOT_BYTES + 4);
        bytes.put(MAGIC);
        bytes.put_u16(FORMAT);
        bytes.put_u16(u16::from(partition));
        bytes.put_u64(sequence);
        bytes.put_u64(self.secret);
        bytes.put_u32(self.segment);
        bytes.put_u32(self.length);
        bytes.put_u64(self.durable.0);
        let sum = crc(&[&bytes]);
        bytes.put_u32(sum);
        let mut block = AlignedBuf::zeroed(BLOCK);
        block[..bytes.len()].copy_from_slice(&bytes);
        block
    }
}

/// What a slot holds.
#[derive(Debug, PartialEq, Eq)]
enum Slot {
    Unwritten,
    /// The write of it was interrupted, or it is damaged.
    Unreadable,
    Written {
        sequence: u64,
        record: EndRecord,
    },
}

impl Slot {
    fn decode(bytes: &[u8], partition: PartitionId) -> Result<Slot, Error> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(Slot::Unwritten);
        }
        let mut take = Take(bytes);
        let read = |take: &mut Take<'_>| -> Result<_, Truncated> {
            let (magic, format, owner, sequence) = (take.bytes(8)? == MAGIC, take.u16()?, take.u16()?, take.u64()?);
            let (secret, segment, length) = (take.u64()?, take.u32()?, take.u32()?);
            let record = EndRecord { secret, segment, length, durable: LogPosition(take.u64()?) };
            Ok((magic, format, owner, sequence, record, take.u32()?))
        };
        let Ok((true, format, owner, sequence, record, sum)) = read(&mut take) else { return Ok(Slot::Unreadable) };
        if bytes.get(..SLOT_BYTES).is_none_or(|covered| crc(&[covered]) != sum) {
            return Ok(Slot::Unreadable);
        }
        if format > FORMAT {
            return Err(Error::Newer { file: names::LOG_END.to_string(), format, known: FORMAT });
        }
        if owner != u16::from(partition) {
            return Err(damaged(&format!("it belongs to partition {owner}")));
        }
        Ok(Slot::Written { sequence, record })
    }
}

fn damaged(what: &str) -> Error {
    let advice = "restore it, or start with truncate_corrupt_wal to take the log as it is";
    Error::Corrupt { file: names::LOG_END.to_string(), offset: 0, what: format!("{what}; {advice}") }
}

/// The file `log-end`, which may not be there yet. It is open only while it is read or written: a descriptor of it for every
/// partition would be too many where there are few.
pub struct EndFile<E: Env> {
    env: E,
    partition: PartitionId,
    is_there: Cell<bool>,
    sequence: Cell<u64>,
    newest: Cell<Option<EndRecord>>,
}

impl<E: Env> EndFile<E> {
    /// It is neither made nor read yet.
    pub fn new(env: E, partition: PartitionId) -> EndFile<E> {
        EndFile { env, partition, is_there: Cell::new(false), sequence: Cell::new(0), newest: Cell::new(None) }
    }

    /// Makes the file, durably, unless it is there. The manifest says next that there is one.
    pub async fn create(&self) -> Result<(), DiskError> {
        if self.is_there() {
            return Ok(());
        }
        let disk = self.env.disk();
        match disk.remove(names::LOG_END).await {
            Err(error) if error.kind != DiskErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = disk.open(names::LOG_END, OpenMode::Create, IoClass::Foreground).await?;
        file.allocate(2 * BLOCK as u64).await?;
        file.write_at(AlignedBuf::zeros(2 * BLOCK), 0).await?;
        file.sync_data().await?;
        sync_names(&self.env).await?;
        self.is_there.set(true);
        Ok(())
    }

    async fn file(&self) -> Result<<E::Disk as Disk>::File, DiskError> {
        self.env.disk().open(names::LOG_END, OpenMode::Existing, IoClass::Foreground).await
    }

    /// Reads the file, of which the manifest says that it is there.
    pub async fn read(&self) -> Result<(), Error> {
        let file = match self.file().await {
            Ok(file) => file,
            Err(error) if error.kind == DiskErrorKind::NotFound => return Err(damaged("it is missing")),
            Err(error) => return Err(error.into()),
        };
        let bytes = file.read_at(0, 2 * BLOCK).await?;
        if bytes.len() < 2 * BLOCK {
            return Err(damaged("it is cut short"));
        }
        let (first, second) = bytes.split_at(BLOCK);
        let slots = [Slot::decode(first, self.partition)?, Slot::decode(second, self.partition)?];
        if slots == [Slot::Unreadable, Slot::Unreadable] {
            return Err(damaged("neither of its records can be read"));
        }
        for slot in slots {
            if let Slot::Written { sequence, record } = slot
                && sequence > self.sequence.get()
            {
                self.sequence.set(sequence);
                self.newest.set(Some(record));
            }
        }
        self.is_there.set(true);
        Ok(())
    }

    /// Whether there is such a file.
    pub fn is_there(&self) -> bool {
        self.is_there.get()
    }

    /// What was recorded last.
    pub fn newest(&self) -> Option<EndRecord> {
        self.newest.get()
    }

    /// Records a segment that is not the recorded one: durable when this returns. It needs no space. Nothing is recorded where there
    /// is no file.
    pub async fn record(&self, record: EndRecord) -> Result<(), DiskError> {
        let same = |newest: EndRecord| EndRecord { durable: record.durable, ..newest } == record;
        let sabotaged = self.env.sabotage() == Some(Sabotage::NewestSegmentNotRecorded);
        if !self.is_there() || sabotaged || self.newest.get().is_some_and(same) {
            return Ok(());
        }
        let file = self.file().await?;
        // Into the slot that does not hold the newest one; after a refusal the same slot again.
        let sequence = self.sequence.get() + 1;
        let offset = (sequence % 2) * BLOCK as u64;
        file.write_durable(record.encode(self.partition, sequence), offset).await?;
        self.sequence.set(sequence);
        self.newest.set(Some(record));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_tell_unwritten_from_unreadable_and_whose_they_are() {
        let record = EndRecord { secret: 7, segment: 3, length: 16384, durable: LogPosition::new(2, 8192) };
        let block = record.encode(5, 9);
        assert_eq!(Slot::decode(&block, 5), Ok(Slot::Written { sequence: 9, record }));
        assert!(matches!(Slot::decode(&block, 4), Err(Error::Corrupt { .. })));
        assert_eq!(Slot::decode(&AlignedBuf::zeroed(BLOCK), 5), Ok(Slot::Unwritten));
        for bit in 0..(SLOT_BYTES + 4) * 8 {
            let mut bad = AlignedBuf::copy_of(&block);
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Slot::decode(&bad, 5), Ok(Slot::Unreadable), "bit {bit}");
        }
    }

    #[test]
    fn a_segment_that_is_gone_or_short_is_named() {
        let record = EndRecord { secret: 7, segment: 3, length: 16384, durable: LogPosition::new(2, 8192) };
        let files = |length| [("manifest".to_string(), 8192), ("wal-00000003".to_string(), length)];
        assert_eq!(record.missing_from(&files(16384)), None);
        assert_eq!(record.missing_from(&files(20480)), None);
        let at = |error: Option<Error>| match error {
            Some(Error::Corrupt { file, offset, .. }) => Some((file, offset)),
            _ => None,
        };
        assert_eq!(at(record.missing_from(&files(12288))), Some(("wal-00000003".to_string(), 12288)));
        assert_eq!(at(record.missing_from(&files(16384)[..1])), Some(("wal-00000003".to_string(), 0)));
    }
}
