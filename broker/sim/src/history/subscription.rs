//! What one subscription did with the records of one partition.
//!
//! Owns: a lease for each offset, the cursor of mode `stream`, and what waits for the end to be
//! judged: exits may be declared later than what they explain.
//! Never: a judgement of a delivery; those of a cursor are in `reader`, of a lease in `queue`.

use super::event::{Exit, Mode};
use super::finding::{Check, Report};
use super::log::{NEVER, PartitionLog};
use std::ops::Range;

/// What became of one offset in one subscription.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lease {
    /// First delivered, or [`NEVER`].
    pub(super) first_ns: u64,
    /// Delivered last.
    pub(super) last_ns: u64,
    /// It was first confirmed to be settled, or [`NEVER`].
    pub(super) settled_ns: u64,
    /// The newest token that was seen; 0 = none.
    pub(super) attempt: u16,
    /// The newest token whose ack succeeded; 0 = none.
    pub(super) settled_attempt: u16,
    /// By verb, the newest token under which a settle began although a newer one had been
    /// delivered.
    pub(super) late_attempts: [u16; 6],
    pub(super) count: u16,
    /// Who got it last.
    pub(super) consumer: u16,
    /// A settle began that takes the record out.
    pub(super) is_asked: bool,
    /// Something ended the newest lease, or may have.
    pub(super) is_ended: bool,
    /// How it left without an ack, and when that was recorded.
    pub(super) exit: Option<(Exit, u64)>,
    /// The exit was declared, and is not a settle's.
    pub(super) is_declared: bool,
}

impl Default for Lease {
    fn default() -> Self {
        Self {
            first_ns: NEVER,
            last_ns: 0,
            settled_ns: NEVER,
            attempt: 0,
            settled_attempt: 0,
            late_attempts: [0; 6],
            count: 0,
            consumer: 0,
            is_asked: false,
            is_ended: false,
            exit: None,
            is_declared: false,
        }
    }
}

impl Lease {
    /// It was delivered or redriven before: what comes now is no first delivery.
    pub(super) fn was_out(&self) -> bool {
        self.attempt > 0 || self.is_ended
    }

    pub(super) fn is_out(&self) -> bool {
        self.settled_ns != NEVER || self.exit.is_some()
    }
}

/// One subscription in one partition.
#[derive(Debug, Default)]
pub(super) struct SubscriptionLog {
    pub(super) mode: Option<Mode>,
    /// Its first offset, and since when it exists.
    pub(super) start: u32,
    pub(super) since_ns: u64,
    /// Mode `stream`: everything below was confirmed, or asked for, as settled.
    pub(super) cursor_settled: u32,
    pub(super) cursor_asked: u32,
    /// Exclusive end of what was delivered.
    pub(super) delivered_end: u32,
    /// Ordered mode: the last offset of each key that went out.
    pub(super) keys: Vec<Option<u32>>,
    leases: Vec<Lease>,
}

impl SubscriptionLog {
    pub(super) fn is_durable(&self) -> bool {
        matches!(self.mode, Some(Mode::Stream | Mode::Queue | Mode::KeyedQueue))
    }

    pub(super) fn lease(&self, offset: u32) -> Lease {
        self.leases.get(offset as usize).copied().unwrap_or_default()
    }

    /// For offsets that the log knows: they bound what this takes.
    pub(super) fn lease_mut(&mut self, offset: u32) -> &mut Lease {
        let at = offset as usize;
        if self.leases.len() <= at {
            self.leases.resize(at + 1, Lease::default());
        }
        &mut self.leases[at]
    }

    /// A settle of the offset began, so that the broker may have forgotten it.
    pub(super) fn is_asked(&self, offset: u32) -> bool {
        offset < self.cursor_asked || self.lease(offset).is_asked
    }

    /// Nothing is owed of the offset.
    pub(super) fn has_left(&self, offset: u32, log: &PartitionLog) -> bool {
        offset < self.cursor_settled
            || self.lease(offset).is_out()
            || offset < log.log_start()
            || log.is_damaged(offset)
    }
}

/// Why offsets wait for an exit that explains them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owed {
    /// A reader was not given them.
    Gap,
    /// A trim took them, and no settle had begun.
    Trimmed,
    /// A settle was told that they are settled, and none had begun.
    Claimed,
}

/// Offsets that only a declared exit explains.
#[derive(Debug, Clone)]
pub(super) struct Suspect {
    pub(super) why: Owed,
    pub(super) at_ns: u64,
    pub(super) subscription: u16,
    pub(super) consumer: u16,
    pub(super) partition: u16,
    pub(super) offsets: Range<u32>,
}

impl Suspect {
    /// At the end, when every exit is known.
    pub(super) fn judge(
        &self,
        flight_ns: u64,
        log: &PartitionLog,
        subscription: &SubscriptionLog,
        r: &mut Report,
    ) {
        let trimmed = match self.why {
            // Whoever trims is recorded on another way than whoever reads.
            Owed::Gap => log.log_start_at(self.at_ns.saturating_add(flight_ns)),
            Owed::Trimmed | Owed::Claimed => 0,
        };
        let from = self.offsets.start.max(trimmed);
        let is_damaged = |at: u32| self.why != Owed::Claimed && log.is_damaged(at);
        let mut unexplained = (from..self.offsets.end)
            .filter(|at| !subscription.lease(*at).is_declared && !is_damaged(*at));
        let Some(first) = unexplained.next() else { return };
        let count = unexplained.count() + 1;
        let Self { subscription, consumer, partition, .. } = self;
        let (check, text) = match self.why {
            Owed::Gap => (
                Check::ConsumerOrder,
                format!("consumer {consumer} of subscription {subscription} was not given"),
            ),
            Owed::Trimmed => (
                Check::NoLoss,
                format!("subscription {subscription} had neither settled nor lost by an exit"),
            ),
            Owed::Claimed => (
                Check::NoLoss,
                format!(
                    "consumer {consumer} of subscription {subscription} was told that somebody \
                     else settled"
                ),
            ),
        };
        let more = if self.why == Owed::Trimmed { ", when a trim took them" } else { "" };
        let text = format_args!(
            "{text} {count} records of partition {partition}, the first at offset {first}{more}"
        );
        r.add(check, self.at_ns, text);
    }
}
