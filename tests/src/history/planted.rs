//! Faults planted into clean random histories, one at a time. The checker must find each, under a name that fits.

use super::random::{Random, Shape, generate};
use super::{History, Op, Outcome, Transaction, check};

type Plant = fn(&mut History, &mut Random) -> bool;

/// Each fault with the names of which at least one must be reported.
const FAULTS: &[(&str, Plant, &[&str])] = &[
    ("an acknowledged append is missing from all reads", drop_append, &["lost append"]),
    ("two versions are swapped", swap_versions, &["version time"]),
    ("two updates have one version", repeat_version, &["duplicate version"]),
    (
        "a read misses what was answered before",
        stale_read,
        &["G-single-realtime", "G-single-session", "G2-item-session"],
    ),
    ("a version is older than the state that was read", older_version, &["version read"]),
    ("an aborted append is shown", show_aborted, &["G1a"]),
    ("a seen commit is called aborted", abort_seen, &["G1a"]),
    ("an element comes from nowhere", show_garbage, &["garbage read"]),
    ("an element is shown twice", repeat_element, &["duplicate element"]),
    ("two elements change places", reorder, &["incompatible order", "version order"]),
    ("a transaction is shown half done", show_half, &["G1b"]),
    ("a transaction does not see its own append", hide_own, &["internal"]),
    ("a repeated read differs", change_repeated, &["internal"]),
    ("two transactions append to one state", lose_update, &["lost update"]),
    ("two transactions miss each other", skew, &["G2-item"]),
    ("a read sees only one of two keys written together", tear, &["G-single"]),
    ("information flows in a circle", circle, &["G1c"]),
];

#[test]
fn every_planted_fault_is_found() {
    for (what, plant, names) in FAULTS {
        for seed in 1..=8 {
            let spread = if seed % 2 == 0 { 30 } else { 0 };
            let shape = Shape { transactions: 600, sessions: 8, spread, versions: true };
            let mut history = generate(seed, shape);
            assert!(check(&history).is_ok(), "clean before: {what}");
            assert!(plant(&mut history, &mut Random::new(seed)), "no place for: {what}, seed {seed}");
            let Err(anomalies) = check(&history) else { panic!("not found: {what}, seed {seed}") };
            let found: Vec<&str> = anomalies.iter().map(|anomaly| anomaly.kind.name()).collect();
            assert!(found.iter().any(|name| names.contains(name)), "{what}, seed {seed}: {found:?}");
        }
    }
}

/// Tries places in the history from a random one on until one is fit.
fn anywhere(
    history: &mut History,
    random: &mut Random,
    mut plant: impl FnMut(&mut [Transaction], usize) -> bool,
) -> bool {
    let transactions = &mut history.transactions;
    let count = transactions.len();
    let first = random.below(count as u64) as usize;
    (0..count).any(|step| plant(transactions, (first + step) % count))
}

fn is_committed(transaction: &Transaction) -> bool {
    matches!(transaction.outcome, Outcome::Committed { .. })
}

fn version_mut(transaction: &mut Transaction) -> Option<&mut u64> {
    match &mut transaction.outcome {
        Outcome::Committed { version } => version.as_mut(),
        _ => None,
    }
}

fn appends(transaction: &Transaction) -> Vec<(u32, u64)> {
    let append = |op: &Op| match op {
        Op::Append { key, element } => Some((*key, *element)),
        Op::Read { .. } => None,
    };
    transaction.ops.iter().filter_map(append).collect()
}

/// A committed transaction that is one read of a list with something in it.
fn single_read(transaction: &mut Transaction) -> Option<(u32, &mut Vec<u64>)> {
    let committed = is_committed(transaction);
    match transaction.ops.as_mut_slice() {
        [Op::Read { key, list }] if committed && !list.is_empty() => Some((*key, list)),
        _ => None,
    }
}

fn writer_of(transactions: &[Transaction], key: u32, element: u64) -> Option<usize> {
    transactions.iter().position(|transaction| appends(transaction).contains(&(key, element)))
}

fn lists_mut(transactions: &mut [Transaction], wanted: u32) -> impl Iterator<Item = &mut Vec<u64>> {
    transactions.iter_mut().flat_map(|transaction| &mut transaction.ops).filter_map(move |op| match op {
        Op::Read { key, list } if *key == wanted => Some(list),
        _ => None,
    })
}

