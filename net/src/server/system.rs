//! Partition 0: what the node says of itself, as keys and as JSON. It is made when it is asked for, from all cores.
//!
//! Keys: `version`, `uptime_ms`, `executors`, `connections`, `accepted`, `refused` (a JSON object), `refused/REASON`,
//! `partitions` (a JSON list), `partition/N` (a JSON object), `certificate_expires_ms`, `request_memory`, `request_memory_used`,
//! `refused_for_memory`.

use super::refusals::Refusal;
use crate::changes::Consumers;
use crate::replica::Board;
use crate::wire::Position;
use turnstone_engine::Partition;
use turnstone_engine::env::Env;
use turnstone_engine::manifest::Role;
use turnstone_engine::stats::Status;
use turnstone_engine::tail::LogPage;
use turnstone_executor::pace;

/// Partition 0 has no commits; what it answers to one.
pub const POSITION: Position = Position { partition: 0, epoch: 0, epoch_id: 0, version: 0 };

/// What the node says of itself.
pub struct NodeView {
    /// Milliseconds since the start.
    pub uptime_ms: u128,
    /// Executors.
    pub executors: usize,
    /// Connections with a finished handshake.
    pub connections: usize,
    /// Connections accepted since the start.
    pub accepted: u64,
    /// When the first of its certificates ends, milliseconds since 1970.
    pub certificate_expires_ms: u64,
    /// The memory of requests and replies: bytes that are held, bytes that there are, requests refused for want of it.
    pub memory: (u64, u64, u64),
    /// Connections and requests refused since the start, by reason.
    pub refused: Vec<(Refusal, u64)>,
    /// Partition and JSON, in order.
    pub partitions: Vec<(u8, String)>,
}

impl NodeView {
    /// Everything.
    pub fn json(&self) -> String {
        use Refusal::{Certificate, Descriptors, Handshake, HandshakeTimeout, IdleTimeout, MaxConns, MaxHandshakes};
        use Refusal::{RequestTimeout, WentAway, WriteTimeout};
        format!(
            "{{\"version\":\"{}\",\"uptime_ms\":{},\"uptime\":{},\"executors\":{},\"connections\":{},\
             \"active_connections\":{},\"accepted\":{},\
             \"refused_at_max_conns\":{},\"failed_handshakes\":{},\"closed_for_deadline\":{},\"refused\":{},\
             \"certificate_expires_ms\":{},\"request_memory_used\":{},\"request_memory\":{},\"refused_for_memory\":{},\"partitions\":{}}}",
            env!("CARGO_PKG_VERSION"),
            self.uptime_ms,
            self.uptime_ms / 1000,
            self.executors,
            self.connections,
            self.connections,
            self.accepted,
            self.count(&[MaxConns]),
            self.count(&[Handshake, Certificate, MaxHandshakes, Descriptors, WentAway]),
            self.count(&[HandshakeTimeout, RequestTimeout, IdleTimeout, WriteTimeout]),
            self.refused_json(),
            self.certificate_expires_ms,
            self.memory.0,
            self.memory.1,
            self.memory.2,
            self.list()
        )
    }

    /// How many were refused for one of these reasons.
    fn count(&self, kinds: &[Refusal]) -> u64 {
        self.refused.iter().filter(|(kind, _)| kinds.contains(kind)).map(|(_, count)| count).sum()
    }

    fn refused_json(&self) -> String {
        let items: Vec<String> = self.refused.iter().map(|(kind, n)| format!("\"{}\":{n}", kind.name())).collect();
        format!("{{{}}}", items.join(","))
    }

    fn list(&self) -> String {
        let items: Vec<&str> = self.partitions.iter().map(|(_, json)| json.as_str()).collect();
        format!("[{}]", items.join(","))
    }

