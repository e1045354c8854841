//! Files that nothing names any more, or not yet: removed at once, or where the system refuses that, at the next purge. The next
//! opening removes them as well.

use crate::disk::{Disk, DiskError, DiskErrorKind};
use crate::env::Env;
use std::cell::RefCell;

/// Those of one partition.
pub struct Leftovers<E: Env> {
    env: E,
    names: RefCell<Vec<String>>,
}

impl<E: Env> Leftovers<E> {
    /// None yet.
    pub fn new(env: E) -> Leftovers<E> {
        Leftovers { env, names: RefCell::default() }
    }

    /// Removes a file. That it is not there is no error, nor that its removal is refused for now.
    pub async fn remove(&self, name: String) -> Result<(), DiskError> {
        match self.env.disk().remove(&name).await {
            Err(error) if error.changed_nothing() => self.names.borrow_mut().push(name),
            Err(error) if error.kind != DiskErrorKind::NotFound => return Err(error),
            _ => {}
        }
        Ok(())
    }

    /// The same behind a failure that is the answer: another one would hide it.
    pub async fn remove_after_failure(&self, name: String) {
        let _ = self.remove(name).await;
    }

    /// A file that is to be removed with the others.
    pub fn add(&self, name: String) {
        self.names.borrow_mut().push(name);
    }

    /// Removes those that were added, and tries again what was refused.
    pub async fn remove_all(&self) -> Result<(), DiskError> {
        let mut failed = None;
        for name in self.names.take() {
            if let Err(error) = self.remove(name.clone()).await {
                self.add(name);
                failed = Some(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }
}
