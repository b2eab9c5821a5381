//! Log time: what a leader stamps on batches, and what decides everything durable about time.
//!
//! Owns: the newest log time, and how far the wall clock is believed.
//! Never: reads a clock.
//! Invariants: log time never falls; it runs ahead of the monotonic clock by at most
//! [`LOG_TIME_STEP_MS`] per call, however far the wall clock jumps.

use super::limits::LOG_TIME_STEP_MS;
use tokio::time::Instant;

/// The clock of one log.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogClock {
    newest_ms: u64,
    /// A wall time that was believed, and when.
    anchor: Option<(u64, Instant)>,
}

impl LogClock {
    /// The clock of a log whose newest batch has `newest_ms`.
    pub(super) fn new(newest_ms: u64) -> Self {
        Self { newest_ms, anchor: None }
    }

    /// The newest log time.
    pub(super) fn newest_ms(&self) -> u64 {
        self.newest_ms
    }

    /// A batch with this log time is in the log.
    pub(super) fn seen(&mut self, log_time_ms: u64) {
        self.newest_ms = self.newest_ms.max(log_time_ms);
    }

    /// The log time of what is proposed now.
    pub(super) fn tell(&mut self, wall_ms: u64, now: Instant) -> u64 {
        let believed = match self.anchor {
            None => wall_ms,
            Some((anchor_ms, at)) => {
                let passed = u64::try_from(now.duration_since(at).as_millis()).unwrap_or(u64::MAX);
                let explained = anchor_ms.saturating_add(passed);
                wall_ms.min(explained.saturating_add(LOG_TIME_STEP_MS))
            }
        };
        self.anchor = Some((believed, now));
        self.newest_ms = self.newest_ms.max(believed);
        self.newest_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Duration;

    #[test]
    fn a_clock_set_back_holds_log_time_still() {
        let start = Instant::now();
        let mut clock = LogClock::new(500);
        assert_eq!(clock.tell(1_000, start), 1_000);
        assert_eq!(clock.tell(200, start + Duration::from_secs(1)), 1_000);
        assert_eq!(clock.tell(1_201, start + Duration::from_secs(2)), 1_201);
    }

    #[test]
    fn a_clock_set_forward_is_believed_in_steps() {
        let start = Instant::now();
        let day = 86_400_000;
        let mut clock = LogClock::new(0);
        clock.tell(1_000, start);
        let later = start + Duration::from_secs(5);
        assert_eq!(clock.tell(1_000 + day, later), 6_000 + LOG_TIME_STEP_MS);
        assert_eq!(clock.tell(1_000 + day, later), 6_000 + 2 * LOG_TIME_STEP_MS);
    }

    #[test]
    fn a_quiet_hour_is_no_jump() {
        let start = Instant::now();
        let mut clock = LogClock::new(0);
        clock.tell(1_000, start);
        let later = start + Duration::from_secs(3_600);
        assert_eq!(clock.tell(3_601_000, later), 3_601_000);
    }
}
