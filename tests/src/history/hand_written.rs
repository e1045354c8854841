//! One small history per anomaly, each reported under its name; and small clean ones, among them those that a careless
//! checker would refuse.

use super::{Anomaly, History, Op, Outcome, RealTime, Transaction, check, check_with};

const COMMITTED: Outcome = Outcome::Committed { version: None };

fn read(key: u32, list: &[u64]) -> Op {
    Op::Read { key, list: list.to_vec() }
}

fn append(key: u32, element: u64) -> Op {
    Op::Append { key, element }
}

fn version(version: u64) -> Outcome {
    Outcome::Committed { version: Some(version) }
}

/// A transaction of its own session, which is told by its begin.
fn run(begin: u64, end: u64, outcome: Outcome, ops: Vec<Op>) -> Transaction {
    Transaction { session: 1000 + begin as u32, begin, end, ops, outcome }
}

/// Transactions that all overlap, each in its own session, so that only the data orders them.
fn together(transactions: Vec<(Outcome, Vec<Op>)>) -> History {
    let all = transactions.into_iter().zip(1..);
    History::from(all.map(|((outcome, ops), begin)| run(begin, 100, outcome, ops)).collect::<Vec<_>>())
}

fn names(history: &History) -> Vec<&'static str> {
    names_of(check(history).err().unwrap_or_default())
}

fn names_of(anomalies: Vec<Anomaly>) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = anomalies.iter().map(|anomaly| anomaly.kind.name()).collect();
    names.dedup();
    names
}

#[test]
fn nothing_and_a_clean_little_run_pass() {
    let summary = check(&History::new()).expect("an empty history is clean");
    assert_eq!(summary.transactions, 0);
    let history = History::from(vec![
        run(1, 2, version(1), vec![append(1, 10)]),
        run(3, 4, version(2), vec![read(1, &[10]), append(1, 11), read(1, &[10, 11])]),
        run(5, 9, version(1), vec![read(1, &[10])]),
        run(6, 9, Outcome::Aborted, vec![read(1, &[10, 11]), append(1, 12)]),
        run(7, 9, Outcome::Unknown, vec![append(2, 20), append(1, 13)]),
        run(8, 9, Outcome::Unknown, vec![append(2, 21)]),
        run(20, 21, version(3), vec![read(2, &[21]), read(1, &[10, 11])]),
    ]);
    // The third one reads version 1 although version 2 was answered before it began.
    assert_eq!(names(&history), ["version time", "G-single-realtime"]);
    let mut transactions = history.transactions().to_vec();
    transactions[2].begin = 2;
    let summary = check(&History::from(transactions)).expect("a snapshot of its time is clean");
    assert_eq!((summary.committed, summary.aborted, summary.unknown, summary.unknown_seen), (4, 1, 2, 1));
    assert_eq!(summary.conflict_percent, 20.0);
    assert!(summary.edges.write_write > 0 && summary.edges.write_read > 0 && summary.edges.read_write > 0);
    assert!(summary.to_string().starts_with("7 transactions (4 committed, 1 aborted, 2 unknown, 1 of them seen)"));
}

#[test]
fn a_blind_append_and_unread_keys_pass() {
    let history = together(vec![
        (COMMITTED, vec![append(1, 1)]),
        (COMMITTED, vec![append(1, 2)]),
        (COMMITTED, vec![read(1, &[]), append(1, 3)]),
        (COMMITTED, vec![read(1, &[]), append(2, 4)]),
    ]);
    assert_eq!(names(&history), [""; 0]);
}

#[test]
fn a_clock_that_runs_backwards_is_malformed() {
    assert_eq!(names(&History::from(vec![run(2, 1, COMMITTED, vec![])])), ["malformed history"]);
}

#[test]
fn duplicate_elements() {
    let twice = (COMMITTED, vec![append(1, 1)]);
    assert_eq!(names(&together(vec![twice.clone(), twice.clone()])), ["duplicate element"]);
    let shown = (COMMITTED, vec![read(1, &[1, 1])]);
    assert_eq!(names(&together(vec![twice, shown])), ["duplicate element"]);
}

