//! What happens when there is too much: publishers are held back or told so in their own words,
//! others go on, and nothing acknowledged is lost.

#![allow(clippy::unwrap_used, reason = "a test may panic wherever it is")]

mod common;

use common::peer::{Peer, Producing, name};
use common::{Node, Witness, any_port, config, soon, start_with, until};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use weir_client::{
    Client, Consumer, Message, OnFull, Overflow, Publisher, Reason, Start, TopicChange, TopicConfig,
};
use weir_protocol::error_code::{ErrorCode, Outcome, Scope, reason_bits};
use weir_protocol::frame::{Demand, Frame, Grant, Needs, Refusal, StoredRange, Subscribe};
use weir_protocol::types::{Offset, PartitionId, StreamId};

const TOPIC: &str = "orders";
const TOPIC_BYTES_MAX: u64 = 8 << 20;
/// What was granted already when a topic becomes full, and the segments at both ends.
const SLACK_BYTES: u64 = (4 << 20) + 2 * SEGMENT_BYTES;
/// Whole segments go, and each only when a checkpoint lies behind it.
const SEGMENT_BYTES: u64 = 4 << 20;
const VALUE_BYTES: usize = 60_000;
/// The number of messages that are not counted.
const OTHERS: u64 = u64::MAX;

fn limited(overflow: Overflow) -> TopicConfig {
    TopicConfig { overflow, max_bytes: TOPIC_BYTES_MAX, ..TopicConfig::default() }
}

/// A message that says which one it is.
fn value(number: u64) -> Vec<u8> {
    let mut value = vec![7; VALUE_BYTES];
    value[..8].copy_from_slice(&number.to_le_bytes());
    value
}

fn number_of(value: &[u8]) -> u64 {
    u64::from_le_bytes(value[..8].try_into().unwrap())
}

/// A durable subscription whose consumer takes nothing.
async fn stalled_subscription(node: &Node) -> Peer {
    let mut peer = Peer::connect(node).await;
    let request = peer.request();
    peer.send(&Frame::Subscribe(Subscribe {
        stream: StreamId(1),
        request,
        topic: name(TOPIC),
        partition: PartitionId(0),
        subscription: Some(name("slow")),
        start: weir_protocol::frame::Start::Earliest,
        credit: Grant::default(),
        needs: Needs::default(),
    }))
    .await;
    peer.answer(request).await.unwrap();
    peer
}

/// Settles everything below `upto` as the subscription.
async fn settle(client: &Client, upto: u64) {
    let mut consumer = client.consumer(TOPIC, "slow").subscribe().await.unwrap();
    loop {
        let message = soon("a message", consumer.next()).await.unwrap().unwrap();
        if message.offset() + 1 == upto {
            return soon("a settle", message.ack_confirmed()).await.unwrap();
        }
        message.ack();
    }
}

async fn topic_bytes(node: &Node) -> u64 {
    node.metrics().await.value(&format!("weir_topic_bytes{{topic=\"{TOPIC}\"}}")) as u64
}

/// Publishes until the topic is refused; says what was stored and why there is no more.
async fn fill(peer: &mut Peer, producing: &mut Producing) -> (Vec<StoredRange>, Refusal) {
    let mut stored = Vec::new();
    loop {
        let publish = producing.batch(&[&value(producing.next_sequence)]);
        match peer.publish(producing, publish).await {
            Ok(range) => stored.push(range),
            Err(refused) => return (stored, refused.refusal),
        }
        producing.next_sequence += 1;
        let sent = producing.next_sequence * VALUE_BYTES as u64;
        assert!(sent < TOPIC_BYTES_MAX + SLACK_BYTES, "the topic never became full");
    }
}

