//! Commands in any order, against what must hold whatever is asked.

use super::*;
use std::collections::BTreeMap;
use weir_protocol::limits::REPLICAS_MAX;
use weir_protocol::types::{Index, PartitionId, ReplicaId};

/// Numbers from which a command is made, so that most of them meet what is there.
type Dice = [u8; 4];

fn broker_of(die: u8) -> BrokerId {
    BrokerId(u64::from(die % 7) + 1)
}

fn replica_of(state: &State, die: u8) -> ReplicaId {
    let known: Vec<_> = replicas(state).map(|(_, here)| here.replica).collect();
    match known.is_empty() || die >= 240 {
        true => ReplicaId(u64::from(die) % state.next_replica + 1),
        false => known[usize::from(die) % known.len()],
    }
}

/// Every replica with the identity of its log.
fn replicas(state: &State) -> impl Iterator<Item = (u128, Placement)> {
    let catalog = state.catalog();
    let partitions = catalog.partitions();
    let placed = partitions.flat_map(|(_, p)| p.replicas.iter().map(|here| (p.uuid, *here)));
    placed.chain(catalog.metadata.iter().map(|here| (0, *here)))
}

fn command(state: &State, serial: usize, [kind, a, b, c]: Dice) -> Command {
    let topics: Vec<_> = state.catalog().topics.values().collect();
    let topic = topics.get(usize::from(a) % topics.len().max(1));
    let id = topic.map_or(TopicId(9), |topic| topic.id);
    let revision = topic.map_or(TopicRevision(1), |topic| topic.revision);
    let partition = PartitionId(u32::from(b % 2));
    // Before its gate a single node places on itself.
    let alone = state.catalog().gate == 0;
    let count = if alone { 1 } else { [1, 3, 5, 2][usize::from(b % 4)] };
    let first = if alone { 0 } else { c % 7 };
    let placed = |serial: usize| NewPartition {
        uuid: serial as u128 + 1,
        brokers: (0..count).map(|next| broker_of(first + next)).collect(),
    };
    match kind % 24 {
        0 | 1 => Command::CreateTopic {
            name: name(&format!("t{}", a % 3)),
            settings: settings(),
            created_ms: 1,
            partitions: vec![placed(serial * 2), placed(serial * 2 + 1)],
        },
        2 => Command::AlterTopic {
            topic: id,
            revision,
            settings: settings(),
            added: vec![placed(serial * 2)],
        },
        3 if a < 60 => Command::DeleteTopic { topic: id },
        3 | 4 => Command::SetReplicas { topic: id, revision, replicas: count },
        5 | 6 => up(a, b),
        7 => Command::SetStanding {
            broker: broker_of(a),
            standing: if b < 128 { Standing::Active } else { Standing::Draining },
        },
        8 => Command::RemoveBroker { broker: broker_of(a) },
        9 | 10 => {
            Command::NoteFormed { replicas: vec![replica_of(state, a), replica_of(state, b)] }
        }
        11..=13 => Command::AddReplica {
            topic: id,
            partition,
            broker: broker_of(c),
            replaces: (c < 200).then(|| replica_of(state, b.wrapping_mul(7))),
        },
        14..=18 => Command::StepReplica {
            replica: replica_of(state, a),
            step: [Step::Ready, Step::Voter, Step::Leaving, Step::Gone][usize::from(b % 4)],
        },
        19 => {
            let reason = if b < 128 { LossReason::Damaged } else { LossReason::Unclean };
            Command::LoseReplica { replica: replica_of(state, a), reason }
        }
        20 => Command::Prefer { topic: id, partition, replica: replica_of(state, c) },
        21 => Command::RaiseGate { gate: u32::from(a % 4) },
        22 if c >= 128 => {
            let stuck =
                state.catalog().partitions().find(|(_, partition)| partition.needs_unclean());
            let uuid = stuck.map_or(u128::from(a % 9), |(_, partition)| partition.uuid);
            Command::Reinstate { uuid, now_ms: 5 }
        }
        22 => Command::NoteRecovery {
            uuid: u128::from(a % 9),
            recovery: Recovery { epoch: b.into(), lost_after: Index(1), created_ms: 1 },
        },
        _ if a < 100 => Command::JoinMetadata { broker: broker_of(b) },
        _ => Command::StepMetadata {
            replica: replica_of(state, b),
            step: [MetadataStep::Learner, MetadataStep::Voter, MetadataStep::Gone]
                [usize::from(c % 3)],
        },
    }
}

fn up(a: u8, b: u8) -> Command {
    let facts = BrokerFacts {
        token: u128::from(a % 12),
        instance: 1,
        gate: GATE_REINSTATE + u32::from(b % 2),
        name: name("b"),
        peer: Address::new("h:1").unwrap(),
        client: Address::new("h:2").unwrap(),
        rack: name("r"),
    };
    Command::BrokerUp { broker: (b < 60).then(|| broker_of(a)), facts }
}

/// What was ever issued, and to whom.
#[derive(Default)]
struct Seen {
    replicas: BTreeMap<ReplicaId, (u128, BrokerId)>,
    tokens: BTreeMap<BrokerId, u128>,
}

