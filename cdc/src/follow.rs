//! Following one partition: a stream becomes lines, lines become files. What ends a stream ends only it: the lines that are
//! here are published, and the next stream goes on behind them.

use crate::cursor::{Epoch, epoch_of};
use crate::line::{self, InTransaction, Op, Place};
use crate::output::{Output, OutputError};
use crate::run::{Context, Severity};
use crate::settings::{OnPurged, Settings, StartAt};
use crate::status::Status;
use crate::target::Target;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use turnstone_net::client::{ChangeEvent, ChangeStream, ClientError};
use turnstone_net::wire::ErrorCode;
use turnstone_net::wire::change::body::{self, BodyError, Change};
use turnstone_net::wire::change::{CopyEntry, PROTOCOL, Refusal, Reign, Start, Subscribe, common_version};

/// Bytes that the server may send ahead.
const WINDOW: u64 = 4 << 20;
/// A connection attempt, or a write, takes at most this long.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is looked whether to stop, or to cut.
const LOOK: Duration = Duration::from_millis(50);
/// The first pause before another attempt, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A position without lines is recorded after this long without a change.
const RECORD: Duration = Duration::from_secs(5);

/// Why a stream ended.
enum Trouble {
    /// It may go better later.
    Again(String),
    /// A person must look.
    Fatal(String),
    /// The server's history parted from what was written, behind this version.
    Diverged(u64),
    /// The log does not reach back to what was written.
    Purged(String),
    /// It is to end.
    Stopped,
}

impl From<OutputError> for Trouble {
    fn from(error: OutputError) -> Trouble {
        match error {
            OutputError::Io(why) => Trouble::Again(why),
            OutputError::Broken(why) => Trouble::Fatal(why),
        }
    }
}

impl From<ClientError> for Trouble {
    fn from(error: ClientError) -> Trouble {
        Trouble::Again(format!("{} {error}", error.word()))
    }
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Trouble {
        let text = format!("{} {}", refusal.code, refusal.text);
        match refusal.code {
            ErrorCode::Diverged => Trouble::Diverged(refusal.at),
            ErrorCode::Purged => Trouble::Purged(text),
            ErrorCode::Unsupported | ErrorCode::Malformed | ErrorCode::Denied => Trouble::Fatal(text),
            _ => Trouble::Again(text),
        }
    }
}

impl From<BodyError> for Trouble {
    fn from(error: BodyError) -> Trouble {
        Trouble::Again(format!("the server sent a batch that cannot be read: {error:?}"))
    }
}

/// One partition of a consumer.
pub struct Follower<'a> {
    context: &'a Context,
    settings: &'a Settings,
    status: &'a Status,
    partition: u8,
    /// The log does not reach back: the next stream begins with a copy.
    wants_copy: bool,
    /// What was logged last: the same trouble is not told every second.
    told: Option<(String, Instant)>,
}

/// What is known while a stream lasts.
struct Session<'a> {
    follower: &'a Follower<'a>,
    stream: &'a mut ChangeStream,
    output: &'a mut Output,
    /// Lines hold everything up to this version.
    at: u64,
    epochs: Vec<Epoch>,
    /// Of which version a copy is that is not whole.
    copying: Option<u64>,
    begun: bool,
    /// Large values of a batch are on their way.
    in_batch: bool,
    /// Lines of that batch so far.
    lines: u64,
    /// What is published up to there the server was told.
    confirmed: u64,
    moved: Instant,
}

