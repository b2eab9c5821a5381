use super::*;
use crate::flow::Flow;
use weir_protocol::frame::{Deliver, Settled};

const STREAM: StreamId = StreamId(3);

fn grant(limit_cost: u64) -> Grant {
    Grant { limit_cost, ..Grant::default() }
}

fn range(sequence: u64) -> StoredRange {
    let (base_sequence, base_offset) = (Sequence(sequence), Offset(sequence));
    StoredRange { base_sequence, base_offset, record_count: 1, duplicate: false }
}

fn delivery(salt: u64) -> Deliver {
    let (stream, batches) = (StreamId(0), Vec::new());
    Deliver { stream, salt, record_count: 1, high_watermark: Offset(1), batches }
}

/// What leaves next, in short words.
fn take(outbox: &Outbox) -> Vec<String> {
    let mut taken = Taken::default();
    outbox.take(&mut taken);
    let word = |frame: &Frame| match frame {
        Frame::GoAway(_) => "goaway".to_owned(),
        Frame::Published(p) => format!("published {} limit {}", p.stored.len(), p.grant.limit_cost),
        Frame::Refused(r) => format!("refused {}", r.base_sequence),
        Frame::Grant(_, g) => format!("grant {}", g.limit_cost),
        Frame::Revoke(_, r) => format!("revoke {}", r.limit_cost),
        Frame::StreamClosed(c) => format!("closed {}", c.refusal.is_some()),
        Frame::Settled(s) => format!("settled {}", s.upto),
        Frame::Deliver(d) => format!("deliver {} on {}", d.salt, d.stream),
        other => panic!("{other:?}"),
    };
    let completions = taken.completions.iter().map(|_| "completion".to_owned());
    completions.chain(taken.frames.iter().map(word)).collect()
}

fn reply(outbox: &Arc<Outbox>, sequence: u64) -> PublishReply {
    outbox.publish_reply(STREAM, Sequence(sequence), 1)
}

#[test]
fn runs_of_stored_batches_become_one_frame_that_carries_the_newest_grant() {
    let outbox = Outbox::new(1);
    let register = outbox.grant_register(STREAM);
    let replies: Vec<_> = (0..5).map(|sequence| reply(&outbox, sequence)).collect();
    register.grant(grant(10), true);
    for (sequence, reply) in replies.into_iter().enumerate() {
        match sequence {
            2 => reply.refused(Refusal::new(ErrorCode::SequenceGap, "")),
            _ => reply.stored(range(sequence as u64)),
        }
    }
    register.grant(grant(20), false);
    let words = ["published 2 limit 20", "refused 2", "published 2 limit 20"];
    assert_eq!(take(&outbox), words);
    assert_eq!(take(&outbox), [""; 0], "the grant needs no frame of its own");
    register.grant(grant(30), true);
    register.grant(grant(40), true);
    assert_eq!(take(&outbox), ["grant 40"]);
}

#[test]
fn a_revoke_leaves_before_any_answer_that_carries_the_lower_grant() {
    let outbox = Outbox::new(1);
    let register = outbox.grant_register(STREAM);
    register.grant(grant(500), true);
    let reply = reply(&outbox, 0);
    register.revoke(Revoke { epoch: 1, limit_cost: 100 }, grant(100));
    reply.stored(range(0));
    assert_eq!(take(&outbox), ["revoke 100", "published 1 limit 100"]);
}

#[test]
fn the_end_of_a_stream_leaves_after_its_last_answer() {
    let outbox = Outbox::new(1);
    let _register = outbox.grant_register(STREAM);
    let (first, second) = (reply(&outbox, 0), reply(&outbox, 1));
    outbox.close_publisher(STREAM, None);
    first.stored(range(0));
    assert_eq!(take(&outbox), ["published 1 limit 0"]);
    assert!(outbox.owes() && outbox.has(STREAM));
    second.stored(range(1));
    assert_eq!(take(&outbox), ["published 1 limit 0", "closed false"]);
    assert!(!outbox.owes() && !outbox.has(STREAM));
}

