//! The rules of the tree, as a test: who may import whom, which names belong to one crate, where `unsafe` may stand,
//! what the root holds, how files look, and whether the links in the prose lead anywhere.
//!
//! Each rule is a function from text to violations, so that it can be run on planted text as well as on the tree: a
//! rule that cannot fail is worthless. A violation names the file, the line and the rule. The scan is simple: it knows
//! comments, strings, paths and `use` trees, not macros or types.

use std::fs;
use std::path::{Path, PathBuf};

const CRATES: [&str; 7] = ["engine", "executor", "net", "replication", "cdc", "tools", "tests"];

/// The fuzz targets' wrappers: a workspace of their own, by the name that the tables below have for it.
const FUZZ: (&str, &str) = ("fuzz", "tests/fuzz/Cargo.toml");

/// Who may import whom. What is not here is forbidden.
const ARROWS: [(&str, &[&str]); 8] = [
    ("engine", &[]),
    ("executor", &["engine"]),
    ("replication", &["engine"]),
    ("net", &["executor", "replication", "engine"]),
    ("cdc", &["net"]),
    ("tools", &["cdc", "net", "executor", "replication", "engine"]),
    ("tests", &["tools", "cdc", "net", "executor", "replication", "engine"]),
    ("fuzz", &["tests"]),
];

/// Which crates may depend on an external one.
const EXTERNALS: [(&str, &[&str]); 24] = [
    ("glommio", &["executor"]),
    ("io-uring", &["executor"]),
    ("futures-lite", &["executor"]),
    ("libc", &["executor", "tests"]),
    ("rustls", &["net", "tests"]),
    ("rcgen", &["net", "tests"]),
    ("x509-parser", &["net", "tests"]),
    ("fjall", &["engine"]),
    ("crc32fast", &["engine", "cdc"]),
    ("base64", &["cdc", "tools", "tests"]),
    ("duckdb", &["tools"]),
    ("indicatif", &["tools"]),
    ("parquet", &["tests"]),
    ("serde", &["cdc"]),
    ("hashbrown", &["engine"]),
    ("clap", &["tools"]),
    ("rustyline", &["tools"]),
    ("hdrhistogram", &["tools"]),
    ("mimalloc", &["tools"]),
    ("mio", &["tools"]),
    ("signal-hook", &["tools"]),
    ("serde_json", &["tools", "cdc", "tests"]),
    ("flume", &["executor", "net", "cdc"]),
    ("libfuzzer-sys", &["fuzz"]),
];

/// Names that may be written only below these folders.
const NAMES: [(&str, &[&str]); 4] = [
    ("glommio", &["executor/"]),
    ("io_uring", &["executor/"]),
    ("rustls", &["net/", "tests/"]),
    ("rcgen", &["net/", "tests/"]),
];

const FJALL_FILE: &str = "engine/src/index/fjall.rs";

/// What the root must hold; besides, it may hold `target` and entries whose name begins with a dot.
const ROOT: [&str; 13] = [
    "Cargo.toml",
    "Cargo.lock",
    "LICENSE",
    "README.md",
    "engine",
    "executor",
    "net",
    "replication",
    "cdc",
    "tools",
    "tests",
    "docs",
    "rustfmt.toml",
];

/// Lint configuration that may be there.
const LINTS: [&str; 2] = ["clippy.toml", "deny.toml"];

const FILE_LINES_MAX: usize = 1_000;
const COLUMNS_MAX: usize = 140;
/// How many lines above an `unsafe` its comment may begin.
const SAFETY_LINES: usize = 6;

#[test]
fn dependency_arrows() {
    let mut violations = Vec::new();
    let crates = CRATES.map(|name| (name, format!("{name}/Cargo.toml")));
    for (name, path) in crates.into_iter().chain([(FUZZ.0, FUZZ.1.to_string())]) {
        let text = read(&root().join(&path));
        violations.extend(check_manifest(name, &path, &text));
        violations.extend(check_planted(name, &path, &text));
    }
    report(violations);
}

#[test]
fn sources() {
    let mut violations = Vec::new();
    let mut count = 0;
    for name in CRATES {
        for path in files(&root().join(name), "rs") {
            violations.extend(check_source(&shown(&path), &read(&path)));
            count += 1;
        }
    }
    assert!(count >= CRATES.len(), "only {count} sources were found below {}", root().display());
    report(violations);
}

