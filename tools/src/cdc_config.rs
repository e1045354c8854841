//! `turnstone.cdc.json`, read strictly into the consumer's settings.

use std::time::Duration;

use serde_json::{Value, json};
use turnstone_cdc::{OnPurged, Partitions, Settings, StartAt, ValueFormat};
use turnstone_net::tls::TlsFiles;
use turnstone_net::wire::partition_from_decimal;

use crate::config::ConfigError;
use crate::home::Home;
use crate::strict_json::{self, Entry};
use crate::units::{parse_duration, parse_size, print_duration, print_size};

/// The keys, in the order of the sample file.
const KEYS: [&str; 17] = [
    "id",
    "host",
    "partition",
    "output_dir",
    "state_file",
    "max_file_size_mb",
    "rotate_interval",
    "flush_interval",
    "value_format",
    "start",
    "on_purged",
    "hold",
    "exec",
    "metrics_addr",
    "tls_cert_file",
    "tls_key_file",
    "tls_ca_file",
];

/// Settings of the original that have no like here.
const REPLACED: [strict_json::Replaced; 4] = [
    ("database", "'partition' stands for it"),
    ("debug", "nothing stands for it; remove it"),
    ("tls_client_cert_file", "'tls_cert_file' stands for it"),
    ("tls_client_key_file", "'tls_key_file' stands for it"),
];

/// Reads the consumer's settings of a home.
pub fn load(home: &Home) -> Result<Settings, ConfigError> {
    let path = home.cdc_config_file();
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => ConfigError::new(&shown, "there is no such file")
            .with_hint(format!("run: turnstone --init --home {}", home.root().display())),
        _ => ConfigError::new(&shown, format!("it cannot be read: {error}")),
    })?;
    parse(&shown, &text)
}

/// Reads the text of a settings file; `file` is how errors name it. Keys that are not set have their defaults.
pub fn parse(file: &str, text: &str) -> Result<Settings, ConfigError> {
    let mut settings = Settings::default();
    let entries = strict_json::parse(file, text)?;
    strict_json::refuse_unknown(file, &entries, &KEYS, &REPLACED)?;
    for entry in &entries {
        let error = |why: String| ConfigError::new(format!("{file}:{}", entry.line), format!("{}: {why}", entry.key));
        let text = || string(entry).map_err(error);
        match entry.key.as_str() {
            "id" => settings.id = text()?,
            "host" => settings.host = text()?,
            "partition" => settings.partition = partitions(&entry.value).map_err(error)?,
            "output_dir" => settings.output_dir = text()?.into(),
            "state_file" => settings.state_file = text()?.into(),
            "max_file_size_mb" => {
                settings.max_file_size_mb = entry
                    .value
                    .as_u64()
                    .ok_or_else(|| error(format!("{} is no whole number; for example 100", entry.value)))?;
            }
            "rotate_interval" => settings.rotate_interval = duration(entry).map_err(error)?,
            "flush_interval" => settings.flush_interval = duration(entry).map_err(error)?,
            "value_format" => {
                let name = text()?;
                settings.value_format = ValueFormat::from_name(&name)
                    .ok_or_else(|| error(format!("'{}' is none of text, json, base64", name.escape_debug())))?;
            }
            "start" => {
                let name = text()?;
                settings.start = StartAt::from_name(&name)
                    .ok_or_else(|| error(format!("'{}' is none of beginning, now, copy", name.escape_debug())))?;
            }
            "on_purged" => {
                let name = text()?;
                settings.on_purged = OnPurged::from_name(&name)
                    .ok_or_else(|| error(format!("'{}' is none of copy, stop", name.escape_debug())))?;
            }
            "hold" => settings.hold = size(entry).map_err(error)?,
            "exec" => settings.exec = words(&entry.value).map_err(error)?,
            "metrics_addr" => settings.metrics_addr = text()?,
            "tls_cert_file" => settings.tls_cert_file = text()?.into(),
            "tls_key_file" => settings.tls_key_file = text()?.into(),
            "tls_ca_file" => settings.tls_ca_file = text()?.into(),
            _ => unreachable!("unknown keys were refused"),
        }
    }
    settings.validate().map_err(|error| {
        let line = entries.iter().find(|entry| entry.key == error.key).map(|entry| format!(":{}", entry.line));
        ConfigError::new(format!("{file}{}", line.unwrap_or_default()), error.to_string())
    })?;
    Ok(settings)
}

/// The consumer's certificate, key and CA.
pub fn tls_files(home: &Home, settings: &Settings) -> TlsFiles {
    TlsFiles {
        cert: home.resolve(&settings.tls_cert_file),
        key: home.resolve(&settings.tls_key_file),
        ca: home.resolve(&settings.tls_ca_file),
    }
}

/// The text of a sample `turnstone.cdc.json`: every setting at its default.
pub fn sample_json() -> String {
    print(&Settings::default())
}

