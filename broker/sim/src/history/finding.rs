//! Owns: the names of the checks, and what was found.
//! Never: more than a few texts of one check: the rest is counted.

use super::event::Message;
use std::fmt;

/// Texts kept of each check.
const TEXTS_MAX: u32 = 8;

/// The checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// The history itself makes sense: a mistake of the recorder or the workload.
    WellFormed,
    /// 1. What was acknowledged or delivered is in every final drain, or left by a declared exit.
    NoLoss,
    /// 2. What is delivered was published before, in that partition, with that body.
    NoInvention,
    /// 3. What was refused is never delivered.
    NoAbortedRead,
    /// 4. One offset is one message, and one message one offset, at all times and replicas.
    OneOffset,
    /// 5. Offsets rise with the sequence of a producer.
    ProducerOrder,
    /// 6. What was stored before another was published has the lower offset.
    RealTimeOrder,
    /// 7. First deliveries come in order of offset, without a gap.
    ConsumerOrder,
    /// 8. Tokens are unique and rise; an old one is refused; only what was delivered is settled.
    Lease,
    /// 9. What was settled is not delivered again.
    SettledStaysSettled,
    /// 10. A redelivery is counted as one, and something ended the lease before it.
    Redelivery,
    /// 11. Nobody sends beyond the credit that was granted.
    Credit,
    /// 12. A query for the log end sees what was stored before it, and nothing unpublished.
    Tail,
    /// 13. Replicas have the same chain, a term has one leader.
    Replicas,
    /// 14. After the last fault, everything comes to its end in time.
    Liveness,
}

/// All checks, in their order.
pub const CHECKS: [Check; 15] = [
    Check::WellFormed,
    Check::NoLoss,
    Check::NoInvention,
    Check::NoAbortedRead,
    Check::OneOffset,
    Check::ProducerOrder,
    Check::RealTimeOrder,
    Check::ConsumerOrder,
    Check::Lease,
    Check::SettledStaysSettled,
    Check::Redelivery,
    Check::Credit,
    Check::Tail,
    Check::Replicas,
    Check::Liveness,
];

/// One promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which check says so.
    pub check: Check,
    /// Nanoseconds at which it was evident; the history's end for what is judged there.
    pub at_ns: u64,
    /// Who and what, in one line.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {}: {}", self.check, Time(self.at_ns), self.text)
    }
}

/// What the final drain of one replica lacks. Counts are of offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// The partition that was drained.
    pub partition: u16,
    /// The replica that was drained.
    pub replica: u8,
    /// Messages that the drain gave.
    pub survived: u32,
    /// Lost below all that survived: a head cut too far.
    pub prefix: u32,
    /// Lost between survivors: damage, or a truncation that something was appended behind.
    pub middle: u32,
    /// Lost above all that survived: a tail that was never flushed.
    pub postfix: u32,
    /// Lost although no offset was ever told.
    pub nowhere: u32,
}

impl Loss {
    /// All that is lost.
    pub fn total(&self) -> u32 {
        self.prefix + self.middle + self.postfix + self.nowhere
    }
}

/// What a history was found to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The broken promises, oldest first within what is judged at once; a few of each check.
    pub violations: Vec<Violation>,
    /// Violations of each check, those without a text included, in the order of [`CHECKS`].
    pub counts: [u32; CHECKS.len()],
    /// Drains that lack something.
    pub losses: Vec<Loss>,
    /// Events seen.
    pub events: u64,
    /// Drains that came to their end.
    pub drains: u32,
    /// Messages to and from peers without a recorded grant, which check 11 cannot judge.
    pub unmetered: u64,
}

impl Report {
    /// No promise was broken.
    pub fn is_clean(&self) -> bool {
        self.counts.iter().all(|count| *count == 0)
    }

    /// Violations of one check.
    pub fn count(&self, check: Check) -> u32 {
        self.counts[check as usize]
    }

    pub(super) fn add(&mut self, check: Check, at_ns: u64, text: fmt::Arguments<'_>) {
        let count = &mut self.counts[check as usize];
        *count += 1;
        if *count <= TEXTS_MAX {
            self.violations.push(Violation { check, at_ns, text: text.to_string() });
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for violation in &self.violations {
            writeln!(f, "{violation}")?;
        }
        let all: u32 = self.counts.iter().sum();
        write!(f, "{all} violations in {} events", self.events)
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { producer, partition, sequence } = self;
        write!(f, "producer {producer} sequence {sequence} (partition {partition})")
    }
}

/// A time as violations print it.
pub(super) struct Time(pub(super) u64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09} s", self.0 / super::SECOND_NS, self.0 % super::SECOND_NS)
    }
}
