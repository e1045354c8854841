//! A partition's directory on a real disk: foreground files through the core's ring, bulk files through glommio.
//!
//! Everything is opened with O_DIRECT. Names (create, rename, remove, list, directory sync) go to glommio's blocking
//! thread, which is not pinned to the core.

use crate::extents;
use crate::ring::Ring;
use crate::scarcity::Scarcity;
use glommio::GlommioError;
use glommio::io::{DmaFile, OpenOptions as DmaOptions};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use turnstone_engine::buffer::{AlignedBuf, ReadBuf, round_up};
use turnstone_engine::disk::{BLOCK, Disk, DiskError, DiskErrorKind, File, IoClass, OpenMode};

/// A directory of files.
#[derive(Clone)]
pub struct RealDisk {
    ring: Ring,
    directory: Rc<PathBuf>,
    scarcity: Rc<Scarcity>,
    /// The directory itself, kept open: names are made durable where no descriptor is left, too.
    names: Arc<fs::File>,
}

fn kind_of(error: &io::Error) -> DiskErrorKind {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => return DiskErrorKind::NoSpace,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN) => return DiskErrorKind::Refused,
        Some(libc::ENOENT) => return DiskErrorKind::NotFound,
        Some(libc::EEXIST) => return DiskErrorKind::Exists,
        _ => {}
    }
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            DiskErrorKind::NoSpace
        }
        io::ErrorKind::OutOfMemory => DiskErrorKind::Refused,
        io::ErrorKind::NotFound => DiskErrorKind::NotFound,
        io::ErrorKind::AlreadyExists => DiskErrorKind::Exists,
        _ => DiskErrorKind::Io,
    }
}

fn failed(operation: &'static str, file: &str) -> impl Fn(io::Error) -> DiskError {
    move |error| DiskError { kind: kind_of(&error), operation, file: file.to_string(), message: error.to_string() }
}

/// The same for a flush, which is never tried again: what it left behind is unknown, whatever it says.
fn not_flushed(operation: &'static str, file: &str) -> impl Fn(io::Error) -> DiskError {
    move |error| DiskError { kind: DiskErrorKind::Io, ..failed(operation, file)(error) }
}

