//! Checkpoints: recent versions become index entries, and the log before them is needed by consumers only.
//!
//! 1. The overlay's active generation is frozen at version F. The checkpoint waits until F is published and no snapshot
//!    below F is open (their age is bounded, and memory pressure ends the oldest).
//! 2. The newest version of each key is settled: small values go to the value log in key order, large ones are there
//!    already. The run (key, version, pointer or tombstone) is written. Values and run are flushed.
//! 3. The run is ingested into the index together with the mark: "everything up to F, log position P, by run N".
//! 4. The manifest records the same. Only then the frozen generation and old log segments go.
//!
//! A crash between 3 and 4 leaves an index that is ahead of the manifest; recovery reads the run's footer and catches
//! up. A checkpoint that failed for lack of space leaves the generation frozen, and the next one tries again.

use crate::env::{Env, Level, Sabotage};
use crate::error::Error;
use crate::index::{Index, IndexError};
use crate::index_care::Cure;
use crate::manifest::{Manifest, Mark, RunSummary, ValueFile, sync_names};
use crate::memory::hot::Known;
use crate::memory::overlay::{Generation, Place, Prior};
use crate::memory::warm::TOGETHER;
use crate::partition::{BatchEnd, Core, Partition, SettledValues, warm};
use crate::run::{CHUNK_BYTES, RunWriter, encode_entry};
use crate::stats::add;
use crate::sync::first_of;
use crate::types::{Entry, Key, Settled, Value, ValuePointer, Version};
use crate::vlog::{Stream, record};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Keys that are settled together: their values are one write.
pub(crate) const GROUP: usize = 512;
/// Keys, or versions, that are worked on without giving way. Each may wait for memory a few times: some 10 to 50 us in all,
/// so that commits and reads, which need the core several times each, hardly notice a checkpoint. A core that has no time left
/// gives it one piece in each round, however, so where memory gets short a piece is a whole group ([`Core::piece`]).
const PIECE: usize = 32;
/// Keys that are sorted without giving way.
const SORTED: usize = 256;
/// A checkpoint that failed is tried again after this time, one such time longer after each failure.
const RETRY: Duration = Duration::from_secs(1);
/// But at least this often.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// The outcome of settling a generation.
struct SettledRun {
    chunks: Vec<Vec<u8>>,
    summary: RunSummary,
    cached: Vec<(Key, Known)>,
}

impl<E: Env> Partition<E> {
    /// Settles everything prepared so far. Waits for open snapshots, which are bounded in age.
    pub async fn checkpoint(&self) -> Result<(), Error> {
        let core = &self.0;
        let _turn = core.checkpoint_gate.enter().await;
        core.checkpoint_alone().await
    }
}

impl<E: Env> Core<E> {
    pub(crate) async fn checkpoint_alone(self: &Rc<Self>) -> Result<(), Error> {
        if self.is_flushing() {
            // The partition closes while a FlushDB retires what was there: with the mark behind its record nothing would do that
            // at the next opening.
            return Err(Error::ShuttingDown);
        }
        while self.entering.get().is_some() {
            drop(self.slow_gate.enter().await);
            self.env.give_way().await;
        }
        let generation = self.overlay.borrow_mut().freeze(self.prepared.get());
        self.batch_closed.set(true);
        self.look_for_room();
        first_of(self.published.reached(generation.last), self.abandoned.reached(1)).await;
        if self.published.get() < generation.last {
            return Err(Error::ShuttingDown);
        }
        self.snapshots.oldest_reaches(generation.last).await;
        let at = self.batch_end_of(generation.last);
        let answer = self.settle(&generation, at).await;
        *self.checkpoint_refused.borrow_mut() = answer.as_ref().err().cloned();
        match &answer {
            Ok(()) => self.checkpoint_retry.set(None),
            Err(error) => {
                let pause = self.postpone_checkpoint();
                self.log(
                    Level::Warn,
                    format_args!("a checkpoint failed and will be tried again in {} s: {error}", pause.as_secs()),
                );
                // Whoever waits for room learns why there is none.
                self.checkpoints.raise(self.checkpoints.get() + 1);
            }
        }
        self.dismantle(generation).await;
        answer
    }

