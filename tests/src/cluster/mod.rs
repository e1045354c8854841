//! Simulated clusters: three to five nodes with the real engine and the real replication, on simulated disks and a simulated
//! network, with clients that write and read, a nemesis, and a person who promotes.
//!
//! A run has a time of faults and a time without. What must hold at the end: everybody has the same log; every commit that
//! was acknowledged is in it, at its version and in its epoch; every read saw what the log has at the read's version; no two
//! nodes acknowledged in one epoch; and within seconds after the last fault commits went on.

mod calm;
pub mod campaign;
mod clients;
mod comparison;
mod faults;
pub mod features;
pub mod history;
pub mod known;
pub mod network;
pub mod node;
mod orders;
mod session;

use crate::sim::rng::mix;
use crate::sim::world::End;
use crate::sim::{SimEnv, World};
use features::{Feature, Features};
use history::Told;
use node::{Cluster, PARTITION};
use orders::{Book, Repair};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::env::Sabotage;
use turnstone_engine::manifest::Upstream;
use turnstone_engine::sync::first_of;
use turnstone_engine::{Error, Partition, Settings};

/// Keys that clients use.
const KEYS: u32 = 12;
/// Who has no answer after this time does not know.
const PATIENCE: Duration = Duration::from_secs(4);
/// After the last fault commits go on within this time, says a campaign of sound code; a single run fails after twice as
/// long, so that what planted bugs are found by is beyond doubt. All nodes have the same within four times this.
pub const RECOVERY: Duration = Duration::from_secs(5);
/// So often the person looks whether somebody leads.
const LOOKS: Duration = Duration::from_secs(1);
/// Clients that speak the server's protocol.
const SESSIONS: u32 = 2;
/// Bytes per second of a copy that takes its time.
const LONG_COPY_RATE: u64 = 4_000;
/// Most comparisons of logs at the end of a run: whoever is slow may yet write something meanwhile.
const COMPARISONS: u32 = 20;

/// How long a run is.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Virtual time with faults.
    pub faults: Duration,
    /// Clients.
    pub clients: u32,
    /// In how many of 100 runs people do what machines and networks do in the others.
    pub quarrels: u64,
    /// What a run tries and checks beyond plain faults; `None`: what its seed draws.
    pub features: Option<Features>,
    /// None of these, whatever the seed draws.
    pub without: Features,
    /// The log of the run is printed.
    pub trace: bool,
}

impl Effort {
    /// What the run of a seed tries and checks beyond plain faults.
    pub fn features_of(&self, seed: u64) -> Features {
        self.features.unwrap_or_else(|| Features::draw(seed)).without(self.without)
    }
}

impl Default for Effort {
    fn default() -> Effort {
        Effort {
            faults: Duration::from_secs(60),
            clients: 3,
            quarrels: 40,
            features: None,
            without: known::features(),
            trace: false,
        }
    }
}

/// What a campaign saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Commits that were acknowledged.
    pub acked: u64,
    /// Commits whose outcome nobody knows.
    pub unknown: u64,
    /// Commits that were refused.
    pub refused: u64,
    /// Reads.
    pub reads: u64,
    /// Crashes.
    pub crashes: u64,
    /// Promotions that succeeded.
    pub promotions: u64,
    /// Times that directions were cut.
    pub cuts: u64,
    /// Copies that were taken.
    pub copies: u64,
    /// Orders that were answered with success.
    pub orders: u64,
    /// Nodes whose home was put back from an older copy, and that were told so.
    pub put_back: u64,
    /// The longest time from the last fault to a commit, of runs with plain faults.
    pub recovery: Duration,
}

impl Tally {
    /// Adds another run's.
    pub fn add(&mut self, other: &Tally) {
        self.acked += other.acked;
        self.unknown += other.unknown;
        self.refused += other.refused;
        self.reads += other.reads;
        self.crashes += other.crashes;
        self.promotions += other.promotions;
        self.cuts += other.cuts;
        self.copies += other.copies;
        self.orders += other.orders;
        self.put_back += other.put_back;
        self.recovery = self.recovery.max(other.recovery);
    }
}

