//! Running requests against a partition.
//!
//! What memory can answer is answered at once. What needs the disk becomes a future whose end is applied to the
//! conversation ([`Outcome::Later`]); until then the conversation parses nothing more.

use super::conversation::Conversation;
use super::errors::code_of;
use super::orders::{self, Order};
use super::system;
use crate::client::Address;
use crate::replica::Order as Promotion;
use crate::wire::{Dialect, ErrorCode, Position, Request, reply};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use turnstone_engine::budget::{Budget, FREE, Part};
use turnstone_engine::env::Env;
use turnstone_engine::manifest::Upstream;
use turnstone_engine::sync::first_of;
use turnstone_engine::types::{Value, Version};
use turnstone_engine::{Cold, Error, Lookup, Partition, Progress, RunAhead, Transaction, Write};

/// Values that one reply carries together at most, bytes: a short request must not make a long answer in memory.
pub(super) const REPLY_MAX: usize = 64 << 20;

/// A wait for a position takes at most this long.
const WAIT_MAX: Duration = Duration::from_secs(300);

/// Longest address of a leader, bytes.
const ADDRESS_MAX: usize = 300;

/// Applied to a conversation when its request is done.
pub type Finish<E> = Box<dyn FnOnce(&mut Conversation<E>)>;

/// A request that takes its time.
pub type Later<E> = Pin<Box<dyn Future<Output = Finish<E>>>>;

/// How a request went.
pub enum Outcome<E: Env> {
    /// It is answered.
    Done,
    /// It waits for something.
    Later(Later<E>),
    /// The conversation must go to this partition's core.
    Select(u8),
    /// It asks about the node.
    Node(NodeQuestion),
    /// Something is ordered about the selected partition's replication.
    Order(Order),
}

/// A question that all cores answer together.
pub enum NodeQuestion {
    /// Everything.
    Stat {
        /// The request.
        id: u32,
    },
    /// What there is to say of a partition that is offline.
    StatOf {
        /// The request.
        id: u32,
        /// The partition.
        partition: u8,
    },
    /// One key of partition 0.
    Get {
        /// The request.
        id: u32,
        /// The keys, one for a Get.
        keys: Vec<Vec<u8>>,
        /// Whether it is an MGet.
        many: bool,
    },
}

/// Answers an engine error.
pub fn refuse<E: Env>(conversation: &mut Conversation<E>, id: u32, error: &Error) {
    if let Error::Conflict { newest, .. } = error {
        // The error tells of that version, which may be pending: it waits, and the next snapshot includes it.
        conversation.ahead.prepared(*newest);
    }
    let dialect = conversation.session.dialect;
    conversation.reply(|out| reply::encode_error(dialect, id, code_of(error), &error.to_string(), out));
}

pub(super) fn refuse_with<E: Env>(conversation: &mut Conversation<E>, id: u32, code: ErrorCode, text: &str) {
    let dialect = conversation.session.dialect;
    conversation.reply(|out| reply::encode_error(dialect, id, code, text, out));
}

pub(super) fn ok<E: Env>(conversation: &mut Conversation<E>, id: u32, parts: &[&[u8]]) {
    let dialect = conversation.session.dialect;
    conversation.reply(|out| reply::encode_ok(dialect, id, parts, out));
}

fn value<E: Env>(conversation: &mut Conversation<E>, id: u32, found: Option<&[u8]>) {
    let dialect = conversation.session.dialect;
    conversation.reply(|out| encode_value(dialect, id, found, out));
}

fn encode_value(dialect: Dialect, id: u32, found: Option<&[u8]>, out: &mut Vec<u8>) {
    match found {
        Some(bytes) => reply::encode_ok(dialect, id, &[bytes], out),
        None => reply::encode_not_found(dialect, id, out),
    }
}

/// The wire's form of a version's identity.
pub fn position<E: Env>(partition: &Partition<E>, version: Version) -> Position {
    let at = partition.position(version);
    Position { partition: at.partition, epoch: at.epoch.number, epoch_id: at.epoch.id, version }
}