    /// The next try comes later than the one before did; answers after which time.
    pub(crate) fn postpone_checkpoint(&self) -> Duration {
        let failures = self.checkpoint_retry.get().map_or(1, |(_, before)| before + 1);
        let pause = (RETRY * failures).min(RETRY_MAX);
        self.checkpoint_retry.set(Some((self.env.now() + pause, failures)));
        pause
    }

    /// The end of the last batch that has no version beyond `last`, and the chain there.
    fn batch_end_of(&self, last: Version) -> BatchEnd {
        let mut ends = self.batch_ends.borrow_mut();
        while ends.get(1).is_some_and(|next| next.last <= last) {
            ends.pop_front();
        }
        match ends.front() {
            Some(end) if end.last <= last => *end,
            _ => {
                let mark = self.manifest.get().mark;
                BatchEnd { last: mark.version, end: mark.position, chain: mark.chain }
            }
        }
    }

    async fn settle(self: &Rc<Self>, generation: &Rc<Generation>, at: BatchEnd) -> Result<(), Error> {
        let before = self.manifest.get().mark;
        if generation.is_empty() && at.end == before.position {
            self.overlay.borrow_mut().settle();
            return Ok(());
        }
        let mut cached = Vec::new();
        if generation.is_empty() {
            // Only batches without keys: the log can go, the index stays as it is, and has nothing up to here to add.
            self.update_manifest(|m| {
                m.mark.version = m.mark.version.max(at.last);
                m.mark.position = at.end;
                m.mark.chain = at.chain;
            })
            .await?;
            self.overlay.borrow_mut().settle();
        } else {
            let mut run = self.write_run(generation, at).await?;
            cached = std::mem::take(&mut run.cached);
            if let Err(error) = self.bring_in(&run).await {
                // The next try writes another; if this one got into the index after all, the index is built anew.
                self.leftovers.remove_after_failure(crate::names::run(run.summary.number)).await;
                return Err(error);
            }
            self.overlay.borrow_mut().settle();
            *self.settled_values.borrow_mut() = SettledValues::default();
        }
        // In one step with the overlay: an answer that the index gave before must not enter the cache after.
        self.checkpoints.raise(self.checkpoints.get() + 1);
        self.remember_settled(cached).await;
        add(&self.stats.checkpoints, 1);
        self.tidy().await;
        Ok(())
    }

    /// A run goes into the index, and then into the manifest.
    async fn bring_in(self: &Rc<Self>, run: &SettledRun) -> Result<(), Error> {
        // What follows the ingestion cannot be taken back.
        self.manifest.reserve().await?;
        let _feeding = self.ingest_gate.enter().await;
        self.ingest(run).await?;
        self.adopt_run(&run.summary).await
    }

    /// Lets go of what a checkpoint made superfluous.
    async fn tidy(self: &Rc<Self>) {
        if self.wal.get().is_none() {
            // In replay there is no log yet to let go of, and nobody who would wait for a merge.
            self.merge_what_is_due().await;
            return;
        }
        if let Err(error) = self.purge().await {
            self.log(Level::Warn, format_args!("log that is not needed any more is kept for now: {error}"));
        }
        self.manifest.keep_spare().await;
        self.start_merging();
    }

    /// What was just settled is likely to be read. A commit that comes in between takes its key out again, and no other
    /// checkpoint ends meanwhile. A key that was written again meanwhile learns what is below it.
    async fn remember_settled(self: &Rc<Self>, cached: Vec<(Key, Known)>) {
        if self.env.sabotage() == Some(Sabotage::StaleCacheFill) {
            // With a broken fill rule this would hide what it breaks.
            return;
        }
        let partition = Partition(self.clone());
        let (mut cached, mut since) = (cached.into_iter(), 0);
        while !cached.as_slice().is_empty() {
            warm(cached.as_slice().iter().map(|(key, _)| (&partition, &**key)));
            {
                let (mut hot, mut overlay) = (self.hot.borrow_mut(), self.overlay.borrow_mut());
                for (key, known) in cached.by_ref().take(TOGETHER) {
                    let hashed = self.hasher.of(&key);
                    if overlay.newest(hashed).is_none() {
                        let hash = hashed.hash;
                        hot.insert(key, hash, known);
                    } else {
                        overlay.settled_below(hashed, Prior::of(Some(&known)));
                    }
                }
            }
            since += TOGETHER;
            if since >= self.piece() {
                since = 0;
                self.env.give_way().await;
            }
        }
    }

