//! The checks that look at one key at a time: where elements come from, whether the reads agree on one order, and
//! whether every acknowledged append is there.

use std::collections::{BTreeMap, HashSet};

use super::anomaly::{AnomalyKind, Report};
use super::observed::{KeyView, Observed, Standing, show};
use super::{Outcome, RealTime};

/// Runs all of them.
pub(super) fn check(observed: &Observed<'_>, real_time: RealTime, report: &mut Report) {
    for (key, view) in &observed.keys {
        check_elements(observed, *key, view.longest, view.longest_reader, report);
        check_agreement(observed, *key, view, report);
        check_whole_transactions(observed, *key, view, report);
        check_lost_updates(observed, *key, view, report);
        check_lost_appends(observed, *key, view, real_time, report);
    }
}

/// Every element is in the list once and comes from a transaction that took effect.
fn check_elements(observed: &Observed<'_>, key: u32, list: &[u64], reader: usize, report: &mut Report) {
    let mut met = HashSet::with_capacity(list.len());
    for element in list {
        if !met.insert(*element) {
            report.add(AnomalyKind::DuplicateElement, Some(key), &[reader], || {
                format!("T{reader} read {element} twice in {}", show(list))
            });
        }
        match observed.writer(key, *element) {
            None => report.add(AnomalyKind::GarbageRead, Some(key), &[reader], || {
                format!("T{reader} read {element}, which nobody appended")
            }),
            Some(write) if observed.standing[write.transaction] == Standing::Aborted => {
                let writer = write.transaction;
                report.add(AnomalyKind::AbortedRead, Some(key), &[writer, reader], || {
                    format!("T{reader} read {element} of T{writer}, which aborted")
                });
            }
            Some(_) => {}
        }
    }
}

/// Every read is a beginning of the longest one.
fn check_agreement(observed: &Observed<'_>, key: u32, view: &KeyView<'_>, report: &mut Report) {
    for read in view.reads.iter().filter(|read| !read.fits) {
        let (reader, other) = (read.transaction, view.longest_reader);
        report.add(AnomalyKind::IncompatibleOrder, Some(key), &[reader, other], || {
            format!("T{reader} read {}, T{other} read {}", show(read.list), show(view.longest))
        });
        check_elements(observed, key, read.list, reader, report);
    }
}

/// What one transaction appended to a key stands together, in its order, and is read together.
fn check_whole_transactions(observed: &Observed<'_>, key: u32, view: &KeyView<'_>, report: &mut Report) {
    for (place, element) in view.longest.iter().enumerate() {
        let Some(write) = observed.writer(key, *element) else { continue };
        let Some(wanted) = write.after else { continue };
        let before = place.checked_sub(1).map(|place| view.longest[place]);
        if before != Some(wanted) {
            let (writer, reader) = (write.transaction, view.longest_reader);
            report.add(AnomalyKind::IncompatibleOrder, Some(key), &[writer, reader], || {
                format!("T{writer} appended {wanted} and then {element}, T{reader} read {}", show(view.longest))
            });
        }
    }
    let mut lengths_reported = HashSet::new();
    for read in &view.reads {
        let Some(last) = read.list.last() else { continue };
        let Some(write) = observed.writer(key, *last) else { continue };
        let (writer, reader) = (write.transaction, read.transaction);
        if !write.is_last && writer != reader && lengths_reported.insert(read.list.len()) {
            report.add(AnomalyKind::IntermediateRead, Some(key), &[writer, reader], || {
                format!("T{reader} read {}, but {last} was not the last append of T{writer}", show(read.list))
            });
        }
    }
}

/// No two transactions appended to the same state.
fn check_lost_updates(observed: &Observed<'_>, key: u32, view: &KeyView<'_>, report: &mut Report) {
    let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for read in view.reads.iter().filter(|read| read.fits && read.appends) {
        if observed.standing[read.transaction] == Standing::Effective {
            by_length.entry(read.list.len()).or_default().push(read.transaction);
        }
    }
    for (length, rivals) in by_length.into_iter().filter(|(_, rivals)| rivals.len() > 1) {
        report.add(AnomalyKind::LostUpdate, Some(key), &rivals, || {
            format!("{} transactions read {} and appended to it", rivals.len(), show(&view.longest[..length]))
        });
    }
}

/// Every acknowledged append is in the longest list, unless it may have come after it.
fn check_lost_appends(observed: &Observed<'_>, key: u32, view: &KeyView<'_>, real_time: RealTime, report: &mut Report) {
    let begin = |reader: usize| observed.transactions[reader].begin;
    let latest_reader = view.reads.iter().map(|read| read.transaction).max_by_key(|reader| begin(*reader));
    let versions = view.longest.iter().filter_map(|element| {
        let writer = observed.effective_writer(key, *element)?;
        Some((observed.commit_version(writer)?, *element))
    });
    let newest = versions.max();
    for (writer, element) in &view.unseen {
        let transaction = &observed.transactions[*writer];
        let Outcome::Committed { version } = transaction.outcome else { continue };
        if let (Some(version), Some((newer, witness))) = (version, newest)
            && version < newer
        {
            report.add(AnomalyKind::LostAppend, Some(key), &[*writer], || {
                format!(
                    "T{writer} committed {element} as version {version}; \
                     no read shows it, although {witness} of version {newer} was read"
                )
            });
        } else if let Some(reader) = latest_reader
            && real_time == RealTime::Global
            && transaction.end < begin(reader)
        {
            report.add(AnomalyKind::LostAppend, Some(key), &[*writer, reader], || {
                format!("T{writer} was told that {element} is committed; T{reader} began later, and no read shows it")
            });
        }
    }
}
