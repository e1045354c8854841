//! A line split into words, quoted as in a shell.
//!
//! * Outside quotes a backslash takes the next character as it is.
//! * `'…'` takes everything as it is.
//! * `"…"` knows `\"`, `\\`, `\n`, `\r`, `\t`, `\0` and `\xHH`; any other backslash is an error, so that a mistyped escape
//!   does not become data.
//! * Adjoining parts are one word: `a'b'"c"` is `abc`. `""` is an empty word.

use std::fmt;

/// Why a line has no words. Columns count bytes from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WordError {
    /// A quote was opened and not closed.
    Unclosed {
        /// The quote.
        quote: char,
        /// Where it was opened.
        column: usize,
    },
    /// A backslash at the end of the line.
    LoneBackslash,
    /// A backslash in double quotes with something behind it that is no escape.
    BadEscape {
        /// Where the backslash stands.
        column: usize,
    },
}

impl fmt::Display for WordError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WordError::Unclosed { quote, column } => {
                write!(f, "the {quote} in column {column} is not closed; to write one as it is, put \\ before it")
            }
            WordError::LoneBackslash => write!(f, "the line ends in a backslash; to write one as it is, double it"),
            WordError::BadEscape { column } => write!(
                f,
                "the backslash in column {column} begins no escape; in double quotes there are \\\" \\\\ \\n \\r \\t \\0 and \
                 \\xHH"
            ),
        }
    }
}

impl std::error::Error for WordError {}

/// Splits a line into words.
pub fn split(line: &[u8]) -> Result<Vec<Vec<u8>>, WordError> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut at = 0;
    while let Some(&byte) = line.get(at) {
        let column = at + 1;
        at += 1;
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => words.extend(word.take()),
            b'\\' => {
                let next = line.get(at).ok_or(WordError::LoneBackslash)?;
                if next.is_ascii_alphanumeric() {
                    // `\x00` means a byte within double quotes only; to take it for the letters would store nonsense.
                    return Err(WordError::BadEscape { column });
                }
                word.get_or_insert_default().push(*next);
                at += 1;
            }
            b'\'' => {
                let length = line[at..].iter().position(|byte| *byte == b'\'');
                let length = length.ok_or(WordError::Unclosed { quote: '\'', column })?;
                word.get_or_insert_default().extend_from_slice(&line[at..at + length]);
                at += length + 1;
            }
            b'"' => at = double_quoted(line, at, word.get_or_insert_default())?,
            _ => word.get_or_insert_default().push(byte),
        }
    }
    words.extend(word);
    Ok(words)
}

/// Reads from behind an opening quote and gives the place behind the closing one.
fn double_quoted(line: &[u8], start: usize, word: &mut Vec<u8>) -> Result<usize, WordError> {
    let mut at = start;
    // The opening quote stands at start - 1, which is column `start`.
    let unclosed = WordError::Unclosed { quote: '"', column: start };
    loop {
        let Some(&byte) = line.get(at) else {
            return Err(unclosed);
        };
        at += 1;
        match byte {
            b'"' => return Ok(at),
            b'\\' => {
                let bad = WordError::BadEscape { column: at };
                let Some(&escape) = line.get(at) else {
                    return Err(unclosed);
                };
                at += 1;
                word.push(match escape {
                    b'"' | b'\\' => escape,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'0' => 0,
                    b'x' => {
                        let digit = |at: usize| line.get(at).and_then(|byte| char::from(*byte).to_digit(16));
                        let (Some(high), Some(low)) = (digit(at), digit(at + 1)) else {
                            return Err(bad);
                        };
                        at += 2;
                        // Two hexadecimal digits are at most 255.
                        (high * 16 + low) as u8
                    }
                    _ => return Err(bad),
                });
            }
            _ => word.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<Vec<u8>> {
        split(line.as_bytes()).unwrap()
    }

    #[test]
    fn quoting() {
        assert_eq!(
            words("set mykey \"Hello Turnstone\""),
            [b"set".to_vec(), b"mykey".into(), b"Hello Turnstone".into()]
        );
        assert_eq!(words("  a \t b\r\n"), [b"a", b"b"]);
        assert_eq!(words(""), Vec::<Vec<u8>>::new());
        assert_eq!(words("'' \"\""), [b"", b""]);
        assert_eq!(words("a'b c'\"d\"e"), [b"ab cde"]);
        assert_eq!(words(r"a\ b \'"), [b"a b".to_vec(), b"'".into()]);
        assert_eq!(words(r"'\x00'"), [br"\x00"]);
        assert_eq!(words(r#""\x00\xfF\n\r\t\0\"\\""#), [b"\0\xff\n\r\t\0\"\\"]);
        assert_eq!(words("é 'ü'"), ["é".as_bytes(), "ü".as_bytes()]);
        assert_eq!(split(b"\xff \xfe").unwrap(), [b"\xff", b"\xfe"]);
    }

    #[test]
    fn errors_name_the_column() {
        assert_eq!(split(b"get \"abc"), Err(WordError::Unclosed { quote: '"', column: 5 }));
        assert_eq!(split(b"get 'abc"), Err(WordError::Unclosed { quote: '\'', column: 5 }));
        assert_eq!(split(b"get \"abc\\"), Err(WordError::Unclosed { quote: '"', column: 5 }));
        assert_eq!(split(b"get abc\\"), Err(WordError::LoneBackslash));
        for line in [r#"a "\q""#, r#"a "\x""#, r#"a "\x1""#, r#"a "\x1g""#, r#"a "\xg1""#] {
            assert_eq!(split(line.as_bytes()), Err(WordError::BadEscape { column: 4 }), "{line}");
        }
    }
}
