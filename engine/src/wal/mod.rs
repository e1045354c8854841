//! The log: batches appended to preallocated, pre-written, recycled segments, one flush in flight.
//!
//! Positions form a chain, asserted where one moves: `checkpointed <= published <= durable <= written`. Space is reserved
//! before anything is prepared, so an append never finds the disk full: what is reserved fits either what is left of the
//! active segment or one spare segment, wherever its batches are cut (every transaction is counted as a batch of its own).
//!
//! After a write or flush failed the process ends: nobody can know what the disk holds, so nothing is retried. What the system
//! refused was not begun, and is tried again for a while with the same bytes ([`crate::insist`]).

pub mod body;
pub mod end;
pub mod envelope;
pub mod scan;
pub mod shared_flush;

use crate::buffer::{AlignedBuf, round_up};
use crate::disk::{BLOCK, Disk, DiskError, DiskErrorKind, File, IoClass, OpenMode};
use crate::env::{Env, Sabotage};
use crate::error::Error;
use crate::header::{self, FileKind};
use crate::insist::insist;
use crate::leftovers::Leftovers;
use crate::manifest::{Generation, Manifest, Segment, sync_names};
use crate::names;
use crate::sync::{Gate, Notify, Pass, both, first_of};
use crate::types::{LogPosition, PartitionId, Version};
use body::BODY_HEADER;
use end::{EndFile, EndRecord};
use envelope::{Envelope, POINTER_BYTES};
use shared_flush::SharedFlush;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// A longer write, bytes, is flushed by itself: it would keep the neighbours' waiting.
const SHARED_MAX: usize = 1 << 20;

type FileOf<E> = <<E as Env>::Disk as Disk>::File;

struct Active<E: Env> {
    number: u32,
    file: FileOf<E>,
    /// Who flushes it; by itself where there is nobody.
    shared: Option<Rc<SharedFlush<FileOf<E>>>>,
    end: u32,
    capacity: u32,
}

impl<E: Env> Active<E> {
    /// Bytes behind the last batch.
    fn left(&self) -> u32 {
        assert!(self.end <= self.capacity, "a batch lies behind the end of its segment's file");
        self.capacity - self.end
    }
}

struct Spare<E: Env> {
    name: String,
    file: FileOf<E>,
    capacity: u32,
}

struct State<E: Env> {
    active: Option<Active<E>>,
    /// Capacity of the spare that is being made the active segment: what is reserved meanwhile will be there.
    activating: Option<u32>,
    spares: Vec<Spare<E>>,
    next_spare: u32,
    last_segment: u32,
    secret: Option<u64>,
    chain: u32,
    durable: LogPosition,
    vouched: LogPosition,
    /// There was no room for a voucher; the next batch will vouch.
    voucher_refused: bool,
    outstanding: u64,
    segments: Vec<Segment>,
    /// Taken out of the log, their files not removed yet.
    doomed: Vec<u32>,
}

/// Where recovery found the log's end.
pub struct LogEnd {
    /// Where the next batch goes.
    pub position: LogPosition,
    /// CRC of the last batch's envelope.
    pub chain: u32,
    /// Segments that are kept, oldest first.
    pub segments: Vec<Segment>,
}

/// What a batch adds to the log.
pub struct Append {
    /// The encoded body.
    pub body: Rc<Vec<u8>>,
    /// Places of its large values.
    pub pointers: Vec<(u32, u64)>,
    /// The first version in it (or the next to come, for an empty one).
    pub first_version: Version,
    /// What was reserved for it.
    pub cost: u64,
    /// The log is published up to here.
    pub published: LogPosition,
}

impl Append {
    fn length(&self) -> usize {
        round_up(Envelope::length(self.pointers.len()) + self.body.len())
    }
}

/// Where batches end, and the CRCs of their envelopes.
pub type Ends = Vec<(LogPosition, u32)>;

