//! The manifest: a small file, replaced atomically, that says which other files count and where the log is known good.
//!
//! Rules that the rest relies on:
//! - A value-log file is in the flushed manifest before anything points into it.
//! - A generation and an epoch are in it before their first batch is written.
//! - A run is in it at the latest when the next opening has looked at the index's mark, which names the run.
//! - A log segment or value file that it no longer lists is removed only afterwards.

use crate::buffer::AlignedBuf;
use crate::codec::{Put, Take, Truncated, crc};
use crate::disk::{BLOCK, Disk, DiskErrorKind, File, IoClass, OpenMode};
use crate::env::{Env, Sabotage};
use crate::error::Error;
use crate::header::{self, FileKind};
use crate::insist::insist;
pub use crate::leadership::{Leadership, Role, Upstream};
use crate::names;
use crate::sync::Gate;
use crate::types::{Epoch, LogPosition, Members, PartitionId, Version};
use crate::wal::body::{put_members, take_members};
use std::cell::{Cell, Ref, RefCell};

/// A stretch of the log written by one opening; its batches carry `secret`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Random, told to nobody.
    pub secret: u64,
    /// Batches at and after this place belong to it, until the next generation's start.
    pub start: LogPosition,
}

/// The beginning of a reign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochStart {
    /// The reign.
    pub epoch: Epoch,
    /// The first version that can belong to it.
    pub first_version: Version,
}

/// A record of the log that says who holds copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembersRecord {
    /// Its version: it holds from there on.
    pub version: Version,
    /// What it says.
    pub members: Members,
}

/// Everything up to `version` is in the index; the log matters from `position` on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The last settled version.
    pub version: Version,
    /// Where the first batch behind it starts.
    pub position: LogPosition,
    /// CRC of the envelope that ends there: the chain of the next.
    pub chain: u32,
    /// The run that brought the index there; 0 before the first.
    pub run: u32,
}

impl Mark {
    /// Bytes as stored in the index under its reserved key, in runs and here.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64(self.version);
        out.put_u64(self.position.0);
        out.put_u32(self.chain);
        out.put_u32(self.run);
    }
    /// Reads what `encode` wrote.
    pub fn decode(take: &mut Take<'_>) -> Result<Mark, Truncated> {
        Ok(Mark { version: take.u64()?, position: LogPosition(take.u64()?), chain: take.u32()?, run: take.u32()? })
    }
}

/// What a run's footer and the manifest say of it. The figures hold after the run was ingested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunSummary {
    /// Its file's number.
    pub number: u32,
    /// It holds every live key; all runs before it are void.
    pub base: bool,
    /// Where the index stands with it.
    pub mark: Mark,
    /// Entries in it.
    pub entries: u64,
    /// Live keys as of `mark.version`.
    pub keys: u64,
    /// Live bytes per value file as of `mark.version`.
    pub live: Vec<(u32, u64)>,
    /// Bytes in use per value file that was written to.
    pub used: Vec<(u32, u64)>,
}

impl RunSummary {
    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.number);
        out.put_u8(u8::from(self.base));
        self.mark.encode(out);
        out.put_u64(self.entries);
        out.put_u64(self.keys);
        put_counts(&self.live, out);
        put_counts(&self.used, out);
    }
    /// Reads what `encode` wrote.
    pub fn decode(take: &mut Take<'_>) -> Result<RunSummary, Truncated> {
        let (number, base, mark) = (take.u32()?, take.u8()? != 0, Mark::decode(take)?);
        let (entries, keys) = (take.u64()?, take.u64()?);
        let (live, used) = (counts(take)?, counts(take)?);
        Ok(RunSummary { number, base, mark, entries, keys, live, used })
    }
}

/// A file of the value log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueFile {
    /// Its number.
    pub number: u32,
    /// Bytes in use when the manifest was written; the log may name more.
    pub used: u64,
    /// Nothing live is in it, and only log segments before this place point into it.
    pub retired: Option<LogPosition>,
}

/// A log segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its number.
    pub number: u32,
    /// The first version that can be in it.
    pub first_version: Version,
    /// Bytes in use, header included.
    pub used: u32,
    /// When it was found wholly checkpointed, wall clock; `None` before.
    pub checkpointed_ms: Option<u64>,
}

