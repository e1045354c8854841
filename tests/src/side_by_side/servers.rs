//! The two servers, each pinned to CPU 0, and what the kernel says of their processor time.

use crate::real::{TempDir, TestHome, TestServer, binary, free_port};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use turnstone_net::tls::Role;

const SERVER_CPU: &str = "0";

/// A server under load.
pub struct Peer {
    /// `localhost:port`.
    pub address: String,
    /// Its process.
    pub pid: u32,
    /// How the generator speaks to it.
    pub flags: &'static [&'static str],
}

/// Ours.
pub struct Ours {
    /// The process.
    pub server: TestServer,
    /// How to reach it.
    pub peer: Peer,
}

/// Starts a server on an affinity mask of one CPU: it takes one executor then.
pub fn start_ours(home: &TestHome, flags: &[&str]) -> Result<Ours, String> {
    let server = home.try_serve_under(&["taskset", "-c", SERVER_CPU], binary("turnstone"), flags)?;
    let peer = Peer { address: format!("localhost:{}", server.port), pid: server.pid(), flags: &[] };
    Ok(Ours { server, peer })
}

/// Debian's Redis, as durable and as strict as ours: a flush for every write, client certificates.
pub struct Redis {
    child: Child,
    /// How to reach it.
    pub peer: Peer,
    _directory: TempDir,
}

impl Redis {
    /// Starts it with the certificates of a home.
    pub fn start(home: &TestHome) -> Result<Redis, String> {
        let directory = TempDir::new("redis");
        let files = home.files(Role::Server);
        let port = free_port();
        let child = Command::new("taskset")
            .args(["-c", SERVER_CPU, "redis-server", "--port", "0", "--bind", "127.0.0.1"])
            .args(["--tls-port", &port.to_string(), "--tls-auth-clients", "yes"])
            .args(["--tls-protocols", "TLSv1.3", "--tls-ciphersuites", "TLS_AES_128_GCM_SHA256"])
            .arg("--tls-cert-file")
            .arg(files.cert)
            .arg("--tls-key-file")
            .arg(files.key)
            .arg("--tls-ca-cert-file")
            .arg(files.ca)
            .args(["--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0"])
            .args(["--save", "", "--dir"])
            .arg(directory.path())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|e| format!("redis-server cannot be started ({e}); install it: apt-get install redis-server"))?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > deadline {
                return Err("redis-server does not listen".to_string());
            }
            std::thread::yield_now();
        }
        let address = format!("localhost:{port}");
        let peer = Peer { address, pid: child.id(), flags: &["--protocol", "resp"] };
        Ok(Redis { child, peer, _directory: directory })
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processor time of a process, all its threads and the kernel's workers for its rings, and when that was read.
pub struct Usage {
    cpu: Duration,
    at: Instant,
}

/// What was used in between.
pub struct Used {
    /// Processor time.
    pub cpu: Duration,
    /// Time.
    pub wall: Duration,
}

/// The kernel counts processor time in hundredths of a second.
const TICK: Duration = Duration::from_millis(10);

impl Usage {
    /// Reads it.
    pub fn of(pid: u32) -> Result<Usage, String> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|e| format!("process {pid}: {e}"))?;
        // The name, in parentheses, may hold anything; user and system time are the 12th and 13th field behind it.
        let behind = text.rsplit_once(')').map_or("", |(_, behind)| behind);
        let fields: Vec<u32> = behind.split_whitespace().skip(11).take(2).filter_map(|n| n.parse().ok()).collect();
        match fields[..] {
            [user, system] => Ok(Usage { cpu: TICK * (user + system), at: Instant::now() }),
            _ => Err(format!("/proc/{pid}/stat is not as expected: {text}")),
        }
    }

    /// The difference.
    pub fn since(&self, before: &Usage) -> Used {
        Used { cpu: self.cpu.saturating_sub(before.cpu), wall: self.at - before.at }
    }
}
