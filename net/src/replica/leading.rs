//! Leading: confirmations are counted, commits that wait for too long expire, and a leader that was restarted, or was away,
//! learns whether it still is one.

use super::promotion::Order;
use super::{Host, Replication, broken};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::Partition;
use turnstone_engine::env::{Env, Level, Sabotage};
use turnstone_engine::manifest::{Role, Upstream};
use turnstone_engine::types::{Epoch, Version};
use turnstone_replication::quorum::{Key, Quorum, is_there};

/// How often a leader looks at what waits.
const LOOK: Duration = Duration::from_millis(50);
/// Pauses between attempts to return, or questions whether somebody else leads, grow from here...
const PAUSE: Duration = Duration::from_millis(100);
/// ...to here.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What a leader has been told in its epoch.
#[derive(Default)]
pub struct Counting {
    epoch: Epoch,
    quorum: Quorum,
}

impl<H: Host> Replication<H> {
    /// A follower has everything up to a version on its disk, and had agreed to an epoch when it said so.
    pub(super) fn confirm(&self, partition: &Partition<H::Env>, key: Key, (epoch, version): (Epoch, Version)) {
        if !partition.leads() {
            return;
        }
        let broken = broken(partition.env());
        let current = partition.adopted();
        {
            let mut counting = self.counting.borrow_mut();
            let counting = counting.entry(partition.id()).or_default();
            if counting.epoch != current && !broken.epoch {
                *counting = Counting { epoch: current, quorum: Quorum::default() };
            }
            counting.quorum.confirm(key, epoch, version, current, broken);
        }
        self.count_open(partition);
    }

    /// Looks anew at what is confirmed and who is there.
    pub(super) fn count(&self, number: u8) {
        if let Some(partition) = self.host.partition(number) {
            self.count_open(&partition);
        }
    }

    fn count_open(&self, partition: &Partition<H::Env>) {
        if !partition.leads() {
            return;
        }
        let number = partition.id();
        let records = partition.standing().members;
        let own = self.key(number);
        let first = partition.history().last().map_or(0, |epoch| epoch.first_version);
        let reached = {
            let mut counting = self.counting.borrow_mut();
            let counting = counting.entry(number).or_default();
            counting.quorum.reached(own, &records, first, broken(partition.env()))
        };
        if records.iter().any(|record| record.members.min_replicas > 0) {
            partition.allow(reached);
        }
        partition.set_quorum_missing(!is_there(&records, own, &self.board.present(number)));
    }

    /// Whether this node is asked for followers in a partition that it leads, or would.
    fn asks(&self, partition: &Partition<H::Env>) -> bool {
        partition.role() == Role::Leader && partition.standing().members.iter().any(|r| r.members.min_replicas > 0)
    }

    /// A leader that was restarted, or has too few followers: asks the members, and returns, or follows who leads now.
    /// Answers whether anything has changed.
    async fn look_around(self: &Rc<Self>, partition: &Partition<H::Env>) -> bool {
        let number = partition.id();
        let election = self.ask_all(partition, Epoch::default()).await;
        if partition.is_closed() || partition.role() != Role::Leader {
            return true;
        }
        if let Some(leader) = election.newer_leader() {
            let text = format!("{} leads in a newer epoch: this node follows it", leader.address);
            self.log(number, Level::Info, text);
            let upstream = Upstream { address: leader.address, partition: leader.partition };
            if partition.follow(upstream).await.is_ok() {
                self.go_on(partition);
            }
            return true;
        }
        if partition.leads() || !election.may_return() {
            return false;
        }
        let order = Order { min_replicas: None, force: false, returning: true };
        match self.promote(number, order).await {
            Ok(_) => true,
            Err(why) => {
                self.log(number, Level::Debug, format_args!("does not lead again yet: {}", why.text()));
                false
            }
        }
    }
}

/// Looks after a partition for as long as the node lives.
pub(super) async fn keep_leading<H: Host>(node: Rc<Replication<H>>, number: u8) {
    let (mut pause, mut next_look) = (PAUSE, Duration::ZERO);
    // When something was prepared, oldest first.
    let mut prepared: VecDeque<(Duration, Version)> = VecDeque::new();
    let mut env: Option<H::Env> = None;
    while !node.host.stopping() {
        let now = node.host.now();
        if let Some(partition) = node.host.partition(number) {
            let asks = node.asks(&partition);
            if asks && !partition.leads() && partition.env().sabotage() == Some(Sabotage::RestartUnconfirmed) {
                let _ = partition.promote_as_it_was().await;
            }
            if asks && partition.leads() {
                node.count_open(&partition);
            }
            let timeout = partition.settings().quorum_timeout;
            if prepared.back().is_none_or(|(_, version)| *version != partition.prepared()) {
                prepared.push_back((now, partition.prepared()));
            }
            while prepared.front().is_some_and(|(_, version)| *version <= partition.published()) {
                prepared.pop_front();
            }
            let due = prepared.iter().take_while(|(since, _)| now > *since + timeout).last();
            if let Some((_, version)) = due {
                partition.expire(*version);
            }
            let troubled = asks && (!partition.leads() || partition.is_quorum_missing());
            if troubled && now >= next_look {
                pause = if node.look_around(&partition).await { PAUSE } else { (pause * 2).min(PAUSE_MAX) };
                next_look = node.host.now() + pause;
            }
            if !troubled {
                pause = PAUSE;
            }
            env = Some(partition.env().clone());
        } else {
            prepared.clear();
        }
        match &env {
            Some(env) => env.sleep(LOOK).await,
            None => return,
        }
    }
}
