//! Owns: what the cluster knows of itself: its identity, topics with their partitions and replicas,
//! and the identities behind producer names.
//! Never: sees a clock, randomness or the disk; applying the same commands gives the same state.
//! Invariants: topic, replica and producer ids are never reused; the partitions of a topic only
//! grow; a producer's epoch only rises; every table is bounded.

use super::command::{Command, NewPartition, REPLICAS_PER_PARTITION_MAX};
use std::collections::BTreeMap;
use std::sync::Arc;
use weir_protocol::frame::{Durability, Overflow};
use weir_protocol::limits::PARTITIONS_MAX;
use weir_protocol::types::{BrokerId, Name, PartitionId, ProducerId, ReplicaId, TopicId};

/// Topics of one cluster.
pub const TOPICS_MAX: usize = 10_000;
/// Partitions of one cluster, over all topics.
pub const CLUSTER_PARTITIONS_MAX: usize = 20_000;
/// Named producers of one cluster.
pub const PRODUCERS_MAX: usize = 100_000;
/// The replica of the metadata log on the broker that forms the cluster; others follow it.
pub const METADATA_REPLICA: ReplicaId = ReplicaId(1);

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

/// One replica of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Its identity.
    pub replica: ReplicaId,
    /// Where it is.
    pub broker: BrokerId,
}

/// One partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number.
    pub id: PartitionId,
    /// Identity of its log.
    pub uuid: u128,
    /// Its replicas.
    pub replicas: Vec<Placement>,
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
    /// By number, without gaps.
    pub partitions: Vec<Partition>,
}

/// What everybody may see of the metadata. Shared as it is; a change makes a new one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Catalog {
    /// Identity of the cluster; 0 until it was formed.
    pub cluster: u128,
    /// Topics by name.
    pub topics: BTreeMap<Name, Arc<Topic>>,
}

/// A producer name's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Producer {
    /// Its id, never reused.
    pub id: ProducerId,
    /// How often it was opened.
    pub epoch: u32,
}

/// The whole state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub(super) catalog: Arc<Catalog>,
    pub(super) producers: BTreeMap<Name, Producer>,
    pub(super) next_topic: u64,
    pub(super) next_replica: u64,
    pub(super) next_producer: u64,
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
}

/// Why a command changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The name is taken.
    #[error("a topic of this name exists already")]
    TopicExists,
    /// No such topic, or no longer.
    #[error("no such topic exists")]
    UnknownTopic,
    /// The topic changed since the command was made from it.
    #[error("the topic was changed meanwhile; read it again")]
    TopicChanged,
    /// A topic or partition too many.
    #[error("the cluster has as many topics or partitions as it may")]
    TopicLimit,
    /// A producer name too many.
    #[error("the cluster knows as many producer names as it may ({PRODUCERS_MAX})")]
    ProducerLimit,
    /// The producer cannot be opened once more.
    #[error("the producer was opened too often; use another name")]
    EpochLimit,
    /// No partition, too many of them, or a bad number of replicas.
    #[error("a topic has 1 to {PARTITIONS_MAX} partitions with 1 to 7 different brokers each")]
    BadPartitions,
}

impl Default for State {
    fn default() -> Self {
        Self {
            catalog: Arc::default(),
            producers: BTreeMap::new(),
            next_topic: 1,
            next_replica: METADATA_REPLICA.0 + 1,
            next_producer: 1,
            partitions: 0,
        }
    }
}

impl State {
    /// What everybody may see.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// The identity behind a producer's name.
    pub fn producer(&self, name: &Name) -> Option<Producer> {
        self.producers.get(name).copied()
    }

    /// Applies one command: the only way the state changes.
    pub fn apply(&mut self, command: &Command) -> Result<Change, Refusal> {
        match command {
            Command::Form { cluster, .. } => Ok(self.form(*cluster)),
            Command::CreateTopic { name, settings, created_ms, partitions } => {
                self.create(name, *settings, *created_ms, partitions)
            }
            Command::AlterTopic { topic, revision, settings, added } => {
                self.alter(*topic, *revision, *settings, added)
            }
            Command::DeleteTopic { topic } => self.delete(*topic),
            Command::OpenProducer { name } => self.open_producer(name),
        }
    }