impl<'a> Follower<'a> {
    /// Of this partition.
    pub fn new(context: &'a Context, partition: u8, status: &'a Status) -> Follower<'a> {
        Follower { context, settings: &context.settings, status, partition, wants_copy: false, told: None }
    }

    /// Follows until it is told to stop; the error is for a person.
    pub fn run(mut self) -> Result<(), String> {
        let mut pause = PAUSE.0;
        while !self.context.is_stopping() {
            let began = Instant::now();
            let trouble = match self.attempt() {
                Ok(()) => continue,
                Err(trouble) => trouble,
            };
            self.status.connected.store(false, Relaxed);
            match trouble {
                Trouble::Fatal(why) => return Err(format!("partition {}: {why}", self.partition)),
                Trouble::Again(why) => self.tell(why),
                Trouble::Diverged(at) => match self.retract(at) {
                    Ok(()) => continue,
                    Err(Trouble::Fatal(why)) => return Err(format!("partition {}: {why}", self.partition)),
                    Err(Trouble::Again(why)) => self.tell(why),
                    Err(_) => {}
                },
                Trouble::Stopped => continue,
                Trouble::Purged(why) if self.settings.on_purged == OnPurged::Copy => {
                    self.log(Severity::Warn, &format!("{why}: a copy is taken instead (on_purged)"));
                    self.wants_copy = true;
                    continue;
                }
                Trouble::Purged(why) => {
                    return Err(format!(
                        "partition {}: {why}; the changes between are lost to this consumer: set on_purged to \"copy\" to go \
                         on with a copy of what there is now",
                        self.partition
                    ));
                }
            }
            pause = if began.elapsed() > PAUSE.1 { PAUSE.0 } else { (pause * 2).min(PAUSE.1) };
            self.context.wait(pause);
        }
        Ok(())
    }

    fn open(&self) -> Result<Output, Trouble> {
        let mut output = Output::open(&self.context.target, &self.context.state_file, self.partition)?;
        self.status.published.store(output.cursor.last, Relaxed);
        if let Some(path) = output.unannounced() {
            self.context.announce(&path, &mut || ());
            output.announced()?;
        }
        Ok(output)
    }

    /// A stream, from its beginning to its end.
    fn attempt(&mut self) -> Result<(), Trouble> {
        let mut output = self.open()?;
        self.status.aim.store(u64::MAX, Relaxed);
        let start = if output.cursor.copying || self.wants_copy {
            Start::Copy
        } else if !output.is_new {
            Start::Behind
        } else {
            match self.settings.start {
                StartAt::Beginning => Start::Behind,
                StartAt::Now => Start::Now,
                StartAt::Copy => Start::Copy,
            }
        };
        let subscribe = Subscribe {
            version: PROTOCOL,
            partition: self.partition,
            start,
            last: output.cursor.last,
            epochs: output.cursor.epochs.iter().map(to_reign).collect(),
            hold: self.settings.hold,
            credit: WINDOW,
            name: self.context.name.clone(),
        };
        let mut stream = ChangeStream::open(&self.settings.host, &self.context.tls, TIMEOUT, &subscribe)?;
        let mut session = Session {
            at: output.cursor.last,
            epochs: output.cursor.epochs.clone(),
            copying: None,
            begun: false,
            in_batch: false,
            lines: 0,
            confirmed: 0,
            moved: Instant::now(),
            follower: self,
            stream: &mut stream,
            output: &mut output,
        };
        let ended = session.run();
        // What is here is published, whatever ended the stream; an output that has failed refuses.
        let published = if session.begun { session.cut() } else { Ok(()) };
        let copied = session.begun && session.copying.is_none();
        if copied {
            self.wants_copy = false;
        }
        match (ended, published) {
            // What was read could not be kept: that is worse than whatever ended the stream.
            (Err(_), Err(Trouble::Fatal(why))) => Err(Trouble::Fatal(why)),
            (ended, published) => ended.and(published),
        }
    }

    /// What was written behind `at` is not in the server's history.
    fn retract(&mut self, at: u64) -> Result<(), Trouble> {
        let mut output = self.open()?;
        if at >= output.cursor.last {
            return Err(Trouble::Again(format!(
                "the server's history parted at {at}, and this consumer is not behind it"
            )));
        }
        self.take_back(&mut output, at)?;
        let epochs = output.cursor.epochs.clone();
        // What was there before the newest copy the files do not say: below it everything is copied anew.
        let copies = at < output.cursor.copied;
        if let Some(path) = output.cut(at, &epochs, copies, self.context.has_hook())? {
            self.published(&mut output, &path, &mut || ())?;
        }
        Ok(())
    }

    fn take_back(&self, output: &mut Output, at: u64) -> Result<(), Trouble> {
        let cursor = &output.cursor;
        if at == 0 && matches!(self.context.target, Target::Store(_)) {
            // Files keep what was taken back; a table would be empty.
            return Err(Trouble::Fatal(format!(
                "the server at {} has nothing of what is here in its history: is it another one, or one that began anew? \
                 Take a new database for it",
                self.settings.host
            )));
        }
        let place = |version| Place { partition: self.partition, epoch: cursor.epoch_of(version), version };
        let (stays, from) = (place(at), place(cursor.last));
        self.log(
            Severity::Warn,
            &format!("{from} and what is before it, up to {stays}, is not in the server's history: taken back"),
        );
        self.status.retractions.fetch_add(1, Relaxed);
        output.cursor.go_back(at);
        Ok(output.add(stays, |out| line::put_retract(stays, from, out))?)
    }

    /// A file was published; `alive` is called while its hook runs.
    fn published(&self, output: &mut Output, path: &std::path::Path, alive: &mut dyn FnMut()) -> Result<(), Trouble> {
        self.status.files.fetch_add(1, Relaxed);
        if self.context.has_hook() {
            self.context.announce(path, alive);
            output.announced()?;
        }
        Ok(())
    }

    fn tell(&mut self, why: String) {
        const AGAIN: Duration = Duration::from_secs(30);
        let known = self.told.as_ref().is_some_and(|(told, at)| *told == why && at.elapsed() < AGAIN);
        if !known {
            self.log(Severity::Warn, &format!("{why}; trying again"));
            self.told = Some((why, Instant::now()));
        }
    }

    fn log(&self, severity: Severity, text: &str) {
        (self.context.log)(severity, &format!("partition {}: {text}", self.partition));
    }
}

