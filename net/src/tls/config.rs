//! The rustls configurations of server and client, from files.
//!
//! TLS 1.3 only, with AES-128-GCM first. Both sides show a certificate and check the other's against one CA file. There
//! are no tickets and no resumption: a resumed session would skip the check of expiry and role.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{self, cipher_suite};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::short_chains::ShortChains;
use crate::wire::{ALPN_CHANGES, ALPN_REPLICA, ALPN_TURNSTONE2, Dialect, alpn_for_hint};

/// Where one side's certificate, its key and the CA certificate are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// This side's certificate (PEM; intermediates may follow).
    pub cert: PathBuf,
    /// Its private key (PEM).
    pub key: PathBuf,
    /// The CA certificate that the other side is checked against (PEM).
    pub ca: PathBuf,
}

/// What a client offers by ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientOffer {
    /// The dialect to speak. [`Dialect::V1`] offers no ALPN at all.
    pub dialect: Dialect,
    /// The partition this connection is going to select, so that it starts on the right core. Only `turnstone/2`
    /// carries it.
    pub partition_hint: Option<u8>,
}

impl ClientOffer {
    /// `turnstone/2` without a hint.
    pub const TURNSTONE2: ClientOffer = ClientOffer { dialect: Dialect::Turnstone2, partition_hint: None };

    /// The v1 dialect.
    pub const V1: ClientOffer = ClientOffer { dialect: Dialect::V1, partition_hint: None };

    /// The ALPN list of the ClientHello.
    pub fn protocols(self) -> Vec<Vec<u8>> {
        match self.dialect {
            Dialect::V1 => Vec::new(),
            Dialect::Turnstone2 => {
                let hint = self.partition_hint.map(alpn_for_hint);
                hint.into_iter().chain([ALPN_TURNSTONE2.to_vec()]).collect()
            }
        }
    }
}

/// Why no configuration could be made. Every text names the file and the next step.
#[derive(Debug)]
pub enum TlsError {
    /// A file does not exist.
    Missing {
        /// What it should hold.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
    },
    /// A file cannot be read.
    Unreadable {
        /// What it should hold.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Certificate, key and CA are readable but cannot be used together.
    Unusable {
        /// The file to look at first.
        path: PathBuf,
        /// Why not.
        why: String,
    },
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TlsError::Missing { what, path } => {
                write!(f, "no {what} at {}; create it with: turnstone --init --home {}", path.display(), home_of(path))
            }
            TlsError::Unreadable { what, path, why } => {
                write!(f, "the {what} at {} cannot be read: {why}", path.display())
            }
            TlsError::Unusable { path, why } => write!(
                f,
                "{} cannot be used: {why}; to replace it, move it and its key away and run: turnstone --init --home {}",
                path.display(),
                home_of(path)
            ),
        }
    }
}

impl std::error::Error for TlsError {}

/// The home directory of a path inside `HOME/certs`; `DIR` where the file lies elsewhere.
fn home_of(path: &Path) -> String {
    let certs = path.parent().filter(|parent| parent.file_name().is_some_and(|name| name == "certs"));
    match certs.and_then(Path::parent) {
        Some(home) if home.as_os_str().is_empty() => ".".to_owned(),
        Some(home) => home.display().to_string(),
        None => "DIR".to_owned(),
    }
}

/// The crypto of both sides. It is handed to each configuration; no process-wide default is installed.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..ring::default_provider()
    })
}

