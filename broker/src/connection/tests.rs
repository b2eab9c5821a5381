//! Scripted peers over an in-memory socket, with a partition that the test plays.

use super::outbox::ConsumerPort;
use super::*;
use crate::partition::{PublishRequest, PublisherState, SubscribeRequest, SubscribedState};
use bytes::BytesMut;
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use weir_protocol::batch::BatchBuilder;
use weir_protocol::codec::{Decoder, encode_to_vec};
use weir_protocol::error_code::Outcome;
use weir_protocol::frame::{
    Auth, Deliver, Demand, Grant, Hello, Needs, OpenPublisher, Publish, Settle, Start, StoredRange,
    Subscribe,
};
use weir_protocol::limits::{
    FRAME_BYTES_MAX, HEARTBEAT_MS, MESSAGE_BYTES_DEFAULT, REQUESTS_PER_CONNECTION_MAX,
};
use weir_protocol::types::{Offset, RequestId, Sequence, StreamId, Term};

const STREAM: StreamId = StreamId(1);

fn limits() -> PeerLimits {
    PeerLimits {
        frame_bytes_max: FRAME_BYTES_MAX as u32,
        message_bytes_max: MESSAGE_BYTES_DEFAULT as u32,
        streams_max: 1_024,
        requests_max: REQUESTS_PER_CONNECTION_MAX as u32,
        heartbeat_ms: HEARTBEAT_MS,
    }
}

/// The rest of the broker: one topic with one partition.
pub(crate) struct Rest {
    partition: PartitionHandle,
    pub(crate) refused: Mutex<Vec<(Option<String>, u16)>>,
    closed: Mutex<Vec<&'static str>>,
    acknowledged: Mutex<Vec<Duration>>,
}

/// A broker of which only the connections are real.
pub(crate) fn services() -> (Arc<Services>, Arc<Rest>, mpsc::Receiver<Request>) {
    let (partition, requests) = PartitionHandle::played(16_384);
    let rest = Arc::new(Rest {
        partition,
        refused: Mutex::default(),
        closed: Mutex::default(),
        acknowledged: Mutex::default(),
    });
    let [buffers, request, stream] = Services::parts(16 << 20);
    let services = Services {
        backend: Arc::clone(&rest) as Arc<dyn Backend>,
        flow: Flow::new(crate::flow::POOL_COST_DEFAULT),
        identity: BrokerIdentity {
            cluster_id: 1,
            broker_id: BrokerId(2),
            broker_name: "b".to_owned(),
        },
        limits: limits(),
        read_buffers: Account::new(buffers),
        request_memory: Account::new(request),
        stream_memory: Account::new(stream),
        failures: LogLimit::new(),
    };
    (Arc::new(services), rest, requests)
}

impl Backend for Rest {
    fn partition(&self, topic: &Name, partition: PartitionId) -> Result<PartitionHandle, Refusal> {
        match (topic.as_str(), partition.0) {
            ("orders", 0) => Ok(self.partition.clone()),
            ("orders", _) => Err(Refusal::new(ErrorCode::UnknownPartition, "no such partition")),
            _ => Err(Refusal::new(ErrorCode::UnknownTopic, "no such topic")),
        }
    }
    fn register_producer(
        &self,
        _name: Name,
    ) -> BoxFuture<'static, Result<(ProducerId, u32), Refusal>> {
        Box::pin(async { Ok((ProducerId(42), 7)) })
    }
    fn anonymous_producer(&self) -> ProducerId {
        ProducerId(1 << 63)
    }
    fn metadata(&self, request: &Metadata) -> Result<MetadataPage, Refusal> {
        let (topics, brokers) = (Vec::new(), Vec::new());
        Ok(MetadataPage { request: request.request, more: false, topics, brokers })
    }
    fn create_topic(&self, _request: CreateTopic) -> BoxFuture<'static, Result<(), Refusal>> {
        Box::pin(async { Ok(()) })
    }
    fn alter_topic(&self, _request: AlterTopic) -> BoxFuture<'static, Result<(), Refusal>> {
        Box::pin(async { panic!("a request that fails badly") })
    }
    fn delete_topic(&self, _request: DeleteTopic) -> BoxFuture<'static, Result<(), Refusal>> {
        Box::pin(std::future::pending())
    }
    fn acknowledged(&self, took: Duration) {
        self.acknowledged.lock().unwrap().push(took);
    }
    fn refused(&self, topic: Option<&Name>, code: u16) {
        self.refused.lock().unwrap().push((topic.map(ToString::to_string), code));
    }
    fn connection_opened(&self) {}
    fn connection_closed(&self, reason: &'static str) {
        self.closed.lock().unwrap().push(reason);
    }
}

