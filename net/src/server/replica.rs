//! The server's side of [`crate::replica`]: connections between nodes, and partitions that are closed, cut and opened anew.
//!
//! A partition that follows has a connection of its own to its leader, which its ClientHello's hint puts on the core of the
//! leader's partition: no byte of a stream crosses cores on either side, and a slow partition holds up no other.

use super::connection::{Connection, Introduction, StreamKind};
use super::conversation::{Conversation, Key};
use super::core::{ServerCore, Slot};
use super::execute::{self, Finish};
use super::input::Input;
use super::orders::Order;
use super::refusals::Refusal;
use super::system;
use crate::client::Address;
use crate::replica::{Host, Link, Promoted, Replication, Speaks, Trouble, open_again};
use crate::tls::{Role, follower_config};
use crate::wire::change::{self, FROM_CONSUMER_MAX};
use crate::wire::reply;
use rustls::pki_types::ServerName;
use std::cell::{Cell, RefCell};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};
use turnstone_engine::env::Level;
use turnstone_engine::sync::{Notify, first_of};
use turnstone_engine::{Error, Partition};
use turnstone_executor::RealEnv;
use turnstone_replication::wire::{AROUND, BadFrame, Frame, PAYLOAD_MAX};

/// Plain bytes that a connection holds at most beside a frame that is not whole.
const INPUT_MAX: usize = 4 << 20;
/// Encrypted bytes that may wait at a follower's socket.
const BACKLOG_MAX: usize = 4 << 20;
/// Plain bytes that may wait for the next submission.
const SAID_MAX: usize = 1 << 20;
/// A follower sends nothing longer than its history.
const FROM_FOLLOWER_MAX: usize = 1 << 20;
/// A connection attempt takes at most this long...
const DIAL: Duration = Duration::from_secs(3);
/// ...and its handshake so long.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Takes a frame off the front of bytes.
type Decode<F> = fn(&[u8]) -> Result<Option<(F, usize)>, BadFrame>;

/// A connection that replicates, or sends changes.
pub struct Wire {
    server: Weak<ServerCore>,
    id: u64,
    peer: String,
    input: RefCell<Input>,
    /// What was said since the last submission of the core's ring: it leaves with the next, in one piece.
    said: RefCell<Vec<u8>>,
    /// SHA-256 of the other side's public key, and its certificate's name.
    identity: RefCell<([u8; 32], String)>,
    /// Longest frame that the other side may send.
    frame_max: usize,
    changed: Notify,
    /// Bytes came since it was last asked.
    heard: Cell<bool>,
    open: Cell<bool>,
    gone: Cell<bool>,
    why: RefCell<Option<String>>,
}

impl Wire {
    /// The connection is of no use; it ends.
    pub fn fail(&self, why: &str) {
        *self.why.borrow_mut() = Some(why.to_string());
        self.end();
    }

    /// The connection is gone.
    pub fn end(&self) {
        self.gone.set(true);
        self.changed.notify();
    }

    /// Something was sent.
    pub fn stir(&self) {
        self.changed.notify();
    }

    /// Sends what was said.
    fn utter(&self, server: &ServerCore) {
        let mut said = self.said.borrow_mut();
        server.with(self.id, |connection| connection.say(&said));
        said.clear();
        said.shrink_to(2 * SAID_MAX);
    }

    /// How long the first frame is.
    fn whole(input: &Input) -> Option<usize> {
        let head = input.rest().get(1..5)?;
        Some(u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize + AROUND)
    }

    /// Whether there is more than needs to be there: who is choked has a whole frame to work on.
    fn is_full(&self) -> bool {
        let input = self.input.borrow();
        input.len() > INPUT_MAX && Wire::whole(&input).is_some_and(|whole| input.len() >= whole.min(self.frame_max))
    }

    /// The next frame, as `decode` reads it.
    fn take<F>(&self, decode: Decode<F>) -> Result<Option<F>, String> {
        let taken = {
            let mut input = self.input.borrow_mut();
            if Wire::whole(&input).is_some_and(|whole| whole > self.frame_max) {
                Err(BadFrame("a frame is longer than this side may send"))
            } else {
                decode(input.rest()).map(|found| {
                    found.map(|(frame, used)| {
                        input.take(used);
                        frame
                    })
                })
            }
        };
        let frame = taken.map_err(|BadFrame(what)| what.to_string())?;
        if !self.is_full()
            && let Some(server) = self.server.upgrade()
        {
            server.unchoke(self.id);
        }
        Ok(frame)
    }

