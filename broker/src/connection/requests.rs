//! Requests: what a client asks for, and how the answers come back.
//!
//! Owns: the request slots of a connection. A slot is taken when the request is read and free
//! again when its answer has been written, so that a client that does not read cannot go on asking.
//! Never: waits: what takes time runs beside the connection and leaves its answer in the outbox.

use super::outbox::{Completion, ConsumerPort, OpenedPublisher, Outbox, RequestReply};
use super::publish::PublisherStream;
use super::streams::{ConsumerStream, Identity, OpeningPublisher, STREAM_BYTES, StreamState};
use super::{Backend, Connection};
use crate::budget::{Account, Draft};
use crate::flow::PartitionKey;
use crate::partition::{
    JoinRequest, PartitionHandle, PublisherState, Request, SubscribeRequest, SubscribedState,
};
use crate::reply;
use crate::task::{self, TaskKind};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use weir_protocol::error_code::ErrorCode;
use weir_protocol::frame::{
    ErrorFrame, Frame, Grant, Join, Metadata, OpenPublisher, PublisherOpened, Refusal,
    StreamClosed, Subscribe, Subscribed,
};
use weir_protocol::limits::{FIELDS_BYTES_MAX, REQUESTS_PER_CONNECTION_MAX};
use weir_protocol::types::{PartitionId, ProducerId, RequestId, StreamId};

/// What most requests and their answers come to, bytes.
const REQUEST_BYTES: u64 = 1 << 10;
/// What a page of metadata may come to, bytes.
const PAGE_BYTES: u64 = FIELDS_BYTES_MAX as u64;
/// Refusals for want of a slot that may wait to be written: beyond them the peer is not reading.
const UNPAID_REFUSALS_MAX: usize = 16;

/// The request slots of one connection.
#[derive(Default)]
pub(super) struct Requests {
    waiting: BTreeMap<RequestId, Draft>,
    /// Answered; free as soon as the answers are written.
    answered: Vec<Draft>,
    unpaid: usize,
}

/// Whether a request has a slot.
enum Slot {
    Taken,
    Refused(Refusal),
}

impl Requests {
    fn take(
        &mut self,
        request: RequestId,
        bytes: u64,
        memory: &Arc<Account>,
    ) -> Result<Slot, Refusal> {
        if request.0 == 0 || self.waiting.contains_key(&request) {
            let text = format!("request {request} is not a number of its own; count them from 1");
            return Err(reply::connection(ErrorCode::BadState, text));
        }
        if self.waiting.len() + self.answered.len() < REQUESTS_PER_CONNECTION_MAX
            && let Some(draft) = memory.try_draw(bytes)
        {
            self.waiting.insert(request, draft);
            return Ok(Slot::Taken);
        }
        let refusal = reply::too_many_requests(REQUESTS_PER_CONNECTION_MAX);
        self.unpaid += 1;
        if self.unpaid > UNPAID_REFUSALS_MAX {
            let text = "requests go on although their refusals are not read";
            return Err(reply::connection(ErrorCode::OverloadedRequest, text));
        }
        Ok(Slot::Refused(refusal))
    }

    fn answer(&mut self, request: RequestId) {
        self.answered.extend(self.waiting.remove(&request));
    }

    /// All that was answered has been written.
    pub(super) fn written(&mut self) {
        self.answered = Vec::new();
        self.unpaid = 0;
    }

    /// Whether nothing waits for an answer.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl Connection {
    /// Takes a slot for the request; without one it is answered at once.
    fn slot(&mut self, request: RequestId, bytes: u64) -> Result<bool, Refusal> {
        match self.requests.take(request, bytes, &self.services.request_memory)? {
            Slot::Taken => Ok(true),
            Slot::Refused(refusal) => {
                self.send(&Frame::Error(ErrorFrame { request, refusal }));
                Ok(false)
            }
        }
    }

    /// Answers a request that has a slot.
    fn answer(&mut self, request: RequestId, result: Result<Frame, Refusal>) {
        self.requests.answer(request);
        match result {
            Ok(frame) => self.send(&frame),
            Err(refusal) => self.send(&Frame::Error(ErrorFrame { request, refusal })),
        }
    }

