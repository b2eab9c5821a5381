//! Three real brokers over real TCP: what a cluster promises to those who use it, whatever becomes of
//! one of its brokers.

#![allow(clippy::unwrap_used, reason = "a test may panic wherever it is")]

mod common;

use common::cluster::{Cluster, Member, are_three_voters, at_last, found, publisher_of, read_to};
use common::peer::Peer;
use common::said::Said;
use std::path::PathBuf;
use weir_client::{Message, Publisher, TopicChange, TopicConfig};
use weir_protocol::error_code::ErrorCode;
use weir_protocol::frame::Frame;

const TOPIC: &str = "orders";
/// Of a topic whose log has several small segments.
const SMALL_BYTES: u64 = 8 << 20;
/// A message of which a few make a segment.
const LARGE_BYTES: usize = 48 << 10;

fn payload(number: u64) -> Vec<u8> {
    format!("order {number}").into_bytes()
}

fn large(number: u64) -> Vec<u8> {
    let mut bytes = payload(number);
    bytes.resize(LARGE_BYTES, number as u8);
    bytes
}

/// Publishes these numbers, each to its own offset, and waits for every one.
async fn publish(to: &Publisher, numbers: std::ops::Range<u64>, content: fn(u64) -> Vec<u8>) {
    let mut receipts = Vec::new();
    for number in numbers.clone() {
        receipts.push(at_last("there is room", to.send(Message::new(content(number)))).await);
    }
    for (number, receipt) in numbers.zip(receipts) {
        let stored = at_last("an acknowledgement", receipt.unwrap()).await.unwrap();
        assert_eq!(stored.offset, number, "nothing is lost and nothing is stored twice");
    }
}

fn all(numbers: std::ops::Range<u64>, content: fn(u64) -> Vec<u8>) -> Vec<(u64, Vec<u8>)> {
    numbers.map(|number| (number, content(number))).collect()
}

#[tokio::test]
async fn every_broker_of_a_cluster_has_every_record() {
    let cluster = Cluster::form().await;
    cluster.create_topic(TOPIC, None).await;
    let client = cluster.client().await;
    publish(&publisher_of(&client, TOPIC).await, 0..300, payload).await;
    assert_eq!(cluster.same_records(TOPIC, 300).await, all(0..300, payload));
    let topic = client.topic(TOPIC).await.unwrap();
    assert_eq!(topic.partitions[0].replicas.len(), 3, "{topic:?}");
}

#[tokio::test]
async fn a_kill_of_the_leader_loses_nothing_and_stores_nothing_twice() {
    let mut cluster = Cluster::form().await;
    cluster.create_topic(TOPIC, None).await;
    let client = cluster.client().await;
    let publisher = publisher_of(&client, TOPIC).await;
    let consumer = client.consumer(TOPIC, "billing").auto_settle(true).subscribe();
    let mut consumer = at_last("a consumer opens", consumer).await.unwrap();
    publish(&publisher, 0..300, payload).await;
    assert_eq!(read_to(&mut consumer, 300).await, all(0..300, payload));

    // The leader dies while some are under way, and again the one that takes over.
    let mut stored = 300;
    for _ in 0..2 {
        let leader = cluster.leader(TOPIC).await;
        let mut receipts = Vec::new();
        for number in stored..stored + 300 {
            receipts.push(publisher.send(Message::new(payload(number))).await.unwrap());
        }
        let first = found("one is acknowledged", async || receipts[0].outcome()).await;
        assert_eq!(first.unwrap().offset, stored);
        cluster.members[leader].kill();
        for (number, receipt) in (stored..).zip(receipts) {
            let stored = at_last("an acknowledgement", receipt).await.unwrap();
            assert_eq!(stored.offset, number, "nothing is lost and nothing is stored twice");
        }
        publish(&publisher, stored + 300..stored + 400, payload).await;
        stored += 400;
        // What was not settled in time may come again, and nothing else.
        let read = read_to(&mut consumer, stored).await;
        let mut offsets: Vec<u64> = read.iter().map(|(offset, _)| *offset).collect();
        assert!(read.iter().all(|(offset, bytes)| *bytes == payload(*offset)));
        offsets.sort_unstable();
        offsets.dedup();
        offsets.retain(|offset| *offset >= stored - 400);
        assert_eq!(offsets, (stored - 400..stored).collect::<Vec<_>>());
        cluster.start(leader).await;
    }
    cluster.replicas_are_open(TOPIC).await;
    assert_eq!(cluster.same_records(TOPIC, stored).await, all(0..stored, payload));
}

