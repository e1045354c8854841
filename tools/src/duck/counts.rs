//! What a loader counts, and how it is shown in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use turnstone_cdc::http::Answers;
use turnstone_cdc::status::Status;

/// What is counted.
#[derive(Default)]
pub struct Counts {
    /// Lines loaded.
    pub lines: AtomicU64,
    /// Of these, lines that were there already.
    pub known: AtomicU64,
    /// Files loaded; 0 without files.
    pub files: AtomicU64,
    /// Time spent on loading, microseconds.
    busy_us: AtomicU64,
    /// Finished files that wait, and their bytes.
    pub waiting: (AtomicU64, AtomicU64),
    /// The version up to which each partition is in the database.
    versions: Mutex<BTreeMap<u8, u64>>,
}

impl Counts {
    /// A partition is so far.
    pub fn reached(&self, partition: u8, version: u64) {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner).insert(partition, version);
    }

    /// So much longer was spent on loading.
    pub fn was_busy(&self, time: Duration) {
        self.busy_us.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Time spent on loading.
    pub fn busy(&self) -> Duration {
        Duration::from_micros(self.busy_us.load(Relaxed))
    }

    fn metrics(&self) -> String {
        let mut out = String::new();
        let figures = [
            ("lines_total", "counter", "lines of what was loaded, known ones among them", self.lines.load(Relaxed)),
            ("files_total", "counter", "files loaded", self.files.load(Relaxed)),
            ("waiting_files", "gauge", "finished files that wait", self.waiting.0.load(Relaxed)),
            ("waiting_bytes", "gauge", "bytes of finished files that wait", self.waiting.1.load(Relaxed)),
        ];
        // Writing to memory cannot fail.
        for (name, kind, help, figure) in figures {
            let _ = writeln!(out, "# HELP turnstone_duck_{name} {help}\n# TYPE turnstone_duck_{name} {kind}");
            let _ = writeln!(out, "turnstone_duck_{name} {figure}");
        }
        let _ = writeln!(out, "# HELP turnstone_duck_busy_seconds_total time spent on loading");
        let _ = writeln!(out, "# TYPE turnstone_duck_busy_seconds_total counter");
        let _ = writeln!(out, "turnstone_duck_busy_seconds_total {:.6}", self.busy().as_secs_f64());
        let _ = writeln!(out, "# HELP turnstone_duck_version everything up to this version is in the database");
        let _ = writeln!(out, "# TYPE turnstone_duck_version gauge");
        for (partition, version) in self.versions.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = writeln!(out, "turnstone_duck_version{{partition=\"{partition}\"}} {version}");
        }
        out
    }
}

/// What is asked for by HTTP: the loader's figures, and those of its streams, if it has any.
pub struct Asked {
    /// The loader's.
    pub counts: Arc<Counts>,
    /// The streams'.
    pub streams: Option<Arc<Vec<Status>>>,
}

impl Answers for Asked {
    fn metrics(&self) -> String {
        let streams = self.streams.as_ref().map(|streams| turnstone_cdc::status::metrics(streams.iter()));
        self.counts.metrics() + &streams.unwrap_or_default()
    }

    fn health(&self) -> Result<(), String> {
        self.streams.as_ref().map_or(Ok(()), |streams| turnstone_cdc::status::health(streams))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_has_its_help() {
        let counts = Counts::default();
        counts.reached(3, 17);
        counts.was_busy(Duration::from_millis(1500));
        let text = counts.metrics();
        assert!(text.contains("turnstone_duck_version{partition=\"3\"} 17\n"), "{text}");
        assert!(text.contains("turnstone_duck_busy_seconds_total 1.500000\n"), "{text}");
        assert_eq!(text.matches("# HELP").count(), text.lines().filter(|line| !line.starts_with('#')).count());
    }
}
