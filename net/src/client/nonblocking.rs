//! A client's TLS connection on a socket that never blocks, for a tool that drives many of them from one thread.
//!
//! It knows no frames: bytes go in, bytes come out. Connecting and the handshake block; after that nothing does.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};

use rustls::ClientConnection;

use super::{ClientError, ClientSettings, handshake};

/// What one system call takes from the socket at most.
const PIECE: usize = 64 << 10;

/// An open connection.
pub struct NonBlocking {
    tls: ClientConnection,
    socket: TcpStream,
    piece: Box<[u8]>,
}

impl NonBlocking {
    /// Connects, completes the handshake, and makes the socket non-blocking.
    pub fn connect(settings: &ClientSettings) -> Result<NonBlocking, ClientError> {
        let (mut tls, socket) = handshake(settings)?;
        tls.set_buffer_limit(None);
        socket.set_nonblocking(true).map_err(ClientError::Io)?;
        Ok(NonBlocking { tls, socket, piece: vec![0; PIECE].into_boxed_slice() })
    }

    /// The socket, to be waited for.
    pub fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Appends what has arrived; false once the server has closed. A read that does not fill its buffer has emptied the
    /// socket: what comes later is a new readiness.
    pub fn receive(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        loop {
            let n = match self.socket.read(&mut self.piece) {
                Ok(0) => return Ok(false),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let mut arrived = &self.piece[..n];
            while !arrived.is_empty() {
                self.tls.read_tls(&mut arrived)?;
                let state = self.tls.process_new_packets().map_err(io::Error::other)?;
                let start = out.len();
                out.resize(start + state.plaintext_bytes_to_read(), 0);
                self.tls.reader().read_exact(&mut out[start..])?;
                if state.peer_has_closed() {
                    return Ok(false);
                }
            }
            if n < PIECE {
                return Ok(true);
            }
        }
    }

    /// Encrypts bytes and sends what the socket takes; the rest goes with [`NonBlocking::flush`].
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<bool> {
        self.tls.writer().write_all(bytes)?;
        self.flush()
    }

    /// Sends what is left; false while the socket takes no more.
    pub fn flush(&mut self) -> io::Result<bool> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}
