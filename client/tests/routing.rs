//! Several scripted brokers: lanes go to the leader of their partition, and move with it.

#![allow(clippy::disallowed_methods, reason = "a test spawns what it then joins")]

mod common;

use common::cluster::*;
use common::*;
use std::time::Duration;
use tokio::time::Instant;
use weir_client::{Client, ErrorCode, ErrorKind, Message, Outcome, Publisher};
use weir_protocol::frame::*;
use weir_protocol::types::{Offset, PartitionId, RequestId, Term};

const MIB: u64 = 1 << 20;

/// Three brokers; broker 1 leads the one partition in term 5. The client is connected to it.
async fn three() -> (Cluster, [Broker; 3], Client, Peer) {
    let (cluster, [mut one, two, three]) = Cluster::new(&[(1, 5)]);
    let (client, peer) = tokio::join!(cluster.client(&[1]), one.accept());
    (cluster, [one, two, three], client.expect("the handshake is through"), peer)
}

async fn publisher(client: &Client, peer: &mut Peer) -> Publisher {
    let building = client.publisher("orders").build();
    let (publisher, _) = tokio::join!(building, peer.open_publisher(0, MIB));
    publisher.expect("the broker opened it")
}

fn closed(stream: weir_protocol::types::StreamId, refusal: Refusal) -> Frame {
    Frame::StreamClosed(StreamClosed { stream, refusal: Some(refusal) })
}