#[tokio::test]
async fn a_broker_that_is_drained_is_missed_by_nobody() {
    let mut cluster = Cluster::form().await;
    cluster.create_topic(TOPIC, None).await;
    let client = cluster.client().await;
    let publisher = publisher_of(&client, TOPIC).await;
    let consumer = client.consumer(TOPIC, "billing").auto_settle(true).subscribe();
    let mut consumer = at_last("a consumer opens", consumer).await.unwrap();
    publish(&publisher, 0..100, payload).await;
    let leader = cluster.leader(TOPIC).await;
    let leaving = cluster.members[leader].drain();
    let publishing = async {
        for start in (100..1_100).step_by(20) {
            publish(&publisher, start..start + 20, payload).await;
            tokio::task::yield_now().await;
        }
    };
    let reading = read_to(&mut consumer, 1_100);
    let (_, (), read) = tokio::join!(leaving, publishing, reading);
    assert_eq!(read, all(0..1_100, payload), "every record comes exactly once, in order");
    assert_ne!(cluster.leader(TOPIC).await, leader);
}

#[tokio::test]
async fn a_node_with_data_grows_into_a_cluster() {
    let [mut first, second, third] = ["a", "b", "c"].map(Member::new);
    first.start("").await;
    let client = first.client().await;
    client.create_topic(TOPIC, TopicConfig::default()).await.unwrap();
    publish(&publisher_of(&client, TOPIC).await, 0..400, payload).await;
    drop(client);
    first.drain().await;

    let mut cluster = Cluster::form_of(vec![first, second, third]).await;
    let client = cluster.client().await;
    let change = TopicChange { replicas: Some(3), ..TopicChange::default() };
    // The settings stand in the metadata at once; the replicas come behind.
    let altered =
        found("the topic is altered", async || client.alter_topic(TOPIC, change).await.ok());
    altered.await;
    cluster.replicas_are_open(TOPIC).await;
    assert_eq!(cluster.same_records(TOPIC, 400).await, all(0..400, payload));
    publish(&publisher_of(&client, TOPIC).await, 400..500, payload).await;

    found("three vote, about the metadata and in the topic", async || {
        let first = &cluster.members[0];
        let metadata = first.page("/v1/cluster").await?["metadata"].take();
        let partition = first.partition(TOPIC).await?;
        let all = [&metadata["replicas"], &partition["replicas"]];
        all.into_iter().all(are_three_voters).then_some(())
    })
    .await;

    // Two of the three are enough for the metadata and the topic alike.
    cluster.members[0].kill();
    let rest = cluster.members[1].client().await;
    let created = found("a topic is created", async || {
        rest.create_topic("later", TopicConfig::default())
            .await
            .err()
            .is_none_or(|error| error.error_code() == Some(ErrorCode::TopicExists))
            .then_some(())
    });
    created.await;
    let publisher = publisher_of(&rest, TOPIC).await;
    publish(&publisher, 500..600, payload).await;
    assert_eq!(cluster.same_records(TOPIC, 600).await, all(0..600, payload));
}

#[tokio::test]
async fn a_follower_that_missed_a_trim_gets_a_snapshot() {
    let mut cluster = Cluster::form().await;
    cluster.create_topic(TOPIC, Some(SMALL_BYTES)).await;
    let client = cluster.client().await;
    let publisher = publisher_of(&client, TOPIC).await;
    publish(&publisher, 0..10, large).await;
    let leader = cluster.leader(TOPIC).await;
    let follower = (leader + 1) % 3;
    cluster.members[follower].kill();
    let mut stored = 10;
    let log_start = loop {
        publish(&publisher, stored..stored + 50, large).await;
        stored += 50;
        let view = cluster.members[leader].partition(TOPIC).await.unwrap();
        match view["log_start"].as_u64().unwrap() {
            start if start > 60 => break start,
            start => assert!(stored < 2_000, "{start} of {stored}: nothing is trimmed"),
        }
    };
    cluster.start(follower).await;
    cluster.replicas_are_open(TOPIC).await;
    let records = cluster.members[follower].records(TOPIC, stored).await;
    assert!(records[0].0 >= log_start, "it begins at {}, not {log_start}", records[0].0);
    assert_eq!(records, all(records[0].0..stored, large));
    publish(&publisher, stored..stored + 10, large).await;
    // A reader passes over what is trimmed while it reads.
    let mut behind = cluster.members[follower].records(TOPIC, stored + 10).await;
    let view = cluster.members[follower].partition(TOPIC).await.unwrap();
    let log_start = view["log_start"].as_u64().unwrap();
    behind.retain(|(offset, _)| *offset >= log_start);
    assert_eq!(behind, all(behind[0].0..stored + 10, large));
}

