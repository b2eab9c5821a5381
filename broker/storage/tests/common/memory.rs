//! A disk in memory that fails when it is told to and, when the power goes, loses what was not
//! flushed.
//!
//! Never: more durable than asked for: a flush keeps exactly its range, and a name is kept only
//! by `sync_dir`.

use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use weir_storage::{DeviceId, Disk, DiskFile, DiskLock};

/// What a power cut can tear.
const SECTOR_BYTES: u64 = 512;

/// What can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Create,
    Rename,
    Remove,
    SyncDir,
    Write,
    Flush,
    Read,
    Prepare,
    Share,
}

/// What a power cut does to bytes and names that were not made durable.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cut {
    LosesAll,
    KeepsAll,
    /// Each sector and name by itself, by this seed.
    KeepsSome(u64),
}

#[derive(Debug)]
struct Fault {
    op: Op,
    kind: io::ErrorKind,
    /// Calls that still pass.
    skip: usize,
    /// Calls that fail then.
    times: usize,
}

#[derive(Debug, Clone)]
pub(crate) struct MemoryDisk(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    names: Mutex<Names>,
    faults: Mutex<Faults>,
}

#[derive(Debug, Default)]
struct Names {
    now: BTreeMap<PathBuf, Images>,
    durable: BTreeMap<PathBuf, Images>,
    capacity: u64,
    locked: bool,
}

#[derive(Debug, Default)]
struct Faults {
    planned: Vec<Fault>,
    calls: Vec<Op>,
    /// Changes that still pass before the machine stops.
    changes_left: Option<usize>,
    changes: usize,
}

type Images = Arc<Mutex<Image>>;

#[derive(Debug)]
struct Image {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors that may differ.
    dirty: BTreeSet<u64>,
}

impl Image {
    fn keep(&mut self, sector: u64) {
        let range = sector_range(sector, self.now.len());
        self.durable[range.clone()].copy_from_slice(&self.now[range]);
    }
}

fn sector_range(sector: u64, len: usize) -> Range<usize> {
    let start = (sector * SECTOR_BYTES) as usize;
    start..(start + SECTOR_BYTES as usize).min(len)
}

impl MemoryDisk {
    pub(crate) fn new() -> Self {
        let names = Names { capacity: 1 << 40, ..Names::default() };
        Self(Arc::new(Shared { names: Mutex::new(names), faults: Mutex::default() }))
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.0.names.lock().unwrap()
    }

    /// The `times` calls of `op` behind the next `skip` fail.
    pub(crate) fn fail(&self, op: Op, kind: io::ErrorKind, skip: usize, times: usize) {
        self.0.faults.lock().unwrap().planned.push(Fault { op, kind, skip, times });
    }

    /// How often `op` was called.
    pub(crate) fn calls(&self, op: Op) -> usize {
        self.0.faults.lock().unwrap().calls.iter().filter(|call| **call == op).count()
    }

    /// How often anything was changed.
    pub(crate) fn changes(&self) -> usize {
        self.0.faults.lock().unwrap().changes
    }

    /// The machine stops behind so many changes more.
    pub(crate) fn stop_behind(&self, changes: usize) {
        self.0.faults.lock().unwrap().changes_left = Some(changes);
    }

    /// From now on the disk has room for so many bytes besides what it holds.
    pub(crate) fn leave_room(&self, bytes: u64) {
        let mut names = self.names();
        names.capacity = names.used() + bytes;
    }

    /// Whether the machine stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        self.0.faults.lock().unwrap().changes_left == Some(0)
    }

    /// The power goes and comes back. Every file that is open is gone.
    pub(crate) fn cut_power(&self, cut: Cut) {
        let mut random = fastrand::Rng::with_seed(match cut {
            Cut::KeepsSome(seed) => seed,
            Cut::LosesAll | Cut::KeepsAll => 0,
        });
        let mut keeps = || match cut {
            Cut::LosesAll => false,
            Cut::KeepsAll => true,
            Cut::KeepsSome(_) => random.bool(),
        };
        let mut names = self.names();
        let paths: BTreeSet<PathBuf> =
            names.now.keys().chain(names.durable.keys()).cloned().collect();
        let mut kept = BTreeMap::new();
        for path in paths {
            let from = if keeps() { &names.now } else { &names.durable };
            let Some(images) = from.get(&path) else { continue };
            let mut image = images.lock().unwrap();
            for sector in std::mem::take(&mut image.dirty) {
                if keeps() {
                    image.keep(sector);
                }
            }
            image.now = image.durable.clone();
            drop(image);
            kept.insert(path, images.clone());
        }
        names.now = kept.clone();
        names.durable = kept;
        names.locked = false;
        *self.0.faults.lock().unwrap() = Faults::default();
    }

    /// Another disk with the same content, all of it durable.
    pub(crate) fn copy(&self) -> Self {
        let copy = Self::new();
        for (path, images) in &self.names().now {
            copy.put(path, images.lock().unwrap().now.clone());
        }
        copy
    }

    pub(crate) fn put(&self, path: &Path, bytes: Vec<u8>) {
        let image = Image { now: bytes.clone(), durable: bytes, dirty: BTreeSet::new() };
        let images = Arc::new(Mutex::new(image));
        let mut names = self.names();
        names.now.insert(path.to_owned(), images.clone());
        names.durable.insert(path.to_owned(), images);
    }

    /// Flips a bit, also under whoever has the file open.
    pub(crate) fn damage(&self, path: &Path, position: usize) {
        self.names().now[path].lock().unwrap().now[position] ^= 1;
    }

    pub(crate) fn bytes_of(&self, path: &Path) -> Vec<u8> {
        self.names().now[path].lock().unwrap().now.clone()
    }

    /// Paths that end so, sorted.
    pub(crate) fn paths(&self, end: &str) -> Vec<PathBuf> {
        let names = self.names();
        names.now.keys().filter(|path| path.to_string_lossy().ends_with(end)).cloned().collect()
    }

    fn file(&self, images: Images) -> Arc<dyn DiskFile> {
        Arc::new(MemoryFile { disk: self.clone(), images })
    }

    fn meet(&self, op: Op) -> io::Result<()> {
        let mut faults = self.0.faults.lock().unwrap();
        faults.calls.push(op);
        if !matches!(op, Op::Read | Op::Prepare | Op::Share) {
            faults.changes += 1;
            match &mut faults.changes_left {
                Some(0) => return Err(io::Error::other("the machine stopped")),
                Some(left) => *left -= 1,
                None => {}
            }
        }
        for fault in faults.planned.iter_mut().filter(|fault| fault.op == op) {
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if fault.times > 0 {
                fault.times -= 1;
                return Err(fault.kind.into());
            }
        }
        Ok(())
    }
}

