//! Brokers that are held at gates of older builds.

#![allow(clippy::unwrap_used, reason = "a test may panic wherever it is")]

mod common;

use common::cluster::{Cluster, Member, at_last, found, publisher_of};
use weir_broker::replication::metadata::GATE_HERE;
use weir_client::{Message, Publisher, TopicChange, TopicConfig};

const TOPIC: &str = "orders";

async fn publish(to: &Publisher, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let message = Message::new(number.to_string().into_bytes());
        let stored = at_last("an acknowledgement", to.publish(message)).await.unwrap();
        assert_eq!(stored.offset, number);
    }
}

async fn gate(of: &Member) -> u64 {
    found("the gate is told", async || of.page("/v1/cluster").await?["gate"].as_u64()).await
}

#[tokio::test]
async fn a_broker_that_is_held_back_writes_what_older_builds_read_until_it_is_released() {
    let [mut first, mut second, third] = ["a", "b", "c"].map(Member::new);
    first.start("").await;
    let client = first.client().await;
    client.create_topic(TOPIC, TopicConfig::default()).await.unwrap();
    publish(&publisher_of(&client, TOPIC).await, 0..50).await;
    drop(client);
    first.drain().await;

    // Held, it works, lets nobody in, and has passed no gate.
    let seeds: Vec<_> = [&first, &second, &third].map(|member| member.peers.to_string()).into();
    let seeds = seeds.join(",");
    first.gate_max = Some(0);
    first.start(&seeds).await;
    second.begin(&seeds);
    let client = first.client().await;
    publish(&publisher_of(&client, TOPIC).await, 50..100).await;
    let change = TopicChange { replicas: Some(3), ..TopicChange::default() };
    let error = client.alter_topic(TOPIC, change).await.unwrap_err().to_string();
    assert!(error.contains("too old") || error.contains("gate"), "{error}");
    assert_eq!(gate(&first).await, 0);
    drop(client);
    second.kill();
    first.drain().await;

    // Released, it passes the gate of clusters and the others join. Two of the three are held below
    // the newest: everything works, and nothing is written that they do not read.
    let [older, newest] = [GATE_HERE - 1, GATE_HERE].map(u64::from);
    let mut third = third;
    first.gate_max = Some(GATE_HERE - 1);
    third.gate_max = Some(GATE_HERE - 1);
    let mut cluster = Cluster::form_of(vec![first, second, third]).await;
    let client = cluster.client().await;
    found("the topic is altered", async || client.alter_topic(TOPIC, change).await.ok()).await;
    cluster.replicas_are_open(TOPIC).await;
    publish(&publisher_of(&client, TOPIC).await, 100..150).await;
    assert_eq!(cluster.same_records(TOPIC, 150).await.len(), 150);
    for member in &cluster.members {
        assert_eq!(gate(member).await, older, "{} is held back", member.name);
    }

    // Once all of them read it, the cluster passes the newest.
    for number in [2, 0] {
        assert_eq!(gate(&cluster.members[number]).await, older);
        cluster.members[number].drain().await;
        cluster.members[number].gate_max = None;
        cluster.start(number).await;
    }
    for member in &cluster.members {
        let passed = async || (gate(member).await == newest).then_some(());
        found("the gate is passed", passed).await;
    }
    publish(&publisher_of(&client, TOPIC).await, 150..200).await;
    assert_eq!(cluster.same_records(TOPIC, 200).await.len(), 200);

    // There is no way back, for it and for whoever is empty.
    let seeds = cluster.seeds.clone();
    cluster.members[2].kill();
    cluster.members[2].gate_max = Some(GATE_HERE - 1);
    let said = cluster.members[2].refusal(&seeds).await;
    let expected = [format!("passed gate {newest}"), format!("reads up to {older}")];
    assert!(expected.iter().all(|words| said.contains(words)), "{said}");
    cluster.members[1].kill();
    cluster.members[1].wipe();
    cluster.members[1].gate_max = Some(0);
    let said = cluster.members[1].refusal(&seeds).await;
    assert!(said.contains("cluster.gate_max = 0 holds this broker"), "{said}");
}