#[tokio::test]
async fn a_full_topic_that_rejects_says_so_and_takes_more_when_there_is_room() {
    let node = Node::start().await;
    let mut witness = Witness::start(&node).await;
    let client = node.client().await;
    client.create_topic(TOPIC, limited(Overflow::Reject)).await.unwrap();
    let _stalled = stalled_subscription(&node).await;
    let mut peer = Peer::connect(&node).await;
    let mut producing = peer.open_publisher(1, TOPIC, None).await.unwrap();
    let (stored, refusal) = fill(&mut peer, &mut producing).await;
    assert_eq!(refusal.code, ErrorCode::BacklogFull.number());
    assert_eq!((refusal.outcome, refusal.scope), (Outcome::NotStored, Scope::Topic));
    assert_eq!((refusal.reason_bits, refusal.limit), (reason_bits::BACKLOG, TOPIC_BYTES_MAX));
    assert!(refusal.retry_after_ms > 0, "when to try again");
    for _ in 0..2 {
        let publish = producing.batch(&[&value(producing.next_sequence)]);
        let again = peer.publish(&mut producing, publish).await.unwrap_err();
        assert_eq!(again.refusal.code, refusal.code);
    }
    let mut repeated = producing.clone();
    repeated.next_sequence -= 1;
    let publish = repeated.batch(&[&value(repeated.next_sequence)]);
    let duplicate = peer.publish(&mut producing, publish).await.unwrap();
    assert!(duplicate.duplicate, "what is stored is stored, also when there is no room");
    let metrics = node.metrics().await;
    let rejected = "weir_publish_rejected_total{topic=\"orders\",reason=\"backlog\"}";
    assert_eq!(metrics.value(rejected), 3.0);
    let errors = "weir_errors_total{code=\"0201\",reason=\"backlog\"}";
    assert_eq!(metrics.value(errors), 3.0);
    witness.check().await;

    settle(&client, stored.len() as u64).await;
    until("the topic takes more", async || {
        let publish = producing.batch(&[&value(producing.next_sequence)]);
        match peer.publish(&mut producing, publish).await {
            Ok(range) => {
                assert_eq!(range.base_offset.0, stored.len() as u64, "nothing refused was stored");
                true
            }
            Err(refused) => {
                assert_eq!(refused.refusal.code, ErrorCode::BacklogFull.number());
                false
            }
        }
    })
    .await;
    witness.check().await;
}

/// A topic that is full, and the client that filled it.
async fn full(node: &Node, overflow: Overflow) -> (Client, Peer, u64) {
    let client = node.client().await;
    client.create_topic(TOPIC, limited(Overflow::Reject)).await.unwrap();
    let stalled = stalled_subscription(node).await;
    let mut peer = Peer::connect(node).await;
    let mut producing = peer.open_publisher(1, TOPIC, None).await.unwrap();
    let (stored, _) = fill(&mut peer, &mut producing).await;
    let change = TopicChange { overflow: Some(overflow), ..TopicChange::default() };
    client.alter_topic(TOPIC, change).await.unwrap();
    (client, stalled, stored.len() as u64)
}

#[tokio::test]
async fn every_message_that_is_rejected_says_why_and_when_to_try_again() {
    let node = Node::start().await;
    let (client, _stalled, _) = full(&node, Overflow::Reject).await;
    // A publisher that never stored anything, with more under way than one batch holds.
    let publisher = client.publisher(TOPIC).on_full(OnFull::Fail).build().await.unwrap();
    let mut receipts = Vec::new();
    for number in 0..24 {
        receipts.push(publisher.send(Message::new(value(number))).await.unwrap());
    }
    for (number, receipt) in receipts.into_iter().enumerate() {
        let error = soon("an answer", receipt).await.unwrap_err();
        assert_eq!(error.error_code(), Some(ErrorCode::BacklogFull), "message {number}: {error}");
        assert_eq!(error.overload(), Some(Reason::Backlog));
        assert_eq!(error.outcome(), Outcome::NotStored);
        assert!(error.retry_after().is_some_and(|hint| hint > Duration::ZERO));
    }
}

