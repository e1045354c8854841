//! What good connections cost: memory while they are idle, processor time and others' latency while they arrive.

use super::campaign::{CLIENT_CPU, start};
use super::dial::{How, Link};
use super::good_client::{Block, GoodClient};
use super::report::Bounds;
use super::watch::Watch;
use super::{Ground, dial};
use crate::real::TestHome;
use crate::side_by_side::servers::Usage;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use turnstone_net::tls::{ClientOffer, Role, client_config, server_config};
use turnstone_net::wire::Request;

/// An idle connection takes no more.
const IDLE_BYTES: u64 = 64 << 10;
/// New connections per second, as a share of what TLS alone would allow.
const HANDSHAKE_SHARE: f64 = 0.5;
/// How many times longer others' GETs may take at the 99th percentile while connections arrive.
const SLOWER: f64 = 4.0;
/// Blocks of each kind, alternating.
const ROUNDS: usize = 3;
/// Connections that are being made at a time.
const DIALLING: usize = 8;

/// Opens `count` connections and looks at what they take, before and after each has asked once.
pub fn idle(count: usize) -> Result<(), String> {
    let home = TestHome::new("idle");
    let limit = (count + 10).to_string();
    let server = home.serve(&["--max-conns", &limit]);
    let ground = Ground::new(&home, &server);
    let watch = Watch { pid: server.pid() };
    let before = watch.resident();
    let mut links = Vec::new();
    for _ in 0..count {
        links.push(Link::open(ground.address, &ground.client, "localhost").map_err(|how| how.to_string())?);
    }
    // A handshake is over for the server when it answers.
    for link in &mut links {
        link.ask(&Request::Ping, 1).map_err(|how| how.to_string())?;
        if link.reply() != How::Served {
            return Err("a connection was not served".to_string());
        }
    }
    let greeted = watch.resident();
    for (i, link) in links.iter_mut().enumerate() {
        let name = (1 + i % 16).to_string();
        link.ask(&Request::Select { name: name.as_bytes() }, 2).map_err(|how| how.to_string())?;
        link.ask(&Request::Set { key: b"idle", value: &[7; 4000] }, 3).map_err(|how| how.to_string())?;
        link.ask(&Request::Get { key: b"idle" }, 4).map_err(|how| how.to_string())?;
        for _ in 0..3 {
            if link.reply() != How::Served {
                return Err("a connection was not served".to_string());
            }
        }
    }
    let used = watch.resident();
    let each = |after: u64| (after.saturating_sub(before) << 10) / count as u64;
    let mut bounds = Bounds::default();
    let worst = each(greeted).max(each(used));
    let text = format!(
        "{count} idle connections: {:.1} KiB each when greeted, {:.1} KiB after a request ({} to {} MiB); at most {} KiB",
        each(greeted) as f64 / 1024.0,
        each(used) as f64 / 1024.0,
        before >> 10,
        used >> 10,
        IDLE_BYTES >> 10
    );
    bounds.hold(worst <= IDLE_BYTES, &text);
    drop(links);
    bounds.result()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Handshakes in memory, both sides on one CPU.
struct InMemory {
    /// Server's side of one, microseconds.
    server: f64,
    /// Both sides of one.
    both: f64,
}

fn in_memory(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>, time: Duration) -> InMemory {
    let started = Instant::now();
    let (mut count, mut of_server) = (0u32, Duration::ZERO);
    while started.elapsed() < time {
        let name = ServerName::try_from("localhost").expect("a name");
        let mut client = ClientConnection::new(client.clone(), name).expect("a client");
        let begun = Instant::now();
        let mut server = ServerConnection::new(server.clone()).expect("a server");
        of_server += begun.elapsed();
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).expect("to memory");
            }
            let begun = Instant::now();
            let mut arrived = &bytes[..];
            while !arrived.is_empty() {
                server.read_tls(&mut arrived).expect("from memory");
                server.process_new_packets().expect("a good client");
            }
            let mut back = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut back).expect("to memory");
            }
            of_server += begun.elapsed();
            let mut arrived = &back[..];
            while !arrived.is_empty() {
                client.read_tls(&mut arrived).expect("from memory");
                client.process_new_packets().expect("a good server");
            }
        }
        count += 1;
    }
    let each = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(count.max(1));
    InMemory { server: each(of_server), both: each(started.elapsed()) }
}

