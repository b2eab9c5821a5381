//! What was acknowledged is there once, however the broker ended: in order, or in the middle of
//! whatever it did.

#![allow(clippy::unwrap_used, reason = "a test may panic wherever it is")]

mod common;

use common::peer::{Peer, name};
use common::{Node, soon, until};
use std::collections::BTreeMap;
use weir_client::{Client, Durability, Message, Start, TopicConfig};
use weir_protocol::frame::{Frame, OpenPublisher};
use weir_protocol::types::{PartitionId, StreamId};

const TOPIC: &str = "orders";

fn payload(number: u64) -> String {
    format!("order {number}")
}

/// Publishes these numbers as the durable producer `till`, and waits for every one.
async fn publish(client: &Client, numbers: std::ops::Range<u64>) {
    let publisher = client.publisher(TOPIC).partition(0).idempotent("till").build().await.unwrap();
    let next = publisher.next_sequence(0).await.unwrap();
    assert_eq!(next, numbers.start, "the producer goes on behind what is stored");
    let mut receipts = Vec::new();
    for number in numbers.clone() {
        receipts.push(publisher.send(Message::new(payload(number))).await.unwrap());
    }
    for (number, receipt) in numbers.zip(receipts) {
        let stored = soon("an acknowledgement", receipt).await.unwrap();
        assert_eq!((stored.offset, stored.duplicate), (number, false));
    }
}

/// Everything that the topic holds is `count` messages, each once, in order.
async fn holds(client: &Client, count: u64) {
    let mut reader = client.reader(TOPIC).from(Start::Earliest).subscribe().await.unwrap();
    assert_eq!(reader.end_offsets()[&0], count);
    for number in 0..count {
        let message = soon("a message", reader.next()).await.unwrap().unwrap();
        assert_eq!(message.offset(), number);
        assert_eq!(message.payload()[..], payload(number).into_bytes()[..]);
    }
}

async fn end(node: &mut Node, in_order: bool) {
    if in_order { node.drain().await } else { node.kill() }
}

#[tokio::test]
async fn what_was_acknowledged_is_there_once_and_the_producer_goes_on() {
    let mut node = Node::start().await;
    let client = node.client().await;
    client.create_topic(TOPIC, TopicConfig::default()).await.unwrap();
    let mut count = 0;
    for in_order in [true, false, false, true] {
        let client = node.client().await;
        publish(&client, count..count + 250).await;
        count += 250;
        end(&mut node, in_order).await;
        node.restart().await;
        holds(&node.client().await, count).await;
    }
}

#[tokio::test]
async fn what_was_acknowledged_in_memory_survives_the_end_of_the_process() {
    let mut node = Node::start().await;
    let config = TopicConfig { durability: Durability::Memory, ..TopicConfig::default() };
    node.client().await.create_topic(TOPIC, config).await.unwrap();
    publish(&node.client().await, 0..300).await;
    // The operating system keeps what a process wrote, only power loss would not.
    node.kill();
    node.restart().await;
    holds(&node.client().await, 300).await;
}

#[tokio::test]
async fn a_batch_repeated_across_a_restart_is_stored_once_and_its_offset_is_told() {
    for in_order in [true, false] {
        let mut node = Node::start().await;
        let mut peer = Peer::connect(&node).await;
        peer.create_topic(TOPIC, TopicConfig::default()).await.unwrap();
        let mut producing = peer.open_publisher(1, TOPIC, Some("till")).await.unwrap();
        peer.publish_next(&mut producing, &[b"a"]).await;
        let publish = producing.batch(&[b"b", b"c"]);
        let stored = peer.publish(&mut producing, publish.clone()).await.unwrap();
        end(&mut node, in_order).await;
        node.restart().await;

        // The client that did not hear the answer goes on as who it was.
        let mut peer = Peer::connect(&node).await;
        let resume = OpenPublisher {
            stream: StreamId(1),
            request: peer.request(),
            topic: name(TOPIC),
            partition: PartitionId(0),
            producer: None,
            producer_id: producing.id,
            producer_epoch: producing.epoch,
        };
        let mut resumed = peer.open_as(resume).await.unwrap();
        assert_eq!(resumed.next_sequence, 3);
        assert_eq!((resumed.id, resumed.epoch), (producing.id, producing.epoch));
        let again = peer.publish(&mut resumed, publish).await.unwrap();
        assert!(again.duplicate);
        assert_eq!(again.base_offset, stored.base_offset);
        assert_eq!(peer.publish_next(&mut resumed, &[b"d"]).await, 3);

        // Whoever opens the name anew fences it, also behind a restart.
        let newer = peer.open_publisher(2, TOPIC, Some("till")).await.unwrap();
        assert!(newer.epoch > resumed.epoch && newer.id == resumed.id);
    }
}

#[tokio::test]
async fn producers_without_a_name_are_told_apart_across_restarts() {
    let mut node = Node::start().await;
    let mut peer = Peer::connect(&node).await;
    peer.create_topic(TOPIC, TopicConfig::default()).await.unwrap();
    let mut first = peer.open_publisher(1, TOPIC, None).await.unwrap();
    peer.publish_next(&mut first, &[b"a"]).await;
    node.kill();
    node.restart().await;
    let mut peer = Peer::connect(&node).await;
    let mut second = peer.open_publisher(1, TOPIC, None).await.unwrap();
    assert_ne!(second.id, first.id, "or the second's first batch would be the first's again");
    assert_eq!(second.next_sequence, 0);
    assert_eq!(peer.publish_next(&mut second, &[b"b"]).await, 1);
}

