//! Owns: what a publisher may still spend on one stream.
//! Never: spends more than was granted.

use weir_protocol::frame::{Grant, Revoke, Revoked};
use weir_protocol::limits::MESSAGE_COST_MIN;

/// What a record of this encoded length costs.
pub(crate) fn message_cost(encoded_len: usize) -> u64 {
    (encoded_len as u64).max(MESSAGE_COST_MIN)
}

/// The client's half of a stream's credit.
#[derive(Debug, Default)]
pub(crate) struct Spender {
    epoch: u32,
    limit: u64,
    spent: u64,
}

impl Spender {
    pub(crate) fn available(&self) -> u64 {
        self.limit.saturating_sub(self.spent)
    }

    pub(crate) fn grant(&mut self, grant: &Grant) {
        if grant.epoch > self.epoch {
            self.spent = 0;
        }
        self.epoch = grant.epoch;
        self.limit = grant.limit_cost;
    }

    pub(crate) fn spend(&mut self, cost: u64) -> bool {
        let fits = cost <= self.available();
        self.spent += cost;
        fits
    }

    pub(crate) fn revoke(&mut self, revoke: &Revoke) -> Option<Revoked> {
        self.limit = revoke.limit_cost.max(self.spent).min(self.limit);
        Some(Revoked { epoch: self.epoch, spent_cost: self.spent })
    }

    pub(crate) fn give_back(&mut self) -> Revoked {
        self.limit = self.spent;
        Revoked { epoch: self.epoch, spent_cost: self.spent }
    }
}
