//! The frames of a change stream, between a server and a consumer (ALPN [`ALPN_CHANGES`](super::ALPN_CHANGES)).
//!
//! The envelope is that of replication: `kind u8 | length u32 | payload | crc u32`, little-endian. A connection is for one
//! partition, and begins with the consumer's [`Frame::Subscribe`].
//!
//! | kind | from | frame | payload |
//! |---|---|---|---|
//! | 1 | consumer | subscribe | `version u16, partition u8, start u8, last u64, epochs, hold u64, credit u64, name` up to the end |
//! | 2 | consumer | credit | `bytes u64`: that many more may be sent |
//! | 3 | consumer | confirm | `version u64`: the log up to there is not needed any more |
//! | 4 | consumer | beat | nothing: it lives |
//! | 16 | server | accept | `last u64, shown u64, epochs`: the log behind `last` follows |
//! | 17 | server | refuse | `code u16, at u64, text` up to the end |
//! | 18 | server | batch | a body, as it is in the log |
//! | 19 | server | value | a large value of the batch before, in the body's order |
//! | 20 | server | progress | `version u64`: everything up to there was sent |
//! | 21 | server | epochs | `epochs`: the history has grown |
//! | 22 | server | copy | `version u64, keys u64, epochs`: rows at that version follow, then the log behind it |
//! | 23 | server | rows | keys with versions and values, as in a copy between nodes |
//! | 24 | server | end of the copy | `keys u64, digest u64` |
//!
//! `epochs` is as in replication. Bytes of batches, values and rows count against the credit, with their envelopes.

use super::ErrorCode;
use std::rc::Rc;
use turnstone_engine::codec::{Put, Take};
use turnstone_engine::copy::CopySum;
use turnstone_engine::manifest::EpochStart;
use turnstone_engine::types::Version;
use turnstone_replication::history::{Common, common_point};
use turnstone_replication::wire::{AROUND, BadFrame, epochs, put_epochs, seal, unseal};

/// A row of a copy.
pub use turnstone_engine::copy::CopyEntry;
/// A reign, and the version that it begins with.
pub use turnstone_engine::manifest::EpochStart as Reign;
/// The number and the id of a reign.
pub use turnstone_engine::types::Epoch;
/// What a batch holds.
pub use turnstone_engine::wal::body;

/// The last version that both histories have, each with the newest version it has.
pub fn common_version(ours: (&[Reign], Version), theirs: (&[Reign], Version)) -> Version {
    let (Common::Prefix(at) | Common::Diverged(at)) = common_point(ours, theirs);
    at
}

/// The newest version of this protocol that this program speaks.
pub const PROTOCOL: u16 = 1;
/// Longest name of a consumer, bytes.
pub const NAME_MAX: usize = 128;
/// A consumer sends nothing longer than its history.
pub const FROM_CONSUMER_MAX: usize = 1 << 20;

/// Where a consumer wants to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Behind the last version that it has; 0 is the beginning of the log.
    Behind,
    /// Behind what is shown now.
    Now,
    /// With a copy of what there is, and the log behind that.
    Copy,
}

impl Start {
    const ALL: [Start; 3] = [Start::Behind, Start::Now, Start::Copy];
}

/// What a consumer asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribe {
    /// Of the protocol.
    pub version: u16,
    /// Of which partition.
    pub partition: u8,
    /// Where to begin.
    pub start: Start,
    /// The last version that it has, for [`Start::Behind`].
    pub last: Version,
    /// The history up to there, as the server told it.
    pub epochs: Vec<EpochStart>,
    /// Keep at most this much log for it while it is away, bytes; 0 for none.
    pub hold: u64,
    /// How many bytes may be sent before it asks for more.
    pub credit: u64,
    /// Its name: letters, digits, `-`, `_` and `.`.
    pub name: String,
}

/// Why there is no stream, or no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kind.
    pub code: ErrorCode,
    /// For `DIVERGED` the last version that both histories have; for `COMPACTED` the oldest that the log has.
    pub at: Version,
    /// For people.
    pub text: String,
}

