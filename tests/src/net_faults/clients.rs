//! Clients of the cluster, and the history that they record for the checker.
//!
//! Some append to lists at whoever they take for the leader; the others only read, on any node. A session ends with its
//! connection, so that what one node has shown is not expected of another.

use super::nodes::PARTITION;
use crate::history::{Op, Outcome, Transaction, decode_list, encode_list, list_key};
use crate::sim::Rng;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use turnstone_net::client::{ClientError, ClientSettings, Connection};
use turnstone_net::wire::{ErrorCode, Position};

/// A key is left behind when about so many elements were appended to it.
const APPENDS_PER_KEY: u64 = 40;
/// Keys that are written to at a time.
const KEYS: u64 = 12;
/// Keys of a round begin at a multiple of this.
const KEYS_PER_ROUND: u32 = 100_000;
/// Nobody waits longer for an answer.
pub const TIMEOUT: Duration = Duration::from_secs(3);
/// Between attempts to connect.
const PAUSE: Duration = Duration::from_millis(20);

/// An append that was acknowledged.
pub struct Acked {
    pub key: u32,
    pub element: u64,
    pub position: Position,
    pub node: usize,
}

/// What all clients of a round share.
pub struct Round {
    first_key: u32,
    clock: AtomicU64,
    elements: AtomicU64,
    sessions: AtomicU32,
    /// Commits that were acknowledged.
    pub commits: AtomicU64,
    /// Where the leader is looked for first.
    pub leader: AtomicUsize,
    pub over: AtomicBool,
    transactions: Mutex<Vec<Transaction>>,
    acked: Mutex<Vec<Acked>>,
}

