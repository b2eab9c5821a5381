//! One publisher's way to one partition: a pure state machine behind a short lock.
//!
//! Owns: the open batch, the batches that wait for credit, those in flight, the sequences.
//! Never: touches a socket, a clock or chance; the driver brings frames and time and takes frames.
//! Invariants: batches are sent in the order of their messages, under dense sequences; a sent
//! batch keeps its sequence until its fate is known; while one is unknown nothing newer is sent.

#[cfg(test)]
mod tests;

use super::batch::{Answer, Batch, BatchQueue, OpenBatch};
use super::credit::{Spender, message_cost};
use super::receipt::{Completion, Receipt, Stored};
use super::window::Window;
use crate::config::OnFull;
use crate::error::{CAUSES_MAX, Error, Reason};
use crate::message::Message;
use crate::retry::Backoff;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

use weir_protocol::error_code::{ErrorCode, Outcome};
use weir_protocol::frame::{Demand, Frame, Publish};
use weir_protocol::types::{BrokerId, ProducerId, Sequence, StreamId};

/// A lane that sends nothing for this long gives its credit back.
const IDLE_AFTER: Duration = Duration::from_millis(500);
/// The least that a batch holds before scarce credit closes it.
const BATCH_COST_MIN: u64 = 16 << 10;
/// The most that a batch of several messages may cost: many small ones cost more than their
/// bytes, and a batch that costs more than the broker's whole pool could never be sent.
const BATCH_COST_MAX: u64 = 512 << 10;
/// An open batch is closed after this share of the deadline even when nothing can be sent, so
/// that messages of one batch have nearly the same deadline.
const DEADLINE_SHARE: u32 = 10;

/// What a lane was built with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LaneOptions {
    pub(crate) partition: u32,
    pub(crate) linger: Duration,
    pub(crate) deadline: Duration,
    pub(crate) on_full: OnFull,
}

/// Where the lane stands with the broker.
#[derive(Debug)]
pub(super) enum Phase {
    /// No stream; asks for one from this time on.
    Idle { reopen_at: Option<Instant> },
    /// Asked for a stream.
    Opening,
    /// Has a stream.
    Open(StreamId),
    /// For ever: the publisher, the topic or the producer is gone.
    Over(Error),
}

/// What may be sent.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Flow {
    /// New batches, as credit allows.
    Free,
    /// Nothing: something was refused, and all answers in flight are awaited first.
    Draining,
    /// Nothing until then, or until a grant.
    Waiting { until: Instant },
}

/// Who the lane publishes as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Identity {
    pub(crate) id: ProducerId,
    pub(crate) epoch: u32,
}

/// What the driver does after a visit.
#[derive(Debug, Default)]
pub(crate) struct Visit {
    /// Ask for a stream.
    pub(crate) open: bool,
    /// It would ask for a stream if there were anybody to ask.
    pub(crate) waits: bool,
    /// End this stream.
    pub(crate) close: Option<StreamId>,
    /// Visit again then, at the latest.
    pub(crate) timer: Option<Instant>,
    /// The lane is empty and nobody will fill it again.
    pub(crate) finished: bool,
    /// Room was all that kept it from sending on.
    pub(crate) more: bool,
    /// Messages wait, and the broker grants nothing.
    pub(crate) blocked: Option<Reason>,
}

/// The state of one lane.
#[derive(Debug)]
pub(crate) struct LaneCore {
    pub(super) options: LaneOptions,
    pub(super) window: Arc<Window>,
    pub(super) open: OpenBatch,
    /// Closed, not sent, without sequences.
    pub(super) waiting: BatchQueue,
    /// Sent, in the order of their sequences.
    pub(super) flight: BatchQueue,
    pub(super) phase: Phase,
    pub(super) flow: Flow,
    pub(super) line: Line,
    pub(super) credit: Spender,
    pub(super) signals: Signals,
    pub(super) backoff: Backoff,
}

/// The lane's place in the log and its name there.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) identity: Identity,
    /// Who opened the last stream.
    pub(super) broker: BrokerId,
    /// Of the next batch that is sent for the first time.
    pub(super) next_sequence: u64,
    /// Behind the last record that is known to be stored.
    pub(super) stored_end: u64,
    /// The broker told `next_sequence` at least once.
    pub(super) known: bool,
}

