//! The simulated side of the engine's seam.

use super::disk::{SimDisk, SimFile};
use super::index::SimIndex;
use super::world::World;
use std::convert::Infallible;
use std::future::{Future, pending};
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::env::{Env, Level, Sabotage};
use turnstone_engine::wal::shared_flush::SharedFlush;

/// The outside world of one simulated partition.
#[derive(Clone)]
pub struct SimEnv {
    /// Time, tasks, choices.
    pub world: Rc<World>,
    /// The disk.
    pub disk: SimDisk,
    /// The index.
    pub index: SimIndex,
    /// The planted bug, if any.
    pub sabotage: Option<Sabotage>,
    /// The logs of the partitions that share a core, if they share flushes.
    pub shared: Option<Rc<SharedFlush<SimFile>>>,
}

impl Env for SimEnv {
    type Disk = SimDisk;
    type Index = SimIndex;

    fn disk(&self) -> &SimDisk {
        &self.disk
    }
    fn index(&self) -> &SimIndex {
        &self.index
    }
    fn shared_flush(&self, _device: u64) -> Option<Rc<SharedFlush<SimFile>>> {
        self.shared.clone()
    }
    fn now(&self) -> Duration {
        self.world.now()
    }
    fn wall_ms(&self) -> u64 {
        1_700_000_000_000 + self.world.now().as_millis() as u64
    }
    fn random(&self) -> u64 {
        self.world.rng.next()
    }
    async fn sleep(&self, how_long: Duration) {
        self.world.sleep(how_long).await;
    }
    async fn give_way(&self) {
        self.world.sleep(Duration::from_micros(1)).await;
    }
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.world.spawn(task);
    }
    fn log(&self, _level: Level, line: String) {
        let line = match self.world.owner() {
            0 => line,
            owner => format!("{:9.4} node {}: {line}", self.world.now().as_secs_f64(), owner - 1),
        };
        self.world.log.borrow_mut().push(line);
    }
    async fn halt(&self, why: String) -> Infallible {
        self.world.halt(why);
        pending().await
    }
    fn sabotage(&self) -> Option<Sabotage> {
        self.sabotage
    }
}
