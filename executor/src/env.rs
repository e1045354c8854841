//! The real side of the engine's seam.

use crate::disk::{RealDisk, RealFile};
use crate::index_lane::IndexLane;
use crate::log::Log;
use crate::node::system_random;
use crate::ring::sys::{exact_time, tick_time};
use crate::tasks::spawn_later;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use turnstone_engine::env::{Env, Level, Sabotage};
use turnstone_engine::wal::shared_flush::SharedFlush;

/// The exit status of a process that ended itself because its disk failed.
pub const EXIT_DISK: i32 = 74;

/// The outside world of one real partition.
#[derive(Clone)]
pub struct RealEnv {
    disk: RealDisk,
    index: IndexLane,
    log: Log,
    flushes: Option<SharedFlushes>,
    sabotage: Option<Sabotage>,
}

/// A core's shared flushes, by device.
#[derive(Clone, Default)]
pub struct SharedFlushes(Rc<RefCell<BTreeMap<u64, Rc<SharedFlush<RealFile>>>>>);

impl SharedFlushes {
    fn on(&self, device: u64) -> Rc<SharedFlush<RealFile>> {
        self.0.borrow_mut().entry(device).or_default().clone()
    }
}

impl RealEnv {
    /// Puts the parts together; without `flushes` each log is flushed by itself.
    pub fn new(
        disk: RealDisk,
        index: IndexLane,
        log: Log,
        flushes: Option<SharedFlushes>,
        sabotage: Option<Sabotage>,
    ) -> RealEnv {
        RealEnv { disk, index, log, flushes, sabotage }
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
    fn shared_flush(&self, device: u64) -> Option<Rc<SharedFlush<RealFile>>> {
        self.flushes.as_ref().map(|flushes| flushes.on(device))
    }
    fn now(&self) -> Duration {
        exact_time()
    }
    fn recently(&self) -> Duration {
        tick_time()
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