/// What the lane and its visitors told each other.
#[derive(Debug, Default)]
pub(super) struct Signals {
    /// The driver was told to come and has not been here since.
    rung: bool,
    /// Somebody waits for everything: no lingering.
    flush: bool,
    /// Open a stream even without messages.
    wanted: bool,
    /// No message will be added any more.
    pub(super) closing: bool,
    /// The demand that the broker knows of, on this stream.
    pub(super) demanded: u64,
    /// Why nothing is granted, by the newest grant.
    pub(super) reason: Option<Reason>,
    /// Unsent credit was given back and not asked for again.
    pub(super) idle_since: Option<Instant>,
    /// The newest reasons to wait, for deadline errors.
    causes: VecDeque<String>,
    /// A stream to end because the lane opens another.
    pub(super) abandoned: Option<StreamId>,
    /// Another broker leads: the lane goes there without a pause.
    pub(super) moved: bool,
}

impl LaneCore {
    pub(crate) fn new(options: LaneOptions, window: Arc<Window>, now: Instant) -> Self {
        Self {
            options,
            window,
            open: OpenBatch::new(now),
            waiting: BatchQueue::default(),
            flight: BatchQueue::default(),
            phase: Phase::Idle { reopen_at: None },
            flow: Flow::Free,
            line: Line::default(),
            credit: Spender::default(),
            signals: Signals::default(),
            backoff: Backoff::default(),
        }
    }

    /// Queues a message whose limits were checked and whose room was taken, in a batch of at most
    /// `bytes_max`. Returns its receipt and whether the driver must be told.
    pub(crate) fn push(
        &mut self,
        message: &Message,
        (encoded_len, window_bytes): (usize, usize),
        bytes_max: usize,
        now_ms: u64,
    ) -> (Receipt, bool) {
        if let Phase::Over(error) = &self.phase {
            let error = error.clone().with_outcome(Outcome::NotStored);
            self.window.release(1, window_bytes);
            return (Receipt::failed(error), false);
        }
        let cost = message_cost(encoded_len);
        let mut ring = false;
        if self.closes_before(encoded_len, cost, bytes_max) {
            self.close_open();
            ring = true;
        }
        if self.open.is_empty() {
            let now = Instant::now();
            self.open.since = now;
            self.open.deadline = now + self.options.deadline;
            ring = true;
        }
        let receipt = self.open.push(message, now_ms, cost, window_bytes);
        if receipt.is_done() {
            self.window.release(1, window_bytes);
        }
        if self.open.wire_len() >= bytes_max || self.open.is_full() {
            self.close_open();
            ring = true;
        }
        (receipt, self.ring(ring))
    }

    /// Whether the open batch is sent as it is rather than with one more message.
    fn closes_before(&self, encoded_len: usize, cost: u64, bytes_max: usize) -> bool {
        if self.open.is_empty() {
            return false;
        }
        let grown = self.open.cost + cost;
        if self.open.wire_len() + encoded_len > bytes_max || grown > BATCH_COST_MAX {
            return true;
        }
        // A small window is used in several batches, so that one is filled while another is
        // flushed.
        let window = self.credit.available() + self.flight.cost();
        if grown > (window / 4).max(BATCH_COST_MIN) {
            return self.waiting.is_empty();
        }
        let left = self.credit.available().saturating_sub(self.waiting.cost());
        self.open.cost <= left && grown > left
    }

    pub(super) fn close_open(&mut self) {
        if !self.open.is_empty() {
            let batch = self.open.close();
            self.waiting.push_back(batch);
        }
    }

    /// Notes that the driver should come; true when it does not know yet.
    fn ring(&mut self, wanted: bool) -> bool {
        wanted && !std::mem::replace(&mut self.signals.rung, true)
    }

    /// Asks for a stream before there is a message. True when the driver must be told.
    pub(crate) fn want_open(&mut self) -> bool {
        self.signals.wanted = true;
        self.ring(true)
    }

    /// Whether the next message is the first of its batch.
    pub(crate) fn starts_batch(&self) -> bool {
        self.open.is_empty()
    }

    /// No message will be added any more: what is queued is still sent, then the stream ends.
    pub(crate) fn finish(&mut self) -> bool {
        self.signals.closing = true;
        self.ring(true)
    }

