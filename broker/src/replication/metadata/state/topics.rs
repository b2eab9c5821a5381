//! The table of topics.
//!
//! Owns: creating, changing and deleting topics; what is noted about each of their partitions.
//! Invariants: topic and replica ids are never reused; the partitions of a topic only grow and
//! keep their numbers; a recovery's epoch only rises.

use super::{
    CLUSTER_PARTITIONS_MAX, Catalog, Change, Partition, Placement, Recovery, Refusal, Settings,
    Stage, State, TOPICS_MAX, Topic, TopicRevision,
};
use crate::planted::{Bug, is_planted};
use crate::replication::metadata::command::NewPartition;
use std::collections::BTreeSet;
use std::sync::Arc;
use weir_protocol::limits::{PARTITIONS_MAX, REPLICAS_MAX};
use weir_protocol::types::{BrokerId, Name, PartitionId, ReplicaId, TopicId};

/// Replicas that a partition may be told to have: an even one more costs a copy and bears no
/// further loss.
pub const REPLICA_COUNTS: [u8; 3] = [1, 3, 5];

impl State {
    pub(super) fn create(
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
        let replicas = partitions.first().ok_or(Refusal::BadPartitions)?.brokers.len() as u8;
        let partitions = self.place(0, replicas, partitions)?;
        let topic = Arc::new(Topic {
            id: TopicId(self.next_topic),
            name: name.clone(),
            revision: TopicRevision(1),
            settings,
            created_ms,
            replicas,
            partitions,
        });
        self.next_topic += 1;
        self.put(topic.clone());
        Ok(Change::Created(topic))
    }

    pub(super) fn alter(
        &mut self,
        id: TopicId,
        revision: TopicRevision,
        settings: Settings,
        added: &[NewPartition],
    ) -> Result<Change, Refusal> {
        let old = self.find_unchanged(id, revision)?;
        let mut topic = Topic::clone(&old);
        topic.partitions.extend(self.place(old.partitions.len(), old.replicas, added)?);
        topic.settings = settings;
        Ok(self.put_altered(topic))
    }

    pub(super) fn set_replicas(
        &mut self,
        id: TopicId,
        revision: TopicRevision,
        replicas: u8,
    ) -> Result<Change, Refusal> {
        let mut topic = Topic::clone(&*self.find_unchanged(id, revision)?);
        if !REPLICA_COUNTS.contains(&replicas) {
            return Err(Refusal::BadReplicas);
        }
        if self.catalog.active().count() < usize::from(replicas) {
            return Err(Refusal::TooFewBrokers);
        }
        topic.replicas = replicas;
        Ok(self.put_altered(topic))
    }

    pub(super) fn delete(&mut self, id: TopicId) -> Result<Change, Refusal> {
        let topic = self.find(id)?;
        self.partitions -= topic.partitions.len();
        let catalog = Arc::make_mut(&mut self.catalog);
        catalog.topics.remove(&topic.name);
        catalog.moves.retain(|_, moving| moving.topic != id);
        Ok(Change::Deleted(topic))
    }

    /// Notes that the groups of these replicas had a leader. Topics may be deleted meanwhile:
    /// what is unknown is left out.
    pub(super) fn note_formed(&mut self, replicas: &[ReplicaId]) -> Change {
        let leaders: BTreeSet<_> = replicas.iter().collect();
        let fresh = |partition: &Partition| {
            let leads = |placement: &Placement| leaders.contains(&placement.replica);
            !partition.formed && partition.replicas.iter().any(leads)
        };
        let mut changed = Vec::new();
        for topic in self.catalog.topics.values().filter(|t| t.partitions.iter().any(fresh)) {
            let mut topic = Topic::clone(topic);
            topic.partitions.iter_mut().filter(|p| fresh(p)).for_each(|p| p.formed = true);
            changed.push(Arc::new(topic));
        }
        changed.into_iter().for_each(|topic| self.put(topic));
        Change::Done
    }

    pub(super) fn prefer(
        &mut self,
        topic: TopicId,
        partition: PartitionId,
        replica: ReplicaId,
    ) -> Result<Change, Refusal> {
        let (topic, mut partition) = self.find_partition(topic, partition)?;
        if !partition.voters().any(|voter| voter.replica == replica) {
            return Err(Refusal::NotAVoter);
        }
        if partition.preferred != replica {
            partition.preferred = replica;
            self.put_partition(&topic, partition);
        }
        Ok(Change::Done)
    }

