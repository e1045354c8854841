//! Isolation: histories of list-append transactions, bank transfers and write skew, from the simulator and from a real
//! server, go to the checker of `turnstone_tests::history`.
//!
//! `TURNSTONE_ISOLATION_SEEDS=N` and `TURNSTONE_ISOLATION_COMMITS=N` set the lengths.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use turnstone_engine::env::Sabotage;
use turnstone_engine::{Error, Lookup, Partition, RunAhead, Write};
use turnstone_net::client::Connection;
use turnstone_net::tls::Role;
use turnstone_net::wire::ErrorCode;
use turnstone_tests::crash::settings;
use turnstone_tests::history::bank::{BankSnapshot, check_bank};
use turnstone_tests::history::check::check;
use turnstone_tests::history::{History, Op, Outcome, Transaction, decode_list, encode_list, list_key};
use turnstone_tests::real::{TestHome, TestServer};
use turnstone_tests::sim::world::End;
use turnstone_tests::sim::{Rng, SimEnv, World};

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(otherwise)
}

/// Lists are cut back to empty now and then by a key change: keys are numbered upwards, so that lists stay short.
const APPENDS_PER_KEY: u64 = 60;

struct Recorder {
    clock: Cell<u64>,
    elements: Cell<u64>,
    /// Transactions that were not told their outcome yet.
    open: Cell<u32>,
    history: RefCell<Vec<Transaction>>,
}

impl Recorder {
    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }
}

async fn session(
    env: SimEnv,
    partition: Partition<SimEnv>,
    recorder: Rc<Recorder>,
    number: u32,
    count: u64,
    keys: u64,
) {
    let rng = &env.world.rng;
    let mut ahead = RunAhead::default();
    for _ in 0..count {
        let begin = recorder.tick();
        let mut transaction = partition.begin(ahead.snapshot(&partition));
        let snapshot = transaction.snapshot.version();
        let (mut ops, mut own, mut lost) = (Vec::new(), BTreeMap::<u32, Vec<u64>>::new(), false);
        for _ in 0..1 + rng.below(4) {
            let k = (recorder.elements.get() / APPENDS_PER_KEY * keys + rng.below(keys)) as u32;
            let found = match partition.get(&mut transaction, &list_key(k)) {
                Ok(Lookup::Found(value)) => Ok(Some(value)),
                Ok(Lookup::Absent) => Ok(None),
                Ok(Lookup::Cold(cold)) => cold.fetch().await,
                Err(error) => Err(error),
            };
            let Ok(found) = found else {
                lost = true;
                break;
            };
            let mut list = found.map_or(Vec::new(), |bytes| decode_list(&bytes));
            ops.push(Op::Read { key: k, list: list.clone() });
            if rng.percent(60) {
                let element = recorder.elements.get() + 1;
                recorder.elements.set(element);
                list.push(element);
                if partition
                    .write(&mut transaction, &list_key(k), Write::Set(encode_list(&list).as_slice().into()))
                    .is_err()
                {
                    lost = true;
                    break;
                }
                ops.push(Op::Append { key: k, element });
                own.insert(k, list);
            }
            if rng.percent(30) {
                env.world.device_time().await;
            }
        }
        let read_only = own.is_empty();
        let outcome = if lost {
            Outcome::Aborted
        } else {
            match partition.submit(transaction).prepared().await {
                Ok(version) => {
                    if !read_only {
                        ahead.prepared(version);
                    }
                    Outcome::Committed { version: Some(if read_only { snapshot } else { version }) }
                }
                Err(_) => Outcome::Aborted,
            }
        };
        // Half the time the session runs ahead of its flush: what it is told comes later, and only then it has ended.
        let told = {
            let (partition, recorder, after) = (partition.clone(), recorder.clone(), ahead.tell_after(&partition));
            async move {
                partition.wait_published(after).await;
                let end = recorder.tick();
                recorder.history.borrow_mut().push(Transaction { session: number, begin, end, ops, outcome });
                recorder.open.set(recorder.open.get() - 1);
            }
        };
        recorder.open.set(recorder.open.get() + 1);
        if rng.percent(50) {
            told.await;
        } else {
            env.world.spawn(told);
        }
    }
}

