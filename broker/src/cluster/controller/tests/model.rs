//! Whatever is interrupted, and wherever, the cluster ends as it shall be.

use super::world::{FAULTS, Fault};
use super::*;

/// Something that happens to a cluster at rest.
type Happens = fn(&mut World);

/// Every cluster that is interrupted, and how it begins.
fn stories() -> Vec<(&'static str, Vec<Happens>)> {
    vec![
        ("a broker drains", vec![|world| world.drain(BrokerId(1))]),
        (
            "one joins, another drains",
            vec![|world| {
                world.join(0);
                world.drain(BrokerId(2));
            }],
        ),
        (
            "more replicas, then one",
            vec![|world| world.set_replicas("t", 5), |world| world.set_replicas("t", 1)],
        ),
        (
            "a broker dies, then another",
            vec![
                |world| {
                    world.kill(BrokerId(2));
                    world.bury(BrokerId(2));
                },
                |world| {
                    world.kill(BrokerId(1));
                    world.bury(BrokerId(1));
                },
            ],
        ),
        (
            "a replica is lost",
            vec![|world| {
                let replica = world.partitions()[0].replicas[0].replica;
                world.apply(&Command::LoseReplica { replica, reason: LossReason::Damaged });
            }],
        ),
        (
            "a broker is silent for a while",
            vec![|world| world.kill(BrokerId(3)), |world| {
                world.dead.clear();
                world.reach.insert(BrokerId(3), Reach::Well);
            }],
        ),
    ]
}

/// Five brokers with partitions of one and of three replicas.
fn begin() -> World {
    let mut world = World::new(&[0, 0, 0, 0, 0]);
    world.create("t", 2, 3).unwrap();
    world.settle();
    world
}

/// Lets it happen, interrupted as `fault` says; returns the actions it took.
fn tell(story: &[Happens], fault: Option<(usize, Fault)>) -> World {
    let mut world = begin();
    let before = world.actions;
    world.fault = fault.map(|(at, fault)| (before + at, fault));
    for happens in story {
        happens(&mut world);
        world.settle();
    }
    world.actions -= before;
    world
}

fn check(world: &World) {
    let silent = world.reach.values().any(|reach| *reach == Reach::Dead);
    if silent {
        // The dead keep their cards; what they held is elsewhere.
        let held = world.held();
        assert!(world.dead.iter().all(|dead| !held.contains_key(dead)), "{held:?}");
    }
    assert!(unevenness(&world.preferred()) <= 1, "{:?}", world.preferred());
    for (_, partition) in world.catalog().partitions() {
        assert_eq!(world.groups[&partition.uuid].leader, Some(partition.preferred));
    }
    world.check_whole();
}

#[test]
fn whatever_is_interrupted_wherever_it_ends_as_it_shall_be() {
    for (name, story) in stories() {
        let whole = tell(&story, None);
        check(&whole);
        assert!(whole.actions > 8 || name.contains("silent"), "{name}: {}", whole.actions);
        for at in 1..=whole.actions {
            for fault in FAULTS {
                let told = std::panic::catch_unwind(|| check(&tell(&story, Some((at, fault)))));
                assert!(told.is_ok(), "{name}, {fault:?} at {at} of {}", whole.actions);
            }
        }
    }
}

#[test]
fn the_only_replica_moves_with_the_lead() {
    for at in 0..40 {
        for fault in FAULTS {
            let mut world = World::new(&[0, 0]);
            world.create("t", 1, 1).unwrap();
            world.settle();
            let home = world.partitions()[0].replicas[0].broker;
            world.fault = Some((world.actions + at, fault));
            world.drain(home);
            world.settle();
            world.check_whole();
            assert_ne!(world.partitions()[0].replicas[0].broker, home);
            world.remove(home);
        }
    }
}

/// Two of five replicas are on brokers that die while a third drains.
#[test]
fn two_brokers_die_one_after_the_other_while_a_third_drains() {
    let mut world = World::new(&[0, 0, 0, 0, 0, 0, 0, 0]);
    world.create("t", 4, 5).unwrap();
    world.settle();
    world.drain(BrokerId(1));
    world.kill(BrokerId(2));
    world.tick();
    world.bury(BrokerId(2));
    world.tick();
    world.kill(BrokerId(3));
    world.settle();
    world.bury(BrokerId(3));
    world.settle();
    check(&world);
    world.remove(BrokerId(1));
}

