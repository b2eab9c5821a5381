//! A segment's file that is made anew.
//!
//! Owns: writing it beside the one that it replaces, and the moment at which it does.
//! Never: gets its name before all of it is durable; changes a byte of what was there.

use super::MendError;
use crate::disk::{Disk, DiskFile, remove_if_there};
use crate::index;
use crate::limits::{DISK_RESERVE_BYTES, FILL_ROUND_BYTES};
use crate::scan::{Cursor, Source, Whole};
use crate::segment::SegmentHeader;
use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weir_protocol::batch::{BatchHeader, BatchType};
use weir_protocol::limits::BATCH_HEADER_BYTES;

/// A file on its way to its name.
pub(super) struct Fresh<'a> {
    disk: &'a dyn Disk,
    file: Arc<dyn DiskFile>,
    pub(super) header: SegmentHeader,
    /// The name that it gets.
    pub(super) path: PathBuf,
    /// The name that it has.
    beside: PathBuf,
}

/// Where the next batch goes.
pub(super) struct Spot {
    pub(super) position: u64,
    /// What holds there.
    pub(super) cursor: Cursor,
    /// Log time of the batch in front, where one was put there.
    pub(super) log_time_ms: u64,
}

impl<'a> Fresh<'a> {
    /// An empty file of the header's capacity.
    pub(super) fn create(
        disk: &'a dyn Disk,
        path: PathBuf,
        header: SegmentHeader,
    ) -> Result<Self, MendError> {
        let device = || MendError::device(&path);
        let beside = path.with_extension("seg.new");
        remove_if_there(disk, &beside).map_err(device())?;
        let free = disk.free_bytes(dir_of(&path)).map_err(device())?;
        if free < header.capacity + DISK_RESERVE_BYTES {
            return Err(MendError::NoSpace(path));
        }
        let file = disk.create(&beside, header.capacity).map_err(device())?;
        header.store(&*file).map_err(device())?;
        Ok(Self { disk, file, header, path, beside })
    }

    /// Copies a range of the file that is replaced. What cannot be read of it stays damaged; returns
    /// whether there is such.
    pub(super) fn copy(&mut self, old: &dyn DiskFile, range: Range<u64>) -> io::Result<bool> {
        let unreadable = Cell::new(false);
        let source = Source::telling(old, &unreadable);
        let mut position = range.start;
        let mut bytes = vec![0; FILL_ROUND_BYTES as usize];
        while position < range.end {
            let step = (range.end - position).min(FILL_ROUND_BYTES) as usize;
            source.read_at(position, &mut bytes[..step])?;
            self.file.write_at(position, &bytes[..step])?;
            position += step as u64;
        }
        Ok(unreadable.get())
    }

    /// Puts a batch there as a log would have: only the fields of this disk are its own.
    pub(super) fn put(&mut self, spot: &mut Spot, whole: &Whole) -> io::Result<()> {
        let mut header = whole.header;
        // Everything in front is durable before the file has its name.
        header.durable_pos = spot.position;
        self.file.write_at(spot.position, &header.stamp_local(self.header.salt))?;
        self.file.write_at(spot.position + BATCH_HEADER_BYTES as u64, &whole.body)?;
        spot.position += header.stored_len() as u64;
        spot.cursor.pass(&header);
        spot.log_time_ms = header.log_time_ms;
        Ok(())
    }

    /// Fills the place of marks that the log had left for itself.
    pub(super) fn fill_up(&mut self, spot: &mut Spot, end: u64) -> Result<(), MendError> {
        while spot.position < end {
            if spot.cursor.open_index {
                // No mark stands within an index.
                return Err(MendError::DoesNotFit);
            }
            let mut header = BatchHeader::empty(BatchType::Watermark);
            header.index = spot.cursor.last_index;
            header.term = spot.cursor.term;
            header.chain = spot.cursor.chain;
            header.base_offset = spot.cursor.log_end;
            header.log_time_ms = spot.log_time_ms;
            header.durable_pos = spot.position;
            let bytes = header.stamp_local(self.header.salt);
            let written = self.file.write_at(spot.position, &bytes);
            written.map_err(MendError::device(&self.path))?;
            spot.position += BATCH_HEADER_BYTES as u64;
        }
        Ok(())
    }

    /// Makes the file durable and gives it its name. Its index is made anew by the next start.
    pub(super) fn link(self) -> io::Result<()> {
        self.file.flush(0..self.header.capacity)?;
        remove_if_there(self.disk, &index::path_of(&self.path))?;
        self.disk.rename(&self.beside, &self.path)?;
        self.disk.sync_dir(dir_of(&self.path))
    }
}

/// The folder of a log's file.
fn dir_of(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}
