//! Was what the clients saw possible? A checker for recorded histories of one partition.
//!
//! # The workload
//!
//! Every value is a list of elements, and no element is appended to a key twice. A transaction reads lists and
//! appends to them; an append reads the list and writes the longer one. Such a list tells its own past: whoever reads
//! `[3, 8, 5]` learns that 3 was there before 8 and 8 before 5, and the writer of each element is known. From the
//! reads alone the checker rebuilds the order of the writes, with no help from the server.
//!
//! # What must hold
//!
//! All reads of a transaction come from one snapshot. An update transaction aborts if anything that it read or wrote
//! by key has a newer version, so update transactions are serializable in the order of their versions; a read-only
//! transaction sees a prefix of that order. Together: every history is serializable, versions are the order, the
//! order respects real time, and nothing aborted is ever seen. The reads of an *aborted* transaction come from one
//! snapshot too, so it is checked like a read-only one.
//!
//! # Anomalies
//!
//! *In the lists* (`lists`): an element that is twice in a list (`duplicate element`), that nobody wrote
//! (`garbage read`), whose writer aborted (`G1a`), behind which its writer appended another one that is not there
//! (`G1b`); two reads of which neither continues the other (`incompatible order`); a transaction that contradicts
//! itself (`internal`); two transactions that appended to the same list (`lost update`); an acknowledged append that
//! later reads do not show (`lost append`).
//!
//! *In the versions* (`versions`), where the recorder knows them: `duplicate version`, lists that run against the
//! versions (`version order`), an update that did not read the state just below its version (`version read`), reads
//! that no single version explains (`no snapshot`), a version older than one that was already answered
//! (`version time`).
//!
//! *In the graph* (`graph`, `cycles`). An edge `A → B` says that A comes before B in every serial order:
//!
//! | edge | because |
//! |---|---|
//! | ww | B's element follows A's in a list |
//! | wr | B read a list that ends with A's element |
//! | rw | A read a list in which B's element is still missing |
//! | session | one connection sent A before B |
//! | realtime | A was answered before B began |
//!
//! A cycle means that no serial order exists. Its name tells how bad it is: ww edges alone make `G0`, with wr `G1c`,
//! with exactly one rw `G-single` (read skew, lost update), with more `G2-item` (write skew). `-session` or
//! `-realtime` is added when the cycle needs an edge of that kind.
//!
//! # One example
//!
//! Two doctors are on call, each a list of the shifts given up, both empty. Each gives up a shift only if the other
//! has not:
//!
//! ```text
//!   T0: read y → []   append x 1   committed
//!   T1: read x → []   append y 2   committed
//!   T2: read x → [1]  read y → [2]
//! ```
//!
//! T0 did not see T1's element in y: `T0 —rw→ T1`. T1 did not see T0's in x: `T1 —rw→ T0`. Each must come before the
//! other; the cycle has two rw edges and is reported as `G2-item`. Under plain snapshot isolation this is allowed,
//! here it is not: T1 read x, and x has a version newer than T1's snapshot, so T1 had to abort.
//!
//! # Limits
//!
//! One history is one partition: versions are counted per partition and a transaction never leaves it. A transaction
//! of unknown outcome counts as committed if another one read an element of it, and is ignored otherwise. Silence is
//! not proof: a fault that no read could have shown is not found.

pub mod bank;
pub mod check;
pub mod graph;
pub mod write_skew;

mod anomaly;
mod cycles;
mod lists;
mod observed;
mod versions;

#[cfg(test)]
mod exhaustive;
#[cfg(test)]
mod hand_written;
#[cfg(test)]
mod planted;
#[cfg(test)]
mod random;
#[cfg(test)]
mod store;

pub use anomaly::{Anomaly, AnomalyKind, CycleClass, CycleOrder};
pub use check::{Summary, check, check_with};

/// A list as the value of its key.
pub fn encode_list(list: &[u64]) -> Vec<u8> {
    list.iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// What [`encode_list`] made.
pub fn decode_list(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks::<8>().0.iter().map(|chunk| u64::from_le_bytes(*chunk)).collect()
}

/// A list's key.
pub fn list_key(n: u32) -> Vec<u8> {
    format!("list-{n}").into_bytes()
}

/// One step of a transaction, as the client saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// The key was read and this list came back; an absent key is the empty list. The transaction's own earlier
    /// appends are part of it.
    Read {
        /// The key.
        key: u32,
        /// The elements, oldest first.
        list: Vec<u64>,
    },
    /// The list was read and written back with one more element.
    Append {
        /// The key.
        key: u32,
        /// The new element; used at most once for a key in a whole history.
        element: u64,
    },
}

/// How a transaction ended, as far as the client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The commit was acknowledged.
    Committed {
        /// For a transaction with appends the version of its commit; for one without, the version of the snapshot it
        /// read. `None` if the recorder does not know.
        version: Option<u64>,
    },
    /// The client was told that nothing was written.
    Aborted,
    /// No answer came: it may have taken effect, and may still do so later.
    Unknown,
}

/// One recorded transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// The connection; its transactions are ordered by `begin`, even where they were pipelined and overlap.
    pub session: u32,
    /// The recorder's clock just before the transaction's first byte was sent.
    pub begin: u64,
    /// The recorder's clock just after its last answer; never below `begin`.
    pub end: u64,
    /// The steps, in the order in which they were sent.
    pub ops: Vec<Op>,
    /// How it ended.
    pub outcome: Outcome,
}

/// Everything that was recorded in one run against one partition. The order of the transactions carries no meaning,
/// but reports name them by their place in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    transactions: Vec<Transaction>,
}

impl History {
    /// An empty history.
    pub fn new() -> History {
        History::default()
    }

    /// Adds a transaction and returns the number by which reports name it.
    pub fn push(&mut self, transaction: Transaction) -> usize {
        self.transactions.push(transaction);
        self.transactions.len() - 1
    }

    /// The transactions, in the order in which they were added.
    pub fn transactions(&self) -> &[Transaction] {
        &self.transactions
    }
}

impl From<Vec<Transaction>> for History {
    fn from(transactions: Vec<Transaction>) -> History {
        History { transactions }
    }
}

/// How far the order of the clock binds the order of the transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RealTime {
    /// What was answered before another transaction began comes before it, for all sessions. What a leader promises.
    Global,
    /// Only the order within each session binds. For sessions that read from followers, which may lag.
    Session,
    /// No order but that of the data.
    Ignored,
}
