//! The operating system's filesystem, with both ways to store: through a map, or by pwrite.
//!
//! Owns: paths, file descriptors, mappings, the lock file, and the probe that chooses.
//! Never: leaves a block of a file unwritten: a store through a map into a hole of a full
//! filesystem would be a SIGBUS.
//! Invariant: both backends leave identical bytes.

use crate::disk::{DeviceId, Disk, DiskFile, DiskLock};
use crate::limits::{FILL_BYTES, FILL_ROUND_BYTES, PWRITE_BODY_BYTES};
use crate::sys::{self, Mapping};
use bytes::{Bytes, BytesMut};
use rustix::fs::{FallocateFlags, fallocate, fdatasync, statvfs};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// How bytes get into a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Stores through a shared memory map; large ones by pwrite into the same file.
    Map,
    /// Every store by pwrite, every read by pread.
    Pwrite,
}

/// The operating system's filesystem.
#[derive(Debug)]
pub struct OsDisk {
    backend: Backend,
    /// By device; a data directory lies on one.
    sharing: Mutex<Vec<(u64, Sharing)>>,
}

/// Filesystems on which maps are no good: no device to flush (tmpfs, ramfs), or every store
/// allocates anew (btrfs, zfs, overlay, network).
const NOT_FOR_MAPS: [(i64, &str); 6] = [
    (0x0102_1994, "tmpfs"),
    (0x8584_58f6, "ramfs"),
    (0x9123_683e, "btrfs"),
    (0x2fc1_2fc1, "zfs"),
    (0x794c_7630, "overlayfs"),
    (0x6969, "nfs"),
];

/// What a flush of one file does for the others of its filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    /// Nothing that could be relied on.
    None,
    /// The device is flushed whenever a file is (ext4). All blocks of a file are written when it is
    /// made, so that a later store leaves nothing behind but data.
    Device,
    /// The same, unless blocks of the file are shared with a copy (XFS): a store then allocates
    /// anew, and only a flush of the file itself makes that durable.
    DeviceUnlessCloned,
}

/// Where `/proc/self/mountinfo` says how a device is mounted. With `data=journal` a store is in the
/// journal until its own file is flushed.
fn sharing_of(device: u64) -> Sharing {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    sharing_in(&mounts, rustix::fs::major(device), rustix::fs::minor(device))
}

fn sharing_in(mounts: &str, major: u32, minor: u32) -> Sharing {
    let place = format!("{major}:{minor}");
    let mut found = None;
    for line in mounts.lines().filter(|line| line.split(' ').nth(2) == Some(&place)) {
        let Some((_, of_filesystem)) = line.split_once(" - ") else { continue };
        let mut fields = of_filesystem.split(' ');
        let (kind, options) = (fields.next(), fields.nth(1).unwrap_or_default());
        let sharing = match kind {
            Some("ext4") if !options.split(',').any(|option| option == "data=journal") => {
                Sharing::Device
            }
            Some("xfs") => Sharing::DeviceUnlessCloned,
            _ => Sharing::None,
        };
        // Mounted twice, the weaker promise holds.
        found = match found {
            None => Some(sharing),
            Some(known) if known == sharing => Some(known),
            Some(_) => Some(Sharing::None),
        };
    }
    found.unwrap_or(Sharing::None)
}

impl OsDisk {
    /// A disk that stores as told.
    pub fn new(backend: Backend) -> Self {
        Self { backend, sharing: Mutex::default() }
    }

    /// A disk that stores as the filesystem below `path` (which exists) asks for; warns where
    /// that is not the map.
    pub fn probe(path: &Path) -> io::Result<Self> {
        let kind = rustix::fs::statfs(path)?.f_type as i64;
        let unfit = NOT_FOR_MAPS.iter().find(|(magic, _)| *magic == kind);
        let backend = match unfit {
            None => Backend::Map,
            Some((_, name)) => {
                tracing::warn!(
                    path = %path.display(),
                    filesystem = name,
                    "segments are written by pwrite here; ext4 or XFS on a disk is what durability \
                     and speed were measured on"
                );
                Backend::Pwrite
            }
        };
        Ok(Self::new(backend))
    }

    fn sharing(&self, device: u64) -> Sharing {
        let mut known = self.sharing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, sharing)) = known.iter().find(|(of, _)| *of == device) {
            return *sharing;
        }
        let sharing = sharing_of(device);
        known.push((device, sharing));
        sharing
    }

    fn file(&self, file: File, filled_here: bool) -> io::Result<Arc<dyn DiskFile>> {
        let metadata = file.metadata()?;
        let len = metadata.len();
        let (device, sharing) = (DeviceId(metadata.dev()), self.sharing(metadata.dev()));
        let map = match self.backend {
            Backend::Map if len > 0 => Some(Mapping::new(&file)?),
            _ => None,
        };
        Ok(Arc::new(OsFile { file, len, map, filled_here, device, sharing }))
    }
}

