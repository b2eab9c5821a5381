//! The valid logs that are bent.
//!
//! Owns: how they are made: rolled, recycled, truncated, damaged, with checkpoints, so small that
//! opening one takes microseconds.
//! Never: bends anything.

use crate::mend;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weir_protocol::batch::{
    ATTR_LAST_OF_INDEX, BatchBuilder, BatchHeader, BatchType, seal_control,
};
use weir_protocol::limits::BATCH_HEADER_BYTES;
use weir_protocol::types::{Index, Term};
use weir_sim::disk::SimDisk;
use weir_storage::{Device, Disk, Executor, Job, Lane, Log, LogOptions, NewBatch};

const ROOT: &str = "/data";
/// The folder of the log.
pub(crate) const DIR: &str = "/data/p";
/// The identity of every log here.
pub(crate) const UUID: u128 = 5;

/// The files of a log, by name.
pub(crate) type Folder = BTreeMap<String, Vec<u8>>;

/// A log and what was appended to it.
pub(crate) struct Original {
    pub(crate) files: Folder,
    /// The files as they were a while before.
    pub(crate) earlier: Folder,
    /// What may be served: see [`content_of`].
    pub(crate) contents: BTreeSet<Vec<u8>>,
    /// What was truncated away.
    pub(crate) cut: BTreeSet<Vec<u8>>,
}

/// Runs every job at once, on the calling thread.
#[derive(Debug)]
struct Inline;

impl Executor for Inline {
    fn submit(&self, _lane: Lane, job: Job) {
        job();
    }
}

/// A device over a disk; every life of a process makes other salts.
pub(crate) fn device_on(disk: &SimDisk) -> Arc<Device> {
    let seed = 7 + disk.changes() as u64;
    let device = Device::open(Arc::new(disk.clone()), Arc::new(Inline), Path::new(ROOT), seed);
    device.expect("a disk without faults holds a device")
}

pub(crate) fn options(accept_loss: bool) -> LogOptions {
    let retained_bytes = 8 << 20;
    LogOptions { uuid: UUID, retained_bytes, accept_loss }
}

/// What a batch holds, without what is local to its place on a disk.
pub(crate) fn content_of(header: &BatchHeader, body: &[u8]) -> Vec<u8> {
    [&header.encode()[8..112], body].concat()
}

/// The index of a batch that holds this.
pub(crate) fn index_of(content: &[u8]) -> u64 {
    content[8..].first_chunk().map_or(0, |index| u64::from_le_bytes(*index))
}

/// A disk that holds these files.
pub(crate) fn disk_of(files: &Folder) -> SimDisk {
    let disk = SimDisk::new();
    disk.create_dir(Path::new(DIR)).expect("a disk without faults makes folders");
    files.iter().for_each(|(name, bytes)| disk.put(&Path::new(DIR).join(name), bytes));
    disk
}

/// The files of the log on a disk.
pub(crate) fn files_of(disk: &SimDisk) -> Folder {
    let in_log = |path: &PathBuf| path.parent() == Some(Path::new(DIR));
    let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let paths = disk.paths("").into_iter().filter(in_log);
    paths.filter_map(|path| Some((name(&path)?, disk.bytes_of(&path)))).collect()
}

/// A data batch of `records` records of `bytes` bytes.
pub(crate) fn data(index: u64, records: usize, bytes: usize) -> NewBatch {
    let mut builder = BatchBuilder::new(1 << 20);
    for number in 0..records {
        let value = vec![(index as u8).wrapping_add(number as u8) | 1; bytes];
        builder.push(1_000, None, &[], &value).expect("the record is small");
    }
    let built = builder.finish();
    NewBatch { header: placed(built.header, index), body: vec![built.body] }
}

fn control(index: u64, batch_type: BatchType) -> NewBatch {
    let mut section = vec![index as u8; 20];
    seal_control(&mut section);
    let mut header = placed(BatchHeader::empty(batch_type), index);
    (header.control_len, header.body_len) = (section.len() as u32, section.len() as u32);
    NewBatch { header, body: vec![Bytes::from(section)] }
}

fn placed(mut header: BatchHeader, index: u64) -> BatchHeader {
    (header.index, header.term) = (Index(index), Term(1 + index.min(64) / 8));
    header.log_time_ms = 1_000 + index.min(1_000) * 10;
    header
}

/// Makes a segment one of a file that ends `room` bytes behind what is written: reading a mebibyte
/// of zeros takes longer than everything else that is done with a log.
pub(crate) fn shrink(disk: &SimDisk, path: &Path, room: usize) {
    let mut bytes = disk.bytes_of(path);
    let mut end = mend::SEGMENT_HEADER_BYTES;
    while bytes[end..].starts_with(b"WEIR") {
        let body = u32::from_le_bytes([0, 1, 2, 3].map(|at| bytes[end + 8 + at]));
        end += (BATCH_HEADER_BYTES + body as usize).next_multiple_of(32);
    }
    bytes.truncate(end + room);
    let capacity = (bytes.len() as u64).to_le_bytes();
    mend::COPY_POSITIONS.iter().for_each(|at| {
        bytes[at + 104..at + 112].copy_from_slice(&capacity);
    });
    mend::mend_segment_header(&mut bytes);
    disk.put(path, &bytes);
}

/// A log that is being made.
struct Maker {
    disk: SimDisk,
    next: u64,
    contents: BTreeSet<Vec<u8>>,
    cut: BTreeSet<Vec<u8>>,
}

