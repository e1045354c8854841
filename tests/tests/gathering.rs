//! How often a leader and its follower talk: at once where commits wait for the follower's word, and about once in a
//! millisecond for everything that came meanwhile where nobody does. Who steps down keeps nothing back.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::manifest::Upstream;
use turnstone_engine::sync::first_of;
use turnstone_engine::types::Version;
use turnstone_engine::{Partition, Settings, Write};
use turnstone_tests::cluster::node::{Cluster, PARTITION};
use turnstone_tests::sim::world::End;
use turnstone_tests::sim::{SimEnv, World};

const LEADER: usize = 0;
const FOLLOWER: usize = 1;
const COMMITS: u64 = 500;
/// Between two commits.
const PAUSE: Duration = Duration::from_micros(100);
const MILLISECONDS: u64 = COMMITS * PAUSE.as_micros() as u64 / 1000;
/// In the simulator's time.
const PATIENCE: Duration = Duration::from_secs(30);

/// A leader and its follower, both members.
struct Pair {
    cluster: Rc<Cluster>,
    leader: Partition<SimEnv>,
    follower: Partition<SimEnv>,
}

/// What happened while commits were made.
struct Seen {
    /// Frames of leader and follower.
    sent: [u64; 2],
    /// From the last commit's answer until the follower showed it.
    lag: Duration,
}

impl Pair {
    async fn start(cluster: Rc<Cluster>) -> Result<Pair, String> {
        let world = cluster.world.clone();
        [LEADER, FOLLOWER].into_iter().for_each(|node| cluster.start(node));
        let (leader, follower, replication) = loop {
            match (cluster.partition(LEADER), cluster.partition(FOLLOWER), cluster.replication(FOLLOWER)) {
                (Some(leader), Some(follower), Some(replication)) => break (leader, follower, replication),
                _ if world.now() > PATIENCE => return Err("the nodes do not start".to_string()),
                _ => world.sleep(Duration::from_millis(1)).await,
            }
        };
        let upstream = Upstream { address: "n0:9".to_string(), partition: PARTITION };
        replication.begin_following(follower.clone(), upstream, false).await.map_err(|trouble| trouble.text())?;
        while leader.members().nodes.len() < 2 {
            if world.now() > PATIENCE {
                return Err("the follower does not become a member".to_string());
            }
            world.sleep(Duration::from_millis(20)).await;
        }
        Ok(Pair { cluster, leader, follower })
    }

    async fn ask_for(&self, followers: u32) -> Result<(), String> {
        let changed = self.leader.change_members(|members| {
            let mut next = members.clone();
            next.min_replicas = followers;
            (next != *members).then_some(next)
        });
        match changed.await.map_err(|e| e.to_string())? {
            Some(version) => self.leader.wait_outcome(version).await.map_err(|e| e.to_string()),
            None => Ok(()),
        }
    }

    async fn commit(&self, key: &str) -> Result<Version, String> {
        let mut transaction = self.leader.begin(self.leader.published());
        transaction.late = true;
        let write = Write::Set(b"v".as_slice().into());
        self.leader.write(&mut transaction, key.as_bytes(), write).map_err(|e| e.to_string())?;
        self.leader.submit(transaction).prepared().await.map_err(|e| e.to_string())
    }

    /// From the answer until the follower shows the version.
    async fn lag(&self, version: Version) -> Result<Duration, String> {
        let world = &self.cluster.world;
        let shown = async |partition: &Partition<SimEnv>| {
            first_of(partition.wait_published(version), world.sleep(PATIENCE)).await;
            if partition.published() < version { Err(format!("version {version} is not shown")) } else { Ok(()) }
        };
        shown(&self.leader).await?;
        let answered = world.now();
        shown(&self.follower).await?;
        Ok(world.now() - answered)
    }

    async fn load(&self) -> Result<Seen, String> {
        let sent = |node| self.cluster.weather.sent.borrow().get(&node).copied().unwrap_or(0);
        let before = [sent(LEADER), sent(FOLLOWER)];
        let mut last = 0;
        for n in 0..COMMITS {
            last = self.commit(&format!("key-{n}")).await?;
            self.cluster.world.sleep(PAUSE).await;
        }
        let lag = self.lag(last).await?;
        Ok(Seen { sent: [sent(LEADER) - before[0], sent(FOLLOWER) - before[1]], lag })
    }
}

fn run<F: Future<Output = Result<(), String>> + 'static>(seed: u64, with: impl FnOnce(Pair) -> F + 'static) {
    let world = World::new(seed);
    let cluster = Cluster::new(world.clone(), 2, Settings::default(), None);
    let end = world.run(async move { with(Pair::start(cluster).await?).await });
    match end {
        End::Done(Ok(())) => {}
        End::Done(Err(why)) | End::Halted(why) => panic!("seed {seed}: {why}"),
        End::Deadlock => panic!("seed {seed}: nothing can go on"),
    }
    world.drop_tasks();
}

#[test]
fn who_waits_for_nobody_tells_much_at_once() {
    for seed in 0..5 {
        run(seed, move |pair| async move {
            let alone = pair.load().await?;
            pair.ask_for(1).await?;
            let held = pair.load().await?;
            pair.ask_for(0).await?;
            let again = pair.load().await?;
            for alone in [alone, again] {
                let told = alone.sent[FOLLOWER];
                assert!(told <= MILLISECONDS * 3 / 2, "seed {seed}: {told} words of the follower in {MILLISECONDS} ms");
                assert!(held.sent[FOLLOWER] >= 3 * told, "seed {seed}: {:?}, {:?}", held.sent, alone.sent);
                assert!(
                    held.sent[LEADER] * 4 >= alone.sent[LEADER] * 5,
                    "seed {seed}: {:?}, {:?}",
                    held.sent,
                    alone.sent
                );
                assert!(alone.lag < Duration::from_millis(2), "seed {seed}: shown {:?} later", alone.lag);
            }
            assert!(held.lag < Duration::from_micros(500), "seed {seed}: shown {:?} later", held.lag);
            Ok(())
        });
    }
}

#[test]
fn a_commit_after_a_pause_is_not_kept_waiting() {
    run(1, |pair| async move {
        for n in 0..20 {
            pair.cluster.world.sleep(Duration::from_millis(20)).await;
            let version = pair.commit(&format!("lone-{n}")).await?;
            let lag = pair.lag(version).await?;
            assert!(lag < Duration::from_micros(500), "commit {n}: shown {lag:?} later");
        }
        Ok(())
    });
}

#[test]
fn who_steps_down_or_closes_has_sent_what_was_answered() {
    for seed in 0..20 {
        run(seed, move |pair| async move {
            let mut last = 0;
            for n in 0..50 {
                last = pair.commit(&format!("key-{n}")).await?;
                pair.cluster.world.sleep(PAUSE).await;
            }
            pair.leader.wait_published(last).await;
            let ended = if seed % 2 == 0 { pair.leader.step_down().await } else { pair.leader.close().await };
            ended.map_err(|e| e.to_string())?;
            pair.cluster.world.sleep(Duration::from_millis(50)).await;
            let (leader, follower) = (pair.leader.published(), pair.follower.published());
            assert_eq!((leader, follower), (last, last), "seed {seed}");
            Ok(())
        });
    }
}
