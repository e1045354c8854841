//! Names of files in a partition's directory: a kind and a number in hexadecimal, so that a listing sorts by age.

/// The manifest.
pub const MANIFEST: &str = "manifest";
/// The manifest that is being written.
pub const MANIFEST_NEW: &str = "manifest.new";

/// Space kept ready for a manifest that frees space.
pub const MANIFEST_SPARE: &str = "manifest.spare";

/// Space set aside for a manifest that must not fail.
pub const MANIFEST_RESERVED: &str = "manifest.reserved";

/// What says which log segment is the newest one.
pub const LOG_END: &str = "log-end";

/// A log segment.
pub fn segment(number: u32) -> String {
    format!("wal-{number:08x}")
}
/// A segment that waits to be used.
pub fn spare(number: u32) -> String {
    format!("spare-{number:08x}")
}
/// A value-log file.
pub fn values(number: u32) -> String {
    format!("values-{number:08x}")
}
/// A run.
pub fn run(number: u32) -> String {
    format!("run-{number:08x}")
}

/// What was cut off the log, for people.
pub fn cut(number: u32) -> String {
    format!("cut-{number:08x}.txt")
}

/// The number in `name` if it is `kind` (`wal`, `spare`, `values`, `run`).
pub fn number(name: &str, kind: &str) -> Option<u32> {
    let digits = name.strip_prefix(kind)?.strip_prefix('-')?;
    if digits.len() != 8 {
        return None;
    }
    u32::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_their_numbers() {
        assert_eq!(number(&segment(0x1f), "wal"), Some(0x1f));
        assert_eq!(number(&values(7), "wal"), None);
        assert_eq!(number("wal-7", "wal"), None);
    }
}
