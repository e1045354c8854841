//! Replies: encoding for the server, decoding for clients.
//!
//! | status | v1 body | `turnstone/2` body |
//! |---|---|---|
//! | `Ok` | the result | the result; commits and autocommits: a [`Position`] |
//! | `NotFound` | empty | empty |
//! | `TxRequired`, `TxOpen` | empty | `u16` code, text |
//! | any other | text | `u16` code, text |

use super::frame::{self, Header};
use super::position::POSITION_BYTES;
use super::{Dialect, ErrorCode, MAX_BODY, Position, Status};

/// The length that stands for an absent key in the body of `MGet`.
pub const ABSENT: u32 = u32::MAX;

/// The longest error text that is sent, in bytes; longer ones are cut at a character.
pub const MAX_ERROR_TEXT: usize = 4096;

/// A decoded reply, its body borrowed from the receive buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply<'a> {
    /// The status byte as it came; [`Status::from_byte`] names it.
    pub status: u8,
    /// The id of the request it answers; 0 in the v1 dialect and for what the server sends unasked.
    pub id: u32,
    /// The body.
    pub body: &'a [u8],
}

impl<'a> Reply<'a> {
    /// Reads the reply at the start of `bytes` and says how many bytes it took; `None` while it is incomplete.
    pub fn decode(dialect: Dialect, bytes: &'a [u8]) -> Option<(Reply<'a>, usize)> {
        let header = frame::decode_header(dialect, bytes)?;
        let start = dialect.header_bytes();
        let end = start.checked_add(header.length as usize)?;
        let body = bytes.get(start..end)?;
        Some((Reply { status: header.tag, id: header.id, body }, end))
    }
}

/// Appends a successful reply, its body given in parts.
///
/// A body over [`MAX_BODY`] becomes an error reply that says so: the request must not stay unanswered.
pub fn encode_ok(dialect: Dialect, id: u32, parts: &[&[u8]], out: &mut Vec<u8>) {
    let total: u64 = parts.iter().map(|part| part.len() as u64).sum();
    if refuse_large(dialect, id, total, out) {
        return;
    }
    encode_status(dialect, Status::Ok, id, parts, out);
}

/// Appends an error reply in the shape that the dialect gives it.
pub fn encode_error(dialect: Dialect, id: u32, code: ErrorCode, text: &str, out: &mut Vec<u8>) {
    let status = code.v1_status();
    let text = &text.as_bytes()[..text.floor_char_boundary(MAX_ERROR_TEXT)];
    match dialect {
        Dialect::V1 if matches!(status, Status::TxRequired | Status::TxOpen) => {
            encode_status(dialect, status, id, &[], out);
        }
        Dialect::V1 => encode_status(dialect, status, id, &[text], out),
        Dialect::Turnstone2 => encode_status(dialect, status, id, &[&code.number().to_be_bytes(), text], out),
    }
}

/// Appends the reply for a key that does not exist: status and nothing else, in both dialects.
pub fn encode_not_found(dialect: Dialect, id: u32, out: &mut Vec<u8>) {
    encode_status(dialect, Status::NotFound, id, &[], out);
}

/// Appends the reply of a commit, or of a write that committed by itself: empty in v1, the position in `turnstone/2`.
pub fn encode_committed(dialect: Dialect, id: u32, position: Position, out: &mut Vec<u8>) {
    match dialect {
        Dialect::V1 => encode_status(dialect, Status::Ok, id, &[], out),
        Dialect::Turnstone2 => encode_status(dialect, Status::Ok, id, &[&position.to_bytes()], out),
    }
}

/// Appends the reply of `MDel`: the count of keys that existed, and behind it in `turnstone/2`, when the request
/// committed by itself, the position.
pub fn encode_deleted(dialect: Dialect, id: u32, count: u32, position: Option<Position>, out: &mut Vec<u8>) {
    let count = count.to_be_bytes();
    match (dialect, position) {
        (Dialect::Turnstone2, Some(position)) => {
            encode_status(dialect, Status::Ok, id, &[&count, &position.to_bytes()], out);
        }
        _ => encode_status(dialect, Status::Ok, id, &[&count], out),
    }
}

