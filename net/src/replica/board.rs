//! What a core knows of its partitions' replication, for those who ask.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use turnstone_replication::quorum::Key;

/// A follower as `stat` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Its node.
    pub node: u64,
    /// Its partition there.
    pub partition: u8,
    /// Its process.
    pub life: u64,
    /// Its address.
    pub peer: String,
    /// What it has on its disk.
    pub acked: u64,
}

/// What a core knows of its partitions' replication.
#[derive(Default)]
pub struct Board {
    replicas: RefCell<BTreeMap<(u8, u64), Replica>>,
    upstream: RefCell<BTreeMap<u8, Following>>,
    /// Streams whose follower was forgotten.
    evicted: RefCell<BTreeSet<(u8, u64)>>,
    next: std::cell::Cell<u64>,
}

/// How a partition gets on with its leader.
pub(super) enum Following {
    /// It has a stream, and is this many versions behind.
    Streaming(u64),
    /// It takes a copy: so many keys of so many are here.
    Copying(u64, u64),
    /// It has none, and why.
    Broken(String),
}

impl Board {
    /// Who follows a partition now.
    pub fn replicas(&self, partition: u8) -> Vec<Replica> {
        let replicas = self.replicas.borrow();
        replicas.range((partition, 0)..=(partition, u64::MAX)).map(|(_, replica)| replica.clone()).collect()
    }

    /// Who follows a partition now, by node and partition.
    pub fn present(&self, partition: u8) -> BTreeSet<Key> {
        self.replicas(partition).into_iter().map(|replica| (replica.node, replica.partition)).collect()
    }

    /// How many versions a partition lacks that its upstream shows, while it streams.
    pub fn lag(&self, partition: u8) -> Option<u64> {
        match self.upstream.borrow().get(&partition) {
            Some(Following::Streaming(lag)) => Some(*lag),
            _ => None,
        }
    }

    /// How a partition that follows gets on with its leader.
    pub fn upstream(&self, partition: u8) -> Option<String> {
        self.upstream.borrow().get(&partition).map(|following| match following {
            Following::Streaming(lag) => format!("streaming, {lag} behind"),
            Following::Copying(here, all) => format!("copying, {here} of {all} keys"),
            Following::Broken(why) => format!("broken: {why}"),
        })
    }

    /// A number for a stream.
    pub(super) fn stream(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    pub(super) fn set_replica(&self, partition: u8, stream: u64, replica: Replica) {
        self.replicas.borrow_mut().insert((partition, stream), replica);
    }

    pub(super) fn remove_replica(&self, partition: u8, stream: u64) {
        self.replicas.borrow_mut().remove(&(partition, stream));
        self.evicted.borrow_mut().remove(&(partition, stream));
    }

    /// The streams of a node are to end.
    pub(super) fn evict(&self, partition: u8, node: u64) {
        let replicas = self.replicas.borrow();
        let streams =
            replicas.range((partition, 0)..=(partition, u64::MAX)).filter(|(_, replica)| replica.node == node);
        self.evicted.borrow_mut().extend(streams.map(|(stream, _)| *stream));
    }

    pub(super) fn is_evicted(&self, partition: u8, stream: u64) -> bool {
        self.evicted.borrow().contains(&(partition, stream))
    }

    /// Whether a partition that follows has a stream, or takes a copy.
    pub(super) fn is_streaming(&self, partition: u8) -> bool {
        let upstream = self.upstream.borrow();
        matches!(upstream.get(&partition), Some(Following::Streaming(_) | Following::Copying(..)))
    }

    pub(super) fn set_upstream(&self, partition: u8, following: Following) {
        self.upstream.borrow_mut().insert(partition, following);
    }

    pub(super) fn clear_upstream(&self, partition: u8) {
        self.upstream.borrow_mut().remove(&partition);
    }
}
