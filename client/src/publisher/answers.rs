//! What the broker says to a lane, and what becomes of batches that were refused.
//!
//! Owns: the one way out of a refusal: wait for all answers in flight, ask for the unknown ones
//! again under their own sequences, then number the rest anew behind the last stored record.
//! Never: leaves a sequence gap; guesses the fate of a batch.

use super::batch::{Answer, Batch, BatchQueue};
use super::lane::{Flow, Identity, LaneCore, Phase};
use crate::config::OnFull;
use crate::error::{Error, Reason};
use crate::retry::RetryBudget;
use crate::seams::Chance;
use std::time::Duration;
use tokio::time::Instant;
use weir_protocol::error_code::{Action, ErrorCode, Outcome};
use weir_protocol::frame::{Frame, Grant, Published, PublisherOpened, Refusal, Refused, Revoke};
use weir_protocol::types::{BrokerId, ProducerId, StreamId};

/// How often a batch is sent again because it arrived damaged.
const DAMAGED_ATTEMPTS_MAX: u32 = 3;

/// What decisions about retries need.
pub(crate) struct Retries<'a> {
    pub(crate) budget: &'a mut RetryBudget,
    pub(crate) chance: &'a Chance,
    pub(crate) now: Instant,
    /// What is refused may go to another broker at once.
    pub(crate) moved: bool,
}

impl LaneCore {
    /// Who to ask a stream for: none before the first answer.
    pub(crate) fn identity(&self) -> Option<Identity> {
        Some(self.line.identity).filter(|identity| identity.id.0 != 0)
    }

    /// Publishes under an identity that another lane of the same producer was given.
    pub(crate) fn adopt(&mut self, identity: Identity) {
        self.line.identity = identity;
    }

    /// The broker opened the stream.
    pub(crate) fn opened(
        &mut self,
        broker: BrokerId,
        stream: StreamId,
        opened: &PublisherOpened,
        retries: &mut Retries<'_>,
    ) {
        let identity = Identity { id: opened.producer_id, epoch: opened.producer_epoch };
        // A broker that remembers less than it has stored has forgotten the producer in between.
        let same =
            identity.id == self.line.identity.id && opened.next_sequence.0 >= self.line.stored_end;
        let was_known = std::mem::replace(&mut self.line.known, true);
        let moved = std::mem::replace(&mut self.line.broker, broker) != broker;
        self.line.identity = identity;
        self.line.stored_end = opened.next_sequence.0;
        self.phase = Phase::Open(stream);
        self.credit = Default::default();
        self.signals.demanded = 0;
        self.signals.reason = None;
        self.signals.moved = false;
        if was_known && !same {
            self.give_up_unknown();
        }
        self.heed_opening(moved);
        if self.flight.is_empty() {
            self.line.next_sequence = self.line.stored_end;
            self.flow = Flow::Free;
        } else if self.has_unknown() {
            self.flow = Flow::Free; // to ask for those first
        } else {
            self.regroup(retries);
        }
    }

    /// What a new stream says of batches that were sent on others.
    fn heed_opening(&mut self, moved: bool) {
        let stored_end = self.line.stored_end;
        let mut behind_gap = false;
        for batch in self.flight.iter_mut() {
            let told = match &batch.answer {
                // The broker told where it stands when nothing of this producer was under way any
                // more. Of another broker, which may lead again, it knows no such thing; but none
                // stores what stands behind a gap.
                Some(Answer::Unknown(_)) => {
                    behind_gap || (!moved && batch.base_sequence().0 >= stored_end)
                }
                // This is where it was sent to.
                Some(Answer::NotStored(refusal)) => Action::of(refusal.code) == Action::Reconnect,
                Some(Answer::Behind) | None => false,
            };
            behind_gap |= matches!(batch.answer, Some(Answer::NotStored(_) | Answer::Behind));
            if told {
                batch.answer = Some(Answer::Behind);
                batch.in_doubt = false;
            }
        }
    }