fn settings(world: &World, features: Features) -> Settings {
    let rng = &world.rng;
    let overlay_budget = 60_000 + rng.below(60_000);
    Settings {
        wal_max_size: 16384 << rng.below(3),
        // The whole log is compared at the end.
        wal_retention: Duration::from_secs(1 << 30),
        wal_retention_bytes: 1 << 40,
        value_separation: 600,
        value_file_size: 65536,
        value_allocation: 16384,
        overlay_budget,
        checkpoint_bytes: 6_000 + rng.below(30_000),
        checkpoint_interval: Duration::from_millis(200 + rng.below(5_000)),
        idle_vouch: Duration::from_millis(2 + rng.below(50)),
        quorum_timeout: Duration::from_millis(500),
        keys_at_once: if overlay_budget.is_multiple_of(2) { 1 } else { 256 },
        max_tx_age: Duration::from_secs(10),
        copy_rate: if features.has(Feature::LongCopies) { LONG_COPY_RATE } else { Settings::default().copy_rate },
        ..Settings::default()
    }
}

struct Run {
    cluster: Rc<Cluster>,
    told: RefCell<Told>,
    orders: Book,
    tally: Cell<Tally>,
    next: Cell<u64>,
    over: Cell<bool>,
    clients: Cell<u32>,
    /// When a commit was last acknowledged.
    last_ack: Cell<Duration>,
    /// Whom the person promotes next.
    candidate: Cell<usize>,
    /// What an operator is at after the faults.
    repair: Rc<Repair>,
    /// A node is put back, and is to be told so: nothing else goes wrong.
    calm: Cell<bool>,
    /// Disturbances of several steps that are under way: none of them comes after the faults.
    under_way: Cell<u32>,
    /// Nodes that were put back, and told so.
    put_back: Cell<u64>,
    /// The node that is away after the faults.
    dead: Cell<Option<usize>>,
}

/// Whether followers must hold a commit, by the list that is in force at a node.
fn is_safe(run: &Run, node: usize) -> bool {
    let in_force =
        run.cluster.partition(node).and_then(|p| p.standing().members.first().map(|r| r.members.min_replicas));
    in_force.is_some_and(|n| n > 0) && !run.orders.forgotten.borrow().contains(&node)
}

impl Run {
    /// A node that takes writes, or any one.
    fn some_writable_node(&self) -> usize {
        let (cluster, rng) = (&self.cluster, &self.cluster.world.rng);
        let joined: Vec<usize> = (0..cluster.len()).filter(|node| self.orders.joined[*node].get()).collect();
        let takes_writes = |node: &&usize| cluster.partition(**node).is_some_and(|p| p.writable());
        let writable: Vec<usize> = joined.iter().filter(takes_writes).copied().collect();
        let among = if writable.is_empty() || rng.percent(30) { joined } else { writable };
        among[rng.below(among.len() as u64) as usize]
    }

    fn count(&self, change: impl FnOnce(&mut Tally)) {
        let mut tally = self.tally.get();
        change(&mut tally);
        self.tally.set(tally);
    }

    /// Runs `work` as a task of a node; `None` if the node is gone before it is done, or it takes too long.
    async fn on_node<T: 'static>(&self, node: usize, work: impl Future<Output = T> + 'static) -> Option<T> {
        self.on_node_within(PATIENCE, node, work).await
    }

    /// The same with so much patience.
    async fn on_node_within<T: 'static>(
        &self,
        patience: Duration,
        node: usize,
        work: impl Future<Output = T> + 'static,
    ) -> Option<T> {
        let slot: Rc<RefCell<Option<T>>> = Rc::default();
        let answer = slot.clone();
        let done = Rc::new(turnstone_engine::sync::Notify::default());
        let told = done.clone();
        self.cluster.world.spawn_for(Cluster::owner(node), async move {
            let value = work.await;
            *answer.borrow_mut() = Some(value);
            told.notify();
        });
        first_of(done.notified(), self.cluster.world.sleep(patience)).await;
        slot.borrow_mut().take()
    }

    fn check_ack(&self, outcome: Result<(), String>) {
        if let Err(what) = outcome {
            self.cluster.fail(what);
        }
        self.last_ack.set(self.cluster.world.now());
    }
}

