//! Change files on their way into the store: which there are, which is next, and that it is loaded as a whole.

use super::feed;
use super::store::Store;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use turnstone_cdc::output::{epoch_in, sequence_of};
use turnstone_cdc::reader::{self, Line, What};

/// Bytes that are read at once.
const READ: usize = 1 << 20;
/// The lines that a copy begins with are shorter.
const FIRST_LINES_BYTES: u64 = 4096;

/// A finished change file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its partition.
    pub partition: u8,
    /// Its number in the partition's sequence.
    pub number: u64,
    /// Where it is.
    pub path: PathBuf,
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
}

/// The finished files of a directory, by partition, in the order of their numbers.
pub fn finished(directory: &Path) -> Result<BTreeMap<u8, Vec<Found>>, String> {
    let mut all: BTreeMap<u8, Vec<Found>> = BTreeMap::new();
    let failed = |error: std::io::Error| format!("{} cannot be listed: {error}", directory.display());
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let Some((partition, number)) = sequence_of(&name) else { continue };
        // Somebody may take files away while they are looked at.
        let Ok(bytes) = entry.metadata().map(|metadata| metadata.len()) else { continue };
        all.entry(partition).or_default().push(Found { partition, number, path: entry.path(), name, bytes });
    }
    for files in all.values_mut() {
        files.sort_by(|a, b| (a.number, &a.name).cmp(&(b.number, &b.name)));
        if let Some(pair) = files.windows(2).find(|pair| pair[0].number == pair[1].number) {
            return Err(format!(
                "{} and {} have one number: move the one away that is not of this sequence",
                pair[0].name, pair[1].name
            ));
        }
    }
    Ok(all)
}

/// Files of lines with names that this program's consumer does not give: they are passed over. Answers what to tell people, if there
/// are any.
pub fn passed_over(directory: &Path) -> Result<Option<String>, String> {
    let failed = |error: std::io::Error| format!("{} cannot be listed: {error}", directory.display());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".jsonl") && sequence_of(&name).is_none() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names.first().map(|first| {
        format!(
            "passed over {} of {}, {first} the first: `turnstone --mode cdc` names its files cdc-pPP-NUMBER-...jsonl, and \
             others lack what makes loading exact",
            match names.len() {
                1 => "one file".to_string(),
                n => format!("{n} files"),
            },
            directory.display()
        )
    }))
}

/// Whether a file begins with a whole copy, but for what it takes back: nothing of what was before it is needed.
fn begins_with_copy(file: &Found) -> Result<bool, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", file.name);
    let opened = match File::open(&file.path) {
        // Somebody has taken it away: its loading says so.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        opened => opened.map_err(failed)?,
    };
    let mut input = BufReader::new(opened).take(FIRST_LINES_BYTES);
    let mut line = Vec::new();
    loop {
        line.clear();
        input.read_until(b'\n', &mut line).map_err(failed)?;
        match line.strip_suffix(b"\n").map(reader::read) {
            Some(Ok(Line { what: What::Retract(_), .. })) => {}
            first => return Ok(matches!(first, Some(Ok(Line { what: What::CopyBegin(_), .. })))),
        }
    }
}

/// Why a file is not the next one, if it is not. A new database begins with number 1, or with a copy, unless it may begin `later`.
pub fn gap(store: &Store, file: &Found, later: bool) -> Result<Option<String>, String> {
    let loaded = store.watermark(file.partition)?.file_number;
    // A consumer may have begun anew.
    if file.number <= loaded + 1 || (loaded == 0 && (later || begins_with_copy(file)?)) {
        return Ok(None);
    }
    if loaded == 0 {
        return Ok(Some(format!(
            "{} is the first file of partition {} that is there, and the database is new: bring the files from number 1 on, \
             or those from one on that begins with a copy; with --begin-later it begins with this one, and lacks what was before",
            file.name, file.partition
        )));
    }
    Ok(Some(format!(
        "{} is there, and number {} of partition {} was neither loaded nor is there: bring it back",
        file.name,
        loaded + 1,
        file.partition
    )))
}

/// What a file was.
pub struct Loaded {
    /// Its lines.
    pub lines: u64,
    /// Those of them that were there already.
    pub known: u64,
    /// The version that the partition then has.
    pub version: u64,
}

/// Loads a file, all of it or nothing. The error names the line.
pub fn load(store: &mut Store, file: &Found) -> Result<Loaded, String> {
    let opened = File::open(&file.path).map_err(|error| format!("{}: {error}", file.name))?;
    let mut load = store.begin(file.partition)?;
    if file.number <= load.watermark.file_number {
        // The consumer began anew: what it had begun before it will not end.
        load.drop_copy()?;
        load.watermark.skips_copy = false;
    }
    let name = file.path.display().to_string();
    let (lines, known) = feed::lines(&mut load, &name, BufReader::with_capacity(READ, opened))?;
    if let Some(epoch) = epoch_in(&file.name) {
        load.is_of_epoch(epoch.number, epoch.id).map_err(|why| format!("{}: {why}", file.name))?;
    }
    load.file(&file.name, file.number, file.bytes, lines)?;
    let version = load.watermark.version;
    load.commit()?;
    Ok(Loaded { lines, known, version })
}
