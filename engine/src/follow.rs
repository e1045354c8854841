//! A follower's side of the log: batches come from another node as they were written there, and are appended as they are.
//!
//! The body is the leader's, byte for byte; the envelope, the place in the log and the places of large values are this
//! node's own. While a partition follows nobody else prepares anything: its role refuses writes, and [`Incoming::finish`]
//! checks after every wait that the role and the agreed epoch are still the same and that the batch continues what is here.
//! A follower's epochs are its leader's; it begins none. What it has appended it shows when its leader does
//! ([`Partition::allow`]).

use crate::commit::large::enter_in_pieces;
use crate::commit::{Content, enter_all, flush_with, push_batch, wait_until};
use crate::env::Env;
use crate::env::Sabotage;
use crate::error::Error;
use crate::manifest::{EpochStart, Generation, LastBody, MembersRecord, Role, Upstream, reign};
use crate::partition::{Core, Partition};
use crate::sync::first_of;
use crate::types::{Entry, Epoch, Key, LogPosition, Members, Value, ValuePointer, Version};
use crate::vlog::Stream;
use crate::wal;
use crate::wal::body::{self, BODY_HEADER, Body, BodyError, MEMBERS_MAX, Operation};
use std::collections::VecDeque;
use std::rc::Rc;

/// A batch on its way in: its large values follow it.
pub struct Incoming<E: Env> {
    core: Rc<Core<E>>,
    upstream: Upstream,
    adopted: Epoch,
    bytes: Rc<Vec<u8>>,
    body: Body,
    wanted: VecDeque<(Key, u32, u32)>,
    places: Vec<ValuePointer>,
    /// What it brings that is new begins here.
    next: Version,
}

impl<E: Env> Partition<E> {
    /// What it is: leader, follower, or neither. Durable.
    pub fn role(&self) -> Role {
        self.0.manifest.get().leadership.role.clone()
    }

    /// The reigns of its history, oldest first.
    pub fn history(&self) -> Vec<EpochStart> {
        self.0.manifest.get().epochs.clone()
    }

    /// The newest version that was prepared: a follower's log goes on behind it.
    pub fn prepared(&self) -> Version {
        self.0.prepared.get()
    }

    /// Takes over the reigns of the leader that is followed, which must contain all of this history, and agrees to its epoch.
    pub async fn adopt_history(
        &self,
        upstream: &Upstream,
        adopted: Epoch,
        epochs: Vec<EpochStart>,
    ) -> Result<(), Error> {
        let core = &self.0;
        // Nothing is appended and no role changes meanwhile.
        let _alone = core.slow_gate.enter().await;
        if !core.takes_from(upstream) || core.closing.get() {
            return Err(Error::Upstream("the partition follows this leader no more".to_string()));
        }
        let agreed = core.manifest.get().leadership.voted_epoch;
        let is_older = |ours: Epoch| adopted != ours && adopted.number <= ours.number;
        if is_older(agreed) && core.env.sabotage() != Some(Sabotage::OldLeaderFollowed) {
            return Err(Error::Fenced { adopted: agreed });
        }
        let in_order = epochs
            .windows(2)
            .all(|w| w[0].first_version <= w[1].first_version && w[0].epoch.number < w[1].epoch.number);
        if !in_order {
            return Err(Error::Upstream("the leader's epochs are not in order".to_string()));
        }
        let last = core.prepared.get();
        let starts = core.manifest.get().epochs.iter().chain(&epochs).map(|e| e.first_version).collect::<Vec<_>>();
        let ours = core.manifest.get().epochs.clone();
        // Reigns change at these versions only.
        let differs = starts
            .iter()
            .filter(|v| **v <= last)
            .chain([&last])
            .find(|v| **v > 0 && reign(&ours, **v) != reign(&epochs, **v));
        if let Some(version) = differs {
            return Err(Error::Diverged(format!("version {version} belongs to another epoch at the leader")));
        }
        if core.manifest.get().epochs == epochs && core.wal().has_begun() && agreed == adopted {
            return Ok(());
        }
        let _turn = core.begin_gate.enter().await;
        let begun = core.wal().has_begun();
        let changed = core.manifest.get().epochs != epochs;
        let fresh = Generation { secret: core.env.random(), start: core.wal().end() };
        let oldest = core.wal().oldest().map_or(fresh.start, |s| LogPosition::new(s.number, 0));
        if !begun {
            let manifest = core.manifest.get().clone();
            core.wal().record_active(&fresh, &manifest).await?;
        }
        let sabotaged = core.env.sabotage() == Some(Sabotage::OldLeaderFollowed);
        let recorded = core
            .update_manifest(|m| {
                // A promise may have come first.
                if is_older(m.leadership.voted_epoch) && !sabotaged {
                    return Err(Error::Fenced { adopted: m.leadership.voted_epoch });
                }
                m.leadership.number += 1;
                m.leadership.voted_epoch = adopted;
                m.epochs = epochs;
                // A list that is not in the log was lost, and must not come into force with what is written now.
                m.members.retain(|record| record.version <= last);
                if !begun {
                    crate::commit::begin_generation(m, fresh, oldest);
                }
                Ok(m.generations.last().map_or(fresh.secret, |g| g.secret))
            })
            .await?;
        let secret = recorded?;
        if changed && core.gate.get() != Version::MAX {
            // What was allowed was of another history.
            core.gate.set(core.published.get());
        }
        if !begun {
            core.wal().begin_generation(secret);
        }
        Ok(())
    }

