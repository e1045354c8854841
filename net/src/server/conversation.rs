//! A conversation: a session with its transaction and the replies that wait for what they tell to be published.
//!
//! Replies leave in the order of their requests. A reply that may tell of an unpublished version waits, and so do all
//! behind it; the session itself goes on (it *runs ahead*). A request that must wait for the disk stops the parsing of
//! this conversation until it is answered.

use super::handoff::Parked;
use super::hold::{HOLD, HOLD_MAX};
use super::input::Input;
use super::memory::{Memory, PATIENCE};
use crate::changes::Consumers;
use crate::replica::Board;
use crate::session::Session;
use crate::wire::{ErrorCode, WireError, frame, reply};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use turnstone_engine::budget::{Budget, FREE};
use turnstone_engine::env::Env;
use turnstone_engine::types::Version;
use turnstone_engine::{Error, Partition, RunAhead, Transaction};
use turnstone_executor::RealEnv;

/// The core with the socket, and the connection's number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The core.
    pub home: usize,
    /// The connection.
    pub id: u64,
}

/// A reply that waits for a version to be published.
struct Waiting {
    floor: Version,
    bytes: Vec<u8>,
}

/// What a request that is not answered at once may have seen: everything up to its session's newest version.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    floor: Version,
    resets: u64,
}

impl Sight {
    /// The same request has prepared a version, too.
    pub fn including(self, version: Version) -> Sight {
        Sight { floor: self.floor.max(version), ..self }
    }
}

/// A request that has begun may take a second more for each so many bytes of it that came.
const BYTES_PER_SECOND: u64 = 64 << 10;
/// The same while other requests wait for the memory that it holds.
const BYTES_PER_SECOND_WAITED_FOR: u64 = 4 << 20;

/// A request of which a part has come.
pub struct Partial {
    since: Instant,
    /// Bytes of it that were skipped: it is too long and has been refused.
    skipped: u64,
}

/// One conversation on the core of its partition.
pub struct Conversation<E: Env = RealEnv> {
    /// Who speaks.
    pub session: Session,
    /// Received and not parsed.
    pub input: Input,
    /// What is left of its input is less than a whole request.
    pub hungry: bool,
    /// What is left of its input is the beginning of a request.
    pub partial: Option<Partial>,
    /// Replies that may leave.
    pub out: Vec<u8>,
    /// Replies that may leave before `out`, piece by piece. Until they have, nothing more is run.
    pub pieces: VecDeque<Vec<u8>>,
    /// The selected partition, where it is open.
    pub partition: Option<Partition<E>>,
    /// The open transaction of a user partition.
    pub transaction: Option<Transaction>,
    /// What this session has prepared itself.
    pub ahead: RunAhead,
    /// A request waits for the disk.
    pub blocked: bool,
    /// What it holds of the node's memory for requests and replies.
    pub memory: Memory,
    /// It selected a partition of this core.
    pub leaving: Option<usize>,
    /// It has said goodbye; replies still leave.
    pub over: bool,
    /// Replies pile up at the socket.
    pub throttled: bool,
    /// The transport waits for word that its input was taken (forwarded conversations).
    pub owes_taken: bool,
    /// Bytes of replies that are on their way to the core with the socket (forwarded conversations).
    pub undrained: usize,
    /// Nothing comes behind what is in `input`.
    pub last_input: bool,
    /// A request that took its time was found to be none that a client of ours sends: for the core to count.
    pub malformed: Option<WireError>,
    /// What its core knows of replication.
    pub board: Rc<Board>,
    /// Who reads changes of this core's partitions.
    pub consumers: Rc<Consumers>,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// How often what this session has prepared was answered as unknown.
    resets: u64,
    held: Option<Instant>,
}

