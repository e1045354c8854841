//! The log that people read: lines go through a bounded queue to one thread, so that a slow terminal never holds a core.
//! When the queue is full lines are counted instead of written, and the count is written when there is room.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use turnstone_engine::env::Level;

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

enum Item {
    Line(Level, SystemTime, String),
    Flush(flume::Sender<()>),
}

/// A handle on the log.
#[derive(Clone)]
pub struct Log {
    items: flume::Sender<Item>,
    lost: Arc<AtomicU64>,
    least: Level,
}

const QUEUE: usize = 4096;

impl Log {
    /// Starts the writing thread; lines go to standard error.
    pub fn start(format: Format, least: Level) -> std::io::Result<Log> {
        let (items, incoming) = flume::bounded(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let unwritten = lost.clone();
        std::thread::Builder::new()
            .name("log".to_string())
            .spawn(move || write_lines(&incoming, &unwritten, format))?;
        Ok(Log { items, lost, least })
    }

    /// Writes a line.
    pub fn line(&self, level: Level, text: &str) {
        if level > self.least {
            return;
        }
        if self.items.try_send(Item::Line(level, SystemTime::now(), text.to_string())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until what was written so far is out, a second at most.
    pub fn flush(&self) {
        let (done, waiting) = flume::bounded(1);
        if self.items.send_timeout(Item::Flush(done), Duration::from_secs(1)).is_ok() {
            let _ = waiting.recv_timeout(Duration::from_secs(1));
        }
    }
}

fn write_lines(items: &flume::Receiver<Item>, lost: &AtomicU64, format: Format) {
    for item in items.iter() {
        let mut out = std::io::stderr().lock();
        let unwritten = lost.swap(0, Ordering::Relaxed);
        if unwritten > 0 {
            let text = format!("{unwritten} lines were not written: the log is read too slowly");
            // A closed standard error is no reason to stop serving.
            let _ = writeln!(out, "{}", render(format, Level::Warn, SystemTime::now(), &text));
        }
        match item {
            Item::Line(level, at, text) => {
                let _ = writeln!(out, "{}", render(format, level, at, &text));
            }
            Item::Flush(done) => {
                let _ = out.flush();
                let _ = done.send(());
            }
        }
    }
}

fn render(format: Format, level: Level, at: SystemTime, text: &str) -> String {
    let name = match level {
        Level::Error => "ERROR",
        Level::Warn => "WARN",
        Level::Info => "INFO",
        Level::Debug => "DEBUG",
    };
    let time = utc(at);
    match format {
        Format::Text => format!("{time} {name:<5} {text}"),
        Format::Json => {
            let mut escaped = String::new();
            for c in text.chars() {
                match c {
                    '"' | '\\' => {
                        escaped.push('\\');
                        escaped.push(c);
                    }
                    c if c < ' ' => escaped.push_str(&format!("\\u{:04x}", c as u32)),
                    c => escaped.push(c),
                }
            }
            format!("{{\"ts\":\"{time}\",\"level\":\"{name}\",\"msg\":\"{escaped}\"}}")
        }
    }
}

/// RFC 3339 with microseconds. The calendar is Howard Hinnant's `civil_from_days`.
pub fn utc(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = ((since.as_secs() / 86_400) as i64, since.as_secs() % 86_400);
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:06}Z", since.subsec_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_carry_a_real_date_and_valid_json() {
        let at = UNIX_EPOCH + Duration::from_micros(951_782_400_000_001);
        assert_eq!(utc(at), "2000-02-29T00:00:00.000001Z");
        assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(1_798_761_599)), "2026-12-31T23:59:59.000000Z");
        let line = render(Format::Json, Level::Warn, at, "a \"quote\"\n");
        assert_eq!(
            line,
            "{\"ts\":\"2000-02-29T00:00:00.000001Z\",\"level\":\"WARN\",\"msg\":\"a \\\"quote\\\"\\u000a\"}"
        );
    }
}