/// The files with this extension of the one replica that a broker holds, in their order.
fn files(member: &Member, extension: &str) -> Vec<PathBuf> {
    let [folder] = &member.replica_folders()[..] else { panic!("one replica") };
    let rows = std::fs::read_dir(folder).unwrap().map(|row| row.unwrap().path());
    let mut files: Vec<_> =
        rows.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    files.sort();
    files
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// A segment behind which others follow, and where in it a record begins.
fn record_in_a_closed_segment(segments: &[PathBuf]) -> (PathBuf, usize) {
    let closed = &segments[..segments.len() - 1];
    let record = |path: &PathBuf| {
        let at = find(&std::fs::read(path).unwrap(), b"order ")?;
        Some((path.clone(), at))
    };
    closed.iter().find_map(record).unwrap()
}

#[tokio::test]
async fn damage_to_a_follower_that_is_down_is_repaired_at_its_start() {
    let mut cluster = Cluster::form().await;
    cluster.create_topic(TOPIC, Some(SMALL_BYTES)).await;
    let client = cluster.client().await;
    publish(&publisher_of(&client, TOPIC).await, 0..100, large).await;
    let follower = (cluster.leader(TOPIC).await + 1) % 3;
    let member = &mut cluster.members[follower];
    let whole = member.records(TOPIC, 100).await;
    // Where a short first segment made one segment too many, it was trimmed.
    let first = whole[0].0;
    assert!(first < 30, "{first}");
    assert_eq!(whole, all(first..100, large));
    member.drain().await;

    let before = member.replica_folders();
    let segments = files(member, "seg");
    assert!(segments.len() > 2, "{segments:?}");
    let (bent, at) = record_in_a_closed_segment(&segments);
    let mut bytes = std::fs::read(&bent).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&bent, &bytes).unwrap();
    // What the index beside a closed segment says is believed; without it the segment is read.
    files(member, "idx").iter().for_each(|index| std::fs::remove_file(index).unwrap());

    cluster.start(follower).await;
    cluster.replicas_are_open(TOPIC).await;
    let member = &cluster.members[follower];
    assert_eq!(member.replica_folders(), before, "it is the same replica");
    assert_eq!(member.partition(TOPIC).await.unwrap()["damaged"], serde_json::json!([]));
    let repaired = member.records(TOPIC, 100).await;
    let first = repaired[0].0.max(first);
    assert!(first < 30, "{first}");
    assert_eq!(repaired, all(first..100, large));
    let segments = files(member, "seg");
    let is_bent = |path: &PathBuf| find(&std::fs::read(path).unwrap(), &bytes[at..at + 32]);
    assert_eq!(segments.iter().find_map(is_bent), None, "the damage is gone from the disk");
}

#[tokio::test]
async fn a_broker_that_lost_its_data_is_a_new_one_and_gets_all_of_it() {
    let mut cluster = Cluster::form().await;
    cluster.create_topic(TOPIC, None).await;
    let client = cluster.client().await;
    let publisher = publisher_of(&client, TOPIC).await;
    publish(&publisher, 0..200, payload).await;
    let before = client.topic(TOPIC).await.unwrap().partitions[0].replicas.clone();
    let follower = (cluster.leader(TOPIC).await + 1) % 3;
    cluster.members[follower].kill();
    cluster.members[follower].wipe();
    cluster.start(follower).await;
    cluster.replicas_are_open(TOPIC).await;
    let member = &cluster.members[follower];
    assert_eq!(member.records(TOPIC, 200).await, all(0..200, payload));
    let replaced = found("the old broker holds nothing any more", async || {
        let now = client.topic(TOPIC).await.ok()?.partitions[0].replicas.clone();
        (now.len() == 3 && now != before).then_some(now)
    });
    let now = replaced.await;
    let new: Vec<_> = now.iter().filter(|broker| !before.contains(broker)).collect();
    assert_eq!(new.len(), 1, "{before:?} became {now:?}");
    assert!(before.iter().all(|old| old < new[0]), "an id was given again: {before:?}, {now:?}");
    publish(&publisher, 200..300, payload).await;
    assert_eq!(cluster.same_records(TOPIC, 300).await, all(0..300, payload));
}

