//! Crash states: a workload runs in the simulated world, and after every step of its disk and index a crash is tried on
//! the side: what it would leave is recovered and compared with the model.
//!
//! A run is a chain of lives. Each starts from what a crash (or a clean stop) of the one before left, so recovery itself
//! is cut, too. Every comparison asks the same four things: nothing that was told to anyone is missing; what is there is
//! exactly the contents at one version; that version was prepared; and where rot was planted, it is either harmless or
//! refused by name, never silently believed.

pub mod neighbours;

use crate::model::{Commit, KeyNumber, Model, key_bytes};
use crate::sim::disk::{self, Loss};
use crate::sim::rng::mix;
use crate::sim::world::End;
use crate::sim::{Clock, DiskImage, IndexImage, Rng, SimDisk, SimEnv, SimIndex, World};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::disk::DiskErrorKind;
use turnstone_engine::env::Sabotage;
use turnstone_engine::types::Version;
use turnstone_engine::{Error, Lookup, Partition, Progress, RunAhead, Settings, Ticket, Write};

/// Keys of the workload.
const KEYS: u32 = 24;
const PARTITION: u8 = 3;

/// What a campaign saw.
#[derive(Default)]
pub struct Tally {
    /// Crashes tried per kind of step.
    pub cuts: BTreeMap<&'static str, u64>,
    /// Hashes of what recoveries were given.
    pub images: BTreeSet<u64>,
    /// Recoveries run.
    pub recoveries: u64,
    /// Recoveries of images with rot, and how many of those were refused.
    pub rotten: (u64, u64),
    /// Recoveries of images that lack a log file or a part of one, and how many of those were refused.
    pub lacking: (u64, u64),
    /// Recoveries that rebuilt the index.
    pub rebuilt: u64,
    /// Transactions committed, refused for a conflict, refused for lack of space.
    pub transactions: (u64, u64, u64),
}

/// How much is tried.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Lives per seed.
    pub lives: u32,
    /// Transactions per session and life.
    pub transactions: u32,
    /// Crashes tried per step.
    pub images_per_step: u32,
    /// Crashes tried per step of a kind that this life has seldom seen so far.
    pub images_per_rare_step: u32,
    /// How many steps of a kind count as seldom.
    pub rare: u32,
}

impl Default for Effort {
    fn default() -> Effort {
        Effort { lives: 3, transactions: 14, images_per_step: 2, images_per_rare_step: 12, rare: 1 }
    }
}

/// Small sizes, so that everything that can happen happens often.
pub fn settings(rng: &Rng) -> Settings {
    // In one life of four commits wait for room, and replay checkpoints as it goes.
    let overlay_budget = if rng.percent(25) { 3_000 + rng.below(9_000) } else { 60_000 + rng.below(60_000) };
    Settings {
        wal_max_size: 16384 << rng.below(3),
        wal_retention: Duration::from_millis(50 << rng.below(6)),
        wal_retention_bytes: 20_000 << rng.below(3),
        value_separation: 600,
        keys_at_once: [1, 2, 256][rng.below(3) as usize],
        value_file_size: 32768 << rng.below(3),
        value_allocation: 16384,
        overlay_budget,
        checkpoint_bytes: (6_000 + rng.below(30_000)).min(overlay_budget / 2),
        checkpoint_wal_bytes: 30_000 + rng.below(60_000),
        checkpoint_interval: Duration::from_millis(20 + rng.below(500)),
        cache_bytes: 1000 + rng.below(40_000),
        base_run_slack: 5 + rng.below(60),
        idle_vouch: Duration::from_millis(2),
        max_tx_age: Duration::from_secs(2),
        ..Settings::default()
    }
}

struct Outstanding {
    ticket: Ticket,
    commit: Commit,
    touched: Vec<KeyNumber>,
    snapshot: Version,
}

/// What the sessions of a life share.
struct Life {
    model: RefCell<Model>,
    outstanding: RefCell<Vec<Outstanding>>,
    failure: RefCell<Option<String>>,
    /// A flush is under way: its version is not in the model yet, so reads are not compared, and a crash may show it.
    flushing: Cell<bool>,
    tally: Rc<RefCell<Tally>>,
}

impl Life {
    fn fail(&self, what: String) {
        self.failure.borrow_mut().get_or_insert(what);
    }

