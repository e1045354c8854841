//! `turnstone demo`: a temporary home, a real server, one transaction through a real client.

use crate::config::Config;
use crate::home::Home;
use crate::init::{InitOptions, init};
use crate::serve;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use turnstone_net::client::{ClientError, ClientSettings, Connection};
use turnstone_net::server::Server;
use turnstone_net::tls::{ClientOffer, Role};

/// A running demo; its home is removed when it ends.
pub struct Demo {
    /// The server.
    pub server: Server,
    home: PathBuf,
    lock: serve::HomeLock,
}

/// Makes a home, starts a server on a free port of this machine, runs a transaction and prints what happened.
pub fn start(out: &mut impl Write) -> Result<Demo, String> {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    let root = std::env::temp_dir().join(format!("turnstone-demo-{}-{nanos}", std::process::id()));
    match start_in(&root, out) {
        Ok(demo) => Ok(demo),
        Err(error) => {
            // What was made of it is of no use to anybody.
            let _ = std::fs::remove_dir_all(&root);
            Err(error)
        }
    }
}

fn start_in(root: &PathBuf, out: &mut impl Write) -> Result<Demo, String> {
    let home = Home::new(root);
    init(&home, &InitOptions { hosts: Vec::new(), ca_from: None }).map_err(|e| e.to_string())?;
    let lock = serve::lock(&home)?;
    let config = Config::load(&home, &[], std::iter::empty()).map_err(|e| e.to_string())?;
    let log = serve::start_log(&config)?;
    let server = serve::start(&home, &config, log, Some(SocketAddr::from(([127, 0, 0, 1], 0))), None)?;
    server.wait_ready()?;
    let address = server.address();
    let shown = root.display();
    let print = |out: &mut dyn Write, line: String| writeln!(out, "{line}").map_err(|e| e.to_string());
    print(out, format!("A server runs at {address}, its home is {shown}."))?;
    let settings = ClientSettings {
        address: format!("localhost:{}", address.port()),
        files: home.tls_files(Role::Client),
        offer: ClientOffer::TURNSTONE2,
        timeout: Duration::from_secs(10),
    };
    let lines = transaction(&settings).map_err(|e| e.to_string())?;
    for line in lines {
        print(out, line)?;
    }
    Ok(Demo { server, home: root.clone(), lock })
}

/// The requirement's session; each command with what it answered.
fn transaction(settings: &ClientSettings) -> Result<Vec<String>, ClientError> {
    let mut connection = Connection::connect(settings)?;
    let mut lines = Vec::new();
    let mut say = |command: &str, answer: String| lines.push(format!("> {command}\n{answer}"));
    connection.select(1)?;
    say("select 1", "OK".to_string());
    connection.begin()?;
    say("begin", "OK".to_string());
    connection.set(b"mykey", b"Hello Turnstone")?;
    say("set mykey \"Hello Turnstone\"", "OK".to_string());
    let position = connection.commit()?;
    say("commit", format!("OK, durable at {position}"));
    let found = connection.get(b"mykey")?;
    let answer = found.map_or("(nil)".to_string(), |v| format!("OK: {}", String::from_utf8_lossy(&v)));
    say("get mykey", answer);
    Ok(lines)
}

impl Demo {
    /// How to talk to it from another terminal.
    pub fn hint(&self) -> String {
        let (home, port) = (self.home.display(), self.server.address().port());
        format!(
            "It stays up until interrupted. Talk to it from another terminal:\n  turnstone-cli --home {home} --host localhost:{port}"
        )
    }

    /// Stops the server and removes its home.
    pub fn end(self) -> Result<(), String> {
        self.server.shut_down();
        let joined = self.server.join();
        drop(self.lock);
        std::fs::remove_dir_all(&self.home).map_err(|e| format!("{} cannot be removed: {e}", self.home.display()))?;
        joined
    }
}
