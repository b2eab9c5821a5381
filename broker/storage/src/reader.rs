//! Reads a log while it is appended to.
//!
//! Owns: the shared view of a log: its segments, its ends, its newest headers.
//! Never: shows a byte behind the published end; takes a lock over I/O.
//! Invariants: a slice handed out is never stored to again; cold bytes are verified before they
//! are handed out.

use crate::error::ReadError;
use crate::executor::{Executor, Lane};
use crate::flush::LogFlush;
use crate::limits::{HOT_BYTES, SEGMENT_HEADER_BYTES};
use crate::segment::Segment;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use weir_protocol::batch::{BatchHeader, BatchType};
use weir_protocol::limits::BATCH_HEADER_BYTES;
use weir_protocol::types::{Index, Offset};

/// Headers of the newest batches that are kept in memory.
const RECENT_MAX: usize = 1_024;

/// Where a log begins and ends. Ends of offsets are exclusive, indexes inclusive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogBounds {
    /// First index held.
    pub first_index: Index,
    /// Last index held; `first_index - 1` when there is none.
    pub last_index: Index,
    /// First offset held.
    pub log_start: Offset,
    /// Offset behind the last record.
    pub log_end: Offset,
    /// Last index known to be durable.
    pub flushed_index: Index,
    /// Bytes on disk of all segments.
    pub bytes: u64,
    /// The last batch that is not local.
    pub last: Option<BatchHeader>,
}

/// One segment as retention sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentView {
    /// First index.
    pub first_index: Index,
    /// Last index; trimming up to it frees the segment.
    pub last_index: Index,
    /// First offset.
    pub first_offset: Offset,
    /// Offset behind its last record.
    pub end_offset: Offset,
    /// Bytes of the file.
    pub bytes: u64,
    /// Log time of its last batch, milliseconds since the epoch.
    pub last_log_time_ms: u64,
}

/// A stored batch: header, body, padding.
#[derive(Debug, Clone)]
pub struct BatchSlice {
    /// Its header.
    pub header: BatchHeader,
    /// Header, body and padding as they are stored.
    pub bytes: Bytes,
    /// Salt of its segment.
    pub salt: u64,
}

/// What a read found.
#[derive(Debug)]
pub enum Read {
    /// In memory: the newest part of the log.
    Hot(Vec<BatchSlice>),
    /// Run this on [`Lane::Read`]: it may wait for the device.
    Cold(ColdRead),
}

/// A read that may wait for the device.
#[derive(Debug)]
pub struct ColdRead {
    segment: Arc<Segment>,
    position: u64,
    plan: Plan,
}

/// What a read takes.
#[derive(Debug, Clone, Copy)]
struct Plan {
    from: From,
    bytes_max: usize,
    /// Verify bodies: cold bytes may have rotted.
    verify: bool,
}

#[derive(Debug, Clone, Copy)]
enum From {
    Index(Index),
    Offset(Offset),
}

pub(crate) struct Ends {
    pub(crate) segments: VecDeque<Arc<Segment>>,
    pub(crate) recent: VecDeque<(BatchHeader, Arc<Segment>, u64)>,
    pub(crate) first_index: Index,
    pub(crate) log_end: Offset,
    pub(crate) last: Option<BatchHeader>,
    /// Bytes that data may still take without a new file.
    pub(crate) room: u64,
    /// The next segment was asked for and is not there yet.
    pub(crate) growing: bool,
}

/// What the writer shares with its readers.
pub(crate) struct Shared {
    ends: RwLock<Ends>,
    pub(crate) flush: Arc<LogFlush>,
}

impl Shared {
    pub(crate) fn new(ends: Ends, flush: Arc<LogFlush>) -> Arc<Self> {
        Arc::new(Self { ends: RwLock::new(ends), flush })
    }

