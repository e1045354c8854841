//! The sender's side.

use super::{CopyEntry, CopyHead, CopySum};
use crate::env::{Env, Sabotage};
use crate::error::Error;
use crate::manifest::{Hold, HoldOwner, MembersRecord};
use crate::partition::{Core, Partition};
use crate::run::RunEntry;
use crate::run_merge::Merge;
use crate::types::{Settled, ValuePointer, Version};
use std::collections::BTreeSet;
use std::rc::Rc;

/// A copy keeps this much of the log behind it, bytes: who takes longer, while more is written, begins anew.
const LOG_MAX: u64 = 16 << 30;
/// Keys that are read together.
const GROUP: usize = 4096;

/// What a copy that is being sent keeps.
pub(crate) struct Pin {
    number: u64,
    runs: Vec<u32>,
    values: BTreeSet<u32>,
    hold: Hold,
}

/// Everything that copies keep.
#[derive(Default)]
pub(crate) struct Pins {
    pins: Vec<Pin>,
    next: u64,
    /// Runs that only copies need.
    orphans: Vec<u32>,
}

impl Pins {
    fn is_pinned(&self, run: u32) -> bool {
        self.pins.iter().any(|pin| pin.runs.contains(&run))
    }

    /// Whether a value file must stay.
    pub fn has_values(&self, file: u32) -> bool {
        self.pins.iter().any(|pin| pin.values.contains(&file))
    }

    /// The log that must stay.
    pub fn holds(&self) -> impl Iterator<Item = &Hold> {
        self.pins.iter().map(|pin| &pin.hold)
    }

    fn add(&mut self, runs: Vec<u32>, values: BTreeSet<u32>, version: Version) -> u64 {
        self.next += 1;
        let hold = Hold { name: String::new(), version, limit_bytes: LOG_MAX, owner: HoldOwner::Operator };
        self.pins.push(Pin { number: self.next, runs, values, hold });
        self.next
    }

    /// Lets go of files; answers the runs that nobody needs any more.
    fn let_go(&mut self, number: u64, log_too: bool) -> Vec<u32> {
        if log_too {
            self.pins.retain(|pin| pin.number != number);
        } else if let Some(pin) = self.pins.iter_mut().find(|pin| pin.number == number) {
            (pin.runs, pin.values) = Default::default();
        }
        let orphans = std::mem::take(&mut self.orphans);
        let (kept, gone) = orphans.into_iter().partition(|run| self.is_pinned(*run));
        self.orphans = kept;
        gone
    }
}

/// A copy that is being sent: pins what it reads until it is dropped.
pub struct CopyOut<E: Env> {
    core: Rc<Core<E>>,
    /// What it is of.
    pub head: CopyHead,
    pin: u64,
    runs: Vec<u32>,
    keys: u64,
    merge: Merge<E>,
    /// Read, and not answered yet.
    ahead: Option<RunEntry>,
    sum: CopySum,
}

impl<E: Env> Drop for CopyOut<E> {
    fn drop(&mut self) {
        self.let_go(true);
    }
}

impl<E: Env> Partition<E> {
    /// Begins a copy of what the last checkpoint settled; the log has everything behind it. No new one is made for it: that
    /// would wait for what is pending, which may wait for the very follower that needs the copy.
    pub async fn copy_out(&self) -> Result<CopyOut<E>, Error> {
        let core = &self.0;
        let (runs, head, pin, keys) = {
            let manifest = core.manifest.get();
            let version = match core.env.sabotage() {
                Some(Sabotage::CopyAheadOfItsRuns) => core.published.get(),
                _ => manifest.mark.version,
            };
            let runs: Vec<u32> = manifest.runs.iter().map(|run| run.number).collect();
            let values = manifest.values.iter().map(|file| file.number).collect();
            let mut members: Vec<MembersRecord> =
                manifest.members.iter().filter(|r| r.version <= version).cloned().collect();
            if members.is_empty() {
                // The list of then is not known any more. The one in force is: without any, the receiver would take itself for
                // one that nobody else must agree with.
                members.extend(manifest.members.first().map(|r| MembersRecord { version, ..r.clone() }));
            }
            let head = CopyHead {
                version,
                adopted: manifest.leadership.voted_epoch,
                epochs: manifest.epochs.iter().filter(|e| e.first_version <= version).copied().collect(),
                members,
            };
            let pin = core.pins.borrow_mut().add(runs.clone(), values, version + 1);
            (runs, head, pin, manifest.keys)
        };
        match Merge::open(&core.env, core.id, runs.iter().copied()).await {
            Ok(merge) => {
                Ok(CopyOut { core: core.clone(), head, pin, runs, keys, merge, ahead: None, sum: CopySum::default() })
            }
            Err(error) => {
                core.pins.borrow_mut().let_go(pin, true);
                Err(error)
            }
        }
    }
}

