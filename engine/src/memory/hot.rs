//! A bounded cache of what the index and the value log answered lately: pointer, tombstone or absence, and small values.
//!
//! Two halves: a hit in the old half moves to the young one; when the young half is full it becomes the old one and the
//! old one goes. It only ever holds the newest *settled* state of a key: the overlay is asked first, so what is here is
//! never newer or older than the index, by the fill rule that [`crate::partition`] enforces: an answer enters only if the
//! key is not in the overlay and no checkpoint ended since the index was asked.

use crate::types::{Key, Value, ValuePointer};
use std::collections::HashMap;
use std::hash::{BuildHasher, DefaultHasher, Hasher};

/// What is known of a settled key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// It does not exist.
    Absent,
    /// Its value is there.
    Pointer(ValuePointer),
    /// Its value is this.
    Value(ValuePointer, Value),
}

/// SipHash with a key of our own: unpredictable to clients, reproducible in the simulator.
#[derive(Clone)]
struct Seeded(u64);

impl BuildHasher for Seeded {
    type Hasher = DefaultHasher;
    fn build_hasher(&self) -> DefaultHasher {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.0);
        hasher
    }
}

/// Larger values stay out, bytes.
const LARGEST: usize = 64 << 10;
const OVERHEAD: usize = 96;

/// The cache.
pub struct HotCache {
    young: HashMap<Key, Known, Seeded>,
    old: HashMap<Key, Known, Seeded>,
    young_bytes: u64,
    half_bytes: u64,
    /// Look-ups that were answered.
    pub hits: u64,
    /// Look-ups that were not.
    pub misses: u64,
}

impl HotCache {
    /// A cache of about `bytes` bytes.
    pub fn new(bytes: u64, seed: u64) -> HotCache {
        HotCache {
            young: HashMap::with_hasher(Seeded(seed)),
            old: HashMap::with_hasher(Seeded(seed)),
            young_bytes: 0,
            half_bytes: bytes / 2,
            hits: 0,
            misses: 0,
        }
    }

    /// Changes how much it holds; what is too much goes as new answers come.
    pub fn set_bytes(&mut self, bytes: u64) {
        self.half_bytes = bytes / 2;
    }

    /// What is known of `key`.
    pub fn get(&mut self, key: &[u8]) -> Option<Known> {
        if let Some(known) = self.young.get(key) {
            self.hits += 1;
            return Some(known.clone());
        }
        let Some((key, known)) = self.old.remove_entry(key) else {
            self.misses += 1;
            return None;
        };
        self.hits += 1;
        self.insert(key, known.clone());
        Some(known)
    }

    /// Takes in an answer.
    pub fn insert(&mut self, key: Key, known: Known) {
        let known = match known {
            Known::Value(pointer, value) if value.len() > LARGEST => Known::Pointer(pointer),
            other => other,
        };
        let value_bytes = if let Known::Value(_, value) = &known { value.len() } else { 0 };
        let bytes = (key.len() + value_bytes + OVERHEAD) as u64;
        if self.half_bytes < bytes {
            return;
        }
        if self.young_bytes + bytes > self.half_bytes {
            self.old = std::mem::replace(&mut self.young, HashMap::with_hasher(self.old.hasher().clone()));
            self.young_bytes = 0;
        }
        self.young_bytes += bytes;
        self.old.remove(&key);
        self.young.insert(key, known);
    }

    /// Forgets a key that is being written.
    pub fn remove(&mut self, key: &[u8]) {
        self.young.remove(key);
        self.old.remove(key);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
        self.young_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_within_bounds_and_keeps_what_is_used() {
        let mut cache = HotCache::new(64 << 10, 7);
        let hot: Key = b"hot".as_slice().into();
        cache.insert(hot.clone(), Known::Absent);
        for i in 0..10_000u32 {
            cache.insert(i.to_le_bytes().as_slice().into(), Known::Absent);
            assert_eq!(cache.get(&hot), Some(Known::Absent), "used all the time, so kept");
        }
        assert!(cache.young.len() + cache.old.len() <= (64 << 10) / OVERHEAD + 1);
        cache.remove(&hot);
        assert_eq!(cache.get(&hot), None);
    }
}
