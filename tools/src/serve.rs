//! From a home directory and its settings to a running server.

use crate::config::Config;
use crate::home::Home;
use std::fs::{File, TryLockError};
use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;
use turnstone_engine::Settings;
use turnstone_engine::env::{Level, Sabotage};
use turnstone_executor::descriptors::Descriptors;
use turnstone_executor::log::Format;
use turnstone_executor::{Log, NodeOptions};
use turnstone_net::server::{Server, ServerSettings};

/// A connection that moved this often is forwarded from then on.
const MOVES_MAX: u32 = 16;
/// The space assured ahead of a value file's end.
const VALUE_ALLOCATION: u64 = 8 << 20;
/// An idle log vouches for its last batch well within the 100 ms that the documentation promises.
const IDLE_VOUCH: Duration = Duration::from_millis(50);

/// A home that no other process serves; it is given back when dropped.
pub struct HomeLock {
    _file: File,
}

/// Takes a home for this process.
pub fn lock(home: &Home) -> Result<HomeLock, String> {
    let path = home.lock_file();
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|e| format!("{} cannot be opened: {e}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(format!(
                "{} is served by another process; stop it first, or use another --home",
                home.root().display()
            ));
        }
        Err(TryLockError::Error(error)) => return Err(format!("{} cannot be locked: {error}", path.display())),
    }
    // For people who look; the lock itself is the system's and ends with the process.
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(HomeLock { _file: file })
}

/// Refuses fewer partitions than there are on disk: their data would silently not be served.
pub fn check_partitions(data: &Path, configured: u64) -> Result<(), String> {
    let entries = match std::fs::read_dir(data) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("{} cannot be listed: {error}", data.display())),
    };
    let mut highest = 0;
    for entry in entries {
        let entry = entry.map_err(|e| format!("{} cannot be listed: {e}", data.display()))?;
        let number: Option<u64> = entry.file_name().to_str().and_then(|n| n.parse().ok());
        highest = highest.max(number.unwrap_or(0));
    }
    if highest > configured {
        return Err(format!(
            "number_of_partitions is {configured}, but {} holds partition {highest}; set it to {highest} or more",
            data.display()
        ));
    }
    Ok(())
}

/// The log that the settings ask for.
pub fn start_log(config: &Config) -> Result<Log, String> {
    let level = match config.log_level.as_str() {
        "error" => Level::Error,
        "warn" => Level::Warn,
        "debug" => Level::Debug,
        _ => Level::Info,
    };
    let format = if config.log_format == "json" { Format::Json } else { Format::Text };
    Log::start(format, level).map_err(|e| format!("the log cannot be started: {e}"))
}

/// Where the settings say to listen.
pub fn listen_address(config: &Config) -> Result<SocketAddr, String> {
    let address = config.listen_address().map_err(|e| e.to_string())?;
    let mut found = (address.listen_host(), address.port)
        .to_socket_addrs()
        .map_err(|e| format!("port: {} is no address of this machine: {e}", address.listen_host()))?;
    found.next().ok_or_else(|| format!("port: {} has no address", address.listen_host()))
}

/// The partition's share of a node-wide figure.
fn share(total: u64, partitions: u64) -> u64 {
    total / partitions.max(1)
}

/// What each partition is opened with.
pub fn engine_settings(config: &Config) -> Settings {
    let partitions = config.number_of_partitions;
    Settings {
        wal_max_size: config.wal_max_size,
        wal_retention: config.wal_retention,
        wal_retention_bytes: share(config.wal_retention_bytes, partitions),
        delete_reserve: share(config.delete_reserve, partitions),
        truncate_corrupt_wal: config.truncate_corrupt_wal,
        max_key_size: config.max_key_size as usize,
        max_value_size: config.max_value_size as usize,
        max_tx_size: config.max_tx_size,
        max_tx_age: config.max_tx_age,
        min_replicas: config.min_replicas as u32,
        quorum_timeout: config.quorum_timeout,
        copy_rate: config.copy_rate,
        max_consumer_hold: config.max_consumer_hold,
        value_separation: config.value_separation as usize,
        value_file_size: config.value_file_size,
        value_allocation: VALUE_ALLOCATION,
        overlay_budget: share(config.overlay_budget, partitions).max(config.checkpoint_bytes.saturating_mul(4)),
        checkpoint_bytes: config.checkpoint_bytes,
        checkpoint_wal_bytes: config.checkpoint_wal_bytes,
        checkpoint_interval: config.checkpoint_interval,
        cache_bytes: share(config.cache_size, partitions),
        idle_vouch: IDLE_VOUCH,
        ..Settings::default()
    }
}