    pub(crate) fn ends(&self) -> RwLockReadGuard<'_, Ends> {
        self.ends.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ends_mut(&self) -> RwLockWriteGuard<'_, Ends> {
        self.ends.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ends {
    pub(crate) fn last_index(&self) -> Index {
        self.last.map_or(Index(self.first_index.0 - 1), |last| last.index)
    }

    pub(crate) fn remember(&mut self, header: BatchHeader, segment: &Arc<Segment>, position: u64) {
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((header, segment.clone(), position));
    }

    fn log_start(&self) -> Offset {
        self.segments.front().map_or(self.log_end, |segment| segment.header.base_offset)
    }

    /// The segment that holds `index`, if it is held.
    fn segment_of_index(&self, index: Index) -> Option<&Arc<Segment>> {
        let count = self.segments.partition_point(|segment| segment.header.base_index <= index);
        self.segments.get(count.checked_sub(1)?)
    }

    fn segment_of_offset(&self, offset: Offset) -> Option<&Arc<Segment>> {
        let count = self.segments.partition_point(|segment| segment.header.base_offset <= offset);
        self.segments.get(count.checked_sub(1)?)
    }

    /// Whether `position` of `segment` is so near to the log end that it is surely in memory.
    fn is_hot(&self, segment: &Arc<Segment>, position: u64) -> bool {
        let behind = self.segments.iter().rev().take_while(|other| !Arc::ptr_eq(other, segment));
        let bytes: u64 = behind.map(|other| other.published()).sum();
        bytes + segment.published().saturating_sub(position) <= HOT_BYTES
    }
}

/// Reads one log. Cheap to clone.
#[derive(Clone)]
pub struct LogReader {
    shared: Arc<Shared>,
}

impl LogReader {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Where the log begins and ends now.
    pub fn bounds(&self) -> LogBounds {
        let flushed_index = self.shared.flush.flushed_index();
        let ends = self.shared.ends();
        LogBounds {
            first_index: ends.first_index,
            last_index: ends.last_index(),
            log_start: ends.log_start(),
            log_end: ends.log_end,
            flushed_index: flushed_index.min(ends.last_index()),
            bytes: ends.segments.iter().map(|segment| segment.file.len()).sum(),
            last: ends.last,
        }
    }

    /// Bytes of data that can be appended without making a file: below this nothing can fail for
    /// want of space.
    pub fn room(&self) -> u64 {
        self.shared.ends().room
    }

    /// Whether the next segment is being made. Its space may be taken already and [`Self::room`] not
    /// know it yet; an append that needs the segment waits for it.
    pub fn is_growing(&self) -> bool {
        self.shared.ends().growing
    }

    /// The segments that no batch is appended to any more, oldest first.
    pub fn sealed_segments(&self) -> Vec<SegmentView> {
        let ends = self.shared.ends();
        let pairs = ends.segments.iter().zip(ends.segments.iter().skip(1));
        pairs
            .map(|(segment, next)| SegmentView {
                first_index: segment.header.base_index,
                last_index: Index(next.header.base_index.0 - 1),
                first_offset: segment.header.base_offset,
                end_offset: next.header.base_offset,
                bytes: segment.file.len(),
                last_log_time_ms: next.header.created_ms,
            })
            .collect()
    }

    /// The header of the first batch of `index`.
    pub fn header_at(&self, index: Index) -> Option<BatchHeader> {
        self.headers(index, 1).ok()?.into_iter().next().filter(|header| header.index == index)
    }

    /// Headers of up to `count_max` batches from the first of `index` on, local ones left out.
    pub fn headers(&self, index: Index, count_max: usize) -> Result<Vec<BatchHeader>, ReadError> {
        if let Some(found) = self.recent_headers(index, count_max) {
            return Ok(found);
        }
        let Some((mut segment, mut position)) = self.place_of(From::Index(index))? else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        while found.len() < count_max {
            if position >= segment.published() {
                match self.next_segment(&segment) {
                    Some(next) => (segment, position) = (next, SEGMENT_HEADER_BYTES),
                    None => break,
                }
                continue;
            }
            let header = segment.header_at(position)?;
            position += header.stored_len() as u64;
            if header.index >= index && !header.batch_type.is_local() {
                found.push(header);
            }
        }
        Ok(found)
    }

    fn recent_headers(&self, index: Index, count_max: usize) -> Option<Vec<BatchHeader>> {
        let ends = self.shared.ends();
        // The first kept header may be in the middle of its index.
        ends.recent.front().filter(|(oldest, ..)| oldest.index < index)?;
        let from = ends.recent.partition_point(|(header, ..)| header.index < index);
        Some(ends.recent.iter().skip(from).take(count_max).map(|(header, ..)| *header).collect())
    }

    /// Batches from the first of `index` on: at least one, then until `bytes_max`, all of one
    /// segment. Empty behind the last index.
    pub fn read_from_index(&self, index: Index, bytes_max: usize) -> Result<Read, ReadError> {
        self.read(From::Index(index), bytes_max)
    }

    /// Batches from the one that holds `offset` on: at least one, then until `bytes_max`, all of
    /// one segment. Empty at and behind the log end.
    pub fn read_from_offset(&self, offset: Offset, bytes_max: usize) -> Result<Read, ReadError> {
        self.read(From::Offset(offset), bytes_max)
    }

    fn read(&self, from: From, bytes_max: usize) -> Result<Read, ReadError> {
        let Some((segment, position)) = self.place_of(from)? else {
            return Ok(Read::Hot(Vec::new()));
        };
        let hot = self.shared.ends().is_hot(&segment, position);
        let plan = Plan { from, bytes_max, verify: !hot };
        let read = ColdRead { segment, position, plan };
        if hot { read.run().map(Read::Hot) } else { Ok(Read::Cold(read)) }
    }

