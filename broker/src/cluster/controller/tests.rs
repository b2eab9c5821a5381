//! A controller against the real metadata state and groups that do what they are told.

use super::*;
use crate::replication::metadata::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use tokio::time::Duration;
use weir_protocol::frame::{Durability, Overflow};
use weir_protocol::types::{Name, TopicId};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// The metadata of a cluster whose groups follow at once.
struct World {
    state: State,
    leaders: BTreeSet<ReplicaId>,
    reachable: BTreeSet<BrokerId>,
    uuids: u128,
}

impl World {
    /// One broker for each rack number.
    fn new(racks: &[u8]) -> Self {
        let mut world = Self {
            state: State::default(),
            leaders: BTreeSet::new(),
            reachable: BTreeSet::new(),
            uuids: 0,
        };
        world.apply(&Command::Form { cluster: 7, broker: FOUNDER });
        world.apply(&Command::RaiseGate { gate: GATE_CLUSTER });
        for rack in racks {
            world.join(*rack);
        }
        world
    }

    fn apply(&mut self, command: &Command) -> Change {
        let outcome = self.state.apply(command);
        outcome.unwrap_or_else(|refusal| panic!("{command:?}: {refusal}"))
    }

    fn join(&mut self, rack: u8) -> BrokerId {
        let first = self.state.catalog().brokers[&FOUNDER].facts.is_none();
        let token = self.state.catalog().brokers.len() as u128 + u128::from(!first);
        let facts = BrokerFacts {
            token,
            instance: 1,
            gate: GATE_HERE,
            name: name("b"),
            peer: Address::new("h:1").unwrap(),
            client: Address::new("h:2").unwrap(),
            rack: name(&format!("r{rack}")),
        };
        let up = Command::BrokerUp { broker: first.then_some(FOUNDER), facts };
        let Change::BrokerUp(broker) = self.apply(&up) else { unreachable!() };
        self.reachable.insert(broker);
        broker
    }

    fn catalog(&self) -> &Catalog {
        self.state.catalog()
    }

    fn partitions(&self) -> Vec<Partition> {
        self.catalog().partitions().map(|(_, partition)| partition.clone()).collect()
    }

    /// Creates a topic whose first leaders are the preferred ones.
    fn create(&mut self, topic: &str, partitions: u128, replicas: u8) -> Result<(), TooFewBrokers> {
        let uuids = self.uuids + 1..=self.uuids + partitions;
        self.uuids += partitions;
        let placed = Seats::of(self.state.catalog(), |_| true).place(replicas, uuids)?;
        self.create_on(topic, placed);
        Ok(())
    }

    fn create_on(&mut self, topic: &str, partitions: Vec<NewPartition>) {
        let settings = Settings {
            durability: Durability::Fsync,
            overflow: Overflow::Reject,
            max_bytes: 1 << 30,
            max_age_ms: 0,
        };
        let name = name(topic);
        let create = Command::CreateTopic { name, settings, created_ms: 1, partitions };
        let Change::Created(topic) = self.apply(&create) else { unreachable!() };
        let replicas: Vec<_> = topic.partitions.iter().map(|p| p.preferred).collect();
        self.leaders.extend(&replicas);
        self.apply(&Command::NoteFormed { replicas });
    }

    fn drain(&mut self, broker: BrokerId) {
        self.apply(&Command::SetStanding { broker, standing: Standing::Draining });
    }

    fn decide(&self, transfers: usize) -> Vec<Order> {
        let (leaders, reachable) = (&self.leaders, &self.reachable);
        decide(&View { catalog: self.catalog(), leaders, reachable }, transfers)
    }

    /// Carries out one round of orders; every one of them must be accepted.
    fn round(&mut self, transfers: usize) -> Vec<Order> {
        let orders = self.decide(transfers);
        for order in &orders {
            match order {
                Order::Propose(command) => drop(self.apply(command)),
                Order::Transfer { from, to } => {
                    assert!(self.leaders.remove(from), "{from} does not lead");
                    self.leaders.insert(*to);
                }
            }
        }
        self.follow();
        orders
    }

    /// What groups and whoever carries moves out would do.
    fn follow(&mut self) {
        for (joins, moving) in self.catalog().moves.clone() {
            for step in [Step::Ready, Step::Voter] {
                self.apply(&Command::StepReplica { replica: joins, step });
            }
            if let Some(replica) = moving.replaces {
                self.apply(&Command::StepReplica { replica, step: Step::Leaving });
            }
        }
        for partition in self.partitions() {
            for leaving in partition.replicas.iter().filter(|p| p.stage == Stage::Leaving) {
                if self.leaders.remove(&leaving.replica) {
                    self.leaders.extend(partition.voters().map(|voter| voter.replica).next());
                }
                self.apply(&Command::StepReplica { replica: leaving.replica, step: Step::Gone });
            }
        }
    }

