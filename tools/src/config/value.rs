//! The kinds of settings: how each is read from JSON and from text, checked and printed.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value as Json;
use turnstone_net::client::Address;

use crate::nearest::nearest;
use crate::units::{parse_duration, parse_size, print_duration, print_size};

/// What a setting may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `host:port` and its short forms.
    Address,
    /// An address, or empty for none.
    OptionalAddress,
    /// `true` or `false`.
    Bool,
    /// A whole number in a range, both ends included.
    Count(u64, u64),
    /// A size in bytes in a range.
    Size(u64, u64),
    /// A duration in a range given in milliseconds.
    Duration(u64, u64),
    /// A path.
    Path,
    /// A name of letters, digits, `-`, `_` and `.`, or empty for none.
    Name,
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// A setting's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Addresses, paths, names and choices.
    Text(String),
    /// A switch.
    Bool(bool),
    /// Counts.
    Count(u64),
    /// Sizes, in bytes.
    Size(u64),
    /// Durations.
    Duration(Duration),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Text(text) => f.write_str(text),
            Value::Bool(bool) => write!(f, "{bool}"),
            Value::Count(number) => write!(f, "{number}"),
            Value::Size(bytes) => f.write_str(&print_size(*bytes)),
            Value::Duration(duration) => f.write_str(&print_duration(*duration)),
        }
    }
}

/// The types that fields of the configuration have.
pub(super) trait Typed: Sized {
    /// The value as this type; `None` if the table gave the field another kind.
    fn typed(value: &Value) -> Option<Self>;
}

impl Typed for String {
    fn typed(value: &Value) -> Option<String> {
        if let Value::Text(text) = value { Some(text.clone()) } else { None }
    }
}

impl Typed for PathBuf {
    fn typed(value: &Value) -> Option<PathBuf> {
        String::typed(value).map(PathBuf::from)
    }
}

impl Typed for bool {
    fn typed(value: &Value) -> Option<bool> {
        if let Value::Bool(bool) = value { Some(*bool) } else { None }
    }
}

impl Typed for u64 {
    fn typed(value: &Value) -> Option<u64> {
        if let Value::Count(number) | Value::Size(number) = value { Some(*number) } else { None }
    }
}

impl Typed for Duration {
    fn typed(value: &Value) -> Option<Duration> {
        if let Value::Duration(duration) = value { Some(*duration) } else { None }
    }
}

