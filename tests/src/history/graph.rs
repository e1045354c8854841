//! The graph of what must come before what.
//!
//! Besides the transactions it has *hubs*, nodes that stand for a moment. Where each of many transactions comes before
//! each of many others (all that ended before a moment and all that began after it; all readers of a key's last known
//! list and all writers it misses), edges from the first to a hub and *hops* from the hub to the second say the same
//! with a sum of edges instead of a product. A hop means nothing by itself: it continues the edge that led to the hub.

use std::collections::BTreeSet;
use std::fmt;

use super::RealTime;
use super::observed::{BaseRead, KeyView, Observed, Standing};

/// Why one transaction comes before another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EdgeKind {
    /// The second one's element follows the first one's in a list.
    WriteWrite,
    /// The second read a list that ends with the first one's element.
    WriteRead,
    /// The first read a list in which the second one's element is still missing.
    ReadWrite,
    /// One session sent the first before the second.
    Session,
    /// The first was answered before the second began.
    RealTime,
}

impl EdgeKind {
    /// The short name used in reports.
    pub fn label(self) -> &'static str {
        match self {
            EdgeKind::WriteWrite => "ww",
            EdgeKind::WriteRead => "wr",
            EdgeKind::ReadWrite => "rw",
            EdgeKind::Session => "session",
            EdgeKind::RealTime => "realtime",
        }
    }

    /// The bit that stands for this kind in a mask of kinds.
    pub(super) fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// The bit of a hop in a mask of kinds.
pub(super) const HOP: u8 = 1 << 5;

/// One edge of a cycle, from transaction to transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Comes before.
    pub from: usize,
    /// Comes after.
    pub to: usize,
    /// Why.
    pub kind: EdgeKind,
    /// The key that shows it, for edges of the data.
    pub key: Option<u32>,
}

/// How many edges of each kind a graph has. Edges through a hub count once for each transaction that leads to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EdgeCounts {
    /// Write to write.
    pub write_write: usize,
    /// Write to read.
    pub write_read: usize,
    /// Read to write.
    pub read_write: usize,
    /// Session order.
    pub session: usize,
    /// Real-time order.
    pub real_time: usize,
}

impl fmt::Display for EdgeCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let EdgeCounts { write_write, write_read, read_write, session, real_time } = self;
        write!(f, "{write_write} ww, {write_read} wr, {read_write} rw, {session} session, {real_time} realtime")
    }
}

/// An edge between nodes. `kind` is `None` for a hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Edge {
    pub(super) from: u32,
    pub(super) to: u32,
    pub(super) kind: Option<EdgeKind>,
    pub(super) key: Option<u32>,
}

impl Edge {
    /// Whether a mask of kinds includes this edge.
    pub(super) fn is_in(&self, mask: u8) -> bool {
        self.kind.map_or(HOP, EdgeKind::bit) & mask != 0
    }
}

/// The graph: nodes below `transactions` are transactions, those above are hubs.
#[derive(Debug)]
pub(super) struct Graph {
    transactions: usize,
    edges: Vec<Edge>,
    /// Where the edges of each node begin, with one more entry for the end.
    starts: Vec<usize>,
}

impl Graph {
    /// Builds the graph of a history.
    pub(super) fn build(observed: &Observed<'_>, real_time: RealTime) -> Graph {
        let transactions = observed.transactions.len();
        let mut builder = Builder { edges: Vec::new(), nodes: transactions };
        for (key, view) in &observed.keys {
            builder.add_key(observed, *key, view);
        }
        if real_time != RealTime::Ignored {
            builder.add_sessions(observed);
        }
        if real_time == RealTime::Global {
            builder.add_real_time(observed);
        }
        builder.finish(transactions)
    }

    /// How many edges of each kind there are.
    pub(super) fn counts(&self) -> EdgeCounts {
        let mut counts = EdgeCounts::default();
        for kind in self.edges.iter().filter_map(|edge| edge.kind) {
            match kind {
                EdgeKind::WriteWrite => counts.write_write += 1,
                EdgeKind::WriteRead => counts.write_read += 1,
                EdgeKind::ReadWrite => counts.read_write += 1,
                EdgeKind::Session => counts.session += 1,
                EdgeKind::RealTime => counts.real_time += 1,
            }
        }
        counts
    }

    /// Transactions and hubs.
    pub(super) fn node_count(&self) -> usize {
        self.starts.len() - 1
    }

    /// Whether a node is a hub.
    pub(super) fn is_hub(&self, node: u32) -> bool {
        node as usize >= self.transactions
    }

    /// The places of a node's edges.
    pub(super) fn edges_of(&self, node: u32) -> std::ops::Range<usize> {
        self.starts[node as usize]..self.starts[node as usize + 1]
    }

    /// The edge at a place.
    pub(super) fn edge(&self, place: usize) -> &Edge {
        &self.edges[place]
    }
}

struct Builder {
    edges: Vec<Edge>,
    nodes: usize,
}

