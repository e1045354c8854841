//! What a simulated cluster tries and checks beyond plain faults. The seed draws a subset of it for each run: a run that does
//! everything at once hides faults behind each other (swarm testing: Groce et al., ISSTA 2012).

use crate::sim::Rng;
use crate::sim::rng::mix;

/// One thing that a run may try, or check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// `stepdown`, `replicaof no one` and `replicaof OTHER` come at random.
    Orders,
    /// An order stands until another order.
    OrdersStand,
    /// `replicaof` may name a node that follows the one that is ordered, directly or not.
    Circles,
    /// `min_replicas` is 0 at the start, or is changed to and from 0.
    ZeroReplicas,
    /// `replicas forget`, which lasts until that node is ordered to follow again.
    Forget,
    /// One node joins late.
    Join,
    /// `promote force` and `replicaof ... force`.
    Force,
    /// Nodes restart at other addresses.
    Move,
    /// Certificates are replaced by ones with other keys.
    NewKey,
    /// Copies take virtual seconds.
    LongCopies,
    /// One member goes away after the faults; streams and copies of the others last.
    DeadMember,
    /// Connections carry little, and transactions are large.
    SlowLinks,
    /// Clients are conversations of the server's own code, with requests in flight.
    Sessions,
    /// What a node has told of it does not take back, across restarts too.
    MonotonicReads,
    /// The index takes no ingestion for a while.
    IndexRefuses,
    /// Holds are made and released at random, many at once.
    Holds,
    /// `replicaof` names a node that was cut off for a while, and lacks what the node has that is ordered.
    Lag,
    /// A node's home is put back from an older copy.
    PutBack,
    /// A node's disk refuses: space, or descriptors and memory, in starts, too.
    DiskRefuses,
}

/// All of them.
const ALL: [Feature; 19] = [
    Feature::Orders,
    Feature::OrdersStand,
    Feature::Circles,
    Feature::ZeroReplicas,
    Feature::Forget,
    Feature::Join,
    Feature::Force,
    Feature::Move,
    Feature::NewKey,
    Feature::LongCopies,
    Feature::DeadMember,
    Feature::SlowLinks,
    Feature::Sessions,
    Feature::MonotonicReads,
    Feature::IndexRefuses,
    Feature::Holds,
    Feature::Lag,
    Feature::PutBack,
    Feature::DiskRefuses,
];

/// What makes copies of homes that are older than members' lists, or have nobody to tell what was lost.
pub const NEVER_PUT_BACK: Features =
    Features::of(&[Feature::ZeroReplicas, Feature::Force, Feature::Join, Feature::Forget]);

/// A set of features.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Features(u32);

impl std::fmt::Debug for Features {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(ALL.iter().filter(|feature| self.has(**feature))).finish()
    }
}

impl Features {
    /// Plain faults alone.
    pub const NONE: Features = Features(0);

    /// Every feature.
    pub const ALL: Features = Features((1 << ALL.len()) - 1);

    /// These.
    pub const fn of(features: &[Feature]) -> Features {
        let (mut set, mut i) = (0, 0);
        while i < features.len() {
            set |= 1 << features[i] as u32;
            i += 1;
        }
        Features(set)
    }

    /// The subset that a seed draws: three of ten draw none, the others each feature with two chances in five.
    pub fn draw(seed: u64) -> Features {
        let rng = Rng::new(mix(seed ^ 0x005e_ed0f_fea7));
        if rng.percent(30) {
            return Features::NONE;
        }
        let drawn = Features(ALL.iter().filter(|_| rng.percent(40)).map(|feature| 1 << *feature as u32).sum());
        // These go together with nothing to be seen: one or the other.
        let apart = if seed.is_multiple_of(2) { Features::of(&[Feature::PutBack]) } else { NEVER_PUT_BACK };
        if drawn.has(Feature::PutBack) { drawn.without(apart) } else { drawn }
    }

    /// Whether one is among them.
    pub fn has(self, feature: Feature) -> bool {
        self.0 & 1 << feature as u32 != 0
    }

    /// All but those of the other set.
    pub const fn without(self, other: Features) -> Features {
        Features(self.0 & !other.0)
    }

    /// Those of both sets together.
    pub const fn and(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }

    /// Reads names, separated by commas; `none` for the empty set.
    pub fn parse(names: &str) -> Result<Features, String> {
        if names == "none" {
            return Ok(Features::NONE);
        }
        let mut set = Features::NONE;
        for name in names.split(',') {
            let known = ALL.iter().find(|feature| format!("{feature:?}") == name);
            let feature = known.ok_or_else(|| format!("'{name}' is no feature; they are {ALL:?}"))?;
            set = set.and(Features::of(&[*feature]));
        }
        Ok(set)
    }
}
