//! How far a consumer is with a partition: what the published files hold, and what the next one is.
//!
//! The cursor is one small JSON file, replaced as a whole: written beside, flushed, renamed, and the directory flushed. A
//! change file is *sealed* by the cursor that names it, before it is published under that name; so a restart publishes the
//! same bytes under the same name, and goes on behind them.

use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The newest format of this file.
const FORMAT: u32 = 1;

/// A reign of the server's history, as the server told it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Epoch {
    /// Its number.
    pub number: u64,
    /// Its random id.
    pub id: u64,
    /// The version of its first commit.
    pub first_version: u64,
}

/// The newest change file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sealed {
    /// Its name, once it is published.
    pub name: String,
    /// How long it is.
    pub bytes: u64,
    /// CRC-32 of it.
    pub crc: u32,
    /// The hook for it has run, or there is none.
    pub announced: bool,
}

/// How far a consumer is with a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    format: u32,
    /// The partition.
    pub partition: u8,
    /// The files hold everything up to this version.
    pub last: u64,
    /// The history up to there.
    pub epochs: Vec<Epoch>,
    /// A copy has begun, and the files do not hold its end: it must be begun anew.
    pub copying: bool,
    /// The version of the newest whole copy: the files do not say what was before it. 0 if there was none.
    pub copied: u64,
    /// How many files there were.
    pub files: u64,
    /// The newest of them.
    pub sealed: Option<Sealed>,
}

impl Cursor {
    /// Of a consumer that has nothing.
    pub fn new(partition: u8) -> Cursor {
        Cursor {
            format: FORMAT,
            partition,
            last: 0,
            epochs: Vec::new(),
            copying: false,
            copied: 0,
            files: 0,
            sealed: None,
        }
    }

    /// Where a partition's cursor is.
    pub fn path(state_file: &Path, partition: u8) -> PathBuf {
        let mut name = state_file.as_os_str().to_owned();
        name.push(format!(".p{partition:02}"));
        name.into()
    }

    /// Reads it; `None` if there is none yet.
    pub fn load(path: &Path, partition: u8) -> Result<Option<Cursor>, String> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("{} cannot be read: {error}", path.display())),
        };
        Cursor::parse(&text, partition).map(Some).map_err(|why| {
            format!(
                "{} is no state of this consumer: {why}; restore it, or move it and the partition's files away to begin anew",
                path.display()
            )
        })
    }

    /// Reads its text.
    pub fn parse(text: &[u8], partition: u8) -> Result<Cursor, String> {
        let cursor: Cursor = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if cursor.format != FORMAT {
            return Err(format!("its format is {}, and {FORMAT} is known", cursor.format));
        }
        if cursor.partition != partition {
            return Err(format!("it is of partition {}, and not of {partition}", cursor.partition));
        }
        if cursor.epochs.windows(2).any(|pair| pair[0].first_version >= pair[1].first_version)
            || cursor.epochs.iter().any(|epoch| {
                epoch.first_version == 0 || (epoch.first_version > cursor.last && !cfg!(feature = "planted"))
            })
        {
            return Err("its history is in disorder".to_string());
        }
        if let Some(sealed) = &cursor.sealed
            && (sealed.name.contains('/') || !sealed.name.starts_with("cdc-"))
        {
            return Err("the name of its newest file is none that there is".to_string());
        }
        Ok(cursor)
    }

    /// Its text.
    pub fn text(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec(self).expect("numbers, texts and lists are always JSON");
        text.push(b'\n');
        text
    }

    /// Replaces it on the disk.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let text = self.text();
        let mut draft = path.as_os_str().to_owned();
        draft.push(".new");
        let mut file = crate::owner::create(draft.as_ref())?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        sync_directory(path)
    }

    /// The number of the epoch that a version is of; 0 before the first.
    pub fn epoch_of(&self, version: u64) -> u64 {
        epoch_of(&self.epochs, version)
    }

    /// Everything behind `version` is taken back.
    pub fn go_back(&mut self, version: u64) {
        self.last = version;
        self.epochs.retain(|epoch| epoch.first_version <= version);
    }
}

/// The number of the epoch of this history that a version is of; 0 before the first.
pub fn epoch_of(epochs: &[Epoch], version: u64) -> u64 {
    epochs.iter().rev().find(|epoch| epoch.first_version <= version).map_or(0, |epoch| epoch.number)
}

/// Flushes the directory that a file is in: its names are durable then.
pub fn sync_directory(file: &Path) -> io::Result<()> {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_and_others_are_refused() {
        let directory = std::env::temp_dir().join(format!("turnstone-cursor-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = Cursor::path(&directory.join("cdc.state"), 3);
        assert!(path.ends_with("cdc.state.p03"));
        assert_eq!(Cursor::load(&path, 3), Ok(None));
        let epoch = |number, first_version| Epoch { number, id: u64::MAX - number, first_version };
        let sealed = Sealed { name: "cdc-p03-1.jsonl".to_string(), bytes: 7, crc: u32::MAX, announced: true };
        let mut cursor =
            Cursor { last: 50, epochs: vec![epoch(1, 1), epoch(4, 41)], sealed: Some(sealed), ..Cursor::new(3) };
        cursor.save(&path).unwrap();
        assert_eq!(Cursor::load(&path, 3), Ok(Some(cursor.clone())));
        assert!(Cursor::load(&path, 4).unwrap_err().contains("of partition 3"));
        assert_eq!([0, 1, 40, 41, 99].map(|version| cursor.epoch_of(version)), [0, 1, 1, 4, 4]);
        let text = fs::read_to_string(&path).unwrap();
        for (from, to) in [
            ("\"format\":1", "\"format\":2"),
            ("41", "51"),
            ("41", "1"),
            ("cdc-p", "../cdc-p"),
            ("\"last\"", "\"lost\""),
        ] {
            assert!(Cursor::parse(text.replacen(from, to, 1).as_bytes(), 3).is_err(), "{from} -> {to}");
        }
        cursor.go_back(40);
        assert_eq!((cursor.last, cursor.epochs.len()), (40, 1));
        fs::remove_dir_all(directory).unwrap();
    }
}
