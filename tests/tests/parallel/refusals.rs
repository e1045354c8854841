//! The system refuses an operation of the disk: for want of a descriptor, of memory, of space. Each operation of a workload is
//! refused in turn, once and for a while. What is refused is an answer: nothing that was acknowledged is missing, nothing that was
//! refused is there, the process goes on, and so does the partition when the system gives again what it takes.

use std::collections::BTreeMap;
use std::time::Duration;
use turnstone_engine::disk::DiskErrorKind;
use turnstone_engine::settings::Settings;
use turnstone_engine::{Error, Lookup, Partition, Write};
use turnstone_tests::sim::disk::Refusal;
use turnstone_tests::sim::world::End;
use turnstone_tests::sim::{SimEnv, World};

type Contents = BTreeMap<String, Vec<u8>>;

const KEYS: u32 = 8;

/// Everything is small, so that each kind of file is made, filled and removed within a few commits.
fn settings() -> Settings {
    Settings {
        wal_max_size: 16 << 10,
        wal_retention: Duration::ZERO,
        wal_retention_bytes: 0,
        value_separation: 600,
        value_file_size: 8 << 10,
        value_allocation: 4 << 10,
        value_handles: 2,
        checkpoint_interval: Duration::from_secs(1 << 20),
        base_run_slack: 4,
        ..Settings::default()
    }
}

fn was_refused(error: &Error) -> bool {
    matches!(error, Error::NoSpace(_) | Error::Refused(_))
}

/// What the caller was told, and the refusals that it met.
#[derive(Default)]
struct Told {
    contents: Contents,
    refused: u32,
}

impl Told {
    fn take<T>(&mut self, what: &str, answer: Result<T, Error>) -> Result<Option<T>, String> {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if was_refused(&error) => {
                self.refused += 1;
                Ok(None)
            }
            // A checkpoint finds that its index did not get over it; the next one mends that.
            Err(error) => Err(format!("{what} failed: {error}")),
        }
    }
}

async fn commit(partition: &Partition<SimEnv>, writes: &[(String, Option<Vec<u8>>)]) -> Result<(), Error> {
    let mut transaction = partition.begin(partition.published());
    for (key, value) in writes {
        let write = value.as_ref().map_or(Write::Delete, |value| Write::Set(value.as_slice().into()));
        partition.write(&mut transaction, key.as_bytes(), write)?;
    }
    let version = partition.submit(transaction).prepared().await?;
    partition.wait_published(version).await;
    Ok(())
}

async fn contents(partition: &Partition<SimEnv>) -> Result<Contents, Error> {
    let mut found = Contents::new();
    for key in (0..KEYS).map(|key| format!("key-{key}")) {
        let value = match partition.get_at(partition.published(), key.as_bytes()) {
            Lookup::Found(value) => Some(value),
            Lookup::Absent => None,
            Lookup::Cold(cold) => cold.fetch().await?,
        };
        found.extend(value.map(|value| (key, value.to_vec())));
    }
    Ok(found)
}

/// Opens as the server does: what is refused is tried again.
async fn open(env: &SimEnv, told: &mut Told) -> Result<Partition<SimEnv>, String> {
    for _ in 0..100 {
        if let Some(partition) = told.take("the opening", Partition::open(env.clone(), 1, settings()).await)? {
            return Ok(partition);
        }
        env.world.sleep(Duration::from_millis(100)).await;
    }
    Err("it does not open".to_string())
}

async fn check(partition: &Partition<SimEnv>, told: &mut Told, when: &str) -> Result<(), String> {
    let found = told.take("a read", contents(partition).await)?;
    match found {
        Some(found) if found != told.contents => {
            let keys = |contents: &Contents| contents.iter().map(|(k, v)| (k.clone(), v.len())).collect::<Vec<_>>();
            Err(format!("{when}: found {:?}, expected {:?}", keys(&found), keys(&told.contents)))
        }
        _ => Ok(()),
    }
}

