//! Handshakes in memory between the two configurations.

use std::io::Cursor;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};

use super::*;
use crate::tls::{Authority, Role, role_of};

/// A directory of its own that is removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("turnstone-tls-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(path.join("certs")).unwrap();
        Directory(path)
    }

    fn files(&self, name: &str) -> TlsFiles {
        let certs = self.0.join("certs");
        TlsFiles {
            cert: certs.join(format!("{name}.crt")),
            key: certs.join(format!("{name}.key")),
            ca: certs.join("ca.crt"),
        }
    }

    fn issue(&self, authority: &Authority, role: Role) -> TlsFiles {
        let files = self.files(role.name());
        let issued = authority.issue(role, &[], 30).unwrap();
        std::fs::write(&files.cert, issued.cert_pem).unwrap();
        std::fs::write(&files.key, issued.key_pem).unwrap();
        std::fs::write(&files.ca, authority.cert_pem()).unwrap();
        files
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn transfer(from: &mut Vec<u8>, read: impl FnOnce(&mut Cursor<&[u8]>) -> std::io::Result<usize>) {
    read(&mut Cursor::new(from.as_slice())).unwrap();
    from.clear();
}

/// Runs a handshake to its end or its first error.
fn shake(client: &mut ClientConnection, server: &mut ServerConnection) -> Result<(), rustls::Error> {
    for _ in 0..8 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        if !bytes.is_empty() {
            transfer(&mut bytes, |cursor| server.read_tls(cursor));
            server.process_new_packets()?;
        }
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        if !bytes.is_empty() {
            transfer(&mut bytes, |cursor| client.read_tls(cursor));
            client.process_new_packets()?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(())
}

fn pair(server: &TlsFiles, client: Arc<ClientConfig>) -> (ClientConnection, ServerConnection) {
    let name = ServerName::try_from("localhost").unwrap();
    let client = ClientConnection::new(client, name).unwrap();
    (client, ServerConnection::new(server_config(server).unwrap()).unwrap())
}

#[test]
fn both_sides_agree_on_dialect_suite_and_role() {
    let directory = Directory::new("agree");
    let authority = Authority::create().unwrap();
    let server_files = directory.issue(&authority, Role::Server);
    let offers = [
        (ClientOffer::V1, None),
        (ClientOffer::TURNSTONE2, Some(ALPN_TURNSTONE2)),
        (ClientOffer { dialect: Dialect::Turnstone2, partition_hint: Some(7) }, Some(ALPN_TURNSTONE2)),
    ];
    for role in Role::ALL {
        let files = directory.issue(&authority, role);
        for (offer, protocol) in offers {
            let (mut client, mut server) = pair(&server_files, client_config(&files, offer).unwrap());
            shake(&mut client, &mut server).unwrap();
            assert_eq!(server.alpn_protocol(), protocol);
            assert_eq!(client.alpn_protocol(), protocol);
            assert_eq!(server.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
            let suite = server.negotiated_cipher_suite().unwrap().suite();
            assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
            assert_eq!(role_of(&server.peer_certificates().unwrap()[0]), Ok(role));
        }
    }
}

#[test]
fn a_hint_precedes_the_protocol() {
    let offer = ClientOffer { dialect: Dialect::Turnstone2, partition_hint: Some(16) };
    assert_eq!(offer.protocols(), [b"turnstone-p16".to_vec(), b"turnstone/2".to_vec()]);
    assert!(ClientOffer { dialect: Dialect::V1, partition_hint: Some(1) }.protocols().is_empty());
}

#[test]
fn an_unknown_protocol_is_refused() {
    let directory = Directory::new("alpn");
    let authority = Authority::create().unwrap();
    let server_files = directory.issue(&authority, Role::Server);
    let files = directory.issue(&authority, Role::Client);
    let mut config = client_config(&files, ClientOffer::TURNSTONE2).unwrap().as_ref().clone();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (mut client, mut server) = pair(&server_files, Arc::new(config));
    assert_eq!(shake(&mut client, &mut server), Err(rustls::Error::NoApplicationProtocol));
}

#[test]
fn a_client_without_certificate_is_refused() {
    let directory = Directory::new("nocert");
    let authority = Authority::create().unwrap();
    let server_files = directory.issue(&authority, Role::Server);
    let roots = Material::read(&server_files, "", "").unwrap().roots;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (mut client, mut server) = pair(&server_files, Arc::new(config));
    assert_eq!(shake(&mut client, &mut server), Err(rustls::Error::NoCertificatesPresented));
}

#[test]
fn certificates_of_another_ca_are_refused_both_ways() {
    let ours = Directory::new("ours");
    let theirs = Directory::new("theirs");
    let authority = Authority::create().unwrap();
    let server_files = ours.issue(&authority, Role::Server);
    let client_files = ours.issue(&authority, Role::Client);
    let foreign = theirs.issue(&Authority::create().unwrap(), Role::Admin);

    // The foreign certificate, but our CA to check the server against.
    let mixed = TlsFiles { ca: client_files.ca.clone(), ..foreign.clone() };
    let (mut client, mut server) = pair(&server_files, client_config(&mixed, ClientOffer::V1).unwrap());
    assert!(matches!(shake(&mut client, &mut server), Err(rustls::Error::InvalidCertificate(_))));

    // Our certificate, but a CA that the server's certificate does not come from.
    let mixed = TlsFiles { ca: foreign.ca, ..client_files };
    let (mut client, mut server) = pair(&server_files, client_config(&mixed, ClientOffer::V1).unwrap());
    assert!(matches!(shake(&mut client, &mut server), Err(rustls::Error::InvalidCertificate(_))));
}

#[test]
fn a_client_certificate_does_not_make_a_server() {
    let directory = Directory::new("eku");
    let authority = Authority::create().unwrap();
    let files = directory.issue(&authority, Role::Client);
    let (mut client, mut server) = pair(&files, client_config(&files, ClientOffer::V1).unwrap());
    assert!(matches!(shake(&mut client, &mut server), Err(rustls::Error::InvalidCertificate(_))));
}

#[test]
fn nothing_is_resumed() {
    let directory = Directory::new("resume");
    let authority = Authority::create().unwrap();
    let server_files = directory.issue(&authority, Role::Server);
    let config = client_config(&directory.issue(&authority, Role::Client), ClientOffer::V1).unwrap();
    let server_config = server_config(&server_files).unwrap();
    for _ in 0..2 {
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = ClientConnection::new(config.clone(), name).unwrap();
        let mut server = ServerConnection::new(server_config.clone()).unwrap();
        shake(&mut client, &mut server).unwrap();
        assert_eq!(client.tls13_tickets_received(), 0);
        assert_eq!(server.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

#[test]
fn errors_name_the_file_and_the_next_step() {
    let directory = Directory::new("errors");
    let authority = Authority::create().unwrap();
    let files = directory.files("client");
    let text = client_config(&files, ClientOffer::V1).unwrap_err().to_string();
    let expected = format!(
        "no client certificate at {}; create it with: turnstone --init --home {}",
        files.cert.display(),
        directory.0.display()
    );
    assert_eq!(text, expected);

    directory.issue(&authority, Role::Client);
    std::fs::write(&files.key, "no key").unwrap();
    let text = client_config(&files, ClientOffer::V1).unwrap_err().to_string();
    assert!(text.contains("client.key") && text.contains("no private key"), "{text}");

    let other = authority.issue(Role::Client, &[], 30).unwrap();
    std::fs::write(&files.key, other.key_pem).unwrap();
    let text = client_config(&files, ClientOffer::V1).unwrap_err().to_string();
    assert!(text.contains("client.crt cannot be used"), "{text}");

    std::fs::write(&files.ca, "").unwrap();
    let text = server_config(&files).unwrap_err().to_string();
    assert!(text.contains("ca.crt") && text.contains("no certificate"), "{text}");
}

#[test]
fn the_home_in_a_hint_is_the_one_above_certs() {
    assert_eq!(home_of(Path::new("tsdata/certs/ca.crt")), "tsdata");
    assert_eq!(home_of(Path::new("certs/ca.crt")), ".");
    assert_eq!(home_of(Path::new("/etc/ssl/ca.crt")), "DIR");
}

#[test]
fn a_list_of_certificates_is_read_whole_or_refused_with_the_line() {
    let directory = Directory::new("lists");
    let path = directory.0.join("list.pem");
    let (one, two) = (Authority::create().unwrap(), Authority::create().unwrap());
    let (one, two) = (one.cert_pem().to_string(), two.cert_pem().to_string());
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        read_certificates("CA certificate", &path).map(|found| found.len()).map_err(|error| error.to_string())
    };
    assert_eq!(read(&format!("{one}{two}")), Ok(2));
    assert_eq!(read(&format!("about the first\n{}\nabout the second\n{two}", one.replace('\n', "\r\n"))), Ok(2));
    assert_eq!(read(&format!("{one}-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n{two}")), Ok(2));
    let lines = one.trim_end().lines().count();
    // What passed over a part of the list before.
    let joined = format!("{}{two}", one.trim_end());
    assert!(read(&joined).is_err_and(|e| e.contains(&format!("line {lines}: a section begins within the line"))));
    assert!(read(&format!("\u{feff}{one}{two}")).is_err_and(|e| e.contains("line 1: a byte order mark")));
    let indented = two.replace("-----BEGIN", "  -----BEGIN");
    assert!(read(&format!("{one}{indented}")).is_err_and(|e| e.contains(&format!("line {}: a section", lines + 1))));
    for label in ["TRUSTED CERTIFICATE", "X509 CERTIFICATE"] {
        let other = two.replace("CERTIFICATE-----", &format!("{label}-----").replace("CERTIFICATE CERT", "CERT"));
        assert!(
            read(&format!("{one}{other}")).is_err_and(|e| e.contains(&format!("a {label} is not read"))),
            "{label}"
        );
    }
    let cut = &two[..two.len() / 2];
    assert!(read(&format!("{one}{cut}")).is_err());
}
