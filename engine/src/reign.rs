//! Who leads: roles, epochs and the lists of those who hold copies, as one node's log and manifest know them (D13). Who may
//! lead is decided among nodes, in the crate `replication`; here is what a node must have written down before it says so.
//!
//! - *Adopted* is the highest epoch that this node has agreed to. It is on disk before anybody is told, and from then on
//!   nothing of a lower epoch is appended here.
//! - A leader begins its epoch with a record of the log. Where followers are asked for that record is a list of members,
//!   and what is older counts as held by enough only when this record is.
//! - A list of members is in the manifest before it is in the log; one beyond the log's end was lost and does not count.

use crate::commit::{begin_generation, begin_writing, enqueue};
use crate::env::{Env, Level};
use crate::error::Error;
use crate::manifest::{EpochStart, Generation, MembersRecord, Peer, Role, Upstream, begin_agreed};
use crate::partition::{Core, Partition};
use crate::types::{Epoch, LogPosition, Members, Version};
use crate::wal;
use crate::wal::body::{MEMBERS_MAX, members_len};
use std::rc::Rc;
use std::time::Duration;

/// Most nodes whose keys a partition remembers.
pub const PEERS_MAX: usize = 64;

/// What a node has, and has agreed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The highest epoch that it has agreed to.
    pub adopted: Epoch,
    /// Its history.
    pub epochs: Vec<EpochStart>,
    /// Its newest version.
    pub last: Version,
    /// What it shows.
    pub published: Version,
    /// The list of members in force, and those behind it.
    pub members: Vec<MembersRecord>,
    /// Whether it leads.
    pub leads: bool,
}

impl<E: Env> Core<E> {
    /// What an opening makes of the role that it finds.
    pub(crate) fn take_up_role(self: &Rc<Self>) {
        let leader = self.manifest.get().writable();
        let alone = self.min_replicas() == 0;
        self.confirmed.set(leader && alone);
        self.quorum_missing.set(leader && !alone);
        let free = alone && !matches!(self.manifest.get().role, Role::Follower(_));
        self.gate.set(if free { Version::MAX } else { self.published.get() });
        self.found_version.set(if free { 0 } else { self.prepared.get() });
        self.publish();
    }

    /// It leads no more, or another one: what is pending has no known outcome, and the gate is shut.
    async fn depose(self: &Rc<Self>) {
        self.confirmed.set(false);
        *self.fetching.borrow_mut() = None;
        self.deposed.raise(self.deposed.get() + 1);
        self.stop_waiting();
        let (free, last) = (self.gate.get() == Version::MAX, self.prepared.get());
        // Who waits for followers while holding the gate below lets go.
        if !free && last > self.published.get() {
            self.expired.raise(last.max(self.expired.get()));
        }
        // What is on its way to the log either sees the new role or is in it.
        drop(self.slow_gate.enter().await);
        self.flushed.reached(self.prepared.get()).await;
        self.gate.set(self.published.get());
        let last = self.prepared.get();
        if last > self.published.get() {
            self.expired.raise(last.max(self.expired.get()));
        }
    }
}

impl<E: Env> Partition<E> {
    /// What it has, and has agreed to.
    pub fn standing(&self) -> Standing {
        let core = &self.0;
        let manifest = core.manifest.get();
        Standing {
            adopted: manifest.adopted,
            epochs: manifest.epochs.iter().filter(|e| e.first_version <= core.prepared.get()).copied().collect(),
            last: core.prepared.get(),
            published: core.published.get(),
            members: core.active_members(),
            leads: core.leads(),
        }
    }

    /// Whether it leads, and has been agreed to.
    pub fn leads(&self) -> bool {
        self.0.leads()
    }

    /// The highest epoch that it has agreed to.
    pub fn adopted(&self) -> Epoch {
        self.0.manifest.get().adopted
    }

    /// A leader, or one that would be, follows another one, if it still is what it was when it learned of that.
    pub async fn follow_newer(&self, upstream: Upstream, adopted: Epoch) -> Result<bool, Error> {
        let follow = |m: &mut crate::manifest::Manifest| {
            let same = m.role == Role::Leader && m.adopted == adopted;
            if same {
                m.role = Role::Follower(upstream);
            }
            same
        };
        let follows = !self.0.closing.get() && self.0.update_manifest(follow).await?;
        if follows {
            self.0.depose().await;
        }
        Ok(follows)
    }

