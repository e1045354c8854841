//! One partition of TurnstoneDB: log, value log, overlay, index, transactions, group commit, checkpoint, recovery.
//!
//! Start at [`partition`] (what callers use), then [`commit`] (the one place that orders reserve, prepare, persist and
//! publish), [`checkpoint`] and [`recovery`]. Pure modules (no environment, no waiting) are about half: `codec`,
//! `wal::body`, `wal::envelope`, `vlog::record`, `memory`, `txn`, and the decisions in `retention`.
//!
//! Architecture invariants: the engine never reads a clock, starts a thread, opens a socket or touches a file but through
//! [`env::Env`]; the exception is `index/fjall.rs`, which runs on threads of the executor's. A partition lives on one
//! core, so nothing here locks. Nothing that a disk said is trusted without its checksum.

pub mod age;
pub mod budget;
pub mod buffer;
mod checkpoint;
pub mod codec;
pub mod commit;
pub mod copy;
pub mod cut;
mod digest;
pub mod disk;
pub mod env;
pub mod error;
pub mod follow;
pub mod header;
pub mod holds;
pub mod index;
mod index_care;
mod insist;
pub mod leadership;
pub mod leftovers;
mod log_end;
pub mod manifest;
pub mod memory;
mod merging;
pub mod names;
pub mod partition;
mod publish;
mod recovery;
pub mod reign;
pub mod retention;
pub mod run;
mod run_merge;
pub mod settings;
pub mod stats;
pub mod sync;
pub mod tail;
pub mod txn;
pub mod types;
pub mod vlog;
pub mod wal;

pub use commit::{Progress, Ticket};
pub use error::Error;
pub use memory::warm::TOGETHER;
pub use partition::{Cold, Lookup, Partition, RunAhead, warm};
pub use reign::Standing;
pub use settings::Settings;
pub use txn::{Transaction, Write};
