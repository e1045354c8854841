//! Replication without I/O and without a clock: what nodes say to each other, and what each side makes of it.
//!
//! * [`wire`]: the frames, bytes in and values out.
//! * [`history`]: where two histories part.
//! * [`leader`]: one follower as its leader sees it.
//! * [`follower`]: one partition that follows.
//! * [`quorum`]: how many must hold a commit, and how many must agree to a new leader.
//! * [`election`]: who may lead.
//! * [`leadership`]: what becomes of a node's leadership, event by event.
//!
//! Architecture invariants: nothing here waits, sends, reads a file or asks for the time. A caller hands in what came and
//! what time it is, and does what it is told.

pub mod election;
pub mod follower;
pub mod history;
pub mod leader;
pub mod leadership;
pub mod quorum;
pub mod wire;

pub use history::{Common, common_point};

use std::time::Duration;

/// A side that has said nothing for this long says that it lives.
pub const BEAT: Duration = Duration::from_millis(500);
/// A side that was not heard for this long is taken for gone.
pub const SILENCE: Duration = Duration::from_secs(4);
