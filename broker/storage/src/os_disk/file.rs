//! One open file of the operating system.
//!
//! Owns: its descriptor, and how each range of it is read, stored and flushed.
//! Never: loads from a map, which a device that fails answers with a signal: every read is a call,
//! and what [`DiskFile::bytes`] hands out was read in before.

use super::sharing::{Layout, Sharing};
use crate::disk::{DeviceId, DiskFile};
use crate::limits::PWRITE_BODY_BYTES;
use crate::sys::{self, Mapping};
use bytes::{Bytes, BytesMut};
use rustix::fs::fdatasync;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct OsFile {
    /// Dropped before the descriptor: as long as anybody has the mapping, no other file has the
    /// same inode.
    pub(super) map: Arc<Mapping>,
    pub(super) file: File,
    pub(super) len: u64,
    /// The cache holds its pages as they were filled. A file that was read in may lie in larger
    /// folios, and a store through the map would make all of one dirty.
    pub(super) filled_here: bool,
    pub(super) device: DeviceId,
    pub(super) sharing: Sharing,
    pub(super) layout: Layout,
}

impl DiskFile for OsFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, position)
    }

    fn write_at(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        if position + bytes.len() as u64 > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if self.map.is_mapped() && self.filled_here && bytes.len() < PWRITE_BODY_BYTES {
            return self.map.store(position, bytes);
        }
        self.file.write_all_at(bytes, position)
    }

    fn flush(&self, _range: Range<u64>) -> io::Result<()> {
        // Pages that were stored to through the map are dirty in the page cache like written
        // ones, so this covers both.
        let flush = || Ok(fdatasync(&self.file)?);
        match self.sharing {
            Sharing::DeviceUnlessCloned => self.layout.flushed(&self.file, flush),
            Sharing::None | Sharing::Device => flush(),
        }
    }

    fn hand_over(&self, range: Range<u64>) -> io::Result<()> {
        match self.sharing {
            Sharing::None => Ok(()),
            Sharing::Device | Sharing::DeviceUnlessCloned => {
                sys::start_write_back(&self.file, range)
            }
        }
    }

    fn handed_over(&self, range: Range<u64>) -> io::Result<Option<DeviceId>> {
        if self.sharing == Sharing::None || !sys::write_back(&self.file, range.clone())? {
            return Ok(None);
        }
        let covered = match self.sharing {
            Sharing::DeviceUnlessCloned => self.layout.is_kept(&self.file, range),
            Sharing::None | Sharing::Device => true,
        };
        Ok(covered.then_some(self.device))
    }

    fn prepare(&self, range: Range<u64>) -> io::Result<()> {
        if !self.map.is_mapped() {
            return Ok(());
        }
        self.map.populate(range.start.min(self.len)..range.end.min(self.len))
    }

    fn bytes(&self, range: Range<u64>) -> io::Result<Bytes> {
        if self.map.is_mapped() {
            return self.map.share(range);
        }
        let mut copy = BytesMut::zeroed((range.end - range.start) as usize);
        self.file.read_exact_at(&mut copy, range.start)?;
        Ok(copy.freeze())
    }

    fn is_held(&self) -> bool {
        self.map.is_shared()
    }

    fn read_device(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        // By its descriptor: the file may have another name by now.
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path);
        // Filesystems in memory have no device to ask.
        let Ok(direct) = direct else { return self.file.read_exact_at(into, position) };
        let start = position - position % DIRECT_ALIGN_BYTES as u64;
        let skipped = (position - start) as usize;
        let len = (skipped + into.len()).next_multiple_of(DIRECT_ALIGN_BYTES);
        let mut buffer = vec![0; len + DIRECT_ALIGN_BYTES];
        let aligned = buffer.as_ptr().align_offset(DIRECT_ALIGN_BYTES);
        let block = &mut buffer[aligned..aligned + len];
        let mut read = 0;
        // Only at the end of the file less comes than a multiple of what was asked for.
        while read < len && read.is_multiple_of(DIRECT_ALIGN_BYTES) {
            match direct.read_at(&mut block[read..], start + read as u64) {
                Ok(0) => break,
                Ok(count) => read += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if read < skipped + into.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        into.copy_from_slice(&block[skipped..skipped + into.len()]);
        Ok(())
    }
}

/// What a read past the cache must be aligned to: the largest logical block of common devices.
const DIRECT_ALIGN_BYTES: usize = 4 << 10;
