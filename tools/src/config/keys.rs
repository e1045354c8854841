//! The one table of settings. From it come the keys of `turnstone.json`, the flags, the variables, their help, the sample
//! file and the fields of [`Config`].

use std::path::PathBuf;
use std::time::Duration;

use super::value::{Kind, Typed, Value};
use super::{Settled, Source};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// Milliseconds.
const SECOND: u64 = 1000;
const HOUR: u64 = 3600 * SECOND;
const DAY: u64 = 24 * HOUR;

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its name in `turnstone.json`.
    pub name: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// Its default, as it would be written.
    pub default: &'static str,
    /// Whether this version acts on it. One that is not in force yet is checked all the same.
    pub in_force: bool,
    /// Whether the sample file shows it.
    pub sample: bool,
    /// One line of help.
    pub about: &'static str,
}

impl Key {
    /// The long flag without its dashes: `wal-max-size`.
    pub fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// The environment variable: `TURNSTONE_WAL_MAX_SIZE`.
    pub fn variable(&self) -> String {
        format!("TURNSTONE_{}", self.name.to_ascii_uppercase())
    }
}

macro_rules! force {
    (now) => {
        true
    };
    (later) => {
        false
    };
}

macro_rules! sample {
    (shown) => {
        true
    };
    (hidden) => {
        false
    };
}

macro_rules! config_keys {
    ($($name:ident: $type:ty = $kind:expr, $default:literal, $force:ident, $sample:ident, $about:literal;)+) => {
        /// Every setting, in the order of the documentation.
        pub static KEYS: &[Key] = &[$(Key {
            name: stringify!($name),
            kind: $kind,
            default: $default,
            in_force: force!($force),
            sample: sample!($sample),
            about: $about,
        }),+];

        /// The settings of a node, each with its value and where that came from.
        #[derive(Debug, Clone)]
        pub struct Config {
            $(#[doc = $about] pub $name: $type,)+
            pub(super) settled: Vec<(Value, Source)>,
        }

        impl Config {
            /// Builds the fields from values in the order of [`KEYS`]. The error is the key whose kind does not fit
            /// its field, which only a mistake in the table can cause.
            pub(super) fn assemble(settled: &[Settled]) -> Result<Config, &'static str> {
                let mut rest = settled.iter();
                Ok(Config {
                    $($name: rest
                        .next()
                        .and_then(|settled| <$type>::typed(&settled.value))
                        .ok_or(stringify!($name))?,)+
                    settled: settled.iter().map(|settled| (settled.value.clone(), settled.source)).collect(),
                })
            }
        }
    };
}

