//! What the binaries share: settings, the home directory, `--init`, and the command line's grammar and printer.

pub mod bench;
pub mod cdc_config;
pub mod cli;
pub mod config;
pub mod dashes;
pub mod demo;
#[cfg(feature = "duck")]
pub mod duck;
pub mod home;
pub mod init;
pub mod load;
pub mod nearest;
pub mod serve;
pub mod strict_json;
pub mod units;
