//! One follower as its leader sees it: from its hello to what it has on its disk.

use crate::history::{Common, common_point};
use crate::wire::{Frame, Hello, PROTOCOL, Reason};
use crate::{BEAT, SILENCE};
use std::time::Duration;
use turnstone_engine::manifest::EpochStart;
use turnstone_engine::types::Version;

/// What the leader has.
pub struct View<'a> {
    /// Its node.
    pub node: u64,
    /// Its partition.
    pub partition: u8,
    /// Whether it takes writes or follows somebody who does.
    pub serves: bool,
    /// What it shows.
    pub published: Version,
    /// The oldest version that its log has.
    pub oldest: Version,
    /// Its history.
    pub epochs: &'a [EpochStart],
}

/// What a follower did that no follower does: the connection ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

/// One follower.
#[derive(Debug)]
pub struct Leader {
    node: u64,
    epochs: Vec<EpochStart>,
    sent: Version,
    acked: Version,
    heard: Duration,
    said: Duration,
}

impl Leader {
    /// Answers a hello: the stream, or why there is none.
    pub fn open(hello: &Hello, view: &View<'_>, now: Duration) -> Result<(Leader, Frame), Frame> {
        let refuse = |reason, text: String| Err(Frame::Refuse(reason, text));
        if hello.version != PROTOCOL {
            let text = format!("protocol {} is not spoken here, {PROTOCOL} is", hello.version);
            return refuse(Reason::Protocol, text);
        }
        if hello.node == view.node && hello.own == view.partition {
            return refuse(Reason::Itself, "a partition cannot follow itself".to_string());
        }
        if !view.serves {
            return refuse(Reason::NotLeader, "the partition has stepped down there: promote it first".to_string());
        }
        let behind = |at: Version| {
            format!(
                "the histories part behind version {at}: the follower has {} versions that are not the leader's",
                hello.last.saturating_sub(at)
            )
        };
        match common_point((view.epochs, view.published), (&hello.epochs, hello.last)) {
            Common::Diverged(at) => return refuse(Reason::Diverged, behind(at)),
            Common::Prefix(at) if hello.last > at => return refuse(Reason::Diverged, behind(at)),
            Common::Prefix(_) => {}
        }
        if hello.last < view.published && hello.last + 1 < view.oldest {
            let text = format!(
                "the leader's log begins with version {}, the follower has {}: it needs a copy",
                view.oldest, hello.last
            );
            return refuse(Reason::Purged, text);
        }
        let leader = Leader {
            node: hello.node,
            epochs: view.epochs.to_vec(),
            sent: hello.last,
            // What it has may not be on its disk yet.
            acked: 0,
            heard: now,
            said: now,
        };
        let accept = Frame::Accept { node: view.node, published: view.published, epochs: view.epochs.to_vec() };
        Ok((leader, accept))
    }

    /// The follower's node.
    pub fn node(&self) -> u64 {
        self.node
    }

    /// What comes before a batch: the history, if it has grown.
    pub fn before_batch(&mut self, epochs: &[EpochStart]) -> Option<Frame> {
        if self.epochs == epochs {
            return None;
        }
        self.epochs = epochs.to_vec();
        Some(Frame::Epochs(self.epochs.clone()))
    }

    /// A batch was sent that ends with this version.
    pub fn sent(&mut self, last: Version, now: Duration) {
        assert!(last > self.sent, "batches are sent in order, each once");
        self.sent = last;
        self.said = now;
    }

    /// Bytes of the follower came, a whole frame or not.
    pub fn hears(&mut self, now: Duration) {
        self.heard = now;
    }

    /// The follower said something.
    pub fn take(&mut self, frame: &Frame, now: Duration) -> Result<(), Violation> {
        self.heard = now;
        match frame {
            Frame::Ack(version) if *version > self.sent => {
                Err(Violation(format!("it confirms version {version}, {} was sent", self.sent)))
            }
            Frame::Ack(version) => {
                self.acked = self.acked.max(*version);
                Ok(())
            }
            Frame::Beat(_) => Ok(()),
            _ => Err(Violation("it sent what only a leader sends, or a second hello".to_string())),
        }
    }

    /// What the follower has on its disk.
    pub fn acked(&self) -> Version {
        self.acked
    }

    /// A beat, if nothing was said for a while.
    pub fn beat(&mut self, published: Version, now: Duration) -> Option<Frame> {
        if now.saturating_sub(self.said) < BEAT {
            return None;
        }
        self.said = now;
        Some(Frame::Beat(published))
    }

