//! A partition: begin, read, submit, and the state that commit, checkpoint and recovery share.
//!
//! Versions number commits. A *prepared* version is in the overlay and in the queue of the log; later prepares conflict
//! with it, others do not see it. A *flushed* version is on this node's disk. A *published* version is flushed, and held by
//! as many followers as its leader asks for; everybody may see it and be told of it. The chain
//! `mark.version <= published <= flushed <= prepared` always holds, and no checkpoint passes an open snapshot.
//!
//! A session may run ahead of its flushes: its next snapshot is its own last prepared version, and whatever it is told
//! waits until that version is published ([`RunAhead`]).

use crate::age::AgeClock;
use crate::commit::{Batch, Ticket};
use crate::copy::Pins;
use crate::env::{Env, Level, Sabotage};
use crate::error::Error;
use crate::index::{Found, Index};
use crate::leftovers::Leftovers;
use crate::manifest::{LastBody, ManifestStore, Upstream};
use crate::memory::hash::{Hashed, KeyHasher};
use crate::memory::hot::{HotCache, Known};
use crate::memory::overlay::Overlay;
use crate::memory::warm::{self, TOGETHER};
use crate::publish::FlushDb;
use crate::settings::Settings;
use crate::stats::Stats;
use crate::sync::{Gate, Notify, Pass, Watch};
use crate::tail::Tail;
use crate::txn::snapshots::{Snapshot, Snapshots};
use crate::txn::{Transaction, Write};
use crate::types::{CommitPosition, Entry, Key, LogPosition, PartitionId, Settled, Value, ValuePointer, Version};
use crate::vlog::ValueLog;
use crate::wal::Wal;
use crate::wal::end::EndFile;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

/// A partition that writes most of what the node writes is checkpointed after so many times the log of a quiet one. A key that
/// is written again meanwhile is settled once, and a restart reads that much more.
const BUSY: u64 = 4;

/// One partition, open. Cloning gives another handle.
pub struct Partition<E: Env>(pub(crate) Rc<Core<E>>);

impl<E: Env> Clone for Partition<E> {
    fn clone(&self) -> Self {
        Partition(self.0.clone())
    }
}

/// Where a batch ended: its last version, the place behind it, and its envelope's CRC.
#[derive(Clone, Copy)]
pub(crate) struct BatchEnd {
    pub last: Version,
    pub end: LogPosition,
    pub chain: u32,
}

/// Small values of a frozen generation that a failed checkpoint has written, in the order of their keys: the next try takes
/// these places, and writes no value twice. A generation is known by its last version.
#[derive(Default)]
pub(crate) struct SettledValues {
    pub generation: Version,
    pub places: Vec<ValuePointer>,
}

