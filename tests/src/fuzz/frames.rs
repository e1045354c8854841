//! The frame decoders: the input as a stream of requests, as the server reads them, and as one of replies, as a client does.
//!
//! What is decoded encodes to the same bytes, one byte less is no frame, and an error names a code that a client can read.

use turnstone_net::wire::reply::{self, MAX_ERROR_TEXT};
use turnstone_net::wire::{
    Dialect, ErrorCode, Opcode, Position, Reply, Request, Status, alpn_for_hint, frame, hint_from_alpn,
};

/// The target of the v1 dialect.
pub fn v1(input: &[u8]) {
    requests(Dialect::V1, input);
    replies(Dialect::V1, input);
}

/// The target of `turnstone/2`.
pub fn turnstone2(input: &[u8]) {
    requests(Dialect::Turnstone2, input);
    replies(Dialect::Turnstone2, input);
}

fn requests(dialect: Dialect, input: &[u8]) {
    let mut rest = input;
    while let Some(header) = frame::decode_header(dialect, rest) {
        let start = dialect.header_bytes();
        assert_eq!(frame::decode_header(dialect, &rest[..start - 1]), None, "a header needs all its bytes");
        let mut again = Vec::new();
        frame::encode_header(dialect, header, &mut again);
        assert_eq!(again, rest[..start], "the header");
        let Some((whole, behind)) = rest.split_at_checked(start + header.length as usize) else { return };
        if let Some(opcode) = Opcode::from_byte(header.tag) {
            request(dialect, header.id, opcode, whole);
        }
        rest = behind;
    }
    assert!(rest.len() < dialect.header_bytes());
}

fn request(dialect: Dialect, id: u32, opcode: Opcode, whole: &[u8]) {
    let payload = &whole[dialect.header_bytes()..];
    match Request::parse(opcode, payload) {
        Ok(request) => {
            assert_eq!(request.opcode(), opcode);
            let mut again = Vec::new();
            request.encode_frame(dialect, id, &mut again).expect("a frame that was one");
            if ignores_payload(opcode) {
                assert_eq!(again.len(), dialect.header_bytes());
            } else {
                assert_eq!(again, whole, "{request:?}");
            }
        }
        Err(error) => {
            let codes = [ErrorCode::Malformed, ErrorCode::KeyEmpty, ErrorCode::RequestTooLarge];
            assert!(codes.contains(&error.code), "{error}");
            assert!(error.text.len() < 200, "{error}");
        }
    }
}

fn ignores_payload(opcode: Opcode) -> bool {
    let ignoring = [
        Opcode::Ping,
        Opcode::Begin,
        Opcode::Commit,
        Opcode::Abort,
        Opcode::Stat,
        Opcode::StepDown,
        Opcode::Checkpoint,
        Opcode::FlushDb,
        Opcode::Quit,
    ];
    ignoring.contains(&opcode)
}

fn replies(dialect: Dialect, input: &[u8]) {
    let mut rest = input;
    while let Some((reply, used)) = Reply::decode(dialect, rest) {
        assert_eq!(used, dialect.header_bytes() + reply.body.len());
        let whole = &rest[..used];
        assert_eq!(Reply::decode(dialect, &whole[..used - 1]), None, "a reply needs all its bytes");
        assert_eq!(Reply::decode(dialect, whole), Some((reply, used)), "what follows does not matter");
        let mut again = Vec::new();
        frame::encode(dialect, reply.status, reply.id, &[reply.body], &mut again).expect("a frame that was one");
        assert_eq!(again, whole);
        if let Some(status) = Status::from_byte(reply.status) {
            assert_eq!(status.byte(), reply.status);
        }
        body(dialect, reply);
        rest = &rest[used..];
    }
}

