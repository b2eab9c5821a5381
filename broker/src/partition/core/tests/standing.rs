//! The core of a replica among others: it leads, follows, waits for a leader, and leads again.

use super::*;
use crate::partition::limits::{LEADER_PATIENCE, REACH_PATIENCE};
use weir_protocol::error_code::{ErrorCode, Outcome};
use weir_protocol::types::{BrokerId, ReplicaId};

/// Who leads elsewhere, here always.
const OTHER: Hint = Some((BrokerId(2), Term(50)));

fn group() -> World {
    let mut world = world_of(Overflow::Backpressure);
    world.sole_voter = false;
    world
}

impl World {
    fn follow(&mut self) {
        let role = Role::Follower { leader: Some(ReplicaId(9)) };
        let seen = Seen { leader: Some(OTHER), ..self.seen(role, None) };
        self.tell(Event::Replica(seen));
    }

    fn nobody_leads(&mut self) {
        self.tell(Event::Replica(self.seen(Role::Follower { leader: None }, None)));
    }

    /// Everything that waits for somebody who leads.
    fn ask_for_all(&mut self) -> u64 {
        let reply = self.publish(1, 0, 1);
        self.tell(Event::OpenPublisher(Some((ProducerId(1), 0)), Ticket(1)));
        self.subscribe(1, Some("s"), Start::Earliest, ALL);
        self.subscribe(2, None, Start::Earliest, ALL);
        self.tell(Event::DeleteSubscription(Name::new("gone").unwrap(), Ticket(2)));
        reply
    }

    /// All of it was refused, and names this leader.
    fn all_sent_to(&mut self, reply: u64, hint: Hint) {
        assert_eq!(self.refusal(reply), &PublishRefusal::NotLeader(hint));
        let told = self.refusal(reply).to_peer();
        assert_eq!((told.code, told.outcome), (ErrorCode::NotLeader.number(), Outcome::NotStored));
        assert_eq!(told.leader(), hint);
        let not_leader = SubscribeRefusal::NotLeader(hint);
        for serial in [1, 2] {
            let id = ConsumerId { connection: 1, serial };
            assert_eq!(self.subscribed(id), Err(not_leader.clone()));
        }
        let opened = self.other.iter().any(|effect| {
            matches!(effect, Effect::Opened(Ticket(1), Err(PublishRefusal::NotLeader(to)))
                if *to == hint)
        });
        let deleted = self.other.iter().any(
            |effect| matches!(effect, Effect::Deleted(Ticket(2), Err(why)) if *why == not_leader),
        );
        assert!(opened && deleted, "{:?}", self.other);
        assert!(!self.core.proposing.owes());
    }

    fn closed(&self, id: ConsumerId) -> Option<&SubscribeRefusal> {
        self.other.iter().find_map(|effect| match effect {
            Effect::Close(of, why) if *of == id => Some(why),
            _ => None,
        })
    }

    fn departs(&self) -> usize {
        self.other.iter().filter(|effect| matches!(effect, Effect::Depart(_))).count()
    }

    fn reader(&mut self, serial: u32, start: Start, needs: Needs) -> ConsumerId {
        let id = ConsumerId { connection: 1, serial };
        let registers =
            Registers { limit_bytes: u64::MAX, limit_messages: u64::MAX, lane_free: true };
        self.registers.insert(id, registers);
        let arriving = Arriving { id, subscription: None, start, needs, registers };
        self.tell(Event::Subscribe(arriving));
        id
    }

    fn is_answered(&self, id: ConsumerId) -> bool {
        self.other.iter().any(|effect| matches!(effect, Effect::Subscribed(to, _) if *to == id))
    }