    /// Opens a stream: its partition and the memory for it, or why not.
    fn stream_place(
        &mut self,
        stream: StreamId,
        key: &PartitionKey,
        limit: ErrorCode,
    ) -> Result<(PartitionHandle, Draft), Refusal> {
        self.streams.may_open(stream).map_err(|text| Refusal::new(ErrorCode::BadRequest, text))?;
        if self.is_leaving() {
            let refusal = Refusal::new(ErrorCode::Draining, "the broker is shutting down");
            return Err(Refusal { retry_after_ms: 1_000, ..refusal });
        }
        if self.outbox.has(stream) {
            let text = "the stream is still being closed; wait for STREAM_CLOSED";
            return Err(Refusal::new(ErrorCode::BadRequest, text));
        }
        let memory = self.services.stream_memory.try_draw(STREAM_BYTES);
        let Some(memory) = memory.filter(|_| !self.streams.is_full()) else {
            let text = "as many streams are open as may be; close some or use another broker";
            return Err(Refusal { retry_after_ms: 1_000, ..Refusal::new(limit, text) });
        };
        Ok((self.services.backend.partition(&key.topic, key.partition)?, memory))
    }

    pub(super) fn on_open_publisher(&mut self, open: OpenPublisher) -> Result<(), Refusal> {
        let (request, stream) = (open.request, open.stream);
        if !self.slot(request, REQUEST_BYTES)? {
            return Ok(());
        }
        let key = PartitionKey { topic: open.topic.clone(), partition: open.partition };
        let (partition, memory) = match self.stream_place(stream, &key, ErrorCode::ProducerLimit) {
            Ok(place) => place,
            Err(refusal) => {
                self.answer(request, Err(refusal));
                return Ok(());
            }
        };
        let opening =
            OpeningPublisher { partition: partition.clone(), key, memory, cancelled: false };
        self.streams.insert(stream, StreamState::OpeningPublisher(opening));
        let attach = Attach { outbox: Arc::clone(&self.outbox), partition, stream, request };
        let backend = Arc::clone(&self.services.backend);
        if open.producer_id.0 != 0 {
            // A client that reopens: the partition knows whether its epoch is still the newest.
            attach.publisher((open.producer_id, open.producer_epoch));
        } else if let Some(name) = open.producer {
            let place = RequestReply::new(|identity| attach.publisher_or_not(identity));
            beside(async move { place.done(backend.register_producer(name).await) });
        } else {
            attach.publisher((backend.anonymous_producer(), 0));
        }
        Ok(())
    }

    /// The port of a consumer, or of a member, on its way to its partition. None: it was answered.
    fn open_port(
        &mut self,
        request: RequestId,
        stream: StreamId,
        key: &PartitionKey,
        credit: Option<Grant>,
    ) -> Result<Option<(PartitionHandle, ConsumerPort)>, Refusal> {
        if !self.slot(request, REQUEST_BYTES)? {
            return Ok(None);
        }
        let (partition, memory) = match self.stream_place(stream, key, ErrorCode::ConsumerLimit) {
            Ok(place) => place,
            Err(refusal) => {
                self.answer(request, Err(refusal));
                return Ok(None);
            }
        };
        let port = self.outbox.open_consumer(stream, credit.unwrap_or_default());
        let consumer = ConsumerStream {
            id: port.id(),
            topic: key.topic.clone(),
            partition: partition.clone(),
            open: false,
            cancelled: false,
            member: credit.is_none(),
            _memory: memory,
        };
        self.streams.insert(stream, StreamState::Consumer(Box::new(consumer)));
        Ok(Some((partition, port)))
    }

