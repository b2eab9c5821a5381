//! Three logs that hold the same batches, each in segments of its own.
//!
//! Owns: what was written, and filling one log's holes from others. Never: asks the log under test
//! what it should hold.

use crate::common::{device_in, flush};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weir_protocol::batch::{
    ATTR_LAST_OF_INDEX, BatchBuilder, BatchHeader, BatchType, seal_control,
};
use weir_protocol::types::{Index, Term};
use weir_sim::disk::{Cut, SimDisk};
use weir_storage::{
    BatchSlice, Device, Hole, Log, LogOptions, LogReader, MendError, Mending, NewBatch, OpenError,
    Read, holes,
};

pub(crate) const DIR: &str = "/data/p";
pub(crate) const UUID: u128 = 5;
/// What is read of another replica at a time.
const ROW_BYTES: usize = 64 << 10;

/// Header and body of a batch as every replica has them: without the fields of one disk.
pub(crate) type Content = (Vec<u8>, Vec<u8>);

pub(crate) fn content_of(header: &BatchHeader, body: &[u8]) -> Content {
    let bytes = header.encode();
    ([&bytes[8..112], &bytes[120..124]].concat(), body.to_vec())
}

fn noise(random: &mut fastrand::Rng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}

fn data(random: &mut fastrand::Rng, records: usize, bytes: usize) -> NewBatch {
    let mut builder = BatchBuilder::new(8 << 20);
    for _ in 0..records {
        let value = noise(random, bytes);
        builder.push(1_000, None, &[], &value).unwrap();
    }
    let built = builder.finish();
    NewBatch { header: built.header, body: vec![built.body] }
}

fn control(random: &mut fastrand::Rng, batch_type: BatchType, bytes: usize) -> NewBatch {
    let mut header = BatchHeader::empty(batch_type);
    let mut content = noise(random, bytes);
    if bytes > 0 {
        seal_control(&mut content);
    }
    header.control_len = content.len() as u32;
    header.body_len = header.control_len;
    NewBatch { header, body: vec![content.into()] }
}

/// The batches of every index, by a seed.
pub(crate) fn batches(seed: u64, count: u64) -> Vec<Vec<NewBatch>> {
    let random = &mut fastrand::Rng::with_seed(seed);
    let of_index = |index| {
        let small = random.usize(1..300);
        let mut batches = match random.u8(..12) {
            0 => vec![control(random, BatchType::Noop, 0)],
            1 => vec![control(random, BatchType::Control, small)],
            2 => vec![control(random, BatchType::Config, small)],
            3 => (0..3).map(|_| data(random, 2, small)).collect(),
            4..=6 => vec![data(random, 2, 60_000)],
            7 => vec![data(random, 1, 5_000), data(random, 1, 100)],
            _ => vec![data(random, 3, small)],
        };
        let last = batches.len() - 1;
        for (number, batch) in batches.iter_mut().enumerate() {
            batch.header.index = Index(index);
            batch.header.term = Term(1 + index / 50);
            batch.header.log_time_ms = 1_000 + index;
            batch.header.attrs &= !ATTR_LAST_OF_INDEX;
            batch.header.attrs |= if number == last { ATTR_LAST_OF_INDEX } else { 0 };
        }
        batches
    };
    (1..=count).map(of_index).collect()
}

/// How a replica came to its segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Segments of 1 MiB.
    Small,
    /// They grow.
    Growing,
    /// Now and then it had taken what others had not, and cut it off.
    Cut,
}

fn options(way: Way) -> LogOptions {
    let retained_bytes = if way == Way::Growing { u64::MAX } else { 8 << 20 };
    LogOptions { uuid: UUID, retained_bytes, ..LogOptions::default() }
}

/// One replica's log on a disk of its own.
#[derive(Clone)]
pub(crate) struct Replica {
    pub(crate) disk: SimDisk,
    pub(crate) way: Way,
}

impl Replica {
    /// All of it flushed, with a watermark.
    pub(crate) fn of(batches: &[Vec<NewBatch>], way: Way) -> Self {
        let disk = SimDisk::new();
        let replica = Self { disk, way };
        let mut log = replica.open();
        let mut random = fastrand::Rng::with_seed(3);
        for of_index in batches {
            if way == Way::Cut && random.u8(..25) == 0 {
                let mut others = vec![data(&mut random, 1, 3_000)];
                (others[0].header.index, others[0].header.term) =
                    (of_index[0].header.index, Term(1));
                log.append(others).unwrap();
                log.truncate_after(Index(of_index[0].header.index.0 - 1)).unwrap();
            }
            log.append(of_index.clone()).unwrap();
            if random.bool() {
                flush(&mut log).unwrap();
            }
        }
        flush(&mut log).unwrap();
        log.store_meta(b"the vote").unwrap();
        log.leave_watermark().unwrap();
        drop(log);
        replica.disk.cut_power(Cut::LosesAll);
        replica
    }

    pub(crate) fn fork(&self) -> Self {
        Self { disk: self.disk.fork(), way: self.way }
    }

    pub(crate) fn open(&self) -> Log {
        let device = device_in(&self.disk);
        Log::open(device, Path::new(DIR), options(self.way)).unwrap().0
    }

