//! One stream: from a consumer's first frame to its end.

use super::Changes;
use crate::replica::{Host, Speaks, wait_for};
use crate::wire::ErrorCode;
use crate::wire::change::{Frame, PROTOCOL, Refusal, Start, Subscribe};
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::copy::CopyOut;
use turnstone_engine::env::{Env, Level};
use turnstone_engine::manifest::EpochStart;
use turnstone_engine::sync::first_of;
use turnstone_engine::tail::{LogReader, Scope};
use turnstone_engine::types::Version;
use turnstone_engine::{Error, Partition};
use turnstone_replication::history::{Common, common_point};
use turnstone_replication::wire::put_entry;

/// No partition ever has so many versions.
const VERSION_MAX: Version = 1 << 62;
/// Bytes of bodies that are read at once.
const READ: usize = 1 << 20;
/// Bytes of keys and values in a frame of a copy.
const ROWS: usize = 256 << 10;
/// Who has connected has so long to say what it wants.
const GREETING: Duration = Duration::from_secs(10);
/// An idle stream says so at least this often.
const BEAT: Duration = Duration::from_secs(1);
/// A consumer that was not heard for so long is gone: it may be busy with its disk, but says that it lives.
const SILENCE: Duration = Duration::from_secs(60);
/// What a consumer confirms is recorded at most this often: it costs a flush.
const RECORD: Duration = Duration::from_secs(1);

/// Why a stream ends.
enum End {
    /// The consumer is told.
    Refused(Refusal),
    /// The connection is of no use any more.
    Broken(String),
}

impl From<String> for End {
    fn from(why: String) -> End {
        End::Broken(why)
    }
}

impl From<Error> for End {
    fn from(error: Error) -> End {
        let (code, at) = match &error {
            Error::Purged { oldest, .. } => (ErrorCode::Purged, *oldest),
            Error::Diverged(_) => (ErrorCode::Diverged, 0),
            Error::BadHold(_) => (ErrorCode::Malformed, 0),
            Error::NoSpace(_) => (ErrorCode::NoSpace, 0),
            Error::Corrupt { .. } => (ErrorCode::Corrupt, 0),
            _ => (ErrorCode::Offline, 0),
        };
        End::Refused(Refusal { code, at, text: error.to_string() })
    }
}

fn refused(code: ErrorCode, at: Version, text: impl Into<String>) -> End {
    End::Refused(Refusal { code, at, text: text.into() })
}

struct Stream<'a, H: Host, L> {
    changes: &'a Changes<H>,
    link: &'a L,
    partition: Partition<H::Env>,
    name: String,
    /// The name in the consumer's certificate.
    certificate: String,
    number: u64,
    /// Of the partition when the stream began: another one may have another history.
    deposed: u64,
    credit: i64,
    sent: Version,
    confirmed: Version,
    /// What the hold says, and when it was last recorded.
    recorded: (Version, Duration),
    hold: u64,
    epochs: Vec<EpochStart>,
    heard: Duration,
    told: Duration,
    /// What keeps the log behind a copy, until the consumer has the copy.
    copy: Option<CopyOut<H::Env>>,
}

impl<H: Host> Changes<H> {
    /// Serves a consumer until it is gone; answers why it ended.
    pub async fn serve<L: Speaks<Frame>>(&self, link: Rc<L>, env: H::Env) -> Result<(), String> {
        let deadline = self.host.now() + GREETING;
        let ended = loop {
            match link.next() {
                Err(why) => break Err(End::Broken(why)),
                Ok(Some(Frame::Subscribe(subscribe))) => break self.feed(&*link, subscribe).await,
                Ok(Some(_)) => break Err(End::Broken("it did not begin by subscribing".to_string())),
                Ok(None) if link.gone().is_some() => return Ok(()),
                Ok(None) if self.host.now() > deadline => break Err(End::Broken("it said nothing".to_string())),
                Ok(None) => wait_for(&env, &*link).await,
            }
        };
        let answer = match ended {
            Ok(()) => Ok(()),
            Err(End::Broken(why)) => Err(why),
            Err(End::Refused(refusal)) => {
                let text = format!("{} {}", refusal.code, refusal.text);
                link.say(&Frame::Refuse(refusal));
                Err(text)
            }
        };
        link.close();
        answer
    }

