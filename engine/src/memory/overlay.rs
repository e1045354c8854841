//! The overlay: every version newer than the last checkpoint that somebody can still ask for, pending ones included.
//!
//! It has an active generation, which grows, and at most one frozen generation, which a checkpoint is settling. A
//! version is in exactly one of them; all frozen versions are older than all active ones. Since a checkpoint never
//! passes the oldest open snapshot, everything that a conflict check can ask about is here: it never reads the index.
//!
//! A generation is a hash table in [`SHARDS`] parts, so that none of them takes long to grow or to sort; a checkpoint
//! puts its keys into order. A version that no snapshot can see any more goes when its key is written again, so a key
//! that is rewritten all the time takes the room of two versions, not of all. Beside a snapshot that stays open, what lies
//! between it and what is published goes now and then: such a key takes the room of a few versions for each open snapshot.

use super::hash::{Hashed, KeyHasher};
use super::hot::Known;
use super::warm::{load, touch_key, touch_value};
use crate::types::{Entry, Key, Version};
use hashbrown::HashTable;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::rc::Rc;

/// Counted for each key besides its own bytes, and for each version besides its value, bytes: about what they take.
const KEY_OVERHEAD: u64 = 160;
const VERSION_OVERHEAD: u64 = 48;
/// Versions that nobody sees are freed up to so many at a time.
const UNSEEN_AT_ONCE: usize = 256;
/// A key that has so many older versions, or twice, four times as many and so on, is looked through for those that lie between open
/// snapshots...
const MANY: usize = 32;
/// ...and for no more of them at a time than this.
const LOOKED_AT: usize = 1024;
/// Parts of a generation.
pub const SHARDS: usize = 64;

/// What the index holds for a key below all of its recent versions, as far as that is known without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prior {
    /// The index must be asked.
    Unknown,
    /// Nothing, or a tombstone.
    Absent,
    /// A value in this file, of this length.
    Value {
        /// The value log's file.
        file: u32,
        /// Bytes of the value.
        length: u32,
    },
}

impl Prior {
    /// What the cache of settled keys tells.
    pub fn of(known: Option<&Known>) -> Prior {
        match known {
            None => Prior::Unknown,
            Some(Known::Absent) => Prior::Absent,
            Some(Known::Pointer(pointer) | Known::Value(pointer, _)) => {
                Prior::Value { file: pointer.file, length: pointer.length }
            }
        }
    }
}

/// A key's recent versions.
pub struct Slot {
    /// The key.
    pub key: Key,
    hash: u64,
    /// Its newest version, and what it holds then.
    pub newest: (Version, Entry),
    /// Older versions that somebody may ask for, oldest first.
    older: VecDeque<(Version, Entry)>,
    /// What is below.
    pub prior: Prior,
}

/// Who sees what, at the moment of a write.
pub struct Seen<'a> {
    /// Nobody sees versions below this, now or later.
    pub oldest: Version,
    /// Whoever comes sees this version, or a later one.
    pub published: Version,
    /// Whether a snapshot is open that sees the first of two versions or a later one, and not the second.
    pub is_open_within: &'a dyn Fn(Version, Version) -> bool,
}

#[cfg(test)]
impl Seen<'_> {
    /// Everything is seen.
    pub const ALL: Seen<'static> = Seen { oldest: 0, published: 0, is_open_within: &|_, _| true };
}

fn bytes_of(entry: &Entry) -> u64 {
    VERSION_OVERHEAD + if let Entry::Value(value) = entry { value.len() as u64 } else { 0 }
}

impl Slot {
    /// Loads what a look-up reads, and what the next write lets go (see [`super::warm`]).
    pub(super) fn touch(&self) -> usize {
        let value =
            |(_, entry): &(Version, Entry)| if let Entry::Value(value) = entry { touch_value(value) } else { 0 };
        touch_key(&self.key) + value(&self.newest) + self.older.front().map_or(0, value)
    }

