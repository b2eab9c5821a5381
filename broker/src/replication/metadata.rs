//! The replicated metadata: one log of commands, one state, one task that owns it.
//!
//! Owns: proposing commands, answering each with what it did, showing the catalog, checkpoints.
//! Never: lets anybody else change the state, or answers before the command is committed.
//! Invariants: commands take effect in log order; the table of those that wait is bounded, and so
//! is the mailbox; the state can always be rebuilt from the last checkpoint and the log.

mod command;
mod fields;
mod offline;
mod refusal;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;

pub use command::{Command, MetadataStep, NewPartition, Step};
pub use offline::{OfflineError, read_catalog};
pub use refusal::Refusal;
pub use state::{
    Address, BrokerCard, BrokerFacts, CLUSTER_PARTITIONS_MAX, Catalog, Change, FOUNDER,
    GATE_CLUSTER, GATE_HERE, LossReason, METADATA_REPLICA, MOVES_MAX, Move, PRODUCERS_MAX,
    Partition, Placement, Producer, REPLICA_COUNTS, Recovery, Settings, Stage, Standing, State,
    TOPICS_MAX, Topic, TopicRevision,
};

use super::codec::CodecError;
use super::{
    Fence, OpenReplicaError, Proposal, ProposeError, Replica, ReplicaOptions, Role, StoredOutcome,
    WATERMARK_AFTER, control_batch, control_section,
};
use crate::seams::WallClock;
use crate::task::{self, TaskKind};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};
use weir_protocol::batch::{BatchHeader, BatchType};
use weir_protocol::types::{BrokerId, Index, Term};
use weir_storage::BatchSlice;

/// Commands that wait for their place in the log.
const MAILBOX_COMMANDS: usize = 256;
/// Commands proposed together, and in flight altogether.
const PROPOSED_MAX: usize = 32;
/// Commands after which the state is checkpointed and the log trimmed.
const CHECKPOINT_COMMANDS: u64 = 4_096;
/// What the metadata is opened with.
pub struct MetadataOptions {
    /// The replica of the metadata log.
    pub replica: ReplicaOptions,
    /// The identity that a cluster formed now shall have; random.
    pub cluster: u128,
    /// This broker.
    pub broker: BrokerId,
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

/// Why a command did not take effect, or may not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// It is in the log and changed nothing.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Too many commands wait. Nothing happened; try again.
    #[error("{MAILBOX_COMMANDS} commands wait already; try again")]
    Busy,
    /// This broker does not lead the metadata. Nothing happened.
    #[error("this broker does not lead the metadata")]
    NotLeader,
    /// The leadership was lost meanwhile: it may take effect or not.
    #[error("the outcome is unknown: look at the metadata before trying again")]
    Unknown,
    /// The metadata log has ended.
    #[error(transparent)]
    Fenced(#[from] Fence),
}

struct Request {
    command: Command,
    reply: Reply,
}

/// A handle on the metadata. Cheap to clone.
#[derive(Clone)]
pub struct Metadata {
    requests: mpsc::Sender<Request>,
    stops: mpsc::Sender<oneshot::Sender<()>>,
    catalog: watch::Receiver<Arc<Catalog>>,
    replica: Replica,
}

impl Metadata {
    /// Opens the metadata log. Where this broker is its only voter, reads it to its end and names
    /// the cluster if it has no name yet.
    pub async fn open(options: MetadataOptions) -> Result<Self, OpenMetadataError> {
        let (replica, report) = Replica::open(options.replica).await?;
        let alone = replica.shared.is_only_voter();
        let (applied, state) = match report.checkpoint {
            Some((at, bytes)) => (at, State::decode(&bytes)?),
            None => (Index(0), State::default()),
        };
        let (requests, mailbox) = mpsc::channel(MAILBOX_COMMANDS);
        let (mut keeper, catalog) = Keeper::new(replica.clone(), applied, state, options.wall);
        if alone {
            keeper.lead().await.map_err(OpenMetadataError::Read)?;
        }
        let formed = keeper.state.catalog().cluster != 0;
        let (stops, stopping) = mpsc::channel(1);
        task::spawn("metadata", TaskKind::Core, keeper.keep(mailbox, stopping));
        let metadata = Self { requests, stops, catalog, replica };
        if alone && !formed {
            let form = Command::Form { cluster: options.cluster, broker: options.broker };
            metadata.propose(form).await?;
        }
        Ok(metadata)
    }

