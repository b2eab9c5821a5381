//! Goes from one segment of a log to the next.
//!
//! Owns: how large the next one is, when it is asked for, what closes the old one and links the new.
//! Never: acknowledges; links a segment before everything in front of it is durable.
//! Invariant: a segment that has a successor is whole, and durable.

use super::Log;
use crate::error::FlushError;
use crate::executor::Lane;
use crate::index::{Marks, SparseIndex, StoredIndex};
use crate::limits::{
    CONTROL_RESERVE_BYTES, NEXT_SEGMENT_BEFORE_BYTES, NEXT_SEGMENT_WITHIN_BYTES, PREPARE_BYTES,
    SEGMENT_HEADER_BYTES, UNFLUSHED_BYTES_MAX, next_segment_bytes,
};
use crate::planted::{Bug, is_planted, unless};
use crate::pool::Spare;
use crate::recovery::{self, segment_name};
use crate::segment::{Segment, SegmentHeader};
use std::io;
use std::sync::Arc;
use weir_protocol::batch::{BatchHeader, BatchType};
use weir_protocol::limits::BATCH_HEADER_BYTES;
use weir_protocol::types::Index;

impl Log {
    /// The size of the segment behind the active one.
    fn next_bytes(&self, needed: u64) -> u64 {
        let active = self.active().map_or(0, |segment| segment.file.len());
        next_segment_bytes(active, self.options.retained_bytes, needed)
    }

    pub(super) fn take_spare(&self, needed: u64) -> io::Result<Option<Spare>> {
        self.next.take(needed, self.next_bytes(needed))
    }

    /// Closes the active segment with a SEAL and links `spare` behind it.
    pub(super) fn roll(&mut self, spare: Spare) -> io::Result<Arc<Segment>> {
        let Some(active) = self.active() else { return self.link(spare, 0, 0) };
        if !active.is_sealed() {
            // Only a file that was damaged leaves no room for it; the successor says the same.
            if self.position + BATCH_HEADER_BYTES as u64 <= active.file.len() {
                self.append_local(&active, BatchType::Seal)?;
            }
            active.seal();
        }
        let stored = self.index_of(&active);
        let next = self.link(spare, active.header.sequence, self.position)?;
        if let Some(stored) = stored {
            recovery::submit_index(&self.device, active.path.clone(), stored);
            self.shared.keep_loaded(&active);
        }
        Ok(next)
    }

    /// Appends a batch that says how far the log is: it repeats the last index and chain.
    fn append_local(&mut self, active: &Arc<Segment>, batch_type: BatchType) -> io::Result<()> {
        let mut header = BatchHeader::empty(batch_type);
        header.term = self.cursor.term;
        header.chain = self.cursor.chain;
        header.index = self.cursor.last_index;
        header.base_offset = self.cursor.log_end;
        header.log_time_ms = self.shared.ends().log_time_ms;
        header.durable_pos = active.flushed_end();
        active.file.write_at(self.position, &header.stamp_local(active.header.salt))?;
        let end = self.position + header.stored_len() as u64;
        self.shared.flush.dirty(active, self.position..end, header.index);
        self.position = end;
        active.publish(end);
        Ok(())
    }

    /// What the file of a segment's index is to say when the segment ends here.
    fn index_of(&self, segment: &Arc<Segment>) -> Option<StoredIndex> {
        let last = self.shared.ends().recent.back().cloned();
        let last = last.filter(|(_, of, _)| Arc::ptr_eq(of, segment));
        Some(StoredIndex {
            salt: segment.header.salt,
            end: self.position,
            last_position: last.map(|(.., position)| position),
            cursor: self.cursor,
            marks: segment.marks().clone(),
            rows: segment.rows().clone()?,
        })
    }