impl Round {
    /// Round number `n`; its keys are its own.
    pub fn new(n: u32, leader: usize) -> Round {
        Round {
            first_key: n * KEYS_PER_ROUND,
            clock: AtomicU64::new(1),
            elements: AtomicU64::new(0),
            sessions: AtomicU32::new(0),
            commits: AtomicU64::new(0),
            leader: AtomicUsize::new(leader),
            over: AtomicBool::new(false),
            transactions: Mutex::default(),
            acked: Mutex::default(),
        }
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// Another session.
    fn session(&self) -> u32 {
        self.sessions.fetch_add(1, Ordering::SeqCst)
    }

    fn pick(&self, rng: &Rng) -> u32 {
        let generation = self.elements.load(Ordering::SeqCst) / (APPENDS_PER_KEY * KEYS);
        self.first_key + (generation * KEYS + rng.below(KEYS)) as u32
    }

    /// What was recorded, and what was acknowledged.
    pub fn finish(self) -> (Vec<Transaction>, Vec<Acked>) {
        let mut transactions = self.transactions.into_inner().expect("no client panicked");
        transactions.sort_by_key(|t| t.begin);
        (transactions, self.acked.into_inner().expect("no client panicked"))
    }

    /// Appends to lists until the round is over.
    pub fn write(&self, nodes: &[ClientSettings], seed: u64) {
        self.run(nodes, seed, |rng| {
            let leader = self.leader.load(Ordering::SeqCst);
            if rng.percent(90) { leader } else { rng.below(nodes.len() as u64) as usize }
        });
    }

    /// Reads, on any node, until the round is over.
    pub fn read(&self, nodes: &[ClientSettings], seed: u64) {
        self.run(nodes, seed, |rng| nodes.len() + rng.below(nodes.len() as u64) as usize);
    }

    /// `choose` answers a node to write at, or behind the last of them one to read at.
    fn run(&self, nodes: &[ClientSettings], seed: u64, choose: impl Fn(&Rng) -> usize) {
        let rng = Rng::new(seed);
        let (mut mine, mut acked) = (Vec::new(), Vec::new());
        while !self.over.load(Ordering::SeqCst) {
            let chosen = choose(&rng);
            let (node, reads) = (chosen % nodes.len(), chosen >= nodes.len());
            let connected = Connection::connect(&nodes[node]).and_then(|mut connection| {
                connection.select(PARTITION)?;
                Ok(connection)
            });
            let Ok(mut connection) = connected else {
                self.look_elsewhere(node, nodes.len(), reads);
                continue;
            };
            let session = self.session();
            for n in 0.. {
                // Whoever only reads looks at another node now and then.
                if self.over.load(Ordering::SeqCst) || (reads && n == 100) {
                    break;
                }
                let begin = self.tick();
                let mut ops = Vec::new();
                let ended = self.attempt(&mut connection, &rng, reads, &mut ops);
                let (outcome, usable) = match ended {
                    Ok(Some(position)) => {
                        let appends = ops.iter().filter_map(|op| match op {
                            Op::Append { key, element } => Some((*key, *element)),
                            Op::Read { .. } => None,
                        });
                        acked.extend(appends.map(|(key, element)| Acked { key, element, position, node }));
                        self.commits.fetch_add(1, Ordering::SeqCst);
                        self.leader.store(node, Ordering::SeqCst);
                        (Outcome::Committed { version: Some(position.version) }, true)
                    }
                    Ok(None) => (Outcome::Committed { version: None }, true),
                    Err(Failed::Before(error)) => (Outcome::Aborted, usable(&error)),
                    Err(Failed::Commit(error)) => match error.code() {
                        Some(ErrorCode::Conflict) => (Outcome::Aborted, true),
                        // These say that nothing was committed.
                        Some(ErrorCode::NoQuorum | ErrorCode::NotLeader | ErrorCode::ReadOnly) => {
                            (Outcome::Aborted, false)
                        }
                        _ => (Outcome::Unknown, false),
                    },
                };
                mine.push(Transaction { session, begin, end: self.tick(), ops, outcome });
                if !usable {
                    self.look_elsewhere(node, nodes.len(), reads);
                    break;
                }
            }
        }
        self.transactions.lock().expect("no client panicked").extend(mine);
        self.acked.lock().expect("no client panicked").extend(acked);
    }

    fn look_elsewhere(&self, node: usize, nodes: usize, reads: bool) {
        if !reads {
            let next = (node + 1) % nodes;
            // Somebody else may have found the leader meanwhile.
            let _ = self.leader.compare_exchange(node, next, Ordering::SeqCst, Ordering::SeqCst);
        }
        std::thread::park_timeout(PAUSE);
    }

    /// One transaction; answers its position if it wrote.
    fn attempt(
        &self,
        connection: &mut Connection,
        rng: &Rng,
        reads: bool,
        ops: &mut Vec<Op>,
    ) -> Result<Option<Position>, Failed> {
        connection.begin().map_err(Failed::Before)?;
        let mut own: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        for _ in 0..1 + rng.below(3) {
            let k = self.pick(rng);
            let found = connection.get(&list_key(k)).map_err(Failed::Before)?;
            let mut list = found.map_or(Vec::new(), |bytes| decode_list(&bytes));
            ops.push(Op::Read { key: k, list: list.clone() });
            if !reads && rng.percent(60) {
                let element = self.elements.fetch_add(1, Ordering::SeqCst) + 1;
                list.push(element);
                connection.set(&list_key(k), &encode_list(&list)).map_err(Failed::Before)?;
                ops.push(Op::Append { key: k, element });
                own.insert(k, list);
            }
        }
        let position = connection.commit().map_err(Failed::Commit)?;
        Ok(Some(position).filter(|_| !own.is_empty()))
    }

    /// Reads every list of the round on a node, as one session of the history.
    pub fn read_all(&self, node: &ClientSettings) -> Result<BTreeMap<u32, Vec<u64>>, ClientError> {
        let mut connection = Connection::connect(node)?;
        connection.select(PARTITION)?;
        let session = self.session();
        let generations = self.elements.load(Ordering::SeqCst) / (APPENDS_PER_KEY * KEYS) + 1;
        let keys: Vec<u32> = (0..(generations * KEYS) as u32).map(|n| self.first_key + n).collect();
        let mut lists = BTreeMap::new();
        for group in keys.chunks(100) {
            let begin = self.tick();
            let names: Vec<Vec<u8>> = group.iter().map(|k| list_key(*k)).collect();
            let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
            let found = connection.mget(&names)?;
            let mut ops = Vec::new();
            for (k, value) in group.iter().zip(found) {
                let list = value.map_or(Vec::new(), |bytes| decode_list(&bytes));
                ops.push(Op::Read { key: *k, list: list.clone() });
                lists.insert(*k, list);
            }
            let outcome = Outcome::Committed { version: None };
            let read = Transaction { session, begin, end: self.tick(), ops, outcome };
            self.transactions.lock().expect("no client panicked").push(read);
        }
        Ok(lists)
    }
}

/// Where a transaction failed.
enum Failed {
    /// Nothing was committed.
    Before(ClientError),
    /// The commit was on its way.
    Commit(ClientError),
}

/// Whether a connection is worth another transaction after this error.
fn usable(error: &ClientError) -> bool {
    error.code() == Some(ErrorCode::Conflict)
}
