//! Faults that the simulator finds and that are not mended yet: which features a run needs to show each, and a seed that does.
//!
//! Runs are made without what shows these faults; each listed seed must still show its own. A fault that is mended moves to
//! [`MENDED`].

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
pub const KNOWN: [Known; 0] = [];

/// A fault that was mended.
pub struct Mended {
    /// Its name in the reviews that found it.
    pub fault: &'static str,
    /// What the seed's run tries and checks.
    pub features: &'static [Feature],
    /// A seed that showed it.
    pub seed: u64,
}

/// Seeds that showed a fault until it was mended: they must pass.
pub const MENDED: [Mended; 19] = [
    Mended {
        fault: "C1: while a member is away its leader asks all others for promises again, which ends their streams",
        features: &[Feature::DeadMember],
        seed: 0,
    },
    Mended {
        fault: "C1: a transaction that takes longer than a second on the line is never committed",
        features: &[Feature::SlowLinks],
        seed: 28,
    },
    Mended {
        fault: "M1: a promotion takes back an order that came later",
        features: &[Feature::Orders, Feature::OrdersStand],
        seed: 20,
    },
    Mended { fault: "H1: a restarted node shows less than it has told", features: &[Feature::MonotonicReads], seed: 0 },
    Mended {
        fault: "C2, N-1: a node that joined a moment ago leads with nothing",
        features: &[Feature::Join],
        seed: 35,
    },
    Mended {
        fault: "a partition that is opened anew while it agrees to an epoch follows nobody any more",
        features: &[],
        seed: 5265,
    },
    Mended { fault: "N-2: members with new addresses are asked at the old ones", features: &[Feature::Move], seed: 2 },
    Mended {
        fault: "engine 1: a read in flight tells what is not published when its session's commits time out",
        features: &[Feature::Sessions, Feature::SlowLinks],
        seed: 2,
    },
    Mended {
        fault: "engine 3: each retry of a checkpoint writes all its values again",
        features: &[Feature::Join, Feature::Force, Feature::SlowLinks, Feature::IndexRefuses],
        seed: 239,
    },
    Mended {
        fault: "engine 11: two openings of one directory replace its manifest",
        features: &[Feature::Sessions, Feature::SlowLinks],
        seed: 12,
    },
    Mended {
        fault: "a partition whose index takes no ingestion while a copy takes its place is offline until a restart",
        features: &[Feature::IndexRefuses],
        seed: 4,
    },
    Mended {
        fault: "C1b: a leader takes an order at another node back",
        features: &[Feature::Orders, Feature::OrdersStand],
        seed: 0,
    },
    Mended {
        fault: "C2, N-1: a node that missed the change from N = 0 leads without what followers had to hold",
        features: &[
            Feature::Circles,
            Feature::ZeroReplicas,
            Feature::NewKey,
            Feature::Sessions,
            Feature::MonotonicReads,
            Feature::IndexRefuses,
        ],
        seed: 272,
    },
    Mended {
        fault: "M3: a member that was forgotten is one again within a second",
        features: &[Feature::Forget],
        seed: 2,
    },
    Mended {
        fault: "a certificate with another key ends replication until its node is forgotten everywhere",
        features: &[Feature::NewKey],
        seed: 0,
    },
    Mended {
        fault: "N-2: where all members have new addresses a restarted leader finds none of them by itself",
        features: &[Feature::Move],
        seed: 1,
    },
    Mended { fault: "N-7: a leader follows its own follower", features: &[Feature::Orders, Feature::Circles], seed: 2 },
    Mended {
        fault: "a follower waits for ever for a FlushDB behind which its stream has more, once it has voted",
        features: &[Feature::Orders, Feature::OrdersStand, Feature::Circles],
        seed: 5055,
    },
    Mended {
        fault: "a promotion that a leader begins by itself ends a step-down that came meanwhile",
        features: &[
            Feature::Orders,
            Feature::OrdersStand,
            Feature::Circles,
            Feature::Forget,
            Feature::Force,
            Feature::Move,
            Feature::LongCopies,
            Feature::SlowLinks,
            Feature::Sessions,
            Feature::Holds,
        ],
        seed: 2710,
    },
];

/// What runs leave out meanwhile.
pub fn features() -> Features {
    KNOWN.iter().fold(Features::NONE, |all, known| all.and(Features::of(known.shown_by)))
}
