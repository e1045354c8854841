//! Several partitions of one core whose logs share flushes: the power goes at every step, and each of them must still have
//! what somebody was told.

use super::{KEYS, Life, Moment, Tally, choose_loss, run_session, settings, submit, try_crash, value};
use crate::model::{Model, key_bytes};
use crate::sim::rng::mix;
use crate::sim::world::End;
use crate::sim::{Rng, SimEnv, World};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use turnstone_engine::env::Sabotage;
use turnstone_engine::settings::Settings;
use turnstone_engine::wal::shared_flush::SharedFlush;
use turnstone_engine::{Partition, RunAhead, Write};

const PARTITIONS: usize = 3;
const SESSIONS: u32 = 6;
/// Sessions of them that read, write, think and wait as elsewhere; the others write one key after the other, so that
/// the logs are busy at the same time.
const SLOW: u32 = 1;
const TRANSACTIONS: u32 = 8;

/// Flushes and the log writes that they covered.
pub type Counts = (u64, u64);

async fn write_on(env: &SimEnv, partition: &Partition<SimEnv>, life: &Rc<Life>, session: u32) {
    let mut ahead = RunAhead::default();
    for round in 0..TRANSACTIONS {
        let mut transaction = partition.begin(ahead.snapshot(partition));
        transaction.late = true;
        let key = env.world.rng.below(u64::from(KEYS)) as u32;
        let value = value(&env.world.rng, session, round, 0);
        let write = Write::Set(value.as_slice().into());
        if let Err(error) = partition.write(&mut transaction, &key_bytes(key), write) {
            return life.fail(format!("a write failed: {error}"));
        }
        let writes = BTreeMap::from([(key, Some(value))]);
        if !submit(env, partition, life, transaction, writes, BTreeSet::new(), &mut ahead).await {
            return;
        }
    }
    partition.wait_published(ahead.tell_after(partition)).await;
}

/// Runs one seed.
pub fn run_seed(seed: u64, sabotage: Option<Sabotage>, tally: &Rc<RefCell<Tally>>) -> Result<Counts, String> {
    let world = World::new(seed);
    let mut settings = Settings { overlay_budget: 1 << 20, ..settings(&world.rng) };
    if seed % 2 == 1 {
        // Batches of several blocks are common, which do not wait for a round to end.
        settings.value_separation = 8 << 10;
    }
    let shared: Rc<SharedFlush<_>> = Rc::default();
    let env = || SimEnv { shared: Some(shared.clone()), ..SimEnv::fresh(&world, sabotage) };
    let life = || {
        Rc::new(Life {
            model: RefCell::new(Model::default()),
            outstanding: RefCell::default(),
            failure: RefCell::default(),
            flushing: Cell::new(false),
            tally: tally.clone(),
        })
    };
    let all: Rc<Vec<(SimEnv, Rc<Life>)>> = Rc::new((0..PARTITIONS).map(|_| (env(), life())).collect());
    let side = Rc::new(Rng::new(mix(seed ^ 0x51DE)));
    for (env, _) in all.iter() {
        let (all, side, settings) = (Rc::downgrade(&all), side.clone(), settings.clone());
        let observer: Rc<dyn Fn(&'static str)> = Rc::new(move |kind| {
            let Some(all) = all.upgrade() else { return };
            // A step of one log is a moment of all of them; the others matter most where they share.
            let one = side.below(PARTITIONS as u64) as usize;
            for (i, (env, life)) in all.iter().enumerate() {
                if (i == one || kind == "shared flush" || kind == "log write") && life.failure.borrow().is_none() {
                    life.resolve();
                    let (disk, index) = (env.disk.image(), env.index.image());
                    let moment = Moment { disk, index, model: life.model.borrow().clone() };
                    *life.tally.borrow_mut().cuts.entry(kind).or_default() += 1;
                    if let Err(what) = try_crash(&moment, &side, &settings, sabotage, &life.tally, 0) {
                        life.fail(format!("partition {i}: a crash at step {} ({kind}): {what}", env.world.steps.get()));
                    }
                }
            }
        });
        env.disk.observe(Some(observer));
    }
    let (parts, opened) = (all.clone(), settings.clone());
    let end = world.run(async move {
        let done = Rc::new(Cell::new(0));
        for (env, life) in parts.iter() {
            let partition = Partition::open(env.clone(), super::PARTITION, opened.clone()).await?;
            for session in 0..SESSIONS {
                let (env, partition, life, done) = (env.clone(), partition.clone(), life.clone(), done.clone());
                env.world.clone().spawn(async move {
                    if session < SLOW {
                        run_session(&env, &partition, &life, TRANSACTIONS, session).await;
                    } else {
                        write_on(&env, &partition, &life, session).await;
                    }
                    done.set(done.get() + 1);
                });
            }
        }
        while done.get() < SESSIONS * PARTITIONS as u32 {
            parts[0].0.world.sleep(std::time::Duration::from_millis(5)).await;
        }
        Ok::<(), turnstone_engine::Error>(())
    });
    all.iter().for_each(|(env, _)| env.disk.observe(None));
    world.drop_tasks();
    if let Some(what) = all.iter().find_map(|(_, life)| life.failure.borrow_mut().take()) {
        return Err(what);
    }
    match end {
        End::Done(Ok(())) => {}
        End::Done(Err(error)) => return Err(format!("it does not open: {error}")),
        End::Halted(why) => return Err(format!("it ended itself: {why}")),
        End::Deadlock => return Err("nothing can go on".to_string()),
    }
    // The last moment, too.
    for (env, life) in all.iter() {
        life.resolve();
        let disk = env.disk.image().crash(choose_loss(&side));
        let moment = Moment { disk, index: env.index.image(), model: life.model.borrow().clone() };
        try_crash(&moment, &side, &settings, sabotage, tally, 0)?;
    }
    Ok(shared.counts())
}
