//! The loop that keeps connections busy.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use turnstone_net::client::{ClientSettings, NonBlocking};

use super::protocol::{Outcome, Speech};
use super::workload::{Action, Chooser};

/// How long a run may go without a single reply before it is given up.
const SILENCE: Duration = Duration::from_secs(60);

/// What all connections of a phase have in common.
#[derive(Clone)]
pub struct Plan {
    /// How to reach the server.
    pub target: ClientSettings,
    /// What it speaks.
    pub speech: Speech,
    /// Transactions in flight per connection.
    pub depth: usize,
    /// Operations per transaction.
    pub batch: usize,
    /// What is written.
    pub value: Vec<u8>,
    /// Ends the phase after this time; otherwise it ends when every connection has done its share.
    pub duration: Option<Duration>,
    /// Left out of the figures.
    pub warmup: Duration,
    /// An open loop: the time between the intended starts of one connection's transactions.
    pub interval: Option<Duration>,
}

/// One connection's part.
pub struct Part {
    /// Its keys and actions.
    pub chooser: Chooser,
    /// Transactions to do; not looked at where a duration is set.
    pub transactions: u64,
    /// The partition to select.
    pub partition: u8,
    /// When its first transaction is due, after the start (open loop).
    pub offset: Duration,
}

/// What was measured. Latencies are in nanoseconds.
pub struct Figures {
    /// Of transactions that read.
    pub reads: Histogram<u64>,
    /// Of transactions that wrote.
    pub writes: Histogram<u64>,
    /// Transactions done.
    pub done: u64,
    /// Keys that were not found.
    pub missing: u64,
    /// Transactions refused, by the server's word.
    pub errors: BTreeMap<String, u64>,
    /// Bytes of requests and replies, without TLS.
    pub bytes: (u64, u64),
    /// From the end of the warm-up to the last reply.
    pub elapsed: Duration,
    /// Processor time of the driving threads in that window.
    pub cpu: Duration,
}

impl Figures {
    fn new() -> Figures {
        // Three digits over any range: fixed bounds that the crate accepts.
        let histogram = || Histogram::new(3).unwrap_or_else(|e| unreachable!("three significant digits: {e}"));
        Figures {
            reads: histogram(),
            writes: histogram(),
            done: 0,
            missing: 0,
            errors: BTreeMap::new(),
            bytes: (0, 0),
            elapsed: Duration::ZERO,
            cpu: Duration::ZERO,
        }
    }

    fn add(&mut self, other: Figures) {
        // Both grow as needed, so adding cannot fail.
        let _ = self.reads.add(&other.reads);
        let _ = self.writes.add(&other.writes);
        self.done += other.done;
        self.missing += other.missing;
        for (word, count) in other.errors {
            *self.errors.entry(word).or_default() += count;
        }
        self.bytes.0 += other.bytes.0;
        self.bytes.1 += other.bytes.1;
        self.elapsed = self.elapsed.max(other.elapsed);
        self.cpu += other.cpu;
    }
}

/// Runs a phase on one thread per CPU of `cores` (one thread where that is empty).
pub fn run(plan: &Plan, parts: Vec<Part>, cores: &[usize]) -> Result<Figures, String> {
    let threads = cores.len().max(1);
    let mut dealt: Vec<Vec<Part>> = (0..threads).map(|_| Vec::new()).collect();
    for (i, part) in parts.into_iter().enumerate() {
        dealt[i % threads].push(part);
    }
    let barrier = Arc::new(Barrier::new(threads));
    let running: Vec<_> = dealt
        .into_iter()
        .enumerate()
        .map(|(i, parts)| {
            let (plan, barrier, cpu) = (plan.clone(), barrier.clone(), cores.get(i).copied());
            std::thread::spawn(move || drive(&plan, parts, cpu, &barrier))
        })
        .collect();
    let mut all = Figures::new();
    for thread in running {
        all.add(thread.join().map_err(|_| "a driving thread panicked".to_owned())??);
    }
    Ok(all)
}

fn drive(plan: &Plan, parts: Vec<Part>, cpu: Option<usize>, barrier: &Barrier) -> Result<Figures, String> {
    let pinned = match cpu {
        Some(cpu) => turnstone_executor::placement::pin_thread(cpu).map_err(|e| format!("CPU {cpu}: {e}")),
        None => Ok(()),
    };
    let connected: Result<Vec<Client>, String> = pinned.and_then(|()| {
        let clients = parts.into_iter().map(|part| Client::connect(plan, part));
        clients.collect::<Result<_, _>>().map_err(|error| error.to_string())
    });
    // Whoever failed must still arrive, or the others would wait for ever.
    barrier.wait();
    Thread { plan, clients: connected?, figures: Figures::new(), started: Instant::now(), measured: None }.run()
}