    async fn feed<L: Speaks<Frame>>(&self, link: &L, subscribe: Subscribe) -> Result<(), End> {
        if subscribe.version != PROTOCOL {
            let text = format!("version {} of change streams is not spoken here, {PROTOCOL} is", subscribe.version);
            return Err(refused(ErrorCode::Unsupported, 0, text));
        }
        if subscribe.last > VERSION_MAX {
            let text = format!("version {} is more than there can be", subscribe.last);
            return Err(refused(ErrorCode::Malformed, 0, text));
        }
        let number = subscribe.partition;
        let Some(partition) = self.host.partition(number) else {
            let text = format!("partition {number} is not here, or offline");
            return Err(refused(ErrorCode::NoSuchPartition, 0, text));
        };
        let now = self.host.now();
        let (_, certificate) = link.identity();
        let entered = self.consumers.enter(number, &subscribe.name, &link.peer(), &certificate);
        let mut stream = Stream {
            changes: self,
            link,
            deposed: partition.deposed(),
            number: entered.map_err(|why| refused(ErrorCode::Denied, 0, why))?,
            certificate,
            partition,
            name: subscribe.name.clone(),
            credit: i64::try_from(subscribe.credit).unwrap_or(i64::MAX),
            sent: 0,
            confirmed: 0,
            recorded: (0, now),
            hold: subscribe.hold,
            epochs: Vec::new(),
            heard: now,
            told: now,
            copy: None,
        };
        let ended = stream.run(&subscribe).await;
        // Where another connection has taken over the name, the hold is that one's.
        if self.consumers.leave(stream.number) && !stream.partition.is_closed() {
            stream.record().await;
        }
        ended
    }
}

