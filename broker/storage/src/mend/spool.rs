//! What was brought to fill a hole, until all of it is there.
//!
//! Owns: files beside the log that hold batches in their order; a start removes them.
//! Never: judges a batch; holds more than one of them in memory.

use crate::disk::{Disk, DiskFile, remove_if_there};
use crate::scan::{Batches, Source, Whole};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weir_protocol::batch::BatchHeader;
use weir_protocol::limits::BATCH_HEADER_BYTES;

/// Bytes of one of its files, unless one batch alone needs more.
const FILE_BYTES: u64 = 4 << 20;

/// Batches in their order.
pub(super) struct Spool {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    salt: u64,
    files: Vec<Filled>,
    bytes: u64,
    first_log_time_ms: u64,
}

struct Filled {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    end: u64,
}

impl Spool {
    pub(super) fn empty(disk: Arc<dyn Disk>, dir: &Path, salt: u64) -> io::Result<Self> {
        // What an earlier try left takes room.
        for name in disk.list(dir)?.iter().filter(|name| name.ends_with(".new")) {
            remove_if_there(&*disk, &dir.join(name))?;
        }
        let dir = dir.to_owned();
        Ok(Self { disk, dir, salt, files: Vec::new(), bytes: 0, first_log_time_ms: 0 })
    }

    /// Bytes of all batches as they are stored.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Log time of the first batch, milliseconds since the epoch.
    pub(super) fn first_log_time_ms(&self) -> u64 {
        self.first_log_time_ms
    }

    pub(super) fn push(&mut self, header: &BatchHeader, body: &[u8]) -> io::Result<()> {
        let len = header.stored_len() as u64;
        if self.files.last().is_none_or(|last| last.end + len > last.file.len()) {
            let path = self.dir.join(format!("mend-{}.new", self.files.len()));
            let file = self.disk.create(&path, FILE_BYTES.max(len))?;
            self.files.push(Filled { file, path, end: 0 });
        }
        let filled = self.files.last_mut().expect("a file was made if there was none");
        let mut header = *header;
        filled.file.write_at(filled.end, &header.stamp_local(self.salt))?;
        filled.file.write_at(filled.end + BATCH_HEADER_BYTES as u64, body)?;
        if self.bytes == 0 {
            self.first_log_time_ms = header.log_time_ms;
        }
        filled.end += len;
        self.bytes += len;
        Ok(())
    }

    /// Shows the batches in a range of all bytes, which begins and ends between batches.
    pub(super) fn read(
        &self,
        range: Range<u64>,
        mut see: impl FnMut(&Whole) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut passed = 0;
        for Filled { file, end, .. } in &self.files {
            let batches = Batches { file: Source::of(&**file), salt: self.salt, end: *end };
            let mut position = 0;
            while position < *end && passed < range.end {
                let whole = batches.whole_at(position)?;
                let whole =
                    whole.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                if passed >= range.start {
                    see(&whole)?;
                }
                position += whole.header.stored_len() as u64;
                passed += whole.header.stored_len() as u64;
            }
        }
        Ok(())
    }

    /// Removes its files; the folder need not know at once.
    pub(super) fn remove(&mut self) -> io::Result<()> {
        self.files.drain(..).try_for_each(|filled| remove_if_there(&*self.disk, &filled.path))
    }
}
