//! What goes wrong at random: power, networks, shares of memory, promotions; and what features add to that.

use super::features::{Feature, Features, NEVER_PUT_BACK};
use super::node::{Cluster, PARTITION};
use super::orders::{self, Order};
use super::{Run, ask_for, calm};
use crate::sim::World;
use crate::sim::disk::Loss;
use crate::sim::rng::mix;
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::disk::DiskErrorKind;
use turnstone_engine::types::Version;

/// So often it is looked, 25 ms apart, whether somebody leads and all follow, before a node is put back.
const CALM_LOOKS: u32 = 120;
/// From then on an operator looks after a node that was put back.
const ALONE: Duration = Duration::from_secs(10);
/// A node that was put back to an older copy is told so within this time.
const TOLD: Duration = Duration::from_secs(60);

/// The power goes on a node, or its process dies.
pub fn crash(run: &Run, node: usize) {
    let rng = &run.cluster.world.rng;
    let loss = match rng.below(6) {
        0 | 1 => Loss::Everything,
        2 => Loss::ProcessOnly,
        3 => Loss::Nothing,
        _ => Loss::Random(rng.next()),
    };
    run.cluster.crash(node, loss);
    run.count(|tally| tally.crashes += 1);
}

/// One disturbance.
pub fn disturb(run: &Rc<Run>, kind: u64) {
    let (cluster, world) = (run.cluster.clone(), run.cluster.world.clone());
    let rng = &world.rng;
    let count = cluster.len();
    let any = || rng.below(count as u64) as usize;
    let down: Vec<usize> = (0..count).filter(|node| cluster.running(*node).is_none()).collect();
    match kind {
        0..=3 => crash(run, any()),
        4 => {
            // The power of the whole place.
            (0..count).for_each(|node| crash(run, node));
        }
        5..=6 => down.iter().for_each(|node| cluster.start(*node)),
        7..=9 if !down.is_empty() => cluster.start(down[rng.below(down.len() as u64) as usize]),
        10..=12 => {
            let mut cut = cluster.weather.cut.borrow_mut();
            cut.clear();
            let (a, b) = (any(), any());
            match rng.below(3) {
                // One node alone.
                0 => (0..count).filter(|n| *n != a).for_each(|n| cut.extend([(a, n), (n, a)])),
                // One direction.
                1 => cut.extend([(a, b)]),
                // Two nodes that do not hear each other, and others that hear both.
                _ => cut.extend([(a, b), (b, a)]),
            }
            drop(cut);
            run.count(|tally| tally.cuts += 1);
        }
        13 | 14 => cluster.weather.cut.borrow_mut().clear(),
        15 => cluster.reset(any()),
        16 => {
            cluster.weather.delay.set(Duration::from_micros(100 << rng.below(8)));
            cluster.weather.slow_percent.set(rng.below(4));
            world.slowness.set(1 << rng.below(9));
        }
        17 | 18 => promote(run, any()),
        20 | 21 => {
            // A node's partition gets another share of memory, whoever waits for room.
            if let Some(partition) = cluster.partition(any()) {
                partition.set_overlay_bytes(30_000 << rng.below(4));
                partition.set_cache_bytes(5_000 << rng.below(8));
            }
        }
        _ => {
            let node = any();
            let joined = run.orders.joined[node].get();
            if let Some(partition) = cluster.partition(node).filter(|p| joined && p.leads()) {
                let n = 1 + rng.below(2) as u32;
                world.spawn_for(Cluster::owner(node), async move {
                    // It may be refused.
                    let _ = ask_for(&partition, n).await;
                });
            }
        }
    }
}

/// A node is ordered to lead.
pub fn promote(run: &Rc<Run>, node: usize) {
    let rng = &run.cluster.world.rng;
    let min_replicas = rng.percent(20).then(|| 1 + rng.below(2) as u32);
    if run.cluster.replication(node).is_none() || !run.orders.joined[node].get() {
        return;
    }
    let run = run.clone();
    let world = run.cluster.world.clone();
    world.spawn_for(0, async move {
        if let Some(Ok(())) = orders::give_and_wait(&run, node, Order::Promote(min_replicas, false)).await {
            run.count(|tally| tally.promotions += 1);
        }
    });
}

/// `node` comes to have less than another one, which does not lead and is ordered to follow it: either it was cut off for a while,
/// or it dies with what its slow disk has not flushed, and is promoted in the place of the leader.
fn follow_one_that_lags(run: &Rc<Run>, node: usize) {
    let (cluster, world) = (run.cluster.clone(), run.cluster.world.clone());
    let leads = |node: &usize| cluster.partition(*node).is_some_and(|p| p.leads());
    let other = (node + 1 + world.rng.below(cluster.len() as u64 - 1) as usize) % cluster.len();
    let joined = run.orders.joined[other].get() && run.orders.joined[node].get();
    if leads(&node) || leads(&other) || !joined || orders::closes_a_circle(&cluster, other, node) {
        return;
    }
    let leader = (0..cluster.len()).find(leads);
    let (dies, slowness) = (world.rng.percent(60), 64 << world.rng.below(4));
    let pause = |most: u64| Duration::from_millis(world.rng.below(most));
    let pauses = if dies { [1, 30, 300, 800] } else { [1_500, 2_500, 1, 1] }.map(pause);
    run.under_way.set(run.under_way.get() + 1);
    let run = run.clone();
    world.clone().spawn_for(0, async move {
        lag_behind(&run, node, other, leader.filter(|_| dies), (slowness, pauses)).await;
        run.under_way.set(run.under_way.get() - 1);
    });
}