    /// The newest batch that is on this node's disk.
    pub fn newest_on_disk(&self) -> LastBody {
        self.0.flushed_body.get()
    }

    /// Whether the batch that ends with `version`, of another node's log, is not the one that this log has.
    pub fn is_another(&self, version: Version, sum: Option<u32>) -> bool {
        let own = self.newest_on_disk();
        let compared = self.0.env.sabotage() != Some(Sabotage::BodiesNotChained);
        let known = own.version == version && version > 0;
        compared && known && sum.zip(own.sum).is_some_and(|(theirs, own)| theirs != own)
    }

    /// Takes a batch of the leader's, which leads, or leads on, in `adopted`. `None` if it is here already.
    pub fn incoming(
        &self,
        upstream: &Upstream,
        adopted: Epoch,
        bytes: Rc<Vec<u8>>,
    ) -> Result<Option<Incoming<E>>, Error> {
        let core = &self.0;
        let alters = core.env.sabotage() == Some(Sabotage::FollowerAltersBatch) && core.prepared.get() == 4;
        let bytes = if alters { alter(&bytes) } else { bytes };
        let body = match body::decode(&bytes, true) {
            Ok(body) => body,
            Err(BodyError::Damaged(what)) => return Err(Error::Upstream(what.to_string())),
            Err(BodyError::Newer(format)) => {
                let text = format!("a batch has format {format}, this program reads {}", body::BODY_FORMAT);
                return Err(Error::Upstream(text));
            }
        };
        let prepared = core.prepared.get();
        if body.transactions.is_empty() {
            return Ok(None);
        }
        if body.last_version() <= prepared {
            // What is here already is of the same epoch, or it is something else.
            let held = core.manifest.get().epoch_of(body.last_version());
            if held != body.epoch {
                let text = format!(
                    "version {} came in epoch {}, and is here in epoch {}",
                    body.last_version(),
                    body.epoch.number,
                    held.number
                );
                return Err(Error::Diverged(text));
            }
            return Ok(None);
        }
        // A checkpoint, and so a copy, may end within a batch: the first one behind a copy may begin before its end.
        let is_first = prepared == core.manifest.get().mark.version && self.oldest_version() == prepared + 1;
        let continues = body.first_version == prepared + 1 || (is_first && body.first_version <= prepared);
        if !continues {
            let text = format!(
                "versions {} to {} came where {} is next",
                body.first_version,
                body.last_version(),
                prepared + 1
            );
            return Err(Error::Upstream(text));
        }
        if core.manifest.get().epoch_of(body.first_version) != body.epoch {
            let text = format!(
                "version {} came in epoch {}, which is not the leader's",
                body.first_version, body.epoch.number
            );
            return Err(Error::Upstream(text));
        }
        let chained = !is_first || body.first_version == prepared + 1;
        if let (Some(before), Some(newest)) = (body.before, core.newest_body.get())
            && chained
            && before != newest
            && core.env.sabotage() != Some(Sabotage::BodiesNotChained)
        {
            return Err(Error::Diverged(format!(
                "version {} of the leader's log goes on behind another version {prepared} than is here, in the same epoch: one of the \
                 two homes was copied, or has lost writes; `replicaof HOST:PORT PARTITION force` sets aside what is here",
                body.first_version
            )));
        }
        let operations = body.transactions.iter().flatten();
        let flush = operations.clone().any(|o| *o == Operation::Flush);
        if body.transactions.iter().any(Vec::is_empty) {
            return Err(Error::Upstream("a transaction changes nothing".to_string()));
        }
        for operation in operations.clone() {
            if let Operation::Members(members) = operation
                && members.nodes.len() > MEMBERS_MAX
            {
                return Err(Error::Upstream("a list has more members than any partition".to_string()));
            }
        }
        if flush && operations.clone().count() > 1 {
            return Err(Error::Upstream("a flush came together with other changes".to_string()));
        }
        for operation in operations.clone() {
            if let Operation::Set(key, _) | Operation::SetLarge(key, ..) | Operation::Delete(key) = operation
                && key.is_empty()
            {
                return Err(Error::Upstream("a change names an empty key".to_string()));
            }
        }
        let large = operations.filter_map(|operation| match operation {
            Operation::SetLarge(key, length, checksum) => Some((key.clone(), *length, *checksum)),
            _ => None,
        });
        let wanted = large.collect();
        let (core, upstream) = (core.clone(), upstream.clone());
        let next = prepared + 1;
        Ok(Some(Incoming { core, upstream, adopted, bytes, body, wanted, places: Vec::new(), next }))
    }
}

