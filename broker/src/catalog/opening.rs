//! What a replica is opened with.
//!
//! Owns: what an empty log of it means, where its folder is, its pace.
//! Never: opens anything.

use super::{Rooms, config_of};
use crate::flow::PartitionKey;
use crate::partition::PartitionOptions;
use crate::replication::metadata::{Catalog as Topics, Partition, Placement, Stage, Topic};
use crate::replication::{Birth, Durability, OpenReplicaError, Pace, ReplicaOptions};
use std::path::PathBuf;
use std::sync::Arc;
use weir_protocol::types::{BrokerId, ReplicaId};
use weir_storage::{LogOptions, OpenError};

/// What a replica can not learn while it is open: a change of it needs the replica opened anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Manner {
    pub(super) durability: Durability,
    pub(super) pace: Pace,
}

impl Manner {
    pub(super) fn of(topics: &Topics, topic: &Topic) -> Self {
        let pace = Pace::of(topics.partitions().count());
        Self { durability: topic.settings.durability, pace }
    }
}

/// A replica that is to be opened.
#[derive(Debug, Clone)]
pub(super) struct Opening {
    pub(super) topic: Arc<Topic>,
    pub(super) partition: Partition,
    pub(super) placed: Placement,
    pub(super) manner: Manner,
    /// Whether the cluster may have more than one broker.
    pub(super) clustered: bool,
    /// What it may have lost with the memory of this machine was accepted to be lost.
    pub(super) loss_accepted: bool,
}

impl Opening {
    pub(super) fn key(&self) -> PartitionKey {
        PartitionKey { topic: self.topic.name.clone(), partition: self.partition.id }
    }

    /// Whether somebody else could serve the partition.
    pub(super) fn has_others(&self) -> bool {
        self.partition.voters().any(|voter| voter.replica != self.placed.replica)
    }

    /// Who votes, and first of all who shall lead.
    fn voters(&self) -> Vec<(ReplicaId, BrokerId)> {
        let voters = self.partition.voters().map(|voter| (voter.replica, voter.broker));
        let mut voters: Vec<_> = voters.collect();
        voters.sort_by_key(|(replica, _)| *replica != self.partition.preferred);
        voters
    }

    /// An empty log is the beginning of a voter whose group never had a leader, of one that joins,
    /// and of one that was never made: its group was formed while this broker was away or busy. Of
    /// any other it is the loss of what was promised.
    fn birth(&self, was_made: bool) -> Birth {
        match self.placed.stage {
            Stage::Joining | Stage::Ready => Birth::Joins,
            Stage::Voter | Stage::Leaving | Stage::Lost(_) if self.partition.formed => {
                let may_be_late = !was_made && self.has_others();
                if may_be_late { Birth::Joins } else { Birth::Continues }
            }
            Stage::Voter | Stage::Leaving | Stage::Lost(_) => Birth::Forms,
        }
    }

    /// `was_made`: whether the replica may have been made before.
    pub(super) fn options(
        &self,
        rooms: &Rooms,
        was_made: bool,
    ) -> Result<PartitionOptions, OpenReplicaError> {
        let (topic, partition) = (&self.topic, &self.partition);
        Ok(PartitionOptions {
            key: self.key(),
            config: config_of(topic),
            replica: ReplicaOptions {
                replica: self.placed.replica,
                birth: self.birth(was_made),
                voters: self.voters(),
                dir: self.folder(rooms)?,
                device: rooms.device.clone(),
                log: LogOptions {
                    uuid: partition.uuid,
                    retained_bytes: topic.settings.max_bytes,
                    ..LogOptions::default()
                },
                durability: self.manner.durability,
                loss_accepted: self.loss_accepted,
                boot_id: rooms.boot_id,
                seed: rooms.seed ^ partition.uuid as u64,
                pace: self.manner.pace,
                wiring: rooms.wiring.clone(),
            },
            flow: rooms.flow.clone(),
            lead_changed: rooms.lead_changed.clone(),
            metrics: rooms.metrics.clone(),
            wall: rooms.wall.clone(),
        })
    }

    /// Every replica has a folder of its own, so that a new one never finds what a lost one left.
    /// A broker that is alone keeps the plain name that it always used, also when others join.
    fn folder(&self, rooms: &Rooms) -> Result<PathBuf, OpenReplicaError> {
        let [plain, own] = folders_of(&self.partition, &self.placed);
        let names = rooms.device.disk().list(&rooms.data_dir);
        let names = names.map_err(OpenError::device(&rooms.data_dir))?;
        let has = |name: &String| names.iter().any(|known| known == name);
        let is_plain = !has(&own) && (has(&plain) || !self.clustered);
        Ok(rooms.data_dir.join(if is_plain { plain } else { own }))
    }
}

/// The names that the folder of a replica may have.
pub(super) fn folders_of(partition: &Partition, placed: &Placement) -> [String; 2] {
    folder_names(partition.uuid, placed.replica)
}

/// The plain name, and the one of its own.
pub(super) fn folder_names(uuid: u128, replica: ReplicaId) -> [String; 2] {
    let plain = format!("p-{uuid:032x}");
    let own = format!("{plain}-{replica}");
    [plain, own]
}

/// The replica of a partition that a broker holds. One that was lost here may stand beside the one
/// that takes its place.
pub(super) fn placed_on(partition: &Partition, broker: BrokerId) -> Option<Placement> {
    let here = partition.replicas.iter().filter(|placed| placed.broker == broker);
    here.min_by_key(|placed| matches!(placed.stage, Stage::Lost(_))).copied()
}
