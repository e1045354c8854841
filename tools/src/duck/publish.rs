//! What others get of the database while it is loaded: a copy that they can open, and Parquet files.

use super::store::{ROW_GROUP, Store, quoted};
use duckdb::{AccessMode, Config, Connection};
use serde_json::json;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

fn failed(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Puts a consistent copy of the database in the place of `target`, which others may have open: they keep what they have.
///
/// DuckDB writes the copy itself. To copy the file by hand would drop the lock that keeps a second writer out: any handle
/// that is closed on a file gives back all locks of its process on it (fcntl(2)).
pub fn copy(store: &Store, target: &Path) -> Result<(), String> {
    let draft = beside(target, ".new");
    for old in [draft.clone(), beside(&draft, ".wal")] {
        match fs::remove_file(&old) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(&old, &error)),
            _ => {}
        }
    }
    store.run(&format!("ATTACH '{}' AS published (ROW_GROUP_SIZE {ROW_GROUP})", quoted(&draft)))?;
    let copied = store.run("COPY FROM DATABASE changes TO published; CHECKPOINT published");
    let detached = store.run("DETACH published");
    copied.and(detached)?;
    let flushed = File::open(&draft).and_then(|file| file.sync_all());
    flushed.and_then(|()| fs::rename(&draft, target)).map_err(|error| failed(target, &error))
}

/// Writes the history as Parquet, `partition=/date=`, with a manifest, in the place of an earlier export. Answers its rows.
pub fn export(store: &Store, target: &Path) -> Result<u64, String> {
    // Without a slash at its end, or what stands beside it would stand in it.
    let target: &Path = &target.components().collect::<PathBuf>();
    let manifest = target.join("manifest.json");
    let is_empty = fs::read_dir(target).map_or(true, |mut entries| entries.next().is_none());
    if !is_empty && !manifest.exists() {
        return Err(format!(
            "--export: {} holds something else than an export; name another directory",
            target.display()
        ));
    }
    let draft = beside(target, ".new");
    remove(&draft)?;
    fs::create_dir_all(&draft).map_err(|error| failed(&draft, &error))?;
    store.run(&format!(
        "COPY (SELECT *, coalesce(strftime(ts, '%Y-%m-%d'), 'unknown') AS date FROM turnstone_history
               ORDER BY partition, date, version, n)
         TO '{}' (FORMAT parquet, PARTITION_BY (partition, date), OVERWRITE_OR_IGNORE, FILENAME_PATTERN 'part-{{i}}')",
        quoted(&draft)
    ))?;
    let rows = store.number("SELECT count(*) FROM turnstone_history")?;
    let mut files = Vec::new();
    list(&draft, &draft, &mut files)?;
    files.sort();
    let described = json!({ "format": 1, "rows": rows, "partitions": store.positions()?, "files": files });
    let path = draft.join("manifest.json");
    fs::write(&path, format!("{described:#}\n")).map_err(|error| failed(&path, &error))?;
    let old = beside(target, ".old");
    remove(&old)?;
    if target.exists() {
        fs::rename(target, &old).map_err(|error| failed(target, &error))?;
    }
    fs::rename(&draft, target).map_err(|error| failed(target, &error))?;
    remove(&old)?;
    Ok(rows)
}

fn remove(directory: &Path) -> Result<(), String> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(directory, &error)),
        _ => Ok(()),
    }
}

/// Files below a directory, flushed, with their paths from `root` on.
fn list(root: &Path, directory: &Path, files: &mut Vec<String>) -> Result<(), String> {
    for entry in fs::read_dir(directory).map_err(|error| failed(directory, &error))? {
        let path = entry.map_err(|error| failed(directory, &error))?.path();
        if path.is_dir() {
            list(root, &path, files)?;
        } else {
            File::open(&path).and_then(|file| file.sync_all()).map_err(|error| failed(&path, &error))?;
            let name = path.strip_prefix(root).unwrap_or(&path);
            files.push(name.display().to_string());
        }
    }
    Ok(())
}

/// Passes JSON on in which `NaN` and infinities, as DuckDB writes them, are `null`: they are no JSON.
struct Strict<W: Write> {
    out: W,
    in_text: bool,
    escaped: bool,
    /// A number or a word that may go on.
    word: Vec<u8>,
    ready: Vec<u8>,
}

impl<W: Write> Strict<W> {
    fn new(out: W) -> Strict<W> {
        Strict { out, in_text: false, escaped: false, word: Vec::new(), ready: Vec::new() }
    }

    fn end_word(&mut self) {
        let word = self.word.strip_prefix(b"-").unwrap_or(&self.word);
        let is_none = [b"nan".as_slice(), b"inf", b"infinity"].iter().any(|none| word.eq_ignore_ascii_case(none));
        self.ready.extend_from_slice(if is_none { b"null" } else { &self.word });
        self.word.clear();
    }

    fn finish(&mut self) -> std::io::Result<()> {
        self.end_word();
        self.flush()
    }
}

impl<W: Write> Write for Strict<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        for byte in bytes {
            if self.in_text {
                self.in_text = self.escaped || *byte != b'"';
                self.escaped = !self.escaped && *byte == b'\\';
                self.ready.push(*byte);
            } else if byte.is_ascii_alphanumeric() || b"+-.".contains(byte) {
                self.word.push(*byte);
            } else {
                self.end_word();
                self.in_text = *byte == b'"';
                self.ready.push(*byte);
            }
        }
        self.out.write_all(&self.ready)?;
        self.ready.clear();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.write_all(&self.ready)?;
        self.ready.clear();
        self.out.flush()
    }
}

/// Answers a query to standard output, a JSON object for each row; the database is not changed.
pub fn answer(db: &Path, sql: &str) -> Result<(), String> {
    let config = Config::default().access_mode(AccessMode::ReadOnly).map_err(|error| error.to_string())?;
    let connection = Connection::open_with_flags(db, config).map_err(|error| format!("{}: {error}", db.display()))?;
    let sql = sql.trim().trim_end_matches(';');
    // By way of a pipe: DuckDB would open /dev/stdout anew, and what a file had that output is appended to would be gone.
    let (mut reader, writer) = std::io::pipe().map_err(|error| error.to_string())?;
    let target = format!("/dev/fd/{}", writer.as_raw_fd());
    std::thread::scope(|scope| {
        let passed = scope.spawn(move || {
            let mut out = Strict::new(std::io::stdout().lock());
            let copied = std::io::copy(&mut reader, &mut out);
            copied.and_then(|bytes| out.finish().map(|()| bytes))
        });
        let copy = format!("COPY (FROM (\n{sql}\n)) TO '{target}' (FORMAT json, USE_TMP_FILE false)");
        let asked = connection.execute_batch(&copy).map_err(|error| error.to_string());
        drop(writer);
        match passed.join().unwrap_or_else(|_| Err(std::io::Error::other("a thread has panicked"))) {
            // Whoever reads may have enough before the end; DuckDB then fails, too.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(format!("standard output: {error}")),
            Ok(_) => asked,
        }
    })
}
