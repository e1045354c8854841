//! A toy store with snapshots and first-committer-wins, run step by step by interleaved sessions, that can be told to
//! break one of its promises. Its honest histories must pass and each broken promise must be found.

use std::collections::BTreeMap;

use super::random::Random;
use super::{History, Op, Outcome, RealTime, Transaction, check, check_with};

/// The promise that a store breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Nothing,
    /// Commits do not look at what was read.
    NoReadCheck,
    /// Commits do not look at anything.
    NoCheck,
    /// Snapshots lie a few versions back.
    OldSnapshots,
    /// Reads take the newest state instead of the snapshot.
    NoSnapshots,
    /// Reads show what other sessions have not committed.
    DirtyReads,
    /// A refused transaction leaves its first append behind.
    AbortLeaves,
    /// A commit of several keys loses one of them.
    CommitLoses,
    /// Every few commits a version is given out twice.
    VersionAgain,
}

/// A transaction in flight.
struct Running {
    begin: u64,
    snapshot: u64,
    ops: Vec<Op>,
    own: BTreeMap<u32, Vec<u64>>,
    steps_left: u64,
    read_only: bool,
}

struct Store {
    fault: Fault,
    random: Random,
    clock: u64,
    version: u64,
    element: u64,
    /// All states of each key, oldest first.
    states: BTreeMap<u32, Vec<(u64, Vec<u64>)>>,
    keys: Vec<u32>,
    running: Vec<Option<Running>>,
    history: History,
}

const LIST_MAX: usize = 16;

/// Runs interleaved sessions until enough transactions are over.
fn record(seed: u64, fault: Fault, transactions: usize) -> History {
    let mut store = Store {
        fault,
        random: Random::new(seed),
        clock: 0,
        version: 0,
        element: 0,
        states: BTreeMap::new(),
        keys: (0..6).collect(),
        running: (0..8).map(|_| None).collect(),
        history: History::new(),
    };
    while store.history.transactions().len() < transactions {
        let session = store.random.below(store.running.len() as u64) as usize;
        store.step(session);
    }
    store.history
}

impl Store {
    fn step(&mut self, session: usize) {
        self.clock += 1;
        let Some(mut running) = self.running[session].take() else {
            let lag = if self.fault == Fault::OldSnapshots { 3 } else { 0 };
            self.running[session] = Some(Running {
                begin: self.clock,
                snapshot: self.version.saturating_sub(lag),
                ops: Vec::new(),
                own: BTreeMap::new(),
                steps_left: 1 + self.random.below(4),
                read_only: self.random.below(3) == 0,
            });
            return;
        };
        if running.steps_left == 0 {
            self.commit(session as u32, running);
            return;
        }
        running.steps_left -= 1;
        let key = self.keys[self.random.below(self.keys.len() as u64) as usize];
        if running.read_only || self.random.below(2) == 0 {
            let mut list = self.list(key, &running);
            list.extend(running.own.get(&key).into_iter().flatten());
            running.ops.push(Op::Read { key, list });
        } else {
            self.element += 1;
            running.own.entry(key).or_default().push(self.element);
            running.ops.push(Op::Append { key, element: self.element });
        }
        self.running[session] = Some(running);
    }

    /// What a transaction reads at a key, without its own appends.
    fn list(&self, key: u32, running: &Running) -> Vec<u64> {
        let snapshot = if self.fault == Fault::NoSnapshots { self.version } else { running.snapshot };
        let mut list = self.list_at(key, snapshot);
        if self.fault == Fault::DirtyReads {
            for other in self.running.iter().flatten() {
                list.extend(other.own.get(&key).into_iter().flatten());
            }
        }
        list
    }

    fn list_at(&self, key: u32, version: u64) -> Vec<u64> {
        let states = self.states.get(&key).into_iter().flatten();
        states.rev().find(|(at, _)| *at <= version).map(|(_, list)| list.clone()).unwrap_or_default()
    }

