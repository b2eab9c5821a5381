//! Places for answers, paid for before the question was passed on.
//!
//! Owns: the promise that every question is answered exactly once, even where it is dropped.
//! Never: waits.

use super::outbox::Outbox;
use std::fmt;
use std::sync::Arc;
use tokio::time::Instant;
use weir_protocol::error_code::{ErrorCode, Outcome};
use weir_protocol::frame::{Refusal, StoredRange};
use weir_protocol::types::{Sequence, StreamId};

/// An answer to a publish.
#[derive(Debug)]
pub(super) enum Answer {
    /// With the time at which its publish was read.
    Stored(StoredRange, Instant),
    Refused(Sequence, u32, Box<Refusal>),
}

/// What is answered where nobody did: the outcome is not known.
fn lost() -> Refusal {
    let text =
        "the partition stopped before the outcome was known; ask again under the same sequence";
    let mut refusal = Refusal::new(ErrorCode::LeaderLost, text);
    refusal.outcome = Outcome::Unknown;
    refusal
}

/// The place for the answer to one accepted PUBLISH, paid for by its credit.
///
/// Dropped without an answer it says LEADER_LOST, outcome unknown.
#[must_use = "a publish must be answered"]
pub struct PublishReply {
    outbox: Option<Arc<Outbox>>,
    stream: StreamId,
    base_sequence: Sequence,
    record_count: u32,
    read: Instant,
}

impl PublishReply {
    pub(super) fn new(
        outbox: Arc<Outbox>,
        stream: StreamId,
        (base_sequence, record_count): (Sequence, u32),
        read: Instant,
    ) -> Self {
        Self { outbox: Some(outbox), stream, base_sequence, record_count, read }
    }

    /// The batch is stored.
    pub fn stored(mut self, range: StoredRange) {
        self.answer(Answer::Stored(range, self.read));
    }

    /// The batch is not stored, or nobody knows.
    pub fn refused(mut self, refusal: Refusal) {
        self.answer(Answer::Refused(self.base_sequence, self.record_count, Box::new(refusal)));
    }

    /// Sequence of the batch's first record.
    pub fn base_sequence(&self) -> Sequence {
        self.base_sequence
    }

    fn answer(&mut self, answer: Answer) {
        if let Some(outbox) = self.outbox.take() {
            outbox.answer(self.stream, answer);
        }
    }
}

impl Drop for PublishReply {
    fn drop(&mut self) {
        if self.outbox.is_some() {
            self.answer(Answer::Refused(self.base_sequence, self.record_count, Box::new(lost())));
        }
    }
}

impl fmt::Debug for PublishReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublishReply")
            .field("stream", &self.stream)
            .field("base_sequence", &self.base_sequence)
            .field("record_count", &self.record_count)
            .finish_non_exhaustive()
    }
}

type Deliver<T> = Box<dyn FnOnce(Result<T, Refusal>) + Send>;

/// The place for the answer to one request, paid for by its slot.
///
/// Dropped without an answer it says LEADER_LOST, outcome unknown.
#[must_use = "a request must be answered"]
pub struct RequestReply<T>(Option<Deliver<T>>);

impl<T> RequestReply<T> {
    /// A place whose answer goes to `deliver`, which must not wait.
    pub fn new(deliver: impl FnOnce(Result<T, Refusal>) + Send + 'static) -> Self {
        Self(Some(Box::new(deliver)))
    }

    /// Answers.
    pub fn done(mut self, result: Result<T, Refusal>) {
        if let Some(deliver) = self.0.take() {
            deliver(result);
        }
    }
}

impl<T: Send + 'static> RequestReply<T> {
    /// A place whose answer is awaited.
    pub fn channel() -> (Self, tokio::sync::oneshot::Receiver<Result<T, Refusal>>) {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let deliver = move |result| {
            // Whoever asked may have gone: then nobody wants the answer.
            let _ = sender.send(result);
        };
        (Self::new(deliver), receiver)
    }
}

impl<T> Drop for RequestReply<T> {
    fn drop(&mut self) {
        if let Some(deliver) = self.0.take() {
            deliver(Err(lost()));
        }
    }
}

impl<T> fmt::Debug for RequestReply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestReply").field("answered", &self.0.is_none()).finish()
    }
}
