//! Transactions of many keys: the same steps as for any other, in pieces between which the core does other things.
//!
//! Nothing else is prepared meanwhile: the `slow_gate` is held, and the partition is paused. So what the conflict check found stays
//! true, and the version that the batch is built for is the next one. It is handed to the log before all of its changes are in the
//! overlay; until they are, `Core::entering` keeps it from being published, and checkpoints from freezing half of it.

use super::plan::{Plan, Planner};
use super::{Content, Pause, TOGETHER, Ticket, enter, push_batch, reserve_and_prepare, told_conflict, warm};
use crate::env::{Env, Sabotage};
use crate::error::Error;
use crate::partition::{Core, Partition};
use crate::stats::add;
use crate::sync::Pass;
use crate::txn::writes::Writes;
use crate::txn::{Transaction, conflict_among};
use crate::types::{Entry, Key, ValuePointer, Version};
use crate::wal::body::Builder;
use std::rc::Rc;

/// Plans, reserves and prepares.
pub(super) async fn commit<E: Env>(
    core: &Rc<Core<E>>,
    mut transaction: Transaction,
    writes: Writes,
    ticket: &Ticket,
) -> Result<Version, Error> {
    let at_once = core.settings.keys_at_once;
    let mut planner = Planner::new(writes.len(), core.settings.value_separation);
    let mut writes = writes.into_sorted();
    while writes.size_hint().0 > 0 {
        writes.by_ref().take(at_once).for_each(|write| planner.add(write));
        core.env.give_way().await;
    }
    let mut plan = planner.plan();
    let outcome = reserve_and_prepare(core, &transaction, &mut plan, Some(ticket)).await;
    let (env, mut entries) = (core.env.clone(), std::mem::take(&mut plan.entries));
    core.env.spawn(async move {
        while !entries.is_empty() {
            entries.truncate(entries.len().saturating_sub(at_once));
            env.give_way().await;
        }
    });
    let_go(core, &mut transaction);
    outcome
}

/// Frees what a transaction holds, in pieces if it is much.
pub(crate) fn let_go<E: Env>(core: &Core<E>, transaction: &mut Transaction) {
    let (mut reads, writes) = transaction.forget();
    let at_once = core.settings.keys_at_once;
    if reads.len() + writes.len() <= at_once {
        return;
    }
    let env = core.env.clone();
    core.env.spawn(async move {
        let mut writes = writes.into_sorted();
        while writes.size_hint().0 > 0 {
            writes.by_ref().take(at_once).for_each(drop);
            env.give_way().await;
        }
        while !reads.is_empty() {
            (0..at_once).for_each(|_| drop(reads.pop_first()));
            env.give_way().await;
        }
    });
}

/// Prepares what is reserved; `_turn` is the `slow_gate`'s. It asks whether it still may, and tells the version that it takes. A
/// refusal gives the reservation back.
pub(super) async fn prepare<E: Env>(
    core: &Rc<Core<E>>,
    transaction: &Transaction,
    plan: &mut Plan,
    pointers: &[ValuePointer],
    _turn: Pass,
    (may_prepare, entering): (impl Fn() -> Result<(), Error>, impl Fn(Version)),
) -> Result<Version, Error> {
    let _pause = Pause::begin(core);
    let cost = plan.cost;
    let refuse = |error| {
        core.wal().release(cost);
        Err(error)
    };
    if let Some(error) = find_conflict(core, transaction, plan).await {
        return refuse(told_conflict(core, error));
    }
    let version = core.prepared.get() + 1;
    let body = build(core, version, plan, pointers).await;
    if let Err(error) = may_prepare() {
        return refuse(error);
    }
    assert_eq!(version, core.prepared.get() + 1, "nothing is prepared while the partition is paused");
    core.prepared.set(version);
    core.entering.set(Some(version));
    entering(version);
    let pointers = pointers.iter().map(|p| (p.file, p.offset)).collect();
    push_batch(core, Content::Growing(body), version, pointers, cost);
    add(&core.stats.commits, 1);
    let changes = std::mem::take(&mut plan.entries).into_iter();
    enter_in_pieces(core, version, changes.map(|(key, entry)| (version, key, entry))).await;
    Ok(version)
}

async fn find_conflict<E: Env>(core: &Core<E>, transaction: &Transaction, plan: &Plan) -> Option<Error> {
    let sabotage = core.env.sabotage();
    let hidden_above = (sabotage == Some(Sabotage::PendingNotChecked)).then(|| core.published.get());
    let snapshot = transaction.snapshot.version();
    let among = |keys: &[&Key]| conflict_among(&core.overlay.borrow(), snapshot, keys.iter().copied(), hidden_above);
    let written = plan.entries.iter().map(|(key, _)| key).filter(|_| !transaction.late);
    let read = transaction.reads.iter().filter(|_| sabotage != Some(Sabotage::ReadCheckSkipped));
    let mut keys = written.chain(read);
    loop {
        let piece: Vec<&Key> = keys.by_ref().take(core.settings.keys_at_once).collect();
        if piece.is_empty() {
            return None;
        }
        if let Some(error) = among(&piece) {
            return Some(error);
        }
        core.env.give_way().await;
    }
}

/// The batch's body; large values get their places.
async fn build<E: Env>(core: &Core<E>, version: Version, plan: &mut Plan, pointers: &[ValuePointer]) -> Builder {
    let epoch = core.manifest.get().epoch_of(version);
    let mut body = Builder::new(epoch, version, Vec::with_capacity(plan.cost as usize));
    let mut places = pointers.iter();
    body.begin(plan.entries.len());
    for piece in plan.entries.chunks_mut(core.settings.keys_at_once) {
        for (key, entry) in piece {
            if let Entry::Pointer(pointer) = entry {
                match places.next() {
                    Some(place) => *pointer = *place,
                    None => unreachable!("every large value was written before its prepare"),
                }
            }
            body.put(key, entry);
        }
        core.env.give_way().await;
    }
    body
}

/// Versions from `first` on enter the overlay, in this order, and are published when all are there. The caller holds the `slow_gate`.
pub(crate) async fn enter_in_pieces<E: Env>(
    core: &Rc<Core<E>>,
    first: Version,
    mut changes: impl Iterator<Item = (Version, Key, Entry)>,
) {
    core.entering.set(Some(first));
    let partition = Partition(core.clone());
    let (mut piece, mut since) = (Vec::with_capacity(TOGETHER), 0);
    loop {
        piece.extend(changes.by_ref().take(TOGETHER));
        if piece.is_empty() {
            break;
        }
        warm(piece.iter().map(|(_, key, _): &(Version, Key, Entry)| (&partition, &**key)));
        since += piece.len();
        piece.drain(..).for_each(|(version, key, entry)| enter(core, &key, version, entry));
        if since >= core.settings.keys_at_once {
            since = 0;
            core.env.give_way().await;
        }
    }
    core.entering.set(None);
    core.publish();
}
