//! How the process's descriptors are shared between files and sockets, so that neither ever takes the other's last one.

use crate::ring::sys;

/// Files that a partition has open whatever it does: directory, segment, spare, the value files that are written, the index's
/// journal and lock.
const PARTITION_FILES: u64 = 8;
/// Files of the process: rings, bells, listeners, the log; manifests and runs while they are written.
const PROCESS_FILES: u64 = 40;
/// Most files that are kept open for reads: of values, and of the index.
const CACHED_MAX: u64 = 64;
/// Fewest of the index's: it asks for so many.
const INDEX_MIN: u64 = 10;
/// Fewest value files.
const VALUES_MIN: u64 = 2;

/// Who has how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// The limit of the process.
    pub limit: u64,
    /// Sockets, at most.
    pub sockets: u64,
    /// Value files that a partition keeps open for reads.
    pub value_files: usize,
    /// Files of a partition's index that are kept open.
    pub index_files: usize,
}

impl Descriptors {
    /// Of this process, as the limit of open files is now.
    pub fn of_process(partitions: u64) -> Descriptors {
        Descriptors::of(sys::descriptor_limit(), partitions)
    }

    /// Files have what they can need, or half of the limit if that is less; what they need in any case, up to three quarters.
    pub fn of(limit: u64, partitions: u64) -> Descriptors {
        let partitions = partitions.max(1);
        let fixed = PROCESS_FILES + partitions * PARTITION_FILES;
        let least = (fixed + partitions * (INDEX_MIN + VALUES_MIN)).min(limit / 4 * 3);
        let files = (fixed + partitions * 2 * CACHED_MAX).min((limit / 2).max(least));
        let each = files.saturating_sub(fixed) / partitions;
        let index = (each / 2).clamp(INDEX_MIN, CACHED_MAX);
        let values = each.saturating_sub(index).clamp(VALUES_MIN, CACHED_MAX);
        Descriptors { limit, sockets: limit - files, value_files: values as usize, index_files: index as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_what_they_can_need_or_half() {
        let of = |limit| Descriptors::of(limit, 16);
        assert_eq!(of(256), Descriptors { limit: 256, sockets: 64, value_files: 2, index_files: 10 });
        assert_eq!(of(512), Descriptors { limit: 512, sockets: 152, value_files: 2, index_files: 10 });
        assert_eq!(of(1024), Descriptors { limit: 1024, sockets: 512, value_files: 11, index_files: 10 });
        assert_eq!(of(524_288).sockets, 524_288 - 40 - 16 * 136);
        assert_eq!((of(524_288).value_files, of(524_288).index_files), (64, 64));
        assert!(of(u64::MAX).sockets > 1 << 60);
    }
}
