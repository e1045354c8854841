//! Every state that three nodes can come to within bounds, by the step function of `replication::leadership` and what surrounds
//! it there: elections, quorums, and what becomes of logs that part.
//!
//! A state is what three nodes have on their disks, what they know in memory, and the votes that are on their way. A transition is
//! one thing that happens: a vote arrives, or is lost with its candidate; a leader writes; a follower takes what a leader has,
//! and its word counts or is lost; a leader returns by itself; an operator promotes, steps down, or makes one follow; a node
//! crashes. Writes, crashes, orders and epochs are bounded, all else is tried in every order.
//!
//! In every state: what was committed is in the log of every node that leads in an epoch as high or higher; no epoch has two
//! leaders; nobody follows itself through others; and no transition but an order, or a leader that an operator promoted later, ends
//! an order.

use std::collections::{BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use turnstone_engine::Standing;
use turnstone_engine::leadership::{Leadership, Role, Upstream};
use turnstone_engine::manifest::{EpochStart, MembersRecord};
use turnstone_engine::types::{Epoch, Member, Members, Version};
use turnstone_replication::election::{Best, Election};
use turnstone_replication::follower::{Rejoin, Word, rejoin};
use turnstone_replication::history::{Common, common_point};
use turnstone_replication::leadership::{Event, step};
use turnstone_replication::quorum::{Broken, Key, Quorum};

const NODES: usize = 3;
const PARTITION: u8 = 1;

/// How far states are followed.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Records of leaders and writes in a log.
    pub entries: usize,
    /// Crashes.
    pub crashes: u8,
    /// Orders of operators.
    pub orders: u8,
    /// Promotions that nodes begin by themselves.
    pub returns: u8,
    /// Most states.
    pub states: usize,
}

/// What was seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Different states.
    pub states: usize,
    /// Transitions.
    pub transitions: usize,
    /// States in which something was committed.
    pub committed: usize,
    /// Every state within the bounds was seen.
    pub whole: bool,
}

/// A promotion that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Candidacy {
    epoch: Epoch,
    by_order: bool,
    /// Leadership's number when it began, for one that the node began by itself.
    asked: u8,
    voted: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Node {
    leadership: Leadership,
    /// The epoch of each entry: an entry is told apart by its place and its epoch.
    log: Vec<Epoch>,
    published: usize,
    leads: bool,
    candidacy: Option<Candidacy>,
    /// What followers confirmed in this node's epoch.
    acks: [u8; NODES],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    nodes: [Node; NODES],
    /// The committed log.
    committed: Vec<Epoch>,
    crashes: u8,
    orders: u8,
    returns: u8,
}

fn key(node: usize) -> Key {
    (node as u64 + 1, PARTITION)
}

fn upstream(node: usize) -> Upstream {
    Upstream { address: format!("n{node}:1"), partition: PARTITION }
}

fn list() -> Vec<MembersRecord> {
    let member = |node: usize| Member { node: key(node).0, partition: PARTITION, address: upstream(node).address };
    let members = Members { min_replicas: 1, nodes: (0..NODES).map(member).collect(), forgotten: Vec::new() };
    vec![MembersRecord { version: 1, members }]
}

impl Node {
    fn epochs(&self) -> Vec<EpochStart> {
        let mut epochs: Vec<EpochStart> = Vec::new();
        for (i, epoch) in self.log.iter().enumerate() {
            if epochs.last().is_none_or(|last| last.epoch != *epoch) {
                epochs.push(EpochStart { epoch: *epoch, first_version: i as Version + 1 });
            }
        }
        epochs
    }

    fn standing(&self) -> Standing {
        Standing {
            adopted: self.leadership.voted_epoch,
            epochs: self.epochs(),
            last: self.log.len() as Version,
            published: self.published as Version,
            members: list(),
            leads: self.leads,
        }
    }

    /// Any change ends what is volatile.
    fn become_(&mut self, next: Leadership) {
        self.leadership = Leadership { number: 0, ..next };
        self.leads = false;
        self.acks = [0; NODES];
    }
}

impl State {
    fn first() -> State {
        let epoch = Epoch { number: 1, id: 1 };
        let node = |node: usize| {
            let role = if node == 0 { Role::Leader } else { Role::Follower(upstream(0)) };
            let follows = node != 0;
            let leadership = Leadership {
                number: 0,
                role,
                upstream_node: if follows { key(0).0 } else { 0 },
                voted_epoch: epoch,
                ordered: follows.then_some(0),
                promoted: 0,
                has_followed: follows,
                learner: false,
            };
            Node { leadership, log: vec![epoch], published: 1, leads: !follows, candidacy: None, acks: [0; NODES] }
        };
        State { nodes: std::array::from_fn(node), committed: vec![epoch], crashes: 0, orders: 0, returns: 0 }
    }

