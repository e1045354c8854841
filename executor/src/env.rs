//! The real side of the engine's seam.

use crate::disk::RealDisk;
use crate::index_lane::IndexLane;
use crate::log::Log;
use crate::node::{spawn_later, system_random};
use std::convert::Infallible;
use std::future::Future;
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
    log: Log,
    sabotage: Option<Sabotage>,
}

impl RealEnv {
    /// Puts the parts together.
    pub fn new(disk: RealDisk, index: IndexLane, log: Log, sabotage: Option<Sabotage>) -> RealEnv {
        RealEnv { disk, index, started: Instant::now(), log, sabotage }
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
        // Each from the system: clients see epoch ids, and must not be able to tell a generation's secret from them.
        system_random()
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
