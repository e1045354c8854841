//! Finding the leader, and following it without closing a circle.
//!
//! A node comes to follow another one by an operator's order, or because it was told, or has found out, that the other
//! leads. It first makes known whom it is about to follow. Then it asks: by order, along the chain of who follows whom;
//! otherwise, the other one, which must lead and be about to follow nobody. Only then it writes it down. Of nodes that
//! would close a circle at the same time the last to make it known sees all the others, so a circle never comes to be
//! (as in Dekker's algorithm: announce, then look).

use super::following::Trouble;
use super::{Host, Replication, broken};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use turnstone_engine::Partition;
use turnstone_engine::env::{Env, Level, Sabotage};
use turnstone_engine::leadership::{Leadership, Role, Upstream};
use turnstone_engine::wal::body::MEMBERS_MAX;
use turnstone_replication::leadership::{Event, Refusal, step};
use turnstone_replication::wire::{Caller, Follows, Reason};

/// Something for each partition, by its number.
pub(super) type PerPartition<T> = BTreeMap<u8, T>;

/// While it is there, others are told that the partition is about to follow.
pub(super) struct Intent<'a> {
    intents: &'a RefCell<PerPartition<(u64, Upstream)>>,
    partition: u8,
    number: u64,
}

impl Intent<'_> {
    fn is_current(&self) -> bool {
        self.intents.borrow().get(&self.partition).is_some_and(|(number, _)| *number == self.number)
    }
}

impl Drop for Intent<'_> {
    fn drop(&mut self) {
        if self.is_current() {
            self.intents.borrow_mut().remove(&self.partition);
        }
    }
}

impl<H: Host> Replication<H> {
    /// Whom a partition is about to follow.
    pub(super) fn intent(&self, partition: u8) -> Option<Upstream> {
        self.intents.borrow().get(&partition).map(|(_, upstream)| upstream.clone())
    }

