//! The follower's side of a stream: dials the leader, applies what comes, and confirms what is on the disk.
//!
//! Who follows whom is in the partition's manifest; a task per partition keeps at it, with pauses that grow, until the role
//! changes or another attempt takes its place.

use super::super::conversation::{Conversation, Key};
use super::super::core::{ServerCore, Slot};
use super::super::execute::{self, Finish};
use super::{Following, Link};
use crate::client::Address;
use crate::server::connection::Connection;
use crate::tls::follower_config;
use crate::wire::{ErrorCode, reply};
use rustls::pki_types::ServerName;
use std::convert::Infallible;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};
use turnstone_engine::env::Level;
use turnstone_engine::follow::Incoming;
use turnstone_engine::manifest::{Role, Upstream};
use turnstone_engine::sync::first_of;
use turnstone_engine::types::Version;
use turnstone_engine::{Error, Partition};
use turnstone_executor::RealEnv;
use turnstone_executor::pace::give_way;
use turnstone_replication::BEAT;
use turnstone_replication::follower::{Follower, Step};
use turnstone_replication::wire::{AROUND, Frame, PAYLOAD_MAX, Reason};

/// A connection attempt takes at most this long.
const DIAL: Duration = Duration::from_secs(3);
/// From the connection to the leader's answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Pauses between attempts grow from here...
const PAUSE: Duration = Duration::from_millis(100);
/// ...to here.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Why there is no stream.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Trouble {
    /// The leader cannot be reached, or the stream broke: tried again.
    Broken(String),
    /// The leader refuses: tried again, things may change there.
    Refused(Reason, String),
    /// This partition is to follow no more.
    Over,
}

impl Trouble {
    fn text(&self) -> String {
        match self {
            Trouble::Broken(text) | Trouble::Refused(_, text) => text.clone(),
            Trouble::Over => "it follows no more".to_string(),
        }
    }

    fn code(&self) -> ErrorCode {
        match self {
            Trouble::Refused(Reason::Diverged, _) => ErrorCode::Diverged,
            Trouble::Refused(Reason::Purged, _) => ErrorCode::Purged,
            Trouble::Refused(Reason::NotLeader, _) => ErrorCode::NotLeader,
            Trouble::Refused(Reason::NoPartition, _) => ErrorCode::NoSuchPartition,
            Trouble::Refused(Reason::Protocol | Reason::Itself, _) => ErrorCode::Unsupported,
            Trouble::Broken(_) | Trouble::Over => ErrorCode::Busy,
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        Trouble::Broken(error.to_string())
    }
}

/// An open stream.
struct Stream {
    id: u64,
    link: Rc<Link>,
    follower: Follower,
    /// What was here when it was opened.
    last: Version,
    epochs: Vec<turnstone_engine::manifest::EpochStart>,
}

impl ServerCore {
    /// Partitions that followed before the start go on.
    pub(in crate::server) fn go_on_following(&self) {
        let partitions: Vec<Partition<RealEnv>> = {
            let partitions = self.partitions.borrow();
            partitions.values().filter_map(|s| if let Slot::Open(p) = s { Some(p.clone()) } else { None }).collect()
        };
        for partition in partitions {
            if let Role::Follower(upstream) = partition.role() {
                self.core.spawn(keep_following(self.this(), partition, upstream, None));
            }
        }
    }

    /// `replicaof`: follows, once the leader has agreed, or follows no more.
    pub(in crate::server) fn replica_of(
        &self,
        key: Key,
        conversation: &mut Conversation,
        id: u32,
        upstream: Option<Upstream>,
    ) {
        let Some(partition) = conversation.partition.clone() else { return };
        conversation.blocked = true;
        let this = self.this();
        self.core.spawn(async move {
            let answer = match upstream {
                Some(upstream) => this.begin_following(partition, upstream).await,
                None => this.stop_following(&partition).await,
            };
            let finish: Finish<RealEnv> = Box::new(move |conversation| {
                let dialect = conversation.session.dialect;
                match answer {
                    Ok(()) => conversation.reply(|out| reply::encode_ok(dialect, id, &[], out)),
                    Err(trouble) => execute::refuse_with(conversation, id, trouble.code(), &trouble.text()),
                }
            });
            this.unblock(key, finish);
        });
    }