/// `leader` dies, too, where there is one; nobody does otherwise.
async fn lag_behind(run: &Rc<Run>, node: usize, other: usize, leader: Option<usize>, how: (u64, [Duration; 4])) {
    let (cluster, world, (slowness, pauses)) = (&run.cluster, &run.cluster.world, how);
    let between = |node: usize, other: usize| [(node, other), (other, node)];
    let Some(leader) = leader else {
        let others = (0..cluster.len()).filter(|third| *third != node);
        cluster.weather.cut.borrow_mut().extend(others.flat_map(|third| between(node, third)));
        world.sleep(pauses[0]).await;
        for (from, to) in between(node, other) {
            cluster.weather.cut.borrow_mut().remove(&(from, to));
        }
        orders::give(run, other, Order::Follow(node, false));
        world.sleep(pauses[1]).await;
        return cluster.weather.cut.borrow_mut().clear();
    };
    world.slowness.set(slowness);
    orders::give(run, other, Order::Follow(node, false));
    world.sleep(pauses[1]).await;
    crash(run, node);
    world.slowness.set(1);
    world.sleep(pauses[2]).await;
    if cluster.running(node).is_none() {
        cluster.start(node);
    }
    world.sleep(pauses[3]).await;
    crash(run, leader);
    promote(run, node);
}

/// The leader, if everybody who follows it knows what `node` has had, or it does, and nobody else has lost anything.
fn who_knows(run: &Run, node: usize) -> Option<usize> {
    let cluster = &run.cluster;
    let leads = |node: &usize| cluster.partition(*node).is_some_and(|p| p.leads() && !p.is_quorum_missing());
    let leader = (0..cluster.len()).find(leads)?;
    let whole = (0..cluster.len()).all(|n| cluster.partition(n).is_some_and(|p| !p.leadership().learner));
    // A stream of before a crash may not be found dead yet.
    let streams = |node: usize| {
        let status = cluster.replication(node).and_then(|r| r.board.upstream(PARTITION)).unwrap_or_default();
        orders::upstream_of(cluster, node) == Some(leader) && status.starts_with("streaming")
    };
    let replicas = cluster.replication(leader).map(|r| r.board.replicas(PARTITION)).unwrap_or_default();
    let follows = |node: usize| {
        let life = cluster.running(node).map(|running| u64::from(running.life));
        streams(node) && replicas.iter().any(|r| r.node == node as u64 + 100 && Some(r.life) == life)
    };
    let told = if leader == node { (0..cluster.len()).all(|n| n == node || follows(n)) } else { follows(node) };
    (whole && told && !run.orders.are_under_way()).then_some(leader)
}

/// A version that those who are to tell a node surely know it to have had.
fn known_of(cluster: &Cluster, leader: usize, node: usize) -> Version {
    if leader == node {
        let shown =
            (0..cluster.len()).filter(|n| *n != node).filter_map(|n| cluster.partition(n)).map(|p| p.published());
        return shown.min().unwrap_or(0);
    }
    let replicas = cluster.replication(leader).map(|r| r.board.replicas(PARTITION)).unwrap_or_default();
    replicas.iter().find(|replica| replica.node == node as u64 + 100).map_or(0, |replica| replica.acked)
}

/// A copy of a node's home is made; later it takes the home's place. The node loses what it promised, as if it lost its disk; until
/// somebody who knows has told it so nothing else goes wrong. Then its leader may die at once, and others are promoted.
fn put_back(run: &Rc<Run>, node: usize) {
    let (cluster, world) = (run.cluster.clone(), run.cluster.world.clone());
    if cluster.features.without(NEVER_PUT_BACK) != cluster.features || run.calm.get() {
        return;
    }
    if cluster.copied(node).is_none() || world.rng.percent(30) {
        return cluster.copy_home(node);
    }
    run.calm.set(true);
    let (kills, pause) = (world.rng.percent(60), Duration::from_millis(world.rng.below(200)));
    let run = run.clone();
    world.clone().spawn_for(0, async move {
        cluster.weather.cut.borrow_mut().clear();
        (0..cluster.len()).filter(|node| cluster.running(*node).is_none()).for_each(|node| cluster.start(node));
        // What was ordered at this moment is under way at first, and somebody must lead and be followed.
        let mut leader = None;
        for _ in 0..CALM_LOOKS {
            world.sleep(Duration::from_millis(25)).await;
            leader = who_knows(&run, node);
            if leader.is_some() {
                break;
            }
        }
        if let Some(leader) = leader
            && put_back_and_wait(&run, node, leader).await
            && kills
            && leader != node
        {
            crash(&run, leader);
            world.sleep(pause).await;
            let third = (0..cluster.len()).filter(|third| *third != node && *third != leader);
            third.for_each(|third| promote(&run, third));
        }
        run.calm.set(false);
    });
}

