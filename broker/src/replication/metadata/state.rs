//! Owns: what the cluster knows of itself: its brokers, topics with their partitions and replicas,
//! moves, and the identities behind producer names.
//! Never: sees a clock, randomness or the disk; applying the same commands gives the same state.
//! Invariants: broker, topic, replica and producer ids are never reused; a producer's epoch only
//! rises; every table is bounded; a command that is refused changes nothing; what a command needs
//! a gate for is refused before that gate, so that a state of gate 0 is what older builds read.

mod brokers;
mod catalog;
mod moves;
mod producers;
mod topics;

pub use brokers::{
    Address, BrokerCard, BrokerFacts, FOUNDER, GATE_CLUSTER, GATE_HERE, GATE_REINSTATE, Standing,
};
pub use catalog::{
    Catalog, LossReason, Move, Partition, Placement, Recovery, Settings, Stage, Topic,
    TopicRevision,
};
pub use moves::MOVES_MAX;
pub use producers::{PRODUCERS_MAX, Producer};
pub use topics::REPLICA_COUNTS;

use super::command::Command;
use super::refusal::Refusal;
use std::collections::BTreeMap;
use std::sync::Arc;
use weir_protocol::limits::BROKERS_MAX;
use weir_protocol::types::{BrokerId, Name, ReplicaId};

/// Topics of one cluster.
pub const TOPICS_MAX: usize = 10_000;
/// Partitions of one cluster, over all topics.
pub const CLUSTER_PARTITIONS_MAX: usize = 20_000;
/// Numbers of voters that a metadata group is formed with.
pub const METADATA_VOTER_COUNTS: [u8; 3] = [1, 3, 5];
/// The replica of the metadata log on the broker that forms the cluster; others follow it.
pub const METADATA_REPLICA: ReplicaId = ReplicaId(1);

/// The whole state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub(super) catalog: Arc<Catalog>,
    pub(super) producers: BTreeMap<Name, Producer>,
    pub(super) next_topic: u64,
    pub(super) next_replica: u64,
    pub(super) next_producer: u64,
    pub(super) next_broker: u64,
    /// Of all topics.
    pub(super) partitions: usize,
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The cluster has its identity, now or before.
    Formed {
        /// The identity that stands.
        cluster: u128,
    },
    /// A topic was created.
    Created(Arc<Topic>),
    /// A topic was changed.
    Altered(Arc<Topic>),
    /// A topic was deleted.
    Deleted(Arc<Topic>),
    /// A producer was opened.
    Opened(Producer),
    /// A broker is known under this id.
    BrokerUp(BrokerId),
    /// A replica has this identity and place, now or before.
    Placed(Placement),
    /// The gate that stands.
    Gate(u32),
    /// It is as the command says, now or before.
    Done,
}

impl Default for State {
    fn default() -> Self {
        Self {
            catalog: Arc::default(),
            producers: BTreeMap::new(),
            next_topic: 1,
            next_replica: METADATA_REPLICA.0 + 1,
            next_producer: 1,
            next_broker: FOUNDER.0 + 1,
            partitions: 0,
        }
    }
}

impl State {
    /// What everybody may see.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// Applies one command: the only way the state changes.
    pub fn apply(&mut self, command: &Command) -> Result<Change, Refusal> {
        if command.gate() > self.catalog.gate {
            return Err(Refusal::GateClosed);
        }
        match command {
            Command::Form { cluster, broker } => self.form(*cluster, *broker),
            Command::Found { cluster, brokers, voters } => {
                self.form_of_several(*cluster, *brokers, *voters)
            }
            Command::CreateTopic { name, settings, created_ms, partitions } => {
                self.create(name, *settings, *created_ms, partitions)
            }
            Command::AlterTopic { topic, revision, settings, added } => {
                self.alter(*topic, *revision, *settings, added)
            }
            Command::DeleteTopic { topic } => self.delete(*topic),
            Command::OpenProducer { name } => self.open_producer(name),
            Command::BrokerUp { broker, facts } => self.broker_up(*broker, facts),
            Command::SetStanding { broker, standing } => self.set_standing(*broker, *standing),
            Command::RemoveBroker { broker } => self.remove_broker(*broker),
            Command::NoteFormed { replicas } => Ok(self.note_formed(replicas)),
            Command::AddReplica { topic, partition, broker, replaces } => {
                self.add_replica(*topic, *partition, *broker, *replaces)
            }
            Command::StepReplica { replica, step } => self.step_replica(*replica, *step),
            Command::LoseReplica { replica, reason } => self.lose_replica(*replica, *reason),
            Command::Prefer { topic, partition, replica } => {
                self.prefer(*topic, *partition, *replica)
            }
            Command::RaiseGate { gate } => self.raise_gate(*gate),
            Command::NoteRecovery { uuid, recovery } => self.note_recovery(*uuid, *recovery),
            Command::Reinstate { uuid, now_ms } => self.reinstate(*uuid, *now_ms),
            Command::JoinMetadata { broker } => self.join_metadata(*broker),
            Command::StepMetadata { replica, step } => self.step_metadata(*replica, *step),
            Command::SetReplicas { topic, revision, replicas } => {
                self.set_replicas(*topic, *revision, *replicas)
            }
        }
    }

    fn form(&mut self, cluster: u128, broker: BrokerId) -> Result<Change, Refusal> {
        if self.catalog.cluster == 0 && cluster != 0 {
            if broker != FOUNDER {
                return Err(Refusal::UnknownBroker);
            }
            self.found(cluster);
        }
        Ok(Change::Formed { cluster: self.catalog.cluster })
    }

    /// Names the cluster that brokers with the ids from 1 on form. None of them has told anything of
    /// itself yet, but that it obeyed: they all read what is behind the gate.
    fn form_of_several(
        &mut self,
        cluster: u128,
        brokers: u16,
        voters: u8,
    ) -> Result<Change, Refusal> {
        if self.catalog.cluster == 0 && cluster != 0 {
            if !(1..=BROKERS_MAX).contains(&usize::from(brokers)) {
                return Err(Refusal::BrokerLimit);
            }
            if !METADATA_VOTER_COUNTS.contains(&voters) || u16::from(voters) > brokers {
                return Err(Refusal::BadReplicas);
            }
            self.next_broker = FOUNDER.0 + u64::from(brokers);
            self.next_replica = METADATA_REPLICA.0 + u64::from(voters);
            (FOUNDER.0..self.next_broker).for_each(|id| self.register_founder(BrokerId(id)));
            let places = METADATA_REPLICA.0..self.next_replica;
            let placed = places.zip(FOUNDER.0..).map(|(replica, broker)| Placement {
                replica: ReplicaId(replica),
                broker: BrokerId(broker),
                stage: Stage::Voter,
            });
            let catalog = Arc::make_mut(&mut self.catalog);
            (catalog.cluster, catalog.gate) = (cluster, GATE_CLUSTER);
            catalog.metadata = placed.collect();
        }
        Ok(Change::Formed { cluster: self.catalog.cluster })
    }

    /// Names the cluster and makes its founder its first broker, with the first replica of the
    /// metadata. All that a state of gate 0 has of brokers follows from its name.
    pub(super) fn found(&mut self, cluster: u128) {
        self.register_founder(FOUNDER);
        let placement =
            Placement { replica: METADATA_REPLICA, broker: FOUNDER, stage: Stage::Voter };
        let catalog = Arc::make_mut(&mut self.catalog);
        catalog.cluster = cluster;
        catalog.metadata = vec![placement];
    }
}
