//! The seam: everything that a partition may ask of the outside world.
//!
//! It exists twice: for real (glommio, io_uring, fjall: crate `executor`) and in the simulator (seeded scheduler,
//! virtual time, a disk that loses, tears and reorders: crate `tests`). Dispatch is static, futures stay on their
//! core, and disk futures are never cancelled: whoever stops waiting abandons the wait, not the I/O.

use crate::disk::Disk;
use crate::index::Index;
use crate::wal::shared_flush::SharedFlush;
use std::convert::Infallible;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

/// How urgent a line of the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// A person must act; the line says what to do.
    Error,
    /// Degraded, and healing itself.
    Warn,
    /// Start, stop, role changes, progress of long work.
    Info,
    /// For those who follow one partition closely.
    Debug,
}

/// Planted bugs: each breaks one rule of the design in the real code, so that the tests can show that they would notice.
/// The real environment never answers with one unless a test built the server around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each name says which rule is broken")]
pub enum Sabotage {
    AckBeforeFlush,
    EnvelopeNotChained,
    ChecksumSkipped,
    SnapshotOffByOne,
    DirectorySyncLost,
    GenerationNotAdvanced,
    PendingNotChecked,
    ValueFileBeforeManifest,
    RunWithoutTombstones,
    BehindIsBroken,
    StaleCacheFill,
    RunAheadToldEarly,
    LargeValueNotFlushed,
    ReadCheckSkipped,
    FlushJoinedLate,
    PromiseNotKept,
    OldLeaderFollowed,
    AckBeforeDisk,
    OldEpochCounted,
    OldTailCounted,
    NewRuleAlone,
    FenceSkipped,
    BestLogNotFetched,
    RestartUnconfirmed,
    AheadIsCut,
    EpochIdNotCompared,
    PendingShownByFollower,
    PendingShownAfterRestart,
    PublishedBeforeFlush,
    HistoryNotCompared,
    MemberCountedTwice,
    LowerPromise,
    CopyAheadOfItsRuns,
    RaisedAlone,
    OrderNotKept,
    CircleNotLookedFor,
    ForgottenNotKept,
    NewcomerLeads,
    RestartTellsLess,
    NewestSegmentNotRecorded,
    TierWithoutTombstones,
    LearnerVotes,
    PutBackNotNoticed,
    BodiesNotChained,
    FollowerAltersBatch,
}

impl Sabotage {
    /// Those that take thousands of simulated minutes to show.
    pub const SELDOM_SEEN: [Sabotage; 3] =
        [Sabotage::AckBeforeDisk, Sabotage::OldEpochCounted, Sabotage::OldTailCounted];

    /// Those that break what nodes promise each other.
    pub const AMONG_NODES: [Sabotage; 15] = [
        Sabotage::PromiseNotKept,
        Sabotage::OldLeaderFollowed,
        Sabotage::LowerPromise,
        Sabotage::NewRuleAlone,
        Sabotage::FenceSkipped,
        Sabotage::BestLogNotFetched,
        Sabotage::RestartUnconfirmed,
        Sabotage::AheadIsCut,
        Sabotage::EpochIdNotCompared,
        Sabotage::PendingShownByFollower,
        Sabotage::PendingShownAfterRestart,
        Sabotage::PublishedBeforeFlush,
        Sabotage::HistoryNotCompared,
        Sabotage::MemberCountedTwice,
        Sabotage::CopyAheadOfItsRuns,
    ];

    /// Those that show only where a run tries or checks more than plain faults.
    pub const BEYOND_PLAIN: [Sabotage; 8] = [
        Sabotage::RaisedAlone,
        Sabotage::OrderNotKept,
        Sabotage::CircleNotLookedFor,
        Sabotage::ForgottenNotKept,
        Sabotage::NewcomerLeads,
        Sabotage::RestartTellsLess,
        Sabotage::LearnerVotes,
        Sabotage::PutBackNotNoticed,
    ];

    /// Those that one partition shows by itself.
    pub const ALL: [Sabotage; 15] = [
        Sabotage::AckBeforeFlush,
        Sabotage::EnvelopeNotChained,
        Sabotage::ChecksumSkipped,
        Sabotage::SnapshotOffByOne,
        Sabotage::DirectorySyncLost,
        Sabotage::GenerationNotAdvanced,
        Sabotage::PendingNotChecked,
        Sabotage::ValueFileBeforeManifest,
        Sabotage::RunWithoutTombstones,
        Sabotage::StaleCacheFill,
        Sabotage::RunAheadToldEarly,
        Sabotage::LargeValueNotFlushed,
        Sabotage::ReadCheckSkipped,
        Sabotage::FlushJoinedLate,
        Sabotage::NewestSegmentNotRecorded,
    ];
}

/// The outside world of one partition. Cloning gives another handle on the same world.
#[expect(async_fn_in_trait, reason = "futures stay on the core that made them; nobody needs Send")]
pub trait Env: Clone + 'static {
    /// The partition's directory.
    type Disk: Disk;
    /// The partition's index of checkpointed keys.
    type Index: Index;

    /// The partition's directory.
    fn disk(&self) -> &Self::Disk;
    /// The partition's index.
    fn index(&self) -> &Self::Index;
    /// Who flushes logs on this device together with those of the core's other partitions; `None` if each is flushed by
    /// itself.
    fn shared_flush(&self, device: u64) -> Option<Rc<SharedFlush<<Self::Disk as Disk>::File>>>;
    /// Time since an arbitrary start; never goes back.
    fn now(&self) -> Duration;
    /// What [`Env::now`] was some milliseconds ago at most, for ages that are looked at with every request. Nobody may wait by it.
    fn recently(&self) -> Duration;
    /// Milliseconds since the Unix epoch; may jump.
    fn wall_ms(&self) -> u64;
    /// Unpredictable to clients, reproducible in the simulator.
    fn random(&self) -> u64;
    /// Ends after `how_long`.
    async fn sleep(&self, how_long: Duration);
    /// Lets others run where this task had its share.
    async fn give_way(&self);
    /// Runs a task beside this one, on the same core.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);
    /// Writes a line to the log.
    fn log(&self, level: Level, line: String);
    /// Ends the process: a write or flush of the log failed, and nothing may be acknowledged any more.
    async fn halt(&self, why: String) -> Infallible;
    /// The planted bug of a test run, if any.
    fn sabotage(&self) -> Option<Sabotage> {
        None
    }
}
