//! Owns: a batch on its way: first open and growing, then closed, then sent.
//! Never: decides when; the lane does.
//! Invariant: every batch ends by `resolve`, which gives its room in the window back once.

use super::receipt::{Completion, Receipt, Stored};
use super::window::Window;
use crate::error::{Error, Result};
use crate::message::Message;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::time::Instant;
use weir_protocol::batch::{BatchBuilder, BatchHeader};
use weir_protocol::frame::Refusal;
use weir_protocol::limits::MESSAGE_BYTES_MAX;
use weir_protocol::types::Sequence;

/// The batch that takes messages.
#[derive(Debug)]
pub(crate) struct OpenBatch {
    builder: BatchBuilder,
    completion: Arc<Completion>,
    /// The most that it will cost of the broker's credit.
    pub(crate) cost: u64,
    window_bytes: usize,
    /// When its first message came; meaningless while it is empty.
    pub(crate) since: Instant,
    /// Of its first message.
    pub(crate) deadline: Instant,
}

impl OpenBatch {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            builder: BatchBuilder::new(MESSAGE_BYTES_MAX),
            completion: Arc::default(),
            cost: 0,
            window_bytes: 0,
            since: now,
            deadline: now,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.builder.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.builder.is_full()
    }

    pub(crate) fn records(&self) -> u32 {
        self.builder.record_count()
    }

    pub(crate) fn wire_len(&self) -> usize {
        self.builder.wire_len()
    }

    pub(crate) fn completion(&self) -> &Arc<Completion> {
        &self.completion
    }

    /// Adds a message whose limits were checked.
    pub(crate) fn push(
        &mut self,
        message: &Message,
        now_ms: u64,
        cost: u64,
        window: usize,
    ) -> Receipt {
        let number = self.builder.record_count();
        let timestamp_ms = message.timestamp_ms.unwrap_or(now_ms);
        let pushed = self.builder.push(
            timestamp_ms,
            message.key.as_deref(),
            &message.headers,
            &message.payload,
        );
        if let Err(error) = pushed {
            // Checked by the caller against the same limit; should it ever differ, the message
            // fails alone and takes nothing.
            return Receipt::failed(Error::invalid(error.to_string()));
        }
        self.cost += cost;
        self.window_bytes += window;
        Receipt::new(self.completion.clone(), number)
    }

    /// Closes the batch and starts the next one.
    pub(crate) fn close(&mut self) -> Batch {
        let records = self.builder.record_count();
        let built = self.builder.finish();
        let batch = Batch {
            cost: built.header.cost(),
            header: built.header,
            body: built.body,
            records,
            window_bytes: self.window_bytes,
            completion: std::mem::take(&mut self.completion),
            deadline: self.deadline,
            attempts: 0,
            answer: None,
            in_doubt: false,
        };
        self.cost = 0;
        self.window_bytes = 0;
        batch
    }
}

/// What the broker said of a sent batch that is not stored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    /// Certainly not in the log.
    NotStored(Refusal),
    /// Certainly not in the log, through no fault of its own.
    Behind,
    /// Only the same sequence can tell.
    Unknown(Refusal),
}

/// A closed batch.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) header: BatchHeader,
    pub(crate) body: bytes::Bytes,
    pub(crate) cost: u64,
    pub(crate) records: u32,
    window_bytes: usize,
    completion: Arc<Completion>,
    pub(crate) deadline: Instant,
    /// How often it was sent.
    pub(crate) attempts: u32,
    /// Only while it is in flight.
    pub(crate) answer: Option<Answer>,
    /// Its fate was unknown once: what refuses it now says nothing of the attempt before.
    pub(crate) in_doubt: bool,
}

impl Batch {
    pub(crate) fn completion(&self) -> &Arc<Completion> {
        &self.completion
    }

    /// Nobody knows whether it is stored.
    pub(crate) fn doubt(&mut self, refusal: Refusal) {
        self.answer = Some(Answer::Unknown(refusal));
        self.in_doubt = true;
    }

    pub(crate) fn is_unknown(&self) -> bool {
        matches!(self.answer, Some(Answer::Unknown(_)))
    }

    pub(crate) fn base_sequence(&self) -> Sequence {
        self.header.base_sequence
    }

    pub(crate) fn end_sequence(&self) -> u64 {
        self.header.base_sequence.0 + u64::from(self.records)
    }

    /// Whether its receipts were told already (a deadline passed while it was in flight).
    pub(crate) fn is_reported(&self) -> bool {
        self.completion.is_resolved()
    }

    /// Tells its receipts while the batch itself is still in flight.
    pub(crate) fn report(&self, error: Error) {
        self.completion.resolve(Err(error));
    }

    /// The end of the batch.
    pub(crate) fn resolve(self, outcome: Result<Stored>, window: &Window) {
        window.release(self.records as usize, self.window_bytes);
        self.completion.resolve(outcome);
    }
}

/// Batches in order, with the sum of their costs.
#[derive(Debug, Default)]
pub(crate) struct BatchQueue {
    batches: VecDeque<Batch>,
    cost: u64,
}

impl BatchQueue {
    /// What all of them cost together.
    pub(crate) fn cost(&self) -> u64 {
        self.cost
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub(crate) fn front(&self) -> Option<&Batch> {
        self.batches.front()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Batch> + Clone {
        self.batches.iter()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Batch> {
        self.batches.iter_mut()
    }

    pub(crate) fn push_back(&mut self, batch: Batch) {
        self.cost += batch.cost;
        self.batches.push_back(batch);
    }

    pub(crate) fn pop_front(&mut self) -> Option<Batch> {
        self.remove(0)
    }

    pub(crate) fn remove(&mut self, at: usize) -> Option<Batch> {
        let batch = self.batches.remove(at)?;
        self.cost -= batch.cost;
        Some(batch)
    }

    /// Takes all of them.
    pub(crate) fn take(&mut self) -> VecDeque<Batch> {
        self.cost = 0;
        std::mem::take(&mut self.batches)
    }
}
