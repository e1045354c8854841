//! A record of the value log: `crc u32 | key length u32 | value length u32 | key | value`, little-endian; the CRC covers
//! everything behind it. It carries its key, so that a pointer to the wrong place is noticed, and no version: a value
//! alone proves nothing about a commit.

use crate::codec::{Take, crc};

/// Bytes before the key.
pub const RECORD_HEADER: usize = 12;

/// Bytes that a record takes.
pub fn length(key: usize, value: usize) -> usize {
    RECORD_HEADER + key + value
}

/// Writes a record to the beginning of `out`; answers how many bytes it took, which is its [`length`].
pub fn encode(key: &[u8], value: &[u8], out: &mut [u8]) -> usize {
    let length = length(key.len(), value.len());
    let out = &mut out[..length];
    out[4..8].copy_from_slice(&(key.len() as u32).to_le_bytes());
    out[8..RECORD_HEADER].copy_from_slice(&(value.len() as u32).to_le_bytes());
    let (key_place, value_place) = out[RECORD_HEADER..].split_at_mut(key.len());
    key_place.copy_from_slice(key);
    value_place.copy_from_slice(value);
    let sum = crc(&[&out[4..]]);
    out[..4].copy_from_slice(&sum.to_le_bytes());
    length
}

/// The value in a record that must belong to `key`; the error says what is wrong. `check` is false only under a planted bug.
pub fn decode<'a>(bytes: &'a [u8], key: &[u8], check: bool) -> Result<&'a [u8], &'static str> {
    let mut take = Take(bytes);
    let cut = |_| "a value record is cut short";
    let sum = take.u32().map_err(cut)?;
    let covered = take.0;
    let (key_length, value_length) = (take.u32().map_err(cut)? as usize, take.u32().map_err(cut)? as usize);
    let found = take.bytes(key_length).map_err(cut)?;
    let value = match cfg!(feature = "planted") {
        true => &take.0[..value_length],
        false => take.bytes(value_length).map_err(cut)?,
    };
    if check && sum != crc(&[&covered[..8 + key_length + value_length]]) {
        return Err("a value record fails its checksum");
    }
    if check && found != key {
        return Err("a value record belongs to another key");
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_whole_or_refused() {
        let mut bytes = vec![0; length(3, 5)];
        assert_eq!(encode(b"key", b"value", &mut bytes), bytes.len());
        assert_eq!(decode(&bytes, b"key", true), Ok(b"value".as_slice()));
        assert!(decode(&bytes, b"kex", true).is_err());
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad, b"key", true).is_err(), "bit {bit}");
        }
        assert!(decode(&bytes[..bytes.len() - 1], b"key", true).is_err());
    }
}
