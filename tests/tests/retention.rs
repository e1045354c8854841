//! The log that is kept: never more than the settings allow, with and without a hold; a held position stays readable up to
//! the hold's limit, and then is a typed error.
//!
//! `TURNSTONE_RESTARTS=N` sets how often the server is restarted.

use std::time::Duration;
use turnstone_net::client::Connection;
use turnstone_net::tls::Role;
use turnstone_net::wire::{ErrorCode, Request};
use turnstone_tests::real::{TestHome, eventually, figure};

const MIB: u64 = 1 << 20;
/// 16 partitions share 32 MiB.
const FLAGS: &[&str] = &[
    "--wal-max-size",
    "256KiB",
    "--wal-retention-bytes",
    "32MiB",
    "--checkpoint-wal-bytes",
    "1MiB",
    "--checkpoint-interval",
    "300ms",
    "--checkpoint-bytes",
    "1MiB",
];
const LIMIT: u64 = 32 * MIB;
const HOLD_LIMIT: u64 = 40 * MIB;

fn load(connection: &mut Connection, rounds: u32, seed: u32) {
    let (value, large) = (vec![b'x'; 2000], vec![b'y'; 20_000]);
    for round in 0..rounds {
        let keys: Vec<Vec<u8>> =
            (0..100u32).map(|n| format!("{}", (n * 7 + round + seed) % 500).into_bytes()).collect();
        for (n, key) in keys.iter().enumerate() {
            let value = if n % 20 == 0 { &large } else { &value };
            connection.send(&Request::Set { key, value }).unwrap();
        }
        connection.flush().unwrap();
        for _ in &keys {
            let reply = connection.receive().unwrap();
            connection.check(reply).unwrap();
        }
    }
}

fn read_from(connection: &mut Connection, version: u64) -> Result<(), ErrorCode> {
    let request = Request::ReadLog { version, limit_bytes: 1 << 16 };
    match connection.call(&request).and_then(|r| connection.check(r)) {
        Ok(reply) => {
            let text = String::from_utf8(reply.body).unwrap();
            assert!(text.starts_with(&format!("version {version}:")), "{text}");
            Ok(())
        }
        Err(error) => Err(error.code().expect("a typed error")),
    }
}

#[test]
fn kept_log_stays_within_its_settings_over_restarts() {
    let restarts: u32 = std::env::var("TURNSTONE_RESTARTS").ok().and_then(|n| n.parse().ok()).unwrap_or(100);
    let home = TestHome::new("retention");
    let (mut most, mut most_held, mut most_pinned) = (0, 0, 0);
    let mut held: Option<u64> = None;
    // Kept bytes, and those of value files that a flush would add to them, at the last look.
    let mut last = 0;
    let (mut readable, mut purged) = (0, 0);
    for restart in 0..restarts {
        let mut server = home.serve(FLAGS);
        let mut admin = home.connect(&server, Role::Admin, 9);
        if restart == restarts / 3 {
            // From now on somebody wants to read from here.
            let hold = Request::Hold { name: b"reader", epoch: 0, version: 0, limit_bytes: HOLD_LIMIT };
            let reply = admin.call(&hold).and_then(|r| admin.check(r)).unwrap();
            let position = String::from_utf8(reply.body).unwrap();
            held = position.rsplit(':').next().and_then(|v| v.parse().ok());
        }
        if restart % 10 == 9 {
            // Everything goes; the value files stay as long as kept log points into them.
            admin.call(&Request::FlushDb).and_then(|r| admin.check(r)).unwrap();
        }
        for part in 0..3 {
            load(&mut admin, 4, restart * 31 + part);
            let stat = admin.stat().unwrap();
            let pinned = figure(&stat, "value_pinned_bytes");
            most_pinned = most_pinned.max(pinned);
            let kept = figure(&stat, "wal_checkpointed_bytes") + pinned;
            if held.is_some() {
                most_held = most_held.max(kept)
            } else {
                most = most.max(kept)
            }
            let before = std::mem::replace(&mut last, kept + figure(&stat, "value_used_bytes") - pinned);
            if let Some(version) = held {
                match read_from(&mut admin, version) {
                    Ok(()) => {
                        assert_eq!(purged, 0, "a broken hold does not come back");
                        readable += 1;
                    }
                    Err(code) => {
                        assert_eq!(code, ErrorCode::Purged);
                        if purged == 0 {
                            // The hold was broken for its limit: what was kept just before, and what a flush made the log
                            // alone pin, came to as much.
                            let could = before + 4 * MIB;
                            assert!(could >= HOLD_LIMIT, "purged although at most {could} bytes were kept");
                        }
                        purged += 1;
                    }
                }
            }
        }
        if restart % 2 == 0 {
            server.kill();
        } else {
            assert!(server.stop().0.success());
        }
    }
    println!(
        "{restarts} restarts, flushes among them (up to {} KiB of value files pinned by log alone): \
         at most {} MiB of checkpointed log without a hold (limit {}), {} MiB with one (limit \
         {}); \
         the held position was readable {readable} times, then purged {purged} times",
        most_pinned >> 10,
        most / MIB,
        LIMIT / MIB,
        most_held / MIB,
        HOLD_LIMIT / MIB
    );
    assert!(most <= LIMIT && most_held <= HOLD_LIMIT);
    assert!(readable > 0 && most_pinned > 0);
}

