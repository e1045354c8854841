//! A partition of this node follows: dials the leader, applies what comes, and confirms what is on the disk.
//!
//! Who follows whom is in the partition's manifest; a task per partition keeps at it, with pauses that grow, until the role
//! changes or another attempt takes its place.

use super::board::Following;
use super::{Heartbeat, Host, Link, PIECE, Replication, Speaks, wait_for};
use crate::wire::ErrorCode;
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::cut::Agreed;
use turnstone_engine::env::{Env, Level, Sabotage};
use turnstone_engine::follow::Incoming;
use turnstone_engine::leadership::{Role, Upstream};
use turnstone_engine::manifest::EpochStart;
use turnstone_engine::sync::first_of;
use turnstone_engine::types::{Epoch, Key, Version};
use turnstone_engine::{Error, Partition};
use turnstone_replication::follower::{Follower, Rejoin, Step, Word, rejoin};
use turnstone_replication::leadership::Event;
use turnstone_replication::wire::{Copying, Frame, Hello, Ordered, PROTOCOL, Reason, Welcome, Wish};

/// From the connection to the leader's answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Pauses between attempts grow from here...
const PAUSE: Duration = Duration::from_millis(100);
/// ...to here.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// After so many failures in a row the members are asked who leads.
const LOST: u32 = 3;

/// Why there is no stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The leader cannot be reached, or the stream broke: tried again.
    Broken(String),
    /// The leader refuses: tried again, things may change there.
    Refused(Reason, String),
    /// This log has what the leader's has not.
    Parted(Box<Welcome>),
    /// This partition is to follow no more.
    Over,
    /// The engine refuses.
    Engine(Error),
}

impl Trouble {
    /// For people.
    pub fn text(&self) -> String {
        match self {
            Trouble::Broken(text) | Trouble::Refused(_, text) => text.clone(),
            Trouble::Parted(_) => "the histories part".to_string(),
            Trouble::Over => "it follows no more".to_string(),
            Trouble::Engine(error) => error.to_string(),
        }
    }

    /// For programs.
    pub fn code(&self) -> ErrorCode {
        match self {
            Trouble::Refused(Reason::Diverged, _) | Trouble::Parted(_) => ErrorCode::Diverged,
            Trouble::Refused(Reason::Purged, _) => ErrorCode::Purged,
            Trouble::Refused(Reason::NotLeader, _) => ErrorCode::NotLeader,
            Trouble::Refused(Reason::NoPartition, _) => ErrorCode::NoSuchPartition,
            Trouble::Refused(Reason::Protocol | Reason::Itself, _) => ErrorCode::Unsupported,
            Trouble::Refused(Reason::Fenced, _) => ErrorCode::Fenced,
            Trouble::Refused(Reason::Stranger, _) => ErrorCode::Denied,
            Trouble::Broken(_) => ErrorCode::Unreachable,
            Trouble::Over => ErrorCode::Busy,
            Trouble::Engine(error) => crate::server::code_of(error),
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        Trouble::Engine(error)
    }
}

/// An open stream.
pub(super) struct Stream<L> {
    pub(super) link: Rc<L>,
    pub(super) follower: Follower,
    /// It is not one, but a copy.
    copy: Option<Box<Copying>>,
    /// What was here when it was opened.
    last: Version,
    adopted: Epoch,
    epochs: Vec<EpochStart>,
}

impl<H: Host> Replication<H> {
    /// A partition that is a follower follows; others are left alone.
    pub(super) fn go_on(self: &Rc<Self>, partition: &Partition<H::Env>) {
        if let Role::Follower(upstream) = partition.role() {
            let attempt = self.next_attempt(partition.id());
            let number = partition.id();
            let env = partition.env().clone();
            partition.env().spawn(keep_following(self.clone(), env, number, upstream, attempt, None, false));
        }
    }

