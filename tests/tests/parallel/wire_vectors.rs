//! Frames captured from the original, replayed in order over mutual TLS: status bytes and order are the contract.
//!
//! Where TurnstoneDB deliberately differs, the exception below states the reply that is expected instead, and why; there
//! are no other differences. Texts are ours, so error bodies are not compared; results are.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use turnstone_net::client::Connection;
use turnstone_net::tls::{ClientOffer, Role};
use turnstone_tests::real::TestHome;

const VECTORS: &str = include_str!("../data/wire-vectors-seed.json");

/// What is expected instead of the captured statuses.
enum Instead {
    /// These statuses, one per request frame.
    Statuses(&'static [u8]),
    /// Status 0 and a JSON object.
    Json,
}

fn exception(name: &str) -> Option<(Instead, &'static str)> {
    let short = name.trim_start_matches("seed/session/").split('-').next().unwrap_or("");
    let ascii = "keys are any bytes: the payload is well formed";
    Some(match short {
        "029" => (Instead::Statuses(&[0]), ascii),
        "030" => (Instead::Statuses(&[2]), "keys are any bytes: this one is absent"),
        "031" => (Instead::Statuses(&[0]), ascii),
        "042" => (Instead::Json, "Stat is for the client role, too, and answers JSON"),
        "046" => (Instead::Statuses(&[3]), "MGet exists; it needs a transaction"),
        "047" | "049" | "061" => (Instead::Json, "Stat answers JSON"),
        "051" => (Instead::Statuses(&[0]), "Promote exists, and a leader may be promoted"),
        "086" => (Instead::Statuses(&[1]), "65,537 bytes are within the limit, and partition 0 is read-only"),
        "092" => (Instead::Statuses(&[1]), "select inside a transaction is refused"),
        "093" => (Instead::Statuses(&[0]), "so the write goes to partition 1, where the transaction is"),
        "102" => (Instead::Statuses(&[1]), "select inside a transaction is refused"),
        "103" => (Instead::Statuses(&[1]), "so the write goes to partition 0, which is read-only"),
        "106" => (Instead::Statuses(&[2]), "so nothing was written to partition 0"),
        _ => return None,
    })
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex")).collect()
}

/// Splits replies into statuses and bodies.
fn frames(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut found = Vec::new();
    while bytes.len() >= 5 {
        let length = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize;
        found.push((bytes[0], bytes[5..5 + length].to_vec()));
        bytes = &bytes[5 + length..];
    }
    found
}

/// Reads whole replies, as many as expected; `None` at the end of the stream.
fn read_frames(connection: &mut Connection, count: usize) -> Option<Vec<(u8, Vec<u8>)>> {
    let (mut have, mut buffer) = (Vec::new(), [0u8; 65536]);
    loop {
        let whole = {
            let (mut at, mut n) = (0, 0);
            while have.len() >= at + 5 {
                let length = u32::from_be_bytes([have[at + 1], have[at + 2], have[at + 3], have[at + 4]]) as usize;
                if have.len() < at + 5 + length {
                    break;
                }
                at += 5 + length;
                n += 1;
            }
            n
        };
        if whole >= count {
            return Some(frames(&have));
        }
        match connection.raw_read(&mut buffer) {
            Ok(0) => return None,
            Ok(n) => have.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return None,
            Err(error) => panic!("no reply: {error}"),
        }
    }
}

#[test]
fn the_originals_frames_get_the_originals_statuses() {
    let home = TestHome::new("vectors");
    let server = home.serve(&[]);
    let all: Vec<serde_json::Value> = serde_json::from_str(VECTORS).expect("the vectors are JSON");
    let mut connections: BTreeMap<String, Connection> = BTreeMap::new();
    let (mut equal, mut excepted) = (0, 0);
    for vector in &all[1..] {
        let text = |field: &str| vector[field].as_str().expect("a text").to_string();
        let name = text("name");
        let connection = connections.entry(text("conn")).or_insert_with(|| {
            let role = Role::from_name(&text("role")).expect("a role");
            Connection::connect(&home.client(&server, role, ClientOffer::V1)).expect("it connects")
        });
        let request = bytes(&text("request_hex"));
        connection.raw_write(&request).expect("it is sent");
        let captured = frames(&bytes(&text("response_hex")));
        match exception(&name) {
            None if captured.is_empty() => {
                assert_eq!(read_frames(connection, 1), None, "{name}: closed without a reply")
            }
            None => {
                let got = read_frames(connection, captured.len()).unwrap_or_else(|| panic!("{name}: closed"));
                let statuses = |f: &[(u8, Vec<u8>)]| f.iter().map(|(s, _)| *s).collect::<Vec<_>>();
                assert_eq!(statuses(&got), statuses(&captured), "{name}: {}", text("note"));
                for ((status, body), (_, expected)) in got.iter().zip(&captured) {
                    if *status == 0 {
                        assert_eq!(body, expected, "{name}: the result");
                    }
                }
                equal += 1;
            }
            Some((instead, why)) => {
                excepted += 1;
                match instead {
                    Instead::Statuses(expected) => {
                        let got = read_frames(connection, expected.len()).unwrap_or_else(|| panic!("{name}: closed"));
                        let got: Vec<u8> = got.iter().map(|(s, _)| *s).collect();
                        assert_eq!(got, expected, "{name}: {why}");
                    }
                    Instead::Json => {
                        let got = read_frames(connection, 1).unwrap_or_else(|| panic!("{name}: closed"));
                        assert_eq!(got[0].0, 0, "{name}: {why}");
                        serde_json::from_slice::<serde_json::Value>(&got[0].1).expect("JSON");
                    }
                }
            }
        }
    }
    println!("{equal} vectors equal, {excepted} differ as stated");
}
