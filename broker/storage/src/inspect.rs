//! Looks at logs that nobody has open, for the offline tools.
//!
//! Owns: what there is to tell of the files of a log, batch by batch.
//! Never: changes a file.

mod beside;

pub use beside::{IndexReport, MetaReport, Row, checkpoint, damage, index, meta};

use crate::checkpoint;
use crate::damage::DamagedRange;
use crate::disk::Disk;
use crate::error::{Corruption, CorruptionKind, OpenError};
use crate::limits::SEGMENT_HEADER_BYTES;
use crate::recovery::{Examined, examine, segment_name};
use crate::scan::{Batches, Source, last_byte_in};
use crate::segment::{SEGMENT_VERSION, SegmentHeader, SegmentHeaderError};
use std::io;
use std::path::{Path, PathBuf};
use weir_protocol::batch::{BatchHeader, BatchType};
use weir_protocol::limits::BATCH_ALIGN_BYTES;
use weir_protocol::types::{Index, Offset};

/// A log as its files show it, every batch of them read.
#[derive(Debug, Clone)]
pub struct LogReport {
    /// Identity of the log.
    pub uuid: u128,
    /// Its segments, the oldest first.
    pub segments: Vec<SegmentReport>,
    /// First index held.
    pub first_index: Index,
    /// Last index held.
    pub last_index: Index,
    /// First offset held.
    pub log_start: Offset,
    /// Behind the last record.
    pub log_end: Offset,
    /// What cannot be read, accepted losses included.
    pub damaged: Vec<DamagedRange>,
    /// The end is damaged, and nothing tells how much is lost: the log does not open.
    pub lost_tail: Option<Corruption>,
    /// Bytes of a torn tail, never acknowledged, that the next start cuts off.
    pub torn_bytes: u64,
    /// Accepted bytes that the next start writes again, because nothing proves that they were
    /// flushed.
    pub unproven_bytes: u64,
    /// Checkpoints by index, and whether they are whole.
    pub checkpoints: Vec<(Index, bool)>,
    /// Files that the next start removes.
    pub dead: Vec<PathBuf>,
    /// Batches that were read.
    pub batches: u64,
}

/// One segment of a [`LogReport`].
#[derive(Debug, Clone)]
pub struct SegmentReport {
    /// Its file.
    pub path: PathBuf,
    /// Its number.
    pub sequence: u64,
    /// First index.
    pub first_index: Index,
    /// First offset.
    pub first_offset: Offset,
    /// Where its batches end, in bytes.
    pub end: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// No batch is appended to it any more.
    pub sealed: bool,
    /// The file had an earlier life.
    pub recycled: bool,
    /// Salt of its batches.
    pub salt: u64,
}

impl SegmentReport {
    fn new(path: &Path, header: &SegmentHeader, (end, bytes): (u64, u64), sealed: bool) -> Self {
        Self {
            path: path.to_owned(),
            sequence: header.sequence,
            first_index: header.base_index,
            first_offset: header.base_offset,
            end,
            bytes,
            sealed,
            recycled: header.recycled,
            salt: header.salt,
        }
    }
}

/// The identity of the log in `dir`, as its segments say; none where there is no segment that can be
/// believed.
pub fn uuid_of(disk: &dyn Disk, dir: &Path) -> Result<Option<u128>, OpenError> {
    for name in disk.list(dir).map_err(OpenError::device(dir))? {
        let path = dir.join(&name);
        if !name.ends_with(".seg") {
            continue;
        }
        let file = disk.open(&path).map_err(OpenError::device(&path))?;
        let header = SegmentHeader::load(&*file).map_err(OpenError::device(&path))?;
        if let Ok(header) = header
            && segment_name(header.base_index, header.sequence) == name
        {
            return Ok(Some(header.partition_uuid));
        }
    }
    Ok(None)
}

/// Reads every byte of the log `uuid` in `dir` that means something.
pub fn verify(disk: &dyn Disk, dir: &Path, uuid: u128) -> Result<LogReport, OpenError> {
    let examined = examine(disk, dir, uuid, true)?;
    let mut checkpoints = Vec::new();
    let device = || OpenError::device(dir);
    for index in checkpoint::list(disk, dir).map_err(device())? {
        let whole = checkpoint::read(disk, dir, Some(uuid), index).map_err(device())?.is_some();
        checkpoints.push((index, whole));
    }
    Ok(report(uuid, examined, checkpoints))
}

