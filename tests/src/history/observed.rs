//! What a history says about every key: who wrote which element, which lists were read, which is the longest.
//!
//! Of each transaction and key one list matters: the *base*, what the key held before the transaction's own appends.
//! It is the first read, or a later one with the own appends taken off its end.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::anomaly::{AnomalyKind, Report};
use super::{History, Op, Outcome, Transaction};

/// What a transaction is good for in the analysis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It took effect: committed, or unknown and seen.
    Effective,
    /// It left nothing behind; only its reads count.
    Aborted,
    /// Unknown, and nobody saw it.
    Ignored,
}

/// Where an element comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Write {
    /// The transaction that appended it.
    pub(super) transaction: usize,
    /// The element that it appended to the same key just before, if any.
    pub(super) after: Option<u64>,
    /// Whether it is the transaction's last append to that key.
    pub(super) is_last: bool,
}

/// The base of one transaction at one key.
#[derive(Debug, Clone, Copy)]
pub(super) struct BaseRead<'h> {
    /// The reader.
    pub(super) transaction: usize,
    /// What it read.
    pub(super) list: &'h [u64],
    /// Whether it also appended to that key.
    pub(super) appends: bool,
    /// Whether the list is a beginning of the key's longest list; only such reads carry order.
    pub(super) fits: bool,
}

/// One key.
#[derive(Debug, Default)]
pub(super) struct KeyView<'h> {
    /// The longest list that was read.
    pub(super) longest: &'h [u64],
    /// Who read it.
    pub(super) longest_reader: usize,
    /// All base reads.
    pub(super) reads: Vec<BaseRead<'h>>,
    /// Appends of effective transactions that the longest list does not hold.
    pub(super) unseen: Vec<(usize, u64)>,
}

/// The whole history, seen by key.
#[derive(Debug)]
pub(super) struct Observed<'h> {
    /// The transactions.
    pub(super) transactions: &'h [Transaction],
    /// One standing per transaction.
    pub(super) standing: Vec<Standing>,
    /// The keys, in order.
    pub(super) keys: BTreeMap<u32, KeyView<'h>>,
    writers: HashMap<(u32, u64), Write>,
}

impl<'h> Observed<'h> {
    /// Reads the history once; notes duplicate appends and transactions that contradict themselves.
    pub(super) fn gather(history: &'h History, report: &mut Report) -> Observed<'h> {
        let transactions = history.transactions();
        let writers = gather_writers(transactions, report);
        let standing = gather_standing(transactions, &writers);
        let mut observed = Observed { transactions, standing, keys: BTreeMap::new(), writers };
        let mut appended: BTreeMap<u32, Vec<(usize, u64)>> = BTreeMap::new();
        for (number, transaction) in transactions.iter().enumerate() {
            let effective = match observed.standing[number] {
                Standing::Ignored => continue,
                Standing::Effective => true,
                Standing::Aborted => false,
            };
            for local in run_locally(number, transaction, report) {
                if effective {
                    let list = appended.entry(local.key).or_default();
                    list.extend(local.own.iter().map(|element| (number, *element)));
                }
                if let Some(list) = local.base {
                    let read = BaseRead { transaction: number, list, appends: !local.own.is_empty(), fits: false };
                    observed.keys.entry(local.key).or_default().reads.push(read);
                }
            }
        }
        for view in observed.keys.values_mut() {
            for read in &view.reads {
                if read.list.len() > view.longest.len() {
                    (view.longest, view.longest_reader) = (read.list, read.transaction);
                }
            }
            for read in &mut view.reads {
                read.fits = view.longest.starts_with(read.list);
            }
        }
        for (key, appends) in appended {
            let view = observed.keys.entry(key).or_default();
            let seen: HashSet<u64> = view.longest.iter().copied().collect();
            view.unseen = appends.into_iter().filter(|(_, element)| !seen.contains(element)).collect();
        }
        observed
    }

    /// Who appended an element.
    pub(super) fn writer(&self, key: u32, element: u64) -> Option<Write> {
        self.writers.get(&(key, element)).copied()
    }

    /// Who appended an element, if that transaction took effect.
    pub(super) fn effective_writer(&self, key: u32, element: u64) -> Option<usize> {
        let writer = self.writer(key, element)?.transaction;
        (self.standing[writer] == Standing::Effective).then_some(writer)
    }

    /// The version that a transaction's appends have, where it is known.
    pub(super) fn commit_version(&self, transaction: usize) -> Option<u64> {
        match self.transactions[transaction].outcome {
            Outcome::Committed { version } if self.writes(transaction) => version,
            _ => None,
        }
    }

    /// Whether a transaction appended anything.
    pub(super) fn writes(&self, transaction: usize) -> bool {
        self.transactions[transaction].ops.iter().any(|op| matches!(op, Op::Append { .. }))
    }

    /// Whether the time at which a transaction was over is known.
    pub(super) fn has_end(&self, transaction: usize) -> bool {
        self.transactions[transaction].outcome != Outcome::Unknown
    }

    /// The transactions that are part of the analysis.
    pub(super) fn participants(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.transactions.len()).filter(|number| self.standing[*number] != Standing::Ignored)
    }

