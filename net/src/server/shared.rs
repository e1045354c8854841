//! The little that cores share about connections: how many there are, how many were refused. Touched once per connection,
//! and for a request only where it is refused.

use super::refusals::Refusals;
use crate::tls::Terms;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use turnstone_engine::budget::Budget;

/// Counts of a node.
pub struct Shared {
    started: Instant,
    connections: AtomicUsize,
    handshakes: AtomicUsize,
    accepted: AtomicU64,
    /// Who was refused, and why.
    pub refusals: Refusals,
    /// The memory of all requests and replies.
    pub memory: Arc<Budget>,
    /// When the node's certificates end.
    certificates: Mutex<Terms>,
}

fn take_place(counter: &AtomicUsize, limit: usize) -> bool {
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < limit).then_some(n + 1)).is_ok()
}

impl Shared {
    /// Of a node whose requests and replies may take so many bytes.
    pub fn new(request_memory: u64) -> Shared {
        Shared {
            memory: Budget::new(request_memory),
            certificates: Mutex::default(),
            started: Instant::now(),
            connections: AtomicUsize::new(0),
            handshakes: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            refusals: Refusals::default(),
        }
    }

    /// The node's certificates, as they were read last.
    pub fn certificates(&self) -> MutexGuard<'_, Terms> {
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Time since the start.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
    /// Takes a place for a handshake.
    pub fn admit_handshake(&self, limit: usize) -> bool {
        take_place(&self.handshakes, limit)
    }
    /// Gives it back.
    pub fn handshake_over(&self) {
        self.handshakes.fetch_sub(1, Ordering::Relaxed);
    }
    /// Sockets of connections and of handshakes.
    pub fn sockets(&self) -> u64 {
        (self.handshakes.load(Ordering::Relaxed) + self.connections.load(Ordering::Relaxed)) as u64
    }
    /// Takes a place for a connection.
    pub fn admit_connection(&self, limit: usize) -> bool {
        take_place(&self.connections, limit)
    }
    /// Gives it back.
    pub fn connection_closed(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
    /// A connection was accepted.
    pub fn count_accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }
    /// Connections now, and accepted so far.
    pub fn counts(&self) -> (usize, u64) {
        (self.connections.load(Ordering::Relaxed), self.accepted.load(Ordering::Relaxed))
    }
}
