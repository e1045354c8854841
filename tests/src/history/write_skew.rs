//! Write skew on two rows: the sum of both may not fall below a floor, and each withdrawal touches one row.
//!
//! A withdrawal reads both rows and, if the sum allows it, writes one of them. Two that run at the same time and write
//! different rows do not overwrite each other, so a store that compares writes only lets both commit and the sum falls
//! through the floor. A store that validates reads must refuse one of them.
//!
//! A *round* is one pair of fresh rows and a few withdrawals. Each withdrawal that committed must have read what the
//! others left, in some order; rounds are small, so all orders are tried.

use std::fmt;

use super::Outcome;

/// One attempt to withdraw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withdrawal {
    /// Both rows, as read.
    pub read: [i64; 2],
    /// The row (0 or 1) it wrote and the new value, or `None` if the sum did not allow it.
    pub wrote: Option<(usize, i64)>,
    /// How it ended.
    pub outcome: Outcome,
}

/// One pair of rows and what happened to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// Both rows before the first withdrawal.
    pub start: [i64; 2],
    /// What the sum of both rows may not fall below.
    pub floor: i64,
    /// The attempts, at most [`WITHDRAWALS_MAX`].
    pub withdrawals: Vec<Withdrawal>,
    /// Both rows after the last one, if they were read.
    pub end: Option<[i64; 2]>,
}

/// More withdrawals than this in one round are refused: all orders are tried.
pub const WITHDRAWALS_MAX: usize = 8;

/// What a clean round consisted of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundSummary {
    /// Withdrawals that were acknowledged and wrote.
    pub wrote: usize,
    /// Withdrawals that were refused because of a conflict.
    pub refused: usize,
}

/// Why a round is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteSkewViolation {
    /// The recording breaks the rules of the workload; the store is not to blame.
    Workload(String),
    /// Two withdrawals committed from the same state into different rows.
    WriteSkew {
        /// The places of both.
        pair: [usize; 2],
    },
    /// Two withdrawals committed from the same state into the same row.
    LostUpdate {
        /// The places of both.
        pair: [usize; 2],
    },
    /// The rows ended with a sum below the floor.
    BelowFloor {
        /// The sum.
        sum: i128,
    },
    /// No order of the withdrawals explains what was read.
    NoOrder,
}

impl fmt::Display for WriteSkewViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WriteSkewViolation::Workload(reason) => write!(f, "the recording is wrong: {reason}"),
            WriteSkewViolation::WriteSkew { pair: [a, b] } => {
                write!(
                    f,
                    "write skew: withdrawals {a} and {b} read the same state, wrote different rows, both committed"
                )
            }
            WriteSkewViolation::LostUpdate { pair: [a, b] } => {
                write!(
                    f,
                    "lost update: withdrawals {a} and {b} read the same state, wrote the same row, both committed"
                )
            }
            WriteSkewViolation::BelowFloor { sum } => write!(f, "the rows ended with the sum {sum}"),
            WriteSkewViolation::NoOrder => write!(f, "no order of the withdrawals explains what was read"),
        }
    }
}

/// Checks one round.
pub fn check_write_skew(round: &Round) -> Result<RoundSummary, WriteSkewViolation> {
    check_rules(round).map_err(WriteSkewViolation::Workload)?;
    let committed: Vec<usize> = with_outcome(round, |outcome| matches!(outcome, Outcome::Committed { .. }));
    let wrote: Vec<usize> = committed.iter().copied().filter(|n| round.withdrawals[*n].wrote.is_some()).collect();
    for (place, a) in wrote.iter().copied().enumerate() {
        for b in wrote[place + 1..].iter().copied() {
            let (first, second) = (&round.withdrawals[a], &round.withdrawals[b]);
            if first.read == second.read {
                let same_row = first.wrote.map(|(row, _)| row) == second.wrote.map(|(row, _)| row);
                let pair = [a, b];
                return Err(match same_row {
                    true => WriteSkewViolation::LostUpdate { pair },
                    false => WriteSkewViolation::WriteSkew { pair },
                });
            }
        }
    }
    if let Some(end) = round.end
        && sum(end) < i128::from(round.floor)
    {
        return Err(WriteSkewViolation::BelowFloor { sum: sum(end) });
    }
    let maybe = with_outcome(round, |outcome| outcome == Outcome::Unknown);
    let mut left = committed;
    if !explain(round, round.start, &mut left, &mut maybe.clone()) {
        return Err(WriteSkewViolation::NoOrder);
    }
    let refused = with_outcome(round, |outcome| outcome == Outcome::Aborted).len();
    Ok(RoundSummary { wrote: wrote.len(), refused })
}

/// The withdrawals whose outcome satisfies a condition.
fn with_outcome(round: &Round, wanted: impl Fn(Outcome) -> bool) -> Vec<usize> {
    (0..round.withdrawals.len()).filter(|number| wanted(round.withdrawals[*number].outcome)).collect()
}

