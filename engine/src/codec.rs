//! Little-endian integers for every file of ours: writers that cannot fail, readers that check before they take.

/// Appends little-endian integers.
pub trait Put {
    /// Appends raw bytes.
    fn put(&mut self, bytes: &[u8]);
    /// Appends a byte.
    fn put_u8(&mut self, v: u8) {
        self.put(&[v]);
    }
    /// Appends 2 bytes.
    fn put_u16(&mut self, v: u16) {
        self.put(&v.to_le_bytes());
    }
    /// Appends 4 bytes.
    fn put_u32(&mut self, v: u32) {
        self.put(&v.to_le_bytes());
    }
    /// Appends 8 bytes.
    fn put_u64(&mut self, v: u64) {
        self.put(&v.to_le_bytes());
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// The bytes ended before the value did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated;

/// Takes little-endian integers from the front of a slice.
#[derive(Clone)]
pub struct Take<'a>(pub &'a [u8]);

impl<'a> Take<'a> {
    /// The next `n` bytes.
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], Truncated> {
        if n > self.0.len() {
            return Err(Truncated);
        }
        let (head, rest) = self.0.split_at(n);
        self.0 = rest;
        Ok(head)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Truncated> {
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(N)?);
        Ok(out)
    }
    /// The next byte.
    pub fn u8(&mut self) -> Result<u8, Truncated> {
        Ok(self.array::<1>()?[0])
    }
    /// The next 2 bytes.
    pub fn u16(&mut self) -> Result<u16, Truncated> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    /// The next 4 bytes.
    pub fn u32(&mut self) -> Result<u32, Truncated> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    /// The next 8 bytes.
    pub fn u64(&mut self) -> Result<u64, Truncated> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.0.len()
    }
}

/// CRC-32 of several pieces, as if they were one.
pub fn crc(pieces: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for piece in pieces {
        hasher.update(piece);
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_can_be_taken_and_no_more() {
        let mut out = Vec::new();
        out.put_u8(1);
        out.put_u16(0x0203);
        out.put_u32(0x0405_0607);
        out.put_u64(8);
        let mut take = Take(&out);
        assert_eq!((take.u8(), take.u16(), take.u32(), take.u64()), (Ok(1), Ok(0x0203), Ok(0x0405_0607), Ok(8)));
        assert_eq!(take.u8(), Err(Truncated));
        assert_eq!(Take(&out).bytes(16), Err(Truncated));
    }
}
