//! Homes made, completed and left alone.

use std::collections::BTreeMap;

use turnstone_net::tls::{ClientOffer, client_config, server_config};

use super::*;
use crate::config::Config;

/// A directory of its own that is removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("turnstone-init-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    fn home(&self, name: &str) -> Home {
        Home::new(self.0.join(name))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn files(home: &Home) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for directory in [home.root().to_owned(), home.certs()] {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                found.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_fresh_home_is_complete_closed_and_usable() {
    let directory = Directory::new("fresh");
    let home = directory.home("a/b/tsdata");
    let report = init(&home, &InitOptions::default()).unwrap();
    assert_eq!(report.made.len(), 12);
    assert_eq!(files(&home).len(), 12);
    assert_eq!(mode(home.root()), 0o700);
    assert_eq!(mode(&home.certs()), 0o700);
    assert_eq!(mode(&home.ca_key()), 0o600);
    for role in Role::ALL {
        assert_eq!(mode(&home.key(role)), 0o600);
        client_config(&home.tls_files(role), ClientOffer::TURNSTONE2).unwrap();
    }
    let config = Config::load(&home, &[], std::iter::empty()).unwrap();
    server_config(&config.tls_files(&home)).unwrap();
    cdc_config::load(&home).unwrap();

    let shown = report.to_string();
    let root = home.root().display();
    let expected = format!(
        "Certificates generated in: {root}/certs\nSample configuration written to {root}/turnstone.json\n\
         Sample CDC configuration written to {root}/turnstone.cdc.json\n\nNext:\n  turnstone --home {root}\n  \
         turnstone-cli --home {root}\n"
    );
    assert_eq!(shown, expected);
}

#[test]
fn a_second_run_changes_nothing_and_says_so() {
    let directory = Directory::new("second");
    let home = directory.home("h");
    init(&home, &InitOptions::default()).unwrap();
    fs::write(home.config_file(), "{\"port\": \":7000\"}").unwrap();
    let before = files(&home);
    let options = InitOptions { hosts: vec!["db1".to_owned()], ca_from: None };
    let report = init(&home, &options).unwrap();
    assert_eq!(files(&home), before);
    assert_eq!((report.made.len(), report.kept.len()), (0, 12));
    let shown = report.to_string();
    assert!(shown.contains("Kept as they were: certs/ca.key, certs/ca.crt"), "{shown}");
    assert!(shown.contains("--host changed nothing"), "{shown}");
}

/// Whatever files of a finished home are missing, as long as each certificate there is has its key, the next run makes
/// them, leaves the rest alone, and what it makes fits the rest.
#[test]
fn any_half_finished_home_is_completed() {
    let directory = Directory::new("half");
    let whole = directory.home("whole");
    let order = init(&whole, &InitOptions::default()).unwrap().made;
    for done in 0..order.len() {
        let home = directory.home(&format!("cut-{done}"));
        make_directory(home.root()).unwrap();
        make_directory(&home.certs()).unwrap();
        for path in &order[..done] {
            fs::copy(path, home.root().join(path.strip_prefix(whole.root()).unwrap())).unwrap();
        }
        // What a run that was killed while writing leaves behind.
        fs::write(home.certs().join(".ca.key.tmp"), "half").unwrap();
        let before = files(&home);
        let report = init(&home, &InitOptions::default()).unwrap();
        assert_eq!(report.made.len(), order.len() - done, "cut at {done}");
        for (path, content) in before.iter().filter(|(path, _)| !path.ends_with(".ca.key.tmp")) {
            assert_eq!(&fs::read(path).unwrap(), content);
        }
        server_config(&home.tls_files(Role::Server)).unwrap();
        for role in Role::ALL {
            client_config(&home.tls_files(role), ClientOffer::V1).unwrap();
        }
    }
}

#[test]
fn missing_pieces_that_cannot_be_made_are_errors() {
    let directory = Directory::new("missing");
    let home = directory.home("h");
    init(&home, &InitOptions::default()).unwrap();

    // The CA key may be kept elsewhere as long as nothing has to be issued.
    let ca_key = fs::read(home.ca_key()).unwrap();
    fs::remove_file(home.ca_key()).unwrap();
    init(&home, &InitOptions::default()).unwrap();
    assert!(!home.ca_key().exists());
    fs::remove_file(home.cert(Role::Admin)).unwrap();
    let error = init(&home, &InitOptions::default()).unwrap_err().to_string();
    assert!(error.contains("ca.key is missing") && error.contains("--ca-from"), "{error}");

    fs::write(home.ca_key(), ca_key).unwrap();
    init(&home, &InitOptions::default()).unwrap();
    fs::remove_file(home.key(Role::Client)).unwrap();
    let error = init(&home, &InitOptions::default()).unwrap_err().to_string();
    assert!(error.contains("client.crt has no key"), "{error}");
}

#[test]
fn a_ca_can_be_taken_from_another_home() {
    let directory = Directory::new("cafrom");
    let (one, two) = (directory.home("one"), directory.home("two"));
    init(&one, &InitOptions::default()).unwrap();
    let from_one = InitOptions { hosts: vec!["db2".to_owned()], ca_from: Some(one.root().to_owned()) };
    init(&two, &from_one).unwrap();
    assert_eq!(fs::read(one.ca_cert()).unwrap(), fs::read(two.ca_cert()).unwrap());
    assert_eq!(mode(&two.ca_key()), 0o600);
    assert_ne!(fs::read(one.cert(Role::Server)).unwrap(), fs::read(two.cert(Role::Server)).unwrap());
    // Again is fine, another CA is not.
    init(&two, &from_one).unwrap();
    let three = directory.home("three");
    init(&three, &InitOptions::default()).unwrap();
    let before = files(&three);
    let error = init(&three, &from_one).unwrap_err().to_string();
    assert!(error.contains("belongs to another CA"), "{error}");
    assert_eq!(files(&three), before);

    let none = InitOptions { hosts: vec![], ca_from: Some(directory.0.join("none")) };
    assert!(init(&directory.home("four"), &none).unwrap_err().to_string().starts_with("--ca-from: "));
}

#[test]
fn bad_host_names_leave_no_key_behind() {
    let directory = Directory::new("names");
    let home = directory.home("h");
    let options = InitOptions { hosts: vec!["a b".to_owned()], ca_from: None };
    let error = init(&home, &options).unwrap_err().to_string();
    assert!(error.contains("'a b' is neither a host name nor an IP address"), "{error}");
    assert!(!home.key(Role::Server).exists());
    let options = InitOptions { hosts: vec!["db1.example.com".to_owned(), "192.0.2.1".to_owned()], ca_from: None };
    init(&home, &options).unwrap();
}

#[test]
fn open_keys_are_told() {
    let directory = Directory::new("modes");
    let home = directory.home("h");
    init(&home, &InitOptions::default()).unwrap();
    fs::set_permissions(home.key(Role::Admin), fs::Permissions::from_mode(0o644)).unwrap();
    let shown = init(&home, &InitOptions::default()).unwrap().to_string();
    assert!(shown.contains("admin.key can be read by others; close it with: chmod 600"), "{shown}");
    assert_eq!(mode(&home.key(Role::Admin)), 0o644);
}