    /// The batches that are on their way now, for somebody who waits for all of them; they are
    /// sent without lingering.
    pub(crate) fn flush(&mut self) -> (Vec<Arc<Completion>>, bool) {
        let mut completions: Vec<_> = self
            .flight
            .iter()
            .chain(self.waiting.iter())
            .map(|batch| batch.completion().clone())
            .collect();
        if !self.open.is_empty() {
            completions.push(self.open.completion().clone());
        }
        self.signals.flush = true;
        let ring = self.ring(!completions.is_empty());
        (completions, ring)
    }

    /// The sequence of the next record, once the broker has told it.
    pub(crate) fn next_sequence(&self) -> Option<crate::Result<u64>> {
        if let Phase::Over(error) = &self.phase {
            return Some(Err(error.clone()));
        }
        let queued: u64 = self.waiting.iter().map(|batch| u64::from(batch.records)).sum();
        let open = u64::from(self.open.records());
        self.line.known.then(|| Ok(self.line.next_sequence + queued + open))
    }

    /// Why the broker grants nothing although messages wait.
    pub(crate) fn blocked(&self) -> Option<Reason> {
        let starved = self
            .waiting
            .front()
            .is_some_and(|first| first.cost > self.credit.available())
            || (self.waiting.is_empty() && !self.open.is_empty() && self.credit.available() == 0);
        match self.flow {
            Flow::Waiting { .. } => self.signals.reason.or(Some(Reason::Other)),
            _ if starved => self.signals.reason,
            _ => None,
        }
    }

    /// Whether something was sent that is not answered.
    pub(crate) fn has_flight(&self) -> bool {
        self.flight.iter().any(|batch| batch.answer.is_none())
    }

    /// Nobody gets room any more.
    pub(crate) fn close_window(&self) {
        self.window.close();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.waiting.is_empty() && self.flight.is_empty()
    }

    /// Whether nobody waits for what is under way: the publisher is being closed, and whoever sent
    /// it was told that its fate is not known.
    fn is_given_up(&self) -> bool {
        let told = !self.flight.is_empty() && self.flight.iter().all(Batch::is_reported);
        self.signals.closing && self.open.is_empty() && self.waiting.is_empty() && told
    }

    /// Remembers why messages had to wait.
    pub(super) fn note_cause(&mut self, cause: String) {
        let causes = &mut self.signals.causes;
        if causes.back() != Some(&cause) {
            if causes.len() == CAUSES_MAX {
                causes.pop_front();
            }
            causes.push_back(cause);
        }
    }

    /// The stream that the lane has left, once.
    pub(crate) fn take_abandoned(&mut self) -> Option<StreamId> {
        self.signals.abandoned.take()
    }

    /// Does what is due: expires, closes, sends. `room` = bytes that the socket's queue takes;
    /// none = there is no connection.
    pub(crate) fn visit(
        &mut self,
        now: Instant,
        room: Option<usize>,
        out: &mut Vec<Frame>,
    ) -> Visit {
        self.signals.rung = false;
        self.expire(now);
        let mut visit = Visit { close: self.take_abandoned(), ..Visit::default() };
        if self.is_given_up() {
            if let Phase::Open(stream) = self.phase {
                visit.close = Some(stream);
            }
            self.fail(&Self::closed_error());
        }
        match self.phase {
            Phase::Over(_) => visit.finished = true,
            Phase::Idle { reopen_at } => {
                let wanted = self.signals.wanted || !self.is_empty();
                let due = reopen_at.is_none_or(|at| at <= now);
                if self.signals.closing && self.is_empty() {
                    visit.finished = true;
                } else if wanted && due && room.is_some() {
                    self.phase = Phase::Opening;
                    visit.open = true;
                } else {
                    visit.waits = wanted && due;
                }
            }
            Phase::Opening => {}
            Phase::Open(stream) => self.visit_open(now, stream, room, &mut visit, out),
        }
        visit.blocked = self.blocked();
        visit.timer = self.timer(now);
        visit
    }

