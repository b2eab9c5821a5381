//! Brokers, gates and replicas that come and go.

use super::*;
use weir_protocol::limits::BROKERS_MAX;
use weir_protocol::types::{Index, PartitionId, ReplicaId};

fn facts(token: u128, gate: u32) -> BrokerFacts {
    BrokerFacts {
        token,
        instance: 1,
        gate,
        name: name(&format!("b{token}")),
        peer: Address::new("h:7422").unwrap(),
        client: Address::new("h:7420").unwrap(),
        rack: name("r"),
    }
}

fn up(broker: u64, token: u128) -> Command {
    let broker = Some(BrokerId(broker)).filter(|broker| broker.0 != 0);
    Command::BrokerUp { broker, facts: facts(token, GATE_CLUSTER) }
}

fn alone() -> State {
    let mut state = State::default();
    state.apply(&Command::Form { cluster: 0xC1, broker: FOUNDER }).unwrap();
    state
}

/// A cluster of `brokers` that passed the gate.
fn cluster(brokers: u64) -> State {
    let mut state = alone();
    state.apply(&Command::RaiseGate { gate: GATE_CLUSTER }).unwrap();
    state.apply(&up(1, 1)).unwrap();
    for token in 2..=brokers {
        assert_eq!(state.apply(&up(0, token.into())), Ok(Change::BrokerUp(BrokerId(token))));
    }
    state
}

fn create_on(topic: &str, brokers: &[u64]) -> Command {
    let brokers = brokers.iter().copied().map(BrokerId).collect();
    Command::CreateTopic {
        name: name(topic),
        settings: settings(),
        created_ms: 1,
        partitions: vec![NewPartition { uuid: 0xAB, brokers }],
    }
}

/// Three replicas, numbered 2 to 4, on the brokers 1 to 3 of four.
fn with_topic() -> State {
    let mut state = cluster(4);
    state.apply(&create_on("t", &[1, 2, 3])).unwrap();
    state.apply(&Command::NoteFormed { replicas: vec![ReplicaId(2)] }).unwrap();
    state
}

fn partition(state: &State) -> &Partition {
    state.catalog().partitions().next().unwrap().1
}

fn stages(state: &State) -> Vec<(u64, Stage)> {
    partition(state).replicas.iter().map(|here| (here.replica.0, here.stage)).collect()
}

fn add(broker: u64, replaces: u64) -> Command {
    Command::AddReplica {
        topic: TopicId(1),
        partition: PartitionId(0),
        broker: BrokerId(broker),
        replaces: Some(ReplicaId(replaces)).filter(|replica| replica.0 != 0),
    }
}

fn step(replica: u64, step: Step) -> Command {
    Command::StepReplica { replica: ReplicaId(replica), step }
}

#[test]
fn before_its_gate_a_cluster_is_refused_and_leaves_no_trace() {
    let mut state = alone();
    let before = state.clone();
    let refused = [
        up(0, 7),
        Command::SetStanding { broker: FOUNDER, standing: Standing::Draining },
        Command::JoinMetadata { broker: FOUNDER },
        add(2, 0),
        Command::NoteFormed { replicas: vec![ReplicaId(2)] },
    ];
    for command in refused {
        assert_eq!(state.apply(&command), Err(Refusal::GateClosed), "{command:?}");
    }
    assert_eq!(state, before);
    assert_eq!(state.encode()[0], 1, "an older build reads it");
}

#[test]
fn a_gate_rises_when_all_read_it_and_never_falls() {
    let raise = |gate| Command::RaiseGate { gate };
    assert_eq!(State::default().apply(&raise(1)), Err(Refusal::GateUnread), "nobody is there");
    let mut state = alone();
    assert_eq!(state.apply(&raise(2)), Err(Refusal::GateUnread));
    assert_eq!(state.apply(&raise(1)), Ok(Change::Gate(1)));
    assert_eq!(state.apply(&raise(0)), Ok(Change::Gate(1)));
    assert_eq!(state.apply(&raise(2)), Err(Refusal::GateUnread), "the founder told nothing");
    let told = |broker, token, gate| Command::BrokerUp { broker, facts: facts(token, gate) };
    state.apply(&told(Some(FOUNDER), 1, 2)).unwrap();
    state.apply(&told(None, 2, 1)).unwrap();
    assert_eq!(state.apply(&raise(2)), Err(Refusal::GateUnread));
    state.apply(&told(None, 2, 2)).unwrap();
    assert_eq!(state.apply(&raise(2)), Ok(Change::Gate(2)));
    assert_eq!(state.apply(&told(None, 3, 1)), Err(Refusal::GateAbove));
}

