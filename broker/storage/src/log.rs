//! The log of one partition: one writer, any number of readers.
//!
//! Owns: where the next batch goes; offsets, chain and the local fields of its header. Its parts
//! roll, trim, truncate and begin anew by whole segments.
//! Never: knows replication; overwrites a byte that was published; retries a failed write.
//! Invariants: offsets are dense over data batches; the chain runs over every batch but local
//! ones; segments link to one another by sequence and cut position.

mod cut;
mod next;
mod restart;
mod roll;

pub use cut::Trimmed;
pub use restart::LogStart;

use crate::checkpoint::Checkpoints;
use crate::damage::DamagedRange;
use crate::device::Device;
use crate::error::{AppendError, FlushError, OpenError, is_no_space};
use crate::flush::{FlushDone, Flusher, LogFlush};
use crate::limits::{CONTROL_RESERVE_BYTES, SEGMENT_HEADER_BYTES, UNFLUSHED_BYTES_MAX};
use crate::meta::{Mark, Meta, MetaDone, MetaStore};
use crate::planted::{Bug, is_planted, unless};
use crate::reader::{LogReader, Shared};
use crate::recovery;
use crate::scan::Cursor;
use crate::segment::Segment;
use bytes::Bytes;
use next::NextSegment;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use weir_protocol::batch::{ATTR_FIRST_OF_INDEX, BatchHeader, BatchType};
use weir_protocol::limits::{BATCH_ALIGN_BYTES, BATCH_HEADER_BYTES};
use weir_protocol::types::{Index, Offset, Term};

/// How a log is kept.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// Identity of the replica's log.
    pub uuid: u128,
    /// Bytes that the topic retains: a segment is at most an eighth of it.
    pub retained_bytes: u64,
    /// Open the log also where its end is damaged beyond knowledge, and pass over everything that is
    /// damaged: what cannot be read is given up for good.
    pub accept_loss: bool,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self { uuid: 0, retained_bytes: u64::MAX, accept_loss: false }
    }
}

/// A batch to append: index, term and everything that describes the body are set.
#[derive(Debug, Clone)]
pub struct NewBatch {
    /// Its header; offset, chain and the local fields are still to be stamped.
    pub header: BatchHeader,
    /// The body in pieces: the control section first, whole, where there is one.
    pub body: Vec<Bytes>,
}

/// What an append did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// Last index of the log now.
    pub last_index: Index,
    /// Offset behind the last record now.
    pub log_end: Offset,
}

/// What recovery found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Batches that were read and verified.
    pub batches_read: u64,
    /// Bytes of a torn, never acknowledged tail that were cut.
    pub bytes_cut: u64,
    /// Bytes that were rewritten and flushed because nothing proves that they had been.
    pub bytes_rewritten: u64,
    /// What is damaged, accepted losses included.
    pub damaged: Vec<DamagedRange>,
}

/// The exclusive writer of a log.
pub struct Log {
    device: Arc<Device>,
    dir: PathBuf,
    options: LogOptions,
    shared: Arc<Shared>,
    meta: MetaStore,
    /// What holds behind the last batch.
    cursor: Cursor,
    /// Where the next batch goes in the active segment.
    position: u64,
    /// The segment that is made ready for the next roll.
    next: Arc<NextSegment>,
    /// Sequence of the newest segment file ever made.
    sequence: u64,
    prepared_to: u64,
    /// Where the active segment ended when its last watermark was taken.
    marked_to: u64,
    /// Behind this position of the active segment the next one is asked for again.
    asked_at: u64,
}

