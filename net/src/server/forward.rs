//! Forwarded conversations: the socket stays on its core, the conversation runs on its partition's.
//!
//! Bytes go one piece at a time: the next piece is sent when the conversation said that the last one was *taken*, and it
//! says so when less than a whole request is left of what it has. From that follows what makes a `select` safe: a
//! conversation leaves its core only after running a whole request, so never while a piece is on its way to it. What it
//! did not run travels back with it, and what arrived meanwhile goes behind that.
//!
//! Replies go back as they come, until so many are on their way that the socket's core must first say that they left.

use super::connection::{Connection, Place};
use super::conversation::{Conversation, Key};
use super::core::{ServerCore, WIRE_MAX};
use super::handoff::{Message, Parked};
use turnstone_executor::placement;

impl ServerCore {
    /// Only the conversation travels.
    pub(super) fn send_conversation(&self, id: u64, core: usize, parked: Parked) {
        self.with(id, |connection| {
            connection.undrained = 0;
            let told_last = parked.last_input;
            // What travels with it counts as a piece.
            connection.place = Place::There { core, waiting: true, told_last, input: Vec::new() };
        });
        self.post(core, Message::Converse { home: self.core.index, id, parked: Box::new(parked) });
    }

    /// Sends the next input of a forwarded conversation, one at a time.
    pub(super) fn forward(&self, id: u64) {
        let next = self.with(id, |connection| {
            let last = connection.peer_done;
            match &mut connection.place {
                Place::There { core, waiting, told_last, input }
                    if !*waiting && (!input.is_empty() || (last && !*told_last)) =>
                {
                    *waiting = true;
                    *told_last = last;
                    Some((*core, std::mem::take(input), last))
                }
                _ => None,
            }
        });
        if let Some(Some((core, bytes, last))) = next {
            self.post(core, Message::Input { home: self.core.index, id, bytes, last });
            self.unchoke(id);
        }
    }

    /// On the partition's core: takes up a forwarded conversation.
    pub(super) fn take_conversation(&self, key: Key, parked: Parked) {
        let mut conversation = Conversation::new(parked, &self.shared.memory);
        conversation.owes_taken = true;
        self.take_up(key, conversation);
    }

    /// On the partition's core: more bytes.
    pub(super) fn take_input(&self, key: Key, bytes: &[u8], last: bool) {
        let known = {
            let mut conversations = self.conversations.borrow_mut();
            conversations.get_mut(&key).map(|conversation| {
                conversation.input.extend(bytes);
                conversation.owes_taken = true;
                conversation.last_input |= last;
            })
        };
        // It is unknown only if it is over.
        if known.is_some() {
            self.mark(key);
        }
    }

    /// On the partition's core: passes on what a conversation has to say, and lets it go where it wants.
    pub(super) fn hand_over_forwarded(&self, key: Key, out: Vec<u8>, over: bool, leaves: bool) {
        let taken = {
            let mut conversations = self.conversations.borrow_mut();
            let Some(c) = conversations.get_mut(&key) else { return };
            c.undrained += out.len();
            c.throttled |= c.undrained > c.memory.window(WIRE_MAX);
            c.account(c.undrained);
            let taken = c.owes_taken && c.hungry && !c.blocked && c.leaving.is_none();
            c.owes_taken &= !taken;
            taken
        };
        if !out.is_empty() || over || taken {
            self.post(key.home, Message::Output { id: key.id, bytes: out, taken, closed: over });
        }
        if over {
            return self.drop_conversation(key);
        }
        if leaves {
            let conversation = self.conversations.borrow_mut().remove(&key);
            self.drop_conversation(key);
            if let Some(conversation) = conversation {
                let parked = Box::new(conversation.park());
                self.post(key.home, Message::Return { id: key.id, parked });
            }
        }
    }

    /// On the socket's core: replies.
    pub(super) fn take_output(&self, id: u64, bytes: &[u8], taken: bool, closed: bool) {
        self.with(id, |connection| {
            connection.say(bytes);
            connection.undrained += bytes.len();
            if let Place::There { waiting, .. } = &mut connection.place
                && taken
            {
                *waiting = false;
            }
            if closed {
                connection.place = Place::Nowhere;
                connection.say_goodbye();
            }
        });
        self.drain(id);
        self.forward(id);
    }

    /// Tells a forwarded conversation that its replies have left, if few enough wait.
    pub(super) fn drain(&self, id: u64) {
        let left = {
            let mut connections = self.connections.borrow_mut();
            connections.get_mut(&id).and_then(|connection| match &connection.place {
                Place::There { core, .. } if connection.undrained > 0 && connection.wire.len() <= WIRE_MAX => {
                    Some((*core, std::mem::take(&mut connection.undrained)))
                }
                _ => None,
            })
        };
        if let Some((core, bytes)) = left {
            self.post(core, Message::Drained { home: self.core.index, id, bytes });
        }
    }

    /// On the partition's core: replies have left.
    pub(super) fn take_drained(&self, key: Key, bytes: usize) {
        let resumed = {
            let mut conversations = self.conversations.borrow_mut();
            conversations.get_mut(&key).is_some_and(|conversation| {
                conversation.undrained = conversation.undrained.saturating_sub(bytes);
                conversation.account(conversation.undrained);
                conversation.undrained <= conversation.memory.window(WIRE_MAX) / 2
                    && std::mem::take(&mut conversation.throttled)
            })
        };
        if resumed {
            self.mark(key);
        }
    }

    /// A forwarded conversation came back, to go to another core or to stay.
    pub(super) fn take_back(&self, id: u64, mut parked: Parked) {
        let rest = self.with(id, |connection: &mut Connection| {
            let rest = match &mut connection.place {
                Place::There { input, .. } => std::mem::take(input),
                _ => Vec::new(),
            };
            (rest, connection.peer_done)
        });
        let Some((rest, peer_done)) = rest else { return };
        // Its last piece is in what came back.
        parked.input.extend_from_slice(&rest);
        parked.last_input |= peer_done;
        let target = placement::home_of(parked.session.selected, self.core.mesh.cores());
        if target == self.core.index {
            self.start_conversation(id, parked);
        } else {
            self.send_conversation(id, target, parked);
        }
        self.unchoke(id);
    }
}