    /// The broker knows this producer no more, so nobody can tell what became of these.
    fn give_up_unknown(&mut self) {
        let text = "the broker has forgotten the producer of this message";
        let error = Error::local(ErrorCode::UnknownProducer, text).with_outcome(Outcome::Unknown);
        for batch in self.flight.take() {
            match &batch.answer {
                Some(Answer::NotStored(_) | Answer::Behind) => self.flight.push_back(batch),
                Some(Answer::Unknown(_)) | None => batch.resolve(Err(error.clone()), &self.window),
            }
        }
    }

    /// The broker did not open the stream, or ended it.
    pub(crate) fn refused_stream(&mut self, refusal: &Refusal, retries: &mut Retries<'_>) {
        self.detach();
        self.signals.moved |= retries.moved;
        match Action::of(refusal.code) {
            Action::Wait | Action::StopTopic | Action::Reconnect | Action::Unknown => {
                self.reopen_after(refusal.retry_after_ms, retries);
            }
            Action::Resync => {
                self.line.identity = Identity { id: ProducerId(0), epoch: 0 };
                self.reopen_after(refusal.retry_after_ms, retries);
            }
            Action::Never | Action::Fatal | Action::Local | Action::GiveUp | Action::Settle => {
                self.fail(&Error::refused(refusal));
                return;
            }
        }
        self.note_cause(Error::refused(refusal).to_string());
    }

    /// The connection is gone. What was sent and not answered is unknown until the broker tells.
    pub(crate) fn lost(&mut self, cause: &str) {
        self.detach();
        self.note_cause(cause.to_owned());
    }

    fn detach(&mut self) {
        if matches!(self.phase, Phase::Over(_)) {
            return;
        }
        self.phase = Phase::Idle { reopen_at: None };
        self.credit = Default::default();
        self.signals.idle_since = None;
        let refusal = Refusal {
            outcome: Outcome::Unknown,
            ..Refusal::new(ErrorCode::LeaderLost, "the connection was lost")
        };
        for batch in self.flight.iter_mut().filter(|batch| batch.answer.is_none()) {
            batch.doubt(refusal.clone());
        }
    }

    fn reopen_after(&mut self, hint_ms: u32, retries: &mut Retries<'_>) {
        let reopen_at = if std::mem::take(&mut self.signals.moved) {
            None
        } else {
            let hint = Duration::from_millis(u64::from(hint_ms));
            Some(retries.now + hint.max(self.backoff.next(retries.chance)))
        };
        self.phase = Phase::Idle { reopen_at };
    }

    /// What may be sent from now on.
    pub(crate) fn granted(&mut self, grant: &Grant) {
        let before = self.credit.available();
        self.credit.grant(grant);
        self.signals.reason = Reason::from_bits(grant.reason_bits);
        if self.credit.available() > before {
            self.signals.demanded = 0;
            if matches!(self.flow, Flow::Waiting { .. }) {
                self.flow = Flow::Free;
            }
        }
    }

    /// The broker asks for unspent credit back.
    pub(crate) fn revoke(&mut self, stream: StreamId, revoke: &Revoke) -> Option<Frame> {
        self.signals.demanded = 0;
        self.credit.revoke(revoke).map(|revoked| Frame::Revoked(stream, revoked))
    }

    /// Batches are stored. Returns how many of them were known to this lane.
    pub(crate) fn published(&mut self, published: &Published, retries: &mut Retries<'_>) -> usize {
        let mut found = 0;
        for range in &published.stored {
            let Some(at) = self.find(range.base_sequence.0) else { continue };
            let Some(batch) = self.flight.remove(at) else { continue };
            self.line.stored_end = self.line.stored_end.max(batch.end_sequence());
            let stored = self.stored_at(range.base_offset.0, range.duplicate);
            if batch.attempts == 1 {
                retries.budget.attempted();
            }
            batch.resolve(Ok(stored), &self.window);
            found += 1;
        }
        if found > 0 {
            self.backoff.reset();
        }
        self.granted(&published.grant);
        if self.flow == Flow::Draining {
            self.regroup(retries);
        }
        found
    }