    fn settle(&mut self) {
        for _ in 0..2_000 {
            if self.round(usize::MAX).is_empty() {
                return;
            }
        }
        panic!("orders never end: {:?}", self.decide(1));
    }

    fn count(&self, of: impl Fn(&Partition) -> Vec<BrokerId>) -> BTreeMap<BrokerId, usize> {
        let mut counts: BTreeMap<_, _> = self.catalog().active().map(|card| (card.id, 0)).collect();
        for broker in self.partitions().iter().flat_map(of) {
            *counts.entry(broker).or_default() += 1;
        }
        counts
    }

    fn homes(&self) -> BTreeMap<ReplicaId, BrokerId> {
        let partitions = self.partitions();
        let placed = partitions.iter().flat_map(|partition| &partition.replicas);
        placed.map(|placement| (placement.replica, placement.broker)).collect()
    }

    fn held(&self) -> BTreeMap<BrokerId, usize> {
        self.count(|partition| partition.replicas.iter().map(|here| here.broker).collect())
    }

    fn preferred(&self) -> BTreeMap<BrokerId, usize> {
        self.count(|partition| vec![partition.replica(partition.preferred).unwrap().broker])
    }

    /// No two replicas share a broker, and no rack has two more of them than another with room.
    fn check_spread(&self) {
        for partition in self.partitions() {
            let homes: BTreeSet<_> = partition.replicas.iter().map(|here| here.broker).collect();
            assert_eq!(homes.len(), partition.replicas.len(), "{partition:?}");
            let mut used: BTreeMap<_, usize> = BTreeMap::new();
            let mut room = BTreeSet::new();
            for card in self.catalog().active() {
                *used.entry(card.rack()).or_default() += usize::from(homes.contains(&card.id));
                if !homes.contains(&card.id) {
                    room.insert(card.rack());
                }
            }
            let most = used.values().max().unwrap();
            let roomy = room.iter().map(|rack| used[rack]).min().unwrap_or(*most);
            assert!(*most <= roomy + 1, "{partition:?}: {used:?}");
        }
    }
}

fn unevenness(counts: &BTreeMap<BrokerId, usize>) -> usize {
    counts.values().max().unwrap() - counts.values().min().unwrap()
}

fn racks() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(0u8..4, 1..9)
}

fn replicas() -> impl Strategy<Value = u8> {
    proptest::sample::select(REPLICA_COUNTS.to_vec())
}

#[test]
fn too_few_brokers_are_told_by_both_numbers() {
    let mut world = World::new(&[0, 1]);
    let few = world.create("t", 1, 3).unwrap_err();
    assert_eq!(few.to_string(), "3 replicas need as many brokers, and 2 can be used");
}

#[test]
fn a_lost_replica_is_replaced_and_nobody_left_is_the_operators() {
    let mut world = World::new(&[0, 1, 2]);
    world.create("t", 1, 3).unwrap();
    let lose = |replica| Command::LoseReplica { replica, reason: LossReason::Empty };
    let partition = world.partitions().remove(0);
    let lost = partition.replicas[0];
    world.apply(&lose(lost.replica));
    world.settle();
    let healed = world.partitions().remove(0);
    assert_eq!(healed.voters().count(), 3);
    assert!(healed.replica(lost.replica).is_none());
    assert!(healed.voters().any(|voter| voter.broker == lost.broker), "on the same broker");
    for placement in &healed.replicas {
        world.apply(&lose(placement.replica));
    }
    assert_eq!(world.decide(1), []);
}

#[test]
fn a_replica_that_is_lost_while_it_joins_makes_room_for_another() {
    let mut world = World::new(&[0, 1, 2, 3]);
    world.create("t", 1, 3).unwrap();
    world.settle();
    let old = world.partitions()[0].replicas[0];
    world.drain(old.broker);
    let orders = world.decide(0);
    let add = orders.iter().find_map(|order| match order {
        Order::Propose(add @ Command::AddReplica { .. }) => Some(add.clone()),
        _ => None,
    });
    let Change::Placed(joins) = world.apply(&add.unwrap()) else { unreachable!() };
    let replica = joins.replica;
    world.apply(&Command::LoseReplica { replica, reason: LossReason::Damaged });
    let leaves = Command::StepReplica { replica, step: Step::Leaving };
    assert!(world.decide(0).contains(&Order::Propose(leaves.clone())));
    world.apply(&leaves);
    world.apply(&Command::StepReplica { replica, step: Step::Gone });
    assert!(world.catalog().moves.is_empty());
    world.settle();
    let partition = world.partitions().remove(0);
    assert!(partition.replica(old.replica).is_none() && partition.replica(replica).is_none());
    assert_eq!(partition.voters().count(), 3);
}