/// Appends the reply of `MGet`, one entry per key asked for, `None` for an absent one.
pub fn encode_mget<V: AsRef<[u8]>>(dialect: Dialect, id: u32, values: &[Option<V>], out: &mut Vec<u8>) {
    let bytes: u64 = values.iter().flatten().map(|value| value.as_ref().len() as u64).sum();
    let total = 4 + 4 * values.len() as u64 + bytes;
    if refuse_large(dialect, id, total, out) {
        return;
    }
    // Under MAX_BODY, so every length below fits 32 bits.
    out.reserve(dialect.header_bytes() + total as usize);
    frame::encode_header(dialect, Header { tag: Status::Ok.byte(), length: total as u32, id }, out);
    out.extend_from_slice(&(values.len() as u32).to_be_bytes());
    for value in values {
        match value {
            None => out.extend_from_slice(&ABSENT.to_be_bytes()),
            Some(value) => {
                out.extend_from_slice(&(value.as_ref().len() as u32).to_be_bytes());
                out.extend_from_slice(value.as_ref());
            }
        }
    }
}

/// The reply of a long `MGet`, made piece by piece: one buffer that grows would be copied as a whole now and then.
pub struct LongMGet {
    dialect: Dialect,
    id: u32,
    total: u64,
    pieces: Vec<Vec<u8>>,
}

impl LongMGet {
    /// Bytes of a piece, about: one value more than this is still in it.
    const PIECE: usize = 256 << 10;

    /// A reply of `count` entries, which follow.
    pub fn begin(dialect: Dialect, id: u32, count: usize) -> LongMGet {
        let mut head = Vec::new();
        frame::encode_header(dialect, Header { tag: Status::Ok.byte(), length: 0, id }, &mut head);
        head.extend_from_slice(&(count as u32).to_be_bytes());
        LongMGet { dialect, id, total: 4, pieces: vec![head] }
    }

    /// The next entry.
    pub fn push(&mut self, value: Option<&[u8]>) {
        let value_bytes = value.unwrap_or_default();
        if self.pieces.last().is_none_or(|piece| piece.len() + value_bytes.len() >= Self::PIECE) {
            self.pieces.push(Vec::with_capacity(Self::PIECE.max(4 + value_bytes.len())));
        }
        let Some(piece) = self.pieces.last_mut() else { unreachable!("there is one piece at least") };
        let length = value.map_or(ABSENT, |value| value.len() as u32);
        piece.extend_from_slice(&length.to_be_bytes());
        piece.extend_from_slice(value_bytes);
        self.total += 4 + value_bytes.len() as u64;
    }

    /// The whole reply, in pieces; an error in its place if it is too large to be sent.
    pub fn finish(mut self) -> Vec<Vec<u8>> {
        let mut refused = Vec::new();
        if refuse_large(self.dialect, self.id, self.total, &mut refused) {
            return vec![refused];
        }
        let mut head = Vec::new();
        let length = self.total as u32;
        frame::encode_header(self.dialect, Header { tag: Status::Ok.byte(), length, id: self.id }, &mut head);
        if let Some(first) = self.pieces.first_mut() {
            first[..head.len()].copy_from_slice(&head);
        }
        self.pieces
    }
}

/// Reads the body of an `MGet` reply; `None` if it does not have that shape.
pub fn decode_mget(body: &[u8]) -> Option<Vec<Option<&[u8]>>> {
    let (count, mut rest) = body.split_first_chunk::<4>()?;
    let count = u32::from_be_bytes(*count);
    // An entry is at least its length: a count that cannot fit must not be allocated for.
    if u64::from(count) * 4 > rest.len() as u64 {
        return None;
    }
    let mut values = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        rest = behind;
        let length = u32::from_be_bytes(*length);
        if length == ABSENT {
            values.push(None);
            continue;
        }
        let (value, behind) = match cfg!(feature = "planted") {
            true => rest.split_at(length as usize),
            false => rest.split_at_checked(length as usize)?,
        };
        values.push(Some(value));
        rest = behind;
    }
    rest.is_empty().then_some(values)
}

/// Reads the body of an `MDel` reply: the count, and the position if it is there.
pub fn decode_deleted(body: &[u8]) -> Option<(u32, Option<Position>)> {
    let (count, rest) = body.split_first_chunk::<4>()?;
    let position = match rest.len() {
        0 => None,
        POSITION_BYTES => Some(Position::from_bytes(rest)?),
        _ => return None,
    };
    Some((u32::from_be_bytes(*count), position))
}