impl<E: Env> CopyOut<E> {
    /// The next keys with their values, about `limit_bytes` of them; none behind the last.
    pub async fn next(&mut self, limit_bytes: usize) -> Result<Vec<CopyEntry>, Error> {
        let (mut keys, mut versions, mut bytes) = (Vec::new(), Vec::new(), 0);
        while keys.len() < GROUP && bytes < limit_bytes {
            let entry = match self.ahead.take() {
                Some(entry) => Some(entry),
                None => self.merge.next().await?,
            };
            let Some(entry) = entry else { break };
            // Behind a group of tombstones there may be more.
            let Settled::Pointer(pointer) = entry.settled else { continue };
            bytes += entry.key.len() + pointer.length as usize;
            versions.push(entry.version);
            keys.push((entry.key.into(), pointer));
        }
        let values = self.core.values.read_many(&keys).await?;
        let entries = keys.into_iter().zip(versions).zip(values).map(|(((key, pointer), version), value)| {
            let ValuePointer { length, checksum, .. } = pointer;
            self.sum.add(&key, length, checksum);
            CopyEntry { key, version, value }
        });
        Ok(entries.collect())
    }

    /// How many keys it has.
    pub fn keys(&self) -> u64 {
        self.keys
    }

    /// What was read so far.
    pub fn sum(&self) -> CopySum {
        self.sum
    }

    /// Goes back to behind `after`.
    pub async fn go_back(&mut self, after: &[u8]) -> Result<(), Error> {
        self.merge = Merge::open(&self.core.env, self.core.id, self.runs.iter().copied()).await?;
        (self.sum, self.ahead) = (CopySum::default(), None);
        let mut read = 0u32;
        while let Some(entry) = self.merge.next().await? {
            if entry.key.as_slice() > after {
                self.ahead = Some(entry);
                break;
            }
            if let Settled::Pointer(pointer) = entry.settled {
                self.sum.add(&entry.key, pointer.length, pointer.checksum);
            }
            read += 1;
            if read.is_multiple_of(1024) {
                self.core.env.give_way().await;
            }
        }
        Ok(())
    }

    /// Everything was sent: the files may go, the log behind the copy stays until this is dropped.
    pub fn sent(&self) {
        self.let_go(false);
    }

    fn let_go(&self, log_too: bool) {
        let gone = self.core.pins.borrow_mut().let_go(self.pin, log_too);
        if gone.is_empty() {
            return;
        }
        let core = self.core.clone();
        self.core.env.spawn(async move {
            for run in gone {
                // The next opening removes it, too.
                core.leftovers.remove_after_failure(crate::names::run(run)).await;
            }
        });
    }
}

impl<E: Env> Core<E> {
    /// Removes a run that the manifest does not name any more, now or when no copy needs it.
    pub(crate) async fn remove_run(&self, number: u32) -> Result<(), Error> {
        {
            let mut pins = self.pins.borrow_mut();
            if pins.is_pinned(number) {
                pins.orphans.push(number);
                return Ok(());
            }
        }
        Ok(self.leftovers.remove(crate::names::run(number)).await?)
    }
}
