//! Who leads a partition, as one node has it on its disk, and the one way in which that changes.
//!
//! What may change when is decided by the step function of the crate `replication` (`leadership`): it is given the state
//! that the manifest has at the moment of the change, so that no decision rests on an older one. Here is what a change means
//! for the partition: it is durable before anybody is told, a first write does not begin an epoch beside it, and a node
//! that led leads no more until it wins anew.

use crate::codec::{Put, Take, Truncated};
use crate::env::{Env, Sabotage};
use crate::error::Error;
use crate::partition::{Core, Partition};
use crate::reign::Standing;
use crate::types::{Epoch, PartitionId};
use std::rc::Rc;

/// Whose log a partition follows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Upstream {
    /// The leader, `host:port`.
    pub address: String,
    /// The partition there.
    pub partition: PartitionId,
}

/// What a partition is among the nodes that hold it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Role {
    /// It takes writes.
    #[default]
    Leader,
    /// It takes none until it is promoted, or follows.
    SteppedDown,
    /// Its log is another node's.
    Follower(Upstream),
}

/// The durable part of leadership.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Leadership {
    /// Counts the changes.
    pub number: u64,
    /// What the partition is.
    pub role: Role,
    /// The node that is followed, 0 where that is not known: its address may change.
    pub upstream_node: u64,
    /// The highest epoch that this node has voted for: it takes nothing of a lower one.
    pub voted_epoch: Epoch,
    /// An operator ordered the role when the epoch that had been voted for had this number: the role stays until another order
    /// to this node, or until a leader that was promoted by an order in a later epoch.
    pub ordered: Option<u64>,
    /// The newest epoch, by number, that is known to have begun with an operator's order.
    pub promoted: u64,
    /// It has followed since it last led: its log may lack what others hold.
    pub has_followed: bool,
    /// Others know that it has had more than it has: its home was put back from an older copy. It votes for nobody and leads by
    /// force alone, until it has caught up with a leader.
    pub learner: bool,
}

impl Leadership {
    pub(crate) fn encode_role(&self, out: &mut Vec<u8>) {
        match &self.role {
            Role::SteppedDown => out.put_u8(0),
            Role::Leader => out.put_u8(1),
            Role::Follower(upstream) => {
                out.put_u8(2);
                out.put_u8(upstream.partition);
                out.put_u16(upstream.address.len() as u16);
                out.put(upstream.address.as_bytes());
            }
        }
        out.put_u64(self.voted_epoch.number);
        out.put_u64(self.voted_epoch.id);
    }

    /// What a manifest of before there was more says.
    pub(crate) fn decode_role(take: &mut Take<'_>) -> Result<Leadership, Truncated> {
        let role = match take.u8()? {
            0 => Role::SteppedDown,
            1 => Role::Leader,
            2 => {
                let (partition, length) = (take.u8()?, usize::from(take.u16()?));
                let address = String::from_utf8(take.bytes(length)?.to_vec()).map_err(|_| Truncated)?;
                Role::Follower(Upstream { address, partition })
            }
            _ => return Err(Truncated),
        };
        let voted_epoch = Epoch { number: take.u64()?, id: take.u64()? };
        Ok(Leadership { role, voted_epoch, ..Leadership::default() })
    }

    /// What a manifest of before there was more says of the rest: the role was ordered, and so was a leader's newest epoch.
    pub(crate) fn of_before(&mut self, newest: u64) {
        match self.role {
            Role::Leader => self.promoted = newest,
            Role::SteppedDown | Role::Follower(_) => self.ordered = Some(self.voted_epoch.number),
        }
        self.has_followed = matches!(self.role, Role::Follower(_));
    }

    pub(crate) fn encode_rest(&self, out: &mut Vec<u8>) {
        out.put_u64(self.number);
        out.put_u64(self.upstream_node);
        out.put_u8(u8::from(self.ordered.is_some()));
        out.put_u64(self.ordered.unwrap_or(0));
        out.put_u64(self.promoted);
        out.put_u8(u8::from(self.has_followed));
    }