/// The text of a settings file with all of them.
pub fn print(settings: &Settings) -> String {
    let values = [
        json!(settings.id),
        json!(settings.host),
        match &settings.partition {
            Partitions::All => json!("*"),
            Partitions::Some(list) if list.len() == 1 => json!(list[0].to_string()),
            Partitions::Some(list) => json!(list),
        },
        json!(settings.output_dir.display().to_string()),
        json!(settings.state_file.display().to_string()),
        json!(settings.max_file_size_mb),
        json!(print_duration(settings.rotate_interval)),
        json!(print_duration(settings.flush_interval)),
        json!(settings.value_format.name()),
        json!(settings.start.name()),
        json!(settings.on_purged.name()),
        json!(print_size(settings.hold)),
        json!(settings.exec),
        json!(settings.metrics_addr),
        json!(settings.tls_cert_file.display().to_string()),
        json!(settings.tls_key_file.display().to_string()),
        json!(settings.tls_ca_file.display().to_string()),
    ];
    let lines: Vec<_> = KEYS.iter().zip(values).map(|(key, value)| format!("  \"{key}\": {value}")).collect();
    format!("{{\n{}\n}}\n", lines.join(",\n"))
}

fn string(entry: &Entry) -> Result<String, String> {
    match &entry.value {
        Value::String(text) => Ok(text.clone()),
        other => Err(format!("{other} is not a text in quotes")),
    }
}

fn duration(entry: &Entry) -> Result<Duration, String> {
    match &entry.value {
        Value::String(text) => parse_duration(text).map_err(|error| error.to_string()),
        other => Err(format!("{other} is not a duration; for example \"30s\"")),
    }
}

fn size(entry: &Entry) -> Result<u64, String> {
    match &entry.value {
        Value::String(text) => parse_size(text).map_err(|error| error.to_string()),
        other => Err(format!("{other} is not a size; for example \"1GB\", or \"0\" for none")),
    }
}

/// A list of words.
fn words(value: &Value) -> Result<Vec<String>, String> {
    let wrong = || format!("{value} is no list of words; for example [\"gzip\", \"-k\"], or [] for none");
    let list = value.as_array().ok_or_else(wrong)?;
    list.iter().map(|word| word.as_str().map(str::to_owned).ok_or_else(wrong)).collect()
}

/// A number, a decimal string, a list of either, or `"*"`.
fn partitions(value: &Value) -> Result<Partitions, String> {
    let one = |value: &Value| {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            other => return Err(format!("{other} is no partition; for example 1, \"1\", [1, 2] or \"*\"")),
        };
        partition_from_decimal(text.as_bytes())
            .ok_or_else(|| format!("'{}' is no partition; for example 1, \"1\", [1, 2] or \"*\"", text.escape_debug()))
    };
    match value {
        Value::String(text) if text == "*" => Ok(Partitions::All),
        Value::Array(list) => list.iter().map(one).collect::<Result<_, _>>().map(Partitions::Some),
        single => one(single).map(|partition| Partitions::Some(vec![partition])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_the_default() {
        assert_eq!(parse("f", &sample_json()), Ok(Settings::default()));
        assert_eq!(parse("f", "{}"), Ok(Settings::default()));
        assert!(sample_json().contains("\"metrics_addr\": \":9091\""));
    }

    #[test]
    fn partitions_have_four_spellings() {
        let read = |text: &str| parse("f", &format!("{{\"partition\": {text}}}")).map(|settings| settings.partition);
        assert_eq!(read("3"), Ok(Partitions::Some(vec![3])));
        assert_eq!(read("\"3\""), Ok(Partitions::Some(vec![3])));
        assert_eq!(read("[1, \"16\"]"), Ok(Partitions::Some(vec![1, 16])));
        assert_eq!(read("\"*\""), Ok(Partitions::All));
        for wrong in ["0", "17", "-1", "1.5", "\"01\"", "\"\"", "null", "true", "[]", "[[1]]", "[1, 1]", "[\"*\"]"] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.starts_with("f:1: partition: "), "{wrong}: {error}");
        }
    }

    #[test]
    fn errors_name_line_and_key() {
        let error = |text: &str| parse("cdc.json", text).unwrap_err().to_string();
        assert_eq!(
            error("{\n\"ouput_dir\": \"x\"}"),
            "cdc.json:2: there is no key 'ouput_dir'\n  did you mean 'output_dir'?"
        );
        assert!(error("{\n\n\"rotate_interval\": \"1x\"}").starts_with("cdc.json:3: rotate_interval: '1x'"));
        assert!(error("{\"rotate_interval\": 60}").contains("for example \"30s\""));
        assert!(error("{\n\"flush_interval\": \"10ms\"}").starts_with("cdc.json:2: flush_interval"));
        assert!(error("{\"max_file_size_mb\": -1}").contains("max_file_size_mb"));
        assert!(error("{\"value_format\": \"xml\"}").contains("text, json, base64"));
        assert!(error("{\"host\": 6379}").contains("not a text"));
    }
}
