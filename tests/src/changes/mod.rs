//! Change files as those who build on them see them: a consumer process, and a replay that accepts no gap, no repetition,
//! no half transaction and no order but the log's.

pub mod duck;
pub mod duck_speed;
pub mod kills;
pub mod log;
pub mod promotion;
pub mod records;
pub mod speed;

use crate::real::{self, TempDir, TestHome, TestServer, binary};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use turnstone_cdc::cursor::Cursor;
use turnstone_cdc::line::Place;
use turnstone_cdc::output::{epoch_in, sequence_of};
use turnstone_cdc::reader::{self, What};

/// What a consumer does not do within this time has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Sets keys of the home's `turnstone.cdc.json`.
pub fn configure(home: &TestHome, keys: &[(&str, serde_json::Value)]) {
    let path = home.path().join("turnstone.cdc.json");
    let text = std::fs::read_to_string(&path).expect("it was made by --init");
    let mut settings: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    for (key, value) in keys {
        settings[*key] = value.clone();
    }
    std::fs::write(&path, settings.to_string()).expect("it can be written");
}

/// Has a home's consumer read from this server, cut often and serve no metrics.
pub fn follow(home: &TestHome, server: &TestServer, more: &[(&str, serde_json::Value)]) {
    let mut keys: Vec<(&str, serde_json::Value)> = vec![
        ("host", server.address.as_str().into()),
        ("rotate_interval", "100ms".into()),
        ("flush_interval", "100ms".into()),
        ("metrics_addr", "".into()),
    ];
    keys.extend(more.iter().cloned());
    configure(home, &keys);
}

/// A consumer process.
pub struct Consumer {
    child: Child,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
    state: PathBuf,
    output: PathBuf,
}

impl Consumer {
    /// Starts one on a home.
    pub fn start(home: &TestHome) -> Consumer {
        Consumer::start_with(home, &[])
    }

