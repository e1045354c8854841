//! What a person may choose for a partition: plain values, no behaviour. Sizes are bytes.

use std::time::Duration;

/// Settings of one partition.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Length of a log segment.
    pub wal_max_size: u64,
    /// How long checkpointed log segments are kept.
    pub wal_retention: Duration,
    /// How many bytes of checkpointed log are kept (this partition's share).
    pub wal_retention_bytes: u64,
    /// Bytes at the end of the log's space that are left to deletes where no more can be had (this partition's share); at most an
    /// eighth of a segment, with what is left to a FlushDB.
    pub delete_reserve: u64,
    /// Cut a damaged log instead of refusing to open.
    pub truncate_corrupt_wal: bool,
    /// Longest key.
    pub max_key_size: usize,
    /// Longest value.
    pub max_value_size: usize,
    /// Most bytes a transaction may write, and read: keys and values, 64 at least for each key.
    pub max_tx_size: u64,
    /// Longest life of a transaction.
    pub max_tx_age: Duration,
    /// Values of at least this size are written once, to the value log.
    pub value_separation: usize,
    /// Length at which the value log goes on in a new file.
    pub value_file_size: u64,
    /// Space assured ahead of the value log's end.
    pub value_allocation: u64,
    /// Keys of a transaction that are worked on at once: one with more is worked on in pieces.
    pub keys_at_once: usize,
    /// Value files that are kept open, besides those that are being written.
    pub value_handles: usize,
    /// Most bytes in the overlay: commits wait beyond it.
    pub overlay_budget: u64,
    /// Overlay bytes at which a checkpoint starts.
    pub checkpoint_bytes: u64,
    /// Log bytes since the last checkpoint at which the next one starts.
    pub checkpoint_wal_bytes: u64,
    /// A checkpoint starts after this long if anything changed.
    pub checkpoint_interval: Duration,
    /// Bytes of the cache of hot pointers and values.
    pub cache_bytes: u64,
    /// Runs are merged into one when their entries pass twice the live keys plus this.
    pub base_run_slack: u64,
    /// Followers that must hold a commit, for a new partition.
    pub min_replicas: u32,
    /// How long a commit waits for its followers.
    pub quorum_timeout: Duration,
    /// A copy for another node is sent at most so fast, bytes per second; 0 for no limit.
    pub copy_rate: u64,
    /// Most bytes of log that a consumer's hold may ask for.
    pub max_consumer_hold: u64,
    /// An idle log vouches for its last batch after this long.
    pub idle_vouch: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            wal_max_size: 10 << 20,
            wal_retention: Duration::from_secs(2 * 3600),
            wal_retention_bytes: 64 << 20,
            delete_reserve: 1 << 20,
            truncate_corrupt_wal: false,
            max_key_size: 65_000,
            max_value_size: 4 << 20,
            max_tx_size: 64 << 20,
            max_tx_age: Duration::from_secs(30),
            value_separation: 4096,
            value_file_size: 256 << 20,
            value_allocation: 8 << 20,
            // Each takes some microseconds where memory is cold.
            keys_at_once: 256,
            value_handles: 64,
            overlay_budget: 32 << 20,
            checkpoint_bytes: 8 << 20,
            checkpoint_wal_bytes: 64 << 20,
            checkpoint_interval: Duration::from_secs(60),
            cache_bytes: 16 << 20,
            base_run_slack: 100_000,
            min_replicas: 0,
            quorum_timeout: Duration::from_secs(5),
            copy_rate: 64 << 20,
            max_consumer_hold: 64 << 30,
            idle_vouch: Duration::from_millis(50),
        }
    }
}
