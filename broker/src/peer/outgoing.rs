//! One stream of appends on its way out.
//!
//! Owns: what waits for credit, what waits for its answer, and how the stream ended.
//! Never: a lock, a task or a clock: it is told the time.

use super::credit::Credit;
use super::link::{Failure, malformed};
use crate::replication::PeerLost;
use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};
use tokio::time::Instant;
use weir_protocol::frame::Demand;
use weir_protocol::peer::{Append, AppendResult, Appended, GroupAddress, LogPlace, PeerFrame};
use weir_protocol::types::StreamId;

/// What a stream has to send.
pub(super) enum Next {
    Nothing,
    /// More may follow.
    Frame(PeerFrame),
    /// Nothing follows before something has come.
    Last(PeerFrame),
}

/// One stream of appends.
pub(super) struct Outgoing {
    address: GroupAddress,
    credit: Credit,
    queue: VecDeque<Append>,
    queued_cost: u64,
    /// Number and cost of appends that were sent and not answered.
    under_way: VecDeque<(u64, u64)>,
    phase: Phase,
    /// The newest answer that was not taken yet.
    flushed: Option<LogPlace>,
    /// When something was sent first or answered last.
    progress: Option<Instant>,
    waker: Option<Waker>,
    /// Number of the last append that was sent; none before the stream was announced.
    sent: Option<u64>,
    /// The peer knows that more waits than it granted.
    demanded: bool,
}

enum Phase {
    Open,
    /// Nothing more will be pushed.
    Closed,
    /// This is the last answer; taken or not.
    Ended(Option<Result<AppendResult, PeerLost>>),
}

impl Outgoing {
    pub(super) fn new(address: GroupAddress) -> Self {
        Self {
            address,
            credit: Credit::new(),
            queue: VecDeque::new(),
            queued_cost: 0,
            under_way: VecDeque::new(),
            phase: Phase::Open,
            flushed: None,
            progress: None,
            waker: None,
            sent: None,
            demanded: false,
        }
    }

    /// Ready while credit covers all that waits, so that no more than one append ever waits for it.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), PeerLost>> {
        match &self.phase {
            Phase::Ended(Some(Err(lost))) => return Poll::Ready(Err(*lost)),
            Phase::Closed | Phase::Ended(_) => return Poll::Ready(Err(PeerLost::Broken)),
            Phase::Open => {}
        }
        if self.queue.is_empty() || self.credit.fits(self.queued_cost) {
            return Poll::Ready(Ok(()));
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(super) fn push(&mut self, append: Append) {
        self.queued_cost += append.cost();
        self.queue.push_back(append);
    }

    pub(super) fn close(&mut self) {
        if matches!(self.phase, Phase::Open) {
            self.phase = Phase::Closed;
        }
    }

    pub(super) fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<AppendResult, PeerLost>>> {
        if let Some(place) = self.flushed.take() {
            return Poll::Ready(Some(Ok(AppendResult::Flushed(place))));
        }
        let waits = self.waits();
        match &mut self.phase {
            Phase::Ended(last) => return Poll::Ready(last.take()),
            Phase::Closed if !waits => return Poll::Ready(None),
            Phase::Open | Phase::Closed => {}
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// What is to be sent next, under this number.
    pub(super) fn next(&mut self, stream: StreamId, now: Instant) -> Next {
        let Some(front) = self.queue.front() else { return Next::Nothing };
        let Some(sent) = self.sent else {
            self.sent = Some(0);
            return Next::Frame(PeerFrame::AppendOpen(stream, self.address));
        };
        let cost = front.cost();
        if !self.credit.covers(cost) {
            if std::mem::replace(&mut self.demanded, true) {
                return Next::Nothing;
            }
            let largest = self.queue.iter().map(Append::cost).max().unwrap_or(0);
            let demand = Demand { cost: self.queued_cost, largest };
            return Next::Last(PeerFrame::Demand(stream, demand));
        }
        let Some(append) = self.queue.pop_front() else { return Next::Nothing };
        let number = sent + 1;
        self.sent = Some(number);
        self.queued_cost -= cost;
        self.credit.spend(cost);
        self.under_way.push_back((number, cost));
        self.progress.get_or_insert(now);
        self.wake_one();
        Next::Frame(PeerFrame::Append(Append { stream, number, ..append }))
    }

    pub(super) fn on_grant(&mut self, limit: u64) {
        if self.credit.raise(limit) {
            self.demanded = false;
            self.wake_one();
        }
    }

    pub(super) fn on_appended(&mut self, appended: &Appended, now: Instant) -> Result<(), Failure> {
        if self.sent.is_none_or(|sent| appended.number > sent) {
            return Err(malformed("an append is answered that was not sent"));
        }
        while let Some((_, cost)) = self.under_way.pop_front_if(|(n, _)| *n <= appended.number) {
            self.credit.answer(cost);
        }
        self.progress = (!self.under_way.is_empty()).then_some(now);
        self.demanded = false;
        self.credit.raise(appended.grant.limit_cost);
        match appended.result {
            AppendResult::Flushed(place) => self.flushed = Some(place),
            last => self.end(Ok(last)),
        }
        self.wake_one();
        Ok(())
    }

    /// The stream is over without an answer.
    pub(super) fn lose(&mut self, lost: PeerLost) {
        self.end(Err(lost));
        self.wake_one();
    }

    fn end(&mut self, last: Result<AppendResult, PeerLost>) {
        if matches!(self.phase, Phase::Ended(_)) {
            return;
        }
        self.phase = Phase::Ended(Some(last));
        self.queue.clear();
        self.under_way.clear();
        (self.queued_cost, self.progress) = (0, None);
    }

    /// Whether something waits, to be sent or to be answered.
    pub(super) fn waits(&self) -> bool {
        !self.queue.is_empty() || !self.under_way.is_empty()
    }

    /// Whether something is under way and nothing was answered since.
    pub(super) fn is_idle_since(&self, since: Instant) -> bool {
        self.progress.is_some_and(|progress| progress <= since)
    }

    /// Whether the peer knows of it and does not know that it is over.
    pub(super) fn is_open_there(&self) -> bool {
        self.sent.is_some() && !matches!(self.phase, Phase::Ended(_))
    }

    fn wake_one(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The stream is gone: whoever waits finds that out.
    pub(super) fn wake(mut self) {
        self.wake_one();
    }
}
