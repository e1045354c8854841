//! One identity for a place in a partition's history, in its text and its wire form.

use std::fmt;
use std::str::FromStr;

/// Bytes of a position on the wire: `partition u8, epoch u64, epoch_id u64, version u64`.
pub const POSITION_BYTES: usize = 25;

/// A place in one partition's history. Within one history positions order by version alone, so there is no `Ord` here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// The partition, 0 to 16.
    pub partition: u8,
    /// The epoch's number.
    pub epoch: u64,
    /// The random id drawn by the node that began the epoch. Two epochs with one number and different ids have diverged.
    /// The text form does not carry it; a position read from text has 0 here, which stands for "not known".
    pub epoch_id: u64,
    /// The commit's version: one counter per partition, starting at 1.
    pub version: u64,
}

impl Position {
    /// The wire form.
    pub fn to_bytes(self) -> [u8; POSITION_BYTES] {
        let mut bytes = [0; POSITION_BYTES];
        bytes[0] = self.partition;
        bytes[1..9].copy_from_slice(&self.epoch.to_be_bytes());
        bytes[9..17].copy_from_slice(&self.epoch_id.to_be_bytes());
        bytes[17..25].copy_from_slice(&self.version.to_be_bytes());
        bytes
    }

    /// Reads the wire form; `None` unless `bytes` is exactly one position.
    pub fn from_bytes(bytes: &[u8]) -> Option<Position> {
        let (&partition, rest) = bytes.split_first()?;
        let (epoch, rest) = rest.split_first_chunk::<8>()?;
        let (epoch_id, rest) = rest.split_first_chunk::<8>()?;
        let (version, rest) = rest.split_first_chunk::<8>()?;
        rest.is_empty().then(|| Position {
            partition,
            epoch: u64::from_be_bytes(*epoch),
            epoch_id: u64::from_be_bytes(*epoch_id),
            version: u64::from_be_bytes(*version),
        })
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.partition, self.epoch, self.version)
    }
}

/// A text that is no position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PositionError {
    /// What was read.
    pub text: String,
}

impl fmt::Display for PositionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' is no position; write partition:epoch:version, for example 3:1:4711", self.text)
    }
}

impl std::error::Error for PositionError {}

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Position, PositionError> {
        let parse = || {
            let mut fields = text.split(':');
            let partition = super::partition_from_decimal(fields.next()?.as_bytes())?;
            let epoch = strict_decimal(fields.next()?)?;
            let version = strict_decimal(fields.next()?)?;
            fields.next().is_none().then_some(Position { partition, epoch, epoch_id: 0, version })
        };
        parse().ok_or_else(|| PositionError { text: text.to_owned() })
    }
}

/// One spelling per number: digits only, no leading zeros. `u64::from_str` alone would also take `+7` and `007`.
fn strict_decimal(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_without_the_id() {
        let position = Position { partition: 16, epoch: 3, epoch_id: 99, version: u64::MAX };
        assert_eq!(position.to_string(), "16:3:18446744073709551615");
        let read: Position = position.to_string().parse().unwrap();
        assert_eq!(read, Position { epoch_id: 0, ..position });
    }

    #[test]
    fn other_texts_are_refused_and_named() {
        for text in
            ["", "1", "1:2", "1:2:3:4", "17:1:1", "01:1:1", "1:+1:1", "1:1:01", "1::1", " 1:1:1", "1:1:-1", "1:1:x"]
        {
            let error = text.parse::<Position>().unwrap_err();
            assert_eq!(error.text, text);
        }
        assert!("1:1:18446744073709551616".parse::<Position>().is_err());
        assert!("0:0:0".parse::<Position>().is_ok());
    }

    #[test]
    fn wire_form_is_25_big_endian_bytes() {
        let position = Position { partition: 7, epoch: 1, epoch_id: 0x0102, version: 0xff00 };
        let bytes = position.to_bytes();
        assert_eq!(bytes, [7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0xff, 0]);
        assert_eq!(Position::from_bytes(&bytes), Some(position));
        assert_eq!(Position::from_bytes(&bytes[..24]), None);
        assert_eq!(Position::from_bytes(&[bytes.as_slice(), &[0]].concat()), None);
        assert_eq!(Position::from_bytes(&[]), None);
    }
}
