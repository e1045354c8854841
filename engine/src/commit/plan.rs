//! What a transaction's writes become: entries of the overlay in the order of their keys, values that are written on their own, and
//! the room in the log that all of it needs.

use crate::txn::Write;
use crate::txn::writes::Writes;
use crate::types::{Entry, Key, Value, ValuePointer};
use crate::wal::{self, body};

/// What a transaction becomes in the log and in the overlay.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) entries: Vec<(Key, Entry)>,
    /// Values that are written before the prepare.
    pub(super) large: Vec<(Key, Value)>,
    /// Bytes of log that are reserved for it.
    pub(super) cost: u64,
}

impl Plan {
    /// Whether it writes nothing else. Looked at only where space is short.
    pub(super) fn deletes_only(&self) -> bool {
        self.entries.iter().all(|(_, entry)| matches!(entry, Entry::Tombstone))
    }
}

/// A plan that grows by writes.
pub(super) struct Planner {
    entries: Vec<(Key, Entry)>,
    large: Vec<(Key, Value)>,
    bytes: usize,
    separation: usize,
}

impl Planner {
    pub(super) fn new(count: usize, separation: usize) -> Planner {
        Planner { entries: Vec::with_capacity(count), large: Vec::new(), bytes: 0, separation }
    }

    pub(super) fn add(&mut self, (key, write): (Key, Write)) {
        let entry = match write {
            Write::Set(value) if value.len() >= self.separation => {
                // Place and checksum are filled in once the value is written.
                let place = ValuePointer { file: 0, offset: 0, length: value.len() as u32, checksum: 0 };
                self.large.push((key.clone(), value));
                Entry::Pointer(place)
            }
            Write::Set(value) => Entry::Value(value),
            Write::Delete => Entry::Tombstone,
        };
        self.bytes += body::change_len(&key, &entry);
        self.entries.push((key, entry));
    }

    pub(super) fn plan(self) -> Plan {
        let cost = wal::cost(self.bytes, self.large.len());
        Plan { entries: self.entries, large: self.large, cost }
    }
}

pub(super) fn plan(writes: Writes, separation: usize) -> Plan {
    let mut planner = Planner::new(writes.len(), separation);
    writes.into_sorted().for_each(|write| planner.add(write));
    planner.plan()
}