    /// The oldest proposal is committed by whoever leads now; nothing is said of who that is.
    fn land(&mut self) {
        let Some(batches) = self.sent.pop_front() else { return };
        let (index, count) = (self.index(), batches.len());
        for (at, NewBatch { mut header, body }) in batches.into_iter().enumerate() {
            (header.index, header.term) = (index, self.term);
            header.attrs = u16::from(at + 1 == count);
            header.base_offset = self.log_end();
            if !self.in_turn(&header) && header.batch_type == BatchType::Data {
                header.batch_type = BatchType::Void;
            }
            let commands = match header.batch_type {
                BatchType::Control => command::decode(&body[0][..body[0].len() - 4]).unwrap(),
                _ => Vec::new(),
            };
            self.log.push((header, commands.clone()));
            let mut effects = Vec::new();
            self.core.handle(Event::Applied { header, commands }, self.now, &mut effects);
            effects.into_iter().for_each(|effect| self.obey(effect));
        }
    }

    /// A record of somebody else is committed, and shown.
    fn replicate(&mut self, records: u32) {
        let mut header = BatchHeader::empty(BatchType::Data);
        (header.index, header.term, header.attrs) = (self.index(), Term(50), 1);
        (header.base_offset, header.record_count) = (self.log_end(), records);
        header.body_len = 100;
        self.log.push((header, Vec::new()));
        self.tell(Event::Applied { header, commands: Vec::new() });
    }

    /// Leads in a newer term than any before; what the old one left in flight is settled.
    fn lead_again(&mut self) {
        self.sent.clear();
        self.term = Term(self.term.0 + 1);
        self.turn = (0, Some(0));
        self.lead();
    }
}

const ANYWHERE: Needs = Needs { any_replica: true, reach: Offset(0), resume: Offset(0), epoch: 0 };

#[test]
fn a_follower_sends_whoever_needs_a_leader_there_at_once() {
    let mut world = group();
    world.follow();
    let reply = world.ask_for_all();
    world.all_sent_to(reply, OTHER);
    assert_eq!(world.blocked, 0);
}

#[test]
fn an_election_is_waited_for_for_a_second_and_no_longer() {
    let mut world = group();
    world.follow();
    world.nobody_leads();
    let began = world.now;
    let reply = world.ask_for_all();
    let waits = |world: &World| !world.answers.contains_key(&reply);
    world.now = began + LEADER_PATIENCE - Duration::from_millis(1);
    world.tell(Event::Tick);
    // It goes on to be the same outage, however often the replica moves.
    world.nobody_leads();
    assert!(waits(&world));
    assert_eq!(world.core.due(world.now), Some(began + LEADER_PATIENCE));
    world.now = began + LEADER_PATIENCE;
    world.tell(Event::Tick);
    world.all_sent_to(reply, None);
    assert_eq!(world.core.due(world.now), None);
    // Who comes later waits no second of its own.
    world.other.clear();
    let reply = world.ask_for_all();
    world.all_sent_to(reply, None);
    world.nobody_leads();
    let again = world.publish(1, 0, 1);
    assert_eq!(world.refusal(again), &PublishRefusal::NotLeader(None));
}

#[test]
fn whoever_asks_one_who_is_cut_off_waits_for_no_election_there() {
    let mut world = group();
    world.lead();
    let in_flight = world.publish(1, 0, 1);
    let seen = world.seen(Role::Follower { leader: None }, None);
    world.tell(Event::Replica(Seen { severed: true, ..seen }));
    let unknown = PublishRefusal::LeaderLost(StoredOutcome::Unknown);
    assert_eq!(world.refusal(in_flight), &unknown);
    assert_eq!(world.departs(), 1);
    let reply = world.ask_for_all();
    world.all_sent_to(reply, None);
    world.follow();
    assert_eq!(world.departs(), 1, "whoever was sent away is so once");
}

#[test]
fn whoever_waits_for_an_election_is_served_by_the_winner() {
    let mut world = group();
    world.nobody_leads();
    let reply = world.ask_for_all();
    world.lead();
    world.commit_all();
    assert_eq!(world.stored(reply).base_offset, Offset(0));
    let opened = |effect: &Effect<u64>| matches!(effect, Effect::Opened(Ticket(1), Ok(_)));
    assert!(world.other.iter().any(opened));
    for serial in [1, 2] {
        let state = world.subscribed(ConsumerId { connection: 1, serial }).unwrap();
        assert_eq!(state.start, Offset(0));
    }
    let deleted = |effect: &Effect<u64>| matches!(effect, Effect::Deleted(Ticket(2), Ok(false)));
    assert!(world.other.iter().any(deleted));
    assert_eq!(world.departs(), 0);
}