    fn conflicts(&self, running: &Running) -> bool {
        let is_newer = |key: u32| {
            self.states.get(&key).and_then(|states| states.last()).is_some_and(|(at, _)| *at > running.snapshot)
        };
        running.ops.iter().any(|op| match op {
            Op::Append { key, .. } => self.fault != Fault::NoCheck && is_newer(*key),
            Op::Read { key, .. } => !matches!(self.fault, Fault::NoCheck | Fault::NoReadCheck) && is_newer(*key),
        })
    }

    fn commit(&mut self, session: u32, mut running: Running) {
        let updates = !running.own.is_empty();
        let mut version = running.snapshot;
        let mut outcome = None;
        if updates && self.conflicts(&running) {
            outcome = Some(Outcome::Aborted);
            running.own.retain(|_, _| self.fault == Fault::AbortLeaves);
        } else if updates && self.fault == Fault::CommitLoses && running.own.len() > 1 {
            running.own.pop_last();
        }
        if updates && !running.own.is_empty() {
            let again = self.fault == Fault::VersionAgain && self.random.below(10) == 0 && self.version > 0;
            self.version += u64::from(!again);
            version = self.version;
            for (key, own) in std::mem::take(&mut running.own) {
                let mut list = self.list_at(key, running.snapshot);
                list.extend(own);
                if list.len() >= LIST_MAX
                    && let Some(place) = self.keys.iter().position(|active| *active == key)
                {
                    self.keys[place] += self.keys.len() as u32;
                }
                self.states.entry(key).or_default().push((version, list));
            }
        }
        let outcome = outcome.unwrap_or(match self.random.below(20) {
            0 => Outcome::Unknown,
            1..6 => Outcome::Committed { version: None },
            _ => Outcome::Committed { version: Some(version) },
        });
        let Running { begin, ops, .. } = running;
        self.history.push(Transaction { session, begin, end: self.clock, ops, outcome });
    }
}

#[test]
fn an_honest_store_passes() {
    for seed in 1..=30 {
        let history = record(seed, Fault::Nothing, 1_000);
        let summary = check(&history).unwrap_or_else(|anomalies| panic!("seed {seed}: {}", anomalies[0]));
        assert!(summary.conflict_percent > 5.0, "there was too little to decide: {summary}");
    }
}

#[test]
fn every_broken_promise_is_found_under_its_name() {
    for (fault, name) in [
        (Fault::NoReadCheck, "version read"),
        (Fault::NoCheck, "lost update"),
        (Fault::OldSnapshots, "version time"),
        (Fault::NoSnapshots, "internal"),
        (Fault::DirtyReads, "G1a"),
        (Fault::AbortLeaves, "G1a"),
        (Fault::CommitLoses, "lost append"),
        (Fault::VersionAgain, "duplicate version"),
    ] {
        for seed in 1..=5 {
            let anomalies = check(&record(seed, fault, 2_000)).expect_err("a promise was broken");
            let names: Vec<&str> = anomalies.iter().map(|anomaly| anomaly.kind.name()).collect();
            assert!(names.contains(&name), "{fault:?}, seed {seed}: {names:?}");
        }
    }
}

/// Without versions and without the clock the data alone must show it.
#[test]
fn write_skew_shows_without_versions() {
    for seed in 1..=5 {
        let mut transactions = record(seed, Fault::NoReadCheck, 2_000).transactions().to_vec();
        for transaction in &mut transactions {
            if let Outcome::Committed { version } = &mut transaction.outcome {
                *version = None;
            }
        }
        let anomalies = check_with(&History::from(transactions), RealTime::Ignored).expect_err("write skew");
        assert!(anomalies.iter().all(|anomaly| anomaly.kind.name() == "G2-item"), "{}", anomalies[0]);
    }
}

/// Snapshots that lag are what a follower gives: each a state of its time, but not of the reader's.
#[test]
fn a_lagging_snapshot_is_fine_without_the_clock() {
    for seed in 1..=5 {
        let history = record(seed, Fault::OldSnapshots, 1_000);
        assert!(check_with(&history, RealTime::Ignored).is_ok(), "seed {seed}");
    }
}
