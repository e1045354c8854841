//! Clients that use a node's partition directly: they write where they are let, and read anywhere. [`super::session`] has those
//! that speak the protocol.

use super::features::Feature;
use super::history::{Ack, Read, Writes};
use super::{KEYS, Run, is_safe};
use crate::model::{KeyNumber, key_bytes};
use crate::sim::SimEnv;
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::leadership::Role;
use turnstone_engine::types::CommitPosition;
use turnstone_engine::{Error, Lookup, Partition, Write};

/// A client: writes where it is let, and reads anywhere.
pub async fn use_it(run: Rc<Run>, client: u32) {
    let (cluster, world) = (run.cluster.clone(), run.cluster.world.clone());
    let mut leader = 0;
    while !run.over.get() && cluster.failure.borrow().is_none() {
        world.sleep(Duration::from_millis(1 + world.rng.below(60))).await;
        if world.rng.percent(30) {
            read(&run, world.rng.below(cluster.len() as u64) as usize).await;
            continue;
        }
        let joined = run.orders.joined[leader].get();
        let Some(partition) = cluster.partition(leader).filter(|p| joined && p.writable()) else {
            leader = world.rng.below(cluster.len() as u64) as usize;
            continue;
        };
        if world.rng.percent(1) {
            flush(&run, leader, partition).await;
        } else {
            write(&run, client, leader, partition).await;
        }
    }
    run.clients.set(run.clients.get() - 1);
}

async fn read(run: &Rc<Run>, node: usize) {
    let Some(partition) = run.cluster.partition(node).filter(|_| run.orders.joined[node].get()) else { return };
    let key = run.cluster.world.rng.below(u64::from(KEYS)) as KeyNumber;
    let (safe, floor) = (is_safe(run, node), run.told.borrow().floor(node));
    let answer = run.on_node(node, async move {
        partition.check_readable().ok()?;
        let at = partition.published();
        let epoch = partition.position(at).epoch;
        let value = match partition.get_at(at, &key_bytes(key)) {
            Lookup::Found(value) => Some(value.to_vec()),
            Lookup::Absent => None,
            Lookup::Cold(cold) => cold.fetch().await.ok()?.map(|value| value.to_vec()),
        };
        Some((at, epoch, value))
    });
    let Some(Some((version, epoch, value))) = answer.await else { return };
    let lossy = run.orders.losses.borrow().any();
    if version < floor && run.cluster.features.has(Feature::MonotonicReads) && !lossy {
        run.cluster.fail(format!(
            "reads at node {node} go back: version {floor} was told, and a read that came behind it saw version {version}"
        ));
    }
    run.told.borrow_mut().read(Read { version, epoch, key, value, node, safe, at: run.cluster.world.now() });
}

async fn flush(run: &Rc<Run>, node: usize, partition: Partition<SimEnv>) {
    if partition.role() == Role::SteppedDown {
        run.orders.flushes(node);
    }
    match run.on_node(node, async move { partition.flush_all().await }).await {
        Some(Ok(at)) => acknowledge(run, at, node, None),
        _ => run.told.borrow_mut().unknown += 1,
    }
}

/// A node acknowledged a commit.
fn acknowledge(run: &Run, at: CommitPosition, node: usize, writes: Option<Writes>) {
    let (safe, now) = (is_safe(run, node), run.cluster.world.now());
    let ack = Ack { version: at.version, epoch: at.epoch, writes, node, safe, at: now };
    run.check_ack(run.told.borrow_mut().ack(ack, run.orders.losses.borrow().any()));
}

fn some_writes(run: &Run, client: u32) -> Writes {
    let rng = &run.cluster.world.rng;
    let mut writes = Writes::new();
    for _ in 0..1 + rng.below(3) {
        let key = rng.below(u64::from(KEYS)) as KeyNumber;
        if writes.iter().any(|(k, _)| *k == key) {
            continue;
        }
        run.next.set(run.next.get() + 1);
        let mut value = format!("client {client} wrote {}", run.next.get()).into_bytes();
        if rng.percent(10) {
            value.resize(600 + rng.below(2000) as usize, b'.');
        }
        if run.cluster.features.has(Feature::SlowLinks) && rng.percent(1) {
            value.resize(50_000 + rng.below(100_000) as usize, b'.');
        }
        writes.push((key, (!rng.percent(15)).then_some(value)));
    }
    writes
}

async fn write(run: &Rc<Run>, client: u32, node: usize, partition: Partition<SimEnv>) {
    let writes = some_writes(run, client);
    let todo = writes.clone();
    let outcome = run.on_node(node, async move {
        let mut transaction = partition.begin(partition.published());
        transaction.late = true;
        for (key, value) in todo {
            let write = value.map_or(Write::Delete, |value| Write::Set(value.as_slice().into()));
            partition.write(&mut transaction, &key_bytes(key), write)?;
        }
        let version = partition.submit(transaction).prepared().await?;
        let at = partition.position(version);
        partition.wait_outcome(version).await?;
        Ok::<_, Error>(at)
    });
    match outcome.await {
        Some(Ok(at)) => acknowledge(run, at, node, Some(writes)),
        Some(Err(Error::UnknownOutcome(_))) | None => run.told.borrow_mut().unknown += 1,
        Some(Err(_)) => run.told.borrow_mut().refused += 1,
    }
}
