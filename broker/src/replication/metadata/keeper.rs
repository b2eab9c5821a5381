//! Owns: the state of the metadata, what was proposed and not answered yet, and what is shown.
//! Never: lets anybody else change the state, or answers before a command is committed.
//! Invariants: commands take effect in log order; a command that needs a gate is not proposed before
//! that gate; who is told of a change finds it in the catalog.

use super::renewal::Renewal;
use super::{Catalog, Change, ChangeError, Command, Refusal, State};
use crate::replication::codec::CodecError;
use crate::replication::{
    Fence, Proposal, ProposeError, Replica, Role, StoredOutcome, WATERMARK_AFTER, control_batch,
    control_section,
};
use crate::seams::WallClock;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};
use weir_protocol::batch::{BatchHeader, BatchType};
use weir_protocol::types::{Index, Term};
use weir_storage::BatchSlice;

/// Commands proposed together, and in flight altogether.
const PROPOSED_MAX: usize = 32;
/// Commands after which the state is checkpointed and the log trimmed.
const CHECKPOINT_COMMANDS: u64 = 4_096;

/// Where the answer to a change goes.
type Reply = oneshot::Sender<Result<Change, ChangeError>>;

/// Whoever wants the log to end in order; a place for each answer.
type Stopping = mpsc::Receiver<oneshot::Sender<()>>;

/// A command that is to be proposed.
pub(super) struct Request {
    pub command: Command,
    pub reply: Reply,
}

/// A command that was proposed and not yet seen in the log.
struct Waiting {
    number: u32,
    reply: Reply,
}

/// What is proposed now.
#[derive(Default)]
struct Run {
    term: Term,
    run: u32,
    next_number: u32,
    /// In the order of their numbers.
    waiting: VecDeque<Waiting>,
}

/// What others see.
struct Shown {
    catalog: watch::Sender<Arc<Catalog>>,
    applied: watch::Sender<Index>,
}

/// The one owner of the state.
pub(super) struct Keeper {
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
    run: Run,
    shown: Shown,
    /// Proposed where a log without a name is led.
    pub founding: Option<Command>,
    wall: Arc<dyn WallClock>,
}

impl Keeper {
    pub(super) fn new(
        replica: Replica,
        (applied, state): (Index, State),
        wall: Arc<dyn WallClock>,
    ) -> Self {
        let shown = Shown {
            catalog: watch::Sender::new(state.catalog().clone()),
            applied: watch::Sender::new(applied),
        };
        Self {
            replica,
            state,
            applied,
            changed: applied,
            checkpointed: applied,
            marked: Index(0),
            answers: Vec::new(),
            log_time_ms: 0,
            run: Run::default(),
            shown,
            founding: None,
            wall,
        }
    }

    /// The registers of the catalog, and of the last index that is in it.
    pub(super) fn shown(&self) -> (watch::Receiver<Arc<Catalog>>, watch::Receiver<Index>) {
        (self.shown.catalog.subscribe(), self.shown.applied.subscribe())
    }

