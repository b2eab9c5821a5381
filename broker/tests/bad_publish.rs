//! Publishes that are not as they should be: each is answered on its own stream, nothing of it is
//! stored, and the connection goes on.

#![allow(clippy::unwrap_used, reason = "a test may panic wherever it is")]

mod common;

use common::peer::{Peer, Producing, name, sealed};
use common::{MESSAGE_LIMIT_BYTES, Node, Witness};
use weir_protocol::batch::{BatchBuilder, BatchHeader, BatchType};
use weir_protocol::codec::encode_to_vec;
use weir_protocol::error_code::{ErrorCode, Outcome, Scope};
use weir_protocol::frame::*;
use weir_protocol::limits::*;
use weir_protocol::types::*;

const TOPIC: &str = "orders";

/// A broker with a topic, a bystander, and a peer with a publisher.
struct World {
    node: Node,
    witness: Witness,
    peer: Peer,
    producing: Producing,
}

impl World {
    async fn start() -> Self {
        let node = Node::start().await;
        let witness = Witness::start(&node).await;
        let mut peer = Peer::connect(&node).await;
        peer.create_topic(TOPIC, TopicConfig::default()).await.unwrap();
        let producing = peer.open_publisher(1, TOPIC, None).await.unwrap();
        Self { node, witness, peer, producing }
    }

    /// Sends a batch that is paid for; it is refused for this reason and not stored.
    async fn refused(&mut self, publish: Publish, code: ErrorCode) -> Refusal {
        let refused = self.peer.publish(&mut self.producing, publish).await.unwrap_err();
        let refusal = refused.refusal;
        assert_eq!(ErrorCode::from_u16(refusal.code), Some(code), "{refusal:?}");
        assert_eq!(refusal.outcome, Outcome::NotStored);
        assert!(!refusal.text.is_empty());
        refusal
    }

    /// The publisher goes on where it was, and exactly `stored` records were there before.
    async fn goes_on_behind(&mut self, stored: u64) {
        let offset = self.peer.publish_next(&mut self.producing, &[b"and on"]).await;
        assert_eq!(offset, stored);
        assert_eq!(self.peer.high_watermark(TOPIC).await, stored + 1);
        self.witness.check().await;
    }
}

#[tokio::test]
async fn a_batch_beyond_the_credit_is_thrown_away_and_the_third_ends_the_stream() {
    let mut world = World::start().await;
    world.peer.publish_next(&mut world.producing, &[b"paid"]).await;
    let mut other = world.peer.open_publisher(2, TOPIC, None).await.unwrap();
    let overspend = world.producing.batch(&[&[1; 60_000], &[2; 60_000]]);
    let cost = overspend.header.cost();
    let (spent, limit) = (world.producing.spent, world.producing.limit);
    assert!(spent + cost > limit, "no demand was made for so much");
    for number in 1..=3 {
        world.peer.send(&Frame::Publish(overspend.clone())).await;
        let base = overspend.header.base_sequence;
        let (answer, _) = world.peer.answer_to_publish(StreamId(1), base).await;
        let refusal = answer.unwrap_err().refusal;
        assert_eq!(refusal.code, ErrorCode::CreditViolation.number(), "{number}: {refusal:?}");
        assert_eq!((refusal.observed, refusal.limit), (spent + cost, limit));
    }
    let closed = |frame: &Frame| match frame {
        Frame::StreamClosed(closed) => Some(closed.clone()),
        _ => None,
    };
    let closed = world.peer.find(closed).await;
    assert_eq!(closed.stream, StreamId(1));
    let refusal = closed.refusal.expect("the client did not ask for it");
    assert_eq!((refusal.code, refusal.scope), (0x0601, Scope::Stream));

    assert_eq!(
        world.peer.publish_next(&mut other, &[b"other"]).await,
        1,
        "the next stream goes on"
    );
    world.producing = world.peer.open_publisher(1, TOPIC, None).await.unwrap();
    world.goes_on_behind(2).await;
    let metrics = world.node.metrics().await;
    // Three refusals and the end of the stream.
    let labels = "{code=\"0601\",reason=\"credit_violation\"}";
    assert_eq!(metrics.value(&format!("weir_errors_total{labels}")), 4.0);
}

