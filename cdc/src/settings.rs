//! The typed settings of a change-stream consumer.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use turnstone_net::client::Address;
use turnstone_net::wire::MAX_PARTITION;

/// The largest `max_file_size_mb` (1 TiB): beyond it a typing error is likelier than a wish.
const MAX_FILE_SIZE_MB: u64 = 1024 * 1024;

/// The shortest interval between files: each costs three flushes.
const LEAST_INTERVAL: Duration = Duration::from_millis(50);

/// The longest id, in bytes: with `.stdout` behind it it is still a name that the server takes.
const MAX_ID: usize = 120;

/// Which partitions to follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Partitions {
    /// Every user partition.
    All,
    /// These, each once.
    Some(Vec<u8>),
}

impl Partitions {
    /// Their numbers.
    pub fn numbers(&self) -> Vec<u8> {
        match self {
            Partitions::All => (1..=MAX_PARTITION).collect(),
            Partitions::Some(list) => list.clone(),
        }
    }
}

/// How a value is written into a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueFormat {
    /// As a string.
    Text,
    /// As the JSON it holds.
    Json,
    /// As base64.
    Base64,
}

impl ValueFormat {
    /// Every format.
    pub const ALL: [ValueFormat; 3] = [ValueFormat::Text, ValueFormat::Json, ValueFormat::Base64];

    /// The word used in settings.
    pub const fn name(self) -> &'static str {
        match self {
            ValueFormat::Text => "text",
            ValueFormat::Json => "json",
            ValueFormat::Base64 => "base64",
        }
    }

    /// The format with this name.
    pub fn from_name(name: &str) -> Option<ValueFormat> {
        ValueFormat::ALL.into_iter().find(|format| format.name() == name)
    }
}

/// Where a consumer begins that has nothing yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartAt {
    /// With the oldest change.
    Beginning,
    /// With the next change.
    Now,
    /// With a copy of everything, and the changes behind it.
    Copy,
}

impl StartAt {
    /// Every beginning.
    pub const ALL: [StartAt; 3] = [StartAt::Beginning, StartAt::Now, StartAt::Copy];

    /// The word used in settings.
    pub const fn name(self) -> &'static str {
        match self {
            StartAt::Beginning => "beginning",
            StartAt::Now => "now",
            StartAt::Copy => "copy",
        }
    }

    /// The beginning with this name.
    pub fn from_name(name: &str) -> Option<StartAt> {
        StartAt::ALL.into_iter().find(|start| start.name() == name)
    }
}

/// What a consumer does when the server's log no longer reaches back to where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnPurged {
    /// Goes on with a copy: the changes between are lost, what they came to is not.
    Copy,
    /// Ends with an error.
    Stop,
}

impl OnPurged {
    /// Every choice.
    pub const ALL: [OnPurged; 2] = [OnPurged::Copy, OnPurged::Stop];

    /// The word used in settings.
    pub const fn name(self) -> &'static str {
        match self {
            OnPurged::Copy => "copy",
            OnPurged::Stop => "stop",
        }
    }

    /// The choice with this name.
    pub fn from_name(name: &str) -> Option<OnPurged> {
        OnPurged::ALL.into_iter().find(|choice| choice.name() == name)
    }
}

/// What a consumer is told. Relative paths are relative to the home directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The consumer's name; the server remembers its position under it.
    pub id: String,
    /// Address of the server.
    pub host: String,
    /// Partitions to follow.
    pub partition: Partitions,
    /// Where the files go.
    pub output_dir: PathBuf,
    /// Where the position is kept.
    pub state_file: PathBuf,
    /// A file is closed when it passes this size, in MiB.
    pub max_file_size_mb: u64,
    /// A file that is not empty is closed at this age.
    pub rotate_interval: Duration,
    /// A file that is not empty is closed after this long without a change.
    pub flush_interval: Duration,
    /// How values are written.
    pub value_format: ValueFormat,
    /// Where to begin when there is no state yet.
    pub start: StartAt,
    /// What to do when the log no longer reaches back.
    pub on_purged: OnPurged,
    /// The server keeps at most this much log for this consumer while it is away, bytes of a partition; 0 for none.
    pub hold: u64,
    /// A program, and its arguments, that is run with the path of each finished file; empty for none.
    pub exec: Vec<String>,
    /// Where metrics are served; empty for nowhere.
    pub metrics_addr: String,
    /// The consumer's certificate.
    pub tls_cert_file: PathBuf,
    /// Its private key.
    pub tls_key_file: PathBuf,
    /// The CA certificate.
    pub tls_ca_file: PathBuf,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            id: "cdc-worker-1".to_owned(),
            host: "localhost:6379".to_owned(),
            partition: Partitions::Some(vec![1]),
            output_dir: "cdc_logs".into(),
            state_file: "cdc.state".into(),
            max_file_size_mb: 100,
            rotate_interval: Duration::from_secs(60),
            flush_interval: Duration::from_secs(30),
            value_format: ValueFormat::Text,
            start: StartAt::Beginning,
            on_purged: OnPurged::Copy,
            hold: 1 << 30,
            exec: Vec::new(),
            metrics_addr: ":9091".to_owned(),
            tls_cert_file: "certs/cdc.crt".into(),
            tls_key_file: "certs/cdc.key".into(),
            tls_ca_file: "certs/ca.crt".into(),
        }
    }
}

