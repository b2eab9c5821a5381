//! Reads one segment of a log that is examined.
//!
//! Owns: which of its batches count, where it ends, and what of it is lost.
//! Never: writes; decides by itself what the place means at which reading stops: [`decide`] does.

use super::{ExaminedSegment, Next, Reading};
use crate::disk::DiskFile;
use crate::error::{Corruption, CorruptionKind};
use crate::index::{Marks, SparseIndex};
use crate::limits::{NUMBERS_END, SEGMENT_HEADER_BYTES};
use crate::meta::Mark;
use crate::reader::RECENT_MAX;
use crate::recovery::decision::{Decision, Rest, Stop, decide};
use crate::recovery::files::File;
use crate::recovery::lost::{Behind, next_that_follows};
use crate::scan::{Batches, Cursor, Edge, Source, Whole, flushed_below, is_touched, last_byte_in};
use crate::segment::SegmentHeader;
use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use weir_protocol::batch::{BatchHeader, BatchType};
use weir_protocol::types::{Index, Offset};

impl Reading<'_> {
    /// Reads every batch of a segment.
    pub(super) fn read(
        &mut self,
        file: File,
        cut: Option<u64>,
        next: &Next,
    ) -> io::Result<ExaminedSegment> {
        let File { header, path, file } = file;
        let mut segment = ExaminedSegment {
            end: SEGMENT_HEADER_BYTES,
            sealed: false,
            rows: Some(SparseIndex::default()),
            marks: Marks::default(),
            cursor: Cursor::before(&header),
            recent: VecDeque::new(),
            header,
            path,
            file: file.clone(),
        };
        let limit = cut.unwrap_or(u64::MAX).min(file.len());
        let unreadable = Cell::new(false);
        let source = Source::telling(&*file, &unreadable);
        let batches = Batches { file: source, salt: segment.header.salt, end: limit };
        let is_last = matches!(next, Next::Nothing);
        let mark = self.mark.filter(|mark| is_last && vouches_for(mark, &segment.header, &*file));
        let mut flushed = mark.map_or(SEGMENT_HEADER_BYTES, |mark| mark.position);
        let shortened = is_last && file.len() < segment.header.capacity;
        let around = Around { cut, next, mark, unreadable: &unreadable };
        while !(segment.sealed && cut.is_none()) {
            let position = segment.end;
            // A file that lost its end, or its watermark's place, may end where a batch does.
            let more = shortened || mark.is_some_and(|mark| mark.position > position);
            if position >= limit && !more {
                break;
            }
            let (_, edge) = around.ahead_of(position);
            unreadable.set(false);
            match batches.at(position, (&self.examined.cursor, edge))? {
                Ok(Whole { header: batch, zero_padded, .. }) => {
                    let unflushed_max = u64::from(segment.header.unflushed_max);
                    if !zero_padded && is_last {
                        let body_end = position + batch.wire_len() as u64;
                        let end = position + batch.stored_len() as u64;
                        self.examined.unclean_padding.push(body_end..end);
                    }
                    flushed = flushed.max(flushed_below(&batch, position, unflushed_max));
                    self.examined.batches_read += u64::from(!batch.batch_type.is_local());
                    self.accept(&mut segment, &batch);
                }
                Err(kind) => {
                    if !self.stopped(&mut segment, &batches, &around, (kind, flushed))? {
                        break;
                    }
                }
            }
        }
        if cut.is_some_and(|cut| cut > segment.end) {
            // The file ends before its successor says so.
            self.lose_rest(&mut segment, cut, next);
        }
        if is_last {
            // A file that lost its end may end before its log does.
            let end = segment.end.min(file.len());
            self.examined.unproven = flushed.min(end)..end;
        }
        segment.sealed |= !matches!(next, Next::Nothing);
        segment.cursor = self.examined.cursor;
        Ok(segment)
    }

    fn accept(&mut self, segment: &mut ExaminedSegment, batch: &BatchHeader) {
        let position = segment.end;
        segment.end += batch.stored_len() as u64;
        segment.sealed = batch.batch_type == BatchType::Seal;
        self.examined.cursor.pass(batch);
        if batch.batch_type.is_local() {
            return;
        }
        segment.marks.note(batch);
        if let Some(rows) = &mut segment.rows {
            rows.note(position, batch);
        }
        if segment.recent.len() == RECENT_MAX {
            segment.recent.pop_front();
        }
        segment.recent.push_back((*batch, position));
        self.examined.last = Some(*batch);
        self.unread_last = None;
    }

    /// Decides what it means that no batch can be accepted at the segment's end. Returns whether
    /// reading goes on behind what is lost.
    fn stopped(
        &mut self,
        segment: &mut ExaminedSegment,
        batches: &Batches<'_>,
        around: &Around<'_>,
        (kind, flushed): (CorruptionKind, u64),
    ) -> io::Result<bool> {
        let position = segment.end;
        let cursor = self.examined.cursor;
        let Around { cut, next, mark, unreadable } = *around;
        let mark = mark.filter(|mark| mark.position > position);
        let is_last = matches!(next, Next::Nothing);
        let (rest, torn_bytes, proven) = match is_last {
            true => rest_of(segment, batches, position)?,
            false => (Rest::Written, 0, 0),
        };
        let shortened = segment.file.len() < segment.header.capacity;
        let resumes = match rest {
            Rest::Zeros | Rest::Stale => None,
            Rest::Written => {
                let (end, edge) = around.ahead_of(position);
                let batches = Batches { end: batches.end.min(end), ..*batches };
                next_that_follows(&batches, position, (&cursor, edge))?
            }
        };
        let stop = Stop {
            position,
            ends_at: cut.or((!is_last).then_some(u64::MAX)),
            flushed: flushed.max(proven),
            out_of_place: kind == CorruptionKind::OutOfPlace,
            shortened,
            unreadable: unreadable.get(),
            resumes: resumes.is_some() || mark.is_some(),
            rest,
        };
        match (decide(&stop), resumes) {
            (Decision::End, _) => Ok(false),
            (Decision::Torn, _) => {
                self.examined.torn_bytes = torn_bytes;
                Ok(false)
            }
            (Decision::Damaged, Some((found, batch))) => {
                self.lose(segment.header.sequence, position..found, Behind::batch(&batch));
                self.examined.cursor.jump_to(&batch);
                segment.end = found;
                self.accept(segment, &batch);
                Ok(true)
            }
            (Decision::Damaged, None) => match mark {
                Some(mark) => Ok(self.lose_up_to(segment, &mark)),
                None => {
                    self.lose_rest(segment, cut, next);
                    Ok(false)
                }
            },
            (Decision::DamagedTail, _) => {
                let file = segment.path.clone();
                let kind = match (shortened, stop.unreadable) {
                    (true, _) => CorruptionKind::Shortened,
                    (false, true) => CorruptionKind::Unreadable,
                    (false, false) => kind,
                };
                self.examined.lost_tail = Some(Corruption { file, position, kind });
                self.examined.torn_bytes = torn_bytes.max(1);
                Ok(false)
            }
        }
    }

    /// Everything from here to the watermark is lost. Returns whether more may stand behind it.
    fn lose_up_to(&mut self, segment: &mut ExaminedSegment, mark: &Mark) -> bool {
        let behind = Behind::edge(Edge::behind(&mark.cursor));
        self.lose(segment.header.sequence, segment.end..mark.position, behind);
        self.examined.cursor = mark.cursor;
        segment.end = mark.position;
        // Of a file that ends before it, nothing more is used.
        segment.sealed = mark.position > segment.file.len();
        !segment.sealed
    }

    /// Everything from here to the end of the segment is lost; its successor tells what follows.
    fn lose_rest(&mut self, segment: &mut ExaminedSegment, cut: Option<u64>, next: &Next) {
        let end = cut.unwrap_or(segment.end).min(segment.file.len()).max(segment.end);
        if let Next::Segment(next) = next {
            let behind = Behind::edge(Edge::before(next));
            self.lose(segment.header.sequence, segment.end..end, behind);
            self.examined.cursor = Cursor::before(next);
        }
        segment.end = end;
    }
}