    /// A partition is about to follow; what it was about to do before it does no more.
    pub(super) fn intend(&self, partition: u8, upstream: &Upstream) -> Intent<'_> {
        let number = self.intended.get() + 1;
        self.intended.set(number);
        self.intents.borrow_mut().insert(partition, (number, upstream.clone()));
        Intent { intents: &self.intents, partition, number }
    }

    /// Whether nobody in the chain from `upstream` on follows this partition, which has made its intent known.
    pub(super) async fn check_no_circle(
        self: &Rc<Self>,
        partition: &Partition<H::Env>,
        upstream: &Upstream,
        force: bool,
    ) -> Result<(), Trouble> {
        if partition.env().sabotage() == Some(Sabotage::CircleNotLookedFor) {
            return Ok(());
        }
        let own = self.key(partition.id());
        let (mut seen, mut unseen) = (BTreeSet::new(), vec![vec![upstream.clone()]]);
        while let Some(chain) = unseen.pop() {
            let Some(at) = chain.last() else { continue };
            if seen.len() == MEMBERS_MAX {
                let text = format!("more than {MEMBERS_MAX} partitions follow each other: follow the leader itself");
                return Err(Trouble::Refused(Reason::Itself, text));
            }
            let names: Vec<&str> = chain.iter().map(|upstream| upstream.address.as_str()).collect();
            let status = match self.ask_status(partition, &at.address, at.partition, 0).await {
                Ok(status) => status,
                Err(why) if chain.len() == 1 => return Err(Trouble::Broken(why)),
                // Where the chain goes on cannot be seen: an operator may know.
                Err(_) if force => continue,
                Err(why) => {
                    let text = format!(
                        "{}, and whether that one follows this partition cannot be seen ({why}); ask again, or follow the leader \
                         itself",
                        names.join(" follows ")
                    );
                    return Err(Trouble::Broken(text));
                }
            };
            let key = (status.node, at.partition);
            if key == own {
                let text = format!(
                    "this partition would follow itself ({}), and nobody would lead: promote another node first",
                    names.join(" follows ")
                );
                return Err(Trouble::Refused(Reason::Itself, text));
            }
            if seen.insert(key) {
                unseen.extend(status.follows.into_iter().map(|next| {
                    let mut longer = chain.clone();
                    longer.push(next.upstream);
                    longer
                }));
            }
        }
        Ok(())
    }

    /// Somebody says that it leads: this node asks it whether that is so.
    pub(super) fn hear_of_leader(self: &Rc<Self>, partition: &Partition<H::Env>, caller: Caller, address: String) {
        let key = (caller.node, caller.own);
        let lists = partition.standing().members;
        let listed = lists.iter().any(|record| record.members.nodes.iter().any(|member| member.key() == key));
        let now = partition.leadership();
        let unlisted = lists.iter().all(|record| record.members.nodes.is_empty()) && now.role != Role::Leader;
        let follows_it = now.upstream_node == caller.node && matches!(now.role, Role::Follower(_));
        if !listed && !unlisted && !follows_it {
            return;
        }
        let (node, number) = (self.clone(), partition.id());
        let upstream = Upstream { address, partition: caller.own };
        partition.env().spawn(async move {
            // If it cannot be asked it says so again.
            let _ = node.follow_leader(number, caller.node, upstream).await;
        });
    }

    /// Follows a node if that leads, and nothing stands against it. Answers whether anything has changed.
    pub(super) async fn follow_leader(
        self: &Rc<Self>,
        number: u8,
        node: u64,
        upstream: Upstream,
    ) -> Result<bool, Trouble> {
        let Some(partition) = self.host.partition(number) else { return Ok(false) };
        if self.intent(number).is_some() {
            return Ok(false);
        }
        let intent = self.intend(number, &upstream);
        let asked = self.ask_status(&partition, &upstream.address, upstream.partition, node).await;
        let status = asked.map_err(Trouble::Broken)?;
        if node == 0 || !status.standing.leads || !status.follows.is_empty() {
            return Ok(false);
        }
        let event = Event::LeaderFound {
            upstream: upstream.clone(),
            node,
            epoch: status.standing.adopted,
            promoted: status.promoted,
        };
        let rules = broken(partition.env());
        let decide = |now: &Leadership| {
            if intent.is_current() { step(now, &event, rules) } else { Err(Refusal::Ordered) }
        };
        let changed = partition.change_leadership(decide).await?;
        drop(intent);
        match changed {
            Ok(true) => {
                let text = format!(
                    "{} leads in epoch {}: this node follows it",
                    upstream.address, status.standing.adopted.number
                );
                self.log(number, Level::Info, text);
                self.next_order(number);
                self.go_on(&partition);
                Ok(true)
            }
            Ok(false) => {
                // It follows it already: at once, if it waits to try again.
                if !self.board.is_streaming(number) {
                    self.found.notify();
                }
                Ok(false)
            }
            Err(why) => {
                let text = format!("{} leads, and is not followed: {why:?}", upstream.address);
                self.log(number, Level::Debug, text);
                Ok(false)
            }
        }
    }

    /// Whom a partition follows cannot be followed: the members are asked who leads, and where the other one is now.
    pub(super) async fn look_for_leader(self: &Rc<Self>, partition: &Partition<H::Env>) -> bool {
        let number = partition.id();
        let asked = self.ask_members(partition, None).await;
        let now = partition.leadership();
        let Role::Follower(current) = &now.role else { return false };
        let own = self.host.node();
        let mut leaders: Vec<(u64, u64, Upstream)> = Vec::new();
        for (place, status) in &asked.statuses {
            if status.standing.leads && status.follows.is_empty() {
                leaders.push((status.standing.adopted.number, status.node, place.clone()));
            }
            let elsewhere = |f: &&Follows| f.node == now.upstream_node && f.upstream != *current;
            leaders.extend(status.follows.iter().filter(elsewhere).map(|f| (0, f.node, f.upstream.clone())));
        }
        leaders.sort_by_key(|(epoch, ..)| std::cmp::Reverse(*epoch));
        for (_, node, upstream) in leaders.into_iter().filter(|(_, node, _)| *node != own && *node != 0) {
            if matches!(self.follow_leader(number, node, upstream).await, Ok(true)) {
                return true;
            }
        }
        false
    }
}
