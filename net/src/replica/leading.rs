//! Leading: confirmations are counted, commits that wait for too long expire, and a leader that was restarted, or was away,
//! learns whether it still is one.

use super::promotion::{Order, Purpose};
use super::{Host, Replication, broken};
use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::Partition;
use turnstone_engine::env::{Env, Level, Sabotage};
use turnstone_engine::leadership::{Role, Upstream};
use turnstone_engine::types::{Epoch, Version};
use turnstone_replication::quorum::{Key, Quorum, is_there};

/// How often a leader looks at what waits.
const LOOK: Duration = Duration::from_millis(50);
/// Pauses between attempts to return, or questions whether somebody else leads, grow from here...
const PAUSE: Duration = Duration::from_millis(100);
/// ...to here.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// So often in a row a leader finds followers that agreed to a candidate which does not lead, before it asks them back.
const STRAYS: u32 = 3;

/// Followers that were refused because they had voted for a candidate that does not lead.
#[derive(Default)]
pub struct Strays {
    count: u32,
    /// The highest epoch that they had voted for.
    epoch: u64,
}

/// What a leader has been told in its epoch.
#[derive(Default)]
pub struct Counting {
    epoch: Epoch,
    quorum: Quorum,
}

impl Counting {
    /// What was confirmed in another epoch does not count in this one.
    fn begin(&mut self, epoch: Epoch, broken: bool) {
        if self.epoch != epoch && !broken {
            *self = Counting { epoch, quorum: Quorum::default() };
        }
    }
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
            counting.begin(current, broken.epoch);
            counting.quorum.confirm(key, epoch, version, current, broken);
        }
        self.count_open(partition);
    }

    /// A follower cannot follow because it has agreed to somebody else.
    pub(super) fn note_stray(&self, number: u8, epoch: u64, by_order: bool) {
        let mut strays = self.strays.borrow_mut();
        let strays = strays.entry(number).or_default();
        // An operator who orders it waits for it.
        strays.count += if by_order { STRAYS } else { 1 };
        strays.epoch = strays.epoch.max(epoch);
    }

    /// Whether so many came in vain that this leader begins a new epoch for them.
    fn has_strays(&self, number: u8) -> bool {
        self.strays.borrow().get(&number).is_some_and(|strays| strays.count >= STRAYS)
    }

    /// Whether a member is not there: it may follow somebody else, or nobody.
    fn misses_somebody(&self, partition: &Partition<H::Env>) -> bool {
        let (own, present) = (self.key(partition.id()), self.board.present(partition.id()));
        partition.members().nodes.iter().any(|m| m.key() != own && !present.contains(&m.key()))
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
            counting.begin(partition.adopted(), broken(partition.env()).epoch);
            counting.quorum.reached(own, &records, first, broken(partition.env()))
        };
        if records.iter().any(|record| record.members.min_replicas > 0) {
            partition.allow(reached);
        }
        partition.set_quorum_missing(!is_there(&records, own, &self.board.present(number), broken(partition.env())));
    }

    /// Whether this node is asked for followers in a partition that it leads, or would.
    fn asks(&self, partition: &Partition<H::Env>) -> bool {
        partition.role() == Role::Leader && partition.standing().members.iter().any(|r| r.members.min_replicas > 0)
    }

    /// A leader that was restarted, or has too few followers, asks the members what they are. It follows who leads in a newer
    /// epoch; it leads again if it may, or if others have voted for a candidate that never came to lead. Answers whether there was
    /// such a one.
    async fn look_around(self: &Rc<Self>, partition: &Partition<H::Env>, again: bool, met: u64) -> bool {
        let number = partition.id();
        if self.is_candidate(number) {
            return false;
        }
        let (adopted, leads) = (partition.adopted(), partition.leads());
        let asked = self.ask_members(partition, None).await;
        let election = &asked.election;
        if partition.is_closed() || partition.role() != Role::Leader || partition.adopted() != adopted {
            return false;
        }
        if let Some(leader) = election.newer_leader() {
            let key = leader.key();
            let found = asked.statuses.iter().find(|(at, status)| (status.node, at.partition) == key);
            let listed = Upstream { address: leader.address, partition: leader.partition };
            let upstream = found.map_or(listed, |(at, _)| at.clone());
            // It is asked again otherwise.
            let _ = self.follow_leader(number, leader.node, upstream).await;
            return false;
        }
        if leads {
            // Who missed the promotion learns of it, and follows.
            self.announce(partition).await;
        }
        let stray = election.has_stray() || met >= adopted.number.max(1);
        let again = again && stray;
        if asked.others_stand() || self.is_candidate(number) {
            return false;
        }
        if if leads { !again } else { !election.may_return() && !again } {
            return stray;
        }
        let purpose = if again { Purpose::Recall } else { Purpose::Return };
        let order = Order { min_replicas: None, force: false, purpose, above: met };
        if let Err(why) = self.promote(number, order).await {
            self.log(number, Level::Debug, format_args!("does not lead again yet: {}", why.text()));
        }
        false
    }
}