impl Log {
    /// Opens the log in `dir`, which is created if need be; recovers what a crash left.
    pub fn open(
        device: Arc<Device>,
        dir: &Path,
        options: LogOptions,
    ) -> Result<(Self, Recovered), OpenError> {
        let found = recovery::recover(&device, dir, &options)?;
        let flush = LogFlush::behind(found.ends.last_index, device.flushes.unflushed());
        let meta = Arc::new(Mutex::new(found.meta));
        let meta = MetaStore::new(meta, flush.clone(), device.metas.clone());
        let shared = Shared::new(device.disk().clone(), found.ends, flush, found.damage);
        let mut log = Self {
            next: NextSegment::new(device.clone()),
            device,
            dir: dir.to_owned(),
            options,
            shared,
            meta,
            cursor: found.cursor,
            position: found.position,
            sequence: found.sequence,
            prepared_to: 0,
            marked_to: 0,
            asked_at: 0,
        };
        let mut recovered = found.recovered;
        recovered.bytes_cut += log.cut_torn_tail(recovered.bytes_cut)?;
        log.note_room();
        Ok((log, recovered))
    }

    /// A torn tail is cut by rolling: nothing is rewritten, and stale bytes never come back. What
    /// is whole of an index whose last batch is missing goes with it, and is returned in bytes.
    fn cut_torn_tail(&mut self, torn: u64) -> Result<u64, OpenError> {
        let Cursor { last_index, open_index, .. } = self.cursor;
        let open_index = open_index && !is_planted(Bug::OpenIndexKept);
        if torn == 0 && !open_index {
            return Ok(0);
        }
        // What stands there of an index counts from where its first batch begins.
        let kept = if open_index { Index(last_index.0 - 1) } else { last_index };
        let bytes = self.cut_after(kept).map_err(OpenError::device(&self.dir))?;
        let (dir, bytes_cut) = (self.dir.display(), torn + bytes);
        tracing::warn!(%dir, bytes_cut, "a torn tail was cut; it was never acknowledged");
        Ok(bytes)
    }

    /// The error of everything that changes a log which failed before.
    fn check_fence(&self) -> io::Result<()> {
        self.shared.flush.fence().map_or(Ok(()), |error| Err(io::Error::other(error.clone())))
    }

    /// Fences the log if `outcome` is a failure: nobody knows what of it is on the disk.
    fn fence_unless<T>(&self, outcome: io::Result<T>) -> io::Result<T> {
        outcome.inspect_err(|error| drop(self.fence(&self.dir, error)))
    }

    /// A reader of this log.
    pub fn reader(&self) -> LogReader {
        LogReader::new(self.shared.clone())
    }

    fn active(&self) -> Option<Arc<Segment>> {
        self.shared.ends().segments.back().cloned()
    }

    /// Appends the batches of whole indexes, which are readable when this returns and durable
    /// after a flush. All or none: a failure other than [`AppendError::NoSpace`] fences the log.
    pub fn append(&mut self, batches: Vec<NewBatch>) -> Result<Appended, AppendError> {
        if let Some(error) = self.shared.flush.fence() {
            return Err(AppendError::Fenced(error.clone()));
        }
        let (bytes, reserve) = needs_of(&batches);
        assert!(bytes <= UNFLUSHED_BYTES_MAX, "a group is smaller than what may be unflushed");
        let segment = self.segment_for(bytes, reserve)?;
        if self.shared.flush.is_at_limit(bytes) {
            let observer = self.device.flushes.observer();
            self.shared.flush.settle(observer).map_err(AppendError::Fenced)?;
        }
        let stored = self.store_all(&segment, batches);
        stored.map_err(|error| self.fence(&segment.path, &error))
    }

    /// Whether these batches begin a new segment: then [`Log::append`] waits for what is unflushed.
    pub fn rolls_for(&self, batches: &[NewBatch]) -> bool {
        let (bytes, reserve) = needs_of(batches);
        self.active().is_some_and(|active| !self.fits(&active, bytes + reserve))
    }

    fn fits(&self, active: &Segment, bytes: u64) -> bool {
        !active.is_sealed() && self.position + bytes <= active.file.len()
    }

    fn fence(&self, path: &Path, error: &io::Error) -> AppendError {
        let error = FlushError::new(path, error);
        self.shared.flush.fail(error.clone());
        AppendError::Fenced(error)
    }

