//! The operating system's filesystem, with both ways to store: through a map, or by pwrite.
//!
//! Owns: paths, which files are open or mapped, the lock file, and the probe that chooses.
//! Never: leaves a block of a file unwritten: a store through a map into a hole of a full
//! filesystem would be a SIGBUS.
//! Invariants: both backends leave identical bytes; a file has one mapping in the process, however
//! often it is open.

mod file;
mod sharing;

use crate::disk::{DeviceId, Disk, DiskFile, DiskLock};
use crate::limits::{FILL_BYTES, FILL_ROUND_BYTES};
use crate::sys::{self, Mapping};
use file::OsFile;
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use sharing::{Layout, Sharing, sharing_of};
use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

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
    /// Of every file that is open or held, by device and inode: a file that is opened again, by
    /// another life of its log, shares the mapping that the first life may still read.
    mappings: Mutex<HashMap<(u64, u64), Weak<Mapping>>>,
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

impl OsDisk {
    /// A disk that stores as told.
    pub fn new(backend: Backend) -> Self {
        sys::name_the_file_of_a_fault();
        Self { backend, sharing: Mutex::default(), mappings: Mutex::default() }
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
        let (len, device) = (metadata.len(), DeviceId(metadata.dev()));
        let (map, sharing) = (self.mapping(&file, &metadata)?, self.sharing(metadata.dev()));
        let layout = Layout::default();
        Ok(Arc::new(OsFile { map, file, len, filled_here, device, sharing, layout }))
    }

    /// The mapping of a file, which it has already or gets here.
    fn mapping(&self, file: &File, metadata: &Metadata) -> io::Result<Arc<Mapping>> {
        let (inode, len) = ((metadata.dev(), metadata.ino()), metadata.len());
        let mut mappings = self.mappings.lock().unwrap_or_else(PoisonError::into_inner);
        let there = mappings.get(&inode).and_then(Weak::upgrade);
        // Somebody may have cut the file: no log takes one over that is not as long as it was made.
        if let Some(mapping) = there.filter(|mapping| mapping.len() == len) {
            return Ok(mapping);
        }
        let mapping = match self.backend {
            Backend::Map if len > 0 => Mapping::new(file, len)?,
            Backend::Map | Backend::Pwrite => Mapping::none(len),
        };
        if mappings.len() == mappings.capacity() {
            mappings.retain(|_, mapping| mapping.strong_count() > 0);
            let living = mappings.len();
            mappings.reserve(living + 1);
        }
        mappings.insert(inode, Arc::downgrade(&mapping));
        Ok(mapping)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_mapping_however_often_it_is_open() {
        for backend in [Backend::Map, Backend::Pwrite] {
            let folder = tempfile::tempdir().unwrap();
            let (disk, path) = (OsDisk::new(backend), folder.path().join("a"));
            let first = disk.create(&path, 8192).unwrap();
            assert!(!first.is_held());
            let second = disk.open(&path).unwrap();
            assert!(first.is_held() && second.is_held());
            let bytes = second.bytes(0..100).unwrap();
            drop(second);
            assert_eq!(first.is_held(), backend == Backend::Map, "a copy holds nothing");
            drop(first);
            let third = disk.open(&path).unwrap();
            assert_eq!(third.is_held(), backend == Backend::Map);
            drop(bytes);
            assert!(!third.is_held());
        }
    }

    #[test]
    fn mappings_that_nobody_has_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let disk = OsDisk::new(Backend::Map);
        let kept = disk.create(&folder.path().join("kept"), 4096).unwrap();
        for number in 0..200 {
            let path = folder.path().join(number.to_string());
            drop(disk.create(&path, 4096).unwrap());
        }
        let known = disk.mappings.lock().unwrap().len();
        assert!(known < 20, "{known} are known");
        drop(disk.open(&folder.path().join("kept")).unwrap());
        assert!(!kept.is_held());
    }
}
