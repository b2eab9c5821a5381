//! The core against a log that commits, loses and voids what it is handed.

mod loss;
mod sharing;
mod standing;

use super::*;
use crate::partition::command::{self, SubscriptionId};
use crate::partition::limits::{PROPOSAL_BYTES_MAX, PROPOSALS_INFLIGHT_MAX, TICK};
use crate::replication::{Fence, StoredOutcome};
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};
use tokio::time::Duration;
use weir_protocol::batch::BatchType;
use weir_protocol::frame::{Durability, Needs, Start};
use weir_protocol::types::{Index, Sequence};
use weir_storage::NewBatch;

const WALL_MS: u64 = 1_000_000;

fn config(overflow: Overflow) -> TopicConfig {
    let durability = Durability::Fsync;
    TopicConfig {
        partitions: 1,
        durability,
        overflow,
        max_bytes: 1 << 30,
        max_age_ms: 0,
        replicas: 1,
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Answer {
    Stored(StoredRange),
    Refused(PublishRefusal),
}

/// A core, and the log behind it.
struct World {
    core: Core<u64>,
    now: Instant,
    term: Term,
    sent: VecDeque<Vec<NewBatch>>,
    log: Vec<(BatchHeader, Vec<Command>)>,
    /// (run, next number) that is in turn.
    turn: (u32, Option<u32>),
    refused: Option<Refused>,
    answers: BTreeMap<u64, Answer>,
    next_reply: u64,
    other: Vec<Effect<u64>>,
    delivered: Vec<(ConsumerId, Deliver)>,
    registers: BTreeMap<ConsumerId, Registers>,
    blocked: u32,
    sole_voter: bool,
    /// Whether a majority answers at once who asks whether it leads.
    proves: bool,
    /// One asks and has no answer.
    asks: bool,
}

fn world(overflow: Overflow) -> World {
    let mut world = world_of(overflow);
    world.lead();
    world
}

/// One that has not seen its replica yet.
fn world_of(overflow: Overflow) -> World {
    World {
        core: Core::new(config(overflow), State::new()),
        now: Instant::now(),
        term: Term(1),
        sent: VecDeque::new(),
        log: Vec::new(),
        turn: (0, Some(0)),
        refused: None,
        answers: BTreeMap::new(),
        next_reply: 0,
        other: Vec::new(),
        delivered: Vec::new(),
        registers: BTreeMap::new(),
        blocked: 0,
        sole_voter: true,
        proves: true,
        asks: false,
    }
}

impl World {
    fn index(&self) -> Index {
        Index(self.log.last().map_or(1, |(header, _)| header.index.0 + 1))
    }

    fn log_end(&self) -> Offset {
        self.log.last().map_or(Offset(0), |(header, _)| header.end_offset())
    }

    fn lead(&mut self) {
        let leading = Some(self.term);
        self.tell(Event::Replica(self.seen(Role::Leader(self.term), leading)));
    }

    fn seen(&self, role: Role, leading: Option<Term>) -> Seen {
        let (refused, in_flight) = (self.refused, self.sent.len());
        let sole_voter = self.sole_voter;
        let (leader, severed, hands_over) = (None, false, false);
        Seen { role, leading, leader, sole_voter, severed, hands_over, refused, in_flight }
    }

    fn tell(&mut self, event: Event<u64>) {
        let mut effects = Vec::new();
        self.core.handle(event, self.now, &mut effects);
        self.core.pump(WALL_MS, self.now, &mut effects);
        for effect in effects {
            self.obey(effect);
        }
    }

    /// What an effect gives rise to, while others are still to be carried out: nothing is proposed.
    fn tell_within(&mut self, event: Event<u64>) {
        let mut effects = Vec::new();
        self.core.handle(event, self.now, &mut effects);
        effects.into_iter().for_each(|effect| self.obey(effect));
    }

    fn obey(&mut self, effect: Effect<u64>) {
        match effect {
            Effect::Propose { proposal, .. } => {
                assert_eq!(proposal.term, self.term);
                self.sent.push_back(proposal.batches);
                assert!(self.sent.len() <= PROPOSALS_INFLIGHT_MAX + 1);
            }
            Effect::Stored { reply, range } => self.answer(reply, Answer::Stored(range)),
            Effect::Refused { reply, refusal } => self.answer(reply, Answer::Refused(refusal)),
            Effect::Read(wanted) => {
                let slices = self.read(wanted);
                self.tell_within(Event::Read { id: wanted.consumer, slices });
            }
            Effect::Deliver(id, deliver) => {
                self.delivered.push((id, deliver));
                let registers = self.registers[&id];
                self.tell_within(Event::Poked { id, registers, settle: None });
            }
            Effect::Block(bits) => self.blocked = bits,
            Effect::ProveLead => {
                assert!(!std::mem::replace(&mut self.asks, true), "one round at a time");
                if self.proves {
                    self.prove(Some(self.core.state().applied));
                }
            }
            other => self.other.push(other),
        }
    }

    /// What a majority says is known, if it was asked.
    fn prove(&mut self, proof: Option<Index>) {
        if std::mem::take(&mut self.asks) {
            self.tell(Event::LeadProven(proof));
        }
    }

    fn answer(&mut self, reply: u64, answer: Answer) {
        let before = self.answers.insert(reply, answer);
        assert_eq!(before, None, "publish {reply} was answered twice");
    }

    /// Committed batches from `from` on, at least one, all of one segment (ten indexes each).
    fn read(&self, wanted: Wanted) -> Vec<BatchSlice> {
        let mut bytes = 0;
        let mut slices: Vec<BatchSlice> = Vec::new();
        for (header, _) in self.log.iter().filter(|(header, _)| header.end_offset() > wanted.from) {
            let salt = header.index.0 / 10;
            bytes += header.stored_len();
            let fits = bytes <= wanted.bytes_max && slices.first().is_none_or(|s| s.salt == salt);
            if !slices.is_empty() && !fits {
                break;
            }
            let content = vec![0; header.stored_len()].into();
            slices.push(BatchSlice { header: *header, bytes: content, salt });
        }
        slices
    }

    fn publish_with(
        &mut self,
        (producer, epoch): (u64, u32),
        base: u64,
        record_count: u32,
        change: impl FnOnce(&mut Publish<u64>),
    ) -> u64 {
        let mut header = BatchHeader::empty(BatchType::Data);
        header.producer_id = ProducerId(producer);
        header.producer_epoch = epoch;
        header.base_sequence = Sequence(base);
        header.record_count = record_count;
        header.body_len = 1_000 * record_count;
        let reply = self.next_reply;
        self.next_reply += 1;
        let mut publish = Publish { header, body: Bytes::new(), deadline: None, reply };
        change(&mut publish);
        self.tell(Event::Publish(publish));
        reply
    }

    fn publish(&mut self, producer: u64, base: u64, record_count: u32) -> u64 {
        self.publish_with((producer, 0), base, record_count, |_| {})
    }

    fn in_turn(&mut self, header: &BatchHeader) -> bool {
        let (run, next) = self.turn;
        let number = header.run_number;
        let good =
            if header.run == run { next == Some(number) } else { header.run > run && number == 0 };
        if good {
            self.turn = (header.run, Some(number + 1));
        }
        good
    }

    /// The oldest proposal is committed.
    fn commit(&mut self) {
        let Some(batches) = self.sent.pop_front() else { return };
        let (index, count) = (self.index(), batches.len());
        for (at, NewBatch { mut header, body }) in batches.into_iter().enumerate() {
            header.index = index;
            header.term = self.term;
            header.attrs = u16::from(at + 1 == count);
            header.base_offset = self.log_end();
            if !self.in_turn(&header) && header.batch_type == BatchType::Data {
                header.batch_type = BatchType::Void;
            }
            let commands = match header.batch_type {
                BatchType::Control => {
                    let content = &body[0][..body[0].len() - 4];
                    command::decode(content).unwrap()
                }
                _ => Vec::new(),
            };
            self.log.push((header, commands.clone()));
            let mut effects = Vec::new();
            self.core.handle(Event::Applied { header, commands }, self.now, &mut effects);
            for effect in effects {
                self.obey(effect);
            }
        }
        self.lead();
    }

    fn commit_all(&mut self) {
        while !self.sent.is_empty() {
            self.commit();
        }
    }

    /// The oldest proposal is refused; it may be in the log after all if `unknown`.
    fn refuse(&mut self, unknown: bool) {
        let Some(batches) = self.sent.pop_front() else { return };
        let header = batches[0].header;
        let outcome = if unknown { StoredOutcome::Unknown } else { StoredOutcome::NotStored };
        let (run, number) = (header.run, header.run_number);
        let older = self.refused.filter(|refused| (refused.term, refused.run) == (self.term, run));
        self.refused = Some(Refused {
            term: self.term,
            run,
            number: older.map_or(number, |older| older.number.min(number)),
            outcome: older.map_or(outcome, |older| older.outcome.max(outcome)),
        });
        self.lead();
    }

    fn stored(&self, reply: u64) -> StoredRange {
        match self.answers.get(&reply) {
            Some(Answer::Stored(range)) => *range,
            other => panic!("publish {reply} was answered {other:?}"),
        }
    }

    fn refusal(&self, reply: u64) -> &PublishRefusal {
        match self.answers.get(&reply) {
            Some(Answer::Refused(refusal)) => refusal,
            other => panic!("publish {reply} was answered {other:?}"),
        }
    }

    fn subscribe(
        &mut self,
        serial: u32,
        name: Option<&str>,
        start: Start,
        credit: (u64, u64),
    ) -> ConsumerId {
        let id = ConsumerId { connection: 1, serial };
        let registers =
            Registers { limit_bytes: credit.0, limit_messages: credit.1, lane_free: true };
        self.registers.insert(id, registers);
        let subscription = name.map(|name| Name::new(name).unwrap());
        let needs = Needs::default();
        self.tell(Event::Subscribe(Arriving { id, subscription, start, needs, registers }));
        id
    }

    fn settle(&mut self, id: ConsumerId, upto: u64, confirm: bool) {
        let registers = self.registers[&id];
        self.tell(Event::Poked { id, registers, settle: Some((Offset(upto), confirm)) });
    }

    fn subscribed(&mut self, id: ConsumerId) -> Result<SubscribedState, SubscribeRefusal> {
        let found = self.other.iter().rev().find_map(|effect| match effect {
            Effect::Subscribed(to, result) if *to == id => Some(result.clone()),
            _ => None,
        });
        found.expect("SUBSCRIBE was answered")
    }

    fn delivered_to(&self, id: ConsumerId) -> u32 {
        self.delivered.iter().filter(|(to, _)| *to == id).map(|(_, d)| d.record_count).sum()
    }
}

const ALL: (u64, u64) = (u64::MAX, u64::MAX);

#[test]
fn what_arrives_while_a_flush_runs_goes_out_together() {
    let mut world = world(Overflow::Backpressure);
    let replies: Vec<u64> = (0..50).map(|number| world.publish(1, number, 1)).collect();
    assert_eq!(world.sent.len(), PROPOSALS_INFLIGHT_MAX);
    world.commit();
    assert_eq!(world.sent.back().map(Vec::len), Some(48));
    world.commit_all();
    let offsets: Vec<u64> =
        replies.iter().map(|reply| world.stored(*reply).base_offset.0).collect();
    assert!(offsets.into_iter().eq(0..50));
}

#[test]
fn a_proposal_is_bounded_in_bytes_and_a_large_batch_goes_alone() {
    let mut world = world(Overflow::Backpressure);
    for number in 0..40 {
        world.publish_with((1, 0), number, 1, |p| p.header.body_len = 100 << 10);
    }
    world.publish_with((1, 0), 40, 1, |p| p.header.body_len = 4 << 20);
    let mut sizes = Vec::new();
    while let Some(batches) = world.sent.front() {
        let bytes: usize = batches.iter().map(|batch| batch.header.stored_len()).sum();
        assert!(bytes <= PROPOSAL_BYTES_MAX || batches.len() == 1);
        sizes.push(batches.len());
        world.commit();
    }
    assert_eq!(sizes.iter().sum::<usize>(), 41);
    assert_eq!(sizes.last(), Some(&1));
}

#[test]
fn a_repetition_of_what_is_in_flight_shares_its_fate() {
    let mut world = world(Overflow::Backpressure);
    let first = world.publish(1, 0, 3);
    let again = world.publish(1, 0, 3);
    assert!(world.answers.is_empty());
    world.commit_all();
    assert_eq!(world.stored(first).base_offset, world.stored(again).base_offset);
    assert!(world.stored(again).duplicate && !world.stored(first).duplicate);
    assert_eq!(world.log_end(), Offset(3));
}

#[test]
fn a_refused_proposal_is_never_overtaken_by_its_successor() {
    let mut world = world(Overflow::Backpressure);
    let lost = world.publish(1, 0, 1);
    let behind = world.publish(1, 1, 1);
    let later = world.publish(1, 2, 1);
    world.refuse(false);
    assert!(world.answers.is_empty(), "nothing is said before nothing is in flight");
    world.commit();
    assert_eq!(world.log_end(), Offset(0), "the successor is VOID");
    assert_eq!(world.refusal(lost), &PublishRefusal::LeaderLost(StoredOutcome::NotStored));
    assert_eq!(world.refusal(behind), &PublishRefusal::LeaderLost(StoredOutcome::NotStored));
    // What waited behind them is not next any more.
    assert_eq!(world.refusal(later), &PublishRefusal::UnknownProducer);
    let again = world.publish(1, 0, 1);
    world.commit_all();
    assert_eq!(world.stored(again).base_offset, Offset(0));
}

#[test]
fn an_outcome_that_nobody_knows_is_called_unknown() {
    let mut world = world(Overflow::Backpressure);
    let lost = world.publish(1, 0, 1);
    world.refuse(true);
    assert_eq!(world.refusal(lost), &PublishRefusal::LeaderLost(StoredOutcome::Unknown));
}

#[test]
fn a_proposal_that_was_not_taken_leaves_no_gap() {
    let mut world = world(Overflow::Backpressure);
    let first = world.publish(1, 0, 1);
    let second = world.publish(1, 1, 1);
    let number = world.sent.pop_back().unwrap()[0].header.run_number;
    world.tell(Event::NotProposed { number });
    assert_eq!(world.refusal(second), &PublishRefusal::LeaderLost(StoredOutcome::NotStored));
    world.commit_all();
    assert_eq!(world.stored(first).base_offset, Offset(0));
    let again = world.publish(1, 1, 1);
    world.commit_all();
    assert_eq!(world.stored(again).base_offset, Offset(1));
}

#[test]
fn nothing_is_judged_before_the_replica_leads() {
    let mut world = world(Overflow::Backpressure);
    world.tell(Event::Replica(world.seen(Role::Candidate, None)));
    let waits = world.publish(1, 0, 1);
    world.tell(Event::OpenPublisher(Some((ProducerId(1), 0)), Ticket(1)));
    assert!(world.sent.is_empty() && world.answers.is_empty() && world.other.is_empty());
    world.term = Term(2);
    world.turn = (0, Some(0));
    world.lead();
    world.commit_all();
    assert_eq!(world.stored(waits).base_offset, Offset(0));
    assert!(matches!(world.other[..], [Effect::Opened(Ticket(1), Ok(_))]));
}

#[test]
fn an_ended_replica_answers_everybody() {
    let mut world = world(Overflow::Backpressure);
    let in_flight = world.publish(1, 0, 1);
    world.publish(1, 1, 1);
    let waits = world.publish(1, 2, 1);
    let fenced = world.seen(Role::Fenced(Fence::Device("EIO".into())), None);
    world.tell(Event::Replica(fenced));
    let unknown = PublishRefusal::Fenced {
        text: "the device failed: EIO".into(),
        outcome: StoredOutcome::Unknown,
    };
    assert_eq!(world.refusal(in_flight), &unknown);
    assert!(matches!(
        world.refusal(waits),
        PublishRefusal::Fenced { outcome: StoredOutcome::NotStored, .. }
    ));
    let late = world.publish(2, 0, 1);
    assert!(matches!(world.refusal(late), PublishRefusal::Fenced { .. }));
}

#[test]
fn a_passed_deadline_refuses_its_batch_and_shows_its_successor_the_gap() {
    let mut world = world(Overflow::Backpressure);
    world.publish(1, 0, 1);
    world.publish(1, 1, 1);
    let deadline = world.now + Duration::from_millis(5);
    let late = world.publish_with((1, 0), 2, 1, |publish| publish.deadline = Some(deadline));
    let behind = world.publish(1, 3, 1);
    world.now += Duration::from_millis(6);
    world.tell(Event::Tick);
    assert_eq!(world.refusal(late), &PublishRefusal::Deadline);
    world.commit_all();
    assert_eq!(world.refusal(behind), &PublishRefusal::Gap { expected: Sequence(2) });
}

#[test]
fn a_disk_without_room_refuses_and_blocks_until_there_is_some() {
    let mut world = world(Overflow::Backpressure);
    let before = world.publish(1, 0, 1);
    world.commit_all();
    world.tell(Event::Space(false));
    assert_eq!(world.blocked, reason_bits::DISK);
    let refused = world.publish(1, 1, 1);
    assert_eq!(world.refusal(refused), &PublishRefusal::StorageLow);
    let again = world.publish(1, 0, 1);
    assert!(world.stored(again).duplicate, "what is stored is stored");
    assert_eq!(world.stored(before).base_offset, world.stored(again).base_offset);
    let reader = world.subscribe(1, None, Start::Earliest, ALL);
    assert_eq!(world.delivered_to(reader), 1, "reading goes on");
    world.tell(Event::Space(true));
    assert_eq!(world.blocked, 0);
    let accepted = world.publish(1, 1, 1);
    world.commit_all();
    assert_eq!(world.stored(accepted).base_offset, Offset(1));
}

fn full(world: &mut World) {
    let sealed = vec![Sealed {
        last_index: Index(1),
        end_offset: Offset(1),
        bytes: 1 << 30,
        log_time_ms: WALL_MS,
    }];
    world.tell(Event::Holds {
        sealed,
        bytes: (1 << 30) + 1,
        held_from: Offset(0),
        wall_ms: WALL_MS,
    });
}

#[test]
fn a_full_topic_answers_its_publishers_by_its_policy() {
    for overflow in [Overflow::Backpressure, Overflow::Reject, Overflow::Expire] {
        let mut world = world(overflow);
        world.publish(1, 0, 2);
        let consumer = world.subscribe(1, Some("s"), Start::Earliest, ALL);
        world.commit_all();
        full(&mut world);
        let then = world.publish(1, 2, 1);
        world.commit_all();
        match overflow {
            Overflow::Backpressure => {
                assert_eq!(world.blocked, reason_bits::BACKLOG);
                assert_eq!(world.stored(then).base_offset, Offset(2), "credit given is credit");
            }
            Overflow::Reject => {
                let limit = 1 << 30;
                assert_eq!(world.refusal(then), &PublishRefusal::BacklogFull { limit });
            }
            Overflow::Expire => {
                assert_eq!(world.stored(then).base_offset, Offset(2));
                assert_eq!(world.core.state().log_start, Offset(1));
                assert!(world.other.iter().any(|e| matches!(e, Effect::Expired(1))));
                continue;
            }
        }
        assert_eq!(world.core.state().log_start, Offset(0));
        world.settle(consumer, 1, true);
        world.commit_all();
        full(&mut world);
        world.commit_all();
        assert_eq!(world.core.state().log_start, Offset(1), "what is settled may go");
        assert_eq!(world.blocked, 0);
    }
}

#[test]
fn draining_finishes_what_was_accepted_and_refuses_the_rest() {
    let mut world = world(Overflow::Backpressure);
    let replies: Vec<u64> = (0..4).map(|number| world.publish(1, number, 1)).collect();
    world.tell(Event::Drain(Ticket(7)));
    let late = world.publish(1, 4, 1);
    assert!(!world.other.iter().any(|effect| matches!(effect, Effect::Drained(_))));
    world.commit_all();
    assert!(replies.iter().all(|reply| !world.stored(*reply).duplicate));
    assert_eq!(world.refusal(late), &PublishRefusal::Draining);
    assert!(world.other.iter().any(|effect| matches!(effect, Effect::Drained(Ticket(7)))));
    let consumer = world.subscribe(1, None, Start::Earliest, ALL);
    assert_eq!(world.subscribed(consumer), Err(SubscribeRefusal::Draining));
}

#[test]
fn a_reader_gets_what_is_committed_and_nothing_else() {
    let mut world = world(Overflow::Backpressure);
    let reader = world.subscribe(1, None, Start::Earliest, ALL);
    world.publish(1, 0, 5);
    assert_eq!(world.delivered_to(reader), 0);
    world.commit_all();
    assert_eq!(world.delivered_to(reader), 5);
    assert_eq!(world.delivered[0].1.high_watermark, Offset(5));
    let latest = world.subscribe(2, None, Start::Latest, ALL);
    assert_eq!(world.subscribed(latest).map(|state| state.start), Ok(Offset(5)));
    let beyond = world.subscribe(3, None, Start::Offset(Offset(6)), ALL);
    let (asked, high_watermark) = (Offset(6), Offset(5));
    assert_eq!(
        world.subscribed(beyond),
        Err(SubscribeRefusal::OutOfRange { asked, high_watermark })
    );
}

#[test]
fn a_subscription_goes_on_at_its_cursor_and_a_newer_consumer_takes_over() {
    let mut world = world(Overflow::Backpressure);
    world.publish(1, 0, 2);
    world.publish(1, 2, 3);
    world.commit_all();
    let first = world.subscribe(1, Some("s"), Start::Earliest, ALL);
    world.commit_all();
    assert_eq!(world.delivered_to(first), 5);
    world.settle(first, 2, true);
    assert!(!world.other.iter().any(|effect| matches!(effect, Effect::Settled(..))));
    world.commit_all();
    assert!(world.other.iter().any(|effect| matches!(
        effect,
        Effect::Settled(id, Settled { upto: Offset(2), refusal: None, .. }) if *id == first
    )));
    let second = world.subscribe(2, Some("s"), Start::Latest, ALL);
    assert_eq!(world.subscribed(second).map(|state| state.start), Ok(Offset(2)));
    assert_eq!(world.delivered_to(second), 3);
    assert!(world.other.iter().any(|effect| {
        matches!(effect, Effect::Close(id, SubscribeRefusal::TakenOver) if *id == first)
    }));
    world.settle(first, 5, false);
    world.now += TICK;
    world.tell(Event::Tick);
    world.commit_all();
    let cursor = world.core.state().subscriptions.by_id(SubscriptionId(0)).unwrap().cursor;
    assert_eq!(cursor, Offset(2), "who was taken over settles nothing");
}

#[test]
fn a_settle_that_finds_no_room_in_flight_does_not_wake_the_partition_again_and_again() {
    let mut world = world(Overflow::Backpressure);
    world.publish(1, 0, 3);
    world.commit_all();
    let consumer = world.subscribe(1, Some("s"), Start::Earliest, ALL);
    world.commit_all();
    (0..PROPOSALS_INFLIGHT_MAX as u64).for_each(|number| {
        world.publish(2, number, 1);
    });
    world.settle(consumer, 3, true);
    world.now += TICK;
    world.tell(Event::Tick);
    assert_eq!(world.core.due(world.now), None, "time alone brings nothing back");
    world.commit_all();
    let cursor = world.core.state().subscriptions.by_id(SubscriptionId(0)).unwrap().cursor;
    assert_eq!(cursor, Offset(3), "it goes out with what comes back");
}

#[test]
fn a_refused_settle_is_not_proposed_again_in_the_same_instant() {
    let mut world = world(Overflow::Backpressure);
    world.publish(1, 0, 3);
    world.commit_all();
    let consumer = world.subscribe(1, Some("s"), Start::Earliest, ALL);
    world.commit_all();
    world.settle(consumer, 3, true);
    world.refuse(false);
    assert!(world.sent.is_empty(), "whoever refused it does so until something changes");
    assert_eq!(world.core.due(world.now), Some(world.now + TICK));
    world.publish(2, 0, 1);
    world.commit_all();
    assert_eq!(world.log_end(), Offset(4), "publishes do not wait for it");
    world.now += TICK;
    world.tell(Event::Tick);
    world.commit_all();
    let cursor = world.core.state().subscriptions.by_id(SubscriptionId(0)).unwrap().cursor;
    assert_eq!((cursor, world.core.due(world.now)), (Offset(3), None));
}

#[test]
fn what_was_not_delivered_cannot_be_settled() {
    let mut world = world(Overflow::Backpressure);
    world.publish(1, 0, 2);
    world.commit_all();
    let consumer = world.subscribe(1, Some("s"), Start::Earliest, ALL);
    world.commit_all();
    world.settle(consumer, 3, false);
    let refused = world.other.iter().find_map(|effect| match effect {
        Effect::Settled(_, settled) => settled.refusal.clone(),
        _ => None,
    });
    let refused = refused.unwrap();
    assert_eq!((refused.code, refused.observed, refused.limit), (0x0a01, 3, 2));
}

#[test]
fn settles_are_gathered_and_only_one_control_batch_of_them_is_in_flight() {
    let mut world = world(Overflow::Backpressure);
    world.publish(1, 0, 9);
    world.commit_all();
    let consumer = world.subscribe(1, Some("s"), Start::Earliest, ALL);
    world.commit_all();
    for upto in 1..5 {
        world.settle(consumer, upto, false);
    }
    assert!(world.sent.is_empty(), "they wait a moment for more");
    assert_eq!(world.core.due(world.now), Some(world.now + Duration::from_millis(10)));
    world.now += Duration::from_millis(10);
    world.tell(Event::Tick);
    assert_eq!(world.sent.len(), 1);
    world.settle(consumer, 9, true);
    assert_eq!(world.sent.len(), 1, "also an urgent one waits for the one in flight");
    world.commit();
    assert_eq!(world.sent.len(), 1);
    world.refuse(false);
    world.now += TICK;
    world.tell(Event::Tick);
    world.commit_all();
    let cursor = world.core.state().subscriptions.by_id(SubscriptionId(0)).unwrap().cursor;
    assert_eq!(cursor, Offset(9), "a settle that was lost is proposed again");
}

#[test]
fn a_cursor_below_the_log_start_is_told_what_it_missed() {
    let mut world = world(Overflow::Expire);
    world.publish(1, 0, 1);
    world.publish(1, 1, 9);
    let consumer = world.subscribe(1, Some("s"), Start::Earliest, (0, 0));
    world.commit_all();
    world.tell(Event::Closed(consumer));
    full(&mut world);
    world.commit_all();
    let again = world.subscribe(2, Some("s"), Start::Earliest, ALL);
    let state = world.subscribed(again).unwrap();
    assert_eq!((state.start, state.log_start, state.skipped), (Offset(1), Offset(1), 1));
    assert_eq!(world.delivered_to(again), 9);
    let reader = world.subscribe(3, None, Start::Offset(Offset(0)), ALL);
    assert_eq!(world.subscribed(reader).map(|state| state.skipped), Ok(1));
}

#[test]
fn a_deleted_subscription_closes_its_consumer_and_holds_nothing() {
    let mut world = world(Overflow::Backpressure);
    world.publish(1, 0, 1);
    let consumer = world.subscribe(1, Some("s"), Start::Earliest, ALL);
    world.commit_all();
    world.tell(Event::DeleteSubscription(Name::new("s").unwrap(), Ticket(1)));
    world.tell(Event::DeleteSubscription(Name::new("t").unwrap(), Ticket(2)));
    world.commit_all();
    assert!(world.core.state().subscriptions.floor().is_none());
    let seen = |wanted: fn(&Effect<u64>) -> bool| world.other.iter().any(wanted);
    assert!(seen(|effect| matches!(effect, Effect::Deleted(Ticket(1), Ok(true)))));
    assert!(seen(|effect| matches!(effect, Effect::Deleted(Ticket(2), Ok(false)))));
    assert!(world.other.iter().any(|effect| {
        matches!(effect, Effect::Close(id, SubscribeRefusal::SubscriptionDeleted) if *id == consumer)
    }));
}

#[derive(Debug, Clone)]
enum Step {
    Publish { producer: u64, records: u32 },
    Repeat { producer: u64, back: u64 },
    Commit,
    Refuse { unknown: bool },
    Tick,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1u64..4, 1u32..4).prop_map(|(producer, records)| Step::Publish { producer, records }),
        2 => (1u64..4, 0u64..4).prop_map(|(producer, back)| Step::Repeat { producer, back }),
        5 => Just(Step::Commit),
        1 => any::<bool>().prop_map(|unknown| Step::Refuse { unknown }),
        1 => Just(Step::Tick),
    ]
}

