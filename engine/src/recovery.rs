//! Opening a partition: what the manifest says, what the index has, what the log adds.
//!
//! 1. The manifest names the files that count; others are leftovers of interrupted work and go.
//! 2. The index's mark is compared with the manifest's: equal, or one checkpoint ahead (then the manifest catches up
//!    from the run's footer), or the index is rebuilt from the runs.
//! 3. The log is replayed from the mark on. A batch that no later envelope vouches for is believed only if its large
//!    values are whole. Where the log ends, it is asked whether anything beyond vouches for more: then acknowledged
//!    batches are missing, and the partition refuses to open (or cuts, under `truncate_corrupt_wal`). Otherwise what
//!    follows is a tail that nobody was told of.
//! 4. What was replayed is flushed before anybody sees it: it may have been written but not flushed before the crash.
//!
//! What is shown is what the log itself says was published (each envelope names the place up to where), and all of it where
//! no followers are asked for and nobody is followed. The rest is pending, as it was before.

use crate::age::AgeClock;
use crate::checkpoint::{raise_used, record_end};
use crate::commit::{enter_all, run_log};
use crate::disk::{BLOCK, Disk, DiskErrorKind, File, IoClass, OpenMode};
use crate::env::{Env, Level};
use crate::error::Error;
use crate::index::{Index, IndexError};
use crate::index_care::{rebuild, same_contents};
use crate::leftovers::Leftovers;
use crate::manifest::{LastBody, Manifest, ManifestStore, Mark, Segment, sync_names};
use crate::memory::hash::KeyHasher;
use crate::memory::hot::HotCache;
use crate::memory::overlay::Overlay;
use crate::names;
use crate::partition::{BatchEnd, Core, Partition, SettledValues};
use crate::publish::FlushDb;
use crate::retention::keep_house;
use crate::run::RunReader;
use crate::settings::Settings;
use crate::sync::{Gate, Notify, Watch};
use crate::txn::snapshots::Snapshots;
use crate::types::{Entry, LogPosition, PartitionId, ValuePointer, Version};
use crate::vlog::ValueLog;
use crate::wal::body::Operation;
use crate::wal::end::EndFile;
use crate::wal::envelope::pointer;
use crate::wal::scan::{Batch, Scanner};
use crate::wal::{LogEnd, Wal};
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

impl<E: Env> Partition<E> {
    /// Opens a partition in its directory, or makes a new one.
    pub async fn open(env: E, id: PartitionId, settings: Settings) -> Result<Partition<E>, Error> {
        let files = env.disk().list().await?;
        let manifest = read_manifest(&env, id, &files).await?;
        let core = Rc::new(new_core(env, id, settings, manifest));
        core.match_index(&files).await?;
        core.remove_leftovers(&files).await?;
        let replayed = core.replay(&files).await?;
        core.open_log(replayed).await?;
        core.env.spawn(run_log(core.clone()));
        core.env.spawn(keep_house(core.clone()));
        Ok(Partition(core))
    }
}

async fn read_manifest<E: Env>(env: &E, id: PartitionId, files: &[(String, u64)]) -> Result<Manifest, Error> {
    if let Some(manifest) = ManifestStore::load(env, id).await? {
        return Ok(manifest);
    }
    let ours = |name: &String| ["wal", "values", "run"].iter().any(|kind| names::number(name, kind).is_some());
    match files.iter().find(|(name, _)| ours(name)) {
        None => Ok(Manifest::default()),
        Some((name, _)) => Err(Error::Corrupt {
            file: names::MANIFEST.to_string(),
            offset: 0,
            what: format!("it is missing while {name} is there; restore it from a backup"),
        }),
    }
}

