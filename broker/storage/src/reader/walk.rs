//! Walks over the batches of a segment, and reads them.
//!
//! Owns: the step from one batch to the next, past what is damaged.
//! Never: hands out bytes that were not verified.

use super::shared::Shared;
use super::{BatchSlice, From};
use crate::damage::DamagedRange;
use crate::disk::is_unreadable;
use crate::error::ReadError;
use crate::limits::SEGMENT_HEADER_BYTES;
use crate::planted::{Bug, is_planted};
use crate::scan::Cursor;
use crate::segment::Segment;
use std::io;
use std::sync::Arc;
use weir_protocol::batch::BatchHeader;
use weir_protocol::limits::BATCH_HEADER_BYTES;
use weir_protocol::types::Index;

/// What a step finds.
pub(crate) enum Found {
    Batch(u64, BatchHeader),
    Lost(DamagedRange),
}

/// A walk over one segment, up to its published end.
pub(crate) struct Walk<'a> {
    shared: &'a Shared,
    segment: &'a Arc<Segment>,
    position: u64,
    /// What holds in front of the position, but for the chain.
    cursor: Cursor,
    /// Something is lost in front of it: the next batch may go on with its last index.
    behind_loss: bool,
    /// Whether to look for what damage holds, which takes its time; without, it is
    /// [`io::ErrorKind::WouldBlock`].
    may_wait: bool,
}

impl<'a> Walk<'a> {
    /// From the first batch of a segment.
    pub(crate) fn from_start(shared: &'a Shared, segment: &'a Arc<Segment>) -> Self {
        let cursor = Cursor::before(&segment.header);
        Self::at(shared, segment, SEGMENT_HEADER_BYTES, cursor, false)
    }

    /// From a place that another walk reached.
    pub(crate) fn at(
        shared: &'a Shared,
        segment: &'a Arc<Segment>,
        position: u64,
        cursor: Cursor,
        behind_loss: bool,
    ) -> Self {
        Self { shared, segment, position, cursor, behind_loss, may_wait: true }
    }

    /// From a batch that is surely not behind what is wanted. The segment's index is in memory.
    pub(crate) fn towards(shared: &'a Shared, segment: &'a Arc<Segment>, from: From) -> Self {
        let mut walk = Self::from_start(shared, segment);
        let rows = segment.rows();
        let row = rows.as_ref().and_then(|rows| match from {
            From::Index(index) => rows.before_index(index),
            From::Offset(offset) => rows.before_offset(offset),
            From::Time(time_ms) => rows.before_time(time_ms),
        });
        if let Some(row) = row {
            walk.position = row.position;
            walk.cursor.last_index = Index(row.index.0 - 1);
            walk.cursor.log_end = row.offset;
        }
        drop(rows);
        walk
    }

    /// Where the next step is taken.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// What holds in front of the next step.
    pub(crate) fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Whether something is lost right in front of the next step.
    pub(crate) fn is_behind_loss(&self) -> bool {
        self.behind_loss
    }

    /// The next batch, or what is lost of them; none at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Found>> {
        let position = self.position;
        let known = self.shared.damage.at_position(self.segment.header.sequence, position);
        if let Some(range) = known.filter(|range| self.lies_ahead(range)) {
            self.pass_lost(&range);
            return Ok(Some(Found::Lost(range)));
        }
        if position >= self.segment.published() {
            return Ok(None);
        }
        match self.segment.header_at(position)? {
            Ok(header) if self.is_due(&header) => {
                self.behind_loss = false;
                self.position += header.stored_len() as u64;
                self.cursor.pass(&header);
                Ok(Some(Found::Batch(position, header)))
            }
            // Damaged, or whole and in the wrong place.
            Ok(_) | Err(_) => Ok(self.lose(position, self.cursor)?.map(Found::Lost)),
        }
    }

    /// Finds out what is lost from `position` on, in front of which `before` holds, and goes on
    /// behind it. How long a damaged batch says it is counts for nothing.
    fn lose(&mut self, position: u64, before: Cursor) -> io::Result<Option<DamagedRange>> {
        if !self.may_wait {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let range = self.shared.discover(self.segment, position, &before)?;
        if let Some(range) = &range {
            self.cursor = before;
            self.pass_lost(range);
        }
        Ok(range)
    }

    fn is_due(&self, header: &BatchHeader) -> bool {
        let Cursor { last_index, log_end, .. } = self.cursor;
        let goes_on = header.index == last_index && header.base_offset == log_end;
        self.cursor.is_at(header) || (self.behind_loss && goes_on)
    }

    /// A range without bytes is met at the position of the batch behind it: once.
    fn lies_ahead(&self, range: &DamagedRange) -> bool {
        range.positions.end > self.position || range.last_index >= self.cursor.next_index()
    }

    fn pass_lost(&mut self, range: &DamagedRange) {
        self.position = range.positions.end;
        self.cursor.last_index = self.cursor.last_index.max(range.last_index);
        self.cursor.open_index = false;
        self.cursor.log_end = range.end_offset;
        self.behind_loss = true;
    }
}