    pub(crate) fn decode_rest(&mut self, take: &mut Take<'_>) -> Result<(), Truncated> {
        self.number = take.u64()?;
        self.upstream_node = take.u64()?;
        let (ordered, number) = (flag(take)?, take.u64()?);
        self.ordered = ordered.then_some(number);
        self.promoted = take.u64()?;
        self.has_followed = flag(take)?;
        Ok(())
    }
}

fn flag(take: &mut Take<'_>) -> Result<bool, Truncated> {
    match take.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Truncated),
    }
}

impl<E: Env> Partition<E> {
    /// Who leads, as this node has it on its disk.
    pub fn leadership(&self) -> Leadership {
        self.0.manifest.get().leadership.clone()
    }

    /// Whether others know it to have had more than it has.
    pub fn is_learner(&self) -> bool {
        self.0.manifest.get().leadership.learner
    }

    /// Changes who leads, as `decide` says of the state that there is: `Ok(None)` and errors change nothing. Answers whether
    /// anything has changed. On disk when this returns; a leader is one no more, and what it had pending has no known outcome.
    pub async fn change_leadership<R>(
        &self,
        decide: impl Fn(&Leadership) -> Result<Option<Leadership>, R>,
    ) -> Result<Result<bool, R>, Error> {
        let core = &self.0;
        if core.closing.get() {
            return Err(Error::ShuttingDown);
        }
        match decide(&core.manifest.get().leadership) {
            Err(refusal) => return Ok(Err(refusal)),
            Ok(None) => return Ok(Ok(false)),
            Ok(Some(_)) => {}
        }
        // A first write that is about to begin an epoch of its own does so before this, or not at all.
        let begin = core.begin_gate.enter().await;
        let changed = core.update_manifest(|m| {
            // Another change may have come first.
            let Some(next) = decide(&m.leadership)? else { return Ok(None) };
            let follows_on = matches!(next.role, Role::Follower(_)) && next.role == m.leadership.role;
            m.leadership = Leadership { number: m.leadership.number + 1, ..next };
            Ok(Some(follows_on))
        });
        match changed.await? {
            Err(refusal) => Ok(Err(refusal)),
            Ok(None) => Ok(Ok(false)),
            Ok(Some(follows_on)) => {
                // One that led leads no more, also if it asks itself: what is confirmed from now on is not of its old epoch.
                core.confirmed.set(false);
                drop(begin);
                core.depose(follows_on).await;
                Ok(Ok(true))
            }
        }
    }

    /// Votes for an epoch if `decide` does. On disk, with everything that was prepared, when this returns; then nothing of a
    /// lower epoch comes behind it. Answers what the node has.
    pub async fn vote<R>(
        &self,
        epoch: Epoch,
        decide: impl Fn(&Leadership) -> Result<Option<Leadership>, R>,
    ) -> Result<Result<Standing, R>, Error> {
        let core = &self.0;
        let not_kept = core.env.sabotage() == Some(Sabotage::PromiseNotKept);
        if not_kept {
            if let Err(refusal) = decide(&core.manifest.get().leadership) {
                return Ok(Err(refusal));
            }
            core.confirmed.set(false);
            core.depose(false).await;
            return Ok(Ok(self.standing()));
        }
        if let Err(refusal) = self.change_leadership(decide).await? {
            return Ok(Err(refusal));
        }
        let standing = self.standing();
        // Somebody else may have been voted for in between, who must not be taken for the one who asked.
        let ids_compared = core.env.sabotage() != Some(Sabotage::EpochIdNotCompared);
        let kept = standing.adopted == epoch || (!ids_compared && standing.adopted.number == epoch.number);
        if kept { Ok(Ok(standing)) } else { Err(Error::Fenced { adopted: standing.adopted }) }
    }

