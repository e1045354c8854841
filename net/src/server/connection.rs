//! One connection's transport: its socket and TLS state, driven by hand, bytes in and bytes out.

use super::refusals::Refusal;
use crate::session::Session;
use crate::tls::{Role, key_of, name_of, role_of};
use crate::wire::{ALPN_CHANGES, ALPN_REPLICA, Dialect};
use rustls::ServerConfig;
use rustls::server::{Accepted, Acceptor};
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Instant;
use turnstone_executor::SocketId;

/// What is spoken on the socket so far.
pub enum Stage {
    /// The ClientHello is on its way.
    Hello(Box<Acceptor>),
    /// The handshake goes on.
    Handshake(Box<rustls::Connection>),
    /// Requests and replies.
    Open(Box<rustls::Connection>),
    /// Only bytes that wait to be sent are left.
    Ending,
}

/// Where the conversation of an open connection runs.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere yet, or no more.
    Nowhere,
    /// On this core.
    Here,
    /// On another core; `waiting` says whether it has input that it has not answered.
    There {
        /// The core.
        core: usize,
        /// Its last input was not taken yet.
        waiting: bool,
        /// It was told that nothing comes behind its input.
        told_last: bool,
        /// What to send it next.
        input: Vec<u8>,
    },
}

/// Why a connection is being emptied before it leaves this core.
pub enum Leaving {
    /// The ClientHello named a partition of another core.
    Greeting(usize, Box<Accepted>),
    /// Its session selected one.
    Moving(usize),
}

/// A connection of this core.
pub struct Connection {
    /// Its socket.
    pub socket: SocketId,
    /// TLS.
    pub stage: Stage,
    /// Where its requests are run.
    pub place: Place,
    /// It goes to another core.
    pub leaving: Option<Leaving>,
    /// Bytes that came while it was leaving.
    pub extra: Vec<u8>,
    /// Bytes of its handshake that wait for their turn.
    pub unheard: Vec<u8>,
    /// A ClientHello that waits for its answer.
    pub accepted: Option<Box<Accepted>>,
    /// Encrypted bytes to send.
    pub wire: Vec<u8>,
    /// A send is in flight.
    pub sending: bool,
    /// Its bytes.
    pub in_flight: usize,
    /// It ends when everything is sent.
    pub ending: bool,
    /// The peer sends no more, or is listened to no more: what it sent before is still run and answered.
    pub peer_done: bool,
    /// Bytes of forwarded replies that wait to be sent: their sender is told when they have left.
    pub undrained: usize,
    /// Receiving was stopped because too much is unparsed.
    pub choked: bool,
    /// When it was accepted.
    pub since: Instant,
    /// When something was last received.
    pub heard: Instant,
    /// When the send in flight began.
    pub send_since: Instant,
    /// How often it has moved.
    pub moves: u32,
    /// It counts against `max_conns`.
    pub counted: bool,
    /// This node opened it, to follow another.
    pub outbound: bool,
}

/// What is wrong with what a peer sent.
pub struct Fault {
    /// Its kind.
    pub kind: Refusal,
    /// What it is.
    pub text: String,
}

impl Fault {
    /// Sorts an error of TLS.
    fn of(error: &rustls::Error) -> Fault {
        use rustls::Error::{InvalidCertificate, NoCertificatesPresented};
        let kind = match error {
            InvalidCertificate(_) | NoCertificatesPresented => Refusal::Certificate,
            _ => Refusal::Handshake,
        };
        Fault { kind, text: error.to_string() }
    }

    fn bytes(error: impl std::fmt::Display) -> Fault {
        Fault { kind: Refusal::Handshake, text: error.to_string() }
    }
}

/// Streams of frames that are no dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// Between nodes.
    Replica,
    /// To a consumer of changes.
    Changes,
}

/// What a finished handshake tells.
pub struct Introduction {
    /// The dialect that was agreed on.
    pub dialect: Dialect,
    /// What the certificate entitles to.
    pub role: Result<Role, String>,
    /// It is for frames that are no dialect.
    pub stream: Option<StreamKind>,
    /// SHA-256 of the key that the other side has proved to have; zeros where nobody asks for it.
    pub key: [u8; 32],
    /// The name in its certificate; empty where nobody asks for it.
    pub name: String,
}

impl Connection {
    /// A new connection that has said nothing yet.
    pub fn new(socket: SocketId, since: Instant) -> Connection {
        Connection {
            socket,
            stage: Stage::Hello(Box::default()),
            place: Place::Nowhere,
            leaving: None,
            extra: Vec::new(),
            unheard: Vec::new(),
            accepted: None,
            wire: Vec::new(),
            sending: false,
            in_flight: 0,
            ending: false,
            peer_done: false,
            undrained: 0,
            choked: false,
            since,
            heard: since,
            send_since: since,
            moves: 0,
            counted: false,
            outbound: false,
        }
    }

    /// A connection that this node opens.
    pub fn outbound(socket: SocketId, tls: rustls::ClientConnection, now: Instant) -> Connection {
        let stage = Stage::Handshake(Box::new(rustls::Connection::Client(tls)));
        let mut connection = Connection { stage, outbound: true, ..Connection::new(socket, now) };
        connection.collect();
        connection
    }

