//! Keeping the index usable: asking it, reopening it after an error, rebuilding it from the runs.
//!
//! The index is never the truth. Whatever is wrong with it (missing, damaged, stale, poisoned) is answered by a new one
//! built from the runs that the manifest names; the log is replayed on top by recovery, or is in the overlay already.

use crate::env::{Env, Level};
use crate::error::Error;
use crate::index::{Index, IndexError};
use crate::manifest::{Manifest, Mark};
use crate::partition::Core;
use crate::run::{CHUNK_BYTES, encode_entry};
use crate::run_merge::Merge;
use crate::stats::add;
use crate::sync::Pass;
use crate::types::{PartitionId, Settled};
use std::rc::Rc;

/// A line is logged after this many entries of a rebuild.
const PROGRESS: u64 = 1_000_000;

impl<E: Env> Core<E> {
    /// Asks the index. After a first error it is reopened, after a second one built anew: damage inside of it shows only
    /// to those who ask for what is damaged.
    pub(crate) async fn ask_index<T>(
        self: &Rc<Self>,
        question: impl AsyncFn(&E::Index) -> Result<T, IndexError>,
    ) -> Result<T, Error> {
        self.ask_index_within(None, question).await
    }

    /// The same; who is in the `ingest_gate` already shows its pass.
    pub(crate) async fn ask_index_within<T>(
        self: &Rc<Self>,
        feeding: Option<&Pass>,
        question: impl AsyncFn(&E::Index) -> Result<T, IndexError>,
    ) -> Result<T, Error> {
        let mut cure = Cure::Reopen;
        let mut last = String::new();
        for _ in 0..4 {
            // Not while it is being mended: a half-built index answers wrongly.
            drop(self.index_gate.enter().await);
            if self.ended.get() {
                return Err(Error::ShuttingDown);
            }
            if self.manifest.get().index == 0 {
                // FlushDB came in between; whoever asked has lost its snapshot to it.
                return Err(Error::Index("everything was flushed".to_string()));
            }
            let epoch = self.index_epoch.get();
            let answer = match self.index_bad.get() {
                true => Err(IndexError::Failed("it could not be mended before".to_string())),
                false => question(self.env.index()).await,
            };
            match answer {
                Ok(answer) if self.index_epoch.get() == epoch => return Ok(answer),
                // It was replaced while it answered.
                Ok(_) => continue,
                // Nothing is wrong with it, and to reopen it takes what is lacking.
                Err(error @ IndexError::Refused(_)) => return Err(error.into()),
                Err(error) => {
                    self.log(Level::Warn, format_args!("the index did not answer: {error}"));
                    last = error.to_string();
                    let _feeding = match feeding {
                        Some(_) => None,
                        None => Some(self.ingest_gate.enter().await),
                    };
                    self.mend_index(epoch, None, cure).await?;
                    cure = Cure::Rebuild;
                }
            }
        }
        Err(Error::Index(last))
    }

    /// Cures the index if nobody did since `epoch`: reopens it, and rebuilds it if it is not where the manifest is (or at
    /// `hoped`, the mark of an ingestion in doubt), or if reopening did not help. Answers where it is. The caller is in
    /// the `ingest_gate`.
    pub(crate) async fn mend_index(
        self: &Rc<Self>,
        epoch: u64,
        hoped: Option<Mark>,
        cure: Cure,
    ) -> Result<Mark, Error> {
        let _turn = self.index_gate.enter().await;
        if self.ended.get() {
            return Err(Error::ShuttingDown);
        }
        let (number, mark) = {
            let m = self.manifest.get();
            (m.index, m.mark)
        };
        if number == 0 || (self.index_epoch.get() != epoch && !self.index_bad.get()) {
            return Ok(mark);
        }
        self.index_epoch.set(epoch + 1);
        self.index_bad.set(true);
        add(&self.stats.index_mended, 1);
        let cured = self.cure_index(number, mark, hoped, cure).await;
        match &cured {
            Ok(_) => self.index_bad.set(false),
            // Half-built, or of another time: it must not answer.
            Err(_) => self.env.index().close().await,
        }
        cured
    }

    async fn cure_index(
        self: &Rc<Self>,
        number: u32,
        mark: Mark,
        hoped: Option<Mark>,
        cure: Cure,
    ) -> Result<Mark, Error> {
        if cure == Cure::Reopen {
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
                // Its directory is well, and is opened when there is what it takes.
                Err(error @ IndexError::Refused(_)) => return Err(error.into()),
                Err(error) => self.log(Level::Warn, format_args!("the index cannot be reopened: {error}")),
            }
        }
        let fresh = self.manifest.update(Manifest::take_number).await?;
        loop {
            let manifest = self.manifest.get().clone();
            match rebuild(&self.env, self.id, &manifest, fresh).await {
                // Merged meanwhile, and removed before they were opened.
                Err(_) if self.manifest.get().runs != manifest.runs => {}
                other => break other?,
            }
        }
        self.update_manifest(|m| m.index = fresh).await?;
        // What is left of the old one is removed by the next opening if not now.
        let _ = self.env.index().remove(number).await;
        Ok(mark)
    }
}

/// What to try first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cure {
    /// It may have lost its footing.
    Reopen,
    /// That did not help.
    Rebuild,
}

/// Whether an index with mark `found` holds what the manifest's mark says: the log position may have moved on since.
pub(crate) fn same_contents(found: Mark, mark: Mark) -> bool {
    found.run == mark.run && found.version <= mark.version
}

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
    say(Level::Info, format!("rebuilding the index from {} runs with {total} entries", manifest.runs.len()));
    let mut merge = Merge::open(env, partition, manifest.runs.iter().map(|r| r.number)).await?;
    let index = env.index();
    let failed = Error::from;
    index.open(number, true).await.map_err(failed)?;
    index.ingest_begin(manifest.mark).await.map_err(failed)?;
    let (mut chunk, mut live, mut said) = (Vec::new(), 0u64, 0);
    while let Some(entry) = merge.next().await? {
        if merge.read / PROGRESS > said {
            said = merge.read / PROGRESS;
            say(Level::Info, format!("rebuilding the index: {} of {total} entries", merge.read));
        }
        if matches!(entry.settled, Settled::Pointer(_)) {
            live += 1;
            encode_entry(&entry.key, entry.version, &entry.settled, &mut chunk);
        }
        if chunk.len() >= CHUNK_BYTES {
            index.ingest_chunk(std::mem::take(&mut chunk)).await.map_err(failed)?;
            env.give_way().await;
        }
    }
    if !chunk.is_empty() {
        index.ingest_chunk(chunk).await.map_err(failed)?;
    }
    index.ingest_finish().await.map_err(failed)?;
    say(Level::Info, format!("the index is rebuilt: {live} keys from {} entries", merge.read));
    Ok(())
}
