//! What others ask of a partition, and the places for the answers.
//!
//! Owns: the vocabulary of the mailbox.
//! Never: a decision.

use crate::connection::outbox::{ConsumerId, ConsumerPort, PublishReply, RequestReply};
use crate::flow::Reservation;
use bytes::Bytes;
use tokio::time::Instant;
use weir_protocol::batch::BatchHeader;
use weir_protocol::frame::{MemberId, Needs, Start, TopicConfig};
use weir_protocol::types::{Name, Offset, ProducerId, Sequence, Term};

/// One request to a partition. Each carries the place for its own answer.
#[derive(Debug)]
pub enum Request {
    /// A publisher attaches; older epochs of its producer are fenced from here on.
    OpenPublisher {
        /// Identity and epoch; none = not idempotent.
        producer: Option<(ProducerId, u32)>,
        /// Where the publisher goes on.
        reply: RequestReply<PublisherState>,
    },
    /// One batch.
    Publish(PublishRequest),
    /// A consumer attaches.
    Subscribe(SubscribeRequest),
    /// A consumer joins those that share a subscription; of partition 0.
    Join(JoinRequest),
    /// Credit, settle or lane of a consumer changed, or a member said something.
    Poke(ConsumerId),
    /// The consumer is gone.
    CloseConsumer(ConsumerId),
    /// The topic's configuration changed.
    Configure(TopicConfig),
    /// Removes a durable subscription; answers whether there was one.
    DeleteSubscription {
        /// Its name.
        name: Name,
        /// Whether it existed.
        reply: RequestReply<bool>,
    },
    /// Refuse new publishes with DRAINING; answered when everything accepted is answered.
    Drain {
        /// When that is so.
        done: RequestReply<()>,
    },
    /// Drain, make the state durable and end; answered when the replica is shut down.
    Stop {
        /// When that is so.
        done: RequestReply<()>,
    },
}

/// One batch, checked by the connection: lengths, body CRC and records are sound.
#[derive(Debug)]
pub struct PublishRequest {
    /// As the publisher made it; what the broker decides is filled in here and by the log.
    pub header: BatchHeader,
    /// Record table and payload.
    pub body: Bytes,
    /// Not appended later than this.
    pub deadline: Option<Instant>,
    /// The memory it occupies; released when it is answered.
    pub reservation: Reservation,
    /// The place for its answer.
    pub reply: PublishReply,
}

/// A consumer attaches.
#[derive(Debug)]
pub struct SubscribeRequest {
    /// Durable subscription (mode `stream`), created by its first consumer; none = a reader.
    pub subscription: Option<Name>,
    /// Where to start; a subscription that exists starts at its cursor instead.
    pub start: Start,
    /// What it needs of the replica.
    pub needs: Needs,
    /// The consumer's registers and lane.
    pub port: ConsumerPort,
    /// Where it starts, or why not.
    pub reply: RequestReply<SubscribedState>,
}

/// A consumer joins those that share a subscription.
#[derive(Debug)]
pub struct JoinRequest {
    /// What is shared.
    pub subscription: Name,
    /// Who joins.
    pub member: MemberId,
    /// Its stream.
    pub port: ConsumerPort,
    /// When it is a member, or why it is not.
    pub reply: RequestReply<()>,
}

/// Where a publisher goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublisherState {
    /// The sequence behind the last stored record of the producer; 0 when none is known.
    pub next_sequence: Sequence,
    /// The high watermark (exclusive).
    pub log_end: Offset,
    /// The term that is led.
    pub term: Term,
}

/// Where a consumer starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscribedState {
    /// First offset that will be delivered.
    pub start: Offset,
    /// First offset of the log.
    pub log_start: Offset,
    /// The high watermark (exclusive).
    pub high_watermark: Offset,
    /// Records that were asked for, or that the subscription had not settled, and that are gone.
    pub skipped: u64,
    /// The term that is led; 0 = the replica follows.
    pub term: Term,
}
