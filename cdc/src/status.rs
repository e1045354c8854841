//! What a consumer counts, and how it is shown: Prometheus text, and a line for people.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// What is counted of a partition.
#[derive(Default)]
pub struct Status {
    /// Of the partition.
    pub partition: u8,
    /// There is a stream.
    pub connected: AtomicBool,
    /// Lines written.
    pub lines: AtomicU64,
    /// Bytes of them.
    pub bytes: AtomicU64,
    /// Files published.
    pub files: AtomicU64,
    /// The last version written.
    pub written: AtomicU64,
    /// The last version published.
    pub published: AtomicU64,
    /// The last version that the server had when the stream began; the highest number until one has.
    pub aim: AtomicU64,
    /// The last commit's time, milliseconds since 1970.
    pub commit_ms: AtomicU64,
    /// Streams that were begun.
    pub streams: AtomicU64,
    /// Retractions written.
    pub retractions: AtomicU64,
    /// Copies begun.
    pub copies: AtomicU64,
}

impl Status {
    /// Of this partition.
    pub fn of(partition: u8) -> Status {
        Status { partition, aim: AtomicU64::new(u64::MAX), ..Status::default() }
    }

    /// Whether everything is published that was there when the stream began.
    pub fn has_what_there_was(&self) -> bool {
        self.published.load(Relaxed) >= self.aim.load(Relaxed)
    }
}

/// Whether every partition has a stream; the error says how many have.
pub fn health(all: &[Status]) -> Result<(), String> {
    match all.iter().filter(|status| status.connected.load(Relaxed)).count() {
        n if n == all.len() => Ok(()),
        n => Err(format!("{n} of {} partitions have a stream", all.len())),
    }
}

type Reading = fn(&Status) -> u64;

/// The metrics of all partitions, in Prometheus' text format.
pub fn metrics<'a>(all: impl Iterator<Item = &'a Status> + Clone) -> String {
    let figures: [(&str, &str, &str, Reading); 10] = [
        ("connected", "gauge", "1 while there is a stream", |s| u64::from(s.connected.load(Relaxed))),
        ("lines_total", "counter", "lines written", |s| s.lines.load(Relaxed)),
        ("bytes_total", "counter", "bytes of lines written", |s| s.bytes.load(Relaxed)),
        ("files_total", "counter", "files published", |s| s.files.load(Relaxed)),
        ("written_version", "gauge", "last version written", |s| s.written.load(Relaxed)),
        ("published_version", "gauge", "last version that is published: in a finished file, or in the store", |s| {
            s.published.load(Relaxed)
        }),
        ("commit_timestamp_ms", "gauge", "commit time of the last change written", |s| s.commit_ms.load(Relaxed)),
        ("streams_total", "counter", "streams begun", |s| s.streams.load(Relaxed)),
        ("retractions_total", "counter", "retractions written", |s| s.retractions.load(Relaxed)),
        ("copies_total", "counter", "copies begun", |s| s.copies.load(Relaxed)),
    ];
    let mut out = String::new();
    for (name, kind, help, reading) in figures {
        // Writing to memory cannot fail.
        let _ = writeln!(out, "# HELP turnstone_cdc_{name} {help}\n# TYPE turnstone_cdc_{name} {kind}");
        for status in all.clone() {
            let _ = writeln!(out, "turnstone_cdc_{name}{{partition=\"{}\"}} {}", status.partition, reading(status));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_has_its_help_and_a_line_for_each_partition() {
        let all = [Status::of(1), Status::of(7)];
        all[1].lines.store(42, Relaxed);
        let text = metrics(all.iter());
        assert!(text.contains("turnstone_cdc_lines_total{partition=\"7\"} 42\n"));
        assert_eq!(text.matches("# HELP").count() * 2, text.lines().filter(|l| !l.starts_with('#')).count());
    }
}