    /// Whether it is in its handshake.
    pub fn is_greeting(&self) -> bool {
        matches!(self.stage, Stage::Hello(_) | Stage::Handshake(_))
    }

    /// Whether the handshake is over.
    pub fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open(_))
    }

    /// Feeds bytes to the ClientHello; answers the hello when it is whole, and how many bytes are left over.
    pub fn hear_hello(&mut self, bytes: &mut &[u8]) -> Result<Option<Accepted>, Fault> {
        let Stage::Hello(acceptor) = &mut self.stage else { return Ok(None) };
        while !bytes.is_empty() {
            acceptor.read_tls(bytes).map_err(Fault::bytes)?;
            match acceptor.accept() {
                Ok(Some(accepted)) => return Ok(Some(accepted)),
                Ok(None) => {}
                Err((error, mut alert)) => {
                    // The alert tells the peer; that it may not be delivered changes nothing.
                    let _ = alert.write_all(&mut self.wire);
                    return Err(Fault::of(&error));
                }
            }
        }
        Ok(None)
    }

    /// Goes on from the ClientHello.
    pub fn greet(&mut self, accepted: Accepted, config: Arc<ServerConfig>) -> Result<(), Fault> {
        match accepted.into_connection(config) {
            Ok(mut tls) => {
                tls.set_buffer_limit(None);
                self.stage = Stage::Handshake(Box::new(rustls::Connection::Server(tls)));
                Ok(())
            }
            Err((error, mut alert)) => {
                let _ = alert.write_all(&mut self.wire);
                Err(Fault::of(&error))
            }
        }
    }

    /// Decrypts bytes into `plain`; an error ends the connection.
    pub fn hear(&mut self, mut bytes: &[u8], plain: &mut Vec<u8>) -> Result<(), Fault> {
        let (Stage::Handshake(tls) | Stage::Open(tls)) = &mut self.stage else { return Ok(()) };
        loop {
            let before = bytes.len();
            if !bytes.is_empty() {
                tls.read_tls(&mut bytes).map_err(Fault::bytes)?;
            }
            let state = match tls.process_new_packets() {
                Ok(state) => state,
                Err(error) => {
                    self.collect();
                    return Err(Fault::of(&error));
                }
            };
            let n = state.plaintext_bytes_to_read();
            if n > 0 {
                let at = plain.len();
                plain.resize(at + n, 0);
                tls.reader().read_exact(&mut plain[at..]).map_err(Fault::bytes)?;
            }
            if state.peer_has_closed() {
                // What comes behind its goodbye is not its own, and is not looked at.
                self.peer_done = true;
                break;
            }
            if bytes.is_empty() {
                break;
            }
            if bytes.len() == before {
                return Err(Fault::bytes("bytes that TLS does not take"));
            }
        }
        self.collect();
        Ok(())
    }

    /// If the handshake has just ended: what it tells.
    pub fn introduction(&mut self) -> Option<Introduction> {
        let Stage::Handshake(tls) = &self.stage else { return None };
        if tls.is_handshaking() {
            return None;
        }
        let role = match tls.peer_certificates().and_then(|chain| chain.first()) {
            Some(certificate) => role_of(certificate).map_err(|e| e.to_string()),
            None => Err("no certificate".to_string()),
        };
        let dialect = Dialect::from_alpn(tls.alpn_protocol()).unwrap_or(Dialect::V1);
        let stream = match tls.alpn_protocol() {
            Some(name) if name == ALPN_REPLICA => Some(StreamKind::Replica),
            Some(name) if name == ALPN_CHANGES => Some(StreamKind::Changes),
            _ => None,
        };
        // Nodes and consumers of changes are told apart by them.
        let certificate = tls.peer_certificates().and_then(|chain| chain.first()).filter(|_| stream.is_some());
        let key = certificate.and_then(|certificate| key_of(certificate).ok()).unwrap_or_default();
        let name = certificate.and_then(|certificate| name_of(certificate).ok()).unwrap_or_default();
        let Stage::Handshake(tls) = std::mem::replace(&mut self.stage, Stage::Ending) else { return None };
        self.stage = Stage::Open(tls);
        Some(Introduction { dialect, role, stream, key, name })
    }

    /// Encrypts replies.
    pub fn say(&mut self, plain: &[u8]) {
        if let Stage::Open(tls) = &mut self.stage {
            // Writing to memory without a limit cannot fail.
            let _ = tls.writer().write_all(plain);
        }
        self.collect();
    }

    /// Says goodbye; the connection ends when everything is sent.
    pub fn say_goodbye(&mut self) {
        if self.ending {
            return;
        }
        self.ending = true;
        if let Stage::Handshake(tls) | Stage::Open(tls) = &mut self.stage {
            tls.send_close_notify();
        }
        self.collect();
    }

    /// Moves what TLS wants to send behind what waits already.
    fn collect(&mut self) {
        if let Stage::Handshake(tls) | Stage::Open(tls) = &mut self.stage {
            while tls.wants_write() {
                if tls.write_tls(&mut self.wire).is_err() {
                    break;
                }
            }
        }
    }
}

/// The session of a connection that has introduced itself.
pub fn session(introduction: &Introduction, partitions: u8, max_request: u32) -> Session {
    Session::new(introduction.dialect, introduction.role.as_ref().ok().copied(), partitions, max_request)
}
