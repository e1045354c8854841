//! Running the real binaries: a home in a temporary directory, a server process, clients over mutual TLS.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use turnstone_net::client::{ClientError, ClientSettings, Connection};
use turnstone_net::tls::{ClientOffer, Role, TlsFiles};

/// A server that does not get ready within this time has failed.
const READY: Duration = Duration::from_secs(60);

/// The project's folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every build selects the whole workspace: another selection has other features, with which cargo compiles anew what is
/// there already.
const BUILD: [&str; 3] = ["build", "--release", "--workspace"];

/// What is installed, but for the loader.
const INSTALLED: [&str; 4] = ["turnstone", "turnstone-cli", "turnstone-bench", "turnstone-load"];

/// Builds the installed programs once per test process, as they are released, and answers where one is.
pub fn binary(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let directory = BUILT.get_or_init(|| {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
        let status = cargo()
            .args(BUILD)
            .args(INSTALLED.map(|name| format!("--bin={name}")))
            .stderr(Stdio::null())
            .status()
            .expect("cargo runs");
        assert!(status.success(), "the binaries do not build");
        target.join("release")
    });
    directory.join(name)
}

/// Fetches DuckDB's library and builds the loader, once per test process; answers where it is.
pub fn loader() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let program = BUILT.get_or_init(|| {
        let fetched = Command::new(root().join("tools/fetch-duckdb")).status().expect("a shell runs");
        assert!(fetched.success(), "tools/fetch-duckdb failed");
        let status = cargo()
            .args(BUILD)
            .args(["--features", "turnstone-tools/duck", "--bin", "turnstone-duck"])
            .stderr(Stdio::null())
            .status()
            .expect("cargo runs");
        assert!(status.success(), "turnstone-duck does not build");
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
        target.join("release/turnstone-duck")
    });
    program.clone()
}

/// Cargo in the root, as if called from a shell.
pub fn cargo() -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    // What cargo tells a test of its package makes build scripts of dependencies run again, and all behind them.
    for (name, _) in std::env::vars_os() {
        let told = name.to_string_lossy();
        if told.starts_with("CARGO_PKG_") || told.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    cargo.current_dir(root());
    cargo
}