    pub(crate) fn open_accepting(&self) -> Log {
        let device = device_in(&self.disk);
        let accepting = LogOptions { accept_loss: true, ..options(self.way) };
        Log::open(device, Path::new(DIR), accepting).unwrap().0
    }

    pub(crate) fn holes(&self) -> Result<Vec<Hole>, OpenError> {
        holes(&self.disk, Path::new(DIR), UUID, true)
    }

    /// The segments' files, the oldest first, and where their batches stand: not those that the
    /// next segment cuts off.
    pub(crate) fn segments(&self) -> Vec<(PathBuf, Vec<(u64, BatchHeader)>)> {
        let paths = crate::common::segments_of(&self.disk);
        let files: Vec<Vec<u8>> = paths.iter().map(|path| self.disk.bytes_of(path)).collect();
        let cut_of = |number: usize| {
            let next = files.get(number + 1)?.get(96..104)?.first_chunk()?;
            Some(u64::from_le_bytes(*next))
        };
        let held = |number: usize| {
            let mut held = parse(&files[number]);
            held.retain(|(position, _)| cut_of(number).is_none_or(|cut| *position < cut));
            held
        };
        let count = paths.len();
        paths.into_iter().zip((0..count).map(held)).collect()
    }

    /// Fills every hole from others, until none is left or nobody has what is missing.
    pub(crate) fn mend(&self, others: &[LogReader]) -> Result<usize, Failed> {
        self.mend_on(&device_in(&self.disk), others)
    }

    pub(crate) fn mend_on(
        &self,
        device: &Arc<Device>,
        others: &[LogReader],
    ) -> Result<usize, Failed> {
        let mut filled = 0;
        loop {
            let found = self.holes()?;
            if found.is_empty() {
                return Ok(filled);
            }
            for hole in &found {
                mend_one(device, hole, others)?;
                filled += 1;
            }
        }
    }

    /// What is in the log, which has to be all there.
    pub(crate) fn contents(&self) -> Vec<Content> {
        let log = self.open();
        assert_eq!(log.reader().damaged_ranges(), []);
        let bounds = log.reader().bounds();
        let mut found = Vec::new();
        let mut next = bounds.first_index;
        while next <= bounds.last_index {
            let slices = read(&log.reader(), next, ROW_BYTES).unwrap();
            for slice in slices {
                next = Index(slice.header.index.0 + 1);
                let body = &slice.bytes[128..slice.header.wire_len()];
                slice.header.check_body(body).unwrap();
                found.push(content_of(&slice.header, body));
            }
        }
        found
    }
}

/// Why not all holes are filled.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The log does not open.
    Doubtful(OpenError),
    Mend(MendError),
}

impl From<OpenError> for Failed {
    fn from(error: OpenError) -> Self {
        Self::Doubtful(error)
    }
}

impl From<MendError> for Failed {
    fn from(error: MendError) -> Self {
        Self::Mend(error)
    }
}

fn mend_one(device: &Arc<Device>, hole: &Hole, others: &[LogReader]) -> Result<(), Failed> {
    let mut mending = Mending::begin(device, Path::new(DIR), UUID, hole)?;
    for other in others.iter().chain(others) {
        while !mending.is_closed() {
            let next = mending.next_index();
            match indexes(other, next, mending.last_index()) {
                Some(batches) if !batches.is_empty() => mending.take(&batches)?,
                _ => break,
            }
            if mending.next_index() == next {
                break;
            }
        }
    }
    Ok(mending.finish()?)
}

/// Whole indexes from `first` on, about [`ROW_BYTES`] of them; none where they cannot be read.
pub(crate) fn indexes(reader: &LogReader, first: Index, last: Index) -> Option<Vec<NewBatch>> {
    for bytes in [ROW_BYTES, 9 << 20] {
        let mut slices = read(reader, first, bytes)?;
        slices.retain(|slice| slice.header.index <= last && !slice.header.batch_type.is_local());
        while slices.last().is_some_and(|last| !last.header.is_last_of_index()) {
            slices.pop();
        }
        if !slices.is_empty() {
            let batch = |slice: BatchSlice| {
                let body = slice.bytes.slice(128..slice.header.wire_len());
                NewBatch { header: slice.header, body: vec![body] }
            };
            return Some(slices.into_iter().map(batch).collect());
        }
    }
    Some(Vec::new())
}

fn read(reader: &LogReader, first: Index, bytes: usize) -> Option<Vec<BatchSlice>> {
    match reader.read_from_index(first, bytes).ok()? {
        Read::Hot(slices) => Some(slices),
        Read::Cold(cold) => cold.run().ok(),
    }
}

/// The batches in the bytes of a segment.
fn parse(bytes: &[u8]) -> Vec<(u64, BatchHeader)> {
    let salt = u64::from_le_bytes(bytes[48..56].try_into().unwrap());
    let (mut position, mut found) = (4096, Vec::new());
    while let Some(head) = bytes.get(position..).and_then(|rest| rest.first_chunk())
        && let Ok(header) = BatchHeader::decode(head, salt)
    {
        found.push((position as u64, header));
        position += header.stored_len();
    }
    found
}