/// Runs a request that the session let through.
pub fn execute<E: Env>(conversation: &mut Conversation<E>, id: u32, request: Request<'_>) -> Outcome<E> {
    match request {
        Request::Ping => ok(conversation, id, &[b"PONG"]),
        Request::Select { name } => match crate::wire::partition_from_decimal(name) {
            Some(partition) => return Outcome::Select(partition),
            None => refuse_with(conversation, id, ErrorCode::NoSuchPartition, "no such partition"),
        },
        Request::Quit => conversation.over = true,
        request if conversation.session.selected == 0 => return of_node(conversation, id, request),
        request => {
            let Some(partition) = conversation.partition.clone() else { return of_nobody(conversation, id, &request) };
            return of_partition(conversation, &partition, id, request);
        }
    }
    Outcome::Done
}

/// What there is to answer of a partition that is offline.
#[cold]
fn of_nobody<E: Env>(conversation: &mut Conversation<E>, id: u32, request: &Request<'_>) -> Outcome<E> {
    if matches!(request, Request::Stat) {
        return Outcome::Node(NodeQuestion::StatOf { id, partition: conversation.session.selected });
    }
    drop(partition_of(conversation, id));
    Outcome::Done
}

/// The selected partition; that it is offline is answered.
pub(super) fn partition_of<E: Env>(conversation: &mut Conversation<E>, id: u32) -> Option<Partition<E>> {
    let partition = conversation.partition.clone();
    if partition.is_none() {
        let text = "this partition is offline: it is being opened anew (try again), or its files are damaged (the server's log \
                    says which)";
        refuse_with(conversation, id, ErrorCode::Offline, text);
    }
    partition
}

fn of_node<E: Env>(conversation: &mut Conversation<E>, id: u32, request: Request<'_>) -> Outcome<E> {
    match request {
        Request::Begin => {
            conversation.session.in_transaction = true;
            ok(conversation, id, &[]);
        }
        Request::Commit => {
            conversation.session.in_transaction = false;
            let dialect = conversation.session.dialect;
            conversation.reply(|out| reply::encode_committed(dialect, id, system::POSITION, out));
        }
        Request::Abort => {
            conversation.session.in_transaction = false;
            ok(conversation, id, &[]);
        }
        Request::Stat => return Outcome::Node(NodeQuestion::Stat { id }),
        Request::Get { key } => return Outcome::Node(NodeQuestion::Get { id, keys: vec![key.to_vec()], many: false }),
        Request::MGet(keys) => {
            let keys = keys.into_iter().map(<[u8]>::to_vec).collect();
            return Outcome::Node(NodeQuestion::Get { id, keys, many: true });
        }
        // It follows nobody, so there is nothing to stop.
        Request::ReplicaOf { address: [], .. } => ok(conversation, id, &[]),
        _ => refuse_with(conversation, id, ErrorCode::ReadOnly, "partition 0 is read-only; select one of the others"),
    }
    Outcome::Done
}

fn replica_of<E: Env>(conversation: &mut Conversation<E>, id: u32, address: &[u8], partition: &[u8]) -> Outcome<E> {
    if address.is_empty() {
        return Outcome::Order(Order::Follow(None, false));
    }
    let partition = crate::wire::partition_from_decimal(partition).filter(|p| *p != 0);
    let address = std::str::from_utf8(address).ok().filter(|a| a.len() <= ADDRESS_MAX && a.parse::<Address>().is_ok());
    match (address, partition) {
        (Some(address), Some(partition)) => {
            let upstream = Upstream { address: address.to_string(), partition };
            return Outcome::Order(Order::Follow(Some(upstream), false));
        }
        (None, _) => refuse_with(conversation, id, ErrorCode::Malformed, "the leader's address is not HOST:PORT"),
        (_, None) => {
            refuse_with(
                conversation,
                id,
                ErrorCode::NoSuchPartition,
                "the leader's partition is a number from 1 to 16",
            );
        }
    }
    Outcome::Done
}

