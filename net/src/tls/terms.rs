//! How long a node's certificates are good for, and what another reading of their files has changed.

use super::config::{TlsError, TlsFiles, read_certificates};
use rustls::pki_types::CertificateDer;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use turnstone_engine::env::Level;
use x509_parser::prelude::{FromDer, X509Certificate};

const DAY: u64 = 86_400;
/// The first warning comes so long before the end.
const MONTH: u64 = 30 * DAY;
/// The second one.
const WEEK: u64 = 7 * DAY;

/// How near the end of a certificate is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    #[default]
    Far,
    Month,
    Week,
    Over,
}

/// One certificate.
#[derive(Clone, Debug)]
struct Term {
    path: PathBuf,
    der: CertificateDer<'static>,
    subject: String,
    /// Seconds since 1970.
    ends: u64,
    /// The same for people.
    ends_text: String,
    /// What was told of it last.
    told: Stage,
}

impl Term {
    fn of(path: &Path, der: CertificateDer<'static>) -> Term {
        let (subject, ends, ends_text) = match X509Certificate::from_der(&der) {
            Ok((_, certificate)) => {
                let end = certificate.validity().not_after;
                (certificate.subject().to_string(), end.timestamp().max(0) as u64, end.to_string())
            }
            // TLS has taken it, or says why not.
            Err(_) => (String::new(), u64::MAX, String::new()),
        };
        let subject = subject.escape_debug().to_string();
        Term { path: path.to_owned(), der, subject, ends, ends_text, told: Stage::Far }
    }

    fn stage(&self, now: u64) -> Stage {
        match self.ends.checked_sub(now) {
            None => Stage::Over,
            Some(left) if left <= WEEK => Stage::Week,
            Some(left) if left <= MONTH => Stage::Month,
            Some(_) => Stage::Far,
        }
    }

    fn name(&self) -> String {
        format!("{} ({})", self.path.display(), self.subject)
    }
}

/// A node's own certificates, and those that it trusts.
#[derive(Clone, Debug, Default)]
pub struct Terms(Vec<Term>);

impl Terms {
    /// Reads them.
    pub fn read(files: &TlsFiles) -> Result<Terms, TlsError> {
        let mut all = Vec::new();
        for (what, path) in [("server certificate", &files.cert), ("CA certificate", &files.ca)] {
            all.extend(read_certificates(what, path)?.into_iter().map(|der| Term::of(path, der)));
        }
        Ok(Terms(all))
    }

    /// When the first of them ends, milliseconds since 1970.
    pub fn first_end_ms(&self) -> u64 {
        self.0.iter().map(|term| term.ends).min().map_or(0, |ends| ends.saturating_mul(1000))
    }

    /// What is to be told of them now, and was not told before.
    pub fn news(&mut self, now: SystemTime) -> Vec<(Level, String)> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        let mut news = Vec::new();
        for term in &mut self.0 {
            let stage = term.stage(now);
            if stage > term.told {
                news.push(if stage == Stage::Over {
                    let text = format!(
                        "{} has expired, on {}: connections that need it are refused",
                        term.name(),
                        term.ends_text
                    );
                    (Level::Error, format!("{text}; issue another one, and send SIGHUP"))
                } else {
                    let days = (term.ends - now) / DAY;
                    let text = format!("{} expires in {days} days, on {}", term.name(), term.ends_text);
                    (Level::Warn, format!("{text}: issue another one, and send SIGHUP"))
                });
            }
            // The clock may have been set back.
            term.told = stage;
        }
        news
    }

    /// What has changed against an earlier reading, a line for each certificate.
    pub fn changes_since(&self, before: &Terms) -> Vec<String> {
        let lacks =
            |terms: &Terms, one: &Term| !terms.0.iter().any(|term| term.der == one.der && term.path == one.path);
        let gone = before.0.iter().filter(|term| lacks(self, term)).map(|term| format!("{} is gone", term.name()));
        let new = self.0.iter().filter(|term| lacks(before, term));
        gone.chain(new.map(|term| format!("{} is new, and expires on {}", term.name(), term.ends_text))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{Authority, Role};
    use rustls::pki_types::pem::PemObject;

    fn term(days: u64) -> Term {
        let authority = Authority::create().expect("a CA");
        let issued = authority.issue(Role::Server, &[], days as u32).expect("issued");
        Term::of(Path::new("server.crt"), CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).expect("PEM"))
    }

    #[test]
    fn each_stage_is_told_once_and_again_when_the_clock_went_back() {
        let mut terms = Terms(vec![term(100)]);
        let ends = UNIX_EPOCH + Duration::from_secs(terms.0[0].ends);
        let mut told = |before_end: i64| {
            let now = if before_end > 0 {
                ends - Duration::from_secs(before_end as u64)
            } else {
                ends + Duration::from_secs(before_end.unsigned_abs())
            };
            terms.news(now).pop()
        };
        let day = DAY as i64;
        assert!(told(31 * day).is_none());
        let (level, text) = told(30 * day).expect("a warning");
        assert!(level == Level::Warn && text.contains("server.crt") && text.contains("in 30 days"), "{text}");
        assert!(told(20 * day).is_none() && told(8 * day).is_none());
        assert!(told(7 * day).is_some_and(|(level, text)| level == Level::Warn && text.contains("in 7 days")));
        assert!(told(1).is_none());
        assert!(told(-1).is_some_and(|(level, text)| level == Level::Error && text.contains("has expired")));
        assert!(told(-5 * day).is_none());
        assert!(told(31 * day).is_none() && told(-1).is_some());
    }

    #[test]
    fn what_has_changed_is_said_by_name() {
        let (one, two) = (term(10), term(20));
        let (before, after) = (Terms(vec![one.clone(), two.clone()]), Terms(vec![one, term(30)]));
        assert!(before.changes_since(&before).is_empty());
        let changes = after.changes_since(&before);
        assert!(changes.len() == 2 && changes[0].ends_with("is gone") && changes[1].contains("is new"), "{changes:?}");
    }
}