#[test]
fn a_topic_gets_the_replicas_it_shall_have_and_loses_those_too_many() {
    let mut world = World::new(&[0, 0, 1, 1, 2]);
    world.create("t", 4, 1).unwrap();
    for (revision, replicas) in [(1, 5), (2, 3), (3, 1)] {
        let (topic, revision) = (TopicId(1), TopicRevision(revision));
        world.apply(&Command::SetReplicas { topic, revision, replicas });
        world.settle();
        assert!(world.partitions().iter().all(|p| p.replicas.len() == usize::from(replicas)));
        world.check_spread();
    }
}

#[test]
fn a_lost_replica_that_is_not_missed_only_goes() {
    let mut world = World::new(&[0, 1, 2, 3]);
    world.create("t", 1, 3).unwrap();
    world.settle();
    let lost = world.partitions()[0].replicas[2].replica;
    world.apply(&Command::LoseReplica { replica: lost, reason: LossReason::GivenUp });
    let (topic, revision) = (TopicId(1), TopicRevision(1));
    world.apply(&Command::SetReplicas { topic, revision, replicas: 1 });
    let goes = Command::StepReplica { replica: lost, step: Step::Leaving };
    assert_eq!(world.round(0), [Order::Propose(goes)]);
    world.settle();
    assert_eq!(world.partitions()[0].replicas.len(), 1);
}

#[test]
fn what_is_lost_waits_for_its_turn_and_is_not_added_twice() {
    let mut world = World::new(&[0, 0, 0]);
    world.create("t", 3, 3).unwrap();
    world.settle();
    world.join(0);
    for partition in world.partitions() {
        let lost = partition.replicas.iter().find(|here| here.broker == BrokerId(3)).unwrap();
        let (replica, reason) = (lost.replica, LossReason::Empty);
        world.apply(&Command::LoseReplica { replica, reason });
    }
    let orders = world.decide(0);
    let adds = orders.iter().filter_map(|order| match order {
        Order::Propose(Command::AddReplica { replaces, .. }) => Some(replaces.is_some()),
        _ => None,
    });
    assert_eq!(adds.collect::<Vec<_>>(), [true, true], "one to each broker: {orders:?}");
}

#[test]
fn those_that_go_leave_racks_evenly_used_and_brokers_that_drain_empty() {
    let mut world = World::new(&[0, 0, 0, 1, 2, 3]);
    let brokers = (1..=5).map(BrokerId).collect();
    world.create_on("t", vec![NewPartition { uuid: 1, brokers }]);
    world.drain(BrokerId(5));
    let (topic, revision) = (TopicId(1), TopicRevision(1));
    world.apply(&Command::SetReplicas { topic, revision, replicas: 3 });
    let left: Vec<_> = (0..2).flat_map(|_| world.round(0)).collect();
    let left = left.iter().filter(|order| {
        matches!(order, Order::Propose(Command::StepReplica { step: Step::Leaving, .. }))
    });
    assert_eq!(left.count(), 2);
    let homes: Vec<_> = world.partitions()[0].replicas.iter().map(|here| here.broker.0).collect();
    assert_eq!(homes, [1, 2, 4], "the preferred one stays");
}

#[test]
fn a_gate_is_raised_when_all_brokers_read_it_and_copies_of_the_metadata_are_made() {
    let world = World::new(&[0, 0]);
    assert_eq!(world.decide(0), [Order::Propose(Command::JoinMetadata { broker: BrokerId(2) })]);
    let mut alone = State::default();
    alone.apply(&Command::Form { cluster: 7, broker: FOUNDER }).unwrap();
    let view =
        View { catalog: alone.catalog(), leaders: &BTreeSet::new(), reachable: &[FOUNDER].into() };
    assert_eq!(decide(&view, 1), [], "before its gate nobody orders anything");
}