    /// A candidate takes the end of the log from there, whatever its role is; until it leads, or follows anybody.
    pub fn fetch_from(&self, upstream: Option<Upstream>) {
        *self.0.fetching.borrow_mut() = upstream;
    }

    /// Whether batches come from there.
    pub fn takes_from(&self, upstream: &Upstream) -> bool {
        self.0.takes_from(upstream)
    }

    /// A planted bug: a restarted leader goes on in its old epoch.
    pub async fn promote_as_it_was(&self) -> Result<(), Error> {
        let core = &self.0;
        if core.env.sabotage() == Some(crate::env::Sabotage::RestartUnconfirmed) {
            core.confirmed.set(true);
            begin_writing(core).await?;
        }
        Ok(())
    }

    /// A node says its number, and has proved to have this key: the first key that was met with a number stays.
    pub async fn recognise(&self, peer: Peer) -> Result<(), Error> {
        let known = |peers: &[Peer]| peers.iter().find(|known| known.node == peer.node).copied();
        let mut found = known(&self.0.manifest.get().peers);
        if found.is_none() {
            let met = |m: &mut crate::manifest::Manifest| {
                if known(&m.peers).is_none() && m.peers.len() < PEERS_MAX {
                    m.peers.push(peer);
                }
                known(&m.peers)
            };
            found = self.0.update_manifest(met).await?;
        }
        let forget = format!("`replicas forget {:016x}` forgets it", peer.node);
        match found {
            Some(known) if known.key == peer.key => Ok(()),
            Some(_) => Err(Error::Stranger(format!(
                "node {:016x} was met with another key before; if it has a new one, {forget}",
                peer.node
            ))),
            None => Err(Error::Stranger(format!(
                "{PEERS_MAX} nodes were met already; `replicas forget` one that is gone for good"
            ))),
        }
    }

    /// Forgets a node's key; answers whether it was known.
    pub async fn forget_peer(&self, node: u64) -> Result<bool, Error> {
        let known = self.0.manifest.get().peers.iter().any(|peer| peer.node == node);
        if known {
            self.0.update_manifest(|m| m.peers.retain(|peer| peer.node != node)).await?;
        }
        Ok(known)
    }

    /// How often this node stopped to lead, or to follow one.
    pub fn deposed(&self) -> u64 {
        self.0.deposed.get()
    }

    /// Agrees to an epoch, and follows the one who asks (`None`: this node itself asks). On disk, with everything that was
    /// prepared, when this returns; then nothing of a lower epoch comes behind it.
    pub async fn promise(&self, epoch: Epoch, candidate: Option<Upstream>) -> Result<Standing, Error> {
        let core = &self.0;
        let ids_compared = core.env.sabotage() != Some(crate::env::Sabotage::EpochIdNotCompared);
        let is_same = |adopted: Epoch| adopted == epoch || (!ids_compared && adopted.number == epoch.number);
        if core.closing.get() {
            return Err(Error::ShuttingDown);
        }
        let lenient = core.env.sabotage() == Some(crate::env::Sabotage::LowerPromise);
        let is_lower = |adopted: Epoch| !is_same(adopted) && adopted.number >= epoch.number && !lenient;
        let refused = |adopted: Epoch| is_lower(adopted).then_some(adopted);
        let adopted = core.manifest.get().adopted;
        if let Some(adopted) = refused(adopted) {
            return Err(Error::Fenced { adopted });
        }
        let stays = core.env.sabotage() == Some(crate::env::Sabotage::OldLeaderFollowed);
        // A first write that is about to begin an epoch of its own does so before this, or not at all.
        let begin = core.begin_gate.enter().await;
        if !self.sabotaged_promise() {
            let adopted = core
                .update_manifest(|m| {
                    // Another one may have come first.
                    if let Some(adopted) = refused(m.adopted) {
                        return Some(adopted);
                    }
                    m.adopted = epoch;
                    if let Some(candidate) = candidate.filter(|_| !stays) {
                        m.role = Role::Follower(candidate);
                    }
                    None
                })
                .await?;
            if let Some(adopted) = adopted {
                return Err(Error::Fenced { adopted });
            }
        }
        // One that led leads no more, also if it asks itself: what is confirmed from now on is not of its old epoch.
        core.confirmed.set(false);
        drop(begin);
        core.depose().await;
        let standing = self.standing();
        // Somebody else may have been agreed to in between, who must not be taken for the one who asked.
        let kept = is_same(standing.adopted) || self.sabotaged_promise();
        if kept { Ok(standing) } else { Err(Error::Fenced { adopted: standing.adopted }) }
    }

