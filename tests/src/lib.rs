//! What shakes TurnstoneDB: a simulated world, a model to compare with, checkers of histories, fuzz targets, and helpers to
//! run the real binaries. Nothing imports this crate but the wrappers of the fuzz targets in `tests/fuzz`.

pub mod attack;
pub mod changes;
pub mod cluster;
pub mod crash;
pub mod explore;
pub mod fuzz;
pub mod history;
pub mod instructions;
pub mod model;
pub mod net_faults;
pub mod one_core;
pub mod packages;
pub mod proxy;
pub mod real;
pub mod side_by_side;
pub mod sim;
