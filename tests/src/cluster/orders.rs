//! Orders that operators give to nodes at random, and what an answered order stands for.
//!
//! - An order about a partition's role stands until another order to the same node begins. A promotion elsewhere may make a
//!   follower of it (it is an order, too), but nothing makes a leader of it.
//! - A member that was forgotten stays so until it is ordered to follow again.
//! - A promotion without force leads with everything that followers had to hold when it was ordered.
//! - Nodes do not follow each other in a circle.

use super::Run;
use super::features::Feature;
use super::history::Losses;
use super::node::{Cluster, PARTITION};
use crate::sim::SimEnv;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::manifest::{Role, Upstream};
use turnstone_engine::{Error, Partition};
use turnstone_net::replica::{Order as Promotion, Trouble};

/// Operators wait for an answer for so long.
const ANSWER: Duration = Duration::from_secs(70);
/// Who has what was published so long ago is in step.
const MOMENT: Duration = Duration::from_secs(1);
/// What stands is looked at so often.
const LOOK: Duration = Duration::from_millis(25);

/// What is ordered of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// `promote [N] [force]`.
    Promote(Option<u32>, bool),
    /// `stepdown`.
    StepDown,
    /// `replicaof no one`.
    FollowNobody,
    /// `replicaof OTHER [force]`.
    Follow(usize, bool),
    /// `min_replicas N`.
    MinReplicas(u32),
    /// `replicas forget OTHER`.
    Forget(usize),
}

impl Order {
    fn is_of_role(&self) -> bool {
        !matches!(self, Order::MinReplicas(_) | Order::Forget(_))
    }
}

/// The role that an answered order left.
#[derive(Clone, Debug)]
struct Standing {
    order: Order,
    role: Role,
    /// Promotions of other nodes that had begun by then: one more may make a follower of this node.
    promotions: u64,
    /// None of them was under way.
    alone: bool,
    /// The epoch that the node had voted for: of a promotion in a later one it cannot know which of the two orders came first.
    heard: u64,
}

/// What was ordered.
pub struct Book {
    serial: Cell<u64>,
    /// The newest order about each node's role.
    newest: Vec<Cell<u64>>,
    standing: Vec<RefCell<Option<Standing>>>,
    /// When each node's role was last ordered, and when it was ordered twice at the same time: which of the two comes first is open.
    given: Vec<Cell<Duration>>,
    crossed: Vec<Cell<Duration>>,
    promotions: Cell<u64>,
    promotions_running: Cell<u32>,
    /// The number of the newest epoch that a promotion began.
    promoted: Cell<u64>,
    /// Members that were forgotten and not ordered to follow since.
    pub forgotten: RefCell<BTreeSet<usize>>,
    /// The newest order to each node that lets it in again.
    let_in: Vec<Cell<u64>>,
    /// Orders that are being answered which may let a node in again.
    joining: RefCell<Vec<usize>>,
    /// Nodes that belong to the cluster.
    pub joined: Vec<Cell<bool>>,
    /// Nodes that have had everything that was published a moment before, at some time while they followed.
    pub in_step: Vec<Cell<bool>>,
    /// What each leader had published at that moment.
    goals: Vec<Cell<(u64, Duration)>>,
    /// What may be lost.
    pub losses: RefCell<Losses>,
    /// Orders that were answered with success.
    pub obeyed: Cell<u64>,
}

impl Book {
    /// For so many nodes, all of which belong to the cluster.
    pub fn new(nodes: usize) -> Book {
        Book {
            serial: Cell::new(0),
            newest: (0..nodes).map(|_| Cell::new(0)).collect(),
            standing: (0..nodes).map(|_| RefCell::default()).collect(),
            given: (0..nodes).map(|_| Cell::new(Duration::MAX)).collect(),
            crossed: (0..nodes).map(|_| Cell::new(Duration::MAX)).collect(),
            promotions: Cell::new(0),
            promotions_running: Cell::new(0),
            promoted: Cell::new(0),
            forgotten: RefCell::default(),
            let_in: (0..nodes).map(|_| Cell::new(0)).collect(),
            joining: RefCell::default(),
            joined: (0..nodes).map(|_| Cell::new(true)).collect(),
            in_step: (0..nodes).map(|_| Cell::new(false)).collect(),
            goals: (0..nodes).map(|_| Cell::new((0, Duration::ZERO))).collect(),
            losses: RefCell::default(),
            obeyed: Cell::new(0),
        }
    }
}

