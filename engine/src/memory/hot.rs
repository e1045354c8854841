//! A bounded cache of what the index and the value log answered lately: pointer, tombstone or absence, and small values.
//!
//! Two halves: a hit in the old half moves to the young one; when the young half is full it becomes the old one and the
//! old one goes. It only ever holds the newest *settled* state of a key: the overlay is asked first, so what is here is
//! never newer or older than the index, by the fill rule that [`crate::partition`] enforces: an answer enters only if the
//! key is not in the overlay and no checkpoint ended since the index was asked.
//!
//! It is cut into [`SHARDS`] by the keys' hashes, and what goes is freed a few keys at a time: no call takes long. The bound
//! is on all of them together, so a small cache still takes a large value; a shard follows the turn of the halves when it is
//! next asked, and until then keeps what it had. Hashes are keyed, so that is soon.

use super::hash::Hashed;
use super::warm::{touch_key, touch_value};
use crate::types::{Key, Value, ValuePointer};
use hashbrown::{HashTable, hash_table};

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

/// Larger values stay out, bytes.
const LARGEST: usize = 64 << 10;
const OVERHEAD: usize = 96;
/// A table grows as a whole; with 16 shards that of a large cache took megabytes of fresh memory at once.
const SHARDS: usize = 128;
/// Keys that are freed for each one that enters.
const FREED: usize = 4;

/// A settled key and what is known of it.
pub struct Slot {
    hash: u64,
    key: Key,
    known: Known,
}

#[derive(Default)]
struct Shard {
    young: HashTable<Slot>,
    old: HashTable<Slot>,
    going: Option<hash_table::IntoIter<Slot>>,
    /// The turn that it has followed; see [`HotCache::turn`].
    turn: u64,
}

