//! Owns: the bytes of the metadata's commands.
//! Invariants: a kind's bytes never change; decoding never allocates by an announced length, and
//! refuses what it does not know.
//!
//! ```text
//! command:       version1=1 kind1, then by kind
//!   1 form       cluster16 broker8
//!   2 create     name config created_ms8 count4, per new partition: uuid16 brokers1 broker8…
//!   3 alter      topic8 revision8 config count4, new partitions as above
//!   4 delete     topic8
//!   5 producer   name
//!   6 broker up  broker8 (0 = has none) facts
//!   7 standing   broker8 standing1 (0 active, 1 draining, 2 removed)
//!   8 formed     count4 replica8…
//!   9 add        topic8 partition4 broker8 replaces8 (0 = none)
//!  10 step       replica8 step1 (1 ready, 2 voter, 3 leaving, 4 gone)
//!  11 lose       replica8 reason1 (1 empty, 2 damaged, 3 unclean, 4 given up)
//!  12 prefer     topic8 partition4 replica8
//!  13 gate       gate4
//!  14 recovery   uuid16 (0 = the metadata) recovery
//!  15 metadata   replica8 (0 = a new one) broker8 (0 unless new) step1 (1 joins, 2 voter, 4 gone)
//!  16 replicas   topic8 revision8 replicas1
//!  17 found      cluster16 brokers2 voters1
//!  18 reinstate  uuid16 now_ms8 (gate 2)
//! name, config, facts, recovery: as in `fields`
//! ```
//! A control batch of the metadata log holds one command; the batch's CRC closes it.

use super::{Command, MetadataStep, NewPartition, Step};
use crate::replication::codec::{CodecError, Input};
use crate::replication::metadata::fields::{
    facts, loss, name, put_facts, put_name, put_recovery, put_settings, recovery, settings,
};
use crate::replication::metadata::state::{Standing, TopicRevision};
use weir_protocol::limits::REPLICAS_MAX;
use weir_protocol::types::{BrokerId, PartitionId, ReplicaId, TopicId};

const VERSION: u8 = 1;

