//! The frames between nodes.
//!
//! `kind u8 | length u32 | payload | crc u32`, little-endian as the files are; the CRC-32 covers all before it. `length` is
//! the payload's. A connection is for one partition, and begins with the follower's [`Frame::Hello`].
//!
//! | kind | from | frame | payload |
//! |---|---|---|---|
//! | 1 | follower | hello | `version u16, node u64, own u8, partition u8, last u64, epochs` |
//! | 2 | follower | ack | `durable u64` |
//! | 3 | both | beat | `published u64`, of the sender |
//! | 16 | leader | accept | `node u64, published u64, epochs` |
//! | 17 | leader | refuse | `reason u8, text up to the end` |
//! | 18 | leader | batch | the body, as it is in the log |
//! | 19 | leader | value | a large value of the batch before, in the body's order |
//! | 20 | leader | epochs | `epochs`: the history, before the first batch of a new one |
//!
//! `epochs` is `count u32`, then `number u64, id u64, first version u64` of each.

use turnstone_engine::codec::{Put, Take, Truncated, crc};
use turnstone_engine::manifest::EpochStart;
use turnstone_engine::types::{Epoch, Version};

/// The newest version of this protocol that this program speaks.
pub const PROTOCOL: u16 = 1;
/// The longest payload: a transaction of the largest size allowed, and what surrounds it.
pub const PAYLOAD_MAX: usize = (1 << 30) + (64 << 20);
/// Bytes around a payload.
pub const AROUND: usize = 1 + 4 + 4;
/// Reigns that a history may have: those without a commit are dropped, and a node that restarts a million times is not one.
pub const EPOCHS_MAX: usize = 1 << 20;

/// Why a leader refuses a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The partition does not exist, or is offline.
    NoPartition,
    /// It is no leader.
    NotLeader,
    /// The histories part: the text says where.
    Diverged,
    /// The log no longer reaches back to where the follower is.
    Purged,
    /// The follower's protocol is not spoken here.
    Protocol,
    /// The two are one node.
    Itself,
}

impl Reason {
    const ALL: [Reason; 6] =
        [Reason::NoPartition, Reason::NotLeader, Reason::Diverged, Reason::Purged, Reason::Protocol, Reason::Itself];

    fn code(self) -> u8 {
        Reason::ALL.iter().position(|r| *r == self).map_or(0, |i| i as u8 + 1)
    }
}

/// What one side says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A follower introduces itself.
    Hello(Hello),
    /// Everything up to this version is on the follower's disk.
    Ack(Version),
    /// The sender lives, and shows everything up to this version.
    Beat(Version),
    /// The stream begins behind the follower's last version.
    Accept {
        /// The leader's node.
        node: u64,
        /// What the leader shows.
        published: Version,
        /// Its history.
        epochs: Vec<EpochStart>,
    },
    /// There will be no stream.
    Refuse(Reason, String),
    /// A batch.
    Batch(Vec<u8>),
    /// A large value.
    Value(Vec<u8>),
    /// The history has grown.
    Epochs(Vec<EpochStart>),
}

/// How a follower introduces itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Of the protocol.
    pub version: u16,
    /// The follower's node.
    pub node: u64,
    /// The follower's partition.
    pub own: u8,
    /// The leader's partition.
    pub partition: u8,
    /// The follower's newest version.
    pub last: Version,
    /// Its history.
    pub epochs: Vec<EpochStart>,
}

/// Why bytes are no frame. The connection ends: there is no place to go on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadFrame(pub &'static str);

impl From<Truncated> for BadFrame {
    fn from(_: Truncated) -> BadFrame {
        BadFrame("a frame ends too early")
    }
}

fn put_epochs(epochs: &[EpochStart], out: &mut Vec<u8>) {
    out.put_u32(epochs.len() as u32);
    for start in epochs {
        out.put_u64(start.epoch.number);
        out.put_u64(start.epoch.id);
        out.put_u64(start.first_version);
    }
}

fn epochs(take: &mut Take<'_>) -> Result<Vec<EpochStart>, BadFrame> {
    let count = take.u32()? as usize;
    if count > EPOCHS_MAX {
        return Err(BadFrame("a history has more epochs than any has"));
    }
    let mut epochs = Vec::new();
    for _ in 0..count {
        let epoch = Epoch { number: take.u64()?, id: take.u64()? };
        let first_version = take.u64()?;
        if first_version == 0 {
            return Err(BadFrame("an epoch begins at version 0"));
        }
        epochs.push(EpochStart { epoch, first_version });
    }
    Ok(epochs)
}

