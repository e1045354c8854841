//! Open files by number, the most recently used ones: descriptors are few, and value files may be many.

use std::collections::BTreeMap;

/// At most so many open files. One that is dropped here is closed when its last user is done with it.
pub(super) struct Handles<F> {
    most: usize,
    /// Counts uses.
    now: u64,
    files: BTreeMap<u32, (u64, F)>,
}

impl<F: Clone> Handles<F> {
    /// None yet.
    pub(super) fn new(most: usize) -> Handles<F> {
        Handles { most: most.max(1), now: 0, files: BTreeMap::new() }
    }

    /// The file, if it is open.
    pub(super) fn get(&mut self, number: u32) -> Option<F> {
        self.now += 1;
        let (used, file) = self.files.get_mut(&number)?;
        *used = self.now;
        Some(file.clone())
    }

    /// Keeps a file open, and closes the one that was not used for the longest time where there are too many.
    pub(super) fn insert(&mut self, number: u32, file: F) {
        self.now += 1;
        self.files.insert(number, (self.now, file));
        while self.files.len() > self.most {
            let oldest = self.files.iter().min_by_key(|(_, (used, _))| *used).map(|(number, _)| *number);
            oldest.map(|number| self.files.remove(&number));
        }
    }

    /// Closes a file.
    pub(super) fn remove(&mut self, number: u32) {
        self.files.remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_was_not_used_for_the_longest_time_is_closed() {
        let mut handles = Handles::new(2);
        handles.insert(1, "one");
        handles.insert(2, "two");
        assert_eq!(handles.get(1), Some("one"));
        handles.insert(3, "three");
        assert_eq!((handles.get(1), handles.get(2), handles.get(3)), (Some("one"), None, Some("three")));
        handles.remove(1);
        assert_eq!((handles.get(1), handles.files.len()), (None, 1));
    }
}