/// A read that may wait for the device.
pub struct ColdRead {
    pub(super) shared: Arc<Shared>,
    pub(super) segment: Arc<Segment>,
    pub(super) from: From,
    pub(super) bytes_max: usize,
}

impl ColdRead {
    /// Reads here; may wait for the device.
    pub fn run(mut self) -> Result<Vec<BatchSlice>, ReadError> {
        loop {
            let found = self.run_segment(true)?;
            // Everything that was wanted of it may be lost.
            let next = self.shared.ends().next_segment(&self.segment);
            match next.filter(|_| found.is_empty()) {
                Some(next) => self.segment = next,
                None => return Ok(found),
            }
        }
    }

    /// Reads what is in memory; none where that is not all that it takes.
    pub(super) fn at_once(&self) -> Result<Option<Vec<BatchSlice>>, ReadError> {
        match self.run_segment(false) {
            Ok(found) => Ok(Some(found).filter(|found| !found.is_empty())),
            Err(ReadError::Device { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn run_segment(&self, may_wait: bool) -> Result<Vec<BatchSlice>, ReadError> {
        let device = |source| ReadError::Device { file: self.segment.path.clone(), source };
        if may_wait {
            self.shared.load_index(&self.segment).map_err(device)?;
        }
        let mut walk = Walk::towards(&self.shared, &self.segment, self.from);
        walk.may_wait = may_wait;
        if may_wait {
            let position = walk.position();
            let wanted = self.bytes_max.saturating_add(BATCH_HEADER_BYTES) as u64;
            let ahead = position.saturating_add(wanted).min(self.segment.published());
            // What cannot be read shows where it is needed.
            self.prepare(position, ahead).map_err(device)?;
        }
        let (mut taken, mut found) = (0, Vec::new());
        while found.is_empty() || taken < self.bytes_max {
            let before = walk.cursor();
            let lost = match walk.next().map_err(device)? {
                None => break,
                Some(Found::Lost(range)) => range,
                Some(Found::Batch(position, header)) => {
                    if !self.from.wants(&header) || header.batch_type.is_local() {
                        continue;
                    }
                    if !found.is_empty() && taken + header.stored_len() > self.bytes_max {
                        break;
                    }
                    if let Some(slice) = self.slice(header, position, may_wait).map_err(device)? {
                        taken += header.stored_len();
                        found.push(slice);
                        continue;
                    }
                    match walk.lose(position, before).map_err(device)? {
                        Some(range) => range,
                        None => break,
                    }
                }
            };
            if !lost.accepted && !self.from.is_behind(&lost) {
                return self.up_to(lost, found);
            }
        }
        Ok(found)
    }

    /// What was found in front of a damaged range. Who reads by index gets whole ones.
    fn up_to(
        &self,
        range: DamagedRange,
        mut found: Vec<BatchSlice>,
    ) -> Result<Vec<BatchSlice>, ReadError> {
        if matches!(self.from, From::Index(_)) {
            found.retain(|slice| slice.header.index < range.first_index);
        }
        if found.is_empty() { Err(ReadError::Damaged(range)) } else { Ok(found) }
    }

    /// Returns whether the device can read all of a range.
    fn prepare(&self, start: u64, end: u64) -> io::Result<bool> {
        match self.segment.file.prepare(start..end.max(start)) {
            Err(error) if is_unreadable(&error) => Ok(false),
            prepared => prepared.map(|()| true),
        }
    }

    /// The bytes of a batch, verified; none where they are not what was written.
    fn slice(
        &self,
        header: BatchHeader,
        position: u64,
        may_wait: bool,
    ) -> io::Result<Option<BatchSlice>> {
        let end = position + header.stored_len() as u64;
        if may_wait && !self.prepare(position, end)? {
            return Ok(None);
        }
        let bytes = self.segment.file.bytes(position..end)?;
        let checked = header.check_body(&bytes[BATCH_HEADER_BYTES..header.wire_len()]);
        let whole = checked.is_ok() || is_planted(Bug::ReadUnverified);
        Ok(whole.then(|| BatchSlice { header, bytes, salt: self.segment.header.salt }))
    }
}

impl std::fmt::Debug for ColdRead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ColdRead")
            .field("segment", &self.segment.path)
            .field("from", &self.from)
            .finish_non_exhaustive()
    }
}