#[test]
fn a_broker_is_known_by_its_token_and_its_id_never_returns() {
    let mut state = cluster(2);
    assert_eq!(state.apply(&up(0, 2)), Ok(Change::BrokerUp(BrokerId(2))), "asked again");
    assert_eq!(state.apply(&up(2, 9)), Err(Refusal::TokenMismatch));
    assert_eq!(state.apply(&up(2, 1)), Err(Refusal::TokenMismatch));
    assert_eq!(state.apply(&up(7, 7)), Err(Refusal::UnknownBroker));
    assert_eq!(state.apply(&up(0, 0)), Err(Refusal::NoToken));
    let remove = |broker| Command::RemoveBroker { broker: BrokerId(broker) };
    assert_eq!(state.apply(&remove(1)), Err(Refusal::BrokerInUse), "it has the metadata");
    assert_eq!(state.apply(&remove(2)), Ok(Change::Done));
    assert_eq!(state.apply(&remove(2)), Err(Refusal::BrokerRemoved));
    assert_eq!(state.apply(&up(2, 2)), Err(Refusal::BrokerRemoved));
    assert_eq!(state.apply(&up(0, 2)), Ok(Change::BrokerUp(BrokerId(3))));
    let mut tokens = 10..;
    let refused = tokens.find_map(|token| state.apply(&up(0, token)).err());
    assert_eq!(refused, Some(Refusal::BrokerLimit));
    assert_eq!(state.catalog().brokers.len(), BROKERS_MAX);
}

#[test]
fn a_replica_takes_the_place_of_another_step_by_step() {
    let mut state = with_topic();
    let placed = Placement { replica: ReplicaId(5), broker: BrokerId(4), stage: Stage::Joining };
    assert_eq!(state.apply(&add(4, 2)), Ok(Change::Placed(placed)));
    assert_eq!(state.apply(&add(4, 2)), Ok(Change::Placed(placed)), "asked again");
    assert_eq!(state.apply(&add(4, 3)), Err(Refusal::MoveUnderWay));
    assert_eq!(state.apply(&step(5, Step::Voter)), Err(Refusal::BadStep));
    assert_eq!(state.apply(&step(2, Step::Leaving)), Err(Refusal::TooFewVoters));
    for (replica, here) in [(5, Step::Ready), (5, Step::Voter), (2, Step::Leaving)] {
        assert_eq!(state.apply(&step(replica, here)), Ok(Change::Done));
        assert_eq!(state.apply(&step(replica, here)), Ok(Change::Done), "noted again");
        assert_eq!(state.catalog().moves.len(), 1);
    }
    assert_eq!(partition(&state).preferred, ReplicaId(5), "it follows whom it replaced");
    assert_eq!(state.apply(&step(2, Step::Voter)), Err(Refusal::BadStep));
    assert_eq!(state.apply(&step(2, Step::Gone)), Ok(Change::Done));
    assert_eq!(state.apply(&step(2, Step::Gone)), Err(Refusal::ReplicaGone));
    let voters = [(3, Stage::Voter), (4, Stage::Voter), (5, Stage::Voter)];
    assert_eq!(stages(&state), voters);
    assert!(state.catalog().moves.is_empty());
}

#[test]
fn a_lost_replica_is_replaced_where_it_was_and_a_whole_one_is_not() {
    let mut state = with_topic();
    assert_eq!(state.apply(&add(2, 3)), Err(Refusal::BrokerHoldsReplica));
    assert_eq!(state.apply(&add(2, 2)), Err(Refusal::BrokerHoldsReplica));
    assert_eq!(state.apply(&add(4, 0)), Err(Refusal::EnoughReplicas));
    let lost = Command::LoseReplica { replica: ReplicaId(2), reason: LossReason::Empty };
    assert_eq!(state.apply(&lost), Ok(Change::Done));
    assert_eq!(partition(&state).preferred, ReplicaId(3));
    assert!(matches!(state.apply(&add(1, 2)), Ok(Change::Placed(_))));
    for (replica, here) in [(5, Step::Ready), (5, Step::Voter), (2, Step::Leaving), (2, Step::Gone)]
    {
        assert_eq!(state.apply(&step(replica, here)), Ok(Change::Done));
    }
    assert_eq!(partition(&state).replica(ReplicaId(5)).unwrap().broker, BrokerId(1));
}

