//! `turnstone-duck`: changes into DuckDB, each exactly once.
//!
//! A file, or what the server has sent, is loaded in one transaction of DuckDB, together with the watermark that says so; a
//! crash leaves the one before.
//! What is loaded again changes nothing: a line up to the watermark is known. [`store`] has the tables and their rules,
//! [`files`] the order of files, [`direct`] the way without them, [`feed`] the reading of lines, [`rows`] the columns,
//! [`publish`] what others get of it, [`counts`] the metrics; [`yardstick`] says what bounds it.

pub mod counts;
pub mod direct;
pub mod feed;
pub mod files;
pub mod publish;
pub mod rows;
pub mod store;
pub mod yardstick;

use counts::{Asked, Counts};
use files::{Found, Loaded};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{ErrorKind, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use store::Store;
use turnstone_cdc::Settings;
use turnstone_net::tls::TlsFiles;

/// What the loader is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where changes come from.
    pub source: Source,
    /// A new database may begin with a file that is neither the first one nor begins with a copy.
    pub begin_later: bool,
    /// The database.
    pub db: PathBuf,
    /// End when everything that is there is loaded.
    pub once: bool,
    /// How often to look for new files, or to load what has come.
    pub poll: Duration,
    /// What DuckDB may take of memory.
    pub memory: String,
    /// Where to publish a copy of the database.
    pub read_copy: Option<PathBuf>,
    /// How often at most.
    pub read_copy_interval: Duration,
    /// Where to write the history as Parquet, at the end.
    pub export: Option<PathBuf>,
    /// Where metrics are served; empty for nowhere.
    pub metrics: String,
}

/// Where changes come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Files of a directory; loaded ones go to an archive, if there is one.
    Files(PathBuf, Option<PathBuf>),
    /// A server, with a consumer's settings and certificate.
    Server(Box<Settings>, TlsFiles),
}

/// How the loader learns that it is to end.
pub struct Ways<'a> {
    /// Whether it is.
    pub stop: &'a dyn Fn() -> bool,
    /// Waits, or until it is.
    pub wait: &'a dyn Fn(Duration),
}

/// Loads until it is told to stop, or, with `once`, until everything is loaded.
pub fn run(options: &Options, ways: &Ways<'_>) -> Result<(), String> {
    let counts = Arc::new(Counts::default());
    match &options.source {
        Source::Server(settings, tls) => direct::run(options, (**settings).clone(), tls.clone(), ways, &counts),
        Source::Files(input, archive) => {
            let mut loader = Loader::open(options, input, archive.as_deref(), &counts)?;
            if let Some(told) = files::passed_over(input)? {
                eprintln!("{told}");
            }
            serve_metrics(options, &counts, None)?;
            loop {
                loader.load_all(ways.stop)?;
                loader.publisher.publish(&loader.store, false)?;
                // A gap is looked at again: a list that is read while files come may lack one.
                if (ways.stop)() || (options.once && loader.gap.is_none()) {
                    break;
                }
                (ways.wait)(options.poll);
            }
            end(options, &loader.store, &mut loader.publisher, &counts)
        }
    }
}

/// Opens the database, which must be of this source, and counts what it has.
fn open(options: &Options, counts: &Counts) -> Result<Store, String> {
    let store = Store::open(&options.db, &options.memory)?;
    store.refuse_unless(matches!(options.source, Source::Server(..)))?;
    for (partition, version) in store.versions()? {
        counts.reached(partition, version);
    }
    Ok(store)
}

fn serve_metrics(
    options: &Options,
    counts: &Arc<Counts>,
    streams: Option<Arc<Vec<turnstone_cdc::status::Status>>>,
) -> Result<(), String> {
    if options.metrics.is_empty() {
        return Ok(());
    }
    turnstone_cdc::http::serve("--metrics", &options.metrics, Asked { counts: counts.clone(), streams })
}

/// What is left to do when there is nothing more to load.
fn end(options: &Options, store: &Store, publisher: &mut Publisher<'_>, counts: &Counts) -> Result<(), String> {
    publisher.publish(store, true)?;
    if let Some(target) = &options.export {
        let rows = publish::export(store, target)?;
        eprintln!("exported {} rows to {}", HumanCount(rows), target.display());
    }
    let (files, lines, busy) = (counts.files.load(Relaxed), counts.lines.load(Relaxed), counts.busy().as_secs_f64());
    let of = match options.source {
        Source::Files(..) => format!(" of {files} files"),
        Source::Server(..) => String::new(),
    };
    let known = match counts.known.load(Relaxed) {
        0 => String::new(),
        known => format!("; {} of them were there already", HumanCount(known)),
    };
    eprintln!("loaded {} lines{of} in {busy:.1} s{known}", HumanCount(lines));
    Ok(())
}

/// Something that turns on a terminal, and says how it goes; nothing elsewhere.
fn spinner() -> Result<ProgressBar, String> {
    if !std::io::stderr().is_terminal() {
        return Ok(ProgressBar::hidden());
    }
    let style = ProgressStyle::with_template("{elapsed} {spinner} {msg}").map_err(|error| error.to_string())?;
    Ok(ProgressBar::new_spinner().with_style(style))
}

/// Publishes copies of the database, not too often.
struct Publisher<'a> {
    options: &'a Options,
    published: Option<Instant>,
    /// Something was loaded since.
    changed: bool,
}