    /// `replicaof no one`: follows no more, and takes no writes until it is promoted.
    pub async fn stop_following(&self, partition: &Partition<H::Env>) -> Result<(), Trouble> {
        self.next_order(partition.id());
        if self.order(partition, &Event::FollowsNobody).await? {
            self.next_attempt(partition.id());
        }
        Ok(())
    }

    /// `replicaof HOST:PORT PARTITION`: follows, once the leader has agreed. With `force` what this log has beyond the
    /// leader's is cut even if it was shown.
    pub async fn begin_following(
        self: &Rc<Self>,
        mut partition: Partition<H::Env>,
        upstream: Upstream,
        force: bool,
    ) -> Result<(), Trouble> {
        let number = partition.id();
        let order = self.next_order(number);
        let before = partition.leadership().number;
        // Others see it from now on.
        let _intent = self.intend(number, &upstream);
        let ordered = if force { Ordered::ByForce } else { Ordered::Yes };
        // Only a copy takes the place of a log that is another one in the same epochs.
        let mut replace = force && self.forked.borrow().contains(&number);
        let opened = match self.open_stream(&partition, &upstream, Wish::CopyIfNeeded, ordered).await {
            Err(Trouble::Parted(welcome)) => Err(Some(welcome)),
            Err(Trouble::Refused(Reason::Diverged, _)) if force => {
                replace = true;
                Err(None)
            }
            Ok(stream) if replace => {
                stream.link.close();
                Err(None)
            }
            other => Ok(other?),
        };
        let close = |stream: &Stream<H::Link>| stream.link.close();
        if let Err(circle) = self.check_no_circle(&partition, &upstream, force).await {
            opened.iter().for_each(close);
            return Err(circle);
        }
        // That took its time: another order, a promotion or a step-down since then stands.
        let changed = self.newest_order(number) != order || before != partition.leadership().number;
        if changed {
            opened.iter().for_each(close);
            return Err(Trouble::Broken("the partition's role was changed meanwhile; ask again".to_string()));
        }
        let node = match &opened {
            Ok(stream) => stream.follower.leader().unwrap_or(0),
            Err(welcome) => welcome.as_ref().map_or(0, |welcome| welcome.node),
        };
        let follows = Event::Follows { upstream: upstream.clone(), node };
        if let Ok(stream) = &opened {
            let own = partition.adopted();
            if stream.adopted != own && stream.adopted.number <= own.number {
                if !force {
                    close(stream);
                    return Err(fenced(own, stream.adopted));
                }
                close(stream);
                // The task that follows now must not go on behind the cut.
                self.next_attempt(number);
                partition = self.cut(number, Version::MAX, Agreed::ByForce(stream.adopted)).await?;
            }
        }
        if let Err(Some(welcome)) = &opened {
            let word = if force { Word::Person } else { Word::Log };
            let (from, to) = (partition.adopted(), welcome.standing.adopted);
            match rejoin(&partition.standing(), &welcome.standing, word) {
                // The log cannot be cut there: a copy takes the place of everything.
                Rejoin::Cut(at) if at < partition.settled() => replace = true,
                Rejoin::Cut(at) => {
                    self.order(&partition, &follows).await?;
                    let agreed = if force { Agreed::ByForce(to) } else { Agreed::Moves { from, to } };
                    partition = self.cut(number, at, agreed).await?;
                }
                Rejoin::Force { at, shown } => return Err(needs_force(at, shown)),
                Rejoin::Wait(why) => {
                    let text = format!(
                        "{why}; nothing was changed; `replicaof HOST:PORT PARTITION force` follows it all the same, and \
                         sets aside what the other does not have"
                    );
                    return Err(Trouble::Refused(Reason::Diverged, text));
                }
            }
        }
        if let Err(error) = self.order(&partition, &follows).await {
            opened.iter().for_each(close);
            return Err(error);
        }
        let attempt = self.next_attempt(number);
        let usable = opened.ok().filter(|stream| stream.last == partition.prepared() && stream.link.gone().is_none());
        let env = partition.env().clone();
        let task = keep_following(self.clone(), env, number, upstream, attempt, usable, replace);
        partition.env().spawn(task);
        Ok(())
    }

