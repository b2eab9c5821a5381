//! A log beside its model: every step is done to both and compared.

use super::model::{Held, Model, Step};
use super::{Inline, flush, open_small};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use weir_protocol::batch::BatchType;
use weir_protocol::types::{Index, Offset};
use weir_storage::limits::META_BLOB_BYTES_MAX;
use weir_storage::{BatchSlice, Device, Disk, Log, OpenError, Read, ReadError, Recovered};

/// A log on a disk, beside its model.
pub(crate) struct Subject {
    disk: Arc<dyn Disk>,
    pub(crate) root: PathBuf,
    opens: u64,
    pub(crate) log: Option<Log>,
    pub(crate) model: Model,
    /// What may be found while the last step is under way.
    pub(crate) begun: Model,
    /// Slices that somebody still holds, with a copy of what they said.
    shared: Vec<(Bytes, Vec<u8>)>,
}

/// The log of a subject failed; its model was brought to what may be found.
#[derive(Debug)]
pub(crate) struct Failed;

impl Subject {
    pub(crate) fn new(disk: Arc<dyn Disk>, root: PathBuf) -> Self {
        let (model, begun) = (Model::new(), Model::new());
        Self { disk, root, opens: 0, log: None, model, begun, shared: Vec::new() }
    }

    /// A later process of the same log, on what became of its disk.
    pub(crate) fn later(&self, disk: Arc<dyn Disk>, model: Model) -> Self {
        let later = Self::new(disk, self.root.clone());
        Self { opens: self.opens + 1_000, model, ..later }
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
        self.begun = self.model.clone();
        match step {
            Step::Append { shapes, together } => {
                let batches = self.model.append(shapes, *together);
                self.begun = self.model.clone();
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
                // What a checkpoint covers is never cut.
                let covered = self.model.checkpoints.keys().next_back().copied();
                let index = self.model.cut_at(*share).max(covered.unwrap_or(0));
                self.model.flushed = self.model.flushed.min(index);
                self.begun = self.model.clone();
                self.log().truncate_after(Index(index)).map_err(|_| Failed)?;
                self.model.truncate(index);
            }
            Step::StoreMeta(byte) => {
                let content = vec![*byte; META_BLOB_BYTES_MAX - usize::from(*byte)];
                self.model.may_meta = Some(content.clone());
                self.begun = self.model.clone();
                self.log().store_meta(&content).map_err(|_| Failed)?;
                self.model.meta = content;
            }
            Step::Checkpoint(share) => {
                // The owner keeps what is durable.
                let at = self.model.index_at(*share).min(self.model.flushed);
                self.model.serial += 1;
                let content = self.model.serial.to_le_bytes().repeat(100);
                self.model.begun_checkpoints.push((at, content.clone()));
                self.begun = self.model.clone();
                self.log().write_checkpoint(Index(at), &content).map_err(|_| Failed)?;
                self.model.checkpoint(at, content);
                assert_eq!(self.checkpoints(), self.model.checkpoints);
            }
            Step::Watermark => self.log().leave_watermark().map_err(|_| Failed)?,
            Step::Reopen => {
                let recovered = self.open().map_err(|_| Failed)?;
                assert_eq!(recovered.bytes_cut, 0);
                assert!(recovered.batches_read <= self.model.held.len() as u64);
                self.model.reopen();
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

    /// Checks what was found at a start against what may be found, and goes on from there.
    pub(crate) fn adopt(&mut self) {
        let found = self.contents();
        let log = self.log.as_ref().unwrap();
        let bounds = log.reader().bounds();
        let start = (bounds.first_index.0, bounds.log_start.0);
        self.model.adopt(start, found, &log.meta());
        self.check_bounds();
        let found = self.checkpoints();
        self.model.adopt_checkpoints(found);
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
        self.begun = self.model.clone();
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