    /// Proposes a command and waits until it is committed and applied. Dropping the future
    /// changes nothing about the command.
    pub async fn propose(&self, command: Command) -> Result<Change, ChangeError> {
        // In the log it would be refused all the same, but older builds could not read the log.
        if command.gate() > self.catalog.borrow().gate {
            return Err(Refusal::GateClosed.into());
        }
        let (reply, answer) = oneshot::channel();
        match self.requests.try_send(Request { command, reply }) {
            Ok(()) => answer.await.unwrap_or(Err(ChangeError::Unknown)),
            Err(mpsc::error::TrySendError::Full(_)) => Err(ChangeError::Busy),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(self.ended()),
        }
    }

    /// Makes this broker known with what it tells of itself, and the cluster ready for others.
    /// Asked at every start of a broker that is one of several; again and again does no harm.
    pub async fn register(
        &self,
        broker: Option<BrokerId>,
        facts: BrokerFacts,
    ) -> Result<BrokerId, ChangeError> {
        if self.catalog().gate == 0 {
            self.propose(Command::RaiseGate { gate: GATE_CLUSTER }).await?;
        }
        match self.propose(Command::BrokerUp { broker, facts }).await? {
            Change::BrokerUp(broker) => Ok(broker),
            other => unreachable!("a broker that is up was answered {other:?}"),
        }
    }

    /// Checkpoints what was changed and ends the replica. The next start need not read it then:
    /// what rots meanwhile keeps nobody from starting.
    pub async fn stop(&self) {
        let (done, stopped) = oneshot::channel();
        // Nobody listens where the log has ended before.
        if self.stops.send(done).await.is_ok() {
            let _ = stopped.await;
        }
        self.replica.clone().shutdown().await;
    }

    /// The catalog as of the last command that was applied here.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.catalog.borrow().clone()
    }

    /// The register that always holds the latest catalog.
    pub fn watch(&self) -> watch::Receiver<Arc<Catalog>> {
        self.catalog.clone()
    }

    /// The replica, to watch its state.
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    fn ended(&self) -> ChangeError {
        match &self.replica.state().borrow().role {
            Role::Fenced(fence) => fence.clone().into(),
            _ => Fence::Shutdown.into(),
        }
    }
}

/// A command that was proposed and not yet seen in the log.
struct Waiting {
    number: u32,
    reply: Reply,
}

/// Where the answer to a change goes.
type Reply = oneshot::Sender<Result<Change, ChangeError>>;

/// The one owner of the state.
struct Keeper {
    replica: Replica,
    state: State,
    /// The last index that is in the state.
    applied: Index,
    /// The last index of a command.
    changed: Index,
    checkpointed: Index,
    /// The last index that had a watermark behind it.
    marked: Index,
    /// Answers that leave once the catalog shows what they tell.
    answers: Vec<(Reply, Result<Change, ChangeError>)>,
    log_time_ms: u64,
    term: Term,
    run: u32,
    next_number: u32,
    /// In the order of their numbers, all of the current run.
    waiting: VecDeque<Waiting>,
    shown: watch::Sender<Arc<Catalog>>,
    wall: Arc<dyn WallClock>,
}

impl Keeper {
    fn new(
        replica: Replica,
        applied: Index,
        state: State,
        wall: Arc<dyn WallClock>,
    ) -> (Self, watch::Receiver<Arc<Catalog>>) {
        let (shown, catalog) = watch::channel(state.catalog().clone());
        let keeper = Self {
            replica,
            state,
            applied,
            changed: applied,
            checkpointed: applied,
            marked: Index(0),
            answers: Vec::new(),
            log_time_ms: 0,
            term: Term(0),
            run: 0,
            next_number: 0,
            waiting: VecDeque::new(),
            shown,
            wall,
        };
        (keeper, catalog)
    }

