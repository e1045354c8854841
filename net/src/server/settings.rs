//! What a person may choose for the server: plain values. Sizes are bytes.

use crate::tls::TlsFiles;
use std::net::SocketAddr;
use std::time::Duration;

/// Settings of a server.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// This node's own number, drawn once for its home: replication tells nodes apart by it.
    pub node: u64,
    /// Drawn at this start: a node whose home was copied is there twice, with two of these.
    pub life: u64,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where other nodes reach it: `host:port`, or `:port` on the host that its connections come from.
    pub advertise: String,
    /// Its certificate, key and CA.
    pub tls: TlsFiles,
    /// User partitions: 1 to this.
    pub partitions: u8,
    /// Connections with a finished handshake.
    pub max_conns: usize,
    /// Sockets at most, of connections and handshakes: the other descriptors are for files.
    pub sockets_max: u64,
    /// Connections without one yet.
    pub max_handshakes: usize,
    /// A handshake takes at most this long.
    pub handshake_timeout: Duration,
    /// A request that has begun comes to its end within this time, and a second more per 64 KiB of it.
    pub request_timeout: Duration,
    /// A connection that asks nothing is closed after this long.
    pub idle_timeout: Duration,
    /// A connection that takes no replies is closed after this long.
    pub write_timeout: Duration,
    /// Longest payload of a request.
    pub max_request_size: u32,
    /// Memory that all requests and replies may take together, bytes.
    pub request_memory: u64,
    /// How long a shutdown waits for replies to be taken.
    pub shutdown_timeout: Duration,
    /// Settings of each partition.
    pub engine: turnstone_engine::Settings,
    /// A connection that has moved this often stays where it is and is forwarded.
    pub moves_max: u32,
}
