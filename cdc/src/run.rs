//! A consumer as a process: a thread for each partition, one for those who ask how it goes, and an end at a signal.

use crate::follow::Follower;
use crate::http::{self, Answers};
use crate::owner::Owner;
use crate::settings::Settings;
use crate::status::{self, Status};
use crate::target::Target;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use turnstone_net::tls::TlsFiles;

/// How often it is looked whether a hook has ended.
const HOOK_LOOK: Duration = Duration::from_millis(20);

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
    /// Where lines go.
    pub target: Target,
    /// Where the cursors are, unless the target has them: the partition is added to this name.
    pub state_file: PathBuf,
    /// What is counted of each partition.
    pub statuses: Arc<Vec<Status>>,
    /// Its certificate.
    pub tls: TlsFiles,
    /// The log.
    pub log: LogLine,
    stopping: Mutex<bool>,
    stopped: Condvar,
}

impl Context {
    /// From settings whose paths are resolved.
    pub fn new(settings: Settings, tls: TlsFiles, target: Target, log: LogLine) -> Context {
        // What goes elsewhere is read by another consumer than the one that writes files: each goes on where it was.
        let name = format!("{}{}", settings.id, target.suffix());
        let mut state_file = settings.state_file.clone().into_os_string();
        state_file.push(target.suffix());
        let statuses = Arc::new(settings.partition.numbers().into_iter().map(Status::of).collect());
        let (stopping, stopped) = (Mutex::new(false), Condvar::new());
        Context { settings, name, target, state_file: state_file.into(), statuses, tls, log, stopping, stopped }
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
        !self.settings.exec.is_empty() && matches!(self.target, Target::Files(_))
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
}

/// Runs a consumer until [`Context::stop`], or until a partition cannot go on without a person.
pub fn run(context: &Context) -> Result<(), String> {
    // A store sees to it itself.
    let owner = match &context.target {
        Target::Files(_) | Target::Stdout => Some(Owner::of_state(&context.state_file)?),
        Target::Store(_) => None,
    };
    let mut taken = Vec::new();
    if let (Some(owner), Target::Files(directory)) = (&owner, &context.target) {
        for status in context.statuses.iter() {
            taken.push(owner.take(directory, status.partition, &context.name)?);
        }
    }
    if !context.settings.metrics_addr.is_empty() {
        http::serve("metrics_addr", &context.settings.metrics_addr, Counted(context.statuses.clone()))?;
    }
    follow(context)
}

/// Follows every partition, until all have ended.
fn follow(context: &Context) -> Result<(), String> {
    let first: Mutex<Option<String>> = Mutex::new(None);
    std::thread::scope(|scope| {
        let threads: Vec<_> = context
            .statuses
            .iter()
            .map(|status| {
                let (follower, first) = (Follower::new(context, status.partition, status), &first);
                let follow = move || {
                    let ended = follower.run();
                    if let Err(why) = ended {
                        first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
                        // The others publish what they have.
                        context.stop();
                    }
                };
                let name = format!("cdc-p{}", status.partition);
                std::thread::Builder::new().name(name).spawn_scoped(scope, follow)
            })
            .collect();
        for thread in threads {
            let failed = match thread {
                Ok(thread) => thread.join().err().map(|_| "a thread has panicked".to_string()),
                Err(error) => {
                    context.stop();
                    Some(format!("no thread for a partition: {error}"))
                }
            };
            if let Some(why) = failed {
                first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
            }
        }
    });
    // What comes behind it may come of it.
    first.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// What is asked for by HTTP.
struct Counted(Arc<Vec<Status>>);

impl Answers for Counted {
    fn metrics(&self) -> String {
        status::metrics(self.0.iter())
    }

    fn health(&self) -> Result<(), String> {
        status::health(&self.0)
    }
}
