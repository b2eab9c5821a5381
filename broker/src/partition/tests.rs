//! Whole partitions over real files: the task, its replica and its log.

mod group;
mod rig;

use rig::{Peer, Rig, until};
use tokio::time::Duration;
use weir_protocol::error_code::{ErrorCode, reason_bits};
use weir_protocol::frame::{Overflow, Start};
use weir_protocol::types::{Offset, ProducerId, Sequence};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_forgets_nothing_that_was_acknowledged() {
    let rig = Rig::new();
    let partition = rig.open().await;
    let mut peer = Peer::new(&rig, &partition);
    for number in 0..20 {
        peer.publish(number * 10, 10, 1_000).await;
    }
    let stored = peer.answers(20).await;
    assert!(stored.iter().map(|range| range.base_offset.0).eq((0..200).step_by(10)));
    let subscribed = peer.subscribe(Some("s"), Start::Earliest).await.unwrap();
    assert_eq!((subscribed.start, subscribed.high_watermark), (Offset(0), Offset(200)));
    peer.delivered(200).await;
    peer.settle(150, true);
    assert_eq!(peer.settled().await, Offset(150));
    partition.stop().await;

    let partition = rig.open().await;
    let mut peer = Peer::new(&rig, &partition);
    assert_eq!(peer.next_sequence(ProducerId(1), 0).await, Ok(Sequence(200)));
    peer.publish(190, 10, 1_000).await;
    let repeated = peer.answers(1).await[0];
    assert_eq!((repeated.base_offset, repeated.duplicate), (Offset(190), true));
    let subscribed = peer.subscribe(Some("s"), Start::Earliest).await.unwrap();
    assert_eq!(subscribed.start, Offset(150));
    let reader = Peer::new(&rig, &partition);
    let mut reader = reader;
    reader.subscribe(None, Start::Earliest).await.unwrap();
    reader.delivered(200).await;
    partition.stop().await;
    assert!(partition.is_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_is_opened_leads_also_after_a_restart() {
    let rig = Rig::new();
    for _ in 0..2 {
        let partition = rig.open().await;
        partition.opened().await;
        assert!(partition.view().leading);
        partition.stop().await;
        // One that has ended keeps nobody waiting.
        partition.opened().await;
    }
}

/// A copy of the folder while the partition runs is what a crash would leave, but for what was
/// not flushed: everything acknowledged must be in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_forgets_nothing_that_was_acknowledged() {
    let rig = Rig::new();
    let partition = rig.open().await;
    let mut peer = Peer::new(&rig, &partition);
    peer.subscribe(Some("s"), Start::Earliest).await.unwrap();
    for number in 0..50 {
        peer.publish(number, 1, 40_000).await;
    }
    peer.answers(50).await;
    peer.delivered(50).await;
    peer.settle(30, true);
    peer.settled().await;
    let crashed = rig.copy();
    let partition = crashed.open().await;
    let mut peer = Peer::new(&crashed, &partition);
    assert_eq!(peer.next_sequence(ProducerId(1), 0).await, Ok(Sequence(50)));
    let subscribed = peer.subscribe(Some("s"), Start::Latest).await.unwrap();
    assert_eq!((subscribed.start, subscribed.high_watermark), (Offset(30), Offset(50)));
    peer.delivered(20).await;
    partition.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_log_stays_within_its_limit_and_its_readers_learn_what_is_gone() {
    let mut rig = Rig::new();
    rig.config.max_bytes = 8 << 20;
    let partition = rig.open().await;
    let mut peer = Peer::new(&rig, &partition);
    for number in 0..250 {
        peer.publish(number, 1, 100_000).await;
        peer.answers(1).await;
    }
    let bounded =
        until(&partition, |view| view.bytes <= 10 << 20 && view.log_start > Offset(0)).await;
    assert_eq!(bounded.high_watermark, Offset(250));
    let log_start = partition.view().log_start;
    let subscribed = peer.subscribe(None, Start::Offset(Offset(0))).await.unwrap();
    assert!(subscribed.start >= log_start && subscribed.skipped == subscribed.start.0);
    peer.delivered(250 - subscribed.skipped).await;
    partition.stop().await;
    let partition = rig.open().await;
    let again = until(&partition, |view| view.leading).await;
    assert!(again.log_start >= log_start && again.high_watermark == Offset(250));
    let mut peer = Peer::new(&rig, &partition);
    let time = peer.subscribe(None, Start::Time(0)).await.unwrap();
    assert_eq!((time.start, time.skipped), (time.log_start, 0));
    let beyond = peer.subscribe(None, Start::Offset(Offset(251))).await.unwrap_err();
    assert_eq!(beyond.code, ErrorCode::OffsetOutOfRange.number());
    partition.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_blocks_its_publishers_until_it_is_settled() {
    let mut rig = Rig::new();
    rig.config.max_bytes = 8 << 20;
    let partition = rig.open().await;
    let mut peer = Peer::new(&rig, &partition);
    let mut consumer = Peer::new(&rig, &partition);
    consumer.subscribe(Some("s"), Start::Earliest).await.unwrap();
    let mut sent = 0;
    while partition.view().blocked_bits == 0 {
        peer.publish(sent, 1, 100_000).await;
        peer.answers(1).await;
        sent += 1;
        assert!(sent < 500, "the topic never became full");
    }
    assert_eq!(partition.view().blocked_bits, reason_bits::BACKLOG);
    assert_eq!(partition.view().log_start, Offset(0), "what is needed is held");
    consumer.delivered(sent).await;
    consumer.settle(sent, false);
    until(&partition, |view| view.blocked_bits == 0 && view.log_start > Offset(0)).await;
    peer.publish(sent, 1, 100_000).await;
    assert_eq!(peer.answers(1).await[0].base_offset, Offset(sent));
    partition.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_topic_that_rejects_says_so() {
    let mut rig = Rig::new();
    rig.config.max_bytes = 8 << 20;
    rig.config.overflow = Overflow::Reject;
    let partition = rig.open().await;
    let mut peer = Peer::new(&rig, &partition);
    peer.subscribe(Some("s"), Start::Earliest).await.unwrap();
    let mut sent = 0;
    let refusal = loop {
        peer.publish(sent, 1, 100_000).await;
        match peer.answer().await {
            Ok(_) => sent += 1,
            Err(refusal) => break refusal,
        }
        assert!(sent < 500, "the topic never became full");
    };
    assert_eq!(refusal.code, ErrorCode::BacklogFull.number());
    partition.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_at_once_and_publishing_recovers_when_there_is_space() {
    let rig = Rig::new();
    let partition = rig.open().await;
    let mut peer = Peer::new(&rig, &partition);
    peer.publish(0, 1, 100_000).await;
    peer.answers(1).await;
    rig.disk.set_free(Some(0));
    let mut sent = 1;
    let refusal = loop {
        peer.publish(sent, 1, 100_000).await;
        match tokio::time::timeout(Duration::from_millis(500), peer.answer()).await.unwrap() {
            Ok(_) => sent += 1,
            Err(refusal) => break refusal,
        }
        assert!(sent < 100, "the disk never became full");
    };
    assert_eq!(refusal.code, ErrorCode::StorageLow.number());
    until(&partition, |view| view.blocked_bits == reason_bits::DISK).await;
    let mut reader = Peer::new(&rig, &partition);
    reader.subscribe(None, Start::Earliest).await.unwrap();
    reader.delivered(sent).await;
    rig.disk.set_free(None);
    tokio::time::timeout(Duration::from_secs(1), until(&partition, |view| view.blocked_bits == 0))
        .await
        .expect("publishing goes on within a second of space");
    peer.publish(sent, 1, 100_000).await;
    assert_eq!(peer.answers(1).await[0].base_offset, Offset(sent));
    partition.stop().await;
}

/// The append itself finds no room, although the disk had promised some: the replica ends and is
/// opened again in the same process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_ran_out_of_space_comes_back() {
    let rig = Rig::new();
    let partition = rig.open().await;
    let mut peer = Peer::new(&rig, &partition);
    rig.disk.set_lying(true);
    let mut sent = 0;
    let refusal = loop {
        peer.publish(sent, 1, 100_000).await;
        match peer.answer().await {
            Ok(_) => sent += 1,
            Err(refusal) => break refusal,
        }
        assert!(sent < 100, "the disk never became full");
    };
    assert!([0x0202, 0x0502, 0x0303].contains(&refusal.code), "{refusal:?}");
    rig.disk.set_lying(false);
    until(&partition, |view| view.leading).await;
    let next = loop {
        match peer.next_sequence(ProducerId(1), 0).await {
            Ok(next) => break next.0,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    peer.publish(next, 1, 100_000).await;
    assert_eq!(peer.answers(1).await[0].base_offset, Offset(next));
    let mut reader = Peer::new(&rig, &partition);
    reader.subscribe(None, Start::Earliest).await.unwrap();
    reader.delivered(next + 1).await;
    partition.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_is_taken_over_is_told() {
    let rig = Rig::new();
    let partition = rig.open().await;
    let mut first = Peer::new(&rig, &partition);
    first.subscribe(Some("s"), Start::Earliest).await.unwrap();
    let mut second = Peer::new(&rig, &partition);
    second.subscribe(Some("s"), Start::Earliest).await.unwrap();
    assert_eq!(first.closed().await.map(|r| r.code), Some(ErrorCode::TakenOver.number()));
    partition.stop().await;
    assert_eq!(second.closed().await.map(|r| r.code), Some(ErrorCode::Draining.number()));
}
