//! What the checker can report, under which name, and the collector that keeps reports short.

use std::collections::BTreeMap;
use std::fmt;

use super::graph::Step;

/// Reports of one kind beyond this many are only counted.
const REPORTS_PER_KIND_MAX: usize = 20;

/// How bad a cycle is, by the edges of the data in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CycleClass {
    /// Writes alone contradict each other.
    G0,
    /// Writes and reads of them: information flowed in a circle.
    G1c,
    /// One missed write: read skew, or a lost update.
    GSingle,
    /// Two or more missed writes: write skew.
    G2Item,
}

/// Which order beyond the data a cycle needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CycleOrder {
    /// None.
    Data,
    /// The order within a session.
    Session,
    /// The order of answers and beginnings across sessions.
    RealTime,
}

/// The kinds of anomalies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AnomalyKind {
    /// The recording itself makes no sense; nothing else was checked.
    MalformedHistory,
    /// An element was appended twice, or is twice in a list.
    DuplicateElement,
    /// A list holds an element that nobody appended.
    GarbageRead,
    /// A list holds an element of an aborted transaction.
    AbortedRead,
    /// A list shows a transaction half done.
    IntermediateRead,
    /// Two reads of a key, of which neither continues the other.
    IncompatibleOrder,
    /// A transaction disagrees with its own earlier reads or appends.
    Internal,
    /// Several transactions appended to the same state of a list.
    LostUpdate,
    /// An acknowledged append is missing from what came later.
    LostAppend,
    /// Two update transactions have the same version.
    DuplicateVersion,
    /// The versions along a list do not rise.
    VersionOrder,
    /// The reads are not the state that the transaction's version says.
    VersionRead,
    /// No version is the state that all reads of a transaction show.
    NoSnapshot,
    /// A version does not lie above what was answered before the transaction began.
    VersionTime,
    /// A cycle in the graph.
    Cycle(CycleClass, CycleOrder),
}

impl AnomalyKind {
    /// The name under which it is reported.
    pub fn name(self) -> &'static str {
        use CycleClass::{G0, G1c, G2Item, GSingle};
        use CycleOrder::{Data, RealTime, Session};
        match self {
            AnomalyKind::MalformedHistory => "malformed history",
            AnomalyKind::DuplicateElement => "duplicate element",
            AnomalyKind::GarbageRead => "garbage read",
            AnomalyKind::AbortedRead => "G1a",
            AnomalyKind::IntermediateRead => "G1b",
            AnomalyKind::IncompatibleOrder => "incompatible order",
            AnomalyKind::Internal => "internal",
            AnomalyKind::LostUpdate => "lost update",
            AnomalyKind::LostAppend => "lost append",
            AnomalyKind::DuplicateVersion => "duplicate version",
            AnomalyKind::VersionOrder => "version order",
            AnomalyKind::VersionRead => "version read",
            AnomalyKind::NoSnapshot => "no snapshot",
            AnomalyKind::VersionTime => "version time",
            AnomalyKind::Cycle(G0, Data) => "G0",
            AnomalyKind::Cycle(G0, Session) => "G0-session",
            AnomalyKind::Cycle(G0, RealTime) => "G0-realtime",
            AnomalyKind::Cycle(G1c, Data) => "G1c",
            AnomalyKind::Cycle(G1c, Session) => "G1c-session",
            AnomalyKind::Cycle(G1c, RealTime) => "G1c-realtime",
            AnomalyKind::Cycle(GSingle, Data) => "G-single",
            AnomalyKind::Cycle(GSingle, Session) => "G-single-session",
            AnomalyKind::Cycle(GSingle, RealTime) => "G-single-realtime",
            AnomalyKind::Cycle(G2Item, Data) => "G2-item",
            AnomalyKind::Cycle(G2Item, Session) => "G2-item-session",
            AnomalyKind::Cycle(G2Item, RealTime) => "G2-item-realtime",
        }
    }
}

/// One thing that must not have happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anomaly {
    /// What kind of thing.
    pub kind: AnomalyKind,
    /// The key it shows at, where it is one key.
    pub key: Option<u32>,
    /// The transactions involved, by their place in the history.
    pub transactions: Vec<usize>,
    /// The edges, for a cycle.
    pub cycle: Vec<Step>,
    /// What was seen, in one sentence.
    pub detail: String,
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind.name())?;
        if let Some(key) = self.key {
            write!(f, " at key {key}")?;
        }
        write!(f, ": {}", self.detail)
    }
}

/// Collects anomalies; of one kind it keeps the first few and counts the rest.
#[derive(Debug, Default)]
pub(super) struct Report {
    found: Vec<Anomaly>,
    seen: BTreeMap<AnomalyKind, usize>,
}

impl Report {
    /// Notes an anomaly; `detail` is asked for only if it is kept.
    pub(super) fn add(
        &mut self,
        kind: AnomalyKind,
        key: Option<u32>,
        transactions: &[usize],
        detail: impl FnOnce() -> String,
    ) {
        if self.counted(kind) {
            let anomaly =
                Anomaly { kind, key, transactions: transactions.to_vec(), cycle: Vec::new(), detail: detail() };
            self.found.push(anomaly);
        }
    }

    /// Notes a cycle.
    pub(super) fn add_cycle(&mut self, class: CycleClass, order: CycleOrder, cycle: Vec<Step>) {
        let kind = AnomalyKind::Cycle(class, order);
        if self.counted(kind) {
            let transactions = cycle.iter().map(|step| step.from).collect();
            let mut detail = String::new();
            for step in &cycle {
                detail.push_str(&format!("T{} —{}", step.from, step.kind.label()));
                if let Some(key) = step.key {
                    detail.push_str(&format!(" key {key}"));
                }
                detail.push_str("→ ");
            }
            detail.push_str(&format!("T{}", cycle.first().map_or(0, |step| step.from)));
            self.found.push(Anomaly { kind, key: None, transactions, cycle, detail });
        }
    }

    /// Whether nothing was found.
    pub(super) fn is_clean(&self) -> bool {
        self.found.is_empty()
    }

    /// What was found, worst kinds first; the last one kept of a kind says how many more there were.
    pub(super) fn finish(mut self) -> Vec<Anomaly> {
        self.found.sort_by_key(|anomaly| anomaly.kind);
        for (kind, count) in &self.seen {
            if *count > REPORTS_PER_KIND_MAX
                && let Some(last) = self.found.iter_mut().rev().find(|anomaly| anomaly.kind == *kind)
            {
                last.detail.push_str(&format!(" (and {} more of this kind)", count - REPORTS_PER_KIND_MAX));
            }
        }
        self.found
    }

    fn counted(&mut self, kind: AnomalyKind) -> bool {
        let count = self.seen.entry(kind).or_default();
        *count += 1;
        *count <= REPORTS_PER_KIND_MAX
    }
}
