//! One partition that follows: what it says, what it makes of what its leader says, and what becomes of a log that has
//! more than the leader's.

use crate::SILENCE;
use crate::history::{Common, common_point};
use crate::leader::Violation;
use crate::wire::{Copying, Frame, Had, Hello, PROTOCOL, Reason, Welcome};
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::Standing;
use turnstone_engine::copy::CopySum;
use turnstone_engine::manifest::{EpochStart, reign};
use turnstone_engine::types::{Epoch, Version};

/// What is to be done about a frame, in this order and before the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Nothing,
    /// The leader's history becomes this node's, if it contains it, and its epoch is agreed to.
    Adopt(Epoch, Vec<EpochStart>),
    /// Append this batch.
    Batch(Rc<Vec<u8>>),
    /// It is the next large value of the batch before.
    Value(Vec<u8>),
    /// Everything up to this version may be shown.
    Show(Version),
    /// There is no stream, and why.
    Refused(Reason, String),
    /// There is no stream: this node has what the leader has not ([`rejoin`]).
    Parted(Welcome),
    /// There is no stream, but a copy.
    Copy(Box<Copying>),
    /// These keys are the next of it.
    Keys(Vec<u8>),
    /// It is whole, if it came to this.
    CopyEnd(CopySum),
}

/// Where a conversation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Asked,
    Stream,
    Copy,
}

/// One stream from its hello on.
#[derive(Debug)]
pub struct Follower {
    stage: Stage,
    leader: Option<u64>,
    epoch: Epoch,
    acked: Version,
    leader_published: Version,
    /// The other side leads, or did when the stream began, in an epoch that begins with this version.
    leads_from: Option<Version>,
    /// What its log ended with when it said so.
    leader_last: Version,
    /// What it knows this node to have had.
    had: Had,
    heard: Duration,
}

impl Follower {
    /// Begins with this hello: the frame to send first.
    pub fn open(hello: Hello, now: Duration) -> (Follower, Frame) {
        let hello = Hello { version: PROTOCOL, ..hello };
        let (stage, epoch) = (Stage::Asked, Epoch::default());
        let (leader, acked, leader_published, leads_from, leader_last) = (None, 0, 0, None, 0);
        let had = Had::default();
        let follower =
            Follower { stage, leader, epoch, acked, leader_published, leads_from, leader_last, had, heard: now };
        (follower, Frame::Hello(hello))
    }

    /// The leader said something.
    pub fn take(&mut self, frame: Frame, now: Duration) -> Result<Step, Violation> {
        self.heard = now;
        match frame {
            Frame::Accept(Welcome { standing, node, had }) if self.stage == Stage::Asked => {
                self.stage = Stage::Stream;
                (self.leader, self.had) = (Some(node), had);
                self.note(&standing);
                Ok(Step::Adopt(standing.adopted, standing.epochs))
            }
            Frame::Refuse(reason, text) => Ok(Step::Refused(reason, text)),
            Frame::Copy(copy) if self.stage == Stage::Asked => {
                self.stage = Stage::Copy;
                (self.leader, self.had) = (Some(copy.welcome.node), copy.welcome.had);
                Ok(Step::Copy(Box::new(copy)))
            }
            Frame::Keys(bytes) if self.stage == Stage::Copy => Ok(Step::Keys(bytes)),
            Frame::CopyEnd(sum) if self.stage == Stage::Copy => Ok(Step::CopyEnd(sum)),
            // It lives: a copy takes its time, also to begin.
            Frame::Beat(_) if self.stage != Stage::Stream => Ok(Step::Nothing),
            Frame::Parted(welcome) if self.stage == Stage::Asked => {
                (self.leader, self.had) = (Some(welcome.node), welcome.had);
                Ok(Step::Parted(welcome))
            }
            Frame::Batch(bytes) if self.stage == Stage::Stream => Ok(Step::Batch(bytes)),
            Frame::Value(bytes) if self.stage == Stage::Stream => Ok(Step::Value(bytes)),
            Frame::Standing(standing) if self.stage == Stage::Stream => {
                self.note(&standing);
                // What was confirmed counts in the new epoch only once it is confirmed in it.
                self.acked = 0;
                Ok(Step::Adopt(standing.adopted, standing.epochs))
            }
            Frame::Beat(published) => {
                self.leader_published = self.leader_published.max(published);
                Ok(Step::Show(published))
            }
            _ => Err(Violation("the leader sent what it must not send now".to_string())),
        }
    }

