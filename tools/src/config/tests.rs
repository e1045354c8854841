//! The settings as a person meets them.

use std::time::Duration;

use super::*;

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn load(text: &str, flags: &[(&str, &str)], env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::from_parts("turnstone.json", text, &pairs(flags), pairs(env).into_iter())
}

fn error(text: &str, flags: &[(&str, &str)], env: &[(&str, &str)]) -> String {
    load(text, flags, env).unwrap_err().to_string()
}

#[test]
fn defaults_are_those_of_the_requirement() {
    let config = Config::defaults().unwrap();
    assert_eq!(config.port, ":6379");
    assert_eq!(config.max_conns, 1000);
    assert_eq!(config.number_of_partitions, 16);
    assert_eq!(config.tls_cert_file.to_str(), Some("certs/server.crt"));
    assert_eq!(config.tls_key_file.to_str(), Some("certs/server.key"));
    assert!(config.tls_client_auth);
    assert_eq!(config.wal_max_size, 10 << 20);
    assert_eq!(config.wal_retention, Duration::from_secs(7200));
    assert_eq!(config.compaction_min_garbage, 1 << 20);
    assert!(!config.truncate_corrupt_wal);
    assert_eq!(config.max_key_size, 65_000);
    assert_eq!(config.value_separation, 4096);
    assert_eq!(config.not_in_force(), [] as [&str; 0]);
    assert!(config.settings().all(|(_, _, source)| source == Source::Default));
    assert_eq!(config.listen_address().unwrap().to_string(), "0.0.0.0:6379");
}

#[test]
fn the_sample_file_says_the_defaults() {
    let text = sample_json();
    let config = load(&text, &[], &[]).unwrap();
    let defaults = Config::defaults().unwrap();
    for ((key, value, source), (_, default, _)) in config.settings().zip(defaults.settings()) {
        assert_eq!(value, default, "{}", key.name);
        assert_eq!(source, if key.sample { Source::File } else { Source::Default }, "{}", key.name);
    }
    assert_eq!(KEYS.iter().filter(|key| key.sample).count(), 10);
    assert!(text.contains("  \"wal_max_size\": \"10MB\",\n"), "{text}");
}

#[test]
fn flag_beats_variable_beats_file() {
    let text = r#"{"max_conns": 1, "wal_max_size": "1MB", "executors": 1}"#;
    let env = [("TURNSTONE_MAX_CONNS", "2"), ("TURNSTONE_WAL_MAX_SIZE", "2MB"), ("PATH", "/bin")];
    let config = load(text, &[("max-conns", "3")], &env).unwrap();
    assert_eq!((config.max_conns, config.source("max_conns")), (3, Some(Source::Flag)));
    assert_eq!((config.wal_max_size, config.source("wal_max_size")), (2 << 20, Some(Source::Env)));
    assert_eq!((config.executors, config.source("executors")), (1, Some(Source::File)));
    assert_eq!(config.source("port"), Some(Source::Default));
    assert_eq!(config.source("nonsense"), None);
}

#[test]
fn unknown_keys_name_line_and_neighbour() {
    let text = "{\n  \"port\": \":6379\",\n  \"wal_maxsize\": \"10MB\"\n}";
    let expected = "turnstone.json:3: there is no key 'wal_maxsize'\n  did you mean 'wal_max_size'?";
    assert_eq!(error(text, &[], &[]), expected);
    assert_eq!(error("{\"zzz\": 1}", &[], &[]), "turnstone.json:1: there is no key 'zzz'");
    let text = error("{}", &[], &[("TURNSTONE_MAX_CONN", "1")]);
    assert!(text.contains("did you mean TURNSTONE_MAX_CONNS?"), "{text}");
    assert!(load("{}", &[], &[("TURNSTONE_HOME", "x"), ("TURNSTONE_HISTFILE", "y"), ("TURNSTONE_HOST", "z")]).is_ok());
    assert!(error("{}", &[("nonsense", "1")], &[]).starts_with("--nonsense"));
}

#[test]
fn all_unknown_keys_are_named_at_once_with_what_stands_for_them() {
    let text = "{\n\"id\": \"a\",\n\"debug\": true,\n\"number_of_databases\": 4,\n\"zzz\": 1,\n\"prot\": \":1\"\n}";
    let expected = "turnstone.json:3: there is no key 'debug'\n  'log_level' stands for it: \"debug\"\n  \
                    turnstone.json:4: there is no key 'number_of_databases': 'number_of_partitions' stands for it, from 1 to \
                    16\n  turnstone.json:5: there is no key 'zzz'\n  turnstone.json:6: there is no key 'prot': did you mean \
                    'port'?";
    assert_eq!(error(text, &[], &[]), expected);
}

