//! A partition's files in a directory belong to one consumer: two with one directory would take each other's files.
//!
//! A consumer is its state: the file `STATE.lock` beside it has an id that no other consumer has, and is locked while the
//! consumer runs. `cdc-pNN.owner` in the directory of the files names the consumer that they are of, and is locked, too.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Files are for the user that the consumer runs as: changes contain the values of all keys.
pub const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// A consumer, by its state, which is its alone while this exists.
pub struct Owner {
    id: String,
    _lock: File,
}

/// Makes a directory, unless it is there.
pub fn make_directory(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)
}

fn open(path: &Path) -> Result<(File, String), String> {
    let opened = File::options().create(true).truncate(false).read(true).write(true).mode(FILE_MODE).open(path);
    let mut file = opened.map_err(|error| format!("{} cannot be opened: {error}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(format!("{} is held by another process", path.display())),
        Err(TryLockError::Error(error)) => return Err(format!("{} cannot be locked: {error}", path.display())),
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    Ok((file, text.trim().to_string()))
}

fn write(mut file: &File, path: &Path, text: &str) -> Result<(), String> {
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written
        .and_then(|()| crate::cursor::sync_directory(path))
        .map_err(|error| format!("{} cannot be written: {error}", path.display()))
}

fn random() -> String {
    let number = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", number(), number())
}

impl Owner {
    /// Two processes with one state would both write the same files.
    pub fn of_state(state_file: &Path) -> Result<Owner, String> {
        let mut path = state_file.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let (lock, mut id) = open(&path).map_err(|why| format!("{why}: stop it first, or use another state_file"))?;
        if id.is_empty() {
            id = random();
            write(&lock, &path, &format!("{id}\n"))?;
        }
        Ok(Owner { id, _lock: lock })
    }

    /// Takes a partition's files in a directory for this consumer, which people know as `name`, or refuses if they are of another
    /// one. They are its alone while the answer exists.
    pub fn take(&self, directory: &Path, partition: u8, name: &str) -> Result<File, String> {
        make_directory(directory).map_err(|error| format!("{} cannot be made: {error}", directory.display()))?;
        let path = directory.join(format!("cdc-p{partition:02}.owner"));
        let other = |why: String| {
            format!(
                "{why}: two consumers with one output_dir would take each other's files; give this one another output_dir"
            )
        };
        let (lock, text) = open(&path).map_err(other)?;
        let (id, owner) = text.split_once(' ').unwrap_or((&text, "?"));
        if id.is_empty() {
            write(&lock, &path, &format!("{} {name}\n", self.id))?;
        } else if id != self.id {
            return Err(other(format!(
                "{} says that the files of partition {partition} there are of the consumer '{owner}', with another \
                 state_file (if that one is gone for good, move its files away, and this one, too)",
                path.display()
            )));
        }
        Ok(lock)
    }
}

/// A new file that only this user may read; one that is there is emptied.
pub fn create(path: &Path) -> std::io::Result<File> {
    fs::File::options().create(true).truncate(true).write(true).mode(FILE_MODE).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_owner_for_each_partition() {
        let base = std::env::temp_dir().join(format!("turnstone-owner-{}", std::process::id()));
        let _ = fs::remove_dir_all(&base);
        fs::create_dir_all(&base).unwrap();
        let (files, one, two) = (base.join("files"), base.join("one"), base.join("two"));
        let owner = Owner::of_state(&one).unwrap();
        assert!(Owner::of_state(&one).is_err_and(|why| why.contains("held by another process")));
        let held = owner.take(&files, 1, "nightly").unwrap();
        let other = Owner::of_state(&two).unwrap();
        assert!(other.take(&files, 1, "b").is_err_and(|why| why.contains("held by another process")));
        drop(held);
        assert!(other.take(&files, 1, "b").is_err_and(|why| why.contains("consumer 'nightly'")));
        drop(other.take(&files, 2, "b").unwrap());
        drop(owner);
        let again = Owner::of_state(&one).unwrap();
        drop(again.take(&files, 1, "nightly").unwrap());
        fs::remove_dir_all(base).unwrap();
    }
}
