//! Keeps a flood of errors from becoming a flood of log lines.
//!
//! Owns: how many lines of one kind may come within a while.
//! Never: hides that lines are missing: the next one says how many.

use std::sync::{Mutex, PoisonError};
use tokio::time::{Duration, Instant};

/// Lines of one kind that one second may have, where they come from many.
const LINES_PER_SECOND_MAX: u32 = 10;

/// The limit of one kind of line.
#[derive(Debug)]
pub struct LogLimit {
    lines_max: u32,
    period: Duration,
    passed: Mutex<Passed>,
}

/// What there was of the period that runs.
#[derive(Debug)]
struct Passed {
    began: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl Default for LogLimit {
    fn default() -> Self {
        Self::new()
    }
}

impl LogLimit {
    /// A limit of which nothing is used.
    pub const fn new() -> Self {
        Self::of(LINES_PER_SECOND_MAX, Duration::from_secs(1))
    }

    /// One line in each period: for what goes on for long and is tried again all the while.
    pub(crate) const fn one_in(period: Duration) -> Self {
        Self::of(1, period)
    }

    const fn of(lines_max: u32, period: Duration) -> Self {
        let passed = Mutex::new(Passed { began: None, lines: 0, suppressed: 0 });
        Self { lines_max, period, passed }
    }

    /// Whether a line may be written now, and how many were not before it.
    pub(crate) fn pass(&self, now: Instant) -> Option<u64> {
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        let over = |began: Instant| now.saturating_duration_since(began) >= self.period;
        if passed.began.is_none_or(over) {
            passed.began = Some(now);
            passed.lines = 0;
        }
        if passed.lines >= self.lines_max {
            passed.suppressed += 1;
            return None;
        }
        passed.lines += 1;
        Some(std::mem::take(&mut passed.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_its_lines_and_the_next_says_what_was_missing() {
        let limit = LogLimit::new();
        let now = Instant::now();
        let passed = (0..100).filter(|_| limit.pass(now).is_some()).count();
        assert_eq!(passed, LINES_PER_SECOND_MAX as usize);
        assert_eq!(limit.pass(now + Duration::from_secs(1)), Some(90));
    }

    #[test]
    fn what_is_tried_each_second_is_told_once_a_minute() {
        let limit = LogLimit::one_in(Duration::from_secs(60));
        let now = Instant::now();
        let told = (0..150).map(|second| limit.pass(now + Duration::from_secs(second)));
        let told: Vec<(usize, u64)> =
            told.enumerate().filter_map(|(at, passed)| Some((at, passed?))).collect();
        assert_eq!(told, [(0, 0), (60, 59), (120, 59)]);
    }
}
