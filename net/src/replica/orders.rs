//! Orders that an operator gives about a partition's role and its members, carried out.
//!
//! `promote`, `replicaof` and `replicaof no one` are in [`super::promotion`] and [`super::following`]; the others are here, so
//! that the simulator gives them through the same code as the server.

use super::promotion::must_hold_the_raise;
use super::{Host, Replication, Trouble, broken};
use std::rc::Rc;
use turnstone_engine::leadership::Role;
use turnstone_engine::types::{Member, Version};
use turnstone_engine::wal::body::FORGOTTEN_MAX;
use turnstone_engine::{Error, Partition};
use turnstone_replication::leadership::{Event, step};

impl<H: Host> Replication<H> {
    /// `stepdown`: refuses writes from now on. A promotion that is under way does not take that back.
    pub async fn step_down(&self, partition: &Partition<H::Env>) -> Result<(), Trouble> {
        self.next_order(partition.id());
        self.order(partition, &Event::StepsDown).await.map(drop)
    }

    /// Carries out an order about a role; answers whether it has changed anything.
    pub(super) async fn order(&self, partition: &Partition<H::Env>, event: &Event) -> Result<bool, Trouble> {
        let decide = |now: &_| step(now, event, broken(partition.env()));
        match partition.change_leadership(decide).await? {
            Ok(changed) => Ok(changed),
            // No order of an operator is refused by the state that it finds.
            Err(_) => Err(Error::Superseded.into()),
        }
    }

    /// `min_replicas N`: so many followers must hold a commit. Answers when the change is in force.
    pub async fn change_min_replicas(
        self: &Rc<Self>,
        partition: &Partition<H::Env>,
        min_replicas: u32,
    ) -> Result<(), Trouble> {
        let list = partition.standing().members.last().map(|record| record.members.clone()).unwrap_or_default();
        if partition.leads() && min_replicas > 0 && list.min_replicas == 0 {
            let (own, present) = (self.key(partition.id()), self.board.present(partition.id()));
            let is_absent = |member: &&Member| member.key() != own && !present.contains(&member.key());
            let absent: Vec<Member> = list.nodes.iter().filter(is_absent).cloned().collect();
            if !absent.is_empty() && !broken(partition.env()).raised_alone {
                return Err(must_hold_the_raise(&absent));
            }
        }
        let changed = partition.change_members(false, |members| {
            let mut next = members.clone();
            next.min_replicas = min_replicas;
            self.join_own(partition.id(), &mut next);
            (next != *members).then_some(next)
        });
        in_force(partition, changed.await?).await
    }

    /// `replicas forget ID`: the node's key is forgotten, and at a leader it is a member no more. Answers when that is in force.
    pub async fn forget(&self, partition: &Partition<H::Env>, node: u64) -> Result<(), Trouble> {
        if node == self.host.node() {
            return Err(Trouble::Engine(Error::TooFewAgree("a leader does not forget itself".to_string())));
        }
        let known = partition.knows_peer(node);
        let list = partition.members();
        let is_member = list.nodes.iter().any(|member| member.node == node);
        if !is_member && !known && !list.forgotten.contains(&node) {
            let text = format!("no member has the number {node:016x}; `replicas` lists them");
            return Err(Trouble::Engine(Error::NoSuchMember(text)));
        }
        if known && partition.role() != Role::Leader {
            partition.forget_peer(node).await?;
            return Ok(());
        }
        // It may be the one that a change waits for.
        let changed = partition.change_members(true, |members| {
            let mut next = members.clone();
            next.nodes.retain(|member| member.node != node);
            if !next.forgotten.contains(&node) {
                let surplus = (next.forgotten.len() + 1).saturating_sub(FORGOTTEN_MAX);
                next.forgotten.drain(..surplus);
                next.forgotten.push(node);
            }
            (next != *members).then_some(next)
        });
        let changed = changed.await?;
        partition.forget_peer(node).await?;
        self.known.forget(partition.id(), node);
        // While it is connected it may yet hold the change, where the list of before asks for that.
        let in_force = in_force(partition, changed).await;
        self.board.evict(partition.id(), node);
        in_force
    }
}

/// Waits until a change of the members is in force; where there was nothing to change, until the newest list is.
async fn in_force<E: turnstone_engine::env::Env>(
    partition: &Partition<E>,
    version: Option<Version>,
) -> Result<(), Trouble> {
    let newest = || partition.standing().members.last().map(|record| record.version);
    match version.or_else(newest) {
        Some(version) => Ok(partition.wait_outcome(version).await?),
        None => Ok(()),
    }
}
