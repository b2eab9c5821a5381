//! The task that makes the table follow the metadata.
//!
//! Owns: opening, stopping and removing partitions, in that order of care.
//! Never: removes the files of a partition that still runs.

use super::table::{PartitionState, Table, TopicPartitions};
use super::{Rooms, config_of};
use crate::flow::PartitionKey;
use crate::partition::{OpenPartitionError, PartitionHandle, PartitionOptions, Request, WireError};
use crate::replication::metadata::{Catalog as Topics, Partition, Topic};
use crate::replication::{
    Birth, CodecError, ELECTION_MS, HEARTBEAT_MS, OpenReplicaError, ReplicaOptions,
};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;
use weir_protocol::error_code::ErrorCode;
use weir_protocol::types::Name;
use weir_storage::{Lane, LogOptions, OpenError};

/// Partitions that are opened at a time: recovery is bound by the device.
const OPENING_MAX: usize = 8;

pub(super) struct Follower {
    rooms: Arc<Rooms>,
    table: Arc<Table>,
    shown: watch::Sender<u64>,
}

impl Follower {
    pub(super) fn new(rooms: Arc<Rooms>, table: Arc<Table>, shown: watch::Sender<u64>) -> Self {
        Self { rooms, table, shown }
    }

    pub(super) async fn follow(self, mut topics: watch::Receiver<Arc<Topics>>) {
        loop {
            let now = topics.borrow_and_update().clone();
            self.catch_up(&now).await;
            self.shown.send_modify(|times| *times += 1);
            if topics.changed().await.is_err() {
                return;
            }
        }
    }

    async fn catch_up(&self, topics: &Topics) {
        self.remove_deleted(topics).await;
        let mut to_open = Vec::new();
        for topic in topics.topics.values() {
            self.reconfigure(topic).await;
            let mut table = self.table.write();
            let here = table.entry(topic.name.clone()).or_insert_with(|| TopicPartitions {
                topic: topic.clone(),
                partitions: Vec::new(),
            });
            here.topic = topic.clone();
            for partition in topic.partitions.iter().skip(here.partitions.len()) {
                here.partitions.push(PartitionState::Opening);
                to_open.push((topic.clone(), partition.clone()));
            }
        }
        let opening = futures_util::stream::iter(
            to_open
                .into_iter()
                .map(|(topic, partition)| async move { self.open(&topic, &partition).await }),
        );
        let mut opened = futures_util::StreamExt::buffer_unordered(opening, OPENING_MAX);
        while futures_util::StreamExt::next(&mut opened).await.is_some() {}
    }

    async fn open(&self, topic: &Topic, partition: &Partition) {
        let state = match PartitionHandle::open(self.options(topic, partition)).await {
            Ok(handle) => {
                handle.opened().await;
                PartitionState::Open(handle)
            }
            Err(error) => {
                let (code, reason) = (code_of(&error), error.to_string());
                tracing::error!(
                    topic = %topic.name, partition = partition.id.0, code = code.name(), reason,
                    "a partition could not be opened"
                );
                PartitionState::Failed { code, reason }
            }
        };
        let mut table = self.table.write();
        let slot = table
            .get_mut(&topic.name)
            .and_then(|here| here.partitions.get_mut(partition.id.0 as usize));
        if let Some(slot) = slot {
            *slot = state;
        }
    }

    fn options(&self, topic: &Topic, partition: &Partition) -> PartitionOptions {
        let rooms = &self.rooms;
        let here = partition.replicas.iter().find(|placed| placed.broker == rooms.broker);
        let replica = here.expect("one broker holds every replica").replica;
        PartitionOptions {
            key: PartitionKey { topic: topic.name.clone(), partition: partition.id },
            config: config_of(topic),
            replica: ReplicaOptions {
                replica,
                birth: Birth::Forms,
                voters: partition.replicas.iter().map(|p| (p.replica, p.broker)).collect(),
                dir: self.folder(partition),
                device: rooms.device.clone(),
                log: LogOptions {
                    uuid: partition.uuid,
                    retained_bytes: topic.settings.max_bytes,
                    ..LogOptions::default()
                },
                durability: topic.settings.durability,
                seed: rooms.seed ^ partition.uuid as u64,
                heartbeat_ms: HEARTBEAT_MS,
                election_ms: ELECTION_MS,
                peers: rooms.peers.clone(),
                switchboard: rooms.switchboard.clone(),
            },
            flow: rooms.flow.clone(),
            metrics: rooms.metrics.clone(),
            wall: rooms.wall.clone(),
        }
    }

    fn folder(&self, partition: &Partition) -> PathBuf {
        self.rooms.data_dir.join(format!("p-{:032x}", partition.uuid))
    }

