//! The frame header of both dialects. Requests carry an opcode in the tag, replies a status byte.

use std::fmt;

use super::Dialect;

/// Bytes of a v1 header: tag and length.
pub const V1_HEADER_BYTES: usize = 5;

/// Bytes of a `turnstone/2` header: tag, length and request id.
pub const TURNSTONE2_HEADER_BYTES: usize = 9;

/// A decoded frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The opcode of a request or the status byte of a reply, as it came.
    pub tag: u8,
    /// Bytes of payload that follow the header.
    pub length: u32,
    /// The request id; 0 in the v1 dialect, which has none.
    pub id: u32,
}

/// A payload whose length does not fit the frame's 32-bit field. Nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameTooLarge {
    /// The payload's length in bytes.
    pub length: u64,
}

impl fmt::Display for FrameTooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a payload of {} bytes does not fit one frame (limit {} bytes)", self.length, u32::MAX)
    }
}

impl std::error::Error for FrameTooLarge {}

impl Dialect {
    /// Bytes of a frame header in this dialect.
    pub const fn header_bytes(self) -> usize {
        match self {
            Dialect::V1 => V1_HEADER_BYTES,
            Dialect::Turnstone2 => TURNSTONE2_HEADER_BYTES,
        }
    }
}

/// Reads the header at the start of `bytes`; `None` while too few bytes are there.
///
/// Every sequence of enough bytes is a header: judging tag and length is the caller's work.
pub fn decode_header(dialect: Dialect, bytes: &[u8]) -> Option<Header> {
    let (&tag, rest) = bytes.split_first()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = u32::from_be_bytes(*length);
    let id = match dialect {
        Dialect::V1 => 0,
        Dialect::Turnstone2 => u32::from_be_bytes(*rest.first_chunk::<4>()?),
    };
    Some(Header { tag, length, id })
}

/// Appends one frame, its payload given in parts so that callers need not join them first.
///
/// On an error `out` is unchanged.
pub fn encode(dialect: Dialect, tag: u8, id: u32, parts: &[&[u8]], out: &mut Vec<u8>) -> Result<(), FrameTooLarge> {
    let total: u64 = parts.iter().map(|part| part.len() as u64).sum();
    let length = u32::try_from(total).map_err(|_| FrameTooLarge { length: total })?;
    out.reserve(dialect.header_bytes() + length as usize);
    encode_header(dialect, Header { tag, length, id }, out);
    for part in parts {
        out.extend_from_slice(part);
    }
    Ok(())
}

/// Appends a header alone, for callers that write the payload themselves afterwards.
pub fn encode_header(dialect: Dialect, header: Header, out: &mut Vec<u8>) {
    out.push(header.tag);
    out.extend_from_slice(&header.length.to_be_bytes());
    if dialect == Dialect::Turnstone2 {
        out.extend_from_slice(&header.id.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_header_is_tag_and_length() {
        let mut out = Vec::new();
        encode(Dialect::V1, 0x05, 77, &[b"1"], &mut out).unwrap();
        assert_eq!(out, [0x05, 0, 0, 0, 1, b'1']);
        assert_eq!(decode_header(Dialect::V1, &out), Some(Header { tag: 5, length: 1, id: 0 }));
    }

    #[test]
    fn turnstone2_header_has_an_id_that_length_does_not_count() {
        let mut out = Vec::new();
        encode(Dialect::Turnstone2, 0x02, 0x0102_0304, &[b"ke", b"", b"y"], &mut out).unwrap();
        assert_eq!(out, [0x02, 0, 0, 0, 3, 1, 2, 3, 4, b'k', b'e', b'y']);
        let header = decode_header(Dialect::Turnstone2, &out);
        assert_eq!(header, Some(Header { tag: 2, length: 3, id: 0x0102_0304 }));
    }

    #[test]
    fn a_header_needs_all_its_bytes() {
        let bytes = [0xff; 16];
        for dialect in [Dialect::V1, Dialect::Turnstone2] {
            for n in 0..bytes.len() {
                let decoded = decode_header(dialect, &bytes[..n]);
                assert_eq!(decoded.is_some(), n >= dialect.header_bytes(), "{dialect:?} with {n} bytes");
            }
        }
        let full = decode_header(Dialect::Turnstone2, &bytes).unwrap();
        assert_eq!(full, Header { tag: 0xff, length: u32::MAX, id: u32::MAX });
    }

    #[test]
    fn frames_append_behind_what_is_there() {
        let mut out = b"before".to_vec();
        encode(Dialect::V1, 1, 0, &[], &mut out).unwrap();
        assert_eq!(out, b"before\x01\0\0\0\0");
    }
}
