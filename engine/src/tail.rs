//! The log as consumers read it: whole transactions in order of their versions, only what is published.

use crate::env::Env;
use crate::error::Error;
use crate::partition::Partition;
use crate::types::{LogPosition, Version};
use crate::wal::body::Body;
use crate::wal::scan::Scanner;

/// A page holds about this much at most, whatever was asked for, bytes.
const PAGE_MAX: usize = 16 << 20;

/// A stretch of the log.
pub struct LogPage {
    /// Batches in order; the first may begin before the version that was asked for.
    pub batches: Vec<Body>,
    /// Where to go on.
    pub next: Version,
}

impl<E: Env> Partition<E> {
    /// Reads published batches from `version` on, until their bodies pass `limit_bytes` (at least one, if there is one).
    pub async fn read_log(&self, version: Version, limit_bytes: usize) -> Result<LogPage, Error> {
        let core = &self.0;
        let published = core.published.get();
        if version > published + 1 {
            return Err(Error::Diverged(format!(
                "version {version} is not in this history, which ends at {published}"
            )));
        }
        let segments = core.wal().segments();
        let oldest = self.oldest_version();
        if version < oldest {
            return Err(Error::Purged { wanted: version, oldest });
        }
        let mut page = LogPage { batches: Vec::new(), next: version };
        let Some(start) = segments.iter().rev().find(|s| s.first_version <= version) else { return Ok(page) };
        let numbers: Vec<u32> = segments.iter().map(|s| s.number).collect();
        let manifest = core.manifest.get().clone();
        let from = LogPosition::new(start.number, crate::disk::BLOCK as u32);
        let mut scanner = Scanner::new(&core.env, core.id, &manifest, &numbers, from, None);
        let limit_bytes = limit_bytes.min(PAGE_MAX);
        let mut bytes = 0;
        while page.next <= published && (page.batches.is_empty() || bytes < limit_bytes) {
            let batch = match scanner.next().await {
                Ok(Some(batch)) => batch,
                other => {
                    // A segment that was purged meanwhile reads as anything.
                    let oldest = self.oldest_version();
                    if page.next < oldest {
                        return Err(Error::Purged { wanted: page.next, oldest });
                    }
                    other?;
                    return Err(Error::Corrupt {
                        file: crate::names::segment(scanner.position().segment()),
                        offset: u64::from(scanner.position().offset()),
                        what: format!("version {} cannot be read although it is published", page.next),
                    });
                }
            };
            if batch.body.transactions.is_empty() || batch.body.last_version() < page.next {
                continue;
            }
            if batch.body.last_version() > published {
                break;
            }
            bytes += batch.envelope.body_length as usize;
            page.next = batch.body.last_version() + 1;
            page.batches.push(batch.body);
        }
        Ok(page)
    }
}