    /// A batch is not stored, or nobody knows. False: no such batch is in flight.
    pub(crate) fn refused(&mut self, refused: &Refused, retries: &mut Retries<'_>) -> bool {
        self.granted(&refused.grant);
        let Some(at) = self.find(refused.base_sequence.0) else { return false };
        self.signals.moved |= retries.moved;
        let refusal = refused.refusal.clone();
        self.note_cause(Error::refused(&refusal).to_string());
        let gap = refusal.code == ErrorCode::SequenceGap.number();
        let Some(batch) = self.flight.iter_mut().nth(at) else { return false };
        if refusal.outcome != Outcome::NotStored || (batch.in_doubt && !gap) {
            batch.doubt(refusal);
        } else {
            // Answers come in the order of the batches, and what is stored is not in flight any
            // more: behind another one, a gap is that one's. Where nothing of the producer was
            // stored before, the partition does not know it yet, and calls the gap so.
            let unknown = refusal.code == ErrorCode::UnknownProducer.number();
            let behind = (gap || unknown) && at > 0;
            batch.answer = Some(if behind { Answer::Behind } else { Answer::NotStored(refusal) });
            batch.in_doubt = false;
        }
        self.flow = Flow::Draining;
        self.regroup(retries);
        true
    }

    fn find(&self, base_sequence: u64) -> Option<usize> {
        self.flight
            .iter()
            .position(|batch| batch.answer.is_none() && batch.base_sequence().0 == base_sequence)
    }

    /// Once every answer is there: decides what happens to each batch that is not stored.
    fn regroup(&mut self, retries: &mut Retries<'_>) {
        if self.flight.iter().any(|batch| batch.answer.is_none()) {
            return;
        }
        let forgotten = self.is_forgotten();
        if forgotten {
            self.give_up_unknown();
            self.line.identity = Identity::default();
        }
        if self.has_unknown() {
            self.regroup_unknown(retries);
            return;
        }
        let first = self.first_refusal();
        let refused = self.flight.take();
        let mut again = BatchQueue::default();
        for batch in refused {
            match self.verdict(&batch, retries) {
                Some(error) => batch.resolve(Err(error), &self.window),
                None => again.push_back(batch),
            }
        }
        for batch in self.waiting.take() {
            again.push_back(batch);
        }
        self.waiting = again;
        self.line.next_sequence = self.line.stored_end;
        match first {
            _ if forgotten => self.reopen(0, retries),
            Some(first) => self.resume_after(&first, retries),
            None => self.flow = Flow::Free,
        }
    }

    /// Asks for the unknown ones again: on this stream, or on another when this one is of no use.
    fn regroup_unknown(&mut self, retries: &mut Retries<'_>) {
        let first = self.flight.iter().find_map(|batch| match &batch.answer {
            Some(Answer::Unknown(refusal)) => Some(refusal.clone()),
            _ => None,
        });
        let Some(first) = first else { return };
        match Action::of(first.code) {
            Action::Wait | Action::StopTopic | Action::Unknown => {
                let hint = Duration::from_millis(u64::from(first.retry_after_ms));
                let pause = hint.max(self.unknown_pause(retries));
                self.flow = Flow::Waiting { until: retries.now + pause };
                return;
            }
            Action::Reconnect | Action::Resync => {}
            // It will never be told. Where the log stands is told to a new stream.
            Action::Never | Action::Fatal | Action::Local | Action::GiveUp | Action::Settle => {
                let at = self.flight.iter().position(Batch::is_unknown);
                if let Some(batch) = at.and_then(|at| self.flight.remove(at)) {
                    let error = Error::refused(&first).with_outcome(Outcome::Unknown);
                    batch.resolve(Err(error), &self.window);
                }
            }
        }
        self.reopen(first.retry_after_ms, retries);
    }

    /// Whether an answer says that the broker has forgotten the producer.
    fn is_forgotten(&self) -> bool {
        self.flight.iter().any(|batch| match &batch.answer {
            Some(Answer::NotStored(refusal) | Answer::Unknown(refusal)) => {
                refusal.code == ErrorCode::UnknownProducer.number()
            }
            Some(Answer::Behind) | None => false,
        })
    }

