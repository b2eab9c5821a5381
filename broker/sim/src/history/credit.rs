//! Owns: check 11: the cumulative limits of each peer, and what was spent of them.
//! Never: gives credit back: limits rise as records are done, as on the wire.
//! Invariants: a grant counts from when it was recorded: before it leaves a consumer, after it
//! reached a producer; so nobody can rightly spend it earlier.

use super::event::Peer;
use super::finding::{Check, Report};

/// The credit of one peer within one epoch.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Account {
    /// Something was granted: a history without grants is not judged by them.
    is_open: bool,
    epoch: u16,
    /// The first limit of the epoch: what may be outstanding.
    window_cost: u64,
    limit_cost: u64,
    limit_messages: u64,
    spent_cost: u64,
    spent_messages: u64,
}

impl Account {
    pub(super) fn grant(&mut self, epoch: u16, limit_cost: u64, limit_messages: u64) {
        if epoch > self.epoch || !self.is_open {
            *self = Self { epoch, is_open: true, window_cost: limit_cost, ..Self::default() };
        }
        if epoch == self.epoch {
            self.limit_cost = self.limit_cost.max(limit_cost);
            self.limit_messages = self.limit_messages.max(limit_messages);
        }
    }

    pub(super) fn revoke(&mut self, epoch: u16, limit_cost: u64) {
        if epoch == self.epoch {
            self.limit_cost = self.limit_cost.min(limit_cost.max(self.spent_cost));
        }
    }

    /// Spends bytes and messages in the account's own epoch.
    pub(super) fn spend(
        &mut self,
        at_ns: u64,
        peer: Peer,
        (cost, messages): (u64, u64),
        r: &mut Report,
    ) {
        if !self.is_open {
            r.unmetered += 1;
            return;
        }
        // What is larger than all credit may go when nothing else is outstanding.
        let is_alone = self.limit_cost.saturating_sub(self.spent_cost) >= self.window_cost
            && matches!(peer, Peer::Consumer(_) | Peer::Stream(_))
            && self.window_cost > 0;
        self.spent_cost += cost;
        self.spent_messages += messages;
        let Self { spent_cost, limit_cost, spent_messages, limit_messages, .. } = *self;
        if spent_messages > limit_messages && (messages == 1 || !is_alone) {
            let text = format_args!(
                "{peer:?} spent {spent_messages} messages of {limit_messages} granted"
            );
            r.add(Check::Credit, at_ns, text);
        }
        if spent_cost > limit_cost && !is_alone {
            let text = format_args!("{peer:?} spent {spent_cost} bytes of {limit_cost} granted");
            r.add(Check::Credit, at_ns, text);
        }
    }

    /// Spends in the epoch that the sender believes in.
    pub(super) fn spend_in(
        &mut self,
        at_ns: u64,
        peer: Peer,
        (epoch, spent): (u16, (u64, u64)),
        r: &mut Report,
    ) {
        if epoch == self.epoch {
            return self.spend(at_ns, peer, spent, r);
        }
        let text =
            format_args!("{peer:?} spent in epoch {epoch}, its grants are of {}", self.epoch);
        r.add(Check::Credit, at_ns, text);
    }
}
