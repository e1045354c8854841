//! The simulated world: one thread, virtual time, a disk and an index that keep only what they promised.
//!
//! Everything derives from one seed, and the same seed gives the same trace. What a green run proves is bounded by the
//! fault models written at the top of [`disk`] and [`index`].

pub mod disk;
pub mod env;
pub mod index;
pub mod rng;
pub mod world;

pub use disk::{DiskImage, SimDisk};
pub use env::{Clock, SimEnv};
pub use index::{IndexImage, SimIndex};
pub use rng::Rng;
pub use world::World;
