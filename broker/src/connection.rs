//! One connection: its peer's frames in, what it is owed out.
//!
//! Owns: the socket, the peer's streams and requests, and when the connection ends.
//! Never: stops reading: whatever a peer may send was reserved before it was told so. Decides
//! nothing about records: a batch is checked and handed to its partition.
//! Invariants:
//! - one task serves both halves: it writes what the outbox holds, then reads, and never waits
//!   for anything but the socket, the outbox and its timer;
//! - between frames nothing is buffered: an idle connection holds its state and no more;
//! - whatever the peer does wrong is answered with a typed error, counted once, and ends at most
//!   this connection.

mod card;
mod handshake;
pub(crate) mod lane;
mod life;
pub mod outbox;
mod publish;
mod read;
pub(crate) mod reply;
mod requests;
mod streams;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod write;

pub use card::{Card, ConnectionView};
pub use life::End;
pub use streams::STREAM_BYTES;

use crate::budget::{Account, Part};
use crate::flow::Flow;
use crate::log_limit::LogLimit;
use crate::partition::{PartitionHandle, Request};
use crate::seams::{BoxFuture, Stream};
use life::{Clock, Phase};
use outbox::{Outbox, Taken};
use read::{Event, ReadError, Reader, SCRATCH_BYTES};
use requests::Requests;
use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use streams::{StreamState, Streams};
use tokio::io::ReadBuf;
use tokio::time::{Duration, Instant};
use weir_protocol::error_code::ErrorCode;
use weir_protocol::frame::{
    AlterTopic, CreateTopic, DeleteTopic, Frame, GoAway, Metadata, MetadataPage, PeerLimits,
    Refusal,
};
use weir_protocol::types::{BrokerId, Name, PartitionId, ProducerId, StreamId};
use write::Writer;

/// Turns of writing and reading before the task lets others run.
const STEPS_PER_TURN_MAX: usize = 16;

/// What connections ask of the rest of the broker. Nothing here waits; what takes time is a future.
pub trait Backend: Send + Sync + 'static {
    /// The partition, or why there is none.
    fn partition(&self, topic: &Name, partition: PartitionId) -> Result<PartitionHandle, Refusal>;
    /// Opens the producer of this name anew: its id and its next epoch.
    fn register_producer(
        &self,
        name: Name,
    ) -> BoxFuture<'static, Result<(ProducerId, u32), Refusal>>;
    /// An id for a producer without a name, never given out before.
    fn anonymous_producer(&self) -> ProducerId;
    /// A page of topics.
    fn metadata(&self, request: &Metadata) -> Result<MetadataPage, Refusal>;
    /// Creates a topic.
    fn create_topic(&self, request: CreateTopic) -> BoxFuture<'static, Result<(), Refusal>>;
    /// Changes a topic.
    fn alter_topic(&self, request: AlterTopic) -> BoxFuture<'static, Result<(), Refusal>>;
    /// Removes a topic.
    fn delete_topic(&self, request: DeleteTopic) -> BoxFuture<'static, Result<(), Refusal>>;
    /// A publish was acknowledged, so long after it was read.
    fn acknowledged(&self, took: Duration);
    /// A refusal is on its way to a client: the one place where refusals are counted.
    fn refused(&self, topic: Option<&Name>, code: u16);
    /// A connection was accepted.
    fn connection_opened(&self);
    /// A connection is over.
    fn connection_closed(&self, reason: &'static str);
}

/// Who this broker is, as WELCOME says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerIdentity {
    /// Identity of the cluster.
    pub cluster_id: u128,
    /// Identity of this broker.
    pub broker_id: BrokerId,
    /// Name of this broker.
    pub broker_name: String,
}

/// What all connections share.
pub struct Services {
    /// The rest of the broker.
    pub backend: Arc<dyn Backend>,
    /// Publish credit.
    pub flow: Arc<Flow>,
    /// What WELCOME says.
    pub identity: BrokerIdentity,
    /// What WELCOME announces and the connections hold to.
    pub limits: PeerLimits,
    /// Incomplete small frames.
    pub read_buffers: Arc<Account>,
    /// Requests and their answers.
    pub request_memory: Arc<Account>,
    /// Open streams.
    pub stream_memory: Arc<Account>,
    /// Lines about connections that were refused.
    pub failures: LogLimit,
}

impl Services {
    /// How connections share `bytes` of the memory budget: read buffers, requests, streams.
    pub fn parts(bytes: u64) -> [Part; 3] {
        let eighth = bytes / 8;
        [
            Part { name: "read buffers", bytes: eighth },
            Part { name: "requests", bytes: eighth },
            Part { name: "streams", bytes: bytes - 2 * eighth },
        ]
    }
}

