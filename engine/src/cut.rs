//! Cutting a tail that is not in the leader's history (D13). What is cut is kept aside first, in a file for people.
//!
//! The partition is closed meanwhile ([`Partition::abandon`]) and opened anew afterwards: recovery finds a log that ends at
//! the cut. The manifest decides: before it is replaced nothing is cut; from then on a generation that wrote nothing begins
//! at the cut, so that nothing behind it counts.

use crate::buffer::AlignedBuf;
use crate::disk::{BLOCK, Disk, File, IoClass, OpenMode};
use crate::env::{Env, Level};
use crate::error::Error;
use crate::manifest::{Generation, LastBody, Manifest, sync_names};
use crate::names;
use crate::partition::{Core, Partition};
use crate::types::{Epoch, Key, LogPosition, Version};
use crate::wal::body::Operation;
use crate::wal::envelope::pointer;
use crate::wal::scan::{Batch, Scanner};
use std::fmt::Write as _;

/// Bytes of text that are written at once.
const CHUNK: usize = 1 << 20;

/// What was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The log ends with this version now.
    pub last: Version,
    /// How many versions were cut.
    pub versions: u64,
    /// Where they are kept: a file in the partition's directory.
    pub file: Option<String>,
}

/// A text file that grows by whole blocks.
struct Aside<E: Env> {
    file: <E::Disk as Disk>::File,
    text: String,
    written: u64,
}

impl<E: Env> Aside<E> {
    async fn create(env: &E, name: &str) -> Result<Aside<E>, Error> {
        let file = env.disk().open(name, OpenMode::Create, IoClass::Bulk).await?;
        Ok(Aside { file, text: String::new(), written: 0 })
    }

    async fn write(&mut self, all: bool) -> Result<(), Error> {
        let length = if all { self.text.len() } else { self.text.len() / BLOCK * BLOCK };
        if length == 0 {
            return Ok(());
        }
        let room = crate::buffer::round_up(length);
        self.file.allocate(self.written + room as u64).await?;
        let mut buffer = AlignedBuf::zeroed(room);
        buffer[..length].copy_from_slice(&self.text.as_bytes()[..length]);
        self.file.write_at(buffer, self.written).await?;
        self.written += length as u64;
        // Keys and values are escaped: every byte is a character of its own.
        self.text.drain(..length);
        Ok(())
    }

    async fn finish(mut self) -> Result<(), Error> {
        self.write(true).await?;
        self.file.truncate(self.written).await?;
        Ok(self.file.sync_data().await?)
    }
}

impl<E: Env> Core<E> {
    async fn describe(&self, batch: &Batch, after: Version, aside: &mut Aside<E>) -> Result<(), Error> {
        let mut places = batch.envelope.pointers.iter();
        let (epoch, at) = (batch.body.epoch, batch.body.commit_ms);
        for (version, operations) in (batch.body.first_version..).zip(&batch.body.transactions) {
            for operation in operations {
                let line = match operation {
                    Operation::Set(key, value) => {
                        format!("set \"{}\" \"{}\"", key.escape_ascii(), value.escape_ascii())
                    }
                    Operation::SetLarge(key, length, checksum) => {
                        let place = places.next().map(|place| pointer(*place, *length, *checksum));
                        let value = match place {
                            Some(place) => self.values.read(key, place).await.ok(),
                            None => None,
                        };
                        let key: &Key = key;
                        match value {
                            Some(value) => format!("set \"{}\" \"{}\"", key.escape_ascii(), value.escape_ascii()),
                            None => format!("set \"{}\" (its {length} bytes cannot be read)", key.escape_ascii()),
                        }
                    }
                    Operation::Delete(key) => format!("del \"{}\"", key.escape_ascii()),
                    Operation::Flush => "flushdb".to_string(),
                    Operation::Members(members) => format!("members {}", members.nodes.len()),
                };
                if version > after {
                    // A String takes everything.
                    let _ = writeln!(aside.text, "{}:{}:{version} {at} {line}", self.id, epoch.number);
                }
            }
            if aside.text.len() >= CHUNK {
                aside.write(false).await?;
            }
        }
        Ok(())
    }
}

/// What becomes of the epoch that a node has agreed to when its log is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreed {
    /// It stays.
    Stays,
    /// The node agrees to that of who had it cut. Nothing is cut if it has agreed to another one since this was decided.
    Moves {
        /// What it had agreed to.
        from: Epoch,
        /// What it agrees to.
        to: Epoch,
    },
    /// A person has ordered it, also to a lower one.
    ByForce(Epoch),
}

