//! A session, pure: bytes in, one step at a time out. It knows who speaks, which dialect, what is selected and whether a
//! transaction is open; it knows nothing of sockets, partitions or waiting.
//!
//! Checks come in a fixed order: length, role, opcode, what is allowed inside a transaction, partition 0, transaction
//! required, shape of the payload. All but the last need the header alone: what they refuse is answered before the payload comes,
//! and that is skipped as it arrives. A refused frame costs one reply and leaves the connection usable.

use crate::tls::Role;
use crate::wire::{Dialect, ErrorCode, Opcode, Request, WireError, frame, partition_from_decimal, permission};

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// The next frame is not complete.
    NeedMore,
    /// Answer this error.
    Refuse {
        /// The frame's id.
        id: u32,
        /// What is wrong.
        error: WireError,
    },
    /// Run this request.
    Run {
        /// The frame's id.
        id: u32,
        /// What is asked.
        request: Request<'a>,
    },
    /// Run this request of many keys, which is too long to be looked at in one go: its payload ends where what is done with ends.
    RunLong {
        /// The frame's id.
        id: u32,
        /// `MGet`, `MSet` or `MDel`.
        opcode: Opcode,
        /// Bytes of its payload.
        length: usize,
    },
    /// Close the connection, without a reply.
    Quit,
}

/// From so many bytes on a request of many keys is run piece by piece.
const LONG: usize = 16 << 10;

/// One connection's session.
#[derive(Debug, Clone)]
pub struct Session {
    /// How its frames look.
    pub dialect: Dialect,
    /// What its certificate entitles it to; `None` entitles to nothing.
    pub role: Option<Role>,
    /// The selected partition.
    pub selected: u8,
    /// Whether a transaction is open.
    pub in_transaction: bool,
    partitions: u8,
    max_request: u32,
    /// From so many bytes on a request of many keys is run piece by piece.
    pub long: usize,
    skip: u64,
}

impl Session {
    /// A new session; partition 0 is selected.
    pub fn new(dialect: Dialect, role: Option<Role>, partitions: u8, max_request: u32) -> Session {
        Session { dialect, role, selected: 0, in_transaction: false, partitions, max_request, long: LONG, skip: 0 }
    }

    /// Whether the rest of a frame that is too long is being skipped.
    pub fn is_skipping(&self) -> bool {
        self.skip > 0
    }

    /// How long the frame at the front of `input` is, if its header is there and it may be gathered.
    pub fn announced(&self, input: &[u8]) -> usize {
        let header = frame::decode_header(self.dialect, input).filter(|_| self.skip == 0);
        header.map_or(0, |header| self.dialect.header_bytes() + header.length.min(self.max_request) as usize)
    }

    /// The frame at the front of `input` is refused although its header lets it in: what comes of its payload is skipped. Answers how
    /// many bytes are done with, and the frame's id.
    pub fn skip(&mut self, input: &[u8]) -> Option<(usize, u32)> {
        let header = frame::decode_header(self.dialect, input).filter(|_| self.skip == 0)?;
        self.skip = u64::from(header.length);
        Some((self.dialect.header_bytes(), header.id))
    }

