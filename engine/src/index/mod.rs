//! The index of settled keys, as whole operations: the simulator replaces it completely, and a call costs one hop to a
//! thread however many keys it asks for.
//!
//! Promises: an ingestion appears wholly or not at all, and is durable when `finish` returned `Ok`; after an error it is
//! in doubt, and [`Index::open`] tells. Ingestions come one at a time, in ascending key order.

pub mod fjall;

use crate::error::Error;
use crate::manifest::Mark;
use crate::types::{Settled, Version};

/// What went wrong, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexError {
    /// It is damaged, or lost its footing: to be reopened, or built anew.
    Failed(String),
    /// The system had no descriptor, memory or space for it: nothing is wrong with the index, and asking again later helps.
    Refused(String),
    /// It has yet to work off what it took before, and has taken nothing of this: nothing is wrong with it.
    Behind(String),
}

impl std::fmt::Display for IndexError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            IndexError::Failed(text) | IndexError::Refused(text) | IndexError::Behind(text) => f.write_str(text),
        }
    }
}

impl From<IndexError> for Error {
    fn from(error: IndexError) -> Error {
        match error {
            IndexError::Failed(text) => Error::Index(text),
            IndexError::Refused(text) | IndexError::Behind(text) => Error::Refused(format!("the index: {text}")),
        }
    }
}

/// Keys in their order, with what they hold.
pub type Page = Vec<(Vec<u8>, Version, Settled)>;

/// What the index knows of a key.
pub type Found = Option<(Version, Settled)>;

/// An index that one partition owns.
#[expect(async_fn_in_trait, reason = "futures stay on the core that made them; nobody needs Send")]
pub trait Index: 'static {
    /// Everything that was there at one time.
    type View;

    /// Opens directory `number`, closing any other; with `create`, empties it first. Answers the mark of the last
    /// ingestion, `None` if there was none.
    async fn open(&self, number: u32, create: bool) -> Result<Option<Mark>, IndexError>;
    /// Looks up keys, answers in the same order.
    async fn get_many(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Found>, IndexError>;
    /// What is there now: later ingestions do not change what is seen through it.
    async fn view(&self) -> Result<Self::View, IndexError>;
    /// Keys behind `after` (or from the first) as a view has them, in order, at most `limit`, with what they hold; `None` if the
    /// directory of then was closed since.
    async fn scan(&self, view: &Self::View, after: Option<Vec<u8>>, limit: usize) -> Result<Option<Page>, IndexError>;
    /// Compactions finished since the opening.
    fn compactions(&self) -> u64;
    /// Begins an ingestion that ends at `mark`.
    async fn ingest_begin(&self, mark: Mark) -> Result<(), IndexError>;
    /// Adds entries (encoded as a run's chunk) to it.
    async fn ingest_chunk(&self, chunk: Vec<u8>) -> Result<(), IndexError>;
    /// Makes it visible and durable. [`IndexError::Behind`] comes from here, too: a beginning is not waited for.
    async fn ingest_finish(&self) -> Result<(), IndexError>;
    /// Closes the index, if open.
    async fn close(&self);
    /// Removes directory `number`, which is not open.
    async fn remove(&self, number: u32) -> Result<(), IndexError>;
    /// Numbers of the directories there are.
    async fn list(&self) -> Result<Vec<u32>, IndexError>;
}
