//! Counts how long the publishers of a partition wanted to send and could not, by reason.
//!
//! Owns: the clock of one partition.
//! Never: decides who waits.

use tokio::time::{Duration, Instant};
use weir_protocol::error_code::reason_bits;

/// Time during which at least one publisher was starved, by reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockedTimes([Duration; reason_bits::ALL.len()]);

impl BlockedTimes {
    /// The times with the metric label of each reason.
    pub fn by_reason(&self) -> impl Iterator<Item = (&'static str, Duration)> + '_ {
        reason_bits::ALL.iter().zip(self.0).map(|((_, label), time)| (*label, time))
    }

    /// Adds the times of another partition of the same topic.
    pub fn add(&mut self, other: &Self) {
        for (sum, time) in self.0.iter_mut().zip(other.0) {
            *sum += time;
        }
    }

    fn charge(&mut self, bits: u32, time: Duration) {
        for (sum, (bit, _)) in self.0.iter_mut().zip(reason_bits::ALL) {
            if bits & bit != 0 {
                *sum += time;
            }
        }
    }
}

/// The clock of one partition. It runs while at least one of its publishers is starved.
#[derive(Debug)]
pub(super) struct BlockedClock {
    starved: u32,
    reason_bits: u32,
    /// Since when the time is not charged yet.
    since: Option<Instant>,
    /// Since when the partition has had a starved publisher without a break.
    pub(super) began: Option<Instant>,
    times: BlockedTimes,
}

impl Default for BlockedClock {
    fn default() -> Self {
        let times = BlockedTimes::default();
        Self { starved: 0, reason_bits: reason_bits::POOL, since: None, began: None, times }
    }
}

impl BlockedClock {
    /// One more publisher wants to send and may not.
    pub(super) fn starve(&mut self, now: Instant) {
        self.starved += 1;
        if self.starved == 1 {
            self.since = Some(now);
            self.began = Some(now);
        }
    }

    /// One fewer.
    pub(super) fn feed(&mut self, now: Instant) {
        self.charge(now);
        self.starved -= 1;
        if self.starved == 0 {
            self.since = None;
            self.began = None;
        }
    }

    /// Publishers now wait for these reasons.
    pub(super) fn set_reason(&mut self, bits: u32, now: Instant) {
        self.charge(now);
        self.reason_bits = bits;
    }

    /// Publishers that wait now.
    pub(super) fn starved(&self) -> u32 {
        self.starved
    }

    /// All times up to `now`.
    pub(super) fn times(&self, now: Instant) -> BlockedTimes {
        let mut times = self.times;
        if let Some(since) = self.since {
            times.charge(self.reason_bits, now.duration_since(since));
        }
        times
    }

    fn charge(&mut self, now: Instant) {
        if let Some(since) = self.since.replace(now) {
            self.times.charge(self.reason_bits, now.duration_since(since));
        }
        if self.starved == 0 {
            self.since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(times: BlockedTimes, label: &str) -> u64 {
        times.by_reason().find(|(reason, _)| *reason == label).map_or(0, |(_, t)| t.as_secs())
    }

    #[test]
    fn time_is_charged_to_the_reason_that_held_while_somebody_waited() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let mut clock = BlockedClock::default();
        clock.set_reason(reason_bits::POOL, at(0));
        clock.starve(at(10));
        clock.starve(at(11));
        clock.set_reason(reason_bits::BACKLOG | reason_bits::DISK, at(13));
        clock.feed(at(14));
        clock.feed(at(20));
        clock.set_reason(reason_bits::POOL, at(30));
        let times = clock.times(at(99));
        assert_eq!(seconds(times, "memory"), 3);
        assert_eq!(seconds(times, "backlog"), 7);
        assert_eq!(seconds(times, "disk"), 7);
        assert_eq!(seconds(times, "draining"), 0);
    }
}