impl<E: Env> Partition<E> {
    /// Describes what the log of an abandoned partition has behind `parted` in a file for people.
    pub(crate) async fn keep_aside(&self, parted: Version) -> Result<(), Error> {
        let core = &self.0;
        let manifest = core.manifest.get().clone();
        let segments = core.wal().segments();
        let numbers: Vec<u32> = segments.iter().map(|s| s.number).collect();
        let first = segments.iter().rev().find(|s| s.first_version <= parted + 1).or(segments.first());
        let start = first.map_or(core.wal().end(), |s| LogPosition::new(s.number, BLOCK as u32));
        let number = core.manifest.update_closed(Manifest::take_number).await?;
        let name = names::cut(number);
        let mut aside = Aside::create(&core.env, &name).await?;
        let oldest = self.oldest_version();
        if oldest > parted + 1 {
            // A String takes everything.
            let _ = writeln!(aside.text, "# versions {} to {} are not in the log any more", parted + 1, oldest - 1);
        }
        let mut scanner = Scanner::new(&core.env, core.id, &manifest, &numbers, start, None);
        let mut versions = 0;
        while let Some(batch) = scanner.next().await? {
            if batch.body.last_version() > parted {
                versions += batch.body.transactions.len();
                core.describe(&batch, parted, &mut aside).await?;
            }
        }
        aside.finish().await?;
        sync_names(&core.env).await?;
        core.log(
            Level::Warn,
            format_args!("{versions} versions behind {parted} are replaced; they are kept in {name}"),
        );
        Ok(())
    }

    /// Cuts the log of an abandoned partition behind `version`, or behind the batch before it; open it anew afterwards.
    pub async fn cut(&self, version: Version, agreed: Agreed) -> Result<Cut, Error> {
        let core = &self.0;
        let manifest = core.manifest.get().clone();
        let voted = manifest.leadership.voted_epoch;
        let adopted = match agreed {
            Agreed::Stays => None,
            // The node has voted since it was decided: whom it voted for counts on what would be cut.
            Agreed::Moves { from, .. } if from != voted => return Err(Error::Fenced { adopted: voted }),
            Agreed::Moves { to, .. } | Agreed::ByForce(to) => Some(to),
        };
        let mark = manifest.mark;
        if version < mark.version {
            return Err(Error::Diverged(format!(
                "version {version} lies before the checkpoint at version {}: the log cannot be cut there",
                mark.version
            )));
        }
        let numbers: Vec<u32> = core.wal().segments().iter().map(|s| s.number).collect();
        let mut scanner = Scanner::new(&core.env, core.id, &manifest, &numbers, mark.position, Some(mark.chain));
        let (mut end, mut last) = (mark.position, mark.version);
        let mut aside: Option<Aside<E>> = None;
        let number = core.manifest.update_closed(Manifest::take_number).await?;
        let name = names::cut(number);
        let mut versions = 0;
        while let Some(batch) = scanner.next().await? {
            let newest = batch.body.last_version();
            if newest <= version {
                (end, last) = (batch.end, newest.max(last));
                continue;
            }
            if batch.body.transactions.is_empty() {
                continue;
            }
            versions += batch.body.transactions.len() as u64;
            if aside.is_none() {
                aside = Some(Aside::create(&core.env, &name).await?);
            }
            if let Some(aside) = &mut aside {
                core.describe(&batch, last, aside).await?;
            }
        }
        let agree = |m: &mut Manifest| {
            m.leadership.number += u64::from(adopted.is_some());
            m.leadership.voted_epoch = adopted.unwrap_or(m.leadership.voted_epoch);
        };
        let Some(aside) = aside else {
            core.manifest.update_closed(agree).await?;
            core.manifest.seal();
            return Ok(Cut { last, versions: 0, file: None });
        };
        aside.finish().await?;
        sync_names(&core.env).await?;
        let fresh = Generation { secret: core.env.random(), start: end };
        core.manifest
            .update_closed(|m| {
                agree(m);
                m.durable = end;
                if m.last_body.version > last {
                    m.last_body = LastBody::default();
                }
                m.generations.retain(|g| g.start < end);
                m.generations.push(fresh);
                m.epochs.retain(|e| e.first_version <= last);
                // Who was beyond the cut will want what comes in its place.
                m.holds.iter_mut().for_each(|hold| hold.version = hold.version.min(last + 1));
                if let Some(first) = m.members.first_mut().filter(|r| r.version > last) {
                    // Which list was in force there is not known any more: this one is better than none.
                    first.version = last;
                }
                m.members.retain(|r| r.version <= last);
                m.segments = core.wal().segments();
                m.segments.retain(|s| s.number <= end.segment());
                if let Some(segment) = m.segments.last_mut().filter(|s| s.number == end.segment()) {
                    segment.used = end.offset();
                }
                for (number, used) in core.values.used() {
                    crate::checkpoint::raise_used(&mut m.values, number, used);
                }
            })
            .await?;
        core.manifest.seal();
        core.log(Level::Warn, format_args!("{versions} versions behind {last} were cut; they are kept in {name}"));
        Ok(Cut { last, versions, file: Some(name) })
    }
}
