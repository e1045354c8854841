//! Fuzz targets: functions that take any bytes and panic where a reader of them breaks its word. `tests/fuzz` runs them under
//! libFuzzer; `tests/tests/parallel/fuzz_corpus.rs` runs them on what was found there, without it.
//!
//! Readers behind checksums see little of random bytes. Their targets therefore read the input as a script, in one of
//! several modes: bytes as they are, bytes with their checksums mended, and whole files with one damage in them, where it is
//! known what must still be read.

pub mod cdc;
pub mod changes;
pub mod config;
pub mod frames;
pub mod manifest;
pub mod memory;
pub mod replication;
pub mod runs;
pub mod session;
pub mod values;
pub mod wal;

/// A fuzz target.
pub struct Target {
    /// Its name, that of its corpus, and that of its wrapper.
    pub name: &'static str,
    /// What it does with an input.
    pub run: fn(&[u8]),
    /// Inputs to begin with: small, whole, and well-formed.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// Every target.
pub const TARGETS: [Target; 13] = [
    Target { name: "frames_v1", run: frames::v1, seeds: frames::seeds_v1 },
    Target { name: "frames_turnstone2", run: frames::turnstone2, seeds: frames::seeds_turnstone2 },
    Target { name: "session", run: session::run, seeds: session::seeds },
    Target { name: "wal", run: wal::run, seeds: wal::seeds },
    Target { name: "values", run: values::run, seeds: values::seeds },
    Target { name: "manifest", run: manifest::run, seeds: manifest::seeds },
    Target { name: "runs", run: runs::run, seeds: runs::seeds },
    Target { name: "config", run: config::run, seeds: config::seeds },
    Target { name: "cdc_lines", run: cdc::lines, seeds: cdc::seeds_lines },
    Target { name: "cdc_cursor", run: cdc::cursor, seeds: cdc::seeds_cursor },
    Target { name: "cdc_config", run: cdc::config, seeds: cdc::seeds_config },
    Target { name: "changes", run: changes::run, seeds: changes::seeds },
    Target { name: "replication", run: replication::run, seeds: replication::seeds },
];

/// Takes the parts of a script off the front of an input. Where the input ends, everything is zero or empty.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut out = [0; N];
        let bytes = self.bytes(N);
        out[..bytes.len()].copy_from_slice(bytes);
        out
    }

    fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// Up to `count` bytes.
    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}

/// One damage: up to 32 neighbouring bits that flip, and an end that is cut off. CRC-32 sees each such flip for certain, so
/// what must be refused is no matter of chance.
struct Damage {
    offset: usize,
    flip: [u8; 4],
    keep: usize,
}

impl Damage {
    /// Reads a damage to `length` bytes.
    fn take(script: &mut Script<'_>, length: usize) -> Damage {
        let kind = script.u8();
        let offset = script.u32() as usize % length.max(1);
        let flip = if kind & 1 == 1 { script.array() } else { [0; 4] };
        let keep = if kind & 2 == 2 { script.u32() as usize % (length + 1) } else { length };
        Damage { offset, flip, keep }
    }

    fn apply(&self, bytes: &mut Vec<u8>) {
        for (byte, flip) in bytes.iter_mut().skip(self.offset).zip(self.flip) {
            *byte ^= flip;
        }
        bytes.truncate(self.keep);
    }
}
