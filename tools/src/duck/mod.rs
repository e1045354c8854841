//! `turnstone-duck`: change files into DuckDB, each change exactly once.
//!
//! A file is loaded in one transaction of DuckDB, together with the watermark that says so; a crash leaves the one before.
//! What is loaded again changes nothing: a line up to the watermark is known. [`store`] has the tables and their rules,
//! [`files`] the order of files and the reading of lines, [`rows`] the columns, [`publish`] what others get of it.

pub mod files;
pub mod publish;
pub mod rows;
pub mod store;

use files::Found;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{ErrorKind, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use store::Store;

/// What the loader is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where change files come.
    pub input: PathBuf,
    /// The database.
    pub db: PathBuf,
    /// Where loaded files go; they stay if there is none.
    pub archive: Option<PathBuf>,
    /// End when everything that is there is loaded.
    pub once: bool,
    /// How often to look for new files.
    pub poll: Duration,
    /// What DuckDB may take of memory.
    pub memory: String,
    /// Where to publish a copy of the database.
    pub read_copy: Option<PathBuf>,
    /// How often at most.
    pub read_copy_interval: Duration,
    /// Where to write the history as Parquet, at the end.
    pub export: Option<PathBuf>,
}

/// Loads until `stop` says so, or, with `once`, until everything is loaded. `wait` waits, or until it is to end.
pub fn run(options: &Options, stop: &dyn Fn() -> bool, wait: &dyn Fn(Duration)) -> Result<(), String> {
    let mut loader = Loader::open(options)?;
    loop {
        loader.load_all(stop)?;
        loader.publish(options.once || stop())?;
        // A gap is looked at again: a list that is read while files come may lack one.
        if stop() || (options.once && loader.gap.is_none()) {
            break;
        }
        wait(options.poll);
    }
    if let Some(target) = &options.export {
        let rows = publish::export(&loader.store, target)?;
        eprintln!("exported {} rows to {}", HumanCount(rows), target.display());
    }
    let (files, lines) = (loader.loaded_files, loader.loaded_lines);
    eprintln!("loaded {} lines of {files} files in {:.1} s", HumanCount(lines), loader.busy.as_secs_f64());
    Ok(())
}

struct Loader<'a> {
    options: &'a Options,
    store: Store,
    /// Names and lengths of loaded files.
    known: HashSet<(String, u64)>,
    /// What was missing at the last look.
    gap: Option<String>,
    bar: ProgressBar,
    loaded_files: u64,
    loaded_lines: u64,
    busy: Duration,
    /// When a copy was published, and whether anything was loaded since.
    published: Option<Instant>,
    changed: bool,
}

impl<'a> Loader<'a> {
    fn open(options: &'a Options) -> Result<Loader<'a>, String> {
        if !options.input.is_dir() {
            return Err(format!(
                "{} is no directory; turnstone --mode cdc --home DIR writes change files to DIR/cdc_logs",
                options.input.display()
            ));
        }
        if let Some(archive) = &options.archive {
            std::fs::create_dir_all(archive).map_err(|error| format!("{}: {error}", archive.display()))?;
        }
        let store = Store::open(&options.db, &options.memory)?;
        let known = store.files()?;
        let bar = ProgressBar::hidden();
        let (loaded_files, loaded_lines, busy) = (0, 0, Duration::ZERO);
        Ok(Loader {
            options,
            store,
            known,
            gap: None,
            bar,
            loaded_files,
            loaded_lines,
            busy,
            published: None,
            changed: true,
        })
    }

    /// Loads what there is, the partitions in turn.
    fn load_all(&mut self, stop: &dyn Fn() -> bool) -> Result<(), String> {
        let began = Instant::now();
        let mut found = files::finished(&self.options.input)?;
        self.set_aside(&mut found)?;
        let bytes: u64 = found.values().flatten().map(|file| file.bytes).sum();
        if std::io::stderr().is_terminal() && bytes > 0 {
            self.bar = ProgressBar::new(bytes);
            let style = "{elapsed} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left {msg}";
            self.bar.set_style(ProgressStyle::with_template(style).map_err(|error| error.to_string())?);
        }
        let before = self.loaded_lines;
        let gap_before = self.gap.take();
        while !stop() && found.values().any(|files| !files.is_empty()) {
            for files in found.values_mut().filter(|files| !files.is_empty()) {
                let file = files.remove(0);
                if let Some(gap) = files::gap(&self.store, &file)? {
                    if gap_before.as_ref() == Some(&gap) {
                        return Err(gap);
                    }
                    self.gap = Some(gap);
                    files.clear();
                    continue;
                }
                self.load(&file)?;
                let rate = (self.loaded_lines - before) as f64 / began.elapsed().as_secs_f64();
                self.bar.inc(file.bytes);
                self.bar.set_message(format!("{} rows/s", HumanCount(rate as u64)));
            }
        }
        self.bar.finish_and_clear();
        if self.loaded_lines > before {
            self.busy += began.elapsed();
        }
        Ok(())
    }

    fn load(&mut self, file: &Found) -> Result<(), String> {
        self.loaded_lines += files::load(&mut self.store, file)?;
        self.known.insert((file.name.clone(), file.bytes));
        self.loaded_files += 1;
        self.changed = true;
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
        let Some(archive) = &self.options.archive else { return Ok(()) };
        let target = archive.join(&file.name);
        let moved = match std::fs::rename(&file.path, &target) {
            Err(error) if error.kind() == ErrorKind::CrossesDevices => move_across(&file.path, &target),
            moved => moved,
        };
        moved.map_err(|error| format!("{} cannot be moved to {}: {error}", file.name, archive.display()))
    }

    fn publish(&mut self, at_once: bool) -> Result<(), String> {
        let Some(target) = &self.options.read_copy else { return Ok(()) };
        let early = self.published.is_some_and(|at| at.elapsed() < self.options.read_copy_interval);
        if self.changed && (at_once || !early) {
            publish::copy(&self.store, target)?;
            (self.published, self.changed) = (Some(Instant::now()), false);
        }
        Ok(())
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
