//! A copy of a partition, for who cannot be served from the log: it is too far behind, or has another history.
//!
//! The sender reads the runs of its last checkpoint, merged, with their values ([`CopyOut`]). Runs and value files never
//! change, so a copy is of one version V however long it takes; it needs no snapshot and no room in the overlay. While it
//! lasts, what it reads is *pinned*: files that nobody else needs are kept, and so is the log behind V, up to a limit.
//!
//! The receiver writes a run and value files of its own beside all that it has ([`CopyIn`]). Until the copy is whole nothing
//! of it counts and the old contents are shown; what a crash leaves is removed. Then the partition is closed, one
//! replacement of the manifest puts the copy in the place of everything else, and the partition is opened anew: the index
//! is built from the run, as after any loss of an index, and the log goes on behind V in a new segment.

mod incoming;
mod out;

pub use incoming::CopyIn;
pub use out::CopyOut;
pub(crate) use out::Pins;

use crate::manifest::{EpochStart, MembersRecord};
use crate::types::{Epoch, Key, Value, Version};

/// What a copy is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyHead {
    /// Everything up to this version, and nothing behind it.
    pub version: Version,
    /// What the sender has agreed to.
    pub adopted: Epoch,
    /// The reigns up to the version.
    pub epochs: Vec<EpochStart>,
    /// The lists of members up to the version.
    pub members: Vec<MembersRecord>,
}

/// A key of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyEntry {
    /// The key.
    pub key: Key,
    /// The version that wrote it.
    pub version: Version,
    /// Its value.
    pub value: Value,
}

/// What a copy came to: how many keys, and their hashes added up, as in a digest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopySum {
    /// Keys.
    pub keys: u64,
    /// Their hashes.
    pub digest: u64,
}

impl CopySum {
    /// Adds a key with its value's length and CRC-32.
    pub fn add(&mut self, key: &[u8], length: u32, checksum: u32) {
        self.keys += 1;
        self.digest = self.digest.wrapping_add(crate::digest::of_key(key, length, checksum));
    }
}
