//! Work on a core of a real node that serves nobody: its disk and its ring, without partitions or connections.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc;
use turnstone_engine::env::Level;
use turnstone_executor::log::Format;
use turnstone_executor::{Core, Ended, Handler, Log, Node, NodeOptions, SocketId};

struct Nobody;

impl Handler for Nobody {
    fn progressed(&self, _: SocketId) {}
    fn accepted(&self, _: OwnedFd) {}
    fn accept_failed(&self, _: i32) {}
    fn received(&self, _: SocketId, _: &[u8]) {}
    fn receive_ended(&self, _: SocketId, _: Ended) {}
    fn sent(&self, _: SocketId, _: Result<usize, i32>) {}
    fn turn(&self) -> bool {
        false
    }
}

/// Starts a node of one core with its files below `data`, waits for `work`, and ends it.
pub fn run<T, F, G>(data: &Path, work: F) -> io::Result<T>
where
    T: Send + 'static,
    F: Fn(Rc<Core<()>>) -> G + Clone + Send + 'static,
    G: Future<Output = T> + 'static,
{
    let (done, finished) = mpsc::channel();
    let options = NodeOptions {
        executors: 1,
        data: data.to_path_buf(),
        index_cache_bytes: 1 << 20,
        index_files: 64,
        shared_flush: true,
        sabotage: None,
    };
    let node = Node::start(options, Log::start(Format::Text, Level::Warn)?, move |core: Rc<Core<()>>| {
        let (done, work) = (done.clone(), work.clone());
        async move {
            let outcome = work(core.clone()).await;
            done.send(outcome).expect("who started the node waits for it");
            core.ring.stop();
            Rc::new(Nobody)
        }
    })?;
    let outcome = finished.recv().map_err(|_| io::Error::other("the core ended before its work"));
    node.join()?;
    outcome
}