    /// The other side says what it has.
    fn note(&mut self, theirs: &Standing) {
        self.epoch = theirs.adopted;
        self.leader_published = self.leader_published.max(theirs.published);
        if theirs.leads && self.leads_from.is_none() {
            self.leader_last = theirs.last;
        }
        // An epoch that begins behind its last version has published nothing yet.
        let begun = theirs.epochs.iter().rev().find(|epoch| epoch.first_version <= theirs.last);
        self.leads_from = theirs.leads.then_some(begun.map_or(0, |epoch| epoch.first_version));
    }

    /// Everything up to `version` is on this node's disk: tell the leader, if it does not know.
    pub fn durable(&mut self, version: Version) -> Option<Frame> {
        if version <= self.acked {
            return None;
        }
        self.acked = version;
        Some(Frame::Ack(self.epoch, version))
    }

    /// Who says to be the other side, once it has answered.
    pub fn leader(&self) -> Option<u64> {
        self.leader
    }

    /// What the other side knows this node to have had, once it has answered.
    pub fn had(&self) -> Had {
        self.had
    }

    /// Whether the other side leads.
    pub fn leads(&self) -> bool {
        self.leads_from.is_some()
    }

    /// Whether the other side leads, and this node has all that it had when it first said so in this stream.
    pub fn has_caught_up(&self, flushed: Version) -> bool {
        self.leads_from.is_some() && flushed >= self.leader_last
    }

    /// The epoch that the stream is of.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// What the leader shows.
    pub fn shown(&self) -> Version {
        self.leader_published
    }

    /// Whether that is all that was ever published: the leader leads, and has published a version of its epoch, which no leader
    /// does before everything older is published.
    pub fn shows_all(&self) -> bool {
        self.leads_from.is_some_and(|begun| self.leader_published >= begun)
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

/// What becomes of a log that has more than its leader's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejoin {
    /// It is cut behind this version, and goes on from there.
    Cut(Version),
    /// That would take back what this node has shown: only a person may order it.
    Force {
        /// It would be cut behind this version.
        at: Version,
        /// So many versions that were shown would go.
        shown: u64,
    },
    /// Nothing is cut now: there may be somebody who needs it.
    Wait(String),
}

/// On whose word a log is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The other log's own.
    Log,
    /// Enough members have agreed, and theirs is the best log of all ([`crate::election`]).
    Members,
    /// A person's.
    Person,
}

