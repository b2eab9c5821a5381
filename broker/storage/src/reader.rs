//! Reads a log while it is appended to.
//!
//! Owns: what a reader may ask for, and which read is sure not to wait.
//! Never: shows a byte behind the published end; takes a lock over I/O.
//! Invariants: a slice handed out is never stored to again; bytes are verified before they are
//! handed out; what is damaged is refused by its exact range, and what lies beside it is served.

mod shared;
mod walk;

pub(crate) use shared::{Ends, RECENT_MAX, Shared};
pub use walk::ColdRead;
pub(crate) use walk::{Found, Walk};

use crate::damage::DamagedRange;
use crate::error::ReadError;
use crate::executor::{Executor, Lane};
use crate::limits::SEGMENT_HEADER_BYTES;
use crate::log::LogStart;
use crate::segment::Segment;
use bytes::Bytes;
use std::sync::Arc;
use weir_protocol::batch::{BatchHeader, BatchType};
use weir_protocol::types::{Index, Offset, Term};

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
    /// Log time of the last batch, milliseconds since the epoch, also where it is not held any more.
    pub log_time_ms: u64,
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

/// Where a read begins.
#[derive(Debug, Clone, Copy)]
pub(crate) enum From {
    Index(Index),
    Offset(Offset),
    Time(u64),
}

impl From {
    /// Whether a batch, or what stands behind it, is wanted.
    fn wants(&self, header: &BatchHeader) -> bool {
        match *self {
            Self::Index(index) => header.index >= index,
            Self::Offset(offset) => header.end_offset() > offset,
            Self::Time(time_ms) => header.log_time_ms >= time_ms,
        }
    }

