//! Owns: the bytes of what became of a command, as the metadata's leader tells whoever forwarded it.
//! Invariants: what is decoded equals what was encoded; decoding never allocates by an announced
//! length, and refuses what it does not know.
//!
//! ```text
//! answer:      version1=1 applied8 (what the leader has applied: the command is at or before it)
//!              kind1, then by kind
//!   0 refused  number1 of the refusal
//!   1 formed   cluster16
//!   2 created, 3 altered, 4 deleted
//!              topic, as in version 2 of the snapshot
//!   5 opened   producer8 epoch4
//!   6 broker   broker8
//!   7 placed   placement, as in the snapshot
//!   8 gate     gate4
//!   9 done
//! ```

use super::snapshot::{VERSION as SNAPSHOT_VERSION, placement, put_placement, put_topic, topic};
use super::{Change, Producer, Refusal};
use crate::replication::codec::{CodecError, Input};
use std::sync::Arc;
use weir_protocol::types::{BrokerId, Index, ProducerId};

const VERSION: u8 = 1;

/// What became of a command, and what its leader has applied since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Who has applied up to here sees what the command did.
    pub applied: Index,
    /// What it did, or why nothing.
    pub outcome: Result<Change, Refusal>,
}

impl Verdict {
    /// The answer as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&self.applied.to_le_bytes());
        match &self.outcome {
            Err(refusal) => bytes.extend_from_slice(&[0, *refusal as u8]),
            Ok(change) => put_change(&mut bytes, change),
        }
        bytes
    }

    /// Decodes what [`Verdict::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Input::versioned(bytes)?;
        let applied = Index(input.u64()?);
        let outcome = match input.u8()? {
            0 => Err(Refusal::from_u8(input.u8()?).ok_or(CodecError::Malformed)?),
            kind => Ok(change(kind, &mut input)?),
        };
        input.end()?;
        Ok(Self { applied, outcome })
    }
}

fn put_change(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Formed { cluster } => {
            bytes.push(1);
            bytes.extend_from_slice(&cluster.to_le_bytes());
        }
        Change::Created(topic) => {
            bytes.push(2);
            put_topic(bytes, topic, SNAPSHOT_VERSION);
        }
        Change::Altered(topic) => {
            bytes.push(3);
            put_topic(bytes, topic, SNAPSHOT_VERSION);
        }
        Change::Deleted(topic) => {
            bytes.push(4);
            put_topic(bytes, topic, SNAPSHOT_VERSION);
        }
        Change::Opened(producer) => {
            bytes.push(5);
            bytes.extend_from_slice(&producer.id.to_le_bytes());
            bytes.extend_from_slice(&producer.epoch.to_le_bytes());
        }
        Change::BrokerUp(broker) => {
            bytes.push(6);
            bytes.extend_from_slice(&broker.to_le_bytes());
        }
        Change::Placed(placed) => {
            bytes.push(7);
            put_placement(bytes, placed);
        }
        Change::Gate(gate) => {
            bytes.push(8);
            bytes.extend_from_slice(&gate.to_le_bytes());
        }
        Change::Done => bytes.push(9),
    }
}

fn change(kind: u8, input: &mut Input<'_>) -> Result<Change, CodecError> {
    Ok(match kind {
        1 => Change::Formed { cluster: input.u128()? },
        2 => Change::Created(Arc::new(topic(input, SNAPSHOT_VERSION)?)),
        3 => Change::Altered(Arc::new(topic(input, SNAPSHOT_VERSION)?)),
        4 => Change::Deleted(Arc::new(topic(input, SNAPSHOT_VERSION)?)),
        5 => Change::Opened(Producer { id: ProducerId(input.u64()?), epoch: input.u32()? }),
        6 => Change::BrokerUp(BrokerId(input.u64()?)),
        7 => Change::Placed(placement(input)?),
        8 => Change::Gate(input.u32()?),
        9 => Change::Done,
        _ => return Err(CodecError::Malformed),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::metadata::{
        Command, FOUNDER, NewPartition, Placement, Settings, Stage, State,
    };
    use weir_protocol::frame::{Durability, Overflow};
    use weir_protocol::types::{Name, ReplicaId};

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn topic() -> Arc<crate::replication::metadata::Topic> {
        let mut state = State::default();
        state.apply(&Command::Found { cluster: 1, brokers: 3, voters: 3 }).unwrap();
        let settings = Settings {
            durability: Durability::Fsync,
            overflow: Overflow::Reject,
            max_bytes: 1 << 20,
            max_age_ms: 5,
        };
        let brokers = vec![FOUNDER, BrokerId(2), BrokerId(3)];
        let created = state.apply(&Command::CreateTopic {
            name: Name::new("t").unwrap(),
            settings,
            created_ms: 9,
            partitions: vec![NewPartition { uuid: 0xAB, brokers }],
        });
        let Ok(Change::Created(topic)) = created else { panic!("{created:?}") };
        topic
    }

    #[test]
    fn every_outcome_has_its_bytes_and_no_cut_of_them_decodes() {
        let placed = Placement { replica: ReplicaId(9), broker: FOUNDER, stage: Stage::Joining };
        let golden = [
            (Ok(Change::Formed { cluster: 0xC1 }), "01c1000000000000000000000000000000"),
            (
                Ok(Change::Opened(Producer { id: ProducerId(7), epoch: 2 })),
                "05070000000000000002000000",
            ),
            (Ok(Change::BrokerUp(BrokerId(4))), "060400000000000000"),
            (Ok(Change::Placed(placed)), "070900000000000000010000000000000001"),
            (Ok(Change::Gate(3)), "0803000000"),
            (Ok(Change::Done), "09"),
            (Err(Refusal::TopicExists), "0001"),
            (Err(Refusal::OldEpoch), "0020"),
        ];
        let golden = golden.map(|(outcome, bytes)| (outcome, Some(bytes)));
        let topics = [Change::Created, Change::Altered, Change::Deleted];
        let topics = topics.map(|change| (Ok(change(topic())), None));
        for (outcome, bytes) in golden.into_iter().chain(topics) {
            let verdict = Verdict { applied: Index(6), outcome };
            let encoded = verdict.encode();
            if let Some(bytes) = bytes {
                assert_eq!(hex(&encoded), format!("010600000000000000{bytes}"), "{verdict:?}");
            }
            for cut in 0..encoded.len() {
                assert!(Verdict::decode(&encoded[..cut]).is_err(), "{verdict:?} cut at {cut}");
            }
            assert_eq!(Verdict::decode(&encoded), Ok(verdict));
        }
    }

    #[test]
    fn every_refusal_has_its_number_for_ever() {
        for (at, refusal) in Refusal::ALL.iter().enumerate() {
            assert_eq!(*refusal as usize, at + 1, "numbers are given in order and never again");
            assert_eq!(Refusal::from_u8(*refusal as u8), Some(*refusal));
        }
        assert_eq!(Refusal::from_u8(0), None);
    }
}
