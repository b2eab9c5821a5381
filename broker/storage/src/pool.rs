//! Files on their way to become segments: one pool for all logs of a device.
//!
//! Owns: the folder `pool`, the files of zeros in it and those that had an earlier life.
//! Never: holds more than [`POOL_BYTES_MAX`]; takes a file over that somebody still reads.
//! Invariants: a file is in the pool's folder, durably, and in no other, before a byte of it is
//! stored again; nobody but its taker knows a spare.

use crate::disk::{Disk, DiskFile};
use crate::error::is_no_space;
use crate::limits::{DISK_RESERVE_BYTES, POOL_BYTES_MAX};
use crate::planted::{Bug, is_planted, unless};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A file that can become a segment.
pub(crate) struct Spare {
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) path: PathBuf,
    /// Bytes of its earlier life lie in it; otherwise zeros.
    pub(crate) recycled: bool,
}

/// A spare that waits.
struct Waiting {
    path: PathBuf,
    bytes: u64,
    /// The open file where it was made here. One that was recycled is opened anew: how the cache
    /// holds its pages is not known.
    file: Option<Arc<dyn DiskFile>>,
}

/// The spares of one device.
pub(crate) struct Pool {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    number: AtomicU64,
    waiting: Mutex<Vec<Waiting>>,
}

impl Pool {
    /// Opens the pool of `root` and removes what an earlier process left there.
    pub(crate) fn open(disk: Arc<dyn Disk>, root: &Path) -> io::Result<Self> {
        let folder = root.join("pool");
        disk.create_dir(&folder)?;
        for name in disk.list(&folder)? {
            disk.remove(&folder.join(name))?;
        }
        Ok(Self { disk, folder, number: AtomicU64::new(0), waiting: Mutex::default() })
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the spares that wait: they go when space is short.
    pub(crate) fn bytes(&self) -> u64 {
        self.waiting().iter().map(|spare| spare.bytes).sum()
    }

    fn has_room(&self, bytes: u64) -> bool {
        self.bytes() + bytes <= POOL_BYTES_MAX
    }

    fn next_path(&self) -> PathBuf {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        self.folder.join(format!("spare-{number}.seg"))
    }

    /// A spare of `bytes`: one that waits, or a new one; none when the disk has no room for it and
    /// the reserve, even without what waits here, or the process may have no more files now.
    pub(crate) fn take(&self, bytes: u64) -> io::Result<Option<Spare>> {
        if let Some(spare) = self.take_waiting(bytes)? {
            return Ok(Some(spare));
        }
        match self.make(bytes)? {
            None if self.clear()? => self.make(bytes),
            made => Ok(made),
        }
    }

    /// Makes sure that a spare of `bytes` waits, if there is room for it.
    pub(crate) fn provide(&self, bytes: u64) -> io::Result<()> {
        let waits = self.waiting().iter().any(|spare| spare.bytes == bytes);
        if waits || !self.has_room(bytes) {
            return Ok(());
        }
        if let Some(spare) = self.make(bytes)? {
            self.put(Waiting { path: spare.path, bytes, file: Some(spare.file) });
        }
        Ok(())
    }

    /// Takes a spare back that was not used.
    pub(crate) fn put_back(&self, spare: Spare) -> io::Result<()> {
        let bytes = spare.file.len();
        if !self.has_room(bytes) {
            return self.disk.remove(&spare.path);
        }
        let file = (!spare.recycled).then_some(spare.file);
        self.put(Waiting { path: spare.path, bytes, file });
        Ok(())
    }

    /// Takes over the file at `path`, which no log needs any more and nobody else has open, or
    /// removes it: where it is still read, and where the pool is full.
    pub(crate) fn recycle(&self, path: &Path, mut file: Arc<dyn DiskFile>) -> io::Result<()> {
        let bytes = file.len();
        // In this order: who lets go of the handle may have taken bytes by it just before.
        let is_read = Arc::get_mut(&mut file).is_none() || file.is_held();
        let is_read = is_read && !is_planted(Bug::RecycledUnderReaders);
        drop(file);
        if is_read || !self.has_room(bytes) {
            return crate::disk::remove_if_there(&*self.disk, path);
        }
        let spare = self.next_path();
        match self.disk.rename(path, &spare) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed?,
        }
        // The old name must be gone for good before the file gets another content.
        if let Some(folder) = path.parent() {
            unless(Bug::RecycledNameNotSynced, || self.disk.sync_dir(folder))?;
        }
        self.disk.sync_dir(&self.folder)?;
        self.put(Waiting { path: spare, bytes, file: None });
        Ok(())
    }

    fn put(&self, spare: Waiting) {
        self.waiting().push(spare);
    }

    fn take_waiting(&self, bytes: u64) -> io::Result<Option<Spare>> {
        let found = {
            let mut waiting = self.waiting();
            let at = waiting.iter().position(|spare| spare.bytes == bytes);
            at.map(|at| waiting.swap_remove(at))
        };
        let Some(Waiting { path, file, .. }) = found else { return Ok(None) };
        let recycled = file.is_none();
        match file.map_or_else(|| self.disk.open(&path), Ok) {
            Ok(file) => Ok(Some(Spare { file, path, recycled })),
            Err(error) if is_refusal(&error) => {
                self.put(Waiting { path, bytes, file: None });
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn make(&self, bytes: u64) -> io::Result<Option<Spare>> {
        if self.disk.free_bytes(&self.folder)? < bytes + DISK_RESERVE_BYTES {
            return Ok(None);
        }
        let path = self.next_path();
        match self.disk.create(&path, bytes) {
            Ok(file) => Ok(Some(Spare { file, path, recycled: false })),
            Err(error) if is_refusal(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes everything that waits; returns whether anything did.
    fn clear(&self) -> io::Result<bool> {
        let waiting = std::mem::take(&mut *self.waiting());
        waiting.iter().try_for_each(|spare| self.disk.remove(&spare.path))?;
        Ok(!waiting.is_empty())
    }
}

/// Whether an error says that there is no room now, and nothing is broken: none on the disk, or none
/// in the process for another file or map.
fn is_refusal(error: &io::Error) -> bool {
    let is_at_limit = |number| matches!(number, libc::EMFILE | libc::ENFILE | libc::ENOMEM);
    let at_limit = error.raw_os_error().is_some_and(is_at_limit);
    if at_limit {
        tracing::warn!(%error, "no segment can be made: the limit of open files or maps is reached");
    }
    at_limit || is_no_space(error)
}