/// Gives an order to a node, and notes what it stands for once it is answered.
pub fn give(run: &Rc<Run>, node: usize, order: Order) {
    let run = run.clone();
    run.cluster.world.clone().spawn_for(0, async move {
        // What comes of it is noted.
        let _ = give_and_wait(&run, node, order).await;
    });
}

/// The same; answers what the node answered, `None` if it did not.
pub async fn give_and_wait(run: &Rc<Run>, node: usize, order: Order) -> Option<Result<(), Trouble>> {
    let (replication, partition) = (run.cluster.replication(node)?, run.cluster.partition(node)?);
    let (book, world) = (&run.orders, &run.cluster.world);
    let began = world.now();
    book.serial.set(book.serial.get() + 1);
    let serial = book.serial.get();
    if order.is_of_role() {
        book.newest[node].set(serial);
        *book.standing[node].borrow_mut() = None;
        if book.given[node].replace(began) == began {
            book.crossed[node].set(began);
        }
    }
    world.log_line(format_args!("node {node}: order {serial}, {order:?}, is given"));
    let (promotions, alone) = (book.promotions.get(), book.promotions_running.get() == 0);
    let mut number = None;
    match &order {
        Order::Promote(n, _) => {
            book.promotions.set(promotions + 1);
            book.promotions_running.set(book.promotions_running.get() + 1);
            number = Some(book.losses.borrow_mut().promotion_begins(began));
            if *n == Some(0) {
                book.losses.borrow_mut().zero_begins(began);
            }
        }
        Order::MinReplicas(0) => book.losses.borrow_mut().zero_begins(began),
        Order::Follow(..) => {
            book.joining.borrow_mut().push(node);
            book.let_in[node].set(serial);
        }
        _ => {}
    }
    let host = run.cluster.clone();
    let heard = partition.adopted().number;
    let todo = order.clone();
    let answer = run.on_node_within(ANSWER, node, async move {
        match todo {
            Order::Promote(min_replicas, force) => {
                let order = Promotion { min_replicas, force, ..Promotion::default() };
                replication.promote(PARTITION, order).await.map(drop)
            }
            Order::StepDown => replication.step_down(&partition).await,
            Order::FollowNobody => replication.stop_following(&partition).await,
            Order::Follow(other, force) => {
                let upstream = Upstream { address: host.address(other), partition: PARTITION };
                replication.begin_following(partition, upstream, force).await
            }
            Order::MinReplicas(n) => replication.change_min_replicas(&partition, n).await,
            Order::Forget(other) => replication.forget(&partition, other as u64 + 100).await,
        }
    });
    let answer = answer.await;
    world.log_line(format_args!("node {node}: order {serial} is answered {answer:?}"));
    let now = world.now();
    if let Some(number) = number {
        book.promotions_running.set(book.promotions_running.get() - 1);
        book.losses.borrow_mut().promotion_ends(number, now);
    }
    let obeyed = matches!(answer, Some(Ok(())));
    let unanswered = answer.is_none();
    if matches!(order, Order::Promote(_, true) | Order::Follow(_, true)) && (obeyed || unanswered) {
        book.losses.borrow_mut().force();
    }
    if let Order::Follow(..) = order {
        let mut joining = book.joining.borrow_mut();
        if let Some(at) = joining.iter().position(|other| *other == node) {
            joining.swap_remove(at);
        }
        // The other side lets it in when it hears of the order, also if the order is refused in the end.
        book.forgotten.borrow_mut().remove(&node);
        if obeyed || unanswered {
            book.joined[node].set(true);
        }
    }
    if obeyed {
        book.obeyed.set(book.obeyed.get() + 1);
        match order {
            Order::MinReplicas(n) if n > 0 => book.losses.borrow_mut().zero_ends(now),
            Order::Promote(Some(n), _) if n > 0 => book.losses.borrow_mut().zero_ends(now),
            Order::Forget(other) if !book.joining.borrow().contains(&other) && book.let_in[other].get() < serial => {
                book.forgotten.borrow_mut().insert(other);
            }
            _ => {}
        }
        if let (Order::Promote(..), Some(partition)) = (&order, run.cluster.partition(node)) {
            book.promoted.set(partition.adopted().number.max(book.promoted.get()));
        }
        if matches!(order, Order::Promote(_, false)) {
            check_is_complete(run, node, began);
        }
        if book.newest[node].get() == serial && order.is_of_role() && !matches!(order, Order::Promote(..)) {
            let role = run.cluster.partition(node).map(|partition| partition.role());
            // `replicaof no one` changes nothing at a leader.
            let is_kept = order != Order::FollowNobody || role == Some(Role::SteppedDown);
            if let Some(role) = role.filter(|_| is_kept && book.crossed[node].get() != began) {
                *book.standing[node].borrow_mut() =
                    Some(Standing { order: order.clone(), role, promotions, alone, heard });
            }
        }
        if let (Order::Follow(..), true) = (&order, run.cluster.features.has(Feature::Circles)) {
            check_circle(run, node);
        }
    }
    answer
}