#[test]
fn a_topic_grows_and_shrinks_to_the_replicas_it_shall_have() {
    let mut state = cluster(3);
    state.apply(&create_on("t", &[1])).unwrap();
    let wants = |revision, replicas| Command::SetReplicas {
        topic: TopicId(1),
        revision: TopicRevision(revision),
        replicas,
    };
    assert_eq!(state.apply(&wants(1, 2)), Err(Refusal::BadReplicas));
    assert_eq!(state.apply(&wants(1, 5)), Err(Refusal::TooFewBrokers));
    assert!(state.apply(&wants(1, 3)).is_ok());
    assert_eq!(state.apply(&wants(1, 3)), Err(Refusal::TopicChanged));
    assert_eq!(state.apply(&add(2, 0)), Err(Refusal::NotFormed));
    state.apply(&Command::NoteFormed { replicas: vec![ReplicaId(2), ReplicaId(99)] }).unwrap();
    for (replica, broker) in [(3, 2), (4, 3)] {
        state.apply(&add(broker, 0)).unwrap();
        state.apply(&step(replica, Step::Ready)).unwrap();
        state.apply(&step(replica, Step::Voter)).unwrap();
        assert!(state.catalog().moves.is_empty());
    }
    assert_eq!(partition(&state).voters().count(), 3);
    assert!(state.apply(&wants(2, 1)).is_ok());
    for replica in [2, 3] {
        state.apply(&step(replica, Step::Leaving)).unwrap();
        state.apply(&step(replica, Step::Gone)).unwrap();
    }
    assert_eq!(state.apply(&step(4, Step::Leaving)), Err(Refusal::TooFewVoters));
    assert_eq!(partition(&state).preferred, ReplicaId(4));
}

#[test]
fn new_partitions_are_on_active_brokers_and_all_alike() {
    let mut state = cluster(3);
    let drain = Command::SetStanding { broker: BrokerId(3), standing: Standing::Draining };
    assert_eq!(state.apply(&drain), Ok(Change::Done));
    assert_eq!(state.apply(&create_on("t", &[1, 2, 3])), Err(Refusal::BrokerNotActive));
    assert_eq!(state.apply(&create_on("t", &[1, 2, 9])), Err(Refusal::BrokerNotActive));
    assert_eq!(state.apply(&create_on("t", &[1, 2])), Err(Refusal::BadReplicas));
    state.apply(&up(3, 3)).unwrap();
    assert_eq!(state.apply(&create_on("t", &[3])), Err(Refusal::BrokerNotActive), "it drains on");
}

#[test]
fn the_metadata_has_replicas_of_its_own() {
    let mut state = cluster(2);
    let join = Command::JoinMetadata { broker: BrokerId(2) };
    let placed = Placement { replica: ReplicaId(2), broker: BrokerId(2), stage: Stage::Joining };
    assert_eq!(state.apply(&join), Ok(Change::Placed(placed)));
    assert_eq!(state.apply(&join), Ok(Change::Placed(placed)), "asked again");
    let step = |replica, step| Command::StepMetadata { replica: ReplicaId(replica), step };
    assert_eq!(state.apply(&step(1, MetadataStep::Gone)), Err(Refusal::TooFewVoters));
    assert_eq!(state.apply(&step(2, MetadataStep::Voter)), Ok(Change::Done));
    assert_eq!(state.apply(&step(1, MetadataStep::Learner)), Ok(Change::Done));
    assert_eq!(state.catalog().metadata[0].stage, Stage::Joining, "a copy without a vote");
    assert_eq!(state.apply(&step(2, MetadataStep::Learner)), Err(Refusal::TooFewVoters));
    assert_eq!(state.apply(&step(1, MetadataStep::Gone)), Ok(Change::Done));
    assert_eq!(state.apply(&step(1, MetadataStep::Gone)), Err(Refusal::ReplicaGone));
    assert_eq!(state.apply(&Command::RemoveBroker { broker: FOUNDER }), Ok(Change::Done));
}