/// Adds two or three transactions that overlap everything, each in a session of its own, on two fresh keys.
fn add(history: &mut History, ops: Vec<Vec<Op>>) -> bool {
    let end = history.transactions.iter().map(|transaction| transaction.end).max().unwrap_or(0);
    for (number, ops) in ops.into_iter().enumerate() {
        let outcome = Outcome::Committed { version: None };
        history.push(Transaction { session: 900 + number as u32, begin: 0, end, ops, outcome });
    }
    true
}

const FRESH: u32 = 1_000_000;
const NEW: u64 = 1 << 40;

fn fresh_read(key: u32, list: &[u64]) -> Op {
    Op::Read { key: FRESH + key, list: list.to_vec() }
}

fn fresh_append(key: u32, element: u64) -> Op {
    Op::Append { key: FRESH + key, element: NEW + element }
}

fn drop_append(history: &mut History, random: &mut Random) -> bool {
    anywhere(history, random, |transactions, place| {
        let ended = transactions[place].end;
        if !is_committed(&transactions[place]) {
            return false;
        }
        let Some((key, element)) = appends(&transactions[place]).pop() else { return false };
        let shows = |op: &Op| matches!(op, Op::Read { key: at, list } if *at == key && list.contains(&element));
        let own = transactions[place].ops.iter().any(shows);
        let later = transactions.iter().any(|other| other.begin > ended && other.ops.iter().any(shows));
        if own || !later {
            return false;
        }
        lists_mut(transactions, key).for_each(|list| list.retain(|shown| *shown != element));
        true
    })
}

/// A committed update and the next one that began after its end.
fn two_updates(transactions: &[Transaction], place: usize) -> Option<usize> {
    let fit = |transaction: &Transaction| is_committed(transaction) && !appends(transaction).is_empty();
    let later = |other: &usize| transactions[*other].begin > transactions[place].end && fit(&transactions[*other]);
    if fit(&transactions[place]) { (0..transactions.len()).find(later) } else { None }
}

fn swap_versions(history: &mut History, random: &mut Random) -> bool {
    anywhere(history, random, |transactions, place| {
        let Some(other) = two_updates(transactions, place) else { return false };
        let outcome = transactions[place].outcome;
        transactions[place].outcome = transactions[other].outcome;
        transactions[other].outcome = outcome;
        true
    })
}

fn repeat_version(history: &mut History, random: &mut Random) -> bool {
    anywhere(history, random, |transactions, place| {
        let Some(other) = two_updates(transactions, place) else { return false };
        transactions[other].outcome = transactions[place].outcome;
        true
    })
}

fn stale_read(history: &mut History, random: &mut Random) -> bool {
    anywhere(history, random, |transactions, place| {
        let begin = transactions[place].begin;
        let Some((key, list)) = single_read(&mut transactions[place]) else { return false };
        let shortened = list[..list.len() - 1].to_vec();
        let last = list[list.len() - 1];
        let Some(writer) = writer_of(transactions, key, last) else { return false };
        let answered = is_committed(&transactions[writer]) && transactions[writer].end < begin;
        // What is left must be a state that once was, and someone else must show the element.
        let half = shortened.last().is_some_and(|before| writer_of(transactions, key, *before) == Some(writer));
        let shown = lists_mut(transactions, key).filter(|list| list.contains(&last)).count() > 1;
        if !answered || half || !shown {
            return false;
        }
        single_read(&mut transactions[place]).map(|(_, list)| *list = shortened).is_some()
    })
}

fn older_version(history: &mut History, random: &mut Random) -> bool {
    anywhere(history, random, |transactions, place| {
        let Some((key, list)) = single_read(&mut transactions[place]) else { return false };
        let Some(last) = list.last().copied() else { return false };
        let Some(writer) = writer_of(transactions, key, last) else { return false };
        let Outcome::Committed { version: Some(seen) } = transactions[writer].outcome else { return false };
        let Some(version) = version_mut(&mut transactions[place]) else { return false };
        *version = seen - 1;
        true
    })
}

fn show_aborted(history: &mut History, random: &mut Random) -> bool {
    anywhere(history, random, |transactions, place| {
        if transactions[place].outcome != Outcome::Aborted {
            return false;
        }
        let Some((key, element)) = appends(&transactions[place]).pop() else { return false };
        let reads = |other: &Transaction| {
            is_committed(other) && matches!(other.ops.as_slice(), [Op::Read { key: at, .. }] if *at == key)
        };
        let Some(reader) = transactions.iter().rposition(reads) else { return false };
        lists_mut(&mut transactions[reader..=reader], key).for_each(|list| list.push(element));
        true
    })
}

