//! A blocking client connection over mutual TLS, for the tools and for tests.
//!
//! [`Connection::send`] and [`Connection::receive`] pipeline; [`Connection::call`] does one of each. The methods below
//! them, such as [`Connection::get`], are for `turnstone/2`, where single writes commit by themselves.
//!
//! After any error for which [`ClientError::is_fatal`] is true the connection is of no more use: replies that are still
//! under way could not be told apart.

mod address;
mod changes;
mod error;
mod nonblocking;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::tls::{ClientOffer, TlsFiles, client_config};
use crate::wire::{Dialect, MAX_BODY, Opcode, Position, Request, Status, frame, reply};

pub use address::{Address, AddressError, DEFAULT_PORT};
pub use changes::{ChangeEvent, ChangeStream};
pub use error::ClientError;
pub use nonblocking::NonBlocking;

/// Buffered requests are written out once they pass this many bytes, so that a long pipeline does not pile up twice.
const SEND_BUFFER: usize = 256 * 1024;

/// A body's buffer is reserved up to this many bytes on the word of the length field; beyond that it grows as bytes
/// arrive.
const TRUSTED_LENGTH: usize = 1024 * 1024;

/// How to reach a server.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    /// `host:port`; `:6379` means localhost. See [`Address`].
    pub address: String,
    /// Certificate, key and CA.
    pub files: TlsFiles,
    /// The dialect, and which partition is going to be selected.
    pub offer: ClientOffer,
    /// How long connecting, one write, or waiting for bytes of a reply may take. Zero waits for ever.
    pub timeout: Duration,
}

/// A reply with its own copy of the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedReply {
    /// The status byte.
    pub status: u8,
    /// The id of the request it answers; 0 in the v1 dialect.
    pub id: u32,
    /// The body.
    pub body: Vec<u8>,
}