fn is(key: Hashed<'_>) -> impl Fn(&Slot) -> bool + '_ {
    move |slot| slot.hash == key.hash && *slot.key == *key.key
}

impl Slot {
    /// Loads what a look-up reads (see [`super::warm`]).
    pub(super) fn touch(&self) -> usize {
        touch_key(&self.key) + if let Known::Value(_, value) = &self.known { touch_value(value) } else { 0 }
    }

    fn bytes(&self) -> u64 {
        let value_bytes = if let Known::Value(_, value) = &self.known { value.len() } else { 0 };
        (self.key.len() + value_bytes + OVERHEAD) as u64
    }
}

fn take(table: &mut HashTable<Slot>, key: Hashed<'_>) -> Option<Slot> {
    table.find_entry(key.hash, is(key)).ok().map(|entry| entry.remove().0)
}

impl Shard {
    fn follow(&mut self, turn: u64) {
        if self.turn == turn {
            return;
        }
        self.turn = turn;
        // All shards follow within some hundred requests: the room for as many keys again is not taken at once.
        let room = HashTable::with_capacity(self.young.len() / 8);
        let old = std::mem::replace(&mut self.old, std::mem::replace(&mut self.young, room));
        self.going = Some(old.into_iter());
    }

    fn free_some(&mut self) {
        if let Some(going) = &mut self.going
            && going.by_ref().take(FREED).count() < FREED
        {
            self.going = None;
        }
    }
}

/// The cache.
pub struct HotCache {
    shards: Vec<Shard>,
    half_bytes: u64,
    /// Of the young halves of all shards.
    young_bytes: u64,
    /// How often the young half has become the old one.
    turn: u64,
    /// Look-ups that were answered.
    pub hits: u64,
    /// Look-ups that were not.
    pub misses: u64,
}

/// The table looks at a hash's highest and lowest bits; the shard is chosen by others.
fn shard_of(hash: u64) -> usize {
    (hash >> 32) as usize % SHARDS
}

impl HotCache {
    /// A cache of about `bytes` bytes.
    pub fn new(bytes: u64) -> HotCache {
        let shards = (0..SHARDS).map(|_| Shard::default()).collect();
        HotCache { shards, half_bytes: bytes / 2, young_bytes: 0, turn: 0, hits: 0, misses: 0 }
    }

    /// Changes how much it holds; what is too much goes as new answers come.
    pub fn set_bytes(&mut self, bytes: u64) {
        self.half_bytes = bytes / 2;
    }

    fn shard(&mut self, hash: u64) -> &mut Shard {
        let shard = &mut self.shards[shard_of(hash)];
        shard.follow(self.turn);
        shard
    }

    /// What is known of `key`.
    pub fn get(&mut self, key: Hashed<'_>) -> Option<Known> {
        let shard = self.shard(key.hash);
        if let Some(slot) = shard.young.find(key.hash, is(key)) {
            let known = slot.known.clone();
            self.hits += 1;
            return Some(known);
        }
        let Some(slot) = take(&mut shard.old, key) else {
            self.misses += 1;
            return None;
        };
        self.hits += 1;
        let known = slot.known.clone();
        self.enter(slot);
        Some(known)
    }

    /// Puts what neither half has into the young one.
    fn enter(&mut self, mut slot: Slot) {
        let too_large = |slot: &Slot| slot.bytes() > self.half_bytes;
        if let Known::Value(pointer, value) = &slot.known
            && (value.len() > LARGEST || too_large(&slot))
        {
            slot.known = Known::Pointer(*pointer);
        }
        if too_large(&slot) {
            return;
        }
        let bytes = slot.bytes();
        if self.young_bytes + bytes > self.half_bytes {
            self.turn += 1;
            self.young_bytes = 0;
        }
        self.young_bytes += bytes;
        let shard = self.shard(slot.hash);
        shard.free_some();
        shard.young.insert_unique(slot.hash, slot, |slot| slot.hash);
    }

    /// Takes a key out of the half that has it: there is one at most.
    fn take_out(&mut self, key: Hashed<'_>) -> Option<Slot> {
        let shard = self.shard(key.hash);
        if let Some(slot) = take(&mut shard.young, key) {
            self.young_bytes -= slot.bytes();
            return Some(slot);
        }
        take(&mut shard.old, key)
    }

    /// What is there for a key with this hash: almost always that key.
    pub(super) fn likely(&self, hash: u64) -> Option<&Slot> {
        let shard = &self.shards[shard_of(hash)];
        let same = |slot: &Slot| slot.hash == hash;
        shard.young.find(hash, same).or_else(|| shard.old.find(hash, same))
    }

    /// Takes in an answer; `hash` is the key's.
    pub fn insert(&mut self, key: Key, hash: u64, known: Known) {
        self.take_out(Hashed { key: &key, hash });
        self.enter(Slot { hash, key, known });
    }

    /// Forgets a key that is being written; answers what was known of it.
    pub fn remove(&mut self, key: Hashed<'_>) -> Option<Known> {
        self.take_out(key).map(|slot| slot.known)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        let turn = self.turn;
        self.shards.iter_mut().for_each(|shard| *shard = Shard { turn, ..Shard::default() });
        self.young_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::super::hash::KeyHasher;
    use super::*;

    #[test]
    fn it_stays_within_bounds_and_keeps_what_is_used() {
        const BYTES: u64 = 64 << 10;
        let hasher = KeyHasher::new(7);
        let mut cache = HotCache::new(BYTES);
        let hot: Key = b"hot".as_slice().into();
        cache.insert(hot.clone(), hasher.of(&hot).hash, Known::Absent);
        for i in 0..10_000u32 {
            let key = i.to_le_bytes();
            cache.insert(key.as_slice().into(), hasher.of(&key).hash, Known::Absent);
            assert_eq!(cache.get(hasher.of(&hot)), Some(Known::Absent), "used all the time, so kept");
        }
        let held: usize = cache.shards.iter().map(|shard| shard.young.len() + shard.old.len()).sum();
        assert!(held <= BYTES as usize / OVERHEAD + 1 && held > BYTES as usize / OVERHEAD / 4, "{held}");
        assert_eq!(cache.remove(hasher.of(&hot)), Some(Known::Absent));
        assert_eq!(cache.get(hasher.of(&hot)), None);
    }

    /// What touching fresh memory takes is the machine's; how much is touched by one call is not.
    #[test]
    fn no_table_that_grows_is_larger_than_a_megabyte() {
        let hasher = KeyHasher::new(7);
        // What a node gives at most to one partition of 16: half of 256 MiB, and its part of the other half.
        let mut cache = HotCache::new(136 << 20);
        for i in 0..1_500_000u32 {
            let key = i.to_le_bytes();
            cache.insert(key.as_slice().into(), hasher.of(&key).hash, Known::Absent);
        }
        let largest = cache.shards.iter().map(|shard| shard.young.allocation_size().max(shard.old.allocation_size()));
        let largest = largest.max().expect("there are shards");
        assert!((256 << 10..=1 << 20).contains(&largest), "{largest} bytes");
    }

    #[test]
    fn a_newer_answer_replaces_the_older_one_in_whichever_half_it_is() {
        let hasher = KeyHasher::new(7);
        let mut cache = HotCache::new(64 << 10);
        let key: Key = b"k".as_slice().into();
        let pointer = |offset| Known::Pointer(ValuePointer { file: 1, offset, length: 1, checksum: 0 });
        for offset in 0..3 {
            cache.insert(key.clone(), hasher.of(&key).hash, pointer(offset));
            assert_eq!(cache.get(hasher.of(&key)), Some(pointer(offset)));
        }
        let Known::Pointer(place) = pointer(9) else { unreachable!("made above") };
        let mut insert = |key: &Key, length| {
            let value: Value = vec![0; length].into();
            cache.insert(key.clone(), hasher.of(key).hash, Known::Value(place, value.clone()));
            (cache.get(hasher.of(key)), Some(Known::Value(place, value)))
        };
        let (known, whole) = insert(&key, 30_000);
        assert_eq!(known, whole, "a value may take nearly half of a cache, however many shards that has");
        let (known, _) = insert(&key, 40_000);
        assert_eq!(known, Some(pointer(9)), "of what is too large the place is kept");
        let long: Key = vec![b'k'; 40_000].into();
        let (known, _) = insert(&long, 1);
        assert_eq!(known, None, "nothing is kept of a key that is too large");
        assert_eq!(cache.get(hasher.of(&key)), Some(pointer(9)));
    }

    #[test]
    fn what_no_longer_fits_leaves_its_place_when_it_is_used() {
        let hasher = KeyHasher::new(7);
        let mut cache = HotCache::new(64 << 10);
        let place = ValuePointer { file: 1, offset: 1, length: 1, checksum: 0 };
        let keys: Vec<Key> = (0..2u32).map(|i| i.to_le_bytes().as_slice().into()).collect();
        for key in &keys {
            cache.insert(key.clone(), hasher.of(key).hash, Known::Value(place, vec![0; 20_000].into()));
        }
        // The first is in the old half by now.
        cache.set_bytes(8 << 10);
        assert!(matches!(cache.get(hasher.of(&keys[0])), Some(Known::Value(..))));
        assert_eq!(cache.get(hasher.of(&keys[0])), Some(Known::Pointer(place)));
    }
}
