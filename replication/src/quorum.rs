//! How many must hold a commit, and how many must agree to a new leader.
//!
//! The members of a partition are its leader and M followers. A commit counts when the leader and N followers
//! (`min_replicas`) have it on disk: N + 1 members. A new leader needs the promises of any M - N + 1 members, which is what
//! makes every such set share a member with every N + 1 (the quorums of Flexible Paxos, Howard et al. 2016). The old leader's
//! promise counts like any other; without it this is "M - N + 1 of the followers".
//!
//! A change of the list, or of N, is a record of the log. What lies at or behind it needs both rules until the record itself
//! is published (joint consensus, as in Raft). Where a list has fewer than N followers nothing can count under it, and all
//! that it has must hold the change.
//!
//! Under N = 0 nobody must hold anything, so nobody need be asked by who leads next: there is no rule that a change to N > 0
//! could be joint with. Such a change counts where every follower of the list of N = 0 holds it: whoever could lead without
//! asking then knows that it must ask. A follower that is gone is forgotten first; it may still lead, in a history of its own.

use std::collections::{BTreeMap, BTreeSet};
use turnstone_engine::manifest::MembersRecord;
use turnstone_engine::types::{Epoch, Members, Version};

/// A member's node and partition.
pub type Key = (u64, u8);

/// What members have confirmed to the leader of an epoch.
#[derive(Clone, Debug, Default)]
pub struct Quorum {
    acks: BTreeMap<Key, Version>,
}

/// Rules that a test breaks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Broken {
    /// The epoch of a confirmation is not looked at.
    pub epoch: bool,
    /// What is older than the epoch counts without a record of the epoch.
    pub old_tail: bool,
    /// A change needs the new rule only.
    pub new_rule_alone: bool,
    /// The leader counts as one of its followers.
    pub counts_itself: bool,
    /// A vote for a lower epoch is given.
    pub lower_vote: bool,
    /// Epochs of one number are taken for one.
    pub id_not_compared: bool,
    /// A change from N = 0 does not wait for those who have missed it.
    pub raised_alone: bool,
    /// What nodes do by themselves ends orders.
    pub order_not_kept: bool,
    /// A learner votes.
    pub learner_votes: bool,
}

/// The version that `needed` followers hold.
fn held(members: &Members, leader: Key, acks: &BTreeMap<Key, Version>, needed: usize, broken: Broken) -> Version {
    if needed == 0 {
        return Version::MAX;
    }
    // A leader that is no member counts for none: one member more must hold it.
    let needed = needed + usize::from(!members.nodes.iter().any(|m| m.key() == leader));
    let followers = members.nodes.iter().map(|m| m.key()).filter(|key| *key != leader || broken.counts_itself);
    let mut versions: Vec<Version> =
        followers.map(|key| if key == leader { Version::MAX } else { acks.get(&key).copied().unwrap_or(0) }).collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    versions.get(needed - 1).copied().unwrap_or(0)
}

/// Followers in a list.
fn followers(members: &Members) -> usize {
    members.nodes.len().saturating_sub(1)
}

/// N, or all there are.
fn reachable(members: &Members) -> usize {
    (members.min_replicas as usize).min(followers(members))
}

/// Whom a change from N = 0 waits for: the followers of the list at `i`, if it is one of N = 0 and the one at `of` or one
/// between asks for followers; but for those that the one at `of` has no more.
fn missed_by(records: &[MembersRecord], i: usize, of: usize, leader: Key) -> Option<Vec<Key>> {
    let list = &records[i].members;
    let raised = list.min_replicas == 0 && records[i + 1..=of].iter().any(|later| later.members.min_replicas > 0);
    let newest = &records[of].members;
    let stays = |key: &Key| *key != leader && newest.nodes.iter().any(|other| other.key() == *key);
    raised.then(|| list.nodes.iter().map(|member| member.key()).filter(stays).collect())
}

impl Quorum {
    /// A member has everything up to `version` on its disk, and had agreed to `epoch` when it said so; `current` is the
    /// leader's.
    pub fn confirm(&mut self, key: Key, epoch: Epoch, version: Version, current: Epoch, broken: Broken) {
        if epoch == current || broken.epoch {
            let acked = self.acks.entry(key).or_default();
            *acked = (*acked).max(version);
        }
    }

    /// A member is gone; what it holds it still holds.
    pub fn forget_all(&mut self) {
        self.acks.clear();
    }

    /// What a member has confirmed.
    pub fn confirmed(&self, key: Key) -> Version {
        self.acks.get(&key).copied().unwrap_or(0)
    }

