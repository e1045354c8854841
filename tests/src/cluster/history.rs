//! What clients of a cluster were told, and whether the log that it ends with agrees.

use crate::model::KeyNumber;
use std::collections::BTreeMap;
use std::time::Duration;
use turnstone_engine::types::{Epoch, Version};
use turnstone_engine::wal::body::{Body, Operation};

/// What a transaction wrote; `None` deletes.
pub type Writes = Vec<(KeyNumber, Option<Vec<u8>>)>;

/// A commit that was acknowledged.
#[derive(Clone, Debug)]
pub struct Ack {
    /// Its version.
    pub version: Version,
    /// Its epoch.
    pub epoch: Epoch,
    /// What it wrote; `None` for a FlushDB.
    pub writes: Option<Writes>,
    /// The node that acknowledged it.
    pub node: usize,
    /// Whether followers had to hold it, by the list in force at that node.
    pub safe: bool,
    /// When, of the world's time.
    pub at: Duration,
}

/// A read at a known version.
#[derive(Clone, Debug)]
pub struct Read {
    /// The version that it is of, and that version's epoch.
    pub version: Version,
    /// See above.
    pub epoch: Epoch,
    /// The key.
    pub key: KeyNumber,
    /// The key's value.
    pub value: Option<Vec<u8>>,
    /// Where.
    pub node: usize,
    /// As of [`Ack::safe`].
    pub safe: bool,
    /// When it was answered.
    pub at: Duration,
}

/// A value that a session was told by a reply.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The key.
    pub key: KeyNumber,
    /// The key's value.
    pub value: Vec<u8>,
    /// Where.
    pub node: usize,
    /// As of [`Ack::safe`].
    pub safe: bool,
    /// When it was told.
    pub at: Duration,
}

/// What may be lost: what no follower had to hold, once another node is promoted, and what a forced order sets aside.
#[derive(Default)]
pub struct Losses {
    /// From when until when no follower had to hold a commit.
    zero: Vec<(Duration, Option<Duration>)>,
    /// Promotions, from the order to its answer.
    promotions: Vec<(Duration, Option<Duration>)>,
    /// A forced order was answered, or may have been obeyed.
    forced: bool,
}

impl Losses {
    /// From now on no follower has to hold a commit.
    pub fn zero_begins(&mut self, now: Duration) {
        if self.zero.last().is_none_or(|(_, end)| end.is_some()) {
            self.zero.push((now, None));
        }
    }

    /// Followers must hold a commit from now on.
    pub fn zero_ends(&mut self, now: Duration) {
        if let Some((_, end)) = self.zero.last_mut() {
            end.get_or_insert(now);
        }
    }

    /// A promotion was ordered; answers its number.
    pub fn promotion_begins(&mut self, now: Duration) -> usize {
        self.promotions.push((now, None));
        self.promotions.len() - 1
    }

    /// It was answered, or nobody waits for the answer any more.
    pub fn promotion_ends(&mut self, number: usize, now: Duration) {
        self.promotions[number].1 = Some(now);
    }

    /// A forced order was answered, or may have been obeyed.
    pub fn force(&mut self) {
        self.forced = true;
    }

    /// Whether no follower had to hold a commit at some time within these.
    pub fn is_zero_within(&self, from: Duration, to: Option<Duration>) -> bool {
        let overlaps = |(start, end): &(Duration, Option<Duration>)| {
            to.is_none_or(|to| *start <= to) && end.is_none_or(|end| end >= from)
        };
        self.zero.iter().any(overlaps)
    }

    /// Whether what was told at a time may be gone since. A forced promotion leaves two leaders; what either of them tells is
    /// lost when they are brought together.
    pub fn excuse(&self, safe: bool, told: Duration) -> bool {
        let later = |end: &Option<Duration>| end.is_none_or(|end| end >= told);
        self.forced
            || self.promotions.iter().any(|(start, end)| later(end) && (!safe || self.is_zero_within(*start, *end)))
    }

