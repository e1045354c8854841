//! Who a peer is: the role that the organisation in its certificate names.
//!
//! The certificate has been verified against the CA before anything here runs. What is read is exact: one organisation,
//! spelled `TurnstoneDB <role>`. Everything else is an error, so a certificate of the same CA made for another purpose
//! opens nothing.

use std::fmt;

use rustls::SupportedCipherSuite;
use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use x509_parser::asn1_rs::Tag;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What stands before the role in the organisation; the space belongs to it.
pub const ORGANIZATION_PREFIX: &str = "TurnstoneDB ";

/// What a certificate entitles its holder to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Reads and writes data.
    Client,
    /// Everything, for people.
    Admin,
    /// Everything, for nodes.
    Server,
    /// Consumes the change stream.
    Cdc,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 4] = [Role::Server, Role::Client, Role::Admin, Role::Cdc];

    /// The word used in certificates, file names and texts.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Client => "client",
            Role::Admin => "admin",
            Role::Server => "server",
            Role::Cdc => "cdc",
        }
    }

    /// The role with this name; the comparison is exact.
    pub fn from_name(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.name() == name)
    }

    /// The organisation that a certificate of this role carries.
    pub fn organization(self) -> String {
        format!("{ORGANIZATION_PREFIX}{}", self.name())
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Why a certificate names no role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityError {
    /// The bytes are no certificate, or more than one.
    Unreadable,
    /// There is no organisation.
    NoOrganization,
    /// There are several organisations; none of them is preferred.
    SeveralOrganizations(usize),
    /// The organisation is a string of a kind that is not read, for example UCS-2.
    StringKind,
    /// Its key may not be used to sign, so a handshake proves nothing that its issuer meant.
    MayNotSign,
    /// The organisation is not `TurnstoneDB <role>` with a role that exists.
    NoRole(String),
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IdentityError::Unreadable => write!(f, "the certificate cannot be read"),
            IdentityError::NoOrganization => write!(f, "the certificate has no organisation (O), so it has no role"),
            IdentityError::SeveralOrganizations(count) => {
                write!(f, "the certificate has {count} organisations (O); exactly one must name the role")
            }
            IdentityError::StringKind => {
                write!(f, "the certificate's organisation (O) is neither a UTF-8 nor a printable string")
            }
            IdentityError::MayNotSign => {
                write!(f, "the certificate's key usage lacks digitalSignature, which TLS needs")
            }
            IdentityError::NoRole(found) => write!(
                f,
                "the certificate's organisation (O) is '{}'; a role reads 'TurnstoneDB client', 'TurnstoneDB admin', \
                 'TurnstoneDB server' or 'TurnstoneDB cdc'",
                found.escape_debug()
            ),
        }
    }
}

impl std::error::Error for IdentityError {}

/// SHA-256 of the public key of a certificate in DER form: it stays when the certificate is renewed for the same key.
pub fn key_of(der: &[u8]) -> Result<[u8; 32], IdentityError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Unreadable)?;
    let SupportedCipherSuite::Tls13(suite) = TLS13_AES_128_GCM_SHA256;
    let hash = suite.common.hash_provider.hash(certificate.public_key().raw);
    hash.as_ref().try_into().map_err(|_| IdentityError::Unreadable)
}

/// Longest name of a certificate that is told apart by, bytes.
const NAME_MAX: usize = 400;

/// The name of a certificate in DER form: its subject, and the hosts that it is for. It stays when the certificate is renewed,
/// with the same key or another one.
pub fn name_of(der: &[u8]) -> Result<String, IdentityError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Unreadable)?;
    let mut hosts: Vec<String> = match certificate.subject_alternative_name() {
        Ok(Some(names)) => names.value.general_names.iter().map(|name| name.to_string()).collect(),
        _ => Vec::new(),
    };
    hosts.sort();
    let name = format!("{} for {}", certificate.subject(), hosts.join(", "));
    let mut name: String = name.escape_debug().collect();
    let mut end = NAME_MAX.min(name.len());
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.truncate(end);
    Ok(name)
}