/// A leader has what followers had to hold when its promotion was ordered.
fn check_is_complete(run: &Rc<Run>, node: usize, began: Duration) {
    let Some(partition) = run.cluster.partition(node).filter(Partition::leads) else { return };
    if run.orders.forgotten.borrow().contains(&node) {
        return;
    }
    let losses = run.orders.losses.borrow();
    let told = run.told.borrow();
    let lacks = told.safe_before(began).find(|ack| {
        let there = ack.version <= partition.prepared() && partition.position(ack.version).epoch == ack.epoch;
        !there && !losses.excuse(true, ack.at)
    });
    if let Some(ack) = lacks {
        run.cluster.fail(format!(
            "node {node} leads by a promotion without force and lacks version {} of epoch {}, which node {} acknowledged when \
             followers had to hold it",
            ack.version, ack.epoch.number, ack.node
        ));
    }
}

impl Book {
    /// Whether any order is being answered that may change who leads or who is a member.
    pub fn are_under_way(&self) -> bool {
        self.promotions_running.get() > 0 || !self.joining.borrow().is_empty()
    }

    /// A FlushDB makes a leader of a node that has stepped down: it is an order about the role, too.
    pub fn flushes(&self, node: usize) {
        self.serial.set(self.serial.get() + 1);
        self.newest[node].set(self.serial.get());
        *self.standing[node].borrow_mut() = None;
    }
}

/// The node that a partition follows, if it follows one that there is.
pub fn upstream_of(cluster: &Cluster, node: usize) -> Option<usize> {
    match cluster.partition(node)?.role() {
        Role::Follower(upstream) => cluster.node_at(&upstream.address),
        _ => None,
    }
}

/// Whether `node` would follow itself by following `other`.
pub fn closes_a_circle(cluster: &Cluster, node: usize, other: usize) -> bool {
    let mut at = other;
    for _ in 0..cluster.len() {
        if at == node {
            return true;
        }
        match upstream_of(cluster, at) {
            Some(next) => at = next,
            None => return false,
        }
    }
    false
}

fn check_circle(run: &Rc<Run>, node: usize) {
    let cluster = &run.cluster;
    if upstream_of(cluster, node).is_some_and(|other| closes_a_circle(cluster, node, other)) {
        cluster.fail(format!("`replicaof` at node {node} was answered OK, and nodes follow each other in a circle"));
    }
}

/// Looks at what stands for as long as the run lasts.
pub async fn watch(run: Rc<Run>) {
    while !run.over.get() && run.cluster.failure.borrow().is_none() {
        run.cluster.world.sleep(LOOK).await;
        for node in 0..run.cluster.len() {
            if let Some(partition) = run.cluster.partition(node) {
                look(&run, node, &partition);
            }
        }
    }
}

