//! The consumer side of the change stream.
//!
//! [`settings`] holds what a consumer is told: which partitions to follow, where to write, when to begin a new file. It
//! knows no file format; `turnstone.cdc.json` is read by the tools.

pub mod settings;

pub use settings::{Partitions, Settings, SettingsError, ValueFormat};