proptest! {
    /// Whatever is committed, lost or voided: every publish is answered once, what is called
    /// stored is in the log where it was said, and each producer's records are in the log once,
    /// in order, without a gap.
    #[test]
    fn every_publish_is_answered_once_and_truly(steps in proptest::collection::vec(step(), 1..120)) {
        let mut world = world(Overflow::Backpressure);
        // A publisher that obeys: after a refusal it goes on behind what is stored.
        let mut next: BTreeMap<u64, u64> = BTreeMap::new();
        let mut sent: BTreeMap<u64, (u64, u64, u32)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Publish { producer, records } => {
                    let base = *next.get(&producer).unwrap_or(&0);
                    let reply = world.publish(producer, base, records);
                    sent.insert(reply, (producer, base, records));
                    next.insert(producer, base + u64::from(records));
                }
                Step::Repeat { producer, back } => {
                    let mine = |(_, (of, ..)): &(&u64, &(u64, u64, u32))| *of == producer;
                    let found = sent.iter().rev().filter(mine).nth(back as usize);
                    let Some((_, (_, base, records))) = found.map(|(r, s)| (*r, *s)) else { continue };
                    let reply = world.publish(producer, base, records);
                    sent.insert(reply, (producer, base, records));
                }
                Step::Commit => world.commit(),
                Step::Refuse { unknown } => world.refuse(unknown),
                Step::Tick => world.tell(Event::Tick),
            }
            for (reply, (producer, ..)) in &sent {
                if let Some(Answer::Refused(_)) = world.answers.get(reply) {
                    let stored = stored_next(&world, *producer);
                    let resume = next.entry(*producer).or_default();
                    *resume = (*resume).min(stored);
                }
            }
        }
        world.commit_all();
        prop_assert_eq!(world.answers.len() as u64, world.next_reply);
        check_log(&world)?;
        for (reply, (producer, base, records)) in sent {
            let place = place_of(&world, producer, base, records);
            match &world.answers[&reply] {
                Answer::Stored(range) if range.base_offset == Offset(u64::MAX) => {
                    prop_assert!(range.duplicate && place.is_some());
                }
                Answer::Stored(range) => prop_assert_eq!(Some(range.base_offset), place),
                Answer::Refused(_) => {}
            }
        }
        let owed = world.core.proposing.owes();
        prop_assert!(!owed);
    }
}