impl<H: Host, L: Speaks<Frame>> Stream<'_, H, L> {
    async fn run(&mut self, subscribe: &Subscribe) -> Result<(), End> {
        let peer = self.link.peer();
        match subscribe.start {
            Start::Behind => self.compare(subscribe)?,
            Start::Now => self.sent = self.partition.published(),
            Start::Copy => {}
        }
        if subscribe.start != Start::Copy {
            self.keep(self.sent).await?;
            (self.confirmed, self.epochs) = (self.sent, self.partition.history());
            let shown = self.partition.published();
            self.link.say(&Frame::Accept { last: self.sent, shown, epochs: self.epochs.clone() });
            self.log(
                Level::Info,
                format_args!("{peer} reads changes as '{}' from version {} on", self.name, self.sent + 1),
            );
        } else {
            let copy = self.partition.copy_out().await?;
            self.keep(copy.head.version).await?;
            self.log(
                Level::Info,
                format_args!("{peer} gets a copy as '{}' at version {}", self.name, copy.head.version),
            );
            self.send_copy(copy).await?;
            self.epochs = self.partition.history();
            // A copy is as old as its checkpoint: how much log follows is told, too.
            let shown = self.partition.published();
            self.link.say(&Frame::Accept { last: self.sent, shown, epochs: self.epochs.clone() });
        }
        // Another server may have shown more than this one does yet.
        while self.partition.published() < self.sent {
            self.look()?;
            // What it learns meanwhile may be another history.
            self.compare(subscribe)?;
            self.beat(self.partition.published());
            first_of(wait_for(self.partition.env(), self.link), self.partition.wait_published(self.sent)).await;
        }
        if subscribe.start == Start::Behind {
            self.compare(subscribe)?;
        }
        let mut reader = self.partition.log_reader(self.sent + 1, Scope::Published)?;
        loop {
            self.room().await?;
            if self.confirmed > self.recorded.0 && self.now() >= self.recorded.1 + RECORD {
                self.record().await;
            }
            let shipments = reader.read(READ.min(self.credit.max(1) as usize)).await?;
            if shipments.is_empty() {
                self.beat(self.sent);
                first_of(wait_for(self.partition.env(), self.link), reader.ready()).await;
                continue;
            }
            for shipment in shipments {
                self.ship(&reader, shipment).await?;
                self.partition.env().give_way().await;
            }
        }
    }

    /// Compares the consumer's history with this one.
    fn compare(&mut self, subscribe: &Subscribe) -> Result<(), End> {
        let own = self.partition.standing();
        // A leader's log is the history; of anybody else's only what is shown is sure to stay.
        let last = if own.leads { own.last } else { own.published };
        let epochs: Vec<EpochStart> = own.epochs.iter().filter(|e| e.first_version <= last).copied().collect();
        let common = common_point((&subscribe.epochs, subscribe.last), (&epochs, last));
        let (Common::Prefix(at) | Common::Diverged(at)) = common;
        // Nobody will continue what a leader does not have; a follower may yet get it.
        let lost = at < subscribe.last && (own.leads || common == Common::Diverged(at));
        if lost {
            let text = format!(
                "version {} of partition {} is of another history: both have everything up to {at}",
                subscribe.last,
                self.partition.id()
            );
            return Err(refused(ErrorCode::Diverged, at, text));
        }
        self.sent = subscribe.last;
        Ok(())
    }

    /// From here on the log behind `version` is kept under the consumer's name.
    async fn keep(&mut self, version: Version) -> Result<(), End> {
        if self.hold > 0 {
            // A version that is not here yet cannot be kept, and need not be.
            let kept = version.min(self.partition.published()) + 1;
            self.partition.hold_for(&self.certificate, &self.name, kept, self.hold).await?;
        } else {
            // One that it had under other settings; nearly always there is none.
            let _ = self.partition.release_for(&self.certificate, &self.name).await;
        }
        self.recorded = (version, self.now());
        Ok(())
    }

    /// Records what the consumer has confirmed: its hold moves on.
    async fn record(&mut self) {
        if self.confirmed <= self.recorded.0 || self.hold == 0 {
            return;
        }
        self.recorded = (self.confirmed, self.now());
        let kept = self.confirmed.min(self.partition.published()) + 1;
        if let Err(error) = self.partition.hold_for(&self.certificate, &self.name, kept, self.hold).await {
            self.log(Level::Warn, format_args!("the hold of '{}' does not move: {error}", self.name));
        }
    }

    async fn send_copy(&mut self, mut copy: CopyOut<H::Env>) -> Result<(), End> {
        let (version, keys, epochs) = (copy.head.version, copy.keys(), copy.head.epochs.clone());
        self.link.say(&Frame::Copy { version, keys, epochs });
        let (began, rate) = (self.now(), self.partition.settings().copy_rate);
        let mut bytes_sent = 0u64;
        loop {
            self.room().await?;
            let due = Duration::from_secs_f64(bytes_sent as f64 / rate.max(1) as f64);
            let early = if rate == 0 { Duration::ZERO } else { (began + due).saturating_sub(self.now()) };
            if !early.is_zero() {
                self.partition.env().sleep(early.min(BEAT)).await;
                continue;
            }
            let entries = copy.next(ROWS).await?;
            if entries.is_empty() {
                break;
            }
            let mut bytes = Vec::with_capacity(ROWS + ROWS / 4);
            entries.iter().for_each(|entry| put_entry(entry, &mut bytes));
            bytes_sent += bytes.len() as u64;
            self.say(Frame::Rows(bytes));
            self.partition.env().give_way().await;
        }
        self.link.say(&Frame::CopyEnd(copy.sum()));
        copy.sent();
        (self.copy, self.sent) = (Some(copy), version);
        Ok(())
    }

    async fn ship(
        &mut self,
        reader: &LogReader<H::Env>,
        shipment: turnstone_engine::tail::Shipment,
    ) -> Result<(), End> {
        let history = self.partition.history();
        if history != self.epochs {
            self.link.say(&Frame::Epochs(history.clone()));
            self.epochs = history;
        }
        self.room().await?;
        self.say(Frame::Batch(shipment.body));
        for value in &shipment.values {
            let value = reader.value(value).await?;
            self.room().await?;
            self.say(Frame::Value(value.to_vec()));
        }
        self.sent = shipment.last;
        Ok(())
    }

    /// Says something that costs credit.
    fn say(&mut self, frame: Frame) {
        self.credit -= frame.cost() as i64;
        self.told = self.now();
        self.link.say(&frame);
    }

    fn beat(&mut self, sent: Version) {
        if self.now() >= self.told + BEAT {
            self.told = self.now();
            self.link.say(&Frame::Progress(sent));
        }
    }

    /// Waits until the consumer wants more, and hears what it says meanwhile.
    async fn room(&mut self) -> Result<(), End> {
        loop {
            self.look()?;
            if self.credit > 0 && !self.link.is_clogged() {
                return Ok(());
            }
            self.beat(self.sent);
            wait_for(self.partition.env(), self.link).await;
        }
    }

    /// Hears the consumer, and looks whether there is still a stream.
    fn look(&mut self) -> Result<(), End> {
        let now = self.now();
        if self.link.heard() {
            self.heard = now;
        }
        while let Some(frame) = self.link.next()? {
            match frame {
                Frame::Credit(bytes) => {
                    self.credit = self.credit.saturating_add(i64::try_from(bytes).unwrap_or(i64::MAX));
                }
                Frame::Confirm(version) if version <= self.sent => self.confirmed = self.confirmed.max(version),
                Frame::Confirm(version) => {
                    return Err(format!("it confirms version {version}, and was sent {}", self.sent).into());
                }
                Frame::Beat => {}
                _ => return Err("it sent what no consumer says".to_string().into()),
            }
        }
        if let Some(why) = self.link.gone() {
            return Err(why.into());
        }
        if now.saturating_sub(self.heard) > SILENCE {
            return Err("the consumer is silent".to_string().into());
        }
        if self.copy.as_ref().is_some_and(|copy| copy.head.version <= self.confirmed) {
            self.copy = None;
        }
        if self.partition.is_closed() || self.partition.deposed() != self.deposed {
            let text = "the partition's role has changed: subscribe again";
            return Err(refused(ErrorCode::Offline, 0, text));
        }
        let (sent, confirmed) = (self.sent, self.confirmed);
        let id = self.partition.id();
        if !self.changes.consumers.note(id, self.number, sent, confirmed, self.credit) {
            let text = format!("another connection reads partition {id} as '{}'", self.name);
            return Err(refused(ErrorCode::Busy, 0, text));
        }
        Ok(())
    }

    fn now(&self) -> Duration {
        self.changes.host.now()
    }

    fn log(&self, level: Level, text: impl std::fmt::Display) {
        self.partition.env().log(level, format!("partition {}: {text}", self.partition.id()));
    }
}