impl<E: Env> Incoming<E> {
    /// How many large values it waits for.
    pub fn wanted(&self) -> usize {
        self.wanted.len()
    }

    /// Writes its next large value.
    pub async fn value(&mut self, value: Value) -> Result<(), Error> {
        let Some((key, length, checksum)) = self.wanted.pop_front() else {
            return Err(Error::Upstream("a value came that no batch asked for".to_string()));
        };
        if value.len() != length as usize || crate::codec::crc(&[&value]) != checksum {
            return Err(Error::Upstream("a large value is not the one that its batch names".to_string()));
        }
        // A FlushDB that is being carried out retires every file that there is.
        wait_for_flush(&self.core, &self.upstream, self.adopted).await?;
        let written = self.core.values.append(&self.core.manifest, Stream::Commit, &[(key, value)]).await;
        match written {
            Err(Error::Disk(error)) => {
                match self.core.env.halt(format!("a value could not be written: {error}")).await {}
            }
            Err(error) => Err(error),
            Ok(places) => {
                self.places.extend(places);
                Ok(())
            }
        }
    }

    /// Hands it to the log, when all its values are here; it is durable and visible when its last version, which is the
    /// answer, is published. A lack of space leaves nothing behind.
    pub async fn finish(self) -> Result<Version, Error> {
        let core = self.core.clone();
        if !self.wanted.is_empty() {
            return Err(Error::Upstream("a batch came without its large values".to_string()));
        }
        match core.values.flush(&self.places).await {
            Err(Error::Disk(error)) => match core.env.halt(format!("a value could not be flushed: {error}")).await {},
            other => other?,
        }
        // Who cannot settle what it has takes no more.
        let operations = || self.body.transactions.iter().flatten();
        let only_lists = operations().all(|o| matches!(o, Operation::Members(_)));
        // What the leader takes on a full disk, its followers take, too; and a FlushDB makes room.
        let is_flush = operations().any(|o| *o == Operation::Flush);
        let deletes_only = operations().all(|o| matches!(o, Operation::Members(_) | Operation::Delete(_)));
        wait_until(&core, || {
            let overlay = core.overlay.borrow();
            // A checkpoint that waits for the leader to show what is here ends only if more is let in.
            let waits = overlay.frozen_last().is_some_and(|last| last > core.published.get());
            let has_room = overlay.bytes() < core.overlay_budget.get() || waits || only_lists || is_flush;
            has_room || (deletes_only && core.takes_deletes(overlay.bytes()))
        })
        .await?;
        let cost = wal::cost(self.bytes.len().saturating_sub(BODY_HEADER + 4), self.places.len());
        let last = self.body.last_version();
        let (first_version, epoch) = (self.body.first_version, self.body.epoch);
        let next = self.next;
        let check = |core: &Rc<Core<E>>| continues(core, &self.upstream, self.adopted, next, epoch);
        if is_flush {
            let bytes = self.bytes;
            // A stream that was replaced may bring it first: that one is pending then, and holds checkpoints off. A checkpoint may
            // wait for what a leader shows that this node takes nothing of any more.
            let over = core.deposed.get() + 1;
            still_follows(&core, &self.upstream, self.adopted)?;
            let in_vain = first_of(core.appending.reached(first_version), core.deposed.reached(over));
            flush_with(&core, cost, check, in_vain, |core, _| {
                push_batch(core, Content::Whole { bytes, first_version }, last, Vec::new(), cost);
            })
            .await?;
            return Ok(last);
        }
        let lists = self.lists();
        let _alone = loop {
            if !only_lists {
                // The leader sends nothing else before it shows the flush.
                wait_for_flush(&core, &self.upstream, self.adopted).await?;
            }
            // No promotion and no new history comes in between: what it begins, begins behind this batch.
            let alone = core.slow_gate.enter().await;
            if only_lists || !core.is_flushing() {
                break alone;
            }
        };
        let pointers = self.places.iter().map(|p| (p.file, p.offset)).collect();
        let mut places = self.places.into_iter();
        let mut changes = Vec::new();
        for (version, operations) in (first_version..).zip(self.body.transactions) {
            for operation in operations {
                let (key, entry) = match operation {
                    Operation::Set(key, value) => (key, Entry::Value(value)),
                    Operation::Delete(key) => (key, Entry::Tombstone),
                    Operation::SetLarge(key, ..) => match places.next() {
                        Some(place) => (key, Entry::Pointer(place)),
                        None => unreachable!("every large value was written before"),
                    },
                    Operation::Flush => unreachable!("a flush is alone in its batch"),
                    Operation::Members(_) => continue,
                };
                if version < next {
                    // The copy has it, or what came behind it.
                    continue;
                }
                changes.push((version, key, entry));
                if changes.len() % core.settings.keys_at_once == 0 {
                    core.env.give_way().await;
                }
            }
        }
        // Who is replaced, or closes, makes no segment any more.
        check(&core)?;
        let purpose = match (only_lists, deletes_only) {
            (true, _) => wal::Purpose::Order,
            (false, true) => wal::Purpose::Delete,
            (false, false) => wal::Purpose::Write,
        };
        core.wal().reserve(cost, purpose).await?;
        let checked = async {
            check(&core)?;
            let lost = core.manifest.get().members.last().is_some_and(|record| record.version > core.prepared.get());
            if !lists.is_empty() || lost {
                let mut records = core.active_members();
                records.extend(lists);
                crate::manifest::compress(&mut records);
                core.update_manifest(|m| m.members = records).await?;
                check(&core)?;
            }
            Ok(())
        };
        if let Err(error) = checked.await {
            core.wal().release(cost);
            return Err(error);
        }
        core.prepared.set(last);
        push_batch(&core, Content::Whole { bytes: self.bytes, first_version }, last, pointers, cost);
        if changes.len() > core.settings.keys_at_once {
            enter_in_pieces(&core, next, changes.into_iter()).await;
        } else {
            enter_all(&core, changes);
        }
        Ok(last)
    }