/// A consumer's claim on the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Who.
    pub name: String,
    /// Everything from this version on is wanted.
    pub version: Version,
    /// It gives up when it would keep more than this many checkpointed bytes.
    pub limit_bytes: u64,
    /// Whose it is.
    pub owner: HoldOwner,
}

/// Whose a hold is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HoldOwner {
    /// An operator made it.
    Operator,
    /// A consumer of changes, with this name in its certificate.
    Consumer(String),
    /// It was made before owners were kept: whoever uses the name next takes it over.
    Unknown,
}

impl HoldOwner {
    fn encode(&self, out: &mut Vec<u8>) {
        let (kind, name) = match self {
            HoldOwner::Operator => (0, ""),
            HoldOwner::Consumer(name) => (1, name.as_str()),
            HoldOwner::Unknown => (2, ""),
        };
        out.put_u8(kind);
        out.put_u16(name.len() as u16);
        out.put(name.as_bytes());
    }

    fn decode(take: &mut Take<'_>) -> Result<HoldOwner, Truncated> {
        let (kind, length) = (take.u8()?, usize::from(take.u16()?));
        let name = String::from_utf8(take.bytes(length)?.to_vec()).map_err(|_| Truncated)?;
        match (kind, name.is_empty()) {
            (0, true) => Ok(HoldOwner::Operator),
            (1, _) => Ok(HoldOwner::Consumer(name)),
            (2, true) => Ok(HoldOwner::Unknown),
            _ => Err(Truncated),
        }
    }
}

/// The newest batch that a log has, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LastBody {
    /// Its last version.
    pub version: Version,
    /// Its body's CRC.
    pub sum: Option<u32>,
}

/// A node that this one has met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its number.
    pub node: u64,
    /// SHA-256 of the public key that it proved to have.
    pub key: [u8; 32],
    /// The name in its certificate, hosts and organisation included; empty where it was met before names were kept.
    pub name: String,
}

impl Peer {
    fn decode(take: &mut Take<'_>) -> Result<Peer, Truncated> {
        let node = take.u64()?;
        let key = take.bytes(32)?.try_into().map_err(|_| Truncated)?;
        Ok(Peer { node, key, name: String::new() })
    }
}

/// Lists of members that a partition may have: the one in force and changes that are pending.
pub const RECORDS_MAX: usize = 64;

/// Leaves the first and the last of records in a row that say the same: a promotion that gets no quorum leaves one each time it is
/// tried. The first says from where on the list holds, also if the log is cut before the last; the last tells how new it is.
pub(crate) fn compress(records: &mut Vec<MembersRecord>) {
    let mut at = 1;
    while at + 1 < records.len() {
        let same = records[at - 1].members == records[at].members && records[at].members == records[at + 1].members;
        if same {
            records.remove(at);
        } else {
            at += 1;
        }
    }
}

/// The reign of a version in a history, which is ordered.
pub fn reign(history: &[EpochStart], version: Version) -> Option<Epoch> {
    history.iter().rev().find(|start| start.first_version <= version).map(|start| start.epoch)
}

/// Begins the next reign, above every one that this node has agreed to; one that has no commit is superseded.
pub(crate) fn begin_epoch(manifest: &mut Manifest, id: u64, first_version: Version) {
    let newest = manifest.epochs.last().map_or(0, |e| e.epoch.number);
    begin_agreed(manifest, Epoch { number: newest.max(manifest.leadership.voted_epoch.number) + 1, id }, first_version);
}

/// Begins a reign that this node has agreed to.
pub(crate) fn begin_agreed(manifest: &mut Manifest, epoch: Epoch, first_version: Version) {
    manifest.epochs.retain(|e| e.first_version < first_version);
    manifest.epochs.push(EpochStart { epoch, first_version });
    manifest.leadership.number += 1;
    manifest.leadership.voted_epoch = epoch;
}

