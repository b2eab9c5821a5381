//! Owns: between a checkpoint here and a snapshot on its way: what is said of it, and whether what
//! arrived is one.
//! Never: trusts a length or an order that a peer announced.
//! Invariant: only a checkpoint that says what its log continues can be sent.

use super::codec::{self, Behind, Checkpoint, CodecError};
use super::engine::{self, Snapshot, StoredMembership, Vote};
use super::{MaintainError, Replica};
use bytes::Bytes;
use openraft::storage::SnapshotMeta;
use weir_protocol::peer::{GroupAddress, SnapshotHead};
use weir_protocol::types::Index;

/// Why what a peer sent is not a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum SnapshotError {
    #[error("the state is not what was announced")]
    State,
    #[error("its place, its membership and the vote do not go together")]
    Order,
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
    if place.index == Index(0) || !head.vote.committed || !in_order {
        return Err(SnapshotError::Order);
    }
    let membership = codec::decode_membership(&head.membership)?;
    let behind = Behind { chain: head.chain, log_end: head.log_end, log_time_ms: head.log_time_ms };
    let checkpoint = Checkpoint {
        term: place.term,
        behind: Some(behind),
        membership: StoredMembership::new(engine::log_id_at(member), membership),
        state,
    };
    Ok(snapshot_of(place.index, checkpoint))
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