pub(crate) struct Core<E: Env> {
    pub id: PartitionId,
    pub env: E,
    pub settings: Settings,
    pub retention_bytes: Cell<u64>,
    /// Most bytes in the overlay, and those at which a checkpoint starts: this partition's share.
    pub overlay_budget: Cell<u64>,
    pub checkpoint_bytes: Cell<u64>,
    /// Log not yet settled that starts one.
    pub checkpoint_wal_bytes: Cell<u64>,
    pub hasher: KeyHasher,
    pub manifest: ManifestStore<E>,
    pub wal: OnceCell<Wal<E>>,
    pub values: ValueLog<E>,
    pub overlay: RefCell<Overlay>,
    pub hot: RefCell<HotCache>,
    pub snapshots: Snapshots,
    pub prepared: Cell<Version>,
    /// The log has begun to write everything up to this version.
    pub appending: Watch,
    /// Everything up to this version is on the disk.
    pub flushed: Watch,
    /// Nothing beyond this version may be published, whatever is flushed: the followers', or the leader's, word.
    pub gate: Cell<Version>,
    pub published: Watch,
    /// Where the last batch ends that is wholly published.
    pub published_end: Cell<LogPosition>,
    /// Who waits for a version up to this one has waited for too long: it may still be published.
    pub expired: Watch,
    /// Grows when this node stops to lead, or follows another.
    pub deposed: Watch,
    /// It may begin to lead without asking anybody, or has been agreed to.
    pub confirmed: Cell<bool>,
    /// Too few followers are there: nothing is prepared.
    pub quorum_missing: Cell<bool>,
    /// The newest version that the opening found in the log, where it cannot know how much of the log's end was published: until
    /// that much is published, or a leader has said what is, a read could show less than an earlier one. 0 otherwise.
    pub found_version: Cell<Version>,
    pub quorum_changed: Watch,
    /// Somebody has waited for followers since the opening.
    pub wanted: Cell<bool>,
    /// A candidate fetches the end of the log from here, whatever its role.
    pub fetching: RefCell<Option<Upstream>>,
    pub flush_db: Cell<FlushDb>,
    /// What keeps checkpoints away until a FlushDB is carried out.
    pub flush_pass: RefCell<Option<Pass>>,
    /// FlushDBs that were carried out.
    pub retired: Watch,
    pub batch_ends: RefCell<VecDeque<BatchEnd>>,
    /// CRC of the newest body that has one: the next names it.
    pub newest_body: Cell<Option<u32>>,
    /// The newest body that is on this disk.
    pub flushed_body: Cell<LastBody>,
    pub queue: RefCell<VecDeque<Batch>>,
    /// The last batch's bytes, to be used again.
    pub batch_room: RefCell<Vec<u8>>,
    /// A checkpoint ends with what was prepared last: the next transaction begins a batch.
    pub batch_closed: Cell<bool>,
    pub queue_changed: Notify,
    /// The newest batches, for those who follow.
    pub tail: RefCell<Tail>,
    pub begin_gate: Gate,
    pub slow_gate: Gate,
    pub checkpoint_gate: Gate,
    pub purge_gate: Gate,
    /// Value files that a purge lets go, until the manifest no longer names them.
    pub doomed_values: RefCell<Vec<u32>>,
    pub leftovers: Rc<Leftovers<E>>,
    /// Which segment of the log is the newest one.
    pub end_file: Rc<EndFile<E>>,
    /// How old kept log is.
    pub age_clock: AgeClock,
    /// Stamps of segments were moved, and the manifest does not have them yet.
    pub stamps_moved: Cell<bool>,
    /// From this version on not all changes are in the overlay yet, so nothing of it is published. The `slow_gate` is held as long.
    pub entering: Cell<Option<Version>>,
    /// What copies that are being sent keep.
    pub pins: RefCell<Pins>,
    /// A copy is coming in.
    pub copying: Cell<bool>,
    pub checkpoints: Watch,
    /// Raised when whoever waits for memory has to look again although no checkpoint has ended.
    pub room: Watch,
    pub checkpoint_refused: RefCell<Option<Error>>,
    pub checkpoint_wanted: Cell<bool>,
    pub checkpoint_running: Cell<bool>,
    /// Where values of the frozen generation lie already, from a checkpoint that failed behind them.
    pub settled_values: RefCell<SettledValues>,
    pub housekeeping: Notify,
    /// Who mends the index; those who ask it wait behind it.
    pub index_gate: Gate,
    /// Who brings something into the index and records that, or replaces it. Taken before `index_gate`.
    pub ingest_gate: Gate,
    /// Who merges runs.
    pub merge_gate: Gate,
    /// Runs are being merged, or are about to be.
    pub merging: Cell<bool>,
    /// The index failed and could not be mended: it must be before it is asked again.
    pub index_bad: Cell<bool>,
    /// Not before this time, and how often in a row a checkpoint has failed.
    pub checkpoint_retry: Cell<Option<(Duration, u32)>>,
    pub index_epoch: Cell<u64>,
    pub index_void: Cell<bool>,
    pub paused: Cell<bool>,
    pub closing: Cell<bool>,
    /// 1 when nothing is to be waited for any more.
    pub abandoned: Watch,
    pub log_ended: Watch,
    /// The index is another opening's now: nobody asks or mends it from here.
    pub ended: Cell<bool>,
    pub stats: Stats,
}

/// These keys are about to be read or written: what their partitions have of them in memory is brought near, for all of them
/// together. Of more than [`TOGETHER`] the first.
pub fn warm<'a, E: Env>(keys: impl Iterator<Item = (&'a Partition<E>, &'a [u8])>) {
    let mut tables = [const { None }; TOGETHER];
    let mut near: [&[u8]; TOGETHER] = [&[]; TOGETHER];
    for ((tables, near), (Partition(core), key)) in tables.iter_mut().zip(&mut near).zip(keys) {
        *tables = Some((core.overlay.borrow(), core.hot.borrow()));
        *near = key;
    }
    warm::warm(&tables, &near);
}

/// What a look-up found without waiting.
pub enum Lookup<E: Env> {
    /// The key has this value.
    Found(Value),
    /// The key does not exist.
    Absent,
    /// The disk must be asked: [`Cold::fetch`].
    Cold(Cold<E>),
}

