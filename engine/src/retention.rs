//! How long the log is kept, and for whom.
//!
//! Segments wholly below the checkpoint are kept until they are older than `wal_retention` or their bytes, together with
//! those of value files that only they point into, pass the partition's share of `wal_retention_bytes`, whichever comes
//! first. A named hold keeps segments longer, up to its own limit: beyond it the hold is broken, and its owner is told
//! "purged" when it comes back. Log that is not checkpointed is bounded by the overlay, not by this.

use crate::disk::BLOCK;
use crate::env::{Env, Level};
use crate::error::Error;
use crate::index::Index;
use crate::manifest::{Hold, Manifest, Segment, ValueFile};
use crate::names;
use crate::partition::{Core, Partition};
use crate::stats::{Status, add};
use crate::types::{LogPosition, Version};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// What a purge decision looks at: oldest first.
struct Kept {
    segments: Vec<Segment>,
    /// The first version behind each segment.
    ends: Vec<Version>,
    /// Bytes of value files pinned by log up to and including each segment only.
    pinned: Vec<u64>,
}

/// How many of the oldest checkpointed segments can go.
fn purgeable(kept: &Kept, limit: u64, oldest_ms: u64, holds: &[Hold]) -> usize {
    let bytes = |i: usize| u64::from(kept.segments[i].used) + kept.pinned[i];
    // From this one on.
    let mut left = (0..kept.segments.len()).map(bytes).sum::<u64>();
    let mut gone = 0;
    for i in 0..kept.segments.len() {
        let expired = kept.segments[i].checkpointed_ms.is_some_and(|at| at < oldest_ms);
        let over = left > limit;
        let held = holds.iter().any(|h| h.version < kept.ends[i] && left <= h.limit_bytes);
        if !(expired || over) || held {
            break;
        }
        left -= bytes(i);
        gone = i + 1;
    }
    gone
}

impl<E: Env> Core<E> {
    fn kept(&self, manifest: &Manifest) -> Kept {
        let all = self.wal().segments();
        let checkpointed: Vec<Segment> = all.iter().copied().filter(|s| s.checkpointed_ms.is_some()).collect();
        let ends = (0..checkpointed.len()).map(|i| all.get(i + 1).map_or(Version::MAX, |s| s.first_version)).collect();
        let mut pinned = vec![0; checkpointed.len()];
        let doomed = self.doomed_values.borrow();
        for file in manifest.values.iter().filter(|f| !doomed.contains(&f.number)) {
            // A segment pins what was retired in it: behind its header, or at the very beginning of the next one.
            let retired = file.retired.filter(|at| *at > LogPosition::default());
            let segment =
                retired.map(|at| checkpointed.partition_point(|s| LogPosition::new(s.number + 1, BLOCK as u32) < at));
            if let Some(pinned) = segment.and_then(|i| pinned.get_mut(i)) {
                *pinned += file.used;
            }
        }
        Kept { segments: checkpointed, ends, pinned }
    }

    /// The time, milliseconds, that kept log is stamped with. Stamps move when the wall clock was set.
    async fn time_of_ages(&self) -> u64 {
        let (now, wall_ms) = (self.env.now(), self.env.wall_ms());
        if let Some(step_ms) = self.age_clock.follow(now, wall_ms) {
            let (seconds, way) = (step_ms.unsigned_abs() / 1000, if step_ms > 0 { "forward" } else { "back" });
            self.log(
                Level::Warn,
                format_args!("the wall clock was set {way} by {seconds} s; the log is kept for as long as before"),
            );
            self.wal().move_stamps(step_ms);
            self.stamps_moved.set(true);
        }
        // The next opening compares them with the wall clock as it is then.
        if self.stamps_moved.get() && self.update_manifest(|_| ()).await.is_ok() {
            self.stamps_moved.set(false);
        }
        self.age_clock.ms(now)
    }

    /// Lets go of log that nobody may ask for any more. Called after checkpoints and once in a while.
    pub(crate) async fn purge(self: &Rc<Self>) -> Result<(), Error> {
        // One at a time: what one has decided to remove, another must not decide about again.
        let _turn = self.purge_gate.enter().await;
        let now = self.time_of_ages().await;
        let oldest_ms = now.saturating_sub(self.settings.wal_retention.as_millis() as u64);
        let (numbers, files) = {
            let manifest = self.manifest.get();
            self.wal().checkpointed(manifest.mark.position, now);
            let kept = self.kept(&manifest);
            let pins = self.pins.borrow();
            let holds: Vec<Hold> = manifest.holds.iter().chain(pins.holds()).cloned().collect();
            let gone = purgeable(&kept, self.retention_bytes.get(), oldest_ms, &holds);
            let numbers: Vec<u32> = kept.segments[..gone].iter().map(|s| s.number).collect();
            // In one step with the count, so that nobody ever sees more kept than is allowed.
            self.wal().doom(&numbers);
            let oldest = self.wal().oldest().map_or(self.wal().end(), |s| LogPosition::new(s.number, BLOCK as u32));
            let free = |f: &&ValueFile| {
                let coming_in = self.copying.get() && f.retired == Some(LogPosition::default());
                f.retired.is_some_and(|at| at <= oldest) && !coming_in && !pins.has_values(f.number)
            };
            let retired = manifest.values.iter().filter(free);
            let files: Vec<u32> = retired.map(|f| f.number).collect();
            *self.doomed_values.borrow_mut() = files.clone();
            (numbers, files)
        };
        self.leftovers.remove_all().await?;
        if files.is_empty() && !self.wal().has_doomed() {
            return Ok(());
        }
        let let_go = async || self.update_manifest_freeing(|m| m.values.retain(|f| !files.contains(&f.number))).await;
        self.or_without_spares(let_go).await?;
        for file in files {
            self.values.forget(file);
            self.leftovers.add(names::values(file));
        }
        self.leftovers.remove_all().await?;
        self.wal().remove_doomed().await?;
        add(&self.stats.segments_purged, numbers.len() as u64);
        self.manifest.keep_spare().await;
        Ok(())
    }

