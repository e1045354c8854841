//! How often a leader and its follower talk: at once where commits wait for the follower's word, and about once in a
//! millisecond for everything that came meanwhile where nobody does. What a follower must hold is on its way before it is
//! written. Who steps down keeps nothing back. And a follower that gets much at once makes of it what the leader made of it
//! bit by bit.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::env::{Env, Sabotage};
use turnstone_engine::manifest::Upstream;
use turnstone_engine::sync::first_of;
use turnstone_engine::types::{Member, Members, Version};
use turnstone_engine::{Lookup, Partition, Settings, Write};
use turnstone_tests::cluster::node::{Cluster, PARTITION};
use turnstone_tests::sim::world::End;
use turnstone_tests::sim::{SimEnv, World};

pub(super) const LEADER: usize = 0;
pub(super) const FOLLOWER: usize = 1;
const COMMITS: u64 = 500;
/// Between two commits.
const PAUSE: Duration = Duration::from_micros(100);
const MILLISECONDS: u64 = COMMITS * PAUSE.as_micros() as u64 / 1000;
/// FlushDBs.
const ROUNDS: u64 = 2;
/// In the simulator's time.
const PATIENCE: Duration = Duration::from_secs(30);

/// A leader and its follower, both members.
pub(super) struct Pair {
    pub(super) cluster: Rc<Cluster>,
    pub(super) leader: Partition<SimEnv>,
    pub(super) follower: Partition<SimEnv>,
}

/// What happened while commits were made.
struct Seen {
    /// Frames of leader and follower.
    sent: [u64; 2],
    /// From the last commit's answer until the follower showed it.
    lag: Duration,
}

impl Pair {
    pub(super) async fn start(cluster: Rc<Cluster>) -> Result<Pair, String> {
        let pair = Pair::apart(cluster).await?;
        pair.follow().await?;
        Ok(pair)
    }

    /// Both nodes, each on its own.
    async fn apart(cluster: Rc<Cluster>) -> Result<Pair, String> {
        let world = cluster.world.clone();
        [LEADER, FOLLOWER].into_iter().for_each(|node| cluster.start(node));
        loop {
            match (cluster.partition(LEADER), cluster.partition(FOLLOWER), cluster.replication(FOLLOWER)) {
                (Some(leader), Some(follower), Some(_)) => return Ok(Pair { cluster, leader, follower }),
                _ if world.now() > PATIENCE => return Err("the nodes do not start".to_string()),
                _ => world.sleep(Duration::from_millis(1)).await,
            }
        }
    }