    /// A key of partition 0.
    pub fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let text = match std::str::from_utf8(key).ok()? {
            "version" => env!("CARGO_PKG_VERSION").to_string(),
            "uptime_ms" => self.uptime_ms.to_string(),
            "executors" => self.executors.to_string(),
            "connections" => self.connections.to_string(),
            "accepted" => self.accepted.to_string(),
            "refused" => self.refused_json(),
            "certificate_expires_ms" => self.certificate_expires_ms.to_string(),
            "request_memory_used" => self.memory.0.to_string(),
            "request_memory" => self.memory.1.to_string(),
            "refused_for_memory" => self.memory.2.to_string(),
            "partitions" => self.list(),
            other if other.starts_with("refused/") => {
                let name = other.strip_prefix("refused/")?;
                self.refused.iter().find(|(kind, _)| kind.name() == name)?.1.to_string()
            }
            other => {
                let number = crate::wire::partition_from_decimal(other.strip_prefix("partition/")?.as_bytes())?;
                self.partitions.iter().find(|(p, _)| *p == number)?.1.clone()
            }
        };
        Some(text.into_bytes())
    }
}

/// A role as `stat` and `role` show it.
pub fn role_name(role: &Role) -> String {
    match role {
        Role::Leader => "leader".to_string(),
        Role::SteppedDown => "stepped-down".to_string(),
        Role::Follower(upstream) => format!("follower of {}/{}", escape(&upstream.address), upstream.partition),
    }
}

/// What `role` answers: one line.
pub fn role_text<E: Env>(partition: &Partition<E>) -> String {
    let standing = partition.standing();
    let leads = if partition.role() == Role::Leader && !standing.leads { " (waits for its followers)" } else { "" };
    let learns = if partition.leadership().learner { " (a learner: it has had more than it has)" } else { "" };
    let min_replicas = standing.members.last().map_or(0, |record| record.members.min_replicas);
    format!(
        "{}{leads}{learns}, epoch {} ({:016x}), min_replicas {min_replicas}, version {} of {}",
        role_name(&partition.role()),
        standing.adopted.number,
        standing.adopted.id,
        standing.published,
        standing.last
    )
}

/// What `replicas` answers: a line for each member, and for each follower that is none.
pub fn replicas_text<E: Env>(partition: &Partition<E>, board: &Board) -> String {
    let shown = partition.published();
    let present = board.replicas(partition.id());
    let members = partition.members();
    let mut lines: Vec<String> = Vec::new();
    for member in &members.nodes {
        let there = present.iter().find(|r| (r.node, r.partition) == member.key());
        let state = match there {
            Some(replica) => format!("durable {}, {} behind", replica.acked, shown.saturating_sub(replica.acked)),
            None => "no stream".to_string(),
        };
        lines.push(format!("{:016x}/{} {} member, {state}", member.node, member.partition, member.address));
    }
    for replica in present.iter().filter(|r| !members.nodes.iter().any(|m| m.key() == (r.node, r.partition))) {
        let behind = shown.saturating_sub(replica.acked);
        lines.push(format!(
            "{:016x}/{} {} durable {}, {behind} behind",
            replica.node, replica.partition, replica.peer, replica.acked
        ));
    }
    if lines.is_empty() { "no replicas".to_string() } else { lines.join("\n") }
}

