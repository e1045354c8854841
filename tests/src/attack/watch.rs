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

    /// What is open, by name: `socket:[17]`, a path, `anon_inode:[eventfd]`.
    pub fn open(self) -> Vec<String> {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("the server runs").flatten();
        // One may be closed between the two looks.
        entries.filter_map(|entry| std::fs::read_link(entry.path()).ok()).map(|to| to.display().to_string()).collect()
    }

    /// Open descriptors.
    pub fn descriptors(self) -> u64 {
        self.open().len() as u64
    }

    /// Open descriptors that are no files: the data's files come and go with checkpoints, whoever is connected. Nor are they
    /// eventfds, of which a core has two more while it sleeps.
    pub fn no_files(self) -> u64 {
        let counts = |name: &&String| !name.starts_with('/') && !name.contains("[eventfd]");
        self.open().iter().filter(counts).count() as u64
    }

    /// How long the thread of it that waited longest was ready to run and did not.
    pub fn waited(self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid)).expect("the server runs").flatten();
        let waits = tasks.filter_map(|task| {
            let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split_whitespace().nth(1)?.parse().ok()
        });
        Duration::from_nanos(waits.max().unwrap_or(0))
    }

    /// Waits until there are no more than `limit` descriptors that are no files; answers how many there are then, or at the end of the
    /// patience.
    pub fn no_files_back(self, limit: u64, patience: Duration) -> u64 {
        let started = Instant::now();
        loop {
            let now = self.no_files();
            if now <= limit || started.elapsed() > patience {
                return now;
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }
}
