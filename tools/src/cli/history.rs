//! Where the prompt's history is kept: a file that only its owner can read, since it holds keys and values.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The history file: `TURNSTONE_HISTFILE`, or `turnstone/history` in the XDG state directory. `None` turns history off,
/// which an empty variable or `/dev/null` asks for.
pub fn path(variable: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    if let Some(file) = variable("TURNSTONE_HISTFILE") {
        return (!file.is_empty() && file != "/dev/null").then(|| file.into());
    }
    let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("turnstone/history"))
}

/// Makes the file, and the directories to it, closed to others. What exists is left as it is.
pub fn prepare(path: &Path) -> io::Result<()> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o600).open(path).map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn with(list: &[(&str, &str)]) -> Option<PathBuf> {
        path(|name| list.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn places() {
        assert_eq!(with(&[("HOME", "/h")]), Some("/h/.local/state/turnstone/history".into()));
        assert_eq!(with(&[("HOME", "/h"), ("XDG_STATE_HOME", "/s")]), Some("/s/turnstone/history".into()));
        assert_eq!(
            with(&[("HOME", "/h"), ("XDG_STATE_HOME", "rel")]),
            Some("/h/.local/state/turnstone/history".into())
        );
        assert_eq!(with(&[("HOME", "/h"), ("TURNSTONE_HISTFILE", "/x")]), Some("/x".into()));
        assert_eq!(with(&[("HOME", "/h"), ("TURNSTONE_HISTFILE", "/dev/null")]), None);
        assert_eq!(with(&[("HOME", "/h"), ("TURNSTONE_HISTFILE", "")]), None);
        assert_eq!(with(&[]), None);
    }

    #[test]
    fn the_file_is_closed_to_others() {
        let root = std::env::temp_dir().join(format!("turnstone-history-{}", std::process::id()));
        let file = root.join("state/turnstone/history");
        prepare(&file).unwrap();
        std::fs::write(&file, "kept").unwrap();
        prepare(&file).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"kept");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(root.join("state")).unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::remove_dir_all(root).unwrap();
    }
}
