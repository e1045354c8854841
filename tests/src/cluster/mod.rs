//! Simulated clusters: three to five nodes with the real engine and the real replication, on simulated disks and a simulated
//! network, with clients that write and read, a nemesis, and a person who promotes.
//!
//! A run has a time of faults and a time without. What must hold at the end: everybody has the same log; every commit that
//! was acknowledged is in it, at its version and in its epoch; every read saw what the log has at the read's version; no two
//! nodes acknowledged in one epoch; and within seconds after the last fault commits went on.

pub mod history;
pub mod network;
pub mod node;

use crate::model::{KeyNumber, key_bytes};
use crate::sim::disk::Loss;
use crate::sim::world::End;
use crate::sim::{SimEnv, World};
use history::{Told, Writes};
use node::{Cluster, PARTITION, read_log};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::env::Sabotage;
use turnstone_engine::manifest::Upstream;
use turnstone_engine::sync::first_of;
use turnstone_engine::types::Version;
use turnstone_engine::wal::body::Body;
use turnstone_engine::{Error, Lookup, Partition, Settings, Write};
use turnstone_net::replica::Order;

/// Keys that clients use.
const KEYS: u32 = 12;
/// Who has no answer after this time does not know.
const PATIENCE: Duration = Duration::from_secs(4);
/// After the last fault commits go on within this time, says a campaign of sound code; a single run fails after twice as
/// long, so that what planted bugs are found by is beyond doubt. All nodes have the same within four times this.
pub const RECOVERY: Duration = Duration::from_secs(5);
/// So often the person looks whether somebody leads.
const LOOKS: Duration = Duration::from_secs(1);
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
}

impl Default for Effort {
    fn default() -> Effort {
        Effort { faults: Duration::from_secs(60), clients: 3, quarrels: 40 }
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
    /// The longest time from the last fault to a commit.
    pub recovery: Duration,
}

fn settings(world: &World) -> Settings {
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
        max_tx_age: Duration::from_secs(10),
        ..Settings::default()
    }
}

struct Run {
    cluster: Rc<Cluster>,
    told: RefCell<Told>,
    tally: Cell<Tally>,
    next: Cell<u64>,
    over: Cell<bool>,
    clients: Cell<u32>,
    /// When a commit was last acknowledged.
    last_ack: Cell<Duration>,
    /// Whom the person promotes next.
    candidate: Cell<usize>,
}

