//! A log as a list: what it must hold after any sequence of steps.

use super::{Inline, data, flush, open_small};
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use weir_protocol::batch::{ATTR_LAST_OF_INDEX, BatchHeader, BatchType, seal_control};
use weir_protocol::limits::BATCH_HEADER_BYTES;
use weir_protocol::types::{Index, Offset, Term};
use weir_storage::{
    BatchSlice, Device, Disk, Log, NewBatch, OpenError, Read, ReadError, Recovered,
};

/// What is done to a log. Places are shares of what it holds, in 256ths.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// One index each, or all of one.
    Append {
        shapes: Vec<Shape>,
        together: bool,
    },
    Flush,
    ReadIndex(u8, usize),
    ReadOffset(u8, usize),
    ReadTime(u8),
    Trim(u8),
    Truncate(u8),
    StoreMeta(u8),
    Checkpoint(u8),
    Reopen,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    Data { records: usize, bytes: usize },
    Void { bytes: usize },
    Control { bytes: usize },
    Noop,
}

fn shape() -> impl Strategy<Value = Shape> {
    prop_oneof![
        5 => (1usize..5, 0usize..600).prop_map(|(records, bytes)| Shape::Data { records, bytes }),
        // Large ones make a log roll, and go by another way into the file.
        4 => (1usize..3, 60_000usize..300_000)
            .prop_map(|(records, bytes)| Shape::Data { records, bytes }),
        1 => (0usize..200).prop_map(|bytes| Shape::Void { bytes }),
        2 => (1usize..300).prop_map(|bytes| Shape::Control { bytes }),
        1 => Just(Shape::Noop),
    ]
}

pub(crate) fn steps(count_max: usize) -> impl Strategy<Value = Vec<Step>> {
    let append = (proptest::collection::vec(shape(), 1..4), any::<bool>())
        .prop_map(|(shapes, together)| Step::Append { shapes, together });
    let step = prop_oneof![
        10 => append,
        4 => Just(Step::Flush),
        2 => (any::<u8>(), 1usize..600_000).prop_map(|(at, bytes)| Step::ReadIndex(at, bytes)),
        2 => (any::<u8>(), 1usize..600_000).prop_map(|(at, bytes)| Step::ReadOffset(at, bytes)),
        1 => any::<u8>().prop_map(Step::ReadTime),
        1 => any::<u8>().prop_map(Step::Trim),
        2 => any::<u8>().prop_map(Step::Truncate),
        1 => any::<u8>().prop_map(Step::StoreMeta),
        2 => any::<u8>().prop_map(Step::Checkpoint),
        2 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..count_max)
}

/// A batch as the log must hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) index: u64,
    pub(crate) last_of_index: bool,
    pub(crate) offset: u64,
    pub(crate) end_offset: u64,
    pub(crate) time_ms: u64,
    pub(crate) batch_type: BatchType,
    pub(crate) body: Bytes,
}

impl Held {
    pub(crate) fn of(slice: &BatchSlice) -> Self {
        let BatchSlice { header, bytes, salt } = slice;
        let stored = bytes.first_chunk::<BATCH_HEADER_BYTES>().unwrap();
        assert_eq!(BatchHeader::decode(stored, *salt).unwrap(), *header);
        assert_eq!(bytes.len(), header.stored_len());
        let body = bytes.slice(BATCH_HEADER_BYTES..header.wire_len());
        header.check_body(&body).unwrap();
        assert!(bytes[header.wire_len()..].iter().all(|byte| *byte == 0), "padding is zeros");
        Self::new(header, body)
    }

    fn new(header: &BatchHeader, body: Bytes) -> Self {
        Self {
            index: header.index.0,
            last_of_index: header.is_last_of_index(),
            offset: header.base_offset.0,
            end_offset: header.end_offset().0,
            time_ms: header.log_time_ms,
            batch_type: header.batch_type,
            body,
        }
    }
}