/// Commits of every size, checkpoints, a FlushDB, holds, a step down and a promotion; a clean stop in between.
async fn work(env: &SimEnv, told: &mut Told, rounds: u32) -> Result<(), String> {
    for life in 0..2 {
        let partition = open(env, told).await?;
        for round in 0..rounds {
            let number = life * rounds + round;
            let size = [20, 700, 3_000, 20_000][number as usize % 4];
            let mut writes = vec![(format!("key-{}", number % KEYS), Some(vec![number as u8; size]))];
            if number % 3 == 2 {
                writes.push((format!("key-{}", (number + 3) % KEYS), None));
            }
            if told.take("a commit", commit(&partition, &writes).await)?.is_some() {
                for (key, value) in writes {
                    match value {
                        Some(value) => told.contents.insert(key, value),
                        None => told.contents.remove(&key),
                    };
                }
            }
            match number % 5 {
                1 | 3 => drop(told.take("a checkpoint", partition.checkpoint().await)?),
                2 => drop(told.take("a hold", partition.hold("consumer", 0, 1 << 16).await)?),
                4 if number % 10 == 4 => {
                    let flushed = told.take("a FlushDB", partition.flush_all().await)?;
                    told.contents.retain(|_, _| flushed.is_none());
                }
                4 => {
                    told.take("a step down", partition.step_down().await)?;
                    while told.take("a promotion", partition.promote().await)?.is_none() {
                        env.world.sleep(Duration::from_millis(100)).await;
                    }
                }
                _ => {}
            }
            check(&partition, told, "after a commit").await?;
        }
        if life == 1 {
            end(env);
            nothing_is_left_over(&partition, env).await?;
        }
        told.take("the stop", partition.close().await)?;
        drop(partition);
        env.world.sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

/// The files on the disk are those that count.
async fn nothing_is_left_over(partition: &Partition<SimEnv>, env: &SimEnv) -> Result<(), String> {
    partition.checkpoint().await.map_err(|e| format!("the checkpoint behind the refusals: {e}"))?;
    env.world.sleep(Duration::from_secs(1)).await;
    let names = env.disk.image().names();
    let of = |kind: &str| names.iter().filter(|name| name.starts_with(kind)).count() as u64;
    let status = partition.status();
    let there = (of("values-"), of("run-"), of("wal-"), of("spare-"));
    let named = (status.value_files, status.runs, status.wal_segments, status.wal_spares);
    if there != named {
        return Err(format!("files of values, runs, log, spares: {there:?} are there, {named:?} count"));
    }
    Ok(())
}

/// When all is well again it takes commits and opens anew, and has what was told.
async fn recover(env: &SimEnv, told: &mut Told) -> Result<(), String> {
    for _ in 0..2 {
        let partition = open(env, told).await?;
        told.refused = 0;
        check(&partition, told, "when it is well again").await?;
        for key in 0..4 {
            let (key, value) = (format!("key-{key}"), vec![9; 2_000]);
            commit(&partition, &[(key.clone(), Some(value.clone()))])
                .await
                .map_err(|e| format!("a last commit: {e}"))?;
            told.contents.insert(key, value);
        }
        partition.checkpoint().await.map_err(|e| format!("a last checkpoint: {e}"))?;
        check(&partition, told, "at the end").await?;
        partition.close().await.map_err(|e| format!("the last stop: {e}"))?;
    }
    Ok(())
}

/// What lacks something.
#[derive(Clone, Copy, Debug)]
enum Lacking {
    Disk(DiskErrorKind),
    Index,
}

/// Operations that are refused.
#[derive(Clone, Copy)]
struct Refused {
    lacking: Lacking,
    from: u64,
    count: u64,
    /// How long it goes on from the first one.
    lasts: Duration,
}

impl Refused {
    fn operations(&self, env: &SimEnv) -> u64 {
        match self.lacking {
            Lacking::Disk(_) => env.disk.operations(),
            Lacking::Index => env.index.operations(),
        }
    }

    fn begin(self, env: &SimEnv) {
        let (from, count) = (self.from, self.count);
        match self.lacking {
            Lacking::Disk(kind) => env.disk.refuse(Some(Refusal { kind, from, count })),
            Lacking::Index => env.index.lack(Some((from, count))),
        }
        if count == 1 {
            return;
        }
        let env = env.clone();
        env.world.clone().spawn(async move {
            while self.operations(&env) <= from {
                env.world.sleep(Duration::from_millis(1)).await;
            }
            env.world.sleep(self.lasts).await;
            end(&env);
        });
    }
}

fn end(env: &SimEnv) {
    env.disk.refuse(None);
    env.index.lack(None);
}

/// What a run saw.
struct Seen {
    disk_operations: u64,
    index_operations: u64,
    /// Refusals that callers were told.
    refused: u32,
}

fn run(refused: Option<Refused>) -> Result<Seen, String> {
    const ROUNDS: u32 = 10;
    let world = World::new(1);
    let env = SimEnv::fresh(&world, None);
    if let Some(refused) = refused {
        refused.begin(&env);
    }
    let ended = world.run({
        let env = env.clone();
        async move {
            let mut told = Told::default();
            work(&env, &mut told, ROUNDS).await?;
            let (disk_operations, index_operations) = (env.disk.operations(), env.index.operations());
            let refused = told.refused;
            end(&env);
            recover(&env, &mut told).await?;
            Ok(Seen { disk_operations, index_operations, refused })
        }
    });
    match ended {
        End::Done(answer) => answer,
        End::Halted(why) => Err(format!("the process ended: {why}")),
        End::Deadlock => Err("nothing can go on".to_string()),
    }
}

fn every_operation(lacking: Lacking, count: u64, lasts: Duration) {
    let undisturbed = run(None).expect("without a refusal");
    let operations = match lacking {
        Lacking::Disk(_) => undisturbed.disk_operations,
        Lacking::Index => undisturbed.index_operations,
    };
    assert!(operations >= 20, "only {operations} operations");
    let mut told = 0;
    for from in 0..operations {
        match run(Some(Refused { lacking, from, count, lasts })) {
            Ok(seen) => told += seen.refused,
            Err(what) => panic!("{lacking:?} lacks something at operation {from}, {count} in a row: {what}"),
        }
    }
    println!("{lacking:?}, {count} in a row: {operations} places, {told} refusals told to callers");
    assert!(told > 5, "hardly any refusal was told: {told}");
}

#[test]
fn each_refusal_is_an_answer_and_changes_nothing() {
    for lacking in [Lacking::Disk(DiskErrorKind::Refused), Lacking::Disk(DiskErrorKind::NoSpace), Lacking::Index] {
        every_operation(lacking, 1, Duration::ZERO);
    }
}

#[test]
fn refusals_that_last_seconds_end_nothing() {
    for lacking in [Lacking::Disk(DiskErrorKind::Refused), Lacking::Disk(DiskErrorKind::NoSpace), Lacking::Index] {
        every_operation(lacking, u64::MAX, Duration::from_secs(3));
    }
}
