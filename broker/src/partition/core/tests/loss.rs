//! The core behind batches that cannot be read.

use super::*;
use crate::flow::PartitionKey;
use weir_protocol::error_code::{ErrorCode, Outcome};
use weir_protocol::types::PartitionId;
use weir_storage::DamagedRange;

/// The next `indexes` indexes are lost, with `records` records in them.
fn lose(world: &mut World, indexes: u64, records: u64, accepted: bool) -> Loss {
    let (first, offset) = (world.index(), world.log_end());
    let range = DamagedRange {
        sequence: 1,
        positions: 4_096..8_192,
        first_index: first,
        last_index: Index(first.0 + indexes - 1),
        first_offset: offset,
        end_offset: Offset(offset.0 + records),
        accepted,
    };
    // What is appended next lies behind it.
    let mut header = BatchHeader::empty(BatchType::Void);
    (header.index, header.base_offset) = (range.last_index, range.end_offset);
    header.term = world.term;
    world.log.push((header, Vec::new()));
    let topic = Name::new("orders").unwrap();
    let lost = Loss { key: PartitionKey { topic, partition: PartitionId(3) }, range };
    world.tell(Event::Lost(lost.clone()));
    world.lead();
    lost
}

fn is_read_only(refusal: &PublishRefusal, lost: &Loss) {
    let outcome = StoredOutcome::NotStored;
    assert_eq!(*refusal, PublishRefusal::ReadOnly { lost: lost.clone(), outcome });
    let peer = refusal.to_peer();
    assert_eq!((peer.code, peer.outcome), (ErrorCode::DamagedRange.number(), Outcome::NotStored));
    let lost = lost.range.to_string();
    let names = ["topic orders, partition 3: ", &lost, "read-only", "--accept-loss", "runbook"];
    assert!(names.iter().all(|named| peer.text.contains(named)), "{}", peer.text);
}

#[test]
fn an_accepted_loss_is_passed_over_and_that_is_all() {
    let mut world = world(Overflow::Backpressure);
    let before = world.publish(1, 0, 3);
    world.commit_all();
    let reader = world.subscribe(1, None, Start::Earliest, ALL);
    lose(&mut world, 2, 7, true);
    assert!(!world.core.is_read_only());
    assert_eq!(world.core.state().high_watermark, Offset(10));
    let behind = world.publish(1, 3, 2);
    world.commit_all();
    assert_eq!(world.stored(before).base_offset, Offset(0));
    assert_eq!(world.stored(behind).base_offset, Offset(10), "nothing is renumbered");
    assert_eq!(world.delivered_to(reader), 5, "what is left of it");
    world.subscribe(2, Some("s"), Start::Latest, ALL);
    world.commit_all();
    assert!(world.core.state().subscriptions.find(&Name::new("s").unwrap()).is_some());
}

