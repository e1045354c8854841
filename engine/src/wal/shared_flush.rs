//! One flush for the logs of several partitions (D4).
//!
//! The partitions of a core commit at the same time, each into a log of its own, on the same device: a flush of the
//! device makes all of their completed writes durable, so one is enough. Writes that wait are taken together as a
//! *round*: all are written, and when the last is complete one flush covers them. What comes meanwhile is the next round;
//! there is no timer. A round of one write is one request that writes and flushes.
//!
//! Each log that takes part costs a write, so a log should bring much at a time. While rounds of several follow each other a log
//! closes no batch that fits a block ([`SharedFlush::turn`]): what its clients send meanwhile joins it. Under load the logs
//! part into two halves that take turns, each with twice the commits, and a round has half the writes. Which logs wait
//! together stays as it once fell out, so a round that would be much larger than the one before leaves some to its successor:
//! a core with a large round and a small one in turn has nothing to do while the large one is written.
//!
//! Only files whose blocks are written already may take part ([`File::shared_flush_device`]): then a write changes
//! nothing but the blocks, and the flush need not be the file's own.

use crate::buffer::AlignedBuf;
use crate::disk::{Disk, DiskError, File};
use crate::env::{Env, Sabotage};
use crate::sync::{Watch, all};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// The logs of a core's partitions on one device.
pub struct SharedFlush<F> {
    waiting: RefCell<Vec<Write<F>>>,
    running: Cell<bool>,
    /// The round that is under way, or was and has no successor yet, or the one before it, is of several writes.
    several: Cell<bool>,
    /// Logs that asked for their turn so far, and how many of them, in the order of asking, have had it.
    asked: Cell<u64>,
    called: Watch,
    flushes: Cell<u64>,
    writes: Cell<u64>,
}

struct Write<F> {
    file: F,
    buffer: AlignedBuf,
    offset: u64,
    answer: Rc<Answer>,
}

#[derive(Default)]
struct Answer {
    result: RefCell<Option<Result<(), DiskError>>>,
    waker: RefCell<Option<Waker>>,
}

impl Answer {
    fn give(&self, result: Result<(), DiskError>) {
        *self.result.borrow_mut() = Some(result);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    async fn taken(&self) -> Result<(), DiskError> {
        poll_fn(|cx| match self.result.borrow_mut().take() {
            Some(result) => Poll::Ready(result),
            None => {
                *self.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
        })
        .await
    }
}

impl<F> Default for SharedFlush<F> {
    fn default() -> SharedFlush<F> {
        SharedFlush {
            waiting: RefCell::default(),
            running: Cell::new(false),
            several: Cell::new(false),
            asked: Cell::new(0),
            called: Watch::default(),
            flushes: Cell::new(0),
            writes: Cell::new(0),
        }
    }
}

impl<F: File> SharedFlush<F> {
    /// Flushes so far, and the writes that they covered.
    pub fn counts(&self) -> (u64, u64) {
        (self.flushes.get(), self.writes.get())
    }

    /// Ends when it is worth while to close a batch: at once, but while rounds of several writes follow each other, at the end
    /// of one. So those that were in it let those go first that waited for its end.
    pub async fn turn(&self) {
        if self.several.get() {
            self.asked.set(self.asked.get() + 1);
            self.called.reached(self.asked.get()).await;
        }
    }

    /// Lets those close their batches that waited for the end of a round of `writes`: all, or where they are more than half as
    /// many again, so many of them that the next round and the one behind it are equal if everybody comes back and waits.
    fn call(&self, writes: u64) {
        /// So many are written together in any case.
        const FEW: u64 = 4;
        let waiting = self.asked.get() - self.called.get();
        let next = if waiting > FEW && 2 * waiting > 3 * writes { (waiting + writes).div_ceil(2) } else { waiting };
        self.called.raise(self.called.get() + next);
    }

    /// Writes; durable when it returns.
    pub async fn write_durable<E>(
        self: &Rc<Self>,
        env: &E,
        file: F,
        buffer: AlignedBuf,
        offset: u64,
    ) -> Result<(), DiskError>
    where
        E: Env,
        E::Disk: Disk<File = F>,
    {
        let answer: Rc<Answer> = Rc::default();
        self.waiting.borrow_mut().push(Write { file, buffer, offset, answer: answer.clone() });
        if !self.running.replace(true) {
            let (shared, env) = (self.clone(), env.clone());
            // Not before the caller has yielded: logs that are written in the same turn are in the same round.
            drive(shared, env);
        }
        answer.taken().await
    }
}

/// Runs rounds until nothing waits.
fn drive<E: Env>(shared: Rc<SharedFlush<<E::Disk as Disk>::File>>, env: E) {
    env.clone().spawn(async move {
        let mut before = 0;
        loop {
            let round = std::mem::take(&mut *shared.waiting.borrow_mut());
            let writes = round.len() as u64;
            shared.several.set(writes.max(before) > 1 && writes > 0);
            before = writes;
            if round.is_empty() {
                shared.running.set(false);
                // Those that are left wait for the end of a round that does not come.
                shared.called.raise(shared.asked.get());
                return;
            }
            shared.writes.set(shared.writes.get() + writes);
            shared.flushes.set(shared.flushes.get() + 1);
            run_round(&shared, &env, round).await;
            // They close their batches now, for the next round.
            shared.call(writes);
            env.give_way().await;
        }
    });
}

async fn run_round<E: Env>(
    shared: &SharedFlush<<E::Disk as Disk>::File>,
    env: &E,
    mut round: Vec<Write<<E::Disk as Disk>::File>>,
) {
    if round.len() == 1 {
        let Some(Write { file, buffer, offset, answer }) = round.pop() else { return };
        return answer.give(file.write_durable(buffer, offset).await);
    }
    let write = |write: Write<<E::Disk as Disk>::File>| async move {
        let result = write.file.write_at(write.buffer, write.offset).await;
        (write.file, write.answer, result)
    };
    let mut written = all(round.into_iter().map(write)).await;
    let files: Vec<_> = written.iter().map(|(file, ..)| file).collect();
    let flushed = env.disk().flush(&files).await;
    if env.sabotage() == Some(Sabotage::FlushJoinedLate) {
        // What is written behind the beginning of a flush is not covered by it.
        let late = std::mem::take(&mut *shared.waiting.borrow_mut());
        written.extend(all(late.into_iter().map(write)).await);
    }
    written.into_iter().for_each(|(_, answer, result)| answer.give(result.and(flushed.clone())));
}
