//! Owns: what a broker may still send on one stream, and what of it is not back yet.
//! Never: gives credit back for what the application has not settled.
//! Invariant: a limit that was granted is never lowered on the same stream.

use crate::config::Limits;
use std::collections::VecDeque;
use weir_protocol::frame::Grant;

/// Bytes and messages.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Amount {
    bytes: u64,
    messages: u64,
}

/// Credit that is not back yet: the records below `end` hold it.
#[derive(Debug, Clone, Copy)]
struct Held {
    end: u64,
    amount: Amount,
}

/// The consumer's half of a stream's credit.
#[derive(Debug, Default)]
pub(super) struct Credit {
    window: Amount,
    /// What came on this stream.
    received: Amount,
    /// The newest limits that were sent.
    granted: Amount,
    /// Sum of `holds`; some of them may come from earlier streams.
    held: Amount,
    holds: VecDeque<Held>,
}

impl Credit {
    pub(super) fn new(window: Limits) -> Self {
        let window =
            Amount { bytes: window.bytes.max(1) as u64, messages: window.messages.max(1) as u64 };
        Self { window, ..Self::default() }
    }

    /// A new stream starts: returns its first grant.
    pub(super) fn start(&mut self) -> Grant {
        self.received = Amount::default();
        self.granted = self.limits();
        self.grant()
    }

    /// Something came that was paid for.
    pub(super) fn receive(&mut self, bytes: u64, messages: u64) {
        self.received.bytes += bytes;
        self.received.messages += messages;
    }

    /// The records below `end`, behind those held before, are with the application.
    pub(super) fn hold(&mut self, end: u64, bytes: u64, messages: u64) {
        self.held.bytes += bytes;
        self.held.messages += messages;
        self.holds.push_back(Held { end, amount: Amount { bytes, messages } });
    }

    /// The application is done with everything below `upto`.
    pub(super) fn settle(&mut self, upto: u64) {
        while let Some(held) = self.holds.pop_front_if(|held| held.end <= upto) {
            self.unhold(held);
        }
    }

    /// What reaches beyond `to` was thrown away.
    pub(super) fn drop_beyond(&mut self, to: u64) {
        while let Some(held) = self.holds.pop_back_if(|held| held.end > to) {
            self.unhold(held);
        }
    }

    fn unhold(&mut self, held: Held) {
        self.held.bytes -= held.amount.bytes;
        self.held.messages -= held.amount.messages;
    }

    fn limits(&self) -> Amount {
        let limit =
            |received: u64, window: u64, held: u64| (received + window).saturating_sub(held);
        Amount {
            bytes: limit(self.received.bytes, self.window.bytes, self.held.bytes),
            messages: limit(self.received.messages, self.window.messages, self.held.messages),
        }
    }

    /// Whether a grant is worth a frame: a good part of the window is back, or the application
    /// `waits` for more and every bit counts.
    pub(super) fn is_due(&self, waits: bool) -> bool {
        let grown = |new: u64, old: u64, window: u64| {
            new > old && (waits || new - old >= window.div_ceil(4))
        };
        let limits = self.limits();
        grown(limits.bytes, self.granted.bytes, self.window.bytes)
            || grown(limits.messages, self.granted.messages, self.window.messages)
    }

    /// Raises the limits as far as they go.
    pub(super) fn raise(&mut self) -> Grant {
        let limits = self.limits();
        self.granted.bytes = self.granted.bytes.max(limits.bytes);
        self.granted.messages = self.granted.messages.max(limits.messages);
        self.grant()
    }

    fn grant(&self) -> Grant {
        Grant {
            limit_cost: self.granted.bytes,
            limit_messages: self.granted.messages,
            ..Grant::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(grant: &Grant) -> (u64, u64) {
        (grant.limit_cost, grant.limit_messages)
    }

    #[test]
    fn credit_returns_when_messages_are_settled_and_not_before() {
        let mut credit = Credit::new(Limits { messages: 8, bytes: 1_000 });
        assert_eq!(limits(&credit.start()), (1_000, 8));
        for end in [2, 4] {
            credit.receive(200, 2);
            credit.hold(end, 200, 2);
        }
        assert!(!credit.is_due(true), "nothing is settled");
        credit.settle(1);
        assert!(!credit.is_due(true), "half a batch still holds the whole");
        credit.settle(2);
        assert!(credit.is_due(false), "a quarter of the messages is back");
        assert_eq!(limits(&credit.raise()), (1_200, 10));
        assert!(!credit.is_due(true), "told once");
    }

    #[test]
    fn little_is_worth_a_frame_only_when_the_application_waits() {
        let mut credit = Credit::new(Limits { messages: 100, bytes: 100_000 });
        credit.start();
        credit.receive(10_000, 20);
        credit.hold(20, 10_000, 20);
        credit.settle(20);
        assert!(!credit.is_due(false));
        assert!(credit.is_due(true));
    }

    #[test]
    fn a_new_stream_gets_what_is_not_held_and_repeats_cost_nothing_for_good() {
        let mut credit = Credit::new(Limits { messages: 10, bytes: 1_000 });
        credit.start();
        credit.receive(600, 6);
        credit.hold(6, 600, 6);
        assert_eq!(limits(&credit.start()), (400, 4));
        credit.receive(300, 3); // a repetition: nothing of it is held
        assert!(credit.is_due(true));
        assert_eq!(limits(&credit.raise()), (700, 7));
    }

    #[test]
    fn what_is_thrown_away_holds_nothing() {
        let mut credit = Credit::new(Limits { messages: 10, bytes: 1_000 });
        credit.start();
        for end in [3, 6, 9] {
            credit.receive(100, 3);
            credit.hold(end, 100, 3);
        }
        credit.drop_beyond(3);
        assert_eq!(limits(&credit.start()), (900, 7));
        credit.settle(9);
        assert_eq!(limits(&credit.start()), (1_000, 10));
    }
}
