//! The table of partitions that are open here.
//!
//! Invariants: written by the follower task alone; read under a short lock, never over an await.

use crate::partition::PartitionHandle;
use crate::replication::metadata::{Catalog as Topics, Topic};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use weir_protocol::error_code::ErrorCode;
use weir_protocol::types::{Name, PartitionId};

/// What has become of a partition here.
#[derive(Debug, Clone)]
pub enum PartitionState {
    /// It is being opened.
    Opening,
    /// It serves.
    Open(PartitionHandle),
    /// It could not be opened.
    Failed {
        /// What clients are told.
        code: ErrorCode,
        /// What people are told.
        reason: String,
    },
}

/// One topic and its partitions here.
#[derive(Debug, Clone)]
pub struct TopicPartitions {
    /// As the metadata had it when the table was written.
    pub topic: Arc<Topic>,
    /// By number.
    pub partitions: Vec<PartitionState>,
}

#[derive(Default)]
pub(super) struct Table(RwLock<BTreeMap<Name, TopicPartitions>>);

impl Table {
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Name, TopicPartitions>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Name, TopicPartitions>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn partition(&self, topic: &Name, id: PartitionId) -> Option<PartitionHandle> {
        match self.read().get(topic)?.partitions.get(id.0 as usize)? {
            PartitionState::Open(handle) => Some(handle.clone()),
            PartitionState::Opening | PartitionState::Failed { .. } => None,
        }
    }

    pub(super) fn failure(&self, topic: &Name, id: PartitionId) -> Option<(ErrorCode, String)> {
        match self.read().get(topic)?.partitions.get(id.0 as usize)? {
            PartitionState::Failed { code, reason } => Some((*code, reason.clone())),
            PartitionState::Opening | PartitionState::Open(_) => None,
        }
    }

    pub(super) fn all(&self) -> Vec<TopicPartitions> {
        self.read().values().cloned().collect()
    }

    pub(super) fn open(&self) -> Vec<PartitionHandle> {
        let table = self.read();
        let states = table.values().flat_map(|topic| &topic.partitions);
        let open = states.filter_map(|state| match state {
            PartitionState::Open(handle) => Some(handle.clone()),
            PartitionState::Opening | PartitionState::Failed { .. } => None,
        });
        open.collect()
    }

    /// Whether the table is as the metadata says, and nothing is being opened.
    pub(super) fn shows(&self, topics: &Topics) -> bool {
        let table = self.read();
        let same = table.len() == topics.topics.len()
            && table.values().zip(topics.topics.values()).all(|(here, there)| {
                here.topic == *there && here.partitions.len() == there.partitions.len()
            });
        let opening = |state: &PartitionState| matches!(state, PartitionState::Opening);
        same && !table.values().flat_map(|topic| &topic.partitions).any(opening)
    }
}