fn new_core<E: Env>(env: E, id: PartitionId, settings: Settings, manifest: Manifest) -> Core<E> {
    let hasher = KeyHasher::new(env.random());
    let (version, position) = (manifest.mark.version, manifest.mark.position);
    // What lies behind the checkpoint is read, and names the newest.
    let known = manifest.last_body;
    let newest = LastBody { version, sum: known.sum.filter(|_| known.version == version) };
    let leftovers = Rc::new(Leftovers::new(env.clone()));
    Core {
        id,
        retention_bytes: Cell::new(settings.wal_retention_bytes),
        values: ValueLog::new(env.clone(), id, &settings, leftovers.clone()),
        manifest: ManifestStore::new(env.clone(), id, manifest),
        wal: OnceCell::new(),
        overlay_budget: Cell::new(settings.overlay_budget),
        checkpoint_bytes: Cell::new(settings.checkpoint_bytes),
        checkpoint_wal_bytes: Cell::new(settings.checkpoint_wal_bytes),
        overlay: RefCell::new(Overlay::new(hasher)),
        hot: RefCell::new(HotCache::new(settings.cache_bytes)),
        hasher,
        snapshots: Snapshots::default(),
        prepared: Cell::new(version),
        appending: Watch::new(version),
        flushed: Watch::new(version),
        gate: Cell::new(Version::MAX),
        published: Watch::new(version),
        published_end: Cell::new(position),
        expired: Watch::new(0),
        deposed: Watch::new(0),
        confirmed: Cell::new(false),
        quorum_missing: Cell::new(false),
        found_version: Cell::new(0),
        quorum_changed: Watch::new(0),
        wanted: Cell::new(false),
        fetching: RefCell::default(),
        flush_db: Cell::default(),
        flush_pass: RefCell::default(),
        retired: Watch::new(0),
        batch_ends: RefCell::new(VecDeque::new()),
        newest_body: Cell::new(newest.sum),
        flushed_body: Cell::new(newest),
        queue: RefCell::new(VecDeque::new()),
        batch_room: RefCell::default(),
        batch_closed: Cell::new(false),
        queue_changed: Notify::default(),
        tail: RefCell::default(),
        begin_gate: Gate::default(),
        slow_gate: Gate::default(),
        checkpoint_gate: Gate::default(),
        purge_gate: Gate::default(),
        doomed_values: RefCell::default(),
        leftovers,
        end_file: Rc::new(EndFile::new(env.clone(), id)),
        age_clock: AgeClock::new(env.now(), env.wall_ms()),
        stamps_moved: Cell::new(false),
        entering: Cell::new(None),
        pins: RefCell::default(),
        copying: Cell::new(false),
        checkpoints: Watch::new(0),
        room: Watch::new(0),
        checkpoint_refused: RefCell::new(None),
        checkpoint_wanted: Cell::new(false),
        checkpoint_running: Cell::new(false),
        settled_values: RefCell::default(),
        housekeeping: Notify::default(),
        index_gate: Gate::default(),
        ingest_gate: Gate::default(),
        merge_gate: Gate::default(),
        merging: Cell::new(false),
        index_bad: Cell::new(false),
        checkpoint_retry: Cell::new(None),
        index_epoch: Cell::new(0),
        index_void: Cell::new(false),
        paused: Cell::new(false),
        closing: Cell::new(false),
        abandoned: Watch::new(0),
        log_ended: Watch::new(0),
        ended: Cell::new(false),
        stats: Default::default(),
        env,
        settings,
    }
}

/// What replay learned.
struct Replayed {
    end: LogPosition,
    chain: u32,
    segments: Vec<Segment>,
    /// Wal files behind the end: leftovers.
    beyond: Vec<u32>,
    used: BTreeMap<u32, u64>,
}

