//! The bank: money moves between accounts and is never made or lost, so every snapshot of all accounts has one sum.
//!
//! A torn snapshot shows a transfer half done: taken from one account, not yet in the other. The sum alone proves
//! nothing if an account is missing from the read, so that is a violation too.

use std::fmt;

/// One read of all accounts in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BankSnapshot {
    /// The connection that read it.
    pub session: u32,
    /// The recorder's clock when the read began.
    pub begin: u64,
    /// One balance per account, in the order of the accounts; `None` where no value came back.
    pub balances: Vec<Option<i64>>,
}

/// What a clean run consisted of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BankSummary {
    /// Snapshots with the right sum.
    pub snapshots: usize,
    /// How many of them differ from the one that began before them: none means that nothing moved.
    pub changes: usize,
}

/// What is wrong with one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BankFault {
    /// The snapshot has another number of accounts than the bank.
    Accounts {
        /// How many it has.
        read: usize,
    },
    /// An account had no value.
    Missing {
        /// Its place among the accounts.
        account: usize,
    },
    /// An account was overdrawn, although transfers never do that.
    Negative {
        /// Its place among the accounts.
        account: usize,
        /// Its balance.
        balance: i64,
    },
    /// The sum is wrong.
    Total {
        /// The sum that was read.
        read: i128,
    },
}

/// One snapshot that no state of the bank explains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BankViolation {
    /// The place of the snapshot among those given.
    pub snapshot: usize,
    /// The connection that read it.
    pub session: u32,
    /// What is wrong.
    pub fault: BankFault,
}

impl fmt::Display for BankViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "snapshot {} of session {}: ", self.snapshot, self.session)?;
        match &self.fault {
            BankFault::Accounts { read } => write!(f, "{read} accounts"),
            BankFault::Missing { account } => write!(f, "account {account} is missing"),
            BankFault::Negative { account, balance } => write!(f, "account {account} holds {balance}"),
            BankFault::Total { read } => write!(f, "the sum is {read}"),
        }
    }
}

/// Checks that every snapshot holds all accounts, none below zero, and the expected sum.
pub fn check_bank(
    accounts: usize,
    expected_total: i64,
    snapshots: &[BankSnapshot],
) -> Result<BankSummary, Vec<BankViolation>> {
    let mut violations = Vec::new();
    for (number, snapshot) in snapshots.iter().enumerate() {
        if let Some(fault) = fault_of(accounts, expected_total, snapshot) {
            violations.push(BankViolation { snapshot: number, session: snapshot.session, fault });
        }
    }
    if !violations.is_empty() {
        return Err(violations);
    }
    let mut in_order: Vec<&BankSnapshot> = snapshots.iter().collect();
    in_order.sort_by_key(|snapshot| snapshot.begin);
    let changes = in_order.windows(2).filter(|pair| pair[0].balances != pair[1].balances).count();
    Ok(BankSummary { snapshots: snapshots.len(), changes })
}

fn fault_of(accounts: usize, expected_total: i64, snapshot: &BankSnapshot) -> Option<BankFault> {
    if snapshot.balances.len() != accounts {
        return Some(BankFault::Accounts { read: snapshot.balances.len() });
    }
    let mut total = 0;
    let mut negative = None;
    for (account, balance) in snapshot.balances.iter().enumerate() {
        let Some(balance) = *balance else { return Some(BankFault::Missing { account }) };
        if balance < 0 && negative.is_none() {
            negative = Some(BankFault::Negative { account, balance });
        }
        total += i128::from(balance);
    }
    if total != i128::from(expected_total) { Some(BankFault::Total { read: total }) } else { negative }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(begin: u64, balances: &[i64]) -> BankSnapshot {
        BankSnapshot { session: 7, begin, balances: balances.iter().copied().map(Some).collect() }
    }

    fn fault(snapshot: BankSnapshot) -> BankFault {
        let violations = check_bank(3, 30, &[snapshot]).expect_err("the snapshot is wrong");
        violations[0].fault.clone()
    }

    #[test]
    fn moved_money_keeps_the_sum() {
        let snapshots = [snapshot(3, &[10, 5, 15]), snapshot(1, &[10, 10, 10]), snapshot(2, &[10, 10, 10])];
        assert_eq!(check_bank(3, 30, &snapshots), Ok(BankSummary { snapshots: 3, changes: 1 }));
    }

    #[test]
    fn a_torn_transfer_is_found() {
        let torn = [snapshot(1, &[10, 10, 10]), snapshot(2, &[10, 5, 10])];
        let violations = check_bank(3, 30, &torn).expect_err("five are gone");
        assert_eq!(violations.len(), 1);
        assert_eq!(violations[0].to_string(), "snapshot 1 of session 7: the sum is 25");
    }

    #[test]
    fn missing_and_overdrawn_accounts_are_found() {
        assert_eq!(fault(snapshot(1, &[15, 15])), BankFault::Accounts { read: 2 });
        assert_eq!(fault(snapshot(1, &[20, -5, 15])), BankFault::Negative { account: 1, balance: -5 });
        let mut gap = snapshot(1, &[15, 15, 0]);
        gap.balances[2] = None;
        assert_eq!(fault(gap), BankFault::Missing { account: 2 });
    }

    #[test]
    fn sums_do_not_overflow() {
        let read = i128::from(i64::MAX) * 2;
        assert_eq!(fault(snapshot(1, &[i64::MAX, i64::MAX, 0])), BankFault::Total { read });
    }
}
