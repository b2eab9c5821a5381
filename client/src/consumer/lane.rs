//! One consumer's way to one partition: a pure state machine.
//!
//! Owns: where reading stands, what is buffered, what is settled, the credit that follows.
//! Never: touches a socket or a clock; gives credit back for what the application has not settled.
//! Invariants: records are handed over in the order of their offsets, each once per consumer;
//! buffered and unsettled bytes together stay within the credit, but for the last delivery.

mod sharing;
#[cfg(test)]
mod tests;

use super::credit::Credit;
use crate::config::{Limits, Start};
use crate::error::Error;
use crate::retry::Backoff;
use crate::seams::Chance;
use bytes::Bytes;
use sharing::Hold;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;
use weir_protocol::batch::{BatchHeader, BatchType, HeaderError};
use weir_protocol::error_code::{Action, ErrorCode};
use weir_protocol::frame::{
    self, Deliver, Frame, Grant, Needs, Refusal, Settle, Settled, Subscribed,
};
use weir_protocol::limits::BATCH_HEADER_BYTES;
use weir_protocol::types::{Offset, StreamId};

/// Settles wait this long for more of them.
const SETTLE_DELAY: Duration = Duration::from_millis(10);
/// How often a damaged batch is asked for again.
const DAMAGED_ATTEMPTS_MAX: u32 = 3;

/// A batch that was received and not handed over yet.
#[derive(Debug, Clone)]
pub(crate) struct RawBatch {
    pub(crate) header: BatchHeader,
    /// Without padding.
    pub(crate) body: Bytes,
    /// Records below this are not the consumer's.
    pub(crate) skip_below: u64,
    /// The partition's turn in which it was received.
    pub(crate) turn: u64,
}

/// Where the lane stands with the broker.
#[derive(Debug, Clone, PartialEq)]
enum Phase {
    Idle {
        reopen_at: Option<Instant>,
    },
    /// Asked for a stream; `stale` = not for what is wanted by now.
    Opening {
        stale: bool,
        /// Where a durable subscription was asked to go on.
        resume: u64,
    },
    Open(StreamId),
    /// Ended on purpose or for good.
    Over,
}

/// What is read, and where.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Reading {
    pub(crate) start: Start,
    /// As a durable subscription.
    pub(crate) durable: bool,
    /// Any replica may serve.
    pub(crate) any_replica: bool,
    /// What the first stream must be able to read (exclusive).
    pub(crate) reach: u64,
}

/// What a stream is asked for with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ask {
    pub(crate) start: frame::Start,
    pub(crate) needs: Needs,
    pub(crate) credit: Grant,
}

/// What the driver does after a visit.
#[derive(Debug, Default)]
pub(crate) struct ReadVisit {
    /// Ask for a stream.
    pub(crate) open: Option<Ask>,
    /// It would ask for a stream if there were anybody to ask.
    pub(crate) waits: bool,
    /// End this stream.
    pub(crate) close: Option<StreamId>,
    /// Visit again then, at the latest.
    pub(crate) timer: Option<Instant>,
    /// Nothing will come any more.
    pub(crate) finished: bool,
}

/// What the application wants of its consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Messages.
    More,
    /// No more messages, but settles are still sent.
    Enough,
    /// The end of the streams.
    End,
}

/// How far settling has come.
#[derive(Debug, Default)]
struct Settling {
    /// Exclusive; what the application has settled.
    upto: u64,
    /// What the broker was told on this stream.
    sent: u64,
    /// What the broker says is committed.
    committed: u64,
    /// Somebody waits for the commit of this.
    wanted: u64,
    asked: u64,
    /// Tell the broker then.
    due: Option<Instant>,
    /// How often the broker refused one, and why the last time.
    refusals: u64,
    refusal: Option<Error>,
}

