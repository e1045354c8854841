//! The certificate authority of a home: makes itself, and issues the certificates of servers and their clients.
//!
//! Keys are ECDSA P-256, stored as PKCS#8 PEM. Nothing here touches a file; permissions are the caller's work.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::identity::Role;

/// The organisation in a CA certificate.
pub const CA_ORGANIZATION: &str = "TurnstoneDB CA";

/// Days a new CA is valid (ten years).
pub const CA_DAYS: u32 = 3650;

/// How far in the past a certificate begins to be valid, so that hosts whose clocks differ a little accept it at once.
const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// Seconds in a day.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub cert_pem: String,
    /// The private key, PKCS#8. It belongs in a file of mode 0600.
    pub key_pem: String,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

/// Why the authority refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthorityError {
    /// The CA certificate or key cannot be used; the text says which and why.
    Unusable(String),
    /// A name for the server is neither a host name nor an address.
    BadName(String),
    /// Making or signing failed.
    Failed(String),
}

impl fmt::Display for AuthorityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AuthorityError::Unusable(why) => write!(f, "the certificate authority cannot be used: {why}"),
            AuthorityError::BadName(name) => write!(
                f,
                "'{}' is neither a host name nor an IP address; examples: db1.example.com, 192.0.2.7",
                name.escape_debug()
            ),
            AuthorityError::Failed(why) => write!(f, "making a certificate failed: {why}"),
        }
    }
}

impl std::error::Error for AuthorityError {}

fn failed(error: rcgen::Error) -> AuthorityError {
    AuthorityError::Failed(error.to_string())
}

/// A CA with its key.
pub struct Authority {
    cert_pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a new CA, valid for [`CA_DAYS`]. It may sign end-entity certificates and nothing below another CA.
    pub fn create() -> Result<Authority, AuthorityError> {
        Authority::with_key(&new_key_pem()?)
    }

    /// Makes a new CA around a key that exists already (PKCS#8 PEM).
    pub fn with_key(key_pem: &str) -> Result<Authority, AuthorityError> {
        let key = read_key(key_pem)?;
        let mut params = parameters(CA_ORGANIZATION, None, CA_DAYS)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert_pem = params.self_signed(&key).map_err(failed)?.pem();
        Ok(Authority { cert_pem, key_pem: key_pem.to_owned(), issuer: Issuer::new(params, key) })
    }

    /// Takes up an existing CA. Certificate and key must belong together, and the certificate must be that of a CA
    /// which is still valid.
    pub fn load(cert_pem: &str, key_pem: &str) -> Result<Authority, AuthorityError> {
        let unusable = |why: &str| AuthorityError::Unusable(why.to_owned());
        let der = CertificateDer::from_pem_slice(cert_pem.as_bytes())
            .map_err(|_| unusable("its certificate is no PEM certificate"))?;
        let (_, certificate) =
            X509Certificate::from_der(&der).map_err(|_| unusable("its certificate cannot be read"))?;
        if !certificate.is_ca() {
            return Err(unusable("its certificate is not that of a CA"));
        }
        if !certificate.validity().is_valid() {
            return Err(AuthorityError::Unusable(format!(
                "its certificate is valid from {} to {}",
                certificate.validity().not_before,
                certificate.validity().not_after
            )));
        }
        let key = read_key(key_pem)?;
        if key.subject_public_key_info() != certificate.public_key().raw {
            return Err(unusable("its key does not belong to its certificate"));
        }
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|error| unusable(&error.to_string()))?;
        Ok(Authority { cert_pem: cert_pem.to_owned(), key_pem: key_pem.to_owned(), issuer })
    }

    /// The CA certificate, PEM.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The CA's private key, PKCS#8 PEM. It belongs in a file of mode 0600.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Issues a certificate for `role`, valid for `days`.
    ///
    /// A server's certificate names `localhost`, 127.0.0.1, ::1 and whatever `names` adds (host names or addresses);
    /// a server is a client of its leader too, so it may be used for both. The others may only be used by clients, and
    /// `names` must be empty for them: nobody connects to a client.
    pub fn issue(&self, role: Role, names: &[String], days: u32) -> Result<Issued, AuthorityError> {
        let key_pem = new_key_pem()?;
        let cert_pem = self.certify(role, names, days, &key_pem)?;
        Ok(Issued { cert_pem, key_pem })
    }

    /// Like [`Authority::issue`], for a key that exists already (PKCS#8 PEM); gives the certificate, PEM.
    pub fn certify(&self, role: Role, names: &[String], days: u32, key_pem: &str) -> Result<String, AuthorityError> {
        let mut params = parameters(&role.organization(), Some(role.name()), days)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match role {
            Role::Server => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            _ => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        if role == Role::Server {
            params.subject_alt_names = alternative_names(names)?;
        } else if let Some(name) = names.first() {
            return Err(AuthorityError::Failed(format!("a {role} certificate carries no host names, not even {name}")));
        }
        let certificate = params.signed_by(&read_key(key_pem)?, &self.issuer).map_err(failed)?;
        Ok(certificate.pem())
    }
}

