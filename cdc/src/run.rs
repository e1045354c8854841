//! A consumer as a process: a thread for each partition, one for those who ask how it goes, and an end at a signal.

use crate::follow::Follower;
use crate::settings::Settings;
use crate::status::{self, Status};
use std::fs::{File, TryLockError};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use turnstone_net::client::Address;
use turnstone_net::tls::TlsFiles;
use turnstone_net::wire::MAX_PARTITION;

/// Longest request line and headers of somebody who asks for metrics.
const REQUEST_MAX: usize = 4096;
/// How often it is looked whether a hook has ended.
const HOOK_LOOK: Duration = Duration::from_millis(20);
/// Who asks for metrics has so long to say it.
const REQUEST_TIME: Duration = Duration::from_secs(2);

/// How much a line of the log matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// A person must act.
    Error,
    /// It heals by itself.
    Warn,
    /// It is good to know.
    Info,
}

/// Writes lines of the log.
pub type LogLine = Box<dyn Fn(Severity, &str) + Send + Sync>;

/// What a consumer is run with.
pub struct Context {
    /// What it is told.
    pub settings: Settings,
    /// Under this name the server knows it.
    pub name: String,
    /// Where change files go.
    pub directory: PathBuf,
    /// Where the cursors are: the partition is added to this name.
    pub state_file: PathBuf,
    /// Its certificate.
    pub tls: TlsFiles,
    /// Lines go to standard output.
    pub stdout: bool,
    /// The log.
    pub log: LogLine,
    stopping: Mutex<bool>,
    stopped: Condvar,
}

impl Context {
    /// From settings whose paths are resolved.
    pub fn new(settings: Settings, tls: TlsFiles, stdout: bool, log: LogLine) -> Context {
        let (directory, mut state_file, mut name) =
            (settings.output_dir.clone(), settings.state_file.clone(), settings.id.clone());
        if stdout {
            // Another consumer than the one that writes files: each goes on where it was.
            name.push_str(".stdout");
            let mut path = state_file.into_os_string();
            path.push(".stdout");
            state_file = path.into();
        }
        let (stopping, stopped) = (Mutex::new(false), Condvar::new());
        Context { settings, name, directory, state_file, tls, stdout, log, stopping, stopped }
    }

    /// Whether it is to end.
    pub fn is_stopping(&self) -> bool {
        *self.stopping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells it to end: what was received is published first.
    pub fn stop(&self) {
        *self.stopping.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stopped.notify_all();
    }

    /// Waits, or until it is to end.
    pub fn wait(&self, time: Duration) {
        let stopping = self.stopping.lock().unwrap_or_else(PoisonError::into_inner);
        // Whichever it was, the caller looks.
        let _ = self.stopped.wait_timeout_while(stopping, time, |stopping| !*stopping);
    }

    pub(crate) fn has_hook(&self) -> bool {
        !self.settings.exec.is_empty() && !self.stdout
    }

    /// Runs the hook for a file, and calls `alive` meanwhile.
    pub(crate) fn announce(&self, path: &Path, alive: &mut dyn FnMut()) {
        let Some((program, arguments)) = self.settings.exec.split_first() else { return };
        let started = Command::new(program).args(arguments).arg(path).env("TURNSTONE_CDC_FILE", path).spawn();
        let ended = started.and_then(|mut child| {
            loop {
                match child.try_wait()? {
                    Some(status) => return Ok(status),
                    None => {
                        alive();
                        std::thread::park_timeout(HOOK_LOOK);
                    }
                }
            }
        });
        let why = match ended {
            Ok(status) if status.success() => return,
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        (self.log)(Severity::Error, &format!("exec: {program} {}: {why}; the file stays where it is", path.display()));
    }

    fn partitions(&self) -> Vec<u8> {
        match &self.settings.partition {
            crate::settings::Partitions::All => (1..=MAX_PARTITION).collect(),
            crate::settings::Partitions::Some(list) => list.clone(),
        }
    }
}

/// Runs a consumer until [`Context::stop`], or until a partition cannot go on without a person.
pub fn run(context: &Context) -> Result<(), String> {
    let _lock = lock(&context.state_file)?;
    let statuses: Arc<Vec<Status>> = Arc::new(context.partitions().into_iter().map(Status::of).collect());
    if !context.settings.metrics_addr.is_empty() {
        serve_metrics(&context.settings.metrics_addr, statuses.clone())?;
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = statuses
            .iter()
            .map(|status| {
                let follower = Follower::new(context, status.partition, status);
                let follow = move || {
                    let ended = follower.run();
                    if ended.is_err() {
                        // The others publish what they have.
                        context.stop();
                    }
                    ended
                };
                let name = format!("cdc-p{}", status.partition);
                std::thread::Builder::new().name(name).spawn_scoped(scope, follow)
            })
            .collect();
        let mut outcome = Ok(());
        for thread in threads {
            let ended = match thread {
                Ok(thread) => thread.join().unwrap_or_else(|_| Err("a thread has panicked".to_string())),
                Err(error) => {
                    context.stop();
                    Err(format!("no thread for a partition: {error}"))
                }
            };
            outcome = outcome.and(ended);
        }
        outcome
    })
}

/// Two processes with one state would both write the same files.
fn lock(state_file: &Path) -> Result<File, String> {
    let mut path = state_file.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| format!("{} cannot be opened: {error}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(format!("{} is held by another process: stop it first, or use another state_file", path.display()))
        }
        Err(TryLockError::Error(error)) => Err(format!("{} cannot be locked: {error}", path.display())),
    }
}

/// Answers `/metrics` and `/health`, one at a time.
fn serve_metrics(address: &str, statuses: Arc<Vec<Status>>) -> Result<(), String> {
    let address: Address = address.parse().map_err(|error| format!("metrics_addr: {error}"))?;
    // Without a host only this machine may ask.
    let host = if address.host.is_empty() { "127.0.0.1" } else { address.host.as_str() };
    let listener = (host, address.port).to_socket_addrs().and_then(|mut found| {
        let first = found.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
        TcpListener::bind(first)
    });
    let listener = listener.map_err(|error| {
        format!(
            "metrics_addr: {host}:{} cannot be listened on: {error}; another address, or \"\" for none",
            address.port
        )
    })?;
    let answer = move || {
        for stream in listener.incoming().flatten() {
            // Who asks and does not listen has only itself to blame.
            let _ = answer_request(stream, &statuses);
        }
    };
    std::thread::Builder::new().name("metrics".to_string()).spawn(answer).map_err(|e| e.to_string())?;
    Ok(())
}

fn answer_request(mut stream: TcpStream, statuses: &[Status]) -> io::Result<()> {
    stream.set_read_timeout(Some(REQUEST_TIME))?;
    stream.set_write_timeout(Some(REQUEST_TIME))?;
    let (mut request, mut buffer) = (Vec::new(), [0; 512]);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST_MAX {
        match stream.read(&mut buffer)? {
            0 => break,
            n => request.extend_from_slice(&buffer[..n]),
        }
    }
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let (status, body) = match line.split(|byte| *byte == b' ').nth(1) {
        Some(b"/metrics") => ("200 OK", status::metrics(statuses.iter())),
        Some(b"/health") => {
            let connected = |s: &&Status| s.connected.load(std::sync::atomic::Ordering::Relaxed);
            match statuses.iter().filter(connected).count() {
                n if n == statuses.len() => ("200 OK", "ok\n".to_string()),
                n => ("503 Service Unavailable", format!("{n} of {} partitions have a stream\n", statuses.len())),
            }
        }
        _ => ("404 Not Found", "there are /metrics and /health\n".to_string()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}
