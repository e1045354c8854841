//! A follower whose log has become another one than its leader's, in the same epochs and with the same versions, notices it with
//! the next batch, stops, and names the version; a forced order replaces what it has.

use super::gathering::{FOLLOWER, Pair, simulate_broken};
use std::time::Duration;
use turnstone_engine::Lookup;
use turnstone_engine::env::Sabotage;
use turnstone_engine::manifest::Upstream;
use turnstone_engine::types::Version;
use turnstone_tests::cluster::node::PARTITION;

/// The planted bug alters the follower's batch with this version.
const ALTERED: Version = 5;
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until the follower's state says so; answers it.
async fn told(pair: &Pair, what: &str) -> Result<String, String> {
    let world = &pair.cluster.world;
    let deadline = world.now() + PATIENCE;
    loop {
        let state = pair.cluster.replication(FOLLOWER).and_then(|r| r.board.upstream(PARTITION)).unwrap_or_default();
        if state.contains(what) {
            return Ok(state);
        }
        if world.now() > deadline {
            return Err(format!("'{what}' does not come, the follower says '{state}'"));
        }
        world.sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn a_follower_with_another_log_stops_and_names_the_version() {
    simulate_broken(1, Some(Sabotage::FollowerAltersBatch), |cluster| async move {
        let pair = Pair::start(cluster).await?;
        let world = pair.cluster.world.clone();
        while pair.leader.prepared() < ALTERED - 1 {
            let version = pair.commit("before").await?;
            pair.lag(version).await?;
        }
        let altered = pair.commit("altered").await?;
        pair.lag(altered).await?;
        assert_eq!(altered, ALTERED);
        // Nothing comes behind it, and the two have the same versions: a new connection is enough to see it.
        pair.cluster.reset(FOLLOWER);
        let told_idle = told(&pair, "is another one here").await?;
        assert!(told_idle.contains("version 5"), "{told_idle}");
        let next = pair.commit("next").await?;
        told(&pair, "goes on behind another version 5").await?;
        world.sleep(Duration::from_secs(5)).await;
        assert_eq!(pair.follower.prepared(), altered, "it takes nothing more");
        assert!(pair.leader.published() >= next, "the leader goes on");
        // The planted bug alters that batch whenever it comes: a copy has what came of it.
        pair.leader.checkpoint().await.map_err(|error| error.to_string())?;
        let upstream = Upstream { address: "n0:9".to_string(), partition: PARTITION };
        let replication = pair.cluster.replication(FOLLOWER).ok_or("the follower is gone")?;
        let follow = |force| replication.begin_following(pair.follower.clone(), upstream.clone(), force);
        follow(true).await.map_err(|trouble| trouble.text())?;
        told(&pair, "streaming, 0 behind").await?;
        let follower = pair.cluster.partition(FOLLOWER).ok_or("it is closed")?;
        let mut transaction = follower.begin(follower.published());
        let value = match follower.get(&mut transaction, b"altered").map_err(|error| error.to_string())? {
            Lookup::Found(value) => Some(value),
            Lookup::Absent => None,
            Lookup::Cold(cold) => cold.fetch().await.map_err(|error| error.to_string())?,
        };
        assert_eq!(value.as_deref(), Some(b"v".as_slice()));
        Ok(())
    });
}
