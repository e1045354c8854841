//! Open snapshots: which is the oldest, and which have been given up.

use crate::types::Version;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

type Opened = (Duration, Rc<Cell<bool>>);

#[derive(Default)]
struct Registry {
    /// By version and serial: when it was opened, and whether it was given up.
    open: BTreeMap<(Version, u64), Opened>,
    next: u64,
    waiting: Vec<Waker>,
}

/// All open snapshots of a partition.
#[derive(Clone, Default)]
pub struct Snapshots(Rc<RefCell<Registry>>);

/// An open snapshot; it closes when dropped.
pub struct Snapshot {
    version: Version,
    id: u64,
    given_up: Rc<Cell<bool>>,
    detached: bool,
    registry: Rc<RefCell<Registry>>,
}

impl Snapshot {
    /// It sees every version up to this one.
    pub fn version(&self) -> Version {
        self.version
    }
    /// Gives up the claim on what it sees: checkpoints pass it, and it is never given up. It must not be read any more.
    pub fn detach(&mut self) {
        let mut registry = self.registry.borrow_mut();
        registry.open.remove(&(self.version, self.id));
        self.given_up = Rc::default();
        self.detached = true;
        wake(&mut registry);
    }
    /// Gives it up: it must not be read any more.
    pub fn give_up(&mut self) {
        let mut registry = self.registry.borrow_mut();
        registry.open.remove(&(self.version, self.id));
        self.given_up.set(true);
        wake(&mut registry);
    }
    /// Whether a checkpoint up to `version` waits for it.
    pub fn holds_up(&self, version: Version) -> bool {
        !self.detached && !self.given_up() && self.version < version
    }
    /// Whether it was given up: it must not be read any more.
    pub fn given_up(&self) -> bool {
        self.given_up.get()
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        let mut registry = self.registry.borrow_mut();
        registry.open.remove(&(self.version, self.id));
        wake(&mut registry);
    }
}

fn wake(registry: &mut Registry) {
    registry.waiting.drain(..).for_each(Waker::wake);
}

impl Snapshots {
    /// Ends when no snapshot below `version` is open.
    pub async fn oldest_reaches(&self, version: Version) {
        poll_fn(|cx| {
            if self.oldest().is_none_or(|oldest| oldest >= version) {
                return Poll::Ready(());
            }
            self.0.borrow_mut().waiting.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Opens one.
    pub fn open(&self, version: Version, now: Duration) -> Snapshot {
        let mut registry = self.0.borrow_mut();
        let id = registry.next;
        registry.next += 1;
        let given_up = Rc::new(Cell::new(false));
        registry.open.insert((version, id), (now, given_up.clone()));
        Snapshot { version, id, given_up, detached: false, registry: self.0.clone() }
    }

    /// The oldest open snapshot.
    pub fn oldest(&self) -> Option<Version> {
        self.0.borrow().open.keys().next().map(|(version, _)| *version)
    }

    /// Whether one is open that sees the version `from` or a later one, and not `to`.
    pub fn is_open_within(&self, from: Version, to: Version) -> bool {
        self.0.borrow().open.range((from, 0)..(to, 0)).next().is_some()
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.0.borrow().open.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.0.borrow().open.is_empty()
    }

    /// Gives up every snapshot below `version`; answers how many.
    pub fn give_up_below(&self, version: Version) -> usize {
        let mut registry = self.0.borrow_mut();
        let kept = registry.open.split_off(&(version, 0));
        let gone = std::mem::replace(&mut registry.open, kept);
        gone.values().for_each(|(_, given_up)| given_up.set(true));
        wake(&mut registry);
        gone.len()
    }

    /// Gives up every snapshot below `version` that was opened before `time`.
    pub fn give_up_older_than(&self, time: Duration, version: Version) -> usize {
        let mut registry = self.0.borrow_mut();
        let before = registry.open.len();
        registry.open.retain(|(seen, _), (opened, given_up)| {
            let gone = *opened < time && *seen < version;
            given_up.set(gone);
            !gone
        });
        wake(&mut registry);
        before - registry.open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_known_and_can_be_given_up() {
        let snapshots = Snapshots::default();
        let a = snapshots.open(3, Duration::from_secs(1));
        let b = snapshots.open(5, Duration::from_secs(2));
        assert_eq!(snapshots.oldest(), Some(3));
        assert_eq!(snapshots.give_up_below(5), 1);
        assert!(a.given_up() && !b.given_up());
        assert_eq!(snapshots.oldest(), Some(5));
        drop(a);
        let late = Duration::from_secs(3);
        assert_eq!(snapshots.give_up_older_than(late, 5), 0, "it does not hold up what ends at its own version");
        assert_eq!(snapshots.give_up_older_than(late, 6), 1);
        assert!(b.given_up() && snapshots.is_empty());
    }
}
