//! What only the leader of a partition knows: how far the others are behind.
//!
//! Owns: when a replica counts as whole in the eyes of its leader.
//! Never: waits for a partition or for the disk.

use crate::cluster::members::Progress;
use crate::partition::PartitionHandle;
use crate::replication::CATCH_UP_BYTES;
use crate::replication::metadata::Partition;
use std::collections::BTreeMap;
use weir_protocol::types::ReplicaId;

/// One partition as its leader sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Led {
    /// The others, by their identity.
    pub(super) others: BTreeMap<ReplicaId, Progress>,
}

impl Led {
    /// What this broker knows of a partition, if it leads it.
    pub(super) fn of(handle: &PartitionHandle) -> Option<Self> {
        let leads = handle.view().leading;
        let replica = handle.replica().filter(|_| leads)?;
        Some(Self { others: Progress::of_others(&replica, &replica.members()) })
    }

    /// How many voters have what the leader has, nearly all of it, and answer.
    pub(super) fn whole(&self, partition: &Partition) -> usize {
        let is_whole = |progress: &Progress| progress.is_close();
        let voters = partition.voters();
        voters.filter(|voter| self.others.get(&voter.replica).is_none_or(is_whole)).count()
    }

    /// How many are so far behind that they are sent no more than the throttle lets through.
    pub(super) fn catching_up(&self) -> u32 {
        let far = self.others.values().filter(|progress| progress.lag_bytes > CATCH_UP_BYTES);
        far.count() as u32
    }

    /// Bytes that the one furthest behind lacks; none where there are no others.
    pub(super) fn lag_bytes(&self) -> Option<u64> {
        self.others.values().map(|progress| progress.lag_bytes).max()
    }
}
