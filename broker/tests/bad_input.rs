//! Whatever a peer says, it gets the typed error of ERRORS.md, loses at most its own connection,
//! and others are served as if nothing had been.

#![allow(clippy::unwrap_used, reason = "a test may panic wherever it is")]

mod common;

use common::peer::{Peer, auth, hello, name};
use common::{Node, Witness, until};
use weir_protocol::codec::encode_to_vec;
use weir_protocol::error_code::ErrorCode;
use weir_protocol::frame::*;
use weir_protocol::limits::*;
use weir_protocol::types::*;

const TYPE_AT: usize = 4;
const FLAGS_AT: usize = 5;
const FIELDS_LEN_AT: usize = 6;
const CRC_AT: usize = 12;

/// Gives a changed frame (without batches) the lengths and the CRC that fit it.
fn resealed(mut frame: Vec<u8>) -> Vec<u8> {
    let fields = frame.len() - FRAME_HEADER_BYTES;
    let behind = frame.len() as u32 - 4;
    frame[..4].copy_from_slice(&behind.to_le_bytes());
    frame[FIELDS_LEN_AT..8].copy_from_slice(&(fields as u16).to_le_bytes());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&frame[..CRC_AT]);
    crc.update(&frame[FRAME_HEADER_BYTES..]);
    let crc = crc.finalize();
    frame[CRC_AT..16].copy_from_slice(&crc.to_le_bytes());
    frame
}

fn changed(frame: &Frame, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = encode_to_vec(frame);
    change(&mut bytes);
    bytes
}

fn with_length(frame_bytes: u32) -> Vec<u8> {
    changed(&Frame::Heartbeat, |bytes| {
        bytes[..4].copy_from_slice(&(frame_bytes - 4).to_le_bytes());
    })
}

fn metadata(request: u32) -> Frame {
    Frame::Metadata(Metadata { request: RequestId(request), topic: None, after: None })
}

/// Bytes that are no frames, whoever says them.
fn no_frames(frame: &Frame) -> Vec<(&'static str, Vec<u8>, ErrorCode)> {
    use ErrorCode::{BadFrame, FrameTooLarge};
    vec![
        ("HTTP", b"GET / HTTP/1.1\r\nhost: weir\r\n\r\n".to_vec(), FrameTooLarge),
        ("TLS", vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], FrameTooLarge),
        ("length of all ones", vec![0xff; 64], FrameTooLarge),
        ("length 0", vec![0; 64], BadFrame),
        ("length short of a header", with_length(15), BadFrame),
        ("wrong CRC", changed(frame, |bytes| bytes[CRC_AT] ^= 1), BadFrame),
        ("changed field", changed(frame, |bytes| *bytes.last_mut().unwrap() ^= 1), BadFrame),
        ("fields beyond the frame", changed(frame, |bytes| bytes[FIELDS_LEN_AT] += 1), BadFrame),
        ("unknown type", resealed(changed(frame, |bytes| bytes[TYPE_AT] = 0x7e)), BadFrame),
        (
            "fields that end early",
            resealed(changed(frame, |bytes| bytes.truncate(FRAME_HEADER_BYTES + 3))),
            BadFrame,
        ),
    ]
}

#[tokio::test]
async fn bytes_that_are_no_frames_end_their_connection_and_no_other() {
    let node = Node::start().await;
    let mut witness = Witness::start(&node).await;
    let mut early = no_frames(&Frame::Hello(hello()));
    let magic = changed(&Frame::Hello(hello()), |bytes| bytes[FRAME_HEADER_BYTES] = b'X');
    early.push(("wrong magic", resealed(magic), ErrorCode::BadFrame));
    let handshake_max = HANDSHAKE_FRAME_BYTES_MAX as u32;
    early.push(("beyond 4 KiB", with_length(handshake_max + 1), ErrorCode::FrameTooLarge));
    for (what, bytes, code) in &early {
        println!("before the handshake: {what}");
        let mut peer = Peer::raw(&node).await;
        peer.send_bytes(bytes).await;
        peer.ends_with(*code).await;
    }
    let announced = {
        let mut peer = Peer::raw(&node).await;
        peer.send(&Frame::Hello(hello())).await;
        let Frame::Welcome(welcome) = peer.next().await else { panic!("WELCOME comes first") };
        welcome.limits.frame_bytes_max
    };
    let mut late = no_frames(&metadata(1));
    late.push(("beyond the limit", with_length(announced + 1), ErrorCode::FrameTooLarge));
    for (what, bytes, code) in &late {
        println!("behind the handshake: {what}");
        let mut peer = Peer::connect(&node).await;
        peer.send_bytes(bytes).await;
        let refusal = peer.ends_with(*code).await;
        if *what == "beyond the limit" {
            let told = (refusal.observed, refusal.limit);
            assert_eq!(told, (u64::from(announced) + 1, u64::from(announced)));
        }
    }
    let metrics = node.metrics().await;
    for code in [ErrorCode::BadFrame, ErrorCode::FrameTooLarge] {
        let sent = [&early, &late].into_iter().flatten().filter(|case| case.2 == code).count();
        let labels = format!("code=\"{:04x}\",reason=\"{}\"", code.number(), code.reason());
        let counted = metrics.value(&format!("weir_errors_total{{{labels}}}"));
        assert_eq!(counted, sent as f64, "every refusal is counted once: {}", code.name());
    }
    witness.check().await;
}

