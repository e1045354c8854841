//! The checks that use versions.
//!
//! A read says between which versions its snapshot lies: not below any version it saw, below every version whose
//! element it missed. The clock adds a floor: what was answered before the transaction began, and what its session
//! did before, is part of its snapshot. For each transaction these bounds must leave a version, and the one the
//! recorder wrote down must be among them. One sweep over begins and ends in the order of the clock computes all
//! floors.

use std::collections::BTreeMap;

use super::anomaly::{AnomalyKind, Report};
use super::observed::{KeyView, Observed};
use super::{Outcome, RealTime};

/// What the reads of one transaction say about its snapshot.
#[derive(Debug, Clone, Copy, Default)]
struct Bounds {
    /// The highest version it saw, with key and element.
    seen: Option<(u64, u32, u64)>,
    /// The lowest version it missed, with key and element.
    missed: Option<(u64, u32, u64)>,
}

/// Runs all of them.
pub(super) fn check(observed: &Observed<'_>, real_time: RealTime, report: &mut Report) {
    check_duplicates(observed, report);
    let mut bounds = vec![Bounds::default(); observed.transactions.len()];
    for (key, view) in &observed.keys {
        check_list(observed, *key, view, report);
        narrow(observed, *key, view, &mut bounds);
    }
    sweep(observed, real_time, &bounds, report);
}

/// No two updates share a version.
fn check_duplicates(observed: &Observed<'_>, report: &mut Report) {
    let mut owners: BTreeMap<u64, usize> = BTreeMap::new();
    for number in observed.participants() {
        let Some(version) = observed.commit_version(number) else { continue };
        if let Some(first) = owners.insert(version, number) {
            report.add(AnomalyKind::DuplicateVersion, None, &[first, number], || {
                format!("T{first} and T{number} were both committed as version {version}")
            });
        }
    }
}

/// Versions rise along the longest list.
fn check_list(observed: &Observed<'_>, key: u32, view: &KeyView<'_>, report: &mut Report) {
    let mut newest: Option<(u64, usize, u64)> = None;
    for element in view.longest {
        let Some(writer) = observed.effective_writer(key, *element) else { continue };
        let Some(version) = observed.commit_version(writer) else { continue };
        if let Some((earlier, other, before)) = newest
            && other != writer
            && earlier >= version
        {
            report.add(AnomalyKind::VersionOrder, Some(key), &[other, writer], || {
                format!("{element} of version {version} follows {before} of version {earlier}")
            });
        }
        newest = Some((version, writer, *element));
    }
}

/// Takes the reads of one key into the bounds of their transactions.
fn narrow(observed: &Observed<'_>, key: u32, view: &KeyView<'_>, bounds: &mut [Bounds]) {
    let version_of = |element: u64| {
        let version = observed.commit_version(observed.effective_writer(key, element)?)?;
        Some((version, key, element))
    };
    let unseen = view.unseen.iter().filter_map(|(writer, element)| {
        let version = observed.commit_version(*writer)?;
        Some((version, key, *element))
    });
    let lowest_unseen = unseen.min();
    let length = view.longest.len();
    let mut seen = vec![None; length + 1];
    let mut missed = vec![lowest_unseen; length + 1];
    for place in 0..length {
        seen[place + 1] = seen[place].max(version_of(view.longest[place]));
    }
    for place in (0..length).rev() {
        missed[place] = lower(missed[place + 1], version_of(view.longest[place]));
    }
    for read in view.reads.iter().filter(|read| read.fits) {
        let bound = &mut bounds[read.transaction];
        bound.seen = bound.seen.max(seen[read.list.len()]);
        bound.missed = lower(bound.missed, missed[read.list.len()]);
    }
}

/// The lower of two bounds, of which either may be absent.
fn lower(a: Option<(u64, u32, u64)>, b: Option<(u64, u32, u64)>) -> Option<(u64, u32, u64)> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, None) => a,
        (None, b) => b,
    }
}

