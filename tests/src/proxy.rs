//! A way between two nodes that can be narrow, and that breaks when told to.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Forwards to a port of this machine.
pub struct Proxy {
    /// Where it listens.
    pub port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    forwarded: AtomicU64,
    /// Bytes per second that come from the far side; 0 for no limit.
    rate: u64,
    open: Mutex<Vec<TcpStream>>,
    over: AtomicBool,
}

impl Proxy {
    /// To this port, as fast as it goes.
    pub fn to(port: u16) -> Proxy {
        Proxy::narrow(port, 0)
    }

    /// To this port; what comes from there comes at so many bytes per second on each connection.
    pub fn narrow(port: u16, rate: u64) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bound");
        let own = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared { rate, ..Shared::default() });
        let proxy = Proxy { port: own, shared: shared.clone() };
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let Ok(near) = near else { continue };
                if shared.over.load(Ordering::Relaxed) {
                    return;
                }
                // Whoever dials a server that is down is cut off.
                let Ok(far) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                let ends = |a: &TcpStream, b: &TcpStream| {
                    (a.try_clone().expect("a descriptor"), b.try_clone().expect("a descriptor"))
                };
                for ((from, to), rate) in [(ends(&near, &far), 0), (ends(&far, &near), shared.rate)] {
                    let shared = shared.clone();
                    std::thread::spawn(move || shared.forward(from, to, rate));
                }
                shared.open.lock().unwrap_or_else(PoisonError::into_inner).extend([near, far]);
            }
        });
        proxy
    }

    /// Bytes that went through, both ways.
    pub fn forwarded(&self) -> u64 {
        self.shared.forwarded.load(Ordering::Relaxed)
    }

    /// Breaks every connection.
    pub fn break_all(&self) {
        for socket in self.shared.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // It may be gone.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn forward(&self, mut from: TcpStream, mut to: TcpStream, rate: u64) {
        let mut room = [0; 16 << 10];
        let (started, mut count) = (Instant::now(), 0);
        while let Ok(n @ 1..) = from.read(&mut room) {
            if to.write_all(&room[..n]).is_err() {
                break;
            }
            count += n as u64;
            self.forwarded.fetch_add(n as u64, Ordering::Relaxed);
            if rate > 0 {
                let due = Duration::from_secs_f64(count as f64 / rate as f64);
                std::thread::park_timeout(due.saturating_sub(started.elapsed()));
            }
        }
        // Whichever side ends, the other one hears of it.
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        // It wakes the listener.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        self.break_all();
    }
}
