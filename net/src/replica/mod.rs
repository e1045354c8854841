//! Replication of the partitions of one core: what moves the state machines of [`turnstone_replication`] and the partitions,
//! over connections that it knows only as [`Link`]s. The server has real ones; the simulator's lose, cut and delay.
//!
//! * [`feed`]: somebody follows a partition of this node, or asks what it has.
//! * [`following`]: a partition of this node follows: a task dials, applies and confirms.
//! * [`leading`]: confirmations are counted, commits that wait for too long expire, a restarted leader comes back.
//! * [`promotion`]: a node becomes leader by the votes of the others.
//! * [`asking`]: questions between nodes, and their answers.
//! * [`finding`]: finding the leader, and following nobody in a circle.
//! * [`orders`]: what an operator orders about roles and members.
//! * [`lending`] and [`copying`]: where the log does not reach back, a copy is sent and taken.
//! * [`known`]: what other members have had, which they may lose by a home that is put back.
//! * [`board`]: what `stat` shows of all that.

mod asking;
pub mod board;
mod copying;
mod feed;
mod finding;
mod following;
mod known;
mod leading;
mod lending;
mod orders;
mod promotion;

pub use board::{Board, Replica};
pub use copying::COPY_TAKES_PLACE;
pub use following::Trouble;
pub use leading::Counting;
pub use promotion::{Order, Promoted, Purpose};

use known::Known;
use lending::Lent;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::Partition;
use turnstone_engine::copy::CopyIn;
use turnstone_engine::cut::Agreed;
use turnstone_engine::env::{Env, Level, Sabotage};
use turnstone_engine::error::Error;
use turnstone_engine::leadership::Upstream;
use turnstone_engine::sync::{Notify, first_of};
use turnstone_engine::types::Version;
use turnstone_replication::BEAT;
use turnstone_replication::quorum::{Broken, Key};
use turnstone_replication::wire::Frame;

/// How often a task that waits for a link looks at the time.
const TICK: Duration = Duration::from_millis(100);

/// A partition whose index does not take what it must at the opening is opened again after this time, and longer after each
/// failure...
const REOPEN: Duration = Duration::from_millis(500);
/// ...up to this.
const REOPEN_MAX: Duration = Duration::from_secs(10);

/// Batches of so many bytes that are there already are sent, or taken, without giving way: they share a record of TLS, a write
/// and a flush.
const PIECE: usize = 16 << 10;

/// A connection to another node, or to a consumer, for one partition.
pub trait Link: 'static {
    /// Whether anything came since this was last asked.
    fn heard(&self) -> bool;
    /// Whether it is gone, and why.
    fn gone(&self) -> Option<String>;
    /// Whether what was said waits in memory that is worth sparing.
    fn is_clogged(&self) -> bool;
    /// Something came, left, or it is gone.
    fn changed(&self) -> &Notify;
    /// The other side's address, for people; its host for `:port`.
    fn peer(&self) -> String;
    /// SHA-256 of the public key that the other side has proved to have, and the name in its certificate.
    fn identity(&self) -> ([u8; 32], String);
    /// It is not needed any more: what was said still leaves.
    fn close(&self);
}

/// A connection whose frames are of this kind.
pub trait Speaks<F>: Link {
    /// Sends a frame, behind those before it; lost if the link is gone.
    fn say(&self, frame: &F);
    /// The next whole frame that came.
    fn next(&self) -> Result<Option<F>, String>;
}

/// The node around the partitions.
pub trait Host: 'static {
    /// The partitions' outside world.
    type Env: Env;
    /// Its connections.
    type Link: Speaks<Frame>;

    /// A partition that serves here.
    fn partition(&self, number: u8) -> Option<Partition<Self::Env>>;
    /// Closes a partition as it is, has `change` work on what it left, and opens it anew, whatever that came to.
    fn reopen(
        &self,
        number: u8,
        why: &str,
        change: impl AsyncFnOnce(&Partition<Self::Env>) -> Result<(), Error>,
    ) -> impl Future<Output = Result<Partition<Self::Env>, Error>>;
    /// Connects to a node's partition.
    fn dial(&self, address: String, partition: u8) -> impl Future<Output = Result<Rc<Self::Link>, String>>;
    /// This node's number.
    fn node(&self) -> u64;
    /// Drawn when its process began.
    fn life(&self) -> u64;
    /// Where it listens: `host:port`, or `:port` if whoever hears it must add the host.
    fn address(&self) -> String;
    /// Time since an arbitrary start.
    fn now(&self) -> Duration;
    /// Nothing is to be begun any more.
    fn stopping(&self) -> bool;
    /// Whether a follower gets a copy although the log would do: tests want to see more of them.
    fn rather_copies(&self) -> bool {
        false
    }
    /// Bytes of keys and values in one frame of a copy: tests want copies of little data to take many frames.
    fn copy_frame_bytes(&self) -> usize {
        256 << 10
    }
}

type LentCopies<E> = BTreeMap<(u8, Key), Lent<E>>;