    pub(super) fn on_join(&mut self, join: Join) -> Result<(), Refusal> {
        let (request, stream) = (join.request, join.stream);
        let key = PartitionKey { topic: join.topic, partition: PartitionId(0) };
        let Some((partition, port)) = self.open_port(request, stream, &key, None)? else {
            return Ok(());
        };
        let outbox = Arc::clone(&self.outbox);
        let deliver = move |result: Result<(), Refusal>| {
            let result = result.map(|()| Box::new(Frame::Done(request)));
            outbox.complete(Completion::Consumer { stream, request, result });
        };
        let reply = RequestReply::new(deliver);
        let (subscription, member) = (join.subscription, join.member);
        let ask = JoinRequest { subscription, member, port, reply };
        if let Err(Request::Join(ask)) = partition.try_send(Request::Join(ask)) {
            ask.reply.done(Err(not_taken(&partition, &key)));
        }
        Ok(())
    }

    pub(super) fn on_subscribe(&mut self, subscribe: Subscribe) -> Result<(), Refusal> {
        let (request, stream) = (subscribe.request, subscribe.stream);
        let key = PartitionKey { topic: subscribe.topic, partition: subscribe.partition };
        let credit = Some(subscribe.credit);
        let Some((partition, port)) = self.open_port(request, stream, &key, credit)? else {
            return Ok(());
        };
        let outbox = Arc::clone(&self.outbox);
        let deliver = move |result: Result<SubscribedState, Refusal>| {
            let result = result.map(|state| {
                let SubscribedState { start, log_start, high_watermark, skipped, term } = state;
                let (stream, request) = (stream, request);
                Box::new(Frame::Subscribed(Subscribed {
                    stream,
                    request,
                    start,
                    log_start,
                    high_watermark,
                    skipped,
                    term,
                }))
            });
            outbox.complete(Completion::Consumer { stream, request, result });
        };
        let ask = SubscribeRequest {
            subscription: subscribe.subscription,
            start: subscribe.start,
            needs: subscribe.needs,
            port,
            reply: RequestReply::new(deliver),
        };
        if let Err(Request::Subscribe(ask)) = partition.try_send(Request::Subscribe(ask)) {
            ask.reply.done(Err(not_taken(&partition, &key)));
        }
        Ok(())
    }

    pub(super) fn on_metadata(&mut self, metadata: &Metadata) -> Result<(), Refusal> {
        if self.slot(metadata.request, PAGE_BYTES)? {
            let page = self.services.backend.metadata(metadata);
            self.answer(metadata.request, page.map(Frame::MetadataPage));
        }
        Ok(())
    }

    /// A request about a topic that `ask` answers in its own time.
    pub(super) fn on_topic_request<F>(
        &mut self,
        request: RequestId,
        ask: impl FnOnce(Arc<dyn Backend>) -> F,
    ) -> Result<(), Refusal>
    where
        F: Future<Output = Result<(), Refusal>> + Send + 'static,
    {
        if self.slot(request, REQUEST_BYTES)? {
            let outbox = Arc::clone(&self.outbox);
            let place = RequestReply::new(move |result: Result<(), Refusal>| {
                let result = result.map(|()| Box::new(Frame::Done(request)));
                outbox.complete(Completion::Answer { request, result });
            });
            let asked = ask(Arc::clone(&self.services.backend));
            beside(async move { place.done(asked.await) });
        }
        Ok(())
    }

    /// A request came to something.
    pub(super) fn on_completion(&mut self, completion: Completion) {
        match completion {
            Completion::Answer { request, result } => {
                self.answer(request, result.map(|frame| *frame));
            }
            Completion::Publisher { stream, request, result } => {
                self.on_publisher(stream, request, result);
            }
            Completion::Consumer { stream, request, result } => {
                let opened = result.is_ok();
                self.answer(request, result.map(|frame| *frame));
                let Some(StreamState::Consumer(consumer)) = self.streams.get(stream) else {
                    return;
                };
                consumer.open = opened;
                if !opened {
                    self.outbox.drop_consumer(stream);
                    self.streams.forget(stream);
                } else if consumer.cancelled {
                    self.end_stream(stream);
                }
            }
        }
    }