/// Sends messages from `first` on until `count` are taken; counts those that are acknowledged.
async fn send(publisher: &Publisher, first: u64, count: u64, acknowledged: &AtomicU64) {
    let mut receipts = Vec::new();
    for number in first..first + count {
        receipts.push(publisher.send(Message::new(value(number))).await.unwrap());
    }
    for receipt in receipts {
        receipt.await.unwrap();
        acknowledged.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_full_topic_holds_its_publishers_back_and_no_others() {
    let node = Node::start().await;
    let mut witness = Witness::start(&node).await;
    let client = node.client().await;
    client.create_topic(TOPIC, limited(Overflow::Backpressure)).await.unwrap();
    let _stalled = stalled_subscription(&node).await;
    let publisher = client.publisher(TOPIC).build().await.unwrap();
    let count = (TOPIC_BYTES_MAX + SLACK_BYTES) / VALUE_BYTES as u64 + 50;
    let acknowledged = AtomicU64::new(0);
    let consumer_client = node.client().await;
    let watching = async {
        until("the publisher is held back", async || publisher.blocked() == Some(Reason::Backlog))
            .await;
        until("the topic is seen to be full", async || topic_bytes(&node).await >= TOPIC_BYTES_MAX)
            .await;

        let refused = client.publisher(TOPIC).on_full(OnFull::Fail).build().await.unwrap();
        until("a publisher that does not wait is told", async || {
            refused
                .try_send(value(OTHERS))
                .is_err_and(|refused| refused.error().overload() == Some(Reason::Backlog))
        })
        .await;
        drop(refused);
        for _ in 0..20 {
            witness.publish().await;
        }
        let blocked = "weir_flow_blocked_seconds_total{topic=\"orders\",reason=\"backlog\"}";
        let metrics = node.metrics().await;
        assert_eq!(metrics.value("weir_publishers_blocked{topic=\"orders\"}"), 1.0);
        assert!(metrics.value(blocked) > 0.0);
        let rejected = "weir_publish_rejected_total{topic=\"orders\",reason=\"backlog\"}";
        assert_eq!(metrics.value(rejected), 0.0, "held back, not refused");
        assert!(node.ask("/v1/flow").await.contains("\"reason\":\"backlog\""));
        let bytes = topic_bytes(&node).await;
        assert!(bytes < TOPIC_BYTES_MAX + SLACK_BYTES, "it holds {bytes}");
        let held = acknowledged.load(Ordering::Relaxed);
        assert!(held * (VALUE_BYTES as u64) < TOPIC_BYTES_MAX + SLACK_BYTES, "{held} messages");

        let mut consumer = consumer_client.consumer(TOPIC, "slow").subscribe().await.unwrap();
        let mut numbers = Vec::new();
        while numbers.len() < count as usize {
            let message = soon("a message", consumer.next()).await.unwrap().unwrap();
            let number = number_of(message.payload());
            numbers.extend(Some(number).filter(|number| *number != OTHERS));
            message.ack();
        }
        numbers
    };
    let sending = send(&publisher, 0, count, &acknowledged);
    let ((), numbers) = tokio::join!(sending, watching);
    let wrong = numbers.windows(2).find(|pair| pair[0] + 1 != pair[1]);
    assert_eq!((wrong, numbers.len() as u64), (None, count), "each once, in order");
    assert_eq!(acknowledged.load(Ordering::Relaxed), count);
    assert_eq!(publisher.blocked(), None);
    witness.check().await;
}

#[tokio::test]
async fn what_the_manual_advises_gets_a_full_topic_going_again() {
    let changes = [
        TopicChange { max_bytes: Some(4 * TOPIC_BYTES_MAX), ..TopicChange::default() },
        TopicChange { overflow: Some(Overflow::Expire), ..TopicChange::default() },
    ];
    for change in changes {
        let node = Node::start().await;
        let (client, _stalled, stored) = full(&node, Overflow::Backpressure).await;
        let publisher = client.publisher(TOPIC).build().await.unwrap();
        let receipt = publisher.send(Message::new(value(stored))).await.unwrap();
        until("it is held back", async || publisher.blocked() == Some(Reason::Backlog)).await;
        client.alter_topic(TOPIC, change).await.unwrap();
        assert_eq!(soon("an acknowledgement", receipt).await.unwrap().offset, stored);
    }
}

/// Reads up to the message before `count`, and says how many there were: what goes while it is
/// read is missing.
async fn read_up_to(consumer: &mut Consumer, count: u64) -> u64 {
    let (mut read, mut next) = (0, 0);
    while next < count {
        let message = soon("a message", consumer.next()).await.unwrap().unwrap();
        assert!(message.offset() >= next, "each once, in order");
        assert_eq!(number_of(message.payload()), message.offset());
        next = message.offset() + 1;
        read += 1;
        message.ack();
    }
    read
}

/// Publishes twice what the topic may hold, which nobody holds back; returns the messages.
async fn overfill(node: &Node, client: &Client) -> u64 {
    let publisher = client.publisher(TOPIC).build().await.unwrap();
    let count = 2 * TOPIC_BYTES_MAX / VALUE_BYTES as u64;
    let acknowledged = AtomicU64::new(0);
    soon("nobody is held back", send(&publisher, 0, count, &acknowledged)).await;
    until("the topic is within its limit", async || {
        topic_bytes(node).await <= TOPIC_BYTES_MAX + 2 * SEGMENT_BYTES
    })
    .await;
    count
}

#[tokio::test]
async fn a_full_topic_that_expires_loses_its_oldest_and_counts_them() {
    let node = Node::start().await;
    let client = node.client().await;
    client.create_topic(TOPIC, limited(Overflow::Expire)).await.unwrap();
    let _stalled = stalled_subscription(&node).await;
    let count = overfill(&node, &client).await;
    let mut consumer = client.consumer(TOPIC, "slow").subscribe().await.unwrap();
    let read = read_up_to(&mut consumer, count).await;
    assert!(read < count, "the oldest are gone");
    assert_eq!(consumer.skipped(), count - read, "the subscription is told how many it missed");
    let expired = "weir_expire_messages_total{topic=\"orders\"}";
    let gone = (count - read) as f64;
    until("they are counted", async || node.metrics().await.value(expired) >= gone).await;
}

#[tokio::test]
async fn without_a_durable_subscription_a_limit_holds_nobody_back() {
    let node = Node::start().await;
    let client = node.client().await;
    client.create_topic(TOPIC, limited(Overflow::Backpressure)).await.unwrap();
    let count = overfill(&node, &client).await;
    let mut reader = client.reader(TOPIC).from(Start::Earliest).subscribe().await.unwrap();
    assert!(reader.starts()[&0] > 0, "the oldest are gone");
    assert!(read_up_to(&mut reader, count).await > 0);
    let expired = "weir_expire_messages_total{topic=\"orders\"}";
    assert_eq!(node.metrics().await.value(expired), 0.0, "nobody had asked for them");
}

#[tokio::test]
async fn peers_that_hoard_credit_lose_it_and_others_are_served() {
    let node = Node::start().await;
    let mut witness = Witness::start(&node).await;
    node.client().await.create_topic(TOPIC, TopicConfig::default()).await.unwrap();
    let mut peer = Peer::connect(&node).await;
    for stream in 1..=80 {
        peer.open_publisher(stream, TOPIC, None).await.unwrap();
        let demand = Demand { cost: 1 << 20, largest: 1 << 20 };
        peer.send(&Frame::Demand(StreamId(stream), demand)).await;
    }
    peer.is_served().await;
    let value = |series: &str| format!("weir_memory_{series}_bytes{{pool=\"publish credit\"}}");
    let metrics = node.metrics().await;
    assert!(metrics.value(&value("used")) <= metrics.value(&value("limit")));
    // Their streams end for their silence; until then somebody who asks politely waits.
    witness.publish().await;
    witness.check().await;
    let closed = |frame: &Frame| match frame {
        Frame::StreamClosed(closed) => closed.refusal.clone(),
        _ => None,
    };
    let refusal = peer.find(closed).await;
    assert_eq!(refusal.code, ErrorCode::PeerSilent.number(), "{refusal:?}");
    peer.is_served().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_so_and_let_in_when_one_leaves() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), any_port()).with_connections(2);
    let node = Node::of(folder, start_with(config).await.unwrap());
    let mut first = Peer::connect(&node).await;
    let second = Peer::connect(&node).await;
    for _ in 0..5 {
        let mut third = Peer::raw(&node).await;
        let Frame::Error(error) = third.next().await else { panic!("ERROR comes first") };
        assert_eq!(error.refusal.code, ErrorCode::OverloadedConnect.number());
        assert!(error.refusal.retry_after_ms > 0 && error.refusal.limit == 2, "{error:?}");
        assert_eq!(third.next_or_end().await, None);
    }
    first.is_served().await;
    let errors = "weir_errors_total{code=\"0304\",reason=\"connections\"}";
    assert_eq!(node.metrics().await.value(errors), 5.0);
    drop(second);
    until("one is let in", async || {
        let mut peer = Peer::raw(&node).await;
        peer.say_hello().await;
        matches!(peer.next_or_end().await, Some(Frame::Welcome(_)))
    })
    .await;
    first.is_served().await;
}

