//! The server's settings: `turnstone.json`, environment and flags, read strictly.
//!
//! A flag overrides a variable, a variable the file, the file the default. What a person wrote is either understood or an
//! error that says where it stands; nothing is replaced by a default with a warning. [`KEYS`] is the one table behind all
//! of it.

mod keys;
mod value;

use std::fmt;
use std::sync::LazyLock;

use turnstone_net::client::Address;
use turnstone_net::tls::TlsFiles;

use crate::home::Home;
use crate::nearest::nearest;
use crate::strict_json;

pub use keys::{Config, KEYS, Key};
pub use value::{Kind, Value};

/// Variables that are no settings of the server.
const OTHER_VARIABLES: [&str; 3] = ["TURNSTONE_HOME", "TURNSTONE_HOST", "TURNSTONE_HISTFILE"];

/// Settings of the original that have no like here.
const REPLACED: [strict_json::Replaced; 7] = [
    ("number_of_databases", "'number_of_partitions' stands for it, from 1 to 16"),
    ("block_cache_size", "'index_cache_size' stands for it"),
    ("max_disk_usage_percent", "nothing stands for it: writes are refused once the disk is full; remove it"),
    ("debug", "'log_level' stands for it: \"debug\""),
    ("tls_client_cert_file", "a server shows 'tls_cert_file' to other nodes, too; remove it"),
    ("tls_client_key_file", "a server shows 'tls_cert_file' to other nodes, too; remove it"),
    ("wal_retention_strategy", "'wal_retention' and 'wal_retention_bytes' say how long log is kept; remove it"),
];

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Nobody set it.
    Default,
    /// `turnstone.json`.
    File,
    /// The environment.
    Env,
    /// The command line.
    Flag,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Source::Default => "default",
            Source::File => "file",
            Source::Env => "environment",
            Source::Flag => "flag",
        })
    }
}

/// A setting that cannot be used, in one or two lines: where and what, then what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    place: String,
    why: String,
    hint: Option<String>,
}

impl ConfigError {
    /// An error at a place: `turnstone.json:7`, a flag or a variable.
    pub fn new(place: impl Into<String>, why: impl Into<String>) -> ConfigError {
        ConfigError { place: place.into(), why: why.into(), hint: None }
    }

    /// Adds a second line.
    pub fn with_hint(self, hint: impl Into<String>) -> ConfigError {
        ConfigError { hint: Some(hint.into()), ..self }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.why)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ConfigError {}

/// A value on its way into the configuration.
#[derive(Debug, Clone)]
struct Settled {
    value: Value,
    source: Source,
    place: String,
}

impl Config {
    /// Reads the settings of the node in `home`.
    ///
    /// `flags` are (key, value) pairs, the key in either spelling (`wal_max_size`, `wal-max-size`); `env` may be the whole
    /// environment. A home without `turnstone.json` is an error.
    pub fn load(
        home: &Home,
        flags: &[(String, String)],
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Config, ConfigError> {
        let path = home.config_file();
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => ConfigError::new(&shown, "there is no such file")
                .with_hint(format!("run: turnstone --init --home {}", home.root().display())),
            _ => ConfigError::new(&shown, format!("it cannot be read: {error}")),
        })?;
        Config::from_parts(&shown, &text, flags, env)
    }

    /// The settings that the text of a settings file, flags and environment give. `file` is how errors name the text.
    pub fn from_parts(
        file: &str,
        text: &str,
        flags: &[(String, String)],
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Config, ConfigError> {
        let mut settled = KEYS.iter().map(default_of).collect::<Result<Vec<_>, _>>()?;

        let entries = strict_json::parse(file, text)?;
        let known: Vec<&str> = KEYS.iter().map(|key| key.name).collect();
        strict_json::refuse_unknown(file, &entries, &known, &REPLACED)?;
        for entry in entries {
            let Some((index, key)) = find(&entry.key) else { unreachable!("unknown keys were refused") };
            let place = format!("{file}:{}", entry.line);
            match key.kind.read_json(&entry.value) {
                Ok(value) => settled[index] = Settled { value, source: Source::File, place },
                Err(why) => return Err(ConfigError::new(place, format!("{}: {why}", key.name))),
            }
        }

        // Sorted, so that of several errors always the same one is told.
        let mut variables: Vec<_> = env.filter(|(name, _)| name.starts_with("TURNSTONE_")).collect();
        variables.sort();
        for (name, text) in variables {
            if OTHER_VARIABLES.contains(&name.as_str()) {
                continue;
            }
            let Some(index) = KEYS.iter().position(|key| key.variable() == name) else {
                let error = ConfigError::new(&name, "there is no setting with this name");
                // The prefix is the same everywhere, so only what follows it tells near from far.
                let word = name.trim_start_matches("TURNSTONE_");
                let known = KEYS.iter().map(|key| key.name).chain(["home", "host", "histfile"]);
                return Err(match nearest(word, known).map(str::to_ascii_uppercase) {
                    Some(right) => error.with_hint(format!("did you mean TURNSTONE_{right}?")),
                    None => error.with_hint("every variable that starts with TURNSTONE_ must be a setting"),
                });
            };
            settled[index] = from_text(&KEYS[index], &text, Source::Env, name)?;
        }

        for (name, text) in flags {
            let name = name.replace('-', "_");
            let Some((index, key)) = find(&name) else {
                return Err(ConfigError::new(format!("--{}", name.replace('_', "-")), "there is no such flag"));
            };
            settled[index] = from_text(key, text, Source::Flag, format!("--{}", key.flag()))?;
        }

        let config = Config::assemble(&settled)
            .map_err(|name| ConfigError::new(name, "the table of settings gives this key two types"))?;
        config.check(&settled)?;
        Ok(config)
    }

    /// Every setting at its default.
    pub fn defaults() -> Result<Config, ConfigError> {
        Config::from_parts("defaults", "{}", &[], std::iter::empty())
    }

    /// Rules between settings.
    fn check(&self, settled: &[Settled]) -> Result<(), ConfigError> {
        let place = |name: &str| match find(name) {
            Some((index, _)) => format!("{}: {name}", settled[index].place),
            None => name.to_owned(),
        };
        if !self.tls_client_auth {
            return Err(ConfigError::new(
                place("tls_client_auth"),
                "false is refused: every connection is mutually authenticated, and the role comes from the certificate",
            )
            .with_hint("remove the setting; a client without certificate gets one from: turnstone --init"));
        }
        for (name, limit) in [("max_tx_size", self.max_tx_size), ("max_request_size", self.max_request_size)] {
            if self.max_value_size > limit {
                let (value, limit) = (Value::Size(self.max_value_size), Value::Size(limit));
                return Err(ConfigError::new(
                    place("max_value_size"),
                    format!("{value} is more than {name} ({limit}), so a value that long could never be written"),
                )
                .with_hint(format!("raise {name} or lower max_value_size")));
            }
        }
        Ok(())
    }

    /// Keys that this version does not act on and that were set to something else than their default.
    pub fn not_in_force(&self) -> Vec<&'static str> {
        self.settings()
            .filter(|(key, value, _)| !key.in_force && default_of(key).is_ok_and(|default| default.value != **value))
            .map(|(key, ..)| key.name)
            .collect()
    }

