//! Looks at logs that nobody has open, for the offline tools.
//!
//! Owns: what there is to tell of the files of a log, batch by batch.
//! Never: changes a file.

use crate::checkpoint;
use crate::damage::DamagedRange;
use crate::disk::Disk;
use crate::error::{Corruption, OpenError};
use crate::limits::SEGMENT_HEADER_BYTES;
use crate::recovery::{Examined, examine, segment_name};
use crate::scan::Batches;
use crate::segment::SegmentHeader;
use std::io;
use std::path::{Path, PathBuf};
use weir_protocol::batch::BatchHeader;
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
        let whole = checkpoint::read(disk, dir, index).map_err(device())?.is_some();
        checkpoints.push((index, whole));
    }
    Ok(report(uuid, examined, checkpoints))
}

fn report(uuid: u128, examined: Examined, checkpoints: Vec<(Index, bool)>) -> LogReport {
    let segments = examined.segments.iter().map(|segment| SegmentReport {
        path: segment.path.clone(),
        sequence: segment.header.sequence,
        first_index: segment.header.base_index,
        first_offset: segment.header.base_offset,
        end: segment.end,
        bytes: segment.file.len(),
        sealed: segment.sealed,
        recycled: segment.header.recycled,
        salt: segment.header.salt,
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
    let batches = Batches { file: &*file, salt: segment.salt, end: segment.end.min(file.len()) };
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
