//! Transactions: a snapshot, what was read, what will be written. Pure: the partition does the reading and the commit.

pub mod snapshots;
pub mod writes;

use crate::error::Error;
use crate::memory::overlay::Overlay;
use crate::settings::Settings;
use crate::types::{Key, Value, Version};
use snapshots::Snapshot;
use std::collections::BTreeSet;
use std::time::Duration;
use writes::Writes;

/// What a transaction does to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// The key gets this value.
    Set(Value),
    /// The key goes.
    Delete,
}

/// What a transaction did to some keys at one time.
pub struct WritesBefore {
    before: Vec<(Key, Option<Write>)>,
    bytes: u64,
}

impl WritesBefore {
    /// Whether nothing is marked (any more).
    pub fn is_empty(&self) -> bool {
        self.before.is_empty()
    }

    /// Marks more keys.
    pub fn add<'a>(&mut self, transaction: &Transaction, keys: impl Iterator<Item = &'a [u8]>) {
        self.before.extend(keys.map(|key| (Key::from(key), transaction.writes.get(key).cloned())));
    }

    /// Lets go of the last `count` marks.
    pub fn forget_some(&mut self, count: usize) {
        self.before.truncate(self.before.len().saturating_sub(count));
    }
}

/// An open transaction.
pub struct Transaction {
    /// What it sees.
    pub snapshot: Snapshot,
    /// When it began.
    pub begun: Duration,
    /// Keys it read from the snapshot.
    pub reads: BTreeSet<Key>,
    /// What it will write, the last write of a key alone.
    pub writes: Writes,
    /// It takes its snapshot at its own prepare: what it writes without reading never conflicts (autocommit).
    pub late: bool,
    bytes: u64,
    /// What it read counts by itself, against the same limit.
    read_bytes: u64,
    /// What it would write was let go: it can only be refused.
    pub forgotten: bool,
}

/// What a key that a transaction writes, or reads, counts at least: it costs memory beside its own bytes.
pub const ENTRY_MIN: u64 = 64;

/// What a write counts against `max_tx_size`.
fn cost(key: &[u8], write: &Write) -> u64 {
    let value = if let Write::Set(value) = write { value.len() } else { 0 };
    ((key.len() + value) as u64).max(ENTRY_MIN)
}

impl Transaction {
    /// A transaction on `snapshot`.
    pub fn new(snapshot: Snapshot, begun: Duration) -> Transaction {
        Transaction {
            snapshot,
            begun,
            reads: BTreeSet::new(),
            writes: Writes::default(),
            late: false,
            bytes: 0,
            read_bytes: 0,
            forgotten: false,
        }
    }

    /// Its own write of `key`.
    pub fn own(&self, key: &[u8]) -> Option<&Write> {
        self.writes.get(key)
    }

    /// Remembers that `key` was read from the snapshot; more than the limit is refused.
    pub fn note_read(&mut self, settings: &Settings, key: &[u8]) -> Result<(), Error> {
        // No such key can exist, now or later.
        if self.reads.contains(key) || check_key(settings, key).is_err() {
            return Ok(());
        }
        let total = self.read_bytes + (key.len() as u64).max(ENTRY_MIN);
        if total > settings.max_tx_size {
            return Err(Error::TransactionTooLarge { limit: settings.max_tx_size });
        }
        self.read_bytes = total;
        self.reads.insert(key.into());
        Ok(())
    }

    /// Buffers a write; a broken limit leaves the transaction as it was.
    pub fn write(&mut self, settings: &Settings, key: &[u8], write: Write) -> Result<(), Error> {
        check_key(settings, key)?;
        if let Write::Set(value) = &write {
            check_value(settings, value.len())?;
        }
        let replaced = self.writes.get(key).map_or(0, |old| cost(key, old));
        let total = self.bytes - replaced + cost(key, &write);
        if total > settings.max_tx_size {
            return Err(Error::TransactionTooLarge { limit: settings.max_tx_size });
        }
        self.bytes = total;
        self.writes.insert(key.into(), write);
        Ok(())
    }

    /// It is over, and only its refusal is left to be told: answers what it held.
    pub fn forget(&mut self) -> (BTreeSet<Key>, Writes) {
        self.snapshot.give_up();
        self.forgotten |= !self.writes.is_empty();
        (self.bytes, self.read_bytes) = (0, 0);
        (std::mem::take(&mut self.reads), std::mem::take(&mut self.writes))
    }

    /// What it does to these keys so far, to go back to if a request of several writes fails half-way.
    pub fn mark<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) -> WritesBefore {
        let mut mark = WritesBefore { before: Vec::new(), bytes: self.bytes };
        mark.add(self, keys);
        mark
    }

    /// Goes back to the mark for the last `count` keys of it; [`Transaction::restore`] goes back for the rest.
    pub fn restore_some(&mut self, mark: &mut WritesBefore, count: usize) {
        let from = mark.before.len().saturating_sub(count);
        for (key, write) in mark.before.drain(from..).rev() {
            match write {
                Some(write) => self.writes.insert(key, write),
                None => self.writes.remove(&key),
            }
        }
    }

    /// Goes back to the mark.
    pub fn restore(&mut self, mark: WritesBefore) {
        for (key, write) in mark.before {
            match write {
                Some(write) => self.writes.insert(key, write),
                None => self.writes.remove(&key),
            }
        }
        self.bytes = mark.bytes;
    }

    /// What it will write counts so much: bytes of keys and values, [`ENTRY_MIN`] for each at least.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Checks a key that is to be written.
pub fn check_key(settings: &Settings, key: &[u8]) -> Result<(), Error> {
    if key.is_empty() {
        return Err(Error::KeyEmpty);
    }
    if key.len() > settings.max_key_size {
        return Err(Error::KeyTooLarge { size: key.len(), limit: settings.max_key_size });
    }
    Ok(())
}