/// The list.
#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    pub(crate) held: Vec<Held>,
    pub(crate) first_index: u64,
    pub(crate) log_start: u64,
    /// At least this is durable.
    pub(crate) flushed: u64,
    pub(crate) meta: Vec<u8>,
    /// The owner's states by index.
    checkpoints: BTreeMap<u64, Vec<u8>>,
    /// All that were ever begun: one that was removed may come back, which does no harm.
    begun_checkpoints: Vec<(u64, Vec<u8>)>,
    /// First index and offset, if a trim that failed took place all the same.
    pub(crate) may_start: Option<(u64, u64)>,
    /// The hard state, if a store of it that failed took place all the same.
    pub(crate) may_meta: Option<Vec<u8>>,
    term: u64,
    clock_ms: u64,
    /// Batches ever made: no two are alike.
    serial: u64,
}

impl Model {
    pub(crate) fn new() -> Self {
        Self { first_index: 1, term: 1, clock_ms: 1_000, ..Self::default() }
    }

    pub(crate) fn last_index(&self) -> u64 {
        self.held.last().map_or(self.first_index - 1, |held| held.index)
    }

    pub(crate) fn log_end(&self) -> u64 {
        self.held.last().map_or(self.log_start, |held| held.end_offset)
    }

    /// Batches to append behind the last, and adds them.
    pub(crate) fn append(&mut self, shapes: &[Shape], together: bool) -> Vec<NewBatch> {
        let mut batches = Vec::new();
        let mut index = self.last_index() + 1;
        for (number, shape) in shapes.iter().enumerate() {
            let is_last = number + 1 == shapes.len() || !together;
            self.serial += 1;
            let mut batch = batch(*shape, self.serial);
            self.clock_ms += (index + number as u64) % 3;
            batch.header.index = Index(index);
            batch.header.term = Term(self.term);
            batch.header.log_time_ms = self.clock_ms;
            if !is_last {
                batch.header.attrs &= !ATTR_LAST_OF_INDEX;
            }
            index += u64::from(is_last);
            let mut placed = batch.header;
            placed.base_offset = Offset(self.log_end());
            let body = batch.body.first().cloned().unwrap_or_default();
            self.held.push(Held::new(&placed, body));
            batches.push(batch);
        }
        batches
    }

    /// Keeps the two newest, and those from right before the first index on.
    fn checkpoint(&mut self, index: u64, content: Vec<u8>) {
        self.checkpoints.insert(index, content);
        let newest: Vec<u64> = self.checkpoints.keys().rev().take(2).copied().collect();
        let first_index = self.first_index;
        self.checkpoints.retain(|at, _| newest.contains(at) || at + 1 >= first_index);
    }

    /// What a share of the indexes means, a little more than the log holds on both sides.
    pub(crate) fn index_at(&self, share: u8) -> u64 {
        let from = self.first_index.saturating_sub(3);
        let count = self.last_index() + 3 - from;
        from + count * u64::from(share) / 256
    }

    /// An index that a log may be truncated behind.
    pub(crate) fn cut_at(&self, share: u8) -> u64 {
        self.index_at(share).max(self.first_index - 1)
    }

    pub(crate) fn truncate(&mut self, index: u64) {
        self.held.retain(|held| held.index <= index);
        self.flushed = self.flushed.min(index);
        self.term += 1;
    }

    pub(crate) fn trim(&mut self, first_index: u64, log_start: u64) {
        (self.first_index, self.log_start) = (first_index, log_start);
        self.held.retain(|held| held.index >= first_index);
    }
}

fn batch(shape: Shape, serial: u64) -> NewBatch {
    let control = |batch_type, content: Vec<u8>| {
        let mut header = BatchHeader::empty(batch_type);
        let mut content = content;
        seal_control(&mut content);
        header.control_len = content.len() as u32;
        header.body_len = header.control_len;
        NewBatch { header, body: vec![content.into()] }
    };
    match shape {
        Shape::Data { records, bytes } => data(serial, records, bytes),
        Shape::Void { bytes } => {
            let mut batch = data(serial, 1, bytes);
            batch.header.batch_type = BatchType::Void;
            batch
        }
        Shape::Control { bytes } => control(BatchType::Control, vec![serial as u8; bytes]),
        Shape::Noop => NewBatch { header: BatchHeader::empty(BatchType::Noop), body: Vec::new() },
    }
}