    /// The number of the newest order about a partition's role.
    pub(super) fn newest_order(&self, partition: u8) -> u64 {
        self.orders.borrow().get(&partition).copied().unwrap_or(0)
    }

    /// Numbers the orders about a partition's role.
    pub(super) fn next_order(&self, partition: u8) -> u64 {
        let mut orders = self.orders.borrow_mut();
        let order = orders.entry(partition).or_default();
        *order += 1;
        *order
    }

    pub(super) fn next_attempt(&self, partition: u8) -> u64 {
        let mut following = self.following.borrow_mut();
        let attempt = following.entry(partition).or_default();
        *attempt += 1;
        self.partial.borrow_mut().remove(&partition);
        self.board.clear_upstream(partition);
        *attempt
    }

    /// Connects, and asks for what comes behind what is here.
    pub(super) async fn open_stream(
        &self,
        partition: &Partition<H::Env>,
        upstream: &Upstream,
        wish: Wish,
        ordered: Ordered,
    ) -> Result<Stream<H::Link>, Trouble> {
        let link = self.host.dial(upstream.address.clone(), upstream.partition).await.map_err(Trouble::Broken)?;
        let opened = self.introduce(partition, upstream, &link, (wish, ordered)).await;
        if opened.is_err() {
            link.close();
        }
        opened
    }

    async fn introduce(
        &self,
        partition: &Partition<H::Env>,
        upstream: &Upstream,
        link: &Rc<H::Link>,
        (wish, ordered): (Wish, Ordered),
    ) -> Result<Stream<H::Link>, Trouble> {
        let mut deadline = self.host.now() + ANSWER;
        let standing = partition.standing();
        let last = standing.last;
        let hello = Hello {
            version: PROTOCOL,
            node: self.host.node(),
            own: partition.id(),
            partition: upstream.partition,
            last,
            adopted: standing.adopted,
            epochs: standing.epochs,
            address: self.host.address(),
            dialed: upstream.address.clone(),
            life: self.host.life(),
            ordered,
            wish,
            resume: self.partial_copy(partition, wish),
            sum: Some(partition.newest_on_disk()).filter(|newest| newest.version == last).and_then(|newest| newest.sum),
        };
        let (mut follower, hello) = Follower::open(hello, self.host.now());
        link.say(&hello);
        loop {
            if let Some(frame) = link.next().map_err(Trouble::Broken)? {
                let step = follower.take(frame, self.host.now()).map_err(|v| Trouble::Broken(v.0))?;
                if let Some(node) = follower.leader() {
                    self.recognise(partition, node, link).await?;
                    if ordered != Ordered::ByForce {
                        self.compare_with_known(partition, follower.had()).await?;
                    }
                }
                return match step {
                    Step::Adopt(adopted, epochs) => {
                        Ok(Stream { link: link.clone(), follower, copy: None, last, adopted, epochs })
                    }
                    Step::Copy(copy) if wish != Wish::Log => {
                        let (adopted, epochs) = (copy.head().adopted, copy.head().epochs);
                        Ok(Stream { link: link.clone(), follower, copy: Some(copy), last, adopted, epochs })
                    }
                    Step::Nothing => {
                        // It looks for where a copy broke off.
                        deadline = self.host.now() + ANSWER;
                        continue;
                    }
                    Step::Refused(reason, text) => Err(Trouble::Refused(reason, text)),
                    Step::Parted(welcome) => Err(Trouble::Parted(Box::new(welcome))),
                    _ => Err(Trouble::Broken("the leader did not answer the hello".to_string())),
                };
            }
            if let Some(why) = link.gone() {
                return Err(Trouble::Broken(format!("{}: {why}", upstream.address)));
            }
            if self.host.now() > deadline {
                return Err(Trouble::Broken(format!("{} did not answer in time", upstream.address)));
            }
            wait_for(partition.env(), &**link).await;
        }
    }

