//! A core of the server: its partitions, its connections, the conversations it runs.
//!
//! Everything happens in turns of the ring. Received bytes are decrypted and mark their conversation; at the turn's end
//! each marked conversation runs the frames it has, and each connection sends its replies in one write.
//!
//! A conversation runs on the core of its partition. `select` moves the whole connection there (socket, TLS state, unread
//! bytes); one that keeps moving stays where it is and only its conversation travels, bytes going back and forth.

use super::ServerSettings;
use super::ahead;
use super::connection::{Connection, Leaving, Place, Stage, session};
use super::conversation::{Conversation, Key};
use super::deadlines::{SWEEP, keep_deadlines};
use super::execute::{self, Later, NodeQuestion, Outcome};
use super::handoff::{Greeting, Message, Moving, Parked};
use super::long;
use super::node_view::NodeViews;
use super::refusals::Refusal;
use super::replica::{Here, Wire};
use super::shared::Shared;
use crate::changes::Changes;
use crate::replica::Replication;
use crate::session::{Session, Step};
use crate::tls::Role;
use crate::wire::{Dialect, ErrorCode, WireError, hint_from_alpn, reply};
use rustls::ServerConfig;
use rustls::server::Accepted;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};
use turnstone_engine::{Partition, TOGETHER};
use turnstone_executor::ring::sys;
use turnstone_executor::{Core, Ended, Handler, RealEnv, SocketId, placement};

/// Encrypted bytes that may wait at a socket before its conversation stops.
pub(super) const WIRE_MAX: usize = 1 << 20;
/// Bytes of replies that are encrypted at once.
const SAID_AT_ONCE: usize = 256 << 10;
/// Frames of one conversation per turn.
const FRAMES_PER_TURN: usize = 256;
/// Connections beyond `max_conns` that servers and admins may have, with a sixteenth of it.
const PLACES_KEPT: usize = 32;
/// How long conversations are run in a turn.
const TURN_TIME: Duration = Duration::from_micros(500);
/// Up to so many bytes the memory of decrypted bytes is kept.
const PLAIN_KEPT: usize = 64 << 10;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;
/// A partition of this core.
pub enum Slot {
    /// It serves.
    Open(Partition<RealEnv>),
    /// It is being opened anew, or its files are damaged, or its disk failed; why.
    Offline(String),
}

/// One core.
pub struct ServerCore {
    pub(super) core: Rc<Core<Message>>,
    pub(super) settings: Arc<ServerSettings>,
    pub(super) tls: RefCell<Arc<ServerConfig>>,
    pub(super) shared: Arc<Shared>,
    listener: Option<std::net::TcpListener>,
    pub(super) partitions: RefCell<BTreeMap<u8, Slot>>,
    pub(super) connections: RefCell<BTreeMap<u64, Connection>>,
    pub(super) sockets: RefCell<BTreeMap<SocketId, u64>>,
    pub(super) conversations: RefCell<BTreeMap<Key, Conversation>>,
    marked: RefCell<BTreeSet<Key>>,
    /// The conversation that the last turn had no time for.
    resume_at: Cell<Option<Key>>,
    /// Conversations with replies that wait for a partition's versions.
    waiting: RefCell<BTreeMap<u8, BTreeSet<Key>>>,
    /// Conversations whose replies are held back for what comes next, and whether a task looks after them.
    pub(super) held: RefCell<Vec<Key>>,
    pub(super) holding: Cell<bool>,
    /// Conversations whose next request waits for memory, and whether a task looks after them.
    pub(super) starved: RefCell<BTreeSet<Key>>,
    pub(super) feeding: Cell<bool>,
    outbox: RefCell<VecDeque<(usize, Message)>>,
    /// Connections in their handshakes, oldest first; others may be among them.
    pub(super) greeting: RefCell<VecDeque<u64>>,
    /// Connections whose handshake has something to be done.
    pub(super) to_greet: RefCell<VecDeque<u64>>,
    /// A socket with this number or a higher one is not taken: files must be opened, too.
    pub(super) next_connection: Cell<u64>,
    next_core: Cell<usize>,
    /// The core that is asked next to make room for a handshake.
    pub(super) next_room: Cell<usize>,
    pub(super) views: NodeViews,
    /// Connections that replicate, those of this node's followers among them.
    pub(super) links: RefCell<BTreeMap<u64, Rc<Wire>>>,
    /// Those among them that have something to send.
    pub(super) speaking: RefCell<Vec<u64>>,
    /// Replication of this core's partitions.
    pub(super) replication: Rc<Replication<Here>>,
    /// Change streams of this core's partitions.
    pub(super) changes: Rc<Changes<Here>>,
    /// When this core began.
    pub(super) began: Instant,
    pub(super) stopping: Cell<Option<Instant>>,
    /// While it stops: only streams were left when that was last looked at.
    pub(super) answered: Cell<bool>,
    pub(super) closing: Cell<bool>,
    /// What was decrypted last: its memory is that of the next.
    plain: RefCell<Vec<u8>>,
    me: Weak<ServerCore>,
}

