//! What a link asks of the replicas of this broker.
//!
//! Owns: the narrow seam between the frames of other brokers and the switchboard.
//! Never: knows what a replica makes of them.

use crate::budget::Draft;
use crate::replication::Switchboard;
use crate::seams::BoxFuture;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt, future};
use weir_protocol::peer::{
    Append, AppendResult, Beat, PeerRefusal, SnapshotHead, Transfer, TransferAnswer, Vote,
    VoteAnswer, VoteAsk,
};
use weir_protocol::types::ReplicaId;

/// An append and the memory that its bytes were paid with, which is given back when they are flushed
/// or will not be stored: also where the link that brought them is gone by then.
pub(super) type PaidAppend = (Append, Option<Draft>);

/// The replicas of this broker.
pub(super) trait Replicas: Send + Sync {
    /// Feeds the appends of one leader to a replica: one answer for each, in order, and a last one
    /// that is no [`AppendResult::Flushed`] once it takes no more.
    fn stream(
        &self,
        to: ReplicaId,
        appends: BoxStream<'static, PaidAppend>,
    ) -> BoxStream<'static, AppendResult>;

    /// Hands a beat over.
    fn beat(&self, beat: Beat) -> BoxFuture<'static, AppendResult>;

    /// Asks for a vote.
    fn vote(&self, ask: VoteAsk) -> BoxFuture<'static, Result<VoteAnswer, PeerRefusal>>;

    /// Installs a snapshot, and answers with the replica's vote.
    fn install(
        &self,
        head: SnapshotHead,
        state: Bytes,
    ) -> BoxFuture<'static, Result<Vote, PeerRefusal>>;

    /// Tells who shall lead.
    fn transfer(
        &self,
        transfer: Transfer,
    ) -> BoxFuture<'static, Result<TransferAnswer, PeerRefusal>>;
}

impl Replicas for Switchboard {
    fn stream(
        &self,
        to: ReplicaId,
        mut appends: BoxStream<'static, PaidAppend>,
    ) -> BoxStream<'static, AppendResult> {
        let inbox = match self.inbox(to) {
            Ok(inbox) => inbox,
            Err(refusal) => {
                return stream::once(future::ready(AppendResult::Refused(refusal))).boxed();
            }
        };
        let opened = async move {
            let (input, answers) = inbox.stream().await;
            let pushed = async move {
                while let Some((append, paid_with)) = appends.next().await {
                    if let Err(refusal) = input.push(&append, paid_with).await {
                        return Some(AppendResult::Refused(refusal));
                    }
                }
                None
            };
            let refused = stream::once(pushed).filter_map(future::ready);
            let answers = stream::unfold(answers, |mut answers| async move {
                answers.next().await.map(|answer| (answer, answers))
            });
            stream::select(answers, refused)
        };
        stream::once(opened).flatten().boxed()
    }

    fn beat(&self, beat: Beat) -> BoxFuture<'static, AppendResult> {
        match self.inbox(beat.address.to) {
            Ok(inbox) => async move { inbox.beat(beat).await }.boxed(),
            Err(refusal) => future::ready(AppendResult::Refused(refusal)).boxed(),
        }
    }

    fn vote(&self, ask: VoteAsk) -> BoxFuture<'static, Result<VoteAnswer, PeerRefusal>> {
        let inbox = self.inbox(ask.address.to);
        async move { inbox?.vote(ask).await }.boxed()
    }

    fn install(
        &self,
        head: SnapshotHead,
        state: Bytes,
    ) -> BoxFuture<'static, Result<Vote, PeerRefusal>> {
        let inbox = self.inbox(head.address.to);
        async move { inbox?.install(head, state).await }.boxed()
    }

    fn transfer(
        &self,
        transfer: Transfer,
    ) -> BoxFuture<'static, Result<TransferAnswer, PeerRefusal>> {
        let inbox = self.inbox(transfer.address.to);
        async move { inbox?.transfer(transfer).await }.boxed()
    }
}
