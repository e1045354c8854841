//! Simulated nodes: a real partition and the server's real replication around it, on a disk that a crash leaves as it was.

use super::features::{Feature, Features};
use super::network::{SimLink, Weather, connect};
use crate::sim::disk::{Loss, Refusal};
use crate::sim::{Clock, DiskImage, IndexImage, SimDisk, SimEnv, SimIndex, World};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;
use turnstone_engine::disk::DiskErrorKind;
use turnstone_engine::env::{Env, Sabotage};
use turnstone_engine::types::Version;
use turnstone_engine::wal::body::Body;
use turnstone_engine::{Error, Partition, Settings};
use turnstone_net::replica::{COPY_TAKES_PLACE, Host, Replication, open_again};

/// The partition that is replicated.
pub const PARTITION: u8 = 1;
/// An opening that is refused is tried again after this time.
const REFUSED: Duration = Duration::from_millis(100);
/// Dialing gives up after this time, unless a test says otherwise.
const DIAL: Duration = Duration::from_secs(1);

/// A node that runs.
pub struct Running {
    /// Grows with every start.
    pub life: u32,
    env: SimEnv,
    partition: RefCell<Option<Partition<SimEnv>>>,
    replication: RefCell<Option<Rc<Replication<SimHost>>>>,
    links: RefCell<Vec<Weak<SimLink>>>,
}

/// A copy of a home, and the newest version in it.
type HomeCopy = (DiskImage, IndexImage, Version);

/// All nodes.
pub struct Cluster {
    /// Time, tasks, choices.
    pub world: Rc<World>,
    /// What is wrong with the network.
    pub weather: Rc<Weather>,
    nodes: Vec<RefCell<Option<Rc<Running>>>>,
    disks: Vec<RefCell<(DiskImage, IndexImage)>>,
    /// What the nodes' disks refuse, and after how many operations.
    refusals: Vec<Cell<Option<(DiskErrorKind, u64)>>>,
    /// Older copies of homes.
    copies: Vec<RefCell<Option<HomeCopy>>>,
    /// As of the node's last start.
    clocks: Vec<Cell<Clock>>,
    /// Whether clocks go wrong.
    skewed: bool,
    settings: Settings,
    sabotage: Option<Sabotage>,
    /// What this run tries and checks beyond the plain faults.
    pub features: Features,
    /// How often each node was moved to another address.
    moves: Vec<Cell<u32>>,
    /// How often each node got a certificate with another key.
    renewals: Vec<Cell<u8>>,
    lives: Cell<u32>,
    /// Of 100 followers that could have the log so many get a copy.
    pub copies_percent: u64,
    /// What logs had that copies took the place of.
    pub archive: RefCell<BTreeMap<(Version, u64), Body>>,
    /// Copies that were taken.
    pub copied: Cell<u64>,
    /// Dialing gives up after this time.
    pub patience: Cell<Duration>,
    /// What must not be.
    pub failure: RefCell<Option<String>>,
}

/// One node, as its replication sees it.
pub struct SimHost {
    cluster: Weak<Cluster>,
    node: usize,
    life: u32,
}

impl Cluster {
    /// So many nodes, none of which runs.
    pub fn new(world: Rc<World>, nodes: usize, settings: Settings, sabotage: Option<Sabotage>) -> Rc<Cluster> {
        Cluster::with_features(world, nodes, settings, sabotage, Features::NONE)
    }