    /// How far a copy has come that broke off.
    fn partial_copy(&self, partition: &Partition<H::Env>, wish: Wish) -> Option<(Version, Key)> {
        let partial = self.partial.borrow();
        let copy = partial.get(&partition.id()).filter(|_| wish != Wish::Log)?;
        Some((copy.head.version, copy.last()?.clone()))
    }

    fn is_current(&self, partition: &Partition<H::Env>, upstream: &Upstream, attempt: u64) -> bool {
        let newest = self.following.borrow().get(&partition.id()).copied();
        !self.host.stopping()
            && !partition.is_closed()
            && newest == Some(attempt)
            && partition.role() == Role::Follower(upstream.clone())
    }

    /// Applies a stream until something is wrong with it, and says what; or until `last` is here.
    pub(super) async fn apply(
        &self,
        partition: &Partition<H::Env>,
        upstream: &Upstream,
        stream: Stream<H::Link>,
        is_current: &impl Fn() -> bool,
        last: Option<Version>,
    ) -> Result<(), Trouble> {
        let Stream { link, mut follower, adopted, epochs, .. } = stream;
        if let Err(error) = partition.adopt_history(upstream, adopted, epochs).await {
            link.close();
            return Err(error.into());
        }
        partition.allow_as_follower(follower.shown(), follower.shows_all());
        let beats = Heartbeat::start(&link, partition);
        let applied = self.apply_frames(partition, upstream, &link, &mut follower, is_current, last).await;
        drop(beats);
        link.close();
        applied
    }

    async fn apply_frames(
        &self,
        partition: &Partition<H::Env>,
        upstream: &Upstream,
        link: &Rc<H::Link>,
        follower: &mut Follower,
        is_current: &impl Fn() -> bool,
        wanted: Option<Version>,
    ) -> Result<(), Trouble> {
        let number = partition.id();
        let sabotage = partition.env().sabotage();
        let mut incoming: Option<Incoming<H::Env>> = None;
        let (mut skipped, mut unbroken) = (false, 0);
        let leader = (follower.leader().unwrap_or(0), upstream.partition);
        // A member that leads has what it shows, and must never have less again.
        let note = |follower: &Follower| {
            if follower.leads() && self.is_listed(partition, leader) {
                self.known.note(number, leader, follower.epoch(), follower.shown());
            }
        };
        note(follower);
        loop {
            let now = self.host.now();
            if !is_current() {
                return Err(Trouble::Over);
            }
            let flushed = partition.flushed();
            let held = if sabotage == Some(Sabotage::AckBeforeDisk) { partition.prepared() } else { flushed };
            // Once this node has agreed to a higher epoch it confirms nothing of this one.
            let still = partition.adopted() == follower.epoch() || sabotage == Some(Sabotage::OldLeaderFollowed);
            if !still {
                return Err(Trouble::Engine(Error::Fenced { adopted: partition.adopted() }));
            }
            if let Some(ack) = follower.durable(held) {
                link.say(&ack);
            }
            if partition.is_learner() && follower.has_caught_up(flushed) {
                self.order(partition, &Event::CatchesUp).await?;
            }
            if wanted.is_some_and(|wanted| flushed >= wanted) {
                return Ok(());
            }
            let lag = follower.lag(flushed);
            self.board.set_upstream(number, Following::Streaming(lag));
            let Some(frame) = next_frame(&**link, follower, now)? else {
                // Told as soon as it is durable, if anything is on its way there.
                let next = if partition.prepared() > flushed { flushed + 1 } else { u64::MAX };
                first_of(wait_for(partition.env(), &**link), partition.wait_flushed(next)).await;
                unbroken = 0;
                continue;
            };
            match follower.take(frame, now).map_err(|violation| Trouble::Broken(violation.0))? {
                Step::Nothing => {}
                Step::Show(version) => {
                    note(follower);
                    partition.allow_as_follower(version, follower.shows_all());
                }
                Step::Refused(reason, text) => return Err(Trouble::Refused(reason, text)),
                Step::Parted(_) => return Err(Trouble::Broken("the leader's log has changed".to_string())),
                Step::Copy(_) | Step::Keys(_) | Step::CopyEnd(_) => {
                    return Err(Trouble::Broken("a copy came in a stream".to_string()));
                }
                Step::Adopt(adopted, epochs) => {
                    partition.adopt_history(upstream, adopted, epochs).await?;
                    note(follower);
                    partition.allow_as_follower(follower.shown(), follower.shows_all());
                }
                Step::Batch(bytes) => {
                    if unbroken >= PIECE {
                        partition.env().give_way().await;
                        unbroken = 0;
                    }
                    unbroken += bytes.len();
                    if incoming.is_some() {
                        return Err(Trouble::Broken("a batch came where a large value was due".to_string()));
                    }
                    let batch = partition.incoming(upstream, follower.epoch(), bytes)?;
                    skipped = batch.is_none();
                    match batch {
                        Some(batch) if batch.wanted() == 0 => {
                            batch.finish().await?;
                        }
                        batch => incoming = batch,
                    }
                }
                Step::Value(bytes) => match incoming.take() {
                    Some(mut batch) => {
                        batch.value(bytes.into()).await?;
                        if batch.wanted() == 0 {
                            batch.finish().await?;
                        } else {
                            incoming = Some(batch);
                        }
                    }
                    None if skipped => {}
                    None => return Err(Trouble::Broken("a large value came that no batch asked for".to_string())),
                },
            }
        }
    }

