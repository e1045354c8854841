//! What is shown: everything that is flushed, as far as the gate is open.
//!
//! The gate stands open for a leader that asks for no followers. Where followers must hold a commit, whoever counts their
//! confirmations opens it; for a follower the leader's word does. A FlushDB is carried out when it is published: until then
//! everybody sees what was there before, and nothing is prepared behind it.

use crate::env::{Env, Level, Sabotage};
use crate::error::Error;
use crate::manifest::{MembersRecord, Role};
use crate::partition::{Core, Partition};
use crate::sync::first_of;
use crate::types::{Members, Version};
use std::rc::Rc;

/// Where a partition stands with a FlushDB. Only one at a time is on its way.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum FlushDb {
    /// None is on its way.
    #[default]
    None,
    /// The log has it, at this version, and everybody sees what was there before.
    Logged(Version),
    /// Nobody sees what was there before, and the files that held it are being retired.
    Shown,
}

impl<E: Env> Core<E> {
    /// Publishes what may be.
    pub(crate) fn publish(self: &Rc<Self>) {
        let flushed = match self.env.sabotage() {
            Some(Sabotage::PublishedBeforeFlush) if self.gate.get() != Version::MAX => self.prepared.get(),
            _ => self.flushed.get(),
        };
        let shown_early = self.env.sabotage() == Some(Sabotage::PendingShownByFollower)
            && matches!(self.manifest.get().leadership.role, Role::Follower(_));
        let to = if shown_early { flushed } else { flushed.min(self.gate.get()) };
        let to = self.entering.get().map_or(to, |version| to.min(version - 1));
        if to <= self.published.get() {
            return;
        }
        let flush = match self.flush_db.get() {
            FlushDb::Logged(version) if version <= to => Some(version),
            _ => None,
        };
        if flush.is_some() {
            self.flush_db.set(FlushDb::Shown);
            self.forget_memory();
        }
        let end = {
            let ends = self.batch_ends.borrow();
            ends.iter().rev().find(|end| end.last <= to).map(|end| end.end)
        };
        if let Some(end) = end {
            self.published_end.set(end.max(self.published_end.get()));
        }
        self.published.raise(to);
        if let Some(flush) = flush {
            let core = self.clone();
            self.env.spawn(async move { core.carry_out(flush).await });
        }
        let obsolete = self.manifest.get().members.get(1).is_some_and(|record| record.version <= to);
        if obsolete {
            let core = self.clone();
            self.env.spawn(async move { core.settle_members().await });
        }
    }

    async fn carry_out(self: &Rc<Self>, flush: Version) {
        if let Err(error) = self.retire_all(flush).await {
            self.log(Level::Warn, format_args!("what a FlushDB made superfluous is kept for now: {error}"));
        }
        self.flush_db.set(FlushDb::None);
        self.flush_pass.borrow_mut().take();
        self.retired.raise(self.retired.get() + 1);
    }

    /// A list of members that is published replaces those before it; the gate opens where none asks for followers.
    async fn settle_members(self: &Rc<Self>) {
        let published = self.published.get();
        // Looked at within the change: another one may come in between.
        let settle = |m: &mut crate::manifest::Manifest| {
            let from = m.members.iter().rposition(|r| r.version <= published).unwrap_or(0);
            m.members.drain(..from);
        };
        if let Err(error) = self.update_manifest(settle).await {
            self.log(Level::Warn, format_args!("the list of members cannot be settled now: {error}"));
        }
        self.open_gate();
    }

    /// Opens the gate where this node leads and no followers are asked for.
    pub(crate) fn open_gate(self: &Rc<Self>) {
        if self.leads() && self.min_replicas() == 0 {
            self.gate.set(Version::MAX);
            self.quorum_missing.set(false);
            self.stop_waiting();
            self.publish();
        }
    }