    /// The same, for a run that tries and checks more.
    pub fn with_features(
        world: Rc<World>,
        nodes: usize,
        settings: Settings,
        sabotage: Option<Sabotage>,
        features: Features,
    ) -> Rc<Cluster> {
        let copies_percent = if world.rng.percent(30) { 10 + world.rng.below(60) } else { 0 };
        let skewed = world.rng.percent(30);
        Rc::new(Cluster {
            copies_percent,
            skewed,
            clocks: (0..nodes).map(|_| Cell::default()).collect(),
            archive: RefCell::default(),
            copied: Cell::new(0),
            world,
            weather: Rc::default(),
            nodes: (0..nodes).map(|_| RefCell::default()).collect(),
            disks: (0..nodes).map(|_| RefCell::default()).collect(),
            refusals: (0..nodes).map(|_| Cell::default()).collect(),
            copies: (0..nodes).map(|_| RefCell::default()).collect(),
            settings,
            sabotage,
            features,
            moves: (0..nodes).map(|_| Cell::new(0)).collect(),
            renewals: (0..nodes).map(|_| Cell::new(0)).collect(),
            lives: Cell::new(0),
            patience: Cell::new(DIAL),
            failure: RefCell::default(),
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Where a node listens now.
    pub fn address(&self, node: usize) -> String {
        format!("n{node}:{}", 9 + self.moves[node].get())
    }

    /// From its next start on the node listens elsewhere. It must not run.
    pub fn move_away(&self, node: usize) {
        self.moves[node].set(self.moves[node].get() + 1);
    }

    /// The node's certificate is replaced by one with another key.
    pub fn renew_key(&self, node: usize) {
        self.renewals[node].set(self.renewals[node].get().wrapping_add(1));
    }

    fn key(&self, node: usize) -> [u8; 32] {
        let mut key = [node as u8; 32];
        key[1] = self.renewals[node].get();
        key
    }

    /// Which node listens at an address now.
    pub fn node_at(&self, address: &str) -> Option<usize> {
        (0..self.len()).find(|node| self.address(*node) == address)
    }

    /// Says what must not be; the first time counts.
    pub fn fail(&self, what: String) {
        self.failure.borrow_mut().get_or_insert(what);
    }

    /// Owner of a node's tasks.
    pub fn owner(node: usize) -> u32 {
        node as u32 + 1
    }

    /// A node that runs.
    pub fn running(&self, node: usize) -> Option<Rc<Running>> {
        self.nodes[node].borrow().clone()
    }

    /// The partition of a node that runs and has it open.
    pub fn partition(&self, node: usize) -> Option<Partition<SimEnv>> {
        self.running(node).and_then(|running| running.partition.borrow().clone())
    }

    /// The replication of a node that runs.
    pub fn replication(&self, node: usize) -> Option<Rc<Replication<SimHost>>> {
        self.running(node).and_then(|running| running.replication.borrow().clone())
    }

    /// Keeps batches that were published; a version of an epoch has one batch only.
    pub fn keep(&self, log: Vec<Body>) {
        let mut archive = self.archive.borrow_mut();
        for batch in log {
            let place = (batch.first_version, batch.epoch.id);
            if archive.get(&place).is_some_and(|known| *known != batch) && !self.may_lose() {
                self.fail(format!("two nodes have shown different batches with version {}", batch.first_version));
            }
            archive.insert(place, batch);
        }
    }

    /// Whether what was shown may be lost in this run, and histories part.
    fn may_lose(&self) -> bool {
        self.features.has(Feature::ZeroReplicas) || self.features.has(Feature::Force)
    }

    /// The index of a node that runs.
    pub fn index(&self, node: usize) -> Option<SimIndex> {
        self.running(node).map(|running| running.env.index.clone())
    }

    /// Starts a node on what its disk has.
    pub fn start(self: &Rc<Self>, node: usize) {
        let (disk, index) = self.disks[node].borrow().clone();
        self.lives.set(self.lives.get() + 1);
        if self.skewed {
            // Somebody sets it, to within a day, and it goes a tenth too fast or too slow.
            let rng = &self.world.rng;
            let (ahead_ms, pace) = (rng.below(172_800_000) as i64 - 86_400_000, 90 + rng.below(21) as u32);
            self.clocks[node].set(Clock { pace, ahead_ms });
        }
        let env = SimEnv {
            world: self.world.clone(),
            disk: SimDisk::new(self.world.clone(), disk),
            index: SimIndex::new(self.world.clone(), index, false),
            sabotage: self.sabotage,
            shared: None,
            clock: self.clocks[node].get(),
        };
        let running = Rc::new(Running {
            life: self.lives.get(),
            env: env.clone(),
            partition: RefCell::default(),
            replication: RefCell::default(),
            links: RefCell::default(),
        });
        *self.nodes[node].borrow_mut() = Some(running.clone());
        self.refuse_disk(node, self.refusals[node].get());
        let (cluster, settings) = (Rc::downgrade(self), self.settings.clone());
        self.world.spawn_for(Cluster::owner(node), async move {
            // As the server does, which waits longer than disks refuse here.
            let opened = loop {
                match Partition::open(env.clone(), PARTITION, settings.clone()).await {
                    Err(error) if error.is_refusal() => env.sleep(REFUSED).await,
                    other => break other,
                }
            };
            let Some(up) = cluster.upgrade() else { return };
            match opened {
                Ok(partition) => {
                    let replication = Replication::new(SimHost { cluster: cluster.clone(), node, life: running.life });
                    *running.partition.borrow_mut() = Some(partition.clone());
                    *running.replication.borrow_mut() = Some(replication.clone());
                    replication.begin(&partition);
                }
                Err(error) => up.fail(format!("node {node} does not open: {error}")),
            }
        });
    }

    /// From now on the node's disk refuses, after so many operations; or refuses nothing any more.
    pub fn refuse_disk(&self, node: usize, refusal: Option<(DiskErrorKind, u64)>) {
        self.refusals[node].set(refusal);
        if let Some(running) = self.running(node) {
            let disk = &running.env.disk;
            let from = disk.operations();
            disk.refuse(refusal.map(|(kind, after)| Refusal { kind, from: from + after, count: u64::MAX }));
        }
    }

    /// All that is published in a node's log: what the simulator reads for itself is not refused.
    pub async fn read_whole_log(&self, node: usize, partition: &Partition<SimEnv>) -> Result<Vec<Body>, Error> {
        loop {
            partition.env().disk.refuse(None);
            let log = read_log(partition, partition.oldest_version()).await;
            self.refuse_disk(node, self.refusals[node].get());
            match log {
                Err(error) if error.is_refusal() => {}
                log => return log,
            }
        }
    }

    /// The power goes, or the process dies.
    pub fn crash(&self, node: usize, loss: Loss) {
        let Some(running) = self.nodes[node].borrow_mut().take() else { return };
        self.world.drop_tasks_of(Cluster::owner(node));
        let disk = running.env.disk.image().crash(loss);
        let index = running.env.index.image().crash(self.world.rng.next());
        *self.disks[node].borrow_mut() = (disk, index);
        for link in running.links.borrow().iter().filter_map(Weak::upgrade) {
            link.reset();
        }
    }

    /// The newest version in the copy of a node's home, if there is one.
    pub fn copied(&self, node: usize) -> Option<Version> {
        self.copies[node].borrow().as_ref().map(|(.., version)| *version)
    }

    /// Makes a copy of the home of a node that runs, as it is in the system's cache.
    pub fn copy_home(&self, node: usize) {
        let (Some(running), Some(partition)) = (self.running(node), self.partition(node)) else { return };
        let disk = running.env.disk.image().crash(Loss::Nothing);
        let index = running.env.index.image().crash(self.world.rng.next());
        *self.copies[node].borrow_mut() = Some((disk, index, partition.prepared()));
    }

    /// A node that does not run has what was copied, and nothing else.
    pub fn put_back(&self, node: usize) {
        if let Some((disk, index, _)) = &*self.copies[node].borrow() {
            self.world.log_line(format_args!("node {node}: its home is put back from an older copy"));
            *self.disks[node].borrow_mut() = (disk.clone(), index.clone());
        }
    }

    /// Connections of a node break.
    pub fn reset(&self, node: usize) {
        if let Some(running) = self.running(node) {
            running.links.borrow().iter().filter_map(Weak::upgrade).for_each(|link| link.reset());
            running.links.borrow_mut().retain(|link| link.strong_count() > 0);
        }
    }
}

/// Everything that is published, from `next` on.
pub async fn read_log(partition: &Partition<SimEnv>, mut next: Version) -> Result<Vec<Body>, Error> {
    let mut log = Vec::new();
    while next <= partition.published() {
        let page = partition.read_log(next, 1 << 20).await?;
        next = page.next;
        log.extend(page.batches);
    }
    Ok(log)
}

impl SimHost {
    fn running(&self) -> Option<Rc<Running>> {
        let cluster = self.cluster.upgrade()?;
        cluster.running(self.node).filter(|running| running.life == self.life)
    }
}

impl Host for SimHost {
    type Env = SimEnv;
    type Link = SimLink;

    fn partition(&self, number: u8) -> Option<Partition<SimEnv>> {
        if number != PARTITION {
            return None;
        }
        self.running()?.partition.borrow().clone()
    }

    async fn reopen(
        &self,
        _: u8,
        why: &str,
        change: impl AsyncFnOnce(&Partition<SimEnv>) -> Result<(), Error>,
    ) -> Result<Partition<SimEnv>, Error> {
        let running = self.running().ok_or(Error::ShuttingDown)?;
        let cluster = self.cluster.upgrade().ok_or(Error::ShuttingDown)?;
        let old = running.partition.borrow_mut().take().ok_or(Error::ShuttingDown)?;
        old.abandon().await;
        // A copy takes the place of the log: what is in it was told to clients, and is compared at the end.
        let log = if why == COPY_TAKES_PLACE { cluster.read_whole_log(self.node, &old).await } else { Ok(Vec::new()) };
        let changed = change(&old).await;
        if let Err(error) = &changed
            && !matches!(error, Error::Fenced { .. } | Error::Upstream(_))
            && !error.is_refusal()
        {
            cluster.fail(format!("node {}, {why}: {error}", self.node));
        }
        match log {
            Ok(log) => cluster.keep(log),
            Err(error) => cluster.fail(format!("node {}, its log cannot be read before {why}: {error}", self.node)),
        }
        if changed.is_ok() && why == COPY_TAKES_PLACE {
            cluster.copied.set(cluster.copied.get() + 1);
        }
        let open = async || Partition::open(running.env.clone(), PARTITION, cluster.settings.clone()).await;
        let pause = async |_: &Error, wait: Duration| {
            cluster.world.sleep(wait).await;
            true
        };
        match open_again(open, pause).await {
            Ok(partition) => {
                *running.partition.borrow_mut() = Some(partition.clone());
                changed.map(|()| partition)
            }
            Err(error) => {
                cluster.fail(format!("node {} does not open after {why}: {error}", self.node));
                Err(error)
            }
        }
    }

    async fn dial(&self, address: String, _: u8) -> Result<Rc<SimLink>, String> {
        let cluster = self.cluster.upgrade().ok_or("over")?;
        let to = cluster.node_at(&address).ok_or_else(|| format!("{address} refuses"))?;
        let world = cluster.world.clone();
        world.sleep(Duration::from_micros(100 + world.rng.below(2000))).await;
        if cluster.weather.is_cut(self.node, to) || cluster.weather.is_cut(to, self.node) {
            world.sleep(cluster.patience.get()).await;
            return Err(format!("{address} does not answer"));
        }
        let Some(there) = cluster.running(to) else { return Err(format!("{address} refuses")) };
        let Some(replication) = there.replication.borrow().clone() else {
            return Err(format!("{address} is not ready"));
        };
        let (near, far) = {
            let (from, to) = ((self.node, cluster.key(self.node)), (to, cluster.key(to)));
            connect(&world, &cluster.weather, from, to)
        };
        if let Some(here) = self.running() {
            here.links.borrow_mut().push(Rc::downgrade(&near));
        }
        there.links.borrow_mut().push(Rc::downgrade(&far));
        let env = there.env.clone();
        world.spawn_for(Cluster::owner(to), async move {
            // Why it ended interests only people.
            let _ = replication.serve(far, env).await;
        });
        Ok(near)
    }

    fn node(&self) -> u64 {
        self.node as u64 + 100
    }

    fn life(&self) -> u64 {
        u64::from(self.life)
    }

    fn address(&self) -> String {
        self.cluster.upgrade().map_or_else(String::new, |cluster| cluster.address(self.node))
    }

    fn now(&self) -> Duration {
        let shown = |cluster: Rc<Cluster>| cluster.clocks[self.node].get().shows(cluster.world.now());
        self.cluster.upgrade().map_or(Duration::ZERO, shown)
    }

    fn stopping(&self) -> bool {
        self.running().is_none()
    }

    fn copy_frame_bytes(&self) -> usize {
        let long = self.cluster.upgrade().is_some_and(|cluster| cluster.features.has(Feature::LongCopies));
        if long { 1 << 10 } else { 256 << 10 }
    }

    fn rather_copies(&self) -> bool {
        let copies = |cluster: Rc<Cluster>| cluster.world.rng.percent(cluster.copies_percent);
        self.cluster.upgrade().is_some_and(copies)
    }
}