#[test]
fn root_entries() {
    let entries = fs::read_dir(root()).unwrap_or_else(|error| panic!("{}: {error}", root().display()));
    let names = entries.map(|entry| match entry {
        Ok(entry) => entry.file_name().to_string_lossy().into_owned(),
        Err(error) => panic!("{}: {error}", root().display()),
    });
    report(check_root(&names.collect::<Vec<_>>()));
}

#[test]
fn links_in_the_prose() {
    let mut pages = files(&root().join("docs"), "md");
    pages.push(root().join("README.md"));
    let mut violations = Vec::new();
    for page in pages {
        let folder = page.parent().map_or_else(root, Path::to_path_buf);
        violations.extend(check_links(&shown(&page), &read(&page), &|target| folder.join(target).exists()));
    }
    report(violations);
}

// ---- The rules.

/// Holds one manifest against the arrows and the table of external crates.
fn check_manifest(name: &str, path: &str, text: &str) -> Vec<String> {
    let allowed = ARROWS.iter().find(|(from, _)| *from == name).map_or(&[][..], |(_, to)| to);
    let mut violations = Vec::new();
    for (line, dependency) in dependencies(text) {
        let internal = CRATES.iter().find(|known| dependency == format!("turnstone-{known}"));
        if let Some(to) = internal {
            if !allowed.contains(to) {
                let list = if allowed.is_empty() { "nothing".to_string() } else { allowed.join(", ") };
                violations.push(format!(
                    "{path}:{line}: dependency arrow: {name} → {to} is forbidden, {name} may import {list}"
                ));
            }
        } else if dependency.starts_with("turnstone-") {
            violations.push(format!("{path}:{line}: dependency arrow: {name} → {dependency}, which is no crate here"));
        } else if let Some((_, owners)) = EXTERNALS.iter().find(|(external, _)| *external == dependency)
            && !owners.contains(&name)
        {
            let owners = owners.join(", ");
            violations.push(format!(
                "{path}:{line}: external crate: {name} → {dependency} is forbidden, only {owners} may depend on it"
            ));
        }
    }
    violations
}

/// Planted bugs are for the fuzz targets: nothing else may turn the feature on.
fn check_planted(name: &str, path: &str, text: &str) -> Vec<String> {
    let mut violations = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = without_comment(line).trim();
        let is_declaration =
            line == "planted = []" || (matches!(name, "tests" | "fuzz") && line.starts_with("planted = ["));
        if line.contains("planted") && !is_declaration {
            let line = number + 1;
            violations
                .push(format!("{path}:{line}: planted bugs: only tests/fuzz may turn them on, by its own feature"));
        }
    }
    violations
}

/// Runs all rules for Rust sources on one file.
fn check_source(path: &str, text: &str) -> Vec<String> {
    let (code, comments) = split(text);
    let tokens = tokens(&code);
    let mut found: Vec<(usize, String)> = Vec::new();
    check_form(text, &mut found);
    check_words(&tokens, &mut found);
    check_names(path, &tokens, &mut found);
    check_unsafe(path, &tokens, &comments, &mut found);
    found.sort();
    found.dedup();
    found.into_iter().map(|(line, message)| format!("{path}:{line}: {message}")).collect()
}

fn check_form(text: &str, found: &mut Vec<(usize, String)>) {
    if !text.starts_with("//!") {
        found.push((1, "module header: the file must begin with a //! comment".into()));
    }
    for (line, content) in text.lines().enumerate() {
        if content.chars().count() > COLUMNS_MAX {
            found.push((line + 1, format!("line width: more than {COLUMNS_MAX} columns")));
        }
        if content.contains('\t') {
            found.push((line + 1, "tab: indent with spaces".into()));
        }
    }
    let lines = text.lines().count();
    if lines > FILE_LINES_MAX {
        found.push((lines, format!("file length: {lines} lines, at most {FILE_LINES_MAX}")));
    }
}

fn check_words(tokens: &[Token], found: &mut Vec<(usize, String)>) {
    for (place, token) in tokens.iter().enumerate() {
        let is = |ahead: usize, text: &str| tokens.get(place + ahead).is_some_and(|token| token.text == text);
        match token.text.as_str() {
            word @ ("dbg" | "todo" | "unimplemented") if is(1, "!") => {
                found.push((token.line, format!("leftover: {word}!")));
            }
            "#" if is(1, "[") && is(2, "ignore") => {
                found.push((token.line, "ignored test: run it or remove it".into()));
            }
            "allow" if is(1, "(") => {
                let lints = tokens[place..].iter().take_while(|token| token.text != ")");
                for lint in lints.filter(|token| token.text == "dead_code" || token.text.starts_with("unused")) {
                    found.push((token.line, format!("allowed lint: allow({}) hides what should go", lint.text)));
                }
            }
            _ => {}
        }
    }
}

