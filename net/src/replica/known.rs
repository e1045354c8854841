//! What a core knows of other members that they must never have less of: what was on their disks by their own word, or was
//! published by them.
//!
//! A member whose home was put back from an older copy has lost what it promised, and cannot know it. Whoever talks with it tells
//! it what it had ([`Known::of`], in answers to a hello and to questions); then it is a learner until it has caught up
//! ([`turnstone_engine::leadership::Leadership::learner`]). It is a member's lost disk: where nobody alive knew more, it is one
//! fault beyond those that N replicas stand.
//!
//! All of it is of this process alone, and of members that the list names: strangers cost no memory.

use std::cell::RefCell;
use std::collections::BTreeMap;
use turnstone_engine::types::{Epoch, Version};
use turnstone_replication::quorum::Key;
use turnstone_replication::wire::Had;

/// Processes of one node, by what each drew when it began.
#[derive(Clone, Copy)]
struct Lives {
    newest: u64,
    before: Option<u64>,
}

/// What is known of members.
#[derive(Default)]
pub(super) struct Known {
    had: RefCell<BTreeMap<(u8, Key), Had>>,
    lives: RefCell<BTreeMap<(u8, Key), Lives>>,
}

impl Known {
    /// A member has had everything up to `version`, and had agreed to `epoch` at that time.
    pub(super) fn note(&self, partition: u8, member: Key, epoch: Epoch, version: Version) {
        let mut all = self.had.borrow_mut();
        let had = all.entry((partition, member)).or_default();
        if (epoch.number, version) > (had.epoch.number, had.version) {
            *had = Had { epoch, version };
        }
    }

    /// What a member has had; nothing where nothing is known.
    pub(super) fn of(&self, partition: u8, member: Key) -> Had {
        self.had.borrow().get(&(partition, member)).copied().unwrap_or_default()
    }

    /// A person has set aside what the node had, or has forgotten it.
    pub(super) fn forget(&self, partition: u8, node: u64) {
        self.had.borrow_mut().retain(|(of, (member, _)), _| *of != partition || *member != node);
        self.lives.borrow_mut().retain(|(of, (member, _)), _| *of != partition || *member != node);
    }

    /// A process says that it is this member. `false` where another process has said so since: no process comes before one that
    /// began after it, so both live.
    pub(super) fn lives(&self, partition: u8, member: Key, life: u64) -> bool {
        let mut all = self.lives.borrow_mut();
        let lives = all.entry((partition, member)).or_insert(Lives { newest: life, before: None });
        if lives.before == Some(life) {
            return false;
        }
        if lives.newest != life {
            *lives = Lives { newest: life, before: Some(lives.newest) };
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_that_a_member_had_is_kept() {
        let (known, epoch) = (Known::default(), |number| Epoch { number, id: number * 10 });
        let had = || (known.of(1, (7, 1)).epoch.number, known.of(1, (7, 1)).version);
        assert_eq!(had(), (0, 0));
        for (number, version, expected) in [(2, 50, (2, 50)), (2, 40, (2, 50)), (3, 20, (3, 20)), (2, 90, (3, 20))] {
            known.note(1, (7, 1), epoch(number), version);
            assert_eq!(had(), expected);
        }
        assert_eq!(known.of(1, (8, 1)), Had::default());
        known.forget(1, 7);
        assert_eq!(had(), (0, 0));
    }

    #[test]
    fn a_process_that_comes_back_behind_another_is_a_second_one() {
        let known = Known::default();
        let says = |life| known.lives(1, (7, 1), life);
        assert!(says(10) && says(10) && says(11) && says(11));
        assert!(!says(10) && !says(10), "it was followed by another process");
        assert!(says(12) && !says(11));
    }
}
