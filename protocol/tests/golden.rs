//! The bytes of every frame, for ever: `tests/vectors/v1.txt` holds a line per frame.
//!
//! To add a frame: add it to `frames`, run with `WEIR_VECTORS=add`, review the new line. Lines
//! that exist are never changed: a difference fails, whatever the variable says.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod common;

use bytes::{Bytes, BytesMut};
use weir_protocol::batch::BatchBuilder;
use weir_protocol::codec::{Decoder, encode_to_vec};
use weir_protocol::error_code::ErrorCode;
use weir_protocol::frame::*;
use weir_protocol::limits::FRAME_BYTES_MAX;
use weir_protocol::types::*;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn limits() -> PeerLimits {
    PeerLimits {
        frame_bytes_max: 1 << 20,
        message_bytes_max: 1 << 19,
        streams_max: 100,
        requests_max: 10,
        heartbeat_ms: 10_000,
    }
}

fn grant() -> Grant {
    Grant {
        epoch: 1,
        limit_cost: 65_536,
        limit_messages: u64::MAX,
        ttl_ms: 0,
        level: 0,
        reason_bits: 1,
    }
}

fn refusal() -> Refusal {
    Refusal { limit: 7, ..Refusal::new(ErrorCode::SequenceGap, "sequence 7 is next") }
}

fn config() -> TopicConfig {
    TopicConfig {
        partitions: 3,
        durability: Durability::Fsync,
        overflow: Overflow::Reject,
        max_bytes: 10 << 30,
        max_age_ms: 1_000,
        replicas: 0,
    }
}

fn publish() -> Publish {
    let mut builder = BatchBuilder::new(1 << 20);
    let headers = [(Bytes::from_static(b"traceparent"), Bytes::from_static(b"00-01"))];
    builder.push(1_700_000_000_000, Some(b"c42"), &headers, b"hello").unwrap();
    builder.push(1_700_000_000_005, None, &[], b"").unwrap();
    let mut built = builder.finish();
    built.header.producer_id = ProducerId(9);
    built.header.base_sequence = Sequence(4);
    built.header.stamp_local(0);
    let (header, body) = (built.header, built.body);
    Publish { stream: StreamId(1), deadline_ms: 5_000, demand: 1_024, header, body }
}

fn connection_frames() -> Vec<(&'static str, Frame)> {
    vec![
        (
            "hello",
            Frame::Hello(Hello {
                version_min: 1,
                version_max: 1,
                features: 0,
                limits: limits(),
                client_name: "orders-api".into(),
            }),
        ),
        (
            "welcome",
            Frame::Welcome(Welcome {
                version: 1,
                features: 0,
                limits: limits(),
                message_cost_min: 512,
                cluster_id: 0x0123_4567_89ab_cdef,
                broker_id: BrokerId(1),
                broker_name: "weir-0".into(),
                auth_methods: "anonymous".into(),
            }),
        ),
        ("auth", Frame::Auth(Auth { method: "anonymous".into(), content: Bytes::new() })),
        ("ready", Frame::Ready),
        ("heartbeat", Frame::Heartbeat),
        (
            "goaway",
            Frame::GoAway(GoAway {
                code: ErrorCode::Draining.number(),
                deadline_ms: 1_000,
                reconnect_after_ms: 250,
                text: "bye".into(),
            }),
        ),
        ("error", Frame::Error(ErrorFrame { request: RequestId(3), refusal: refusal() })),
        (
            "error_not_leader",
            Frame::Error(ErrorFrame {
                request: RequestId(3),
                refusal: Refusal::not_leader(Some((BrokerId(3), Term(7))), "broker 3 leads"),
            }),
        ),
    ]
}