    /// Adds a version and lets go of what nobody sees; answers how many bytes went.
    fn push(&mut self, version: Version, entry: Entry, seen: &Seen<'_>) -> u64 {
        assert!(self.newest.0 <= version, "versions of a key come in order");
        if self.newest.0 == version {
            let gone = std::mem::replace(&mut self.newest.1, entry);
            return bytes_of(&gone);
        }
        self.older.push_back(std::mem::replace(&mut self.newest, (version, entry)));
        let mut gone =
            if self.older.len() >= MANY && self.older.len().is_power_of_two() { self.sweep(seen) } else { 0 };
        // Of the versions up to the oldest that anybody sees, only the newest is asked for. No more go at a time than a call has
        // time for; the next write of the key goes on.
        for _ in 0..UNSEEN_AT_ONCE {
            let next = self.older.get(1).map_or(version, |(next, _)| *next);
            if next > seen.oldest {
                break;
            }
            let Some((_, entry)) = self.older.pop_front() else { break };
            gone += bytes_of(&entry);
        }
        gone
    }

    /// Lets go of older versions that were replaced before anybody who is there looked: nobody who comes sees less than what is
    /// published. Answers how many bytes went.
    fn sweep(&mut self, seen: &Seen<'_>) -> u64 {
        let first = self.older.len().saturating_sub(LOOKED_AT);
        let (mut gone, mut to) = (0, self.newest.0);
        let mut kept = Vec::new();
        for (version, entry) in self.older.drain(first..).rev() {
            if to > seen.published || (seen.is_open_within)(version, to) {
                kept.push((version, entry));
            } else {
                gone += bytes_of(&entry);
            }
            to = version;
        }
        self.older.extend(kept.into_iter().rev());
        gone
    }

    fn newest_at(&self, snapshot: Version) -> Option<&(Version, Entry)> {
        if self.newest.0 <= snapshot {
            return Some(&self.newest);
        }
        let below = self.older.partition_point(|(version, _)| *version <= snapshot);
        self.older.get(below.checked_sub(1)?)
    }
}

#[derive(Default)]
struct Shard {
    /// Places in `slots`.
    table: HashTable<u32>,
    slots: Vec<Slot>,
}

impl Shard {
    fn find(&self, key: Hashed<'_>) -> Option<usize> {
        let same = |i: &u32| self.slots[*i as usize].hash == key.hash && *self.slots[*i as usize].key == *key.key;
        self.table.find(key.hash, same).map(|i| *i as usize)
    }
}

/// Where a slot is in its generation.
#[derive(Clone, Copy)]
pub struct Place {
    shard: u32,
    slot: u32,
}

/// A stretch of versions.
pub struct Generation {
    shards: Vec<Shard>,
    bytes: u64,
    /// The newest version in it or in any generation before it.
    pub last: Version,
}

impl Default for Generation {
    fn default() -> Generation {
        Generation { shards: (0..SHARDS).map(|_| Shard::default()).collect(), bytes: 0, last: 0 }
    }
}

/// The table looks at a hash's highest and lowest bits; the shard is chosen by others.
fn shard_of(hash: u64) -> usize {
    (hash >> 40) as usize % SHARDS
}

impl Generation {
    fn likely(&self, hash: u64) -> Option<&Slot> {
        let shard = &self.shards[shard_of(hash)];
        let found = shard.table.find(hash, |i| shard.slots[*i as usize].hash == hash);
        found.map(|i| &shard.slots[*i as usize])
    }

    fn find(&self, key: Hashed<'_>) -> Option<&Slot> {
        let shard = &self.shards[shard_of(key.hash)];
        shard.find(key).map(|i| &shard.slots[i])
    }

    /// Adds a version of a key that is here already; gives the entry back if it is not.
    fn push(&mut self, key: Hashed<'_>, version: Version, entry: Entry, seen: &Seen<'_>) -> Option<Entry> {
        let shard = &mut self.shards[shard_of(key.hash)];
        let Some(found) = shard.find(key) else { return Some(entry) };
        self.bytes += bytes_of(&entry);
        self.bytes -= shard.slots[found].push(version, entry, seen);
        self.last = self.last.max(version);
        None
    }

    /// Adds the first version of a key.
    fn add(&mut self, key: &Key, hash: u64, version: Version, entry: Entry, prior: Prior) {
        let shard = &mut self.shards[shard_of(hash)];
        self.bytes += key.len() as u64 + KEY_OVERHEAD + bytes_of(&entry);
        self.last = self.last.max(version);
        let slots = &shard.slots;
        shard.table.insert_unique(hash, slots.len() as u32, |i| slots[*i as usize].hash);
        shard.slots.push(Slot { key: key.clone(), hash, newest: (version, entry), older: VecDeque::new(), prior });
    }

