//! Opening logs of which nothing is in memory, beside a plain read of their files.
//!
//! Owns: making the logs once, and the turns of both.
//! Never: opens a log that was closed in order: the last segment is never sealed.

use crate::clock;
use crate::device::{BlockDevice, DeviceCounters, forget, read_through};
use crate::log_writer::{FILL_GROUP_BYTES, FILL_GROUPS, LogWriter, batch_of, open_device};
use crate::measure::median;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weir_storage::limits::{CONTROL_RESERVE_BYTES, SEGMENT_HEADER_BYTES, SEGMENT_LADDER_BYTES};
use weir_storage::{Device, Log, LogOptions, ThreadExecutor};

/// Logs with one unsealed segment each, together 1 GiB.
const UNSEALED_LOGS: u32 = 8;
/// Batches that the logs consist of.
const BATCH_BYTES: usize = 64 << 10;
/// A log that retains so little has segments of 1 MiB.
const SMALL_RETAINED_BYTES: u64 = 1 << 20;

/// How long logs take to open; every figure is the median of the rounds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct RecoveryFigure {
    /// Logs that are opened, one after another.
    pub logs: u32,
    /// Sealed segments of them all.
    pub sealed_segments: usize,
    /// Bytes of their files.
    pub file_bytes: u64,
    /// Time to open all of them, seconds.
    pub open_seconds: f64,
    /// Bytes that the device read for it.
    pub open_read_bytes: f64,
    /// Reads of the device for it.
    pub open_reads: f64,
    /// Bytes that the device wrote for it.
    pub open_written_bytes: f64,
    /// Time to read the files from start to end, seconds.
    pub plain_seconds: f64,
    /// Bytes that the device read for that.
    pub plain_read_bytes: f64,
    /// Reads of the device for that.
    pub plain_reads: f64,
}

/// Measures unsealed segments, then sealed ones.
pub(super) fn measure(
    dir: &Path,
    device: &BlockDevice,
    rounds: u32,
    sealed: usize,
) -> io::Result<Vec<RecoveryFigure>> {
    allow_many_files()?;
    let unsealed = {
        let dir = dir.join("unsealed");
        let made = Made::unsealed(&dir)?;
        let figure = made.measure(device, rounds)?;
        drop(made);
        std::fs::remove_dir_all(&dir)?;
        figure
    };
    Ok(vec![unsealed, Made::sealed(&dir.join("sealed"), sealed)?.measure(device, rounds)?])
}

/// Every segment of an open log is an open file, and 1,024 of them is a common limit.
fn allow_many_files() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?)
}

/// Logs that were made and closed.
struct Made {
    device: Arc<Device>,
    logs: Vec<(PathBuf, LogOptions)>,
    sealed_segments: usize,
    files: Vec<PathBuf>,
    file_bytes: u64,
}

impl Made {
    /// Logs of one nearly full segment of the largest size.
    fn unsealed(dir: &Path) -> io::Result<Self> {
        let device = open_device(dir, Arc::new(ThreadExecutor::start()?))?;
        let batch = batch_of(BATCH_BYTES)?;
        let [.., largest] = SEGMENT_LADDER_BYTES;
        let room = largest - SEGMENT_HEADER_BYTES - CONTROL_RESERVE_BYTES;
        let mut logs = Vec::new();
        for number in 0..UNSEALED_LOGS {
            let (path, options) = place_of(dir, number, u64::MAX);
            let mut log = LogWriter::open(device.clone(), &path, options.clone())?;
            log.outgrow_small_segments()?;
            log.trim_sealed()?;
            let left = room - FILL_GROUPS * FILL_GROUP_BYTES as u64;
            for number in 0..left / batch.header.stored_len() as u64 {
                log.store(&batch)?;
                if number % 16 == 0 {
                    log.flush()?;
                }
            }
            log.flush()?;
            log.settle();
            logs.push((path, options));
        }
        Self::closed(device, logs, 0)
    }

    /// A log of `sealed` small segments and one that is not sealed.
    fn sealed(dir: &Path, sealed: usize) -> io::Result<Self> {
        let device = open_device(dir, Arc::new(ThreadExecutor::start()?))?;
        let batch = batch_of(BATCH_BYTES)?;
        let (path, options) = place_of(dir, 0, SMALL_RETAINED_BYTES);
        let mut log = LogWriter::open(device.clone(), &path, options.clone())?;
        while log.reader().sealed_segments().len() < sealed {
            log.store(&batch)?;
            log.flush()?;
        }
        log.settle();
        drop(log);
        Self::closed(device, vec![(path, options)], sealed)
    }