#[tokio::test]
async fn a_batch_sent_again_is_stored_once() {
    let mut world = World::start().await;
    let mut first = Vec::new();
    for number in 0..7u8 {
        let publish = world.producing.batch(&[&[number], &[number, 1]]);
        let stored = world.peer.publish(&mut world.producing, publish.clone()).await.unwrap();
        world.producing.next_sequence += 2;
        assert!(!stored.duplicate);
        first.push((publish, stored));
    }
    for (at, (publish, stored)) in first.iter().enumerate() {
        let again = world.peer.publish(&mut world.producing, publish.clone()).await.unwrap();
        assert!(again.duplicate, "batch {at}");
        assert_eq!(again.record_count, 2);
        // All the batches of a producer that follow each other without a gap may be one run.
        let known = again.base_offset == stored.base_offset || again.base_offset.0 == u64::MAX;
        assert!(known, "batch {at}: {again:?} of {stored:?}");
        if at >= 2 {
            assert_eq!(again.base_offset, stored.base_offset, "the last five are remembered");
        }
    }
    world.goes_on_behind(14).await;
    let metrics = world.node.metrics().await;
    let counted = |result: &str| {
        let labels = format!("{{topic=\"{TOPIC}\",result=\"{result}\"}}");
        metrics.value(&format!("weir_publish_messages_total{labels}"))
    };
    assert_eq!((counted("stored"), counted("duplicate")), (15.0, 14.0));
}

#[tokio::test]
async fn a_sequence_beyond_the_next_stores_nothing_and_names_the_next() {
    let mut world = World::start().await;
    world.peer.publish_next(&mut world.producing, &[b"0", b"1", b"2"]).await;
    let next = world.producing.next_sequence;
    for beyond in [1, 7, u64::MAX / 2 - next] {
        world.producing.next_sequence = next + beyond;
        let publish = world.producing.batch(&[b"too early"]);
        let refusal = world.refused(publish, ErrorCode::SequenceGap).await;
        assert_eq!(refusal.limit, 3, "the expected sequence");
    }
    world.producing.next_sequence = next;
    world.goes_on_behind(3).await;
}

#[tokio::test]
async fn what_follows_a_refused_batch_in_the_pipeline_is_refused_too() {
    let mut world = World::start().await;
    world.peer.publish_next(&mut world.producing, &[b"0"]).await;
    let mut broken = world.producing.batch(&[b"broken"]);
    broken.header.body_crc ^= 1;
    let broken = sealed(StreamId(1), broken.header, broken.body);
    let mut ahead = world.producing.clone();
    ahead.next_sequence = 2;
    let behind = ahead.batch(&[b"behind"]);
    world.peer.afford(&mut world.producing, 20_000).await;
    let both = [broken, behind].map(|publish| encode_to_vec(&Frame::Publish(publish))).concat();
    world.peer.send_bytes(&both).await;
    world.producing.spent += 2 * MESSAGE_COST_MIN;
    let (first, _) = world.peer.answer_to_publish(StreamId(1), Sequence(1)).await;
    assert_eq!(first.unwrap_err().refusal.code, ErrorCode::BadChecksum.number());
    let (second, _) = world.peer.answer_to_publish(StreamId(1), Sequence(2)).await;
    let refusal = second.unwrap_err().refusal;
    assert_eq!((refusal.code, refusal.limit), (ErrorCode::SequenceGap.number(), 1));
    world.goes_on_behind(1).await;
}

#[tokio::test]
async fn a_producer_that_was_opened_again_is_fenced() {
    let mut world = World::start().await;
    let mut old = world.peer.open_publisher(2, TOPIC, Some("till")).await.unwrap();
    world.peer.publish_next(&mut old, &[b"0", b"1"]).await;

    let mut elsewhere = Peer::connect(&world.node).await;
    let mut new = elsewhere.open_publisher(1, TOPIC, Some("till")).await.unwrap();
    assert_eq!((new.id, new.next_sequence), (old.id, 2), "it goes on behind what is stored");
    assert!(new.epoch > old.epoch);
    assert_eq!(elsewhere.publish_next(&mut new, &[b"2"]).await, 2);

    let late = old.batch(&[b"late"]);
    let refusal = world.peer.publish(&mut old, late).await.unwrap_err().refusal;
    assert_eq!(refusal.code, ErrorCode::ProducerFenced.number());
    assert_eq!((refusal.outcome, refusal.limit), (Outcome::NotStored, u64::from(new.epoch)));
    let resume = OpenPublisher {
        stream: StreamId(9),
        request: world.peer.request(),
        topic: name(TOPIC),
        partition: PartitionId(0),
        producer: None,
        producer_id: old.id,
        producer_epoch: old.epoch,
    };
    let refusal = world.peer.open_as(resume).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::ProducerFenced.number());
    assert_eq!(elsewhere.publish_next(&mut new, &[b"3"]).await, 3, "the new one is not disturbed");
    world.goes_on_behind(4).await;
}