/// What a machine that stopped may leave.
impl Model {
    /// Checks what was found against what may be found, and goes on from there.
    pub(crate) fn adopt(&mut self, start: (u64, u64), found: Vec<Held>, meta: &[u8]) {
        if start != (self.first_index, self.log_start) {
            assert_eq!(Some(start), self.may_start, "begins where it was trimmed, or did before");
            self.trim(start.0, start.1);
        }
        assert!(found.len() <= self.held.len());
        assert!(found == self.held[..found.len()], "a prefix of what was appended");
        self.held = found;
        assert!(self.held.last().is_none_or(|held| held.last_of_index), "whole indexes");
        assert!(self.last_index() >= self.flushed, "what was flushed is there");
        self.flushed = self.last_index();
        if meta != self.meta {
            assert_eq!(Some(meta), self.may_meta.as_deref(), "the hard state, or the one before");
            self.meta = meta.to_vec();
        }
        (self.may_start, self.may_meta) = (None, None);
    }

    /// The same for checkpoints: none is half there, and the newest is never lost to a newer one.
    pub(crate) fn adopt_checkpoints(&mut self, found: BTreeMap<u64, Vec<u8>>) {
        for (index, content) in &found {
            let begun = self.begun_checkpoints.iter().any(|(at, c)| (at, c) == (index, content));
            assert!(begun, "at {index}");
        }
        let newest = self.checkpoints.keys().next_back();
        assert!(newest.is_none_or(|newest| found.contains_key(newest)), "the newest is kept");
        self.checkpoints = found;
    }
}

/// A log on a disk, beside its model.
pub(crate) struct Subject {
    disk: Arc<dyn Disk>,
    pub(crate) root: PathBuf,
    opens: u64,
    pub(crate) log: Option<Log>,
    pub(crate) model: Model,
    /// Slices that somebody still holds, with a copy of what they said.
    shared: Vec<(Bytes, Vec<u8>)>,
}

/// The log of a subject failed; its model was brought to what may be found.
#[derive(Debug)]
pub(crate) struct Failed;

impl Subject {
    pub(crate) fn new(disk: Arc<dyn Disk>, root: PathBuf) -> Self {
        Self { disk, root, opens: 0, log: None, model: Model::new(), shared: Vec::new() }
    }

    /// Opens the log anew. Every life of the process makes other salts.
    pub(crate) fn open(&mut self) -> Result<Recovered, OpenError> {
        self.log = None;
        self.opens += 1;
        let device = Device::open(self.disk.clone(), Arc::new(Inline), &self.root, self.opens)
            .map_err(|error| OpenError::Device {
                path: self.root.clone(),
                source: std::io::Error::other(error),
            })?;
        let (log, recovered) = open_small(&device)?;
        self.log = Some(log);
        Ok(recovered)
    }

    pub(crate) fn log(&mut self) -> &mut Log {
        self.log.as_mut().unwrap()
    }

