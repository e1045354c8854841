//! Bad bytes behind a good handshake: frames that lie about their lengths, ask for what they may not, never end, or whose
//! replies nobody reads.

use super::dial::{Expect, How, Link, PATIENCE};
use super::{Attack, Case, Ground};
use rustls::ClientConfig;
use std::io::Write;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};
use turnstone_net::wire::{Dialect, Request, frame};
use turnstone_tools::bench::workload::Numbers;

/// Under this key the campaign keeps a value of [`BIG_BYTES`] in partition 1.
pub const BIG_KEY: &[u8] = b"big";
/// So many of them as a client asks for here are more than sockets buffer.
pub const BIG_BYTES: usize = 256 << 10;

const TWO: Dialect = Dialect::Turnstone2;

/// All cases.
pub fn cases() -> Vec<Case> {
    let case = |name, expect, reason, weight, attack: fn(&Ground, &mut Numbers) -> How| Case {
        name,
        expect,
        reason,
        weight,
        attack: Attack::Run(attack),
    };
    let (malformed, large) = (Expect::Typed(&["MALFORMED"]), Expect::Typed(&["REQUESTTOOLARGE"]));
    let denied = Expect::Typed(&["DENIED"]);
    vec![
        case("a frame of 4 GiB announced", large, "max_request_size", 4, |g, _| {
            raw(g, &[&[0x03, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 1][..], &[0; 500]].concat())
        }),
        case("a frame one byte too long", large, "max_request_size", 4, |g, _| {
            raw(g, &[&[0x04][..], &((64u32 << 20) + 1).to_be_bytes(), &[0, 0, 0, 1]].concat())
        }),
        case(
            "MGet of 4,294,967,295 keys",
            Expect::Typed(&["MALFORMED", "REQUESTTOOLARGE"]),
            "refused: mget",
            4,
            |g, _| framed(g, &g.client, 0x06, &[0xFF; 8]),
        ),
        case("MGet of a key of 4 GiB", malformed, "refused: mget", 4, |g, _| {
            framed(g, &g.client, 0x06, &[0, 0, 0, 1, 0xFF, 0xFF, 0xFF, 0xFF, b'k'])
        }),
        case("MSet whose lengths overflow", malformed, "refused: mset", 4, |g, _| {
            framed(g, &g.client, 0x07, &[&[0, 0, 0, 2][..], &[0xFF, 0xFF, 0xFF, 0xF0].repeat(4)].concat())
        }),
        case("MDel with bytes behind", malformed, "refused: mdel", 4, |g, _| {
            framed(g, &g.client, 0x08, &[0, 0, 0, 1, 0, 0, 0, 1, b'k', 9, 9])
        }),
        case("Set with a key longer than its frame", malformed, "refused: set", 4, |g, _| {
            framed(g, &g.client, 0x03, &[0, 0, 0, 200, b'k'])
        }),
        case("Set cut short in its length", malformed, "refused: set", 4, |g, _| framed(g, &g.client, 0x03, &[0, 0])),
        case("an opcode that does not exist", denied, "opcode 0x77", 4, |g, _| framed(g, &g.client, 0x77, b"")),
        case("the same as admin", Expect::Typed(&["UNKNOWNOPCODE"]), "0x77 is unknown", 4, |g, _| {
            framed(g, &g.admin, 0x77, b"")
        }),
        case("the original's replication", Expect::Typed(&["UNKNOWNOPCODE"]), "opcode 0x50", 4, |g, _| {
            framed(g, &g.client, 0x50, b"1")
        }),
        case("a client that empties a partition", denied, "opcode 0x37", 4, |g, _| framed(g, &g.client, 0x37, b"")),
        case("a client that promotes", denied, "opcode 0x34", 4, |g, _| framed(g, &g.client, 0x34, &[0; 4])),
        case("a cdc that reads a key", denied, "opcode 0x02", 4, |g, _| framed(g, &g.cdc, 0x02, b"k")),
        case("a partition that does not exist", Expect::Typed(&["NOSUCHPARTITION"]), "", 4, |g, _| {
            framed(g, &g.client, 0x05, b"4294967297")
        }),
        case("a key of 65,001 bytes", Expect::Typed(&["KEYTOOLARGE"]), "", 4, |g, _| framed_in(g, 0x04, &[7; 65_001])),
        case("a key of no bytes", Expect::Typed(&["KEYEMPTY"]), "", 4, |g, _| framed_in(g, 0x03, &[0, 0, 0, 0, 1])),
        case("Redis inside TLS", large, "max_request_size", 4, |g, _| raw(g, b"*1\r\n$4\r\nPING\r\n")),
        case("HTTP inside TLS", large, "max_request_size", 4, |g, _| raw(g, b"GET / HTTP/1.1\r\n\r\n")),
        case("noise inside TLS", Expect::Left, "", 4, |g, numbers| {
            let bytes: Vec<u8> = (0..2048).map(|_| numbers.draw() as u8).collect();
            with(g, &g.client, |link| link.send(&bytes).map_or_else(|how| how, |()| How::Left))
        }),
        case("a frame cut short, goodbye", Expect::Ended, "", 4, |g, _| {
            with(g, &g.client, |link| match link.send(&[0x03, 0, 0, 1]) {
                Ok(()) => {
                    link.goodbye();
                    link.reply()
                }
                Err(how) => how,
            })
        }),
        case("half-closed behind a request", Expect::Left, "", 4, |g, _| {
            with(g, &g.client, |link| match link.ask(&Request::Ping, 1) {
                Ok(()) => {
                    let _ = link.socket.shutdown(Shutdown::Write);
                    How::Left
                }
                Err(how) => how,
            })
        }),
        case("gone with a transaction open", Expect::Left, "", 4, |g, _| {
            with(g, &g.client, |link| {
                let asked = link
                    .ask(&Request::Select { name: b"1" }, 1)
                    .and_then(|()| link.ask(&Request::Begin, 2))
                    .and_then(|()| link.ask(&Request::Set { key: b"left", value: b"behind" }, 3));
                asked.map_or_else(|how| how, |()| How::Left)
            })
        }),
        case("records that TLS cannot open", Expect::Alert(&["BadRecordMac"]), "encrypted as agreed", 4, |g, _| {
            in_clear(g, &[&[23, 3, 3, 0, 64][..], &[9; 64]].concat())
        }),
        case("a frame in clear behind the handshake", Expect::Alert(&[]), "encrypted as agreed", 4, |g, _| {
            in_clear(g, &[0x01, 0, 0, 0, 0, 0, 0, 0, 1])
        }),
        case("a handshake inside the session", Expect::Alert(&[]), "encrypted as agreed", 4, |g, _| {
            in_clear(g, &super::dial::hello(&g.client))
        }),
        case("new keys ten times", Expect::Served, "", 4, |g, _| new_keys(g, 10)),
        case("new keys a thousand times", Expect::Ended, "encrypted as agreed", 4, |g, _| new_keys(g, 1000)),
        case("a frame a byte at a time", Expect::Served, "", 4, |g, _| {
            with(g, &g.client, |link| {
                let mut bytes = Vec::new();
                frame::encode(TWO, 0x01, 1, &[b"so what"], &mut bytes).expect("it fits");
                for byte in bytes {
                    if let Err(how) = link.send(&[byte]) {
                        return how;
                    }
                }
                link.reply()
            })
        }),
        case("a frame that drips for ever", Expect::Ended, "request_timeout", 1, |g, _| drip(g, 1000)),
        case("a long frame that drips for ever", Expect::Ended, "request_timeout", 1, |g, _| drip(g, 32 << 20)),
        case("a frame too long that drips for ever", Expect::Ended, "request_timeout", 1, |g, _| drip(g, u32::MAX)),
        case("half a frame, silent", Expect::Ended, "request_timeout", 1, |g, _| {
            with(g, &g.client, |link| match link.send(&[0x02, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 1]) {
                Ok(()) => link.reply(),
                Err(how) => how,
            })
        }),
        case("replies that nobody reads", Expect::Ended, "write_timeout", 1, never_reads),
    ]
}

