//! The wire protocol as pure code: bytes in, values out. No I/O, no TLS, no clock.
//!
//! Every integer is unsigned and big-endian. Two dialects share opcodes, status bytes and payload shapes:
//!
//! | dialect | chosen by | frame | reply |
//! |---|---|---|---|
//! | [`Dialect::V1`] | a client that offers no ALPN | `opcode u8, length u32, payload` | `status u8, length u32, body` |
//! | [`Dialect::Turnstone2`] | ALPN `turnstone/2` | `opcode u8, length u32, id u32, payload` | `status u8, length u32, id u32, body` |
//!
//! `length` counts the payload (or body) alone. A reply of `turnstone/2` echoes the id of its request; replies still come
//! in request order, so the id is a check and a label, not a licence to reorder.

pub mod change;
pub mod error_code;
pub mod frame;
pub mod opcode;
pub mod permission;
pub mod position;
pub mod reply;
pub mod request;
pub mod status;

pub use error_code::ErrorCode;
pub use frame::{FrameTooLarge, Header};
pub use opcode::Opcode;
pub use position::Position;
pub use reply::Reply;
pub use request::{Item, Items, Request, WireError};
pub use status::Status;

/// The ALPN protocol that selects [`Dialect::Turnstone2`].
pub const ALPN_TURNSTONE2: &[u8] = b"turnstone/2";

/// The ALPN protocol of nodes that replicate: frames of their own (`turnstone_replication::wire`).
pub const ALPN_REPLICA: &[u8] = b"turnstone-replica/1";

/// The ALPN protocol of consumers of changes: the frames of [`change`].
pub const ALPN_CHANGES: &[u8] = b"turnstone-changes/1";

/// What an ALPN entry starts with that names the partition a client is going to select. The acceptor reads it to place
/// the connection and never negotiates it.
pub const ALPN_HINT_PREFIX: &[u8] = b"turnstone-p";

/// The highest partition number that exists: 0 is the system partition, 1 to 16 hold user data.
pub const MAX_PARTITION: u8 = 16;

/// The longest reply body either side sends or accepts, in bytes (512 MiB).
pub const MAX_BODY: u32 = 512 * 1024 * 1024;

/// The first byte of a RESP request (`*`). It is no opcode and stays reserved.
pub const RESERVED_RESP: u8 = b'*';

/// Which of the two framings a connection speaks. It is settled by ALPN and never changes afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// The original's framing, without request ids.
    V1,
    /// Our own: request ids, autocommit, positions in commit replies and stable error codes.
    Turnstone2,
}

impl Dialect {
    /// The dialect that a negotiated ALPN protocol stands for; no protocol means [`Dialect::V1`].
    ///
    /// `None` for a protocol that is neither: the caller must close such a connection.
    pub fn from_alpn(protocol: Option<&[u8]>) -> Option<Dialect> {
        match protocol {
            None => Some(Dialect::V1),
            Some(name) if name == ALPN_TURNSTONE2 => Some(Dialect::Turnstone2),
            Some(_) => None,
        }
    }

    /// The name used in logs and in `stat`.
    pub fn name(self) -> &'static str {
        match self {
            Dialect::V1 => "v1",
            Dialect::Turnstone2 => "turnstone/2",
        }
    }
}

/// The partition that an ALPN entry hints at: `turnstone-p7` gives 7.
///
/// The number is plain decimal without sign or leading zeros and names a partition that can exist (at most
/// [`MAX_PARTITION`]); anything else is no hint, so that a garbled one costs a move and not the connection.
pub fn hint_from_alpn(protocol: &[u8]) -> Option<u8> {
    partition_from_decimal(protocol.strip_prefix(ALPN_HINT_PREFIX)?)
}

/// The ALPN entry that hints at `partition`.
pub fn alpn_for_hint(partition: u8) -> Vec<u8> {
    let mut name = ALPN_HINT_PREFIX.to_vec();
    name.extend_from_slice(partition.to_string().as_bytes());
    name
}

/// Reads a partition's name as `Select` carries it: plain decimal, no sign, no leading zeros, at most [`MAX_PARTITION`].
///
/// Whether that partition exists on this node is the caller's question.
pub fn partition_from_decimal(text: &[u8]) -> Option<u8> {
    let number = match text {
        [digit @ b'0'..=b'9'] => digit - b'0',
        // Two digits at most, so the sum stays under 100 and cannot overflow.
        [tens @ b'1'..=b'9', ones @ b'0'..=b'9'] => (tens - b'0') * 10 + (ones - b'0'),
        _ => return None,
    };
    (number <= MAX_PARTITION).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_are_strict_decimal() {
        for partition in 0..=MAX_PARTITION {
            assert_eq!(hint_from_alpn(&alpn_for_hint(partition)), Some(partition));
        }
        let refused: [&[u8]; 13] = [
            b"turnstone-p",
            b"turnstone-p07",
            b"turnstone-p00",
            b"turnstone-p17",
            b"turnstone-p99",
            b"turnstone-p116",
            b"turnstone-p+7",
            b"turnstone-p-1",
            b"turnstone-p7 ",
            b"turnstone-p7x",
            b"turnstone/2",
            b"Turnstone-p7",
            b"",
        ];
        for name in refused {
            assert_eq!(hint_from_alpn(name), None, "{}", String::from_utf8_lossy(name));
        }
    }

    #[test]
    fn dialect_follows_alpn() {
        assert_eq!(Dialect::from_alpn(None), Some(Dialect::V1));
        assert_eq!(Dialect::from_alpn(Some(b"turnstone/2")), Some(Dialect::Turnstone2));
        assert_eq!(Dialect::from_alpn(Some(b"turnstone-p7")), None);
        assert_eq!(Dialect::from_alpn(Some(b"h2")), None);
    }
}
