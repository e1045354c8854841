//! The one place that decides how a node's leadership changes: a pure function from the durable state and an event to the
//! next state.
//!
//! What is durable is in the manifest ([`turnstone_engine::leadership::Leadership`]); the engine calls [`step`] at the moment
//! of the change, so a decision never rests on an older state, and `None` changes nothing and ends nothing. What is volatile
//! follows from it: any change ends a confirmed leadership, streams and waiting commits; only [`Event::Wins`] begins one.
//!
//! - **A vote is for an epoch, not for a role.** Who votes takes nothing of a lower epoch any more; it goes on to follow whom it
//!   followed, or waits as the leader that it was, until somebody leads in that epoch. A promotion that fails leaves roles as
//!   they were, and no two nodes end up following each other through votes that cross.
//! - **A leader is found, not believed.** A node follows another one only after it has asked that one whether it leads
//!   ([`Event::LeaderFound`]), or after an operator named it ([`Event::Follows`]).
//! - **An order stands.** What an operator ordered is kept with the number of the epoch that was voted for at that time. It gives
//!   way to another order to the same node, and to a leader that an operator promoted in a later epoch; never to what nodes
//!   do by themselves.

use crate::quorum::Broken;
use turnstone_engine::leadership::{Leadership, Role, Upstream};
use turnstone_engine::types::Epoch;

/// A vote is refused if the epoch's number is further above the own one: numbers end, and one frame must not use them up.
pub const JUMP_MAX: u64 = 1 << 20;

/// What happens to a node's leadership.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Another node stands in an epoch.
    VoteRequested(Epoch),
    /// Enough members have voted for this node's epoch, and it has the best log of theirs.
    Wins {
        /// The epoch.
        epoch: Epoch,
        /// An operator ordered it.
        by_order: bool,
        /// With force.
        forced: bool,
    },
    /// Another node knows that this one has had more than it has, and has agreed to this epoch.
    FoundShort(Epoch),
    /// This node has all that a leader had when it began to follow that.
    CatchesUp,
    /// `stepdown`.
    StepsDown,
    /// `replicaof no one`.
    FollowsNobody,
    /// `replicaof`.
    Follows {
        /// Whom.
        upstream: Upstream,
        /// Its node.
        node: u64,
    },
    /// A node was asked, and leads.
    LeaderFound {
        /// Where it is.
        upstream: Upstream,
        /// Its node.
        node: u64,
        /// It leads in this epoch.
        epoch: Epoch,
        /// The number of the newest epoch that an operator began there.
        promoted: u64,
    },
}

/// Why an event changes nothing, where that is no matter of course.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// This node has voted for an epoch that is as high, or higher.
    Fenced(Epoch),
    /// The epoch's number is out of all proportion.
    TooFar(Epoch),
    /// An operator ordered otherwise.
    Ordered,
    /// This node has lost what it had: it is a learner.
    Learner,
}