    fn apply(&mut self, node: usize, event: &Event, broken: Broken) -> bool {
        match step(&self.nodes[node].leadership, event, broken) {
            Ok(Some(next)) => {
                self.nodes[node].become_(next);
                true
            }
            _ => false,
        }
    }

    /// What a candidate knows: the members of `mask` answered.
    fn election(&self, candidate: usize, mask: u8, voted: u8) -> Election {
        let mut election = Election::new(key(candidate), self.nodes[candidate].standing());
        election.unasked();
        for other in (0..NODES).filter(|other| *other != candidate && mask & 1 << other != 0) {
            election.answered(key(other), voted & 1 << other != 0, self.nodes[other].standing());
        }
        election
    }

    /// A promotion begins: every reachable set of members is tried.
    fn stand(&self, candidate: usize, by_order: bool, mask: u8, broken: Broken) -> Option<State> {
        let election = self.election(candidate, mask, 0);
        if !by_order {
            let node = &self.nodes[candidate];
            if node.leadership.role != Role::Leader || node.leads || !election.may_return() {
                return None;
            }
            if election.newer_leader().is_some() {
                return None;
            }
        }
        if !election.in_reach().suffice() || election.is_no_member(self.nodes[candidate].leadership.has_followed) {
            return None;
        }
        let epoch = Epoch { number: election.next_number(), id: candidate as u64 + 1 };
        let mut next = self.clone();
        if !next.apply(candidate, &Event::VoteRequested(epoch), broken) {
            return None;
        }
        next.nodes[candidate].candidacy = Some(Candidacy { epoch, by_order, asked: 0, voted: 0 });
        Some(next)
    }

    /// The candidate has asked `voter`: a vote arrives.
    fn vote(&self, candidate: usize, voter: usize, arrives: bool, broken: Broken) -> Option<State> {
        let candidacy = self.nodes[candidate].candidacy.clone()?;
        if candidacy.asked & 1 << voter != 0 || voter == candidate {
            return None;
        }
        let mut next = self.clone();
        next.apply(voter, &Event::VoteRequested(candidacy.epoch), broken);
        let granted = next.nodes[voter].leadership.voted_epoch == candidacy.epoch;
        let at = next.nodes[candidate].candidacy.as_mut()?;
        at.asked |= 1 << voter;
        if arrives && granted {
            at.voted |= 1 << voter;
        }
        Some(next)
    }

    /// The candidate wins, having fetched the best log if that is another one's.
    fn win(&self, candidate: usize, bounds: Bounds, broken: Broken) -> Option<State> {
        let candidacy = self.nodes[candidate].candidacy.clone()?;
        let mut election = self.election(candidate, candidacy.voted, candidacy.voted);
        election.answered(key(candidate), true, self.nodes[candidate].standing());
        if !election.promises().suffice() || self.nodes[candidate].log.len() >= bounds.entries {
            return None;
        }
        let mut next = self.clone();
        if let Best::Of(member) = election.best() {
            let from = member.node as usize - 1;
            let log = self.nodes[from].log.clone();
            let at = common(&self.nodes[candidate].log, &log);
            if at < self.nodes[candidate].log.len()
                && !matches!(
                    rejoin(&self.nodes[candidate].standing(), &self.nodes[from].standing(), Word::Members),
                    Rejoin::Cut(_)
                )
            {
                return None;
            }
            next.nodes[candidate].log = log;
        }
        if next.nodes[candidate].log.len() >= bounds.entries {
            return None;
        }
        let event = Event::Wins { epoch: candidacy.epoch, by_order: candidacy.by_order, forced: false };
        // The same state may lead again: the node's own number is another one.
        let won = step(&next.nodes[candidate].leadership, &event, broken).ok()?;
        let leadership = won.unwrap_or_else(|| next.nodes[candidate].leadership.clone());
        let node = &mut next.nodes[candidate];
        node.become_(leadership);
        node.candidacy = None;
        node.leads = true;
        node.log.push(candidacy.epoch);
        Some(next)
    }

    fn write(&self, leader: usize, bounds: Bounds) -> Option<State> {
        if !self.nodes[leader].leads || self.nodes[leader].log.len() >= bounds.entries {
            return None;
        }
        let mut next = self.clone();
        let epoch = self.nodes[leader].leadership.voted_epoch;
        next.nodes[leader].log.push(epoch);
        Some(next)
    }