    /// Does a step and checks what it says. Where it fails, the model holds all that may be found
    /// then, and `flushed` what must be.
    pub(crate) fn step(&mut self, step: &Step) -> Result<(), Failed> {
        match step {
            Step::Append { shapes, together } => {
                let batches = self.model.append(shapes, *together);
                let appended = self.log().append(batches).map_err(|_| Failed)?;
                assert_eq!(appended.last_index.0, self.model.last_index());
                assert_eq!(appended.log_end.0, self.model.log_end());
            }
            Step::Flush => {
                flush(self.log()).map_err(|_| Failed)?;
                self.model.flushed = self.model.last_index();
            }
            Step::ReadIndex(share, bytes_max) => self.read_index(*share, *bytes_max),
            Step::ReadOffset(share, bytes_max) => self.read_offset(*share, *bytes_max),
            Step::ReadTime(share) => self.read_time(*share),
            Step::Trim(share) => self.trim(*share)?,
            Step::Truncate(share) => {
                let index = self.model.cut_at(*share);
                self.model.flushed = self.model.flushed.min(index);
                self.log().truncate_after(Index(index)).map_err(|_| Failed)?;
                self.model.truncate(index);
            }
            Step::StoreMeta(byte) => {
                // Longer than a sector, so that a copy can tear.
                let content = vec![*byte; usize::from(*byte) * 8];
                self.model.may_meta = Some(content.clone());
                self.log().store_meta(&content).map_err(|_| Failed)?;
                self.model.meta = content;
            }
            Step::Checkpoint(share) => {
                let at = self.model.index_at(*share).min(self.model.last_index());
                self.model.serial += 1;
                let content = self.model.serial.to_le_bytes().repeat(100);
                self.model.begun_checkpoints.push((at, content.clone()));
                self.log().write_checkpoint(Index(at), &content).map_err(|_| Failed)?;
                self.model.checkpoint(at, content);
                assert_eq!(self.checkpoints(), self.model.checkpoints);
            }
            Step::Reopen => {
                let recovered = self.open().map_err(|_| Failed)?;
                assert_eq!(recovered.bytes_cut, 0);
                assert!(recovered.batches_read <= self.model.held.len() as u64);
                self.model.flushed = self.model.last_index();
            }
        }
        self.check_bounds();
        Ok(())
    }

    pub(crate) fn check_bounds(&mut self) {
        let bounds = self.log().reader().bounds();
        let model = &self.model;
        assert_eq!(bounds.first_index.0, model.first_index);
        assert_eq!(bounds.last_index.0, model.last_index());
        assert_eq!((bounds.log_start.0, bounds.log_end.0), (model.log_start, model.log_end()));
        assert!(bounds.flushed_index.0 >= model.flushed);
        assert!(bounds.flushed_index <= bounds.last_index);
        if let Some(held) = model.held.last() {
            let last = bounds.last.unwrap();
            assert_eq!((last.index.0, last.log_time_ms), (held.index, held.time_ms));
        }
        let before = Index(self.model.first_index - 1);
        let headers = self.log().reader().headers(before, 1);
        let is_empty = self.model.held.is_empty();
        assert!(is_empty || matches!(headers, Err(ReadError::OutOfRange { .. })));
        assert_eq!(self.log.as_ref().unwrap().meta(), self.model.meta);
    }

    /// Everything that the log holds, read from its start.
    pub(crate) fn contents(&mut self) -> Vec<Held> {
        let reader = self.log().reader();
        let bounds = reader.bounds();
        let mut found: Vec<Held> = Vec::new();
        let mut next = bounds.first_index;
        while next <= bounds.last_index {
            let slices = slices(reader.read_from_index(next, 4 << 20).unwrap());
            assert!(!slices.is_empty(), "index {next} is held");
            found.extend(slices.iter().map(Held::of));
            next = Index(found.last().unwrap().index + 1);
        }
        found
    }

