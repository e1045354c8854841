//! What the log writes while commits come one after the other, and what they wait for: never for a segment while the next
//! one is there and only takes the place of the one that is full, and no empty batch is written in between. And what logs write
//! that share their flushes: much at a time.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::settings::Settings;
use turnstone_engine::wal::shared_flush::SharedFlush;
use turnstone_engine::{Error, Partition, Write};
use turnstone_tests::sim::world::End;
use turnstone_tests::sim::{Clock, DiskImage, IndexImage, SimDisk, SimEnv, SimIndex, World};

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

const LOGS: u8 = 8;
/// Of each log.
const CLIENTS: u32 = 4;
const EACH: u64 = 100;

/// Commits one key after the other, each when the one before was answered; tells the longest wait.
async fn write_in_turn(partition: &Partition<SimEnv>, client: u32, world: &World) -> Result<Duration, Error> {
    let mut longest = Duration::ZERO;
    for n in 0..EACH {
        let begun = world.now();
        let mut transaction = partition.begin(partition.published());
        transaction.late = true;
        let write = Write::Set(b"v".as_slice().into());
        partition.write(&mut transaction, format!("key-{client}-{n}").as_bytes(), write)?;
        let version = partition.submit(transaction).prepared().await?;
        partition.wait_published(version).await;
        longest = longest.max(world.now() - begun);
    }
    Ok(longest)
}

/// Clients of several logs of one core, each waiting for its answer: answers how many commits shared a log write, how many log
/// writes a flush, and how many flushes, of the usual length, the longest wait took.
fn share_flushes(seed: u64, busy: impl Fn(u8) -> u32) -> (f64, f64, f64) {
    let world = World::new(seed);
    let shared: Rc<SharedFlush<_>> = Rc::default();
    let (clock, flushes) = (world.clone(), shared.clone());
    let clients: Vec<u32> = (0..LOGS).map(busy).collect();
    let end = world.run(async move {
        let (done, longest) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(Duration::ZERO)));
        let all: u32 = clients.iter().sum();
        let mut partitions = Vec::new();
        for log in 1..=LOGS {
            let env = SimEnv {
                world: clock.clone(),
                disk: SimDisk::new(clock.clone(), DiskImage::default()),
                index: SimIndex::new(clock.clone(), IndexImage::default(), false),
                sabotage: None,
                shared: Some(flushes.clone()),
                clock: Clock::default(),
            };
            let partition = Partition::open(env, log, Settings::default()).await?;
            // It begins the log.
            partition.flush_all().await?;
            partitions.push(partition);
        }
        let (begun, before) = (clock.now(), flushes.counts());
        for (partition, &clients) in partitions.iter().zip(&clients) {
            for client in 0..clients {
                let (partition, world, done) = (partition.clone(), clock.clone(), done.clone());
                let longest = longest.clone();
                clock.spawn(async move {
                    let waited = write_in_turn(&partition, client, &world).await;
                    longest.set(longest.get().max(waited.expect("every commit is taken")));
                    done.set(done.get() + 1);
                });
            }
        }
        while done.get() < all {
            assert!(clock.now() < Duration::from_secs(600), "seed {seed}: the logs stand still");
            clock.sleep(Duration::from_millis(1)).await;
        }
        let (count, writes) = (flushes.counts().0 - before.0, flushes.counts().1 - before.1);
        let each = (clock.now() - begun).as_secs_f64() / count as f64;
        let commits = f64::from(all) * EACH as f64;
        let waited = longest.get().as_secs_f64() / each;
        Ok::<_, Error>((commits / writes as f64, writes as f64 / count as f64, waited))
    });
    let End::Done(Ok(figures)) = end else { panic!("seed {seed}: it did not end well") };
    world.drop_tasks();
    figures
}

/// A batch is sealed when its turn has come, not before: it has what its clients sent meanwhile.
#[test]
fn logs_that_share_flushes_write_much_at_a_time() {
    for seed in 0..3 {
        let (commits, writes, waited) = share_flushes(seed, |_| CLIENTS);
        println!("{commits:.2} commits a write, {writes:.2} writes a flush, the longest wait {waited:.1} flushes");
        // Sealed as soon as there is something to seal, it would be half the clients.
        assert!(commits >= 0.9 * f64::from(CLIENTS), "seed {seed}: {commits:.2} commits a write");
        // Two halves that take turns: one flush to wait for, one of its own, and what CPU time they take between them.
        assert!(waited <= 5.0, "seed {seed}: a commit waited for {waited:.1} flushes");
        let (commits, writes, waited) = share_flushes(seed, |log| if log == 0 { 8 * CLIENTS } else { 1 });
        println!(
            "one busy: {commits:.2} commits a write, {writes:.2} writes a flush, the longest wait {waited:.1} flushes"
        );
        assert!(waited <= 5.0, "seed {seed}: beside a busy log a commit waited for {waited:.1} flushes");
    }
}
