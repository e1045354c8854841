//! A member that hangs holds nobody up for longer than it is waited for: not a promotion, nor a write behind a FlushDB. And a
//! stream from a member that comes to lead while it is open is as good as one that begins afterwards.

use super::gathering::{FOLLOWER, LEADER, Pair, simulate_broken};
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::{Error, Partition};
use turnstone_net::replica::Order as Promotion;
use turnstone_tests::cluster::node::{Cluster, PARTITION};
use turnstone_tests::sim::SimEnv;
use turnstone_tests::sim::disk::Loss;

/// Of a connection that nothing answers: as the server's, its handshake included.
const DIAL: Duration = Duration::from_secs(8);
/// Members are asked for what they have, and then for their votes: 2 s each.
const PROMOTED: Duration = Duration::from_millis(4_500);

async fn promote(cluster: &Rc<Cluster>, node: usize) -> Result<(), String> {
    let replication = cluster.replication(node).ok_or("the node is gone")?;
    let promoted = replication.promote(PARTITION, Promotion::default()).await;
    promoted.map(drop).map_err(|trouble| trouble.text())
}

#[test]
fn a_promotion_waits_for_a_hung_member_no_longer_than_it_says() {
    simulate_broken(1, None, |cluster| async move {
        let pair = Pair::start(cluster).await?;
        pair.ask_for(1).await?;
        let version = pair.commit("before").await?;
        pair.lag(version).await?;
        let (cluster, world) = (&pair.cluster, &pair.cluster.world);
        cluster.patience.set(DIAL);
        cluster.weather.cut.borrow_mut().extend([(LEADER, FOLLOWER), (FOLLOWER, LEADER)]);
        let begun = world.now();
        promote(cluster, FOLLOWER).await?;
        let took = world.now() - begun;
        assert!(took <= PROMOTED, "the promotion took {took:?}");
        Ok(())
    });
}

#[test]
fn a_write_behind_a_flush_that_no_follower_holds_is_answered() {
    simulate_broken(1, None, |cluster| async move {
        let pair = Pair::start(cluster).await?;
        pair.ask_for(1).await?;
        let version = pair.commit("before").await?;
        pair.lag(version).await?;
        let world = pair.cluster.world.clone();
        pair.cluster.crash(FOLLOWER, Loss::Nothing);
        let leader: Partition<SimEnv> = pair.leader.clone();
        // Its outcome is told in time, too.
        world.spawn_for(Cluster::owner(LEADER), async move { drop(leader.flush_all().await) });
        world.sleep(Duration::from_millis(100)).await;
        let begun = world.now();
        let mut transaction = pair.leader.begin(pair.leader.published());
        transaction.late = true;
        let write = turnstone_engine::Write::Set(b"v".as_slice().into());
        pair.leader.write(&mut transaction, b"behind", write).map_err(|error| error.to_string())?;
        let answer = pair.leader.submit(transaction).prepared().await;
        let (took, due) = (world.now() - begun, pair.leader.settings().quorum_timeout + Duration::from_millis(500));
        assert!(matches!(answer, Err(Error::NoQuorum { .. })), "{answer:?}");
        assert!(took <= due, "it was answered after {took:?}");
        Ok(())
    });
}

/// Node 2 follows node 1, which follows node 0 and takes its place: node 2's stream goes on as it was.
#[test]
fn a_follower_learns_that_its_upstream_has_come_to_lead() {
    use turnstone_engine::manifest::Upstream;
    super::gathering::simulate_nodes(1, 3, |cluster| async move {
        const LAST: usize = 2;
        let pair = Pair::start(cluster).await?;
        pair.ask_for(1).await?;
        let (cluster, world) = (&pair.cluster, &pair.cluster.world);
        cluster.start(LAST);
        while cluster.replication(LAST).is_none() {
            world.sleep(Duration::from_millis(1)).await;
        }
        let follow = async |address: &str| {
            let (last, replication) = (cluster.partition(LAST), cluster.replication(LAST));
            let (last, replication) = (last.ok_or("it is closed")?, replication.ok_or("it is gone")?);
            let upstream = Upstream { address: address.to_string(), partition: PARTITION };
            replication.begin_following(last, upstream, false).await.map_err(|trouble| trouble.text())
        };
        follow("n0:9").await?;
        while pair.leader.members().nodes.len() < 3 {
            world.sleep(Duration::from_millis(1)).await;
        }
        follow("n1:9").await?;
        let version = pair.commit("before").await?;
        let until_it_shows = async |version| {
            for _ in 0..5_000 {
                if cluster.partition(LAST).is_some_and(|last| last.published() >= version) {
                    return Ok(());
                }
                world.sleep(Duration::from_millis(1)).await;
            }
            Err(format!("version {version} is not shown"))
        };
        until_it_shows(version).await?;
        // What it may have shown before is found again, and is not known to be published until a leader says so.
        cluster.crash(LAST, Loss::Nothing);
        cluster.start(LAST);
        until_it_shows(0).await?;
        let hellos = || cluster.weather.hellos.borrow().get(&(LAST, FOLLOWER)).copied().unwrap_or(0);
        // The old leader hangs, so that votes are waited for; streams begin anew when the node stands.
        cluster.weather.cut.borrow_mut().extend([(LEADER, FOLLOWER), (FOLLOWER, LEADER)]);
        cluster.patience.set(DIAL);
        let leader = cluster.partition(FOLLOWER).ok_or("it is closed")?;
        let (adopted, promoting) = (leader.adopted(), cluster.clone());
        world.spawn_for(Cluster::owner(FOLLOWER), async move { drop(promote(&promoting, FOLLOWER).await) });
        let until = async |what: &str, done: &dyn Fn() -> bool| {
            for _ in 0..20_000 {
                if done() {
                    return Ok(());
                }
                world.sleep(Duration::from_millis(1)).await;
            }
            Err(format!("{what}: it does not come"))
        };
        until("the node stands", &|| leader.adopted() != adopted).await?;
        let before = hellos();
        until("the stream begins anew", &|| hellos() > before && !leader.leads()).await?;
        let before = hellos();
        until("it leads", &|| leader.leads()).await?;
        until_it_shows(leader.standing().members.last().map_or(0, |record| record.version)).await?;
        assert_eq!(hellos(), before, "the stream is the one from before");
        let last = cluster.partition(LAST).ok_or("it is closed")?;
        last.check_readable().map_err(|error| error.to_string())?;
        Ok(())
    });
}