    /// Notes that an operator let a log go on without what stood behind an index.
    pub(super) fn note_recovery(
        &mut self,
        uuid: u128,
        recovery: Recovery,
    ) -> Result<Change, Refusal> {
        let later = |known: Recovery| match recovery == known {
            true => Ok(false),
            false if recovery.epoch <= known.epoch => Err(Refusal::OldEpoch),
            false => Ok(true),
        };
        if uuid == 0 {
            if later(self.catalog.recovery)? {
                Arc::make_mut(&mut self.catalog).recovery = recovery;
            }
            return Ok(Change::Done);
        }
        let known = self.catalog.partitions().find(|(_, partition)| partition.uuid == uuid);
        let (topic, mut partition) =
            known.map(|(topic, p)| (topic.clone(), p.clone())).ok_or(Refusal::UnknownPartition)?;
        if later(partition.recovery)? {
            partition.recovery = recovery;
            self.put_partition(&topic, partition);
        }
        Ok(Change::Done)
    }

    /// Numbers new partitions from `first` and gives their replicas identities.
    fn place(
        &mut self,
        first: usize,
        replicas: u8,
        new: &[NewPartition],
    ) -> Result<Vec<Partition>, Refusal> {
        if first + new.len() > PARTITIONS_MAX as usize || !new.iter().all(is_well_placed) {
            return Err(Refusal::BadPartitions);
        }
        if self.catalog.gate > 0 {
            self.catalog.judge_placement(replicas, new)?;
        }
        if self.partitions + new.len() > CLUSTER_PARTITIONS_MAX {
            return Err(Refusal::TopicLimit);
        }
        self.partitions += new.len();
        let placed = new.iter().enumerate().map(|(position, new)| {
            let preferred = ReplicaId(self.next_replica);
            let replicas = new.brokers.iter().map(|broker| self.next_placement(*broker));
            Partition {
                id: PartitionId((first + position) as u32),
                uuid: new.uuid,
                formed: false,
                preferred,
                recovery: Recovery::default(),
                replicas: replicas.collect(),
            }
        });
        Ok(placed.collect())
    }

    fn next_placement(&mut self, broker: BrokerId) -> Placement {
        Placement { replica: self.next_replica_id(), broker, stage: Stage::Voter }
    }

    pub(super) fn next_replica_id(&mut self) -> ReplicaId {
        if is_planted(Bug::ReplicaIdReused) {
            let placed = self.catalog.partitions().flat_map(|(_, partition)| &partition.replicas);
            let newest = placed.chain(&self.catalog.metadata).map(|here| here.replica.0).max();
            self.next_replica = newest.unwrap_or(0) + 1;
        }
        let replica = ReplicaId(self.next_replica);
        self.next_replica += 1;
        replica
    }

    fn find(&self, id: TopicId) -> Result<Arc<Topic>, Refusal> {
        let found = self.catalog.topics.values().find(|topic| topic.id == id);
        found.cloned().ok_or(Refusal::UnknownTopic)
    }

    fn find_unchanged(&self, id: TopicId, revision: TopicRevision) -> Result<Arc<Topic>, Refusal> {
        let topic = self.find(id)?;
        if topic.revision == revision { Ok(topic) } else { Err(Refusal::TopicChanged) }
    }

    pub(super) fn find_partition(
        &self,
        topic: TopicId,
        partition: PartitionId,
    ) -> Result<(Arc<Topic>, Partition), Refusal> {
        let topic = self.find(topic)?;
        let found = topic.partitions.get(partition.0 as usize).cloned();
        Ok((topic, found.ok_or(Refusal::UnknownPartition)?))
    }

    fn put(&mut self, topic: Arc<Topic>) {
        Arc::make_mut(&mut self.catalog).topics.insert(topic.name.clone(), topic);
    }

    fn put_altered(&mut self, mut topic: Topic) -> Change {
        topic.revision.0 += 1;
        let topic = Arc::new(topic);
        self.put(topic.clone());
        Change::Altered(topic)
    }

    /// Replicas and notes come and go without a revision: nobody makes a change from them.
    pub(super) fn put_partition(&mut self, topic: &Topic, partition: Partition) {
        let mut topic = topic.clone();
        let number = partition.id.0 as usize;
        topic.partitions[number] = partition;
        self.put(Arc::new(topic));
    }
}

impl Catalog {
    /// Before the first gate no list of brokers was kept and nothing of this was asked.
    fn judge_placement(&self, replicas: u8, new: &[NewPartition]) -> Result<(), Refusal> {
        let counts = new.iter().all(|new| new.brokers.len() == usize::from(replicas));
        if !counts || !REPLICA_COUNTS.contains(&replicas) {
            return Err(Refusal::BadReplicas);
        }
        let mut brokers = new.iter().flat_map(|new| &new.brokers);
        if brokers.any(|broker| !self.is_active(*broker)) {
            return Err(Refusal::BrokerNotActive);
        }
        Ok(())
    }
}

fn is_well_placed(new: &NewPartition) -> bool {
    let distinct: BTreeSet<_> = new.brokers.iter().collect();
    distinct.len() == new.brokers.len() && (1..=REPLICAS_MAX).contains(&new.brokers.len())
}