    /// Every checkpoint that is found, from the newest down.
    pub(crate) fn checkpoints(&mut self) -> BTreeMap<u64, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut upto = Some(u64::MAX);
        while let Some(at) = upto {
            let Some((index, content)) = self.log().latest_checkpoint(Index(at)).unwrap() else {
                break;
            };
            found.insert(index.0, content);
            upto = index.0.checked_sub(1);
        }
        found
    }

    fn read_index(&mut self, share: u8, bytes_max: usize) {
        let index = self.model.index_at(share);
        let reader = self.log().reader();
        let read = reader.read_from_index(Index(index), bytes_max);
        if index > self.model.last_index() {
            assert!(slices(read.unwrap()).is_empty());
            assert!(reader.headers(Index(index), 3).unwrap().is_empty());
        } else if index < self.model.first_index {
            assert!(matches!(read, Err(ReadError::OutOfRange { .. })));
            let headers = reader.headers(Index(index), 3);
            assert!(matches!(headers, Err(ReadError::OutOfRange { .. })));
        } else {
            let from = self.model.held.partition_point(|held| held.index < index);
            self.expect_slices(from, slices(read.unwrap()), bytes_max);
            let headers = reader.headers(Index(index), 3).unwrap();
            let found: Vec<_> = headers.iter().map(|h| (h.index.0, h.base_offset.0)).collect();
            let held = self.model.held[from..].iter().take(3);
            assert_eq!(found, held.map(|held| (held.index, held.offset)).collect::<Vec<_>>());
        }
    }

    fn read_offset(&mut self, share: u8, bytes_max: usize) {
        let start = self.model.log_start.saturating_sub(2);
        let count = self.model.log_end() + 3 - start;
        let offset = start + count * u64::from(share) / 256;
        let read = self.log().reader().read_from_offset(Offset(offset), bytes_max);
        if offset >= self.model.log_end() {
            assert!(slices(read.unwrap()).is_empty());
        } else if offset < self.model.log_start {
            assert!(matches!(read, Err(ReadError::OutOfRange { .. })));
        } else {
            let from = self.model.held.partition_point(|held| held.end_offset <= offset);
            self.expect_slices(from, slices(read.unwrap()), bytes_max);
        }
    }

    /// `found` is what is held from the batch number `from` on: at least one, then up to the
    /// limit.
    fn expect_slices(&mut self, from: usize, found: Vec<BatchSlice>, bytes_max: usize) {
        assert!(!found.is_empty());
        let bytes: usize = found.iter().map(|slice| slice.bytes.len()).sum();
        assert!(found.len() == 1 || bytes <= bytes_max);
        let held: Vec<Held> = found.iter().map(Held::of).collect();
        assert_eq!(held, self.model.held[from..from + found.len()]);
        let slice = &found[0].bytes;
        self.shared.push((slice.clone(), slice.to_vec()));
    }

    fn read_time(&mut self, share: u8) {
        let held = &self.model.held;
        let first = held.first().map_or(1_000, |held| held.time_ms) - 2;
        let last = held.last().map_or(1_000, |held| held.time_ms) + 2;
        let time_ms = first + (last - first + 1) * u64::from(share) / 256;
        let expected = held
            .iter()
            .find(|held| held.batch_type == BatchType::Data && held.time_ms >= time_ms)
            .map_or(self.model.log_end(), |held| held.offset);
        let found = self.log().reader().offset_for_time(time_ms).unwrap();
        assert_eq!(found.0, expected, "at {time_ms}");
    }

    fn trim(&mut self, share: u8) -> Result<(), Failed> {
        let upto = self.model.index_at(share);
        let sealed = self.log().reader().sealed_segments();
        for view in &sealed {
            let inside: Vec<&Held> = self
                .model
                .held
                .iter()
                .filter(|held| view.first_index.0 <= held.index && held.index <= view.last_index.0)
                .collect();
            if let (Some(first), Some(last)) = (inside.first(), inside.last()) {
                assert_eq!(
                    (view.first_offset.0, view.end_offset.0),
                    (first.offset, last.end_offset)
                );
                assert_eq!(view.last_log_time_ms, last.time_ms);
            }
        }
        let last_gone = sealed.iter().take_while(|view| view.last_index.0 <= upto).last();
        let start = last_gone.map(|view| (view.last_index.0 + 1, view.end_offset.0));
        self.model.may_start = start;
        self.log().trim(Index(upto)).map_err(|_| Failed)?;
        if let Some((first_index, log_start)) = start {
            self.model.trim(first_index, log_start);
        }
        Ok(())
    }

    /// What was handed out reads as it did, whatever became of the log.
    pub(crate) fn check_shared(&self) {
        assert!(self.shared.iter().all(|(slice, copy)| slice == copy));
    }
}

fn slices(read: Read) -> Vec<BatchSlice> {
    match read {
        Read::Hot(slices) => slices,
        Read::Cold(read) => read.run().unwrap(),
    }
}
