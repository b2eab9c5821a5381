//! Finds a log again after a stop of any kind.
//!
//! Owns: what is done about what [`examine`] found: nothing is served before it is proven durable.
//! Never: truncates damage; serves a byte that was not verified; changes anything before all of the
//! log was examined.
//! Invariants: what was flushed is there, or its range is refused, or the log does not open;
//! recovery run twice finds the same; a crash within recovery loses nothing.
//!
//! At the first batch that cannot be accepted, position P, with W = the largest position that any
//! valid header of the segment proves to be flushed (it says so, or stands further behind than may
//! be unflushed at a time), or the watermark in the hard state. [`decision`] holds the table:
//!
//! | evidence | decision |
//! |---|---|
//! | a later segment cuts this one at P | the end of this segment |
//! | P < W, or a later segment begins behind P | damage: the range up to the next whole batch |
//! | P >= W, checksums right but chain, index or offset wrong | damage, in the same way |
//! | the file is shorter than it was made | damage, in the same way |
//! | damage, and nothing tells where it ends | the log does not open |
//! | P >= W, only zeros behind, or bytes of the file's earlier life | clean end |
//! | P >= W, anything else | torn tail: cut by rolling to a fresh segment, whole indexes only |

mod decision;
mod examine;
mod files;
mod lost;

pub(crate) use examine::{Examined, ExaminedSegment, examine};
pub(crate) use files::{parse_name, segment_name};
pub(crate) use lost::{Behind, lost_range, next_that_follows};

use crate::checkpoint;
use crate::damage::{self, DamageBook};
use crate::device::Device;
use crate::disk::{Disk, DiskFile, is_unreadable, pages, remove_if_there};
use crate::error::OpenError;
use crate::executor::Lane;
use crate::index::{self, StoredIndex};
use crate::limits::SEGMENT_HEADER_BYTES;
use crate::log::{LogOptions, Recovered};
use crate::meta::Meta;
use crate::planted::{Bug, is_planted, unless};
use crate::reader::Ends;
use crate::scan::Cursor;
use crate::segment::Segment;
use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A log that may be served.
pub(crate) struct Found {
    pub(crate) ends: Ends,
    pub(crate) meta: Meta,
    pub(crate) cursor: Cursor,
    /// Where the last segment ends.
    pub(crate) position: u64,
    /// Sequence of the newest segment that ever was.
    pub(crate) sequence: u64,
    pub(crate) damage: DamageBook,
    /// What was found; bytes to cut are counted here and cut by the caller, by rolling.
    pub(crate) recovered: Recovered,
}

pub(crate) fn recover(
    device: &Device,
    dir: &Path,
    options: &LogOptions,
) -> Result<Found, OpenError> {
    let disk = &**device.disk();
    disk.create_dir(dir).map_err(OpenError::device(dir))?;
    if let Some(parent) = dir.parent() {
        disk.sync_dir(parent).map_err(OpenError::device(parent))?;
    }
    // What is given up for good is looked at first, whatever an index says of it.
    let mut examined = examine(disk, dir, options.uuid, options.accept_loss)?;
    if let Some(what) = examined.lost_tail.take().filter(|_| !options.accept_loss)
        && !is_planted(Bug::LostTailIgnored)
    {
        return Err(what.into());
    }
    let mut meta = match examined.meta.take() {
        Some(meta) => meta,
        None => Meta::create(disk, dir, options.uuid)?,
    };
    let bytes_rewritten = rewrite_unproven(&examined)?;
    // Names and hard state of a process that failed may be visible without being durable.
    let synced = unless(Bug::FoundNamesNotSynced, || disk.sync_dir(dir));
    synced.map_err(OpenError::device(dir))?;
    let settled = unless(Bug::FoundMetaNotSettled, || meta.settle());
    settled.map_err(OpenError::device(&meta.path))?;
    remove_dead(disk, dir, &examined)?;
    if options.accept_loss {
        let ranges = examined.damage.iter_mut().filter(|range| !range.accepted);
        examined.damage_changed |= ranges.map(|range| range.accepted = true).count() > 0;
    }
    if examined.damage_changed && !is_planted(Bug::DamageFoundNotKept) {
        damage::store(disk, dir, &examined.damage).map_err(OpenError::device(dir))?;
    }
    let recovered = Recovered {
        batches_read: examined.batches_read,
        bytes_cut: examined.torn_bytes,
        bytes_rewritten,
        damaged: examined.damage.clone(),
    };
    Ok(found(device, dir, meta, examined, recovered))
}

