//! Change files on their way into the store: which there are, which is next, and that it is loaded as a whole.

use super::feed;
use super::store::Store;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use turnstone_cdc::output::sequence_of;

/// Bytes that are read at once.
const READ: usize = 1 << 20;

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

/// Why a file is not the next one, if it is not.
pub fn gap(store: &Store, file: &Found) -> Result<Option<String>, String> {
    let loaded = store.watermark(file.partition)?.file_number;
    // A database that is new may begin anywhere, and a consumer may have begun anew.
    if loaded == 0 || file.number <= loaded + 1 {
        return Ok(None);
    }
    Ok(Some(format!(
        "{} is there, and number {} of partition {} was neither loaded nor is there: bring it back",
        file.name,
        loaded + 1,
        file.partition
    )))
}

/// Loads a file, all of it or nothing; answers its lines, and the version that the partition then has. The error names the line.
pub fn load(store: &mut Store, file: &Found) -> Result<(u64, u64), String> {
    let opened = File::open(&file.path).map_err(|error| format!("{}: {error}", file.name))?;
    let mut load = store.begin(file.partition)?;
    if file.number <= load.watermark.file_number {
        // The consumer began anew: what it had begun before it will not end.
        load.drop_copy()?;
        load.watermark.skips_copy = false;
    }
    let name = file.path.display().to_string();
    let lines = feed::lines(&mut load, &name, BufReader::with_capacity(READ, opened))?;
    load.file(&file.name, file.number, file.bytes, lines)?;
    let version = load.watermark.version;
    load.commit()?;
    Ok((lines, version))
}