impl ServerCore {
    /// A core whose partitions are open.
    pub fn new(
        core: Rc<Core<Message>>,
        settings: Arc<ServerSettings>,
        tls: Arc<ServerConfig>,
        shared: Arc<Shared>,
        listener: Option<std::net::TcpListener>,
        partitions: BTreeMap<u8, Slot>,
    ) -> Rc<ServerCore> {
        let server = Rc::new_cyclic(|me| ServerCore {
            core,
            settings,
            tls: RefCell::new(tls),
            shared,
            listener,
            partitions: RefCell::new(partitions),
            connections: RefCell::default(),
            sockets: RefCell::default(),
            conversations: RefCell::default(),
            marked: RefCell::default(),
            resume_at: Cell::default(),
            waiting: RefCell::default(),
            held: RefCell::default(),
            holding: Cell::default(),
            starved: RefCell::default(),
            feeding: Cell::default(),
            outbox: RefCell::default(),
            greeting: RefCell::default(),
            to_greet: RefCell::default(),
            next_connection: Cell::new(1),
            next_core: Cell::new(0),
            next_room: Cell::new(0),
            views: NodeViews::default(),
            links: RefCell::default(),
            speaking: RefCell::default(),
            replication: Replication::new(Here(me.clone())),
            changes: Changes::new(Here(me.clone())),
            began: Instant::now(),
            stopping: Cell::new(None),
            answered: Cell::new(false),
            plain: RefCell::default(),
            closing: Cell::new(false),
            me: me.clone(),
        });
        let open: Vec<Partition<RealEnv>> = {
            let partitions = server.partitions.borrow();
            partitions.values().filter_map(|s| if let Slot::Open(p) = s { Some(p.clone()) } else { None }).collect()
        };
        for partition in open {
            server.core.spawn(follow(Rc::downgrade(&server), partition.clone()));
            server.replication.begin(&partition);
        }
        server.core.spawn(keep_deadlines(Rc::downgrade(&server)));
        server.listen();
        server
    }

    fn listen(&self) {
        if let Some(listener) = &self.listener
            && self.stopping.get().is_none()
        {
            sys::listen_for(listener.as_raw_fd(), BACKLOG);
            self.core.ring.accept(listener.as_raw_fd());
        }
    }

    pub(super) fn this(&self) -> Rc<ServerCore> {
        match self.me.upgrade() {
            Some(this) => this,
            None => unreachable!("a core is called only while it lives"),
        }
    }

    pub(super) fn post(&self, core: usize, message: Message) {
        self.outbox.borrow_mut().push_back((core, message));
        self.core.ring.poke();
    }

    pub(super) fn mark(&self, key: Key) {
        self.marked.borrow_mut().insert(key);
        self.core.ring.poke();
    }

    pub(super) fn here(&self, id: u64) -> Key {
        Key { home: self.core.index, id }
    }

    // ---- connections ----

    fn add_connection(&self, fd: OwnedFd, since: Instant) -> u64 {
        let id = self.next_connection.get();
        self.next_connection.set(id + 1);
        let socket = self.core.ring.adopt(fd);
        self.sockets.borrow_mut().insert(socket, id);
        self.connections.borrow_mut().insert(id, Connection::new(socket, since));
        id
    }

    /// Runs `work` on a connection, then sends what came of it. `work` must not look for connections itself.
    pub(super) fn with<T>(&self, id: u64, work: impl FnOnce(&mut Connection) -> T) -> Option<T> {
        let (answer, finished) = {
            let mut connections = self.connections.borrow_mut();
            let connection = connections.get_mut(&id)?;
            let answer = work(connection);
            self.send(connection);
            (answer, self.is_finished(connection))
        };
        if finished {
            self.abort(id);
        }
        Some(answer)
    }

    fn send(&self, connection: &mut Connection) {
        if !connection.sending && !connection.wire.is_empty() {
            connection.sending = true;
            connection.send_since = Instant::now();
            connection.in_flight = connection.wire.len();
            self.core.ring.send(connection.socket, std::mem::take(&mut connection.wire));
        }
    }