fn to_reign(epoch: &Epoch) -> Reign {
    Reign {
        epoch: turnstone_net::wire::change::Epoch { number: epoch.number, id: epoch.id },
        first_version: epoch.first_version,
    }
}

fn from_reign(reign: &Reign) -> Epoch {
    Epoch { number: reign.epoch.number, id: reign.epoch.id, first_version: reign.first_version }
}

impl Session<'_> {
    fn run(&mut self) -> Result<(), Trouble> {
        while !self.follower.context.is_stopping() {
            let event = self.stream.next(LOOK)?;
            let idle = event.is_none();
            if let Some(event) = event {
                self.take(event)?;
            }
            if idle || !self.stream.has_more() {
                self.output.write_out()?;
                self.follower.status.written.store(self.at, Relaxed);
            }
            self.look_at_clock()?;
        }
        Ok(())
    }

    fn take(&mut self, event: ChangeEvent) -> Result<(), Trouble> {
        match event {
            ChangeEvent::Begun { last, shown, epochs } => {
                self.begin();
                if self.output.is_new {
                    self.at = last;
                }
                self.agree(&epochs, shown)?;
                self.follower.status.aim.store(shown, Relaxed);
                self.follower.log(Severity::Info, &format!("changes from version {} on", last + 1));
                if self.output.is_new {
                    // Where it began is kept, or a restart would begin elsewhere.
                    self.cut()?;
                }
            }
            ChangeEvent::Copy { version, keys, epochs } => {
                self.begin();
                self.begin_copy(version, keys, epochs.iter().map(from_reign).collect())?;
            }
            ChangeEvent::Rows(rows) => self.take_rows(&rows)?,
            ChangeEvent::CopyEnd(sum) => {
                let version = self.copying.take().ok_or_else(|| unexpected("the end of a copy"))?;
                let place = self.place(version);
                self.output.add(place, |out| line::put_copy_end(place, sum.keys, out))?;
                (self.at, self.output.cursor.copied) = (version, version);
                self.cut()?;
                self.follower
                    .log(Severity::Info, &format!("the copy at version {version} is whole: {} keys", sum.keys));
            }
            // Told before a change behind what is here.
            ChangeEvent::Epochs(epochs) => self.agree(&epochs, self.at + 1)?,
            ChangeEvent::Batch(body) => self.take_batch(&body)?,
            ChangeEvent::Value(_) => return Err(unexpected("a large value")),
            // A server that is behind says less.
            ChangeEvent::Progress(version) if self.copying.is_none() => self.at = self.at.max(version),
            ChangeEvent::Progress(_) => {}
            ChangeEvent::Refused(refusal) => return Err(refusal.into()),
        }
        Ok(())
    }

    /// The server tells its history, of which it shows everything up to `shown`: what is here must be a beginning of it, or
    /// it of what is here, if the server is behind.
    fn agree(&mut self, told: &[Reign], shown: u64) -> Result<(), Trouble> {
        let ours: Vec<Reign> = self.epochs.iter().filter(|e| e.first_version <= self.at).map(to_reign).collect();
        let theirs: Vec<Reign> = told.iter().filter(|reign| reign.first_version <= shown).copied().collect();
        let common = common_version((&ours, self.at), (&theirs, shown));
        if common < self.at && shown > common {
            return Err(Trouble::Diverged(common));
        }
        if shown >= self.at {
            // Those that begin further on, too: they are told once.
            self.epochs = told.iter().map(from_reign).collect();
        }
        Ok(())
    }

    fn begin(&mut self) {
        self.begun = true;
        self.follower.status.connected.store(true, Relaxed);
        self.follower.status.streams.fetch_add(1, Relaxed);
    }

    fn place(&self, version: u64) -> Place {
        Place { partition: self.follower.partition, epoch: epoch_of(&self.epochs, version), version }
    }

    fn begin_copy(&mut self, version: u64, keys: u64, epochs: Vec<Epoch>) -> Result<(), Trouble> {
        let cursor = &self.output.cursor;
        let reigns = |epochs: &[Epoch]| epochs.iter().map(to_reign).collect::<Vec<_>>();
        let common = common_version((&reigns(&cursor.epochs), cursor.last), (&reigns(&epochs), version));
        if common < cursor.last {
            self.follower.take_back(self.output, common)?;
            self.at = common;
        }
        self.epochs = epochs;
        self.copying = Some(version);
        // What was there at the beginning is more than this: it is told when the copy is whole.
        self.follower.status.aim.store(u64::MAX, Relaxed);
        self.follower.status.copies.fetch_add(1, Relaxed);
        let place = self.place(version);
        self.output.add(place, |out| line::put_copy_begin(place, keys, out))?;
        self.follower.log(Severity::Info, &format!("a copy of about {keys} keys at version {version} begins"));
        Ok(())
    }

    fn take_rows(&mut self, rows: &[CopyEntry]) -> Result<(), Trouble> {
        let version = self.copying.ok_or_else(|| unexpected("rows of a copy"))?;
        let (place, format) = (self.place(version), self.follower.settings.value_format);
        for row in rows {
            let of_row = self.place(row.version);
            self.output.add(place, |out| line::put_copy_row(of_row, &row.key, &row.value, format, out))?;
            self.cut_if_large()?;
        }
        self.output.touch();
        self.count(rows.len() as u64);
        Ok(())
    }

    fn take_batch(&mut self, body: &[u8]) -> Result<(), Trouble> {
        if self.copying.is_some() || !self.begun {
            return Err(unexpected("a batch"));
        }
        self.in_batch = true;
        // The stream has checked it.
        let head = body::read(body, false, |head, version, changes| {
            // One transaction's at a time: a batch may have any number of them.
            let large = changes.iter().filter(|change| matches!(change, Change::SetLarge(..)));
            let values = large.map(|_| self.large_value()).collect::<Result<Vec<_>, Trouble>>()?;
            if version <= self.at {
                // A batch may begin before the version that was asked for.
                return Ok(());
            }
            if version != self.at + 1 {
                return Err(Trouble::Again(format!("the server sent version {version} behind {}", self.at)));
            }
            let epoch = head.epoch.number;
            if self.output.place().is_some_and(|place| place.epoch != epoch) {
                self.cut()?;
            }
            self.take_transaction(
                Place { partition: self.follower.partition, epoch, version },
                head.commit_ms,
                changes,
                values,
            )?;
            self.at = version;
            self.cut_if_large()
        })?;
        self.in_batch = false;
        self.confirm();
        if self.lines > 0 {
            self.moved = Instant::now();
            self.output.touch();
            let lines = std::mem::take(&mut self.lines);
            self.count(lines);
        }
        self.follower.status.commit_ms.store(head.commit_ms, Relaxed);
        Ok(())
    }

    /// The next large value of the batch that is being read.
    fn large_value(&mut self) -> Result<Vec<u8>, Trouble> {
        while !self.follower.context.is_stopping() {
            match self.stream.next(LOOK)? {
                Some(ChangeEvent::Value(value)) => return Ok(value),
                // It is told again, when it matters.
                None | Some(ChangeEvent::Progress(_)) => {}
                Some(ChangeEvent::Refused(refusal)) => return Err(refusal.into()),
                Some(_) => return Err(unexpected("something else than a large value")),
            }
        }
        Err(Trouble::Stopped)
    }

    fn take_transaction(
        &mut self,
        place: Place,
        ts: u64,
        changes: &[Change<'_>],
        values: Vec<Vec<u8>>,
    ) -> Result<(), Trouble> {
        let of = changes.iter().filter(|change| !matches!(change, Change::Members(_))).count() as u32;
        let format = self.follower.settings.value_format;
        let mut values = values.into_iter();
        let mut n = 0;
        for change in changes {
            let large;
            let op = match change {
                Change::Set(key, value) => Op::Set(key, value),
                Change::SetLarge(key, ..) => {
                    large = values.next().ok_or_else(|| unexpected("a batch without its large values"))?;
                    Op::Set(key, &large)
                }
                Change::Delete(key) => Op::Delete(key),
                Change::Flush => Op::Flush,
                // Nothing of a user's has changed.
                Change::Members(_) => continue,
            };
            n += 1;
            self.output.add(place, |out| line::put_change(place, InTransaction { n, of, ts }, op, format, out))?;
        }
        self.lines += u64::from(of);
        Ok(())
    }

    fn count(&self, lines: u64) {
        self.follower.status.lines.fetch_add(lines, Relaxed);
    }

    fn cut_if_large(&mut self) -> Result<(), Trouble> {
        if self.output.bytes() >= self.follower.settings.max_file_size_mb << 20 { self.cut() } else { Ok(()) }
    }

    fn look_at_clock(&mut self) -> Result<(), Trouble> {
        let settings = self.follower.settings;
        let due = match self.output.ages() {
            // Who has read the lines has no file to look at: how far they are is recorded soon.
            Some((since, _)) if self.follower.context.target.is_stdout() => since.elapsed() >= Duration::from_secs(1),
            Some((since, changed)) => {
                since.elapsed() >= settings.rotate_interval || changed.elapsed() >= settings.flush_interval
            }
            // Only what no user has written came: the log need not be kept for it.
            None => {
                let idle = self.begun && self.copying.is_none() && self.at > self.output.cursor.last;
                idle && self.moved.elapsed() >= RECORD
            }
        };
        if due {
            self.cut()?;
            self.moved = Instant::now();
        }
        Ok(())
    }

    /// Publishes what there is, and lets the server go of the log up to there.
    fn cut(&mut self) -> Result<(), Trouble> {
        let status = self.follower.status;
        let bytes = self.output.bytes();
        let hook = self.follower.context.has_hook();
        let (output, stream) = (&mut *self.output, &mut *self.stream);
        let (at, epochs, copying) = (self.at, &self.epochs, self.copying.is_some());
        // A slow disk, or a database at work: the server hears meanwhile that this side lives.
        let path = beside(|| output.cut(at, epochs, copying, hook), || drop(stream.keep_alive()))?;
        status.bytes.fetch_add(bytes, Relaxed);
        status.published.store(self.at, Relaxed);
        if let Some(path) = path {
            // Where the stream is broken its next event says so.
            let stream = &mut *self.stream;
            self.follower.published(self.output, &path, &mut || drop(stream.keep_alive()))?;
        }
        self.confirm();
        Ok(())
    }

    /// Lets the server go of the log up to what is published: of whole batches only, since it knows what it has sent by them.
    fn confirm(&mut self) {
        let published = self.output.cursor.last;
        if self.copying.is_none() && self.begun && !self.in_batch && published > self.confirmed {
            // Where the stream is broken the next one says what is needed.
            let _ = self.stream.confirm(published);
            self.confirmed = published;
        }
    }
}

/// Works on a thread of its own, and calls `alive` now and then until that is done.
fn beside<T: Send>(work: impl FnOnce() -> T + Send, mut alive: impl FnMut()) -> T {
    std::thread::scope(|scope| {
        let (done, ended) = mpsc::channel::<()>();
        let working = scope.spawn(move || {
            let outcome = work();
            drop(done);
            outcome
        });
        while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            alive();
        }
        working.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn unexpected(what: &str) -> Trouble {
    Trouble::Again(format!("the server sent {what} where there is none"))
}
