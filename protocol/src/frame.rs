//! The frames: what two peers say to each other.
//!
//! Owns: one struct per frame, without its bytes (those are `codec`'s).
//! Never: decides whether a frame is allowed now (that is up to the peer that reads it).
//!
//! C = client to broker, B = broker to client. A frame on stream 0 concerns the connection.

mod sharing;
mod topics;

pub use sharing::{Assignment, FEATURE_SHARING, Join, MemberId, Present};
pub use topics::{
    AlterTopic, BrokerView, CreateTopic, DeleteTopic, Durability, Metadata, MetadataPage, Overflow,
    PartitionView, TopicConfig, TopicView,
};

use crate::batch::BatchHeader;
use crate::error_code::{ErrorCode, Outcome, Scope};
use crate::types::{
    BrokerId, Name, Offset, PartitionId, ProducerId, RequestId, Sequence, StreamId, Term,
};
use bytes::Bytes;

/// Any frame of either direction.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// C 0x01: first frame of a connection.
    Hello(Hello),
    /// B 0x02: the answer to HELLO.
    Welcome(Welcome),
    /// C 0x03: the authentication step; may follow HELLO at once.
    Auth(Auth),
    /// B 0x04: authentication is through, streams and requests may follow.
    Ready,
    /// CB 0x05: the peer is alive.
    Heartbeat,
    /// CB 0x06: no new work on this connection.
    GoAway(GoAway),
    /// B 0x07: a refusal that concerns a request, a stream or the connection.
    Error(ErrorFrame),
    /// C 0x10: opens a publisher on a stream.
    OpenPublisher(OpenPublisher),
    /// B 0x11: the publisher is open; a GRANT follows.
    PublisherOpened(PublisherOpened),
    /// C 0x12: one batch.
    Publish(Publish),
    /// B 0x13: batches that are stored, and the newest grant.
    Published(Published),
    /// B 0x14: a batch that is not stored, or whose outcome is unknown.
    Refused(Refused),
    /// CB 0x15: what the peer may send on this stream, as absolute limits.
    Grant(StreamId, Grant),
    /// C 0x16: what the publisher would send if it might.
    Demand(StreamId, Demand),
    /// B 0x17: asks for unspent credit back.
    Revoke(StreamId, Revoke),
    /// C 0x18: answers a revoke.
    Revoked(StreamId, Revoked),
    /// C 0x19: ends a stream.
    CloseStream(StreamId),
    /// B 0x1a: the stream is over; `code` is none when the client asked for it.
    StreamClosed(StreamClosed),
    /// C 0x20: opens a consumer on a stream.
    Subscribe(Subscribe),
    /// B 0x21: the consumer is open.
    Subscribed(Subscribed),
    /// B 0x22: batches.
    Deliver(Deliver),
    /// C 0x23: everything below this offset is done.
    Settle(Settle),
    /// B 0x24: the settle is committed; sent when asked for.
    Settled(Settled),
    /// C 0x25: joins those that share a durable subscription.
    Join(Join),
    /// B 0x26: the partitions that a member reads from now on.
    Assignment(Assignment),
    /// C 0x27: the member is there, and has given up what is not its own.
    Present(Present),
    /// C 0x28: the member on this stream leaves, and reads nothing any more.
    Leave(StreamId),
    /// C 0x30: asks for topics.
    Metadata(Metadata),
    /// B 0x31: a page of topics.
    MetadataPage(MetadataPage),
    /// C 0x32: creates a topic.
    CreateTopic(CreateTopic),
    /// C 0x33: changes a topic.
    AlterTopic(AlterTopic),
    /// C 0x34: removes a topic and its records.
    DeleteTopic(DeleteTopic),
    /// B 0x35: the request is done.
    Done(RequestId),
}