/// The next state; `None` where there is nothing to change.
pub fn step(now: &Leadership, event: &Event, broken: Broken) -> Result<Option<Leadership>, Refusal> {
    let voted = now.voted_epoch;
    let is_same = |epoch: Epoch| epoch == voted || (broken.id_not_compared && epoch.number == voted.number);
    let is_lower = |epoch: Epoch| !is_same(epoch) && epoch.number <= voted.number;
    let next = match event {
        Event::FoundShort(epoch) if epoch.number > voted.number.saturating_add(JUMP_MAX) => {
            return Err(Refusal::TooFar(voted));
        }
        Event::FoundShort(epoch) => now.put_back(*epoch),
        Event::CatchesUp => Leadership { learner: false, ..now.clone() },
        Event::VoteRequested(_) | Event::Wins { forced: false, .. } if now.learner && !broken.learner_votes => {
            return Err(Refusal::Learner);
        }
        Event::VoteRequested(epoch) if *epoch == voted => return Ok(None),
        Event::VoteRequested(epoch) if is_lower(*epoch) && !broken.lower_vote => return Err(Refusal::Fenced(voted)),
        Event::VoteRequested(epoch) if epoch.number > voted.number.saturating_add(JUMP_MAX) => {
            return Err(Refusal::TooFar(voted));
        }
        Event::VoteRequested(epoch) => now.voting_for(*epoch),
        Event::Wins { epoch, .. } if *epoch != voted => return Err(Refusal::Fenced(voted)),
        // What a node begins by itself an order has ended.
        Event::Wins { by_order: false, .. } if now.role != Role::Leader && !broken.order_not_kept => {
            return Err(Refusal::Ordered);
        }
        Event::Wins { by_order, .. } => now.leading(*by_order),
        Event::StepsDown => now.stepped_down(),
        Event::FollowsNobody if now.role == Role::Leader => return Ok(None),
        Event::FollowsNobody => now.stepped_down(),
        Event::Follows { upstream, node } => following(now, upstream, *node, Some(voted.number)),
        Event::LeaderFound { epoch, .. } if is_lower(*epoch) => return Err(Refusal::Fenced(voted)),
        Event::LeaderFound { epoch, .. } if epoch.number > voted.number.saturating_add(JUMP_MAX) => {
            return Err(Refusal::TooFar(voted));
        }
        Event::LeaderFound { upstream, node, epoch, promoted } => {
            // No order begins an epoch that is yet to come.
            let promoted = &epoch.number.min(*promoted);
            let whom_it_follows = matches!(now.role, Role::Follower(_)) && now.upstream_node == *node && *node != 0;
            let later = now.ordered.is_none_or(|ordered| *promoted > ordered);
            let free = now.role != Role::SteppedDown || now.ordered.is_some();
            let gives_way = whom_it_follows || (later && free) || broken.order_not_kept;
            if !gives_way {
                return Err(Refusal::Ordered);
            }
            let ordered = now.ordered.filter(|_| whom_it_follows);
            let next = following(now, upstream, *node, ordered);
            Leadership { voted_epoch: *epoch, promoted: now.promoted.max(*promoted), ..next }
        }
    };
    Ok(Some(next).filter(|next| next != now))
}