/// Starts a server on a home that is locked. `listen` overrides the settings, `sabotage` is for tests.
pub fn start(
    home: &Home,
    config: &Config,
    log: Log,
    listen: Option<SocketAddr>,
    sabotage: Option<Sabotage>,
) -> Result<Server, String> {
    check_partitions(&home.data(), config.number_of_partitions)?;
    for (name, limit) in turnstone_executor::ring::sys::raise_limits() {
        let shown = if limit == u64::MAX { "unlimited".to_string() } else { limit.to_string() };
        log.line(Level::Debug, &format!("limit {name}: {shown}"));
    }
    let descriptors = Descriptors::of_process(config.number_of_partitions);
    if config.max_conns.saturating_add(config.max_handshakes) > descriptors.sockets {
        log.line(
            Level::Warn,
            &format!(
                "open files are limited to {}: {} are kept for files, and max_conns ({}) with max_handshakes ({}) passes what \
                 is left; connections beyond it are refused; raise the limit (ulimit -n, LimitNOFILE=)",
                descriptors.limit,
                descriptors.limit - descriptors.sockets,
                config.max_conns,
                config.max_handshakes
            ),
        );
    }
    let settings = ServerSettings {
        node: node_number(&home.data())?,
        life: turnstone_executor::node::system_random(),
        listen: match listen {
            Some(address) => address,
            None => listen_address(config)?,
        },
        advertise: config.advertise.clone(),
        tls: config.tls_files(home),
        partitions: config.number_of_partitions as u8,
        max_conns: config.max_conns as usize,
        sockets_max: descriptors.sockets,
        max_handshakes: config.max_handshakes as usize,
        handshake_timeout: config.handshake_timeout,
        request_timeout: config.request_timeout,
        idle_timeout: config.idle_timeout,
        write_timeout: config.write_timeout,
        max_request_size: config.max_request_size as u32,
        request_memory: config.request_memory,
        shutdown_timeout: config.shutdown_timeout,
        engine: Settings { value_handles: descriptors.value_files, ..engine_settings(config) },
        moves_max: MOVES_MAX,
    };
    let options = NodeOptions {
        executors: config.executors as usize,
        data: home.data(),
        index_cache_bytes: share(config.index_cache_size, config.number_of_partitions).max(1 << 20),
        index_files: descriptors.index_files,
        shared_flush: config.flush == "shared",
        sabotage,
    };
    if let Err(error) = turnstone_executor::ring::sys::forgo_huge_pages() {
        log.line(Level::Debug, &format!("huge pages stay allowed: {error}"));
    }
    check_kernel(&log)?;
    check_locked_memory()?;
    Server::start(settings, options, log)
}

/// The number of this node, drawn at its first start and kept beside the partitions.
fn node_number(data: &Path) -> Result<u64, String> {
    let path = data.join("node");
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    match std::fs::read_to_string(&path) {
        Ok(text) => u64::from_str_radix(text.trim(), 16)
            .map_err(|_| format!("{} does not hold 16 hexadecimal digits; restore it", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let number = turnstone_executor::node::system_random();
            std::fs::create_dir_all(data).map_err(failed)?;
            let draft = data.join("node.new");
            std::fs::write(&draft, format!("{number:016x}\n")).map_err(failed)?;
            std::fs::File::open(&draft).and_then(|file| file.sync_all()).map_err(failed)?;
            std::fs::rename(&draft, &path).map_err(failed)?;
            std::fs::File::open(data).and_then(|directory| directory.sync_all()).map_err(failed)?;
            Ok(number)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Rings are in locked memory, of which each executor needs so much.
const LOCKED_MIN: u64 = 512 << 10;

/// Where the hard limit is too low no core starts, however often it is tried.
fn check_locked_memory() -> Result<(), String> {
    match turnstone_executor::ring::sys::raise_limits().into_iter().find(|(name, _)| *name == "memlock") {
        Some((_, limit)) if limit < LOCKED_MIN => Err(format!(
            "this process may lock {limit} bytes of memory, and the executors' rings need {LOCKED_MIN}: raise RLIMIT_MEMLOCK \
             (ulimit -l, LimitMEMLOCK= of systemd, --ulimit memlock= of a container)"
        )),
        _ => Ok(()),
    }
}

/// The kernel floor is 6.1: older ones lack what the rings are built on.
fn check_kernel(log: &Log) -> Result<(), String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version != (0, 0) && version < (6, 1) {
        return Err(format!("Linux {} is too old: TurnstoneDB needs 6.1 or newer for io_uring", release.trim()));
    }
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    match disabled.trim() {
        "2" => {
            return Err("io_uring is disabled (kernel.io_uring_disabled = 2); set it to 0 or 1 with sysctl".to_string());
        }
        "1" => log.line(Level::Debug, "io_uring is restricted to privileged processes (kernel.io_uring_disabled = 1)"),
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_locked_once_and_fewer_partitions_than_on_disk_are_refused() {
        let root = std::env::temp_dir().join(format!("turnstone-serve-{}", std::process::id()));
        std::fs::create_dir_all(root.join("data/7")).unwrap();
        let home = Home::new(&root);
        let first = lock(&home).unwrap();
        assert!(lock(&home).is_err_and(|e| e.contains("another process")));
        drop(first);
        assert!(lock(&home).is_ok());
        assert!(check_partitions(&home.data(), 6).is_err_and(|e| e.contains("set it to 7")));
        assert!(check_partitions(&home.data(), 7).is_ok());
        std::fs::remove_dir_all(root).unwrap();
    }
}
