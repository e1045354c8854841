//! Starting and joining a node's cores: one pinned executor each, with its ring, its desk and its inbox.

use crate::disk::RealDisk;
use crate::env::{RealEnv, SharedFlushes};
use crate::index_lane::{IndexLane, IndexLimits};
use crate::index_threads::{IndexLanes, IndexThreads};
use crate::log::Log;
use crate::pace;
use crate::placement;
use crate::remote::{Desk, Job};
use crate::ring::sys::Bell;
use crate::ring::{Handler, Ring};
use crate::scarcity::Scarcity;
use crate::tasks;
use glommio::{LocalExecutorBuilder, Placement, PoolPlacement};
use std::io::{self, Read};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::disk::DiskError;
use turnstone_engine::env::{Level, Sabotage};

/// The exit status of a process that ended itself because a core failed.
pub const EXIT_CORE: i32 = 70;
/// Messages that may wait at a core.
const INBOX: usize = 4096;

/// What a node is started with.
#[derive(Clone)]
pub struct NodeOptions {
    /// Executors; 0 is one per CPU.
    pub executors: usize,
    /// Where partitions have their directories.
    pub data: PathBuf,
    /// Block cache of each partition's index, bytes.
    pub index_cache_bytes: u64,
    /// Files of each partition's index that are kept open.
    pub index_files: usize,
    /// Whether the logs of a core are flushed together where the file system allows it.
    pub shared_flush: bool,
    /// A planted bug; only tests set it.
    pub sabotage: Option<Sabotage>,
}

/// The inboxes of all cores.
pub struct Mesh<M> {
    inboxes: Vec<(flume::Sender<M>, Bell)>,
}

impl<M> Clone for Mesh<M> {
    fn clone(&self) -> Self {
        Mesh { inboxes: self.inboxes.clone() }
    }
}

impl<M> Mesh<M> {
    /// How many cores there are.
    pub fn cores(&self) -> usize {
        self.inboxes.len()
    }
}

impl<M: Send + 'static> Mesh<M> {
    /// Sends to a core if its inbox has room; gives the message back otherwise.
    pub fn try_send(&self, core: usize, message: M) -> Result<(), M> {
        let (inbox, bell) = &self.inboxes[core];
        match inbox.try_send(message) {
            Ok(()) => {
                bell.ring();
                Ok(())
            }
            // The core has ended, and with it whatever the message was for.
            Err(flume::TrySendError::Disconnected(_)) => Ok(()),
            Err(flume::TrySendError::Full(message)) => Err(message),
        }
    }

    /// Sends from a thread that may block.
    pub fn send_blocking(&self, core: usize, message: M) {
        let (inbox, bell) = &self.inboxes[core];
        // Disconnected means that the core has ended.
        let _ = inbox.send(message);
        bell.ring();
    }
}

/// What a core has.
pub struct Core<M> {
    /// Its number.
    pub index: usize,
    /// All inboxes.
    pub mesh: Mesh<M>,
    /// Its own.
    pub inbox: flume::Receiver<M>,
    /// Its ring.
    pub ring: Ring,
    /// Its questions to other threads.
    pub desk: Desk,
    /// The log.
    pub log: Log,
    /// Flushes that its partitions share.
    pub flushes: SharedFlushes,
    scarcity: Rc<Scarcity>,
    lanes: IndexLanes,
    options: NodeOptions,
}

impl<M> Core<M> {
    /// The outside world of a partition of this core.
    pub async fn env(&self, partition: u8) -> Result<RealEnv, DiskError> {
        let directory = self.options.data.join(partition.to_string());
        let disk = RealDisk::open(self.ring.clone(), directory.clone(), self.scarcity.clone()).await?;
        let memory = IndexLimits { cache_bytes: self.options.index_cache_bytes, files: self.options.index_files };
        let index = IndexLane::new(directory, memory, self.lanes.clone(), self.desk.clone());
        let flushes = self.options.shared_flush.then(|| self.flushes.clone());
        Ok(RealEnv::new(disk, index, self.log.clone(), flushes, self.options.sabotage))
    }

    /// Whether partition `p` is this core's.
    pub fn owns(&self, partition: u8) -> bool {
        placement::home_of(partition, self.mesh.cores()) == self.index
    }

