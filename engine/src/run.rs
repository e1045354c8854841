//! A run: the keys that one checkpoint settled, in key order, each with its version and pointer or tombstone. The index
//! is built from runs alone: a value without a commit never comes back, and neither does a deleted key.
//!
//! A file is: header block; chunks `length u32 | crc u32 | entries`, each of some 64 KiB; a footer chunk with length
//! 0xFFFF_FFFF, then zeros to the next block. Chunks also travel to the index as they are.
//! Entry: `key length u16 | key | version u64 | kind u8 [| file u32 | offset u64 | length u32 | checksum u32]`.

use crate::buffer::AlignedBuf;
use crate::codec::{Put, Take, Truncated, crc};
use crate::disk::{BLOCK, Disk, File, IoClass, OpenMode};
use crate::env::Env;
use crate::error::Error;
use crate::header::{self, FileKind};
use crate::manifest::RunSummary;
use crate::names;
use crate::types::{PartitionId, Settled, ValuePointer, Version};

/// A chunk is closed when it reaches this many bytes.
pub const CHUNK_BYTES: usize = 64 << 10;
const FOOTER: u32 = u32::MAX;
/// Longest footer, bytes: 12 for each value file.
const FOOTER_MAX: usize = 64 << 20;
const KIND_POINTER: u8 = 1;
const KIND_TOMBSTONE: u8 = 2;

/// A key that a checkpoint settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunEntry {
    /// The key.
    pub key: Vec<u8>,
    /// The version that wrote it.
    pub version: Version,
    /// Where its value is, or that it is gone.
    pub settled: Settled,
}

/// Appends an entry to a chunk.
pub fn encode_entry(key: &[u8], version: Version, settled: &Settled, out: &mut Vec<u8>) {
    out.put_u16(key.len() as u16);
    out.put(key);
    encode_settled(version, settled, out);
}

/// Appends version and place, as the index stores them.
pub fn encode_settled(version: Version, settled: &Settled, out: &mut Vec<u8>) {
    out.put_u64(version);
    match settled {
        Settled::Pointer(p) => {
            out.put_u8(KIND_POINTER);
            out.put_u32(p.file);
            out.put_u64(p.offset);
            out.put_u32(p.length);
            out.put_u32(p.checksum);
        }
        Settled::Tombstone => out.put_u8(KIND_TOMBSTONE),
    }
}

/// Reads version and place.
pub fn decode_settled(take: &mut Take<'_>) -> Result<(Version, Settled), Truncated> {
    let version = take.u64()?;
    let settled = match take.u8()? {
        KIND_POINTER => Settled::Pointer(ValuePointer {
            file: take.u32()?,
            offset: take.u64()?,
            length: take.u32()?,
            checksum: take.u32()?,
        }),
        KIND_TOMBSTONE => Settled::Tombstone,
        _ => return Err(Truncated),
    };
    Ok((version, settled))
}

/// The entries of a chunk, in order.
pub fn decode_chunk(bytes: &[u8]) -> Result<Vec<RunEntry>, Truncated> {
    let mut take = Take(bytes);
    let mut entries = Vec::new();
    while take.left() > 0 {
        let length = usize::from(take.u16()?);
        let key = take.bytes(length)?.to_vec();
        let (version, settled) = decode_settled(&mut take)?;
        entries.push(RunEntry { key, version, settled });
    }
    Ok(entries)
}

/// Writes a run's file chunk by chunk; nothing is durable before [`RunWriter::finish`].
pub struct RunWriter<E: Env> {
    file: <E::Disk as Disk>::File,
    pending: Vec<u8>,
    offset: u64,
}

/// Bytes that are written at once. They are copied on the way, into memory that may be fresh: more of them would keep the core
/// for milliseconds.
const WRITE_BYTES: usize = 256 << 10;

impl<E: Env> RunWriter<E> {
    /// Creates the file.
    pub async fn create(env: &E, partition: PartitionId, number: u32) -> Result<RunWriter<E>, Error> {
        let file = env.disk().open(&names::run(number), OpenMode::Create, IoClass::Bulk).await?;
        file.write_at(header::encode(FileKind::Run, partition, u64::from(number)), 0).await?;
        Ok(RunWriter { file, pending: Vec::with_capacity(WRITE_BYTES + 2 * CHUNK_BYTES), offset: BLOCK as u64 })
    }

