//! Buffers for direct I/O: their memory starts at a multiple of [`BLOCK`], without a line of unsafe code: a little
//! more is allocated than asked for, and the part that starts at the right address is used.

use crate::disk::BLOCK;
use std::cell::RefCell;
use std::ops::{Deref, DerefMut, Range};
use std::rc::Rc;

/// Buffers of up to `1 << (CLASSES - 1)` blocks, 1 MiB, are used again. Most writes of a log and reads of a value are of the
/// first three classes; the long ones are those of a follower that catches up, and of a checkpoint, to which fresh memory
/// costs more than what is written there.
const CLASSES: usize = 9;
/// As many bytes of each class wait on a thread, but no more than [`SPARE_MAX`] buffers: 8 MiB together.
const SPARE_BYTES: usize = 1 << 20;
const SPARE_MAX: usize = 64;

/// What [`AlignedBuf::zeros`] shares, in bytes.
const ZEROS: usize = 1 << 20;

thread_local! {
    static SPARE: RefCell<[Vec<Vec<u8>>; CLASSES]> = RefCell::default();
    static SHARED_ZEROS: Rc<Vec<u8>> = Rc::new(vec![0; ZEROS + BLOCK]);
}

/// Zeroed bytes at an aligned address; the length is a multiple of [`BLOCK`].
pub struct AlignedBuf {
    bytes: Bytes,
    start: usize,
    length: usize,
}

enum Bytes {
    Own(Vec<u8>),
    /// Nobody writes to them: who wants to, gets bytes of its own.
    Zeros(Rc<Vec<u8>>),
}

impl Bytes {
    fn all(&self) -> &[u8] {
        match self {
            Bytes::Own(bytes) => bytes,
            Bytes::Zeros(bytes) => bytes,
        }
    }
}

impl AlignedBuf {
    /// At least `length` zero bytes, rounded up to whole blocks.
    pub fn zeroed(length: usize) -> AlignedBuf {
        let (mut buffer, used) = AlignedBuf::any(length);
        if used {
            buffer.fill(0);
        }
        buffer
    }

    /// The same, for those who only write them to a file: they share their memory, which costs less than to touch and to clear it.
    pub fn zeros(length: usize) -> AlignedBuf {
        let length = round_up(length);
        if length > ZEROS {
            return AlignedBuf::zeroed(length);
        }
        let bytes = SHARED_ZEROS.with(Rc::clone);
        let start = first_aligned(&bytes);
        AlignedBuf { bytes: Bytes::Zeros(bytes), start, length }
    }

    /// As many bytes, of which some are those of an earlier use: whoever takes it writes all of them.
    pub fn uncleared(length: usize) -> AlignedBuf {
        AlignedBuf::any(length).0
    }

    /// A copy of `bytes`, padded with zeros to whole blocks.
    pub fn copy_of(bytes: &[u8]) -> AlignedBuf {
        let mut buffer = AlignedBuf::uncleared(bytes.len());
        let (copy, padding) = buffer.split_at_mut(bytes.len());
        copy.copy_from_slice(bytes);
        padding.fill(0);
        buffer
    }

    /// A buffer, and whether it was used before.
    fn any(length: usize) -> (AlignedBuf, bool) {
        let length = round_up(length);
        let class = class_of(length);
        let spare = class.and_then(|class| SPARE.with_borrow_mut(|spare| spare[class].pop()));
        let used = spare.is_some();
        let bytes = spare.unwrap_or_else(|| vec![0u8; class.map_or(length, |class| BLOCK << class) + BLOCK]);
        let start = first_aligned(&bytes);
        (AlignedBuf { bytes: Bytes::Own(bytes), start, length }, used)
    }
}

/// Where the part of `bytes` begins that starts at a multiple of [`BLOCK`].
fn first_aligned(bytes: &[u8]) -> usize {
    let start = bytes.as_ptr().align_offset(BLOCK);
    assert!(start <= BLOCK, "a byte pointer can always be aligned");
    start
}

/// How many buffers of a class wait on a thread.
fn spare_max(class: usize) -> usize {
    (SPARE_BYTES / (BLOCK << class)).min(SPARE_MAX)
}

/// Which class has room for this many bytes, a multiple of [`BLOCK`].
fn class_of(length: usize) -> Option<usize> {
    let class = length.div_ceil(BLOCK).max(1).next_power_of_two().trailing_zeros() as usize;
    (class < CLASSES).then_some(class)
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        let (Some(class), Bytes::Own(bytes)) = (class_of(self.length), &mut self.bytes) else { return };
        let bytes = std::mem::take(bytes);
        // A thread that ends has no list any more.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare[class].len() < spare_max(class) {
                spare[class].push(bytes);
            }
        });
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes.all()[self.start..self.start + self.length]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        if let Bytes::Zeros(_) = self.bytes {
            *self = AlignedBuf::zeroed(self.length);
        }
        match &mut self.bytes {
            Bytes::Own(bytes) => &mut bytes[self.start..self.start + self.length],
            Bytes::Zeros(_) => unreachable!("they were replaced"),
        }
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
        let lengths = [0, 1, 4095, 4096, 4097, 16_384, 16_385, 1 << 20, (1 << 20) + 1];
        // Twice: the second time they are used again, after they were written to.
        for length in lengths.into_iter().chain(lengths) {
            let mut buffer = AlignedBuf::zeroed(length);
            assert_eq!(buffer.as_ptr() as usize % BLOCK, 0);
            assert_eq!(buffer.len(), round_up(length));
            assert!(buffer.iter().all(|b| *b == 0));
            buffer.fill(7);
        }
        let (mut one, other) = (AlignedBuf::zeros(BLOCK + 1), AlignedBuf::zeros(ZEROS));
        assert_eq!((one.len(), one.as_ptr() as usize % BLOCK, other.len()), (2 * BLOCK, 0, ZEROS));
        assert_eq!(one.as_ptr(), other.as_ptr());
        one.fill(7);
        assert!(one.iter().all(|b| *b == 7) && other.iter().all(|b| *b == 0), "who writes to them has them alone");
        assert!(AlignedBuf::zeros(ZEROS + 1).iter().all(|b| *b == 0));
        let copy = AlignedBuf::copy_of(b"abc");
        assert_eq!(copy.len(), BLOCK);
        assert_eq!(copy[..3], *b"abc");
        assert!(copy[3..].iter().all(|b| *b == 0));
    }
}
