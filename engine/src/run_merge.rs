//! Several runs read as one: key ascending, and of each key the entry that counts, which is the one with the newest
//! version, and at equal version the one of the later run.
//!
//! Two things are made of it: a new index ([`crate::index_care`]), and one run in place of many ([`crate::merging`]). Without the
//! second a partition that changes one key a minute would have 1,440 runs after a day, all named in its manifest and all
//! opened by a rebuild.

use crate::env::Env;
use crate::error::Error;
use crate::run::{RunEntry, RunReader};
use crate::types::{PartitionId, Version};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Key ascending; of a key the newest version first, and at equal version the later run.
type Order = Reverse<(Vec<u8>, Reverse<Version>, Reverse<usize>)>;

struct Source<E: Env> {
    /// Its place among the runs, oldest first.
    place: usize,
    reader: RunReader<E>,
    entries: VecDeque<RunEntry>,
    head: Option<RunEntry>,
}

impl<E: Env> Source<E> {
    async fn advance(&mut self) -> Result<Option<RunEntry>, Error> {
        while self.entries.is_empty() {
            match self.reader.next().await? {
                Some(entries) => self.entries = entries.into(),
                None => return Ok(self.head.take()),
            }
        }
        Ok(std::mem::replace(&mut self.head, self.entries.pop_front()))
    }

    fn order(&self) -> Option<Order> {
        let head = self.head.as_ref()?;
        Some(Reverse((head.key.clone(), Reverse(head.version), Reverse(self.place))))
    }
}

/// Runs that are being read together.
pub(crate) struct Merge<E: Env> {
    sources: Vec<Source<E>>,
    heap: BinaryHeap<(Order, usize)>,
    last: Option<Vec<u8>>,
    /// Entries read so far, those that do not count among them.
    pub read: u64,
}

impl<E: Env> Merge<E> {
    /// Opens runs by number, oldest first.
    pub async fn open(env: &E, partition: PartitionId, runs: impl Iterator<Item = u32>) -> Result<Merge<E>, Error> {
        let mut merge = Merge { sources: Vec::new(), heap: BinaryHeap::new(), last: None, read: 0 };
        for number in runs {
            let reader = RunReader::open(env, partition, number).await?;
            let mut source = Source { place: merge.sources.len(), reader, entries: VecDeque::new(), head: None };
            source.advance().await?;
            if let Some(order) = source.order() {
                merge.heap.push((order, merge.sources.len()));
            }
            merge.sources.push(source);
        }
        Ok(merge)
    }

    /// The next key's entry, tombstones included.
    pub async fn next(&mut self) -> Result<Option<RunEntry>, Error> {
        while let Some((_, i)) = self.heap.pop() {
            let entry = self.sources[i].advance().await?;
            if let Some(order) = self.sources[i].order() {
                self.heap.push((order, i));
            }
            let Some(entry) = entry else { unreachable!("a source in the heap has a head") };
            self.read += 1;
            if self.last.as_deref() != Some(entry.key.as_slice()) {
                self.last = Some(entry.key.clone());
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }
}

/// So many of the newest runs, of about a size, become one.
const FAN_IN: usize = 8;

/// How many of the newest runs are to be merged now, given the entries of all, oldest first; 0 for none.
///
/// A run joins those newer than it if it is not larger than they are together. So sizes grow geometrically towards the
/// older ones: there are at most `FAN_IN` and the logarithm of the entries, and an entry is rewritten about as often as
/// that logarithm (the tiered compaction of LSM trees).
pub(crate) fn tiers(entries: &[u64]) -> usize {
    let (mut sum, mut count) = (0u64, 0);
    for size in entries.iter().rev() {
        // Each counts as one at least, so that empty ones are merged, too.
        let size = (*size).max(1);
        if count >= FAN_IN && size > sum {
            break;
        }
        if count > 0 && count < FAN_IN && size > sum.saturating_mul(FAN_IN as u64) {
            break;
        }
        sum = sum.saturating_add(size);
        count += 1;
    }
    if count >= FAN_IN { count } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_stay_few_and_entries_are_rewritten_seldom() {
        for sizes in [vec![1u64], vec![1, 50, 3000], vec![0, 7]] {
            let (mut runs, mut rewritten, mut total, mut most) = (Vec::<u64>::new(), 0, 0u64, 0);
            for i in 0..100_000 {
                let size = sizes[i % sizes.len()];
                total += size;
                runs.push(size);
                let merged = tiers(&runs);
                if merged > 0 {
                    let sum: u64 = runs.drain(runs.len() - merged..).sum();
                    rewritten += sum;
                    runs.push(sum);
                }
                most = most.max(runs.len());
            }
            assert!(most <= 40, "{sizes:?}: {most} runs at once");
            assert!(rewritten <= total * 24, "{sizes:?}: {rewritten} of {total} rewritten");
        }
    }
}
