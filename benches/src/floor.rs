//! What this disk and this machine can do without a broker.
//!
//! Owns: the device floor (pwrite and fdatasync), the storage floor (append and flush of a log),
//! loopback TCP; the `net` floor is in [`crate::net_floor`].
//! Never: compares figures of different runs: everything is measured in one.

use crate::clock;
use crate::measure::{Latencies, device_counters, median};
use crate::net_floor;
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use weir_protocol::batch::BatchBuilder;
use weir_protocol::types::{Index, Term};
use weir_storage::{Backend, Device, Log, LogOptions, NewBatch, OsDisk, ThreadExecutor};

/// Bytes that a file is filled with before anything is measured.
const FILE_BYTES: u64 = 64 << 20;
/// The files are written in steps of this size, as Weir's segments are.
const FILL_BYTES: usize = 16 << 10;
/// Groups that are measured.
const GROUPS_BYTES: [usize; 5] = [1 << 10, 4 << 10, 64 << 10, 256 << 10, GROUP_BYTES_MAX];
/// The largest of them.
pub(crate) const GROUP_BYTES_MAX: usize = 1 << 20;
/// What the logs of the floors, and the topics that the harness makes, keep at most: a benchmark
/// fills no disk, and all of them pay for giving up what is old.
pub const RETAINED_BYTES: u64 = 1 << 30;
/// Bytes of a message in the storage floor.
const MESSAGE_BYTES: usize = 1 << 10;

/// Times of single flushes.
#[derive(Debug, Clone, Copy)]
pub struct FlushTimes {
    /// Median.
    pub p50: Duration,
    /// 90th percentile.
    pub p90: Duration,
    /// 99th percentile.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

/// One group size, without Weir and through its log.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct GroupFloor {
    /// Bytes of a group.
    pub group_bytes: usize,
    /// pwrite and fdatasync over written blocks, MB/s.
    pub device_mb_s: f64,
    /// Append and flush of the log, MB/s.
    pub storage_mb_s: f64,
    /// Storage over device.
    pub ratio: f64,
    /// Median of pwrite and fdatasync, microseconds.
    pub device_p50_us: u64,
    /// Median of append and flush, microseconds.
    pub storage_p50_us: u64,
    /// Bytes that reached the device for a group, as it counts them; the median of the rounds, so
    /// that making the next segment, which few rounds see, is left out. None without counters.
    pub storage_written_bytes: Option<f64>,
    /// Cache flushes of the device for a group.
    pub storage_flushes: Option<f64>,
}

/// Everything that `weir bench floor` measures.
#[derive(Debug, Clone, Serialize)]
pub struct FloorReport {
    /// Per group size.
    pub groups: Vec<GroupFloor>,
    /// Loopback TCP, one stream, MB/s.
    pub loopback_mb_s: f64,
    /// The log server of 60 lines.
    pub net: Vec<net_floor::NetFigure>,
}

/// Makes a file of zeros whose every block is written.
pub(crate) fn zeroed_file(path: &Path) -> io::Result<File> {
    let mut file =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    let zeros = vec![0; FILL_BYTES];
    for _ in 0..FILE_BYTES / FILL_BYTES as u64 {
        file.write_all(&zeros)?;
    }
    file.sync_all()?;
    Ok(file)
}

/// Measures `count` flushes of 4 KiB over written blocks in `dir`.
pub fn measure_flush(dir: &Path, count: u32) -> io::Result<FlushTimes> {
    let path = dir.join(format!("weir-flush-{}", std::process::id()));
    let file = zeroed_file(&path)?;
    // The file has no name from here on, so that nothing is left behind.
    std::fs::remove_file(&path)?;
    let times = time_groups(&file, 4 << 10, count)?.percentiles();
    let us = Duration::from_micros;
    Ok(FlushTimes {
        p50: us(times.p50_us),
        p90: us(times.p90_us),
        p99: us(times.p99_us),
        max: us(times.max_us),
    })
}

pub(crate) fn time_groups(file: &File, group_bytes: usize, count: u32) -> io::Result<Latencies> {
    let group = vec![7; group_bytes];
    let (mut times, mut position) = (Latencies::default(), 0);
    for _ in 0..count {
        let started = clock::now();
        file.write_all_at(&group, position)?;
        rustix::fs::fdatasync(file)?;
        times.record(started.elapsed());
        position = (position + group_bytes as u64) % (FILE_BYTES - group_bytes as u64);
        position -= position % 4096;
    }
    Ok(times)
}

/// A log in a folder of its own.
pub(crate) struct StorageFloor {
    log: Log,
    next: u64,
}

