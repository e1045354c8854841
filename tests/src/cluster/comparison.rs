//! The end of a run: all nodes come to the same contents, and those are what clients were told.

use super::features::Feature;
use super::node::read_log;
use super::{COMPARISONS, KEYS, LOOKS, RECOVERY, Run, describe, lend_a_hand};
use crate::model::key_bytes;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::Error;
use turnstone_engine::types::Version;
use turnstone_engine::wal::body::Body;

/// Everybody gets the same, and it is what was told.
pub async fn settle(run: &Rc<Run>) -> Result<(), String> {
    let (cluster, world) = (run.cluster.clone(), run.cluster.world.clone());
    let began = world.now();
    let shown = |node: usize| cluster.partition(node).map(|p| (p.published(), p.standing().last));
    let mut person = began + LOOKS;
    // To read long logs takes its time, which is not the nodes'.
    let (mut comparisons, mut between) = (0, String::new());
    loop {
        person = lend_a_hand(run, person);
        if cluster.failure.borrow().is_some() {
            return Ok(());
        }
        // A whole log takes its time on a slow line.
        let limit = RECOVERY * if cluster.features.has(Feature::SlowLinks) { 16 } else { 4 };
        if comparisons == 0 && world.now() > began + limit {
            return Err(format!("they do not come to the same within {limit:?}: {}", describe(run)));
        }
        if comparisons > COMPARISONS {
            return Err(format!(
                "{COMPARISONS} comparisons came to nothing, the last one for {between}: {}",
                describe(run)
            ));
        }
        let first = shown(0);
        let whole = first.filter(|(published, last)| published == last && run.clients.get() == 0);
        if let Some((last, _)) = whole
            && (1..cluster.len()).all(|node| shown(node) == first)
        {
            comparisons += 1;
            match compare(run, last).await? {
                None => return Ok(()),
                Some(why) => between = why,
            }
        }
        world.sleep(Duration::from_millis(20)).await;
    }
}

/// Compares the logs up to `last`, and what they make; answers what came in between, if anything did.
async fn compare(run: &Rc<Run>, last: Version) -> Result<Option<String>, String> {
    let cluster = run.cluster.clone();
    let (mut logs, mut digests) = (Vec::new(), Vec::new());
    for node in 0..cluster.len() {
        let Some(partition) = cluster.partition(node) else { return Ok(Some(format!("node {node} is away"))) };
        // Logs of ten minutes take their time.
        let read = run.on_node_within(RECOVERY * 100, node, async move {
            let digest = partition.digest().await?;
            let log = read_log(&partition, partition.oldest_version()).await?;
            Ok::<_, Error>((digest, log))
        });
        match read.await {
            Some(Ok((digest, log))) => {
                logs.push(log);
                digests.push(digest);
            }
            // It was opened anew meanwhile.
            None | Some(Err(Error::ShuttingDown)) => return Ok(Some(format!("node {node} was opened anew"))),
            Some(Err(error)) => return Err(format!("the log of node {node} cannot be read: {error}")),
        }
    }
    if digests.iter().any(|(version, _)| *version != last) {
        return Ok(Some(format!("digests of {digests:?}, which should be of {last}")));
    }
    for node in 1..cluster.len() {
        if digests[node] != digests[0] {
            return Err(format!("nodes 0 and {node} have different contents: {digests:?}"));
        }
    }
    let key_of = |bytes: &[u8]| (0..KEYS).find(|key| key_bytes(*key) == bytes);
    // A log that a copy took the place of was kept; where nodes differ that is said there.
    let mut whole: BTreeMap<Version, Body> = BTreeMap::new();
    for log in logs {
        whole.extend(log.iter().map(|batch| (batch.first_version, batch.clone())));
        cluster.keep(log);
    }
    let Some(first) = cluster.partition(0) else { return Ok(Some("node 0 is away".to_string())) };
    let archive = cluster.archive.borrow();
    let losses = run.orders.losses.borrow();
    let end = |batch: &Body| batch.first_version + batch.transactions.len() as u64;
    for batch in archive.values() {
        // A batch behind the comparison is of no other history yet.
        let is_final = |version| version > last || first.position(version).epoch == batch.epoch;
        if !is_final(batch.first_version) || !is_final(end(batch) - 1) {
            if !losses.any() {
                return Err(format!("nodes have shown batches of two epochs with version {}", batch.first_version));
            }
            continue;
        }
        // What only archives have; where histories part, one of them may have a longer batch.
        let before = whole.range(..=batch.first_version).next_back().is_some_and(|(_, b)| end(b) > batch.first_version);
        let behind = whole.range(batch.first_version..).next().is_some_and(|(next, _)| *next < end(batch));
        if !before && !behind {
            whole.insert(batch.first_version, batch.clone());
        }
    }
    let whole: Vec<Body> = whole.into_values().collect();
    // Where histories parted, logs that nobody keeps may have had what no log has now: a copy has no log of its own.
    let has_gap = whole.windows(2).any(|pair| end(&pair[0]) < pair[1].first_version);
    if has_gap && losses.any() {
        return Ok(None);
    }
    run.told.borrow().check(&whole, &losses, key_of)?;
    Ok(None)
}
