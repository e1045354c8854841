//! The client against a small server in a thread, over real sockets and real TLS.

use std::net::TcpListener;
use std::path::PathBuf;
use std::thread::{self, JoinHandle};

use rustls::{ServerConnection, StreamOwned};

use super::*;
use crate::tls::{Authority, Role, server_config};
use crate::wire::ErrorCode;

type ServerStream = StreamOwned<ServerConnection, TcpStream>;

/// Certificates in a directory of their own, removed at the end.
struct World {
    directory: PathBuf,
}

impl World {
    fn new(name: &str) -> World {
        let directory = std::env::temp_dir().join(format!("turnstone-client-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory).unwrap();
        let world = World { directory };
        let authority = Authority::create().unwrap();
        std::fs::write(world.files(Role::Client).ca, authority.cert_pem()).unwrap();
        for role in [Role::Server, Role::Client] {
            let issued = authority.issue(role, &[], 1).unwrap();
            std::fs::write(world.files(role).cert, issued.cert_pem).unwrap();
            std::fs::write(world.files(role).key, issued.key_pem).unwrap();
        }
        world
    }

    fn files(&self, role: Role) -> TlsFiles {
        let path = |name: String| self.directory.join(name);
        TlsFiles { cert: path(format!("{role}.crt")), key: path(format!("{role}.key")), ca: path("ca.crt".to_owned()) }
    }

    /// Serves one connection with `serve` and returns how to reach it.
    fn serve<F>(&self, offer: ClientOffer, serve: F) -> (ClientSettings, JoinHandle<()>)
    where
        F: FnOnce(&mut ServerStream) + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let config = server_config(&self.files(Role::Server)).unwrap();
        let thread = thread::spawn(move || {
            let (socket, _) = listener.accept().unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), socket);
            serve(&mut stream);
            stream.conn.send_close_notify();
            let _ = stream.flush();
        });
        let files = self.files(Role::Client);
        (ClientSettings { address, files, offer, timeout: Duration::from_secs(20) }, thread)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Reads one request; `None` at the end.
fn read_request(stream: &mut ServerStream, dialect: Dialect) -> Option<(u8, u32, Vec<u8>)> {
    let mut header = vec![0; dialect.header_bytes()];
    stream.read_exact(&mut header).ok()?;
    let header = frame::decode_header(dialect, &header).unwrap();
    let mut payload = vec![0; header.length as usize];
    stream.read_exact(&mut payload).ok()?;
    Some((header.tag, header.id, payload))
}

const POSITION: Position = Position { partition: 1, epoch: 2, epoch_id: 3, version: 4 };

#[test]
fn friendly_calls_round_trip() {
    let world = World::new("friendly");
    let dialect = Dialect::Turnstone2;
    let (settings, thread) = world.serve(ClientOffer::TURNSTONE2, move |stream| {
        while let Some((tag, id, payload)) = read_request(stream, dialect) {
            let mut out = Vec::new();
            match Request::parse(Opcode::from_byte(tag).unwrap(), &payload).unwrap() {
                Request::Ping => reply::encode_ok(dialect, id, &[b"PONG"], &mut out),
                Request::Get { key: b"absent" } => reply::encode_not_found(dialect, id, &mut out),
                Request::Get { key } => reply::encode_ok(dialect, id, &[key, b"!"], &mut out),
                Request::Set { .. } | Request::MSet(_) | Request::Commit => {
                    reply::encode_committed(dialect, id, POSITION, &mut out);
                }
                Request::Del { .. } => reply::encode_error(dialect, id, ErrorCode::ReadOnly, "no", &mut out),
                Request::MGet(keys) => {
                    let values: Vec<_> = keys.iter().map(|key| (*key != b"absent").then_some(*key)).collect();
                    reply::encode_mget(dialect, id, &values, &mut out);
                }
                Request::MDel(keys) => reply::encode_deleted(dialect, id, keys.len() as u32, None, &mut out),
                Request::Stat => reply::encode_ok(dialect, id, &[b"{}"], &mut out),
                Request::Quit => return,
                _ => reply::encode_ok(dialect, id, &[], &mut out),
            }
            stream.write_all(&out).unwrap();
        }
    });
    let mut connection = Connection::connect(&settings).unwrap();
    connection.ping().unwrap();
    connection.select(1).unwrap();
    assert_eq!(connection.get(b"k").unwrap(), Some(b"k!".to_vec()));
    assert_eq!(connection.get(b"absent").unwrap(), None);
    assert_eq!(connection.set(b"k", b"v").unwrap(), Some(POSITION));
    assert_eq!(connection.mset(&[(b"a", b"1")]).unwrap(), Some(POSITION));
    let values = connection.mget(&[b"a", b"absent"]).unwrap();
    assert_eq!(values, [Some(b"a".to_vec()), None]);
    assert_eq!(connection.mdel(&[b"a", b"b"]).unwrap(), (2, None));
    connection.begin().unwrap();
    assert_eq!(connection.commit().unwrap(), POSITION);
    connection.abort().unwrap();
    connection.checkpoint().unwrap();
    assert_eq!(connection.stat().unwrap(), "{}");
    let error = connection.del(b"k").unwrap_err();
    assert_eq!(error.to_string(), "READONLY no");
    connection.ping().unwrap();
    connection.call(&Request::Quit).unwrap();
    thread.join().unwrap();
}

#[test]
fn pipelined_replies_keep_order_and_ids() {
    let world = World::new("pipeline");
    let (settings, thread) = world.serve(ClientOffer::TURNSTONE2, |stream| {
        let mut out = Vec::new();
        for _ in 0..100 {
            let (_, id, payload) = read_request(stream, Dialect::Turnstone2).unwrap();
            reply::encode_ok(Dialect::Turnstone2, id, &[&payload], &mut out);
        }
        // All replies in one write: the client must not take a record for a frame.
        stream.write_all(&out).unwrap();
    });
    let mut connection = Connection::connect(&settings).unwrap();
    let ids: Vec<_> = (0..100_u32).map(|n| connection.send(&Request::Get { key: &n.to_be_bytes() }).unwrap()).collect();
    assert_eq!(connection.in_flight(), 100);
    assert!(matches!(connection.call(&Request::Ping), Err(ClientError::Protocol(_))));
    for (n, id) in ids.into_iter().enumerate() {
        let reply = connection.receive().unwrap();
        assert_eq!((reply.id, reply.body), (id, (n as u32).to_be_bytes().to_vec()));
    }
    thread.join().unwrap();
}

#[test]
fn the_v1_dialect_has_short_frames_and_no_ids() {
    let world = World::new("v1");
    let (settings, thread) = world.serve(ClientOffer::V1, |stream| {
        let mut frame = [0; 5];
        stream.read_exact(&mut frame).unwrap();
        assert_eq!(frame, [0x10, 0, 0, 0, 0]);
        assert_eq!(stream.conn.alpn_protocol(), None);
        stream.write_all(&[6, 0, 0, 0, 0]).unwrap();
    });
    let mut connection = Connection::connect(&settings).unwrap();
    let error = connection.begin().unwrap_err();
    assert!(matches!(error, ClientError::Server { status: 6, code: None, .. }), "{error:?}");
    thread.join().unwrap();
}

#[test]
fn a_full_server_is_a_busy_error() {
    let world = World::new("busy");
    for offer in [ClientOffer::V1, ClientOffer::TURNSTONE2] {
        let (settings, thread) = world.serve(offer, move |stream| {
            let mut out = Vec::new();
            reply::encode_error(offer.dialect, 0, ErrorCode::Busy, "Max connections", &mut out);
            stream.write_all(&out).unwrap();
        });
        let mut connection = Connection::connect(&settings).unwrap();
        let error = connection.ping().unwrap_err();
        assert!(
            matches!(&error, ClientError::Server { status: 7, text, .. } if text == "Max connections"),
            "{error:?}"
        );
        thread.join().unwrap();
    }
}

#[test]
fn replies_out_of_order_are_a_protocol_error() {
    let world = World::new("order");
    let (settings, thread) = world.serve(ClientOffer::TURNSTONE2, |stream| {
        let (_, id, _) = read_request(stream, Dialect::Turnstone2).unwrap();
        let mut out = Vec::new();
        reply::encode_ok(Dialect::Turnstone2, id + 1, &[b"PONG"], &mut out);
        stream.write_all(&out).unwrap();
    });
    let mut connection = Connection::connect(&settings).unwrap();
    assert!(matches!(connection.ping(), Err(ClientError::Protocol(_))));
    thread.join().unwrap();
}

#[test]
fn announced_lengths_are_not_believed() {
    let world = World::new("length");
    for (length, expected) in [(MAX_BODY + 1, "announces"), (MAX_BODY, "closed the connection")] {
        let (settings, thread) = world.serve(ClientOffer::TURNSTONE2, move |stream| {
            let (_, id, _) = read_request(stream, Dialect::Turnstone2).unwrap();
            let mut out = Vec::new();
            frame::encode_header(Dialect::Turnstone2, frame::Header { tag: 0, length, id }, &mut out);
            stream.write_all(&out).unwrap();
        });
        let mut connection = Connection::connect(&settings).unwrap();
        let error = connection.ping().unwrap_err();
        assert!(error.is_fatal() && error.to_string().contains(expected), "{error}");
        thread.join().unwrap();
    }
}

#[test]
fn a_reply_that_never_comes_times_out() {
    let world = World::new("timeout");
    let (mut settings, thread) = world.serve(ClientOffer::TURNSTONE2, |stream| {
        // Waits for the client to go away.
        while read_request(stream, Dialect::Turnstone2).is_some() {}
    });
    settings.timeout = Duration::from_millis(300);
    let mut connection = Connection::connect(&settings).unwrap();
    let error = connection.ping().unwrap_err();
    assert!(error.to_string().contains("no answer in time"), "{error}");
    drop(connection);
    thread.join().unwrap();
}

#[test]
fn connecting_fails_with_a_next_step() {
    let world = World::new("refused");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let settings = ClientSettings {
        address,
        files: world.files(Role::Client),
        offer: ClientOffer::TURNSTONE2,
        timeout: Duration::from_secs(5),
    };
    let error = Connection::connect(&settings).unwrap_err().to_string();
    assert!(error.contains("nothing listens on 127.0.0.1:") && error.contains("turnstone --home"), "{error}");

    let missing = TlsFiles { cert: world.directory.join("none.crt"), ..world.files(Role::Client) };
    let error = Connection::connect(&ClientSettings { files: missing, ..settings.clone() }).unwrap_err();
    assert!(matches!(&error, ClientError::Tls(text) if text.contains("none.crt")), "{error}");

    let error = Connection::connect(&ClientSettings { address: "h:x".to_owned(), ..settings }).unwrap_err();
    assert!(matches!(error, ClientError::Connect(_)));
}

#[test]
fn a_name_the_certificate_lacks_is_explained() {
    let world = World::new("name");
    let (mut settings, thread) = world.serve(ClientOffer::TURNSTONE2, |stream| {
        let _ = stream.read(&mut [0; 1]);
    });
    // 127.0.0.2 reaches no listener on 127.0.0.1, so bind anew on every loopback address.
    drop(TcpStream::connect(&settings.address).unwrap());
    thread.join().unwrap();
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let config = server_config(&world.files(Role::Server)).unwrap();
    let thread = thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), socket);
        let _ = stream.read(&mut [0; 1]);
    });
    settings.address = format!("127.0.0.2:{port}");
    let error = Connection::connect(&settings).unwrap_err();
    assert!(matches!(&error, ClientError::Tls(text) if text.contains("does not name this host")), "{error}");
    thread.join().unwrap();
}
