//! Time on a core of the server: deadlines of connections and requests, and its own end.

use super::connection::{Connection, Place};
use super::conversation::{Conversation, Key};
use super::core::{ServerCore, Slot};
use super::refusals::Refusal;
use std::rc::Weak;
use std::time::{Duration, Instant, SystemTime};
use turnstone_engine::Partition;
use turnstone_engine::env::Level;
use turnstone_executor::RealEnv;

/// How often deadlines are looked at.
pub(super) const SWEEP: Duration = Duration::from_millis(100);

/// How often it is looked at when certificates end.
const CERTIFICATES: Duration = Duration::from_secs(60);

/// When something is ended that may take this long at most: deadlines are looked at now and then, and not all of the
/// time may have passed on this side.
fn in_time(limit: Duration) -> Duration {
    limit.saturating_sub((2 * SWEEP).min(limit / 10))
}

impl ServerCore {
    fn sweep(&self) {
        let now = Instant::now();
        let limits = &self.settings;
        let mut late = Vec::new();
        for (id, connection) in self.connections.borrow().iter() {
            let age = |since: Instant| now.saturating_duration_since(since);
            let key = self.here(*id);
            if connection.is_greeting() {
                if age(connection.since) > in_time(limits.handshake_timeout) {
                    let what = "was closed: its handshake took longer than handshake_timeout";
                    late.push((*id, Refusal::HandshakeTimeout, what));
                }
            } else if self.links.borrow().contains_key(id) {
                // Streams have deadlines of their own: a follower may be slow, if only it lives.
            } else if connection.sending && age(connection.send_since) > in_time(limits.write_timeout) {
                late.push((*id, Refusal::WriteTimeout, "was closed: it took no replies for write_timeout"));
            } else if age(connection.heard) > limits.idle_timeout && !self.is_busy(connection, key) {
                late.push((*id, Refusal::IdleTimeout, "was closed: it asked nothing for idle_timeout"));
            }
        }
        for (id, kind, what) in late {
            if !self.links.borrow().contains_key(&id) {
                self.refuse(id, kind, what);
            }
            self.abort(id);
        }
        self.end_late_requests();
        self.conversations.borrow_mut().values_mut().for_each(Conversation::forget_old_transaction);
        self.shared.refusals.catch_up(&self.core.log);
        if let Some(deadline) = self.stopping.get() {
            self.go_on_stopping(now, deadline);
        }
    }

    /// Says goodbye to conversations whose request has begun and does not come to its end.
    fn end_late_requests(&self) {
        let limit = in_time(self.settings.request_timeout);
        let late: Vec<Key> = {
            let mut conversations = self.conversations.borrow_mut();
            let late = conversations.iter_mut().filter(|(_, c)| c.is_late(limit) && !c.over);
            late.map(|(key, c)| {
                c.over = true;
                *key
            })
            .collect()
        };
        for key in late {
            let id = if key.home == self.core.index { key.id } else { 0 };
            let what = "was closed: a request that had begun was not whole within request_timeout";
            self.refuse(id, Refusal::RequestTimeout, what);
            self.mark(key);
        }
    }

    /// Whether a request of this connection is not answered yet.
    fn is_busy(&self, connection: &Connection, key: Key) -> bool {
        match &connection.place {
            Place::There { waiting, input, .. } => *waiting || !input.is_empty(),
            _ => self.conversations.borrow().get(&key).is_some_and(|c| !c.is_settled()),
        }
    }

    /// Accepts and listens no more; whole requests that have arrived are run and answered. Streams go on until that is done:
    /// commits may wait for followers, and whoever takes over has what was answered.
    pub(super) fn stop(&self) {
        if self.stopping.get().is_some() {
            return;
        }
        self.stopping.set(Some(Instant::now() + self.settings.shutdown_timeout));
        self.core.ring.stop_accepting();
        let (open, greeting): (Vec<_>, Vec<_>) = {
            let connections = self.connections.borrow();
            let links = self.links.borrow();
            let asking = connections.iter().filter(|(id, c)| c.is_greeting() || !links.contains_key(id));
            asking.map(|(id, c)| (*id, c.is_open())).partition(|(_, open)| *open)
        };
        greeting.into_iter().for_each(|(id, _)| self.abort(id));
        open.into_iter().for_each(|(id, _)| self.hear_no_more(id));
    }

    pub(super) fn hear_no_more(&self, id: u64) {
        self.with(id, |connection| {
            connection.peer_done = true;
            connection.choked = true;
            self.core.ring.stop_receiving(connection.socket);
        });
        self.peer_finished(id);
    }

    fn go_on_stopping(&self, now: Instant, deadline: Instant) {
        let streams = self.streams_left();
        let done =
            self.connections.borrow().len() == self.links.borrow().len() && self.conversations.borrow().is_empty();
        // What was answered a moment ago may be on its way into a stream: goodbye is said when the next look finds the same.
        if done && self.answered.replace(done) {
            streams.into_iter().for_each(|id| self.hear_no_more(id));
        }
        let empty = done && self.connections.borrow().is_empty();
        if !(empty || now >= deadline) || self.closing.replace(true) {
            return;
        }
        let ids: Vec<u64> = self.connections.borrow().keys().copied().collect();
        ids.into_iter().for_each(|id| self.abort(id));
        let this = self.this();
        self.core.spawn(async move { this.close_partitions().await });
    }

    /// Streams that nobody has said goodbye to.
    fn streams_left(&self) -> Vec<u64> {
        let (links, connections) = (self.links.borrow(), self.connections.borrow());
        let goes_on = |id: &u64| connections.get(id).is_some_and(|connection| !connection.peer_done);
        links.keys().copied().filter(goes_on).collect()
    }

    async fn close_partitions(&self) {
        let open: Vec<Partition<RealEnv>> = {
            let partitions = self.partitions.borrow();
            let open = partitions.values();
            open.filter_map(|slot| if let Slot::Open(p) = slot { Some(p.clone()) } else { None }).collect()
        };
        for partition in open {
            if let Err(error) = partition.close().await {
                let text = format!("partition {} closed without a checkpoint: {error}", partition.id());
                self.core.log.line(Level::Warn, &text);
            }
        }
        self.core.ring.stop();
    }
}

/// Looks at deadlines as long as the core lives.
pub(super) async fn keep_deadlines(server: Weak<ServerCore>) {
    let mut looked: Option<Instant> = None;
    loop {
        let Some(core) = server.upgrade().map(|s| s.core.clone()) else { return };
        core.sleep(SWEEP).await;
        drop(core);
        let Some(server) = server.upgrade() else { return };
        server.sweep();
        if server.core.index == 0 && looked.is_none_or(|at| at.elapsed() > CERTIFICATES) {
            looked = Some(Instant::now());
            let news = server.shared.certificates().news(SystemTime::now());
            news.iter().for_each(|(level, text)| server.core.log.line(*level, text));
        }
    }
}
