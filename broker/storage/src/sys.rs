//! The only module with unsafe code: memory maps, and the start of write-back.
//!
//! Owns: a shared mapping of a whole file of fixed length.
//! Never: truncates or punches a mapped file; makes a reference into bytes that may still be
//! stored to.
//! Invariants: a mapping outlives every [`Bytes`] over it (each holds the `Arc`); a range is
//! handed out only when its owner says that it is never stored to again.
#![allow(unsafe_code, reason = "neither can be had without it")]

use bytes::Bytes;
use memmap2::{Advice, MmapOptions, MmapRaw};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// A shared mapping of a whole file.
#[derive(Debug)]
pub(crate) struct Mapping {
    map: MmapRaw,
}

impl Mapping {
    /// Maps `file`, whose length must not change while the mapping lives.
    pub(crate) fn new(file: &File) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { map: MmapOptions::new().map_raw(file)? }))
    }

    fn checked(&self, position: u64, len: usize) -> io::Result<usize> {
        let start = usize::try_from(position).ok();
        let end = start.and_then(|start| start.checked_add(len));
        match (start, end) {
            (Some(start), Some(end)) if end <= self.map.len() => Ok(start),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Copies out of the map.
    pub(crate) fn read(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        let start = self.checked(position, into.len())?;
        // SAFETY: the range lies within the mapping, which lives as long as `self`; `into` is
        // memory of our own, so the two cannot overlap. A racing store by this process to the
        // same bytes is excluded by the callers: they read below the published end or own the log.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.map.as_ptr().add(start),
                into.as_mut_ptr(),
                into.len(),
            );
        }
        Ok(())
    }

    /// Copies into the map.
    pub(crate) fn store(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        let start = self.checked(position, bytes.len())?;
        // SAFETY: the range lies within the mapping, which is writable and lives as long as
        // `self`. No reference into the range exists: references are made only to published
        // bytes, and a log stores only behind its published end. Raw pointers are used on both
        // sides, so no `&mut` aliases the slices handed out elsewhere.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.map.as_mut_ptr().add(start),
                bytes.len(),
            );
        }
        Ok(())
    }

    /// Reads pages in without touching them from user code, so that errors are returned instead
    /// of raised as SIGBUS.
    pub(crate) fn populate(&self, range: Range<u64>) -> io::Result<()> {
        let len = (range.end - range.start) as usize;
        let start = self.checked(range.start, len)?;
        self.map.advise_range(Advice::PopulateRead, start, len)
    }

    /// Shares a range that is never stored to again.
    pub(crate) fn share(self: &Arc<Self>, range: Range<u64>) -> io::Result<Bytes> {
        let len = (range.end - range.start) as usize;
        let start = self.checked(range.start, len)?;
        Ok(Bytes::from_owner(Shared { mapping: self.clone(), start, len }))
    }
}

struct Shared {
    mapping: Arc<Mapping>,
    start: usize,
    len: usize,
}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `share` checked the range; the mapping lives as long as `self`; the caller of
        // `share` promised that the range is never stored to again, and the file is never
        // truncated while it is mapped.
        unsafe { std::slice::from_raw_parts(self.mapping.map.as_ptr().add(self.start), self.len) }
    }
}

/// Starts to write the dirty pages of `range` to the device. This is no flush: only how much is
/// left to write at the next one depends on it.
pub(crate) fn start_write_back(file: &File, range: Range<u64>) -> io::Result<()> {
    sync_file_range(file, range, libc::SYNC_FILE_RANGE_WRITE)
}

/// Waits until what [`start_write_back`] began is written.
pub(crate) fn wait_for_write_back(file: &File, range: Range<u64>) -> io::Result<()> {
    sync_file_range(file, range, libc::SYNC_FILE_RANGE_WAIT_BEFORE)
}

fn sync_file_range(file: &File, range: Range<u64>, flags: libc::c_uint) -> io::Result<()> {
    let (start, len) = (range.start as i64, (range.end - range.start) as i64);
    if len == 0 {
        // To the kernel it would mean the whole rest of the file.
        return Ok(());
    }
    // SAFETY: the call takes no pointers, and `file` keeps the descriptor open meanwhile.
    if unsafe { libc::sync_file_range(file.as_raw_fd(), start, len, flags) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // A kernel that lacks the call, or forbids it, writes all of it at the next flush.
        Some(libc::ENOSYS | libc::EPERM | libc::EINVAL | libc::EOPNOTSUPP) => Ok(()),
        _ => Err(error),
    }
}