    fn sabotaged_promise(&self) -> bool {
        self.0.env.sabotage() == Some(crate::env::Sabotage::PromiseNotKept)
    }

    /// Leads in an epoch that was agreed to, beginning with a record of who holds copies where followers are asked for.
    /// `by_force` the lists before it count no more: too few of their members are left to ever change them. `is_wanted` is asked
    /// in the step that makes it the leader: an order that came meanwhile stands.
    pub async fn lead(
        &self,
        epoch: Epoch,
        members: Members,
        by_force: bool,
        is_wanted: impl Fn() -> bool,
    ) -> Result<(), Error> {
        let core = &self.0;
        let asks = members.min_replicas > 0 || core.min_replicas() > 0 || members != self.members();
        let cost = wal::cost(members_len(&members), 0);
        let begun = core
            .paused(async || {
                core.flushed.reached(core.prepared.get()).await;
                if core.closing.get() {
                    return Err(Error::ShuttingDown);
                }
                core.manifest.reserve().await?;
                if asks {
                    core.wal().reserve(cost).await?;
                }
                let _begin = core.begin_gate.enter().await;
                let begun = core.wal().has_begun();
                let fresh = Generation { secret: core.env.random(), start: core.wal().end() };
                let oldest = core.wal().oldest().map_or(fresh.start, |s| LogPosition::new(s.number, 0));
                let version = core.prepared.get() + 1;
                let active = if by_force { Vec::new() } else { core.active_members() };
                let recorded = core
                    .update_manifest(|m| {
                        if m.adopted != epoch {
                            return Err(Error::Fenced { adopted: m.adopted });
                        }
                        if !is_wanted() {
                            return Err(Error::Superseded);
                        }
                        if !begun {
                            begin_generation(&mut m.generations, fresh, oldest);
                        }
                        begin_agreed(m, epoch, version);
                        m.role = Role::Leader;
                        m.members = active;
                        if asks {
                            m.members.push(MembersRecord { version, members: members.clone() });
                        }
                        Ok(m.generations.last().map_or(fresh.secret, |g| g.secret))
                    })
                    .await
                    .and_then(|recorded| recorded);
                let secret = match recorded {
                    Ok(secret) => secret,
                    Err(error) => {
                        if asks {
                            core.wal().release(cost);
                        }
                        return Err(error);
                    }
                };
                if !begun {
                    core.wal().begin_generation(secret);
                }
                core.confirmed.set(true);
                *core.fetching.borrow_mut() = None;
                if asks {
                    core.gate.set(core.published.get());
                    core.prepared.set(version);
                    enqueue(core, version, &[], cost, |body| body.add_members(&members));
                }
                Ok(())
            })
            .await;
        begun?;
        core.open_gate();
        core.stop_waiting();
        core.log(Level::Info, format_args!("leads in epoch {}", epoch.number));
        Ok(())
    }

