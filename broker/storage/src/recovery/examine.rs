//! Reads a whole log without changing it.
//!
//! Owns: what its segments hold, where they are damaged, and what recovery would do about it.
//! Never: writes.
//! Invariant: examining twice finds the same.

use super::decision::{Decision, Rest, Stop, decide};
use super::files::{File, Files, Link, is_cut_within};
use crate::damage::{self, DamagedRange};
use crate::disk::{Disk, DiskFile};
use crate::error::{Corruption, CorruptionKind, OpenError};
use crate::index::{self, Marks, SparseIndex, StoredIndex};
use crate::limits::{NUMBERS_END, SEGMENT_HEADER_BYTES};
use crate::meta::{Mark, Meta};
use crate::planted::{Bug, is_planted};
use crate::scan::{Batches, Cursor, Edge, Whole, flushed_below, is_touched, last_byte_in};
use crate::segment::SegmentHeader;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weir_protocol::batch::{BatchHeader, BatchType};
use weir_protocol::limits::BATCH_HEADER_BYTES;
use weir_protocol::types::{Index, Offset};

/// Headers of the last segment that are kept for the readers.
pub(crate) use crate::reader::RECENT_MAX;

/// What a log holds.
pub(crate) struct Examined {
    /// None where the log is fresh.
    pub(crate) meta: Option<Meta>,
    pub(crate) segments: Vec<ExaminedSegment>,
    /// Files that a trim or a truncation had given up.
    pub(crate) dead: Vec<PathBuf>,
    pub(crate) damage: Vec<DamagedRange>,
    /// Whether the file of damaged ranges says something else.
    pub(crate) damage_changed: bool,
    /// What holds behind the last batch.
    pub(crate) cursor: Cursor,
    /// The last batch that is not local and can be read.
    pub(crate) last: Option<BatchHeader>,
    pub(crate) first_index: Index,
    pub(crate) first_offset: Offset,
    /// The newest segment's sequence, also when it is lost.
    pub(crate) sequence: u64,
    /// Bytes behind the end that are to be cut off: never acknowledged, unless the tail is lost.
    pub(crate) torn_bytes: u64,
    /// Accepted bytes of the last segment that nothing proves to be flushed.
    pub(crate) unproven: Range<u64>,
    /// Padding of the last segment's batches that is not zeros: torn off, over an earlier life.
    pub(crate) unclean_padding: Vec<Range<u64>>,
    /// The end of the log is damaged, and nothing tells how much is lost.
    pub(crate) lost_tail: Option<Corruption>,
    pub(crate) batches_read: u64,
}

/// What one segment holds.
pub(crate) struct ExaminedSegment {
    pub(crate) header: SegmentHeader,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn DiskFile>,
    /// Where its batches end.
    pub(crate) end: u64,
    pub(crate) sealed: bool,
    /// None where the file beside it was believed.
    pub(crate) rows: Option<SparseIndex>,
    pub(crate) marks: Marks,
    /// What holds behind its last batch.
    pub(crate) cursor: Cursor,
    /// Its newest batches that are not local, with their positions.
    pub(crate) recent: VecDeque<(BatchHeader, u64)>,
}

/// Examines the log `uuid` in `dir`. Deep: every batch of every segment is read, also of those whose
/// index could be believed.
pub(crate) fn examine(
    disk: &dyn Disk,
    dir: &Path,
    uuid: u128,
    deep: bool,
) -> Result<Examined, OpenError> {
    let mut files = Files::open(disk, dir, uuid)?;
    let meta = Meta::load(disk, dir, Some(uuid))?;
    if meta.is_none() && !files.is_empty() {
        return Err(Meta::unreadable(dir));
    }
    let state = meta.as_ref().map(Meta::state).cloned().unwrap_or_default();
    let first = state.first_index.max(Index(1));
    let last_sequence = files.last_sequence();
    let links = files.linked(dir, first, state.last_segment);
    let known = damage::load(disk, dir).map_err(OpenError::device(dir))?;
    let mut reading = Reading {
        disk,
        dir,
        mark: state.mark,
        // Where it cannot be read what is damaged, all is read.
        deep: deep || known.is_none(),
        known: known.clone().unwrap_or_default(),
        unread_last: None,
        examined: Examined {
            first_index: first,
            first_offset: state.first_offset,
            sequence: state.last_segment.max(last_sequence),
            ..Examined::empty(first, state.first_offset)
        },
    };
    reading.all(links)?;
    reading.read_last().map_err(OpenError::device(dir))?;
    let mut examined = reading.examined;
    examined.damage.sort_by_key(|range| (range.first_index, range.positions.start));
    examined.damage_changed = known.as_ref() != Some(&examined.damage);
    examined.dead = files.unlinked().collect();
    examined.meta = meta;
    Ok(examined)
}