impl<E: Env> Core<E> {
    /// Step 2.
    async fn match_index(self: &Rc<Self>, files: &[(String, u64)]) -> Result<(), Error> {
        let (number, mark, has_runs) = {
            let m = self.manifest.get();
            (m.index, m.mark, !m.runs.is_empty())
        };
        let index = self.env.index();
        if number == 0 && has_runs {
            // A copy took the place of everything.
            self.rebuild_index(0).await?;
        }
        if number != 0 {
            match index.open(number, false).await {
                Ok(found) if same_contents(found.unwrap_or_default(), mark) => {}
                Ok(Some(found)) if found.version > mark.version && self.catch_up(found, files).await? => {}
                Ok(found) => {
                    let at = found.map_or("unmarked".to_string(), |f| format!("at version {}", f.version));
                    self.log(Level::Warn, format_args!("the index is {at}, the manifest at version {}", mark.version));
                    self.rebuild_index(number).await?;
                }
                Err(error @ IndexError::Refused(_)) => return Err(error.into()),
                Err(error) => {
                    self.log(Level::Warn, format_args!("the index cannot be opened: {error}"));
                    self.rebuild_index(number).await?;
                }
            }
        }
        let current = self.manifest.get().index;
        for leftover in index.list().await.map_err(Error::from)? {
            if leftover != current {
                index.remove(leftover).await.map_err(Error::from)?;
            }
        }
        Ok(())
    }

    /// The index took a run that the manifest had not recorded yet: record it, if the run is whole.
    async fn catch_up(self: &Rc<Self>, found: Mark, files: &[(String, u64)]) -> Result<bool, Error> {
        let reader = match RunReader::open(&self.env, self.id, found.run).await {
            Ok(reader) => reader,
            Err(error @ Error::Newer { .. }) => return Err(error),
            // Nothing is wrong with it.
            Err(error) if error.is_refusal() => return Err(error),
            Err(error) => {
                self.log(Level::Warn, format_args!("the run that the index is at cannot be opened: {error}"));
                return Ok(false);
            }
        };
        match reader.summary().await {
            Ok(summary) if summary.mark == found => {
                self.log(
                    Level::Info,
                    format_args!("the manifest catches up with the index at version {}", found.version),
                );
                // The name may not be durable yet if only the process died.
                sync_names(&self.env).await?;
                // Segments that the mark passes over are still there for consumers; the last of them goes on behind it.
                let passed = self.passed_segments(found.position.segment(), files).await?;
                self.manifest.update(|m| m.segments.extend(passed)).await?;
                self.manifest.reserve().await?;
                self.adopt_run(&summary).await?;
                // Which batch that ended with was not written down.
                self.flushed_body.set(LastBody { version: found.version, sum: None });
                self.newest_body.set(None);
                self.prepared.set(found.version);
                self.appending.raise(found.version);
                self.flushed.raise(found.version);
                self.published.raise(found.version);
                Ok(true)
            }
            Err(error) if error.is_refusal() => Err(error),
            _ => Ok(false),
        }
    }

    /// Segments up to `last` that the manifest does not list yet: what the first batch says, and how far they are used.
    async fn passed_segments(&self, last: u32, files: &[(String, u64)]) -> Result<Vec<Segment>, Error> {
        let manifest = self.manifest.get().clone();
        let unlisted = |n: &u32| {
            *n >= manifest.mark.position.segment() && *n <= last && !manifest.segments.iter().any(|s| s.number == *n)
        };
        let numbers: Vec<u32> =
            files.iter().filter_map(|(name, _)| names::number(name, "wal")).filter(unlisted).collect();
        let mut passed = Vec::new();
        for number in numbers {
            let start = LogPosition::new(number, BLOCK as u32);
            let alone = [number];
            let mut scanner = Scanner::new(&self.env, self.id, &manifest, &alone, start, None);
            // Only consumers would read it, so damage here is told to them and does not keep the partition closed.
            let first = match scanner.next().await {
                Ok(Some(first)) => first,
                Err(error) if error.is_refusal() => return Err(error),
                _ => {
                    self.log(
                        Level::Warn,
                        format_args!("{} cannot be read, consumers will miss it", names::segment(number)),
                    );
                    continue;
                }
            };
            let mut used = first.end.offset();
            loop {
                match scanner.next().await {
                    Ok(Some(batch)) => used = batch.end.offset(),
                    Err(error) if error.is_refusal() => return Err(error),
                    _ => break,
                }
            }
            passed.push(Segment { number, first_version: first.body.first_version, used, checkpointed_ms: None });
        }
        Ok(passed)
    }