#[tokio::test]
async fn a_consumer_that_settles_nothing_gets_no_more_than_its_credit() {
    let node = Node::start().await;
    let client = node.client().await;
    client.create_topic(TOPIC, TopicConfig::default()).await.unwrap();
    let publisher = client.publisher(TOPIC).build().await.unwrap();
    let acknowledged = AtomicU64::new(0);
    send(&publisher, 0, 40, &acknowledged).await;
    let mut peer = Peer::connect(&node).await;
    let request = peer.request();
    let credit = Grant { limit_cost: 200_000, limit_messages: 100, ..Grant::default() };
    let subscribe = |stream: u32, request, credit| {
        Frame::Subscribe(Subscribe {
            stream: StreamId(stream),
            request,
            topic: name(TOPIC),
            partition: PartitionId(0),
            subscription: None,
            start: weir_protocol::frame::Start::Offset(Offset(0)),
            credit,
            needs: Needs::default(),
        })
    };
    peer.send(&subscribe(1, request, credit)).await;
    peer.answer(request).await.unwrap();
    peer.is_served().await;
    let (mut received, mut limit) = (0, credit.limit_cost);
    while received < 30 * VALUE_BYTES as u64 {
        let bytes: usize = peer
            .find(|frame| match frame {
                Frame::Deliver(deliver) => Some(deliver.batches.iter().map(|b| b.len()).sum()),
                _ => None,
            })
            .await;
        received += bytes as u64;
        assert!(received <= limit, "{received} were sent of {limit}");
        limit += bytes as u64;
        let credit = Grant { limit_cost: limit, limit_messages: 1_000, ..Grant::default() };
        peer.send(&Frame::Grant(StreamId(1), credit)).await;
    }
}
