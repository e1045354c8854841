//! How the tasks of a core take turns, and when glommio looks at its own rings.
//!
//! glommio 0.9.0 parks an executor for good if its preempt timer fires between the moment it is armed and the first task
//! of that round: "preempted before anything ran" is taken for "nothing to run", and the executor goes to sleep in the
//! kernel with runnable tasks (glommio/glommio#53, fixed in no released version). On a busy machine that window is hit
//! once in a few hundred starts. So the timer is set so far off that it never fires ([`PREEMPT`]), and preemption is
//! ours: every task that goes on for long calls [`give_way`] between its pieces. Mostly that is a plain yield; once a
//! millisecond it waits on a timer that is due at once, which only glommio's reactor can fire. When all busy tasks do
//! that, the run queue drains, the reactor looks at files, timers and blocking threads, and everybody goes on.
//!
//! While a core waits in its own ring, glommio's reactor waits with it; [`crate::ring`] bounds that to a millisecond and
//! does it only when no task is in [`give_way`].
//!
//! A timer of the application's own that fires in that same window has the same effect, though the window is then a few
//! instructions wide. [`heartbeat`] bounds what is left: parking arms the next application timer, so a core that was put
//! to sleep wrongly wakes at the next beat.

use crate::ring::sys::thread_time;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// glommio's preempt timer: never.
pub const PREEMPT: Duration = Duration::from_secs(365 * 86_400);
/// The reactor is passed at least this often while a core is busy.
const PASS: Duration = Duration::from_millis(1);
/// Due by the time the run queue is empty, but not yet when the timer is first asked.
const AT_ONCE: Duration = Duration::from_micros(2);
/// The longest that a core may sleep with something to do.
const BEAT: Duration = Duration::from_millis(50);

/// A stretch longer than this keeps others waiting.
const LONG: Duration = Duration::from_millis(5);
/// The thread's processor time is asked for at most this often: it is a system call, the time of day is none.
const SAMPLE: Duration = Duration::from_micros(500);

thread_local! {
    /// When this core's reactor was passed last.
    static PASSED: Cell<Instant> = Cell::new(Instant::now());
    /// When a task of this core gave way last.
    static GAVE_WAY: Cell<Instant> = Cell::new(Instant::now());
    /// The thread's processor time, and when it was asked for.
    static SAMPLED: Cell<(Instant, Duration)> = Cell::new((Instant::now(), thread_time()));
    /// The ring's driver sleeps in glommio: tasks run when their timers are due, and nobody but [`heartbeat`] says so.
    static ASLEEP: Cell<bool> = const { Cell::new(false) };
    /// Tasks within [`give_way`].
    static WAITING: Cell<u32> = const { Cell::new(0) };
    static STRETCHES: Cell<Stretches> = Cell::default();
}

/// How long tasks of this core went on without giving way: their own processor time, not that of other threads; at most
/// half a millisecond too much, on an idle core what timers wake within a beat, and what a host takes from a virtual machine
/// without telling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stretches {
    /// The longest.
    pub longest: Duration,
    /// How many took longer than 5 ms.
    pub long: u64,
}

/// The stretches of this core since its start.
pub fn stretches() -> Stretches {
    STRETCHES.get()
}

/// A stretch ends here.
pub(crate) fn end_stretch() {
    let now = Instant::now();
    let passed = now - GAVE_WAY.replace(now);
    let (sampled, before) = SAMPLED.get();
    if now - sampled < SAMPLE {
        return;
    }
    let own = thread_time();
    SAMPLED.set((now, own));
    let length = passed.min(own.saturating_sub(before));
    let seen = STRETCHES.get();
    if length > seen.longest || length > LONG {
        let long = seen.long + u64::from(length > LONG);
        STRETCHES.set(Stretches { longest: seen.longest.max(length), long });
    }
}

/// Tasks of this core that gave way and want to go on.
pub(crate) fn waiting() -> u32 {
    WAITING.get()
}

/// Lets the other tasks of this core run, and the reactor if it has waited long enough.
pub async fn give_way() {
    end_stretch();
    let _counted = Counted::new();
    if PASSED.get().elapsed() < PASS {
        return futures_lite::future::yield_now().await;
    }
    glommio::timer::sleep(AT_ONCE).await;
    passed();
}

/// Counts a task that waits, also when it is given up in between.
struct Counted;

impl Counted {
    fn new() -> Counted {
        WAITING.set(WAITING.get() + 1);
        Counted
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        WAITING.set(WAITING.get() - 1);
    }
}

/// The caller was just woken by the reactor.
pub fn passed() {
    PASSED.set(Instant::now());
}

/// The driver of the core's ring is about to sleep in glommio, or was woken.
pub(crate) fn set_asleep(asleep: bool) {
    end_stretch();
    ASLEEP.set(asleep);
}

/// Beats as long as the core lives. While the driver sleeps, tasks that timers wake do not pass it: what they take in a beat
/// counts together, and no more than that; a second of it, some milliseconds on an idle node, was once taken for a stretch.
pub async fn heartbeat() {
    loop {
        glommio::timer::sleep(BEAT).await;
        if ASLEEP.get() {
            end_stretch();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    #[test]
    fn a_stretch_is_measured_in_the_threads_own_time() {
        end_stretch();
        let before = stretches();
        std::thread::sleep(Duration::from_millis(30));
        end_stretch();
        assert_eq!(stretches().long, before.long, "sleep is no stretch");
        let started = thread_time();
        while thread_time() - started < Duration::from_millis(6) {}
        end_stretch();
        assert_eq!(stretches().long, before.long + 1);
        assert!(stretches().longest >= Duration::from_millis(6));
    }

    #[test]
    fn what_timers_wake_on_an_idle_core_is_no_stretch_together() {
        const TURNS: u32 = 8;
        let executor = glommio::LocalExecutorBuilder::default().preempt_timer(PREEMPT).io_memory(1 << 20).make();
        executor.expect("an executor can be made").run(async {
            let beat = glommio::spawn_local(heartbeat());
            set_asleep(true);
            let before = stretches();
            for _ in 0..TURNS {
                glommio::timer::sleep(BEAT + Duration::from_millis(10)).await;
                let started = thread_time();
                while thread_time() - started < Duration::from_millis(1) {}
            }
            set_asleep(false);
            assert_eq!(stretches().long, before.long, "{TURNS} ms in all, a millisecond at a time");
            beat.cancel().await;
        });
    }

    #[test]
    fn a_busy_task_that_gives_way_does_not_keep_the_reactor_from_timers() {
        let executor = glommio::LocalExecutorBuilder::default().preempt_timer(PREEMPT).io_memory(1 << 20).make();
        let rounds = executor.expect("an executor can be made").run(async {
            let fired = Rc::new(Cell::new(false));
            let timer = glommio::spawn_local({
                let fired = fired.clone();
                async move {
                    glommio::timer::sleep(Duration::from_millis(5)).await;
                    fired.set(true);
                }
            });
            let (started, mut rounds) = (Instant::now(), 0u64);
            while !fired.get() && started.elapsed() < Duration::from_secs(30) {
                give_way().await;
                rounds += 1;
            }
            timer.await;
            assert!(started.elapsed() < Duration::from_secs(30), "the timer fired only when the task had ended");
            rounds
        });
        assert!(rounds > 10, "the task ran on in between");
    }
}