/// A setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsError {
    /// The setting's name.
    pub key: &'static str,
    /// What is wrong with it, with an example of what would be right.
    pub why: String,
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.why)
    }
}

impl std::error::Error for SettingsError {}

impl Settings {
    /// Checks every setting; the first one that cannot be used is the error.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let error = |key, why: String| Err(SettingsError { key, why });
        let id_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if self.id.is_empty() || self.id.len() > MAX_ID || !self.id.bytes().all(id_byte) {
            let id = self.id.escape_debug();
            return error(
                "id",
                format!("'{id}' must be 1 to {MAX_ID} letters, digits, '-', '_' or '.'; for example cdc-worker-1"),
            );
        }
        if let Err(why) = self.host.parse::<Address>() {
            return error("host", why.to_string());
        }
        if let Partitions::Some(partitions) = &self.partition {
            if partitions.is_empty() {
                return error("partition", "the list is empty; for example [1, 2], or \"*\" for all".to_owned());
            }
            for (index, partition) in partitions.iter().enumerate() {
                if !(1..=MAX_PARTITION).contains(partition) {
                    let why = format!("{partition} is no user partition; they are 1 to {MAX_PARTITION}");
                    return error("partition", why);
                }
                if partitions[..index].contains(partition) {
                    return error("partition", format!("{partition} is named twice"));
                }
            }
        }
        let paths = [
            ("output_dir", &self.output_dir),
            ("state_file", &self.state_file),
            ("tls_cert_file", &self.tls_cert_file),
            ("tls_key_file", &self.tls_key_file),
            ("tls_ca_file", &self.tls_ca_file),
        ];
        for (key, path) in paths {
            if path.as_os_str().is_empty() {
                return error(key, "a path must not be empty".to_owned());
            }
        }
        let most = if cfg!(feature = "planted") { u64::MAX } else { MAX_FILE_SIZE_MB };
        if !(1..=most).contains(&self.max_file_size_mb) {
            let why = format!("{} is out of range; 1 to {MAX_FILE_SIZE_MB} (MiB)", self.max_file_size_mb);
            return error("max_file_size_mb", why);
        }
        for (key, interval) in [("rotate_interval", self.rotate_interval), ("flush_interval", self.flush_interval)] {
            if interval < LEAST_INTERVAL {
                return error(key, "the shortest interval is 50ms; for example 30s".to_owned());
            }
        }
        if self.exec.first().is_some_and(String::is_empty) {
            return error("exec", "the program has no name; for example [\"gzip\", \"-k\"], or [] for none".to_owned());
        }
        if !self.metrics_addr.is_empty()
            && let Err(why) = self.metrics_addr.parse::<Address>()
        {
            return error("metrics_addr", format!("{why}; empty turns metrics off"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key_of(change: impl FnOnce(&mut Settings)) -> &'static str {
        let mut settings = Settings::default();
        change(&mut settings);
        settings.validate().unwrap_err().key
    }

    #[test]
    fn defaults_are_valid() {
        assert_eq!(Settings::default().validate(), Ok(()));
    }

    #[test]
    fn each_bad_setting_is_named() {
        assert_eq!(key_of(|s| s.id = String::new()), "id");
        assert_eq!(key_of(|s| s.id = "../x".to_owned()), "id");
        assert_eq!(key_of(|s| s.id = "x".repeat(121)), "id");
        assert_eq!(key_of(|s| s.host = "h:x".to_owned()), "host");
        assert_eq!(key_of(|s| s.partition = Partitions::Some(vec![])), "partition");
        assert_eq!(key_of(|s| s.partition = Partitions::Some(vec![0])), "partition");
        assert_eq!(key_of(|s| s.partition = Partitions::Some(vec![17])), "partition");
        assert_eq!(key_of(|s| s.partition = Partitions::Some(vec![3, 1, 3])), "partition");
        assert_eq!(key_of(|s| s.output_dir = PathBuf::new()), "output_dir");
        assert_eq!(key_of(|s| s.state_file = PathBuf::new()), "state_file");
        assert_eq!(key_of(|s| s.tls_key_file = PathBuf::new()), "tls_key_file");
        assert_eq!(key_of(|s| s.max_file_size_mb = 0), "max_file_size_mb");
        assert_eq!(key_of(|s| s.max_file_size_mb = u64::MAX), "max_file_size_mb");
        assert_eq!(key_of(|s| s.rotate_interval = Duration::from_millis(49)), "rotate_interval");
        assert_eq!(key_of(|s| s.flush_interval = Duration::ZERO), "flush_interval");
        assert_eq!(key_of(|s| s.metrics_addr = "nonsense:".to_owned()), "metrics_addr");
    }

    #[test]
    fn metrics_may_be_off_and_all_partitions_followed() {
        let settings = Settings { metrics_addr: String::new(), partition: Partitions::All, ..Settings::default() };
        assert_eq!(settings.validate(), Ok(()));
    }

    #[test]
    fn format_names_round_trip() {
        for format in ValueFormat::ALL {
            assert_eq!(ValueFormat::from_name(format.name()), Some(format));
        }
        assert_eq!(ValueFormat::from_name("TEXT"), None);
    }
}
