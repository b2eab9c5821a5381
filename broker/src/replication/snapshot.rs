//! Owns: between a checkpoint here and a snapshot on its way: what is said of it, whether what
//! arrived is one, and how the log comes to begin behind it.
//! Never: trusts a length or an order that a peer announced; gives up a batch that the snapshot does
//! not cover and the group may have committed.
//! Invariants: only a checkpoint that says what its log continues can be sent, and only where every
//! record below it lies below the log start: whoever begins behind it may lead, and readers want all
//! the rest of its log; the checkpoint is durable before the log goes, and shown before that as well.

use super::codec::{self, Behind, Checkpoint, CodecError};
use super::engine::{self, Snapshot, StoredMembership, Vote};
use super::log_map::LogMap;
use super::shared::{Shared, fence_of_io};
use super::{Fence, MaintainError, Replica};
use crate::planted::{Bug, is_planted};
use bytes::Bytes;
use openraft::storage::SnapshotMeta;
use std::io;
use std::sync::Arc;
use weir_protocol::peer::{GroupAddress, SnapshotHead};
use weir_protocol::types::Index;
use weir_storage::LogStart;

/// Why what a peer sent is not a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum SnapshotError {
    #[error("the state is not what was announced")]
    State,
    #[error("its place, its membership and the vote do not go together")]
    Order,
    #[error("no log can begin behind it")]
    Start,
    #[error("the membership: {0}")]
    Membership(#[from] CodecError),
}

/// The engine's snapshot of a checkpoint.
pub(super) fn snapshot_of(index: Index, checkpoint: Checkpoint) -> Snapshot {
    let meta = SnapshotMeta {
        last_log_id: engine::log_id(checkpoint.term.0, index),
        last_membership: checkpoint.membership.clone(),
    };
    Snapshot { meta, snapshot: checkpoint }
}

/// What is said of a snapshot before its state; none where it cannot be sent.
pub(super) fn head_of(
    address: GroupAddress,
    vote: &Vote,
    snapshot: &Snapshot,
) -> Option<SnapshotHead> {
    let Checkpoint { behind, membership, state, .. } = &snapshot.snapshot;
    let Behind { chain, log_end, log_time_ms } = (*behind)?;
    Some(SnapshotHead {
        address,
        vote: engine::vote_from(vote),
        place: engine::place_from(snapshot.meta.last_log_id.as_ref()),
        chain,
        log_end,
        log_time_ms,
        membership_place: engine::place_from(membership.log_id().as_ref()),
        membership: codec::encode_membership(membership.membership()).into(),
        state_len: state.len() as u64,
        state_crc: crc32fast::hash(state),
    })
}

/// The snapshot that arrived. The engine relies on the order of its places and takes a wrong one for
/// an error of its own.
pub(super) fn received(head: &SnapshotHead, state: Bytes) -> Result<Snapshot, SnapshotError> {
    let whole = head.state_len == state.len() as u64 && head.state_crc == crc32fast::hash(&state);
    if !whole {
        return Err(SnapshotError::State);
    }
    let (place, member) = (head.place, head.membership_place);
    let in_order = (member.index, member.term) <= (place.index, place.term)
        && member.term <= place.term
        && place.term <= head.vote.term;
    let leads = head.vote.committed && head.vote.replica == head.address.from;
    if place.index == Index(0) || !leads || !in_order {
        return Err(SnapshotError::Order);
    }
    let membership = codec::decode_membership(&head.membership)?;
    let behind = Behind { chain: head.chain, log_end: head.log_end, log_time_ms: head.log_time_ms };
    if !start_of(head).is_possible() {
        return Err(SnapshotError::Start);
    }
    let checkpoint = Checkpoint {
        term: place.term,
        behind: Some(behind),
        membership: StoredMembership::new(engine::log_id_at(member), membership),
        state,
    };
    Ok(snapshot_of(place.index, checkpoint))
}

/// What the log continues behind a snapshot.
pub(super) fn start_of(head: &SnapshotHead) -> LogStart {
    let SnapshotHead { place, chain, log_end, log_time_ms, .. } = *head;
    LogStart { index: place.index, term: place.term, chain, log_end, log_time_ms }
}

/// The sending side.
impl Shared {
    /// The engine's snapshot: the checkpoint at the log start, or where that cannot be sent a newer
    /// one that can. Where none can, what is there stands for it, and nobody is sent it: a follower
    /// that needs it waits until the log start has moved past a checkpoint. The engine asks at every
    /// start, when nobody needs one: that none can be sent is told where it is to be sent.
    pub(super) async fn snapshot(self: &Arc<Self>) -> io::Result<Option<Snapshot>> {
        let shared = self.clone();
        self.on_executor(move || shared.snapshot_here()).await
    }

    fn snapshot_here(&self) -> io::Result<Option<Snapshot>> {
        let (at, last) = (self.snapshot_at(), self.map().last());
        let wanted = |found: &(Index, Checkpoint)| found.0 >= at;
        let at_start = self.checkpoint_at(at)?.filter(wanted);
        if let Some((index, checkpoint)) = &at_start
            && self.begins_all_retained(*index, checkpoint)
        {
            return Ok(at_start.map(|(index, taken)| self.sendable(index, taken)));
        }
        if let Some((index, checkpoint)) = self.beginning(last)?.filter(wanted) {
            return Ok(Some(self.sendable(index, checkpoint)));
        }
        let kept = match at_start {
            Some(kept) => Some(kept),
            None => self.checkpoint_at(last)?.filter(wanted),
        };
        Ok(kept.map(|(index, taken)| snapshot_of(index, Checkpoint { behind: None, ..taken })))
    }

