//! Conversations whose next request is long and waits for memory ([`super::memory`]): nothing more of it is received until others
//! have given some back, on whatever core. That is looked at now and then while anybody waits.

use super::conversation::{Conversation, Key};
use super::core::ServerCore;
use crate::wire::{ErrorCode, reply};
use std::time::Duration;
use turnstone_engine::Error;

/// How often it is looked whether memory was given back.
const LOOK: Duration = Duration::from_millis(5);

impl ServerCore {
    /// The request at the front of a conversation's input waits.
    pub(super) fn starve(&self, key: Key, conversation: &mut Conversation) {
        if conversation.last_input {
            // The rest of it never comes.
            conversation.over = true;
            return;
        }
        conversation.partial = None;
        self.starved.borrow_mut().insert(key);
        if key.home == self.core.index {
            self.choke(key.id);
        }
        if self.feeding.replace(true) {
            return;
        }
        let this = self.this();
        self.core.spawn(async move {
            loop {
                this.core.sleep(LOOK).await;
                let starved = std::mem::take(&mut *this.starved.borrow_mut());
                if starved.is_empty() || this.closing.get() {
                    break;
                }
                // Who still waits comes back.
                starved.into_iter().for_each(|key| this.mark(key));
            }
            this.feeding.set(false);
        });
    }

    /// It has waited for too long: it is refused, and skipped as it comes. Answers how many bytes are done with.
    pub(super) fn refuse_for_memory(&self, conversation: &mut Conversation, input: &[u8]) -> usize {
        let Some((used, id)) = conversation.session.skip(input) else { return 0 };
        let budget = self.shared.memory.clone();
        budget.count_refused();
        conversation.memory.gathered_whole();
        let (dialect, error) = (conversation.session.dialect, Error::MemoryShort { limit: budget.limit() });
        conversation.reply(|out| reply::encode_error(dialect, id, ErrorCode::Busy, &error.to_string(), out));
        used
    }
}
