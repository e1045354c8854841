//! Ages of what is kept for a time, across restarts and a wall clock that people, NTP or a resumed machine set.
//!
//! Only the wall clock goes on while the process is not there, so stamps are its milliseconds. While the process runs, the
//! monotonic clock carries the time of its opening on, and how long something is kept does not depend on what the wall clock
//! shows. When that was set, stamps and the time here move with it ([`AgeClock::follow`]), so that the next opening finds them
//! as old as they are now.

use std::cell::Cell;
use std::time::Duration;

/// Less than this is drift, which ages do not notice. Milliseconds.
const STEP_MIN_MS: u64 = 60_000;

/// The wall clock as it was at the opening, or when it was last set, carried on by the monotonic one.
pub struct AgeClock {
    wall_ms: Cell<u64>,
    at: Cell<Duration>,
}

impl AgeClock {
    /// `now` is the monotonic clock's.
    pub fn new(now: Duration, wall_ms: u64) -> AgeClock {
        AgeClock { wall_ms: Cell::new(wall_ms), at: Cell::new(now) }
    }

    /// Milliseconds, to stamp and to compare with stamps.
    pub fn ms(&self, now: Duration) -> u64 {
        self.wall_ms.get() + now.saturating_sub(self.at.get()).as_millis() as u64
    }

    /// Looks at the wall clock. If it was set, answers by how many milliseconds: stamps are to be moved by as much.
    pub fn follow(&self, now: Duration, wall_ms: u64) -> Option<i64> {
        let expected = self.ms(now);
        if expected.abs_diff(wall_ms) < STEP_MIN_MS {
            return None;
        }
        self.wall_ms.set(wall_ms);
        self.at.set(now);
        Some(wall_ms as i64 - expected as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_do_not_change_when_the_wall_clock_is_set() {
        let seconds = Duration::from_secs;
        let clock = AgeClock::new(seconds(10), 1_000_000);
        let stamp = clock.ms(seconds(11));
        assert_eq!(stamp, 1_001_000);
        assert_eq!(clock.follow(seconds(20), 1_015_000), None, "drift");
        assert_eq!(clock.ms(seconds(20)) - stamp, 9_000);
        for step in [100_000_000i64, -900_000] {
            let before = clock.ms(seconds(30));
            assert_eq!(clock.follow(seconds(30), before.saturating_add_signed(step)), Some(step));
            assert_eq!(clock.ms(seconds(30)), before.saturating_add_signed(step));
            assert_eq!(clock.follow(seconds(31), clock.ms(seconds(31))), None);
        }
    }
}