fn of_partition<E: Env>(
    conversation: &mut Conversation<E>,
    partition: &Partition<E>,
    id: u32,
    request: Request<'_>,
) -> Outcome<E> {
    match request {
        Request::Get { key } => return get(conversation, partition, id, key),
        Request::MGet(keys) => return get_many(conversation, partition, id, &keys),
        Request::Set { key, value } => return write_one(conversation, partition, id, key, Write::Set(value.into())),
        // Such a key cannot exist, and deleting what does not exist is no error.
        Request::Del { key: [] } if conversation.transaction.is_some() => ok(conversation, id, &[]),
        Request::Del { key } => return write_one(conversation, partition, id, key, Write::Delete),
        Request::MSet(pairs) => {
            let writes = pairs.into_iter().map(|(key, value)| (key, Write::Set(value.into()))).collect();
            return write(conversation, partition, id, writes);
        }
        Request::MDel(keys) => return delete_many(conversation, partition, id, &keys),
        Request::Begin => {
            if let Err(error) = partition.check_readable() {
                refuse(conversation, id, &error);
                return Outcome::Done;
            }
            let snapshot = conversation.ahead.snapshot(partition);
            conversation.transaction = Some(partition.begin(snapshot));
            conversation.session.in_transaction = true;
            ok(conversation, id, &[]);
        }
        Request::Commit => {
            conversation.session.in_transaction = false;
            match conversation.transaction.take() {
                Some(transaction) => return submit(conversation, partition, id, transaction),
                None => refuse_with(conversation, id, ErrorCode::TxRequired, "no transaction is open"),
            }
        }
        Request::Abort => {
            conversation.session.in_transaction = false;
            conversation.drop_transaction();
            ok(conversation, id, &[]);
        }
        Request::Stat => {
            let json = system::partition_json(&partition.status(), &conversation.board, &conversation.consumers);
            ok(conversation, id, &[json.as_bytes()]);
        }
        Request::ReplicaOf { address, partition } => return replica_of(conversation, id, address, partition),
        Request::Promote { min_replicas } => {
            let promotion = Promotion { min_replicas: Some(min_replicas), ..Promotion::default() };
            return Outcome::Order(Order::Promote(promotion));
        }
        Request::StepDown => return Outcome::Order(Order::StepDown),
        Request::Replication { words } => match orders::parse(words) {
            Ok(order) => return Outcome::Order(order),
            Err(text) => refuse_with(conversation, id, ErrorCode::Malformed, &text),
        },
        Request::Wait { epoch, version, milliseconds } => return wait(partition, id, epoch, version, milliseconds),
        request => return administer(partition, id, request),
    }
    Outcome::Done
}

/// Commands that take their time.
fn administer<E: Env>(partition: &Partition<E>, id: u32, request: Request<'_>) -> Outcome<E> {
    enum Command {
        Checkpoint,
        Flush,
        Hold(String, u64, Version, u64),
        Release(String),
        ReadLog(Version, usize),
        Unknown,
    }
    let name = |bytes: &[u8]| bytes.escape_ascii().to_string();
    let command = match request {
        Request::Checkpoint => Command::Checkpoint,
        Request::FlushDb => Command::Flush,
        Request::Hold { name: n, epoch, version, limit_bytes } => Command::Hold(name(n), epoch, version, limit_bytes),
        Request::Release { name: n } => Command::Release(name(n)),
        Request::ReadLog { version, limit_bytes } => Command::ReadLog(version, limit_bytes as usize),
        _ => Command::Unknown,
    };
    let partition = partition.clone();
    Outcome::Later(Box::pin(async move {
        let answer: Result<Vec<u8>, Error> = match command {
            Command::Checkpoint => partition.checkpoint().await.map(|()| Vec::new()),
            Command::Flush => partition.flush_all().await.map(|_| Vec::new()),
            Command::Hold(name, epoch, version, limit) => hold(&partition, &name, epoch, version, limit).await,
            Command::Release(name) => partition.release(&name).await.map(|()| Vec::new()),
            Command::ReadLog(version, limit) => match partition.check_readable() {
                Ok(()) => partition.read_log(version, limit).await.map(|p| system::log_text(&p)),
                Err(error) => Err(error),
            },
            Command::Unknown => Err(Error::Diverged("this command is not in this version".to_string())),
        };
        let finish: Finish<E> = Box::new(move |conversation| match answer {
            Ok(body) => ok(conversation, id, &[&body]),
            Err(error) => refuse(conversation, id, &error),
        });
        finish
    }))
}

