//! A settings file read strictly: one object, every key once, every key with its line.
//!
//! `serde_json` checks the syntax and reads the values, but keeps neither lines nor repeated keys. So a scan over the
//! text, which is known to be well-formed by then, finds where each key of the outermost object stands.

use serde_json::Value;

use crate::config::ConfigError;
use crate::nearest::nearest;

/// One key of a settings file.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The line it stands on, starting at 1.
    pub line: usize,
    /// Its value.
    pub value: Value,
}

/// Reads the text of a settings file. `file` is how errors name it.
pub fn parse(file: &str, text: &str) -> Result<Vec<Entry>, ConfigError> {
    let whole: Value = serde_json::from_str(text).map_err(|error| {
        ConfigError::new(
            format!("{file}:{}:{}", error.line().max(1), error.column()),
            format!("this is no JSON: {}", without_position(&error)),
        )
    })?;
    if !whole.is_object() {
        return Err(ConfigError::new(format!("{file}:1"), "a settings file is one JSON object: { \"key\": value, … }"));
    }
    let mut scan = Scan { bytes: text.as_bytes(), at: 0 };
    let mut entries: Vec<Entry> = Vec::new();
    scan.blanks();
    scan.at += 1;
    loop {
        scan.blanks();
        match scan.bytes.get(scan.at) {
            Some(b',') => scan.at += 1,
            Some(b'"') => {
                let line = scan.line();
                let key = scan.token();
                scan.blanks();
                scan.at += 1;
                scan.blanks();
                let value = scan.value();
                let read = |range: std::ops::Range<usize>| text.get(range).unwrap_or_default();
                let here = || format!("{file}:{line}");
                let broken = |_| ConfigError::new(here(), "this key or its value cannot be read");
                let key: String = serde_json::from_str(read(key)).map_err(broken)?;
                let value: Value = serde_json::from_str(read(value)).map_err(broken)?;
                if let Some(first) = entries.iter().find(|entry| entry.key == key) {
                    return Err(ConfigError::new(
                        here(),
                        format!("'{}' is set a second time; line {} has it already", key.escape_debug(), first.line),
                    ));
                }
                entries.push(Entry { key, line, value });
            }
            _ => return Ok(entries),
        }
    }
}

/// Keys that another program of the same protocol has, and what stands for them here.
pub type Replaced = (&'static str, &'static str);

/// Refuses keys that nobody knows, all of them at once, each with what it may have been meant to be.
pub fn refuse_unknown(file: &str, entries: &[Entry], known: &[&str], replaced: &[Replaced]) -> Result<(), ConfigError> {
    let advice = |entry: &Entry| {
        let key = entry.key.as_str();
        match replaced.iter().find(|(old, _)| *old == key) {
            Some((_, instead)) => Some((*instead).to_string()),
            None => nearest(key, known.iter().copied()).map(|right| format!("did you mean '{right}'?")),
        }
    };
    let mut unknown = entries.iter().filter(|entry| !known.contains(&entry.key.as_str()));
    let Some(first) = unknown.next() else { return Ok(()) };
    let name = |entry: &Entry| format!("there is no key '{}'", entry.key.escape_debug());
    let error = ConfigError::new(format!("{file}:{}", first.line), name(first));
    let others = unknown.map(|entry| {
        let advice = advice(entry).map(|text| format!(": {text}")).unwrap_or_default();
        format!("{file}:{}: {}{advice}", entry.line, name(entry))
    });
    let hints: Vec<String> = advice(first).into_iter().chain(others).collect();
    Err(if hints.is_empty() { error } else { error.with_hint(hints.join("\n  ")) })
}

/// serde_json ends its texts with the position, which the place of the error names already.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((text, _)) => text.to_owned(),
        None => text,
    }
}

struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn line(&self) -> usize {
        1 + self.bytes[..self.at].iter().filter(|byte| **byte == b'\n').count()
    }

    fn blanks(&mut self) {
        while matches!(self.bytes.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Passes a string, with its quotes.
    fn token(&mut self) -> std::ops::Range<usize> {
        let start = self.at;
        self.at += 1;
        while let Some(byte) = self.bytes.get(self.at) {
            self.at += if *byte == b'\\' { 2 } else { 1 };
            if *byte == b'"' {
                break;
            }
        }
        start..self.at
    }

    /// Passes a value, up to the comma or brace behind it.
    fn value(&mut self) -> std::ops::Range<usize> {
        let start = self.at;
        let mut depth = 0_usize;
        while let Some(byte) = self.bytes.get(self.at) {
            match byte {
                b'"' => {
                    self.token();
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b',' | b'}' if depth == 0 => break,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            self.at += 1;
        }
        start..self.at
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_have_lines_and_values() {
        let text = "{\n  \"a\": 1, \"b\" : \"x,}\\\"y\",\n\n  \"c\\u0064\":\n [1, {\"a\": \"]\"}, \"}\"]\n}\n";
        let entries = parse("f", text).unwrap();
        let seen: Vec<_> = entries.iter().map(|entry| (entry.key.as_str(), entry.line)).collect();
        assert_eq!(seen, [("a", 2), ("b", 2), ("cd", 4)]);
        assert_eq!(entries[1].value, json!("x,}\"y"));
        assert_eq!(entries[2].value, json!([1, {"a": "]"}, "}"]));
        assert_eq!(parse("f", " {} ").unwrap(), []);
    }

    #[test]
    fn repeated_keys_are_refused() {
        let error = parse("f.json", "{\"a\": 1,\n\"b\": 2,\n\"\\u0061\": 3}").unwrap_err();
        assert_eq!(error.to_string(), "f.json:3: 'a' is set a second time; line 1 has it already");
        // Inside a value the same name may stand again.
        assert!(parse("f", "{\"a\": {\"a\": 1}}").is_ok());
    }

    #[test]
    fn broken_files_are_refused_with_line_and_column() {
        let error = parse("f.json", "{\n  \"a\": 1\n  \"b\": 2\n}").unwrap_err().to_string();
        assert!(error.starts_with("f.json:3:3: this is no JSON: expected `,` or `}`"), "{error}");
        for text in ["", "[]", "1", "{", "{\"a\"}", "{\"a\":1,}", "{} {}", "// x\n{}", "{'a':1}"] {
            assert!(parse("f", text).is_err(), "{text}");
        }
        assert!(parse("f", &"[".repeat(100_000)).is_err());
    }
}