    /// Moves transactions that were prepared since the last look into the model.
    fn resolve(&self) {
        let mut model = self.model.borrow_mut();
        let mut prepared: Vec<(Version, Outstanding)> = Vec::new();
        let mut waiting = Vec::new();
        for one in self.outstanding.borrow_mut().drain(..) {
            match one.ticket.progress() {
                Progress::Prepared(version) | Progress::Entering(version) => prepared.push((version, one)),
                Progress::Reserving => waiting.push(one),
                Progress::Refused(_) => {}
            }
        }
        *self.outstanding.borrow_mut() = waiting;
        prepared.sort_by_key(|(version, _)| *version);
        for (version, one) in prepared {
            if let Some(other) = model.touched(one.snapshot, version, &one.touched) {
                self.fail(format!(
                    "version {version} committed on snapshot {} although version {other} changed what it read or wrote",
                    one.snapshot
                ));
            }
            model.commit(version, one.commit);
        }
    }
}

/// Where a crash is tried from.
#[derive(Clone)]
struct Moment {
    disk: DiskImage,
    index: IndexImage,
    model: Model,
}

/// Runs one seed; answers the trace, or what went wrong.
pub fn run_seed(
    seed: u64,
    effort: Effort,
    sabotage: Option<Sabotage>,
    tally: &Rc<RefCell<Tally>>,
) -> Result<u64, String> {
    let mut moment = Moment { disk: DiskImage::default(), index: IndexImage::default(), model: Model::default() };
    let mut trace = 0;
    for life in 0..effort.lives {
        let life_seed = mix(seed.wrapping_mul(1000) + u64::from(life));
        let (next, life_trace) = live(life_seed, moment, effort, sabotage, tally)
            .map_err(|what| format!("seed {seed}, life {life}: {what}"))?;
        trace = mix(trace ^ life_trace);
        moment = next;
    }
    Ok(trace)
}

fn env(world: &Rc<World>, disk: DiskImage, index: IndexImage, faults: bool, sabotage: Option<Sabotage>) -> SimEnv {
    SimEnv {
        world: world.clone(),
        disk: SimDisk::new(world.clone(), disk),
        index: SimIndex::new(world.clone(), index, faults),
        sabotage,
        shared: None,
        clock: Clock::default(),
    }
}

/// One life: recovery, a workload, and its end; a crash is tried after every step.
fn live(
    seed: u64,
    from: Moment,
    effort: Effort,
    sabotage: Option<Sabotage>,
    tally: &Rc<RefCell<Tally>>,
) -> Result<(Moment, u64), String> {
    let world = World::new(seed);
    let settings = settings(&world.rng);
    let faults = world.rng.percent(50);
    let env = env(&world, from.disk, from.index, faults, sabotage);
    let life = Rc::new(Life {
        model: RefCell::new(from.model),
        outstanding: RefCell::default(),
        failure: RefCell::default(),
        flushing: Cell::new(false),
        tally: tally.clone(),
    });
    let side = Rc::new(Rng::new(mix(seed ^ 0x51DE)));
    let observer: Rc<dyn Fn(&'static str)> = {
        let (life, env, side, settings) = (life.clone(), env.clone(), side, settings.clone());
        let seen: RefCell<BTreeMap<&'static str, u32>> = RefCell::default();
        Rc::new(move |kind| {
            if life.failure.borrow().is_some() {
                return;
            }
            life.resolve();
            let mut moment =
                Moment { disk: env.disk.image(), index: env.index.image(), model: life.model.borrow().clone() };
            if life.flushing.get() {
                // The next version that nobody has is the flush's, if it is there already.
                moment.model.flush_if_there();
            }
            // The first ones of a kind are cut harder, so that every kind is seen often. Only the seed decides.
            let images = {
                let mut seen = seen.borrow_mut();
                let seen = seen.entry(kind).or_default();
                *seen += 1;
                if *seen <= effort.rare { effort.images_per_rare_step } else { effort.images_per_step }
            };
            *life.tally.borrow_mut().cuts.entry(kind).or_default() += u64::from(images);
            for _ in 0..images {
                if let Err(what) = try_crash(&moment, &side, &settings, sabotage, &life.tally, 1) {
                    life.fail(format!("a crash at step {} ({kind}): {what}", env.world.steps.get()));
                    return;
                }
            }
        })
    };
    env.disk.observe(Some(observer.clone()));
    env.index.observe(Some(observer));
    let clean = world.rng.percent(25);
    let end = world.run(workload(env.clone(), settings, life.clone(), effort.transactions, clean));
    if let Some(what) = life.failure.borrow_mut().take() {
        return Err(what);
    }
    match end {
        End::Done(Ok(())) => {}
        End::Done(Err(what)) => return Err(what),
        End::Halted(why) => return Err(format!("it ended itself: {why}")),
        End::Deadlock => return Err("nothing can go on".to_string()),
    }
    life.resolve();
    let loss = choose_loss(&world.rng);
    let moment = Moment {
        disk: env.disk.image().crash(loss),
        index: env.index.image().crash(world.rng.next()),
        model: life.model.borrow().clone(),
    };
    let trace = mix(world.trace() ^ moment.disk.hash());
    world.drop_tasks();
    Ok((moment, trace))
}

