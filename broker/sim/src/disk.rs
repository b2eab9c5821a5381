//! A disk that loses what was not flushed.
//!
//! Owns: two images of every file, durable and volatile, by pages of 4 KiB; names that are durable
//! and names that are not.
//! Never: more durable than it was told: `flush(range)` promotes exactly that range, and a name
//! only `sync_dir`. A kernel may do more; code that needs more is wrong.
//! Invariant: what a crash keeps follows from the seed alone.

use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use weir_storage::{DeviceId, Disk, DiskFile, DiskLock};

const PAGE_BYTES: usize = 4 << 10;
/// A page can tear at this boundary.
const SECTOR_BYTES: usize = 512;
/// Bytes of the whole disk.
const DISK_BYTES: u64 = 4 << 30;

/// The disk of one simulation. Cheap to clone; a crash keeps it.
#[derive(Debug, Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    random: fastrand::Rng,
    /// Names as the process sees them, and as they are after a crash.
    names: BTreeMap<PathBuf, Contents>,
    durable_names: BTreeMap<PathBuf, Contents>,
    folders: BTreeSet<PathBuf>,
    locked: bool,
    flushes: u64,
}

type Contents = Arc<Mutex<Images>>;

#[derive(Debug)]
struct Images {
    durable: Vec<u8>,
    volatile: Vec<u8>,
    /// Pages that differ.
    dirty: BTreeSet<usize>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl SimDisk {
    /// An empty disk.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            random: fastrand::Rng::with_seed(seed),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            folders: BTreeSet::new(),
            locked: false,
            flushes: 0,
        })))
    }

    /// Flushes so far.
    pub fn flushes(&self) -> u64 {
        lock(&self.0).flushes
    }

    /// The power goes: every dirty page is kept, lost or torn, each by itself; every name that was
    /// not synced is kept or lost. Who held the lock is gone.
    pub fn crash(&self) {
        let mut state = lock(&self.0);
        let State { random, names, durable_names, locked, .. } = &mut *state;
        *locked = false;
        let paths: BTreeSet<PathBuf> = names.keys().chain(durable_names.keys()).cloned().collect();
        for path in paths {
            let (now, synced) = (names.get(&path), durable_names.get(&path));
            let same = match (now, synced) {
                (Some(now), Some(synced)) => Arc::ptr_eq(now, synced),
                (None, None) => true,
                _ => false,
            };
            if !same && random.bool() {
                match now {
                    Some(now) => durable_names.insert(path, now.clone()),
                    None => durable_names.remove(&path),
                };
            }
        }
        for file in durable_names.values() {
            lock(file).crash(random);
        }
        *names = durable_names.clone();
    }

    fn file(&self, contents: Contents) -> Arc<dyn DiskFile> {
        Arc::new(SimFile { contents, disk: self.clone() })
    }
}

impl Images {
    fn page(&self, page: usize) -> Range<usize> {
        page * PAGE_BYTES..((page + 1) * PAGE_BYTES).min(self.volatile.len())
    }

    fn crash(&mut self, random: &mut fastrand::Rng) {
        for page in std::mem::take(&mut self.dirty) {
            let range = self.page(page);
            match random.u8(..4) {
                // Lost.
                0 => {}
                // Torn: the first sectors are new, the others old.
                1 => {
                    let sectors = range.len().div_ceil(SECTOR_BYTES);
                    let kept = (random.usize(..sectors + 1) * SECTOR_BYTES).min(range.len());
                    let range = range.start..range.start + kept;
                    self.durable[range.clone()].copy_from_slice(&self.volatile[range]);
                }
                // Kept.
                _ => self.durable[range.clone()].copy_from_slice(&self.volatile[range]),
            }
        }
        self.volatile = self.durable.clone();
    }

