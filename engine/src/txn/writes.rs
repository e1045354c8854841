//! What a transaction will write, the last write of a key alone: few writes in a plain list, many in a tree.

use super::Write;
use crate::types::Key;
use std::collections::BTreeMap;

/// A list is looked through up to this length.
const FEW: usize = 16;

/// Buffered writes.
pub struct Writes(Held);

enum Held {
    Few(Vec<(Key, Write)>),
    Many(BTreeMap<Key, Write>),
}

impl Default for Writes {
    fn default() -> Writes {
        Writes(Held::Few(Vec::new()))
    }
}

impl Writes {
    /// The write of `key`.
    pub fn get(&self, key: &[u8]) -> Option<&Write> {
        match &self.0 {
            Held::Few(few) => few.iter().find(|(k, _)| **k == *key).map(|(_, write)| write),
            Held::Many(many) => many.get(key),
        }
    }

    /// Puts a write in place of an earlier one of the key.
    pub fn insert(&mut self, key: Key, write: Write) {
        match &mut self.0 {
            Held::Many(many) => {
                many.insert(key, write);
            }
            Held::Few(few) => {
                if let Some((_, old)) = few.iter_mut().find(|(k, _)| *k == key) {
                    *old = write;
                    return;
                }
                few.push((key, write));
                if few.len() > FEW {
                    self.0 = Held::Many(std::mem::take(few).into_iter().collect());
                }
            }
        }
    }

    /// Forgets the write of `key`.
    pub fn remove(&mut self, key: &[u8]) {
        match &mut self.0 {
            Held::Few(few) => few.retain(|(k, _)| **k != *key),
            Held::Many(many) => {
                many.remove(key);
            }
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        match &self.0 {
            Held::Few(few) => few.is_empty(),
            Held::Many(many) => many.is_empty(),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match &self.0 {
            Held::Few(few) => few.len(),
            Held::Many(many) => many.len(),
        }
    }

    /// All of them in the order of their keys.
    pub fn into_sorted(self) -> Sorted {
        match self.0 {
            Held::Few(mut few) => {
                few.sort_unstable_by(|a, b| a.0.cmp(&b.0));
                Sorted::Few(few.into_iter())
            }
            Held::Many(many) => Sorted::Many(many.into_iter()),
        }
    }
}

/// Writes in the order of their keys; each is let go as it is taken.
pub enum Sorted {
    /// From a list.
    Few(std::vec::IntoIter<(Key, Write)>),
    /// From a tree.
    Many(std::collections::btree_map::IntoIter<Key, Write>),
}

impl Iterator for Sorted {
    type Item = (Key, Write);

    fn next(&mut self) -> Option<(Key, Write)> {
        match self {
            Sorted::Few(few) => few.next(),
            Sorted::Many(many) => many.next(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match self {
            Sorted::Few(few) => few.size_hint(),
            Sorted::Many(many) => many.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_or_many_writes_behave_like_a_map() {
        let key = |i: u32| Key::from(format!("{i:04}").as_bytes());
        let value = |i: u32| Write::Set(i.to_le_bytes().as_slice().into());
        for count in [0, 1, 5, FEW as u32, FEW as u32 + 1, 300] {
            let (mut writes, mut map) = (Writes::default(), BTreeMap::new());
            for i in (0..count).rev().chain(0..count / 3) {
                writes.insert(key(i), value(i + 1));
                map.insert(key(i), value(i + 1));
                if i % 4 == 0 {
                    writes.remove(&key(i + 1));
                    map.remove(&key(i + 1));
                }
            }
            assert!((0..count).all(|i| writes.get(&key(i)) == map.get(&key(i))));
            assert_eq!(writes.is_empty(), map.is_empty());
            assert_eq!(writes.len(), map.len());
            assert!(writes.into_sorted().eq(map));
        }
    }
}
