//! The server: cores with their partitions and connections, from settings to shutdown.

pub mod ahead;
mod connection;
pub mod conversation;
mod core;
mod deadlines;
mod door;
mod errors;
pub mod execute;
mod forward;
pub mod handoff;
mod hold;
pub mod input;
mod intake;
pub mod long;
pub mod memory;
mod node_view;
pub mod orders;
mod refusals;
mod replica;
mod retention;
mod settings;
mod shared;
mod starved;
pub mod system;

use self::core::{ServerCore, Slot};
use crate::tls::{self, Terms};
pub(crate) use errors::code_of;
use handoff::Message;
pub use settings::ServerSettings;
use shared::Shared;
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use turnstone_engine::Partition;
use turnstone_engine::env::Level;
use turnstone_executor::{Core, Log, Node, NodeOptions, RealEnv, placement};

/// What the start found.
#[derive(Clone, Debug, Default)]
pub struct Ready {
    /// How long opening took.
    pub took: Duration,
    /// Partitions that serve.
    pub open: usize,
    /// Partitions that do not, and why.
    pub offline: Vec<(u8, String)>,
    /// Live keys as of the last checkpoints.
    pub keys: u64,
}

/// Binds the listening socket. The kernel lets go of the one of a process that was killed a little after the process is
/// gone, when it has dismantled its rings: a restart at once waits for that.
fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    const PATIENCE: Duration = Duration::from_secs(2);
    const PAUSE: Duration = Duration::from_millis(10);
    let started = Instant::now();
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && started.elapsed() < PATIENCE => {
                std::thread::sleep(PAUSE);
            }
            bound => return bound,
        }
    }
}

/// A running server.
pub struct Server {
    node: Node<Message>,
    address: SocketAddr,
    ready: flume::Receiver<Ready>,
    /// What cores have told so far.
    heard: Mutex<Vec<Ready>>,
    tls: tls::TlsFiles,
    shared: Arc<Shared>,
    cores: usize,
    started: Instant,
}

