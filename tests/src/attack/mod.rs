//! The attack campaign: bad connections in great numbers against the real server, beside a client that must not notice.
//!
//! * [`certificates`], [`bytes`], [`frames`]: what attackers do.
//! * [`dial`]: one connection of an attacker.
//! * [`good_client`], [`watch`], [`report`]: what is measured, and the bounds.
//! * [`campaign`]: all of it against one server. [`floods`]: limits that are reached. [`capacity`]: what connections cost.

pub mod bytes;
pub mod campaign;
pub mod capacity;
pub mod certificates;
pub mod dial;
pub mod floods;
pub mod frames;
pub mod good_client;
pub mod options;
pub mod report;
pub mod watch;

use crate::real::{TestHome, TestServer};
use dial::{Expect, How, Identity};
use rustls::ClientConfig;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use turnstone_net::tls::Role;
use turnstone_tools::bench::workload::Numbers;

/// What attackers share: where the server is, and good certificates for those who misbehave later.
pub struct Ground {
    /// The server.
    pub address: SocketAddr,
    /// Shows a client's certificate.
    pub client: Arc<ClientConfig>,
    /// Shows an admin's.
    pub admin: Arc<ClientConfig>,
    /// Shows a cdc's.
    pub cdc: Arc<ClientConfig>,
}

impl Ground {
    /// For this server.
    pub fn new(home: &TestHome, server: &TestServer) -> Ground {
        let of = |role| dial::config(Some(Identity::of_files(&home.files(role))), dial::TURNSTONE2);
        Ground {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, server.port)),
            client: of(Role::Client),
            admin: of(Role::Admin),
            cdc: of(Role::Cdc),
        }
    }
}

/// What one connection of a case does.
pub enum Attack {
    /// Greets as this host would be greeted, and pings.
    Greet(Arc<ClientConfig>, &'static str),
    /// Anything.
    Run(fn(&Ground, &mut Numbers) -> How),
}

/// A kind of bad connection, or a good one as a control.
pub struct Case {
    /// Its name in the table.
    pub name: &'static str,
    /// How it should end.
    pub expect: Expect,
    /// What the server's log must say of it; nothing if empty.
    pub reason: &'static str,
    /// What it does.
    pub attack: Attack,
    /// How often it is chosen, beside the others. Those with 1 take until a deadline.
    pub weight: u64,
}

impl Case {
    fn run(&self, ground: &Ground, numbers: &mut Numbers) -> How {
        match &self.attack {
            Attack::Greet(config, host) => dial::greet(ground.address, config, host),
            Attack::Run(run) => run(ground, numbers),
        }
    }
    /// Whether it takes until a deadline.
    fn is_slow(&self) -> bool {
        self.weight == 1
    }
}

/// All cases of all kinds.
pub fn cases(home: &TestHome) -> Vec<Case> {
    let mut all = certificates::matrix(home);
    all.extend(bytes::cases());
    all.extend(frames::cases());
    all
}