/// The log of one partition.
pub struct Wal<E: Env> {
    env: E,
    partition: PartitionId,
    segment_bytes: u32,
    aside: Aside,
    /// Bytes that writes must leave free: 0 while a spare segment is being made whose space is allocated, [`Aside::all`] otherwise.
    left_by_writes: Cell<u64>,
    leftovers: Rc<Leftovers<E>>,
    end_file: Rc<EndFile<E>>,
    state: RefCell<State<E>>,
    making: Gate,
    /// [`Wal::keep_spare`] is at work.
    keeping: Cell<bool>,
    /// The time from which on [`Wal::keep_spare`] tries again after a failure.
    spare_after: Cell<Duration>,
    /// How many wait for [`Wal::making`], or have it and want to be done.
    waiting: Cell<u32>,
    /// No spare is kept ready any more.
    closing: Cell<bool>,
    /// Ends the pause of a spare that is being made.
    hurry: Notify,
}

/// A spare that could not be made is tried again after this time: whoever needs it makes it at once.
const SPARE_RETRY: Duration = Duration::from_secs(1);

/// Counts one that waits, also when it is given up in between.
struct Counted<'a>(&'a Cell<u32>);

impl Counted<'_> {
    fn new(count: &Cell<u32>) -> Counted<'_> {
        count.set(count.get() + 1);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

async fn shared_flush<E: Env>(env: &E, file: &FileOf<E>) -> Result<Option<Rc<SharedFlush<FileOf<E>>>>, DiskError> {
    Ok(file.shared_flush_device().await?.and_then(|device| env.shared_flush(device)))
}

/// What log is reserved for: where no more space can be had, the last of it is not for everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Transactions that write values.
    Write,
    /// Transactions of deletes alone: people make room with them.
    Delete,
    /// A FlushDB, or a change of who leads, or of members.
    Order,
}

/// What the end of the log's space is kept for, bytes.
#[derive(Clone, Copy)]
struct Aside {
    /// Bytes for deletes and for orders together.
    all: u64,
    orders: u64,
}

/// Bytes that are kept for orders: a FlushDB takes one block, a list of members one or two.
const ORDERS: u64 = 2 * BLOCK as u64;

impl Aside {
    fn new(deletes: u64, segment_bytes: u64) -> Aside {
        let blocks = |bytes: u64| bytes / BLOCK as u64 * BLOCK as u64;
        let most = blocks(segment_bytes / 8);
        let orders = ORDERS.min(blocks(most / 2));
        Aside { all: blocks(deletes).min(most - orders) + orders, orders }
    }

    /// Bytes that a reservation for this purpose must leave free.
    fn leaves(self, purpose: Purpose) -> u64 {
        match purpose {
            Purpose::Write => self.all,
            Purpose::Delete => self.orders,
            Purpose::Order => 0,
        }
    }
}

/// Bytes of log that a transaction may take: as if it were a batch of its own.
pub fn cost(operation_bytes: usize, large_values: usize) -> u64 {
    round_up(Envelope::length(0) + POINTER_BYTES * large_values + BODY_HEADER + 4 + operation_bytes) as u64
}

impl<E: Env> Wal<E> {
    /// Takes over the log where recovery left it.
    pub async fn open(
        env: E,
        partition: PartitionId,
        (segment_bytes, delete_reserve): (u64, u64),
        end: LogEnd,
        leftovers: Rc<Leftovers<E>>,
        end_file: Rc<EndFile<E>>,
    ) -> Result<Wal<E>, Error> {
        let number = end.position.segment();
        let active = if end.segments.iter().any(|s| s.number == number) {
            let file = env.disk().open(&names::segment(number), OpenMode::Existing, IoClass::Foreground).await?;
            // Whole blocks: a file that was cut short by others may end anywhere, even before what the log had there, or what the
            // checkpoint knows of. It takes no batch then; the next segment does.
            let capacity = (file.length().await?.min(u64::from(u32::MAX)) as u32) / BLOCK as u32 * BLOCK as u32;
            if end.position.offset() <= capacity {
                let shared = shared_flush(&env, &file).await?;
                Some(Active { number, file, shared, end: end.position.offset(), capacity })
            } else {
                None
            }
        } else {
            None
        };
        let state = State {
            active,
            activating: None,
            spares: Vec::new(),
            next_spare: 1,
            last_segment: number,
            secret: None,
            chain: end.chain,
            durable: end.position,
            vouched: end.position,
            voucher_refused: false,
            outstanding: 0,
            segments: end.segments,
            doomed: Vec::new(),
        };
        let segment_bytes = round_up(segment_bytes as usize) as u32;
        let aside = Aside::new(delete_reserve, u64::from(segment_bytes));
        Ok(Wal {
            env,
            partition,
            segment_bytes,
            left_by_writes: Cell::new(aside.all),
            aside,
            leftovers,
            end_file,
            state: RefCell::new(state),
            making: Gate::default(),
            keeping: Cell::new(false),
            spare_after: Cell::default(),
            waiting: Cell::new(0),
            closing: Cell::new(false),
            hurry: Notify::default(),
        })
    }

