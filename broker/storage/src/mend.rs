//! Fills what is damaged in a closed log with the batches that stood there, from another replica.
//!
//! Owns: what a hole is, how it is proved that batches belong into it, and putting them there.
//! Never: believes a batch because somebody sent it; touches a log that is open; mends a log whose
//! votes or whose end are doubtful: such a log does not open.
//! Invariants: a hole is filled with all that is missing or not at all: from the batch in front of it
//! the chain runs over the new batches and closes at the whole batch behind, at the segment behind,
//! or at the watermark; a stop of any kind leaves the log as it was, or with fewer holes.
//!
//! A loss that was accepted is a hole like any other, marked by its range: whoever gave a range up
//! for want of a copy wants it back as soon as there is one. What is mended is no loss any more: the
//! next start reads the segment and finds nothing to note.

mod find;
mod fresh;
mod spool;

use crate::damage::DamagedRange;
use crate::device::Device;
use crate::disk::Disk;
use crate::error::{OpenError, is_no_space};
use crate::limits::{SEGMENT_HEADER_BYTES, SEGMENT_LADDER_BYTES, UNFLUSHED_BYTES_MAX};
use crate::log::NewBatch;
use crate::meta::Meta;
use crate::planted::{Bug, is_planted};
use crate::recovery::{examine, parse_name, segment_name};
use crate::scan::{Batches, Cursor, Source};
use crate::segment::SegmentHeader;
use fresh::{Fresh, Spot};
use spool::Spool;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weir_protocol::batch::{BatchHeader, HeaderError};
use weir_protocol::limits::BATCH_HEADER_BYTES;
use weir_protocol::types::Index;

/// Most that may be missing in one hole: segments beyond are brought back by a new replica sooner.
pub(crate) const HOLE_BYTES_MAX: u64 = 2 * SEGMENT_LADDER_BYTES[4];

/// A stretch of a closed log that cannot be read.
#[derive(Debug, Clone)]
pub struct Hole {
    /// What is missing.
    pub range: DamagedRange,
    /// Where it is filled, or why it cannot be.
    place: Result<Place, Unmendable>,
}

impl Hole {
    /// Why it cannot be mended, whoever has what is missing.
    pub fn unmendable(&self) -> Option<Unmendable> {
        self.place.as_ref().err().copied()
    }
}

/// Why a hole cannot be mended, whoever has what is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unmendable {
    /// The first segment of a trimmed log is lost.
    #[error("it is where the log begins since it was trimmed: nothing tells what it continued")]
    Beginning,
    /// No batches could stand between its neighbours.
    #[error("what stands in front of it and behind it contradicts itself")]
    Contradiction,
}

/// Where a hole is filled.
#[derive(Debug, Clone)]
struct Place {
    /// What holds in front of it.
    before: Cursor,
    behind: Behind,
    /// Where the segment is that it lies in, or the one in front of those that are lost; none where
    /// those are the first.
    segment: Option<Around>,
    /// Bytes of the segment's file in front of the hole.
    start: u64,
    kind: Kind,
}

/// A segment that stays, though its file may be made anew.
#[derive(Debug, Clone)]
struct Around {
    header: SegmentHeader,
    path: PathBuf,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Up to this position of the segment. Below `proven`, damage is known for damage wherever its
    /// bytes are copied to.
    Inside { end: u64, proven: u64 },
    /// Whole segments: the last of them had this sequence, and ended here.
    Segments { last: u64, end: u64 },
}

/// What the chain has to lead to.
#[derive(Debug, Clone, Copy)]
enum Behind {
    /// A whole batch, and the CRC of its control section.
    Batch(BatchHeader, Option<u32>),
    /// What a segment or the watermark says.
    Place(Cursor),
}

impl Behind {
    fn follows(&self, cursor: &Cursor) -> bool {
        match self {
            Self::Batch(header, control_crc) => cursor.is_followed_by(header, *control_crc),
            Self::Place(place) => cursor == place,
        }
    }
}

