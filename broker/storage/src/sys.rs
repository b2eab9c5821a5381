//! The only module with unsafe code: memory maps, write-back, where a file lies on its device, and
//! what a fault in a map does.
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
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Once};

/// An open file, mapped where files are: one for all handles that this process has of it, so that
/// the count of its owners tells whether anybody else has it open or holds bytes of it.
#[derive(Debug)]
pub(crate) struct Mapping {
    map: Option<MmapRaw>,
    len: u64,
}

impl Mapping {
    /// Maps `file`, whose length must not change while the mapping lives.
    pub(crate) fn new(file: &File, len: u64) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { map: Some(MmapOptions::new().map_raw(file)?), len }))
    }

    /// Of a file that is not mapped.
    pub(crate) fn none(len: u64) -> Arc<Self> {
        Arc::new(Self { map: None, len })
    }

    /// The mapping, if there is one.
    pub(crate) fn is_mapped(&self) -> bool {
        self.map.is_some()
    }

    /// Bytes of the file when it was opened first.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Whether anybody besides the caller owns it: another handle of the file, or bytes of it.
    pub(crate) fn is_shared(self: &Arc<Self>) -> bool {
        if Arc::strong_count(self) > 1 {
            return true;
        }
        // Every other owner let go by a decrement with Release, and the count above was read from
        // the last of them: behind this fence all their loads have happened, so that no store of
        // ours can show in what they read. Nobody can become an owner but through the caller, or
        // by the name of the file: another life of its log, which finds it given up and reads none
        // of its batches.
        fence(Ordering::Acquire);
        false
    }

    fn checked(&self, position: u64, len: usize) -> io::Result<(&MmapRaw, usize)> {
        let map = self.map.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let start = usize::try_from(position).ok();
        let end = start.and_then(|start| start.checked_add(len));
        match (start, end) {
            (Some(start), Some(end)) if end <= map.len() => Ok((map, start)),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Copies into the map.
    pub(crate) fn store(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        let (map, start) = self.checked(position, bytes.len())?;
        // SAFETY: the range lies within the mapping, which is writable and lives as long as
        // `self`. No reference into the range exists: references are made only to published
        // bytes, and a log stores only behind its published end. Raw pointers are used on both
        // sides, so no `&mut` aliases the slices handed out elsewhere.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), map.as_mut_ptr().add(start), bytes.len());
        }
        Ok(())
    }

    /// Reads pages in without touching them from user code, so that errors are returned instead
    /// of raised as SIGBUS.
    pub(crate) fn populate(&self, range: Range<u64>) -> io::Result<()> {
        let len = (range.end - range.start) as usize;
        let (map, start) = self.checked(range.start, len)?;
        match map.advise_range(Advice::PopulateRead, start, len) {
            // Linux before 5.14 does not know it; there a fault ends the process.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            // What a load would be answered with by a signal.
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {
                Err(io::Error::from_raw_os_error(libc::EIO))
            }
            populated => populated,
        }
    }

    /// Shares a range that is never stored to again.
    pub(crate) fn share(self: &Arc<Self>, range: Range<u64>) -> io::Result<Bytes> {
        let len = (range.end - range.start) as usize;
        let (_, start) = self.checked(range.start, len)?;
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
        let Some(map) = &self.mapping.map else { return &[] };
        // SAFETY: `share` checked the range; the mapping lives as long as `self`; the caller of
        // `share` promised that the range is never stored to again, and the file is never
        // truncated while it is mapped.
        unsafe { std::slice::from_raw_parts(map.as_ptr().add(self.start), self.len) }
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

/// Where a part of a file lies on its device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) logical: u64,
    pub(crate) physical: u64,
    pub(crate) len: u64,
}

/// The kernel's `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FiemapExtent {
    at: [u64; 3],
    reserved64: [u64; 2],
    flags: u32,
    reserved32: [u32; 3],
}

/// The kernel's `struct fiemap` (linux/fiemap.h) with room for some extents.
#[repr(C)]
#[derive(Default)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [FiemapExtent; EXTENTS_AT_ONCE],
}

/// `FS_IOC_FIEMAP`: `_IOWR('f', 11, struct fiemap)`, whose size is that without extents.
const FS_IOC_FIEMAP: libc::Ioctl = 0xc020_660b_u32 as libc::Ioctl;
const EXTENTS_AT_ONCE: usize = 8;
/// A file in more pieces is no good.
const EXTENTS_MAX: usize = 512;
/// Flags of an extent whose place is not known, or not decided: unknown, delayed, encoded, inline,
/// unwritten.
const FIEMAP_UNSETTLED: u32 = 0x2 | 0x4 | 0x8 | 0x200 | 0x800;
const _: () = assert!(size_of::<Fiemap>() == 32 + 56 * EXTENTS_AT_ONCE);

/// Where a range lies on the device; none where nobody can tell, or where a part has no place yet.
pub(crate) fn extents(file: &File, range: Range<u64>) -> Option<Vec<Extent>> {
    let (mut found, mut start) = (Vec::new(), range.start);
    while start < range.end && found.len() < EXTENTS_MAX {
        let (length, extent_count) = (range.end - start, EXTENTS_AT_ONCE as u32);
        let mut map = Fiemap { start, length, extent_count, ..Fiemap::default() };
        // SAFETY: the kernel reads the 32 bytes of the head and writes them and at most
        // `extent_count` extents, which all lie in `map`; `file` keeps the descriptor open.
        if unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) } != 0 {
            return None;
        }
        for extent in map.extents.get(..map.mapped_extents as usize)? {
            let [logical, physical, len] = extent.at;
            let follows = logical <= start && start < logical.checked_add(len)?;
            if !follows || extent.flags & FIEMAP_UNSETTLED != 0 {
                return None;
            }
            found.push(Extent { logical, physical, len });
            start = logical + len;
        }
        if map.mapped_extents == 0 {
            return None;
        }
    }
    (start >= range.end).then_some(found)
}