    /// A follower takes what its upstream has; `told`: its word reaches it.
    fn take(&self, follower: usize, told: bool) -> Option<State> {
        let Role::Follower(from) = &self.nodes[follower].leadership.role else { return None };
        let from = (0..NODES).find(|node| upstream(*node) == *from)?;
        if from == follower || self.nodes[from].leadership.role == Role::SteppedDown {
            return None;
        }
        let (own, theirs) = (self.nodes[follower].standing(), self.nodes[from].standing());
        if theirs.adopted != own.adopted && theirs.adopted.number <= own.adopted.number {
            return None;
        }
        let mut next = self.clone();
        let log = &self.nodes[from].log;
        match common_point((&theirs.epochs, theirs.last), (&own.epochs, own.last)) {
            Common::Prefix(at) if at == own.last => {}
            _ => match rejoin(&own, &theirs, Word::Log) {
                Rejoin::Cut(at) => next.nodes[follower].log.truncate(at as usize),
                _ => return None,
            },
        }
        let taken = log.clone();
        let node = &mut next.nodes[follower];
        node.leadership.voted_epoch = theirs.adopted;
        node.log = taken;
        node.published = node.published.max(self.nodes[from].published.min(node.log.len()));
        if told && self.nodes[from].leads {
            next.nodes[from].acks[follower] = next.nodes[follower].log.len() as u8;
        }
        Some(next)
    }

    /// A leader publishes what enough hold.
    fn publish(&self, leader: usize, broken: Broken) -> Result<Option<State>, String> {
        let node = &self.nodes[leader];
        if !node.leads {
            return Ok(None);
        }
        let epoch = node.leadership.voted_epoch;
        let mut quorum = Quorum::default();
        for (other, acked) in node.acks.iter().enumerate().filter(|(other, _)| *other != leader) {
            quorum.confirm(key(other), epoch, Version::from(*acked), epoch, broken);
        }
        let first = node.epochs().last().map_or(0, |start| start.first_version);
        let reached = quorum.reached(key(leader), &list(), first, broken).min(node.log.len() as Version) as usize;
        if reached <= node.published {
            return Ok(None);
        }
        let mut next = self.clone();
        next.nodes[leader].published = reached;
        let published = &node.log[..reached];
        if common(&self.committed, published) < self.committed.len().min(reached) {
            return Err(format!("node {leader} publishes {published:?} beside {:?}", self.committed));
        }
        if reached > self.committed.len() {
            next.committed = published.to_vec();
        }
        Ok(Some(next))
    }

    fn crash(&self, node: usize) -> State {
        let mut next = self.clone();
        next.crashes += 1;
        let it = &mut next.nodes[node];
        (it.leads, it.candidacy, it.acks) = (false, None, [0; NODES]);
        next
    }

    /// Whether `node` would follow itself by following `other`.
    fn closes_a_circle(&self, node: usize, mut other: usize) -> bool {
        for _ in 0..=NODES {
            if other == node {
                return true;
            }
            let Role::Follower(up) = &self.nodes[other].leadership.role else { return false };
            let Some(next) = (0..NODES).find(|n| upstream(*n) == *up) else { return false };
            other = next;
        }
        true
    }

    fn ordered(&self, node: usize, event: &Event, broken: Broken) -> Option<State> {
        let mut next = self.clone();
        next.orders += 1;
        // An order ends a promotion that came before it.
        next.nodes[node].candidacy = None;
        next.apply(node, event, broken).then_some(next)
    }

    fn check(&self) -> Result<(), String> {
        for (i, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.leads) {
            let epoch = node.leadership.voted_epoch;
            if self.nodes.iter().enumerate().any(|(j, o)| j != i && o.leads && o.leadership.voted_epoch == epoch) {
                return Err(format!("two nodes lead in {epoch:?}"));
            }
            let newest = self.committed.last().map_or(0, |epoch| epoch.number);
            let lacks = common(&self.committed, &node.log) < self.committed.len();
            if epoch.number >= newest && lacks {
                return Err(format!("node {i} leads in {epoch:?} and lacks a part of {:?}", self.committed));
            }
        }
        for node in 0..NODES {
            if let Role::Follower(up) = &self.nodes[node].leadership.role
                && let Some(other) = (0..NODES).find(|n| upstream(*n) == *up)
                && self.closes_a_circle(node, other)
            {
                return Err(format!("node {node} follows itself"));
            }
        }
        Ok(())
    }

