//! An index that is atomic and durable per ingestion, and unreliable in every way its contract allows.
//!
//! Fault model: an ingestion may be slow; it may fail without effect, or fail although it was applied; a crash while it
//! finishes leaves it applied or not. An index may refuse to answer until it is reopened (poisoned). After a crash it may
//! be missing, unreadable, or one ingestion behind (stale): the engine must rebuild it then. Its data may rot: it opens and
//! takes ingestions, but every look-up fails until it is built anew.

use super::world::World;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use turnstone_engine::index::{Found, Index, IndexError, Page};
use turnstone_engine::manifest::Mark;
use turnstone_engine::run::decode_chunk;
use turnstone_engine::types::{Settled, Version};

type Keys = Rc<BTreeMap<Vec<u8>, (Version, Settled)>>;

#[derive(Clone, Default)]
struct Directory {
    keys: Keys,
    mark: Option<Mark>,
    before: Option<(Keys, Option<Mark>)>,
    damaged: bool,
    rotten: bool,
    finishing: Option<(Keys, Mark)>,
}

/// The index directories on a disk.
#[derive(Clone, Default)]
pub struct IndexImage {
    directories: BTreeMap<u32, Directory>,
}

impl IndexImage {
    /// What a crash leaves; `choice` is the seed's.
    pub fn crash(&self, choice: u64) -> IndexImage {
        let mut image = self.clone();
        for directory in image.directories.values_mut() {
            if let Some((keys, mark)) = directory.finishing.take()
                && choice & 1 == 1
            {
                directory.before = Some((directory.keys.clone(), directory.mark));
                (directory.keys, directory.mark) = (keys, Some(mark));
            }
            // One in 32 each: unreadable, stale.
            match (choice >> 1) % 32 {
                0 => directory.damaged = true,
                2 => directory.rotten = true,
                1 => {
                    if let Some((keys, mark)) = directory.before.take() {
                        (directory.keys, directory.mark) = (keys, mark);
                    }
                }
                _ => {}
            }
        }
        if (choice >> 8).is_multiple_of(48) {
            image.directories.clear();
        }
        image
    }

    /// A number for the content.
    pub fn hash(&self) -> u64 {
        let mut hash = 0;
        for (number, directory) in &self.directories {
            let mark = directory.mark.unwrap_or_default();
            let damaged = u64::from(directory.damaged) | u64::from(directory.rotten) << 1;
            hash = super::rng::mix(
                hash ^ u64::from(*number) ^ (mark.version << 8) ^ (u64::from(mark.run) << 32) ^ damaged << 62,
            );
        }
        hash
    }
}

use super::disk::Observer;

struct Shared {
    world: Rc<World>,
    image: RefCell<IndexImage>,
    open: Cell<Option<u32>>,
    ingesting: RefCell<Option<(Keys, Mark)>>,
    poisoned: Cell<bool>,
    faults: Cell<bool>,
    /// It takes no ingestion.
    refuses: Cell<bool>,
    /// It takes no ingestion, as it has yet to work off others.
    behind: Cell<bool>,
    /// The first operation that the system has nothing for, and how many there are.
    lacks: Cell<Option<(u64, u64)>>,
    operations: Cell<u64>,
    rotted: Cell<bool>,
    /// How often a directory was opened, or closed.
    openings: Cell<u64>,
    observer: RefCell<Option<Observer>>,
}

/// What a simulated index had at one time.
pub struct View {
    opening: u64,
    keys: Keys,
}

/// A handle on a simulated index.
#[derive(Clone)]
pub struct SimIndex(Rc<Shared>);

impl SimIndex {
    /// An index over these directories; with `faults`, it fails now and then.
    pub fn new(world: Rc<World>, image: IndexImage, faults: bool) -> SimIndex {
        SimIndex(Rc::new(Shared {
            world,
            image: RefCell::new(image),
            open: Cell::new(None),
            ingesting: RefCell::default(),
            poisoned: Cell::new(false),
            faults: Cell::new(faults),
            refuses: Cell::new(false),
            behind: Cell::new(false),
            lacks: Cell::new(None),
            operations: Cell::new(0),
            rotted: Cell::new(false),
            openings: Cell::new(0),
            observer: RefCell::default(),
        }))
    }