    async fn write_run(self: &Rc<Self>, generation: &Rc<Generation>, at: BatchEnd) -> Result<SettledRun, Error> {
        let number = self.manifest.update(Manifest::take_number).await?;
        let written = self.write_run_as(generation, at, number).await;
        if written.is_err() {
            // It is not in the manifest, so the next opening would remove it as well.
            self.leftovers.remove_after_failure(crate::names::run(number)).await;
        }
        match written {
            Err(Error::Disk(error)) => match self.env.halt(format!("a checkpoint's write failed: {error}")).await {},
            other => other,
        }
    }

    async fn write_run_as(
        self: &Rc<Self>,
        generation: &Rc<Generation>,
        at: BatchEnd,
        number: u32,
    ) -> Result<SettledRun, Error> {
        let (mut keys, mut live) = {
            let manifest = self.manifest.get();
            (manifest.keys, manifest.live.iter().copied().collect::<BTreeMap<u32, u64>>())
        };
        let mut writer = RunWriter::create(&self.env, self.id, number).await?;
        let (mut chunks, mut chunk, mut entries) = (Vec::new(), Vec::new(), 0);
        let order = self.in_order(generation).await;
        // A list that grows is copied as a whole now and then, which takes longer than anything else here.
        let (mut cached, mut placed) = (Vec::with_capacity(order.len()), Vec::with_capacity(order.len()));
        // Asked before anything is written: an index that does not answer must not cost the disk anything.
        let mut asked = self.priors(generation, &order).await?.into_iter();
        for group in order.chunks(GROUP) {
            let mut small: Vec<(Key, Value)> = Vec::with_capacity(group.len());
            let together = self.piece();
            for piece in group.chunks(together) {
                generation.touch(piece);
                small.extend(piece.iter().filter_map(|place| {
                    let slot = generation.at(*place);
                    if let Entry::Value(v) = &slot.newest.1 { Some((slot.key.clone(), v.clone())) } else { None }
                }));
                self.env.give_way().await;
            }
            let from = placed.len();
            self.settle_values(generation.last, from, &small).await?;
            let places = self.settled_values.borrow().places[from..from + small.len()].to_vec();
            placed.extend_from_slice(&places);
            let mut places = places.into_iter();
            for (i, slot) in group.iter().map(|place| generation.at(*place)).enumerate() {
                if i % together == 0 {
                    self.env.give_way().await;
                    generation.touch(&group[i..group.len().min(i + together)]);
                }
                let (key, (version, entry)) = (&slot.key, &slot.newest);
                let prior = match slot.prior {
                    Prior::Unknown => asked.next().unwrap_or(Prior::Unknown),
                    known => known,
                };
                let settled = match entry {
                    Entry::Value(_) => match places.next() {
                        Some(place) => Settled::Pointer(place),
                        None => unreachable!("every small value was just given a place"),
                    },
                    Entry::Pointer(pointer) => Settled::Pointer(*pointer),
                    Entry::Tombstone => Settled::Tombstone,
                };
                if let Prior::Value { file, length } = prior {
                    keys -= 1;
                    let bytes = live.entry(file).or_default();
                    *bytes = bytes.saturating_sub(record::length(key.len(), length as usize) as u64);
                }
                match settled {
                    Settled::Pointer(new) => {
                        keys += 1;
                        *live.entry(new.file).or_default() += record::length(key.len(), new.length as usize) as u64;
                    }
                    // Nothing to bury.
                    Settled::Tombstone if prior == Prior::Absent => continue,
                    Settled::Tombstone => {}
                }
                entries += 1;
                encode_entry(key, *version, &settled, &mut chunk);
                cached.push((key.clone(), known(&settled, entry.clone())));
                if chunk.len() >= CHUNK_BYTES {
                    self.push_chunk(&mut writer, &chunk).await?;
                    // As long as the one before it: what grows is copied at every step.
                    let next = Vec::with_capacity(chunk.len() + chunk.len() / 8);
                    chunks.push(std::mem::replace(&mut chunk, next));
                }
            }
        }
        if !chunk.is_empty() {
            self.push_chunk(&mut writer, &chunk).await?;
            chunks.push(chunk);
        }
        self.values.flush(&placed).await?;
        let mark = Mark { version: generation.last, position: at.end, chain: at.chain, run: number };
        live.retain(|_, bytes| *bytes > 0);
        let live = live.into_iter().collect();
        let summary = RunSummary { number, base: false, mark, entries, keys, live, used: self.values.used() };
        writer.finish(&summary).await?;
        sync_names(&self.env).await?;
        Ok(SettledRun { chunks, summary, cached })
    }