/// The whole of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Oldest first, those that kept segments may hold.
    pub generations: Vec<Generation>,
    /// Oldest first.
    pub epochs: Vec<EpochStart>,
    /// The last checkpoint.
    pub mark: Mark,
    /// The log is durable at least up to here.
    pub durable: LogPosition,
    /// The index's directory number; 0 before the first run, and where an opening is to build it from the runs.
    pub index: u32,
    /// Runs that the index can be rebuilt from, oldest first.
    pub runs: Vec<RunSummary>,
    /// Files of the value log.
    pub values: Vec<ValueFile>,
    /// Log segments, oldest first.
    pub segments: Vec<Segment>,
    /// Consumers' claims.
    pub holds: Vec<Hold>,
    /// The next file number (runs, value files, index directories).
    pub next_number: u32,
    /// Who leads it, as far as this node has written that down.
    pub leadership: Leadership,
    /// Who holds copies: the record that is in force, and those behind it that are not published yet.
    pub members: Vec<MembersRecord>,
    /// Live keys as of the mark.
    pub keys: u64,
    /// Live bytes per value file as of the mark.
    pub live: Vec<(u32, u64)>,
    /// Nodes that this one has met, with the hashes of their keys.
    pub peers: Vec<Peer>,
    /// There is a file that says which segment is the newest one.
    pub log_end: bool,
    /// The newest batch when the manifest was written: where nothing lies behind the checkpoint it is the newest one of all.
    pub last_body: LastBody,
}

impl Default for Manifest {
    fn default() -> Manifest {
        Manifest {
            generations: Vec::new(),
            epochs: Vec::new(),
            mark: Mark::default(),
            durable: LogPosition::default(),
            index: 0,
            runs: Vec::new(),
            values: Vec::new(),
            segments: Vec::new(),
            holds: Vec::new(),
            next_number: 1,
            leadership: Leadership::default(),
            members: Vec::new(),
            keys: 0,
            live: Vec::new(),
            peers: Vec::new(),
            log_end: false,
            last_body: LastBody::default(),
        }
    }
}

fn put_list<T>(items: &[T], out: &mut Vec<u8>, put: impl Fn(&T, &mut Vec<u8>)) {
    out.put_u32(items.len() as u32);
    items.iter().for_each(|item| put(item, out));
}

fn list<'a, T>(take: &mut Take<'a>, read: impl Fn(&mut Take<'a>) -> Result<T, Truncated>) -> Result<Vec<T>, Truncated> {
    let count = take.u32()?;
    let mut items = Vec::with_capacity(if cfg!(feature = "planted") { count as usize } else { 0 });
    for _ in 0..count {
        items.push(read(take)?);
    }
    Ok(items)
}

fn put_counts(counts: &[(u32, u64)], out: &mut Vec<u8>) {
    put_list(counts, out, |(file, bytes), out| {
        out.put_u32(*file);
        out.put_u64(*bytes);
    });
}

fn counts(take: &mut Take<'_>) -> Result<Vec<(u32, u64)>, Truncated> {
    list(take, |take| Ok((take.u32()?, take.u64()?)))
}

fn put_optional(value: Option<u64>, out: &mut Vec<u8>) {
    out.put_u8(u8::from(value.is_some()));
    out.put_u64(value.unwrap_or(0));
}

fn optional(take: &mut Take<'_>) -> Result<Option<u64>, Truncated> {
    let (some, value) = (take.u8()? != 0, take.u64()?);
    Ok(some.then_some(value))
}

