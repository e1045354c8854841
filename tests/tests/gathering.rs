//! How often a leader and its follower talk: at once where commits wait for the follower's word, and about once in a
//! millisecond for everything that came meanwhile where nobody does.

use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::manifest::Upstream;
use turnstone_engine::{Settings, Write};
use turnstone_tests::cluster::node::{Cluster, PARTITION};
use turnstone_tests::sim::World;
use turnstone_tests::sim::world::End;

const LEADER: usize = 0;
const FOLLOWER: usize = 1;
const COMMITS: u64 = 1000;
/// Between two commits.
const PAUSE: Duration = Duration::from_micros(100);

/// What happened while the commits were made.
struct Seen {
    /// Frames of leader and follower.
    sent: [u64; 2],
    /// From the last commit's answer until the follower showed it.
    lag: Duration,
}

async fn commits(cluster: Rc<Cluster>, min_replicas: u32) -> Result<Seen, String> {
    let world = cluster.world.clone();
    [LEADER, FOLLOWER].into_iter().for_each(|node| cluster.start(node));
    while cluster.partition(LEADER).is_none() || cluster.partition(FOLLOWER).is_none() {
        world.sleep(Duration::from_millis(1)).await;
    }
    let both = (cluster.partition(LEADER), cluster.partition(FOLLOWER), cluster.replication(FOLLOWER));
    let (Some(leader), Some(follower), Some(replication)) = both else { return Err("a node is gone".to_string()) };
    let upstream = Upstream { address: "n0:9".to_string(), partition: PARTITION };
    replication.begin_following(follower.clone(), upstream, false).await.map_err(|trouble| trouble.text())?;
    while leader.members().nodes.len() < 2 {
        world.sleep(Duration::from_millis(20)).await;
    }
    let asked = leader.change_members(|members| {
        let mut next = members.clone();
        next.min_replicas = min_replicas;
        (next != *members).then_some(next)
    });
    if let Some(version) = asked.await.map_err(|e| e.to_string())? {
        leader.wait_outcome(version).await.map_err(|e| e.to_string())?;
    }
    let sent = |node| cluster.weather.sent.borrow().get(&node).copied().unwrap_or(0);
    let before = [sent(LEADER), sent(FOLLOWER)];
    let mut last = 0;
    for n in 0..COMMITS {
        let mut transaction = leader.begin(leader.published());
        transaction.late = true;
        let key = format!("key-{n}");
        leader
            .write(&mut transaction, key.as_bytes(), Write::Set(b"v".as_slice().into()))
            .map_err(|e| e.to_string())?;
        last = leader.submit(transaction).prepared().await.map_err(|e| e.to_string())?;
        world.sleep(PAUSE).await;
    }
    leader.wait_published(last).await;
    let answered = world.now();
    follower.wait_published(last).await;
    let lag = world.now() - answered;
    Ok(Seen { sent: [sent(LEADER) - before[0], sent(FOLLOWER) - before[1]], lag })
}

fn run(seed: u64, min_replicas: u32) -> Seen {
    let world = World::new(seed);
    let cluster = Cluster::new(world.clone(), 2, Settings::default(), None);
    let end = world.run(commits(cluster, min_replicas));
    let End::Done(Ok(seen)) = end else { panic!("seed {seed}, min_replicas {min_replicas}: it did not end well") };
    world.drop_tasks();
    seen
}

#[test]
fn who_waits_for_nobody_tells_much_at_once() {
    let milliseconds = COMMITS * PAUSE.as_micros() as u64 / 1000;
    for seed in 0..5 {
        let (alone, held) = (run(seed, 0), run(seed, 1));
        // What leaves in one go is on the follower's disk by two flushes, as the simulated network brings it frame by frame.
        let told = alone.sent[FOLLOWER];
        assert!(told <= milliseconds * 5 / 2, "seed {seed}: {told} words of the follower in {milliseconds} ms");
        assert!(alone.lag < Duration::from_millis(3), "seed {seed}: shown {:?} later", alone.lag);
        assert!(held.sent[FOLLOWER] >= 2 * told, "seed {seed}: {} words, commits wait for them", held.sent[FOLLOWER]);
        assert!(held.sent[LEADER] * 4 >= alone.sent[LEADER] * 5, "seed {seed}: {:?}, {:?}", held.sent, alone.sent);
        assert!(held.lag < Duration::from_micros(500), "seed {seed}: shown {:?} later", held.lag);
    }
}