#[tokio::test]
async fn a_replica_that_its_broker_was_too_late_to_make_is_made_and_one_that_vanished_is_replaced()
{
    let mut cluster = Cluster::form().await;
    cluster.members[2].kill();
    let client = cluster.client().await;
    let config = TopicConfig { replicas: 3, ..TopicConfig::default() };
    at_last("a topic is created", client.create_topic(TOPIC, config)).await.unwrap();
    let publisher = publisher_of(&client, TOPIC).await;
    publish(&publisher, 0..100, payload).await;
    // Its group has a leader and records by now, and it never promised anything.
    cluster.start(2).await;
    cluster.replicas_are_open(TOPIC).await;
    assert_eq!(cluster.same_records(TOPIC, 100).await, all(0..100, payload));
    let late = cluster.members[2].replica_folders();
    assert_eq!(late.len(), 1, "it is the one that was placed there: {late:?}");

    // What has been made and is not there any more may have promised anything.
    cluster.members[2].kill();
    std::fs::remove_dir_all(&late[0]).unwrap();
    cluster.start(2).await;
    let replaced = found("another replica takes its place", async || {
        let folders = cluster.members[2].replica_folders();
        (!folders.is_empty() && !folders.contains(&late[0])).then_some(())
    });
    replaced.await;
    cluster.replicas_are_open(TOPIC).await;
    publish(&publisher, 100..200, payload).await;
    assert_eq!(cluster.same_records(TOPIC, 200).await, all(0..200, payload));
}

#[tokio::test]
async fn a_leader_that_is_cut_off_acknowledges_nothing_and_the_others_go_on() {
    let cluster = Cluster::form().await;
    cluster.create_topic(TOPIC, None).await;
    let client = cluster.client().await;
    let publisher = publisher_of(&client, TOPIC).await;
    publish(&publisher, 0..100, payload).await;
    let member = &cluster.members[cluster.leader(TOPIC).await];
    let mut peer = Peer::connect_to(member.native).await;
    let producing = peer.open_publisher(1, TOPIC, None).await.unwrap();
    member.line.cut();
    peer.send(&Frame::Publish(producing.batch(&[b"never acknowledged"]))).await;

    // Nobody reaches it, and it finds out all the same.
    let told = peer.find(|frame| match frame {
        Frame::Published(published) => panic!("nobody else has it: {published:?}"),
        Frame::StreamClosed(closed) => closed.refusal.as_ref().map(|refusal| refusal.code),
        _ => None,
    });
    assert_eq!(at_last("it knows that it is cut off", told).await, ErrorCode::NotLeader.number());
    let refused = peer.open_publisher(2, TOPIC, None).await.expect_err("it does not lead");
    assert_eq!(refused.code, ErrorCode::NotLeader.number(), "{refused:?}");

    // Others lead meanwhile, and what they store is what counts.
    publish(&publisher, 100..200, payload).await;
    member.line.heal();
    assert_eq!(cluster.same_records(TOPIC, 200).await, all(0..200, payload));
}

#[tokio::test]
async fn a_broker_with_another_secret_is_refused_and_that_is_logged() {
    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    const OTHER: &str = "0123456789abcdef0123456789abcdee";
    let said = Said::listen();
    let members = ["a", "b", "c"].map(|name| Member::new(name).with_secret(SECRET));
    let cluster = Cluster::form_of(members.into()).await;
    let mut stranger = Member::new("stranger").with_secret(OTHER);
    stranger.begin(&cluster.seeds);
    found("the stranger is not let in", async || {
        said.has(&["a broker was not let in", "secret"]).then_some(())
    })
    .await;
    // It is told too, and waits for somebody to put it right.
    found("the stranger says what it waits for", async || {
        said.has(&["waiting for", &cluster.members[0].peers.to_string()]).then_some(())
    })
    .await;
    stranger.kill();
    cluster.create_topic(TOPIC, None).await;
    let client = cluster.client().await;
    publish(&publisher_of(&client, TOPIC).await, 0..50, payload).await;
    // With the right one it is welcome.
    let mut friend = Member::new("friend").with_secret(SECRET);
    friend.start(&cluster.seeds).await;
}