impl Server {
    /// Starts all cores; partitions are opened there. The listening socket is bound at once, served when all are open.
    pub fn start(settings: ServerSettings, options: NodeOptions, log: Log) -> Result<Server, String> {
        let config = tls::server_config(&settings.tls).map_err(|e| e.to_string())?;
        let listener = bind(settings.listen).map_err(|e| {
            format!("cannot listen on {}: {e}; choose another with --port, or stop who uses it", settings.listen)
        })?;
        let address = listener.local_addr().map_err(|e| format!("the listening socket has no address: {e}"))?;
        let mut settings = settings;
        if settings.advertise.is_empty() {
            settings.advertise = format!(":{}", address.port());
        }
        let started = Instant::now();
        let tls = settings.tls.clone();
        let cores = placement::executors(options.executors);
        let (ready_sender, ready) = flume::bounded(cores);
        let settings = Arc::new(settings);
        let shared = Arc::new(Shared::new(settings.request_memory));
        *shared.certificates() = Terms::read(&tls).map_err(|e| e.to_string())?;
        let of_server = shared.clone();
        let listener = Arc::new(Mutex::new(Some(listener)));
        // Every core opens first, then all start to listen together with core 0.
        let gate = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let node = Node::start(options, log, move |core: Rc<Core<Message>>| {
            let (settings, config, shared) = (settings.clone(), config.clone(), shared.clone());
            let (ready, listener, gate) = (ready_sender.clone(), listener.clone(), gate.clone());
            async move {
                let partitions = open_partitions(&core, &settings).await;
                gate.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let listener = if core.index == 0 {
                    while gate.load(std::sync::atomic::Ordering::SeqCst) < core.mesh.cores() {
                        core.sleep(Duration::from_millis(1)).await;
                    }
                    listener.lock().ok().and_then(|mut l| l.take())
                } else {
                    None
                };
                let report = report(&partitions);
                let server = ServerCore::new(core.clone(), settings, config, shared, listener, partitions);
                if core.index == 0 {
                    core.spawn(retention::share_out(Rc::downgrade(&server)));
                }
                // Nobody waits when the start was given up.
                let _ = ready.send(report);
                server
            }
        });
        let node = node.map_err(|e| format!("the cores cannot be started: {e}"))?;
        Ok(Server { node, address, ready, heard: Mutex::default(), tls, shared: of_server, cores, started })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until connections are served.
    pub fn wait_ready(&self) -> Result<Ready, String> {
        loop {
            if let Some(ready) = self.ready_within(Duration::from_secs(3600))? {
                return Ok(ready);
            }
        }
    }

    /// Waits until connections are served, at most this long; `None` if they are not yet.
    pub fn ready_within(&self, at_most: Duration) -> Result<Option<Ready>, String> {
        let deadline = Instant::now() + at_most;
        let mut heard = self.heard.lock().map_err(|_| "the start was given up".to_string())?;
        while heard.len() < self.cores {
            match self.ready.recv_deadline(deadline) {
                Ok(one) => heard.push(one),
                Err(flume::RecvTimeoutError::Timeout) => return Ok(None),
                Err(flume::RecvTimeoutError::Disconnected) => {
                    return Err("a core ended before it was ready; its log line says why".to_string());
                }
            }
        }
        let mut all = Ready { took: self.started.elapsed(), ..Ready::default() };
        for one in heard.drain(..) {
            all.open += one.open;
            all.keys += one.keys;
            all.offline.extend(one.offline);
        }
        Ok(Some(all))
    }

    /// Reads certificate, key and CA anew; connections from now on are greeted with them, open ones go on as they are. Answers what
    /// has changed, a line for each certificate.
    pub fn reload_certificates(&self) -> Result<Vec<String>, String> {
        let config = tls::server_config(&self.tls).map_err(|e| e.to_string())?;
        let terms = Terms::read(&self.tls).map_err(|e| e.to_string())?;
        let before = std::mem::replace(&mut *self.shared.certificates(), terms.clone());
        for core in 0..self.cores {
            self.node.mesh().send_blocking(core, Message::Certificates(config.clone()));
        }
        Ok(terms.changes_since(&before))
    }

    /// Stops accepting, finishes what is in flight, checkpoints and closes. Returns at once; see [`Server::join`].
    pub fn shut_down(&self) {
        for core in 0..self.cores {
            self.node.mesh().send_blocking(core, Message::Shutdown);
        }
    }

    /// Waits until everything has ended.
    pub fn join(self) -> Result<(), String> {
        self.node.join().map_err(|e| e.to_string())
    }
}

fn report(partitions: &BTreeMap<u8, Slot>) -> Ready {
    let mut ready = Ready::default();
    for (number, slot) in partitions {
        match slot {
            Slot::Open(partition) => {
                ready.open += 1;
                ready.keys += partition.status().keys;
            }
            Slot::Offline(why) => ready.offline.push((*number, why.clone())),
        }
    }
    ready
}

/// Opens this core's partitions side by side; a damaged one is offline while the others serve.
async fn open_partitions(core: &Rc<Core<Message>>, settings: &ServerSettings) -> BTreeMap<u8, Slot> {
    let mine: Vec<u8> = (1..=settings.partitions).filter(|p| core.owns(*p)).collect();
    let (sender, opened) = flume::bounded(mine.len().max(1));
    for number in &mine {
        let (core, sender, engine, number) = (core.clone(), sender.clone(), settings.engine.clone(), *number);
        core.clone().spawn(async move {
            let slot = open_partition(&core, number, engine).await;
            // Same core: the receiver below is waiting.
            let _ = sender.send((number, slot));
        });
    }
    let mut partitions = BTreeMap::new();
    while partitions.len() < mine.len() {
        match opened.try_recv() {
            Ok((number, slot)) => {
                partitions.insert(number, slot);
            }
            Err(_) => core.sleep(Duration::from_micros(200)).await,
        }
    }
    partitions
}

/// Opens a partition that keeps all the log it has, until core 0 hands out shares by what each holds.
pub(super) async fn open_keeping(
    core: &Core<Message>,
    number: u8,
    engine: turnstone_engine::Settings,
) -> Result<Partition<RealEnv>, turnstone_engine::Error> {
    let partition = Partition::open(core.env(number).await?, number, engine).await?;
    partition.keep_what_there_is();
    Ok(partition)
}

async fn open_partition(core: &Rc<Core<Message>>, number: u8, engine: turnstone_engine::Settings) -> Slot {
    /// How long an opening is tried again that the system refuses something.
    const PATIENCE: Duration = Duration::from_secs(5);
    let started = Instant::now();
    let opened = loop {
        match open_keeping(core, number, engine.clone()).await {
            Err(error) if error.is_refusal() && started.elapsed() < PATIENCE => {
                core.sleep(PATIENCE / 50).await;
            }
            other => break other,
        }
    };
    match opened {
        Ok(partition) => Slot::Open(partition),
        Err(error) => {
            core.log.line(Level::Error, &format!("partition {number} is offline, the others serve: {error}"));
            Slot::Offline(error.to_string())
        }
    }
}
