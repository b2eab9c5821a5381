//! Consumers on their way in.
//!
//! Owns: which of them may enter here and where they start; those that wait for a leader, for a
//! majority to say that it is still this one, or for this replica to reach what they asked for.
//! Never: more of them, together with those attached, than a partition may have.
//! Invariants: each is let in or refused, once, and none waits longer than [`REACH_PATIENCE`]; who needs
//! the leader starts behind everything that was settled anywhere before it came.

use super::consuming::Newcomer;
use super::proving::Round;
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

/// One that waits.
#[derive(Debug)]
struct Waiting {
    arriving: Arriving,
    /// It has waited for long enough.
    until: Instant,
    /// What proves to it that this replica leads.
    round: Round,
}

/// Those that wait.
#[derive(Debug, Default)]
pub(super) struct Arrivals(Vec<Waiting>);

impl Arrivals {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn close(&mut self, id: ConsumerId) {
        self.0.retain(|waiting| waiting.arriving.id != id);
    }

    pub(super) fn patience_ends(&self) -> Option<Instant> {
        self.0.iter().map(|waiting| waiting.until).min()
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
        let (until, round) = (now + REACH_PATIENCE, self.proving.next());
        self.receive(Waiting { arriving, until, round }, now, out);
    }

    /// Looks at everybody who waits once more: something happened, or their time is over.
    pub(super) fn let_in(&mut self, now: Instant, out: &mut Effects<R>) {
        for waiting in std::mem::take(&mut self.consuming.arrivals.0) {
            self.receive(waiting, now, out);
        }
        self.delete_awaiting(out);
    }

    /// Asks whether this replica still leads, if anybody waits for the answer.
    pub(super) fn prove_lead(&mut self, out: &mut Effects<R>) {
        let waits = |waiting: &Waiting| {
            self.awaits_proof(waiting) && !self.proving.is_answered(waiting.round)
        };
        if self.consuming.arrivals.0.iter().any(waits) && self.proving.begin() {
            out.push(Effect::ProveLead);
        }
    }

    /// Whether it is not known yet that this replica led when somebody came.
    fn awaits_proof(&self, Waiting { arriving, round, .. }: &Waiting) -> bool {
        let must = self.leader == Leader::Here && !self.sole_voter && arriving.needs_leader();
        must && !is_planted(Bug::LeadNotProven)
            && !self.proving.has_proven(*round, self.state.applied)
    }

    /// Whether this replica is one that may serve it, as far as that is known by now.
    fn may_serve(&self, waiting: &Waiting) -> bool {
        let awaited = self.leader.is_awaited() && waiting.arriving.needs_leader();
        !awaited && !self.awaits_proof(waiting)
    }

    fn receive(&mut self, waiting: Waiting, now: Instant, out: &mut Effects<R>) {
        match self.judge_arrival(&waiting, now) {
            Verdict::Enters => self.enter(waiting.arriving, out),
            Verdict::Waits => self.consuming.arrivals.0.push(waiting),
            Verdict::Refused(why) => out.push(Effect::Subscribed(waiting.arriving.id, Err(why))),
        }
    }

    fn judge_arrival(&self, waiting: &Waiting, now: Instant) -> Verdict {
        let Waiting { arriving, until, .. } = waiting;
        let is_patient = now < *until;
        if self.draining {
            return Verdict::Refused(SubscribeRefusal::Draining);
        }
        match self.leader {
            Leader::Elsewhere(hint) if arriving.needs_leader() => {
                return Verdict::Refused(SubscribeRefusal::NotLeader(hint));
            }
            Leader::Here | Leader::Awaited(_) if !self.may_serve(waiting) => {
                return match is_patient {
                    true => Verdict::Waits,
                    false => Verdict::Refused(SubscribeRefusal::NotLeader(None)),
                };
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
        } else if is_patient {
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
