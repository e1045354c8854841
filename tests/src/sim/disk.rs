//! A disk that keeps what it promised and no more.
//!
//! Fault model, per crash of the power:
//! - A write that no completed flush covers survives wholly, in part (512-byte sectors, any subset) or not at all,
//!   whatever became of the writes before and after it.
//! - A change of length that no flush of its file covers may be lost.
//! - A creation, rename or removal before the last completed directory sync holds; later ones survive in any subset.
//! - Flushed bytes and synced names stay, but for planted rot.
//!
//! A crash of the process alone keeps what was completed, as *still not flushed*: a later loss of power may take it.

use super::rng::mix;
use super::world::World;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use turnstone_engine::buffer::{AlignedBuf, ReadBuf};
use turnstone_engine::disk::{BLOCK, Disk, DiskError, DiskErrorKind, File, IoClass, OpenMode};
use turnstone_engine::names;

const SECTOR: usize = 512;

/// A block with the hash of its content.
#[derive(Clone)]
struct Block(Rc<([u8; BLOCK], u64)>);

impl Block {
    fn new(bytes: [u8; BLOCK]) -> Block {
        let mut hash = 0;
        for word in bytes.chunks_exact(8) {
            let word = u64::from_le_bytes(word.try_into().expect("8 bytes"));
            hash = (hash ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        }
        Block(Rc::new((bytes, hash)))
    }
}

#[derive(Clone, Default)]
struct Content {
    blocks: Rc<BTreeMap<u64, Block>>,
    length: u64,
}

impl Content {
    fn block(&self, index: u64) -> [u8; BLOCK] {
        self.blocks.get(&index).map_or([0; BLOCK], |b| b.0.0)
    }
    fn write(&mut self, offset: u64, bytes: &[u8], sectors: impl Fn(usize) -> bool) {
        let blocks = Rc::make_mut(&mut self.blocks);
        for (i, chunk) in bytes.chunks(BLOCK).enumerate() {
            let index = offset / BLOCK as u64 + i as u64;
            let mut block = blocks.get(&index).map_or([0; BLOCK], |b| b.0.0);
            let mut any = false;
            for s in 0..BLOCK / SECTOR {
                if sectors(i * (BLOCK / SECTOR) + s) {
                    block[s * SECTOR..(s + 1) * SECTOR].copy_from_slice(&chunk[s * SECTOR..(s + 1) * SECTOR]);
                    any = true;
                }
            }
            if any {
                blocks.insert(index, Block::new(block));
            }
        }
    }
    fn set_length(&mut self, length: u64) {
        if length < self.length {
            let keep = length.div_ceil(BLOCK as u64);
            Rc::make_mut(&mut self.blocks).retain(|index, _| *index < keep);
        }
        self.length = length;
    }
}

#[derive(Clone)]
enum Change {
    Write(u64, Rc<Vec<u8>>),
    Length(u64),
}

#[derive(Clone)]
struct Pending {
    serial: u64,
    completed: bool,
    change: Change,
}

#[derive(Clone, Default)]
struct Inode {
    durable: Content,
    live: Content,
    pending: Vec<Pending>,
}

#[derive(Clone)]
enum NameChange {
    Bind(String, u64),
    Rename(String, String, u64),
    Remove(String),
}

/// The state of a disk: what is durable, and what is on its way.
#[derive(Clone, Default)]
pub struct DiskImage {
    inodes: BTreeMap<u64, Inode>,
    durable_names: BTreeMap<String, u64>,
    live_names: BTreeMap<String, u64>,
    /// The live name of each file that has one.
    names_of: BTreeMap<u64, String>,
    /// With the serial of each, so that a sync covers just those that were made before it began.
    name_changes: Vec<(u64, NameChange)>,
    next_change: u64,
    next: u64,
}

/// How a crash decides about what was not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All of it is gone.
    Everything,
    /// All of it survived.
    Nothing,
    /// Each piece as the seed says, torn where it likes.
    Random(u64),
    /// Only the process died: what was completed stays, not flushed.
    ProcessOnly,
}