/// Decides whether `own` may be cut to follow who sent `theirs`.
///
/// What enough members hold must stay. It is in the log of whoever leads in a higher epoch, and in every log with a record of
/// that epoch: what such a log does not have was held by too few. Where the other log is only shorter nothing follows
/// from that, unless its node leads: another follower may simply not have it yet, and a leader that was restarted must
/// hear of it before it goes on.
pub fn rejoin(own: &Standing, theirs: &Standing, word: Word) -> Rejoin {
    let force = word == Word::Person;
    let older = theirs.adopted != own.adopted && theirs.adopted.number <= own.adopted.number;
    if older && !force {
        return Rejoin::Wait(format!(
            "this node has agreed to epoch {}, the other one only to {}",
            own.adopted.number, theirs.adopted.number
        ));
    }
    let at = match common_point((&theirs.epochs, theirs.last), (&own.epochs, own.last)) {
        Common::Prefix(at) => {
            if !theirs.leads && word == Word::Log {
                return Rejoin::Wait(format!("the other log ends at {at}, and its node does not lead"));
            }
            at
        }
        Common::Diverged(at) => {
            let newest = |s: &Standing| reign(&s.epochs, s.last).map_or(0, |epoch| epoch.number);
            if newest(theirs) <= newest(own) && at >= own.published && word == Word::Log {
                let text = "and the other log has no record of a newer epoch";
                return Rejoin::Wait(format!("the histories part behind version {at}, {text}"));
            }
            at
        }
    };
    if at < own.published && !force {
        return Rejoin::Force { at, shown: own.published - at };
    }
    Rejoin::Cut(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Wish;

    const NOW: Duration = Duration::from_secs(100);

    fn reign_of(number: u64, id: u64, first_version: Version) -> EpochStart {
        EpochStart { epoch: Epoch { number, id }, first_version }
    }

    fn standing(epochs: &[EpochStart], published: Version, last: Version, leads: bool) -> Standing {
        let adopted = epochs.last().map(|e| e.epoch).unwrap_or_default();
        Standing { adopted, epochs: epochs.to_vec(), last, published, members: Vec::new(), leads }
    }

    #[test]
    fn nothing_is_taken_before_the_stream_is_open() {
        let (address, dialed) = (":2".to_string(), "a:1".to_string());
        let adopted = Epoch::default();
        let (epochs, life, wish, resume) = (Vec::new(), 1, Wish::Log, None);
        let (version, node, own, partition, last) = (0, 2, 1, 3, 7);
        let hello = Hello {
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
        };
        let (mut follower, hello) = Follower::open(hello, NOW);
        assert!(matches!(hello, Frame::Hello(Hello { version: PROTOCOL, own: 1, partition: 3, last: 7, .. })));
        assert!(follower.take(Frame::Batch(vec![1].into()), NOW).is_err());
        assert!(follower.take(Frame::Ack(Epoch::default(), 1), NOW).is_err());
        let epochs = [reign_of(1, 7, 1)];
        let accept = Frame::Accept(Welcome { node: 1, had: Had::default(), standing: standing(&epochs, 20, 25, true) });
        assert_eq!(follower.take(accept.clone(), NOW), Ok(Step::Adopt(epochs[0].epoch, epochs.to_vec())));
        assert!(follower.take(accept, NOW).is_err(), "once");
        assert_eq!(follower.take(Frame::Batch(vec![1].into()), NOW), Ok(Step::Batch(vec![1].into())));
        assert_eq!(follower.lag(9), 11);
        assert_eq!(follower.durable(9), Some(Frame::Ack(epochs[0].epoch, 9)));
        assert_eq!(follower.durable(9), None);
        assert_eq!(follower.take(Frame::Beat(30), NOW), Ok(Step::Show(30)));
        assert_eq!(follower.lag(9), 21);
        let next = reign_of(2, 8, 10);
        let news = Frame::Standing(Box::new(standing(&[epochs[0], next], 20, 25, true)));
        follower.take(news, NOW).expect("taken");
        assert_eq!(follower.durable(9), Some(Frame::Ack(next.epoch, 9)), "it is confirmed anew");
        follower.hears(NOW + SILENCE);
        assert!(!follower.is_gone(NOW + SILENCE * 2));
        assert!(follower.is_gone(NOW + SILENCE * 3));
    }

    #[test]
    fn a_stream_from_a_member_knows_when_that_comes_to_lead() {
        let epochs = [reign_of(1, 7, 1)];
        let (mut follower, _) = Follower::open(Hello::default(), NOW);
        let accept = Frame::Accept(Welcome { node: 1, had: Had::default(), standing: standing(&epochs, 5, 9, false) });
        follower.take(accept, NOW).expect("taken");
        assert!(!follower.leads() && !follower.shows_all() && !follower.has_caught_up(100));
        let (next, last) = (reign_of(2, 8, 11), 11);
        let leads = Frame::Standing(Box::new(standing(&[epochs[0], next], 9, last, true)));
        assert_eq!(follower.take(leads, NOW), Ok(Step::Adopt(next.epoch, vec![epochs[0], next])));
        assert!(follower.leads() && !follower.shows_all(), "nothing of its epoch is published");
        assert!(!follower.has_caught_up(10) && follower.has_caught_up(11));
        follower.take(Frame::Beat(11), NOW).expect("taken");
        assert!(follower.shows_all());
    }

    #[test]
    fn only_what_too_few_hold_is_cut() {
        let old = [reign_of(1, 7, 1)];
        let new = [reign_of(1, 7, 1), reign_of(2, 8, 11)];
        // The new leader does not have what lies behind 10.
        let own = standing(&old, 8, 14, false);
        assert_eq!(rejoin(&own, &standing(&new, 11, 20, true), Word::Log), Rejoin::Cut(10));
        assert_eq!(rejoin(&own, &standing(&new, 11, 20, false), Word::Log), Rejoin::Cut(10), "nor do its followers");
        let shown = standing(&old, 12, 14, false);
        let theirs = standing(&new, 11, 20, true);
        assert_eq!(rejoin(&shown, &theirs, Word::Log), Rejoin::Force { at: 10, shown: 2 });
        assert_eq!(rejoin(&shown, &theirs, Word::Person), Rejoin::Cut(10));
        // A log that is only shorter.
        assert!(matches!(rejoin(&own, &standing(&old, 8, 9, false), Word::Log), Rejoin::Wait(_)));
        assert_eq!(rejoin(&own, &standing(&old, 8, 9, true), Word::Log), Rejoin::Cut(9));
        // An old leader is not followed, and equal numbers say nothing.
        assert!(matches!(rejoin(&theirs, &own, Word::Log), Rejoin::Wait(_)));
        let twin = standing(&[reign_of(1, 7, 1), reign_of(2, 9, 13)], 9, 20, true);
        assert!(matches!(rejoin(&theirs, &twin, Word::Log), Rejoin::Wait(_)));
        assert_eq!(rejoin(&theirs, &twin, Word::Person), Rejoin::Cut(10));
    }
}
