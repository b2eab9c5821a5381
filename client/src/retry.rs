//! Owns: the only back-off and the only retry budget of the client.
//! Never: sleeps; it says how long and whether.

use crate::seams::Chance;
use std::time::Duration;
use tokio::time::Instant;

/// Upper end of the first delay.
const BACKOFF_BASE: Duration = Duration::from_millis(50);
/// Upper end of every later delay.
const BACKOFF_CAP: Duration = Duration::from_secs(3);

/// What one retry costs, in thousandths of a token.
const RETRY_COST: u64 = 1_000;
/// What one first attempt earns: retries may be a tenth of all attempts.
const ATTEMPT_EARNS: u64 = 100;
/// What a second earns, so that a quiet client may still retry now and then.
const SECOND_EARNS: u64 = 1_000;
/// Most that can be saved up.
const TOKENS_MAX: u64 = 100_000;

/// Exponential back-off with full jitter: a number between 0 and the doubled limit, so that
/// clients that failed together do not return together.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// Attempts since the last success.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The delay before the next attempt.
    pub(crate) fn next(&mut self, chance: &Chance) -> Duration {
        let doubled = BACKOFF_BASE.saturating_mul(1 << self.attempts.min(16));
        self.attempts = self.attempts.saturating_add(1);
        let limit = doubled.min(BACKOFF_CAP).as_micros() as u64;
        Duration::from_micros(chance.up_to(limit))
    }

    /// The attempt succeeded.
    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// A token bucket that keeps retries at a tenth of all attempts.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    tokens: u64,
    earned_at: Instant,
}

impl RetryBudget {
    pub(crate) fn new(now: Instant) -> Self {
        Self { tokens: TOKENS_MAX, earned_at: now }
    }

    /// Something was sent for the first time.
    pub(crate) fn attempted(&mut self) {
        self.tokens = (self.tokens + ATTEMPT_EARNS).min(TOKENS_MAX);
    }

    /// Whether one more retry is allowed; takes its token.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let seconds = now.saturating_duration_since(self.earned_at).as_secs();
        self.tokens = (self.tokens + seconds.saturating_mul(SECOND_EARNS)).min(TOKENS_MAX);
        self.earned_at += Duration::from_secs(seconds);
        match self.tokens.checked_sub(RETRY_COST) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_is_spread_over_the_whole_range_and_capped() {
        let chance = Chance::new(Some(7));
        let mut seen_low = false;
        for _ in 0..200 {
            let mut backoff = Backoff::default();
            for attempt in 0..20 {
                let limit = BACKOFF_BASE.saturating_mul(1 << attempt).min(BACKOFF_CAP);
                let delay = backoff.next(&chance);
                assert!(delay <= limit, "{delay:?} at attempt {attempt}");
                seen_low |= attempt == 19 && delay < BACKOFF_CAP / 4;
            }
        }
        assert!(seen_low, "full jitter reaches down to nothing");
    }

    #[test]
    fn retries_are_a_tenth_of_attempts_once_the_savings_are_spent() {
        let now = Instant::now();
        let mut budget = RetryBudget::new(now);
        let saved = (0..1_000).filter(|_| budget.take(now)).count();
        assert_eq!(saved as u64, TOKENS_MAX / RETRY_COST);
        for _ in 0..1_000 {
            budget.attempted();
        }
        assert_eq!((0..1_000).filter(|_| budget.take(now)).count(), 100);
        let later = now + Duration::from_secs(5);
        assert_eq!((0..1_000).filter(|_| budget.take(later)).count(), 5);
    }
}
