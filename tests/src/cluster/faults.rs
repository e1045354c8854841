//! What goes wrong at random: power, networks, shares of memory, promotions; and what features add to that.

use super::features::{Feature, Features};
use super::node::Cluster;
use super::orders::{self, Order};
use super::{Run, ask_for, calm};
use crate::sim::disk::Loss;
use std::rc::Rc;
use std::time::Duration;

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

/// One disturbance of those that features add.
pub fn disturb_more(run: &Rc<Run>) {
    let (cluster, world) = (run.cluster.clone(), run.cluster.world.clone());
    let (rng, features) = (&world.rng, cluster.features);
    let node = rng.below(cluster.len() as u64) as usize;
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
        _ => {
            let orders =
                Features::of(&[Feature::Orders, Feature::ZeroReplicas, Feature::Forget, Feature::Join, Feature::Force]);
            if features.without(orders) != features {
                orders::disturb(run);
            }
        }
    }
}