fn choose_loss(rng: &Rng) -> Loss {
    match rng.below(8) {
        0 => Loss::Everything,
        1 => Loss::Nothing,
        2 => Loss::ProcessOnly,
        _ => Loss::Random(rng.next()),
    }
}

async fn workload(
    env: SimEnv,
    settings: Settings,
    life: Rc<Life>,
    transactions: u32,
    clean: bool,
) -> Result<(), String> {
    let partition = match Partition::open(env.clone(), PARTITION, settings).await {
        Ok(partition) => partition,
        Err(error) => return Err(format!("it does not open: {error}")),
    };
    let before = life.model.borrow().clone();
    compare(&partition, &before, false).await?;
    life.model.borrow_mut().restart_at(partition.published());
    let sessions = 1 + env.world.rng.below(4) as u32;
    let done = Rc::new(Cell::new(0));
    for session in 0..sessions {
        let (env, partition, life, done) = (env.clone(), partition.clone(), life.clone(), done.clone());
        env.world.clone().spawn(async move {
            run_session(&env, &partition, &life, transactions, session).await;
            done.set(done.get() + 1);
        });
    }
    while done.get() < sessions && life.failure.borrow().is_none() {
        env.world.sleep(Duration::from_millis(1 + env.world.rng.below(20))).await;
        administer(&env, &partition, &life).await?;
    }
    env.disk.set_full(false);
    env.disk.refuse(None);
    if clean {
        match partition.close().await {
            // An index that fails again and again leaves the last checkpoint to the next opening.
            Ok(()) => {}
            Err(Error::Index(text)) if text.starts_with("three ingestions in a row") => {}
            Err(error) => return Err(format!("it does not close: {error}")),
        }
    }
    Ok(())
}

/// Now and then: checkpoints, promotions, a full disk, other shares of memory, a look at what the log vouches for.
async fn administer(env: &SimEnv, partition: &Partition<SimEnv>, life: &Rc<Life>) -> Result<(), String> {
    let rng = &env.world.rng;
    life.resolve();
    life.model.borrow_mut().vouched = partition.vouched();
    match rng.below(40) {
        0..=2 => match partition.checkpoint().await {
            Ok(()) | Err(Error::NoSpace(_) | Error::Refused(_) | Error::Index(_)) => {}
            Err(error) => return Err(format!("a checkpoint failed: {error}")),
        },
        3 => match partition.promote().await {
            Ok(()) | Err(Error::NoSpace(_) | Error::Refused(_)) => {}
            Err(error) => return Err(format!("promote failed: {error}")),
        },
        4 if rng.percent(40) => flush_all(partition, life).await?,
        5 => env.disk.set_full(true),
        6..=10 => env.disk.set_full(false),
        11 => read_log(partition, life).await?,
        12 => {
            // Writes are refused in between; sessions take that for an answer.
            match partition.step_down().await {
                Ok(()) | Err(Error::NoSpace(_) | Error::Refused(_)) => {}
                Err(error) => return Err(format!("step-down failed: {error}")),
            }
            env.world.sleep(Duration::from_millis(rng.below(10))).await;
            env.disk.set_full(false);
            env.disk.refuse(None);
            partition.promote().await.map_err(|e| format!("promote failed: {e}"))?;
        }
        13 => match partition.hold("consumer", 0, 10_000 << rng.below(4)).await {
            Ok(_) | Err(Error::NoSpace(_) | Error::Refused(_)) => {}
            Err(error) => return Err(format!("a hold failed: {error}")),
        },
        14 => match partition.release("consumer").await {
            Ok(()) | Err(Error::NoSpace(_) | Error::Refused(_) | Error::NoSuchHold(_)) => {}
            Err(error) => return Err(format!("a release failed: {error}")),
        },
        // Its shares of memory and of unsettled log become others, whoever waits for room.
        15 | 16 => {
            partition.set_overlay_bytes(10_000 << rng.below(6));
            partition.set_cache_bytes(1_000 << rng.below(8));
            let settled = partition.settings().checkpoint_wal_bytes;
            partition.set_checkpoint_wal_bytes(settled * (1 + rng.below(4)));
        }
        // People set the wall clock.
        20 => env.world.wall_step_ms.set((rng.below(2_000) as i64 - 1_000) * 86_400_000),
        // The system lacks something for a moment: one operation, or a few in a row.
        17..=19 => {
            let kind = if rng.percent(50) { DiskErrorKind::NoSpace } else { DiskErrorKind::Refused };
            let from = env.disk.operations() + rng.below(30);
            env.disk.refuse(Some(disk::Refusal { kind, from, count: 1 + rng.below(4) }));
        }
        _ => {}
    }
    Ok(())
}

