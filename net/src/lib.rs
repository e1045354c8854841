//! Everything between a socket and a partition: the wire codecs (pure), certificates and TLS, and the blocking client.
//!
//! * [`wire`] turns bytes into values and values into bytes; it does no I/O and knows no TLS.
//! * [`tls`] issues and reads certificates, and builds the rustls configurations of both sides.
//! * [`session`] is one connection's state between frames, pure.
//! * [`server`] is the acceptor, the cores with their partitions, and connections that move between them.
//! * [`replica`] moves replication's state machines, over connections that it knows only by a trait.
//! * [`changes`] serves consumers of changes, over the same trait.
//! * [`client`] is a blocking connection for tools and tests; it runs where io_uring does not.

pub mod changes;
pub mod client;
pub mod replica;
pub mod server;
pub mod session;
pub mod tls;
pub mod wire;
