//! Publishing: four verbs over one window, one lane per partition.
//!
//! Owns: what applications call. Never: waits for longer than the deadline.

pub(crate) mod answers;
mod batch;
mod credit;
pub(crate) mod lane;
pub(crate) mod receipt;
pub(crate) mod shared;
mod window;

pub use receipt::{BatchReceipt, Receipt, Stored};

use crate::client::Client;
use crate::config::{
    DEADLINE_DEFAULT, DEADLINE_MAX, LINGER_DEFAULT, LINGER_MAX, Limits, OnFull, WINDOW_DEFAULT,
};
use crate::error::{Error, Reason, Result};
use crate::message::Message;
use shared::{PublishLane, PublisherOptions, PublisherShared};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use weir_protocol::error_code::{ErrorCode, Outcome};
use weir_protocol::types::Name;
use window::Window;

/// Builds a [`Publisher`]; see [`Client::publisher`].
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until `build`"]
pub struct PublisherBuilder {
    client: Client,
    topic: String,
    producer: Option<String>,
    partition: Option<u32>,
    window: Limits,
    on_full: OnFull,
    deadline: Duration,
    linger: Duration,
}

impl PublisherBuilder {
    pub(crate) fn new(client: Client, topic: &str) -> Self {
        Self {
            client,
            topic: topic.to_owned(),
            producer: None,
            partition: None,
            window: WINDOW_DEFAULT,
            on_full: OnFull::default(),
            deadline: DEADLINE_DEFAULT,
            linger: LINGER_DEFAULT,
        }
    }

    /// How much may be queued and unanswered at once, by count and by bytes. Default: 16,384
    /// messages, 32 MiB.
    pub fn window(mut self, window: Limits) -> Self {
        self.window = window;
        self
    }

    /// What happens when the window is full or the broker grants nothing. Default: wait.
    pub fn on_full(mut self, on_full: OnFull) -> Self {
        self.on_full = on_full;
        self
    }

    /// How long a message may take: waiting for the window, for credit, retries, and the answer.
    /// Default: 30 s; at least 1 ms, at most 7 days. Messages of one batch share the earliest of
    /// their deadlines, which is at most a tenth before their own.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline.clamp(Duration::from_millis(1), DEADLINE_MAX);
        self
    }

    /// How long a batch waits for more messages while another is in flight. When nothing is in
    /// flight a message is sent at once. Default: 1 ms; at most 1 s.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger.min(LINGER_MAX);
        self
    }

    /// Publishes as this durable producer: after a restart of the application it goes on behind
    /// the last stored message, see [`Publisher::next_sequence`]. Opening the producer again
    /// elsewhere ends this publisher.
    ///
    /// Without a name, messages are stored once too, for as long as this publisher lives.
    pub fn idempotent(mut self, producer: impl Into<String>) -> Self {
        self.producer = Some(producer.into());
        self
    }

    /// Sends everything to this partition. Default: by the key's hash; without a key to one
    /// partition after the other, a batch each.
    pub fn partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }

    /// Opens the publisher: checks that the topic exists and that the broker takes messages.
    pub async fn build(self) -> Result<Publisher> {
        let topic = name(&self.topic, "topic")?;
        let producer = self.producer.as_deref().map(|text| name(text, "producer")).transpose()?;
        let view = self.client.topic(topic.as_str()).await?;
        let handle = self.client.handle().clone();
        let topic_state = handle.shared.follow_topic(&topic, view.config.partitions);
        let options = PublisherOptions {
            topic,
            producer,
            partition: self.partition,
            on_full: self.on_full,
            deadline: self.deadline,
            linger: self.linger,
        };
        let window = Arc::new(Window::new(self.window));
        let publisher = Publisher {
            shared: Arc::new(PublisherShared::new(handle, options, window, topic_state)),
        };
        let first = publisher.shared.lane(publisher.shared.first_partition())?;
        publisher.opened(first).await?;
        Ok(publisher)
    }
}

pub(crate) fn name(text: &str, what: &str) -> Result<Name> {
    Name::new(text).map_err(|error| Error::invalid(format!("{what} {text:?}: {error}")))
}