/// New connections, one behind the other on each of a few threads, for this long; answers how many there were.
fn arrive(ground: &Ground, time: Duration, pinned: bool) -> u64 {
    let (count, over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..DIALLING {
            scope.spawn(|| {
                if pinned {
                    turnstone_executor::placement::pin_thread(CLIENT_CPU).expect("the CPU is there");
                }
                turnstone_executor::ring::sys::be_nice();
                while !over.load(Ordering::Relaxed) {
                    assert_eq!(dial::greet(ground.address, &ground.client, "localhost"), How::Served);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let started = Instant::now();
        while let Some(left) = time.checked_sub(started.elapsed()) {
            std::thread::park_timeout(left);
        }
        over.store(true, Ordering::Relaxed);
    });
    count.load(Ordering::Relaxed)
}

/// How fast connections can be made, beside what TLS alone costs; and what others' GETs take meanwhile.
pub fn handshakes(time: Duration, pinned: bool) -> Result<(), String> {
    let home = TestHome::new("handshakes");
    let server = start(&home, pinned, &[]);
    let ground = Ground::new(&home, &server);
    let config = server_config(&home.files(Role::Server)).map_err(|e| e.to_string())?;
    let client = client_config(&home.files(Role::Client), ClientOffer::TURNSTONE2).map_err(|e| e.to_string())?;
    let (mut memory, mut both, mut rates, mut costs, mut busy) = (vec![], vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        let one = std::thread::scope(|scope| {
            let work = || {
                turnstone_executor::placement::pin_thread(0).expect("the CPU is there");
                in_memory(&client, &config, time / ROUNDS as u32)
            };
            scope.spawn(work).join().expect("it ends")
        });
        memory.push(one.server);
        both.push(one.both);
        let before = Usage::of(server.pid())?;
        let count = arrive(&ground, time / ROUNDS as u32, pinned);
        let used = Usage::of(server.pid())?.since(&before);
        rates.push(count as f64 / used.wall.as_secs_f64());
        costs.push(used.cpu.as_secs_f64() * 1e6 / count.max(1) as f64);
        busy.push(used.cpu.as_secs_f64() / used.wall.as_secs_f64());
    }
    let (memory, both, rate, cost, busy) = (median(memory), median(both), median(rates), median(costs), median(busy));
    println!("TLS in memory, one CPU: {both:.0} us a handshake with both sides, {memory:.0} us of them the server's");
    println!(
        "real server: {rate:.0} new connections a second with a request each, the server's CPU {:.0} % busy",
        busy * 100.0
    );
    let mut bounds = Bounds::default();
    let share = memory / cost;
    let text = format!(
        "the server takes {cost:.0} us of CPU for a connection: {share:.2} of the rate of TLS alone ({:.0} of {:.0} a second)",
        1e6 / cost,
        1e6 / memory
    );
    bounds.hold(share >= HANDSHAKE_SHARE, &text);
    println!(
        "measured rate over that of both sides on one CPU: {:.2}; over that of the server's side: {:.2}",
        rate * both / 1e6,
        rate * memory / 1e6
    );

    let good = GoodClient::start(&home, &server, 1000, pinned.then_some(CLIENT_CPU));
    let (mut alone, mut beside, mut ratios) = (vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        let quiet = good.alone(time / ROUNDS as u32);
        arrive(&ground, time / ROUNDS as u32, pinned);
        let loud = good.take();
        ratios.push(loud.quantile(0.99) / quiet.quantile(0.99));
        alone.push(quiet);
        beside.push(loud);
    }
    for (name, blocks) in [("alone", &alone), ("while connections arrive", &beside)] {
        let all = Block::together(blocks);
        println!(
            "GETs {name}: {}, p50 {:.0} us, p99 {:.0} us, worst {:.0} us",
            all.count(),
            all.quantile(0.5),
            all.quantile(0.99),
            all.quantile(1.0)
        );
    }
    let shown: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
    let ratio = median(ratios);
    let text = format!("others' p99 is {ratio:.2} times what it is alone ({}); at most {SLOWER}", shown.join(", "));
    bounds.hold(ratio <= SLOWER, &text);
    bounds.hold(good.failure().is_none(), good.failure().as_deref().unwrap_or("no GET failed"));
    bounds.result()
}