    async fn rebuild_index(self: &Rc<Self>, old: u32) -> Result<(), Error> {
        let fresh = self.manifest.update(Manifest::take_number).await?;
        let manifest = self.manifest.get().clone();
        rebuild(&self.env, self.id, &manifest, fresh).await?;
        self.update_manifest(|m| m.index = fresh).await?;
        self.env.index().remove(old).await.map_err(Error::from)
    }

    /// Step 1, after the index had its say: files that nothing names.
    async fn remove_leftovers(&self, files: &[(String, u64)]) -> Result<(), Error> {
        let leftovers: Vec<String> = {
            let m = self.manifest.get();
            let purged = |n: u32| n < m.mark.position.segment() && !m.segments.iter().any(|s| s.number == n);
            let leftover = |name: &str| {
                name == names::MANIFEST_NEW
                    || name == names::MANIFEST_RESERVED
                    || names::number(name, "spare").is_some()
                    || names::number(name, "run").is_some_and(|n| !m.runs.iter().any(|r| r.number == n))
                    || names::number(name, "values").is_some_and(|n| !m.values.iter().any(|v| v.number == n))
                    || names::number(name, "wal").is_some_and(purged)
            };
            files.iter().map(|(name, _)| name.clone()).filter(|name| leftover(name)).collect()
        };
        if let Some((_, length)) = files.iter().find(|(name, _)| name == names::MANIFEST_SPARE) {
            // A full disk has no space for another one.
            self.manifest.adopt_spare(*length);
        }
        if !leftovers.is_empty() {
            // If only the process died, the manifest that no longer names them may not be durable yet: the one before must
            // not come back to find them gone.
            sync_names(&self.env).await?;
        }
        for name in leftovers {
            match self.env.disk().remove(&name).await {
                Err(error) if error.kind != DiskErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Step 3.
    async fn replay(self: &Rc<Self>, files: &[(String, u64)]) -> Result<Replayed, Error> {
        let mut cut_short = self.look_for_newest_segment(files).await?;
        let mut numbers: Vec<u32> = files.iter().filter_map(|(name, _)| names::number(name, "wal")).collect();
        let manifest = self.manifest.get().clone();
        let mark = manifest.mark;
        let recorded = if cut_short { None } else { self.counting_record() };
        let durable = recorded.map_or(manifest.durable, |record| record.durable.max(manifest.durable));
        numbers.retain(|n| *n >= mark.position.segment());
        let mut scanner = Scanner::new(&self.env, self.id, &manifest, &numbers, mark.position, Some(mark.chain));
        let mut used = BTreeMap::new();
        let mut unvouched: Option<Batch> = None;
        let mut cut = None;
        // Believed, and not applied before it is known that it was published, or that the log ends.
        let mut held: VecDeque<Batch> = VecDeque::new();
        let all_counts = self.counts_alone();
        let mut published_end = mark.position;
        // Segments that had a batch replayed, as far as it went.
        let mut found: BTreeMap<u32, Segment> = BTreeMap::new();
        loop {
            let next = match scanner.next().await {
                Ok(next) => next,
                Err(Error::Corrupt { .. }) if self.settings.truncate_corrupt_wal => {
                    cut_short = true;
                    None
                }
                Err(error) => return Err(error),
            };
            // The batch before is believed if this one vouches for it, or the manifest does, or its values are whole.
            if let Some(batch) = unvouched.take() {
                let vouched = next.as_ref().map_or(durable, |n| n.envelope.durable).max(durable);
                // A later envelope may be whole although its body is not: it vouches, too.
                if vouched < batch.end
                    && !self.large_values_are_whole(&batch).await?
                    && scanner.vouched_beyond().await? < batch.end
                {
                    cut = Some((batch.position, batch.envelope.chain));
                    break;
                }
                let number = batch.position.segment();
                let segment = found.entry(number).or_insert(Segment {
                    number,
                    first_version: batch.body.first_version,
                    used: BLOCK as u32,
                    checkpointed_ms: None,
                });
                segment.used = batch.end.offset();
                published_end = published_end.max(batch.envelope.published);
                if let Some(next) = &next {
                    published_end = published_end.max(next.envelope.published);
                }
                held.push_back(batch);
                while held.front().is_some_and(|first| all_counts || first.end <= published_end) {
                    let Some(batch) = held.pop_front() else { break };
                    let end = batch.end;
                    self.apply(batch, &mut used, Some(&found)).await?;
                    let postponed = self.checkpoint_retry.get().is_some_and(|(until, _)| self.env.now() < until);
                    if self.overlay.borrow().bytes() >= self.overlay_budget.get() && !postponed {
                        match self.checkpoint_in_replay(&used, &found, end).await {
                            // All of it was in memory before the restart.
                            Err(error) if error.is_refusal() => drop(self.postpone_checkpoint()),
                            other => other?,
                        }
                    }
                }
            }
            match next {
                Some(batch) => unvouched = Some(batch),
                None => break,
            }
        }
        for batch in held {
            self.apply(batch, &mut used, None).await?;
        }
        let (end, chain) = match cut {
            Some((position, chain)) => {
                self.log(
                    Level::Warn,
                    format_args!("the last batch, at {position}, names values that are not whole: cut"),
                );
                (position, chain)
            }
            None => (scanner.position(), scanner.chain().unwrap_or(mark.chain)),
        };
        if cut.is_none() {
            let vouched = scanner.vouched_beyond().await?.max(durable);
            if vouched > end {
                self.refuse_or_cut(end, vouched).await?;
            }
        }
        if cut_short {
            self.record_cut(end).await?;
            self.record_newest(end).await?;
        }
        if !found.is_empty() {
            self.flush_replayed(&found, end).await?;
        }
        self.flushed.raise(self.prepared.get());
        self.appending.raise(self.prepared.get());
        // A recorded segment stays until a generation of this opening takes its place: before, another opening would miss it.
        let recorded = self.counting_record().map(|record| record.segment);
        let beyond = numbers.iter().copied().filter(|n| *n > end.segment() && Some(*n) != recorded).collect();
        let kept_numbers = numbers.iter().copied().filter(|n| *n <= end.segment());
        let mut segments: Vec<Segment> =
            manifest.segments.iter().copied().filter(|s| s.number < mark.position.segment()).collect();
        let there: BTreeSet<u32> = files.iter().filter_map(|(name, _)| names::number(name, "wal")).collect();
        segments.retain(|s| there.contains(&s.number));
        for number in kept_numbers {
            let listed = manifest.segments.iter().find(|s| s.number == number);
            let first_version = listed
                .map(|s| s.first_version)
                .or_else(|| found.get(&number).map(|s| s.first_version))
                .unwrap_or(self.prepared.get() + 1);
            let replayed = found.get(&number).map_or(BLOCK as u32, |s| s.used);
            let used = if number == end.segment() { end.offset() } else { replayed.max(listed.map_or(0, |s| s.used)) };
            segments.push(Segment { number, first_version, used, checkpointed_ms: None });
        }
        Ok(Replayed { end, chain, segments, beyond, used })
    }

    async fn large_values_are_whole(&self, batch: &Batch) -> Result<bool, Error> {
        for (key, place) in large_values(batch) {
            match self.values.read(&key, place).await {
                Ok(_) => {}
                Err(Error::Corrupt { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        // Whole, but perhaps only written: flushed before anybody is told.
        let places: Vec<ValuePointer> = large_values(batch).map(|(_, place)| place).collect();
        self.values.flush(&places).await?;
        Ok(true)
    }

    /// `published` is what was found so far, or `None` for what may still be cut: it is pending.
    async fn apply(
        self: &Rc<Self>,
        batch: Batch,
        used: &mut BTreeMap<u32, u64>,
        published: Option<&BTreeMap<u32, Segment>>,
    ) -> Result<(), Error> {
        let corrupt = |what: String| Error::Corrupt {
            file: names::segment(batch.position.segment()),
            offset: u64::from(batch.position.offset()),
            what,
        };
        for (key, place) in large_values(&batch) {
            let end = used.entry(place.file).or_default();
            *end = (*end).max(record_end(&key, &place));
        }
        let settled = self.manifest.get().mark.version;
        let last = batch.body.last_version();
        let mut places = batch.envelope.pointers.iter();
        let mut version = batch.body.first_version;
        let mut flushed = None;
        let mut changes = Vec::new();
        let is_voucher = batch.body.transactions.is_empty();
        for operations in batch.body.transactions {
            let expected = self.prepared.get() + 1;
            if version > settled && version != expected {
                return Err(corrupt(format!("version {version} follows {}", expected - 1)));
            }
            for operation in operations {
                let (key, entry) = match operation {
                    Operation::Set(key, value) => (key, Entry::Value(value)),
                    Operation::Delete(key) => (key, Entry::Tombstone),
                    Operation::SetLarge(key, length, checksum) => {
                        let place = places.next().ok_or_else(|| corrupt("a large value has no place".to_string()))?;
                        (key, Entry::Pointer(pointer(*place, length, checksum)))
                    }
                    Operation::Flush => {
                        flushed = (version > settled).then_some(version);
                        if flushed.is_some() && published.is_some() {
                            self.forget_memory();
                            changes.clear();
                        }
                        continue;
                    }
                    // The manifest had it before the log.
                    Operation::Members(_) => continue,
                };
                if version > settled {
                    changes.push((version, key, entry));
                }
            }
            if version > settled {
                self.prepared.set(version);
            }
            version += 1;
        }
        enter_all(self, changes);
        self.batch_ends.borrow_mut().push_back(BatchEnd { last, end: batch.end, chain: batch.envelope.crc });
        if !is_voucher {
            let newest = LastBody { version: last, sum: Some(batch.envelope.body_crc) };
            self.flushed_body.set(newest);
            self.newest_body.set(newest.sum);
        }
        if published.is_some() {
            self.flushed.raise(self.prepared.get());
            self.published.raise(self.prepared.get());
            self.published_end.set(batch.end);
        }
        match (flushed, published) {
            (Some(version), Some(found)) => {
                self.record_replayed(used, found, batch.end).await?;
                self.retire_all(version).await
            }
            (Some(version), None) => {
                self.flush_db.set(FlushDb::Logged(version));
                *self.flush_pass.borrow_mut() = Some(self.checkpoint_gate.enter().await);
                Ok(())
            }
            (None, _) => Ok(()),
        }
    }

    /// Step 4: what was replayed is flushed before anybody is told of it, and from then on damage to it is no tail.
    async fn flush_replayed(&self, found: &BTreeMap<u32, Segment>, end: LogPosition) -> Result<(), Error> {
        let durable = self.manifest.get().durable;
        // Only what lies beyond the manifest's word can be unflushed.
        for number in found.keys().filter(|n| **n >= durable.segment()) {
            let file = self.env.disk().open(&names::segment(*number), OpenMode::Existing, IoClass::Foreground).await?;
            file.sync_data().await?;
        }
        sync_names(&self.env).await?;
        if end <= durable {
            return Ok(());
        }
        // A crash may have come between a segment's first batch and its record.
        if self.end_file.is_there() && self.counting_record().is_none_or(|record| record.segment < end.segment()) {
            match self.record_newest(end).await {
                Err(error) if error.is_refusal() => {
                    self.log(Level::Warn, format_args!("the newest segment of the log is not recorded: {error}"));
                }
                other => other?,
            }
        }
        match self.update_manifest(|m| m.durable = end).await {
            // It is flushed all the same: the next batch vouches for it, or the next change of the manifest.
            Err(error) if error.is_refusal() => {
                self.log(Level::Warn, format_args!("the manifest does not say how far the log is flushed: {error}"));
                Ok(())
            }
            other => other,
        }
    }

    /// Before the mark moves within a replay: what it passes over is flushed and recorded. Segments that the manifest does not
    /// list count as purged at the next opening, and consumers may hold them.
    async fn record_replayed(
        &self,
        used: &BTreeMap<u32, u64>,
        found: &BTreeMap<u32, Segment>,
        end: LogPosition,
    ) -> Result<(), Error> {
        self.flush_replayed(found, end).await?;
        self.update_manifest(|m| {
            used.iter().for_each(|(number, end)| raise_used(&mut m.values, *number, *end));
            for segment in found.values() {
                match m.segments.iter_mut().find(|s| s.number == segment.number) {
                    Some(listed) => listed.used = listed.used.max(segment.used),
                    None => m.segments.push(*segment),
                }
            }
        })
        .await
    }

    /// Replay goes on in bounded memory.
    async fn checkpoint_in_replay(
        self: &Rc<Self>,
        used: &BTreeMap<u32, u64>,
        found: &BTreeMap<u32, Segment>,
        end: LogPosition,
    ) -> Result<(), Error> {
        self.record_replayed(used, found, end).await?;
        self.log(Level::Info, format_args!("replayed up to version {}; checkpointing to go on", self.prepared.get()));
        self.checkpoint_alone().await
    }

    async fn open_log(self: &Rc<Self>, replayed: Replayed) -> Result<(), Error> {
        for number in &replayed.beyond {
            self.env.disk().remove(&names::segment(*number)).await?;
        }
        if !replayed.beyond.is_empty() {
            // They must not come back behind what is written next.
            sync_names(&self.env).await?;
        }
        if self.settings.truncate_corrupt_wal {
            self.mend_segment_header(replayed.end, &replayed.segments).await?;
        }
        let end = LogEnd { position: replayed.end, chain: replayed.chain, segments: replayed.segments };
        let (env, leftovers) = (self.env.clone(), self.leftovers.clone());
        let sizes = (self.settings.wal_max_size, self.settings.delete_reserve);
        let wal = Wal::open(env, self.id, sizes, end, leftovers, self.end_file.clone()).await?;
        if self.wal.set(wal).is_err() {
            unreachable!("a log is opened once");
        }
        self.take_up_role();
        self.cut_value_files(&replayed.used).await
    }

    /// Value files of earlier openings are cut to what is used; this opening writes into new ones.
    async fn cut_value_files(&self, used: &BTreeMap<u32, u64>) -> Result<(), Error> {
        let (files, live) = {
            let m = self.manifest.get();
            (m.values.clone(), m.live.iter().copied().collect::<BTreeMap<u32, u64>>())
        };
        let lengths: BTreeMap<u32, u64> = self
            .env
            .disk()
            .list()
            .await?
            .into_iter()
            .filter_map(|(n, l)| Some((names::number(&n, "values")?, l)))
            .collect();
        let ours: BTreeSet<u32> = self.values.used().into_iter().map(|(number, _)| number).collect();
        let mut grown = Vec::new();
        for file in files {
            let length = lengths.get(&file.number).copied().unwrap_or(0);
            let needed = live.get(&file.number).copied().unwrap_or(0);
            if length < needed {
                self.log(
                    Level::Error,
                    format_args!(
                        "{} has {length} bytes, and {needed} of living values are in it: reads of what is missing answer CORRUPT; \
                         restore it from a backup",
                        names::values(file.number)
                    ),
                );
            }
            let end = used.get(&file.number).copied().unwrap_or(0).max(file.used);
            let end = crate::buffer::round_up(end as usize) as u64;
            if end > file.used {
                grown.push((file.number, end));
            }
            if length > end && !ours.contains(&file.number) {
                let name = names::values(file.number);
                let handle = self.env.disk().open(&name, OpenMode::Existing, IoClass::Bulk).await?;
                handle.truncate(end).await?;
            }
        }
        if grown.is_empty() {
            return Ok(());
        }
        // Each change of the manifest from now on says so, whatever becomes of this one.
        grown.iter().for_each(|(number, end)| self.values.note_used(*number, *end));
        match self.update_manifest(|_| ()).await {
            Err(error) if error.is_refusal() => {
                self.log(Level::Warn, format_args!("the manifest does not say how far value files are used: {error}"));
                Ok(())
            }
            other => other,
        }
    }

    /// Everything before a flush record is gone: nothing in memory or in the index counts any more.
    pub(crate) fn forget_memory(&self) {
        self.index_void.set(true);
        self.overlay.borrow_mut().clear();
        *self.settled_values.borrow_mut() = SettledValues::default();
        self.hot.borrow_mut().clear();
        self.snapshots.give_up_below(Version::MAX);
        self.checkpoints.raise(self.checkpoints.get() + 1);
    }

    /// Retires all runs, the index and the value files, as of the flush record with version `version`.
    pub(crate) async fn retire_all(self: &Rc<Self>, version: Version) -> Result<(), Error> {
        let at = {
            let ends = self.batch_ends.borrow();
            ends.iter().find(|end| end.last >= version).copied()
        };
        let Some(at) = at else { unreachable!("the batch of a flush record was just appended or replayed") };
        self.values.leave_files();
        if self.wal.get().is_none() {
            // In replay a lack of space can still be answered; later it was reserved before the record was written.
            self.manifest.reserve().await?;
        }
        // Nobody mends or feeds the index meanwhile.
        let _feeding = self.ingest_gate.enter().await;
        let _mending = self.index_gate.enter().await;
        let (index, runs) = {
            let m = self.manifest.get();
            (m.index, m.runs.iter().map(|r| r.number).collect::<Vec<u32>>())
        };
        // The record is in the log: there is no way back.
        self.update_manifest_reserved(|m| {
            m.index = 0;
            m.runs.clear();
            m.mark = Mark { version, position: at.end, chain: at.chain, run: 0 };
            m.keys = 0;
            m.live.clear();
            for file in &mut m.values {
                file.retired.get_or_insert(at.end);
            }
        })
        .await?;
        // The old manifest's space is free now.
        self.manifest.keep_spare().await;
        self.index_void.set(false);
        self.index_bad.set(false);
        self.index_epoch.set(self.index_epoch.get() + 1);
        self.env.index().close().await;
        if index != 0
            && let Err(error) = self.env.index().remove(index).await
        {
            self.log(Level::Warn, format_args!("the next opening removes the index of before the FlushDB: {error}"));
        }
        for run in runs {
            self.remove_run(run).await?;
        }
        if self.wal.get().is_some() { self.purge().await } else { Ok(()) }
    }
}

/// The large values that a batch names, with their places.
fn large_values(batch: &Batch) -> impl Iterator<Item = (crate::types::Key, ValuePointer)> {
    let operations = batch.body.transactions.iter().flatten();
    let large = operations.filter_map(|o| match o {
        Operation::SetLarge(key, length, checksum) => Some((key.clone(), *length, *checksum)),
        _ => None,
    });
    large
        .zip(batch.envelope.pointers.iter())
        .map(|((key, length, checksum), place)| (key, pointer(*place, length, checksum)))
}