/// A partition's figures as a JSON object; called on its core.
pub fn partition_json(s: &Status, board: &Board, consumers: &Consumers) -> String {
    let holds: Vec<String> = s
        .holds
        .iter()
        .map(|(name, version, limit)| {
            format!("{{\"name\":\"{}\",\"version\":{version},\"limit_bytes\":{limit}}}", escape(name))
        })
        .collect();
    let role = role_name(&s.role);
    let mut out = format!(
        "{{\"partition\":{p},\"state\":\"open\",\"role\":\"{role}\",\"epoch\":{e},\"position\":\"{p}:{e}:{v}\",\
         \"epoch_id\":\"{:016x}\",\"keys\":{},\"keys_as_of_version\":{}",
        s.epoch_id,
        s.keys,
        s.keys_as_of_version,
        p = s.partition,
        e = s.epoch,
        v = s.version
    );
    if let Some(upstream) = board.upstream(s.partition) {
        out.push_str(&format!(",\"upstream\":\"{}\"", escape(&upstream)));
    }
    let replicas = board.replicas(s.partition).into_iter().map(|r| {
        let lag = s.version.saturating_sub(r.acked);
        format!(
            "{{\"node\":\"{:016x}\",\"peer\":\"{}\",\"durable\":{},\"lag\":{lag}}}",
            r.node,
            escape(&r.peer),
            r.acked
        )
    });
    out.push_str(&format!(",\"replicas\":[{}]", replicas.collect::<Vec<_>>().join(",")));
    let consumers = consumers.of(s.partition).into_iter().map(|c| {
        format!(
            "{{\"name\":\"{}\",\"peer\":\"{}\",\"sent\":{},\"confirmed\":{},\"lag\":{},\"credit\":{}}}",
            escape(&c.name),
            escape(&c.peer),
            c.sent,
            c.confirmed,
            s.version.saturating_sub(c.sent),
            c.credit
        )
    });
    out.push_str(&format!(",\"consumers\":[{}]", consumers.collect::<Vec<_>>().join(",")));
    // The lag of the follower that is furthest behind; at a follower, its own. The lag of a member that is away is not known.
    let present = board.present(s.partition);
    // The leader is a member, too.
    let all_there = s.members.iter().filter(|member| !present.contains(member)).count() <= 1;
    let replica_lag = match s.role {
        Role::Follower(_) => board.lag(s.partition),
        _ if !all_there => None,
        _ => board.replicas(s.partition).into_iter().map(|r| s.version.saturating_sub(r.acked)).max().or(Some(0)),
    };
    let replica_lag = replica_lag.map_or("null".to_string(), |lag| lag.to_string());
    out.push_str(&format!(",\"replica_lag\":{replica_lag}"));
    let stretches = pace::stretches();
    let figures = [
        ("version", s.version),
        ("min_replicas", s.min_replicas),
        ("key_count", s.keys),
        ("open_snapshots", s.open_snapshots),
        ("active_txs", s.open_snapshots),
        ("overlay_bytes", s.overlay_bytes),
        ("wal_segments", s.wal_segments),
        ("wal_spares", s.wal_spares),
        ("wal_checkpointed_bytes", s.wal_checkpointed_bytes),
        ("wal_not_checkpointed_bytes", s.wal_not_checkpointed_bytes),
        ("wal_used_bytes", s.wal_used_bytes),
        ("wal_oldest_version", s.wal_oldest_version),
        ("value_files", s.value_files),
        ("value_used_bytes", s.value_used_bytes),
        ("value_live_bytes", s.value_live_bytes),
        ("garbage_bytes", s.value_garbage_bytes),
        ("value_pinned_bytes", s.value_pinned_bytes),
        ("log_share_bytes", s.log_share_bytes),
        ("runs", s.runs),
        ("run_entries", s.run_entries),
        ("cache_hits", s.cache_hits),
        ("cache_misses", s.cache_misses),
        ("commits", s.commits),
        ("conflicts", s.conflicts),
        ("batches", s.batches),
        ("idle_vouchers", s.idle_vouchers),
        ("log_bytes", s.log_bytes),
        ("waits_for_overlay", s.waits_for_overlay),
        ("waits_for_log_space", s.waits_for_log_space),
        ("checkpoints", s.checkpoints),
        ("base_runs", s.base_runs),
        ("runs_merged", s.runs_merged),
        ("snapshots_given_up", s.snapshots_given_up),
        ("compactions", s.compactions),
        ("core_longest_stretch_us", stretches.longest.as_micros() as u64),
        ("core_long_stretches", stretches.long),
        ("shared_flushes", s.shared_flushes),
        ("shared_flush_writes", s.shared_flush_writes),
        ("priors_asked", s.priors_asked),
        ("index_mended", s.index_mended),
        ("segments_purged", s.segments_purged),
    ];
    for (name, figure) in figures {
        out.push_str(&format!(",\"{name}\":{figure}"));
    }
    out.push_str(&format!(",\"holds\":[{}]}}", holds.join(",")));
    out
}

/// A partition that does not serve.
pub fn offline_json(partition: u8, why: &str) -> String {
    format!("{{\"partition\":{partition},\"state\":\"offline\",\"why\":\"{}\"}}", escape(why))
}

/// A stretch of the log for people: one line per transaction.
pub fn log_text(page: &LogPage) -> Vec<u8> {
    let mut out = String::new();
    for body in &page.batches {
        for (i, operations) in body.transactions.iter().enumerate() {
            let version = body.first_version + i as u64;
            out.push_str(&format!(
                "version {version}: {} operations, commit ms {}\n",
                operations.len(),
                body.commit_ms
            ));
        }
    }
    out.push_str(&format!("next {}", page.next));
    out.into_bytes()
}

fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c < ' ' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out
}