    fn visit_open(
        &mut self,
        now: Instant,
        stream: StreamId,
        room: Option<usize>,
        visit: &mut Visit,
        out: &mut Vec<Frame>,
    ) {
        self.release_flow(now);
        if let (Flow::Free, Some(room)) = (&self.flow, room) {
            if !self.has_unknown() {
                visit.more = self.send(now, stream, room, out);
            } else if room > 0 {
                self.ask_again(now, stream, out);
            } else {
                visit.more = true;
            }
        }
        self.demand(stream, out);
        self.rest(now, stream, out);
        if self.signals.closing && self.is_empty() {
            visit.close = Some(stream);
            visit.finished = true;
        }
    }

    /// Sends what credit and room allow; true: there is more for the next room.
    fn send(&mut self, now: Instant, stream: StreamId, room: usize, out: &mut Vec<Frame>) -> bool {
        let mut sent = 0;
        let mut more = true;
        while sent < room {
            more = false;
            if self.waiting.is_empty() && self.closes_now(now) {
                self.close_open();
            }
            let Some(first) = self.waiting.front() else { break };
            if first.cost > self.credit.available() {
                break;
            }
            let Some(mut batch) = self.waiting.pop_front() else { break };
            batch.header.base_sequence = Sequence(self.line.next_sequence);
            self.line.next_sequence += u64::from(batch.records);
            let behind = self.waiting.cost() + self.open.cost;
            sent += batch.body.len();
            out.push(self.publish_frame(now, stream, &mut batch, behind));
            self.flight.push_back(batch);
            more = true;
        }
        if self.open.is_empty() && self.waiting.is_empty() {
            self.signals.flush = false;
        }
        more
    }

    /// Spends the credit of a batch that has its sequence.
    pub(super) fn publish_frame(
        &mut self,
        now: Instant,
        stream: StreamId,
        batch: &mut Batch,
        demand: u64,
    ) -> Frame {
        let fits = self.credit.spend(batch.cost);
        debug_assert!(fits, "the caller has compared cost and credit");
        batch.attempts += 1;
        let asks_again = matches!(batch.answer.take(), Some(Answer::Unknown(_)));
        batch.header.producer_id = self.line.identity.id;
        batch.header.producer_epoch = self.line.identity.epoch;
        self.signals.demanded = demand;
        self.signals.idle_since = None;
        let left = batch.deadline.saturating_duration_since(now).as_millis();
        // A batch whose fate is unknown is sent again to learn it: a broker that refused it by its
        // deadline might refuse what it has stored.
        let deadline_ms =
            if asks_again { 0 } else { u32::try_from(left).unwrap_or(u32::MAX).max(1) };
        Frame::Publish(Publish {
            stream,
            deadline_ms,
            demand,
            header: batch.header,
            body: batch.body.clone(),
        })
    }

    /// Whether the open batch goes now: at once when nothing is in flight, else after lingering.
    fn closes_now(&self, now: Instant) -> bool {
        if self.open.is_empty() {
            return false;
        }
        let lingered = now.saturating_duration_since(self.open.since);
        self.open.cost <= self.credit.available()
            && (self.flight.is_empty() || self.signals.flush || lingered >= self.options.linger)
    }

    /// Asks for credit when what waits does not fit into what is left.
    fn demand(&mut self, stream: StreamId, out: &mut Vec<Frame>) {
        let unknown = self.flight.iter().filter(|batch| batch.is_unknown());
        let again: u64 = unknown.clone().map(|batch| batch.cost).sum();
        let largest = unknown.clone().chain(self.waiting.iter()).map(|batch| batch.cost).max();
        let largest = largest.unwrap_or(0).max(self.open.cost);
        let cost = again + self.waiting.cost() + self.open.cost;
        let first =
            unknown.chain(self.waiting.iter()).next().map_or(self.open.cost, |batch| batch.cost);
        let starved = first > self.credit.available();
        if starved && cost > self.signals.demanded {
            self.signals.demanded = cost;
            self.signals.idle_since = None;
            out.push(Frame::Demand(stream, Demand { cost, largest }));
        }
    }

    /// Gives unspent credit back after a while without messages.
    fn rest(&mut self, now: Instant, stream: StreamId, out: &mut Vec<Frame>) {
        if !self.is_empty() || self.credit.available() == 0 {
            self.signals.idle_since = None;
            return;
        }
        let since = *self.signals.idle_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= IDLE_AFTER {
            let revoked = self.credit.give_back();
            self.signals.demanded = 0;
            self.signals.idle_since = None;
            out.push(Frame::Revoked(stream, revoked));
        }
    }

