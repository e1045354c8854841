//! The cluster: a server process on each host, and what an operator does with it.

use super::clients::TIMEOUT;
use super::namespaces::Network;
use crate::real::{TestHome, TestServer, binary};
use std::time::{Duration, Instant};
use turnstone_net::client::{ClientSettings, Connection};
use turnstone_net::tls::{ClientOffer, Role};
use turnstone_net::wire::Request;

/// The partition that is written to.
pub const PARTITION: u8 = 1;
const PORT: u16 = 6379;
/// Small, so that checkpoints, purges and copies happen often.
const FLAGS: [&str; 12] = [
    "--executors",
    "1",
    "--number-of-partitions",
    "1",
    "--quorum-timeout",
    "1s",
    "--checkpoint-bytes",
    "512KiB",
    "--wal-max-size",
    "1MiB",
    "--wal-retention-bytes",
    "24MiB",
];

struct Node {
    home: TestHome,
    /// None while it is down.
    server: Option<TestServer>,
    paused: bool,
    settings: ClientSettings,
}

/// All nodes.
pub struct Nodes(Vec<Node>);

impl Nodes {
    /// Starts a node on each host; the others follow the first.
    pub fn start(hosts: usize) -> Result<Nodes, String> {
        let mut nodes = Nodes(Vec::new());
        for host in 0..hosts {
            let address = Network::address(host);
            let mut flags = vec!["--host".to_string(), address.clone()];
            if let Some(first) = nodes.0.first() {
                flags.extend(["--ca-from".to_string(), first.home.path().display().to_string()]);
            }
            let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
            let home = TestHome::with(&format!("net-faults-{host}"), &flags);
            let settings = ClientSettings {
                address: format!("{address}:{PORT}"),
                files: home.files(Role::Admin),
                offer: ClientOffer::TURNSTONE2,
                timeout: TIMEOUT,
            };
            nodes.0.push(Node { home, server: None, paused: false, settings });
            nodes.start_one(host)?;
        }
        for host in 1..hosts {
            let address = format!("{}:{PORT}", Network::address(0));
            let follow = Request::ReplicaOf { address: address.as_bytes(), partition: b"1" };
            nodes.ask(host, &follow)?;
        }
        Ok(nodes)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// How clients reach them.
    pub fn settings(&self) -> Vec<ClientSettings> {
        self.0.iter().map(|node| node.settings.clone()).collect()
    }

    /// Whether it runs.
    pub fn is_up(&self, n: usize) -> bool {
        self.0[n].server.is_some() && !self.0[n].paused
    }

    /// `kill -9`.
    pub fn kill(&mut self, n: usize) {
        if let Some(mut server) = self.0[n].server.take() {
            server.kill();
            self.0[n].paused = false;
        }
    }

    /// Starts one that is down.
    pub fn start_one(&mut self, n: usize) -> Result<(), String> {
        if self.0[n].server.is_some() {
            return Ok(());
        }
        let address = format!("{}:{PORT}", Network::address(n));
        let before = Network::on(n);
        let before: Vec<&str> = before.iter().map(String::as_str).collect();
        let started = self.0[n].home.try_serve_at(&address, &before, binary("turnstone"), &FLAGS);
        self.0[n].server = Some(started.map_err(|log| format!("node {n} does not start:\n{log}"))?);
        Ok(())
    }

    /// Stops a process where it is, or lets it go on.
    pub fn pause(&mut self, n: usize, paused: bool) {
        let Some(server) = &self.0[n].server else { return };
        if self.0[n].paused == paused {
            return;
        }
        if paused {
            server.pause();
        } else {
            server.go_on();
        }
        self.0[n].paused = paused;
    }

    /// Has everything run again that was stopped.
    pub fn raise(&mut self) -> Result<(), String> {
        for n in 0..self.count() {
            self.pause(n, false);
            self.start_one(n)?;
        }
        Ok(())
    }

    /// An admin's request; answers the text of the reply.
    pub fn ask(&self, n: usize, request: &Request<'_>) -> Result<String, String> {
        let mut connection = Connection::connect(&self.0[n].settings).map_err(|e| e.to_string())?;
        connection.select(PARTITION).map_err(|e| e.to_string())?;
        // A promotion asks the others, and fetches what they have.
        connection.set_timeout(Duration::from_secs(10)).map_err(|e| e.to_string())?;
        let reply = connection.call(request).map_err(|e| e.to_string())?;
        Ok(String::from_utf8_lossy(&reply.body).into_owned())
    }

    /// An order about replication.
    pub fn order(&self, n: usize, words: &str) -> Result<String, String> {
        self.ask(n, &Request::Replication { words: words.as_bytes() })
    }

    /// Waits until all show the same contents at the same position; answers that.
    pub fn agree(&self, patience: Duration) -> Result<String, String> {
        let started = Instant::now();
        loop {
            let digests: Vec<_> = (0..self.count()).map(|n| self.order(n, "digest")).collect();
            if let Ok(first) = &digests[0]
                && digests.iter().all(|digest| digest.as_ref() == Ok(first))
            {
                return Ok(first.clone());
            }
            if started.elapsed() > patience {
                let roles: Vec<_> = (0..self.count()).map(|n| self.order(n, "role")).collect();
                return Err(format!("the nodes do not agree within {patience:?}: {digests:?}, roles {roles:?}"));
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }

    /// What the nodes have logged, the last lines of each.
    pub fn logs(&mut self) -> String {
        let mut text = String::new();
        for (n, node) in self.0.iter_mut().enumerate() {
            let lines = node.server.as_mut().map(TestServer::log).unwrap_or_default();
            let from = lines.len().saturating_sub(40);
            text += &format!("--- node {n}\n{}\n", lines[from..].join("\n"));
        }
        text
    }
}
