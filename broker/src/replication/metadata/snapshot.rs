//! Owns: the bytes of the whole metadata state, as a checkpoint holds them.
//! Invariants: what is decoded is equal to what was encoded; decoding never allocates by an
//! announced length; a state of gate 0 is written as version 1, which older builds read.
//!
//! ```text
//! state 1:    version1=1 cluster16 next_topic8 next_replica8 next_producer8 topics4 producers4
//!             topics, producers
//! state 2:    version1=2 cluster16 next_topic8 next_replica8 next_producer8 topics4 producers4
//!             gate4 next_broker8 recovery brokers2 metadata1 moves2
//!             brokers, placements of the metadata, moves, topics, producers
//! broker:     id8 standing1 told1, if told: facts
//! move:       joins8 topic8 partition4 replaces8 (0 = none)
//! topic:      name id8 revision8 config created_ms8 partitions4, in version 2 also: replicas1
//! partition:  uuid16 replicas1, per replica of version 1: replica8 broker8
//!             in version 2: flags1 (1 = formed) preferred8 recovery, placements
//! placement:  replica8 broker8 stage1 (1 joining, 2 ready, 3 voter, 4 leaving, 16 + reason: lost)
//! producer:   name id8 epoch4
//! name, config, facts, recovery: as in `fields`
//! ```

use super::fields::{
    facts, loss, name, put_facts, put_name, put_recovery, put_settings, recovery, settings,
};
use super::state::{
    BrokerCard, Catalog, MOVES_MAX, Move, PRODUCERS_MAX, Partition, Placement, Producer, Recovery,
    Stage, Standing, State, TOPICS_MAX, Topic, TopicRevision,
};
use crate::replication::codec::{CodecError, Input};
use std::sync::Arc;
use weir_protocol::limits::{BROKERS_MAX, PARTITIONS_MAX, REPLICAS_MAX};
use weir_protocol::types::{BrokerId, PartitionId, ProducerId, ReplicaId, TopicId};

/// Of one broker: all else follows from the topics.
const VERSION_ALONE: u8 = 1;
pub(super) const VERSION: u8 = 2;
const FLAG_FORMED: u8 = 1;
const STAGE_LOST: u8 = 16;

impl State {
    /// The state as bytes.
    pub(in crate::replication) fn encode(&self) -> Vec<u8> {
        let version = if self.catalog.gate == 0 { VERSION_ALONE } else { VERSION };
        let mut bytes = vec![version];
        bytes.extend_from_slice(&self.catalog.cluster.to_le_bytes());
        bytes.extend_from_slice(&self.next_topic.to_le_bytes());
        bytes.extend_from_slice(&self.next_replica.to_le_bytes());
        bytes.extend_from_slice(&self.next_producer.to_le_bytes());
        bytes.extend_from_slice(&(self.catalog.topics.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(self.producers.len() as u32).to_le_bytes());
        if version == VERSION {
            self.put_cluster(&mut bytes);
        }
        for topic in self.catalog.topics.values() {
            put_topic(&mut bytes, topic, version);
        }
        for (name, producer) in &self.producers {
            put_name(&mut bytes, name);
            bytes.extend_from_slice(&producer.id.to_le_bytes());
            bytes.extend_from_slice(&producer.epoch.to_le_bytes());
        }
        bytes
    }

    fn put_cluster(&self, bytes: &mut Vec<u8>) {
        let catalog = &self.catalog;
        bytes.extend_from_slice(&catalog.gate.to_le_bytes());
        bytes.extend_from_slice(&self.next_broker.to_le_bytes());
        put_recovery(bytes, catalog.recovery);
        bytes.extend_from_slice(&(catalog.brokers.len() as u16).to_le_bytes());
        bytes.push(catalog.metadata.len() as u8);
        bytes.extend_from_slice(&(catalog.moves.len() as u16).to_le_bytes());
        for card in catalog.brokers.values() {
            bytes.extend_from_slice(&card.id.to_le_bytes());
            bytes.extend_from_slice(&[card.standing as u8, u8::from(card.facts.is_some())]);
            card.facts.iter().for_each(|facts| put_facts(bytes, facts));
        }
        catalog.metadata.iter().for_each(|placement| put_placement(bytes, placement));
        for (joins, moving) in &catalog.moves {
            bytes.extend_from_slice(&joins.to_le_bytes());
            bytes.extend_from_slice(&moving.topic.to_le_bytes());
            bytes.extend_from_slice(&moving.partition.to_le_bytes());
            bytes.extend_from_slice(&moving.replaces.unwrap_or_default().to_le_bytes());
        }
    }

    /// Decodes what [`State::encode`] wrote.
    pub(in crate::replication) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let (version, mut input) = Input::of_versions(bytes, VERSION)?;
        let cluster = input.u128()?;
        let mut state = Self {
            next_topic: input.u64()?,
            next_replica: input.u64()?,
            next_producer: input.u64()?,
            ..Self::default()
        };
        let topic_count = bounded(input.u32()?, TOPICS_MAX)?;
        let producer_count = bounded(input.u32()?, PRODUCERS_MAX)?;
        if version == VERSION_ALONE && cluster != 0 {
            state.found(cluster);
        }
        let catalog = Arc::make_mut(&mut state.catalog);
        if version == VERSION {
            catalog.cluster = cluster;
            state.next_broker = cluster_of(catalog, &mut input)?;
        }
        for _ in 0..topic_count {
            let topic = topic(&mut input, version)?;
            catalog.topics.insert(topic.name.clone(), Arc::new(topic));
        }
        for _ in 0..producer_count {
            let name = name(&mut input)?;
            let producer = Producer { id: ProducerId(input.u64()?), epoch: input.u32()? };
            state.producers.insert(name, producer);
        }
        input.end()?;
        if catalog.topics.len() != topic_count || state.producers.len() != producer_count {
            return Err(CodecError::Malformed);
        }
        state.partitions = catalog.topics.values().map(|topic| topic.partitions.len()).sum();
        Ok(state)
    }
}

