//! What a partition keeps in memory: recent versions, and what is hot among the settled ones.

pub mod hash;
pub mod hot;
pub mod overlay;
pub mod warm;
