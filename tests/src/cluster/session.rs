//! Clients that speak the server's protocol: frames go through the server's own session, execution and conversation, on the
//! partition of a simulated node. Several requests are sent at once, so that cold reads, `MGET` and `MDEL` are in flight while
//! commits time out, roles change, and partitions are opened anew.
//!
//! What is missing of a server is its socket: requests arrive whole, and replies that may leave have left.

use super::history::{Ack, Seen, Writes};
use super::node::{Cluster, PARTITION};
use super::{KEYS, PATIENCE, Run, is_safe};
use crate::model::{KeyNumber, key_bytes};
use crate::sim::SimEnv;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::Partition;
use turnstone_engine::budget::Budget;
use turnstone_engine::sync::{Notify, first_of};
use turnstone_engine::types::Epoch;
use turnstone_net::server::conversation::Conversation;
use turnstone_net::server::execute::{Finish, Outcome, execute};
use turnstone_net::server::handoff::Parked;
use turnstone_net::server::input::Cut;
use turnstone_net::server::long;
use turnstone_net::session::{Session, Step};
use turnstone_net::tls::Role;
use turnstone_net::wire::reply::{Reply, decode_mget, encode_error};
use turnstone_net::wire::{Dialect, Position, Request, Status};

const DIALECT: Dialect = Dialect::Turnstone2;
const REQUEST_BYTES_MAX: u32 = 1 << 20;
/// Bytes of replies that leave at once.
const AT_ONCE: usize = 100;
/// A conversation without a partition looks for it again after this time.
const LOOK: Duration = Duration::from_millis(5);

/// One connection: the conversation at the node, and what is on its way.
struct Connection {
    conversation: RefCell<Conversation<SimEnv>>,
    input: RefCell<Vec<u8>>,
    replies: RefCell<Vec<u8>>,
    over: Cell<bool>,
    /// Something came, or a request is done.
    changed: Notify,
    /// Replies have left.
    replied: Notify,
}

impl Connection {
    /// Connects to a node; `None` if it does not run.
    fn open(cluster: &Rc<Cluster>, node: usize) -> Option<Rc<Connection>> {
        cluster.running(node)?;
        let mut session = Session::new(DIALECT, Some(Role::Client), 16, REQUEST_BYTES_MAX);
        if cluster.world.steps.get().is_multiple_of(2) {
            // Requests of many keys are run piece by piece, however few they have.
            session.long = 1;
        }
        let mut conversation =
            Conversation::new(Parked { session, input: Vec::new(), last_input: false }, &Budget::new(512 << 20));
        conversation.session.selected = PARTITION;
        let connection = Rc::new(Connection {
            conversation: RefCell::new(conversation),
            input: RefCell::default(),
            replies: RefCell::default(),
            over: Cell::new(false),
            changed: Notify::default(),
            replied: Notify::default(),
        });
        cluster.world.spawn_for(Cluster::owner(node), serve(cluster.clone(), node, connection.clone()));
        Some(connection)
    }

    /// Runs the requests that are there, as a core of the server does in its turn.
    fn run_requests(self: &Rc<Self>, cluster: &Cluster) {
        let mut conversation = self.conversation.borrow_mut();
        let input = std::mem::take(&mut *self.input.borrow_mut());
        let mut at = 0;
        while !conversation.blocked && !conversation.over && conversation.pieces.is_empty() {
            let (used, step) = conversation.session.next(&input[at..]);
            at += used;
            match step {
                Step::NeedMore => break,
                Step::RunLong { id, opcode, length } => {
                    let payload = Cut::from(input[at - length..at].to_vec());
                    if let Outcome::Later(future) = long::execute(&mut conversation, id, opcode, payload) {
                        conversation.blocked = true;
                        let this = self.clone();
                        cluster.world.spawn(async move { this.unblock(future.await) });
                    }
                }
                Step::Run { id, request } => match execute(&mut conversation, id, request) {
                    Outcome::Done => {}
                    Outcome::Later(future) => {
                        conversation.blocked = true;
                        let this = self.clone();
                        cluster.world.spawn(async move { this.unblock(future.await) });
                    }
                    Outcome::Select(_) | Outcome::Node(_) | Outcome::Order(_) => panic!("only keys are asked for"),
                },
                Step::Refuse { id, error } => {
                    conversation.reply(|out| encode_error(DIALECT, id, error.code, &error.text, out));
                }
                Step::Quit => panic!("no client says goodbye"),
            }
        }
        self.input.borrow_mut().splice(0..0, input[at..].iter().copied());
    }

    fn unblock(&self, finish: Finish<SimEnv>) {
        let mut conversation = self.conversation.borrow_mut();
        conversation.blocked = false;
        finish(&mut conversation);
        self.changed.notify();
    }