#[tokio::test]
async fn a_producer_that_nobody_knows_must_begin_anew() {
    let mut world = World::start().await;
    let stranger = OpenPublisher {
        stream: StreamId(2),
        request: world.peer.request(),
        topic: name(TOPIC),
        partition: PartitionId(0),
        producer: None,
        producer_id: ProducerId(123_456),
        producer_epoch: 3,
    };
    let mut stranger = world.peer.open_as(stranger).await.unwrap();
    assert_eq!(stranger.next_sequence, 0);
    stranger.next_sequence = 40;
    let publish = stranger.batch(&[b"as if nothing had been"]);
    let refusal = world.peer.publish(&mut stranger, publish).await.unwrap_err().refusal;
    assert_eq!(refusal.code, ErrorCode::UnknownProducer.number());
    assert_eq!(refusal.outcome, Outcome::NotStored);
    world.goes_on_behind(0).await;
}

#[tokio::test]
async fn a_batch_that_is_not_what_its_header_says_is_refused() {
    let mut world = World::start().await;
    let whole = || world_batch(&world.producing);
    let resealed = |change: &dyn Fn(&mut BatchHeader)| {
        let mut publish = whole();
        change(&mut publish.header);
        sealed(publish.stream, publish.header, publish.body)
    };
    let rebodied = |change: &dyn Fn(&mut Vec<u8>)| {
        let publish = whole();
        let mut body = publish.body.to_vec();
        change(&mut body);
        let header = BatchHeader { body_crc: crc32fast::hash(&body), ..publish.header };
        sealed(publish.stream, header, body.into())
    };
    let mut flipped = whole();
    let mut body = flipped.body.to_vec();
    *body.last_mut().unwrap() ^= 0x40;
    flipped.body = body.into();
    let cases = [
        ("body on the way", flipped, ErrorCode::BadChecksum),
        ("body CRC", resealed(&|header| header.body_crc ^= 1), ErrorCode::BadChecksum),
        ("no record", resealed(&|header| header.record_count = 0), ErrorCode::BadRequest),
        ("too many records", resealed(&|header| header.record_count = 9), ErrorCode::BadRequest),
        ("raw length", resealed(&|header| header.payload_raw_len += 1), ErrorCode::BadRequest),
        ("type", resealed(&|header| header.batch_type = BatchType::Control), ErrorCode::BadRequest),
        (
            "another producer",
            resealed(&|header| header.producer_id = ProducerId(1)),
            ErrorCode::BadRequest,
        ),
        ("another epoch", resealed(&|header| header.producer_epoch += 1), ErrorCode::BadRequest),
        ("table row", rebodied(&|body| body[0] = 0xff), ErrorCode::BadRequest),
        ("row order", rebodied(&|body| body[..4].fill(0)), ErrorCode::BadRequest),
    ];
    for (what, publish, code) in cases {
        println!("{what}");
        world.refused(publish, code).await;
    }
    world.goes_on_behind(0).await;
}

fn world_batch(producing: &Producing) -> Publish {
    producing.batch(&[b"one", b"two"])
}

#[tokio::test]
async fn what_is_the_brokers_to_fill_may_hold_anything() {
    let mut world = World::start().await;
    for _ in 0..3 {
        let publish = world.producing.batch(&[b"one", b"two"]);
        let header = BatchHeader {
            index: Index(77),
            term: Term(99),
            base_offset: Offset(12_345),
            log_time_ms: u64::MAX,
            attrs: u16::MAX,
            run: 5,
            run_number: 7,
            substream: 3,
            durable_pos: u64::MAX,
            chain: 0xdead_beef,
            ..publish.header
        };
        let publish = sealed(publish.stream, header, publish.body);
        world.peer.publish(&mut world.producing, publish).await.unwrap();
        world.producing.next_sequence += 2;
    }
    world.goes_on_behind(6).await;
    world.node.kill();
    world.node.restart().await;
    let mut peer = Peer::connect(&world.node).await;
    let producing = peer.open_publisher(1, TOPIC, None).await.unwrap();
    assert_eq!(producing.next_sequence, 0);
    let end = peer.subscribe(2, TOPIC, None, Start::Latest).await.unwrap().start;
    assert_eq!(end, Offset(7), "the log is whole");
}