#[test]
fn wrong_values_name_line_key_and_example() {
    let text = error("{\n\"wal_retention\": 2\n}", &[], &[]);
    assert_eq!(text, "turnstone.json:2: wal_retention: 2 is not a duration; for example \"30s\"");
    let text = error("{\n\n\"wal_max_size\": \"10XB\"}", &[], &[]);
    assert!(text.starts_with("turnstone.json:3: wal_max_size: '10XB' is no size;"), "{text}");
    let text = error("{\"wal_max_size\": \"1KB\"}", &[], &[]);
    assert!(text.contains("1KiB is out of range; it must be 64KiB to 1GiB"), "{text}");
    let text = error("{}", &[], &[("TURNSTONE_MAX_CONNS", "many")]);
    assert!(text.starts_with("TURNSTONE_MAX_CONNS: 'many' is no whole number"), "{text}");
    let text = error("{}", &[("wal_retention", "2")], &[]);
    assert!(text.starts_with("--wal-retention: '2' is no duration;"), "{text}");
    for partitions in ["0", "17", "1.5", "\"16\"", "-1", "null"] {
        let text = error(&format!("{{\"number_of_partitions\": {partitions}}}"), &[], &[]);
        assert!(text.contains("number_of_partitions"), "{text}");
    }
    // A wrong value is an error even where something else overrides it.
    assert!(load("{\"max_conns\": 0}", &[("max_conns", "5")], &[]).is_err());
}

#[test]
fn repeated_keys_are_errors() {
    assert!(error("{\"port\": \":1\",\n\"port\": \":2\"}", &[], &[]).starts_with("turnstone.json:2: 'port'"));
}

#[test]
fn client_auth_cannot_be_turned_off() {
    let text = error("{\n\"tls_client_auth\": false}", &[], &[]);
    assert!(text.starts_with("turnstone.json:2: tls_client_auth: false is refused"), "{text}");
    assert!(text.contains("mutually authenticated"), "{text}");
    assert!(load("{}", &[("tls_client_auth", "false")], &[]).is_err());
    assert!(load("{\"tls_client_auth\": true}", &[], &[]).is_ok());
}

#[test]
fn values_must_fit_transactions_and_requests() {
    let text = error("{\"max_value_size\": \"65MiB\"}", &[], &[]);
    assert!(text.contains("max_tx_size (64MiB)"), "{text}");
    let text = error("{\"max_value_size\": \"65MiB\", \"max_tx_size\": \"1GB\"}", &[], &[]);
    assert!(text.contains("max_request_size (64MiB)"), "{text}");
}

#[test]
fn keys_not_in_force_are_checked_and_named() {
    let text = r#"{"compaction_min_garbage": "2MB", "min_replicas": 0, "flush": "per-file", "id": "a"}"#;
    let config = load(text, &[], &[("TURNSTONE_METRICS_ADDR", ":9090")]).unwrap();
    assert_eq!(config.not_in_force(), ["compaction_min_garbage", "metrics_addr", "id"]);
    assert!(load(r#"{"compaction_min_garbage": "2XB"}"#, &[], &[]).is_err());
    // The default in another spelling is still the default.
    assert!(load(r#"{"compaction_min_garbage": "1024KiB"}"#, &[], &[]).unwrap().not_in_force().is_empty());
}

#[test]
fn ports_have_short_forms() {
    for (text, expected) in [
        ("\":6379\"", "0.0.0.0:6379"),
        ("\"6380\"", "0.0.0.0:6380"),
        ("6380", "0.0.0.0:6380"),
        ("\"db1:6379\"", "db1:6379"),
        ("\"[::1]:6379\"", "[::1]:6379"),
    ] {
        let config = load(&format!("{{\"port\": {text}}}"), &[], &[]).unwrap();
        assert_eq!(config.listen_address().unwrap().to_string(), expected);
    }
    assert!(load("{\"port\": 70000}", &[], &[]).is_err());
}

#[test]
fn every_key_is_a_flag_a_variable_and_a_line_of_json() {
    for key in KEYS {
        assert!(!key.about.is_empty());
        let command = clap::Command::new("t").args(flag_args());
        let flag = format!("--{}", key.flag());
        let value = if key.default.is_empty() { "a" } else { key.default };
        let matches = command.try_get_matches_from(["t", &flag, value]).unwrap();
        let flags = flags_from(&matches);
        assert_eq!(flags, pairs(&[(key.name, value)]));
        let from_flag = Config::from_parts("f", "{}", &flags, std::iter::empty()).unwrap();
        assert_eq!(from_flag.source(key.name), Some(Source::Flag));
        let from_env = load("{}", &[], &[(&key.variable(), value)]).unwrap();
        assert_eq!(from_env.source(key.name), Some(Source::Env));
    }
    assert!(flags_from(&clap::Command::new("t").args(flag_args()).get_matches_from(["t"])).is_empty());
}

#[test]
fn switches_may_stand_alone() {
    let command = || clap::Command::new("t").args(flag_args());
    let matches = command().try_get_matches_from(["t", "--truncate-corrupt-wal", "--executors", "2"]).unwrap();
    assert_eq!(flags_from(&matches), pairs(&[("truncate_corrupt_wal", "true"), ("executors", "2")]));
    assert!(command().try_get_matches_from(["t", "--executors", "1", "--executors", "2"]).is_err());
}

#[test]
fn a_home_without_file_says_how_to_make_one() {
    let home = Home::new("/nonexistent/tsdata");
    let text = Config::load(&home, &[], std::iter::empty()).unwrap_err().to_string();
    assert!(text.contains("turnstone --init --home /nonexistent/tsdata"), "{text}");
}