    /// Looks at the front of `input`; answers how many bytes are done with, and what to do.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> (usize, Step<'a>) {
        if self.skip > 0 {
            let n = self.skip.min(input.len() as u64) as usize;
            self.skip -= n as u64;
            if n == 0 || self.skip > 0 {
                return (n, Step::NeedMore);
            }
            let (more, step) = self.next(&input[n..]);
            return (n + more, step);
        }
        let Some(header) = frame::decode_header(self.dialect, input) else { return (0, Step::NeedMore) };
        let start = self.dialect.header_bytes();
        if header.length > self.max_request {
            self.skip = u64::from(if cfg!(feature = "planted") { header.length & 0xffff } else { header.length });
            let limit = self.max_request;
            let text = format!("the request has {} bytes, the limit is {limit} (max_request_size)", header.length);
            let error = WireError::new(ErrorCode::RequestTooLarge, text);
            return (start, Step::Refuse { id: header.id, error });
        }
        let opcode = match self.admit(header.tag, header.length) {
            Ok(opcode) => opcode,
            Err(error) => {
                self.skip = u64::from(header.length);
                return (start, Step::Refuse { id: header.id, error });
            }
        };
        let end = start + header.length as usize;
        let Some(payload) = input.get(start..end) else { return (0, Step::NeedMore) };
        if payload.len() >= self.long
            && self.selected != 0
            && matches!(opcode, Opcode::MGet | Opcode::MSet | Opcode::MDel)
        {
            return (end, Step::RunLong { id: header.id, opcode, length: payload.len() });
        }
        let step = match self.parse(opcode, payload) {
            Ok(Request::Quit) => Step::Quit,
            Ok(request) => Step::Run { id: header.id, request },
            Err(error) => Step::Refuse { id: header.id, error },
        };
        (end, step)
    }

    /// What the header alone tells.
    fn admit(&self, tag: u8, length: u32) -> Result<Opcode, WireError> {
        let refuse = |code, text: &str| Err(WireError::new(code, text));
        let Some(role) = self.role else {
            return refuse(ErrorCode::Denied, "the certificate names no role; use one issued by turnstone --init");
        };
        let opcode = Opcode::from_byte(tag).filter(|opcode| self.dialect == Dialect::Turnstone2 || in_v1(*opcode));
        let opcode = match opcode {
            Some(opcode) if permission::allowed(role, opcode) => opcode,
            None if role == Role::Admin || role == Role::Server => {
                return refuse(ErrorCode::UnknownOpcode, &unknown(tag));
            }
            None if matches!(tag, 0x50..=0x56) => return refuse(ErrorCode::UnknownOpcode, &unknown(tag)),
            _ => return refuse(ErrorCode::Denied, &format!("role {role} may not use opcode 0x{tag:02x}")),
        };
        if self.in_transaction && !in_transaction(opcode) {
            let text = format!("{} is not allowed inside a transaction; commit or abort first", opcode.name());
            return refuse(ErrorCode::NotInTx, &text);
        }
        if self.selected == 0 && writes(opcode) {
            return refuse(ErrorCode::ReadOnly, "partition 0 is read-only; select one of the others first");
        }
        let needs = match self.dialect {
            Dialect::V1 => of_transaction(opcode),
            Dialect::Turnstone2 => opcode == Opcode::Commit,
        };
        if needs && !self.in_transaction {
            return refuse(ErrorCode::TxRequired, "no transaction is open; begin one first");
        }
        if opcode == Opcode::Begin && self.in_transaction {
            return refuse(ErrorCode::TxOpen, "a transaction is open already; commit or abort it first");
        }
        if length > SMALL_MAX && !carries_data(opcode) {
            let text = format!("the request has {length} bytes, {} takes at most {SMALL_MAX}", opcode.name());
            return refuse(ErrorCode::RequestTooLarge, &text);
        }
        Ok(opcode)
    }

    fn parse<'a>(&self, opcode: Opcode, payload: &'a [u8]) -> Result<Request<'a>, WireError> {
        /// As much of a name is repeated to whoever sent it.
        const SHOWN: usize = 32;
        let count = payload.first_chunk().map_or(0, |count| u32::from_be_bytes(*count));
        if opcode == Opcode::MGet && self.selected == 0 && count > NODE_KEYS_MAX {
            let text = format!("{count} keys are asked for, partition 0 answers {NODE_KEYS_MAX} at once");
            return Err(WireError::new(ErrorCode::RequestTooLarge, text));
        }
        let request = Request::parse(opcode, payload)?;
        if let Request::Select { name } = &request
            && partition_from_decimal(name).is_none_or(|p| p > self.partitions)
        {
            let more = if name.len() > SHOWN { "..." } else { "" };
            let name = name[..name.len().min(SHOWN)].escape_ascii();
            let text = format!("there is no partition \"{name}{more}\"; they are 0 to {}", self.partitions);
            return Err(WireError::new(ErrorCode::NoSuchPartition, text));
        }
        Ok(request)
    }
}

/// Longest payload of a request that carries no keys or values of a user's, bytes.
const SMALL_MAX: u32 = 64 << 10;

/// Keys of partition 0 that one request may ask for: each is made anew, and there are about a dozen.
const NODE_KEYS_MAX: u32 = 64;

fn carries_data(opcode: Opcode) -> bool {
    matches!(opcode, Opcode::Get | Opcode::Set | Opcode::Del | Opcode::MGet | Opcode::MSet | Opcode::MDel)
}

fn unknown(tag: u8) -> String {
    match tag {
        0x50..=0x56 => format!(
            "opcode 0x{tag:02x}: the original's replication and change streams are not spoken here; followers and \
             `turnstone --mode cdc` have their own"
        ),
        _ => format!("opcode 0x{tag:02x} is unknown"),
    }
}