/// A peer, the connection that serves it, and the partition.
struct World {
    socket: DuplexStream,
    input: BytesMut,
    rest: Arc<Rest>,
    card: Arc<Card>,
    flow: Arc<Flow>,
    requests: mpsc::Receiver<Request>,
    connection: JoinHandle<End>,
}

impl World {
    fn start() -> Self {
        Self::with_socket(1 << 20)
    }

    fn with_socket(bytes: usize) -> Self {
        let (services, rest, requests) = services();
        let flow = Arc::clone(&services.flow);
        let (socket, theirs) = tokio::io::duplex(bytes);
        let card = Card::new(1, "127.0.0.1:9".parse().unwrap());
        let connection = Connection::new(Box::new(theirs), services, Arc::clone(&card)).run();
        #[expect(clippy::disallowed_methods, reason = "the test wants the task's result")]
        let connection = tokio::spawn(connection);
        Self { socket, input: BytesMut::new(), rest, card, flow, requests, connection }
    }

    async fn opened() -> Self {
        let mut world = Self::start();
        world.handshake().await;
        world
    }

    async fn handshake(&mut self) {
        self.say(&hello(1, 1)).await;
        self.say(&auth("anonymous")).await;
        assert!(matches!(self.hear().await, Frame::Welcome(welcome) if welcome.version == 1));
        assert_eq!(self.hear().await, Frame::Ready);
    }

    async fn say(&mut self, frame: &Frame) {
        self.socket.write_all(&encode_to_vec(frame)).await.unwrap();
    }

    async fn hear_or_end(&mut self) -> Option<Frame> {
        let mut decoder = Decoder::new(FRAME_BYTES_MAX);
        loop {
            if let Some(frame) = decoder.decode(&mut self.input).unwrap() {
                return Some(frame);
            }
            if self.socket.read_buf(&mut self.input).await.unwrap() == 0 {
                return None;
            }
        }
    }

    async fn hear(&mut self) -> Frame {
        self.hear_or_end().await.expect("the connection ended")
    }

    /// Hears the last words and the end, and checks that all of it carries `code`.
    async fn hear_the_end(mut self, code: ErrorCode) {
        loop {
            match self.hear().await {
                Frame::Error(error) => {
                    assert_eq!(error.refusal.code, code.number(), "{}", error.refusal.text);
                    break;
                }
                other => assert!(!matches!(other, Frame::GoAway(_)), "{other:?}"),
            }
        }
        assert!(matches!(self.hear().await, Frame::GoAway(last) if last.code == code.number()));
        assert_eq!(self.hear_or_end().await, None);
        drop(self.socket);
        assert_eq!(self.connection.await.unwrap(), End::Refused(code));
        assert!(self.rest.refused.lock().unwrap().contains(&(None, code.number())));
        assert_eq!(*self.rest.closed.lock().unwrap(), [code.reason()]);
    }

