//! Who may lead: a candidate's questions and what follows from the answers.
//!
//! 1. The candidate asks every member what it has ([`Election::unasked`]), by the newest list that anybody has.
//! 2. It draws an epoch above every one that it met, agrees to it itself, and asks for promises. Who promises follows no older
//!    leader any more, and says what it has.
//! 3. With enough promises ([`crate::quorum::promises`]) the log whose last record has the highest epoch, and is the longest
//!    of these, has everything that counts. The candidate fetches it if it is not its own, and leads.
//!
//! A leader that was restarted does the same by itself, but only where N others still agree to its own epoch: it must not
//! push aside who was promoted while it was away.

use crate::quorum::{Key, Promises, promises};
use std::collections::{BTreeMap, BTreeSet};
use turnstone_engine::Standing;
use turnstone_engine::manifest::{MembersRecord, reign};
use turnstone_engine::types::{Epoch, Member, Version};

/// A candidate's knowledge.
#[derive(Clone, Debug)]
pub struct Election {
    own: Key,
    answers: BTreeMap<Key, Standing>,
    agreed: BTreeSet<Key>,
    asked: BTreeSet<Key>,
}

/// Whose log is the one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Best {
    /// The candidate's.
    Own,
    /// This member's.
    Of(Member),
}

fn rank(standing: &Standing) -> (Epoch, Version) {
    (reign(&standing.epochs, standing.last).unwrap_or_default(), standing.last)
}

impl Election {
    /// A candidate that has this.
    pub fn new(own: Key, standing: Standing) -> Election {
        Election {
            own,
            answers: BTreeMap::from([(own, standing)]),
            agreed: BTreeSet::new(),
            asked: BTreeSet::from([own]),
        }
    }

    /// The newest list of members that anybody has, and the one before it if it may still be in force.
    pub fn records(&self) -> &[MembersRecord] {
        let newest = |standing: &&Standing| {
            let version = standing.members.last().map_or(0, |record| record.version);
            (reign(&standing.epochs, version).map_or(0, |epoch| epoch.number), version)
        };
        self.answers.values().max_by_key(newest).map_or(&[], |standing| &standing.members)
    }

    /// Whether the candidate has followed, and no list names it as a member yet: it may lack what members hold, a newer list among
    /// that, and members do not vote for it.
    pub fn is_no_member(&self, has_followed: bool) -> bool {
        let named = |record: &MembersRecord| record.members.nodes.iter().any(|member| member.key() == self.own);
        has_followed && !self.records().last().is_some_and(named)
    }

    /// Whether an operator has ordered the candidate to be forgotten.
    pub fn is_forgotten(&self) -> bool {
        self.records().last().is_some_and(|record| record.members.forgotten.contains(&self.own.0))
    }

    /// Members that do not answer although all of them must hold the change from N = 0, as in [`crate::quorum`].
    pub fn missed_by_a_raise(&self) -> Vec<Member> {
        let Some(newest) = self.records().last().filter(|record| record.members.min_replicas == 0) else {
            return Vec::new();
        };
        newest.members.nodes.iter().filter(|member| !self.answers.contains_key(&member.key())).cloned().collect()
    }

    /// Members that were not asked yet, in this round.
    pub fn unasked(&mut self) -> Vec<Member> {
        let nodes = self.records().iter().flat_map(|record| record.members.nodes.clone()).collect::<Vec<_>>();
        nodes.into_iter().filter(|member| self.asked.insert(member.key())).collect()
    }

    /// Begins a round of questions.
    pub fn ask_again(&mut self) {
        self.asked = BTreeSet::from([self.own]);
        self.agreed.clear();
    }

    /// A member answered.
    pub fn answered(&mut self, key: Key, granted: bool, standing: Standing) {
        if granted {
            self.agreed.insert(key);
        }
        self.answers.insert(key, standing);
    }

    /// How many would have to agree, and how many can be reached.
    pub fn in_reach(&self) -> Promises {
        promises(self.records(), &self.answers.keys().copied().collect())
    }

    /// How many have agreed.
    pub fn promises(&self) -> Promises {
        promises(self.records(), &self.agreed)
    }

    /// A number above every one that anybody has agreed to.
    pub fn next_number(&self) -> u64 {
        let highest = |s: &Standing| s.adopted.number.max(s.epochs.last().map_or(0, |e| e.epoch.number));
        self.answers.values().map(highest).max().unwrap_or(0) + 1
    }

