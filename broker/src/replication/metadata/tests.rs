mod cluster;
mod model;

use super::command::NewPartition;
use super::state::*;
use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;
use weir_protocol::frame::{Durability, Overflow};
use weir_protocol::types::{BrokerId, Name, ProducerId, TopicId};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn settings() -> Settings {
    Settings {
        durability: Durability::Fsync,
        overflow: Overflow::Backpressure,
        max_bytes: 1 << 30,
        max_age_ms: 0,
    }
}

fn partitions(count: usize) -> Vec<NewPartition> {
    (0..count).map(|n| NewPartition { uuid: n as u128 + 1, brokers: vec![BrokerId(1)] }).collect()
}

fn create(topic: &str, count: usize) -> Command {
    Command::CreateTopic {
        name: name(topic),
        settings: settings(),
        created_ms: 1,
        partitions: partitions(count),
    }
}

fn created(state: &mut State, topic: &str, count: usize) -> Arc<Topic> {
    match state.apply(&create(topic, count)) {
        Ok(Change::Created(topic)) => topic,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_cluster_is_named_once() {
    let mut state = State::default();
    let form = |cluster| Command::Form { cluster, broker: BrokerId(1) };
    assert_eq!(state.apply(&form(7)), Ok(Change::Formed { cluster: 7 }));
    assert_eq!(state.apply(&form(8)), Ok(Change::Formed { cluster: 7 }));
}

#[test]
fn ids_are_never_reused() {
    let mut state = State::default();
    let first = created(&mut state, "a", 2);
    assert_eq!(
        state.apply(&Command::DeleteTopic { topic: first.id }),
        Ok(Change::Deleted(first.clone()))
    );
    let second = created(&mut state, "a", 2);
    assert_ne!(first.id, second.id);
    let replicas = |topic: &Topic| -> BTreeSet<_> {
        topic.partitions.iter().flat_map(|p| &p.replicas).map(|r| r.replica).collect()
    };
    assert!(replicas(&first).is_disjoint(&replicas(&second)));
    assert!(!replicas(&first).contains(&METADATA_REPLICA));
}

#[test]
fn partitions_only_grow_and_keep_their_numbers() {
    let mut state = State::default();
    let topic = created(&mut state, "a", 1);
    let alter = |revision, added| Command::AlterTopic {
        topic: topic.id,
        revision,
        settings: settings(),
        added: partitions(added),
    };
    let Ok(Change::Altered(grown)) = state.apply(&alter(topic.revision, 2)) else { panic!() };
    assert_eq!(grown.partitions[0], topic.partitions[0]);
    let numbers: Vec<_> = grown.partitions.iter().map(|p| p.id.0).collect();
    assert_eq!(numbers, [0, 1, 2]);
    assert_eq!(state.apply(&alter(topic.revision, 1)), Err(Refusal::TopicChanged));
    assert_eq!(state.apply(&alter(grown.revision, 2_000)), Err(Refusal::BadPartitions));
}

#[test]
fn opening_a_producer_raises_its_epoch() {
    let mut state = State::default();
    let open = |text| Command::OpenProducer { name: name(text) };
    let opened = |id, epoch| Ok(Change::Opened(Producer { id: ProducerId(id), epoch }));
    assert_eq!(state.apply(&open("p")), opened(1, 1));
    assert_eq!(state.apply(&open("q")), opened(2, 1));
    assert_eq!(state.apply(&open("p")), opened(1, 2));
}

#[test]
fn every_bound_refuses_by_name() {
    let mut state = State::default();
    created(&mut state, "a", 1);
    assert_eq!(state.apply(&create("a", 1)), Err(Refusal::TopicExists));
    assert_eq!(state.apply(&create("b", 0)), Err(Refusal::BadPartitions));
    let twice = NewPartition { uuid: 1, brokers: vec![BrokerId(1), BrokerId(1)] };
    let double = Command::CreateTopic {
        name: name("b"),
        settings: settings(),
        created_ms: 1,
        partitions: vec![twice],
    };
    assert_eq!(state.apply(&double), Err(Refusal::BadPartitions));
    let unknown = Command::DeleteTopic { topic: TopicId(99) };
    assert_eq!(state.apply(&unknown), Err(Refusal::UnknownTopic));

    let mut number = 0;
    let refused = loop {
        number += 1;
        match state.apply(&create(&format!("t{number}"), 1_000)) {
            Ok(_) => {}
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refused, Refusal::TopicLimit, "after {number} topics of 1,000 partitions");
    for number in 0..PRODUCERS_MAX {
        state.apply(&Command::OpenProducer { name: name(&number.to_string()) }).unwrap();
    }
    let one_more = Command::OpenProducer { name: name("one-more") };
    assert_eq!(state.apply(&one_more), Err(Refusal::ProducerLimit));
    assert!(state.apply(&Command::OpenProducer { name: name("7") }).is_ok(), "known names go on");
}

#[test]
fn a_state_has_its_golden_bytes() {
    let mut state = State::default();
    state.apply(&Command::Form { cluster: 0xC1, broker: BrokerId(1) }).unwrap();
    created(&mut state, "t", 1);
    state.apply(&Command::OpenProducer { name: name("p") }).unwrap();
    let hex: String = state.encode().iter().map(|byte| format!("{byte:02x}")).collect();
    let golden = concat!(
        "01c1000000000000000000000000000000",
        "0200000000000000",
        "0300000000000000",
        "0200000000000000",
        "0100000001000000",
        "0174",
        "01000000000000000100000000000000",
        "000000000040000000000000000000000000",
        "0100000000000000",
        "01000000",
        "0100000000000000000000000000000001",
        "02000000000000000100000000000000",
        "0170",
        "010000000000000001000000",
    );
    assert_eq!(hex, golden);
}

/// A few names and small numbers, so that commands meet each other's traces.
fn any_command() -> impl Strategy<Value = Command> {
    let topic = (1u64..6).prop_map(TopicId);
    prop_oneof![
        (0..4u8, 0..3usize).prop_map(|(n, count)| create(&format!("t{n}"), count)),
        (topic.clone(), 1u64..4, 0..3usize, any::<bool>()).prop_map(
            |(topic, revision, added, memory)| {
                let durability = if memory { Durability::Memory } else { Durability::Fsync };
                Command::AlterTopic {
                    topic,
                    revision: TopicRevision(revision),
                    settings: Settings { durability, ..settings() },
                    added: partitions(added),
                }
            }
        ),
        topic.prop_map(|topic| Command::DeleteTopic { topic }),
        (0..4u8).prop_map(|n| Command::OpenProducer { name: name(&format!("p{n}")) }),
    ]
}

proptest! {
    /// A state that went through its bytes at any point goes on like one that did not.
    #[test]
    fn a_snapshot_anywhere_changes_nothing(
        commands in proptest::collection::vec(any_command(), 1..40), at in 0usize..40,
    ) {
        let mut straight = State::default();
        let mut restored = State::default();
        for (position, command) in commands.iter().enumerate() {
            if position == at {
                restored = State::decode(&restored.encode()).unwrap();
            }
            let decoded = Command::decode(&command.encode()).unwrap();
            prop_assert_eq!(straight.apply(command), restored.apply(&decoded));
        }
        prop_assert_eq!(State::decode(&straight.encode()), Ok(straight.clone()));
        prop_assert_eq!(restored, straight);
    }

    #[test]
    fn garbage_is_no_state(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = State::decode(&bytes);
    }
}