/// Nowhere to go is no reason to give up what may come back.
#[test]
fn a_dead_broker_without_a_stand_in_is_waited_for() {
    let mut world = World::new(&[0, 0, 0]);
    world.create("t", 2, 3).unwrap();
    world.settle();
    let before = world.partitions();
    world.kill(BrokerId(2));
    world.bury(BrokerId(2));
    world.settle();
    for (now, before) in world.partitions().iter().zip(&before) {
        assert_eq!(now.replicas, before.replicas);
    }
    world.dead.clear();
    world.reach.insert(BrokerId(2), Reach::Well);
    world.settle();
    check(&world);
}

#[test]
fn without_a_majority_nothing_is_moved() {
    // With five voters the metadata has a majority all the same.
    let mut world = World::new(&[0, 0, 0, 0, 0, 0, 0]);
    world.create("t", 1, 3).unwrap();
    world.settle();
    let before = world.partitions();
    let homes: Vec<_> = before[0].replicas.iter().map(|here| here.broker).collect();
    for broker in &homes[..2] {
        world.kill(*broker);
        world.bury(*broker);
    }
    world.settle();
    assert!(world.groups[&0].leader.is_some());
    assert_eq!(world.partitions()[0].replicas, before[0].replicas);
}

#[test]
fn one_that_joins_on_a_broker_that_dies_makes_room_for_another() {
    let mut world = begin();
    world.drain(BrokerId(1));
    for command in world.decide() {
        world.apply(&command);
    }
    let joins: Vec<_> = world.catalog().moves.keys().copied().collect();
    let homes = world.homes();
    let dies = homes[joins.first().unwrap()];
    world.kill(dies);
    world.settle();
    assert!(world.partitions().iter().any(|p| p.replicas.len() > 3), "it may come back");
    world.bury(dies);
    world.settle();
    assert_eq!(world.held().get(&dies), None);
    assert!(world.partitions().iter().all(|partition| partition.voters().count() == 3));
    world.check_whole();
}

/// What a fault strikes, which one, and what happens.
#[derive(Debug, Clone, Copy)]
enum Event {
    Join(u8),
    Drain(u64),
    Return(u64),
    Die(u64),
    Bury(u64),
    Resize(u8),
    Tick,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        (0u8..3).prop_map(Event::Join),
        (1u64..8).prop_map(Event::Drain),
        (1u64..8).prop_map(Event::Return),
        (1u64..8).prop_map(Event::Die),
        (1u64..8).prop_map(Event::Bury),
        proptest::sample::select(REPLICA_COUNTS.to_vec()).prop_map(Event::Resize),
        Just(Event::Tick),
        Just(Event::Tick),
    ];
    proptest::collection::vec(event, 1..14)
}

fn happen(world: &mut World, event: Event) {
    let known = |id| world.catalog().brokers.contains_key(&BrokerId(id));
    let active = world.catalog().active().filter(|card| !world.dead.contains(&card.id)).count();
    let needs = world.catalog().topics.values().map(|topic| usize::from(topic.replicas)).max();
    let spare = active > needs.unwrap_or(1).max(3);
    match event {
        Event::Join(rack) if world.catalog().brokers.len() < 9 => drop(world.join(rack)),
        Event::Drain(id) if known(id) && spare => world.drain(BrokerId(id)),
        // One at a time: with two of three gone nobody could do anything.
        Event::Die(id) if known(id) && world.dead.is_empty() && spare => world.kill(BrokerId(id)),
        Event::Bury(id) if world.dead.contains(&BrokerId(id)) => world.bury(BrokerId(id)),
        Event::Return(id) if world.dead.remove(&BrokerId(id)) => {
            world.reach.insert(BrokerId(id), Reach::Well);
        }
        Event::Resize(replicas) if active >= usize::from(replicas) => {
            world.set_replicas("t", replicas);
        }
        Event::Tick => drop(world.tick()),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Brokers come, drain, die and return in the middle of what is under way.
    #[test]
    fn whatever_happens_when_all_live_again_all_is_as_it_shall_be(
        racks in proptest::collection::vec(0u8..3, 3..7),
        partitions in 1u128..5,
        replicas in proptest::sample::select(vec![1u8, 3]),
        events in events(),
        fault in (1usize..120, proptest::sample::select(FAULTS.to_vec())),
    ) {
        let mut world = World::new(&racks);
        world.create("t", partitions, replicas).unwrap();
        world.settle();
        world.fault = Some((world.actions + fault.0, fault.1));
        for event in events {
            happen(&mut world, event);
        }
        for broker in std::mem::take(&mut world.dead) {
            world.reach.insert(broker, Reach::Well);
        }
        world.settle();
        world.check_whole();
        let known: Vec<_> = world.catalog().brokers.keys().copied().collect();
        for broker in known {
            if !world.catalog().is_active(broker) {
                world.remove(broker);
            }
        }
    }
}