    /// Whether a restarted leader may lead on: enough others have agreed to no epoch but those of its history.
    pub fn may_return(&self) -> bool {
        let Some(own) = self.answers.get(&self.own) else { return false };
        self.records().iter().all(|record| {
            let loyal = |member: &&Member| {
                let answer = self.answers.get(&member.key());
                // A vote of its own for somebody else does not make others loyal that have given the same.
                let known = |epoch: Epoch| own.epochs.iter().any(|e| e.epoch == epoch);
                member.key() != self.own && answer.is_some_and(|a| known(a.adopted))
            };
            let followers = record.members.nodes.len().saturating_sub(1);
            let needed = (record.members.min_replicas as usize).min(followers);
            record.members.nodes.iter().filter(loyal).count() >= needed
        })
    }

    /// A member that leads in the epoch that this node has voted for, or in a higher one.
    pub fn newer_leader(&self) -> Option<Member> {
        let own = self.answers.get(&self.own)?;
        let leads = |member: &&Member| {
            let answer = self.answers.get(&member.key());
            let is_other = member.key() != self.own;
            is_other
                && answer
                    .is_some_and(|a| a.leads && (a.adopted.number > own.adopted.number || a.adopted == own.adopted))
        };
        self.records().iter().flat_map(|record| &record.members.nodes).find(leads).cloned()
    }

    /// Among those who have agreed, whose log has everything that counts. Two logs may end in different epochs of one number,
    /// where few promises are needed: both were begun with enough promises then, which leaves neither with enough members to
    /// hold any record of it. Each has all that counts, and one is as good as the other.
    pub fn best(&self) -> Best {
        let Some(own) = self.answers.get(&self.own) else { return Best::Own };
        let (mut best, mut whose) = (rank(own), Best::Own);
        for (key, standing) in self.answers.iter().filter(|(key, _)| self.agreed.contains(key)) {
            let theirs = rank(standing);
            if (theirs.0.number, theirs.1) > (best.0.number, best.1) {
                let member = self.records().iter().rev().flat_map(|r| &r.members.nodes).find(|m| m.key() == *key);
                let Some(member) = member else { continue };
                (best, whose) = (theirs, Best::Of(member.clone()));
            }
        }
        whose
    }

    /// Whether a member has agreed to another epoch that this node must outdo.
    pub fn has_stray(&self) -> bool {
        let Some(own) = self.answers.get(&self.own) else { return false };
        let outdoes = |s: &Standing| s.adopted != own.adopted && s.adopted.number >= own.adopted.number;
        self.answers.values().any(outdoes)
    }

    /// Whether a member has agreed.
    pub fn has_agreed(&self, key: Key) -> bool {
        self.agreed.contains(&key)
    }

    /// What a member has.
    pub fn answer(&self, key: Key) -> Option<&Standing> {
        self.answers.get(&key)
    }
}