/// Why a hole is not mended. The log is as it was, or has fewer holes.
#[derive(Debug, thiserror::Error)]
pub enum MendError {
    /// Nobody can mend it.
    #[error("{range} and cannot be mended: {why}")]
    Unmendable {
        /// What is missing.
        range: DamagedRange,
        /// Why.
        why: Unmendable,
    },
    /// A batch is not the one that is missing.
    #[error("the batch of index {0} does not continue the chain of this log: it is another log's")]
    Foreign(Index),
    /// A batch is not what its maker wrote.
    #[error("the batch of index {index} is damaged: {reason}")]
    Batch {
        /// Its index, as it says.
        index: Index,
        /// What is wrong with it.
        reason: HeaderError,
    },
    /// There are batches missing still.
    #[error("what is missing from index {0} on was not brought")]
    Unfinished(Index),
    /// The batches continue the chain, but are not of the length of what is missing.
    #[error("the batches do not fit between what stands in front of the hole and behind it")]
    DoesNotFit,
    /// More is missing than is mended.
    #[error("more than {HOLE_BYTES_MAX} bytes are missing: a new replica is quicker")]
    TooLarge,
    /// The end of the newest segment cannot be read, and in a copy of it nothing would tell that
    /// from a torn tail.
    #[error("the end of {} cannot be read", .0.display())]
    Unreadable(PathBuf),
    /// The disk has no room for the segment's new file.
    #[error("no room on the disk to mend {}", .0.display())]
    NoSpace(PathBuf),
    /// The device failed.
    #[error("{}: {source}", path.display())]
    Device {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
}

impl MendError {
    fn device(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| match is_no_space(&source) {
            true => Self::NoSpace(path.to_owned()),
            false => Self::Device { path: path.to_owned(), source },
        }
    }
}

/// The holes of the closed log `uuid` in `dir`, the oldest first; none where there is no log yet.
/// Deep: every batch is read; otherwise those of segments that the next start reads too.
///
/// [`OpenError::Damaged`] is a log that does not open: its hard state is gone, or its end, or it
/// contradicts itself. It cannot be mended: a replica with it does not know what it promised.
pub fn holes(disk: &dyn Disk, dir: &Path, uuid: u128, deep: bool) -> Result<Vec<Hole>, OpenError> {
    if disk.list(dir).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(Vec::new());
    }
    let mut examined = examine(disk, dir, uuid, deep)?;
    if let Some(what) = examined.lost_tail.take() {
        return Err(what.into());
    }
    let mark = examined.meta.as_ref().map(Meta::state).and_then(|state| state.mark);
    find::holes(&examined, mark).map_err(OpenError::device(dir))
}

/// A hole that is being filled. Dropped unfinished, it leaves files that the next start removes.
pub struct Mending {
    device: Arc<Device>,
    dir: PathBuf,
    uuid: u128,
    range: DamagedRange,
    place: Place,
    /// What holds behind what was brought so far.
    cursor: Cursor,
    /// How often it began further in front.
    stepped_back: u32,
    spool: Spool,
}

impl Mending {
    /// Begins to fill a hole of the closed log `uuid` in `dir`.
    pub fn begin(
        device: &Arc<Device>,
        dir: &Path,
        uuid: u128,
        hole: &Hole,
    ) -> Result<Self, MendError> {
        let range = hole.range.clone();
        let place = match &hole.place {
            Ok(place) => place.clone(),
            Err(why) => return Err(MendError::Unmendable { range, why: *why }),
        };
        let spool = Spool::empty(device.disk().clone(), dir, device.next_salt());
        let spool = spool.map_err(MendError::device(dir))?;
        let (device, dir) = (device.clone(), dir.to_owned());
        let cursor = place.before;
        let mut mending = Self { device, dir, uuid, range, cursor, place, stepped_back: 0, spool };
        // What is known to be too much in front of the hole is dead already.
        while !mending.is_closed() && mending.next_index() > mending.last_index() {
            if !mending.step_back().map_err(MendError::device(&mending.dir))? {
                let (range, why) = (mending.range, Unmendable::Contradiction);
                return Err(MendError::Unmendable { range, why });
            }
        }
        Ok(mending)
    }

    /// What is to be brought next: all batches of this index and of those behind it.
    pub fn next_index(&self) -> Index {
        self.cursor.next_index()
    }

    /// The last index that is to be brought.
    pub fn last_index(&self) -> Index {
        match &self.place.behind {
            Behind::Batch(header, _) => header.index,
            Behind::Place(place) => place.last_index,
        }
    }

    /// Whether nothing is missing any more.
    pub fn is_closed(&self) -> bool {
        let enough = || self.next_index() > self.last_index();
        self.place.behind.follows(&self.cursor) || (is_planted(Bug::MendedUnclosed) && enough())
    }

    /// Takes batches in their order, whole indexes. Those in front of what is missing and those
    /// behind it are passed over.
    ///
    /// Where whole segments are lost, the first of them may have cut the one in front, and what
    /// stands there behind the cut looks whole: if the first batch does not continue it,
    /// [`Mending::next_index`] goes back.
    pub fn take(&mut self, batches: &[NewBatch]) -> Result<(), MendError> {
        let stepped_back = self.stepped_back;
        for batch in batches {
            if self.is_closed() || self.stepped_back > stepped_back {
                break;
            }
            self.take_one(batch)?;
        }
        Ok(())
    }

