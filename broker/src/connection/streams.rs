//! The streams of one connection.
//!
//! Owns: which stream numbers are in use, and for what.
//! Never: more streams than were announced.

use super::outbox::ConsumerId;
use super::publish::PublisherStream;
use crate::budget::Draft;
use crate::flow::PartitionKey;
use crate::partition::PartitionHandle;
use std::collections::{BTreeMap, BTreeSet};
use weir_protocol::codec::PublishHead;
use weir_protocol::limits::STREAMS_PER_CONNECTION_MAX;
use weir_protocol::types::{Name, ProducerId, StreamId};

/// What each stream costs beside its credit: its state here, in the outbox and in flow control.
pub const STREAM_BYTES: u64 = 1 << 10;

/// A publisher that waits for its partition.
pub(super) struct OpeningPublisher {
    pub(super) partition: PartitionHandle,
    pub(super) key: PartitionKey,
    pub(super) memory: Draft,
    /// The client has ended the stream before it was open.
    pub(super) cancelled: bool,
}

/// A consumer, from SUBSCRIBE on.
pub(super) struct ConsumerStream {
    pub(super) id: ConsumerId,
    pub(super) topic: Name,
    pub(super) partition: PartitionHandle,
    /// The partition has answered.
    pub(super) open: bool,
    /// The client has ended the stream before it was open.
    pub(super) cancelled: bool,
    /// It carries no records: its consumer shares a subscription.
    pub(super) member: bool,
    pub(super) _memory: Draft,
}

/// One stream.
pub(super) enum StreamState {
    OpeningPublisher(OpeningPublisher),
    Publisher(Box<PublisherStream>),
    Consumer(Box<ConsumerStream>),
}

impl StreamState {
    fn is_consumer(&self) -> bool {
        matches!(self, Self::Consumer(consumer) if !consumer.member)
    }

    fn is_member(&self) -> bool {
        matches!(self, Self::Consumer(consumer) if consumer.member)
    }
}

/// Identity that a publisher put into its batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) producer_id: ProducerId,
    pub(super) producer_epoch: u32,
}

/// The streams of one connection.
#[derive(Default)]
pub(super) struct Streams {
    streams: BTreeMap<StreamId, StreamState>,
    consumers: u32,
    members: u32,
    /// Streams that are over: what was on its way to them is not an error.
    ended: BTreeSet<StreamId>,
}

impl Streams {
    /// Whether `stream` may be opened, or what is wrong with it.
    pub(super) fn may_open(&self, stream: StreamId) -> Result<(), &'static str> {
        if stream.0 == 0 {
            return Err("stream 0 is the connection itself; use another number");
        }
        if self.streams.contains_key(&stream) {
            return Err("the stream is open already; use another number");
        }
        Ok(())
    }

    /// Whether as many streams are open as may be.
    pub(super) fn is_full(&self) -> bool {
        self.streams.len() >= STREAMS_PER_CONNECTION_MAX
    }

    pub(super) fn insert(&mut self, stream: StreamId, state: StreamState) {
        self.ended.remove(&stream);
        self.consumers += u32::from(state.is_consumer());
        self.members += u32::from(state.is_member());
        self.streams.insert(stream, state);
    }

    /// The stream is over.
    pub(super) fn end(&mut self, stream: StreamId) -> Option<StreamState> {
        let state = self.forget(stream)?;
        if self.ended.len() >= STREAMS_PER_CONNECTION_MAX {
            self.ended.pop_first();
        }
        self.ended.insert(stream);
        Some(state)
    }

    /// The stream never came to be.
    pub(super) fn forget(&mut self, stream: StreamId) -> Option<StreamState> {
        let state = self.streams.remove(&stream)?;
        self.consumers -= u32::from(state.is_consumer());
        self.members -= u32::from(state.is_member());
        Some(state)
    }

    pub(super) fn get(&mut self, stream: StreamId) -> Option<&mut StreamState> {
        self.streams.get_mut(&stream)
    }

    pub(super) fn publisher(&self, stream: StreamId) -> Option<&PublisherStream> {
        match self.streams.get(&stream) {
            Some(StreamState::Publisher(publisher)) => Some(publisher),
            _ => None,
        }
    }

    /// Whether a stream's credit covers the publish whose head was read.
    pub(super) fn covers(&self, head: &PublishHead) -> bool {
        self.publisher(head.stream).is_some_and(|publisher| publisher.covers(head))
    }

    pub(super) fn publisher_mut(&mut self, stream: StreamId) -> Option<&mut PublisherStream> {
        match self.streams.get_mut(&stream) {
            Some(StreamState::Publisher(publisher)) => Some(publisher),
            _ => None,
        }
    }

    /// Whether the stream was open once and is over.
    pub(super) fn has_ended(&self, stream: StreamId) -> bool {
        self.ended.contains(&stream)
    }

    /// The topic that a stream is about, for metrics and logs.
    pub(super) fn topic(&self, stream: StreamId) -> Option<&Name> {
        Some(match self.streams.get(&stream)? {
            StreamState::OpeningPublisher(opening) => &opening.key.topic,
            StreamState::Publisher(publisher) => &publisher.key.topic,
            StreamState::Consumer(consumer) => &consumer.topic,
        })
    }

    /// Open publishers and consumers.
    pub(super) fn counts(&self) -> (u32, u32) {
        (self.streams.len() as u32 - self.consumers - self.members, self.consumers)
    }

    /// Takes all streams out: the connection is over.
    pub(super) fn take(&mut self) -> BTreeMap<StreamId, StreamState> {
        (self.consumers, self.members) = (0, 0);
        std::mem::take(&mut self.streams)
    }
}
