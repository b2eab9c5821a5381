//! The log that is damaged: sealed segments, two of them in files with an earlier life, batches of
//! every kind, checkpoints, votes, a watermark at its end; all of it flushed.
//!
//! Owns: what was written where, byte for byte. Never: asks the log under test.

use crate::common::{device_in, flush};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use weir_protocol::batch::{
    ATTR_LAST_OF_INDEX, BatchBuilder, BatchHeader, BatchType, seal_control,
};
use weir_protocol::limits::BATCH_HEADER_BYTES;
use weir_protocol::types::{Index, Term};
use weir_sim::disk::{Cut, Damage, SimDisk};
use weir_storage::{Log, LogOptions, NewBatch, Read};

/// The folder of the log, and the one of a log that is like it in everything but its content.
pub(crate) const OWN: &str = "/data/p";
pub(crate) const OTHER: &str = "/data/q";
/// The segments that are left when the first two were trimmed.
pub(crate) const SEQUENCES: std::ops::RangeInclusive<u64> = 3..=6;
pub(crate) const ACTIVE: u64 = 6;
pub(crate) const VOTE: &[u8] = b"the vote that was cast last";

/// A batch as it was written.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) sequence: u64,
    pub(crate) position: u64,
    pub(crate) header: BatchHeader,
    /// Header and body.
    pub(crate) bytes: Vec<u8>,
}

impl Stored {
    pub(crate) fn is_local(&self) -> bool {
        self.header.batch_type.is_local()
    }

    pub(crate) fn end(&self) -> u64 {
        self.position + self.header.stored_len() as u64
    }
}

/// A log on a disk, and what was written to it.
#[derive(Clone)]
pub(crate) struct Base {
    pub(crate) disk: SimDisk,
    pub(crate) batches: Vec<Stored>,
    pub(crate) segments: BTreeMap<u64, PathBuf>,
    pub(crate) files: BTreeMap<PathBuf, Vec<u8>>,
    pub(crate) checkpoints: BTreeMap<u64, Vec<u8>>,
    /// What stood in a file's place before, where files are replaced as a whole.
    pub(crate) earlier: BTreeMap<PathBuf, Vec<u8>>,
}

pub(crate) fn options(folder: &str, accept_loss: bool) -> LogOptions {
    let uuid = if folder == OWN { 5 } else { 6 };
    LogOptions { uuid, retained_bytes: 8 << 20, accept_loss }
}

fn opened(disk: &SimDisk, folder: &str, accept_loss: bool) -> Log {
    let device = device_in(disk);
    Log::open(device, Path::new(folder), options(folder, accept_loss)).unwrap().0
}

/// Appends to one log what is like nothing else.
struct Writer {
    log: Log,
    random: fastrand::Rng,
    index: u64,
    /// What was appended, without the log's own fields.
    bodies: Vec<Vec<u8>>,
}

impl Writer {
    fn noise(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.random.fill(&mut bytes);
        bytes
    }

    fn data(&mut self, records: usize, bytes: usize) -> NewBatch {
        let mut builder = BatchBuilder::new(8 << 20);
        for _ in 0..records {
            let value = self.noise(bytes);
            builder.push(1_000, None, &[], &value).unwrap();
        }
        let built = builder.finish();
        NewBatch { header: built.header, body: vec![built.body] }
    }

    fn control(&mut self, batch_type: BatchType, bytes: usize) -> NewBatch {
        let mut header = BatchHeader::empty(batch_type);
        let mut content = self.noise(bytes);
        if bytes > 0 {
            seal_control(&mut content);
        }
        header.control_len = content.len() as u32;
        header.body_len = header.control_len;
        NewBatch { header, body: vec![content.into()] }
    }

    /// All batches of one index, flushed.
    fn append(&mut self, mut batches: Vec<NewBatch>) {
        self.index += 1;
        let count = batches.len();
        for (number, batch) in batches.iter_mut().enumerate() {
            batch.header.index = Index(self.index);
            batch.header.term = Term(1 + self.index / 100);
            batch.header.log_time_ms = 1_000 + self.index;
            if number + 1 < count {
                batch.header.attrs &= !ATTR_LAST_OF_INDEX;
            }
            self.bodies.push(batch.body.concat());
        }
        self.log.append(batches).unwrap();
        flush(&mut self.log).unwrap();
    }

