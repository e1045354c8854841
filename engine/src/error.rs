//! Errors, named by what the caller should do next.

use crate::disk::DiskError;
use crate::types::{CommitPosition, Epoch, Version};
use std::fmt;

/// Why a call of a partition failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// Retry the transaction from its beginning: the key has a newer version than the transaction's snapshot.
    Conflict {
        /// The first such key.
        key: Vec<u8>,
        /// The key's newest version.
        newest: Version,
        /// What the transaction saw.
        snapshot: Version,
    },
    /// Mend the request: a limit is broken.
    KeyEmpty,
    /// Mend the request: keys have at most `limit` bytes.
    KeyTooLarge {
        /// Bytes of the key.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Mend the request: values have at most `limit` bytes.
    ValueTooLarge {
        /// Bytes of the value.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// Split the transaction: its writes have at most `limit` bytes.
    TransactionTooLarge {
        /// Bytes allowed.
        limit: u64,
    },
    /// Retry later: requests and replies of all clients hold the node's memory for them.
    MemoryShort {
        /// The setting `request_memory`, bytes.
        limit: u64,
    },
    /// Ask for less at once: the values that were asked for have together more than `limit` bytes.
    TooMuchAtOnce {
        /// Bytes allowed.
        limit: usize,
    },
    /// Begin again: the transaction was open longer than allowed.
    TransactionTimeout {
        /// Seconds allowed.
        limit_seconds: u64,
    },
    /// Begin again: memory ran short and the oldest snapshots were ended, or the partition was emptied.
    SnapshotTooOld,
    /// Free space on the disk; nothing was written.
    NoSpace(String),
    /// The system lacks something that passes, such as descriptors or memory; nothing was written. Retry later.
    Refused(String),
    /// The partition does not take writes; promote it.
    NotLeader,
    /// The partition follows another node: write there.
    Follower {
        /// The node, `host:port`.
        leader: String,
    },
    /// What the leader sent does not continue what is here; the stream is opened again.
    Upstream(String),
    /// Too few followers are there to hold a commit; nothing was committed. Retry later.
    NoQuorum {
        /// How many must hold it.
        needed: u32,
    },
    /// The partition stopped to lead, or leads anew, while the commit waited; nothing was committed. Retry.
    LeadershipChanged,
    /// The commit is in this node's log, and too few followers confirmed it in time: whether it stays is not known yet. Ask
    /// for its position later.
    UnknownOutcome(CommitPosition),
    /// The node was restarted, and does not know yet how much of its log's end was published: ask again when its leader, or
    /// enough members, have told it.
    NotReadable {
        /// What it knows to be published.
        published: Version,
        /// What its log has.
        found: Version,
    },
    /// Another reign was agreed to meanwhile.
    Fenced {
        /// The highest one that this node agreed to.
        adopted: Epoch,
    },
    /// Another order about the partition's role came meanwhile, and stands; nothing was changed by this one.
    Superseded,
    /// Who calls itself a node of that number has another key than the node that was met before.
    Stranger(String),
    /// No member of that number.
    NoSuchMember(String),
    /// Too few members agree to a new leader.
    TooFewAgree(String),
    /// The partition is closing.
    ShuttingDown,
    /// A file is damaged; restore it, or start with `truncate_corrupt_wal` where it is the log.
    Corrupt {
        /// The file's name in the partition's directory.
        file: String,
        /// Where the damage begins.
        offset: u64,
        /// What was found.
        what: String,
    },
    /// A file was written by a newer program; use that one.
    Newer {
        /// The file's name.
        file: String,
        /// The format it has.
        format: u16,
        /// The newest format that this program reads.
        known: u16,
    },
    /// The log no longer reaches back to there; take a copy, or start at `oldest`.
    Purged {
        /// What was asked for.
        wanted: Version,
        /// The oldest version still in the log.
        oldest: Version,
    },
    /// The position is outside this partition's history.
    Diverged(String),
    /// Mend the request: the hold's name is too long, or there are too many holds.
    BadHold(String),
    /// No hold of that name.
    NoSuchHold(String),
    /// The disk failed; see the text.
    Disk(DiskError),
    /// The index failed and could not be mended.
    Index(String),
}

impl Error {
    /// Whether the system refused something before it was begun: nothing has changed, and later it may be given.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Error::NoSpace(_) | Error::Refused(_))
    }
}