/// The lines that a process writes to its standard error, as they come; shown, too, if `TURNSTONE_SHOW_LOG` is set.
pub fn lines_of(stderr: ChildStderr, name: &'static str) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if std::env::var_os("TURNSTONE_SHOW_LOG").is_some() {
                eprintln!("{name}{line}");
            }
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Waits until `done`; the bound is for what must not happen.
pub fn eventually(patience: Duration, what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < patience, "not within {patience:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// A directory that goes when dropped.
pub struct TempDir(PathBuf);

impl TempDir {
    /// A fresh one, on the disk that the build is on (a memory file system may know no direct I/O).
    pub fn new(label: &str) -> TempDir {
        let base = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
        TempDir::within(&base.join("test-homes"), label)
    }
    /// A fresh one in there.
    pub fn within(base: &Path, label: &str) -> TempDir {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("{label}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = base.join(name);
        std::fs::create_dir_all(&path).expect("a directory can be made");
        TempDir(path.canonicalize().expect("it exists"))
    }
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A port that was free a moment ago, below those that the system gives to outgoing connections: whoever tries again and
/// again to reach a server that is being restarted must not be given its port.
pub fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const PORTS: u32 = 22_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(7919);
    let candidates = (0..PORTS).map(|_| {
        let n = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        (FIRST + n % PORTS) as u16
    });
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    candidates.into_iter().find(is_free).expect("a port is free")
}

/// An initialised home.
pub struct TestHome {
    directory: TempDir,
}

impl TestHome {
    /// Made by `turnstone --init`.
    pub fn new(label: &str) -> TestHome {
        TestHome::init(TempDir::new(label), &[])
    }
    /// Made by `turnstone --init --ca-from`: a node of the same cluster.
    pub fn beside(other: &TestHome, label: &str) -> TestHome {
        TestHome::init(TempDir::new(label), &["--ca-from", &other.path().display().to_string()])
    }
    /// The same, in this directory.
    pub fn beside_in(base: &Path, other: &TestHome, label: &str) -> TestHome {
        TestHome::init(TempDir::within(base, label), &["--ca-from", &other.path().display().to_string()])
    }
    /// Made in this directory.
    pub fn within(base: &Path, label: &str) -> TestHome {
        TestHome::init(TempDir::within(base, label), &[])
    }
    /// Made with these flags.
    pub fn with(label: &str, flags: &[&str]) -> TestHome {
        TestHome::init(TempDir::new(label), flags)
    }
    fn init(directory: TempDir, flags: &[&str]) -> TestHome {
        let mut command = Command::new(binary("turnstone"));
        let command = command.env_remove("TURNSTONE_SHOW_LOG");
        let made = command.arg("--init").arg("--home").arg(directory.path()).args(flags).output();
        let made = made.expect("turnstone runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        TestHome { directory }
    }
    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
    /// Certificate, key and CA of a role.
    pub fn files(&self, role: Role) -> TlsFiles {
        let certs = self.path().join("certs");
        TlsFiles {
            cert: certs.join(format!("{role}.crt")),
            key: certs.join(format!("{role}.key")),
            ca: certs.join("ca.crt"),
        }
    }
    /// Starts a server on it with these flags.
    pub fn serve(&self, flags: &[&str]) -> TestServer {
        self.try_serve(binary("turnstone"), flags).expect("the server gets ready")
    }
    /// Starts this binary on it; the error is what it wrote.
    pub fn try_serve(&self, program: PathBuf, flags: &[&str]) -> Result<TestServer, String> {
        self.try_serve_under(&[], program, flags)
    }
    /// The same behind other words, such as `taskset -c 0`.
    pub fn try_serve_under(&self, before: &[&str], program: PathBuf, flags: &[&str]) -> Result<TestServer, String> {
        self.try_serve_on(free_port(), before, program, flags)
    }
    /// On a port that it had before.
    pub fn serve_on(&self, port: u16, flags: &[&str]) -> TestServer {
        self.try_serve_on(port, &[], binary("turnstone"), flags).expect("the server gets ready")
    }
    fn try_serve_on(&self, port: u16, before: &[&str], program: PathBuf, flags: &[&str]) -> Result<TestServer, String> {
        let mut server = self.try_serve_at(&format!("127.0.0.1:{port}"), before, program, flags)?;
        server.port = port;
        server.address = format!("localhost:{port}");
        Ok(server)
    }
    /// On an address of its own; the name that it has there must be in its certificate.
    pub fn try_serve_at(
        &self,
        address: &str,
        before: &[&str],
        program: PathBuf,
        flags: &[&str],
    ) -> Result<TestServer, String> {
        let started = Instant::now();
        let mut command = match before {
            [] => Command::new(program),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        };
        let mut child = command
            .arg("--home")
            .arg(self.path())
            .args(["--port", address])
            .args(flags)
            // It would be taken for a setting.
            .env_remove("TURNSTONE_SHOW_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("turnstone runs");
        let stderr = child.stderr.take().expect("it is piped");
        let lines = lines_of(stderr, "");
        let mut seen = Vec::new();
        loop {
            let left = READY.saturating_sub(started.elapsed());
            match lines.recv_timeout(left) {
                Ok(line) => {
                    let ready = line.contains(" ready in ");
                    seen.push(line);
                    if ready {
                        break;
                    }
                }
                Err(_) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(seen.join("\n"));
                }
            }
        }
        let address = address.to_string();
        Ok(TestServer { child, port: 0, address, lines, seen, took: started.elapsed() })
    }
    /// Starts a server and kills it after `life`, ready or not; answers whether it was not ready yet.
    pub fn kill_while_starting(&self, flags: &[&str], life: Duration) -> bool {
        let mut child = Command::new(binary("turnstone"))
            .arg("--home")
            .arg(self.path())
            .args(["--port", &format!("127.0.0.1:{}", free_port())])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("turnstone runs");
        std::thread::park_timeout(life);
        child.kill().expect("it can be killed");
        let output = child.wait_with_output().expect("it ends");
        !String::from_utf8_lossy(&output.stderr).contains(" ready in ")
    }
    /// A connection's settings.
    pub fn client(&self, server: &TestServer, role: Role, offer: ClientOffer) -> ClientSettings {
        ClientSettings {
            address: server.address.clone(),
            files: self.files(role),
            offer,
            timeout: Duration::from_secs(60),
        }
    }
    /// Connects with `turnstone/2` and selects a partition.
    pub fn connect(&self, server: &TestServer, role: Role, partition: u8) -> Connection {
        self.try_connect(server, role, partition).expect("it connects")
    }
    /// As above.
    pub fn try_connect(&self, server: &TestServer, role: Role, partition: u8) -> Result<Connection, ClientError> {
        let mut connection = Connection::connect(&self.client(server, role, ClientOffer::TURNSTONE2))?;
        connection.select(partition)?;
        Ok(connection)
    }
    /// Runs an order of an admin's about a partition; answers what it prints, errors included.
    pub fn order(&self, server: &TestServer, partition: u8, words: &[&str]) -> String {
        let number = partition.to_string();
        let output = self.cli(server, &[&["--admin", "--partition", &number], words].concat());
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }
    /// Runs the command line once.
    pub fn cli(&self, server: &TestServer, arguments: &[&str]) -> Output {
        Command::new(binary("turnstone-cli"))
            .arg("--home")
            .arg(self.path())
            .args(["--host", &server.address])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("turnstone-cli runs")
    }
}

/// A running server process.
pub struct TestServer {
    child: Child,
    /// Where it listens on this machine, if it has no address of its own.
    pub port: u16,
    /// Where clients find it.
    pub address: String,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
    /// From its start to its ready line.
    pub took: Duration,
}

impl TestServer {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
    /// `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }
    /// SIGSTOP: it stands still when this returns. One thread takes the signal and stops the others, and on a busy machine they
    /// serve on until it is its turn.
    pub fn pause(&self) {
        self.signal("-STOP");
        let tasks = format!("/proc/{}/task", self.pid());
        let stands = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = task.and_then(|task| std::fs::read_to_string(task.path().join("stat")));
            // The state follows the name, which is in parentheses; a thread that has just ended stands still, too.
            stat.map_or(true, |stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
        };
        eventually(READY, "every thread of the server stands still", || {
            std::fs::read_dir(&tasks).expect("it is there").all(stands)
        });
    }
    /// SIGCONT.
    pub fn go_on(&self) {
        self.signal("-CONT");
    }
    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.pid().to_string()]).status().expect("kill runs");
        assert!(status.success(), "kill {name} failed");
    }
    /// SIGHUP: it reads its certificates again.
    pub fn hang_up(&self) {
        self.signal("-HUP");
    }
    /// SIGTERM, and nothing else.
    pub fn ask_to_stop(&self) {
        self.signal("-TERM");
    }
    /// SIGTERM; answers its exit status and how long it took.
    pub fn stop(&mut self) -> (std::process::ExitStatus, Duration) {
        self.ask_to_stop();
        self.wait_for_end()
    }
    /// Who was asked to stop does; answers its exit status and how long it took from now on.
    pub fn wait_for_end(&mut self) -> (std::process::ExitStatus, Duration) {
        let started = Instant::now();
        while started.elapsed() < READY {
            if let Some(status) = self.child.try_wait().expect("it is ours") {
                return (status, started.elapsed());
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        self.kill();
        panic!("the server did not stop within {READY:?}: {:?}", self.log());
    }
    /// What it logged so far.
    pub fn log(&mut self) -> Vec<String> {
        self.seen.extend(self.lines.try_iter());
        self.seen.clone()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The figure `name` in a JSON object of `stat`.
pub fn figure(json: &str, name: &str) -> u64 {
    let value: serde_json::Value = serde_json::from_str(json).expect("stat answers JSON");
    value[name].as_u64().unwrap_or_else(|| panic!("{name} is missing in {json}"))
}

/// What an HTTP server on this machine answers to a GET.
pub fn http_get(port: u16, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("somebody listens");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}