    /// Votes for an epoch of this node's own, above all that it knows and with a number of at least `at_least`. Tried again
    /// where a first write begins one just before.
    pub async fn stand(&self, at_least: u64) -> Result<(Epoch, Standing), Error> {
        let core = &self.0;
        let mut tries = 0;
        loop {
            let newest = {
                let m = core.manifest.get();
                m.leadership.voted_epoch.number.max(m.epochs.last().map_or(0, |e| e.epoch.number))
            };
            let epoch = Epoch { number: at_least.max(newest + 1), id: core.env.random() };
            tries += 1;
            let higher = |now: &Leadership| {
                let voted = now.voted_epoch;
                let fenced = Error::Fenced { adopted: voted };
                if voted.number >= epoch.number { Err(fenced) } else { Ok(Some(now.voting_for(epoch))) }
            };
            match self.vote(epoch, higher).await.and_then(|voted| voted) {
                Ok(standing) => return Ok((epoch, standing)),
                Err(Error::Fenced { .. }) if tries < 3 => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Refuses writes from now on, until promoted; durable. What was prepared is published where nobody else must hold it.
    pub async fn step_down(&self) -> Result<(), Error> {
        let _: Result<bool, Error> = self.change_leadership(|now| Ok(Some(now.stepped_down()))).await?;
        Ok(())
    }
}

impl Leadership {
    /// With a vote for this epoch.
    pub fn voting_for(&self, epoch: Epoch) -> Leadership {
        Leadership { voted_epoch: epoch, ..self.clone() }
    }

    /// Of a node that others know to have had more, and to have agreed to this epoch.
    pub fn put_back(&self, epoch: Epoch) -> Leadership {
        let voted_epoch = if epoch.number > self.voted_epoch.number { epoch } else { self.voted_epoch };
        Leadership { learner: true, voted_epoch, ..self.clone() }
    }

    /// As an operator orders it to lead no more, and to follow nobody.
    pub fn stepped_down(&self) -> Leadership {
        let ordered = Some(self.voted_epoch.number);
        Leadership { role: Role::SteppedDown, upstream_node: 0, ordered, ..self.clone() }
    }

    /// Leading in the epoch that it has voted for.
    pub fn leading(&self, by_order: bool) -> Leadership {
        let promoted = if by_order { self.voted_epoch.number } else { self.promoted };
        Leadership {
            role: Role::Leader,
            upstream_node: 0,
            ordered: None,
            promoted,
            has_followed: false,
            learner: false,
            ..self.clone()
        }
    }
}

impl<E: Env> Core<E> {
    /// What an opening makes of the role that it finds.
    pub(crate) fn take_up_role(self: &Rc<Self>) {
        let leader = self.manifest.get().writable();
        let alone = self.min_replicas() == 0;
        self.confirmed.set(leader && alone);
        self.quorum_missing.set(leader && !alone);
        let free = alone && !matches!(self.manifest.get().leadership.role, Role::Follower(_));
        self.gate.set(if free { crate::types::Version::MAX } else { self.published.get() });
        let told = free || self.env.sabotage() == Some(Sabotage::RestartTellsLess);
        self.found_version.set(if told { 0 } else { self.prepared.get() });
        self.publish();
    }

    /// It leads no more, or another one: what is pending has no known outcome, and the gate is shut. Where it `follows_on`, what its
    /// leader has said to be published stays so.
    async fn depose(self: &Rc<Self>, follows_on: bool) {
        self.confirmed.set(false);
        *self.fetching.borrow_mut() = None;
        self.deposed.raise(self.deposed.get() + 1);
        self.stop_waiting();
        let (free, last) = (self.gate.get() == crate::types::Version::MAX, self.prepared.get());
        // Who waits for followers while holding the gate below lets go.
        if !free && last > self.published.get() {
            self.expired.raise(last.max(self.expired.get()));
        }
        // What is on its way to the log either sees that it leads no more or is in it.
        drop(self.slow_gate.enter().await);
        self.flushed.reached(self.prepared.get()).await;
        if !follows_on {
            self.gate.set(self.published.get());
        }
        let last = self.prepared.get();
        if last > self.published.get() {
            self.expired.raise(last.max(self.expired.get()));
        }
    }
}
