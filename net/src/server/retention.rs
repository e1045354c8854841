//! Sharing out the node's budgets: once a second core 0 asks everybody how much they wrote and looked up lately, and gives
//! each partition a share by that, of the kept log (D14), of the memory for recent versions, of the log that is not settled
//! and of the cache. Every partition keeps a floor, so that a quiet one is not emptied by a busy one.
//!
//! Log is not memory: what is purged, a consumer or a follower cannot get back. So while the node has room, each partition's
//! share is all the log that it has and a part of the room; only when room runs short do those give way that have more than
//! the share by recent use. All the log counts, settled or not, though only settled log is purged: a checkpoint settles many
//! segments at once, and a share by what was settled before would take them in the same moment.

use super::core::ServerCore;
use super::handoff::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Weak;
use std::time::Duration;
use turnstone_executor::placement;

const PERIOD: Duration = Duration::from_secs(1);
/// Of so many times `checkpoint_wal_bytes`, the log that may wait for checkpoints, each partition gets a share.
const UNSETTLED: u64 = 16;
/// What a partition has that `wal_retention_bytes` is about, or will be once it is settled.
const HELD: [&str; 2] = ["wal_used_bytes", "value_pinned_bytes"];

/// Shares of `total` bytes by recent use; half is shared equally, half by rate.
pub fn shares(total: u64, rates: &BTreeMap<u8, u64>) -> BTreeMap<u8, u64> {
    let sum: u128 = rates.values().map(|r| u128::from(*r)).sum();
    let floor = total / 2 / (rates.len().max(1) as u64);
    let by_rate = |rate: u64| (u128::from(total / 2) * u128::from(rate)).checked_div(sum).map_or(floor, |n| n as u64);
    rates.iter().map(|(partition, rate)| (*partition, floor + by_rate(*rate))).collect()
}

/// How much log each partition may keep, of `total` bytes, when they hold `held` and may claim `fair`. A sixteenth of `total`
/// stays free, for those to grow into that hold less than they may claim. When all hold more than the rest, nobody who holds
/// less than its claim gives up anything, and the others are cut in proportion to theirs (max-min fairness with weights).
///
/// What is free is shared out by the claims, so that the shares are `total` in sum.
pub fn log_shares(total: u64, fair: &BTreeMap<u8, u64>, held: &BTreeMap<u8, u64>) -> BTreeMap<u8, u64> {
    let part = |of: u64, partition: &u8, sum: u64| {
        let weight = u128::from(fair.get(partition).copied().unwrap_or_default());
        (u128::from(of) * weight).checked_div(u128::from(sum)).map_or(0, |n| n as u64)
    };
    let weights = |of: &BTreeMap<u8, u64>| of.keys().filter_map(|p| fair.get(p)).sum::<u64>();
    let mut left = total - total / 16;
    let mut keeps = BTreeMap::new();
    let mut open: BTreeMap<u8, u64> = fair.keys().map(|p| (*p, held.get(p).copied().unwrap_or_default())).collect();
    if open.values().map(|n| u128::from(*n)).sum::<u128>() <= u128::from(left) {
        keeps = std::mem::take(&mut open);
    }
    while !open.is_empty() {
        let sum = weights(&open);
        let satisfied: Vec<u8> =
            open.iter().filter(|(p, held)| **held <= part(left, p, sum)).map(|(p, _)| *p).collect();
        if satisfied.is_empty() {
            keeps.extend(open.keys().map(|p| (*p, part(left, p, sum))));
            break;
        }
        for partition in satisfied {
            let held = open.remove(&partition).unwrap_or_default();
            left -= held;
            keeps.insert(partition, held);
        }
    }
    let free = total - keeps.values().sum::<u64>();
    let sum = weights(fair);
    keeps.into_iter().map(|(p, keep)| (p, keep + part(free, &p, sum))).collect()
}

