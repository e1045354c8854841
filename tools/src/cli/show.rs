//! Values as people see them.

use std::fmt::Write;

/// Text as it is; anything else with `\xHH` for the bytes that are no text.
///
/// Control characters besides tab and newline are escaped too, so that a stored value cannot steer the terminal. If
/// anything is escaped, backslashes are doubled: the result can then be typed back between double quotes.
pub fn show(value: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(value)
        && !text.chars().any(unprintable)
    {
        return text.to_owned();
    }
    let mut shown = String::with_capacity(value.len() * 2);
    for chunk in value.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => shown.push_str("\\\\"),
                '"' => shown.push_str("\\\""),
                '\n' => shown.push_str("\\n"),
                '\t' => shown.push_str("\\t"),
                c if unprintable(c) => hex(&mut shown, c.encode_utf8(&mut [0; 4]).as_bytes()),
                c => shown.push(c),
            }
        }
        hex(&mut shown, chunk.invalid());
    }
    shown
}

fn unprintable(c: char) -> bool {
    c.is_control() && c != '\n' && c != '\t'
}

fn hex(shown: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing into a String cannot fail.
        let _ = write!(shown, "\\x{byte:02x}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::words::split;

    #[test]
    fn text_stays_and_bytes_are_escaped() {
        assert_eq!(show(b"Hello Turnstone"), "Hello Turnstone");
        assert_eq!(show("größe\n\t\\x".as_bytes()), "größe\n\t\\x");
        assert_eq!(show(b"a\xff\\"), "a\\xff\\\\");
        assert_eq!(show(b"\x1b[2J"), "\\x1b[2J");
        assert_eq!(show("\u{9b}2J".as_bytes()), "\\xc2\\x9b2J");
        assert_eq!(show(b""), "");
    }

    #[test]
    fn what_is_escaped_can_be_typed_back() {
        let value: Vec<u8> = (0..=255).collect();
        let line = format!("\"{}\"", show(&value));
        assert_eq!(split(line.as_bytes()).unwrap(), [value]);
    }
}