fn apply_name(names: &mut BTreeMap<String, u64>, change: &NameChange) {
    match change {
        NameChange::Bind(name, inode) => {
            names.insert(name.clone(), *inode);
        }
        NameChange::Rename(from, to, inode) => {
            if names.get(from) == Some(inode) {
                names.remove(from);
            }
            names.insert(to.clone(), *inode);
        }
        NameChange::Remove(name) => {
            names.remove(name);
        }
    }
}

impl DiskImage {
    fn change_name(&mut self, change: NameChange) {
        self.name_changes.push((self.next_change, change));
        self.next_change += 1;
    }

    /// What is found after a crash.
    pub fn crash(&self, loss: Loss) -> DiskImage {
        let mut image = self.clone();
        if loss == Loss::ProcessOnly {
            for inode in image.inodes.values_mut() {
                inode.pending.retain(|p| p.completed);
                inode.live = inode.durable.clone();
                for pending in inode.pending.clone() {
                    match &pending.change {
                        Change::Write(offset, bytes) => inode.live.write(*offset, bytes, |_| true),
                        Change::Length(length) => inode.live.set_length(*length),
                    }
                }
            }
            return image;
        }
        let choose = |salt: u64| match loss {
            Loss::Everything => 0,
            Loss::Nothing => 2,
            // Lost, torn, or whole.
            Loss::Random(seed) => mix(seed ^ salt) % 3,
            Loss::ProcessOnly => 2,
        };
        for (id, inode) in &mut image.inodes {
            for pending in std::mem::take(&mut inode.pending) {
                let salt = mix(id.wrapping_mul(31) ^ pending.serial);
                let fate = choose(salt);
                match &pending.change {
                    Change::Write(offset, bytes) => match fate {
                        0 => {}
                        1 => inode
                            .durable
                            .write(*offset, bytes, |sector| mix(salt ^ sector as u64 ^ 77).is_multiple_of(2)),
                        _ => inode.durable.write(*offset, bytes, |_| true),
                    },
                    Change::Length(length) => {
                        if fate != 0 {
                            inode.durable.set_length(*length);
                        }
                    }
                }
            }
            inode.live = inode.durable.clone();
        }
        for (i, (_, change)) in std::mem::take(&mut image.name_changes).iter().enumerate() {
            if choose(mix(0xD1_0000 + i as u64)) != 0 {
                apply_name(&mut image.durable_names, change);
            }
        }
        image.live_names = image.durable_names.clone();
        image.names_of = image.live_names.iter().map(|(name, id)| (*id, name.clone())).collect();
        let named: std::collections::BTreeSet<u64> = image.live_names.values().copied().collect();
        image.inodes.retain(|id, _| named.contains(id));
        image
    }

    /// A number for everything that a recovery would read.
    pub fn hash(&self) -> u64 {
        let mut hash = 0;
        for (name, id) in &self.live_names {
            for byte in name.bytes() {
                hash = mix(hash ^ u64::from(byte));
            }
            let Some(inode) = self.inodes.get(id) else { continue };
            hash = mix(hash ^ inode.live.length);
            for (index, block) in inode.live.blocks.iter() {
                if index * (BLOCK as u64) < inode.live.length {
                    hash = mix(hash ^ index ^ block.0.1);
                }
            }
        }
        hash
    }

    /// Names and used lengths, for tests that choose where to plant rot.
    pub fn names(&self) -> Vec<String> {
        self.live_names.keys().cloned().collect()
    }

    /// Offsets of blocks of a file that are not all zero.
    pub fn written_blocks(&self, name: &str) -> Vec<u64> {
        let Some(inode) = self.live_names.get(name).and_then(|id| self.inodes.get(id)) else { return Vec::new() };
        let used = |(index, block): (&u64, &Block)| {
            (index * (BLOCK as u64) < inode.live.length && block.0.0.iter().any(|b| *b != 0))
                .then_some(index * BLOCK as u64)
        };
        inode.live.blocks.iter().filter_map(used).collect()
    }