/// Loads `partition` until it keeps `wanted` bytes, never faster than shares are handed out.
fn fill(connection: &mut Connection, partition: u8, wanted: u64) {
    let kept = |stat: &str| figure(stat, "wal_checkpointed_bytes") + figure(stat, "value_pinned_bytes");
    let most = wanted / MIB * 4;
    for round in 0..most {
        load(connection, 2, round as u32 * 31);
        let mut stat = String::new();
        eventually(Duration::from_secs(60), "room for the next round", || {
            stat = connection.stat().unwrap();
            // A round makes half a MiB of log.
            let used = figure(&stat, "wal_used_bytes") + figure(&stat, "value_pinned_bytes");
            figure(&stat, "log_share_bytes") >= used + MIB * 3 / 4
        });
        if kept(&stat) >= wanted {
            return;
        }
    }
    panic!("partition {partition} keeps less than {wanted} bytes after {most} rounds");
}

/// A partition keeps more than its claim while the node has room, a restart takes nothing of it, and what it keeps beyond
/// its claim goes when another claims it.
#[test]
fn a_partition_keeps_what_the_node_has_room_for() {
    let home = TestHome::new("retention-room");
    let mut first = 0;
    for restart in 0..4 {
        let mut server = home.serve(FLAGS);
        let mut admin = home.connect(&server, Role::Admin, 9);
        if restart == 0 {
            // More than the half of the total and the floor that are the claim of a partition that alone is written to.
            fill(&mut admin, 9, 22 * MIB);
            first = figure(&admin.stat().unwrap(), "wal_oldest_version");
        }
        let mut stat = String::new();
        eventually(Duration::from_secs(60), "a share of the room that is left", || {
            stat = admin.stat().unwrap();
            // Once all of it is settled again, which a killed server has to do first.
            figure(&stat, "wal_checkpointed_bytes") >= 21 * MIB
                && figure(&stat, "log_share_bytes") > figure(&stat, "wal_checkpointed_bytes")
        });
        assert_eq!(figure(&stat, "segments_purged"), 0, "restart {restart}: {stat}");
        assert_eq!(figure(&stat, "wal_oldest_version"), first, "restart {restart}: {stat}");
        assert_eq!(read_from(&mut admin, first), Ok(()), "restart {restart}");
        if restart == 3 {
            let mut other = home.connect(&server, Role::Admin, 3);
            fill(&mut other, 3, 12 * MIB);
            let mut kept = [0, 0];
            eventually(Duration::from_secs(60), "both within the total", || {
                kept = [&mut admin, &mut other].map(|c| figure(&c.stat().unwrap(), "wal_checkpointed_bytes"));
                kept.iter().sum::<u64>() <= LIMIT
            });
            assert!(kept[0] >= 12 * MIB && kept[1] >= 11 * MIB, "{kept:?}");
            println!("22 MiB kept over restarts; then {} and {} KiB", kept[0] >> 10, kept[1] >> 10);
        }
        if restart % 2 == 0 {
            server.kill();
        } else {
            assert!(server.stop().0.success());
        }
    }
}