/// Waits until a position is shown here: what a client wrote elsewhere it then reads here.
fn wait<E: Env>(partition: &Partition<E>, id: u32, epoch: u64, version: Version, milliseconds: u32) -> Outcome<E> {
    let partition = partition.clone();
    Outcome::Later(Box::pin(async move {
        let limit = Duration::from_millis(u64::from(milliseconds)).min(WAIT_MAX);
        let env = partition.env().clone();
        first_of(partition.wait_published(version), env.sleep(limit)).await;
        let shown = partition.published();
        let known = position(&partition, version).epoch;
        let at = format!("{}:{epoch}:{version}", partition.id());
        let finish: Finish<E> = Box::new(move |conversation| {
            if shown < version {
                let text = format!("{at} is not shown here yet, version {shown} is");
                refuse_with(conversation, id, ErrorCode::NotYet, &text);
            } else if epoch != 0 && epoch != known {
                let text = format!("{at} is not in this history: version {version} belongs to epoch {known} here");
                refuse_with(conversation, id, ErrorCode::Diverged, &text);
            } else {
                let text = position(&partition, shown).to_string();
                ok(conversation, id, &[text.as_bytes()]);
            }
        });
        finish
    }))
}

/// A hold at a position of this history, or from now on.
async fn hold<E: Env>(
    partition: &Partition<E>,
    name: &str,
    epoch: u64,
    version: Version,
    limit_bytes: u64,
) -> Result<Vec<u8>, Error> {
    let known = position(partition, version).epoch;
    if version != 0 && epoch != known {
        let text = format!("version {version} belongs to epoch {known} here, not to {epoch}");
        return Err(Error::Diverged(text));
    }
    let held = partition.hold(name, version, limit_bytes).await?;
    Ok(position(partition, held).to_string().into_bytes())
}

/// Looks a key up: within the open transaction, or as of now.
fn look<E: Env>(conversation: &mut Conversation<E>, partition: &Partition<E>, key: &[u8]) -> Result<Lookup<E>, Error> {
    partition.check_readable()?;
    match &mut conversation.transaction {
        Some(transaction) => partition.get(transaction, key),
        None => Ok(partition.get_at(conversation.ahead.snapshot(partition), key)),
    }
}

fn get<E: Env>(conversation: &mut Conversation<E>, partition: &Partition<E>, id: u32, key: &[u8]) -> Outcome<E> {
    match look(conversation, partition, key) {
        Ok(Lookup::Found(found)) => {
            if found.len() > FREE
                && let Err(error) = conversation.may_hold(found.len())
            {
                refuse(conversation, id, &error);
            } else {
                value(conversation, id, Some(&found));
            }
        }
        Ok(Lookup::Absent) => value(conversation, id, None),
        Ok(Lookup::Cold(cold)) => return get_cold(conversation, partition, id, key, cold),
        Err(error) => refuse(conversation, id, &error),
    }
    Outcome::Done
}