    /// Flips bits of a flushed byte.
    pub fn rot(&mut self, name: &str, offset: u64, mask: u8) {
        let Some(inode) = self.live_names.get(name).and_then(|id| self.inodes.get_mut(id)) else { return };
        for content in [&mut inode.live, &mut inode.durable] {
            let index = offset / BLOCK as u64;
            let mut block = content.block(index);
            block[(offset % BLOCK as u64) as usize] ^= mask;
            Rc::make_mut(&mut content.blocks).insert(index, Block::new(block));
        }
    }

    /// Cuts a file to so many bytes, or takes it away, as a bad restore does.
    pub fn damage(&mut self, name: &str, length: Option<u64>) {
        let Some(length) = length else {
            self.live_names.remove(name);
            self.durable_names.remove(name);
            return;
        };
        let Some(inode) = self.live_names.get(name).and_then(|id| self.inodes.get_mut(id)) else { return };
        inode.live.set_length(length);
        inode.durable.set_length(length);
    }

    /// Bytes of a file.
    pub fn length(&self, name: &str) -> u64 {
        self.live_names.get(name).and_then(|id| self.inodes.get(id)).map_or(0, |inode| inode.live.length)
    }

    /// The byte at a place.
    pub fn byte(&self, name: &str, offset: u64) -> u8 {
        let Some(inode) = self.live_names.get(name).and_then(|id| self.inodes.get(id)) else { return 0 };
        inode.live.block(offset / BLOCK as u64)[(offset % BLOCK as u64) as usize]
    }
}

/// Is told the kind of every step.
pub type Observer = Rc<dyn Fn(&'static str)>;

/// Operations that the system refuses, by their place in the order of all of them.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    /// What it says: [`DiskErrorKind::NoSpace`] concerns what may take space, [`DiskErrorKind::Refused`] all but flushes.
    pub kind: DiskErrorKind,
    /// The first one that is refused.
    pub from: u64,
    /// How many are.
    pub count: u64,
}

struct Shared {
    world: Rc<World>,
    image: RefCell<DiskImage>,
    observer: RefCell<Option<Observer>>,
    full: Cell<bool>,
    refusal: Cell<Option<Refusal>>,
    operations: Cell<u64>,
    serial: Cell<u64>,
}

/// A handle on a simulated disk.
#[derive(Clone)]
pub struct SimDisk(Rc<Shared>);

impl SimDisk {
    /// A disk with this content.
    pub fn new(world: Rc<World>, image: DiskImage) -> SimDisk {
        SimDisk(Rc::new(Shared {
            world,
            image: RefCell::new(image),
            observer: RefCell::default(),
            full: Cell::new(false),
            refusal: Cell::new(None),
            operations: Cell::new(0),
            serial: Cell::new(1 << 32),
        }))
    }

    /// Calls `observer` after every step, with its kind.
    pub fn observe(&self, observer: Option<Observer>) {
        *self.0.observer.borrow_mut() = observer;
    }

    /// Stops observing, and answers who did.
    pub fn take_observer(&self) -> Option<Observer> {
        self.0.observer.borrow_mut().take()
    }

    /// The state now.
    pub fn image(&self) -> DiskImage {
        self.0.image.borrow().clone()
    }

    /// Flips bits of a flushed byte, under whoever reads it next.
    pub fn rot(&self, name: &str, offset: u64, mask: u8) {
        self.0.image.borrow_mut().rot(name, offset, mask);
    }

    /// Whether allocations find no space.
    pub fn set_full(&self, full: bool) {
        self.0.full.set(full);
    }

    /// Refuses operations from now on, counted from the disk's beginning.
    pub fn refuse(&self, refusal: Option<Refusal>) {
        self.0.refusal.set(refusal);
    }

    /// Operations so far that the system may refuse.
    pub fn operations(&self) -> u64 {
        self.0.operations.get()
    }

    /// Counts an operation, and refuses it if that is its place.
    fn may(&self, operation: &'static str, file: &str, takes_space: bool) -> Result<(), DiskError> {
        let number = self.0.operations.get();
        self.0.operations.set(number + 1);
        let refusal = self.0.refusal.get().filter(|r| (r.from..r.from.saturating_add(r.count)).contains(&number));
        match refusal.map(|refusal| refusal.kind) {
            Some(DiskErrorKind::NoSpace) if !takes_space => Ok(()),
            Some(kind) => Err(self.error(kind, operation, file)),
            None => Ok(()),
        }
    }

