//! Decrypted bytes on their way to their conversation, on this core or another one, and connections that are not listened to for
//! a while because enough is unparsed.

use super::connection::{Connection, Place};
use super::core::{ServerCore, WIRE_MAX};
use turnstone_engine::budget::FREE;

impl ServerCore {
    /// Hands decrypted bytes to the conversation, wherever it is.
    pub(super) fn deliver(&self, id: u64, plain: &[u8]) {
        if plain.is_empty() || self.hear_link(id, plain) {
            return;
        }
        let here = match self.connections.borrow_mut().get_mut(&id).map(|c| (&mut c.place, &mut c.choked, c.socket)) {
            Some((Place::Here, ..)) => true,
            Some((Place::There { input, .. }, choked, socket)) => {
                input.extend_from_slice(plain);
                // The other core takes it piece by piece, and gathers the request.
                let most = if self.shared.memory.is_short() { FREE } else { WIRE_MAX };
                if input.len() > most && !*choked {
                    *choked = true;
                    self.core.ring.stop_receiving(socket);
                }
                false
            }
            _ => return,
        };
        if !here {
            return self.forward(id);
        }
        let key = self.here(id);
        let mut conversations = self.conversations.borrow_mut();
        if let Some(conversation) = conversations.get_mut(&key) {
            conversation.input.extend(plain);
            let too_much = conversation.input.len() > self.input_max();
            drop(conversations);
            self.mark(key);
            if too_much {
                self.choke(id);
            }
        }
    }

    /// Bytes that may be received and not parsed: a whole request and some.
    pub(super) fn input_max(&self) -> usize {
        self.settings.max_request_size as usize + (256 << 10)
    }

    pub(super) fn choke(&self, id: u64) {
        self.with(id, |connection| {
            if !connection.choked {
                connection.choked = true;
                self.core.ring.stop_receiving(connection.socket);
            }
        });
    }

    pub(super) fn unchoke(&self, id: u64) {
        self.with(id, |connection| {
            if connection.choked && connection.leaving.is_none() && !connection.peer_done {
                connection.choked = false;
                self.core.ring.receive(connection.socket);
            }
        });
    }

    /// The peer sends no more, or is listened to no more: what it asked before is still run and answered, an open
    /// transaction is discarded.
    pub(super) fn peer_finished(&self, id: u64) {
        let (here, there) =
            (|c: &Connection| c.place == Place::Here, |c: &Connection| matches!(c.place, Place::There { .. }));
        let place = self.connections.borrow().get(&id).map(|c| (here(c), there(c), c.leaving.is_some()));
        match place {
            Some((true, ..)) => {
                let key = self.here(id);
                if let Some(conversation) = self.conversations.borrow_mut().get_mut(&key) {
                    conversation.over_after_input();
                }
                self.mark(key);
            }
            Some((_, true, _)) => self.forward(id),
            Some((_, _, false)) => {
                self.with(id, Connection::say_goodbye);
            }
            _ => {}
        }
    }
}
