//! One follower as its leader sees it: from its hello to what it has on its disk.

use crate::history::{Common, common_point};
use crate::wire::{Frame, Had, Hello, PROTOCOL, Reason, Welcome, Wish};
use crate::{BEAT, SILENCE};
use std::time::Duration;
use turnstone_engine::Standing;
use turnstone_engine::manifest::EpochStart;
use turnstone_engine::types::{Epoch, Version};

/// What the leader has.
pub struct View {
    /// Its node.
    pub node: u64,
    /// Its partition.
    pub partition: u8,
    /// What it has, and has agreed to.
    pub standing: Standing,
    /// The oldest version that its log has.
    pub oldest: Version,
    /// What it knows the follower to have had.
    pub had: Had,
}

/// What a follower did that no follower does: the connection ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

/// What becomes of a hello: how the follower catches up.
#[derive(Debug)]
pub enum Opening {
    /// From the log: this is the answer.
    Stream(Box<Leader>, Frame),
    /// By a copy.
    Copy,
    /// Not at all: this is the answer.
    Refused(Frame),
}

/// One follower.
#[derive(Debug)]
pub struct Leader {
    node: u64,
    own: u8,
    adopted: Epoch,
    epochs: Vec<EpochStart>,
    leads: bool,
    told: Version,
    sent: Version,
    acked: (Epoch, Version),
    heard: Duration,
    said: Duration,
}

/// Whether a follower has agreed to an epoch that this leader must outdo before it can be followed again: that of a
/// candidate that never came to lead.
pub fn is_stray(adopted: Epoch, leader: &Standing) -> bool {
    leader.leads && adopted != leader.adopted && adopted.number >= leader.adopted.number
}

impl Leader {
    /// Answers a hello: the stream, or why there is none.
    pub fn open(hello: &Hello, view: &View, now: Duration) -> Opening {
        let refuse = |reason, text: String| Opening::Refused(Frame::Refuse(reason, text));
        if hello.version != PROTOCOL {
            let text = format!("protocol {} is not spoken here, {PROTOCOL} is", hello.version);
            return refuse(Reason::Protocol, text);
        }
        if hello.node == view.node && hello.own == view.partition {
            return refuse(Reason::Itself, "a partition cannot follow itself".to_string());
        }
        if hello.wish == Wish::Copy {
            return Opening::Copy;
        }
        let standing = &view.standing;
        let welcome =
            Welcome { node: view.node, had: view.had, standing: Standing { members: Vec::new(), ..standing.clone() } };
        match common_point((&standing.epochs, standing.last), (&hello.epochs, hello.last)) {
            Common::Prefix(at) if hello.last == at => {}
            Common::Diverged(_) | Common::Prefix(_) => return Opening::Refused(Frame::Parted(welcome)),
        }
        if hello.last < standing.last && hello.last + 1 < view.oldest {
            if hello.wish == Wish::CopyIfNeeded {
                return Opening::Copy;
            }
            let text = format!(
                "the leader's log begins with version {}, the follower has {}: it needs a copy",
                view.oldest, hello.last
            );
            return refuse(Reason::Purged, text);
        }
        let leader = Leader {
            node: hello.node,
            own: hello.own,
            adopted: standing.adopted,
            epochs: standing.epochs.clone(),
            leads: standing.leads,
            told: standing.published,
            sent: hello.last,
            // What it has may not be on its disk yet.
            acked: (Epoch::default(), 0),
            heard: now,
            said: now,
        };
        Opening::Stream(Box::new(leader), Frame::Accept(welcome))
    }

    /// The follower's node.
    pub fn node(&self) -> u64 {
        self.node
    }

    /// The follower's partition, with its node.
    pub fn key(&self) -> (u64, u8) {
        (self.node, self.own)
    }

    /// Whether the follower was told less: it must be told this ([`Leader::standing`]) before the next batch.
    pub fn is_news(&self, adopted: Epoch, epochs: &[EpochStart], leads: bool) -> bool {
        self.epochs != epochs || self.adopted != adopted || self.comes_to_lead(leads)
    }

    /// Whether the follower was told that this node does not lead, and it does.
    pub fn comes_to_lead(&self, leads: bool) -> bool {
        leads && !self.leads
    }

