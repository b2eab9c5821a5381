//! What the metadata is to say once an operator let logs go on without the majority of their groups.
//!
//! Owns: the commands, made of the catalog as it stands. Pure.
//! Never: writes what a broker of the cluster may not read.
//! Invariant: made again of a catalog that holds them already, they say nothing new.

use super::command::Command;
use super::state::{Catalog, LossReason, Placement, Recovery, Stage};
use weir_protocol::types::{BrokerId, Index};

/// A log that goes on alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Survivor {
    /// Identity of the log; 0 = the metadata.
    pub uuid: u128,
    /// The last index that is there.
    pub last: Index,
}

/// The commands, encoded, for logs that go on alone on `broker`: a later recovery epoch for each, and
/// the end of every other replica of them. `now_ms` is the wall clock since the epoch.
pub fn commands_of(
    catalog: &Catalog,
    broker: BrokerId,
    survivors: &[Survivor],
    now_ms: u64,
) -> Vec<Vec<u8>> {
    let mut commands = Vec::new();
    for survivor in survivors {
        let found = match survivor.uuid {
            0 => Some((catalog.recovery, catalog.metadata.as_slice())),
            uuid => {
                let found = catalog.partitions().find(|(_, partition)| partition.uuid == uuid);
                found.map(|(_, partition)| (partition.recovery, partition.replicas.as_slice()))
            }
        };
        let Some((known, replicas)) = found else { continue };
        if known.lost_after != survivor.last || known.epoch == 0 {
            let recovery = Recovery {
                epoch: known.epoch.saturating_add(1),
                lost_after: survivor.last,
                created_ms: now_ms,
            };
            commands.push(Command::NoteRecovery { uuid: survivor.uuid, recovery });
        }
        let counts = |other: &&Placement| {
            let gone = matches!(other.stage, Stage::Leaving | Stage::Lost(_));
            other.broker != broker && !gone
        };
        let lost = replicas.iter().filter(counts);
        commands.extend(lost.map(|other| Command::LoseReplica {
            replica: other.replica,
            reason: LossReason::GivenUp,
        }));
    }
    commands.retain(|command| command.gate() <= catalog.gate);
    commands.iter().map(Command::encode).collect()
}

#[cfg(test)]
mod tests {
    use super::super::state::{Address, BrokerFacts, GATE_CLUSTER, GATE_HERE, State};
    use super::super::{NewPartition, Settings};
    use super::*;
    use weir_protocol::frame::{Durability, Overflow};
    use weir_protocol::types::Name;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    /// Three brokers, each with a replica of the one partition.
    fn cluster() -> State {
        let settings = Settings {
            durability: Durability::Fsync,
            overflow: Overflow::Backpressure,
            max_bytes: 1 << 30,
            max_age_ms: 0,
        };
        let mut state = State::default();
        state.apply(&Command::Form { cluster: 7, broker: BrokerId(1) }).unwrap();
        state.apply(&Command::RaiseGate { gate: GATE_CLUSTER }).unwrap();
        for token in 1..=3u64 {
            let facts = BrokerFacts {
                token: token.into(),
                instance: 1,
                gate: GATE_HERE,
                name: name(&format!("b{token}")),
                peer: Address::new("h:7422").unwrap(),
                client: Address::new("h:7420").unwrap(),
                rack: name("r"),
            };
            let broker = (token == 1).then_some(BrokerId(1));
            state.apply(&Command::BrokerUp { broker, facts }).unwrap();
        }
        let brokers = [1, 2, 3].map(BrokerId).to_vec();
        let partitions = vec![NewPartition { uuid: 0xAB, brokers }];
        let create = Command::CreateTopic { name: name("t"), settings, created_ms: 1, partitions };
        state.apply(&create).unwrap();
        state
    }

    #[test]
    fn each_log_gets_a_later_epoch_once_and_the_others_are_given_up() {
        let mut state = cluster();
        let survivors =
            [Survivor { uuid: 0, last: Index(30) }, Survivor { uuid: 0xAB, last: Index(9) }];
        let commands = commands_of(state.catalog(), BrokerId(1), &survivors, 5);
        assert_eq!(commands.len(), 2 + 2, "two logs, two other replicas of the partition");
        for command in &commands {
            state.apply(&Command::decode(command).unwrap()).unwrap();
        }
        let partition = state.catalog().partitions().next().unwrap().1.clone();
        assert_eq!((partition.recovery.epoch, partition.recovery.lost_after), (1, Index(9)));
        let given_up = |placement: &&Placement| placement.stage == Stage::Lost(LossReason::GivenUp);
        let given_up: Vec<BrokerId> =
            partition.replicas.iter().filter(given_up).map(|placement| placement.broker).collect();
        assert_eq!(given_up, [2, 3].map(BrokerId));
        assert_eq!(state.catalog().recovery.epoch, 1);
        let again = commands_of(state.catalog(), BrokerId(1), &survivors, 6);
        assert!(again.is_empty(), "made again, nothing is new");
        let later = [Survivor { uuid: 0xAB, last: Index(12) }];
        assert_eq!(commands_of(state.catalog(), BrokerId(1), &later, 7).len(), 1);
    }

    #[test]
    fn nothing_is_written_that_a_broker_may_not_read() {
        let mut state = State::default();
        state.apply(&Command::Form { cluster: 7, broker: BrokerId(1) }).unwrap();
        let survivors = [Survivor { uuid: 0, last: Index(30) }];
        assert!(commands_of(state.catalog(), BrokerId(1), &survivors, 5).is_empty());
    }
}