impl Names {
    fn used(&self) -> u64 {
        self.now.values().map(|images| images.lock().unwrap().now.len() as u64).sum()
    }

    fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.used())
    }

    fn find(&self, path: &Path) -> io::Result<Images> {
        self.now.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for MemoryDisk {
    fn create_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn create(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        self.meet(Op::Create)?;
        let mut names = self.names();
        if names.free() < bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if names.now.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let zeros = || vec![0; bytes as usize];
        let image = Image { now: zeros(), durable: zeros(), dirty: BTreeSet::new() };
        let images = Arc::new(Mutex::new(image));
        names.now.insert(path.to_owned(), images.clone());
        drop(names);
        Ok(self.file(images))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let images = self.names().find(path)?;
        Ok(self.file(images))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let names = self.names();
        let inside = names.now.keys().filter(|file| file.parent() == Some(path));
        Ok(inside.map(|file| file.file_name().unwrap().to_string_lossy().into_owned()).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.meet(Op::Rename)?;
        let mut names = self.names();
        let images = names.find(from)?;
        names.now.remove(from);
        names.now.insert(to.to_owned(), images);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.meet(Op::Remove)?;
        let mut names = self.names();
        names.find(path)?;
        names.now.remove(path);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.meet(Op::Remove)?;
        self.names().now.retain(|file, _| !file.starts_with(path));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.meet(Op::SyncDir)?;
        let names = &mut *self.names();
        names.durable.retain(|file, _| file.parent() != Some(path));
        let inside = names.now.iter().filter(|(file, _)| file.parent() == Some(path));
        names.durable.extend(inside.map(|(file, images)| (file.clone(), images.clone())));
        Ok(())
    }

    fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        Ok(self.names().free())
    }

    fn lock(&self, _path: &Path) -> io::Result<Option<Box<dyn DiskLock>>> {
        let mut names = self.names();
        if std::mem::replace(&mut names.locked, true) {
            return Ok(None);
        }
        Ok(Some(Box::new(MemoryLock(self.clone()))))
    }
}

#[derive(Debug)]
struct MemoryLock(MemoryDisk);

impl DiskLock for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.0.names().locked = false;
    }
}

#[derive(Debug)]
struct MemoryFile {
    disk: MemoryDisk,
    images: Images,
}

impl MemoryFile {
    fn image(&self) -> MutexGuard<'_, Image> {
        self.images.lock().unwrap()
    }
}

impl DiskFile for MemoryFile {
    fn len(&self) -> u64 {
        self.image().now.len() as u64
    }

    fn read_at(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        self.disk.meet(Op::Read)?;
        let start = position as usize;
        let image = self.image();
        let found = image.now.get(start..start + into.len());
        into.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.meet(Op::Write)?;
        let start = position as usize;
        let mut image = self.image();
        let into = image.now.get_mut(start..start + bytes.len());
        into.ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(bytes);
        let end = position + bytes.len() as u64;
        image.dirty.extend(position / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES));
        Ok(())
    }

    /// As an operating system does it: a failure is told once, and what could not be kept counts
    /// as clean from then on.
    fn flush(&self, range: Range<u64>) -> io::Result<()> {
        let met = self.disk.meet(Op::Flush);
        let sectors = range.start / SECTOR_BYTES..range.end.div_ceil(SECTOR_BYTES);
        let mut image = self.image();
        let due: Vec<u64> = image.dirty.range(sectors).copied().collect();
        for sector in due {
            image.dirty.remove(&sector);
            if met.is_ok() {
                image.keep(sector);
            }
        }
        met
    }

    fn prepare(&self, _range: Range<u64>) -> io::Result<()> {
        self.disk.meet(Op::Prepare)
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
        self.disk.meet(Op::Share)?;
        let image = self.image();
        let found = image.now.get(range.start as usize..range.end as usize);
        Ok(Bytes::copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?))
    }
}
