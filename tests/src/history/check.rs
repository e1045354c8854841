//! The entry point: one call, all checks, one answer.

use std::fmt;

use super::anomaly::{Anomaly, AnomalyKind, Report};
use super::cycles;
use super::graph::{EdgeCounts, Graph};
use super::lists;
use super::observed::{Observed, Standing};
use super::versions;
use super::{History, Outcome, RealTime};

/// What a clean history consisted of. Reports print it, so that a run that tested nothing does not look like a pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// All transactions.
    pub transactions: usize,
    /// Those that were acknowledged.
    pub committed: usize,
    /// Those that were refused.
    pub aborted: usize,
    /// Those without an answer.
    pub unknown: usize,
    /// Those without an answer that another transaction saw, and that therefore count as committed.
    pub unknown_seen: usize,
    /// The edges of the graph.
    pub edges: EdgeCounts,
    /// Aborted transactions per hundred answered ones.
    pub conflict_percent: f64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} transactions ({} committed, {} aborted, {} unknown, {} of them seen), {:.1} % conflicts, edges: {}",
            self.transactions,
            self.committed,
            self.aborted,
            self.unknown,
            self.unknown_seen,
            self.conflict_percent,
            self.edges
        )
    }
}

/// Checks a history of a leader: all promises, real time included.
pub fn check(history: &History) -> Result<Summary, Vec<Anomaly>> {
    check_with(history, RealTime::Global)
}

/// Checks a history with as much of real time as the sessions were promised.
pub fn check_with(history: &History, real_time: RealTime) -> Result<Summary, Vec<Anomaly>> {
    let mut report = Report::default();
    check_form(history, &mut report);
    if !report.is_clean() {
        return Err(report.finish());
    }
    let observed = Observed::gather(history, &mut report);
    lists::check(&observed, real_time, &mut report);
    versions::check(&observed, real_time, &mut report);
    let graph = Graph::build(&observed, real_time);
    cycles::check(&graph, &mut report);
    if report.is_clean() { Ok(summarize(history, &observed, graph.counts())) } else { Err(report.finish()) }
}

/// What every recording must satisfy before it can be judged.
fn check_form(history: &History, report: &mut Report) {
    for (number, transaction) in history.transactions().iter().enumerate() {
        if transaction.end < transaction.begin {
            report.add(AnomalyKind::MalformedHistory, None, &[number], || {
                format!("T{number} ended at {}, before it began at {}", transaction.end, transaction.begin)
            });
        }
    }
}

fn summarize(history: &History, observed: &Observed<'_>, edges: EdgeCounts) -> Summary {
    let mut summary = Summary {
        transactions: history.transactions().len(),
        committed: 0,
        aborted: 0,
        unknown: 0,
        unknown_seen: 0,
        edges,
        conflict_percent: 0.0,
    };
    for (number, transaction) in history.transactions().iter().enumerate() {
        match transaction.outcome {
            Outcome::Committed { .. } => summary.committed += 1,
            Outcome::Aborted => summary.aborted += 1,
            Outcome::Unknown => {
                summary.unknown += 1;
                summary.unknown_seen += usize::from(observed.standing[number] == Standing::Effective);
            }
        }
    }
    let answered = summary.committed + summary.aborted;
    if answered > 0 {
        summary.conflict_percent = 100.0 * summary.aborted as f64 / answered as f64;
    }
    summary
}