fn following(now: &Leadership, upstream: &Upstream, node: u64, ordered: Option<u64>) -> Leadership {
    let role = Role::Follower(upstream.clone());
    Leadership { role, upstream_node: node, ordered, has_followed: true, ..now.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(number: u64, id: u64) -> Epoch {
        Epoch { number, id }
    }

    fn upstream(address: &str) -> Upstream {
        Upstream { address: address.to_string(), partition: 1 }
    }

    fn after(now: &Leadership, event: Event) -> Leadership {
        step(now, &event, Broken::default()).expect("nothing is refused").expect("something changes")
    }

    fn refused(now: &Leadership, event: Event) -> Refusal {
        step(now, &event, Broken::default()).expect_err("it is refused")
    }

    fn found(node: u64, at: &str, epoch: Epoch, promoted: u64) -> Event {
        Event::LeaderFound { upstream: upstream(at), node, epoch, promoted }
    }

    #[test]
    fn a_vote_changes_no_role_and_a_second_one_nothing() {
        for role in [Role::Leader, Role::SteppedDown, Role::Follower(upstream("a:1"))] {
            let now = Leadership { role: role.clone(), voted_epoch: epoch(1, 1), ..Leadership::default() };
            let voted = after(&now, Event::VoteRequested(epoch(2, 7)));
            assert_eq!((voted.role.clone(), voted.voted_epoch), (role, epoch(2, 7)));
            assert_eq!(step(&voted, &Event::VoteRequested(epoch(2, 7)), Broken::default()), Ok(None));
            assert_eq!(refused(&voted, Event::VoteRequested(epoch(2, 8))), Refusal::Fenced(epoch(2, 7)));
            assert_eq!(refused(&voted, Event::VoteRequested(epoch(1, 1))), Refusal::Fenced(epoch(2, 7)));
            let far = epoch(3 + JUMP_MAX, 9);
            assert_eq!(refused(&voted, Event::VoteRequested(far)), Refusal::TooFar(epoch(2, 7)));
        }
    }

    #[test]
    fn an_order_gives_way_to_later_orders_alone() {
        let fresh = Leadership { voted_epoch: epoch(3, 3), ..Leadership::default() };
        let down = after(&fresh, Event::StepsDown);
        // The leader returned by itself, in epochs that no operator began.
        assert_eq!(refused(&down, found(5, "e:1", epoch(4, 4), 3)), Refusal::Ordered);
        let led = after(&down, found(5, "e:1", epoch(4, 4), 4));
        assert_eq!((led.role, led.ordered, led.promoted), (Role::Follower(upstream("e:1")), None, 4));
        let other = after(&fresh, Event::Follows { upstream: upstream("b:1"), node: 6 });
        assert_eq!(refused(&other, found(5, "e:1", epoch(4, 4), 3)), Refusal::Ordered);
        let moved = after(&other, found(6, "b:2", epoch(3, 3), 0));
        assert_eq!((moved.role.clone(), moved.ordered), (Role::Follower(upstream("b:2")), Some(3)), "the order stands");
        assert_eq!(step(&moved, &found(6, "b:2", epoch(3, 3), 0), Broken::default()), Ok(None));
        assert_eq!(after(&moved, Event::FollowsNobody).role, Role::SteppedDown);
        assert_eq!(step(&fresh, &Event::FollowsNobody, Broken::default()), Ok(None), "it follows nobody");
    }

    #[test]
    fn a_learner_neither_votes_nor_leads_but_by_force_until_it_has_caught_up() {
        let now = Leadership { voted_epoch: epoch(3, 3), ..Leadership::default() };
        let learner = after(&now, Event::FoundShort(epoch(5, 5)));
        assert_eq!((learner.learner, learner.voted_epoch), (true, epoch(5, 5)));
        assert_eq!(after(&now, Event::FoundShort(epoch(2, 2))).voted_epoch, epoch(3, 3));
        assert_eq!(refused(&now, Event::FoundShort(epoch(4 + JUMP_MAX, 5))), Refusal::TooFar(epoch(3, 3)));
        assert_eq!(refused(&learner, Event::VoteRequested(epoch(6, 6))), Refusal::Learner);
        let wins = |forced| Event::Wins { epoch: epoch(5, 5), by_order: true, forced };
        assert_eq!(refused(&learner, wins(false)), Refusal::Learner);
        assert!(!after(&learner, wins(true)).learner);
        let follows = after(&learner, found(6, "b:1", epoch(5, 5), 5));
        assert!(follows.learner, "it has nothing yet");
        assert!(!after(&follows, Event::CatchesUp).learner);
    }

    #[test]
    fn who_wins_has_voted_for_that_epoch_and_for_none_since() {
        let now =
            Leadership { voted_epoch: epoch(5, 5), has_followed: true, ordered: Some(2), ..Leadership::default() };
        assert_eq!(
            refused(&now, Event::Wins { epoch: epoch(4, 4), by_order: true, forced: false }),
            Refusal::Fenced(epoch(5, 5))
        );
        let leads = after(&now, Event::Wins { epoch: epoch(5, 5), by_order: true, forced: false });
        assert_eq!((leads.promoted, leads.has_followed, leads.ordered), (5, false, None));
        let down = Leadership { role: Role::SteppedDown, ..now.clone() };
        assert_eq!(
            refused(&down, Event::Wins { epoch: epoch(5, 5), by_order: false, forced: false }),
            Refusal::Ordered
        );
        let again = after(
            &Leadership { promoted: 2, ..now },
            Event::Wins { epoch: epoch(5, 5), by_order: false, forced: false },
        );
        assert_eq!(again.promoted, 2, "nodes do not order");
        assert_eq!(refused(&again, found(6, "b:2", epoch(4, 4), 9)), Refusal::Fenced(epoch(5, 5)));
        assert_eq!(refused(&again, found(6, "b:2", epoch(7 + JUMP_MAX, 4), 9)), Refusal::TooFar(epoch(5, 5)));
    }
}