    /// Calls `observer` after every step.
    pub fn observe(&self, observer: Option<Observer>) {
        *self.0.observer.borrow_mut() = observer;
    }

    /// Stops observing, and answers who did.
    pub fn take_observer(&self) -> Option<Observer> {
        self.0.observer.borrow_mut().take()
    }

    /// The state now.
    pub fn image(&self) -> IndexImage {
        self.0.image.borrow().clone()
    }

    /// From now on it is behind, or has caught up.
    pub fn fall_behind(&self, behind: bool) {
        self.0.behind.set(behind);
    }

    /// Whether it takes no ingestion, until told otherwise.
    pub fn refuse(&self, refuses: bool) {
        self.0.refuses.set(refuses);
    }

    /// The directory that is open opens well, and answers nothing from now on.
    pub fn rot(&self) {
        let mut image = self.0.image.borrow_mut();
        if let Some(directory) = self.0.open.get().and_then(|number| image.directories.get_mut(&number)) {
            directory.rotten = true;
        }
    }

    /// The system has nothing for `count` operations from the `from`th on, counted from its beginning.
    pub fn lack(&self, operations: Option<(u64, u64)>) {
        self.0.lacks.set(operations);
    }

    /// Operations so far that the system may have nothing for.
    pub fn operations(&self) -> u64 {
        self.0.operations.get()
    }

    fn may(&self) -> Result<(), IndexError> {
        let number = self.0.operations.get();
        self.0.operations.set(number + 1);
        match self.0.lacks.get() {
            Some((from, count)) if (from..from.saturating_add(count)).contains(&number) => {
                Err(IndexError::Refused("too many open files (simulated)".into()))
            }
            _ => Ok(()),
        }
    }

    fn step(&self, kind: &'static str) {
        self.0.world.steps.set(self.0.world.steps.get() + 1);
        self.0.world.note(kind.len() as u64);
        let observer = self.0.observer.borrow().clone();
        if let Some(observer) = observer {
            observer(kind);
        }
    }

    fn fails(&self, percent: u64) -> bool {
        self.0.faults.get() && self.0.world.rng.percent(percent)
    }

    fn number(&self) -> Result<u32, IndexError> {
        if self.0.poisoned.get() {
            return Err(IndexError::Failed("poisoned (simulated)".into()));
        }
        self.0.open.get().ok_or_else(|| IndexError::Failed("not open (simulated)".into()))
    }
}

impl Index for SimIndex {
    type View = View;

    async fn open(&self, number: u32, create: bool) -> Result<Option<Mark>, IndexError> {
        self.0.open.set(None);
        self.0.openings.set(self.0.openings.get() + 1);
        self.may()?;
        self.0.world.device_time().await;
        self.0.poisoned.set(false);
        *self.0.ingesting.borrow_mut() = None;
        {
            let mut image = self.0.image.borrow_mut();
            if create {
                image.directories.insert(number, Directory::default());
            }
            match image.directories.get_mut(&number) {
                None => return Err(IndexError::Failed("missing (simulated)".into())),
                Some(directory) if directory.damaged => return Err(IndexError::Failed("damaged (simulated)".into())),
                Some(directory) => directory.finishing = None,
            }
        }
        self.0.open.set(Some(number));
        if create {
            self.step("index create");
        }
        Ok(self.0.image.borrow().directories.get(&number).and_then(|d| d.mark))
    }

