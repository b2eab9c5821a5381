//! A scripted broker for the tests of the client: it says exactly what a test tells it to say.
//!
//! Owns: an in-memory network whose connections the test accepts one by one.
//! Never: answers by itself, but for the handshake and questions about topics.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test's broker may panic")]

pub mod cluster;

use bytes::{Bytes, BytesMut};
use cluster::Told;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use weir_client::seams::{BoxFuture, Connector, Duplex, WallClock};
use weir_client::{Client, Consumer, Delivered, ErrorCode, Name, Outcome, TopicConfig, TopicView};
use weir_protocol::batch::{BatchBuilder, BatchHeader};
use weir_protocol::codec::{Decoder, encode_to_vec};
use weir_protocol::frame::*;
use weir_protocol::limits::*;
use weir_protocol::types::*;

/// Milliseconds since the epoch that every message is stamped with.
pub const NOW_MS: u64 = 1_700_000_000_000;

struct FixedClock;
impl WallClock for FixedClock {
    fn now_ms(&self) -> u64 {
        NOW_MS
    }
}

struct MockConnector(mpsc::Sender<DuplexStream>);

impl Connector for MockConnector {
    fn connect<'a>(&'a self, _: &'a str, _: u16) -> BoxFuture<'a, io::Result<Duplex>> {
        Box::pin(async move {
            let (ours, theirs) = tokio::io::duplex(1 << 20);
            match self.0.try_send(theirs) {
                Ok(()) => Ok(Duplex::from_stream(ours)),
                Err(_) => Err(io::ErrorKind::ConnectionRefused.into()),
            }
        })
    }
}

/// Where the test accepts the client's connections.
pub struct Network {
    incoming: mpsc::Receiver<DuplexStream>,
    pub topic: TopicView,
    /// What the brokers understand beside version 1.
    pub features: u64,
}

/// A client that connects to the scripted broker.
pub async fn connect() -> (Client, Network, Peer) {
    connect_to(TopicConfig::default()).await
}

/// The same, with a topic `orders` of this configuration.
pub async fn connect_to(config: TopicConfig) -> (Client, Network, Peer) {
    connect_with(config, 0).await
}

/// The same, with a broker of these features.
pub async fn connect_with(config: TopicConfig, features: u64) -> (Client, Network, Peer) {
    let (sender, incoming) = mpsc::channel(1);
    let mut network = Network { incoming, topic: topic("orders", config), features };
    let connecting = Client::builder()
        .endpoints(["weir://mock:1"])
        .name("test")
        .seed(7)
        .connector(Arc::new(MockConnector(sender)))
        .wall_clock(Arc::new(FixedClock))
        .connect();
    let (client, peer) = tokio::join!(connecting, network.accept());
    (client.expect("the handshake is through"), network, peer)
}

pub fn topic(name: &str, config: TopicConfig) -> TopicView {
    let partition = |number| PartitionView {
        partition: PartitionId(number),
        leader: Some(BrokerId(1)),
        log_start: Offset(0),
        high_watermark: Offset(0),
        bytes: 0,
        term: Term(0),
        replicas: Vec::new(),
    };
    TopicView {
        name: Name::new(name).unwrap(),
        id: TopicId(1),
        config,
        partitions: (0..config.partitions).map(partition).collect(),
    }
}

impl Network {
    /// The next connection, behind its handshake.
    pub async fn accept(&mut self) -> Peer {
        let mut peer = self.accept_raw().await;
        let welcome = Welcome { features: self.features, ..welcome() };
        assert!(peer.shake_hands(welcome).await, "the client says hello");
        peer
    }

    /// The next connection, before its handshake.
    pub async fn accept_raw(&mut self) -> Peer {
        let stream = self.incoming.recv().await.expect("the client connects");
        Peer::new(stream, self.topic.clone())
    }
}

pub fn welcome() -> Welcome {
    Welcome {
        version: PROTOCOL_VERSION_MAX,
        features: 0,
        limits: PeerLimits {
            frame_bytes_max: FRAME_BYTES_MAX as u32,
            message_bytes_max: MESSAGE_BYTES_DEFAULT as u32,
            streams_max: STREAMS_PER_CONNECTION_MAX as u32,
            requests_max: REQUESTS_PER_CONNECTION_MAX as u32,
            heartbeat_ms: HEARTBEAT_MS,
        },
        message_cost_min: MESSAGE_COST_MIN as u32,
        cluster_id: 1,
        broker_id: BrokerId(1),
        broker_name: "mock".to_owned(),
        auth_methods: "anonymous".to_owned(),
    }
}

/// The broker's end of one connection.
pub struct Peer {
    stream: DuplexStream,
    input: BytesMut,
    decoder: Decoder,
    pub topic: TopicView,
    /// What is told of topics, where several brokers tell it; `topic` otherwise.
    pub told: Option<Arc<Mutex<Told>>>,
    /// How often it was asked about topics.
    pub asked: usize,
    /// Frames that were read while another was looked for.
    early: VecDeque<Frame>,
}