/// Makes a private key: ECDSA P-256, PKCS#8 PEM. It belongs in a file of mode 0600.
pub fn new_key_pem() -> Result<String, AuthorityError> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?.serialize_pem())
}

fn read_key(pem: &str) -> Result<KeyPair, AuthorityError> {
    KeyPair::from_pem(pem)
        .map_err(|_| AuthorityError::Unusable("a key of it is no PKCS#8 private key in PEM form".to_owned()))
}

/// What every certificate has: subject, validity and a random serial.
fn parameters(organization: &str, common_name: Option<&str>, days: u32) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, organization);
    if let Some(common_name) = common_name {
        params.distinguished_name.push(DnType::CommonName, common_name);
    }
    // A clock before 1970 is a clock that was never set; the certificate then begins in 1970.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let begin = Duration::from_secs(now.saturating_sub(BACKDATE).as_secs());
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + begin;
    params.not_after = params.not_before + BACKDATE + DAY * days;
    params.serial_number = Some(serial()?);
    Ok(params)
}

/// Sixteen random bytes. The top bits are set to 01, so the number is positive and always of the same length.
fn serial() -> Result<SerialNumber, AuthorityError> {
    let mut bytes = [0; 16];
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| AuthorityError::Failed("the system gave no random bytes".to_owned()))?;
    bytes[0] = (bytes[0] & 0x3f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn alternative_names(added: &[String]) -> Result<Vec<SanType>, AuthorityError> {
    let mut names = vec![
        SanType::DnsName("localhost".try_into().map_err(failed)?),
        SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        SanType::IpAddress(IpAddr::V6(Ipv6Addr::LOCALHOST)),
    ];
    for name in added {
        let bad = || AuthorityError::BadName(name.clone());
        let name = match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) if is_host_name(name) => SanType::DnsName(name.as_str().try_into().map_err(|_| bad())?),
            Err(_) => return Err(bad()),
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// A DNS name that TLS clients can look for: labels of letters, digits, hyphens and underscores. A last label of
/// digits alone would be a mistyped address.
fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last_is_number = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    name.len() <= 253 && name.split('.').all(label) && !last_is_number
}

#[cfg(test)]
mod tests {
    use x509_parser::extensions::GeneralName;
    use x509_parser::extensions::ParsedExtension;

    use super::*;
    use crate::tls::role_of;

    fn der(pem: &str) -> Vec<u8> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
    }

    #[test]
    fn the_ca_signs_end_entities_only() {
        let authority = Authority::create().unwrap();
        let der = der(authority.cert_pem());
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        let constraints = certificate.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca);
        assert_eq!(constraints.value.path_len_constraint, Some(0));
        let usage = certificate.key_usage().unwrap().unwrap().value;
        assert!(usage.key_cert_sign() && usage.crl_sign() && !usage.digital_signature());
        let validity = certificate.validity();
        let days = (validity.not_after.timestamp() - validity.not_before.timestamp()) / 86_400;
        assert_eq!(days, i64::from(CA_DAYS));
        assert!(validity.is_valid());
        assert!(role_of(&der).is_err(), "a CA certificate must have no role");
    }

    #[test]
    fn issued_certificates_have_role_usage_and_issuer() {
        let authority = Authority::create().unwrap();
        let ca = der(authority.cert_pem());
        let (_, ca) = X509Certificate::from_der(&ca).unwrap();
        let mut serials = Vec::new();
        for role in Role::ALL {
            let issued = authority.issue(role, &[], 365).unwrap();
            let der = der(&issued.cert_pem);
            assert_eq!(role_of(&der), Ok(role));
            let (_, certificate) = X509Certificate::from_der(&der).unwrap();
            certificate.verify_signature(Some(ca.public_key())).unwrap();
            assert!(!certificate.is_ca());
            let usage = certificate.extended_key_usage().unwrap().unwrap().value;
            assert!(usage.client_auth);
            assert_eq!(usage.server_auth, role == Role::Server);
            assert!(certificate.validity().is_valid());
            let authority_key =
                certificate.iter_extensions().find_map(|extension| match extension.parsed_extension() {
                    ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.clone(),
                    _ => None,
                });
            let ca_key = ca.iter_extensions().find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.clone()),
                _ => None,
            });
            assert!(authority_key.is_some());
            assert_eq!(authority_key, ca_key);
            assert!(issued.key_pem.starts_with("-----BEGIN PRIVATE KEY-----"));
            assert_eq!(certificate.raw_serial().len(), 16);
            serials.push(certificate.raw_serial().to_vec());
        }
        serials.sort();
        serials.dedup();
        assert_eq!(serials.len(), Role::ALL.len());
    }

    #[test]
    fn server_names() {
        let authority = Authority::create().unwrap();
        let names = ["db1.example.com", "192.0.2.7", "localhost", "2001:db8::1"].map(str::to_owned);
        let der = der(&authority.issue(Role::Server, &names, 1).unwrap().cert_pem);
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        let names = certificate.subject_alternative_name().unwrap().unwrap();
        let names: Vec<_> = names
            .value
            .general_names
            .iter()
            .map(|name| match name {
                GeneralName::DNSName(name) => (*name).to_owned(),
                GeneralName::IPAddress(bytes) => format!("{bytes:?}"),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(names.len(), 6, "{names:?}");
        assert!(names.contains(&"localhost".to_owned()) && names.contains(&"db1.example.com".to_owned()));
        assert!(names.contains(&"[127, 0, 0, 1]".to_owned()) && names.contains(&"[192, 0, 2, 7]".to_owned()));
    }

    #[test]
    fn bad_names_are_refused() {
        let authority = Authority::create().unwrap();
        for name in ["", "a b", "256.1.1.1", "-a", "a..b", "host:6379", "über", "*.example.com", "a/b"] {
            let error = authority.issue(Role::Server, &[name.to_owned()], 1).unwrap_err();
            assert_eq!(error, AuthorityError::BadName(name.to_owned()));
        }
        assert!(authority.issue(Role::Client, &["host".to_owned()], 1).is_err());
    }

    #[test]
    fn a_loaded_authority_issues_for_the_same_ca() {
        let first = Authority::create().unwrap();
        let loaded = Authority::load(first.cert_pem(), first.key_pem()).unwrap();
        let ca = der(first.cert_pem());
        let (_, ca) = X509Certificate::from_der(&ca).unwrap();
        let der = der(&loaded.issue(Role::Admin, &[], 1).unwrap().cert_pem);
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        certificate.verify_signature(Some(ca.public_key())).unwrap();
        assert_eq!(certificate.issuer().to_string(), ca.subject().to_string());
    }

    #[test]
    fn existing_keys_are_certified() {
        let authority = Authority::with_key(&new_key_pem().unwrap()).unwrap();
        let key = new_key_pem().unwrap();
        let der = der(&authority.certify(Role::Client, &[], 1, &key).unwrap());
        let (_, certificate) = X509Certificate::from_der(&der).unwrap();
        assert_eq!(read_key(&key).unwrap().subject_public_key_info(), certificate.public_key().raw);
        assert!(Authority::with_key("no key").is_err());
        assert!(authority.certify(Role::Client, &[], 1, "no key").is_err());
    }

    #[test]
    fn what_is_no_ca_is_not_loaded() {
        let one = Authority::create().unwrap();
        let two = Authority::create().unwrap();
        let refused = |cert: &str, key: &str, text: &str| {
            let error = Authority::load(cert, key).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        };
        refused(one.cert_pem(), two.key_pem(), "does not belong");
        refused("", one.key_pem(), "no PEM certificate");
        refused(one.cert_pem(), "", "no PKCS#8");
        let leaf = one.issue(Role::Server, &[], 1).unwrap();
        refused(&leaf.cert_pem, &leaf.key_pem, "not that of a CA");
    }

    #[test]
    fn keys_are_not_printed() {
        let authority = Authority::create().unwrap();
        let issued = authority.issue(Role::Client, &[], 1).unwrap();
        assert!(!format!("{authority:?} {issued:?}").contains("PRIVATE KEY"));
    }
}