    /// A number that no segment has had.
    pub fn next_segment(&self) -> u32 {
        self.state.borrow().last_segment + 1
    }

    /// Before `fresh` is recorded as the generation of an opening, which is its first write: the active segment is recorded as the
    /// newest one, and there is a file that says so. Only refusals of the disk are answered.
    pub async fn record_active(&self, fresh: &Generation, manifest: &Manifest) -> Result<(), Error> {
        let durable = self.durable();
        let record = self.state.borrow().active.as_ref().and_then(|active| {
            let (segment, length) = (active.number, active.capacity);
            let start = LogPosition::new(segment, BLOCK as u32);
            let owner = if start >= fresh.start { Some(fresh) } else { manifest.generation_at(start) };
            owner.map(|owner| EndRecord { secret: owner.secret, segment, length, durable })
        });
        let recorded = match (self.end_file.create().await, record) {
            (Ok(()), Some(record)) => self.end_file.record(record).await,
            (created, _) => created,
        };
        match recorded {
            Err(error) if !error.changed_nothing() => {
                match self.env.halt(format!("the newest segment of the log could not be recorded: {error}")).await {}
            }
            other => Ok(other?),
        }
    }

    /// The generation was recorded; appends carry its secret from here on.
    pub fn begin_generation(&self, secret: u64) {
        self.state.borrow_mut().secret = Some(secret);
    }

    /// Whether a generation was begun since the opening.
    pub fn has_begun(&self) -> bool {
        self.state.borrow().secret.is_some()
    }

    /// Where the next batch would go if it fitted.
    pub fn end(&self) -> LogPosition {
        let state = self.state.borrow();
        match &state.active {
            Some(active) => LogPosition::new(active.number, active.end),
            None => LogPosition::new(state.last_segment + 1, BLOCK as u32),
        }
    }

    /// CRC of the last envelope.
    pub fn chain(&self) -> u32 {
        self.state.borrow().chain
    }

    /// Everything below is flushed.
    pub fn durable(&self) -> LogPosition {
        self.state.borrow().durable
    }

    /// Whether the last batch waits for a later one to vouch for it.
    pub fn wants_voucher(&self) -> bool {
        let state = self.state.borrow();
        state.secret.is_some() && state.vouched < state.durable && !state.voucher_refused
    }

    /// Everything below is vouched for by an envelope.
    pub fn vouched_position(&self) -> LogPosition {
        self.state.borrow().vouched
    }

    /// The segments, oldest first, with the active one's use as of now.
    pub fn segments(&self) -> Vec<Segment> {
        self.state.borrow().segments.clone()
    }

    /// The oldest segment.
    pub fn oldest(&self) -> Option<Segment> {
        self.state.borrow().segments.first().copied()
    }

    /// Bytes in use from `position` on. Asked after each append: it looks at no segment below.
    pub fn used_from(&self, position: LogPosition) -> u64 {
        let used = |s: &Segment| match s.number == position.segment() {
            true => u64::from(s.used.saturating_sub(position.offset())),
            false => u64::from(s.used),
        };
        let state = self.state.borrow();
        state.segments.iter().rev().take_while(|s| s.number >= position.segment()).map(used).sum()
    }

    /// Flushes that this log shared with others of its core, and the writes that they covered.
    pub fn shared_counts(&self) -> (u64, u64) {
        let state = self.state.borrow();
        let shared = state.active.as_ref().and_then(|active| active.shared.as_ref());
        shared.map_or((0, 0), |shared| shared.counts())
    }

    /// Segments that wait to be used.
    pub fn spares(&self) -> usize {
        self.state.borrow().spares.len()
    }

    /// Takes segments, which are in order, out of the log: from now on nobody may ask for them. Their files go in
    /// [`Wal::remove_doomed`], once the manifest no longer lists them.
    pub fn doom(&self, numbers: &[u32]) {
        let mut state = self.state.borrow_mut();
        state.segments.retain(|s| numbers.binary_search(&s.number).is_err());
        state.doomed.extend_from_slice(numbers);
    }