/// Whether a node votes for a candidate at all: its list names it, or the candidate has a newer list of the same history that
/// names both, and nobody leads that this node hears: a list is what the candidate says. A node without a list votes for whoever
/// asks, unless it leads: then it belongs to no cluster.
pub fn knows_candidate(own: (Key, &Standing), is_led: bool, candidate: (Key, &Standing)) -> bool {
    let names = |standing: &Standing, key: Key| {
        standing.members.iter().any(|record| record.members.nodes.iter().any(|member| member.key() == key))
    };
    let is_forgotten = own.1.members.last().is_some_and(|record| record.members.forgotten.contains(&candidate.0.0));
    if names(own.1, candidate.0) || is_forgotten {
        return !is_forgotten;
    }
    if own.1.members.iter().all(|record| record.members.nodes.is_empty()) {
        return !is_led;
    }
    let newest = |standing: &Standing| {
        let version = standing.members.last().map_or(0, |record| record.version);
        (reign(&standing.epochs, version).map_or(0, |epoch| epoch.number), version)
    };
    let first = |standing: &Standing| standing.epochs.first().map(|start| start.epoch);
    let same_history = first(own.1).is_some() && first(own.1) == first(candidate.1);
    !is_led
        && same_history
        && newest(candidate.1) > newest(own.1)
        && names(candidate.1, candidate.0)
        && names(candidate.1, own.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use turnstone_engine::manifest::EpochStart;
    use turnstone_engine::types::Members;

    fn member(node: u64) -> Member {
        Member { node, partition: 1, address: format!("n{node}:1") }
    }

    fn standing(adopted: u64, epoch: (u64, u64), last: Version, min_replicas: u32, nodes: &[u64]) -> Standing {
        let list = Members { min_replicas, nodes: nodes.iter().map(|n| member(*n)).collect(), forgotten: vec![] };
        let epochs = vec![EpochStart { epoch: Epoch { number: epoch.0, id: epoch.1 }, first_version: 1 }];
        let members = vec![MembersRecord { version: 1, members: list }];
        Standing { adopted: Epoch { number: adopted, id: adopted }, epochs, last, published: 0, members, leads: false }
    }

    #[test]
    fn members_are_asked_once_and_enough_must_agree() {
        let mut election = Election::new((2, 1), standing(1, (1, 1), 10, 1, &[1, 2, 3]));
        assert_eq!(election.unasked(), [member(1), member(3)]);
        assert_eq!(election.unasked(), []);
        election.answered((3, 1), false, standing(4, (1, 1), 12, 1, &[1, 2, 3]));
        assert!(election.in_reach().suffice());
        assert_eq!(election.next_number(), 5);
        election.ask_again();
        election.answered((2, 1), true, standing(5, (1, 1), 10, 1, &[1, 2, 3]));
        assert_eq!(election.promises(), Promises { needed: 2, there: 1 });
        election.answered((3, 1), true, standing(5, (1, 1), 12, 1, &[1, 2, 3]));
        assert!(election.promises().suffice());
        assert_eq!(election.best(), Best::Of(member(3)), "it has the longer log");
    }

    #[test]
    fn a_later_epoch_is_worth_more_than_a_longer_log() {
        let mut election = Election::new((2, 1), standing(5, (3, 3), 10, 1, &[1, 2, 3]));
        election.answered((3, 1), true, standing(5, (2, 2), 90, 1, &[1, 2, 3]));
        assert_eq!(election.best(), Best::Own);
        election.answered((3, 1), true, standing(5, (3, 4), 11, 1, &[1, 2, 3]));
        assert_eq!(election.best(), Best::Of(member(3)), "of two epochs with one number the longer log is taken");
    }

    #[test]
    fn a_restarted_leader_returns_where_nobody_was_promoted() {
        let own = standing(2, (2, 2), 10, 1, &[1, 2, 3]);
        let mut election = Election::new((1, 1), own.clone());
        assert!(!election.may_return());
        election.answered((2, 1), false, standing(3, (2, 2), 10, 1, &[1, 2, 3]));
        assert!(!election.may_return(), "it has agreed to somebody else");
        let own_again = own.clone();
        election.answered((3, 1), false, own);
        assert!(election.may_return());
        // All of them have voted for somebody else, and that one leads.
        let voted = Standing { adopted: Epoch { number: 3, id: 3 }, ..own_again };
        let mut election = Election::new((1, 1), voted.clone());
        election.answered((3, 1), false, voted);
        assert!(!election.may_return(), "the same vote makes nobody loyal");
        let itself = Election::new((1, 1), Standing { leads: true, ..standing(3, (3, 3), 11, 1, &[1, 2, 3]) });
        assert_eq!(itself.newer_leader(), None, "it is no other");
        let newer = Standing { leads: true, ..standing(3, (3, 3), 11, 1, &[1, 2, 3]) };
        election.answered((2, 1), false, newer);
        assert_eq!(election.newer_leader(), Some(member(2)));
    }

    #[test]
    fn a_stranger_gets_no_vote() {
        let own = standing(1, (1, 1), 10, 1, &[1, 2]);
        let asked = |node: u64, theirs: Standing| knows_candidate(((2, 1), &own), false, ((node, 1), &theirs));
        let theirs = |version: Version, nodes: &[u64], first: u64| {
            let mut theirs = standing(1, (1, first), 20, 1, nodes);
            theirs.members[0].version = version;
            theirs
        };
        assert!(asked(1, theirs(1, &[1, 2], 1)));
        assert!(asked(3, theirs(9, &[1, 2, 3], 1)), "it joined in a record that is not here yet");
        assert!(!asked(3, theirs(1, &[1, 2, 3], 1)), "the list is no newer one");
        assert!(!asked(3, theirs(9, &[1, 3], 1)), "it does not name this node");
        assert!(!asked(3, theirs(9, &[1, 2, 3], 7)), "another history");
        let alone = standing(0, (1, 1), 0, 0, &[]);
        assert!(knows_candidate(((2, 1), &alone), false, ((3, 1), &alone)));
        assert!(!knows_candidate(((2, 1), &alone), true, ((3, 1), &alone)));
        let mut forgets = standing(1, (1, 1), 10, 1, &[1, 2]);
        forgets.members[0].members.forgotten.push(3);
        assert!(!knows_candidate(((2, 1), &forgets), false, ((3, 1), &theirs(9, &[1, 2, 3], 1))));
    }

    #[test]
    fn the_newest_list_counts() {
        let mut election = Election::new((2, 1), standing(1, (1, 1), 10, 1, &[1, 2]));
        let mut other = standing(1, (1, 1), 10, 1, &[1, 2, 3, 4, 5]);
        other.members[0].version = 7;
        election.unasked();
        election.answered((1, 1), false, other);
        assert_eq!(election.unasked(), [member(3), member(4), member(5)]);
        assert_eq!(election.promises().needed, 4);
    }
}