    fn is_finished(&self, connection: &Connection) -> bool {
        connection.ending && !connection.sending && connection.wire.is_empty()
    }

    fn drop_connection(&self, id: u64, connection: Connection) {
        self.sockets.borrow_mut().remove(&connection.socket);
        self.core.ring.close(connection.socket);
        if let Some(link) = self.links.borrow_mut().remove(&id) {
            link.end();
        }
        if connection.outbound {
            // It is this node's own, and counts nowhere.
        } else if connection.counted {
            self.shared.connection_closed();
        } else if connection.is_greeting() {
            self.shared.handshake_over();
        }
        match connection.place {
            Place::There { core, .. } => self.post(core, Message::Gone { home: self.core.index, id }),
            _ => self.drop_conversation(self.here(id)),
        }
    }

    pub(super) fn drop_conversation(&self, key: Key) {
        let conversation = self.conversations.borrow_mut().remove(&key);
        if let Some(mut conversation) = conversation {
            conversation.drop_transaction();
        }
        self.marked.borrow_mut().remove(&key);
        self.waiting.borrow_mut().values_mut().for_each(|keys| {
            keys.remove(&key);
        });
    }

    /// Ends a connection at once.
    pub(super) fn abort(&self, id: u64) {
        let connection = self.connections.borrow_mut().remove(&id);
        if let Some(connection) = connection {
            self.drop_connection(id, connection);
        }
    }

    pub(super) fn hear(&self, id: u64, mut bytes: &[u8]) {
        let hello = self.with(id, |connection| {
            connection.heard = Instant::now();
            if connection.leaving.is_some() {
                connection.extra.extend_from_slice(bytes);
                return Ok(None);
            }
            connection.hear_hello(&mut bytes)
        });
        match hello {
            None => return,
            Some(Err(fault)) => return self.fail_handshake(id, &fault),
            Some(Ok(Some(accepted))) => self.choose_core(id, accepted, bytes),
            Some(Ok(None)) => {}
        }
        self.hear_tls(id, bytes);
    }

    /// The ClientHello may name the partition that will be selected: its core does the handshake.
    fn choose_core(&self, id: u64, accepted: Accepted, rest: &[u8]) {
        let cores = self.core.mesh.cores();
        let hint = accepted.client_hello().alpn().and_then(|mut list| list.find_map(hint_from_alpn));
        let target = match hint.filter(|p| *p <= self.settings.partitions) {
            Some(partition) => placement::home_of(partition, cores),
            None => {
                // No hint: the handshakes are spread, `select` will move the connection.
                self.next_core.set((self.next_core.get() + 1) % cores);
                self.next_core.get()
            }
        };
        if target == self.core.index {
            let greeted = self.with(id, |connection| connection.greet(accepted, self.tls.borrow().clone()));
            if let Some(Err(fault)) = greeted {
                self.fail_handshake(id, &fault);
            }
            return;
        }
        self.with(id, |connection| {
            connection.extra.extend_from_slice(rest);
            connection.leaving = Some(Leaving::Greeting(target, Box::new(accepted)));
        });
        self.leave_when_silent(id);
    }

    pub(super) fn hear_tls(&self, id: u64, bytes: &[u8]) {
        let mut plain = self.plain.take();
        plain.clear();
        let heard = self.with(id, |connection| {
            if connection.leaving.is_some() {
                return Ok(None);
            }
            connection.hear(bytes, &mut plain).map(|()| connection.introduction())
        });
        match heard {
            None => return,
            Some(Err(fault)) => {
                let open = self.connections.borrow().get(&id).is_some_and(Connection::is_open);
                if open {
                    self.refuse(
                        id,
                        Refusal::Encrypted,
                        &format!("was closed, not encrypted as agreed: {}", fault.text),
                    );
                    self.with(id, |connection| connection.ending = true);
                } else {
                    self.fail_handshake(id, &fault);
                }
                return;
            }
            Some(Ok(Some(introduction))) if self.links.borrow().contains_key(&id) => {
                self.link_introduced(id, &introduction);
            }
            Some(Ok(Some(introduction))) if introduction.stream.is_some() => {
                if !self.admit_stream(id, &introduction) {
                    return;
                }
            }
            Some(Ok(Some(introduction))) => {
                if !self.admit(id, introduction.dialect, introduction.role.as_ref().ok().copied()) {
                    return;
                }
                if let Err(why) = &introduction.role {
                    let what = format!("names no role, everything is denied: {why}");
                    self.refuse(id, Refusal::Role, &what);
                }
                let session = session(&introduction, self.settings.partitions, self.settings.max_request_size);
                self.start_conversation(id, Parked { session, input: Vec::new(), last_input: false });
            }
            Some(Ok(None)) => {}
        }
        self.deliver(id, &plain);
        if plain.capacity() <= PLAIN_KEPT {
            self.plain.replace(plain);
        }
        let gone = self.connections.borrow().get(&id).is_some_and(|c| c.peer_done);
        if gone {
            self.peer_finished(id);
        }
    }

