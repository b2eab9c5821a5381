//! Owns: the engine's way to other replicas: its requests in the words of [`Peers`], and the
//! answers in its own.
//! Never: knows a socket; repeats or orders anything.
//! Invariant: a stream of appends pulls one request before anything of it may fail. The engine's
//! pause between attempts lives inside that request stream; failing without a pull would spin.

mod appends;
mod catch_up;

use super::codec::Checkpoint;
use super::engine::{self, Snapshot, Types, Vote};
use super::peers::{PeerLost, Peers};
use super::shared::Shared;
use super::snapshot;
use appends::Appends;
pub use catch_up::CATCH_UP_BYTES;
use catch_up::{Follower, Followers};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
    RaftNetworkFactory,
};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use std::sync::Arc;
use weir_protocol::peer::{
    AppendResult, Beat, GroupAddress, PeerRefusal, Transfer, TransferAnswer, VoteAsk, VoteKind,
};
use weir_protocol::types::{BrokerId, ReplicaId, RequestId};

/// A request that the carrier has not numbered yet.
const UNNUMBERED: RequestId = RequestId(0);

/// Makes the ways of one replica.
pub(super) struct Ways {
    peers: Arc<dyn Peers>,
    replica: ReplicaId,
    followers: Arc<Followers>,
}

/// The way to one other replica.
pub(super) struct Way {
    peers: Arc<dyn Peers>,
    broker: BrokerId,
    address: GroupAddress,
    followers: Arc<Followers>,
    /// Only beats go here: they do not wait behind appends.
    beats: bool,
}

impl Ways {
    pub(super) fn new(peers: Arc<dyn Peers>, shared: Arc<Shared>) -> Self {
        let replica = shared.replica;
        Self { peers, replica, followers: Followers::new(replica, shared) }
    }

    fn way(&self, target: ReplicaId, broker: BrokerId, beats: bool) -> Way {
        let address = GroupAddress { to: target, from: self.replica };
        let (peers, followers) = (self.peers.clone(), self.followers.clone());
        Way { peers, broker, address, followers, beats }
    }
}

impl RaftNetworkFactory<Types> for Ways {
    type Network = Way;

    async fn new_client(&mut self, target: ReplicaId, node: &BrokerId) -> Way {
        self.way(target, *node, false)
    }

    async fn new_heartbeat_client(&mut self, target: ReplicaId, node: &BrokerId) -> Way {
        self.way(target, *node, true)
    }
}

type Answer = Result<StreamAppendResult<Types>, RPCError<Types>>;
type Answers<'s> = Result<BoxStream<'s, Answer>, RPCError<Types>>;

impl NetStreamAppend<Types> for Way {
    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Answers<'s>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        let answers = if self.beats {
            let beaten = async move {
                let pulled = input.next().await;
                let request = pulled.ok_or_else(|| lost(PeerLost::Unreachable))?;
                answer_of(self.peers.beat(self.broker, self.beat_of(&request)).await)
            };
            stream::once(beaten).boxed()
        } else {
            let follower = Follower { all: self.followers.clone(), replica: self.address.to };
            let sent = self.peers.append(self.broker, self.address);
            let mut appends = Appends::new(input, sent, follower);
            stream::poll_fn(move |context| appends.poll_answer(context)).boxed()
        };
        Box::pin(async move { Ok(answers) })
    }
}

impl Way {
    /// What a request without records says. A beat is always of a leader.
    fn beat_of(&self, request: &AppendEntriesRequest<Types>) -> Beat {
        Beat {
            address: self.address,
            term: engine::vote_from(&request.vote).term,
            matching: engine::place_from(request.prev_log_id.as_ref()),
            commit: engine::place_from(request.leader_commit.as_ref()),
        }
    }

    async fn ask(
        &self,
        request: VoteRequest<Types>,
        kind: VoteKind,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let ask = VoteAsk {
            request: UNNUMBERED,
            address: self.address,
            kind,
            vote: engine::vote_from(&request.vote),
            last: engine::place_from(request.last_log_id.as_ref()),
        };
        let answer = self.peers.vote(self.broker, ask).await.map_err(lost)?;
        if answer.granted && kind != VoteKind::Trial {
            let term = engine::vote_from(&request.vote).term;
            self.followers.granted(self.address.to, term, answer.last);
        }
        let last = engine::log_id_at(answer.last);
        Ok(VoteResponse::new(engine::vote_of(answer.vote), last, answer.granted))
    }
}

impl NetVote<Types> for Way {
    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let kind =
            if request.leadership_transfer { VoteKind::Transfer } else { VoteKind::Election };
        self.ask(request, kind).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask(request, VoteKind::Trial).await
    }
}

impl NetTransferLeader<Types> for Way {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let transfer = Transfer {
            request: UNNUMBERED,
            address: self.address,
            vote: engine::vote_from(request.from_leader()),
            target: *request.to_node_id(),
            last: engine::place_from(request.last_log_id()),
        };
        let answer = self.peers.transfer(self.broker, transfer).await.map_err(lost)?;
        Ok(match answer {
            TransferAnswer::Obeyed => Ok(()),
            TransferAnswer::VoteChanged(vote) => Err(TransferLeaderError::VoteChanged {
                expected: *request.from_leader(),
                actual: engine::vote_of(vote),
            }),
            TransferAnswer::NotFlushed(place) => Err(TransferLeaderError::LogNotFlushed {
                expected: request.last_log_id().copied(),
                actual: engine::log_id_at(place),
            }),
        })
    }
}

impl NetSnapshot<Types> for Way {
    type SnapshotData = Checkpoint;

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let Some(head) = snapshot::head_of(self.address, &vote, &snapshot) else {
            tracing::warn!(
                replica = %self.address.to, index = ?snapshot.meta.last_log_id,
                "a replica needs a snapshot and none can be sent: a log that began behind the newest \
                 checkpoint would lack records, or what it continues is damaged here"
            );
            return Err(lost(PeerLost::Refused(PeerRefusal::Damaged)).into());
        };
        let sent = self.peers.snapshot(self.broker, head, snapshot.snapshot.state);
        let answer = tokio::select! {
            biased;
            closed = cancel => return Err(closed.into()),
            answer = sent => answer.map_err(lost)?,
        };
        Ok(SnapshotResponse { vote: engine::vote_of(answer) })
    }
}

impl NetBackoff<Types> for Way {
    fn backoff(&self) -> Option<Backoff> {
        None
    }
}

/// What the engine makes of an answer to an append.
fn answer_of(answer: Result<AppendResult, PeerLost>) -> Answer {
    let malformed = || lost(PeerLost::Refused(PeerRefusal::Malformed));
    Ok(match answer.map_err(lost)? {
        AppendResult::Flushed(place) => Ok(engine::log_id_at(place)),
        AppendResult::Conflict(place) => {
            Err(StreamAppendError::Conflict(engine::log_id_at(place).ok_or_else(malformed)?))
        }
        AppendResult::Outvoted(vote) => Err(StreamAppendError::HigherVote(engine::vote_of(vote))),
        AppendResult::Refused(refusal) => return Err(lost(PeerLost::Refused(refusal))),
    })
}

/// The engine pauses before it tries again who cannot be reached, and not for a connection that
/// broke: the next one may be there.
fn lost(lost: PeerLost) -> RPCError<Types> {
    match lost {
        PeerLost::Broken => RPCError::Network(NetworkError::new(&lost)),
        PeerLost::Unreachable | PeerLost::Refused(_) => {
            RPCError::Unreachable(Unreachable::new(&lost))
        }
    }
}
