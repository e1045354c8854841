//! The value log: append-only files of values. Three streams write it, each into a file of its own: large values on their
//! way to a commit, values that a checkpoint settles in key order, and those of a copy.
//!
//! A file is in the flushed manifest before anything points into it. Every opening writes into new files, made at the
//! first write. Space is assured ahead of the end, so that a full disk is noticed where it can be refused.

mod handles;
pub mod record;

use crate::buffer::{AlignedBuf, round_up};
use crate::disk::{BLOCK, Disk, DiskErrorKind, File, IoClass, OpenMode};
use crate::env::{Env, Sabotage};
use crate::error::Error;
use crate::header::{self, FileKind};
use crate::leftovers::Leftovers;
use crate::manifest::{ManifestStore, ValueFile, sync_names};
use crate::names;
use crate::settings::Settings;
use crate::sync::Gate;
use crate::types::{Key, LogPosition, PartitionId, Value, ValuePointer};
use handles::Handles;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

type FileOf<E> = <<E as Env>::Disk as Disk>::File;

/// Which stream appends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Large values of transactions that wait to commit.
    Commit,
    /// Values settled by a checkpoint.
    Checkpoint,
    /// Values of a copy that comes in. Its files count as retired until the copy is whole.
    Copy,
}

struct Tail<E: Env> {
    number: u32,
    file: FileOf<E>,
    end: u64,
    allocated: u64,
}

/// The value log of one partition.
pub struct ValueLog<E: Env> {
    env: E,
    partition: PartitionId,
    leftovers: Rc<Leftovers<E>>,
    file_bytes: u64,
    step_bytes: u64,
    readers: RefCell<Handles<FileOf<E>>>,
    tails: [RefCell<Option<Tail<E>>>; 3],
    /// Bytes in use of every file that this opening wrote.
    written: RefCell<BTreeMap<u32, u64>>,
    gates: [Gate; 3],
}

/// Records are written in groups of about this size.
const GROUP: usize = 1 << 20;
/// Bytes after which encoding gives way; a longer value is encoded at once.
const PIECE: usize = 64 << 10;
/// Records that are no further apart than this are read at once.
const GAP: u64 = 32 << 10;

impl<E: Env> ValueLog<E> {
    /// A log that continues in new files.
    pub fn new(env: E, partition: PartitionId, settings: &Settings, leftovers: Rc<Leftovers<E>>) -> ValueLog<E> {
        ValueLog {
            env,
            partition,
            leftovers,
            file_bytes: settings.value_file_size,
            step_bytes: settings.value_allocation,
            readers: RefCell::new(Handles::new(settings.value_handles)),
            tails: Default::default(),
            written: RefCell::default(),
            gates: Default::default(),
        }
    }

    /// Writes values and says where; durable only after [`ValueLog::flush`].
    pub async fn append(
        &self,
        manifest: &ManifestStore<E>,
        stream: Stream,
        values: &[(Key, Value)],
    ) -> Result<Vec<ValuePointer>, Error> {
        let mut pointers = Vec::with_capacity(values.len());
        let mut rest = values;
        while !rest.is_empty() {
            let mut bytes = 0;
            let mut count = 0;
            while count < rest.len() && (count == 0 || bytes < GROUP) {
                bytes += record::length(rest[count].0.len(), rest[count].1.len());
                count += 1;
            }
            let (group, after) = rest.split_at(count);
            rest = after;
            let (number, file, offset) = self.reserve(manifest, stream, round_up(bytes) as u64).await?;
            let mut encoded = AlignedBuf::uncleared(bytes);
            let (mut end, mut piece) = (0, 0);
            for (key, value) in group {
                pointers.push(ValuePointer {
                    file: number,
                    offset: offset + end as u64,
                    length: value.len() as u32,
                    checksum: crate::codec::crc(&[value]),
                });
                end += record::encode(key, value, &mut encoded[end..]);
                if end - piece >= PIECE && end < bytes {
                    piece = end;
                    self.env.give_way().await;
                }
            }
            encoded[end..].fill(0);
            file.write_at(encoded, offset).await?;
        }
        Ok(pointers)
    }

