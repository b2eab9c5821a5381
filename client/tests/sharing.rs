//! A consumer that shares its subscription, against a scripted broker.

#![allow(clippy::unwrap_used, reason = "a test may panic wherever it is")]

mod common;

use common::*;
use std::time::Duration;
use weir_client::{Client, Consumer, ErrorCode, Outcome, TopicConfig};
use weir_protocol::frame::*;
use weir_protocol::types::*;

const QUIET: Duration = Duration::from_millis(100);

async fn connect_shared() -> (Client, Network, Peer) {
    connect_with(TopicConfig { partitions: 2, ..TopicConfig::default() }, FEATURE_SHARING).await
}

async fn joined(peer: &mut Peer) -> Join {
    let frame = peer.next().await;
    let Frame::Join(join) = frame else { panic!("JOIN, not {frame:?}") };
    assert_eq!((join.topic.as_str(), join.subscription.as_str()), ("orders", "billing"));
    peer.send(Frame::Done(join.request)).await;
    join
}

async fn assign(peer: &mut Peer, stream: StreamId, epoch: u64, partitions: &[u32]) {
    let partitions = partitions.iter().copied().map(PartitionId).collect();
    peer.send(Frame::Assignment(Assignment { stream, epoch, partitions })).await;
}

/// What the next frame, a PRESENT, says is obeyed.
async fn present(peer: &mut Peer) -> u64 {
    let frame = peer.next().await;
    let Frame::Present(present) = frame else { panic!("PRESENT, not {frame:?}") };
    present.epoch
}

/// Joins, is given partition 0 under epoch 3, and reads it from 0.
async fn share(client: &Client, peer: &mut Peer) -> (Consumer, Join, Subscribe) {
    let (consumer, (join, subscribe)) =
        tokio::join!(client.consumer("orders", "billing").subscribe(), async {
            let join = joined(peer).await;
            assert_eq!(present(peer).await, 0, "nothing is obeyed yet");
            assign(peer, join.stream, 3, &[0]).await;
            let (mut asked, mut obeyed) = (None, None);
            while asked.is_none() || obeyed.is_none() {
                match peer.next().await {
                    Frame::Present(present) => obeyed = Some(present.epoch),
                    Frame::Subscribe(subscribe) => asked = Some(subscribe),
                    frame => panic!("SUBSCRIBE or PRESENT, not {frame:?}"),
                }
            }
            assert_eq!(obeyed, Some(3));
            let subscribe = asked.unwrap();
            assert_eq!((subscribe.partition, subscribe.needs.epoch), (PartitionId(0), 3));
            subscribed(peer, &subscribe, 0).await;
            (join, subscribe)
        });
    (consumer.unwrap(), join, subscribe)
}

async fn subscribed(peer: &mut Peer, subscribe: &Subscribe, start: u64) {
    let (stream, request) = (subscribe.stream, subscribe.request);
    let (start, high_watermark) = (Offset(start), Offset(100));
    let (log_start, skipped, term) = (Offset(0), 0, Term(0));
    let opened = Subscribed { stream, request, start, log_start, high_watermark, skipped, term };
    peer.send(Frame::Subscribed(opened)).await;
}