impl<'a> Publisher<'a> {
    fn new(options: &'a Options) -> Publisher<'a> {
        Publisher { options, published: None, changed: true }
    }

    fn publish(&mut self, store: &Store, at_once: bool) -> Result<(), String> {
        let Some(target) = &self.options.read_copy else { return Ok(()) };
        let early = self.published.is_some_and(|at| at.elapsed() < self.options.read_copy_interval);
        if self.changed && (at_once || !early) {
            publish::copy(store, target)?;
            (self.published, self.changed) = (Some(Instant::now()), false);
        }
        Ok(())
    }
}

struct Loader<'a> {
    input: &'a Path,
    archive: Option<&'a Path>,
    begin_later: bool,
    store: Store,
    /// Names and lengths of loaded files.
    known: HashSet<(String, u64)>,
    /// What was missing at the last look.
    gap: Option<String>,
    bar: ProgressBar,
    counts: &'a Counts,
    publisher: Publisher<'a>,
}

impl<'a> Loader<'a> {
    fn open(
        options: &'a Options,
        input: &'a Path,
        archive: Option<&'a Path>,
        counts: &'a Counts,
    ) -> Result<Loader<'a>, String> {
        if !input.is_dir() {
            return Err(format!(
                "{} is no directory; turnstone --mode cdc --home DIR writes change files to DIR/cdc_logs",
                input.display()
            ));
        }
        if let Some(archive) = archive {
            std::fs::create_dir_all(archive).map_err(|error| format!("{}: {error}", archive.display()))?;
        }
        let store = open(options, counts)?;
        let known = store.files()?;
        let (bar, publisher) = (ProgressBar::hidden(), Publisher::new(options));
        let begin_later = options.begin_later;
        Ok(Loader { input, archive, begin_later, store, known, gap: None, bar, counts, publisher })
    }

    /// Loads what there is, the partitions in turn.
    fn load_all(&mut self, stop: &dyn Fn() -> bool) -> Result<(), String> {
        let began = Instant::now();
        let mut found = files::finished(self.input)?;
        self.set_aside(&mut found)?;
        let bytes: u64 = found.values().flatten().map(|file| file.bytes).sum();
        self.counts.waiting.0.store(found.values().flatten().count() as u64, Relaxed);
        self.counts.waiting.1.store(bytes, Relaxed);
        if std::io::stderr().is_terminal() && bytes > 0 {
            self.bar = ProgressBar::new(bytes);
            let style = "{elapsed} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left {msg}";
            self.bar.set_style(ProgressStyle::with_template(style).map_err(|error| error.to_string())?);
        }
        let before = self.counts.lines.load(Relaxed);
        let gap_before = self.gap.take();
        while !stop() && found.values().any(|files| !files.is_empty()) {
            for files in found.values_mut().filter(|files| !files.is_empty()) {
                let file = files.remove(0);
                if let Some(gap) = files::gap(&self.store, &file, self.begin_later)? {
                    if gap_before.as_ref() == Some(&gap) {
                        return Err(gap);
                    }
                    self.gap = Some(gap);
                    files.clear();
                    continue;
                }
                self.load(&file)?;
                let lines = self.counts.lines.load(Relaxed) - before;
                let rate = lines as f64 / began.elapsed().as_secs_f64();
                self.bar.inc(file.bytes);
                self.bar.set_message(format!("{} rows/s", HumanCount(rate as u64)));
            }
        }
        self.bar.finish_and_clear();
        Ok(())
    }

    fn load(&mut self, file: &Found) -> Result<(), String> {
        let began = Instant::now();
        let Loaded { lines, known, version } = files::load(&mut self.store, file)?;
        let counts = self.counts;
        counts.known.fetch_add(known, Relaxed);
        counts.lines.fetch_add(lines, Relaxed);
        counts.files.fetch_add(1, Relaxed);
        counts.waiting.0.fetch_sub(1, Relaxed);
        counts.waiting.1.fetch_sub(file.bytes, Relaxed);
        counts.reached(file.partition, version);
        counts.was_busy(began.elapsed());
        self.known.insert((file.name.clone(), file.bytes));
        self.publisher.changed = true;
        self.put_away(file)
    }

    /// Files that are loaded leave the list.
    fn set_aside(&self, found: &mut BTreeMap<u8, Vec<Found>>) -> Result<(), String> {
        for files in found.values_mut() {
            let mut left = Vec::new();
            for file in files.drain(..) {
                if self.known.contains(&(file.name.clone(), file.bytes)) {
                    self.put_away(&file)?;
                } else {
                    left.push(file);
                }
            }
            *files = left;
        }
        Ok(())
    }

    /// Moves a loaded file to the archive, if there is one.
    fn put_away(&self, file: &Found) -> Result<(), String> {
        let Some(archive) = self.archive else { return Ok(()) };
        let target = archive.join(&file.name);
        let failed = |error| format!("{}: {error}", target.display());
        if target.try_exists().map_err(failed)? && !is_same(&file.path, &target).map_err(failed)? {
            return Err(format!(
                "{} is there with another content, and is not written over: move it away, or name another -archive",
                target.display()
            ));
        }
        let moved = match std::fs::rename(&file.path, &target) {
            Err(error) if error.kind() == ErrorKind::CrossesDevices => move_across(&file.path, &target),
            moved => moved,
        };
        moved.map_err(|error| format!("{} cannot be moved to {}: {error}", file.name, archive.display()))
    }
}

/// Whether two files have the same bytes.
fn is_same(one: &Path, other: &Path) -> std::io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let n = one.read(&mut a)?;
        if n == 0 {
            return Ok(true);
        }
        // The other may have become shorter meanwhile.
        match other.read_exact(&mut b[..n]) {
            Ok(()) if a[..n] == b[..n] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

/// Moves a file to another file system: it is there as a whole, or not at all.
fn move_across(from: &Path, to: &Path) -> std::io::Result<()> {
    let draft = to.with_extension("part");
    std::fs::copy(from, &draft)?;
    File::open(&draft)?.sync_all()?;
    std::fs::rename(&draft, to)?;
    std::fs::remove_file(from)
}