/// One segment file by itself. What a later segment cut off is a part of it, and so is everything
/// behind its last whole batch that is not zero.
pub fn segment(disk: &dyn Disk, path: &Path) -> Result<SegmentReport, OpenError> {
    let device = || OpenError::device(path);
    let file = disk.open(path).map_err(device())?;
    let header = match SegmentHeader::load(&*file).map_err(device())? {
        Ok(header) => header,
        Err(SegmentHeaderError::Newer(found)) => {
            return Err(OpenError::Newer { file: path.to_owned(), found, known: SEGMENT_VERSION });
        }
        Err(SegmentHeaderError::Damaged) => {
            let kind = CorruptionKind::SegmentHeader;
            return Err(Corruption { file: path.to_owned(), position: 0, kind }.into());
        }
    };
    let batches = Batches { file: Source::of(&*file), salt: header.salt, end: file.len() };
    let (end, sealed) = written_end(&batches).map_err(device())?;
    Ok(SegmentReport::new(path, &header, (end, file.len()), sealed))
}

/// Where the last byte that means something ends, and whether the last whole batch is a SEAL. A
/// batch may end in zeros of its own.
fn written_end(batches: &Batches<'_>) -> io::Result<(u64, bool)> {
    let (mut end, mut sealed) = (SEGMENT_HEADER_BYTES, false);
    loop {
        if let Ok(whole) = batches.whole_at(end)? {
            sealed = whole.header.batch_type == BatchType::Seal;
            end += whole.header.stored_len() as u64;
        } else if let Some(found) = batches.next_whole_anywhere(end + 1)? {
            end = found;
        } else {
            break;
        }
    }
    let last = last_byte_in(batches.file, end..batches.end)?;
    let rounded = |last: u64| last.next_multiple_of(BATCH_ALIGN_BYTES as u64).min(batches.end);
    Ok((last.map_or(end, rounded), sealed))
}

fn report(uuid: u128, examined: Examined, checkpoints: Vec<(Index, bool)>) -> LogReport {
    let segments = examined.segments.iter().map(|segment| {
        let ends = (segment.end, segment.file.len());
        SegmentReport::new(&segment.path, &segment.header, ends, segment.sealed)
    });
    LogReport {
        uuid,
        segments: segments.collect(),
        first_index: examined.first_index,
        last_index: examined.cursor.last_index,
        log_start: examined.first_offset,
        log_end: examined.cursor.log_end,
        torn_bytes: if examined.lost_tail.is_some() { 0 } else { examined.torn_bytes },
        lost_tail: examined.lost_tail,
        damaged: examined.damage,
        unproven_bytes: examined.unproven.end - examined.unproven.start,
        checkpoints,
        dead: examined.dead,
        batches: examined.batches_read,
    }
}

/// One place of a segment's file.
#[derive(Debug, Clone)]
pub enum Dumped {
    /// A whole batch: where it stands, its header and its body.
    Batch {
        /// Bytes from the start of the file.
        position: u64,
        /// Its header.
        header: BatchHeader,
        /// Its body, without padding.
        body: Vec<u8>,
    },
    /// Bytes that are no batch, up to the next whole one.
    Unreadable {
        /// Where they begin.
        position: u64,
        /// Where they end.
        end: u64,
        /// Why no batch begins there.
        reason: String,
    },
}

/// Calls `see` with every batch of a segment, in order, until it says no.
pub fn dump(
    disk: &dyn Disk,
    segment: &SegmentReport,
    mut see: impl FnMut(Dumped) -> bool,
) -> io::Result<()> {
    let file = disk.open(&segment.path)?;
    let batches =
        Batches { file: Source::of(&*file), salt: segment.salt, end: segment.end.min(file.len()) };
    let mut position = SEGMENT_HEADER_BYTES;
    while position < batches.end {
        let dumped = match batches.whole_at(position)? {
            Ok(whole) => {
                let at = position;
                position += whole.header.stored_len() as u64;
                Dumped::Batch { position: at, header: whole.header, body: whole.body }
            }
            Err(reason) => {
                let end = batches.next_whole_anywhere(position + 1)?.unwrap_or(batches.end);
                let at = std::mem::replace(&mut position, end);
                Dumped::Unreadable { position: at, end, reason: reason.to_string() }
            }
        };
        if !see(dumped) {
            return Ok(());
        }
    }
    Ok(())
}
