//! A partition's outside world for a reader of files: plain bytes in memory, and every operation done at once.
//!
//! Its disk holds the engine to one rule: a read asks for no more than the file has, or than a constant. A length from a
//! file that drives an allocation therefore fails here, whatever the allocator would have made of it.

use crate::sim::{IndexImage, SimIndex, World};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::{Future, pending};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use turnstone_engine::buffer::{AlignedBuf, ReadBuf};
use turnstone_engine::disk::{Disk, DiskError, DiskErrorKind, File, IoClass, OpenMode};
use turnstone_engine::env::{Env, Level};
use turnstone_engine::wal::shared_flush::SharedFlush;

/// What a read may ask for beyond the end of its file: readers that go through a file in order take windows.
const BEYOND: u64 = 4 << 20;

type Bytes = Rc<RefCell<Vec<u8>>>;

/// Files in memory.
#[derive(Clone, Default)]
pub struct MemoryDisk(Rc<RefCell<BTreeMap<String, Bytes>>>);

/// One of them.
#[derive(Clone)]
pub struct MemoryFile(Bytes);

fn error(kind: DiskErrorKind, operation: &'static str, file: &str) -> DiskError {
    DiskError { kind, operation, file: file.to_string(), message: "in memory".to_string() }
}

impl Disk for MemoryDisk {
    type File = MemoryFile;

    async fn open(&self, name: &str, mode: OpenMode, _class: IoClass) -> Result<MemoryFile, DiskError> {
        let mut files = self.0.borrow_mut();
        match (files.get(name), mode) {
            (Some(file), OpenMode::Existing) => Ok(MemoryFile(file.clone())),
            (None, OpenMode::Existing) => Err(error(DiskErrorKind::NotFound, "open", name)),
            (Some(_), OpenMode::Create) => Err(error(DiskErrorKind::Exists, "open", name)),
            (None, OpenMode::Create) => Ok(MemoryFile(files.entry(name.to_string()).or_default().clone())),
        }
    }

    async fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let mut files = self.0.borrow_mut();
        let file = files.remove(from).ok_or_else(|| error(DiskErrorKind::NotFound, "rename", from))?;
        files.insert(to.to_string(), file);
        Ok(())
    }

    async fn remove(&self, name: &str) -> Result<(), DiskError> {
        let removed = self.0.borrow_mut().remove(name);
        removed.map(drop).ok_or_else(|| error(DiskErrorKind::NotFound, "remove", name))
    }

    async fn list(&self) -> Result<Vec<(String, u64)>, DiskError> {
        Ok(self.0.borrow().iter().map(|(name, file)| (name.clone(), file.borrow().len() as u64)).collect())
    }

    async fn sync_names(&self) -> Result<(), DiskError> {
        Ok(())
    }

    async fn flush(&self, _files: &[&MemoryFile]) -> Result<(), DiskError> {
        Ok(())
    }
}

impl File for MemoryFile {
    async fn length(&self) -> Result<u64, DiskError> {
        Ok(self.0.borrow().len() as u64)
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<ReadBuf, DiskError> {
        let bytes = self.0.borrow();
        let left = (bytes.len() as u64).saturating_sub(offset);
        assert!(length as u64 <= left + BEYOND, "a read of {length} bytes where {left} are left");
        let length = (length as u64).min(left) as usize;
        let mut buffer = AlignedBuf::zeroed(length);
        if length > 0 {
            buffer[..length].copy_from_slice(&bytes[offset as usize..][..length]);
        }
        Ok(ReadBuf::new(buffer, 0..length))
    }

    async fn write_at(&self, buffer: AlignedBuf, offset: u64) -> Result<(), DiskError> {
        let end = offset as usize + buffer.len();
        let mut bytes = self.0.borrow_mut();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(&buffer);
        Ok(())
    }

    async fn write_durable(&self, buffer: AlignedBuf, offset: u64) -> Result<(), DiskError> {
        self.write_at(buffer, offset).await
    }

    async fn sync_data(&self) -> Result<(), DiskError> {
        Ok(())
    }

    async fn shared_flush_device(&self) -> Result<Option<u64>, DiskError> {
        Ok(None)
    }

    async fn allocate(&self, length: u64) -> Result<(), DiskError> {
        let mut bytes = self.0.borrow_mut();
        let length = bytes.len().max(length as usize);
        bytes.resize(length, 0);
        Ok(())
    }

    async fn truncate(&self, length: u64) -> Result<(), DiskError> {
        self.0.borrow_mut().truncate(length as usize);
        Ok(())
    }
}

/// The world of one partition: a disk, an index that nobody asks, and no time.
#[derive(Clone)]
pub struct MemoryEnv {
    disk: MemoryDisk,
    index: SimIndex,
}

impl MemoryEnv {
    /// A world whose disk holds these files.
    pub fn new(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> MemoryEnv {
        let files = files.into_iter().map(|(name, bytes)| (name, Rc::new(RefCell::new(bytes)))).collect();
        let index = SimIndex::new(World::new(0), IndexImage::default(), false);
        MemoryEnv { disk: MemoryDisk(Rc::new(RefCell::new(files))), index }
    }
}

impl Env for MemoryEnv {
    type Disk = MemoryDisk;
    type Index = SimIndex;

    fn disk(&self) -> &MemoryDisk {
        &self.disk
    }
    fn index(&self) -> &SimIndex {
        &self.index
    }
    fn shared_flush(&self, _device: u64) -> Option<Rc<SharedFlush<MemoryFile>>> {
        None
    }
    fn now(&self) -> Duration {
        Duration::ZERO
    }
    fn recently(&self) -> Duration {
        self.now()
    }
    fn wall_ms(&self) -> u64 {
        0
    }
    fn random(&self) -> u64 {
        4
    }
    async fn sleep(&self, _how_long: Duration) {
        pending().await
    }
    async fn give_way(&self) {}
    fn spawn(&self, _task: impl Future<Output = ()> + 'static) {
        unreachable!("a reader starts no tasks")
    }
    fn log(&self, _level: Level, _line: String) {}
    async fn halt(&self, why: String) -> Infallible {
        unreachable!("a reader ends no process: {why}")
    }
}

/// Runs what never waits.
pub fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("nothing in memory waits"),
    }
}
