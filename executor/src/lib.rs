//! glommio and io_uring, and nothing above them: where partitions run, one ring per core for sockets, log and point reads,
//! the real side of the engine's seam, the threads that call fjall, the channels between cores.
//!
//! Architecture invariants: nothing here blocks a core; nothing here knows TLS or a wire byte; every channel is bounded,
//! and a full one is a wait. `unsafe` is in `ring` alone, with its proof beside it.

pub mod descriptors;
pub mod disk;
pub mod env;
mod extents;
pub mod index_lane;
pub mod index_threads;
pub mod log;
pub mod node;
pub mod pace;
pub mod placement;
pub mod remote;
#[allow(unsafe_code, reason = "the kernel's interface; every use carries its proof")]
pub mod ring;
mod scarcity;
pub mod tasks;

pub use env::RealEnv;
pub use log::Log;
pub use node::{Core, Mesh, Node, NodeOptions};
pub use ring::{Ended, Handler, Ring, SocketId};