    /// With more flags.
    pub fn start_with(home: &TestHome, flags: &[&str]) -> Consumer {
        let mut child = Command::new(binary("turnstone"))
            .args(["--mode", "cdc", "--home"])
            .arg(home.path())
            .args(flags)
            .env_remove("TURNSTONE_SHOW_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("turnstone runs");
        let stderr = child.stderr.take().expect("it is piped");
        let lines = real::lines_of(stderr, "consumer: ");
        let settings = std::fs::read_to_string(home.path().join("turnstone.cdc.json")).expect("it is there");
        let settings: serde_json::Value = serde_json::from_str(&settings).expect("it is JSON");
        let path = |key: &str| home.path().join(settings[key].as_str().expect("a path"));
        let (output, state) = (path("output_dir"), path("state_file"));
        Consumer { child, lines, seen: Vec::new(), state, output }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard output.
    pub fn stdout(&mut self) -> impl BufRead + use<> {
        BufReader::new(self.child.stdout.take().expect("it is piped"))
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    /// SIGTERM, and how it ends.
    pub fn stop(&mut self) -> ExitStatus {
        Command::new("kill").args(["-TERM", &self.pid().to_string()]).status().expect("kill runs");
        self.wait()
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        real::eventually(PATIENCE, "the consumer ends", || {
            status = self.child.try_wait().expect("it is ours");
            status.is_some()
        });
        status.expect("it has ended")
    }

    /// What it logged so far.
    pub fn log(&mut self) -> Vec<String> {
        self.seen.extend(self.lines.try_iter());
        self.seen.clone()
    }

    /// Waits until it has published everything of a partition up to there.
    pub fn published(&mut self, partition: u8, version: u64) {
        self.published_within(partition, version, PATIENCE);
    }

    /// As above, with so much patience.
    pub fn published_within(&mut self, partition: u8, version: u64, patience: Duration) {
        let path = Cursor::path(&self.state, partition);
        let output = self.output.clone();
        let far = || {
            let cursor = Cursor::load(&path, partition).ok().flatten();
            // The cursor seals a file before it has its name.
            let named =
                |cursor: &Cursor| cursor.sealed.as_ref().is_none_or(|sealed| output.join(&sealed.name).exists());
            cursor.filter(named).map_or(0, |cursor| cursor.last)
        };
        let what = format!("version {version} of partition {partition} is published");
        let deadline = std::time::Instant::now() + patience;
        while far() < version {
            let ended = self.child.try_wait().expect("it is ours");
            let late = std::time::Instant::now() > deadline;
            assert!(!late && ended.is_none(), "not {what}, but {}; ended: {ended:?}; {:?}", far(), self.log());
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A change as a file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The transaction.
    pub version: u64,
    /// Its place in it, from 1, and how many there are.
    pub at: (u32, u32),
    /// Nothing for a flush.
    pub key: Option<Vec<u8>>,
    /// Nothing for a delete.
    pub value: Option<Vec<u8>>,
}

/// Version and value of each key.
pub type State = BTreeMap<Vec<u8>, (u64, Vec<u8>)>;

/// What the files of a partition come to.
#[derive(Clone, Debug, Default)]
pub struct Replay {
    /// Every change that was not taken back, in order.
    pub changes: Vec<Change>,
    /// What is there now.
    pub state: State,
    /// The last version that a line names.
    pub last: u64,
    /// How many lines there were.
    pub lines: u64,
    /// Where changes were taken back to.
    pub retractions: Vec<u64>,
    /// Of which versions there were copies.
    pub copies: Vec<u64>,
    copying: Option<State>,
}

/// The published files of a partition, in order; a gap in their sequence fails.
pub fn files(directory: &Path, partition: u8) -> Vec<PathBuf> {
    // A list that is read while names change may lack one: what is published stays, so the next one has it.
    let lists = (0..3).map(|_| list(directory, partition));
    let whole = lists.into_iter().find(|found| found.keys().copied().eq(1..=found.len() as u64));
    whole.unwrap_or_else(|| panic!("files of partition {partition} are missing")).into_values().collect()
}

fn list(directory: &Path, partition: u8) -> BTreeMap<u64, PathBuf> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten() {
        let name = entry.expect("it can be listed").file_name().into_string().expect("a name");
        match sequence_of(&name) {
            Some((of, sequence)) if of == partition => drop(found.insert(sequence, directory.join(name))),
            Some(_) => {}
            None => assert!(
                [".part", ".owner"].iter().any(|kind| name.ends_with(kind)),
                "{name} is neither published nor growing"
            ),
        }
    }
    found
}

/// Replays the published files of a partition.
pub fn replay(directory: &Path, partition: u8) -> Replay {
    let mut replay = Replay::default();
    for path in files(directory, partition) {
        let bytes = std::fs::read(&path).expect("it can be read");
        replay.file(&path.display().to_string(), partition, &bytes);
    }
    replay
}

impl Replay {
    /// Takes a whole file.
    pub fn file(&mut self, name: &str, partition: u8, bytes: &[u8]) {
        assert_eq!(bytes.last(), Some(&b'\n'), "{name} ends within a line");
        let (mut first, mut last) = (None, None);
        for (number, line) in bytes[..bytes.len() - 1].split(|byte| *byte == b'\n').enumerate() {
            let place = self.line(partition, line, &format!("{name}:{}", number + 1));
            first = first.or(Some(place));
            last = Some(place);
        }
        assert!(self.is_whole(), "{name} ends within a transaction");
        let (first, last) = (first.expect("a line"), last.expect("a line"));
        if self.copies.is_empty() && self.copying.is_none() {
            let (epoch, end) = (format!("-e{}-", last.epoch), format!("-{}-{}.jsonl", first.version, last.version));
            assert!(name.contains(&epoch) && name.ends_with(&end), "{name}: {epoch}, {end}");
            assert_eq!(
                epoch_in(name.rsplit('/').next().unwrap_or(name)).map(|epoch| epoch.number),
                Some(last.epoch),
                "{name}"
            );
        }
    }

    fn is_whole(&self) -> bool {
        self.changes.last().is_none_or(|change| change.at.0 == change.at.1)
    }

    /// Takes a line.
    pub fn line(&mut self, partition: u8, line: &[u8], name: &str) -> Place {
        let line = reader::read(line).unwrap_or_else(|why| panic!("{name}: {why}"));
        assert_eq!(line.place.partition, partition, "{name}");
        self.lines += 1;
        let version = line.place.version;
        match line.what {
            What::Set(at, key, value, _) => {
                self.change(name, version, (at.n, at.of), Some(key.into()), Some(value.into()))
            }
            What::Delete(at, key) => self.change(name, version, (at.n, at.of), Some(key.into()), None),
            What::Flush(at) => self.change(name, version, (at.n, at.of), None, None),
            What::CopyBegin(_) => self.copying = Some(BTreeMap::new()),
            What::CopyRow(key, value, _) => {
                let rows = self.copying.as_mut().unwrap_or_else(|| panic!("{name}: a row without a copy"));
                rows.insert(key.into(), (version, value.into()));
            }
            What::CopyEnd(keys) => {
                self.state = self.copying.take().unwrap_or_else(|| panic!("{name}: the end of no copy"));
                assert_eq!(self.state.len() as u64, keys, "{name}: rows of the copy");
                self.copies.push(version);
                self.last = version;
            }
            What::Retract(from) => {
                assert!(self.is_whole() && version < from.version, "{name}");
                assert!(self.last <= from.version, "{name}: {} was written, {from} is taken back", self.last);
                self.retract(version);
            }
        }
        line.place
    }

    fn change(&mut self, name: &str, version: u64, at: (u32, u32), key: Option<Vec<u8>>, value: Option<Vec<u8>>) {
        assert!(self.copying.is_none(), "{name}: a change within a copy");
        if self.is_whole() {
            assert!(version > self.last && at.0 == 1, "{name}: version {version}, {at:?}, behind {}", self.last);
        } else {
            let before = self.changes.last().expect("it is not whole").at;
            assert_eq!((version, at), (self.last, (before.0 + 1, before.1)), "{name}");
        }
        self.last = version;
        match (&key, &value) {
            (Some(key), Some(value)) => drop(self.state.insert(key.clone(), (version, value.clone()))),
            (Some(key), None) => drop(self.state.remove(key)),
            (None, _) => self.state.clear(),
        }
        self.changes.push(Change { version, at, key, value });
    }

    fn retract(&mut self, stays: u64) {
        self.retractions.push(stays);
        self.changes.retain(|change| change.version <= stays);
        self.last = stays;
        assert!(self.copies.is_empty(), "a replay goes back only where there was no copy");
        let changes = std::mem::take(&mut self.changes);
        self.state.clear();
        for change in &changes {
            match (&change.key, &change.value) {
                (Some(key), Some(value)) => drop(self.state.insert(key.clone(), (change.version, value.clone()))),
                (Some(key), None) => drop(self.state.remove(key)),
                (None, _) => self.state.clear(),
            }
        }
        self.changes = changes;
    }
}

/// A small disk of its own, gone when dropped; `None` where this may not be made.
pub struct SmallDisk(TempDir);

impl SmallDisk {
    /// Of so many KiB.
    pub fn new(label: &str, kib: u32) -> Option<SmallDisk> {
        SmallDisk::with_files(label, kib, 1 << 20)
    }

    /// The same, of at most so many files and directories.
    pub fn with_files(label: &str, kib: u32, files: u32) -> Option<SmallDisk> {
        let directory = TempDir::new(label);
        let size = format!("size={kib}k,nr_inodes={files}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(directory.path()).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(SmallDisk(directory))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.path()).status();
    }
}
