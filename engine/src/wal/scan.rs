//! Reading the log, batch by batch: for recovery, for consumers, and for the question whether an unreadable place is a
//! tail or damage.
//!
//! A batch counts only if its envelope names its own place and its generation's secret, both CRCs hold, and its chain is
//! the CRC of the envelope before it. Where the next batch does not count, the log may go on at the start of the next
//! segment; if it does not, the log ends there, and [`Scanner::vouched_beyond`] tells whether it should have.

use super::body::{self, Body, BodyError, Head};
use super::envelope::{ENVELOPE_BYTES, Envelope};
use crate::buffer::{ReadBuf, round_up};
use crate::disk::{BLOCK, Disk, File, IoClass, OpenMode};
use crate::env::{Env, Sabotage};
use crate::error::Error;
use crate::header::{self, FileKind};
use crate::manifest::Manifest;
use crate::names;
use crate::types::{LogPosition, PartitionId};

/// Read at once where the log is read in order.
const WINDOW: usize = 1 << 20;

/// A batch that counts, with what was made of its body.
pub struct Batch<T = Body> {
    /// Where it lies.
    pub position: LogPosition,
    /// Where the next one would.
    pub end: LogPosition,
    /// Its envelope.
    pub envelope: Envelope,
    /// What its body begins with.
    pub head: Head,
    /// Its body.
    pub body: T,
}

/// A segment that is read, and what was read of it.
pub struct OpenSegment<E: Env> {
    /// Its number.
    pub number: u32,
    file: <E::Disk as Disk>::File,
    length: u64,
    window: Option<(u64, ReadBuf)>,
}

impl<E: Env> OpenSegment<E> {
    async fn open(env: &E, partition: PartitionId, number: u32) -> Result<OpenSegment<E>, Error> {
        let name = names::segment(number);
        let file = env.disk().open(&name, OpenMode::Existing, IoClass::Foreground).await?;
        let block = file.read_at(0, BLOCK).await?;
        header::check(&block, &name, FileKind::Segment, partition, u64::from(number))?;
        let length = file.length().await?;
        Ok(OpenSegment { number, file, length, window: None })
    }

    /// `length` bytes at `offset`, fewer at the end of the file.
    async fn bytes(&mut self, offset: u64, length: usize) -> Result<&[u8], Error> {
        let end = (offset + length as u64).min(self.length);
        let covered = self.window.as_ref().is_some_and(|(start, w)| *start <= offset && end <= start + w.len() as u64);
        if !covered {
            let want = (end.saturating_sub(offset) as usize).max(WINDOW);
            self.window = Some((offset, self.file.read_at(offset, want).await?));
        }
        let Some((start, window)) = &self.window else { return Ok(&[]) };
        let from = ((offset - start) as usize).min(window.len());
        let to = (end.saturating_sub(*start) as usize).clamp(from, window.len());
        Ok(&window[from..to])
    }

    /// The envelope at `offset` and the length of what follows, if it is one of generation `secret`, whole.
    async fn envelope(&mut self, offset: u64, secret: u64) -> Result<Option<Envelope>, Error> {
        let position = LogPosition::new(self.number, offset as u32);
        let left = self.length.saturating_sub(offset) as usize;
        let Some(claim) = Envelope::claim(self.bytes(offset, ENVELOPE_BYTES).await?, secret, position) else {
            return Ok(None);
        };
        if claim.envelope > left || claim.body > left - claim.envelope {
            return Ok(None);
        }
        Ok(Envelope::decode(self.bytes(offset, claim.envelope).await?))
    }
}

/// Reads a body that the scanner has checked.
pub fn decode_checked(bytes: &[u8]) -> Result<Body, BodyError> {
    body::decode(bytes, false)
}

/// Walks the log forward.
pub struct Scanner<'a, E: Env> {
    env: &'a E,
    partition: PartitionId,
    manifest: &'a Manifest,
    segments: &'a [u32],
    open: Option<OpenSegment<E>>,
    position: LogPosition,
    chain: Option<u32>,
}

