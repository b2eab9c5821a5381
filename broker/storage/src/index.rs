//! The sparse index of one segment, in memory: offset, index and time to position.
//!
//! Owns: a row per [`INDEX_STRIDE_BYTES`] of batches.
//! Never: is stored: it is built from the batches, as they are appended or recovered.
//! Invariants: rows rise in position, index, offset and time.

use crate::limits::INDEX_STRIDE_BYTES;
use weir_protocol::batch::BatchHeader;
use weir_protocol::types::{Index, Offset};

/// Where a batch begins and what comes first in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) position: u64,
    pub(crate) index: Index,
    pub(crate) offset: Offset,
    pub(crate) log_time_ms: u64,
}

/// Rows by position.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct SparseIndex {
    rows: Vec<Row>,
}

impl SparseIndex {
    /// Notes a batch at `position` when the last row is far enough behind.
    pub(crate) fn note(&mut self, position: u64, header: &BatchHeader) {
        let due = self.rows.last().is_none_or(|row| position - row.position >= INDEX_STRIDE_BYTES);
        if due && !header.batch_type.is_local() {
            self.rows.push(Row {
                position,
                index: header.index,
                offset: header.base_offset,
                log_time_ms: header.log_time_ms,
            });
        }
    }

    /// The last row that is surely not behind `index`.
    pub(crate) fn before_index(&self, index: Index) -> Option<Row> {
        // A row with the same index may stand behind an earlier batch of that index.
        self.last_where(|row| row.index < index)
    }

    /// The last row at or below `offset`.
    pub(crate) fn before_offset(&self, offset: Offset) -> Option<Row> {
        self.last_where(|row| row.offset < offset)
    }

    /// The last row older than `log_time_ms`.
    pub(crate) fn before_time(&self, log_time_ms: u64) -> Option<Row> {
        self.last_where(|row| row.log_time_ms < log_time_ms)
    }

    fn last_where(&self, holds: impl Fn(&Row) -> bool) -> Option<Row> {
        let count = self.rows.partition_point(holds);
        self.rows.get(count.checked_sub(1)?).copied()
    }
}
