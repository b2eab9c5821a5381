//! Consumers on their way in.
//!
//! Owns: which of them may enter here and where they start; those that wait for a leader, or for
//! this replica to reach what they asked for.
//! Never: more of them, together with those attached, than a partition may have.
//! Invariant: each is let in or refused, once, and none waits longer than [`REACH_PATIENCE`].

use super::consuming::Newcomer;
use super::{Core, Effect, Effects, Leader};
use crate::connection::outbox::ConsumerId;
use crate::partition::limits::{CONSUMERS_MAX, REACH_PATIENCE};
use crate::partition::refusal::SubscribeRefusal;
use crate::partition::subscription::consumer::Registers;
use crate::planted::{Bug, is_planted};
use tokio::time::Instant;
use weir_protocol::frame::{Needs, Start};
use weir_protocol::types::{Name, Offset};

/// A consumer that wants to attach. A start by time was turned into an offset.
#[derive(Debug)]
pub(in crate::partition) struct Arriving {
    pub(in crate::partition) id: ConsumerId,
    pub(in crate::partition) subscription: Option<Name>,
    pub(in crate::partition) start: Start,
    pub(in crate::partition) needs: Needs,
    pub(in crate::partition) registers: Registers,
}

impl Arriving {
    /// Whether only the leader may serve it.
    fn needs_leader(&self) -> bool {
        self.subscription.is_some() || !self.needs.any_replica
    }
}

/// Those that wait, each with when it has waited for long enough.
#[derive(Debug, Default)]
pub(super) struct Arrivals(Vec<(Arriving, Instant)>);

impl Arrivals {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn close(&mut self, id: ConsumerId) {
        self.0.retain(|(arriving, _)| arriving.id != id);
    }

    pub(super) fn patience_ends(&self) -> Option<Instant> {
        self.0.iter().map(|(_, until)| *until).min()
    }
}

/// What becomes of one that arrives.
enum Verdict {
    Enters,
    Waits,
    Refused(SubscribeRefusal),
}

impl<R> Core<R> {
    pub(super) fn subscribe(&mut self, arriving: Arriving, now: Instant, out: &mut Effects<R>) {
        if self.consuming.count() >= CONSUMERS_MAX {
            let refusal = SubscribeRefusal::ConsumerLimit;
            out.push(Effect::Subscribed(arriving.id, Err(refusal)));
            return;
        }
        self.receive(arriving, now + REACH_PATIENCE, now, out);
    }

    /// Looks at everybody who waits once more: something happened, or their time is over.
    pub(super) fn let_in(&mut self, now: Instant, out: &mut Effects<R>) {
        for (arriving, until) in std::mem::take(&mut self.consuming.arrivals.0) {
            self.receive(arriving, until, now, out);
        }
        self.delete_awaiting(out);
    }

    fn receive(&mut self, arriving: Arriving, until: Instant, now: Instant, out: &mut Effects<R>) {
        match self.judge_arrival(&arriving, until, now) {
            Verdict::Enters => self.enter(arriving, out),
            Verdict::Waits => self.consuming.arrivals.0.push((arriving, until)),
            Verdict::Refused(why) => out.push(Effect::Subscribed(arriving.id, Err(why))),
        }
    }

    fn judge_arrival(&self, arriving: &Arriving, until: Instant, now: Instant) -> Verdict {
        if self.draining {
            return Verdict::Refused(SubscribeRefusal::Draining);
        }
        match self.leader {
            Leader::Elsewhere(hint) if arriving.needs_leader() => {
                return Verdict::Refused(SubscribeRefusal::NotLeader(hint));
            }
            Leader::Awaited(_) if arriving.needs_leader() && now < until => return Verdict::Waits,
            Leader::Awaited(_) if arriving.needs_leader() => {
                return Verdict::Refused(SubscribeRefusal::NotLeader(None));
            }
            Leader::Here | Leader::Elsewhere(_) | Leader::Awaited(_) => {}
        }
        let reach = match arriving.start {
            // The leader may well hold it.
            Start::Offset(start) if self.leader != Leader::Here => start.max(arriving.needs.reach),
            _ => arriving.needs.reach,
        };
        let high_watermark = self.state.high_watermark;
        if reach <= high_watermark || is_planted(Bug::ReachIgnored) {
            Verdict::Enters
        } else if now < until {
            Verdict::Waits
        } else {
            Verdict::Refused(SubscribeRefusal::Behind { reach, high_watermark })
        }
    }

    fn enter(&mut self, arriving: Arriving, out: &mut Effects<R>) {
        let Arriving { id, subscription, start, needs, registers } = arriving;
        let existing = subscription.as_ref().and_then(|name| self.state.subscriptions.find(name));
        if let Some(existing) = existing {
            let newcomer = Newcomer { id, registers, epoch: needs.epoch };
            return self.attach(newcomer, existing, needs.resume, out);
        }
        match (self.start_offset(start), subscription) {
            (Err(refusal), _) => out.push(Effect::Subscribed(id, Err(refusal))),
            (Ok(start), None) => self.attach_reader(id, needs.any_replica, start, registers, out),
            (Ok((cursor, _)), Some(name)) => {
                let newcomer = Newcomer { id, registers, epoch: needs.epoch };
                self.create(name, cursor, newcomer, out);
            }
        }
    }

    /// The first offset of a consumer without a cursor, and what it missed.
    fn start_offset(&self, start: Start) -> Result<(Offset, u64), SubscribeRefusal> {
        let (log_start, high_watermark) = (self.first_readable(), self.state.high_watermark);
        match start {
            Start::Earliest => Ok((log_start, 0)),
            Start::Latest => Ok((high_watermark, 0)),
            Start::Offset(asked) if asked > high_watermark => {
                Err(SubscribeRefusal::OutOfRange { asked, high_watermark })
            }
            Start::Offset(asked) => Ok((asked.max(log_start), log_start.0.saturating_sub(asked.0))),
            Start::Time(_) => unreachable!("the shell turns a time into an offset"),
        }
    }
}