/// What is known of the partition.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct View {
    /// First offset that this consumer was or will be given.
    pub(crate) start: u64,
    /// High watermark when the consumer was opened first.
    pub(crate) end: u64,
    /// The newest high watermark.
    pub(crate) high_watermark: u64,
    /// Records that were gone before they could be read.
    pub(crate) skipped: u64,
    /// How often the partition has come to this consumer; all of this is of the last time.
    pub(crate) turn: u64,
}

/// The state of one partition's reading.
#[derive(Debug)]
pub(crate) struct ReadLane {
    pub(crate) partition: u32,
    reading: Reading,
    hold: Hold,
    /// The last replica that was asked sent it away: the leader is asked next.
    sent_away: bool,
    phase: Phase,
    view: Option<View>,
    /// How often there was a first view.
    turn: u64,
    /// Behind the last record that was received.
    received: u64,
    /// Behind the last record that was handed over.
    position: u64,
    /// Behind the last record that came on this stream, or where it started: a broker takes no settle
    /// beyond it, and one that knows of no other place starts a durable subscription at its cursor.
    streamed: u64,
    buffered: VecDeque<RawBatch>,
    window: Limits,
    credit: Credit,
    settling: Settling,
    damaged: u32,
    abandoned: Option<StreamId>,
    backoff: Backoff,
}

impl ReadLane {
    pub(crate) fn new(partition: u32, reading: Reading, window: Limits) -> Self {
        Self {
            partition,
            reading,
            hold: Hold::default(),
            sent_away: false,
            phase: Phase::Idle { reopen_at: None },
            view: None,
            turn: 0,
            received: 0,
            position: 0,
            streamed: 0,
            buffered: VecDeque::new(),
            window,
            credit: Credit::new(window),
            settling: Settling::default(),
            damaged: 0,
            abandoned: None,
            backoff: Backoff::default(),
        }
    }

    /// Known once the broker has opened it.
    pub(crate) fn view(&self) -> Option<View> {
        self.view
    }

    /// Whether it asks any replica next, not the leader alone.
    pub(crate) fn goes_anywhere(&self) -> bool {
        self.reading.any_replica && !self.sent_away
    }

    /// Where it was sent is nobody who can be reached: any replica will do again.
    pub(crate) fn turn_back(&mut self) {
        self.sent_away = false;
    }

    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    pub(crate) fn has_batch(&self) -> bool {
        !self.buffered.is_empty() && !self.is_going()
    }

    /// The newest settle, while the broker has not committed it.
    pub(crate) fn uncommitted(&self) -> Option<u64> {
        Some(self.settling.upto).filter(|upto| *upto > self.settling.committed)
    }

    /// Behind the newest settle that the broker has committed.
    pub(crate) fn committed(&self) -> u64 {
        self.settling.committed
    }

    /// Nothing is sent for this lane any more.
    pub(crate) fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// How often the broker refused a settle, and why the last time.
    pub(crate) fn refusals(&self) -> (u64, Option<Error>) {
        (self.settling.refusals, self.settling.refusal.clone())
    }

    /// Whether the driver should come although no timer is due.
    pub(crate) fn needs_visit(&self) -> bool {
        self.abandoned.is_some() || self.grants()
    }

    fn grants(&self) -> bool {
        // What a new stream repeats is nobody's work: its credit returns at once.
        let waits = self.buffered.is_empty() || self.streamed < self.received;
        matches!(self.phase, Phase::Open(_)) && self.credit.is_due(waits)
    }

    // ---- the application's side ----

    /// Takes the next batch, after checking its body. An error: the batch is damaged for good.
    pub(crate) fn take(&mut self) -> Option<Result<RawBatch, Error>> {
        if self.is_going() {
            return None;
        }
        let batch = self.buffered.pop_front()?;
        if let Err(error) = batch.header.check_body(&batch.body) {
            return self.damaged(&batch, error).map(Err);
        }
        self.damaged = 0;
        self.position = batch.header.end_offset().0;
        Some(Ok(batch))
    }