    /// Waits until this broker leads and everything committed is in the state.
    pub(super) async fn lead(&mut self) -> Result<(), ChangeError> {
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

    pub(super) async fn keep(
        mut self,
        mut mailbox: mpsc::Receiver<Request>,
        mut stopping: Stopping,
        renewal: Renewal,
    ) {
        let mut seen = self.replica.state();
        loop {
            self.found();
            tokio::select! {
                biased;
                changed = seen.changed() => {
                    let fenced = matches!(seen.borrow_and_update().role, Role::Fenced(_));
                    let followed = self.follow().await;
                    if fenced || changed.is_err() || followed.is_err() {
                        if !self.renew(&renewal, &mut stopping).await {
                            break;
                        }
                        seen = self.replica.state();
                        seen.mark_changed();
                    }
                }
                request = mailbox.recv(), if self.accepts() => {
                    let Some(first) = request else { break };
                    let mut requests = vec![first];
                    while requests.len() + self.run.waiting.len() < PROPOSED_MAX {
                        let Ok(next) = mailbox.try_recv() else { break };
                        requests.push(next);
                    }
                    // Whether a command may pass is known only behind all that is committed.
                    if self.follow().await.is_err() {
                        // It is fenced, which is looked at next.
                        refuse(requests, &self.replica.shared.fence_or(Fence::Shutdown).into());
                        continue;
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
        self.leave_open();
        mailbox.close();
        let fence = self.replica.shared.fence_or(Fence::Shutdown);
        while let Ok(request) = mailbox.try_recv() {
            let _ = request.reply.send(Err(fence.clone().into()));
        }
    }

    /// Nobody here learns what becomes of what was proposed.
    fn leave_open(&mut self) {
        for waiting in self.run.waiting.drain(..) {
            let _ = waiting.reply.send(Err(ChangeError::Unknown));
        }
    }

    /// Opens the replica anew if it ended for want of space. False: it ended for good.
    async fn renew(&mut self, renewal: &Renewal, stopping: &mut Stopping) -> bool {
        if self.replica.shared.check() != Err(Fence::NoSpace) {
            return false;
        }
        self.leave_open();
        let renewed = tokio::select! {
            biased;
            stopped = stopping.recv() => {
                // None: nobody is left to ask for anything.
                let _ = stopped.map(|stopped| stopped.send(()));
                return false;
            }
            renewed = renewal.renew(self.replica.clone()) => renewed,
        };
        self.replica = renewed;
        true
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
        self.run.waiting.len() < PROPOSED_MAX && !self.is_broken()
    }

    /// Whether the run that the waiting commands belong to can still be continued.
    fn is_broken(&self) -> bool {
        let state = self.replica.state();
        let state = state.borrow();
        let refused =
            state.refused.is_some_and(|r| (r.term, r.run) == (self.run.term, self.run.run));
        refused || (!self.run.waiting.is_empty() && state.leading() != Some(self.run.term))
    }

    /// Names the cluster where this broker leads a log that is empty.
    fn found(&mut self) {
        let Some(command) = self.founding.clone() else { return };
        let leads = {
            let state = self.replica.state();
            let state = state.borrow();
            state.leading().is_some() && state.committed <= self.applied
        };
        let is_named = self.state.catalog().cluster != 0;
        if leads && !is_named && self.run.waiting.is_empty() && !self.is_broken() {
            // Nobody waits for it but those who watch the catalog.
            let (reply, _) = oneshot::channel();
            self.propose(vec![Request { command, reply }]);
        }
    }

    fn propose(&mut self, requests: Vec<Request>) {
        let Some(term) = self.replica.state().borrow().leading() else {
            return refuse(requests, &ChangeError::NotLeader);
        };
        // In the log it would be refused all the same, but older builds could not read the log.
        let gate = self.state.catalog().gate;
        let (requests, early): (Vec<_>, Vec<_>) =
            requests.into_iter().partition(|r| r.command.gate() <= gate);
        refuse(early, &Refusal::GateClosed.into());
        if requests.is_empty() {
            return;
        }
        if term != self.run.term {
            (self.run.term, self.run.run, self.run.next_number) = (term, 0, 0);
        }
        self.log_time_ms = self.log_time_ms.max(self.wall.now_ms());
        let mut batches = Vec::with_capacity(requests.len());
        let mut replies = Vec::with_capacity(requests.len());
        for (request, number) in requests.into_iter().zip(self.run.next_number..) {
            let mut header = BatchHeader::empty(BatchType::Control);
            header.log_time_ms = self.log_time_ms;
            (header.run, header.run_number) = (self.run.run, number);
            batches.push(control_batch(header, request.command.encode()));
            replies.push(Waiting { number, reply: request.reply });
        }
        match self.replica.propose(Proposal { term, batches }) {
            Ok(()) => {
                self.run.next_number += replies.len() as u32;
                self.run.waiting.extend(replies);
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
            let read = self.replica.shared.read_index(index).await;
            // A snapshot may have taken the place of what was to be read.
            if self.reload().await? {
                continue;
            }
            let slices = match read {
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
        self.shown.catalog.send_if_modified(|shown| {
            let changed = !Arc::ptr_eq(shown, self.state.catalog());
            shown.clone_from(self.state.catalog());
            changed
        });
        self.shown.applied.send_if_modified(|shown| {
            let before = std::mem::replace(shown, self.applied);
            before != self.applied
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

    /// Takes the state of a snapshot that took the place of the log, if one did.
    async fn reload(&mut self) -> Result<bool, Fence> {
        let installed = || self.replica.state().borrow().installed;
        let Some(at) = installed().filter(|at| *at > self.applied) else { return Ok(false) };
        let shared = &self.replica.shared;
        let damaged = |error: String| {
            shared.fence(Fence::Engine(format!("the snapshot of index {at}: {error}")));
            shared.fence_or(Fence::Shutdown)
        };
        let (at, bytes) = match self.replica.installed_state().await {
            Ok(Some(found)) => found,
            // The next one has taken its place already.
            Err(_) if installed() != Some(at) => return Ok(true),
            Ok(None) => return Ok(false),
            Err(error) => return Err(damaged(error.to_string())),
        };
        self.state = State::decode(&bytes).map_err(|error| damaged(error.to_string()))?;
        (self.applied, self.changed, self.checkpointed) = (at, at, at);
        Ok(true)
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
        let ours = (header.term, header.run) == (self.run.term, self.run.run)
            && self.run.waiting.front().is_some_and(|first| first.number == header.run_number);
        if ours && let Some(waiting) = self.run.waiting.pop_front() {
            self.answers.push((waiting.reply, outcome));
        }
        Ok(())
    }

    /// Once nothing of a broken run is in flight, what is not in the log by now never will be,
    /// unless the outcome was left open; to whoever is cut off it is.
    fn settle_broken_run(&mut self, committed: Index) {
        let (refused, severed) = {
            let state = self.replica.state();
            let state = state.borrow();
            (state.refused, state.severed)
        };
        // What is in flight of one who is cut off finds its fate when the others are heard again.
        let is_open = self.replica.in_flight() > 0 && !severed;
        if !self.is_broken() || is_open || self.applied < committed {
            return;
        }
        let certain = refused.is_some_and(|r| {
            (r.term, r.run) == (self.run.term, self.run.run)
                && r.outcome == StoredOutcome::NotStored
                && self.replica.in_flight() == 0
        });
        let outcome = if certain { ChangeError::NotLeader } else { ChangeError::Unknown };
        for waiting in self.run.waiting.drain(..) {
            let _ = waiting.reply.send(Err(outcome.clone()));
        }
        (self.run.run, self.run.next_number) = (self.run.run + 1, 0);
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

fn refuse(requests: Vec<Request>, error: &ChangeError) {
    for request in requests {
        let _ = request.reply.send(Err(error.clone()));
    }
}