    /// The lists of members in it.
    fn lists(&self) -> Vec<MembersRecord> {
        let list = |(version, operations): (Version, &Vec<Operation>)| {
            let members = operations.iter().rev().find_map(|operation| match operation {
                Operation::Members(members) => Some(members.clone()),
                _ => None,
            });
            members.map(|members: Members| MembersRecord { version, members })
        };
        let new = |record: &MembersRecord| record.version >= self.next;
        (self.body.first_version..).zip(&self.body.transactions).filter_map(list).filter(new).collect()
    }
}

/// Whether batches of this leader and this epoch are taken.
/// A planted bug: the last byte is another one.
fn alter(bytes: &[u8]) -> Rc<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    if let Some(last) = bytes.last_mut() {
        *last ^= 1;
        let sum = crate::codec::crc(&[&bytes[4..]]);
        bytes[..4].copy_from_slice(&sum.to_le_bytes());
    }
    Rc::new(bytes)
}

fn still_follows<E: Env>(core: &Rc<Core<E>>, upstream: &Upstream, adopted: Epoch) -> Result<(), Error> {
    if core.closing.get() {
        return Err(Error::ShuttingDown);
    }
    if !core.takes_from(upstream) {
        return Err(Error::Upstream("the partition follows this leader no more".to_string()));
    }
    let voted = core.manifest.get().leadership.voted_epoch;
    if voted != adopted && core.env.sabotage() != Some(Sabotage::OldLeaderFollowed) {
        return Err(Error::Fenced { adopted: voted });
    }
    Ok(())
}

/// Waits until every FlushDB is carried out, for as long as this leader is followed: another one may yet take it back.
async fn wait_for_flush<E: Env>(core: &Rc<Core<E>>, upstream: &Upstream, adopted: Epoch) -> Result<(), Error> {
    while core.is_flushing() {
        let seen = core.retired.get();
        still_follows(core, upstream, adopted)?;
        core.retired.reached(seen + 1).await;
    }
    Ok(())
}

/// Whether a batch of `upstream` may still be appended: roles change, and a stream that was replaced may not know yet.
fn continues<E: Env>(
    core: &Rc<Core<E>>,
    upstream: &Upstream,
    adopted: Epoch,
    first: Version,
    epoch: Epoch,
) -> Result<(), Error> {
    still_follows(core, upstream, adopted)?;
    let manifest = core.manifest.get();
    if first != core.prepared.get() + 1 {
        return Err(Error::Upstream(format!("version {first} came where {} is next", core.prepared.get() + 1)));
    }
    if manifest.epoch_of(first) != epoch {
        return Err(Error::Upstream(format!("version {first} came in an epoch that it is not in any more")));
    }
    Ok(())
}
