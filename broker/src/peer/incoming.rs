//! One stream of appends on its way in.
//!
//! Owns: what it was granted, what is not answered yet, and what is owed to its leader.
//! Never: a task or a clock; takes more than it granted.

use super::credit::{Credit, grant_of};
use super::link::{Failure, malformed};
use super::replicas::PaidAppend;
use crate::budget::Draft;
use std::collections::VecDeque;
use tokio::sync::{mpsc, oneshot};
use weir_protocol::frame::Grant;
use weir_protocol::peer::limits::{INITIAL_CREDIT_BYTES, STREAM_WINDOW_BYTES_MAX};
use weir_protocol::peer::{Append, AppendResult, Appended, PeerFrame};
use weir_protocol::types::StreamId;

/// One stream of appends of a leader.
pub(super) struct Incoming {
    /// To the replica.
    appends: mpsc::Sender<PaidAppend>,
    /// Dropping it ends the replica's side.
    _alive: oneshot::Sender<()>,
    credit: Credit,
    window: u64,
    /// Number and cost of appends that are not answered.
    unanswered: VecDeque<(u64, u64)>,
    received: u64,
    answered: u64,
    /// An answer to be written.
    due: Option<AppendResult>,
    grant_due: bool,
}

impl Incoming {
    /// A stream whose appends go to `appends`, until `alive` is dropped.
    pub(super) fn new(appends: mpsc::Sender<PaidAppend>, alive: oneshot::Sender<()>) -> Self {
        Self {
            appends,
            _alive: alive,
            credit: Credit::new(),
            window: INITIAL_CREDIT_BYTES,
            unanswered: VecDeque::new(),
            received: 0,
            answered: 0,
            due: None,
            grant_due: false,
        }
    }

    pub(super) fn covers(&self, cost: u64) -> bool {
        self.credit.covers(cost)
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.unanswered.is_empty() && self.due.is_none()
    }

    /// Hands an append to the replica, and with it the memory that it was drawn on.
    pub(super) fn on_append(
        &mut self,
        append: Append,
        draft: Option<Draft>,
    ) -> Result<(), Failure> {
        if self.is_over() {
            return Ok(());
        }
        if append.number != self.received + 1 {
            return Err(malformed("appends of a stream are not in order"));
        }
        let cost = append.cost();
        if !self.covers(cost) {
            return Err(malformed("an append exceeds its stream's credit"));
        }
        self.received = append.number;
        self.credit.spend(cost);
        self.unanswered.push_back((append.number, cost));
        // A replica that takes no more says so by its last answer.
        let _ = self.appends.try_send((append, draft));
        Ok(())
    }

    /// The leader has more than it may send. Says whether it is granted more.
    pub(super) fn on_demand(&mut self, cost: u64, has_room: bool) -> bool {
        if has_room {
            let wanted = self.credit.outstanding().saturating_add(cost);
            self.window = (self.window * 2).max(wanted).min(STREAM_WINDOW_BYTES_MAX);
        }
        let rises = self.credit.open(self.window);
        self.grant_due |= rises;
        rises
    }

    /// Memory is short: what is answered is not granted anew beyond the first window.
    pub(super) fn shrink(&mut self) {
        self.window = INITIAL_CREDIT_BYTES;
    }

    /// What is to be written, if anything.
    pub(super) fn next(&mut self, stream: StreamId) -> Option<PeerFrame> {
        let (grant, number): (Grant, _) = (grant_of(self.credit.limit()), self.answered);
        let grant_due = std::mem::take(&mut self.grant_due);
        match self.due.take() {
            Some(result) => Some(PeerFrame::Appended(Appended { stream, number, result, grant })),
            None => grant_due.then_some(PeerFrame::Grant(stream, grant)),
        }
    }

    /// Whether the answer that is to be written is the last.
    pub(super) fn is_over(&self) -> bool {
        self.due.is_some_and(|due| !matches!(due, AppendResult::Flushed(_)))
    }

    pub(super) fn on_answer(&mut self, result: AppendResult) {
        if self.is_over() {
            return;
        }
        if let AppendResult::Flushed(_) = result {
            // A replica answers each append once.
            let Some((number, cost)) = self.unanswered.pop_front() else { return };
            self.answered = number;
            self.credit.answer(cost);
            self.credit.open(self.window);
        } else {
            self.answered = self.received;
            self.unanswered.clear();
        }
        self.due = Some(result);
    }
}