#[test]
fn what_was_accepted_to_be_lost_stays_visible() {
    let mut state = with_topic();
    let note = |uuid, epoch| Command::NoteRecovery {
        uuid,
        recovery: Recovery { epoch, lost_after: Index(9), created_ms: 1 },
    };
    for uuid in [0, 0xAB] {
        assert_eq!(state.apply(&note(uuid, 2)), Ok(Change::Done));
        assert_eq!(state.apply(&note(uuid, 2)), Ok(Change::Done), "noted again");
        assert_eq!(state.apply(&note(uuid, 1)), Err(Refusal::OldEpoch));
    }
    assert_eq!(state.apply(&note(0xCD, 1)), Err(Refusal::UnknownPartition));
    assert_eq!(partition(&state).recovery.epoch, 2);
    assert_eq!(state.catalog().recovery.epoch, 2);
}

/// Every broker reads what is behind it, and it was passed.
fn pass(state: &mut State, gate: u32) {
    for broker in 1..=4 {
        let facts = facts(u128::from(broker), gate);
        state.apply(&Command::BrokerUp { broker: Some(BrokerId(broker)), facts }).unwrap();
    }
    state.apply(&Command::RaiseGate { gate }).unwrap();
}

#[test]
fn replicas_that_lost_their_memory_come_back_only_where_no_majority_is_left() {
    let reinstate = Command::Reinstate { uuid: 0xAB, now_ms: 5 };
    let lose = |replica, reason| Command::LoseReplica { replica: ReplicaId(replica), reason };
    let mut state = with_topic();
    assert_eq!(state.apply(&reinstate), Err(Refusal::GateClosed));
    pass(&mut state, GATE_REINSTATE);
    state.apply(&lose(2, LossReason::Unclean)).unwrap();
    assert_eq!(state.apply(&reinstate), Err(Refusal::BadStep), "two are left");
    state.apply(&lose(3, LossReason::Unclean)).unwrap();
    assert!(partition(&state).needs_unclean());
    let lost_all = {
        let mut state = state.clone();
        state.apply(&lose(4, LossReason::Unclean)).unwrap();
        state
    };
    for mut state in [state.clone(), lost_all] {
        assert_eq!(state.apply(&reinstate), Ok(Change::Done));
        assert_eq!(stages(&state), [2, 3, 4].map(|replica| (replica, Stage::Voter)));
        let recovery = Recovery { epoch: 1, lost_after: Index(0), created_ms: 5 };
        assert_eq!(partition(&state).recovery, recovery);
        assert!(partition(&state).voters().any(|v| v.replica == partition(&state).preferred));
        assert_eq!(state.apply(&reinstate), Err(Refusal::BadStep), "once");
        state.apply(&lose(3, LossReason::Unclean)).unwrap();
        assert_eq!(state.apply(&reinstate), Err(Refusal::BadStep), "two are left again");
    }
    let damaged = lose(4, LossReason::Damaged);
    state.apply(&damaged).unwrap();
    assert_eq!(state.apply(&reinstate), Ok(Change::Done));
    let kept = Stage::Lost(LossReason::Damaged);
    assert_eq!(stages(&state), [(2, Stage::Voter), (3, Stage::Voter), (4, kept)]);
    let mut state = with_topic();
    pass(&mut state, GATE_REINSTATE);
    for (replica, reason) in
        [(2, LossReason::Unclean), (3, LossReason::Empty), (4, LossReason::GivenUp)]
    {
        state.apply(&lose(replica, reason)).unwrap();
    }
    assert_eq!(state.apply(&reinstate), Err(Refusal::BadStep), "it would not help");
    let unknown = Command::Reinstate { uuid: 0xCD, now_ms: 5 };
    assert_eq!(state.apply(&unknown), Err(Refusal::UnknownPartition));
}

#[test]
fn moves_are_bounded() {
    let mut state = cluster(2);
    let partitions =
        (0..=MOVES_MAX as u128).map(|uuid| NewPartition { uuid, brokers: vec![FOUNDER] });
    let topic = Command::CreateTopic {
        name: name("t"),
        settings: settings(),
        created_ms: 1,
        partitions: partitions.collect(),
    };
    state.apply(&topic).unwrap();
    let formed = (2..=MOVES_MAX as u64 + 2).map(ReplicaId).collect();
    state.apply(&Command::NoteFormed { replicas: formed }).unwrap();
    let moved = |number: u32| Command::AddReplica {
        topic: TopicId(1),
        partition: PartitionId(number),
        broker: BrokerId(2),
        replaces: Some(ReplicaId(u64::from(number) + 2)),
    };
    for number in 0..MOVES_MAX as u32 {
        state.apply(&moved(number)).unwrap();
    }
    assert_eq!(state.apply(&moved(MOVES_MAX as u32)), Err(Refusal::MoveLimit));
    state.apply(&Command::DeleteTopic { topic: TopicId(1) }).unwrap();
    assert!(state.catalog().moves.is_empty(), "they end with their topic");
}