    /// Whether anything may be gone.
    pub fn any(&self) -> bool {
        self.forced || (!self.zero.is_empty() && !self.promotions.is_empty())
    }
}

/// What clients were told.
#[derive(Default)]
pub struct Told {
    acked: BTreeMap<(Version, u64), Ack>,
    /// Who acknowledged in an epoch.
    leaders: BTreeMap<u64, usize>,
    reads: Vec<Read>,
    seen: Vec<Seen>,
    /// The newest version that each node has told of.
    floors: BTreeMap<usize, Version>,
    /// Commits whose outcome nobody knows, and those that were refused.
    pub unknown: u64,
    /// Refused.
    pub refused: u64,
    /// Reads that were refused.
    pub reads_refused: u64,
}

/// The log as it is at the end.
#[derive(Default)]
struct Final {
    epochs: BTreeMap<Version, Epoch>,
    flushes: Vec<Version>,
    writes: BTreeMap<Version, BTreeMap<KeyNumber, Option<Known>>>,
    versions: BTreeMap<KeyNumber, BTreeMap<Version, Option<Known>>>,
    last: Version,
}

impl Final {
    fn read(log: &[Body], key_of: impl Fn(&[u8]) -> Option<KeyNumber>) -> Result<Final, String> {
        let mut all = Final::default();
        for body in log {
            for (version, operations) in (body.first_version..).zip(&body.transactions) {
                if version != all.last + 1 {
                    return Err(format!("the log has version {version} where {} is due", all.last + 1));
                }
                all.last = version;
                all.epochs.insert(version, body.epoch);
                let mut writes: BTreeMap<KeyNumber, Option<Known>> = BTreeMap::new();
                for operation in operations {
                    let (key, known) = match operation {
                        Operation::Set(key, value) => (key, Some(Known::of(value))),
                        Operation::SetLarge(key, length, checksum) => (key, Some(Known(*length, *checksum))),
                        Operation::Delete(key) => (key, None),
                        Operation::Flush => {
                            all.flushes.push(version);
                            continue;
                        }
                        Operation::Members(_) => continue,
                    };
                    let number = key_of(key).ok_or_else(|| format!("version {version} writes a key of nobody's"))?;
                    writes.insert(number, known);
                    all.versions.entry(number).or_default().insert(version, known);
                }
                all.writes.insert(version, writes);
            }
        }
        Ok(all)
    }

    fn check_ack(&self, ack: &Ack, losses: &Losses) -> Result<(), String> {
        let same = self.epochs.get(&ack.version) == Some(&ack.epoch) && {
            let written = self.writes.get(&ack.version);
            match &ack.writes {
                None => self.flushes.contains(&ack.version),
                Some(writes) => {
                    let expected: BTreeMap<KeyNumber, Option<Known>> =
                        writes.iter().map(|(key, value)| (*key, value.as_deref().map(Known::of))).collect();
                    written == Some(&expected)
                }
            }
        };
        if same || losses.excuse(ack.safe, ack.at) {
            return Ok(());
        }
        let Ack { version, node, epoch, .. } = ack;
        Err(match self.epochs.get(version) {
            None => format!("version {version}, acknowledged by node {node}, is not in the log"),
            Some(other) => format!(
                "version {version} was acknowledged by node {node} in epoch {}, and is another transaction, of epoch {}, in \
                 the log",
                epoch.number, other.number
            ),
        })
    }

    fn check_read(&self, read: &Read, losses: &Losses) -> Result<(), String> {
        let Read { version, key, node, .. } = read;
        if losses.forced {
            return Ok(());
        }
        let excuse = losses.excuse(read.safe, read.at);
        if *version > self.last {
            let text = format!("node {node} showed version {version}, the log ends with {}", self.last);
            return if excuse { Ok(()) } else { Err(text) };
        }
        if excuse && self.epochs.get(version).is_some_and(|epoch| *epoch != read.epoch) {
            return Ok(());
        }
        let flushed = self.flushes.iter().rev().find(|flush| *flush <= version).copied().unwrap_or(0);
        let of_key = self.versions.get(key);
        let newest = of_key.and_then(|of_key| of_key.range(..=*version).next_back()).filter(|(v, _)| **v > flushed);
        if newest.and_then(|(_, known)| *known) == read.value.as_deref().map(Known::of) {
            return Ok(());
        }
        Err(format!("node {node} read key {key} at version {version}: it found what the log does not have"))
    }

