//! Keeps a flood of errors from becoming a flood of log lines.
//!
//! Owns: how many lines of one kind a second may have.
//! Never: hides that lines are missing: the next one says how many.

use std::sync::{Mutex, PoisonError};
use tokio::time::{Duration, Instant};

/// Lines of one kind that one second may have.
const LINES_PER_SECOND_MAX: u32 = 10;

/// The limit of one kind of line.
#[derive(Debug)]
pub struct LogLimit(Mutex<Second>);

#[derive(Debug)]
struct Second {
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
        Self(Mutex::new(Second { began: None, lines: 0, suppressed: 0 }))
    }

    /// Whether a line may be written now, and how many were not before it.
    pub(crate) fn pass(&self, now: Instant) -> Option<u64> {
        let mut second = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let over = |began: Instant| now.saturating_duration_since(began) >= Duration::from_secs(1);
        if second.began.is_none_or(over) {
            second.began = Some(now);
            second.lines = 0;
        }
        if second.lines >= LINES_PER_SECOND_MAX {
            second.suppressed += 1;
            return None;
        }
        second.lines += 1;
        Some(std::mem::take(&mut second.suppressed))
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
}
