//! Sharing out the node's budgets: once a second core 0 asks everybody how much they wrote and looked up lately, and gives
//! each partition a share by that, of the kept log (D14), of the memory for recent versions and of the cache. Every
//! partition keeps a floor, so that a quiet one is not emptied by a busy one.

use super::core::ServerCore;
use super::handoff::Message;
use std::collections::BTreeMap;
use std::rc::Weak;
use std::time::Duration;
use turnstone_executor::placement;

const PERIOD: Duration = Duration::from_secs(1);

/// Shares of `total` bytes by recent use; half is shared equally, half by rate.
pub fn shares(total: u64, rates: &BTreeMap<u8, u64>) -> BTreeMap<u8, u64> {
    let sum: u128 = rates.values().map(|r| u128::from(*r)).sum();
    let floor = total / 2 / (rates.len().max(1) as u64);
    let by_rate = |rate: u64| (u128::from(total / 2) * u128::from(rate)).checked_div(sum).map_or(floor, |n| n as u64);
    rates.iter().map(|(partition, rate)| (*partition, floor + by_rate(*rate))).collect()
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
    loop {
        let Some(core) = server.upgrade().map(|s| s.core.clone()) else { return };
        core.sleep(PERIOD).await;
        let Some(server) = server.upgrade() else { return };
        let view = server.node_view().await;
        for (partition, json) in &view.partitions {
            written.count(*partition, figure(json, "log_bytes"));
            looked_up.count(*partition, figure(json, "cache_hits") + figure(json, "cache_misses"));
        }
        let of_node = |share: u64| share * u64::from(server.settings.partitions);
        let log = shares(of_node(server.settings.engine.wal_retention_bytes), &written.smoothed);
        let overlay = shares(of_node(server.settings.engine.overlay_budget), &written.smoothed);
        let cache = shares(of_node(server.settings.engine.cache_bytes), &looked_up.smoothed);
        for (partition, log) in log {
            let home = placement::home_of(partition, server.core.mesh.cores());
            let (overlay, cache) = (overlay[&partition], cache.get(&partition).copied().unwrap_or_default());
            server.post(home, Message::Share { partition, log, overlay, cache });
        }
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
        assert_eq!(figure("{\"a\":1,\"log_bytes\":42,\"b\":3}", "log_bytes"), 42);
    }
}