    /// Starts a task on this core, not before the caller has yielded.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        tasks::spawn_later(task);
    }

    /// Has `work`, which may block, done by a thread of its own.
    pub async fn on_a_thread<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let (lane, jobs) = flume::bounded::<Job>(1);
        std::thread::Builder::new().name(name.to_string()).spawn(move || jobs.iter().for_each(|job| job()))?;
        Ok(self.desk.ask(&lane, work).await)
    }

    /// Ends after `how_long`.
    pub async fn sleep(&self, how_long: Duration) {
        glommio::timer::sleep(how_long).await;
    }
}

/// 64 bits from the system's generator.
pub fn system_random() -> u64 {
    let mut bytes = [0u8; 8];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes));
    if read.is_err() {
        // Without it keys for hash tables and generation ids would be guessable from the time; better than not starting.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        return now.as_nanos() as u64 ^ u64::from(std::process::id()).rotate_left(40);
    }
    u64::from_ne_bytes(bytes)
}

/// A running node.
pub struct Node<M> {
    mesh: Mesh<M>,
    cores: Vec<std::thread::JoinHandle<io::Result<()>>>,
    threads: IndexThreads,
}

impl<M: Send + 'static> Node<M> {
    /// Starts all cores. `make` builds a core's handler on its own thread; its `Drive` future is then driven until the
    /// handler stops the ring.
    pub fn start<F, G, H>(options: NodeOptions, log: Log, make: F) -> io::Result<Node<M>>
    where
        F: Fn(Rc<Core<M>>) -> G + Clone + Send + 'static,
        G: Future<Output = Rc<H>> + 'static,
        H: Handler,
    {
        let executors = placement::executors(options.executors);
        let cpus = placement::allowed_cpus();
        let readers = cpus.len().clamp(1, 4);
        let (lanes, threads) = IndexThreads::start(readers, 2)?;
        let mut inboxes = Vec::new();
        let mut receivers = Vec::new();
        for _ in 0..executors {
            let (sender, receiver) = flume::bounded(INBOX);
            let bell = Bell::new()?;
            inboxes.push((sender, bell.clone()));
            receivers.push((receiver, bell));
        }
        let mesh = Mesh { inboxes };
        if placement::cpu_of(0, executors, &cpus).is_none() {
            log.line(Level::Info, &format!("{executors} executors on {} CPUs: not pinned", cpus.len()));
        }
        let mut cores = Vec::new();
        for (index, (inbox, bell)) in receivers.into_iter().enumerate() {
            let pinned = placement::cpu_of(index, executors, &cpus);
            let parts = Parts {
                index,
                mesh: mesh.clone(),
                inbox,
                bell,
                log: log.clone(),
                lanes: lanes.clone(),
                options: options.clone(),
            };
            let make = make.clone();
            let thread = std::thread::Builder::new().name(format!("core-{index}"));
            let log = log.clone();
            cores.push(thread.spawn(move || {
                let ended = run_core(parts, pinned, make);
                if let Err(error) = &ended {
                    // One dead core must not leave the others serving (D19).
                    log.line(Level::Error, &format!("core {index} failed: {error}; the process ends, start it again"));
                    log.flush();
                    std::process::exit(EXIT_CORE);
                }
                ended
            })?);
        }
        Ok(Node { mesh, cores, threads })
    }

    /// The inboxes.
    pub fn mesh(&self) -> &Mesh<M> {
        &self.mesh
    }

    /// Waits until every core ended, and answers the first error.
    pub fn join(self) -> io::Result<()> {
        let mut outcome = Ok(());
        for core in self.cores {
            match core.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => outcome = outcome.and(Err(error)),
                Err(_) => outcome = outcome.and(Err(io::Error::other("a core ended with a panic"))),
            }
        }
        drop(self.mesh);
        self.threads.stop();
        outcome
    }
}

struct Parts<M> {
    index: usize,
    mesh: Mesh<M>,
    inbox: flume::Receiver<M>,
    bell: Bell,
    log: Log,
    lanes: IndexLanes,
    options: NodeOptions,
}