impl<E: Env> Conversation<E> {
    /// Takes up a conversation; the partition is attached by the caller.
    pub fn new(parked: Parked, budget: &Arc<Budget>) -> Conversation<E> {
        Conversation {
            memory: Memory::new(budget),
            session: parked.session,
            input: parked.input.into(),
            hungry: false,
            partial: None,
            out: Vec::new(),
            pieces: VecDeque::new(),
            partition: None,
            transaction: None,
            ahead: RunAhead::default(),
            blocked: false,
            leaving: None,
            over: false,
            throttled: false,
            owes_taken: false,
            undrained: 0,
            last_input: parked.last_input,
            malformed: None,
            board: Rc::default(),
            consumers: Rc::default(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            resets: 0,
            held: None,
        }
    }

    /// Puts it down for a move; nothing may be open or waiting.
    pub fn park(self) -> Parked {
        assert!(self.is_settled() && self.transaction.is_none(), "a conversation moves between requests");
        Parked { session: self.session, input: self.input.into_bytes(), last_input: self.last_input }
    }

    /// What a request that begins now sees at most.
    pub fn sight(&self) -> Sight {
        let floor = self.partition.as_ref().map_or(0, |partition| self.ahead.tell_after(partition));
        Sight { floor, resets: self.resets }
    }

    /// Appends the reply to a request that took its time. If what it saw may vanish meanwhile, because commits of this session
    /// have timed out or the partition was closed, nothing of it is told: the outcome is unknown.
    pub fn reply_later(&mut self, sight: Sight, id: u32, encode: impl FnOnce(&mut Vec<u8>)) {
        let Some(partition) = self.partition.clone() else { return self.reply(encode) };
        let vanishes =
            sight.floor > partition.published() && (sight.resets != self.resets || partition.is_expired(sight.floor));
        if !vanishes {
            return self.reply(encode);
        }
        let (dialect, error) = (self.session.dialect, Error::UnknownOutcome(partition.position(sight.floor)));
        self.give_up_unpublished(&partition);
        self.reply(|out| reply::encode_error(dialect, id, ErrorCode::UnknownOutcome, &error.to_string(), out));
    }

    /// The same for a reply that is made already, in pieces.
    pub fn reply_long(&mut self, sight: Sight, id: u32, pieces: Vec<Vec<u8>>) {
        let floor = self.partition.as_ref().map_or(0, |partition| self.ahead.tell_after(partition)).max(sight.floor);
        let shown = self.partition.as_ref().is_none_or(|partition| floor <= partition.published());
        if self.waiting.is_empty() && shown {
            let before = std::mem::take(&mut self.out);
            self.pieces.extend(Some(before).filter(|bytes| !bytes.is_empty()).into_iter().chain(pieces));
            return;
        }
        self.reply_later(sight, id, |out| out.extend_from_slice(&pieces.concat()));
    }

    /// What leaves next: about `most` bytes at once, so that encrypting them does not keep the core.
    pub fn take_output(&mut self, most: usize) -> Vec<u8> {
        if self.pieces.is_empty() && self.out.len() > most {
            let long = std::mem::take(&mut self.out);
            self.pieces.extend(long.chunks(most).map(<[u8]>::to_vec));
        }
        self.pieces.pop_front().unwrap_or_else(|| std::mem::take(&mut self.out))
    }

    /// Whether replies are left that may leave.
    pub fn has_output(&self) -> bool {
        !self.out.is_empty() || !self.pieces.is_empty()
    }

    /// Appends a reply, to leave when everything this session was shown is published.
    pub fn reply(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let (floor, published) = match &self.partition {
            Some(partition) => (self.ahead.tell_after(partition), partition.published()),
            None => (0, 0),
        };
        if self.waiting.is_empty() && floor <= published {
            return encode(&mut self.out);
        }
        if self.waiting.back().is_none_or(|last| last.floor < floor) {
            self.waiting.push_back(Waiting { floor, bytes: Vec::new() });
        }
        if let Some(last) = self.waiting.back_mut() {
            // Neighbours that wait for the same version leave together.
            let before = last.bytes.len();
            encode(&mut last.bytes);
            self.waiting_bytes += last.bytes.len() - before;
        }
    }

    /// Less than a whole request is left: `left` bytes, or what is skipped, of which `used` came just now.
    pub fn wait_for_more(&mut self, used: usize, left: usize) {
        self.hungry = true;
        self.over |= self.last_input;
        if left == 0 && !self.session.is_skipping() {
            self.partial = None;
        } else {
            self.partial.get_or_insert_with(|| Partial { since: Instant::now(), skipped: 0 }).skipped += used as u64;
        }
    }

    /// Whether the rest of a request is due for longer than this, and longer than its length explains. One that is not let in yet is
    /// not late, and where others wait for memory those who have some have less time.
    pub fn is_late(&self, limit: Duration) -> bool {
        let waited_for = self.memory.budget().is_waited_for();
        let rate = if waited_for { BYTES_PER_SECOND_WAITED_FOR } else { BYTES_PER_SECOND };
        self.memory.waits_since().is_none()
            && self.partial.as_ref().filter(|_| self.hungry).is_some_and(|partial| {
                let came = partial.skipped + self.input.len() as u64;
                partial.since.elapsed() > limit + Duration::from_secs(came / rate)
            })
    }

    /// Bytes of replies that wait for a version to be published.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Bytes that it holds but for a request that is still coming: what came, what is being worked on, what is to be written, and
    /// replies that have not left.
    fn held(&self) -> usize {
        let pieces = self.pieces.iter().map(Vec::len).sum::<usize>();
        let transaction = self.transaction.as_ref().map_or(0, |transaction| transaction.bytes() as usize);
        self.out.len() + pieces + self.waiting_bytes + transaction + self.memory.elsewhere()
    }

    /// Says what it holds; `backlog` bytes of its replies wait at the socket.
    pub fn account(&mut self, backlog: usize) {
        let input = self.input.len();
        self.memory.set(self.held() + backlog, input);
    }

    /// Whether it may hold so many bytes more: a reply, or what a transaction writes.
    #[inline]
    pub fn may_hold(&mut self, more: usize) -> Result<(), Error> {
        let written = self.transaction.as_ref().map_or(0, |transaction| transaction.bytes() as usize);
        // Short replies are bounded by the window that they pile up in.
        if more + written <= FREE { Ok(()) } else { self.ask_to_hold(more) }
    }

    fn ask_to_hold(&mut self, more: usize) -> Result<(), Error> {
        let held = self.held() + self.input.len();
        self.memory.try_hold(held + more)
    }

    /// Whether its next request has waited for memory longer than one waits.
    pub fn has_waited_too_long(&self) -> bool {
        self.memory.waits_since().is_some_and(|since| since.elapsed() > PATIENCE)
    }

    /// Whether a request of which a part has come may be gathered: `length` bytes with its header.
    pub fn may_gather(&mut self, length: usize) -> bool {
        let held = self.held();
        self.memory.may_gather(held, length)
    }

    /// Whether `out` stays for now, to leave with the replies that wait behind it.
    pub fn holds_back(&mut self) -> bool {
        let may = !self.out.is_empty() && !self.waiting.is_empty() && self.out.len() <= HOLD_MAX;
        self.held = if may { Some(self.held.unwrap_or_else(Instant::now)) } else { None };
        self.held = self.held.filter(|since| since.elapsed() < HOLD);
        self.held.is_some()
    }

    /// Since when replies have been held back.
    pub fn held_since(&self) -> Option<Instant> {
        self.held
    }

    /// Lets go of the replies that need wait no longer; answers whether some still do.
    pub fn settle(&mut self) -> bool {
        let Some(partition) = self.partition.clone() else { return !self.waiting.is_empty() };
        let published = partition.published();
        while let Some(first) = self.waiting.front() {
            let expired = partition.is_expired(first.floor);
            if first.floor > published && !expired {
                return true;
            }
            let Some(first) = self.waiting.pop_front() else { return false };
            self.waiting_bytes -= first.bytes.len();
            if first.floor <= published {
                self.out.extend_from_slice(&first.bytes);
            } else {
                self.answer_unknown(&partition, &first);
            }
        }
        false
    }

    /// Nobody knows whether a version stays: whatever was to be told of it is answered so, and the session goes on from what
    /// is published.
    fn answer_unknown(&mut self, partition: &Partition<E>, waiting: &Waiting) {
        let dialect = self.session.dialect;
        let error = Error::UnknownOutcome(partition.position(waiting.floor));
        let mut rest = &waiting.bytes[..];
        while let Some(header) = frame::decode_header(dialect, rest) {
            reply::encode_error(dialect, header.id, ErrorCode::UnknownOutcome, &error.to_string(), &mut self.out);
            rest = rest.get(dialect.header_bytes() + header.length as usize..).unwrap_or(&[]);
        }
        self.ahead = RunAhead::default();
        self.resets += 1;
        self.give_up_unpublished(partition);
    }

    /// A transaction that is too old takes no memory any more: nothing but its refusal is left to be told.
    pub fn forget_old_transaction(&mut self) {
        if let (Some(partition), Some(transaction)) = (&self.partition, &mut self.transaction)
            && matches!(partition.check(transaction), Err(Error::TransactionTimeout { .. }))
        {
            partition.end_transaction(transaction);
        }
    }

    /// A transaction comes back from a request that took its time.
    pub fn take_back(&mut self, transaction: Transaction, sight: Sight) {
        self.transaction = Some(transaction);
        if let Some(partition) = self.partition.clone().filter(|_| sight.resets != self.resets) {
            self.give_up_unpublished(&partition);
        }
    }

    /// Ends the open transaction, if there is one.
    pub fn drop_transaction(&mut self) {
        if let (Some(partition), Some(mut transaction)) = (&self.partition, self.transaction.take()) {
            partition.end_transaction(&mut transaction);
        }
    }

    /// The open transaction sees no more what is not published.
    fn give_up_unpublished(&mut self, partition: &Partition<E>) {
        if let Some(transaction) = self.transaction.as_mut().filter(|t| t.snapshot.version() > partition.published()) {
            transaction.snapshot.give_up();
        }
    }

    /// Whether its partition was closed, and nothing of it is needed any more.
    pub fn needs_partition(&self) -> bool {
        let closed = self.partition.as_ref().is_some_and(Partition::is_closed);
        let none = self.partition.is_none() && self.session.selected != 0;
        (closed || none) && self.is_settled() && self.transaction.is_none()
    }

    /// The peer sends no more: what came is still run, then it is over.
    pub fn over_after_input(&mut self) {
        self.last_input = true;
    }

    /// Whether nothing is in flight: no request, no waiting reply.
    pub fn is_settled(&self) -> bool {
        self.waiting.is_empty() && !self.blocked && self.pieces.is_empty()
    }
}