    /// The limit of connections; over it the peer is told so, and the connection ends. Servers and admins have places of their own
    /// beyond it: however many clients there are, nodes follow each other and somebody can look.
    pub(super) fn admit(&self, id: u64, dialect: Dialect, role: Option<Role>) -> bool {
        self.shared.handshake_over();
        let kept = match role {
            Some(Role::Server | Role::Admin) => PLACES_KEPT + self.settings.max_conns / 16,
            _ => 0,
        };
        if self.shared.admit_connection(self.settings.max_conns + kept) {
            self.with(id, |connection| connection.counted = true);
            return true;
        }
        let text = format!("the limit of {} connections is reached (max_conns)", self.settings.max_conns);
        self.refuse(id, Refusal::MaxConns, &format!("was refused: {text}"));
        let text = if dialect == Dialect::V1 { "Max connections" } else { &text };
        let mut frame = Vec::new();
        reply::encode_error(dialect, 0, ErrorCode::Busy, text, &mut frame);
        self.with(id, |connection| {
            connection.say(&frame);
            connection.say_goodbye();
        });
        false
    }

    pub(super) fn start_conversation(&self, id: u64, parked: Parked) {
        self.with(id, |connection| connection.place = Place::Here);
        self.run_conversation_here(self.here(id), parked);
    }

    /// Takes up a conversation whose partition is on this core (or is partition 0).
    pub(super) fn run_conversation_here(&self, key: Key, parked: Parked) {
        self.take_up(key, Conversation::new(parked, &self.shared.memory));
    }

    pub(super) fn take_up(&self, key: Key, mut conversation: Conversation) {
        self.attach(&mut conversation);
        self.conversations.borrow_mut().insert(key, conversation);
        self.mark(key);
    }

    fn attach(&self, conversation: &mut Conversation) {
        conversation.ahead = Default::default();
        conversation.board = self.replication.board.clone();
        conversation.consumers = self.changes.consumers.clone();
        conversation.partition = match self.partitions.borrow().get(&conversation.session.selected) {
            Some(Slot::Open(partition)) => Some(partition.clone()),
            _ => None,
        };
    }

    // ---- conversations ----

    /// Runs the marked conversations for as long as a turn may take; the others come first in the next one.
    fn advance_marked(&self) {
        let mut then = std::mem::take(&mut *self.marked.borrow_mut());
        let mut first = self.resume_at.take().map_or_else(BTreeSet::new, |key| then.split_off(&key));
        let started = Instant::now();
        for run in 0.. {
            if run % TOGETHER == 0 {
                self.warm_first(first.iter().chain(&then));
            }
            let Some(key) = first.pop_first().or_else(|| then.pop_first()) else { break };
            self.advance(key);
            if started.elapsed() > TURN_TIME {
                self.resume_at.set(first.first().or(then.first()).copied());
                self.marked.borrow_mut().extend(first.into_iter().chain(then));
                return;
            }
        }
    }

    /// Runs the frames that a conversation has, up to a turn's share.
    fn advance(&self, key: Key) {
        let Some(mut conversation) = self.conversations.borrow_mut().remove(&key) else { return };
        // What was published since lets replies go, and a `select` behind them go on.
        conversation.settle();
        if conversation.needs_partition() {
            // It was cut and opened anew.
            self.attach(&mut conversation);
        }
        let more = self.run_frames(key, &mut conversation);
        let waits = conversation.settle();
        if waits {
            let selected = conversation.session.selected;
            self.waiting.borrow_mut().entry(selected).or_default().insert(key);
        }
        self.conversations.borrow_mut().insert(key, conversation);
        self.hand_over(key);
        if more {
            self.mark(key);
        }
    }

