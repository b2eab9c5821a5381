//! Owns: what peers ask of a replica, handed to the engine, and its answers in their words.
//! Never: answers for what is not flushed: the engine does not either.
//! Invariants: batches are verified before the engine sees them; it is given no more of them than
//! the log takes without waiting for a flush.

use super::engine::{self, Runtime, Types};
use super::receive;
use super::shared::Shared;
use super::snapshot;
use super::state_machine::Shell;
use super::window::Window;
use crate::planted::{Bug, is_planted};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use openraft::Raft;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderError, TransferLeaderRequest, VoteRequest,
};
use std::sync::Arc;
use tokio::sync::mpsc;
use weir_protocol::peer::{
    Append, AppendResult, Beat, PeerRefusal, SnapshotHead, Transfer, TransferAnswer, Vote,
    VoteAnswer, VoteAsk, VoteKind,
};
use weir_storage::LogReader;

/// Appends of one stream between the frame that brought them and the engine.
const STREAM_APPENDS_MAX: usize = 4;

/// The way to one replica. Cheap to clone.
#[derive(Clone)]
pub struct Inbox {
    raft: Raft<Types, Shell>,
    shared: Arc<Shared>,
    window: Window,
}

impl Inbox {
    pub(super) fn new(raft: Raft<Types, Shell>, shared: Arc<Shared>) -> Self {
        Self { raft, shared, window: Window::new() }
    }

    /// What is stored.
    pub(super) fn log(&self) -> LogReader {
        self.shared.reader.clone()
    }

    /// Opens a stream of appends of a leader.
    pub async fn stream(&self) -> (AppendInput, AppendAnswers) {
        let (requests, mut queue) = mpsc::channel(STREAM_APPENDS_MAX);
        let input = stream::poll_fn(move |context| queue.poll_recv(context));
        // The engine starts a task for it and wants a seed to do so, although nothing is drawn.
        let answers = Runtime::scope(0, async { self.raft.stream_append(input) }).await;
        let answers = answers.map(|answer| match answer {
            Ok(result) => answered(result),
            Err(_) => AppendResult::Refused(PeerRefusal::Fenced),
        });
        let (shared, window) = (self.shared.clone(), self.window.clone());
        (AppendInput { requests, shared, window }, AppendAnswers(answers.boxed()))
    }

    /// A leader says that it leads.
    pub async fn beat(&self, beat: Beat) -> AppendResult {
        if let Err(refusal) = self.check() {
            return AppendResult::Refused(refusal);
        }
        let vote = Vote { term: beat.term, replica: beat.address.from, committed: true };
        let request = AppendEntriesRequest {
            vote: engine::vote_of(vote),
            prev_log_id: engine::log_id_at(beat.matching),
            entries: Vec::new(),
            leader_commit: engine::log_id_at(beat.commit),
        };
        match self.raft.append_entries(request).await {
            Ok(AppendEntriesResponse::Success) => AppendResult::Flushed(beat.matching),
            Ok(AppendEntriesResponse::Conflict) => AppendResult::Conflict(beat.matching),
            Ok(_) if is_planted(Bug::StaleBeatAccepted) => AppendResult::Flushed(beat.matching),
            Ok(AppendEntriesResponse::HigherVote(vote)) => {
                AppendResult::Outvoted(engine::vote_from(&vote))
            }
            Ok(AppendEntriesResponse::PartialSuccess(flushed)) => {
                AppendResult::Flushed(engine::place_from(flushed.as_ref()))
            }
            Err(_) => AppendResult::Refused(PeerRefusal::Fenced),
        }
    }

    /// A candidate asks for the vote.
    pub async fn vote(&self, ask: VoteAsk) -> Result<VoteAnswer, PeerRefusal> {
        self.check()?;
        let mut request = VoteRequest::new(engine::vote_of(ask.vote), engine::log_id_at(ask.last));
        request.leadership_transfer = ask.kind == VoteKind::Transfer;
        let answer = match ask.kind {
            VoteKind::Trial => self.raft.pre_vote(request).await,
            VoteKind::Election | VoteKind::Transfer => self.raft.vote(request).await,
        };
        let answer = answer.map_err(|_| PeerRefusal::Fenced)?;
        let trial = ask.kind == VoteKind::Trial && is_planted(Bug::TrialAlwaysGranted);
        Ok(VoteAnswer {
            granted: answer.vote_granted || trial,
            vote: engine::vote_from(&answer.vote),
            last: engine::place_from(answer.last_log_id.as_ref()),
        })
    }