    async fn stop_following(&self, partition: &Partition<RealEnv>) -> Result<(), Trouble> {
        self.next_order(partition.id());
        if matches!(partition.role(), Role::Follower(_)) {
            partition.step_down().await?;
            self.next_attempt(partition.id());
        }
        Ok(())
    }

    async fn begin_following(
        self: &Rc<Self>,
        partition: Partition<RealEnv>,
        upstream: Upstream,
    ) -> Result<(), Trouble> {
        let order = self.next_order(partition.id());
        let before = (partition.role(), partition.history());
        let mut stream = self.open_stream(&partition, &upstream).await?;
        // That took its time: another order, a promotion or a step-down since then stands.
        let newest = self.orders.borrow().get(&partition.id()).copied();
        if newest != Some(order) || before != (partition.role(), partition.history()) {
            self.abort(stream.id);
            return Err(Trouble::Broken("the partition's role was changed meanwhile; ask again".to_string()));
        }
        if let Err(error) = partition.follow(upstream.clone()).await {
            self.abort(stream.id);
            return Err(error.into());
        }
        if stream.last != partition.prepared() {
            // Something was committed here since the hello.
            self.abort(stream.id);
            stream = match self.open_stream(&partition, &upstream).await {
                Ok(stream) => stream,
                Err(trouble) => {
                    match before.0 {
                        Role::Leader => partition.promote().await?,
                        _ => partition.step_down().await?,
                    }
                    return Err(trouble);
                }
            };
        }
        self.core.spawn(keep_following(self.clone(), partition, upstream, Some(stream)));
        Ok(())
    }

    /// Numbers the orders of who follows whom.
    fn next_order(&self, partition: u8) -> u64 {
        let mut orders = self.orders.borrow_mut();
        let order = orders.entry(partition).or_default();
        *order += 1;
        *order
    }

    fn next_attempt(&self, partition: u8) -> u64 {
        let mut following = self.following.borrow_mut();
        let attempt = following.entry(partition).or_default();
        *attempt += 1;
        self.board.upstream.borrow_mut().remove(&partition);
        *attempt
    }

    /// Connects, and asks for what comes behind what is here.
    async fn open_stream(
        self: &Rc<Self>,
        partition: &Partition<RealEnv>,
        upstream: &Upstream,
    ) -> Result<Stream, Trouble> {
        let (id, link) = self.dial(upstream).await?;
        let opened = self.introduce(partition, upstream, id, &link).await;
        if opened.is_err() {
            self.abort(id);
        }
        opened
    }

    async fn introduce(
        self: &Rc<Self>,
        partition: &Partition<RealEnv>,
        upstream: &Upstream,
        id: u64,
        link: &Rc<Link>,
    ) -> Result<Stream, Trouble> {
        let deadline = self.uptime() + ANSWER;
        let in_time = || {
            if link.gone.get() {
                let why = link.why.borrow().clone();
                let why = why.unwrap_or_else(|| "the leader closed the connection".to_string());
                Err(Trouble::Broken(format!("{}: {why}", upstream.address)))
            } else if self.uptime() > deadline {
                Err(Trouble::Broken(format!("{} did not answer in time", upstream.address)))
            } else {
                Ok(())
            }
        };
        while !link.open.get() {
            in_time()?;
            link.changed.notified().await;
        }
        let (node, last) = (self.settings.node, partition.prepared());
        let have = (last, partition.history());
        let (mut follower, hello) = Follower::open(node, partition.id(), upstream.partition, have, self.uptime());
        self.say_frame(id, &hello);
        loop {
            if let Some(frame) = self.next_frame(id, link).map_err(Trouble::Broken)? {
                return match follower.take(frame, self.uptime()).map_err(|v| Trouble::Broken(v.0))? {
                    Step::Adopt(epochs) => Ok(Stream { id, link: link.clone(), follower, last, epochs }),
                    Step::Refused(reason, text) => Err(Trouble::Refused(reason, text)),
                    _ => Err(Trouble::Broken("the leader did not answer the hello".to_string())),
                };
            }
            in_time()?;
            link.changed.notified().await;
        }
    }

