//! The layout of a home directory.

use std::path::{Path, PathBuf};

use turnstone_net::tls::{Role, TlsFiles};

/// A home directory; everything a node owns lies below it.
///
/// ```text
/// turnstone.json       settings of the server
/// turnstone.cdc.json   settings of the change-stream consumer
/// certs/               ca.crt, ca.key and ROLE.crt, ROLE.key for server, client, admin and cdc
/// data/                one directory per partition
/// LOCK                 held by the running server
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// The home at `root`, whether it exists or not.
    pub fn new(root: impl Into<PathBuf>) -> Home {
        Home { root: root.into() }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Certificates and keys.
    pub fn certs(&self) -> PathBuf {
        self.root.join("certs")
    }

    /// Partitions.
    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// The server's settings.
    pub fn config_file(&self) -> PathBuf {
        self.root.join("turnstone.json")
    }

    /// The consumer's settings.
    pub fn cdc_config_file(&self) -> PathBuf {
        self.root.join("turnstone.cdc.json")
    }

    /// The file that a running server holds locked.
    pub fn lock_file(&self) -> PathBuf {
        self.root.join("LOCK")
    }

    /// The CA certificate.
    pub fn ca_cert(&self) -> PathBuf {
        self.certs().join("ca.crt")
    }

    /// The CA's private key.
    pub fn ca_key(&self) -> PathBuf {
        self.certs().join("ca.key")
    }

    /// A role's certificate.
    pub fn cert(&self, role: Role) -> PathBuf {
        self.certs().join(format!("{role}.crt"))
    }

    /// A role's private key.
    pub fn key(&self, role: Role) -> PathBuf {
        self.certs().join(format!("{role}.key"))
    }

    /// The three files with which a program of this role makes or takes connections.
    pub fn tls_files(&self, role: Role) -> TlsFiles {
        TlsFiles { cert: self.cert(role), key: self.key(role), ca: self.ca_cert() }
    }

    /// A path from a settings file: relative ones are relative to the home.
    pub fn resolve(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let home = Home::new("tsdata");
        assert_eq!(home.config_file(), Path::new("tsdata/turnstone.json"));
        let files = home.tls_files(Role::Admin);
        assert_eq!(files.cert, Path::new("tsdata/certs/admin.crt"));
        assert_eq!(files.key, Path::new("tsdata/certs/admin.key"));
        assert_eq!(files.ca, Path::new("tsdata/certs/ca.crt"));
        assert_eq!(home.resolve("certs/x"), Path::new("tsdata/certs/x"));
        assert_eq!(home.resolve("/etc/x"), Path::new("/etc/x"));
    }
}