/// Reads the tables of version 2 that are not topics, and the next broker's id.
fn cluster_of(catalog: &mut Catalog, input: &mut Input<'_>) -> Result<u64, CodecError> {
    catalog.gate = input.u32()?;
    let next_broker = input.u64()?;
    catalog.recovery = recovery(input)?;
    let broker_count = bounded(u32::from(input.u16()?), BROKERS_MAX)?;
    let metadata_count = bounded(u32::from(input.u8()?), BROKERS_MAX)?;
    let move_count = bounded(u32::from(input.u16()?), MOVES_MAX)?;
    for _ in 0..broker_count {
        let card = broker(input)?;
        catalog.brokers.insert(card.id, Arc::new(card));
    }
    let placements: Result<_, _> = (0..metadata_count).map(|_| placement(input)).collect();
    catalog.metadata = placements?;
    for _ in 0..move_count {
        let joins = input.replica()?;
        let (topic, partition) = (TopicId(input.u64()?), PartitionId(input.u32()?));
        let replaces = Some(input.replica()?).filter(|replica| replica.0 != 0);
        catalog.moves.insert(joins, Move { topic, partition, replaces });
    }
    let whole = catalog.brokers.len() == broker_count && catalog.moves.len() == move_count;
    // A state of gate 0 is never written like this.
    if whole && catalog.gate > 0 { Ok(next_broker) } else { Err(CodecError::Malformed) }
}

fn bounded(count: u32, max: usize) -> Result<usize, CodecError> {
    let count = count as usize;
    if count <= max { Ok(count) } else { Err(CodecError::Malformed) }
}

fn broker(input: &mut Input<'_>) -> Result<BrokerCard, CodecError> {
    let id = BrokerId(input.u64()?);
    let standing = match input.u8()? {
        0 => Standing::Active,
        1 => Standing::Draining,
        _ => return Err(CodecError::Malformed),
    };
    let facts = match input.u8()? {
        0 => None,
        1 => Some(facts(input)?),
        _ => return Err(CodecError::Malformed),
    };
    Ok(BrokerCard { id, standing, facts })
}

pub(super) fn put_placement(bytes: &mut Vec<u8>, placement: &Placement) {
    bytes.extend_from_slice(&placement.replica.to_le_bytes());
    bytes.extend_from_slice(&placement.broker.to_le_bytes());
    bytes.push(match placement.stage {
        Stage::Joining => 1,
        Stage::Ready => 2,
        Stage::Voter => 3,
        Stage::Leaving => 4,
        Stage::Lost(reason) => STAGE_LOST + reason as u8,
    });
}

