//! Owns: the commands of the metadata log; [`codec`] has their bytes.
//! Never: judges a command; that is [`super::State::apply`].
//! Invariants: randomness and clocks are read by whoever proposes and travel in the command, so
//! that every replica applies the same.

mod codec;
#[cfg(test)]
mod tests;

use super::state::{
    BrokerFacts, GATE_CLUSTER, GATE_REINSTATE, LossReason, Recovery, Settings, Standing,
    TopicRevision,
};
use weir_protocol::types::{BrokerId, Name, PartitionId, ReplicaId, TopicId};

/// A change of the metadata, as it stands in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Names the cluster: the first command of every metadata log.
    Form {
        /// Identity of the cluster, random, for ever.
        cluster: u128,
        /// The broker that forms it.
        broker: BrokerId,
    },
    /// Names a cluster that several brokers form at once: the first command of its metadata log. They
    /// have the ids from 1 on, and the first of them the first voters of the metadata, whose
    /// replicas have the same numbers. The gate of a cluster is passed with it.
    Found {
        /// Identity of the cluster, random, for ever.
        cluster: u128,
        /// How many brokers form it.
        brokers: u16,
        /// How many of them vote on metadata: 1, 3 or 5.
        voters: u8,
    },
    /// Creates a topic.
    CreateTopic {
        /// Its name.
        name: Name,
        /// What may be changed later.
        settings: Settings,
        /// The wall clock, milliseconds since the epoch.
        created_ms: u64,
        /// Its partitions, from number 0.
        partitions: Vec<NewPartition>,
    },
    /// Changes a topic's settings, adds partitions behind the last, or both.
    AlterTopic {
        /// Which topic.
        topic: TopicId,
        /// The revision that the change was made from.
        revision: TopicRevision,
        /// All settings, new and old.
        settings: Settings,
        /// Partitions to add.
        added: Vec<NewPartition>,
    },
    /// Deletes a topic with all it holds.
    DeleteTopic {
        /// Which topic.
        topic: TopicId,
    },
    /// Opens a named producer: finds or makes its identity and raises its epoch, which fences
    /// whoever used the name before.
    OpenProducer {
        /// Its name.
        name: Name,
    },
    /// A broker started. One without an id is known by its token, or gets a new id.
    BrokerUp {
        /// Its id, if it has one.
        broker: Option<BrokerId>,
        /// What it tells of itself.
        facts: BrokerFacts,
    },
    /// Says what a broker may be used for.
    SetStanding {
        /// Which broker.
        broker: BrokerId,
        /// What it may be used for.
        standing: Standing,
    },
    /// Removes a broker that holds no replica.
    RemoveBroker {
        /// Which broker.
        broker: BrokerId,
    },
    /// Notes partitions whose groups had their first leader.
    NoteFormed {
        /// One replica of each.
        replicas: Vec<ReplicaId>,
    },
    /// Lets a new replica join a partition.
    AddReplica {
        /// Of which topic.
        topic: TopicId,
        /// Of which partition.
        partition: PartitionId,
        /// Where it shall be.
        broker: BrokerId,
        /// The replica that leaves for it.
        replaces: Option<ReplicaId>,
    },
    /// Notes where a replica of a partition has come to.
    StepReplica {
        /// Which replica.
        replica: ReplicaId,
        /// What it is now.
        step: Step,
    },
    /// Gives a replica up.
    LoseReplica {
        /// Which replica, of a partition or of the metadata.
        replica: ReplicaId,
        /// Why.
        reason: LossReason,
    },
    /// Names who shall lead a partition.
    Prefer {
        /// Of which topic.
        topic: TopicId,
        /// Which partition.
        partition: PartitionId,
        /// The replica.
        replica: ReplicaId,
    },
    /// Lets the cluster write what older builds do not read.
    RaiseGate {
        /// The new gate.
        gate: u32,
    },
    /// Notes that an operator let a log go on without what stood behind an index.
    NoteRecovery {
        /// Identity of the log; 0 = the metadata.
        uuid: u128,
        /// What was accepted.
        recovery: Recovery,
    },
    /// Lets the replicas of a partition take part again that lost what they held in memory, because no
    /// majority is left without them. What they lack is lost, and the recovery epoch says so.
    Reinstate {
        /// Identity of the log.
        uuid: u128,
        /// The wall clock, milliseconds since the epoch.
        now_ms: u64,
    },
    /// Gives a broker a replica of the metadata, which learns.
    JoinMetadata {
        /// Which broker.
        broker: BrokerId,
    },
    /// Notes where a replica of the metadata has come to.
    StepMetadata {
        /// Which replica.
        replica: ReplicaId,
        /// What it is now.
        step: MetadataStep,
    },
    /// Changes how many replicas each partition of a topic shall have.
    SetReplicas {
        /// Which topic.
        topic: TopicId,
        /// The revision that the change was made from.
        revision: TopicRevision,
        /// How many.
        replicas: u8,
    },
}

/// A partition to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPartition {
    /// Identity of its log, random.
    pub uuid: u128,
    /// Who holds a replica, the preferred leader first; 1 to [`REPLICAS_MAX`](weir_protocol::limits::REPLICAS_MAX).
    pub brokers: Vec<BrokerId>,
}

/// Where a replica of a partition has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It has nearly all that its leader has.
    Ready = 1,
    /// Its group counts its vote.
    Voter = 2,
    /// Its group shall forget it.
    Leaving = 3,
    /// Its group has forgotten it.
    Gone = 4,
}

/// Where a replica of the metadata has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetadataStep {
    /// The group counts its vote no longer; it keeps a copy.
    Learner = 1,
    /// The group counts its vote.
    Voter = 2,
    /// The group has forgotten it.
    Gone = 4,
}

impl Command {
    /// The gate before which no log may hold this command.
    pub fn gate(&self) -> u32 {
        match self {
            Self::Form { .. }
            | Self::Found { .. }
            | Self::CreateTopic { .. }
            | Self::AlterTopic { .. }
            | Self::DeleteTopic { .. }
            | Self::OpenProducer { .. }
            | Self::RaiseGate { .. } => 0,
            Self::BrokerUp { .. }
            | Self::SetStanding { .. }
            | Self::RemoveBroker { .. }
            | Self::NoteFormed { .. }
            | Self::AddReplica { .. }
            | Self::StepReplica { .. }
            | Self::LoseReplica { .. }
            | Self::Prefer { .. }
            | Self::NoteRecovery { .. }
            | Self::JoinMetadata { .. }
            | Self::StepMetadata { .. }
            | Self::SetReplicas { .. } => GATE_CLUSTER,
            Self::Reinstate { .. } => GATE_REINSTATE,
        }
    }
}
