//! Hashes of keys: computed once for an operation, used by the overlay and the cache.
//!
//! SipHash with a secret of the partition's: clients cannot choose keys that collide, and the simulator can repeat a run.

use std::hash::{DefaultHasher, Hasher};

/// Hashes keys under a secret.
#[derive(Clone, Copy, Default)]
pub struct KeyHasher(u64);

/// A key with its hash.
#[derive(Clone, Copy)]
pub struct Hashed<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Its hash under the partition's secret.
    pub hash: u64,
}

impl KeyHasher {
    /// A hasher with this secret.
    pub fn new(secret: u64) -> KeyHasher {
        KeyHasher(secret)
    }

    /// The key with its hash.
    pub fn of<'a>(&self, key: &'a [u8]) -> Hashed<'a> {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.0);
        hasher.write(key);
        Hashed { key, hash: hasher.finish() }
    }
}
