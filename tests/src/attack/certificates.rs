//! The certificate matrix: who comes to the door with what, and what should happen.
//!
//! Every certificate is made here, most of them by the home's own CA: what a look-alike needs is a signature that is
//! good. Some cases are served; without them a server that refuses everybody would pass.

use super::dial::{self, Expect, Identity};
use super::{Attack, Case};
use crate::real::TestHome;
use rcgen::string::BmpString;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
};
use rustls::pki_types::CertificateDer;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use turnstone_net::tls::{Authority, Role};

/// RSA keys cannot be made by the library that signs here; this one opens nothing but these tests.
const RSA_KEY: &str = include_str!("rsa-2048.pem");
const HOUR: Duration = Duration::from_secs(3600);
const CLIENT: &str = "TurnstoneDB client";

type Signer = Issuer<'static, KeyPair>;

/// Texts that look like a role and are none.
const LOOK_ALIKES: [(&str, &str); 17] = [
    ("role with a space behind", "TurnstoneDB client "),
    ("role with a space before", " TurnstoneDB client"),
    ("role with two spaces", "TurnstoneDB  client"),
    ("role with a tab", "TurnstoneDB\tclient"),
    ("role in lower case", "turnstonedb client"),
    ("role in upper case", "TURNSTONEDB CLIENT"),
    ("role capitalised", "TurnstoneDB Client"),
    ("role with a letter more", "TurnstoneDB clientX"),
    ("role with a NUL behind", "TurnstoneDB client\0"),
    ("role behind a NUL", "TurnstoneDB\0 admin"),
    ("role with a newline", "TurnstoneDB admin\n"),
    ("role with a Cyrillic letter", "TurnstoneDB \u{0441}lient"),
    ("role with a zero-width space", "TurnstoneDB \u{200b}admin"),
    ("role in full-width letters", "TurnstoneDB \u{ff41}\u{ff44}\u{ff4d}\u{ff49}\u{ff4e}"),
    ("two roles in one text", "TurnstoneDB client, TurnstoneDB admin"),
    ("role that does not exist", "TurnstoneDB root"),
    ("the CA's organisation", "TurnstoneDB CA"),
];

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key")
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970")
}

/// What `--init` would put into a certificate with this organisation.
fn leaf(organization: Option<DnValue>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(organization) = organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    valid(&mut params, now() - HOUR, now() + 24 * HOUR);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn client() -> CertificateParams {
    leaf(Some(CLIENT.into()))
}

fn valid(params: &mut CertificateParams, from: Duration, until: Duration) {
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + from;
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + until;
}

fn ca(organization: &str) -> CertificateParams {
    let mut params = leaf(Some(organization.into()));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages.clear();
    params
}

fn sign(params: &CertificateParams, key: &KeyPair, by: &Signer) -> CertificateDer<'static> {
    params.signed_by(key, by).expect("signed").der().clone()
}

fn issued(params: &CertificateParams, by: &Signer) -> Identity {
    with_key(params, key(), by)
}

fn with_key(params: &CertificateParams, key: KeyPair, by: &Signer) -> Identity {
    Identity { chain: vec![sign(params, &key, by)], key: key.serialize_der() }
}

/// A CA of its own with this name.
fn other_ca(organization: &str) -> Signer {
    Issuer::new(ca(organization), key())
}

/// An intermediate below `by`: its certificate, and what signs with it.
fn below(params: CertificateParams, by: &Signer) -> (CertificateDer<'static>, Signer) {
    let key = key();
    (sign(&params, &key, by), Issuer::new(params, key))
}

struct Matrix {
    cases: Vec<Case>,
}

impl Matrix {
    fn add(&mut self, name: &'static str, expect: Expect, reason: &'static str, identity: Option<Identity>) {
        self.add_as(name, expect, reason, identity, dial::TURNSTONE2, "localhost");
    }

    fn add_as(
        &mut self,
        name: &'static str,
        expect: Expect,
        reason: &'static str,
        identity: Option<Identity>,
        protocols: &[&[u8]],
        host: &'static str,
    ) {
        let attack = Attack::Greet(dial::config(identity, protocols), host);
        self.cases.push(Case { name, expect, reason, attack, weight: 4 });
    }
}

