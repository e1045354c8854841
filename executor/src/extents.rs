//! Whether a file's writes change nothing but blocks that it has already, so that any flush of the device covers them (D4).
//!
//! That holds on ext4 and XFS for blocks that the file system shows as written and not shared: an O_DIRECT overwrite of
//! such a block goes to the device and touches no metadata that matters, and `fdatasync` of any file on that device ends
//! in a flush of the device's cache. It does not hold where data goes through the journal.

use crate::ring::sys::{self, Extent};
use rustix::fs::{AtFlags, StatxFlags};
use std::fs::File;
use std::io;
use std::os::linux::fs::MetadataExt;

const EXT4: i64 = 0xEF53;
const XFS: i64 = 0x5846_5342;

/// The last extent of a file, and one that was put together from neighbours: nothing to worry about.
const HARMLESS: u32 = 0x1 | 0x1000;

/// The device of which one flush covers writes to this file.
pub fn shared_flush_device(file: &File) -> io::Result<Option<u64>> {
    if cfg!(target_endian = "big") {
        // The calls below were written for the other order.
        return Ok(None);
    }
    let metadata = file.metadata()?;
    let device = metadata.st_dev();
    let fits = match sys::file_system(file)? {
        XFS => is_direct(file)?,
        EXT4 => is_direct(file)? && !sys::is_journalled(file)?,
        _ => false,
    };
    if !fits || !are_written(&sys::extents(file)?, metadata.len()) {
        return Ok(None);
    }
    Ok(Some(device))
}

/// Whether the extents cover the whole file and are plain, written and the file's own.
fn are_written(extents: &[Extent], length: u64) -> bool {
    let mut end = 0;
    for extent in extents {
        if extent.logical > end || extent.flags & !HARMLESS != 0 {
            return false;
        }
        end = extent.logical + extent.length;
    }
    length > 0 && end >= length
}

/// Whether O_DIRECT is direct for this file, as the system says. It is not where data goes through a journal, is encrypted or
/// verified, however that came to be. A system that cannot tell (before Linux 6.1) is not believed.
fn is_direct(file: &File) -> io::Result<bool> {
    let mask = StatxFlags::from_bits_retain(libc::STATX_DIOALIGN);
    let found = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, mask)?;
    Ok(found.stx_mask & libc::STATX_DIOALIGN != 0 && found.stx_dio_offset_align != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(logical: u64, length: u64, flags: u32) -> Extent {
        Extent { logical, length, flags }
    }

    #[test]
    fn holes_unwritten_and_shared_blocks_are_seen() {
        let whole = [extent(0, 4096, 0), extent(4096, 8192, 1)];
        assert!(are_written(&whole, 12288));
        assert!(!are_written(&whole, 12289), "the end is missing");
        assert!(!are_written(&[extent(0, 4096, 0), extent(8192, 4096, 1)], 12288), "a hole");
        for bad in [0x2, 0x4, 0x8, 0x80, 0x200, 0x800, 0x2000] {
            assert!(!are_written(&[extent(0, 12288, 1 | bad)], 12288), "flag {bad:x}");
        }
        assert!(!are_written(&[], 0), "an empty file says nothing");
    }

    #[test]
    fn a_file_is_taken_for_shareable_only_once_it_is_written() {
        let path = std::env::temp_dir().join(format!("turnstone-extents-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).expect("a file");
        std::fs::remove_file(&path).expect("its name goes");
        file.set_len(1 << 20).expect("it grows");
        assert_eq!(shared_flush_device(&file).unwrap_or(None), None, "nothing but a hole");
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![0; 1 << 20], 0).expect("it is written");
        file.sync_data().expect("and flushed");
        let known = matches!(sys::file_system(&file), Ok(EXT4 | XFS));
        let expected = known.then(|| file.metadata().expect("it is there").st_dev());
        assert_eq!(shared_flush_device(&file).unwrap_or(None), expected);
    }
}
