//! Which batches are lost where some cannot be read.
//!
//! Owns: what stands behind them, and the range between. Recovery and readers find the same.
//! Never: decides whether they were ever there: [`decision`](super::decision) does.

use crate::damage::DamagedRange;
use crate::scan::{Batches, Cursor, Edge};
use std::io;
use std::ops::Range;
use weir_protocol::batch::BatchHeader;
use weir_protocol::limits::BATCH_HEADER_BYTES;
use weir_protocol::types::{Index, Offset};

/// What stands behind something that is lost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Behind {
    index: Index,
    offset: Offset,
    /// Other batches of the same index stand before it, or may.
    inside: bool,
}

impl Behind {
    /// A batch of the same segment.
    pub(crate) fn batch(batch: &BatchHeader) -> Self {
        let local = batch.batch_type.is_local();
        let index = if local { Index(batch.index.0 + 1) } else { batch.index };
        Self { index, offset: batch.base_offset, inside: !local && !batch.is_first_of_index() }
    }

    /// The beginning of a segment, or the end of the log: no index reaches over it.
    pub(crate) fn edge(edge: Edge) -> Self {
        Self { index: edge.index, offset: edge.offset, inside: false }
    }
}

/// What lies between a cursor and what stands behind. Where only local batches are lost, no index
/// is: the range ends before it begins.
pub(crate) fn lost_range(
    cursor: &Cursor,
    sequence: u64,
    positions: Range<u64>,
    behind: Behind,
) -> DamagedRange {
    let first_index = cursor.next_index();
    // Every batch that shares an index with others has a body; local ones have none.
    let is_local = positions.end - positions.start == BATCH_HEADER_BYTES as u64;
    let last_index = match behind.inside && !is_local {
        true => behind.index,
        false => Index(behind.index.0 - 1),
    };
    DamagedRange {
        sequence,
        positions,
        first_index,
        // Where a part of an index is lost, the index is.
        last_index: if cursor.open_index { last_index.max(first_index) } else { last_index },
        first_offset: cursor.log_end,
        end_offset: behind.offset.max(cursor.log_end),
        accepted: false,
    }
}

/// The next whole batch behind what cannot be accepted at `position`. One that stands there and
/// differs in its chain alone is itself what is damaged.
pub(crate) fn next_that_follows(
    batches: &Batches<'_>,
    position: u64,
    (cursor, edge): (&Cursor, Edge),
) -> io::Result<Option<(u64, BatchHeader)>> {
    match batches.next_whole(position, (cursor, edge))? {
        Some((found, batch)) if found == position && cursor.is_at(&batch) => {
            batches.next_whole(position + 1, (cursor, edge))
        }
        found => Ok(found),
    }
}