impl Command {
    /// The bytes of a control section, its CRC not included.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION, self.kind()];
        match self {
            Self::Form { cluster, broker } => {
                bytes.extend_from_slice(&cluster.to_le_bytes());
                bytes.extend_from_slice(&broker.to_le_bytes());
            }
            Self::CreateTopic { name, settings, created_ms, partitions } => {
                put_name(&mut bytes, name);
                put_settings(&mut bytes, settings);
                bytes.extend_from_slice(&created_ms.to_le_bytes());
                put_partitions(&mut bytes, partitions);
            }
            Self::AlterTopic { topic, revision, settings, added } => {
                bytes.extend_from_slice(&topic.to_le_bytes());
                bytes.extend_from_slice(&revision.0.to_le_bytes());
                put_settings(&mut bytes, settings);
                put_partitions(&mut bytes, added);
            }
            Self::DeleteTopic { topic } => bytes.extend_from_slice(&topic.to_le_bytes()),
            Self::OpenProducer { name } => put_name(&mut bytes, name),
            Self::SetReplicas { topic, revision, replicas } => {
                bytes.extend_from_slice(&topic.to_le_bytes());
                bytes.extend_from_slice(&revision.0.to_le_bytes());
                bytes.push(*replicas);
            }
            _ => self.put_cluster(&mut bytes),
        }
        bytes
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Form { .. } => 1,
            Self::CreateTopic { .. } => 2,
            Self::AlterTopic { .. } => 3,
            Self::DeleteTopic { .. } => 4,
            Self::OpenProducer { .. } => 5,
            Self::BrokerUp { .. } => 6,
            Self::SetStanding { .. } | Self::RemoveBroker { .. } => 7,
            Self::NoteFormed { .. } => 8,
            Self::AddReplica { .. } => 9,
            Self::StepReplica { .. } => 10,
            Self::LoseReplica { .. } => 11,
            Self::Prefer { .. } => 12,
            Self::RaiseGate { .. } => 13,
            Self::NoteRecovery { .. } => 14,
            Self::JoinMetadata { .. } | Self::StepMetadata { .. } => 15,
            Self::SetReplicas { .. } => 16,
            Self::Found { .. } => 17,
            Self::Reinstate { .. } => 18,
        }
    }

    fn put_cluster(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Found { cluster, brokers, voters } => {
                bytes.extend_from_slice(&cluster.to_le_bytes());
                bytes.extend_from_slice(&brokers.to_le_bytes());
                bytes.push(*voters);
            }
            Self::BrokerUp { broker, facts } => {
                bytes.extend_from_slice(&broker.unwrap_or_default().to_le_bytes());
                put_facts(bytes, facts);
            }
            Self::SetStanding { broker, standing } => {
                bytes.extend_from_slice(&broker.to_le_bytes());
                bytes.push(*standing as u8);
            }
            Self::RemoveBroker { broker } => {
                bytes.extend_from_slice(&broker.to_le_bytes());
                bytes.push(2);
            }
            Self::NoteFormed { replicas } => {
                bytes.extend_from_slice(&(replicas.len() as u32).to_le_bytes());
                replicas.iter().for_each(|replica| bytes.extend_from_slice(&replica.to_le_bytes()));
            }
            Self::AddReplica { topic, partition, broker, replaces } => {
                bytes.extend_from_slice(&topic.to_le_bytes());
                bytes.extend_from_slice(&partition.to_le_bytes());
                bytes.extend_from_slice(&broker.to_le_bytes());
                bytes.extend_from_slice(&replaces.unwrap_or_default().to_le_bytes());
            }
            Self::StepReplica { replica, step } => {
                bytes.extend_from_slice(&replica.to_le_bytes());
                bytes.push(*step as u8);
            }
            Self::LoseReplica { replica, reason } => {
                bytes.extend_from_slice(&replica.to_le_bytes());
                bytes.push(*reason as u8);
            }
            Self::Prefer { topic, partition, replica } => {
                bytes.extend_from_slice(&topic.to_le_bytes());
                bytes.extend_from_slice(&partition.to_le_bytes());
                bytes.extend_from_slice(&replica.to_le_bytes());
            }
            Self::RaiseGate { gate } => bytes.extend_from_slice(&gate.to_le_bytes()),
            Self::NoteRecovery { uuid, recovery } => {
                bytes.extend_from_slice(&uuid.to_le_bytes());
                put_recovery(bytes, *recovery);
            }
            Self::Reinstate { uuid, now_ms } => {
                bytes.extend_from_slice(&uuid.to_le_bytes());
                bytes.extend_from_slice(&now_ms.to_le_bytes());
            }
            Self::JoinMetadata { broker } => put_metadata(bytes, ReplicaId(0), *broker, 1),
            Self::StepMetadata { replica, step } => {
                put_metadata(bytes, *replica, BrokerId(0), *step as u8);
            }
            // Those of topics and producers are written above.
            Self::Form { .. }
            | Self::CreateTopic { .. }
            | Self::AlterTopic { .. }
            | Self::DeleteTopic { .. }
            | Self::OpenProducer { .. }
            | Self::SetReplicas { .. } => {}
        }
    }

    /// Decodes the content of a control section, its CRC not included.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Input::versioned(bytes)?;
        let command = match input.u8()? {
            1 => Self::Form { cluster: input.u128()?, broker: BrokerId(input.u64()?) },
            2 => Self::CreateTopic {
                name: name(&mut input)?,
                settings: settings(&mut input)?,
                created_ms: input.u64()?,
                partitions: partitions(&mut input)?,
            },
            3 => Self::AlterTopic {
                topic: TopicId(input.u64()?),
                revision: TopicRevision(input.u64()?),
                settings: settings(&mut input)?,
                added: partitions(&mut input)?,
            },
            4 => Self::DeleteTopic { topic: TopicId(input.u64()?) },
            5 => Self::OpenProducer { name: name(&mut input)? },
            16 => Self::SetReplicas {
                topic: TopicId(input.u64()?),
                revision: TopicRevision(input.u64()?),
                replicas: input.u8()?,
            },
            kind => Self::of_cluster(kind, &mut input)?,
        };
        input.end()?;
        Ok(command)
    }

    fn of_cluster(kind: u8, input: &mut Input<'_>) -> Result<Self, CodecError> {
        Ok(match kind {
            6 => Self::BrokerUp {
                broker: Some(BrokerId(input.u64()?)).filter(|broker| broker.0 != 0),
                facts: facts(input)?,
            },
            7 => {
                let broker = BrokerId(input.u64()?);
                match input.u8()? {
                    0 => Self::SetStanding { broker, standing: Standing::Active },
                    1 => Self::SetStanding { broker, standing: Standing::Draining },
                    2 => Self::RemoveBroker { broker },
                    _ => return Err(CodecError::Malformed),
                }
            }
            8 => Self::NoteFormed { replicas: replicas(input)? },
            9 => Self::AddReplica {
                topic: TopicId(input.u64()?),
                partition: PartitionId(input.u32()?),
                broker: BrokerId(input.u64()?),
                replaces: Some(input.replica()?).filter(|replica| replica.0 != 0),
            },
            10 => Self::StepReplica { replica: input.replica()?, step: step(input.u8()?)? },
            11 => Self::LoseReplica { replica: input.replica()?, reason: loss(input.u8()?)? },
            12 => Self::Prefer {
                topic: TopicId(input.u64()?),
                partition: PartitionId(input.u32()?),
                replica: input.replica()?,
            },
            13 => Self::RaiseGate { gate: input.u32()? },
            14 => Self::NoteRecovery { uuid: input.u128()?, recovery: recovery(input)? },
            15 => match (input.replica()?, BrokerId(input.u64()?), input.u8()?) {
                (ReplicaId(0), broker, 1) => Self::JoinMetadata { broker },
                (replica, BrokerId(0), 1) => {
                    Self::StepMetadata { replica, step: MetadataStep::Learner }
                }
                (replica, BrokerId(0), 2) => {
                    Self::StepMetadata { replica, step: MetadataStep::Voter }
                }
                (replica, BrokerId(0), 4) => {
                    Self::StepMetadata { replica, step: MetadataStep::Gone }
                }
                _ => return Err(CodecError::Malformed),
            },
            18 => Self::Reinstate { uuid: input.u128()?, now_ms: input.u64()? },
            17 => {
                Self::Found { cluster: input.u128()?, brokers: input.u16()?, voters: input.u8()? }
            }
            _ => return Err(CodecError::Malformed),
        })
    }
}

