//! Reads a whole log without changing it.
//!
//! Owns: what its segments hold together, and what is lost between them.
//! Never: writes.
//! Invariant: examining twice finds the same.

mod segment;

use super::files::{File, Files, Link, is_cut_within};
use super::lost::{Behind, lost_range};
use crate::damage::{self, DamagedRange};
use crate::disk::{Disk, DiskFile};
use crate::error::{Corruption, CorruptionKind, OpenError};
use crate::index::{self, Marks, SparseIndex, StoredIndex};
use crate::meta::{Mark, Meta, Start};
use crate::planted::{Bug, is_planted};
use crate::scan::{Batches, Cursor, Edge, Source};
use crate::segment::SegmentHeader;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weir_protocol::batch::BatchHeader;
use weir_protocol::types::{Index, Offset};

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
    /// Where the log began anew, if nothing of it says more.
    pub(crate) start: Option<Start>,
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
    let dead_sequence = state.start.map_or(0, |start| start.sequence);
    let links = files.linked(dir, first, (state.last_segment, dead_sequence));
    let empty = Examined::empty(first, state.first_offset);
    let cursor = state.start.map_or(empty.cursor, |start| start.cursor);
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
            cursor,
            start: state.start,
            sequence: state.last_segment.max(last_sequence),
            ..empty
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
            start: None,
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
        let Examined { segments, first_index, start, lost_tail, .. } = &self.examined;
        let none_left = segments.is_empty() && *first_index > Index(1) && start.is_none();
        if none_left && lost_tail.is_none() {
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
        let mut range = lost_range(&self.examined.cursor, sequence, positions, behind);
        // A loss was accepted as it was shown: what was lost since is a range of its own.
        let mut accepted = self.known.iter().filter(|known| known.accepted);
        while let Some(known) = accepted.find(|known| known.begins_with(&range)) {
            let (given_up, rest) = known.accepted_of(range);
            if let Some(given_up) = given_up {
                damage::insert(&mut self.examined.damage, given_up);
            }
            match rest {
                Some(rest) => range = rest,
                None => return,
            }
        }
        damage::insert(&mut self.examined.damage, range);
    }

    fn segment(&mut self, file: File, cut: Option<u64>, next: &Next) -> Result<(), OpenError> {
        if let (Some(cut), Next::Segment(next)) = (cut, next)
            && let Some(stored) = self.stored_index(&file, cut, next)?
        {
            return self.believe(file, stored);
        }
        let path = file.path.clone();
        let device = OpenError::device(&path);
        let segment = self.read(file, cut, next).map_err(device)?;
        self.examined.segments.push(segment);
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

    /// Reads the last batch of all where it stands in a segment that was believed.
    fn read_last(&mut self) -> io::Result<()> {
        if let Some(Unread { file, salt, end, position }) = self.unread_last.take() {
            let batches = Batches { file: Source::of(&*file), salt, end };
            self.examined.last = batches.whole_at(position)?.ok().map(|whole| whole.header);
        }
        Ok(())
    }
}

/// What stands behind a segment.
enum Next {
    Nothing,
    Lost(Edge),
    Segment(SegmentHeader),
}