    fn closed(
        device: Arc<Device>,
        logs: Vec<(PathBuf, LogOptions)>,
        sealed_segments: usize,
    ) -> io::Result<Self> {
        let (mut files, mut file_bytes) = (Vec::new(), 0);
        for (path, _) in &logs {
            for item in std::fs::read_dir(path)? {
                let item = item?;
                file_bytes += item.metadata()?.len();
                files.push(item.path());
            }
        }
        files.sort();
        Ok(Self { device, logs, sealed_segments, files, file_bytes })
    }

    fn measure(&self, device: &BlockDevice, rounds: u32) -> io::Result<RecoveryFigure> {
        let (mut opened, mut plain) = (Cold::default(), Cold::default());
        for _ in 0..rounds {
            plain.take(device, &self.files, || read_through(&self.files))?;
            // They are closed when nobody measures any more.
            let _logs = opened.take(device, &self.files, || self.open())?;
        }
        Ok(RecoveryFigure {
            logs: self.logs.len() as u32,
            sealed_segments: self.sealed_segments,
            file_bytes: self.file_bytes,
            open_seconds: median(&opened.seconds),
            open_read_bytes: opened.median_of(|seen| seen.read_bytes),
            open_reads: opened.median_of(|seen| seen.reads),
            open_written_bytes: opened.median_of(|seen| seen.written_bytes),
            plain_seconds: median(&plain.seconds),
            plain_read_bytes: plain.median_of(|seen| seen.read_bytes),
            plain_reads: plain.median_of(|seen| seen.reads),
        })
    }

    fn open(&self) -> io::Result<Vec<Log>> {
        let open = |(path, options): &(PathBuf, LogOptions)| {
            let opened = Log::open(self.device.clone(), path, options.clone());
            opened.map(|(log, _)| log).map_err(io::Error::other)
        };
        self.logs.iter().map(open).collect()
    }
}

fn place_of(dir: &Path, number: u32, retained_bytes: u64) -> (PathBuf, LogOptions) {
    let uuid = u128::from(number) + 1;
    (dir.join(number.to_string()), LogOptions { uuid, retained_bytes, ..LogOptions::default() })
}

/// Times of something that begins with nothing in memory.
#[derive(Default)]
struct Cold {
    seconds: Vec<f64>,
    seen: Vec<DeviceCounters>,
}

impl Cold {
    fn take<T>(
        &mut self,
        device: &BlockDevice,
        files: &[PathBuf],
        work: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        forget(files)?;
        let before = device.counters()?;
        let started = clock::now();
        let done = work()?;
        self.seconds.push(started.elapsed().as_secs_f64());
        self.seen.push(device.counters()?.since(before));
        Ok(done)
    }

    fn median_of(&self, counter: impl Fn(&DeviceCounters) -> u64) -> f64 {
        median(&self.seen.iter().map(|seen| counter(seen) as f64).collect::<Vec<_>>())
    }
}

/// Names of the columns of [`RecoveryFigure::rows`].
pub const HEADINGS: [&str; 7] =
    ["cold", "seconds", "file MB/s", "read MB", "reads", "written KiB", "s per GiB"];

impl RecoveryFigure {
    /// For people: opening, then the plain read.
    pub fn rows(&self) -> [[String; 7]; 2] {
        let row = |what: String, seconds: f64, read_bytes: f64, reads: f64, written: String| {
            let file_bytes = self.file_bytes as f64;
            [
                what,
                format!("{seconds:.3}"),
                format!("{:.0}", file_bytes / 1e6 / seconds),
                format!("{:.1}", read_bytes / 1e6),
                format!("{reads:.0}"),
                written,
                format!("{:.2}", seconds / (file_bytes / f64::from(1 << 30))),
            ]
        };
        let what = match self.sealed_segments {
            0 => format!("open {} logs of one segment", self.logs),
            count => format!("open a log of {count} sealed segments"),
        };
        let written = format!("{:.1}", self.open_written_bytes / 1024.0);
        let opened = (self.open_seconds, self.open_read_bytes, self.open_reads);
        let plain = (self.plain_seconds, self.plain_read_bytes, self.plain_reads);
        [
            row(what, opened.0, opened.1, opened.2, written),
            row("read the same files".to_owned(), plain.0, plain.1, plain.2, "-".to_owned()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_opened_has_the_sealed_segments_and_one_that_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let made = Made::sealed(dir.path(), 3).unwrap();
        let is_segment = |path: &&PathBuf| path.extension().is_some_and(|kind| kind == "seg");
        let segments = made.files.iter().filter(is_segment);
        assert_eq!(segments.count(), 4);
        let [log] = made.open().unwrap().try_into().ok().unwrap();
        assert_eq!(log.reader().sealed_segments().len(), 3);
    }
}
