//! The receiver's side.

use super::{CopyEntry, CopyHead, CopySum};
use crate::disk::Disk;
use crate::env::{Env, Level, Sabotage};
use crate::error::Error;
use crate::manifest::{Generation, LastBody, Manifest, Mark, Role, RunSummary, Upstream, sync_names};
use crate::partition::{Core, Partition};
use crate::run::{CHUNK_BYTES, RunWriter, encode_entry};
use crate::types::{Epoch, Key, LogPosition, Settled, Version};
use crate::vlog::{Stream, record};
use std::collections::BTreeMap;
use std::rc::Rc;

/// A copy that comes in.
pub struct CopyIn<E: Env> {
    core: Rc<Core<E>>,
    upstream: Upstream,
    /// What it is of.
    pub head: CopyHead,
    /// What this node had agreed to when it began: that must still be so at its end.
    agreed: Epoch,
    number: u32,
    writer: Option<RunWriter<E>>,
    chunk: Vec<u8>,
    last: Option<Key>,
    sum: CopySum,
    live: BTreeMap<u32, u64>,
}

impl<E: Env> Drop for CopyIn<E> {
    fn drop(&mut self) {
        self.core.copying.set(false);
        let (core, number, whole) = (self.core.clone(), self.number, self.writer.is_none());
        if !whole {
            self.core.env.spawn(async move {
                // The next opening removes it, too; its value files go with the next purge.
                let _ = core.env.disk().remove(&crate::names::run(number)).await;
            });
        }
    }
}

impl<E: Env> Partition<E> {
    /// Makes room for a copy of who is followed.
    pub async fn copy_in(&self, upstream: &Upstream, head: CopyHead) -> Result<CopyIn<E>, Error> {
        let core = &self.0;
        if core.copying.replace(true) {
            return Err(Error::Upstream("another copy is coming in".to_string()));
        }
        let agreed = core.manifest.get().leadership.voted_epoch;
        let made = async {
            let number = core.manifest.update(Manifest::take_number).await?;
            Ok((number, RunWriter::create(&core.env, core.id, number).await?))
        };
        let (number, writer) = made.await.inspect_err(|_: &Error| core.copying.set(false))?;
        core.values.leave_copy();
        Ok(CopyIn {
            core: core.clone(),
            upstream: upstream.clone(),
            head,
            agreed,
            number,
            writer: Some(writer),
            chunk: Vec::new(),
            last: None,
            sum: CopySum::default(),
            live: BTreeMap::new(),
        })
    }

    /// Puts a whole copy in the place of all that an abandoned partition has; open it anew afterwards. What the log has
    /// behind `parted`, where the histories part, is kept aside in a file for people.
    pub async fn replace(&self, mut copy: CopyIn<E>, parted: Option<Version>) -> Result<(), Error> {
        let core = &self.0;
        let Some(mut writer) = copy.writer.take() else {
            return Err(Error::Upstream("a copy counts once".to_string()));
        };
        if !Rc::ptr_eq(core, &copy.core) {
            return Err(Error::Upstream("the partition was opened anew meanwhile".to_string()));
        }
        // Another stream may have brought more meanwhile, and it was confirmed: a copy takes nothing of that back.
        if parted.is_none() && core.prepared.get() > copy.head.version {
            return Err(Error::Upstream("more has come here meanwhile than the copy has".to_string()));
        }
        if !copy.chunk.is_empty() {
            writer.push(&copy.chunk).await?;
        }
        if let Some(parted) = parted {
            self.keep_aside(parted).await?;
        }
        core.values.flush_files(copy.live.keys().copied()).await?;
        let start = LogPosition::new(core.wal().next_segment(), crate::disk::BLOCK as u32);
        let CopyHead { version, adopted, epochs, members } = copy.head.clone();
        let mark = Mark { version, position: start, chain: 0, run: if copy.sum.keys == 0 { 0 } else { copy.number } };
        let used: Vec<(u32, u64)> = core.values.used();
        let live: Vec<(u32, u64)> = copy.live.iter().map(|(number, bytes)| (*number, *bytes)).collect();
        let keys = copy.sum.keys;
        let summary =
            RunSummary { number: copy.number, base: true, mark, entries: keys, keys, live: live.clone(), used: vec![] };
        writer.finish(&summary).await?;
        sync_names(&core.env).await?;
        let fresh = Generation { secret: core.env.random(), start };
        let lenient = core.env.sabotage() == Some(Sabotage::OldLeaderFollowed);
        let replaced = core
            .manifest
            .update_closed(|m| {
                if m.leadership.role != Role::Follower(copy.upstream.clone()) {
                    return Err(Error::Upstream("the partition follows this leader no more".to_string()));
                }
                if m.leadership.voted_epoch != copy.agreed && !lenient {
                    return Err(Error::Fenced { adopted: m.leadership.voted_epoch });
                }
                m.leadership.number += 1;
                m.leadership.voted_epoch = adopted;
                // The order was given in another history's numbers.
                m.leadership.ordered = m.leadership.ordered.map(|number| number.min(adopted.number));
                m.epochs = epochs;
                m.members = members;
                m.mark = mark;
                m.last_body = LastBody::default();
                m.durable = start;
                m.generations = vec![fresh];
                m.segments.clear();
                m.values.retain(|file| live.iter().any(|(number, _)| *number == file.number));
                for file in &mut m.values {
                    file.retired = None;
                }
                for (number, used) in used {
                    crate::checkpoint::raise_used(&mut m.values, number, used);
                }
                m.live = live;
                m.keys = keys;
                m.runs = if keys == 0 { Vec::new() } else { vec![summary] };
                // The next opening builds it from the run.
                m.index = 0;
                Ok(())
            })
            .await?;
        replaced?;
        core.manifest.seal();
        core.log(
            Level::Info,
            format_args!("a copy of {keys} keys at version {version} takes the place of what was here"),
        );
        Ok(())
    }
}

impl<E: Env> CopyIn<E> {
    /// What came so far.
    pub fn sum(&self) -> CopySum {
        self.sum
    }

    /// The last key that came.
    pub fn last(&self) -> Option<&Key> {
        self.last.as_ref()
    }

    /// Takes the next keys.
    pub async fn add(&mut self, entries: Vec<CopyEntry>) -> Result<(), Error> {
        let core = self.core.clone();
        if core.closing.get() {
            return Err(Error::ShuttingDown);
        }
        let refuse = |what: &str| Err(Error::Upstream(what.to_string()));
        let mut last = self.last.clone();
        for entry in &entries {
            if entry.key.is_empty() || last.as_ref().is_some_and(|last| *last >= entry.key) {
                return refuse("the keys of a copy are not in order");
            }
            if entry.version == 0 || entry.version > self.head.version {
                return refuse("a copy has a key of a later version than its own");
            }
            last = Some(entry.key.clone());
        }
        let values: Vec<_> = entries.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect();
        let places = core.values.append(&core.manifest, Stream::Copy, &values).await?;
        for (entry, place) in entries.iter().zip(places) {
            let length = record::length(entry.key.len(), entry.value.len()) as u64;
            *self.live.entry(place.file).or_default() += length;
            self.sum.add(&entry.key, place.length, place.checksum);
            encode_entry(&entry.key, entry.version, &Settled::Pointer(place), &mut self.chunk);
            if self.chunk.len() >= CHUNK_BYTES {
                let chunk = std::mem::take(&mut self.chunk);
                if let Some(writer) = &mut self.writer {
                    writer.push(&chunk).await?;
                }
            }
        }
        self.last = last;
        Ok(())
    }
}
