//! Files as the engine sees them: one flat directory per partition, opened in direct mode.
//!
//! Contract, checked by one suite against every implementation (`tests/tests/parallel/disk_contract.rs`):
//! - Writes start at multiples of [`BLOCK`] and their buffers' lengths are multiples of it; a write is all or error.
//! - What was written is lost by a crash, wholly or in parts, in any order, until a flush that covers it returned.
//! - A new name, a rename and a removal are lost by a crash, in any combination, until `sync_names` returned.
//! - An operation that failed with [`DiskErrorKind::NoSpace`] or [`DiskErrorKind::Refused`] has changed nothing that counts, and may be
//!   tried again: a write with the same bytes, which are written wholly once more. A flush, of a file or of names, never answers
//!   these.
//! - Any other failed write or flush says nothing about what reached the disk; the engine never repeats it.
//! - `allocate` is the one place where a lack of space shows for bytes below the allocated length.

use crate::buffer::{AlignedBuf, ReadBuf};

/// The unit of every write, in bytes. Disks here say 512 and mean 4096.
pub const BLOCK: usize = 4096;

/// What went wrong with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskErrorKind {
    /// No space left on the device, or a quota, or a limit of the file's size; nothing has changed.
    NoSpace,
    /// The system has no descriptor or no memory for it now; nothing has changed.
    Refused,
    /// No file of that name.
    NotFound,
    /// A file of that name is there already.
    Exists,
    /// Anything else; what is on the disk is unknown.
    Io,
}

/// A failed disk operation: which, on what, and the system's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskError {
    /// What to do about it.
    pub kind: DiskErrorKind,
    /// The operation, in a word: `write`, `flush`, `open`…
    pub operation: &'static str,
    /// The file's name in the partition's directory.
    pub file: String,
    /// The system's text.
    pub message: String,
}

impl DiskError {
    /// Whether the operation was refused before it was begun: who has acknowledged nothing yet goes on, and refuses in turn.
    pub fn changed_nothing(&self) -> bool {
        matches!(self.kind, DiskErrorKind::NoSpace | DiskErrorKind::Refused)
    }
}

impl std::fmt::Display for DiskError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} failed: {}", self.operation, self.file, self.message)
    }
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// A new file; an existing one of that name is an error.
    Create,
    /// An existing file, for reading and writing.
    Existing,
}

/// Who waits for a file's operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoClass {
    /// A client, a follower, a consumer: the log, written and read, and point reads.
    Foreground,
    /// Nobody in particular: checkpoints, rebuilds.
    Bulk,
}

/// A partition's directory.
#[expect(async_fn_in_trait, reason = "futures stay on the core that made them; nobody needs Send")]
pub trait Disk: 'static {
    /// An open file.
    type File: File;
    /// Opens or creates a file.
    async fn open(&self, name: &str, mode: OpenMode, class: IoClass) -> Result<Self::File, DiskError>;
    /// Renames a file, replacing one that has the new name.
    async fn rename(&self, from: &str, to: &str) -> Result<(), DiskError>;
    /// Removes a file; its bytes go when its last handle closes.
    async fn remove(&self, name: &str) -> Result<(), DiskError>;
    /// Names and lengths of all files, sorted by name.
    async fn list(&self) -> Result<Vec<(String, u64)>, DiskError>;
    /// Makes all creations, renames and removals so far durable.
    async fn sync_names(&self) -> Result<(), DiskError>;
    /// One flush for several files of the same [`File::shared_flush_device`] whose writes completed, be they of this
    /// directory or of another (the shared flush of D4).
    async fn flush(&self, files: &[&Self::File]) -> Result<(), DiskError>;
}

/// An open file. Cloning gives another handle.
#[expect(async_fn_in_trait, reason = "futures stay on the core that made them; nobody needs Send")]
pub trait File: Clone + 'static {
    /// Length in bytes.
    async fn length(&self) -> Result<u64, DiskError>;
    /// Reads up to `length` bytes from any offset; fewer only at the end of the file.
    async fn read_at(&self, offset: u64, length: usize) -> Result<ReadBuf, DiskError>;
    /// Writes; durable only after a flush.
    async fn write_at(&self, buffer: AlignedBuf, offset: u64) -> Result<(), DiskError>;
    /// Writes and flushes as one request: durable when it returns.
    async fn write_durable(&self, buffer: AlignedBuf, offset: u64) -> Result<(), DiskError>;
    /// Makes all completed writes of this file durable.
    async fn sync_data(&self) -> Result<(), DiskError>;
    /// The device of which one flush, of any file that answers the same, covers completed writes to this file as well: all
    /// of its blocks are written and its own, so that a write changes nothing else. `None` if only its own flush does.
    async fn shared_flush_device(&self) -> Result<Option<u64>, DiskError>;
    /// Makes the file at least this long, its space assured.
    async fn allocate(&self, length: u64) -> Result<(), DiskError>;
    /// Cuts the file to this length.
    async fn truncate(&self, length: u64) -> Result<(), DiskError>;
}