    /// Begins further in front, within the segment in front of those that are lost: by 1 index, then
    /// by 2 more, 4 more. Returns whether it does.
    fn step_back(&mut self) -> io::Result<bool> {
        let Place { before, segment: Some(around), kind: Kind::Segments { .. }, start, .. } =
            &self.place
        else {
            return Ok(false);
        };
        let first = around.header.base_index;
        if self.spool.bytes() > 0 || before.next_index() <= first {
            return Ok(false);
        }
        let back = 1u64 << self.stepped_back.min(u64::BITS - 1);
        let wanted = Index(before.next_index().0.saturating_sub(back)).max(first);
        let file = self.device.disk().open(&around.path)?;
        let (mut position, mut cursor) = (SEGMENT_HEADER_BYTES, Cursor::before(&around.header));
        let batches = Batches { file: Source::of(&*file), salt: around.header.salt, end: *start };
        while cursor.next_index() < wanted {
            let Ok(header) = batches.header_at(position)? else { return Ok(false) };
            cursor.pass(&header);
            position += header.stored_len() as u64;
        }
        (self.place.start, self.place.before, self.cursor) = (position, cursor, cursor);
        self.stepped_back += 1;
        Ok(true)
    }

    fn take_one(&mut self, batch: &NewBatch) -> Result<(), MendError> {
        let NewBatch { header, body } = batch;
        let body = body.concat();
        let control_crc = header
            .check_body(&body)
            .map_err(|reason| MendError::Batch { index: header.index, reason })?;
        let follows = self.cursor.is_followed_by(header, control_crc)
            || (is_planted(Bug::MendedUnchained) && header.index == self.next_index());
        if header.batch_type.is_local() || !follows {
            let before = &self.place.before;
            // The hole may begin within an index.
            let is_there = self.spool.bytes() == 0
                && before.open_index
                && header.index == before.last_index
                && header.end_offset() <= before.log_end;
            return match is_there || self.step_back().map_err(MendError::device(&self.dir))? {
                true => Ok(()),
                false => Err(MendError::Foreign(header.index)),
            };
        }
        let bytes_max = match self.place.kind {
            Kind::Inside { end, .. } => end.saturating_sub(self.place.start),
            Kind::Segments { .. } => HOLE_BYTES_MAX,
        };
        if self.spool.bytes() + header.stored_len() as u64 > bytes_max {
            return Err(match self.place.kind {
                Kind::Inside { .. } => MendError::DoesNotFit,
                Kind::Segments { .. } => MendError::TooLarge,
            });
        }
        self.spool.push(header, &body).map_err(MendError::device(&self.dir))?;
        self.cursor.pass(header);
        Ok(())
    }

    /// Puts what was brought into the log, durably.
    pub fn finish(mut self) -> Result<(), MendError> {
        if !self.is_closed() {
            return Err(MendError::Unfinished(self.next_index()));
        }
        match self.place.kind {
            Kind::Inside { end, proven } => self.fill_inside(end, proven)?,
            Kind::Segments { last, end } => self.bring_back(last, end)?,
        }
        self.spool.remove().map_err(MendError::device(&self.dir))?;
        tracing::warn!(dir = %self.dir.display(), range = %self.range, "mended by another replica");
        Ok(())
    }

    /// Makes a segment's file anew, with its hole filled.
    fn fill_inside(&self, end: u64, proven: u64) -> Result<(), MendError> {
        let around = self.place.segment.clone().ok_or(MendError::DoesNotFit)?;
        let (start, capacity) = (self.place.start, around.header.capacity);
        if end > capacity || !fits(self.spool.bytes(), end - start) {
            return Err(MendError::DoesNotFit);
        }
        let device = || MendError::device(&around.path);
        let disk = self.device.disk().clone();
        let old = disk.open(&around.path).map_err(device())?;
        let mut fresh = Fresh::create(&*disk, around.path.clone(), around.header.clone())?;
        let rest = end..old.len().min(capacity);
        for range in [SEGMENT_HEADER_BYTES..start, rest] {
            let sure = range.end.min(proven).max(range.start);
            fresh.copy(&*old, range.start..sure).map_err(device())?;
            if fresh.copy(&*old, sure..range.end).map_err(device())? {
                return Err(MendError::Unreadable(around.path.clone()));
            }
        }
        let mut spot = Spot { position: start, cursor: self.place.before, log_time_ms: 0 };
        let spool = &self.spool;
        spool.read(0..spool.bytes(), |whole| fresh.put(&mut spot, whole)).map_err(device())?;
        fresh.fill_up(&mut spot, end)?;
        fresh.link().map_err(device())
    }