    /// Opens a connection to the leader.
    async fn dial(&self, upstream: &Upstream) -> Result<(u64, Rc<Link>), Trouble> {
        let (address, partition) = (upstream.address.clone(), upstream.partition);
        let files = self.settings.tls.clone();
        let dialed = self.core.on_a_thread("dial", move || {
            let address: Address = address.parse().map_err(|e: crate::client::AddressError| e.to_string())?;
            let config = follower_config(&files, partition).map_err(|e| e.to_string())?;
            let name = ServerName::try_from(address.client_host().to_string())
                .map_err(|_| format!("{address} has no name that a certificate can have"))?;
            let tls = rustls::ClientConnection::new(Arc::clone(&config), name).map_err(|e| e.to_string())?;
            Ok::<_, String>((connect(&address)?, tls))
        });
        let dialed = dialed.await.map_err(|e| Trouble::Broken(format!("no thread to dial from: {e}")))?;
        let (fd, mut tls) = dialed.map_err(Trouble::Broken)?;
        if self.stopping.get().is_some() {
            return Err(Trouble::Over);
        }
        tls.set_buffer_limit(None);
        let id = self.next_connection.get();
        self.next_connection.set(id + 1);
        let socket = self.core.ring.adopt(fd);
        self.sockets.borrow_mut().insert(socket, id);
        self.connections.borrow_mut().insert(id, Connection::outbound(socket, tls, Instant::now()));
        let link = self.link(id, PAYLOAD_MAX + AROUND);
        self.with(id, |_| {});
        Ok((id, link))
    }