#[test]
fn a_cluster_has_its_golden_bytes() {
    let mut state = cluster(2);
    state.apply(&create_on("t", &[2])).unwrap();
    state.apply(&Command::NoteFormed { replicas: vec![ReplicaId(2)] }).unwrap();
    state.apply(&add(1, 2)).unwrap();
    let lost = Command::LoseReplica { replica: ReplicaId(2), reason: LossReason::Unclean };
    state.apply(&lost).unwrap();
    let hex: String = state.encode().iter().map(|byte| format!("{byte:02x}")).collect();
    let golden = concat!(
        "02c1000000000000000000000000000000",
        "0200000000000000",
        "0400000000000000",
        "0100000000000000",
        "0100000000000000",
        // gate, next broker, recovery of the metadata, counts
        "010000000300000000000000",
        "0000000000000000000000000000000000000000",
        "0200010100",
        "01000000000000000001",
        "01000000000000000000000000000000010000000000000001000000",
        "02623106683a3734323206683a373432300172",
        "02000000000000000001",
        "02000000000000000000000000000000010000000000000001000000",
        "02623206683a3734323206683a373432300172",
        "0100000000000000010000000000000003",
        "0300000000000000010000000000000000000000",
        "0200000000000000",
        // the topic
        "0174",
        "01000000000000000100000000000000",
        "000000000040000000000000000000000000",
        "0100000000000000",
        "0100000001",
        "ab000000000000000000000000000000",
        "02010200000000000000",
        "0000000000000000000000000000000000000000",
        "0200000000000000020000000000000013",
        "0300000000000000010000000000000001",
    );
    assert_eq!(hex, golden);
    assert_eq!(State::decode(&state.encode()), Ok(state));
}

#[test]
fn no_cut_of_a_cluster_is_a_state() {
    let bytes = with_topic().encode();
    for cut in 0..bytes.len() {
        assert!(State::decode(&bytes[..cut]).is_err(), "{cut} bytes");
    }
}

#[test]
fn several_brokers_found_a_cluster_at_once_and_it_goes_on_behind_them() {
    let found = |cluster, brokers, voters| Command::Found { cluster, brokers, voters };
    let mut state = State::default();
    let refused = [
        (found(7, 0, 1), Refusal::BrokerLimit),
        (found(7, 65, 1), Refusal::BrokerLimit),
        (found(7, 2, 3), Refusal::BadReplicas),
        (found(7, 4, 2), Refusal::BadReplicas),
    ];
    for (command, refusal) in refused {
        assert_eq!(state.apply(&command), Err(refusal), "{command:?}");
        assert_eq!(state, State::default());
    }
    assert_eq!(state.apply(&found(7, 4, 3)), Ok(Change::Formed { cluster: 7 }));
    assert_eq!(state.apply(&found(8, 9, 5)), Ok(Change::Formed { cluster: 7 }), "once");
    let catalog = state.catalog();
    assert_eq!((catalog.gate, catalog.brokers.len()), (GATE_CLUSTER, 4));
    let placed = catalog.metadata.iter().map(|here| (here.replica.0, here.broker.0, here.stage));
    assert!(placed.eq((1..=3).map(|n| (n, n, Stage::Voter))));
    assert_eq!(State::decode(&state.encode()).as_ref(), Ok(&state));
    assert_eq!(state.apply(&up(4, 4)), Ok(Change::BrokerUp(BrokerId(4))), "each takes its place");
    assert_eq!(state.apply(&up(0, 5)), Ok(Change::BrokerUp(BrokerId(5))));
    let joined = state.apply(&Command::JoinMetadata { broker: BrokerId(4) });
    let placed = Placement { replica: ReplicaId(4), broker: BrokerId(4), stage: Stage::Joining };
    assert_eq!(joined, Ok(Change::Placed(placed)));
}
