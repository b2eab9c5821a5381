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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Poll;
    use std::time::Duration;

    #[tokio::test]
    async fn a_stream_of_appends_pulls_before_it_fails() {
        let mut nowhere = NoPeers.new_client(ReplicaId(2), &BrokerId(2)).await;
        let pulls = Arc::new(AtomicUsize::new(0));
        let counted = pulls.clone();
        let input = stream::poll_fn(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            Poll::Ready(None)
        });
        let option = RPCOption::new(Duration::from_secs(1));
        let mut answers = nowhere.stream_append(input, option).await.unwrap();
        let answer = answers.next().await;
        assert!(matches!(answer, Some(Err(RPCError::Unreachable(_)))));
        assert_eq!(pulls.load(Ordering::SeqCst), 1);
        assert!(answers.next().await.is_none());
    }
}
