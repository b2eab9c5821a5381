//! A log as its partition writes it, without the partition.
//!
//! Owns: the batches, their indexes, the wait for a flush, and giving up what is not retained.
//! Never: times anything.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;
use weir_protocol::batch::BatchBuilder;
use weir_protocol::types::{Index, Term};
use weir_storage::limits::{NEXT_SEGMENT_WITHIN_BYTES, SEGMENT_LADDER_BYTES};
use weir_storage::{
    Backend, Device, Executor, FlushDone, FlushError, Log, LogOptions, LogReader, NewBatch, OsDisk,
};

/// Groups that bring a log to where it is measured.
pub(crate) const FILL_GROUP_BYTES: usize = 1 << 20;
/// Of them, those that the first large segment takes, so that the next one is asked for.
pub(crate) const FILL_GROUPS: u64 = 1 + NEXT_SEGMENT_WITHIN_BYTES / FILL_GROUP_BYTES as u64;
/// Bytes of a message.
const MESSAGE_BYTES: usize = 1 << 10;

/// The device that all logs below `dir` share.
pub(crate) fn open_device(dir: &Path, executor: Arc<dyn Executor>) -> io::Result<Arc<Device>> {
    Device::open(Arc::new(OsDisk::new(Backend::Map)), executor, dir, 1).map_err(io::Error::other)
}

/// The writer of one log.
pub(crate) struct LogWriter {
    log: Log,
    retained_bytes: u64,
    next: u64,
    done: SyncSender<Result<(), FlushError>>,
    wait: Receiver<Result<(), FlushError>>,
}

impl LogWriter {
    /// Opens a log that is new.
    pub(crate) fn open(device: Arc<Device>, dir: &Path, options: LogOptions) -> io::Result<Self> {
        let retained_bytes = options.retained_bytes;
        let (log, _) = Log::open(device, dir, options).map_err(io::Error::other)?;
        let (done, wait) = sync_channel(1);
        Ok(Self { log, retained_bytes, next: 1, done, wait })
    }

    /// Appends the batch as the next index and waits until it is durable.
    pub(crate) fn append(&mut self, batch: &NewBatch) -> io::Result<()> {
        self.store(batch)?;
        self.flush()?;
        self.retain()
    }

    /// Appends the batch as the next index; nothing is flushed.
    pub(crate) fn store(&mut self, batch: &NewBatch) -> io::Result<()> {
        let mut batch = batch.clone();
        batch.header.index = Index(self.next);
        self.next += 1;
        self.log.append(vec![batch]).map(drop).map_err(io::Error::other)
    }

    /// Makes everything stored so far durable.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let done = self.done.clone();
        self.ask(Box::new(move |outcome| {
            // The receiver lives as long as the log.
            let _ = done.send(outcome);
        }));
        self.wait.recv().map_err(io::Error::other)?.map_err(io::Error::other)
    }

    /// Asks that everything stored so far becomes durable.
    pub(crate) fn ask(&mut self, done: FlushDone) {
        self.log.flush(done);
    }

    /// Fills the small segments that every log begins with, and puts [`FILL_GROUPS`] into the first
    /// of the largest size, behind which the next is ready then.
    pub(crate) fn outgrow_small_segments(&mut self) -> io::Result<()> {
        let batch = batch_of(FILL_GROUP_BYTES)?;
        while self.log.reader().sealed_segments().len() + 1 < SEGMENT_LADDER_BYTES.len() {
            self.append(&batch)?;
        }
        // The first of them was too large for the last small segment.
        for _ in 1..FILL_GROUPS {
            self.append(&batch)?;
        }
        self.settle();
        Ok(())
    }

    pub(crate) fn reader(&self) -> LogReader {
        self.log.reader()
    }

    /// Waits until no segment is being made.
    pub(crate) fn settle(&self) {
        while self.log.reader().is_growing() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Gives up every segment but the one that is written to.
    pub(crate) fn trim_sealed(&mut self) -> io::Result<()> {
        match self.log.reader().sealed_segments().last() {
            Some(newest) => self.log.trim(newest.last_index),
            None => Ok(()),
        }
    }

    /// Gives up the oldest segment once the log holds more than it retains.
    fn retain(&mut self) -> io::Result<()> {
        let log = self.log.reader();
        if log.bounds().bytes <= self.retained_bytes {
            return Ok(());
        }
        match log.sealed_segments().first() {
            Some(oldest) => self.log.trim(oldest.last_index),
            None => Ok(()),
        }
    }
}

/// A batch of 1 KiB messages, at most `group_bytes` long but for its first message.
pub(crate) fn batch_of(group_bytes: usize) -> io::Result<NewBatch> {
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