    /// Agrees to lead in an epoch above all that it knows, with a number of at least `at_least`. Tried again where a first
    /// write begins one just before.
    pub async fn promise_next(&self, at_least: u64) -> Result<(Epoch, Standing), Error> {
        let core = &self.0;
        let mut tries = 0;
        loop {
            let newest = {
                let m = core.manifest.get();
                m.adopted.number.max(m.epochs.last().map_or(0, |e| e.epoch.number))
            };
            let epoch = Epoch { number: at_least.max(newest + 1), id: core.env.random() };
            tries += 1;
            match self.promise(epoch, None).await {
                Ok(standing) => return Ok((epoch, standing)),
                Err(Error::Fenced { .. }) if tries < 3 => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Begins a new epoch and takes writes again, asking nobody: for where no followers are asked for, or by force.
    pub async fn promote(&self) -> Result<(), Error> {
        let (epoch, _) = self.promise_next(0).await?;
        self.lead(epoch, Members { min_replicas: 0, ..self.members() }, false, || true).await
    }

    /// Changes who holds copies, or how many must: a record of the log, in force once enough hold it under the old rule and
    /// the new. One change at a time. `None` from `change` leaves all as it is.
    pub async fn change_members(&self, change: impl Fn(&Members) -> Option<Members>) -> Result<Option<Version>, Error> {
        let core = &self.0;
        let deadline = core.env.now() + core.settings.quorum_timeout;
        loop {
            core.wait_for_members(deadline).await?;
            if self.role() == Role::Leader && core.min_replicas() == 0 {
                begin_writing(core).await?;
            }
            match self.try_change_members(&change).await? {
                Turn::Taken(version) => return Ok(version),
                // Waited for, too, and no longer than the first.
                Turn::AnotherCame => {}
            }
        }
    }

    async fn try_change_members(&self, change: &impl Fn(&Members) -> Option<Members>) -> Result<Turn, Error> {
        let core = &self.0;
        core.paused(async || {
            if !core.leads() || core.closing.get() {
                return Err(core.manifest.get().refusal());
            }
            if core.members_pending() {
                return Ok(Turn::AnotherCame);
            }
            let Some(members) = change(&self.members()) else { return Ok(Turn::Taken(None)) };
            if members.nodes.len() > MEMBERS_MAX {
                return Err(Error::Diverged(format!(
                    "a partition has at most {MEMBERS_MAX} members; forget one first"
                )));
            }
            let cost = wal::cost(members_len(&members), 0);
            core.flushed.reached(core.prepared.get()).await;
            core.wal().reserve(cost).await?;
            let version = core.prepared.get() + 1;
            let mut records = core.active_members();
            records.push(MembersRecord { version, members: members.clone() });
            let recorded = core
                .update_manifest(|m| {
                    let leads = m.writable();
                    if leads {
                        m.members = records;
                    }
                    leads
                })
                .await;
            match recorded {
                Ok(true) if core.leads() => {}
                other => {
                    core.wal().release(cost);
                    other?;
                    return Err(core.manifest.get().refusal());
                }
            }
            if members.min_replicas > 0 && core.gate.get() == Version::MAX {
                core.gate.set(core.prepared.get());
                core.stop_waiting();
            }
            core.prepared.set(version);
            enqueue(core, version, &[], cost, |body| body.add_members(&members));
            Ok(Turn::Taken(Some(version)))
        })
        .await
    }

    /// Refuses writes from now on, until promoted; durable. What was prepared is published where nobody else must hold it.
    pub async fn step_down(&self) -> Result<(), Error> {
        let core = &self.0;
        if core.closing.get() {
            return Err(Error::ShuttingDown);
        }
        core.update_manifest(|m| m.role = Role::SteppedDown).await?;
        core.depose().await;
        core.log(Level::Info, "stepped down: writes are refused until it is promoted");
        Ok(())
    }

    /// Follows from now on, and refuses writes of its own; durable.
    pub async fn follow(&self, upstream: Upstream) -> Result<(), Error> {
        if self.0.closing.get() {
            return Err(Error::ShuttingDown);
        }
        self.0.update_manifest(|m| m.role = Role::Follower(upstream)).await?;
        self.0.depose().await;
        Ok(())
    }
}

/// What became of a change of the members.
enum Turn {
    /// It was its turn: the change's version, if it changed anything.
    Taken(Option<Version>),
    /// Another change is pending that was not when this one was let in.
    AnotherCame,
}

impl<E: Env> Core<E> {
    pub(crate) fn takes_from(&self, upstream: &Upstream) -> bool {
        match &*self.fetching.borrow() {
            Some(fetching) => fetching == upstream && !self.confirmed.get(),
            None => self.manifest.get().role == Role::Follower(upstream.clone()),
        }
    }

    /// One that has fewer followers than it asks for cannot come into force by itself: it may be replaced.
    fn members_pending(&self) -> bool {
        let followers = |members: &Members| members.nodes.len().saturating_sub(1) as u32;
        let pending =
            |r: &MembersRecord| r.version > self.published.get() && followers(&r.members) >= r.members.min_replicas;
        self.active_members().last().is_some_and(pending)
    }

    /// Waits until no change of the members is pending, as long as a commit would.
    async fn wait_for_members(self: &Rc<Self>, deadline: Duration) -> Result<(), Error> {
        while self.members_pending() {
            let left = deadline.saturating_sub(self.env.now());
            if left.is_zero() || !self.leads() {
                return Err(self.no_quorum());
            }
            let wanted = self.active_members().last().map_or(0, |record| record.version);
            crate::sync::first_of(self.published.reached(wanted), self.env.sleep(left)).await;
        }
        Ok(())
    }
}