/// From now on a fault in a mapped file ends the process with the file's name on standard error.
pub(crate) fn name_the_file_of_a_fault() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: zeros are a `sigaction`: no flags, nothing masked.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_fault;
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO;
        // SAFETY: `action` is whole, and its handler has the signature that SA_SIGINFO asks for. It
        // makes no call but those that a handler may make, and never returns.
        let done =
            unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
        debug_assert_eq!(done, 0, "the signal can be caught");
    });
}

/// Allocates nothing and takes no lock: any code may have been interrupted. Its stack is the
/// ordinary one, which has room: what faults is a load or a store of ours.
extern "C" fn on_fault(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a whole `siginfo`, which for SIGBUS has an address.
    let address = unsafe { (*info).si_addr() } as usize;
    let mut line = [0; 4608];
    let file = mapped_at(address, &mut line).unwrap_or(b"a page of memory");
    let text = [
        IoSlice::new(b"weir: SIGBUS: "),
        IoSlice::new(file),
        IoSlice::new(b" cannot be read: the device failed, or the file was made shorter\n"),
    ];
    // Who cannot be told is not told.
    let _ = rustix::io::writev(rustix::stdio::stderr(), &text);
    std::process::abort();
}

/// The file that is mapped at an address; `line` is room to find it in.
fn mapped_at(address: usize, line: &mut [u8; 4608]) -> Option<&[u8]> {
    use rustix::fs::{Mode, OFlags, open};
    let maps = open(c"/proc/self/maps", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut filled = 0;
    loop {
        let end = line.get(..filled)?.iter().position(|byte| *byte == b'\n');
        if let Some(end) = end {
            if let Some(path) = path_if_at(address, line.get(..end)?) {
                return line.get(path..end);
            }
            line.copy_within(end + 1..filled, 0);
            filled -= end + 1;
            continue;
        }
        // No line is longer than a path and some numbers.
        match rustix::io::read(&maps, line.get_mut(filled..)?) {
            Ok(0) | Err(_) => return None,
            Ok(read) => filled += read,
        }
    }
}

/// Where the path begins in a line of `/proc/self/maps`, if the line is about an address.
fn path_if_at(address: usize, line: &[u8]) -> Option<usize> {
    let number = |digits: &[u8]| {
        let digit = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as usize);
        digits.iter().try_fold(0usize, |number, byte| Some(number << 4 | digit(byte)?))
    };
    let mut ends = line.split(|byte| *byte == b'-' || *byte == b' ');
    let (start, end) = (number(ends.next()?)?, number(ends.next()?)?);
    let path = line.iter().position(|byte| *byte == b'/')?;
    (start..end).contains(&address).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    const CHILD: &str = "WEIR_TEST_FAULT_IN";

    #[test]
    fn a_fault_names_its_file_and_ends_the_process() {
        if let Some(path) = std::env::var_os(CHILD) {
            return fault_in(path.as_ref());
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("00000000000000000001-00000001.seg");
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "sys::tests::a_fault_names_its_file_and_ends_the_process"]);
        let ended = child.arg("--nocapture").env(CHILD, &path).output().unwrap();
        assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{ended:?}");
        let said = String::from_utf8(ended.stderr).unwrap();
        let line = said.lines().find(|line| line.starts_with("weir: SIGBUS: ")).unwrap();
        assert!(line.contains(path.to_str().unwrap()), "{line}");
        assert!(line.ends_with("the device failed, or the file was made shorter"), "{line}");
    }

    fn fault_in(path: &std::path::Path) {
        name_the_file_of_a_fault();
        let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        file.set_len(16 << 10).unwrap();
        let mapping = Mapping::new(&file, 16 << 10).unwrap();
        let bytes = mapping.share(8 << 10..9 << 10).unwrap();
        file.set_len(4 << 10).unwrap();
        panic!("{} is read behind the end of its file", bytes[0]);
    }

    #[test]
    fn a_line_of_the_maps_is_understood() {
        let line = b"7f00a000-7f00c000 rw-s 00000000 fe:00 77   /data/p-1/a b.seg";
        let path = |address| path_if_at(address, line).map(|at| &line[at..]);
        assert_eq!(path(0x7f00_a000), Some(&b"/data/p-1/a b.seg"[..]));
        assert_eq!(path(0x7f00_bfff), path(0x7f00_a000));
        assert_eq!((path(0x7f00_9fff), path(0x7f00_c000)), (None, None));
        assert_eq!(path_if_at(1, b"0-2 rw-p 00000000 00:00 0 [stack]"), None);
        assert_eq!(path_if_at(1, b"no line"), None);
    }

    #[test]
    fn who_owns_a_mapping_is_known() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &[1; 8192]).unwrap();
        let mapping = Mapping::new(&file, 8192).unwrap();
        assert!(!mapping.is_shared());
        let bytes = mapping.share(0..100).unwrap();
        let part = bytes.slice(10..20);
        drop(bytes);
        assert!(mapping.is_shared());
        drop(part);
        assert!(!mapping.is_shared());
        assert!(mapping.share(8000..9000).is_err(), "behind the end");
        assert!(Mapping::none(8192).share(0..1).is_err(), "not mapped");
    }
}