    /// Who is at the other end of a connection.
    pub(super) fn peer(&self, id: u64) -> String {
        let socket = self.connections.borrow().get(&id).map(|c| c.socket);
        let peer = socket.and_then(|socket| self.core.ring.peer(socket));
        peer.map_or_else(|| "a follower".to_string(), |peer| peer.to_string())
    }
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

/// Follows until the role changes.
async fn keep_following(
    server: Rc<ServerCore>,
    partition: Partition<RealEnv>,
    upstream: Upstream,
    mut opened: Option<Stream>,
) {
    let own = partition.id();
    let attempt = server.next_attempt(own);
    let weak = Rc::downgrade(&server);
    drop(server);
    let (mut pause, mut told) = (PAUSE, None);
    loop {
        let Some(server) = weak.upgrade() else { return };
        if !is_current(&server, &partition, &upstream, attempt) {
            if let Some(stream) = opened {
                server.abort(stream.id);
            }
            return;
        }
        let stream = match opened.take() {
            Some(stream) => Ok(stream),
            None => server.open_stream(&partition, &upstream).await,
        };
        let trouble = match stream {
            Ok(stream) => {
                let (id, began) = (stream.id, Instant::now());
                let at = format!("partition {own} follows {}/{}", upstream.address, upstream.partition);
                server.core.log.line(Level::Info, &format!("{at} from version {} on", partition.prepared() + 1));
                let current = || is_current(&server, &partition, &upstream, attempt);
                let first = partition.prepared();
                let Err(trouble) = apply(&server, &partition, &upstream, stream, &current).await;
                server.abort(id);
                if partition.prepared() > first || began.elapsed() > PAUSE_MAX {
                    // It was of use.
                    told = None;
                    pause = PAUSE;
                }
                trouble
            }
            Err(trouble) => trouble,
        };
        if trouble == Trouble::Over || !is_current(&server, &partition, &upstream, attempt) {
            if server.following.borrow().get(&own) == Some(&attempt) {
                server.board.upstream.borrow_mut().remove(&own);
            }
            return;
        }
        let text = trouble.text();
        if told.as_ref() != Some(&text) {
            server.core.log.line(Level::Warn, &format!("partition {own} does not follow now: {text}"));
            told = Some(text.clone());
        }
        server.board.upstream.borrow_mut().insert(own, Following::Broken(text));
        let core = server.core.clone();
        drop(server);
        core.sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn is_current(server: &ServerCore, partition: &Partition<RealEnv>, upstream: &Upstream, attempt: u64) -> bool {
    let newest = server.following.borrow().get(&partition.id()).copied();
    server.stopping.get().is_none() && newest == Some(attempt) && partition.role() == Role::Follower(upstream.clone())
}

/// Applies a stream until something is wrong with it, and says what.
async fn apply(
    server: &ServerCore,
    partition: &Partition<RealEnv>,
    upstream: &Upstream,
    stream: Stream,
    is_current: &impl Fn() -> bool,
) -> Result<Infallible, Trouble> {
    let Stream { id, link, mut follower, epochs, .. } = stream;
    partition.adopt_history(upstream, epochs).await?;
    // By itself: an append may wait for a checkpoint, and the leader must not take this node for gone.
    server.core.spawn(beat(Rc::downgrade(&server.this()), id, Rc::downgrade(&link), partition.clone()));
    let mut incoming: Option<Incoming<RealEnv>> = None;
    let mut skipped = false;
    loop {
        let now = server.uptime();
        let published = partition.published();
        if !is_current() {
            return Err(Trouble::Over);
        }
        if link.heard.replace(false) {
            follower.hears(now);
        }
        if let Some(ack) = follower.durable(published) {
            server.say_frame(id, &ack);
        }
        let lag = follower.lag(published);
        server.board.upstream.borrow_mut().insert(partition.id(), Following::Streaming(lag));
        let Some(frame) = server.next_frame(id, &link).map_err(Trouble::Broken)? else {
            if link.gone.get() {
                return Err(Trouble::Broken("the connection to the leader is gone".to_string()));
            }
            if follower.is_gone(now) {
                return Err(Trouble::Broken("the leader is silent".to_string()));
            }
            // Told as soon as it is durable, if anything is on its way there.
            let wanted = if partition.prepared() > published { published + 1 } else { u64::MAX };
            first_of(link.changed.notified(), partition.wait_published(wanted)).await;
            continue;
        };
        match follower.take(frame, now).map_err(|violation| Trouble::Broken(violation.0))? {
            Step::Nothing => {}
            Step::Refused(reason, text) => return Err(Trouble::Refused(reason, text)),
            Step::Adopt(epochs) => partition.adopt_history(upstream, epochs).await?,
            Step::Batch(bytes) => {
                give_way().await;
                if incoming.is_some() {
                    return Err(Trouble::Broken("a batch came where a large value was due".to_string()));
                }
                let batch = partition.incoming(upstream, bytes)?;
                skipped = batch.is_none();
                match batch {
                    Some(batch) if batch.wanted() == 0 => {
                        batch.finish().await?;
                    }
                    batch => incoming = batch,
                }
            }
            Step::Value(bytes) => match incoming.take() {
                Some(mut batch) => {
                    batch.value(bytes.into()).await?;
                    if batch.wanted() == 0 {
                        batch.finish().await?;
                    } else {
                        incoming = Some(batch);
                    }
                }
                None if skipped => {}
                None => return Err(Trouble::Broken("a large value came that no batch asked for".to_string())),
            },
        }
    }
}

/// Tells the leader that this node lives, as long as the stream does.
async fn beat(server: Weak<ServerCore>, id: u64, link: Weak<Link>, partition: Partition<RealEnv>) {
    loop {
        let Some(core) = server.upgrade().map(|server| server.core.clone()) else { return };
        core.sleep(BEAT).await;
        drop(core);
        let (Some(server), Some(link)) = (server.upgrade(), link.upgrade()) else { return };
        if link.gone.get() {
            return;
        }
        server.say_frame(id, &Frame::Beat(partition.published()));
    }
}