/// Whether a watermark is of this segment, and lies where one of it may.
fn vouches_for(mark: &Mark, header: &SegmentHeader, file: &dyn DiskFile) -> bool {
    let begins = Cursor::before(header);
    let Cursor { last_index, log_end, .. } = mark.cursor;
    mark.sequence == header.sequence
        && mark.position <= header.capacity.max(file.len())
        && (begins.last_index..Index(NUMBERS_END)).contains(&last_index)
        && (begins.log_end..Offset(NUMBERS_END)).contains(&log_end)
}

/// What is known of the end of a segment from elsewhere.
#[derive(Clone, Copy)]
struct Around<'a> {
    cut: Option<u64>,
    next: &'a Next,
    /// The log's watermark, where it is of this segment.
    mark: Option<Mark>,
    /// Whether some of what was looked at from here on cannot be read.
    unreadable: &'a Cell<bool>,
}

impl Around<'_> {
    /// The first place behind `position` of which something is known, and what stands behind it.
    fn ahead_of(&self, position: u64) -> (u64, Edge) {
        match (self.mark, self.next) {
            (Some(mark), _) if mark.position > position => {
                (mark.position, Edge::behind(&mark.cursor))
            }
            (_, Next::Segment(next)) => (u64::MAX, Edge::before(next)),
            (_, Next::Lost(edge)) => (u64::MAX, *edge),
            (_, Next::Nothing) => (u64::MAX, Edge::UNKNOWN),
        }
    }
}

/// What lies behind `position` of the last segment, how many bytes of it are written, and what it
/// proves to be flushed.
fn rest_of(
    segment: &ExaminedSegment,
    batches: &Batches<'_>,
    position: u64,
) -> io::Result<(Rest, u64, u64)> {
    let SegmentHeader { unflushed_max, recycled, .. } = segment.header;
    let window = batches.end.min(position + 2 * u64::from(unflushed_max));
    // Beyond the window nothing can be, unless the file was damaged: looked at here and there.
    let all = recycled || is_touched(batches.file, window..batches.end)?;
    let end = if all { batches.end } else { window };
    let near = Batches { end, ..*batches };
    let evidence = near.evidence_behind(position, u64::from(unflushed_max))?;
    let written = match last_byte_in(batches.file, position..end)? {
        None => return Ok((Rest::Zeros, 0, evidence.flushed)),
        Some(_) if recycled && !evidence.headers => return Ok((Rest::Stale, 0, evidence.flushed)),
        Some(last) => last - position,
    };
    Ok((Rest::Written, written, evidence.flushed))
}
