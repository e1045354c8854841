//! From the engine's errors to the wire's codes; `docs/wire-protocol.md` has the table.

use crate::wire::ErrorCode;
use turnstone_engine::Error;

/// The code that an engine error has on the wire.
pub fn code_of(error: &Error) -> ErrorCode {
    match error {
        Error::Conflict { .. } => ErrorCode::Conflict,
        Error::KeyEmpty => ErrorCode::KeyEmpty,
        Error::KeyTooLarge { .. } => ErrorCode::KeyTooLarge,
        Error::ValueTooLarge { .. } => ErrorCode::ValueTooLarge,
        Error::TransactionTooLarge { .. } => ErrorCode::TxTooLarge,
        Error::TooMuchAtOnce { .. } => ErrorCode::RequestTooLarge,
        Error::TransactionTimeout { .. } => ErrorCode::TxTimeout,
        Error::SnapshotTooOld => ErrorCode::SnapshotTooOld,
        Error::NoSpace(_) => ErrorCode::NoSpace,
        Error::NotLeader | Error::Follower { .. } => ErrorCode::NotLeader,
        Error::ShuttingDown => ErrorCode::ShuttingDown,
        Error::Corrupt { .. } | Error::Disk(_) | Error::Index(_) => ErrorCode::Corrupt,
        Error::Newer { .. } => ErrorCode::Offline,
        Error::Purged { .. } => ErrorCode::Purged,
        Error::Diverged(_) | Error::Upstream(_) => ErrorCode::Diverged,
        Error::BadHold(_) => ErrorCode::Malformed,
        Error::NoSuchHold(_) => ErrorCode::NoSuchHold,
        Error::NoQuorum { .. } | Error::TooFewAgree(_) => ErrorCode::NoQuorum,
        Error::NotReadable { .. } => ErrorCode::NotYet,
        Error::UnknownOutcome(_) => ErrorCode::UnknownOutcome,
        Error::Fenced { .. } => ErrorCode::Fenced,
        Error::Superseded | Error::LeadershipChanged | Error::Refused(_) | Error::MemoryShort { .. } => ErrorCode::Busy,
        Error::Stranger(_) => ErrorCode::Denied,
        Error::NoSuchMember(_) => ErrorCode::NoSuchReplica,
    }
}