/// Removes what a truncation or a trim had given up when the process ended, the indexes of such
/// segments, files that were being written, and checkpoints behind the end: they are of what was
/// lost, and the log may come to be that long again.
fn remove_dead(disk: &dyn Disk, dir: &Path, examined: &Examined) -> Result<(), OpenError> {
    let kept: Vec<PathBuf> =
        examined.segments.iter().map(|segment| index::path_of(&segment.path)).collect();
    // Of an index whose last batch is missing, nothing stays.
    let next_index = examined.cursor.next_index();
    let is_left_over = |name: &String| {
        let path = dir.join(name);
        let extension = path.extension().and_then(|extension| extension.to_str());
        extension == Some("new")
            || (extension == Some("idx") && !kept.contains(&path))
            || checkpoint::index_of(name).is_some_and(|index| index >= next_index)
    };
    let names = disk.list(dir).map_err(OpenError::device(dir))?;
    let left_over = names.iter().filter(|name| is_left_over(name)).map(|name| dir.join(name));
    let mut removed = false;
    for path in examined.dead.iter().cloned().chain(left_over) {
        remove_if_there(disk, &path).map_err(OpenError::device(&path))?;
        removed = true;
    }
    if removed {
        disk.sync_dir(dir).map_err(OpenError::device(dir))?;
    }
    Ok(())
}

/// Nothing proves that these bytes reached the disk: after a failed flush the cache may show what
/// the disk does not hold. Writing them again and flushing makes them count.
fn rewrite_unproven(examined: &Examined) -> Result<u64, OpenError> {
    let Some(segment) = examined.segments.last() else { return Ok(0) };
    let mut range = examined.unproven.clone();
    let device = |source| OpenError::device(&segment.path)(source);
    for padding in &examined.unclean_padding {
        let zeros = vec![0; (padding.end - padding.start) as usize];
        let clean = || segment.file.write_at(padding.start, &zeros);
        unless(Bug::PaddingNotCleaned, clean).map_err(device)?;
        range.start = range.start.min(padding.start);
    }
    rewrite(&*segment.file, range.clone()).map_err(device)?;
    Ok(range.end - range.start)
}

fn rewrite(file: &dyn DiskFile, range: Range<u64>) -> std::io::Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    let mut bytes = vec![0; 256 << 10];
    let mut position = range.start;
    while position < range.end {
        let step = (range.end - position).min(bytes.len() as u64) as usize;
        for (at, page) in pages(position, &mut bytes[..step]) {
            match file.read_at(at, page) {
                // It is damaged, and stays so.
                Err(error) if is_unreadable(&error) => {}
                read => {
                    read?;
                    unless(Bug::UnprovenNotRewritten, || file.write_at(at, page))?;
                }
            }
        }
        position += step as u64;
    }
    file.flush(range)
}

fn found(
    device: &Device,
    dir: &Path,
    meta: Meta,
    examined: Examined,
    recovered: Recovered,
) -> Found {
    let mut ends = Ends {
        segments: VecDeque::new(),
        recent: VecDeque::new(),
        first_index: examined.first_index,
        first_offset: examined.first_offset,
        last_index: examined.cursor.last_index,
        log_end: examined.cursor.log_end,
        last: examined.last,
        log_time_ms: log_time_of(&examined),
        room: 0,
        growing: false,
    };
    let position = examined.segments.last().map_or(0, |segment| segment.end);
    let count = examined.segments.len();
    for (number, segment) in examined.segments.into_iter().enumerate() {
        let is_last = number + 1 == count;
        if segment.rows.is_some() && !is_last {
            store_index(device, &segment);
        }
        let ExaminedSegment { header, path, file, end, sealed, rows, marks, recent, .. } = segment;
        let segment =
            Segment::new(header, path, file, (end.max(SEGMENT_HEADER_BYTES), rows, marks));
        if sealed {
            segment.seal();
        }
        if is_last {
            recent.into_iter().for_each(|(batch, at)| ends.remember(batch, &segment, at));
        }
        ends.segments.push_back(segment);
    }
    Found {
        ends,
        meta,
        cursor: examined.cursor,
        position,
        sequence: examined.sequence,
        damage: DamageBook::new(device.disk().clone(), dir.to_owned(), examined.damage),
        recovered,
    }
}

/// The log time at the end of what was found.
fn log_time_of(examined: &Examined) -> u64 {
    let last = examined.last.map(|last| last.log_time_ms);
    let begun = examined.segments.last().map(|segment| segment.header.created_ms);
    let start = examined.start.map(|start| start.log_time_ms);
    last.or(begun).or(start).unwrap_or(0)
}

/// Keeps the index of a sealed segment, so that the next start need not read it.
fn store_index(device: &Device, segment: &ExaminedSegment) {
    let stored = StoredIndex {
        salt: segment.header.salt,
        end: segment.end,
        last_position: segment.recent.back().map(|(_, position)| *position),
        cursor: segment.cursor,
        marks: segment.marks.clone(),
        rows: segment.rows.clone().unwrap_or_default(),
    };
    submit_index(device, segment.path.clone(), stored);
}

/// Writes a segment's index elsewhere; one that cannot be written is built anew by the next start.
pub(crate) fn submit_index(device: &Device, path: PathBuf, stored: StoredIndex) {
    let disk: Arc<dyn Disk> = device.disk().clone();
    let store = move || {
        if let Err(error) = index::store(&*disk, &path, &stored) {
            tracing::warn!(segment = %path.display(), %error, "its index was not stored");
        }
    };
    device.executor().submit(Lane::Prepare, Box::new(store));
}
