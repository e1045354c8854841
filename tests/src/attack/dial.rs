//! One connection of an attacker: TLS by hand, so that anything can be shown, sent, cut short or left out.

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;
use turnstone_net::tls::TlsFiles;
use turnstone_net::wire::{Dialect, Reply, Request, Status, reply};

/// Longer than anything may take; who is still there then was not refused.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What a client of turnstone/2 offers.
pub const TURNSTONE2: &[&[u8]] = &[b"turnstone/2"];

/// How a connection ended, or what it was told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// A TLS alert, by its name.
    Alert(String),
    /// The end of the stream, or a reset, without a word.
    Closed,
    /// A typed reply.
    Typed(String),
    /// A good reply.
    Served,
    /// The attacker left by itself.
    Left,
    /// Nothing happened for longer than [`PATIENCE`].
    Endured,
    /// No connection could be made.
    Unreachable(String),
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            How::Alert(name) => write!(f, "alert {name}"),
            How::Closed => f.write_str("closed"),
            How::Typed(word) => f.write_str(word),
            How::Served => f.write_str("served"),
            How::Left => f.write_str("left"),
            How::Endured => f.write_str("NOT REFUSED"),
            How::Unreachable(why) => write!(f, "no connection: {why}"),
        }
    }
}

/// How a case should end.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// It is served.
    Served,
    /// One of these alerts, or any where there are none.
    Alert(&'static [&'static str]),
    /// One of these typed replies.
    Typed(&'static [&'static str]),
    /// An end of the connection, with an alert or without.
    Ended,
    /// It leaves by itself, whatever it was told.
    Left,
}

impl Expect {
    /// Whether that is how it ended.
    pub fn meets(self, how: &How) -> bool {
        match (self, how) {
            (Expect::Served, How::Served) | (Expect::Left, How::Left) => true,
            (Expect::Alert(names), How::Alert(name)) => names.is_empty() || names.contains(&name.as_str()),
            (Expect::Typed(words), How::Typed(word)) => words.contains(&word.as_str()),
            (Expect::Ended, How::Alert(_) | How::Closed) => true,
            _ => false,
        }
    }
    /// Whether the server must have put an end to it.
    pub fn is_refusal(self) -> bool {
        !matches!(self, Expect::Served | Expect::Left)
    }
}

/// What an attacker shows: a chain, and a key that may or may not belong to it.
pub struct Identity {
    /// The chain, end entity first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key, PKCS#8.
    pub key: Vec<u8>,
}

impl Identity {
    /// A good one.
    pub fn of_files(files: &TlsFiles) -> Identity {
        let chain = CertificateDer::pem_file_iter(&files.cert).expect("a file").collect::<Result<_, _>>().expect("PEM");
        let key = PrivatePkcs8KeyDer::from_pem_file(&files.key).expect("PKCS#8");
        Identity { chain, key: key.secret_pkcs8_der().to_vec() }
    }
}

/// Shows the same, whatever the server asks for.
#[derive(Debug)]
struct Show(Arc<CertifiedKey>);

impl ResolvesClientCert for Show {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
    fn has_certs(&self) -> bool {
        true
    }
}

/// An attacker does not care who the server is.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A configuration that shows this identity.
pub fn config(identity: Option<Identity>, protocols: &[&[u8]]) -> Arc<ClientConfig> {
    let provider = Arc::new(default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3 is there")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.key));
            let key = provider.key_provider.load_private_key(key).expect("a key");
            builder.with_client_cert_resolver(Arc::new(Show(Arc::new(CertifiedKey::new(identity.chain, key)))))
        }
    };
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

/// The first bytes that a client with this configuration sends.
pub fn hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut tls = session(config, "localhost");
    tls.write_tls(&mut bytes).expect("to memory");
    bytes
}

fn session(config: &Arc<ClientConfig>, host: &'static str) -> ClientConnection {
    ClientConnection::new(config.clone(), ServerName::try_from(host).expect("a name")).expect("a client")
}

/// Connects without TLS.
pub fn socket(address: SocketAddr) -> Result<TcpStream, How> {
    let connect = || {
        let socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(socket)
    };
    connect().map_err(|e: io::Error| How::Unreachable(e.to_string()))
}

/// How an error of a socket looks to an attacker.
fn sorted(error: &io::Error) -> How {
    if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return match tls {
            rustls::Error::AlertReceived(alert) => How::Alert(format!("{alert:?}")),
            other => How::Unreachable(other.to_string()),
        };
    }
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => How::Endured,
        _ => How::Closed,
    }
}

