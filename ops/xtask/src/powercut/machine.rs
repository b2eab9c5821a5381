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
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{self, Command};

/// Of the broker's log, in an error.
const LOG_LINES: usize = 20;
const DISK_MEBIBYTES: u64 = 512;
/// The image, what it takes to describe it, and room.
const DEVICE_MEBIBYTES: u64 = DISK_MEBIBYTES + 256;

pub(crate) struct Machine {
    /// Unmounted before the device is: fields are dropped in their order.
    disk: Mount,
    device: Mount,
    plug_is_pulled: bool,
    log: PathBuf,
}

impl Machine {
    pub(crate) fn new(filesystem: Filesystem, scratch: &Path) -> Result<Self, String> {
        let device = Mount::new(Filesystem::Ext4, &scratch.join("device"), DEVICE_MEBIBYTES)?;
        let disk = Mount::new(filesystem, &device.path().join("disk"), DISK_MEBIBYTES)?;
        Ok(Self { disk, device, plug_is_pulled: false, log: scratch.join("log") })
    }

    fn data_dir(&self) -> PathBuf {
        self.disk.path().join("data")
    }

    pub(crate) fn start(&self, weir: &Path, port: u16) -> Result<BrokerProcess, String> {
        let log = File::create(&self.log).map_err(at(&self.log))?;
        BrokerProcess::start_logging(weir, &self.data_dir(), port, log)
    }

    /// The device fails from now on; filesystem and broker may notice.
    pub(crate) fn pull_plug(&mut self) -> Result<(), String> {
        self.plug_is_pulled = true;
        self.device.shut_down()
    }

    /// Cuts the power, unless the plug was pulled, and switches it on again. The broker is dead by
    /// now, and nobody has a file open.
    pub(crate) fn cut_power(&mut self, random: &mut Rng) -> Result<PutBack, String> {
        let copy = match self.plug_is_pulled {
            // What was stored behind a device that had gone never reaches it. (And ext4 says of a
            // folder that it is synced, once it has made itself read-only.)
            true => VolatileCopy::default(),
            false => VolatileCopy::of(&self.data_dir())?,
        };
        if !self.plug_is_pulled {
            self.disk.shut_down()?;
            self.device.shut_down()?;
        }
        self.disk.unmount()?;
        self.device.unmount()?;
        self.device.mount()?;
        self.disk.mount()?;
        self.plug_is_pulled = false;
        copy.put_some_back(&self.data_dir(), random)
    }

    /// What is left to look at after an error: the end of the broker's log, and a copy of the data.
    pub(crate) fn evidence(&self) -> Result<String, String> {
        let data = std::env::temp_dir().join(format!("weir-powercut-{}-data", process::id()));
        let mut copy = Command::new("cp");
        run(copy.args(["-r", "--sparse=always"]).arg(self.data_dir()).arg(&data))?;
        let log = fs::read_to_string(&self.log).map_err(at(&self.log))?;
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        Ok(format!("the data as it is now: {}\nthe broker's last words:\n{last}", data.display()))
    }
}
