//! Settings: files of the server and of the change-stream consumer, flags and variables, sizes and durations.
//!
//! Settings that are accepted read as themselves when they are written out; a file is understood exactly if it is JSON, an
//! object, with no key twice; sizes agree with arithmetic in 128 bits; and errors name their place and stay short.

use super::Script;
use serde_json::json;
use turnstone_tools::config::{Config, ConfigError, KEYS, Value, sample_json};
use turnstone_tools::units::{parse_duration, parse_size, print_duration, print_size};
use turnstone_tools::{cdc_config, strict_json};

pub(super) const FILE: &str = "f.json";

/// The target.
pub fn run(input: &[u8]) {
    let mut script = Script(input);
    let mode = script.u8();
    let Ok(text) = std::str::from_utf8(script.0) else { return };
    match mode % 4 {
        0 => {
            entries(text);
            match Config::from_parts(FILE, text, &[], std::iter::empty()) {
                Ok(config) => same_again(&config),
                Err(error) => short(&error, text),
            }
        }
        1 => {
            entries(text);
            super::cdc::config(text.as_bytes());
        }
        2 => units(text),
        _ => {
            let pairs = text.lines().filter_map(|line| line.split_once('='));
            let pairs = pairs.map(|(name, value)| (name.to_string(), value.to_string()));
            let (variables, flags): (Vec<_>, Vec<_>) = pairs.partition(|(name, _)| name.starts_with("TURNSTONE_"));
            match Config::from_parts(FILE, "{}", &flags, variables.into_iter()) {
                Ok(config) => same_again(&config),
                Err(error) => short(&error, text),
            }
        }
    }
}

/// What is read strictly is what serde_json reads, key by key.
fn entries(text: &str) {
    let whole = serde_json::from_str::<serde_json::Value>(text);
    match (strict_json::parse(FILE, text), whole.as_ref().map(|whole| whole.as_object())) {
        (Ok(entries), Ok(Some(object))) => {
            assert_eq!(entries.len(), object.len());
            let lines = 1 + text.matches('\n').count();
            let mut line = 1;
            for entry in &entries {
                assert_eq!(object.get(&entry.key), Some(&entry.value), "{}", entry.key);
                assert!((line..=lines).contains(&entry.line), "{}", entry.line);
                line = entry.line;
            }
        }
        (Ok(_), _) => panic!("this is no object"),
        (Err(error), Ok(Some(_))) => assert!(error.to_string().contains("is set a second time"), "{error}"),
        (Err(_), _) => {}
    }
}

/// Written out in full, as a file, the settings are the same.
fn same_again(config: &Config) {
    let values: Vec<Value> = config.settings().map(|(_, value, _)| value.clone()).collect();
    let mut object = serde_json::Map::new();
    for (key, value) in KEYS.iter().zip(&values) {
        let value = match value {
            Value::Bool(bool) => json!(bool),
            Value::Count(count) => json!(count),
            other => json!(other.to_string()),
        };
        object.insert(key.name.to_string(), value);
    }
    let text = serde_json::Value::Object(object).to_string();
    let again = Config::from_parts(FILE, &text, &[], std::iter::empty()).expect("what was accepted");
    assert!(again.settings().map(|(_, value, _)| value).eq(&values));
    assert!(config.listen_address().is_ok());
    assert!(config.max_value_size <= config.max_tx_size.min(config.max_request_size));
}

pub(super) fn short(error: &ConfigError, text: &str) {
    let error = error.to_string();
    let origins = [FILE, "--", "TURNSTONE_", "default: "];
    assert!(origins.iter().any(|origin| error.starts_with(origin)), "{error}");
    // A character that is shown by its code takes up to ten.
    assert!(error.len() <= 500 + 10 * text.len(), "{} bytes", error.len());
}

fn units(text: &str) {
    let size = parse_size(text);
    if let Ok(bytes) = size {
        assert_eq!(parse_size(&print_size(bytes)), Ok(bytes));
    }
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.bytes().take_while(u8::is_ascii_digit).count();
    let shift = match lower[digits..].trim_start() {
        "" | "b" => Some(0),
        "kb" | "kib" => Some(10),
        "mb" | "mib" => Some(20),
        "gb" | "gib" => Some(30),
        _ => None,
    };
    let expected = shift.and_then(|shift| {
        let number = lower[..digits].parse::<u64>().ok()?;
        u64::try_from(u128::from(number) << shift).ok()
    });
    assert_eq!(size.ok(), expected, "the size {text:?}");
    if let Ok(duration) = parse_duration(text) {
        assert_eq!(parse_duration(&print_duration(duration)), Ok(duration));
    }
}

/// The sample files, one file per setting, and units.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut texts =
        vec![(0, sample_json()), (1, cdc_config::sample_json()), (1, "{\"partition\": [1, \"16\"]}".into())];
    for key in KEYS {
        let bare = ["true", "false"].contains(&key.default) || key.default.bytes().all(|b| b.is_ascii_digit());
        let value =
            if bare && !key.default.is_empty() { key.default.to_string() } else { json!(key.default).to_string() };
        texts.push((0, format!("{{\n\"{}\": {value}}}", key.name)));
        texts.push((3, format!("{}={}\n{}={}", key.variable(), key.default, key.flag(), key.default)));
    }
    // Among them the longest that there are.
    for unit in
        ["64MB", "4 KiB", "17179869183GB", "18446744073709551615", "1h30m", "1.5s", "500ms", "10us20ns", "876000h"]
    {
        texts.push((2, unit.to_string()));
    }
    texts.into_iter().map(|(mode, text)| [&[mode], text.as_bytes()].concat()).collect()
}
