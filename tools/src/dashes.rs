//! Long flags with one dash, as the original's programs take them.

use std::ffi::OsString;

/// `-ratio` becomes `--ratio`: clap would take it for `-r -a -t …`. Words after `--` and values stay as they are.
pub fn two_dashes(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut end = false;
    let rewrite = |word: OsString| {
        let Some(text) = word.to_str() else { return word };
        end |= text == "--";
        let name = text.strip_prefix('-').unwrap_or("").split('=').next().unwrap_or("");
        let long = name.len() > 1 && name.starts_with(|c: char| c.is_ascii_alphabetic());
        // -c50 is short for -c 50: letters alone make a name.
        let letters = name.chars().all(|c| c.is_ascii_alphabetic() || c == '-');
        if long && letters && !end { OsString::from(format!("-{text}")) } else { word }
    };
    words.into_iter().map(rewrite).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_their_second_dash_and_nothing_else_does() {
        let words = ["x", "-home", "a", "-c50", "-c", "5", "-n=5", "-ratio=-1", "-1", "--json", "--", "-home"];
        let out = two_dashes(words.map(OsString::from));
        let wanted = ["x", "--home", "a", "-c50", "-c", "5", "-n=5", "--ratio=-1", "-1", "--json", "--", "-home"];
        assert_eq!(out, wanted.map(OsString::from));
    }
}