/// The names that belong to one crate, and what the crates without input and output must not touch.
fn check_names(path: &str, tokens: &[Token], found: &mut Vec<(usize, String)>) {
    for token in tokens {
        for (name, folders) in NAMES {
            if token.text == name && !folders.iter().any(|folder| path.starts_with(folder)) {
                found.push((token.line, format!("name: {name} may be named only below {}", folders.join(", "))));
            }
        }
    }
    let paths = paths(tokens);
    if path != FJALL_FILE {
        for (line, segments) in paths.iter().filter(|(_, segments)| segments[0] == "fjall") {
            let names = segments.join("::");
            found.push((*line, format!("name: {names}: the crate fjall may be named only in {FJALL_FILE}")));
        }
    }
    let is_pure = path.starts_with("engine/src/") || path.starts_with("replication/src/");
    if is_pure && path != FJALL_FILE {
        for (line, segments) in &paths {
            let module = match segments.as_slice() {
                [first, second, ..] if first == "std" => second.as_str(),
                _ => "",
            };
            if module == "fs" || module == "thread" {
                found.push((*line, format!("outside world: std::{module}: use the seam (Env) instead")));
            }
            if segments.windows(2).any(|pair| pair[0] == "Instant" && pair[1] == "now") {
                found.push((*line, "outside world: Instant::now: time comes through the seam".into()));
            }
            if segments.iter().any(|segment| segment == "SystemTime") {
                found.push((*line, "outside world: SystemTime: time comes through the seam".into()));
            }
        }
    }
    if path.starts_with("engine/") || path.starts_with("replication/") {
        check_hashers(tokens, found);
    }
}

/// Maps and sets with the default hasher differ from run to run.
fn check_hashers(tokens: &[Token], found: &mut Vec<(usize, String)>) {
    let mut in_use = false;
    for (place, token) in tokens.iter().enumerate() {
        let text = |ahead: usize| tokens.get(place + ahead).map_or("", |token| token.text.as_str());
        match token.text.as_str() {
            "use" => in_use = true,
            ";" => in_use = false,
            "RandomState" => found.push((token.line, "default hasher: RandomState differs from run to run".into())),
            name @ ("HashMap" | "HashSet") => {
                let arguments = if name == "HashMap" { 3 } else { 2 };
                let named = match (text(1), text(2)) {
                    (after, _) if in_use => after != "as",
                    ("<", _) => count_arguments(&tokens[place + 1..]) >= arguments,
                    ("::", "<") => count_arguments(&tokens[place + 2..]) >= arguments,
                    ("::", constructor) => {
                        matches!(constructor, "with_hasher" | "with_capacity_and_hasher" | "default")
                    }
                    _ => false,
                };
                if !named {
                    let message = format!("default hasher: name the hasher of this {name}, or take a BTree one");
                    found.push((token.line, message));
                }
            }
            _ => {}
        }
    }
}

/// How many arguments a list has that begins with `<`.
fn count_arguments(tokens: &[Token]) -> usize {
    let mut depth = 0_usize;
    let mut count = 1;
    let mut before = "";
    for (place, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "<" | "(" | "[" => depth += 1,
            ">" if before == "-" => {}
            ">" | ")" | "]" => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    // A comma before the end adds no argument.
                    return if before == "," && place > 0 { count - 1 } else { count };
                }
            }
            "," if depth == 1 => count += 1,
            _ => {}
        }
        before = &token.text;
    }
    count
}

fn check_unsafe(path: &str, tokens: &[Token], comments: &str, found: &mut Vec<(usize, String)>) {
    let is_ring = path.strip_prefix("executor/src/").is_some_and(|rest| {
        rest.starts_with("ring/") || (rest.starts_with("ring") && rest.ends_with(".rs") && !rest.contains('/'))
    });
    let comments: Vec<&str> = comments.lines().collect();
    for token in tokens.iter().filter(|token| token.text == "unsafe") {
        if !is_ring {
            found.push((token.line, "unsafe: only executor/src/ring may hold it".into()));
            continue;
        }
        let first = token.line.saturating_sub(SAFETY_LINES + 1);
        if !comments.iter().take(token.line).skip(first).any(|comment| comment.contains("SAFETY:")) {
            found.push((token.line, format!("unsafe: no SAFETY: comment within the {SAFETY_LINES} lines above")));
        }
    }
}