    /// What frees space must not fail for want of it: where there is none, the spares of the log go, and it is tried again.
    pub(crate) async fn or_without_spares<T>(&self, attempt: impl AsyncFn() -> Result<T, Error>) -> Result<T, Error> {
        match attempt().await {
            Err(Error::NoSpace(_)) if self.wal().give_up_spares().await => attempt().await,
            other => other,
        }
    }

    /// What follows an append: a spare for the next segment, and a checkpoint when it is due.
    pub(crate) fn after_append(self: &Rc<Self>) {
        if self.wal().lacks_spare() {
            let core = self.clone();
            self.env.spawn(async move {
                if let Err(error) = core.wal().keep_spare().await {
                    core.log(Level::Debug, format_args!("no spare segment yet: {error}"));
                }
            });
        }
        if self.checkpoint_due() && !self.checkpoint_wanted.replace(true) {
            self.housekeeping.notify();
        }
    }

    fn not_checkpointed_bytes(&self) -> u64 {
        self.wal().used_from(self.manifest.get().mark.position)
    }

    fn checkpoint_due(&self) -> bool {
        self.overlay.borrow().frozen_last().is_some()
            || self.overlay.borrow().active_bytes() >= self.checkpoint_bytes.get()
            || self.not_checkpointed_bytes() >= self.checkpoint_wal_bytes.get()
    }
}

/// The task that checkpoints when it is time, ends snapshots that are too old, and purges.
pub(crate) async fn keep_house<E: Env>(core: Rc<Core<E>>) {
    const TICK: Duration = Duration::from_millis(250);
    /// A snapshot is given up when it is older than this; a tenth of it when there is hardly any room left.
    const GRACE: Duration = Duration::from_secs(1);
    core.manifest.keep_spare().await;
    let mut last_checkpoint = core.env.now();
    while !core.closing.get() {
        crate::sync::first_of(core.housekeeping.notified(), core.env.sleep(TICK)).await;
        if core.closing.get() {
            break;
        }
        let now = core.env.now();
        let mut gone =
            core.snapshots.give_up_older_than(now.saturating_sub(core.settings.max_tx_age + TICK), Version::MAX);
        let (held, frozen) = {
            let overlay = core.overlay.borrow();
            (overlay.bytes(), overlay.frozen_last())
        };
        let budget = core.overlay_budget.get();
        if let Some(last) = frozen.filter(|_| held > budget / 2) {
            // A checkpoint waits for these: the longer they are open and the less room is left, the sooner they go.
            let grace = if held > budget / 8 * 7 { GRACE / 10 } else { GRACE };
            gone += core.snapshots.give_up_older_than(now.saturating_sub(grace), last);
        }
        add(&core.stats.snapshots_given_up, gone as u64);
        let idle_changes = core.overlay.borrow().bytes() > 0 || core.not_checkpointed_bytes() > 0;
        let timed = now.saturating_sub(last_checkpoint) >= core.settings.checkpoint_interval && idle_changes;
        let postponed = core.checkpoint_retry.get().is_some_and(|(until, _)| now < until);
        if !postponed && (core.checkpoint_wanted.get() || core.checkpoint_due() || timed) {
            last_checkpoint = now;
            let (worker, partition) = (core.clone(), Partition(core.clone()));
            if core.checkpoint_running.replace(true) {
                continue;
            }
            core.env.spawn(async move {
                // A refusal was logged, and is told to those who wait for room.
                let _ = partition.checkpoint().await;
                worker.checkpoint_running.set(false);
                worker.checkpoint_wanted.set(false);
                // Who asked for another one while this one ended asks again.
                worker.look_for_room();
            });
        } else {
            let tidied = match core.purge().await {
                Ok(()) => core.wal().trim_spares().await,
                refused => refused,
            };
            if let Err(error) = tidied {
                core.log(Level::Warn, format_args!("old log could not be removed: {error}"));
            }
        }
    }
    core.log_ended.raise(core.log_ended.get() + 1);
}

