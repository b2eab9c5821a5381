//! Frames that stop in the middle and bytes changed at random: nothing is held for them, nothing
//! of them is stored unless it was whole, and others are served.

#![allow(clippy::unwrap_used, reason = "a test may panic wherever it is")]

mod common;

use bytes::BytesMut;
use common::peer::{Peer, Producing, auth, hello, name};
use common::{Node, Witness, until};
use weir_protocol::codec::{Decoder, encode_to_vec};
use weir_protocol::error_code::ErrorCode;
use weir_protocol::frame::*;
use weir_protocol::limits::*;
use weir_protocol::types::*;

const SEED: u64 = 0x5eed;

/// Waits until nothing is held for connections that have gone.
async fn nothing_is_left(node: &Node, connections: f64) {
    until("what gone connections held returns", async || {
        let metrics = node.metrics().await;
        let used = |pool| metrics.value(&format!("weir_memory_used_bytes{{pool=\"{pool}\"}}"));
        metrics.value("weir_connections") == connections
            && used("read buffers") == 0.0
            && used("publish credit") == 0.0
            && used("requests") == 0.0
    })
    .await;
}

#[tokio::test]
async fn a_frame_that_stops_in_the_middle_leaves_nothing_behind() {
    let node = Node::start().await;
    let mut witness = Witness::start(&node).await;
    let mut peer = Peer::connect(&node).await;
    peer.create_topic("orders", TopicConfig::default()).await.unwrap();
    drop(peer);
    nothing_is_left(&node, 1.0).await;

    let hello = encode_to_vec(&Frame::Hello(hello()));
    for cut in [1, 3, 4, 15, 16, hello.len() - 1] {
        let mut peer = Peer::raw(&node).await;
        peer.send_bytes(&hello[..cut]).await;
        peer.finish().await;
        assert_eq!(peer.next_or_end().await, None, "cut at {cut}");
    }
    let large = [7u8; 50_000];
    for cut in [1, 4, 12, 16, 40, 155, 156, 157, 1_000, 4_096, 20_000, 50_000] {
        let mut peer = Peer::connect(&node).await;
        let mut producing = peer.open_publisher(1, "orders", None).await.unwrap();
        let publish = producing.batch(&[&large]);
        peer.afford(&mut producing, publish.header.cost()).await;
        let bytes = encode_to_vec(&Frame::Publish(publish));
        peer.send_bytes(&bytes[..cut]).await;
        peer.finish().await;
        while let Some(frame) = peer.next_or_end().await {
            assert!(matches!(frame, Frame::Grant(..)), "cut at {cut}: {frame:?}");
        }
    }
    nothing_is_left(&node, 1.0).await;
    let mut peer = Peer::connect(&node).await;
    assert_eq!(peer.high_watermark("orders").await, 0, "no batch was whole");
    witness.check().await;
}

/// What a well-behaved peer says behind the opening of its publisher.
fn transcript(producing: &Producing) -> Vec<u8> {
    let mut frames = vec![Frame::Heartbeat];
    let credit = Grant { limit_cost: 1 << 20, limit_messages: 1_000, ..Grant::default() };
    frames.push(Frame::Subscribe(Subscribe {
        stream: StreamId(2),
        request: RequestId(2),
        topic: name("orders"),
        partition: PartitionId(0),
        subscription: Some(name("billing")),
        start: Start::Earliest,
        credit,
        needs: Needs::default(),
    }));
    frames.push(Frame::Demand(StreamId(1), Demand { cost: 9_000, largest: 9_000 }));
    frames.push(Frame::Publish(producing.batch(&[b"one", b"two", &[3; 5_000]])));
    frames.push(Frame::Settle(Settle { stream: StreamId(2), upto: Offset(1), confirm: true }));
    frames.push(Frame::CloseStream(StreamId(2)));
    frames.push(Frame::Metadata(Metadata { request: RequestId(3), topic: None, after: None }));
    frames.iter().flat_map(encode_to_vec).collect()
}

/// Flips bits, cuts out, doubles, and makes up bytes.
fn damaged(bytes: &[u8], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..random.usize(1..4) {
        let at = random.usize(..bytes.len());
        let end = (at + random.usize(1..64)).min(bytes.len());
        match random.u32(..5) {
            0 => bytes[at] ^= 1 << random.u32(..8),
            1 => drop(bytes.drain(at..end)),
            2 => bytes.extend_from_within(at..end),
            3 => random.fill(&mut bytes[at..end]),
            _ => bytes.truncate(at.max(1)),
        }
    }
    bytes
}

#[tokio::test]
async fn damage_of_any_kind_is_answered_with_frames_and_hurts_nobody_else() {
    let node = Node::start().await;
    let mut witness = Witness::start(&node).await;
    let mut peer = Peer::connect(&node).await;
    peer.create_topic("orders", TopicConfig::default()).await.unwrap();
    let known = peer.open_publisher(1, "orders", None).await.unwrap();
    drop(peer);
    let mut random = fastrand::Rng::with_seed(SEED);
    for round in 0..400 {
        let mut peer = Peer::connect(&node).await;
        let open = OpenPublisher {
            stream: StreamId(1),
            request: peer.request(),
            topic: name("orders"),
            partition: PartitionId(0),
            producer: None,
            producer_id: known.id,
            producer_epoch: known.epoch,
        };
        let mut producing = peer.open_as(open).await.unwrap();
        peer.afford(&mut producing, 20_000).await;
        peer.send_bytes(&damaged(&transcript(&producing), &mut random)).await;
        peer.finish().await;
        let mut last_error = None;
        while let Some(frame) = peer.next_or_end().await {
            if let Frame::Error(ErrorFrame { request: RequestId(0), refusal }) = &frame {
                let code = ErrorCode::from_u16(refusal.code);
                assert!(code.is_some(), "round {round}: {refusal:?}");
                last_error = code;
            } else if let Some(code) = last_error {
                let last = matches!(&frame, Frame::GoAway(away) if away.code == code.number());
                assert!(last, "round {round}: only GOAWAY follows, not {frame:?}");
            }
        }
        if round % 100 == 0 {
            witness.publish().await;
        }
    }
    nothing_is_left(&node, 1.0).await;
    assert!(peer_sees(&node).await > 0, "what came through whole is stored");
    witness.check().await;
}

async fn peer_sees(node: &Node) -> u64 {
    Peer::connect(node).await.high_watermark("orders").await
}

#[tokio::test]
async fn frames_in_single_bytes_are_frames() {
    let node = Node::start().await;
    let mut peer = Peer::raw(&node).await;
    for byte in encode_to_vec(&Frame::Hello(hello())) {
        peer.send_bytes(&[byte]).await;
    }
    assert!(matches!(peer.next().await, Frame::Welcome(_)));
    for byte in encode_to_vec(&Frame::Auth(auth())) {
        peer.send_bytes(&[byte]).await;
    }
    assert_eq!(peer.next().await, Frame::Ready);
    peer.is_served().await;
}

#[test]
fn the_transcript_is_what_a_broker_would_accept() {
    let producing = Producing {
        stream: StreamId(1),
        id: ProducerId(1),
        epoch: 0,
        next_sequence: 0,
        spent: 0,
        limit: 0,
    };
    let mut bytes = BytesMut::from(&transcript(&producing)[..]);
    let mut decoder = Decoder::new(FRAME_BYTES_MAX);
    let mut count = 0;
    while decoder.decode(&mut bytes).unwrap().is_some() {
        count += 1;
    }
    assert_eq!((count, bytes.len()), (7, 0));
}
