//! Consuming against a scripted broker: credit, settles, reconnects, damage, the end.

#![allow(clippy::disallowed_methods, reason = "a test spawns what it then joins")]

mod common;

use bytes::Bytes;
use common::*;
use futures_util::FutureExt;
use std::collections::BTreeMap;
use std::time::Duration;
use weir_client::{
    Client, Consumer, ConsumerBuilder, ErrorCode, ErrorKind, Limits, Outcome, Start, TopicConfig,
};
use weir_protocol::frame::{self, ErrorFrame, Frame, Needs, Settled, StreamClosed};
use weir_protocol::types::{Offset, StreamId};

const ROOM: Limits = Limits { messages: 1_000, bytes: 1 << 20 };

/// Opens a consumer of a partition that begins at `start`.
async fn open(building: ConsumerBuilder, peer: &mut Peer, start: u64) -> (Consumer, StreamId) {
    let (consumer, subscribe) =
        tokio::join!(building.subscribe(), peer.open_consumer(start, start + 100));
    (consumer.expect("the broker opened it"), subscribe.stream)
}

fn durable(client: &Client, credit: Limits) -> ConsumerBuilder {
    client.consumer("orders", "billing").credit(credit)
}

#[tokio::test(start_paused = true)]
async fn a_message_arrives_as_it_was_stored() {
    let (client, _network, mut peer) = connect().await;
    let building = client.reader("orders").from(Start::Offset(7)).credit(ROOM);
    let (consumer, subscribe) = tokio::join!(building.subscribe(), peer.open_consumer(7, 42));
    let mut consumer = consumer.unwrap();
    assert_eq!((subscribe.topic.as_str(), subscribe.partition.0), ("orders", 0));
    assert_eq!(subscribe.start, frame::Start::Offset(Offset(7)));
    assert_eq!(subscribe.subscription, None);
    let credit = (subscribe.credit.limit_messages, subscribe.credit.limit_cost);
    assert_eq!(credit, (1_000, 1 << 20));

    // The batch begins below what was asked for.
    peer.deliver(subscribe.stream, vec![stored_batch(6, &["six", "seven", "eight"])], 3).await;
    let taken = take(&mut consumer, 2).await;
    assert_eq!(offsets(&taken), [7, 8]);
    let message = &taken[0];
    assert_eq!((message.partition(), message.timestamp_ms()), (0, NOW_MS));
    assert_eq!((message.key(), &message.payload()[..]), (Some(&b"key"[..]), &b"seven"[..]));
    assert_eq!(message.headers().collect::<Vec<_>>(), [(&b"h"[..], &b"v"[..])]);
    assert!(consumer.next().now_or_never().is_none(), "there is no more");
}

#[tokio::test(start_paused = true)]
async fn what_is_known_of_the_partitions_is_told() {
    let config = TopicConfig { partitions: 2, ..TopicConfig::default() };
    let (client, _network, mut peer) = connect_to(config).await;
    let (consumer, stream) = tokio::join!(client.reader("orders").subscribe(), async {
        let first = peer.open_consumer(3, 50).await;
        assert_eq!(peer.open_consumer(0, 60).await.partition.0, 1);
        first.stream
    });
    let mut consumer = consumer.unwrap();
    assert_eq!(consumer.starts(), BTreeMap::from([(0, 3), (1, 0)]));
    assert_eq!(consumer.end_offsets(), BTreeMap::from([(0, 50), (1, 60)]));
    assert_eq!(consumer.positions(), BTreeMap::from([(0, 3), (1, 0)]));

    deliver_two(&mut peer, stream, 3).await;
    take(&mut consumer, 2).await;
    assert_eq!(consumer.positions(), BTreeMap::from([(0, 5), (1, 0)]));
    assert_eq!(consumer.end_offsets(), BTreeMap::from([(0, 50), (1, 60)]), "as at the start");
    assert_eq!(consumer.high_watermarks(), BTreeMap::from([(0, 1_000), (1, 60)]), "the newest");

    // What was trimmed before it could be read is counted, not passed over in silence.
    deliver_two(&mut peer, stream, 10).await;
    assert_eq!(offsets(&take(&mut consumer, 2).await), [10, 11]);
    assert_eq!(consumer.skipped(), 5);
}