    /// Small batches of every kind, more of them than a page holds.
    fn cluster(&mut self) {
        for number in 0..30 {
            let bytes = self.random.usize(1..300);
            let batches = match number % 6 {
                0 => vec![self.control(BatchType::Noop, 0)],
                1 => vec![self.control(BatchType::Control, bytes)],
                2 => vec![self.data(1, bytes), self.data(2, bytes / 2), self.data(1, 20)],
                _ => vec![self.data(1 + number % 3, bytes)],
            };
            self.append(batches);
        }
        let config = self.control(BatchType::Config, 90);
        self.append(vec![config]);
    }

    /// Fills one segment; the first batch does not fit into the one before.
    fn segment(&mut self, sequence: u64) {
        let large = self.data(2, 100_000);
        self.append(vec![large]);
        self.cluster();
        // Early enough for the next segment to be made of what the trim leaves.
        if let Some(gone) = [(3, 1), (5, 2)].iter().find(|(at, _)| *at == sequence) {
            let sealed = self.log.reader().sealed_segments();
            assert_eq!(sealed.len() as u64, sequence - gone.1);
            self.log.trim(sealed[0].last_index).unwrap();
        }
        for _ in 0..5 {
            let large = self.data(1, 130_000);
            self.append(vec![large]);
        }
        self.cluster();
    }
}

/// Writes one log; returns the bodies of its batches, its checkpoints, and earlier bytes of files.
fn write(disk: &SimDisk, folder: &str) -> (Vec<Vec<u8>>, BTreeMap<u64, Vec<u8>>) {
    let log = opened(disk, folder, false);
    let random = fastrand::Rng::with_seed(options(folder, false).uuid as u64);
    let mut writer = Writer { log, random, index: 0, bodies: Vec::new() };
    let mut checkpoints = BTreeMap::new();
    for sequence in 1..=*SEQUENCES.end() {
        writer.segment(sequence);
        if sequence >= ACTIVE - 1 {
            let content = writer.noise(10_000);
            writer.log.write_checkpoint(Index(writer.index), &content).unwrap();
            checkpoints.insert(writer.index, content);
        }
    }
    writer.log.store_meta(b"an older vote").unwrap();
    let vote = if folder == OWN { VOTE } else { b"a vote for somebody else" };
    writer.log.store_meta(vote).unwrap();
    writer.log.leave_watermark().unwrap();
    (writer.bodies, checkpoints)
}

/// The batches in the bytes of a segment.
fn parse(sequence: u64, bytes: &[u8]) -> Vec<Stored> {
    let salt = u64::from_le_bytes(bytes[48..56].try_into().unwrap());
    let (mut position, mut found) = (4096, Vec::new());
    while let Ok(header) = BatchHeader::decode(bytes[position..].first_chunk().unwrap(), salt) {
        let bytes = bytes[position..position + header.wire_len()].to_vec();
        found.push(Stored { sequence, position: position as u64, header, bytes });
        position += header.stored_len();
    }
    found
}

impl Base {
    pub(crate) fn healthy() -> Self {
        let disk = SimDisk::new();
        let (bodies, checkpoints) = write(&disk, OWN);
        write(&disk, OTHER);
        disk.cut_power(Cut::LosesAll);
        let mut base = Self {
            batches: Vec::new(),
            segments: BTreeMap::new(),
            files: BTreeMap::new(),
            earlier: BTreeMap::new(),
            checkpoints,
            disk,
        };
        base.note_files();
        let names = base.files.keys().filter(|path| path.extension().is_some_and(|e| e == "seg"));
        base.segments = SEQUENCES.zip(names.cloned()).collect();
        assert_eq!(base.segments.len(), 4);
        for (sequence, path) in &base.segments {
            let bytes = &base.files[path];
            assert!(path.to_string_lossy().ends_with(&format!("-{sequence:08x}.seg")));
            assert_eq!(bytes[16] == 1, [4, 6].contains(sequence), "made of a trimmed one");
            base.batches.extend(parse(*sequence, bytes));
        }
        let held = base.batches.iter().filter(|batch| !batch.is_local());
        let held: Vec<&[u8]> = held.map(|batch| &batch.bytes[BATCH_HEADER_BYTES..]).collect();
        assert_eq!(held, bodies[bodies.len() - held.len()..], "what was appended is what is there");
        for sequence in [3, 4] {
            let (of, before) = (base.index_of(sequence), base.index_of(sequence + 1));
            base.earlier.insert(of, base.files[&before].clone());
        }
        let [older, newest] = base.checkpoint_files();
        base.earlier.insert(newest, base.files[&older].clone());
        base
    }