impl Kind {
    /// The word that stands for the value in help texts.
    pub const fn placeholder(self) -> &'static str {
        match self {
            Kind::Address | Kind::OptionalAddress => "ADDRESS",
            Kind::Bool => "BOOL",
            Kind::Count(..) => "N",
            Kind::Size(..) => "SIZE",
            Kind::Duration(..) => "DURATION",
            Kind::Path => "PATH",
            Kind::Name => "NAME",
            Kind::Choice(_) => "WORD",
        }
    }

    /// A value that would be right.
    const fn example(self) -> &'static str {
        match self {
            Kind::Address => "\":6379\"",
            Kind::OptionalAddress => "\":9090\"",
            Kind::Bool => "true",
            Kind::Count(..) => "16",
            Kind::Size(..) => "\"64MB\"",
            Kind::Duration(..) => "\"30s\"",
            Kind::Path => "\"certs/server.crt\"",
            Kind::Name => "\"node-1\"",
            Kind::Choice(_) => "a word",
        }
    }

    /// Reads a value from a settings file. Sizes may be plain numbers of bytes and ports plain numbers; otherwise numbers
    /// and switches are written bare and everything else in quotes.
    pub(super) fn read_json(self, json: &Json) -> Result<Value, String> {
        match (self, json) {
            (Kind::Bool, Json::Bool(bool)) => Ok(Value::Bool(*bool)),
            (Kind::Count(..) | Kind::Size(..) | Kind::Address, Json::Number(number)) => {
                self.read_text(&number.to_string())
            }
            (Kind::Bool | Kind::Count(..), _) => Err(self.wrong_type(json)),
            (_, Json::String(text)) => self.read_text(text),
            _ => Err(self.wrong_type(json)),
        }
    }

    fn wrong_type(self, json: &Json) -> String {
        let mut shown: String = json.to_string().chars().take(60).collect();
        if shown.len() < json.to_string().len() {
            shown.push('…');
        }
        format!("{shown} is not {}; for example {}", self.describe(), self.example())
    }

    const fn describe(self) -> &'static str {
        match self {
            Kind::Address | Kind::OptionalAddress => "an address",
            Kind::Bool => "true or false",
            Kind::Count(..) => "a whole number",
            Kind::Size(..) => "a size",
            Kind::Duration(..) => "a duration",
            Kind::Path => "a path",
            Kind::Name => "a name",
            Kind::Choice(_) => "a word",
        }
    }

    /// Reads a value from a flag or a variable.
    pub(super) fn read_text(self, text: &str) -> Result<Value, String> {
        let shown = text.escape_debug();
        match self {
            Kind::OptionalAddress if text.is_empty() => Ok(Value::Text(String::new())),
            Kind::Address | Kind::OptionalAddress => match text.parse::<Address>() {
                Ok(_) => Ok(Value::Text(text.to_owned())),
                Err(error) => Err(error.to_string()),
            },
            Kind::Bool => match text {
                "true" => Ok(Value::Bool(true)),
                "false" => Ok(Value::Bool(false)),
                _ => Err(format!("'{shown}' is neither true nor false")),
            },
            Kind::Count(least, most) => {
                let number = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok());
                match number.flatten() {
                    Some(number) if (least..=most).contains(&number) => Ok(Value::Count(number)),
                    Some(number) => Err(format!("{number} is out of range; it must be {least} to {most}")),
                    None => Err(format!("'{shown}' is no whole number; it must be {least} to {most}")),
                }
            }
            Kind::Size(least, most) => {
                let bytes = parse_size(text).map_err(|error| error.to_string())?;
                if (least..=most).contains(&bytes) {
                    return Ok(Value::Size(bytes));
                }
                let (least, most) = (print_size(least), print_size(most));
                Err(format!("{} is out of range; it must be {least} to {most}", print_size(bytes)))
            }
            Kind::Duration(least, most) => {
                let duration = parse_duration(text).map_err(|error| error.to_string())?;
                let (least, most) = (Duration::from_millis(least), Duration::from_millis(most));
                if (least..=most).contains(&duration) {
                    return Ok(Value::Duration(duration));
                }
                let (least, most) = (print_duration(least), print_duration(most));
                Err(format!("{} is out of range; it must be {least} to {most}", print_duration(duration)))
            }
            Kind::Path if text.is_empty() || text.contains('\0') => {
                Err(format!("'{shown}' is no path; for example certs/server.crt"))
            }
            Kind::Path => Ok(Value::Text(text.to_owned())),
            Kind::Name => {
                let right = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
                if text.len() <= 128 && text.bytes().all(right) {
                    return Ok(Value::Text(text.to_owned()));
                }
                Err(format!("'{shown}' is no name; write up to 128 letters, digits, '-', '_' or '.'"))
            }
            Kind::Choice(words) => {
                if words.contains(&text) {
                    return Ok(Value::Text(text.to_owned()));
                }
                let hint = nearest(text, words.iter().copied()).map(|word| format!("; did you mean '{word}'?"));
                let hint = hint.unwrap_or_default();
                Err(format!("'{shown}' is none of {}{hint}", words.join(", ")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_types_are_strict() {
        let size = Kind::Size(0, 1 << 30);
        assert_eq!(size.read_json(&json!("10MB")), Ok(Value::Size(10 << 20)));
        assert_eq!(size.read_json(&json!(4096)), Ok(Value::Size(4096)));
        for wrong in [json!(1.5), json!(-1), json!(true), json!(null), json!(["10MB"]), json!({"a": 1})] {
            assert!(size.read_json(&wrong).is_err(), "{wrong}");
        }
        let count = Kind::Count(1, 16);
        assert_eq!(count.read_json(&json!(16)), Ok(Value::Count(16)));
        for wrong in [json!("16"), json!(16.0), json!(1e1), json!(-1), json!(0), json!(17)] {
            assert!(count.read_json(&wrong).is_err(), "{wrong}");
        }
        assert_eq!(Kind::Bool.read_json(&json!(true)), Ok(Value::Bool(true)));
        assert!(Kind::Bool.read_json(&json!("true")).is_err());
        assert!(Kind::Bool.read_json(&json!(1)).is_err());
        let duration = Kind::Duration(1, 1000);
        assert!(duration.read_json(&json!(30)).unwrap_err().contains("\"30s\""));
        assert!(duration.read_json(&json!("2s")).unwrap_err().contains("out of range"));
        assert_eq!(Kind::Address.read_json(&json!(6380)), Ok(Value::Text("6380".to_owned())));
    }

    #[test]
    fn text_types() {
        assert!(Kind::Count(0, 17).read_text("+1").is_err());
        assert!(Kind::Count(0, 17).read_text("").is_err());
        assert!(Kind::Path.read_text("").is_err());
        assert!(Kind::Name.read_text("a b").is_err());
        assert!(Kind::Name.read_text("").is_ok());
        let level = Kind::Choice(&["error", "warn", "info", "debug"]);
        assert_eq!(level.read_text("info"), Ok(Value::Text("info".to_owned())));
        assert!(level.read_text("wran").unwrap_err().contains("did you mean 'warn'?"));
        assert!(Kind::OptionalAddress.read_text("").is_ok());
        assert!(Kind::Address.read_text("").is_err());
    }
}