/// Looks around with pauses that grow, until a partition needs it no more.
async fn look_around<H: Host>(node: Rc<Replication<H>>, number: u8, looking: Rc<Cell<bool>>) {
    let (mut pause, mut strays) = (PAUSE, 0);
    while !node.host.stopping() {
        let Some(partition) = node.host.partition(number) else { break };
        let deposed = partition.role() == Role::Leader && !partition.leads();
        let troubled = deposed || (node.asks(&partition) && node.misses_somebody(&partition));
        let called_for = node.has_strays(number);
        if !troubled && !called_for {
            break;
        }
        let met = node.strays.borrow_mut().remove(&number).map_or(0, |strays| strays.epoch);
        let env = partition.env().clone();
        // Whoever promotes another one needs a moment for it.
        let again = strays >= STRAYS || called_for;
        strays = if node.look_around(&partition, again, met).await { strays + 1 } else { 0 };
        drop(partition);
        env.sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
    looking.set(false);
}

/// Looks after a partition for as long as the node lives.
pub(super) async fn keep_leading<H: Host>(node: Rc<Replication<H>>, number: u8) {
    // When something was prepared, oldest first.
    let mut prepared: VecDeque<(Duration, Version)> = VecDeque::new();
    let mut env: Option<H::Env> = None;
    let looking = Rc::new(Cell::new(false));
    loop {
        let now = node.host.now();
        let partition = node.host.partition(number);
        let Some(partition) = partition.filter(|p| !p.is_closed()) else {
            prepared.clear();
            match &env {
                Some(env) if !node.host.stopping() => env.sleep(LOOK).await,
                _ => return,
            }
            continue;
        };
        node.forget_copies(number);
        let asks = node.asks(&partition);
        if asks && !partition.leads() && partition.env().sabotage() == Some(Sabotage::RestartUnconfirmed) {
            // A planted bug; it may fail as anything may.
            let _ = partition.promote_as_it_was().await;
        }
        if asks && partition.leads() {
            node.count_open(&partition);
        }
        if !asks {
            prepared.clear();
        } else if prepared.back().is_none_or(|(_, version)| *version != partition.prepared()) {
            prepared.push_back((now, partition.prepared()));
        }
        while prepared.front().is_some_and(|(_, version)| *version <= partition.published()) {
            prepared.pop_front();
        }
        let timeout = partition.settings().quorum_timeout;
        if let Some((_, version)) = prepared.iter().take_while(|(since, _)| now > *since + timeout).last() {
            partition.expire(*version);
        }
        let deposed = partition.role() == Role::Leader && !partition.leads();
        let alone = deposed || (asks && node.misses_somebody(&partition));
        let troubled = (partition.is_wanted() && alone) || node.has_strays(number);
        if troubled && !looking.replace(true) {
            partition.env().spawn(look_around(node.clone(), number, looking.clone()));
        }
        let world = partition.env().clone();
        drop(partition);
        world.sleep(LOOK).await;
        env = Some(world);
    }
}
