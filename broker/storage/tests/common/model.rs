//! A log as a list: what it must hold after any sequence of steps.

use super::data;
use bytes::Bytes;
use proptest::prelude::*;
use std::collections::BTreeMap;
use weir_protocol::batch::{ATTR_LAST_OF_INDEX, BatchHeader, BatchType, seal_control};
use weir_protocol::limits::BATCH_HEADER_BYTES;
use weir_protocol::types::{Index, Offset, Term};
use weir_storage::{BatchSlice, NewBatch};

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
    Watermark,
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

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let append = (proptest::collection::vec(shape(), 1..4), any::<bool>())
        .prop_map(|(shapes, together)| Step::Append { shapes, together });
    prop_oneof![
        10 => append,
        4 => Just(Step::Flush),
        2 => (any::<u8>(), 1usize..600_000).prop_map(|(at, bytes)| Step::ReadIndex(at, bytes)),
        2 => (any::<u8>(), 1usize..600_000).prop_map(|(at, bytes)| Step::ReadOffset(at, bytes)),
        1 => any::<u8>().prop_map(Step::ReadTime),
        1 => any::<u8>().prop_map(Step::Trim),
        2 => any::<u8>().prop_map(Step::Truncate),
        1 => any::<u8>().prop_map(Step::StoreMeta),
        2 => any::<u8>().prop_map(Step::Checkpoint),
        1 => Just(Step::Watermark),
        2 => Just(Step::Reopen),
    ]
}

pub(crate) fn steps(count_max: usize) -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 1..count_max)
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
    pub(crate) checkpoints: BTreeMap<u64, Vec<u8>>,
    /// All that were ever begun: one that was removed may come back, which does no harm.
    pub(crate) begun_checkpoints: Vec<(u64, Vec<u8>)>,
    /// First index and offset, if a trim that failed took place all the same.
    pub(crate) may_start: Option<(u64, u64)>,
    /// The hard state, if a store of it that failed took place all the same.
    pub(crate) may_meta: Option<Vec<u8>>,
    pub(crate) term: u64,
    pub(crate) clock_ms: u64,
    /// Batches ever made: no two are alike.
    pub(crate) serial: u64,
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
    /// What a start makes of a log that was closed: all is flushed, and no checkpoint is of what is
    /// not there any more.
    pub(crate) fn reopen(&mut self) {
        self.flushed = self.last_index();
        self.checkpoints.retain(|at, _| *at <= self.flushed);
    }

    pub(crate) fn checkpoint(&mut self, index: u64, content: Vec<u8>) {
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

    /// The same for checkpoints: none is half there, the newest is never lost to a newer one, and
    /// none is of what is not there any more.
    pub(crate) fn adopt_checkpoints(&mut self, found: BTreeMap<u64, Vec<u8>>) {
        for (index, content) in &found {
            let begun = self.begun_checkpoints.iter().any(|(at, c)| (at, c) == (index, content));
            assert!(begun, "at {index}");
        }
        let last_index = self.last_index();
        assert!(found.keys().all(|at| *at <= last_index), "behind the end");
        let newest = self.checkpoints.range(..=last_index).next_back().map(|(at, _)| at);
        assert!(newest.is_none_or(|newest| found.contains_key(newest)), "the newest is kept");
        self.checkpoints = found;
    }
}
