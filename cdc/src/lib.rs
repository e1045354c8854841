//! The consumer side of the change stream: from a server's changes to files of JSON lines, each change exactly once.
//!
//! * [`settings`] is what a consumer is told; `turnstone.cdc.json` is read by the tools.
//! * [`follow`] turns the stream of a partition into lines, and decides where files end.
//! * [`line`] writes lines, [`reader`] reads them back: the two are the format.
//! * [`output`] has the files, and [`cursor`] what must not be lost about them: together they are the *exactly once*.
//! * [`target`] is where lines go, if not into files.
//! * [`run`] is the process around the partitions; [`status`] what it counts, [`http`] who may ask for it.

pub mod cursor;
pub mod follow;
pub mod http;
pub mod line;
pub mod output;
pub mod owner;
pub mod reader;
pub mod run;
pub mod settings;
pub mod status;
pub mod target;

pub use settings::{OnPurged, Partitions, Settings, SettingsError, StartAt, ValueFormat};
