//! What lasts while other things fail: streams, copies and commits while one member is away, space while the index refuses.

use super::features::Feature;
use super::node::{Cluster, PARTITION, read_log};
use super::orders::upstream_of;
use super::{RECOVERY, Run, describe, faults, lend_a_hand, mix};
use crate::sim::SimEnv;
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::wal::body::{Body, Operation};
use turnstone_engine::{Error, Partition};

/// Streams are counted for so long.
const CALM: Duration = Duration::from_secs(8);
/// A value file's space is given out in pieces of so many bytes.
const BLOCK: u64 = 4096;
/// Bytes beyond what is due that a value log may grow by: what was on its way when the count began.
const SLACK: u64 = 64 << 10;

/// Chooses a member that goes away, if the others have a quorum without it.
fn choose_the_dead(run: &Rc<Run>) -> Option<usize> {
    let cluster = &run.cluster;
    let all_in = (0..cluster.len()).all(|n| run.orders.joined[n].get()) && run.orders.forgotten.borrow().is_empty();
    if (0..cluster.len()).any(|n| cluster.partition(n).is_some_and(|p| p.leadership().learner)) {
        return None;
    }
    let leader = (0..cluster.len()).filter_map(|node| cluster.partition(node)).find(|p| p.leads())?;
    let records = leader.standing().members;
    // While a list is not in force yet, the one before it counts, too.
    let [record] = &records[..] else { return None };
    let (all, n) = (cluster.len(), record.members.min_replicas as usize);
    // The others must be enough to hold a commit, and to agree to a leader.
    let suffice = all_in && record.members.nodes.len() == all && n > 0 && all > n + 1;
    suffice.then(|| cluster.world.rng.below(all as u64) as usize)
}

/// Bytes of large values that may be pending where transactions are large.
const LARGE: u64 = 1 << 20;

fn is_in_step(run: &Run) -> bool {
    let cluster = &run.cluster;
    let alive = (0..cluster.len()).filter(|node| run.dead.get() != Some(*node));
    // After a crash a follower is turned away until its old connection is found dead.
    let streams = |node: usize| {
        let status = cluster.replication(node).and_then(|r| r.board.upstream(PARTITION));
        let follows = upstream_of(cluster, node).is_some_and(|upstream| cluster.running(upstream).is_some());
        cluster.partition(node).is_some_and(|p| p.leads())
            || (follows && status.is_some_and(|status| status.starts_with("streaming")))
    };
    if run.repair.busy.get() || !alive.clone().all(streams) {
        return false;
    }
    let parts: Vec<Option<Partition<SimEnv>>> = alive.map(|node| cluster.partition(node)).collect();
    let shown = |p: &Partition<SimEnv>| (p.published(), p.adopted());
    let mut all = parts.iter().map(|p| p.as_ref().map(shown));
    let Some(Some((version, epoch))) = all.next() else { return false };
    // A node that is a few commits behind is in step.
    all.all(|other| other.is_some_and(|(v, e)| e == epoch && v.abs_diff(version) <= 20))
        && parts.iter().flatten().any(|p| p.leads() && !p.is_quorum_missing())
}

