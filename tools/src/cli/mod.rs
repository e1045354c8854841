//! The command line client: words, grammar, execution. Nothing here reads the terminal; the binary does.

pub mod command;
pub mod help;
pub mod history;
pub mod run;
pub mod show;
pub mod words;

pub use command::{Command, UsageError};
pub use run::{Link, Options, Outcome, Runner};
