//! Orders that an operator gives about a partition's role and its members, carried out.
//!
//! `promote`, `replicaof` and `replicaof no one` are in [`super::promotion`] and [`super::following`]; the others are here, so
//! that the simulator gives them through the same code as the server.

use super::{Host, Replication, Trouble};
use std::rc::Rc;
use turnstone_engine::types::Version;
use turnstone_engine::{Error, Partition};

impl<H: Host> Replication<H> {
    /// `stepdown`: refuses writes from now on. A promotion that is under way does not take that back.
    pub async fn step_down(&self, partition: &Partition<H::Env>) -> Result<(), Trouble> {
        self.next_order(partition.id());
        Ok(partition.step_down().await?)
    }

    /// `min_replicas N`: so many followers must hold a commit. Answers when the change is in force.
    pub async fn change_min_replicas(
        self: &Rc<Self>,
        partition: &Partition<H::Env>,
        min_replicas: u32,
    ) -> Result<(), Trouble> {
        let changed = partition.change_members(|members| {
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
        let known = partition.forget_peer(node).await?;
        let is_member = partition.members().nodes.iter().any(|member| member.node == node);
        if known && (!is_member || !partition.leads()) {
            return Ok(());
        }
        let changed = partition.change_members(|members| {
            let mut next = members.clone();
            next.nodes.retain(|member| member.node != node);
            (next != *members).then_some(next)
        });
        match changed.await? {
            None => {
                let text = format!("no member has the number {node:016x}; `replicas` lists them");
                Err(Trouble::Engine(Error::NoSuchMember(text)))
            }
            version => in_force(partition, version).await,
        }
    }
}

/// Waits until a change of the members is in force.
async fn in_force<E: turnstone_engine::env::Env>(
    partition: &Partition<E>,
    version: Option<Version>,
) -> Result<(), Trouble> {
    match version {
        Some(version) => Ok(partition.wait_outcome(version).await?),
        None => Ok(()),
    }
}
