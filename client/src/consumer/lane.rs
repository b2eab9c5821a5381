//! One consumer's way to one partition: a pure state machine.
//!
//! Owns: where reading stands, what is buffered, what is settled, the credit that follows.
//! Never: touches a socket or a clock; gives credit back for what the application has not settled.
//! Invariants: records are handed over in the order of their offsets, each once per consumer;
//! buffered and unsettled bytes together stay within the credit, but for the last delivery.

use crate::config::{Limits, Start};
use crate::error::Error;
use crate::retry::Backoff;
use crate::seams::Chance;
use bytes::Bytes;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;
use weir_protocol::batch::{BatchHeader, BatchType, HeaderError};
use weir_protocol::error_code::{Action, ErrorCode};
use weir_protocol::frame::{self, Deliver, Frame, Grant, Refusal, Settle, Settled, Subscribed};
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
}

/// Credit that is not back yet: the records below `end` hold it.
#[derive(Debug, Clone, Copy)]
struct Held {
    end: u64,
    bytes: u64,
    messages: u64,
}

/// Where the lane stands with the broker.
#[derive(Debug, Clone, PartialEq)]
enum Phase {
    Idle {
        reopen_at: Option<Instant>,
    },
    Opening,
    Open(StreamId),
    /// Ended on purpose or for good.
    Over,
}

/// What the driver does after a visit.
#[derive(Debug, Default)]
pub(crate) struct ReadVisit {
    /// Ask for a stream that starts here, with this credit.
    pub(crate) open: Option<(frame::Start, Grant)>,
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

/// Cumulative credit of one stream.
#[derive(Debug, Default)]
struct Credit {
    window: (u64, u64),
    /// Bytes and messages received on this stream.
    received: (u64, u64),
    /// The newest limits that were sent.
    granted: (u64, u64),
    /// Bytes and messages that are held, from earlier streams too.
    held: (u64, u64),
}

impl Credit {
    fn limits(&self) -> (u64, u64) {
        let limit =
            |received: u64, window: u64, held: u64| (received + window).saturating_sub(held);
        (
            limit(self.received.0, self.window.0, self.held.0),
            limit(self.received.1, self.window.1, self.held.1),
        )
    }

