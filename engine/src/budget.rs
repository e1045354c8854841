//! The memory that a node's requests and replies may take together, on all its cores.
//!
//! Whoever gathers a request, runs it or holds its reply has a [`Part`] of the [`Budget`], which says how much it holds. Small
//! amounts are not counted ([`FREE`]): what most requests cost is a comparison. A part is given back when it is dropped, so
//! nothing that ends keeps any.
//!
//! Two ways to grow: [`Part::set`] says what is held already, and always counts; [`Part::try_reach`] asks before more is taken,
//! and is refused where the budget does not allow it. Nobody who has asked once needs to ask again before it gives back: whoever
//! waits, waits for others to end, and never for others that wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What one holder has for nothing, bytes.
pub const FREE: usize = 64 << 10;

/// What a node may take.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    used: AtomicU64,
    refused: AtomicU64,
    waiting: AtomicU64,
}

impl Budget {
    /// Of so many bytes.
    pub fn new(limit: u64) -> Arc<Budget> {
        let (used, refused, waiting) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Budget { limit, used, refused, waiting })
    }

    /// Its size, bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// What is held of it now, bytes.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Requests that were refused for want of memory.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// One more.
    pub fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether more than half of it is held: whoever may do with less takes less.
    pub fn is_short(&self) -> bool {
        self.used() > self.limit / 2
    }

    /// Whether anybody waits for it.
    pub fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Somebody waits for it from now on.
    pub fn wait_begins(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    /// It waits no longer.
    pub fn wait_ends(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What one holder has of it.
#[derive(Debug)]
pub struct Part {
    budget: Arc<Budget>,
    held: u64,
}

impl Part {
    /// Nothing yet.
    pub fn new(budget: &Arc<Budget>) -> Part {
        Part { budget: budget.clone(), held: 0 }
    }

    /// What it is of.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// The holder has so many bytes.
    pub fn set(&mut self, bytes: usize) {
        let counted = bytes.saturating_sub(FREE) as u64;
        if counted > self.held {
            self.budget.used.fetch_add(counted - self.held, Ordering::Relaxed);
        } else if counted < self.held {
            self.budget.used.fetch_sub(self.held - counted, Ordering::Relaxed);
        }
        self.held = counted;
    }

    /// The holder wants to have so many bytes: `false`, and nothing has changed, where others hold too much. Who is alone gets what
    /// it wants, so that a limit below the largest request refuses nobody for ever.
    pub fn try_reach(&mut self, bytes: usize) -> bool {
        let counted = bytes.saturating_sub(FREE) as u64;
        if counted <= self.held {
            return true;
        }
        let (more, held) = (counted - self.held, self.held);
        let fits = |used: u64| (used + more <= self.budget.limit || used == held).then_some(used + more);
        let taken = self.budget.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if taken {
            self.held = counted;
        }
        taken
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_counts_until_it_is_dropped() {
        let budget = Budget::new(1000);
        let (mut one, mut two) = (Part::new(&budget), Part::new(&budget));
        one.set(FREE);
        assert_eq!(budget.used(), 0);
        one.set(FREE + 400);
        assert!(two.try_reach(FREE + 600) && !two.try_reach(FREE + 601));
        assert_eq!((budget.used(), budget.is_short()), (1000, true));
        one.set(0);
        assert!(two.try_reach(FREE + 1000));
        drop(two);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn who_is_alone_gets_what_it_wants_and_nobody_is_beside_it_then() {
        let budget = Budget::new(1000);
        let (mut one, mut two) = (Part::new(&budget), Part::new(&budget));
        assert!(one.try_reach(FREE + 5000) && one.try_reach(FREE + 6000));
        assert!(!two.try_reach(FREE + 1) && two.try_reach(FREE));
        one.set(FREE + 10);
        assert!(two.try_reach(FREE + 990) && !one.try_reach(FREE + 11));
    }
}