type Session = std::pin::Pin<Box<dyn Future<Output = ()>>>;

/// Runs sessions side by side on a fresh simulated partition, checkpoints in between, until all are done and `open` is 0.
fn in_a_world(
    seed: u64,
    sabotage: Option<Sabotage>,
    open: impl Fn() -> u32 + 'static,
    sessions: impl FnOnce(&SimEnv, &Partition<SimEnv>) -> Vec<Session> + 'static,
) {
    let world = World::new(seed);
    let settings = settings(&world.rng);
    let env = SimEnv::fresh(&world, sabotage);
    let end = world.run(async move {
        let partition = Partition::open(env.clone(), 1, settings).await.expect("a fresh partition opens");
        let left = Rc::new(Cell::new(0));
        for session in sessions(&env, &partition) {
            let left = left.clone();
            left.set(left.get() + 1);
            env.world.spawn(async move {
                session.await;
                left.set(left.get() - 1);
            });
        }
        while left.get() > 0 || open() > 0 {
            env.world.sleep(Duration::from_millis(3)).await;
            if env.world.rng.percent(10) {
                match partition.checkpoint().await {
                    Ok(()) | Err(Error::NoSpace(_)) => {}
                    Err(error) => panic!("a checkpoint failed: {error}"),
                }
            }
        }
    });
    assert!(matches!(end, End::Done(())), "seed {seed}: {end:?}");
    world.drop_tasks();
}

/// One simulated run; answers its history.
fn simulate(seed: u64, transactions: u64, sabotage: Option<Sabotage>) -> Vec<Transaction> {
    let recorder = Rc::new(Recorder {
        clock: Cell::new(0),
        elements: Cell::new(0),
        open: Cell::new(0),
        history: RefCell::default(),
    });
    let (open, run) = (recorder.clone(), recorder.clone());
    in_a_world(
        seed,
        sabotage,
        move || open.open.get(),
        move |env, partition| {
            let (sessions, keys) = (2 + env.world.rng.below(7), 2 + env.world.rng.below(8));
            let each = transactions / sessions + 1;
            let one = |n| session(env.clone(), partition.clone(), run.clone(), n as u32, each, keys);
            (0..sessions).map(|n| Box::pin(one(n)) as Session).collect()
        },
    );
    recorder.history.take()
}

const SIM_ACCOUNTS: u32 = 6;
const SIM_START: i64 = 50;

/// What simulated tellers saw: all accounts at once, and the sum of two rows that must not fall below zero.
#[derive(Default)]
struct Ledger {
    snapshots: RefCell<Vec<BankSnapshot>>,
    lowest: Cell<i64>,
    refused: Cell<u64>,
}

fn number_in(found: Option<Vec<u8>>, otherwise: i64) -> i64 {
    found.map_or(otherwise, |bytes| i64::from_le_bytes(bytes.try_into().expect("8 bytes")))
}

/// All balances, and the sum of the two rows.
type Seen = (Vec<Option<i64>>, i64);