impl Peer {
    fn new(stream: DuplexStream, topic: TopicView) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            decoder: Decoder::new(FRAME_BYTES_MAX),
            topic,
            told: None,
            asked: 0,
            early: VecDeque::new(),
        }
    }

    /// False: the client gave up before it had said everything.
    async fn shake_hands(&mut self, welcome: Welcome) -> bool {
        let Some(frame) = self.read_or_end().await else { return false };
        let Frame::Hello(hello) = frame else { panic!("HELLO comes first, not {frame:?}") };
        assert_eq!(hello.client_name, "test");
        let Some(frame) = self.read_or_end().await else { return false };
        let Frame::Auth(auth) = frame else { panic!("AUTH comes second, not {frame:?}") };
        assert_eq!(auth.method, "anonymous");
        self.send(Frame::Welcome(welcome)).await;
        self.send(Frame::Ready).await;
        true
    }

    /// What it says of its topics.
    fn page(&self, request: RequestId) -> MetadataPage {
        let (topics, brokers) = match &self.told {
            Some(told) => {
                let told = told.lock().unwrap();
                (vec![told.topic.clone()], told.brokers.clone())
            }
            None => (vec![self.topic.clone()], Vec::new()),
        };
        MetadataPage { request, more: false, topics, brokers }
    }

    async fn read(&mut self) -> Frame {
        self.read_or_end().await.expect("the client keeps the connection")
    }

    /// The next frame as it comes; none when the client has closed the connection.
    pub async fn read_or_end(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.input).expect("well-formed frames") {
                return Some(frame);
            }
            if self.stream.read_buf(&mut self.input).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// The next frame but for heartbeats; questions about the topic are answered.
    pub async fn next(&mut self) -> Frame {
        self.next_or_end().await.expect("the client keeps the connection")
    }

    /// The same; none when the client has closed the connection.
    pub async fn next_or_end(&mut self) -> Option<Frame> {
        if let Some(frame) = self.early.pop_front() {
            return Some(frame);
        }
        loop {
            match self.read_or_end().await? {
                Frame::Heartbeat => {}
                Frame::Metadata(asked) => {
                    self.asked += 1;
                    let page = self.page(asked.request);
                    self.send(Frame::MetadataPage(page)).await;
                }
                frame => return Some(frame),
            }
        }
    }

    /// Answers questions about topics until the client closes the connection; returns what else
    /// came.
    pub async fn serve(mut self) -> Vec<Frame> {
        let mut all = Vec::from(std::mem::take(&mut self.early));
        while let Some(frame) = self.read_or_end().await {
            match frame {
                Frame::Heartbeat => {}
                Frame::Metadata(asked) => {
                    let page = self.page(asked.request);
                    self.send(Frame::MetadataPage(page)).await;
                }
                frame => all.push(frame),
            }
        }
        all
    }

    pub async fn send(&mut self, frame: Frame) {
        // A client that has gone away is the test's to notice.
        let _ = self.stream.write_all(&encode_to_vec(&frame)).await;
    }

    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// Whether the client sends nothing for this long.
    pub async fn is_quiet(&mut self, for_ms: u64) -> bool {
        let limit = std::time::Duration::from_millis(for_ms);
        match tokio::time::timeout(limit, self.next()).await {
            Ok(frame) => {
                self.early.push_back(frame);
                false
            }
            Err(_) => true,
        }
    }

    // ---- publishers ----

    /// Opens the publisher that is asked for, as producer 9 epoch 1, and grants `credit`.
    pub async fn open_publisher(&mut self, next_sequence: u64, credit: u64) -> OpenPublisher {
        let frame = self.next().await;
        let Frame::OpenPublisher(open) = frame else { panic!("OPEN_PUBLISHER, not {frame:?}") };
        let stream = open.stream;
        self.send(Frame::PublisherOpened(PublisherOpened {
            stream,
            request: open.request,
            producer_id: ProducerId(9),
            producer_epoch: 1,
            next_sequence: Sequence(next_sequence),
            log_end: Offset(next_sequence),
            term: Term(0),
        }))
        .await;
        self.send(Frame::Grant(stream, grant(credit))).await;
        open
    }

    pub async fn next_publish(&mut self) -> Publish {
        loop {
            if let Ok(publish) = self.next_publish_or_demand().await {
                return publish;
            }
        }
    }

    pub async fn next_publish_or_demand(&mut self) -> Result<Publish, Demand> {
        match self.next().await {
            Frame::Publish(publish) => {
                publish.header.check_body(&publish.body).expect("the body's CRC holds");
                Ok(publish)
            }
            Frame::Demand(_, demand) => Err(demand),
            frame => panic!("PUBLISH, not {frame:?}"),
        }
    }

    /// Answers a publish: its records are stored at the offsets of their sequences.
    pub async fn store(&mut self, publish: &Publish, credit: u64) {
        self.store_as(publish, publish.header.base_sequence.0, false, credit).await;
    }

    pub async fn store_as(&mut self, publish: &Publish, offset: u64, duplicate: bool, credit: u64) {
        self.send(published(publish, offset, duplicate, credit)).await;
    }

    pub async fn refuse(&mut self, publish: &Publish, refusal: Refusal, credit: u64) {
        self.send(refused(publish, refusal, credit)).await;
    }

    // ---- consumers ----

    pub async fn open_consumer(&mut self, start: u64, high_watermark: u64) -> Subscribe {
        let frame = self.next().await;
        let Frame::Subscribe(subscribe) = frame else { panic!("SUBSCRIBE, not {frame:?}") };
        self.send(Frame::Subscribed(Subscribed {
            stream: subscribe.stream,
            request: subscribe.request,
            start: Offset(start),
            log_start: Offset(0),
            high_watermark: Offset(high_watermark),
            skipped: 0,
            term: Term(0),
        }))
        .await;
        subscribe
    }

    pub async fn next_settle(&mut self) -> Settle {
        match self.next().await {
            Frame::Settle(settle) => settle,
            frame => panic!("SETTLE, not {frame:?}"),
        }
    }

    pub async fn next_grant(&mut self) -> Grant {
        match self.next().await {
            Frame::Grant(_, grant) => grant,
            frame => panic!("GRANT, not {frame:?}"),
        }
    }

    pub async fn settled(&mut self, stream: StreamId, upto: u64) {
        self.send(Frame::Settled(Settled { stream, upto: Offset(upto), refusal: None })).await;
    }

    pub async fn deliver(&mut self, stream: StreamId, batches: Vec<Bytes>, records: u32) {
        self.send(Frame::Deliver(Deliver {
            stream,
            salt: SALT,
            record_count: records,
            high_watermark: Offset(1_000),
            batches,
        }))
        .await;
    }
}

