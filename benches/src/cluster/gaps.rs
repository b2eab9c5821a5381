//! For how long nobody was answered.
//!
//! Owns: by partition, the last acknowledgement and the longest time without one since an event.
//! Invariant: a gap that is still open counts as long as it is by now, so that nothing that hangs
//! looks quick.

use crate::clock::{self, Moment};
use crate::measure::{Latencies, Percentiles};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// By partition.
pub(super) struct Gaps(Vec<Mutex<Gap>>);

#[derive(Debug, Clone, Copy)]
struct Gap {
    /// When the last message was acknowledged.
    answered: Moment,
    /// When that message was sent.
    sent: Moment,
    longest: Duration,
}

impl Gaps {
    pub(super) fn new(partitions: u32) -> Self {
        let now = clock::now();
        let gap = Gap { answered: now, sent: now, longest: Duration::ZERO };
        Self((0..partitions).map(|_| Mutex::new(gap)).collect())
    }

    fn lock(&self, partition: usize) -> MutexGuard<'_, Gap> {
        self.0[partition].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A message that was sent then has been acknowledged now.
    pub(super) fn answered(&self, partition: u32, sent: Moment) {
        let mut gap = self.lock(partition as usize);
        let now = clock::now();
        gap.longest = gap.longest.max(now.since(gap.answered));
        (gap.answered, gap.sent) = (now, sent);
    }

    /// Something happens now: forgets the gaps that have ended before.
    pub(super) fn begin(&self) {
        for partition in 0..self.0.len() {
            self.lock(partition).longest = Duration::ZERO;
        }
    }

    /// By partition, the longest gap that ended since the last event, or the open one.
    pub(super) fn longest(&self) -> Vec<Duration> {
        let longest = |partition| {
            let gap = self.lock(partition);
            gap.longest.max(gap.answered.elapsed())
        };
        (0..self.0.len()).map(longest).collect()
    }

    /// The partitions of which nothing is acknowledged that was sent since then.
    pub(super) fn silent_since(&self, moment: Moment) -> Vec<usize> {
        (0..self.0.len()).filter(|partition| self.lock(*partition).sent < moment).collect()
    }
}

/// Percentiles of gaps.
pub(super) fn percentiles(gaps: impl IntoIterator<Item = Duration>) -> Percentiles {
    let mut all = Latencies::default();
    gaps.into_iter().for_each(|gap| all.record(gap));
    all.percentiles()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_since_an_event_is_told() {
        let gaps = Gaps::new(2);
        let sent = clock::now();
        std::thread::sleep(Duration::from_millis(30));
        gaps.answered(0, sent);
        assert!(gaps.longest().iter().all(|gap| *gap >= Duration::from_millis(30)));
        gaps.begin();
        let later = clock::now();
        gaps.answered(0, later);
        // The gap of 30 ms ended before the event; that of the other partition has not ended.
        let longest = gaps.longest();
        assert!(longest[0] < longest[1], "{longest:?}");
        assert!(longest[1] >= Duration::from_millis(30));
        assert_eq!(gaps.silent_since(later), [1]);
    }
}
