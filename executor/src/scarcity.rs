//! Says once that the disk is full, and once that it is over: what is refused meanwhile is refused for the same reason.

use crate::log::Log;
use std::cell::Cell;
use std::path::Path;
use turnstone_engine::disk::{DiskError, DiskErrorKind};
use turnstone_engine::env::Level;

/// An allocation of at least so many bytes shows that the disk has space again.
const LARGE: u64 = 128 << 10;

/// What a core's partitions know of their disk.
pub struct Scarcity {
    log: Log,
    full: Cell<bool>,
}

impl Scarcity {
    /// There is space as far as anybody knows.
    pub fn new(log: Log) -> Scarcity {
        Scarcity { log, full: Cell::new(false) }
    }

    /// Looks at the outcome of what took `need` bytes for `path`.
    pub fn note<T>(&self, path: &Path, need: u64, outcome: &Result<T, DiskError>) {
        let path = path.display();
        match outcome {
            // A small allocation may fit where a file was just removed, on a disk that is still full.
            Ok(_) if need >= LARGE && self.full.replace(false) => {
                self.log.line(Level::Info, &format!("the disk has space again: {path} has its {need} bytes"));
            }
            Err(error) if error.kind == DiskErrorKind::NoSpace && !self.full.replace(true) => self.log.line(
                Level::Warn,
                &format!(
                    "{path} needs {need} bytes and the disk has no space for them ({}); writes are refused (DISKFULL) and reads \
                     go on until there is",
                    error.message
                ),
            ),
            _ => {}
        }
    }
}
