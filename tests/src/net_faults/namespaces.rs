//! Hosts of a cluster on one machine: network namespaces on a bridge, with packets dropped between them at will.
//!
//! All of it lives in namespaces of the calling process ([`enter`]): nothing outside is touched, nothing is left behind,
//! and where the system lets users make namespaces nobody needs to be root. A fault is a rule of the receiving host's
//! firewall, so the connections of before meet it, too, and a direction can be cut alone.

use std::io::Write;
use std::process::{Command, ExitCode, Stdio};

/// Set in a process whose namespaces are its own.
const ENTERED: &str = "OWN_NAMESPACES";

/// What is in the way of namespaces here; an error says what to install or allow.
fn way_in() -> Result<Vec<&'static str>, String> {
    for (program, flag, package) in
        [("unshare", "-V", "util-linux"), ("ip", "-V", "iproute2"), ("nft", "-v", "nftables")]
    {
        let found = Command::new(program).arg(flag).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            return Err(format!("there is no `{program}`: install {package}"));
        }
    }
    let own = vec!["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let as_user = [vec!["--user", "--map-root-user"], own.clone()].concat();
    for words in [own, as_user] {
        // The kernel must know the rules, too.
        let probe = "nft add table inet probe && ip link add probe type bridge";
        let made = Command::new("unshare").args(&words).args(["sh", "-c", probe]).stderr(Stdio::null()).status();
        if made.is_ok_and(|status| status.success()) {
            return Ok(words);
        }
    }
    Err("network namespaces cannot be made here: run it as root, or allow users to make them".to_string())
}

/// Runs this program again in namespaces of its own, unless that has happened: then it answers `None`.
pub fn enter(words: &[String]) -> Result<Option<ExitCode>, String> {
    if std::env::var_os(ENTERED).is_some() {
        run("mount", &["-t", "tmpfs", "none", "/run"])?;
        return Ok(None);
    }
    let itself = std::env::current_exe().map_err(|e| e.to_string())?;
    let status = Command::new("unshare").args(way_in()?).arg(itself).args(words).env(ENTERED, "1").status();
    let status = status.map_err(|e| format!("unshare: {e}"))?;
    Ok(Some(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }))
}

/// Why [`enter`] would fail, if it would.
pub fn unavailable() -> Option<String> {
    way_in().err()
}

fn run(program: &str, words: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(words).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

/// What happens to packets on their way between hosts. Clients, which sit beside the bridge, are not concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Directions that are cut: from, to.
    pub cut: Vec<(usize, usize)>,
    /// So many of a hundred packets are lost, at random.
    pub loss_percent: u64,
}

/// The hosts.
pub struct Network {
    hosts: usize,
}

impl Network {
    /// Makes so many hosts and their bridge.
    pub fn new(hosts: usize) -> Result<Network, String> {
        run("ip", &["link", "set", "lo", "up"])?;
        run("ip", &["link", "add", "bridge", "type", "bridge"])?;
        run("ip", &["address", "add", "10.77.0.254/24", "dev", "bridge"])?;
        run("ip", &["link", "set", "bridge", "up"])?;
        for host in 0..hosts {
            let (name, port) = (Network::name(host), format!("port{host}"));
            run("ip", &["netns", "add", &name])?;
            run("ip", &["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
            run("ip", &["link", "set", &port, "master", "bridge", "up"])?;
            let inside = |words: &[&str]| run("ip", &[&["-n", &name], words].concat());
            inside(&["address", "add", &format!("{}/24", Network::address(host)), "dev", "eth0"])?;
            inside(&["link", "set", "eth0", "up"])?;
            inside(&["link", "set", "lo", "up"])?;
        }
        let network = Network { hosts };
        network.apply(&Rules::default())?;
        Ok(network)
    }

    fn name(host: usize) -> String {
        format!("host{host}")
    }

    /// A host's address.
    pub fn address(host: usize) -> String {
        format!("10.77.0.{}", host + 1)
    }

    /// Words before a command that runs it on a host.
    pub fn on(host: usize) -> [String; 4] {
        ["ip".to_string(), "netns".to_string(), "exec".to_string(), Network::name(host)]
    }

    /// Puts these rules in the place of those before.
    pub fn apply(&self, rules: &Rules) -> Result<(), String> {
        (0..self.hosts).try_for_each(|host| self.apply_on(host, rules))
    }

    fn apply_on(&self, host: usize, rules: &Rules) -> Result<(), String> {
        let mut text = String::from(
            "add table inet faults\n\
             add chain inet faults in { type filter hook input priority 0; policy accept; }\n\
             flush chain inet faults in\n",
        );
        for from in (0..self.hosts).filter(|from| *from != host) {
            let rule = format!("add rule inet faults in ip saddr {}", Network::address(from));
            if rules.cut.contains(&(from, host)) {
                text += &format!("{rule} drop\n");
            } else if rules.loss_percent > 0 {
                text += &format!("{rule} numgen random mod 100 < {} drop\n", rules.loss_percent);
            }
        }
        let on = Network::on(host);
        let mut nft = Command::new(&on[0])
            .args(&on[1..])
            .args(["nft", "-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("nft: {e}"))?;
        if let Some(mut input) = nft.stdin.take() {
            input.write_all(text.as_bytes()).map_err(|e| format!("nft: {e}"))?;
        }
        let output = nft.wait_with_output().map_err(|e| format!("nft: {e}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("nft: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }
}