fn with(ground: &Ground, config: &Arc<ClientConfig>, work: impl FnOnce(&mut Link) -> How) -> How {
    match Link::open(ground.address, config, "localhost") {
        Ok(mut link) => work(&mut link),
        Err(how) => how,
    }
}

/// Sends bytes as they are.
fn raw(ground: &Ground, bytes: &[u8]) -> How {
    with(ground, &ground.client, |link| link.send(bytes).map_or_else(|how| how, |()| link.reply()))
}

fn framed(ground: &Ground, config: &Arc<ClientConfig>, opcode: u8, payload: &[u8]) -> How {
    with(ground, config, |link| after_select(link, config, ground, opcode, payload))
}

fn framed_in(ground: &Ground, opcode: u8, payload: &[u8]) -> How {
    framed(ground, &ground.client, opcode, payload)
}

/// On partition 1, so that partition 0 is not the reason; a cdc may not select.
fn after_select(link: &mut Link, config: &Arc<ClientConfig>, ground: &Ground, opcode: u8, payload: &[u8]) -> How {
    let mut bytes = Vec::new();
    let selects = !Arc::ptr_eq(config, &ground.cdc);
    if selects {
        Request::Select { name: b"1" }.encode_frame(TWO, 1, &mut bytes).expect("it fits");
    }
    frame::encode(TWO, opcode, 2, &[payload], &mut bytes).expect("it fits");
    match link.send(&bytes) {
        Ok(()) if !selects => link.reply(),
        Ok(()) => match link.reply() {
            How::Served => link.reply(),
            how => how,
        },
        Err(how) => how,
    }
}

