//! Runs become fewer, beside checkpoints and commits.
//!
//! The runs of a partition together are what the index can be rebuilt from, so nothing of them may get lost, and there must not
//! be too many. Two things are made of them: one run of the newest ones, when there are many of about a size ([`tiers`]), or a base
//! run of all, without tombstones, when they have become much longer than what is alive.
//!
//! A merge of everything takes as long as the partition has keys, so no gate is held for it. Runs never change: a merge reads
//! those of its plan while checkpoints add newer ones behind them, and then takes the place of exactly those, in one change of
//! the manifest, if all of them are still there. If a FlushDB has retired them meanwhile, it came to nothing. The order of runs
//! is their place in the manifest, since the number of a merged run says nothing about its age.
//!
//! A run that cannot be read is replaced from the index, which has what the runs have. That one holds `ingest_gate`: pages of the
//! index that are read beside ingestions would not be of one version.

use crate::checkpoint::GROUP;
use crate::env::{Env, Level, Sabotage};
use crate::error::Error;
use crate::index::Index;
use crate::manifest::{Manifest, RunSummary, sync_names};
use crate::partition::Core;
use crate::run::{CHUNK_BYTES, RunWriter, encode_entry};
use crate::run_merge::{Merge, tiers};
use crate::stats::add;
use crate::sync::Pass;
use crate::types::Settled;
use std::rc::Rc;

/// What becomes one run.
struct Plan {
    /// Their numbers, oldest first: neighbours in the manifest.
    runs: Vec<u32>,
    /// The newest of them, with what was alive as of it.
    last: RunSummary,
    /// They are all runs that there are.
    base: bool,
}

/// A run that is being written.
struct Output<E: Env> {
    writer: RunWriter<E>,
    chunk: Vec<u8>,
    entries: u64,
}

impl<E: Env> Core<E> {
    /// Merges runs until none are due, in a task of its own, unless one is at work.
    pub(crate) fn start_merging(self: &Rc<Self>) {
        if self.closing.get() || self.merging.replace(true) {
            return;
        }
        let core = self.clone();
        self.env.spawn(async move {
            let turn = core.merge_gate.enter().await;
            core.merge_what_is_due().await;
            drop(turn);
            core.merging.set(false);
        });
    }

    /// Merges runs until none are due, or one merge fails: the next checkpoint tries again.
    pub(crate) async fn merge_what_is_due(self: &Rc<Self>) {
        loop {
            let merged = match self.merge_once().await {
                Err(error @ Error::Corrupt { .. }) => {
                    self.log(
                        Level::Error,
                        format_args!("{error}; a run is written from the index in the place of all runs"),
                    );
                    self.replace_from_index().await
                }
                other => other,
            };
            match merged {
                Ok(true) => {}
                Ok(false) | Err(Error::ShuttingDown) => return,
                Err(error) => {
                    self.log(Level::Warn, format_args!("runs are not merged for now: {error}"));
                    return;
                }
            }
        }
    }

    fn plan_merge(&self) -> Option<Plan> {
        let m = self.manifest.get();
        let entries: Vec<u64> = m.runs.iter().map(|r| r.entries).collect();
        let base = entries.len() >= 2 && entries.iter().sum::<u64>() > 2 * m.keys + self.settings.base_run_slack;
        let count = if base { entries.len() } else { tiers(&entries) };
        let runs = m.runs[m.runs.len() - count..].iter().map(|r| r.number).collect();
        let last = m.runs.last().filter(|_| count > 0)?;
        Some(Plan { runs, last: RunSummary { live: m.live.clone(), ..last.clone() }, base })
    }

    /// Carries out one merge; answers whether another one may be due.
    async fn merge_once(self: &Rc<Self>) -> Result<bool, Error> {
        let Some(plan) = self.plan_merge() else { return Ok(false) };
        let number = self.manifest.update(Manifest::take_number).await?;
        let merged = match self.write_merged(number, &plan).await {
            Ok(summary) => self.replace_runs(&plan.runs, summary).await,
            Err(error) => Err(error),
        };
        match merged {
            Ok(true) => {
                let stats = &self.stats;
                if plan.base {
                    add(&stats.base_runs, 1)
                } else {
                    add(&stats.runs_merged, plan.runs.len() as u64)
                }
                Ok(true)
            }
            came_to_nothing => {
                self.leftovers.remove_after_failure(crate::names::run(number)).await;
                // Runs that are not there any more cannot be read, either.
                if self.place_of(&plan.runs).is_none() { Ok(true) } else { came_to_nothing }
            }
        }
    }

    /// Where these runs are in the manifest, side by side.
    fn place_of(&self, runs: &[u32]) -> Option<usize> {
        let m = self.manifest.get();
        let numbers: Vec<u32> = m.runs.iter().map(|r| r.number).collect();
        numbers.windows(runs.len()).position(|window| window == runs)
    }