/// Apart from what memory answers, which pays for no more than it needs.
#[cold]
#[inline(never)]
fn get_cold<E: Env>(
    conversation: &mut Conversation<E>,
    partition: &Partition<E>,
    id: u32,
    key: &[u8],
    cold: Cold<E>,
) -> Outcome<E> {
    let (again, sight) = (alone(conversation, partition, &[key]), conversation.sight());
    let mut reply = Reply::new(conversation.memory.budget());
    Outcome::Later(Box::pin(async move {
        let answer = match (cold.fetch_if(|bytes| reply.grow(bytes)).await, again) {
            (Err(Error::SnapshotTooOld), Some(again)) => {
                again.read(&mut reply).await.map(|values| values.into_iter().next().flatten())
            }
            (answer, _) => answer,
        };
        let finish: Finish<E> = Box::new(move |conversation| {
            // From here on the conversation holds it.
            drop(reply);
            match answer {
                Ok(found) => {
                    let dialect = conversation.session.dialect;
                    conversation.reply_later(sight, id, |out| encode_value(dialect, id, found.as_deref(), out));
                }
                Err(error) => refuse(conversation, id, &error),
            }
        });
        finish
    }))
}

fn get_many<E: Env>(
    conversation: &mut Conversation<E>,
    partition: &Partition<E>,
    id: u32,
    keys: &[&[u8]],
) -> Outcome<E> {
    let mut found = Vec::with_capacity(keys.len());
    for key in keys {
        match look(conversation, partition, key) {
            Ok(lookup) => found.push(lookup),
            Err(error) => {
                refuse(conversation, id, &error);
                return Outcome::Done;
            }
        }
    }
    let (again, sight) = (alone(conversation, partition, keys), conversation.sight());
    let mut held = Reply::new(conversation.memory.budget());
    Outcome::Later(Box::pin(async move {
        let answer = match (fetch_all(found, &mut held).await, again) {
            (Err(Error::SnapshotTooOld), Some(again)) => again.read(&mut held).await,
            (answer, _) => answer,
        };
        let finish: Finish<E> = Box::new(move |conversation| {
            // From here on the conversation holds it.
            drop(held);
            match answer {
                Ok(values) => {
                    let dialect = conversation.session.dialect;
                    conversation.reply_later(sight, id, |out| reply::encode_mget(dialect, id, &values, out));
                }
                Err(error) => refuse(conversation, id, &error),
            }
        });
        finish
    }))
}

/// A read outside any transaction: it has no snapshot to be true to, so one that was given up is replaced by a new one.
struct Alone<E: Env> {
    partition: Partition<E>,
    ahead: RunAhead,
    keys: Vec<Vec<u8>>,
}

fn alone<E: Env>(conversation: &Conversation<E>, partition: &Partition<E>, keys: &[&[u8]]) -> Option<Alone<E>> {
    let keys = || keys.iter().map(|key| key.to_vec()).collect();
    let outside = conversation.transaction.is_none();
    outside.then(|| Alone { partition: partition.clone(), ahead: conversation.ahead, keys: keys() })
}

impl<E: Env> Alone<E> {
    async fn read(self, reply: &mut Reply) -> Result<Vec<Option<Value>>, Error> {
        const TRIES: u32 = 5;
        for _ in 0..TRIES {
            let snapshot = self.ahead.snapshot(&self.partition);
            let lookups = self.keys.iter().map(|key| self.partition.get_at(snapshot, key)).collect();
            match fetch_all(lookups, reply).await {
                Err(Error::SnapshotTooOld) => {}
                answer => return answer,
            }
        }
        Err(Error::SnapshotTooOld)
    }
}

/// The values of a reply that is being made.
pub(super) struct Reply {
    part: Part,
    bytes: usize,
}

impl Reply {
    pub(super) fn new(budget: &Arc<Budget>) -> Reply {
        Reply { part: Part::new(budget), bytes: 0 }
    }

    /// A value of so many bytes is to come.
    fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        self.bytes += bytes;
        if self.bytes > REPLY_MAX {
            return Err(Error::TooMuchAtOnce { limit: REPLY_MAX });
        }
        if !self.part.try_reach(self.bytes) {
            self.part.budget().count_refused();
            return Err(Error::MemoryShort { limit: self.part.budget().limit() });
        }
        Ok(())
    }

    /// What a look-up finds, if need be on the disk.
    pub(super) async fn fetch<E: Env>(&mut self, lookup: Lookup<E>) -> Result<Option<Value>, Error> {
        match lookup {
            Lookup::Found(value) => self.grow(value.len()).map(|()| Some(value)),
            Lookup::Absent => Ok(None),
            Lookup::Cold(cold) => cold.fetch_if(|bytes| self.grow(bytes)).await,
        }
    }

    /// A value is needed no more.
    pub(super) fn forget(&mut self) {
        self.bytes = 0;
        self.part.set(0);
    }
}