/// All cases for a home.
pub fn matrix(home: &TestHome) -> Vec<Case> {
    let read = |name: &str| std::fs::read_to_string(home.path().join("certs").join(name)).expect("--init made it");
    let (ca_pem, ca_key) = (read("ca.crt"), read("ca.key"));
    let authority = Authority::load(&ca_pem, &ca_key).expect("the home's CA");
    let ours: Signer = Issuer::from_ca_cert_pem(&ca_pem, KeyPair::from_pem(&ca_key).expect("its key")).expect("our CA");
    let mut matrix = Matrix { cases: Vec::new() };
    controls(&mut matrix, home, &ours);
    strangers(&mut matrix, &ours);
    times_and_usages(&mut matrix, &ours);
    look_alikes(&mut matrix, &ours);
    chains(&mut matrix, &ours);
    forged(&mut matrix, &authority, &ours);
    matrix.cases
}

/// Everybody here is served.
fn controls(matrix: &mut Matrix, home: &TestHome, ours: &Signer) {
    let file = |role| Some(Identity::of_files(&home.files(role)));
    for (name, role) in [
        ("a client of --init", Role::Client),
        ("an admin of --init", Role::Admin),
        ("a server of --init", Role::Server),
        ("a cdc of --init", Role::Cdc),
    ] {
        matrix.add(name, Expect::Served, "", file(role));
    }
    let rsa = KeyPair::from_pem(RSA_KEY).expect("a key");
    matrix.add("a client with an RSA key", Expect::Served, "", Some(with_key(&client(), rsa, ours)));
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).expect("a key");
    matrix.add("a client with a P-384 key", Expect::Served, "", Some(with_key(&client(), p384, ours)));
    let ed = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    matrix.add("a client with an Ed25519 key", Expect::Served, "", Some(with_key(&client(), ed, ours)));
    let mut named = client();
    named.distinguished_name.push(DnType::CommonName, "TurnstoneDB admin");
    named.distinguished_name.push(DnType::OrganizationalUnitName, "TurnstoneDB admin");
    matrix.add("a client with other names beside", Expect::Served, "", Some(issued(&named, ours)));
    // RFC 5280: without the extension any use is meant.
    let mut any = client();
    any.extended_key_usages.clear();
    matrix.add("a client without extended key usage", Expect::Served, "", Some(issued(&any, ours)));
    let mut large = client();
    large.custom_extensions.push(CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5; 30_000]));
    matrix.add("a client with 30 KB of certificate", Expect::Served, "", Some(issued(&large, ours)));
    let mut crowd = issued(&client(), ours);
    let stranger = other_ca("Elsewhere");
    crowd.chain.extend((0..4).map(|_| sign(&client(), &key(), &stranger)));
    matrix.add("a client with strangers' certificates behind", Expect::Served, "", Some(crowd));
    let mut add = |name, protocols: &[&[u8]], host| {
        matrix.add_as(name, Expect::Served, "", file(Role::Client), protocols, host);
    };
    add("a client that names another host", dial::TURNSTONE2, "other.example.org");
    add("a client that names no host", dial::TURNSTONE2, "127.0.0.1");
    add("a client with a garbled hint", &[b"turnstone-p+07", b"turnstone-p999", b"turnstone/2"], "localhost");
    add("a client with more dialects to offer", &[b"h2", b"http/1.1", b"turnstone/2"], "localhost");
}

/// Not of our CA.
fn strangers(matrix: &mut Matrix, ours: &Signer) {
    let unknown = Expect::Alert(&["UnknownCA", "DecryptError", "BadCertificate", "CertificateUnknown"]);
    matrix.add("no certificate", Expect::Alert(&["CertificateRequired"]), "no certificate", None);
    let other = other_ca("Some other CA");
    matrix.add("another CA", unknown, "UnknownIssuer", Some(issued(&client(), &other)));
    let same = other_ca("TurnstoneDB CA");
    matrix.add("another CA of the same name", unknown, "certificate", Some(issued(&client(), &same)));
    let own = key();
    let der = client().self_signed(&own).expect("signed").der().clone();
    let identity = Identity { chain: vec![der], key: own.serialize_der() };
    matrix.add("self-signed", unknown, "UnknownIssuer", Some(identity));
    let own = key();
    let mut params = client();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let der = params.self_signed(&own).expect("signed").der().clone();
    let identity = Identity { chain: vec![der], key: own.serialize_der() };
    matrix.add("self-signed, as a CA", Expect::Alert(&[]), "certificate", Some(identity));
    let mut admin = issued(&leaf(Some("TurnstoneDB admin".into())), &other);
    admin.chain.push(sign(&client(), &key(), ours));
    matrix.add("another CA, with one of ours behind", unknown, "certificate", Some(admin));
}