#[test]
fn who_comes_to_a_leader_waits_until_a_majority_says_that_it_is_one() {
    let mut world = group();
    world.lead();
    world.subscribe(1, Some("s"), Start::Earliest, ALL);
    world.commit_all();
    world.proves = false;
    let durable = world.subscribe(2, Some("s"), Start::Earliest, ALL);
    let anywhere = world.reader(3, Start::Earliest, ANYWHERE);
    assert!(world.asks && !world.is_answered(durable) && world.is_answered(anywhere));
    // The answer to what was asked before it came is none for this one.
    let reader = world.subscribe(4, None, Start::Latest, ALL);
    let applied = world.core.state().applied;
    world.prove(Some(applied));
    assert!(world.subscribed(durable).is_ok() && !world.is_answered(reader));
    assert!(world.asks, "it is asked again for this one");
    world.prove(Some(Index(applied.0 + 1)));
    assert!(!world.is_answered(reader), "what was committed before is not in the state yet");
    world.publish(1, 0, 1);
    world.commit_all();
    assert_eq!(world.subscribed(reader).unwrap().start, Offset(1));
    assert!(!world.asks, "nobody waits");
}

#[test]
fn a_leader_that_nobody_confirms_lets_nobody_in_and_sends_them_away_in_time() {
    let mut world = group();
    world.lead();
    world.proves = false;
    let replaced = world.reader(1, Start::Earliest, Needs::default());
    world.prove(None);
    assert!(!world.asks, "another round would fail as well");
    world.now += TICK;
    world.tell(Event::Tick);
    assert!(world.asks);
    world.follow();
    assert_eq!(world.subscribed(replaced), Err(SubscribeRefusal::NotLeader(OTHER)));
    world.prove(None);
    world.lead_again();
    let unheard = world.reader(2, Start::Earliest, Needs::default());
    assert_eq!(world.core.due(world.now), Some(world.now + REACH_PATIENCE));
    world.now += REACH_PATIENCE;
    world.tell(Event::Tick);
    assert_eq!(world.subscribed(unheard), Err(SubscribeRefusal::NotLeader(None)));
}

#[test]
fn a_leader_that_is_replaced_answers_everything_and_sends_everybody_on() {
    let mut world = group();
    world.lead();
    let before = world.publish(1, 0, 2);
    world.commit_all();
    assert_eq!(world.stored(before).base_offset, Offset(0));
    let durable = world.subscribe(1, Some("s"), Start::Earliest, ALL);
    world.commit_all();
    assert_eq!(world.subscribed(durable).unwrap().term, world.term);
    let reader = world.subscribe(2, None, Start::Earliest, ALL);
    let anywhere = world.reader(3, Start::Earliest, ANYWHERE);
    world.settle(durable, 2, true);
    let in_flight = world.publish(1, 2, 1);
    let repeated = world.publish(1, 2, 1);
    let behind = world.publish(1, 3, 1);
    let waits = world.publish(1, 4, 1);

    world.follow();
    let unknown = PublishRefusal::LeaderLost(StoredOutcome::Unknown);
    assert_eq!(world.refusal(in_flight), &unknown);
    assert_eq!(world.refusal(repeated), &unknown, "it shares the fate of what it repeats");
    for later in [behind, waits] {
        let told = world.refusal(later).to_peer();
        let sent_on = [ErrorCode::NotLeader.number(), ErrorCode::LeaderLost.number()];
        assert!(sent_on.contains(&told.code), "{told:?}");
    }
    assert_eq!(world.closed(durable), Some(&SubscribeRefusal::NotLeader(OTHER)));
    assert_eq!(world.closed(reader), Some(&SubscribeRefusal::NotLeader(OTHER)));
    assert_eq!(world.closed(anywhere), None);
    assert_eq!(world.departs(), 1);
    assert!(!world.core.consuming.settles.are_under_way(), "the client settles again elsewhere");

    // The new leader has it in its log: nobody is told twice, and it is known as a duplicate.
    while !world.sent.is_empty() {
        world.land();
    }
    world.follow();
    assert_eq!(world.departs(), 1);
    let end = world.log_end();
    assert!(end > Offset(2), "something was in flight");
    assert_eq!(world.delivered_to(anywhere), end.0 as u32, "a reader goes on here");
    world.lead_again();
    let again = world.publish(1, 2, 1);
    assert!(world.stored(again).duplicate);
    assert_eq!(world.stored(again).base_offset, Offset(2));
}

