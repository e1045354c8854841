//! Changes from the server into the store, without files between. What a consumer writes as lines is loaded with its cursor
//! in one transaction of the database, so it goes on behind what is there.

use super::counts::Counts;
use super::feed;
use super::store::Store;
use super::{Options, Publisher, Ways, end, open, spinner};
use indicatif::HumanCount;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use turnstone_cdc::Settings;
use turnstone_cdc::cursor::Cursor;
use turnstone_cdc::run::{Context, Severity};
use turnstone_cdc::target::{LineStore, Target};
use turnstone_net::tls::TlsFiles;

/// Lines of all partitions that wait in memory, MiB.
const WAITING_MB: u64 = 64;
/// What has come is not loaded more often than this, since each time costs a pass over the state's keys.
const SHORTEST: Duration = Duration::from_millis(20);
/// How often it is looked how things are.
const LOOK: Duration = Duration::from_millis(200);
/// With `-once`, a partition without a stream is given up after this time.
const PATIENCE: Duration = Duration::from_secs(30);

/// The store, which the partitions share: DuckDB has one writer.
struct Shared {
    store: Mutex<Store>,
    counts: Arc<Counts>,
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LineStore for Shared {
    fn cursor(&self, partition: u8) -> Result<Option<Vec<u8>>, String> {
        Ok(self.store().cursor(partition)?.map(String::into_bytes))
    }

    fn take(&self, partition: u8, lines: &[u8], cursor: &Cursor) -> Result<(), String> {
        let mut store = self.store();
        let began = Instant::now();
        let mut load = store.begin(partition)?;
        let (count, known) = feed::lines(&mut load, "the stream", lines)?;
        load.cursor(std::str::from_utf8(&cursor.text()).map_err(|error| error.to_string())?)?;
        load.commit()?;
        self.counts.lines.fetch_add(count, Relaxed);
        self.counts.known.fetch_add(known, Relaxed);
        // Versions without lines count, too.
        self.counts.reached(partition, cursor.last);
        self.counts.was_busy(began.elapsed());
        Ok(())
    }
}

/// Loads from the server until told to stop, or, with `once`, until everything is loaded that was there at the beginning.
pub fn run(
    options: &Options,
    mut settings: Settings,
    tls: TlsFiles,
    ways: &Ways<'_>,
    counts: &Arc<Counts>,
) -> Result<(), String> {
    if !settings.exec.is_empty() {
        eprintln!("turnstone-duck: exec of turnstone.cdc.json is for files, and is passed over");
    }
    settings.max_file_size_mb = WAITING_MB / settings.partition.numbers().len() as u64;
    let every = options.poll.clamp(SHORTEST, if options.once { LOOK } else { Duration::MAX });
    (settings.rotate_interval, settings.flush_interval) = (every, every);
    // Its metrics are among the loader's.
    settings.metrics_addr = String::new();
    let store = open(options, counts)?;
    let shared = Arc::new(Shared { store: Mutex::new(store), counts: counts.clone() });
    let log = |severity, text: &str| match severity {
        Severity::Error | Severity::Warn => eprintln!("turnstone-duck: {text}"),
        Severity::Info => {}
    };
    let context = Context::new(settings, tls, Target::Store(shared.clone()), Box::new(log));
    super::serve_metrics(options, counts, Some(context.statuses.clone()))?;
    let mut publisher = Publisher::new(options);
    let bar = spinner()?;
    let mut looked = (0, Instant::now());
    let mut heard = Instant::now();
    std::thread::scope(|scope| {
        let following = scope.spawn(|| turnstone_cdc::run::run(&context));
        let looking = loop {
            let lines = counts.lines.load(Relaxed);
            publisher.changed |= lines > looked.0;
            let rate = (lines - looked.0) as f64 / looked.1.elapsed().as_secs_f64();
            bar.set_message(format!("{} lines, {} rows/s", HumanCount(lines), HumanCount(rate as u64)));
            bar.tick();
            looked = (lines, Instant::now());
            if options.read_copy.is_some()
                && let Err(why) = publisher.publish(&shared.store(), false)
            {
                break Err(why);
            }
            if context.statuses.iter().all(|status| status.connected.load(Relaxed)) {
                heard = Instant::now();
            }
            if options.once && heard.elapsed() > PATIENCE {
                break Err(format!("-once: not all partitions have had a stream for {PATIENCE:?}"));
            }
            let is_loaded = || context.statuses.iter().all(|status| status.has_what_there_was());
            if following.is_finished() || (ways.stop)() || (options.once && is_loaded()) {
                break Ok(());
            }
            (ways.wait)(LOOK);
        };
        context.stop();
        let followed = following.join().unwrap_or_else(|_| Err("a thread has panicked".to_string()));
        bar.finish_and_clear();
        followed.and(looking)
    })?;
    // What was loaded at the very end is in the last copy, too.
    publisher.changed |= counts.lines.load(Relaxed) > looked.0;
    end(options, &shared.store(), &mut publisher, counts)
}
