//! The checker against the definition: tiny random histories, for which every serial order can be tried.

use std::collections::BTreeMap;

use super::random::Random;
use super::{History, Op, Outcome, Transaction, check};

const TRANSACTIONS: usize = 5;

/// A few transactions run one after the other in a random order, some reads then cut short, times at random: about
/// half of the results have a serial order that fits the times, the others have none.
fn tiny(random: &mut Random) -> History {
    let mut lists: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    let mut element = 0;
    let mut history = History::new();
    for number in 0..TRANSACTIONS {
        let aborts = random.below(6) == 0;
        let mut view = lists.clone();
        let mut ops = Vec::new();
        for _ in 0..=random.below(3) {
            let key = random.below(2) as u32;
            let list = view.entry(key).or_default();
            if random.below(2) == 0 {
                element += 1;
                list.push(element);
                ops.push(Op::Append { key, element });
            } else {
                let cut = if random.below(6) == 0 { random.below(3) as usize } else { 0 };
                ops.push(Op::Read { key, list: list[..list.len().saturating_sub(cut)].to_vec() });
            }
        }
        if !aborts {
            lists = view;
        }
        let outcome = if aborts { Outcome::Aborted } else { Outcome::Committed { version: None } };
        let begin = random.below(12);
        let end = begin + random.below(24);
        history.push(Transaction { session: number as u32, begin, end, ops, outcome });
    }
    history
}

/// Whether some serial order of the transactions that are left explains all reads and respects the clock.
fn has_order(all: &[Transaction], left: &mut Vec<usize>, state: &BTreeMap<u32, Vec<u64>>) -> bool {
    if left.is_empty() {
        return true;
    }
    for place in 0..left.len() {
        let transaction = &all[left[place]];
        if left.iter().any(|other| all[*other].end < transaction.begin) {
            continue;
        }
        let mut after = state.clone();
        let fits = transaction.ops.iter().all(|op| match op {
            Op::Read { key, list } => after.get(key).map_or(&[][..], Vec::as_slice) == list,
            Op::Append { key, element } => {
                after.entry(*key).or_default().push(*element);
                true
            }
        });
        if !fits {
            continue;
        }
        let number = left.remove(place);
        let next = if transaction.outcome == Outcome::Aborted { state } else { &after };
        let found = has_order(all, left, next);
        left.insert(place, number);
        if found {
            return true;
        }
    }
    false
}

#[test]
fn the_verdict_is_that_of_trying_all_orders() {
    let mut verdicts = [0, 0];
    for seed in 1..=20_000 {
        let history = tiny(&mut Random::new(seed));
        let expected = has_order(history.transactions(), &mut (0..TRANSACTIONS).collect(), &BTreeMap::new());
        let verdict = check(&history);
        assert_eq!(verdict.is_ok(), expected, "seed {seed}: {verdict:?}\n{history:#?}");
        verdicts[usize::from(expected)] += 1;
    }
    assert!(verdicts.iter().all(|count| *count > 2_000), "one-sided: {verdicts:?}");
}
