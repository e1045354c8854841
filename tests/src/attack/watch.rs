//! What the kernel says of the server: memory, descriptors.

use std::time::{Duration, Instant};

/// A process under observation.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    /// Its number.
    pub pid: u32,
}

impl Watch {
    fn status(self, name: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("the server runs");
        let line = text.lines().find(|line| line.starts_with(name)).expect("the kernel tells it");
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
    }

    /// Memory in use, KiB.
    pub fn resident(self) -> u64 {
        self.status("VmRSS:")
    }

    /// The most memory that was in use so far, KiB.
    pub fn peak(self) -> u64 {
        self.status("VmHWM:")
    }

    /// Open descriptors.
    pub fn descriptors(self) -> u64 {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("the server runs").count() as u64
    }

    /// Waits until there are no more than `limit` descriptors; answers how many there are then, or at the end of the
    /// patience.
    pub fn descriptors_back(self, limit: u64, patience: Duration) -> u64 {
        let started = Instant::now();
        loop {
            let now = self.descriptors();
            if now <= limit || started.elapsed() > patience {
                return now;
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }
}