#[tokio::test]
async fn unknown_frames_that_may_be_skipped_and_fields_of_newer_versions_are_skipped() {
    let node = Node::start().await;
    let mut peer = Peer::connect(&node).await;
    let newer = changed(&metadata(9), |bytes| {
        bytes[TYPE_AT] = 0x7e;
        bytes[FLAGS_AT] = 1;
    });
    peer.send_bytes(&resealed(newer)).await;
    let longer = changed(&metadata(1), |bytes| bytes.extend_from_slice(&[0xaa; 200]));
    peer.send_bytes(&resealed(longer)).await;
    assert!(matches!(peer.answer(RequestId(1)).await, Ok(Frame::MetadataPage(_))));
    peer.is_served().await;
}

#[tokio::test]
async fn nothing_is_done_before_the_handshake_is_through() {
    let node = Node::start().await;
    let mut witness = Witness::start(&node).await;
    let create = || {
        let (request, topic, config) = (RequestId(1), name("early"), TopicConfig::default());
        Frame::CreateTopic(CreateTopic { request, topic, config })
    };
    for first in [create(), Frame::Auth(auth()), Frame::Heartbeat, Frame::Ready] {
        let mut peer = Peer::raw(&node).await;
        peer.send(&first).await;
        peer.ends_with(ErrorCode::BadState).await;
    }
    for second in [create(), Frame::Hello(hello())] {
        let mut peer = Peer::raw(&node).await;
        peer.send(&Frame::Hello(hello())).await;
        peer.send(&second).await;
        assert!(matches!(peer.next().await, Frame::Welcome(_)));
        peer.ends_with(ErrorCode::BadState).await;
    }
    let mut peer = Peer::connect(&node).await;
    peer.create_topic("early", TopicConfig::default()).await.expect("nobody made it before");
    witness.check().await;
}

#[tokio::test]
async fn a_version_or_method_that_is_not_spoken_is_named() {
    let node = Node::start().await;
    let mut peer = Peer::raw(&node).await;
    let newer = Hello { version_min: 900, version_max: 901, ..hello() };
    peer.send(&Frame::Hello(newer)).await;
    let refusal = peer.ends_with(ErrorCode::UnsupportedVersion).await;
    for number in [PROTOCOL_VERSION_MAX, 900, 901] {
        assert!(refusal.text.contains(&number.to_string()), "{}", refusal.text);
    }
    let mut peer = Peer::raw(&node).await;
    let contradictory = Hello { version_min: 2, version_max: 1, ..hello() };
    peer.send(&Frame::Hello(contradictory)).await;
    peer.ends_with(ErrorCode::UnsupportedVersion).await;

    let mut peer = Peer::raw(&node).await;
    peer.send(&Frame::Hello(hello())).await;
    peer.send(&Frame::Auth(Auth { method: "kerberos".to_owned(), ..auth() })).await;
    assert!(matches!(peer.next().await, Frame::Welcome(_)));
    let refusal = peer.ends_with(ErrorCode::Unauthenticated).await;
    assert!(refusal.text.contains("kerberos") && refusal.text.contains("anonymous"));
}

