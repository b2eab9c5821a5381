//! The seam through which every file is touched.
//!
//! Owns: the contract of a disk. [`crate::OsDisk`] is the real one; the simulator has its own.
//! Never: hands out mutable memory: every store goes through [`DiskFile::write_at`], or no
//! simulation could know what is not flushed yet.

use bytes::Bytes;
use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A filesystem on one device.
pub trait Disk: Send + Sync + Debug {
    /// Creates a folder and those above it; one that exists is no error.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Creates a file of `bytes` zeros, every block written and flushed. Its name is durable only
    /// after [`Disk::sync_dir`]. A file that could not be made whole is removed again.
    fn create(&self, path: &Path, bytes: u64) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens a file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// The names in a folder, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Renames a file within its filesystem; replaces the target.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. Bytes handed out of it stay readable.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a folder and everything in it.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Bytes that can still be allocated.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
    /// Takes the lock of a data directory for as long as the guard lives; none when another
    /// process holds it.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn DiskLock>>>;
}

/// Holds a lock until it is dropped.
pub trait DiskLock: Send + Sync + Debug {}

/// What one flush of a cache covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceId(pub u64);

/// One open file of a fixed length.
pub trait DiskFile: Send + Sync + Debug {
    /// Its length in bytes.
    fn len(&self) -> u64;
    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Fills `into` from `position`; an error at the end of the file.
    fn read_at(&self, position: u64, into: &mut [u8]) -> io::Result<()>;
    /// Stores `bytes` at `position`. Not durable before [`DiskFile::flush`].
    fn write_at(&self, position: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes a range durable. After an error nothing is known of the range, now or later.
    fn flush(&self, range: Range<u64>) -> io::Result<()>;
    /// Starts to bring a range to the device, where its cache may hold it. [`DiskFile::handed_over`]
    /// ends this.
    fn hand_over(&self, range: Range<u64>) -> io::Result<()>;
    /// Waits until a range is with the device. Returns the device if a later flush of any other
    /// file on it makes the range durable too; if none, it needs its own. After an error nothing is
    /// known of the range, as after a flush.
    fn handed_over(&self, range: Range<u64>) -> io::Result<Option<DeviceId>>;
    /// Brings a range into memory, so that stores and loads in it do not wait.
    fn prepare(&self, range: Range<u64>) -> io::Result<()>;
    /// Shares a range that is not written again while the bytes are held.
    fn bytes(&self, range: Range<u64>) -> io::Result<Bytes>;
    /// Whether anybody else in this process has the file open, or holds what [`DiskFile::bytes`]
    /// handed out of it, through whichever handle.
    fn is_held(&self) -> bool;
    /// Fills `into` from the device itself, not from a cache, where the system can.
    fn read_device(&self, position: u64, into: &mut [u8]) -> io::Result<()>;
}

/// Whether a device says that it cannot read a place: a bad sector, whatever the layers above it
/// make of that.
pub(crate) fn is_unreadable(error: &io::Error) -> bool {
    let bad = [libc::EIO, libc::ENODATA, libc::EILSEQ, libc::EREMOTEIO];
    error.raw_os_error().is_some_and(|number| bad.contains(&number))
}

/// What a device reads at least, and loses at least.
pub(crate) const PAGE_BYTES: u64 = 4 << 10;

/// The parts of `into`, which stands for bytes from `position` on, page by page.
pub(crate) fn pages(position: u64, into: &mut [u8]) -> impl Iterator<Item = (u64, &mut [u8])> {
    let first = (PAGE_BYTES - position % PAGE_BYTES).min(into.len() as u64);
    let (head, rest) = into.split_at_mut(first as usize);
    let starts = (position + first..).step_by(PAGE_BYTES as usize);
    std::iter::once((position, head)).chain(starts.zip(rest.chunks_mut(PAGE_BYTES as usize)))
}

/// Removes a file that another life of its log in this process may have removed before.
pub(crate) fn remove_if_there(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.remove(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
