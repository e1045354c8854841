//! Certificates and TLS. Every connection is mutually authenticated; there is no plaintext mode to fall back to.
//!
//! * [`authority`] issues certificates; only `--init` and tests call it.
//! * [`identity`] reads a peer's role out of its certificate.
//! * [`Terms`] says when a node's certificates end, and what another reading has changed.
//! * [`config`] builds the rustls configurations. The crypto provider is passed explicitly; no process default is set.

pub mod authority;
pub mod config;
pub mod identity;
mod short_chains;
mod terms;

pub use authority::{Authority, AuthorityError, Issued, new_key_pem};
pub use config::{ClientOffer, TlsError, TlsFiles, client_config, consumer_config, follower_config, server_config};
pub use identity::{IdentityError, Role, key_of, name_of, role_of};
pub use terms::Terms;
