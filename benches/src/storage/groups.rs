//! One log, group by group, beside pwrite and fdatasync over written blocks.
//!
//! Owns: the turns of both, and which groups count.
//! Never: counts a group that a segment was made beside: its zeros are in nobody's group.

use super::{DeviceWork, Samples};
use crate::device::{BlockDevice, GroupWriter, zeroed_file};
use crate::floor::{GROUP_BYTES_MAX, GROUPS_BYTES, RETAINED_BYTES};
use crate::log_writer::{LogWriter, batch_of, open_device};
use serde::Serialize;
use std::io;
use std::path::Path;
use std::sync::Arc;
use weir_storage::{LogOptions, ThreadExecutor};

/// One group size.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct GroupFigure {
    /// Bytes of a group of pwrite; a group of the log is a batch that comes near it.
    pub group_bytes: usize,
    /// Bytes of a group of the log: one batch of 1 KiB messages with its header.
    pub stored_bytes: usize,
    /// Median of pwrite and fdatasync of a group over written blocks, microseconds.
    pub device_p50_us: f64,
    /// Median of append and flush of a group on one thread, microseconds.
    pub storage_p50_us: f64,
    /// Rate of the log over that of the device, of the medians.
    pub ratio: f64,
    /// What the device does for a group of pwrite and fdatasync.
    pub device: DeviceWork,
    /// What it does for a group of the log.
    pub storage: DeviceWork,
    /// Bytes written over bytes stored, of the median group.
    pub amplification: f64,
    /// Groups of the log that were left out, because a segment was made meanwhile.
    pub left_out: u32,
}

/// Groups of one size in a round.
fn count_of(group_bytes: usize) -> u32 {
    if group_bytes >= GROUP_BYTES_MAX { 20 } else { 60 }
}

/// Measures every group size in turns of both.
pub(super) fn measure(
    dir: &Path,
    device: &BlockDevice,
    rounds: u32,
) -> io::Result<Vec<GroupFigure>> {
    let file = zeroed_file(&dir.join("device"))?;
    let logs = open_device(&dir.join("storage"), Arc::new(ThreadExecutor::start()?))?;
    let options = LogOptions { uuid: 1, retained_bytes: RETAINED_BYTES, ..LogOptions::default() };
    let mut log = LogWriter::open(logs, &dir.join("storage/log"), options)?;
    log.outgrow_small_segments()?;
    let mut figures = Vec::new();
    for group_bytes in GROUPS_BYTES {
        let batch = batch_of(group_bytes)?;
        let (mut bare, mut logged) = (Samples::default(), Samples::default());
        let count = count_of(group_bytes);
        let mut writer = GroupWriter::new(&file, group_bytes);
        for _ in 0..rounds {
            log.settle();
            for _ in 0..count {
                bare.take(device, || writer.write(), || true)?;
            }
            for _ in 0..count {
                let reader = log.reader();
                let grew = reader.is_growing();
                logged.take(device, || log.append(&batch), || !grew && !reader.is_growing())?;
            }
        }
        let stored_bytes = batch.header.stored_len();
        let work = logged.device_work();
        figures.push(GroupFigure {
            group_bytes,
            stored_bytes,
            device_p50_us: bare.p50_us(),
            storage_p50_us: logged.p50_us(),
            ratio: bare.p50_us() / logged.p50_us(),
            device: bare.device_work(),
            storage: work,
            amplification: work.written_bytes_median / stored_bytes as f64,
            left_out: rounds * count - logged.count(),
        });
    }
    Ok(figures)
}

/// Names of the columns of [`GroupFigure::row`].
pub const HEADINGS: [&str; 10] = [
    "group",
    "device p50 us",
    "log p50 us",
    "ratio",
    "flushes",
    "flushes, mean",
    "written KiB",
    "written KiB, mean",
    "over stored",
    "left out",
];

impl GroupFigure {
    /// For people.
    pub fn row(&self) -> [String; 10] {
        let kibibytes = |bytes: f64| format!("{:.1}", bytes / 1024.0);
        [
            format!("{} KiB", self.group_bytes >> 10),
            format!("{:.0}", self.device_p50_us),
            format!("{:.0}", self.storage_p50_us),
            format!("{:.2}", self.ratio),
            format!("{:.0}", self.storage.flushes_median),
            format!("{:.2}", self.storage.flushes_mean),
            kibibytes(self.storage.written_bytes_median),
            kibibytes(self.storage.written_bytes_mean),
            format!("{:.2}", self.amplification),
            self.left_out.to_string(),
        ]
    }
}
