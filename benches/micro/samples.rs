//! What the micro benchmarks measure on: batches of records of 1 KiB, and a log to put them into.
//!
//! Owns: the shape of a batch, the numbering of a log's batches.
//! Never: measures.

#![allow(dead_code, reason = "each benchmark uses its part")]

use std::path::Path;
use std::sync::Arc;
use weir_protocol::batch::{BatchBuilder, BatchHeader, BuiltBatch};
use weir_protocol::frame::{Frame, Publish};
use weir_protocol::limits::{BATCH_BYTES_DEFAULT, MESSAGE_BYTES_DEFAULT};
use weir_protocol::types::{Index, StreamId, Term};
use weir_storage::{Backend, Device, Log, LogOptions, LogReader, NewBatch, OsDisk, ThreadExecutor};

/// Value of one record.
pub(crate) const VALUE_BYTES: usize = 1 << 10;
/// Records of a PUBLISH.
pub(crate) const RECORDS: usize = 64;
/// A batch on its way into a log, header and body, at most.
pub(crate) const BATCH_BYTES: usize = 64 << 10;

const _: () = assert!(RECORDS * VALUE_BYTES < BATCH_BYTES_DEFAULT);

/// As many records as told, each with a key.
pub(crate) fn batch_of(records: usize) -> BuiltBatch {
    let (mut builder, value) = (BatchBuilder::new(MESSAGE_BYTES_DEFAULT), [7; VALUE_BYTES]);
    for number in 0..records as u64 {
        let key = number.to_le_bytes();
        builder.push(1_700_000_000_000 + number, Some(&key), &[], &value).expect("it is small");
    }
    builder.finish()
}

pub(crate) fn publish() -> Publish {
    let BuiltBatch { mut header, body } = batch_of(RECORDS);
    header.stamp_local(0);
    Publish { stream: StreamId(1), deadline_ms: 0, demand: 0, header, body }
}

pub(crate) fn publish_frame() -> Frame {
    Frame::Publish(publish())
}

/// A log whose batches are all alike and as large as they may be within [`BATCH_BYTES`].
pub(crate) struct BenchLog {
    log: Log,
    batch: BuiltBatch,
    last: Index,
}

impl BenchLog {
    pub(crate) fn open(dir: &Path) -> Self {
        let executor = Arc::new(ThreadExecutor::start().expect("threads start"));
        let disk = Arc::new(OsDisk::new(Backend::Map));
        let device = Device::open(disk, executor, dir, 1).expect("the folder is ours alone");
        let options = LogOptions { uuid: 1, ..LogOptions::default() };
        let (log, _) = Log::open(device, &dir.join("log"), options).expect("the folder is empty");
        let fits = |records: &usize| batch_of(*records).header.wire_len() <= BATCH_BYTES;
        let records = (1..=RECORDS).rev().find(fits).expect("one record fits");
        Self { log, batch: batch_of(records), last: Index(0) }
    }

    pub(crate) fn reader(&self) -> LogReader {
        self.log.reader()
    }

    /// Describes the batch that is appended over and over.
    pub(crate) fn header(&self) -> &BatchHeader {
        &self.batch.header
    }

    /// Appends one batch; it is not flushed.
    pub(crate) fn append(&mut self) {
        self.last = Index(self.last.0 + 1);
        let header = BatchHeader { index: self.last, term: Term(1), ..self.batch.header };
        let batch = NewBatch { header, body: vec![self.batch.body.clone()] };
        self.log.append(vec![batch]).expect("the disk has room");
    }

    /// Flushes what was appended and gives up whole segments, so that a log that is appended to
    /// for as long as a benchmark takes stays small.
    pub(crate) fn settle(&mut self) {
        let (done, wait) = std::sync::mpsc::sync_channel(1);
        self.log.flush(Box::new(move |outcome| {
            // The receiver waits right below.
            let _ = done.send(outcome);
        }));
        wait.recv().expect("a flush is answered").expect("the disk flushes");
        self.log.trim(self.last).expect("the disk trims");
    }
}

/// A folder on the disk that the build is on, which is no memory filesystem.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build folder is writable")
}