    /// Makes `spare` the active segment: everything before it durable, header, flush, rename,
    /// folder; only then may anything in it be acknowledged. Recovery counts on it that a segment
    /// with a successor is whole.
    pub(super) fn link(
        &mut self,
        spare: Spare,
        prev_sequence: u64,
        prev_cut_pos: u64,
    ) -> io::Result<Arc<Segment>> {
        let header = SegmentHeader {
            partition_uuid: self.options.uuid,
            sequence: self.sequence + 1,
            salt: self.device.next_salt(),
            base_index: Index(self.cursor.last_index.0 + 1),
            base_offset: self.cursor.log_end,
            prev_term: self.cursor.term,
            prev_chain: self.cursor.chain ^ u32::from(is_planted(Bug::ChainBrokenByRoll)),
            prev_sequence,
            prev_cut_pos,
            capacity: spare.file.len(),
            created_ms: self.shared.ends().log_time_ms,
            recycled: spare.recycled && !is_planted(Bug::RecycledNotSaid),
            unflushed_max: UNFLUSHED_BYTES_MAX as u32,
        };
        self.shared.flush.settle(self.device.flushes.observer()).map_err(io::Error::other)?;
        let path = self.dir.join(segment_name(header.base_index, header.sequence));
        let linked = header.store(&*spare.file);
        let flush = || spare.file.flush(0..SEGMENT_HEADER_BYTES);
        let linked = linked.and_then(|()| unless(Bug::SegmentHeaderNotFlushed, flush));
        if let Err(error) = linked.and_then(|()| self.device.disk().rename(&spare.path, &path)) {
            // The log is fenced over the first error; a leftover is removed at the next start.
            let _ = self.device.disk().remove(&spare.path);
            return Err(error);
        }
        unless(Bug::SegmentNameNotSynced, || self.device.disk().sync_dir(&self.dir))?;
        // From now on its loss would be noticed; nothing in it was acknowledged before.
        let note = || self.lock_meta().store(|state| state.last_segment = header.sequence);
        unless(Bug::NewestSegmentNotNoted, note)?;
        self.sequence = header.sequence;
        self.position = SEGMENT_HEADER_BYTES;
        self.marked_to = 0;
        (self.prepared_to, self.asked_at) = (0, 0);
        let start = (SEGMENT_HEADER_BYTES, Some(SparseIndex::default()), Marks::default());
        let segment = Segment::new(header, path, spare.file, start);
        self.shared.ends_mut().segments.push_back(segment.clone());
        Ok(segment)
    }

    /// Reads the next window in, and has the next segment made, before either is needed.
    pub(super) fn look_ahead(&mut self, segment: &Arc<Segment>) {
        if self.position + PREPARE_BYTES / 2 > self.prepared_to
            && self.prepared_to < segment.file.len()
        {
            let start = self.prepared_to.max(self.position);
            let end = (self.position + PREPARE_BYTES).min(segment.file.len());
            self.prepared_to = end;
            let (segment, flush) = (segment.clone(), self.shared.flush.clone());
            let prepare = move || {
                if let Err(error) = segment.file.prepare(start..end) {
                    // A store through the map would end the process there.
                    tracing::error!(file = %segment.path.display(), %error, "reading ahead failed");
                    flush.fail(FlushError::new(&segment.path, &error));
                }
            };
            self.device.executor().submit(Lane::Prepare, Box::new(prepare));
        }
        let len = segment.file.len();
        let early = (len / 4).min(NEXT_SEGMENT_WITHIN_BYTES);
        let late = len - (len / 2).min(NEXT_SEGMENT_BEFORE_BYTES);
        if self.position > late.max(self.asked_at) {
            // A full disk is not asked again at every append.
            self.asked_at = self.position + PREPARE_BYTES;
            self.ask_for_next();
        } else if self.position > early && self.asked_at == 0 {
            self.asked_at = late;
            self.next.announce(self.next_bytes(0));
        }
        self.note_room();
    }

    /// Has the next segment made elsewhere, unless one is there or on its way.
    fn ask_for_next(&self) {
        let shared = self.shared.clone();
        let begun = || self.shared.ends_mut().growing = true;
        self.next.ask(self.next_bytes(0), begun, move |ready| {
            let mut ends = shared.ends_mut();
            ends.growing = false;
            ends.room = ends.room.max(ready.unwrap_or(0));
        });
    }

    pub(super) fn note_room(&self) {
        let active = self.active().map_or(0, |segment| {
            segment.file.len().saturating_sub(self.position + CONTROL_RESERVE_BYTES)
        });
        self.next.with_room(|ready| self.shared.ends_mut().room = active.max(ready));
    }
}