async fn fetch_all<E: Env>(lookups: Vec<Lookup<E>>, reply: &mut Reply) -> Result<Vec<Option<Value>>, Error> {
    reply.forget();
    let mut values = Vec::with_capacity(lookups.len());
    for lookup in lookups {
        values.push(reply.fetch(lookup).await?);
    }
    Ok(values)
}

/// A transaction of one request: it takes its snapshot at its own prepare.
pub(super) fn autocommit<E: Env>(partition: &Partition<E>, ahead: RunAhead) -> Transaction {
    let mut transaction = partition.begin(ahead.snapshot(partition));
    transaction.late = true;
    transaction
}

fn write_one<E: Env>(
    conversation: &mut Conversation<E>,
    partition: &Partition<E>,
    id: u32,
    key: &[u8],
    one: Write,
) -> Outcome<E> {
    if conversation.transaction.is_none() {
        match partition.write_alone(key, &one) {
            Some(Ok(version)) => {
                committed(conversation, partition, id, version);
                return Outcome::Done;
            }
            Some(Err(error)) => {
                refuse(conversation, id, &error);
                return Outcome::Done;
            }
            // Something must be waited for.
            None => {}
        }
    }
    write(conversation, partition, id, vec![(key, one)])
}

fn length_of(write: &Write) -> usize {
    if let Write::Set(value) = write { value.len() } else { 0 }
}

fn write<E: Env>(
    conversation: &mut Conversation<E>,
    partition: &Partition<E>,
    id: u32,
    writes: Vec<(&[u8], Write)>,
) -> Outcome<E> {
    let alone = conversation.transaction.is_none();
    if !alone
        && let Err(error) = conversation.may_hold(writes.iter().map(|(key, write)| key.len() + length_of(write)).sum())
    {
        refuse(conversation, id, &error);
        return Outcome::Done;
    }
    let mut transaction = conversation.transaction.take().unwrap_or_else(|| autocommit(partition, conversation.ahead));
    // All or nothing: a later pair may break a limit that the earlier ones do not.
    let before = (!alone && writes.len() > 1).then(|| transaction.mark(writes.iter().map(|(key, _)| *key)));
    for (key, write) in writes {
        if let Err(error) = partition.write(&mut transaction, key, write) {
            if let Some(before) = before {
                transaction.restore(before);
            }
            refuse(conversation, id, &error);
            if !alone {
                conversation.transaction = Some(transaction);
            }
            return Outcome::Done;
        }
    }
    if alone {
        return submit(conversation, partition, id, transaction);
    }
    conversation.transaction = Some(transaction);
    ok(conversation, id, &[]);
    Outcome::Done
}