/// The server's configuration. Reading the files again for a new configuration is how certificates are reloaded.
pub fn server_config(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let material = Material::read(files, "server certificate", "server key")?;
    let unusable = |path: &Path, why: String| TlsError::Unusable { path: path.to_owned(), why };
    let provider = provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(material.roots), provider.clone())
        .build()
        .map_err(|error| unusable(&files.ca, error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unusable(&files.cert, error.to_string()))?
        .with_client_cert_verifier(Arc::new(ShortChains(verifier)))
        .with_single_cert(material.chain, material.key)
        .map_err(|error| unusable(&files.cert, error.to_string()))?;
    config.alpn_protocols = vec![ALPN_TURNSTONE2.to_vec(), ALPN_REPLICA.to_vec(), ALPN_CHANGES.to_vec()];
    // The server's order of suites decides: the cheapest one is first on every host we measure.
    config.ignore_client_order = true;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// A client's configuration.
pub fn client_config(files: &TlsFiles, offer: ClientOffer) -> Result<Arc<ClientConfig>, TlsError> {
    client_config_for(files, offer.protocols())
}

/// The configuration of a node that follows `partition` of another: its server certificate identifies it there.
pub fn follower_config(files: &TlsFiles, partition: u8) -> Result<Arc<ClientConfig>, TlsError> {
    client_config_for(files, vec![alpn_for_hint(partition), ALPN_REPLICA.to_vec()])
}

/// The configuration of a consumer of a partition's changes.
pub fn consumer_config(files: &TlsFiles, partition: u8) -> Result<Arc<ClientConfig>, TlsError> {
    client_config_for(files, vec![alpn_for_hint(partition), ALPN_CHANGES.to_vec()])
}

fn client_config_for(files: &TlsFiles, protocols: Vec<Vec<u8>>) -> Result<Arc<ClientConfig>, TlsError> {
    let material = Material::read(files, "client certificate", "client key")?;
    let unusable = |error: rustls::Error| TlsError::Unusable { path: files.cert.clone(), why: error.to_string() };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_root_certificates(material.roots)
        .with_client_auth_cert(material.chain, material.key)
        .map_err(unusable)?;
    config.alpn_protocols = protocols;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The three files, read.
struct Material {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: RootCertStore,
}

impl Material {
    fn read(files: &TlsFiles, cert_name: &'static str, key_name: &'static str) -> Result<Material, TlsError> {
        let chain = read_certificates(cert_name, &files.cert)?;
        let key_pem = read_file(key_name, &files.key)?;
        let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|error| TlsError::Unreadable {
            what: key_name,
            path: files.key.clone(),
            why: format!("it holds no private key in PEM form ({error})"),
        })?;
        let mut roots = RootCertStore::empty();
        for certificate in read_certificates("CA certificate", &files.ca)? {
            roots
                .add(certificate)
                .map_err(|error| TlsError::Unusable { path: files.ca.clone(), why: error.to_string() })?;
        }
        Ok(Material { chain, key, roots })
    }
}

fn read_file(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => TlsError::Missing { what, path: path.to_owned() },
        _ => TlsError::Unreadable { what, path: path.to_owned(), why: error.to_string() },
    })
}

pub(super) fn read_certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read_file(what, path)?;
    let unreadable = |why: String| TlsError::Unreadable { what, path: path.to_owned(), why };
    let announced = count_certificates(&pem).map_err(unreadable)?;
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unreadable(format!("it is not in PEM form ({error})")))?;
    if certificates.is_empty() {
        return Err(unreadable("it holds no certificate in PEM form".to_owned()));
    }
    if certificates.len() != announced {
        let read = certificates.len();
        return Err(unreadable(format!("{announced} certificates begin in it, and {read} of them can be read")));
    }
    Ok(certificates)
}

/// Certificates that begin in a file. The reader passes over what it does not recognise, and a list of which a part is missing is
/// worse than none: whatever looks like the beginning of a certificate and is not taken for one is an error with its line.
fn count_certificates(pem: &[u8]) -> Result<usize, String> {
    const BEGIN: &[u8] = b"-----BEGIN ";
    let mut count = 0;
    for (line, text) in (1..).zip(pem.split(|byte| *byte == b'\n')) {
        let text = text.trim_ascii_end();
        let Some(at) = text.windows(BEGIN.len()).position(|bytes| bytes == BEGIN) else { continue };
        if at > 0 {
            let why = match text.starts_with(b"\xef\xbb\xbf") {
                true => "a byte order mark comes before the certificate; save the file without it",
                false => "a section begins within the line; put a line end before it (files were joined without one?)",
            };
            return Err(format!("line {line}: {why}"));
        }
        match text[BEGIN.len()..].strip_suffix(b"-----") {
            Some(b"CERTIFICATE") => count += 1,
            Some(label) if label.ends_with(b"CERTIFICATE") => {
                let label = label.escape_ascii();
                return Err(format!("line {line}: a {label} is not read; convert it to a CERTIFICATE (openssl x509)"));
            }
            Some(_) => {}
            None => return Err(format!("line {line}: a section's first line does not end with five hyphens")),
        }
    }
    Ok(count)
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