    /// Adds a chunk of entries.
    pub async fn push(&mut self, chunk: &[u8]) -> Result<(), Error> {
        self.pending.put_u32(chunk.len() as u32);
        self.pending.put_u32(crc(&[chunk]));
        self.pending.put(chunk);
        if self.pending.len() >= WRITE_BYTES {
            let whole = self.pending.len() / BLOCK * BLOCK;
            let buffer = AlignedBuf::copy_of(&self.pending[..whole]);
            self.pending.drain(..whole);
            self.file.write_at(buffer, self.offset).await?;
            self.offset += whole as u64;
        }
        Ok(())
    }

    /// Seals the run; it is durable when this returns and the directory was synced.
    pub async fn finish(mut self, summary: &RunSummary) -> Result<(), Error> {
        let mut footer = Vec::new();
        summary.encode(&mut footer);
        if footer.len() > FOOTER_MAX {
            return Err(Error::Refused(format!(
                "a run cannot name {} value files; `value_file_size` makes them larger, and fewer",
                summary.live.len().max(summary.used.len())
            )));
        }
        self.pending.put_u32(FOOTER);
        self.pending.put_u32(footer.len() as u32);
        self.pending.put_u32(crc(&[&footer]));
        self.pending.put(&footer);
        self.file.write_at(AlignedBuf::copy_of(&self.pending), self.offset).await?;
        self.file.sync_data().await?;
        Ok(())
    }
}

/// Reads a run's chunks in order, verifying each.
pub struct RunReader<E: Env> {
    name: String,
    file: <E::Disk as Disk>::File,
    offset: u64,
    ended: Option<RunSummary>,
}

impl<E: Env> RunReader<E> {
    /// Opens a run of this partition.
    pub async fn open(env: &E, partition: PartitionId, number: u32) -> Result<RunReader<E>, Error> {
        let name = names::run(number);
        let file = env.disk().open(&name, OpenMode::Existing, IoClass::Bulk).await?;
        let block = file.read_at(0, BLOCK).await?;
        header::check(&block, &name, FileKind::Run, partition, u64::from(number))?;
        Ok(RunReader { name, file, offset: BLOCK as u64, ended: None })
    }

    fn damaged(&self, what: &str) -> Error {
        Error::Corrupt { file: self.name.clone(), offset: self.offset, what: what.to_string() }
    }

    /// The next entries, or `None` behind the last.
    pub async fn next(&mut self) -> Result<Option<Vec<RunEntry>>, Error> {
        if self.ended.is_some() {
            return Ok(None);
        }
        let head = self.file.read_at(self.offset, 12).await?;
        let mut take = Take(&head);
        let cut = |_| self.damaged("a run ends without its footer");
        let length = take.u32().map_err(cut)?;
        if length == FOOTER {
            let (length, sum) = (take.u32().map_err(cut)? as usize, take.u32().map_err(cut)?);
            if length > FOOTER_MAX {
                return Err(self.damaged("a run's footer claims an impossible length"));
            }
            let footer = self.file.read_at(self.offset + 12, length).await?;
            if footer.len() != length || crc(&[&footer]) != sum {
                return Err(self.damaged("a run's footer fails its checksum"));
            }
            let summary =
                RunSummary::decode(&mut Take(&footer)).map_err(|_| self.damaged("a run's footer is malformed"))?;
            self.ended = Some(summary);
            return Ok(None);
        }
        let (length, sum) = (length as usize, take.u32().map_err(cut)?);
        // A chunk closes at CHUNK_BYTES, so one entry more is the most it can hold.
        if length > CHUNK_BYTES * 3 && !cfg!(feature = "planted") {
            return Err(self.damaged("a run's chunk claims an impossible length"));
        }
        let chunk = self.file.read_at(self.offset + 8, length).await?;
        if chunk.len() != length || crc(&[&chunk]) != sum {
            return Err(self.damaged("a run's chunk fails its checksum"));
        }
        let entries = decode_chunk(&chunk).map_err(|_| self.damaged("a run's chunk is malformed"))?;
        self.offset += 8 + length as u64;
        Ok(Some(entries))
    }

    /// Reads to the end and returns the footer.
    pub async fn summary(mut self) -> Result<RunSummary, Error> {
        while self.next().await?.is_some() {}
        self.ended.clone().ok_or_else(|| self.damaged("a run ends without its footer"))
    }
}