    /// Up to where enough hold the log: `records` are the list in force and those behind it, `first` is the epoch's first
    /// version.
    pub fn reached(&self, leader: Key, records: &[MembersRecord], first: Version, broken: Broken) -> Version {
        let held = |members: &Members, needed| held(members, leader, &self.acks, needed, broken);
        let mut reached = Version::MAX;
        // From the newest list back to the one in force: what is behind a list needs it and all before it.
        for (i, record) in records.iter().enumerate().rev() {
            let by_rule = |j: usize| match missed_by(records, j, i, leader) {
                Some(all) if !broken.raised_alone => {
                    all.iter().map(|key| self.confirmed(*key)).min().unwrap_or(Version::MAX)
                }
                _ => held(&records[j].members, reachable(&records[j].members)),
            };
            let before = (0..i).filter(|_| !broken.new_rule_alone);
            let old = before.map(by_rule).min().unwrap_or(Version::MAX);
            let all = old.min(held(&record.members, record.members.min_replicas as usize)).min(reached);
            if all >= record.version || i == 0 {
                reached = all;
                break;
            }
            reached = record.version - 1;
        }
        if reached < first && !broken.old_tail { 0 } else { reached }
    }
}

/// Whether enough followers are there for a commit, `there` being connected.
pub fn is_there(records: &[MembersRecord], leader: Key, there: &BTreeSet<Key>, broken: Broken) -> bool {
    let last = records.len().saturating_sub(1);
    (0..records.len()).all(|i| {
        let list = &records[i].members;
        if let Some(all) = missed_by(records, i, last, leader).filter(|_| !broken.raised_alone) {
            return all.iter().all(|key| there.contains(key));
        }
        let present = list.nodes.iter().filter(|m| m.key() != leader && there.contains(&m.key())).count();
        // Under a list that has too few, all that it has do.
        present >= if i == last { list.min_replicas as usize } else { reachable(list) }
    })
}

/// How many members must agree to a new leader, and how many of them have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promises {
    /// Needed.
    pub needed: usize,
    /// There.
    pub there: usize,
}

impl Promises {
    /// Whether there are enough.
    pub fn suffice(self) -> bool {
        self.there >= self.needed
    }
}

