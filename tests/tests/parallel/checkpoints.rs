//! Checkpoints that meet damage, or an index that takes nothing for a while: what they keep, and what they let go of.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::env::Sabotage;
use turnstone_engine::settings::Settings;
use turnstone_engine::{Error, Lookup, Partition, Write};
use turnstone_tests::sim::world::End;
use turnstone_tests::sim::{IndexImage, SimEnv, SimIndex, World};

const KEYS: u32 = 20;

/// Checkpoints come when the test asks for them, and log goes as soon as it is not needed.
fn settings() -> Settings {
    Settings {
        wal_max_size: 16 << 10,
        wal_retention: Duration::ZERO,
        wal_retention_bytes: 0,
        checkpoint_interval: Duration::from_secs(1 << 20),
        ..Settings::default()
    }
}

/// Writes every key once.
async fn write_all(partition: &Partition<SimEnv>, round: u32) -> Result<(), Error> {
    let mut transaction = partition.begin(partition.published());
    for key in 0..KEYS {
        let value = format!("{round:0500}").into_bytes();
        partition.write(&mut transaction, format!("key-{key:04}").as_bytes(), Write::Set(value.as_slice().into()))?;
    }
    let version = partition.submit(transaction).prepared().await?;
    partition.wait_published(version).await;
    Ok(())
}

/// Bytes of value files, as they are now: the manifest learns of them with its next change.
async fn used(partition: &Partition<SimEnv>) -> Result<u64, Error> {
    partition.hold("count", partition.published(), 1 << 30).await?;
    Ok(partition.status().value_used_bytes)
}

#[test]
fn damaged_run_keeps_no_log_and_is_replaced_from_the_index() {
    const ROUNDS: u32 = 40;
    let world = World::new(1);
    let env = SimEnv::fresh(&world, None);
    let end = world.run(async move {
        let partition = Partition::open(env.clone(), 1, settings()).await?;
        for round in 0..ROUNDS {
            write_all(&partition, round).await?;
            partition.checkpoint().await?;
            if round == 2 {
                let image = env.disk.image();
                let run = image.names().into_iter().rfind(|name| name.starts_with("run-")).expect("a run");
                // Behind the file's header block.
                let block = image.written_blocks(&run)[1];
                env.disk.rot(&run, block + 40, 1);
            }
        }
        let status = partition.status();
        assert!(
            status.wal_oldest_version + 8 > u64::from(ROUNDS),
            "log is kept from version {}",
            status.wal_oldest_version
        );
        assert!(status.runs <= 10, "{} runs", status.runs);
        Ok::<(), Error>(())
    });
    assert_eq!(end, End::Done(Ok(())));
    world.drop_tasks();
}

#[test]
fn checkpoint_that_is_tried_again_writes_no_value_twice() {
    let world = World::new(1);
    let env = SimEnv::fresh(&world, None);
    let end = world.run(async move {
        let partition = Partition::open(env.clone(), 1, settings()).await?;
        write_all(&partition, 0).await?;
        partition.checkpoint().await?;
        write_all(&partition, 1).await?;
        let before = used(&partition).await?;
        env.index.refuse(true);
        assert!(partition.checkpoint().await.is_err(), "the index refuses");
        let once = used(&partition).await?;
        assert!(once > before, "the values were written");
        for _ in 0..5 {
            assert!(partition.checkpoint().await.is_err(), "the index refuses");
        }
        assert_eq!(used(&partition).await?, once, "bytes after five more tries");
        env.index.refuse(false);
        partition.checkpoint().await?;
        assert_eq!(used(&partition).await?, once, "bytes after the try that succeeds");
        Ok::<(), Error>(())
    });
    assert_eq!(end, End::Done(Ok(())));
    world.drop_tasks();
}

/// Checkpoints while the index is behind: how often it was mended.
fn mended_while_behind(sabotage: Option<Sabotage>) -> u64 {
    let world = World::new(1);
    let env = SimEnv::fresh(&world, sabotage);
    let end = world.run(async move {
        let partition = Partition::open(env.clone(), 1, settings()).await?;
        write_all(&partition, 0).await?;
        partition.checkpoint().await?;
        write_all(&partition, 1).await?;
        env.index.fall_behind(true);
        for _ in 0..3 {
            let refused = partition.checkpoint().await.expect_err("the index is behind");
            assert!(refused.to_string().contains("it is behind"), "{refused}");
        }
        let files = env.disk.image().names().into_iter().filter(|name| name.starts_with("run-")).count();
        assert_eq!(files, 1, "runs that were refused are not kept");
        let mended = partition.status().index_mended;
        env.index.fall_behind(false);
        partition.checkpoint().await?;
        assert_eq!(partition.settled(), partition.published());
        Ok::<u64, Error>(mended)
    });
    world.drop_tasks();
    match end {
        End::Done(Ok(mended)) => mended,
        other => panic!("{other:?}"),
    }
}

#[test]
fn index_that_is_behind_is_not_built_anew() {
    assert_eq!(mended_while_behind(None), 0);
    assert!(mended_while_behind(Some(Sabotage::BehindIsBroken)) > 0, "the planted bug shows");
}

/// Writes keys of one value, many in a transaction.
async fn write_many(partition: &Partition<SimEnv>, keys: std::ops::Range<u32>, value: &[u8]) -> Result<(), Error> {
    let mut transaction = partition.begin(partition.published());
    for key in keys {
        partition.write(&mut transaction, format!("key-{key:06}").as_bytes(), Write::Set(value.into()))?;
    }
    let version = partition.submit(transaction).prepared().await?;
    partition.wait_published(version).await;
    Ok(())
}