    /// Small values of a generation, from the `from`th on, have places: those that a failed try wrote, or new ones.
    async fn settle_values(&self, generation: Version, from: usize, small: &[(Key, Value)]) -> Result<(), Error> {
        let there = {
            let mut settled = self.settled_values.borrow_mut();
            if settled.generation != generation {
                *settled = SettledValues { generation, places: Vec::new() };
            }
            settled.places.len().saturating_sub(from).min(small.len())
        };
        let places = self.values.append(&self.manifest, Stream::Checkpoint, &small[there..]).await?;
        self.settled_values.borrow_mut().places.extend(places);
        Ok(())
    }

    async fn push_chunk(&self, writer: &mut RunWriter<E>, chunk: &[u8]) -> Result<(), Error> {
        if self.env.sabotage() == Some(Sabotage::RunWithoutTombstones) {
            let mut kept = Vec::new();
            for entry in crate::run::decode_chunk(chunk).unwrap_or_default() {
                if entry.settled != Settled::Tombstone {
                    encode_entry(&entry.key, entry.version, &entry.settled, &mut kept);
                }
            }
            return writer.push(&kept).await;
        }
        writer.push(chunk).await
    }

    /// What the index holds for those keys of a generation of which that is not known, in their order.
    async fn priors(self: &Rc<Self>, generation: &Rc<Generation>, order: &[Place]) -> Result<Vec<Prior>, Error> {
        let mut unknown: Vec<Place> = Vec::with_capacity(order.len());
        for group in order.chunks(GROUP) {
            unknown.extend(group.iter().filter(|place| generation.at(**place).prior == Prior::Unknown));
            self.env.give_way().await;
        }
        if self.manifest.get().index == 0 {
            return Ok(vec![Prior::Absent; unknown.len()]);
        }
        if unknown.is_empty() && self.index_bad.get() {
            // Nothing is asked, but it must be well before anything is written for it.
            self.ask_index(async |index: &E::Index| index.get_many(Vec::new()).await).await?;
        }
        let mut priors = Vec::with_capacity(unknown.len());
        for group in unknown.chunks(GROUP) {
            let mut keys: Vec<Vec<u8>> = Vec::with_capacity(group.len());
            for piece in group.chunks(self.piece()) {
                generation.touch(piece);
                keys.extend(piece.iter().map(|place| generation.at(*place).key.to_vec()));
                self.env.give_way().await;
            }
            let found = self.ask_index(async |index: &E::Index| index.get_many(keys.clone()).await).await?;
            priors.extend(found.into_iter().map(|found| match found {
                Some((_, Settled::Pointer(old))) => Prior::Value { file: old.file, length: old.length },
                Some((_, Settled::Tombstone)) | None => Prior::Absent,
            }));
        }
        add(&self.stats.priors_asked, unknown.len() as u64);
        Ok(priors)
    }

    /// Brings a run into the index; an error leaves it in doubt, so the index is reopened and asked.
    async fn ingest(self: &Rc<Self>, run: &SettledRun) -> Result<(), Error> {
        if self.manifest.get().index == 0 {
            let number = self.manifest.update(Manifest::take_number).await?;
            self.env.index().open(number, true).await.map_err(Error::from)?;
            // Recorded before anything is in it: an index without a mark is rebuilt from the manifest's runs.
            self.update_manifest(|m| m.index = number).await?;
        }
        let mark = run.summary.mark;
        for cure in [Cure::Reopen, Cure::Rebuild, Cure::Rebuild] {
            let epoch = self.index_epoch.get();
            let index = self.env.index();
            let attempt = async {
                index.ingest_begin(mark).await?;
                for chunk in &run.chunks {
                    index.ingest_chunk(chunk.clone()).await?;
                }
                index.ingest_finish().await
            };
            match attempt.await {
                Ok(()) => return Ok(()),
                // It has taken nothing, and to open or build it anew would put it further behind.
                Err(error @ IndexError::Behind(_)) if self.env.sabotage() != Some(Sabotage::BehindIsBroken) => {
                    return Err(error.into());
                }
                Err(error) => {
                    self.log(Level::Warn, format_args!("an ingestion is in doubt: {error}"));
                    if self.mend_index(epoch, Some(mark), cure).await? == mark {
                        return Ok(());
                    }
                }
            }
        }
        Err(Error::Index("three ingestions in a row failed".to_string()))
    }