    fn store_all(
        &mut self,
        segment: &Arc<Segment>,
        batches: Vec<NewBatch>,
    ) -> io::Result<Appended> {
        let start = self.position;
        let mut log_end = self.shared.ends().log_end;
        let mut stored = Vec::with_capacity(batches.len());
        for NewBatch { mut header, body } in batches {
            header.base_offset = log_end;
            match header.index == self.cursor.last_index {
                true => header.attrs &= !ATTR_FIRST_OF_INDEX,
                false => header.attrs |= ATTR_FIRST_OF_INDEX,
            }
            header.durable_pos = segment.flushed_end();
            let control_crc = control_crc_of(&header, &body);
            let bytes = header.stamp(segment.header.salt, self.cursor.chain, control_crc);
            let position = self.position;
            store_batch(segment, position, &bytes, &body)?;
            self.position += header.stored_len() as u64;
            self.cursor.pass(&header);
            log_end = header.end_offset();
            segment.note(position, &header);
            stored.push((header, position));
        }
        let last_index = self.cursor.last_index;
        self.shared.flush.dirty(segment, start..self.position, last_index);
        segment.publish(self.position);
        {
            let mut ends = self.shared.ends_mut();
            for (header, position) in stored {
                ends.remember(header, segment, position);
                ends.last = Some(header);
                ends.log_time_ms = header.log_time_ms;
            }
            ends.last_index = self.cursor.last_index;
            ends.log_end = log_end;
        }
        self.look_ahead(segment);
        Ok(Appended { last_index, log_end })
    }

    /// The segment that takes `bytes` and leaves `reserve`: the active one, or the next.
    fn segment_for(&mut self, bytes: u64, reserve: u64) -> Result<Arc<Segment>, AppendError> {
        if let Some(active) = self.active().filter(|active| self.fits(active, bytes + reserve)) {
            return Ok(active);
        }
        let needed = bytes + SEGMENT_HEADER_BYTES + CONTROL_RESERVE_BYTES;
        let spare = self.take_spare(needed).map_err(|error| self.fence(&self.dir, &error))?;
        let spare = spare.ok_or(AppendError::NoSpace)?;
        self.roll(spare).map_err(|error| self.fence(&self.dir, &error))
    }

    /// Asks that everything appended so far becomes durable; `done` is told, in order.
    pub fn flush(&mut self, done: FlushDone) {
        self.flusher().flush(done);
    }

    /// Asks for flushes while somebody else holds the log.
    pub fn flusher(&self) -> Flusher {
        Flusher::new(self.device.flushes.clone(), self.shared.flush.clone())
    }

    /// The chain of the last batch: what the next one continues.
    pub fn chain(&self) -> u32 {
        self.cursor.chain
    }

    /// The term of the last batch, also where damage took the batch.
    pub fn term(&self) -> Term {
        self.cursor.term
    }

    /// Bytes that are appended but not known to be durable.
    pub fn unflushed_bytes(&self) -> u64 {
        self.shared.flush.unflushed_bytes()
    }

    /// Whether everything that was appended is durable.
    pub fn is_flushed(&self) -> bool {
        self.check_fence().is_ok()
            && self.shared.flush.unflushed_bytes() == 0
            && self.shared.flush.flushed_index() == self.cursor.last_index
    }

