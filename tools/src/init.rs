//! `--init`: makes what a home lacks and never touches what it has.
//!
//! Of every pair the key is written first, and a key without its certificate gets one, so an init that was cut off at any
//! point is completed by the next. Each file appears under its name only when it is whole and flushed, and private keys
//! are created with mode 0600; there is no moment at which they could be read by others.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use turnstone_net::tls::{Authority, Role, new_key_pem};

use crate::home::Home;
use crate::{cdc_config, config};

/// Days a certificate of server, client, admin or cdc is valid.
pub const CERTIFICATE_DAYS: u32 = 365;

/// The mode of private keys: their owner alone.
const PRIVATE: u32 = 0o600;

/// The mode of certificates and settings; the directory around them is closed to others anyway.
const PUBLIC: u32 = 0o644;

/// What `--init` is asked for.
#[derive(Debug, Clone, Default)]
pub struct InitOptions {
    /// Names and addresses of the server besides localhost.
    pub hosts: Vec<String>,
    /// Another home whose CA is to be used.
    pub ca_from: Option<PathBuf>,
}

/// What `--init` did. Its `Display` is what the person sees.
#[derive(Debug, Clone)]
pub struct InitReport {
    home: Home,
    /// Files that were made, in order.
    pub made: Vec<PathBuf>,
    /// Files that existed and were left as they are.
    pub kept: Vec<PathBuf>,
    /// What the person should know besides.
    pub notes: Vec<String>,
}

impl fmt::Display for InitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let root = self.home.root().display();
        writeln!(f, "Certificates generated in: {}", self.home.certs().display())?;
        writeln!(f, "Sample configuration written to {}", self.home.config_file().display())?;
        writeln!(f, "Sample CDC configuration written to {}", self.home.cdc_config_file().display())?;
        if !self.kept.is_empty() {
            let names: Vec<_> = self
                .kept
                .iter()
                .map(|path| path.strip_prefix(self.home.root()).unwrap_or(path).display().to_string())
                .collect();
            writeln!(f, "Kept as they were: {}", names.join(", "))?;
        }
        for note in &self.notes {
            writeln!(f, "Note: {note}")?;
        }
        writeln!(f, "\nNext:\n  turnstone --home {root}\n  turnstone-cli --home {root}")
    }
}

/// Why `--init` stopped. What it made until then is whole and stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitError {
    text: String,
}

impl InitError {
    fn new(text: impl Into<String>) -> InitError {
        InitError { text: text.into() }
    }

    fn io(path: &Path) -> impl FnOnce(io::Error) -> InitError + '_ {
        move |error| InitError::new(format!("{}: {error}", path.display()))
    }
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for InitError {}

/// Makes or completes a home.
pub fn init(home: &Home, options: &InitOptions) -> Result<InitReport, InitError> {
    if let Some(other) = &options.ca_from {
        // Before anything is made: a mistyped path leaves no half of a home behind.
        foreign_ca(home, &Home::new(other))?;
    }
    make_directory(home.root())?;
    make_directory(&home.certs())?;
    make_directory(&home.data())?;
    // Two inits at once would each miss what the other is about to write.
    let directory = File::open(home.certs()).map_err(InitError::io(&home.certs()))?;
    directory.lock().map_err(InitError::io(&home.certs()))?;

    let mut work = Work { report: InitReport { home: home.clone(), made: vec![], kept: vec![], notes: vec![] } };
    let authority = work.authority(home, options)?;
    for role in Role::ALL {
        work.certificate(home, options, role, &authority)?;
    }
    work.file(&home.config_file(), PUBLIC, || Ok(config::sample_json()))?;
    work.file(&home.cdc_config_file(), PUBLIC, || Ok(cdc_config::sample_json()))?;
    work.look_at_modes(home);
    Ok(work.report)
}

/// The CA of a home: at hand, or kept elsewhere while its certificate stayed.
enum Ca {
    Here(Box<Authority>),
    CertificateOnly,
}

struct Work {
    report: InitReport,
}

impl Work {
    fn authority(&mut self, home: &Home, options: &InitOptions) -> Result<Ca, InitError> {
        let (cert, key) = (home.ca_cert(), home.ca_key());
        let foreign = match &options.ca_from {
            None => None,
            Some(other) => Some(foreign_ca(home, &Home::new(other))?),
        };
        if exists(&cert)? && !exists(&key)? && foreign.is_none() {
            self.report.kept.push(cert);
            return Ok(Ca::CertificateOnly);
        }
        let key_pem = self.file(&key, PRIVATE, || match &foreign {
            Some(authority) => Ok(authority.key_pem().to_owned()),
            None => new_key_pem().map_err(|error| InitError::new(error.to_string())),
        })?;
        let cert_pem = self.file(&cert, PUBLIC, || match &foreign {
            Some(authority) => Ok(authority.cert_pem().to_owned()),
            None => Authority::with_key(&key_pem)
                .map(|authority| authority.cert_pem().to_owned())
                .map_err(|error| InitError::new(format!("{}: {error}", key.display()))),
        })?;
        Authority::load(&cert_pem, &key_pem)
            .map(|authority| Ca::Here(Box::new(authority)))
            .map_err(|error| InitError::new(format!("{}: {error}", cert.display())))
    }