async fn flush_all(partition: &Partition<SimEnv>, life: &Rc<Life>) -> Result<(), String> {
    // Its version is only known afterwards; until then a crash may show either state.
    life.flushing.set(true);
    let flushed = partition.flush_all().await;
    let outcome = match flushed {
        Ok(at) => {
            life.resolve();
            life.model.borrow_mut().commit(at.version, Commit::Flush);
            life.model.borrow_mut().tell(at.version);
            Ok(())
        }
        // A promotion that was refused midway leaves nobody who leads until the next one.
        Err(Error::NoSpace(_) | Error::Refused(_) | Error::LeadershipChanged) => Ok(()),
        Err(error) => Err(format!("flush failed: {error}")),
    };
    life.flushing.set(false);
    outcome
}

/// The log, read as a consumer does, must tell the same commits.
async fn read_log(partition: &Partition<SimEnv>, life: &Rc<Life>) -> Result<(), String> {
    let oldest = partition.oldest_version();
    let published = partition.published();
    let page = match partition.read_log(oldest, 30_000).await {
        Ok(page) => page,
        Err(Error::Purged { .. } | Error::Refused(_)) => return Ok(()),
        Err(error) => return Err(format!("the log cannot be read from {oldest}: {error}")),
    };
    life.resolve();
    for body in &page.batches {
        if body.last_version() > life.model.borrow().newest() || body.first_version > body.last_version() {
            return Err(format!("the log tells versions {} to {}", body.first_version, body.last_version()));
        }
    }
    let whole = page.next > oldest || published < oldest;
    if whole { Ok(()) } else { Err(format!("the log has nothing from {oldest} on, {published} is published")) }
}

async fn run_session(env: &SimEnv, partition: &Partition<SimEnv>, life: &Rc<Life>, transactions: u32, session: u32) {
    let rng = &env.world.rng;
    let mut ahead = RunAhead::default();
    for round in 0..transactions {
        if life.failure.borrow().is_some() {
            return;
        }
        let snapshot = ahead.snapshot(partition);
        let mut transaction = partition.begin(snapshot);
        let (mut writes, mut touched) = (BTreeMap::new(), BTreeSet::new());
        let mut gone = false;
        // Some are blind writes that take their snapshot at their prepare, some are longer than a segment.
        let (late, long) = (rng.percent(15), rng.percent(3));
        transaction.late = late;
        let operations = if long { u64::from(KEYS) } else { 1 + rng.below(5) };
        for operation in 0..operations {
            let key = if long { operation as u32 } else { rng.below(u64::from(KEYS)) as u32 };
            if !late {
                touched.insert(key);
            }
            let step = if !late && !long && rng.percent(35) {
                read(env, partition, life, &mut transaction, &writes, key, snapshot).await
            } else {
                let value = match long {
                    true => Some(filled(rng, format!("{session}/{round}/{operation}/"), 590)),
                    false => (!rng.percent(20)).then(|| value(rng, session, round, operation as u32)),
                };
                let write = value.clone().map_or(Write::Delete, |v| Write::Set(v.as_slice().into()));
                let answer = partition.write(&mut transaction, &key_bytes(key), write);
                if answer.is_ok() {
                    writes.insert(key, value);
                }
                answer
            };
            match step {
                Ok(()) => {}
                // A read may find the index broken and no space to mend it.
                Err(
                    Error::SnapshotTooOld
                    | Error::TransactionTimeout { .. }
                    | Error::NotLeader
                    | Error::NoSpace(_)
                    | Error::Refused(_),
                ) => {
                    gone = true;
                    break;
                }
                Err(error) => return life.fail(format!("an operation failed: {error}")),
            }
            if rng.percent(10) {
                env.world.sleep(Duration::from_millis(rng.below(30))).await;
            }
        }
        if gone {
            continue;
        }
        if !submit(env, partition, life, transaction, writes, touched, &mut ahead).await {
            return;
        }
    }
    partition.wait_published(ahead.tell_after(partition)).await;
}

