//! Change streams of the partitions of one core, for consumers.
//!
//! A stream is what the log says, in its order, of what is shown: a consumer never hears of a commit that a crash could take
//! back. It is served from the newest batches in memory or from the files ([`turnstone_engine::tail`]), or begins with a copy
//! of the last checkpoint ([`turnstone_engine::copy`]) and goes on with the log behind it. [`feed`] has the rules.
//!
//! * **Flow.** The consumer grants bytes; what it has not granted is not read. A consumer that stands still costs the node a
//!   few frames, and log up to its hold's limit.
//! * **Place.** The consumer says what it has: the last version, and the history that the server told it. Histories are
//!   compared as between nodes; where they part the consumer is told the common point, and decides.
//! * **Names.** A name reads a partition once: the newest connection wins, since the older one of the same process may
//!   seem to live for a while. Under the name a hold keeps the log behind what the consumer has confirmed. Both are of the
//!   certificate that came first ([`turnstone_engine::holds`]).

mod feed;

use crate::replica::Host;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use turnstone_engine::types::Version;

/// A consumer as `stat` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// Its name.
    pub name: String,
    /// Its address.
    pub peer: String,
    /// What was sent to it.
    pub sent: Version,
    /// What it does not need any more.
    pub confirmed: Version,
    /// Bytes that it has granted and that were not sent; less than nothing where the last frame was longer.
    pub credit: i64,
    stream: u64,
    /// The name in its certificate.
    certificate: String,
}

/// Who reads the partitions of a core.
#[derive(Default)]
pub struct Consumers {
    readers: RefCell<BTreeMap<(u8, String), Consumer>>,
    streams: Cell<u64>,
}

impl Consumers {
    /// Who reads a partition now.
    pub fn of(&self, partition: u8) -> Vec<Consumer> {
        let readers = self.readers.borrow();
        readers.iter().filter(|((of, _), _)| *of == partition).map(|(_, reader)| reader.clone()).collect()
    }

    /// A new stream; the one before it under this name ends, if it has a certificate of the same name, and is not touched otherwise.
    fn enter(&self, partition: u8, name: &str, peer: &str, certificate: &str) -> Result<u64, String> {
        let readers = self.readers.borrow();
        let before = readers.get(&(partition, name.to_string()));
        if let Some(other) = before.filter(|before| before.certificate != certificate) {
            return Err(format!("'{name}' is read by {} with another certificate: take another name", other.peer));
        }
        drop(readers);
        self.streams.set(self.streams.get() + 1);
        let stream = self.streams.get();
        let (peer, certificate) = (peer.to_string(), certificate.to_string());
        let reader = Consumer { name: name.to_string(), peer, sent: 0, confirmed: 0, credit: 0, stream, certificate };
        self.readers.borrow_mut().insert((partition, name.to_string()), reader);
        Ok(stream)
    }

    /// Notes how far a stream is; answers whether it still is its consumer's.
    fn note(&self, partition: u8, stream: u64, sent: Version, confirmed: Version, credit: i64) -> bool {
        let mut readers = self.readers.borrow_mut();
        let mut of = readers.iter_mut().filter(|((of, _), _)| *of == partition).map(|(_, reader)| reader);
        let Some(reader) = of.find(|reader| reader.stream == stream) else { return false };
        (reader.sent, reader.confirmed, reader.credit) = (sent, confirmed, credit);
        true
    }

    /// A stream ends; answers whether it still was its consumer's.
    fn leave(&self, stream: u64) -> bool {
        let mut readers = self.readers.borrow_mut();
        let before = readers.len();
        readers.retain(|_, reader| reader.stream != stream);
        readers.len() < before
    }
}

/// Change streams of a core's partitions.
pub struct Changes<H: Host> {
    host: H,
    /// Who reads.
    pub consumers: Rc<Consumers>,
}

impl<H: Host> Changes<H> {
    /// Streams of the partitions that this host has.
    pub fn new(host: H) -> Rc<Changes<H>> {
        Rc::new(Changes { host, consumers: Rc::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stream_of_a_name_is_the_consumers() {
        let consumers = Consumers::default();
        let enter = |partition, peer| consumers.enter(partition, "a", peer, "CN=a").expect("the same certificate");
        let first = enter(1, "x:1");
        assert!(consumers.enter(1, "a", "y:1", "CN=b").is_err_and(|why| why.contains("x:1")));
        assert!(consumers.note(1, first, 5, 3, 100));
        let (elsewhere, second) = (enter(2, "x:2"), enter(1, "x:3"));
        assert!(!consumers.note(1, first, 6, 3, 100), "it was replaced");
        assert!(consumers.note(1, second, 5, 5, -7) && consumers.note(2, elsewhere, 1, 0, 0));
        assert!(!consumers.leave(first));
        assert_eq!(consumers.of(1).iter().map(|c| (c.sent, c.credit)).collect::<Vec<_>>(), [(5, -7)]);
        assert!(consumers.leave(second));
        assert!(consumers.of(1).is_empty() && consumers.of(2).len() == 1);
    }
}
