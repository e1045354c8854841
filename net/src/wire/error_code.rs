//! The stable error codes of `turnstone/2`, and the v1 status byte each one becomes.
//!
//! Numbers and names are a contract: a code is never renumbered and never reused; new ones are added at the end.

use super::Status;

macro_rules! error_codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $name:literal, $status:ident;)+) => {
        /// Why a request was refused or failed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum ErrorCode {
            $($(#[doc = $doc])+ $variant = $number,)+
        }

        impl ErrorCode {
            /// Every code, in ascending order.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$variant),+];

            /// The code with this number; `None` if this version knows none.
            pub const fn from_u16(number: u16) -> Option<ErrorCode> {
                match number {
                    $($number => Some(ErrorCode::$variant),)+
                    _ => None,
                }
            }

            /// The upper-case word that people and scripts see.
            pub const fn name(self) -> &'static str {
                match self {
                    $(ErrorCode::$variant => $name,)+
                }
            }

            /// The status byte that carries this code, in both dialects.
            pub const fn v1_status(self) -> Status {
                match self {
                    $(ErrorCode::$variant => Status::$status,)+
                }
            }
        }
    };
}

error_codes! {
    /// The certificate's role may not use this opcode.
    Denied = 1, "DENIED", Error;
    /// No such opcode, or none in this dialect.
    UnknownOpcode = 2, "UNKNOWNOPCODE", Error;
    /// The payload does not have the opcode's shape.
    Malformed = 3, "MALFORMED", Error;
    /// The partition does not exist on this node.
    NoSuchPartition = 4, "NOSUCHPARTITION", Error;
    /// Partition 0 accepts no writes.
    ReadOnly = 5, "READONLY", Error;
    /// The request needs an open transaction.
    TxRequired = 6, "TXREQUIRED", TxRequired;
    /// A transaction is open already.
    TxOpen = 7, "TXOPEN", TxOpen;
    /// The command is refused while a transaction is open.
    NotInTx = 8, "NOTINTX", Error;
    /// A key has at least one byte.
    KeyEmpty = 9, "KEYEMPTY", Error;
    /// The key is longer than `max_key_size`.
    KeyTooLarge = 10, "KEYTOOLARGE", TooLarge;
    /// The value is longer than `max_value_size`.
    ValueTooLarge = 11, "VALUETOOLARGE", TooLarge;
    /// The transaction's writes pass `max_tx_size`.
    TxTooLarge = 12, "TXTOOLARGE", TooLarge;
    /// The frame's payload is longer than `max_request_size`, or a reply would pass its limit.
    RequestTooLarge = 13, "REQUESTTOOLARGE", TooLarge;
    /// The transaction is older than `max_tx_age`.
    TxTimeout = 14, "TXTIMEOUT", TxTimeout;
    /// The transaction's snapshot was ended to free memory.
    SnapshotTooOld = 15, "SNAPSHOTTOOOLD", TxTimeout;
    /// Something the transaction wrote or read has a newer version.
    Conflict = 16, "CONFLICT", Conflict;
    /// The server is at a limit; try again.
    Busy = 17, "BUSY", Busy;
    /// No room is left on the disk for this write.
    NoSpace = 18, "DISKFULL", Busy;
    /// The partition is damaged and does not serve, or is being opened anew.
    Offline = 19, "OFFLINE", Error;
    /// The partition is not a leader and takes no writes.
    NotLeader = 20, "NOTLEADER", Error;
    /// The request is understood, but this version does not do it.
    Unsupported = 21, "UNSUPPORTED", Error;
    /// The log no longer reaches back to the position asked for.
    Purged = 22, "COMPACTED", Error;
    /// The position belongs to another history.
    Diverged = 23, "DIVERGED", Error;
    /// The server is shutting down.
    ShuttingDown = 24, "SHUTTINGDOWN", Busy;
    /// Whether the commit happened is not known; a retry may apply it twice.
    UnknownOutcome = 25, "UNKNOWNOUTCOME", Error;
    /// Stored bytes fail their checksum.
    Corrupt = 26, "CORRUPT", Error;
    /// No hold has this name.
    NoSuchHold = 27, "NOSUCHHOLD", Error;
    /// Too few followers are there for a commit, or too few members agree to a new leader; nothing was committed.
    NoQuorum = 28, "NOQUORUM", Error;
    /// A higher epoch has been agreed to.
    Fenced = 29, "FENCED", Error;
    /// No member has this number.
    NoSuchReplica = 30, "NOSUCHREPLICA", Error;
    /// The position that was waited for is not shown yet.
    NotYet = 31, "NOTYET", Busy;
    /// The other node of an order cannot be reached, or does not answer; nothing was changed.
    Unreachable = 32, "UNREACHABLE", Error;
}

impl ErrorCode {
    /// The code's number on the wire.
    pub const fn number(self) -> u16 {
        self as u16
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_and_round_trip() {
        for (index, code) in ErrorCode::ALL.iter().enumerate() {
            assert_eq!(usize::from(code.number()), index + 1);
            assert_eq!(ErrorCode::from_u16(code.number()), Some(*code));
        }
        assert_eq!(ErrorCode::from_u16(0), None);
        assert_eq!(ErrorCode::from_u16(ErrorCode::ALL.len() as u16 + 1), None);
        assert_eq!(ErrorCode::from_u16(u16::MAX), None);
    }

    #[test]
    fn names_are_distinct_upper_case_words() {
        let mut names: Vec<_> = ErrorCode::ALL.iter().map(|code| code.name()).collect();
        assert!(names.iter().all(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_uppercase())));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ErrorCode::ALL.len());
    }

    #[test]
    fn no_code_reads_as_success_or_absence() {
        for code in ErrorCode::ALL {
            assert!(!matches!(code.v1_status(), Status::Ok | Status::NotFound | Status::MemoryLimit), "{code}");
        }
    }

    #[test]
    fn v1_statuses_that_the_original_clients_act_on() {
        assert_eq!(ErrorCode::TxRequired.v1_status().byte(), 0x03);
        assert_eq!(ErrorCode::TxTimeout.v1_status().byte(), 0x04);
        assert_eq!(ErrorCode::SnapshotTooOld.v1_status().byte(), 0x04);
        assert_eq!(ErrorCode::Conflict.v1_status().byte(), 0x05);
        assert_eq!(ErrorCode::TxOpen.v1_status().byte(), 0x06);
        assert_eq!(ErrorCode::NoSpace.v1_status().byte(), 0x07);
        // They print the text of these, and drop that of busy.
        assert_eq!(ErrorCode::NoQuorum.v1_status().byte(), 0x01);
        assert_eq!(ErrorCode::Unreachable.v1_status().byte(), 0x01);
        assert_eq!(ErrorCode::RequestTooLarge.v1_status().byte(), 0x08);
    }
}
