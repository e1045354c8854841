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

/// The same for the options in front of a command, whose words stay as they are. `with_value`: options whose value is the next word.
pub fn two_dashes_before_command(words: impl IntoIterator<Item = OsString>, with_value: &[&str]) -> Vec<OsString> {
    let mut words = words.into_iter();
    let mut out: Vec<OsString> = words.next().into_iter().collect();
    while let Some(word) = words.next() {
        if !word.to_str().is_some_and(|text| text.starts_with('-') && text != "--") {
            out.push(word);
            break;
        }
        let option = two_dashes([word]);
        let takes = |name: &&str| option[0].to_str().and_then(|text| text.strip_prefix("--")) == Some(*name);
        let value = if with_value.iter().any(takes) { words.next() } else { None };
        out.extend(option.into_iter().chain(value));
    }
    out.extend(words);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_keeps_its_dashes() {
        let out = |words: &[&str]| two_dashes_before_command(words.iter().map(OsString::from), &["home", "host"]);
        let words = ["cli", "-home", "-x", "-admin", "--host", "a:1", "set", "-home", "-admin"];
        let wanted = ["cli", "--home", "-x", "--admin", "--host", "a:1", "set", "-home", "-admin"];
        assert_eq!(out(&words), wanted.map(OsString::from));
        assert_eq!(out(&["cli", "-home=d", "--", "-raw"]), ["cli", "--home=d", "--", "-raw"].map(OsString::from));
    }

    #[test]
    fn names_get_their_second_dash_and_nothing_else_does() {
        let words = ["x", "-home", "a", "-c50", "-c", "5", "-n=5", "-ratio=-1", "-1", "--json", "--", "-home"];
        let out = two_dashes(words.map(OsString::from));
        let wanted = ["x", "--home", "a", "-c50", "-c", "5", "-n=5", "--ratio=-1", "-1", "--json", "--", "-home"];
        assert_eq!(out, wanted.map(OsString::from));
    }
}