impl Manifest {
    /// Its bytes behind the header block: `length u32 | crc u32 | payload`.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_list(&self.generations, &mut out, |g, out| {
            out.put_u64(g.secret);
            out.put_u64(g.start.0);
        });
        put_list(&self.epochs, &mut out, |e, out| {
            out.put_u64(e.epoch.number);
            out.put_u64(e.epoch.id);
            out.put_u64(e.first_version);
        });
        self.mark.encode(&mut out);
        out.put_u64(self.durable.0);
        out.put_u32(self.index);
        put_list(&self.runs, &mut out, RunSummary::encode);
        put_list(&self.values, &mut out, |v, out| {
            out.put_u32(v.number);
            out.put_u64(v.used);
            put_optional(v.retired.map(|p| p.0), out);
        });
        put_list(&self.segments, &mut out, |s, out| {
            out.put_u32(s.number);
            out.put_u64(s.first_version);
            out.put_u32(s.used);
            put_optional(s.checkpointed_ms, out);
        });
        put_list(&self.holds, &mut out, |h, out| {
            out.put_u16(h.name.len() as u16);
            out.put(h.name.as_bytes());
            out.put_u64(h.version);
            out.put_u64(h.limit_bytes);
        });
        out.put_u32(self.next_number);
        self.leadership.encode_role(&mut out);
        put_list(&self.members, &mut out, |record, out| {
            out.put_u64(record.version);
            put_members(&record.members, out);
        });
        out.put_u64(self.keys);
        put_counts(&self.live, &mut out);
        put_list(&self.peers, &mut out, |peer, out| {
            out.put_u64(peer.node);
            out.put(&peer.key);
        });
        self.leadership.encode_rest(&mut out);
        put_list(&self.peers, &mut out, |peer, out| {
            out.put_u16(peer.name.len() as u16);
            out.put(peer.name.as_bytes());
        });
        out.put_u8(u8::from(self.log_end));
        put_list(&self.holds, &mut out, |hold, out| hold.owner.encode(out));
        out.put_u8(u8::from(self.leadership.learner));
        out.put_u64(self.last_body.version);
        out.put_u8(u8::from(self.last_body.sum.is_some()));
        out.put_u32(self.last_body.sum.unwrap_or(0));
        let mut whole = Vec::with_capacity(out.len() + 8);
        whole.put_u32(out.len() as u32);
        whole.put_u32(crc(&[&out]));
        whole.put(&out);
        whole
    }

    /// Reads what `encode` wrote.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, &'static str> {
        let mut take = Take(bytes);
        let read = |take: &mut Take<'_>| -> Result<(usize, u32), Truncated> { Ok((take.u32()? as usize, take.u32()?)) };
        let (length, sum) = read(&mut take).map_err(|_| "it is cut short")?;
        let payload = take.bytes(length).map_err(|_| "it is cut short")?;
        if crc(&[payload]) != sum {
            return Err("it fails its checksum");
        }
        Manifest::payload(&mut Take(payload)).map_err(|_| "it contradicts itself")
    }

    fn payload(take: &mut Take<'_>) -> Result<Manifest, Truncated> {
        let mut manifest = Manifest {
            generations: list(take, |t| Ok(Generation { secret: t.u64()?, start: LogPosition(t.u64()?) }))?,
            epochs: list(take, |t| {
                Ok(EpochStart { epoch: Epoch { number: t.u64()?, id: t.u64()? }, first_version: t.u64()? })
            })?,
            mark: Mark::decode(take)?,
            durable: LogPosition(take.u64()?),
            index: take.u32()?,
            runs: list(take, RunSummary::decode)?,
            values: list(take, |t| {
                Ok(ValueFile { number: t.u32()?, used: t.u64()?, retired: optional(t)?.map(LogPosition) })
            })?,
            segments: list(take, |t| {
                Ok(Segment { number: t.u32()?, first_version: t.u64()?, used: t.u32()?, checkpointed_ms: optional(t)? })
            })?,
            holds: list(take, |t| {
                let length = usize::from(t.u16()?);
                let name = String::from_utf8(t.bytes(length)?.to_vec()).map_err(|_| Truncated)?;
                Ok(Hold { name, version: t.u64()?, limit_bytes: t.u64()?, owner: HoldOwner::Unknown })
            })?,
            next_number: take.u32()?,
            leadership: Leadership::decode_role(take)?,
            members: list(take, |t| {
                let version = t.u64()?;
                Ok(MembersRecord { version, members: take_members(t)?.ok_or(Truncated)? })
            })?,
            keys: take.u64()?,
            live: counts(take)?,
            // Manifests of before there were any end here.
            peers: if take.left() == 0 { Vec::new() } else { list(take, Peer::decode)? },
            log_end: false,
            last_body: LastBody::default(),
        };
        // Manifests of before there was more to leadership than a role end here.
        if take.left() != 0 {
            manifest.leadership.decode_rest(take)?;
            let names = list(take, |t| {
                let length = usize::from(t.u16()?);
                String::from_utf8(t.bytes(length)?.to_vec()).map_err(|_| Truncated)
            })?;
            if names.len() != manifest.peers.len() {
                return Err(Truncated);
            }
            manifest.peers.iter_mut().zip(names).for_each(|(peer, name)| peer.name = name);
            // Manifests of before the newest segment was recorded end here, and the next before holds had owners.
            if take.left() != 0 {
                manifest.log_end = take.u8()? != 0;
            }
            if take.left() != 0 {
                let owners = list(take, HoldOwner::decode)?;
                if owners.len() != manifest.holds.len() {
                    return Err(Truncated);
                }
                manifest.holds.iter_mut().zip(owners).for_each(|(hold, owner)| hold.owner = owner);
                manifest.leadership.learner = take.u8()? != 0;
                let (version, known, sum) = (take.u64()?, take.u8()? != 0, take.u32()?);
                manifest.last_body = LastBody { version, sum: known.then_some(sum) };
            }
            if take.left() != 0 {
                return Err(Truncated);
            }
        } else {
            manifest.leadership.of_before(manifest.epochs.last().map_or(0, |start| start.epoch.number));
        }
        Ok(manifest)
    }

    /// The generation that a batch at `position` must belong to.
    pub fn generation_at(&self, position: LogPosition) -> Option<&Generation> {
        self.generations.iter().rev().find(|g| g.start <= position)
    }

    /// Followers that must hold a commit, by any of the rules that may be in force.
    pub fn min_replicas(&self) -> u32 {
        self.members.iter().map(|record| record.members.min_replicas).max().unwrap_or(0)
    }

    /// The newest list of who holds copies, in force or not.
    pub fn newest_members(&self) -> Members {
        self.members.last().map(|record| record.members.clone()).unwrap_or_default()
    }

    /// Whether it takes writes of its own.
    pub fn writable(&self) -> bool {
        self.leadership.role == Role::Leader
    }

    /// Why it does not.
    pub fn refusal(&self) -> Error {
        match &self.leadership.role {
            Role::Follower(upstream) => Error::Follower { leader: upstream.address.clone() },
            _ => Error::NotLeader,
        }
    }

    /// The reign of a version.
    pub fn epoch_of(&self, version: Version) -> Epoch {
        reign(&self.epochs, version).unwrap_or_default()
    }

    /// Takes a new number for a file.
    pub fn take_number(&mut self) -> u32 {
        self.next_number += 1;
        self.next_number - 1
    }
}