/// Opens the partition again, whose index is lost: all of it is in the runs, and the index is built from them.
async fn without_index(env: &SimEnv, settings: Settings) -> Result<Partition<SimEnv>, Error> {
    let index = SimIndex::new(env.world.clone(), IndexImage::default(), false);
    Partition::open(SimEnv { index, ..env.clone() }, 1, settings).await
}

async fn read(partition: &Partition<SimEnv>, key: u32) -> Result<Option<Vec<u8>>, Error> {
    let transaction = &mut partition.begin(partition.published());
    match partition.get(transaction, format!("key-{key:06}").as_bytes())? {
        Lookup::Found(value) => Ok(Some(value.to_vec())),
        Lookup::Absent => Ok(None),
        Lookup::Cold(cold) => Ok(cold.fetch().await?.map(|value| value.to_vec())),
    }
}

/// What a key is after its deletion was merged with other runs, and the index was built from all runs.
fn deleted_and_merged(sabotage: Option<Sabotage>) -> Option<Vec<u8>> {
    let world = World::new(1);
    let env = SimEnv::fresh(&world, sabotage);
    let end = world.run(async move {
        let partition = Partition::open(env.clone(), 1, settings()).await?;
        write_many(&partition, 0..1000, b"old").await?;
        partition.checkpoint().await?;
        let mut transaction = partition.begin(partition.published());
        partition.write(&mut transaction, b"key-000000", Write::Delete)?;
        partition.submit(transaction).prepared().await?;
        partition.checkpoint().await?;
        for round in 1..12 {
            write_many(&partition, round..round + 1, b"new").await?;
            partition.checkpoint().await?;
        }
        while partition.status().runs_merged == 0 {
            env.world.sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(partition.status().base_runs, 0, "the oldest run stays");
        partition.close().await?;
        let partition = without_index(&env, settings()).await?;
        assert_eq!(read(&partition, 1).await?.as_deref(), Some(b"new".as_slice()));
        assert_eq!(read(&partition, 500).await?.as_deref(), Some(b"old".as_slice()));
        read(&partition, 0).await
    });
    world.drop_tasks();
    match end {
        End::Done(Ok(found)) => found,
        other => panic!("{other:?}"),
    }
}

#[test]
fn deletions_stay_where_there_are_older_runs() {
    assert_eq!(deleted_and_merged(None), None);
    assert_eq!(
        deleted_and_merged(Some(Sabotage::TierWithoutTombstones)),
        Some(b"old".to_vec()),
        "the planted bug shows"
    );
}

#[test]
fn checkpoints_go_on_while_runs_are_merged() {
    const MANY: u32 = 80_000;
    let world = World::new(1);
    let env = SimEnv::fresh(&world, None);
    let settings = Settings { base_run_slack: 0, wal_max_size: 8 << 20, ..settings() };
    let end = world.run(async move {
        let partition = Partition::open(env.clone(), 1, settings.clone()).await?;
        for value in [b"one", b"two"] {
            write_many(&partition, 0..MANY, value).await?;
            partition.checkpoint().await?;
        }
        assert_eq!((partition.status().runs, partition.status().base_runs), (2, 0));
        // With one entry more the runs are twice as long as what is alive: they become one.
        for round in 0..4u32 {
            write_many(&partition, round..round + 1, b"three").await?;
            partition.checkpoint().await?;
            assert_eq!(partition.status().base_runs, 0, "checkpoint {round} waits for the merge");
        }
        while partition.status().base_runs == 0 {
            env.world.sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(partition.status().runs, 4, "the base run, and the three that came meanwhile");
        partition.close().await?;
        let partition = without_index(&env, settings).await?;
        for (key, expected) in [(0, b"three".as_slice()), (3, b"three"), (4, b"two"), (MANY - 1, b"two")] {
            assert_eq!(read(&partition, key).await?.as_deref(), Some(expected), "key {key}");
        }
        Ok::<(), Error>(())
    });
    assert_eq!(end, End::Done(Ok(())));
    world.drop_tasks();
}

#[test]
fn digest_of_an_index_that_has_to_be_built_anew_comes_to_an_end() {
    let world = World::new(1);
    let env = SimEnv::fresh(&world, None);
    let end = world.run(async move {
        let partition = Partition::open(env.clone(), 1, settings()).await?;
        write_all(&partition, 0).await?;
        let before = partition.digest().await?;
        env.index.rot();
        assert_eq!(partition.digest().await?, before);
        Ok::<(), Error>(())
    });
    assert_eq!(end, End::Done(Ok(())));
    world.drop_tasks();
}

#[test]
fn commits_and_checkpoints_go_on_while_a_digest_is_made() {
    const MANY: u32 = 80_000;
    let world = World::new(1);
    let env = SimEnv::fresh(&world, None);
    let settings = Settings { wal_max_size: 8 << 20, ..settings() };
    let end = world.run(async move {
        let partition = Partition::open(env.clone(), 1, settings).await?;
        write_many(&partition, 0..MANY, b"one").await?;
        let alone = partition.digest().await?;
        let made = Rc::new(Cell::new(None));
        let (of, told) = (partition.clone(), made.clone());
        env.world.spawn_for(0, async move { told.set(Some(of.digest().await)) });
        env.world.sleep(Duration::from_millis(1)).await;
        for round in 0..3u32 {
            write_many(&partition, round..round + 1, b"two").await?;
            partition.checkpoint().await?;
        }
        assert!(made.take().is_none(), "three checkpoints came to an end while the digest is made");
        let digest = loop {
            match made.take() {
                Some(digest) => break digest?,
                None => env.world.sleep(Duration::from_millis(10)).await,
            }
        };
        assert_eq!(digest, alone, "it is of what was settled when it began");
        assert_ne!(partition.digest().await?, alone);
        Ok::<(), Error>(())
    });
    assert_eq!(end, End::Done(Ok(())));
    world.drop_tasks();
}
