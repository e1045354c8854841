//! The simulated side of the engine's seam.

use super::disk::{DiskImage, SimDisk, SimFile};
use super::index::{IndexImage, SimIndex};
use super::world::World;
use std::convert::Infallible;
use std::future::{Future, pending};
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::env::{Env, Level, Sabotage};
use turnstone_engine::wal::shared_flush::SharedFlush;

/// How old the time is that is not asked for exactly.
const TICK: Duration = Duration::from_millis(4);

/// A node's clock: all else in the world goes by the true one.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// So many hundredths of the true pace.
    pub pace: u32,
    /// What the wall clock is ahead, milliseconds.
    pub ahead_ms: i64,
}

impl Default for Clock {
    fn default() -> Clock {
        Clock { pace: 100, ahead_ms: 0 }
    }
}

impl Clock {
    /// What it shows at a true time.
    pub fn shows(&self, at: Duration) -> Duration {
        at * self.pace / 100
    }

    /// The true time until it shows so much more: never too short, or who waits for a time would ask again for ever.
    pub fn takes(&self, how_long: Duration) -> Duration {
        match self.pace {
            100 => how_long,
            pace => how_long * 100 / pace + Duration::from_nanos(1),
        }
    }
}

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
    /// The clock.
    pub clock: Clock,
}

impl SimEnv {
    /// A partition that has nothing yet, in a world whose index fails nobody.
    pub fn fresh(world: &Rc<World>, sabotage: Option<Sabotage>) -> SimEnv {
        SimEnv {
            world: world.clone(),
            disk: SimDisk::new(world.clone(), DiskImage::default()),
            index: SimIndex::new(world.clone(), IndexImage::default(), false),
            sabotage,
            shared: None,
            clock: Clock::default(),
        }
    }
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
        self.clock.shows(self.world.now())
    }
    fn recently(&self) -> Duration {
        let now = self.now();
        now - Duration::from_nanos(now.subsec_nanos().into()) + TICK * (now.subsec_nanos() / TICK.subsec_nanos())
    }
    fn wall_ms(&self) -> u64 {
        (1_700_000_000_000 + self.now().as_millis() as u64)
            .saturating_add_signed(self.clock.ahead_ms)
            .saturating_add_signed(self.world.wall_step_ms.get())
    }
    fn random(&self) -> u64 {
        self.world.rng.next()
    }
    async fn sleep(&self, how_long: Duration) {
        self.world.sleep(self.clock.takes(how_long)).await;
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
