//! Requests of many keys, in pieces between which the core does other things.
//!
//! The conversation waits meanwhile. What it lends (its transaction) comes back with the answer. An error in the shape of the
//! payload is found before anything is done: the first walk does nothing but look.

use super::conversation::{Conversation, Sight};
use super::execute::{Finish, Outcome, Reply, autocommit, committed, ok, partition_of, position, refuse, refuse_with};
use super::input::Cut;
use crate::wire::reply::{self, LongMGet};
use crate::wire::{Dialect, Item, Items, Opcode, WireError};
use std::sync::Arc;
use turnstone_engine::budget::Budget;
use turnstone_engine::env::Env;
use turnstone_engine::txn::WritesBefore;
use turnstone_engine::types::Version;
use turnstone_engine::{Error, Partition, RunAhead, TOGETHER, Transaction, Write, warm};

/// Keys that are worked on at once.
const PIECE: usize = 128;
/// Items whose shape is looked at at once.
const LIGHT_PIECE: usize = 4096;

/// A request that is being run.
struct Long<E: Env> {
    partition: Partition<E>,
    id: u32,
    dialect: Dialect,
    opcode: Opcode,
    payload: Cut,
    sight: Sight,
    ahead: RunAhead,
    budget: Arc<Budget>,
}

/// Why one is refused.
enum Refused {
    Shape(WireError),
    Engine(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Refused {
        Refused::Engine(error)
    }
}

/// Runs a request that the session let through.
pub fn execute<E: Env>(conversation: &mut Conversation<E>, id: u32, opcode: Opcode, payload: Cut) -> Outcome<E> {
    let Some(partition) = partition_of(conversation, id) else { return Outcome::Done };
    if opcode != Opcode::MSet
        && let Err(error) = partition.check_readable()
    {
        refuse(conversation, id, &error);
        return Outcome::Done;
    }
    let long = Long {
        partition,
        id,
        dialect: conversation.session.dialect,
        opcode,
        payload,
        sight: conversation.sight(),
        ahead: conversation.ahead,
        budget: conversation.memory.budget().clone(),
    };
    let transaction = conversation.transaction.take();
    Outcome::Later(Box::pin(async move {
        match opcode {
            Opcode::MGet => long.get(transaction).await,
            Opcode::MSet => long.set(transaction).await,
            _ => long.delete(transaction).await,
        }
    }))
}

impl<E: Env> Long<E> {
    fn items(&self) -> Result<Items<'_>, Refused> {
        Items::of(self.opcode, self.payload.bytes()).map_err(Refused::Shape)
    }

    async fn give_way(&self) {
        self.partition.env().give_way().await;
    }

    /// Looks at the payload's shape; answers how many items it has.
    async fn check(&self) -> Result<usize, Refused> {
        let mut items = self.items()?;
        let count = items.left();
        loop {
            for _ in 0..LIGHT_PIECE {
                if items.next_item().map_err(Refused::Shape)?.is_none() {
                    return Ok(count);
                }
            }
            self.give_way().await;
        }
    }

