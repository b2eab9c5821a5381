//! What the tests of a log share: a device in a scratch folder, batches, a disk that fails.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test file uses its part; a test may unwrap"
)]

pub(crate) mod model;
pub(crate) mod subject;

use bytes::Bytes;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use weir_protocol::batch::{BatchBuilder, BatchHeader, BatchType};
use weir_protocol::types::{Index, Term};
use weir_sim::disk::SimDisk;
use weir_storage::{
    Backend, Device, Disk, Executor, FlushError, Job, Lane, Log, LogOptions, NewBatch, OpenError,
    OsDisk, Read, Recovered,
};

/// Runs every job at once, on the calling thread.
#[derive(Debug)]
pub(crate) struct Inline;

impl Executor for Inline {
    fn submit(&self, _lane: Lane, job: Job) {
        job();
    }
}

/// Keeps jobs until it is told to run them.
#[derive(Clone, Default)]
pub(crate) struct Later(Arc<Mutex<Vec<Job>>>);

impl std::fmt::Debug for Later {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Later")
    }
}

impl Executor for Later {
    fn submit(&self, _lane: Lane, job: Job) {
        self.0.lock().unwrap().push(job);
    }
}

impl Later {
    pub(crate) fn run(&self) {
        let jobs = std::mem::take(&mut *self.0.lock().unwrap());
        jobs.into_iter().for_each(|job| job());
    }
}

pub(crate) fn device_on(disk: Arc<dyn Disk>, root: &Path) -> Arc<Device> {
    Device::open(disk, Arc::new(Inline), root, 7).unwrap()
}

pub(crate) fn device(root: &Path) -> Arc<Device> {
    device_on(Arc::new(OsDisk::new(Backend::Map)), root)
}

pub(crate) fn open(device: &Arc<Device>) -> Result<(Log, Recovered), OpenError> {
    let options = LogOptions { uuid: 5, ..LogOptions::default() };
    Log::open(device.clone(), &device.root().join("p"), options)
}

/// The log of a small topic: its segments stay at their smallest, 1 MiB.
pub(crate) fn open_small(device: &Arc<Device>) -> Result<(Log, Recovered), OpenError> {
    let options = LogOptions { uuid: 5, retained_bytes: 8 << 20, ..LogOptions::default() };
    Log::open(device.clone(), &device.root().join("p"), options)
}

/// A data batch of `records` records of `bytes` bytes.
pub(crate) fn data(index: u64, records: usize, bytes: usize) -> NewBatch {
    let mut builder = BatchBuilder::new(8 << 20);
    for number in 0..records {
        let value = vec![(index as usize + number) as u8; bytes];
        builder.push(1_000 + index, None, &[], &value).unwrap();
    }
    let built = builder.finish();
    let mut header = built.header;
    header.index = Index(index);
    header.term = Term(1);
    header.log_time_ms = 1_000 + index * 10;
    NewBatch { header, body: vec![built.body] }
}

/// A batch without records.
pub(crate) fn noop(index: u64) -> NewBatch {
    let mut header = BatchHeader::empty(BatchType::Noop);
    header.index = Index(index);
    header.term = Term(1);
    NewBatch { header, body: Vec::new() }
}

pub(crate) fn flush(log: &mut Log) -> Result<(), FlushError> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    log.flush(Box::new(move |outcome| sender.send(outcome).unwrap()));
    receiver.recv().unwrap()
}

/// The stored bytes of every batch from `index` on, without the local fields of the header.
pub(crate) fn contents(log: &Log) -> Vec<(u64, u64, Bytes)> {
    let reader = log.reader();
    let bounds = reader.bounds();
    let mut found = Vec::new();
    let mut next = bounds.first_index;
    while next <= bounds.last_index {
        let slices = match reader.read_from_index(next, 1 << 20).unwrap() {
            Read::Hot(slices) => slices,
            Read::Cold(read) => read.run().unwrap(),
        };
        assert!(!slices.is_empty(), "index {next} is held");
        for slice in slices {
            next = Index(slice.header.index.0 + 1);
            let body = slice.bytes.slice(128..slice.header.wire_len());
            slice.header.check_body(&body).unwrap();
            found.push((slice.header.index.0, slice.header.base_offset.0, body));
        }
    }
    found
}

pub(crate) fn segment_files(root: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(root.join("p"))
        .unwrap()
        .map(|item| item.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    files.sort();
    files
}

pub(crate) fn write_at(path: &Path, position: u64, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    std::fs::OpenOptions::new().write(true).open(path)?.write_all_at(bytes, position)
}

/// The data directory on a disk in memory.
pub(crate) const ROOT: &str = "/data";

pub(crate) fn device_in(disk: &SimDisk) -> Arc<Device> {
    Device::open(Arc::new(disk.clone()), Arc::new(Inline), Path::new(ROOT), seed_on(disk)).unwrap()
}

/// Every life of a process makes other salts.
fn seed_on(disk: &SimDisk) -> u64 {
    7 + disk.changes() as u64
}

/// The same, with what would run on its threads kept until it is asked for.
pub(crate) fn device_for_later(disk: &SimDisk) -> (Arc<Device>, Later) {
    let later = Later::default();
    let on_disk = Arc::new(disk.clone());
    let device =
        Device::open(on_disk, Arc::new(later.clone()), Path::new(ROOT), seed_on(disk)).unwrap();
    (device, later)
}

pub(crate) fn reopen(disk: &SimDisk) -> (Log, Recovered) {
    open(&device_in(disk)).unwrap()
}

/// A log of `count` flushed batches: a noop, then data of two records.
pub(crate) fn log_of(disk: &SimDisk, count: u64) -> Log {
    let (mut log, _) = reopen(disk);
    log.append(vec![noop(1)]).unwrap();
    for index in 2..=count {
        log.append(vec![data(index, 2, 50)]).unwrap();
    }
    flush(&mut log).unwrap();
    log
}

pub(crate) fn last_of(log: &Log) -> u64 {
    log.reader().bounds().last_index.0
}

/// The segments of the log on a disk in memory, without the pool.
pub(crate) fn segments_of(disk: &SimDisk) -> Vec<PathBuf> {
    let paths = disk.paths(".seg").into_iter();
    paths.filter(|path| path.parent().is_some_and(|folder| folder.ends_with("p"))).collect()
}
