//! A session: the input as the stream of one connection, given as a whole, byte by byte, and in pieces of any length.
//!
//! All three give the same steps; these are the frames that a plain walk over the stream finds, each judged within the role
//! of the connection; and what waits for more is less than a frame of the longest allowed length.

use super::Script;
use super::frames::samples;
use crate::sim::Rng;
use turnstone_net::session::{Session, Step};
use turnstone_net::tls::Role;
use turnstone_net::wire::{
    Dialect, ErrorCode, Opcode, Reply, Request, frame, partition_from_decimal, permission, reply,
};

/// A step that owns what it says.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Refused(u32, ErrorCode, String),
    Run(u32, Opcode, Vec<u8>),
    Quit,
}

/// What a plain walk over the stream finds.
enum Found {
    TooLong(u32),
    Whole(u32, u8),
    /// The stream ends within it: its header may have been enough to refuse it.
    Begun(u32),
}

struct Connection {
    dialect: Dialect,
    role: Option<Role>,
    partitions: u8,
    max_request: u32,
}

/// The target.
pub fn run(input: &[u8]) {
    let mut script = Script(input);
    let flags = script.u8();
    let connection = Connection {
        dialect: if flags & 1 == 0 { Dialect::V1 } else { Dialect::Turnstone2 },
        role: [Some(Role::Admin), Some(Role::Client), Some(Role::Server), Some(Role::Cdc), None]
            [usize::from(flags >> 1) % 5],
        partitions: script.u8() % 17,
        max_request: u32::from(script.u16()) % 1024,
    };
    let rng = Rng::new(script.u64());
    let stream = script.0;
    let whole = connection.drive(stream, || stream.len().max(1));
    let pieces = connection.drive(stream, || 1 + rng.below(1 << rng.below(9)) as usize);
    assert_eq!(whole, pieces, "cut into pieces");
    if stream.len() <= 256 {
        assert_eq!(whole, connection.drive(stream, || 1), "byte by byte");
    }
    connection.compare(&whole, stream);
}

impl Connection {
    fn drive(&self, stream: &[u8], mut piece: impl FnMut() -> usize) -> Vec<Said> {
        let mut session = Session::new(self.dialect, self.role, self.partitions, self.max_request);
        let mut said = Vec::new();
        let (mut taken, mut arrived) = (0, 0);
        while arrived < stream.len() {
            arrived = stream.len().min(arrived + piece());
            loop {
                let (used, step) = session.next(&stream[taken..arrived]);
                taken += used;
                match step {
                    Step::NeedMore => break,
                    Step::Quit => {
                        said.push(Said::Quit);
                        return said;
                    }
                    Step::Refuse { id, error } => {
                        self.refusal(id, error.code, &error.text);
                        said.push(Said::Refused(id, error.code, error.text));
                    }
                    Step::RunLong { .. } => panic!("no request here is as long"),
                    Step::Run { id, request } => {
                        self.judge(&session, &request);
                        let mut payload = Vec::new();
                        request.encode_payload(&mut payload);
                        said.push(Said::Run(id, request.opcode(), payload));
                        follow(&mut session, &request);
                    }
                }
            }
            let waiting = arrived - taken;
            let most = self.dialect.header_bytes() + self.max_request as usize;
            assert!(waiting < most, "{waiting} bytes wait, a frame has at most {most}");
        }
        said
    }

    /// A refusal can be sent, and a client reads it.
    fn refusal(&self, id: u32, code: ErrorCode, text: &str) {
        let mut out = Vec::new();
        reply::encode_error(self.dialect, id, code, text, &mut out);
        let (reply, used) = Reply::decode(self.dialect, &out).expect("a whole reply");
        assert_eq!((used, reply.status), (out.len(), code.v1_status().byte()));
    }

    /// What runs is allowed.
    fn judge(&self, session: &Session, request: &Request<'_>) {
        let opcode = request.opcode();
        assert!(self.role.is_some_and(|role| permission::allowed(role, opcode)), "{opcode:?}");
        let writes = matches!(opcode, Opcode::Set | Opcode::Del | Opcode::MSet | Opcode::MDel | Opcode::FlushDb);
        assert!(session.selected != 0 || !writes, "{opcode:?} on partition 0");
        assert!(opcode != Opcode::Commit || session.in_transaction, "nothing to commit");
        assert!(opcode != Opcode::Select || !session.in_transaction, "a transaction never leaves its partition");
        assert!(opcode != Opcode::ReadLog || self.dialect == Dialect::Turnstone2, "not in v1");
    }

    /// Holds the steps against the frames that are there.
    fn compare(&self, said: &[Said], stream: &[u8]) {
        let mut found = Vec::new();
        let mut rest = stream;
        while let Some(header) = frame::decode_header(self.dialect, rest) {
            let whole = self.dialect.header_bytes() + header.length as usize;
            if header.length > self.max_request {
                found.push(Found::TooLong(header.id));
            } else if rest.len() >= whole {
                found.push(Found::Whole(header.id, header.tag));
            } else {
                found.push(Found::Begun(header.id));
            }
            rest = rest.get(whole..).unwrap_or_default();
        }
        if said.last() != Some(&Said::Quit) {
            let begun = u64::from(matches!(found.last(), Some(Found::Begun(_)))) as usize;
            let answered = found.len() - begun..=found.len();
            assert!(answered.contains(&said.len()), "{} answers to {} frames", said.len(), found.len());
        }
        for (said, found) in said.iter().zip(&found) {
            match (said, found) {
                (Said::Refused(id, ErrorCode::RequestTooLarge, _), Found::TooLong(expected)) => {
                    assert_eq!(id, expected);
                }
                (Said::Refused(id, ..), Found::Whole(expected, _) | Found::Begun(expected)) => assert_eq!(id, expected),
                (Said::Run(id, opcode, _), Found::Whole(expected, tag)) => {
                    assert_eq!((*id, opcode.byte()), (*expected, *tag));
                }
                (Said::Quit, Found::Whole(_, tag)) => assert_eq!(*tag, Opcode::Quit.byte()),
                (said, _) => panic!("{said:?} answers a frame that is too long, or not whole"),
            }
        }
    }
}

/// What the server does with a request that succeeds.
fn follow(session: &mut Session, request: &Request<'_>) {
    match request {
        Request::Select { name } => session.selected = partition_from_decimal(name).expect("it was checked"),
        Request::Begin => session.in_transaction = true,
        Request::Commit | Request::Abort => session.in_transaction = false,
        _ => {}
    }
}

/// Every shape in one stream, in each dialect and role; and one with frames that are too long.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for flags in 0..10 {
        let dialect = if flags & 1 == 0 { Dialect::V1 } else { Dialect::Turnstone2 };
        for max_request in [512_u16, 8] {
            let mut seed = vec![flags, 16];
            seed.extend(max_request.to_le_bytes());
            seed.extend(7_u64.to_le_bytes());
            for (id, request) in samples().iter().enumerate() {
                request.encode_frame(dialect, id as u32, &mut seed).expect("it is small");
            }
            seeds.push(seed);
        }
    }
    seeds
}