fn put_metadata(bytes: &mut Vec<u8>, replica: ReplicaId, broker: BrokerId, step: u8) {
    bytes.extend_from_slice(&replica.to_le_bytes());
    bytes.extend_from_slice(&broker.to_le_bytes());
    bytes.push(step);
}

fn step(byte: u8) -> Result<Step, CodecError> {
    match byte {
        1 => Ok(Step::Ready),
        2 => Ok(Step::Voter),
        3 => Ok(Step::Leaving),
        4 => Ok(Step::Gone),
        _ => Err(CodecError::Malformed),
    }
}

fn replicas(input: &mut Input<'_>) -> Result<Vec<ReplicaId>, CodecError> {
    let count = input.u32()?;
    (0..count).map(|_| input.replica()).collect()
}

fn put_partitions(bytes: &mut Vec<u8>, partitions: &[NewPartition]) {
    bytes.extend_from_slice(&(partitions.len() as u32).to_le_bytes());
    for partition in partitions {
        bytes.extend_from_slice(&partition.uuid.to_le_bytes());
        bytes.push(partition.brokers.len() as u8);
        for broker in &partition.brokers {
            bytes.extend_from_slice(&broker.to_le_bytes());
        }
    }
}

fn partitions(input: &mut Input<'_>) -> Result<Vec<NewPartition>, CodecError> {
    let count = input.u32()?;
    let mut partitions = Vec::new();
    for _ in 0..count {
        let uuid = input.u128()?;
        let brokers = usize::from(input.u8()?);
        if brokers > REPLICAS_MAX {
            return Err(CodecError::Malformed);
        }
        let brokers: Result<_, _> = (0..brokers).map(|_| input.u64().map(BrokerId)).collect();
        partitions.push(NewPartition { uuid, brokers: brokers? });
    }
    Ok(partitions)
}