/// What both peers announce in HELLO and WELCOME; each obeys the other's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerLimits {
    /// Longest frame that the announcer reads.
    pub frame_bytes_max: u32,
    /// Longest message (key, headers, value).
    pub message_bytes_max: u32,
    /// Most streams of one connection.
    pub streams_max: u32,
    /// Most requests that wait for an answer.
    pub requests_max: u32,
    /// Heartbeats are due after this silence.
    pub heartbeat_ms: u32,
}

/// First frame of a connection.
#[derive(Debug, Clone, PartialEq)]
pub struct Hello {
    /// Oldest version the client speaks.
    pub version_min: u16,
    /// Newest version the client speaks.
    pub version_max: u16,
    /// Feature bits that the client understands.
    pub features: u64,
    /// What the client reads.
    pub limits: PeerLimits,
    /// Shown in logs and lists; free text, at most 255 bytes.
    pub client_name: String,
}

/// The answer to HELLO.
#[derive(Debug, Clone, PartialEq)]
pub struct Welcome {
    /// The version that this connection speaks.
    pub version: u16,
    /// Feature bits that both understand.
    pub features: u64,
    /// What the broker reads.
    pub limits: PeerLimits,
    /// The least that a message costs of a publisher's credit.
    pub message_cost_min: u32,
    /// Identity of the cluster.
    pub cluster_id: u128,
    /// Identity of this broker.
    pub broker_id: BrokerId,
    /// Name of this broker.
    pub broker_name: String,
    /// Authentication methods the broker accepts, comma separated.
    pub auth_methods: String,
}

/// The authentication step.
#[derive(Debug, Clone, PartialEq)]
pub struct Auth {
    /// `anonymous`, for now.
    pub method: String,
    /// The method's own content.
    pub content: Bytes,
}

/// No new work on this connection.
#[derive(Debug, Clone, PartialEq)]
pub struct GoAway {
    /// Why.
    pub code: u16,
    /// The connection is closed by then; what is paid for is still answered.
    pub deadline_ms: u32,
    /// Reconnect after this delay (already spread at random by the broker).
    pub reconnect_after_ms: u32,
    /// For people.
    pub text: String,
}

/// What every refusal says.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// `ErrorCode` number; codes of newer versions are kept as they are.
    pub code: u16,
    /// What became of the batch or request.
    pub outcome: Outcome,
    /// What it applies to.
    pub scope: Scope,
    /// When to try again; 0 = on the next grant, or no hint.
    pub retry_after_ms: u32,
    /// `reason_bits`.
    pub reason_bits: u32,
    /// The value that broke the limit (bytes, a sequence, an offset), or who leads instead;
    /// 0 = none.
    pub observed: u64,
    /// The limit, what was expected instead, or the term of who leads.
    pub limit: u64,
    /// For people: what, where, what to do.
    pub text: String,
}

impl Refusal {
    /// A refusal of one message or request, not stored, without hint or numbers.
    pub fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Self {
            code: code.number(),
            outcome: Outcome::NotStored,
            scope: Scope::Message,
            retry_after_ms: 0,
            reason_bits: 0,
            observed: 0,
            limit: 0,
            text: text.into(),
        }
    }

    /// A refusal by a broker that does not lead: who does, as far as it knows.
    pub fn not_leader(leader: Option<(BrokerId, Term)>, text: impl Into<String>) -> Self {
        let (broker, term) = leader.unwrap_or_default();
        let refusal = Self::new(ErrorCode::NotLeader, text);
        Self { scope: Scope::Topic, observed: broker.0, limit: term.0, ..refusal }
    }

    /// Who leads instead, and in which term, if that is what this refusal tells.
    pub fn leader(&self) -> Option<(BrokerId, Term)> {
        let told = self.code == ErrorCode::NotLeader.number() && self.observed != 0;
        told.then_some((BrokerId(self.observed), Term(self.limit)))
    }
}