    /// Puts a run in the place of those that it was made of; answers `false` if they are not there any more.
    async fn replace_runs(&self, runs: &[u32], summary: RunSummary) -> Result<bool, Error> {
        let summary = RunSummary { live: Vec::new(), ..summary };
        let replaced = self
            .update_manifest(|m| {
                let numbers: Vec<u32> = m.runs.iter().map(|r| r.number).collect();
                let place = numbers.windows(runs.len()).position(|window| window == runs);
                if let Some(at) = place {
                    m.runs.splice(at..at + runs.len(), [summary]);
                }
                place.is_some()
            })
            .await?;
        if replaced {
            for run in runs {
                // The manifest names them no more, whatever becomes of the files: the next purge or opening tries again.
                if let Err(error) = self.remove_run(*run).await {
                    self.log(Level::Warn, format_args!("a run that was merged is still there: {error}"));
                    self.leftovers.add(crate::names::run(*run));
                }
            }
        }
        Ok(replaced)
    }

    async fn begin_output(&self, number: u32) -> Result<Output<E>, Error> {
        Ok(Output { writer: RunWriter::create(&self.env, self.id, number).await?, chunk: Vec::new(), entries: 0 })
    }

    async fn push(&self, output: &mut Output<E>, key: &[u8], version: u64, settled: &Settled) -> Result<(), Error> {
        output.entries += 1;
        encode_entry(key, version, settled, &mut output.chunk);
        if output.chunk.len() < CHUNK_BYTES {
            return Ok(());
        }
        if self.closing.get() {
            return Err(Error::ShuttingDown);
        }
        output.writer.push(&output.chunk).await?;
        output.chunk.clear();
        self.env.give_way().await;
        Ok(())
    }

    async fn finish_output(&self, mut output: Output<E>, summary: &RunSummary) -> Result<(), Error> {
        if !output.chunk.is_empty() {
            output.writer.push(&output.chunk).await?;
        }
        output.writer.finish(summary).await?;
        Ok(sync_names(&self.env).await?)
    }

    /// Tombstones stay where there are older runs, which may have what they bury.
    async fn write_merged(&self, number: u32, plan: &Plan) -> Result<RunSummary, Error> {
        let mut merge = Merge::open(&self.env, self.id, plan.runs.iter().copied()).await?;
        let mut output = self.begin_output(number).await?;
        let drops_all = self.env.sabotage() == Some(Sabotage::TierWithoutTombstones);
        let mut since = 0;
        while let Some(entry) = merge.next().await? {
            since += 1;
            if since >= GROUP * 8 {
                // Of many tombstones nothing is written that would give way.
                since = 0;
                if self.closing.get() {
                    return Err(Error::ShuttingDown);
                }
                self.env.give_way().await;
            }
            if entry.settled != Settled::Tombstone || !(plan.base || drops_all) {
                self.push(&mut output, &entry.key, entry.version, &entry.settled).await?;
            }
        }
        let (entries, keys) = (output.entries, plan.last.keys);
        if plan.base && entries != keys {
            let runs = plan.runs.len();
            return Err(Error::Corrupt {
                file: crate::names::run(plan.last.number),
                offset: 0,
                what: format!("{runs} runs up to it have {entries} live keys where {keys} were counted"),
            });
        }
        let summary = RunSummary { number, base: plan.base, entries, used: Vec::new(), ..plan.last.clone() };
        self.finish_output(output, &summary).await?;
        Ok(summary)
    }

    /// Writes what the index has in the place of all runs.
    async fn replace_from_index(self: &Rc<Self>) -> Result<bool, Error> {
        let still = self.ingest_gate.enter().await;
        let (runs, last) = {
            let m = self.manifest.get();
            let runs: Vec<u32> = m.runs.iter().map(|r| r.number).collect();
            let Some(last) = m.runs.last() else { return Ok(false) };
            (runs, RunSummary { mark: m.mark, keys: m.keys, live: m.live.clone(), ..last.clone() })
        };
        let number = self.manifest.update(Manifest::take_number).await?;
        let written = match self.write_from_index(number, last, &still).await {
            Ok(summary) => self.replace_runs(&runs, summary).await,
            Err(error) => Err(error),
        };
        match written {
            Ok(true) => add(&self.stats.base_runs, 1),
            _ => self.leftovers.remove_after_failure(crate::names::run(number)).await,
        }
        written
    }

    async fn write_from_index(
        self: &Rc<Self>,
        number: u32,
        last: RunSummary,
        still: &Pass,
    ) -> Result<RunSummary, Error> {
        let view = self.ask_index_within(Some(still), async |index: &E::Index| index.view().await).await?;
        let mut output = self.begin_output(number).await?;
        let mut after = None;
        loop {
            let from: Option<Vec<u8>> = after.clone();
            let scan = async |index: &E::Index| index.scan(&view, from.clone(), GROUP).await;
            let Some(page) = self.ask_index_within(Some(still), scan).await? else {
                return Err(Error::Index("it was replaced while a run was made of it".to_string()));
            };
            let Some((last, ..)) = page.last() else { break };
            after = Some(last.clone());
            for (key, version, settled) in page {
                if settled != Settled::Tombstone {
                    self.push(&mut output, &key, version, &settled).await?;
                }
            }
            self.env.give_way().await;
        }
        let (entries, keys) = (output.entries, last.keys);
        if entries != keys {
            return Err(Error::Index(format!("the index has {entries} live keys where {keys} were counted")));
        }
        let summary = RunSummary { number, base: true, entries, used: Vec::new(), ..last };
        self.finish_output(output, &summary).await?;
        Ok(summary)
    }
}