    fn first_refusal(&self) -> Option<Refusal> {
        self.flight.iter().find_map(|batch| match &batch.answer {
            Some(Answer::NotStored(refusal)) => Some(refusal.clone()),
            Some(Answer::Behind | Answer::Unknown(_)) | None => None,
        })
    }

    /// How long to wait before the unknown ones are asked for again: not at all the first time.
    fn unknown_pause(&mut self, retries: &mut Retries<'_>) -> Duration {
        let attempts = self.flight.iter().map(|batch| batch.attempts).max().unwrap_or(0);
        if attempts <= 1 { Duration::ZERO } else { self.backoff.next(retries.chance) }
    }

    /// The error that a refused batch ends with, or none when it is sent again.
    fn verdict(&self, batch: &Batch, retries: &mut Retries<'_>) -> Option<Error> {
        if batch.deadline <= retries.now {
            return Some(self.deadline_error(Outcome::NotStored));
        }
        let Some(Answer::NotStored(refusal)) = &batch.answer else { return None };
        let error = || Some(Error::refused(refusal));
        match Action::of(refusal.code) {
            Action::Resync if batch.attempts >= DAMAGED_ATTEMPTS_MAX => error(),
            Action::Wait | Action::StopTopic if self.options.on_full == OnFull::Fail => error(),
            // It was never taken: elsewhere it is a first attempt.
            Action::Reconnect if refusal.code == ErrorCode::NotLeader.number() => None,
            Action::Wait
            | Action::StopTopic
            | Action::Reconnect
            | Action::Resync
            | Action::Unknown => {
                if retries.budget.take(retries.now) {
                    return None;
                }
                let text =
                    format!("too large a share were retries; last: {}", Error::refused(refusal));
                Some(Error::local(ErrorCode::RetryBudgetEmpty, text))
            }
            Action::Never | Action::Fatal | Action::Local | Action::GiveUp | Action::Settle => {
                error()
            }
        }
    }

    /// When the refused ones are sent again.
    fn resume_after(&mut self, first: &Refusal, retries: &mut Retries<'_>) {
        let hint = Duration::from_millis(u64::from(first.retry_after_ms));
        match Action::of(first.code) {
            Action::Wait | Action::StopTopic => {
                let pause = if hint.is_zero() { self.backoff.next(retries.chance) } else { hint };
                self.flow = Flow::Waiting { until: retries.now + pause };
            }
            Action::Reconnect | Action::Unknown => self.reopen(first.retry_after_ms, retries),
            Action::Resync if first.code != ErrorCode::BadChecksum.number() => {
                self.reopen(first.retry_after_ms, retries);
            }
            _ => self.flow = Flow::Free,
        }
    }

    /// Leaves the stream for another.
    fn reopen(&mut self, hint_ms: u32, retries: &mut Retries<'_>) {
        if let Phase::Open(stream) = self.phase {
            self.signals.abandoned = Some(stream);
        }
        self.credit = Default::default();
        self.reopen_after(hint_ms, retries);
    }

    /// The pause is over: asks for the unknown ones again, or lets new batches go.
    pub(super) fn release_flow(&mut self, now: Instant) {
        if matches!(self.flow, Flow::Waiting { until } if until <= now) {
            self.flow = Flow::Free;
        }
    }

    /// Sends unknown batches again, under their own sequences and in their order.
    pub(super) fn ask_again(&mut self, now: Instant, stream: StreamId, out: &mut Vec<Frame>) {
        let before = out.len();
        let mut flight = std::mem::take(&mut self.flight);
        for batch in flight.iter_mut().filter(|batch| batch.is_unknown()) {
            if batch.cost > self.credit.available() {
                break;
            }
            let frame = self.publish_frame(now, stream, batch, 0);
            out.push(frame);
        }
        let sent = out.len() > before;
        self.flight = flight;
        if sent {
            self.flow = Flow::Draining;
        }
    }

    /// Whether batches in flight must be asked for again before anything else is sent.
    pub(super) fn has_unknown(&self) -> bool {
        self.flight.iter().any(Batch::is_unknown)
    }
}