/// A read that must wait for the disk.
pub struct Cold<E: Env> {
    core: Rc<Core<E>>,
    key: Key,
    hash: u64,
    guard: Snapshot,
    source: Source,
    checkpoints: u64,
}

enum Source {
    /// A recent version's large value.
    Recent(ValuePointer),
    /// A settled value.
    Settled(ValuePointer),
    /// Nothing is known.
    Index,
}

/// What one session has prepared itself: its snapshots include it, and what it is told waits for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunAhead {
    floor: Version,
}

impl RunAhead {
    /// The session prepared `version`.
    pub fn prepared(&mut self, version: Version) {
        self.floor = self.floor.max(version);
    }

    /// The snapshot of its next transaction.
    pub fn snapshot<E: Env>(&self, partition: &Partition<E>) -> Version {
        partition.published().max(self.floor)
    }

    /// Nothing may be told before this version is published.
    pub fn tell_after<E: Env>(&self, partition: &Partition<E>) -> Version {
        if partition.0.env.sabotage() == Some(Sabotage::RunAheadToldEarly) {
            return 0;
        }
        self.floor
    }
}

impl<E: Env> Core<E> {
    pub(crate) fn wal(&self) -> &Wal<E> {
        match self.wal.get() {
            Some(wal) => wal,
            None => unreachable!("the log is set before recovery hands the partition out"),
        }
    }

    /// Whoever waits for memory looks again: a generation was frozen, the share is another one, a checkpoint's task is over.
    pub(crate) fn look_for_room(&self) {
        self.room.raise(self.room.get() + 1);
    }

    pub(crate) fn log(&self, level: Level, text: impl std::fmt::Display) {
        self.env.log(level, format!("partition {}: {text}", self.id));
    }

    /// Looks at what is in memory.
    pub(crate) fn lookup(self: &Rc<Self>, snapshot: Version, key: &[u8]) -> Lookup<E> {
        let seen = if self.env.sabotage() == Some(Sabotage::SnapshotOffByOne) { snapshot + 1 } else { snapshot };
        let hashed = self.hasher.of(key);
        let recent = self.overlay.borrow().get(hashed, seen).map(|(_, entry)| entry.clone());
        let source = match recent {
            Some(Entry::Value(value)) => return Lookup::Found(value),
            Some(Entry::Tombstone) => return Lookup::Absent,
            Some(Entry::Pointer(pointer)) => Source::Recent(pointer),
            None if self.manifest.get().index == 0 || self.index_void.get() => return Lookup::Absent,
            None => match self.hot.borrow_mut().get(hashed) {
                Some(Known::Value(_, value)) => return Lookup::Found(value),
                Some(Known::Absent) => return Lookup::Absent,
                Some(Known::Pointer(pointer)) => Source::Settled(pointer),
                None => Source::Index,
            },
        };
        Lookup::Cold(Cold {
            core: self.clone(),
            key: key.into(),
            hash: hashed.hash,
            guard: self.snapshots.open(snapshot, self.env.recently()),
            source,
            checkpoints: self.checkpoints.get(),
        })
    }

    pub(crate) fn position_of(&self, version: Version) -> CommitPosition {
        CommitPosition { partition: self.id, epoch: self.manifest.get().epoch_of(version), version }
    }
}

impl<E: Env> Cold<E> {
    /// Reads the value from the disk.
    pub async fn fetch(self) -> Result<Option<Value>, Error> {
        self.fetch_if(|_| Ok(())).await
    }

    /// The same, if `may` allows so many bytes.
    pub async fn fetch_if(self, may: impl FnMut(usize) -> Result<(), Error>) -> Result<Option<Value>, Error> {
        let answer = self.read(may).await;
        if self.guard.given_up() {
            return Err(Error::SnapshotTooOld);
        }
        answer
    }

    async fn read(&self, mut may: impl FnMut(usize) -> Result<(), Error>) -> Result<Option<Value>, Error> {
        let pointer = match self.source {
            Source::Recent(pointer) => {
                may(pointer.length as usize)?;
                return self.core.values.read(&self.key, pointer).await.map(Some);
            }
            Source::Settled(pointer) => pointer,
            Source::Index => {
                let keys = vec![self.key.to_vec()];
                let found: Vec<Found> =
                    self.core.ask_index(async |index: &E::Index| index.get_many(keys.clone()).await).await?;
                match found.into_iter().next().flatten() {
                    Some((_, Settled::Pointer(pointer))) => pointer,
                    Some((_, Settled::Tombstone)) | None => {
                        self.remember(Known::Absent);
                        return Ok(None);
                    }
                }
            }
        };
        self.remember(Known::Pointer(pointer));
        may(pointer.length as usize)?;
        let value = self.core.values.read(&self.key, pointer).await?;
        self.remember(Known::Value(pointer, value.clone()));
        Ok(Some(value))
    }

