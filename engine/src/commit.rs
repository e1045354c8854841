//! Group commit: reserve, prepare, persist, publish, in this order and nowhere else.
//!
//! - *Reserve*: log space is set aside and large values are written and flushed. Here, and only here, a lack of space is
//!   a typed refusal. Where nothing needs to be waited for, this and the next step happen within [`submit`].
//! - *Prepare*: the conflict check, in memory. The new versions enter the overlay as pending.
//! - *Persist*: everything prepared becomes one batch, one append, one flush. What arrives meanwhile is the next batch. A small
//!   one waits until a flush that other logs of the core share has ended, or the next (`may_gather`).
//! - *Publish*: the versions become visible, and whoever waits for them is woken (`crate::publish`).
//!
//! After prepare a transaction is published, or the process ends, or the node stops to lead (`crate::reign`).

pub(crate) mod large;
mod plan;

use crate::disk::BLOCK;
use crate::env::{Env, Level, Sabotage};
use crate::error::Error;
use crate::manifest::{Generation, LastBody, Manifest, Role, begin_epoch};
use crate::memory::overlay::{Prior, Seen};
use crate::memory::warm::TOGETHER;
use crate::partition::{BatchEnd, Core, Partition, warm};
use crate::publish::FlushDb;
use crate::stats::add;
use crate::sync::first_of;
use crate::tail::Tailed;
use crate::txn::writes::Writes;
use crate::txn::{Transaction, Write, check_alone, conflict};
use crate::types::{CommitPosition, Entry, Key, LogPosition, Value, ValuePointer, Version};
use crate::vlog::Stream;
use crate::wal::body::{self, Builder};
use crate::wal::{self, Append};
use plan::{Plan, plan};
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::{Poll, Waker};

/// A batch is closed at about this many bytes.
const BATCH_BYTES: u64 = 4 << 20;
/// Memory of a batch that is kept for the next one, bytes at most.
const ROOM_MAX: usize = 1 << 20;

/// Prepared transactions on their way into the log together.
pub(crate) struct Batch {
    content: Content,
    last: Version,
    pointers: Vec<(u32, u64)>,
    cost: u64,
}

impl Batch {
    fn first_version(&self) -> Version {
        match &self.content {
            Content::Growing(body) => body.first_version(),
            Content::Whole { first_version, .. } => *first_version,
        }
    }
}

/// The body of a batch that is to be written.
pub(crate) enum Content {
    /// It grows until it is written.
    Growing(Builder),
    /// It came from the leader.
    Whole {
        /// The body.
        bytes: Rc<Vec<u8>>,
        /// Version of its first transaction.
        first_version: Version,
    },
}

/// How far a submitted transaction is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It waits for space or for its large values.
    Reserving,
    /// It has this version and goes into the log, and not all of it is in memory yet: who commits goes on when it is prepared.
    Entering(Version),
    /// It has this version, and will be published; tell nobody before [`Partition::wait_published`].
    Prepared(Version),
    /// It left nothing behind.
    Refused(Error),
}

/// Follows a submitted transaction.
#[derive(Clone)]
pub struct Ticket(State);

#[derive(Clone)]
enum State {
    Settled(Progress),
    Waiting(Rc<RefCell<(Progress, Vec<Waker>)>>),
}

impl Ticket {
    fn settled(progress: Progress) -> Ticket {
        Ticket(State::Settled(progress))
    }