#[tokio::test(start_paused = true)]
async fn credit_returns_with_settles_in_messages_and_in_bytes() {
    let (client, _network, mut peer) = connect().await;
    let credit = Limits { messages: 8, bytes: 10_000 };
    let (mut consumer, stream) = open(durable(&client, credit), &mut peer, 0).await;
    let mut bytes = Vec::new();
    for base in [0, 2, 4, 6] {
        bytes.push(deliver_two(&mut peer, stream, base).await);
    }
    let taken = take(&mut consumer, 8).await;
    assert!(peer.is_quiet(10_000).await, "received and read, but not settled: no credit");

    taken[0].ack();
    let settle = peer.next_settle().await;
    assert_eq!((settle.stream, settle.upto.0, settle.confirm), (stream, 1, false));
    assert!(peer.is_quiet(10_000).await, "the rest of its batch is still held");

    taken[1].ack();
    let returned = peer.next_grant().await;
    assert_eq!((returned.limit_messages, returned.limit_cost), (8 + 2, 10_000 + bytes[0]));
    assert_eq!(peer.next_settle().await.upto.0, 2);

    taken[7].ack();
    let returned = peer.next_grant().await;
    let all: u64 = bytes.iter().sum();
    assert_eq!((returned.limit_messages, returned.limit_cost), (8 + 8, 10_000 + all));
    assert_eq!(peer.next_settle().await.upto.0, 8, "settles are cumulative and coalesced");
    taken[3].ack();
    assert!(peer.is_quiet(10_000).await, "an older settle changes nothing");
}

#[tokio::test(start_paused = true)]
async fn a_reader_gives_credit_back_by_asking_for_more() {
    let (client, _network, mut peer) = connect().await;
    let building = client.reader("orders").credit(Limits { messages: 4, bytes: 1 << 20 });
    let (mut consumer, stream) = open(building, &mut peer, 0).await;
    for base in [0, 2] {
        deliver_two(&mut peer, stream, base).await;
    }
    let first = consumer.next_batch().await.unwrap().unwrap();
    assert_eq!((first.base_offset(), first.end_offset(), first.len()), (0, 2, 2));
    let payloads: Vec<_> =
        first.records().map(|record| Bytes::copy_from_slice(record.unwrap().payload())).collect();
    assert_eq!(payloads, ["m0", "m1"]);
    assert!(peer.is_quiet(1_000).await, "the batch is with the application");
    consumer.next_batch().await.unwrap().unwrap();
    assert_eq!(peer.next_grant().await.limit_messages, 6);
    assert!(peer.is_quiet(1_000).await, "a reader has no cursor to settle");
}

/// An application may hold all but a little of its credit: the rest still flows.
#[tokio::test(start_paused = true)]
async fn the_last_of_the_credit_is_given_back_when_the_application_waits() {
    let (client, _network, mut peer) = connect().await;
    let credit = Limits { messages: 100, bytes: 1 << 20 };
    let (mut consumer, stream) = open(durable(&client, credit), &mut peer, 0).await;
    for base in (0..100).step_by(2) {
        deliver_two(&mut peer, stream, base).await;
    }
    let taken = take(&mut consumer, 100).await;
    taken[1].ack();
    assert_eq!(peer.next_grant().await.limit_messages, 102);
}