/// One connection. Dropping it ends its streams.
pub(crate) struct Connection {
    socket: Box<dyn Stream>,
    services: Arc<Services>,
    card: Arc<Card>,
    outbox: Arc<Outbox>,
    reader: Reader,
    writer: Writer,
    streams: Streams,
    requests: Requests,
    phase: Phase,
    heartbeat: Duration,
    clock: Clock,
}

impl Connection {
    pub(crate) fn new(socket: Box<dyn Stream>, services: Arc<Services>, card: Arc<Card>) -> Self {
        let reader = Reader::new(Arc::clone(&services.read_buffers));
        services.backend.connection_opened();
        Self {
            socket,
            outbox: Arc::clone(card.outbox()),
            services,
            card,
            reader,
            writer: Writer::default(),
            streams: Streams::default(),
            requests: Requests::default(),
            phase: Phase::Hello,
            heartbeat: life::HEARTBEAT,
            clock: Clock::start(),
        }
    }

    /// Serves the peer until the connection ends, and says why it did.
    pub(crate) async fn run(mut self) -> End {
        let end = poll_fn(|cx| self.poll(cx)).await;
        self.services.backend.connection_closed(end.reason());
        end
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.outbox.register(cx.waker());
        for _ in 0..STEPS_PER_TURN_MAX {
            let now = Instant::now();
            let wrote = self.poll_write(cx, now);
            let read = self.poll_read(cx, now);
            if let Phase::Over(end) = self.phase {
                return Poll::Ready(end);
            }
            if !wrote && !read {
                return self.poll_clock(cx);
            }
        }
        // Others run before this connection goes on.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes what waits, then takes what is owed next. Says whether there may be more.
    fn poll_write(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let before = self.writer.written();
        let flushed = self.writer.poll_flush(cx, &mut *self.socket, now);
        if self.writer.written() > before {
            self.clock.spoke(now);
        }
        match flushed {
            Poll::Pending => return false,
            Poll::Ready(Err(_)) => {
                self.phase = Phase::Over(End::Broken);
                return false;
            }
            Poll::Ready(Ok(())) => self.requests.written(),
        }
        if let Phase::Ending(..) = self.phase {
            self.poll_shutdown(cx);
            return false;
        }
        let mut taken = Taken::default();
        self.outbox.take(&mut taken);
        let more = !taken.completions.is_empty() || !taken.frames.is_empty();
        for completion in taken.completions {
            self.on_completion(completion);
        }
        for frame in &taken.frames {
            self.send(frame);
        }
        for read in taken.acknowledged {
            self.services.backend.acknowledged(now.saturating_duration_since(read));
        }
        for stream in taken.pokes {
            self.poke(stream);
        }
        more
    }

    /// Reads once and acts on what arrived. Says whether there may be more.
    fn poll_read(&mut self, cx: &mut Context<'_>, now: Instant) -> bool {
        let mut scratch = [const { MaybeUninit::<u8>::uninit() }; SCRATCH_BYTES];
        let mut scratch = ReadBuf::uninit(&mut scratch);
        let read = if self.reader.is_filling() {
            self.reader.poll_fill(cx, &mut *self.socket, now)
        } else {
            let read = Pin::new(&mut *self.socket).poll_read(cx, &mut scratch);
            read.map_ok(|()| scratch.filled().len())
        };
        match read {
            Poll::Pending => return false,
            Poll::Ready(Ok(0)) => self.phase = Phase::Over(self.phase.end_of_input()),
            Poll::Ready(Err(_)) => self.phase = Phase::Over(End::Broken),
            Poll::Ready(Ok(_)) => {
                self.clock.heard(now);
                self.on_bytes(scratch.filled(), now);
            }
        }
        !matches!(self.phase, Phase::Over(_))
    }

    fn on_bytes(&mut self, mut input: &[u8], now: Instant) {
        while !self.phase.is_deaf() {
            let streams = &self.streams;
            let paid = |head: &_| streams.covers(head);
            let event = match self.reader.next(&mut input, now, paid) {
                Ok(Some(event)) => event,
                Ok(None) => return,
                Err(ReadError::Decode(error)) => return self.fail(crate::reply::decode(&error)),
                Err(ReadError::Memory) => return self.fail(crate::reply::read_buffers()),
            };
            let handled = match event {
                Event::Frame(frame) if self.phase.is_handshake() => self.on_handshake(frame),
                Event::Frame(frame) => self.on_frame(frame, now),
                Event::Unpaid(head) => self.on_unpaid(&head, now),
            };
            if let Err(refusal) = handled {
                self.fail(refusal);
            }
        }
    }

    fn on_frame(&mut self, frame: Frame, now: Instant) -> Result<(), Refusal> {
        match frame {
            Frame::Publish(publish) => self.on_publish(publish, now),
            Frame::Demand(stream, demand) => self.on_demand(stream, demand),
            Frame::Revoked(stream, revoked) => self.on_revoked(stream, revoked),
            Frame::Grant(stream, grant) => {
                self.on_register(stream, |outbox| outbox.consumer_credit(stream, grant))
            }
            Frame::Settle(settle) => self.on_register(settle.stream, |outbox| {
                outbox.consumer_settle(settle.stream, settle.upto, settle.confirm)
            }),
            Frame::OpenPublisher(open) => self.on_open_publisher(open),
            Frame::Subscribe(subscribe) => self.on_subscribe(subscribe),
            Frame::Join(join) => self.on_join(join),
            Frame::Present(present) => self.on_register(present.stream, |outbox| {
                outbox.member_present(present.stream, present.epoch)
            }),
            Frame::Leave(stream) => self.on_register(stream, |outbox| outbox.member_leaves(stream)),
            Frame::CloseStream(stream) => self.on_close_stream(stream),
            Frame::Metadata(metadata) => self.on_metadata(&metadata),
            Frame::CreateTopic(create) => {
                self.on_topic_request(create.request, |backend| backend.create_topic(create))
            }
            Frame::AlterTopic(alter) => {
                self.on_topic_request(alter.request, |backend| backend.alter_topic(alter))
            }
            Frame::DeleteTopic(delete) => {
                self.on_topic_request(delete.request, |backend| backend.delete_topic(delete))
            }
            Frame::Heartbeat => Ok(()),
            Frame::GoAway(_) => {
                self.leave_when_quiet(now);
                Ok(())
            }
            Frame::Hello(_)
            | Frame::Auth(_)
            | Frame::Welcome(_)
            | Frame::Ready
            | Frame::Error(_)
            | Frame::PublisherOpened(_)
            | Frame::Published(_)
            | Frame::Refused(_)
            | Frame::Revoke(..)
            | Frame::StreamClosed(_)
            | Frame::Subscribed(_)
            | Frame::Deliver(_)
            | Frame::Assignment(_)
            | Frame::Settled(_)
            | Frame::MetadataPage(_)
            | Frame::Done(_) => {
                let text = "the frame does not belong here: the handshake is through, and a client \
                            does not send what brokers send";
                Err(crate::reply::connection(ErrorCode::BadState, text))
            }
        }
    }

    /// A register of a consumer changed; its partition is told, unless it knows already.
    fn on_register(
        &mut self,
        stream: StreamId,
        change: impl FnOnce(&Outbox) -> bool,
    ) -> Result<(), Refusal> {
        if !matches!(self.streams.get(stream), Some(StreamState::Consumer(_))) {
            return self.on_stray(stream);
        }
        if change(&self.outbox) {
            self.poke(stream);
        }
        Ok(())
    }

    fn poke(&mut self, stream: StreamId) {
        if let Some(StreamState::Consumer(consumer)) = self.streams.get(stream) {
            // Pokes are registers of the partition: they never find it full.
            let _ = consumer.partition.try_send(Request::Poke(consumer.id));
        }
    }

    /// Encodes one frame. Every refusal of any kind passes here and is counted here.
    fn send(&mut self, frame: &Frame) {
        let (stream, refusal) = match frame {
            Frame::Published(published) => {
                self.on_told(published.stream, published.grant.limit_cost);
                (None, None)
            }
            Frame::Grant(stream, grant) => {
                self.on_told(*stream, grant.limit_cost);
                (None, None)
            }
            Frame::Refused(refused) => {
                self.on_told(refused.stream, refused.grant.limit_cost);
                (Some(refused.stream), Some(&refused.refusal))
            }
            Frame::Error(error) => (None, Some(&error.refusal)),
            Frame::Settled(settled) => (Some(settled.stream), settled.refusal.as_ref()),
            Frame::StreamClosed(closed) => (Some(closed.stream), closed.refusal.as_ref()),
            Frame::GoAway(go_away) => {
                self.on_go_away(go_away);
                (None, None)
            }
            _ => (None, None),
        };
        if let Some(refusal) = refusal {
            let topic = stream.and_then(|stream| self.streams.topic(stream));
            self.services.backend.refused(topic, refusal.code);
        }
        if let Frame::StreamClosed(closed) = frame {
            self.streams.end(closed.stream);
        }
        self.writer.push(frame);
        self.card.note(self.streams.counts(), self.writer.written());
    }

    fn on_go_away(&mut self, go_away: &GoAway) {
        if go_away.code == ErrorCode::Draining.number() {
            let within = Duration::from_millis(u64::from(go_away.deadline_ms));
            self.leave_within(within);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        for state in self.streams.take().into_values() {
            if let StreamState::Consumer(consumer) = state {
                let _ = consumer.partition.try_send(Request::CloseConsumer(consumer.id));
            }
        }
        self.outbox.end();
    }
}
