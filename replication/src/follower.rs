//! One partition that follows: what it says, and what it makes of what its leader says.

use crate::SILENCE;
use crate::leader::Violation;
use crate::wire::{Frame, Hello, PROTOCOL, Reason};
use std::time::Duration;
use turnstone_engine::manifest::EpochStart;
use turnstone_engine::types::Version;

/// What is to be done about a frame, in this order and before the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Nothing,
    /// The leader's history becomes this node's, if it contains it.
    Adopt(Vec<EpochStart>),
    /// Append this batch.
    Batch(Vec<u8>),
    /// It is the next large value of the batch before.
    Value(Vec<u8>),
    /// There is no stream, and why.
    Refused(Reason, String),
}

/// One stream from its hello on.
#[derive(Debug)]
pub struct Follower {
    accepted: bool,
    acked: Version,
    leader_published: Version,
    heard: Duration,
}

impl Follower {
    /// Begins: the frame to send first. `own` follows `partition` of the other node, and has everything up to `last`.
    pub fn open(
        node: u64,
        own: u8,
        partition: u8,
        (last, epochs): (Version, Vec<EpochStart>),
        now: Duration,
    ) -> (Follower, Frame) {
        let follower = Follower { accepted: false, acked: 0, leader_published: 0, heard: now };
        (follower, Frame::Hello(Hello { version: PROTOCOL, node, own, partition, last, epochs }))
    }

    /// The leader said something.
    pub fn take(&mut self, frame: Frame, now: Duration) -> Result<Step, Violation> {
        self.heard = now;
        match frame {
            Frame::Accept { published, epochs, .. } if !self.accepted => {
                self.accepted = true;
                self.leader_published = published;
                Ok(Step::Adopt(epochs))
            }
            Frame::Refuse(reason, text) => Ok(Step::Refused(reason, text)),
            Frame::Batch(bytes) if self.accepted => Ok(Step::Batch(bytes)),
            Frame::Value(bytes) if self.accepted => Ok(Step::Value(bytes)),
            Frame::Epochs(epochs) if self.accepted => Ok(Step::Adopt(epochs)),
            Frame::Beat(published) if self.accepted => {
                self.leader_published = self.leader_published.max(published);
                Ok(Step::Nothing)
            }
            _ => Err(Violation("the leader sent what it must not send now".to_string())),
        }
    }

    /// Everything up to `version` is on this node's disk: tell the leader, if it does not know.
    pub fn durable(&mut self, version: Version) -> Option<Frame> {
        self.leader_published = self.leader_published.max(version);
        if version <= self.acked {
            return None;
        }
        self.acked = version;
        Some(Frame::Ack(version))
    }

    /// Bytes of the leader came, a whole frame or not: a large transaction takes its time.
    pub fn hears(&mut self, now: Duration) {
        self.heard = now;
    }

    /// Whether the leader is taken for gone.
    pub fn is_gone(&self, now: Duration) -> bool {
        now.saturating_sub(self.heard) > SILENCE
    }

    /// How many versions the leader showed, when it last said so, that are not here.
    pub fn lag(&self, last: Version) -> u64 {
        self.leader_published.saturating_sub(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    #[test]
    fn nothing_is_taken_before_the_stream_is_open() {
        let (mut follower, hello) = Follower::open(2, 1, 3, (7, Vec::new()), NOW);
        assert!(matches!(hello, Frame::Hello(Hello { own: 1, partition: 3, last: 7, .. })));
        assert!(follower.take(Frame::Batch(vec![1]), NOW).is_err());
        assert!(follower.take(Frame::Ack(1), NOW).is_err());
        let accept = Frame::Accept { node: 1, published: 20, epochs: Vec::new() };
        assert_eq!(follower.take(accept.clone(), NOW), Ok(Step::Adopt(Vec::new())));
        assert!(follower.take(accept, NOW).is_err(), "once");
        assert_eq!(follower.take(Frame::Batch(vec![1]), NOW), Ok(Step::Batch(vec![1])));
        assert_eq!(follower.lag(9), 11);
        assert_eq!(follower.durable(9), Some(Frame::Ack(9)));
        assert_eq!(follower.durable(9), None);
        assert_eq!(follower.take(Frame::Beat(30), NOW), Ok(Step::Nothing));
        assert_eq!(follower.lag(9), 21);
        follower.hears(NOW + SILENCE);
        assert!(!follower.is_gone(NOW + SILENCE * 2));
        assert!(follower.is_gone(NOW + SILENCE * 3));
    }
}
