//! One publisher stream as flow control sees it.
//!
//! Owns: the arithmetic of one stream: granted, spent, wanted.
//! Never: knows the pool or the other streams.

use super::PartitionKey;
use tokio::time::Instant;
use weir_protocol::frame::Revoke;
use weir_protocol::limits::MESSAGE_COST_MIN;

/// Where a stream waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// It waits for nothing.
    Nowhere,
    /// In the ring, for the pool.
    Ring,
    /// With its partition, until that takes more.
    HeldBack,
}

/// A revoke that is not answered yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Revoking {
    pub(super) limit: u64,
    pub(super) since: Instant,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) generation: u32,
    pub(super) open: bool,
    pub(super) partition: PartitionKey,
    pub(super) epoch: u32,
    /// Limit, in all, since the epoch began. `spent <= granted` always.
    pub(super) granted: u64,
    pub(super) spent: u64,
    /// Of `spent`, what is not released yet.
    pub(super) reserved: u64,
    /// The limit that the client would like; `<= granted` when it waits for nothing.
    pub(super) wanted: u64,
    /// Cost of the largest batch that waits: less unspent credit than this is of no use.
    pub(super) largest: u64,
    /// What the next batch will probably cost, where the client did not say: as much as the last.
    pub(super) expected: u64,
    /// What its turns in the ring have earned it and it could not use yet.
    pub(super) deficit: u64,
    /// It has had this turn's quantum and waits at the front for room.
    pub(super) turn_open: bool,
    pub(super) place: Place,
    pub(super) starved_since: Option<Instant>,
    pub(super) revoking: Option<Revoking>,
    pub(super) last_spent: Instant,
    /// Raised by the call under way, and whether the client waits for just that.
    pub(super) raised: bool,
    pub(super) urgent: bool,
}

impl Stream {
    pub(super) fn new(generation: u32, partition: PartitionKey, epoch: u32, now: Instant) -> Self {
        Self {
            generation,
            open: true,
            partition,
            epoch,
            granted: 0,
            spent: 0,
            reserved: 0,
            wanted: 0,
            largest: 0,
            expected: 0,
            deficit: 0,
            turn_open: false,
            place: Place::Nowhere,
            starved_since: None,
            revoking: None,
            last_spent: now,
            raised: false,
            urgent: false,
        }
    }

    /// Credit that the client may still spend.
    pub(super) fn unspent(&self) -> u64 {
        self.granted - self.spent
    }

    /// What the client waits for. A stream that is asked for credit is given none.
    pub(super) fn needs(&self) -> u64 {
        if self.revoking.is_some() { 0 } else { self.wanted.saturating_sub(self.granted) }
    }

    /// The least grant that is worth giving; `worth` where the client did not say.
    pub(super) fn useful(&self, worth: u64) -> u64 {
        self.largest.saturating_sub(self.unspent()).max(worth).min(self.needs())
    }

    /// The client wants more than it may send.
    pub(super) fn wants_more(&self) -> bool {
        self.wanted > self.granted
    }

    /// The client wants to send and may not.
    pub(super) fn starved(&self) -> bool {
        self.wants_more() && self.unspent() < self.largest.max(self.expected).max(MESSAGE_COST_MIN)
    }

    /// The client has said that it waits for just the next grant.
    pub(super) fn is_stuck(&self) -> bool {
        self.wants_more() && self.unspent() < self.largest.max(MESSAGE_COST_MIN)
    }

    /// Asks all unspent credit back.
    pub(super) fn revoke(&mut self, now: Instant) -> Revoke {
        self.revoking = Some(Revoking { limit: self.spent, since: now });
        Revoke { epoch: self.epoch, limit_cost: self.spent }
    }
}
