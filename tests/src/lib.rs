//! What shakes TurnstoneDB: a simulated world, a model to compare with, checkers of histories, and helpers to run the real
//! binaries. Nothing imports this crate.

pub mod attack;
pub mod crash;
pub mod history;
pub mod model;
pub mod real;
pub mod side_by_side;
pub mod sim;