#[tokio::test]
async fn a_batch_header_that_is_none_ends_the_connection() {
    let mut world = World::start().await;
    let whole = world_batch(&world.producing);
    let header = |change: &dyn Fn(&mut BatchHeader)| {
        let mut publish = whole.clone();
        change(&mut publish.header);
        encode_to_vec(&Frame::Publish(sealed(publish.stream, publish.header, publish.body)))
    };
    let mut damaged = encode_to_vec(&Frame::Publish(whole.clone()));
    let fields = FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + 12 + BATCH_HEADER_BYTES;
    damaged[fields.end - 60] ^= 1;
    let crc = crc32fast::hash(&[&damaged[..12], &damaged[fields]].concat());
    damaged[12..16].copy_from_slice(&crc.to_le_bytes());
    let cases = [
        ("CRC", damaged),
        ("records", header(&|header| header.record_count = BATCH_RECORDS_MAX as u32 + 1)),
        ("body length", header(&|header| header.body_len += 1)),
        ("table length", header(&|header| header.table_len = u32::MAX)),
    ];
    for (what, bytes) in cases {
        println!("{what}");
        world.peer.afford(&mut world.producing, whole.header.cost()).await;
        world.peer.send_bytes(&bytes).await;
        world.peer.ends_with(ErrorCode::BadFrame).await;
        world.peer = Peer::connect(&world.node).await;
        world.producing = world.peer.open_publisher(1, TOPIC, None).await.unwrap();
    }
    world.goes_on_behind(0).await;
}

/// A batch of one record with a value of so many bytes, whatever the limits say.
fn large_batch(producing: &Producing, values: &[usize]) -> Publish {
    let mut builder = BatchBuilder::new(MESSAGE_BYTES_MAX);
    for bytes in values {
        builder.push(0, None, &[], &vec![5; *bytes]).unwrap();
    }
    let built = builder.finish();
    let header = BatchHeader {
        producer_id: producing.id,
        producer_epoch: producing.epoch,
        base_sequence: Sequence(producing.next_sequence),
        ..built.header
    };
    sealed(producing.stream, header, built.body)
}

#[tokio::test]
async fn a_message_beyond_the_limit_is_refused_with_both_sizes() {
    let mut world = World::start().await;
    let batch = large_batch(&world.producing, &[10, MESSAGE_LIMIT_BYTES + 1]);
    let refusal = world.refused(batch, ErrorCode::MessageTooLarge).await;
    let sizes = (refusal.observed, refusal.limit);
    assert_eq!(sizes, (MESSAGE_LIMIT_BYTES as u64 + 1, MESSAGE_LIMIT_BYTES as u64));
    assert_eq!(refusal.retry_after_ms, 0, "waiting does not help");

    let batch_max = MESSAGE_LIMIT_BYTES + BATCH_OVERHEAD_BYTES;
    let batch = large_batch(&world.producing, &[MESSAGE_LIMIT_BYTES, BATCH_OVERHEAD_BYTES]);
    let bytes = batch.header.wire_len() as u64;
    let refusal = world.refused(batch, ErrorCode::MessageTooLarge).await;
    assert_eq!((refusal.observed, refusal.limit), (bytes, batch_max as u64));

    let batch = large_batch(&world.producing, &[MESSAGE_LIMIT_BYTES]);
    let stored = world.peer.publish(&mut world.producing, batch).await.unwrap();
    assert_eq!(stored.base_offset.0, 0, "the largest message is stored");
    world.producing.next_sequence += 1;
    world.goes_on_behind(1).await;
}

#[tokio::test]
async fn a_frame_beyond_the_limit_ends_the_connection_before_its_body_is_read() {
    let mut world = World::start().await;
    let batch = large_batch(&world.producing, &[300_000]);
    let bytes = encode_to_vec(&Frame::Publish(batch));
    world.peer.send_bytes(&bytes).await;
    let refusal = world.peer.ends_with(ErrorCode::FrameTooLarge).await;
    assert_eq!(refusal.observed, bytes.len() as u64);
    world.peer = Peer::connect(&world.node).await;
    world.producing = world.peer.open_publisher(1, TOPIC, None).await.unwrap();
    world.goes_on_behind(0).await;
}

#[tokio::test]
async fn a_demand_that_can_never_be_met_ends_its_stream() {
    let mut world = World::start().await;
    let demand = Demand { cost: 1, largest: u64::MAX };
    world.peer.send(&Frame::Demand(StreamId(1), demand)).await;
    let closed = |frame: &Frame| match frame {
        Frame::StreamClosed(closed) => Some(closed.clone()),
        _ => None,
    };
    let refusal = world.peer.find(closed).await.refusal.unwrap();
    assert_eq!(refusal.code, ErrorCode::MessageTooLarge.number());
    assert!(refusal.text.contains("flow.pool"), "{}", refusal.text);
    world.producing = world.peer.open_publisher(1, TOPIC, None).await.unwrap();
    world.goes_on_behind(0).await;
}