    /// The manifest follows the index.
    pub(crate) async fn adopt_run(&self, summary: &RunSummary) -> Result<(), Error> {
        self.update_manifest_reserved(|m| {
            m.mark = summary.mark;
            m.keys = summary.keys;
            m.live = summary.live.clone();
            for (number, used) in &summary.used {
                raise_used(&mut m.values, *number, *used);
            }
            // What is alive is said once, for the newest.
            m.runs.push(RunSummary { live: Vec::new(), used: Vec::new(), ..summary.clone() });
        })
        .await
    }

    /// How many keys are worked on without giving way: half of the memory is taken, so commits may soon wait for the end of this.
    fn piece(&self) -> usize {
        if self.overlay.borrow().bytes() > self.overlay_budget.get() / 2 { GROUP } else { PIECE }
    }

    /// The keys of a generation in their order, piece by piece.
    async fn in_order(&self, generation: &Generation) -> Vec<Place> {
        let mut sorted = Vec::new();
        for piece in generation.sorted_pieces(SORTED) {
            sorted.push(piece);
            self.env.give_way().await;
        }
        let mut order = Vec::with_capacity(generation.len());
        let mut merged = generation.merge(sorted).peekable();
        while merged.peek().is_some() {
            order.extend(merged.by_ref().take(self.piece()));
            self.env.give_way().await;
        }
        order
    }

    /// Frees a generation piece by piece: at once it would hold the core for tens of milliseconds.
    async fn dismantle(&self, generation: Rc<Generation>) {
        // Where it stays frozen for another try, others have it, too.
        let Ok(mut generation) = Rc::try_unwrap(generation) else { return };
        while generation.dismantle(self.piece()) {
            self.env.give_way().await;
        }
    }

    /// Changes the manifest, and brings along what else is known by now: segments, used bytes, the durable place.
    pub(crate) async fn update_manifest<T>(&self, change: impl FnOnce(&mut Manifest) -> T) -> Result<T, Error> {
        self.manifest
            .update(|m| {
                self.bring_up_to_date(m);
                change(m)
            })
            .await
    }

    /// The same where there is no way back; space was set aside by [`crate::manifest::ManifestStore::reserve`].
    pub(crate) async fn update_manifest_reserved<T>(
        &self,
        change: impl FnOnce(&mut Manifest) -> T,
    ) -> Result<T, Error> {
        self.manifest
            .update_reserved(|m| {
                self.bring_up_to_date(m);
                change(m)
            })
            .await
    }

    /// The same to free space.
    pub(crate) async fn update_manifest_freeing<T>(&self, change: impl FnOnce(&mut Manifest) -> T) -> Result<T, Error> {
        self.manifest
            .update_freeing(|m| {
                self.bring_up_to_date(m);
                change(m)
            })
            .await
    }

    fn bring_up_to_date(&self, manifest: &mut Manifest) {
        if let Some(wal) = self.wal.get() {
            manifest.segments = wal.segments();
            manifest.durable = manifest.durable.max(wal.durable());
        }
        let newest = self.flushed_body.get();
        if newest.version >= manifest.last_body.version {
            manifest.last_body = newest;
        }
        for (number, used) in self.values.used() {
            raise_used(&mut manifest.values, number, used);
        }
    }
}

/// Raises the used bytes of a file.
pub(crate) fn raise_used(files: &mut [ValueFile], number: u32, used: u64) {
    if let Some(file) = files.iter_mut().find(|f| f.number == number) {
        file.used = file.used.max(used);
    }
}

fn known(settled: &Settled, entry: Entry) -> Known {
    match (settled, entry) {
        (Settled::Pointer(pointer), Entry::Value(value)) => Known::Value(*pointer, value),
        (Settled::Pointer(pointer), _) => Known::Pointer(*pointer),
        (Settled::Tombstone, _) => Known::Absent,
    }
}

/// Where a pointer's record ends.
pub(crate) fn record_end(key: &[u8], pointer: &ValuePointer) -> u64 {
    pointer.offset + record::length(key.len(), pointer.length as usize) as u64
}
