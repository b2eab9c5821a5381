//! A machine whose power can be cut: a broker on a filesystem on a device with a volatile cache.
//!
//! Owns: the filesystems, and what a cut leaves of the data.
//! Never: infers from what survived what was durable: a kernel may persist more than it was asked.
//!
//! The image of the broker's filesystem lies on a filesystem of its own, whose page cache plays
//! the cache of the device: what was written there without a flush of the device is lost too.

use super::at;
use super::pages::{PutBack, VolatileCopy};
use crate::mount::{Filesystem, Mount, run};
use crate::process::BrokerProcess;
use fastrand::Rng;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Few lines of a hundred starts are of interest.
const CONFIG: &str = "[log]\nlevel = \"error\"\n";
const DISK_MEBIBYTES: u64 = 512;
/// The image, what it takes to describe it, and room.
const DEVICE_MEBIBYTES: u64 = DISK_MEBIBYTES + 256;

pub(crate) struct Machine {
    /// Unmounted before the device is: fields are dropped in their order.
    disk: Mount,
    device: Mount,
    config: PathBuf,
}

impl Machine {
    pub(crate) fn new(filesystem: Filesystem, scratch: &Path) -> Result<Self, String> {
        let device = Mount::new(Filesystem::Ext4, &scratch.join("device"), DEVICE_MEBIBYTES)?;
        let disk = Mount::new(filesystem, &device.path().join("disk"), DISK_MEBIBYTES)?;
        let config = scratch.join("weir.toml");
        fs::write(&config, CONFIG).map_err(at(&config))?;
        Ok(Self { disk, device, config })
    }

    fn data_dir(&self) -> PathBuf {
        self.disk.path().join("data")
    }

    pub(crate) fn start(&self, weir: &Path, port: u16) -> Result<BrokerProcess, String> {
        BrokerProcess::start_with(weir, &self.data_dir(), port, &self.config)
    }

    /// The broker is dead by now, and nobody has a file open.
    pub(crate) fn cut_power(&mut self, random: &mut Rng) -> Result<PutBack, String> {
        let copy = VolatileCopy::of(&self.data_dir())?;
        self.disk.shut_down()?;
        self.device.shut_down()?;
        self.disk.unmount()?;
        self.device.unmount()?;
        self.device.mount()?;
        self.disk.mount()?;
        copy.put_some_back(&self.data_dir(), random)
    }

    /// Copies the data to where it can be looked at.
    pub(crate) fn save_data(&self, to: &Path) -> Result<(), String> {
        run(Command::new("cp").args(["-r", "--sparse=always"]).arg(self.data_dir()).arg(to))
            .map(|_| ())
    }
}
