//! Checkpoints that meet damage, or an index that takes nothing for a while: what they keep, and what they let go of.

use std::time::Duration;
use turnstone_engine::settings::Settings;
use turnstone_engine::{Error, Partition, Write};
use turnstone_tests::sim::world::End;
use turnstone_tests::sim::{SimEnv, World};

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