fn delete_many<E: Env>(
    conversation: &mut Conversation<E>,
    partition: &Partition<E>,
    id: u32,
    keys: &[&[u8]],
) -> Outcome<E> {
    if let Err(error) = partition.check_readable() {
        refuse(conversation, id, &error);
        return Outcome::Done;
    }
    let (alone, sight) = (conversation.transaction.is_none(), conversation.sight());
    let mut transaction = conversation.transaction.take().unwrap_or_else(|| autocommit(partition, conversation.ahead));
    let mut lookups = Vec::with_capacity(keys.len());
    let mut refused = None;
    let before = transaction.mark(keys.iter().copied());
    let mut seen = std::collections::BTreeSet::new();
    for key in keys {
        let looked = partition.get(&mut transaction, key);
        // A key that is named twice exists once.
        let step = looked.and_then(|l| {
            if seen.insert(*key) {
                lookups.push(l);
            }
            partition.write(&mut transaction, key, Write::Delete)
        });
        if let Err(error) = step {
            refused = Some(error);
            break;
        }
    }
    if let Some(error) = refused {
        refuse(conversation, id, &error);
        if !alone {
            transaction.restore(before);
            conversation.transaction = Some(transaction);
        }
        return Outcome::Done;
    }
    let partition = partition.clone();
    let mut held = Reply::new(conversation.memory.budget());
    Outcome::Later(Box::pin(async move {
        let counted = fetch_all(lookups, &mut held).await.map(|values| values.iter().flatten().count() as u32);
        let (outcome, transaction) = match counted {
            Ok(count) if alone => {
                let ticket = partition.submit(transaction);
                (ticket.prepared().await.map(|version| (count, Some(version))), None)
            }
            Ok(count) => (Ok((count, None)), Some(transaction)),
            Err(error) if alone => (Err(error), None),
            Err(error) => {
                // What could not be counted is not deleted either; the transaction goes on.
                transaction.restore(before);
                (Err(error), Some(transaction))
            }
        };
        let finish: Finish<E> = Box::new(move |conversation| {
            let dialect = conversation.session.dialect;
            if let Some(transaction) = transaction {
                conversation.take_back(transaction, sight);
            }
            match outcome {
                Ok((count, version)) => {
                    if let Some(version) = version {
                        conversation.ahead.prepared(version);
                    }
                    let position = version.map(|version| position(&partition, version));
                    let encode = |out: &mut Vec<u8>| reply::encode_deleted(dialect, id, count, position, out);
                    // The count tells what was there, and the outcome is that of the deletion.
                    conversation.reply_later(version.map_or(sight, |version| sight.including(version)), id, encode);
                }
                Err(error) => refuse(conversation, id, &error),
            }
        });
        finish
    }))
}

fn submit<E: Env>(
    conversation: &mut Conversation<E>,
    partition: &Partition<E>,
    id: u32,
    transaction: Transaction,
) -> Outcome<E> {
    let ticket = partition.submit(transaction);
    match ticket.progress() {
        Progress::Prepared(version) => committed(conversation, partition, id, version),
        Progress::Refused(error) => refuse(conversation, id, &error),
        Progress::Reserving | Progress::Entering(_) => {
            let partition = partition.clone();
            return Outcome::Later(Box::pin(async move {
                let answer = ticket.prepared().await;
                let finish: Finish<E> = Box::new(move |conversation| match answer {
                    Ok(version) => committed(conversation, &partition, id, version),
                    Err(error) => refuse(conversation, id, &error),
                });
                finish
            }));
        }
    }
    Outcome::Done
}

pub(super) fn committed<E: Env>(
    conversation: &mut Conversation<E>,
    partition: &Partition<E>,
    id: u32,
    version: Version,
) {
    conversation.ahead.prepared(version);
    let (dialect, at) = (conversation.session.dialect, position(partition, version));
    conversation.reply(|out| reply::encode_committed(dialect, id, at, out));
}

/// The answer to a question about the node.
pub fn answer_node<E: Env>(conversation: &mut Conversation<E>, question: NodeQuestion, node: &system::NodeView) {
    let dialect: Dialect = conversation.session.dialect;
    match question {
        NodeQuestion::Stat { id } => ok(conversation, id, &[node.json().as_bytes()]),
        NodeQuestion::StatOf { id, partition } => {
            let key = format!("partition/{partition}");
            ok(conversation, id, &[&node.get(key.as_bytes()).unwrap_or_default()]);
        }
        NodeQuestion::Get { id, keys, many } => {
            let values: Vec<Option<Vec<u8>>> = keys.iter().map(|key| node.get(key)).collect();
            if many {
                conversation.reply(|out| reply::encode_mget(dialect, id, &values, out));
            } else {
                value(conversation, id, values.first().and_then(|v| v.as_deref()));
            }
        }
    }
}
