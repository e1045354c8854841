//! Orders about a partition's replication, as words: what the command line sends as it was typed.
//!
//! `promote [N] [force]`, `stepdown`, `replicaof HOST:PORT PARTITION [force]`, `replicaof no one`, `min_replicas N`,
//! `replicas`, `replicas forget ID`, `role`, `digest`.

use crate::client::Address;
use crate::replica::{Order as Promotion, Purpose};
use turnstone_engine::manifest::Upstream;

/// Longest address of a leader, bytes.
const ADDRESS_MAX: usize = 300;
/// Followers that can be asked for.
const MIN_REPLICAS_MAX: u32 = 16;

/// What is ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// `replicaof`; nobody for `None`. With force what this log has beyond the leader's is set aside.
    Follow(Option<Upstream>, bool),
    /// `promote`.
    Promote(Promotion),
    /// `stepdown`.
    StepDown,
    /// `min_replicas N`.
    MinReplicas(u32),
    /// `replicas`.
    Replicas,
    /// `replicas forget ID`.
    Forget(u64),
    /// `role`.
    Role,
    /// `digest`: a hash of what is shown, and its position.
    Digest,
}

fn count(word: &str) -> Result<u32, String> {
    let digits = !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
    match word.parse() {
        Ok(n) if digits && n <= MIN_REPLICAS_MAX => Ok(n),
        _ => Err(format!(
            "'{}' is no count of replicas; it is a number from 0 to {MIN_REPLICAS_MAX}",
            word.escape_debug()
        )),
    }
}

/// Reads an order; the error says what is wrong with it.
pub fn parse(words: &[u8]) -> Result<Order, String> {
    let text = std::str::from_utf8(words).map_err(|_| "an order is text".to_string())?;
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let promotion =
        |min_replicas, force| Order::Promote(Promotion { min_replicas, force, purpose: Purpose::Operator, above: 0 });
    Ok(match words[..] {
        ["promote"] => promotion(None, false),
        ["promote", "force"] => promotion(None, true),
        ["promote", n] => promotion(Some(count(n)?), false),
        ["promote", n, "force"] => promotion(Some(count(n)?), true),
        ["stepdown"] => Order::StepDown,
        ["replicaof", "no", "one"] => Order::Follow(None, false),
        ["replicaof", address, partition] => Order::Follow(Some(upstream(address, partition)?), false),
        ["replicaof", address, partition, "force"] => Order::Follow(Some(upstream(address, partition)?), true),
        ["min_replicas", n] => Order::MinReplicas(count(n)?),
        ["replicas"] => Order::Replicas,
        ["replicas", "forget", id] => match u64::from_str_radix(id, 16) {
            Ok(node) => Order::Forget(node),
            Err(_) => return Err(format!("'{}' is no node's number; `replicas` lists them", id.escape_debug())),
        },
        ["role"] => Order::Role,
        ["digest"] => Order::Digest,
        _ => return Err(format!("'{}' is no order about replication", text.escape_debug())),
    })
}

fn upstream(address: &str, partition: &str) -> Result<Upstream, String> {
    let good = address.len() <= ADDRESS_MAX && address.parse::<Address>().is_ok();
    if !good {
        return Err("the leader's address is not HOST:PORT".to_string());
    }
    match crate::wire::partition_from_decimal(partition.as_bytes()).filter(|p| *p != 0) {
        Some(partition) => Ok(Upstream { address: address.to_string(), partition }),
        None => Err("the leader's partition is a number from 1 to 16".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_read_and_a_wrong_number_is_never_zero() {
        let promotion = |min_replicas, force| {
            Ok(Order::Promote(Promotion { min_replicas, force, purpose: Purpose::Operator, above: 0 }))
        };
        assert_eq!(parse(b"promote"), promotion(None, false));
        assert_eq!(parse(b"promote 2 force"), promotion(Some(2), true));
        assert_eq!(parse(b"replicas forget 00000000000000ff"), Ok(Order::Forget(255)));
        assert_eq!(parse(b"replicaof no one"), Ok(Order::Follow(None, false)));
        let upstream = Upstream { address: "a:1".to_string(), partition: 3 };
        assert_eq!(parse(b"replicaof a:1 3 force"), Ok(Order::Follow(Some(upstream), true)));
        for bad in ["promote x", "promote +1", "promote 17", "min_replicas", "min_replicas -1", "replicas forget x", ""]
        {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        for bad in ["replicaof a:x 1", "replicaof a:1 0", "replicaof a:1 17", "replicaof a:1 1 now"] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