struct Flight {
    started: Instant,
    action: Action,
    replies: usize,
    missing: u32,
    failed: Option<String>,
}

struct Client {
    link: NonBlocking,
    part: Part,
    left: u64,
    due: Instant,
    flights: VecDeque<Flight>,
    keys: Vec<Vec<u8>>,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    writable: bool,
    open: bool,
}

impl Client {
    fn connect(plan: &Plan, part: Part) -> Result<Client, String> {
        let link = NonBlocking::connect(&plan.target).map_err(|error| error.to_string())?;
        let mut client = Client {
            link,
            left: part.transactions,
            part,
            due: Instant::now(),
            flights: VecDeque::new(),
            keys: vec![Vec::new(); plan.batch],
            outgoing: Vec::new(),
            incoming: Vec::new(),
            writable: true,
            open: true,
        };
        client.select(plan)?;
        Ok(client)
    }

    /// Selects the partition and waits for the answer.
    fn select(&mut self, plan: &Plan) -> Result<(), String> {
        if !plan.speech.select(self.part.partition, &mut self.outgoing) {
            return Ok(());
        }
        let lost = |error: io::Error| format!("select: {error}");
        self.link.send(&self.outgoing).map_err(lost)?;
        self.outgoing.clear();
        let started = Instant::now();
        loop {
            let open = self.link.receive(&mut self.incoming).map_err(lost)?;
            match plan.speech.reply(&self.incoming).map_err(|garbled| garbled.0)? {
                Some((Outcome::Done { .. }, length)) => {
                    self.incoming.drain(..length);
                    return Ok(());
                }
                Some((Outcome::Failed(word), _)) => return Err(format!("select {}: {word}", self.part.partition)),
                None if !open => return Err("the server closed the connection; are there too many?".to_owned()),
                None if started.elapsed() > SILENCE => return Err("the server does not answer select".to_owned()),
                None => std::thread::yield_now(),
            }
        }
    }

    /// Starts what is due; answers whether anything was sent.
    fn start(&mut self, plan: &Plan, now: Instant, figures: &mut Figures, more: bool) -> io::Result<()> {
        let endless = plan.duration.is_some();
        let may = |client: &Client| client.open && more && (endless || client.left > 0);
        match plan.interval {
            None => {
                if self.flights.is_empty() {
                    for _ in 0..plan.depth {
                        if may(self) {
                            self.one(plan, now);
                        }
                    }
                }
            }
            Some(interval) => {
                while may(self) && self.due <= now && self.flights.len() < plan.depth {
                    let due = self.due;
                    self.one(plan, due);
                    self.due += interval;
                }
            }
        }
        if !self.outgoing.is_empty() {
            figures.bytes.0 += self.outgoing.len() as u64;
            self.writable = self.link.send(&self.outgoing)?;
            self.outgoing.clear();
        }
        Ok(())
    }

    fn one(&mut self, plan: &Plan, started: Instant) {
        let action = self.part.chooser.action();
        for key in &mut self.keys {
            self.part.chooser.key(key);
        }
        plan.speech.transaction(action, &self.keys, &plan.value, &mut self.outgoing);
        let replies = plan.speech.replies(self.keys.len());
        self.flights.push_back(Flight { started, action, replies, missing: 0, failed: None });
        self.left = self.left.saturating_sub(1);
    }

    /// Takes the replies that have arrived.
    fn take(&mut self, plan: &Plan, figures: &mut Figures, counts: bool) -> Result<(), String> {
        let before = self.incoming.len();
        let open = self.link.receive(&mut self.incoming).map_err(|error| error.to_string())?;
        figures.bytes.1 += (self.incoming.len() - before) as u64;
        let (mut at, now) = (0, Instant::now());
        while let Some((outcome, length)) = plan.speech.reply(&self.incoming[at..]).map_err(|garbled| garbled.0)? {
            at += length;
            let Some(flight) = self.flights.front_mut() else {
                return Err(match outcome {
                    Outcome::Failed(word) => word,
                    Outcome::Done { .. } => "a reply came unasked".to_owned(),
                });
            };
            match outcome {
                Outcome::Done { missing } => flight.missing += missing,
                // The first is the cause, the others follow from it.
                Outcome::Failed(word) => {
                    flight.failed.get_or_insert(word);
                }
            }
            flight.replies -= 1;
            if flight.replies == 0
                && let Some(flight) = self.flights.pop_front()
                && counts
            {
                figures.record(flight, now);
            }
        }
        self.incoming.drain(..at);
        if open { Ok(()) } else { Err("CLOSED".to_owned()) }
    }
}