#[test]
fn garbage_read() {
    assert_eq!(names(&together(vec![(COMMITTED, vec![read(1, &[9])])])), ["garbage read"]);
}

#[test]
fn aborted_read() {
    let history = together(vec![(Outcome::Aborted, vec![append(1, 1)]), (COMMITTED, vec![read(1, &[1])])]);
    assert_eq!(names(&history), ["G1a"]);
}

#[test]
fn intermediate_read() {
    let writer = (COMMITTED, vec![append(1, 1), append(1, 2)]);
    let reader = (COMMITTED, vec![read(1, &[1])]);
    assert!(names(&together(vec![writer, reader])).contains(&"G1b"));
}

#[test]
fn incompatible_orders() {
    let writers = [(COMMITTED, vec![append(1, 1)]), (COMMITTED, vec![append(1, 2)])];
    let readers = [(COMMITTED, vec![read(1, &[1, 2])]), (COMMITTED, vec![read(1, &[2])])];
    assert_eq!(names(&together([writers, readers].concat())), ["incompatible order"]);
    let backwards = [(COMMITTED, vec![append(1, 1), append(1, 2)]), (COMMITTED, vec![read(1, &[2, 1])])];
    assert!(names(&together(backwards.to_vec())).contains(&"incompatible order"));
}

#[test]
fn internal_contradictions() {
    let writer = (COMMITTED, vec![append(1, 1)]);
    for ops in [
        vec![read(1, &[]), read(1, &[1])],
        vec![append(1, 2), read(1, &[1])],
        vec![read(1, &[2]), append(1, 2)],
        vec![read(1, &[]), append(1, 2), read(1, &[1, 2])],
    ] {
        assert_eq!(names(&together(vec![writer.clone(), (COMMITTED, ops.clone())])), ["internal"], "{ops:?}");
        // The reads of a transaction that aborted afterwards are held to the same.
        assert_eq!(names(&together(vec![writer.clone(), (Outcome::Aborted, ops)])), ["internal"]);
    }
}

#[test]
fn lost_update() {
    let history = together(vec![
        (COMMITTED, vec![read(1, &[]), append(1, 1)]),
        (COMMITTED, vec![read(1, &[]), append(1, 2)]),
        (COMMITTED, vec![read(1, &[1])]),
    ]);
    assert!(names(&history).contains(&"lost update"));
}

#[test]
fn lost_append() {
    let history =
        History::from(vec![run(1, 2, COMMITTED, vec![append(1, 1)]), run(3, 4, COMMITTED, vec![read(1, &[])])]);
    assert_eq!(names(&history), ["lost append", "G-single-realtime"]);
    // A lagging follower may read like this.
    assert!(check_with(&history, RealTime::Session).is_ok());
    let versions = together(vec![
        (version(1), vec![append(1, 1)]),
        (version(2), vec![append(1, 2)]),
        (COMMITTED, vec![read(1, &[2])]),
    ]);
    assert!(names(&versions).contains(&"lost append"));
}

#[test]
fn versions_that_contradict() {
    let first = (version(5), vec![append(1, 1)]);
    let duplicate = (version(5), vec![append(2, 2)]);
    assert_eq!(names(&together(vec![first.clone(), duplicate])), ["duplicate version"]);

    let lower = (version(4), vec![append(1, 2)]);
    let shown = (COMMITTED, vec![read(1, &[1, 2])]);
    assert!(names(&together(vec![first.clone(), lower, shown])).contains(&"version order"));

    let stale = (version(6), vec![read(1, &[]), append(2, 2)]);
    assert_eq!(names(&together(vec![first.clone(), stale])), ["version read"]);
    let early = (version(4), vec![read(1, &[1]), append(2, 2)]);
    assert_eq!(names(&together(vec![first.clone(), early])), ["version read"]);
    let below = (version(4), vec![read(1, &[1])]);
    assert_eq!(names(&together(vec![first.clone(), below])), ["version read"]);

    let other = (version(6), vec![append(2, 2)]);
    let torn = (COMMITTED, vec![read(1, &[]), read(2, &[2])]);
    assert_eq!(names(&together(vec![first, other, torn])), ["no snapshot"]);

    let late =
        History::from(vec![run(1, 2, version(2), vec![append(1, 1)]), run(3, 4, version(1), vec![append(2, 2)])]);
    assert_eq!(names(&late), ["version time"]);
}

