//! The log itself, read from the server's change stream: what files and tables are compared with.

use super::{Change, PATIENCE};
use crate::real::{TestHome, TestServer};
use std::collections::VecDeque;
use turnstone_net::client::{ChangeEvent, ChangeStream};
use turnstone_net::tls::Role;
use turnstone_net::wire::change::body::{self, Change as Logged};
use turnstone_net::wire::change::{PROTOCOL, Start, Subscribe};

/// From the beginning of the log, without a hold, with 1 MiB of credit.
pub fn subscribe(partition: u8, name: &str) -> Subscribe {
    Subscribe {
        version: PROTOCOL,
        partition,
        start: Start::Behind,
        last: 0,
        epochs: Vec::new(),
        hold: 0,
        credit: 1 << 20,
        name: name.to_string(),
    }
}

/// The changes of a partition's log, from the oldest on.
pub struct Log {
    stream: ChangeStream,
    ready: VecDeque<Change>,
    /// Read up to there, and to be read up to there.
    last: u64,
    until: u64,
}

impl Log {
    /// Of what the server shows now.
    pub fn of(home: &TestHome, server: &TestServer, partition: u8) -> Log {
        let subscribe = Subscribe { credit: 4 << 20, ..subscribe(partition, "log-of-a-test") };
        let files = home.files(Role::Admin);
        let mut stream = ChangeStream::open(&server.address, &files, PATIENCE, &subscribe).expect("it connects");
        let until = match stream.next(PATIENCE) {
            Ok(Some(ChangeEvent::Begun { last: 0, shown, .. })) => shown,
            other => panic!("the log does not begin at its beginning: {other:?}"),
        };
        Log { stream, ready: VecDeque::new(), last: 0, until }
    }

    fn event(&mut self) -> ChangeEvent {
        self.stream.next(PATIENCE).expect("the stream lives").expect("something comes")
    }

    fn read_batch(&mut self, bytes: &[u8]) {
        body::read(bytes, true, |_, version, changes| {
            let of = changes.iter().filter(|change| !matches!(change, Logged::Members(_))).count() as u32;
            let mut n = 0;
            for change in changes {
                let (key, value) = match change {
                    Logged::Set(key, value) => (Some(key.to_vec()), Some(value.to_vec())),
                    Logged::SetLarge(key, ..) => (Some(key.to_vec()), Some(self.large_value())),
                    Logged::Delete(key) => (Some(key.to_vec()), None),
                    Logged::Flush => (None, None),
                    Logged::Members(_) => continue,
                };
                n += 1;
                self.ready.push_back(Change { version, at: (n, of), key, value });
            }
            self.last = version;
            Ok::<_, body::BodyError>(())
        })
        .expect("a good body");
    }

    fn large_value(&mut self) -> Vec<u8> {
        loop {
            match self.event() {
                ChangeEvent::Value(value) => return value,
                ChangeEvent::Progress(_) => {}
                other => panic!("{other:?} in place of a large value"),
            }
        }
    }
}

impl Iterator for Log {
    type Item = Change;

    fn next(&mut self) -> Option<Change> {
        while self.ready.is_empty() && self.last < self.until {
            match self.event() {
                ChangeEvent::Batch(bytes) => self.read_batch(&bytes),
                ChangeEvent::Progress(_) | ChangeEvent::Epochs(_) => {}
                other => panic!("{other:?} in the log"),
            }
        }
        self.ready.pop_front()
    }
}
