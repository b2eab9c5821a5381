//! Owns: the commands of the metadata log and their bytes.
//! Never: judges a command; that is [`super::State::apply`].
//! Invariants: randomness and clocks are read by whoever proposes and travel in the command, so
//! that every replica applies the same; decoding never allocates by an announced length.
//!
//! ```text
//! command:    version1=1 kind1, then by kind
//!   1 form      cluster16 broker8
//!   2 create    name config created_ms8 count4, per new partition: uuid16 brokers1 broker8…
//!   3 alter     topic8 revision8 config count4, new partitions as above
//!   4 delete    topic8
//!   5 producer  name
//! name:       length1 bytes          config: durability1 overflow1 max_bytes8 max_age_ms8
//! ```
//! A control batch of the metadata log holds one command; the batch's CRC closes it.

use super::state::{Settings, TopicRevision};
use crate::replication::codec::{CodecError, Input};
use weir_protocol::frame::{Durability, Overflow};
use weir_protocol::types::{BrokerId, Name, TopicId};

const VERSION: u8 = 1;
/// Brokers that hold one partition.
pub const REPLICAS_PER_PARTITION_MAX: usize = 7;

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
}

/// A partition to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPartition {
    /// Identity of its log, random.
    pub uuid: u128,
    /// Who holds a replica; 1 to [`REPLICAS_PER_PARTITION_MAX`].
    pub brokers: Vec<BrokerId>,
}

impl Command {
    /// The bytes of a control section, its CRC not included.
    pub(in crate::replication) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        match self {
            Self::Form { cluster, broker } => {
                bytes.push(1);
                bytes.extend_from_slice(&cluster.to_le_bytes());
                bytes.extend_from_slice(&broker.to_le_bytes());
            }
            Self::CreateTopic { name, settings, created_ms, partitions } => {
                bytes.push(2);
                put_name(&mut bytes, name);
                put_settings(&mut bytes, settings);
                bytes.extend_from_slice(&created_ms.to_le_bytes());
                put_partitions(&mut bytes, partitions);
            }
            Self::AlterTopic { topic, revision, settings, added } => {
                bytes.push(3);
                bytes.extend_from_slice(&topic.to_le_bytes());
                bytes.extend_from_slice(&revision.0.to_le_bytes());
                put_settings(&mut bytes, settings);
                put_partitions(&mut bytes, added);
            }
            Self::DeleteTopic { topic } => {
                bytes.push(4);
                bytes.extend_from_slice(&topic.to_le_bytes());
            }
            Self::OpenProducer { name } => {
                bytes.push(5);
                put_name(&mut bytes, name);
            }
        }
        bytes
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
            _ => return Err(CodecError::Malformed),
        };
        input.end()?;
        Ok(command)
    }
}

pub(super) fn put_name(bytes: &mut Vec<u8>, name: &Name) {
    // A name has at most 255 bytes, checked where it was made.
    bytes.push(name.as_str().len() as u8);
    bytes.extend_from_slice(name.as_str().as_bytes());
}

pub(super) fn name(input: &mut Input<'_>) -> Result<Name, CodecError> {
    let length = usize::from(input.u8()?);
    let text = std::str::from_utf8(input.bytes(length)?).map_err(|_| CodecError::Malformed)?;
    Name::new(text).map_err(|_| CodecError::Malformed)
}

pub(super) fn put_settings(bytes: &mut Vec<u8>, settings: &Settings) {
    bytes.extend_from_slice(&[settings.durability as u8, settings.overflow as u8]);
    bytes.extend_from_slice(&settings.max_bytes.to_le_bytes());
    bytes.extend_from_slice(&settings.max_age_ms.to_le_bytes());
}

pub(super) fn settings(input: &mut Input<'_>) -> Result<Settings, CodecError> {
    let durability = match input.u8()? {
        0 => Durability::Fsync,
        1 => Durability::Memory,
        _ => return Err(CodecError::Malformed),
    };
    let overflow = match input.u8()? {
        0 => Overflow::Backpressure,
        1 => Overflow::Reject,
        2 => Overflow::Expire,
        _ => return Err(CodecError::Malformed),
    };
    Ok(Settings { durability, overflow, max_bytes: input.u64()?, max_age_ms: input.u64()? })
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
        if brokers > REPLICAS_PER_PARTITION_MAX {
            return Err(CodecError::Malformed);
        }
        let brokers: Result<_, _> = (0..brokers).map(|_| input.u64().map(BrokerId)).collect();
        partitions.push(NewPartition { uuid, brokers: brokers? });
    }
    Ok(partitions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn defaults() -> Settings {
        Settings {
            durability: Durability::Fsync,
            overflow: Overflow::Reject,
            max_bytes: 10 << 30,
            max_age_ms: 60_000,
        }
    }

    fn all() -> Vec<(Command, &'static str)> {
        let orders = Name::new("orders").unwrap();
        let partition = NewPartition { uuid: 0xAB, brokers: vec![BrokerId(1), BrokerId(2)] };
        vec![
            (
                Command::Form { cluster: 0xC1, broker: BrokerId(1) },
                "0101c10000000000000000000000000000000100000000000000",
            ),
            (
                Command::CreateTopic {
                    name: orders.clone(),
                    settings: defaults(),
                    created_ms: 5,
                    partitions: vec![partition],
                },
                concat!(
                    "0102066f7264657273",
                    "0001000000800200000060ea000000000000",
                    "0500000000000000",
                    "01000000ab0000000000000000000000000000000201000000000000000200000000000000",
                ),
            ),
            (
                Command::AlterTopic {
                    topic: TopicId(3),
                    revision: TopicRevision(2),
                    settings: Settings { durability: Durability::Memory, ..defaults() },
                    added: Vec::new(),
                },
                concat!(
                    "010303000000000000000200000000000000",
                    "0101000000800200000060ea000000000000",
                    "00000000",
                ),
            ),
            (Command::DeleteTopic { topic: TopicId(3) }, "01040300000000000000"),
            (Command::OpenProducer { name: orders }, "0105066f7264657273"),
        ]
    }

    #[test]
    fn every_command_has_its_golden_bytes() {
        for (command, golden) in all() {
            assert_eq!(hex(&command.encode()), golden, "{command:?}");
            assert_eq!(Command::decode(&command.encode()), Ok(command));
        }
    }

    #[test]
    fn unknown_kinds_and_versions_are_refused() {
        assert_eq!(Command::decode(&[1, 99]), Err(CodecError::Malformed));
        assert_eq!(Command::decode(&[2, 4]), Err(CodecError::Version(2)));
    }

    proptest! {
        #[test]
        fn no_cut_of_a_command_decodes(which in 0usize..5, cut in 0usize..60) {
            let (command, _) = all().swap_remove(which);
            let bytes = command.encode();
            let cut = cut.min(bytes.len() - 1);
            prop_assert_eq!(Command::decode(&bytes[..cut]), Err(CodecError::Malformed));
        }

        #[test]
        fn garbage_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Command::decode(&bytes);
        }
    }
}
