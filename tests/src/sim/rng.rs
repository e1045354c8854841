//! A small seeded generator (xorshift64*, by Vigna), so that every decision of a run can be repeated.

use std::cell::Cell;

/// A source of repeatable choices.
pub struct Rng(Cell<u64>);

impl Rng {
    /// Seeds differ in all bits after this mixing (splitmix64).
    pub fn new(seed: u64) -> Rng {
        Rng(Cell::new(mix(seed) | 1))
    }
    /// 64 bits.
    pub fn next(&self) -> u64 {
        let mut x = self.0.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    /// Below `n`.
    pub fn below(&self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
    /// True in `percent` of 100 cases.
    pub fn percent(&self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Spreads the bits of a number (splitmix64).
pub fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
