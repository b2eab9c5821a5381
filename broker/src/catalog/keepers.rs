//! Who keeps the groups of what is open here, and places replicas where this broker leads the
//! metadata.
//!
//! Owns: that there is one keeper for each open replica and one for the metadata's, and one
//! controller. A broker that is alone has none.
//! Never: decides what they do.

use super::{Rooms, start_until};
use crate::cluster::MetadataClient;
use crate::cluster::controller::Controller;
use crate::cluster::members::{KeptLog, MemberKeeper};
use crate::cluster::pace::TransferPace;
use crate::partition::PartitionHandle;
use crate::replication::Replica;
use crate::replication::metadata::Partition;
use crate::task::{self, TaskKind};
use std::sync::{Arc, Mutex};
use tokio::time::Duration;
use tokio_util::sync::CancellationToken;
use weir_protocol::types::{ReplicaId, TopicId};

/// A log whose replica has ended is looked at again after this: it may be opened anew.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What keepers of partitions are made of.
pub(super) struct Keepers {
    rooms: Arc<Rooms>,
    metadata: MetadataClient,
    pace: Arc<Mutex<TransferPace>>,
}

impl Keepers {
    pub(super) fn new(rooms: &Arc<Rooms>, metadata: &MetadataClient) -> Self {
        Self { rooms: rooms.clone(), metadata: metadata.clone(), pace: Arc::default() }
    }

    /// Keeps the group of a partition until the partition ends.
    pub(super) fn keep(
        &self,
        handle: &PartitionHandle,
        partition: &Partition,
        topic: TopicId,
        me: ReplicaId,
    ) {
        if self.rooms.metadata_voters.is_none() {
            return;
        }
        let (handle, log) = (handle.clone(), KeptLog::Partition(topic, partition.id));
        let (rooms, metadata, pace) =
            (self.rooms.clone(), self.metadata.clone(), self.pace.clone());
        let keep = async move {
            while let Some(replica) = handle.replica() {
                keeper(&rooms, &metadata, (replica, me), (log, pace.clone())).run().await;
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        // It ends with the partition.
        drop(task::spawn("member keeper", TaskKind::Connection, keep));
    }
}

fn keeper(
    rooms: &Rooms,
    metadata: &MetadataClient,
    (replica, me): (Replica, ReplicaId),
    (log, pace): (KeptLog, Arc<Mutex<TransferPace>>),
) -> MemberKeeper {
    let (broker, board) = (rooms.broker, rooms.leaders.clone());
    MemberKeeper { replica, me, broker, log, metadata: metadata.clone(), board, pace }
}

/// Starts what works on the metadata's own group and on the cluster as a whole.
pub(super) fn start(rooms: &Arc<Rooms>, metadata: &MetadataClient, stopped: &CancellationToken) {
    let Some(voters) = rooms.metadata_voters else { return };
    let (here, own) = (metadata.clone(), (KeptLog::Metadata(voters), Arc::default()));
    let of_metadata = rooms.clone();
    let keep = async move {
        loop {
            let replica = here.metadata().replica();
            let me = replica.id();
            keeper(&of_metadata, &here, (replica, me), own.clone()).run().await;
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    let (board, wall) = (rooms.leaders.clone(), rooms.wall.clone());
    let controller = Controller::new(metadata.clone(), board, rooms.broker, wall);
    start_until(stopped, "metadata keeper", keep);
    start_until(stopped, "controller", controller.run());
}