    /// Sends requests, without waiting for the replies to those before, and waits for as many replies; fewer come if the node
    /// goes, or is slow.
    async fn ask(&self, run: &Run, asks: &[Ask]) -> Vec<(Status, Vec<u8>)> {
        let (world, count) = (&run.cluster.world, asks.len());
        for (id, ask) in asks.iter().enumerate() {
            ask.encode(id as u32, &mut self.input.borrow_mut());
            if world.rng.percent(50) {
                self.changed.notify();
                world.sleep(Duration::from_millis(world.rng.below(80))).await;
            }
        }
        self.changed.notify();
        let deadline = run.cluster.world.now() + PATIENCE;
        let mut replies = Vec::new();
        loop {
            {
                let mut bytes = self.replies.borrow_mut();
                while let Some((reply, used)) = Reply::decode(DIALECT, &bytes) {
                    let status = Status::from_byte(reply.status).expect("a status that is known");
                    replies.push((status, reply.body.to_vec()));
                    bytes.drain(..used);
                }
            }
            let left = deadline.saturating_sub(run.cluster.world.now());
            if replies.len() == count || left.is_zero() {
                return replies;
            }
            first_of(self.replied.notified(), run.cluster.world.sleep(left)).await;
        }
    }
}

/// A node's side of a connection.
async fn serve(cluster: Rc<Cluster>, node: usize, connection: Rc<Connection>) {
    while !connection.over.get() {
        let partition: Option<Partition<SimEnv>> = {
            let mut conversation = connection.conversation.borrow_mut();
            conversation.settle();
            if conversation.needs_partition() {
                conversation.ahead = Default::default();
                conversation.partition = cluster.partition(node);
            }
            conversation.partition.clone()
        };
        connection.run_requests(&cluster);
        {
            let mut conversation = connection.conversation.borrow_mut();
            conversation.settle();
            let waited = !conversation.pieces.is_empty();
            if conversation.has_output() {
                let mut replies = connection.replies.borrow_mut();
                while conversation.has_output() {
                    replies.append(&mut conversation.take_output(AT_ONCE));
                }
                connection.replied.notify();
            }
            if waited {
                // What was not run before they left is run now.
                connection.changed.notify();
            }
        }
        match partition.filter(|partition| !partition.is_closed()) {
            Some(partition) => {
                let (published, expired) = (partition.published(), partition.expired());
                first_of(connection.changed.notified(), partition.wait_news(published, expired)).await;
            }
            None => first_of(connection.changed.notified(), cluster.world.sleep(LOOK)).await,
        }
    }
}

/// What a client asks.
enum Ask {
    Get(KeyNumber),
    GetAll,
    Set(KeyNumber, Vec<u8>),
    SetMany(Writes),
    Delete(KeyNumber),
    DeleteMany(Vec<KeyNumber>),
    Begin,
    Commit,
}

impl Ask {
    fn encode(&self, id: u32, out: &mut Vec<u8>) {
        let encode = |request: Request<'_>, out: &mut Vec<u8>| {
            request.encode_frame(DIALECT, id, out).expect("a small frame");
        };
        match self {
            Ask::Get(key) => encode(Request::Get { key: &key_bytes(*key) }, out),
            Ask::Set(key, value) => encode(Request::Set { key: &key_bytes(*key), value }, out),
            Ask::Delete(key) => encode(Request::Del { key: &key_bytes(*key) }, out),
            Ask::Begin => encode(Request::Begin, out),
            Ask::Commit => encode(Request::Commit, out),
            Ask::GetAll => {
                let keys: Vec<Vec<u8>> = (0..KEYS).map(key_bytes).collect();
                encode(Request::MGet(keys.iter().map(Vec::as_slice).collect()), out);
            }
            Ask::DeleteMany(keys) => {
                let keys: Vec<Vec<u8>> = keys.iter().map(|key| key_bytes(*key)).collect();
                encode(Request::MDel(keys.iter().map(Vec::as_slice).collect()), out);
            }
            Ask::SetMany(writes) => {
                let pairs: Vec<(Vec<u8>, Vec<u8>)> =
                    writes.iter().map(|(key, value)| (key_bytes(*key), value.clone().unwrap_or_default())).collect();
                encode(Request::MSet(pairs.iter().map(|(k, v)| (k.as_slice(), v.as_slice())).collect()), out);
            }
        }
    }
}

fn some_value(run: &Run) -> Vec<u8> {
    run.next.set(run.next.get() + 1);
    let rng = &run.cluster.world.rng;
    let mut value = format!("a session wrote {}", run.next.get()).into_bytes();
    if rng.percent(40) {
        value.resize(600 + rng.below(2000) as usize, b'.');
    }
    value
}