    /// Tells the follower what this node has.
    pub fn standing(&mut self, standing: Standing) -> Frame {
        let standing = Standing { members: Vec::new(), ..standing };
        (self.adopted, self.epochs, self.leads) = (standing.adopted, standing.epochs.clone(), standing.leads);
        Frame::Standing(Box::new(standing))
    }

    /// What the follower may show, if that is news.
    pub fn shown(&mut self, published: Version, now: Duration) -> Option<Frame> {
        if published <= self.told {
            return None;
        }
        self.told = published;
        self.said = now;
        Some(Frame::Beat(published))
    }

    /// A batch was sent that ends with this version.
    pub fn sent(&mut self, last: Version, now: Duration) {
        assert!(last > self.sent, "batches are sent in order, each once");
        self.sent = last;
        self.said = now;
    }

    /// The last version that was sent.
    pub fn sent_to(&self) -> Version {
        self.sent
    }

    /// Bytes of the follower came, a whole frame or not.
    pub fn hears(&mut self, now: Duration) {
        self.heard = now;
    }

    /// The follower said something.
    pub fn take(&mut self, frame: &Frame, now: Duration) -> Result<(), Violation> {
        self.heard = now;
        match frame {
            Frame::Ack(_, version) if *version > self.sent => {
                Err(Violation(format!("it confirms version {version}, {} was sent", self.sent)))
            }
            Frame::Ack(epoch, version) => {
                if *epoch != self.acked.0 || *version > self.acked.1 {
                    self.acked = (*epoch, *version);
                }
                Ok(())
            }
            Frame::Beat(_) => Ok(()),
            _ => Err(Violation("it sent what only a leader sends, or a second hello".to_string())),
        }
    }

