//! How fast those who are far behind are sent what they lack.
//!
//! Owns: when what helps one broker catch up may go there, in the order in which it was asked, and
//! the count of it.
//! Never: holds anything up that is not catch-up; waits itself.
//! Invariants: over time no more goes than the rate, but for what a group cannot go on without and
//! what mends a log: that goes at once, and the rest waits the longer. Whoever gives up before its turn
//! gives its share back.
//!
//! This is the virtual scheduling of the generic cell rate algorithm (ITU-T I.371, annex A): instead
//! of tokens it keeps the time at which all that was asked for will have gone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::time::{Duration, Instant};

/// Whoever asked for nothing for so long is given that much at once.
const BURST: Duration = Duration::from_millis(250);

/// What others were sent since the start to catch up, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CatchUpBytes {
    /// All of it.
    pub sent: u64,
    /// What of it had to wait for its turn.
    pub delayed: u64,
}

/// How those are helped who are behind.
#[derive(Debug, Default)]
pub(super) struct CatchUp {
    /// For each broker; 0 = as fast as it goes.
    pub(super) bytes_per_s: u64,
    /// What all of them were sent.
    pub(super) tally: Arc<Tally>,
}

/// What went to all brokers as catch-up since the start, in cost.
#[derive(Debug, Default)]
pub(super) struct Tally {
    sent: AtomicU64,
    delayed: AtomicU64,
}

/// What one broker may be sent as catch-up.
#[derive(Debug)]
pub(super) struct Throttle {
    /// 0 = as fast as it goes.
    bytes_per_s: u64,
    /// When all that was asked for will have gone.
    free_at: Mutex<Option<Instant>>,
    tally: Arc<Tally>,
}

/// A place in the order; dropped before it was used, it is given back.
#[derive(Debug)]
pub(super) struct Turn {
    throttle: Arc<Throttle>,
    cost: u64,
    /// When it has come.
    pub(super) at: Instant,
    is_delayed: bool,
    is_used: bool,
}

impl Tally {
    pub(super) fn read(&self) -> CatchUpBytes {
        let (sent, delayed) = (&self.sent, &self.delayed);
        let read = |of: &AtomicU64| of.load(Ordering::Relaxed);
        CatchUpBytes { sent: read(sent), delayed: read(delayed) }
    }
}

impl Throttle {
    pub(super) fn new(bytes_per_s: u64, tally: Arc<Tally>) -> Arc<Self> {
        Arc::new(Self { bytes_per_s, free_at: Mutex::default(), tally })
    }

    /// A place for so much; at once where it `presses`.
    pub(super) fn turn(self: &Arc<Self>, cost: u64, presses: bool, now: Instant) -> Turn {
        let begins = self.book(cost, now);
        let at = if presses { now } else { begins.max(now) };
        let throttle = self.clone();
        Turn { throttle, cost, at, is_delayed: at > now, is_used: false }
    }

    /// Books so much behind all that was booked before, and says when it begins.
    fn book(&self, cost: u64, now: Instant) -> Instant {
        if self.bytes_per_s == 0 {
            return now;
        }
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let begins = free_at.unwrap_or(earliest).max(earliest);
        *free_at = Some(begins + self.time_of(cost));
        begins
    }

    fn give_back(&self, cost: u64) {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        *free_at = free_at.and_then(|at| at.checked_sub(self.time_of(cost)));
    }

    fn time_of(&self, cost: u64) -> Duration {
        Duration::from_nanos(cost.saturating_mul(1_000_000_000) / self.bytes_per_s.max(1))
    }
}

impl Turn {
    /// What it stands for goes now.
    pub(super) fn take(mut self) {
        self.is_used = true;
        let tally = &self.throttle.tally;
        tally.sent.fetch_add(self.cost, Ordering::Relaxed);
        if self.is_delayed {
            tally.delayed.fetch_add(self.cost, Ordering::Relaxed);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.is_used {
            self.throttle.give_back(self.cost);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Seconds after `start` at which each of `costs` may go.
    fn turns(throttle: &Arc<Throttle>, start: Instant, costs: &[u64]) -> Vec<f64> {
        let turn = |cost: &u64| {
            let turn = throttle.turn(*cost, false, start);
            let at = turn.at;
            turn.take();
            (at - start).as_secs_f64()
        };
        costs.iter().map(turn).collect()
    }

    fn now() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn what_was_asked_for_goes_in_order_and_at_the_rate() {
        let throttle = Throttle::new(4 * MIB, Arc::default());
        let start = now();
        let at = turns(&throttle, start, &[MIB; 6]);
        assert_eq!(at, [0.0, 0.0, 0.25, 0.5, 0.75, 1.0], "a quarter of a second goes at once");
        let later = start + Duration::from_secs(100);
        assert_eq!(
            turns(&throttle, later, &[MIB; 3]),
            [0.0, 0.0, 0.25],
            "idle time is not saved up"
        );
        let expected = CatchUpBytes { sent: 9 * MIB, delayed: 5 * MIB };
        assert_eq!(throttle.tally.read(), expected);
    }

    #[test]
    fn what_presses_goes_at_once_and_the_rest_pays_for_it() {
        let throttle = Throttle::new(4 * MIB, Arc::default());
        let start = now();
        turns(&throttle, start, &[MIB]);
        for _ in 0..4 {
            let turn = throttle.turn(MIB, true, start);
            assert_eq!(turn.at, start);
            turn.take();
        }
        assert_eq!(turns(&throttle, start, &[MIB]), [1.0]);
    }

    #[test]
    fn a_place_that_was_not_used_is_given_back() {
        let throttle = Throttle::new(4 * MIB, Arc::default());
        let start = now();
        turns(&throttle, start, &[MIB]);
        drop(throttle.turn(400 * MIB, false, start));
        assert_eq!(turns(&throttle, start, &[MIB, MIB]), [0.0, 0.25]);
        let expected = CatchUpBytes { sent: 3 * MIB, delayed: MIB };
        assert_eq!(throttle.tally.read(), expected, "what did not go is not counted");
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let throttle = Throttle::new(0, Arc::default());
        assert_eq!(turns(&throttle, now(), &[u64::MAX, MIB]), [0.0, 0.0]);
    }
}