fn some_keys(run: &Run, count: u64) -> Vec<KeyNumber> {
    let rng = &run.cluster.world.rng;
    let mut keys: Vec<KeyNumber> = (0..count).map(|_| rng.below(u64::from(KEYS)) as KeyNumber).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// Requests that are sent together: single ones, or a transaction.
fn some_requests(run: &Run) -> Vec<Ask> {
    let rng = &run.cluster.world.rng;
    let key = || rng.below(u64::from(KEYS)) as KeyNumber;
    let read = || if rng.percent(40) { Ask::Get(key()) } else { Ask::GetAll };
    let write = || match rng.below(6) {
        0 => Ask::Delete(key()),
        1 => Ask::SetMany(some_keys(run, 3).into_iter().map(|key| (key, Some(some_value(run)))).collect()),
        _ => Ask::Set(key(), some_value(run)),
    };
    if rng.percent(25) {
        let mut asks = vec![Ask::Begin];
        for _ in 0..1 + rng.below(4) {
            asks.push(match rng.below(4) {
                0 => Ask::DeleteMany(some_keys(run, 4)),
                1 => write(),
                _ => read(),
            });
        }
        asks.push(Ask::Commit);
        return asks;
    }
    (0..1 + rng.below(14)).map(|_| if rng.percent(70) { read() } else { write() }).collect()
}

/// What a client makes of the replies to requests that it sent together.
struct Reader<'a> {
    run: &'a Run,
    node: usize,
    /// What the open transaction has written.
    own: Option<BTreeMap<KeyNumber, Option<Vec<u8>>>>,
}

impl Reader<'_> {
    fn take(&mut self, ask: &Ask, status: Status, body: &[u8]) {
        if status == Status::NotFound {
            return;
        }
        if status != Status::Ok {
            self.run.told.borrow_mut().refused += 1;
            if matches!(ask, Ask::Commit) {
                self.own = None;
            }
            return;
        }
        match ask {
            Ask::Begin => self.own = Some(BTreeMap::new()),
            Ask::Get(key) => self.seen(*key, body),
            Ask::GetAll => {
                let values = decode_mget(body).expect("a reply to MGET");
                (0..KEYS).zip(values).for_each(|(key, value)| {
                    if let Some(value) = value {
                        self.seen(key, value);
                    }
                });
            }
            Ask::Set(key, value) => self.wrote(vec![(*key, Some(value.clone()))], body),
            Ask::Delete(key) => self.wrote(vec![(*key, None)], body),
            Ask::SetMany(writes) => self.wrote(writes.clone(), body),
            Ask::DeleteMany(keys) => self.wrote(keys.iter().map(|key| (*key, None)).collect(), &body[4..]),
            Ask::Commit => {
                let writes: Writes = self.own.take().into_iter().flatten().collect();
                // One that wrote nothing has no version of its own.
                if !writes.is_empty() {
                    self.acknowledged(writes, body);
                }
            }
        }
    }

    fn wrote(&mut self, writes: Writes, body: &[u8]) {
        match &mut self.own {
            Some(own) => own.extend(writes),
            None => self.acknowledged(writes, body),
        }
    }

    fn acknowledged(&self, writes: Writes, body: &[u8]) {
        let at = Position::from_bytes(body).expect("a commit's reply has its position");
        let ack = Ack {
            version: at.version,
            epoch: Epoch { number: at.epoch, id: at.epoch_id },
            writes: Some(writes),
            node: self.node,
            safe: is_safe(self.run, self.node),
            at: self.run.cluster.world.now(),
        };
        self.run.check_ack(self.run.told.borrow_mut().ack(ack, self.run.orders.losses.borrow().any()));
    }

    fn seen(&self, key: KeyNumber, value: &[u8]) {
        if self.own.as_ref().is_some_and(|own| own.contains_key(&key)) {
            return;
        }
        self.run.told.borrow_mut().seen(Seen {
            key,
            value: value.to_vec(),
            node: self.node,
            safe: is_safe(self.run, self.node),
            at: self.run.cluster.world.now(),
        });
    }
}

/// A client that connects to one node after the other.
pub async fn converse(run: Rc<Run>) {
    let (cluster, world) = (run.cluster.clone(), run.cluster.world.clone());
    while !run.over.get() && cluster.failure.borrow().is_none() {
        world.sleep(Duration::from_millis(1 + world.rng.below(60))).await;
        let node = run.some_writable_node();
        let Some(connection) = Connection::open(&cluster, node) else { continue };
        for _ in 0..1 + world.rng.below(20) {
            let asks = some_requests(&run);
            let replies = connection.ask(&run, &asks).await;
            let mut reader = Reader { run: &run, node, own: None };
            asks.iter().zip(&replies).for_each(|(ask, (status, body))| reader.take(ask, *status, body));
            if replies.len() < asks.len() || run.over.get() {
                run.told.borrow_mut().unknown += (asks.len() - replies.len()) as u64;
                break;
            }
            world.sleep(Duration::from_millis(world.rng.below(40))).await;
        }
        connection.over.set(true);
        connection.changed.notify();
    }
    run.clients.set(run.clients.get() - 1);
}