    /// Tells open partitions what changed; another durability needs them opened anew.
    async fn reconfigure(&self, topic: &Arc<Topic>) {
        let changed = {
            let table = self.table.write();
            table.get(&topic.name).filter(|here| here.topic != *topic).cloned()
        };
        let Some(before) = changed else { return };
        let reopen = before.topic.settings.durability != topic.settings.durability;
        for (state, partition) in before.partitions.iter().zip(&topic.partitions) {
            let PartitionState::Open(handle) = state else { continue };
            if reopen {
                self.set(&topic.name, partition, PartitionState::Opening);
                handle.stop().await;
                self.open(topic, partition).await;
            } else if handle.try_send(Request::Configure(config_of(topic))).is_err() {
                tracing::warn!(topic = %topic.name, "the partition is too busy to be reconfigured");
            }
        }
    }

    fn set(&self, topic: &Name, partition: &Partition, state: PartitionState) {
        let mut table = self.table.write();
        let slot = table.get_mut(topic).and_then(|t| t.partitions.get_mut(partition.id.0 as usize));
        if let Some(slot) = slot {
            *slot = state;
        }
    }

    /// Stops and removes what the metadata does not have any more, also a topic that was deleted
    /// and created again under the same name.
    async fn remove_deleted(&self, topics: &Topics) {
        let gone: Vec<TopicPartitions> = {
            let mut table = self.table.write();
            let is_gone = |name: &Name, here: &mut TopicPartitions| {
                topics.topics.get(name).is_none_or(|there| there.id != here.topic.id)
            };
            table.extract_if(.., is_gone).map(|(_, here)| here).collect()
        };
        for here in gone {
            let name = here.topic.name.clone();
            for (state, partition) in here.partitions.into_iter().zip(&here.topic.partitions) {
                if let PartitionState::Open(handle) = state {
                    handle.stop().await;
                }
                let key = PartitionKey { topic: name.clone(), partition: partition.id };
                self.rooms.flow.forget(&key);
                self.remove_folder(partition);
            }
            self.rooms.metrics.forget_topic(&name);
        }
    }

    fn remove_folder(&self, partition: &Partition) {
        let (device, folder) = (self.rooms.device.clone(), self.folder(partition));
        let remove = move || {
            if let Err(error) = device.disk().remove_dir(&folder) {
                tracing::warn!(folder = %folder.display(), %error, "a deleted log stays on disk");
            }
        };
        self.rooms.device.executor().submit(Lane::Checkpoint, Box::new(remove));
    }
}

/// What clients are told of a partition that could not be opened. What a newer version wrote is whole:
/// it is not damaged, and another broker may serve it, which is what STORAGE_FENCED sends clients to.
fn code_of(error: &OpenPartitionError) -> ErrorCode {
    let replica = match error {
        OpenPartitionError::Replica(replica) => replica,
        OpenPartitionError::Checkpoint(WireError::Version { .. }) => {
            return ErrorCode::StorageFenced;
        }
        OpenPartitionError::Checkpoint(
            WireError::Short(_) | WireError::Content(_) | WireError::Trailing(_),
        ) => return ErrorCode::DamagedRange,
    };
    match replica {
        OpenReplicaError::Log(open) => match open {
            OpenError::Damaged(_) => ErrorCode::DamagedRange,
            OpenError::NoSpace(_) => ErrorCode::StorageLow,
            OpenError::Newer { .. } | OpenError::Device { .. } => ErrorCode::StorageFenced,
        },
        OpenReplicaError::Codec { reason: CodecError::Version(_), .. } => ErrorCode::StorageFenced,
        OpenReplicaError::Codec { reason: CodecError::Malformed, .. }
        | OpenReplicaError::Read { .. } => ErrorCode::DamagedRange,
        OpenReplicaError::NotAVoter(_)
        | OpenReplicaError::Lost(_)
        | OpenReplicaError::Engine(_) => ErrorCode::StorageFenced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that is told of damage never comes back; what is only too new for this broker it
    /// finds elsewhere.
    #[test]
    fn what_a_newer_version_wrote_is_not_called_damaged() {
        let newer = OpenError::Newer { file: "000.seg".into(), found: 2, known: 1 };
        let version = CodecError::Version(2);
        let checkpoint = WireError::Version { what: "a checkpoint", version: 2, known: 1 };
        let newer = [
            OpenPartitionError::Replica(newer.into()),
            OpenReplicaError::Codec { what: "hard state", reason: version }.into(),
            OpenPartitionError::Checkpoint(checkpoint),
        ];
        assert!(newer.iter().all(|error| code_of(error) == ErrorCode::StorageFenced));
        let reason = CodecError::Malformed;
        let damaged = [
            OpenReplicaError::Codec { what: "hard state", reason }.into(),
            OpenPartitionError::Checkpoint(WireError::Trailing(1)),
        ];
        assert!(damaged.iter().all(|error| code_of(error) == ErrorCode::DamagedRange));
    }
}
