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
//!   seem to live for a while. Under the name a hold keeps the log behind what the consumer has confirmed.

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

    /// A new stream; the one before it under this name ends.
    fn enter(&self, partition: u8, name: &str, peer: &str) -> u64 {
        self.streams.set(self.streams.get() + 1);
        let stream = self.streams.get();
        let reader =
            Consumer { name: name.to_string(), peer: peer.to_string(), sent: 0, confirmed: 0, credit: 0, stream };
        self.readers.borrow_mut().insert((partition, name.to_string()), reader);
        stream
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
        let first = consumers.enter(1, "a", "x:1");
        assert!(consumers.note(1, first, 5, 3, 100));
        let (elsewhere, second) = (consumers.enter(2, "a", "x:2"), consumers.enter(1, "a", "x:3"));
        assert!(!consumers.note(1, first, 6, 3, 100), "it was replaced");
        assert!(consumers.note(1, second, 5, 5, -7) && consumers.note(2, elsewhere, 1, 0, 0));
        assert!(!consumers.leave(first));
        assert_eq!(consumers.of(1).iter().map(|c| (c.sent, c.credit)).collect::<Vec<_>>(), [(5, -7)]);
        assert!(consumers.leave(second));
        assert!(consumers.of(1).is_empty() && consumers.of(2).len() == 1);
    }
}