async fn read(
    env: &SimEnv,
    partition: &Partition<SimEnv>,
    life: &Rc<Life>,
    transaction: &mut turnstone_engine::Transaction,
    writes: &BTreeMap<KeyNumber, Option<Vec<u8>>>,
    key: KeyNumber,
    snapshot: Version,
) -> Result<(), Error> {
    life.resolve();
    let expected = match writes.get(&key) {
        Some(own) => own.clone(),
        None => life.model.borrow().get(snapshot, key).map(<[u8]>::to_vec),
    };
    let found = match partition.get(transaction, &key_bytes(key))? {
        Lookup::Found(value) => Some(value),
        Lookup::Absent => None,
        Lookup::Cold(cold) => cold.fetch().await?,
    };
    if found.as_deref() != expected.as_deref() && !life.flushing.get() {
        let text = |v: Option<&[u8]>| match v {
            None => "nothing".to_string(),
            Some(v) => format!("{} bytes, {:?}", v.len(), String::from_utf8_lossy(&v[..v.len().min(24)])),
        };
        life.fail(format!(
            "key {key} at snapshot {snapshot}: found {}, expected {} ({})",
            text(found.as_deref()),
            text(expected.as_deref()),
            env.world.log.borrow().last().cloned().unwrap_or_default()
        ));
    }
    Ok(())
}

async fn submit(
    env: &SimEnv,
    partition: &Partition<SimEnv>,
    life: &Rc<Life>,
    transaction: turnstone_engine::Transaction,
    writes: BTreeMap<KeyNumber, Option<Vec<u8>>>,
    touched: BTreeSet<KeyNumber>,
    ahead: &mut RunAhead,
) -> bool {
    let snapshot = transaction.snapshot.version();
    let read_only = writes.is_empty();
    let ticket = partition.submit(transaction);
    if !read_only {
        let one = Outstanding {
            ticket: ticket.clone(),
            commit: Commit::Writes(writes.into_iter().collect()),
            touched: touched.into_iter().collect(),
            snapshot,
        };
        life.outstanding.borrow_mut().push(one);
    }
    let answer = ticket.prepared().await;
    life.resolve();
    match answer {
        Ok(version) => {
            life.tally.borrow_mut().transactions.0 += 1;
            // What a reader is told of is its snapshot; it waits for what the session prepared itself.
            if !read_only {
                ahead.prepared(version);
            }
            let after = ahead.tell_after(partition);
            let told = version.max(snapshot);
            if env.world.rng.percent(60) {
                let (partition, life) = (partition.clone(), life.clone());
                // The session goes on while the reply waits.
                env.world.spawn(async move {
                    partition.wait_published(after).await;
                    life.resolve();
                    life.model.borrow_mut().tell(told);
                });
            } else {
                partition.wait_published(after).await;
                life.resolve();
                life.model.borrow_mut().tell(told);
            }
        }
        Err(Error::Conflict { newest, .. }) => {
            life.tally.borrow_mut().transactions.1 += 1;
            // The error tells of that version, so it waits, too.
            ahead.prepared(newest);
            partition.wait_published(ahead.tell_after(partition)).await;
            life.resolve();
            life.model.borrow_mut().tell(newest);
        }
        Err(Error::NoSpace(_) | Error::Refused(_)) => life.tally.borrow_mut().transactions.2 += 1,
        Err(
            Error::SnapshotTooOld
            | Error::TransactionTimeout { .. }
            | Error::Index(_)
            | Error::NotLeader
            | Error::LeadershipChanged,
        ) => {}
        Err(error) => {
            life.fail(format!("a commit failed: {error}"));
            return false;
        }
    }
    true
}

