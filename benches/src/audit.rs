//! Which messages arrived, how often and in which order.
//!
//! Owns: the content of a message (publisher, sequence, filling) and the books over it.
//! Invariant: memory is a few bytes per publisher plus the gaps that are open.

use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of the stamp at the front of every message.
pub const STAMP_BYTES: usize = 24;

/// Fills `message` for `sequence` of `publisher`, due `due_us` after the start of the load: the
/// stamp, then bytes that follow from it.
pub fn stamp(message: &mut [u8], publisher: u64, sequence: u64, due_us: u64) {
    let (stamp, filling) = message.split_at_mut(STAMP_BYTES);
    stamp[..8].copy_from_slice(&publisher.to_le_bytes());
    stamp[8..16].copy_from_slice(&sequence.to_le_bytes());
    stamp[16..].copy_from_slice(&due_us.to_le_bytes());
    filling.fill((publisher.wrapping_mul(31).wrapping_add(sequence)) as u8);
}

fn read_stamp(message: &[u8]) -> Option<(u64, u64, u64)> {
    let (publisher, rest) = message.split_first_chunk::<8>()?;
    let (sequence, rest) = rest.split_first_chunk::<8>()?;
    let (due_us, filling) = rest.split_first_chunk::<8>()?;
    let (publisher, sequence) = (u64::from_le_bytes(*publisher), u64::from_le_bytes(*sequence));
    let expected = (publisher.wrapping_mul(31).wrapping_add(sequence)) as u8;
    // First and last byte: the checksums of the batch cover what lies between.
    let whole = filling.first().is_none_or(|byte| *byte == expected)
        && filling.last().is_none_or(|byte| *byte == expected);
    whole.then_some((publisher, sequence, u64::from_le_bytes(*due_us)))
}

/// What an audit found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Messages that arrived, repeated ones counted once.
    pub received: u64,
    /// Acknowledged and never seen.
    pub lost: u64,
    /// Seen more than once.
    pub duplicated: u64,
    /// Seen behind a later one of the same publisher.
    pub reordered: u64,
    /// Content that no publisher made.
    pub foreign: u64,
}

#[derive(Debug, Default)]
struct Seen {
    /// Every sequence below was seen.
    below: u64,
    /// Seen at or above.
    ahead: BTreeSet<u64>,
    last: Option<u64>,
    duplicated: u64,
    reordered: u64,
}

/// The books of one consumer.
#[derive(Debug, Default)]
pub struct Audit {
    publishers: BTreeMap<u64, Seen>,
    foreign: u64,
}

impl Audit {
    /// A message arrived; returns when it was due, microseconds after the start of the load.
    pub fn received(&mut self, message: &[u8]) -> Option<u64> {
        let Some((publisher, sequence, due_us)) = read_stamp(message) else {
            self.foreign += 1;
            return None;
        };
        self.publishers.entry(publisher).or_default().see(sequence);
        Some(due_us)
    }

    /// Compares with what was acknowledged: sequences 0 to `count` of each publisher.
    pub fn verdict(&self, acknowledged: &BTreeMap<u64, u64>) -> Verdict {
        let mut verdict = Verdict { foreign: self.foreign, ..Verdict::default() };
        for seen in self.publishers.values() {
            verdict.received += seen.below + seen.ahead.len() as u64;
            verdict.duplicated += seen.duplicated;
            verdict.reordered += seen.reordered;
        }
        for (publisher, count) in acknowledged {
            let seen = self.publishers.get(publisher);
            let below = seen.map_or(0, |seen| seen.below.min(*count));
            let ahead = seen.map_or(0, |seen| seen.ahead.range(..*count).count() as u64);
            verdict.lost += count - below - ahead;
        }
        verdict
    }
}

impl Seen {
    fn see(&mut self, sequence: u64) {
        if sequence < self.below || !self.ahead.insert(sequence) {
            self.duplicated += 1;
            return;
        }
        if self.last.is_some_and(|last| sequence < last) {
            self.reordered += 1;
        }
        self.last = Some(sequence);
        while self.ahead.remove(&self.below) {
            self.below += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict_of(sequences: &[u64]) -> Verdict {
        let mut audit = Audit::default();
        for sequence in sequences {
            let mut message = vec![0; 100];
            stamp(&mut message, 3, *sequence, 0);
            audit.received(&message);
        }
        audit.verdict(&BTreeMap::from([(3, 5)]))
    }

    #[test]
    fn what_was_planted_is_found() {
        let clean = Verdict { received: 5, ..Verdict::default() };
        assert_eq!(verdict_of(&[0, 1, 2, 3, 4]), clean);
        assert_eq!(verdict_of(&[0, 1, 3, 4]), Verdict { received: 4, lost: 1, ..clean });
        assert_eq!(verdict_of(&[0, 1, 1, 2, 3, 4]), Verdict { duplicated: 1, ..clean });
        assert_eq!(verdict_of(&[0, 2, 1, 3, 4]), Verdict { reordered: 1, ..clean });
        assert_eq!(verdict_of(&[]), Verdict { received: 0, lost: 5, ..clean });
        let mut audit = Audit::default();
        audit.received(b"short");
        let mut wrong = vec![0; 100];
        stamp(&mut wrong, 1, 1, 0);
        wrong[99] ^= 1;
        audit.received(&wrong);
        assert_eq!(audit.verdict(&BTreeMap::new()).foreign, 2);
    }
}