    fn form(&mut self, cluster: u128) -> Change {
        if self.catalog.cluster == 0 {
            Arc::make_mut(&mut self.catalog).cluster = cluster;
        }
        Change::Formed { cluster: self.catalog.cluster }
    }

    fn create(
        &mut self,
        name: &Name,
        settings: Settings,
        created_ms: u64,
        partitions: &[NewPartition],
    ) -> Result<Change, Refusal> {
        if self.catalog.topics.contains_key(name) {
            return Err(Refusal::TopicExists);
        }
        if self.catalog.topics.len() >= TOPICS_MAX {
            return Err(Refusal::TopicLimit);
        }
        if partitions.is_empty() {
            return Err(Refusal::BadPartitions);
        }
        let partitions = self.place(0, partitions)?;
        let topic = Arc::new(Topic {
            id: TopicId(self.next_topic),
            name: name.clone(),
            revision: TopicRevision(1),
            settings,
            created_ms,
            partitions,
        });
        self.next_topic += 1;
        self.put(topic.clone());
        Ok(Change::Created(topic))
    }

    fn alter(
        &mut self,
        id: TopicId,
        revision: TopicRevision,
        settings: Settings,
        added: &[NewPartition],
    ) -> Result<Change, Refusal> {
        let old = self.find(id)?;
        if old.revision != revision {
            return Err(Refusal::TopicChanged);
        }
        let mut topic = Topic::clone(&old);
        topic.partitions.extend(self.place(old.partitions.len(), added)?);
        topic.settings = settings;
        topic.revision = TopicRevision(revision.0 + 1);
        let topic = Arc::new(topic);
        self.put(topic.clone());
        Ok(Change::Altered(topic))
    }

    fn delete(&mut self, id: TopicId) -> Result<Change, Refusal> {
        let topic = self.find(id)?;
        self.partitions -= topic.partitions.len();
        Arc::make_mut(&mut self.catalog).topics.remove(&topic.name);
        Ok(Change::Deleted(topic))
    }

    fn open_producer(&mut self, name: &Name) -> Result<Change, Refusal> {
        if let Some(producer) = self.producers.get_mut(name) {
            producer.epoch = producer.epoch.checked_add(1).ok_or(Refusal::EpochLimit)?;
            return Ok(Change::Opened(*producer));
        }
        if self.producers.len() >= PRODUCERS_MAX {
            return Err(Refusal::ProducerLimit);
        }
        let producer = Producer { id: ProducerId(self.next_producer), epoch: 1 };
        self.next_producer += 1;
        self.producers.insert(name.clone(), producer);
        Ok(Change::Opened(producer))
    }

    /// Numbers new partitions from `first` and gives their replicas identities.
    fn place(&mut self, first: usize, new: &[NewPartition]) -> Result<Vec<Partition>, Refusal> {
        if first + new.len() > PARTITIONS_MAX as usize || !new.iter().all(is_well_placed) {
            return Err(Refusal::BadPartitions);
        }
        if self.partitions + new.len() > CLUSTER_PARTITIONS_MAX {
            return Err(Refusal::TopicLimit);
        }
        self.partitions += new.len();
        let placed = new.iter().enumerate().map(|(position, new)| Partition {
            id: PartitionId((first + position) as u32),
            uuid: new.uuid,
            replicas: new.brokers.iter().map(|broker| self.next_placement(*broker)).collect(),
        });
        Ok(placed.collect())
    }

    fn next_placement(&mut self, broker: BrokerId) -> Placement {
        let replica = ReplicaId(self.next_replica);
        self.next_replica += 1;
        Placement { replica, broker }
    }

    fn find(&self, id: TopicId) -> Result<Arc<Topic>, Refusal> {
        let found = self.catalog.topics.values().find(|topic| topic.id == id);
        found.cloned().ok_or(Refusal::UnknownTopic)
    }

    fn put(&mut self, topic: Arc<Topic>) {
        Arc::make_mut(&mut self.catalog).topics.insert(topic.name.clone(), topic);
    }
}

fn is_well_placed(new: &NewPartition) -> bool {
    let distinct: std::collections::BTreeSet<_> = new.brokers.iter().collect();
    distinct.len() == new.brokers.len()
        && (1..=REPLICAS_PER_PARTITION_MAX).contains(&new.brokers.len())
}