/// Small, middling, large, larger than a segment; no two alike.
fn value(rng: &Rng, session: u32, round: u32, operation: u32) -> Vec<u8> {
    let length = match rng.below(20) {
        0 => 0,
        1..=11 => rng.below(80) as usize,
        12..=15 => rng.below(599) as usize,
        16..=18 => 600 + rng.below(6000) as usize,
        _ => 600 + rng.below(70_000) as usize,
    };
    let value = filled(rng, format!("{session}/{round}/{operation}/"), length.max(20));
    if length == 0 { Vec::new() } else { value }
}

fn filled(rng: &Rng, name: String, length: usize) -> Vec<u8> {
    let mut value = name.into_bytes();
    while value.len() < length {
        value.extend_from_slice(&rng.next().to_le_bytes());
    }
    value.truncate(length);
    value
}

/// Recovers what a crash at `moment` would leave, and compares.
fn try_crash(
    moment: &Moment,
    side: &Rng,
    settings: &Settings,
    sabotage: Option<Sabotage>,
    tally: &Rc<RefCell<Tally>>,
    depth: u32,
) -> Result<(), String> {
    let loss = choose_loss(side);
    let mut disk = moment.disk.crash(loss);
    let index = moment.index.crash(side.next());
    let damage = match side.below(100) {
        0..8 if depth > 0 => plant_rot(&mut disk, side).map(Damage::Rot),
        8..14 if depth > 0 => take_away(&mut disk, side).map(Damage::Lack),
        _ => None,
    };
    {
        let mut tally = tally.borrow_mut();
        tally.recoveries += 1;
        tally.images.insert(mix(disk.hash() ^ index.hash().rotate_left(17)));
        tally.rotten.0 += u64::from(matches!(damage, Some(Damage::Rot(_))));
        tally.lacking.0 += u64::from(matches!(damage, Some(Damage::Lack(_))));
    }
    let mut recovery = Recovery { moment, side, sabotage, tally, depth, damage: damage.as_ref(), loss };
    let context = |what: String| match &damage {
        Some(Damage::Rot(place)) => format!("{what} (loss {loss:?}, rot in {place})"),
        Some(Damage::Lack(lack)) => format!("{what} (loss {loss:?}, {lack})"),
        None => format!("{what} (loss {loss:?})"),
    };
    match recovery.open(disk.clone(), index.clone(), settings.clone()) {
        Ok(()) => Ok(()),
        Err(Refusal::Wrong(what)) => Err(context(what)),
        Err(Refusal::Refused(Error::Corrupt { file, .. })) if damage.is_some() => {
            let kind = |name: &str| name.split('-').next().unwrap_or(name).to_string();
            match &damage {
                Some(Damage::Rot(place)) => {
                    tally.borrow_mut().rotten.1 += 1;
                    if kind(place).split(' ').next() != Some(&kind(&file)) {
                        return Err(context(format!("it is refused for {file}")));
                    }
                }
                _ => tally.borrow_mut().lacking.1 += 1,
            }
            if !file.starts_with("wal-") && file != "log-end" {
                return Ok(());
            }
            // Somebody decides to give up what follows the damage, and goes on: that must work, too.
            let settings = Settings { truncate_corrupt_wal: true, ..settings.clone() };
            recovery.depth = 2;
            match recovery.open(disk, index, settings) {
                Ok(()) => Ok(()),
                Err(Refusal::Wrong(what)) => Err(context(format!("after truncate_corrupt_wal: {what}"))),
                Err(Refusal::Refused(error)) => Err(context(format!("truncate_corrupt_wal does not help: {error}"))),
            }
        }
        Err(Refusal::Refused(error)) => Err(context(format!("it does not open: {error}"))),
    }
}

/// What was done to an image.
enum Damage {
    Rot(String),
    /// A file of the log is gone, or was cut short.
    Lack(String),
}

/// As a broken copy or a bad restore leaves a log: mostly without all of its newest file.
fn take_away(disk: &mut DiskImage, side: &Rng) -> Option<String> {
    let names: Vec<String> =
        disk.names().into_iter().filter(|n| n.starts_with("wal-") || (n == "log-end" && side.percent(10))).collect();
    let newest = names.iter().rfind(|name| name.starts_with("wal-"))?;
    let name = match side.percent(75) {
        true => newest,
        false => &names[side.below(names.len() as u64) as usize],
    };
    let block = if side.percent(50) { 4096 } else { 1 };
    let length = side.percent(50).then(|| side.below(disk.length(name) / block) * block);
    disk.damage(name, length);
    Some(match length {
        None => format!("{name} is gone"),
        Some(length) => format!("{name} is cut at {length}"),
    })
}

