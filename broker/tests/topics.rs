//! What a broker tells of its topics, and of who serves them.

#![allow(clippy::unwrap_used, reason = "a test may panic wherever it is")]

mod common;

use common::Node;
use common::peer::{Peer, name};
use weir_client::{ErrorCode, TopicChange, TopicConfig};
use weir_protocol::frame::{Frame, Metadata, MetadataPage};
use weir_protocol::types::BrokerId;

/// A page about `topic`, once each of its partitions is led.
async fn led_page(peer: &mut Peer, topic: &str) -> MetadataPage {
    loop {
        let request = peer.request();
        let topic = Some(name(topic));
        peer.send(&Frame::Metadata(Metadata { request, topic, after: None })).await;
        let Ok(Frame::MetadataPage(page)) = peer.answer(request).await else { panic!("a page") };
        if page.topics[0].partitions.iter().all(|partition| partition.leader.is_some()) {
            return page;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_page_tells_who_leads_where_it_is_and_in_which_term() {
    let mut node = Node::start().await;
    let mut peer = Peer::connect(&node).await;
    let config = TopicConfig { partitions: 3, ..TopicConfig::default() };
    peer.create_topic("orders", config).await.unwrap();
    let page = led_page(&mut peer, "orders").await;
    let [broker] = &page.brokers[..] else { panic!("one broker: {:?}", page.brokers) };
    assert_eq!(broker.id, BrokerId(1));
    assert_eq!(format!("{}:{}", broker.host, broker.port), node.addresses.native.to_string());
    assert!(!broker.name.is_empty());
    let partitions = &page.topics[0].partitions;
    assert_eq!(partitions.len(), 3);
    for partition in partitions {
        assert_eq!(partition.leader, Some(broker.id));
        assert_eq!(partition.replicas, [broker.id]);
        assert!(partition.term.0 > 0, "{partition:?}");
    }

    node.drain().await;
    node.restart().await;
    let mut peer = Peer::connect(&node).await;
    let again = led_page(&mut peer, "orders").await;
    for (before, after) in partitions.iter().zip(&again.topics[0].partitions) {
        assert!(after.term > before.term, "{before:?} {after:?}");
    }
}

#[tokio::test]
async fn a_change_that_is_refused_changed_nothing() {
    let node = Node::start().await;
    let client = node.client().await;
    client.create_topic("orders", TopicConfig::default()).await.unwrap();
    let before = client.topic("orders").await.unwrap().config;
    let replicas = TopicChange { replicas: Some(3), ..TopicChange::default() };
    let more = TopicChange { max_bytes: Some(2 * before.max_bytes), ..replicas };
    for (change, said) in [(replicas, "broker"), (more, "request of their own")] {
        let error = client.alter_topic("orders", change).await.unwrap_err();
        assert_eq!(error.error_code(), Some(ErrorCode::BadRequest), "{error}");
        assert!(error.to_string().contains(said), "{error}");
        assert_eq!(client.topic("orders").await.unwrap().config, before, "{change:?}");
    }
    // What stays as it is may be named.
    let more = TopicChange { replicas: Some(before.replicas), ..more };
    client.alter_topic("orders", more).await.unwrap();
    assert_eq!(client.topic("orders").await.unwrap().config.max_bytes, 2 * before.max_bytes);
}