/// What one side says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A consumer begins.
    Subscribe(Subscribe),
    /// So many bytes more.
    Credit(u64),
    /// The log up to there is not needed any more.
    Confirm(Version),
    /// The consumer lives.
    Beat,
    /// The stream begins.
    Accept {
        /// Behind this version.
        last: Version,
        /// The newest version that is shown.
        shown: Version,
        /// The server's history.
        epochs: Vec<EpochStart>,
    },
    /// It does not, or it ends.
    Refuse(Refusal),
    /// A batch of the log.
    Batch(Rc<Vec<u8>>),
    /// A large value of the batch before.
    Value(Vec<u8>),
    /// Everything up to there was sent.
    Progress(Version),
    /// The history has grown.
    Epochs(Vec<EpochStart>),
    /// A copy begins.
    Copy {
        /// Of which version.
        version: Version,
        /// How many keys, about.
        keys: u64,
        /// The history up to there.
        epochs: Vec<EpochStart>,
    },
    /// Rows of the copy: `take_entries` of replication reads them.
    Rows(Vec<u8>),
    /// The copy is whole.
    CopyEnd(CopySum),
}

impl Frame {
    fn kind(&self) -> u8 {
        match self {
            Frame::Subscribe(_) => 1,
            Frame::Credit(_) => 2,
            Frame::Confirm(_) => 3,
            Frame::Beat => 4,
            Frame::Accept { .. } => 16,
            Frame::Refuse(_) => 17,
            Frame::Batch(_) => 18,
            Frame::Value(_) => 19,
            Frame::Progress(_) => 20,
            Frame::Epochs(_) => 21,
            Frame::Copy { .. } => 22,
            Frame::Rows(_) => 23,
            Frame::CopyEnd(_) => 24,
        }
    }