fn plant_rot(disk: &mut DiskImage, side: &Rng) -> Option<String> {
    let names: Vec<String> =
        disk.names().into_iter().filter(|n| !n.starts_with("spare") && !n.ends_with(".new")).collect();
    let wal: Vec<&String> = names.iter().filter(|n| n.starts_with("wal")).collect();
    let name = if side.percent(70) && !wal.is_empty() {
        wal[side.below(wal.len() as u64) as usize].clone()
    } else {
        names.get(side.below(names.len().max(1) as u64) as usize)?.clone()
    };
    let blocks = disk.written_blocks(&name);
    let block = *blocks.get(side.below(blocks.len().max(1) as u64) as usize)?;
    // The front of a block is where headers and envelopes are; the back may be padding, where rot is harmless.
    let offset = block + if side.percent(60) { side.below(100) } else { side.below(4096) };
    disk.rot(&name, offset, 1 << side.below(8));
    Some(format!("{name} at {offset}"))
}

enum Refusal {
    Refused(Error),
    Wrong(String),
}

struct Recovery<'a> {
    moment: &'a Moment,
    side: &'a Rng,
    sabotage: Option<Sabotage>,
    tally: &'a Rc<RefCell<Tally>>,
    depth: u32,
    damage: Option<&'a Damage>,
    loss: Loss,
}

impl Recovery<'_> {
    fn open(&self, disk: DiskImage, index: IndexImage, settings: Settings) -> Result<(), Refusal> {
        let world = World::new(self.side.next());
        let env = env(&world, disk, index, false, self.sabotage);
        let mut settings = settings;
        if self.side.percent(10) {
            // Replay cannot hold all of it at once.
            settings.overlay_budget = 1_000 + self.side.below(4_000);
            settings.checkpoint_bytes = settings.overlay_budget / 2;
        }
        let mut model = self.moment.model.clone();
        let rot = self.damage.is_some();
        match self.damage {
            Some(_) if settings.truncate_corrupt_wal => model.told = 0,
            // Damage to what nothing vouches for yet cannot be told from a tail; docs/recovery.md says so.
            Some(Damage::Rot(_)) => model.told = model.vouched.min(model.told),
            // A file that is not there, or not whole, can.
            Some(Damage::Lack(_)) | None => {}
        }
        model.log_was_cut |= settings.truncate_corrupt_wal;
        // Reading the log takes as long as all the rest.
        let (with_log, damaged) = (self.side.percent(25), rot || model.log_was_cut);
        let (opened_env, opened_settings) = (env.clone(), settings.clone());
        let end = world.run(async move {
            let partition = Partition::open(opened_env, PARTITION, opened_settings).await.map_err(Refusal::Refused)?;
            compare(&partition, &model, rot).await.map_err(Refusal::Wrong)?;
            if with_log {
                compare_log(&partition, damaged).await.map_err(Refusal::Wrong)?;
            }
            model.restart_at(partition.published());
            Ok((partition, model))
        });
        if std::env::var("TURNSTONE_TRACE").is_ok() {
            eprintln!("-- recovery, depth {}, loss {:?}: {:?}", self.depth, self.loss, world.log.borrow());
        }
        if world.log.borrow().iter().any(|line| line.contains("rebuilt")) {
            self.tally.borrow_mut().rebuilt += 1;
        }
        let (partition, model) = match end {
            End::Done(Ok(opened)) => opened,
            End::Done(Err(refusal)) => return Err(refusal),
            End::Halted(why) => return Err(Refusal::Wrong(format!("it ended itself: {why}"))),
            End::Deadlock => return Err(Refusal::Wrong("recovery stands still".to_string())),
        };
        let again = self.loss == Loss::ProcessOnly || self.depth == 2 || self.side.percent(6);
        if self.depth == 0 || !again || (rot && self.depth != 2) {
            world.drop_tasks();
            return Ok(());
        }
        self.go_on(&world, env, partition, model, &settings)
    }

    /// A few more transactions, and the power goes at one of their steps.
    fn go_on(
        &self,
        world: &Rc<World>,
        env: SimEnv,
        partition: Partition<SimEnv>,
        model: Model,
        settings: &Settings,
    ) -> Result<(), Refusal> {
        let life = Rc::new(Life {
            model: RefCell::new(model),
            outstanding: RefCell::default(),
            failure: RefCell::default(),
            flushing: Cell::new(false),
            tally: self.tally.clone(),
        });
        let cut_at = self.side.below(30);
        let seen = Rc::new(Cell::new(0));
        let moment: Rc<RefCell<Option<Moment>>> = Rc::default();
        let observer: Rc<dyn Fn(&'static str)> = {
            let (life, env, seen, moment) = (life.clone(), env.clone(), seen, moment.clone());
            Rc::new(move |_| {
                seen.set(seen.get() + 1);
                if seen.get() == cut_at + 1 {
                    life.resolve();
                    let model = life.model.borrow().clone();
                    *moment.borrow_mut() = Some(Moment { disk: env.disk.image(), index: env.index.image(), model });
                }
            })
        };
        let before = Moment { disk: env.disk.image(), index: env.index.image(), model: life.model.borrow().clone() };
        env.disk.observe(Some(observer.clone()));
        env.index.observe(Some(observer));
        let (run_env, run_life) = (env.clone(), life.clone());
        let end = world.run(async move { run_session(&run_env, &partition, &run_life, 3, 9).await });
        env.disk.observe(None);
        env.index.observe(None);
        world.drop_tasks();
        if let Some(what) = life.failure.borrow_mut().take() {
            return Err(Refusal::Wrong(format!("after recovery: {what}")));
        }
        if !matches!(end, End::Done(())) {
            return Err(Refusal::Wrong("after recovery nothing can be committed".to_string()));
        }
        let moment = if cut_at == 0 { before } else { moment.borrow_mut().take().unwrap_or(before) };
        let settings = Settings { truncate_corrupt_wal: false, ..settings.clone() };
        try_crash(&moment, self.side, &settings, self.sabotage, self.tally, 0)
            .map_err(|what| Refusal::Wrong(format!("a second crash: {what}")))
    }
}