    /// Says what `encode` appends.
    fn add(&self, encode: impl FnOnce(&mut Vec<u8>)) {
        let Some(server) = self.server.upgrade() else { return };
        let mut said = self.said.borrow_mut();
        let first = said.is_empty();
        encode(&mut said);
        if said.len() > SAID_MAX {
            drop(said);
            self.utter(&server);
        } else if first {
            server.speaking.borrow_mut().push(self.id);
            server.core.ring.poke();
        }
    }
}

impl Speaks<Frame> for Wire {
    fn say(&self, frame: &Frame) {
        self.add(|out| frame.encode(out));
    }

    fn next(&self) -> Result<Option<Frame>, String> {
        self.take(Frame::decode)
    }
}

impl Speaks<change::Frame> for Wire {
    fn say(&self, frame: &change::Frame) {
        self.add(|out| frame.encode(out));
    }

    fn next(&self) -> Result<Option<change::Frame>, String> {
        self.take(change::Frame::decode)
    }
}

impl Link for Wire {
    fn heard(&self) -> bool {
        self.heard.replace(false)
    }

    fn gone(&self) -> Option<String> {
        let why = || self.why.borrow().clone().unwrap_or_else(|| "the other side closed the connection".to_string());
        self.gone.get().then(why)
    }

    fn is_clogged(&self) -> bool {
        let Some(server) = self.server.upgrade() else { return false };
        server.connections.borrow().get(&self.id).is_some_and(|c| c.wire.len() > BACKLOG_MAX)
    }

    fn changed(&self) -> &Notify {
        &self.changed
    }

    fn peer(&self) -> String {
        self.peer.clone()
    }

    fn identity(&self) -> ([u8; 32], String) {
        self.identity.borrow().clone()
    }

    fn close(&self) {
        if let Some(server) = self.server.upgrade() {
            self.utter(&server);
            server.with(self.id, Connection::say_goodbye);
        }
    }
}

/// The node as its replication sees it.
pub struct Here(pub Weak<ServerCore>);

impl Host for Here {
    type Env = RealEnv;
    type Link = Wire;

    fn partition(&self, number: u8) -> Option<Partition<RealEnv>> {
        let server = self.0.upgrade()?;
        match server.partitions.borrow().get(&number) {
            Some(Slot::Open(partition)) => Some(partition.clone()),
            _ => None,
        }
    }

    async fn reopen(
        &self,
        number: u8,
        why: &str,
        change: impl AsyncFnOnce(&Partition<RealEnv>) -> Result<(), Error>,
    ) -> Result<Partition<RealEnv>, Error> {
        let server = self.0.upgrade().ok_or(Error::ShuttingDown)?;
        let old = self.partition(number).ok_or(Error::ShuttingDown)?;
        let away = Slot::Offline(format!("{why}; try again"));
        server.partitions.borrow_mut().insert(number, away);
        old.abandon().await;
        let changed = change(&old).await;
        let open = async || super::open_keeping(&server.core, number, server.settings.engine.clone()).await;
        let pause = async |error: &Error, wait: Duration| {
            let text = format!(
                "partition {number} is offline: it does not open again ({why}) and is tried again in {} ms: {error}",
                wait.as_millis()
            );
            server.core.log.line(Level::Warn, &text);
            server.partitions.borrow_mut().insert(number, Slot::Offline(format!("{error}; it is tried again")));
            server.core.sleep(wait).await;
            server.stopping.get().is_none()
        };
        match open_again(open, pause).await {
            Ok(partition) => {
                server.serve_partition(number, partition.clone());
                // Where nothing could be changed it serves as it is.
                changed.map(|()| partition)
            }
            Err(error) => {
                let text = format!("partition {number} is offline: it does not open again ({why}): {error}");
                server.core.log.line(Level::Error, &text);
                server.partitions.borrow_mut().insert(number, Slot::Offline(error.to_string()));
                Err(error)
            }
        }
    }

    async fn dial(&self, address: String, partition: u8) -> Result<Rc<Wire>, String> {
        let server = self.0.upgrade().ok_or("the server ends")?;
        let wire = server.dial(address, partition).await?;
        let deadline = Instant::now() + HANDSHAKE;
        while !wire.open.get() {
            if let Some(why) = wire.gone() {
                return Err(why);
            }
            if Instant::now() > deadline {
                wire.close();
                return Err("the handshake took too long".to_string());
            }
            first_of(wire.changed.notified(), server.core.sleep(Duration::from_millis(100))).await;
        }
        Ok(wire)
    }

    fn node(&self) -> u64 {
        self.0.upgrade().map_or(0, |server| server.settings.node)
    }

    fn life(&self) -> u64 {
        self.0.upgrade().map_or(0, |server| server.settings.life)
    }

