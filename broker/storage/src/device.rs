//! One data directory on one device: what all its logs share.
//!
//! Owns: the disk, the executor, the flush coordinator, the pool folder, the lock.
//! Never: knows a log.

use crate::disk::{Disk, DiskFile, DiskLock};
use crate::error::{DeviceError, is_no_space};
use crate::executor::Executor;
use crate::flush::{FlushCoordinator, FlushObserver};
use crate::limits::DISK_RESERVE_BYTES;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What all logs of one data directory share.
pub struct Device {
    disk: Arc<dyn Disk>,
    executor: Arc<dyn Executor>,
    pub(crate) flushes: Arc<FlushCoordinator>,
    root: PathBuf,
    spare_number: AtomicU64,
    salt_state: AtomicU64,
    _lock: Box<dyn DiskLock>,
}

/// A file of zeros in the pool, ready to become a segment.
pub(crate) struct Spare {
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) path: PathBuf,
}

impl Device {
    /// Takes the lock of `root`, which is created if need be, and clears the pool of what an
    /// earlier process left. `seed` makes the salts of new segments.
    pub fn open(
        disk: Arc<dyn Disk>,
        executor: Arc<dyn Executor>,
        root: &Path,
        seed: u64,
    ) -> Result<Arc<Self>, DeviceError> {
        let unusable = |source| DeviceError::Unusable { path: root.to_owned(), source };
        disk.create_dir(root).map_err(unusable)?;
        let lock = disk.lock(&root.join("LOCK")).map_err(unusable)?;
        let lock = lock.ok_or_else(|| DeviceError::InUse(root.to_owned()))?;
        let pool = root.join("pool");
        disk.create_dir(&pool).map_err(unusable)?;
        for name in disk.list(&pool).map_err(unusable)? {
            disk.remove(&pool.join(name)).map_err(unusable)?;
        }
        disk.sync_dir(root).map_err(unusable)?;
        Ok(Arc::new(Self {
            flushes: FlushCoordinator::new(executor.clone()),
            disk,
            executor,
            root: root.to_owned(),
            spare_number: AtomicU64::new(0),
            salt_state: AtomicU64::new(seed),
            _lock: lock,
        }))
    }

    /// The executor of this device.
    pub fn executor(&self) -> &Arc<dyn Executor> {
        &self.executor
    }

    /// The disk of this device.
    pub fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// The data directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Bytes that can still be allocated.
    pub fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes(&self.root)
    }

    /// Has every device flush reported: how long it took, how many bytes it covered. Once.
    pub fn observe_flushes(&self, observer: FlushObserver) {
        self.flushes.observe(observer);
    }

    /// A salt that no earlier segment had (splitmix64).
    pub(crate) fn next_salt(&self) -> u64 {
        let state = self.salt_state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mut mixed = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Makes a spare of `bytes`; none when the disk has no room for it and the reserve.
    pub(crate) fn make_spare(&self, bytes: u64) -> io::Result<Option<Spare>> {
        if self.free_bytes()? < bytes + DISK_RESERVE_BYTES {
            return Ok(None);
        }
        let number = self.spare_number.fetch_add(1, Ordering::Relaxed);
        let path = self.root.join("pool").join(format!("spare-{number}.seg"));
        match self.disk.create(&path, bytes) {
            Ok(file) => Ok(Some(Spare { file, path })),
            Err(error) if is_no_space(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