/// One seed; the error says what was wrong.
pub fn run_seed(seed: u64, effort: Effort, sabotage: Option<Sabotage>) -> Result<(Tally, u64), String> {
    let world = World::new(seed);
    let nodes = if world.rng.percent(75) { 3 } else { 4 + world.rng.below(2) as usize };
    let features = effort.features_of(seed);
    let cluster = Cluster::with_features(world.clone(), nodes, settings(&world, features), sabotage, features);
    let run = Rc::new(Run {
        cluster: cluster.clone(),
        told: RefCell::default(),
        orders: Book::new(nodes),
        repair: Rc::default(),
        dead: Cell::new(None),
        calm: Cell::default(),
        under_way: Cell::default(),
        put_back: Cell::default(),
        tally: Cell::default(),
        next: Cell::new(1),
        over: Cell::new(false),
        clients: Cell::new(effort.clients),
        last_ack: Cell::default(),
        candidate: Cell::new(world.rng.below(nodes as u64) as usize),
    });
    let end = world.run(campaign(run.clone(), effort));
    if effort.trace {
        world.log.borrow().iter().for_each(|line| eprintln!("{line}"));
    }
    let outcome = match end {
        End::Done(outcome) => outcome,
        End::Halted(why) => Err(format!("a node ended itself: {why}")),
        End::Deadlock => Err("nothing can go on".to_string()),
    };
    let failure = cluster.failure.borrow_mut().take();
    world.drop_tasks();
    if let Some(what) = failure {
        return Err(what);
    }
    outcome?;
    let mut tally = run.tally.get();
    let told = run.told.borrow();
    (tally.acked, tally.reads) = (told.counts().0 as u64, told.counts().1 as u64);
    (tally.unknown, tally.refused) = (told.unknown, told.refused);
    tally.copies = cluster.copied.get();
    tally.orders = run.orders.obeyed.get();
    tally.put_back = run.put_back.get();
    Ok((tally, world.trace()))
}

async fn campaign(run: Rc<Run>, effort: Effort) -> Result<(), String> {
    let cluster = run.cluster.clone();
    let world = cluster.world.clone();
    cluster.weather.delay.set(Duration::from_micros(300));
    (0..cluster.len()).for_each(|node| cluster.start(node));
    form(&run).await?;
    for client in 0..effort.clients {
        world.spawn_for(0, clients::use_it(run.clone(), client));
    }
    let features = cluster.features;
    if features.has(Feature::Sessions) {
        run.clients.set(run.clients.get() + SESSIONS);
        (0..SESSIONS).for_each(|_| world.spawn_for(0, session::converse(run.clone())));
    }
    if features != Features::NONE {
        world.spawn_for(0, orders::watch(run.clone()));
    }
    let end = world.now() + effort.faults;
    // In some runs machines and networks fail, in others people do.
    let quarrel = world.rng.percent(effort.quarrels);
    while (world.now() < end || run.calm.get()) && cluster.failure.borrow().is_none() {
        if run.calm.get() {
            world.sleep(Duration::from_millis(20)).await;
            continue;
        }
        // Now and then somebody sets the clocks. These choices are drawn apart, so that seeds stay what they were.
        let choice = mix(world.now().as_nanos() as u64);
        if choice.is_multiple_of(16) {
            let days = if choice.is_multiple_of(32) { 0 } else { (choice >> 8) % 2_000 };
            world.wall_step_ms.set((days as i64 - if days == 0 { 0 } else { 1_000 }) * 86_400_000);
        }
        if quarrel {
            world.sleep(Duration::from_millis(20 + world.rng.below(300))).await;
            let kind = [0, 5, 7, 10, 13, 15, 17, 17, 17, 17, 17, 19, 19, 19][world.rng.below(14) as usize];
            faults::disturb(&run, kind);
        } else {
            world.sleep(Duration::from_millis(50 + world.rng.below(900))).await;
            faults::disturb(&run, world.rng.below(22));
        }
        if features != Features::NONE && world.rng.percent(40) {
            faults::disturb_more(&run);
        }
    }
    while run.under_way.get() > 0 && cluster.failure.borrow().is_none() {
        world.sleep(Duration::from_millis(20)).await;
    }
    if cluster.failure.borrow().is_some() {
        return Ok(());
    }
    recover(&run).await?;
    calm::last(&run).await?;
    run.over.set(true);
    comparison::settle(&run).await
}