    /// Answers whether frames are left for the next turn.
    fn run_frames(&self, key: Key, conversation: &mut Conversation) -> bool {
        let mut input = std::mem::take(&mut conversation.input);
        let mut at = 0;
        let mut frames = 0;
        let mut more = false;
        let mut warm_to = 0;
        let started = Instant::now();
        conversation.hungry = false;
        let goes_on =
            |c: &Conversation| !c.blocked && c.leaving.is_none() && !c.over && !c.throttled && c.pieces.is_empty();
        while goes_on(conversation) {
            // Replies leave before more are made; those that wait come back when their version is published.
            let long = frames % 16 == 15 && started.elapsed() > TURN_TIME;
            let window = conversation.memory.window(WIRE_MAX);
            if frames == FRAMES_PER_TURN || long || conversation.out.len() > window {
                more = true;
                break;
            }
            if conversation.waiting_bytes() > window {
                break;
            }
            if at >= warm_to {
                warm_to = at + ahead::warm_next(conversation, &input.rest()[at..]);
            }
            let (used, step) = conversation.session.next(&input.rest()[at..]);
            match step {
                Step::NeedMore => {
                    at += used;
                    let announced = conversation.session.announced(&input.rest()[at..]);
                    if !conversation.may_gather(announced) {
                        if !conversation.has_waited_too_long() {
                            self.starve(key, conversation);
                            break;
                        }
                        at += self.refuse_for_memory(conversation, &input.rest()[at..]);
                        continue;
                    }
                    // One buffer that grows would be copied as a whole now and then.
                    input.make_room(at, announced);
                    conversation.wait_for_more(used, input.len() - at);
                    break;
                }
                Step::Refuse { id, error } => {
                    self.count_bad_request(key, &conversation.session, &error);
                    let dialect = conversation.session.dialect;
                    conversation.reply(|out| reply::encode_error(dialect, id, error.code, &error.text, out));
                }
                Step::Quit => conversation.over = true,
                Step::RunLong { id, opcode, length } => {
                    let payload = input.cut(at + used - length, at + used);
                    (at, warm_to) = (0, 0);
                    frames += 1;
                    conversation.partial = None;
                    conversation.memory.gathered_whole();
                    if let Outcome::Later(future) = long::execute(conversation, id, opcode, payload) {
                        conversation.memory.runs(length);
                        self.run_later(key, conversation, future);
                    }
                    continue;
                }
                Step::Run { id, request } => match execute::execute(conversation, id, request) {
                    Outcome::Done => {}
                    Outcome::Later(future) => {
                        conversation.memory.runs(used);
                        self.run_later(key, conversation, future);
                    }
                    Outcome::Select(partition) => {
                        if !conversation.is_settled() {
                            // Replies of the old partition leave first; the frame is looked at again then.
                            break;
                        }
                        self.select(conversation, id, partition);
                    }
                    Outcome::Node(question) => self.ask_node(key, conversation, question),
                    Outcome::Order(order) => self.order(key, conversation, id, order),
                },
            }
            at += used;
            frames += 1;
            conversation.partial = None;
            conversation.memory.gathered_whole();
        }
        input.take(at);
        conversation.input = input;
        more
    }

    /// The conversation goes on when this is done.
    fn run_later(&self, key: Key, conversation: &mut Conversation, future: Later<RealEnv>) {
        conversation.blocked = true;
        let this = self.this();
        self.core.spawn(async move {
            let finish = future.await;
            this.unblock(key, finish);
        });
    }

    /// What no client of ours sends; refusals that belong to the life of a client are not counted.
    fn count_bad_request(&self, key: Key, session: &Session, error: &WireError) {
        use ErrorCode::{Denied, Malformed, RequestTooLarge, UnknownOpcode};
        // Who has no role was counted as it came in.
        if session.role.is_some() && matches!(error.code, Denied | Malformed | RequestTooLarge | UnknownOpcode) {
            // A forwarded conversation's socket is on another core.
            let id = if key.home == self.core.index { key.id } else { 0 };
            self.refuse(id, Refusal::Request, &format!("asked for what was refused: {}", error.text));
        }
    }

    fn select(&self, conversation: &mut Conversation, id: u32, partition: u8) {
        let dialect = conversation.session.dialect;
        let target = placement::home_of(partition, self.core.mesh.cores());
        conversation.session.selected = partition;
        self.attach(conversation);
        conversation.reply(|out| reply::encode_ok(dialect, id, &[], out));
        // Partition 0 is answered on any core.
        if partition != 0 && target != self.core.index {
            conversation.leaving = Some(target);
        }
    }