impl<'a, E: Env> Scanner<'a, E> {
    /// Starts at `position`, where a batch lies or the log ends; `segments` are the files there are, ascending.
    /// `chain` is the CRC that the first batch must follow on, unknown to readers that start in the middle.
    pub fn new(
        env: &'a E,
        partition: PartitionId,
        manifest: &'a Manifest,
        segments: &'a [u32],
        position: LogPosition,
        chain: Option<u32>,
    ) -> Scanner<'a, E> {
        Scanner { env, partition, manifest, segments, open: None, position, chain }
    }

    /// Goes on with a segment that was open before. It must not have been written to since.
    pub fn resume(&mut self, open: Option<OpenSegment<E>>) {
        self.open = open;
    }

    /// The segment that is open.
    pub fn into_open(self) -> Option<OpenSegment<E>> {
        self.open
    }

    /// Where the next batch is expected.
    pub fn position(&self) -> LogPosition {
        self.position
    }

    /// The CRC that it must follow on.
    pub fn chain(&self) -> Option<u32> {
        self.chain
    }

    async fn segment(&mut self, number: u32) -> Result<Option<&mut OpenSegment<E>>, Error> {
        if self.open.as_ref().is_none_or(|open| open.number != number) {
            if self.segments.binary_search(&number).is_err() {
                return Ok(None);
            }
            self.open = Some(OpenSegment::open(self.env, self.partition, number).await?);
        }
        Ok(self.open.as_mut())
    }

    /// The next batch, or `None` where the log ends (or cannot be read on).
    pub async fn next(&mut self) -> Result<Option<Batch>, Error> {
        self.next_as(decode_checked).await
    }

    /// The same, with what `read` makes of a body that has passed its checksum.
    pub async fn next_as<T>(
        &mut self,
        read: impl Fn(&[u8]) -> Result<T, BodyError>,
    ) -> Result<Option<Batch<T>>, Error> {
        if self.position.segment() != 0
            && let Some(batch) = self.batch_at(self.position, &read).await?
        {
            return Ok(Some(self.step(batch)));
        }
        let next = LogPosition::new(self.position.segment() + 1, BLOCK as u32);
        if let Some(batch) = self.batch_at(next, &read).await? {
            return Ok(Some(self.step(batch)));
        }
        Ok(None)
    }

    fn step<T>(&mut self, batch: Batch<T>) -> Batch<T> {
        self.position = batch.end;
        self.chain = Some(batch.envelope.crc);
        batch
    }

    async fn batch_at<T>(
        &mut self,
        position: LogPosition,
        read: &impl Fn(&[u8]) -> Result<T, BodyError>,
    ) -> Result<Option<Batch<T>>, Error> {
        let Some(secret) = self.manifest.generation_at(position).map(|g| g.secret) else { return Ok(None) };
        let sabotage = self.env.sabotage();
        let chain = self.chain;
        let Some(segment) = self.segment(position.segment()).await? else { return Ok(None) };
        let offset = u64::from(position.offset());
        let Some(envelope) = segment.envelope(offset, secret).await? else { return Ok(None) };
        let chained = chain.is_none_or(|chain| chain == envelope.chain);
        if !chained && sabotage != Some(Sabotage::EnvelopeNotChained) {
            return Ok(None);
        }
        let head = Envelope::length(envelope.pointers.len());
        let total = head + envelope.body_length as usize;
        let bytes = segment.bytes(offset, total).await?;
        let Some(bytes) = bytes.get(head..total) else { return Ok(None) };
        let check = sabotage != Some(Sabotage::ChecksumSkipped);
        if check && bytes.get(..4) != Some(&envelope.body_crc.to_le_bytes()) {
            return Ok(None);
        }
        let end = LogPosition::new(position.segment(), (offset as usize + round_up(total)) as u32);
        let body = body::head(bytes, check).and_then(|head| Ok((head, read(bytes)?)));
        match body {
            Ok((head, body)) => Ok(Some(Batch { position, end, envelope, head, body })),
            Err(BodyError::Damaged(_)) => Ok(None),
            Err(BodyError::Newer(format)) => {
                Err(Error::Newer { file: names::segment(position.segment()), format, known: body::BODY_FORMAT })
            }
        }
    }

    /// The furthest place that any whole envelope at or beyond the current place vouches for as durable. If it lies
    /// beyond the current place, acknowledged batches are missing here.
    pub async fn vouched_beyond(&mut self) -> Result<LogPosition, Error> {
        let from = self.position;
        let mut furthest = LogPosition::default();
        let later: Vec<u32> = self.segments.iter().copied().filter(|s| *s >= from.segment()).collect();
        for number in later {
            let manifest = self.manifest;
            let start = if number == from.segment() { u64::from(from.offset()) } else { BLOCK as u64 };
            let opened = self.segment(number).await;
            // A segment whose header is unreadable was being made when the power went, or is damaged; neither vouches.
            let Ok(Some(segment)) = opened else { continue };
            let mut offset = start;
            while offset < segment.length {
                let position = LogPosition::new(number, offset as u32);
                if let Some(generation) = manifest.generation_at(position)
                    && let Some(envelope) = segment.envelope(offset, generation.secret).await?
                {
                    furthest = furthest.max(envelope.durable);
                }
                offset += BLOCK as u64;
            }
        }
        Ok(furthest)
    }
}
