//! What everybody may see of the metadata.
//!
//! Owns: the words: topics, partitions, replicas and their stages, moves.
//! Never: changes; a command makes a new one of these.

use super::BrokerCard;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use weir_protocol::frame::{Durability, Overflow};
use weir_protocol::types::{BrokerId, Index, Name, PartitionId, ReplicaId, TopicId};

/// Counts the changes of one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TopicRevision(pub u64);

/// What may be changed about a topic after it was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// When a publish is acknowledged.
    pub durability: Durability,
    /// What happens at the limit.
    pub overflow: Overflow,
    /// Bytes of each partition's log that are retained.
    pub max_bytes: u64,
    /// Age at which records are trimmed, milliseconds; 0 = never.
    pub max_age_ms: u64,
}

/// Why a replica will never serve again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossReason {
    /// Its folder was empty although its group was formed.
    Empty = 1,
    /// Its log or its votes cannot be read and no peer closes the hole.
    Damaged = 2,
    /// It promised no more than memory, and its machine went down.
    Unclean = 3,
    /// An operator, or a long silence of its broker, gave it up.
    GivenUp = 4,
}

/// What a replica is to its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It learns and is far behind.
    Joining,
    /// It learns and is close enough to vote.
    Ready,
    /// Its votes and flushes count.
    Voter,
    /// It is on its way out and never comes back.
    Leaving,
    /// It must never vote again, though its group may still count it.
    Lost(LossReason),
}

/// One replica of a partition or of the metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Its identity.
    pub replica: ReplicaId,
    /// Where it is.
    pub broker: BrokerId,
    /// What it is to its group.
    pub stage: Stage,
}

/// What an operator accepted to lose, so that a group could go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recovery {
    /// How often that was done; 0 = never.
    pub epoch: u32,
    /// Behind this index something may be missing.
    pub lost_after: Index,
    /// The wall clock, milliseconds since the epoch.
    pub created_ms: u64,
}

/// One partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number.
    pub id: PartitionId,
    /// Identity of its log.
    pub uuid: u128,
    /// Whether its group ever had a leader: an empty replica of it is lost, not new.
    pub formed: bool,
    /// Who shall lead when nothing speaks against it.
    pub preferred: ReplicaId,
    /// What was accepted to be lost of it.
    pub recovery: Recovery,
    /// Its replicas, in the order in which they came.
    pub replicas: Vec<Placement>,
}

impl Partition {
    /// The replicas that vote.
    pub fn voters(&self) -> impl Iterator<Item = &Placement> {
        self.replicas.iter().filter(|placement| placement.stage == Stage::Voter)
    }

    /// The replicas that lost what they held in memory, one on each broker that holds no other.
    pub fn unclean(&self) -> Vec<ReplicaId> {
        let gone = |here: &&Placement| matches!(here.stage, Stage::Leaving | Stage::Lost(_));
        let others = self.replicas.iter().filter(|here| !gone(here));
        let mut homes: BTreeSet<BrokerId> = others.map(|here| here.broker).collect();
        let unclean = self.replicas.iter().filter(|here| {
            here.stage == Stage::Lost(LossReason::Unclean) && homes.insert(here.broker)
        });
        unclean.map(|here| here.replica).collect()
    }

    /// Whether no majority of it is left but with those.
    pub fn needs_unclean(&self) -> bool {
        let counts = |here: &&Placement| matches!(here.stage, Stage::Voter | Stage::Lost(_));
        let (whole, all) = (self.voters().count(), self.replicas.iter().filter(counts).count());
        whole * 2 <= all && (whole + self.unclean().len()) * 2 > all
    }

    /// One of its replicas.
    pub fn replica(&self, replica: ReplicaId) -> Option<&Placement> {
        self.replicas.iter().find(|placement| placement.replica == replica)
    }
}

/// One topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its identity.
    pub id: TopicId,
    /// Its name.
    pub name: Name,
    /// Rises with every change.
    pub revision: TopicRevision,
    /// What may be changed.
    pub settings: Settings,
    /// The wall clock of its creation, milliseconds since the epoch.
    pub created_ms: u64,
    /// Replicas that each partition shall have.
    pub replicas: u8,
    /// By number, without gaps.
    pub partitions: Vec<Partition>,
}

/// A replica that is to join a partition, until all that has to follow has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Of which topic.
    pub topic: TopicId,
    /// Of which partition.
    pub partition: PartitionId,
    /// The replica that leaves for it.
    pub replaces: Option<ReplicaId>,
}

/// What everybody may see of the metadata. Shared as it is; a change makes a new one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Catalog {
    /// Identity of the cluster; 0 until it was formed.
    pub cluster: u128,
    /// What the metadata and every log may hold: kinds behind a higher gate are not written.
    pub gate: u32,
    /// The brokers of the cluster.
    pub brokers: BTreeMap<BrokerId, Arc<BrokerCard>>,
    /// The replicas of the metadata itself. Those that do not vote keep a copy.
    pub metadata: Vec<Placement>,
    /// What was accepted to be lost of the metadata.
    pub recovery: Recovery,
    /// By the replica that joins.
    pub moves: BTreeMap<ReplicaId, Move>,
    /// Topics by name.
    pub topics: BTreeMap<Name, Arc<Topic>>,
}

impl Catalog {
    /// One partition of a topic.
    pub fn partition(&self, topic: TopicId, partition: PartitionId) -> Option<&Partition> {
        let topic = self.topics.values().find(|known| known.id == topic)?;
        topic.partitions.get(partition.0 as usize)
    }

    /// Every partition with its topic.
    pub fn partitions(&self) -> impl Iterator<Item = (&Arc<Topic>, &Partition)> {
        self.topics.values().flat_map(|topic| topic.partitions.iter().map(move |p| (topic, p)))
    }
}
