//! Which key comes next, and whether it is read or written.

/// What a transaction does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Reads its keys.
    Read,
    /// Writes its keys.
    Write,
}

/// A part of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Phase {
    /// Every key once, in order (again from the first when a duration asks for more).
    Write,
    /// The same, reading.
    Read,
    /// Keys at random; this share of transactions reads.
    Mixed(f64),
}

impl Phase {
    /// As reports name it.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Write => "WRITE",
            Phase::Read => "READ",
            Phase::Mixed(_) => "MIXED",
        }
    }

    /// The phases that `-ratio` asks for.
    pub fn of_ratio(ratio: f64) -> Vec<Phase> {
        if ratio < 0.0 { vec![Phase::Write, Phase::Read] } else { vec![Phase::Mixed(ratio)] }
    }
}

/// A generator of 64-bit numbers (Vigna's splitmix64).
#[derive(Debug, Clone)]
pub struct Numbers(u64);

impl Numbers {
    /// From a seed.
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed)
    }
    /// Another one.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// One below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(limit)) >> 64) as u64
    }
}

/// The choices of one connection. Connection `i` of `c` owns the keys `<prefix>-<i>-<index>`.
#[derive(Debug, Clone)]
pub struct Chooser {
    phase: Phase,
    client: u32,
    keys: u64,
    next: u64,
    numbers: Numbers,
    prefix: String,
    key_bytes: usize,
}

impl Chooser {
    /// For a connection that owns `keys` keys.
    pub fn new(phase: Phase, client: u32, keys: u64, seed: u64, prefix: &str, key_bytes: usize) -> Chooser {
        let numbers = Numbers::new(seed ^ u64::from(client).wrapping_mul(0x1000_0001));
        Chooser { phase, client, keys: keys.max(1), next: 0, numbers, prefix: prefix.to_owned(), key_bytes }
    }

    /// What the next transaction does.
    pub fn action(&mut self) -> Action {
        match self.phase {
            Phase::Write => Action::Write,
            Phase::Read => Action::Read,
            Phase::Mixed(share) => {
                let drawn = (self.numbers.draw() >> 11) as f64 / (1u64 << 53) as f64;
                if drawn < share { Action::Read } else { Action::Write }
            }
        }
    }

    /// Writes the next key into `key`.
    pub fn key(&mut self, key: &mut Vec<u8>) {
        use std::io::Write;
        let index = match self.phase {
            Phase::Mixed(_) => self.numbers.below(self.keys),
            Phase::Write | Phase::Read => {
                self.next += 1;
                (self.next - 1) % self.keys
            }
        };
        key.clear();
        // Writing to memory cannot fail.
        let _ = write!(key, "{}-{}-{index}", self.prefix, self.client);
        while key.len() < self.key_bytes {
            key.push(b'x');
        }
    }
}

/// A connection's share of `total`: the remainder goes to the first ones.
pub fn share(total: u64, connections: u32, connection: u32) -> u64 {
    total / u64::from(connections) + u64::from(u64::from(connection) < total % u64::from(connections))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_look_like_the_originals_and_phases_go_through_all_of_them() {
        let mut chooser = Chooser::new(Phase::Write, 0, 3, 1, "bench", 32);
        let mut key = Vec::new();
        chooser.key(&mut key);
        assert_eq!(key, b"bench-0-0xxxxxxxxxxxxxxxxxxxxxxx");
        let mut seen = Vec::new();
        for _ in 0..4 {
            chooser.key(&mut key);
            seen.push(key[8]);
        }
        assert_eq!(seen, b"1201");
    }

    #[test]
    fn a_mixed_phase_reads_its_share_of_its_own_keys() {
        let mut chooser = Chooser::new(Phase::Mixed(0.25), 7, 10, 1, "b", 1);
        let reads = (0..10_000).filter(|_| chooser.action() == Action::Read).count();
        assert!((2_300..2_700).contains(&reads), "{reads}");
        let mut key = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            chooser.key(&mut key);
            seen.insert(key.clone());
        }
        assert_eq!(seen.len(), 10);
    }

    #[test]
    fn shares_add_up() {
        assert_eq!((0..50).map(|i| share(1003, 50, i)).sum::<u64>(), 1003);
        assert_eq!(share(3, 50, 10), 0);
    }
}