/// The body as each kind of reply.
fn body(dialect: Dialect, reply: Reply<'_>) {
    let body = reply.body;
    let mut expected = Vec::new();
    frame::encode(dialect, Status::Ok.byte(), reply.id, &[body], &mut expected).expect("a frame that was one");
    let mut again = Vec::new();
    if let Some(values) = reply::decode_mget(body) {
        assert!(values.len() * 4 < body.len(), "each value has its length");
        reply::encode_mget(dialect, reply.id, &values, &mut again);
        assert_eq!(again, expected, "mget");
    }
    if let Some((count, position)) = reply::decode_deleted(body)
        && (position.is_none() || dialect == Dialect::Turnstone2)
    {
        again.clear();
        reply::encode_deleted(dialect, reply.id, count, position, &mut again);
        assert_eq!(again, expected, "mdel");
    }
    if let Some(position) = Position::from_bytes(body) {
        assert_eq!(position.to_bytes(), body);
        let read = position.to_string().parse::<Position>();
        assert_eq!(read.is_ok(), position.partition <= 16);
        assert!(read.is_ok() == (read == Ok(Position { epoch_id: 0, ..position })));
    }
    let (code, text) = reply::decode_error(dialect, body);
    // A byte that is no UTF-8 becomes a character of three.
    assert!(text.len() <= 3 * body.len());
    if let Some(code) = code
        && std::str::from_utf8(&body[2..]).is_ok()
        && text.len() <= MAX_ERROR_TEXT
    {
        again.clear();
        reply::encode_error(dialect, reply.id, code, &text, &mut again);
        assert_eq!(again[dialect.header_bytes()..], *body, "error");
    }
    if let Ok(text) = std::str::from_utf8(body)
        && let Ok(position) = text.parse::<Position>()
    {
        assert_eq!(position.to_string(), text, "a position has one spelling");
    }
    if let Some(partition) = hint_from_alpn(body) {
        assert_eq!(alpn_for_hint(partition), body, "a hint has one spelling");
    }
}

/// Seeds of the v1 dialect.
pub fn seeds_v1() -> Vec<Vec<u8>> {
    seeds(Dialect::V1)
}

/// Seeds of `turnstone/2`.
pub fn seeds_turnstone2() -> Vec<Vec<u8>> {
    seeds(Dialect::Turnstone2)
}

/// One request of each shape.
pub(super) fn samples() -> Vec<Request<'static>> {
    vec![
        Request::Ping,
        Request::Select { name: b"1" },
        Request::Begin,
        Request::Get { key: b"key" },
        Request::Set { key: b"key", value: b"value" },
        Request::Del { key: b"key" },
        Request::MGet(vec![b"a", b"", b"ccc"]),
        Request::MSet(vec![(b"a", b"1"), (b"b", b"")]),
        Request::MDel(vec![b"a", b"b"]),
        Request::Commit,
        Request::Abort,
        Request::Stat,
        Request::Select { name: b"0" },
        Request::ReplicaOf { address: b"h:1", partition: b"2" },
        Request::Promote { min_replicas: 2 },
        Request::StepDown,
        Request::Checkpoint,
        Request::FlushDb,
        Request::Hold { name: b"cdc", epoch: 1, version: 7, limit_bytes: 1 << 20 },
        Request::ReadLog { version: 5, limit_bytes: 65536 },
        Request::Release { name: b"cdc" },
        Request::Quit,
    ]
}

fn seeds(dialect: Dialect) -> Vec<Vec<u8>> {
    let frame = |request: &Request<'_>| {
        let mut out = Vec::new();
        request.encode_frame(dialect, 9, &mut out).expect("it is small");
        out
    };
    let mut seeds: Vec<Vec<u8>> = samples().iter().map(frame).collect();
    seeds.push(seeds.concat());
    let position = Position { partition: 3, epoch: 1, epoch_id: 42, version: 9 };
    let reply = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        write(&mut out);
        out
    };
    seeds.extend([
        reply(&|out| reply::encode_ok(dialect, 1, &[b"PONG"], out)),
        reply(&|out| reply::encode_ok(dialect, 2, &[b"3:1:4711"], out)),
        reply(&|out| reply::encode_ok(dialect, 2, &[b"turnstone-p7"], out)),
        reply(&|out| reply::encode_mget(dialect, 3, &[Some(b"v1".as_slice()), None, Some(b"")], out)),
        reply(&|out| reply::encode_deleted(dialect, 4, 6, Some(position), out)),
        reply(&|out| reply::encode_committed(dialect, 5, position, out)),
        reply(&|out| reply::encode_error(dialect, 6, ErrorCode::Malformed, "why", out)),
    ]);
    seeds
}