fn check_root(names: &[String]) -> Vec<String> {
    let mut violations = Vec::new();
    for name in names {
        if !(ROOT.contains(&name.as_str())
            || LINTS.contains(&name.as_str())
            || name == "target"
            || name.starts_with('.'))
        {
            violations.push(format!("{name}:1: root entries: it does not belong into the root"));
        }
    }
    for name in ROOT.iter().filter(|name| !names.iter().any(|there| there == *name)) {
        violations.push(format!("{name}:1: root entries: it is missing from the root"));
    }
    violations.sort();
    violations
}

fn check_links(path: &str, text: &str, exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut violations = Vec::new();
    for (line, target) in links(text) {
        let file = target.split(['#', '?']).next().unwrap_or_default().replace("%20", " ");
        let elsewhere = target.contains("://") || target.starts_with("mailto:");
        if !file.is_empty() && !elsewhere && !exists(&file) {
            violations.push(format!("{path}:{line}: link: {target} leads nowhere"));
        }
    }
    violations
}

// ---- Reading text.

/// The dependencies a manifest names, with their lines; a renamed one by the name of its package.
fn dependencies(text: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut in_section = false;
    let mut in_table = false;
    let mut open_brackets = 0;
    for (number, line) in text.lines().enumerate() {
        let line = without_comment(line).trim();
        if open_brackets == 0 && line.starts_with('[') {
            let section = line.trim_matches(['[', ']']);
            let (parent, last) = section.rsplit_once('.').unwrap_or(("", section));
            in_section = last.ends_with("dependencies");
            in_table = parent.ends_with("dependencies");
            if in_table {
                found.push((number + 1, unquoted(last).to_string()));
            }
            continue;
        }
        if open_brackets == 0
            && let Some((key, value)) = line.split_once('=')
        {
            if in_section {
                let name = unquoted(key.split('.').next().unwrap_or(key).trim());
                let renamed = value.split_once("package").and_then(|(_, rest)| rest.split('"').nth(1));
                let renamed = if key.trim().ends_with(".package") { value.split('"').nth(1) } else { renamed };
                found.push((number + 1, renamed.unwrap_or(name).to_string()));
            } else if in_table
                && key.trim() == "package"
                && let Some(last) = found.last_mut()
            {
                last.1 = unquoted(value.trim()).to_string();
            }
        }
        let count = |bracket: &[char]| line.matches(bracket).count() as i64;
        open_brackets = (open_brackets + count(&['[', '{']) - count(&[']', '}'])).max(0);
    }
    found
}

fn without_comment(line: &str) -> &str {
    let mut quoted = false;
    for (place, character) in line.char_indices() {
        match character {
            '"' => quoted = !quoted,
            '#' if !quoted => return &line[..place],
            _ => {}
        }
    }
    line
}

fn unquoted(text: &str) -> &str {
    text.trim_matches(['"', '\''])
}

