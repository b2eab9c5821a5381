//! What storage alone reaches, by the counters of the disk that it writes to.
//!
//! Owns: which parts are measured, and their report.
//! Never: measures where the disk does not count; knows a broker.

pub mod cpu;
pub mod groups;
pub mod partitions;
pub mod recovery;
pub mod steady;

use crate::clock;
use crate::device::{BlockDevice, DeviceCounters};
use crate::measure::{mean, median};
use crate::scratch::in_scratch_folder;
use serde::Serialize;
use std::io;
use std::path::Path;

/// One part of the figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// [`groups`].
    Groups,
    /// [`steady`].
    Steady,
    /// [`partitions`].
    Partitions,
    /// [`cpu`].
    Cpu,
    /// [`recovery`].
    Recovery,
}

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Turns of everything; figures are medians over them unless they say otherwise.
    pub rounds: u32,
    /// Logs that flush at once.
    pub partitions: u32,
    /// Sealed segments of the log that is opened.
    pub sealed: usize,
    /// The parts; all of them if there is none.
    pub parts: Vec<Part>,
}

impl Plan {
    /// Runs `measure`, if its part is asked for, in a folder that is removed before the next part
    /// takes space.
    fn run<T>(
        &self,
        part: Part,
        scratch: &Path,
        measure: impl FnOnce(&Path) -> io::Result<T>,
    ) -> io::Result<Option<T>> {
        if !self.parts.is_empty() && !self.parts.contains(&part) {
            return Ok(None);
        }
        let dir = scratch.join("part");
        std::fs::create_dir(&dir)?;
        let measured = measure(&dir)?;
        std::fs::remove_dir_all(&dir)?;
        Ok(Some(measured))
    }
}

/// Everything that `weir bench storage` measures; none of a part that was not asked for.
#[derive(Debug, Clone, Serialize)]
pub struct StorageReport {
    /// Turns of everything.
    pub rounds: u32,
    /// One log, by group size.
    pub groups: Option<Vec<groups::GroupFigure>>,
    /// Small groups in a row, with everything beside them.
    pub steady: Option<steady::SteadyFigure>,
    /// Many logs of one device against one.
    pub partitions: Option<partitions::PartitionsFigure>,
    /// CPU of append and flush, by group size.
    pub cpu: Option<Vec<cpu::CpuFigure>>,
    /// Opening logs that are not in memory.
    pub recovery: Option<Vec<recovery::RecoveryFigure>>,
}

/// Measures in a scratch folder below `dir`, which is removed afterwards. An error of the kind
/// `Unsupported` if nothing counts what the disk below it does.
pub fn measure(dir: &Path, plan: &Plan) -> io::Result<StorageReport> {
    std::fs::metadata(dir)?;
    let device = BlockDevice::below(dir).ok_or_else(|| {
        let reason = "the filesystem here has no block device whose counters can be read, as tmpfs, \
                      overlay and btrfs have none; give a folder on ext4 or XFS";
        io::Error::new(io::ErrorKind::Unsupported, reason)
    })?;
    let rounds = plan.rounds;
    in_scratch_folder(dir, |scratch| {
        let groups = |dir: &Path| groups::measure(dir, &device, rounds);
        let steady = |dir: &Path| steady::measure(dir, &device, rounds);
        let partitions = |dir: &Path| partitions::measure(dir, &device, rounds, plan.partitions);
        let cpu = |dir: &Path| cpu::measure(dir, rounds);
        let recovery = |dir: &Path| recovery::measure(dir, &device, rounds, plan.sealed);
        Ok(StorageReport {
            rounds,
            groups: plan.run(Part::Groups, scratch, groups)?,
            steady: plan.run(Part::Steady, scratch, steady)?,
            partitions: plan.run(Part::Partitions, scratch, partitions)?,
            cpu: plan.run(Part::Cpu, scratch, cpu)?,
            recovery: plan.run(Part::Recovery, scratch, recovery)?,
        })
    })
}

/// What the device did for single groups or rounds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct DeviceWork {
    /// Cache flushes, the median.
    pub flushes_median: f64,
    /// Cache flushes, the mean: what comes rarely counts here.
    pub flushes_mean: f64,
    /// Bytes written, the median.
    pub written_bytes_median: f64,
    /// Bytes written, the mean.
    pub written_bytes_mean: f64,
}

/// Times of single groups or rounds, and what the device did in each.
#[derive(Debug, Default)]
struct Samples {
    us: Vec<f64>,
    flushes: Vec<f64>,
    written_bytes: Vec<f64>,
}

impl Samples {
    /// Measures one; it is kept if `work` says so.
    fn take(
        &mut self,
        device: &BlockDevice,
        work: impl FnOnce() -> io::Result<()>,
        keep: impl FnOnce() -> bool,
    ) -> io::Result<()> {
        let before = device.counters()?;
        let started = clock::now();
        work()?;
        let took = started.elapsed();
        let seen = device.counters()?.since(before);
        if keep() {
            self.us.push(took.as_nanos() as f64 / 1e3);
            self.note(seen, 1.0);
        }
        Ok(())
    }

    /// Notes what the device did for each of `count`.
    fn note(&mut self, seen: DeviceCounters, count: f64) {
        self.flushes.push(seen.flushes as f64 / count);
        self.written_bytes.push(seen.written_bytes as f64 / count);
    }

    fn count(&self) -> u32 {
        self.us.len() as u32
    }

    fn p50_us(&self) -> f64 {
        median(&self.us)
    }

    /// What a tenth of them stayed below: the cost without what the machine does beside.
    fn p10_us(&self) -> f64 {
        let mut sorted = self.us.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 10).copied().unwrap_or_default()
    }

    fn device_work(&self) -> DeviceWork {
        DeviceWork {
            flushes_median: median(&self.flushes),
            flushes_mean: mean(&self.flushes),
            written_bytes_median: median(&self.written_bytes),
            written_bytes_mean: mean(&self.written_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_asked_for_is_measured_and_nothing_stays() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan { rounds: 1, partitions: 2, sealed: 1, parts: vec![Part::Partitions] };
        let report = match measure(dir.path(), &plan) {
            // The folder for temporary files may lie in memory.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => return,
            measured => measured.unwrap(),
        };
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let json = serde_json::to_value(&report).unwrap();
        assert!(
            json["groups"].is_null()
                && json["steady"].is_null()
                && json["cpu"].is_null()
                && json["recovery"].is_null()
        );
        let figure = &json["partitions"];
        assert_eq!(figure["partitions"], 2);
        assert!(figure["many"]["p50_us"].as_f64().unwrap() > 0.0);
        assert!(figure["many"]["device"]["written_bytes_median"].as_f64().unwrap() > 0.0);
    }

    #[test]
    fn a_disk_that_does_not_count_is_refused() {
        let plan = Plan { rounds: 1, partitions: 1, sealed: 1, parts: Vec::new() };
        let refused = measure(Path::new("/proc"), &plan).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
        assert!(refused.to_string().contains("no block device"));
        let missing = measure(Path::new("/proc/nowhere"), &plan).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