#[tokio::test]
async fn frames_that_do_not_belong_end_the_connection() {
    let node = Node::start().await;
    let mut witness = Witness::start(&node).await;
    let stream = StreamId(5);
    let settle = Settle { stream, upto: Offset(1), confirm: true };
    let grant = Grant { limit_cost: 1, limit_messages: 1, ..Grant::default() };
    let cases = [
        Frame::Hello(hello()),
        Frame::Auth(auth()),
        Frame::Ready,
        Frame::Done(RequestId(1)),
        Frame::StreamClosed(StreamClosed { stream, refusal: None }),
        Frame::Revoke(stream, Revoke { epoch: 0, limit_cost: 0 }),
        // On streams that nobody opened:
        Frame::Settle(settle),
        Frame::Grant(stream, grant),
        Frame::Demand(stream, Demand { cost: 1, largest: 1 }),
        Frame::Revoked(stream, Revoked { epoch: 0, spent_cost: 0 }),
        Frame::CloseStream(stream),
        // A request without a number could not be answered:
        metadata(0),
    ];
    for frame in cases {
        let mut peer = Peer::connect(&node).await;
        peer.send(&frame).await;
        let refusal = peer.ends_with(ErrorCode::BadState).await;
        assert!(!refusal.text.is_empty(), "{frame:?}");
    }
    witness.check().await;
}

#[tokio::test]
async fn what_was_on_its_way_to_a_closed_stream_is_no_error() {
    let node = Node::start().await;
    let mut peer = Peer::connect(&node).await;
    peer.create_topic("orders", TopicConfig::default()).await.unwrap();
    let mut producing = peer.open_publisher(3, "orders", None).await.unwrap();
    let publish = producing.batch(&[b"late"]);
    peer.afford(&mut producing, publish.header.cost()).await;
    peer.send(&Frame::CloseStream(StreamId(3))).await;
    peer.send(&Frame::Demand(StreamId(3), Demand { cost: 9, largest: 9 })).await;
    peer.send(&Frame::Publish(publish)).await;
    peer.send(&Frame::CloseStream(StreamId(3))).await;
    peer.is_served().await;
    assert_eq!(peer.high_watermark("orders").await, 0, "the stream was closed before");
}

#[tokio::test]
async fn a_name_that_is_none_is_refused_wherever_it_stands() {
    let node = Node::start().await;
    let mut witness = Witness::start(&node).await;
    let right = name("abc");
    let create =
        CreateTopic { request: RequestId(1), topic: right.clone(), config: TopicConfig::default() };
    let open = OpenPublisher {
        stream: StreamId(1),
        request: RequestId(1),
        topic: name("witness"),
        partition: PartitionId(0),
        producer: Some(right.clone()),
        producer_id: ProducerId(0),
        producer_epoch: 0,
    };
    let subscribe = Subscribe {
        stream: StreamId(1),
        request: RequestId(1),
        topic: name("witness"),
        partition: PartitionId(0),
        subscription: Some(right.clone()),
        start: Start::Earliest,
        credit: Grant::default(),
        needs: Needs::default(),
    };
    let delete = DeleteTopic { request: RequestId(1), topic: right };
    let frames = [
        Frame::CreateTopic(create),
        Frame::OpenPublisher(open),
        Frame::Subscribe(subscribe),
        Frame::DeleteTopic(delete),
    ];
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    let wrong: [&[u8]; 8] = [b"", b".", b"..", b"a/b", b"a b", b"\0", b"\xff\xfe", long.as_bytes()];
    for frame in &frames {
        for bytes in wrong {
            let mut peer = Peer::connect(&node).await;
            peer.send_bytes(&renamed(frame, bytes)).await;
            peer.ends_with(ErrorCode::BadFrame).await;
        }
    }
    witness.check().await;
    let mut peer = Peer::connect(&node).await;
    peer.send(&metadata(1)).await;
    let Ok(Frame::MetadataPage(page)) = peer.answer(RequestId(1)).await else { panic!("a page") };
    assert_eq!(page.topics.len(), 1, "none was created");
}

/// The frame with the name `abc` replaced.
fn renamed(frame: &Frame, bytes: &[u8]) -> Vec<u8> {
    let before = encode_to_vec(frame);
    let at = before.windows(5).position(|part| part == b"\x03\0abc").unwrap();
    let mut after = before[..at].to_vec();
    after.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
    after.extend_from_slice(bytes);
    after.extend_from_slice(&before[at + 5..]);
    resealed(after)
}