config_keys! {
    port: String = Kind::Address, ":6379", now, shown,
        "TCP address to listen on; ':6379' and '6379' listen on all IPv4 addresses.";
    max_conns: u64 = Kind::Count(1, 1_000_000), "1000", now, shown,
        "Client connections at a time; one more is answered 'Max connections' and closed. Servers and admins have 32 places, \
         and a sixteenth of it, beyond.";
    number_of_partitions: u64 = Kind::Count(1, 16), "16", now, shown,
        "User partitions. It may grow later, but not shrink below what is on disk.";
    tls_cert_file: PathBuf = Kind::Path, "certs/server.crt", now, shown,
        "The server's certificate, relative to the home directory.";
    tls_key_file: PathBuf = Kind::Path, "certs/server.key", now, shown,
        "The server's private key, relative to the home directory.";
    tls_ca_file: PathBuf = Kind::Path, "certs/ca.crt", now, hidden,
        "The CA certificate that clients are checked against, relative to the home directory.";
    tls_client_auth: bool = Kind::Bool, "true", now, shown,
        "Whether clients must show a certificate; only true is possible.";
    wal_max_size: u64 = Kind::Size(64 * KIB, GIB), "10MB", now, shown,
        "Size of one write-ahead log segment.";
    wal_retention: Duration = Kind::Duration(0, 3650 * DAY), "2h", now, shown,
        "How long log is kept after it was checkpointed.";
    wal_retention_bytes: u64 = Kind::Size(0, 1024 * TIB), "1GiB", now, hidden,
        "Checkpointed log kept on this node, all partitions together; this or wal_retention ends it, whichever is first.";
    delete_reserve: u64 = Kind::Size(16 * MIB, TIB), "16MiB", now, hidden,
        "Log space on this node, all partitions together, that is left to deletes once the disk is full; at most an eighth of a \
         segment in each partition.";
    compaction_min_garbage: u64 = Kind::Size(0, 1024 * TIB), "1MB", later, shown,
        "Dead bytes in a value-log file from which it is worth collecting.";
    truncate_corrupt_wal: bool = Kind::Bool, "false", now, shown,
        "Start although the log is damaged, and cut it at the damage. What was committed behind it is lost.";
    executors: u64 = Kind::Count(0, 17), "0", now, hidden,
        "Cores to run on; 0 takes one per available CPU, 17 at most.";
    max_key_size: u64 = Kind::Size(1, 65_000), "65000", now, hidden,
        "The longest key, in bytes.";
    max_value_size: u64 = Kind::Size(1, 256 * MIB), "4MiB", now, hidden,
        "The longest value.";
    max_tx_size: u64 = Kind::Size(KIB, GIB), "64MiB", now, hidden,
        "What one transaction may write, keys and values together.";
    request_memory: u64 = Kind::Size(MIB, TIB), "512MiB", now, hidden,
        "Memory that the requests and replies of all clients, and their open transactions, may take together.";
    max_request_size: u64 = Kind::Size(KIB, 512 * MIB), "64MiB", now, hidden,
        "The longest payload of one request.";
    max_tx_age: Duration = Kind::Duration(1, DAY), "30s", now, hidden,
        "How long a transaction may stay open.";
    value_separation: u64 = Kind::Size(512, GIB), "4KiB", now, hidden,
        "Values of at least this size are written to the value log at once and only once.";
    value_file_size: u64 = Kind::Size(64 * KIB, 64 * GIB), "256MiB", now, hidden,
        "Size of one value-log file.";
    overlay_budget: u64 = Kind::Size(64 * KIB, TIB), "512MiB", now, hidden,
        "Memory for changes that are not checkpointed yet, on the whole node.";
    checkpoint_bytes: u64 = Kind::Size(4 * KIB, TIB), "8MiB", now, hidden,
        "Changes in memory after which a partition is checkpointed.";
    checkpoint_wal_bytes: u64 = Kind::Size(4 * KIB, TIB), "64MiB", now, hidden,
        "Log not yet checkpointed after which a partition is checkpointed; up to four times that where it writes most.";
    checkpoint_interval: Duration = Kind::Duration(10, 365 * DAY), "60s", now, hidden,
        "Time after which a partition with changes is checkpointed.";
    cache_size: u64 = Kind::Size(0, 64 * TIB), "256MiB", now, hidden,
        "Memory for hot pointers and values, on the whole node.";
    index_cache_size: u64 = Kind::Size(0, 64 * TIB), "256MiB", now, hidden,
        "Memory for blocks of the index, on the whole node.";
    max_handshakes: u64 = Kind::Count(1, 1_000_000), "256", now, hidden,
        "TLS handshakes under way at a time, counted apart from max_conns.";
    handshake_timeout: Duration = Kind::Duration(1, HOUR), "5s", now, hidden,
        "How long a TLS handshake may take.";
    request_timeout: Duration = Kind::Duration(1, HOUR), "5s", now, hidden,
        "How long a request may take from its first byte to its last, and a second more for each 64 KiB of it.";
    idle_timeout: Duration = Kind::Duration(1, 365 * DAY), "180s", now, hidden,
        "A connection without a request for this long is closed.";
    write_timeout: Duration = Kind::Duration(1, DAY), "10s", now, hidden,
        "A connection that takes none of its replies for this long is closed.";
    shutdown_timeout: Duration = Kind::Duration(1, DAY), "30s", now, hidden,
        "How long an orderly shutdown waits for what is in flight.";
    flush: String = Kind::Choice(&["per-file", "shared"]), "shared", now, hidden,
        "How the logs are flushed: one flush for those of a core where the file system allows it, or each by itself.";
    log_level: String = Kind::Choice(&["error", "warn", "info", "debug"]), "info", now, hidden,
        "The least important messages that are logged.";
    log_format: String = Kind::Choice(&["text", "json"]), "text", now, hidden,
        "Log lines for people or for machines.";
    advertise: String = Kind::OptionalAddress, "", now, hidden,
        "HOST:PORT where other nodes reach this one; empty for the host that its connections come from.";
    min_replicas: u64 = Kind::Count(0, 16), "0", now, hidden,
        "Followers that must hold a commit before it is acknowledged, in new partitions; the command min_replicas changes it.";
    quorum_timeout: Duration = Kind::Duration(1, DAY), "5s", now, hidden,
        "How long a commit waits for its followers.";
    copy_rate: u64 = Kind::Size(0, TIB), "64MiB", now, hidden,
        "Bytes per second at which a copy is sent to a follower that the log cannot serve any more; 0 for no limit.";
    max_consumer_hold: u64 = Kind::Size(0, 1024 * TIB), "64GiB", now, hidden,
        "Most log of a partition that a consumer of changes may have kept for it, beyond wal_retention.";
    metrics_addr: String = Kind::OptionalAddress, "", later, hidden,
        "Where metrics are served; empty for nowhere.";
    id: String = Kind::Name, "", later, hidden,
        "The node's name among its peers.";
}