/// Replication of a core's partitions.
pub struct Replication<H: Host> {
    /// The node.
    pub host: H,
    /// What is known, for `stat`.
    pub board: Rc<Board>,
    /// Which attempt to follow is the current one, by partition.
    following: RefCell<BTreeMap<u8, u64>>,
    /// How many orders about a partition's role there were.
    orders: RefCell<BTreeMap<u8, u64>>,
    counting: RefCell<BTreeMap<u8, Counting>>,
    /// Followers that were refused because they had agreed to a candidate that does not lead, by partition.
    strays: RefCell<BTreeMap<u8, leading::Strays>>,
    /// Whom partitions are about to follow.
    intents: RefCell<finding::PerPartition<(u64, Upstream)>>,
    /// How many intents there were.
    intended: Cell<u64>,
    /// A leader was found that is followed already: who waits to try again does so at once.
    found: Notify,
    /// Promotions that are under way.
    candidates: RefCell<finding::PerPartition<u32>>,
    /// Where members were when they last said hello, by partition and member.
    addresses: RefCell<BTreeMap<(u8, Key), String>>,
    /// Copies that nobody receives now, by partition and receiver.
    lent: RefCell<LentCopies<H::Env>>,
    /// Copies that broke off, by partition.
    partial: RefCell<BTreeMap<u8, CopyIn<H::Env>>>,
    /// What other members have had.
    known: Known,
    /// Partitions whose log goes on in another way than their leader's.
    forked: RefCell<BTreeSet<u8>>,
}

impl<H: Host> Replication<H> {
    /// Replication around these partitions; [`Replication::begin`] starts it.
    pub fn new(host: H) -> Rc<Replication<H>> {
        Rc::new(Replication {
            host,
            board: Rc::default(),
            following: RefCell::default(),
            orders: RefCell::default(),
            counting: RefCell::default(),
            strays: RefCell::default(),
            intents: RefCell::default(),
            intended: Cell::default(),
            found: Notify::default(),
            candidates: RefCell::default(),
            addresses: RefCell::default(),
            lent: RefCell::default(),
            partial: RefCell::default(),
            known: Known::default(),
            forked: RefCell::default(),
        })
    }

    /// Goes on with what a partition was before the start.
    pub fn begin(self: &Rc<Self>, partition: &Partition<H::Env>) {
        self.go_on(partition);
        partition.env().spawn(leading::keep_leading(self.clone(), partition.id()));
    }

    /// Closes a partition, cuts its log behind `version`, and opens it anew.
    async fn cut(&self, number: u8, version: Version, agreed: Agreed) -> Result<Partition<H::Env>, Error> {
        self.partial.borrow_mut().remove(&number);
        self.drop_copies(number);
        let cut = async |old: &Partition<H::Env>| old.cut(version, agreed).await.map(drop);
        self.host.reopen(number, "its log is being cut", cut).await
    }

    fn key(&self, partition: u8) -> Key {
        (self.host.node(), partition)
    }

    fn log(&self, partition: u8, level: Level, text: impl std::fmt::Display) {
        if let Some(open) = self.host.partition(partition) {
            open.env().log(level, format!("partition {partition}: {text}"));
        }
    }
}

/// Rules that a test breaks in here.
fn broken<E: Env>(env: &E) -> Broken {
    let sabotage = env.sabotage();
    Broken {
        epoch: sabotage == Some(Sabotage::OldEpochCounted),
        old_tail: sabotage == Some(Sabotage::OldTailCounted),
        new_rule_alone: sabotage == Some(Sabotage::NewRuleAlone),
        counts_itself: sabotage == Some(Sabotage::MemberCountedTwice),
        lower_vote: sabotage == Some(Sabotage::LowerPromise),
        id_not_compared: sabotage == Some(Sabotage::EpochIdNotCompared),
        raised_alone: sabotage == Some(Sabotage::RaisedAlone),
        order_not_kept: sabotage == Some(Sabotage::OrderNotKept),
        learner_votes: sabotage == Some(Sabotage::LearnerVotes),
    }
}

/// Tells the other side that this node lives, for as long as this is there: by itself, since whoever works on the stream may
/// wait for a checkpoint, a disk or a place in a file meanwhile.
struct Heartbeat(Rc<Cell<bool>>);

impl Heartbeat {
    fn start<E: Env>(link: &Rc<impl Speaks<Frame>>, partition: &Partition<E>) -> Heartbeat {
        let over = Rc::new(Cell::new(false));
        let (link, partition, seen) = (link.clone(), partition.clone(), over.clone());
        let env = partition.env().clone();
        env.spawn(async move {
            while !seen.get() && link.gone().is_none() && !partition.is_closed() {
                link.say(&Frame::Beat(partition.published()));
                partition.env().sleep(BEAT).await;
            }
        });
        Heartbeat(over)
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

/// Opens a partition that was closed a moment ago. An index that fails, and what the system refuses, is asked again, since it was
/// well before; any other error stands.
pub async fn open_again<P>(
    mut open: impl AsyncFnMut() -> Result<P, Error>,
    mut pause: impl AsyncFnMut(&Error, Duration) -> bool,
) -> Result<P, Error> {
    let mut wait = REOPEN;
    loop {
        match open().await {
            Err(error) if matches!(error, Error::Index(_)) || error.is_refusal() => {
                if !pause(&error, wait).await {
                    return Err(error);
                }
                wait = (wait * 2).min(REOPEN_MAX);
            }
            other => return other,
        }
    }
}

/// Waits for a link, and never longer than it takes to look at the time.
pub(crate) async fn wait_for<E: Env>(env: &E, link: &impl Link) {
    first_of(link.changed().notified(), env.sleep(TICK)).await;
}

/// An address as the other side gave it: without a host it is on the host that it came from.
fn resolve(address: &str, peer: &str) -> String {
    if !address.starts_with(':') {
        return address.to_string();
    }
    match peer.rsplit_once(':') {
        Some((host, _)) => format!("{host}{address}"),
        None => address.to_string(),
    }
}