/// Whether a role stays what it was: whom a node follows may have another address since.
fn is_same(role: &Role, before: &Role) -> bool {
    let host = |upstream: &Upstream| upstream.address.split(':').next().map(str::to_string);
    match (role, before) {
        (Role::Follower(now), Role::Follower(then)) => host(now) == host(then),
        _ => role == before,
    }
}

fn look(run: &Rc<Run>, node: usize, partition: &Partition<SimEnv>) {
    let (cluster, book) = (&run.cluster, &run.orders);
    let (leads, role) = (partition.leads(), partition.role());
    if leads {
        book.in_step[node].set(true);
        let list = partition.members();
        let (goal, since) = book.goals[node].get();
        if cluster.world.now() > since + MOMENT {
            book.goals[node].set((partition.published(), cluster.world.now()));
        }
        if let Some(replication) = cluster.replication(node) {
            for replica in replication.board.replicas(PARTITION) {
                if replica.acked >= goal.min(partition.published()) {
                    book.in_step[(replica.node - 100) as usize].set(true);
                }
            }
        }
        if cluster.features.has(Feature::Forget) {
            let forgotten = book.forgotten.borrow();
            let joining = book.joining.borrow();
            let back = forgotten.iter().find(|other| {
                let id = **other as u64 + 100;
                !joining.contains(other) && list.nodes.iter().any(|member| member.node == id)
            });
            if let Some(back) = back.filter(|_| !book.losses.borrow().any()) {
                cluster.fail(format!("node {back} was forgotten, and is a member of node {node}'s list again"));
            }
        }
    }
    if !cluster.features.has(Feature::OrdersStand) {
        return;
    }
    let standing = book.standing[node].borrow();
    let Some(standing) = standing.as_ref() else { return };
    let kept = standing.alone && book.promotions.get() == standing.promotions && book.promoted.get() <= standing.heard;
    let led = !matches!(standing.role, Role::Leader);
    if (kept && !is_same(&role, &standing.role)) || (led && leads) {
        cluster.fail(format!(
            "an order does not stand: node {node} was ordered {:?} and became {:?}; now it is {role:?}, leads: {leads}, and no \
             other order came",
            standing.order, standing.role
        ));
    }
}

/// One order at random.
pub fn disturb(run: &Rc<Run>) {
    let (cluster, rng) = (&run.cluster, &run.cluster.world.rng);
    let features = cluster.features;
    let any = || rng.below(cluster.len() as u64) as usize;
    let node = any();
    if !run.orders.joined[node].get() || run.orders.forgotten.borrow().contains(&node) {
        // Sooner or later it is let in.
        let leader = (0..cluster.len()).find(|other| cluster.partition(*other).is_some_and(|p| p.leads()));
        if let Some(leader) = leader.filter(|leader| *leader != node) {
            give(run, node, Order::Follow(leader, false));
        }
        return;
    }
    let force = features.has(Feature::Force) && rng.percent(15);
    let order = match rng.below(10) {
        0 if features.has(Feature::Orders) => Order::StepDown,
        1 if features.has(Feature::Orders) => Order::FollowNobody,
        2..=4 if features.has(Feature::Orders) => {
            let other = any();
            let good = other != node && run.orders.joined[other].get();
            if !good || (!features.has(Feature::Circles) && closes_a_circle(cluster, node, other)) {
                return;
            }
            Order::Follow(other, force)
        }
        5 | 6 => {
            let n = rng.below(3) as u32;
            if n == 0 && !features.has(Feature::ZeroReplicas) {
                return;
            }
            Order::MinReplicas(n)
        }
        7 if features.has(Feature::Forget) => {
            let other = any();
            if other == node || !cluster.partition(node).is_some_and(|p| p.leads()) {
                return;
            }
            Order::Forget(other)
        }
        _ => {
            let zero = if features.has(Feature::ZeroReplicas) { 3 } else { 2 };
            let n = rng.percent(20).then(|| (1 + rng.below(zero) as u32) % 3);
            Order::Promote(n, force)
        }
    };
    give(run, node, order);
}

