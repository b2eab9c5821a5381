//! Publishing against a scripted broker: order, credit, refusals, reconnects, deadlines.

#![allow(clippy::disallowed_methods, reason = "a test spawns what it then joins")]

mod common;

use common::*;
use std::time::Duration;
use tokio::time::Instant;
use weir_client::{
    ErrorCode, ErrorKind, Limits, Message, OnFull, Outcome, Reason, Status, TopicConfig,
};
use weir_protocol::frame::*;

const MIB: u64 = 1 << 20;

#[tokio::test(start_paused = true)]
async fn a_message_is_sent_at_once_and_later_ones_share_a_batch() {
    let (client, _network, mut peer) = connect().await;
    let (publisher, open) =
        tokio::join!(client.publisher("orders").build(), peer.open_publisher(40, MIB));
    let publisher = publisher.unwrap();
    assert_eq!((open.topic.as_str(), open.partition.0, open.producer), ("orders", 0, None));

    let first = publisher.send("first").await.unwrap();
    let sent = peer.next_publish().await;
    assert_eq!((sent.header.record_count, sent.header.base_sequence.0), (1, 40));
    assert_eq!((sent.header.producer_id.0, sent.header.producer_epoch), (9, 1));
    assert!(sent.deadline_ms > 29_000, "{}", sent.deadline_ms);

    let mut later = Vec::new();
    for number in 0..100 {
        later.push(publisher.send(format!("later {number}")).await.unwrap());
    }
    peer.store_as(&sent, 700, false, MIB).await;
    assert_eq!(first.await.unwrap().offset, 700);
    let sent = peer.next_publish().await;
    assert_eq!((sent.header.record_count, sent.header.base_sequence.0), (100, 41));
    peer.store_as(&sent, 701, false, MIB).await;
    for (number, receipt) in later.into_iter().enumerate() {
        assert_eq!(receipt.await.unwrap().offset, 701 + number as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_in_a_message_arrives() {
    let (client, _network, mut peer) = connect().await;
    let (publisher, _) =
        tokio::join!(client.publisher("orders").build(), peer.open_publisher(0, MIB));
    let message = Message::new("payload").key("k").header("a", "1").header("a", "2");
    let (stored, sent) = tokio::join!(
        async { publisher.unwrap().publish(message.timestamp_ms(NOW_MS + 5)).await },
        async {
            let sent = peer.next_publish().await;
            peer.store(&sent, MIB).await;
            sent
        }
    );
    assert_eq!(stored.unwrap().offset, 0);
    let records = weir_protocol::batch::RecordIter::new(&sent.header, &sent.body).unwrap();
    let record = records.last().unwrap().unwrap();
    assert_eq!(record.timestamp_ms, NOW_MS + 5);
    assert_eq!((record.message.key, record.message.value), (Some(&b"k"[..]), &b"payload"[..]));
    let headers: Vec<_> = record.message.headers().collect();
    assert_eq!(headers, [(&b"a"[..], &b"1"[..]), (&b"a"[..], &b"2"[..])]);
}

#[tokio::test(start_paused = true)]
async fn without_credit_it_asks_and_waits_and_says_why() {
    let (client, _network, mut peer) = connect().await;
    let (publisher, open) =
        tokio::join!(client.publisher("orders").build(), peer.open_publisher(0, 0));
    let publisher = publisher.unwrap();
    let receipt = publisher.send(vec![1u8; 2_000]).await.unwrap();
    let Frame::Demand(stream, demand) = peer.next().await else { panic!("DEMAND") };
    assert_eq!(stream, open.stream);
    assert!(demand.cost >= 2_000 && demand.largest >= 2_000, "{demand:?}");

    let held = Grant { reason_bits: 2, ..grant(0) };
    peer.send(Frame::Grant(stream, held)).await;
    let mut status = client.status();
    let blocked = status.wait_for(|status| matches!(status, Status::Blocked { .. })).await.unwrap();
    assert!(matches!(*blocked, Status::Blocked { reason: Reason::Backlog, .. }), "{blocked:?}");
    drop(blocked);
    assert_eq!(publisher.blocked(), Some(Reason::Backlog));
    let error = publisher.try_send("more").unwrap_err();
    assert_eq!(error.error().overload(), Some(Reason::Backlog));
    assert!(error.error().retry_after().is_some());
    assert_eq!(error.into_message().payload(), "more");

    peer.send(Frame::Grant(stream, grant(100_000))).await;
    let sent = peer.next_publish().await;
    peer.store(&sent, 100_000).await;
    receipt.await.unwrap();
    status.wait_for(|status| *status == Status::Connected).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn credit_is_spent_exactly_and_never_exceeded() {
    let (client, _network, mut peer) = connect().await;
    let (publisher, open) =
        tokio::join!(client.publisher("orders").build(), peer.open_publisher(0, 64 << 10));
    let publisher = publisher.unwrap();
    let sender = tokio::spawn(async move {
        let mut receipts = Vec::new();
        for _ in 0..2_000 {
            receipts.push(publisher.send(vec![7u8; 1_000]).await.unwrap());
        }
        for receipt in receipts {
            receipt.await.unwrap();
        }
    });
    let (mut spent, mut limit, mut stored) = (0, 64 << 10, 0);
    while stored < 2_000 {
        let sent = match peer.next_publish_or_demand().await {
            Ok(sent) => sent,
            Err(demand) => {
                assert!(demand.largest > limit - spent, "{demand:?}, {spent} of {limit}");
                limit = spent + demand.largest;
                peer.send(Frame::Grant(open.stream, grant(limit))).await;
                continue;
            }
        };
        spent += batch_cost(&sent.header);
        assert!(spent <= limit, "spent {spent} of {limit}");
        stored += sent.header.record_count;
        limit = limit.max(spent + (96 << 10));
        peer.store(&sent, limit).await;
    }
    sender.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refused_batch_leaves_no_gap_and_keeps_the_order() {
    let (client, _network, mut peer) = connect().await;
    let (publisher, _) =
        tokio::join!(client.publisher("orders").build(), peer.open_publisher(0, MIB));
    let publisher = publisher.unwrap();
    let mut receipts = vec![publisher.send("a").await.unwrap()];
    let first = peer.next_publish().await;
    receipts.push(publisher.send("b").await.unwrap());
    let second = peer.next_publish().await; // after lingering
    receipts.push(publisher.send("c").await.unwrap());
    let third = peer.next_publish().await;
    assert_eq!(third.header.base_sequence.0, 2);

    peer.store(&first, MIB).await;
    peer.refuse(&second, refusal(ErrorCode::OverloadedMemory, Outcome::NotStored), MIB).await;
    receipts.push(publisher.send("d").await.unwrap());
    assert!(peer.is_quiet(1).await, "nothing is sent before every answer is there");
    peer.refuse(&third, refusal(ErrorCode::SequenceGap, Outcome::NotStored), MIB).await;

    for (expected, value) in [(1, "b"), (2, "c"), (3, "d")] {
        let sent = peer.next_publish().await;
        assert_eq!(sent.header.base_sequence.0, expected);
        assert!(sent.body.ends_with(value.as_bytes()), "{value}");
        peer.store(&sent, MIB).await;
    }
    for (number, receipt) in receipts.into_iter().enumerate() {
        assert_eq!(receipt.await.unwrap().offset, number as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_outcome_is_asked_for_under_its_own_sequence_first() {
    let (client, _network, mut peer) = connect().await;
    let (publisher, _) =
        tokio::join!(client.publisher("orders").build(), peer.open_publisher(0, MIB));
    let publisher = publisher.unwrap();
    let unknown = publisher.send("unknown").await.unwrap();
    let first = peer.next_publish().await;
    let next = publisher.send("next").await.unwrap();
    let second = peer.next_publish().await;
    peer.refuse(&first, refusal(ErrorCode::LeaderLost, Outcome::Unknown), MIB).await;
    peer.refuse(&second, refusal(ErrorCode::SequenceGap, Outcome::NotStored), MIB).await;

    let again = peer.next_publish().await;
    assert_eq!((again.header.base_sequence.0, again.body.clone()), (0, first.body));
    assert_eq!(again.deadline_ms, 0, "a deadline must not hide what is stored");
    assert!(peer.is_quiet(20).await, "the one behind it waits for that answer");
    peer.store_as(&again, 5, true, MIB).await;
    let sent = peer.next_publish().await;
    assert_eq!(sent.header.base_sequence.0, 1);
    peer.store_as(&sent, 6, false, MIB).await;
    let stored = unknown.await.unwrap();
    assert_eq!((stored.offset, stored.duplicate), (5, true));
    assert_eq!(next.await.unwrap().offset, 6);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_good_fails_its_messages_only() {
    let (client, _network, mut peer) = connect().await;
    let (publisher, _) =
        tokio::join!(client.publisher("orders").build(), peer.open_publisher(0, MIB));
    let publisher = publisher.unwrap();
    let bad = publisher.send("bad").await.unwrap();
    let sent = peer.next_publish().await;
    let good = publisher.send("good").await.unwrap();
    peer.refuse(&sent, refusal(ErrorCode::MessageTooLarge, Outcome::NotStored), MIB).await;
    let error = bad.await.unwrap_err();
    assert_eq!(error.error_code(), Some(ErrorCode::MessageTooLarge));
    assert_eq!((error.outcome(), error.is_retryable()), (Outcome::NotStored, false));
    let sent = peer.next_publish().await;
    assert_eq!(sent.header.base_sequence.0, 0, "the refused one took no sequence");
    peer.store(&sent, MIB).await;
    good.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn on_full_fail_surfaces_overload_at_once() {
    let (client, _network, mut peer) = connect().await;
    let (publisher, _) = tokio::join!(
        client
            .publisher("orders")
            .on_full(OnFull::Fail)
            .window(Limits { messages: 2, bytes: 9_999 })
            .build(),
        peer.open_publisher(0, MIB)
    );
    let publisher = publisher.unwrap();
    let first = publisher.send("a").await.unwrap();
    let sent = peer.next_publish().await;
    let second = publisher.send("b").await.unwrap();
    let error = publisher.send("c").await.unwrap_err();
    assert_eq!(error.overload(), Some(Reason::ClientWindow));
    assert_eq!(error.error_code(), Some(ErrorCode::WouldBlock));

    let mut overloaded = refusal(ErrorCode::BacklogFull, Outcome::NotStored);
    overloaded.retry_after_ms = 250;
    peer.refuse(&sent, overloaded, MIB).await;
    let error = first.await.unwrap_err();
    assert_eq!(error.overload(), Some(Reason::Backlog));
    assert_eq!(error.retry_after(), Some(Duration::from_millis(250)));
    assert!(error.is_retryable());
    drop(second);
}

#[tokio::test(start_paused = true)]
async fn after_a_reconnect_unanswered_batches_go_out_under_the_same_sequences() {
    let (client, mut network, mut peer) = connect().await;
    let (publisher, _) =
        tokio::join!(client.publisher("orders").build(), peer.open_publisher(0, MIB));
    let publisher = publisher.unwrap();
    let first = publisher.send("a").await.unwrap();
    let one = peer.next_publish().await;
    let second = publisher.send("b").await.unwrap();
    let two = peer.next_publish().await;
    drop(peer);
    let third = publisher.send("c").await.unwrap();

    let mut peer = network.accept().await;
    let open = peer.open_publisher(1, MIB).await;
    assert_eq!((open.producer_id.0, open.producer_epoch), (9, 1), "the same identity");
    let again = peer.next_publish().await;
    assert_eq!((again.header.base_sequence.0, &again.body), (0, &one.body));
    peer.store_as(&again, 10, true, MIB).await;
    let again = peer.next_publish().await;
    assert_eq!((again.header.base_sequence.0, &again.body), (1, &two.body));
    peer.store_as(&again, 11, false, MIB).await;
    let sent = peer.next_publish().await;
    assert_eq!(sent.header.base_sequence.0, 2);
    peer.store_as(&sent, 12, false, MIB).await;
    assert!(first.await.unwrap().duplicate);
    assert_eq!(second.await.unwrap().offset, 11);
    assert_eq!(third.await.unwrap().offset, 12);
    assert_eq!(*client.status().borrow(), Status::Connected);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_every_wait_and_names_the_causes() {
    let (client, _network, mut peer) = connect().await;
    let deadline = Duration::from_secs(5);
    let (publisher, _) = tokio::join!(
        client.publisher("orders").deadline(deadline).build(),
        peer.open_publisher(0, 10_000)
    );
    let publisher = publisher.unwrap();
    let started = Instant::now();
    let sent = publisher.send(vec![0u8; 8_000]).await.unwrap();
    let frame = peer.next_publish().await;
    let queued = publisher.send(vec![0u8; 8_000]).await.unwrap();

    let error = sent.await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Deadline, Outcome::Unknown));
    let error = queued.await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Deadline, Outcome::NotStored));
    assert!(started.elapsed() <= deadline + Duration::from_millis(50), "{:?}", started.elapsed());

    // The answer comes late: the sequence goes on behind it.
    peer.store(&frame, 100_000).await;
    let (stored, sent) = tokio::join!(publisher.publish("next"), async {
        let sent = peer.next_publish().await;
        peer.store(&sent, 100_000).await;
        sent
    });
    stored.unwrap();
    assert_eq!(sent.header.base_sequence.0, 1);
}

#[tokio::test(start_paused = true)]
async fn without_a_broker_the_deadline_still_holds() {
    let (client, mut network, mut peer) = connect().await;
    let (publisher, _) = tokio::join!(
        client.publisher("orders").deadline(Duration::from_secs(2)).build(),
        peer.open_publisher(0, MIB)
    );
    let publisher = publisher.unwrap();
    drop(peer);
    let error = publisher.publish("nobody listens").await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Deadline, Outcome::NotStored));
    assert!(error.to_string().contains("no connection"), "{error}");
    assert!(matches!(*client.status().borrow(), Status::Reconnecting { .. }));
    let mut peer = network.accept().await;
    let (_, stored) = tokio::join!(
        async {
            peer.open_publisher(0, MIB).await;
            let sent = peer.next_publish().await;
            peer.store(&sent, MIB).await;
        },
        publisher.publish("back again")
    );
    stored.unwrap();
}

/// In real time: a client that waits must not keep a processor busy, whatever it waits for.
#[tokio::test]
async fn waiting_costs_nothing() {
    let (client, _network, mut peer) = connect().await;
    let deadline = Duration::from_millis(400);
    let (publisher, open) = tokio::join!(
        client.publisher("orders").deadline(deadline).build(),
        peer.open_publisher(0, MIB)
    );
    let publisher = publisher.unwrap();
    let metrics = tokio::runtime::Handle::current().metrics();
    let (started, busy) = (Instant::now(), metrics.worker_total_busy_duration(0));

    // For an answer, with more behind it.
    let unanswered = publisher.send("a").await.unwrap();
    let first = peer.next_publish().await;
    peer.refuse(&first, refusal(ErrorCode::LeaderLost, Outcome::Unknown), MIB).await;
    let again = peer.next_publish().await;
    let behind = publisher.send("b").await.unwrap();
    unanswered.await.unwrap_err();
    behind.await.unwrap_err();
    peer.store(&again, MIB).await;

    // For credit.
    peer.send(Frame::Revoke(open.stream, Revoke { epoch: 0, limit_cost: 0 })).await;
    let Frame::Revoked(..) = peer.next().await else { panic!("REVOKED") };
    publisher.publish("c").await.unwrap_err();

    // For nothing, holding credit, and then for a broker.
    peer.send(Frame::Grant(open.stream, grant(MIB))).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(peer);
    publisher.publish("d").await.unwrap_err();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let busy = metrics.worker_total_busy_duration(0) - busy;
    assert!(busy < started.elapsed() / 4, "{busy:?} of {:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_ends_every_connection_is_not_stormed() {
    let (client, mut network, peer) = connect().await;
    drop(peer);
    let started = Instant::now();
    for _ in 0..20 {
        drop(network.accept().await);
    }
    assert!(started.elapsed() > Duration::from_secs(10), "{:?}", started.elapsed());
    assert!(matches!(*client.status().borrow(), Status::Reconnecting { attempt: 10.., .. }));
}

#[tokio::test(start_paused = true)]
async fn a_full_window_waits_and_reserve_is_cancel_safe() {
    let (client, _network, mut peer) = connect().await;
    let (publisher, _) = tokio::join!(
        client.publisher("orders").window(Limits { messages: 1, bytes: 4_096 }).build(),
        peer.open_publisher(0, MIB)
    );
    let publisher = publisher.unwrap();
    let permit = publisher.reserve(100).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(5), publisher.reserve(1)).await.is_err());
    drop(permit);
    let permit = publisher.reserve(100).await.unwrap();
    let receipt = permit.send("fits");
    assert_eq!(publisher.try_send("x").unwrap_err().error().overload(), Some(Reason::ClientWindow));
    let sent = peer.next_publish().await;
    let waiting = tokio::spawn({
        let publisher = publisher.clone();
        async move { publisher.send("waits").await.unwrap().await }
    });
    peer.store(&sent, MIB).await;
    receipt.await.unwrap();
    let sent = peer.next_publish().await;
    peer.store(&sent, MIB).await;
    waiting.await.unwrap().unwrap();
    let too_large = publisher.reserve(10).await.unwrap().send(vec![0u8; 500]);
    assert_eq!(too_large.await.unwrap_err().kind(), ErrorKind::InvalidInput);
    assert!(publisher.reserve(4_000).await.is_ok(), "its room came back");
}

#[tokio::test(start_paused = true)]
async fn flush_waits_for_what_was_sent_before_only() {
    let (client, _network, mut peer) = connect().await;
    let (publisher, _) =
        tokio::join!(client.publisher("orders").build(), peer.open_publisher(0, MIB));
    let publisher = publisher.unwrap();
    let _first = publisher.send("before").await.unwrap();
    let before = peer.next_publish().await;
    let flush = tokio::spawn({
        let publisher = publisher.clone();
        async move { publisher.flush().await }
    });
    tokio::task::yield_now().await;
    let _later = publisher.send("after").await.unwrap();
    let _after = peer.next_publish().await;
    assert!(!flush.is_finished());
    peer.store(&before, MIB).await;
    flush.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn close_sends_what_is_queued_and_reports_what_is_not_confirmed() {
    let (client, _network, mut peer) = connect().await;
    let (publisher, _) =
        tokio::join!(client.publisher("orders").build(), peer.open_publisher(0, MIB));
    let publisher = publisher.unwrap();
    let receipt = publisher.send("last words").await.unwrap();
    let (report, ()) = tokio::join!(publisher.close(Duration::from_secs(1)), async {
        let sent = peer.next_publish().await;
        peer.store(&sent, MIB).await;
        assert!(matches!(peer.next().await, Frame::CloseStream(_)));
    });
    assert!(report.is_clean());
    receipt.await.unwrap();
    assert_eq!(publisher.publish("too late").await.unwrap_err().kind(), ErrorKind::Closed);

    let (publisher, _) =
        tokio::join!(client.publisher("orders").build(), peer.open_publisher(0, MIB));
    let publisher = publisher.unwrap();
    let receipt = publisher.send("never answered").await.unwrap();
    let report = publisher.close(Duration::from_secs(1)).await;
    assert_eq!(report.unconfirmed, 1);
    assert_eq!(receipt.await.unwrap_err().outcome(), Outcome::Unknown);
}

#[tokio::test(start_paused = true)]
async fn a_named_producer_resumes_behind_what_is_stored() {
    let (client, _network, mut peer) = connect().await;
    let building = client.publisher("orders").idempotent("import-7").partition(0).build();
    let (publisher, open) = tokio::join!(building, peer.open_publisher(1_234, MIB));
    assert_eq!(open.producer.unwrap().as_str(), "import-7");
    let publisher = publisher.unwrap();
    assert_eq!(publisher.next_sequence(0).await.unwrap(), 1_234);
    let _receipt = publisher.send("line 1234").await.unwrap();
    assert_eq!(publisher.next_sequence(0).await.unwrap(), 1_235);
    assert_eq!(peer.next_publish().await.header.base_sequence.0, 1_234);
}

#[tokio::test(start_paused = true)]
async fn a_fenced_producer_is_over() {
    let (client, _network, mut peer) = connect().await;
    let building = client.publisher("orders").idempotent("import-7").build();
    let (publisher, open) = tokio::join!(building, peer.open_publisher(0, MIB));
    let publisher = publisher.unwrap();
    let receipt = publisher.send("mine").await.unwrap();
    let _ = peer.next_publish().await;
    let fenced = refusal(ErrorCode::ProducerFenced, Outcome::NotStored);
    let closed = StreamClosed { stream: open.stream, refusal: Some(fenced) };
    peer.send(Frame::StreamClosed(closed)).await;
    let error = receipt.await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Fenced, Outcome::Unknown));
    assert_eq!(publisher.publish("more").await.unwrap_err().kind(), ErrorKind::Fenced);
}

#[tokio::test(start_paused = true)]
async fn keys_decide_the_partition_and_partitions_are_opened_when_used() {
    let config = TopicConfig { partitions: 4, ..TopicConfig::default() };
    let (client, _network, mut peer) = connect_to(config).await;
    let building = client.publisher("orders").idempotent("p").partition(1).build();
    let (publisher, open) = tokio::join!(building, peer.open_publisher(0, MIB));
    assert_eq!(open.partition.0, 1);
    let publisher = publisher.unwrap();
    let _receipt = publisher.send(Message::new("x").partition(3)).await.unwrap();
    let open = peer.open_publisher(0, MIB).await;
    assert_eq!(open.partition.0, 3);
    assert_eq!((open.producer_id.0, open.producer_epoch), (9, 1), "one identity for all lanes");
    assert_eq!(peer.next_publish().await.stream, open.stream);
    let error = publisher.send(Message::new("x").partition(4)).await.unwrap().await.unwrap_err();
    assert_eq!(error.error_code(), Some(ErrorCode::UnknownPartition));

    let (keyed, _) = tokio::join!(client.publisher("orders").build(), peer.open_publisher(0, MIB));
    let keyed = keyed.unwrap();
    let key = "customer-42";
    let expected = weir_protocol::types::partition_of_key(key.as_bytes(), 4);
    let _receipt = keyed.send(Message::new("x").key(key)).await.unwrap();
    let _again = keyed.send(Message::new("y").key(key)).await.unwrap();
    match peer.next().await {
        Frame::OpenPublisher(open) => assert_eq!(open.partition, expected),
        Frame::Publish(_) => assert_eq!(expected.0, 0, "the first partition was open already"),
        frame => panic!("{frame:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_revoke_is_answered_and_obeyed() {
    let (client, _network, mut peer) = connect().await;
    let (publisher, open) =
        tokio::join!(client.publisher("orders").build(), peer.open_publisher(0, MIB));
    let publisher = publisher.unwrap();
    let _first = publisher.send(vec![0u8; 1_000]).await.unwrap();
    let sent = peer.next_publish().await;
    let spent = batch_cost(&sent.header);
    peer.send(Frame::Revoke(open.stream, Revoke { epoch: 0, limit_cost: 0 })).await;
    let Frame::Revoked(_, revoked) = peer.next().await else { panic!("REVOKED") };
    assert_eq!(revoked.spent_cost, spent);
    let _second = publisher.send(vec![0u8; 1_000]).await.unwrap();
    assert!(matches!(peer.next().await, Frame::Demand(..)), "there is no credit any more");
    peer.send(Frame::Grant(open.stream, grant(spent + 5_000))).await;
    assert_eq!(peer.next_publish().await.header.base_sequence.0, 1);
}

#[tokio::test(start_paused = true)]
async fn an_idle_publisher_gives_its_credit_back() {
    let (client, _network, mut peer) = connect().await;
    let (publisher, _) =
        tokio::join!(client.publisher("orders").build(), peer.open_publisher(0, MIB));
    let publisher = publisher.unwrap();
    let (stored, spent) = tokio::join!(publisher.publish("x"), async {
        let sent = peer.next_publish().await;
        peer.store(&sent, MIB).await;
        batch_cost(&sent.header)
    });
    stored.unwrap();
    let Frame::Revoked(_, revoked) = peer.next().await else { panic!("REVOKED") };
    assert_eq!(revoked.spent_cost, spent);
    let _next = publisher.send("y").await.unwrap();
    assert!(matches!(peer.next().await, Frame::Demand(..)));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_topic_is_named() {
    let (client, _network, mut peer) = connect().await;
    let answering = async {
        loop {
            peer.next().await;
        }
    };
    let building = client.publisher("nothing").build();
    let error = tokio::select! {
        built = building => built.unwrap_err(),
        () = answering => unreachable!(),
    };
    assert_eq!(error.error_code(), Some(ErrorCode::UnknownTopic));
    assert!(error.to_string().contains("nothing"), "{error}");
    let error = client.publisher("bad name").build().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[tokio::test(start_paused = true)]
async fn retries_are_paced_and_end_at_the_deadline() {
    let (client, _network, mut peer) = connect().await;
    let (publisher, _) = tokio::join!(
        client.publisher("orders").deadline(Duration::from_secs(20)).build(),
        peer.open_publisher(0, MIB)
    );
    let publisher = publisher.unwrap();
    let receipt = publisher.send("again and again").await.unwrap();
    let mut attempts = 0;
    let refusing = async {
        loop {
            let sent = peer.next_publish().await;
            attempts += 1;
            let mut overloaded = refusal(ErrorCode::OverloadedMemory, Outcome::NotStored);
            overloaded.retry_after_ms = 100;
            peer.refuse(&sent, overloaded, MIB).await;
        }
    };
    let error = tokio::select! {
        result = receipt => result.unwrap_err(),
        () = refusing => unreachable!(),
    };
    assert_eq!(error.error_code(), Some(ErrorCode::RetryBudgetEmpty));
    assert_eq!(error.outcome(), Outcome::NotStored);
    assert!((100..130).contains(&attempts), "{attempts} attempts");
}
