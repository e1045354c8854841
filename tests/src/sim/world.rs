//! The scheduler: any task that is ready may run next, by the seed; time jumps to the next timer when none is.
//!
//! Tasks have an owner, which those that they start inherit: the tasks of a node go when it crashes.

use super::rng::{Rng, mix};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

type Task = Pin<Box<dyn Future<Output = ()>>>;

struct TaskWaker {
    id: usize,
    ready: Arc<Mutex<Vec<usize>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.ready.lock().expect("one thread").push(self.id);
    }
}

/// One run's time, tasks and choices.
pub struct World {
    /// The seed's choices.
    pub rng: Rng,
    now: Cell<Duration>,
    tasks: RefCell<Vec<Option<Task>>>,
    owners: RefCell<Vec<u32>>,
    spawned: RefCell<Vec<(u32, Task)>>,
    /// Whose task runs.
    owner: Cell<u32>,
    ready: Arc<Mutex<Vec<usize>>>,
    timers: RefCell<BTreeMap<(Duration, u64), Waker>>,
    serial: Cell<u64>,
    halted: RefCell<Option<String>>,
    trace: Cell<u64>,
    /// What wall clocks were set by, milliseconds.
    pub wall_step_ms: Cell<i64>,
    /// Devices take so many times as long.
    pub slowness: Cell<u64>,
    /// Operations so far.
    pub steps: Cell<u64>,
    /// The lines that were logged.
    pub log: RefCell<Vec<String>>,
}

/// Why a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End<T> {
    /// The main task is done.
    Done(T),
    /// The process under test ended itself.
    Halted(String),
    /// Nothing can go on.
    Deadlock,
}

impl World {
    /// A world of this seed.
    pub fn new(seed: u64) -> Rc<World> {
        Rc::new(World {
            rng: Rng::new(seed),
            now: Cell::new(Duration::ZERO),
            tasks: RefCell::default(),
            owners: RefCell::default(),
            owner: Cell::new(0),
            spawned: RefCell::default(),
            ready: Arc::default(),
            timers: RefCell::default(),
            serial: Cell::new(0),
            halted: RefCell::default(),
            trace: Cell::new(0),
            wall_step_ms: Cell::new(0),
            slowness: Cell::new(1),
            steps: Cell::new(0),
            log: RefCell::default(),
        })
    }

    /// Adds a line to the log.
    pub fn log_line(&self, line: impl std::fmt::Display) {
        self.log.borrow_mut().push(format!("{:9.4} {line}", self.now().as_secs_f64()));
    }

    /// Virtual time.
    pub fn now(&self) -> Duration {
        self.now.get()
    }

    /// Whose task runs.
    pub fn owner(&self) -> u32 {
        self.owner.get()
    }

    /// A number that depends on everything that happened, in order.
    pub fn trace(&self) -> u64 {
        self.trace.get()
    }

    /// Adds to the trace.
    pub fn note(&self, what: u64) {
        self.trace.set(mix(self.trace.get() ^ what));
    }

    /// Starts a task of whoever runs now.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.spawn_for(self.owner.get(), task);
    }

    /// Starts a task of this owner.
    pub fn spawn_for(&self, owner: u32, task: impl Future<Output = ()> + 'static) {
        self.spawned.borrow_mut().push((owner, Box::pin(task)));
    }

    /// Drops the tasks of an owner, which must not be the one that runs.
    pub fn drop_tasks_of(&self, owner: u32) {
        assert_ne!(owner, self.owner.get(), "a task cannot drop itself");
        let ids: Vec<usize> = {
            let owners = self.owners.borrow();
            (0..owners.len()).filter(|id| owners[*id] == owner).collect()
        };
        let gone: Vec<Option<Task>> = ids.into_iter().map(|id| self.tasks.borrow_mut()[id].take()).collect();
        drop(gone);
        let (gone, kept) = self.spawned.take().into_iter().partition(|(whose, _)| *whose == owner);
        *self.spawned.borrow_mut() = kept;
        let gone: Vec<(u32, Task)> = gone;
        drop(gone);
    }

    /// The process ends itself.
    pub fn halt(&self, why: String) {
        self.halted.borrow_mut().get_or_insert(why);
    }

    /// Ends after `how_long` of virtual time.
    pub async fn sleep(&self, how_long: Duration) {
        let serial = self.serial.get();
        self.serial.set(serial + 1);
        let at = (self.now.get() + how_long, serial);
        poll_fn(|cx| {
            if self.now.get() >= at.0 {
                return Poll::Ready(());
            }
            self.timers.borrow_mut().insert(at, cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// The time an operation of a device takes.
    pub async fn device_time(&self) {
        let micros = (1 + self.rng.below(300)) * self.slowness.get();
        self.sleep(Duration::from_micros(micros)).await;
    }

    fn adopt(&self) {
        for (owner, task) in self.spawned.borrow_mut().drain(..) {
            let mut tasks = self.tasks.borrow_mut();
            tasks.push(Some(task));
            self.owners.borrow_mut().push(owner);
            self.ready.lock().expect("one thread").push(tasks.len() - 1);
        }
    }

    fn next_ready(&self) -> Option<usize> {
        let mut ready = self.ready.lock().expect("one thread");
        if ready.is_empty() {
            return None;
        }
        let pick = self.rng.below(ready.len() as u64) as usize;
        let id = ready.swap_remove(pick);
        ready.retain(|other| *other != id);
        Some(id)
    }

    /// Runs `main` and whatever it spawns until it is done.
    pub fn run<T: 'static>(self: &Rc<Self>, main: impl Future<Output = T> + 'static) -> End<T> {
        let answer = Rc::new(RefCell::new(None));
        let slot = answer.clone();
        self.spawn(async move {
            let value = main.await;
            *slot.borrow_mut() = Some(value);
        });
        loop {
            self.adopt();
            if let Some(why) = self.halted.borrow().clone() {
                return End::Halted(why);
            }
            if let Some(value) = answer.borrow_mut().take() {
                return End::Done(value);
            }
            let Some(id) = self.next_ready() else {
                let Some(((at, _), waker)) = self.timers.borrow_mut().pop_first() else { return End::Deadlock };
                self.now.set(self.now.get().max(at));
                waker.wake();
                continue;
            };
            let task = self.tasks.borrow_mut()[id].take();
            let Some(mut task) = task else { continue };
            self.note(id as u64);
            self.owner.set(self.owners.borrow()[id]);
            let waker = Waker::from(Arc::new(TaskWaker { id, ready: self.ready.clone() }));
            if task.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
                self.tasks.borrow_mut()[id] = Some(task);
            }
            self.owner.set(0);
        }
    }

    /// Drops every task, as a crash does.
    pub fn drop_tasks(&self) {
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        drop(tasks);
        self.owners.borrow_mut().clear();
        self.spawned.borrow_mut().clear();
        self.timers.borrow_mut().clear();
    }
}