#[test]
fn a_leader_that_hands_over_says_where_to_go_as_soon_as_it_knows() {
    let outcome = StoredOutcome::NotStored;
    let waits: fn(&mut World) = |world| {
        world.now += LEADER_PATIENCE;
        world.tell(Event::Tick);
    };
    for (then, told) in [
        (World::follow as fn(&mut World), PublishRefusal::NotLeader(OTHER)),
        (World::lead_again, PublishRefusal::LeaderLost(outcome)),
        (waits, PublishRefusal::NotLeader(None)),
    ] {
        let mut world = group();
        world.lead();
        let refused = world.publish(1, 0, 1);
        let BatchHeader { run, run_number: number, .. } = world.sent.pop_front().unwrap()[0].header;
        let term = world.term;
        world.refused = Some(Refused { term, run, number, outcome });
        let seen = world.seen(Role::Leader(term), None);
        world.tell(Event::Replica(Seen { hands_over: true, ..seen }));
        let behind = world.publish(1, 1, 1);
        assert!(world.answers.is_empty() && world.sent.is_empty(), "nothing is proposed any more");
        then(&mut world);
        assert_eq!(world.refusal(refused), &told);
        // Where this replica leads again, it is judged behind the one that was refused.
        let is_judged = matches!(told, PublishRefusal::LeaderLost(_));
        assert!(world.refusal(behind) == &told || is_judged);
        assert!(!world.core.proposing.owes());
    }
}

#[test]
fn a_follower_never_decides_what_the_log_may_hold() {
    let mut world = group();
    world.lead();
    world.publish(1, 0, 50);
    world.commit_all();
    let sealed = |last: u64, end: u64| retention::Sealed {
        last_index: Index(last),
        end_offset: Offset(end),
        bytes: 1 << 30,
        log_time_ms: 0,
    };
    let holds = || Event::Holds {
        sealed: vec![sealed(1, 10)],
        bytes: 3 << 30,
        held_from: Offset(0),
        wall_ms: WALL_MS,
    };
    world.subscribe(1, Some("s"), Start::Earliest, ALL);
    world.commit_all();
    world.tell(holds());
    assert_ne!(world.blocked, 0, "a leader holds publishers back");
    world.follow();
    assert_eq!(world.blocked, 0);
    world.tell(holds());
    world.tell(Event::Tick);
    assert_eq!(world.blocked, 0);
    assert!(world.sent.is_empty(), "and trims nothing");
    world.lead_again();
    assert_eq!(world.blocked, 0, "who leads looks for itself");
}

#[test]
fn a_replica_that_ended_among_others_sends_everybody_away() {
    let mut world = group();
    world.lead();
    let durable = world.subscribe(1, Some("s"), Start::Earliest, ALL);
    world.commit_all();
    world.tell(Event::Replica(world.seen(Role::Fenced(Fence::NoSpace), None)));
    assert_eq!(world.closed(durable), Some(&SubscribeRefusal::NotLeader(None)));
    let reply = world.publish(1, 0, 1);
    assert_eq!(world.refusal(reply), &PublishRefusal::NotLeader(None));
}

