//! A controller and the leaders of groups against the real metadata.

mod model;
mod world;

use super::*;
use crate::cluster::leaders::LeaderBoard;
use crate::replication::metadata::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::{Duration, Instant};
use weir_protocol::frame::{Durability, Overflow};
use weir_protocol::peer::News;
use weir_protocol::types::{BrokerId, Name, ReplicaId, TopicId};
use world::World;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
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
    assert_eq!(world.decide(), []);
}

#[test]
fn a_replica_that_is_lost_while_it_joins_makes_room_for_another() {
    let mut world = World::new(&[0, 1, 2, 3]);
    world.create("t", 1, 3).unwrap();
    world.settle();
    let old = world.partitions()[0].replicas[0];
    world.drain(old.broker);
    let commands = world.decide();
    let add = commands.iter().find(|command| matches!(command, Command::AddReplica { .. }));
    let Change::Placed(joins) = world.apply(add.unwrap()) else { unreachable!() };
    let replica = joins.replica;
    world.apply(&Command::LoseReplica { replica, reason: LossReason::Damaged });
    let leaves = Command::StepReplica { replica, step: Step::Leaving };
    assert!(world.decide().contains(&leaves));
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
    assert_eq!(world.round(), [goes]);
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
    let commands = world.decide();
    let adds = commands.iter().filter_map(|command| match command {
        Command::AddReplica { replaces, .. } => Some(replaces.is_some()),
        _ => None,
    });
    assert_eq!(adds.collect::<Vec<_>>(), [true, true], "one to each broker: {commands:?}");
}

#[test]
fn those_that_go_leave_racks_evenly_used_and_brokers_that_drain_empty() {
    let mut world = World::new(&[0, 0, 0, 1, 2, 3]);
    let brokers = (1..=5).map(BrokerId).collect();
    world.create_on("t", vec![NewPartition { uuid: 1, brokers }]);
    world.drain(BrokerId(5));
    let (topic, revision) = (TopicId(1), TopicRevision(1));
    world.apply(&Command::SetReplicas { topic, revision, replicas: 3 });
    let left: Vec<_> = (0..2).flat_map(|_| world.round()).collect();
    let leaves =
        |command: &&Command| matches!(command, Command::StepReplica { step: Step::Leaving, .. });
    let left = left.iter().filter(leaves);
    assert_eq!(left.count(), 2);
    let homes: Vec<_> = world.partitions()[0].replicas.iter().map(|here| here.broker.0).collect();
    assert_eq!(homes, [1, 2, 4], "the preferred one stays");
}

#[test]
fn a_gate_is_raised_when_all_brokers_read_it_and_copies_of_the_metadata_are_made() {
    let world = World::new(&[0, 0]);
    let (raise, join) =
        (Command::RaiseGate { gate: GATE_HERE }, Command::JoinMetadata { broker: BrokerId(2) });
    assert_eq!(world.decide(), [raise, join]);
    let mut alone = State::default();
    alone.apply(&Command::Form { cluster: 7, broker: FOUNDER }).unwrap();
    let (leaders, reach) = (BTreeSet::new(), [(FOUNDER, Reach::Well)].into());
    let view = View { catalog: alone.catalog(), leaders: &leaders, reach: &reach, preferences: 1 };
    assert_eq!(decide(&view), [], "before its gate nobody orders anything");
}

#[test]
fn who_drains_is_preferred_no_longer_within_the_limit_and_ends_empty() {
    let mut world = World::new(&[0, 1, 2, 3]);
    world.create("t", 40, 3).unwrap();
    world.settle();
    world.drain(BrokerId(2));
    world.preferences = 3;
    let led = world.preferred()[&BrokerId(2)];
    let commands = world.decide();
    let changes = commands.iter().filter(|command| matches!(command, Command::Prefer { .. }));
    assert_eq!(changes.count(), 3, "{led} were led");
    world.preferences = 0;
    assert!(!world.decide().iter().any(|command| matches!(command, Command::Prefer { .. })));
    world.preferences = 3;
    world.settle();
    assert_eq!(world.held().get(&BrokerId(2)), None);
    world.check_whole();
    world.remove(BrokerId(2));
}

#[test]
fn nobody_is_preferred_who_was_not_heard_of_and_who_returns_leads_again() {
    let mut world = World::new(&[0, 1, 2]);
    world.create("t", 6, 3).unwrap();
    world.settle();
    let before = world.leaders();
    world.kill(BrokerId(3));
    world.settle();
    assert_eq!(world.decide(), [], "it may come back");
    assert_ne!(world.leaders(), before, "others lead meanwhile");
    world.dead.clear();
    world.reach.insert(BrokerId(3), Reach::Going);
    world.settle();
    assert_ne!(world.leaders(), before, "it is about to go again");
    world.reach.insert(BrokerId(3), Reach::Well);
    world.settle();
    assert_eq!(world.leaders(), before);
}