    /// All that can happen next.
    fn next(&self, bounds: Bounds, broken: Broken) -> Result<Vec<State>, String> {
        let mut all = Vec::new();
        for node in 0..NODES {
            for mask in 0..1u8 << NODES {
                if mask & 1 << node != 0 {
                    continue;
                }
                if self.orders < bounds.orders
                    && let Some(mut next) = self.stand(node, true, mask, broken)
                {
                    next.orders += 1;
                    all.push(next);
                }
                if self.returns < bounds.returns
                    && self.nodes[node].candidacy.is_none()
                    && let Some(mut next) = self.stand(node, false, mask, broken)
                {
                    next.returns += 1;
                    all.push(next);
                }
            }
            for other in (0..NODES).filter(|other| *other != node) {
                all.extend(self.vote(node, other, true, broken));
                all.extend(self.vote(node, other, false, broken));
                let leader = &self.nodes[other];
                if leader.leads {
                    let event = Event::LeaderFound {
                        upstream: upstream(other),
                        node: key(other).0,
                        epoch: leader.leadership.voted_epoch,
                        promoted: leader.leadership.promoted,
                    };
                    let mut next = self.clone();
                    let before = &self.nodes[node].leadership;
                    if next.apply(node, &event, broken) {
                        if before.ordered.is_some_and(|o| leader.leadership.promoted <= o)
                            && before.role == Role::SteppedDown
                        {
                            return Err(format!(
                                "an order to node {node} is ended by node {other}, which nobody promoted"
                            ));
                        }
                        all.push(next);
                    }
                }
                if self.orders < bounds.orders && !self.closes_a_circle(node, other) {
                    let event = Event::Follows { upstream: upstream(other), node: key(other).0 };
                    all.extend(self.ordered(node, &event, broken));
                }
            }
            all.extend(self.win(node, bounds, broken));
            all.extend(self.write(node, bounds));
            all.extend(self.take(node, true));
            all.extend(self.take(node, false));
            all.extend(self.publish(node, broken)?);
            if self.crashes < bounds.crashes && (self.nodes[node].leads || self.nodes[node].candidacy.is_some()) {
                all.push(self.crash(node));
            }
            if self.orders < bounds.orders {
                all.extend(self.ordered(node, &Event::StepsDown, broken));
            }
        }
        Ok(all)
    }
}

/// How many entries two logs have in common.
fn common(a: &[Epoch], b: &[Epoch]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Follows every state; the error says which one is wrong, and how it came to be.
pub fn explore(bounds: Bounds, broken: Broken) -> Result<Seen, String> {
    let digest = |state: &State| {
        let mut hasher = DefaultHasher::new();
        state.hash(&mut hasher);
        let first = hasher.finish();
        0x5eed_u64.hash(&mut hasher);
        (u128::from(first) << 64) | u128::from(hasher.finish())
    };
    let mut seen = Seen { whole: true, ..Seen::default() };
    let first = State::first();
    let mut known: HashSet<u128> = HashSet::from([digest(&first)]);
    let mut open = vec![first];
    while let Some(state) = open.pop() {
        seen.states += 1;
        seen.committed += usize::from(state.committed.len() > 1);
        state.check().map_err(|what| format!("{what}\n{state:#?}"))?;
        if known.len() >= bounds.states {
            seen.whole = false;
            continue;
        }
        let next = state.next(bounds, broken).map_err(|what| format!("{what}\n{state:#?}"))?;
        seen.transitions += next.len();
        let fresh: BTreeSet<u128> = next.iter().map(&digest).filter(|digest| !known.contains(digest)).collect();
        for next in next {
            let digest = digest(&next);
            if fresh.contains(&digest) && known.insert(digest) {
                open.push(next);
            }
        }
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Bounds = Bounds { entries: 4, crashes: 1, orders: 2, returns: 1, states: 150_000 };

    #[test]
    fn no_state_within_short_bounds_is_wrong() {
        let seen = explore(SHORT, Broken::default()).unwrap_or_else(|what| panic!("{what}"));
        assert!(seen.committed > 1000, "hardly anything was committed: {seen:?}");
    }

    #[test]
    fn a_vote_for_a_lower_epoch_and_a_tail_that_counts_too_early_are_found() {
        let lower = Broken { lower_vote: true, ..Broken::default() };
        assert!(explore(SHORT, lower).is_err());
        let itself = Broken { counts_itself: true, ..Broken::default() };
        assert!(explore(SHORT, itself).is_err());
    }
}
