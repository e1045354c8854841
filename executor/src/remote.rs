//! Asking other threads from a core: a job goes out over a bounded channel, its answer comes back through the core's own
//! channel and bell, and is taken in the next turn of the ring. (Awaiting a foreign channel in glommio 0.9 can take
//! 95 ms.)

use crate::ring::sys::Bell;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// Work for another thread.
pub type Job = Box<dyn FnOnce() + Send>;
type Answer = (u64, Box<dyn Any + Send>);

/// Questions of one core that are out.
#[derive(Clone)]
pub struct Desk(Rc<State>);

struct State {
    answers: (flume::Sender<Answer>, flume::Receiver<Answer>),
    bell: Bell,
    next: Cell<u64>,
    waiting: RefCell<BTreeMap<u64, Waiting>>,
}

#[derive(Default)]
struct Waiting {
    answer: Option<Box<dyn Any + Send>>,
    waker: Option<Waker>,
}

/// How long a core waits before it tries a full channel again.
const FULL: Duration = Duration::from_micros(200);
/// Answers that may be on their way to a core; more questions than that wait before they are asked.
const OUT_MAX: usize = 4096;

impl Desk {
    /// The desk of a core.
    pub fn new(bell: Bell) -> Desk {
        Desk(Rc::new(State {
            // One answer per question, and questions are bounded.
            answers: flume::bounded(OUT_MAX),
            bell,
            next: Cell::new(0),
            waiting: RefCell::default(),
        }))
    }

    /// Has `work` done by whoever takes jobs from `lane`, and waits for its answer.
    pub async fn ask<T: Send + 'static>(
        &self,
        lane: &flume::Sender<Job>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        while self.0.waiting.borrow().len() >= OUT_MAX {
            glommio::timer::sleep(FULL).await;
        }
        let ticket = self.0.next.get();
        self.0.next.set(ticket + 1);
        self.0.waiting.borrow_mut().insert(ticket, Waiting::default());
        let (answers, bell) = (self.0.answers.0.clone(), self.0.bell.clone());
        let job: Job = Box::new(move || {
            let answer = work();
            // The core is gone only when the process ends.
            let _ = answers.send((ticket, Box::new(answer)));
            bell.ring();
        });
        send(lane, job).await;
        let answer = poll_fn(|cx| {
            let mut waiting = self.0.waiting.borrow_mut();
            let Some(entry) = waiting.get_mut(&ticket) else { unreachable!("only this future removes its question") };
            match entry.answer.take() {
                Some(answer) => {
                    waiting.remove(&ticket);
                    Poll::Ready(answer)
                }
                None => {
                    entry.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        });
        match answer.await.downcast::<T>() {
            Ok(answer) => *answer,
            Err(_) => unreachable!("a ticket names one question, whose answer has one type"),
        }
    }

    /// Takes the answers that have come.
    pub fn take_answers(&self) {
        while let Ok((ticket, answer)) = self.0.answers.1.try_recv() {
            if let Some(entry) = self.0.waiting.borrow_mut().get_mut(&ticket) {
                entry.answer = Some(answer);
                if let Some(waker) = entry.waker.take() {
                    waker.wake();
                }
            }
        }
    }
}

/// Sends to a bounded channel; waits, without blocking the core, while it is full.
pub async fn send<T>(channel: &flume::Sender<T>, mut message: T) {
    loop {
        match channel.try_send(message) {
            Ok(()) | Err(flume::TrySendError::Disconnected(_)) => return,
            Err(flume::TrySendError::Full(back)) => {
                message = back;
                glommio::timer::sleep(FULL).await;
            }
        }
    }
}
