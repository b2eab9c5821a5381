use super::*;
use crate::replication::codec::CodecError;
use crate::replication::metadata::state::Address;
use proptest::prelude::*;
use weir_protocol::frame::{Durability, Overflow};
use weir_protocol::types::Index;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn defaults() -> Settings {
    Settings {
        durability: Durability::Fsync,
        overflow: Overflow::Reject,
        max_bytes: 10 << 30,
        max_age_ms: 60_000,
    }
}

fn all() -> Vec<(Command, &'static str)> {
    let orders = Name::new("orders").unwrap();
    let partition = NewPartition { uuid: 0xAB, brokers: vec![BrokerId(1), BrokerId(2)] };
    vec![
        (
            Command::Form { cluster: 0xC1, broker: BrokerId(1) },
            "0101c10000000000000000000000000000000100000000000000",
        ),
        (
            Command::CreateTopic {
                name: orders.clone(),
                settings: defaults(),
                created_ms: 5,
                partitions: vec![partition],
            },
            concat!(
                "0102066f7264657273",
                "0001000000800200000060ea000000000000",
                "0500000000000000",
                "01000000ab0000000000000000000000000000000201000000000000000200000000000000",
            ),
        ),
        (
            Command::AlterTopic {
                topic: TopicId(3),
                revision: TopicRevision(2),
                settings: Settings { durability: Durability::Memory, ..defaults() },
                added: Vec::new(),
            },
            concat!(
                "010303000000000000000200000000000000",
                "0101000000800200000060ea000000000000",
                "00000000",
            ),
        ),
        (Command::DeleteTopic { topic: TopicId(3) }, "01040300000000000000"),
        (
            Command::Found { cluster: 0xC1, brokers: 7, voters: 5 },
            "0111c1000000000000000000000000000000070005",
        ),
        (Command::OpenProducer { name: orders }, "0105066f7264657273"),
    ]
}

/// Those of a cluster, which older builds do not read.
fn all_of_cluster() -> Vec<(Command, &'static str)> {
    let (topic, partition) = (TopicId(3), PartitionId(4));
    let (broker, replica) = (BrokerId(2), ReplicaId(9));
    let facts = BrokerFacts {
        token: 0x70,
        instance: 0x15,
        gate: 1,
        name: Name::new("b2").unwrap(),
        peer: Address::new("h:1").unwrap(),
        client: Address::new("h:2").unwrap(),
        rack: Name::new("r").unwrap(),
    };
    let recovery = Recovery { epoch: 1, lost_after: Index(6), created_ms: 7 };
    let mut all = vec![
        (
            Command::BrokerUp { broker: None, facts: facts.clone() },
            concat!(
                "0106",
                "0000000000000000",
                "70000000000000000000000000000000150000000000000001000000",
                "02623203683a3103683a320172",
            ),
        ),
        (
            Command::BrokerUp { broker: Some(broker), facts },
            concat!(
                "0106",
                "0200000000000000",
                "70000000000000000000000000000000150000000000000001000000",
                "02623203683a3103683a320172",
            ),
        ),
        (Command::SetStanding { broker, standing: Standing::Draining }, "0107020000000000000001"),
        (Command::RemoveBroker { broker }, "0107020000000000000002"),
        (
            Command::NoteFormed { replicas: vec![replica, ReplicaId(10)] },
            "01080200000009000000000000000a00000000000000",
        ),
        (
            Command::AddReplica { topic, partition, broker, replaces: Some(replica) },
            "010903000000000000000400000002000000000000000900000000000000",
        ),
        (
            Command::AddReplica { topic, partition, broker, replaces: None },
            "010903000000000000000400000002000000000000000000000000000000",
        ),
        (Command::StepReplica { replica, step: Step::Leaving }, "010a090000000000000003"),
        (Command::LoseReplica { replica, reason: LossReason::Damaged }, "010b090000000000000002"),
        (
            Command::Prefer { topic, partition, replica },
            "010c0300000000000000040000000900000000000000",
        ),
        (Command::RaiseGate { gate: 1 }, "010d01000000"),
        (
            Command::NoteRecovery { uuid: 0xAB, recovery },
            "010eab0000000000000000000000000000000100000006000000000000000700000000000000",
        ),
        (
            Command::Reinstate { uuid: 0xAB, now_ms: 7 },
            "0112ab0000000000000000000000000000000700000000000000",
        ),
        (
            Command::SetReplicas { topic, revision: TopicRevision(2), replicas: 5 },
            "01100300000000000000020000000000000005",
        ),
    ];
    all.extend(all_of_metadata());
    all
}

fn all_of_metadata() -> Vec<(Command, &'static str)> {
    let (replica, broker) = (ReplicaId(9), BrokerId(2));
    vec![
        (Command::JoinMetadata { broker }, "010f0000000000000000020000000000000001"),
        (
            Command::StepMetadata { replica, step: MetadataStep::Learner },
            "010f0900000000000000000000000000000001",
        ),
        (
            Command::StepMetadata { replica, step: MetadataStep::Voter },
            "010f0900000000000000000000000000000002",
        ),
        (
            Command::StepMetadata { replica, step: MetadataStep::Gone },
            "010f0900000000000000000000000000000004",
        ),
    ]
}

#[test]
fn every_command_has_its_golden_bytes() {
    for (command, golden) in all().into_iter().chain(all_of_cluster()) {
        assert_eq!(hex(&command.encode()), golden, "{command:?}");
        assert_eq!(Command::decode(&command.encode()), Ok(command));
    }
}

#[test]
fn unknown_kinds_and_versions_are_refused() {
    assert_eq!(Command::decode(&[1, 99]), Err(CodecError::Malformed));
    assert_eq!(Command::decode(&[2, 4]), Err(CodecError::Version(2)));
}

proptest! {
    #[test]
    fn no_cut_of_a_command_decodes(which in 0usize..22, cut in 0usize..60) {
        let mut commands = all();
        commands.extend(all_of_cluster());
        let (command, _) = commands.swap_remove(which);
        let bytes = command.encode();
        let cut = cut.min(bytes.len() - 1);
        prop_assert_eq!(Command::decode(&bytes[..cut]), Err(CodecError::Malformed));
    }

    #[test]
    fn garbage_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let _ = Command::decode(&bytes);
    }
}