/// What an operator who repairs has ordered last, and when each node may be ordered again.
#[derive(Default)]
pub struct Repair {
    /// An order is being answered.
    pub busy: Cell<bool>,
    next: Cell<usize>,
}

/// Looks once, as an operator does after the faults: where nobody leads a member is promoted, each in its turn; whoever does not
/// follow the leader is ordered to.
pub fn repair(run: &Rc<Run>, state: &Rc<Repair>) {
    if state.busy.replace(true) {
        return;
    }
    let (run, state) = (run.clone(), state.clone());
    run.cluster.world.clone().spawn_for(0, async move {
        repair_once(&run, &state).await;
        state.busy.set(false);
    });
}

async fn repair_once(run: &Rc<Run>, state: &Repair) {
    let cluster = &run.cluster;
    let lossy = run.orders.losses.borrow().any();
    // Where histories have parted a leader gets no quorum before the others are made to follow it.
    let joined = |node: &usize| run.orders.joined[*node].get();
    let leads = |node: &usize| {
        joined(node) && cluster.partition(*node).is_some_and(|p| p.leads() && (lossy || !p.is_quorum_missing()))
    };
    // A node that is to join may be the follower that a leader lacks.
    let leader = (0..cluster.len()).find(|node| joined(node) && cluster.partition(*node).is_some_and(|p| p.leads()));
    let turned_away = |node: &usize| {
        let status = cluster.replication(*node).and_then(|r| r.board.upstream(PARTITION)).unwrap_or_default();
        let id = *node as u64 + 100;
        let forgets =
            |other: usize| cluster.partition(other).is_some_and(|p| p.leads() && p.members().forgotten.contains(&id));
        run.orders.forgotten.borrow().contains(node)
            || status.contains("was forgotten")
            || (0..cluster.len()).any(forgets)
    };
    // What was ordered stands: who was told to follow nobody does so until it is told otherwise.
    let stepped_down = |node: &usize| cluster.partition(*node).is_some_and(|p| p.role() == Role::SteppedDown);
    let outside = |node: &usize| !joined(node) || turned_away(node) || stepped_down(node);
    if let (Some(leader), Some(late)) = (leader, (0..cluster.len()).find(|node| Some(*node) != leader && outside(node)))
    {
        give_and_wait(run, late, Order::Follow(leader, false)).await;
    }
    let rank = |node: &usize| {
        cluster.partition(*node).map(|p| (p.members().min_replicas > 0, p.adopted().number, p.prepared()))
    };
    let Some(leader) = (0..cluster.len()).filter(leads).max_by_key(rank) else {
        let node = state.next.get();
        state.next.set((node + 1) % cluster.len());
        let forgets = |node: usize| run.orders.forgotten.borrow().contains(&node) || !run.orders.joined[node].get();
        if cluster.partition(node).is_none() || forgets(node) {
            return;
        }
        let any = |node: &usize| joined(node) && cluster.partition(*node).is_some_and(|p| p.leads());
        let newest = (0..cluster.len()).filter(any).max_by_key(rank).filter(|_| cluster.features.has(Feature::Move));
        if let Some(newest) = newest.filter(|newest| !forgets(*newest)) {
            // Where all have new addresses nobody finds a leader that finds nobody.
            for other in (0..cluster.len()).filter(|other| *other != newest && !forgets(*other)) {
                if upstream_of(cluster, other) != Some(newest) {
                    give_and_wait(run, other, Order::Follow(newest, false)).await;
                }
            }
        }
        // A follower of an address that is not in use any more is told the new one first.
        for other in (0..cluster.len()).filter(|other| *other != node && !forgets(*other)) {
            let role = cluster.partition(other).map(|partition| partition.role());
            if matches!(role, Some(Role::Follower(upstream)) if cluster.node_at(&upstream.address).is_none()) {
                give_and_wait(run, other, Order::Follow(node, false)).await;
            }
        }
        let answer = give_and_wait(run, node, Order::Promote(None, false)).await;
        if let Some(Err(Trouble::Engine(Error::TooFewAgree(why)))) = answer {
            check_refusal(run, node, &why);
            if lossy {
                give_and_wait(run, node, Order::Promote(None, true)).await;
            } else if cluster.features.has(Feature::Move) {
                // Where all have new addresses nobody finds anybody until the others are told where one of them is.
                for other in (0..cluster.len()).filter(|other| *other != node && !forgets(*other)) {
                    give_and_wait(run, other, Order::Follow(node, false)).await;
                }
                give_and_wait(run, node, Order::Promote(None, false)).await;
            }
        }
        return;
    };
    for node in (0..cluster.len()).filter(|node| *node != leader) {
        let Some(partition) = cluster.partition(node) else { continue };
        // A follower of a follower is no member: after losses it may be needed as one.
        let follows = upstream_of(cluster, node)
            .is_some_and(|up| up == leader || (!lossy && closes_a_circle(cluster, leader, up)));
        let status = cluster.replication(node).and_then(|r| r.board.upstream(PARTITION)).unwrap_or_default();
        // One that has voted for another epoch and is no member is met by its leader only when it is ordered to follow that.
        let fenced = status.starts_with("broken") && status.contains("has agreed to epoch");
        let parted = fenced || (lossy && status.starts_with("broken"));
        if follows && !parted && !turned_away(&node) {
            continue;
        }
        drop(partition);
        let answer = give_and_wait(run, node, Order::Follow(leader, false)).await;
        if lossy && matches!(answer, Some(Err(Trouble::Refused(..)))) {
            give_and_wait(run, node, Order::Follow(leader, true)).await;
        }
    }
}