    /// Makes segments that are lost anew. The one behind them says where the last of them ends, so
    /// what that one cannot hold goes in front of it.
    fn bring_back(&self, last: u64, end: u64) -> Result<(), MendError> {
        let disk = self.device.disk().clone();
        let dir = self.dir.clone();
        let device = || MendError::device(&dir);
        let room = end.saturating_sub(SEGMENT_HEADER_BYTES);
        let in_front = self.place.segment.clone();
        let sequence = in_front.as_ref().map_or(0, |around| around.header.sequence);
        let split = self.split(room).map_err(device())?.ok_or(MendError::DoesNotFit)?;
        let mut link = (sequence, if sequence == 0 { 0 } else { self.place.start });
        let mut spot =
            Spot { position: SEGMENT_HEADER_BYTES, cursor: self.place.before, log_time_ms: 0 };
        let mut made = Vec::new();
        if split > 0 {
            let mut fresh = match in_front.filter(|_| last == sequence + 1) {
                // No sequence is left for a segment between: the one in front takes it.
                Some(Around { header, path }) => {
                    spot.position = self.place.start;
                    let old = disk.open(&path).map_err(device())?;
                    let capacity = capacity_for(spot.position + split).max(header.capacity);
                    let mut fresh =
                        Fresh::create(&*disk, path, SegmentHeader { capacity, ..header })?;
                    let kept = SEGMENT_HEADER_BYTES..self.place.start;
                    fresh.copy(&*old, kept).map_err(device())?;
                    fresh
                }
                None if last <= sequence + 1 => return Err(MendError::DoesNotFit),
                None => self.segment(last - 1, &spot, link, SEGMENT_HEADER_BYTES + split)?,
            };
            let put = |whole: &_| fresh.put(&mut spot, whole);
            self.spool.read(0..split, put).map_err(device())?;
            link = (fresh.header.sequence, spot.position);
            made.push(fresh.path.clone());
            fresh.link().map_err(device())?;
            spot.position = SEGMENT_HEADER_BYTES;
        }
        let mut fresh = self.segment(last, &spot, link, end)?;
        let put = |whole: &_| fresh.put(&mut spot, whole);
        self.spool.read(split..self.spool.bytes(), put).map_err(device())?;
        fresh.fill_up(&mut spot, end)?;
        made.push(fresh.path.clone());
        fresh.link().map_err(device())?;
        self.remove_replaced(sequence + 1..=last, &made).map_err(device())
    }

    /// An empty segment behind `spot` that holds bytes up to `end`.
    fn segment(
        &self,
        sequence: u64,
        spot: &Spot,
        link: (u64, u64),
        end: u64,
    ) -> Result<Fresh<'_>, MendError> {
        let cursor = &spot.cursor;
        let header = SegmentHeader {
            partition_uuid: self.uuid,
            sequence,
            salt: self.device.next_salt(),
            base_index: Index(cursor.last_index.0 + 1),
            base_offset: cursor.log_end,
            prev_term: cursor.term,
            prev_chain: cursor.chain,
            prev_sequence: link.0,
            prev_cut_pos: link.1,
            capacity: capacity_for(end),
            created_ms: match spot.log_time_ms {
                // The first batch is not older than the one in front of it.
                0 => self.spool.first_log_time_ms(),
                known => known,
            },
            recycled: false,
            unflushed_max: UNFLUSHED_BYTES_MAX as u32,
        };
        let path = self.dir.join(segment_name(header.base_index, sequence));
        Fresh::create(&**self.device.disk(), path, header)
    }

    /// Bytes of the spool in front of a segment that has `room`: the fewest, whole indexes.
    fn split(&self, room: u64) -> io::Result<Option<u64>> {
        let total = self.spool.bytes();
        if fits(total, room) {
            return Ok(Some(0));
        }
        let (mut passed, mut found) = (0, None);
        self.spool.read(0..total, |whole| {
            passed += whole.header.stored_len() as u64;
            if found.is_none() && whole.header.is_last_of_index() && fits(total - passed, room) {
                found = Some(passed);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Removes the files of these sequences that were replaced under another name: nothing in them
    /// can be believed.
    fn remove_replaced(
        &self,
        sequences: std::ops::RangeInclusive<u64>,
        made: &[PathBuf],
    ) -> io::Result<()> {
        let disk = self.device.disk();
        let names = disk.list(&self.dir)?.into_iter();
        let replaced = names.filter(|name| {
            parse_name(name).is_some_and(|(_, sequence)| sequences.contains(&sequence))
        });
        let paths = replaced.map(|name| self.dir.join(name)).filter(|path| !made.contains(path));
        let paths: Vec<PathBuf> = paths.collect();
        paths.iter().try_for_each(|path| disk.remove(path))?;
        if paths.is_empty() { Ok(()) } else { disk.sync_dir(&self.dir) }
    }
}

/// Whether batches fill a room, but for marks that a log leaves for itself: those are not brought.
fn fits(bytes: u64, room: u64) -> bool {
    bytes <= room && (room - bytes).is_multiple_of(BATCH_HEADER_BYTES as u64)
}

/// The size of a segment's file that holds batches up to `end`.
fn capacity_for(end: u64) -> u64 {
    end.next_multiple_of(SEGMENT_LADDER_BYTES[0])
}