/// The manifest in memory and its file, changed together.
pub struct ManifestStore<E: Env> {
    env: E,
    partition: PartitionId,
    data: RefCell<Manifest>,
    gate: Gate,
    reserved: RefCell<Option<Reserved<E>>>,
    /// Bytes that `manifest.spare` has space for; 0 where there is none.
    spare: Cell<u64>,
    access: Cell<Access>,
}

/// Which handle may replace the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// The open partition.
    Open,
    /// The partition is closed: only a cut or a copy that takes its place, before it is opened anew.
    Closed,
    /// The next opening alone.
    Replaced,
}

/// A file with space for a manifest.
struct Reserved<E: Env> {
    file: <E::Disk as Disk>::File,
    capacity: u64,
}

/// What a reserved file has beyond the manifest of now: a checkpoint adds a run and a few files to it.
const RESERVED_SLACK: u64 = 64 << 10;

impl<E: Env> ManifestStore<E> {
    /// Takes over what was read (or the default for a fresh partition, which has no file yet).
    pub fn new(env: E, partition: PartitionId, data: Manifest) -> ManifestStore<E> {
        ManifestStore {
            env,
            partition,
            data: RefCell::new(data),
            gate: Gate::default(),
            reserved: RefCell::default(),
            spare: Cell::new(0),
            access: Cell::new(Access::Open),
        }
    }

    /// Reads the file; `None` where there is none.
    pub async fn load(env: &E, partition: PartitionId) -> Result<Option<Manifest>, Error> {
        let file = match env.disk().open(names::MANIFEST, OpenMode::Existing, IoClass::Bulk).await {
            Ok(file) => file,
            Err(error) if error.kind == DiskErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let length = file.length().await? as usize;
        let bytes = file.read_at(0, length).await?;
        header::check(&bytes, names::MANIFEST, FileKind::Manifest, partition, 0)?;
        match Manifest::decode(bytes.get(BLOCK..).unwrap_or(&[])) {
            Ok(manifest) => Ok(Some(manifest)),
            Err(what) => {
                Err(Error::Corrupt { file: names::MANIFEST.into(), offset: BLOCK as u64, what: what.to_string() })
            }
        }
    }

    /// What it says now.
    pub fn get(&self) -> Ref<'_, Manifest> {
        self.data.borrow()
    }