    /// The grant that is worth a frame, if there is one.
    fn due(&self) -> Option<(u64, u64)> {
        let limits = self.limits();
        let grown = |new: u64, old: u64, window: u64| {
            new > old && (new - old >= window / 4 || self.held == (0, 0))
        };
        let worth = grown(limits.0, self.granted.0, self.window.0)
            || grown(limits.1, self.granted.1, self.window.1);
        worth.then(|| (limits.0.max(self.granted.0), limits.1.max(self.granted.1)))
    }
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
}

/// The state of one partition's reading.
#[derive(Debug)]
pub(crate) struct ReadLane {
    pub(crate) partition: u32,
    start: Start,
    durable: bool,
    phase: Phase,
    view: Option<View>,
    /// Behind the last record that was received.
    received: u64,
    /// Behind the last record that was handed over.
    position: u64,
    buffered: VecDeque<RawBatch>,
    held: VecDeque<Held>,
    credit: Credit,
    settling: Settling,
    damaged: u32,
    abandoned: Option<StreamId>,
    backoff: Backoff,
}

impl ReadLane {
    pub(crate) fn new(partition: u32, start: Start, durable: bool, window: Limits) -> Self {
        let window = (window.bytes.max(1) as u64, window.messages.max(1) as u64);
        Self {
            partition,
            start,
            durable,
            phase: Phase::Idle { reopen_at: None },
            view: None,
            received: 0,
            position: 0,
            buffered: VecDeque::new(),
            held: VecDeque::new(),
            credit: Credit { window, ..Credit::default() },
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

    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    pub(crate) fn has_batch(&self) -> bool {
        !self.buffered.is_empty()
    }

    /// The newest settle, while the broker has not committed it.
    pub(crate) fn uncommitted(&self) -> Option<u64> {
        Some(self.settling.upto).filter(|upto| *upto > self.settling.committed)
    }

    /// Behind the newest settle that the broker has committed.
    pub(crate) fn committed(&self) -> u64 {
        self.settling.committed
    }

    // ---- the application's side ----

    /// Takes the next batch, after checking its body. An error: the batch is damaged for good.
    pub(crate) fn take(&mut self) -> Option<Result<RawBatch, Error>> {
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
            return Some(Error::protocol(ErrorCode::BadChecksum, text));
        }
        tracing::warn!(partition, offset = at, %error, "a batch arrived damaged, asking again");
        self.rewind(at.max(batch.skip_below));
        None
    }

    /// Reads again from this offset on, on a new stream.
    fn rewind(&mut self, to: u64) {
        self.buffered.clear();
        self.received = to;
        while self.held.back().is_some_and(|held| held.end > to) {
            if let Some(held) = self.held.pop_back() {
                self.unhold(held);
            }
        }
        if let Phase::Open(stream) = self.phase {
            self.abandoned = Some(stream);
            self.phase = Phase::Idle { reopen_at: None };
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
        while self.held.front().is_some_and(|held| held.end <= upto) {
            if let Some(held) = self.held.pop_front() {
                self.unhold(held);
            }
        }
        let first = self.durable && self.settling.due.is_none();
        if first {
            self.settling.due = Some(Instant::now() + SETTLE_DELAY);
        }
        first || confirm || self.credit.due().is_some()
    }

    fn unhold(&mut self, held: Held) {
        self.credit.held.0 -= held.bytes;
        self.credit.held.1 -= held.messages;
    }

    // ---- the driver's side ----

    /// Does what is due. `connected` = frames can be sent; `wish` = what the application wants.
    pub(crate) fn visit(
        &mut self,
        now: Instant,
        connected: bool,
        wish: Wish,
        out: &mut Vec<Frame>,
    ) -> ReadVisit {
        let ending = wish == Wish::End;
        let mut visit = ReadVisit { close: self.abandoned.take(), ..ReadVisit::default() };
        if !connected {
            visit.finished = ending;
            return visit;
        }
        match self.phase {
            Phase::Idle { .. } if ending => self.phase = Phase::Over,
            Phase::Idle { reopen_at } if reopen_at.is_none_or(|at| at <= now) => {
                self.phase = Phase::Opening;
                visit.open = Some(self.ask());
            }
            Phase::Idle { reopen_at } => visit.timer = reopen_at,
            Phase::Open(stream) => {
                self.tell_settled(now, stream, ending, out);
                if ending {
                    visit.close = Some(stream);
                    self.phase = Phase::Over;
                } else if let (Wish::More, Some((limit_cost, limit_messages))) =
                    (wish, self.credit.due())
                {
                    self.credit.granted = (limit_cost, limit_messages);
                    out.push(Frame::Grant(
                        stream,
                        Grant { limit_cost, limit_messages, ..Grant::default() },
                    ));
                }
                visit.timer = self.settling.due;
            }
            Phase::Opening | Phase::Over => {}
        }
        visit.finished = self.phase == Phase::Over;
        visit
    }

    fn ask(&mut self) -> (frame::Start, Grant) {
        self.credit.received = (0, 0);
        self.credit.granted = self.credit.limits();
        let (limit_cost, limit_messages) = self.credit.granted;
        let start = match (self.view, self.start) {
            (Some(_), _) => frame::Start::Offset(Offset(self.received)),
            (None, Start::Earliest) => frame::Start::Earliest,
            (None, Start::Latest) => frame::Start::Latest,
            (None, Start::Offset(offset)) => frame::Start::Offset(Offset(offset)),
            (None, Start::Time(ms)) => frame::Start::Time(ms),
        };
        (start, Grant { limit_cost, limit_messages, ..Grant::default() })
    }

    fn tell_settled(
        &mut self,
        now: Instant,
        stream: StreamId,
        at_once: bool,
        out: &mut Vec<Frame>,
    ) {
        if !self.durable {
            return;
        }
        let settling = &mut self.settling;
        let confirm = settling.wanted > settling.asked;
        let due = at_once || settling.due.is_some_and(|due| due <= now);
        if confirm || (due && settling.upto > settling.sent) {
            settling.sent = settling.upto;
            if confirm {
                settling.asked = settling.upto;
            }
            out.push(Frame::Settle(Settle { stream, upto: Offset(settling.upto), confirm }));
        }
        if due || confirm {
            settling.due = None;
        }
    }

    /// The broker opened the stream.
    pub(crate) fn opened(&mut self, stream: StreamId, subscribed: &Subscribed) {
        self.phase = Phase::Open(stream);
        self.backoff.reset();
        self.settling.sent = 0;
        self.settling.asked = 0;
        if self.durable && self.settling.upto > self.settling.committed {
            self.settling.due.get_or_insert_with(Instant::now);
        }
        let high_watermark = subscribed.high_watermark.0;
        match &mut self.view {
            Some(view) => {
                view.high_watermark = view.high_watermark.max(high_watermark);
                view.skipped += subscribed.log_start.0.saturating_sub(self.received);
                self.received = self.received.max(subscribed.log_start.0);
            }
            None => {
                let start = subscribed.start.0;
                let skipped = subscribed.skipped;
                self.view = Some(View { start, end: high_watermark, high_watermark, skipped });
                self.received = start;
                self.position = start;
                self.settling.upto = start;
                self.settling.committed = start;
            }
        }
    }

    /// Takes a delivery in. An error: the stream is damaged.
    pub(crate) fn delivered(&mut self, deliver: &Deliver) -> Result<(), HeaderError> {
        if let Some(view) = &mut self.view {
            view.high_watermark = view.high_watermark.max(deliver.high_watermark.0);
        }
        for slice in &deliver.batches {
            self.credit.received.0 += slice.len() as u64;
        }
        self.credit.received.1 += u64::from(deliver.record_count);
        for slice in &deliver.batches {
            self.take_slice(slice.clone(), deliver.salt)?;
        }
        Ok(())
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
            let end = header.end_offset().0;
            // Control batches and the like stand between the records; a reconnected stream may
            // repeat what was received.
            if header.batch_type != BatchType::Data || end <= self.received {
                continue;
            }
            let held =
                Held { end, bytes: stored.len() as u64, messages: u64::from(header.record_count) };
            self.credit.held.0 += held.bytes;
            self.credit.held.1 += held.messages;
            self.held.push_back(held);
            let skip_below = self.received;
            self.received = end;
            let body = stored.slice(BATCH_HEADER_BYTES..whole);
            self.buffered.push_back(RawBatch { header, body, skip_below });
        }
        Ok(())
    }

    /// A delivery could not be read: asks again on a new stream, a few times.
    pub(crate) fn unreadable(&mut self, error: HeaderError) -> Option<Error> {
        self.damaged += 1;
        if self.damaged > DAMAGED_ATTEMPTS_MAX {
            let text =
                format!("partition {}, behind offset {}: {error}", self.partition, self.received);
            return Some(Error::protocol(ErrorCode::BadChecksum, text));
        }
        if let Phase::Open(stream) = self.phase {
            self.abandoned = Some(stream);
            self.phase = Phase::Idle { reopen_at: None };
        }
        None
    }

    /// A settle is committed, or was refused.
    pub(crate) fn settled(&mut self, settled: &Settled) {
        self.settling.committed = self.settling.committed.max(settled.upto.0);
        if let Some(refusal) = &settled.refusal {
            tracing::warn!(partition = self.partition, code = refusal.code, "{}", refusal.text);
            self.settling.wanted = self.settling.wanted.min(settled.upto.0);
        }
    }

    /// The broker did not open the stream, or ended it. Some: for good.
    pub(crate) fn refused(
        &mut self,
        refusal: &Refusal,
        now: Instant,
        chance: &Chance,
    ) -> Option<Error> {
        if self.phase == Phase::Over {
            return None;
        }
        match Action::of(refusal.code) {
            Action::Wait
            | Action::StopTopic
            | Action::Reconnect
            | Action::Unknown
            | Action::Resync => {
                let hint = Duration::from_millis(u64::from(refusal.retry_after_ms));
                let delay = hint.max(self.backoff.next(chance));
                self.phase = Phase::Idle { reopen_at: Some(now + delay) };
                None
            }
            _ => {
                self.phase = Phase::Over;
                Some(Error::refused(refusal))
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