    fn lock_meta(&self) -> MutexGuard<'_, Meta> {
        self.meta.lock()
    }

    /// Stores the owner's hard state while somebody else holds the log.
    pub fn meta_store(&self) -> MetaStore {
        self.meta.clone()
    }

    /// The owner's hard state, as it was stored last.
    pub fn meta(&self) -> Vec<u8> {
        self.lock_meta().state().blob.clone()
    }

    /// Makes the owner's hard state durable.
    pub fn store_meta(&mut self, blob: &[u8]) -> io::Result<()> {
        self.check_fence()?;
        let stored = self.lock_meta().store(|state| state.blob = blob.to_vec());
        self.fence_unless(stored)
    }

    /// Evidence of how far the log is flushed, where the disk does not hold it yet and nothing is
    /// unflushed: for a log that is idle. Without it, damage in what was appended last would look
    /// like a torn tail, or like none.
    pub fn watermark(&mut self) -> Option<Watermark> {
        let active = self.active()?;
        if self.check_fence().is_err() || self.position == self.marked_to {
            return None;
        }
        if self.unflushed_bytes() > 0 || active.flushed_end() < self.position {
            return None;
        }
        self.marked_to = self.position;
        let sequence = active.header.sequence;
        let mark = Mark { sequence, position: self.position, cursor: self.cursor };
        Some(Watermark { meta: self.meta.clone(), mark })
    }

    /// Makes the watermark durable, if there is one to leave.
    pub fn leave_watermark(&mut self) -> io::Result<()> {
        self.watermark().map_or(Ok(()), Watermark::store)
    }

    /// The log's checkpoints.
    pub fn checkpoints(&self) -> Checkpoints {
        let (device, dir) = (self.device.clone(), self.dir.clone());
        Checkpoints::new(device, dir, self.options.uuid, self.reader())
    }

    /// Keeps `content` as the owner's state at `index`: [`Checkpoints::write`].
    pub fn write_checkpoint(&mut self, index: Index, content: &[u8]) -> io::Result<()> {
        self.checkpoints().write(index, content)
    }

    /// The newest whole checkpoint at or below `upto`.
    pub fn latest_checkpoint(&self, upto: Index) -> io::Result<Option<(Index, Vec<u8>)>> {
        self.checkpoints().latest(upto)
    }
}

/// A watermark on its way to the disk: [`Log::watermark`].
#[must_use = "only a stored watermark is evidence"]
pub struct Watermark {
    meta: MetaStore,
    mark: Mark,
}

impl Watermark {
    /// Makes it durable; waits for the device, while the log goes on. A failure fences the log.
    pub fn store(self) -> io::Result<()> {
        let store = || self.meta.lock().store(|state| state.note(self.mark));
        let stored = unless(Bug::WatermarkNotFlushed, store);
        stored.inspect_err(|error| self.meta.fail(error))
    }

    /// Makes it durable along with the hard states of other logs; `done` is told. A failure fences
    /// the log.
    pub fn store_together(self, done: MetaDone) {
        let Self { meta, mark } = self;
        if is_planted(Bug::WatermarkNotFlushed) {
            return done(Ok(()));
        }
        meta.change(move |state| state.note(mark), done);
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.next.drop_spare();
    }
}

/// Bytes that batches take, and what must stay free behind them.
fn needs_of(batches: &[NewBatch]) -> (u64, u64) {
    let bytes = batches.iter().map(|batch| batch.header.stored_len() as u64).sum();
    match batches.iter().all(|batch| batch.header.batch_type != BatchType::Data) {
        true => (bytes, BATCH_HEADER_BYTES as u64),
        false => (bytes, CONTROL_RESERVE_BYTES),
    }
}

fn control_crc_of(header: &BatchHeader, body: &[Bytes]) -> Option<u32> {
    let control_len = header.control_len as usize;
    let control = body.first().and_then(|piece| piece.get(..control_len))?;
    control.last_chunk::<4>().map(|crc| u32::from_le_bytes(*crc))
}

/// Body first, header last: a reader of a torn tail meets a header only with its body behind it
/// most of the time, and the checksums decide in any case.
fn store_batch(
    segment: &Segment,
    position: u64,
    header: &[u8; BATCH_HEADER_BYTES],
    body: &[Bytes],
) -> io::Result<()> {
    let mut at = position + BATCH_HEADER_BYTES as u64;
    for piece in body.iter().filter(|piece| !piece.is_empty()) {
        segment.file.write_at(at, piece)?;
        at += piece.len() as u64;
    }
    let padding = at.next_multiple_of(BATCH_ALIGN_BYTES as u64) - at;
    if padding > 0 {
        segment.file.write_at(at, &[0; BATCH_ALIGN_BYTES][..padding as usize])?;
    }
    segment.file.write_at(position, header)
}

/// Whether an error of the log means a full disk.
pub fn is_out_of_space(error: &io::Error) -> bool {
    is_no_space(error)
}