impl Examined {
    fn empty(first_index: Index, first_offset: Offset) -> Self {
        let cursor = Cursor { last_index: Index(first_index.0 - 1), ..Cursor::default() };
        Self {
            meta: None,
            segments: Vec::new(),
            dead: Vec::new(),
            damage: Vec::new(),
            damage_changed: false,
            cursor: Cursor { log_end: first_offset, ..cursor },
            last: None,
            first_index,
            first_offset,
            sequence: 0,
            torn_bytes: 0,
            unproven: 0..0,
            unclean_padding: Vec::new(),
            lost_tail: None,
            batches_read: 0,
        }
    }
}

/// The reading of one log, oldest segment first.
struct Reading<'a> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    mark: Option<Mark>,
    deep: bool,
    /// What was known to be damaged before.
    known: Vec<DamagedRange>,
    /// The last batch so far, where nothing behind it was read.
    unread_last: Option<Unread>,
    examined: Examined,
}

/// A batch that an index names.
struct Unread {
    file: Arc<dyn DiskFile>,
    salt: u64,
    end: u64,
    position: u64,
}

impl Reading<'_> {
    fn all(&mut self, mut links: VecDeque<Link>) -> Result<(), OpenError> {
        // A segment that is lost, as long as nothing behind it tells what it held.
        let mut lost: Option<(u64, Corruption)> = None;
        let mut is_first = true;
        while let Some(link) = links.pop_front() {
            let (file, cut) = match link {
                Link::Lost { sequence, what } => {
                    self.examined.sequence = self.examined.sequence.max(sequence);
                    lost = Some((sequence, what));
                    continue;
                }
                Link::Segment(file, cut) => (file, cut),
            };
            if !is_cut_within(&file, cut) {
                let kind = CorruptionKind::OutOfPlace;
                return Err(Corruption { file: file.path, position: 0, kind }.into());
            }
            let missing = lost.take().map_or(file.header.prev_sequence, |(sequence, _)| sequence);
            self.begin_segment(&file, missing, is_first)?;
            is_first = false;
            let next = match links.front() {
                None => Next::Nothing,
                Some(Link::Lost { .. }) => Next::Lost(self.edge_behind(&file.header, &links)),
                Some(Link::Segment(next, _)) => Next::Segment(next.header.clone()),
            };
            self.segment(file, cut, &next)?;
        }
        if let Some((_, what)) = lost {
            self.examined.lost_tail = Some(what);
            self.examined.torn_bytes = self.examined.torn_bytes.max(1);
        }
        let none_left = self.examined.segments.is_empty() && self.examined.first_index > Index(1);
        if none_left && self.examined.lost_tail.is_none() {
            // A trim never takes the last segment.
            let (file, kind) = (self.dir.to_owned(), CorruptionKind::Hole);
            self.examined.lost_tail = Some(Corruption { file, position: 0, kind });
            self.examined.torn_bytes = 1;
        }
        Ok(())
    }

    /// What stands behind a segment whose successor is lost.
    fn edge_behind(&self, segment: &SegmentHeader, links: &VecDeque<Link>) -> Edge {
        let whole = links.iter().find_map(|link| match link {
            Link::Segment(file, _) => Some(Edge::before(&file.header)),
            Link::Lost { .. } => None,
        });
        let mark = self.mark.filter(|mark| mark.sequence > segment.sequence);
        let mark = mark.map(|mark| Edge::behind(&mark.cursor));
        whole.or(mark).unwrap_or(Edge::UNKNOWN)
    }

    /// Checks that a segment continues the log, and notes what is lost in between.
    fn begin_segment(&mut self, file: &File, missing: u64, first: bool) -> Result<(), OpenError> {
        let header = &file.header;
        let begins = Cursor::before(header);
        let cursor = self.examined.cursor;
        self.examined.sequence = self.examined.sequence.max(header.sequence);
        let lost = header.base_index.0 > cursor.next_index().0 || begins.log_end > cursor.log_end;
        let follows =
            header.base_index == cursor.next_index() && header.base_offset == cursor.log_end;
        if first && header.base_index <= self.examined.first_index {
            // A trim may have been noted and not be carried out: the log begins with its segment.
            (self.examined.first_index, self.examined.first_offset) =
                (header.base_index, header.base_offset);
        } else if lost {
            let behind = Behind::edge(Edge::before(header));
            self.lose(missing, self.end_of(missing), behind);
        } else if !follows || header.prev_chain != cursor.chain {
            let kind = CorruptionKind::OutOfPlace;
            return Err(Corruption { file: file.path.clone(), position: 0, kind }.into());
        }
        self.examined.cursor = begins;
        Ok(())
    }

    /// The empty range at the end of a segment that was read, or of one that is missing.
    fn end_of(&self, sequence: u64) -> Range<u64> {
        let known = self.examined.segments.iter().find(|s| s.header.sequence == sequence);
        known.map_or(0..0, |segment| segment.end..segment.end)
    }

    /// Notes that everything between the cursor and what stands behind is lost.
    fn lose(&mut self, sequence: u64, positions: Range<u64>, behind: Behind) {
        let range = lost_range(&self.examined.cursor, sequence, positions, behind);
        let accepted = |known: &&DamagedRange| {
            (known.sequence, known.positions.start) == (range.sequence, range.positions.start)
        };
        let accepted = self.known.iter().find(accepted).is_some_and(|known| known.accepted);
        damage::insert(&mut self.examined.damage, DamagedRange { accepted, ..range });
    }

    fn segment(&mut self, file: File, cut: Option<u64>, next: &Next) -> Result<(), OpenError> {
        if let (Some(cut), Next::Segment(next)) = (cut, next)
            && let Some(stored) = self.stored_index(&file, cut, next)?
        {
            return self.believe(file, stored);
        }
        let path = file.path.clone();
        let device = OpenError::device(&path);
        let read = self.read(file, cut, next).map_err(device)?;
        self.examined.batches_read += read.count;
        self.examined.segments.push(read.segment);
        Ok(())
    }

    /// The stored index of a sealed segment, where it may be believed.
    fn stored_index(
        &self,
        file: &File,
        cut: u64,
        next: &SegmentHeader,
    ) -> Result<Option<StoredIndex>, OpenError> {
        let sequence = file.header.sequence;
        // What is said to be damaged is looked at again, an accepted loss too.
        let damaged = |range: &DamagedRange| range.sequence == sequence;
        if self.deep || file.is_shortened() || self.known.iter().any(damaged) {
            return Ok(None);
        }
        let stored = index::load(self.disk, &file.path).map_err(OpenError::device(&file.path))?;
        let fits = |stored: &StoredIndex| {
            let ends_so = stored.end == cut && stored.cursor == Cursor::before(next);
            stored.salt == file.header.salt && (ends_so || is_planted(Bug::IndexBelieved))
        };
        Ok(stored.filter(fits))
    }

    fn believe(&mut self, file: File, stored: StoredIndex) -> Result<(), OpenError> {
        let File { header, path, file } = file;
        if let Some(position) = stored.last_position {
            let (file, salt, end) = (file.clone(), header.salt, stored.end);
            self.unread_last = Some(Unread { file, salt, end, position });
        }
        self.examined.cursor = stored.cursor;
        self.examined.segments.push(ExaminedSegment {
            header,
            path,
            file,
            end: stored.end,
            sealed: true,
            rows: None,
            marks: stored.marks,
            cursor: stored.cursor,
            recent: VecDeque::new(),
        });
        Ok(())
    }

    /// Reads every batch of a segment.
    fn read(&mut self, file: File, cut: Option<u64>, next: &Next) -> io::Result<Read> {
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
        let batches = Batches { file: &*file, salt: segment.header.salt, end: limit };
        let is_last = matches!(next, Next::Nothing);
        let mark = self.mark.filter(|mark| is_last && vouches_for(mark, &segment.header, &*file));
        let (mut flushed, mut count) = (mark.map_or(SEGMENT_HEADER_BYTES, |m| m.position), 0);
        let shortened = is_last && file.len() < segment.header.capacity;
        let around = Around { cut, next, mark };
        while !(segment.sealed && cut.is_none()) {
            let position = segment.end;
            // A file that lost its end, or its watermark's place, may end where a batch does.
            let more = shortened || mark.is_some_and(|mark| mark.position > position);
            if position >= limit && !more {
                break;
            }
            let (_, edge) = around.ahead_of(position);
            match batches.at(position, (&self.examined.cursor, edge))? {
                Ok(Whole { header: batch, zero_padded, .. }) => {
                    let unflushed_max = u64::from(segment.header.unflushed_max);
                    if !zero_padded && is_last {
                        let body_end = position + batch.wire_len() as u64;
                        let end = position + batch.stored_len() as u64;
                        self.examined.unclean_padding.push(body_end..end);
                    }
                    flushed = flushed.max(flushed_below(&batch, position, unflushed_max));
                    count += u64::from(!batch.batch_type.is_local());
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
        Ok(Read { segment, count })
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

    /// Reads the last batch of all where it stands in a segment that was believed.
    fn read_last(&mut self) -> io::Result<()> {
        if let Some(Unread { file, salt, end, position }) = self.unread_last.take() {
            let batches = Batches { file: &*file, salt, end };
            self.examined.last = batches.whole_at(position)?.ok().map(|whole| whole.header);
        }
        Ok(())
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
        let Around { cut, next, mark } = *around;
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
                let kind = if shortened { CorruptionKind::Shortened } else { kind };
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

/// What stands behind a segment.
enum Next {
    Nothing,
    Lost(Edge),
    Segment(SegmentHeader),
}

struct Read {
    segment: ExaminedSegment,
    count: u64,
}

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
