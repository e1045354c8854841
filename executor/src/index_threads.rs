//! The threads that call fjall, which blocks: some for reads, others for ingestion and scans, so that neither queues in
//! front of a GET. They are started before any core is pinned, and run at the lowest priority where nobody waits.

use crate::remote::Job;
use crate::ring::sys;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};

/// Jobs that may wait per lane.
const QUEUE: usize = 1024;

/// The lanes that cores send index jobs to.
#[derive(Clone)]
pub struct IndexLanes {
    /// Point reads.
    pub reads: flume::Sender<Job>,
    /// Ingestion, scans, opening and removal.
    pub bulk: flume::Sender<Job>,
}

/// The threads behind the lanes.
pub struct IndexThreads {
    threads: Vec<JoinHandle<()>>,
    lanes: IndexLanes,
    stopping: Arc<AtomicBool>,
}

impl IndexThreads {
    /// Starts them.
    pub fn start(readers: usize, bulk: usize) -> io::Result<(IndexLanes, IndexThreads)> {
        let (read_sender, read_jobs) = flume::bounded::<Job>(QUEUE);
        let (bulk_sender, bulk_jobs) = flume::bounded::<Job>(QUEUE);
        let mut threads = Vec::new();
        let stopping = Arc::new(AtomicBool::new(false));
        for i in 0..readers {
            threads.push(spawn(format!("index-read-{i}"), read_jobs.clone(), stopping.clone(), false)?);
        }
        for i in 0..bulk {
            threads.push(spawn(format!("index-bulk-{i}"), bulk_jobs.clone(), stopping.clone(), true)?);
        }
        let lanes = IndexLanes { reads: read_sender, bulk: bulk_sender };
        Ok((lanes.clone(), IndexThreads { threads, lanes, stopping }))
    }

    /// Ends them and waits for that. The cores have ended, so no job that matters is waiting.
    pub fn stop(self) {
        self.stopping.store(true, Ordering::SeqCst);
        for _ in &self.threads {
            // A job of no work wakes one who sleeps; a thread looks at the flag after every job, and takes one at most.
            let _ = self.lanes.reads.send(Box::new(|| {}));
            let _ = self.lanes.bulk.send(Box::new(|| {}));
        }
        for thread in self.threads {
            // A panic has ended the process already in release builds; in tests it is reported by its own thread.
            let _ = thread.join();
        }
    }
}

fn spawn(
    name: String,
    jobs: flume::Receiver<Job>,
    stopping: Arc<AtomicBool>,
    nice: bool,
) -> io::Result<JoinHandle<()>> {
    Builder::new().name(name).spawn(move || {
        if nice {
            sys::be_nice();
        }
        for job in jobs.iter() {
            job();
            if stopping.load(Ordering::SeqCst) {
                return;
            }
        }
    })
}