    /// A segment and a position in it at or before what `from` names; none behind the log end.
    fn place_of(&self, from: From) -> Result<Option<(Arc<Segment>, u64)>, ReadError> {
        let ends = self.shared.ends();
        let (found, at_end, range) = match from {
            From::Index(index) => (
                ends.segment_of_index(index),
                index > ends.last_index(),
                (ends.first_index.0, ends.last_index().0 + 1),
            ),
            From::Offset(offset) => (
                ends.segment_of_offset(offset),
                offset >= ends.log_end,
                (ends.log_start().0, ends.log_end.0),
            ),
        };
        if at_end {
            return Ok(None);
        }
        let (first, end) = range;
        let segment = found.ok_or(ReadError::OutOfRange { first, end })?.clone();
        let row = match from {
            From::Index(index) => segment.index().before_index(index),
            From::Offset(offset) => segment.index().before_offset(offset),
        };
        let position = row.map_or(SEGMENT_HEADER_BYTES, |row| row.position);
        Ok(Some((segment, position)))
    }

    fn next_segment(&self, segment: &Arc<Segment>) -> Option<Arc<Segment>> {
        next_in(&self.shared.ends(), segment)
    }

    /// The offset of the first batch whose log time is at or after `log_time_ms`; the log end
    /// when there is none.
    pub fn offset_for_time(&self, log_time_ms: u64) -> Result<Offset, ReadError> {
        let (mut segment, log_end) = {
            let ends = self.shared.ends();
            let newer = ends.segments.partition_point(|s| s.header.created_ms < log_time_ms);
            let segment = ends.segments.get(newer.saturating_sub(1)).cloned();
            (segment, ends.log_end)
        };
        while let Some(current) = segment {
            let row = current.index().before_time(log_time_ms);
            let mut position = row.map_or(SEGMENT_HEADER_BYTES, |row| row.position);
            while position < current.published() {
                let header = current.header_at(position)?;
                position += header.stored_len() as u64;
                if header.batch_type == BatchType::Data && header.log_time_ms >= log_time_ms {
                    return Ok(header.base_offset);
                }
            }
            segment = self.next_segment(&current);
        }
        Ok(log_end)
    }
}

fn next_in(ends: &Ends, segment: &Arc<Segment>) -> Option<Arc<Segment>> {
    let next = ends.segments.iter().find(|s| s.header.sequence > segment.header.sequence);
    next.cloned()
}

impl ColdRead {
    /// Runs on `executor` and hands the outcome to `done`.
    pub fn submit(
        self,
        executor: &Arc<dyn Executor>,
        done: impl FnOnce(Result<Vec<BatchSlice>, ReadError>) + Send + 'static,
    ) {
        executor.submit(Lane::Read, Box::new(move || done(self.run())));
    }

    /// Reads here; may wait for the device.
    pub fn run(self) -> Result<Vec<BatchSlice>, ReadError> {
        let (mut position, mut taken, mut found) = (self.position, 0, Vec::new());
        let end = self.segment.published();
        if self.plan.verify {
            let ahead =
                (position + self.plan.bytes_max as u64 + BATCH_HEADER_BYTES as u64).min(end);
            self.prepare(position, ahead)?;
        }
        while position < end && (found.is_empty() || taken < self.plan.bytes_max) {
            let header = self.segment.header_at(position)?;
            let at = position;
            position += header.stored_len() as u64;
            let wanted = match self.plan.from {
                From::Index(index) => header.index >= index,
                From::Offset(offset) => header.end_offset() > offset,
            };
            if !wanted || header.batch_type.is_local() {
                continue;
            }
            if !found.is_empty() && taken + header.stored_len() > self.plan.bytes_max {
                break;
            }
            taken += header.stored_len();
            found.push(self.slice(header, at)?);
        }
        Ok(found)
    }

    fn prepare(&self, start: u64, end: u64) -> Result<(), ReadError> {
        let failed = |source| ReadError::Device { file: self.segment.path.clone(), source };
        self.segment.file.prepare(start..end).map_err(failed)
    }

    fn slice(&self, header: BatchHeader, position: u64) -> Result<BatchSlice, ReadError> {
        let end = position + header.stored_len() as u64;
        if self.plan.verify {
            self.prepare(position, end)?;
        }
        let failed = |source| ReadError::Device { file: self.segment.path.clone(), source };
        let bytes = self.segment.file.bytes(position..end).map_err(failed)?;
        if self.plan.verify {
            let body = &bytes[BATCH_HEADER_BYTES..header.wire_len()];
            header
                .check_body(body)
                .map_err(|error| ReadError::damaged(&self.segment.path, position, error))?;
        }
        Ok(BatchSlice { header, bytes, salt: self.segment.header.salt })
    }
}