/// New keys without anything in between, behind a good request: its answer shows that the session stands.
fn new_keys(ground: &Ground, times: usize) -> How {
    with(ground, &ground.client, |link| {
        let greeted = link.ask(&Request::Ping, 1).map_or_else(|how| how, |()| link.reply());
        if greeted != How::Served {
            return greeted;
        }
        for _ in 0..times {
            if let Err(how) = link.new_keys() {
                return how;
            }
        }
        link.ask(&Request::Ping, 2).map_or_else(|how| how, |()| link.reply())
    })
}

/// Sends bytes past TLS, behind a good request.
fn in_clear(ground: &Ground, bytes: &[u8]) -> How {
    with(ground, &ground.client, |link| {
        match link.ask(&Request::Ping, 1).map_or_else(|how| how, |()| link.reply()) {
            How::Served => {}
            how => return how,
        }
        match link.socket.write_all(bytes) {
            Ok(()) => link.reply(),
            Err(_) => How::Closed,
        }
    })
}

/// A frame of this length, in records of one byte.
fn drip(ground: &Ground, length: u32) -> How {
    with(ground, &ground.client, |link| {
        let started = Instant::now();
        let header = [&[0x04][..], &length.to_be_bytes(), &[0, 0, 0, 1]].concat();
        if let Err(how) = link.send(&header) {
            return how;
        }
        // The wait for a reply is the pause between two bytes.
        link.socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout above zero");
        while started.elapsed() < PATIENCE {
            if let Err(how) = link.send(b"x") {
                return how;
            }
            match link.reply() {
                // The refusal of a frame that is too long; it goes on all the same.
                How::Endured | How::Typed(_) => {}
                how => return how,
            }
        }
        How::Endured
    })
}

/// Asks for far more than sockets buffer, and reads nothing until the server must have lost patience.
fn never_reads(ground: &Ground, _: &mut Numbers) -> How {
    with(ground, &ground.client, |link| {
        let mut asked = link.ask(&Request::Select { name: b"1" }, 1);
        for id in 2..98 {
            asked = asked.and_then(|()| link.ask(&Request::Get { key: BIG_KEY }, id));
        }
        if let Err(how) = asked {
            return how;
        }
        // The socket stays readable, so its end shows only when a write fails.
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            std::thread::park_timeout(Duration::from_millis(100));
            if link.ask(&Request::Ping, 99).is_err() {
                return How::Closed;
            }
        }
        How::Endured
    })
}