#[tokio::test(start_paused = true)]
async fn lanes_share_one_connection_to_each_leader() {
    let (cluster, [mut one, mut two, mut three]) = Cluster::new(&[(1, 5), (2, 5), (1, 5)]);
    let (client, peer) = tokio::join!(cluster.client(&[1]), one.accept());
    let (client, mut first) = (client.unwrap(), peer);
    let building = client.publisher("orders").partition(0).build();
    let (publisher, open) = tokio::join!(building, first.open_publisher(0, MIB));
    assert_eq!(open.partition, PartitionId(0));
    let publisher = publisher.unwrap();

    let elsewhere = publisher.send(Message::new("1").partition(1)).await.unwrap();
    let mut second = two.accept().await;
    assert_eq!(second.open_publisher(0, MIB).await.partition, PartitionId(1));
    let sent = second.next_publish().await;
    second.store(&sent, MIB).await;
    elsewhere.await.unwrap();

    let here = publisher.send(Message::new("2").partition(2)).await.unwrap();
    assert_eq!(first.open_publisher(0, MIB).await.partition, PartitionId(2));
    let sent = first.next_publish().await;
    first.store(&sent, MIB).await;
    here.await.unwrap();

    let serving = [tokio::spawn(first.serve()), tokio::spawn(second.serve())];
    assert!(three.is_left_alone(60_000).await, "nobody needs it");
    assert!(one.is_left_alone(1).await && two.is_left_alone(1).await, "one connection each");
    serving.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn not_leader_moves_a_publisher_at_once_and_under_the_same_sequences() {
    let (_cluster, [_one, mut two, _three], client, mut old) = three().await;
    let publisher = publisher(&client, &mut old).await;
    let stored = publisher.send("stored").await.unwrap();
    let sent = old.next_publish().await;
    old.store(&sent, MIB).await;
    assert_eq!(stored.await.unwrap().offset, 0);

    let mut receipts = vec![publisher.send("a").await.unwrap()];
    let first = old.next_publish().await;
    receipts.push(publisher.send("b").await.unwrap());
    let second = old.next_publish().await;
    let moved_at = Instant::now();
    old.refuse(&first, not_leader(Some((2, 6))), MIB).await;
    old.refuse(&second, not_leader(Some((2, 6))), MIB).await;
    receipts.push(publisher.send("c").await.unwrap());

    let mut new = two.accept().await;
    let open = new.open_publisher(1, MIB).await;
    assert_eq!((open.producer_id.0, open.producer_epoch), (9, 1), "the same identity");
    for (sequence, value) in [(1, "a"), (2, "b"), (3, "c")] {
        let sent = new.next_publish().await;
        assert_eq!(sent.header.base_sequence.0, sequence);
        assert!(sent.body.ends_with(value.as_bytes()), "{value}");
        assert_eq!(moved_at.elapsed(), Duration::ZERO, "there is nothing to wait for");
        new.store(&sent, MIB).await;
    }
    for (number, receipt) in receipts.into_iter().enumerate() {
        let stored = receipt.await.unwrap();
        assert_eq!((stored.offset, stored.duplicate), (1 + number as u64, false));
    }
    let left = tokio::spawn(old.serve());
    drop((client, publisher));
    let (_, left) = tokio::join!(new.serve(), left);
    let closed = left.unwrap().into_iter().filter(|frame| matches!(frame, Frame::CloseStream(_)));
    assert_eq!(closed.count(), 1, "the stream that was left is closed where it was");
}

#[tokio::test(start_paused = true)]
async fn a_hundred_batches_that_a_leader_refuses_are_no_retries() {
    let (_cluster, [_one, mut two, _three], client, mut old) = three().await;
    let publisher = publisher(&client, &mut old).await;
    let mut receipts = Vec::new();
    let mut sent = Vec::new();
    for number in 0..250 {
        receipts.push(publisher.send(format!("{number}")).await.unwrap());
        sent.push(old.next_publish().await);
    }
    for publish in &sent {
        old.refuse(publish, not_leader(Some((2, 6))), MIB).await;
    }
    let mut new = two.accept().await;
    new.open_publisher(0, MIB).await;
    for sequence in 0..250 {
        let sent = new.next_publish().await;
        assert_eq!(sent.header.base_sequence.0, sequence);
        new.store(&sent, MIB).await;
    }
    for receipt in receipts {
        receipt.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_dies_leaves_no_loss_and_no_duplicate() {
    let (cluster, [mut one, mut two, mut three]) = Cluster::new(&[(1, 5)]);
    let (client, mut old) = tokio::join!(cluster.client(&[1]), one.accept());
    let client = client.unwrap();
    let publisher = publisher(&client, &mut old).await;
    let first = publisher.send("a").await.unwrap();
    let unanswered = old.next_publish().await;
    let second = publisher.send("b").await.unwrap();
    let _behind = old.next_publish().await;

    // The client was given one endpoint, which is gone: it knows the others from the page.
    cluster.stop(1);
    drop((old, one));
    let died_at = Instant::now();
    let third = publisher.send("c").await.unwrap();
    let (mut any, told) = tokio::select! {
        peer = two.accept() => (peer, 3),
        peer = three.accept() => (peer, 2),
    };
    // It is told of the old leader at first, and nobody answers there.
    assert!(any.is_quiet(1_000).await);
    assert!((2..30).contains(&any.asked), "asked {} times in a second", any.asked);
    cluster.tell(|all| all.leads(0, told, 6));
    let accept = if told == 2 { two.accept() } else { three.accept() };
    let serving = tokio::spawn(any.serve());
    let mut new = accept.await;
    assert!(died_at.elapsed() < Duration::from_secs(2), "{:?}", died_at.elapsed());

    let open = new.open_publisher(1, MIB).await;
    assert_eq!((open.producer_id.0, open.producer_epoch), (9, 1));
    let again = new.next_publish().await;
    assert_eq!((again.header.base_sequence.0, &again.body), (0, &unanswered.body));
    new.store_as(&again, 0, true, MIB).await;
    for sequence in [1, 2] {
        let sent = new.next_publish().await;
        assert_eq!(sent.header.base_sequence.0, sequence);
        new.store(&sent, MIB).await;
    }
    assert!(first.await.unwrap().duplicate);
    assert_eq!(second.await.unwrap().offset, 1);
    assert_eq!(third.await.unwrap().offset, 2);
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn an_unknown_leader_is_asked_for_with_growing_pauses_until_there_is_one() {
    let (cluster, [mut one, mut two, _three]) = Cluster::new(&[(0, 5)]);
    let (client, mut peer) = tokio::join!(cluster.client(&[1]), one.accept());
    let client = client.unwrap();
    let building = tokio::spawn(async move {
        let publisher = client.publisher("orders").build().await.unwrap();
        (client, publisher)
    });
    assert!(peer.is_quiet(10_000).await, "nothing is opened without a leader");
    assert!((20..80).contains(&peer.asked), "asked {} times in ten seconds", peer.asked);
    assert!(!building.is_finished());
    cluster.tell(|told| told.leads(0, 2, 6));
    let elected_at = Instant::now();
    let serving = tokio::spawn(peer.serve());
    let mut leader = two.accept().await;
    assert!(elected_at.elapsed() <= Duration::from_millis(500), "{:?}", elected_at.elapsed());
    leader.open_publisher(0, MIB).await;
    building.await.unwrap();
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn a_deadline_passes_while_nobody_leads() {
    let (cluster, [_one, _two, _three], client, mut peer) = three().await;
    let deadline = Duration::from_secs(2);
    let building = client.publisher("orders").deadline(deadline).build();
    let (publisher, _) = tokio::join!(building, peer.open_publisher(0, MIB));
    let publisher = publisher.unwrap();
    cluster.tell(|told| told.leads(0, 0, 6));
    let started = Instant::now();
    let receipt = publisher.send("homeless").await.unwrap();
    let sent = peer.next_publish().await;
    peer.refuse(&sent, not_leader(None), MIB).await;
    let serving = tokio::spawn(peer.serve());
    let error = receipt.await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Deadline, Outcome::NotStored));
    assert!(error.to_string().contains("NOT_LEADER"), "{error}");
    assert!(started.elapsed() <= deadline + Duration::from_millis(50), "{:?}", started.elapsed());
    let error = publisher.publish("homeless too").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Deadline);
    assert!(started.elapsed() <= 2 * deadline + Duration::from_millis(50));
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn brokers_that_name_each_other_are_not_stormed() {
    let (_cluster, [_one, mut two, _three], client, mut first) = three().await;
    let building = tokio::spawn(async move {
        let _ = client.publisher("orders").build().await;
    });
    let mut refused = 0;
    let refusing = async {
        let mut second = None;
        loop {
            let frame = match &mut second {
                None => tokio::select! {
                    frame = first.next() => (1, frame),
                    peer = two.accept() => { second = Some(peer); continue; }
                },
                Some(peer) => tokio::select! {
                    frame = first.next() => (1, frame),
                    frame = peer.next() => (2, frame),
                },
            };
            let (at, Frame::OpenPublisher(open)) = frame else { continue };
            refused += 1;
            let refusal = not_leader(Some((3 - at, 6)));
            let error = Frame::Error(ErrorFrame { request: open.request, refusal });
            match &mut second {
                Some(peer) if at == 2 => peer.send(error).await,
                _ => first.send(error).await,
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(10), refusing).await;
    assert!((3..60).contains(&refused), "{refused} attempts in ten seconds");
    building.abort();
}

#[tokio::test(start_paused = true)]
async fn a_page_of_a_newer_term_moves_a_lane_whose_leader_says_nothing() {
    let (cluster, [_one, mut two, _three], client, mut old) = three().await;
    let publisher = publisher(&client, &mut old).await;
    let receipt = publisher.send("a").await.unwrap();
    let sent = old.next_publish().await;
    cluster.tell(|told| told.leads(0, 2, 6));
    let serving = tokio::spawn(async move {
        while let Frame::Revoked(..) | Frame::Demand(..) = old.next().await {}
        // The lane has gone; what its old leader still says of it is not heard.
        old.store_as(&sent, 77, false, MIB).await;
        old.serve().await
    });
    let mut new = two.accept().await;
    new.open_publisher(0, MIB).await;
    let again = new.next_publish().await;
    assert_eq!((again.header.base_sequence.0, again.deadline_ms), (0, 0));
    tokio::time::sleep(Duration::from_millis(10)).await;
    new.store_as(&again, 3, true, MIB).await;
    let stored = receipt.await.unwrap();
    assert_eq!((stored.offset, stored.duplicate), (3, true));
    // A page that is old does not call it back.
    cluster.tell(|told| told.leads(0, 1, 5));
    let next = publisher.send("b").await.unwrap();
    assert!(matches!(new.next().await, Frame::Publish(_)));
    assert!(new.is_quiet(30_000).await || !matches!(new.next().await, Frame::CloseStream(_)));
    drop(next);
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_freezes_is_left_as_soon_as_others_name_another() {
    let (cluster, [_one, mut two, mut three], client, mut frozen) = three().await;
    let publisher = publisher(&client, &mut frozen).await;
    let receipt = publisher.send("a").await.unwrap();
    let sent = frozen.next_publish().await;
    let frozen_at = Instant::now();
    cluster.tell(|told| told.leads(0, 3, 6));
    // Whoever it is that is asked names the leader.
    let (mut leader, other) = tokio::select! {
        peer = two.accept() => {
            let serving = tokio::spawn(peer.serve());
            (three.accept().await, Some(serving))
        }
        peer = three.accept() => (peer, None),
    };
    leader.open_publisher(0, MIB).await;
    let again = leader.next_publish().await;
    assert_eq!((again.header.base_sequence, &again.body), (sent.header.base_sequence, &sent.body));
    leader.store(&again, MIB).await;
    receipt.await.unwrap();
    assert!(frozen_at.elapsed() < Duration::from_secs(5), "{:?}", frozen_at.elapsed());
    drop((frozen, other));
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_goes_away_is_left_for_the_next_leader_at_once() {
    let (cluster, [_one, mut two, _three], client, mut old) = three().await;
    let publisher = publisher(&client, &mut old).await;
    let receipt = publisher.send("a").await.unwrap();
    let sent = old.next_publish().await;
    let away = GoAway {
        code: ErrorCode::Draining.number(),
        deadline_ms: 60_000,
        reconnect_after_ms: 30_000,
        text: "bye".into(),
    };
    old.send(Frame::GoAway(away)).await;
    cluster.tell(|told| told.leads(0, 2, 6));
    let behind = publisher.send("b").await.unwrap();
    let asked_at = Instant::now();
    old.refuse(&sent, not_leader(Some((2, 6))), MIB).await;
    let old = tokio::spawn(old.serve());
    let mut new = two.accept().await;
    new.open_publisher(0, MIB).await;
    for _ in 0..2 {
        let sent = new.next_publish().await;
        new.store(&sent, MIB).await;
    }
    receipt.await.unwrap();
    behind.await.unwrap();
    assert!(asked_at.elapsed() < Duration::from_secs(1), "{:?}", asked_at.elapsed());
    old.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_comes_back_is_gone_back_to_as_soon_as_it_said() {
    let (cluster, [mut one, mut two, _three]) = Cluster::new(&[(1, 5), (2, 5)]);
    let (client, mut first) = tokio::join!(cluster.client(&[1]), one.accept());
    let building = client.as_ref().unwrap().publisher("orders").partition(0).build();
    let (publisher, _) = tokio::join!(building, first.open_publisher(0, MIB));
    let publisher = publisher.unwrap();
    let _elsewhere = publisher.send(Message::new("there").partition(1)).await.unwrap();
    let mut second = two.accept().await;
    second.open_publisher(0, MIB).await;
    let second = tokio::spawn(second.serve());
    let away = GoAway {
        code: ErrorCode::Draining.number(),
        deadline_ms: 60_000,
        reconnect_after_ms: 100,
        text: "bye".into(),
    };
    first.send(Frame::GoAway(away)).await;
    let left_at = Instant::now();
    let mut first = one.accept().await;
    first.open_publisher(0, MIB).await;
    assert!(left_at.elapsed() < Duration::from_millis(200), "{:?}", left_at.elapsed());
    second.abort();
}

#[tokio::test(start_paused = true)]
async fn a_broker_of_another_cluster_is_not_published_to() {
    let (cluster, [_one, mut two, _three], client, mut old) = three().await;
    two.cluster_id = 2;
    let publisher = publisher(&client, &mut old).await;
    let receipt = publisher.send("a").await.unwrap();
    let sent = old.next_publish().await;
    old.refuse(&sent, not_leader(Some((2, 6))), MIB).await;
    let old = tokio::spawn(old.serve());
    for _ in 0..5 {
        let mut stranger = two.accept().await;
        assert_eq!(stranger.next_or_end().await, None, "it is left at once");
    }
    two.cluster_id = 1;
    let mut new = two.accept().await;
    new.open_publisher(0, MIB).await;
    let sent = new.next_publish().await;
    new.store(&sent, MIB).await;
    receipt.await.unwrap();
    old.abort();
    drop(cluster);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_tells_nothing_of_others_is_all_there_is() {
    let (client, mut network, mut peer) = connect().await;
    let publisher = publisher(&client, &mut peer).await;
    let receipt = publisher.send("a").await.unwrap();
    let sent = peer.next_publish().await;
    peer.refuse(&sent, not_leader(Some((2, 6))), MIB).await;
    assert!(matches!(peer.next().await, Frame::CloseStream(_)));
    peer.open_publisher(0, MIB).await;
    let again = peer.next_publish().await;
    assert_eq!(again.header.base_sequence.0, 0);
    peer.store(&again, MIB).await;
    receipt.await.unwrap();
    let connecting = tokio::time::timeout(Duration::from_secs(60), network.accept());
    let serving = tokio::spawn(peer.serve());
    assert!(connecting.await.is_err(), "there is nowhere else to go");
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_is_silent_does_not_keep_the_next_one_waiting() {
    let (cluster, [_one, _two, mut three]) = Cluster::new(&[(3, 5)]);
    let started = Instant::now();
    let (client, peer) = tokio::join!(cluster.client(&[1, 2, 3]), three.accept());
    client.unwrap();
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    drop(peer);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_nobody_needs_any_more_is_closed() {
    let (_cluster, [_one, mut two, _three], client, mut old) = three().await;
    let publisher = publisher(&client, &mut old).await;
    let receipt = publisher.send("a").await.unwrap();
    let sent = old.next_publish().await;
    old.refuse(&sent, not_leader(Some((2, 6))), MIB).await;
    let left = tokio::spawn(old.serve());
    let mut new = two.accept().await;
    new.open_publisher(0, MIB).await;
    let sent = new.next_publish().await;
    new.store(&sent, MIB).await;
    receipt.await.unwrap();
    let serving = tokio::spawn(new.serve());
    tokio::time::timeout(Duration::from_secs(60), left).await.expect("it is closed").unwrap();
    assert!(!serving.is_finished(), "the other one is needed");
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn a_change_of_topics_goes_to_the_broker_that_is_named() {
    let (cluster, [_one, mut two, _three], client, mut peer) = three().await;
    let publisher = publisher(&client, &mut peer).await;
    let creating = tokio::spawn(async move {
        client.create_topic("more", TopicConfig::default()).await.unwrap();
    });
    let Frame::CreateTopic(create) = peer.next().await else { panic!("CREATE_TOPIC") };
    let refusal = not_leader(Some((2, 1)));
    peer.send(Frame::Error(ErrorFrame { request: create.request, refusal })).await;
    let serving = tokio::spawn(peer.serve());
    let mut leader = two.accept().await;
    let Frame::CreateTopic(create) = leader.next().await else { panic!("CREATE_TOPIC") };
    leader.send(Frame::Done(create.request)).await;
    creating.await.unwrap();
    serving.abort();
    drop((cluster, publisher));
}

// ---- consumers ----

#[tokio::test(start_paused = true)]
async fn a_reader_moves_and_is_given_each_message_once() {
    let (_cluster, [_one, mut two, _three], client, mut old) = three().await;
    let (consumer, subscribe) =
        tokio::join!(client.reader("orders").subscribe(), old.open_consumer(0, 100));
    let mut consumer = consumer.unwrap();
    deliver_two(&mut old, subscribe.stream, 0).await;
    assert_eq!(offsets(&take(&mut consumer, 1).await), [0]);
    old.send(closed(subscribe.stream, not_leader(Some((2, 6))))).await;
    let _old = tokio::spawn(old.serve());
    let mut new = two.accept().await;
    let again = new.open_consumer(2, 100).await;
    assert_eq!(again.start, Start::Offset(Offset(2)));
    deliver_two(&mut new, again.stream, 2).await;
    assert_eq!(offsets(&take(&mut consumer, 3).await), [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_a_replica_sends_away_comes_back_when_the_leader_cannot_be_reached() {
    let (cluster, [_first, second, _third], client, mut peer) = three().await;
    drop(second);
    cluster.stop(2);
    cluster.tell(|told| told.leads(0, 2, 6));
    let reader = client.reader("orders").partition(0).any_replica();
    let (reader, ()) = tokio::join!(reader.subscribe(), async {
        let frame = peer.next().await;
        let Frame::Subscribe(asked) = frame else { panic!("SUBSCRIBE, not {frame:?}") };
        let (request, refusal) = (asked.request, not_leader(Some((2, 6))));
        peer.send(Frame::Error(ErrorFrame { request, refusal })).await;
        // The leader is on a broker that is gone.
        assert!(peer.open_consumer(0, 2).await.needs.any_replica);
    });
    reader.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_durable_consumer_moves_and_settles_what_it_has_settled() {
    let (_cluster, [_one, mut two, _three], client, mut old) = three().await;
    let building = client.consumer("orders", "billing").subscribe();
    let (consumer, subscribe) = tokio::join!(building, old.open_consumer(0, 100));
    let mut consumer = consumer.unwrap();
    for base in [0, 2, 4] {
        deliver_two(&mut old, subscribe.stream, base).await;
    }
    let taken = take(&mut consumer, 6).await;
    taken[1].ack();
    let settle = loop {
        if let Frame::Settle(settle) = old.next().await {
            break settle;
        }
    };
    assert_eq!(settle.upto.0, 2);
    taken[3].ack();
    // The leader is gone before it has committed the second: the next one knows of the first.
    old.send(closed(subscribe.stream, not_leader(Some((2, 6))))).await;
    let _old = tokio::spawn(old.serve());
    let mut new = two.accept().await;
    let again = new.open_consumer(2, 100).await;
    assert_eq!(again.subscription.as_ref().unwrap().as_str(), "billing");
    for base in [2, 4, 6] {
        deliver_two(&mut new, again.stream, base).await;
    }
    assert_eq!(offsets(&take(&mut consumer, 2).await), [6, 7], "each once, in order");
    let settle = loop {
        if let Frame::Settle(settle) = new.next().await {
            break settle;
        }
    };
    assert_eq!(settle.upto.0, 4, "what was settled at the old leader is settled at the new one");
    assert_eq!(consumer.skipped(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_opening_that_a_frozen_leader_does_not_answer_is_left_behind() {
    let (cluster, [mut one, mut two, _three], client, mut frozen) = three().await;
    let building = tokio::spawn(async move {
        let publisher = client.publisher("orders").build().await.unwrap();
        (client, publisher)
    });
    let Frame::OpenPublisher(open) = frozen.next().await else { panic!("OPEN_PUBLISHER") };
    // Another client of this broker learns of the new leader; this one asks in time.
    cluster.tell(|told| told.leads(0, 2, 6));
    let serving = tokio::spawn(async move {
        assert!(frozen.is_quiet(20_000).await, "it is not asked to open anything again");
        let opened = PublisherOpened {
            stream: open.stream,
            request: open.request,
            producer_id: weir_protocol::types::ProducerId(9),
            producer_epoch: 1,
            next_sequence: weir_protocol::types::Sequence(0),
            log_end: Offset(0),
            term: Term(0),
        };
        frozen.send(Frame::PublisherOpened(opened)).await;
        assert!(matches!(frozen.next().await, Frame::CloseStream(of) if of == open.stream));
        assert_ne!(open.request, RequestId(0));
        frozen.serve().await
    });
    let mut new = two.accept().await;
    new.open_publisher(0, MIB).await;
    let built = building.await.unwrap();
    let new = tokio::spawn(new.serve());
    assert!(one.is_left_alone(25_000).await);
    drop(built);
    serving.await.unwrap();
    new.await.unwrap();
}
