//! Replication on a core of the server: the transports of [`turnstone_replication`]'s state machines.
//!
//! A partition that follows has a connection of its own to its leader, which its ClientHello's hint puts on the core of the
//! leader's partition: no byte of a stream crosses cores on either side, and a slow partition holds up no other.
//!
//! * [`feed`]: the leader's side: a task per follower reads the log and sends it.
//! * [`following`]: the follower's side: a task per partition dials, applies and confirms.

mod feed;
mod following;

use super::connection::Introduction;
use super::core::ServerCore;
use super::input::Input;
use super::refusals::Refusal;
use crate::tls::Role;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};
use turnstone_engine::sync::Notify;
use turnstone_replication::wire::{AROUND, BadFrame, Frame};

/// Plain bytes that a connection holds at most beside a frame that is not whole.
const INPUT_MAX: usize = 4 << 20;
/// Encrypted bytes that may wait at a follower's socket.
const BACKLOG_MAX: usize = 4 << 20;
/// A follower sends nothing longer than its history.
const FROM_FOLLOWER_MAX: usize = 1 << 20;
/// How often a stream looks at the time.
const TICK: Duration = Duration::from_millis(100);

/// A connection that replicates, as its task sees it.
pub struct Link {
    input: RefCell<Input>,
    /// Longest frame that the other side may send.
    frame_max: usize,
    /// Something came, something left, it is gone, or time has passed.
    pub changed: Notify,
    /// Bytes came since it was last asked.
    heard: Cell<bool>,
    open: Cell<bool>,
    gone: Cell<bool>,
    why: RefCell<Option<String>>,
}

impl Link {
    fn new(frame_max: usize) -> Link {
        Link {
            input: RefCell::default(),
            frame_max,
            changed: Notify::default(),
            heard: Cell::default(),
            open: Cell::default(),
            gone: Cell::default(),
            why: RefCell::default(),
        }
    }

    /// Why the connection is of no use; it ends.
    pub fn fail(&self, why: &str) {
        *self.why.borrow_mut() = Some(why.to_string());
        self.end();
    }

    /// The connection is gone.
    pub fn end(&self) {
        self.gone.set(true);
        self.changed.notify();
    }

    /// The next whole frame that came.
    fn next(&self) -> Result<Option<Frame>, BadFrame> {
        let mut input = self.input.borrow_mut();
        if Link::whole(&input).is_some_and(|whole| whole > self.frame_max) {
            return Err(BadFrame("a frame is longer than this side may send"));
        }
        let Some((frame, used)) = Frame::decode(input.rest())? else { return Ok(None) };
        input.take(used);
        Ok(Some(frame))
    }

    /// How long the first frame is.
    fn whole(input: &Input) -> Option<usize> {
        let head = input.rest().get(1..5)?;
        Some(u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize + AROUND)
    }

    /// Whether there is more than needs to be there: who is choked has a whole frame to work on.
    fn is_full(&self) -> bool {
        let input = self.input.borrow();
        input.len() > INPUT_MAX && Link::whole(&input).is_some_and(|whole| input.len() >= whole.min(self.frame_max))
    }
}

/// A follower as `stat` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Its node.
    pub node: u64,
    /// Its address.
    pub peer: String,
    /// What it has on its disk.
    pub acked: u64,
}

/// What a core knows of its partitions' replication.
#[derive(Default)]
pub struct Board {
    replicas: RefCell<BTreeMap<(u8, u64), Replica>>,
    upstream: RefCell<BTreeMap<u8, Following>>,
}

/// How a partition gets on with its leader.
enum Following {
    /// It has a stream, and is this many versions behind.
    Streaming(u64),
    /// It has none, and why.
    Broken(String),
}

impl Board {
    /// Who follows a partition now.
    pub fn replicas(&self, partition: u8) -> Vec<Replica> {
        let replicas = self.replicas.borrow();
        replicas.range((partition, 0)..=(partition, u64::MAX)).map(|(_, replica)| replica.clone()).collect()
    }

    /// How a partition that follows gets on with its leader.
    pub fn upstream(&self, partition: u8) -> Option<String> {
        self.upstream.borrow().get(&partition).map(|following| match following {
            Following::Streaming(lag) => format!("streaming, {lag} behind"),
            Following::Broken(why) => format!("broken: {why}"),
        })
    }
}

impl ServerCore {
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
        if introduction.role == Ok(Role::Server) && introduction.replica {
            link.open.set(true);
        } else {
            link.fail(if introduction.replica { "its certificate is no server's" } else { "it does not replicate" });
        }
        link.changed.notify();
    }

    /// Another node comes to follow: only servers may.
    pub(super) fn admit_follower(&self, id: u64, introduction: &Introduction) -> bool {
        if !self.admit(id, introduction.dialect) {
            return false;
        }
        if introduction.role != Ok(Role::Server) {
            self.refuse(id, Refusal::Role, "may not replicate: its certificate is no server's");
            self.abort(id);
            return false;
        }
        let link = self.link(id, FROM_FOLLOWER_MAX);
        self.core.spawn(feed::feed(self.this(), id, link));
        true
    }

    fn link(&self, id: u64, frame_max: usize) -> Rc<Link> {
        let link = Rc::new(Link::new(frame_max));
        self.links.borrow_mut().insert(id, link.clone());
        self.core.spawn(tick(Rc::downgrade(&self.this()), Rc::downgrade(&link)));
        link
    }

    /// The next frame of a link, if one is whole; more may come then.
    fn next_frame(&self, id: u64, link: &Link) -> Result<Option<Frame>, String> {
        let frame = link.next().map_err(|BadFrame(what)| what.to_string())?;
        if !link.is_full() {
            self.unchoke(id);
        }
        Ok(frame)
    }

    fn say_frame(&self, id: u64, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.with(id, |connection| connection.say(&bytes));
    }

    /// Whether too much waits at the socket; `None` if it is gone.
    fn has_backlog(&self, id: u64) -> Option<bool> {
        self.connections.borrow().get(&id).map(|c| c.wire.len() > BACKLOG_MAX)
    }

    /// Milliseconds and less since this node's first moment; only differences count.
    fn uptime(&self) -> Duration {
        Instant::now().saturating_duration_since(self.began)
    }
}

async fn tick(server: Weak<ServerCore>, link: Weak<Link>) {
    loop {
        let Some(core) = server.upgrade().map(|server| server.core.clone()) else { return };
        core.sleep(TICK).await;
        let Some(link) = link.upgrade() else { return };
        if link.gone.get() {
            return;
        }
        link.changed.notify();
    }
}
