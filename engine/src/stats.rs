//! Counters of one partition: plain integers, read by `stat`. Units are in the names.

use std::cell::Cell;

/// Counts since the opening.
#[derive(Default)]
pub struct Stats {
    /// Transactions prepared.
    pub commits: Cell<u64>,
    /// Transactions refused for a conflict.
    pub conflicts: Cell<u64>,
    /// Batches appended.
    pub batches: Cell<u64>,
    /// Empty batches appended to vouch for the last one.
    pub idle_vouchers: Cell<u64>,
    /// Bytes of bodies appended.
    pub log_bytes: Cell<u64>,
    /// Commits that waited for the overlay to shrink.
    pub waits_for_overlay: Cell<u64>,
    /// Commits that waited for log space.
    pub waits_for_log_space: Cell<u64>,
    /// Checkpoints finished.
    pub checkpoints: Cell<u64>,
    /// Runs merged into a base run.
    pub base_runs: Cell<u64>,
    /// Runs merged with others of their size.
    pub runs_merged: Cell<u64>,
    /// Snapshots given up, for age or memory.
    pub snapshots_given_up: Cell<u64>,
    /// Keys that a checkpoint asked the index for.
    pub priors_asked: Cell<u64>,
    /// Times the index was reopened or rebuilt.
    pub index_mended: Cell<u64>,
    /// Segments purged.
    pub segments_purged: Cell<u64>,
}

/// Adds to a counter.
pub fn add(counter: &Cell<u64>, n: u64) {
    counter.set(counter.get() + n);
}

/// What `stat` tells of a partition.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the names carry their units; docs/operations.md explains each")]
pub struct Status {
    pub partition: u8,
    pub role: crate::manifest::Role,
    pub epoch: u64,
    pub epoch_id: u64,
    pub version: u64,
    pub keys: u64,
    pub keys_as_of_version: u64,
    /// Followers that must hold a commit.
    pub min_replicas: u64,
    /// Nodes of the list in force, and their partitions.
    pub members: Vec<(u64, u8)>,
    pub open_snapshots: u64,
    pub overlay_bytes: u64,
    pub wal_segments: u64,
    pub wal_spares: u64,
    pub wal_checkpointed_bytes: u64,
    pub wal_not_checkpointed_bytes: u64,
    /// All that is used of segments; the settled part of the active one is in neither of the two above.
    pub wal_used_bytes: u64,
    pub wal_oldest_version: u64,
    pub value_files: u64,
    pub value_used_bytes: u64,
    pub value_live_bytes: u64,
    /// Of what was used when the manifest was written last.
    pub value_garbage_bytes: u64,
    pub value_pinned_bytes: u64,
    /// Most bytes of checkpointed log, and of value files that only it points into, that are kept.
    pub log_share_bytes: u64,
    pub runs: u64,
    pub run_entries: u64,
    pub holds: Vec<(String, u64, u64)>,
    pub cache_hits: u64,
    pub cache_misses: u64,
    pub commits: u64,
    pub conflicts: u64,
    pub batches: u64,
    pub idle_vouchers: u64,
    pub log_bytes: u64,
    pub waits_for_overlay: u64,
    pub waits_for_log_space: u64,
    pub checkpoints: u64,
    pub base_runs: u64,
    /// See [`Stats`].
    pub runs_merged: u64,
    pub snapshots_given_up: u64,
    /// Keys that a checkpoint asked the index for.
    pub priors_asked: u64,
    /// Compactions of the index since it was opened.
    pub compactions: u64,
    /// Flushes that the logs of this partition's core shared.
    pub shared_flushes: u64,
    /// The log writes that those covered.
    pub shared_flush_writes: u64,
    pub index_mended: u64,
    pub segments_purged: u64,
}