    /// Whether the follower is taken for gone.
    pub fn is_gone(&self, now: Duration) -> bool {
        now.saturating_sub(self.heard) > SILENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use turnstone_engine::types::Epoch;

    const NOW: Duration = Duration::from_secs(100);

    fn reign(number: u64, id: u64, first_version: Version) -> EpochStart {
        EpochStart { epoch: Epoch { number, id }, first_version }
    }

    fn hello(last: Version, epochs: &[EpochStart]) -> Hello {
        Hello { version: PROTOCOL, node: 2, own: 1, partition: 1, last, epochs: epochs.to_vec() }
    }

    fn refusal(hello: &Hello, view: &View<'_>) -> Option<Reason> {
        match Leader::open(hello, view, NOW) {
            Err(Frame::Refuse(reason, _)) => Some(reason),
            _ => None,
        }
    }

    #[test]
    fn only_a_history_that_the_log_continues_is_served() {
        let epochs = [reign(1, 7, 1), reign(2, 8, 11)];
        let view = View { node: 1, partition: 1, serves: true, published: 20, oldest: 6, epochs: &epochs };
        assert_eq!(refusal(&hello(20, &epochs), &view), None);
        assert_eq!(refusal(&hello(5, &epochs[..1]), &view), None);
        assert_eq!(refusal(&hello(4, &epochs[..1]), &view), Some(Reason::Purged));
        assert_eq!(refusal(&hello(12, &epochs[..1]), &view), Some(Reason::Diverged), "a tail of the old reign");
        assert_eq!(refusal(&hello(21, &epochs), &view), Some(Reason::Diverged), "it is ahead");
        assert_eq!(refusal(&hello(15, &[reign(1, 7, 1), reign(2, 9, 11)]), &view), Some(Reason::Diverged));
        assert_eq!(refusal(&Hello { node: 1, ..hello(0, &[]) }, &view), Some(Reason::Itself));
        assert_eq!(refusal(&Hello { version: 9, ..hello(0, &[]) }, &view), Some(Reason::Protocol));
        assert_eq!(refusal(&hello(20, &epochs), &View { serves: false, ..view }), Some(Reason::NotLeader));
    }

    #[test]
    fn an_empty_log_serves_who_has_everything_and_who_has_nothing() {
        let view = View { node: 1, partition: 1, serves: true, published: 0, oldest: 1, epochs: &[] };
        assert_eq!(refusal(&hello(0, &[]), &view), None);
        let epochs = [reign(1, 7, 1)];
        // Everything is checkpointed and purged.
        let view = View { published: 9, oldest: 10, epochs: &epochs, ..view };
        assert_eq!(refusal(&hello(9, &epochs), &view), None);
        assert_eq!(refusal(&hello(0, &[]), &view), Some(Reason::Purged));
    }

    #[test]
    fn acks_are_of_what_was_sent_and_never_fall() {
        let epochs = [reign(1, 7, 1)];
        let view = View { node: 1, partition: 1, serves: true, published: 9, oldest: 1, epochs: &epochs };
        let (mut leader, _) = Leader::open(&hello(3, &epochs), &view, NOW).expect("it is served");
        leader.sent(6, NOW);
        assert!(leader.take(&Frame::Ack(7), NOW).is_err());
        leader.take(&Frame::Ack(6), NOW).expect("it was sent");
        leader.take(&Frame::Ack(4), NOW).expect("late, not wrong");
        assert_eq!(leader.acked(), 6);
        assert!(leader.take(&Frame::Batch(Vec::new()), NOW).is_err());
        assert_eq!(leader.before_batch(&epochs), None);
        let longer = [reign(1, 7, 1), reign(2, 8, 10)];
        assert_eq!(leader.before_batch(&longer), Some(Frame::Epochs(longer.to_vec())));
        assert_eq!(leader.before_batch(&longer), None, "once");
    }

    #[test]
    fn an_idle_stream_beats_and_a_silent_follower_is_gone() {
        let view = View { node: 1, partition: 1, serves: true, published: 0, oldest: 1, epochs: &[] };
        let (mut leader, _) = Leader::open(&hello(0, &[]), &view, NOW).expect("it is served");
        assert_eq!(leader.beat(0, NOW), None);
        assert_eq!(leader.beat(5, NOW + BEAT), Some(Frame::Beat(5)));
        assert_eq!(leader.beat(5, NOW + BEAT), None);
        assert!(!leader.is_gone(NOW + SILENCE));
        leader.take(&Frame::Beat(0), NOW + SILENCE).expect("it lives");
        assert!(!leader.is_gone(NOW + SILENCE * 2));
        assert!(leader.is_gone(NOW + SILENCE * 3));
    }
}