    fn address(&self) -> String {
        self.0.upgrade().map_or_else(String::new, |server| server.settings.advertise.clone())
    }

    fn now(&self) -> Duration {
        self.0.upgrade().map_or(Duration::ZERO, |server| server.began.elapsed())
    }

    fn stopping(&self) -> bool {
        self.0.upgrade().is_none_or(|server| server.stopping.get().is_some())
    }
}

impl ServerCore {
    /// Sends what replicating connections have said since the last submission.
    pub(super) fn utter_all(&self) {
        for id in std::mem::take(&mut *self.speaking.borrow_mut()) {
            let link = self.links.borrow().get(&id).cloned();
            if let Some(link) = link {
                link.utter(self);
            }
        }
    }

    /// Takes bytes of a connection that replicates; answers whether it is one.
    pub(super) fn hear_link(&self, id: u64, plain: &[u8]) -> bool {
        let Some(link) = self.links.borrow().get(&id).cloned() else { return false };
        link.heard.set(true);
        link.input.borrow_mut().extend(plain);
        if link.is_full() {
            self.choke(id);
        }
        link.changed.notify();
        true
    }

    /// A connection that this node opened is through its handshake.
    pub(super) fn link_introduced(&self, id: u64, introduction: &Introduction) {
        let Some(link) = self.links.borrow().get(&id).cloned() else { return };
        *link.identity.borrow_mut() = (introduction.key, introduction.name.clone());
        let replica = introduction.stream == Some(StreamKind::Replica);
        if introduction.role == Ok(Role::Server) && replica {
            link.open.set(true);
        } else {
            link.fail(if replica { "its certificate is no server's" } else { "it does not replicate" });
        }
        link.changed.notify();
    }

    /// Another node comes to follow, which only servers may; or a consumer comes for changes.
    pub(super) fn admit_stream(&self, id: u64, introduction: &Introduction) -> bool {
        if !self.admit(id, introduction.dialect, introduction.role.as_ref().ok().copied()) {
            return false;
        }
        let (allowed, what) = match introduction.stream {
            Some(StreamKind::Changes) => {
                let allowed = matches!(introduction.role, Ok(Role::Cdc | Role::Admin));
                (allowed, "may not read changes: its certificate is neither a cdc's nor an admin's")
            }
            _ => (introduction.role == Ok(Role::Server), "may not replicate: its certificate is no server's"),
        };
        if !allowed {
            self.refuse(id, Refusal::Role, what);
            self.abort(id);
            return false;
        }
        let Some(env) = self.any_env() else {
            self.abort(id);
            return false;
        };
        let this = self.this();
        let identity = (introduction.key, introduction.name.clone());
        if introduction.stream == Some(StreamKind::Changes) {
            let link = self.link(id, FROM_CONSUMER_MAX, identity);
            self.core.spawn(async move {
                let changes = this.changes.clone();
                if let Err(why) = changes.serve(link.clone(), env).await {
                    let text = format!("the change stream to {} ends: {why}", link.peer());
                    this.core.log.line(Level::Info, &text);
                }
            });
            return true;
        }
        let link = self.link(id, FROM_FOLLOWER_MAX, identity);
        self.core.spawn(async move {
            let peer = link.peer();
            let replication = this.replication.clone();
            if let Err(why) = replication.serve(link.clone(), env).await
                && link.gone().is_none()
            {
                this.core.log.line(Level::Info, &format!("the stream to {peer} ends: {why}"));
            }
        });
        true
    }

    /// The world of a partition of this core: all have the same clock.
    fn any_env(&self) -> Option<RealEnv> {
        self.partitions.borrow().values().find_map(|slot| match slot {
            Slot::Open(partition) => Some(partition.env().clone()),
            Slot::Offline(_) => None,
        })
    }

    /// `identity`: the key and the name of the other side, as far as they are known already.
    fn link(&self, id: u64, frame_max: usize, identity: ([u8; 32], String)) -> Rc<Wire> {
        let link = Rc::new(Wire {
            server: Rc::downgrade(&self.this()),
            id,
            peer: self.peer(id),
            input: RefCell::default(),
            said: RefCell::default(),
            identity: RefCell::new(identity),
            frame_max,
            changed: Notify::default(),
            heard: Cell::default(),
            open: Cell::default(),
            gone: Cell::default(),
            why: RefCell::default(),
        });
        self.links.borrow_mut().insert(id, link.clone());
        link
    }