    /// Makes the values behind `pointers`, written by this opening, durable.
    pub async fn flush(&self, pointers: &[ValuePointer]) -> Result<(), Error> {
        let numbers: BTreeSet<u32> = pointers.iter().map(|p| p.file).collect();
        self.flush_files(numbers.into_iter()).await
    }

    /// Makes these files durable.
    pub async fn flush_files(&self, numbers: impl Iterator<Item = u32>) -> Result<(), Error> {
        for number in numbers {
            self.reader(number).await?.sync_data().await?;
        }
        Ok(())
    }

    async fn reserve(
        &self,
        manifest: &ManifestStore<E>,
        stream: Stream,
        bytes: u64,
    ) -> Result<(u32, FileOf<E>, u64), Error> {
        let _turn = self.gates[stream as usize].enter().await;
        let tail = &self.tails[stream as usize];
        let full = tail.borrow().as_ref().is_none_or(|t| t.end > BLOCK as u64 && t.end + bytes > self.file_bytes);
        if full {
            let fresh = self.create(manifest, stream).await?;
            *tail.borrow_mut() = Some(fresh);
        }
        let (file, end, allocated) = {
            let tail = tail.borrow();
            let Some(tail) = tail.as_ref() else { unreachable!("made above") };
            (tail.file.clone(), tail.end, tail.allocated)
        };
        if end + bytes > allocated {
            let wanted = end + bytes.max(self.step_bytes.min(self.file_bytes));
            let wanted = round_up(wanted as usize) as u64;
            file.allocate(wanted).await?;
            if let Some(tail) = tail.borrow_mut().as_mut() {
                tail.allocated = wanted;
            }
        }
        let mut tail = tail.borrow_mut();
        let Some(tail) = tail.as_mut() else { unreachable!("made above") };
        tail.end = end + bytes;
        self.written.borrow_mut().insert(tail.number, tail.end);
        Ok((tail.number, file, end))
    }

    async fn create(&self, manifest: &ManifestStore<E>, stream: Stream) -> Result<Tail<E>, Error> {
        let sabotaged = self.env.sabotage() == Some(Sabotage::ValueFileBeforeManifest);
        let number = if sabotaged {
            0x8000_0000 | (self.env.random() as u32 >> 1)
        } else {
            manifest.update(|m| m.take_number()).await?
        };
        let name = names::values(number);
        let made = async {
            let file = self.env.disk().open(&name, OpenMode::Create, IoClass::Foreground).await?;
            file.write_at(header::encode(FileKind::Values, self.partition, u64::from(number)), 0).await?;
            file.sync_data().await?;
            sync_names(&self.env).await?;
            if !sabotaged {
                let retired = (stream == Stream::Copy).then_some(LogPosition::default());
                manifest.update(|m| m.values.push(ValueFile { number, used: BLOCK as u64, retired })).await?;
            }
            Ok::<_, Error>(file)
        };
        let file = match made.await {
            Ok(file) => file,
            Err(error) => {
                // It is not in the manifest.
                self.leftovers.remove_after_failure(name).await;
                return Err(error);
            }
        };
        self.readers.borrow_mut().insert(number, file.clone());
        Ok(Tail { number, file, end: BLOCK as u64, allocated: BLOCK as u64 })
    }

    /// How far the files are used that this opening wrote.
    pub fn used(&self) -> Vec<(u32, u64)> {
        self.written.borrow().iter().map(|(number, end)| (*number, *end)).collect()
    }

    /// A file of an earlier opening is used up to `end`.
    pub fn note_used(&self, number: u32, end: u64) {
        let mut written = self.written.borrow_mut();
        let used = written.entry(number).or_default();
        *used = end.max(*used);
    }

    /// A copy begins, into files of its own.
    pub fn leave_copy(&self) {
        *self.tails[Stream::Copy as usize].borrow_mut() = None;
    }

    /// Stops writing into the current files; the next append makes new ones.
    pub fn leave_files(&self) {
        self.tails[..Stream::Copy as usize].iter().for_each(|tail| *tail.borrow_mut() = None);
    }