    /// Waits until this broker leads and everything committed is in the state.
    async fn lead(&mut self) -> Result<(), ChangeError> {
        let mut seen = self.replica.state();
        loop {
            let now = seen.borrow_and_update().clone();
            self.follow().await?;
            if let Role::Fenced(fence) = now.role {
                return Err(fence.into());
            }
            if now.leading().is_some() && now.committed <= self.applied {
                return Ok(());
            }
            seen.changed().await.map_err(|_| Fence::Shutdown)?;
        }
    }

    async fn keep(
        mut self,
        mut mailbox: mpsc::Receiver<Request>,
        mut stopping: mpsc::Receiver<oneshot::Sender<()>>,
    ) {
        let mut seen = self.replica.state();
        loop {
            tokio::select! {
                biased;
                changed = seen.changed() => {
                    let fenced = matches!(seen.borrow_and_update().role, Role::Fenced(_));
                    let followed = self.follow().await;
                    if fenced || changed.is_err() || followed.is_err() {
                        break;
                    }
                }
                request = mailbox.recv(), if self.accepts() => {
                    let Some(first) = request else { break };
                    let mut requests = vec![first];
                    while requests.len() + self.waiting.len() < PROPOSED_MAX {
                        let Ok(next) = mailbox.try_recv() else { break };
                        requests.push(next);
                    }
                    self.propose(requests);
                }
                Some(stopped) = stopping.recv() => {
                    if self.changed > self.checkpointed {
                        self.checkpoint_and_trim().await;
                    }
                    let _ = stopped.send(());
                }
                () = tokio::time::sleep(WATERMARK_AFTER), if self.is_unmarked() => {
                    self.leave_watermark().await;
                }
            }
        }
        for waiting in self.waiting.drain(..) {
            let _ = waiting.reply.send(Err(ChangeError::Unknown));
        }
        mailbox.close();
        let fence = self.replica.shared.fence_or(Fence::Shutdown);
        while let Ok(request) = mailbox.try_recv() {
            let _ = request.reply.send(Err(fence.clone().into()));
        }
    }

    /// Whether the log, if it stays idle, lacks evidence of its last flush.
    fn is_unmarked(&self) -> bool {
        self.marked < self.applied && self.replica.in_flight() == 0
    }

    async fn leave_watermark(&mut self) {
        self.marked = self.applied;
        if let Err(error) = self.replica.leave_watermark().await {
            tracing::warn!(%error, "no watermark was left behind the metadata");
        }
    }

    /// A broken run takes nothing new until all of it has found its fate.
    fn accepts(&self) -> bool {
        self.waiting.len() < PROPOSED_MAX && !self.is_broken()
    }

    /// Whether the run that the waiting commands belong to can still be continued.
    fn is_broken(&self) -> bool {
        let state = self.replica.state();
        let state = state.borrow();
        let refused = state.refused.is_some_and(|r| (r.term, r.run) == (self.term, self.run));
        refused || (!self.waiting.is_empty() && state.leading() != Some(self.term))
    }

    fn propose(&mut self, requests: Vec<Request>) {
        let Some(term) = self.replica.state().borrow().leading() else {
            for request in requests {
                let _ = request.reply.send(Err(ChangeError::NotLeader));
            }
            return;
        };
        if term != self.term {
            (self.term, self.run, self.next_number) = (term, 0, 0);
        }
        self.log_time_ms = self.log_time_ms.max(self.wall.now_ms());
        let mut batches = Vec::with_capacity(requests.len());
        let mut replies = Vec::with_capacity(requests.len());
        for (request, number) in requests.into_iter().zip(self.next_number..) {
            let mut header = BatchHeader::empty(BatchType::Control);
            header.log_time_ms = self.log_time_ms;
            (header.run, header.run_number) = (self.run, number);
            batches.push(control_batch(header, request.command.encode()));
            replies.push(Waiting { number, reply: request.reply });
        }
        match self.replica.propose(Proposal { term, batches }) {
            Ok(()) => {
                self.next_number += replies.len() as u32;
                self.waiting.extend(replies);
            }
            Err(error) => {
                let error = match error {
                    ProposeError::Fenced(fence) => ChangeError::Fenced(fence),
                    ProposeError::NotLeader(_) => ChangeError::NotLeader,
                    ProposeError::Full | ProposeError::Empty => ChangeError::Busy,
                };
                for waiting in replies {
                    let _ = waiting.reply.send(Err(error.clone()));
                }
            }
        }
    }