#[test]
fn who_drains_hands_over_first_and_within_the_limit() {
    let mut world = World::new(&[0, 1, 2, 3]);
    world.create("t", 40, 3).unwrap();
    world.settle();
    // Others shall change their leader too, and come first in the catalog.
    for partition in &world.partitions()[..20] {
        let preferred = partition.replica(partition.preferred).unwrap();
        let other = partition.voters().find(|voter| voter.replica != preferred.replica).unwrap();
        if preferred.broker != BrokerId(2) && other.broker != BrokerId(2) {
            world.leaders.remove(&preferred.replica);
            world.leaders.insert(other.replica);
        }
    }
    world.drain(BrokerId(2));
    let drained = world.homes();
    world.round(0);
    assert!(!world.preferred().contains_key(&BrokerId(2)), "somebody else is preferred at once");
    assert!(unevenness(&world.preferred()) <= 1);
    let orders = world.decide(3);
    let handed = orders.iter().filter_map(|order| match order {
        Order::Transfer { from, to } => Some((drained[from], drained.get(to))),
        Order::Propose(_) => None,
    });
    let handed: Vec<_> = handed.collect();
    assert_eq!(handed.len(), 3);
    assert!(handed.iter().all(|(from, to)| *from == BrokerId(2) && *to != Some(&BrokerId(2))));
    world.settle();
    assert_eq!(world.held().get(&BrokerId(2)), None);
    let copies = &world.catalog().metadata;
    let replica = copies.iter().find(|copy| copy.broker == BrokerId(2)).unwrap().replica;
    world.apply(&Command::StepMetadata { replica, step: MetadataStep::Gone });
    world.apply(&Command::RemoveBroker { broker: BrokerId(2) });
}

#[test]
fn who_drains_hands_over_to_another_while_the_preferred_one_is_silent() {
    let mut world = World::new(&[0, 1, 2]);
    world.create("t", 1, 3).unwrap();
    world.settle();
    let partition = world.partitions().remove(0);
    let preferred = *partition.replica(partition.preferred).unwrap();
    let mut others = partition.voters().filter(|voter| voter.replica != preferred.replica);
    let (leads, third) = (others.next().unwrap(), others.next().unwrap());
    world.leaders = [leads.replica].into();
    world.reachable.remove(&preferred.broker);
    assert_eq!(world.decide(1), []);
    world.drain(leads.broker);
    let transfer = Order::Transfer { from: leads.replica, to: third.replica };
    assert_eq!(world.decide(1), std::slice::from_ref(&transfer));
    // Where that one drains too, a round later, to whom is preferred then.
    world.drain(preferred.broker);
    let (topic, replica) = (TopicId(1), third.replica);
    let prefer = Command::Prefer { topic, partition: partition.id, replica };
    assert_eq!(world.round(1), [Order::Propose(prefer)]);
    assert_eq!(world.decide(1), [transfer]);
}

#[test]
fn nobody_is_preferred_or_handed_over_to_who_was_not_heard_of() {
    let mut world = World::new(&[0, 1, 2]);
    world.create("t", 6, 3).unwrap();
    world.settle();
    world.reachable.remove(&BrokerId(3));
    assert_eq!(world.decide(usize::MAX), [], "it may come back");
    // Its leaderships went elsewhere, and stay there until it does.
    for partition in world.partitions() {
        let preferred = partition.replica(partition.preferred).unwrap();
        if preferred.broker == BrokerId(3) {
            world.leaders.remove(&preferred.replica);
            world
                .leaders
                .extend(partition.voters().map(|v| v.replica).find(|r| *r != preferred.replica));
        }
    }
    assert_eq!(world.decide(usize::MAX), []);
    world.reachable.insert(BrokerId(3));
    assert_eq!(world.decide(usize::MAX).len(), 2);
    world.settle();
    assert_eq!(unevenness(&world.preferred()), 0);
}

