//! Connections and requests that were refused or given up: counted by reason, and told in the log a few times a second at
//! most, so that an attack fills no disk and hides no reason.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use turnstone_engine::env::Level;
use turnstone_executor::Log;

macro_rules! refusals {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal;)+) => {
        /// Why somebody was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Refusal {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Refusal {
            /// Every reason.
            pub const ALL: &'static [Refusal] = &[$(Refusal::$variant),+];

            /// The word that stands for it in partition 0 and in the log.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Refusal::$variant => $name,)+
                }
            }
        }
    };
}

refusals! {
    /// `max_conns` connections are open.
    MaxConns = "max_conns";
    /// `max_handshakes` handshakes are under way.
    MaxHandshakes = "max_handshakes";
    /// Descriptors are short.
    Descriptors = "descriptors";
    /// The bytes are no TLS, or not ours.
    Handshake = "handshake";
    /// The certificate is missing, not good, or not its bearer's.
    Certificate = "certificate";
    /// The peer closed before its handshake was over.
    WentAway = "went_away";
    /// The handshake took too long.
    HandshakeTimeout = "handshake_timeout";
    /// The certificate names no role; the connection stands, everything is denied.
    Role = "role";
    /// Behind the handshake came bytes that are not encrypted as agreed.
    Encrypted = "encrypted";
    /// A request is malformed, too long, or not for this role; the connection stands.
    Request = "request";
    /// A request that had begun did not come to its end in time.
    RequestTimeout = "request_timeout";
    /// Nothing was asked for too long.
    IdleTimeout = "idle_timeout";
    /// Replies were not taken for too long.
    WriteTimeout = "write_timeout";
}

const REASONS: usize = Refusal::ALL.len();

/// Lines in a second, without the one that counts the rest.
const LINES_PER_SECOND: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);

/// Counts since the start.
pub struct Refusals {
    counts: [AtomicU64; REASONS],
    quiet: Mutex<Quiet>,
}

/// A second of lines.
struct Quiet {
    since: Instant,
    lines: u32,
    unsaid: [u64; REASONS],
}

impl Quiet {
    fn new() -> Quiet {
        Quiet { since: Instant::now(), lines: 0, unsaid: [0; REASONS] }
    }

    /// Begins another second if this one is over; answers what is to be said of it.
    fn turn_over(&mut self) -> Option<String> {
        if self.since.elapsed() < SECOND {
            return None;
        }
        let text = unsaid_text(&self.unsaid);
        *self = Quiet::new();
        text
    }
}

/// How many refusals of which kind were not logged one by one.
fn unsaid_text(unsaid: &[u64; REASONS]) -> Option<String> {
    let kinds = Refusal::ALL.iter().zip(unsaid).filter(|(_, count)| **count > 0);
    let list: Vec<String> = kinds.map(|(kind, count)| format!("{} {count}", kind.name())).collect();
    let total: u64 = unsaid.iter().sum();
    (total > 0).then(|| format!("{total} more refusals in the last second: {}", list.join(", ")))
}

impl Default for Refusals {
    fn default() -> Refusals {
        Refusals { counts: Default::default(), quiet: Mutex::new(Quiet::new()) }
    }
}

impl Refusals {
    /// Counts one, and logs it unless there were many just now. The text is made only if it is written.
    pub fn count(&self, log: &Log, kind: Refusal, text: impl FnOnce() -> String) {
        self.counts[kind as usize].fetch_add(1, Ordering::Relaxed);
        let Ok(mut quiet) = self.quiet.lock() else { return };
        if let Some(text) = quiet.turn_over() {
            log.line(Level::Warn, &text);
        }
        if quiet.lines < LINES_PER_SECOND {
            quiet.lines += 1;
            log.line(Level::Warn, &text());
        } else {
            quiet.unsaid[kind as usize] += 1;
        }
    }

    /// Says what is still unsaid of a second that is over, though nothing more is refused.
    pub fn catch_up(&self, log: &Log) {
        let Ok(mut quiet) = self.quiet.lock() else { return };
        if let Some(text) = quiet.turn_over() {
            log.line(Level::Warn, &text);
        }
    }

    /// All counts, by reason.
    pub fn all(&self) -> Vec<(Refusal, u64)> {
        Refusal::ALL.iter().map(|kind| (*kind, self.counts[*kind as usize].load(Ordering::Relaxed))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_logged_is_counted_by_reason() {
        let mut unsaid = [0; REASONS];
        assert_eq!(unsaid_text(&unsaid), None);
        unsaid[Refusal::Certificate as usize] = 40;
        unsaid[Refusal::WriteTimeout as usize] = 2;
        let expected = "42 more refusals in the last second: certificate 40, write_timeout 2";
        assert_eq!(unsaid_text(&unsaid).as_deref(), Some(expected));
    }

    #[test]
    fn a_second_takes_ten_lines_and_every_refusal_is_counted() {
        let refusals = Refusals::default();
        let log = Log::start(turnstone_executor::log::Format::Text, Level::Error).unwrap();
        let mut written = 0;
        for _ in 0..1000 {
            refusals.count(&log, Refusal::Handshake, || {
                written += 1;
                String::new()
            });
        }
        assert!((10..=40).contains(&written), "{written} lines");
        for (kind, count) in refusals.all() {
            assert_eq!(count, if kind == Refusal::Handshake { 1000 } else { 0 }, "{}", kind.name());
        }
    }
}
