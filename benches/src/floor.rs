//! What this disk and this machine can do without a broker.
//!
//! Owns: the device floor (pwrite and fdatasync), the storage floor (append and flush of a log),
//! loopback TCP; the `net` floor is in [`crate::net_floor`].
//! Never: compares figures of different runs: everything is measured in one.

use crate::clock;
use crate::device::{BlockDevice, time_groups, zeroed_file};
use crate::log_writer::{LogWriter, batch_of, open_device};
use crate::measure::{Latencies, median};
use crate::net_floor;
use crate::scratch::in_scratch_folder;
use serde::Serialize;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use weir_storage::{LogOptions, ThreadExecutor};

/// Groups that are measured.
pub(crate) const GROUPS_BYTES: [usize; 5] =
    [1 << 10, 4 << 10, 64 << 10, 256 << 10, GROUP_BYTES_MAX];
/// The largest of them.
pub(crate) const GROUP_BYTES_MAX: usize = 1 << 20;
/// What the logs of the floors, and the topics that the harness makes, keep at most: a benchmark
/// fills no disk, and all of them pay for giving up what is old.
pub const RETAINED_BYTES: u64 = 1 << 30;

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

/// A log in a folder of its own, behind its first, small segments.
pub(crate) struct StorageFloor(LogWriter);

impl StorageFloor {
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let device = open_device(dir, Arc::new(ThreadExecutor::start()?))?;
        let options =
            LogOptions { uuid: 1, retained_bytes: RETAINED_BYTES, ..LogOptions::default() };
        let mut writer = LogWriter::open(device, &dir.join("log"), options)?;
        writer.outgrow_small_segments()?;
        Ok(Self(writer))
    }

    /// Appends groups of one batch each for `seconds`, a group durable before the next begins;
    /// returns groups a second.
    pub(crate) fn rate(&mut self, group_bytes: usize, seconds: f64) -> io::Result<f64> {
        let batch = batch_of(group_bytes)?;
        let (started, mut count) = (clock::now(), 0u64);
        while started.elapsed().as_secs_f64() < seconds {
            self.0.append(&batch)?;
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
            self.0.append(&batch)?;
            times.record(started.elapsed());
        }
        Ok(times)
    }
}

/// Measures device and storage in turns, so that both see the same disk.
fn measure_groups(dir: &Path, rounds: u32) -> io::Result<Vec<GroupFloor>> {
    let file = zeroed_file(&dir.join("device"))?;
    let mut storage = StorageFloor::open(&dir.join("storage"))?;
    let block_device = BlockDevice::below(dir);
    let counters = || block_device.as_ref().and_then(|device| device.counters().ok());
    let mut floors = Vec::new();
    for group_bytes in GROUPS_BYTES {
        let (mut device, mut log) = (Latencies::default(), Latencies::default());
        let (mut written, mut flushes) = (Vec::new(), Vec::new());
        let count = if group_bytes >= 1 << 20 { 20 } else { 60 };
        for _ in 0..rounds {
            device.merge(&time_groups(&file, group_bytes, count)?);
            let before = counters();
            log.merge(&storage.time_groups(group_bytes, count)?);
            if let (Some(after), Some(before)) = (counters(), before) {
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