/// Transfers, withdrawals from one of two rows as far as both together allow, and reads of everything.
async fn teller(env: SimEnv, partition: Partition<SimEnv>, ledger: Rc<Ledger>, me: u32, count: u64) {
    let rng = &env.world.rng;
    let mut ahead = RunAhead::default();
    for round in 0..count {
        let mut transaction = partition.begin(ahead.snapshot(&partition));
        let account = |n: u64| format!("account-{n}").into_bytes();
        // A snapshot may be given up under pressure; the transaction then counts for nothing.
        let read = async |t: &mut turnstone_engine::Transaction, key: &[u8]| -> Result<Option<Vec<u8>>, Error> {
            match partition.get(t, key)? {
                Lookup::Found(value) => Ok(Some(value.to_vec())),
                Lookup::Absent => Ok(None),
                Lookup::Cold(cold) => Ok(cold.fetch().await?.map(|v| v.to_vec())),
            }
        };
        let set = |t: &mut turnstone_engine::Transaction, key: &[u8], n: i64| {
            partition.write(t, key, Write::Set(n.to_le_bytes().as_slice().into()))
        };
        let attempt: Result<Option<Seen>, Error> = async {
            match rng.below(10) {
                0..=3 => {
                    let (from, to) = (rng.below(u64::from(SIM_ACCOUNTS)), rng.below(u64::from(SIM_ACCOUNTS)));
                    let amount = rng.below(30) as i64;
                    let a = number_in(read(&mut transaction, &account(from)).await?, SIM_START);
                    let b = number_in(read(&mut transaction, &account(to)).await?, SIM_START);
                    if from != to && a >= amount {
                        set(&mut transaction, &account(from), a - amount)?;
                        set(&mut transaction, &account(to), b + amount)?;
                    }
                    Ok(None)
                }
                4..=6 => {
                    let rows: [&[u8]; 2] = [b"x", b"y"];
                    let x = number_in(read(&mut transaction, rows[0]).await?, SIM_START);
                    let y = number_in(read(&mut transaction, rows[1]).await?, SIM_START);
                    let (row, own) = if rng.percent(50) { (rows[0], x) } else { (rows[1], y) };
                    // Either row may be overdrawn, the two together may not.
                    let change = if x + y >= 60 { -60 } else { 30 };
                    set(&mut transaction, row, own + change)?;
                    Ok(None)
                }
                _ => {
                    let mut balances = Vec::new();
                    for n in 0..u64::from(SIM_ACCOUNTS) {
                        balances.push(Some(number_in(read(&mut transaction, &account(n)).await?, SIM_START)));
                    }
                    let x = number_in(read(&mut transaction, b"x").await?, SIM_START);
                    let y = number_in(read(&mut transaction, b"y").await?, SIM_START);
                    Ok(Some((balances, x + y)))
                }
            }
        }
        .await;
        let read_only = transaction.writes.is_empty();
        let Ok(seen) = attempt else { continue };
        match partition.submit(transaction).prepared().await {
            Ok(version) if !read_only => ahead.prepared(version),
            Ok(_) => {}
            Err(_) => ledger.refused.set(ledger.refused.get() + 1),
        }
        if let Some((balances, rows)) = seen {
            partition.wait_published(ahead.tell_after(&partition)).await;
            ledger.snapshots.borrow_mut().push(BankSnapshot { session: me, begin: round, balances });
            ledger.lowest.set(ledger.lowest.get().min(rows));
        }
        if rng.percent(30) {
            env.world.device_time().await;
        }
    }
}

/// One simulated bank; answers snapshots, refusals, and what is wrong.
fn simulate_bank(seed: u64, transactions: u64, sabotage: Option<Sabotage>) -> Result<(usize, u64), String> {
    let ledger = Rc::new(Ledger::default());
    let run = ledger.clone();
    in_a_world(
        seed ^ 0xBA_2C,
        sabotage,
        || 0,
        move |env, partition| {
            let sessions = 2 + env.world.rng.below(6);
            let each = transactions / sessions + 1;
            let one = |n| teller(env.clone(), partition.clone(), run.clone(), n as u32, each);
            (0..sessions).map(|n| Box::pin(one(n)) as Session).collect()
        },
    );
    let snapshots = ledger.snapshots.take();
    let total = SIM_START * i64::from(SIM_ACCOUNTS);
    let summary = check_bank(SIM_ACCOUNTS as usize, total, &snapshots).map_err(|v| v[0].to_string())?;
    match ledger.lowest.get() {
        low if low < 0 => Err(format!("write skew: two rows sum up to {low}")),
        _ => Ok((summary.snapshots, ledger.refused.get())),
    }
}

#[test]
fn simulated_banks_add_up_and_show_no_write_skew() {
    let seeds = number("TURNSTONE_ISOLATION_SEEDS", 2000);
    let (mut snapshots, mut refused) = (0, 0);
    for seed in 0..seeds {
        match simulate_bank(seed, 500, None) {
            Ok((seen, conflicts)) => {
                snapshots += seen;
                refused += conflicts;
            }
            Err(what) => panic!("seed {seed}: {what}"),
        }
    }
    println!(
        "{seeds} simulated banks of 500 transactions: {snapshots} snapshots add up, {refused} refused, no write skew"
    );
    let skewed = |seed| simulate_bank(seed, 500, Some(Sabotage::ReadCheckSkipped)).is_err();
    assert!((0..100).any(skewed), "100 banks without the read check showed no write skew");
    let lost = |seed| simulate_bank(seed, 500, Some(Sabotage::PendingNotChecked)).is_err();
    assert!((0..100).any(lost), "100 banks that lose updates added up");
}