impl Seen {
    fn check(&mut self, before: &State, now: &State) {
        assert!(now.catalog().gate >= before.catalog().gate, "the gate fell");
        self.check_ids(before, now);
        for (topic, partition) in now.catalog().partitions() {
            check_partition(now.catalog(), topic, partition);
        }
        let stages: BTreeMap<_, _> = replicas(before).map(|(_, p)| (p.replica, p.stage)).collect();
        for (_, placement) in replicas(now) {
            let was = stages.get(&placement.replica);
            let over = matches!(was, Some(Stage::Leaving | Stage::Lost(_)));
            let is = matches!(placement.stage, Stage::Leaving | Stage::Lost(_));
            let lost_memory = was == Some(&Stage::Lost(LossReason::Unclean));
            let is_reinstated = lost_memory && placement.stage == Stage::Voter;
            assert!(!over || is || is_reinstated, "{placement:?} came back");
        }
        assert!(!now.catalog().metadata.is_empty());
    }

    /// An id stands for one log on one broker, or for one data directory, and once it is gone it
    /// stays gone.
    fn check_ids(&mut self, before: &State, now: &State) {
        for (uuid, placement) in replicas(now) {
            let known = self.replicas.insert(placement.replica, (uuid, placement.broker));
            assert!(known.is_none_or(|known| known == (uuid, placement.broker)), "{placement:?}");
            let stood = replicas(before).any(|(_, there)| there.replica == placement.replica);
            assert!(stood || known.is_none(), "{placement:?} returned");
            let home = now.catalog().brokers.contains_key(&placement.broker);
            assert!(home, "{placement:?} is on no broker of the cluster");
        }
        for card in now.catalog().brokers.values() {
            let Some(facts) = &card.facts else { continue };
            let known = self.tokens.insert(card.id, facts.token);
            assert!(known.is_none_or(|known| known == facts.token), "{card:?}");
            let stood = before.catalog().brokers.contains_key(&card.id);
            assert!(stood || known.is_none(), "{card:?} returned");
            assert!(facts.gate >= now.catalog().gate, "{card:?} does not read the gate");
        }
    }
}

fn check_partition(catalog: &Catalog, topic: &Topic, partition: &Partition) {
    let whole = |here: &&Placement| !matches!(here.stage, Stage::Leaving | Stage::Lost(_));
    let homes: Vec<_> = partition.replicas.iter().filter(whole).map(|here| here.broker).collect();
    let distinct: BTreeSet<_> = homes.iter().collect();
    assert_eq!(homes.len(), distinct.len(), "{partition:?}");
    assert!((1..=REPLICAS_MAX).contains(&partition.replicas.len()));
    let prefers = partition.replica(partition.preferred).unwrap();
    assert!(prefers.stage == Stage::Voter || partition.voters().count() == 0, "{partition:?}");
    let moves = catalog.moves.values();
    let moves = moves.filter(|m| (m.topic, m.partition) == (topic.id, partition.id)).count();
    assert!(moves <= 1, "{moves} moves of {partition:?}");
    for placement in &partition.replicas {
        let joins = matches!(placement.stage, Stage::Joining | Stage::Ready);
        assert!(!joins || catalog.moves.contains_key(&placement.replica), "{placement:?}");
    }
}

/// A model whose dice reach little would prove little.
#[test]
fn every_command_is_accepted_now_and_then_and_every_stage_is_reached() {
    let mut random = fastrand::Rng::with_seed(1);
    let (mut accepted, mut reached) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..40 {
        let mut state = State::default();
        state.apply(&Command::Form { cluster: 7, broker: FOUNDER }).unwrap();
        state.apply(&Command::RaiseGate { gate: GATE_CLUSTER }).unwrap();
        for serial in 0..400 {
            let dice = std::array::from_fn(|_| random.u8(..));
            let command = command(&state, serial, dice);
            if state.apply(&command).is_ok() {
                accepted.insert(command.encode()[1]);
            }
            reached.extend(replicas(&state).map(|(_, here)| format!("{:?}", here.stage)));
        }
    }
    let kinds: BTreeSet<u8> = (2..=16).filter(|kind| *kind != 5).chain([18]).collect();
    assert_eq!(accepted, kinds);
    assert_eq!(reached.len(), 6, "{reached:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_is_asked_ids_homes_and_gates_hold(
        dice in proptest::collection::vec(any::<Dice>(), 1..250),
        gated in any::<bool>(),
        at in 0usize..250,
    ) {
        let mut state = State::default();
        let mut restored = State::default();
        let mut seen = Seen::default();
        let mut first = vec![Command::Form { cluster: 7, broker: FOUNDER }];
        if gated {
            first.push(Command::RaiseGate { gate: GATE_CLUSTER });
            first.extend((1..6).map(|token| up(token, 120)));
        }
        for position in 0..first.len() + dice.len() {
            let rolled = position.checked_sub(first.len());
            let command = match rolled {
                None => first[position].clone(),
                Some(rolled) => command(&state, position, dice[rolled]),
            };
            if position == at {
                restored = State::decode(&restored.encode()).unwrap();
            }
            let before = state.clone();
            let outcome = state.apply(&command);
            prop_assert_eq!(restored.apply(&Command::decode(&command.encode()).unwrap()), outcome.clone());
            if outcome.is_err() {
                prop_assert_eq!(&state, &before, "refused, and changed: {:?}", command);
            }
            seen.check(&before, &state);
            // Repeated, it is idempotent or refused.
            let mut again = state.clone();
            let repeated = again.apply(&command);
            prop_assert_eq!(&again, &state, "{:?} twice: {:?}", command, repeated);
        }
        prop_assert_eq!(State::decode(&state.encode()), Ok(state.clone()));
        prop_assert_eq!(restored, state);
    }
}