/// Waits until the node is told what it has lost; answers whether it had lost anything.
async fn put_back_and_wait(run: &Rc<Run>, node: usize, leader: usize) -> bool {
    let (cluster, world) = (&run.cluster, &run.cluster.world);
    let (Some(copied), known) = (cluster.copied(node), known_of(cluster, leader, node)) else { return false };
    let told = times_told(world);
    // What is in this log alone is compared at the end.
    if let Some(partition) = cluster.partition(node)
        && let Ok(log) = cluster.read_whole_log(node, &partition).await
    {
        cluster.keep(log);
    }
    crash(run, node);
    cluster.put_back(node);
    run.orders.flushes(node);
    run.told.borrow_mut().forget_floor(node);
    cluster.start(node);
    if known <= copied {
        return false;
    }
    let began = world.now();
    let is_told = || times_told(world) > told;
    let has_all = || cluster.partition(node).is_some_and(|p| p.flushed() >= known);
    // Whom it follows as of the copy may not be who knows.
    let leads = || cluster.partition(leader).is_some_and(|p| p.leads());
    let asks = || leader == node || (orders::upstream_of(cluster, node) == Some(leader) && leads());
    let mut asks_who_knows = true;
    while !is_told() && !has_all() {
        asks_who_knows &= cluster.partition(node).is_none() || asks();
        world.sleep(Duration::from_millis(10)).await;
        if world.now() > began + ALONE {
            // In the copy it may have stepped down, and everybody follows it: then it takes an operator.
            orders::repair(run, &run.repair);
        }
        if world.now() > began + TOLD {
            cluster.fail(format!("node {node} was put back to an older copy, and has not what it had in {TOLD:?}"));
            return false;
        }
    }
    if asks_who_knows && asks() && !is_told() {
        cluster.fail(format!("node {node} was put back to an older copy, and nobody who knew has told it so"));
    }
    run.put_back.set(run.put_back.get() + 1);
    is_told()
}

/// A node's disk refuses for a while, at once or after a few operations: less than what a node waits for that must go on.
fn refuse_disk(run: &Rc<Run>, node: usize) {
    let (run, world) = (run.clone(), run.cluster.world.clone());
    let choice = mix(world.now().as_nanos() as u64 ^ 0x0d15);
    let kind = if choice.is_multiple_of(2) { DiskErrorKind::NoSpace } else { DiskErrorKind::Refused };
    let pause = Duration::from_millis(200 + (choice >> 8) % 3_500);
    run.under_way.set(run.under_way.get() + 1);
    run.cluster.refuse_disk(node, Some((kind, (choice >> 32) % 12)));
    if choice >> 60 == 0 {
        // It is met by a start.
        crash(&run, node);
    }
    world.clone().spawn_for(0, async move {
        world.sleep(pause).await;
        run.cluster.refuse_disk(node, None);
        run.under_way.set(run.under_way.get() - 1);
    });
}

/// How often nodes were told that they have had more.
fn times_told(world: &World) -> usize {
    world.log.borrow().iter().filter(|line| line.contains("has had everything up to version")).count()
}

/// One disturbance of those that features add.
pub fn disturb_more(run: &Rc<Run>) {
    let (cluster, world) = (run.cluster.clone(), run.cluster.world.clone());
    let (rng, features) = (&world.rng, cluster.features);
    let node = rng.below(cluster.len() as u64) as usize;
    // Drawn apart, so that seeds stay what they were.
    if features.has(Feature::DiskRefuses) && mix(world.now().as_nanos() as u64).is_multiple_of(4) {
        refuse_disk(run, node);
    }
    match rng.below(8) {
        0 if features.has(Feature::Move) && rng.percent(30) => {
            crash(run, node);
            cluster.move_away(node);
        }
        // All of them get new addresses.
        1 if features.has(Feature::Move) && rng.percent(15) => (0..cluster.len()).for_each(|node| {
            crash(run, node);
            cluster.move_away(node);
        }),
        2 if features.has(Feature::NewKey) && rng.percent(20) => cluster.renew_key(node),
        3 if features.has(Feature::SlowLinks) => cluster.weather.bandwidth.set(30_000 << rng.below(4)),
        4 if features.has(Feature::IndexRefuses) => calm::refuse_ingestion(run, node),
        5 if features.has(Feature::Holds) => calm::hold_and_release(run, node),
        6 if features.has(Feature::Lag) && rng.percent(60) => follow_one_that_lags(run, node),
        7 if features.has(Feature::PutBack) && rng.percent(60) => put_back(run, node),
        _ => {
            let orders =
                Features::of(&[Feature::Orders, Feature::ZeroReplicas, Feature::Forget, Feature::Join, Feature::Force]);
            if features.without(orders) != features {
                orders::disturb(run);
            }
        }
    }
}
