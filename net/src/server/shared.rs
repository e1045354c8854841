//! The little that cores share about connections: how many there are, how many were refused. Touched once per connection,
//! never per request.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use turnstone_engine::env::Level;
use turnstone_executor::Log;

/// Counts of a node.
pub struct Shared {
    started: Instant,
    connections: AtomicUsize,
    handshakes: AtomicUsize,
    accepted: AtomicU64,
    at_limit: AtomicU64,
    failed_handshakes: AtomicU64,
    deadlines: AtomicU64,
    quiet: Mutex<Quiet>,
}

/// Refusals are logged a few times a second at most.
struct Quiet {
    since: Instant,
    lines: u32,
    unsaid: u64,
}

const LINES_PER_SECOND: u32 = 10;

impl Default for Shared {
    fn default() -> Shared {
        Shared {
            started: Instant::now(),
            connections: AtomicUsize::new(0),
            handshakes: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            at_limit: AtomicU64::new(0),
            failed_handshakes: AtomicU64::new(0),
            deadlines: AtomicU64::new(0),
            quiet: Mutex::new(Quiet { since: Instant::now(), lines: 0, unsaid: 0 }),
        }
    }
}

fn take_place(counter: &AtomicUsize, limit: usize) -> bool {
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < limit).then_some(n + 1)).is_ok()
}

impl Shared {
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
    /// Takes a place for a connection.
    pub fn admit_connection(&self, limit: usize) -> bool {
        let admitted = take_place(&self.connections, limit);
        if !admitted {
            self.at_limit.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }
    /// Gives it back.
    pub fn connection_closed(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }
    /// A connection was accepted.
    pub fn count_accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }
    /// A handshake failed or found no place.
    pub fn count_failed_handshake(&self) {
        self.failed_handshakes.fetch_add(1, Ordering::Relaxed);
    }
    /// A connection missed a deadline.
    pub fn count_deadline(&self) {
        self.deadlines.fetch_add(1, Ordering::Relaxed);
    }
    /// Connections now, accepted so far, and refused at the limit, in the handshake, for a deadline.
    pub fn counts(&self) -> (usize, u64, [u64; 3]) {
        let get = |c: &AtomicU64| c.load(Ordering::Relaxed);
        let refused = [get(&self.at_limit), get(&self.failed_handshakes), get(&self.deadlines)];
        (self.connections.load(Ordering::Relaxed), get(&self.accepted), refused)
    }

    /// Logs a refusal, unless there were many just now; how many were left out is said later.
    pub fn log_refusal(&self, log: &Log, text: String) {
        let Ok(mut quiet) = self.quiet.lock() else { return };
        if quiet.since.elapsed() >= Duration::from_secs(1) {
            if quiet.unsaid > 0 {
                log.line(Level::Warn, &format!("{} more refusals in the last second", quiet.unsaid));
            }
            *quiet = Quiet { since: Instant::now(), lines: 0, unsaid: 0 };
        }
        if quiet.lines < LINES_PER_SECOND {
            quiet.lines += 1;
            log.line(Level::Warn, &text);
        } else {
            quiet.unsaid += 1;
        }
    }
}