    fn check(&self, position: u64, len: usize) -> io::Result<Range<usize>> {
        let start = position as usize;
        match start.checked_add(len) {
            Some(end) if end <= self.volatile.len() => Ok(start..end),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        lock(&self.0).folders.insert(path.to_owned());
        Ok(())
    }

    fn create(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = lock(&self.0);
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let zeros = vec![0; bytes as usize];
        let images = Images { durable: zeros.clone(), volatile: zeros, dirty: BTreeSet::new() };
        let contents = Arc::new(Mutex::new(images));
        state.names.insert(path.to_owned(), contents.clone());
        Ok(self.file(contents))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let contents = lock(&self.0).names.get(path).cloned().ok_or_else(missing)?;
        Ok(self.file(contents))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let state = lock(&self.0);
        if !state.folders.contains(path) {
            return Err(missing());
        }
        let inside = state.names.keys().filter(|name| name.parent() == Some(path));
        let names = inside.filter_map(|name| name.file_name());
        Ok(names.map(|name| name.to_string_lossy().into_owned()).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = lock(&self.0);
        let contents = state.names.remove(from).ok_or_else(missing)?;
        state.names.insert(to.to_owned(), contents);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        lock(&self.0).names.remove(path).map(|_| ()).ok_or_else(missing)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        lock(&self.0).names.retain(|name, _| !name.starts_with(path));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = lock(&self.0);
        let inside = |name: &Path| name.parent() == Some(path);
        let synced: Vec<_> = state.names.iter().filter(|(name, _)| inside(name)).collect();
        let synced: Vec<_> = synced.into_iter().map(|(n, c)| (n.clone(), c.clone())).collect();
        state.durable_names.retain(|name, _| !inside(name));
        state.durable_names.extend(synced);
        state.flushes += 1;
        Ok(())
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        let state = lock(&self.0);
        let used: usize = state.names.values().map(|file| lock(file).volatile.len()).sum();
        Ok(DISK_BYTES.saturating_sub(used as u64))
    }

    fn lock(&self, _path: &Path) -> io::Result<Option<Box<dyn DiskLock>>> {
        let mut state = lock(&self.0);
        if std::mem::replace(&mut state.locked, true) {
            return Ok(None);
        }
        Ok(Some(Box::new(SimLock(self.clone()))))
    }
}

#[derive(Debug)]
struct SimLock(SimDisk);

impl DiskLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        lock(&self.0.0).locked = false;
    }
}

#[derive(Debug)]
struct SimFile {
    contents: Contents,
    disk: SimDisk,
}

impl DiskFile for SimFile {
    fn len(&self) -> u64 {
        lock(&self.contents).volatile.len() as u64
    }

    fn read_at(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        let images = lock(&self.contents);
        let range = images.check(position, into.len())?;
        into.copy_from_slice(&images.volatile[range]);
        Ok(())
    }

    fn write_at(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        let mut images = lock(&self.contents);
        let range = images.check(position, bytes.len())?;
        images.dirty.extend(range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES));
        images.volatile[range].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&self, range: Range<u64>) -> io::Result<()> {
        lock(&self.disk.0).flushes += 1;
        let mut images = lock(&self.contents);
        let (start, end) = (range.start as usize, range.end as usize);
        let pages: Vec<usize> =
            images.dirty.range(start / PAGE_BYTES..end.div_ceil(PAGE_BYTES)).copied().collect();
        for page in pages {
            let range = images.page(page);
            let Images { durable, volatile, dirty } = &mut *images;
            durable[range.clone()].copy_from_slice(&volatile[range]);
            dirty.remove(&page);
        }
        Ok(())
    }

    fn prepare(&self, _range: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn hand_over(&self, _range: Range<u64>) -> io::Result<()> {
        Ok(())
    }

    fn handed_over(&self, _range: Range<u64>) -> io::Result<Option<DeviceId>> {
        Ok(None)
    }

    fn is_held(&self) -> bool {
        false
    }

    fn read_device(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        self.read_at(position, into)
    }

    fn bytes(&self, range: Range<u64>) -> io::Result<Bytes> {
        let images = lock(&self.contents);
        let range = images.check(range.start, (range.end - range.start) as usize)?;
        Ok(Bytes::copy_from_slice(&images.volatile[range]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_keeps_what_was_flushed_and_anything_of_the_rest() {
        let root = Path::new("/d");
        let mut kept = 0;
        for seed in 0..40 {
            let disk = SimDisk::new(seed);
            disk.create_dir(root).unwrap();
            let file = disk.create(&root.join("a"), 3 * PAGE_BYTES as u64).unwrap();
            disk.sync_dir(root).unwrap();
            file.write_at(0, b"flushed").unwrap();
            file.flush(0..7).unwrap();
            file.write_at(2 * PAGE_BYTES as u64, b"not").unwrap();
            disk.create(&root.join("b"), 1).unwrap();
            disk.crash();
            let file = disk.open(&root.join("a")).unwrap();
            let (mut first, mut later) = ([0; 7], [0; 3]);
            file.read_at(0, &mut first).unwrap();
            file.read_at(2 * PAGE_BYTES as u64, &mut later).unwrap();
            assert_eq!(&first, b"flushed");
            kept += u32::from(&later == b"not") + u32::from(disk.open(&root.join("b")).is_ok());
        }
        assert!((10..70).contains(&kept), "unsynced bytes and names come and go: {kept}");
    }
}