    /// Opens a publisher and returns its grant.
    async fn open_publisher(&mut self) -> Grant {
        self.say(&open("orders", 0, None)).await;
        let Some(Request::OpenPublisher { reply, .. }) = self.requests.recv().await else {
            panic!("no request to open");
        };
        reply.done(Ok(PublisherState {
            next_sequence: Sequence(5),
            log_end: Offset(9),
            term: Term(0),
        }));
        let opened = self.hear().await;
        assert!(matches!(opened, Frame::PublisherOpened(o) if o.next_sequence == Sequence(5)));
        match self.hear().await {
            Frame::Grant(STREAM, grant) => grant,
            other => panic!("{other:?} instead of a grant"),
        }
    }

    async fn publish_request(&mut self) -> PublishRequest {
        match self.requests.recv().await {
            Some(Request::Publish(publish)) => publish,
            other => panic!("{other:?} instead of a publish"),
        }
    }

    async fn subscribe(&mut self, limit_bytes: u64) -> ConsumerPort {
        let credit = Grant { limit_cost: limit_bytes, limit_messages: 9, ..Grant::default() };
        let subscribe = Subscribe {
            stream: STREAM,
            request: RequestId(3),
            topic: Name::new("orders").unwrap(),
            partition: PartitionId(0),
            subscription: None,
            start: Start::Earliest,
            credit,
            needs: Needs::default(),
        };
        self.say(&Frame::Subscribe(subscribe)).await;
        let Some(Request::Subscribe(SubscribeRequest { port, reply, .. })) =
            self.requests.recv().await
        else {
            panic!("no request to subscribe");
        };
        let zero = Offset(0);
        reply.done(Ok(SubscribedState {
            start: zero,
            log_start: zero,
            high_watermark: zero,
            skipped: 0,
            term: Term(0),
        }));
        assert!(matches!(self.hear().await, Frame::Subscribed(_)));
        port
    }
}

pub(crate) fn hello(version_min: u16, version_max: u16) -> Frame {
    let client_name = "test".to_owned();
    Frame::Hello(Hello { version_min, version_max, features: 0, limits: limits(), client_name })
}

pub(crate) fn auth(method: &str) -> Frame {
    Frame::Auth(Auth { method: method.to_owned(), content: bytes::Bytes::new() })
}

fn open(topic: &str, partition: u32, producer: Option<&str>) -> Frame {
    Frame::OpenPublisher(OpenPublisher {
        stream: STREAM,
        request: RequestId(1),
        topic: Name::new(topic).unwrap(),
        partition: PartitionId(partition),
        producer: producer.map(|name| Name::new(name).unwrap()),
        producer_id: ProducerId(0),
        producer_epoch: 0,
    })
}

fn publish(sequence: u64, bytes: usize) -> Publish {
    let mut builder = BatchBuilder::new(8 << 20);
    builder.push(1, None, &[], &vec![7; bytes]).unwrap();
    let built = builder.finish();
    let mut header = built.header;
    header.producer_id = ProducerId(1 << 63);
    header.base_sequence = Sequence(sequence);
    header.stamp_local(0);
    Publish { stream: STREAM, deadline_ms: 0, demand: 0, header, body: built.body }
}

fn range(sequence: u64) -> StoredRange {
    let (base_sequence, base_offset) = (Sequence(sequence), Offset(sequence));
    StoredRange { base_sequence, base_offset, record_count: 1, duplicate: false }
}

fn delivery(bytes: usize) -> Deliver {
    Deliver {
        stream: StreamId(0),
        salt: 0,
        record_count: 1,
        high_watermark: Offset(1),
        batches: vec![vec![0; bytes].into()],
    }
}

