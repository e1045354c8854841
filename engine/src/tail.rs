//! The log as consumers read it: whole transactions in order of their versions. Change streams read only what is published;
//! followers read what is pending, too, and what this node's own disk has not finished writing.
//!
//! Who stays close behind is served from the newest batches in memory, which are kept while anybody wants them; who is
//! further behind from the files, going on where it stopped.

use crate::env::Env;
use crate::error::Error;
use crate::partition::{Core, Partition};
use crate::types::{Key, LogPosition, Value, ValuePointer, Version};
use crate::wal::body::{self, Body, BodyError, Operation};
use crate::wal::envelope::pointer;
use crate::wal::scan::{Batch, OpenSegment, Scanner, decode_checked};
use std::collections::VecDeque;
use std::rc::Rc;

/// A page holds about this much at most, whatever was asked for, bytes.
const PAGE_MAX: usize = 16 << 20;
/// Newest batches in memory, bytes of their bodies.
const TAIL_BYTES: usize = 4 << 20;

/// A stretch of the log.
pub struct LogPage {
    /// Batches in order; the first may begin before the version that was asked for.
    pub batches: Vec<Body>,
    /// Where to go on.
    pub next: Version,
}

/// How far a reader sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// What everybody may see.
    Published,
    /// What is in the log, or on its way there.
    Everything,
}

/// A batch in memory.
pub(crate) struct Tailed {
    first: Version,
    last: Version,
    bytes: Rc<Vec<u8>>,
    places: Vec<(u32, u64)>,
}

impl Tailed {
    pub fn new(first: Version, last: Version, bytes: Rc<Vec<u8>>, places: Vec<(u32, u64)>) -> Tailed {
        Tailed { first, last, bytes, places }
    }
}

/// The newest batches, oldest first.
#[derive(Default)]
pub(crate) struct Tail {
    batches: VecDeque<Rc<Tailed>>,
    bytes: usize,
    /// Who reads it, and from which version on.
    readers: Vec<(u64, Version)>,
    next_reader: u64,
}

impl Tail {
    /// Whether anybody reads it.
    pub fn is_wanted(&self) -> bool {
        !self.readers.is_empty()
    }

    pub fn push(&mut self, batch: Tailed) {
        self.bytes += batch.bytes.len();
        self.batches.push_back(Rc::new(batch));
        while self.bytes > TAIL_BYTES && self.batches.len() > 1 {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.batches.pop_front() {
            self.bytes -= oldest.bytes.len();
        }
    }

    fn enter(&mut self, next: Version) -> u64 {
        self.next_reader += 1;
        self.readers.push((self.next_reader, next));
        self.next_reader
    }

    /// A reader goes on from `next`, if it goes on. What everybody has read is dropped: its memory is the next batch's.
    fn passed(&mut self, reader: u64, next: Option<Version>) {
        self.readers.retain(|(number, _)| *number != reader);
        self.readers.extend(next.map(|next| (reader, next)));
        let needed = self.readers.iter().map(|(_, next)| *next).min().unwrap_or(Version::MAX);
        while self.batches.front().is_some_and(|batch| batch.last < needed) {
            self.drop_oldest();
        }
    }

    /// The batches from the one with `version` on, up to `published`.
    fn from(&self, version: Version, published: Version, limit_bytes: usize) -> Vec<Rc<Tailed>> {
        let start = self.batches.partition_point(|batch| batch.last < version);
        if self.batches.get(start).is_none_or(|batch| batch.first > version) {
            return Vec::new();
        }
        let mut bytes = 0;
        let mut next = None;
        let mut fits = |batch: &&Rc<Tailed>| {
            let before = bytes;
            bytes += batch.bytes.len();
            let follows = next.replace(batch.last + 1).is_none_or(|next| next == batch.first);
            follows && batch.last <= published && (before == 0 || before < limit_bytes)
        };
        self.batches.range(start..).take_while(|batch| fits(batch)).cloned().collect()
    }
}

/// A batch as it goes to another node.
pub struct Shipment {
    /// Version of its first transaction.
    pub first: Version,
    /// Version of its last.
    pub last: Version,
    /// The body, as it is in the log.
    pub body: Rc<Vec<u8>>,
    /// Its large values, in the order of the body: [`LogReader::value`] reads one.
    pub values: Vec<(Key, ValuePointer)>,
}

impl Shipment {
    fn new(first: Version, last: Version, bytes: Rc<Vec<u8>>, places: &[(u32, u64)]) -> Shipment {
        let values = if places.is_empty() {
            Vec::new()
        } else {
            let body = body::decode(&bytes, false).ok();
            let operations = body.iter().flat_map(|body| body.transactions.iter().flatten());
            let large = operations.filter_map(|operation| match operation {
                Operation::SetLarge(key, length, checksum) => Some((key.clone(), *length, *checksum)),
                _ => None,
            });
            large.zip(places).map(|((key, length, sum), place)| (key, pointer(*place, length, sum))).collect()
        };
        Shipment { first, last, body: bytes, values }
    }
}

/// Reads batches in order, without end.
pub struct LogReader<E: Env> {
    core: Rc<Core<E>>,
    /// Among the readers.
    number: u64,
    scope: Scope,
    next: Version,
    cursor: Option<Cursor<E>>,
}

/// A place in the log's files.
struct Cursor<E: Env> {
    at: LogPosition,
    chain: Option<u32>,
    next: Version,
    /// The segment that is read, if all of it was flushed before, and the newest secret of the log when it was opened: a cut
    /// takes another one.
    open: Option<(OpenSegment<E>, Option<u64>)>,
}

impl<E: Env> Drop for LogReader<E> {
    fn drop(&mut self) {
        self.core.tail.borrow_mut().passed(self.number, None);
    }
}

impl<E: Env> LogReader<E> {
    /// Version of the next batch's first transaction, or one within it.
    pub fn next_version(&self) -> Version {
        self.next
    }