    /// The next items.
    fn piece<'a>(&self, items: &mut Items<'a>) -> Vec<Item<'a>> {
        let mut piece = Vec::with_capacity(PIECE);
        while piece.len() < PIECE
            && let Ok(Some(item)) = items.next_item()
        {
            piece.push(item);
        }
        piece
    }

    /// What memory knows of up to [`TOGETHER`] keys is fetched at the same time.
    fn warm(&self, keys: &[Item<'_>]) {
        warm(keys.iter().map(|(key, _)| (&self.partition, *key)));
    }

    /// What ends it without an answer of its own.
    fn refuse(self, refused: Refused, transaction: Option<Transaction>) -> Finish<E> {
        Box::new(move |conversation| {
            if let Some(transaction) = transaction {
                conversation.take_back(transaction, self.sight);
            }
            match refused {
                Refused::Shape(error) => {
                    refuse_with(conversation, self.id, error.code, &error.text);
                    conversation.malformed = Some(error);
                }
                Refused::Engine(error) => refuse(conversation, self.id, &error),
            }
        })
    }

    fn refuse_writes(self, refused: Refused, mut transaction: Transaction, alone: bool) -> Finish<E> {
        if !alone {
            return self.refuse(refused, Some(transaction));
        }
        self.partition.end_transaction(&mut transaction);
        self.refuse(refused, None)
    }

    // ---- MGet ----

    async fn get(self, mut transaction: Option<Transaction>) -> Finish<E> {
        /// Outside a transaction there is no snapshot to be true to: one that was given up is replaced so often.
        const TRIES: u32 = 5;
        let mut held = Reply::new(&self.budget);
        let mut answer = self.read(transaction.as_mut(), &mut held).await;
        for _ in 1..TRIES {
            if transaction.is_some() || !matches!(answer, Err(Refused::Engine(Error::SnapshotTooOld))) {
                break;
            }
            answer = self.read(None, &mut held).await;
        }
        match answer {
            Err(refused) => self.refuse(refused, transaction),
            Ok(bytes) => Box::new(move |conversation| {
                if let Some(transaction) = transaction {
                    conversation.take_back(transaction, self.sight);
                }
                conversation.reply_long(self.sight, self.id, bytes);
                drop(held);
            }),
        }
    }

    async fn read(&self, mut transaction: Option<&mut Transaction>, held: &mut Reply) -> Result<Vec<Vec<u8>>, Refused> {
        held.forget();
        let count = self.check().await?;
        let mut items = self.items()?;
        let mut reply = LongMGet::begin(self.dialect, self.id, count);
        // All of it is of one snapshot.
        let snapshot = self.partition.begin(self.ahead.snapshot(&self.partition));
        while items.left() > 0 {
            let piece = self.piece(&mut items);
            for keys in piece.chunks(TOGETHER) {
                self.warm(keys);
                for (key, _) in keys {
                    let lookup = match &mut transaction {
                        Some(transaction) => self.partition.get(transaction, key)?,
                        None => {
                            // Outside a transaction nothing is too old, but its snapshot may be given up.
                            if snapshot.snapshot.given_up() {
                                return Err(Error::SnapshotTooOld.into());
                            }
                            self.partition.get_at(snapshot.snapshot.version(), key)
                        }
                    };
                    let value = held.fetch(lookup).await?;
                    reply.push(value.as_deref());
                }
            }
            self.give_way().await;
        }
        Ok(reply.finish())
    }

    // ---- MSet ----

    async fn set(self, lent: Option<Transaction>) -> Finish<E> {
        let alone = lent.is_none();
        let mut transaction = lent.unwrap_or_else(|| autocommit(&self.partition, self.ahead));
        if let Err(refused) = self.write_all(&mut transaction, alone).await {
            return self.refuse_writes(refused, transaction, alone);
        }
        if alone {
            return self.commit(transaction, None).await;
        }
        Box::new(move |conversation| {
            conversation.take_back(transaction, self.sight);
            ok(conversation, self.id, &[]);
        })
    }

    async fn write_all(&self, transaction: &mut Transaction, alone: bool) -> Result<(), Refused> {
        self.check().await?;
        // All or nothing: a later pair may break a limit that the earlier ones do not.
        let before = if alone { None } else { Some(self.mark(transaction).await?) };
        let mut items = self.items()?;
        while items.left() > 0 {
            for (key, value) in self.piece(&mut items) {
                if let Err(error) = self.partition.write(transaction, key, Write::Set(value.into())) {
                    if let Some(before) = before {
                        self.restore(transaction, before).await;
                    }
                    return Err(error.into());
                }
            }
            self.give_way().await;
        }
        if let Some(before) = before {
            self.free(before).await;
        }
        Ok(())
    }

    // ---- MDel ----

    async fn delete(self, lent: Option<Transaction>) -> Finish<E> {
        let alone = lent.is_none();
        let mut transaction = lent.unwrap_or_else(|| autocommit(&self.partition, self.ahead));
        let count = match self.delete_all(&mut transaction, alone).await {
            Ok(count) => count,
            Err(refused) => return self.refuse_writes(refused, transaction, alone),
        };
        if alone {
            return self.commit(transaction, Some(count)).await;
        }
        Box::new(move |conversation| {
            conversation.take_back(transaction, self.sight);
            let encode = |out: &mut Vec<u8>| reply::encode_deleted(self.dialect, self.id, count, None, out);
            conversation.reply_later(self.sight, self.id, encode);
        })
    }

    /// Deletes all that are named, and counts those that were there.
    async fn delete_all(&self, transaction: &mut Transaction, alone: bool) -> Result<u32, Refused> {
        self.check().await?;
        let before = if alone { None } else { Some(self.mark(transaction).await?) };
        match self.count_and_delete(transaction).await {
            Ok(count) => {
                if let Some(before) = before {
                    self.free(before).await;
                }
                Ok(count)
            }
            Err(error) => {
                if let Some(before) = before {
                    self.restore(transaction, before).await;
                }
                Err(error.into())
            }
        }
    }

    async fn count_and_delete(&self, transaction: &mut Transaction) -> Result<u32, Error> {
        let (mut count, Ok(mut items)) = (0, self.items()) else { return Ok(0) };
        let mut held = Reply::new(&self.budget);
        while items.left() > 0 {
            let piece = self.piece(&mut items);
            for keys in piece.chunks(TOGETHER) {
                self.warm(keys);
                for (key, _) in keys {
                    // A key that is named twice is not there the second time.
                    let lookup = self.partition.get(transaction, key)?;
                    count += u32::from(held.fetch(lookup).await?.is_some());
                    held.forget();
                    self.partition.write(transaction, key, Write::Delete)?;
                }
            }
            self.give_way().await;
        }
        Ok(count)
    }

    // ---- for both ----

    /// A transaction of this request alone; `deleted` is what is told of an MDel.
    async fn commit(self, transaction: Transaction, deleted: Option<u32>) -> Finish<E> {
        let outcome = self.partition.submit(transaction).prepared().await;
        Box::new(move |conversation| match (outcome, deleted) {
            (Ok(version), None) => committed(conversation, &self.partition, self.id, version),
            (Ok(version), Some(count)) => self.deleted(conversation, version, count),
            (Err(error), _) => refuse(conversation, self.id, &error),
        })
    }

    fn deleted(&self, conversation: &mut Conversation<E>, version: Version, count: u32) {
        conversation.ahead.prepared(version);
        let at = Some(position(&self.partition, version));
        let encode = |out: &mut Vec<u8>| reply::encode_deleted(self.dialect, self.id, count, at, out);
        // The count tells what was there, and the outcome is that of the deletion.
        conversation.reply_later(self.sight.including(version), self.id, encode);
    }

    /// What the transaction does to the keys so far.
    async fn mark(&self, transaction: &Transaction) -> Result<WritesBefore, Refused> {
        let mut items = self.items()?;
        let mut before = transaction.mark(std::iter::empty());
        while items.left() > 0 {
            let piece = self.piece(&mut items);
            before.add(transaction, piece.iter().map(|(key, _)| *key));
            self.give_way().await;
        }
        Ok(before)
    }

    async fn restore(&self, transaction: &mut Transaction, mut before: WritesBefore) {
        while !before.is_empty() {
            transaction.restore_some(&mut before, PIECE);
            self.give_way().await;
        }
        transaction.restore(before);
    }

    async fn free(&self, mut before: WritesBefore) {
        while !before.is_empty() {
            before.forget_some(PIECE);
            self.give_way().await;
        }
    }
}