    fn certificate(&mut self, home: &Home, options: &InitOptions, role: Role, ca: &Ca) -> Result<(), InitError> {
        let (cert, key) = (home.cert(role), home.key(role));
        let names: &[String] = if role == Role::Server { &options.hosts } else { &[] };
        match (exists(&cert)?, exists(&key)?) {
            (true, true) => {
                if !names.is_empty() {
                    self.report.notes.push(format!(
                        "{} exists, so --host changed nothing; move it and its key away to have it issued anew",
                        cert.display()
                    ));
                }
                self.report.kept.extend([key, cert]);
                return Ok(());
            }
            (true, false) => {
                return Err(InitError::new(format!(
                    "{} has no key: {} is missing; put it back, or move the certificate away",
                    cert.display(),
                    key.display()
                )));
            }
            (false, _) => {}
        }
        let Ca::Here(authority) = ca else {
            return Err(InitError::new(format!(
                "{} cannot be issued: {} is missing; put it back, or name a home that has it with --ca-from",
                cert.display(),
                home.ca_key().display()
            )));
        };
        // Everything that can be wrong with the names is found before a key is made for them.
        if let Err(error) = authority.issue(role, names, CERTIFICATE_DAYS) {
            return Err(InitError::new(error.to_string()));
        }
        let key_pem = self.file(&key, PRIVATE, || new_key_pem().map_err(|error| InitError::new(error.to_string())))?;
        self.file(&cert, PUBLIC, || {
            authority
                .certify(role, names, CERTIFICATE_DAYS, &key_pem)
                .map_err(|error| InitError::new(format!("{}: {error}", key.display())))
        })?;
        Ok(())
    }

    /// Makes a file unless it exists, and gives its content either way.
    fn file(
        &mut self,
        path: &Path,
        mode: u32,
        content: impl FnOnce() -> Result<String, InitError>,
    ) -> Result<String, InitError> {
        if exists(path)? {
            let content = fs::read_to_string(path).map_err(InitError::io(path))?;
            self.report.kept.push(path.to_owned());
            return Ok(content);
        }
        let content = content()?;
        publish(path, mode, content.as_bytes()).map_err(InitError::io(path))?;
        self.report.made.push(path.to_owned());
        Ok(content)
    }

    /// Keys that were there before may be open to others. Their mode is the owner's decision, so it is only told.
    fn look_at_modes(&mut self, home: &Home) {
        let keys = Role::ALL.into_iter().map(|role| home.key(role)).chain([home.ca_key()]);
        for key in keys {
            if fs::metadata(&key).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0) {
                let key = key.display();
                self.report.notes.push(format!("{key} can be read by others; close it with: chmod 600 {key}"));
            }
        }
    }
}

/// The CA of another home, checked against what this home has already.
fn foreign_ca(home: &Home, other: &Home) -> Result<Authority, InitError> {
    let read = |path: PathBuf| {
        fs::read_to_string(&path)
            .map_err(|error| InitError::new(format!("--ca-from: {} cannot be read: {error}", path.display())))
    };
    let authority = Authority::load(&read(other.ca_cert())?, &read(other.ca_key())?)
        .map_err(|error| InitError::new(format!("--ca-from: {}: {error}", other.ca_cert().display())))?;
    for (mine, theirs) in [(home.ca_cert(), authority.cert_pem()), (home.ca_key(), authority.key_pem())] {
        if exists(&mine)? && fs::read_to_string(&mine).map_err(InitError::io(&mine))? != theirs {
            return Err(InitError::new(format!(
                "{} belongs to another CA than {}; certificates of two CAs do not trust each other, so start with an \
                 empty home or leave --ca-from out",
                mine.display(),
                other.root().display()
            )));
        }
    }
    Ok(authority)
}

/// Whether anything has this name; a link that leads nowhere counts, because it must not be overwritten either.
fn exists(path: &Path) -> Result<bool, InitError> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(InitError::io(path)(error)),
    }
}

/// Makes a directory that only its owner can enter, and what leads to it.
fn make_directory(path: &Path) -> Result<(), InitError> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(InitError::io(parent))?;
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(InitError::io(path)(error)),
        _ => {}
    }
    sync_directory(parent).map_err(InitError::io(parent))
}

/// Writes a file under a temporary name, flushes it, and gives it its name. The caller holds the lock of `certs/`, so a
/// file with the temporary name is what an earlier run left.
fn publish(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let temporary = directory.join(format!(".{}.tmp", name.display()));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_directory(directory)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
#[path = "init_tests.rs"]
mod tests;
