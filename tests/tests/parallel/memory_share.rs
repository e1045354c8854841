//! Who waits for memory goes on as soon as there is some, and not only when the next checkpoint ends, which may be a minute away.

use std::time::Duration;
use turnstone_engine::commit::Progress;
use turnstone_engine::settings::Settings;
use turnstone_engine::{Error, Partition, Write};
use turnstone_tests::sim::world::End;
use turnstone_tests::sim::{SimEnv, World};

/// Sooner than any checkpoint that has to wait for a snapshot.
const AT_ONCE: Duration = Duration::from_millis(5);

#[test]
fn a_larger_share_is_used_without_a_checkpoint() {
    for seed in 0..20 {
        let world = World::new(seed);
        let env = SimEnv::fresh(&world, None);
        let settings = Settings { overlay_budget: 64 << 10, checkpoint_bytes: 16 << 10, ..Settings::default() };
        let clock = world.clone();
        let end = world.run(async move {
            let partition = Partition::open(env, 1, settings).await?;
            let set = |n: u32| {
                let mut transaction = partition.begin(partition.published());
                // Not of a snapshot, or it would be let in for the checkpoint's sake.
                transaction.late = true;
                let key = format!("key-{n:06}");
                let write = Write::Set(vec![b'v'; 1000].as_slice().into());
                partition.write(&mut transaction, key.as_bytes(), write).expect("a small write");
                partition.submit(transaction)
            };
            partition.wait_published(set(0).prepared().await?).await;
            // An open snapshot: the checkpoint that the next writes ask for has to wait for it.
            let snapshot = partition.begin(partition.published());
            let mut n = 0;
            let waiting = loop {
                n += 1;
                let ticket = set(n);
                clock.sleep(Duration::from_millis(1)).await;
                if matches!(ticket.progress(), Progress::Reserving) {
                    break ticket;
                }
                assert!(n < 1000, "memory is never short");
            };
            let checkpoints = partition.status().checkpoints;
            partition.set_overlay_bytes(1 << 20);
            clock.sleep(AT_ONCE).await;
            assert!(matches!(waiting.progress(), Progress::Prepared(_)), "seed {seed}: it waits on, with room");
            assert_eq!(partition.status().checkpoints, checkpoints, "seed {seed}: a checkpoint ended meanwhile");
            assert_eq!(partition.open_snapshots(), 1);
            drop(snapshot);
            Ok::<(), Error>(())
        });
        assert!(matches!(end, End::Done(Ok(()))), "seed {seed}: it did not end well");
        world.drop_tasks();
    }
}