#[test]
fn answers_come_before_deliveries_and_deliveries_take_turns() {
    let outbox = Outbox::new(1);
    let ports = [7, 8].map(|stream| outbox.open_consumer(StreamId(stream), grant(0)));
    for port in &ports {
        for salt in 1..=LANE_DELIVERIES_MAX as u64 {
            assert!(port.lane_free());
            port.deliver(delivery(salt));
        }
        assert!(!port.lane_free());
    }
    let settled = |upto| Settled { stream: StreamId(0), upto: Offset(upto), refusal: None };
    ports[0].settled(settled(4));
    ports[0].settled(settled(5));
    ports[0].close(None);
    let request = RequestId(1);
    outbox.complete(Completion::Answer { request, result: Ok(Box::new(Frame::Done(request))) });
    assert_eq!(take(&outbox), ["completion", "settled 5"]);
    assert_eq!(take(&outbox), ["deliver 1 on 7"]);
    assert_eq!(take(&outbox), ["deliver 1 on 8"]);
    assert_eq!(take(&outbox), ["deliver 2 on 7"]);
    assert_eq!(take(&outbox), ["closed false"], "the end leaves behind the lane");
    assert_eq!(take(&outbox), ["deliver 2 on 8"]);
    assert_eq!(take(&outbox), [""; 0]);
}

#[test]
fn a_port_of_a_stream_that_was_opened_anew_says_nothing_in_its_name() {
    let outbox = Outbox::new(1);
    let old = outbox.open_consumer(STREAM, grant(1));
    outbox.close_consumer(STREAM, None);
    assert_eq!(take(&outbox), ["closed false"]);
    let new = outbox.open_consumer(STREAM, grant(2));
    old.deliver(delivery(1));
    old.close(None);
    assert!(old.is_closed() && !old.lane_free() && old.credit() == (0, 0));
    assert_eq!(take(&outbox), [""; 0]);
    assert_eq!((new.credit().0, new.is_closed()), (2, false));
}

#[test]
fn what_comes_after_the_end_is_dropped() {
    let outbox = Outbox::new(1);
    let register = outbox.grant_register(STREAM);
    let reply = reply(&outbox, 0);
    outbox.end();
    reply.stored(range(0));
    register.grant(grant(1), true);
    outbox.go_away(GoAway { code: 0, deadline_ms: 0, reconnect_after_ms: 0, text: String::new() });
    assert_eq!(take(&outbox), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_peer_leaves_a_revoke_unanswered_is_told_so() {
    let flow = Flow::new(1 << 20);
    let ticks = tokio::time::timeout(std::time::Duration::from_secs(60), flow.clone().run_ticks());
    let key = |number| crate::flow::PartitionKey {
        topic: weir_protocol::types::Name::new("orders").unwrap(),
        partition: weir_protocol::types::PartitionId(number),
    };
    let (stopped, waiting) = (Outbox::new(1), Outbox::new(2));
    let parked = flow.open(key(0), stopped.grant_register(STREAM));
    parked.demand(1 << 20, 512);
    let asking = flow.open(key(1), waiting.grant_register(STREAM));
    let (told, asked) = (take(&stopped), take(&waiting));
    assert_eq!((told, asked), (vec!["grant 1048576".to_owned()], vec!["grant 0".to_owned()]));
    asking.demand(100_000, 100_000);
    let view = flow.view(9);
    assert_eq!((view.waiting.len(), view.waiting[0].connection), (1, 2));
    assert!(ticks.await.is_err(), "ticks go on until they are cancelled");
    assert_eq!(take(&stopped), ["revoke 0", "closed true"]);
    assert_eq!(take(&waiting), ["grant 100000"]);
    assert!(parked.is_over() && flow.view(9).waiting.is_empty());
    let blocked = flow.blocked_times();
    let blocked: Vec<_> =
        blocked.values().flat_map(|t| t.by_reason().collect::<Vec<_>>()).collect();
    assert!(blocked.iter().any(|(reason, time)| *reason == "memory" && time.as_secs() >= 3));
}