    /// Changes it, on disk first. After a refusal of the disk nothing has changed; after any other failure the process ends, since
    /// nobody can know which of the two manifests a restart would find.
    pub async fn update<T>(&self, change: impl FnOnce(&mut Manifest) -> T) -> Result<T, Error> {
        self.update_as(Access::Open, change).await
    }

    /// The same for a cut, or a copy that takes the place of everything, of a partition that is closed.
    pub async fn update_closed<T>(&self, change: impl FnOnce(&mut Manifest) -> T) -> Result<T, Error> {
        self.update_as(Access::Closed, change).await
    }

    async fn update_as<T>(&self, access: Access, change: impl FnOnce(&mut Manifest) -> T) -> Result<T, Error> {
        let _turn = self.gate.enter().await;
        if self.access.get() != access {
            return Err(Error::ShuttingDown);
        }
        let mut next = self.data.borrow().clone();
        let answer = change(&mut next);
        if next == *self.data.borrow() {
            return Ok(answer);
        }
        match self.write(&next).await {
            Ok(()) => {}
            Err(error) if error.changed_nothing() => return Err(error.into()),
            Err(error) => match self.env.halt(format!("the manifest could not be replaced: {error}")).await {},
        }
        *self.data.borrow_mut() = next;
        Ok(answer)
    }

    /// The partition is closed: when this returns no change is under way, and none comes but by
    /// [`ManifestStore::update_closed`]. The next opening of the directory replaces the same files.
    pub async fn close(&self) {
        let _turn = self.gate.enter().await;
        if self.access.get() == Access::Open {
            self.access.set(Access::Closed);
        }
    }

    /// The last change was made: the file is another opening's now.
    pub fn seal(&self) {
        self.access.set(Access::Replaced);
    }

    /// Sets space aside for one [`ManifestStore::update_reserved`]. Called before a point of no return, where a lack of
    /// space can still be answered.
    pub async fn reserve(&self) -> Result<(), Error> {
        let _turn = self.gate.enter().await;
        if self.access.get() != Access::Open {
            return Err(Error::ShuttingDown);
        }
        let wanted = 2 * (BLOCK as u64 + self.data.borrow().encode().len() as u64) + RESERVED_SLACK;
        if self.reserved.borrow().as_ref().is_some_and(|r| r.capacity >= wanted) {
            return Ok(());
        }
        *self.reserved.borrow_mut() = None;
        let reserved = match self.fresh(names::MANIFEST_RESERVED, wanted).await {
            Err(error) if error.kind == DiskErrorKind::NoSpace => match self.take_spare().await? {
                Some(spare) => spare,
                None => return Err(error.into()),
            },
            file => Reserved { file: file?, capacity: wanted },
        };
        *self.reserved.borrow_mut() = Some(reserved);
        Ok(())
    }

    /// Changes it where there is no way back: into the space that [`ManifestStore::reserve`] set aside, so that the disk
    /// cannot be full. What the system refuses is tried again for a while; then, or if it fails, the process ends. The one error is
    /// that the partition is closed.
    pub async fn update_reserved<T>(&self, change: impl FnOnce(&mut Manifest) -> T) -> Result<T, Error> {
        let _turn = self.gate.enter().await;
        if self.access.get() != Access::Open {
            return Err(Error::ShuttingDown);
        }
        let mut next = self.data.borrow().clone();
        let answer = change(&mut next);
        let reserved = self.reserved.borrow_mut().take().filter(|r| r.capacity >= self.image(&next).len() as u64);
        let written = match reserved {
            Some(Reserved { file, .. }) => {
                insist(&self.env, async || self.replace_with(&file, names::MANIFEST_RESERVED, self.image(&next)).await)
                    .await
            }
            None => insist(&self.env, async || self.write(&next).await).await,
        };
        if let Err(error) = written {
            match self.env.halt(format!("the manifest could not be replaced: {error}")).await {}
        }
        *self.data.borrow_mut() = next;
        Ok(answer)
    }