impl StorageFloor {
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let executor = Arc::new(ThreadExecutor::start()?);
        let disk = Arc::new(OsDisk::new(Backend::Map));
        let device = Device::open(disk, executor, dir, 1).map_err(io::Error::other)?;
        let options = LogOptions {
            uuid: 1,
            retained_bytes: RETAINED_BYTES,
            flush_inline: true,
            ..LogOptions::default()
        };
        let (log, _) = Log::open(device, &dir.join("log"), options).map_err(io::Error::other)?;
        let mut floor = Self { log, next: 1 };
        // The first, small segments are outgrown before anything is measured.
        let batch = batch_of(GROUP_BYTES_MAX)?;
        for _ in 0..100 {
            floor.append(batch.clone())?;
        }
        Ok(floor)
    }

    /// Appends the batch as the next index and waits until it is durable.
    fn append(&mut self, mut batch: NewBatch) -> io::Result<()> {
        batch.header.index = Index(self.next);
        self.next += 1;
        self.log.append(vec![batch]).map_err(io::Error::other)?;
        let (done, wait) = std::sync::mpsc::sync_channel(1);
        self.log.flush(Box::new(move |outcome| {
            // The receiver waits right below.
            let _ = done.send(outcome);
        }));
        wait.recv().map_err(io::Error::other)?.map_err(io::Error::other)?;
        self.retain()
    }

    /// Gives up the oldest segment once the log holds more than it retains.
    fn retain(&mut self) -> io::Result<()> {
        let log = self.log.reader();
        if log.bounds().bytes <= RETAINED_BYTES {
            return Ok(());
        }
        match log.sealed_segments().first() {
            Some(oldest) => self.log.trim(oldest.last_index),
            None => Ok(()),
        }
    }

    /// Appends groups of one batch each for `seconds`, a group durable before the next begins;
    /// returns groups a second.
    pub(crate) fn rate(&mut self, group_bytes: usize, seconds: f64) -> io::Result<f64> {
        let batch = batch_of(group_bytes)?;
        let (started, mut count) = (clock::now(), 0u64);
        while started.elapsed().as_secs_f64() < seconds {
            self.append(batch.clone())?;
            count += 1;
        }
        Ok(count as f64 / started.elapsed().as_secs_f64())
    }

    /// Times groups of one batch each. Making and checksumming a batch is its publisher's work and
    /// is not timed.
    pub(crate) fn time_groups(&mut self, group_bytes: usize, count: u32) -> io::Result<Latencies> {
        let batch = batch_of(group_bytes)?;
        let mut times = Latencies::default();
        for _ in 0..count {
            let started = clock::now();
            self.append(batch.clone())?;
            times.record(started.elapsed());
        }
        Ok(times)
    }
}

/// A batch of 1 KiB messages, at most `group_bytes` long but for its first message.
fn batch_of(group_bytes: usize) -> io::Result<NewBatch> {
    let mut builder = BatchBuilder::new(8 << 20);
    let value = vec![7; MESSAGE_BYTES - 24];
    while builder.is_empty() || builder.wire_len() + MESSAGE_BYTES <= group_bytes {
        builder.push(1, None, &[], &value).map_err(io::Error::other)?;
    }
    let built = builder.finish();
    let mut header = built.header;
    header.term = Term(1);
    Ok(NewBatch { header, body: vec![built.body] })
}

/// Measures device and storage in turns, so that both see the same disk.
fn measure_groups(dir: &Path, rounds: u32) -> io::Result<Vec<GroupFloor>> {
    let file = zeroed_file(&dir.join("device"))?;
    let mut storage = StorageFloor::open(&dir.join("storage"))?;
    let mut floors = Vec::new();
    for group_bytes in GROUPS_BYTES {
        let (mut device, mut log) = (Latencies::default(), Latencies::default());
        let (mut written, mut flushes) = (Vec::new(), Vec::new());
        let count = if group_bytes >= 1 << 20 { 20 } else { 60 };
        for _ in 0..rounds {
            device.merge(&time_groups(&file, group_bytes, count)?);
            let before = device_counters(dir);
            log.merge(&storage.time_groups(group_bytes, count)?);
            if let (Some(after), Some(before)) = (device_counters(dir), before) {
                let seen = after.since(before);
                written.push(seen.written_bytes as f64 / f64::from(count));
                flushes.push(seen.flushes as f64 / f64::from(count));
            }
        }
        let (device, log) = (device.percentiles(), log.percentiles());
        let rate = |p50_us: u64| group_bytes as f64 / p50_us.max(1) as f64;
        floors.push(GroupFloor {
            group_bytes,
            device_mb_s: rate(device.p50_us),
            storage_mb_s: rate(log.p50_us),
            ratio: rate(log.p50_us) / rate(device.p50_us),
            device_p50_us: device.p50_us,
            storage_p50_us: log.p50_us,
            storage_written_bytes: (!written.is_empty()).then(|| median(&written)),
            storage_flushes: (!flushes.is_empty()).then(|| median(&flushes)),
        });
    }
    Ok(floors)
}

/// One stream over loopback, MB/s.
fn measure_loopback() -> io::Result<f64> {
    const TOTAL_BYTES: usize = 1 << 30;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || -> io::Result<()> {
            let mut stream = TcpStream::connect(address)?;
            let block = vec![7; 256 << 10];
            for _ in 0..TOTAL_BYTES / block.len() {
                stream.write_all(&block)?;
            }
            Ok(())
        });
        let (mut stream, _) = listener.accept()?;
        let started = clock::now();
        let (mut block, mut total) = (vec![0; 256 << 10], 0);
        loop {
            match stream.read(&mut block)? {
                0 => break,
                count => total += count,
            }
        }
        let rate = total as f64 / started.elapsed().as_micros().max(1) as f64;
        sender.join().map_err(|_| io::Error::other("the sender panicked"))??;
        Ok(rate)
    })
}

/// Measures every floor in a scratch folder below `dir`, which is removed afterwards.
pub fn measure(dir: &Path, rounds: u32, seconds: f64) -> io::Result<FloorReport> {
    in_scratch_folder(dir, |scratch| {
        let groups = measure_groups(scratch, rounds)?;
        let loopback_mb_s = measure_loopback()?;
        let net = net_floor::measure_all(scratch, seconds)?;
        Ok(FloorReport { groups, loopback_mb_s, net })
    })
}

/// Runs `measure` with a folder below `dir` that is removed afterwards.
pub fn in_scratch_folder<T>(
    dir: &Path,
    measure: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let scratch = dir.join(format!("weir-floor-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    let measured = measure(&scratch);
    let removed = std::fs::remove_dir_all(&scratch);
    let report = measured?;
    removed?;
    Ok(report)
}