/// Goes through begins and ends in the order of the clock, carrying the version that everything from here on must
/// include.
fn sweep(observed: &Observed<'_>, real_time: RealTime, bounds: &[Bounds], report: &mut Report) {
    let mut answered: Option<(u64, usize)> = None;
    let mut in_session: BTreeMap<u32, (u64, usize)> = BTreeMap::new();
    let mut includes: Vec<Option<u64>> = vec![None; bounds.len()];
    for event in events(observed) {
        match event {
            Event::Begin(number) => {
                let session = observed.transactions[number].session;
                let floor = match real_time {
                    RealTime::Global => answered.max(in_session.get(&session).copied()),
                    RealTime::Session => in_session.get(&session).copied(),
                    RealTime::Ignored => None,
                };
                let version = check_one(observed, number, &bounds[number], floor, report);
                includes[number] = version;
                if let Some(version) = version
                    && observed.has_end(number)
                {
                    let entry = in_session.entry(session).or_insert((version, number));
                    *entry = (*entry).max((version, number));
                }
            }
            Event::End(number) => {
                answered = answered.max(includes[number].map(|version| (version, number)));
            }
        }
    }
}

/// Holds one transaction against its bounds; returns the version that whatever follows it must include.
fn check_one(
    observed: &Observed<'_>,
    number: usize,
    bounds: &Bounds,
    floor: Option<(u64, usize)>,
    report: &mut Report,
) -> Option<u64> {
    let recorded = match observed.transactions[number].outcome {
        Outcome::Committed { version } => version,
        _ => None,
    };
    let updates = observed.writes(number);
    let Some(version) = recorded else {
        let (seen, missed) = (bounds.seen, bounds.missed);
        if let (Some((seen, seen_key, shown)), Some((missed, missed_key, hidden))) = (seen, missed)
            && seen >= missed
        {
            report.add(AnomalyKind::NoSnapshot, None, &[number], || {
                format!(
                    "T{number} read {shown} of version {seen} at key {seen_key}, \
                     but not {hidden} of version {missed} at key {missed_key}"
                )
            });
        } else if let (Some((floor, earlier)), Some((missed, missed_key, hidden))) = (floor, missed)
            && floor >= missed
        {
            report.add(AnomalyKind::NoSnapshot, Some(missed_key), &[earlier, number], || {
                format!(
                    "T{number} followed T{earlier}, which includes version {floor}, \
                     but did not read {hidden} of version {missed}"
                )
            });
        }
        return seen.map(|seen| seen.0).max(floor.map(|floor| floor.0));
    };
    // An update reads the state just below its version, a read-only transaction the state at it.
    if let Some((seen, key, element)) = bounds.seen
        && (seen > version || (updates && seen == version))
    {
        report.add(AnomalyKind::VersionRead, Some(key), &[number], || {
            format!("T{number} of version {version} read {element} of version {seen}")
        });
    }
    if let Some((missed, key, element)) = bounds.missed
        && (missed < version || (!updates && missed == version))
    {
        report.add(AnomalyKind::VersionRead, Some(key), &[number], || {
            format!("T{number} of version {version} did not read {element} of version {missed}")
        });
    }
    if let Some((floor, earlier)) = floor
        && (floor > version || (updates && floor == version))
    {
        report.add(AnomalyKind::VersionTime, None, &[earlier, number], || {
            format!("T{number} has version {version}, although it followed T{earlier}, which includes {floor}")
        });
    }
    Some(version)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    // At the same tick begins come first: only a strictly earlier end counts.
    Begin(usize),
    End(usize),
}

fn events(observed: &Observed<'_>) -> Vec<Event> {
    let mut events = Vec::with_capacity(2 * observed.transactions.len());
    for number in observed.participants() {
        let transaction = &observed.transactions[number];
        events.push((transaction.begin, Event::Begin(number)));
        if observed.has_end(number) {
            events.push((transaction.end, Event::End(number)));
        }
    }
    events.sort_unstable();
    events.into_iter().map(|(_, event)| event).collect()
}
