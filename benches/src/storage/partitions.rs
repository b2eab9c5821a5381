//! Many logs of one device that flush at once, against one.
//!
//! Owns: the turns of many and one, all of them within one segment of every log.
//! Never: waits for a flush before all are asked for.

use super::{DeviceWork, Samples};
use crate::device::BlockDevice;
use crate::log_writer::{FILL_GROUP_BYTES, LogWriter, batch_of, open_device};
use crate::measure::median;
use serde::Serialize;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Thread;
use weir_storage::{LogOptions, NewBatch, ThreadExecutor};

/// Bytes of a group.
const GROUP_BYTES: usize = 4 << 10;
/// Logs that retain so much have segments of 16 MiB, large enough for all turns of a run.
const RETAINED_BYTES: u64 = 128 << 20;
/// Behind so many bytes such a log is in a segment of 16 MiB and has the next one ready.
const SETTLED_BYTES: usize = 11 << 20;
/// Turns of one round.
const TURNS: u32 = 40;

/// Flushes of one kind.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct FlushFigure {
    /// From the first append to the last completion, the median, microseconds.
    pub p50_us: f64,
    /// The same, what a tenth of the turns stayed below, microseconds.
    pub p10_us: f64,
    /// What the device did from the one to the other.
    pub device: DeviceWork,
}

/// Many logs against one.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct PartitionsFigure {
    /// Logs on the device.
    pub partitions: u32,
    /// Bytes of a group.
    pub group_bytes: usize,
    /// Every log appends a group, all ask for their flush, then all are waited for.
    pub many: FlushFigure,
    /// One log appends one group.
    pub one: FlushFigure,
    /// One log appends as many bytes as the many together, as one batch.
    pub shared: FlushFigure,
    /// Time of the many over that of one, the median of the turns.
    pub many_over_one: f64,
    /// Time of the many over that of the same bytes in one log, the median of the turns.
    pub many_over_shared: f64,
}

/// Measures the three in turns.
pub(super) fn measure(
    dir: &Path,
    device: &BlockDevice,
    rounds: u32,
    partitions: u32,
) -> io::Result<PartitionsFigure> {
    let logs = open_device(dir, Arc::new(ThreadExecutor::start()?))?;
    let fill = batch_of(FILL_GROUP_BYTES)?;
    let open = |number: u32| {
        let uuid = u128::from(number) + 1;
        let options = LogOptions { uuid, retained_bytes: RETAINED_BYTES, ..LogOptions::default() };
        let mut log = LogWriter::open(logs.clone(), &dir.join(number.to_string()), options)?;
        for _ in 0..SETTLED_BYTES >> 20 {
            log.append(&fill)?;
        }
        log.settle();
        io::Result::Ok(log)
    };
    let mut many: Vec<LogWriter> = (0..partitions).map(open).collect::<io::Result<_>>()?;
    let mut single = [open(partitions)?];
    let group = batch_of(GROUP_BYTES)?;
    let together = batch_of(GROUP_BYTES * partitions as usize)?;
    let (mut apart, mut one, mut shared) =
        (Samples::default(), Samples::default(), Samples::default());
    device.wait_until_quiet()?;
    for _ in 0..rounds * TURNS {
        apart.take(device, || append_all(&mut many, &group), || true)?;
        one.take(device, || append_all(&mut single, &group), || true)?;
        shared.take(device, || append_all(&mut single, &together), || true)?;
    }
    let over = |other: &Samples| {
        let ratios = apart.us.iter().zip(&other.us).map(|(many, other)| many / other);
        median(&ratios.collect::<Vec<_>>())
    };
    let figure = |samples: &Samples| {
        let (p50_us, p10_us) = (samples.p50_us(), samples.p10_us());
        FlushFigure { p50_us, p10_us, device: samples.device_work() }
    };
    Ok(PartitionsFigure {
        partitions,
        group_bytes: GROUP_BYTES,
        many: figure(&apart),
        one: figure(&one),
        shared: figure(&shared),
        many_over_one: over(&one),
        many_over_shared: over(&shared),
    })
}

fn append_all(logs: &mut [LogWriter], batch: &NewBatch) -> io::Result<()> {
    for log in &mut *logs {
        log.store(batch)?;
    }
    let wait = Arc::new(Wait {
        left: AtomicUsize::new(logs.len()),
        failed: AtomicBool::new(false),
        waiting: std::thread::current(),
    });
    for log in &mut *logs {
        let wait = wait.clone();
        log.ask(Box::new(move |outcome| wait.done(outcome.is_ok())));
    }
    while wait.left.load(Ordering::Acquire) > 0 {
        std::thread::park();
    }
    match wait.failed.load(Ordering::Acquire) {
        true => Err(io::Error::other("a flush failed")),
        false => Ok(()),
    }
}

/// Wakes a thread once, when all flushes are done: what sixteen wake-ups cost is not the storage's.
struct Wait {
    left: AtomicUsize,
    failed: AtomicBool,
    waiting: Thread,
}

impl Wait {
    fn done(&self, well: bool) {
        self.failed.fetch_or(!well, Ordering::AcqRel);
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.waiting.unpark();
        }
    }
}

/// Names of the columns of [`PartitionsFigure::rows`].
pub const HEADINGS: [&str; 9] = [
    "flush of",
    "p50 us",
    "p10 us",
    "many over it",
    "of the p10",
    "flushes",
    "flushes, mean",
    "written KiB",
    "written KiB, mean",
];

impl PartitionsFigure {
    /// For people.
    pub fn rows(&self) -> [[String; 9]; 3] {
        let row = |name: String, figure: &FlushFigure, ratio: f64| {
            let work = figure.device;
            [
                name,
                format!("{:.0}", figure.p50_us),
                format!("{:.0}", figure.p10_us),
                format!("{ratio:.2}"),
                format!("{:.2}", self.many.p10_us / figure.p10_us),
                format!("{:.0}", work.flushes_median),
                format!("{:.2}", work.flushes_mean),
                format!("{:.1}", work.written_bytes_median / 1024.0),
                format!("{:.1}", work.written_bytes_mean / 1024.0),
            ]
        };
        let (count, kibibytes) = (self.partitions as usize, self.group_bytes >> 10);
        [
            row(format!("{count} logs, {kibibytes} KiB each"), &self.many, 1.0),
            row(format!("one log, {kibibytes} KiB"), &self.one, self.many_over_one),
            row(format!("one log, {} KiB", count * kibibytes), &self.shared, self.many_over_shared),
        ]
    }
}
