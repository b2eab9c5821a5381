//! Owns: checkpoints, trims and the orderly end of a replica.
//! Invariants: a checkpoint reaches the disk after the log it stands behind; the log is trimmed
//! only up to a checkpoint below which readers need nothing, so that the log behind it, here or sent
//! to another, is all that is retained; ending waits for what was appended, and leaves evidence that
//! it was flushed.

use super::codec::Checkpoint;
use super::engine::{self, Types};
use super::shared::Shared;
use super::{Fence, MaintainError, Replica};
use crate::planted::{Bug, is_planted};
use bytes::Bytes;
use openraft::LogIdOptionExt;
use openraft::async_runtime::WatchReceiver;
use std::io;
use tokio::time::Duration;
use weir_protocol::types::{Index, Offset};

/// A trim waits so long for what is under way to a follower.
const HELD_MAX: Duration = Duration::from_secs(3);

impl Replica {
    /// Stores `state` as what the log up to and including `at` amounts to. Waits until that part
    /// of the log is durable first: a checkpoint beyond it would outlive what it is made of.
    pub async fn checkpoint(&self, at: Index, state: Bytes) -> Result<(), MaintainError> {
        self.shared.check()?;
        let committed = self.shared.state.borrow().committed;
        if at > committed {
            return Err(MaintainError::NotCommitted { at, committed });
        }
        let mut checkpoint = self.shared.checkpoint_of(at, state)?;
        let waits = !is_planted(Bug::CheckpointOvertakesLog);
        if waits && self.shared.reader.bounds().flushed_index < at {
            self.shared.flushed().await.map_err(|error| self.disk(&error))?;
        }
        let shared = self.shared.clone();
        let write = move || {
            checkpoint.behind = shared.behind(at);
            shared.checkpoints().write(at, &checkpoint.encode())
        };
        self.shared.on_executor(write).await.map_err(|error| self.disk(&error))
    }

    /// Readers need nothing below `log_start` any more, which is committed. It only rises; until it is
    /// said after an opening, nothing with records goes, and nothing of it is sent as a snapshot.
    pub fn readers_begin_at(&self, log_start: Offset) {
        self.shared.set_log_start(log_start);
    }

    /// Gives up the log up to the newest checkpoint at or below `upto` behind which it still holds all
    /// that readers may ask for, in whole segments. Returns the index of that checkpoint; the log then
    /// begins at or before the next one. [`Index`] 0: there is no checkpoint to trim to.
    pub async fn trim(&self, upto: Index) -> Result<Index, MaintainError> {
        self.shared.check()?;
        let shared = self.shared.clone();
        let found = self.shared.on_executor(move || shared.beginning(upto)).await;
        let Some((at, _)) = found.map_err(|error| self.disk(&error))? else {
            return Ok(Index(0));
        };
        let Some(engine_at) = engine::engine_index(at) else { return Ok(Index(0)) };
        self.shared.set_snapshot_at(at);
        let ended = |_| MaintainError::Fenced(self.shared.fence_or(Fence::Shutdown));
        self.raft.trigger().snapshot().await.map_err(ended)?;
        self.reached(|seen| seen.snapshot.index() >= Some(engine_at)).await?;
        self.raft.trigger().purge_log(engine_at).await.map_err(ended)?;
        // A follower that needs what is damaged may hold it for as long as this replica leads.
        let purged = self.reached(|seen| seen.purged.index() >= Some(engine_at));
        tokio::time::timeout(HELD_MAX, purged).await.map_err(|_| MaintainError::Held(at))??;
        Ok(at)
    }

    /// Leaves evidence on the disk of how far the log is flushed, where it lacks any: damage behind
    /// it could not be told from what was never acknowledged. For logs that are idle.
    pub async fn leave_watermark(&self) -> Result<(), MaintainError> {
        self.shared.check()?;
        self.shared.leave_watermark().await.map_err(|error| self.disk(&error))
    }

    /// Takes the replica out of its group and waits until everything appended is durable.
    pub async fn shutdown(self) {
        self.place.leave();
        if self.raft.shutdown().await.is_err() {
            tracing::error!("the consensus engine did not end in order");
        }
        // The end of the engine has been noticed by now, or will be.
        self.shared.fence(Fence::Shutdown);
        let in_order = self.shared.check() == Err(Fence::Shutdown);
        if in_order && self.shared.flushed().await.is_ok() {
            // What fails here costs evidence, and replay.
            if let Err(error) = self.shared.leave_watermark().await {
                tracing::warn!(%error, "the log ends without evidence of its last flush");
            }
            let _ = self.shared.store_hard_state().await;
            self.close_mark().await;
        }
    }

    /// What is closed without this counts as lost where the operating system ends next.
    async fn close_mark(&self) {
        let Some(mark) = self.mark.clone() else { return };
        if let Err(error) = self.shared.on_executor(move || mark.closed()).await {
            tracing::warn!(%error, "the log was closed in order and does not say so");
        }
    }

    /// Waits until the engine says so.
    async fn reached(
        &self,
        holds: impl Fn(&openraft::metrics::RaftDataMetrics<Types>) -> bool,
    ) -> Result<(), MaintainError> {
        let mut seen = self.raft.data_metrics();
        while !holds(&seen.borrow_watched()) {
            if seen.changed().await.is_err() {
                return Err(MaintainError::Fenced(self.shared.fence_or(Fence::Shutdown)));
            }
        }
        Ok(())
    }

    fn disk(&self, error: &io::Error) -> MaintainError {
        match self.shared.check() {
            Err(fence) => fence.into(),
            Ok(()) => MaintainError::Disk(error.to_string()),
        }
    }
}

impl Shared {
    /// `state` with what the engine needs beside it.
    fn checkpoint_of(&self, at: Index, state: Bytes) -> Result<Checkpoint, MaintainError> {
        let map = self.map();
        let known = map.term_at(at).zip(map.membership_before(at).cloned());
        let (term, membership) =
            known.ok_or_else(|| MaintainError::Disk(format!("index {at} was trimmed")))?;
        Ok(Checkpoint { term, behind: None, membership, state })
    }
}