#[test]
fn simulated_histories_show_no_anomaly() {
    let seeds = number("TURNSTONE_ISOLATION_SEEDS", 2000);
    let (mut committed, mut aborted, mut edges) = (0, 0, 0);
    for seed in 0..seeds {
        let history = History::from(simulate(seed, 500, None));
        match check(&history) {
            Ok(summary) => {
                committed += summary.committed;
                aborted += summary.aborted;
                edges += 1;
            }
            Err(anomalies) => panic!("seed {seed}: {}", anomalies[0]),
        }
    }
    println!("{edges} simulated histories, {committed} commits, {aborted} refused, no anomaly");
}

#[test]
fn a_simulated_store_without_the_read_check_is_found_out() {
    let found =
        (0..200).any(|seed| check(&History::from(simulate(seed, 500, Some(Sabotage::ReadCheckSkipped)))).is_err());
    assert!(found, "200 histories of a store that skips the read check passed");
}

/// What the clients of a real server recorded.
struct Real {
    clock: AtomicU64,
    elements: AtomicU64,
    commits: AtomicU64,
    transactions: Mutex<Vec<Transaction>>,
}

fn real_session(mut connection: Connection, real: &Real, number: u32, goal: u64, keys: u64) {
    let rng = Rng::new(u64::from(number) + 1000);
    let mut mine = Vec::new();
    while real.commits.load(Ordering::SeqCst) < goal {
        let begin = real.clock.fetch_add(1, Ordering::SeqCst);
        connection.begin().expect("begun");
        let mut ops = Vec::new();
        let mut wrote = false;
        for _ in 0..1 + rng.below(3) {
            let generation = real.elements.load(Ordering::SeqCst) / (APPENDS_PER_KEY * keys);
            let k = (generation * keys + rng.below(keys)) as u32;
            let mut list = connection.get(&list_key(k)).expect("read").map_or(Vec::new(), |bytes| decode_list(&bytes));
            ops.push(Op::Read { key: k, list: list.clone() });
            if rng.percent(35) {
                let element = real.elements.fetch_add(1, Ordering::SeqCst) + 1;
                list.push(element);
                connection.set(&list_key(k), &encode_list(&list)).expect("buffered");
                ops.push(Op::Append { key: k, element });
                wrote = true;
            }
        }
        let outcome = match connection.commit() {
            Ok(position) => {
                real.commits.fetch_add(1, Ordering::SeqCst);
                // A read-only commit tells its snapshot.
                Outcome::Committed { version: Some(position.version).filter(|_| wrote) }
            }
            Err(error) if error.code() == Some(ErrorCode::Conflict) => Outcome::Aborted,
            Err(error) => panic!("a commit failed: {error}"),
        };
        let end = real.clock.fetch_add(1, Ordering::SeqCst);
        mine.push(Transaction { session: number, begin, end, ops, outcome });
    }
    real.transactions.lock().expect("no panic").extend(mine);
}

/// 16 connections on `keys` keys, checkpoints running; answers the history.
fn run_real(home: &TestHome, server: &TestServer, goal: u64, keys: u64) -> Vec<Transaction> {
    let real = Real {
        clock: AtomicU64::new(1),
        elements: AtomicU64::new(0),
        commits: AtomicU64::new(0),
        transactions: Mutex::default(),
    };
    std::thread::scope(|scope| {
        for number in 0..16u32 {
            let (real, connection) = (&real, home.connect(server, Role::Client, 4));
            scope.spawn(move || real_session(connection, real, number, goal, keys));
        }
        let mut admin = home.connect(server, Role::Admin, 4);
        while real.commits.load(Ordering::SeqCst) < goal {
            admin.checkpoint().expect("a checkpoint");
        }
    });
    let mut transactions = real.transactions.into_inner().expect("no panic");
    transactions.sort_by_key(|t| t.begin);
    transactions
}