/// One connection to one server.
pub struct Connection {
    stream: StreamOwned<ClientConnection, TcpStream>,
    dialect: Dialect,
    outgoing: Vec<u8>,
    /// Ids of requests whose replies have not been received, oldest first.
    waiting: VecDeque<u32>,
    /// The id of the next request. 0 is never used: the server labels with it what nobody asked for.
    next_id: u32,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.stream.sock.peer_addr().ok())
            .field("dialect", &self.dialect)
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects and completes the TLS handshake. There is no way to connect without TLS.
    ///
    /// A server may refuse this client's certificate only after its own side of the handshake; that refusal shows at the
    /// first reply.
    pub fn connect(settings: &ClientSettings) -> Result<Connection, ClientError> {
        let (tls, socket) = handshake(settings)?;
        Ok(Connection {
            stream: StreamOwned::new(tls, socket),
            dialect: settings.offer.dialect,
            outgoing: Vec::new(),
            waiting: VecDeque::new(),
            next_id: 1,
        })
    }

    /// The dialect this connection speaks.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Requests sent whose replies have not been received.
    pub fn in_flight(&self) -> usize {
        self.waiting.len()
    }

    /// Changes how long one write, or waiting for bytes of a reply, may take. Zero waits for ever.
    pub fn set_timeout(&mut self, timeout: Duration) -> Result<(), ClientError> {
        let timeout = (!timeout.is_zero()).then_some(timeout);
        set_timeouts(&self.stream.sock, timeout).map_err(ClientError::Io)
    }

    /// Queues a request and returns its id. [`Connection::flush`] or [`Connection::receive`] sends what is queued.
    pub fn send(&mut self, request: &Request<'_>) -> Result<u32, ClientError> {
        let id = self.next_id;
        request
            .encode_frame(self.dialect, id, &mut self.outgoing)
            .map_err(|error| ClientError::Protocol(error.to_string()))?;
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        if request.opcode() != Opcode::Quit {
            self.waiting.push_back(id);
        }
        if self.outgoing.len() >= SEND_BUFFER {
            self.flush()?;
        }
        Ok(id)
    }

    /// Sends what is queued.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        let result = self.stream.write_all(&self.outgoing).and_then(|()| self.stream.flush());
        self.outgoing.clear();
        match result {
            Ok(()) => Ok(()),
            Err(error) => Err(self.last_word(error)),
        }
    }

    /// Waits for the next reply. An error reply is a reply like any other here; [`Connection::check`] turns it into an
    /// error.
    pub fn receive(&mut self) -> Result<OwnedReply, ClientError> {
        if !self.outgoing.is_empty() {
            self.flush()?;
        }
        let reply = self.read_reply()?;
        let Some(expected) = self.waiting.pop_front() else {
            return Err(self.unasked(reply));
        };
        if self.dialect == Dialect::Turnstone2 && reply.id != expected {
            if reply.id == 0 {
                return Err(self.unasked(reply));
            }
            return Err(ClientError::Protocol(format!("reply {} came where {expected} was due", reply.id)));
        }
        Ok(reply)
    }

    /// Sends one request and waits for its reply, which is an error if its status is neither `Ok` nor `NotFound`.
    ///
    /// Nothing else may be in flight.
    pub fn call(&mut self, request: &Request<'_>) -> Result<OwnedReply, ClientError> {
        if !self.waiting.is_empty() {
            let count = self.waiting.len();
            return Err(ClientError::Protocol(format!("{count} replies must be received before another call")));
        }
        self.send(request)?;
        if request.opcode() == Opcode::Quit {
            self.flush()?;
            return Ok(OwnedReply { status: Status::Ok.byte(), id: 0, body: Vec::new() });
        }
        let reply = self.receive()?;
        self.check(reply)
    }

    /// Turns an error reply into an error.
    pub fn check(&self, reply: OwnedReply) -> Result<OwnedReply, ClientError> {
        match Status::from_byte(reply.status) {
            Some(Status::Ok | Status::NotFound) => Ok(reply),
            _ => Err(self.server_error(&reply)),
        }
    }

    /// Writes bytes as they are, framed or not, past the bookkeeping of requests. For tests of the protocol.
    pub fn raw_write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Reads what has arrived; 0 when the server has closed. For tests of the protocol.
    pub fn raw_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }

    /// Checks that the server answers.
    pub fn ping(&mut self) -> Result<(), ClientError> {
        let reply = self.call(&Request::Ping)?;
        if reply.body == b"PONG" { Ok(()) } else { Err(shape("ping")) }
    }

    /// Chooses a partition.
    pub fn select(&mut self, partition: u8) -> Result<(), ClientError> {
        self.call(&Request::Select { name: partition.to_string().as_bytes() }).map(drop)
    }

    /// Reads a key; `None` if it does not exist.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, ClientError> {
        let reply = self.call(&Request::Get { key })?;
        Ok((reply.status == Status::Ok.byte()).then_some(reply.body))
    }

    /// Writes a key; outside a transaction this commits and gives the position.
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> Result<Option<Position>, ClientError> {
        self.write(&Request::Set { key, value })
    }

    /// Deletes a key; outside a transaction this commits and gives the position.
    pub fn del(&mut self, key: &[u8]) -> Result<Option<Position>, ClientError> {
        self.write(&Request::Del { key })
    }

    /// Reads several keys from one snapshot.
    pub fn mget(&mut self, keys: &[&[u8]]) -> Result<Vec<Option<Vec<u8>>>, ClientError> {
        let reply = self.call(&Request::MGet(keys.to_vec()))?;
        let values = reply::decode_mget(&reply.body).filter(|values| values.len() == keys.len());
        let values = values.ok_or_else(|| shape("mget"))?;
        Ok(values.into_iter().map(|value| value.map(<[u8]>::to_vec)).collect())
    }

    /// Writes several keys, all or none; outside a transaction this commits and gives the position.
    pub fn mset(&mut self, pairs: &[(&[u8], &[u8])]) -> Result<Option<Position>, ClientError> {
        self.write(&Request::MSet(pairs.to_vec()))
    }

    /// Deletes several keys and counts those that existed; outside a transaction this commits and gives the position.
    pub fn mdel(&mut self, keys: &[&[u8]]) -> Result<(u32, Option<Position>), ClientError> {
        let reply = self.call(&Request::MDel(keys.to_vec()))?;
        reply::decode_deleted(&reply.body).ok_or_else(|| shape("mdel"))
    }

    /// Opens a transaction.
    pub fn begin(&mut self) -> Result<(), ClientError> {
        self.call(&Request::Begin).map(drop)
    }

    /// Commits the open transaction. In the v1 dialect, which has no positions, use [`Connection::call`].
    pub fn commit(&mut self) -> Result<Position, ClientError> {
        let reply = self.call(&Request::Commit)?;
        Position::from_bytes(&reply.body).ok_or_else(|| shape("commit"))
    }

    /// Discards the open transaction, if any.
    pub fn abort(&mut self) -> Result<(), ClientError> {
        self.call(&Request::Abort).map(drop)
    }

    /// The selected partition's state as JSON.
    pub fn stat(&mut self) -> Result<String, ClientError> {
        let reply = self.call(&Request::Stat)?;
        String::from_utf8(reply.body).map_err(|_| shape("stat"))
    }

    /// Checkpoints the selected partition.
    pub fn checkpoint(&mut self) -> Result<(), ClientError> {
        self.call(&Request::Checkpoint).map(drop)
    }

    fn write(&mut self, request: &Request<'_>) -> Result<Option<Position>, ClientError> {
        let reply = self.call(request)?;
        if reply.body.is_empty() {
            return Ok(None);
        }
        Position::from_bytes(&reply.body).map(Some).ok_or_else(|| shape(request.opcode().name()))
    }

    fn read_reply(&mut self) -> Result<OwnedReply, ClientError> {
        let mut header = [0; frame::TURNSTONE2_HEADER_BYTES];
        let header = &mut header[..self.dialect.header_bytes()];
        self.stream.read_exact(header).map_err(ClientError::from_stream)?;
        let header = frame::decode_header(self.dialect, header)
            .ok_or_else(|| ClientError::Protocol("a frame header is incomplete".to_owned()))?;
        if header.length > MAX_BODY {
            return Err(ClientError::Protocol(format!(
                "a reply announces {} bytes, the limit is {MAX_BODY}",
                header.length
            )));
        }
        let length = header.length as usize;
        let mut body = Vec::with_capacity(length.min(TRUSTED_LENGTH));
        (&mut self.stream).take(u64::from(header.length)).read_to_end(&mut body).map_err(ClientError::from_stream)?;
        if body.len() < length {
            return Err(ClientError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(OwnedReply { status: header.tag, id: header.id, body })
    }

    /// A server at its limit says so and closes, which fails a write that is under way: what it said is worth more than
    /// the broken pipe.
    fn last_word(&mut self, error: io::Error) -> ClientError {
        match self.read_reply() {
            Ok(reply) if reply.status != Status::Ok.byte() && reply.id == 0 => self.server_error(&reply),
            Err(ClientError::Tls(text)) => ClientError::Tls(text),
            _ => ClientError::from_stream(error),
        }
    }

    fn unasked(&self, reply: OwnedReply) -> ClientError {
        if matches!(Status::from_byte(reply.status), None | Some(Status::Ok | Status::NotFound)) {
            return ClientError::Protocol(format!("a reply with status {} came unasked", reply.status));
        }
        self.server_error(&reply)
    }

    fn server_error(&self, reply: &OwnedReply) -> ClientError {
        let (code, text) = reply::decode_error(self.dialect, &reply.body);
        ClientError::Server { status: reply.status, code, text }
    }
}

fn shape(what: &str) -> ClientError {
    ClientError::Protocol(format!("the reply to {what} does not have its shape"))
}

fn set_timeouts(socket: &TcpStream, timeout: Option<Duration>) -> io::Result<()> {
    socket.set_read_timeout(timeout)?;
    socket.set_write_timeout(timeout)
}

/// Connects and completes the TLS handshake.
fn handshake(settings: &ClientSettings) -> Result<(ClientConnection, TcpStream), ClientError> {
    let config = client_config(&settings.files, settings.offer).map_err(|error| ClientError::Tls(error.to_string()))?;
    let (tls, socket) = handshake_with(config, &settings.address, settings.timeout)?;
    let dialect = Dialect::from_alpn(tls.alpn_protocol());
    if dialect != Some(settings.offer.dialect) {
        return Err(ClientError::Protocol(format!(
            "the server did not agree to speak {}; is it an older version?",
            settings.offer.dialect.name()
        )));
    }
    Ok((tls, socket))
}

fn handshake_with(
    config: Arc<ClientConfig>,
    address: &str,
    timeout: Duration,
) -> Result<(ClientConnection, TcpStream), ClientError> {
    let address: Address = address.parse().map_err(|error: AddressError| ClientError::Connect(error.to_string()))?;
    let host = address.client_host();
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| ClientError::Connect(format!("'{}' is no host name", host.escape_debug())))?;
    let timeout = (!timeout.is_zero()).then_some(timeout);
    let mut socket = dial(host, address.port, timeout)?;
    let mut tls = ClientConnection::new(config, name).map_err(|error| ClientError::Tls(error.to_string()))?;
    while tls.is_handshaking() {
        tls.complete_io(&mut socket).map_err(ClientError::from_stream)?;
    }
    Ok((tls, socket))
}

/// Tries each address of the host in turn.
fn dial(host: &str, port: u16, timeout: Option<Duration>) -> Result<TcpStream, ClientError> {
    let shown = Address { host: host.to_owned(), port };
    let addresses = (host, port)
        .to_socket_addrs()
        .map_err(|error| ClientError::Connect(format!("the host of {shown} is not known: {error}")))?;
    let mut last = None;
    for address in addresses {
        let connected = match timeout {
            Some(timeout) => TcpStream::connect_timeout(&address, timeout),
            None => TcpStream::connect(address),
        };
        match connected {
            Ok(socket) => {
                // Small requests must not wait for the acknowledgement of earlier ones.
                let prepared = socket.set_nodelay(true).and_then(|()| set_timeouts(&socket, timeout));
                return prepared.map(|()| socket).map_err(ClientError::Io);
            }
            Err(error) => last = Some(error),
        }
    }
    Err(ClientError::Connect(match last {
        Some(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            format!("nothing listens on {shown}; start a server with: turnstone --home DIR")
        }
        Some(error) => format!("no connection to {shown}: {error}"),
        None => format!("the host of {shown} has no address"),
    }))
}

#[cfg(test)]
mod tests;
