//! What an opening that failed means.
//!
//! Owns: what clients are told of it, and whether the replica will ever serve again.
//! Never: decides what is done about it.

use crate::partition::{OpenPartitionError, WireError};
use crate::replication::metadata::LossReason;
use crate::replication::{CodecError, OpenReplicaError};
use weir_protocol::error_code::ErrorCode;
use weir_storage::{MendError, OpenError, is_out_of_space};

/// Why a replica will never serve again, if that is what the error says.
pub(super) fn loss_of(error: &OpenPartitionError) -> Option<LossReason> {
    match error {
        OpenPartitionError::Replica(replica) => replica.loss(),
        OpenPartitionError::Checkpoint(WireError::Version { .. }) => None,
        OpenPartitionError::Checkpoint(_) => Some(LossReason::Damaged),
    }
}

/// What clients are told of a partition that could not be opened. What a newer version wrote is whole:
/// it is not damaged, and another broker may serve it, which is what STORAGE_FENCED sends clients to.
pub(super) fn code_of(error: &OpenPartitionError) -> ErrorCode {
    let replica = match error {
        OpenPartitionError::Replica(replica) => replica,
        OpenPartitionError::Checkpoint(WireError::Version { .. }) => {
            return ErrorCode::StorageFenced;
        }
        OpenPartitionError::Checkpoint(
            WireError::Short(_) | WireError::Content(_) | WireError::Trailing(_),
        ) => return ErrorCode::DamagedRange,
    };
    match replica {
        OpenReplicaError::Log(open) => match open {
            OpenError::Damaged(_) => ErrorCode::DamagedRange,
            OpenError::NoSpace(_) => ErrorCode::StorageLow,
            OpenError::Device { source, .. } if is_out_of_space(source) => ErrorCode::StorageLow,
            OpenError::Newer { .. } | OpenError::Device { .. } => ErrorCode::StorageFenced,
        },
        OpenReplicaError::Codec { reason: CodecError::Version(_), .. } => ErrorCode::StorageFenced,
        OpenReplicaError::Codec { reason: CodecError::Malformed, .. }
        | OpenReplicaError::Read { .. } => ErrorCode::DamagedRange,
        OpenReplicaError::Unmendable(_) => ErrorCode::DamagedRange,
        OpenReplicaError::Mend(MendError::NoSpace(_)) => ErrorCode::StorageLow,
        OpenReplicaError::NotAVoter(_)
        | OpenReplicaError::Mend(_)
        | OpenReplicaError::Lost(_)
        | OpenReplicaError::Unclean(_)
        | OpenReplicaError::Engine(_) => ErrorCode::StorageFenced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use weir_protocol::types::ReplicaId;

    /// What the metadata is told decides what becomes of the replica.
    #[test]
    fn each_loss_has_its_reason() {
        let replica = ReplicaId(7);
        let reason = |error: OpenReplicaError| loss_of(&error.into());
        assert_eq!(reason(OpenReplicaError::Unclean(replica)), Some(LossReason::Unclean));
        assert_eq!(reason(OpenReplicaError::Lost(replica)), Some(LossReason::Empty));
        assert_eq!(reason(OpenReplicaError::Unmendable(replica)), Some(LossReason::Damaged));
        assert_eq!(reason(OpenReplicaError::NotAVoter(replica)), None);
    }

    /// A client that is told of damage never comes back; what is only too new for this broker it
    /// finds elsewhere.
    #[test]
    fn what_a_newer_version_wrote_is_not_called_damaged() {
        let newer = OpenError::Newer { file: "000.seg".into(), found: 2, known: 1 };
        let version = CodecError::Version(2);
        let checkpoint = WireError::Version { what: "a checkpoint", version: 2, known: 1 };
        let newer = [
            OpenPartitionError::Replica(newer.into()),
            OpenReplicaError::Codec { what: "hard state", reason: version }.into(),
            OpenPartitionError::Checkpoint(checkpoint),
        ];
        assert!(newer.iter().all(|error| code_of(error) == ErrorCode::StorageFenced));
        let reason = CodecError::Malformed;
        let damaged = [
            OpenReplicaError::Codec { what: "hard state", reason }.into(),
            OpenPartitionError::Checkpoint(WireError::Trailing(1)),
        ];
        assert!(damaged.iter().all(|error| code_of(error) == ErrorCode::DamagedRange));
    }
    /// Whoever waits for room comes back; a device that failed is another matter.
    #[test]
    fn a_full_disk_is_called_so_wherever_it_was_met() {
        let failed =
            |kind: io::ErrorKind| OpenError::Device { path: "p".into(), source: kind.into() };
        let code = |error: OpenReplicaError| code_of(&error.into());
        assert_eq!(code(failed(io::ErrorKind::StorageFull).into()), ErrorCode::StorageLow);
        assert_eq!(code(OpenError::NoSpace("p".into()).into()), ErrorCode::StorageLow);
        let mend = MendError::NoSpace("p".into());
        assert_eq!(code(OpenReplicaError::Mend(mend)), ErrorCode::StorageLow);
        assert_eq!(code(failed(io::ErrorKind::Other).into()), ErrorCode::StorageFenced);
    }
}
