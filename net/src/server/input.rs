//! Bytes that were received and not run yet. Taking from the front costs nothing; what was taken is dropped where there is no
//! room at the end and it is more than what is left, so that a long pipeline is copied about once however it is cut up.

/// Up to this many bytes a buffer is kept for what comes next.
const KEEP: usize = 64 << 10;

/// Bytes that were cut out.
pub struct Cut {
    bytes: Vec<u8>,
    start: usize,
}

impl From<Vec<u8>> for Cut {
    fn from(bytes: Vec<u8>) -> Cut {
        Cut { bytes, start: 0 }
    }
}

impl Cut {
    /// They.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

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

    /// Room for a whole request of `length` bytes that begins `at` bytes behind the front, when much of it has come.
    pub fn make_room(&mut self, at: usize, length: usize) {
        let have = self.len() - at;
        if have > KEEP && self.bytes.capacity() - self.bytes.len() + have < length {
            let mut bytes = Vec::with_capacity(at + length);
            bytes.extend_from_slice(self.rest());
            (self.bytes, self.taken) = (bytes, 0);
        }
    }

    /// What is there.
    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// How much that is.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.taken
    }

    /// Whether nothing is there.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
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

    /// Takes the first `end` bytes, and answers those of them from `start` on, as part of what they came in where little follows
    /// them: a long request is not copied.
    pub fn cut(&mut self, start: usize, end: usize) -> Cut {
        let (start, end) = (self.taken + start, self.taken + end);
        if self.bytes.len() - end > end - start {
            let bytes = self.bytes[start..end].to_vec();
            self.take(end - self.taken);
            return Cut { bytes, start: 0 };
        }
        let rest = self.bytes.split_off(end);
        let bytes = std::mem::replace(&mut self.bytes, rest);
        self.taken = 0;
        Cut { bytes, start }
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
    fn what_is_cut_out_is_what_was_there_whatever_follows() {
        let all: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        for (before, start, end) in [(0, 0, 10_000), (7, 3, 9_000), (100, 0, 150), (0, 5, 6), (10, 4_000, 5_100)] {
            let mut input = Input::from(all.clone());
            input.take(before);
            let cut = input.cut(start, end - before);
            assert_eq!(cut.bytes(), &all[before + start..end]);
            assert_eq!(input.rest(), &all[end..]);
        }
    }

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
