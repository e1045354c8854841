//! Keeping the index usable: asking it, reopening it after an error, rebuilding it from the runs.
//!
//! The index is never the truth. Whatever is wrong with it (missing, damaged, stale, poisoned) is answered by a new one
//! built from the runs that the manifest names; the log is replayed on top by recovery, or is in the overlay already.

use crate::env::{Env, Level};
use crate::error::Error;
use crate::index::{Index, IndexError};
use crate::manifest::{Manifest, Mark};
use crate::partition::Core;
use crate::run::{CHUNK_BYTES, RunEntry, RunReader, encode_entry};
use crate::stats::add;
use crate::types::{PartitionId, Settled, Version};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::rc::Rc;

/// A line is logged after this many entries of a rebuild.
const PROGRESS: u64 = 1_000_000;

impl<E: Env> Core<E> {
    /// Asks the index; an error has it mended, then the question is repeated.
    pub(crate) async fn ask_index<T>(
        self: &Rc<Self>,
        question: impl AsyncFn(&E::Index) -> Result<T, IndexError>,
    ) -> Result<T, Error> {
        let mut last = String::new();
        for _ in 0..3 {
            // Not while it is being mended: a half-built index answers wrongly.
            drop(self.index_gate.enter().await);
            let epoch = self.index_epoch.get();
            match question(self.env.index()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    self.log(Level::Warn, format_args!("the index did not answer: {error}"));
                    last = error.0;
                    self.mend_index(epoch, None).await?;
                }
            }
        }
        Err(Error::Index(last))
    }

    /// Reopens the index if nobody did since `epoch`, and rebuilds it if it is not where the manifest is (or at
    /// `hoped`, the mark of an ingestion in doubt). Answers where it is.
    pub(crate) async fn mend_index(self: &Rc<Self>, epoch: u64, hoped: Option<Mark>) -> Result<Mark, Error> {
        let _turn = self.index_gate.enter().await;
        let (number, mark) = {
            let m = self.manifest.get();
            (m.index, m.mark)
        };
        if self.index_epoch.get() != epoch {
            return Ok(mark);
        }
        self.index_epoch.set(epoch + 1);
        add(&self.stats.index_mended, 1);
        match self.env.index().open(number, false).await {
            Ok(Some(found)) if Some(found) == hoped => {
                self.log(Level::Info, "the index was reopened; the ingestion in doubt is in it");
                return Ok(found);
            }
            Ok(found) if same_contents(found.unwrap_or_default(), mark) => {
                self.log(Level::Info, "the index was reopened");
                return Ok(mark);
            }
            Ok(_) => self.log(Level::Warn, "the index was reopened, but is not where the manifest is"),
            Err(error) => self.log(Level::Warn, format_args!("the index cannot be reopened: {error}")),
        }
        let (fresh, manifest) = {
            let fresh = self.manifest.update(Manifest::take_number).await?;
            (fresh, self.manifest.get().clone())
        };
        rebuild(&self.env, self.id, &manifest, fresh).await?;
        self.update_manifest(|m| m.index = fresh).await?;
        // What is left of the old one is removed by the next opening if not now.
        let _ = self.env.index().remove(number).await;
        Ok(mark)
    }
}

/// Whether an index with mark `found` holds what the manifest's mark says: the log position may have moved on since.
pub(crate) fn same_contents(found: Mark, mark: Mark) -> bool {
    found.run == mark.run && found.version <= mark.version
}

struct Source<E: Env> {
    number: u32,
    reader: RunReader<E>,
    entries: VecDeque<RunEntry>,
}

impl<E: Env> Source<E> {
    async fn next(&mut self) -> Result<Option<RunEntry>, Error> {
        while self.entries.is_empty() {
            match self.reader.next().await? {
                Some(entries) => self.entries = entries.into(),
                None => return Ok(None),
            }
        }
        Ok(self.entries.pop_front())
    }
}

/// Key ascending; of a key the newest version first, and at equal version the higher run number.
type Order = Reverse<(Vec<u8>, Reverse<Version>, Reverse<u32>)>;

/// Builds directory `number` from the manifest's runs and leaves it open, marked as the manifest is. An index that
/// fails while it is being built is begun anew, a few times.
pub(crate) async fn rebuild<E: Env>(
    env: &E,
    partition: PartitionId,
    manifest: &Manifest,
    number: u32,
) -> Result<(), Error> {
    let mut attempts = 1;
    loop {
        match rebuild_once(env, partition, manifest, number).await {
            Err(Error::Index(what)) if attempts < 3 => {
                env.log(Level::Warn, format!("partition {partition}: the rebuild failed and begins anew: {what}"));
                attempts += 1;
            }
            other => return other,
        }
    }
}

async fn rebuild_once<E: Env>(env: &E, partition: PartitionId, manifest: &Manifest, number: u32) -> Result<(), Error> {
    let total: u64 = manifest.runs.iter().map(|r| r.entries).sum();
    let say = |level, text: String| env.log(level, format!("partition {partition}: {text}"));
    say(Level::Warn, format!("rebuilding the index from {} runs with {total} entries", manifest.runs.len()));
    let mut sources: Vec<Source<E>> = Vec::new();
    for run in &manifest.runs {
        let reader = RunReader::open(env, partition, run.number).await?;
        sources.push(Source { number: run.number, reader, entries: VecDeque::new() });
    }
    let index = env.index();
    let failed = |e: IndexError| Error::Index(e.0);
    index.open(number, true).await.map_err(failed)?;
    index.ingest_begin(manifest.mark).await.map_err(failed)?;
    let mut heap: BinaryHeap<(Order, usize)> = BinaryHeap::new();
    let mut heads: Vec<Option<RunEntry>> = Vec::new();
    for (i, source) in sources.iter_mut().enumerate() {
        let head = source.next().await?;
        if let Some(entry) = &head {
            heap.push((order(entry, source.number), i));
        }
        heads.push(head);
    }
    let (mut chunk, mut last, mut read, mut live) = (Vec::new(), None::<Vec<u8>>, 0u64, 0u64);
    while let Some((_, i)) = heap.pop() {
        let next = sources[i].next().await?;
        if let Some(entry) = &next {
            heap.push((order(entry, sources[i].number), i));
        }
        let Some(entry) = std::mem::replace(&mut heads[i], next) else {
            unreachable!("a source in the heap has a head")
        };
        read += 1;
        if read.is_multiple_of(PROGRESS) {
            say(Level::Info, format!("rebuilding the index: {read} of {total} entries"));
        }
        if last.as_deref() == Some(entry.key.as_slice()) {
            continue;
        }
        if matches!(entry.settled, Settled::Pointer(_)) {
            live += 1;
            encode_entry(&entry.key, entry.version, &entry.settled, &mut chunk);
        }
        last = Some(entry.key);
        if chunk.len() >= CHUNK_BYTES {
            index.ingest_chunk(std::mem::take(&mut chunk)).await.map_err(failed)?;
            env.give_way().await;
        }
    }
    if !chunk.is_empty() {
        index.ingest_chunk(chunk).await.map_err(failed)?;
    }
    index.ingest_finish().await.map_err(failed)?;
    say(Level::Info, format!("the index is rebuilt: {live} keys from {read} entries"));
    Ok(())
}

fn order(entry: &RunEntry, run: u32) -> Order {
    Reverse((entry.key.clone(), Reverse(entry.version), Reverse(run)))
}
