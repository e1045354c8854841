//! How long log is kept when somebody sets the wall clock.

use std::time::Duration;
use turnstone_engine::settings::Settings;
use turnstone_engine::{Error, Partition, Write};
use turnstone_tests::sim::world::End;
use turnstone_tests::sim::{SimEnv, World};

const RETENTION: Duration = Duration::from_secs(3600);
const DAY_MS: i64 = 86_400_000;

fn settings() -> Settings {
    Settings {
        wal_max_size: 16 << 10,
        wal_retention: RETENTION,
        wal_retention_bytes: 1 << 30,
        checkpoint_interval: Duration::from_secs(1 << 20),
        ..Settings::default()
    }
}

/// Fills some segments, and checkpoints them.
async fn fill(partition: &Partition<SimEnv>) -> Result<(), Error> {
    for round in 0..20u32 {
        let mut transaction = partition.begin(partition.published());
        let value = format!("{round:04000}").into_bytes();
        partition.write(&mut transaction, b"key", Write::Set(value.as_slice().into()))?;
        let version = partition.submit(transaction).prepared().await?;
        partition.wait_published(version).await;
    }
    partition.checkpoint().await
}

async fn oldest_after(env: &SimEnv, partition: &Partition<SimEnv>, wait: Duration) -> u64 {
    env.world.sleep(wait).await;
    partition.status().wal_oldest_version
}

/// Sets the clock by so many days while the process runs, or while it does not, and looks when the log goes.
fn set_clock(days: i64, restart: bool) {
    let world = World::new(1);
    let env = SimEnv::fresh(&world, None);
    let end = world.run(async move {
        let mut partition = Partition::open(env.clone(), 1, settings()).await?;
        fill(&partition).await?;
        assert_eq!(oldest_after(&env, &partition, RETENTION / 2).await, 1);
        env.world.wall_step_ms.set(days * DAY_MS);
        assert_eq!(oldest_after(&env, &partition, RETENTION / 4).await, 1, "nothing is older than before");
        if restart {
            partition.close().await?;
            partition = Partition::open(env.clone(), 1, settings()).await?;
            assert_eq!(oldest_after(&env, &partition, Duration::from_secs(60)).await, 1, "nor behind a restart");
        }
        let oldest = oldest_after(&env, &partition, RETENTION / 2).await;
        assert!(oldest > 15, "log is kept from version {oldest} on");
        assert!(env.world.log.borrow().iter().any(|line| line.contains("the wall clock was set")));
        Ok::<(), Error>(())
    });
    assert_eq!(end, End::Done(Ok(())), "{days} days, restart {restart}");
    world.drop_tasks();
}

#[test]
fn log_is_kept_for_as_long_as_was_asked_for_when_the_clock_is_set() {
    for days in [300, -300, 1, -1] {
        set_clock(days, false);
        set_clock(days, true);
    }
}

#[test]
fn stamps_of_the_future_count_as_now() {
    let world = World::new(1);
    let env = SimEnv::fresh(&world, None);
    let end = world.run(async move {
        // The clock is ahead when the log is checkpointed, and put right before the next opening.
        env.world.wall_step_ms.set(300 * DAY_MS);
        let partition = Partition::open(env.clone(), 1, settings()).await?;
        fill(&partition).await?;
        assert_eq!(oldest_after(&env, &partition, RETENTION / 2).await, 1);
        partition.close().await?;
        env.world.wall_step_ms.set(0);
        let partition = Partition::open(env.clone(), 1, settings()).await?;
        assert_eq!(oldest_after(&env, &partition, RETENTION / 2).await, 1);
        let oldest = oldest_after(&env, &partition, RETENTION).await;
        assert!(oldest > 15, "log is kept from version {oldest} on");
        Ok::<(), Error>(())
    });
    assert_eq!(end, End::Done(Ok(())));
    world.drop_tasks();
}