fn times_and_usages(matrix: &mut Matrix, ours: &Signer) {
    let timed = |from: Duration, until: Duration| {
        let mut params = client();
        valid(&mut params, from, until);
        Some(issued(&params, ours))
    };
    let expired = Expect::Alert(&["CertificateExpired"]);
    matrix.add("expired a year ago", expired, "xpired", timed(now() - 9000 * HOUR, now() - 8760 * HOUR));
    matrix.add("expired a minute ago", expired, "xpired", timed(now() - HOUR, now() - Duration::from_secs(60)));
    let early = Expect::Alert(&["CertificateExpired", "BadCertificate", "CertificateUnknown"]);
    matrix.add("not yet valid", early, "not valid yet", timed(now() + HOUR, now() + 2 * HOUR));
    matrix.add("valid backwards", Expect::Alert(&[]), "certificate", timed(now() + HOUR, now() - HOUR));
    let with_usage = |purposes: Vec<ExtendedKeyUsagePurpose>| {
        let mut params = client();
        params.extended_key_usages = purposes;
        Some(issued(&params, ours))
    };
    use ExtendedKeyUsagePurpose::{Any, CodeSigning, EmailProtection, ServerAuth, TimeStamping};
    let wrong = Expect::Alert(&[]);
    matrix.add("for servers only", wrong, "extended key usage", with_usage(vec![ServerAuth]));
    matrix.add("for signing code", wrong, "extended key usage", with_usage(vec![CodeSigning]));
    matrix.add(
        "for mail and time stamps",
        wrong,
        "extended key usage",
        with_usage(vec![EmailProtection, TimeStamping]),
    );
    // Nothing that --init makes has it, and the verifier wants the purpose by name.
    matrix.add("for any purpose, by that name", wrong, "extended key usage", with_usage(vec![Any]));
    let mut no_signature = client();
    no_signature.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    let denied = Expect::Typed(&["DENIED"]);
    matrix.add(
        "with a key that may not sign",
        denied,
        "key usage lacks digitalSignature",
        Some(issued(&no_signature, ours)),
    );
    let mut critical = client();
    let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 2], vec![5, 0]);
    extension.set_criticality(true);
    critical.custom_extensions.push(extension);
    matrix.add("with a critical extension unknown to us", wrong, "certificate", Some(issued(&critical, ours)));
}

/// Good signatures, no role: the connection stands, everything is denied.
fn look_alikes(matrix: &mut Matrix, ours: &Signer) {
    let denied = Expect::Typed(&["DENIED"]);
    let role = "names no role";
    for (name, organization) in LOOK_ALIKES {
        matrix.add(name, denied, role, Some(issued(&leaf(Some(organization.into())), ours)));
    }
    matrix.add("an empty organisation", denied, role, Some(issued(&leaf(Some("".into())), ours)));
    let mut elsewhere = leaf(None);
    elsewhere.distinguished_name.push(DnType::CommonName, CLIENT);
    matrix.add("the role as common name", denied, role, Some(issued(&elsewhere, ours)));
    let mut elsewhere = leaf(None);
    elsewhere.distinguished_name.push(DnType::OrganizationalUnitName, CLIENT);
    matrix.add("the role as organisational unit", denied, role, Some(issued(&elsewhere, ours)));
    matrix.add("no names at all", denied, role, Some(issued(&leaf(None), ours)));
    for (name, second) in [("two roles", "TurnstoneDB admin"), ("the same role twice", CLIENT)] {
        let mut two = client();
        // Another spelling of the same attribute: the library keeps one value per type.
        two.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 10]), second);
        matrix.add(name, denied, role, Some(issued(&two, ours)));
    }
    let wide = DnValue::BmpString(BmpString::try_from(CLIENT).expect("letters"));
    matrix.add("the role in 16-bit letters", denied, role, Some(issued(&leaf(Some(wide)), ours)));
    // A real role that may not do what it asks for is the business of frames; see there.
}

