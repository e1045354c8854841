//! The few system calls that have no safe wrapper in std: an eventfd, socket options, limits, thread priority.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// Wakes a core that sleeps; any thread may signal it.
#[derive(Clone, Debug)]
pub struct Bell(Arc<File>);

impl Bell {
    /// A new eventfd.
    pub fn new() -> io::Result<Bell> {
        // SAFETY: eventfd takes no pointers; the descriptor it returns is ours alone.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and is owned by nobody else.
        Ok(Bell(Arc::new(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))))
    }

    /// Rings it.
    pub fn ring(&self) {
        // It can only fail when the counter is full, and then it is ringing already.
        let _ = (&*self.0).write(&1u64.to_ne_bytes());
    }

    /// Makes it silent until the next ring.
    pub fn silence(&self) {
        // "Would block" means that it is silent.
        let _ = (&*self.0).read(&mut [0u8; 8]);
    }

    /// Its descriptor.
    pub fn descriptor(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// Another descriptor of the same bell.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.0.try_clone().map(OwnedFd::from)
    }
}

/// Small replies leave at once.
pub fn set_no_delay(fd: i32) {
    let one: libc::c_int = 1;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the pointer is to a live integer of the length that is given.
    unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, (&raw const one).cast(), length) };
}

/// Lets this many connections wait to be accepted, as far as the system's own limit goes: with the 128 of std a burst
/// overflows, and who overflowed waits seconds for the next try of its system.
pub fn listen_for(fd: i32, waiting: i32) {
    // SAFETY: no pointers; on a socket that listens already this changes the length of its queue only.
    unsafe { libc::listen(fd, waiting) };
}

/// Ends both directions of a socket, so that a receive in flight ends, too.
pub fn shut_down(fd: i32) {
    // SAFETY: no pointers; a descriptor that is no socket is an error that changes nothing.
    unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}

/// Lets this process have small pages only. A huge one is zeroed at once when it is first touched, which kept a core for 4
/// to 10 ms on a virtual machine whose host had to find the memory, and an allocator asks for them.
pub fn forgo_huge_pages() -> io::Result<()> {
    // SAFETY: no pointers; the call changes how later faults of this process are served.
    if unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Raises the soft limits of open files and locked memory to the hard ones; answers them.
pub fn raise_limits() -> Vec<(&'static str, u64)> {
    let mut reached = Vec::new();
    for (name, resource) in [("nofile", libc::RLIMIT_NOFILE), ("memlock", libc::RLIMIT_MEMLOCK)] {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the pointer is to a live structure of the right type.
        if unsafe { libc::getrlimit(resource, &raw mut limit) } != 0 {
            continue;
        }
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: as above; raising to the hard limit is always allowed, and a refusal changes nothing.
        unsafe { libc::setrlimit(resource, &raw const limit) };
        reached.push((name, limit.rlim_max));
    }
    reached
}

/// How many descriptors this process may have.
pub fn descriptor_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live structure of the right type.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } {
        0 => limit.rlim_cur,
        _ => u64::MAX,
    }
}

/// Lets everybody else go first: for threads that nobody waits for.
pub fn be_nice() {
    // SAFETY: no pointers; on Linux this changes the calling thread only.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) };
}

/// Processor time of the calling thread.
pub fn thread_time() -> Duration {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Time since an arbitrary start.
pub fn exact_time() -> Duration {
    clock(libc::CLOCK_MONOTONIC)
}

/// The same as of the kernel's last tick: up to some milliseconds old, for a fraction of the price.
pub fn tick_time() -> Duration {
    clock(libc::CLOCK_MONOTONIC_COARSE)
}

fn clock(which: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live structure of the right type; the clocks exist on every Linux, so it cannot fail.
    unsafe { libc::clock_gettime(which, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Keeps the calling thread on one CPU.
pub fn set_affinity(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: an all-zero set is a valid, empty one.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the number is below the set's size, as checked above.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the pointer is to a live set of the size that is given; 0 is the calling thread.
    match unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A stretch of a file that has blocks: bytes, and the flags of `linux/fiemap.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins in the file.
    pub logical: u64,
    /// How long it is.
    pub length: u64,
    /// What is special about it.
    pub flags: u32,
}

/// The number of a file's file system, as in `linux/magic.h`.
pub fn file_system(file: &File) -> io::Result<i64> {
    // SAFETY: an all-zero structure is a valid value of this plain C type.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live structure of the right type.
    match unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut found) } {
        0 => Ok(found.f_type as i64),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether ext4 was told to write this file's data through its journal.
pub fn is_journalled(file: &File) -> io::Result<bool> {
    const JOURNAL_DATA: libc::c_long = 0x4000;
    let mut flags: libc::c_long = 0;
    // SAFETY: the pointer is to a live integer of the size that the request names.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETFLAGS, &raw mut flags) } {
        0 => Ok(flags & JOURNAL_DATA != 0),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The extents of a file, in order.
pub fn extents(file: &File) -> io::Result<Vec<Extent>> {
    const FIEMAP: libc::Ioctl = 0xC020_660B;
    const HEAD: usize = 4;
    const EACH: usize = 7;
    const AT_ONCE: usize = 64;
    const LAST: u32 = 1;
    let mut extents: Vec<Extent> = Vec::new();
    loop {
        // `struct fiemap` and its extents, as 64-bit words: start, length, flags | mapped << 32, count | reserved << 32;
        // each extent: logical, physical, length, two reserved, flags | reserved << 32, reserved.
        let mut words = [0u64; HEAD + EACH * AT_ONCE];
        words[0] = extents.last().map_or(0, |e| e.logical + e.length);
        words[1] = u64::MAX - words[0];
        words[3] = AT_ONCE as u64;
        // SAFETY: the array is as long as its header says, and lives through the call.
        if unsafe { libc::ioctl(file.as_raw_fd(), FIEMAP, words.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mapped = (words[2] >> 32) as usize;
        for extent in words[HEAD..].chunks_exact(EACH).take(mapped) {
            extents.push(Extent { logical: extent[0], length: extent[2], flags: extent[5] as u32 });
        }
        if mapped == 0 || extents.last().is_some_and(|e| e.flags & LAST != 0) {
            return Ok(extents);
        }
    }
}