#[test]
fn versions_at_the_edge() {
    let first = (version(5), vec![append(1, 1), append(2, 2)]);
    let torn = (COMMITTED, vec![read(1, &[1]), read(2, &[])]);
    assert_eq!(names(&together(vec![first.clone(), torn])), ["no snapshot", "G-single"]);
    let at_it = (version(5), vec![read(1, &[1]), read(2, &[2])]);
    assert_eq!(names(&together(vec![first.clone(), at_it])), [""; 0], "a read-only version includes itself");
    let misses_it = (version(5), vec![read(1, &[])]);
    assert_eq!(names(&together(vec![first.clone(), misses_it])), ["version read"]);
    let same = (version(5), vec![read(1, &[1]), append(3, 3)]);
    assert_eq!(names(&together(vec![first, same])), ["duplicate version", "version read"]);

    let taken =
        History::from(vec![run(1, 2, version(5), vec![read(2, &[])]), run(3, 4, version(5), vec![append(1, 1)])]);
    assert_eq!(names(&taken), ["version time"]);
    // Version 2 was answered, so version 1 is settled too, although its own answer is still on its way.
    let prefix = History::from(vec![
        run(1, 9, version(1), vec![append(1, 1)]),
        run(2, 3, version(2), vec![append(2, 2)]),
        run(4, 5, COMMITTED, vec![read(1, &[])]),
    ]);
    assert_eq!(names(&prefix), ["no snapshot"]);
}

#[test]
fn g0_writes_in_a_circle() {
    let unseen = together(vec![
        (COMMITTED, vec![append(1, 11), append(2, 22)]),
        (COMMITTED, vec![append(1, 12), append(2, 21)]),
        (COMMITTED, vec![read(1, &[11])]),
        (COMMITTED, vec![read(2, &[21, 22])]),
    ]);
    assert_eq!(names(&unseen), ["G0"], "what no read shows comes after what was read");
    let history = together(vec![
        (COMMITTED, vec![append(1, 11), append(2, 21)]),
        (COMMITTED, vec![append(1, 12), append(2, 22)]),
        (COMMITTED, vec![read(1, &[11, 12])]),
        (COMMITTED, vec![read(2, &[22, 21])]),
    ]);
    assert!(names(&history).contains(&"G0"));
}

#[test]
fn g1c_information_in_a_circle() {
    let history =
        together(vec![(COMMITTED, vec![append(1, 1), read(2, &[2])]), (COMMITTED, vec![append(2, 2), read(1, &[1])])]);
    assert_eq!(names(&history), ["G1c"]);
}

#[test]
fn g_single_read_skew() {
    let writer = (COMMITTED, vec![append(1, 1), append(2, 2)]);
    for outcome in [COMMITTED, Outcome::Aborted] {
        let reader = (outcome, vec![read(1, &[1]), read(2, &[])]);
        assert_eq!(names(&together(vec![writer.clone(), reader])), ["G-single"]);
    }
}

#[test]
fn g2_item_write_skew() {
    let history = together(vec![
        (COMMITTED, vec![read(2, &[]), append(1, 1)]),
        (COMMITTED, vec![read(1, &[]), append(2, 2)]),
        (COMMITTED, vec![read(1, &[1]), read(2, &[2])]),
    ]);
    let anomalies = check(&history).expect_err("both missed the other");
    assert_eq!(anomalies.len(), 1);
    assert_eq!(anomalies[0].to_string(), "G2-item: T0 —rw key 2→ T1 —rw key 1→ T0");
}

#[test]
fn g2_item_long_fork() {
    let history = together(vec![
        (COMMITTED, vec![append(1, 1)]),
        (COMMITTED, vec![append(2, 2)]),
        (COMMITTED, vec![read(1, &[1]), read(2, &[])]),
        (COMMITTED, vec![read(1, &[]), read(2, &[2])]),
    ]);
    assert_eq!(names(&history), ["G2-item"]);
}

