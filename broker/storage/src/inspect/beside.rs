//! What lies beside the segments of a log.
//!
//! Owns: what there is to tell of `meta`, `damage`, indexes and checkpoints.
//! Never: changes a file; reads the content that belongs to the log's owner.

use crate::damage::{self, DamagedRange};
use crate::disk::Disk;
use crate::error::OpenError;
pub use crate::index::Row;
use crate::index::{self, StoredIndex};
use crate::meta::Meta;
use std::io;
use std::path::Path;
use weir_protocol::types::{Index, Offset, Term};

/// The hard state of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaReport {
    /// Where the log begins.
    pub first_index: Index,
    /// Offset of its first record.
    pub first_offset: Offset,
    /// Sequence of the newest segment that was linked.
    pub last_segment: u64,
    /// The watermark: this segment was flushed up to this position.
    pub watermark: Option<(u64, u64)>,
    /// The bytes of the log's owner: votes and the like.
    pub owned: Vec<u8>,
}

/// The index of a sealed segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexReport {
    /// Where the segment's batches end, in bytes.
    pub end: u64,
    /// Last index of the segment.
    pub last_index: Index,
    /// Behind its last record.
    pub log_end: Offset,
    /// Where batches stand, about every 64 KiB.
    pub rows: Vec<Row>,
    /// First index of each term.
    pub terms: Vec<(Index, Term)>,
    /// Indexes of memberships.
    pub configs: Vec<Index>,
}

/// The hard state in `dir`; none where there is no file of it.
pub fn meta(disk: &dyn Disk, dir: &Path) -> Result<Option<MetaReport>, OpenError> {
    let meta = Meta::load(disk, dir, None)?;
    Ok(meta.map(|meta| {
        let state = meta.state().clone();
        MetaReport {
            first_index: state.first_index,
            first_offset: state.first_offset,
            last_segment: state.last_segment,
            watermark: state.mark.map(|mark| (mark.sequence, mark.position)),
            owned: state.blob,
        }
    }))
}

/// The damaged ranges noted in `dir`; none where the file does not verify.
pub fn damage(disk: &dyn Disk, dir: &Path) -> io::Result<Option<Vec<DamagedRange>>> {
    damage::load(disk, dir)
}

/// The index beside the segment at `segment`; none where it is missing or does not verify.
pub fn index(disk: &dyn Disk, segment: &Path) -> io::Result<Option<IndexReport>> {
    let stored = index::load(disk, segment)?;
    Ok(stored.map(|StoredIndex { end, cursor, marks, rows, .. }| IndexReport {
        end,
        last_index: cursor.last_index,
        log_end: cursor.log_end,
        rows: rows.rows,
        terms: marks.terms,
        configs: marks.configs,
    }))
}

/// What the log's owner kept at an index; none where the file does not verify.
pub fn checkpoint(disk: &dyn Disk, dir: &Path, at: Index) -> io::Result<Option<Vec<u8>>> {
    crate::checkpoint::read(disk, dir, None, at)
}