/// Counts promises under the list that has the fewest of those it needs.
pub fn promises(records: &[MembersRecord], agreed: &BTreeSet<Key>) -> Promises {
    let count = |record: &MembersRecord| {
        if record.members.min_replicas == 0 || record.members.nodes.is_empty() {
            // What nobody else had to hold cannot be protected.
            return Promises { needed: 0, there: 0 };
        }
        let there = record.members.nodes.iter().filter(|m| agreed.contains(&m.key())).count();
        Promises { needed: followers(&record.members) - reachable(&record.members) + 1, there }
    };
    let all = records.iter().map(count);
    all.max_by_key(|p| p.needed.saturating_sub(p.there)).unwrap_or(Promises { needed: 0, there: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use turnstone_engine::types::Member;

    const LEADER: Key = (1, 1);
    const NONE: Broken = Broken {
        epoch: false,
        old_tail: false,
        new_rule_alone: false,
        counts_itself: false,
        lower_vote: false,
        id_not_compared: false,
        raised_alone: false,
        order_not_kept: false,
        learner_votes: false,
    };

    fn record(version: Version, min_replicas: u32, nodes: &[u64]) -> MembersRecord {
        let member = |node: &u64| Member { node: *node, partition: 1, address: String::new() };
        MembersRecord {
            version,
            members: Members { min_replicas, nodes: nodes.iter().map(member).collect(), forgotten: vec![] },
        }
    }

    fn quorum(acks: &[(u64, Version)]) -> Quorum {
        let epoch = Epoch { number: 2, id: 7 };
        let mut quorum = Quorum::default();
        acks.iter().for_each(|(node, version)| quorum.confirm((*node, 1), epoch, *version, epoch, NONE));
        quorum
    }

    #[test]
    fn n_followers_count_and_the_leader_is_none() {
        let list = |n| [record(1, n, &[1, 2, 3])];
        let acks = quorum(&[(2, 9), (3, 7), (4, 20)]);
        assert_eq!(acks.reached(LEADER, &list(0), 1, NONE), Version::MAX);
        assert_eq!(acks.reached(LEADER, &list(1), 1, NONE), 9);
        assert_eq!(acks.reached(LEADER, &list(2), 1, NONE), 7);
        assert_eq!(acks.reached(LEADER, &list(3), 1, NONE), 0, "there are not so many");
    }

    #[test]
    fn an_older_tail_counts_with_a_record_of_the_epoch() {
        let list = [record(1, 1, &[1, 2, 3])];
        assert_eq!(quorum(&[(2, 9)]).reached(LEADER, &list, 10, NONE), 0);
        assert_eq!(quorum(&[(2, 10)]).reached(LEADER, &list, 10, NONE), 10);
    }

    #[test]
    fn another_epochs_confirmation_does_not_count() {
        let mut quorum = Quorum::default();
        let epoch = |number, id| Epoch { number, id };
        quorum.confirm((2, 1), epoch(2, 7), 9, epoch(2, 8), NONE);
        quorum.confirm((2, 1), epoch(1, 8), 9, epoch(2, 8), NONE);
        assert_eq!(quorum.confirmed((2, 1)), 0);
    }

    #[test]
    fn a_change_needs_both_rules() {
        // From {1, 2, 3} to {1, 4, 5}, at version 8.
        let lists = [record(1, 1, &[1, 2, 3]), record(8, 1, &[1, 4, 5])];
        assert_eq!(quorum(&[(2, 9)]).reached(LEADER, &lists, 1, NONE), 7);
        assert_eq!(quorum(&[(4, 9)]).reached(LEADER, &lists, 1, NONE), 0);
        assert_eq!(quorum(&[(2, 9), (4, 8)]).reached(LEADER, &lists, 1, NONE), 8);
        // The first follower of a leader that asks for one.
        let first = [record(1, 1, &[1]), record(2, 1, &[1, 2])];
        assert_eq!(quorum(&[(2, 2)]).reached(LEADER, &first, 1, NONE), 2);
    }

    #[test]
    fn a_list_that_has_too_few_can_be_left() {
        // A leader alone asks for one follower; then it gets one.
        let lists = [record(0, 0, &[]), record(1, 1, &[1]), record(2, 1, &[1, 2])];
        assert_eq!(quorum(&[]).reached(LEADER, &lists, 1, NONE), 0);
        assert_eq!(quorum(&[(2, 2)]).reached(LEADER, &lists, 1, NONE), 2);
        assert_eq!(quorum(&[(2, 2)]).reached(LEADER, &lists[1..], 1, NONE), 2);
    }

    #[test]
    fn a_change_from_zero_waits_for_everybody_who_could_lead_without_asking() {
        let raised = [record(1, 0, &[1, 2, 3]), record(5, 1, &[1, 2, 3])];
        assert_eq!(quorum(&[(2, 9)]).reached(LEADER, &raised, 1, NONE), 4, "3 would lead by the list of N = 0");
        assert_eq!(quorum(&[(2, 9), (3, 4)]).reached(LEADER, &raised, 1, NONE), 4);
        assert_eq!(quorum(&[(2, 9), (3, 5)]).reached(LEADER, &raised, 1, NONE), 5);
        assert!(!is_there(&raised, LEADER, &BTreeSet::from([(2, 1)]), NONE));
        // 3 is gone for good, and is forgotten.
        let forgotten = [raised[0].clone(), raised[1].clone(), record(6, 1, &[1, 2])];
        assert_eq!(quorum(&[(2, 9)]).reached(LEADER, &forgotten, 1, NONE), 9);
        assert_eq!(quorum(&[(2, 5)]).reached(LEADER, &forgotten, 1, NONE), 4, "nobody else knows that 3 is forgotten");
        assert!(is_there(&forgotten, LEADER, &BTreeSet::from([(2, 1)]), NONE));
        // A leader that the list of N = 0 did not name, and followers that it did.
        let other = [record(1, 0, &[2, 3]), record(5, 1, &[1, 2, 3])];
        assert_eq!(quorum(&[(2, 9)]).reached(LEADER, &other, 1, NONE), 4);
        assert_eq!(quorum(&[(2, 9), (3, 7)]).reached(LEADER, &other, 1, NONE), 7);
    }

    /// Every pair of N and next N, every set of holders of the change, every set that has missed it.
    #[test]
    fn promises_under_an_old_list_meet_the_holders_of_the_next() {
        for (n, next, nodes) in (0..4).flat_map(|n| (0..4).flat_map(move |next| (2..5).map(move |k| (n, next, k)))) {
            let all: Vec<u64> = (1..=nodes).collect();
            let lists = [record(1, n, &all), record(8, next, &all)];
            for holders in 0..1u32 << nodes {
                let holds = |node: &u64| *node == 1 || holders & 1 << (node - 1) != 0;
                let acks: Vec<(u64, Version)> = all.iter().filter(|n| **n != 1 && holds(n)).map(|n| (*n, 8)).collect();
                if next == 0 || quorum(&acks).reached(LEADER, &lists, 1, NONE) < 8 {
                    continue;
                }
                // A candidate that has missed it and those who have missed it with him.
                let missed: BTreeSet<Key> = all.iter().filter(|n| !holds(n)).map(|n| (*n, 1)).collect();
                let enough = !missed.is_empty() && promises(&lists[..1], &missed).suffice();
                assert!(!enough, "N from {n} to {next}: {acks:?} hold the change, {missed:?} may lead without them");
            }
        }
    }

    #[test]
    fn every_set_of_promises_meets_every_set_of_holders() {
        for nodes in 1..6u64 {
            for n in 1..=nodes as u32 {
                let list = record(1, n, &(1..=nodes).collect::<Vec<_>>());
                let needed = promises(std::slice::from_ref(&list), &BTreeSet::new()).needed;
                let holders = reachable(&list.members) + 1;
                assert!(needed + holders > nodes as usize, "{nodes} nodes, N = {n}");
                assert!(needed >= 1);
            }
        }
        let agreed = BTreeSet::from([(2, 1), (9, 1)]);
        let both = [record(1, 1, &[1, 2, 3]), record(8, 1, &[1, 2])];
        assert_eq!(promises(&both, &agreed), Promises { needed: 2, there: 1 }, "a stranger's promise is none");
        assert!(promises(&[record(1, 0, &[1, 2])], &agreed).suffice());
    }
}
