//! The real side of the engine's seam.

use crate::disk::RealDisk;
use crate::index_lane::IndexLane;
use crate::log::Log;
use crate::node::spawn_later;
use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use turnstone_engine::env::{Env, Level, Sabotage};

/// The exit status of a process that ended itself because its disk failed.
pub const EXIT_DISK: i32 = 74;

/// The outside world of one real partition.
#[derive(Clone)]
pub struct RealEnv {
    disk: RealDisk,
    index: IndexLane,
    started: Instant,
    random: Rc<Cell<u64>>,
    log: Log,
    sabotage: Option<Sabotage>,
}

impl RealEnv {
    /// Puts the parts together; `seed` must be unpredictable.
    pub fn new(disk: RealDisk, index: IndexLane, seed: u64, log: Log, sabotage: Option<Sabotage>) -> RealEnv {
        RealEnv { disk, index, started: Instant::now(), random: Rc::new(Cell::new(seed)), log, sabotage }
    }
}

impl Env for RealEnv {
    type Disk = RealDisk;
    type Index = IndexLane;

    fn disk(&self) -> &RealDisk {
        &self.disk
    }
    fn index(&self) -> &IndexLane {
        &self.index
    }
    fn now(&self) -> Duration {
        self.started.elapsed()
    }
    fn wall_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
    }
    fn random(&self) -> u64 {
        // splitmix64 over a seed from the system: unpredictable to clients, who see none of its outputs.
        let state = self.random.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.random.set(state);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    async fn sleep(&self, how_long: Duration) {
        glommio::timer::sleep(how_long).await;
    }
    async fn give_way(&self) {
        crate::pace::give_way().await;
    }
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        spawn_later(task);
    }
    fn log(&self, level: Level, line: String) {
        self.log.line(level, &line);
    }
    async fn halt(&self, why: String) -> Infallible {
        self.log.line(
            Level::Error,
            &format!(
                "{why}. Nothing was acknowledged after it. The process ends; start it again once the disk is well"
            ),
        );
        self.log.flush();
        std::process::exit(EXIT_DISK)
    }
    fn sabotage(&self) -> Option<Sabotage> {
        self.sabotage
    }
}