#[test]
fn transfers_keep_their_pace() {
    let mut pace = TransferPace::default();
    let transfer = Order::Transfer { from: ReplicaId(1), to: ReplicaId(2) };
    let at = Duration::from_secs;
    assert_eq!(pace.allowed(at(0), 1_000), 50);
    assert_eq!(pace.allowed(at(0), 3), 1);
    pace.note(at(0), &[Order::Propose(Command::RaiseGate { gate: 1 })]);
    assert_eq!(pace.allowed(at(1), 100), 5, "nothing was handed over");
    pace.note(at(1), &[transfer]);
    assert_eq!(pace.allowed(at(10), 100), 0);
    assert_eq!(pace.allowed(at(11), 100), 5);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn new_replicas_are_apart_in_brokers_and_racks(
        racks in racks(), replicas in replicas(), partitions in 1u128..12,
    ) {
        let mut world = World::new(&racks);
        match world.create("t", partitions, replicas) {
            Ok(()) => world.check_spread(),
            Err(few) => {
                prop_assert_eq!((few.wanted, few.usable), (usize::from(replicas), racks.len()));
                prop_assert!(few.usable < few.wanted);
            }
        }
    }

    /// Where racks do not matter, no broker holds two more than another.
    #[test]
    fn new_replicas_are_even(
        brokers in 1u8..9, apart in any::<bool>(), replicas in replicas(), topics in 1u8..4,
    ) {
        let racks: Vec<u8> = (0..brokers).map(|broker| if apart { broker } else { 0 }).collect();
        let mut world = World::new(&racks);
        for topic in 0..topics {
            if world.create(&format!("t{topic}"), 7, replicas).is_ok() {
                prop_assert!(unevenness(&world.held()) <= 1, "{:?}", world.held());
            }
        }
        world.settle();
        prop_assert!(unevenness(&world.preferred()) <= 1, "{:?}", world.preferred());
    }

    /// However brokers come and drain, orders end, and then all is as it shall be.
    #[test]
    fn orders_end_and_leave_nothing_to_be_done(
        racks in racks(),
        replicas in proptest::collection::vec(replicas(), 1..4),
        joining in proptest::collection::vec(0u8..4, 0..3),
        draining in proptest::collection::vec(1u64..9, 0..2),
    ) {
        let mut world = World::new(&racks);
        for (number, replicas) in replicas.iter().enumerate() {
            let _ = world.create(&format!("t{number}"), 5, *replicas);
        }
        for rack in joining {
            world.join(rack);
        }
        let most = world.partitions().iter().map(|p| p.replicas.len()).max().unwrap_or(1);
        for broker in draining.into_iter().map(BrokerId) {
            if world.catalog().is_active(broker) && world.catalog().active().count() > most {
                world.drain(broker);
            }
        }
        world.settle();
        world.check_spread();
        let active: BTreeSet<_> = world.catalog().active().map(|card| card.id).collect();
        prop_assert!(world.held().keys().all(|broker| active.contains(broker)));
        for partition in world.partitions() {
            prop_assert!(world.leaders.contains(&partition.preferred), "{:?}", partition);
        }
    }

    /// No other choice of preferred leaders is more even, whatever the placement.
    #[test]
    fn preferences_end_as_even_as_they_can_be(
        placed in proptest::collection::vec((0usize..4, 0usize..4), 1..7),
    ) {
        let mut world = World::new(&[0, 0, 0, 0]);
        for (number, (skipped, first)) in placed.iter().enumerate() {
            let mut brokers: Vec<_> = (1..=4).map(BrokerId).collect();
            brokers.remove(*skipped);
            let at = *first % 3;
            brokers.swap(0, at);
            let uuid = number as u128 + 1;
            world.create_on(&format!("t{number}"), vec![NewPartition { uuid, brokers }]);
        }
        let squares = |counts: &BTreeMap<BrokerId, usize>| -> usize {
            counts.values().map(|count| count * count).sum()
        };
        loop {
            let view = View {
                catalog: world.state.catalog(),
                leaders: &world.leaders,
                reachable: &world.reachable,
            };
            let commands = balance::preferences(&view);
            if commands.is_empty() {
                break;
            }
            let before = squares(&world.preferred());
            commands.iter().for_each(|command| drop(world.apply(command)));
            prop_assert!(squares(&world.preferred()) < before);
        }
        let partitions = world.partitions();
        let choices = 3usize.pow(partitions.len() as u32);
        let best = (0..choices).map(|choice| {
            let mut counts: BTreeMap<BrokerId, usize> = BTreeMap::new();
            for (number, partition) in partitions.iter().enumerate() {
                let voter = choice / 3usize.pow(number as u32) % 3;
                *counts.entry(partition.replicas[voter].broker).or_default() += 1;
            }
            squares(&counts)
        });
        prop_assert_eq!(squares(&world.preferred()), best.min().unwrap());
    }

    /// What a round moves stays within its limits, and no two moves share a pair of brokers.
    #[test]
    fn a_round_stays_within_its_limits(racks in racks(), limit in 0usize..6) {
        let mut world = World::new(&racks);
        world.create("t", 60, 1).unwrap();
        world.join(0);
        world.join(1);
        world.drain(FOUNDER);
        let at = world.homes();
        let orders = world.decide(limit);
        let mut pairs = BTreeSet::new();
        for order in &orders {
            if let Order::Propose(Command::AddReplica { broker, replaces: Some(old), .. }) = order {
                prop_assert!(pairs.insert((at[old], *broker)), "{:?}", orders);
            }
        }
        let transfers = orders.iter().filter(|order| matches!(order, Order::Transfer { .. }));
        prop_assert!(transfers.count() <= limit);
    }
}