impl Maker {
    fn new() -> Self {
        Self { disk: SimDisk::new(), next: 1, contents: BTreeSet::new(), cut: BTreeSet::new() }
    }

    fn open(&self, accept_loss: bool) -> Log {
        let opened = Log::open(device_on(&self.disk), Path::new(DIR), options(accept_loss));
        opened.expect("a log that is being made opens").0
    }

    fn append(&mut self, log: &mut Log, batches: Vec<NewBatch>) {
        let first = batches[0].header.index;
        log.append(batches).expect("there is room");
        log.flush(Box::new(|flushed| flushed.expect("a disk without faults flushes")));
        let headers = log.reader().headers(first, usize::MAX).expect("it was just appended");
        let last = headers.last().map_or(first, |header| header.index);
        self.next = last.0 + 1;
        let served = crate::promises::slices_from(&log.reader(), first).expect("it is there");
        for slice in served {
            let body = &slice.bytes[BATCH_HEADER_BYTES..slice.header.wire_len()];
            self.contents.insert(content_of(&slice.header, body));
        }
    }

    /// Appends one batch of each kind.
    fn append_all_kinds(&mut self, log: &mut Log) {
        let at = self.next;
        self.append(log, vec![control(at, BatchType::Noop)]);
        self.append(log, vec![data(at + 1, 3, 40)]);
        let mut together = vec![data(at + 2, 1, 30), data(at + 2, 2, 30), data(at + 2, 1, 50)];
        together[..2].iter_mut().for_each(|batch| batch.header.attrs &= !ATTR_LAST_OF_INDEX);
        self.append(log, together);
        self.append(log, vec![control(at + 3, BatchType::Control)]);
        self.append(log, vec![control(at + 4, BatchType::Config)]);
        self.append(log, vec![data(at + 5, 1, 200)]);
    }

    fn segments(&self) -> Vec<PathBuf> {
        let names = files_of(&self.disk).into_keys().filter(|name| name.ends_with(".seg"));
        names.map(|name| Path::new(DIR).join(name)).collect()
    }

    /// Cuts the file of the newest segment `room` bytes behind what is written.
    fn shrink(&self, room: usize) {
        shrink(&self.disk, &self.segments().pop().expect("there is a segment"), room);
    }

    fn finish(self, earlier: Folder) -> Original {
        Original { files: files_of(&self.disk), earlier, contents: self.contents, cut: self.cut }
    }
}

/// Three segments that a SEAL ends, and the one behind them.
fn rolled(room: usize) -> (Maker, Folder) {
    let mut maker = Maker::new();
    let mut earlier = Folder::new();
    for number in 0..4 {
        let mut log = maker.open(false);
        maker.append_all_kinds(&mut log);
        if number == 2 {
            maker.append_all_kinds(&mut log);
            log.store_meta(b"a vote").expect("a disk without faults keeps it");
        }
        log.leave_watermark().expect("a disk without faults takes it");
        let content = [number; 30];
        log.write_checkpoint(Index(maker.next - 1), &content).expect("the disk takes it");
        drop(log);
        maker.shrink(if number == 3 { room } else { 1_024 });
        if number == 2 {
            earlier = files_of(&maker.disk);
        }
    }
    (maker, earlier)
}

/// Its segments were cut by a truncation, and what a trim left of an earlier life is in one.
fn recycled() -> Original {
    let mut maker = Maker::new();
    let mut log = maker.open(false);
    while maker.segments().len() < 3 {
        let batches = vec![data(maker.next, 1, 20_000)];
        maker.append(&mut log, batches);
    }
    log.trim(Index(maker.next - 2)).expect("a disk without faults removes files");
    while maker.segments().len() < 2 {
        let batches = vec![data(maker.next, 1, 200_000)];
        maker.append(&mut log, batches);
    }
    log.trim(Index(maker.next - 2)).expect("a disk without faults removes files");
    let last = maker.next - 1;
    maker.append_all_kinds(&mut log);
    log.truncate_after(Index(last + 3)).expect("there is room");
    maker.next = last + 4;
    maker.cut = maker.contents.extract_if(.., |content| index_of(content) > last + 3).collect();
    drop(log);
    maker.segments().iter().for_each(|path| shrink(&maker.disk, path, 4_096));
    let earlier = files_of(&maker.disk);
    let mut log = maker.open(false);
    maker.append_all_kinds(&mut log);
    log.leave_watermark().expect("a disk without faults takes it");
    drop(log);
    maker.shrink(80_000);
    maker.finish(earlier)
}

/// Two damaged ranges, the loss of one of them accepted.
fn damaged() -> Original {
    let (mut maker, earlier) = rolled(2_048);
    let mut files = files_of(&maker.disk);
    let names: Vec<String> = files.keys().filter(|name| name.ends_with(".seg")).cloned().collect();
    for (name, accept_loss) in [(&names[1], true), (&names[2], false)] {
        let bytes = files.get_mut(name).expect("it was just listed");
        let second = mend::batch_positions(bytes)[1];
        bytes[second + 20] ^= 1;
        files.remove(&name.replace(".seg", ".idx"));
        maker.disk = disk_of(&files);
        drop(maker.open(accept_loss));
        files = files_of(&maker.disk);
    }
    maker.finish(earlier)
}

/// All of them.
pub(crate) fn all() -> Vec<Original> {
    let (small, earlier) = rolled(512);
    let small = small.finish(earlier);
    let (roomy, earlier) = rolled(80_000);
    vec![small, roomy.finish(earlier), recycled(), damaged()]
}
