//! Limits that are reached: silent peers, peers that stop in the middle of a handshake, `max_conns`, descriptors.

use super::campaign::start;
use super::dial::{How, Link, hello, until_end};
use super::report::{Bounds, REFUSED_WITHIN};
use super::watch::Watch;
use super::{Ground, dial};
use crate::real::{TestHome, TestServer, binary, figure};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use turnstone_net::client::Connection;
use turnstone_net::tls::Role;
use turnstone_net::wire::Request;

/// How long a good newcomer may take to get in, whoever else is at the door.
const LET_IN: Duration = Duration::from_secs(1);
const SILENT: usize = 1000;
const NEWCOMERS: usize = 20;
/// Memory that a thousand silent peers may take.
const SILENT_GROWTH_KIB: u64 = 16 << 10;

/// All of them.
pub fn run() -> Result<(), String> {
    let mut bounds = Bounds::default();
    at_the_door(&mut bounds);
    at_max_conns(&mut bounds);
    without_descriptors(&mut bounds);
    bounds.result()
}

/// The longest that any of some newcomers took to be served.
fn let_in(ground: &Ground) -> Result<Duration, How> {
    let mut worst = Duration::ZERO;
    for _ in 0..NEWCOMERS {
        let started = Instant::now();
        match dial::greet(ground.address, &ground.client, "localhost") {
            How::Served => worst = worst.max(started.elapsed()),
            how => return Err(how),
        }
    }
    Ok(worst)
}

/// Opens `count` sockets and sends these bytes on each.
fn crowd(ground: &Ground, count: usize, bytes: &[u8]) -> Vec<(TcpStream, Instant)> {
    let open = |_| {
        let mut socket = dial::socket(ground.address).expect("connected");
        let _ = socket.write_all(bytes);
        (socket, Instant::now())
    };
    (0..count).map(open).collect()
}

/// A thousand peers that say nothing, or that stop behind a ClientHello: good ones come in all the same.
fn at_the_door(bounds: &mut Bounds) {
    let home = TestHome::new("door");
    let mut server = start(&home, false, &[]);
    let ground = Ground::new(&home, &server);
    let watch = Watch { pid: server.pid() };
    let_in(&ground).expect("it serves");
    let (resident, descriptors) = (watch.resident(), watch.no_files());
    for (name, bytes) in [("say nothing", Vec::new()), ("stop behind their ClientHello", hello(&ground.client))] {
        let peers = crowd(&ground, SILENT, &bytes);
        match let_in(&ground) {
            Ok(worst) => {
                let text = format!("{SILENT} peers {name}: {NEWCOMERS} good ones come in, the last in {worst:.2?}");
                bounds.hold(worst <= LET_IN, &text);
            }
            Err(how) => bounds.hold(false, &format!("{SILENT} peers {name}: a good one is refused: {how}")),
        }
        let mut worst = Duration::ZERO;
        for (mut socket, opened) in peers {
            let how = until_end(&mut socket);
            worst = worst.max(if how == How::Endured { Duration::MAX } else { opened.elapsed() });
        }
        bounds.hold(worst <= REFUSED_WITHIN, &format!("each of them is refused, the last after {worst:.2?}"));
    }
    let growth = watch.peak().saturating_sub(resident);
    bounds.hold(growth <= SILENT_GROWTH_KIB, &format!("memory grew by {growth} KiB, at most {SILENT_GROWTH_KIB}"));
    let back = watch.no_files_back(descriptors, REFUSED_WITHIN);
    bounds.hold(back <= descriptors, &format!("descriptors without files {descriptors} before, {back} after"));
    let log = server.log().join("\n");
    bounds.hold(log.contains("max_handshakes") && log.contains("handshake_timeout"), "the log names both limits");
}

