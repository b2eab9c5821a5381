//! One data directory on one device: what all its logs share.
//!
//! Owns: the disk, the executor, the flush coordinator, the rounds of hard states, the pool of spare
//! segments, the lock.
//! Never: knows a log.

use crate::disk::{Disk, DiskLock};
use crate::error::DeviceError;
use crate::executor::Executor;
use crate::flush::{FlushCoordinator, FlushObserver};
use crate::meta::MetaRounds;
use crate::planted::{Bug, is_planted};
use crate::pool::Pool;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What all logs of one data directory share.
pub struct Device {
    disk: Arc<dyn Disk>,
    executor: Arc<dyn Executor>,
    pub(crate) flushes: Arc<FlushCoordinator>,
    pub(crate) metas: Arc<MetaRounds>,
    pub(crate) pool: Pool,
    root: PathBuf,
    salt_state: AtomicU64,
    _lock: Box<dyn DiskLock>,
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
        sync_above(&*disk, root).map_err(unusable)?;
        let lock = disk.lock(&root.join("LOCK")).map_err(unusable)?;
        let lock = lock.ok_or_else(|| DeviceError::InUse(root.to_owned()))?;
        let pool = Pool::open(disk.clone(), root).map_err(unusable)?;
        disk.sync_dir(root).map_err(unusable)?;
        Ok(Arc::new(Self {
            flushes: FlushCoordinator::new(executor.clone()),
            metas: MetaRounds::new(executor.clone()),
            disk,
            executor,
            pool,
            root: root.to_owned(),
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

    /// Bytes that can still be allocated, spare segments included.
    pub fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.disk.free_bytes(&self.root)? + self.pool.bytes())
    }

    /// Has every device flush reported: how long it took, how many bytes it covered. Once.
    pub fn observe_flushes(&self, observer: FlushObserver) {
        self.flushes.observe(observer);
    }

    /// A salt that no earlier segment had (splitmix64).
    pub(crate) fn next_salt(&self) -> u64 {
        let step = if is_planted(Bug::SaltReused) { 0 } else { 0x9e37_79b9_7f4a_7c15 };
        let state = self.salt_state.fetch_add(step, Ordering::Relaxed);
        let mut mixed = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Makes the name of the data directory durable, where this process may do that.
fn sync_above(disk: &dyn Disk, root: &Path) -> io::Result<()> {
    let above = root.parent().filter(|above| !above.as_os_str().is_empty());
    match disk.sync_dir(above.unwrap_or(Path::new("."))) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound
            ) =>
        {
            tracing::warn!(root = %root.display(), %error, "the folder above cannot be synced");
            Ok(())
        }
        synced => synced,
    }
}
