//! What the writer of a log shares with its readers.
//!
//! Owns: the segments in force, the ends, the newest headers, what is known to be damaged, and
//! which sealed segments have their sparse index in memory.
//! Never: does I/O under the lock of the ends.

use crate::damage::{DamageBook, DamagedRange};
use crate::disk::Disk;
use crate::flush::LogFlush;
use crate::index::{self, SparseIndex};
use crate::limits::{HOT_BYTES, INDEXES_LOADED_MAX, SEGMENT_HEADER_BYTES};
use crate::recovery::{Behind, lost_range, next_that_follows};
use crate::scan::{Cursor, Edge};
use crate::segment::Segment;
use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use weir_protocol::batch::BatchHeader;
use weir_protocol::types::{Index, Offset};

/// Headers of the newest batches that are kept in memory.
pub(crate) const RECENT_MAX: usize = 1_024;

/// Where the log begins and ends now.
pub(crate) struct Ends {
    pub(crate) segments: VecDeque<Arc<Segment>>,
    pub(crate) recent: VecDeque<(BatchHeader, Arc<Segment>, u64)>,
    pub(crate) first_index: Index,
    pub(crate) first_offset: Offset,
    pub(crate) last_index: Index,
    pub(crate) log_end: Offset,
    /// The last batch that is not local; none where there is none that can be read.
    pub(crate) last: Option<BatchHeader>,
    /// The log time of the last batch, also where it is not held or cannot be read.
    pub(crate) log_time_ms: u64,
    /// Bytes that data may still take without a new file.
    pub(crate) room: u64,
    /// The next segment was asked for and is not there yet.
    pub(crate) growing: bool,
}

impl Ends {
    pub(crate) fn remember(&mut self, header: BatchHeader, segment: &Arc<Segment>, position: u64) {
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((header, segment.clone(), position));
    }

    /// The segment that holds `index`, if it is held.
    pub(crate) fn segment_of_index(&self, index: Index) -> Option<&Arc<Segment>> {
        let count = self.segments.partition_point(|segment| segment.header.base_index <= index);
        self.segments.get(count.checked_sub(1)?)
    }

    pub(crate) fn segment_of_offset(&self, offset: Offset) -> Option<&Arc<Segment>> {
        let count = self.segments.partition_point(|segment| segment.header.base_offset <= offset);
        self.segments.get(count.checked_sub(1)?)
    }

    /// Whether what stands at and behind `position` of `segment` was appended by this process, and so
    /// lately that it is still in memory.
    pub(crate) fn is_hot(&self, segment: &Arc<Segment>, position: u64) -> bool {
        let behind = self.segments.iter().rev().take_while(|other| !Arc::ptr_eq(other, segment));
        let bytes: u64 = behind.map(|other| other.published()).sum();
        let near = bytes + segment.published().saturating_sub(position) <= HOT_BYTES;
        near && position >= segment.found()
    }

    pub(crate) fn next_segment(&self, segment: &Arc<Segment>) -> Option<Arc<Segment>> {
        let at = self.segments.partition_point(|s| s.header.sequence <= segment.header.sequence);
        self.segments.get(at).cloned()
    }

    /// Where the batches of `segment` end, and what stands behind them.
    fn end_of(&self, segment: &Arc<Segment>) -> (u64, Edge) {
        if let Some(next) = self.next_segment(segment) {
            return (segment.published(), Edge::before(&next.header));
        }
        let newest = self.recent.back().filter(|(_, of, _)| Arc::ptr_eq(of, segment));
        let end = newest.map_or(segment.published(), |(header, _, position)| {
            position + header.stored_len() as u64
        });
        (end, Edge { index: Index(self.last_index.0 + 1), offset: self.log_end })
    }
}

/// What the writer shares with its readers.
pub(crate) struct Shared {
    disk: Arc<dyn Disk>,
    ends: RwLock<Ends>,
    pub(crate) flush: Arc<LogFlush>,
    pub(crate) damage: DamageBook,
    /// Segments whose sparse index could be given up, the oldest first.
    loaded: Mutex<VecDeque<Arc<Segment>>>,
}

impl Shared {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        ends: Ends,
        flush: Arc<LogFlush>,
        damage: DamageBook,
    ) -> Arc<Self> {
        let loaded = Mutex::default();
        Arc::new(Self { disk, ends: RwLock::new(ends), flush, damage, loaded })
    }

    pub(crate) fn ends(&self) -> RwLockReadGuard<'_, Ends> {
        self.ends.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ends_mut(&self) -> RwLockWriteGuard<'_, Ends> {
        self.ends.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the sparse index of a sealed segment into memory, where it is not; may wait for the
    /// device. Where no file has it, it is built from the batches.
    pub(crate) fn load_index(&self, segment: &Arc<Segment>) -> io::Result<()> {
        if segment.rows().is_some() {
            return Ok(());
        }
        let stored = index::load(&*self.disk, &segment.path)?;
        let rows = match stored.filter(|stored| stored.salt == segment.header.salt) {
            Some(stored) => stored.rows,
            None => self.build_index(segment)?,
        };
        *segment.rows() = Some(rows);
        self.keep_loaded(segment);
        Ok(())
    }

    fn build_index(&self, segment: &Arc<Segment>) -> io::Result<SparseIndex> {
        let mut rows = SparseIndex::default();
        let mut walk = super::walk::Walk::from_start(self, segment);
        while let Some(found) = walk.next()? {
            if let super::walk::Found::Batch(position, header) = found {
                rows.note(position, &header);
            }
        }
        Ok(rows)
    }

    /// The index of a sealed segment is in memory: the one that was loaded longest ago goes.
    pub(crate) fn keep_loaded(&self, segment: &Arc<Segment>) {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.push_back(segment.clone());
        if loaded.len() > INDEXES_LOADED_MAX
            && let Some(oldest) = loaded.pop_front()
        {
            *oldest.rows() = None;
        }
    }

    /// Segments that are given up are held no longer.
    pub(crate) fn forget_loaded(&self, gone: &[Arc<Segment>]) {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.retain(|kept| !gone.iter().any(|segment| Arc::ptr_eq(kept, segment)));
    }

    /// Finds out how far the damage reaches that a reader met at `position`, and remembers it.
    /// `cursor` holds in front of it. None where the log ends there.
    pub(crate) fn discover(
        &self,
        segment: &Arc<Segment>,
        position: u64,
        cursor: &Cursor,
    ) -> io::Result<Option<DamagedRange>> {
        let (end, edge) = self.ends().end_of(segment);
        if position >= end {
            return Ok(None);
        }
        let mut batches = segment.batches();
        batches.end = end.min(segment.file.len()).max(SEGMENT_HEADER_BYTES);
        let (until, behind) = match next_that_follows(&batches, position, (cursor, edge))? {
            Some((found, batch)) => (found, Behind::batch(&batch)),
            None => (end, Behind::edge(edge)),
        };
        let range = lost_range(cursor, segment.header.sequence, position..until, behind);
        self.damage.record(range.clone());
        Ok(Some(range))
    }
}
