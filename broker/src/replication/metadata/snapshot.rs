//! Owns: the bytes of the whole metadata state, as a checkpoint holds them.
//! Invariants: what is decoded is equal to what was encoded; decoding never allocates by an
//! announced length.
//!
//! ```text
//! state:     version1=1 cluster16 next_topic8 next_replica8 next_producer8 topics4 producers4
//! topic:     name id8 revision8 config created_ms8 partitions4
//! partition: uuid16 replicas1, per replica: replica8 broker8
//! producer:  name id8 epoch4            name and config as in a command
//! ```

use super::command::{self, REPLICAS_PER_PARTITION_MAX};
use super::state::{
    Catalog, PRODUCERS_MAX, Partition, Placement, Producer, State, TOPICS_MAX, Topic, TopicRevision,
};
use crate::replication::codec::{CodecError, Input};
use std::collections::BTreeMap;
use std::sync::Arc;
use weir_protocol::limits::PARTITIONS_MAX;
use weir_protocol::types::{BrokerId, PartitionId, ProducerId, ReplicaId, TopicId};

const VERSION: u8 = 1;

impl State {
    /// The state as bytes.
    pub(in crate::replication) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.catalog.cluster.to_le_bytes());
        bytes.extend_from_slice(&self.next_topic.to_le_bytes());
        bytes.extend_from_slice(&self.next_replica.to_le_bytes());
        bytes.extend_from_slice(&self.next_producer.to_le_bytes());
        bytes.extend_from_slice(&(self.catalog.topics.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(self.producers.len() as u32).to_le_bytes());
        for topic in self.catalog.topics.values() {
            put_topic(&mut bytes, topic);
        }
        for (name, producer) in &self.producers {
            command::put_name(&mut bytes, name);
            bytes.extend_from_slice(&producer.id.to_le_bytes());
            bytes.extend_from_slice(&producer.epoch.to_le_bytes());
        }
        bytes
    }

    /// Decodes what [`State::encode`] wrote.
    pub(in crate::replication) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Input::versioned(bytes)?;
        let cluster = input.u128()?;
        let (next_topic, next_replica, next_producer) = (input.u64()?, input.u64()?, input.u64()?);
        let topic_count = bounded(input.u32()?, TOPICS_MAX)?;
        let producer_count = bounded(input.u32()?, PRODUCERS_MAX)?;
        let mut topics = BTreeMap::new();
        for _ in 0..topic_count {
            let topic = topic(&mut input)?;
            topics.insert(topic.name.clone(), Arc::new(topic));
        }
        let mut producers = BTreeMap::new();
        for _ in 0..producer_count {
            let name = command::name(&mut input)?;
            let producer = Producer { id: ProducerId(input.u64()?), epoch: input.u32()? };
            producers.insert(name, producer);
        }
        input.end()?;
        if topics.len() != topic_count || producers.len() != producer_count {
            return Err(CodecError::Malformed);
        }
        let partitions = topics.values().map(|topic: &Arc<Topic>| topic.partitions.len()).sum();
        let catalog = Arc::new(Catalog { cluster, topics });
        Ok(Self { catalog, producers, next_topic, next_replica, next_producer, partitions })
    }
}

fn bounded(count: u32, max: usize) -> Result<usize, CodecError> {
    let count = count as usize;
    if count <= max { Ok(count) } else { Err(CodecError::Malformed) }
}

fn put_topic(bytes: &mut Vec<u8>, topic: &Topic) {
    command::put_name(bytes, &topic.name);
    bytes.extend_from_slice(&topic.id.to_le_bytes());
    bytes.extend_from_slice(&topic.revision.0.to_le_bytes());
    command::put_settings(bytes, &topic.settings);
    bytes.extend_from_slice(&topic.created_ms.to_le_bytes());
    bytes.extend_from_slice(&(topic.partitions.len() as u32).to_le_bytes());
    for partition in &topic.partitions {
        bytes.extend_from_slice(&partition.uuid.to_le_bytes());
        bytes.push(partition.replicas.len() as u8);
        for placement in &partition.replicas {
            bytes.extend_from_slice(&placement.replica.to_le_bytes());
            bytes.extend_from_slice(&placement.broker.to_le_bytes());
        }
    }
}

fn topic(input: &mut Input<'_>) -> Result<Topic, CodecError> {
    let name = command::name(input)?;
    let id = TopicId(input.u64()?);
    let revision = TopicRevision(input.u64()?);
    let settings = command::settings(input)?;
    let created_ms = input.u64()?;
    let partition_count = bounded(input.u32()?, PARTITIONS_MAX as usize)?;
    let mut partitions = Vec::new();
    for number in 0..partition_count {
        let uuid = input.u128()?;
        let replica_count = bounded(u32::from(input.u8()?), REPLICAS_PER_PARTITION_MAX)?;
        let mut replicas = Vec::new();
        for _ in 0..replica_count {
            let replica = ReplicaId(input.u64()?);
            replicas.push(Placement { replica, broker: BrokerId(input.u64()?) });
        }
        partitions.push(Partition { id: PartitionId(number as u32), uuid, replicas });
    }
    Ok(Topic { id, name, revision, settings, created_ms, partitions })
}