/// The rules that the clients follow by themselves.
fn check_rules(round: &Round) -> Result<(), String> {
    if round.withdrawals.len() > WITHDRAWALS_MAX {
        return Err(format!("{} withdrawals, at most {WITHDRAWALS_MAX} are allowed", round.withdrawals.len()));
    }
    for (number, withdrawal) in round.withdrawals.iter().enumerate() {
        let Some((row, value)) = withdrawal.wrote else { continue };
        let Some(before) = withdrawal.read.get(row) else {
            return Err(format!("withdrawal {number} wrote row {row}"));
        };
        if value >= *before {
            return Err(format!("withdrawal {number} raised row {row} from {before} to {value}"));
        }
        let mut after = withdrawal.read;
        after[row] = value;
        if sum(after) < i128::from(round.floor) {
            return Err(format!("withdrawal {number} wrote although {:?} did not allow it", withdrawal.read));
        }
    }
    Ok(())
}

/// Whether some order of all in `left` and some in `maybe` fits the reads, from this state on.
fn explain(round: &Round, state: [i64; 2], left: &mut Vec<usize>, maybe: &mut Vec<usize>) -> bool {
    if left.is_empty() && round.end.is_none_or(|end| end == state) {
        return true;
    }
    for certain in [true, false] {
        let count = if certain { left.len() } else { maybe.len() };
        for place in 0..count {
            let number = if certain { left.remove(place) } else { maybe.remove(place) };
            let withdrawal = &round.withdrawals[number];
            let mut after = state;
            if let Some((row, value)) = withdrawal.wrote {
                after[row] = value;
            }
            if withdrawal.read == state && explain(round, after, left, maybe) {
                return true;
            }
            if certain { left.insert(place, number) } else { maybe.insert(place, number) }
        }
    }
    false
}

fn sum(rows: [i64; 2]) -> i128 {
    i128::from(rows[0]) + i128::from(rows[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMITTED: Outcome = Outcome::Committed { version: None };

    fn take(read: [i64; 2], row: usize, value: i64, outcome: Outcome) -> Withdrawal {
        Withdrawal { read, wrote: Some((row, value)), outcome }
    }

    fn round(withdrawals: Vec<Withdrawal>, end: Option<[i64; 2]>) -> Round {
        Round { start: [50, 50], floor: 0, withdrawals, end }
    }

    #[test]
    fn one_of_two_is_refused() {
        let both = vec![take([50, 50], 0, -30, COMMITTED), take([50, 50], 1, -30, Outcome::Aborted)];
        assert_eq!(check_write_skew(&round(both, Some([-30, 50]))), Ok(RoundSummary { wrote: 1, refused: 1 }));
    }

    #[test]
    fn one_after_the_other_is_allowed() {
        let denied = Withdrawal { read: [-30, 30], wrote: None, outcome: COMMITTED };
        let both = vec![take([-30, 50], 1, 30, COMMITTED), denied, take([50, 50], 0, -30, COMMITTED)];
        assert_eq!(check_write_skew(&round(both, Some([-30, 30]))), Ok(RoundSummary { wrote: 2, refused: 0 }));
    }

    #[test]
    fn both_committed_is_write_skew() {
        let both = vec![take([50, 50], 0, -30, COMMITTED), take([50, 50], 1, -30, COMMITTED)];
        let violation = check_write_skew(&round(both, None)).expect_err("both committed");
        assert_eq!(violation, WriteSkewViolation::WriteSkew { pair: [0, 1] });
        assert!(violation.to_string().starts_with("write skew"));
    }

    #[test]
    fn both_in_one_row_is_a_lost_update() {
        let both = vec![take([50, 50], 1, 40, COMMITTED), take([50, 50], 1, 30, COMMITTED)];
        assert_eq!(check_write_skew(&round(both, None)), Err(WriteSkewViolation::LostUpdate { pair: [0, 1] }));
    }

    #[test]
    fn an_unknown_one_counts_only_where_it_explains_something() {
        let both = vec![take([50, 50], 0, -30, Outcome::Unknown), take([50, 50], 1, -30, COMMITTED)];
        assert!(check_write_skew(&round(both.clone(), Some([50, -30]))).is_ok());
        assert_eq!(check_write_skew(&round(both, Some([-30, -30]))), Err(WriteSkewViolation::BelowFloor { sum: -60 }));
        let seen = vec![take([50, 50], 0, 20, Outcome::Unknown), take([20, 50], 1, 0, COMMITTED)];
        assert!(check_write_skew(&round(seen, Some([20, 0]))).is_ok());
    }

    #[test]
    fn a_lost_withdrawal_has_no_order() {
        let one = vec![take([50, 50], 0, 10, COMMITTED)];
        assert_eq!(check_write_skew(&round(one, Some([50, 50]))), Err(WriteSkewViolation::NoOrder));
    }

    #[test]
    fn a_wrong_workload_is_told_apart() {
        let greedy = vec![take([50, 50], 0, -60, COMMITTED)];
        assert!(matches!(check_write_skew(&round(greedy, None)), Err(WriteSkewViolation::Workload(_))));
        let nowhere = vec![take([50, 50], 2, 0, COMMITTED)];
        assert!(matches!(check_write_skew(&round(nowhere, None)), Err(WriteSkewViolation::Workload(_))));
    }
}
