//! What the server does for a request behind TLS, without sockets: frames go through session, engine and reply, on the
//! simulated disk. `src/bin/instructions.rs` counts what it costs.

use crate::sim::world::End;
use crate::sim::{SimEnv, World};
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::Partition;
use turnstone_engine::budget::Budget;
use turnstone_engine::settings::Settings;
use turnstone_net::server::ahead::warm_next;
use turnstone_net::server::conversation::Conversation;
use turnstone_net::server::execute::{Outcome, execute};
use turnstone_net::server::handoff::Parked;
use turnstone_net::session::{Session, Step};
use turnstone_net::tls::Role;
use turnstone_net::wire::{Dialect, Request};

/// What is counted.
pub const KINDS: [&str; 3] = ["get", "set", "v1_begin_set_commit"];

/// Different keys; every one is asked for equally often.
const KEYS: u32 = 1024;
/// Requests whose replies leave together.
const PIPELINE: u32 = 16;
const VALUE_BYTES: usize = 128;
const MAX_REQUEST: u32 = 1 << 20;

fn frame(dialect: Dialect, request: &Request<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    request.encode_frame(dialect, 7, &mut bytes).expect("a small frame");
    bytes
}

fn get(dialect: Dialect, key: u32) -> Vec<u8> {
    frame(dialect, &Request::Get { key: format!("key:{key:012}").as_bytes() })
}

fn set(dialect: Dialect, key: u32) -> Vec<u8> {
    frame(dialect, &Request::Set { key: format!("key:{key:012}").as_bytes(), value: &[b'v'; VALUE_BYTES] })
}

struct Client {
    conversation: Conversation<SimEnv>,
    partition: Partition<SimEnv>,
    answered: u32,
}

impl Client {
    fn new(partition: &Partition<SimEnv>, dialect: Dialect) -> Client {
        let session = Session::new(dialect, Some(Role::Client), 16, MAX_REQUEST);
        let mut conversation =
            Conversation::new(Parked { session, input: Vec::new(), last_input: false }, &Budget::new(512 << 20));
        conversation.session.selected = 1;
        conversation.partition = Some(partition.clone());
        Client { conversation, partition: partition.clone(), answered: 0 }
    }

    /// Runs the frames and waits until every reply may leave.
    async fn ask(&mut self, frames: &[u8]) {
        let (mut at, mut warm_to) = (0, 0);
        loop {
            if at >= warm_to {
                warm_to = at + warm_next(&self.conversation, &frames[at..]);
            }
            let (used, step) = self.conversation.session.next(&frames[at..]);
            at += used;
            match step {
                Step::NeedMore => break,
                Step::RunLong { .. } => panic!("no request here is as long"),
                Step::Run { id, request } => match execute(&mut self.conversation, id, request) {
                    Outcome::Done => {}
                    Outcome::Later(future) => (future.await)(&mut self.conversation),
                    Outcome::Select(_) | Outcome::Node(_) | Outcome::Order(_) => panic!("only keys are asked for"),
                },
                other => panic!("a good frame is run, not {other:?}"),
            }
            self.answered += 1;
        }
        self.partition.wait_published(self.conversation.ahead.tell_after(&self.partition)).await;
        assert!(!self.conversation.settle(), "every reply may leave");
        self.conversation.out.clear();
    }
}

/// Runs `count` requests (or transactions) of a kind; panics unless each is answered.
pub fn run(kind: &str, count: u32) {
    let world = World::new(1);
    let env = SimEnv::fresh(&world, None);
    let (dialect, frames): (Dialect, fn(u32) -> Vec<u8>) = match kind {
        "get" => (Dialect::Turnstone2, |key| get(Dialect::Turnstone2, key)),
        "set" => (Dialect::Turnstone2, |key| set(Dialect::Turnstone2, key)),
        "v1_begin_set_commit" => (Dialect::V1, |key| {
            [frame(Dialect::V1, &Request::Begin), set(Dialect::V1, key), frame(Dialect::V1, &Request::Commit)].concat()
        }),
        other => panic!("{other} is not counted"),
    };
    let pipelines = |frames: &dyn Fn(u32) -> Vec<u8>| -> Rc<Vec<Vec<u8>>> {
        let of = |first: u32| (first..first + PIPELINE).flat_map(frames).collect();
        Rc::new((0..KEYS).step_by(PIPELINE as usize).map(of).collect())
    };
    let (fill, asked) = (pipelines(&|key| set(Dialect::Turnstone2, key)), pipelines(&frames));
    let clock = world.clone();
    let end = world.run(async move {
        let partition = Partition::open(env, 1, Settings::default()).await.expect("a fresh partition opens");
        let mut first = Client::new(&partition, Dialect::Turnstone2);
        for pipeline in fill.iter() {
            first.ask(pipeline).await;
        }
        // The log's next segment, which is written meanwhile, is no part of what a request costs.
        while partition.status().wal_spares == 0 {
            assert!(clock.now() < Duration::from_secs(60), "no spare segment was made");
            clock.sleep(Duration::from_millis(1)).await;
        }
        let mut client = Client::new(&partition, dialect);
        for pipeline in asked.iter().cycle().take((count / PIPELINE) as usize) {
            client.ask(pipeline).await;
        }
        (client.answered, count)
    });
    let each = if kind == "v1_begin_set_commit" { 3 } else { 1 };
    match end {
        End::Done((answered, count)) => assert_eq!(answered, count / PIPELINE * PIPELINE * each),
        other => panic!("it did not come to an end: {other:?}"),
    }
}
