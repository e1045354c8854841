//! Comparing histories.
//!
//! A history is the list of epochs with the first version of each. Two nodes agree up to the *common point*: the last
//! version before their histories part. Epochs are the same only if number *and* random id are equal, since two nodes may
//! have begun an epoch of the same number (D13 of the design).

use turnstone_engine::manifest::EpochStart;
use turnstone_engine::types::Version;

/// Where two histories part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Common {
    /// One history continues the other: everything up to this version is the same, and nothing contradicts it.
    Prefix(Version),
    /// They agree up to this version and differ behind it.
    Diverged(Version),
}

/// Compares two histories, each with the newest version it has.
pub fn common_point(ours: (&[EpochStart], Version), theirs: (&[EpochStart], Version)) -> Common {
    let ((ours, our_last), (theirs, their_last)) = (ours, theirs);
    let shared = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
    // An epoch ends where the next one begins, or with the newest version.
    let end = |history: &[EpochStart], last: Version| history.get(shared).map_or(last, |next| next.first_version - 1);
    let common = end(ours, our_last).min(end(theirs, their_last));
    let ours_go_on = our_last > common;
    let theirs_go_on = their_last > common;
    if ours_go_on && theirs_go_on { Common::Diverged(common) } else { Common::Prefix(common) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use turnstone_engine::types::Epoch;

    fn history(epochs: &[(u64, u64, Version)]) -> Vec<EpochStart> {
        let start = |(number, id, first_version): &(u64, u64, Version)| EpochStart {
            epoch: Epoch { number: *number, id: *id },
            first_version: *first_version,
        };
        epochs.iter().map(start).collect()
    }

    #[test]
    fn a_history_that_continues_another_is_no_divergence() {
        let (short, long) = (history(&[(1, 7, 1)]), history(&[(1, 7, 1), (2, 8, 11)]));
        assert_eq!(common_point((&short, 6), (&short, 9)), Common::Prefix(6));
        assert_eq!(common_point((&short, 6), (&long, 20)), Common::Prefix(6));
        assert_eq!(common_point((&long, 20), (&short, 10)), Common::Prefix(10));
    }

    #[test]
    fn equal_numbers_with_other_ids_diverge_at_their_beginning() {
        let (a, b) = (history(&[(1, 7, 1), (2, 8, 11)]), history(&[(1, 7, 1), (2, 9, 16)]));
        assert_eq!(common_point((&a, 20), (&b, 30)), Common::Diverged(10));
        let old = history(&[(1, 7, 1)]);
        assert_eq!(
            common_point((&old, 14), (&a, 20)),
            Common::Diverged(10),
            "its tail was not known to the new leader"
        );
    }

    #[test]
    fn nothing_in_common_parts_at_zero() {
        let (a, b) = (history(&[(1, 7, 1)]), history(&[(1, 8, 1)]));
        assert_eq!(common_point((&a, 5), (&b, 5)), Common::Diverged(0));
        assert_eq!(common_point((&[], 0), (&b, 5)), Common::Prefix(0));
    }
}