    /// Whether files wait to be removed.
    pub fn has_doomed(&self) -> bool {
        !self.state.borrow().doomed.is_empty()
    }

    /// Removes the files of segments that were taken out; the caller recorded that in the manifest. One file is kept as a
    /// spare where there is none.
    pub async fn remove_doomed(&self) -> Result<(), Error> {
        if !self.has_doomed() {
            return Ok(());
        }
        let _turn = self.take_turn().await;
        let doomed = std::mem::take(&mut self.state.borrow_mut().doomed);
        let mut refused = None;
        for number in doomed {
            match self.remove_segment(number).await {
                Err(error) if error.kind != DiskErrorKind::NotFound => {
                    // The next purge tries again; the others go.
                    self.state.borrow_mut().doomed.push(number);
                    refused = Some(error);
                }
                _ => {}
            }
        }
        refused.map_or(Ok(()), |error| Err(error.into()))
    }

    async fn remove_segment(&self, number: u32) -> Result<(), DiskError> {
        let name = names::segment(number);
        if self.state.borrow().spares.is_empty() {
            let file = self.env.disk().open(&name, OpenMode::Existing, IoClass::Foreground).await?;
            if file.length().await? == u64::from(self.segment_bytes) {
                let spare = self.spare_name();
                self.env.disk().rename(&name, &spare).await?;
                let capacity = self.segment_bytes;
                self.state.borrow_mut().spares.push(Spare { name: spare, file, capacity });
                return Ok(());
            }
        }
        self.env.disk().remove(&name).await
    }

    /// Marks the segments below `position` as checkpointed at `now_ms`. A stamp of the future, by a clock that was ahead, counts as now.
    pub fn checkpointed(&self, position: LogPosition, now_ms: u64) {
        for segment in self.state.borrow_mut().segments.iter_mut().filter(|s| s.number < position.segment()) {
            segment.checkpointed_ms = Some(segment.checkpointed_ms.map_or(now_ms, |at| at.min(now_ms)));
        }
    }

    /// The wall clock was set: stamps are moved by so many milliseconds.
    pub fn move_stamps(&self, step_ms: i64) {
        for stamp in self.state.borrow_mut().segments.iter_mut().filter_map(|s| s.checkpointed_ms.as_mut()) {
            *stamp = stamp.saturating_add_signed(step_ms);
        }
    }

    fn spare_name(&self) -> String {
        let mut state = self.state.borrow_mut();
        state.next_spare += 1;
        names::spare(state.next_spare - 1)
    }

    /// Reserves space if it is there already, and leaves what is kept for others.
    pub fn try_reserve(&self, cost: u64) -> bool {
        self.reserve_leaving(cost, self.left_by_writes.get())
    }

    fn try_reserve_for(&self, cost: u64, purpose: Purpose) -> bool {
        self.reserve_leaving(cost, self.aside.leaves(purpose))
    }

    fn reserve_leaving(&self, cost: u64, rest: u64) -> bool {
        let mut state = self.state.borrow_mut();
        let wanted = state.outstanding + cost;
        let with_rest = wanted + rest;
        let left = state.active.as_ref().map_or(0, |a| u64::from(a.left()));
        let mut empty = state.spares.iter().map(|s| s.capacity).chain(state.activating);
        let fits = with_rest <= left || empty.any(|capacity| with_rest <= u64::from(capacity) - BLOCK as u64);
        if fits {
            state.outstanding = wanted;
        }
        fits
    }

    /// Gives back what was reserved for a transaction that was not prepared after all.
    pub fn release(&self, cost: u64) {
        let mut state = self.state.borrow_mut();
        assert!(state.outstanding >= cost, "more log space is given back than was reserved");
        state.outstanding -= cost;
    }