#[test]
fn cycles_that_need_the_clock_say_so() {
    let skew = |second_begin| {
        History::from(vec![
            run(1, 5, COMMITTED, vec![append(1, 1)]),
            run(second_begin, 9, COMMITTED, vec![append(1, 2)]),
            run(2, 9, COMMITTED, vec![read(1, &[2, 1])]),
        ])
    };
    assert_eq!(names(&skew(4)), [""; 0]);
    assert_eq!(names(&skew(5)), [""; 0], "at the same tick nothing is known");
    assert_eq!(names(&skew(6)), ["G0-realtime"]);
    let future =
        History::from(vec![run(1, 2, COMMITTED, vec![read(1, &[1])]), run(3, 4, COMMITTED, vec![append(1, 1)])]);
    assert_eq!(names(&future), ["G1c-realtime"]);
    let fork = History::from(vec![
        run(1, 20, COMMITTED, vec![append(1, 1)]),
        run(2, 20, COMMITTED, vec![append(2, 2)]),
        run(3, 4, COMMITTED, vec![read(1, &[1])]),
        run(5, 6, COMMITTED, vec![read(1, &[]), read(2, &[2])]),
    ]);
    assert_eq!(names(&fork), ["G-single-realtime"]);
    let double = History::from(vec![
        run(1, 20, COMMITTED, vec![append(1, 1)]),
        run(2, 20, COMMITTED, vec![append(2, 2)]),
        run(3, 4, COMMITTED, vec![read(1, &[1])]),
        run(5, 6, COMMITTED, vec![read(2, &[])]),
        run(3, 4, COMMITTED, vec![read(2, &[2])]),
        run(5, 6, COMMITTED, vec![read(1, &[])]),
    ]);
    assert_eq!(names(&double), ["G-single-realtime"]);
}

#[test]
fn a_session_reads_its_own_past() {
    let mut transactions = vec![run(1, 9, COMMITTED, vec![append(1, 1)]), run(2, 9, COMMITTED, vec![read(1, &[])])];
    assert!(check(&History::from(transactions.clone())).is_ok(), "two sessions that overlap");
    transactions[1].session = transactions[0].session;
    let pipelined = History::from(transactions);
    assert_eq!(names(&pipelined), ["G-single-session"]);
    assert_eq!(names_of(check_with(&pipelined, RealTime::Session).expect_err("same")), ["G-single-session"]);
    assert!(check_with(&pipelined, RealTime::Ignored).is_ok());
}

#[test]
fn unknown_outcomes_bind_nothing_until_they_are_seen() {
    // It may take effect long after its client gave up.
    let late = History::from(vec![
        run(1, 2, Outcome::Unknown, vec![append(1, 1)]),
        run(3, 4, COMMITTED, vec![read(1, &[])]),
        run(5, 6, COMMITTED, vec![read(1, &[1])]),
    ]);
    assert_eq!(check(&late).expect("late, but allowed").unknown_seen, 1);
    let mut same_session = late.transactions().to_vec();
    same_session[1].session = same_session[0].session;
    assert!(check(&History::from(same_session)).is_ok(), "nor does it bind its session");
    // Once seen it is there as a whole.
    let half = History::from(vec![
        run(1, 2, Outcome::Unknown, vec![append(1, 1), append(2, 2)]),
        run(3, 4, COMMITTED, vec![read(1, &[1]), read(2, &[])]),
    ]);
    assert_eq!(names(&half), ["G-single"]);
    // And it does not go away again.
    let gone = History::from(vec![
        run(1, 2, Outcome::Unknown, vec![append(1, 1)]),
        run(3, 4, COMMITTED, vec![read(1, &[1])]),
        run(5, 6, COMMITTED, vec![read(1, &[])]),
    ]);
    assert_eq!(names(&gone), ["G-single-realtime"]);
}

#[test]
fn long_reports_are_cut_and_counted() {
    let garbage = (1..=50).map(|element| (COMMITTED, vec![read(element, &[u64::from(element)])])).collect();
    let anomalies = check(&together(garbage)).expect_err("fifty elements from nowhere");
    assert_eq!(anomalies.len(), 20);
    assert!(anomalies[19].detail.ends_with("(and 30 more of this kind)"));
}
