//! What a conversation holds of the node's memory for requests and replies ([`turnstone_engine::budget`]).
//!
//! * A request of more than [`FREE`] bytes is let in when its header is there, with what running it takes (its bytes once more:
//!   what is written is copied). Until then nothing more is received; after [`PATIENCE`] it is refused.
//! * A long reply, and what an open transaction writes, is asked for before it is made, and refused at once where there is no
//!   room: the client may try again, nothing is done by halves.
//! * Short replies pile up less where memory is short ([`Memory::window`]).

use std::sync::Arc;
use std::time::{Duration, Instant};
use turnstone_engine::Error;
use turnstone_engine::budget::{Budget, FREE, Part};

/// A request waits so long to be let in.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Running a request takes so many times its bytes, itself included.
const COPIES: usize = 2;

/// One conversation's.
pub struct Memory {
    part: Part,
    /// Bytes of the request that was let in and is not whole yet, with what running it takes.
    gathered: usize,
    /// Bytes of the request that is being run, with its copies.
    run: usize,
    /// A request waits to be let in.
    waits: Option<Instant>,
}

impl Memory {
    /// Nothing of this budget.
    pub fn new(budget: &Arc<Budget>) -> Memory {
        Memory { part: Part::new(budget), gathered: 0, run: 0, waits: None }
    }

    /// The node's.
    pub fn budget(&self) -> &Arc<Budget> {
        self.part.budget()
    }

    /// Since when a request waits to be let in.
    pub fn waits_since(&self) -> Option<Instant> {
        self.waits
    }

    /// A request of so many bytes is being run; 0 when it is done.
    pub fn runs(&mut self, length: usize) {
        self.run = COPIES * length;
    }

    /// The request that was gathered is whole, or skipped.
    pub fn gathered_whole(&mut self) {
        self.gathered = 0;
        self.end_wait();
    }

    /// How many bytes of replies may pile up of `most` at any stage.
    pub fn window(&self, most: usize) -> usize {
        if self.budget().is_short() { most.min(FREE) } else { most }
    }

    /// Bytes that are in none of the conversation's buffers.
    pub(super) fn elsewhere(&self) -> usize {
        self.run
    }

    /// What is held besides input, and the input.
    pub(super) fn set(&mut self, held: usize, input: usize) {
        self.part.set(held + input.max(self.gathered));
    }

    pub(super) fn try_hold(&mut self, bytes: usize) -> Result<(), Error> {
        if self.part.try_reach(bytes + self.gathered) {
            return Ok(());
        }
        self.budget().count_refused();
        Err(Error::MemoryShort { limit: self.budget().limit() })
    }

    pub(super) fn may_gather(&mut self, held: usize, length: usize) -> bool {
        if length <= FREE {
            return true;
        }
        if self.gathered == 0 {
            if !self.part.try_reach(held + COPIES * length) {
                if self.waits.is_none() {
                    self.waits = Some(Instant::now());
                    self.budget().wait_begins();
                }
                return false;
            }
            self.gathered = COPIES * length;
        }
        self.end_wait();
        true
    }

    fn end_wait(&mut self) {
        if self.waits.take().is_some() {
            self.budget().wait_ends();
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.end_wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_waits_until_others_are_done_and_its_bytes_count_once() {
        let budget = Budget::new(10 << 20);
        let (mut one, mut two) = (Memory::new(&budget), Memory::new(&budget));
        assert!(one.may_gather(0, 4 << 20) && one.may_gather(0, 4 << 20));
        assert!(!two.may_gather(0, 4 << 20) && two.waits_since().is_some() && budget.is_waited_for());
        assert!(two.may_gather(0, FREE), "small ones are let in");
        one.set(0, 3 << 20);
        assert_eq!(budget.used(), (8 << 20) - FREE as u64, "what comes is of what was asked for");
        one.gathered_whole();
        one.runs(4 << 20);
        one.set(one.elsewhere(), 0);
        assert_eq!(budget.used(), (8 << 20) - FREE as u64);
        one.runs(0);
        one.set(0, 0);
        assert!(two.may_gather(0, 4 << 20) && !budget.is_waited_for());
        assert!(one.try_hold(9 << 20).is_err_and(|error| matches!(error, Error::MemoryShort { .. })));
        drop(two);
        assert_eq!((budget.used(), budget.refused()), (0, 1));
    }
}