    /// Applies what was committed since, answers it, and settles what a broken run left behind.
    async fn follow(&mut self) -> Result<(), Fence> {
        let committed = self.replica.state().borrow().committed;
        while self.applied < committed {
            let index = Index(self.applied.0 + 1);
            let slices = match self.replica.shared.read_index(index).await {
                Ok(slices) => slices,
                Err(error) => return Err(self.replica.shared.fail_reading(index, &error)),
            };
            // A command that is missing changes the meaning of all that follow, also where somebody
            // accepted its loss because a checkpoint covered it then.
            if slices.is_empty() {
                let text = format!("index {index} is committed but not in the log");
                self.replica.shared.fence(Fence::Engine(text));
                return Err(self.replica.shared.fence_or(Fence::Shutdown));
            }
            for slice in &slices {
                self.apply(slice)?;
            }
        }
        self.settle_broken_run(committed);
        self.shown.send_if_modified(|shown| {
            let changed = !Arc::ptr_eq(shown, self.state.catalog());
            shown.clone_from(self.state.catalog());
            changed
        });
        // Who is told of a change finds it in the catalog.
        for (reply, outcome) in self.answers.drain(..) {
            let _ = reply.send(outcome);
        }
        if committed.0 >= self.checkpointed.0 + CHECKPOINT_COMMANDS {
            self.checkpoint_and_trim().await;
        }
        Ok(())
    }

    fn apply(&mut self, slice: &BatchSlice) -> Result<(), Fence> {
        let header = &slice.header;
        self.log_time_ms = self.log_time_ms.max(header.log_time_ms);
        self.applied = header.index;
        if header.batch_type != BatchType::Control {
            return Ok(());
        }
        let unreadable = |error: CodecError| {
            let text = format!("the command at index {}: {error}", header.index);
            self.replica.shared.fence(Fence::Engine(text));
            self.replica.shared.fence_or(Fence::Shutdown)
        };
        self.changed = header.index;
        let command = Command::decode(control_section(slice)).map_err(unreadable)?;
        let outcome = self.state.apply(&command).map_err(ChangeError::from);
        let ours = (header.term, header.run) == (self.term, self.run)
            && self.waiting.front().is_some_and(|first| first.number == header.run_number);
        if ours && let Some(waiting) = self.waiting.pop_front() {
            self.answers.push((waiting.reply, outcome));
        }
        Ok(())
    }

    /// Once nothing of a broken run is in flight, what is not in the log by now never will be,
    /// unless the outcome was left open.
    fn settle_broken_run(&mut self, committed: Index) {
        if !self.is_broken() || self.replica.in_flight() > 0 || self.applied < committed {
            return;
        }
        let refused = self.replica.state().borrow().refused;
        let certain = refused.is_some_and(|r| {
            (r.term, r.run) == (self.term, self.run) && r.outcome == StoredOutcome::NotStored
        });
        let outcome = if certain { ChangeError::NotLeader } else { ChangeError::Unknown };
        for waiting in self.waiting.drain(..) {
            let _ = waiting.reply.send(Err(outcome.clone()));
        }
        (self.run, self.next_number) = (self.run + 1, 0);
    }

    /// The log behind a checkpoint stays until the next one stands: what rots first has another
    /// copy.
    async fn checkpoint_and_trim(&mut self) {
        let (before, at) = (self.checkpointed, self.applied);
        // A failure is tried again after as many commands as a success.
        self.checkpointed = at;
        if let Err(error) = self.replica.checkpoint(at, self.state.encode().into()).await {
            tracing::warn!(%error, index = at.0, "the metadata was not checkpointed");
            return;
        }
        if let Err(error) = self.replica.trim(before).await {
            tracing::warn!(%error, index = before.0, "the metadata log was not trimmed");
        }
    }
}
