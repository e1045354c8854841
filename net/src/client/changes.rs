//! A partition's changes as a consumer reads them: blocking, one event at a time.
//!
//! What is not read is not sent: the server has a window of bytes, and gets back what was taken from it. Whoever does not
//! ask for the next event for long says that it lives with [`ChangeStream::keep_alive`].

use super::{ClientError, handshake_with};
use crate::tls::{TlsFiles, consumer_config};
use crate::wire::ALPN_CHANGES;
use crate::wire::change::{Frame, Refusal, Subscribe};
use rustls::{ClientConnection, StreamOwned};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::rc::Rc;
use std::time::{Duration, Instant};
use turnstone_engine::codec::crc;
use turnstone_engine::copy::{CopyEntry, CopySum};
use turnstone_engine::manifest::EpochStart;
use turnstone_engine::types::Version;
use turnstone_engine::wal::body::{self, BodyError, Change};
use turnstone_replication::wire::take_entries;

/// Bytes that are read at once.
const READ: usize = 256 << 10;
/// A consumer says that it lives at least this often.
const BEAT: Duration = Duration::from_secs(1);
/// A server that was not heard for so long is gone: it says that it lives every second.
const SILENCE: Duration = Duration::from_secs(15);

/// What happens on a change stream.
#[derive(Debug)]
pub enum ChangeEvent {
    /// The log follows.
    Begun {
        /// Behind this version.
        last: Version,
        /// The newest version that the server shows.
        shown: Version,
        /// The server's history.
        epochs: Vec<EpochStart>,
    },
    /// A copy follows, and the log behind it.
    Copy {
        /// Of which version.
        version: Version,
        /// How many keys, about.
        keys: u64,
        /// The history up to there.
        epochs: Vec<EpochStart>,
    },
    /// Rows of the copy, in the order of their keys.
    Rows(Vec<CopyEntry>),
    /// The copy is whole: what it came to.
    CopyEnd(CopySum),
    /// Whole transactions: `turnstone_engine::wal::body::read` reads them. The body is as it is in the log; its large values
    /// follow, an event for each.
    Batch(Rc<Vec<u8>>),
    /// The next large value of the batch, in the body's order.
    Value(Vec<u8>),
    /// Everything up to there was sent.
    Progress(Version),
    /// The history has grown.
    Epochs(Vec<EpochStart>),
    /// There is no stream, or no more.
    Refused(Refusal),
}

/// A stream of changes of one partition.
pub struct ChangeStream {
    stream: StreamOwned<ClientConnection, TcpStream>,
    /// What the socket gave last, encrypted: kept for its memory.
    wire: Vec<u8>,
    input: Vec<u8>,
    taken: usize,
    window: u64,
    /// Taken from the window and not given back yet, bytes.
    owed: u64,
    /// Length and CRC-32 of the large values of a batch that are on their way, the next one last.
    wanted: Vec<(u32, u32)>,
    /// Rows of the copy so far.
    sum: CopySum,
    heard: Instant,
    said: Instant,
    patience: Duration,
}

impl std::fmt::Debug for ChangeStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChangeStream").field("peer", &self.stream.sock.peer_addr().ok()).finish_non_exhaustive()
    }
}

impl ChangeStream {
    /// Connects and subscribes; what comes of it is the first event. `timeout` is for connecting and for writes.
    pub fn open(
        address: &str,
        files: &TlsFiles,
        timeout: Duration,
        subscribe: &Subscribe,
    ) -> Result<ChangeStream, ClientError> {
        let config =
            consumer_config(files, subscribe.partition).map_err(|error| ClientError::Tls(error.to_string()))?;
        let (tls, socket) = handshake_with(config, address, timeout)?;
        if tls.alpn_protocol() != Some(ALPN_CHANGES) {
            let text = "the server did not agree to send changes; is it an older version?";
            return Err(ClientError::Protocol(text.to_owned()));
        }
        let now = Instant::now();
        let mut stream = ChangeStream {
            stream: StreamOwned::new(tls, socket),
            wire: Vec::new(),
            input: Vec::new(),
            taken: 0,
            window: subscribe.credit,
            owed: 0,
            wanted: Vec::new(),
            sum: CopySum::default(),
            heard: now,
            said: now,
            patience: Duration::ZERO,
        };
        stream.say(&Frame::Subscribe(subscribe.clone()))?;
        Ok(stream)
    }

    /// The next event; `None` if there is none within `patience`.
    pub fn next(&mut self, patience: Duration) -> Result<Option<ChangeEvent>, ClientError> {
        let deadline = Instant::now() + patience;
        loop {
            self.keep_alive()?;
            if let Some(frame) = self.take()? {
                return self.event(frame).map(Some);
            }
            let now = Instant::now();
            let left = deadline.saturating_duration_since(now);
            if !self.fill(left.clamp(Duration::from_millis(1), BEAT))? {
                if self.heard.elapsed() > SILENCE {
                    return Err(ClientError::Io(ErrorKind::TimedOut.into()));
                }
                if left.is_zero() {
                    return Ok(None);
                }
            }
        }
    }

    /// Whether an event is here already.
    pub fn has_more(&self) -> bool {
        self.input.len() - self.taken >= turnstone_replication::wire::AROUND
    }

    /// The log up to `version` is not needed any more.
    pub fn confirm(&mut self, version: Version) -> Result<(), ClientError> {
        self.say(&Frame::Confirm(version))
    }

    /// Says that this side lives, if it said nothing lately.
    pub fn keep_alive(&mut self) -> Result<(), ClientError> {
        if self.said.elapsed() >= BEAT { self.say(&Frame::Beat) } else { Ok(()) }
    }