impl Frame {
    fn kind(&self) -> u8 {
        match self {
            Frame::Hello(_) => 1,
            Frame::Ack(_) => 2,
            Frame::Beat(_) => 3,
            Frame::Accept { .. } => 16,
            Frame::Refuse(..) => 17,
            Frame::Batch(_) => 18,
            Frame::Value(_) => 19,
            Frame::Epochs(_) => 20,
        }
    }

    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.put_u8(self.kind());
        out.put_u32(0);
        match self {
            Frame::Hello(hello) => {
                out.put_u16(hello.version);
                out.put_u64(hello.node);
                out.put_u8(hello.own);
                out.put_u8(hello.partition);
                out.put_u64(hello.last);
                put_epochs(&hello.epochs, out);
            }
            Frame::Ack(version) | Frame::Beat(version) => out.put_u64(*version),
            Frame::Accept { node, published, epochs } => {
                out.put_u64(*node);
                out.put_u64(*published);
                put_epochs(epochs, out);
            }
            Frame::Refuse(reason, text) => {
                out.put_u8(reason.code());
                out.put(text.as_bytes());
            }
            Frame::Batch(bytes) | Frame::Value(bytes) => out.put(bytes),
            Frame::Epochs(epochs) => put_epochs(epochs, out),
        }
        let length = (out.len() - start - 5) as u32;
        out[start + 1..start + 5].copy_from_slice(&length.to_le_bytes());
        let sum = crc(&[&out[start..]]);
        out.put_u32(sum);
    }

    /// Takes a frame off the front; answers how many bytes it took, or `None` if it is not whole.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Frame, usize)>, BadFrame> {
        let Some(head) = bytes.get(..5) else { return Ok(None) };
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > PAYLOAD_MAX {
            return Err(BadFrame("a frame is longer than any can be"));
        }
        let whole = length + AROUND;
        let Some(frame) = bytes.get(..whole) else { return Ok(None) };
        let (covered, sum) = frame.split_at(5 + length);
        if sum != crc(&[covered]).to_le_bytes() {
            return Err(BadFrame("a frame fails its checksum"));
        }
        let mut take = Take(&covered[5..]);
        let frame = Frame::payload(head[0], &mut take)?;
        if take.left() != 0 {
            return Err(BadFrame("bytes are left at the end of a frame"));
        }
        Ok(Some((frame, whole)))
    }

    fn payload(kind: u8, take: &mut Take<'_>) -> Result<Frame, BadFrame> {
        let rest = |take: &mut Take<'_>| take.bytes(take.left()).map(<[u8]>::to_vec);
        Ok(match kind {
            1 => Frame::Hello(Hello {
                version: take.u16()?,
                node: take.u64()?,
                own: take.u8()?,
                partition: take.u8()?,
                last: take.u64()?,
                epochs: epochs(take)?,
            }),
            2 => Frame::Ack(take.u64()?),
            3 => Frame::Beat(take.u64()?),
            16 => Frame::Accept { node: take.u64()?, published: take.u64()?, epochs: epochs(take)? },
            17 => {
                let code = usize::from(take.u8()?);
                let reason = code.checked_sub(1).and_then(|i| Reason::ALL.get(i).copied());
                let reason = reason.ok_or(BadFrame("a refusal has no reason that is known"))?;
                Frame::Refuse(reason, String::from_utf8_lossy(&rest(take)?).into_owned())
            }
            18 => Frame::Batch(rest(take)?),
            19 => Frame::Value(rest(take)?),
            20 => Frame::Epochs(epochs(take)?),
            _ => return Err(BadFrame("a frame of unknown kind")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Frame> {
        let epochs = vec![EpochStart { epoch: Epoch { number: 3, id: 9 }, first_version: 41 }];
        vec![
            Frame::Hello(Hello { version: 1, node: 77, own: 2, partition: 3, last: 40, epochs: epochs.clone() }),
            Frame::Ack(41),
            Frame::Beat(u64::MAX),
            Frame::Accept { node: 5, published: 90, epochs: epochs.clone() },
            Frame::Refuse(Reason::Itself, "this is the same node".to_string()),
            Frame::Batch(vec![1; 5000]),
            Frame::Value(Vec::new()),
            Frame::Epochs(epochs),
        ]
    }

    #[test]
    fn frames_come_back_as_they_went_however_they_are_cut() {
        let mut bytes = Vec::new();
        samples().iter().for_each(|frame| frame.encode(&mut bytes));
        let (mut seen, mut at) = (Vec::new(), 0);
        while let Some((frame, used)) = Frame::decode(&bytes[at..]).expect("good frames") {
            let next = at + used;
            (at..next).for_each(|cut| assert_eq!(Frame::decode(&bytes[at..cut]), Ok(None), "cut at {cut}"));
            seen.push(frame);
            at = next;
        }
        assert_eq!((seen, at), (samples(), bytes.len()));
    }

    #[test]
    fn every_flipped_bit_is_seen_and_no_length_is_believed() {
        for frame in samples() {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                // A longer length waits for more bytes; all else is refused.
                assert!(!matches!(Frame::decode(&bad), Ok(Some(_))), "{frame:?}, bit {bit}");
            }
        }
        assert!(Frame::decode(&[18, 0xff, 0xff, 0xff, 0xff]).is_err());
    }
}