#[test]
fn a_real_servers_histories_show_no_anomaly() {
    let goal = number("TURNSTONE_ISOLATION_COMMITS", 100_000);
    let mut total = 0;
    for keys in [8, 24, 64] {
        let home = TestHome::new("isolation");
        let server = home.serve(&["--checkpoint-bytes", "256KiB"]);
        let history = History::from(run_real(&home, &server, goal / 3 + 1, keys));
        match check(&history) {
            Ok(summary) => {
                println!("{keys} keys: {summary}");
                assert!((5.0..=50.0).contains(&summary.conflict_percent), "{} % conflicts", summary.conflict_percent);
                total += summary.committed;
            }
            Err(anomalies) => panic!("{keys} keys: {}", anomalies[0]),
        }
    }
    println!("{total} commits on a real server, no anomaly");
}

#[test]
fn a_real_server_without_the_read_check_is_found_out() {
    let home = TestHome::new("sabotage");
    let program = env!("CARGO_BIN_EXE_turnstone-sabotaged").into();
    let server = home.try_serve(program, &[]).expect("it gets ready");
    let history = History::from(run_real(&home, &server, 5_000, 8));
    let anomalies = check(&history).expect_err("it must be found out");
    println!("found: {}", anomalies[0]);
}

#[test]
fn bank_transfers_keep_the_total_and_write_skew_is_refused() {
    const ACCOUNTS: u32 = 10;
    const START: i64 = 100;
    let home = TestHome::new("bank");
    let server = home.serve(&["--checkpoint-bytes", "128KiB"]);
    let account = |n: u32| format!("account-{n}").into_bytes();
    let read = |c: &mut Connection, n: u32| -> i64 {
        c.get(&account(n)).expect("read").map_or(0, |b| String::from_utf8(b).expect("text").parse().expect("a number"))
    };
    let mut admin = home.connect(&server, Role::Admin, 2);
    for n in 0..ACCOUNTS {
        admin.set(&account(n), START.to_string().as_bytes()).expect("set");
    }
    let snapshots: Mutex<Vec<BankSnapshot>> = Mutex::default();
    let conflicts = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for worker in 0..16u64 {
            let mut c = home.connect(&server, Role::Client, 2);
            let (snapshots, conflicts) = (&snapshots, &conflicts);
            scope.spawn(move || {
                let rng = Rng::new(worker);
                for round in 0..400 {
                    c.begin().expect("begun");
                    if rng.percent(30) {
                        let balances = (0..ACCOUNTS).map(|n| Some(read(&mut c, n))).collect();
                        c.commit().expect("read-only transactions never conflict");
                        let snapshot = BankSnapshot { session: worker as u32, begin: round, balances };
                        snapshots.lock().expect("no panic").push(snapshot);
                        continue;
                    }
                    let (from, to) = (rng.below(10) as u32, rng.below(10) as u32);
                    let amount = rng.below(20) as i64;
                    let (a, b) = (read(&mut c, from), read(&mut c, to));
                    if from != to && a >= amount {
                        c.set(&account(from), (a - amount).to_string().as_bytes()).expect("set");
                        c.set(&account(to), (b + amount).to_string().as_bytes()).expect("set");
                    }
                    match c.commit() {
                        Ok(_) => {}
                        Err(error) => {
                            assert_eq!(error.code(), Some(ErrorCode::Conflict), "{error}");
                            conflicts.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                }
            });
        }
    });
    let snapshots = snapshots.into_inner().expect("no panic");
    check_bank(ACCOUNTS as usize, START * i64::from(ACCOUNTS), &snapshots).expect("every snapshot adds up");
    println!("{} bank snapshots add up, {} transfers refused", snapshots.len(), conflicts.load(Ordering::SeqCst));

    // Write skew: both read both rows, each withdraws from its own; only one may.
    for _ in 0..100 {
        admin.set(b"x", b"50").expect("set");
        admin.set(b"y", b"50").expect("set");
        let mut other = home.connect(&server, Role::Client, 2);
        for c in [&mut admin, &mut other] {
            c.begin().expect("begun");
            c.get(b"x").expect("read");
            c.get(b"y").expect("read");
        }
        admin.set(b"x", b"-40").expect("set");
        other.set(b"y", b"-40").expect("set");
        let outcomes = [admin.commit().is_ok(), other.commit().is_ok()];
        assert_eq!(outcomes, [true, false], "the second must be refused");
    }
}
