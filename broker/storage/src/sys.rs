//! The only module with unsafe code: memory maps, write-back, and a question about shared blocks.
//!
//! Owns: a shared mapping of a whole file of fixed length.
//! Never: truncates or punches a mapped file; makes a reference into bytes that may still be
//! stored to.
//! Invariants: a mapping outlives every [`Bytes`] over it (each holds the `Arc`); a range is
//! handed out only when its owner says that it is never stored to again.
#![allow(unsafe_code, reason = "none of it can be had without")]

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
    sync_file_range(file, range, libc::SYNC_FILE_RANGE_WRITE).map(drop)
}

/// Waits until what [`start_write_back`] began is written.
pub(crate) fn wait_for_write_back(file: &File, range: Range<u64>) -> io::Result<()> {
    sync_file_range(file, range, libc::SYNC_FILE_RANGE_WAIT_BEFORE).map(drop)
}

/// Writes the dirty pages of `range` to the device and waits until it has them. Returns whether the
/// system does that: where it does not, nothing is known of the range.
pub(crate) fn write_back(file: &File, range: Range<u64>) -> io::Result<bool> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_file_range(file, range, flags)
}

/// Returns whether the kernel knows the call, and allows it.
fn sync_file_range(file: &File, range: Range<u64>, flags: libc::c_uint) -> io::Result<bool> {
    let (start, len) = (range.start as i64, (range.end - range.start) as i64);
    if len == 0 {
        // To the kernel it would mean the whole rest of the file.
        return Ok(true);
    }
    // SAFETY: the call takes no pointers, and `file` keeps the descriptor open meanwhile.
    if unsafe { libc::sync_file_range(file.as_raw_fd(), start, len, flags) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EPERM | libc::EINVAL | libc::EOPNOTSUPP) => Ok(false),
        _ => Err(error),
    }
}

/// The kernel's `struct fiemap` (linux/fiemap.h) with room for one extent.
#[repr(C)]
#[derive(Default)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    /// `struct fiemap_extent`.
    logical: u64,
    physical: u64,
    extent_length: u64,
    reserved64: [u64; 2],
    extent_flags: u32,
    reserved32: [u32; 3],
}

/// `FS_IOC_FIEMAP`: `_IOWR('f', 11, struct fiemap)`, whose size is that without extents.
const FS_IOC_FIEMAP: libc::Ioctl = 0xc020_660b_u32 as libc::Ioctl;
const FIEMAP_EXTENT_SHARED: u32 = 0x2000;
const _: () = assert!(size_of::<Fiemap>() == 32 + 56);

/// Whether another file shares the blocks at the start of this one; also where nobody can tell.
pub(crate) fn has_shared_blocks(file: &File) -> bool {
    let mut map = Fiemap { length: 1, extent_count: 1, ..Fiemap::default() };
    // SAFETY: the kernel reads the 32 bytes of the head and writes them and at most one extent
    // (`extent_count`), which all lie in `map`; `file` keeps the descriptor open meanwhile.
    let told = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) };
    told != 0 || map.mapped_extents != 1 || map.extent_flags & FIEMAP_EXTENT_SHARED != 0
}