    /// A partition that was opened anew serves.
    pub(super) fn serve_partition(&self, number: u8, partition: Partition<RealEnv>) {
        self.core.spawn(follow(Rc::downgrade(&self.this()), partition.clone()));
        self.partitions.borrow_mut().insert(number, Slot::Open(partition));
        // Whoever had selected it goes on with the new one.
        let selected = |(key, c): (&Key, &Conversation)| (c.session.selected == number).then_some(*key);
        let keys: Vec<Key> = self.conversations.borrow().iter().filter_map(selected).collect();
        keys.into_iter().for_each(|key| self.mark(key));
    }

    pub(super) fn unblock(&self, key: Key, finish: execute::Finish<RealEnv>) {
        let malformed = {
            let mut conversations = self.conversations.borrow_mut();
            conversations.get_mut(&key).and_then(|conversation| {
                conversation.blocked = false;
                conversation.memory.runs(0);
                finish(conversation);
                conversation.malformed.take().map(|error| (conversation.session.clone(), error))
            })
        };
        if let Some((session, error)) = malformed {
            self.count_bad_request(key, &session, &error);
        }
        self.mark(key);
    }

    fn ask_node(&self, key: Key, conversation: &mut Conversation, question: NodeQuestion) {
        conversation.blocked = true;
        let this = self.this();
        self.core.spawn(async move {
            let view = this.node_view().await;
            let finish: execute::Finish<RealEnv> =
                Box::new(move |conversation| execute::answer_node(conversation, question, &view));
            this.unblock(key, finish);
        });
    }

    /// Passes on what a conversation has to say, and lets it go where it wants.
    fn hand_over(&self, key: Key) {
        let (out, over, leaving, settled, input_left, more) = {
            let mut conversations = self.conversations.borrow_mut();
            let Some(c) = conversations.get_mut(&key) else { return };
            let (held_before, had_pieces) = (c.held_since().is_some(), !c.pieces.is_empty());
            let mut stays = had_pieces && c.throttled;
            let out = if stays {
                Vec::new()
            } else if key.home == self.core.index && !had_pieces && c.holds_back() {
                if !held_before {
                    self.hold(key);
                }
                stays = true;
                Vec::new()
            } else {
                c.take_output(SAID_AT_ONCE)
            };
            let settled = c.is_settled() && !c.has_output();
            // Behind the last piece more requests are run, and what they answer follows.
            let more = (had_pieces || c.has_output()) && !stays;
            (out, c.over && settled, c.leaving.filter(|_| settled), settled, c.input.len(), more)
        };
        if more {
            // The next piece leaves in the next turn, unless this one piles up at the socket.
            self.mark(key);
        }
        if key.home != self.core.index {
            return self.hand_over_forwarded(key, out, over, leaving.is_some());
        }
        let backlog = self.with(key.id, |connection| {
            if !out.is_empty() {
                connection.say(&out);
            }
            if over {
                connection.say_goodbye();
            }
            (connection.wire.len(), connection.in_flight)
        });
        let Some((backlog, in_flight)) = backlog else { return };
        let waits = match self.conversations.borrow_mut().get_mut(&key) {
            Some(conversation) => {
                conversation.account(backlog + in_flight);
                conversation.throttled |= backlog > conversation.memory.window(WIRE_MAX);
                conversation.memory.waits_since().is_some()
            }
            None => false,
        };
        if input_left < self.input_max() / 2 && !waits {
            self.unchoke(key.id);
        }
        if let Some(target) = leaving
            && settled
        {
            self.leave(key.id, target);
        }
    }

    /// A conversation of this core's connection selected a partition of another core.
    fn leave(&self, id: u64, target: usize) {
        let moves = self.connections.borrow().get(&id).map_or(0, |c| c.moves);
        if moves >= self.settings.moves_max || self.stopping.get().is_some() {
            let conversation = self.conversations.borrow_mut().remove(&self.here(id));
            self.drop_conversation(self.here(id));
            if let Some(conversation) = conversation {
                self.send_conversation(id, target, conversation.park());
            }
            return;
        }
        let first = self.with(id, |connection| {
            let first = connection.leaving.is_none();
            connection.leaving = Some(Leaving::Moving(target));
            first
        });
        if first == Some(true) {
            self.leave_when_silent(id);
        }
    }

    /// Stops receiving; when the last receive has ended and everything is sent, the connection goes.
    fn leave_when_silent(&self, id: u64) {
        let socket = self.connections.borrow().get(&id).map(|c| c.socket);
        if let Some(socket) = socket {
            self.core.ring.stop_receiving(socket);
            self.depart_if_silent(id);
        }
    }

