//! A core's tasks, with a count of those that have something to do.
//!
//! glommio does not say whether its run queue is empty, and the core's ring must know before it waits in the kernel on its
//! own ([`crate::ring::Ring::drive`]): a task that was woken would wait with it. So tasks are started here, with a waker
//! that counts: a task is runnable from the first wake to the poll that follows.

use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};

const IDLE: u8 = 0;
const WOKEN: u8 = 1;
const ENDED: u8 = 2;

thread_local! {
    /// Wakers may be used from anywhere, hence the atomic.
    static RUNNABLE: Arc<AtomicUsize> = Arc::default();
}

/// Tasks of this core that were woken and not polled yet.
pub fn runnable() -> usize {
    RUNNABLE.with(|n| n.load(Ordering::Relaxed))
}

/// Starts a task; it runs for the first time within this call, as glommio has it.
pub fn spawn<T: 'static>(task: impl Future<Output = T> + 'static) -> glommio::Task<T> {
    glommio::spawn_local(Counted { task: Box::pin(task), wake: Arc::new(Counter::new()), waker: None })
}

/// Starts a task that first runs when the caller has yielded, since its caller's state may be half-way.
pub fn spawn_later(task: impl Future<Output = ()> + 'static) {
    let later = async move {
        futures_lite::future::yield_now().await;
        task.await;
    };
    spawn(later).detach();
}

struct Counter {
    state: AtomicU8,
    runnable: Arc<AtomicUsize>,
    /// glommio's waker of the task; it stays the same for as long as the task lives.
    inner: OnceLock<Waker>,
}

impl Counter {
    fn new() -> Counter {
        let runnable = RUNNABLE.with(Arc::clone);
        Counter { state: AtomicU8::new(IDLE), runnable, inner: OnceLock::new() }
    }

    fn turn_to(&self, state: u8) {
        if self.state.swap(state, Ordering::AcqRel) == WOKEN {
            self.runnable.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.compare_exchange(IDLE, WOKEN, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            self.runnable.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(inner) = self.inner.get() {
            inner.wake_by_ref();
        }
    }
}

struct Counted<F> {
    task: Pin<Box<F>>,
    wake: Arc<Counter>,
    waker: Option<Waker>,
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        this.wake.turn_to(IDLE);
        let waker = this.waker.get_or_insert_with(|| {
            let _ = this.wake.inner.set(cx.waker().clone());
            Waker::from(this.wake.clone())
        });
        this.task.as_mut().poll(&mut Context::from_waker(waker))
    }
}

impl<F> Drop for Counted<F> {
    fn drop(&mut self) {
        // A waker that outlives the task counts nothing.
        self.wake.turn_to(ENDED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pace;
    use std::cell::RefCell;
    use std::future::poll_fn;
    use std::rc::Rc;

    #[test]
    fn a_task_counts_from_its_wake_to_its_poll() {
        let executor = glommio::LocalExecutorBuilder::default().preempt_timer(pace::PREEMPT).io_memory(1 << 20).make();
        executor.expect("an executor can be made").run(async {
            let kept: Rc<RefCell<Option<Waker>>> = Rc::default();
            let task = spawn({
                let kept = kept.clone();
                let mut polls = 0;
                poll_fn(move |cx| {
                    *kept.borrow_mut() = Some(cx.waker().clone());
                    polls += 1;
                    if polls == 3 { Poll::Ready(()) } else { Poll::Pending }
                })
            });
            let wake = || kept.borrow().as_ref().expect("it was polled").wake_by_ref();
            assert!(runnable() == 0);
            wake();
            wake();
            assert!(runnable() == 1, "woken");
            futures_lite::future::yield_now().await;
            assert!(runnable() == 0, "polled");
            wake();
            task.await;
            assert!(runnable() == 0, "ended");
            wake();
            assert!(runnable() == 0, "a late wake of a task that is gone");
            let dropped = spawn(std::future::pending::<()>());
            drop(dropped.cancel());
            futures_lite::future::yield_now().await;
            assert!(runnable() == 0);
            let giving = spawn(async { pace::give_way().await });
            assert!(pace::waiting() == 1, "a task that gave way wants to go on");
            giving.await;
            assert!(pace::waiting() == 0 && runnable() == 0);
        });
    }
}
