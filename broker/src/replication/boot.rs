//! Owns: what the end of the operating system took from a replica that promised no more than memory:
//! the mark it leaves while it is open, and whether it may take part again.
//! Never: touches the log.
//! Invariants: the mark says that the log is open before anything is acknowledged out of memory, and
//! that it was closed in order only when all of it is flushed. A replica that may lack what it
//! acknowledged never takes part where others do, because its acknowledgements were counted; but that
//! the loss was accepted, because no majority of its group is left without such.

use super::{Durability, OpenReplicaError, ReplicaOptions};
use crate::planted::{Bug, is_planted};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use weir_protocol::types::Index;
use weir_storage::{BootMark, Device, OpenError};

/// What was acknowledged out of memory and is lost, with all that was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLoss {
    /// How often that was, ever: a recovery epoch.
    pub epoch: u32,
    /// Behind this index something is missing, since the last time.
    pub lost_after: Index,
}

/// What the mark said when the replica was opened.
pub(super) struct Found {
    before: Option<BootMark>,
    lacks: bool,
}

/// The mark of an open replica.
pub(super) struct OpenMark {
    device: Arc<Device>,
    dir: PathBuf,
    mark: BootMark,
}

/// Looks at the mark before the log is opened. A replica that may lack what others counted on is
/// refused.
pub(super) fn look(options: &ReplicaOptions) -> Result<Found, OpenReplicaError> {
    let disk = &**options.device.disk();
    let before = BootMark::read(disk, &options.dir, options.log.uuid)?;
    let lacks = before.is_some_and(|mark| mark.may_lack(options.boot_id));
    let told = lacks && !is_planted(Bug::UncleanReplicaTakesPart);
    if told && !options.others().is_empty() && !options.loss_accepted {
        return Err(OpenReplicaError::Unclean(options.replica));
    }
    Ok(Found { before, lacks })
}

impl Found {
    /// Marks the log, which ends with `last` and has all that is left of it, as open. None: it is
    /// flushed before it acknowledges, and needs no mark.
    pub(super) fn opened(
        self,
        options: &ReplicaOptions,
        last: Index,
    ) -> Result<Option<OpenMark>, OpenReplicaError> {
        let in_order = options.durability == Durability::Fsync;
        if in_order && self.before.is_none() {
            return Ok(None);
        }
        let before = self.before.unwrap_or_default();
        let mut mark =
            BootMark { uuid: options.log.uuid, boot_id: options.boot_id, in_order, ..before };
        if self.lacks {
            (mark.losses, mark.lost_after) = (before.losses.saturating_add(1), last);
            tracing::error!(
                replica = %options.replica, lost_after = %last, epoch = mark.losses,
                "the operating system ended and what was acknowledged out of memory behind this \
                 index is lost; the rest was kept"
            );
        }
        if self.before != Some(mark) {
            mark.store(&**options.device.disk(), &options.dir)
                .map_err(OpenError::device(&options.dir))?;
        }
        Ok(Some(OpenMark { device: options.device.clone(), dir: options.dir.clone(), mark }))
    }
}

impl OpenMark {
    /// What was lost of the log, ever.
    pub(super) fn loss(&self) -> Option<MemoryLoss> {
        let BootMark { losses, lost_after, .. } = self.mark;
        (losses > 0).then_some(MemoryLoss { epoch: losses, lost_after })
    }

    /// The log is closed, and all of it is flushed.
    pub(super) fn closed(&self) -> io::Result<()> {
        if self.mark.in_order {
            return Ok(());
        }
        BootMark { in_order: true, ..self.mark }.store(&**self.device.disk(), &self.dir)
    }
}