    /// The list of members in force, and those behind it that are not published yet.
    pub(crate) fn active_members(&self) -> Vec<MembersRecord> {
        let (published, prepared) = (self.published.get(), self.prepared.get());
        let manifest = self.manifest.get();
        // One beyond what is prepared was lost in a crash.
        let records: Vec<MembersRecord> = manifest.members.iter().filter(|r| r.version <= prepared).cloned().collect();
        if records.is_empty() && prepared == 0 && self.settings.min_replicas > 0 && manifest.writable() {
            // A new partition asks for as many as its settings say.
            let members =
                Members { min_replicas: self.settings.min_replicas, nodes: Vec::new(), forgotten: Vec::new() };
            return vec![MembersRecord { version: 0, members }];
        }
        let from = records.iter().rposition(|r| r.version <= published).unwrap_or(0);
        let mut active = records[from..].to_vec();
        crate::manifest::compress(&mut active);
        active
    }

    /// Followers that must hold a commit, by any list that may be in force.
    pub(crate) fn min_replicas(&self) -> u32 {
        self.active_members().iter().map(|record| record.members.min_replicas).max().unwrap_or(0)
    }

    /// Whether recovery shows all that it finds: nobody else had to hold it, and nobody is followed.
    pub(crate) fn counts_alone(&self) -> bool {
        let manifest = self.manifest.get();
        let sabotaged = self.env.sabotage() == Some(Sabotage::PendingShownAfterRestart);
        (!matches!(manifest.leadership.role, Role::Follower(_)) && manifest.min_replicas() == 0) || sabotaged
    }

    /// Whether it leads, and has been agreed to.
    pub(crate) fn leads(&self) -> bool {
        self.confirmed.get() && self.manifest.get().writable()
    }

    /// Whether what is prepared now has a chance to be confirmed.
    pub(crate) fn may_write(&self) -> bool {
        self.confirmed.get() && !self.quorum_missing.get()
    }

    /// Why nothing may be prepared now.
    pub(crate) fn no_quorum(&self) -> Error {
        match self.min_replicas() {
            // No follower is waited for: the leadership has changed while this one waited for something else.
            0 => Error::LeadershipChanged,
            needed => Error::NoQuorum { needed },
        }
    }

    /// Wakes those who wait for followers: something has changed.
    pub(crate) fn stop_waiting(&self) {
        self.quorum_changed.raise(self.quorum_changed.get() + 1);
        self.retired.raise(self.retired.get() + 1);
    }

    /// Waits for enough followers, as long as a commit would.
    pub(crate) async fn wait_for_quorum(&self) -> Result<(), Error> {
        let deadline = self.env.now() + self.settings.quorum_timeout;
        while !self.may_write() {
            self.wanted.set(true);
            if self.closing.get() {
                return Err(Error::ShuttingDown);
            }
            if !self.manifest.get().writable() {
                return Err(self.manifest.get().refusal());
            }
            let left = deadline.saturating_sub(self.env.now());
            if left.is_zero() {
                return Err(self.no_quorum());
            }
            let seen = self.quorum_changed.get();
            first_of(self.quorum_changed.reached(seen + 1), self.env.sleep(left)).await;
        }
        Ok(())
    }

    /// Whether a FlushDB is yet to be carried out: nothing but lists of members is prepared behind it.
    pub(crate) fn is_flushing(&self) -> bool {
        self.flush_db.get() != FlushDb::None
    }

    /// The same for a write, which waits for followers no longer than a commit would, and only where it may still be prepared.
    pub(crate) async fn wait_for_flush_as_leader(&self) -> Result<(), Error> {
        let deadline = self.env.now() + self.settings.quorum_timeout;
        while let FlushDb::Logged(_) = self.flush_db.get() {
            if self.closing.get() {
                return Err(Error::ShuttingDown);
            }
            if !self.manifest.get().writable() {
                return Err(self.manifest.get().refusal());
            }
            let left = deadline.saturating_sub(self.env.now());
            let alone = self.gate.get() == Version::MAX;
            if !alone && (left.is_zero() || !self.leads()) {
                return Err(self.no_quorum());
            }
            let changed = async {
                let (retired, quorum) = (self.retired.get(), self.quorum_changed.get());
                first_of(self.retired.reached(retired + 1), self.quorum_changed.reached(quorum + 1)).await;
            };
            // Where nobody else must hold it only the disk is waited for.
            first_of(changed, self.env.sleep(if alone { self.settings.quorum_timeout } else { left })).await;
        }
        self.wait_for_flush().await
    }

