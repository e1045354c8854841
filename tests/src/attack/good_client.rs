//! The client that must not notice: GETs at a fixed rate, each one's latency kept.

use crate::real::{TestHome, TestServer};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use turnstone_net::tls::Role;

const KEY: &[u8] = b"good";

/// It works until it is dropped.
pub struct GoodClient {
    samples: Arc<Mutex<Vec<u32>>>,
    failure: Arc<Mutex<Option<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Latencies of a stretch of time, in microseconds.
#[derive(Clone, Debug, Default)]
pub struct Block {
    sorted: Vec<u32>,
}

impl Block {
    /// How many GETs there were.
    pub fn count(&self) -> usize {
        self.sorted.len()
    }
    /// The latency that this share of GETs does not pass.
    pub fn quantile(&self, share: f64) -> f64 {
        let at = (self.sorted.len() as f64 * share) as usize;
        self.sorted.get(at.min(self.sorted.len().saturating_sub(1))).map_or(f64::NAN, |us| f64::from(*us))
    }
    /// Several blocks as one.
    pub fn together(blocks: &[Block]) -> Block {
        let mut sorted: Vec<u32> = blocks.iter().flat_map(|block| block.sorted.iter().copied()).collect();
        sorted.sort_unstable();
        Block { sorted }
    }
}

impl GoodClient {
    /// Starts it, on a CPU of its own if one is named.
    pub fn start(home: &TestHome, server: &TestServer, per_second: u32, cpu: Option<usize>) -> GoodClient {
        let mut connection = home.connect(server, Role::Client, 1);
        connection.set(KEY, &[7; 128]).expect("it serves");
        let samples = Arc::new(Mutex::new(Vec::new()));
        let failure = Arc::new(Mutex::new(None));
        let stop = Arc::new(AtomicBool::new(false));
        let (kept, failed, ends) = (samples.clone(), failure.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            if let Some(cpu) = cpu {
                turnstone_executor::placement::pin_thread(cpu).expect("the CPU is there");
            }
            let interval = Duration::from_secs(1) / per_second;
            let mut due = Instant::now();
            while !ends.load(Ordering::Relaxed) {
                // Late through the last reply: then the wait counts. Late through this thread's own sleep: it does not.
                let mut start = due;
                while let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                    std::thread::park_timeout(left);
                    start = Instant::now();
                }
                let got = connection.get(KEY);
                let took = start.elapsed();
                if !matches!(&got, Ok(Some(value)) if value.len() == 128) {
                    *failed.lock().expect("not poisoned") = Some(format!("a GET answered {got:?}"));
                    return;
                }
                kept.lock().expect("not poisoned").push(took.as_micros() as u32);
                due += interval;
            }
        });
        GoodClient { samples, failure, stop, thread: Some(thread) }
    }

    /// What was measured since the last call.
    pub fn take(&self) -> Block {
        let mut sorted = std::mem::take(&mut *self.samples.lock().expect("not poisoned"));
        sorted.sort_unstable();
        Block { sorted }
    }

    /// Leaves it alone for this long and answers what was measured.
    pub fn alone(&self, time: Duration) -> Block {
        self.take();
        let started = Instant::now();
        while let Some(left) = time.checked_sub(started.elapsed()) {
            std::thread::park_timeout(left);
        }
        self.take()
    }

    /// Why it stopped, if it did: it never should.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().expect("not poisoned").clone()
    }
}

impl Drop for GoodClient {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
