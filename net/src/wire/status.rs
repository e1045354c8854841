//! The status byte that every reply starts with.

/// The outcome of a request, coarse enough to be the same in both dialects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    /// Done; the body is the result.
    Ok = 0x00,
    /// Refused or failed; the body says why.
    Error = 0x01,
    /// The key does not exist; the body is empty.
    NotFound = 0x02,
    /// The request needs an open transaction.
    TxRequired = 0x03,
    /// The transaction outlived its limit and is gone.
    TxTimeout = 0x04,
    /// Another transaction committed first; this one is gone.
    Conflict = 0x05,
    /// `Begin` while a transaction is open.
    TxOpen = 0x06,
    /// Not now: the connection limit, disk space, or a shutdown.
    Busy = 0x07,
    /// A key, value, transaction or request is over its limit.
    TooLarge = 0x08,
    /// Reserved by the v1 dialect; never sent.
    MemoryLimit = 0x09,
}

impl Status {
    /// The status with this number; `None` if there is none.
    pub const fn from_byte(byte: u8) -> Option<Status> {
        Some(match byte {
            0x00 => Status::Ok,
            0x01 => Status::Error,
            0x02 => Status::NotFound,
            0x03 => Status::TxRequired,
            0x04 => Status::TxTimeout,
            0x05 => Status::Conflict,
            0x06 => Status::TxOpen,
            0x07 => Status::Busy,
            0x08 => Status::TooLarge,
            0x09 => Status::MemoryLimit,
            _ => return None,
        })
    }

    /// The status's number on the wire.
    pub const fn byte(self) -> u8 {
        self as u8
    }

    /// The upper-case word the command line prints when a reply has no error code of its own.
    pub const fn name(self) -> &'static str {
        match self {
            Status::Ok => "OK",
            Status::Error => "ERROR",
            Status::NotFound => "NOTFOUND",
            Status::TxRequired => "TXREQUIRED",
            Status::TxTimeout => "TXTIMEOUT",
            Status::Conflict => "CONFLICT",
            Status::TxOpen => "TXOPEN",
            Status::Busy => "BUSY",
            Status::TooLarge => "TOOLARGE",
            Status::MemoryLimit => "MEMORYLIMIT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_statuses_and_no_more() {
        for byte in 0..=u8::MAX {
            match Status::from_byte(byte) {
                Some(status) => assert_eq!(status.byte(), byte),
                None => assert!(byte > 0x09),
            }
        }
        assert_eq!(Status::from_byte(9), Some(Status::MemoryLimit));
    }
}
