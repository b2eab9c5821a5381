//! CPU of append and flush, of the whole process.
//!
//! Owns: the turns of the group sizes on a log that gives up as much as it takes.
//! Never: counts the making of batches, or what kernel threads do.

use crate::clock;
use crate::device::{GroupWriter, zeroed_file};
use crate::floor::RETAINED_BYTES;
use crate::log_writer::{FILL_GROUP_BYTES, LogWriter, batch_of, open_device};
use crate::measure::median;
use serde::Serialize;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use weir_storage::{Executor, Job, Lane, LogOptions, NewBatch, ThreadExecutor};

/// Groups that are measured.
const GROUPS_BYTES: [usize; 2] = [64 << 10, 1 << 20];
/// What is appended in a turn: enough for several segments.
const TURN_BYTES: usize = 1 << 30;

/// One group size; all CPU is user and system time of all threads of the process.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct CpuFigure {
    /// Bytes of a group.
    pub group_bytes: usize,
    /// Append and flush with everything that belongs to it, trimming included, seconds per GiB.
    pub cpu_s_per_gib: f64,
    /// Of it, the lane that makes segments and reads them in, seconds per GiB.
    pub making_cpu_s_per_gib: f64,
    /// What is left without that lane, seconds per GiB.
    pub appending_cpu_s_per_gib: f64,
    /// Checking the bodies' CRC, as a broker does before it appends; not in the others, seconds per
    /// GiB.
    pub crc_cpu_s_per_gib: f64,
    /// pwrite and fdatasync of the same groups over written blocks, seconds per GiB.
    pub device_cpu_s_per_gib: f64,
    /// A GiB of append and flush with segments made and given up beside it, MB/s.
    pub storage_mb_s: f64,
    /// A GiB of pwrite and fdatasync, MB/s.
    pub device_mb_s: f64,
}

/// Adds up the CPU of the lane that makes segments.
#[derive(Debug)]
struct MeteredExecutor {
    lanes: ThreadExecutor,
    making_ns: Arc<AtomicU64>,
}

impl Executor for MeteredExecutor {
    fn submit(&self, lane: Lane, job: Job) {
        if lane != Lane::Prepare {
            return self.lanes.submit(lane, job);
        }
        let making_ns = self.making_ns.clone();
        let metered = move || {
            let before = clock::thread_cpu();
            job();
            let used = clock::thread_cpu().saturating_sub(before);
            making_ns.fetch_add(used.as_nanos() as u64, Ordering::Relaxed);
        };
        self.lanes.submit(lane, Box::new(metered));
    }
}

/// One group size and its turns, CPU in seconds.
struct Size {
    group_bytes: usize,
    batch: NewBatch,
    all: Vec<f64>,
    making: Vec<f64>,
    crc: Vec<f64>,
    device: Vec<f64>,
    mb_s: Vec<f64>,
    device_mb_s: Vec<f64>,
}

impl Size {
    fn new(group_bytes: usize) -> io::Result<Self> {
        let batch = batch_of(group_bytes)?;
        let (all, making, crc, device, mb_s, device_mb_s) = Default::default();
        Ok(Self { group_bytes, batch, all, making, crc, device, mb_s, device_mb_s })
    }

    fn figure(&self) -> CpuFigure {
        let appending = self.all.iter().zip(&self.making).map(|(all, making)| all - making);
        CpuFigure {
            group_bytes: self.group_bytes,
            cpu_s_per_gib: median(&self.all),
            making_cpu_s_per_gib: median(&self.making),
            appending_cpu_s_per_gib: median(&appending.collect::<Vec<_>>()),
            crc_cpu_s_per_gib: median(&self.crc),
            device_cpu_s_per_gib: median(&self.device),
            storage_mb_s: median(&self.mb_s),
            device_mb_s: median(&self.device_mb_s),
        }
    }
}

