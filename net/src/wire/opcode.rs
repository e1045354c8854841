//! The request opcodes.

use super::Dialect;

/// What a request asks for. The numbers up to 0x37 and 0xFF are those of the v1 dialect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// Answers `PONG`.
    Ping = 0x01,
    /// Reads one key.
    Get = 0x02,
    /// Writes one key.
    Set = 0x03,
    /// Deletes one key.
    Del = 0x04,
    /// Chooses the session's partition.
    Select = 0x05,
    /// Reads several keys from one snapshot.
    MGet = 0x06,
    /// Writes several keys, all or none.
    MSet = 0x07,
    /// Deletes several keys, all or none, and counts those that existed.
    MDel = 0x08,
    /// Opens a transaction.
    Begin = 0x10,
    /// Commits the open transaction.
    Commit = 0x11,
    /// Discards the open transaction, if any.
    Abort = 0x12,
    /// Describes the selected partition as JSON.
    Stat = 0x20,
    /// Makes the selected partition a follower, or stops following.
    ReplicaOf = 0x32,
    /// Makes the selected partition a leader.
    Promote = 0x34,
    /// Makes the selected partition refuse writes until it is promoted.
    StepDown = 0x35,
    /// Moves what is committed into value log and index.
    Checkpoint = 0x36,
    /// Deletes everything in the selected partition.
    FlushDb = 0x37,
    /// Keeps log from a version on, under a name and up to a size. Only in `turnstone/2`.
    Hold = 0x38,
    /// Lets a hold go. Only in `turnstone/2`.
    Release = 0x39,
    /// Reads committed changes from a version on. Only in `turnstone/2`.
    ReadLog = 0x3A,
    /// An order about replication, as words. Only in `turnstone/2`.
    Replication = 0x3B,
    /// Waits until a position is shown. Only in `turnstone/2`.
    Wait = 0x3C,
    /// Closes the connection; has no reply.
    Quit = 0xFF,
}

impl Opcode {
    /// Every opcode, in ascending order.
    pub const ALL: [Opcode; 23] = [
        Opcode::Ping,
        Opcode::Get,
        Opcode::Set,
        Opcode::Del,
        Opcode::Select,
        Opcode::MGet,
        Opcode::MSet,
        Opcode::MDel,
        Opcode::Begin,
        Opcode::Commit,
        Opcode::Abort,
        Opcode::Stat,
        Opcode::ReplicaOf,
        Opcode::Promote,
        Opcode::StepDown,
        Opcode::Checkpoint,
        Opcode::FlushDb,
        Opcode::Hold,
        Opcode::Release,
        Opcode::ReadLog,
        Opcode::Replication,
        Opcode::Wait,
        Opcode::Quit,
    ];

    /// The opcode with this number; `None` if there is none.
    pub const fn from_byte(byte: u8) -> Option<Opcode> {
        Some(match byte {
            0x01 => Opcode::Ping,
            0x02 => Opcode::Get,
            0x03 => Opcode::Set,
            0x04 => Opcode::Del,
            0x05 => Opcode::Select,
            0x06 => Opcode::MGet,
            0x07 => Opcode::MSet,
            0x08 => Opcode::MDel,
            0x10 => Opcode::Begin,
            0x11 => Opcode::Commit,
            0x12 => Opcode::Abort,
            0x20 => Opcode::Stat,
            0x32 => Opcode::ReplicaOf,
            0x34 => Opcode::Promote,
            0x35 => Opcode::StepDown,
            0x36 => Opcode::Checkpoint,
            0x37 => Opcode::FlushDb,
            0x38 => Opcode::Hold,
            0x39 => Opcode::Release,
            0x3A => Opcode::ReadLog,
            0x3B => Opcode::Replication,
            0x3C => Opcode::Wait,
            0xFF => Opcode::Quit,
            _ => return None,
        })
    }

    /// The opcode's number on the wire.
    pub const fn byte(self) -> u8 {
        self as u8
    }

    /// The lower-case name used in texts, logs and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Opcode::Ping => "ping",
            Opcode::Get => "get",
            Opcode::Set => "set",
            Opcode::Del => "del",
            Opcode::Select => "select",
            Opcode::MGet => "mget",
            Opcode::MSet => "mset",
            Opcode::MDel => "mdel",
            Opcode::Begin => "begin",
            Opcode::Commit => "commit",
            Opcode::Abort => "abort",
            Opcode::Stat => "stat",
            Opcode::ReplicaOf => "replicaof",
            Opcode::Promote => "promote",
            Opcode::StepDown => "stepdown",
            Opcode::Checkpoint => "checkpoint",
            Opcode::FlushDb => "flushdb",
            Opcode::Hold => "hold",
            Opcode::Release => "release",
            Opcode::ReadLog => "log",
            Opcode::Replication => "replication",
            Opcode::Wait => "wait",
            Opcode::Quit => "quit",
        }
    }

    /// Whether a dialect has this opcode; one that it lacks is answered like an unknown number.
    pub const fn available_in(self, dialect: Dialect) -> bool {
        match self {
            Opcode::Hold | Opcode::Release | Opcode::ReadLog | Opcode::Replication | Opcode::Wait => {
                matches!(dialect, Dialect::Turnstone2)
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_opcodes_agree() {
        let mut known = 0;
        for byte in 0..=u8::MAX {
            if let Some(opcode) = Opcode::from_byte(byte) {
                assert_eq!(opcode.byte(), byte);
                assert!(Opcode::ALL.contains(&opcode));
                known += 1;
            }
        }
        assert_eq!(known, Opcode::ALL.len());
        assert!(Opcode::ALL.windows(2).all(|pair| pair[0].byte() < pair[1].byte()));
    }

    #[test]
    fn the_reserved_byte_and_the_original_streams_are_no_opcodes() {
        assert_eq!(Opcode::from_byte(crate::wire::RESERVED_RESP), None);
        for byte in 0x50..=0x56 {
            assert_eq!(Opcode::from_byte(byte), None);
        }
    }

    #[test]
    fn names_are_distinct() {
        let mut names: Vec<_> = Opcode::ALL.iter().map(|opcode| opcode.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Opcode::ALL.len());
    }

    #[test]
    fn log_opcodes_exist_only_in_turnstone2() {
        let missing: Vec<_> = Opcode::ALL.iter().filter(|opcode| !opcode.available_in(Dialect::V1)).collect();
        let ours = [Opcode::Hold, Opcode::Release, Opcode::ReadLog, Opcode::Replication, Opcode::Wait];
        assert_eq!(missing, ours.iter().collect::<Vec<_>>());
        assert!(Opcode::ALL.iter().all(|opcode| opcode.available_in(Dialect::Turnstone2)));
    }
}