    /// How much of the credit it takes, bytes.
    pub fn cost(&self) -> u64 {
        match self {
            Frame::Batch(bytes) => (bytes.len() + AROUND) as u64,
            Frame::Value(bytes) | Frame::Rows(bytes) => (bytes.len() + AROUND) as u64,
            _ => 0,
        }
    }

    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        seal(self.kind(), out, |out| match self {
            Frame::Subscribe(subscribe) => {
                out.put_u16(subscribe.version);
                out.put_u8(subscribe.partition);
                out.put_u8(subscribe.start as u8);
                out.put_u64(subscribe.last);
                put_epochs(&subscribe.epochs, out);
                out.put_u64(subscribe.hold);
                out.put_u64(subscribe.credit);
                out.put(subscribe.name.as_bytes());
            }
            Frame::Credit(number) | Frame::Confirm(number) | Frame::Progress(number) => out.put_u64(*number),
            Frame::Beat => {}
            Frame::Accept { last: a, shown: b, epochs } | Frame::Copy { version: a, keys: b, epochs } => {
                out.put_u64(*a);
                out.put_u64(*b);
                put_epochs(epochs, out);
            }
            Frame::Refuse(refusal) => {
                out.put_u16(refusal.code as u16);
                out.put_u64(refusal.at);
                out.put(refusal.text.as_bytes());
            }
            Frame::Batch(bytes) => out.put(bytes),
            Frame::Value(bytes) | Frame::Rows(bytes) => out.put(bytes),
            Frame::Epochs(epochs) => put_epochs(epochs, out),
            Frame::CopyEnd(sum) => {
                out.put_u64(sum.keys);
                out.put_u64(sum.digest);
            }
        });
    }

    /// Takes a frame off the front; answers how many bytes it took, or `None` if it is not whole.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Frame, usize)>, BadFrame> {
        let Some((kind, payload, whole)) = unseal(bytes)? else { return Ok(None) };
        let mut take = Take(payload);
        let frame = Frame::payload(kind, &mut take)?;
        if take.left() != 0 {
            return Err(BadFrame("bytes are left at the end of a frame"));
        }
        Ok(Some((frame, whole)))
    }

    fn payload(kind: u8, take: &mut Take<'_>) -> Result<Frame, BadFrame> {
        let rest = |take: &mut Take<'_>| take.bytes(take.left()).map(<[u8]>::to_vec);
        Ok(match kind {
            1 => Frame::Subscribe(Subscribe {
                version: take.u16()?,
                partition: take.u8()?,
                start: {
                    let start = Start::ALL.get(usize::from(take.u8()?));
                    *start.ok_or(BadFrame("a consumer wants to begin where there is nothing"))?
                },
                last: take.u64()?,
                epochs: epochs(take)?,
                hold: take.u64()?,
                credit: take.u64()?,
                name: {
                    let name = String::from_utf8(rest(take)?).unwrap_or_default();
                    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
                    if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(good) {
                        return Err(BadFrame("a consumer's name is not of letters, digits, '-', '_' and '.'"));
                    }
                    name
                },
            }),
            2 => Frame::Credit(take.u64()?),
            3 => Frame::Confirm(take.u64()?),
            4 => Frame::Beat,
            16 => Frame::Accept { last: take.u64()?, shown: take.u64()?, epochs: epochs(take)? },
            17 => {
                let code = ErrorCode::from_u16(take.u16()?);
                let code = code.ok_or(BadFrame("a refusal has no reason that is known"))?;
                let at = take.u64()?;
                let text = String::from_utf8_lossy(&rest(take)?).into_owned();
                Frame::Refuse(Refusal { code, at, text })
            }
            18 => Frame::Batch(rest(take)?.into()),
            19 => Frame::Value(rest(take)?),
            20 => Frame::Progress(take.u64()?),
            21 => Frame::Epochs(epochs(take)?),
            22 => Frame::Copy { version: take.u64()?, keys: take.u64()?, epochs: epochs(take)? },
            23 => Frame::Rows(rest(take)?),
            24 => Frame::CopyEnd(CopySum { keys: take.u64()?, digest: take.u64()? }),
            _ => return Err(BadFrame("a frame of unknown kind")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use turnstone_engine::types::Epoch;

    fn samples() -> Vec<Frame> {
        let epochs = vec![EpochStart { epoch: Epoch { number: 3, id: 9 }, first_version: 41 }];
        let subscribe = Subscribe {
            version: PROTOCOL,
            partition: 7,
            start: Start::Behind,
            last: 50,
            epochs: epochs.clone(),
            hold: 1 << 30,
            credit: 1 << 20,
            name: "cdc-worker-1".to_string(),
        };
        vec![
            Frame::Subscribe(subscribe),
            Frame::Credit(5),
            Frame::Confirm(50),
            Frame::Beat,
            Frame::Accept { last: 50, shown: 60, epochs: epochs.clone() },
            Frame::Refuse(Refusal { code: ErrorCode::Diverged, at: 40, text: "parted".to_string() }),
            Frame::Batch(Rc::new(vec![1, 2, 3])),
            Frame::Value(vec![4; 100]),
            Frame::Progress(60),
            Frame::Epochs(epochs.clone()),
            Frame::Copy { version: 40, keys: 3, epochs },
            Frame::Rows(vec![9; 10]),
            Frame::CopyEnd(CopySum { keys: 3, digest: 77 }),
        ]
    }

    #[test]
    fn frames_come_back_as_they_went() {
        let mut bytes = Vec::new();
        samples().iter().for_each(|frame| frame.encode(&mut bytes));
        let mut rest = bytes.as_slice();
        for frame in samples() {
            let (got, used) = Frame::decode(rest).unwrap().unwrap();
            assert_eq!(got, frame);
            rest = &rest[used..];
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        for frame in samples() {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            for length in 0..bytes.len() {
                assert!(
                    Frame::decode(&bytes[..length]).is_ok_and(|found| found.is_none()),
                    "{frame:?} cut at {length}"
                );
            }
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(!matches!(Frame::decode(&bad), Ok(Some(_))), "{frame:?}, bit {bit}");
            }
        }
    }

    #[test]
    fn names_are_checked() {
        for name in ["", "a b", "a/b", "ä", &"x".repeat(NAME_MAX + 1)] {
            let Frame::Subscribe(subscribe) = samples().remove(0) else { unreachable!("the first sample subscribes") };
            let mut bytes = Vec::new();
            Frame::Subscribe(Subscribe { name: name.to_string(), ..subscribe }).encode(&mut bytes);
            assert!(Frame::decode(&bytes).is_err(), "{name}");
        }
    }
}
