//! Judges a recorded history: what a workload asked for, was answered and received.
//!
//! Owns: the events of a history, the bodies that name their message, and the checks.
//! Never: a clock, I/O, chance, or the order of a hash map: the same history gives the same report.
//! Invariants:
//! - each event is taken once, and what is judged at the end is one pass over arrays: time and
//!   memory are linear in the events, apart from the logarithm of the few chains and terms;
//! - a history that breaks no promise has no violation: where the recorder cannot know the order of
//!   two things, the checker does not guess.
//!
//! What leaves a queue does so by a declared exit: settled; expired, dead-lettered, parked or
//! skipped ([`Exit`]); trimmed by retention; given up as damaged. A VOID batch has an index and no
//! offset, so it leaves no hole; it settles an unknown outcome as "not stored".
//!
//! ```
//! use weir_sim::history::{Event, Limits, Message, What, check};
//!
//! let message = Message { producer: 0, partition: 0, sequence: 0 };
//! let history = [
//!     Event { at_ns: 10, what: What::Publish { message, bytes: 100 } },
//!     Event { at_ns: 20, what: What::Stored { message, offset: Some(0) } },
//! ];
//! let report = check(&history, Limits::default());
//! assert!(report.violations[0].text.contains("no drain"), "nothing proves that it is there");
//! ```

mod body;
mod checker;
mod consumer;
mod credit;
mod event;
mod finding;
mod liveness;
mod log;
mod loss;
mod queue;
mod reader;
mod replica;
mod subscription;
mod tail;

pub use body::{BODY_BYTES_MIN, body_of, identify};
pub use checker::Checker;
pub use event::{Event, Exit, Message, Mode, Peer, SettleResult, Verb, What};
pub use finding::{CHECKS, Check, Loss, Report, Violation};

const SECOND_NS: u64 = 1_000_000_000;

/// What the checks that measure time allow, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From the end of the last fault to a leader of each partition.
    pub leader_ns: u64,
    /// From the end of the last fault, or the publish, until every subscription has seen a message
    /// and every publisher knows its outcomes.
    pub drain_ns: u64,
    /// How long what the broker sent may be under way to whoever records it.
    pub flight_ns: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { leader_ns: 5 * SECOND_NS, drain_ns: 30 * SECOND_NS, flight_ns: SECOND_NS / 10 }
    }
}

/// Judges a whole history, oldest event first.
pub fn check(history: &[Event], limits: Limits) -> Report {
    let mut checker = Checker::new(limits);
    for event in history {
        checker.see(*event);
    }
    checker.finish()
}