#[tokio::test]
async fn a_durable_subscription_goes_on_behind_what_was_settled() {
    let mut node = Node::start().await;
    let client = node.client().await;
    client.create_topic(TOPIC, TopicConfig::default()).await.unwrap();
    publish(&client, 0..100).await;
    let mut settled = 0;
    for in_order in [true, false, true] {
        let client = node.client().await;
        let mut consumer = client.consumer(TOPIC, "billing").subscribe().await.unwrap();
        for number in settled..settled + 20 {
            let message = soon("a message", consumer.next()).await.unwrap().unwrap();
            assert_eq!(message.offset(), number);
            if number == settled + 9 {
                soon("a settle", message.ack_confirmed()).await.unwrap();
            }
        }
        settled += 10;
        end(&mut node, in_order).await;
        node.restart().await;
    }
    let consumer = node.client().await.consumer(TOPIC, "billing").subscribe().await.unwrap();
    assert_eq!(consumer.starts()[&0], 30);
    let lag = "weir_subscription_lag_messages{topic=\"orders\",subscription=\"billing\"}";
    until("the lag shows", async || node.metrics().await.value(lag) == 70.0).await;
}

#[tokio::test]
async fn topics_and_their_configuration_survive() {
    let mut node = Node::start().await;
    let client = node.client().await;
    let config = TopicConfig { partitions: 3, max_age_ms: 86_400_000, ..TopicConfig::default() };
    client.create_topic(TOPIC, config).await.unwrap();
    client.create_topic("gone", TopicConfig::default()).await.unwrap();
    client.delete_topic("gone").await.unwrap();
    let before = client.topic(TOPIC).await.unwrap();
    node.kill();
    node.restart().await;
    let client = node.client().await;
    let topics = client.topics().await.unwrap();
    assert_eq!(topics.len(), 1, "{topics:?}");
    // One broker holds one replica of each.
    let config = TopicConfig { replicas: 1, ..config };
    assert_eq!((topics[0].id, topics[0].config), (before.id, config));
    until("every partition is led", async || {
        let topic = client.topic(TOPIC).await.unwrap();
        topic.partitions.iter().all(|partition| partition.leader.is_some())
    })
    .await;
}

/// Kills the broker while messages are under way, several times over.
#[tokio::test]
async fn nothing_acknowledged_is_lost_and_nothing_is_stored_twice_under_kills() {
    let mut node = Node::start().await;
    node.client().await.create_topic(TOPIC, TopicConfig::default()).await.unwrap();
    let mut acknowledged = BTreeMap::new();
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..4 {
        let client = node.client().await;
        let publisher = client.publisher(TOPIC).partition(0).idempotent("till").build();
        let publisher = soon("the publisher opens", publisher).await.unwrap();
        let next = publisher.next_sequence(0).await.unwrap();
        let first_unknown = acknowledged.last_key_value().map_or(0, |(number, _)| number + 1);
        assert!(next >= first_unknown, "{next} are stored, {first_unknown} were acknowledged");
        let mut receipts = Vec::new();
        for number in next..next + 2_000 {
            receipts.push((number, publisher.send(Message::new(payload(number))).await.unwrap()));
        }
        let enough = random.usize(1..1_000);
        until("some are acknowledged", async || receipts[enough].1.is_done()).await;
        node.kill();
        for (number, receipt) in &receipts {
            if let Some(Ok(stored)) = receipt.outcome() {
                acknowledged.insert(*number, stored.offset);
            }
        }
        drop(client);
        node.restart().await;
    }
    assert!(acknowledged.iter().all(|(number, offset)| number == offset));
    let publisher = node.client().await.publisher(TOPIC).partition(0).idempotent("till").build();
    let stored = publisher.await.unwrap().next_sequence(0).await.unwrap();
    assert!(stored > *acknowledged.last_key_value().unwrap().0);
    holds(&node.client().await, stored).await;
}

#[tokio::test]
async fn a_drain_answers_what_it_has_accepted_and_sends_peers_away() {
    let mut node = Node::start().await;
    let mut peer = Peer::connect(&node).await;
    peer.create_topic(TOPIC, TopicConfig::default()).await.unwrap();
    let mut producing = peer.open_publisher(1, TOPIC, None).await.unwrap();
    let mut sent = Vec::new();
    peer.afford(&mut producing, 20 * 1_000).await;
    for number in 0..20u8 {
        let publish = producing.batch(&[&[number; 100]]);
        producing.next_sequence += 1;
        sent.push(publish.header.base_sequence);
        peer.send(&Frame::Publish(publish)).await;
    }
    let answers = async {
        let mut stored = Vec::new();
        let mut go_away = None;
        while let Some(frame) = peer.next_or_end().await {
            match frame {
                Frame::Published(published) => stored.extend(published.stored),
                Frame::GoAway(frame) => go_away = Some(frame),
                Frame::Refused(refused) => {
                    assert_eq!(refused.refusal.code, 0x0302, "{refused:?}");
                }
                _ => {}
            }
        }
        (stored, go_away)
    };
    let (_, (stored, go_away)) = tokio::join!(node.drain(), answers);
    assert_eq!(go_away.expect("a peer is told").code, 0x0302);
    node.restart().await;
    let reader = node.client().await.reader(TOPIC).subscribe().await.unwrap();
    let count = reader.end_offsets()[&0];
    assert_eq!(count, stored.len() as u64, "what is stored was answered, and the other way round");
    assert!(stored.iter().zip(&sent).all(|(range, sequence)| range.base_sequence == *sequence));
}
