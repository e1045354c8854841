//! Faults that the simulator finds and that are not mended yet: which features a run needs to show each, and a seed that does.
//!
//! Runs are made without what shows these faults; each listed seed must still show its own. Who mends a fault deletes its line.

use super::features::{Feature, Features};

/// A fault that is not mended yet.
pub struct Known {
    /// Its name in the reviews that found it.
    pub fault: &'static str,
    /// What a run needs to show it: no other run tries or checks these.
    pub shown_by: &'static [Feature],
    /// What the seed's run tries and checks.
    pub features: &'static [Feature],
    /// A seed that shows it.
    pub seed: u64,
    /// A part of what the run says.
    pub says: &'static str,
}

/// The list.
pub const KNOWN: [Known; 15] = [
    Known {
        fault: "C1: while a member is away its leader asks all others for promises again, which ends their streams",
        shown_by: &[Feature::DeadMember],
        features: &[Feature::DeadMember],
        seed: 0,
        says: "streams between the others began anew",
    },
    Known {
        fault: "C1: a transaction that takes longer than a second on the line is never committed",
        shown_by: &[Feature::SlowLinks],
        features: &[Feature::SlowLinks],
        seed: 28,
        says: "no commit within",
    },
    Known {
        fault: "C1b: a leader takes an order at another node back",
        shown_by: &[Feature::OrdersStand],
        features: &[Feature::Orders, Feature::OrdersStand],
        seed: 0,
        says: "now it is Follower",
    },
    Known {
        fault: "M1: a promotion takes back an order that came later",
        shown_by: &[Feature::OrdersStand],
        features: &[Feature::Orders, Feature::OrdersStand],
        seed: 20,
        says: "now it is Leader, leads: true",
    },
    Known {
        fault: "C2, N-1: a node that joined a moment ago leads with nothing",
        shown_by: &[Feature::Join],
        features: &[Feature::Join],
        seed: 5,
        says: "leads by a promotion without force and lacks",
    },
    Known {
        fault: "C2, N-1: a node that missed the change from N = 0 leads without what followers had to hold",
        shown_by: &[Feature::ZeroReplicas],
        features: &[Feature::ZeroReplicas, Feature::Move, Feature::NewKey, Feature::SlowLinks, Feature::MonotonicReads],
        seed: 552,
        says: "leads by a promotion without force and lacks",
    },
    Known {
        fault: "H1: a restarted node shows less than it has told",
        shown_by: &[Feature::MonotonicReads],
        features: &[Feature::MonotonicReads],
        seed: 0,
        says: "go back",
    },
    Known {
        fault: "M3: a member that was forgotten is one again within a second",
        shown_by: &[Feature::Forget],
        features: &[Feature::Forget],
        seed: 2,
        says: "was forgotten, and is a member",
    },
    Known {
        fault: "N-2: members with new addresses are asked at the old ones",
        shown_by: &[Feature::Move],
        features: &[Feature::Move],
        seed: 2,
        says: "is refused although",
    },
    Known {
        fault: "a certificate with another key ends replication until its node is forgotten everywhere",
        shown_by: &[Feature::NewKey],
        features: &[Feature::NewKey],
        seed: 0,
        says: "no commit within",
    },
    Known {
        fault: "N-7: a leader follows its own follower",
        shown_by: &[Feature::Circles],
        features: &[Feature::Orders, Feature::Circles],
        seed: 1,
        says: "in a circle",
    },
    Known {
        fault: "engine 1: a read in flight tells what is not published when its session's commits time out",
        shown_by: &[Feature::Sessions],
        features: &[Feature::Sessions, Feature::SlowLinks],
        seed: 2,
        says: "no log has it",
    },
    Known {
        fault: "engine 3: each retry of a checkpoint writes all its values again",
        shown_by: &[Feature::IndexRefuses],
        features: &[Feature::Join, Feature::Force, Feature::SlowLinks, Feature::IndexRefuses],
        seed: 239,
        says: "its value files grew",
    },
    Known {
        fault: "engine 11: two openings of one directory replace its manifest",
        shown_by: &[Feature::Sessions, Feature::Holds],
        features: &[Feature::Sessions, Feature::SlowLinks],
        seed: 12,
        says: "rename of manifest.new failed",
    },
    Known {
        fault: "a partition whose index takes no ingestion while a copy takes its place is offline until a restart",
        shown_by: &[Feature::IndexRefuses],
        features: &[Feature::IndexRefuses],
        seed: 4,
        says: "does not open after a copy",
    },
];

/// What runs leave out meanwhile.
pub fn features() -> Features {
    KNOWN.iter().fold(Features::NONE, |all, known| all.and(Features::of(known.shown_by)))
}