    /// Ends when there is something to read.
    pub async fn ready(&self) {
        match self.scope {
            Scope::Published => self.core.published.reached(self.next).await,
            Scope::Everything => self.core.appending.reached(self.next).await,
        }
    }

    /// The next batches, about `limit_bytes` of them; none if there are none yet.
    pub async fn read(&mut self, limit_bytes: usize) -> Result<Vec<Shipment>, Error> {
        let limit = match self.scope {
            Scope::Published => self.core.published.get(),
            Scope::Everything => self.core.appending.get(),
        };
        if self.next > limit {
            return Ok(Vec::new());
        }
        let recent = self.core.tail.borrow().from(self.next, limit, limit_bytes);
        if let Some(last) = recent.last() {
            self.next = last.last + 1;
            self.cursor = None;
            self.core.tail.borrow_mut().passed(self.number, Some(self.next));
            let ship = |batch: &Rc<Tailed>| Shipment::new(batch.first, batch.last, batch.bytes.clone(), &batch.places);
            return Ok(recent.iter().map(ship).collect());
        }
        // What is on its way to the disk is in memory only; where it was dropped from there the disk will have it soon.
        self.core.flushed.reached(self.next).await;
        let limit = limit.min(self.core.flushed.get());
        let cursor = self.cursor.take().filter(|cursor| cursor.next == self.next);
        let (batches, cursor) = read_batches(&self.core, self.next, limit, limit_bytes, cursor, whole).await?;
        self.next = cursor.next;
        self.core.tail.borrow_mut().passed(self.number, Some(self.next));
        self.cursor = Some(cursor);
        let ship = |batch: Batch<Vec<u8>>| {
            let (first, last) = (batch.head.first_version, batch.head.last_version());
            Shipment::new(first, last, Rc::new(batch.body), &batch.envelope.pointers)
        };
        Ok(batches.into_iter().map(ship).collect())
    }