/// The log is there for whoever reads it, from the oldest version that it says to have on, without a gap.
async fn compare_log(partition: &Partition<SimEnv>, damaged: bool) -> Result<(), String> {
    let (mut next, last) = (partition.oldest_version(), partition.published());
    while next <= last {
        let page = match partition.read_log(next, 1 << 20).await {
            Ok(page) => page,
            Err(Error::Corrupt { .. }) if damaged => return Ok(()),
            // It was purged meanwhile.
            Err(Error::Purged { oldest, .. }) if oldest > next => {
                next = oldest;
                continue;
            }
            Err(error) => {
                return Err(format!("version {next} of the log cannot be read, {last} is published: {error}"));
            }
        };
        for body in page.batches {
            if body.first_version > next {
                return Err(format!("the log goes on with version {} where {next} is due", body.first_version));
            }
            next = next.max(body.last_version() + 1);
        }
        if page.next > next {
            return Err(format!("the log leaves out versions {next} to {}", page.next - 1));
        }
    }
    Ok(())
}

/// What is there must be exactly the contents at the published version, and nothing told may be missing.
async fn compare(partition: &Partition<SimEnv>, model: &Model, rot: bool) -> Result<(), String> {
    let at = partition.published();
    if at < model.told {
        return Err(format!("version {} was told, only {at} is there", model.told));
    }
    if at > model.newest() {
        return Err(format!("version {at} is there, only {} was prepared", model.newest()));
    }
    let expected = model.at(at);
    for key in 0..KEYS {
        let found = match partition.get_at(at, &key_bytes(key)) {
            Lookup::Found(value) => Some(value),
            Lookup::Absent => None,
            Lookup::Cold(cold) => match cold.fetch().await {
                Ok(value) => value,
                Err(Error::Corrupt { .. }) if rot => continue,
                Err(error) => return Err(format!("key {key} cannot be read at {at}: {error}")),
            },
        };
        if found.as_deref() != expected.get(&key).map(Vec::as_slice) {
            let text = |v: Option<&[u8]>| match v {
                None => "nothing".to_string(),
                Some(v) => format!("{} bytes, {:?}", v.len(), String::from_utf8_lossy(&v[..v.len().min(24)])),
            };
            let history: Vec<_> = (1..=at).filter_map(|v| model.get(v, key).map(|value| (v, value.len()))).collect();
            return Err(format!(
                "key {key} at version {at}: found {}, expected {}; {history:?}",
                text(found.as_deref()),
                text(expected.get(&key).map(Vec::as_slice))
            ));
        }
    }
    Ok(())
}