    /// All places, in pieces of at most `of`, each in the order of its keys. A piece is sorted when it is asked for.
    pub fn sorted_pieces(&self, of: usize) -> impl Iterator<Item = Vec<Place>> {
        self.shards.iter().enumerate().flat_map(move |(shard, Shard { slots, .. })| {
            (0..slots.len()).step_by(of).map(move |first| {
                let piece = first..slots.len().min(first + of);
                load(slots[piece.clone()].iter().map(|slot| touch_key(&slot.key)));
                let mut places: Vec<Place> =
                    piece.map(|slot| Place { shard: shard as u32, slot: slot as u32 }).collect();
                places.sort_unstable_by(|a, b| slots[a.slot as usize].key.cmp(&slots[b.slot as usize].key));
                places
            })
        })
    }

    /// Loads what settling these slots reads (see [`super::warm`]).
    pub fn touch(&self, places: &[Place]) {
        load(places.iter().map(|place| self.at(*place).touch()));
    }

    /// Merges pieces that are sorted.
    pub fn merge(&self, sorted: Vec<Vec<Place>>) -> impl Iterator<Item = Place> {
        let mut shards: Vec<_> = sorted.into_iter().map(Vec::into_iter).collect();
        let mut heads = BinaryHeap::new();
        let keyed = move |place: Place, shard: usize| Reverse((&*self.at(place).key, shard, Same(place)));
        for (i, shard) in shards.iter_mut().enumerate() {
            heads.extend(shard.next().map(|place| keyed(place, i)));
        }
        std::iter::from_fn(move || {
            let Reverse((_, shard, Same(place))) = heads.pop()?;
            heads.extend(shards[shard].next().map(|next| keyed(next, shard)));
            Some(place)
        })
    }

    /// The slot at a place.
    pub fn at(&self, place: Place) -> &Slot {
        &self.shards[place.shard as usize].slots[place.slot as usize]
    }

    /// Takes about `versions` versions out of a generation that nobody looks at any more, so that freeing it can be
    /// spread; answers whether there are more.
    pub fn dismantle(&mut self, versions: usize) -> bool {
        let mut left = versions;
        while let Some(shard) = self.shards.last_mut() {
            let next = shard.slots.len().saturating_sub(left);
            load(shard.slots[next..].iter().map(Slot::touch));
            while let Some(slot) = shard.slots.last_mut() {
                if left == 0 {
                    return true;
                }
                if slot.older.len() >= left {
                    slot.older.truncate(slot.older.len() - left);
                    return true;
                }
                left -= 1 + slot.older.len();
                shard.slots.pop();
            }
            self.shards.pop();
        }
        false
    }

    /// How many keys it has.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.slots.len()).sum()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| shard.slots.is_empty())
    }
}

/// Rides along in a comparison without taking part.
struct Same(Place);
impl PartialEq for Same {
    fn eq(&self, _: &Same) -> bool {
        true
    }
}
impl Eq for Same {}
impl PartialOrd for Same {
    fn partial_cmp(&self, other: &Same) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Same {
    fn cmp(&self, _: &Same) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

/// All recent versions of a partition.
#[derive(Default)]
pub struct Overlay {
    hasher: KeyHasher,
    active: Generation,
    frozen: Option<Rc<Generation>>,
}

impl Overlay {
    /// An empty one, with the partition's hasher.
    pub fn new(hasher: KeyHasher) -> Overlay {
        Overlay { hasher, ..Overlay::default() }
    }

    /// The key with its hash.
    pub fn hashed<'a>(&self, key: &'a [u8]) -> Hashed<'a> {
        self.hasher.of(key)
    }

    /// Adds a version; versions of a key come in order. `prior` is
    /// asked if the key has no recent version yet.
    pub fn insert(
        &mut self,
        key: &Key,
        hash: u64,
        version: Version,
        entry: Entry,
        seen: &Seen<'_>,
        prior: impl FnOnce() -> Prior,
    ) {
        let hashed = Hashed { key, hash };
        let Some(entry) = self.active.push(hashed, version, entry, seen) else { return };
        // What the frozen generation will leave in the index is known when it is settled.
        let frozen = self.frozen.as_ref().is_some_and(|f| f.find(hashed).is_some());
        let prior = if frozen { Prior::Unknown } else { prior() };
        self.active.add(key, hash, version, entry, prior);
    }