/// The figure `name` of a partition's JSON, if it has one.
fn figure(json: &str, name: &str) -> Option<u64> {
    let (_, rest) = json.split_once(&format!("\"{name}\":"))?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// What partitions did lately: a moving average over some 16 periods.
#[derive(Default)]
struct Rates {
    before: BTreeMap<u8, u64>,
    smoothed: BTreeMap<u8, u64>,
}

impl Rates {
    fn count(&mut self, partition: u8, now: u64) {
        let before = self.before.insert(partition, now).unwrap_or(0);
        let rate = self.smoothed.entry(partition).or_default();
        *rate = *rate - *rate / 16 + now.saturating_sub(before) / 16;
    }
}

/// The task on core 0.
pub async fn share_out(server: Weak<ServerCore>) {
    let (mut written, mut looked_up) = (Rates::default(), Rates::default());
    let mut held = BTreeMap::new();
    loop {
        let Some(server) = server.upgrade() else { return };
        let view = server.node_view().await;
        let mut open = BTreeSet::new();
        for (partition, json) in &view.partitions {
            let of = |name: &str| figure(json, name).unwrap_or(0);
            // One that is just being opened anew has no figures: it has what it had, and is told nothing.
            let all: Option<Vec<u64>> = HELD.iter().map(|name| figure(json, name)).collect();
            let Some(all) = all else { continue };
            open.insert(*partition);
            held.insert(*partition, all.iter().sum());
            written.count(*partition, of("log_bytes"));
            looked_up.count(*partition, of("cache_hits") + of("cache_misses"));
        }
        let of_node = |share: u64| share * u64::from(server.settings.partitions);
        let log = of_node(server.settings.engine.wal_retention_bytes);
        let log = log_shares(log, &shares(log, &written.smoothed), &held);
        let overlay = shares(of_node(server.settings.engine.overlay_budget), &written.smoothed);
        let unsettled = shares(UNSETTLED * server.settings.engine.checkpoint_wal_bytes, &written.smoothed);
        let cache = shares(of_node(server.settings.engine.cache_bytes), &looked_up.smoothed);
        for (partition, log) in log.into_iter().filter(|(partition, _)| open.contains(partition)) {
            let home = placement::home_of(partition, server.core.mesh.cores());
            let (overlay, unsettled) = (overlay[&partition], unsettled[&partition]);
            let cache = cache.get(&partition).copied().unwrap_or_default();
            server.post(home, Message::Share { partition, log, overlay, unsettled, cache });
        }
        let core = server.core.clone();
        drop(server);
        core.sleep(PERIOD).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_the_rates_above_a_floor_and_never_pass_the_total() {
        let rates = BTreeMap::from([(1, 0), (2, 300), (3, 100)]);
        let got = shares(1200, &rates);
        assert_eq!(got, BTreeMap::from([(1, 200), (2, 650), (3, 350)]));
        assert!(got.values().sum::<u64>() <= 1200);
        let idle = shares(1200, &BTreeMap::from([(1, 0), (2, 0)]));
        assert_eq!(idle.values().sum::<u64>(), 1200);
    }

    #[test]
    fn log_is_kept_while_the_node_has_room_and_then_those_give_way_who_hold_more_than_their_claim() {
        let fair = BTreeMap::from([(1, 100), (2, 300), (3, 1200)]);
        let held = |a, b, c| BTreeMap::from([(1, a), (2, b), (3, c)]);
        let shares = |held| log_shares(1600, &fair, &held);
        // All that is held, and of the 800 that are free each its part.
        assert_eq!(shares(held(800, 0, 0)), held(850, 150, 600));
        // 1500 can be held: the first is cut to what is left, the others keep theirs and may grow.
        assert_eq!(shares(held(1600, 0, 0)), held(1506, 18, 75));
        assert_eq!(shares(held(1600, 100, 800)), held(600 + 6, 100 + 18, 800 + 75));
        // Everybody above the claim: by the claims alone.
        assert_eq!(shares(held(9000, 9000, 9000)), held(93 + 6, 281 + 18, 1125 + 75));
        // Whoever claims more gets it, a piece of the free room each time.
        let mut now = held(1500, 0, 0);
        for _ in 0..200 {
            let next = shares(now.clone());
            assert!(next.values().sum::<u64>() <= 1600);
            now = BTreeMap::from([(1, now[&1].min(next[&1])), (2, 0), (3, next[&3])]);
        }
        assert!(now[&3] >= 1200, "{now:?}");
        assert_eq!(log_shares(0, &fair, &held(5, 0, 0)), held(0, 0, 0));
    }

    /// One partition was loaded in bulk; now the others write slowly, and a checkpoint settles 32 MiB of theirs at once.
    #[test]
    fn who_comes_later_gets_its_claim_though_checkpoints_settle_much_at_once() {
        const MIB: u64 = 1 << 20;
        let (total, segment) = (1024 * MIB, 10 * MIB);
        let mut settled: BTreeMap<u8, u64> = (1..=16).map(|p| (p, 0)).collect();
        let mut not_settled = settled.clone();
        let mut written = Rates::default();
        let mut log_bytes = settled.clone();
        for second in 0..3600 {
            for p in 1..=16 {
                let bytes = match p {
                    1 if second < 300 => 20 * MIB,
                    1 => 0,
                    _ if second < 300 => 0,
                    _ => MIB / 2,
                };
                *log_bytes.get_mut(&p).unwrap() += bytes;
                *not_settled.get_mut(&p).unwrap() += bytes;
                written.count(p, log_bytes[&p]);
            }
            let held = settled.iter().map(|(p, n)| (*p, n + not_settled[p])).collect();
            let shares = log_shares(total, &shares(total, &written.smoothed), &held);
            assert!(shares.values().sum::<u64>() <= total);
            for (p, share) in shares {
                let (settled, not_settled) = (settled.get_mut(&p).unwrap(), not_settled.get_mut(&p).unwrap());
                if *not_settled >= 32 * MIB {
                    *settled += std::mem::take(not_settled);
                }
                while *settled > share {
                    *settled = settled.saturating_sub(segment);
                }
            }
            if second == 299 {
                assert!(settled[&1] > total * 7 / 8, "{settled:?}");
            }
        }
        assert!(settled.iter().all(|(p, n)| *p == 1 || *n >= 32 * MIB), "{settled:?}");
    }

    #[test]
    fn a_figure_is_read_from_the_json_of_a_partition() {
        assert_eq!(figure("{\"a\":1,\"log_bytes\":42,\"b\":3}", "log_bytes"), Some(42));
        assert_eq!(figure("{\"state\":\"offline\"}", "log_bytes"), None);
    }
}