    /// The fill rule: nothing enters the cache that a commit, a re-pointing or a checkpoint may have made stale.
    fn remember(&self, known: Known) {
        let current = self.checkpoints == self.core.checkpoints.get();
        let hashed = Hashed { key: &self.key, hash: self.hash };
        let recent = self.core.overlay.borrow().newest(hashed).is_some();
        if (current && !recent) || self.core.env.sabotage() == Some(Sabotage::StaleCacheFill) {
            self.core.hot.borrow_mut().insert(self.key.clone(), self.hash, known);
        }
    }
}

impl<E: Env> Partition<E> {
    /// Its number.
    pub fn id(&self) -> PartitionId {
        self.0.id
    }

    /// Its outside world.
    pub fn env(&self) -> &E {
        &self.0.env
    }

    /// Its settings.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// The newest version that anybody may see.
    pub fn published(&self) -> Version {
        self.0.published.get()
    }

    /// Refuses reads where this node, before it was restarted, may have shown more than it knows now to be published.
    pub fn check_readable(&self) -> Result<(), Error> {
        let core = &self.0;
        let (found, published) = (core.found_version.get(), core.published.get());
        if published >= found { Ok(()) } else { Err(Error::NotReadable { published, found }) }
    }

    /// The newest version that is on this node's disk.
    pub fn flushed(&self) -> Version {
        self.0.flushed.get()
    }

    /// Ends when `version` is on this node's disk.
    pub async fn wait_flushed(&self, version: Version) {
        self.0.flushed.reached(version).await;
    }

    /// Ends when `version` is published.
    pub async fn wait_published(&self, version: Version) {
        self.0.published.reached(version).await;
    }

    /// The newest version that a later envelope vouches for: damage at or below it is told from a tail.
    pub fn vouched(&self) -> Version {
        let vouched = self.0.wal().vouched_position().max(self.0.manifest.get().durable);
        let ends = self.0.batch_ends.borrow();
        let last = ends.iter().rev().find(|end| end.end <= vouched).map(|end| end.last);
        last.unwrap_or(self.0.manifest.get().mark.version)
    }

    /// The identity of a version.
    pub fn position(&self, version: Version) -> CommitPosition {
        self.0.position_of(version)
    }

    /// Begins a transaction on everything up to `snapshot` (see [`RunAhead::snapshot`]).
    pub fn begin(&self, snapshot: Version) -> Transaction {
        assert!(snapshot <= self.0.prepared.get(), "a snapshot sees only what was prepared");
        let now = self.0.env.recently();
        Transaction::new(self.0.snapshots.open(snapshot, now), now)
    }

    /// Whether a transaction may go on: not too old, not given up.
    pub fn check(&self, transaction: &Transaction) -> Result<(), Error> {
        let limit = self.0.settings.max_tx_age;
        if self.0.env.recently().saturating_sub(transaction.begun) > limit {
            return Err(Error::TransactionTimeout { limit_seconds: limit.as_secs() });
        }
        if transaction.snapshot.given_up() {
            return Err(Error::SnapshotTooOld);
        }
        Ok(())
    }

    /// Reads a key within a transaction.
    pub fn get(&self, transaction: &mut Transaction, key: &[u8]) -> Result<Lookup<E>, Error> {
        self.check(transaction)?;
        match transaction.own(key) {
            Some(Write::Set(value)) => return Ok(Lookup::Found(value.clone())),
            Some(Write::Delete) => return Ok(Lookup::Absent),
            None => {}
        }
        transaction.note_read(&self.0.settings, key)?;
        Ok(self.0.lookup(transaction.snapshot.version(), key))
    }

    /// Reads a key at a snapshot, outside any transaction.
    pub fn get_at(&self, snapshot: Version, key: &[u8]) -> Lookup<E> {
        self.0.lookup(snapshot, key)
    }

    /// Buffers a write.
    pub fn write(&self, transaction: &mut Transaction, key: &[u8], write: Write) -> Result<(), Error> {
        self.check(transaction)?;
        let manifest = self.0.manifest.get();
        if !manifest.writable() {
            return Err(manifest.refusal());
        }
        drop(manifest);
        transaction.write(&self.0.settings, key, write)
    }