    async fn get_many(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Found>, IndexError> {
        self.may()?;
        if self.fails(1) {
            self.0.poisoned.set(true);
        }
        let number = self.number()?;
        // The question is answered by the state at some moment between asking and answering, and arrives later.
        self.0.world.device_time().await;
        let answer: Vec<Found> = {
            let image = self.0.image.borrow();
            let directory =
                image.directories.get(&number).ok_or_else(|| IndexError::Failed("missing (simulated)".into()))?;
            if directory.rotten {
                return Err(IndexError::Failed("a block fails its checksum (simulated)".into()));
            }
            keys.iter().map(|key| directory.keys.get(key).cloned()).collect()
        };
        for _ in 0..self.0.world.rng.below(4) {
            self.0.world.device_time().await;
        }
        if self.0.world.rng.percent(5) {
            self.0.world.sleep(std::time::Duration::from_millis(self.0.world.rng.below(20))).await;
        }
        Ok(answer)
    }

    async fn view(&self) -> Result<View, IndexError> {
        self.may()?;
        let number = self.number()?;
        let image = self.0.image.borrow();
        let keys = image.directories.get(&number).map(|directory| directory.keys.clone()).unwrap_or_default();
        Ok(View { opening: self.0.openings.get(), keys })
    }

    async fn scan(&self, view: &View, after: Option<Vec<u8>>, limit: usize) -> Result<Option<Page>, IndexError> {
        self.may()?;
        let number = self.number()?;
        self.0.world.device_time().await;
        let image = self.0.image.borrow();
        let directory =
            image.directories.get(&number).ok_or_else(|| IndexError::Failed("missing (simulated)".into()))?;
        if directory.rotten {
            return Err(IndexError::Failed("a block fails its checksum (simulated)".into()));
        }
        if view.opening != self.0.openings.get() {
            return Ok(None);
        }
        let behind = |key: &Vec<u8>| after.as_ref().is_none_or(|after| key > after);
        let page = view.keys.iter().filter(|(key, _)| behind(key)).take(limit);
        Ok(Some(page.map(|(key, (version, settled))| (key.clone(), *version, *settled)).collect()))
    }

    fn compactions(&self) -> u64 {
        0
    }

    async fn ingest_begin(&self, mark: Mark) -> Result<(), IndexError> {
        self.may()?;
        let number = self.number()?;
        let keys = self.0.image.borrow().directories.get(&number).map(|d| d.keys.clone()).unwrap_or_default();
        *self.0.ingesting.borrow_mut() = Some((keys, mark));
        Ok(())
    }

    async fn ingest_chunk(&self, chunk: Vec<u8>) -> Result<(), IndexError> {
        self.number()?;
        self.0.world.device_time().await;
        let entries = decode_chunk(&chunk).map_err(|_| IndexError::Failed("malformed chunk".into()))?;
        let mut ingesting = self.0.ingesting.borrow_mut();
        let Some((keys, _)) = ingesting.as_mut() else { return Err(IndexError::Failed("no ingestion".into())) };
        let keys = Rc::make_mut(keys);
        for entry in entries {
            match entry.settled {
                Settled::Tombstone => keys.remove(&entry.key),
                settled => keys.insert(entry.key, (entry.version, settled)),
            };
        }
        Ok(())
    }

    async fn ingest_finish(&self) -> Result<(), IndexError> {
        if let Err(error) = self.may() {
            *self.0.ingesting.borrow_mut() = None;
            return Err(error);
        }
        let number = self.number()?;
        let Some((keys, mark)) = self.0.ingesting.borrow_mut().take() else {
            return Err(IndexError::Failed("no ingestion".into()));
        };
        if self.0.behind.get() {
            return Err(IndexError::Behind("it is behind (simulated)".into()));
        }
        if self.0.refuses.get() || self.fails(4) {
            return Err(IndexError::Failed("the ingestion failed (simulated)".into()));
        }
        if let Some(directory) = self.0.image.borrow_mut().directories.get_mut(&number) {
            directory.finishing = Some((keys.clone(), mark));
        }
        self.step("index ingest begun");
        self.0.world.device_time().await;
        if let Some(directory) = self.0.image.borrow_mut().directories.get_mut(&number) {
            directory.finishing = None;
            directory.before = Some((directory.keys.clone(), directory.mark));
            (directory.keys, directory.mark) = (keys, Some(mark));
            // Once in a life: an index that rots whenever it is built cannot be helped.
            if !self.0.rotted.get() && self.fails(2) {
                self.0.rotted.set(true);
                directory.rotten = true;
            }
        }
        self.step("index ingest done");
        if self.fails(4) {
            return Err(IndexError::Failed("the ingestion failed although it was applied (simulated)".into()));
        }
        Ok(())
    }

    async fn close(&self) {
        self.0.openings.set(self.0.openings.get() + 1);
        self.0.open.set(None);
    }

    async fn remove(&self, number: u32) -> Result<(), IndexError> {
        self.may()?;
        self.0.world.device_time().await;
        self.0.image.borrow_mut().directories.remove(&number);
        self.step("index remove");
        Ok(())
    }

    async fn list(&self) -> Result<Vec<u32>, IndexError> {
        self.may()?;
        Ok(self.0.image.borrow().directories.keys().copied().collect())
    }
}