    /// Changes it to free space: on a full disk, into the spare file ([`ManifestStore::keep_spare`]).
    pub async fn update_freeing<T>(&self, change: impl FnOnce(&mut Manifest) -> T) -> Result<T, Error> {
        let _turn = self.gate.enter().await;
        if self.access.get() != Access::Open {
            return Err(Error::ShuttingDown);
        }
        let mut next = self.data.borrow().clone();
        let answer = change(&mut next);
        if next == *self.data.borrow() {
            return Ok(answer);
        }
        let mut written = self.write(&next).await;
        if written.as_ref().is_err_and(|error| error.kind == DiskErrorKind::NoSpace)
            && self.spare.get() >= self.image(&next).len() as u64
        {
            written = self.write_spare(&next).await;
        }
        match written {
            Ok(()) => {}
            Err(error) if error.changed_nothing() => return Err(error.into()),
            Err(error) => match self.env.halt(format!("the manifest could not be replaced: {error}")).await {},
        }
        *self.data.borrow_mut() = next;
        Ok(answer)
    }

    async fn write_spare(&self, next: &Manifest) -> Result<(), crate::disk::DiskError> {
        let file = self.env.disk().open(names::MANIFEST_SPARE, OpenMode::Existing, IoClass::Bulk).await?;
        self.replace_with(&file, names::MANIFEST_SPARE, self.image(next)).await?;
        self.spare.set(0);
        Ok(())
    }

    /// An opening finds the spare file, with space for so many bytes.
    pub fn adopt_spare(&self, bytes: u64) {
        self.spare.set(bytes);
    }

    /// Keeps a file with space for a manifest, where there is some: on a full disk what frees space begins with that. It costs no
    /// descriptor.
    pub async fn keep_spare(&self) {
        let _turn = self.gate.enter().await;
        if self.access.get() != Access::Open || self.data.borrow().generations.is_empty() {
            return;
        }
        let least = BLOCK as u64 + self.data.borrow().encode().len() as u64 + RESERVED_SLACK / 2;
        if self.spare.get() >= least {
            return;
        }
        let wanted = least + RESERVED_SLACK / 2;
        let grown = async {
            if self.spare.get() == 0 {
                return self.fresh(names::MANIFEST_SPARE, wanted).await.map(drop);
            }
            let file = self.env.disk().open(names::MANIFEST_SPARE, OpenMode::Existing, IoClass::Bulk).await?;
            file.allocate(wanted).await
        };
        // A file that cannot grow keeps the space that it had.
        if grown.await.is_ok() {
            self.spare.set(wanted);
        }
    }

    /// The spare file becomes what is set aside, if it has space for a manifest that grows.
    async fn take_spare(&self) -> Result<Option<Reserved<E>>, crate::disk::DiskError> {
        let (capacity, least) = (self.spare.get(), self.data.borrow().encode().len() as u64 + RESERVED_SLACK / 4);
        if capacity < least {
            return Ok(None);
        }
        let disk = self.env.disk();
        let file = disk.open(names::MANIFEST_SPARE, OpenMode::Existing, IoClass::Bulk).await?;
        disk.rename(names::MANIFEST_SPARE, names::MANIFEST_RESERVED).await?;
        self.spare.set(0);
        Ok(Some(Reserved { file, capacity }))
    }

    async fn write(&self, manifest: &Manifest) -> Result<(), crate::disk::DiskError> {
        let image = self.image(manifest);
        let file = self.fresh(names::MANIFEST_NEW, image.len() as u64).await?;
        self.replace_with(&file, names::MANIFEST_NEW, image).await
    }