#[tokio::test]
async fn requests_that_cannot_be_met_are_answered_and_the_connection_goes_on() {
    let node = Node::start().await;
    let mut peer = Peer::connect(&node).await;
    peer.create_topic("orders", TopicConfig::default()).await.unwrap();
    let code = |refusal: Refusal| {
        assert!(!refusal.text.is_empty());
        ErrorCode::from_u16(refusal.code).unwrap()
    };

    let again = peer.create_topic("orders", TopicConfig::default()).await.unwrap_err();
    assert_eq!(code(again), ErrorCode::TopicExists);
    let default = TopicConfig::default();
    let configs = [
        TopicConfig { partitions: 0, ..default },
        TopicConfig { partitions: PARTITIONS_MAX + 1, ..default },
        TopicConfig { max_bytes: 1, ..default },
    ];
    for config in configs {
        let refused = peer.create_topic("odd", config).await.unwrap_err();
        assert_eq!(code(refused), ErrorCode::BadRequest, "{config:?}");
    }
    let nowhere = peer.open_publisher(1, "nowhere", None).await.unwrap_err();
    assert_eq!(code(nowhere), ErrorCode::UnknownTopic);
    let nowhere = peer.subscribe(1, "nowhere", Some("s"), Start::Earliest).await.unwrap_err();
    assert_eq!(code(nowhere), ErrorCode::UnknownTopic);
    let request = peer.request();
    peer.send(&Frame::DeleteTopic(DeleteTopic { request, topic: name("nowhere") })).await;
    assert_eq!(code(peer.answer(request).await.unwrap_err()), ErrorCode::UnknownTopic);
    let beyond = OpenPublisher {
        stream: StreamId(1),
        request: peer.request(),
        topic: name("orders"),
        partition: PartitionId(7),
        producer: None,
        producer_id: ProducerId(0),
        producer_epoch: 0,
    };
    assert_eq!(code(peer.open_as(beyond).await.unwrap_err()), ErrorCode::UnknownPartition);
    let behind = Start::Offset(Offset(5));
    let refusal = peer.subscribe(1, "orders", None, behind).await.unwrap_err();
    assert_eq!((refusal.observed, refusal.limit), (5, 0));
    assert_eq!(code(refusal), ErrorCode::OffsetOutOfRange);
    for stream in [0, 1] {
        if stream == 1 {
            peer.open_publisher(1, "orders", None).await.expect("a refusal leaves it free");
        }
        let taken = peer.subscribe(stream, "orders", None, Start::Earliest).await.unwrap_err();
        assert_eq!(code(taken), ErrorCode::BadRequest, "stream {stream}");
    }
    peer.is_served().await;
}

#[tokio::test]
async fn settling_what_was_not_delivered_is_refused_and_moves_nothing() {
    let node = Node::start().await;
    let mut peer = Peer::connect(&node).await;
    peer.create_topic("orders", TopicConfig::default()).await.unwrap();
    let mut producing = peer.open_publisher(1, "orders", None).await.unwrap();
    peer.publish_next(&mut producing, &[b"0", b"1"]).await;
    peer.subscribe(2, "orders", Some("billing"), Start::Earliest).await.unwrap();
    let settle = |upto| Settle { stream: StreamId(2), upto: Offset(upto), confirm: true };
    let settled = |frame: &Frame| match frame {
        Frame::Settled(settled) => Some(settled.clone()),
        _ => None,
    };
    peer.find(|frame| matches!(frame, Frame::Deliver(_)).then_some(())).await;
    peer.send(&Frame::Settle(settle(9))).await;
    let answer = peer.find(settled).await;
    let refusal = answer.refusal.expect("9 was never delivered");
    assert_eq!(refusal.code, ErrorCode::SettleOutOfRange.number());
    assert_eq!((answer.upto.0, refusal.observed, refusal.limit), (0, 9, 2));
    peer.send(&Frame::Settle(settle(1))).await;
    let answer = peer.find(settled).await;
    assert_eq!((answer.upto, answer.refusal), (Offset(1), None), "the stream goes on");
}

