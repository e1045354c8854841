//! Bad bytes before the end of a handshake: noise, other protocols, lengths that lie, peers that stop in the middle.

use super::dial::{self, Expect, How, PATIENCE, hello, socket, until_end};
use super::{Attack, Case, Ground};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};
use turnstone_net::wire::Request;
use turnstone_tools::bench::workload::Numbers;

/// How often a peer that sends single bytes sends one.
const DRIP: Duration = Duration::from_millis(100);

/// Type 0x16, version 3.1, and a length.
const fn record(kind: u8, length: u16) -> [u8; 5] {
    [kind, 3, 1, (length >> 8) as u8, length as u8]
}

/// All cases. What takes until a deadline is rare, so that it does not take all of the attackers.
pub fn cases() -> Vec<Case> {
    let tls = "handshake";
    let late = "handshake_timeout";
    let case = |name, expect, reason, weight, attack: fn(&Ground, &mut Numbers) -> How| Case {
        name,
        expect,
        reason,
        weight,
        attack: Attack::Run(attack),
    };
    let (alert, ended) = (Expect::Alert(&[]), Expect::Ended);
    vec![
        case("HTTP", alert, tls, 6, |g, _| say(g, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")),
        case("SSH", alert, tls, 6, |g, _| say(g, b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n")),
        case("Redis in clear", alert, tls, 6, |g, _| say(g, b"*1\r\n$4\r\nPING\r\n")),
        case("a frame in clear", alert, tls, 6, |g, _| {
            let mut bytes = Vec::new();
            Request::Ping.encode_frame(turnstone_net::wire::Dialect::V1, 0, &mut bytes).expect("it fits");
            say(g, &bytes)
        }),
        case("noise, 5 bytes", ended, tls, 6, |g, numbers| half_close(g, &noise(numbers, 5))),
        case("noise, 1 KiB", ended, tls, 6, |g, numbers| half_close(g, &noise(numbers, 1024))),
        case("noise, 256 KiB", ended, tls, 6, |g, numbers| half_close(g, &noise(numbers, 256 << 10))),
        case("a record of 65,535 bytes", alert, tls, 6, |g, _| {
            say(g, &[&record(22, 0xFFFF)[..], &[1; 65_535]].concat())
        }),
        case("a handshake of 16 MiB announced", ended, tls, 6, |g, _| {
            say(g, &[&record(22, 16_000)[..], &[1, 0xFF, 0xFF, 0xFF], &[0; 15_996]].concat())
        }),
        case("an alert first", ended, tls, 6, |g, _| say(g, &[&record(21, 2)[..], &[2, 40]].concat())),
        case("data first", ended, tls, 6, |g, _| say(g, &[&record(23, 32)[..], &[7; 32]].concat())),
        case("a hundred ChangeCipherSpec", ended, tls, 6, |g, _| {
            say(g, &[&record(20, 1)[..], &[1]].concat().repeat(100))
        }),
        case("records without contents", alert, tls, 6, |g, _| say(g, &record(22, 0).repeat(1000))),
        case("a record of an unknown kind", alert, tls, 6, |g, _| say(g, &[&record(99, 4)[..], b"what"].concat())),
        case("a ServerHello", alert, tls, 6, |g, _| {
            let mut bytes = hello(&g.client);
            bytes[5] = 2;
            say(g, &bytes)
        }),
        case("TLS 1.2 only", Expect::Alert(&["ProtocolVersion"]), tls, 6, |g, _| say(g, &without_version(g))),
        case("a ClientHello with a bit changed", ended, tls, 6, |g, numbers| {
            let mut bytes = hello(&g.client);
            // Among the lengths and numbers of its head, where most bits matter; what is left is a silent hello.
            let bit = 8 * 5 + numbers.below(8 * 4) as usize;
            bytes[bit / 8] ^= 1 << (bit % 8);
            half_close(g, &bytes)
        }),
        case("a ClientHello twice", ended, tls, 6, |g, _| say(g, &hello(&g.client).repeat(2))),
        case("a ClientHello, then noise", ended, tls, 6, |g, numbers| {
            say(g, &[hello(&g.client), record(23, 600).to_vec(), noise(numbers, 600)].concat())
        }),
        case("a ClientHello, then an alert", ended, tls, 6, |g, _| {
            say(g, &[&hello(&g.client)[..], &record(21, 2), &[1, 0]].concat())
        }),
        case("half a ClientHello, closed", Expect::Left, "went away", 6, |g, _| {
            let bytes = hello(&g.client);
            leave(g, &bytes[..bytes.len() / 2])
        }),
        case("nothing, closed", Expect::Left, "", 6, |g, _| leave(g, b"")),
        case("half-closed at once", ended, "", 6, |g, _| half_close(g, b"")),
        case("half-closed behind half a ClientHello", ended, "went away", 6, |g, _| {
            let bytes = hello(&g.client);
            half_close(g, &bytes[..bytes.len() / 2])
        }),
        case("half-closed behind a ClientHello", ended, "went away", 6, |g, _| half_close(g, &hello(&g.client))),
        case("reset in its handshake", Expect::Left, "went away", 6, |g, _| {
            // Closing while the server's answer is unread resets the connection.
            let sent = socket(g.address).and_then(|mut socket| {
                socket.write_all(&hello(&g.client)).map_err(|_| How::Closed)?;
                socket.peek(&mut [0]).map_err(|_| How::Closed)
            });
            sent.map_or_else(|how| how, |_| How::Left)
        }),
        case("a handshake a byte at a time", Expect::Served, "", 6, slow_handshake),
        case("silent", ended, late, 1, |g, _| say(g, b"")),
        case("half a ClientHello, silent", ended, late, 1, |g, _| {
            let bytes = hello(&g.client);
            say(g, &bytes[..bytes.len() / 2])
        }),
        case("a ClientHello, silent", ended, late, 1, |g, _| say(g, &hello(&g.client))),
        case("a ClientHello that drips for ever", ended, late, 1, |g, _| drip(g, &hello(&g.client))),
        case("empty records that drip for ever", ended, tls, 1, |g, _| drip(g, &record(22, 0))),
    ]
}

fn noise(numbers: &mut Numbers, length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..length).map(|_| numbers.draw() as u8).collect();
    // A record of a handshake would be waited for.
    if let Some(first) = bytes.first_mut() {
        *first |= 0x80;
    }
    bytes
}

/// Sends, then waits for the end.
fn say(ground: &Ground, bytes: &[u8]) -> How {
    let mut socket = match socket(ground.address) {
        Ok(socket) => socket,
        Err(how) => return how,
    };
    // The server may end it before it has taken everything.
    let _ = socket.write_all(bytes);
    until_end(&mut socket)
}

/// Sends, ends its own side, and waits for the other's.
fn half_close(ground: &Ground, bytes: &[u8]) -> How {
    let mut socket = match socket(ground.address) {
        Ok(socket) => socket,
        Err(how) => return how,
    };
    let _ = socket.write_all(bytes);
    let _ = socket.shutdown(Shutdown::Write);
    until_end(&mut socket)
}

fn leave(ground: &Ground, bytes: &[u8]) -> How {
    match socket(ground.address) {
        Ok(mut socket) => {
            let _ = socket.write_all(bytes);
            How::Left
        }
        Err(how) => how,
    }
}

/// A ClientHello whose extension of supported versions has a number that nobody knows: what a client of TLS 1.2 sends.
fn without_version(ground: &Ground) -> Vec<u8> {
    let mut bytes = hello(&ground.client);
    // Kind 43, with the versions of TLS 1.3 in a list.
    let at = bytes.windows(4).position(|w| w[..2] == [0, 43] && w[2] == 0 && w[3] < 16).expect("rustls sends it");
    bytes[at] = 0x5A;
    bytes[at + 1] = 0x5A;
    bytes
}

/// Sends the bytes one at a time, over and over, until the server has enough.
fn drip(ground: &Ground, bytes: &[u8]) -> How {
    let mut socket = match socket(ground.address) {
        Ok(socket) => socket,
        Err(how) => return how,
    };
    // The wait for an answer that does not come is the pause between two bytes.
    socket.set_read_timeout(Some(DRIP)).expect("a timeout above zero");
    let (started, mut buffer) = (Instant::now(), [0; 64]);
    for byte in bytes.iter().cycle() {
        if started.elapsed() > PATIENCE {
            break;
        }
        if socket.write_all(&[*byte]).is_err() {
            return How::Closed;
        }
        match socket.read(&mut buffer) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            _ => return How::Closed,
        }
    }
    How::Endured
}

/// A good client whose every byte travels alone, until it is greeted; without pauses it is in time.
fn slow_handshake(ground: &Ground, _: &mut Numbers) -> How {
    struct ByteByByte(TcpStream);
    impl Write for ByteByByte {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.write(&bytes[..bytes.len().min(1)])
        }
        fn flush(&mut self) -> std::io::Result<()> {
            self.0.flush()
        }
    }
    impl Read for ByteByByte {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.0.read(buffer)
        }
    }
    match dial::socket(ground.address) {
        Ok(socket) => dial::greet_over(ByteByByte(socket), &ground.client),
        Err(how) => how,
    }
}