/// A promotion must not be refused for want of promises where enough of those that count are there, and can be found.
fn check_refusal(run: &Rc<Run>, node: usize, why: &str) {
    let (cluster, book) = (&run.cluster, &run.orders);
    let learns = |node: usize| cluster.partition(node).is_some_and(|partition| partition.leadership().learner);
    if learns(node) {
        return;
    }
    // Who was forgotten, or was let in a moment ago, is no member.
    let outside = why.contains("forgotten") || why.contains("names it");
    if !book.in_step[node].get() || book.losses.borrow().any() || (outside && cluster.features.has(Feature::Forget)) {
        return;
    }
    // A newer list that only those have who cannot be found is not known.
    let own = cluster.partition(node).map(|partition| partition.members()).unwrap_or_default();
    let knows = |other: usize| {
        let listed = own.nodes.iter().find(|member| member.node == other as u64 + 100);
        other == node || listed.is_some_and(|member| cluster.node_at(&member.address) == Some(other))
    };
    let newest = (0..cluster.len()).filter(|other| knows(*other)).filter_map(|n| cluster.partition(n)).map(|p| {
        let standing = p.standing();
        let version = standing.members.last().map_or(0, |record| record.version);
        (p.position(version).epoch.number, version, standing.members)
    });
    let Some((.., lists)) = newest.max_by_key(|(epoch, version, _)| (*epoch, *version)) else { return };
    let of = |member: &turnstone_engine::types::Member| (member.node - 100) as usize;
    // A member is found at the address that the list has, or where it came from.
    let present = cluster.replication(node).map(|r| r.board.present(PARTITION)).unwrap_or_default();
    let is_found = |member: &turnstone_engine::types::Member| {
        let known = cluster.node_at(&member.address) == Some(of(member)) || present.contains(&member.key());
        cluster.partition(of(member)).is_some() && (of(member) == node || known) && !learns(of(member))
    };
    let in_step = |member: &&turnstone_engine::types::Member| book.in_step[of(member)].get();
    // A change that is not in force yet needs the old rule, too.
    let suffices = lists.iter().all(|record| {
        let voters: Vec<_> = record.members.nodes.iter().filter(in_step).collect();
        let n = (record.members.min_replicas as usize).min(voters.len().saturating_sub(1));
        let there = voters.iter().filter(|member| is_found(member)).count();
        n > 0 && voters.iter().any(|member| of(member) == node) && there >= voters.len() - n
    });
    if suffices && !lists.is_empty() {
        cluster.fail(format!(
            "a promotion of node {node} without force is refused although enough of the members that were in step are there: {why}"
        ));
    }
}