pub(super) fn placement(input: &mut Input<'_>) -> Result<Placement, CodecError> {
    let (replica, broker) = (input.replica()?, BrokerId(input.u64()?));
    let stage = match input.u8()? {
        1 => Stage::Joining,
        2 => Stage::Ready,
        3 => Stage::Voter,
        4 => Stage::Leaving,
        lost => Stage::Lost(loss(lost.checked_sub(STAGE_LOST).ok_or(CodecError::Malformed)?)?),
    };
    Ok(Placement { replica, broker, stage })
}

pub(super) fn put_topic(bytes: &mut Vec<u8>, topic: &Topic, version: u8) {
    put_name(bytes, &topic.name);
    bytes.extend_from_slice(&topic.id.to_le_bytes());
    bytes.extend_from_slice(&topic.revision.0.to_le_bytes());
    put_settings(bytes, &topic.settings);
    bytes.extend_from_slice(&topic.created_ms.to_le_bytes());
    bytes.extend_from_slice(&(topic.partitions.len() as u32).to_le_bytes());
    if version == VERSION {
        bytes.push(topic.replicas);
    }
    for partition in &topic.partitions {
        bytes.extend_from_slice(&partition.uuid.to_le_bytes());
        bytes.push(partition.replicas.len() as u8);
        if version == VERSION_ALONE {
            for placement in &partition.replicas {
                bytes.extend_from_slice(&placement.replica.to_le_bytes());
                bytes.extend_from_slice(&placement.broker.to_le_bytes());
            }
        } else {
            bytes.push(if partition.formed { FLAG_FORMED } else { 0 });
            bytes.extend_from_slice(&partition.preferred.to_le_bytes());
            put_recovery(bytes, partition.recovery);
            partition.replicas.iter().for_each(|placement| put_placement(bytes, placement));
        }
    }
}

pub(super) fn topic(input: &mut Input<'_>, version: u8) -> Result<Topic, CodecError> {
    let name = name(input)?;
    let id = TopicId(input.u64()?);
    let revision = TopicRevision(input.u64()?);
    let settings = settings(input)?;
    let created_ms = input.u64()?;
    let partition_count = bounded(input.u32()?, PARTITIONS_MAX as usize)?;
    let wanted = if version == VERSION { Some(input.u8()?) } else { None };
    let mut partitions = Vec::new();
    for number in 0..partition_count {
        let id = PartitionId(number as u32);
        partitions.push(match version {
            VERSION_ALONE => partition_alone(id, input)?,
            _ => partition(id, input)?,
        });
    }
    let founded = partitions.first().map_or(0, |first| first.replicas.len() as u8);
    let replicas = wanted.unwrap_or(founded);
    Ok(Topic { id, name, revision, settings, created_ms, replicas, partitions })
}

fn partition_alone(id: PartitionId, input: &mut Input<'_>) -> Result<Partition, CodecError> {
    let uuid = input.u128()?;
    let count = bounded(u32::from(input.u8()?), REPLICAS_MAX)?;
    let mut replicas = Vec::new();
    for _ in 0..count {
        let (replica, broker) = (input.replica()?, BrokerId(input.u64()?));
        replicas.push(Placement { replica, broker, stage: Stage::Voter });
    }
    let preferred = replicas.first().map_or(ReplicaId(0), |first| first.replica);
    Ok(Partition { id, uuid, formed: false, preferred, recovery: Recovery::default(), replicas })
}

fn partition(id: PartitionId, input: &mut Input<'_>) -> Result<Partition, CodecError> {
    let uuid = input.u128()?;
    let count = bounded(u32::from(input.u8()?), REPLICAS_MAX)?;
    let formed = match input.u8()? {
        0 => false,
        FLAG_FORMED => true,
        _ => return Err(CodecError::Malformed),
    };
    let (preferred, recovery) = (input.replica()?, recovery(input)?);
    let replicas: Result<_, _> = (0..count).map(|_| placement(input)).collect();
    Ok(Partition { id, uuid, formed, preferred, recovery, replicas: replicas? })
}