/// Publishes messages to one topic. Clones share window, deadline and order.
///
/// | verb | waits | `Ok` means |
/// |---|---|---|
/// | [`publish`](Self::publish) | until stored | durable |
/// | [`send`](Self::send) | for room in the window | queued; the receipt tells when it is durable |
/// | [`try_send`](Self::try_send) | never | queued; otherwise the message is given back |
/// | [`reserve`](Self::reserve) | for room in the window | room is yours, `Permit::send` cannot wait |
#[derive(Clone)]
pub struct Publisher {
    shared: Arc<PublisherShared>,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

impl Publisher {
    /// Publishes one message and waits until it is stored: with the topic's default durability,
    /// flushed to disk.
    ///
    /// Not cancel safe: dropping the future before the message is queued loses it; afterwards it
    /// is published, and only the notice is lost. Use [`Publisher::reserve`] in `select!`.
    pub async fn publish(&self, message: impl Into<Message>) -> Result<Stored> {
        self.send(message).await?.await
    }

    /// Queues one message, waiting for room in the window until the deadline.
    ///
    /// Messages that one task sends go out in this order within their partition. Not cancel safe:
    /// dropping the future loses the message, unless it had been queued.
    pub async fn send(&self, message: impl Into<Message>) -> Result<Receipt> {
        let message = message.into();
        let bytes = self.shared.check(&message)?;
        let room = self.room(bytes).await?;
        if self.shared.options.on_full == OnFull::Fail
            && let Some(error) = self.shed(&message)
        {
            self.shared.window.release(1, room);
            return Err(error);
        }
        Ok(self.shared.queue(&message, (bytes, room)))
    }

    /// Queues one message if that is possible without waiting, for the window and for the
    /// broker's credit; otherwise gives it back, with the reason and a hint when to try again.
    pub fn try_send(
        &self,
        message: impl Into<Message>,
    ) -> std::result::Result<Receipt, TrySendError> {
        let message = message.into();
        let bytes = match self.shared.check(&message) {
            Ok(bytes) => bytes,
            Err(error) => return Err(TrySendError::new(message, error)),
        };
        if let Some(error) = self.shed(&message) {
            return Err(TrySendError::new(message, error));
        }
        let Some(room) = self.shared.window.try_take(bytes) else {
            return Err(TrySendError::new(message, self.shared.would_block()));
        };
        Ok(self.shared.queue(&message, (bytes, room)))
    }

    /// Waits for room for one message of up to `bytes` (key, headers and payload).
    ///
    /// Cancel safe: dropping the future or the permit gives the room back.
    pub async fn reserve(&self, bytes: usize) -> Result<Permit<'_>> {
        let probe = Message::new(bytes::Bytes::new());
        let bytes = bytes + self.shared.check(&probe)?;
        let room = self.room(bytes).await?;
        Ok(Permit { publisher: self, bytes, room: Some(room) })
    }

    /// Queues several messages in their order, waiting for room like [`Publisher::send`].
    /// The receipt resolves to one result per message.
    ///
    /// Not cancel safe: the messages that were queued before are published. After an error,
    /// messages before the failing one are published too.
    pub async fn send_batch<I>(&self, messages: I) -> Result<BatchReceipt>
    where
        I: IntoIterator,
        I::Item: Into<Message>,
    {
        let mut receipts = Vec::new();
        for message in messages {
            receipts.push(self.send(message).await?);
        }
        Ok(BatchReceipt::new(receipts))
    }

    /// Waits until everything that was sent before is stored; the first failure is returned.
    /// Messages sent while it waits do not keep it.
    ///
    /// Cancel safe.
    pub async fn flush(&self) -> Result<()> {
        let mut completions = Vec::new();
        for lane in self.shared.open_lanes() {
            let (waiting, ring) = lane.lock().flush();
            completions.extend(waiting);
            if ring {
                self.shared.handle.shared.ring(lane.id);
            }
        }
        let mut result = Ok(());
        for completion in completions {
            let stored = Receipt::new(completion, 0).await;
            result = result.and(stored.map(|_| ()));
        }
        result
    }

    /// Takes no more messages, sends what is queued, and waits for the answers for at most
    /// `timeout`. The report counts the messages whose fate is not known by then; they resolve
    /// with an error.
    ///
    /// Other clones are closed too. Cancel safe: what is queued is still sent.
    pub async fn close(&self, timeout: Duration) -> CloseReport {
        self.shared.finish();
        let flushed = tokio::time::timeout(timeout, self.flush()).await;
        let mut report = CloseReport::default();
        if flushed.is_err() {
            for lane in self.shared.open_lanes() {
                let mut core = lane.lock();
                report.unconfirmed += core.unconfirmed();
                core.fail(&lane::LaneCore::closed_error());
                drop(core);
                self.shared.handle.shared.ring(lane.id);
            }
        }
        report
    }