fn chains(matrix: &mut Matrix, ours: &Signer) {
    let refused = Expect::Alert(&[]);
    let through = |intermediate: (CertificateDer<'static>, Signer)| {
        let mut identity = issued(&client(), &intermediate.1);
        identity.chain.push(intermediate.0);
        Some(identity)
    };
    let by_leaf = through(below(client(), ours));
    matrix.add("issued by a client", refused, "certificate", by_leaf);
    let mut plain = ca("Not quite a CA");
    plain.is_ca = IsCa::NoCa;
    matrix.add("issued by what is no CA", refused, "certificate", through(below(plain, ours)));
    // Only who has the CA's key can make one; what a trust anchor says of itself binds nobody (RFC 5280, 6.1).
    matrix.add("issued by a CA below ours", Expect::Served, "", through(below(ca("Branch office"), ours)));
    let (mut certificates, mut signer) = (Vec::new(), None::<Signer>);
    for _ in 0..10 {
        let (certificate, next) = below(ca("Long chain"), signer.as_ref().unwrap_or(ours));
        certificates.insert(0, certificate);
        signer = Some(next);
    }
    let mut long = issued(&client(), signer.as_ref().expect("ten of them"));
    long.chain.extend(certificates);
    matrix.add("a chain of eleven", refused, "a chain of 11 certificates", Some(long));
    // All of one name, so that each could be the issuer of each.
    let mazes: Vec<Signer> = (0..12).map(|_| other_ca("Maze")).collect();
    let mut maze = issued(&client(), &mazes[0]);
    for by in &mazes {
        maze.chain.extend((0..3).map(|_| below(ca("Maze"), by).0));
    }
    matrix.add("a maze of 36 intermediates", refused, "a chain of 37 certificates", Some(maze));
    let mut maze = issued(&client(), &mazes[0]);
    let forged = other_ca("TurnstoneDB CA");
    maze.chain.extend((0..4).map(|_| below(ca("Maze"), &forged).0));
    matrix.add("a maze of 4 intermediates", refused, "certificate", Some(maze));
    let own = key();
    let der = sign(&ca(CLIENT), &own, ours);
    let identity = Identity { chain: vec![der], key: own.serialize_der() };
    matrix.add("a CA as a client", refused, "certificate", Some(identity));
}

/// Not what was signed, or not its owner.
fn forged(matrix: &mut Matrix, authority: &Authority, ours: &Signer) {
    let refused = Expect::Alert(&[]);
    let good = issued(&client(), ours);
    let stolen = Identity { chain: good.chain.clone(), key: key().serialize_der() };
    matrix.add("a certificate without its key", Expect::Alert(&["DecryptError"]), "certificate", Some(stolen));
    let ca_der = {
        use rustls::pki_types::pem::PemObject;
        CertificateDer::from_pem_slice(authority.cert_pem().as_bytes()).expect("PEM")
    };
    let own = Identity { chain: vec![ca_der], key: key().serialize_der() };
    matrix.add("the CA's own certificate", refused, "certificate", Some(own));
    let changed = |name, how: fn(&mut Vec<u8>), matrix: &mut Matrix| {
        let mut identity = issued(&client(), ours);
        let mut bytes = identity.chain[0].to_vec();
        how(&mut bytes);
        identity.chain[0] = bytes.into();
        matrix.add(name, refused, "certificate", Some(identity));
    };
    changed("a signature with one bit changed", |bytes| *bytes.last_mut().expect("some") ^= 1, matrix);
    changed(
        "client made admin after signing",
        |bytes| {
            let at = bytes.windows(6).position(|w| w == b"client").expect("the role is in it");
            bytes[at..at + 6].copy_from_slice(b"admin ");
        },
        matrix,
    );
    changed("a certificate cut short", |bytes| bytes.truncate(200), matrix);
    changed("a certificate with bytes behind", |bytes| bytes.extend([0; 8]), matrix);
    changed("no certificate but noise", |bytes| bytes.iter_mut().enumerate().for_each(|(i, b)| *b = i as u8), matrix);
    changed("an empty certificate", Vec::clear, matrix);
    let mut huge = client();
    huge.custom_extensions.push(CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5; 80_000]));
    matrix.add("80 KB of certificate", Expect::Ended, "handshake", Some(issued(&huge, ours)));
    let unknown = Expect::Alert(&["NoApplicationProtocol"]);
    let protocols: &[&[u8]] = &[b"h2", b"turnstone/3"];
    let good = issued(&client(), ours);
    matrix.add_as("a dialect that nobody speaks", unknown, "handshake", Some(good), protocols, "localhost");
}
