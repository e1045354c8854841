//! Three real nodes on hosts of their own, under load, while the network between them and they themselves fail.
//!
//! A round: the clients begin, some faults come, an operator promotes somebody without force, the faults go, and the
//! cluster must take commits again within [`RECOVERY`]. Then the clients stop, and
//!
//! - all nodes have the same contents at the same position (their digests are equal),
//! - every append that was acknowledged is there, on every node,
//! - no two nodes acknowledged in one epoch,
//! - the history of the round, reads on followers included, passes the isolation checker (`crate::history`).
//!
//! The rounds go on with what the one before left: nothing is ever set up anew. Faults follow from the seed, what
//! becomes of them does not.

mod clients;
pub mod namespaces;
mod nodes;

use crate::history::{History, RealTime, check_with};
use crate::sim::Rng;
use clients::{Acked, Round};
use namespaces::{Network, Rules};
use nodes::Nodes;
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: net-faults [--rounds 200] [--seed 1]";
const HOSTS: usize = 3;
const WRITERS: u64 = 4;
const READERS: u64 = 2;
/// From the last fault's end to the next commit.
const RECOVERY: Duration = Duration::from_secs(30);
/// From there until all nodes have the same.
const AGREEMENT: Duration = Duration::from_secs(60);
/// How long the operator waits for somebody to lead before ordering it.
const OPERATOR: Duration = Duration::from_secs(2);

/// What goes wrong in a round.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// One node hears nobody, and is heard by nobody.
    Isolated(usize),
    /// What one node sends to another does not arrive.
    OneWay(usize, usize),
    /// One node hears nobody.
    Deaf(usize),
    /// Nobody hears one node.
    Mute(usize),
    /// Two nodes do not hear each other, the third hears both.
    Bridge(usize, usize),
    /// So many of a hundred packets get lost.
    Loss(u64),
    /// `kill -9`.
    Killed(usize),
    /// All of them at once.
    AllKilled,
    /// It stands still.
    Paused(usize),
}

impl Fault {
    fn draw(rng: &Rng) -> Fault {
        let one = rng.below(HOSTS as u64) as usize;
        let other = (one + 1 + rng.below(HOSTS as u64 - 1) as usize) % HOSTS;
        match rng.below(18) {
            0..3 => Fault::Isolated(one),
            3..5 => Fault::OneWay(one, other),
            5 => Fault::Deaf(one),
            6 => Fault::Mute(one),
            7..9 => Fault::Bridge(one, other),
            9..11 => Fault::Loss(5 + rng.below(25)),
            11..14 => Fault::Killed(one),
            14 => Fault::AllKilled,
            _ => Fault::Paused(one),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Fault::Isolated(_) => "isolated",
            Fault::OneWay(..) => "one way",
            Fault::Deaf(_) => "deaf",
            Fault::Mute(_) => "mute",
            Fault::Bridge(..) => "bridge",
            Fault::Loss(_) => "loss",
            Fault::Killed(_) => "killed",
            Fault::AllKilled => "all killed",
            Fault::Paused(_) => "paused",
        }
    }

    fn begin(&self, rules: &mut Rules, nodes: &mut Nodes) {
        let others = |n: usize| (0..HOSTS).filter(move |other| *other != n);
        match self {
            Fault::Isolated(n) => rules.cut.extend(others(*n).flat_map(|other| [(*n, other), (other, *n)])),
            Fault::OneWay(from, to) => rules.cut.push((*from, *to)),
            Fault::Deaf(n) => rules.cut.extend(others(*n).map(|other| (other, *n))),
            Fault::Mute(n) => rules.cut.extend(others(*n).map(|other| (*n, other))),
            Fault::Bridge(a, b) => rules.cut.extend([(*a, *b), (*b, *a)]),
            Fault::Loss(percent) => rules.loss_percent = *percent,
            Fault::Killed(n) => nodes.kill(*n),
            Fault::AllKilled => (0..HOSTS).for_each(|n| nodes.kill(n)),
            Fault::Paused(n) => nodes.pause(*n, true),
        }
    }
}