    fn say(&mut self, frame: &Frame) -> Result<(), ClientError> {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.said = Instant::now();
        self.stream.write_all(&bytes).and_then(|()| self.stream.flush()).map_err(ClientError::from_stream)
    }

    fn take(&mut self) -> Result<Option<Frame>, ClientError> {
        let rest = &self.input[self.taken..];
        let found = Frame::decode(rest).map_err(|bad| ClientError::Protocol(bad.0.to_owned()))?;
        let Some((frame, used)) = found else { return Ok(None) };
        self.taken += used;
        self.owed += frame.cost();
        if self.owed > self.window / 4 {
            let owed = std::mem::take(&mut self.owed);
            self.say(&Frame::Credit(owed))?;
        }
        Ok(Some(frame))
    }

    /// Reads what has come; answers whether anything has.
    fn fill(&mut self, patience: Duration) -> Result<bool, ClientError> {
        if self.patience != patience {
            self.stream.sock.set_read_timeout(Some(patience)).map_err(ClientError::Io)?;
            self.patience = patience;
        }
        self.input.drain(..self.taken);
        self.taken = 0;
        // Something may have come with the end of the handshake.
        if self.decrypted()? {
            return Ok(true);
        }
        // rustls by itself asks the socket for 4 KiB at a time.
        let mut wire = std::mem::take(&mut self.wire);
        wire.resize(READ, 0);
        let outcome = match self.stream.sock.read(&mut wire) {
            Ok(0) => Err(ClientError::Io(ErrorKind::UnexpectedEof.into())),
            Ok(count) => self.decrypt(&wire[..count]),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => Ok(false),
                _ => Err(ClientError::from_stream(error)),
            },
        };
        self.wire = wire;
        outcome
    }

    fn decrypt(&mut self, mut bytes: &[u8]) -> Result<bool, ClientError> {
        self.heard = Instant::now();
        let mut any = false;
        while !bytes.is_empty() {
            self.stream.conn.read_tls(&mut bytes).map_err(ClientError::from_stream)?;
            match self.decrypted() {
                Ok(more) => any |= more,
                // What came before it is taken first; it is told again then.
                Err(_) if any => break,
                Err(error) => return Err(error),
            }
        }
        Ok(any)
    }

    /// Takes what TLS has decrypted; answers whether there was anything.
    fn decrypted(&mut self) -> Result<bool, ClientError> {
        let state = self.stream.conn.process_new_packets();
        while self.stream.conn.wants_write() {
            // An answer to new keys, or why this side goes: the next read tells what comes of it.
            if self.stream.conn.write_tls(&mut self.stream.sock).is_err() {
                break;
            }
        }
        let invalid = |error| ClientError::from_stream(std::io::Error::new(ErrorKind::InvalidData, error));
        let state = state.map_err(invalid)?;
        let count = state.plaintext_bytes_to_read();
        if count == 0 && state.peer_has_closed() {
            return Err(ClientError::Io(ErrorKind::UnexpectedEof.into()));
        }
        let before = self.input.len();
        self.input.resize(before + count, 0);
        self.stream.conn.reader().read_exact(&mut self.input[before..]).map_err(ClientError::from_stream)?;
        Ok(count > 0)
    }

    fn event(&mut self, frame: Frame) -> Result<ChangeEvent, ClientError> {
        let protocol = |text: &str| ClientError::Protocol(text.to_owned());
        let between = matches!(frame, Frame::Progress(_) | Frame::Refuse(_));
        if self.wanted.is_empty() == matches!(frame, Frame::Value(_)) && !between {
            return Err(protocol("the large values of a batch are not where they should be"));
        }
        Ok(match frame {
            Frame::Batch(body) => {
                let wanted = &mut self.wanted;
                body::read(&body, true, |_, _, changes| {
                    wanted.extend(changes.iter().filter_map(|change| match change {
                        Change::SetLarge(_, length, checksum) => Some((*length, *checksum)),
                        _ => None,
                    }));
                    Ok::<_, BodyError>(())
                })
                .map_err(|error| match error {
                    BodyError::Damaged(what) => protocol(what),
                    BodyError::Newer(format) => ClientError::Protocol(format!(
                        "batches are in format {format}, which this program does not read; is it older than the server?"
                    )),
                })?;
                wanted.reverse();
                ChangeEvent::Batch(body)
            }
            Frame::Value(value) => {
                if self.wanted.pop() != Some((value.len() as u32, crc(&[&value]))) {
                    return Err(protocol("a large value is not the one that its batch names"));
                }
                ChangeEvent::Value(value)
            }
            Frame::Accept { last, shown, epochs } => ChangeEvent::Begun { last, shown, epochs },
            Frame::Refuse(refusal) => ChangeEvent::Refused(refusal),
            Frame::Progress(version) => ChangeEvent::Progress(version),
            Frame::Epochs(epochs) => ChangeEvent::Epochs(epochs),
            Frame::Copy { version, keys, epochs } => {
                self.sum = CopySum::default();
                ChangeEvent::Copy { version, keys, epochs }
            }
            Frame::Rows(bytes) => {
                let rows = take_entries(&bytes).map_err(|bad| ClientError::Protocol(bad.0.to_owned()))?;
                rows.iter().for_each(|row| self.sum.add(&row.key, row.value.len() as u32, crc(&[&row.value])));
                ChangeEvent::Rows(rows)
            }
            Frame::CopyEnd(sum) if sum == self.sum => ChangeEvent::CopyEnd(sum),
            Frame::CopyEnd(sum) => {
                return Err(ClientError::Protocol(format!("a copy came to {:?}, and should to {sum:?}", self.sum)));
            }
            Frame::Subscribe(_) | Frame::Credit(_) | Frame::Confirm(_) | Frame::Beat => {
                return Err(protocol("the server says what only consumers say"));
            }
        })
    }
}
