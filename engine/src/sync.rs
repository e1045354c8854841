//! Waiting on one core, without a runtime's own primitives: neither glommio nor the simulator leaks in here.
//!
//! Nothing below is `Send`; a waker is woken by a task of the same core.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// A number that only grows, and those who wait for it.
#[derive(Default)]
pub struct Watch {
    value: Cell<u64>,
    waiting: RefCell<Vec<Waiter>>,
    next: Cell<u64>,
}

struct Waiter {
    id: u64,
    wanted: u64,
    waker: Waker,
}

impl Watch {
    /// Starts at `value`.
    pub fn new(value: u64) -> Watch {
        Watch { value: Cell::new(value), ..Watch::default() }
    }
    /// The number now.
    pub fn get(&self) -> u64 {
        self.value.get()
    }
    /// Raises the number and wakes whom it satisfies.
    pub fn raise(&self, value: u64) {
        assert!(value >= self.value.get(), "a watched number never falls");
        self.value.set(value);
        let mut ready = Vec::new();
        self.waiting.borrow_mut().retain(|waiter| {
            let wait = waiter.wanted > value;
            if !wait {
                ready.push(waiter.waker.clone());
            }
            wait
        });
        ready.into_iter().for_each(Waker::wake);
    }
    /// Ends when the number is at least `wanted`. Who gives up waiting leaves nothing behind.
    pub async fn reached(&self, wanted: u64) {
        if self.value.get() < wanted {
            let id = self.next.get();
            self.next.set(id + 1);
            Reached { watch: self, id, wanted }.await;
        }
    }
}

struct Reached<'a> {
    watch: &'a Watch,
    id: u64,
    wanted: u64,
}

impl Future for Reached<'_> {
    type Output = ();
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.watch.value.get() >= self.wanted {
            return Poll::Ready(());
        }
        let mut waiting = self.watch.waiting.borrow_mut();
        let waker = cx.waker().clone();
        match waiting.iter_mut().find(|waiter| waiter.id == self.id) {
            Some(waiter) => waiter.waker = waker,
            None => waiting.push(Waiter { id: self.id, wanted: self.wanted, waker }),
        }
        Poll::Pending
    }
}

impl Drop for Reached<'_> {
    fn drop(&mut self) {
        if self.watch.value.get() < self.wanted {
            self.watch.waiting.borrow_mut().retain(|waiter| waiter.id != self.id);
        }
    }
}

/// Something happened: for one task that waits for it, remembered if it does not wait yet.
#[derive(Default)]
pub struct Notify {
    permit: Cell<bool>,
    waiting: RefCell<Vec<(u64, Waker)>>,
    next: Cell<u64>,
}

impl Notify {
    /// Wakes the task that waits, or the next that will.
    pub fn notify(&self) {
        self.permit.set(true);
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        waiting.into_iter().for_each(|(_, waker)| waker.wake());
    }
    /// Ends at the next `notify`, or at once if there was one since the last time. Who gives up waiting leaves nothing behind.
    pub async fn notified(&self) {
        let id = self.next.get();
        self.next.set(id + 1);
        Notified { notify: self, id }.await;
    }
}

struct Notified<'a> {
    notify: &'a Notify,
    id: u64,
}

impl Future for Notified<'_> {
    type Output = ();
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.notify.permit.replace(false) {
            return Poll::Ready(());
        }
        let mut waiting = self.notify.waiting.borrow_mut();
        let waker = cx.waker().clone();
        match waiting.iter_mut().find(|(id, _)| *id == self.id) {
            Some((_, known)) => *known = waker,
            None => waiting.push((self.id, waker)),
        }
        Poll::Pending
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        self.notify.waiting.borrow_mut().retain(|(id, _)| *id != self.id);
    }
}

/// One at a time, in the order of asking.
#[derive(Clone, Default)]
pub struct Gate(Rc<GateState>);

#[derive(Default)]
struct GateState {
    taken: Cell<bool>,
    waiting: RefCell<VecDeque<Rc<Turn>>>,
}

