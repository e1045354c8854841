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
use turnstone_net::wire::change;
use turnstone_replication::wire::Frame;

/// Bytes on their way at which a link counts as clogged.
const CLOGGED: usize = 64 << 10;
/// A direction that is cut is looked at again after this time.
const LOOK: Duration = Duration::from_millis(7);
/// A part of a long frame arrives at least this often.
const PART: Duration = Duration::from_millis(200);

/// What is wrong with the network, and what it carried.
#[derive(Default)]
pub struct Weather {
    /// Directions that nothing passes.
    pub cut: RefCell<BTreeSet<(usize, usize)>>,
    /// Frames take up to this long.
    pub delay: Cell<Duration>,
    /// Percent of frames that take a hundred times as long.
    pub slow_percent: Cell<u64>,
    /// Bytes per second that a direction of a connection carries; 0 for no limit.
    pub bandwidth: Cell<u64>,
    /// Frames that were sent, by sender.
    pub sent: RefCell<BTreeMap<usize, u64>>,
    /// Hellos that were sent, by follower and leader.
    pub hellos: RefCell<BTreeMap<(usize, usize), u64>>,
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
    /// Frames that arrived, encoded.
    inbox: RefCell<VecDeque<Vec<u8>>>,
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
    /// Stands for the public key that the other side has proved to have.
    other_key: [u8; 32],
    own: Rc<Half>,
    /// Frames on their way to the other end: when they are due, and their bytes.
    outbox: Underway,
    underway: Rc<Cell<usize>>,
    wake: Rc<Notify>,
    closing: Rc<Cell<bool>>,
}

/// A new connection between two parties, each with its public key: the dialing end and the other.
pub fn connect(
    world: &Rc<World>,
    weather: &Rc<Weather>,
    (from, from_key): (usize, [u8; 32]),
    (to, to_key): (usize, [u8; 32]),
) -> (Rc<SimLink>, Rc<SimLink>) {
    let half = || {
        Rc::new(Half {
            inbox: RefCell::default(),
            heard: Cell::default(),
            changed: Notify::default(),
            gone: RefCell::default(),
        })
    };
    let (a, b) = (half(), half());
    let end = |own: &Rc<Half>, other: &Rc<Half>, ends: (usize, usize), other_key: [u8; 32]| {
        let link = Rc::new(SimLink {
            world: world.clone(),
            weather: weather.clone(),
            ends,
            other_key,
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
    (end(&a, &b, (from, to), to_key), end(&b, &a, (to, from), from_key))
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
            loop {
                let left = due.saturating_sub(self.world.now());
                if left.is_zero() {
                    break;
                }
                self.world.sleep(left.min(PART)).await;
                if self.weather.bandwidth.get() > 0 && !self.weather.is_cut(self.ends.0, self.ends.1) {
                    self.other.heard.set(true);
                    self.other.changed.notify();
                }
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
            self.other.inbox.borrow_mut().push_back(bytes);
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

impl SimLink {
    /// Sends an encoded frame.
    fn send(&self, bytes: Vec<u8>) {
        if self.own.gone.borrow().is_some() || self.closing.get() {
            return;
        }
        *self.weather.sent.borrow_mut().entry(self.ends.0).or_default() += 1;
        let micros = self.weather.delay.get().as_micros() as u64;
        let mut delay = Duration::from_micros(20 + self.world.rng.below(micros));
        if self.world.rng.percent(self.weather.slow_percent.get()) {
            delay *= 100;
        }
        let mut outbox = self.outbox.borrow_mut();
        let mut before = outbox.back().map_or(Duration::ZERO, |(due, _)| *due);
        if let Some(micros) = (bytes.len() as u64 * 1_000_000).checked_div(self.weather.bandwidth.get()) {
            before = before.max(self.world.now()) + Duration::from_micros(micros);
        }
        self.underway.set(self.underway.get() + bytes.len());
        outbox.push_back(((self.world.now() + delay).max(before), bytes));
        self.wake.notify();
    }

    fn receive(&self) -> Option<Vec<u8>> {
        self.own.inbox.borrow_mut().pop_front()
    }
}

impl Speaks<Frame> for SimLink {
    fn say(&self, frame: &Frame) {
        if matches!(frame, Frame::Hello(_)) {
            *self.weather.hellos.borrow_mut().entry(self.ends).or_default() += 1;
        }
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.send(bytes);
    }

    fn next(&self) -> Result<Option<Frame>, String> {
        let Some(bytes) = self.receive() else { return Ok(None) };
        match Frame::decode(&bytes) {
            Ok(Some((frame, _))) => Ok(Some(frame)),
            other => Err(format!("a frame cannot be read: {other:?}")),
        }
    }
}

impl Speaks<change::Frame> for SimLink {
    fn say(&self, frame: &change::Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.send(bytes);
    }

    fn next(&self) -> Result<Option<change::Frame>, String> {
        let Some(bytes) = self.receive() else { return Ok(None) };
        match change::Frame::decode(&bytes) {
            Ok(Some((frame, _))) => Ok(Some(frame)),
            other => Err(format!("a frame cannot be read: {other:?}")),
        }
    }
}

impl Link for SimLink {
    fn identity(&self) -> ([u8; 32], String) {
        (self.other_key, format!("n{}", self.ends.1))
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
