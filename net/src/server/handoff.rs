//! What travels between cores: connections that move to their partition's core, conversations that are forwarded, and
//! questions about the node. All of it is plain data; a lost message closes its descriptor.

use crate::session::Session;
use rustls::ServerConfig;
use rustls::server::Accepted;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

/// A conversation between requests: nothing is open, nothing waits.
pub struct Parked {
    /// Who speaks, and what is selected.
    pub session: Session,
    /// Bytes that were received and not parsed yet.
    pub input: Vec<u8>,
    /// Nothing comes behind it.
    pub last_input: bool,
}

/// A connection on its way to another core.
pub struct Moving {
    /// Its socket.
    pub fd: OwnedFd,
    /// Its TLS state.
    pub tls: rustls::Connection,
    /// Its conversation.
    pub parked: Parked,
    /// How often it has moved.
    pub moves: u32,
    /// The peer sends no more.
    pub peer_done: bool,
}

/// A connection whose ClientHello named a partition of another core: that core pays for the handshake.
pub struct Greeting {
    /// Its socket.
    pub fd: OwnedFd,
    /// The ClientHello, and what came with it.
    pub accepted: Accepted,
    /// Bytes that came behind.
    pub extra: Vec<u8>,
    /// When it was accepted.
    pub since: Instant,
}

/// A message between cores.
pub enum Message {
    /// Finish this handshake.
    Greet(Box<Greeting>),
    /// Take over this connection.
    Move(Box<Moving>),
    /// Run this conversation for connection `id` of core `home`.
    Converse {
        /// The core with the socket.
        home: usize,
        /// The connection there.
        id: u64,
        /// The conversation.
        parked: Box<Parked>,
    },
    /// Bytes for a forwarded conversation; the next come after it said that these were taken, which it says when less
    /// than a whole request is left of them. So it never goes elsewhere while bytes are on their way to it.
    Input {
        /// The core with the socket.
        home: usize,
        /// The connection there.
        id: u64,
        /// What arrived.
        bytes: Vec<u8>,
        /// Nothing comes behind it.
        last: bool,
    },
    /// Replies of a forwarded conversation have left.
    Drained {
        /// The core with the socket.
        home: usize,
        /// The connection there.
        id: u64,
        /// How many bytes of them.
        bytes: usize,
    },
    /// Replies of a forwarded conversation.
    Output {
        /// The connection.
        id: u64,
        /// Plain bytes to send.
        bytes: Vec<u8>,
        /// The last input was taken, more may come.
        taken: bool,
        /// The conversation is over.
        closed: bool,
    },
    /// A forwarded conversation selected a partition of another core.
    Return {
        /// The connection.
        id: u64,
        /// The conversation.
        parked: Box<Parked>,
    },
    /// The connection of a forwarded conversation is gone.
    Gone {
        /// The core with the socket.
        home: usize,
        /// The connection there.
        id: u64,
    },
    /// Tell core `from` about your partitions.
    Ask {
        /// Who asks.
        from: usize,
        /// The question's number there.
        ticket: u64,
    },
    /// What a core tells: for each of its partitions, its number and a JSON object.
    Tell {
        /// The question's number.
        ticket: u64,
        /// Partition and JSON.
        partitions: Vec<(u8, String)>,
    },
    /// What this partition may have of the node's budgets, bytes.
    Share {
        /// The partition.
        partition: u8,
        /// Checkpointed log.
        log: u64,
        /// Memory for recent versions.
        overlay: u64,
        /// Log that is not checkpointed yet.
        unsettled: u64,
        /// Cache of settled keys.
        cache: u64,
    },
    /// Others want to come in: end the handshake that is under way for longest.
    MakeRoom,
    /// New connections are greeted with these certificates.
    Certificates(Arc<ServerConfig>),
    /// Finish what is in flight and end.
    Shutdown,
}

/// Moving is safe to compile only while all of it may cross threads.
const _: () = {
    const fn may_cross<T: Send>() {}
    may_cross::<Message>();
};