#[test]
fn what_a_dead_broker_held_is_replaced_when_a_majority_of_the_group_is_heard_of() {
    let mut world = World::new(&[0, 0, 0, 0]);
    let brokers = (1..=3).map(BrokerId).collect();
    world.create_on("t", vec![NewPartition { uuid: 1, brokers }]);
    world.settle();
    let adds = |command: &Command| matches!(command, Command::AddReplica { .. });
    world.bury(BrokerId(3));
    world.reach.insert(BrokerId(2), Reach::Quiet);
    assert!(!world.decide().iter().any(adds), "the group could not take the other in");
    world.reach.insert(BrokerId(2), Reach::Well);
    assert!(world.decide().iter().any(adds));
}

#[test]
fn what_is_led_for_the_first_time_is_noted_as_formed() {
    let mut world = World::new(&[0, 0, 0]);
    world.settle();
    let create = |name: &str, uuid| Command::CreateTopic {
        name: Name::new(name).unwrap(),
        settings: Settings {
            durability: Durability::Fsync,
            overflow: Overflow::Reject,
            max_bytes: 1 << 30,
            max_age_ms: 0,
        },
        created_ms: 1,
        partitions: vec![NewPartition { uuid, brokers: (1..=3).map(BrokerId).collect() }],
    };
    world.apply(&create("led", 1));
    world.apply(&create("waits", 2));
    world.groups.get_mut(&2).unwrap().leader = None;
    let led = world.groups[&1].leader.unwrap();
    let leaders = world.leaders();
    let noted = formed(world.catalog(), |replica| leaders.contains(&replica));
    assert_eq!(noted, Some(Command::NoteFormed { replicas: vec![led] }));
}

#[test]
fn those_that_do_not_answer_go_first_and_the_next_joins_without_waiting_for_them() {
    let mut world = World::new(&[0, 0, 0, 0, 0]);
    world.create("t", 1, 3).unwrap();
    world.settle();
    let partition = world.partitions().remove(0);
    let silent = *partition.voters().find(|v| v.replica != partition.preferred).unwrap();
    world.kill(silent.broker);
    world.set_replicas("t", 1);
    let goes = Command::StepReplica { replica: silent.replica, step: Step::Leaving };
    assert_eq!(world.decide(), std::slice::from_ref(&goes));
    world.apply(&goes);
    world.set_replicas("t", 3);
    let commands = world.decide();
    assert!(matches!(commands[..], [Command::AddReplica { replaces: None, .. }]), "{commands:?}");
}

#[test]
fn preferences_change_only_as_many_at_once_as_may() {
    let mut world = World::new(&[0, 0, 0]);
    let brokers: Vec<_> = (1..=3).map(BrokerId).collect();
    let all_first = |uuid| NewPartition { uuid, brokers: brokers.clone() };
    world.create_on("t", (1..=9).map(all_first).collect());
    for limit in [0, 1, 2, 5] {
        world.preferences = limit;
        let commands = world.decide();
        let changes = commands.iter().filter(|command| matches!(command, Command::Prefer { .. }));
        assert_eq!(changes.count(), limit);
    }
}

#[test]
fn two_do_not_vote_where_one_does() {
    let mut world = World::new(&[0, 0, 0]);
    world.reach.insert(BrokerId(3), Reach::Quiet);
    world.dead.insert(BrokerId(3));
    let voters = |world: &World| {
        world.catalog().metadata.iter().filter(|copy| copy.stage == Stage::Voter).count()
    };
    world.settle();
    assert_eq!(voters(&world), 1);
    world.reach.insert(BrokerId(3), Reach::Well);
    world.dead.clear();
    world.settle();
    assert_eq!(voters(&world), 3);
}

/// It answers whoever asks it, and may be wanted again.
#[test]
fn who_was_drained_keeps_its_copy_of_the_metadata_without_a_vote() {
    let mut world = World::new(&[0, 0, 0, 0]);
    let broker = BrokerId(2);
    let copy = |world: &World| {
        *world.catalog().metadata.iter().find(|copy| copy.broker == broker).unwrap()
    };
    world.settle();
    let before = copy(&world);
    assert_eq!(before.stage, Stage::Voter);
    world.drain(broker);
    world.settle();
    world.check_whole();
    assert_eq!(copy(&world), Placement { stage: Stage::Joining, ..before });
    world.apply(&Command::SetStanding { broker, standing: Standing::Active });
    world.settle();
    world.check_whole();
    assert_eq!(copy(&world).replica, before.replica);
}

#[test]
fn so_many_vote_on_the_metadata_as_brokers_allow() {
    let automatic = [1, 1, 3, 3, 3, 3, 5, 5].map(|voters| voters as usize);
    let brokers = 1..=8;
    assert!(brokers.map(|brokers| metadata_voters(0, brokers)).eq(automatic));
    assert_eq!([1, 3, 5].map(|setting| metadata_voters(setting, 4)), [1, 3, 3]);
}