fn abort_seen(history: &mut History, random: &mut Random) -> bool {
    anywhere(history, random, |transactions, place| {
        let own = appends(&transactions[place]);
        let seen = |other: usize| {
            other != place
                && transactions[other].ops.iter().any(|op| match op {
                    Op::Read { key, list } => own.iter().any(|(at, element)| at == key && list.contains(element)),
                    Op::Append { .. } => false,
                })
        };
        if !is_committed(&transactions[place]) || !(0..transactions.len()).any(seen) {
            return false;
        }
        transactions[place].outcome = Outcome::Aborted;
        true
    })
}

fn show_garbage(history: &mut History, random: &mut Random) -> bool {
    anywhere(history, random, |transactions, place| {
        single_read(&mut transactions[place]).map(|(_, list)| list.push(NEW)).is_some()
    })
}

fn repeat_element(history: &mut History, random: &mut Random) -> bool {
    anywhere(history, random, |transactions, place| {
        single_read(&mut transactions[place]).map(|(_, list)| list.push(list[0])).is_some()
    })
}

fn reorder(history: &mut History, random: &mut Random) -> bool {
    anywhere(history, random, |transactions, place| {
        let Some((key, list)) = single_read(&mut transactions[place]) else { return false };
        let [first, second, ..] = list[..] else { return false };
        let writers = [first, second].map(|element| writer_of(transactions, key, element));
        let fit = |writer: Option<usize>| writer.is_some_and(|writer| is_committed(&transactions[writer]));
        if writers[0] == writers[1] || !fit(writers[0]) || !fit(writers[1]) {
            return false;
        }
        single_read(&mut transactions[place]).map(|(_, list)| list.swap(0, 1)).is_some()
    })
}

fn show_half(history: &mut History, random: &mut Random) -> bool {
    anywhere(history, random, |transactions, place| {
        let Some((key, list)) = single_read(&mut transactions[place]) else { return false };
        let [.., first, second] = list[..] else { return false };
        if writer_of(transactions, key, first) != writer_of(transactions, key, second) {
            return false;
        }
        single_read(&mut transactions[place]).and_then(|(_, list)| list.pop()).is_some()
    })
}

fn hide_own(history: &mut History, random: &mut Random) -> bool {
    anywhere(history, random, |transactions, place| {
        let own = appends(&transactions[place]);
        if !is_committed(&transactions[place]) {
            return false;
        }
        transactions[place].ops.iter_mut().any(|op| match op {
            Op::Read { key, list } => {
                let last = list.last().copied();
                own.iter().any(|(at, element)| at == key && Some(*element) == last) && list.pop().is_some()
            }
            Op::Append { .. } => false,
        })
    })
}

fn change_repeated(history: &mut History, random: &mut Random) -> bool {
    anywhere(history, random, |transactions, place| {
        if !is_committed(&transactions[place]) {
            return false;
        }
        let mut read: Vec<u32> = Vec::new();
        transactions[place].ops.iter_mut().any(|op| match op {
            Op::Read { key, list } if read.contains(key) => list.pop().is_some(),
            Op::Read { key, .. } => {
                read.push(*key);
                false
            }
            Op::Append { .. } => false,
        })
    })
}

fn lose_update(history: &mut History, _: &mut Random) -> bool {
    add(
        history,
        vec![
            vec![fresh_append(0, 0)],
            vec![fresh_read(0, &[NEW]), fresh_append(0, 1)],
            vec![fresh_read(0, &[NEW]), fresh_append(0, 2)],
        ],
    )
}

fn skew(history: &mut History, _: &mut Random) -> bool {
    let first = vec![fresh_read(0, &[]), fresh_append(1, 1)];
    add(history, vec![first, vec![fresh_read(1, &[]), fresh_append(0, 2)]])
}

fn tear(history: &mut History, _: &mut Random) -> bool {
    let writer = vec![fresh_append(0, 0), fresh_append(1, 1)];
    add(history, vec![writer, vec![fresh_read(0, &[NEW]), fresh_read(1, &[])]])
}

fn circle(history: &mut History, _: &mut Random) -> bool {
    let first = vec![fresh_append(0, 0), fresh_read(1, &[NEW + 1])];
    add(history, vec![first, vec![fresh_append(1, 1), fresh_read(0, &[NEW])]])
}