/// Reads the body of an error reply: the code where the dialect carries one that this version knows, and the text.
pub fn decode_error(dialect: Dialect, body: &[u8]) -> (Option<ErrorCode>, String) {
    let (code, text) = match (dialect, body.split_first_chunk::<2>()) {
        (Dialect::Turnstone2, Some((number, text))) => (ErrorCode::from_u16(u16::from_be_bytes(*number)), text),
        _ => (None, body),
    };
    (code, String::from_utf8_lossy(text).into_owned())
}

fn refuse_large(dialect: Dialect, id: u32, total: u64, out: &mut Vec<u8>) -> bool {
    let large = total > u64::from(MAX_BODY);
    if large {
        let text = format!("the reply would have {total} bytes, the limit is {MAX_BODY}; ask for less at once");
        encode_error(dialect, id, ErrorCode::RequestTooLarge, &text, out);
    }
    large
}

/// Only for bodies that are known to be at most [`MAX_BODY`].
fn encode_status(dialect: Dialect, status: Status, id: u32, parts: &[&[u8]], out: &mut Vec<u8>) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.reserve(dialect.header_bytes() + length);
    frame::encode_header(dialect, Header { tag: status.byte(), length: length as u32, id }, out);
    for part in parts {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reply_in_pieces_is_the_same_reply() {
        let values: Vec<Option<Vec<u8>>> = (0..3_000usize)
            .map(|n| (n % 3 > 0).then(|| vec![n as u8; [0, 7, 400, 300_000][n % 4 % (1 + n / 2_990 * 3)]]))
            .collect();
        for dialect in [Dialect::V1, Dialect::Turnstone2] {
            let mut whole = Vec::new();
            encode_mget(dialect, 5, &values, &mut whole);
            let mut long = LongMGet::begin(dialect, 5, values.len());
            values.iter().for_each(|value| long.push(value.as_deref()));
            assert!(long.finish().concat() == whole, "{dialect:?}");
        }
    }

    const POSITION: Position = Position { partition: 3, epoch: 1, epoch_id: 42, version: 9 };

    fn encoded(write: impl Fn(Dialect, &mut Vec<u8>)) -> [Vec<u8>; 2] {
        [Dialect::V1, Dialect::Turnstone2].map(|dialect| {
            let mut out = Vec::new();
            write(dialect, &mut out);
            out
        })
    }

    #[test]
    fn ok_is_status_and_body() {
        let [v1, two] = encoded(|dialect, out| encode_ok(dialect, 7, &[b"PO", b"NG"], out));
        assert_eq!(v1, b"\0\0\0\0\x04PONG");
        assert_eq!(two, b"\0\0\0\0\x04\0\0\0\x07PONG");
        let (reply, used) = Reply::decode(Dialect::Turnstone2, &two).unwrap();
        assert_eq!((reply.status, reply.id, reply.body, used), (0, 7, b"PONG".as_slice(), two.len()));
    }

    #[test]
    fn a_partial_reply_is_none_and_a_second_one_stays() {
        let [v1, two] = encoded(|dialect, out| {
            encode_ok(dialect, 1, &[b"abc"], out);
            encode_not_found(dialect, 2, out);
        });
        for (dialect, bytes) in [(Dialect::V1, v1), (Dialect::Turnstone2, two)] {
            let first = dialect.header_bytes() + 3;
            for cut in 0..first {
                assert_eq!(Reply::decode(dialect, &bytes[..cut]), None);
            }
            let (_, used) = Reply::decode(dialect, &bytes).unwrap();
            assert_eq!(used, first);
            let (second, _) = Reply::decode(dialect, &bytes[used..]).unwrap();
            assert_eq!((second.status, second.body), (2, b"".as_slice()));
        }
    }

    #[test]
    fn v1_errors_are_text_except_the_three_empty_ones() {
        for code in ErrorCode::ALL {
            let [v1, two] = encoded(|dialect, out| encode_error(dialect, 5, *code, "why", out));
            let (reply, _) = Reply::decode(Dialect::V1, &v1).unwrap();
            assert_eq!(reply.status, code.v1_status().byte());
            let empty = matches!(code, ErrorCode::TxRequired | ErrorCode::TxOpen);
            assert_eq!(reply.body, if empty { b"".as_slice() } else { b"why" }, "{code}");

            let (reply, _) = Reply::decode(Dialect::Turnstone2, &two).unwrap();
            assert_eq!((reply.status, reply.id), (code.v1_status().byte(), 5));
            assert_eq!(decode_error(Dialect::Turnstone2, reply.body), (Some(*code), "why".to_owned()));
        }
    }

    #[test]
    fn long_error_texts_are_cut_at_a_character() {
        let mut out = Vec::new();
        encode_error(Dialect::V1, 0, ErrorCode::Malformed, &format!("x{}", "é".repeat(5000)), &mut out);
        let (reply, _) = Reply::decode(Dialect::V1, &out).unwrap();
        assert_eq!(reply.body.len(), MAX_ERROR_TEXT - 1);
        assert!(std::str::from_utf8(reply.body).is_ok());
    }

    #[test]
    fn commits_carry_a_position_only_in_turnstone2() {
        let [v1, two] = encoded(|dialect, out| encode_committed(dialect, 1, POSITION, out));
        assert_eq!(v1, b"\0\0\0\0\0");
        assert_eq!(Position::from_bytes(&two[9..]), Some(POSITION));

        let [v1, two] = encoded(|dialect, out| encode_deleted(dialect, 1, 6, Some(POSITION), out));
        assert_eq!(decode_deleted(&v1[5..]), Some((6, None)));
        assert_eq!(decode_deleted(&two[9..]), Some((6, Some(POSITION))));
        let [_, in_transaction] = encoded(|dialect, out| encode_deleted(dialect, 1, 6, None, out));
        assert_eq!(decode_deleted(&in_transaction[9..]), Some((6, None)));
        assert_eq!(decode_deleted(&two[9..two.len() - 1]), None);
    }

    #[test]
    fn mget_body_matches_the_original() {
        let [v1, two] =
            encoded(|dialect, out| encode_mget(dialect, 1, &[Some(b"v1".as_slice()), None, Some(b"")], out));
        let expected = [0, 0, 0, 0, 0x12, 0, 0, 0, 3, 0, 0, 0, 2, b'v', b'1', 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
        assert_eq!(v1, expected);
        let values = decode_mget(&two[9..]).unwrap();
        assert_eq!(values, [Some(b"v1".as_slice()), None, Some(b"")]);
    }

    #[test]
    fn broken_mget_bodies_are_none() {
        let [v1, _] = encoded(|dialect, out| encode_mget(dialect, 0, &[Some(b"abc"), None], out));
        let body = &v1[5..];
        for cut in 0..body.len() {
            assert_eq!(decode_mget(&body[..cut]), None);
        }
        assert_eq!(decode_mget(&[body, &[0]].concat()), None);
        assert_eq!(decode_mget(&[0xff; 12]), None);
    }

    #[test]
    fn a_body_over_the_limit_becomes_a_typed_error() {
        let part = vec![0; 1 << 20];
        let parts = vec![part.as_slice(); 513];
        let mut out = Vec::new();
        encode_ok(Dialect::Turnstone2, 3, &parts, &mut out);
        let (reply, _) = Reply::decode(Dialect::Turnstone2, &out).unwrap();
        assert_eq!((reply.status, reply.id), (Status::TooLarge.byte(), 3));
        assert_eq!(decode_error(Dialect::Turnstone2, reply.body).0, Some(ErrorCode::RequestTooLarge));

        let values = vec![Some(part.as_slice()); 512];
        let mut out = Vec::new();
        encode_mget(Dialect::V1, 0, &values, &mut out);
        assert_eq!(out[0], Status::TooLarge.byte());
    }

    #[test]
    fn an_unknown_code_keeps_its_text() {
        assert_eq!(decode_error(Dialect::Turnstone2, b"\xff\xfehello"), (None, "hello".to_owned()));
        assert_eq!(decode_error(Dialect::Turnstone2, b"\0"), (None, "\0".to_owned()));
        assert_eq!(decode_error(Dialect::V1, b"hello"), (None, "hello".to_owned()));
    }
}
