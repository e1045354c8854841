//! The door: connections in their handshakes, and what keeps them from being a burden to those that are in.
//!
//! A handshake costs as much as a hundred requests. So received bytes of connections that are not in yet wait until the
//! requests of a turn have been run, and a turn does only a little for them.

use super::connection::{Fault, Stage};
use super::core::ServerCore;
use super::handoff::Message;
use super::refusals::Refusal;
use std::time::{Duration, Instant};

/// What a turn does for handshakes: the step that passes this is its last.
const TURN_GREETING: Duration = Duration::from_micros(100);
/// Bytes of one handshake that may wait. Behind a Finished there may be requests, and these are not waited with.
const UNHEARD_MAX: usize = 64 << 10;

impl ServerCore {
    /// Counts a refusal of a connection, and says who it was.
    pub(super) fn refuse(&self, id: u64, kind: Refusal, what: &str) {
        self.shared.refusals.count(&self.core.log, kind, || {
            let socket = self.connections.borrow().get(&id).map(|c| c.socket);
            let peer = socket.and_then(|socket| self.core.ring.peer(socket));
            let peer = peer.map_or_else(|| "a connection".to_string(), |peer| peer.to_string());
            format!("{peer} {what}")
        });
    }

    pub(super) fn fail_handshake(&self, id: u64, fault: &Fault) {
        if let Some(link) = self.links.borrow().get(&id) {
            // This node's own attempt: who made it tells why it failed.
            return link.fail(&fault.text);
        }
        self.refuse(id, fault.kind, &format!("was refused in its handshake: {}", fault.text));
        self.with(id, |connection| {
            connection.ending = true;
            if connection.is_greeting() {
                self.shared.handshake_over();
            }
            connection.stage = Stage::Ending;
        });
    }

    /// A place for one more handshake. At the limit the oldest makes room, wherever it is: nearly all good ones are over
    /// before they are the oldest.
    pub(super) fn admit_handshake(&self) -> bool {
        let limit = self.settings.max_handshakes;
        if self.shared.admit_handshake(limit) || (self.end_oldest_handshake() && self.shared.admit_handshake(limit)) {
            return true;
        }
        // The others are on other cores: one of them makes room in a moment, and until then there are a few more.
        let cores = self.core.mesh.cores();
        if cores == 1 || !self.shared.admit_handshake(limit.saturating_mul(2)) {
            return false;
        }
        self.post(1 + self.next_room.replace(self.next_room.get() + 1) % (cores - 1), Message::MakeRoom);
        true
    }

    /// Remembers when it came.
    pub(super) fn begin_handshake(&self, id: u64) {
        let mut greeting = self.greeting.borrow_mut();
        while greeting.front().is_some_and(|id| !self.is_greeting(*id)) {
            greeting.pop_front();
        }
        greeting.push_back(id);
    }

    fn is_greeting(&self, id: u64) -> bool {
        self.connections.borrow().get(&id).is_some_and(|c| c.is_greeting() && c.leaving.is_none())
    }

    /// Makes room for a newcomer; answers whether there was anybody here to make it.
    pub(super) fn end_oldest_handshake(&self) -> bool {
        loop {
            let Some(id) = self.greeting.borrow_mut().pop_front() else { return false };
            if self.is_greeting(id) {
                let what = "was closed in its handshake: others want to come in (max_handshakes)";
                self.refuse(id, Refusal::MaxHandshakes, what);
                self.abort(id);
                return true;
            }
        }
    }

    /// Keeps what came of a handshake until there is time for it; answers whether it did.
    pub(super) fn put_off(&self, id: u64, bytes: &[u8]) -> bool {
        let too_much = {
            let mut connections = self.connections.borrow_mut();
            let Some(c) = connections.get_mut(&id) else { return false };
            if !c.is_greeting() || c.leaving.is_some() {
                return false;
            }
            if c.unheard.is_empty() && c.accepted.is_none() {
                self.to_greet.borrow_mut().push_back(id);
            }
            c.unheard.extend_from_slice(bytes);
            c.unheard.len() > UNHEARD_MAX
        };
        if too_much {
            self.greet(id);
        }
        true
    }

    /// Goes on with handshakes for a little while.
    pub(super) fn greet_some(&self) {
        let Some(mut next) = self.to_greet.borrow_mut().pop_front() else { return };
        let started = Instant::now();
        loop {
            self.greet(next);
            if started.elapsed() > TURN_GREETING {
                return;
            }
            let Some(id) = self.to_greet.borrow_mut().pop_front() else { return };
            next = id;
        }
    }

    /// Goes on with a handshake, if something came for it.
    pub(super) fn greet(&self, id: u64) {
        let (accepted, bytes) = match self.connections.borrow_mut().get_mut(&id) {
            Some(c) => (c.accepted.take(), std::mem::take(&mut c.unheard)),
            None => return,
        };
        match accepted {
            Some(accepted) => match self.with(id, |c| c.greet(*accepted, self.tls.borrow().clone())) {
                Some(Ok(())) => self.hear_tls(id, &bytes),
                Some(Err(fault)) => self.fail_handshake(id, &fault),
                None => {}
            },
            None if bytes.is_empty() => {}
            None => self.hear(id, &bytes),
        }
    }

    /// Whether it was in the middle of its handshake. Who has said nothing only looked whether somebody listens.
    pub(super) fn was_greeting(&self, id: u64) -> bool {
        let connections = self.connections.borrow();
        connections.get(&id).is_some_and(|c| match c.stage {
            Stage::Hello(_) => c.heard > c.since,
            Stage::Handshake(_) => !c.outbound,
            Stage::Open(_) | Stage::Ending => false,
        })
    }
}