#[test]
fn a_replica_that_ended_alone_keeps_its_consumers() {
    let mut world = group();
    world.sole_voter = true;
    world.lead();
    let durable = world.subscribe(1, Some("s"), Start::Earliest, ALL);
    world.commit_all();
    world.tell(Event::Replica(world.seen(Role::Fenced(Fence::NoSpace), None)));
    world.now += 10 * LEADER_PATIENCE;
    world.tell(Event::Tick);
    assert_eq!(world.closed(durable), None);
    let reply = world.publish(1, 0, 1);
    assert_eq!(world.refusal(reply), &PublishRefusal::StorageLow);
    // It is opened again and calls an election that only it can win.
    world.nobody_leads();
    let waits = world.publish(1, 0, 1);
    world.now += 10 * LEADER_PATIENCE;
    world.tell(Event::Tick);
    assert!(!world.answers.contains_key(&waits));
    world.lead_again();
    world.commit_all();
    assert_eq!(world.stored(waits).base_offset, Offset(0));
    assert_eq!(world.closed(durable), None);
}

#[test]
fn a_replica_is_waited_for_until_it_reaches_what_was_asked_for() {
    let mut world = group();
    world.follow();
    world.replicate(5);
    let reached = world.reader(1, Start::Earliest, Needs { reach: Offset(5), ..ANYWHERE });
    assert_eq!(world.subscribed(reached).unwrap().high_watermark, Offset(5));
    assert_eq!(world.subscribed(reached).unwrap().term, Term(0), "it does not lead");
    assert_eq!(world.delivered_to(reached), 5);
    let waits = world.reader(2, Start::Latest, Needs { reach: Offset(6), ..ANYWHERE });
    let starts = world.reader(3, Start::Offset(Offset(7)), ANYWHERE);
    assert!(!world.is_answered(waits) && !world.is_answered(starts));
    world.replicate(1);
    assert_eq!(world.subscribed(waits).unwrap().start, Offset(6));
    assert_eq!(world.core.due(world.now), Some(world.now + REACH_PATIENCE));
    world.now += REACH_PATIENCE;
    world.tell(Event::Tick);
    let told = world.subscribed(starts).unwrap_err().to_peer();
    assert_eq!(told.code, ErrorCode::Behind.number());
    assert_eq!((told.observed, told.limit), (7, 6));
    assert_eq!(world.core.due(world.now), None);
    // The leader knows where the log ends.
    world.lead_again();
    let beyond = world.reader(4, Start::Offset(Offset(9)), ANYWHERE);
    let refused = world.subscribed(beyond).unwrap_err().to_peer();
    assert_eq!(refused.code, ErrorCode::OffsetOutOfRange.number());
    let gone = world.reader(5, Start::Latest, Needs { reach: Offset(9), ..ANYWHERE });
    world.tell(Event::Closed(gone));
    assert_eq!(world.core.due(world.now), None, "who is gone is not waited for");
}

#[test]
fn a_subscription_goes_on_where_its_consumer_stood() {
    let mut world = group();
    world.lead();
    world.publish(1, 0, 10);
    let first = world.subscribe(1, Some("s"), Start::Earliest, ALL);
    world.commit_all();
    world.settle(first, 4, true);
    world.commit_all();
    let start_at = |world: &mut World, serial: u32, resume: u64| {
        let id = ConsumerId { connection: 1, serial };
        let registers = world.registers[&first];
        world.registers.insert(id, registers);
        let needs = Needs { resume: Offset(resume), ..Needs::default() };
        let subscription = Some(Name::new("s").unwrap());
        let start = Start::Earliest;
        world.tell(Event::Subscribe(Arriving { id, subscription, start, needs, registers }));
        world.subscribed(id).unwrap().start
    };
    assert_eq!(start_at(&mut world, 2, 3), Offset(4), "what is settled does not come again");
    assert_eq!(start_at(&mut world, 3, 7), Offset(7));
    world.settle(ConsumerId { connection: 1, serial: 3 }, 6, true);
    world.commit_all();
    let subscription = world.core.state().subscriptions.find(&Name::new("s").unwrap()).unwrap();
    let cursor = world.core.state().subscriptions.by_id(subscription).unwrap().cursor;
    assert_eq!(cursor, Offset(6), "what it received elsewhere may be settled here");
    assert_eq!(start_at(&mut world, 4, 99), Offset(10), "not beyond the end");
}

