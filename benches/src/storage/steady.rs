//! What small groups cost on average, whatever a log does beside them.
//!
//! Owns: a log that gives up as much as it takes, and the device's counters over more groups than a
//! segment holds: rolls, indexes, hard state and the making of segments are in the mean.
//! Never: leaves a group out.

use super::DeviceWork;
use crate::clock;
use crate::device::BlockDevice;
use crate::log_writer::{FILL_GROUP_BYTES, LogWriter, batch_of, open_device};
use crate::measure::median;
use serde::Serialize;
use std::io;
use std::path::Path;
use std::sync::Arc;
use weir_storage::{LogOptions, ThreadExecutor};

/// Bytes of a group: one message of 1 KiB and its batch header are a little more.
const GROUP_BYTES: usize = 1 << 10;
/// The log's segments have 16 MiB: an eighth.
const RETAINED_BYTES: u64 = 128 << 20;
/// Groups of a turn: 1.5 segments.
const GROUPS: u32 = 20_000;

/// Small groups in a row.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct SteadyFigure {
    /// Bytes of a group with its header.
    pub stored_bytes: usize,
    /// Groups of a turn.
    pub groups: u32,
    /// Groups a second, the median of the turns.
    pub groups_per_s: f64,
    /// What the device did for a group: the mean within a turn, and of those the median and the mean.
    pub device: DeviceWork,
}

/// Measures `rounds` turns.
pub(super) fn measure(dir: &Path, device: &BlockDevice, rounds: u32) -> io::Result<SteadyFigure> {
    let logs = open_device(dir, Arc::new(ThreadExecutor::start()?))?;
    let options = LogOptions { uuid: 1, retained_bytes: RETAINED_BYTES, ..LogOptions::default() };
    let mut log = LogWriter::open(logs, &dir.join("log"), options)?;
    let fill = batch_of(FILL_GROUP_BYTES)?;
    for _ in 0..2 * RETAINED_BYTES / FILL_GROUP_BYTES as u64 {
        log.append(&fill)?;
    }
    let group = batch_of(GROUP_BYTES)?;
    let (mut rates, mut work) = (Vec::new(), super::Samples::default());
    for _ in 0..rounds {
        log.settle();
        let (before, started) = (device.counters()?, clock::now());
        for _ in 0..GROUPS {
            log.append(&group)?;
        }
        rates.push(f64::from(GROUPS) / started.elapsed().as_secs_f64());
        log.settle();
        work.note(device.counters()?.since(before), f64::from(GROUPS));
    }
    Ok(SteadyFigure {
        stored_bytes: group.header.stored_len(),
        groups: GROUPS,
        groups_per_s: median(&rates),
        device: work.device_work(),
    })
}

/// Names of the columns of [`SteadyFigure::row`].
pub const HEADINGS: [&str; 4] =
    ["groups in a row", "groups a second", "flushes, mean", "written KiB, mean"];

impl SteadyFigure {
    /// For people.
    pub fn row(&self) -> [String; 4] {
        [
            format!("{} of {} bytes", self.groups, self.stored_bytes),
            format!("{:.0}", self.groups_per_s),
            format!("{:.2}", self.device.flushes_mean),
            format!("{:.1}", self.device.written_bytes_mean / 1024.0),
        ]
    }
}
