//! The overlay: every version newer than the last checkpoint, pending ones included.
//!
//! It has an active generation, which grows, and at most one frozen generation, which a checkpoint is settling. A
//! version is in exactly one of them; all frozen versions are older than all active ones. Since a checkpoint never
//! passes the oldest open snapshot, everything that a conflict check can ask about is here: it never reads the index.

use crate::types::{Entry, Key, Version};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Counted for each version besides its key and value, bytes.
const OVERHEAD: u64 = 96;

/// A stretch of versions.
#[derive(Default)]
pub struct Generation {
    keys: BTreeMap<Key, Vec<(Version, Entry)>>,
    bytes: u64,
    /// The newest version in it or in any generation before it.
    pub last: Version,
}

impl Generation {
    fn newest_at(&self, key: &[u8], snapshot: Version) -> Option<&(Version, Entry)> {
        self.keys.get(key)?.iter().rev().find(|(version, _)| *version <= snapshot)
    }

    fn newest(&self, key: &[u8]) -> Option<Version> {
        self.keys.get(key)?.last().map(|(version, _)| *version)
    }

    /// The newest version of each key, in key order.
    pub fn newest_entries(&self) -> impl Iterator<Item = (&Key, Version, &Entry)> {
        self.keys.iter().filter_map(|(key, versions)| versions.last().map(|(v, e)| (key, *v, e)))
    }

    /// Takes up to `keys` keys out of a generation that nobody looks at any more, so that freeing it can be spread.
    pub fn dismantle(&mut self, keys: usize) -> bool {
        (0..keys).all(|_| self.keys.pop_first().is_some())
    }

    /// How many keys it has.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// All recent versions of a partition.
#[derive(Default)]
pub struct Overlay {
    active: Generation,
    frozen: Option<Rc<Generation>>,
}

impl Overlay {
    /// Adds a version; versions of a key come in order.
    pub fn insert(&mut self, key: &Key, version: Version, entry: Entry) {
        let value_bytes = if let Entry::Value(value) = &entry { value.len() } else { 0 };
        self.active.bytes += key.len() as u64 + value_bytes as u64 + OVERHEAD;
        self.active.last = self.active.last.max(version);
        let versions = self.active.keys.entry(key.clone()).or_default();
        assert!(versions.last().is_none_or(|(last, _)| *last <= version), "versions of a key come in order");
        match versions.last_mut() {
            Some((last, old)) if *last == version => *old = entry,
            _ => versions.push((version, entry)),
        }
    }

    /// What `key` holds at `snapshot`, if a recent version says so.
    pub fn get(&self, key: &[u8], snapshot: Version) -> Option<&(Version, Entry)> {
        self.active.newest_at(key, snapshot).or_else(|| self.frozen.as_ref()?.newest_at(key, snapshot))
    }

    /// The newest version of `key`, pending or not, if it is recent.
    pub fn newest(&self, key: &[u8]) -> Option<Version> {
        self.active.newest(key).or_else(|| self.frozen.as_ref()?.newest(key))
    }

    /// Makes the active generation the frozen one, unless one is frozen already, and hands it out.
    pub fn freeze(&mut self, last: Version) -> Rc<Generation> {
        if let Some(frozen) = &self.frozen {
            return frozen.clone();
        }
        let mut generation = std::mem::take(&mut self.active);
        assert!(generation.last <= last, "a generation is frozen with all its versions");
        generation.last = last;
        let generation = Rc::new(generation);
        self.frozen = Some(generation.clone());
        generation
    }

    /// The frozen generation is in the index.
    pub fn settle(&mut self) {
        self.frozen = None;
    }

    /// Everything goes.
    pub fn clear(&mut self) {
        *self = Overlay::default();
    }

    /// Bytes held, both generations.
    pub fn bytes(&self) -> u64 {
        self.active.bytes + self.frozen.as_ref().map_or(0, |f| f.bytes)
    }

    /// Bytes that no checkpoint is settling yet.
    pub fn active_bytes(&self) -> u64 {
        self.active.bytes
    }

    /// The newest version of the frozen generation, if there is one.
    pub fn frozen_last(&self) -> Option<Version> {
        self.frozen.as_ref().map(|f| f.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        text.as_bytes().into()
    }
    fn value(text: &str) -> Entry {
        Entry::Value(text.as_bytes().into())
    }

    #[test]
    fn a_snapshot_sees_the_newest_version_below_it_across_generations() {
        let mut overlay = Overlay::default();
        overlay.insert(&key("a"), 1, value("1"));
        overlay.insert(&key("a"), 3, value("3"));
        let frozen = overlay.freeze(3);
        overlay.insert(&key("a"), 5, Entry::Tombstone);
        assert_eq!(overlay.get(b"a", 4), Some(&(3, value("3"))));
        assert_eq!(overlay.get(b"a", 2), Some(&(1, value("1"))));
        assert_eq!(overlay.get(b"a", 5), Some(&(5, Entry::Tombstone)));
        assert_eq!(overlay.get(b"a", 0), None);
        assert_eq!(overlay.newest(b"a"), Some(5));
        assert_eq!(frozen.newest_entries().map(|(_, v, _)| v).collect::<Vec<_>>(), vec![3]);
        overlay.settle();
        assert_eq!(overlay.get(b"a", 4), None, "settled versions are the index's");
    }

    #[test]
    fn the_last_write_of_a_transaction_wins() {
        let mut overlay = Overlay::default();
        overlay.insert(&key("a"), 1, value("1"));
        overlay.insert(&key("a"), 1, value("2"));
        assert_eq!(overlay.get(b"a", 1), Some(&(1, value("2"))));
    }
}