    fn depart_if_silent(&self, id: u64) {
        let ready = self.connections.borrow().get(&id).is_some_and(|c| {
            c.leaving.is_some() && !c.sending && c.wire.is_empty() && !self.core.ring.is_receiving(c.socket)
        });
        if !ready {
            return;
        }
        let Some(mut connection) = self.connections.borrow_mut().remove(&id) else { return };
        self.sockets.borrow_mut().remove(&connection.socket);
        let conversation = self.conversations.borrow_mut().remove(&self.here(id));
        self.drop_conversation(self.here(id));
        let Some(fd) = self.core.ring.release(connection.socket) else { return };
        match connection.leaving.take() {
            Some(Leaving::Greeting(target, accepted)) => {
                let (extra, since) = (connection.extra, connection.since);
                self.post(target, Message::Greet(Box::new(Greeting { fd, accepted: *accepted, extra, since })));
            }
            Some(Leaving::Moving(target)) => {
                let (Stage::Open(mut tls), Some(conversation)) = (connection.stage, conversation) else { return };
                let mut parked = conversation.park();
                // Bytes that came while it was leaving are still encrypted: decrypted here, parsed there.
                let mut stand_in = Connection::new(connection.socket, connection.since);
                stand_in.stage = Stage::Open(tls);
                if stand_in.hear(&connection.extra, &mut parked.input).is_err() {
                    self.shared.connection_closed();
                    return;
                }
                let Stage::Open(back) = stand_in.stage else { return };
                tls = back;
                let moves = connection.moves + 1;
                let peer_done = connection.peer_done || stand_in.peer_done;
                parked.last_input |= peer_done;
                self.post(target, Message::Move(Box::new(Moving { fd, tls: *tls, parked, moves, peer_done })));
            }
            None => {}
        }
    }

    // ---- messages ----

    fn take(&self, message: Message) {
        match message {
            Message::Greet(greeting) => {
                let Greeting { fd, accepted, extra, since } = *greeting;
                let id = self.add_connection(fd, since);
                self.with(id, |connection| {
                    connection.accepted = Some(Box::new(accepted));
                    connection.unheard = extra;
                });
                self.begin_handshake(id);
                self.to_greet.borrow_mut().push_back(id);
            }
            Message::MakeRoom => {
                self.end_oldest_handshake();
            }
            Message::Move(moving) => {
                let Moving { fd, tls, parked, moves, peer_done } = *moving;
                let id = self.add_connection(fd, Instant::now());
                self.with(id, |connection| {
                    connection.peer_done = peer_done;
                    connection.stage = Stage::Open(Box::new(tls));
                    connection.counted = true;
                    connection.moves = moves;
                });
                self.start_conversation(id, parked);
                if self.stopping.get().is_some() {
                    self.hear_no_more(id);
                }
            }
            Message::Converse { home, id, parked } => self.take_conversation(Key { home, id }, *parked),
            Message::Input { home, id, bytes, last } => self.take_input(Key { home, id }, &bytes, last),
            Message::Output { id, bytes, taken, closed } => self.take_output(id, &bytes, taken, closed),
            Message::Drained { home, id, bytes } => self.take_drained(Key { home, id }, bytes),
            Message::Return { id, parked } => self.take_back(id, *parked),
            Message::Gone { home, id } => self.drop_conversation(Key { home, id }),
            Message::Ask { from, ticket } => {
                let partitions = self.own_partitions();
                self.post(from, Message::Tell { ticket, partitions });
            }
            Message::Tell { ticket, partitions } => self.views.told(ticket, partitions),
            Message::Share { partition, log, overlay, unsettled, cache } => {
                if let Some(Slot::Open(partition)) = self.partitions.borrow().get(&partition) {
                    partition.set_retention_bytes(log);
                    partition.set_overlay_bytes(overlay);
                    partition.set_checkpoint_wal_bytes(unsettled);
                    partition.set_cache_bytes(cache);
                }
            }
            Message::Certificates(config) => *self.tls.borrow_mut() = config,
            Message::Shutdown => self.stop(),
        }
    }
}

impl Handler for ServerCore {
    fn accepted(&self, fd: OwnedFd) {
        self.shared.count_accepted();
        if self.shared.sockets() >= self.settings.sockets_max {
            let text = || "a connection was refused: descriptors are short (limit of open files)".to_string();
            return self.shared.refusals.count(&self.core.log, Refusal::Descriptors, text);
        }
        if !self.admit_handshake() {
            let text = || "a connection was refused: too many handshakes at once (max_handshakes)".to_string();
            return self.shared.refusals.count(&self.core.log, Refusal::MaxHandshakes, text);
        }
        let id = self.add_connection(fd, Instant::now());
        self.begin_handshake(id);
    }

