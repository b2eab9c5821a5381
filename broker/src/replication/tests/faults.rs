//! The operating system's disk, with flushes of segments that can be held back or made to fail.

use bytes::Bytes;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use weir_storage::{DeviceId, Disk, DiskFile, DiskLock, OsDisk};

/// What happens to the flushes of segments.
#[derive(Debug, Default)]
pub(super) struct Faults {
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Flushes from this number on wait.
    held_from: Option<usize>,
    failure: Option<io::ErrorKind>,
    /// Of the hard state.
    meta_failure: Option<io::ErrorKind>,
    flushes: usize,
}

impl Faults {
    pub(super) fn hold(&self) {
        self.hold_behind(0);
    }

    /// Lets `more` flushes pass before it holds the next.
    pub(super) fn hold_behind(&self, more: usize) {
        let mut state = self.state.lock().unwrap();
        state.held_from = Some(state.flushes + more + 1);
    }

    pub(super) fn release(&self) {
        self.state.lock().unwrap().held_from = None;
        self.released.notify_all();
    }

    pub(super) fn fail(&self, kind: io::ErrorKind) {
        self.state.lock().unwrap().failure = Some(kind);
    }

    /// What failed works again.
    pub(super) fn mend(&self) {
        self.state.lock().unwrap().failure = None;
    }

    /// The hard state cannot be flushed any more.
    pub(super) fn fail_meta(&self, kind: io::ErrorKind) {
        self.state.lock().unwrap().meta_failure = Some(kind);
    }

    pub(super) fn flushes(&self) -> usize {
        self.state.lock().unwrap().flushes
    }

    fn pass_meta(&self) -> io::Result<()> {
        self.state.lock().unwrap().meta_failure.map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn pass(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.flushes += 1;
        let number = state.flushes;
        let held = |state: &mut State| state.held_from.is_some_and(|first| number >= first);
        let state = self.released.wait_while(state, held).unwrap();
        state.failure.map_or(Ok(()), |kind| Err(kind.into()))
    }
}

#[derive(Debug)]
pub(super) struct FaultyDisk {
    pub disk: OsDisk,
    pub faults: Arc<Faults>,
}

#[derive(Debug)]
struct FaultySegment {
    file: Arc<dyn DiskFile>,
    is_meta: bool,
    faults: Arc<Faults>,
}

impl FaultyDisk {
    fn file(&self, path: &Path, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        let is_segment = path.extension().is_some_and(|extension| extension == "seg");
        let is_meta = path.file_stem().is_some_and(|stem| stem == "meta");
        match is_segment || is_meta {
            true => Arc::new(FaultySegment { file, is_meta, faults: self.faults.clone() }),
            false => file,
        }
    }
}

impl Disk for FaultyDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }
    fn create(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(path, self.disk.create(path, bytes)?))
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.file(path, self.disk.open(path)?))
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.disk.list(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_dir(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_dir(path)
    }
    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.disk.free_bytes(path)
    }
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn DiskLock>>> {
        self.disk.lock(path)
    }
}

impl DiskFile for FaultySegment {
    fn len(&self) -> u64 {
        self.file.len()
    }
    fn read_at(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_at(position, into)
    }
    fn write_at(&self, position: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_at(position, bytes)
    }
    fn flush(&self, range: Range<u64>) -> io::Result<()> {
        if self.is_meta {
            self.faults.pass_meta()?
        } else {
            self.faults.pass()?
        }
        self.file.flush(range)
    }
    fn hand_over(&self, range: Range<u64>) -> io::Result<()> {
        self.file.hand_over(range)
    }
    fn handed_over(&self, _range: Range<u64>) -> io::Result<Option<DeviceId>> {
        // Every file is flushed by itself, so that every flush can fail.
        Ok(None)
    }
    fn prepare(&self, range: Range<u64>) -> io::Result<()> {
        self.file.prepare(range)
    }
    fn bytes(&self, range: Range<u64>) -> io::Result<Bytes> {
        self.file.bytes(range)
    }
    fn is_held(&self) -> bool {
        self.file.is_held()
    }
    fn read_device(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.read_device(position, into)
    }
}
