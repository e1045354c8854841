//! The small values everything else is made of.

use std::fmt;
use std::rc::Rc;

/// 1 to 16 for user partitions; 0 is the system partition and has no engine.
pub type PartitionId = u8;

/// The number of a commit within its partition: 1 is the first. A snapshot is such a number, too: it sees every
/// version up to itself.
pub type Version = u64;

/// A user's key.
pub type Key = Rc<[u8]>;

/// A user's value.
pub type Value = Rc<[u8]>;

/// Where a batch lies in the log: segment number above, byte offset in the segment's file below. Ordered as written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPosition(pub u64);

impl LogPosition {
    /// The position `offset` bytes into segment `segment`.
    pub fn new(segment: u32, offset: u32) -> LogPosition {
        LogPosition((u64::from(segment) << 32) | u64::from(offset))
    }
    /// The segment's number; 0 means before the first.
    pub fn segment(self) -> u32 {
        (self.0 >> 32) as u32
    }
    /// The byte offset in the segment's file.
    pub fn offset(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.segment(), self.offset())
    }
}

/// A reign: its number, and the random id drawn by the node that began it (D13).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Epoch {
    /// Grows with every opening and promotion.
    pub number: u64,
    /// Tells apart two reigns that took the same number.
    pub id: u64,
}

/// The place of a value in the value log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValuePointer {
    /// The file's number.
    pub file: u32,
    /// Where its record starts.
    pub offset: u64,
    /// The value's length in bytes.
    pub length: u32,
    /// CRC-32 of the value's bytes.
    pub checksum: u32,
}

/// What a key holds at a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A value in memory (and in the log).
    Value(Value),
    /// A value in the value log.
    Pointer(ValuePointer),
    /// The key was deleted.
    Tombstone,
}

/// What a checkpointed key holds: never a value in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// A value in the value log.
    Pointer(ValuePointer),
    /// The key was deleted.
    Tombstone,
}

/// An identity for a commit that holds across nodes and files (D16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitPosition {
    /// The partition.
    pub partition: PartitionId,
    /// The reign it was committed in.
    pub epoch: Epoch,
    /// Its number.
    pub version: Version,
}

impl fmt::Display for CommitPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.partition, self.epoch.number, self.version)
    }
}

/// A partition of a node that holds a copy: followers are told apart by node and partition, addresses may change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// The node.
    pub node: u64,
    /// The partition there.
    pub partition: PartitionId,
    /// Where the node listens, `host:port`; empty while nobody has said so.
    pub address: String,
}

impl Member {
    /// What it is told apart by.
    pub fn key(&self) -> (u64, PartitionId) {
        (self.node, self.partition)
    }
}

/// Who holds copies, the leader among them, and how many followers must hold a commit before it counts (D13). A record of
/// the log: it has a version, and holds from there on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Followers that must hold a commit on their disks; 0 makes replication asynchronous.
    pub min_replicas: u32,
    /// The leader and its followers.
    pub nodes: Vec<Member>,
    /// Nodes that an operator has ordered to be forgotten, oldest first: they are no members until they are ordered to follow.
    pub forgotten: Vec<u64>,
}