    /// Reads a large value of a shipment.
    pub async fn value(&self, (key, place): &(Key, ValuePointer)) -> Result<Value, Error> {
        self.core.values.read(key, *place).await
    }
}

/// A body as it is: it passes its checksum, and nothing in it is looked at.
fn whole(bytes: &[u8]) -> Result<Vec<u8>, BodyError> {
    Ok(bytes.to_vec())
}

/// Batches from `next` to `limit`, until their bodies pass `limit_bytes` (at least one, if there is one), and where to go
/// on; `read` makes of their bodies what is wanted.
async fn read_batches<E: Env, T>(
    core: &Rc<Core<E>>,
    next: Version,
    limit: Version,
    limit_bytes: usize,
    cursor: Option<Cursor<E>>,
    read: fn(&[u8]) -> Result<T, BodyError>,
) -> Result<(Vec<Batch<T>>, Cursor<E>), Error> {
    let partition = Partition(core.clone());
    let segments = core.wal().segments();
    if next < partition.oldest_version() {
        return Err(purged(core, next).await);
    }
    let numbers: Vec<u32> = segments.iter().map(|s| s.number).collect();
    let manifest = core.manifest.get().clone();
    let mut cursor = match cursor {
        Some(cursor) => cursor,
        None => {
            let start = segments.iter().rev().find(|s| s.first_version <= next);
            let at = start.map_or(core.wal().end(), |s| LogPosition::new(s.number, crate::disk::BLOCK as u32));
            Cursor { at, chain: None, next, open: None }
        }
    };
    // What is read at once goes beyond what is wanted. It need not be read again where all of it was on the disk before: in
    // segments before the one that has what was flushed last.
    let flushing = segments.iter().rev().find(|s| s.first_version <= limit).map_or(0, |s| s.number);
    let secret = manifest.generations.last().map(|generation| generation.secret);
    let open = cursor.open.take().filter(|(_, of)| *of == secret).map(|(open, _)| open);
    let mut scanner = Scanner::new(&core.env, core.id, &manifest, &numbers, cursor.at, cursor.chain);
    scanner.resume(open);
    let limit_bytes = limit_bytes.min(PAGE_MAX);
    let (mut batches, mut bytes) = (Vec::new(), 0);
    while cursor.next <= limit && (batches.is_empty() || bytes < limit_bytes) {
        let place = scanner.position();
        let batch = match scanner.next_as(read).await {
            // Behind a damaged beginning of a segment the scanner finds the next one. An empty batch may name a version that
            // was prepared and is in none yet.
            Ok(Some(batch)) if batch.head.transactions == 0 || batch.head.first_version <= cursor.next => batch,
            other => {
                // A segment that was purged meanwhile reads as anything.
                if cursor.next < partition.oldest_version() {
                    return Err(purged(core, cursor.next).await);
                }
                other?;
                return Err(Error::Corrupt {
                    file: crate::names::segment(place.segment()),
                    offset: u64::from(place.offset()),
                    what: format!("version {} cannot be read although it is durable", cursor.next),
                });
            }
        };
        if batch.head.transactions > 0 && batch.head.last_version() > limit {
            break;
        }
        (cursor.at, cursor.chain) = (scanner.position(), scanner.chain());
        if batch.head.transactions == 0 || batch.head.last_version() < cursor.next {
            continue;
        }
        bytes += batch.envelope.body_length as usize;
        cursor.next = batch.head.last_version() + 1;
        batches.push(batch);
    }
    cursor.open = scanner.into_open().filter(|open| open.number < flushing).map(|open| (open, secret));
    Ok((batches, cursor))
}

/// The log does not reach back to `wanted`: said only when a purge that is under way is recorded, or a crash could bring
/// back what a reader was told is gone.
async fn purged<E: Env>(core: &Rc<Core<E>>, wanted: Version) -> Error {
    let _turn = core.purge_gate.enter().await;
    Error::Purged { wanted, oldest: Partition(core.clone()).oldest_version() }
}

impl<E: Env> Partition<E> {
    /// Reads published batches from `version` on, until their bodies pass `limit_bytes` (at least one, if there is one).
    pub async fn read_log(&self, version: Version, limit_bytes: usize) -> Result<LogPage, Error> {
        let published = self.0.published.get();
        if version > published + 1 {
            return Err(beyond(version, published));
        }
        let (batches, cursor) = read_batches(&self.0, version, published, limit_bytes, None, decode_checked).await?;
        Ok(LogPage { batches: batches.into_iter().map(|batch| batch.body).collect(), next: cursor.next })
    }

    /// Reads the log from `version` on, for as long as the reader lives.
    pub fn log_reader(&self, version: Version, scope: Scope) -> Result<LogReader<E>, Error> {
        let oldest = self.oldest_version();
        let last = match scope {
            Scope::Published => self.0.published.get(),
            Scope::Everything => self.0.prepared.get(),
        };
        if version > last + 1 {
            return Err(beyond(version, last));
        }
        if version < oldest {
            return Err(Error::Purged { wanted: version, oldest });
        }
        let number = self.0.tail.borrow_mut().enter(version);
        Ok(LogReader { core: self.0.clone(), number, scope, next: version, cursor: None })
    }
}

fn beyond(version: Version, published: Version) -> Error {
    Error::Diverged(format!("version {version} is not in this history, which ends at {published}"))
}