    fn note_files(&mut self) {
        let paths = self.disk.paths("").into_iter().filter(|path| path.starts_with(OWN));
        self.files = paths.map(|path| (path.clone(), self.disk.bytes_of(&path))).collect();
    }

    pub(crate) fn index_of(&self, sequence: u64) -> PathBuf {
        self.segments[&sequence].with_extension("idx")
    }

    pub(crate) fn checkpoint_files(&self) -> [PathBuf; 2] {
        let found: Vec<PathBuf> = self
            .files
            .keys()
            .filter(|path| path.extension().is_some_and(|e| e == "ckpt"))
            .cloned()
            .collect();
        found.try_into().unwrap()
    }

    pub(crate) fn of_segment(&self, sequence: u64) -> impl Iterator<Item = &Stored> {
        self.batches.iter().filter(move |batch| batch.sequence == sequence)
    }

    /// The same log with two batches damaged and noted, and two others of the other log.
    pub(crate) fn noted(&self, accept_loss: bool) -> Self {
        let disk = self.disk.fork();
        let file = Path::new(OWN).join("damage");
        let mut base = Self { disk: disk.clone(), ..self.clone() };
        for (folder, places) in [(OTHER, [(4, 9), (3, 40)]), (OWN, [(3, 12), (5, 50)])] {
            for (sequence, number) in places {
                if folder == OWN && sequence == 5 {
                    base.earlier.insert(file.clone(), disk.bytes_of(&file));
                }
                let damaged = self.of_segment(sequence).filter(|b| b.bytes.len() > 140);
                let position = damaged.skip(number).map(|b| b.position).next().unwrap() + 130;
                let path = self.segments[&sequence].strip_prefix(OWN).unwrap().to_owned();
                disk.damage(&Path::new(folder).join(path), &Damage::Bit { position, bit: 3 });
                let log = opened(&disk, folder, false);
                read_all(&log);
                drop(log);
                drop(opened(&disk, folder, accept_loss));
            }
        }
        disk.cut_power(Cut::LosesAll);
        base.note_files();
        assert!(base.files.contains_key(&file));
        base
    }

    /// The same log as a process left it that failed with a batch half written: a start cuts it off,
    /// and builds an index anew.
    pub(crate) fn torn(&self) -> Self {
        let disk = self.disk.fork();
        let mut log = opened(&disk, OWN, false);
        let index = log.reader().bounds().last_index.0;
        let random = fastrand::Rng::with_seed(9);
        let mut writer = Writer { log, random, index, bodies: Vec::new() };
        let mut batch = writer.data(1, 20_000);
        (batch.header.index, batch.header.term) = (Index(index + 1), Term(9));
        writer.log.append(vec![batch]).unwrap();
        log = writer.log;
        drop(log);
        disk.cut_power(Cut::KeepsHeads);
        disk.damage(&self.index_of(5), &Damage::Removed);
        let mut base = Self { disk, ..self.clone() };
        base.note_files();
        base
    }
}

/// Reads everything that can be, so that what is damaged is noted.
pub(crate) fn read_all(log: &Log) {
    let bounds = log.reader().bounds();
    for index in bounds.first_index.0..=bounds.last_index.0 {
        if let Ok(Read::Cold(read)) = log.reader().read_from_index(Index(index), 1) {
            // What it finds is noted by the log.
            let _ = read.run();
        }
    }
}