    /// Every setting with its value and where that came from, in the order of [`KEYS`].
    pub fn settings(&self) -> impl Iterator<Item = (&'static Key, &Value, Source)> {
        KEYS.iter().zip(&self.settled).map(|(key, (value, source))| (key, value, *source))
    }

    /// Where a key's value came from; `None` if there is no such key.
    pub fn source(&self, name: &str) -> Option<Source> {
        find(name).map(|(index, _)| self.settled[index].1)
    }

    /// The address to listen on, as `host:port` that can be resolved.
    pub fn listen_address(&self) -> Result<Address, ConfigError> {
        let address: Address = self.port.parse().map_err(|error| ConfigError::new("port", format!("{error}")))?;
        Ok(Address { host: address.listen_host().to_owned(), port: address.port })
    }

    /// The server's certificate, key and CA.
    pub fn tls_files(&self, home: &Home) -> TlsFiles {
        TlsFiles {
            cert: home.resolve(&self.tls_cert_file),
            key: home.resolve(&self.tls_key_file),
            ca: home.resolve(&self.tls_ca_file),
        }
    }
}

fn find(name: &str) -> Option<(usize, &'static Key)> {
    KEYS.iter().enumerate().find(|(_, key)| key.name == name)
}

fn default_of(key: &Key) -> Result<Settled, ConfigError> {
    from_text(key, key.default, Source::Default, "default".to_owned())
}

fn from_text(key: &Key, text: &str, source: Source, place: String) -> Result<Settled, ConfigError> {
    match key.kind.read_text(text) {
        Ok(value) => Ok(Settled { value, source, place }),
        Err(why) => Err(ConfigError::new(place, why)),
    }
}

/// The long flags in the order of [`KEYS`]; clap wants names that live as long as the program.
static FLAGS: LazyLock<Vec<String>> = LazyLock::new(|| KEYS.iter().map(Key::flag).collect());

/// One clap argument per setting, to be added to the server's command. Their ids are the keys' names.
pub fn flag_args() -> Vec<clap::Arg> {
    KEYS.iter()
        .zip(FLAGS.iter())
        .map(|(key, flag)| {
            let variable = key.variable();
            let default = if key.default.is_empty() { "none" } else { key.default };
            let arg = clap::Arg::new(key.name)
                .long(flag.as_str())
                .value_name(key.kind.placeholder())
                .help(format!("{} [default: {default}] [env: {variable}]", key.about))
                .help_heading("Settings")
                .hide_short_help(true);
            // A switch may stand alone: --truncate-corrupt-wal is --truncate-corrupt-wal true.
            match key.kind {
                Kind::Bool => arg.num_args(0..=1).default_missing_value("true"),
                _ => arg.allow_hyphen_values(false),
            }
        })
        .collect()
}

/// The settings that were given as flags, ready for [`Config::load`].
pub fn flags_from(matches: &clap::ArgMatches) -> Vec<(String, String)> {
    KEYS.iter()
        .filter(|key| matches.value_source(key.name) == Some(clap::parser::ValueSource::CommandLine))
        .filter_map(|key| {
            let value = matches.get_one::<String>(key.name)?;
            Some((key.name.to_owned(), value.clone()))
        })
        .collect()
}

/// The text of a sample `turnstone.json`: the settings people meet first, at their defaults.
pub fn sample_json() -> String {
    let lines: Vec<_> = KEYS
        .iter()
        .filter(|key| key.sample)
        .map(|key| match key.kind {
            Kind::Bool | Kind::Count(..) => format!("  \"{}\": {}", key.name, key.default),
            _ => format!("  \"{}\": {}", key.name, serde_json::Value::from(key.default)),
        })
        .collect();
    format!("{{\n{}\n}}\n", lines.join(",\n"))
}

#[cfg(test)]
mod tests;