    fn accept_failed(&self, errno: i32) {
        let error = std::io::Error::from_raw_os_error(errno);
        let text = || format!("a connection could not be accepted: {error}");
        self.shared.refusals.count(&self.core.log, Refusal::Descriptors, text);
        let this = self.this();
        // Descriptors may be short: not again at once.
        self.core.spawn(async move {
            this.core.sleep(SWEEP).await;
            this.listen();
        });
    }

    fn received(&self, socket: SocketId, bytes: &[u8]) {
        let id = self.sockets.borrow().get(&socket).copied();
        if let Some(id) = id
            && !self.put_off(id, bytes)
        {
            self.hear(id, bytes);
        }
    }

    fn receive_ended(&self, socket: SocketId, why: Ended) {
        let Some(id) = self.sockets.borrow().get(&socket).copied() else { return };
        // What came before the end counts.
        self.greet(id);
        let leaving = self.connections.borrow().get(&id).is_some_and(|c| c.leaving.is_some());
        match why {
            // Bytes behind which the peer closed may not be decrypted yet: the core that it goes to will see.
            Ended::Stopped | Ended::Closed if leaving => self.depart_if_silent(id),
            Ended::Stopped => {}
            // It said goodbye before, and its requests are being answered.
            Ended::Closed if self.connections.borrow().get(&id).is_some_and(|c| c.peer_done) => {}
            // A peer that is gone needs no answers; what it committed goes on.
            Ended::Closed | Ended::Failed(_) => {
                if self.was_greeting(id) {
                    self.refuse(id, Refusal::WentAway, "went away in its handshake");
                }
                self.abort(id);
            }
        }
    }

    fn progressed(&self, socket: SocketId) {
        let id = self.sockets.borrow().get(&socket).copied();
        if let Some(id) = id
            && let Some(connection) = self.connections.borrow_mut().get_mut(&id)
        {
            connection.send_since = Instant::now();
        }
    }

    fn sent(&self, socket: SocketId, result: Result<usize, i32>) {
        let Some(id) = self.sockets.borrow().get(&socket).copied() else { return };
        if result.is_err() {
            return self.abort(id);
        }
        let backlog = self.with(id, |connection| {
            (connection.sending, connection.in_flight) = (false, 0);
            // `with` sends what came meanwhile.
            connection.wire.len()
        });
        if let Some(link) = self.links.borrow().get(&id) {
            link.stir();
        }
        if backlog.is_some_and(|bytes| bytes <= WIRE_MAX) {
            let key = self.here(id);
            let resumed = {
                let mut conversations = self.conversations.borrow_mut();
                conversations.get_mut(&key).is_some_and(|c| {
                    c.account(backlog.unwrap_or(0));
                    std::mem::replace(&mut c.throttled, false)
                })
            };
            if resumed {
                self.mark(key);
            }
            self.drain(id);
        }
        self.depart_if_silent(id);
    }

    fn submitting(&self) {
        self.utter_all();
    }

    fn turn(&self) -> bool {
        while let Ok(message) = self.core.inbox.try_recv() {
            self.take(message);
        }
        self.advance_marked();
        self.greet_some();
        let mut full = Vec::new();
        while let Some((core, message)) = self.outbox.borrow_mut().pop_front() {
            // Order matters per core: behind a full inbox everything for that core waits.
            if full.iter().any(|(c, _)| *c == core) {
                full.push((core, message));
            } else if let Err(message) = self.core.mesh.try_send(core, message) {
                full.push((core, message));
            }
        }
        let again = !full.is_empty() || !self.marked.borrow().is_empty() || !self.to_greet.borrow().is_empty();
        *self.outbox.borrow_mut() = full.into();
        again
    }
}

/// Lets replies go as a partition publishes.
async fn follow(server: Weak<ServerCore>, partition: Partition<RealEnv>) {
    let (mut seen, mut expired) = (partition.published(), partition.expired());
    loop {
        partition.wait_news(seen, expired).await;
        let closed = partition.is_closed();
        (seen, expired) = (partition.published(), partition.expired());
        let Some(server) = server.upgrade() else { return };
        let keys = server.waiting.borrow_mut().remove(&partition.id()).unwrap_or_default();
        keys.into_iter().for_each(|key| server.mark(key));
        if closed && partition.published() == seen {
            return;
        }
    }
}