/// Node 0 leads, the others follow it, and some of them must hold a commit.
async fn form(run: &Rc<Run>) -> Result<(), String> {
    let (cluster, world) = (run.cluster.clone(), run.cluster.world.clone());
    let all_open = || (0..cluster.len()).all(|node| cluster.partition(node).is_some());
    while !all_open() {
        world.sleep(Duration::from_millis(5)).await;
    }
    let mut joined = cluster.len();
    if cluster.features.has(Feature::Join) {
        joined -= 1;
        run.orders.joined[joined].set(false);
    }
    for node in 1..joined {
        let (Some(replication), Some(partition)) = (cluster.replication(node), cluster.partition(node)) else {
            continue;
        };
        let upstream = Upstream { address: cluster.address(0), partition: PARTITION };
        let followed = run.on_node(node, async move { replication.begin_following(partition, upstream, false).await });
        match followed.await {
            Some(Ok(())) => {}
            other => return Err(format!("node {node} does not follow: {other:?}")),
        }
    }
    let Some(leader) = cluster.partition(0) else { return Err("node 0 is gone".to_string()) };
    while leader.members().nodes.len() < joined {
        if world.now() > Duration::from_secs(30) {
            return Err("the followers do not become members".to_string());
        }
        world.sleep(Duration::from_millis(20)).await;
    }
    let n = (1 + world.rng.below(2) as u32).min(joined as u32 - 1);
    if cluster.features.has(Feature::ZeroReplicas) && world.rng.percent(60) {
        run.orders.losses.borrow_mut().zero_begins(Duration::ZERO);
        return Ok(());
    }
    for _ in 0..20 {
        let leader = leader.clone();
        let changed = run.on_node(0, async move { ask_for(&leader, n).await }).await;
        if matches!(changed, Some(Ok(()))) {
            return Ok(());
        }
        world.sleep(Duration::from_millis(50)).await;
    }
    Err("followers cannot be asked for".to_string())
}

async fn ask_for(leader: &Partition<SimEnv>, n: u32) -> Result<(), Error> {
    let changed = leader.change_members(false, |members| {
        let mut next = members.clone();
        next.min_replicas = n;
        (next != *members).then_some(next)
    });
    match changed.await? {
        Some(version) => leader.wait_outcome(version).await,
        None => Ok(()),
    }
}

/// The faults stop; somebody promotes where nobody leads.
async fn recover(run: &Rc<Run>) -> Result<(), String> {
    let (cluster, world) = (run.cluster.clone(), run.cluster.world.clone());
    cluster.weather.cut.borrow_mut().clear();
    cluster.weather.delay.set(Duration::from_micros(500));
    cluster.weather.slow_percent.set(0);
    world.slowness.set(1);
    if cluster.features.has(Feature::SlowLinks) {
        cluster.weather.bandwidth.set(150_000);
    }
    for index in (0..cluster.len()).filter_map(|node| cluster.index(node)) {
        index.refuse(false);
        index.fall_behind(false);
    }
    (0..cluster.len()).filter(|node| cluster.running(*node).is_none()).for_each(|node| cluster.start(node));
    let healed = world.now();
    let mut person = healed + LOOKS;
    while run.last_ack.get() <= healed {
        if cluster.failure.borrow().is_some() {
            return Ok(());
        }
        // Two leaders that a forced order left, or N = 0, take an operator more steps than one.
        // So does a copy of everything on a slow line.
        let slow = if cluster.features.has(Feature::SlowLinks) { 2 } else { 1 };
        let limit = RECOVERY * slow * if run.orders.losses.borrow().any() { 6 } else { 2 };
        if world.now() > healed + limit {
            return Err(format!("no commit within {limit:?} after the last fault: {}", describe(run)));
        }
        person = lend_a_hand(run, person);
        world.sleep(Duration::from_millis(20)).await;
    }
    // Elsewhere an operator's steps take a part of it; the limit above holds.
    if cluster.features == Features::NONE {
        run.count(|tally| tally.recovery = tally.recovery.max(run.last_ack.get() - healed));
    }
    Ok(())
}

/// Somebody looks now and then, next at the time that this answers: where nobody leads a node is promoted, each in its turn.
fn lend_a_hand(run: &Rc<Run>, at: Duration) -> Duration {
    let (cluster, now) = (&run.cluster, run.cluster.world.now());
    if now < at {
        return at;
    }
    if cluster.features != Features::NONE {
        orders::repair(run, &run.repair);
        return now + LOOKS;
    }
    let leads = |node| cluster.partition(node).is_some_and(|p| p.leads() && !p.is_quorum_missing());
    if !(0..cluster.len()).any(leads) {
        faults::promote(run, run.candidate.get());
        run.candidate.set((run.candidate.get() + 1) % cluster.len());
    }
    now + LOOKS
}

fn describe(run: &Run) -> String {
    let node = |n: usize| match run.cluster.partition(n) {
        None => format!("node {n} is not open"),
        Some(p) => {
            let s = p.standing();
            let upstream = run.cluster.replication(n).and_then(|r| r.board.upstream(PARTITION)).unwrap_or_default();
            format!(
                "node {n}: {:?}, leads {}, quorum missing {}, epoch {}, {} of {}, {upstream}",
                p.role(),
                s.leads,
                p.is_quorum_missing(),
                s.adopted.number,
                s.published,
                s.last
            )
        }
    };
    (0..run.cluster.len()).map(node).collect::<Vec<_>>().join("; ")
}