    /// The leader sends a snapshot, whole. Returns this replica's vote once the snapshot is installed,
    /// or at once where it has voted for somebody later, or has the log that far.
    pub async fn install(&self, head: SnapshotHead, state: Bytes) -> Result<Vote, PeerRefusal> {
        self.check()?;
        let vote = engine::vote_of(head.vote);
        let snapshot = snapshot::received(&head, state).map_err(|error| {
            tracing::warn!(%error, "a leader's snapshot cannot be read");
            PeerRefusal::Malformed
        })?;
        if self.shared.map().log_id(head.place.index) == snapshot.meta.last_log_id {
            return self.follow(&head).await;
        }
        let answer = self.raft.install_full_snapshot(vote, snapshot).await;
        answer.map(|answer| engine::vote_from(&answer.vote)).map_err(|_| PeerRefusal::Fenced)
    }

    /// All that a snapshot covers is held here: it says that this is committed, and nothing else. The
    /// engine would take the log to end with it.
    async fn follow(&self, head: &SnapshotHead) -> Result<Vote, PeerRefusal> {
        let (shared, start) = (self.shared.clone(), snapshot::start_of(head));
        let same = self.shared.on_executor(move || Ok(shared.check_same(&start))).await;
        if let Ok(Err(fence)) = same {
            self.shared.fence(fence);
            return Err(PeerRefusal::Fenced);
        }
        let (place, term) = (head.place, head.vote.term);
        let beat = Beat { address: head.address, term, matching: place, commit: place };
        match self.beat(beat).await {
            AppendResult::Flushed(_) => Ok(head.vote),
            AppendResult::Outvoted(vote) => Ok(vote),
            // It was cut just now: the leader tries again.
            AppendResult::Conflict(_) => Err(PeerRefusal::Overloaded),
            AppendResult::Refused(refusal) => Err(refusal),
        }
    }

    /// The leader hands over.
    pub async fn transfer(&self, transfer: Transfer) -> Result<TransferAnswer, PeerRefusal> {
        self.check()?;
        let vote = engine::vote_of(transfer.vote);
        let last = engine::log_id_at(transfer.last);
        let request = TransferLeaderRequest::new(vote, transfer.target, last);
        let answer = self.raft.handle_transfer_leader(request).await;
        Ok(match answer.map_err(|_| PeerRefusal::Fenced)? {
            Ok(()) => TransferAnswer::Obeyed,
            Err(TransferLeaderError::VoteChanged { actual, .. }) => {
                TransferAnswer::VoteChanged(engine::vote_from(&actual))
            }
            Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
                TransferAnswer::NotFlushed(engine::place_from(actual.as_ref()))
            }
        })
    }

    fn check(&self) -> Result<(), PeerRefusal> {
        self.shared.check().map_err(|_| PeerRefusal::Fenced)
    }
}

fn answered(result: StreamAppendResult<Types>) -> AppendResult {
    match result {
        Ok(flushed) => AppendResult::Flushed(engine::place_from(flushed.as_ref())),
        Err(StreamAppendError::Conflict(at)) => AppendResult::Conflict(engine::place_of(&at)),
        Err(StreamAppendError::HigherVote(vote)) => {
            AppendResult::Outvoted(engine::vote_from(&vote))
        }
    }
}

/// Takes the appends of one stream in. Dropping it ends the stream once all of it is answered.
pub struct AppendInput {
    requests: mpsc::Sender<AppendEntriesRequest<Types>>,
    shared: Arc<Shared>,
    window: Window,
}

impl AppendInput {
    /// Hands the next append over; waits while the replica has enough. What its bytes were paid with
    /// is dropped once they are flushed, or will not be stored.
    pub async fn push(
        &self,
        append: &Append,
        paid_with: impl Send + Sync + 'static,
    ) -> Result<(), PeerRefusal> {
        // The engine calls what comes behind its end an error of the log, each time.
        self.shared.check().map_err(|_| PeerRefusal::Fenced)?;
        let mut records = receive::records_of(append).map_err(|error| {
            tracing::warn!(%error, "a leader's append cannot be read");
            PeerRefusal::Malformed
        })?;
        if !records.is_empty() {
            let held = self.window.take(bytes_of(append), paid_with).await;
            records.iter_mut().for_each(|record| record.payload.held = Some(held.clone()));
        }
        let request = AppendEntriesRequest {
            vote: engine::vote_of(append.vote),
            prev_log_id: engine::log_id_at(append.prev),
            entries: records,
            leader_commit: engine::log_id_at(append.commit),
        };
        self.requests.send(request).await.map_err(|_| PeerRefusal::Fenced)
    }
}

fn bytes_of(append: &Append) -> usize {
    append.parts.iter().flat_map(|part| &part.batches).map(|batch| batch.len()).sum()
}

/// The answers of one stream: one for each append, in order.
pub struct AppendAnswers(BoxStream<'static, AppendResult>);

impl AppendAnswers {
    /// The next answer; none once the stream has ended.
    pub async fn next(&mut self) -> Option<AppendResult> {
        self.0.next().await
    }
}
