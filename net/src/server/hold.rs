//! Replies that are held back for a moment: where a commit's reply comes next, what was answered before it leaves with it.
//!
//! A client that sends Begin, Set and Commit together would otherwise get two segments, one at once and one after the
//! flush; each costs the server a send and the client a wake-up. It waits for the last anyway. Nothing is held longer than
//! [`HOLD`]: the commit may take long, and the replies before it are true already.

use super::conversation::Key;
use super::core::ServerCore;
use std::rc::{Rc, Weak};
use std::time::Duration;

/// Replies wait this long at most, and a timer's delay.
pub(super) const HOLD: Duration = Duration::from_millis(1);
/// More bytes than this leave at once.
pub(super) const HOLD_MAX: usize = 4 << 10;

impl ServerCore {
    /// Looks after a conversation that holds replies back.
    pub(super) fn hold(&self, key: Key) {
        self.held.borrow_mut().push(key);
        if !self.holding.replace(true) {
            self.core.spawn(release(Rc::downgrade(&self.this())));
        }
    }

    /// Lets go of what was held long enough; answers whether anything is left.
    fn release_held(&self) -> bool {
        let held = std::mem::take(&mut *self.held.borrow_mut());
        let (young, due): (Vec<Key>, Vec<Key>) = {
            let conversations = self.conversations.borrow();
            let since = |key: &Key| conversations.get(key).and_then(|c| c.held_since());
            let held = held.into_iter().filter_map(|key| Some((key, since(&key)?)));
            let (young, due): (Vec<_>, Vec<_>) = held.partition(|(_, since)| since.elapsed() < HOLD);
            (young.into_iter().map(|(key, _)| key).collect(), due.into_iter().map(|(key, _)| key).collect())
        };
        due.into_iter().for_each(|key| self.mark(key));
        let left = !young.is_empty();
        self.held.borrow_mut().extend(young);
        self.holding.set(left);
        left
    }
}

async fn release(server: Weak<ServerCore>) {
    loop {
        let Some(core) = server.upgrade().map(|s| s.core.clone()) else { return };
        core.sleep(HOLD).await;
        drop(core);
        let Some(server) = server.upgrade() else { return };
        if !server.release_held() {
            return;
        }
    }
}