    /// What `key` holds at `snapshot`, if a recent version says so.
    pub fn get(&self, key: Hashed<'_>, snapshot: Version) -> Option<&(Version, Entry)> {
        let active = self.active.find(key).and_then(|slot| slot.newest_at(snapshot));
        active.or_else(|| self.frozen.as_ref()?.find(key)?.newest_at(snapshot))
    }

    /// What is there for a key with this hash: almost always that key.
    pub(super) fn likely(&self, hash: u64) -> Option<&Slot> {
        self.active.likely(hash).or_else(|| self.frozen.as_ref()?.likely(hash))
    }

    /// The newest version of `key`, pending or not, if it is recent.
    pub fn newest(&self, key: Hashed<'_>) -> Option<Version> {
        let slot = self.active.find(key).or_else(|| self.frozen.as_ref()?.find(key));
        slot.map(|slot| slot.newest.0)
    }

    /// The index has just been given this for `key`, which was written again meanwhile.
    pub fn settled_below(&mut self, key: Hashed<'_>, prior: Prior) {
        let shard = &mut self.active.shards[shard_of(key.hash)];
        if let Some(found) = shard.find(key) {
            shard.slots[found].prior = prior;
        }
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
        *self = Overlay::new(self.hasher);
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

    fn value(text: &str) -> Entry {
        Entry::Value(text.as_bytes().into())
    }
    fn put(overlay: &mut Overlay, key: &str, version: Version, entry: Entry, oldest_seen: Version) {
        let key: Key = key.as_bytes().into();
        let hash = overlay.hashed(&key).hash;
        let seen = Seen { oldest: oldest_seen, published: oldest_seen, is_open_within: &|_, _| true };
        overlay.insert(&key, hash, version, entry, &seen, || Prior::Unknown);
    }
    fn get(overlay: &Overlay, snapshot: Version) -> Option<(Version, Entry)> {
        overlay.get(overlay.hashed(b"a"), snapshot).cloned()
    }

    #[test]
    fn a_snapshot_sees_the_newest_version_below_it_across_generations() {
        let mut overlay = Overlay::default();
        put(&mut overlay, "a", 1, value("1"), 0);
        put(&mut overlay, "a", 3, value("3"), 0);
        let frozen = overlay.freeze(3);
        put(&mut overlay, "a", 5, Entry::Tombstone, 0);
        assert_eq!(get(&overlay, 4), Some((3, value("3"))));
        assert_eq!(get(&overlay, 2), Some((1, value("1"))));
        assert_eq!(get(&overlay, 5), Some((5, Entry::Tombstone)));
        assert_eq!(get(&overlay, 0), None);
        assert_eq!(overlay.newest(overlay.hashed(b"a")), Some(5));
        assert_eq!(frozen.len(), 1);
        overlay.settle();
        assert_eq!(get(&overlay, 4), None, "settled versions are the index's");
    }

    #[test]
    fn the_last_write_of_a_transaction_wins() {
        let mut overlay = Overlay::default();
        put(&mut overlay, "a", 1, value("1"), 0);
        put(&mut overlay, "a", 1, value("2"), 0);
        assert_eq!(get(&overlay, 1), Some((1, value("2"))));
    }

    #[test]
    fn versions_that_nobody_sees_go_and_their_bytes_with_them() {
        let mut overlay = Overlay::default();
        for version in 1..=9 {
            put(&mut overlay, "a", version, value("12345"), 0);
        }
        let all = overlay.bytes();
        put(&mut overlay, "a", 10, value("12345"), 7);
        // 7 is what the oldest snapshot sees; 8, 9 and 10 are newer.
        assert_eq!(overlay.bytes(), all - 5 * (VERSION_OVERHEAD + 5));
        assert_eq!(get(&overlay, 7).map(|(v, _)| v), Some(7));
        assert_eq!(get(&overlay, 6), None);
        put(&mut overlay, "a", 11, value("12345"), 11);
        assert_eq!(overlay.bytes(), KEY_OVERHEAD + 1 + VERSION_OVERHEAD + 5);
    }

    #[test]
    fn beside_open_snapshots_a_hot_key_keeps_what_they_see_and_what_is_pending() {
        const WRITES: Version = 100_000;
        /// So many versions are on their way to be published.
        const PENDING: Version = 300;
        let open = [3, 4, 40_000, 40_001, 90_000];
        let is_open_within = |from: Version, to: Version| open.iter().any(|version| (from..to).contains(version));
        let mut overlay = Overlay::default();
        let (key, mut most) = (Key::from(b"a".as_slice()), 0);
        let hash = overlay.hashed(&key).hash;
        for version in 1..=WRITES {
            let published = version.saturating_sub(PENDING);
            let seen = Seen { oldest: published.min(3), published, is_open_within: &is_open_within };
            overlay.insert(&key, hash, version, value("1"), &seen, || Prior::Unknown);
            most = most.max(overlay.bytes());
        }
        for snapshot in open.into_iter().chain(WRITES - PENDING..=WRITES) {
            assert_eq!(get(&overlay, snapshot).map(|(version, _)| version), Some(snapshot));
        }
        // Twice what is needed at most.
        assert!(most < 2 * (PENDING + 100) * (VERSION_OVERHEAD + 1), "{most} bytes");
    }

    #[test]
    fn a_generation_is_sorted_and_dismantled_piece_by_piece() {
        let mut overlay = Overlay::default();
        let keys: Vec<String> = (0..5000).map(|i| format!("{}", i * 7919 % 5000)).collect();
        keys.iter().for_each(|key| put(&mut overlay, key, 1, Entry::Tombstone, 0));
        let frozen = overlay.freeze(1);
        let sorted = frozen.sorted_pieces(30).collect();
        let got: Vec<Key> = frozen.merge(sorted).map(|place| frozen.at(place).key.clone()).collect();
        let mut expected: Vec<Key> = keys.iter().map(|key| key.as_bytes().into()).collect();
        expected.sort();
        assert!(got == expected);
        overlay.settle();
        let mut alone = Rc::try_unwrap(frozen).unwrap_or_else(|_| panic!("nobody else has it"));
        let pieces = std::iter::from_fn(|| alone.dismantle(512).then_some(())).count();
        assert_eq!((pieces, alone.len()), (5000 / 512, 0));
    }

    #[test]
    fn a_key_with_many_versions_is_freed_piece_by_piece_as_well() {
        let mut overlay = Overlay::default();
        (1..=5000).for_each(|version| put(&mut overlay, "a", version, value("1"), 0));
        assert_eq!(get(&overlay, 2500), Some((2500, value("1"))));
        let all = overlay.bytes();
        put(&mut overlay, "a", 5001, value("1"), 5000);
        let freed = all + VERSION_OVERHEAD + 1 - overlay.bytes();
        assert_eq!(freed, UNSEEN_AT_ONCE as u64 * (VERSION_OVERHEAD + 1));
        let frozen = overlay.freeze(5001);
        overlay.settle();
        let mut alone = Rc::try_unwrap(frozen).unwrap_or_else(|_| panic!("nobody else has it"));
        let pieces = std::iter::from_fn(|| alone.dismantle(512).then_some(())).count();
        assert_eq!((pieces, alone.len()), ((5001 - UNSEEN_AT_ONCE) / 512, 0));
    }

    #[test]
    fn what_is_below_a_key_is_kept_from_its_first_write_and_learned_from_a_checkpoint() {
        let mut overlay = Overlay::default();
        let key: Key = b"a".as_slice().into();
        let hash = overlay.hashed(&key).hash;
        let prior = |overlay: &Overlay| overlay.active.find(Hashed { key: b"a", hash }).map(|slot| slot.prior);
        overlay.insert(&key, hash, 1, Entry::Tombstone, &Seen::ALL, || Prior::Absent);
        overlay.insert(&key, hash, 2, Entry::Tombstone, &Seen::ALL, || Prior::Unknown);
        assert_eq!(prior(&overlay), Some(Prior::Absent));
        overlay.freeze(2);
        overlay.insert(&key, hash, 3, Entry::Tombstone, &Seen::ALL, || Prior::Absent);
        assert_eq!(prior(&overlay), Some(Prior::Unknown), "the frozen generation comes in between");
        overlay.settle();
        overlay.settled_below(Hashed { key: b"a", hash }, Prior::Value { file: 1, length: 2 });
        assert_eq!(prior(&overlay), Some(Prior::Value { file: 1, length: 2 }));
    }
}