/// A refusal that concerns a request (`request` non-zero), or the connection.
#[derive(Debug, Clone, PartialEq)]
pub struct ErrorFrame {
    /// The request; 0 = none.
    pub request: RequestId,
    /// Why.
    pub refusal: Refusal,
}

/// Opens a publisher on a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenPublisher {
    /// Number of the new stream.
    pub stream: StreamId,
    /// Echoed in the answer.
    pub request: RequestId,
    /// Where to publish.
    pub topic: Name,
    /// Which partition.
    pub partition: PartitionId,
    /// Durable identity for idempotence; none = an identity that lives as long as the client
    /// (which asks for it by `producer_id`).
    pub producer: Option<Name>,
    /// On the first open 0; when a client reopens after a reconnect, the id it was given.
    pub producer_id: ProducerId,
    /// On the first open 0; when a client reopens, the epoch it was given, which must still be
    /// the newest.
    pub producer_epoch: u32,
}

/// The publisher is open.
#[derive(Debug, Clone, PartialEq)]
pub struct PublisherOpened {
    /// The stream.
    pub stream: StreamId,
    /// Of the request.
    pub request: RequestId,
    /// Identity to put into batches.
    pub producer_id: ProducerId,
    /// Epoch to put into batches.
    pub producer_epoch: u32,
    /// The sequence behind the last stored record of this producer in this partition.
    pub next_sequence: Sequence,
    /// The log end when the publisher was opened.
    pub log_end: Offset,
    /// The term that the broker leads; 0 = it does not tell.
    pub term: Term,
}

/// One batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Publish {
    /// The publisher's stream.
    pub stream: StreamId,
    /// Relative deadline: not appended later than this after it was read; 0 = none.
    pub deadline_ms: u32,
    /// Bytes of cost that wait at the client for credit behind this batch.
    pub demand: u64,
    /// As the publisher made it (salt 0).
    pub header: BatchHeader,
    /// Record table and payload.
    pub body: Bytes,
}

/// One batch that is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredRange {
    /// Sequence of its first record.
    pub base_sequence: Sequence,
    /// Offset of its first record; `u64::MAX` for a duplicate whose offset is not known any more.
    pub base_offset: Offset,
    /// Its records.
    pub record_count: u32,
    /// It had been stored before.
    pub duplicate: bool,
}

/// Batches that are stored, in the order of their sequences, and the newest grant.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// The publisher's stream.
    pub stream: StreamId,
    /// What is stored.
    pub stored: Vec<StoredRange>,
    /// The newest grant of the stream.
    pub grant: Grant,
}

/// A batch that is not stored, or whose outcome is unknown.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// The publisher's stream.
    pub stream: StreamId,
    /// Sequence of its first record.
    pub base_sequence: Sequence,
    /// Its records.
    pub record_count: u32,
    /// Why.
    pub refusal: Refusal,
    /// The newest grant of the stream.
    pub grant: Grant,
}

/// What the receiver may send on a stream, as absolute limits since the stream's epoch began.
///
/// Publishers: `limit_cost` counts cost ([`BatchHeader::cost`] of each batch), `limit_messages` is
/// `u64::MAX`. Consumers: `limit_cost` counts stored bytes, `limit_messages` records.
/// Invariant: within an epoch limits only rise, but for a revoke that was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Grant {
    /// Rises when limits restart from 0 (a reopened stream).
    pub epoch: u32,
    /// Total cost or bytes that may be sent.
    pub limit_cost: u64,
    /// Total messages that may be sent.
    pub limit_messages: u64,
    /// The unspent part lapses after this; 0 = never.
    pub ttl_ms: u32,
    /// Overload level, 0 (none) to 3.
    pub level: u8,
    /// Why it is not more: `reason_bits`.
    pub reason_bits: u32,
}

/// What a publisher would send if it might.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Cost that waits at the client, beyond the credit it has.
    pub cost: u64,
    /// Cost of the largest batch that waits: a grant below it is of no use.
    pub largest: u64,
}

