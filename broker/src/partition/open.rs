//! Owns: how a partition comes to life: open its replica, take the checkpoint, start the task.
//! Never: replays here; the task applies the log from the checkpoint on, like any other batch.

use super::core::Core;
use super::limits::COLD_READS_MAX;
use super::state::State;
use super::task::{Surroundings, Task};
use super::view::Board;
use super::wire::WireError;
use super::{PartitionHandle, mailbox_capacity};
use crate::flow::{Flow, PartitionKey};
use crate::metrics::Metrics;
use crate::replication::{OpenReplicaError, Replica, ReplicaOptions};
use crate::seams::WallClock;
use crate::task::{self, TaskKind};
use std::sync::Arc;
use tokio::sync::{Notify, mpsc};
use weir_protocol::frame::TopicConfig;

/// What a partition is opened with.
#[derive(Clone)]
pub struct PartitionOptions {
    /// Its topic and number.
    pub key: PartitionKey,
    /// The topic's configuration.
    pub config: TopicConfig,
    /// Its replica.
    pub replica: ReplicaOptions,
    /// Flow control of its device: told when the partition takes no more.
    pub flow: Arc<Flow>,
    /// Told when it begins to lead, or ceases to.
    pub lead_changed: Arc<Notify>,
    /// The time of day.
    pub wall: Arc<dyn WallClock>,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
}

/// Why a partition could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenPartitionError {
    /// Its replica could not be opened.
    #[error(transparent)]
    Replica(#[from] OpenReplicaError),
    /// Its checkpoint is of a newer version, or was not written by a partition.
    #[error("the checkpoint of the partition cannot be read: {0}")]
    Checkpoint(#[from] WireError),
}

impl PartitionHandle {
    /// Opens the partition and starts its task. Requests may be sent at once: they are answered
    /// when the log is applied and it is known who leads; see [`PartitionHandle::opened`].
    pub async fn open(options: PartitionOptions) -> Result<Self, OpenPartitionError> {
        let (replica, report) = Replica::open(options.replica.clone()).await?;
        let (state, checkpoint) = match report.checkpoint {
            Some((at, bytes)) => (State::decode(at, &bytes)?, at),
            None => (State::new(), weir_protocol::types::Index(0)),
        };
        let (mailbox, requests) = mpsc::channel(mailbox_capacity(options.flow.pool_cost()));
        let (reads_done, reads) = mpsc::channel(COLD_READS_MAX);
        let (pokes, board) = (Arc::default(), Arc::<Board>::default());
        let handle = Self { mailbox, pokes, board, memory_loss: report.memory_loss };
        let surroundings = Surroundings {
            topic: options.metrics.topic(&options.key.topic),
            executor: options.replica.device.executor().clone(),
            pokes: handle.pokes.clone(),
            board: handle.board.clone(),
            reads_done,
            options,
        };
        handle.board.set_replica(Some(replica.clone()));
        let core = Core::new(surroundings.options.config, state);
        let task = Task::new(core, replica, checkpoint, surroundings);
        task::spawn("partition", TaskKind::Core, task.run(requests, reads));
        Ok(handle)
    }
}