    /// Closes a file that the manifest no longer lists.
    pub fn forget(&self, number: u32) {
        self.readers.borrow_mut().remove(number);
        self.written.borrow_mut().remove(&number);
    }

    async fn reader(&self, number: u32) -> Result<FileOf<E>, Error> {
        if let Some(file) = self.readers.borrow_mut().get(number) {
            return Ok(file);
        }
        let name = names::values(number);
        let opened = self.env.disk().open(&name, OpenMode::Existing, IoClass::Foreground).await;
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind == DiskErrorKind::NotFound => {
                return Err(Error::Corrupt { file: name, offset: 0, what: "a value file is missing".to_string() });
            }
            Err(error) => return Err(error.into()),
        };
        let block = file.read_at(0, BLOCK).await?;
        header::check(&block, &name, FileKind::Values, self.partition, u64::from(number))?;
        self.readers.borrow_mut().insert(number, file.clone());
        Ok(file)
    }

    /// Reads a value and checks that it is the one that was meant.
    pub async fn read(&self, key: &[u8], pointer: ValuePointer) -> Result<Value, Error> {
        let file = self.reader(pointer.file).await?;
        let length = record::length(key.len(), pointer.length as usize);
        // What is longer than a group is worth the question, before memory is made for it.
        if length > GROUP && pointer.offset.saturating_add(length as u64) > file.length().await? {
            let what = "a value is longer than its file".to_string();
            return Err(Error::Corrupt { file: names::values(pointer.file), offset: pointer.offset, what });
        }
        let bytes = file.read_at(pointer.offset, length).await?;
        self.check(&bytes, key, pointer)
    }

    /// Reads many values, in the order of `keys`: what lies close together is read at once.
    pub async fn read_many(&self, keys: &[(Key, ValuePointer)]) -> Result<Vec<Value>, Error> {
        let mut order: Vec<usize> = (0..keys.len()).collect();
        order.sort_unstable_by_key(|i| (keys[*i].1.file, keys[*i].1.offset));
        let end = |i: usize| keys[i].1.offset + record::length(keys[i].0.len(), keys[i].1.length as usize) as u64;
        let mut values: Vec<Option<Value>> = vec![None; keys.len()];
        let mut rest = order.as_slice();
        while let Some(first) = rest.first().copied() {
            let (file, start) = (keys[first].1.file, keys[first].1.offset);
            let (mut count, mut stop) = (1, end(first));
            while let Some(i) = rest.get(count).copied() {
                let close = keys[i].1.file == file && keys[i].1.offset <= stop.saturating_add(GAP);
                if !close || end(i) - start > GROUP as u64 {
                    break;
                }
                (count, stop) = (count + 1, stop.max(end(i)));
            }
            let (together, after) = rest.split_at(count);
            rest = after;
            if count == 1 {
                values[first] = Some(self.read(&keys[first].0, keys[first].1).await?);
                continue;
            }
            let bytes = self.reader(file).await?.read_at(start, (stop - start) as usize).await?;
            for i in together.iter().copied() {
                let (key, pointer) = (&keys[i].0, keys[i].1);
                let from = (pointer.offset - start) as usize;
                let slice = bytes.get(from..).unwrap_or(&[]);
                values[i] = Some(self.check(slice, key, pointer)?);
            }
        }
        Ok(values.into_iter().flatten().collect())
    }

    /// The value of a record, if it is the one that was meant.
    fn check(&self, bytes: &[u8], key: &[u8], pointer: ValuePointer) -> Result<Value, Error> {
        let check = self.env.sabotage() != Some(Sabotage::ChecksumSkipped);
        let corrupt = |what: &str| Error::Corrupt {
            file: names::values(pointer.file),
            offset: pointer.offset,
            what: what.to_string(),
        };
        let value = record::decode(bytes, key, check).map_err(corrupt)?;
        if check && (value.len() != pointer.length as usize || crate::codec::crc(&[value]) != pointer.checksum) {
            return Err(corrupt("a value is not the one that the log vouches for"));
        }
        Ok(value.into())
    }
}