    /// The participants of each session, in the order in which they were sent.
    pub(super) fn sessions(&self) -> BTreeMap<u32, Vec<usize>> {
        let mut sessions: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for number in self.participants() {
            sessions.entry(self.transactions[number].session).or_default().push(number);
        }
        for numbers in sessions.values_mut() {
            numbers.sort_by_key(|number| (self.transactions[*number].begin, *number));
        }
        sessions
    }
}

/// One key inside one transaction.
struct Local<'h> {
    key: u32,
    base: Option<&'h [u64]>,
    own: Vec<u64>,
    broken: bool,
}

/// Runs the steps of a transaction against themselves and returns what it read from outside and appended, by key.
fn run_locally<'h>(number: usize, transaction: &'h Transaction, report: &mut Report) -> Vec<Local<'h>> {
    let mut locals: Vec<Local<'h>> = Vec::new();
    for op in &transaction.ops {
        let (Op::Read { key, .. } | Op::Append { key, .. }) = op;
        let place = locals.iter().position(|local| local.key == *key).unwrap_or_else(|| {
            locals.push(Local { key: *key, base: None, own: Vec::new(), broken: false });
            locals.len() - 1
        });
        let local = &mut locals[place];
        match op {
            Op::Append { element, .. } => local.own.push(*element),
            Op::Read { list, .. } => {
                let Some(base) = list.strip_suffix(local.own.as_slice()) else {
                    let own = local.own.clone();
                    local.complain(number, report, || {
                        format!("T{number} had appended {} and then read {}", show(&own), show(list))
                    });
                    continue;
                };
                match local.base {
                    None => local.base = Some(base),
                    Some(earlier) if earlier == base => {}
                    Some(earlier) => local.complain(number, report, || {
                        format!("T{number} read {} and later {}, without its own appends", show(earlier), show(base))
                    }),
                }
            }
        }
    }
    for local in &mut locals {
        if let Some(base) = local.base
            && let Some(element) = local.own.iter().copied().find(|element| base.contains(element))
        {
            local.complain(number, report, || format!("T{number} read its own {element} as if it were there before"));
        }
        if local.broken {
            local.base = None;
        }
    }
    locals
}

impl Local<'_> {
    /// Notes a contradiction, once per key and transaction.
    fn complain(&mut self, number: usize, report: &mut Report, detail: impl FnOnce() -> String) {
        if !self.broken {
            self.broken = true;
            report.add(AnomalyKind::Internal, Some(self.key), &[number], detail);
        }
    }
}

fn gather_writers(transactions: &[Transaction], report: &mut Report) -> HashMap<(u32, u64), Write> {
    let mut writers: HashMap<(u32, u64), Write> = HashMap::new();
    for (number, transaction) in transactions.iter().enumerate() {
        let mut last: Vec<(u32, u64)> = Vec::new();
        for op in &transaction.ops {
            let Op::Append { key, element } = op else { continue };
            if let Some(first) = writers.get(&(*key, *element)) {
                let first = first.transaction;
                report.add(AnomalyKind::DuplicateElement, Some(*key), &[first, number], || {
                    format!("{element} was appended by T{first} and again by T{number}")
                });
                continue;
            }
            let place = last.iter().position(|(earlier, _)| earlier == key);
            let after = place.map(|place| last[place].1);
            if let Some(before) = after.and_then(|before| writers.get_mut(&(*key, before))) {
                before.is_last = false;
            }
            writers.insert((*key, *element), Write { transaction: number, after, is_last: true });
            match place {
                Some(place) => last[place].1 = *element,
                None => last.push((*key, *element)),
            }
        }
    }
    writers
}

fn gather_standing(transactions: &[Transaction], writers: &HashMap<(u32, u64), Write>) -> Vec<Standing> {
    let by_outcome = |transaction: &Transaction| match transaction.outcome {
        Outcome::Committed { .. } => Standing::Effective,
        Outcome::Aborted => Standing::Aborted,
        Outcome::Unknown => Standing::Ignored,
    };
    let mut standing: Vec<Standing> = transactions.iter().map(by_outcome).collect();
    if !standing.contains(&Standing::Ignored) {
        return standing;
    }
    for (number, transaction) in transactions.iter().enumerate() {
        for op in &transaction.ops {
            let Op::Read { key, list } = op else { continue };
            for element in list {
                if let Some(write) = writers.get(&(*key, *element))
                    && write.transaction != number
                    && transactions[write.transaction].outcome == Outcome::Unknown
                {
                    standing[write.transaction] = Standing::Effective;
                }
            }
        }
    }
    standing
}

/// A list for a message: whole if short, else its length and its end.
pub(super) fn show(list: &[u64]) -> String {
    const SHOWN_MAX: usize = 12;
    if list.len() <= SHOWN_MAX {
        format!("{list:?}")
    } else {
        format!("[… {} elements …, {:?}]", list.len() - SHOWN_MAX, &list[list.len() - SHOWN_MAX..])
    }
}