fn run_core<M, F, G, H>(parts: Parts<M>, pinned: Option<usize>, make: F) -> io::Result<()>
where
    M: Send + 'static,
    F: Fn(Rc<Core<M>>) -> G,
    G: Future<Output = Rc<H>> + 'static,
    H: Handler,
{
    let executor = match pinned.map(|cpu| build(Placement::Fixed(cpu), parts.index)) {
        Some(Ok(executor)) => executor,
        Some(Err(error)) => {
            parts.log.line(Level::Warn, &format!("core {} runs unpinned: {error}", parts.index));
            build(Placement::Unbound, parts.index)?
        }
        None => build(Placement::Unbound, parts.index)?,
    };
    executor.run(async move {
        let Parts { index, mesh, inbox, bell, log, lanes, options } = parts;
        let beat = glommio::spawn_local(pace::heartbeat());
        probe_polling(&options.data, index).await?;
        let ring = Ring::new(bell.clone())?;
        let desk = Desk::new(bell);
        let core = Rc::new(Core {
            index,
            mesh,
            inbox,
            ring: ring.clone(),
            desk: desk.clone(),
            scarcity: Rc::new(Scarcity::new(log.clone())),
            log,
            flushes: SharedFlushes::default(),
            lanes,
            options,
        });
        // The ring is driven from the start, since opening partitions reads through it; the handler is plugged in after.
        let switch = Rc::new(Switch { desk, handler: std::cell::OnceCell::new() });
        let driving = glommio::spawn_local({
            let (ring, switch) = (ring.clone(), switch.clone());
            async move { ring.drive(switch).await }
        });
        let handler = make(core).await;
        let _ = switch.handler.set(handler as Rc<dyn Handler>);
        ring.poke();
        let ended = driving.await;
        beat.cancel().await;
        ended
    })
}

/// glommio decides once per device whether its reads can be polled for, by reading from the first file that it opens
/// there. An empty file answers even where polling is not supported, and every later read would fail: so the first file
/// is one with something in it.
///
/// A file that is there already serves as well: a start on a full disk must not need to write before it can read.
async fn probe_polling(data: &std::path::Path, index: usize) -> io::Result<()> {
    let named = |what: &'static str, path: &std::path::Path| {
        let path = path.display().to_string();
        move |error: io::Error| io::Error::new(error.kind(), format!("{what} {path}: {error}"))
    };
    std::fs::create_dir_all(data).map_err(named("cannot make", data))?;
    let manifests = (1..=u8::MAX).map(|number| data.join(number.to_string()).join("manifest"));
    let there = manifests.into_iter().find(|path| std::fs::metadata(path).is_ok_and(|found| found.len() >= 4096));
    let path = match &there {
        Some(manifest) => manifest.clone(),
        None => {
            let path = data.join(format!(".probe-{index}"));
            std::fs::write(&path, [0u8; 8192]).map_err(named("a first start needs space; cannot write", &path))?;
            path
        }
    };
    let read = async {
        let file = glommio::io::OpenOptions::new().read(true).dma_open(&path).await?;
        file.read_at_aligned(0, 4096).await?;
        file.close().await.map_err(io::Error::from)
    };
    read.await.map_err(named("cannot read", &path))?;
    if there.is_none() { std::fs::remove_file(&path) } else { Ok(()) }
}

fn build(placement: Placement, index: usize) -> io::Result<glommio::LocalExecutor> {
    LocalExecutorBuilder::new(placement)
        .name(&format!("core-{index}"))
        .io_memory(1 << 20)
        .preempt_timer(pace::PREEMPT)
        .blocking_thread_pool_placement(PoolPlacement::Unbound(1))
        .make()
        .map_err(|e| io::Error::other(format!("core {index} cannot start: {e}")))
}

/// Hands the ring's events to the handler once there is one, and answers to the desk at once.
struct Switch {
    desk: Desk,
    handler: std::cell::OnceCell<Rc<dyn Handler>>,
}

impl Handler for Switch {
    fn accepted(&self, socket: std::os::fd::OwnedFd) {
        if let Some(handler) = self.handler.get() {
            handler.accepted(socket);
        }
    }
    fn accept_failed(&self, errno: i32) {
        if let Some(handler) = self.handler.get() {
            handler.accept_failed(errno);
        }
    }
    fn received(&self, socket: crate::ring::SocketId, bytes: &[u8]) {
        if let Some(handler) = self.handler.get() {
            handler.received(socket, bytes);
        }
    }
    fn receive_ended(&self, socket: crate::ring::SocketId, why: crate::ring::Ended) {
        if let Some(handler) = self.handler.get() {
            handler.receive_ended(socket, why);
        }
    }
    fn progressed(&self, socket: crate::ring::SocketId) {
        if let Some(handler) = self.handler.get() {
            handler.progressed(socket);
        }
    }
    fn sent(&self, socket: crate::ring::SocketId, result: Result<usize, i32>) {
        if let Some(handler) = self.handler.get() {
            handler.sent(socket, result);
        }
    }
    fn submitting(&self) {
        if let Some(handler) = self.handler.get() {
            handler.submitting();
        }
    }
    fn turn(&self) -> bool {
        self.desk.take_answers();
        self.handler.get().is_some_and(|handler| handler.turn())
    }
}
