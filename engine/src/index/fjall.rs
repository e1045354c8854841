//! fjall as an index: the only file that names it. Everything here blocks, and is called on index threads only, never on
//! an executor: fjall holds its locks across fsyncs.
//!
//! It is fed by ingestion of sorted runs alone: its journal and memtables stay empty, nothing sleeps in our thread, and
//! an ingestion is durable and visible in one step. Ingestion has no back-pressure of its own and an overflow at 256
//! level-0 tables, so a new one waits until compaction has caught up. User keys and the mark differ in the first byte.

use super::{Found, IndexError, Page};
use crate::codec::Take;
use crate::manifest::Mark;
use crate::run::{decode_chunk, decode_settled, encode_settled};
use crate::types::Settled;
pub use fjall::Snapshot;
use fjall::config::{CompressionPolicy, PartitioningPolicy};
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};
use std::path::Path;
use std::time::Duration;

const KEYSPACE: &str = "keys";
const MARK_KEY: &[u8] = &[0];
const USER: u8 = 1;
/// Format of what this file stores under its keys.
const FORMAT: u8 = 1;
/// A new ingestion waits above this many tables in level 0.
const LEVEL0_TABLES: usize = 20;
/// How long it waits at most before it says that it is behind.
const LEVEL0_WAIT: Duration = Duration::from_secs(60);

/// An open index directory.
pub struct FjallIndex {
    database: Database,
    keyspace: Keyspace,
}

fn failed(what: &str) -> impl Fn(fjall::Error) -> IndexError {
    move |error| {
        let text = format!("{what}: {error:?}");
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(one) = cause {
            if one.downcast_ref::<std::io::Error>().is_some_and(is_refusal) {
                return IndexError::Refused(text);
            }
            cause = one.source();
        }
        IndexError::Failed(text)
    }
}

/// Whether the system lacks space, descriptors or memory for what was asked.
pub fn is_refusal(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, OutOfMemory, QuotaExceeded, StorageFull};
    /// Too many open files, of the process and of the system: std has no kinds for these.
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge | OutOfMemory)
        || matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}

fn stored_key(key: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(key.len() + 1);
    stored.push(USER);
    stored.extend_from_slice(key);
    stored
}

fn damaged() -> IndexError {
    IndexError::Failed("an entry is malformed".to_string())
}

impl FjallIndex {
    /// Opens a directory, creating it if it is not there, with a block cache of `cache_bytes` and up to `files` tables open. Call
    /// from an unpinned thread: workers inherit its CPUs.
    pub fn open(path: &Path, cache_bytes: u64, files: usize) -> Result<FjallIndex, IndexError> {
        let database = Database::builder(path)
            .cache_size(cache_bytes)
            .worker_threads(1)
            .manual_journal_persist(true)
            .journal_compression(CompressionType::None)
            .max_cached_files(Some(files))
            .open()
            .map_err(failed("open"))?;
        let options = || {
            KeyspaceCreateOptions::default()
                .data_block_compression_policy(CompressionPolicy::all(CompressionType::None))
                .index_block_compression_policy(CompressionPolicy::all(CompressionType::None))
                .filter_block_partitioning_policy(PartitioningPolicy::all(true))
                .index_block_partitioning_policy(PartitioningPolicy::all(true))
                .expect_point_read_hits(false)
                .manual_journal_persist(true)
        };
        let keyspace = database.keyspace(KEYSPACE, options).map_err(failed("open"))?;
        Ok(FjallIndex { database, keyspace })
    }

    /// The mark of the last ingestion.
    pub fn mark(&self) -> Result<Option<Mark>, IndexError> {
        let Some(bytes) = self.keyspace.get(MARK_KEY).map_err(failed("get"))? else { return Ok(None) };
        let mut take = Take(&bytes);
        match take.u8() {
            Ok(format) if format <= FORMAT => Mark::decode(&mut take).map(Some).map_err(|_| damaged()),
            Ok(format) => Err(IndexError::Failed(format!("it has format {format}, this program reads up to {FORMAT}"))),
            Err(_) => Err(damaged()),
        }
    }

    /// Looks up keys.
    pub fn get_many(&self, keys: &[Vec<u8>]) -> Result<Vec<Found>, IndexError> {
        keys.iter()
            .map(|key| {
                let found = self.keyspace.get(stored_key(key)).map_err(failed("get"))?;
                found.map(|bytes| decode_settled(&mut Take(&bytes)).map_err(|_| damaged())).transpose()
            })
            .collect()
    }

    /// What is there now.
    pub fn view(&self) -> Snapshot {
        self.database.snapshot()
    }

    /// Keys behind `after` as a view of this index has them, in order.
    pub fn scan(&self, view: &Snapshot, after: Option<&[u8]>, limit: usize) -> Result<Page, IndexError> {
        // The successor of a key in byte order is the key with a zero byte behind it.
        let start = after.map_or(vec![USER], |key| [&stored_key(key)[..], &[0]].concat());
        let mut page = Vec::new();
        for item in view.range(&self.keyspace, start..).take(limit) {
            let (key, value) = item.into_inner().map_err(failed("scan"))?;
            let (version, settled) = decode_settled(&mut Take(&value)).map_err(|_| damaged())?;
            page.push((key.get(1..).ok_or_else(damaged)?.to_vec(), version, settled));
        }
        Ok(page)
    }

    #[expect(clippy::disallowed_methods, reason = "this runs on an index thread, never in a partition")]
    /// Ingests chunks in ascending key order, ending at `mark`. `next` answers `None` behind the last chunk and an error
    /// if the ingestion was given up; nothing is visible then.
    pub fn ingest(
        &self,
        mark: Mark,
        mut next: impl FnMut() -> Result<Option<Vec<u8>>, IndexError>,
    ) -> Result<(), IndexError> {
        let started = std::time::Instant::now();
        while self.keyspace.l0_table_count() > LEVEL0_TABLES {
            if started.elapsed() > LEVEL0_WAIT {
                let (tables, seconds) = (self.keyspace.l0_table_count(), LEVEL0_WAIT.as_secs());
                let text =
                    format!("it has {tables} tables to compact, and has not come below {LEVEL0_TABLES} in {seconds} s");
                return Err(IndexError::Behind(text));
            }
            self.healthy()?;
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut ingestion = self.keyspace.start_ingestion().map_err(failed("ingest"))?;
        let mut value = vec![FORMAT];
        mark.encode(&mut value);
        ingestion.write(MARK_KEY, value).map_err(failed("ingest"))?;
        while let Some(chunk) = next()? {
            for entry in decode_chunk(&chunk).map_err(|_| damaged())? {
                let key = stored_key(&entry.key);
                match entry.settled {
                    Settled::Tombstone => ingestion.write_tombstone(key).map_err(failed("ingest"))?,
                    Settled::Pointer(_) => {
                        let mut value = Vec::with_capacity(32);
                        encode_settled(entry.version, &entry.settled, &mut value);
                        ingestion.write(key, value).map_err(failed("ingest"))?;
                    }
                }
            }
        }
        ingestion.finish().map_err(failed("ingest"))?;
        self.healthy()
    }

    /// Compactions finished since the opening: a counter, it takes no lock.
    pub fn compactions(&self) -> u64 {
        self.database.compactions_completed() as u64
    }

    /// Whether its workers still work: a dead one poisons the database, and ingestion would not notice.
    pub fn healthy(&self) -> Result<(), IndexError> {
        self.database.persist(PersistMode::Buffer).map_err(failed("health"))
    }
}
