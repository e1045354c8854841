//! Where a consumer's lines go.

use crate::cursor::Cursor;
use std::path::PathBuf;
use std::sync::Arc;

/// Where lines go, and with them how far they are.
#[derive(Clone)]
pub enum Target {
    /// Into files of this directory; the cursors beside `settings.state_file`.
    Files(PathBuf),
    /// To standard output; the cursors have names of their own.
    Stdout,
    /// Into something that takes both at once.
    Store(Arc<dyn LineStore>),
}

impl Target {
    /// What is added to a consumer's name: each kind of target goes on where it was itself.
    pub fn suffix(&self) -> &'static str {
        match self {
            Target::Files(_) => "",
            Target::Stdout => ".stdout",
            Target::Store(_) => ".duck",
        }
    }

    /// Whether lines go to standard output.
    pub fn is_stdout(&self) -> bool {
        matches!(self, Target::Stdout)
    }
}

/// Takes lines, and the cursor that says how far they are: both or neither, whenever the process ends.
pub trait LineStore: Send + Sync {
    /// The text of a partition's cursor, as it was taken last; `None` before that.
    fn cursor(&self, partition: u8) -> Result<Option<Vec<u8>>, String>;

    /// Takes whole transactions' lines, or none, and the cursor behind them. The error is for a person.
    fn take(&self, partition: u8, lines: &[u8], cursor: &Cursor) -> Result<(), String>;
}
