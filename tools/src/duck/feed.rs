//! Lines on their way into the store, read strictly, beside the database's work.

use super::rows::{Row, key_text, value_text};
use super::store::{Load, Watermark};
use std::io::BufRead;
use std::sync::mpsc;
use turnstone_cdc::reader::{self, Line, What};

/// Rows that are handed to the store at once, and about how many bytes of them.
const ROWS: usize = 16_384;
const BYTES: usize = 4 << 20;
/// Pieces that are read ahead.
const AHEAD: usize = 2;

/// Reads lines into a load; answers how many, and how many of them were there already. The error names the line, of what is
/// called `name`.
pub fn lines(load: &mut Load<'_>, name: &str, input: impl BufRead + Send) -> Result<(u64, u64), String> {
    let partition = load.partition();
    let mut feed = Feed::new(load);
    let (items, coming) = mpsc::sync_channel(AHEAD);
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let lines = read(partition, name, input, &mut feed, &items)?;
            Ok((lines, feed.known_lines))
        });
        let applied = coming.iter().try_for_each(|item| item.apply(load));
        // Whoever reads finds out at its next item.
        drop(coming);
        let read = reading.join().map_err(|_| format!("{name}: its reader has panicked"))?;
        match (applied, read) {
            (Err(why), _) => Err(format!("{name}: {why}")),
            (Ok(()), read) => read,
        }
    })
}

fn read(
    partition: u8,
    name: &str,
    mut input: impl BufRead,
    feed: &mut Feed,
    items: &mpsc::SyncSender<Item>,
) -> Result<u64, String> {
    let (mut line, mut lines) = (Vec::new(), 0u64);
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line).map_err(|error| format!("{name}: {error}"))? == 0 {
            break;
        }
        lines += 1;
        let at = |why: String| format!("{name}:{lines}: {why}");
        let Some(text) = line.strip_suffix(b"\n") else { return Err(at("the file ends within this line".to_string())) };
        let read = reader::read(text).map_err(at)?;
        if read.place.partition != partition {
            return Err(at(format!("it is of partition {}", read.place.partition)));
        }
        feed.take(read).map_err(at)?;
        for item in feed.ready.drain(..) {
            if items.send(item).is_err() {
                // The other side has failed, and says why.
                return Ok(lines);
            }
        }
    }
    feed.finish().map_err(|why| format!("{name}:{lines}: {why}"))?;
    for item in feed.ready.drain(..) {
        if items.send(item).is_err() {
            break;
        }
    }
    Ok(lines)
}

/// What the store is told, in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Item {
    /// Changes, or rows of a copy; of changes, everything up to the last one is then there.
    Rows(Vec<Row>),
    /// Every key is gone.
    Flush {
        /// The epoch's number.
        epoch: u64,
        /// The version.
        version: u64,
        /// Its place in its transaction.
        at: (u32, u32),
        /// Milliseconds since 1970.
        ts: u64,
    },
    /// A copy of this version begins.
    CopyBegin(u64),
    /// A copy is passed over, to its end, or this is its end.
    SkipCopy(bool),
    /// The copy of this epoch and version is whole.
    CopyEnd(u64, u64),
    /// Everything behind this epoch and version is taken back.
    Retract(u64, u64),
}

impl Item {
    /// Tells the store.
    pub fn apply(self, load: &mut Load<'_>) -> Result<(), String> {
        match self {
            Item::Rows(rows) => {
                let last = rows.last().filter(|row| row.at.is_some()).map(|row| (row.epoch, row.version));
                load.add(rows)?;
                if let Some((epoch, version)) = last {
                    load.reached(epoch, version);
                }
                Ok(())
            }
            Item::Flush { epoch, version, at, ts } => {
                load.flush(epoch, version, at, ts)?;
                load.reached(epoch, version);
                Ok(())
            }
            Item::CopyBegin(version) => {
                load.watermark.skips_copy = false;
                load.copy_begin(version)
            }
            Item::SkipCopy(skips) => {
                load.watermark.skips_copy = skips;
                load.drop_copy()
            }
            Item::CopyEnd(epoch, version) => load.copy_end(epoch, version),
            Item::Retract(epoch, version) => load.retract(epoch, version),
        }
    }
}

/// Lines on their way to a transaction of the store: what is known already is passed over, what cannot follow is refused.
pub struct Feed {
    rows: Vec<Row>,
    /// What they take, about.
    bytes: usize,
    ready: Vec<Item>,
    /// Everything up to there is in the store already, and of which epoch it is.
    known: u64,
    known_epoch: u64,
    /// Of which version a copy is that is not whole.
    copying: Option<u64>,
    /// A copy that is older than what is there.
    skips_copy: bool,
    /// Where in its transaction the last change was.
    at: (u64, u32, u32),
    /// Lines of changes that are in the store already.
    known_lines: u64,
}

impl Feed {
    /// Behind what is there.
    pub fn new(load: &Load<'_>) -> Feed {
        let Watermark { version: known, epoch: known_epoch, copying, skips_copy, .. } = load.watermark;
        let at = (0, 1, 1);
        Feed {
            rows: Vec::new(),
            bytes: 0,
            ready: Vec::new(),
            known,
            known_epoch,
            copying,
            skips_copy,
            at,
            known_lines: 0,
        }
    }