    /// Writes one key by itself, seeing nothing, where nothing needs to be waited for: its version, or the refusal.
    /// `None` if something does; then it takes a [`Transaction`].
    pub fn write_alone(&self, key: &[u8], write: &Write) -> Option<Result<Version, Error>> {
        crate::commit::write_alone(&self.0, key, write)
    }

    /// Ends a transaction that is not to be committed: what it holds is freed in pieces, if it is much.
    pub fn end_transaction(&self, transaction: &mut Transaction) {
        crate::commit::large::let_go(&self.0, transaction);
    }

    /// Hands a transaction to the log: see [`Ticket`].
    pub fn submit(&self, transaction: Transaction) -> Ticket {
        crate::commit::submit(&self.0, transaction)
    }

    /// Whether it takes writes here.
    pub fn writable(&self) -> bool {
        self.0.manifest.get().writable()
    }

    /// Open snapshots, those of transactions among them.
    pub fn open_snapshots(&self) -> usize {
        self.0.snapshots.len()
    }

    /// This partition's share of the kept log, bytes.
    pub fn set_retention_bytes(&self, bytes: u64) {
        self.0.retention_bytes.set(bytes);
        self.0.housekeeping.notify();
    }

    /// This partition's share of the memory for recent versions, bytes. A quarter of it, if that is more than
    /// `checkpoint_bytes`, starts a checkpoint.
    pub fn set_overlay_bytes(&self, bytes: u64) {
        let floor = self.0.settings.checkpoint_bytes;
        self.0.overlay_budget.set(bytes.max(floor.saturating_mul(4)));
        self.0.checkpoint_bytes.set(floor.max(bytes / 4));
        self.0.housekeeping.notify();
        // With a larger share there may be room although no checkpoint is due.
        self.0.look_for_room();
    }

    /// This partition's share of the log that a restart would have to read, bytes: more than that starts a checkpoint. It is
    /// never less than `checkpoint_wal_bytes`, and never more than [`BUSY`] times that.
    pub fn set_checkpoint_wal_bytes(&self, bytes: u64) {
        let least = self.0.settings.checkpoint_wal_bytes;
        self.0.checkpoint_wal_bytes.set(bytes.clamp(least, least.saturating_mul(BUSY)));
    }

    /// This partition's share of the cache of settled keys, bytes.
    pub fn set_cache_bytes(&self, bytes: u64) {
        self.0.hot.borrow_mut().set_bytes(bytes);
    }

    /// Finishes what is in flight, checkpoints, and closes. Nothing may be submitted afterwards. What waits for followers is
    /// left for the next opening.
    pub async fn close(&self) -> Result<(), Error> {
        let core = &self.0;
        core.closing.set(true);
        core.wal().keep_none();
        core.stop_waiting();
        self.let_go();
        // Transactions that wait for space or for their large values see `closing` when their turn comes.
        drop(core.slow_gate.enter().await);
        core.flushed.reached(core.prepared.get()).await;
        core.snapshots.give_up_below(Version::MAX);
        let settled = if core.published.get() == core.prepared.get() && !core.is_flushing() {
            self.checkpoint().await
        } else {
            core.abandoned.raise(1);
            Ok(())
        };
        self.end().await;
        settled
    }

    /// Closes as it is: what is prepared is flushed, and nothing else waited for.
    pub async fn abandon(&self) {
        let core = &self.0;
        core.closing.set(true);
        core.wal().keep_none();
        core.abandoned.raise(1);
        core.stop_waiting();
        self.let_go();
        core.checkpoints.raise(core.checkpoints.get() + 1);
        drop(core.slow_gate.enter().await);
        core.flushed.reached(core.prepared.get()).await;
        core.snapshots.give_up_below(Version::MAX);
        self.end().await;
    }

    /// Where followers must hold a commit, nobody waits for them any more.
    fn let_go(&self) {
        let core = &self.0;
        if core.gate.get() != Version::MAX && core.published.get() < core.prepared.get() {
            core.abandoned.raise(1);
            core.expired.raise(core.prepared.get());
        }
    }

    async fn end(&self) {
        let core = &self.0;
        core.queue_changed.notify();
        core.housekeeping.notify();
        core.log_ended.reached(2).await;
        core.wal().settled().await;
        core.flush_pass.borrow_mut().take();
        drop(core.checkpoint_gate.enter().await);
        drop(core.merge_gate.enter().await);
        // The next opening replaces the same file.
        core.manifest.close().await;
        core.ended.set(true);
        // Who asks now is refused; who mends it comes to an end first.
        drop(core.ingest_gate.enter().await);
        drop(core.index_gate.enter().await);
        core.env.index().close().await;
    }
}