#[test]
fn voters_of_the_metadata_are_spread_over_racks_and_follow_the_setting() {
    let mut world = World::new(&[0, 0, 0, 1, 1, 2]);
    let voting = |world: &World| -> Vec<u64> {
        let votes = |copy: &&Placement| copy.stage == Stage::Voter;
        let mut at: Vec<_> =
            world.catalog().metadata.iter().filter(votes).map(|copy| copy.broker.0).collect();
        at.sort_unstable();
        at
    };
    for (setting, expected) in [(0, vec![1, 4, 6]), (5, vec![1, 2, 4, 5, 6]), (1, vec![1])] {
        world.metadata_voters = setting;
        world.settle();
        assert_eq!(voting(&world), expected);
        world.check_whole();
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_is_dead_only_after_ten_minutes_under_the_same_eyes() {
    let (world, board, start) = (World::new(&[0, 0, 0]), LeaderBoard::default(), Instant::now());
    let at = |seconds| start + Duration::from_secs(seconds);
    let news = |free_bytes, draining| News { free_bytes, draining, gate: 1, led: Vec::new() };
    board.note(BrokerId(2), &news(HOME_BYTES_MIN, false), at(0));
    let reach = |since, now| {
        let watch = Watch { since: at(since), me: FOUNDER };
        let all = watch.reach(world.catalog(), &board, at(now));
        (1..=3).map(|id| all[&BrokerId(id)]).collect::<Vec<_>>()
    };
    assert_eq!(reach(0, 29), [Reach::Well, Reach::Well, Reach::Quiet]);
    assert_eq!(reach(0, 599), [Reach::Well, Reach::Quiet, Reach::Quiet]);
    assert_eq!(reach(0, 600), [Reach::Well, Reach::Dead, Reach::Dead]);
    assert_eq!(reach(300, 899), [Reach::Well, Reach::Quiet, Reach::Quiet], "a new controller");
    board.note(BrokerId(2), &news(HOME_BYTES_MIN - 1, false), at(700));
    board.note(BrokerId(3), &news(0, true), at(700));
    assert_eq!(reach(0, 701), [Reach::Well, Reach::Full, Reach::Going]);
    assert_eq!(reach(0, 1_299), [Reach::Well, Reach::Quiet, Reach::Quiet]);
    assert_eq!(reach(0, 1_300), [Reach::Well, Reach::Dead, Reach::Dead]);
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
            prop_assert!(world.leaders().contains(&partition.preferred), "{:?}", partition);
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
            let (leaders, reach) = (world.leaders(), &world.reach);
            let catalog = world.state.catalog();
            let view = View { catalog, leaders: &leaders, reach, preferences: 64 };
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

    /// What a round proposes stays within its limits, and no two moves share a pair of brokers.
    #[test]
    fn a_round_stays_within_its_limits(racks in racks(), limit in 0usize..6) {
        let mut world = World::new(&racks);
        world.create("t", 60, 1).unwrap();
        world.join(0);
        world.join(1);
        world.drain(FOUNDER);
        world.preferences = limit;
        let at = world.homes();
        let commands = world.decide();
        prop_assert!(commands.len() <= COMMANDS_MAX);
        let mut pairs = BTreeSet::new();
        for command in &commands {
            if let Command::AddReplica { broker, replaces: Some(old), .. } = command {
                prop_assert!(pairs.insert((at[old], *broker)), "{:?}", commands);
            }
        }
        let changes = commands.iter().filter(|command| matches!(command, Command::Prefer { .. }));
        // A path is whole, however long.
        let path = if limit == 0 { 0 } else { racks.len() + 2 };
        prop_assert!(changes.count() <= limit.max(path));
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_broker_whose_place_another_has_is_dead_at_once() {
    let (mut world, board, start) =
        (World::new(&[0, 0, 0]), LeaderBoard::default(), Instant::now());
    let news = News { free_bytes: HOME_BYTES_MIN, draining: false, gate: 1, led: Vec::new() };
    let new = world.wipe(BrokerId(3));
    board.note(BrokerId(3), &news, start);
    board.note(new, &news, start + Duration::from_secs(20));
    let reach = |seconds| {
        let watch = Watch { since: start, me: FOUNDER };
        let all = watch.reach(world.catalog(), &board, start + Duration::from_secs(seconds));
        [2, 3, 4].map(|id| all[&BrokerId(id)])
    };
    assert_eq!(new, BrokerId(4));
    assert_eq!(reach(29), [Reach::Quiet, Reach::Well, Reach::Well], "who is heard lives");
    assert_eq!(reach(30), [Reach::Quiet, Reach::Dead, Reach::Well]);
}