impl Run {
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
    let cluster = Cluster::new(world.clone(), nodes, settings(&world), sabotage);
    let run = Rc::new(Run {
        cluster: cluster.clone(),
        told: RefCell::default(),
        tally: Cell::default(),
        next: Cell::new(1),
        over: Cell::new(false),
        clients: Cell::new(effort.clients),
        last_ack: Cell::default(),
        candidate: Cell::new(world.rng.below(nodes as u64) as usize),
    });
    let end = world.run(campaign(run.clone(), effort));
    if std::env::var("TURNSTONE_TRACE").is_ok() {
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
    Ok((tally, world.trace()))
}

async fn campaign(run: Rc<Run>, effort: Effort) -> Result<(), String> {
    let cluster = run.cluster.clone();
    let world = cluster.world.clone();
    cluster.weather.delay.set(Duration::from_micros(300));
    (0..cluster.len()).for_each(|node| cluster.start(node));
    form(&run).await?;
    for client in 0..effort.clients {
        world.spawn_for(0, use_it(run.clone(), client));
    }
    let end = world.now() + effort.faults;
    // In some runs machines and networks fail, in others people do.
    let quarrel = world.rng.percent(effort.quarrels);
    while world.now() < end && cluster.failure.borrow().is_none() {
        if quarrel {
            world.sleep(Duration::from_millis(20 + world.rng.below(300))).await;
            let kind = [0, 5, 7, 10, 13, 15, 17, 17, 17, 17, 17, 19, 19, 19][world.rng.below(14) as usize];
            disturb(&run, kind);
        } else {
            world.sleep(Duration::from_millis(50 + world.rng.below(900))).await;
            disturb(&run, world.rng.below(22));
        }
    }
    if cluster.failure.borrow().is_some() {
        return Ok(());
    }
    recover(&run).await?;
    run.over.set(true);
    settle(&run).await
}

/// Node 0 leads, the others follow it, and some of them must hold a commit.
async fn form(run: &Rc<Run>) -> Result<(), String> {
    let (cluster, world) = (run.cluster.clone(), run.cluster.world.clone());
    let all_open = || (0..cluster.len()).all(|node| cluster.partition(node).is_some());
    while !all_open() {
        world.sleep(Duration::from_millis(5)).await;
    }
    for node in 1..cluster.len() {
        let (Some(replication), Some(partition)) = (cluster.replication(node), cluster.partition(node)) else {
            continue;
        };
        let upstream = Upstream { address: "n0:9".to_string(), partition: PARTITION };
        let followed = run.on_node(node, async move { replication.begin_following(partition, upstream, false).await });
        match followed.await {
            Some(Ok(())) => {}
            other => return Err(format!("node {node} does not follow: {other:?}")),
        }
    }
    let Some(leader) = cluster.partition(0) else { return Err("node 0 is gone".to_string()) };
    while leader.members().nodes.len() < cluster.len() {
        if world.now() > Duration::from_secs(30) {
            return Err("the followers do not become members".to_string());
        }
        world.sleep(Duration::from_millis(20)).await;
    }
    let n = 1 + world.rng.below(2) as u32;
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
    let changed = leader.change_members(|members| {
        let mut next = members.clone();
        next.min_replicas = n;
        (next != *members).then_some(next)
    });
    match changed.await? {
        Some(version) => leader.wait_outcome(version).await,
        None => Ok(()),
    }
}

/// A client: writes where it is let, and reads anywhere.
async fn use_it(run: Rc<Run>, client: u32) {
    let (cluster, world) = (run.cluster.clone(), run.cluster.world.clone());
    let mut leader = 0;
    while !run.over.get() && cluster.failure.borrow().is_none() {
        world.sleep(Duration::from_millis(1 + world.rng.below(60))).await;
        if world.rng.percent(30) {
            read(&run, world.rng.below(cluster.len() as u64) as usize).await;
            continue;
        }
        let Some(partition) = cluster.partition(leader).filter(Partition::writable) else {
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
    let Some(partition) = run.cluster.partition(node) else { return };
    let key = run.cluster.world.rng.below(u64::from(KEYS)) as KeyNumber;
    let answer = run.on_node(node, async move {
        let at = partition.published();
        let value = match partition.get_at(at, &key_bytes(key)) {
            Lookup::Found(value) => Some(value.to_vec()),
            Lookup::Absent => None,
            Lookup::Cold(cold) => cold.fetch().await.ok()?.map(|value| value.to_vec()),
        };
        Some((at, value))
    });
    if let Some(Some((at, value))) = answer.await {
        run.told.borrow_mut().read(at, key, value, node);
    }
}

async fn flush(run: &Rc<Run>, node: usize, partition: Partition<SimEnv>) {
    match run.on_node(node, async move { partition.flush_all().await }).await {
        Some(Ok(at)) => {
            let acked = run.told.borrow_mut().ack(at.version, at.epoch, node, None);
            run.check_ack(acked);
        }
        _ => run.told.borrow_mut().unknown += 1,
    }
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
        Some(Ok(at)) => {
            let acked = run.told.borrow_mut().ack(at.version, at.epoch, node, Some(writes));
            run.check_ack(acked);
        }
        Some(Err(Error::UnknownOutcome(_))) | None => run.told.borrow_mut().unknown += 1,
        Some(Err(_)) => run.told.borrow_mut().refused += 1,
    }
}

fn crash(run: &Run, node: usize) {
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
fn disturb(run: &Rc<Run>, kind: u64) {
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
            if let Some(partition) = cluster.partition(node).filter(Partition::leads) {
                let n = 1 + rng.below(2) as u32;
                world.spawn_for(Cluster::owner(node), async move {
                    // It may be refused.
                    let _ = ask_for(&partition, n).await;
                });
            }
        }
    }
}

fn promote(run: &Rc<Run>, node: usize) {
    let Some(replication) = run.cluster.replication(node) else { return };
    let rng = &run.cluster.world.rng;
    let min_replicas = rng.percent(20).then(|| 1 + rng.below(2) as u32);
    let run = run.clone();
    let world = run.cluster.world.clone();
    world.spawn_for(Cluster::owner(node), async move {
        let order = Order { min_replicas, ..Order::default() };
        if replication.promote(PARTITION, order).await.is_ok() {
            run.count(|tally| tally.promotions += 1);
        }
    });
}

/// The faults stop; somebody promotes where nobody leads.
async fn recover(run: &Rc<Run>) -> Result<(), String> {
    let (cluster, world) = (run.cluster.clone(), run.cluster.world.clone());
    cluster.weather.cut.borrow_mut().clear();
    cluster.weather.delay.set(Duration::from_micros(500));
    cluster.weather.slow_percent.set(0);
    world.slowness.set(1);
    (0..cluster.len()).filter(|node| cluster.running(*node).is_none()).for_each(|node| cluster.start(node));
    let healed = world.now();
    let mut person = healed + LOOKS;
    while run.last_ack.get() <= healed {
        if cluster.failure.borrow().is_some() {
            return Ok(());
        }
        if world.now() > healed + RECOVERY * 2 {
            return Err(format!("no commit within {:?} after the last fault: {}", RECOVERY * 2, describe(run)));
        }
        person = lend_a_hand(run, person);
        world.sleep(Duration::from_millis(20)).await;
    }
    run.count(|tally| tally.recovery = tally.recovery.max(run.last_ack.get() - healed));
    Ok(())
}

/// Somebody looks now and then, next at the time that this answers: where nobody leads a node is promoted, each in its turn.
fn lend_a_hand(run: &Rc<Run>, at: Duration) -> Duration {
    let (cluster, now) = (&run.cluster, run.cluster.world.now());
    let leads = |node| cluster.partition(node).is_some_and(|p| p.leads() && !p.is_quorum_missing());
    if now < at {
        return at;
    }
    if !(0..cluster.len()).any(leads) {
        promote(run, run.candidate.get());
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

/// Everybody gets the same, and it is what was told.
async fn settle(run: &Rc<Run>) -> Result<(), String> {
    let (cluster, world) = (run.cluster.clone(), run.cluster.world.clone());
    let began = world.now();
    let shown = |node: usize| cluster.partition(node).map(|p| (p.published(), p.standing().last));
    let mut person = began + LOOKS;
    // To read long logs takes its time, which is not the nodes'.
    let (mut comparisons, mut between) = (0, String::new());
    loop {
        person = lend_a_hand(run, person);
        if cluster.failure.borrow().is_some() {
            return Ok(());
        }
        if comparisons == 0 && world.now() > began + RECOVERY * 4 {
            return Err(format!("they do not come to the same within {:?}: {}", RECOVERY * 4, describe(run)));
        }
        if comparisons > COMPARISONS {
            return Err(format!(
                "{COMPARISONS} comparisons came to nothing, the last one for {between}: {}",
                describe(run)
            ));
        }
        let first = shown(0);
        let whole = first.filter(|(published, last)| published == last && run.clients.get() == 0);
        if let Some((last, _)) = whole
            && (1..cluster.len()).all(|node| shown(node) == first)
        {
            comparisons += 1;
            match compare(run, last).await? {
                None => return Ok(()),
                Some(why) => between = why,
            }
        }
        world.sleep(Duration::from_millis(20)).await;
    }
}

/// Compares the logs up to `last`, and what they make; answers what came in between, if anything did.
async fn compare(run: &Rc<Run>, last: Version) -> Result<Option<String>, String> {
    let cluster = run.cluster.clone();
    let (mut logs, mut digests) = (Vec::new(), Vec::new());
    for node in 0..cluster.len() {
        let Some(partition) = cluster.partition(node) else { return Ok(Some(format!("node {node} is away"))) };
        // Logs of ten minutes take their time.
        let read = run.on_node_within(RECOVERY * 100, node, async move {
            let digest = partition.digest().await?;
            let log = read_log(&partition, partition.oldest_version()).await?;
            Ok::<_, Error>((digest, log))
        });
        match read.await {
            Some(Ok((digest, log))) => {
                logs.push(log);
                digests.push(digest);
            }
            // It was opened anew meanwhile.
            None | Some(Err(Error::ShuttingDown)) => return Ok(Some(format!("node {node} was opened anew"))),
            Some(Err(error)) => return Err(format!("the log of node {node} cannot be read: {error}")),
        }
    }
    if digests.iter().any(|(version, _)| *version != last) {
        return Ok(Some(format!("digests of {digests:?}, which should be of {last}")));
    }
    for node in 1..cluster.len() {
        if digests[node] != digests[0] {
            return Err(format!("nodes 0 and {node} have different contents: {digests:?}"));
        }
    }
    let key_of = |bytes: &[u8]| (0..KEYS).find(|key| key_bytes(*key) == bytes);
    // A log that a copy took the place of was kept; where nodes differ that is said there.
    logs.into_iter().for_each(|log| cluster.keep(log));
    let whole: Vec<Body> = cluster.archive.borrow().values().cloned().collect();
    run.told.borrow().check(&whole, key_of)?;
    Ok(None)
}