    /// Asks for a damaged batch again a few times; what stands on disk may be whole.
    fn damaged(&mut self, batch: &RawBatch, error: HeaderError) -> Option<Error> {
        self.damaged += 1;
        let at = batch.header.base_offset.0;
        let partition = self.partition;
        if self.damaged > DAMAGED_ATTEMPTS_MAX {
            let text = format!("partition {partition}, batch at offset {at}: {error}");
            return Some(
                Error::protocol(ErrorCode::BadChecksum, text).with_partition(self.partition),
            );
        }
        tracing::warn!(partition, offset = at, %error, "a batch arrived damaged, asking again");
        self.rewind(at.max(batch.skip_below));
        None
    }

    /// Reads again from this offset on, on a new stream.
    fn rewind(&mut self, to: u64) {
        self.buffered.clear();
        self.received = to;
        self.credit.drop_beyond(to);
        self.start_anew();
    }

    /// Leaves the stream, or the one that is asked for, for another.
    fn start_anew(&mut self) {
        match &mut self.phase {
            Phase::Open(stream) => {
                self.abandoned = Some(*stream);
                self.phase = Phase::Idle { reopen_at: None };
            }
            Phase::Opening { stale, .. } => *stale = true,
            Phase::Idle { .. } | Phase::Over => {}
        }
    }

    /// Everything below `upto` is done. True when the driver should be told now.
    pub(crate) fn settle(&mut self, upto: u64, confirm: bool) -> bool {
        // Nothing beyond what was handed over can be done.
        let upto = upto.min(self.position);
        if confirm {
            self.settling.wanted = self.settling.wanted.max(upto);
        }
        if upto <= self.settling.upto {
            return confirm;
        }
        self.settling.upto = upto;
        self.credit.settle(upto);
        let first = self.reading.durable && self.settling.due.is_none();
        if first {
            self.settling.due = Some(Instant::now() + SETTLE_DELAY);
        }
        first || confirm || self.grants()
    }

    // ---- the driver's side ----

    /// The stream that the lane has left, once.
    pub(crate) fn take_abandoned(&mut self) -> Option<StreamId> {
        self.abandoned.take()
    }

    /// Does what is due. `connected` = frames can be sent; `wish` = what the application wants.
    pub(crate) fn visit(
        &mut self,
        now: Instant,
        connected: bool,
        wish: Wish,
        out: &mut Vec<Frame>,
    ) -> ReadVisit {
        let ending = wish == Wish::End;
        if !ending && let Some(visit) = self.visit_shared(now, connected, out) {
            return visit;
        }
        let mut visit = ReadVisit { close: self.take_abandoned(), ..ReadVisit::default() };
        if !connected {
            visit.finished = ending;
            if let Phase::Idle { reopen_at } = self.phase {
                visit.timer = reopen_at.filter(|at| *at > now);
                visit.waits = visit.timer.is_none() && !ending;
            }
            return visit;
        }
        match self.phase {
            Phase::Idle { .. } if ending => self.phase = Phase::Over,
            Phase::Idle { reopen_at } if reopen_at.is_none_or(|at| at <= now) => {
                let ask = self.ask();
                self.phase = Phase::Opening { stale: false, resume: ask.needs.resume.0 };
                visit.open = Some(ask);
            }
            Phase::Idle { reopen_at } => visit.timer = reopen_at,
            Phase::Open(stream) => {
                self.tell_settled(now, stream, ending, out);
                if ending {
                    visit.close = Some(stream);
                    self.phase = Phase::Over;
                } else if wish == Wish::More && self.grants() {
                    out.push(Frame::Grant(stream, self.credit.raise()));
                }
                visit.timer = self.settling.due;
            }
            Phase::Opening { .. } | Phase::Over => {}
        }
        visit.finished = self.phase == Phase::Over;
        visit
    }