impl<E: Env> Partition<E> {
    /// For an opening, before anything else: no log goes for its size until [`Partition::set_retention_bytes`] tells the share.
    pub fn keep_what_there_is(&self) {
        let core = &self.0;
        let retired = core.manifest.get().values.iter().filter(|f| f.retired.is_some()).map(|f| f.used).sum::<u64>();
        let held = core.wal().used_from(LogPosition::default()) + retired;
        core.retention_bytes.set(core.retention_bytes.get().max(held));
    }

    /// The oldest version that the log still has (the next to come, if it has none).
    pub fn oldest_version(&self) -> Version {
        // What is prepared and not flushed will be in it.
        self.0.wal().oldest().map_or(self.0.flushed.get() + 1, |s| s.first_version)
    }

    /// Figures for `stat`.
    pub fn status(&self) -> Status {
        let core = &self.0;
        let manifest = core.manifest.get();
        let segments = core.wal().segments();
        let position = core.position_of(core.published.get());
        let kept = core.kept(&manifest);
        let pinned: u64 = kept.pinned.iter().sum();
        let (shared_flushes, shared_flush_writes) = core.wal().shared_counts();
        let live = manifest.live.iter().map(|(_, bytes)| bytes).sum();
        let written: BTreeMap<u32, u64> = core.values.used().into_iter().collect();
        let now_used = |f: &ValueFile| written.get(&f.number).map_or(f.used, |written| f.used.max(*written));
        Status {
            partition: core.id,
            role: manifest.leadership.role.clone(),
            epoch: position.epoch.number,
            epoch_id: position.epoch.id,
            version: position.version,
            keys: manifest.keys,
            keys_as_of_version: manifest.mark.version,
            min_replicas: u64::from(core.min_replicas()),
            members: self.members().nodes.iter().map(|member| member.key()).collect(),
            open_snapshots: core.snapshots.len() as u64,
            overlay_bytes: core.overlay.borrow().bytes(),
            wal_segments: segments.len() as u64,
            wal_spares: core.wal().spares() as u64,
            wal_checkpointed_bytes: kept.segments.iter().map(|s| u64::from(s.used)).sum(),
            wal_not_checkpointed_bytes: core.not_checkpointed_bytes(),
            wal_used_bytes: core.wal().used_from(LogPosition::default()),
            wal_oldest_version: self.oldest_version(),
            value_files: manifest.values.len() as u64,
            value_used_bytes: manifest.values.iter().map(now_used).sum(),
            value_live_bytes: live,
            value_garbage_bytes: manifest.values.iter().map(|f| f.used).sum::<u64>().saturating_sub(live),
            value_pinned_bytes: pinned,
            log_share_bytes: core.retention_bytes.get(),
            runs: manifest.runs.len() as u64,
            run_entries: manifest.runs.iter().map(|r| r.entries).sum(),
            holds: manifest.holds.iter().map(|h| (h.name.clone(), h.version, h.limit_bytes)).collect(),
            cache_hits: core.hot.borrow().hits,
            cache_misses: core.hot.borrow().misses,
            commits: core.stats.commits.get(),
            conflicts: core.stats.conflicts.get(),
            batches: core.stats.batches.get(),
            idle_vouchers: core.stats.idle_vouchers.get(),
            log_bytes: core.stats.log_bytes.get(),
            waits_for_overlay: core.stats.waits_for_overlay.get(),
            waits_for_log_space: core.stats.waits_for_log_space.get(),
            checkpoints: core.stats.checkpoints.get(),
            base_runs: core.stats.base_runs.get(),
            runs_merged: core.stats.runs_merged.get(),
            snapshots_given_up: core.stats.snapshots_given_up.get(),
            compactions: core.env.index().compactions(),
            shared_flushes,
            shared_flush_writes,
            priors_asked: core.stats.priors_asked.get(),
            index_mended: core.stats.index_mended.get(),
            segments_purged: core.stats.segments_purged.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::HoldOwner;

    fn kept(used: &[u32]) -> Kept {
        let segment = |(i, used): (usize, &u32)| Segment {
            number: i as u32 + 1,
            first_version: i as u64 * 10 + 1,
            used: *used,
            checkpointed_ms: Some(i as u64 * 1000),
        };
        Kept {
            segments: used.iter().enumerate().map(segment).collect(),
            ends: (0..used.len()).map(|i| i as u64 * 10 + 11).collect(),
            pinned: vec![0; used.len()],
        }
    }

    #[test]
    fn bytes_and_age_purge_and_holds_keep_within_their_limit() {
        let four = kept(&[100, 100, 100, 100]);
        assert_eq!(purgeable(&four, 400, 0, &[]), 0);
        assert_eq!(purgeable(&four, 250, 0, &[]), 2);
        assert_eq!(purgeable(&four, 400, 1500, &[]), 2, "two are older than 1500 ms");
        let hold =
            |version, limit_bytes| vec![Hold { name: "h".into(), version, limit_bytes, owner: HoldOwner::Operator }];
        assert_eq!(purgeable(&four, 0, 0, &hold(11, 300)), 1, "the second segment is wanted");
        assert_eq!(purgeable(&four, 0, 0, &hold(11, 200)), 2, "but not beyond the limit");
        assert_eq!(purgeable(&four, 0, 0, &hold(100, 1000)), 4, "a hold on the future keeps nothing");
    }
}