/// Splits a source into its code and its comments. Both keep the lines of the source; whatever does not belong is
/// blank, the insides of strings and characters in both.
fn split(text: &str) -> (String, String) {
    let source: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut comments = String::with_capacity(text.len());
    let mut place = 0;
    while place < source.len() {
        let rest = &source[place..];
        let after_word = place > 0 && is_word(source[place - 1]);
        let (length, is_comment) = if rest.starts_with(&['/', '/']) {
            (rest.iter().position(|character| *character == '\n').unwrap_or(rest.len()), true)
        } else if rest.starts_with(&['/', '*']) {
            (block_comment(rest), true)
        } else if let Some(length) = raw_string(rest).filter(|_| !after_word) {
            (length, false)
        } else if rest[0] == '"' {
            (quoted(rest, '"'), false)
        } else if rest[0] == '\'' && (rest.get(1) == Some(&'\\') || rest.get(2) == Some(&'\'')) {
            (quoted(rest, '\''), false)
        } else {
            code.push(rest[0]);
            comments.push(if rest[0] == '\n' { '\n' } else { ' ' });
            place += 1;
            continue;
        };
        for character in &rest[..length] {
            let blank = if *character == '\n' { '\n' } else { ' ' };
            code.push(blank);
            comments.push(if is_comment { *character } else { blank });
        }
        place += length;
    }
    (code, comments)
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// The length of a block comment, with those inside it.
fn block_comment(rest: &[char]) -> usize {
    let (mut depth, mut place) = (0, 0);
    while place < rest.len() {
        match &rest[place..] {
            ['/', '*', ..] => (depth, place) = (depth + 1, place + 2),
            ['*', '/', ..] => (depth, place) = (depth - 1, place + 2),
            _ => place += 1,
        }
        if depth == 0 {
            break;
        }
    }
    place
}

/// The length of a raw string, if one begins here.
fn raw_string(rest: &[char]) -> Option<usize> {
    let prefix = match rest {
        ['r', ..] => 1,
        ['b' | 'c', 'r', ..] => 2,
        _ => return None,
    };
    let marks = rest[prefix..].iter().take_while(|character| **character == '#').count();
    let start = prefix + marks + 1;
    if rest.get(start - 1) != Some(&'"') {
        return None;
    }
    let mut ending = vec!['"'];
    ending.resize(marks + 1, '#');
    let inside = rest[start..].windows(ending.len()).position(|window| window == ending);
    Some(inside.map_or(rest.len(), |length| start + length + ending.len()))
}

/// The length of a string or character, with its marks.
fn quoted(rest: &[char], mark: char) -> usize {
    let mut place = 1;
    while place < rest.len() && rest[place] != mark {
        place += if rest[place] == '\\' { 2 } else { 1 };
    }
    (place + 1).min(rest.len())
}

/// A word, a `::`, or any other visible character.
#[derive(Debug, PartialEq)]
struct Token {
    line: usize,
    text: String,
}

fn tokens(code: &str) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let characters: Vec<char> = line.chars().collect();
        let mut place = 0;
        while place < characters.len() {
            let rest = &characters[place..];
            let length = match rest {
                [first, ..] if is_word(*first) => rest.iter().take_while(|next| is_word(**next)).count(),
                [':', ':', ..] => 2,
                _ => 1,
            };
            if !rest[0].is_whitespace() {
                tokens.push(Token { line: number + 1, text: rest[..length].iter().collect() });
            }
            place += length;
        }
    }
    tokens
}

/// All paths of two or more segments, with `use` trees written out; in a `use` those of one segment too.
fn paths(tokens: &[Token]) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    let mut place = 0;
    while place < tokens.len() {
        let token = &tokens[place];
        let before = place.checked_sub(1).map_or("", |before| tokens[before].text.as_str());
        if token.text == "use" || (token.text == "crate" && before == "extern") {
            place = use_tree(tokens, place + 1, &[], &mut found);
        } else if token.text.starts_with(is_word) {
            let mut segments = vec![token.text.clone()];
            while let [separator, next, ..] = &tokens[place + 1..]
                && separator.text == "::"
                && next.text.starts_with(is_word)
            {
                segments.push(next.text.clone());
                place += 2;
            }
            if segments.len() > 1 {
                found.push((token.line, segments));
            }
            place += 1;
        } else {
            place += 1;
        }
    }
    found
}

/// Writes out one branch of a `use` tree; returns the place after it.
fn use_tree(tokens: &[Token], mut place: usize, parents: &[String], found: &mut Vec<(usize, Vec<String>)>) -> usize {
    let mut segments = parents.to_vec();
    let line = tokens.get(place).map_or(0, |token| token.line);
    while let Some(token) = tokens.get(place) {
        match token.text.as_str() {
            "{" => {
                place += 1;
                while tokens.get(place).is_some_and(|token| token.text != "}" && token.text != ";") {
                    let after = use_tree(tokens, place, &segments, found);
                    place = after + usize::from(tokens.get(after).is_some_and(|token| token.text == ","));
                }
                return place + usize::from(tokens.get(place).is_some_and(|token| token.text == "}"));
            }
            "," | "}" | ";" => break,
            "as" => place += 1,
            "::" => {}
            segment => segments.push(segment.to_string()),
        }
        place += 1;
    }
    if !segments.is_empty() {
        found.push((line, segments));
    }
    place
}

/// The targets of all links of a page, outside code.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut fence: Option<&str> = None;
    for (number, line) in text.lines().enumerate() {
        let start = line.trim_start();
        let mark = ["```", "~~~"].into_iter().find(|mark| start.starts_with(mark));
        if mark.is_some() && (fence.is_none() || fence == mark) {
            fence = if fence.is_none() { mark } else { None };
            continue;
        }
        if fence.is_some() {
            continue;
        }
        // Every second piece between back ticks is code.
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("` `");
        for (place, _) in prose.match_indices("](") {
            found.push((number + 1, link_target(&prose[place + 2..])));
        }
        if let Some((label, target)) = prose.trim_start().split_once("]:")
            && label.starts_with('[')
            && !label.starts_with("[^")
        {
            found.push((number + 1, link_target(target.trim_start())));
        }
    }
    found
}