#[tokio::test]
async fn more_requests_than_may_wait_are_refused_and_a_flood_ends_the_connection() {
    let node = Node::start().await;
    let mut witness = Witness::start(&node).await;
    let flood = |count: u32| (1..=count).flat_map(|n| encode_to_vec(&metadata(n))).collect();
    let few: Vec<u8> = flood(REQUESTS_PER_CONNECTION_MAX as u32 + 8);
    let mut peer = Peer::connect(&node).await;
    peer.send_bytes(&few).await;
    let mut refused = 0;
    for request in 1..=REQUESTS_PER_CONNECTION_MAX as u32 + 8 {
        if let Err(refusal) = peer.answer(RequestId(request)).await {
            assert_eq!(refusal.code, ErrorCode::OverloadedRequest.number());
            assert_eq!(refusal.limit, REQUESTS_PER_CONNECTION_MAX as u64);
            assert!(refusal.retry_after_ms > 0, "when to ask again");
            refused += 1;
        }
    }
    assert!((1..=8).contains(&refused), "{refused} were refused");
    peer.is_served().await;

    let many: Vec<u8> = flood(10_000);
    let mut peer = Peer::connect(&node).await;
    peer.send_bytes(&many).await;
    let end = loop {
        match peer.next_or_end().await.expect("GOAWAY comes before the end") {
            Frame::GoAway(go_away) => break go_away,
            Frame::MetadataPage(_) | Frame::Error(_) => {}
            frame => panic!("{frame:?}"),
        }
    };
    assert_eq!(end.code, ErrorCode::OverloadedRequest.number());
    assert!(end.reconnect_after_ms > 0);
    witness.check().await;
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_and_free_again_when_closed() {
    let node = Node::start().await;
    let mut witness = Witness::start(&node).await;
    let mut peer = Peer::connect(&node).await;
    peer.create_topic("orders", TopicConfig::default()).await.unwrap();
    let streams: Vec<u32> = (1..=STREAMS_PER_CONNECTION_MAX as u32).collect();
    for some in streams.chunks(REQUESTS_PER_CONNECTION_MAX / 2) {
        let mut bytes = Vec::new();
        for stream in some {
            bytes.extend(encode_to_vec(&Frame::OpenPublisher(OpenPublisher {
                stream: StreamId(*stream),
                request: RequestId(*stream),
                topic: name("orders"),
                partition: PartitionId(0),
                producer: None,
                producer_id: ProducerId(0),
                producer_epoch: 0,
            })));
        }
        peer.send_bytes(&bytes).await;
        for stream in some {
            peer.answer(RequestId(*stream)).await.expect("a stream within the limit");
        }
    }
    let open = |request| OpenPublisher {
        stream: StreamId(5_000),
        request: RequestId(request),
        topic: name("orders"),
        partition: PartitionId(0),
        producer: None,
        producer_id: ProducerId(0),
        producer_epoch: 0,
    };
    let refusal = peer.open_as(open(5_000)).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::ProducerLimit.number());
    assert!(refusal.retry_after_ms > 0);
    peer.send(&Frame::CloseStream(StreamId(77))).await;
    let closed = |frame: &Frame| match frame {
        Frame::StreamClosed(closed) => Some(closed.stream),
        _ => None,
    };
    assert_eq!(peer.find(closed).await, StreamId(77));
    peer.open_as(open(5_001)).await.expect("one was closed");
    witness.check().await;
    drop(peer);
    until("the streams' memory returns", async || {
        let metrics = node.metrics().await;
        metrics.value("weir_memory_used_bytes{pool=\"streams\"}") <= 2.0 * 1024.0
    })
    .await;
}

/// On one node nothing lags: what was asked for is not there for anybody.
#[tokio::test]
async fn a_reader_that_asks_for_what_is_not_there_is_told_to_wait() {
    let node = Node::start().await;
    let mut witness = Witness::start(&node).await;
    let mut peer = Peer::connect(&node).await;
    let request = peer.request();
    peer.send(&Frame::Subscribe(Subscribe {
        stream: StreamId(1),
        request,
        topic: name("witness"),
        partition: PartitionId(0),
        subscription: None,
        start: Start::Earliest,
        credit: Grant::default(),
        needs: Needs { reach: Offset(1_000), ..Needs::default() },
    }))
    .await;
    let refusal = peer.answer(request).await.unwrap_err();
    assert_eq!((refusal.code, refusal.observed), (ErrorCode::Behind.number(), 1_000));
    assert!(refusal.limit < 1_000 && refusal.retry_after_ms > 0, "{refusal:?}");
    let counted = node.metrics().await.value("weir_errors_total{code=\"0106\",reason=\"behind\"}");
    assert_eq!(counted, 1.0);
    witness.check().await;
}