/// Checks the size of a value that is to be written.
pub fn check_value(settings: &Settings, size: usize) -> Result<(), Error> {
    if size > settings.max_value_size {
        return Err(Error::ValueTooLarge { size, limit: settings.max_value_size });
    }
    Ok(())
}

/// Checks a write that is a transaction of its own.
pub fn check_alone(settings: &Settings, key: &[u8], write: &Write) -> Result<(), Error> {
    check_key(settings, key)?;
    let mut bytes = key.len();
    if let Write::Set(value) = write {
        check_value(settings, value.len())?;
        bytes += value.len();
    }
    if bytes as u64 > settings.max_tx_size {
        return Err(Error::TransactionTooLarge { limit: settings.max_tx_size });
    }
    Ok(())
}

/// First committer wins: a key written or read must have no version, committed or pending, beyond the snapshot (D9).
/// `written` are the keys that it writes; `skip_reads` and `skip_pending_above` are only used under planted bugs.
pub fn conflict<'a>(
    overlay: &Overlay,
    transaction: &'a Transaction,
    written: impl Iterator<Item = &'a Key>,
    skip_reads: bool,
    skip_pending_above: Option<Version>,
) -> Option<Error> {
    let snapshot = transaction.snapshot.version();
    let reads = transaction.reads.iter().filter(|_| !skip_reads);
    conflict_among(overlay, snapshot, written.filter(|_| !transaction.late).chain(reads), skip_pending_above)
}

/// The same of some keys that a transaction on `snapshot` wrote or read.
pub fn conflict_among<'a>(
    overlay: &Overlay,
    snapshot: Version,
    keys: impl Iterator<Item = &'a Key>,
    skip_pending_above: Option<Version>,
) -> Option<Error> {
    for key in keys {
        let newest = overlay.newest(overlay.hashed(key)).unwrap_or(0);
        if skip_pending_above.is_some_and(|published| newest > published) {
            continue;
        }
        if newest > snapshot {
            return Some(Error::Conflict { key: key.to_vec(), newest, snapshot });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::snapshots::Snapshots;
    use super::*;
    use crate::memory::overlay::{Prior, Seen};
    use crate::types::Entry;

    fn key(bytes: &[u8]) -> Key {
        bytes.into()
    }

    fn transaction(snapshot: Version) -> Transaction {
        Transaction::new(Snapshots::default().open(snapshot, Duration::ZERO), Duration::ZERO)
    }

    #[test]
    fn written_or_read_keys_with_a_newer_version_conflict_and_others_do_not() {
        let settings = Settings::default();
        let mut overlay = Overlay::default();
        let hash = overlay.hashed(b"a").hash;
        overlay.insert(&b"a".as_slice().into(), hash, 5, Entry::Tombstone, &Seen::ALL, || Prior::Absent);
        let mut writer = transaction(4);
        writer.write(&settings, b"a", Write::Delete).unwrap();
        assert!(matches!(
            conflict(&overlay, &writer, [&key(b"a")].into_iter(), false, None),
            Some(Error::Conflict { newest: 5, snapshot: 4, .. })
        ));
        let mut reader = transaction(4);
        reader.note_read(&settings, b"a").unwrap();
        reader.write(&settings, b"b", Write::Delete).unwrap();
        assert!(conflict(&overlay, &reader, [&key(b"b")].into_iter(), false, None).is_some());
        let mut later = transaction(5);
        later.write(&settings, b"a", Write::Delete).unwrap();
        assert!(conflict(&overlay, &later, [&key(b"a")].into_iter(), false, None).is_none());
    }

    #[test]
    fn a_broken_limit_is_named_and_changes_nothing() {
        let settings = Settings { max_key_size: 3, max_value_size: 100, max_tx_size: 165, ..Settings::default() };
        let mut t = transaction(0);
        let set = |bytes: usize| Write::Set(vec![7; bytes].as_slice().into());
        assert_eq!(t.write(&settings, b"", set(0)), Err(Error::KeyEmpty));
        assert_eq!(t.write(&settings, b"abcd", set(0)), Err(Error::KeyTooLarge { size: 4, limit: 3 }));
        assert_eq!(t.write(&settings, b"a", set(101)), Err(Error::ValueTooLarge { size: 101, limit: 100 }));
        assert_eq!(t.write(&settings, b"a", set(100)), Ok(()));
        assert_eq!(t.write(&settings, b"b", set(64)), Err(Error::TransactionTooLarge { limit: 165 }));
        assert_eq!(t.write(&settings, b"a", set(99)), Ok(()), "an overwrite counts once");
        assert_eq!(t.bytes(), 100);
        assert_eq!(t.write(&settings, b"b", set(0)), Ok(()), "a small entry counts as 64 bytes");
        assert_eq!(t.write(&settings, b"c", Write::Delete), Err(Error::TransactionTooLarge { limit: 165 }));
    }

    #[test]
    fn what_is_read_is_limited_and_impossible_keys_are_not_noted() {
        let settings = Settings { max_key_size: 3, max_tx_size: 3 * ENTRY_MIN, ..Settings::default() };
        let mut t = transaction(0);
        assert_eq!(t.note_read(&settings, &[1; 100_000]), Ok(()));
        for key in [b"a", b"b", b"a", b"c", b"b"] {
            assert_eq!(t.note_read(&settings, key), Ok(()));
        }
        assert_eq!(t.note_read(&settings, b"d"), Err(Error::TransactionTooLarge { limit: 3 * ENTRY_MIN }));
        assert_eq!(t.reads.len(), 3);
        assert_eq!(t.forget().0.len(), 3);
        assert!(t.reads.is_empty() && t.snapshot.given_up());
    }
}
