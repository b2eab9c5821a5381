//! A peer that speaks the protocol byte by byte, and says whatever a test wants.
//!
//! Owns: one socket; what the broker said on it that was not asked for yet.
//! Never: checks what it sends.

use super::{Node, soon};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weir_protocol::batch::{BatchBuilder, BatchHeader};
use weir_protocol::codec::{Decoder, encode_to_vec};
use weir_protocol::error_code::ErrorCode;
use weir_protocol::frame::*;
use weir_protocol::limits::*;
use weir_protocol::types::*;

pub struct Peer {
    socket: TcpStream,
    decoder: Decoder,
    input: BytesMut,
    early: VecDeque<Frame>,
    requests: u32,
}

/// An open publisher, as a client would keep it.
#[derive(Debug, Clone)]
pub struct Producing {
    pub stream: StreamId,
    pub id: ProducerId,
    pub epoch: u32,
    pub next_sequence: u64,
    pub spent: u64,
    pub limit: u64,
}

pub fn hello() -> Hello {
    Hello {
        version_min: PROTOCOL_VERSION_MIN,
        version_max: PROTOCOL_VERSION_MAX,
        features: 0,
        limits: PeerLimits {
            frame_bytes_max: FRAME_BYTES_MAX as u32,
            message_bytes_max: MESSAGE_BYTES_MAX as u32,
            streams_max: STREAMS_PER_CONNECTION_MAX as u32,
            requests_max: REQUESTS_PER_CONNECTION_MAX as u32,
            heartbeat_ms: HEARTBEAT_MS,
        },
        client_name: "peer".to_owned(),
    }
}

pub fn auth() -> Auth {
    Auth { method: "anonymous".to_owned(), content: Bytes::new() }
}

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

impl Peer {
    /// A connection on which nothing was said yet.
    pub async fn raw(node: &Node) -> Self {
        Self::raw_to(node.addresses.native).await
    }

    async fn raw_to(native: SocketAddr) -> Self {
        let socket = TcpStream::connect(native).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let decoder = Decoder::new(FRAME_BYTES_MAX);
        let (input, early) = (BytesMut::new(), VecDeque::new());
        Self { socket, decoder, input, early, requests: 0 }
    }

    /// A connection behind its handshake.
    pub async fn connect(node: &Node) -> Self {
        Self::connect_to(node.addresses.native).await
    }

    /// The same, to a broker that listens there.
    pub async fn connect_to(native: SocketAddr) -> Self {
        let mut peer = Self::raw_to(native).await;
        peer.say_hello().await;
        assert!(matches!(peer.next().await, Frame::Welcome(_)));
        assert_eq!(peer.next().await, Frame::Ready);
        peer
    }

    pub async fn say_hello(&mut self) {
        self.send(&Frame::Hello(hello())).await;
        self.send(&Frame::Auth(auth())).await;
    }

    pub async fn send(&mut self, frame: &Frame) {
        self.send_bytes(&encode_to_vec(frame)).await;
    }

