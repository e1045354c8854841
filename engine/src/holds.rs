//! Named claims on the log: operators', and those of consumers of changes.
//!
//! A consumer's claim is its own: nobody else moves or releases it, but for operators, who may release any. The name in the
//! certificate that made it tells who that is; a renewed certificate keeps its name. Each kind has a number of its own, so that
//! consumers cannot take what operators need, and a consumer's is limited by a setting of the server, since a hold keeps log beyond
//! `wal_retention`.

use crate::env::Env;
use crate::error::Error;
use crate::manifest::{Hold, HoldOwner};
use crate::partition::Partition;
use crate::types::Version;

/// Most holds of operators that a partition takes, and as many of consumers.
pub const HOLDS_MAX: usize = 64;
/// Longest name of a hold, bytes.
pub const HOLD_NAME_MAX: usize = 255;

impl HoldOwner {
    /// Whether `other` may replace what is this one's.
    fn gives_to(&self, other: &HoldOwner) -> bool {
        *self == HoldOwner::Unknown || self == other
    }

    fn refusal(&self, name: &str) -> Error {
        let whose = match self {
            HoldOwner::Consumer(_) => "a consumer with another certificate",
            HoldOwner::Operator | HoldOwner::Unknown => "an operator",
        };
        Error::BadHold(format!("the hold '{name}' is of {whose}: take another name, or release it first"))
    }
}

impl<E: Env> Partition<E> {
    /// Keeps the log from `version` on (from now, for 0) for an operator; replaces an earlier hold of this name.
    pub async fn hold(&self, name: &str, version: Version, limit_bytes: u64) -> Result<Version, Error> {
        self.hold_as(HoldOwner::Operator, name, version, limit_bytes).await
    }

    /// The same for a consumer whose certificate has the name `certificate`.
    pub async fn hold_for(
        &self,
        certificate: &str,
        name: &str,
        version: Version,
        limit_bytes: u64,
    ) -> Result<Version, Error> {
        let most = self.0.settings.max_consumer_hold;
        if limit_bytes > most {
            return Err(Error::BadHold(format!(
                "the hold '{name}' asks for {limit_bytes} bytes of log, and consumers may ask for {most} (max_consumer_hold)"
            )));
        }
        self.hold_as(HoldOwner::Consumer(certificate.to_string()), name, version, limit_bytes).await
    }

    async fn hold_as(
        &self,
        owner: HoldOwner,
        name: &str,
        version: Version,
        limit_bytes: u64,
    ) -> Result<Version, Error> {
        let core = &self.0;
        if name.is_empty() || name.len() > HOLD_NAME_MAX {
            return Err(Error::BadHold(format!("a hold's name has 1 to {HOLD_NAME_MAX} bytes")));
        }
        // What is held must not be purged between the look and the record.
        let _turn = core.purge_gate.enter().await;
        let oldest = self.oldest_version();
        let version = if version == 0 { core.published.get() + 1 } else { version };
        if version < oldest {
            return Err(Error::Purged { wanted: version, oldest });
        }
        let hold = Hold { name: name.to_string(), version, limit_bytes, owner };
        core.update_manifest(|m| {
            let before = m.holds.iter().position(|h| h.name == hold.name);
            if let Some(before) = before {
                if !m.holds[before].owner.gives_to(&hold.owner) {
                    return Err(m.holds[before].owner.refusal(name));
                }
                m.holds.remove(before);
            }
            let is_consumers = |hold: &Hold| matches!(hold.owner, HoldOwner::Consumer(_));
            if m.holds.iter().filter(|h| is_consumers(h) == is_consumers(&hold)).count() >= HOLDS_MAX {
                let whose = if is_consumers(&hold) { "consumers" } else { "operators" };
                return Err(Error::BadHold(format!(
                    "a partition takes at most {HOLDS_MAX} holds of {whose}; release one first"
                )));
            }
            m.holds.push(hold);
            Ok(version)
        })
        .await?
    }

    /// Lets go of a hold, whoever's it is: an operator decides.
    pub async fn release(&self, name: &str) -> Result<(), Error> {
        self.release_if(name, |_| true).await
    }

    /// A consumer lets go of its hold.
    pub async fn release_for(&self, certificate: &str, name: &str) -> Result<(), Error> {
        let owner = HoldOwner::Consumer(certificate.to_string());
        self.release_if(name, |before| before.gives_to(&owner)).await
    }

    async fn release_if(&self, name: &str, may: impl Fn(&HoldOwner) -> bool) -> Result<(), Error> {
        self.0
            .update_manifest(|m| {
                let Some(at) = m.holds.iter().position(|h| h.name == name) else {
                    return Err(Error::NoSuchHold(name.to_string()));
                };
                if !may(&m.holds[at].owner) {
                    return Err(m.holds[at].owner.refusal(name));
                }
                m.holds.remove(at);
                Ok(())
            })
            .await?
    }
}