#[tokio::test(start_paused = true)]
async fn settles_wait_for_each_other_and_the_confirmed_is_awaited() {
    let (client, _network, mut peer) = connect().await;
    let (mut consumer, stream) = open(durable(&client, ROOM), &mut peer, 0).await;
    deliver_two(&mut peer, stream, 0).await;
    let taken = take(&mut consumer, 2).await;
    let confirming = tokio::spawn(async move { taken[1].ack_confirmed().await });
    let settle = loop {
        if let Frame::Settle(settle) = peer.next().await {
            break settle;
        }
    };
    assert_eq!((settle.upto.0, settle.confirm), (2, true));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!confirming.is_finished(), "not committed yet");
    peer.settled(stream, 2).await;
    confirming.await.unwrap().unwrap();
    consumer.settle_confirmed(0, 2).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refused_settle_is_an_error_at_once() {
    let (client, _network, mut peer) = connect().await;
    let (mut consumer, stream) = open(durable(&client, ROOM), &mut peer, 0).await;
    deliver_two(&mut peer, stream, 0).await;
    take(&mut consumer, 2).await;
    let (result, ()) = tokio::join!(consumer.settle_confirmed(0, 2), async {
        while !matches!(peer.next().await, Frame::Settle(settle) if settle.confirm) {}
        let refusal = Some(refusal(ErrorCode::SettleOutOfRange, Outcome::NotStored));
        peer.send(Frame::Settled(Settled { stream, upto: Offset(0), refusal })).await;
    });
    assert_eq!(result.unwrap_err().error_code(), Some(ErrorCode::SettleOutOfRange));
    let (result, ()) = tokio::join!(consumer.settle_confirmed(0, 2), async {
        while !matches!(peer.next().await, Frame::Settle(settle) if settle.confirm) {}
        peer.settled(stream, 2).await;
    });
    result.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_reader_goes_on_behind_what_it_received() {
    let (client, mut network, mut peer) = connect().await;
    let credit = Limits { messages: 100, bytes: 1 << 20 };
    let building = client.reader("orders").credit(credit).auto_settle(false);
    let (mut consumer, stream) = open(building, &mut peer, 0).await;
    deliver_two(&mut peer, stream, 0).await;
    deliver_two(&mut peer, stream, 2).await;
    assert_eq!(offsets(&take(&mut consumer, 1).await), [0]);
    drop(peer);

    let mut peer = network.accept().await;
    let again = peer.open_consumer(4, 100).await;
    assert_eq!(again.start, frame::Start::Offset(Offset(4)));
    assert_eq!(again.credit.limit_messages, 96, "four messages are still held");
    deliver_two(&mut peer, again.stream, 4).await;
    assert_eq!(offsets(&take(&mut consumer, 5).await), [1, 2, 3, 4, 5], "each once, in order");
}

/// The broker starts a durable subscription at its cursor: what was received is not given twice,
/// and what was settled meanwhile is told once the broker can take it.
#[tokio::test(start_paused = true)]
async fn a_durable_consumer_goes_on_behind_what_it_received_and_settles_what_was_settled() {
    let (client, mut network, mut peer) = connect().await;
    let credit = Limits { messages: 6, bytes: 1 << 20 };
    let (mut consumer, stream) = open(durable(&client, credit), &mut peer, 0).await;
    for base in [0, 2, 4] {
        deliver_two(&mut peer, stream, base).await;
    }
    let taken = take(&mut consumer, 4).await;
    drop(peer);
    taken[3].ack();

    let mut peer = network.accept().await;
    let again = peer.open_consumer(0, 100).await;
    assert_eq!(again.subscription.unwrap().as_str(), "billing");
    assert_eq!(again.credit.limit_messages, 4, "two messages are still held");
    assert!(peer.is_quiet(1_000).await, "a settle of what this stream has not delivered");
    deliver_two(&mut peer, again.stream, 0).await;
    assert_eq!(peer.next_settle().await.upto.0, 2);
    assert_eq!(peer.next_grant().await.limit_messages, 6, "repeated, and held no more");
    deliver_two(&mut peer, again.stream, 2).await;
    assert_eq!(peer.next_settle().await.upto.0, 4);
    assert_eq!(peer.next_grant().await.limit_messages, 8);
    deliver_two(&mut peer, again.stream, 4).await;
    deliver_two(&mut peer, again.stream, 6).await;
    assert_eq!(offsets(&take(&mut consumer, 4).await), [4, 5, 6, 7], "each once, in order");
}

#[tokio::test(start_paused = true)]
async fn a_confirmed_settle_survives_a_reconnect() {
    let (client, mut network, mut peer) = connect().await;
    let (mut consumer, stream) = open(durable(&client, ROOM), &mut peer, 0).await;
    deliver_two(&mut peer, stream, 0).await;
    let taken = take(&mut consumer, 2).await;
    let (confirmed, ()) = tokio::join!(taken[1].ack_confirmed(), async {
        while !matches!(peer.next().await, Frame::Settle(settle) if settle.confirm) {}
        drop(peer);
        // It was committed, only the answer was lost: it is settled again where it goes on.
        let mut peer = network.accept().await;
        let again = peer.open_consumer(2, 100).await;
        assert_eq!(again.needs.resume, Offset(2));
        let (stream, upto) = (again.stream, Offset(2));
        while !matches!(peer.next().await, Frame::Settle(settle) if settle.confirm) {}
        peer.send(Frame::Settled(Settled { stream, upto, refusal: None })).await;
    });
    confirmed.unwrap();
}

/// A broker that knows of no place to go on starts at the cursor, which tells what is committed.
#[tokio::test(start_paused = true)]
async fn a_cursor_beyond_the_settle_confirms_it() {
    let (client, mut network, mut peer) = connect().await;
    let (mut consumer, stream) = open(durable(&client, ROOM), &mut peer, 0).await;
    deliver_two(&mut peer, stream, 0).await;
    deliver_two(&mut peer, stream, 2).await;
    let taken = take(&mut consumer, 4).await;
    let (confirmed, ()) = tokio::join!(taken[1].ack_confirmed(), async {
        while !matches!(peer.next().await, Frame::Settle(settle) if settle.confirm) {}
        drop(peer);
        let mut peer = network.accept().await;
        assert_eq!(peer.open_consumer(2, 100).await.needs.resume, Offset(4));
    });
    confirmed.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_reader_says_that_any_replica_may_serve_it_and_what_that_must_hold() {
    let (client, mut network, mut peer) = connect().await;
    let building = client.reader("orders").any_replica().reach(0, 2);
    let (consumer, stream) = tokio::join!(building.subscribe(), async {
        let frame = peer.next().await;
        let Frame::Subscribe(asked) = frame else { panic!("SUBSCRIBE, not {frame:?}") };
        let needs = Needs { any_replica: true, reach: Offset(2), resume: Offset(0), epoch: 0 };
        assert_eq!(asked.needs, needs);
        let (request, refusal) = (asked.request, refusal(ErrorCode::Behind, Outcome::NotStored));
        peer.send(Frame::Error(ErrorFrame { request, refusal })).await;
        let again = peer.open_consumer(0, 2).await;
        assert_eq!(again.needs, needs);
        again.stream
    });
    let mut consumer = consumer.unwrap();
    deliver_two(&mut peer, stream, 0).await;
    take(&mut consumer, 2).await;
    drop(peer);
    // It has been reached: a replica that serves what comes next need not be asked for it again.
    let mut peer = network.accept().await;
    let again = peer.open_consumer(2, 2).await;
    assert_eq!(again.needs, Needs { any_replica: true, ..Needs::default() });

    let durable = client.consumer("orders", "billing").any_replica().subscribe();
    let elsewhere = client.reader("orders").reach(7, 1).subscribe();
    let (durable, elsewhere, ()) = tokio::join!(durable, elsewhere, async {
        // It answers what is asked about the topic.
        assert!(peer.is_quiet(1_000).await);
    });
    assert!(durable.unwrap_err().to_string().contains("any_replica"));
    assert!(elsewhere.unwrap_err().to_string().contains("partition 7"));
}

fn corrupt(batch: &Bytes) -> Bytes {
    let mut bytes = batch.to_vec();
    bytes[weir_protocol::limits::BATCH_HEADER_BYTES + 3] ^= 1;
    bytes.into()
}

#[tokio::test(start_paused = true)]
async fn a_batch_damaged_on_the_way_is_asked_for_again() {
    let (client, _network, mut peer) = connect().await;
    let (mut consumer, stream) = open(client.reader("orders").credit(ROOM), &mut peer, 0).await;
    let whole = stored_batch(2, &["c", "d"]);
    deliver_two(&mut peer, stream, 0).await;
    peer.deliver(stream, vec![corrupt(&whole)], 2).await;
    deliver_two(&mut peer, stream, 4).await;
    let (taken, ()) = tokio::join!(take(&mut consumer, 6), async {
        let again = loop {
            match peer.next().await {
                Frame::CloseStream(closed) => {
                    assert_eq!(closed, stream);
                    break peer.open_consumer(2, 100).await;
                }
                Frame::Grant(..) => {}
                frame => panic!("{frame:?}"),
            }
        };
        assert_eq!(again.start, frame::Start::Offset(Offset(2)));
        // Still on its way on the stream that was left: not taken for what comes next.
        deliver_two(&mut peer, stream, 6).await;
        peer.deliver(again.stream, vec![whole.clone()], 2).await;
        deliver_two(&mut peer, again.stream, 4).await;
    });
    assert_eq!(offsets(&taken), [0, 1, 2, 3, 4, 5]);
    assert_eq!(consumer.skipped(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_stays_damaged_is_an_error() {
    for damage in ["body", "header"] {
        let (client, _network, mut peer) = connect().await;
        let (mut consumer, mut stream) =
            open(client.reader("orders").credit(ROOM), &mut peer, 5).await;
        let whole = stored_batch(5, &["a", "b"]);
        let mut batch = corrupt(&whole);
        if damage == "header" {
            let mut bytes = whole.to_vec();
            bytes[20] ^= 1;
            batch = bytes.into();
        }
        let answering = async {
            loop {
                peer.deliver(stream, vec![batch.clone()], 2).await;
                while !matches!(peer.next().await, Frame::CloseStream(_)) {}
                let again = peer.open_consumer(5, 100).await;
                assert_eq!(again.start, frame::Start::Offset(Offset(5)));
                stream = again.stream;
            }
        };
        let error = tokio::select! {
            message = consumer.next() => message.unwrap().unwrap_err(),
            () = answering => unreachable!(),
        };
        assert_eq!(error.kind(), ErrorKind::Protocol, "{damage}: {error}");
        assert_eq!(error.error_code(), Some(ErrorCode::BadChecksum), "{damage}: {error}");
        assert!(error.to_string().contains("offset 5"), "{damage}: {error}");
        assert!(consumer.next().await.is_none(), "{damage}: an error is final");
    }
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_was_taken_over_ends_with_that_error() {
    let (client, _network, mut peer) = connect().await;
    let (mut consumer, stream) = open(durable(&client, ROOM), &mut peer, 0).await;
    deliver_two(&mut peer, stream, 0).await;
    let taken = take(&mut consumer, 2).await;
    let refusal = Some(refusal(ErrorCode::TakenOver, Outcome::NotStored));
    peer.send(Frame::StreamClosed(StreamClosed { stream, refusal })).await;
    let error = consumer.next().await.unwrap().unwrap_err();
    assert_eq!(error.error_code(), Some(ErrorCode::TakenOver));
    assert!(consumer.next().await.is_none());
    let error = taken[1].ack_confirmed().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed, "nobody can commit it any more");
}

#[tokio::test(start_paused = true)]
async fn a_damaged_range_ends_a_consumer_behind_what_lies_in_front_and_says_where_to_go_on() {
    let (client, _network, mut peer) = connect().await;
    let (mut consumer, stream) = open(client.reader("orders").credit(ROOM), &mut peer, 0).await;
    deliver_two(&mut peer, stream, 0).await;
    let mut damaged = refusal(ErrorCode::DamagedRange, Outcome::NotStored);
    damaged.limit = 7;
    peer.send(Frame::StreamClosed(StreamClosed { stream, refusal: Some(damaged) })).await;
    assert_eq!(offsets(&take(&mut consumer, 2).await), [0, 1]);
    let error = consumer.next().await.unwrap().unwrap_err();
    assert_eq!(error.error_code(), Some(ErrorCode::DamagedRange));
    assert_eq!((error.partition(), error.damaged_end()), (Some(0), Some(7)));
    let behind = client.reader("orders").partition(0).from(Start::Offset(7)).credit(ROOM);
    let (mut consumer, stream) = open(behind, &mut peer, 7).await;
    deliver_two(&mut peer, stream, 7).await;
    assert_eq!(offsets(&take(&mut consumer, 2).await), [7, 8]);
}

#[tokio::test(start_paused = true)]
async fn what_lies_in_front_of_an_error_is_not_lost_when_opening_takes_longer() {
    let config = TopicConfig { partitions: 2, ..TopicConfig::default() };
    let (client, _network, mut peer) = connect_to(config).await;
    let (consumer, ()) = tokio::join!(client.reader("orders").subscribe(), async {
        let stream = peer.open_consumer(0, 50).await.stream;
        deliver_two(&mut peer, stream, 0).await;
        let refusal = Some(refusal(ErrorCode::DamagedRange, Outcome::NotStored));
        peer.send(Frame::StreamClosed(StreamClosed { stream, refusal })).await;
    });
    let mut consumer = consumer.expect("the partition was opened");
    assert_eq!(offsets(&take(&mut consumer, 2).await), [0, 1]);
    let error = consumer.next().await.unwrap().unwrap_err();
    assert_eq!(error.error_code(), Some(ErrorCode::DamagedRange));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_the_broker_ends_for_a_while_is_opened_again() {
    let (client, _network, mut peer) = connect().await;
    let (mut consumer, stream) = open(client.reader("orders").credit(ROOM), &mut peer, 0).await;
    deliver_two(&mut peer, stream, 0).await;
    take(&mut consumer, 2).await;
    let mut moved = refusal(ErrorCode::Recovering, Outcome::NotStored);
    moved.retry_after_ms = 300;
    peer.send(Frame::StreamClosed(StreamClosed { stream, refusal: Some(moved) })).await;
    let started = tokio::time::Instant::now();
    let again = peer.open_consumer(2, 100).await;
    assert!(started.elapsed() >= Duration::from_millis(300), "{:?}", started.elapsed());
    assert_eq!(again.start, frame::Start::Offset(Offset(2)));
    deliver_two(&mut peer, again.stream, 2).await;
    assert_eq!(offsets(&take(&mut consumer, 2).await), [2, 3]);
}

#[tokio::test(start_paused = true)]
async fn drain_hands_over_what_is_there_and_stop_does_not() {
    let (client, _network, mut peer) = connect().await;
    for drain in [true, false] {
        let (mut consumer, stream) = open(durable(&client, ROOM), &mut peer, 0).await;
        deliver_two(&mut peer, stream, 0).await;
        deliver_two(&mut peer, stream, 2).await;
        let first = take(&mut consumer, 2).await;
        let handle = consumer.handle();
        if drain {
            handle.drain()
        } else {
            handle.stop()
        }
        let rest = if drain { 2 } else { 0 };
        assert_eq!(take(&mut consumer, rest).await.len(), rest);
        assert!(consumer.next().await.is_none());
        // Settles still count.
        first[1].ack();
        assert_eq!(peer.next_settle().await.upto.0, 2);
        drop(consumer);
        assert!(matches!(peer.next().await, Frame::CloseStream(closed) if closed == stream));
    }
}

#[tokio::test(start_paused = true)]
async fn close_waits_until_every_settle_is_committed() {
    let (client, _network, mut peer) = connect().await;
    let (mut consumer, stream) = open(durable(&client, ROOM), &mut peer, 0).await;
    deliver_two(&mut peer, stream, 0).await;
    take(&mut consumer, 2).await[0].ack();
    let (closed, ()) = tokio::join!(consumer.close(), async {
        let settle = peer.next_settle().await;
        assert_eq!((settle.upto.0, settle.confirm), (1, true));
        peer.settled(stream, 1).await;
        assert!(matches!(peer.next().await, Frame::CloseStream(closed) if closed == stream));
    });
    closed.unwrap();

    // Without an answer it says so instead of waiting for ever.
    let (mut consumer, stream) = open(durable(&client, ROOM), &mut peer, 1).await;
    deliver_two(&mut peer, stream, 1).await;
    take(&mut consumer, 2).await[1].ack();
    let error = consumer.close().await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Deadline, Outcome::Unknown));
}

#[tokio::test(start_paused = true)]
async fn dropping_a_consumer_sends_its_settles_first() {
    let (client, _network, mut peer) = connect().await;
    let (mut consumer, stream) = open(durable(&client, ROOM), &mut peer, 0).await;
    deliver_two(&mut peer, stream, 0).await;
    take(&mut consumer, 2).await[0].ack();
    drop(consumer);
    assert_eq!(peer.next_settle().await.upto.0, 1);
    assert!(matches!(peer.next().await, Frame::CloseStream(closed) if closed == stream));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_said_when_it_is_opened() {
    let (client, _network, mut peer) = connect().await;
    let (opened, ()) = tokio::join!(client.reader("orders").partition(3).subscribe(), async {
        assert!(peer.is_quiet(100).await, "nothing is asked for");
    });
    assert_eq!(opened.unwrap_err().error_code(), Some(ErrorCode::UnknownPartition));

    let building = client.reader("orders").from(Start::Offset(1 << 40));
    let (opened, ()) = tokio::join!(building.subscribe(), async {
        let Frame::Subscribe(asked) = peer.next().await else { panic!("SUBSCRIBE") };
        let refusal = refusal(ErrorCode::OffsetOutOfRange, Outcome::NotStored);
        peer.send(Frame::Error(frame::ErrorFrame { request: asked.request, refusal })).await;
    });
    assert_eq!(opened.unwrap_err().error_code(), Some(ErrorCode::OffsetOutOfRange));
}