/// Reads until the server ends a connection without TLS; an alert in clear is told apart.
pub fn until_end(socket: &mut TcpStream) -> How {
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => all.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => match sorted(&error) {
                How::Endured => return How::Endured,
                _ => break,
            },
        }
    }
    match all[..] {
        [0x15, _, _, 0, 2, _, description] => How::Alert(format!("{:?}", AlertDescription::from(description))),
        _ => How::Closed,
    }
}

/// A connection with TLS.
pub struct Link<S: Read + Write = TcpStream> {
    tls: ClientConnection,
    /// Its socket.
    pub socket: S,
    plain: Vec<u8>,
}

impl Link {
    /// Connects and greets. A server that refuses the certificate says so after its own side of the handshake: that
    /// shows at the first reply.
    pub fn open(address: SocketAddr, config: &Arc<ClientConfig>, host: &'static str) -> Result<Link, How> {
        Link::over(socket(address)?, config, host)
    }
}

impl<S: Read + Write> Link<S> {
    /// Greets over a socket.
    fn over(socket: S, config: &Arc<ClientConfig>, host: &'static str) -> Result<Link<S>, How> {
        let mut link = Link { tls: session(config, host), socket, plain: Vec::new() };
        while link.tls.is_handshaking() {
            link.tls.complete_io(&mut link.socket).map_err(|error| sorted(&error))?;
        }
        Ok(link)
    }

    /// Encrypts and sends.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), How> {
        let sent = self.tls.writer().write_all(bytes).and_then(|()| self.push());
        match sent {
            Ok(()) => Ok(()),
            // What the server said before it closed is worth more than the broken pipe.
            Err(error) => Err(match self.reply() {
                How::Closed => sorted(&error),
                how => how,
            }),
        }
    }

    fn push(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.socket)?;
        }
        Ok(())
    }

    /// Sends a request with an id.
    pub fn ask(&mut self, request: &Request<'_>, id: u32) -> Result<(), How> {
        let mut bytes = Vec::new();
        request.encode_frame(Dialect::Turnstone2, id, &mut bytes).expect("it fits");
        self.send(&bytes)
    }

    /// Says goodbye.
    pub fn goodbye(&mut self) {
        self.tls.send_close_notify();
        // The other side may have gone already.
        let _ = self.push();
    }

    /// New keys for what is sent from here on.
    pub fn new_keys(&mut self) -> Result<(), How> {
        self.tls.refresh_traffic_keys().expect("after the handshake");
        self.push().map_err(|error| sorted(&error))
    }

    /// Waits for the next reply, or the end.
    pub fn reply(&mut self) -> How {
        loop {
            if let Some((reply, length)) = Reply::decode(Dialect::Turnstone2, &self.plain) {
                let how = match Status::from_byte(reply.status) {
                    Some(Status::Ok | Status::NotFound) => How::Served,
                    _ => {
                        let (code, _) = reply::decode_error(Dialect::Turnstone2, reply.body);
                        How::Typed(code.map_or("UNKNOWN", |code| code.name()).to_string())
                    }
                };
                self.plain.drain(..length);
                return how;
            }
            match self.tls.read_tls(&mut self.socket) {
                Ok(0) => return How::Closed,
                Ok(_) => {}
                Err(error) => return sorted(&error),
            }
            let state = match self.tls.process_new_packets() {
                Ok(state) => state,
                Err(error) => return sorted(&io::Error::other(error)),
            };
            let start = self.plain.len();
            self.plain.resize(start + state.plaintext_bytes_to_read(), 0);
            self.tls.reader().read_exact(&mut self.plain[start..]).expect("it is there");
            if state.peer_has_closed() && self.plain.len() == start {
                return How::Closed;
            }
        }
    }
}

/// Greets, asks for a PONG, and answers what came.
pub fn greet(address: SocketAddr, config: &Arc<ClientConfig>, host: &'static str) -> How {
    Link::open(address, config, host).map_or_else(|how| how, ping)
}

/// The same over a socket.
pub fn greet_over<S: Read + Write>(socket: S, config: &Arc<ClientConfig>) -> How {
    Link::over(socket, config, "localhost").map_or_else(|how| how, ping)
}

fn ping<S: Read + Write>(mut link: Link<S>) -> How {
    match link.ask(&Request::Ping, 1) {
        Ok(()) => link.reply(),
        Err(how) => how,
    }
}