    fn step(&self, kind: &'static str) {
        self.0.world.steps.set(self.0.world.steps.get() + 1);
        self.0.world.note(kind.len() as u64 ^ self.0.image.borrow().next << 8);
        let observer = self.0.observer.borrow().clone();
        if let Some(observer) = observer {
            observer(kind);
        }
    }

    fn serial(&self) -> u64 {
        self.0.serial.set(self.0.serial.get() + 1);
        self.0.serial.get()
    }

    fn error(&self, kind: DiskErrorKind, operation: &'static str, file: &str) -> DiskError {
        DiskError { kind, operation, file: file.to_string(), message: format!("{kind:?} (simulated)") }
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    async fn open(&self, name: &str, mode: OpenMode, _class: IoClass) -> Result<SimFile, DiskError> {
        self.may("open", name, mode == OpenMode::Create)?;
        self.0.world.device_time().await;
        let known = self.0.image.borrow().live_names.get(name).copied();
        let inode = match (known, mode) {
            (Some(inode), OpenMode::Existing) => inode,
            (None, OpenMode::Existing) => return Err(self.error(DiskErrorKind::NotFound, "open", name)),
            (Some(_), OpenMode::Create) => return Err(self.error(DiskErrorKind::Exists, "open", name)),
            (None, OpenMode::Create) => {
                {
                    let mut image = self.0.image.borrow_mut();
                    image.next += 1;
                    let inode = image.next;
                    image.inodes.insert(inode, Inode::default());
                    image.live_names.insert(name.to_string(), inode);
                    image.names_of.insert(inode, name.to_string());
                    image.change_name(NameChange::Bind(name.to_string(), inode));
                }
                self.step(kind_of(
                    name,
                    Kinds {
                        wal: "segment create",
                        spare: "spare create",
                        values: "value file create",
                        run: "run create",
                        manifest: "manifest create",
                    },
                ));
                self.0.image.borrow().next
            }
        };
        Ok(SimFile { disk: self.clone(), inode, name: Rc::from(name) })
    }

    async fn rename(&self, from: &str, to: &str) -> Result<(), DiskError> {
        self.may("rename", from, true)?;
        self.0.world.device_time().await;
        {
            let mut image = self.0.image.borrow_mut();
            let Some(inode) = image.live_names.remove(from) else {
                return Err(self.error(DiskErrorKind::NotFound, "rename", from));
            };
            if let Some(replaced) = image.live_names.insert(to.to_string(), inode) {
                image.names_of.remove(&replaced);
            }
            image.names_of.insert(inode, to.to_string());
            image.change_name(NameChange::Rename(from.to_string(), to.to_string(), inode));
        }
        self.step(kind_of(
            to,
            Kinds {
                wal: "segment activate",
                spare: "segment recycle",
                values: "rename",
                run: "rename",
                manifest: "manifest rename",
            },
        ));
        Ok(())
    }

    async fn remove(&self, name: &str) -> Result<(), DiskError> {
        self.may("remove", name, false)?;
        self.0.world.device_time().await;
        {
            let mut image = self.0.image.borrow_mut();
            let Some(inode) = image.live_names.remove(name) else {
                return Err(self.error(DiskErrorKind::NotFound, "remove", name));
            };
            image.names_of.remove(&inode);
            image.change_name(NameChange::Remove(name.to_string()));
        }
        self.step(kind_of(
            name,
            Kinds {
                wal: "segment remove",
                spare: "spare remove",
                values: "value file remove",
                run: "run remove",
                manifest: "manifest remove",
            },
        ));
        Ok(())
    }

    async fn list(&self) -> Result<Vec<(String, u64)>, DiskError> {
        self.may("list", "the directory", false)?;
        self.0.world.device_time().await;
        let image = self.0.image.borrow();
        Ok(image.live_names.iter().map(|(name, id)| (name.clone(), image.inodes[id].live.length)).collect())
    }

    async fn sync_names(&self) -> Result<(), DiskError> {
        let covered = self.0.image.borrow().next_change;
        self.0.world.device_time().await;
        {
            let mut image = self.0.image.borrow_mut();
            let count = image.name_changes.iter().take_while(|(serial, _)| *serial < covered).count();
            let changes: Vec<(u64, NameChange)> = image.name_changes.drain(..count).collect();
            for (_, change) in &changes {
                apply_name(&mut image.durable_names, change);
            }
        }
        self.step("names sync");
        Ok(())
    }

    async fn flush(&self, files: &[&SimFile]) -> Result<(), DiskError> {
        let covered: Vec<Vec<u64>> = files.iter().map(|f| f.completed()).collect();
        self.0.world.device_time().await;
        for (file, serials) in files.iter().zip(covered) {
            file.disk.make_durable(file.inode, &serials);
        }
        self.step("shared flush");
        Ok(())
    }
}

impl SimDisk {
    fn make_durable(&self, inode: u64, serials: &[u64]) {
        let mut image = self.0.image.borrow_mut();
        let Some(inode) = image.inodes.get_mut(&inode) else { return };
        let (covered, rest): (Vec<Pending>, Vec<Pending>) =
            inode.pending.drain(..).partition(|p| serials.contains(&p.serial));
        inode.pending = rest;
        for pending in covered {
            match &pending.change {
                Change::Write(offset, bytes) => inode.durable.write(*offset, bytes, |_| true),
                Change::Length(length) => inode.durable.set_length(*length),
            }
        }
    }
}

struct Kinds {
    wal: &'static str,
    spare: &'static str,
    values: &'static str,
    run: &'static str,
    manifest: &'static str,
}

fn kind_of(name: &str, kinds: Kinds) -> &'static str {
    if name == names::LOG_END {
        return match kinds.manifest {
            "manifest write" => "newest segment write",
            "manifest flush" => "newest segment flush",
            other => other,
        };
    }
    match name.split(['-', '.']).next().unwrap_or("") {
        "wal" => kinds.wal,
        "spare" => kinds.spare,
        "values" => kinds.values,
        "run" => kinds.run,
        _ => kinds.manifest,
    }
}