fn publish_frames() -> Vec<(&'static str, Frame)> {
    let stream = StreamId(1);
    vec![
        (
            "open_publisher",
            Frame::OpenPublisher(OpenPublisher {
                stream,
                request: RequestId(1),
                topic: name("orders"),
                partition: PartitionId(2),
                producer: Some(name("loader")),
                producer_id: ProducerId(0),
                producer_epoch: 0,
            }),
        ),
        (
            "publisher_opened",
            Frame::PublisherOpened(PublisherOpened {
                stream,
                request: RequestId(1),
                producer_id: ProducerId(9),
                producer_epoch: 2,
                next_sequence: Sequence(4),
                log_end: Offset(100),
                term: Term(0),
            }),
        ),
        (
            "publisher_opened_term",
            Frame::PublisherOpened(PublisherOpened {
                stream,
                request: RequestId(1),
                producer_id: ProducerId(9),
                producer_epoch: 2,
                next_sequence: Sequence(4),
                log_end: Offset(100),
                term: Term(7),
            }),
        ),
        ("publish", Frame::Publish(publish())),
        (
            "published",
            Frame::Published(Published {
                stream,
                stored: vec![StoredRange {
                    base_sequence: Sequence(4),
                    base_offset: Offset(100),
                    record_count: 2,
                    duplicate: false,
                }],
                grant: grant(),
            }),
        ),
        (
            "refused",
            Frame::Refused(Refused {
                stream,
                base_sequence: Sequence(9),
                record_count: 1,
                refusal: refusal(),
                grant: grant(),
            }),
        ),
        ("grant", Frame::Grant(stream, grant())),
        ("demand", Frame::Demand(stream, Demand { cost: 4_096, largest: 512 })),
        ("revoke", Frame::Revoke(stream, Revoke { epoch: 1, limit_cost: 512 })),
        ("revoked", Frame::Revoked(stream, Revoked { epoch: 1, spent_cost: 1_024 })),
        ("close_stream", Frame::CloseStream(stream)),
        ("stream_closed", Frame::StreamClosed(StreamClosed { stream, refusal: Some(refusal()) })),
    ]
}

fn consume_frames() -> Vec<(&'static str, Frame)> {
    let stream = StreamId(2);
    vec![
        (
            "subscribe",
            Frame::Subscribe(Subscribe {
                stream,
                request: RequestId(2),
                topic: name("orders"),
                partition: PartitionId(0),
                subscription: Some(name("billing")),
                start: Start::Time(1_700_000_000_000),
                credit: grant(),
                needs: Needs::default(),
            }),
        ),
        (
            "subscribe_needs",
            Frame::Subscribe(Subscribe {
                stream,
                request: RequestId(2),
                topic: name("orders"),
                partition: PartitionId(0),
                subscription: None,
                start: Start::Latest,
                credit: grant(),
                needs: Needs { any_replica: true, reach: Offset(9), resume: Offset(5), epoch: 0 },
            }),
        ),
        (
            "subscribed",
            Frame::Subscribed(Subscribed {
                stream,
                request: RequestId(2),
                start: Offset(5),
                log_start: Offset(1),
                high_watermark: Offset(9),
                skipped: 0,
                term: Term(0),
            }),
        ),
        (
            "subscribed_term",
            Frame::Subscribed(Subscribed {
                stream,
                request: RequestId(2),
                start: Offset(5),
                log_start: Offset(1),
                high_watermark: Offset(9),
                skipped: 0,
                term: Term(7),
            }),
        ),
        (
            "deliver",
            Frame::Deliver(Deliver {
                stream,
                salt: 77,
                record_count: 2,
                high_watermark: Offset(9),
                batches: vec![Bytes::from_static(&[0xab; 64])],
            }),
        ),
        ("settle", Frame::Settle(Settle { stream, upto: Offset(7), confirm: true })),
        ("settled", Frame::Settled(Settled { stream, upto: Offset(7), refusal: None })),
    ]
}

fn sharing_frames() -> Vec<(&'static str, Frame)> {
    let stream = StreamId(2);
    vec![
        (
            "subscribe_epoch",
            Frame::Subscribe(Subscribe {
                stream,
                request: RequestId(2),
                topic: name("orders"),
                partition: PartitionId(0),
                subscription: Some(name("billing")),
                start: Start::Earliest,
                credit: grant(),
                needs: Needs { epoch: 11, ..Needs::default() },
            }),
        ),
        (
            "join",
            Frame::Join(Join {
                stream,
                request: RequestId(2),
                topic: name("orders"),
                subscription: name("billing"),
                member: MemberId(0x0102_0304_0506_0708),
            }),
        ),
        (
            "assignment",
            Frame::Assignment(Assignment {
                stream,
                epoch: 11,
                partitions: vec![PartitionId(0), PartitionId(5)],
            }),
        ),
        ("present", Frame::Present(Present { stream, epoch: 11 })),
        ("leave", Frame::Leave(stream)),
    ]
}