impl Figures {
    fn record(&mut self, flight: Flight, now: Instant) {
        match flight.failed {
            Some(word) => *self.errors.entry(word).or_default() += 1,
            None => {
                self.done += 1;
                self.missing += u64::from(flight.missing);
                let nanoseconds = now.saturating_duration_since(flight.started).as_nanos() as u64;
                let histogram = match flight.action {
                    Action::Read => &mut self.reads,
                    Action::Write => &mut self.writes,
                };
                // It grows as needed, so recording cannot fail.
                let _ = histogram.record(nanoseconds.max(1));
            }
        }
    }
}

struct Thread<'a> {
    plan: &'a Plan,
    clients: Vec<Client>,
    figures: Figures,
    started: Instant,
    /// When the warm-up ended, and the processor time used by then.
    measured: Option<(Instant, Duration)>,
}

impl Thread<'_> {
    fn run(mut self) -> Result<Figures, String> {
        let failed = |error: io::Error| format!("waiting for sockets: {error}");
        let mut poll = Poll::new().map_err(failed)?;
        let mut events = Events::with_capacity(1024);
        for (i, client) in self.clients.iter_mut().enumerate() {
            client.due = self.started + client.part.offset;
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut SourceFd(&client.link.descriptor()), Token(i), interest).map_err(failed)?;
        }
        let mut last_reply = Instant::now();
        for i in 0..self.clients.len() {
            self.start(i);
        }
        while self.clients.iter().any(|client| client.open && (self.more_of(client) || !client.flights.is_empty())) {
            let timeout = self.timeout();
            match poll.poll(&mut events, Some(timeout)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(failed(error)),
                _ => {}
            }
            let counts = self.warm();
            for event in &events {
                let i = event.token().0;
                if event.is_writable() && !self.clients[i].writable {
                    let flushed = self.clients[i].link.flush();
                    match flushed {
                        Ok(done) => self.clients[i].writable = done,
                        Err(error) => self.lose(i, error.to_string()),
                    }
                }
                if event.is_readable() && self.clients[i].open {
                    match self.clients[i].take(self.plan, &mut self.figures, counts) {
                        Ok(()) => last_reply = Instant::now(),
                        Err(word) => self.lose(i, word),
                    }
                    self.start(i);
                }
            }
            if self.plan.interval.is_some() {
                (0..self.clients.len()).for_each(|i| self.start(i));
            }
            let waiting = self.clients.iter().any(|client| !client.flights.is_empty());
            if waiting && last_reply.elapsed() > SILENCE {
                return Err(format!("no reply came for {} s", SILENCE.as_secs()));
            }
            if !waiting {
                last_reply = Instant::now();
            }
        }
        let (since, cpu) = self.measured.unwrap_or((self.started, Duration::ZERO));
        self.figures.elapsed = since.elapsed();
        self.figures.cpu = thread_cpu().saturating_sub(cpu);
        Ok(self.figures)
    }

    /// Whether the warm-up is over.
    fn warm(&mut self) -> bool {
        if self.measured.is_none() && self.started.elapsed() >= self.plan.warmup {
            self.measured = Some((Instant::now(), thread_cpu()));
            self.figures.bytes = (0, 0);
        }
        self.measured.is_some()
    }

    fn in_time(&self) -> bool {
        self.plan.duration.is_none_or(|duration| self.started.elapsed() < duration)
    }

    fn more_of(&self, client: &Client) -> bool {
        if self.plan.duration.is_some() { self.in_time() } else { client.left > 0 }
    }

    fn start(&mut self, i: usize) {
        let more = self.in_time();
        if let Err(error) = self.clients[i].start(self.plan, Instant::now(), &mut self.figures, more) {
            self.lose(i, error.to_string());
        }
    }

    fn lose(&mut self, i: usize, word: String) {
        self.clients[i].open = false;
        self.clients[i].flights.clear();
        *self.figures.errors.entry(format!("connection lost: {word}")).or_default() += 1;
    }

    /// Until the next intended start, and at most a moment, so that the end of the run is noticed.
    fn timeout(&self) -> Duration {
        let moment = Duration::from_millis(20);
        if self.plan.interval.is_none() {
            return moment;
        }
        let now = Instant::now();
        let due = self.clients.iter().filter(|client| client.open && client.flights.len() < self.plan.depth);
        due.map(|client| client.due.saturating_duration_since(now)).min().unwrap_or(moment).min(moment)
    }
}

/// Processor time of this thread so far.
fn thread_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = text.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
    Duration::from_nanos(nanoseconds)
}