fn stored_next(world: &World, producer: u64) -> u64 {
    let mine = |(header, _): &&(BatchHeader, Vec<Command>)| {
        header.batch_type == BatchType::Data && header.producer_id == ProducerId(producer)
    };
    let last = world.log.iter().rev().find(mine);
    last.map_or(0, |(header, _)| header.base_sequence.0 + u64::from(header.record_count))
}

fn place_of(world: &World, producer: u64, base: u64, records: u32) -> Option<Offset> {
    let end = base + u64::from(records);
    let data = world.log.iter().filter(|(header, _)| header.batch_type == BatchType::Data);
    let mut mine = data.filter(|(header, _)| header.producer_id == ProducerId(producer));
    let holds = |header: &BatchHeader| {
        let first = header.base_sequence.0;
        first <= base && base < first + u64::from(header.record_count)
    };
    let (header, _) = mine.find(|(header, _)| holds(header))?;
    let place = Offset(header.base_offset.0 + base - header.base_sequence.0);
    (end <= stored_next(world, producer)).then_some(place)
}

fn check_log(world: &World) -> Result<(), TestCaseError> {
    let mut next: BTreeMap<ProducerId, u64> = BTreeMap::new();
    let mut log_end = 0;
    for (header, _) in world.log.iter().filter(|(h, _)| h.batch_type == BatchType::Data) {
        let expected = next.entry(header.producer_id).or_default();
        prop_assert_eq!(header.base_sequence.0, *expected);
        *expected += u64::from(header.record_count);
        prop_assert_eq!(header.base_offset.0, log_end);
        log_end += u64::from(header.record_count);
    }
    Ok(())
}