/// The target at the beginning of a text: up to its closing bracket or the space before a title.
fn link_target(text: &str) -> String {
    if let Some((target, _)) = text.strip_prefix('<').and_then(|rest| rest.split_once('>')) {
        return target.to_string();
    }
    let mut depth = 0;
    let end = text.find(|character: char| {
        depth += i32::from(character == '(') - i32::from(character == ')');
        depth < 0 || character.is_whitespace()
    });
    text[..end.unwrap_or(text.len())].to_string()
}

// ---- Reading the tree.

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A path as reports show it: from the root on.
fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// All files with an extension below a folder, in order.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.unwrap_or_else(|error| panic!("{}: {error}", folder.display())).path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                found.extend(files(&path, extension));
            }
        } else if path.extension().is_some_and(|there| there == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn report(violations: Vec<String>) {
    assert!(violations.is_empty(), "{} violations:\n{}", violations.len(), violations.join("\n"));
}

// ---- The rules on planted text.

/// What the rules say about a source of these lines after its header, without the path.
fn planted(path: &str, lines: &str) -> Vec<String> {
    let violations = check_source(path, &format!("//! Header.\n{lines}\n"));
    violations.into_iter().map(|violation| violation.replacen(&format!("{path}:"), "", 1)).collect()
}

/// Every source is refused in its file, at line 2, for a reason that begins so.
fn assert_refused(cases: &[(&str, &str, &str)]) {
    for (path, lines, reason) in cases {
        let violations = planted(path, lines);
        assert!(!violations.is_empty(), "nothing was found in {path}: {lines}");
        for violation in violations {
            assert!(violation.starts_with(&format!("2: {reason}")), "{path}: {lines}: {violation}");
        }
    }
}

fn assert_accepted(cases: &[(&str, &str)]) {
    for (path, lines) in cases {
        assert_eq!(planted(path, lines), [""; 0], "{path}: {lines}");
    }
}

#[test]
fn planted_arrows() {
    let manifest = "[package]\nname = \"turnstone-engine\"\n[dependencies]\nturnstone-net.workspace = true\n";
    assert_eq!(
        check_manifest("engine", "engine/Cargo.toml", manifest),
        ["engine/Cargo.toml:4: dependency arrow: engine → net is forbidden, engine may import nothing"]
    );
    let violations = |name: &str, text: &str| check_manifest(name, "Cargo.toml", text).len();
    for (name, dependency) in [
        ("net", "turnstone-cdc = { path = \"../cdc\" }"),
        ("cdc", "turnstone-engine.workspace = true"),
        ("replication", "turnstone-executor.workspace = true"),
        ("tools", "turnstone-tests.workspace = true"),
        ("tools", "turnstone-else.workspace = true"),
        ("net", "glommio = \"0.9\" # why not"),
        ("net", "other = { package = \"glommio\", version = \"1\" }"),
        ("tools", "libc.workspace = true"),
        ("cdc", "\"rustls\" = \"1\""),
        ("engine", "serde_json = { version = \"1\", features = [\n  \"a\",\n] }"),
        ("tests", "libfuzzer-sys = \"1\""),
        ("fuzz", "turnstone-engine = { path = \"../../engine\" }"),
    ] {
        for section in ["dependencies", "dev-dependencies", "build-dependencies", "target.'cfg(unix)'.dependencies"] {
            assert_eq!(violations(name, &format!("[{section}]\n{dependency}\n")), 1, "{section} {name} {dependency}");
        }
        assert_eq!(violations(name, &format!("[dependencies]\n[lints]\n{dependency}\n")), 0);
        assert_eq!(violations("engine", &format!("[dependencies]\n# {dependency}\n").replace("\n  ", " # ")), 0);
    }
    assert_eq!(violations("net", "[dependencies.glommio]\nversion = \"1\"\n"), 1);
    assert_eq!(violations("net", "[dependencies.other]\npackage = \"io-uring\"\n"), 1);
    assert_eq!(violations("executor", "[dependencies]\nglommio = \"1\"\nlibc = \"1\"\nturnstone-engine = \"1\"\n"), 0);
    assert_eq!(violations("tests", "[dev-dependencies]\nrustls = \"1\"\nturnstone-tools = \"1\"\n"), 0);
}

#[test]
fn planted_features() {
    let violations = |name: &str, text: &str| check_planted(name, "Cargo.toml", text).len();
    assert_eq!(violations("engine", "[features]\nplanted = [] # why\n"), 0);
    assert_eq!(violations("tests", "[features]\nplanted = [\"turnstone-engine/planted\"]\n"), 0);
    assert_eq!(violations("net", "[features]\nplanted = [\"turnstone-engine/planted\"]\n"), 1);
    for text in ["default = [\"planted\"]", "turnstone-net = { path = \"../net\", features = [\"planted\"] }"] {
        assert_eq!(violations("tools", text), 1);
        assert_eq!(violations("fuzz", text), 1);
    }
}

#[test]
fn planted_names() {
    assert_refused(&[
        ("net/src/a.rs", "use glommio::Task;", "name: glommio"),
        ("engine/src/a.rs", "fn f() { io_uring::IoUring::new(8); }", "name: io_uring"),
        ("tools/src/a.rs", "use {std::io, rustls::Stream};", "name: rustls"),
        ("cdc/src/a.rs", "fn f(a: net::rcgen::A) {}", "name: rcgen"),
        ("engine/src/index/mod.rs", "use fjall::Database;", "name: fjall"),
        ("tests/src/a.rs", "fn f() -> fjall::Result<()> {}", "name: fjall"),
        ("tests/src/a.rs", "extern crate fjall;", "name: fjall"),
        ("engine/src/a.rs", "use std::fs;", "outside world: std::fs"),
        ("engine/src/a.rs", "use std::{io, fs::{self, File}};", "outside world: std::fs"),
        ("engine/src/a.rs", "fn f() { ::std::thread::yield_now() }", "outside world: std::thread"),
        ("replication/src/a.rs", "fn f() { let a = Instant::now(); }", "outside world: Instant::now"),
        ("replication/src/a.rs", "use std::time::{Duration, SystemTime};", "outside world: SystemTime"),
        ("engine/src/a.rs", "fn f(a: HashMap<u32, (u8, u8)>) {}", "default hasher"),
        ("engine/src/a.rs", "fn f() { let a = HashMap::new(); }", "default hasher"),
        ("engine/tests/a.rs", "struct A(HashSet<u32,>);", "default hasher"),
        ("engine/src/a.rs", "use std::collections::HashMap as Map;", "default hasher"),
        ("replication/src/a.rs", "use std::hash::{Hash, RandomState};", "default hasher"),
    ]);
    assert_accepted(&[
        ("executor/src/a.rs", "use glommio::Task; use io_uring::IoUring;"),
        ("net/src/a.rs", "use rustls::Stream; use std::{fs, thread}; fn f() { Instant::now(); }"),
        ("tests/src/a.rs", "use rcgen::A; use engine::index::fjall::Index; use std::collections::HashMap;"),
        ("engine/src/a.rs", "// glommio, std::fs\nconst A: &str = \"std::fs\"; /* rustls::A */"),
        ("engine/src/index/fjall.rs", "use fjall::Database; use std::{fs, thread};"),
        ("engine/src/index/mod.rs", "pub mod fjall; pub use self::fjall::Index; use super::{index::fjall};"),
        ("engine/src/a.rs", "use std::collections::HashMap; type A<V> = HashMap<u32, Vec<V>, Fixed>;"),
        ("engine/src/a.rs", "fn f(a: HashMap<u32, fn(u8) -> u8, Fixed>) { HashMap::with_hasher(Fixed); }"),
        ("engine/src/a.rs", "type A = HashMap<u8, u8, BuildHasherDefault<DefaultHasher>>;"),
        ("replication/src/a.rs", "use std::time::Instant; fn f(thread: u32, fs: Instant) { thread.now(); }"),
    ]);
}

#[test]
fn planted_unsafe() {
    let bare = "fn f() { unsafe { g() } }";
    assert_refused(&[
        ("engine/src/a.rs", bare, "unsafe: only"),
        ("executor/src/core.rs", bare, "unsafe: only"),
        ("executor/src/other/ring.rs", bare, "unsafe: only"),
        ("net/src/ring.rs", bare, "unsafe: only"),
        ("executor/src/ring.rs", bare, "unsafe: no SAFETY"),
        ("executor/src/ring/send.rs", "unsafe impl Send for A {} const A: &str = \"SAFETY:\";", "unsafe: no SAFETY"),
    ]);
    let above = |lines: usize| format!("// SAFETY: g allows it.{}{bare}", "\n".repeat(lines));
    assert_accepted(&[
        ("executor/src/ring.rs", &above(1)),
        ("executor/src/ring_log.rs", &above(6)),
        ("executor/src/ring/send.rs", &above(1)),
        ("executor/src/ring/deep/send.rs", "fn f() { unsafe { g() } } // SAFETY: g allows it."),
        ("engine/src/a.rs", "#![forbid(unsafe_code)] // unsafe\nconst A: &str = r#\"unsafe \" unsafe\"#;"),
    ]);
    assert_eq!(planted("executor/src/ring.rs", &above(7)), ["9: unsafe: no SAFETY: comment within the 6 lines above"]);
}

#[test]
fn planted_form() {
    let wide = format!("const A: &str = \"{}\";", "ä".repeat(122));
    assert_refused(&[
        ("net/src/a.rs", "fn f() { dbg!(1); }", "leftover: dbg!"),
        ("net/src/a.rs", "fn f() { todo!() }", "leftover: todo!"),
        ("net/src/a.rs", "fn f() { std::unimplemented!() }", "leftover: unimplemented!"),
        ("net/src/a.rs", "#[ignore = \"slow\"]", "ignored test"),
        ("net/src/a.rs", "#[allow(clippy::all, dead_code)]", "allowed lint: allow(dead_code)"),
        ("net/src/a.rs", "#![allow(unused_variables)]", "allowed lint: allow(unused_variables)"),
        ("net/src/a.rs", "\tfn f() {}", "tab"),
        ("net/src/a.rs", &wide, "line width"),
    ]);
    let fits = format!("const A: &str = \"{}\";", "ä".repeat(121));
    assert_accepted(&[
        ("net/src/a.rs", "fn todo(dbg: bool) {} // todo!() dbg!() #[ignore]"),
        ("net/src/a.rs", "const A: [&str; 2] = [\"dbg!(1)\", \"allow(dead_code)\"];"),
        ("net/src/a.rs", &fits),
        ("net/src/a.rs", &"\n".repeat(FILE_LINES_MAX - 2)),
    ]);
    let long = planted("net/src/a.rs", &"\n".repeat(FILE_LINES_MAX - 1));
    assert_eq!(long, ["1001: file length: 1001 lines, at most 1000"]);
    let headless = check_source("net/src/a.rs", "// Not a header.\n");
    assert_eq!(headless, ["net/src/a.rs:1: module header: the file must begin with a //! comment"]);
}

#[test]
fn planted_root_entries() {
    let mut names: Vec<String> = ROOT.iter().map(ToString::to_string).collect();
    names.extend(["target".to_string(), ".gitignore".to_string()]);
    assert_eq!(check_root(&names), [""; 0]);
    names.retain(|name| name != "LICENSE");
    names.push("scripts".into());
    let expected = ["LICENSE:1: root entries: it is missing from the root"];
    let more = ["scripts:1: root entries: it does not belong into the root"];
    assert_eq!(check_root(&names), [expected, more].concat());
}

#[test]
fn planted_links() {
    let page = "\
[good](a.md) [bad](b.md) [good too](a.md#part)
[far](https://example.org/b.md) [here](#b) [mail](mailto:b@example.org)
`[code](b.md)` and ![picture](b.png \"title\")
```
[fenced](b.md)
```
[label]: <b c.md>
[^1]: b.md is no link
[round](b_(x).md) [space](a%20d.md)
";
    let exists = |target: &str| target == "a.md" || target == "a d.md";
    let expected = [
        "p.md:1: link: b.md leads nowhere",
        "p.md:3: link: b.png leads nowhere",
        "p.md:7: link: b c.md leads nowhere",
        "p.md:9: link: b_(x).md leads nowhere",
    ];
    assert_eq!(check_links("p.md", page, &exists), expected);
}

#[test]
fn code_and_comments_are_told_apart() {
    let text =
        "let a = 'x'; let b: &'a str = \"// no\"; // yes \"\nlet c = '\"'; /* a /* b */ c\n*/ let d = br##\"\"#\"##;";
    let (code, comments) = split(text);
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(words(&code), "let a = ; let b: &'a str = ; let c = ; let d = ;");
    assert_eq!(words(&comments), "// yes \" /* a /* b */ c */");
    assert_eq!((code.lines().count(), comments.lines().count()), (3, 3));
    let escaped = split("let a = \"\\\"unsafe\\\\\"; unsafe");
    assert_eq!(words(&escaped.0), "let a = ; unsafe");
}