/// What a campaign saw.
#[derive(Default)]
struct Tally {
    acked: usize,
    transactions: usize,
    unknown: usize,
    promotions: u32,
    faults: BTreeMap<&'static str, u32>,
    /// From the end of the faults to a commit, of each round.
    recoveries: Vec<Duration>,
    /// Who acknowledged in an epoch.
    leaders: BTreeMap<u64, usize>,
}

/// Runs what the words ask for.
pub fn run(words: &[String]) -> Result<ExitCode, String> {
    let (mut rounds, mut seed) = (200, 1);
    for pair in words.chunks(2) {
        let [word, value] = pair else { return Err(USAGE.to_string()) };
        let number = value.parse::<u64>().map_err(|_| format!("{word} {value}: a number is wanted\n{USAGE}"))?;
        match word.as_str() {
            "--rounds" => rounds = number as u32,
            "--seed" => seed = number,
            _ => return Err(USAGE.to_string()),
        }
    }
    // What is built is built outside, where the registry may be reached.
    crate::real::binary("turnstone");
    if let Some(status) = namespaces::enter(words)? {
        return Ok(status);
    }
    let network = Network::new(HOSTS)?;
    let mut nodes = Nodes::start(HOSTS)?;
    let rng = Rng::new(seed);
    let mut tally = Tally::default();
    let started = Instant::now();
    for n in 0..rounds {
        if let Err(what) = round(n, &network, &mut nodes, &rng, &mut tally) {
            return Err(format!("round {n} of seed {seed}: {what}\n{}", nodes.logs()));
        }
    }
    let mut recoveries = tally.recoveries;
    recoveries.sort();
    let at = |share: usize| recoveries.get(recoveries.len() * share / 100).or(recoveries.last()).copied();
    println!(
        "{rounds} rounds in {:.0} s: {} transactions ({} without an answer), {} appends acknowledged, none lost; {} promotions, {} \
         epochs with commits; a commit {:.1?} after the faults (p50), {:.1?} (p90), {:.1?} (longest); no anomaly; faults: {:?}",
        started.elapsed().as_secs_f64(),
        tally.transactions,
        tally.unknown,
        tally.acked,
        tally.promotions,
        tally.leaders.len(),
        at(50).unwrap_or_default(),
        at(90).unwrap_or_default(),
        recoveries.last().copied().unwrap_or_default(),
        tally.faults,
    );
    Ok(ExitCode::SUCCESS)
}

fn round(n: u32, network: &Network, nodes: &mut Nodes, rng: &Rng, tally: &mut Tally) -> Result<(), String> {
    let round = Round::new(n, rng.below(HOSTS as u64) as usize);
    let settings = nodes.settings();
    let mut faults = BTreeSet::from([Fault::draw(rng)]);
    if rng.percent(35) {
        faults.insert(Fault::draw(rng));
    }
    let faulty = std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (round, settings, seed) = (&round, &settings, rng.next());
            std::thread::Builder::new()
                .name(format!("writer {writer}"))
                .spawn_scoped(scope, move || round.write(settings, seed))
                .map_err(|e| e.to_string())?;
        }
        for _ in 0..READERS {
            let (round, settings, seed) = (&round, &settings, rng.next());
            scope.spawn(move || round.read(settings, seed));
        }
        let ended = disturb(&round, &faults, network, nodes, rng, tally);
        round.over.store(true, Ordering::SeqCst);
        ended
    });
    for fault in &faults {
        *tally.faults.entry(fault.name()).or_default() += 1;
    }
    let recovery = faulty.map_err(|what| format!("{faults:?}: {what}"))?;
    tally.recoveries.push(recovery);
    let digest = nodes.agree(AGREEMENT).map_err(|what| format!("{faults:?}: {what}"))?;
    let mut lists = Vec::new();
    for node in &settings {
        lists.push(round.read_all(node).map_err(|e| format!("the lists cannot be read: {e}"))?);
    }
    let (transactions, acked) = round.finish();
    check_acked(&acked, &lists, &mut tally.leaders)?;
    let history = History::from(transactions);
    let summary = check_with(&history, RealTime::Session).map_err(|anomalies| {
        let texts: Vec<String> = anomalies.iter().take(5).map(ToString::to_string).collect();
        format!("{faults:?}: {}", texts.join("\n"))
    })?;
    tally.acked += acked.len();
    tally.transactions += summary.transactions;
    tally.unknown += summary.unknown;
    println!(
        "round {n}: {faults:?}, a commit {recovery:.1?} after them; {summary}; {} appends acknowledged, all there; at {digest}",
        acked.len()
    );
    Ok(())
}

