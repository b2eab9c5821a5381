//! Groups that lost what they held in memory all at once.
//!
//! Owns: when replicas take part again that may lack what they acknowledged: a topic that promises no
//! more than memory comes back from a loss of power without anybody's help, and says what it cost.
//! Never: where a majority is left that lacks nothing: the others begin anew then; behind a gate that
//! is closed.

use super::COMMANDS_MAX;
use crate::replication::metadata::{Catalog, Command, GATE_REINSTATE};

/// What is to be said now; `now_ms` is the wall clock, since the epoch.
pub(super) fn reinstate(catalog: &Catalog, now_ms: u64) -> Vec<Command> {
    if catalog.gate < GATE_REINSTATE {
        return Vec::new();
    }
    let stuck = catalog.partitions().filter(|(_, partition)| partition.needs_unclean());
    let reinstate = stuck.map(|(_, partition)| Command::Reinstate { uuid: partition.uuid, now_ms });
    reinstate.take(COMMANDS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::metadata::{
        Address, BrokerFacts, LossReason, NewPartition, Settings, State,
    };
    use weir_protocol::frame::{Durability, Overflow};
    use weir_protocol::types::{BrokerId, Name, ReplicaId};

    fn facts(broker: u64) -> BrokerFacts {
        BrokerFacts {
            token: broker.into(),
            instance: 1,
            gate: GATE_REINSTATE,
            name: Name::new(&format!("b{broker}")).unwrap(),
            peer: Address::new("h:1").unwrap(),
            client: Address::new("h:2").unwrap(),
            rack: Name::new("r").unwrap(),
        }
    }

    /// A partition of three replicas, with the identity 9.
    fn state() -> State {
        let mut state = State::default();
        state.apply(&Command::Found { cluster: 1, brokers: 3, voters: 3 }).unwrap();
        for broker in 1..=3 {
            let up = Command::BrokerUp { broker: Some(BrokerId(broker)), facts: facts(broker) };
            state.apply(&up).unwrap();
        }
        let settings = Settings {
            durability: Durability::Memory,
            overflow: Overflow::Reject,
            max_bytes: 1 << 20,
            max_age_ms: 0,
        };
        let brokers = [1, 2, 3].map(BrokerId).to_vec();
        let partitions = vec![NewPartition { uuid: 9, brokers }];
        let name = Name::new("t").unwrap();
        state.apply(&Command::CreateTopic { name, settings, created_ms: 1, partitions }).unwrap();
        state
    }

    #[test]
    fn what_lost_its_memory_all_at_once_is_reinstated_behind_the_gate() {
        let mut state = state();
        let replicas: Vec<ReplicaId> = {
            let (_, partition) = state.catalog().partitions().next().unwrap();
            partition.replicas.iter().map(|here| here.replica).collect()
        };
        let lose = |replica| Command::LoseReplica { replica, reason: LossReason::Unclean };
        for replica in replicas {
            state.apply(&lose(replica)).unwrap();
        }
        assert_eq!(reinstate(state.catalog(), 7), [], "the gate is closed");
        state.apply(&Command::RaiseGate { gate: GATE_REINSTATE }).unwrap();
        let commands = reinstate(state.catalog(), 7);
        assert_eq!(commands, [Command::Reinstate { uuid: 9, now_ms: 7 }]);
        state.apply(&commands[0]).unwrap();
        assert_eq!(reinstate(state.catalog(), 8), []);
    }
}