#[test]
fn a_snapshot_takes_the_place_of_the_log() {
    let mut world = group();
    world.follow();
    world.replicate(5);
    let reader = world.reader(1, Start::Earliest, ANYWHERE);
    assert_eq!(world.delivered_to(reader), 5);
    let waits = world.reader(2, Start::Latest, Needs { reach: Offset(8), ..ANYWHERE });
    let mut state = State::new();
    (state.applied, state.high_watermark, state.log_start) = (Index(40), Offset(60), Offset(50));
    world.tell(Event::Replaced(Box::new(state)));
    // The log behind it.
    let mut header = BatchHeader::empty(BatchType::Data);
    (header.index, header.term, header.attrs) = (Index(41), Term(50), 1);
    (header.base_offset, header.record_count, header.body_len) = (Offset(60), 2, 100);
    world.log = vec![(header, Vec::new())];
    world.tell(Event::Applied { header, commands: Vec::new() });
    world.follow();
    assert_eq!(world.delivered_to(reader), 7, "it goes on where the log does");
    assert_eq!(world.subscribed(waits).unwrap().start, Offset(60));
    let earliest = world.reader(3, Start::Earliest, ANYWHERE);
    assert_eq!(world.subscribed(earliest).unwrap().start, Offset(60), "nothing below is here");
    assert!(world.other.iter().any(|effect| matches!(effect, Effect::Trimmed)));
}

#[derive(Debug, Clone)]
enum Turn {
    Publish { producer: u64 },
    Open,
    Delete,
    Subscribe { durable: bool, anywhere: bool, reach: u64 },
    Settle { confirm: bool },
    Commit,
    Follow,
    Nobody,
    Lead,
    Prove(bool),
    Wait(u64),
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        4 => (1u64..3).prop_map(|producer| Turn::Publish { producer }),
        1 => Just(Turn::Open),
        1 => Just(Turn::Delete),
        2 => (any::<bool>(), any::<bool>(), 0u64..12).prop_map(|(durable, anywhere, reach)| {
            Turn::Subscribe { durable, anywhere, reach }
        }),
        1 => any::<bool>().prop_map(|confirm| Turn::Settle { confirm }),
        4 => Just(Turn::Commit),
        1 => Just(Turn::Follow),
        1 => Just(Turn::Nobody),
        2 => Just(Turn::Lead),
        3 => any::<bool>().prop_map(Turn::Prove),
        2 => (0u64..700).prop_map(Turn::Wait),
    ]
}

/// What was asked, and how often each was answered.
#[derive(Default)]
struct Asked {
    tickets: u64,
    consumers: u32,
    /// By reply: producer and sequence.
    published: BTreeMap<u64, (u64, u64)>,
}