    /// A file of that name with that much space.
    async fn fresh(&self, name: &str, length: u64) -> Result<<E::Disk as Disk>::File, crate::disk::DiskError> {
        let disk = self.env.disk();
        match disk.remove(name).await {
            Ok(()) => {}
            Err(error) if error.kind == DiskErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let file = disk.open(name, OpenMode::Create, IoClass::Bulk).await?;
        file.allocate(length).await?;
        Ok(file)
    }

    /// What the file holds: whole blocks.
    fn image(&self, manifest: &Manifest) -> AlignedBuf {
        let payload = manifest.encode();
        let mut buffer = AlignedBuf::zeroed(BLOCK + payload.len());
        buffer[..BLOCK].copy_from_slice(&header::encode(FileKind::Manifest, self.partition, 0));
        buffer[BLOCK..BLOCK + payload.len()].copy_from_slice(&payload);
        buffer
    }

    async fn replace_with(
        &self,
        file: &<E::Disk as Disk>::File,
        name: &str,
        image: AlignedBuf,
    ) -> Result<(), crate::disk::DiskError> {
        file.write_at(image, 0).await?;
        file.sync_data().await?;
        self.env.disk().rename(name, names::MANIFEST).await?;
        sync_names(&self.env).await
    }
}

/// Makes names durable (the one place, so that a test can show what happens without it).
pub async fn sync_names<E: Env>(env: &E) -> Result<(), crate::disk::DiskError> {
    if env.sabotage() == Some(Sabotage::DirectorySyncLost) {
        return Ok(());
    }
    env.disk().sync_names().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Member;

    fn sample() -> Manifest {
        let mark = Mark { version: 9, position: LogPosition::new(2, 4096), chain: 5, run: 3 };
        Manifest {
            generations: vec![Generation { secret: 8, start: LogPosition::new(1, 4096) }],
            epochs: vec![
                EpochStart { epoch: Epoch { number: 1, id: 11 }, first_version: 1 },
                EpochStart { epoch: Epoch { number: 2, id: 12 }, first_version: 7 },
            ],
            mark,
            durable: LogPosition::new(2, 8192),
            index: 4,
            runs: vec![RunSummary {
                number: 3,
                base: false,
                mark,
                entries: 2,
                keys: 1,
                live: vec![(1, 100)],
                used: vec![],
            }],
            values: vec![ValueFile { number: 1, used: 8192, retired: Some(LogPosition::new(1, 0)) }],
            segments: vec![Segment { number: 1, first_version: 1, used: 8192, checkpointed_ms: Some(7) }],
            holds: vec![
                Hold { name: "backup".into(), version: 4, limit_bytes: 1 << 20, owner: HoldOwner::Operator },
                Hold { name: "a".into(), version: 4, limit_bytes: 1, owner: HoldOwner::Consumer("CN=cdc".into()) },
            ],
            next_number: 5,
            leadership: Leadership {
                number: 7,
                role: Role::Follower(Upstream { address: "leader:6379".to_string(), partition: 3 }),
                upstream_node: 5,
                voted_epoch: Epoch { number: 2, id: 12 },
                ordered: Some(1),
                promoted: 1,
                has_followed: true,
                learner: true,
            },
            members: vec![MembersRecord {
                version: 8,
                members: Members {
                    min_replicas: 1,
                    nodes: vec![Member { node: 5, partition: 3, address: "leader:6379".to_string() }],
                    forgotten: vec![9],
                },
            }],
            keys: 1,
            live: vec![(1, 100)],
            peers: vec![Peer { node: 5, key: [9; 32], name: "b".to_string() }],
            log_end: true,
            last_body: LastBody { version: 8, sum: Some(9) },
        }
    }

    #[test]
    fn it_comes_back_as_it_went_and_damage_is_seen() {
        let bytes = sample().encode();
        assert_eq!(Manifest::decode(&bytes), Ok(sample()));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn lists_that_say_the_same_do_not_pile_up() {
        let record =
            |version, min_replicas| MembersRecord { version, members: Members { min_replicas, ..Members::default() } };
        let mut records = vec![record(1, 0), record(2, 1), record(3, 1), record(4, 1), record(5, 1), record(6, 2)];
        compress(&mut records);
        assert_eq!(records, [record(1, 0), record(2, 1), record(5, 1), record(6, 2)]);
        compress(&mut records);
        assert_eq!(records.len(), 4);
    }

    #[test]
    fn versions_know_their_epoch() {
        let manifest = sample();
        assert_eq!(manifest.epoch_of(6).number, 1);
        assert_eq!(manifest.epoch_of(7).number, 2);
    }
}
