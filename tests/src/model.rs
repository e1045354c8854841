//! What a partition must hold: every commit by version, and how much of it somebody was told.

use std::collections::BTreeMap;
use turnstone_engine::types::Version;

/// Number of a key; its bytes are made from it.
pub type KeyNumber = u32;

/// What a commit did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Commit {
    /// Keys and their new values; `None` deletes.
    Writes(Vec<(KeyNumber, Option<Vec<u8>>)>),
    /// Every key went.
    Flush,
}

/// The contents of a partition at a version.
pub type Contents = BTreeMap<KeyNumber, Vec<u8>>;

/// All commits so far.
#[derive(Clone, Default)]
pub struct Model {
    commits: BTreeMap<Version, Commit>,
    /// Where the last restart began.
    base: Version,
    /// The newest version that anybody was told of, by an acknowledgement or by what a read returned.
    pub told: Version,
    /// The newest version that the log vouched for.
    pub vouched: Version,
    /// The log was cut by order: what the index has may be missing in it.
    pub log_was_cut: bool,
}

impl Model {
    /// A transaction was prepared.
    pub fn commit(&mut self, version: Version, commit: Commit) {
        assert!(self.commits.insert(version, commit).is_none(), "version {version} was given twice");
    }

    /// Everything may be flushed already, as of the first version that nobody has.
    pub fn flush_if_there(&mut self) {
        let mut version = self.base + 1;
        while self.commits.contains_key(&version) {
            version += 1;
        }
        self.commits.insert(version, Commit::Flush);
    }

    /// Somebody was told of `version`.
    pub fn tell(&mut self, version: Version) {
        self.told = self.told.max(version);
    }

    /// The newest version that was ever prepared.
    pub fn newest(&self) -> Version {
        self.commits.keys().next_back().copied().unwrap_or(0)
    }

    /// The contents that a snapshot at `version` must see.
    pub fn at(&self, version: Version) -> Contents {
        let mut contents = Contents::new();
        for commit in self.commits.range(..=version).map(|(_, commit)| commit) {
            match commit {
                Commit::Flush => contents.clear(),
                Commit::Writes(writes) => {
                    for (key, value) in writes {
                        match value {
                            Some(value) => contents.insert(*key, value.clone()),
                            None => contents.remove(key),
                        };
                    }
                }
            }
        }
        contents
    }

    /// What `key` holds for a snapshot at `version`.
    pub fn get(&self, version: Version, key: KeyNumber) -> Option<&[u8]> {
        for commit in self.commits.range(..=version).rev().map(|(_, commit)| commit) {
            match commit {
                Commit::Flush => return None,
                Commit::Writes(writes) => {
                    if let Some((_, value)) = writes.iter().find(|(k, _)| *k == key) {
                        return value.as_deref();
                    }
                }
            }
        }
        None
    }

    /// A commit between two versions (both excluded) that touches one of the keys.
    pub fn touched(&self, after: Version, before: Version, keys: &[KeyNumber]) -> Option<Version> {
        let touches = |commit: &Commit| match commit {
            // A blind write that commits by itself depends on nothing.
            Commit::Flush => !keys.is_empty(),
            Commit::Writes(writes) => writes.iter().any(|(key, _)| keys.contains(key)),
        };
        self.commits.range(after + 1..before).find(|(_, commit)| touches(commit)).map(|(version, _)| *version)
    }

    /// A restart found everything up to `version`; what came later never happened.
    pub fn restart_at(&mut self, version: Version) {
        self.commits.retain(|v, _| *v <= version);
        self.base = version;
        self.told = version;
        self.vouched = version;
    }
}

/// The bytes of a key: short and long ones, so that entries differ in size.
pub fn key_bytes(key: KeyNumber) -> Vec<u8> {
    let mut bytes = format!("key-{key:04}").into_bytes();
    if key.is_multiple_of(7) {
        bytes.extend(std::iter::repeat_n(b'x', 200));
    }
    bytes
}