    /// What the follower has on its disk, and the epoch that it had agreed to when it said so.
    pub fn acked(&self) -> (Epoch, Version) {
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

    const NOW: Duration = Duration::from_secs(100);

    fn reign(number: u64, id: u64, first_version: Version) -> EpochStart {
        EpochStart { epoch: Epoch { number, id }, first_version }
    }

    fn hello(last: Version, epochs: &[EpochStart]) -> Hello {
        let (address, dialed) = (":2".to_string(), "a:1".to_string());
        let (adopted, epochs) = (Epoch::default(), epochs.to_vec());
        let (life, wish, resume) = (1, Wish::Log, None);
        let (version, node, own, partition) = (PROTOCOL, 2, 1, 1);
        Hello {
            version,
            node,
            own,
            partition,
            last,
            adopted,
            epochs,
            address,
            dialed,
            life,
            ordered: crate::wire::Ordered::No,
            wish,
            resume,
            sum: None,
        }
    }

    fn view(published: Version, last: Version, oldest: Version, epochs: &[EpochStart]) -> View {
        let adopted = epochs.last().map(|e| e.epoch).unwrap_or_default();
        let standing = Standing { adopted, epochs: epochs.to_vec(), last, published, members: Vec::new(), leads: true };
        View { node: 1, partition: 1, standing, oldest, had: Had::default() }
    }

    #[derive(Debug, PartialEq)]
    enum Seen {
        Stream,
        Copy,
        Parted,
        Refused(Reason),
    }

    fn answer(hello: &Hello, view: &View) -> Seen {
        match Leader::open(hello, view, NOW) {
            Opening::Stream(_, Frame::Accept(_)) => Seen::Stream,
            Opening::Copy => Seen::Copy,
            Opening::Refused(Frame::Parted(_)) => Seen::Parted,
            Opening::Refused(Frame::Refuse(reason, _)) => Seen::Refused(reason),
            other => panic!("{other:?}"),
        }
    }

    fn served(hello: &Hello, view: &View) -> Box<Leader> {
        match Leader::open(hello, view, NOW) {
            Opening::Stream(leader, _) => leader,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_a_history_that_the_log_continues_is_served() {
        let epochs = [reign(1, 7, 1), reign(2, 8, 11)];
        let view = view(18, 20, 6, &epochs);
        assert_eq!(answer(&hello(20, &epochs), &view), Seen::Stream, "what is pending is served, too");
        assert_eq!(answer(&hello(5, &epochs[..1]), &view), Seen::Stream);
        assert_eq!(answer(&hello(4, &epochs[..1]), &view), Seen::Refused(Reason::Purged));
        assert_eq!(answer(&Hello { wish: Wish::CopyIfNeeded, ..hello(4, &epochs[..1]) }, &view), Seen::Copy);
        assert_eq!(answer(&Hello { wish: Wish::CopyIfNeeded, ..hello(5, &epochs[..1]) }, &view), Seen::Stream);
        assert_eq!(answer(&Hello { wish: Wish::CopyIfNeeded, ..hello(12, &epochs[..1]) }, &view), Seen::Parted);
        assert_eq!(answer(&Hello { wish: Wish::Copy, ..hello(12, &epochs[..1]) }, &view), Seen::Copy, "by order");
        assert_eq!(answer(&hello(12, &epochs[..1]), &view), Seen::Parted, "a tail of the old reign");
        assert_eq!(answer(&hello(21, &epochs), &view), Seen::Parted, "it is ahead");
        assert_eq!(answer(&hello(15, &[reign(1, 7, 1), reign(2, 9, 11)]), &view), Seen::Parted);
        // It decides by itself whether it may follow; the leader only notes that it will have to outdo that epoch.
        let stray = Epoch { number: 2, id: 9 };
        assert_eq!(answer(&Hello { adopted: stray, ..hello(20, &epochs) }, &view), Seen::Stream);
        assert!(is_stray(stray, &view.standing) && !is_stray(epochs[0].epoch, &view.standing));
        assert_eq!(answer(&Hello { node: 1, ..hello(0, &[]) }, &view), Seen::Refused(Reason::Itself));
        assert_eq!(answer(&Hello { version: 9, ..hello(0, &[]) }, &view), Seen::Refused(Reason::Protocol));
    }

    #[test]
    fn an_empty_log_serves_who_has_everything_and_who_has_nothing() {
        assert_eq!(answer(&hello(0, &[]), &view(0, 0, 1, &[])), Seen::Stream);
        let epochs = [reign(1, 7, 1)];
        // Everything is checkpointed and purged.
        let view = view(9, 9, 10, &epochs);
        assert_eq!(answer(&hello(9, &epochs), &view), Seen::Stream);
        assert_eq!(answer(&hello(0, &[]), &view), Seen::Refused(Reason::Purged));
    }

    #[test]
    fn acks_are_of_what_was_sent_and_never_fall() {
        let epochs = [reign(1, 7, 1)];
        let mut leader = served(&hello(5, &epochs), &view(9, 9, 1, &epochs));
        let epoch = epochs[0].epoch;
        assert!(leader.take(&Frame::Ack(epoch, 6), NOW).is_err(), "6 was not sent");
        leader.sent(8, NOW);
        leader.take(&Frame::Ack(epoch, 8), NOW).expect("taken");
        leader.take(&Frame::Ack(epoch, 7), NOW).expect("taken");
        assert_eq!(leader.acked(), (epoch, 8));
        assert!(leader.take(&Frame::Batch(Vec::new().into()), NOW).is_err());
        assert!(!leader.is_news(epoch, &epochs, true));
        let longer = [epochs[0], reign(2, 8, 9)];
        assert!(leader.is_news(longer[1].epoch, &longer, true));
        let (epochs, adopted) = (longer.to_vec(), longer[1].epoch);
        let standing = Standing { adopted, epochs, last: 9, published: 9, members: Vec::new(), leads: true };
        assert_eq!(leader.standing(standing.clone()), Frame::Standing(Box::new(standing)));
        assert!(!leader.is_news(adopted, &longer, true), "once");
        assert_eq!(leader.shown(9, NOW), None, "the welcome said so");
        assert_eq!(leader.shown(10, NOW), Some(Frame::Beat(10)));
    }

    #[test]
    fn silence_ends_a_stream_and_beats_keep_it() {
        let mut leader = served(&hello(0, &[]), &view(0, 0, 1, &[]));
        assert_eq!(leader.beat(0, NOW), None);
        assert_eq!(leader.beat(0, NOW + BEAT), Some(Frame::Beat(0)));
        assert!(!leader.is_gone(NOW + SILENCE));
        assert!(leader.is_gone(NOW + SILENCE * 2));
        leader.take(&Frame::Beat(0), NOW + SILENCE).expect("taken");
        assert!(!leader.is_gone(NOW + SILENCE * 2));
    }
}
