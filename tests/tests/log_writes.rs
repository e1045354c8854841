//! What the log writes while commits come one after the other, and what they wait for: never for a segment while the next
//! one is there and only takes the place of the one that is full, and no empty batch is written in between.

use std::time::Duration;
use turnstone_engine::settings::Settings;
use turnstone_engine::{Error, Partition, Write};
use turnstone_tests::sim::world::End;
use turnstone_tests::sim::{SimEnv, World};

/// Between two commits: a spare segment is written long before it is needed.
const PAUSE: Duration = Duration::from_micros(500);
const COMMITS: u32 = 1500;

#[test]
fn commits_do_not_wait_for_a_segment_that_is_there_and_are_all_that_a_busy_log_writes() {
    for seed in 0..20 {
        let world = World::new(seed);
        let env = SimEnv::fresh(&world, None);
        let settings = Settings { wal_max_size: 512 << 10, ..Settings::default() };
        let clock = world.clone();
        let end = world.run(async move {
            let partition = Partition::open(env, 1, settings).await?;
            for n in 0..COMMITS {
                let mut transaction = partition.begin(partition.published());
                transaction.late = true;
                let write = Write::Set(vec![b'v'; 1000].as_slice().into());
                partition.write(&mut transaction, format!("key-{n:06}").as_bytes(), write)?;
                let ticket = partition.submit(transaction);
                if n == 0 {
                    // It begins the log.
                    ticket.prepared().await?;
                }
                clock.sleep(PAUSE).await;
            }
            partition.wait_published(u64::from(COMMITS)).await;
            let status = partition.status();
            let filled = status.wal_segments + status.segments_purged;
            assert!(filled >= 4, "seed {seed}: only {filled} segments");
            // The very first commit finds no segment at all.
            assert!(status.waits_for_log_space <= 1, "seed {seed}: {} commits waited", status.waits_for_log_space);
            assert_eq!(status.idle_vouchers, 0, "seed {seed}: the log was not idle");
            // Nothing comes for longer than an idle log waits.
            clock.sleep(Duration::from_millis(100)).await;
            assert_eq!(partition.status().idle_vouchers, 1, "seed {seed}: it is now, once");
            assert_eq!(partition.vouched(), u64::from(COMMITS), "seed {seed}");
            Ok::<(), Error>(())
        });
        assert!(matches!(end, End::Done(Ok(()))), "seed {seed}: it did not end well");
        world.drop_tasks();
    }
}

/// A partition that writes most of what its node writes may leave four times the log to a restart, and no more.
#[test]
fn a_larger_share_of_the_log_makes_checkpoints_rarer_up_to_a_limit() {
    let checkpoints = |share: Option<u64>| {
        let world = World::new(1);
        let env = SimEnv::fresh(&world, None);
        let settings = Settings { checkpoint_wal_bytes: 256 << 10, ..Settings::default() };
        let clock = world.clone();
        let end = world.run(async move {
            let partition = Partition::open(env, 1, settings).await?;
            share.into_iter().for_each(|share| partition.set_checkpoint_wal_bytes(share));
            for n in 0..COMMITS {
                let mut transaction = partition.begin(partition.published());
                transaction.late = true;
                let write = Write::Set(vec![b'v'; 1000].as_slice().into());
                partition.write(&mut transaction, format!("key-{:06}", n % 100).as_bytes(), write)?;
                partition.submit(transaction).prepared().await?;
                clock.sleep(PAUSE).await;
            }
            partition.wait_published(u64::from(COMMITS)).await;
            Ok::<u64, Error>(partition.status().checkpoints)
        });
        let End::Done(Ok(count)) = end else { panic!("it did not end well") };
        world.drop_tasks();
        count
    };
    // A block of log for each commit.
    let least = checkpoints(None);
    assert!(least >= 12, "{least} checkpoints");
    assert_eq!(checkpoints(Some(1)), least, "never less than the setting");
    let most = checkpoints(Some(1 << 20));
    assert!((2..=least / 3).contains(&most), "{most} checkpoints with four times the log, {least} without");
    assert_eq!(checkpoints(Some(1 << 40)), most, "and never more than four times that");
}