impl Disk for OsDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn create(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        let made = fill(&mut file, bytes).and_then(|()| self.file(file, true));
        if made.is_err() {
            // The first error is the one to report; a leftover is removed at the next start.
            let _ = fs::remove_file(path);
        }
        made
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.file(OpenOptions::new().read(true).write(true).open(path)?, false)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for item in fs::read_dir(path)? {
            names.push(item?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let found = statvfs(path)?;
        Ok(found.f_bavail * found.f_frsize)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn DiskLock>>> {
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Some(Box::new(OsLock { _file: file })))
    }
}

/// Allocates first, so that a full disk is noticed before anything is written, then writes every
/// block, so that no later store needs an allocation. Little of that is under way at any time: a
/// flush of a log waits for everything that the device has taken before it.
fn fill(file: &mut File, bytes: u64) -> io::Result<()> {
    match fallocate(&*file, FallocateFlags::empty(), 0, bytes) {
        // Filesystems without it allocate while the zeros are written.
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
        Err(error) => return Err(error.into()),
    }
    let zeros = [0u8; FILL_BYTES];
    let (mut filled, mut previous) = (0, 0..0);
    while filled < bytes {
        let round = filled..bytes.min(filled + FILL_ROUND_BYTES);
        while filled < round.end {
            let step = (round.end - filled).min(FILL_BYTES as u64);
            file.write_all(&zeros[..step as usize])?;
            filled += step;
        }
        sys::start_write_back(file, round.clone())?;
        sys::wait_for_write_back(file, previous)?;
        previous = round;
    }
    file.sync_all()
}

#[derive(Debug)]
struct OsLock {
    _file: File,
}

impl DiskLock for OsLock {}

#[derive(Debug)]
struct OsFile {
    file: File,
    len: u64,
    map: Option<Arc<Mapping>>,
    /// The cache holds its pages as [`fill`] made them. A file that was read in may lie in larger
    /// folios, and a store through the map would make all of one dirty.
    filled_here: bool,
    device: DeviceId,
    sharing: Sharing,
}

impl DiskFile for OsFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        match &self.map {
            // Small reads are headers near the published end: in memory, and cheaper this way.
            Some(map) if into.len() <= 4096 => map.read(position, into),
            _ => self.file.read_exact_at(into, position),
        }
    }

    fn write_at(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        if position + bytes.len() as u64 > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match &self.map {
            Some(map) if self.filled_here && bytes.len() < PWRITE_BODY_BYTES => {
                map.store(position, bytes)
            }
            _ => self.file.write_all_at(bytes, position),
        }
    }

    fn flush(&self, _range: Range<u64>) -> io::Result<()> {
        // Pages that were stored to through the map are dirty in the page cache like written
        // ones, so this covers both.
        Ok(fdatasync(&self.file)?)
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
        // The start of a file is never stored to again, so that a clone shows there for good.
        let shares = match self.sharing {
            Sharing::None => false,
            Sharing::Device => true,
            Sharing::DeviceUnlessCloned => !sys::has_shared_blocks(&self.file),
        };
        let written = shares && sys::write_back(&self.file, range)?;
        Ok(written.then_some(self.device))
    }

    fn prepare(&self, range: Range<u64>) -> io::Result<()> {
        match &self.map {
            Some(map) => map.populate(range.start..range.end.min(self.len)),
            None => Ok(()),
        }
    }

    fn bytes(&self, range: Range<u64>) -> io::Result<Bytes> {
        if let Some(map) = &self.map {
            return map.share(range);
        }
        let mut copy = BytesMut::zeroed((range.end - range.start) as usize);
        self.file.read_exact_at(&mut copy, range.start)?;
        Ok(copy.freeze())
    }
    fn is_held(&self) -> bool {
        self.map.as_ref().is_some_and(|map| Arc::strong_count(map) > 1)
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
        direct.read_exact_at(&mut block[..len], start)?;
        into.copy_from_slice(&block[skipped..skipped + into.len()]);
        Ok(())
    }
}

/// What a read past the cache must be aligned to: the largest logical block of common devices.
const DIRECT_ALIGN_BYTES: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
23 1 8:2 / /journal rw - ext4 /dev/sda2 rw,data=journal
24 1 8:3 / /x rw,noatime - xfs /dev/sda3 rw,attr2,inode64
25 1 0:30 / /tmp rw - tmpfs tmpfs rw
26 1 8:3 /sub /y rw shared:2 master:1 - xfs /dev/sda3 rw,attr2,inode64
";

    #[test]
    fn only_filesystems_that_flush_the_device_share_a_flush() {
        assert_eq!(sharing_in(MOUNTS, 8, 1), Sharing::Device);
        assert_eq!(sharing_in(MOUNTS, 8, 2), Sharing::None, "data in the journal");
        assert_eq!(sharing_in(MOUNTS, 8, 3), Sharing::DeviceUnlessCloned);
        assert_eq!(sharing_in(MOUNTS, 0, 30), Sharing::None);
        assert_eq!(sharing_in(MOUNTS, 9, 9), Sharing::None, "nothing is known");
    }
}