/// Reads the role of a certificate in DER form.
pub fn role_of(der: &[u8]) -> Result<Role, IdentityError> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Unreadable)?;
    if !rest.is_empty() {
        return Err(IdentityError::Unreadable);
    }
    match certificate.key_usage() {
        Ok(Some(usage)) if !usage.value.digital_signature() => return Err(IdentityError::MayNotSign),
        Ok(_) => {}
        Err(_) => return Err(IdentityError::Unreadable),
    }
    let mut organizations = certificate.subject().iter_organization();
    let organization = organizations.next().ok_or(IdentityError::NoOrganization)?;
    match organizations.count() {
        0 => {}
        others => return Err(IdentityError::SeveralOrganizations(1 + others)),
    }
    let value = organization.attr_value();
    if !matches!(value.tag(), Tag::Utf8String | Tag::PrintableString) {
        return Err(IdentityError::StringKind);
    }
    let text = std::str::from_utf8(value.data).map_err(|_| IdentityError::StringKind)?;
    text.strip_prefix(ORGANIZATION_PREFIX)
        .and_then(Role::from_name)
        .ok_or_else(|| IdentityError::NoRole(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use rcgen::string::{BmpString, Ia5String, PrintableString};
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair};

    use super::*;

    fn certificate(fill: impl FnOnce(&mut DistinguishedName)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        fill(&mut params.distinguished_name);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn with_organization(value: impl Into<DnValue>) -> Vec<u8> {
        certificate(|name| name.push(DnType::OrganizationName, value))
    }

    #[test]
    fn each_role_reads_back() {
        for role in Role::ALL {
            assert_eq!(role_of(&with_organization(role.organization())), Ok(role));
            let printable = PrintableString::try_from(role.organization()).unwrap();
            assert_eq!(role_of(&with_organization(DnValue::PrintableString(printable))), Ok(role));
        }
    }

    #[test]
    fn a_name_stays_when_the_key_changes() {
        let named = |common_name: &str| certificate(|name| name.push(DnType::CommonName, common_name));
        let (one, renewed, other) = (named("db1"), named("db1"), named("db2"));
        assert_ne!(key_of(&one), key_of(&renewed));
        assert_eq!(name_of(&one), name_of(&renewed));
        assert_ne!(name_of(&one), name_of(&other));
        let long = named(&"x".repeat(900));
        assert!(name_of(&long).is_ok_and(|name| name.len() <= NAME_MAX));
    }

    #[test]
    fn near_misses_have_no_role() {
        for name in [
            "",
            "TurnstoneDB",
            "TurnstoneDB ",
            "TurnstoneDB  client",
            "TurnstoneDB Client",
            "turnstonedb client",
            "TurnstoneDB client ",
            " TurnstoneDB client",
            "TurnstoneDB client\0",
            "TurnstoneDB root",
            "TurnstoneDB CA",
            "client",
        ] {
            assert_eq!(role_of(&with_organization(name)), Err(IdentityError::NoRole(name.to_owned())));
        }
    }

    #[test]
    fn a_key_that_may_not_sign_has_no_role() {
        let of = |usages: Vec<rcgen::KeyUsagePurpose>| {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::OrganizationName, "TurnstoneDB client");
            params.key_usages = usages;
            role_of(params.self_signed(&KeyPair::generate().unwrap()).unwrap().der())
        };
        use rcgen::KeyUsagePurpose::{DigitalSignature, KeyEncipherment};
        assert_eq!(of(vec![KeyEncipherment]), Err(IdentityError::MayNotSign));
        assert_eq!(of(vec![KeyEncipherment, DigitalSignature]), Ok(Role::Client));
        assert_eq!(of(vec![]), Ok(Role::Client), "without the extension every use is meant");
    }

    #[test]
    fn other_string_kinds_are_refused() {
        let bmp = BmpString::try_from("TurnstoneDB admin").unwrap();
        assert_eq!(role_of(&with_organization(DnValue::BmpString(bmp))), Err(IdentityError::StringKind));
        let ia5 = Ia5String::try_from("TurnstoneDB admin").unwrap();
        assert_eq!(role_of(&with_organization(DnValue::Ia5String(ia5))), Err(IdentityError::StringKind));
    }

    #[test]
    fn only_the_organisation_counts() {
        let der = certificate(|name| {
            name.push(DnType::CommonName, "TurnstoneDB admin");
            name.push(DnType::OrganizationalUnitName, "TurnstoneDB admin");
        });
        assert_eq!(role_of(&der), Err(IdentityError::NoOrganization));
    }

    /// rcgen writes one value per attribute type, so the second organisation is made from an attribute of another
    /// type by changing the last byte of its object identifier (2.5.4.11 becomes 2.5.4.10).
    #[test]
    fn two_organisations_are_ambiguous() {
        let mut der = certificate(|name| {
            name.push(DnType::OrganizationName, "TurnstoneDB client");
            name.push(DnType::OrganizationalUnitName, "TurnstoneDB admin");
        });
        let unit = [0x06, 0x03, 0x55, 0x04, 0x0b];
        let places: Vec<_> = der.windows(5).enumerate().filter(|(_, w)| *w == unit).map(|(i, _)| i + 4).collect();
        assert!(!places.is_empty());
        for place in places {
            der[place] = 0x0a;
        }
        assert_eq!(role_of(&der), Err(IdentityError::SeveralOrganizations(2)));
    }

    #[test]
    fn other_bytes_are_unreadable() {
        let mut der = with_organization("TurnstoneDB admin");
        assert_eq!(role_of(&der[..der.len() - 1]), Err(IdentityError::Unreadable));
        der.push(0);
        assert_eq!(role_of(&der), Err(IdentityError::Unreadable));
        assert_eq!(role_of(b""), Err(IdentityError::Unreadable));
        assert_eq!(role_of(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]), Err(IdentityError::Unreadable));
    }
}
