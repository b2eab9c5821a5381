//! Owns: what may be sent on one stream, as both of its ends reckon it; PEER.md 3.
//! Never: memory: whoever grants decides by what it has.
//! Invariants: `answered <= spent`; a limit only rises; with nothing outstanding one frame may
//! always be sent, however large, so that no stream stands still for ever.

use crate::planted::{Bug, is_planted};
use weir_protocol::frame::Grant;
use weir_protocol::peer::limits::{INITIAL_CREDIT_BYTES, STREAM_WINDOW_BYTES_MAX};

/// The frame that grants up to `limit_cost`: messages are not counted between brokers.
pub(super) const fn grant_of(limit_cost: u64) -> Grant {
    let limit_messages = u64::MAX;
    Grant { epoch: 0, limit_cost, limit_messages, ttl_ms: 0, level: 0, reason_bits: 0 }
}

/// The credit of one stream, in cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Credit {
    spent: u64,
    answered: u64,
    limit: u64,
}

impl Credit {
    pub(super) const fn new() -> Self {
        Self { spent: 0, answered: 0, limit: INITIAL_CREDIT_BYTES }
    }

    /// Whether a frame of this cost may be sent now.
    pub(super) fn covers(&self, cost: u64) -> bool {
        self.fits(cost) || self.spent == self.answered
    }

    /// Whether so much may be sent without a need for the exception.
    pub(super) fn fits(&self, cost: u64) -> bool {
        self.spent + cost <= self.limit
    }

    pub(super) fn spend(&mut self, cost: u64) {
        self.spent += cost;
    }

    /// So much of what was spent is answered.
    pub(super) fn answer(&mut self, cost: u64) {
        if !is_planted(Bug::PeerCreditLeaks) {
            self.answered += cost;
        }
    }

    /// Grants `window` beyond what was answered; says whether that is more than before.
    pub(super) fn open(&mut self, window: u64) -> bool {
        self.raise(self.answered + window)
    }

    /// Takes a grant in, as far as one may go; says whether it is more than before.
    pub(super) fn raise(&mut self, limit: u64) -> bool {
        let limit = limit.min(self.answered + STREAM_WINDOW_BYTES_MAX);
        let rises = limit > self.limit;
        self.limit = self.limit.max(limit);
        rises
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Sent and not answered.
    pub(super) fn outstanding(&self) -> u64 {
        self.spent - self.answered
    }
}