    fn change(&mut self, row: Row) -> Result<(), String> {
        let (n, of) = row.at.unwrap_or_default();
        self.follows(row.version, n, of)?;
        self.is_of_history(row.epoch, row.version)?;
        if row.version > self.known {
            self.push(row);
        } else {
            self.known_lines += 1;
        }
        Ok(())
    }

    /// Changes of a transaction follow each other, and transactions, too.
    fn follows(&mut self, version: u64, n: u32, of: u32) -> Result<(), String> {
        if self.copying.is_some() || self.skips_copy {
            return Err("a change within a copy".to_string());
        }
        let (last, before, all) = self.at;
        let good = if before < all { (version, n, of) == (last, before + 1, all) } else { version > last && n == 1 };
        if !good {
            return Err(format!(
                "change {n} of {of} of transaction {version} behind change {before} of {all} of {last}"
            ));
        }
        self.at = (version, n, of);
        Ok(())
    }

    /// Epochs grow with versions. Where they do not, a consumer began anew on another history, and no line takes the one back
    /// that is here.
    fn is_of_history(&self, epoch: u64, version: u64) -> Result<(), String> {
        let known = (self.known_epoch, self.known);
        if (version <= self.known && epoch > self.known_epoch) || (version > self.known && epoch < self.known_epoch) {
            return Err(format!(
                "{epoch}:{version} is of another history than {}:{}, which is loaded: load the files into a new database",
                known.0, known.1
            ));
        }
        Ok(())
    }

    fn push(&mut self, row: Row) {
        // A transaction is not divided: its version is said to be there when all of it is.
        let begins = row.at.is_none_or(|at| at.0 == 1);
        if (self.rows.len() >= ROWS || self.bytes >= BYTES) && begins {
            self.hand_over();
        }
        self.bytes += row.bytes();
        self.rows.push(row);
    }

    fn hand_over(&mut self) {
        if !self.rows.is_empty() {
            self.ready.push(Item::Rows(std::mem::take(&mut self.rows)));
            self.bytes = 0;
        }
    }

    fn mark(&mut self, item: Item) {
        self.hand_over();
        self.ready.push(item);
    }

    /// Takes a line.
    pub fn take(&mut self, line: Line<'_>) -> Result<(), String> {
        let (epoch, version) = (line.place.epoch, line.place.version);
        if !matches!(line.what, What::Set(..) | What::Delete(..) | What::Flush(_)) {
            self.check_whole()?;
        }
        match line.what {
            What::Set(at, key, value, written) => {
                let value = Some(value_text(&value, written));
                self.change(Row {
                    epoch,
                    version,
                    at: Some((at.n, at.of)),
                    key: key_text(&key),
                    value,
                    ts: Some(at.ts),
                })?;
            }
            What::Delete(at, key) => {
                let at_place = Some((at.n, at.of));
                self.change(Row { epoch, version, at: at_place, key: key_text(&key), value: None, ts: Some(at.ts) })?;
            }
            What::Flush(at) => {
                self.follows(version, at.n, at.of)?;
                self.is_of_history(epoch, version)?;
                if version > self.known {
                    self.mark(Item::Flush { epoch, version, at: (at.n, at.of), ts: at.ts });
                } else {
                    self.known_lines += 1;
                }
            }
            What::CopyBegin(_) => {
                self.skips_copy = version < self.known;
                self.copying = (!self.skips_copy).then_some(version);
                self.mark(if self.skips_copy { Item::SkipCopy(true) } else { Item::CopyBegin(version) });
            }
            What::CopyRow(..) if self.skips_copy => self.known_lines += 1,
            What::CopyRow(key, value, written) => {
                if self.copying.is_none() {
                    return Err("a row of a copy that has not begun".to_string());
                }
                let value = Some(value_text(&value, written));
                self.push(Row { epoch, version, at: None, key: key_text(&key), value, ts: None });
            }
            What::CopyEnd(_) if std::mem::take(&mut self.skips_copy) => self.mark(Item::SkipCopy(false)),
            What::CopyEnd(_) => {
                if self.copying.take() != Some(version) {
                    return Err(format!("the end of a copy at version {version} that has not begun"));
                }
                (self.known, self.known_epoch) = (version, epoch);
                self.at = (version, 1, 1);
                self.mark(Item::CopyEnd(epoch, version));
            }
            What::Retract(_) => {
                if std::mem::take(&mut self.skips_copy) {
                    self.mark(Item::SkipCopy(false));
                }
                self.copying = None;
                if version < self.known {
                    (self.known, self.known_epoch) = (version, epoch);
                }
                self.at = (version, 1, 1);
                self.mark(Item::Retract(epoch, version));
            }
        }
        Ok(())
    }

    fn check_whole(&self) -> Result<(), String> {
        if self.at.1 == self.at.2 { Ok(()) } else { Err(format!("transaction {} is not whole", self.at.0)) }
    }

    /// Hands over what is left; what is there must be whole.
    pub fn finish(&mut self) -> Result<(), String> {
        self.check_whole()?;
        self.hand_over();
        Ok(())
    }
}