/// An open simulated file.
#[derive(Clone)]
pub struct SimFile {
    disk: SimDisk,
    inode: u64,
    name: Rc<str>,
}

impl SimFile {
    fn completed(&self) -> Vec<u64> {
        let image = self.disk.0.image.borrow();
        let pending =
            image.inodes.get(&self.inode).map(|i| i.pending.iter().filter(|p| p.completed).map(|p| p.serial).collect());
        pending.unwrap_or_default()
    }

    fn change(&self, change: Change) -> u64 {
        let serial = self.disk.serial();
        let mut image = self.disk.0.image.borrow_mut();
        if let Some(inode) = image.inodes.get_mut(&self.inode) {
            match &change {
                Change::Write(offset, bytes) => {
                    inode.live.write(*offset, bytes, |_| true);
                    let end = offset + bytes.len() as u64;
                    if end > inode.live.length {
                        inode.live.length = end;
                        inode.pending.push(Pending { serial, completed: true, change: Change::Length(end) });
                    }
                }
                Change::Length(length) => inode.live.set_length(*length),
            }
            inode.pending.push(Pending { serial, completed: false, change });
        }
        serial
    }

    fn complete(&self, serial: u64) {
        let mut image = self.disk.0.image.borrow_mut();
        if let Some(inode) = image.inodes.get_mut(&self.inode) {
            inode.pending.iter_mut().filter(|p| p.serial == serial).for_each(|p| p.completed = true);
        }
    }

    fn kind(&self, kinds: Kinds) -> &'static str {
        // A spare that became a segment keeps its old name in its handle; every write to it but zeros is the log's.
        let image = self.disk.0.image.borrow();
        kind_of(image.names_of.get(&self.inode).map_or(&*self.name, String::as_str), kinds)
    }
}