    fn ask(&mut self) -> Ask {
        let start = match (self.view, self.reading.start) {
            (Some(_), _) => frame::Start::Offset(Offset(self.received)),
            (None, Start::Earliest) => frame::Start::Earliest,
            (None, Start::Latest) => frame::Start::Latest,
            (None, Start::Offset(offset)) => frame::Start::Offset(Offset(offset)),
            (None, Start::Time(ms)) => frame::Start::Time(ms),
        };
        let again = self.view.is_some();
        let needs = Needs {
            any_replica: self.reading.any_replica,
            reach: Offset(if again { 0 } else { self.reading.reach }),
            resume: Offset(if again && self.reading.durable { self.received } else { 0 }),
            epoch: self.epoch(),
        };
        Ask { start, needs, credit: self.credit.start() }
    }

    fn tell_settled(
        &mut self,
        now: Instant,
        stream: StreamId,
        at_once: bool,
        out: &mut Vec<Frame>,
    ) {
        if !self.reading.durable {
            return;
        }
        let settling = &mut self.settling;
        let upto = settling.upto.min(self.streamed);
        let confirm = settling.wanted > settling.asked && settling.wanted <= upto;
        let due = at_once || settling.due.is_some_and(|due| due <= now);
        if confirm || (due && upto > settling.sent) {
            settling.sent = upto;
            if confirm {
                settling.asked = upto;
            }
            out.push(Frame::Settle(Settle { stream, upto: Offset(upto), confirm }));
        }
        if due || confirm {
            settling.due = None;
        }
    }

    /// The broker opened the stream.
    pub(crate) fn opened(&mut self, stream: StreamId, subscribed: &Subscribed) {
        let (stale, resume) = match self.phase {
            Phase::Opening { stale, resume } => (stale, resume),
            Phase::Idle { .. } | Phase::Open(_) | Phase::Over => (false, 0),
        };
        self.sent_away = false;
        self.phase = Phase::Open(stream);
        self.backoff.reset();
        self.settling.sent = 0;
        self.settling.asked = 0;
        self.streamed = subscribed.start.0;
        let high_watermark = subscribed.high_watermark.0;
        match &mut self.view {
            Some(view) => {
                view.high_watermark = view.high_watermark.max(high_watermark);
                view.skipped += subscribed.log_start.0.saturating_sub(self.received);
                if !stale {
                    self.received = self.received.max(subscribed.start.0);
                }
            }
            None => {
                let start = subscribed.start.0;
                let skipped = subscribed.skipped;
                self.turn += 1;
                let (end, turn) = (high_watermark, self.turn);
                self.view = Some(View { start, end, high_watermark, skipped, turn });
                self.received = start;
                self.position = start;
                self.settling.upto = start;
            }
        }
        // A durable subscription starts at its cursor, below which all is committed, unless it goes on
        // where this consumer stood.
        if subscribed.start.0 != resume {
            self.settling.committed = self.settling.committed.max(subscribed.start.0);
        }
        if self.settles_again() {
            self.settling.due = Some(Instant::now());
        }
        if stale {
            self.start_anew();
        }
    }

    /// Takes a delivery in. True: the driver should come. An error: the stream is damaged.
    pub(crate) fn delivered(&mut self, deliver: &Deliver) -> Result<bool, HeaderError> {
        if self.phase != Phase::Open(deliver.stream) {
            // It was left because something before this was damaged.
            return Ok(false);
        }
        if let Some(view) = &mut self.view {
            view.high_watermark = view.high_watermark.max(deliver.high_watermark.0);
        }
        let bytes = deliver.batches.iter().map(|slice| slice.len() as u64).sum();
        self.credit.receive(bytes, u64::from(deliver.record_count));
        for slice in &deliver.batches {
            self.take_slice(slice.clone(), deliver.salt)?;
        }
        let settles = self.settles_again();
        if settles {
            self.settling.due = Some(Instant::now());
        }
        Ok(settles || self.grants())
    }

