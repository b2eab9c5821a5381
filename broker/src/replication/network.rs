//! Owns: the engine's way to other replicas. A group of one voter has none, so every call answers
//! that its target cannot be reached.
//! Invariant: the stream of appends pulls one request before it fails. The engine's pause between
//! attempts lives inside that request stream; failing without a pull would spin.

use super::engine::{Snapshot, Types, Vote};
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt, future::BoxFuture, stream};
use openraft::OptionalSend;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, VoteRequest,
    VoteResponse,
};
use weir_protocol::types::{BrokerId, ReplicaId};

/// Makes connections that reach nobody.
#[derive(Debug, Clone, Copy)]
pub(super) struct NoPeers;

/// A connection to `target` that does not exist.
#[derive(Debug, Clone, Copy)]
pub(super) struct Nowhere {
    target: ReplicaId,
    broker: BrokerId,
}

#[derive(Debug, thiserror::Error)]
#[error("replica {target} on broker {broker} cannot be reached: this broker has no peers")]
struct NoWay {
    target: ReplicaId,
    broker: BrokerId,
}

impl Nowhere {
    fn unreachable(self) -> Unreachable<Types> {
        Unreachable::new(&NoWay { target: self.target, broker: self.broker })
    }
}

impl RaftNetworkFactory<Types> for NoPeers {
    type Network = Nowhere;

    async fn new_client(&mut self, target: ReplicaId, node: &BrokerId) -> Nowhere {
        Nowhere { target, broker: *node }
    }
}

impl RaftNetworkV2<Types> for Nowhere {
    type SnapshotData = bytes::Bytes;

    async fn append_entries(
        &mut self,
        _rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        Err(self.unreachable().into())
    }

    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        let unreachable = self.unreachable();
        Box::pin(async move {
            let refused = stream::once(async move {
                let _pulled = input.next().await;
                Err(RPCError::from(unreachable))
            });
            Ok(refused.boxed())
        })
    }

    async fn vote(
        &mut self,
        _rpc: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        Err(self.unreachable().into())
    }

    async fn pre_vote(
        &mut self,
        _rpc: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        Err(self.unreachable().into())
    }

    async fn full_snapshot(
        &mut self,
        _vote: Vote,
        _snapshot: Snapshot,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        Err(self.unreachable().into())
    }
}
