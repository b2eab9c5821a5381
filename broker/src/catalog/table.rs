//! The table of partitions, and what has become of each here.
//!
//! Invariants: written by the follower task alone; read under a short lock, never over an await.

use crate::partition::{PartitionHandle, PartitionView};
use crate::replication::metadata::{Catalog as Topics, Placement, Topic};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use weir_protocol::error_code::ErrorCode;
use weir_protocol::types::{Name, PartitionId, ReplicaId};

/// What has become of a partition here.
#[derive(Debug, Clone)]
pub enum PartitionState {
    /// No replica of it is placed here.
    Elsewhere,
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

/// One partition as it is here.
#[derive(Debug, Clone)]
pub struct PartitionHere {
    /// The replica that is placed here, as the metadata had it when the table was written.
    pub placed: Option<Placement>,
    /// What has become of it.
    pub state: PartitionState,
}

impl PartitionHere {
    /// The partition, where it is open.
    pub fn handle(&self) -> Option<&PartitionHandle> {
        match &self.state {
            PartitionState::Open(handle) => Some(handle),
            PartitionState::Elsewhere | PartitionState::Opening | PartitionState::Failed { .. } => {
                None
            }
        }
    }

    pub(super) fn is_opening(&self) -> bool {
        matches!(self.state, PartitionState::Opening)
    }
}

/// One topic and its partitions here.
#[derive(Debug, Clone)]
pub struct TopicPartitions {
    /// As the metadata had it when the table was written.
    pub topic: Arc<Topic>,
    /// By number.
    pub partitions: Vec<PartitionHere>,
}

impl TopicPartitions {
    /// Those that are open here, with their numbers.
    pub fn open(&self) -> impl Iterator<Item = (usize, &PartitionHandle)> {
        let numbered = self.partitions.iter().enumerate();
        numbered.filter_map(|(number, here)| Some((number, here.handle()?)))
    }

    fn shows(&self, topic: &Topic) -> bool {
        *self.topic == *topic
            && self.partitions.len() == topic.partitions.len()
            && !self.partitions.iter().any(PartitionHere::is_opening)
    }
}

#[derive(Default)]
pub(super) struct Table(RwLock<BTreeMap<Name, TopicPartitions>>);

impl Table {
    pub(super) fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Name, TopicPartitions>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Name, TopicPartitions>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn partition(&self, topic: &Name, id: PartitionId) -> Option<PartitionHere> {
        self.read().get(topic)?.partitions.get(id.0 as usize).cloned()
    }

    pub(super) fn all(&self) -> Vec<TopicPartitions> {
        self.read().values().cloned().collect()
    }

    pub(super) fn open(&self) -> Vec<PartitionHandle> {
        let table = self.read();
        let open = table.values().flat_map(TopicPartitions::open);
        open.map(|(_, handle)| handle.clone()).collect()
    }

    /// Whether anything is being opened.
    pub(super) fn is_opening(&self) -> bool {
        self.read().values().flat_map(|topic| &topic.partitions).any(PartitionHere::is_opening)
    }

    /// Every partition that is led here.
    pub(super) fn each_led(&self, mut tell: impl FnMut(ReplicaId, PartitionView)) {
        for here in self.read().values().flat_map(|topic| &topic.partitions) {
            let view = here.handle().map(PartitionHandle::view).filter(|view| view.leading);
            if let (Some(placed), Some(view)) = (here.placed, view) {
                tell(placed.replica, view);
            }
        }
    }

    /// Whether a topic is here as the metadata has it, and nothing of it is being opened.
    pub(super) fn shows(&self, topics: &Topics, name: &Name) -> bool {
        match (self.read().get(name), topics.topics.get(name)) {
            (Some(here), Some(there)) => here.shows(there),
            (here, there) => here.is_none() && there.is_none(),
        }
    }
}
