//! The seam outwards: how a replica reaches the others of its group.
//!
//! Owns: what the replica asks of whoever carries frames between brokers, in the words of
//! [`weir_protocol::peer`].
//! Never: names the consensus engine or a socket.
//! Invariants: nothing here is repeated by the carrier: the engine repeats. Stream, number and
//! request of a frame are the carrier's to give; the replica leaves them 0.

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use std::task::{Context, Poll};
use tokio::time::Instant;
use weir_protocol::peer::{
    Append, AppendResult, Beat, GroupAddress, PeerRefusal, SnapshotHead, Transfer, TransferAnswer,
    Vote, VoteAnswer, VoteAsk,
};
use weir_protocol::types::BrokerId;

/// Why a peer has not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeerLost {
    /// Nothing was sent: there is no way to it now.
    #[error("the broker cannot be reached")]
    Unreachable,
    /// The connection went while something was under way.
    #[error("the connection was lost")]
    Broken,
    /// The broker is there, the replica is not, or not whole.
    #[error("the broker refused: {0}")]
    Refused(PeerRefusal),
}

/// The way to other brokers.
pub trait Peers: Send + Sync + 'static {
    /// A stream of appends to a follower. It connects when the first one is sent.
    fn append(&self, to: BrokerId, address: GroupAddress) -> Box<dyn AppendStream>;

    /// Says who leads.
    fn beat(&self, to: BrokerId, beat: Beat) -> BoxFuture<'static, Result<AppendResult, PeerLost>>;

    /// Asks for a vote.
    fn vote(&self, to: BrokerId, ask: VoteAsk) -> BoxFuture<'static, Result<VoteAnswer, PeerLost>>;

    /// Sends a snapshot and waits until it is installed. The answer is the follower's vote: one
    /// above the leader's means that nothing was installed. Dropping the future gives it up; what
    /// makes no progress is the carrier's to give up.
    fn snapshot(
        &self,
        to: BrokerId,
        head: SnapshotHead,
        state: Bytes,
    ) -> BoxFuture<'static, Result<Vote, PeerLost>>;

    /// Tells who shall lead.
    fn transfer(
        &self,
        to: BrokerId,
        transfer: Transfer,
    ) -> BoxFuture<'static, Result<TransferAnswer, PeerLost>>;
}

/// One stream of appends, in order. Once it is lost it stays so.
pub trait AppendStream: Send {
    /// When one more append of such a cost may be sent that only helps a follower which is far
    /// behind; at once where its group `presses`, because it cannot go on without. What is not asked
    /// for here goes at once.
    fn catch_up(&mut self, cost: u64, presses: bool) -> Instant;

    /// Ready while one more append may be sent.
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), PeerLost>>;

    /// Sends one, once [`AppendStream::poll_ready`] has said so.
    fn send(&mut self, append: Append);

    /// Nothing more will be sent.
    fn close(&mut self);

    /// The next answer; each stands for every append before it. None once the stream is closed and
    /// all of it is answered, or the answer before has ended it.
    fn poll_answer(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<AppendResult, PeerLost>>>;
}

/// The way of a broker that is alone.
#[derive(Debug, Clone, Copy)]
pub struct NoPeers;

impl Peers for NoPeers {
    fn append(&self, _to: BrokerId, _address: GroupAddress) -> Box<dyn AppendStream> {
        Box::new(Self)
    }

    fn beat(
        &self,
        _to: BrokerId,
        _beat: Beat,
    ) -> BoxFuture<'static, Result<AppendResult, PeerLost>> {
        ready(Err(PeerLost::Unreachable)).boxed()
    }

    fn vote(
        &self,
        _to: BrokerId,
        _ask: VoteAsk,
    ) -> BoxFuture<'static, Result<VoteAnswer, PeerLost>> {
        ready(Err(PeerLost::Unreachable)).boxed()
    }

    fn snapshot(
        &self,
        _to: BrokerId,
        _head: SnapshotHead,
        _state: Bytes,
    ) -> BoxFuture<'static, Result<Vote, PeerLost>> {
        ready(Err(PeerLost::Unreachable)).boxed()
    }

    fn transfer(
        &self,
        _to: BrokerId,
        _transfer: Transfer,
    ) -> BoxFuture<'static, Result<TransferAnswer, PeerLost>> {
        ready(Err(PeerLost::Unreachable)).boxed()
    }
}

impl AppendStream for NoPeers {
    fn catch_up(&mut self, _cost: u64, _presses: bool) -> Instant {
        Instant::now()
    }

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), PeerLost>> {
        Poll::Ready(Err(PeerLost::Unreachable))
    }

    fn send(&mut self, _append: Append) {}

    fn close(&mut self) {}

    fn poll_answer(
        &mut self,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<AppendResult, PeerLost>>> {
        Poll::Ready(Some(Err(PeerLost::Unreachable)))
    }
}
