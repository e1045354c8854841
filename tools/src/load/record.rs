//! A device's report of itself.

use crate::bench::workload::Numbers;
use serde_json::json;
use std::time::{Duration, UNIX_EPOCH};
use turnstone_executor::log::utc;

const KINDS: [&str; 6] = ["phone", "tablet", "laptop", "watch", "thermostat", "camera"];
const OWNERS: [&str; 8] = ["Ada", "Grace", "Edsger", "Barbara", "Leslie", "Tony", "Radia", "Ken"];
/// Reports are of the year that begins then, seconds since 1970: 2026.
const YEAR_BEGINS: u64 = 1_767_225_600;
const YEAR: u64 = 365 * 24 * 3600;

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// `device-N`.
    pub key: Vec<u8>,
    /// A JSON object.
    pub value: Vec<u8>,
}

impl Record {
    /// A report of one of so many devices. What a device is does not change; what it reports does.
    pub fn draw(numbers: &mut Numbers, devices: u64, padding: usize) -> Record {
        let device = numbers.below(devices.max(1));
        let kind = KINDS[(device % KINDS.len() as u64) as usize];
        let owner = OWNERS[(device / 7 % OWNERS.len() as u64) as usize];
        let degrees = |numbers: &mut Numbers, most: u64| numbers.below(most * 2_000_000) as f64 / 1e6 - most as f64;
        let mut value = json!({
            "device_id": format!("device-{device}"),
            "device_type": kind,
            "friendly_name": format!("{owner}'s {kind}"),
            "last_seen": utc(UNIX_EPOCH + Duration::from_secs(YEAR_BEGINS + numbers.below(YEAR))),
            "number_of_apps_installed": numbers.below(150),
            "gps_coords": { "lat": degrees(numbers, 90), "lon": degrees(numbers, 180) },
        });
        if padding > 0 {
            let text: String = (0..padding).map(|_| char::from(b'a' + numbers.below(26) as u8)).collect();
            value["padding"] = json!(text);
        }
        Record { key: format!("device-{device}").into_bytes(), value: value.to_string().into_bytes() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_the_same_records_and_they_are_json() {
        let draw = |seed| {
            let mut numbers = Numbers::new(seed);
            (0..50).map(|_| Record::draw(&mut numbers, 10, 20)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        for record in draw(7) {
            let value: serde_json::Value = serde_json::from_slice(&record.value).unwrap();
            assert_eq!(value["device_id"].as_str().unwrap().as_bytes(), record.key);
            assert!(value["gps_coords"]["lat"].as_f64().unwrap().abs() <= 90.0);
            assert_eq!(value["padding"].as_str().unwrap().len(), 20);
            assert!(value["last_seen"].as_str().unwrap().starts_with("2026-"));
        }
    }
}