#[derive(Default)]
struct Turn {
    granted: Cell<bool>,
    gone: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// Holds a [`Gate`] until dropped.
pub struct Pass(Rc<GateState>);

impl Gate {
    /// Waits for its turn.
    pub async fn enter(&self) -> Pass {
        if !self.0.taken.replace(true) {
            return Pass(self.0.clone());
        }
        let turn = Rc::new(Turn::default());
        self.0.waiting.borrow_mut().push_back(turn.clone());
        Entering { gate: self.0.clone(), turn }.await
    }
}

struct Entering {
    gate: Rc<GateState>,
    turn: Rc<Turn>,
}

impl Future for Entering {
    type Output = Pass;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Pass> {
        if self.turn.granted.get() {
            self.turn.gone.set(true);
            return Poll::Ready(Pass(self.gate.clone()));
        }
        *self.turn.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Entering {
    fn drop(&mut self) {
        // Granted but never told: pass the turn on.
        if self.turn.granted.get() && !self.turn.gone.replace(true) {
            drop(Pass(self.gate.clone()));
        }
        self.turn.gone.set(true);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        loop {
            let Some(next) = self.0.waiting.borrow_mut().pop_front() else {
                self.0.taken.set(false);
                return;
            };
            if next.gone.get() {
                continue;
            }
            next.granted.set(true);
            if let Some(waker) = next.waker.borrow_mut().take() {
                waker.wake();
            }
            return;
        }
    }
}

/// Ends when all of them have, with their answers in order.
pub async fn all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    poll_fn(|cx| {
        let mut pending = false;
        for (future, answer) in running.iter_mut().filter(|(_, answer)| answer.is_none()) {
            match future.as_mut().poll(cx) {
                Poll::Ready(output) => *answer = Some(output),
                Poll::Pending => pending = true,
            }
        }
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    running.into_iter().filter_map(|(_, answer)| answer).collect()
}

/// Ends when both have.
pub async fn both<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut first, mut second) = (None, None);
    poll_fn(|cx| {
        if first.is_none()
            && let Poll::Ready(output) = a.as_mut().poll(cx)
        {
            first = Some(output);
        }
        if second.is_none()
            && let Poll::Ready(output) = b.as_mut().poll(cx)
        {
            second = Some(output);
        }
        match (first.take(), second.take()) {
            (Some(first), Some(second)) => Poll::Ready((first, second)),
            (one, other) => {
                (first, second) = (one, other);
                Poll::Pending
            }
        }
    })
    .await
}

/// Ends when the first of the two does; the other is dropped. Not for disk futures, which must not be dropped.
pub async fn first_of(a: impl Future<Output = ()>, b: impl Future<Output = ()>) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    poll_fn(|cx| {
        if a.as_mut().poll(cx).is_ready() || b.as_mut().poll(cx).is_ready() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_watch_lets_through_who_waited_for_less() {
        let watch = Watch::new(3);
        let mut low = pin!(watch.reached(4));
        let mut high = pin!(watch.reached(6));
        assert!(poll_once(low.as_mut()).is_pending() && poll_once(high.as_mut()).is_pending());
        watch.raise(5);
        assert!(poll_once(low).is_ready());
        assert!(poll_once(high).is_pending());
    }

    #[test]
    fn who_gives_up_waiting_leaves_nothing_behind() {
        let watch = Watch::new(0);
        for _ in 0..3 {
            let mut never = Box::pin(watch.reached(u64::MAX));
            assert!(poll_once(never.as_mut()).is_pending() && poll_once(never.as_mut()).is_pending());
            assert_eq!(watch.waiting.borrow().len(), 1);
        }
        assert!(watch.waiting.borrow().is_empty());
    }

    #[test]
    fn who_gives_up_a_notification_leaves_nothing_behind_and_takes_nothing() {
        let notify = Notify::default();
        for _ in 0..3 {
            let mut given_up = Box::pin(notify.notified());
            assert!(poll_once(given_up.as_mut()).is_pending() && poll_once(given_up.as_mut()).is_pending());
            assert_eq!(notify.waiting.borrow().len(), 1);
        }
        assert!(notify.waiting.borrow().is_empty());
        notify.notify();
        assert!(poll_once(pin!(notify.notified())).is_ready());
    }

    #[test]
    fn a_gate_is_passed_in_order_and_survives_a_dropped_waiter() {
        let gate = Gate::default();
        let Poll::Ready(first) = poll_once(pin!(gate.enter())) else { panic!("an open gate lets in") };
        let mut second = Box::pin(gate.enter());
        let mut third = Box::pin(gate.enter());
        assert!(poll_once(second.as_mut()).is_pending() && poll_once(third.as_mut()).is_pending());
        drop(first);
        drop(second);
        let Poll::Ready(pass) = poll_once(third.as_mut()) else { panic!("the turn was lost with its waiter") };
        drop(pass);
        assert!(poll_once(pin!(gate.enter())).is_ready());
    }

    #[test]
    fn a_notification_before_the_wait_counts_once() {
        let notify = Notify::default();
        notify.notify();
        assert!(poll_once(pin!(notify.notified())).is_ready());
        assert!(poll_once(pin!(notify.notified())).is_pending());
    }
}