impl From<DiskError> for Error {
    fn from(error: DiskError) -> Error {
        match error.kind {
            crate::disk::DiskErrorKind::NoSpace => Error::NoSpace(error.to_string()),
            crate::disk::DiskErrorKind::Refused => Error::Refused(error.to_string()),
            _ => Error::Disk(error),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Conflict { key, newest, snapshot } => write!(
                f,
                "key \"{}\" changed at version {newest}, this transaction's snapshot is {snapshot}; retry the transaction",
                key.escape_ascii()
            ),
            Error::KeyEmpty => write!(f, "the key is empty; keys have at least one byte"),
            Error::KeyTooLarge { size, limit } => {
                write!(f, "the key has {size} bytes, the limit is {limit} (max_key_size)")
            }
            Error::ValueTooLarge { size, limit } => {
                write!(f, "the value has {size} bytes, the limit is {limit} (max_value_size)")
            }
            Error::TransactionTooLarge { limit } => {
                write!(f, "the transaction's writes pass {limit} bytes (max_tx_size); split it")
            }
            Error::MemoryShort { limit } => {
                write!(f, "the requests and replies of all clients hold the {limit} bytes of request_memory; try again")
            }
            Error::TooMuchAtOnce { limit } => {
                write!(f, "the values have together more than {limit} bytes; ask for fewer keys at once")
            }
            Error::TransactionTimeout { limit_seconds } => {
                write!(
                    f,
                    "the transaction was open for more than {limit_seconds} s (max_tx_age) and was discarded; begin again"
                )
            }
            Error::SnapshotTooOld => {
                write!(
                    f,
                    "the transaction's snapshot was given up to free memory, or the partition was emptied; begin again"
                )
            }
            Error::NoSpace(text) => write!(f, "no space left: {text}; nothing was written, free some space and retry"),
            Error::Refused(text) => {
                write!(f, "the system refuses: {text}; nothing was written, raise the limit (or wait for it) and retry")
            }
            Error::NotLeader => write!(f, "this partition takes no writes here; promote it first"),
            Error::Follower { leader } => write!(f, "this partition follows {leader}; write there"),
            Error::Upstream(what) => write!(f, "the leader's stream cannot be applied: {what}"),
            Error::NoQuorum { needed } => write!(
                f,
                "a commit must be held by {needed} followers (min_replicas), and too few are there; nothing was committed, \
                 retry later"
            ),
            Error::LeadershipChanged => write!(
                f,
                "this partition stopped to lead, or leads anew, while the commit waited; nothing was committed, retry"
            ),
            Error::UnknownOutcome(at) => {
                write!(f, "too few followers confirmed {at} in time; it may still become visible: ask with `wait {at}`")
            }
            Error::NotReadable { published, found } => write!(
                f,
                "after its restart this node does not know yet which of the versions {} to {found} are published; reads go on \
                 when its leader or enough members have told it, retry later or elsewhere",
                published + 1
            ),
            Error::Fenced { adopted } => {
                write!(f, "this node has agreed to epoch {}, an older leader counts no more", adopted.number)
            }
            Error::Superseded => write!(
                f,
                "another order about this partition's role came meanwhile and stands; ask again if this one is still wanted"
            ),
            Error::ShuttingDown => write!(f, "the server is shutting down; retry elsewhere or later"),
            Error::Corrupt { file, offset, what } => write!(f, "{file} is damaged at offset {offset}: {what}"),
            Error::Newer { file, format, known } => write!(
                f,
                "{file} has format {format}, this program reads formats up to {known}; start it with the newer program"
            ),
            Error::Purged { wanted, oldest } => {
                write!(
                    f,
                    "version {wanted} was purged from the log, the oldest kept is {oldest}; take a copy or start there"
                )
            }
            Error::Diverged(text)
            | Error::BadHold(text)
            | Error::TooFewAgree(text)
            | Error::NoSuchMember(text)
            | Error::Stranger(text) => {
                write!(f, "{text}")
            }
            Error::NoSuchHold(name) => write!(f, "there is no hold named \"{name}\""),
            Error::Disk(error) => write!(f, "{error}"),
            Error::Index(text) => write!(f, "the index failed: {text}"),
        }
    }
}

impl std::error::Error for Error {}