/// Brings the faults, takes them back, and waits for a commit; answers how long that took.
fn disturb(
    round: &Round,
    faults: &BTreeSet<Fault>,
    network: &Network,
    nodes: &mut Nodes,
    rng: &Rng,
    tally: &mut Tally,
) -> Result<Duration, String> {
    let pause = |from: u64, to: u64| std::thread::park_timeout(Duration::from_millis(from + rng.below(to - from)));
    let wanted = if rng.percent(60) { "min_replicas 1" } else { "min_replicas 2" };
    wait_for_commits(round, 20, RECOVERY, nodes, rng, tally)?;
    // Only the leader takes it; that it has one is known by now, if not which.
    let taken = (0..HOSTS).filter(|node| nodes.order(*node, wanted).is_ok()).count();
    if taken == 0 && round.commits.load(Ordering::SeqCst) == 0 {
        return Err(format!("nobody takes `{wanted}`"));
    }
    pause(100, 600);
    let mut rules = Rules::default();
    for fault in faults {
        fault.begin(&mut rules, nodes);
    }
    network.apply(&rules)?;
    // The operator wants another leader, whatever the state of things, and takes no for an answer.
    pause(300, 1500);
    if rng.percent(60) {
        let chosen = rng.below(HOSTS as u64) as usize;
        if nodes.is_up(chosen) && nodes.order(chosen, "promote").is_ok() {
            tally.promotions += 1;
        }
    }
    pause(300, 2500);
    network.apply(&Rules::default())?;
    nodes.raise()?;
    let before = round.commits.load(Ordering::SeqCst);
    let recovery = wait_for_commits(round, before + 1, RECOVERY, nodes, rng, tally)?;
    pause(200, 800);
    Ok(recovery)
}

/// Waits until so many commits were acknowledged. An operator promotes somebody after a while, again and again.
fn wait_for_commits(
    round: &Round,
    commits: u64,
    patience: Duration,
    nodes: &Nodes,
    rng: &Rng,
    tally: &mut Tally,
) -> Result<Duration, String> {
    let started = Instant::now();
    let mut operator = OPERATOR;
    let mut last = String::new();
    while round.commits.load(Ordering::SeqCst) < commits {
        if started.elapsed() > patience {
            let roles: Vec<_> = (0..HOSTS).map(|n| nodes.order(n, "role")).collect();
            return Err(format!("no commit for {patience:?}; the last promotion: {last}; roles {roles:?}"));
        }
        if started.elapsed() > operator {
            match nodes.order(rng.below(HOSTS as u64) as usize, "promote") {
                Ok(_) => tally.promotions += 1,
                Err(why) => last = why,
            }
            operator = started.elapsed() + OPERATOR;
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    Ok(started.elapsed())
}

/// Every acknowledged append is in its list on every node, and each epoch had one node that acknowledged in it.
fn check_acked(
    acked: &[Acked],
    lists: &[BTreeMap<u32, Vec<u64>>],
    leaders: &mut BTreeMap<u64, usize>,
) -> Result<(), String> {
    for (node, lists) in lists.iter().enumerate() {
        let there: BTreeSet<(u32, u64)> =
            lists.iter().flat_map(|(key, list)| list.iter().map(|element| (*key, *element))).collect();
        if let Some(lost) = acked.iter().find(|acked| !there.contains(&(acked.key, acked.element))) {
            return Err(format!(
                "node {node} does not have element {} of list {}, which node {} acknowledged at {:?}",
                lost.element, lost.key, lost.node, lost.position
            ));
        }
    }
    for Acked { position, node, .. } in acked {
        let leader = *leaders.entry(position.epoch_id).or_insert(*node);
        if leader != *node {
            return Err(format!("nodes {leader} and {node} both acknowledged in epoch {}", position.epoch));
        }
    }
    Ok(())
}
