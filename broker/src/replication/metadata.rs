//! The replicated metadata: one log of commands, one state, one task that owns it.
//!
//! Owns: proposing commands, answering each with what it did, showing the catalog, checkpoints.
//! Never: lets anybody else change the state, or answers before the command is committed.
//! Invariants: commands take effect in log order; the table of those that wait is bounded, and so
//! is the mailbox; the state can always be rebuilt from the last checkpoint and the log.

mod change;
mod command;
mod fields;
mod keeper;
mod lost_majority;
mod offline;
mod refusal;
mod renewal;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;

pub use change::Verdict;
pub use command::{Command, MetadataStep, NewPartition, Step};
pub use lost_majority::{Survivor, commands_of};
pub use offline::{OfflineError, read_catalog};
pub use refusal::Refusal;
pub use state::{
    Address, BrokerCard, BrokerFacts, CLUSTER_PARTITIONS_MAX, Catalog, Change, FOUNDER,
    GATE_CLUSTER, GATE_HERE, GATE_REINSTATE, LossReason, METADATA_REPLICA, METADATA_VOTER_COUNTS,
    MOVES_MAX, Move, PRODUCERS_MAX, Partition, Placement, Producer, REPLICA_COUNTS, Recovery,
    Settings, Stage, Standing, State, TOPICS_MAX, Topic, TopicRevision,
};

use super::codec::CodecError;
use super::{Fence, MembershipError, OpenReplicaError, Replica, ReplicaOptions, Role};
use crate::seams::WallClock;
use crate::task::{self, TaskKind};
use keeper::{Keeper, Request};
use renewal::Renewal;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};
use weir_protocol::types::Index;

/// Commands that wait for their place in the log.
const MAILBOX_COMMANDS: usize = 256;

/// What the metadata is opened with.
pub struct MetadataOptions {
    /// The replica of the metadata log.
    pub replica: ReplicaOptions,
    /// The first command of a log that has none: proposed by whoever leads first. None where the
    /// cluster is known to be there.
    pub founding: Option<Command>,
    /// The time of day, for the log time of commands.
    pub wall: Arc<dyn WallClock>,
}

/// Why the metadata could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenMetadataError {
    /// The replica could not be opened.
    #[error("the metadata log: {0}")]
    Replica(#[from] OpenReplicaError),
    /// The checkpoint cannot be read.
    #[error("the metadata checkpoint cannot be read: {0}")]
    Checkpoint(#[from] CodecError),
    /// What was committed cannot be read to its end, and without it all that follows would be
    /// misread.
    #[error(
        "the metadata log cannot be read to its end: {0}; `weir data verify` says what is damaged, \
         ops/runbook/damaged-metadata.md what can be done"
    )]
    Read(ChangeError),
    /// The cluster could not be named.
    #[error("the cluster could not be formed: {0}")]
    Form(#[from] ChangeError),
}

impl OpenMetadataError {
    /// Why the copy here will never serve again, if that is what it says.
    pub fn loss(&self) -> Option<LossReason> {
        match self {
            Self::Replica(error) => error.loss(),
            Self::Checkpoint(CodecError::Malformed) => Some(LossReason::Damaged),
            Self::Checkpoint(CodecError::Version(_)) | Self::Read(_) | Self::Form(_) => None,
        }
    }
}

/// Why a command did not take effect, or may not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// It is in the log and changed nothing.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Too many commands wait. Nothing happened; try again.
    #[error("{MAILBOX_COMMANDS} commands wait already; try again")]
    Busy,
    /// The command of another broker is not one that this build reads. Nothing happened.
    #[error("the command cannot be read: {0}")]
    Unreadable(CodecError),
    /// Whoever leads the metadata was not there to be asked. Nothing happened.
    #[error("no leader of the metadata took the command; try again")]
    NotLeader,
    /// The leadership was lost meanwhile: it may take effect or not.
    #[error("the outcome is unknown: look at the metadata before trying again")]
    Unknown,
    /// The metadata log has ended.
    #[error(transparent)]
    Fenced(#[from] Fence),
}