    fn check_seen(&self, seen: &Seen, losses: &Losses) -> Result<(), String> {
        let known = Some(Known::of(&seen.value));
        let there = self.versions.get(&seen.key).is_some_and(|versions| versions.values().any(|value| *value == known));
        if there || losses.excuse(seen.safe, seen.at) {
            return Ok(());
        }
        let value = String::from_utf8_lossy(&seen.value[..seen.value.len().min(40)]).into_owned();
        Err(format!(
            "a session at node {} was told '{value}' for key {}: no log has it, so it was never published",
            seen.node, seen.key
        ))
    }
}

impl Told {
    /// A commit was acknowledged; where something may be `lost` a version may come again in another epoch.
    pub fn ack(&mut self, ack: Ack, lost: bool) -> Result<(), String> {
        let leader = *self.leaders.entry(ack.epoch.id).or_insert(ack.node);
        if leader != ack.node {
            return Err(format!("nodes {leader} and {} both acknowledged in epoch {}", ack.node, ack.epoch.number));
        }
        self.tell(ack.node, ack.version);
        let same = |other: &&Ack| other.safe && ack.safe && !lost;
        let twice = self.acked.range((ack.version, 0)..=(ack.version, u64::MAX)).map(|(_, ack)| ack).find(same);
        let twice = twice.or_else(|| self.acked.get(&(ack.version, ack.epoch.id))).map(|before| {
            format!(
                "version {} was acknowledged twice: by node {} in epoch {}, by node {} in epoch {}",
                ack.version, before.node, before.epoch.number, ack.node, ack.epoch.number
            )
        });
        self.acked.insert((ack.version, ack.epoch.id), ack);
        twice.map_or(Ok(()), Err)
    }

    /// A read was answered.
    pub fn read(&mut self, read: Read) {
        self.tell(read.node, read.version);
        self.reads.push(read);
    }

    /// A session was told a value.
    pub fn seen(&mut self, seen: Seen) {
        self.seen.push(seen);
    }

    fn tell(&mut self, node: usize, version: Version) {
        let floor = self.floors.entry(node).or_default();
        *floor = version.max(*floor);
    }

    /// The newest version that a node has told of.
    pub fn floor(&self, node: usize) -> Version {
        self.floors.get(&node).copied().unwrap_or(0)
    }

    /// A node has lost what it told of.
    pub fn forget_floor(&mut self, node: usize) {
        self.floors.remove(&node);
    }

    /// Commits that followers had to hold and that were acknowledged before `time`.
    pub fn safe_before(&self, time: Duration) -> impl Iterator<Item = &Ack> {
        self.acked.values().filter(move |ack| ack.safe && ack.at < time)
    }

    /// How many commits were acknowledged, and how many reads answered.
    pub fn counts(&self) -> (usize, usize) {
        (self.acked.len(), self.reads.len() + self.seen.len())
    }

    /// Compares with the whole log, from version 1 on. Large values are known by length and checksum.
    pub fn check(
        &self,
        log: &[Body],
        losses: &Losses,
        key_of: impl Fn(&[u8]) -> Option<KeyNumber>,
    ) -> Result<(), String> {
        let log = Final::read(log, key_of)?;
        self.acked.values().try_for_each(|ack| log.check_ack(ack, losses))?;
        self.reads.iter().try_for_each(|read| log.check_read(read, losses))?;
        self.seen.iter().try_for_each(|seen| log.check_seen(seen, losses))
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