    /// Whether everything that is wanted lies behind a range.
    fn is_behind(&self, range: &DamagedRange) -> bool {
        match *self {
            Self::Index(index) => range.last_index < index,
            Self::Offset(offset) => range.end_offset <= offset,
            // Nobody knows the time of what is lost: the next batch that is there is served.
            Self::Time(_) => true,
        }
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

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Where the log begins and ends now.
    pub fn bounds(&self) -> LogBounds {
        let flushed_index = self.shared.flush.flushed_index();
        let ends = self.shared.ends();
        LogBounds {
            first_index: ends.first_index,
            last_index: ends.last_index,
            log_start: ends.first_offset,
            log_end: ends.log_end,
            flushed_index: flushed_index.min(ends.last_index),
            bytes: ends.segments.iter().map(|segment| segment.file.len()).sum(),
            last: ends.last,
            log_time_ms: ends.log_time_ms,
        }
    }

    /// About how many bytes the batches behind `index` take; all of them where the log begins later.
    /// At most a segment too much where its sparse index is only on the device, which is never waited
    /// for.
    pub fn bytes_behind(&self, index: Index) -> u64 {
        let held = |segment: &Arc<Segment>| segment.published() - SEGMENT_HEADER_BYTES;
        let (segment, recent, later) = {
            let ends = self.shared.ends();
            if index >= ends.last_index {
                return 0;
            }
            let found = ends.segment_of_index(Index(index.0 + 1)).or(ends.segments.front());
            let Some(segment) = found.cloned() else { return 0 };
            let newer = |other: &&Arc<Segment>| other.header.sequence > segment.header.sequence;
            let later: u64 = ends.segments.iter().filter(newer).map(held).sum();
            // Where the oldest header that is kept is behind the index, others may be missing.
            let complete = ends.recent.front().is_some_and(|(oldest, ..)| oldest.index <= index);
            let at = ends.recent.partition_point(|(header, ..)| header.index <= index);
            let first =
                ends.recent.get(at).filter(|(_, of, _)| complete && Arc::ptr_eq(of, &segment));
            (segment.clone(), first.map(|(.., position)| *position), later)
        };
        let row = || segment.rows().as_ref().and_then(|rows| rows.before_index(Index(index.0 + 1)));
        let position = recent.or_else(|| row().map(|row| row.position));
        let position = position.unwrap_or(SEGMENT_HEADER_BYTES);
        later + segment.published().saturating_sub(position)
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

    /// What is known to be damaged, by index.
    pub fn damaged_ranges(&self) -> Vec<DamagedRange> {
        self.shared.damage.all()
    }

    /// First index of each term that the log holds, ascending.
    pub fn terms(&self) -> Vec<(Index, Term)> {
        let mut terms: Vec<(Index, Term)> = Vec::new();
        for segment in &self.shared.ends().segments {
            for (first, term) in &segment.marks().terms {
                if terms.last().is_none_or(|(_, last)| last != term) {
                    terms.push((*first, *term));
                }
            }
        }
        terms
    }

    /// Indexes of the memberships that the log holds, ascending.
    pub fn config_indexes(&self) -> Vec<Index> {
        let ends = self.shared.ends();
        let of = |segment: &Arc<Segment>| segment.marks().configs.clone();
        ends.segments.iter().flat_map(of).collect()
    }

    /// What the log continues behind `index`; none where it does not reach that far, or where the
    /// batch that would say it is gone. May wait for the device.
    pub fn start_behind(&self, index: Index) -> Result<Option<LogStart>, ReadError> {
        let next = Index(index.0 + 1);
        let begins = |segment: &&Arc<Segment>| segment.header.base_index == next;
        let header = self.shared.ends().segments.iter().find(begins).map(|s| s.header.clone());
        if let Some(header) = header {
            return Ok(Some(LogStart {
                index,
                term: header.prev_term,
                chain: header.prev_chain,
                log_end: header.base_offset,
                log_time_ms: header.created_ms,
            }));
        }
        if index < self.bounds().first_index {
            return Ok(None);
        }
        let mut count_max = 1;
        loop {
            let mut found = self.headers(index, count_max)?;
            let whole = found.len() < count_max;
            found.retain(|header| header.index == index);
            let Some(last) = found.last() else { return Ok(None) };
            if whole || last.is_last_of_index() {
                return Ok(last.is_last_of_index().then(|| LogStart::behind(last)));
            }
            count_max *= 2;
        }
    }

    /// The header of the first batch of `index`.
    pub fn header_at(&self, index: Index) -> Option<BatchHeader> {
        self.headers(index, 1).ok()?.into_iter().next().filter(|header| header.index == index)
    }

    /// Headers of up to `count_max` batches from the first of `index` on, local ones left out, and
    /// those whose loss was accepted.
    pub fn headers(&self, index: Index, count_max: usize) -> Result<Vec<BatchHeader>, ReadError> {
        if let Some(found) = self.recent_headers(index, count_max) {
            return Ok(found);
        }
        self.check_index(index)?;
        let from = From::Index(index);
        let mut segment = self.segment_of(from)?;
        let mut found: Vec<BatchHeader> = Vec::new();
        while let Some(here) = segment {
            let device = |source| ReadError::Device { file: here.path.clone(), source };
            self.shared.load_index(&here).map_err(device)?;
            let mut walk = Walk::towards(&self.shared, &here, from);
            while found.len() < count_max
                && let Some(step) = walk.next().map_err(device)?
            {
                match step {
                    Found::Batch(_, header) => {
                        if header.index >= index && !header.batch_type.is_local() {
                            found.push(header);
                        }
                    }
                    Found::Lost(range) if range.accepted || from.is_behind(&range) => {}
                    Found::Lost(range) if found.is_empty() => {
                        return Err(ReadError::Damaged(range));
                    }
                    Found::Lost(_) => return Ok(found),
                }
            }
            let next = self.shared.ends().next_segment(&here);
            segment = next.filter(|_| found.len() < count_max);
            if let Some(next) = &segment
                && self.check_index(Index(next.header.base_index.0 - 1)).is_err()
            {
                // A segment in between is lost.
                return Ok(found);
            }
        }
        Ok(found)
    }

    /// An error where an index lies in what is lost and not accepted.
    fn check_index(&self, index: Index) -> Result<(), ReadError> {
        match self.shared.damage.at_index(index) {
            Some(range) if !range.accepted => Err(ReadError::Damaged(range)),
            _ => Ok(()),
        }
    }

    fn recent_headers(&self, index: Index, count_max: usize) -> Option<Vec<BatchHeader>> {
        let ends = self.shared.ends();
        // The first kept header may be in the middle of its index.
        let (oldest, ..) = ends.recent.front().filter(|(oldest, ..)| oldest.index < index)?;
        if self.shared.damage.reaches_behind(oldest.index) {
            return None;
        }
        let from = ends.recent.partition_point(|(header, ..)| header.index < index);
        Some(ends.recent.iter().skip(from).take(count_max).map(|(header, ..)| *header).collect())
    }

    /// Batches from the first of `index` on: at least one, then until `bytes_max`, all of one
    /// segment. Empty behind the last index.
    pub fn read_from_index(&self, index: Index, bytes_max: usize) -> Result<Read, ReadError> {
        self.check_index(index)?;
        self.read(From::Index(index), bytes_max)
    }

    /// Batches from the one that holds `offset` on: at least one, then until `bytes_max`, all of
    /// one segment. Empty at and behind the log end.
    pub fn read_from_offset(&self, offset: Offset, bytes_max: usize) -> Result<Read, ReadError> {
        let offset = match self.shared.damage.at_offset(offset) {
            Some(range) if range.accepted => range.end_offset,
            Some(range) => return Err(ReadError::Damaged(range)),
            None => offset,
        };
        self.read(From::Offset(offset), bytes_max)
    }

    fn read(&self, from: From, bytes_max: usize) -> Result<Read, ReadError> {
        let Some(segment) = self.segment_of(from)? else {
            return Ok(Read::Hot(Vec::new()));
        };
        let loaded = segment.rows().is_some();
        let position = Walk::towards(&self.shared, &segment, from).position();
        let hot = loaded && self.shared.ends().is_hot(&segment, position);
        let read = ColdRead { shared: self.shared.clone(), segment, from, bytes_max };
        let found = if hot { read.at_once()? } else { None };
        Ok(found.map_or(Read::Cold(read), Read::Hot))
    }

    /// The segment that holds what `from` names; none behind the log end.
    fn segment_of(&self, from: From) -> Result<Option<Arc<Segment>>, ReadError> {
        let ends = self.shared.ends();
        // In front of the first segment that is there, others may be lost.
        let first_there = ends.segments.front();
        let (found, at_end, first, end) = match from {
            From::Index(index) => (
                ends.segment_of_index(index).or(first_there).filter(|_| index >= ends.first_index),
                index > ends.last_index,
                ends.first_index.0,
                ends.last_index.0 + 1,
            ),
            From::Offset(offset) => (
                ends.segment_of_offset(offset)
                    .or(first_there)
                    .filter(|_| offset >= ends.first_offset),
                offset >= ends.log_end,
                ends.first_offset.0,
                ends.log_end.0,
            ),
            From::Time(time_ms) => {
                let newer = ends.segments.partition_point(|s| s.header.created_ms < time_ms);
                return Ok(ends.segments.get(newer.saturating_sub(1)).cloned());
            }
        };
        if at_end {
            return Ok(None);
        }
        found.cloned().map(Some).ok_or(ReadError::OutOfRange { first, end })
    }

    /// The offset of the first batch whose log time is at or after `log_time_ms`; the log end
    /// when there is none.
    pub fn offset_for_time(&self, log_time_ms: u64) -> Result<Offset, ReadError> {
        let log_end = self.shared.ends().log_end;
        let from = From::Time(log_time_ms);
        let mut segment = self.segment_of(from)?;
        while let Some(here) = segment {
            let device = |source| ReadError::Device { file: here.path.clone(), source };
            self.shared.load_index(&here).map_err(device)?;
            let mut walk = Walk::towards(&self.shared, &here, from);
            while let Some(step) = walk.next().map_err(device)? {
                if let Found::Batch(_, header) = step
                    && header.batch_type == BatchType::Data
                    && header.log_time_ms >= log_time_ms
                {
                    return Ok(header.base_offset);
                }
            }
            segment = self.shared.ends().next_segment(&here);
        }
        Ok(log_end)
    }
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
}
