//! Asking all cores about their partitions, for partition 0 and for `stat` on it.

use super::core::{ServerCore, Slot};
use super::handoff::Message;
use super::system::{NodeView, offline_json, partition_json};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Questions that are out.
#[derive(Default)]
pub struct NodeViews {
    next: Cell<u64>,
    open: RefCell<BTreeMap<u64, Gathering>>,
}

struct Gathering {
    missing: usize,
    partitions: Vec<(u8, String)>,
    waker: Option<Waker>,
}

impl NodeViews {
    /// A core has answered.
    pub fn told(&self, ticket: u64, partitions: Vec<(u8, String)>) {
        if let Some(gathering) = self.open.borrow_mut().get_mut(&ticket) {
            gathering.missing = gathering.missing.saturating_sub(1);
            gathering.partitions.extend(partitions);
            if let Some(waker) = gathering.waker.take() {
                waker.wake();
            }
        }
    }
}

impl ServerCore {
    /// This core's partitions, as JSON.
    pub fn own_partitions(&self) -> Vec<(u8, String)> {
        let partitions = self.partitions.borrow();
        let json = |(number, slot): (&u8, &Slot)| match slot {
            Slot::Open(partition) => {
                (*number, partition_json(&partition.status(), &self.replication.board, &self.changes.consumers))
            }
            Slot::Offline(why) => (*number, offline_json(*number, why)),
        };
        partitions.iter().map(json).collect()
    }

    /// What the node says of itself, from all cores.
    pub async fn node_view(&self) -> NodeView {
        let cores = self.core.mesh.cores();
        let ticket = self.views.next.get();
        self.views.next.set(ticket + 1);
        let mine = self.own_partitions();
        self.views.open.borrow_mut().insert(ticket, Gathering { missing: cores - 1, partitions: mine, waker: None });
        for core in (0..cores).filter(|c| *c != self.core.index) {
            self.post(core, Message::Ask { from: self.core.index, ticket });
        }
        let mut partitions = poll_fn(|cx| {
            let mut open = self.views.open.borrow_mut();
            match open.get_mut(&ticket) {
                Some(gathering) if gathering.missing > 0 => {
                    gathering.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
                _ => Poll::Ready(open.remove(&ticket).map(|g| g.partitions).unwrap_or_default()),
            }
        })
        .await;
        partitions.sort_by_key(|(number, _)| *number);
        let (connections, accepted) = self.shared.counts();
        let refused = self.shared.refusals.all();
        let uptime_ms = self.shared.uptime().as_millis();
        let certificate_expires_ms = self.shared.certificates().first_end_ms();
        let budget = &self.shared.memory;
        let memory = (budget.used(), budget.limit(), budget.refused());
        NodeView {
            uptime_ms,
            executors: cores,
            connections,
            accepted,
            certificate_expires_ms,
            memory,
            refused,
            partitions,
        }
    }
}
