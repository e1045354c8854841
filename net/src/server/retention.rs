//! Sharing out the node's budgets: once a second core 0 asks everybody how much they wrote and looked up lately, and gives
//! each partition a share by that, of the kept log (D14), of the memory for recent versions and of the cache. Every
//! partition keeps a floor, so that a quiet one is not emptied by a busy one.
//!
//! Log is not memory: what is purged, a consumer or a follower cannot get back. So while the node has room, each partition's
//! share is all that it holds and a part of the room; only when room runs short do those give way that hold more than the
//! share by recent use.

use super::core::ServerCore;
use super::handoff::Message;
use std::collections::BTreeMap;
use std::rc::Weak;
use std::time::Duration;
use turnstone_executor::placement;

const PERIOD: Duration = Duration::from_secs(1);
/// What counts against a share of `wal_retention_bytes`.
const KEPT: [&str; 2] = ["wal_checkpointed_bytes", "value_pinned_bytes"];

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
/// What is free is shared out by the claims, so that the shares are `total` in sum. Only while more than half is free may
/// each take half of that before the next round: the node would have to write more than half of `total` in that time to
/// pass it, and it would be back below it then.
pub fn log_shares(total: u64, fair: &BTreeMap<u8, u64>, held: &BTreeMap<u8, u64>) -> BTreeMap<u8, u64> {
    let part = |of: u64, partition: &u8, sum: u64| {
        let weight = u128::from(fair.get(partition).copied().unwrap_or_default());
        (u128::from(of) * weight).checked_div(u128::from(sum)).map_or(0, |n| n as u64)
    };
    let weights = |of: &mut dyn Iterator<Item = &u8>| of.filter_map(|p| fair.get(p)).sum::<u64>();
    let mut left = total - total / 16;
    let mut keeps = BTreeMap::new();
    let mut open: BTreeMap<u8, u64> = fair.keys().map(|p| (*p, held.get(p).copied().unwrap_or_default())).collect();
    if open.values().map(|n| u128::from(*n)).sum::<u128>() <= u128::from(left) {
        keeps = std::mem::take(&mut open);
    }
    while !open.is_empty() {
        let sum = weights(&mut open.keys());
        let content: Vec<u8> = open.iter().filter(|(p, held)| **held <= part(left, p, sum)).map(|(p, _)| *p).collect();
        if content.is_empty() {
            keeps.extend(open.keys().map(|p| (*p, part(left, p, sum))));
            break;
        }
        for partition in content {
            let held = open.remove(&partition).unwrap_or_default();
            left -= held;
            keeps.insert(partition, held);
        }
    }
    let free = total - keeps.values().sum::<u64>();
    let sum = weights(&mut fair.keys());
    let loose = if free > total / 2 { free / 2 } else { 0 };
    keeps.into_iter().map(|(p, keep)| (p, keep + part(free, &p, sum).max(loose))).collect()
}

/// The figure `name` of a partition's JSON.
fn figure(json: &str, name: &str) -> u64 {
    let rest = json.split_once(&format!("\"{name}\":")).map_or("", |(_, rest)| rest);
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
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
        for (partition, json) in &view.partitions {
            written.count(*partition, figure(json, "log_bytes"));
            looked_up.count(*partition, figure(json, "cache_hits") + figure(json, "cache_misses"));
            held.insert(*partition, KEPT.iter().map(|name| figure(json, name)).sum());
        }
        let of_node = |share: u64| share * u64::from(server.settings.partitions);
        let log = of_node(server.settings.engine.wal_retention_bytes);
        let log = log_shares(log, &shares(log, &written.smoothed), &held);
        let overlay = shares(of_node(server.settings.engine.overlay_budget), &written.smoothed);
        let cache = shares(of_node(server.settings.engine.cache_bytes), &looked_up.smoothed);
        for (partition, log) in log {
            let home = placement::home_of(partition, server.core.mesh.cores());
            let (overlay, cache) = (overlay[&partition], cache.get(&partition).copied().unwrap_or_default());
            server.post(home, Message::Share { partition, log, overlay, cache });
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
        // With more than half free, each half of that, if it is more than its part.
        assert_eq!(shares(held(600, 0, 0)), held(1100, 500, 750));
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

    #[test]
    fn a_figure_is_read_from_the_json_of_a_partition() {
        assert_eq!(figure("{\"a\":1,\"log_bytes\":42,\"b\":3}", "log_bytes"), 42);
    }
}