    /// Reserves space, making a spare segment where none is large enough. The one place where a full disk shows: then what is kept
    /// for the purpose is taken.
    pub async fn reserve(&self, cost: u64, purpose: Purpose) -> Result<(), Error> {
        while !self.try_reserve(cost) {
            if self.env.now() < self.spare_after.get() && self.try_reserve_for(cost, purpose) {
                return Ok(());
            }
            let _turn = self.take_turn().await;
            if self.try_reserve(cost) {
                return Ok(());
            }
            let rest = self.aside.leaves(Purpose::Write);
            let wanted = BLOCK as u64 + self.state.borrow().outstanding + cost + rest;
            let capacity = (round_up(wanted as usize) as u64).max(u64::from(self.segment_bytes));
            let capacity = u32::try_from(capacity)
                .map_err(|_| Error::NoSpace("more than 4 GiB of log wait to be written".to_string()))?;
            match self.make_spare(capacity).await {
                Err(error) if error.is_refusal() => {
                    if !self.try_reserve_for(cost, purpose) {
                        return Err(error);
                    }
                    self.spare_after.set(self.env.now() + SPARE_RETRY);
                    return Ok(());
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Waits until nothing is being made, and ends the pauses of what is.
    async fn take_turn(&self) -> (Counted<'_>, Pass) {
        let counted = Counted::new(&self.waiting);
        self.hurry.notify();
        (counted, self.making.enter().await)
    }

    /// Whether [`Wal::keep_spare`] has something to do.
    pub fn lacks_spare(&self) -> bool {
        !self.keeping.get()
            && !self.closing.get()
            && self.state.borrow().spares.is_empty()
            && self.env.now() >= self.spare_after.get()
    }

    /// Keeps one spare ready while the partition is written to.
    pub async fn keep_spare(&self) -> Result<(), Error> {
        if self.keeping.replace(true) {
            return Ok(());
        }
        let turn = self.making.enter().await;
        let missing = !self.closing.get() && self.state.borrow().spares.is_empty();
        let made = if missing { self.make_spare(self.segment_bytes).await } else { Ok(()) };
        if made.is_err() {
            self.spare_after.set(self.env.now() + SPARE_RETRY);
        }
        drop(turn);
        self.keeping.set(false);
        made
    }

    /// Keeps no spare ready any more, and gives up the one that is being made unless somebody waits for it.
    pub fn keep_none(&self) {
        self.closing.set(true);
        self.hurry.notify();
    }

    /// Ends when nothing is being made.
    pub async fn settled(&self) {
        drop(self.making.enter().await);
    }

    /// Whether a spare of `capacity` is late that has `made` bytes: somebody waits for it, or at this pace it would not be complete
    /// when a quarter of the active segment is taken.
    fn is_late(&self, made: u64, capacity: u32) -> bool {
        let state = self.state.borrow();
        let taken = |active: &Active<E>| (u64::from(active.end) + state.outstanding, u64::from(active.capacity));
        let behind = state.active.as_ref().map(taken).is_some_and(|(taken, of)| {
            u128::from(taken) * 4 * u128::from(capacity) > u128::from(made) * u128::from(of)
        });
        self.waiting.get() > 0 || behind
    }

    /// Removes the spares that nothing reserved needs: for the space. Answers whether there were any.
    pub async fn give_up_spares(&self) -> bool {
        let _turn = self.take_turn().await;
        let spares = {
            let mut state = self.state.borrow_mut();
            let left = state.active.as_ref().map_or(0, |a| u64::from(a.left()));
            if state.outstanding > left { Vec::new() } else { std::mem::take(&mut state.spares) }
        };
        let some = !spares.is_empty();
        for spare in spares {
            self.leftovers.remove_after_failure(spare.name).await;
        }
        some
    }

    /// Removes all spares but one once nothing is reserved: large transactions leave large ones behind.
    pub async fn trim_spares(&self) -> Result<(), Error> {
        if self.extra_spare().is_none() {
            return Ok(());
        }
        let _turn = self.take_turn().await;
        while let Some(index) = self.extra_spare() {
            let extra = self.state.borrow_mut().spares.swap_remove(index);
            self.leftovers.remove(extra.name).await?;
        }
        Ok(())
    }

    /// The largest spare, if it is to be removed.
    fn extra_spare(&self) -> Option<usize> {
        let state = self.state.borrow();
        let largest = (0..state.spares.len()).max_by_key(|i| state.spares[*i].capacity)?;
        let alone = state.spares.len() == 1 && state.spares[largest].capacity == self.segment_bytes;
        (state.outstanding == 0 && !alone).then_some(largest)
    }

    async fn make_spare(&self, capacity: u32) -> Result<(), Error> {
        let name = self.spare_name();
        let written = self.write_spare(&name, capacity).await;
        self.left_by_writes.set(self.aside.all);
        if let Ok(Some(file)) = written {
            self.state.borrow_mut().spares.push(Spare { name, file, capacity });
            return Ok(());
        }
        // What is left of it would only take space.
        self.leftovers.remove_after_failure(name).await;
        written.map(|_| ()).map_err(Error::from)
    }

    /// Space is assured and every block written, so that later flushes have no metadata to write. `None` if it was given up.
    ///
    /// All logs of a busy node want a spare at about the same time, and flushes are slow while the device writes much else: so
    /// long as there is time, each leaves it alone for most of it.
    async fn write_spare(&self, name: &str, capacity: u32) -> Result<Option<FileOf<E>>, DiskError> {
        /// Bytes that are written at once where there is time, and where there is none.
        const CHUNK: u64 = 256 << 10;
        const LARGE_CHUNK: u64 = 1 << 20;
        /// The pause behind a chunk, in times that it took.
        const PAUSE: u32 = 15;
        const LONGEST_PAUSE: Duration = Duration::from_millis(10);
        let file = self.env.disk().open(name, OpenMode::Create, IoClass::Foreground).await?;
        file.allocate(u64::from(capacity)).await?;
        self.left_by_writes.set(0);
        let (mut offset, end) = (0, u64::from(capacity));
        while offset < end {
            if self.closing.get() && self.waiting.get() == 0 {
                return Ok(None);
            }
            let late = self.is_late((offset + CHUNK).min(end), capacity);
            let length = if late { LARGE_CHUNK } else { CHUNK }.min(end - offset);
            let started = self.env.now();
            file.write_at(AlignedBuf::zeros(length as usize), offset).await?;
            offset += length;
            if late || offset == end {
                self.env.give_way().await;
            } else {
                let pause = ((self.env.now() - started) * PAUSE).min(LONGEST_PAUSE);
                first_of(self.env.sleep(pause), self.hurry.notified()).await;
            }
        }
        file.sync_data().await?;
        Ok(Some(file))
    }

    /// Turns the smallest spare that `total` bytes fit into the active segment. Answers what is to be recorded before anybody is told
    /// of a batch in it.
    async fn activate(&self, total: usize, first_version: Version) -> Result<EndRecord, DiskError> {
        let (spare, number) = {
            let mut state = self.state.borrow_mut();
            let fitting = (0..state.spares.len())
                .filter(|i| state.spares[*i].capacity as usize >= BLOCK + total)
                .min_by_key(|i| state.spares[*i].capacity);
            let Some(index) = fitting else {
                return Err(DiskError {
                    kind: DiskErrorKind::Io,
                    operation: "append",
                    file: names::segment(state.last_segment + 1),
                    message: format!("no segment was reserved for {total} bytes"),
                });
            };
            let spare = state.spares.swap_remove(index);
            state.activating = Some(spare.capacity);
            (spare, state.last_segment + 1)
        };
        let header = || header::encode(FileKind::Segment, self.partition, u64::from(number));
        insist(&self.env, async || spare.file.write_durable(header(), 0).await).await?;
        insist(&self.env, async || self.env.disk().rename(&spare.name, &names::segment(number)).await).await?;
        sync_names(&self.env).await?;
        let shared = insist(&self.env, async || shared_flush(&self.env, &spare.file).await).await?;
        let mut state = self.state.borrow_mut();
        state.last_segment = number;
        state.activating = None;
        state.segments.push(Segment { number, first_version, used: BLOCK as u32, checkpointed_ms: None });
        let Spare { file, capacity, .. } = spare;
        state.active = Some(Active { number, file, shared, end: BLOCK as u32, capacity });
        let Some(secret) = state.secret else { unreachable!("a generation is begun before the first reservation") };
        Ok(EndRecord { secret, segment: number, length: capacity, durable: state.durable })
    }

    /// Ends when it is worth while to close a small batch ([`SharedFlush::turn`]).
    pub async fn turn(&self) {
        let shared = self.state.borrow().active.as_ref().and_then(|active| active.shared.clone());
        if let Some(shared) = shared {
            shared.turn().await;
        }
    }

    /// Appends batches with one write and one flush: durable when this returns. Answers where each ends, and the CRC of its
    /// envelope. None of them vouches for another one of the same write, so that a torn write reads as a tail.
    pub async fn append(&self, batches: Vec<Append>) -> Result<Ends, DiskError> {
        let total = batches.iter().map(Append::length).sum();
        let cost: u64 = batches.iter().map(|batch| batch.cost).sum();
        let Some(first) = batches.first() else { return Ok(Vec::new()) };
        let fits = self.state.borrow().active.as_ref().is_some_and(|a| total <= a.left() as usize);
        let write = async || insist(&self.env, async || self.write_batches(&batches, total).await).await;
        let (durable, ends) = if fits {
            write().await?
        } else {
            let record = self.activate(total, first.first_version).await?;
            let (written, recorded) =
                both(write(), insist(&self.env, async || self.end_file.record(record).await)).await;
            recorded?;
            written?
        };
        let mut state = self.state.borrow_mut();
        let (end, crc) = ends.last().copied().unwrap_or((state.durable, state.chain));
        if let Some(active) = &mut state.active {
            active.end = end.offset();
        }
        if let Some(segment) = state.segments.last_mut() {
            segment.used = end.offset();
        }
        state.chain = crc;
        state.vouched = durable;
        state.voucher_refused = false;
        state.durable = end;
        assert!(state.outstanding >= cost, "a batch was appended without a reservation");
        state.outstanding -= cost;
        Ok(ends)
    }

    /// Writes batches at the end of the active segment. Answers what they vouch for, where each ends, and the CRC of its envelope.
    async fn write_batches(&self, batches: &[Append], total: usize) -> Result<(LogPosition, Ends), DiskError> {
        /// Bytes that are copied at once.
        const PIECE: usize = 256 << 10;
        let mut buffer = AlignedBuf::uncleared(total);
        let unchained = self.env.sabotage() == Some(Sabotage::EnvelopeNotChained);
        let mut ends = Vec::with_capacity(batches.len());
        let (file, shared, segment, start, secret, durable, mut chain) = {
            let state = self.state.borrow();
            let (Some(active), Some(secret)) = (&state.active, state.secret) else {
                unreachable!("a segment was activated before, a generation begun before the first reservation")
            };
            assert!(state.durable <= LogPosition::new(active.number, active.end), "a flushed block is never rewritten");
            let (file, shared) = (active.file.clone(), active.shared.clone());
            (file, shared, active.number, active.end, secret, state.durable, state.chain)
        };
        let (offset, mut at) = (u64::from(start), 0);
        for batch in batches {
            let (head, length) = (Envelope::length(batch.pointers.len()), batch.length());
            let place = &mut buffer[at..at + length];
            let (envelope_place, rest) = place.split_at_mut(head);
            let (body_place, padding) = rest.split_at_mut(batch.body.len());
            envelope_place.fill(0);
            for (to, from) in body_place.chunks_mut(PIECE).zip(batch.body.chunks(PIECE)) {
                to.copy_from_slice(from);
                if batch.body.len() > PIECE {
                    self.env.give_way().await;
                }
            }
            padding.fill(0);
            let envelope = Envelope {
                secret,
                position: LogPosition::new(segment, start + at as u32),
                durable,
                published: batch.published,
                chain: if unchained { 0 } else { chain },
                body_length: batch.body.len() as u32,
                body_crc: u32::from_le_bytes([batch.body[0], batch.body[1], batch.body[2], batch.body[3]]),
                pointers: batch.pointers.clone(),
                crc: 0,
            };
            chain = envelope.encode(&mut buffer[at..at + length]);
            at += length;
            ends.push((LogPosition::new(segment, start + at as u32), chain));
        }
        if self.env.sabotage() == Some(Sabotage::AckBeforeFlush) {
            file.write_at(buffer, offset).await?;
        } else if let Some(shared) = shared.filter(|_| buffer.len() <= SHARED_MAX) {
            shared.write_durable(&self.env, file, buffer, offset).await?;
        } else {
            file.write_durable(buffer, offset).await?;
        }
        Ok((durable, ends))
    }

    /// There was no room for an empty batch: not tried again before the next append.
    pub fn refuse_voucher(&self) {
        self.state.borrow_mut().voucher_refused = true;
    }

    /// After an empty batch: it vouches for what came before, and itself needs no voucher.
    pub fn vouched(&self) {
        let mut state = self.state.borrow_mut();
        state.vouched = state.durable;
    }
}