    /// This log has what the leader's has not: it is cut where that may be, and what is wrong otherwise.
    pub(super) async fn part(
        &self,
        partition: &Partition<H::Env>,
        welcome: &Welcome,
        word: Word,
    ) -> Result<(), Trouble> {
        let ahead_is_cut = partition.env().sabotage() == Some(Sabotage::AheadIsCut);
        let word = if ahead_is_cut { Word::Person } else { word };
        let (from, to) = (partition.adopted(), welcome.standing.adopted);
        match rejoin(&partition.standing(), &welcome.standing, word) {
            Rejoin::Cut(at) => {
                // Nobody takes what is cut for lost, now that this node has agreed to the epoch of who had it cut.
                let agreed = match word {
                    Word::Log => Agreed::Moves { from, to },
                    Word::Members => Agreed::Stays,
                    Word::Person => Agreed::ByForce(to),
                };
                self.cut(partition.id(), at, agreed).await?;
                Ok(())
            }
            Rejoin::Force { at, shown } => Err(needs_force(at, shown)),
            Rejoin::Wait(why) => Err(Trouble::Broken(why)),
        }
    }
}

/// What the leader says next, if anything is here; and whether it is there at all.
pub(super) fn next_frame(
    link: &impl Speaks<Frame>,
    follower: &mut Follower,
    now: Duration,
) -> Result<Option<Frame>, Trouble> {
    if link.heard() {
        follower.hears(now);
    }
    let frame = link.next().map_err(Trouble::Broken)?;
    if frame.is_none() && link.gone().is_some() {
        return Err(Trouble::Broken("the connection to the leader is gone".to_string()));
    }
    if frame.is_none() && follower.is_gone(now) {
        return Err(Trouble::Broken("the leader is silent".to_string()));
    }
    Ok(frame)
}

fn needs_force(at: Version, shown: u64) -> Trouble {
    let text = format!(
        "the histories part behind version {at}: this node has shown {shown} versions that the other does not have; \
         `replicaof HOST:PORT PARTITION force` sets them aside"
    );
    Trouble::Refused(Reason::Diverged, text)
}

pub(super) fn fenced(own: Epoch, theirs: Epoch) -> Trouble {
    let text = format!(
        "this node has agreed to epoch {}, the other one only to {}; `replicaof HOST:PORT PARTITION force` follows it \
         all the same",
        own.number, theirs.number
    );
    Trouble::Refused(Reason::Fenced, text)
}

/// Follows until the role changes.
async fn keep_following<H: Host>(
    node: Rc<Replication<H>>,
    env: H::Env,
    number: u8,
    upstream: Upstream,
    attempt: u64,
    mut opened: Option<Stream<H::Link>>,
    mut replace: bool,
) {
    let (mut pause, mut told, mut failures) = (PAUSE, None, 0);
    loop {
        let Some(partition) = node.host.partition(number) else {
            // It is being opened anew: for a cut, or for a copy of an attempt before this one.
            if node.host.stopping() || node.following.borrow().get(&number) != Some(&attempt) {
                return;
            }
            env.sleep(PAUSE).await;
            continue;
        };
        if !node.is_current(&partition, &upstream, attempt) {
            opened.iter().for_each(|stream| stream.link.close());
            return;
        }
        let stream = match opened.take() {
            Some(stream) => Ok(stream),
            None => {
                let wish = if replace { Wish::Copy } else { Wish::CopyIfNeeded };
                node.open_stream(&partition, &upstream, wish, Ordered::No).await
            }
        };
        let mut trouble = match stream {
            Ok(Stream { copy: Some(copying), link, follower, last, adopted, epochs }) => {
                let stream = Stream { copy: None, link, follower, last, adopted, epochs };
                let current = || node.is_current(&partition, &upstream, attempt);
                match node.take_copy(&partition, &upstream, stream, *copying, &current, replace).await {
                    Ok(()) => {
                        node.forked.borrow_mut().remove(&number);
                        (replace, pause, told, failures) = (false, PAUSE, None, 0);
                        continue;
                    }
                    Err(trouble) => trouble,
                }
            }
            Ok(stream) => {
                let began = node.host.now();
                let first = partition.prepared();
                let text = format!("follows {}/{} from version {} on", upstream.address, upstream.partition, first + 1);
                node.log(number, Level::Info, text);
                let current = || node.is_current(&partition, &upstream, attempt);
                let trouble = node.apply(&partition, &upstream, stream, &current, None).await.err();
                if partition.prepared() > first || node.host.now() > began + PAUSE_MAX {
                    // It was of use.
                    told = None;
                    (pause, failures) = (PAUSE, 0);
                }
                trouble.unwrap_or(Trouble::Over)
            }
            Err(trouble) => trouble,
        };
        if matches!(trouble, Trouble::Engine(Error::Diverged(_)) | Trouble::Refused(Reason::Diverged, _)) {
            node.forked.borrow_mut().insert(number);
        }
        if let Trouble::Parted(welcome) = &trouble {
            if !node.is_current(&partition, &upstream, attempt) {
                return;
            }
            match node.part(&partition, welcome, Word::Log).await {
                Ok(()) => continue,
                Err(other) => trouble = other,
            }
        }
        // The partition was closed for a copy that did not take its place in the end, and is open anew.
        let reopened = partition.is_closed() && node.following.borrow().get(&number) == Some(&attempt);
        if !reopened && (trouble == Trouble::Over || !node.is_current(&partition, &upstream, attempt)) {
            if node.following.borrow().get(&number) == Some(&attempt) {
                node.board.clear_upstream(number);
            }
            return;
        }
        let text = trouble.text();
        if told.as_ref() != Some(&text) {
            node.log(number, Level::Warn, format_args!("does not follow now: {text}"));
            told = Some(text.clone());
        }
        node.board.set_upstream(number, Following::Broken(text));
        failures += 1;
        if failures >= LOST && node.look_for_leader(&partition).await {
            return;
        }
        drop(partition);
        first_of(env.sleep(pause), node.found.notified()).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