/// Measures both group sizes in turns.
pub(super) fn measure(dir: &Path, rounds: u32) -> io::Result<Vec<CpuFigure>> {
    let file = zeroed_file(&dir.join("device"))?;
    let making_ns = Arc::new(AtomicU64::new(0));
    let executor =
        MeteredExecutor { lanes: ThreadExecutor::start()?, making_ns: making_ns.clone() };
    let making = || Duration::from_nanos(making_ns.load(Ordering::Relaxed)).as_secs_f64();
    let logs = open_device(&dir.join("storage"), Arc::new(executor))?;
    let options = LogOptions { uuid: 1, retained_bytes: RETAINED_BYTES, ..LogOptions::default() };
    let mut log = LogWriter::open(logs, &dir.join("storage/log"), options)?;
    // From here on every segment that is taken is one that is given up.
    let fill = batch_of(FILL_GROUP_BYTES)?;
    for _ in 0..(RETAINED_BYTES + RETAINED_BYTES / 8) >> 20 {
        log.append(&fill)?;
    }
    let mut sizes = GROUPS_BYTES.map(Size::new).into_iter().collect::<io::Result<Vec<_>>>()?;
    for _ in 0..rounds {
        for size in &mut sizes {
            log.settle();
            let making_before = making();
            let (all, mb_s) = cpu_of(|| {
                let mb_s = turn(size.batch.header.stored_len(), || log.append(&size.batch));
                // What the last segment costs belongs to this turn.
                log.settle();
                mb_s
            })?;
            size.all.push(all);
            size.making.push(making() - making_before);
            size.mb_s.push(mb_s);
            let wire_bytes = size.batch.header.wire_len();
            let (crc, _) = cpu_of(|| turn(wire_bytes, || check_crc(&size.batch)))?;
            size.crc.push(crc);
            let mut writer = GroupWriter::new(&file, size.group_bytes);
            let (device, mb_s) = cpu_of(|| turn(size.group_bytes, || writer.write()))?;
            size.device.push(device);
            size.device_mb_s.push(mb_s);
        }
    }
    Ok(sizes.iter().map(Size::figure).collect())
}

/// CPU of the process during `work`, seconds, and what the work returns.
fn cpu_of<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<(f64, T)> {
    let before = clock::process_cpu();
    let done = work()?;
    Ok((clock::process_cpu().saturating_sub(before).as_secs_f64(), done))
}

/// Does something with `bytes` as often as makes a GiB; returns MB/s.
fn turn(bytes: usize, mut work: impl FnMut() -> io::Result<()>) -> io::Result<f64> {
    let started = clock::now();
    (0..TURN_BYTES / bytes).try_for_each(|_| work())?;
    Ok(TURN_BYTES as f64 / started.elapsed().as_micros() as f64)
}

fn check_crc(batch: &NewBatch) -> io::Result<()> {
    let [body] = batch.body.as_slice() else { return Err(io::ErrorKind::InvalidData.into()) };
    batch.header.check_body(body).map(drop).map_err(io::Error::other)
}

/// Names of the columns of [`CpuFigure::row`].
pub const HEADINGS: [&str; 8] = [
    "group",
    "append and flush",
    "of it making segments",
    "without",
    "CRC check",
    "pwrite and fdatasync",
    "log MB/s",
    "device MB/s",
];

impl CpuFigure {
    /// For people.
    pub fn row(&self) -> [String; 8] {
        [
            format!("{} KiB", self.group_bytes >> 10),
            format!("{:.3}", self.cpu_s_per_gib),
            format!("{:.3}", self.making_cpu_s_per_gib),
            format!("{:.3}", self.appending_cpu_s_per_gib),
            format!("{:.3}", self.crc_cpu_s_per_gib),
            format!("{:.3}", self.device_cpu_s_per_gib),
            format!("{:.0}", self.storage_mb_s),
            format!("{:.0}", self.device_mb_s),
        ]
    }
}