#[tokio::test(start_paused = true)]
async fn a_publish_is_paid_for_checked_handed_on_and_answered_with_the_newest_grant() {
    let mut world = World::opened().await;
    let grant = world.open_publisher().await;
    assert_eq!(grant.limit_cost, 64 << 10);
    for sequence in 5..8 {
        world.say(&Frame::Publish(publish(sequence, 1_000))).await;
    }
    let mut taken = Vec::new();
    for sequence in 5..8 {
        let request = world.publish_request().await;
        assert_eq!(request.header.base_sequence, Sequence(sequence));
        assert!(request.reservation.cost() >= 1_000 && request.deadline.is_none());
        taken.push(request);
    }
    let held: u64 = taken.iter().map(|request| request.reservation.cost()).sum();
    assert_eq!(world.flow.view(0).reserved_cost, held);
    tokio::time::sleep(Duration::from_millis(3)).await;
    for request in taken {
        drop(request.reservation);
        let sequence = request.reply.base_sequence().0;
        request.reply.stored(range(sequence));
    }
    let Frame::Published(published) = world.hear().await else { panic!("no answer") };
    assert_eq!(published.stored, [range(5), range(6), range(7)]);
    assert_eq!(*world.rest.acknowledged.lock().unwrap(), [Duration::from_millis(3); 3]);
    assert_eq!(world.flow.view(0).reserved_cost, 0);
}