    /// Sends bytes; a broker that has hung up meanwhile is for the next read to notice.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        let _ = soon("the broker reads", self.socket.write_all(bytes)).await;
    }

    /// Says that nothing more will be sent.
    pub async fn finish(&mut self) {
        let _ = self.socket.shutdown().await;
    }

    /// The next frame as it comes; none when the broker has closed the connection.
    pub async fn next_or_end(&mut self) -> Option<Frame> {
        if let Some(frame) = self.early.pop_front() {
            return Some(frame);
        }
        loop {
            match self.decoder.decode(&mut self.input).expect("a broker sends frames") {
                Some(Frame::Heartbeat) => {}
                Some(frame) => return Some(frame),
                None => {
                    let read = self.socket.read_buf(&mut self.input);
                    if soon("the broker says something", read).await.unwrap_or(0) == 0 {
                        return None;
                    }
                }
            }
        }
    }

    pub async fn next(&mut self) -> Frame {
        self.next_or_end().await.expect("the broker keeps the connection")
    }

    /// The next frame of which `pick` takes something; others wait for whoever asks for them.
    pub async fn find<T>(&mut self, mut pick: impl FnMut(&Frame) -> Option<T>) -> T {
        let mut others = VecDeque::new();
        loop {
            let frame = self.next().await;
            if let Some(found) = pick(&frame) {
                others.append(&mut self.early);
                self.early = others;
                return found;
            }
            others.push_back(frame);
        }
    }

    /// The connection ends for this reason: ERROR, GOAWAY, end of stream, and nothing else.
    pub async fn ends_with(&mut self, code: ErrorCode) -> Refusal {
        let refusal = match self.next().await {
            Frame::Error(ErrorFrame { request: RequestId(0), refusal }) => refusal,
            frame => panic!("ERROR {} for the connection, not {frame:?}", code.name()),
        };
        assert_eq!(ErrorCode::from_u16(refusal.code), Some(code), "{refusal:?}");
        assert!(!refusal.text.is_empty());
        match self.next().await {
            Frame::GoAway(go_away) => assert_eq!(go_away.code, code.number()),
            frame => panic!("GOAWAY, not {frame:?}"),
        }
        assert_eq!(self.next_or_end().await, None, "the connection is over");
        refusal
    }

    /// The connection serves: a request is answered.
    pub async fn is_served(&mut self) {
        let request = self.request();
        self.send(&Frame::Metadata(Metadata { request, topic: None, after: None })).await;
        let answered = |frame: &Frame| match frame {
            Frame::MetadataPage(page) => (page.request == request).then_some(()),
            _ => None,
        };
        self.find(answered).await;
    }

    pub fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    /// The answer to a request: a frame, or why not.
    pub async fn answer(&mut self, request: RequestId) -> Result<Frame, Refusal> {
        self.find(|frame| {
            let of = match frame {
                Frame::PublisherOpened(opened) => opened.request,
                Frame::Subscribed(subscribed) => subscribed.request,
                Frame::MetadataPage(page) => page.request,
                Frame::Done(request) => *request,
                Frame::Error(error) => error.request,
                _ => return None,
            };
            (of == request).then(|| match frame {
                Frame::Error(error) => Err(error.refusal.clone()),
                frame => Ok(frame.clone()),
            })
        })
        .await
    }

    // ---- topics ----

    pub async fn create_topic(&mut self, topic: &str, config: TopicConfig) -> Result<(), Refusal> {
        let request = self.request();
        self.send(&Frame::CreateTopic(CreateTopic { request, topic: name(topic), config })).await;
        self.answer(request).await.map(|_| ())
    }

    /// The high watermark of a topic's first partition.
    pub async fn high_watermark(&mut self, topic: &str) -> u64 {
        let request = self.request();
        let ask = Metadata { request, topic: Some(name(topic)), after: None };
        self.send(&Frame::Metadata(ask)).await;
        match self.answer(request).await.unwrap() {
            Frame::MetadataPage(page) => page.topics[0].partitions[0].high_watermark.0,
            frame => panic!("METADATA_PAGE, not {frame:?}"),
        }
    }

    // ---- publishers ----

    pub async fn open_publisher(
        &mut self,
        stream: u32,
        topic: &str,
        producer: Option<&str>,
    ) -> Result<Producing, Refusal> {
        let open = OpenPublisher {
            stream: StreamId(stream),
            request: self.request(),
            topic: name(topic),
            partition: PartitionId(0),
            producer: producer.map(name),
            producer_id: ProducerId(0),
            producer_epoch: 0,
        };
        self.open_as(open).await
    }

    pub async fn open_as(&mut self, open: OpenPublisher) -> Result<Producing, Refusal> {
        let (stream, request) = (open.stream, open.request);
        self.send(&Frame::OpenPublisher(open)).await;
        let opened = match self.answer(request).await? {
            Frame::PublisherOpened(opened) => opened,
            frame => panic!("PUBLISHER_OPENED, not {frame:?}"),
        };
        let mut producing = Producing {
            stream,
            id: opened.producer_id,
            epoch: opened.producer_epoch,
            next_sequence: opened.next_sequence.0,
            spent: 0,
            limit: 0,
        };
        producing.limit = self.next_grant(stream).await.limit_cost;
        Ok(producing)
    }

    pub async fn next_grant(&mut self, stream: StreamId) -> Grant {
        let of_stream = |frame: &Frame| match frame {
            Frame::Grant(of, grant) if *of == stream => Some(*grant),
            _ => None,
        };
        self.find(of_stream).await
    }

    /// Asks for credit until there is enough for `cost` more.
    pub async fn afford(&mut self, producing: &mut Producing, cost: u64) {
        if producing.limit - producing.spent < cost {
            self.send(&Frame::Demand(producing.stream, Demand { cost, largest: cost })).await;
        }
        while producing.limit - producing.spent < cost {
            let grant = self.next_grant(producing.stream).await;
            producing.limit = producing.limit.max(grant.limit_cost);
        }
    }

    /// Sends a batch that is paid for, and takes the answer.
    pub async fn publish(
        &mut self,
        producing: &mut Producing,
        publish: Publish,
    ) -> Result<StoredRange, Refused> {
        self.afford(producing, publish.header.cost()).await;
        producing.spent += publish.header.cost();
        let (stream, base) = (publish.stream, publish.header.base_sequence);
        self.send(&Frame::Publish(publish)).await;
        let (answer, grant) = self.answer_to_publish(stream, base).await;
        producing.limit = producing.limit.max(grant.limit_cost);
        answer
    }

    pub async fn answer_to_publish(
        &mut self,
        stream: StreamId,
        base: Sequence,
    ) -> (Result<StoredRange, Refused>, Grant) {
        let answer = |frame: &Frame| match frame {
            Frame::Published(published) if published.stream == stream => {
                let range = published.stored.iter().find(|range| range.base_sequence == base)?;
                Some((Ok(*range), published.grant))
            }
            Frame::Refused(refused) if refused.stream == stream => {
                assert_eq!(refused.base_sequence, base, "{refused:?}");
                Some((Err(refused.clone()), refused.grant))
            }
            _ => None,
        };
        self.find(answer).await
    }

    /// The next records go to the log.
    pub async fn publish_next(&mut self, producing: &mut Producing, payloads: &[&[u8]]) -> u64 {
        let publish = producing.batch(payloads);
        let stored = self.publish(producing, publish).await.unwrap();
        producing.next_sequence += u64::from(stored.record_count);
        stored.base_offset.0
    }

    // ---- consumers ----

    pub async fn subscribe(
        &mut self,
        stream: u32,
        topic: &str,
        subscription: Option<&str>,
        start: Start,
    ) -> Result<Subscribed, Refusal> {
        let request = self.request();
        let credit = Grant { limit_cost: 64 << 20, limit_messages: 1_000_000, ..Grant::default() };
        self.send(&Frame::Subscribe(Subscribe {
            stream: StreamId(stream),
            request,
            topic: name(topic),
            partition: PartitionId(0),
            subscription: subscription.map(name),
            start,
            credit,
            needs: Needs::default(),
        }))
        .await;
        match self.answer(request).await? {
            Frame::Subscribed(subscribed) => Ok(subscribed),
            frame => panic!("SUBSCRIBED, not {frame:?}"),
        }
    }
}

impl Producing {
    /// The batch of the next sequence.
    pub fn batch(&self, payloads: &[&[u8]]) -> Publish {
        let mut builder = BatchBuilder::new(MESSAGE_BYTES_MAX);
        for payload in payloads {
            builder.push(1_700_000_000_000, None, &[], payload).unwrap();
        }
        let built = builder.finish();
        let header = BatchHeader {
            producer_id: self.id,
            producer_epoch: self.epoch,
            base_sequence: Sequence(self.next_sequence),
            ..built.header
        };
        sealed(self.stream, header, built.body)
    }
}

/// A PUBLISH whose header's CRC fits what the header says.
pub fn sealed(stream: StreamId, mut header: BatchHeader, body: Bytes) -> Publish {
    header.stamp_local(0);
    Publish { stream, deadline_ms: 0, demand: 0, header, body }
}