    /// When to come again without being told. What was due and could not be done waits for a frame,
    /// room or a connection, which bring the driver too; a time that has passed would make it spin.
    fn timer(&self, now: Instant) -> Option<Instant> {
        let first = |batches: &BatchQueue| {
            batches.iter().find(|batch| !batch.is_reported()).map(|batch| batch.deadline)
        };
        let mut timers = [None; 6];
        timers[0] = first(&self.flight);
        timers[1] = first(&self.waiting);
        if !self.open.is_empty() {
            timers[2] = Some(self.open.since + self.options.deadline / DEADLINE_SHARE);
            let lingers = matches!(self.phase, Phase::Open(_))
                && self.flow == Flow::Free
                && self.waiting.is_empty()
                && self.open.cost <= self.credit.available();
            timers[3] = lingers.then(|| self.open.since + self.options.linger);
        }
        timers[4] = match (&self.phase, &self.flow) {
            (Phase::Idle { reopen_at }, _) => *reopen_at,
            (Phase::Open(_), Flow::Waiting { until }) => Some(*until),
            _ => None,
        };
        timers[5] = self.signals.idle_since.map(|since| since + IDLE_AFTER);
        timers.into_iter().flatten().filter(|at| *at > now).min()
    }

    /// Ends what nobody waits for any more. What was sent keeps its place until its fate is known.
    fn expire(&mut self, now: Instant) {
        let expired = |batch: &Batch| batch.deadline <= now;
        if self.flight.iter().any(|batch| expired(batch) && !batch.is_reported()) {
            let error = self.deadline_error(Outcome::Unknown);
            for batch in self.flight.iter().filter(|batch| expired(batch)) {
                batch.report(error.clone());
            }
        }
        let lingered = now.saturating_duration_since(self.open.since);
        if !self.open.is_empty() && lingered >= self.options.deadline / DEADLINE_SHARE {
            self.close_open();
        }
        while self.waiting.front().is_some_and(expired) {
            let error = self.deadline_error(Outcome::NotStored);
            if let Some(batch) = self.waiting.pop_front() {
                batch.resolve(Err(error), &self.window);
            }
        }
    }

    /// The newest reasons to wait, the last one last.
    pub(crate) fn causes(&self) -> Vec<String> {
        self.signals.causes.iter().cloned().collect()
    }

    pub(super) fn deadline_error(&self, outcome: Outcome) -> Error {
        let mut causes = self.causes();
        let blocked = self.blocked();
        if let Some(reason) = blocked {
            causes.push(format!("no credit: {reason}"));
        }
        match self.phase {
            Phase::Idle { .. } | Phase::Opening => causes.push("no connection".to_owned()),
            _ if outcome == Outcome::Unknown => causes.push("no answer".to_owned()),
            _ => {}
        }
        Error::deadline(outcome, causes, blocked)
    }

    /// Ends the lane for good: what was sent is unknown, the rest is not stored.
    pub(crate) fn fail(&mut self, error: &Error) {
        self.close_open();
        for batch in self.flight.take() {
            let outcome = match &batch.answer {
                Some(Answer::NotStored(_) | Answer::Behind) => Outcome::NotStored,
                Some(Answer::Unknown(_)) | None => Outcome::Unknown,
            };
            batch.resolve(Err(error.clone().with_outcome(outcome)), &self.window);
        }
        for batch in self.waiting.take() {
            batch.resolve(Err(error.clone().with_outcome(Outcome::NotStored)), &self.window);
        }
        self.phase = Phase::Over(error.clone());
    }

    /// Messages whose fate is not known to their sender.
    pub(crate) fn unconfirmed(&self) -> u64 {
        let batches = self.flight.iter().chain(self.waiting.iter());
        let closed: u64 = batches.map(|batch| u64::from(batch.records)).sum();
        closed + u64::from(self.open.records())
    }

    /// The error of a publisher that was closed.
    pub(crate) fn closed_error() -> Error {
        Error::local(ErrorCode::Closed, "the publisher was closed")
    }

    pub(super) fn stored_at(&self, offset: u64, duplicate: bool) -> Stored {
        Stored { partition: self.options.partition, offset, duplicate }
    }
}