async fn is_idle(consumer: &mut Consumer) -> bool {
    tokio::time::timeout(QUIET, consumer.next()).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn what_goes_to_another_consumer_is_settled_first_and_handed_over_no_more() {
    let (client, _network, mut peer) = connect_shared().await;
    let (mut consumer, join, read) = share(&client, &mut peer).await;
    deliver_two(&mut peer, read.stream, 0).await;
    deliver_two(&mut peer, read.stream, 2).await;
    let taken = take(&mut consumer, 2).await;
    taken[0].ack();
    assert_eq!(peer.next_settle().await.upto.0, 1);
    assign(&mut peer, join.stream, 4, &[]).await;
    let settle = peer.next_settle().await;
    assert_eq!((settle.upto.0, settle.confirm), (1, true), "what is settled is made sure of");
    peer.settled(read.stream, 1).await;
    assert!(peer.is_quiet(100).await, "the application works at the other one");
    assert!(is_idle(&mut consumer).await, "what it was not handed is another's");
    taken[1].ack();
    let settle = peer.next_settle().await;
    assert_eq!((settle.upto.0, settle.confirm), (2, true));
    assert!(peer.is_quiet(100).await, "it is not committed yet");
    peer.settled(read.stream, 2).await;
    assert_eq!(peer.next().await, Frame::CloseStream(read.stream));
    assert_eq!(present(&mut peer).await, 4);
    let lost = taken[1].ack_confirmed().await.unwrap_err();
    assert_eq!(lost.error_code(), Some(ErrorCode::Generation));

    // It comes back, and is read from the cursor.
    assign(&mut peer, join.stream, 6, &[0]).await;
    let again = loop {
        match peer.next().await {
            Frame::Subscribe(again) => break again,
            Frame::Present(present) => assert_eq!(present.epoch, 6),
            frame => panic!("SUBSCRIBE, not {frame:?}"),
        }
    };
    assert_eq!((again.needs.epoch, again.needs.resume), (6, Offset(0)));
    subscribed(&mut peer, &again, 7).await;
    deliver_two(&mut peer, again.stream, 7).await;
    assert_eq!(offsets(&take(&mut consumer, 2).await), [7, 8]);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_settle_gives_up_all_the_same() {
    let (client, _network, mut peer) = connect_shared().await;
    let (mut consumer, join, read) = share(&client, &mut peer).await;
    deliver_two(&mut peer, read.stream, 0).await;
    take(&mut consumer, 2).await;
    let told = tokio::time::Instant::now();
    assign(&mut peer, join.stream, 4, &[]).await;
    loop {
        match peer.next().await {
            Frame::Present(present) if present.epoch == 4 => break,
            Frame::Present(present) => assert_eq!(present.epoch, 3, "it is there meanwhile"),
            Frame::CloseStream(stream) => assert_eq!(stream, read.stream),
            frame => panic!("PRESENT, not {frame:?}"),
        }
    }
    let waited = told.elapsed().as_secs();
    assert!((7..10).contains(&waited), "{waited} s");
    drop(consumer);
}

#[tokio::test(start_paused = true)]
async fn a_member_shows_that_it_is_there_and_says_when_it_leaves() {
    let (client, _network, mut peer) = connect_shared().await;
    let (consumer, join, read) = share(&client, &mut peer).await;
    for _ in 0..4 {
        let asked = tokio::time::Instant::now();
        assert_eq!(present(&mut peer).await, 3);
        assert!(asked.elapsed() <= Duration::from_secs(3));
    }
    let (closed, ()) = tokio::join!(consumer.close(), async {
        assert_eq!(peer.next().await, Frame::CloseStream(read.stream));
        assert_eq!(peer.next().await, Frame::Leave(join.stream));
        peer.send(Frame::StreamClosed(StreamClosed { stream: join.stream, refusal: None })).await;
    });
    closed.unwrap();
    assert!(peer.is_quiet(9_000).await, "nothing is said of it any more");
}

#[tokio::test(start_paused = true)]
async fn a_member_reads_on_and_joins_again_as_itself() {
    let (client, mut network, mut peer) = connect_shared().await;
    let (mut consumer, join, read) = share(&client, &mut peer).await;
    deliver_two(&mut peer, read.stream, 0).await;
    // The broker that assigns cannot just now: what was given stays.
    let why = refusal(ErrorCode::Draining, Outcome::NotStored);
    peer.send(Frame::StreamClosed(StreamClosed { stream: join.stream, refusal: Some(why) })).await;
    assert_eq!(offsets(&take(&mut consumer, 2).await), [0, 1]);
    let again = joined(&mut peer).await;
    assert_eq!(again.member, join.member);
    drop(peer);
    let mut peer = network.accept().await;
    let (mut rejoined, mut asked) = (None, None);
    while rejoined.is_none() || asked.is_none() {
        match peer.next().await {
            Frame::Join(join) => rejoined = Some(join),
            Frame::Subscribe(subscribe) => asked = Some(subscribe),
            frame => panic!("JOIN or SUBSCRIBE, not {frame:?}"),
        }
    }
    assert_eq!(rejoined.unwrap().member, join.member);
    assert_eq!(asked.unwrap().needs.epoch, 3);
}

#[tokio::test(start_paused = true)]
async fn what_comes_back_to_a_consumer_begins_another_turn() {
    let (client, _network, mut peer) = connect_shared().await;
    let (mut consumer, join, read) = share(&client, &mut peer).await;
    deliver_two(&mut peer, read.stream, 0).await;
    let first = take(&mut consumer, 2).await;
    assert_eq!(consumer.turns()[&0], 1);
    let why = refusal(ErrorCode::Generation, Outcome::NotStored);
    peer.send(Frame::StreamClosed(StreamClosed { stream: read.stream, refusal: Some(why) })).await;
    assert!(is_idle(&mut consumer).await);
    assert!(consumer.turns().is_empty(), "another consumer reads it");

    // Nothing was settled meanwhile: it starts where it did before.
    assign(&mut peer, join.stream, 5, &[0]).await;
    let again = loop {
        match peer.next().await {
            Frame::Subscribe(again) => break again,
            Frame::Present(_) => {}
            frame => panic!("SUBSCRIBE, not {frame:?}"),
        }
    };
    subscribed(&mut peer, &again, 0).await;
    deliver_two(&mut peer, again.stream, 0).await;
    let second = take(&mut consumer, 2).await;
    assert_eq!(offsets(&second), offsets(&first));
    assert_eq!([first[1].turn(), second[0].turn(), consumer.turns()[&0]], [1, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_was_replaced_waits_for_its_next_assignment() {
    let (client, _network, mut peer) = connect_shared().await;
    let (mut consumer, join, read) = share(&client, &mut peer).await;
    let why = refusal(ErrorCode::Generation, Outcome::NotStored);
    peer.send(Frame::StreamClosed(StreamClosed { stream: read.stream, refusal: Some(why) })).await;
    assert!(is_idle(&mut consumer).await, "that is no error of the application");
    assert!(peer.is_quiet(100).await);
    assign(&mut peer, join.stream, 5, &[1]).await;
    let asked = loop {
        match peer.next().await {
            Frame::Subscribe(asked) => break asked,
            Frame::Present(present) => assert_eq!(present.epoch, 5),
            frame => panic!("SUBSCRIBE, not {frame:?}"),
        }
    };
    assert_eq!((asked.partition, asked.needs.epoch), (PartitionId(1), 5));
}