/// Valid clients, more than there is room for.
fn at_max_conns(bounds: &mut Bounds) {
    const MORE: usize = 300;
    let home = TestHome::new("crowded");
    let mut server = start(&home, false, &[]);
    let ground = Ground::new(&home, &server);
    let mut admin = home.connect(&server, Role::Admin, 1);
    let mut links = Vec::new();
    while links.len() < 999 {
        let mut link = Link::open(ground.address, &ground.client, "localhost").expect("there is room");
        link.ask(&Request::Ping, 1).expect("sent");
        assert_eq!(link.reply(), How::Served, "there is room for connection {}", links.len() + 2);
        links.push(link);
    }
    let (mut told, mut worst, mut others) = (0, Duration::ZERO, Vec::new());
    for _ in 0..MORE {
        let started = Instant::now();
        match dial::greet(ground.address, &ground.client, "localhost") {
            How::Typed(word) if word == "BUSY" => told += 1,
            how => others.push(how),
        }
        worst = worst.max(started.elapsed());
    }
    let text =
        format!("{told} of {MORE} connections above max_conns are told BUSY, the slowest in {worst:.2?} {others:?}");
    bounds.hold(told == MORE && worst <= REFUSED_WITHIN, &text);
    let asked = Instant::now();
    let served = admin.set(b"k", b"v").is_ok() && links.iter_mut().all(|link| link.ask(&Request::Ping, 2).is_ok());
    let served = served && links.iter_mut().all(|link| link.reply() == How::Served);
    bounds.hold(served, &format!("the 1,000 that are in are served meanwhile, all in {:.2?}", asked.elapsed()));
    links.truncate(900);
    let freed = Instant::now();
    while dial::greet(ground.address, &ground.client, "localhost") != How::Served && freed.elapsed() < REFUSED_WITHIN {}
    bounds.hold(freed.elapsed() <= LET_IN, &format!("room is found {:.2?} after some have gone", freed.elapsed()));
    admin.select(0).expect("it serves");
    let stat = admin.stat().expect("it answers");
    let counted = figure(&stat, "refused_at_max_conns");
    bounds.hold(counted as usize >= MORE, &format!("stat counts {counted} refused at max_conns"));
    bounds.hold(server.log().join("\n").contains("limit of 1000 connections"), "the log names max_conns");
}

/// Descriptors that a server at rest does not need.
const SPARE: u64 = 300;

/// Peers take every descriptor: who is in is served, files are opened, the server stays, and recovers.
fn without_descriptors(bounds: &mut Bounds) {
    let home = TestHome::new("descriptors");
    let at_rest = Watch { pid: start(&home, false, &[]).pid() }.descriptors();
    let limit = format!("ulimit -n {}; exec \"$@\"", at_rest + SPARE);
    let flags = [&super::campaign::FLAGS[..], &["--wal-max-size", "64KiB", "--checkpoint-bytes", "64KiB"]].concat();
    let mut server = home.try_serve_under(&["sh", "-c", &limit, "sh"], binary("turnstone"), &flags).expect("it starts");
    let watch = Watch { pid: server.pid() };
    let ground = Ground::new(&home, &server);
    let mut inside: Vec<Connection> = (1..=4).map(|n| home.connect(&server, Role::Client, n)).collect();
    // Enough greeted connections to reach the limit, and silent ones behind them.
    let mut links = Vec::new();
    while let Ok(link) = Link::open(ground.address, &ground.client, "localhost") {
        let mut link = link;
        if link.ask(&Request::Ping, 1).is_err() || link.reply() != How::Served || links.len() as u64 > SPARE {
            break;
        }
        links.push(link);
    }
    let silent = crowd(&ground, 100, b"");
    let open = watch.descriptors();
    bounds.hold(ends(silent), &format!("each of 100 more is refused within {} s", REFUSED_WITHIN.as_secs()));
    // Small log segments: files are created and opened all the time.
    let (started, mut failed) = (Instant::now(), None);
    for n in 0..400u32 {
        for connection in &mut inside {
            let done = connection.set(&n.to_be_bytes(), &[7; 3000]).map(drop);
            failed = failed.or(done.and_then(|()| connection.get(&n.to_be_bytes()).map(drop)).err());
        }
    }
    let text =
        format!("1,600 writes in {:.2?} while {open} of {} descriptors are open", started.elapsed(), at_rest + SPARE);
    let failed = failed.map(|error| error.to_string());
    bounds.hold(failed.is_none(), &format!("{text} {}", failed.unwrap_or_default()));
    let served = inside.iter_mut().all(|connection| connection.ping().is_ok());
    bounds.hold(served, "who was in before is still served");
    drop(links);
    let started = Instant::now();
    while dial::greet(ground.address, &ground.client, "localhost") != How::Served && started.elapsed() < REFUSED_WITHIN
    {
    }
    bounds.hold(started.elapsed() <= LET_IN, &format!("it recovers {:.2?} after they have gone", started.elapsed()));
    names_descriptors(&mut server, bounds);
    let (status, _) = server.stop();
    bounds.hold(status.success(), &format!("and stops in order: {status}"));
}

fn ends(peers: Vec<(TcpStream, Instant)>) -> bool {
    peers.into_iter().all(|(mut socket, opened)| {
        let ended = !matches!(socket.read(&mut [0; 16]), Ok(n) if n > 0);
        ended && opened.elapsed() <= REFUSED_WITHIN
    })
}

fn names_descriptors(server: &mut TestServer, bounds: &mut Bounds) {
    let log = server.log();
    let line = log.iter().find(|line| line.contains("descriptors are short"));
    bounds.hold(line.is_some(), &format!("the log says so: {}", line.map_or("no", String::as_str)));
}
