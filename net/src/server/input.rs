//! Bytes that were received and not run yet. Taking from the front costs nothing; what was taken is dropped where there is no
//! room at the end and it is more than what is left, so that a long pipeline is copied about once however it is cut up.

/// Up to this many bytes a buffer is kept for what comes next.
const KEEP: usize = 1 << 20;

/// A queue of bytes.
#[derive(Debug, Default)]
pub struct Input {
    bytes: Vec<u8>,
    taken: usize,
}

impl Input {
    /// Adds bytes at the end.
    pub fn extend(&mut self, bytes: &[u8]) {
        if self.bytes.len() + bytes.len() > self.bytes.capacity() && self.taken > self.bytes.len() / 2 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// What is there.
    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// How much that is.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.taken
    }

    /// Takes bytes from the front.
    pub fn take(&mut self, count: usize) {
        self.taken += count;
        if self.taken >= self.bytes.len() {
            self.bytes.clear();
            self.taken = 0;
            if self.bytes.capacity() > KEEP {
                self.bytes = Vec::new();
            }
        }
    }

    /// Everything, for a journey.
    pub fn into_bytes(mut self) -> Vec<u8> {
        self.bytes.drain(..self.taken);
        self.bytes
    }
}

impl From<Vec<u8>> for Input {
    fn from(bytes: Vec<u8>) -> Input {
        Input { bytes, taken: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let all: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        let (mut input, mut out) = (Input::default(), Vec::new());
        for (i, piece) in all.chunks(777).enumerate() {
            input.extend(piece);
            let n = (i * 131 % 1000).min(input.len());
            out.extend_from_slice(&input.rest()[..n]);
            input.take(n);
        }
        out.extend_from_slice(&Input::from(input.into_bytes()).into_bytes());
        assert_eq!(out, all);
    }
}
