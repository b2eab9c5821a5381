//! Owns: the engine's view of what is applied: a register that moves forward.
//! Never: waits, judges or reads a body. The partition's task obeys the log up to
//! [`ReplicaState::committed`]; this shell only says how far that is.
//! Invariant: `committed` never falls.

use super::codec::Checkpoint;
use super::engine::{self, EngineEntry, LogId, Snapshot, StoredMembership, Types};
use super::shared::Shared;
use futures_util::{Stream, TryStreamExt};
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use std::io;
use std::sync::Arc;
use weir_protocol::types::{Index, Term};

/// The engine's state machine.
pub(super) struct Shell {
    shared: Arc<Shared>,
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl Shell {
    /// A shell that has applied everything up to `checkpoint`.
    pub(super) fn new(shared: Arc<Shared>, checkpoint: Option<(Index, &Checkpoint)>) -> Self {
        let applied = checkpoint.and_then(|(index, taken)| engine::log_id(taken.term.0, index));
        let membership = checkpoint.map(|(_, taken)| taken.membership.clone()).unwrap_or_default();
        Self { shared, applied, membership }
    }
}

impl RaftStateMachine<Types> for Shell {
    type SnapshotData = Checkpoint;
    type SnapshotBuilder = CheckpointSource;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let EngineEntry { log_id, payload } = entry;
            self.applied = Some(log_id);
            if let Some(membership) = payload.membership {
                self.membership = StoredMembership::new(Some(log_id), membership);
            }
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        if let Some(applied) = self.applied {
            let term = Term(applied.committed_leader_id().term);
            self.shared.committed(engine::index_of(applied.index()), term);
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<CheckpointSource> {
        Some(CheckpointSource { shared: self.shared.clone() })
    }

    async fn get_snapshot_builder(&mut self) -> CheckpointSource {
        CheckpointSource { shared: self.shared.clone() }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf,
        checkpoint: Checkpoint,
    ) -> io::Result<()> {
        let place = engine::place_from(meta.last_log_id.as_ref());
        self.shared.install(place.index, checkpoint).await?;
        (self.applied, self.membership) = (meta.last_log_id, meta.last_membership.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        self.shared.snapshot().await
    }
}

type SnapshotMetaOf = openraft::type_config::alias::SnapshotMetaOf<Types>;

/// Turns the checkpoint at the log start into the engine's snapshot.
pub(super) struct CheckpointSource {
    shared: Arc<Shared>,
}

impl RaftSnapshotBuilder<Types> for CheckpointSource {
    type SnapshotData = Checkpoint;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let text = "a snapshot was asked for, but there is no checkpoint at the log start";
        let snapshot = self.shared.snapshot().await?;
        snapshot.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, text))
    }
}