fn topic_frames() -> Vec<(&'static str, Frame)> {
    let request = RequestId(4);
    let topic = name("orders");
    let partition = lone_partition();
    vec![
        (
            "metadata",
            Frame::Metadata(Metadata { request, topic: None, after: Some(topic.clone()) }),
        ),
        (
            "metadata_page",
            Frame::MetadataPage(MetadataPage {
                request,
                more: true,
                topics: vec![TopicView {
                    name: topic.clone(),
                    id: TopicId(3),
                    config: config(),
                    partitions: vec![partition],
                }],
                brokers: Vec::new(),
            }),
        ),
        ("metadata_page_brokers", Frame::MetadataPage(page_of_cluster(request, 0))),
        (
            "create_topic",
            Frame::CreateTopic(CreateTopic { request, topic: topic.clone(), config: config() }),
        ),
        (
            "alter_topic",
            Frame::AlterTopic(AlterTopic {
                request,
                topic: topic.clone(),
                partitions: Some(4),
                durability: Some(Durability::Memory),
                overflow: None,
                max_bytes: Some(1 << 30),
                max_age_ms: None,
                replicas: None,
            }),
        ),
        ("delete_topic", Frame::DeleteTopic(DeleteTopic { request, topic })),
        ("done", Frame::Done(request)),
    ]
}

/// Frames that say how many replicas each partition shall have.
fn replica_frames() -> Vec<(&'static str, Frame)> {
    let request = RequestId(4);
    let topic = name("orders");
    vec![
        ("metadata_page_replicas", Frame::MetadataPage(page_of_cluster(request, 3))),
        (
            "create_topic_replicas",
            Frame::CreateTopic(CreateTopic {
                request,
                topic: topic.clone(),
                config: TopicConfig { replicas: 3, ..config() },
            }),
        ),
        (
            "alter_topic_replicas",
            Frame::AlterTopic(AlterTopic {
                request,
                topic,
                partitions: None,
                durability: None,
                overflow: None,
                max_bytes: None,
                max_age_ms: None,
                replicas: Some(5),
            }),
        ),
    ]
}

/// Of a broker that tells nothing of others.
fn lone_partition() -> PartitionView {
    PartitionView {
        partition: PartitionId(0),
        leader: Some(BrokerId(1)),
        log_start: Offset(0),
        high_watermark: Offset(10),
        bytes: 1 << 20,
        term: Term(0),
        replicas: Vec::new(),
    }
}

/// A page that tells who serves what.
fn page_of_cluster(request: RequestId, wanted: u8) -> MetadataPage {
    let broker = |id: u64, host: &str, rack: &str| BrokerView {
        id: BrokerId(id),
        host: host.into(),
        port: 7420,
        name: format!("weir-{id}"),
        rack: rack.into(),
    };
    let partition = |number: u32, leader: Option<u64>, term: u64, replicas: [u64; 2]| {
        let (log_start, high_watermark) = (Offset(0), Offset(10));
        PartitionView {
            partition: PartitionId(number),
            leader: leader.map(BrokerId),
            log_start,
            high_watermark,
            bytes: 1 << 20,
            term: Term(term),
            replicas: replicas.map(BrokerId).to_vec(),
        }
    };
    let partitions = vec![partition(0, Some(3), 7, [1, 3]), partition(1, None, 9, [3, 2])];
    let config = TopicConfig { replicas: wanted, ..config() };
    let topic = TopicView { name: name("orders"), id: TopicId(3), config, partitions };
    let brokers = vec![broker(1, "10.0.0.1", "a"), broker(2, "b2.local", "b"), broker(3, "", "")];
    MetadataPage { request, more: false, topics: vec![topic], brokers }
}

#[test]
fn every_frame_has_the_bytes_it_always_had() {
    let groups = [
        connection_frames(),
        publish_frames(),
        consume_frames(),
        sharing_frames(),
        topic_frames(),
        replica_frames(),
    ];
    let encoded = groups.into_iter().flatten().map(|(title, frame)| {
        let bytes = encode_to_vec(&frame);
        let decoded = Decoder::new(FRAME_BYTES_MAX).decode(&mut BytesMut::from(&bytes[..]));
        assert_eq!(decoded, Ok(Some(frame)), "{title} does not survive");
        (title, bytes)
    });
    common::check_vectors("v1.txt", encoded);
}