impl File for SimFile {
    async fn length(&self) -> Result<u64, DiskError> {
        Ok(self.disk.0.image.borrow().inodes.get(&self.inode).map_or(0, |i| i.live.length))
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<ReadBuf, DiskError> {
        self.disk.may("read", &self.name, false)?;
        self.disk.0.world.device_time().await;
        let image = self.disk.0.image.borrow();
        let empty = Content::default();
        let content = image.inodes.get(&self.inode).map_or(&empty, |i| &i.live);
        let length = (length as u64).min(content.length.saturating_sub(offset)) as usize;
        let mut buffer = AlignedBuf::zeroed(length);
        let mut done = 0;
        while done < length {
            let at = offset + done as u64;
            let within = (at % BLOCK as u64) as usize;
            let n = (BLOCK - within).min(length - done);
            if let Some(block) = content.blocks.get(&(at / BLOCK as u64)) {
                buffer[done..done + n].copy_from_slice(&block.0.0[within..within + n]);
            }
            done += n;
        }
        Ok(ReadBuf::new(buffer, 0..length))
    }

    async fn write_at(&self, buffer: AlignedBuf, offset: u64) -> Result<(), DiskError> {
        self.disk.may("write", &self.name, true)?;
        if self.disk.0.full.get() && offset + buffer.len() as u64 > self.length().await? {
            return Err(self.disk.error(DiskErrorKind::NoSpace, "write", &self.name));
        }
        let serial = self.change(Change::Write(offset, Rc::new(buffer.to_vec())));
        self.disk.step(self.kind(Kinds {
            wal: "log write",
            spare: "spare write",
            values: "value write",
            run: "run write",
            manifest: "manifest write",
        }));
        self.disk.0.world.device_time().await;
        self.complete(serial);
        Ok(())
    }

    async fn write_durable(&self, buffer: AlignedBuf, offset: u64) -> Result<(), DiskError> {
        self.disk.may("write", &self.name, true)?;
        let serial = self.change(Change::Write(offset, Rc::new(buffer.to_vec())));
        self.disk.step(self.kind(Kinds {
            wal: "log write",
            spare: "segment header write",
            values: "value write",
            run: "run write",
            manifest: "manifest write",
        }));
        self.disk.0.world.device_time().await;
        self.complete(serial);
        self.disk.make_durable(self.inode, &[serial]);
        self.disk.step(self.kind(Kinds {
            wal: "log flush",
            spare: "segment header flush",
            values: "value flush",
            run: "run flush",
            manifest: "manifest flush",
        }));
        Ok(())
    }

    async fn sync_data(&self) -> Result<(), DiskError> {
        let covered = self.completed();
        self.disk.0.world.device_time().await;
        self.disk.make_durable(self.inode, &covered);
        self.disk.step(self.kind(Kinds {
            wal: "replayed log flush",
            spare: "spare flush",
            values: "value flush",
            run: "run flush",
            manifest: "manifest flush",
        }));
        Ok(())
    }

    async fn shared_flush_device(&self) -> Result<Option<u64>, DiskError> {
        Ok(Some(0))
    }

    async fn allocate(&self, length: u64) -> Result<(), DiskError> {
        self.disk.may("allocate", &self.name, true)?;
        if self.disk.0.full.get() {
            return Err(self.disk.error(DiskErrorKind::NoSpace, "allocate", &self.name));
        }
        if length > self.length().await? {
            let serial = self.change(Change::Length(length));
            self.complete(serial);
            self.disk.step(self.kind(Kinds {
                wal: "allocate",
                spare: "spare allocate",
                values: "value allocate",
                run: "allocate",
                manifest: "manifest allocate",
            }));
        }
        self.disk.0.world.device_time().await;
        Ok(())
    }

    async fn truncate(&self, length: u64) -> Result<(), DiskError> {
        self.disk.may("truncate", &self.name, false)?;
        let serial = self.change(Change::Length(length));
        self.complete(serial);
        self.disk.step("value file truncate");
        self.disk.0.world.device_time().await;
        Ok(())
    }
}
