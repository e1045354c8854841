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
use crate::manifest::{
    EpochStart, Generation, Leadership, MembersRecord, Peer, RECORDS_MAX, Role, Upstream, begin_agreed, compress,
};
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

impl<E: Env> Partition<E> {
    /// What it has, and has agreed to.
    pub fn standing(&self) -> Standing {
        let core = &self.0;
        let manifest = core.manifest.get();
        Standing {
            adopted: manifest.leadership.voted_epoch,
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
        self.0.manifest.get().leadership.voted_epoch
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

    /// A node says its number, and its certificate has this key and this name. The first name that was met with a number stays;
    /// a new key under that name is taken, as certificates are renewed. Answers what people should know of.
    pub async fn recognise(&self, peer: Peer) -> Result<Option<String>, Error> {
        let find = |peers: &[Peer]| peers.iter().find(|known| known.node == peer.node).cloned();
        let found = find(&self.0.manifest.get().peers);
        let news = match &found {
            Some(known) if *known == peer => return Ok(None),
            // It was met before names were kept, and has proved to be the same.
            Some(known) if known.key == peer.key && known.name.is_empty() => None,
            Some(known) if known.key == peer.key => {
                Some(format!("the certificate of node {:016x} has another name: '{}'", peer.node, peer.name))
            }
            Some(known) if known.name == peer.name && !peer.name.is_empty() => {
                Some(format!("the certificate of node {:016x} has a new key; its name is the same", peer.node))
            }
            Some(known) => {
                return Err(Error::Stranger(format!(
                    "node {:016x} was met with another key and another name in its certificate before ('{}'; now '{}'); if it \
                     is the same node, `replicas forget {:016x}` forgets it",
                    peer.node, known.name, peer.name, peer.node
                )));
            }
            None => {
                let shared = |known: &&Peer| !known.name.is_empty() && known.name == peer.name;
                self.0.manifest.get().peers.iter().find(shared).map(|other| {
                    format!("nodes {:016x} and {:016x} have certificates with the same name", other.node, peer.node)
                })
            }
        };
        let met = |m: &mut crate::manifest::Manifest| {
            let same = m.peers.iter().position(|known| known.node == peer.node);
            match same {
                // Another connection of the node may have come first.
                Some(at) if found.as_ref() == Some(&m.peers[at]) => m.peers[at] = peer.clone(),
                Some(at) => return m.peers[at] == peer,
                None if found.is_none() && m.peers.len() < PEERS_MAX => m.peers.push(peer.clone()),
                None => return false,
            }
            true
        };
        if self.0.update_manifest(met).await? {
            return Ok(news);
        }
        Err(Error::Stranger(format!(
            "{PEERS_MAX} nodes were met already, or another one says to be node {:016x}; `replicas forget` one that is gone for \
             good",
            peer.node
        )))
    }

    /// Whether a node was met.
    pub fn knows_peer(&self, node: u64) -> bool {
        self.0.manifest.get().peers.iter().any(|peer| peer.node == node)
    }

    /// Forgets what was known of a node's certificate.
    pub async fn forget_peer(&self, node: u64) -> Result<(), Error> {
        self.0.update_manifest(|m| m.peers.retain(|peer| peer.node != node)).await
    }

    /// How often this node stopped to lead, or to follow one.
    pub fn deposed(&self) -> u64 {
        self.0.deposed.get()
    }

    /// Leads in an epoch that was agreed to, beginning with a record of who holds copies where followers are asked for.
    /// `by_force` the lists before it count no more: too few of their members are left to ever change them. `decide` is asked
    /// in the step that makes it the leader: what came meanwhile stands.
    pub async fn lead(
        &self,
        epoch: Epoch,
        members: Members,
        by_force: bool,
        decide: impl Fn(&Leadership) -> Result<Leadership, Error>,
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
                    core.wal().reserve(cost, wal::Purpose::Order).await?;
                }
                let _begin = core.begin_gate.enter().await;
                let begun = core.wal().has_begun();
                let fresh = Generation { secret: core.env.random(), start: core.wal().end() };
                let oldest = core.wal().oldest().map_or(fresh.start, |s| LogPosition::new(s.number, 0));
                let version = core.prepared.get() + 1;
                let active = if by_force { Vec::new() } else { core.active_members() };
                if active.len() >= RECORDS_MAX {
                    if asks {
                        core.wal().release(cost);
                    }
                    return Err(too_many_changes());
                }
                if !begun {
                    let manifest = core.manifest.get().clone();
                    if let Err(error) = core.wal().record_active(&fresh, &manifest).await {
                        if asks {
                            core.wal().release(cost);
                        }
                        return Err(error);
                    }
                }
                let recorded = core
                    .update_manifest(|m| {
                        let next = decide(&m.leadership)?;
                        if !begun {
                            begin_generation(m, fresh, oldest);
                        }
                        begin_agreed(m, epoch, version);
                        m.leadership = Leadership { number: m.leadership.number, ..next };
                        m.members = active;
                        if asks {
                            m.members.push(MembersRecord { version, members: members.clone() });
                            compress(&mut m.members);
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

    /// Begins a new epoch and takes writes again, asking nobody: for where no followers are asked for, or by force.
    pub async fn promote(&self) -> Result<(), Error> {
        let (epoch, _) = self.stand(0).await?;
        let lead = |now: &Leadership| {
            let adopted = now.voted_epoch;
            if adopted == epoch { Ok(now.leading(true)) } else { Err(Error::Fenced { adopted }) }
        };
        self.lead(epoch, Members { min_replicas: 0, ..self.members() }, false, lead).await
    }

    /// Changes who holds copies, or how many must: a record of the log, in force once enough hold it under the old rule and
    /// the new. One change at a time, but for one that `overtakes`: it comes behind a change that is pending, and both must be
    /// held. `None` from `change` leaves all as it is.
    pub async fn change_members(
        &self,
        overtakes: bool,
        change: impl Fn(&Members) -> Option<Members>,
    ) -> Result<Option<Version>, Error> {
        let core = &self.0;
        let deadline = core.env.now() + core.settings.quorum_timeout;
        loop {
            if !overtakes {
                core.wait_for_members(deadline).await?;
            }
            if self.role() == Role::Leader && core.min_replicas() == 0 {
                begin_writing(core).await?;
            }
            match self.try_change_members(overtakes, &change).await? {
                Turn::Taken(version) => return Ok(version),
                // Waited for, too, and no longer than the first.
                Turn::AnotherCame => {}
            }
        }
    }

    async fn try_change_members(
        &self,
        overtakes: bool,
        change: &impl Fn(&Members) -> Option<Members>,
    ) -> Result<Turn, Error> {
        let core = &self.0;
        core.paused(async || {
            if !core.leads() || core.closing.get() {
                return Err(if self.writable() { core.no_quorum() } else { core.manifest.get().refusal() });
            }
            if core.members_pending() && !overtakes {
                return Ok(Turn::AnotherCame);
            }
            let Some(members) = change(&self.members()) else { return Ok(Turn::Taken(None)) };
            if core.active_members().len() >= RECORDS_MAX {
                return Err(too_many_changes());
            }
            if members.nodes.len() > MEMBERS_MAX {
                return Err(Error::Diverged(format!(
                    "a partition has at most {MEMBERS_MAX} members; forget one first"
                )));
            }
            let cost = wal::cost(members_len(&members), 0);
            core.flushed.reached(core.prepared.get()).await;
            core.wal().reserve(cost, wal::Purpose::Order).await?;
            let version = core.prepared.get() + 1;
            let mut records = core.active_members();
            records.push(MembersRecord { version, members: members.clone() });
            compress(&mut records);
            let recorded = core
                .update_manifest(|m| {
                    let leads = m.writable() && core.confirmed.get();
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
}

fn too_many_changes() -> Error {
    Error::TooFewAgree(format!(
        "{RECORDS_MAX} changes of the members are pending: bring members back until they are in force; `promote force` goes on \
         without those that do not come, and acknowledged writes may be lost"
    ))
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
            None => self.manifest.get().leadership.role == Role::Follower(upstream.clone()),
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