/// The system's own error where glommio wraps it: its conversion keeps the kind and the text, and most numbers have no kind.
fn system_error<T>(error: GlommioError<T>) -> io::Error {
    match error {
        GlommioError::EnhancedIoError { source, .. } => source,
        other => other.into(),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    glommio::executor().spawn_blocking(work).await
}

impl RealDisk {
    /// Opens the directory, creating it (and syncing its parent) where it is missing.
    pub async fn open(ring: Ring, directory: PathBuf, scarcity: Rc<Scarcity>) -> Result<RealDisk, DiskError> {
        let path = directory.clone();
        let name = directory.display().to_string();
        let made = blocking(move || {
            if !path.is_dir() {
                fs::create_dir_all(&path)?;
                if let Some(parent) = path.parent() {
                    fs::File::open(parent)?.sync_all()?;
                }
            }
            fs::File::open(path).map(Arc::new)
        });
        let names = made.await.map_err(failed("open", &name))?;
        Ok(RealDisk { ring, directory: Rc::new(directory), scarcity, names })
    }

    async fn open_at(&self, path: PathBuf, name: &str, mode: OpenMode, class: IoClass) -> Result<RealFile, DiskError> {
        let create = mode == OpenMode::Create;
        let whole: Rc<Path> = Rc::from(path.as_path());
        let handle = match class {
            IoClass::Foreground => {
                let opened = blocking(move || {
                    let mut options = fs::OpenOptions::new();
                    options.read(true).write(true).create_new(create).custom_flags(libc::O_DIRECT).mode(0o600);
                    options.open(path).map(OwnedFd::from)
                });
                Handle::Ring(self.ring.clone(), Rc::new(opened.await.map_err(failed("open", name))?))
            }
            IoClass::Bulk => {
                let mut options = DmaOptions::new();
                options.read(true).write(true).create_new(create).mode(0o600);
                let opened = options.dma_open(&path).await;
                Handle::Bulk(Rc::new(opened.map_err(|e| failed("open", name)(system_error(e)))?))
            }
        };
        Ok(RealFile { handle, name: Rc::from(name), path: whole, scarcity: self.scarcity.clone() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.directory
    }
}

impl Disk for RealDisk {
    type File = RealFile;

    async fn open(&self, name: &str, mode: OpenMode, class: IoClass) -> Result<RealFile, DiskError> {
        let path = self.directory.join(name);
        let opened = self.open_at(path.clone(), name, mode, class).await;
        if opened.is_err() {
            self.scarcity.note(&path, 0, &opened);
        }
        opened
    }
    async fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        let (old, new) = (self.directory.join(from), self.directory.join(to));
        blocking(move || fs::rename(old, new)).await.map_err(failed("rename", from))
    }

    async fn remove(&self, name: &str) -> Result<(), DiskError> {
        let path = self.directory.join(name);
        blocking(move || fs::remove_file(path)).await.map_err(failed("remove", name))
    }

    async fn list(&self) -> Result<Vec<(String, u64)>, DiskError> {
        let path = self.directory.clone().to_path_buf();
        let listed = blocking(move || {
            let mut files = Vec::new();
            for entry in fs::read_dir(path)? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                if metadata.is_file() {
                    files.push((entry.file_name().to_string_lossy().into_owned(), metadata.len()));
                }
            }
            files.sort();
            Ok(files)
        });
        listed.await.map_err(failed("list", "the directory"))
    }

    async fn sync_names(&self) -> Result<(), DiskError> {
        let names = self.names.clone();
        blocking(move || names.sync_all()).await.map_err(not_flushed("sync", "the directory"))
    }

    async fn flush(&self, files: &[&RealFile]) -> Result<(), DiskError> {
        // They are on one device, and a flush of any of them tells the device to flush: see `crate::extents`.
        match files.first() {
            Some(file) => file.sync_data().await,
            None => Ok(()),
        }
    }
}

#[derive(Clone)]
enum Handle {
    Ring(Ring, Rc<OwnedFd>),
    Bulk(Rc<DmaFile>),
}

/// An open file.
#[derive(Clone)]
pub struct RealFile {
    handle: Handle,
    name: Rc<str>,
    path: Rc<Path>,
    scarcity: Rc<Scarcity>,
}

impl RealFile {
    async fn write(&self, buffer: AlignedBuf, offset: u64, durable: bool) -> Result<(), DiskError> {
        assert!(offset.is_multiple_of(BLOCK as u64), "writes start at whole blocks");
        match &self.handle {
            Handle::Ring(ring, fd) => {
                ring.write(fd, offset, buffer, durable).await.map_err(failed("write", &self.name))
            }
            Handle::Bulk(file) => {
                let mut done = 0;
                while done < buffer.len() {
                    let mut copy = file.alloc_dma_buffer(buffer.len() - done);
                    copy.as_bytes_mut()[..buffer.len() - done].copy_from_slice(&buffer[done..]);
                    let written = file.write_at(copy, offset + done as u64).await;
                    let n = written.map_err(|e| failed("write", &self.name)(system_error(e)))?;
                    if n == 0 {
                        return Err(failed("write", &self.name)(io::Error::from(io::ErrorKind::WriteZero)));
                    }
                    done = (done + n) / BLOCK * BLOCK;
                }
                if durable { self.sync_data().await } else { Ok(()) }
            }
        }
    }
}

impl File for RealFile {
    async fn length(&self) -> Result<u64, DiskError> {
        match &self.handle {
            Handle::Ring(_, fd) => {
                let found = rustix::fs::fstat(fd.as_ref()).map_err(io::Error::from);
                found.map(|found| found.st_size as u64).map_err(failed("stat", &self.name))
            }
            Handle::Bulk(file) => file.file_size().await.map_err(|e| failed("stat", &self.name)(system_error(e))),
        }
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<ReadBuf, DiskError> {
        let skip = (offset % BLOCK as u64) as usize;
        let start = offset - skip as u64;
        let total = round_up(skip + length);
        let (buffer, filled) = match &self.handle {
            Handle::Ring(ring, fd) => {
                ring.read(fd, start, AlignedBuf::uncleared(total)).await.map_err(failed("read", &self.name))?
            }
            Handle::Bulk(file) => {
                let read = file.read_at_aligned(start, total).await;
                let read = read.map_err(|e| failed("read", &self.name)(system_error(e)))?;
                (AlignedBuf::copy_of(&read), read.len())
            }
        };
        let end = (skip + length).min(filled).max(skip.min(buffer.len()));
        Ok(ReadBuf::new(buffer, skip.min(end)..end))
    }

    async fn write_at(&self, buffer: AlignedBuf, offset: u64) -> Result<(), DiskError> {
        self.write(buffer, offset, false).await
    }

    async fn write_durable(&self, buffer: AlignedBuf, offset: u64) -> Result<(), DiskError> {
        self.write(buffer, offset, true).await
    }

    async fn sync_data(&self) -> Result<(), DiskError> {
        match &self.handle {
            Handle::Ring(ring, fd) => ring.sync_data(fd).await.map_err(not_flushed("flush", &self.name)),
            Handle::Bulk(file) => file.fdatasync().await.map_err(|e| not_flushed("flush", &self.name)(system_error(e))),
        }
    }

    async fn shared_flush_device(&self) -> Result<Option<u64>, DiskError> {
        let Handle::Ring(_, fd) = &self.handle else { return Ok(None) };
        // For want of a descriptor, too.
        let Ok(file) = fd.try_clone().map(fs::File::from) else { return Ok(None) };
        // Where the system cannot tell, the file is flushed by itself.
        Ok(blocking(move || extents::shared_flush_device(&file)).await.unwrap_or(None))
    }

    async fn allocate(&self, length: u64) -> Result<(), DiskError> {
        let allocated = match &self.handle {
            Handle::Ring(ring, fd) => ring.allocate(fd, length).await.map_err(failed("allocate", &self.name)),
            Handle::Bulk(file) => {
                let allocated = file.pre_allocate(length, false).await;
                allocated.map_err(|e| failed("allocate", &self.name)(system_error(e)))
            }
        };
        self.scarcity.note(&self.path, length, &allocated);
        allocated
    }

    async fn truncate(&self, length: u64) -> Result<(), DiskError> {
        match &self.handle {
            Handle::Ring(_, fd) => {
                let file = fd.try_clone().map(fs::File::from).map_err(failed("truncate", &self.name))?;
                blocking(move || file.set_len(length)).await.map_err(failed("truncate", &self.name))
            }
            Handle::Bulk(file) => {
                file.truncate(length).await.map_err(|e| failed("truncate", &self.name)(system_error(e)))
            }
        }
    }
}