pub fn published(publish: &Publish, offset: u64, duplicate: bool, credit: u64) -> Frame {
    let stored = StoredRange {
        base_sequence: publish.header.base_sequence,
        base_offset: Offset(offset),
        record_count: publish.header.record_count,
        duplicate,
    };
    let (stream, stored) = (publish.stream, vec![stored]);
    Frame::Published(Published { stream, stored, grant: grant(credit) })
}

pub fn refused(publish: &Publish, refusal: Refusal, credit: u64) -> Frame {
    Frame::Refused(Refused {
        stream: publish.stream,
        base_sequence: publish.header.base_sequence,
        record_count: publish.header.record_count,
        refusal,
        grant: grant(credit),
    })
}

pub fn grant(limit_cost: u64) -> Grant {
    Grant { limit_cost, limit_messages: u64::MAX, ..Grant::default() }
}

pub fn refusal(code: ErrorCode, outcome: Outcome) -> Refusal {
    Refusal { outcome, ..Refusal::new(code, "scripted") }
}

/// Salt of the segment that scripted deliveries come from.
pub const SALT: u64 = 77;

/// A stored batch with these payloads.
pub fn stored_batch(base_offset: u64, payloads: &[&str]) -> Bytes {
    let mut builder = BatchBuilder::new(MESSAGE_BYTES_DEFAULT);
    for payload in payloads {
        let headers = [(Bytes::from_static(b"h"), Bytes::from_static(b"v"))];
        builder.push(NOW_MS, Some(b"key"), &headers, payload.as_bytes()).unwrap();
    }
    let built = builder.finish();
    let mut header = BatchHeader { base_offset: Offset(base_offset), ..built.header };
    let mut stored = BytesMut::from(&header.stamp_local(SALT)[..]);
    stored.extend_from_slice(&built.body);
    stored.resize(header.stored_len(), 0);
    stored.freeze()
}

/// What a batch costs of a publisher's credit.
pub fn batch_cost(header: &BatchHeader) -> u64 {
    let floor = u64::from(header.record_count) * MESSAGE_COST_MIN;
    floor.max(u64::from(header.body_len))
}

/// Delivers two messages at this offset, in a batch of their own.
pub async fn deliver_two(peer: &mut Peer, stream: StreamId, base: u64) -> u64 {
    let batch = stored_batch(base, &[&format!("m{base}"), &format!("m{}", base + 1)]);
    let bytes = batch.len() as u64;
    peer.deliver(stream, vec![batch], 2).await;
    bytes
}

pub async fn take(consumer: &mut Consumer, count: usize) -> Vec<Delivered> {
    let mut taken = Vec::new();
    for _ in 0..count {
        taken.push(consumer.next().await.expect("not ended").expect("no error"));
    }
    taken
}

pub fn offsets(messages: &[Delivered]) -> Vec<u64> {
    messages.iter().map(Delivered::offset).collect()
}