/// Asks for unspent credit back: the publisher answers with what it has spent and may from then
/// on not exceed `limit_cost` (or what it had spent, if that is more).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revoke {
    /// Epoch of the grant.
    pub epoch: u32,
    /// The lower limit.
    pub limit_cost: u64,
}

/// Answers a revoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revoked {
    /// Epoch of the grant.
    pub epoch: u32,
    /// Total cost spent so far: the limit is now the larger of this and the revoke's.
    pub spent_cost: u64,
}

/// The stream is over.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamClosed {
    /// The stream.
    pub stream: StreamId,
    /// Why, unless the client asked for it.
    pub refusal: Option<Refusal>,
}

/// Where a consumer starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the log start.
    Earliest,
    /// At the high watermark.
    Latest,
    /// At this offset.
    Offset(Offset),
    /// At the first record whose log time is at or after this, milliseconds since the epoch.
    Time(u64),
}

/// What a consumer needs of the replica that serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// Any replica may serve, although it may lag behind. Of a reader: a durable subscription is
    /// always served by the leader.
    pub any_replica: bool,
    /// Everything below must be readable (exclusive); BEHIND where it does not come to be.
    pub reach: Offset,
    /// A durable subscription starts no earlier than here: where its consumer stood when it moved.
    /// 0 = at its cursor.
    pub resume: Offset,
    /// Epoch of the assignment that gave the partition to the consumer; 0 = it shares with nobody.
    pub epoch: u64,
}

/// Opens a consumer on a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Subscribe {
    /// Number of the new stream.
    pub stream: StreamId,
    /// Echoed in the answer.
    pub request: RequestId,
    /// Where to read.
    pub topic: Name,
    /// Which partition.
    pub partition: PartitionId,
    /// Durable subscription (mode `stream`), created by its first consumer; none = an ephemeral
    /// reader.
    pub subscription: Option<Name>,
    /// Where to start; a durable subscription that exists starts at its cursor instead.
    pub start: Start,
    /// Initial credit: the grant with epoch 0.
    pub credit: Grant,
    /// Of the replica that serves it.
    pub needs: Needs,
}

/// The consumer is open.
#[derive(Debug, Clone, PartialEq)]
pub struct Subscribed {
    /// The stream.
    pub stream: StreamId,
    /// Of the request.
    pub request: RequestId,
    /// First offset that will be delivered.
    pub start: Offset,
    /// First offset of the log.
    pub log_start: Offset,
    /// The high watermark now (exclusive).
    pub high_watermark: Offset,
    /// The cursor had fallen behind the log start and was moved: records the consumer missed.
    pub skipped: u64,
    /// The term that the broker leads; 0 = it follows, or does not tell.
    pub term: Term,
}

/// Batches, as they are stored: each with header, body and padding to 32 bytes.
///
/// The first batch may begin below what the consumer asked for: it skips those records.
#[derive(Debug, Clone, PartialEq)]
pub struct Deliver {
    /// The consumer's stream.
    pub stream: StreamId,
    /// Salt of the segment that the batches come from.
    pub salt: u64,
    /// Records in the batches.
    pub record_count: u32,
    /// The high watermark (exclusive) when this was sent.
    pub high_watermark: Offset,
    /// The batches, in offset order; several slices when they do not touch on disk.
    pub batches: Vec<Bytes>,
}

/// Everything below this offset is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settle {
    /// The consumer's stream.
    pub stream: StreamId,
    /// Exclusive.
    pub upto: Offset,
    /// Answer with SETTLED when it is committed.
    pub confirm: bool,
}

/// The settle is committed.
#[derive(Debug, Clone, PartialEq)]
pub struct Settled {
    /// The consumer's stream.
    pub stream: StreamId,
    /// The cursor as it stands (exclusive).
    pub upto: Offset,
    /// Why it is not what was asked for.
    pub refusal: Option<Refusal>,
}
