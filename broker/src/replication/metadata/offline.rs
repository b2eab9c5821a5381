//! The metadata of a broker that is stopped, for the offline tools.
//!
//! Owns: reading the newest checkpoint and every command behind it out of the log's files.
//! Never: changes a file, or tells what a damaged range said.

use super::command::Command;
use super::state::{Catalog, State};
use crate::replication::CONTROL_CRC_BYTES;
use crate::replication::codec::{Checkpoint, CodecError};
use bytes::Bytes;
use std::io;
use std::path::Path;
use std::sync::Arc;
use weir_protocol::batch::{BatchHeader, BatchType};
use weir_protocol::types::Index;
use weir_storage::Disk;
use weir_storage::inspect::{self, Dumped, LogReport};

/// Why the metadata is not known.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The device failed.
    #[error("the metadata log: {0}")]
    Device(#[from] io::Error),
    /// A checkpoint or a command is not what this build reads.
    #[error("the metadata log: {0}")]
    Codec(#[from] CodecError),
}

/// The catalog as far as the metadata log in `dir` can be read.
pub fn read_catalog(
    disk: &dyn Disk,
    dir: &Path,
    report: &LogReport,
) -> Result<Arc<Catalog>, OfflineError> {
    let newest = report.checkpoints.iter().find(|(at, whole)| *whole && *at <= report.last_index);
    let (mut state, mut applied) = (State::default(), Index(0));
    if let Some((at, _)) = newest
        && let Some(bytes) = inspect::checkpoint(disk, dir, *at)?
    {
        state = State::decode(&Checkpoint::decode(&Bytes::from(bytes))?.state)?;
        applied = *at;
    }
    let mut outcome = Ok(());
    for segment in &report.segments {
        inspect::dump(disk, segment, |dumped| {
            if let Dumped::Batch { header, body, .. } = dumped
                && header.index > applied
            {
                outcome = apply(&mut state, &header, &body);
            }
            outcome.is_ok()
        })?;
        outcome?;
    }
    Ok(state.catalog().clone())
}

fn apply(state: &mut State, header: &BatchHeader, body: &[u8]) -> Result<(), CodecError> {
    if header.batch_type != BatchType::Control {
        return Ok(());
    }
    let content = (header.control_len as usize).saturating_sub(CONTROL_CRC_BYTES);
    let command = Command::decode(body.get(..content).unwrap_or_default())?;
    // What was refused when it was committed is refused again.
    let _ = state.apply(&command);
    Ok(())
}