impl Asked {
    fn take(&mut self, turn: &Turn, world: &mut World) {
        match *turn {
            Turn::Publish { producer } => {
                let next = stored_next(world, producer) + in_flight(world, producer);
                let reply = world.publish(producer, next, 1);
                // Under each sequence once: what is refused is given up.
                self.published.retain(|_, published| *published != (producer, next));
                self.published.insert(reply, (producer, next));
            }
            Turn::Open => {
                self.tickets += 1;
                world.tell(Event::OpenPublisher(None, Ticket(self.tickets)));
            }
            Turn::Delete => {
                self.tickets += 1;
                let name = Name::new("s").unwrap();
                world.tell(Event::DeleteSubscription(name, Ticket(self.tickets)));
            }
            Turn::Subscribe { durable, anywhere, reach } => {
                self.consumers += 1;
                let id = ConsumerId { connection: 1, serial: self.consumers };
                let registers =
                    Registers { limit_bytes: u64::MAX, limit_messages: u64::MAX, lane_free: true };
                world.registers.insert(id, registers);
                let subscription = durable.then(|| Name::new("s").unwrap());
                let needs = Needs {
                    any_replica: anywhere,
                    reach: Offset(reach),
                    resume: Offset(0),
                    epoch: 0,
                };
                let start = Start::Earliest;
                let arriving = Arriving { id, subscription, start, needs, registers };
                world.tell(Event::Subscribe(arriving));
            }
            Turn::Settle { confirm } => {
                let id = ConsumerId { connection: 1, serial: self.consumers };
                if world.registers.contains_key(&id) {
                    let delivered = u64::from(world.delivered_to(id));
                    world.settle(id, delivered, confirm);
                }
            }
            Turn::Commit => world.land(),
            Turn::Follow => world.follow(),
            Turn::Nobody => world.nobody_leads(),
            Turn::Lead if world.core.leads() => world.lead(),
            Turn::Lead => world.lead_again(),
            Turn::Prove(leads) => {
                let applied = world.core.state().applied;
                world.prove(leads.then_some(applied));
            }
            Turn::Wait(ms) => {
                world.now += Duration::from_millis(ms);
                world.tell(Event::Tick);
            }
        }
    }
}

/// Records of a producer that are in flight.
fn in_flight(world: &World, producer: u64) -> u64 {
    let batches = world.sent.iter().flatten();
    let of = |batch: &&NewBatch| batch.header.producer_id == ProducerId(producer);
    batches.filter(of).map(|batch| u64::from(batch.header.record_count)).sum()
}

fn count(world: &World, mut is: impl FnMut(&Effect<u64>) -> bool) -> usize {
    world.other.iter().filter(|effect| is(effect)).count()
}

proptest! {
    /// Whatever the replica becomes, in whatever order: everybody is answered once; nobody waits
    /// for a leader longer than its patience; what is called not stored is not in the log.
    #[test]
    fn everybody_is_answered_once_whoever_leads(
        turns in proptest::collection::vec(turn(), 1..150),
    ) {
        let mut world = group();
        world.nobody_leads();
        world.proves = false;
        let mut asked = Asked::default();
        for turn in turns {
            asked.take(&turn, &mut world);
            if world.core.leader().is_elsewhere() {
                prop_assert!(!world.core.proposing.owes(), "{:?} left somebody waiting", turn);
                let settles = world.core.consuming.settles.are_under_way();
                prop_assert!(!settles && world.blocked == 0);
            }
            let due = world.core.due(world.now);
            let longest = REACH_PATIENCE.max(LEADER_PATIENCE);
            prop_assert!(due.is_none_or(|due| due <= world.now + longest));
        }
        // The end: somebody else leads, and time passes.
        world.follow();
        world.now += REACH_PATIENCE;
        world.tell(Event::Tick);
        prop_assert_eq!(world.answers.len() as u64, world.next_reply);
        for ticket in 1..=asked.tickets {
            let answered = count(&world, |effect| matches!(effect,
                Effect::Opened(of, _) | Effect::Deleted(of, _) if of.0 == ticket));
            prop_assert_eq!(answered, 1, "ticket {}", ticket);
        }
        for serial in 1..=asked.consumers {
            let id = ConsumerId { connection: 1, serial };
            let mut opened = 0;
            let answered = count(&world, |effect| match effect {
                Effect::Subscribed(to, result) if *to == id => {
                    opened += usize::from(result.is_ok());
                    true
                }
                _ => false,
            });
            let closed = count(&world, |effect| matches!(effect, Effect::Close(of, _) if *of == id));
            prop_assert_eq!(answered, 1, "consumer {}", serial);
            prop_assert!(closed <= opened, "consumer {}", serial);
        }
        for (reply, (producer, sequence)) in &asked.published {
            let Answer::Refused(refusal) = &world.answers[reply] else { continue };
            if refusal.to_peer().outcome == Outcome::NotStored {
                let place = place_of(&world, *producer, *sequence, 1);
                prop_assert_eq!(place, None, "{:?}", refusal);
            }
        }
    }
}
