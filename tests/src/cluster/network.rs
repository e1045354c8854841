//! Connections between simulated nodes: each direction keeps its order, as TCP does, and everything else may go wrong. Frames
//! are late, and may still come when a newer connection has long taken the place of theirs; directions are cut one by one;
//! connections break; dialing takes its time or fails.

use crate::sim::World;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::{Rc, Weak};
use std::time::Duration;
use turnstone_engine::sync::Notify;
use turnstone_net::replica::{Link, Speaks};
use turnstone_replication::wire::Frame;

/// Bytes on their way at which a link counts as clogged.
const CLOGGED: usize = 64 << 10;
/// A direction that is cut is looked at again after this time.
const LOOK: Duration = Duration::from_millis(7);

/// What is wrong with the network, and what it carried.
#[derive(Default)]
pub struct Weather {
    /// Directions that nothing passes.
    pub cut: RefCell<BTreeSet<(usize, usize)>>,
    /// Frames take up to this long.
    pub delay: Cell<Duration>,
    /// Percent of frames that take a hundred times as long.
    pub slow_percent: Cell<u64>,
    /// Frames that were sent, by sender.
    pub sent: RefCell<BTreeMap<usize, u64>>,
}

impl Weather {
    /// Whether nothing passes from one to the other.
    pub fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut.borrow().contains(&(from, to))
    }
}

/// Frames on their way: when they are due, and their bytes.
type Underway = Rc<RefCell<VecDeque<(Duration, Vec<u8>)>>>;

struct Half {
    inbox: RefCell<VecDeque<Frame>>,
    heard: Cell<bool>,
    changed: Notify,
    gone: RefCell<Option<String>>,
}

/// One end of a connection.
pub struct SimLink {
    world: Rc<World>,
    weather: Rc<Weather>,
    /// Whose end this is, and whose the other.
    pub ends: (usize, usize),
    own: Rc<Half>,
    /// Frames on their way to the other end: when they are due, and their bytes.
    outbox: Underway,
    underway: Rc<Cell<usize>>,
    wake: Rc<Notify>,
    closing: Rc<Cell<bool>>,
}

/// A new connection: the dialing end and the other.
pub fn connect(world: &Rc<World>, weather: &Rc<Weather>, from: usize, to: usize) -> (Rc<SimLink>, Rc<SimLink>) {
    let half = || {
        Rc::new(Half {
            inbox: RefCell::default(),
            heard: Cell::default(),
            changed: Notify::default(),
            gone: RefCell::default(),
        })
    };
    let (a, b) = (half(), half());
    let end = |own: &Rc<Half>, other: &Rc<Half>, ends: (usize, usize)| {
        let link = Rc::new(SimLink {
            world: world.clone(),
            weather: weather.clone(),
            ends,
            own: own.clone(),
            outbox: Rc::default(),
            underway: Rc::default(),
            wake: Rc::default(),
            closing: Rc::default(),
        });
        let pump = Pump {
            world: world.clone(),
            weather: weather.clone(),
            ends,
            outbox: link.outbox.clone(),
            underway: link.underway.clone(),
            wake: link.wake.clone(),
            closing: link.closing.clone(),
            own: Rc::downgrade(own),
            other: other.clone(),
        };
        // Nobody's: what was sent arrives even if its sender is gone.
        world.spawn_for(0, pump.run());
        link
    };
    (end(&a, &b, (from, to)), end(&b, &a, (to, from)))
}

/// What carries one direction.
struct Pump {
    world: Rc<World>,
    weather: Rc<Weather>,
    ends: (usize, usize),
    outbox: Underway,
    underway: Rc<Cell<usize>>,
    wake: Rc<Notify>,
    closing: Rc<Cell<bool>>,
    own: Weak<Half>,
    other: Rc<Half>,
}

impl Pump {
    async fn run(self) {
        loop {
            let next = self.outbox.borrow().front().map(|(due, _)| *due);
            let Some(due) = next else {
                let broken = self.own.upgrade().is_none_or(|own| own.gone.borrow().is_some());
                if self.closing.get() || broken {
                    // A cut tells nobody; the other end must notice by itself.
                    if !self.weather.is_cut(self.ends.0, self.ends.1) {
                        self.end("the other side closed the connection");
                    }
                    return;
                }
                self.wake.notified().await;
                continue;
            };
            let now = self.world.now();
            if due > now {
                self.world.sleep(due - now).await;
            }
            while self.weather.is_cut(self.ends.0, self.ends.1) {
                if self.other.gone.borrow().is_some() {
                    return;
                }
                self.world.sleep(LOOK).await;
            }
            let Some((_, bytes)) = self.outbox.borrow_mut().pop_front() else { continue };
            self.underway.set(self.underway.get() - bytes.len());
            if self.other.gone.borrow().is_some() {
                return;
            }
            match Frame::decode(&bytes) {
                Ok(Some((frame, _))) => self.other.inbox.borrow_mut().push_back(frame),
                _ => self.end("a frame cannot be read"),
            }
            self.other.heard.set(true);
            self.other.changed.notify();
            if let Some(own) = self.own.upgrade() {
                own.changed.notify();
            }
        }
    }

    fn end(&self, why: &str) {
        self.other.gone.borrow_mut().get_or_insert_with(|| why.to_string());
        self.other.changed.notify();
    }
}

impl SimLink {
    /// It breaks, at this end at once, at the other when it learns of it.
    pub fn reset(&self) {
        self.own.gone.borrow_mut().get_or_insert_with(|| "reset".to_string());
        self.own.changed.notify();
        self.wake.notify();
    }
}

impl Speaks<Frame> for SimLink {
    fn say(&self, frame: &Frame) {
        if self.own.gone.borrow().is_some() || self.closing.get() {
            return;
        }
        *self.weather.sent.borrow_mut().entry(self.ends.0).or_default() += 1;
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let micros = self.weather.delay.get().as_micros() as u64;
        let mut delay = Duration::from_micros(20 + self.world.rng.below(micros));
        if self.world.rng.percent(self.weather.slow_percent.get()) {
            delay *= 100;
        }
        let mut outbox = self.outbox.borrow_mut();
        let before = outbox.back().map_or(Duration::ZERO, |(due, _)| *due);
        self.underway.set(self.underway.get() + bytes.len());
        outbox.push_back(((self.world.now() + delay).max(before), bytes));
        self.wake.notify();
    }

    fn next(&self) -> Result<Option<Frame>, String> {
        Ok(self.own.inbox.borrow_mut().pop_front())
    }
}

impl Link for SimLink {
    fn key(&self) -> [u8; 32] {
        [self.ends.1 as u8; 32]
    }

    fn heard(&self) -> bool {
        self.own.heard.replace(false)
    }

    fn gone(&self) -> Option<String> {
        self.own.gone.borrow().clone()
    }

    fn is_clogged(&self) -> bool {
        self.underway.get() > CLOGGED
    }

    fn changed(&self) -> &Notify {
        &self.own.changed
    }

    fn peer(&self) -> String {
        format!("n{}:9", self.ends.1)
    }

    fn close(&self) {
        self.closing.set(true);
        self.wake.notify();
    }
}
