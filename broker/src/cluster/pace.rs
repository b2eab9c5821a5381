//! How often leaderships change without need.
//!
//! Owns: when the last hand-overs were, of the metadata's leader (whom it prefers) and of each
//! broker (what it hands over to who is preferred).
//! Never: delays a hand-over that something waits for.
//! Invariant: within any [`TRANSFERS_APART`] no more than [`TRANSFERS_PERCENT`] of the groups, but
//! one at least.

use std::collections::VecDeque;
use tokio::time::{Duration, Instant};

/// Of all groups, how many may be handed over within [`TRANSFERS_APART`]; at least one.
pub const TRANSFERS_PERCENT: usize = 5;
/// After this a hand-over does not count any more.
pub const TRANSFERS_APART: Duration = Duration::from_secs(10);

/// Keeps hand-overs within their limit.
#[derive(Debug, Default)]
pub struct TransferPace {
    /// Those that count, the oldest first: never more than were allowed.
    taken: VecDeque<Instant>,
}

impl TransferPace {
    /// How many of `groups` may be handed over at `now`.
    pub fn allowed(&mut self, now: Instant, groups: usize) -> usize {
        while self.taken.front().is_some_and(|first| *first + TRANSFERS_APART <= now) {
            self.taken.pop_front();
        }
        (groups * TRANSFERS_PERCENT / 100).max(1).saturating_sub(self.taken.len())
    }

    /// Notes `count` hand-overs.
    pub fn take(&mut self, now: Instant, count: usize) {
        self.taken.extend(std::iter::repeat_n(now, count));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn hand_overs_keep_their_pace_in_any_ten_seconds() {
        let mut pace = TransferPace::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!((pace.allowed(at(0), 1_000), pace.allowed(at(0), 3)), (50, 1));
        pace.take(at(0), 2);
        pace.take(at(6), 3);
        assert_eq!((pace.allowed(at(9), 100), pace.allowed(at(9), 3)), (0, 0));
        assert_eq!(pace.allowed(at(10), 100), 2, "the first two are ten seconds ago");
        assert_eq!(pace.allowed(at(16), 100), 5);
    }
}
