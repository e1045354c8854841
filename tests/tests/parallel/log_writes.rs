//! What the log writes while commits come one after the other, and what they wait for: never for a segment while the next
//! one is there and only takes the place of the one that is full, and no empty batch is written in between. And what logs write
//! that share their flushes: much at a time.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::env::Env;
use turnstone_engine::settings::Settings;
use turnstone_engine::stats::Status;
use turnstone_engine::wal::shared_flush::SharedFlush;
use turnstone_engine::{Error, Partition, Ticket, Write};
use turnstone_tests::sim::disk::SimFile;
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

/// One transaction of about this many bytes.
fn submit(partition: &Partition<SimEnv>, n: u32, bytes: usize) -> Result<Ticket, Error> {
    let mut transaction = partition.begin(partition.published());
    transaction.late = true;
    for part in 0..bytes.div_ceil(1000) {
        let write = Write::Set(vec![b'v'; bytes.min(1000)].as_slice().into());
        partition.write(&mut transaction, format!("key-{n}-{part}").as_bytes(), write)?;
    }
    Ok(partition.submit(transaction))
}

/// When the disk was asked for something that makes a spare segment: when it was created, for each piece, when it was flushed.
#[derive(Clone, Default)]
struct Making(Rc<RefCell<Vec<(&'static str, Duration)>>>);

impl Making {
    fn observe(world: &Rc<World>, env: &SimEnv) -> Making {
        let making = Making::default();
        let (seen, clock) = (making.clone(), world.clone());
        env.disk().observe(Some(Rc::new(move |step| {
            if ["spare create", "spare write", "spare flush", "spare remove"].contains(&step) {
                seen.0.borrow_mut().push((step, clock.now()));
            }
        })));
        making
    }
    fn steps(&self, kind: &str) -> Vec<Duration> {
        self.0.borrow().iter().filter(|(step, _)| *step == kind).map(|(_, at)| *at).collect()
    }
    async fn wait(&self, world: &World, kind: &str, count: usize) {
        while self.steps(kind).len() < count {
            assert!(world.now() < Duration::from_secs(60), "it stands still at {:?}", self.0.borrow());
            world.sleep(Duration::from_micros(50)).await;
        }
    }
}

/// What takes the simulated disk longest.
const DEVICE: Duration = Duration::from_micros(300);

/// A partition whose first transaction is published and whose first spare is being made.
async fn that_makes_a_spare(world: &Rc<World>, segment: u64) -> Result<(Partition<SimEnv>, Making), Error> {
    let env = SimEnv::fresh(world, None);
    let settings = Settings { wal_max_size: segment, ..Settings::default() };
    let partition = Partition::open(env.clone(), 1, settings).await?;
    let begun = submit(&partition, 0, 1)?;
    begun.prepared().await?;
    // The first segment is there.
    let making = Making::observe(world, &env);
    partition.wait_published(1).await;
    making.wait(world, "spare write", 1).await;
    Ok((partition, making))
}

/// A spare that nobody waits for leaves the disk alone for most of the time; one that somebody waits for is made at once, from
/// the moment on.
#[test]
fn a_spare_segment_is_made_in_the_disks_idle_time_until_it_is_needed() {
    const SEGMENT: u64 = 4 << 20;
    for seed in 0..5 {
        let world = World::new(seed);
        let clock = world.clone();
        let end = world.run(async move {
            let (_, making) = that_makes_a_spare(&clock, SEGMENT).await?;
            making.wait(&clock, "spare flush", 1).await;
            Ok::<_, Error>(making.steps("spare flush")[0] - making.steps("spare create")[0])
        });
        let End::Done(Ok(calm)) = end else { panic!("seed {seed}: it did not end well") };
        world.drop_tasks();

        let world = World::new(seed);
        let clock = world.clone();
        let end = world.run(async move {
            let (partition, making) = that_makes_a_spare(&clock, SEGMENT).await?;
            making.wait(&clock, "spare write", 3).await;
            let asked = clock.now();
            // More than a segment has room for: it waits until it may make a larger one.
            let ticket = submit(&partition, 1, SEGMENT as usize)?;
            making.wait(&clock, "spare flush", 1).await;
            ticket.prepared().await?;
            let steps: Vec<Duration> = making.0.borrow().iter().map(|(_, at)| *at).filter(|at| *at > asked).collect();
            Ok::<_, Error>((asked, steps))
        });
        let End::Done(Ok((asked, steps))) = end else { panic!("seed {seed}: it did not end well") };
        world.drop_tasks();
        println!("with time {calm:?}, then steps at {steps:?} behind {asked:?}");
        // 16 pieces of 1 to 300 us and the pauses behind 15 of them.
        assert!(calm > DEVICE * 60, "seed {seed}: {calm:?} with all the time there is");
        let longest = std::iter::once(&asked).chain(&steps).zip(&steps).map(|(a, b)| *b - *a).max();
        assert!(longest < Some(DEVICE * 2), "seed {seed}: {longest:?} without a step while somebody waited");
    }
}

/// Who fills a segment fast finds the next one nevertheless.
#[test]
fn a_busy_log_does_not_wait_for_a_spare_that_takes_its_time() {
    const SEGMENTS: u64 = 4;
    for (seed, segment) in (0..4).flat_map(|seed| [(seed, 256 << 10), (seed, 4 << 20)]) {
        let world = World::new(seed);
        let clock = world.clone();
        let end = world.run(async move {
            let (partition, making) = that_makes_a_spare(&clock, segment).await?;
            let mut n = 1;
            while partition.status().wal_segments < SEGMENTS + 1 {
                // A fiftieth of a segment, which takes the disk 150 us: a spare with all its pauses would take longer than they last.
                let version = submit(&partition, n, segment as usize / 50)?.prepared().await?;
                partition.wait_published(version).await;
                n += 1;
            }
            Ok::<_, Error>((partition.status().waits_for_log_space, making.steps("spare write").len()))
        });
        let End::Done(Ok((waits, pieces))) = end else { panic!("seed {seed}: it did not end well") };
        world.drop_tasks();
        println!("{waits} waits, {pieces} pieces of spares of {segment} bytes");
        // The very first commit finds no segment at all.
        assert!(waits <= 1, "seed {seed}: {waits} commits waited");
    }
}

/// A partition that closes does not wait for a spare that nobody needs, nor leaves a part of it.
#[test]
fn a_partition_that_closes_gives_up_its_spare() {
    for (seed, at_once) in (0..4).flat_map(|seed| [(seed, false), (seed, true)]) {
        let world = World::new(seed);
        let clock = world.clone();
        let end = world.run(async move {
            let (partition, making) = that_makes_a_spare(&clock, 64 << 20).await?;
            let before = making.steps("spare write").len();
            let asked = clock.now();
            if at_once {
                partition.abandon().await;
            } else {
                partition.close().await?;
            }
            let pieces = making.steps("spare write").len() - before;
            Ok::<_, Error>((clock.now() - asked, pieces, making.steps("spare remove").len()))
        });
        let End::Done(Ok((took, pieces, removed))) = end else { panic!("seed {seed}: it did not end well") };
        world.drop_tasks();
        assert!(pieces <= 1 && removed == 1, "seed {seed}: {pieces} pieces more, {removed} spares removed");
        assert!(took < Duration::from_millis(100), "seed {seed}: {took:?}");
    }
}

const LOGS: u8 = 8;
/// Of each log.
const CLIENTS: u32 = 4;
/// Of the first, where it is busier than the others.
const CROWD: u32 = 32;
const EACH: u64 = 50;

/// Commits one key after the other, each when the one before was answered.
async fn write_in_turn(partition: &Partition<SimEnv>, client: u32, length: usize) -> Result<(), Error> {
    for n in 0..EACH {
        let mut transaction = partition.begin(partition.published());
        transaction.late = true;
        let write = Write::Set(vec![b'v'; length].as_slice().into());
        partition.write(&mut transaction, format!("key-{client}-{n}").as_bytes(), write)?;
        let version = partition.submit(transaction).prepared().await?;
        partition.wait_published(version).await;
    }
    Ok(())
}

/// What logs of one core wrote until the first of them had answered its clients.
struct Written {
    flushes: u64,
    /// All logs together.
    writes: u64,
    commits: u64,
    /// Of the first log alone.
    batches: u64,
}

/// Partitions of one core, with disks of their own, whose logs are begun and share their flushes.
async fn that_share(
    world: &Rc<World>,
    shared: &Rc<SharedFlush<SimFile>>,
    logs: u8,
) -> Result<Vec<Partition<SimEnv>>, Error> {
    let mut partitions = Vec::new();
    for log in 1..=logs {
        let env = SimEnv { shared: Some(shared.clone()), ..SimEnv::fresh(world, None) };
        let partition = Partition::open(env, log, Settings::default()).await?;
        // It begins the log.
        partition.flush_all().await?;
        partitions.push(partition);
    }
    Ok(partitions)
}

/// Clients of several logs of one core, each waiting for its answers; the first log has `clients`, with values of `length`.
fn share_flushes(seed: u64, clients: u32, length: usize) -> Written {
    let world = World::new(seed);
    let shared: Rc<SharedFlush<_>> = Rc::default();
    let clock = world.clone();
    let end = world.run(async move {
        let partitions = that_share(&clock, &shared, LOGS).await?;
        let sum = |of: fn(&Status) -> u64| partitions.iter().map(|p| of(&p.status())).sum::<u64>();
        let first = |of: fn(&Status) -> u64| of(&partitions[0].status());
        let (counts, commits, batches) = (shared.counts(), sum(|s| s.commits), first(|s| s.batches));
        let done = Rc::new(Cell::new(0));
        for (log, partition) in partitions.iter().enumerate() {
            let (clients, length) = if log == 0 { (clients, length) } else { (CLIENTS, 1) };
            for client in 0..clients {
                let (partition, done) = (partition.clone(), done.clone());
                clock.spawn(async move {
                    write_in_turn(&partition, client, length).await.expect("every commit is taken");
                    done.set(done.get() + u32::from(log == 0));
                });
            }
        }
        while done.get() < clients {
            assert!(clock.now() < Duration::from_secs(600), "seed {seed}: the logs stand still");
            clock.sleep(Duration::from_micros(100)).await;
        }
        Ok::<_, Error>(Written {
            flushes: shared.counts().0 - counts.0,
            writes: shared.counts().1 - counts.1,
            commits: sum(|s| s.commits) - commits,
            batches: first(|s| s.batches) - batches,
        })
    });
    let End::Done(Ok(written)) = end else { panic!("seed {seed}: it did not end well") };
    world.drop_tasks();
    written
}

/// A batch is closed when its turn has come, not before: it has what its clients sent meanwhile. That takes nobody longer.
#[test]
fn logs_that_share_flushes_write_much_at_a_time() {
    let share = |a: u64, b: u64| a as f64 / b as f64;
    for seed in 0..3 {
        let Written { flushes, writes, commits, .. } = share_flushes(seed, CLIENTS, 1);
        let (each, waits) = (share(commits, writes), share(flushes, EACH));
        println!(
            "{each:.2} commits a write, {:.2} writes a flush, {waits:.2} flushes a commit",
            share(writes, flushes)
        );
        // Closed as soon as there is something in them, batches would have half the clients.
        assert!(each >= 0.9 * f64::from(CLIENTS), "seed {seed}: {each:.2} commits a write");
        // The one that is under way, and its own; begun at once, it would be no less.
        assert!(waits <= 2.3, "seed {seed}: {waits:.2} flushes for a commit");
    }
}

/// Logs of which few began together and many later stay together no longer than it takes to see that: the rounds are equal.
#[test]
fn logs_take_turns_in_halves_that_are_equal() {
    const LOGS: u8 = 16;
    const LIMIT: Duration = Duration::from_secs(10);
    for (seed, first) in (0..3).flat_map(|seed| [(seed, 1), (seed, 2)]) {
        let world = World::new(seed);
        let shared: Rc<SharedFlush<_>> = Rc::default();
        let clock = world.clone();
        let end = world.run(async move {
            let partitions = that_share(&clock, &shared, LOGS).await?;
            let start = |partition: &Partition<SimEnv>| {
                for client in 0..CLIENTS {
                    let partition = partition.clone();
                    clock.spawn(async move {
                        write_in_turn(&partition, client, 1).await.expect("every commit is taken");
                    });
                }
            };
            let mut before = shared.counts();
            partitions[..first].iter().for_each(start);
            // They are written now, and the others wait for the end of that.
            while shared.counts().0 == before.0 {
                assert!(clock.now() < LIMIT, "seed {seed}: nothing is written");
                clock.sleep(Duration::from_micros(1)).await;
            }
            partitions[first..].iter().for_each(start);
            let mut rounds = Vec::new();
            while rounds.len() < 40 {
                assert!(clock.now() < LIMIT, "seed {seed}: the logs stand still behind {rounds:?}");
                clock.sleep(Duration::from_micros(1)).await;
                let now = shared.counts();
                if now.0 > before.0 {
                    assert_eq!(now.0, before.0 + 1, "seed {seed}: a round took less than a microsecond");
                    rounds.push(now.1 - before.1);
                    before = now;
                }
            }
            Ok::<_, Error>(rounds)
        });
        let End::Done(Ok(rounds)) = end else { panic!("seed {seed}: it did not end well") };
        world.drop_tasks();
        println!("writes of the rounds: {rounds:?}");
        let uneven = rounds[6..].iter().filter(|writes| !(5..=11).contains(*writes)).count();
        assert_eq!(uneven, 0, "seed {seed}, {first} of {LOGS} first: {rounds:?}");
    }
}

/// A batch that fills a block has nothing to gain: its log takes part in every flush.
#[test]
fn a_log_with_much_to_write_waits_for_no_other() {
    for seed in 0..3 {
        let part = |length| {
            let Written { flushes, batches, .. } = share_flushes(seed, CROWD, length);
            batches as f64 / flushes as f64
        };
        let (much, little) = (part(500), part(1));
        println!("a busy log in {much:.2} of the flushes, and in {little:.2} where its batches are small");
        assert!(much >= 0.9, "seed {seed}: it took part in {much:.2} of the flushes");
        assert!(little <= 0.7, "seed {seed}: it took part in {little:.2} of them with small batches");
    }
}