    fn set(&self, progress: Progress) {
        let State::Waiting(shared) = &self.0 else { unreachable!("only a ticket that waits is settled") };
        let wakers = {
            let mut state = shared.borrow_mut();
            state.0 = progress;
            std::mem::take(&mut state.1)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        match &self.0 {
            State::Settled(progress) => progress.clone(),
            State::Waiting(shared) => shared.borrow().0.clone(),
        }
    }

    /// Ends when it is prepared, with its version, or refused.
    pub async fn prepared(&self) -> Result<Version, Error> {
        poll_fn(|cx| match (self.progress(), &self.0) {
            (Progress::Prepared(version), _) => Poll::Ready(Ok(version)),
            (Progress::Refused(error), _) => Poll::Ready(Err(error)),
            (Progress::Reserving | Progress::Entering(_), State::Waiting(shared)) => {
                shared.borrow_mut().1.push(cx.waker().clone());
                Poll::Pending
            }
            (Progress::Reserving | Progress::Entering(_), State::Settled(_)) => {
                unreachable!("a settled ticket is prepared or refused")
            }
        })
        .await
    }
}

/// Whether what is prepared now finds its place in the log at once; it is reserved then.
fn reserve_at_once<E: Env>(core: &Core<E>, cost: u64) -> bool {
    !core.is_paused() && core.may_write() && core.wal().has_begun() && core.wal().try_reserve(cost)
}

pub(crate) fn write_alone<E: Env>(core: &Rc<Core<E>>, key: &[u8], write: &Write) -> Option<Result<Version, Error>> {
    let writable = core.manifest.get().writable();
    if core.closing.get() || !writable || core.overlay.borrow().bytes() >= core.overlay_budget.get() {
        return None;
    }
    let entry = match write {
        Write::Set(value) if value.len() >= core.settings.value_separation => return None,
        Write::Set(value) => Entry::Value(value.clone()),
        Write::Delete => Entry::Tombstone,
    };
    if let Err(error) = check_alone(&core.settings, key, write) {
        return Some(Err(error));
    }
    let cost = wal::cost(body::change_len(key, &entry), 0);
    if !reserve_at_once(core, cost) {
        return None;
    }
    let version = core.prepared.get() + 1;
    core.prepared.set(version);
    enqueue(core, version, &[], cost, |body| body.add([(key, &entry)].into_iter()));
    enter(core, &key.into(), version, entry);
    Some(Ok(version))
}

pub(crate) fn submit<E: Env>(core: &Rc<Core<E>>, mut transaction: Transaction) -> Ticket {
    if transaction.forgotten {
        let refused = Partition(core.clone()).check(&transaction).err();
        return Ticket::settled(Progress::Refused(refused.unwrap_or(Error::SnapshotTooOld)));
    }
    if transaction.late && transaction.reads.is_empty() {
        // It sees nothing, so no checkpoint need wait for it, and it cannot become too old.
        transaction.snapshot.detach();
    }
    if transaction.writes.is_empty() {
        return Ticket::settled(Progress::Prepared(transaction.snapshot.version()));
    }
    if let Err(error) = admit(core, &transaction) {
        large::let_go(core, &mut transaction);
        return Ticket::settled(Progress::Refused(error));
    }
    let room = has_room(core, &transaction);
    let writes = std::mem::take(&mut transaction.writes);
    let work = if writes.len() + transaction.reads.len() > core.settings.keys_at_once {
        Work::InPieces(writes)
    } else {
        let plan = plan(writes, core.settings.value_separation);
        if plan.large.is_empty() && room && reserve_at_once(core, plan.cost) {
            return Ticket::settled(match prepare(core, &transaction, plan, &[]) {
                Ok(version) => Progress::Prepared(version),
                Err(error) => Progress::Refused(error),
            });
        }
        Work::AtOnce(plan)
    };
    let ticket = Ticket(State::Waiting(Rc::new(RefCell::new((Progress::Reserving, Vec::new())))));
    let (core, answer) = (core.clone(), ticket.clone());
    core.env.clone().spawn(async move {
        let outcome = match work {
            Work::AtOnce(mut plan) => reserve_and_prepare(&core, &transaction, &mut plan, None).await,
            Work::InPieces(writes) => large::commit(&core, transaction, writes, &answer).await,
        };
        answer.set(match outcome {
            Ok(version) => Progress::Prepared(version),
            Err(error) => Progress::Refused(error),
        });
    });
    ticket
}

/// How a transaction is worked on.
enum Work {
    AtOnce(Plan),
    /// It has so many keys that the core would be deaf meanwhile.
    InPieces(Writes),
}

fn admit<E: Env>(core: &Rc<Core<E>>, transaction: &Transaction) -> Result<(), Error> {
    Partition(core.clone()).check(transaction)?;
    if core.closing.get() {
        return Err(Error::ShuttingDown);
    }
    let manifest = core.manifest.get();
    if manifest.writable() { Ok(()) } else { Err(manifest.refusal()) }
}

async fn reserve_and_prepare<E: Env>(
    core: &Rc<Core<E>>,
    transaction: &Transaction,
    plan: &mut Plan,
    in_pieces: Option<&Ticket>,
) -> Result<Version, Error> {
    core.wait_for_quorum().await?;
    // What it waits for below may outlast the leadership, and the next one's log is not this transaction's.
    let deposed = core.deposed.get();
    let still_leads = |core: &Core<E>| {
        if core.deposed.get() == deposed && core.leads() { Ok(()) } else { Err(Error::LeadershipChanged) }
    };
    begin_writing(core).await?;
    let turn = loop {
        wait_until(core, || has_room(core, transaction) || has_room_to_delete(core, plan)).await?;
        core.wait_for_flush_as_leader().await?;
        let turn = core.slow_gate.enter().await;
        // Who went before may have taken the room.
        if (has_room(core, transaction) || has_room_to_delete(core, plan)) && !core.is_flushing() {
            break turn;
        }
        drop(turn);
    };
    admit(core, transaction)?;
    still_leads(core)?;
    if !core.wal().try_reserve(plan.cost) {
        add(&core.stats.waits_for_log_space, 1);
        let purpose = if plan.deletes_only() { wal::Purpose::Delete } else { wal::Purpose::Write };
        core.wal().reserve(plan.cost, purpose).await?;
    }
    // From here on the reservation must be given back if nothing is prepared.
    let pointers = match write_large(core, &plan.large).await {
        Ok(pointers) => pointers,
        Err(error) => {
            core.wal().release(plan.cost);
            return Err(error);
        }
    };
    let may_prepare = || admit(core, transaction).and_then(|()| still_leads(core));
    if let Some(ticket) = in_pieces {
        let entering = |version| ticket.set(Progress::Entering(version));
        return large::prepare(core, transaction, plan, &pointers, turn, (may_prepare, entering)).await;
    }
    drop(turn);
    if let Err(error) = may_prepare() {
        core.wal().release(plan.cost);
        return Err(error);
    }
    prepare(core, transaction, std::mem::take(plan), &pointers)
}

async fn write_large<E: Env>(core: &Rc<Core<E>>, large: &[(Key, Value)]) -> Result<Vec<ValuePointer>, Error> {
    if large.is_empty() {
        return Ok(Vec::new());
    }
    let written = async {
        let pointers = core.values.append(&core.manifest, Stream::Commit, large).await?;
        if core.env.sabotage() != Some(Sabotage::LargeValueNotFlushed) {
            core.values.flush(&pointers).await?;
        }
        Ok(pointers)
    };
    match written.await {
        Err(Error::Disk(error)) => match core.env.halt(format!("a value could not be written: {error}")).await {},
        other => other,
    }
}

/// Whether the overlay takes a transaction now. One that the checkpoint waits for always has room: if it waited for that
/// checkpoint, neither would ever go on. How many those are is bounded by the snapshots that are open.
fn has_room<E: Env>(core: &Core<E>, transaction: &Transaction) -> bool {
    let overlay = core.overlay.borrow();
    overlay.bytes() < core.overlay_budget.get()
        || overlay.frozen_last().is_some_and(|last| transaction.snapshot.holds_up(last))
}

/// Whether the plan is of deletes alone, and the overlay takes deletes although it is full.
fn has_room_to_delete<E: Env>(core: &Core<E>, plan: &Plan) -> bool {
    plan.deletes_only() && core.takes_deletes(core.overlay.borrow().bytes())
}

/// Has checkpoints run until the overlay `has_room`: commits wait, they are not refused, while a checkpoint can still empty it.
pub(crate) async fn wait_until<E: Env>(core: &Rc<Core<E>>, has_room: impl Fn() -> bool) -> Result<(), Error> {
    if !has_room() {
        add(&core.stats.waits_for_overlay, 1);
    }
    while !has_room() {
        if core.closing.get() {
            return Err(Error::ShuttingDown);
        }
        if let Some(error) = core.checkpoint_refused.borrow().clone() {
            return Err(error);
        }
        let (seen, told) = (core.checkpoints.get(), core.room.get());
        core.checkpoint_wanted.set(true);
        core.housekeeping.notify();
        first_of(core.checkpoints.reached(seen + 1), core.room.reached(told + 1)).await;
    }
    Ok(())
}

/// Before the first append of an opening, its generation and epoch are recorded. Where followers are asked for, the epoch
/// needs their promises: [`Partition::lead`] begins it.
pub(crate) async fn begin_writing<E: Env>(core: &Rc<Core<E>>) -> Result<(), Error> {
    if core.wal().has_begun() {
        return Ok(());
    }
    let _turn = core.begin_gate.enter().await;
    if core.wal().has_begun() {
        return Ok(());
    }
    if !core.may_write() {
        return Err(core.no_quorum());
    }
    let fresh = Generation { secret: core.env.random(), start: core.wal().end() };
    let epoch_id = core.env.random();
    let first_version = core.prepared.get() + 1;
    let oldest = core.wal().oldest().map_or(fresh.start, |s| LogPosition::new(s.number, 0));
    let sabotaged = core.env.sabotage() == Some(Sabotage::GenerationNotAdvanced);
    let manifest = core.manifest.get().clone();
    core.wal().record_active(&fresh, &manifest).await?;
    // A full disk must not refuse this: deletes and a FlushDB begin with it.
    let secret = core
        .update_manifest_freeing(|m| {
            if !m.writable() {
                // The role was changed meanwhile.
                return Err(m.refusal());
            }
            if sabotaged && !m.generations.is_empty() {
                forget_generations(&mut m.generations, oldest);
            } else {
                begin_generation(m, fresh, oldest);
            }
            begin_epoch(m, epoch_id, first_version);
            // A list that is not in the log was lost, and must not come into force with what is written now.
            m.members.retain(|record| record.version < first_version);
            Ok(m.generations.last().map_or(fresh.secret, |g| g.secret))
        })
        .await?;
    core.wal().begin_generation(secret?);
    core.manifest.keep_spare().await;
    Ok(())
}

/// Drops the generations that no segment from `oldest` on needs.
fn forget_generations(generations: &mut Vec<Generation>, oldest: LogPosition) {
    let needed = generations.iter().rposition(|g| g.start <= oldest).unwrap_or(0);
    generations.drain(..needed);
}

/// Adds a generation; one that wrote nothing is replaced.
pub(crate) fn begin_generation(manifest: &mut Manifest, fresh: Generation, oldest: LogPosition) {
    forget_generations(&mut manifest.generations, oldest);
    manifest.generations.retain(|g| g.start < fresh.start);
    manifest.generations.push(fresh);
    manifest.log_end = true;
}

fn prepare<E: Env>(
    core: &Rc<Core<E>>,
    transaction: &Transaction,
    mut plan: Plan,
    pointers: &[ValuePointer],
) -> Result<Version, Error> {
    let sabotage = core.env.sabotage();
    let pending_hidden = (sabotage == Some(Sabotage::PendingNotChecked)).then(|| core.published.get());
    let skip_reads = sabotage == Some(Sabotage::ReadCheckSkipped);
    let written = plan.entries.iter().map(|(key, _)| key);
    let clash = conflict(&core.overlay.borrow(), transaction, written, skip_reads, pending_hidden);
    if let Some(error) = clash {
        core.wal().release(plan.cost);
        return Err(told_conflict(core, error));
    }
    let mut places = pointers.iter();
    for (_, entry) in &mut plan.entries {
        if let Entry::Pointer(pointer) = entry {
            match places.next() {
                Some(place) => *pointer = *place,
                None => unreachable!("every large value was written before its prepare"),
            }
        }
    }
    let version = core.prepared.get() + 1;
    core.prepared.set(version);
    enqueue(core, version, pointers, plan.cost, |body| {
        body.add(plan.entries.iter().map(|(key, entry)| (&**key, entry)))
    });
    for (key, entry) in plan.entries {
        enter(core, &key, version, entry);
    }
    Ok(version)
}

/// The error that answers a conflict.
fn told_conflict<E: Env>(core: &Core<E>, error: Error) -> Error {
    let newest = if let Error::Conflict { newest, .. } = error { newest } else { 0 };
    if newest > core.published.get() && newest <= core.expired.get() {
        // Whether that version stays is not known.
        return core.no_quorum();
    }
    add(&core.stats.conflicts, 1);
    error
}

/// A version enters the overlay. The cache of settled keys never has a key that is there; what it knew of one that enters
/// is what lies below its versions.
fn enter<E: Env>(core: &Core<E>, key: &Key, version: Version, entry: Entry) {
    let hashed = core.hasher.of(key);
    let published = core.published.get();
    let oldest_seen = core.snapshots.oldest().map_or(published, |oldest| oldest.min(published));
    let prior = || Prior::of(core.hot.borrow_mut().remove(hashed).as_ref());
    let is_open_within = |from: Version, to: Version| core.snapshots.is_open_within(from, to);
    let seen = Seen { oldest: oldest_seen, published, is_open_within: &is_open_within };
    core.overlay.borrow_mut().insert(key, hashed.hash, version, entry, &seen, prior);
}

/// Many versions enter the overlay, in this order.
pub(crate) fn enter_all<E: Env>(core: &Rc<Core<E>>, changes: Vec<(Version, Key, Entry)>) {
    let partition = Partition(core.clone());
    let mut rest = changes.into_iter();
    while !rest.as_slice().is_empty() {
        warm(rest.as_slice().iter().map(|(_, key, _)| (&partition, &**key)));
        rest.by_ref().take(TOGETHER).for_each(|(version, key, entry)| enter(core, &key, version, entry));
    }
}

/// Adds a transaction to the batch that is written next: up to a size, and never across the beginning of an epoch, nor across the
/// end of a checkpoint that is under way: a copy of what it settles ends with a whole batch, where a log can be cut.
pub(crate) fn enqueue<E: Env>(
    core: &Core<E>,
    version: Version,
    pointers: &[ValuePointer],
    cost: u64,
    add_to: impl FnOnce(&mut Builder),
) {
    let epoch = core.manifest.get().epoch_of(version);
    {
        let mut queue = core.queue.borrow_mut();
        let grows = |batch: &Batch| match &batch.content {
            Content::Growing(body) => {
                batch.cost + cost <= BATCH_BYTES && body.epoch() == epoch && !core.batch_closed.get()
            }
            Content::Whole { .. } => false,
        };
        if !queue.back().is_some_and(grows) {
            let room = std::mem::take(&mut *core.batch_room.borrow_mut());
            let content = Content::Growing(Builder::new(epoch, version, room));
            queue.push_back(Batch { content, last: version, pointers: Vec::new(), cost: 0 });
            core.batch_closed.set(false);
        }
        let Some(batch) = queue.back_mut() else { unreachable!("a batch was just made sure of") };
        if let Content::Growing(body) = &mut batch.content {
            add_to(body);
        }
        batch.last = version;
        batch.pointers.extend(pointers.iter().map(|p| (p.file, p.offset)));
        batch.cost += cost;
    }
    add(&core.stats.commits, 1);
    core.queue_changed.notify();
}

/// Adds a whole batch.
pub(crate) fn push_batch<E: Env>(
    core: &Core<E>,
    content: Content,
    last: Version,
    pointers: Vec<(u32, u64)>,
    cost: u64,
) {
    if let Content::Whole { bytes, .. } = &content {
        core.newest_body.set(body::sum(bytes));
    }
    core.queue.borrow_mut().push_back(Batch { content, last, pointers, cost });
    core.queue_changed.notify();
}

/// The task that owns the log's tail: one flush in flight, no timer but the idle voucher's.
pub(crate) async fn run_log<E: Env>(core: Rc<Core<E>>) {
    loop {
        if !core.queue.borrow().is_empty() {
            if may_gather(&core) {
                core.wal().turn().await;
            }
            persist(&core).await;
            continue;
        }
        let vouch = core.wal().wants_voucher();
        if core.closing.get() && core.flushed.get() == core.prepared.get() {
            if vouch {
                append_voucher(&core).await;
            }
            break;
        }
        if vouch {
            let mut idle = false;
            let passed = async {
                core.env.sleep(core.settings.idle_vouch).await;
                idle = true;
            };
            // It may have been told of what was just written: that is no idle time.
            first_of(core.queue_changed.notified(), passed).await;
            if idle && core.queue.borrow().is_empty() && !core.closing.get() {
                append_voucher(&core).await;
            }
        } else {
            core.queue_changed.notified().await;
        }
    }
    core.log_ended.raise(core.log_ended.get() + 1);
}

/// Whether the next batch may wait for its turn among the logs of this core: it grows until it is closed, and with more in its
/// one block it would cost the same. Where a follower's word is waited for it goes to the followers at once.
fn may_gather<E: Env>(core: &Core<E>) -> bool {
    let queue = core.queue.borrow();
    let small = |batch: &Batch| matches!(&batch.content, Content::Growing(body) if body.length() < BLOCK);
    core.gate.get() == Version::MAX && queue.len() == 1 && queue.front().is_some_and(small)
}

/// Takes what is written with one flush. A leader's queue has one batch, which grew while the one before was written; a
/// follower's has as many as came meanwhile.
fn take_round<E: Env>(core: &Core<E>) -> Vec<Batch> {
    let mut queue = core.queue.borrow_mut();
    let (mut round, mut cost) = (Vec::with_capacity(1), 0);
    while let Some(next) = queue.front()
        && (round.is_empty() || cost + next.cost <= BATCH_BYTES)
    {
        cost += next.cost;
        round.extend(queue.pop_front());
    }
    round
}

async fn persist<E: Env>(core: &Rc<Core<E>>) {
    let published = core.published_end.get();
    // Followers may get it while this node's own disk still works, and hold it first, but nobody is told before both do.
    let mut tailed = false;
    let (mut appends, mut written) = (Vec::with_capacity(1), Vec::with_capacity(1));
    for Batch { content, last, pointers, cost } in take_round(core) {
        let (first_version, bytes) = match content {
            Content::Growing(body) => {
                let first = body.first_version();
                let (now, before) = (core.env.wall_ms(), core.newest_body.get());
                let bytes = body.finish_in_pieces(now, before, async || core.env.give_way().await).await;
                core.newest_body.set(body::sum(&bytes));
                (first, Rc::new(bytes))
            }
            Content::Whole { bytes, first_version } => (first_version, bytes),
        };
        // Asked when it is there: a reader may have come or gone while it was finished.
        tailed = core.tail.borrow().is_wanted();
        if tailed {
            core.tail.borrow_mut().push(Tailed::new(first_version, last, bytes.clone(), pointers.clone()));
        }
        appends.push(Append { body: bytes.clone(), pointers, first_version, cost, published });
        written.push((bytes, last));
    }
    let Some(last) = written.last().map(|(_, last)| *last) else { return };
    core.appending.raise(last);
    if tailed && core.leads() && core.gate.get() != Version::MAX {
        // Followers are waited for longer than this node's own disk: it is on its way to them first, if they keep up.
        core.env.give_way().await;
    }
    let ends = match core.wal().append(appends).await {
        Ok(ends) => ends,
        Err(error) => match core.env.halt(format!("the log of partition {} failed: {error}", core.id)).await {},
    };
    for ((bytes, last), (end, chain)) in written.into_iter().zip(ends) {
        core.batch_ends.borrow_mut().push_back(BatchEnd { last, end, chain });
        core.flushed_body.set(LastBody { version: last, sum: body::sum(&bytes) });
        add(&core.stats.batches, 1);
        add(&core.stats.log_bytes, bytes.len() as u64);
        if let Ok(bytes) = Rc::try_unwrap(bytes)
            && bytes.capacity() <= ROOM_MAX
        {
            core.batch_room.replace(bytes);
        }
    }
    assert!(last <= core.prepared.get(), "only what was prepared is flushed");
    core.flushed.raise(last);
    core.publish();
    core.after_append();
}

/// An empty batch: it vouches for the one before, so that damage there is not taken for a tail.
async fn append_voucher<E: Env>(core: &Rc<Core<E>>) {
    let cost = wal::cost(0, 0);
    if !core.wal().try_reserve(cost)
        && let Err(error) = core.wal().reserve(cost, wal::Purpose::Delete).await
    {
        core.log(Level::Warn, format_args!("the idle log could not vouch for its last batch: {error}"));
        core.wal().refuse_voucher();
        return;
    }
    // Transactions that were prepared while it waited for space come behind it.
    let waiting = core.queue.borrow().front().map(Batch::first_version);
    let first = waiting.unwrap_or(core.prepared.get() + 1);
    let epoch = core.manifest.get().epoch_of(first);
    let bytes = Builder::new(epoch, first, Vec::new()).finish(core.env.wall_ms(), None);
    let published = core.published_end.get();
    let append = Append { body: Rc::new(bytes), pointers: Vec::new(), first_version: first, cost, published };
    // Something may be prepared while this is written; it becomes the next batch, behind this one.
    match core.wal().append(vec![append]).await {
        Ok(ends) => {
            core.wal().vouched();
            let last = first - 1;
            let end = |(end, chain)| BatchEnd { last, end, chain };
            core.batch_ends.borrow_mut().extend(ends.into_iter().map(end));
            add(&core.stats.idle_vouchers, 1);
        }
        Err(error) => match core.env.halt(format!("the log of partition {} failed: {error}", core.id)).await {},
    }
}

impl<E: Env> Partition<E> {
    /// Deletes every key: a log record that retires all runs. Open transactions end with a typed error.
    pub async fn flush_all(&self) -> Result<CommitPosition, Error> {
        let core = &self.0;
        if let Role::Follower(upstream) = self.role() {
            return Err(Error::Follower { leader: upstream.address });
        }
        if !self.writable() {
            if core.min_replicas() > 0 {
                return Err(Error::NotLeader);
            }
            // What is left is an empty leader.
            self.promote().await?;
        }
        core.wait_for_quorum().await?;
        begin_writing(core).await?;
        let check = |core: &Rc<Core<E>>| {
            let manifest = core.manifest.get();
            match (core.closing.get(), manifest.writable()) {
                (true, _) => Err(Error::ShuttingDown),
                // The role may have changed since it was looked at above.
                (false, false) => Err(manifest.refusal()),
                (false, true) if !core.may_write() => Err(core.no_quorum()),
                (false, true) => Ok(()),
            }
        };
        let cost = wal::cost(body::FLUSH_LEN, 0);
        let push = |core: &Core<E>, version| enqueue(core, version, &[], cost, Builder::add_flush);
        let version = flush_with(core, cost, check, core.abandoned.reached(1), push).await?;
        self.wait_outcome(version).await?;
        // It counts already; who closes does not wait for what it made superfluous.
        let _ = core.wait_for_flush().await;
        Ok(core.position_of(version))
    }
}

/// Deletes every key by a batch of its own, which `push` adds to the queue. It answers the version when that is prepared;
/// nothing else is prepared and nothing checkpointed until it is published and all runs are retired. Who waits for a
/// checkpoint to end waits no longer when `in_vain` ends.
pub(crate) async fn flush_with<E: Env>(
    core: &Rc<Core<E>>,
    cost: u64,
    check: impl Fn(&Rc<Core<E>>) -> Result<(), Error>,
    in_vain: impl Future<Output = ()>,
    push: impl FnOnce(&Core<E>, Version),
) -> Result<Version, Error> {
    let mut entered = None;
    first_of(async { entered = Some(core.checkpoint_gate.enter().await) }, in_vain).await;
    let Some(no_checkpoint) = entered else {
        check(core)?;
        return Err(Error::Upstream("a flush came twice".to_string()));
    };
    core.paused(async || {
        check(core)?;
        core.wal().reserve(cost, wal::Purpose::Order).await?;
        if let Err(error) = core.or_without_spares(async || core.manifest.reserve().await).await {
            core.wal().release(cost);
            return Err(error);
        }
        let reserved = async {
            // Behind it nothing older is pending.
            Partition(core.clone()).wait_outcome(core.prepared.get()).await?;
            check(core)
        };
        if let Err(error) = reserved.await {
            core.wal().release(cost);
            return Err(error);
        }
        let version = core.prepared.get() + 1;
        core.prepared.set(version);
        core.flush_db.set(FlushDb::Logged(version));
        *core.flush_pass.borrow_mut() = Some(no_checkpoint);
        push(core, version);
        Ok(version)
    })
    .await
}

/// Nothing is prepared as long as this lives: fast submissions see the flag. Its maker holds the `slow_gate`, which slow ones wait for.
struct Pause<'a, E: Env>(&'a Core<E>);

impl<E: Env> Pause<'_, E> {
    fn begin(core: &Core<E>) -> Pause<'_, E> {
        core.paused.set(true);
        Pause(core)
    }
}

impl<E: Env> Drop for Pause<'_, E> {
    fn drop(&mut self) {
        self.0.paused.set(false);
    }
}

impl<E: Env> Core<E> {
    /// Runs `work` while nothing is prepared: fast submissions see the flag, slow ones wait for the gate.
    pub(crate) async fn paused<T>(&self, work: impl AsyncFnOnce() -> T) -> T {
        let _turn = self.slow_gate.enter().await;
        let _pause = Pause::begin(self);
        work().await
    }

    /// Whether deletes have room although the overlay is full: the disk is, too, so that no checkpoint empties it, and an overlay of
    /// this size is not yet a quarter beyond its share.
    pub(crate) fn takes_deletes(&self, overlay_bytes: u64) -> bool {
        self.checkpoint_refused.borrow().as_ref().is_some_and(Error::is_refusal)
            && overlay_bytes / 5 < self.overlay_budget.get() / 4
    }

    /// Whether nothing may be prepared now.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused.get() || self.is_flushing()
    }
}