/// With one member away all others get into step, and then no stream between them begins anew.
pub async fn last(run: &Rc<Run>) -> Result<(), String> {
    let (cluster, world) = (run.cluster.clone(), run.cluster.world.clone());
    if !cluster.features.has(Feature::DeadMember) || run.orders.losses.borrow().any() {
        return Ok(());
    }
    let mut began = world.now();
    let mut person = began;
    // Orders that are still being answered come to their end meanwhile.
    while !is_in_step(run) || world.now() < began + Duration::from_secs(2) {
        if cluster.failure.borrow().is_some() || world.now() > began + RECOVERY * 5 {
            return Ok(());
        }
        person = lend_a_hand(run, person);
        world.sleep(Duration::from_millis(20)).await;
    }
    let Some(dead) = choose_the_dead(run) else { return Ok(()) };
    faults::crash(run, dead);
    run.dead.set(Some(dead));
    began = world.now();
    while !is_in_step(run) {
        if cluster.failure.borrow().is_some() {
            return Ok(());
        }
        if world.now() > began + RECOVERY * 5 {
            return Err(format!(
                "with node {dead} away the others do not get into step within {:?}: {}",
                RECOVERY * 5,
                describe(run)
            ));
        }
        person = lend_a_hand(run, person);
        world.sleep(Duration::from_millis(20)).await;
    }
    // A stream that began a moment ago may still break.
    world.sleep(Duration::from_secs(2)).await;
    let count = |cluster: &Cluster| {
        let hellos = cluster.weather.hellos.borrow();
        hellos.iter().filter(|((from, to), _)| *from != dead && *to != dead).map(|(_, n)| n).sum::<u64>()
    };
    let before = count(&cluster);
    let acked = run.last_ack.get();
    world.sleep(CALM).await;
    let begun = count(&cluster) - before;
    if begun > 0 {
        return Err(format!(
            "with node {dead} away, and nothing else wrong, {begun} streams between the others began anew within {CALM:?}: {}",
            describe(run)
        ));
    }
    if run.last_ack.get() == acked {
        return Err(format!("with node {dead} away nothing is committed for {CALM:?}: {}", describe(run)));
    }
    cluster.start(dead);
    run.dead.set(None);
    Ok(())
}

/// Bytes of value files that versions need once.
fn value_bytes(log: &[Body]) -> u64 {
    let operations = log.iter().flat_map(|body| &body.transactions).flatten();
    let bytes = operations.map(|operation| match operation {
        Operation::Set(_, value) => value.len() as u64 + 64,
        Operation::SetLarge(_, length, _) => (u64::from(*length) + 64).next_multiple_of(BLOCK) + BLOCK,
        _ => 0,
    });
    bytes.sum()
}

/// A node's index takes no ingestion for a while. Meanwhile its value files may grow by what commits bring, and by no copy of it.
pub fn refuse_ingestion(run: &Rc<Run>, node: usize) {
    let (cluster, world) = (run.cluster.clone(), run.cluster.world.clone());
    let (Some(index), Some(partition)) = (cluster.index(node), cluster.partition(node)) else { return };
    // Drawn apart, so that seeds stay what they were.
    let behind = mix(world.now().as_nanos() as u64).is_multiple_of(2);
    if behind {
        index.fall_behind(true)
    } else {
        index.refuse(true)
    }
    let (used, mark) = (partition.status().value_used_bytes, partition.settled());
    let pause = Duration::from_secs(10 + world.rng.below(20));
    let run = run.clone();
    world.clone().spawn_for(Cluster::owner(node), async move {
        world.sleep(pause).await;
        index.refuse(false);
        index.fall_behind(false);
        if partition.is_closed() || partition.settled() != mark {
            return;
        }
        let grown = partition.status().value_used_bytes - used;
        // A partition that is closed meanwhile ends the count.
        let Ok(log) = read_log(&partition, mark + 1).await else { return };
        // Large values lie in files before their commits are published.
        let pending = if run.cluster.features.has(Feature::SlowLinks) { LARGE } else { 0 };
        let due = 2 * value_bytes(&log) + SLACK + pending;
        if grown > due {
            run.cluster.fail(format!(
                "while the index of node {node} took no ingestion for {pause:?} its value files grew by {grown} bytes, at most \
                 {due} are due"
            ));
        }
    });
}

/// Holds of a partition are made and released, many at once.
pub fn hold_and_release(run: &Rc<Run>, node: usize) {
    let (cluster, world) = (&run.cluster, run.cluster.world.clone());
    let Some(partition) = cluster.partition(node) else { return };
    for number in 0..4 + world.rng.below(20) {
        let (partition, release) = (partition.clone(), world.rng.percent(40));
        world.spawn_for(Cluster::owner(node), async move {
            let name = format!("hold-{}", number % 6);
            // It may be refused: the partition is closed, or the hold is not there.
            let _: Result<(), Error> = if release {
                partition.release(&name).await
            } else {
                partition.hold(&name, partition.published(), 1 << 30).await.map(drop)
            };
        });
    }
}