/// A handle on the metadata. Cheap to clone.
#[derive(Clone)]
pub struct Metadata {
    requests: mpsc::Sender<Request>,
    stops: mpsc::Sender<oneshot::Sender<()>>,
    catalog: watch::Receiver<Arc<Catalog>>,
    applied: watch::Receiver<Index>,
    replica: watch::Receiver<Replica>,
}

impl Metadata {
    /// Opens the metadata log. Where this broker is its only voter, reads it to its end and names
    /// the cluster if it has no name yet; where others vote, that follows once one of them leads.
    pub async fn open(options: MetadataOptions) -> Result<Self, OpenMetadataError> {
        let (replica, report) = Replica::open(options.replica.clone()).await?;
        let renewal = Renewal::new(options.replica, replica.clone());
        let alone = replica.shared.is_only_voter();
        let (applied, state) = match report.checkpoint {
            Some((at, bytes)) => (at, State::decode(&bytes)?),
            None => (Index(0), State::default()),
        };
        let (requests, mailbox) = mpsc::channel(MAILBOX_COMMANDS);
        let mut keeper = Keeper::new(replica, (applied, state), options.wall);
        if alone {
            keeper.lead().await.map_err(OpenMetadataError::Read)?;
        }
        let names = alone && options.founding.is_some();
        keeper.founding = options.founding;
        let (catalog, applied) = keeper.shown();
        let (stops, stopping) = mpsc::channel(1);
        let replica = renewal.shown();
        task::spawn("metadata", TaskKind::Core, keeper.keep(mailbox, stopping, renewal));
        let metadata = Self { requests, stops, catalog, applied, replica };
        if names && metadata.watch().wait_for(|catalog| catalog.cluster != 0).await.is_err() {
            return Err(metadata.ended().into());
        }
        Ok(metadata)
    }

    /// Proposes a command where this broker leads, and waits until it is committed and applied here.
    /// Dropping the future changes nothing about the command.
    pub async fn propose(&self, command: Command) -> Result<Change, ChangeError> {
        let (reply, answer) = oneshot::channel();
        match self.requests.try_send(Request { command, reply }) {
            Ok(()) => answer.await.unwrap_or(Err(ChangeError::Unknown)),
            Err(mpsc::error::TrySendError::Full(_)) => Err(ChangeError::Busy),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(self.ended()),
        }
    }

    /// Proves that this broker leads, and returns an index: whatever was answered before this call is
    /// in the state of who has applied up to there.
    pub async fn read_index(&self) -> Result<Index, ChangeError> {
        self.replica().read_index().await.map_err(|error| match error {
            MembershipError::Fenced(fence) => fence.into(),
            _ => ChangeError::NotLeader,
        })
    }

    /// Waits until everything up to `index` is in the state here.
    pub async fn reaches(&self, index: Index) -> Result<(), ChangeError> {
        let mut applied = self.applied.clone();
        let reached = applied.wait_for(|applied| *applied >= index).await;
        reached.map(drop).map_err(|_| self.ended())
    }

    /// The last index that is in the state here.
    pub fn applied(&self) -> Index {
        *self.applied.borrow()
    }

    /// Checkpoints what was changed and ends the replica. The next start need not read it then:
    /// what rots meanwhile keeps nobody from starting.
    pub async fn stop(&self) {
        let (done, stopped) = oneshot::channel();
        // Nobody listens where the log has ended before.
        if self.stops.send(done).await.is_ok() {
            let _ = stopped.await;
        }
        self.replica().shutdown().await;
    }

    /// The catalog as of the last command that was applied here.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.catalog.borrow().clone()
    }

    /// The register that always holds the latest catalog.
    pub fn watch(&self) -> watch::Receiver<Arc<Catalog>> {
        self.catalog.clone()
    }

    /// The replica, to watch its state. One that ran out of space is followed by another.
    pub fn replica(&self) -> Replica {
        self.replica.borrow().clone()
    }

    fn ended(&self) -> ChangeError {
        match &self.replica().state().borrow().role {
            Role::Fenced(fence) => fence.clone().into(),
            _ => Fence::Shutdown.into(),
        }
    }
}