    /// The follower follows, and is a member.
    async fn follow(&self) -> Result<(), String> {
        let upstream = Upstream { address: "n0:9".to_string(), partition: PARTITION };
        let replication = self.cluster.replication(FOLLOWER).ok_or("the follower is gone")?;
        let begun = replication.begin_following(self.follower.clone(), upstream, false).await;
        begun.map_err(|trouble| trouble.text())?;
        let world = &self.cluster.world;
        let deadline = world.now() + PATIENCE;
        while !self.leader.members().nodes.iter().any(|member| member.address.starts_with("n1:")) {
            if world.now() > deadline {
                return Err("the follower does not become a member".to_string());
            }
            world.sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    pub(super) async fn ask_for(&self, followers: u32) -> Result<(), String> {
        let changed = self.leader.change_members(false, |members| {
            let mut next = members.clone();
            next.min_replicas = followers;
            (next != *members).then_some(next)
        });
        match changed.await.map_err(|e| e.to_string())? {
            Some(version) => self.leader.wait_outcome(version).await.map_err(|e| e.to_string()),
            None => Ok(()),
        }
    }

    pub(super) async fn commit(&self, key: &str) -> Result<Version, String> {
        let mut transaction = self.leader.begin(self.leader.published());
        transaction.late = true;
        let write = Write::Set(b"v".as_slice().into());
        self.leader.write(&mut transaction, key.as_bytes(), write).map_err(|e| e.to_string())?;
        self.leader.submit(transaction).prepared().await.map_err(|e| e.to_string())
    }

    /// From the answer until the follower shows the version.
    pub(super) async fn lag(&self, version: Version) -> Result<Duration, String> {
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

/// Simulates two nodes, as yet on their own.
fn simulate<F: Future<Output = Result<(), String>> + 'static>(seed: u64, with: impl FnOnce(Rc<Cluster>) -> F) {
    simulate_broken(seed, None, with);
}

/// The same, with a planted bug.
pub(super) fn simulate_broken<F: Future<Output = Result<(), String>> + 'static>(
    seed: u64,
    bug: Option<Sabotage>,
    with: impl FnOnce(Rc<Cluster>) -> F,
) {
    let world = World::new(seed);
    let cluster = Cluster::new(world.clone(), 2, Settings::default(), bug);
    go(seed, &world, with(cluster));
}

/// Simulates so many nodes.
pub(super) fn simulate_nodes<F: Future<Output = Result<(), String>> + 'static>(
    seed: u64,
    nodes: usize,
    with: impl FnOnce(Rc<Cluster>) -> F,
) {
    let world = World::new(seed);
    let cluster = Cluster::new(world.clone(), nodes, Settings::default(), None);
    go(seed, &world, with(cluster));
}

fn go(seed: u64, world: &Rc<World>, work: impl Future<Output = Result<(), String>> + 'static) {
    match world.run(work) {
        End::Done(Ok(())) => {}
        End::Done(Err(why)) | End::Halted(why) => panic!("seed {seed}: {why}"),
        End::Deadlock => panic!("seed {seed}: nothing can go on"),
    }
    world.drop_tasks();
}

/// Simulates a leader and its follower.
fn run<F: Future<Output = Result<(), String>> + 'static>(seed: u64, with: impl FnOnce(Pair) -> F + 'static) {
    simulate(seed, |cluster| async move { with(Pair::start(cluster).await?).await });
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

/// The leader's own write is not what such a commit waits for longest.
#[test]
fn a_commit_that_a_follower_must_hold_leaves_before_it_is_written() {
    for seed in 0..5 {
        run(seed, move |pair| async move {
            pair.ask_for(1).await?;
            let cluster = pair.cluster.clone();
            let sent = move || cluster.weather.sent.borrow().get(&LEADER).copied().unwrap_or(0);
            let at_write = Rc::new(Cell::new(0));
            let (seen, frames) = (at_write.clone(), sent.clone());
            let observer: Rc<dyn Fn(&'static str)> = Rc::new(move |kind| {
                if kind == "log write" {
                    seen.set(frames());
                }
            });
            pair.leader.env().disk().observe(Some(observer));
            for n in 0..20 {
                // Everything that was to be said is.
                pair.cluster.world.sleep(Duration::from_millis(2)).await;
                let before = sent();
                let version = pair.commit(&format!("held-{n}")).await?;
                pair.leader.wait_published(version).await;
                assert_eq!(at_write.get(), before + 1, "seed {seed}, commit {n}: frames sent when it was written");
            }
            pair.leader.env().disk().observe(None);
            Ok(())
        });
    }
}

#[test]
fn who_steps_down_or_closes_has_sent_what_was_answered() {
    for seed in 0..40 {
        run(seed, move |pair| async move {
            // Whether somebody waits for the follower or nobody does.
            pair.ask_for(u32::from(seed % 4 > 1)).await?;
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

/// FlushDBs, each with a list of members close behind, come to the follower at once: it may show the list while it still carries
/// out the first flush, and must not take that for a reason to carry it out again, in the place of the second one.
#[test]
fn each_flush_is_carried_out_once() {
    for seed in 0..60 {
        simulate(seed, |cluster| async move {
            let mut pair = Pair::apart(cluster).await?;
            for round in 0..ROUNDS {
                for n in 0..3 {
                    let version = pair.commit(&format!("old-{round}-{n}")).await?;
                    pair.leader.wait_published(version).await;
                }
                pair.leader.flush_all().await.map_err(|e| e.to_string())?;
                let elsewhere = Member { node: 77, partition: PARTITION, address: format!("n7:{round}") };
                let listed = pair.leader.change_members(false, |members| {
                    Some(Members { nodes: vec![elsewhere.clone()], ..members.clone() })
                });
                let listed = listed.await.map_err(|e| e.to_string())?.ok_or("the list is as it was")?;
                // A batch of its own.
                pair.leader.wait_published(listed).await;
            }
            let last = pair.commit("new").await?;
            pair.leader.wait_published(last).await;
            pair.follow().await?;
            // A copy, which some seeds take, puts another in its place.
            pair.follower = pair.cluster.partition(FOLLOWER).ok_or("the follower is gone")?;
            pair.lag(pair.leader.published()).await?;
            for round in 0..ROUNDS {
                let key = format!("old-{round}-0");
                let at = pair.follower.published();
                let found = match pair.follower.get_at(at, key.as_bytes()) {
                    Lookup::Found(_) => true,
                    Lookup::Absent => false,
                    Lookup::Cold(cold) => cold.fetch().await.map_err(|e| e.to_string())?.is_some(),
                };
                assert!(!found, "seed {seed}: {key} is there after all");
            }
            let digests = (pair.leader.digest().await, pair.follower.digest().await);
            let (Ok((_, ours)), Ok((_, theirs))) = digests else { return Err(format!("no digests: {digests:?}")) };
            assert_eq!(ours, theirs, "seed {seed}");
            Ok(())
        });
    }
}