impl Builder {
    fn add(&mut self, from: usize, to: usize, kind: EdgeKind, key: Option<u32>) {
        if from != to {
            self.edges.push(Edge { from: node(from), to: node(to), kind: Some(kind), key });
        }
    }

    fn hop(&mut self, from: usize, to: usize) {
        self.edges.push(Edge { from: node(from), to: node(to), kind: None, key: None });
    }

    fn hub(&mut self) -> usize {
        self.nodes += 1;
        self.nodes - 1
    }

    fn add_key(&mut self, observed: &Observed<'_>, number: u32, view: &KeyView<'_>) {
        let key = Some(number);
        let writers: Vec<Option<usize>> =
            view.longest.iter().map(|element| observed.effective_writer(number, *element)).collect();
        let unseen: BTreeSet<usize> = view.unseen.iter().map(|(writer, _)| *writer).collect();

        // Writers in the order of the list, then those whose place after its end is not known.
        let known: Vec<usize> = writers.iter().flatten().copied().collect();
        for pair in known.windows(2) {
            self.add(pair[0], pair[1], EdgeKind::WriteWrite, key);
        }
        if let Some(last) = known.last() {
            for writer in &unseen {
                self.add(*last, *writer, EdgeKind::WriteWrite, key);
            }
        }

        // The effective writer of the first element at or after each place.
        let mut next = vec![None; writers.len() + 1];
        for place in (0..writers.len()).rev() {
            next[place] = writers[place].or(next[place + 1]);
        }
        let mut at_the_end = Vec::new();
        for read in view.reads.iter().filter(|read| read.fits) {
            let length = read.list.len();
            if let Some(Some(writer)) = length.checked_sub(1).map(|place| writers[place]) {
                self.add(writer, read.transaction, EdgeKind::WriteRead, key);
            }
            match next[length] {
                Some(writer) => self.add(read.transaction, writer, EdgeKind::ReadWrite, key),
                None => at_the_end.push(read),
            }
        }

        // Who read the list to its end missed all unseen appends but its own. One such reader may have appended to
        // what it read; were there several, that is a lost update and reported as such.
        let (appending, plain): (Vec<&BaseRead<'_>>, Vec<&BaseRead<'_>>) =
            at_the_end.into_iter().partition(|read| unseen.contains(&read.transaction));
        if !plain.is_empty() && !unseen.is_empty() {
            let hub = self.hub();
            for read in plain {
                self.add(read.transaction, hub, EdgeKind::ReadWrite, key);
            }
            for writer in &unseen {
                self.hop(hub, *writer);
            }
        }
        if let [only] = appending.as_slice()
            && observed.standing[only.transaction] == Standing::Effective
        {
            for writer in &unseen {
                self.add(only.transaction, *writer, EdgeKind::ReadWrite, key);
            }
        }
    }

    fn add_sessions(&mut self, observed: &Observed<'_>) {
        for numbers in observed.sessions().into_values() {
            let mut earlier = None;
            for number in numbers {
                if let Some(earlier) = earlier {
                    self.add(earlier, number, EdgeKind::Session, None);
                }
                // What has no answer may take effect at any later time, so nothing follows from it.
                if observed.has_end(number) {
                    earlier = Some(number);
                }
            }
        }
    }

    /// A chain of hubs in the order of the clock. A transaction leads to the first hub after its end, and the last
    /// hub before its begin leads to it. A hub is needed only where a begin follows an end.
    fn add_real_time(&mut self, observed: &Observed<'_>) {
        let mut moments: Vec<(u64, bool, usize)> = Vec::new();
        for number in observed.participants() {
            let transaction = &observed.transactions[number];
            moments.push((transaction.begin, false, number));
            if observed.has_end(number) {
                moments.push((transaction.end, true, number));
            }
        }
        // Begins sort before ends of the same tick: only a strictly earlier end counts.
        moments.sort_unstable();
        let mut ended: Vec<usize> = Vec::new();
        let mut latest: Option<usize> = None;
        for (_, is_end, number) in moments {
            if is_end {
                ended.push(number);
                continue;
            }
            if !ended.is_empty() {
                let hub = self.hub();
                if let Some(earlier) = latest {
                    self.hop(earlier, hub);
                }
                for transaction in ended.drain(..) {
                    self.add(transaction, hub, EdgeKind::RealTime, None);
                }
                latest = Some(hub);
            }
            if let Some(hub) = latest {
                self.hop(hub, number);
            }
        }
    }

    fn finish(mut self, transactions: usize) -> Graph {
        self.edges.sort_unstable();
        self.edges.dedup_by_key(|edge| (edge.from, edge.to, edge.kind));
        let mut starts = vec![0; self.nodes + 1];
        for edge in &self.edges {
            starts[edge.from as usize + 1] += 1;
        }
        for place in 0..self.nodes {
            starts[place + 1] += starts[place];
        }
        Graph { transactions, edges: self.edges, starts }
    }
}

/// Nodes are kept in 32 bits.
fn node(number: usize) -> u32 {
    u32::try_from(number).expect("a history of fewer than four thousand million transactions")
}