    /// Waits until every FlushDB is carried out.
    pub(crate) async fn wait_for_flush(&self) -> Result<(), Error> {
        while self.is_flushing() {
            if self.closing.get() {
                return Err(Error::ShuttingDown);
            }
            let seen = self.retired.get();
            self.retired.reached(seen + 1).await;
        }
        Ok(())
    }
}

impl<E: Env> Partition<E> {
    /// Whether it leads and shows what is on its own disk, and waits for no follower's word.
    pub fn leads_alone(&self) -> bool {
        self.0.leads() && self.0.gate.get() == Version::MAX && !self.0.closing.get()
    }

    /// Ends when that is over: followers are asked for, it leads no more, or it closes.
    pub async fn wait_not_alone(&self) {
        while self.leads_alone() {
            let seen = self.0.quorum_changed.get();
            self.0.quorum_changed.reached(seen + 1).await;
        }
    }

    /// Everything up to `version` may be shown as soon as it is flushed: enough followers hold it, or the leader shows it.
    pub fn allow(&self, version: Version) {
        if version > self.0.gate.get() {
            self.0.gate.set(version);
            self.0.publish();
        }
    }

    /// The leader says that everything up to `version` is published. Where it knows all that was ever published (it `leads`, and
    /// has published a version of its own epoch), this node knows that, too.
    pub fn allow_as_follower(&self, version: Version, leads: bool) {
        if leads {
            self.0.found_version.set(0);
        }
        self.allow(version);
    }

    /// Who waits for a version up to this one waits no longer: it may still be published.
    pub fn expire(&self, version: Version) {
        let version = version.min(self.0.prepared.get());
        if version > self.0.expired.get() {
            self.0.expired.raise(version);
        }
    }

    /// Whether nobody waits any more for a version that is not published.
    pub fn is_expired(&self, version: Version) -> bool {
        version > self.0.published.get() && version <= self.0.expired.get()
    }

    /// Ends when a version is published, or nobody knows any more whether it will be.
    pub async fn wait_outcome(&self, version: Version) -> Result<(), Error> {
        first_of(self.0.published.reached(version), self.0.expired.reached(version)).await;
        if self.0.published.get() >= version { Ok(()) } else { Err(Error::UnknownOutcome(self.position(version))) }
    }

    /// Whether too few followers are there for a commit; new ones are not prepared then.
    pub fn set_quorum_missing(&self, missing: bool) {
        if self.0.quorum_missing.replace(missing) != missing {
            self.0.stop_waiting();
        }
    }

    /// Whether too few followers are there for a commit.
    pub fn is_quorum_missing(&self) -> bool {
        self.0.quorum_missing.get()
    }

    /// Ends when something beyond these is published, or has expired.
    pub async fn wait_news(&self, published: Version, expired: Version) {
        let news = first_of(self.0.published.reached(published + 1), self.0.expired.reached(expired + 1));
        first_of(news, self.0.abandoned.reached(1)).await;
    }

    /// Whether somebody has asked for a leader: a new partition that asks for followers does not lead before.
    pub fn is_wanted(&self) -> bool {
        self.0.wanted.get() || self.0.prepared.get() > 0
    }

    /// The last version that a checkpoint has settled: the log cannot be cut before it.
    pub fn settled(&self) -> Version {
        self.0.manifest.get().mark.version
    }

    /// What has expired.
    pub fn expired(&self) -> Version {
        self.0.expired.get()
    }

    /// Whether it is closed, or about to be.
    pub fn is_closed(&self) -> bool {
        self.0.closing.get()
    }

    /// The newest list of members, in force or not.
    pub fn members(&self) -> Members {
        self.0.active_members().pop().map(|record| record.members).unwrap_or_default()
    }
}
