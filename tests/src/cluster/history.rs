//! What clients of a cluster were told, and whether the log that it ends with agrees.

use crate::model::KeyNumber;
use std::collections::BTreeMap;
use turnstone_engine::types::{Epoch, Version};
use turnstone_engine::wal::body::{Body, Operation};

/// What a transaction wrote; `None` deletes.
pub type Writes = Vec<(KeyNumber, Option<Vec<u8>>)>;

/// A commit that was acknowledged.
#[derive(Clone, Debug)]
struct Acked {
    writes: Option<Writes>,
    epoch: Epoch,
    node: usize,
}

/// What clients were told.
#[derive(Default)]
pub struct Told {
    acked: BTreeMap<Version, Acked>,
    /// Who acknowledged in an epoch.
    leaders: BTreeMap<u64, usize>,
    /// Reads: at which version, of which key, what, and on which node.
    reads: Vec<(Version, KeyNumber, Option<Vec<u8>>, usize)>,
    /// Commits whose outcome nobody knows, and those that were refused.
    pub unknown: u64,
    /// Refused.
    pub refused: u64,
}

impl Told {
    /// A commit was acknowledged; `None` for a FlushDB.
    pub fn ack(&mut self, version: Version, epoch: Epoch, node: usize, writes: Option<Writes>) -> Result<(), String> {
        let leader = *self.leaders.entry(epoch.id).or_insert(node);
        if leader != node {
            return Err(format!("nodes {leader} and {node} both acknowledged in epoch {}", epoch.number));
        }
        match self.acked.insert(version, Acked { writes, epoch, node }) {
            None => Ok(()),
            Some(before) => Err(format!(
                "version {version} was acknowledged twice: by node {} in epoch {}, by node {node} in epoch {}",
                before.node, before.epoch.number, epoch.number
            )),
        }
    }

    /// A read was answered.
    pub fn read(&mut self, at: Version, key: KeyNumber, value: Option<Vec<u8>>, node: usize) {
        self.reads.push((at, key, value, node));
    }

    /// How many commits were acknowledged, and how many reads answered.
    pub fn counts(&self) -> (usize, usize) {
        (self.acked.len(), self.reads.len())
    }

    /// Compares with the whole log, from version 1 on. Large values are known by length and checksum.
    pub fn check(&self, log: &[Body], key_of: impl Fn(&[u8]) -> Option<KeyNumber>) -> Result<(), String> {
        let mut versions: BTreeMap<KeyNumber, BTreeMap<Version, Option<Known>>> = BTreeMap::new();
        let mut flushes = Vec::new();
        let (mut next, mut acked) = (1, self.acked.iter().peekable());
        for body in log {
            for (version, operations) in (body.first_version..).zip(&body.transactions) {
                if version != next {
                    return Err(format!("the log has version {version} where {next} is due"));
                }
                next += 1;
                let mut writes: BTreeMap<KeyNumber, Option<Known>> = BTreeMap::new();
                let mut flush = false;
                for operation in operations {
                    let (key, known) = match operation {
                        Operation::Set(key, value) => (key, Some(Known::of(value))),
                        Operation::SetLarge(key, length, checksum) => (key, Some(Known(*length, *checksum))),
                        Operation::Delete(key) => (key, None),
                        Operation::Flush => {
                            flush = true;
                            continue;
                        }
                        Operation::Members(_) => continue,
                    };
                    let number = key_of(key).ok_or_else(|| format!("version {version} writes a key of nobody's"))?;
                    writes.insert(number, known);
                }
                if flush {
                    flushes.push(version);
                }
                if let Some((_, told)) = acked.next_if(|(acked, _)| **acked == version) {
                    let expected: Option<BTreeMap<KeyNumber, Option<Known>>> = told.writes.as_ref().map(|writes| {
                        writes.iter().map(|(key, value)| (*key, value.as_deref().map(Known::of))).collect()
                    });
                    let same = match expected {
                        Some(expected) => expected == writes,
                        None => flush,
                    };
                    if !same || body.epoch != told.epoch {
                        return Err(format!(
                            "version {version} was acknowledged by node {} in epoch {}, and is another transaction, of \
                             epoch {}, in the log",
                            told.node, told.epoch.number, body.epoch.number
                        ));
                    }
                }
                for (key, known) in writes {
                    versions.entry(key).or_default().insert(version, known);
                }
            }
        }
        if let Some((version, told)) = acked.next() {
            return Err(format!("version {version}, acknowledged by node {}, is not in the log", told.node));
        }
        for (at, key, value, node) in &self.reads {
            if *at >= next {
                return Err(format!("node {node} showed version {at}, the log ends with {}", next - 1));
            }
            let flushed = flushes.iter().rev().find(|flush| *flush <= at).copied().unwrap_or(0);
            let newest =
                versions.get(key).and_then(|of_key| of_key.range(..=*at).next_back()).filter(|(v, _)| **v > flushed);
            let expected = newest.and_then(|(_, known)| *known);
            if expected != value.as_deref().map(Known::of) {
                return Err(format!("node {node} read key {key} at version {at}: it found what the log does not have"));
            }
        }
        Ok(())
    }
}

/// A value's length and checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known(u32, u32);

impl Known {
    fn of(value: &[u8]) -> Known {
        Known(value.len() as u32, turnstone_engine::codec::crc(&[value]))
    }
}
