//! Random clean histories: transactions take effect one after the other, each at a moment between its begin and its
//! end, so that they overlap for the clients and are serial all the same.

use std::collections::BTreeMap;

use super::{History, Op, Outcome, Transaction, check};

/// A small generator of random numbers; the same seed gives the same numbers.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `limit`.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

/// What a random history looks like.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) transactions: usize,
    pub(super) sessions: u64,
    /// How far begins and ends lie from the moment of effect; moments are 10 apart.
    pub(super) spread: u64,
    /// Whether outcomes carry versions.
    pub(super) versions: bool,
}

/// Keys in use at one time; a key whose list is full makes room for a new one.
const KEYS: u64 = 8;
const LIST_MAX: usize = 24;

/// Makes a clean history.
pub(super) fn generate(seed: u64, shape: Shape) -> History {
    let mut random = Random::new(seed);
    let mut lists: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    let mut active: Vec<u32> = (0..KEYS as u32).collect();
    let mut next_key = KEYS as u32;
    let mut last_begin: BTreeMap<u32, u64> = BTreeMap::new();
    let (mut element, mut version) = (0, 0);
    let mut history = History::new();
    for number in 0..shape.transactions {
        let moment = 1_000 + 10 * number as u64 + shape.spread;
        let session = random.below(shape.sessions) as u32;
        let earliest = last_begin.get(&session).map_or(0, |begin| begin + 1);
        let begin = (moment - random.below(shape.spread + 1)).max(earliest);
        let end = moment + 1 + random.below(shape.spread + 1);
        last_begin.insert(session, begin);
        let read_only = random.below(3) == 0;
        let mut own: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
        let mut ops = Vec::new();
        for _ in 0..=random.below(5) {
            let key = active[random.below(KEYS) as usize];
            if read_only || random.below(2) == 0 {
                let mut list = lists.get(&key).cloned().unwrap_or_default();
                list.extend(own.get(&key).into_iter().flatten());
                ops.push(Op::Read { key, list });
            } else {
                element += 1;
                own.entry(key).or_default().push(element);
                ops.push(Op::Append { key, element });
            }
        }
        let (outcome, applied) = match random.below(100) {
            0..8 => (Outcome::Aborted, false),
            8..12 => (Outcome::Unknown, random.below(2) == 0),
            _ => (Outcome::Committed { version: None }, true),
        };
        if applied && !own.is_empty() {
            version += 1;
            for (key, appended) in own {
                lists.entry(key).or_default().extend(appended);
            }
        }
        let outcome = match outcome {
            Outcome::Committed { .. } if shape.versions => Outcome::Committed { version: Some(version) },
            other => other,
        };
        history.push(Transaction { session, begin, end, ops, outcome });
        for key in &mut active {
            if lists.get(key).is_some_and(|list| list.len() >= LIST_MAX) {
                *key = next_key;
                next_key += 1;
            }
        }
    }
    history
}

fn assert_clean(history: &History) -> super::Summary {
    check(history).unwrap_or_else(|anomalies| {
        let lines: Vec<String> = anomalies.iter().take(5).map(ToString::to_string).collect();
        panic!("{} anomalies in a clean history:\n{}", anomalies.len(), lines.join("\n"))
    })
}

#[test]
fn small_random_histories_are_clean() {
    for seed in 1..=60 {
        let shape = Shape {
            transactions: 300,
            sessions: 1 + seed % 9,
            spread: [0, 5, 40, 300][seed as usize % 4],
            versions: seed % 3 != 0,
        };
        assert_clean(&generate(seed, shape));
    }
}

#[test]
fn fifty_thousand_serial_transactions_are_clean() {
    let shape = Shape { transactions: 50_000, sessions: 64, spread: 0, versions: true };
    let summary = assert_clean(&generate(1, shape));
    assert_eq!(summary.transactions, 50_000);
    assert!(summary.conflict_percent > 5.0 && summary.unknown_seen > 100, "{summary}");
}

#[test]
fn a_hundred_and_twenty_thousand_overlapping_ones_are_clean() {
    let shape = Shape { transactions: 120_000, sessions: 64, spread: 600, versions: false };
    let summary = assert_clean(&generate(2, shape));
    assert!(summary.edges.real_time > 100_000, "{summary}");
}

/// Every reader and every writer of one key at once: a product of edges without hubs, a sum with them.
#[test]
fn many_readers_and_many_unseen_writers_stay_cheap() {
    let mut history = History::new();
    for number in 0..60_000 {
        let op = match number % 2 {
            0 => Op::Read { key: 1, list: Vec::new() },
            _ => Op::Append { key: 1, element: number },
        };
        let outcome = Outcome::Committed { version: None };
        history.push(Transaction { session: number as u32, begin: 1, end: 2, ops: vec![op], outcome });
    }
    assert_eq!(assert_clean(&history).edges.read_write, 30_000);
}

/// Many faults at once make one large component; it is reported, and soon.
#[test]
fn a_thoroughly_broken_history_is_reported_in_time() {
    let shape = Shape { transactions: 20_000, sessions: 64, spread: 100, versions: true };
    let mut transactions = generate(3, shape).transactions().to_vec();
    let mut random = Random::new(3);
    for transaction in &mut transactions {
        let appends = transaction.ops.iter().any(|op| matches!(op, Op::Append { .. }));
        for op in &mut transaction.ops {
            if let Op::Read { list, .. } = op
                && !appends
                && random.below(2) == 0
            {
                list.truncate(list.len() / 2);
            }
        }
    }
    let anomalies = check(&History::from(transactions)).expect_err("every second read is stale");
    assert!(anomalies.iter().any(|anomaly| !anomaly.cycle.is_empty()));
}