fn in_v1(opcode: Opcode) -> bool {
    opcode.available_in(Dialect::V1)
}

fn writes(opcode: Opcode) -> bool {
    matches!(
        opcode,
        Opcode::Set
            | Opcode::Del
            | Opcode::MSet
            | Opcode::MDel
            | Opcode::Checkpoint
            | Opcode::FlushDb
            | Opcode::Promote
            | Opcode::StepDown
            | Opcode::Hold
            | Opcode::Release
            | Opcode::ReadLog
            | Opcode::Replication
            | Opcode::Wait
    )
}

fn of_transaction(opcode: Opcode) -> bool {
    matches!(
        opcode,
        Opcode::Get | Opcode::Set | Opcode::Del | Opcode::MGet | Opcode::MSet | Opcode::MDel | Opcode::Commit
    )
}

fn in_transaction(opcode: Opcode) -> bool {
    of_transaction(opcode) || matches!(opcode, Opcode::Ping | Opcode::Begin | Opcode::Abort | Opcode::Quit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![opcode];
        bytes.extend((payload.len() as u32).to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn session(role: Role) -> Session {
        Session::new(Dialect::V1, Some(role), 16, 1024)
    }

    fn code(session: &mut Session, opcode: u8, payload: &[u8]) -> Option<ErrorCode> {
        let bytes = frame(opcode, payload);
        let (used, step) = session.next(&bytes);
        let code = if let Step::Refuse { error, .. } = step { Some(error.code) } else { None };
        if session.is_skipping() {
            assert_eq!(session.next(&bytes[used..]), (bytes.len() - used, Step::NeedMore));
        }
        code
    }

    #[test]
    fn the_order_of_checks_is_that_of_the_dialect() {
        let mut s = session(Role::Client);
        assert_eq!(code(&mut s, 0x77, b""), Some(ErrorCode::Denied));
        assert_eq!(code(&mut session(Role::Admin), 0x77, b""), Some(ErrorCode::UnknownOpcode));
        assert_eq!(code(&mut s, 0x03, b""), Some(ErrorCode::ReadOnly), "partition 0 before the transaction");
        s.selected = 1;
        assert_eq!(code(&mut s, 0x03, b""), Some(ErrorCode::TxRequired), "the transaction before the shape");
        s.in_transaction = true;
        assert_eq!(code(&mut s, 0x03, b""), Some(ErrorCode::Malformed));
        assert_eq!(code(&mut s, 0x10, b""), Some(ErrorCode::TxOpen));
        assert_eq!(code(&mut s, 0x05, b"2"), Some(ErrorCode::NotInTx));
        s.in_transaction = false;
        assert_eq!(code(&mut s, 0x05, b"17"), Some(ErrorCode::NoSuchPartition));
        assert_eq!(code(&mut s, 0x05, b"16"), None);
        let mut nobody = Session::new(Dialect::V1, None, 16, 1024);
        assert_eq!(code(&mut nobody, 0x01, b""), Some(ErrorCode::Denied));
    }

    #[test]
    fn an_oversized_frame_is_refused_at_once_and_skipped_as_it_comes() {
        let mut s = session(Role::Client);
        let mut bytes = frame(0x01, &[7; 2000]);
        bytes.extend(frame(0x01, b""));
        let (used, step) = s.next(&bytes[..5]);
        assert_eq!(used, 5);
        assert!(matches!(step, Step::Refuse { error: WireError { code: ErrorCode::RequestTooLarge, .. }, .. }));
        let (used, step) = s.next(&bytes[5..1000]);
        assert_eq!((used, step), (995, Step::NeedMore));
        let (used, step) = s.next(&bytes[1000..]);
        assert_eq!(used, bytes.len() - 1000);
        assert_eq!(step, Step::Run { id: 0, request: Request::Ping });
    }

    #[test]
    fn any_cut_of_the_stream_gives_the_same_steps() {
        let mut bytes = frame(0x01, b"x");
        bytes.extend(frame(0x05, b"3"));
        for cut in 0..bytes.len() {
            let (mut s, mut at, mut steps) = (session(Role::Client), 0, 0);
            for end in [cut, bytes.len()] {
                loop {
                    let (used, step) = s.next(&bytes[at..end]);
                    at += used;
                    if step == Step::NeedMore {
                        break;
                    }
                    steps += 1;
                }
            }
            assert_eq!((at, steps), (bytes.len(), 2), "cut at {cut}");
        }
    }
}