    /// Whether this stream may be told of what was settled on an earlier one.
    fn settles_again(&self) -> bool {
        let known = self.settling.upto.min(self.streamed);
        self.reading.durable && known > self.settling.sent.max(self.settling.committed)
    }

    fn take_slice(&mut self, mut slice: Bytes, salt: u64) -> Result<(), HeaderError> {
        while !slice.is_empty() {
            let bytes = slice.first_chunk::<BATCH_HEADER_BYTES>().ok_or(HeaderError::Lengths)?;
            let header = BatchHeader::decode(bytes, salt)?;
            let (whole, padded) = (header.wire_len(), header.stored_len());
            if whole > slice.len() {
                return Err(HeaderError::Lengths);
            }
            let stored = slice.split_to(padded.min(slice.len()));
            let (base, end) = (header.base_offset.0, header.end_offset().0);
            self.streamed = self.streamed.max(end);
            // Control batches and the like stand between the records; a reconnected stream may
            // repeat what was received.
            if header.batch_type != BatchType::Data || end <= self.received {
                continue;
            }
            if let Some(view) = &mut self.view {
                // A jump is what was trimmed while this consumer was too slow for it.
                view.skipped += base.saturating_sub(self.received);
            }
            self.credit.hold(end, stored.len() as u64, u64::from(header.record_count));
            let skip_below = self.received;
            self.received = end;
            let body = stored.slice(BATCH_HEADER_BYTES..whole);
            self.buffered.push_back(RawBatch { header, body, skip_below, turn: self.turn });
        }
        Ok(())
    }

    /// A delivery could not be read: asks again on a new stream, a few times.
    pub(crate) fn unreadable(&mut self, error: HeaderError) -> Option<Error> {
        self.damaged += 1;
        if self.damaged > DAMAGED_ATTEMPTS_MAX {
            let text =
                format!("partition {}, behind offset {}: {error}", self.partition, self.received);
            return Some(
                Error::protocol(ErrorCode::BadChecksum, text).with_partition(self.partition),
            );
        }
        self.start_anew();
        None
    }

    /// A settle is committed, or was refused.
    pub(crate) fn settled(&mut self, settled: &Settled) {
        self.settling.committed = self.settling.committed.max(settled.upto.0);
        if let Some(refusal) = &settled.refusal {
            tracing::warn!(partition = self.partition, code = refusal.code, "{}", refusal.text);
            self.settling.wanted = self.settling.wanted.min(settled.upto.0);
            self.settling.asked = self.settling.asked.min(settled.upto.0);
            self.settling.refusals += 1;
            self.settling.refusal = Some(Error::refused(refusal));
        }
    }

    /// The broker did not open the stream, or ended it. Without `chance` the lane goes to another
    /// broker at once. Some: for good.
    pub(crate) fn refused(
        &mut self,
        refusal: &Refusal,
        now: Instant,
        chance: Option<&Chance>,
    ) -> Option<Error> {
        if self.phase == Phase::Over {
            return None;
        }
        self.sent_away = true;
        match Action::of(refusal.code) {
            Action::Wait
            | Action::StopTopic
            | Action::Reconnect
            | Action::Unknown
            | Action::Resync => {
                let hint = Duration::from_millis(u64::from(refusal.retry_after_ms));
                let reopen_at = chance.map(|chance| now + hint.max(self.backoff.next(chance)));
                self.phase = Phase::Idle { reopen_at };
                None
            }
            _ if refusal.code == ErrorCode::Generation.number() => {
                self.forget();
                None
            }
            _ => {
                self.phase = Phase::Over;
                Some(Error::refused(refusal).with_partition(self.partition))
            }
        }
    }

    /// The connection is gone.
    pub(crate) fn lost(&mut self) {
        if self.phase != Phase::Over {
            self.phase = Phase::Idle { reopen_at: None };
        }
        self.abandoned = None;
    }
}