#[tokio::test(start_paused = true)]
async fn answers_leave_in_order_and_a_dropped_one_says_that_nobody_knows() {
    let mut world = World::opened().await;
    world.open_publisher().await;
    for sequence in 5..8 {
        world.say(&Frame::Publish(publish(sequence, 100))).await;
    }
    let first = world.publish_request().await;
    let second = world.publish_request().await;
    let third = world.publish_request().await;
    first.reply.stored(range(5));
    drop(second);
    third.reply.stored(range(7));
    assert!(matches!(world.hear().await, Frame::Published(p) if p.stored == [range(5)]));
    let Frame::Refused(refused) = world.hear().await else { panic!("no refusal") };
    assert_eq!(refused.base_sequence, Sequence(6));
    assert_eq!(refused.refusal.code, ErrorCode::LeaderLost.number());
    assert_eq!(refused.refusal.outcome, Outcome::Unknown);
    assert!(matches!(world.hear().await, Frame::Published(p) if p.stored == [range(7)]));
    let counted = world.rest.refused.lock().unwrap().clone();
    assert_eq!(counted, [(Some("orders".to_owned()), ErrorCode::LeaderLost.number())]);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_hold_is_refused_and_never_reaches_the_partition() {
    let mut world = World::opened().await;
    world.open_publisher().await;
    let mut bent = publish(5, 100);
    bent.body = bytes::Bytes::from(vec![0; bent.body.len()]);
    let mut foreign = publish(6, 100);
    foreign.header.producer_id = ProducerId(3);
    let mut lying = publish(7, 100);
    lying.header.record_count = 2;
    for (sent, code) in [
        (bent, ErrorCode::BadChecksum),
        (foreign, ErrorCode::BadRequest),
        (lying, ErrorCode::BadRequest),
    ] {
        world.say(&Frame::Publish(sent)).await;
        let Frame::Refused(refused) = world.hear().await else { panic!("no refusal") };
        assert_eq!(refused.refusal.code, code.number(), "{}", refused.refusal.text);
        assert_eq!(refused.refusal.outcome, Outcome::NotStored);
    }
    assert!(world.requests.try_recv().is_err());
    assert_eq!(world.flow.view(0).reserved_cost, 0);
}

#[tokio::test(start_paused = true)]
async fn more_than_was_granted_is_not_stored_and_the_third_time_ends_the_stream() {
    let mut world = World::opened().await;
    world.open_publisher().await;
    for sequence in [1, 2, 3] {
        // Beyond the scratch buffer and beyond the credit: the body is thrown away.
        world.say(&Frame::Publish(publish(sequence, 200_000))).await;
        let Frame::Refused(refused) = world.hear().await else { panic!("no refusal") };
        assert_eq!(refused.refusal.code, ErrorCode::CreditViolation.number());
        assert_eq!(refused.base_sequence, Sequence(sequence));
    }
    let Frame::StreamClosed(closed) = world.hear().await else { panic!("the stream goes on") };
    assert_eq!(closed.refusal.unwrap().code, ErrorCode::CreditViolation.number());
    assert_eq!(world.flow.view(0).granted_cost, 0, "its credit returned");
    // What was still on its way to the stream is no error, and others may open it again.
    world.say(&Frame::Publish(publish(4, 100))).await;
    world.open_publisher().await;
}

#[tokio::test(start_paused = true)]
async fn a_demand_is_granted_without_waiting_for_an_answer() {
    let mut world = World::opened().await;
    let grant = world.open_publisher().await;
    world.say(&Frame::Demand(STREAM, Demand { cost: 1 << 20, largest: 1 << 20 })).await;
    let Frame::Grant(STREAM, more) = world.hear().await else { panic!("no grant") };
    assert!(more.limit_cost >= grant.limit_cost + (1 << 20));
    world.say(&Frame::Publish(publish(5, 900_000))).await;
    let request = world.publish_request().await;
    assert!(request.body.len() > 900_000);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_no_pool_could_ever_cover_is_refused_instead_of_waiting_for_ever() {
    let mut world = World::opened().await;
    world.open_publisher().await;
    world.say(&Frame::Demand(STREAM, Demand { cost: 9 << 20, largest: 9 << 20 })).await;
    let Frame::StreamClosed(closed) = world.hear().await else { panic!("the stream waits") };
    let refusal = closed.refusal.unwrap();
    assert_eq!((refusal.code, refusal.limit), (ErrorCode::MessageTooLarge.number(), 4 << 20));
}

#[tokio::test(start_paused = true)]
async fn garbage_and_frames_out_of_place_end_the_connection_with_a_typed_error() {
    let mut world = World::opened().await;
    world.socket.write_all(&[0xff; 64]).await.unwrap();
    world.hear_the_end(ErrorCode::FrameTooLarge).await;

    let mut world = World::opened().await;
    world.socket.write_all(&[0; 64]).await.unwrap();
    world.hear_the_end(ErrorCode::BadFrame).await;

    let mut world = World::opened().await;
    let mut unknown = encode_to_vec(&Frame::Heartbeat);
    unknown[4] = 0x7f;
    world.socket.write_all(&unknown).await.unwrap();
    world.hear_the_end(ErrorCode::BadFrame).await;

    let mut world = World::opened().await;
    world.say(&Frame::Ready).await;
    world.hear_the_end(ErrorCode::BadState).await;

    let mut world = World::opened().await;
    world.say(&Frame::Publish(publish(1, 10))).await;
    world.hear_the_end(ErrorCode::BadState).await;

    let mut world = World::start();
    world.say(&Frame::Heartbeat).await;
    world.hear_the_end(ErrorCode::BadState).await;
}

#[tokio::test(start_paused = true)]
async fn the_handshake_is_held_to_its_versions_methods_size_and_time() {
    let mut world = World::start();
    world.say(&hello(2, 9)).await;
    world.hear_the_end(ErrorCode::UnsupportedVersion).await;

    let mut world = World::start();
    world.say(&hello(1, 4)).await;
    assert!(matches!(world.hear().await, Frame::Welcome(_)));
    world.say(&auth("password")).await;
    world.hear_the_end(ErrorCode::Unauthenticated).await;

    let mut world = World::start();
    world.socket.write_all(&8_000u32.to_le_bytes()).await.unwrap();
    world.hear_the_end(ErrorCode::FrameTooLarge).await;

    let began = Instant::now();
    let world = World::start();
    world.hear_the_end(ErrorCode::PeerSilent).await;
    assert_eq!(began.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_hears_heartbeats_and_then_the_end() {
    let mut world = World::opened().await;
    let began = Instant::now();
    assert_eq!(world.hear().await, Frame::Heartbeat);
    assert_eq!(began.elapsed().as_secs(), 10);
    world.hear_the_end_after_heartbeats().await;
    assert_eq!(began.elapsed().as_secs(), 30);
}

impl World {
    async fn hear_the_end_after_heartbeats(mut self) {
        while let Some(frame) = self.hear_or_end().await {
            match frame {
                Frame::Heartbeat => {}
                Frame::Error(error) => {
                    assert_eq!(error.refusal.code, ErrorCode::PeerSilent.number());
                }
                other => assert!(matches!(other, Frame::GoAway(_))),
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_is_begun_and_not_finished_ends_the_connection() {
    let mut world = World::opened().await;
    world.open_publisher().await;
    let bytes = encode_to_vec(&Frame::Publish(publish(5, 50_000)));
    world.socket.write_all(&bytes[..20_000]).await.unwrap();
    let began = Instant::now();
    // Heartbeats go on meanwhile.
    world.hear_the_end(ErrorCode::PeerSilent).await;
    assert_eq!(began.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_closes_in_the_middle_of_a_frame_leaves_nothing_behind() {
    let mut world = World::opened().await;
    world.open_publisher().await;
    let bytes = encode_to_vec(&Frame::Publish(publish(5, 50_000)));
    world.socket.write_all(&bytes[..20_000]).await.unwrap();
    drop(world.socket);
    assert_eq!(world.connection.await.unwrap(), End::Closed);
    let view = world.flow.view(9);
    assert_eq!((view.granted_cost, view.reserved_cost, view.streams), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn unknown_topics_and_partitions_are_refused_and_the_connection_goes_on() {
    let mut world = World::opened().await;
    for (topic, partition, code) in
        [("nothing", 0, ErrorCode::UnknownTopic), ("orders", 9, ErrorCode::UnknownPartition)]
    {
        world.say(&open(topic, partition, None)).await;
        let Frame::Error(error) = world.hear().await else { panic!("no error") };
        assert_eq!((error.request, error.refusal.code), (RequestId(1), code.number()));
    }
    world.open_publisher().await;
}

#[tokio::test(start_paused = true)]
async fn a_named_producer_is_registered_and_attached_under_its_new_epoch() {
    let mut world = World::opened().await;
    world.say(&open("orders", 0, Some("billing"))).await;
    let Some(Request::OpenPublisher { producer, reply }) = world.requests.recv().await else {
        panic!("no request to open");
    };
    assert_eq!(producer, Some((ProducerId(42), 7)));
    reply.done(Ok(PublisherState {
        next_sequence: Sequence(0),
        log_end: Offset(0),
        term: Term(0),
    }));
    assert!(matches!(world.hear().await, Frame::PublisherOpened(o) if o.producer_epoch == 7));
}

#[tokio::test(start_paused = true)]
async fn requests_beyond_their_slots_are_refused_and_slots_return() {
    let mut world = World::opened().await;
    let delete = |request| {
        Frame::DeleteTopic(DeleteTopic {
            request: RequestId(request),
            topic: Name::new("orders").unwrap(),
        })
    };
    // These are never answered, so they keep their slots.
    for request in 1..=REQUESTS_PER_CONNECTION_MAX as u32 {
        world.say(&delete(request)).await;
    }
    world.say(&delete(1_000)).await;
    let Frame::Error(error) = world.hear().await else { panic!("no error") };
    assert_eq!(error.refusal.code, ErrorCode::OverloadedRequest.number());
    assert_eq!(error.request, RequestId(1_000));
    world.say(&delete(3)).await;
    world.hear_the_end(ErrorCode::BadState).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_task_panics_is_answered_all_the_same() {
    let mut world = World::opened().await;
    let topic = Name::new("orders").unwrap();
    let alter = AlterTopic {
        request: RequestId(4),
        topic,
        partitions: None,
        durability: None,
        overflow: None,
        max_bytes: None,
        max_age_ms: None,
        replicas: None,
    };
    world.say(&Frame::AlterTopic(alter)).await;
    let Frame::Error(error) = world.hear().await else { panic!("no error") };
    assert_eq!(error.refusal.code, ErrorCode::LeaderLost.number());
}

#[tokio::test(start_paused = true)]
async fn a_consumer_has_two_places_and_is_poked_when_one_is_free() {
    let mut world = World::with_socket(4_096);
    world.handshake().await;
    let port = world.subscribe(1_000_000).await;
    assert_eq!(port.credit(), (1_000_000, 9));
    let mut delivered = 0;
    while port.lane_free() {
        port.deliver(delivery(10_000));
        delivered += 1;
        tokio::task::yield_now().await;
        assert!(delivered < 9, "a peer that does not read costs no more than this");
    }
    assert_eq!(world.rest.partition.take_pokes().0, []);
    for _ in 0..2 {
        assert!(matches!(world.hear().await, Frame::Deliver(d) if d.stream == STREAM));
    }
    assert_eq!(world.rest.partition.take_pokes().0, [port.id()]);
    assert!(port.lane_free());
}

#[tokio::test(start_paused = true)]
async fn credit_and_settles_are_registers_that_poke_once() {
    let mut world = World::opened().await;
    let port = world.subscribe(1_000).await;
    for upto in 1..=3 {
        let grant = Grant { limit_cost: 1_000 * upto, limit_messages: 9, ..Grant::default() };
        world.say(&Frame::Grant(STREAM, grant)).await;
        let settle = Settle { stream: STREAM, upto: Offset(upto), confirm: upto == 2 };
        world.say(&Frame::Settle(settle)).await;
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(world.rest.partition.take_pokes().0, [port.id()]);
    port.take_poke();
    assert_eq!(port.credit(), (3_000, 9));
    assert_eq!(port.settle(), Some((Offset(3), true)));
    assert_eq!(port.settle(), None);
    world.say(&Frame::CloseStream(STREAM)).await;
    assert!(matches!(world.hear().await, Frame::StreamClosed(c) if c.refusal.is_none()));
    assert_eq!(world.rest.partition.take_pokes().1, [port.id()]);
    assert!(port.is_closed() && !port.lane_free());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_is_given_up() {
    let mut world = World::with_socket(4_096);
    world.handshake().await;
    let port = world.subscribe(1_000_000).await;
    port.deliver(delivery(100_000));
    let began = Instant::now();
    // It is alive otherwise.
    let mut beats = tokio::time::interval(Duration::from_secs(5));
    while !world.connection.is_finished() {
        beats.tick().await;
        let _ = world.socket.write_all(&encode_to_vec(&Frame::Heartbeat)).await;
    }
    assert_eq!(world.connection.await.unwrap(), End::Refused(ErrorCode::SlowConsumer));
    assert!((30..=41).contains(&began.elapsed().as_secs()));
    assert_eq!(world.rest.partition.take_pokes().1, [port.id()]);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_must_leave_answers_what_it_owes_first() {
    let mut world = World::opened().await;
    world.open_publisher().await;
    world.say(&Frame::Publish(publish(5, 100))).await;
    let request = world.publish_request().await;
    world.card.outbox().go_away(GoAway {
        code: ErrorCode::Draining.number(),
        deadline_ms: 5_000,
        reconnect_after_ms: 100,
        text: String::new(),
    });
    assert!(matches!(world.hear().await, Frame::GoAway(_)));
    world.say(&open("orders", 0, None)).await;
    assert!(matches!(world.hear().await, Frame::Error(_)), "no new streams");
    tokio::time::sleep(Duration::from_secs(1)).await;
    request.reply.stored(range(5));
    assert!(matches!(world.hear().await, Frame::Published(_)));
    assert_eq!(world.hear_or_end().await, None);
    drop(world.socket);
    assert_eq!(world.connection.await.unwrap(), End::Drained);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_holds_no_buffer() {
    assert!(size_of::<Connection>() < 1_024, "{} bytes", size_of::<Connection>());
}
