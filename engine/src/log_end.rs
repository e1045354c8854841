//! Where the log ends, when an opening looks for it: what says that it should go on, and what is done if it does not.
//!
//! The newest segment must be there and whole ([`crate::wal::end`]), and nothing may vouch for a place beyond the end. Otherwise the
//! partition refuses by name, or, under `truncate_corrupt_wal`, gives up what is missing: a new generation begins at the cut.

use crate::disk::{BLOCK, Disk, DiskErrorKind, File, IoClass, OpenMode};
use crate::env::{Env, Level, Sabotage};
use crate::error::Error;
use crate::header::{self, FileKind};
use crate::manifest::{Generation, LastBody, Segment};
use crate::names;
use crate::partition::Core;
use crate::types::LogPosition;
use crate::wal::end::EndRecord;

impl<E: Env> Core<E> {
    /// What was recorded of the newest segment, if it is of this log.
    pub(crate) fn counting_record(&self) -> Option<EndRecord> {
        self.end_file.newest().filter(|record| record.counts(&self.manifest.get()))
    }

    /// The newest segment must be there and as long as it was. Answers whether the log is to be cut because it is not.
    pub(crate) async fn look_for_newest_segment(&self, files: &[(String, u64)]) -> Result<bool, Error> {
        if !self.manifest.get().log_end {
            return Ok(false);
        }
        let damage = match self.end_file.read().await {
            Ok(()) => self.counting_record().and_then(|record| record.missing_from(files)),
            Err(error @ Error::Corrupt { .. }) => Some(error),
            Err(error) => return Err(error),
        };
        let Some(error) = damage else { return Ok(false) };
        if !self.settings.truncate_corrupt_wal {
            return Err(error);
        }
        self.log(
            Level::Warn,
            format_args!("{error}; truncate_corrupt_wal is on: the log ends where its files end, acknowledged transactions may be lost"),
        );
        if !self.end_file.is_there() {
            // The next first write makes another one.
            self.update_manifest(|m| m.log_end = false).await?;
        }
        Ok(true)
    }

    /// Records the segment that the log, all of which is flushed, ends in; none if that was given up.
    pub(crate) async fn record_newest(&self, end: LogPosition) -> Result<(), Error> {
        let number = end.segment();
        let start = LogPosition::new(number, BLOCK as u32);
        let secret = self.manifest.get().generation_at(start).map(|generation| generation.secret);
        let Some(secret) = secret else { return Ok(()) };
        let file = match self.env.disk().open(&names::segment(number), OpenMode::Existing, IoClass::Foreground).await {
            Err(error) if error.kind == DiskErrorKind::NotFound => {
                return Ok(self.end_file.record(EndRecord::NONE).await?);
            }
            opened => opened?,
        };
        let length = u32::try_from(file.length().await?).unwrap_or(u32::MAX);
        Ok(self.end_file.record(EndRecord { secret, segment: number, length, durable: end }).await?)
    }

    /// What lies behind a forced cut must not count again: recorded at once, before anything is appended.
    pub(crate) async fn record_cut(&self, end: LogPosition) -> Result<(), Error> {
        let generation = Generation { secret: self.env.random(), start: end };
        let sabotaged = self.env.sabotage() == Some(Sabotage::GenerationNotAdvanced);
        self.update_manifest(|m| {
            m.durable = end;
            m.last_body = LastBody::default();
            if !sabotaged {
                m.generations.retain(|g| g.start < end);
                m.generations.push(generation);
            }
        })
        .await
    }

    pub(crate) async fn refuse_or_cut(&self, end: LogPosition, vouched: LogPosition) -> Result<(), Error> {
        let file = names::segment(end.segment().max(1));
        let offset = u64::from(end.offset());
        if self.settings.truncate_corrupt_wal {
            self.log(
                Level::Warn,
                format_args!(
                    "{file} is damaged at offset {offset} although the log was durable up to {vouched}; \
                     truncate_corrupt_wal is on: cut there, acknowledged transactions are lost"
                ),
            );
            return self.record_cut(end).await;
        }
        Err(Error::Corrupt {
            file,
            offset,
            what: format!(
                "the log cannot be read on, although it was durable up to {vouched}; restore the file, or start with \
                 truncate_corrupt_wal to give up what follows"
            ),
        })
    }

    /// The log goes on behind a cut; where the segment's own header was the damage, it gets a new one.
    pub(crate) async fn mend_segment_header(&self, end: LogPosition, segments: &[Segment]) -> Result<(), Error> {
        let number = end.segment();
        if !segments.iter().any(|s| s.number == number) {
            return Ok(());
        }
        let name = names::segment(number);
        let file = self.env.disk().open(&name, OpenMode::Existing, IoClass::Foreground).await?;
        let block = file.read_at(0, BLOCK).await?;
        match header::check(&block, &name, FileKind::Segment, self.id, u64::from(number)) {
            Err(Error::Corrupt { .. }) => {
                self.log(Level::Warn, format_args!("the header of {name} is damaged and is written anew"));
                self.record_cut(end).await?;
                Ok(file.write_durable(header::encode(FileKind::Segment, self.id, u64::from(number)), 0).await?)
            }
            other => other,
        }
    }
}