    /// The sequence that the next message of this partition gets. For a producer that was opened
    /// by name this is how many of its messages the partition has stored, over all its lives: an
    /// application that publishes one line after the other to one partition continues there.
    ///
    /// Cancel safe.
    pub async fn next_sequence(&self, partition: u32) -> Result<u64> {
        let lane = self.shared.lane(partition)?;
        self.opened(lane).await
    }

    /// Partitions of the topic, as far as this client knows.
    pub fn partitions(&self) -> u32 {
        self.shared.partitions()
    }

    /// Why the broker grants no credit although messages wait; none = nothing is held back.
    pub fn blocked(&self) -> Option<Reason> {
        self.shared.blocked()
    }

    /// Waits until the broker has opened the lane; returns its next sequence.
    async fn opened(&self, lane: &PublishLane) -> Result<u64> {
        let shared = &self.shared.handle.shared;
        let wait = async {
            loop {
                let changed = lane.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if let Some(sequence) = lane.lock().next_sequence() {
                    return sequence;
                }
                if lane.lock().want_open() {
                    shared.ring(lane.id);
                }
                changed.await;
            }
        };
        let opened = shared.within_request_timeout("opening a publisher", wait).await;
        opened.map_err(|error| match error.error_code() {
            // What the broker answered meanwhile says more than that it took too long.
            Some(ErrorCode::DeadlineLocal) => {
                let told = lane.lock().causes();
                let causes = error.causes().iter().cloned().chain(told).collect();
                Error::deadline(error.outcome(), causes, error.overload())
            }
            _ => error,
        })
    }

    async fn room(&self, bytes: usize) -> Result<usize> {
        if let Some(room) = self.shared.window.try_take(bytes) {
            return Ok(room);
        }
        if self.shared.options.on_full == OnFull::Fail {
            return Err(self.shared.would_block());
        }
        let deadline = self.shared.options.deadline;
        match tokio::time::timeout(deadline, self.shared.window.take(bytes)).await {
            Ok(Some(room)) => Ok(room),
            Ok(None) => Err(lane::LaneCore::closed_error()),
            Err(_) => {
                let mut causes = vec!["the window is full".to_owned()];
                causes.push(self.shared.handle.shared.status.borrow().to_string());
                let reason = self.shared.blocked().unwrap_or(Reason::ClientWindow);
                Err(Error::deadline(Outcome::NotStored, causes, Some(reason)))
            }
        }
    }

    /// The error of a message that would wait for the broker's credit.
    fn shed(&self, message: &Message) -> Option<Error> {
        match self.shared.blocked_for(message) {
            Ok(None) => None,
            Ok(Some(_)) => Some(self.shared.would_block()),
            Err(error) => Some(error),
        }
    }
}

/// Room for one message; see [`Publisher::reserve`].
#[derive(Debug)]
#[must_use = "dropping the permit gives its room back"]
pub struct Permit<'a> {
    publisher: &'a Publisher,
    bytes: usize,
    room: Option<usize>,
}

impl Permit<'_> {
    /// Queues the message. Never waits; a message larger than the reservation is not queued, and
    /// its receipt says so.
    pub fn send(mut self, message: impl Into<Message>) -> Receipt {
        let message = message.into();
        let shared = &self.publisher.shared;
        let bytes = match shared.check(&message) {
            Ok(bytes) if bytes <= self.bytes + message.headers.len() * 6 => bytes,
            Ok(bytes) => {
                let reserved = self.bytes;
                let text = format!("the message takes {bytes} bytes, {reserved} were reserved");
                return Receipt::failed(Error::invalid(text));
            }
            Err(error) => return Receipt::failed(error),
        };
        match self.room.take() {
            Some(room) => shared.queue(&message, (bytes, room)),
            None => Receipt::failed(Error::invalid("the permit was used")),
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if let Some(room) = self.room.take() {
            self.publisher.shared.window.release(1, room);
        }
    }
}

/// A message that could not be queued without waiting, with the reason.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct TrySendError {
    message: Box<Message>,
    error: Error,
}

impl TrySendError {
    fn new(message: Message, error: Error) -> Self {
        Self { message: Box::new(message), error }
    }

    /// Why.
    pub fn error(&self) -> &Error {
        &self.error
    }

    /// The message, to send it later or elsewhere.
    pub fn into_message(self) -> Message {
        *self.message
    }
}

impl From<TrySendError> for Error {
    fn from(error: TrySendError) -> Self {
        error.error
    }
}

/// What closing left undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct CloseReport {
    /// Messages whose fate was not known when the time was over.
    pub unconfirmed: u64,
}

impl CloseReport {
    /// Whether everything is stored.
    pub fn is_clean(&self) -> bool {
        self.unconfirmed == 0
    }
}