    /// Opens a connection to another node.
    async fn dial(&self, address: String, partition: u8) -> Result<Rc<Wire>, String> {
        let files = self.settings.tls.clone();
        let dialed = self.core.on_a_thread("dial", move || {
            let address: Address = address.parse().map_err(|e: crate::client::AddressError| e.to_string())?;
            let config = follower_config(&files, partition).map_err(|e| e.to_string())?;
            let name = ServerName::try_from(address.client_host().to_string())
                .map_err(|_| format!("{address} has no name that a certificate can have"))?;
            let tls = rustls::ClientConnection::new(Arc::clone(&config), name).map_err(|e| e.to_string())?;
            Ok::<_, String>((connect(&address)?, tls))
        });
        let dialed = dialed.await.map_err(|e| format!("no thread to dial from: {e}"))?;
        let (fd, mut tls) = dialed?;
        if self.stopping.get().is_some() {
            return Err("the server ends".to_string());
        }
        tls.set_buffer_limit(None);
        let id = self.next_connection.get();
        self.next_connection.set(id + 1);
        let socket = self.core.ring.adopt(fd);
        self.sockets.borrow_mut().insert(socket, id);
        self.connections.borrow_mut().insert(id, Connection::outbound(socket, tls, Instant::now()));
        let link = self.link(id, PAYLOAD_MAX + AROUND, Default::default());
        self.with(id, |_| {});
        Ok(link)
    }

    /// Who is at the other end of a connection.
    pub(super) fn peer(&self, id: u64) -> String {
        let socket = self.connections.borrow().get(&id).map(|c| c.socket);
        let peer = socket.and_then(|socket| self.core.ring.peer(socket));
        peer.map_or_else(|| "another node".to_string(), |peer| peer.to_string())
    }

    /// Runs a command about a partition's replication.
    pub(super) fn order(&self, key: Key, conversation: &mut Conversation, id: u32, order: Order) {
        let Some(partition) = conversation.partition.clone() else { return };
        conversation.blocked = true;
        let this = self.this();
        self.core.spawn(async move {
            let answer = this.obey(partition, order).await;
            let finish: Finish<RealEnv> = Box::new(move |conversation| {
                let dialect = conversation.session.dialect;
                match answer {
                    Ok(text) => conversation.reply(|out| reply::encode_ok(dialect, id, &[text.as_bytes()], out)),
                    Err(trouble) => execute::refuse_with(conversation, id, trouble.code(), &trouble.text()),
                }
            });
            this.unblock(key, finish);
        });
    }

    async fn obey(&self, partition: Partition<RealEnv>, order: Order) -> Result<String, Trouble> {
        let replication: &Rc<Replication<Here>> = &self.replication;
        match order {
            Order::Follow(Some(upstream), force) => replication.begin_following(partition, upstream, force).await?,
            Order::Follow(None, _) => replication.stop_following(&partition).await?,
            Order::StepDown => replication.step_down(&partition).await?,
            Order::Role => return Ok(system::role_text(&partition)),
            Order::Replicas => return Ok(system::replicas_text(&partition, &self.replication.board)),
            Order::Digest => return digest(&partition).await,
            Order::Promote(order) => {
                let Promoted { epoch, missing } = replication.promote(partition.id(), order).await?;
                if missing > 0 {
                    return Ok(format!(
                        "leads in epoch {}; {missing} promises are missing: what only those members hold may be lost",
                        epoch.number
                    ));
                }
            }
            Order::MinReplicas(min_replicas) => replication.change_min_replicas(&partition, min_replicas).await?,
            Order::Forget(node) => replication.forget(&partition, node).await?,
        }
        Ok(String::new())
    }
}

/// A hash of everything that is shown, and the position that it is of.
async fn digest(partition: &Partition<RealEnv>) -> Result<String, Trouble> {
    partition.check_readable()?;
    let (version, digest) = partition.digest().await?;
    Ok(format!("{} {digest:016x}", partition.position(version)))
}

fn connect(address: &Address) -> Result<OwnedFd, String> {
    let host = address.client_host();
    let candidates =
        (host, address.port).to_socket_addrs().map_err(|e| format!("the host of {address} cannot be found: {e}"))?;
    let mut last = format!("the host of {address} has no address");
    for candidate in candidates {
        match TcpStream::connect_timeout(&candidate, DIAL) {
            // Where nobody listens, the system may give the socket that very port, and it meets itself.
            Ok(socket) if socket.local_addr().is_ok_and(|local| local == candidate) => {
                last = format!("{address} ({candidate}) cannot be reached: nobody listens");
            }
            Ok(socket) => return Ok(socket.into()),
            Err(error) => last = format!("{address} ({candidate}) cannot be reached: {error}"),
        }
    }
    Err(last)
}