    fn on_publisher(
        &mut self,
        stream: StreamId,
        request: RequestId,
        result: Result<OpenedPublisher, Refusal>,
    ) {
        let Some(StreamState::OpeningPublisher(opening)) = self.streams.forget(stream) else {
            return;
        };
        let opened = match result {
            Ok(opened) => opened,
            Err(refusal) => return self.answer(request, Err(refusal)),
        };
        let OpenedPublisher { producer_id, producer_epoch, next_sequence, log_end, term } = opened;
        let opened = PublisherOpened {
            stream,
            request,
            producer_id,
            producer_epoch,
            next_sequence,
            log_end,
            term,
        };
        self.answer(request, Ok(Frame::PublisherOpened(opened)));
        if opening.cancelled {
            return self.send(&Frame::StreamClosed(StreamClosed { stream, refusal: None }));
        }
        let OpeningPublisher { partition, key, memory, .. } = opening;
        let flow = self.services.flow.open(key.clone(), self.outbox.grant_register(stream));
        let identity = Identity { producer_id, producer_epoch };
        let publisher = PublisherStream::new(key, partition, identity, flow, memory);
        self.streams.insert(stream, StreamState::Publisher(Box::new(publisher)));
    }

    /// The client ends a stream.
    pub(super) fn on_close_stream(&mut self, stream: StreamId) -> Result<(), Refusal> {
        match self.streams.get(stream) {
            Some(StreamState::OpeningPublisher(opening)) => opening.cancelled = true,
            Some(StreamState::Consumer(consumer)) if !consumer.open => consumer.cancelled = true,
            Some(_) => self.end_stream(stream),
            None => return self.on_stray(stream),
        }
        Ok(())
    }

    fn end_stream(&mut self, stream: StreamId) {
        match self.streams.end(stream) {
            Some(StreamState::Publisher(_)) => self.outbox.close_publisher(stream, None),
            Some(StreamState::Consumer(consumer)) => {
                // A close is a register of the partition: it always finds room.
                let _ = consumer.partition.try_send(Request::CloseConsumer(consumer.id));
                self.outbox.close_consumer(stream, None);
            }
            Some(StreamState::OpeningPublisher(_)) | None => {}
        }
    }
}

/// Runs a request beside its connection.
fn beside(future: impl Future<Output = ()> + Send + 'static) {
    task::spawn("request", TaskKind::Connection, future);
}

/// Why a partition did not take a request.
fn not_taken(partition: &PartitionHandle, key: &PartitionKey) -> Refusal {
    if partition.is_closed() {
        reply::partition_gone(key)
    } else {
        reply::too_many_requests(crate::partition::MAILBOX_REQUESTS)
    }
}

/// A publisher on its way to its partition.
struct Attach {
    outbox: Arc<Outbox>,
    partition: PartitionHandle,
    stream: StreamId,
    request: RequestId,
}

impl Attach {
    fn publisher_or_not(self, identity: Result<(ProducerId, u32), Refusal>) {
        match identity {
            Ok(identity) => self.publisher(identity),
            Err(refusal) => {
                let Self { outbox, stream, request, .. } = self;
                let result = Err(refusal);
                outbox.complete(Completion::Publisher { stream, request, result });
            }
        }
    }

    fn publisher(self, (producer_id, producer_epoch): (ProducerId, u32)) {
        let Self { outbox, partition, stream, request } = self;
        let deliver = move |result: Result<PublisherState, Refusal>| {
            let result = result.map(|state| OpenedPublisher {
                producer_id,
                producer_epoch,
                next_sequence: state.next_sequence,
                log_end: state.log_end,
                term: state.term,
            });
            outbox.complete(Completion::Publisher { stream, request, result });
        };
        let producer = Some((producer_id, producer_epoch));
        let reply = RequestReply::new(deliver);
        let ask = Request::OpenPublisher { producer, reply };
        if let Err(Request::OpenPublisher { reply, .. }) = partition.try_send(ask) {
            let text = "the partition is being opened, has ended, or has too many requests waiting";
            let refusal = Refusal::new(ErrorCode::Recovering, text);
            reply.done(Err(Refusal { retry_after_ms: 100, ..refusal }));
        }
    }
}