    /// The newest checkpoint at or below `upto` behind which a log holds all that readers may ask for.
    pub(super) fn beginning(&self, mut upto: Index) -> io::Result<Option<(Index, Checkpoint)>> {
        while let Some((at, checkpoint)) = self.checkpoint_at(upto)? {
            if self.begins_all_retained(at, &checkpoint) {
                return Ok(Some((at, checkpoint)));
            }
            let Some(below) = at.0.checked_sub(1) else { break };
            upto = Index(below);
        }
        Ok(None)
    }

    /// Whether every record up to `at` lies below the log start. What is damaged says nothing.
    fn begins_all_retained(&self, at: Index, checkpoint: &Checkpoint) -> bool {
        if is_planted(Bug::SnapshotInsideRetained) {
            return true;
        }
        let said = checkpoint.behind.map(|behind| behind.log_end);
        let log_end = said.or_else(|| Some(self.reader.start_behind(at).ok()??.log_end));
        log_end.is_some_and(|log_end| log_end <= self.log_start())
    }

    /// A checkpoint of before the gate is written anew: what the log continues behind it can still be
    /// read now.
    fn sendable(&self, index: Index, mut checkpoint: Checkpoint) -> Snapshot {
        if checkpoint.behind.is_none() {
            checkpoint.behind = self.behind(index);
            if checkpoint.behind.is_some()
                && let Err(error) = self.checkpoints().write(index, &checkpoint.encode())
            {
                tracing::warn!(%error, %index, "a checkpoint was not written anew");
            }
        }
        snapshot_of(index, checkpoint)
    }

    /// What the log continues behind `at`; none before the gate, and where that is not known.
    pub(super) fn behind(&self, at: Index) -> Option<Behind> {
        if !self.gate.is_of_cluster() {
            return None;
        }
        match self.reader.start_behind(at) {
            Ok(Some(LogStart { chain, log_end, log_time_ms, .. })) => {
                Some(Behind { chain, log_end, log_time_ms })
            }
            // The log may begin behind the checkpoint that came with a snapshot.
            Ok(None) => {
                let found = self.checkpoint_at(at).ok().flatten();
                found.filter(|(index, _)| *index == at).and_then(|(_, taken)| taken.behind)
            }
            Err(error) => {
                tracing::warn!(%error, index = %at, "a checkpoint cannot be sent");
                None
            }
        }
    }
}

/// The receiving side.
impl Shared {
    /// Makes a leader's snapshot the start of this log. A failure fences the replica.
    pub(super) async fn install(
        self: &Arc<Self>,
        at: Index,
        checkpoint: Checkpoint,
    ) -> io::Result<()> {
        // What stays is durable up to its checkpoint, and nobody waits for what goes.
        self.flushed().await?;
        let shared = self.clone();
        let install = move || {
            let installed = shared.install_here(at, checkpoint);
            installed.map_err(|fence| shared.fenced_by(fence))
        };
        self.on_executor(install).await
    }

    fn install_here(&self, at: Index, checkpoint: Checkpoint) -> Result<(), Fence> {
        let Checkpoint { term, behind: Some(behind), .. } = checkpoint else {
            return Err(Fence::Engine(format!("the snapshot of index {at} begins no log")));
        };
        let Behind { chain, log_end, log_time_ms } = behind;
        let start = LogStart { index: at, term, chain, log_end, log_time_ms };
        let device = |error| fence_of_io(&error);
        let is_held = self.map().term_at(at) == Some(term);
        if is_held {
            self.check_same(&start)?;
        }
        self.checkpoints().write(at, &checkpoint.encode()).map_err(device)?;
        self.state.send_modify(|state| state.installed = Some(at));
        if !is_held {
            self.restart_behind(start).map_err(device)?;
        }
        self.map().set_membership(checkpoint.membership);
        self.set_snapshot_at(at);
        self.committed(at, term);
        Ok(())
    }

    /// The log that holds the snapshot's last batch must be the same up to it.
    pub(super) fn check_same(&self, start: &LogStart) -> Result<(), Fence> {
        match self.reader.start_behind(start.index) {
            Ok(Some(here))
                if (here.chain, here.log_end) != (start.chain, start.log_end)
                    && !is_planted(Bug::SnapshotNotCompared) =>
            {
                let at = start.index;
                Err(Fence::Engine(format!("the log differs from its leader's at {at}")))
            }
            // What is damaged here is whole in the snapshot.
            _ => Ok(()),
        }
    }

    fn restart_behind(&self, start: LogStart) -> io::Result<()> {
        {
            let mut hard = self.hard();
            hard.purged = engine::log_id(start.term.0, start.index);
            self.log().restart_behind(start, &hard.encode())?;
        }
        *self.map() = LogMap::behind(Some((start.index, start.term)));
        Ok(())
    }
}

impl Replica {
    /// The state that came with the newest snapshot that was installed since the replica was opened,
    /// and its index; none where none was.
    pub async fn installed_state(&self) -> Result<Option<(Index, Bytes)>, MaintainError> {
        let Some(at) = self.shared.state.borrow().installed else { return Ok(None) };
        let shared = self.shared.clone();
        let found = self.shared.on_executor(move || shared.checkpoint_at(at)).await;
        let found = found.map_err(|error| MaintainError::Disk(error.to_string()))?;
        match found.filter(|(index, _)| *index == at) {
            Some((index, checkpoint)) => Ok(Some((index, checkpoint.state))),
            None => Err(MaintainError::Disk(format!("the snapshot of index {at} is not whole"))),
        }
    }
}
