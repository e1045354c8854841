//! Waiting for memory once for many keys.
//!
//! A look-up goes from table to slot to key to value, each somewhere else in memory and known only from the one before. With
//! more keys than the processor's caches hold, it waits for memory at every step: that was half of the processor time of a
//! GET. Where several requests are there already, what they will touch is loaded beforehand, step by step for all of them
//! together. Loads of different keys do not depend on each other, so the processor has many under way at once and the
//! waits overlap; the look-ups themselves then find everything near. The method is group prefetching (Chen, Ailamaki,
//! Gibbons, Mowry: Improving Hash Join Performance through Prefetching, ICDE 2004), with plain loads, since safe Rust has no
//! prefetch.
//!
//! Nothing depends on it: what is touched may be gone, or another key's, by the time of the look-up.

use super::hot::{self, HotCache};
use super::overlay::{self, Overlay};
use crate::types::{Key, Value};
use std::cell::Ref;
use std::hint::black_box;
use std::rc::Rc;

/// Keys that are worth loading together: about as many loads as a core has under way.
pub const TOGETHER: usize = 16;
/// Bytes that come with one load.
const LINE: usize = 64;
/// Of longer values only the beginning is loaded; the processor sees by itself where a copy is going.
const VALUE_BYTES: usize = 16 * LINE;

/// Where a key is.
#[derive(Clone, Copy)]
enum Spot<'a> {
    Nowhere,
    Recent(&'a overlay::Slot),
    Settled(&'a hot::Slot),
}

/// Where a key is looked for.
pub type Tables<'a> = (Ref<'a, Overlay>, Ref<'a, HotCache>);

/// Loads what look-ups of these keys will touch, each in its tables; at most [`TOGETHER`].
pub fn warm(tables: &[Option<Tables<'_>>; TOGETHER], keys: &[&[u8]; TOGETHER]) {
    let mut hashes = [0; TOGETHER];
    let mut spots = [Spot::Nowhere; TOGETHER];
    for ((hash, tables), key) in hashes.iter_mut().zip(tables).zip(keys) {
        *hash = tables.as_ref().map_or(0, |(overlay, _)| overlay.hashed(key).hash);
    }
    for ((spot, tables), hash) in spots.iter_mut().zip(tables).zip(hashes) {
        let Some((overlay, hot)) = tables else { break };
        *spot = match overlay.likely(hash) {
            Some(slot) => Spot::Recent(slot),
            None => hot.likely(hash).map_or(Spot::Nowhere, Spot::Settled),
        };
    }
    let touched = spots.iter().map(|spot| match spot {
        Spot::Nowhere => 0,
        Spot::Recent(slot) => slot.touch(),
        Spot::Settled(slot) => slot.touch(),
    });
    load(touched);
}

/// Has the processor load what these sums are of, although nobody wants the sums.
pub(super) fn load(touched: impl Iterator<Item = usize>) {
    black_box(touched.fold(0, usize::wrapping_add));
}

/// Loads a key.
pub(super) fn touch_key(key: &Key) -> usize {
    key.iter().step_by(LINE).map(|byte| usize::from(*byte)).sum()
}

/// Loads a value, and what counts who holds it.
pub(super) fn touch_value(value: &Value) -> usize {
    let bytes = &value[..value.len().min(VALUE_BYTES)];
    Rc::strong_count(value) + bytes.iter().step_by(LINE).map(|byte| usize::from(*byte)).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::super::hash::KeyHasher;
    use super::super::hot::Known;
    use super::super::overlay::{Prior, Seen};
    use super::*;
    use crate::types::{Entry, ValuePointer};
    use std::cell::RefCell;

    #[test]
    fn what_will_be_looked_up_is_found_wherever_it_is_and_nothing_changes() {
        let hasher = KeyHasher::new(7);
        let (mut overlay, mut hot) = (Overlay::new(hasher), HotCache::new(1 << 20));
        let place = ValuePointer { file: 1, offset: 0, length: 5000, checksum: 0 };
        let write = |overlay: &mut Overlay, key: &[u8], version, entry| {
            overlay.insert(&key.into(), hasher.of(key).hash, version, entry, &Seen::ALL, || Prior::Unknown);
        };
        write(&mut overlay, b"frozen", 1, Entry::Value([1; 100].as_slice().into()));
        overlay.freeze(1);
        write(&mut overlay, b"twice", 2, Entry::Value([2; 5000].as_slice().into()));
        write(&mut overlay, b"twice", 3, Entry::Value([].as_slice().into()));
        write(&mut overlay, b"gone", 4, Entry::Tombstone);
        let known = [Known::Absent, Known::Pointer(place), Known::Value(place, [3; 5000].as_slice().into())];
        for (key, known) in [b"absent".as_slice(), b"pointer", b"value"].into_iter().zip(known) {
            hot.insert(key.into(), hasher.of(key).hash, known);
        }
        let found = |key: &[u8]| overlay.likely(hasher.of(key).hash).is_some();
        assert!(found(b"frozen") && found(b"twice") && found(b"gone") && !found(b"value"));
        assert!([b"absent".as_slice(), b"pointer", b"value"].iter().all(|k| hot.likely(hasher.of(k).hash).is_some()));
        let (overlay, hot) = (RefCell::new(overlay), RefCell::new(hot));
        let keys: [&[u8]; TOGETHER] = std::array::from_fn(|i| {
            [b"frozen".as_slice(), b"twice", b"gone", b"absent", b"pointer", b"value", b"nowhere", b""][i % 8]
        });
        for count in 0..=TOGETHER {
            let tables = std::array::from_fn(|i| (i < count).then(|| (overlay.borrow(), hot.borrow())));
            warm(&tables, &keys);
        }
        let hot = hot.borrow();
        assert_eq!((hot.hits, hot.misses), (0, 0), "it counts as no look-up");
    }
}