#[test]
fn behind_a_loss_nothing_is_changed_and_everything_is_read() {
    let mut world = world(Overflow::Backpressure);
    world.publish(1, 0, 3);
    let consumer = world.subscribe(1, Some("s"), Start::Earliest, ALL);
    world.commit_all();
    world.commit_all();
    assert_eq!(world.delivered_to(consumer), 3);
    let lost = lose(&mut world, 1, 2, false);
    assert!(world.core.is_read_only());
    assert_eq!(world.core.state().high_watermark, Offset(5));

    let refused = [world.publish(1, 3, 1), world.publish(0, 0, 1), world.publish(1, 9, 1)];
    refused.iter().for_each(|reply| is_read_only(world.refusal(*reply), &lost));
    let again = world.publish(1, 0, 3);
    assert!(world.stored(again).duplicate, "what is known to be stored is stored");
    world.tell(Event::OpenPublisher(Some((ProducerId(1), 1)), Ticket(1)));
    world.tell(Event::DeleteSubscription(Name::new("s").unwrap(), Ticket(2)));
    world.tell(Event::DeleteSubscription(Name::new("unknown").unwrap(), Ticket(3)));
    let created = world.subscribe(2, Some("new"), Start::Earliest, ALL);
    let refusal = SubscribeRefusal::ReadOnly(lost.clone());
    assert_eq!(world.subscribed(created), Err(refusal.clone()));
    world.settle(consumer, 2, false);
    world.now += TICK;
    world.tell(Event::Tick);
    let seen = |wanted: &dyn Fn(&Effect<u64>) -> bool| world.other.iter().any(wanted);
    assert!(seen(&|effect| match effect {
        Effect::Opened(Ticket(1), Err(refused)) => {
            is_read_only(refused, &lost);
            true
        }
        _ => false,
    }));
    for ticket in [Ticket(2), Ticket(3)] {
        assert!(seen(&|effect| {
            matches!(effect, Effect::Deleted(of, Err(why)) if *of == ticket && *why == refusal)
        }));
    }
    assert!(seen(&|effect| match effect {
        Effect::Settled(id, Settled { upto: Offset(0), refusal: Some(refusal), .. }) => {
            *id == consumer && refusal.code == ErrorCode::DamagedRange.number()
        }
        _ => false,
    }));
    assert!(world.sent.is_empty(), "nothing was proposed");

    let reader = world.subscribe(3, None, Start::Earliest, ALL);
    assert_eq!(world.delivered_to(reader), 3);
    world.tell(Event::Drain(Ticket(4)));
    assert!(world.other.iter().any(|effect| matches!(effect, Effect::Drained(Ticket(4)))));
}

#[test]
fn what_waits_when_something_is_lost_is_answered() {
    let mut world = world(Overflow::Backpressure);
    world.publish(1, 0, 3);
    let consumer = world.subscribe(1, Some("s"), Start::Earliest, ALL);
    world.commit_all();
    world.commit_all();
    // A proposal in flight each, for a publish, a settle, a creation and a deletion.
    let flies = world.publish(1, 3, 1);
    let follows = world.publish(1, 3, 1);
    world.settle(consumer, 3, true);
    let creates = world.subscribe(2, Some("new"), Start::Earliest, ALL);
    world.tell(Event::DeleteSubscription(Name::new("s").unwrap(), Ticket(1)));
    let waits = world.publish(1, 4, 1);
    world.sent.clear();
    let lost = lose(&mut world, 2, 1, false);
    for unknown in [flies, follows] {
        let peer = world.refusal(unknown).to_peer();
        assert_eq!(peer.outcome, Outcome::Unknown, "{peer:?}");
        assert_eq!(peer.code, ErrorCode::StorageError.number());
    }
    // It may have been in flight as well.
    assert!(matches!(world.refusal(waits), PublishRefusal::ReadOnly { .. }));
    assert_eq!(world.subscribed(creates), Err(SubscribeRefusal::ReadOnly(lost)));
    let told = |wanted: &dyn Fn(&Effect<u64>) -> bool| world.other.iter().any(wanted);
    assert!(told(&|effect| matches!(effect, Effect::Deleted(Ticket(1), Err(_)))));
    let refused = |s: &Settled| s.upto == Offset(0) && s.refusal.is_some();
    assert!(told(
        &|effect| matches!(effect, Effect::Settled(id, s) if *id == consumer && refused(s))
    ));
    world.tell(Event::Drain(Ticket(2)));
    assert!(world.other.iter().any(|effect| matches!(effect, Effect::Drained(Ticket(2)))));
}

#[test]
fn nothing_is_trimmed_behind_a_loss() {
    let mut world = world(Overflow::Expire);
    world.publish(1, 0, 3);
    world.commit_all();
    world.core.config.max_bytes = 10;
    lose(&mut world, 1, 1, false);
    let sealed =
        Sealed { last_index: Index(1), end_offset: Offset(3), bytes: 3_000, log_time_ms: WALL_MS };
    world.tell(Event::Holds {
        sealed: vec![sealed],
        bytes: 4_000,
        held_from: Offset(0),
        wall_ms: WALL_MS,
    });
    assert!(world.sent.is_empty());
}
