//! Buffers for direct I/O: their memory starts at a multiple of [`BLOCK`], without a line of unsafe code: a little
//! more is allocated than asked for, and the part that starts at the right address is used.

use crate::disk::BLOCK;
use std::ops::{Deref, DerefMut, Range};

/// Zeroed bytes at an aligned address; the length is a multiple of [`BLOCK`].
pub struct AlignedBuf {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBuf {
    /// At least `length` zero bytes, rounded up to whole blocks.
    pub fn zeroed(length: usize) -> AlignedBuf {
        let length = round_up(length);
        let bytes = vec![0u8; length + BLOCK];
        let start = bytes.as_ptr().align_offset(BLOCK);
        assert!(start <= BLOCK, "a byte pointer can always be aligned");
        AlignedBuf { bytes, start, length }
    }

    /// A copy of `bytes`, padded with zeros to whole blocks.
    pub fn copy_of(bytes: &[u8]) -> AlignedBuf {
        let mut buffer = AlignedBuf::zeroed(bytes.len());
        buffer[..bytes.len()].copy_from_slice(bytes);
        buffer
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

/// What a read returned: a part of an aligned buffer.
pub struct ReadBuf {
    buffer: AlignedBuf,
    range: Range<usize>,
}

impl ReadBuf {
    /// The part `range` of `buffer`.
    pub fn new(buffer: AlignedBuf, range: Range<usize>) -> ReadBuf {
        assert!(range.end <= buffer.len());
        ReadBuf { buffer, range }
    }
}

impl Deref for ReadBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }
}

/// The next multiple of [`BLOCK`].
pub fn round_up(length: usize) -> usize {
    length.div_ceil(BLOCK) * BLOCK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_padded() {
        for length in [0, 1, 4095, 4096, 4097, 1 << 20] {
            let buffer = AlignedBuf::zeroed(length);
            assert_eq!(buffer.as_ptr() as usize % BLOCK, 0);
            assert_eq!(buffer.len(), round_up(length));
            assert!(buffer.iter().all(|b| *b == 0));
        }
        let copy = AlignedBuf::copy_of(b"abc");
        assert_eq!(&copy[..4], b"abc\0");
        assert_eq!(copy.len(), BLOCK);
    }
}
