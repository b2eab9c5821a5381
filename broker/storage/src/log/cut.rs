//! Takes away from a log: its tail by rolling, its head by whole segments.
//!
//! Owns: what of the segments is given up, and when that is durable.
//! Never: overwrites a byte; removes a file before what replaces it is durable.
//! Invariant: a failure behind the point of no return fences the log.

use super::Log;
use crate::device::Device;
use crate::disk::remove_if_there;
use crate::index;
use crate::limits::{SEGMENT_HEADER_BYTES, SEGMENT_LADDER_BYTES};
use crate::planted::{Bug, is_planted};
use crate::reader::{Found, From, Walk};
use crate::scan::Cursor;
use crate::segment::Segment;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use weir_protocol::batch::BatchHeader;
use weir_protocol::types::Index;

impl Log {
    /// Cuts everything behind `index`, durably, by rolling to a fresh segment. Without room for
    /// that segment nothing is changed; any other failure fences the log.
    pub fn truncate_after(&mut self, index: Index) -> io::Result<()> {
        self.check_fence()?;
        if index >= self.shared.ends().last_index {
            return Ok(());
        }
        self.cut_after(index).map(drop)
    }

    /// Cuts everything behind `index`, which is held or the one before the first, torn bytes
    /// included. Returns the whole batches of the last segment that were cut, in bytes.
    pub(super) fn cut_after(&mut self, index: Index) -> io::Result<u64> {
        let (cut, active, end) = (self.cut_behind(index)?, self.sequence, self.position);
        // A small one: what the cut segment had left stays on the disk too, and counts.
        let [smallest, ..] = SEGMENT_LADDER_BYTES;
        let spare = self.device.pool.take(smallest)?.ok_or(io::ErrorKind::StorageFull)?;
        let (mut sequence, mut position) = (0, 0);
        let mut dead: Vec<Arc<Segment>> = {
            let mut ends = self.shared.ends_mut();
            ends.recent.retain(|(header, ..)| header.index <= index);
            if let Some(cut) = cut {
                (sequence, position) = (cut.segment.header.sequence, cut.position);
                cut.segment.cut_at(position);
                cut.segment.marks().truncate_after(index);
                let begun = cut.segment.header.created_ms;
                ends.log_time_ms = cut.last.map_or(begun, |last| last.log_time_ms);
                ends.last = cut.last;
                self.cursor = cut.cursor;
                (ends.last_index, ends.log_end) = (cut.cursor.last_index, cut.cursor.log_end);
            }
            let count = ends.segments.partition_point(|s| s.header.sequence <= sequence);
            ends.segments.drain(count..).collect()
        };
        self.shared.forget_loaded(&dead);
        self.shared.flush.truncate(index);
        if is_planted(Bug::TruncatedTooEarly) {
            self.remove(&std::mem::take(&mut dead))?;
        }
        let linked = self.link(spare, sequence, position).and_then(|_| self.remove(&dead));
        let first_index = self.shared.ends().first_index;
        let linked = linked.and_then(|()| self.shared.damage.keep_within(first_index, index));
        self.fence_unless(linked)?;
        let first = if sequence == active { position } else { SEGMENT_HEADER_BYTES };
        Ok(end.saturating_sub(first))
    }

    pub(super) fn remove(&self, dead: &[Arc<Segment>]) -> io::Result<()> {
        for segment in dead {
            self.device.disk().remove(&segment.path)?;
            remove_if_there(&**self.device.disk(), &index::path_of(&segment.path))?;
        }
        self.device.disk().sync_dir(&self.dir)
    }

    /// The place behind the last batch of `index`; none where the log has no segment.
    fn cut_behind(&self, index: Index) -> io::Result<Option<Cut>> {
        if index == self.cursor.last_index && !self.cursor.open_index {
            // Nothing but torn bytes goes: what stands before them need not be read.
            let (position, cursor, last) = (self.position, self.cursor, self.shared.ends().last);
            return Ok(self.active().map(|segment| Cut { segment, position, cursor, last }));
        }
        let segments: Vec<Arc<Segment>> = self.shared.ends().segments.iter().cloned().collect();
        let holds = |segment: &&Arc<Segment>| segment.header.base_index <= index;
        let Some(segment) = segments.iter().rfind(holds).or(segments.first()) else {
            return Ok(None);
        };
        self.shared.load_index(segment)?;
        let mut reached = walk_to(Walk::towards(&self.shared, segment, From::Index(index)), index)?;
        if reached.last.is_none() {
            // The batch that the index names is lost: what stands before it counts.
            reached = walk_to(Walk::from_start(&self.shared, segment), index)?;
        }
        let Reached { position, mut cursor, last } = reached;
        let mut nexts = segments.iter().skip_while(|next| next.header.base_index <= index);
        if cursor.last_index < index
            && let Some(next) = nexts.next()
        {
            // Whole segments in between are lost.
            if next.header.base_index.0 == index.0 + 1 {
                let cursor = Cursor::before(&next.header);
                let (segment, position) = (next.clone(), SEGMENT_HEADER_BYTES);
                return Ok(Some(Cut { segment, position, cursor, last }));
            }
            cursor.log_end = next.header.base_offset;
        }
        // What is lost may reach over the cut: nobody knows which of its offsets lie before.
        (cursor.last_index, cursor.open_index) = (index, false);
        Ok(Some(Cut { segment: segment.clone(), position, cursor, last }))
    }

    /// Gives up whole segments that hold nothing behind `upto`. Durable when this returns.
    pub fn trim(&mut self, upto: Index) -> io::Result<()> {
        self.begin_trim(upto)?.finish()
    }

    /// The durable half of a trim. The other half frees the disk's blocks, which takes its time
    /// and needs no writer.
    pub fn begin_trim(&mut self, upto: Index) -> io::Result<Trimmed> {
        self.check_fence()?;
        let dead: Vec<Arc<Segment>> = {
            let ends = self.shared.ends();
            let nexts = ends.segments.iter().skip(1);
            let count = nexts.take_while(|next| next.header.base_index.0 <= upto.0 + 1).count();
            ends.segments.iter().take(count).cloned().collect()
        };
        let mut trimmed = Trimmed {
            device: self.device.clone(),
            dir: self.dir.clone(),
            dead: VecDeque::new(),
            damaged: self.shared.damage.all().iter().map(|range| range.sequence).collect(),
        };
        let Some(last) = dead.last() else { return Ok(trimmed) };
        let (first_index, first_offset) = {
            let mut ends = self.shared.ends_mut();
            ends.segments.retain(|s| s.header.sequence > last.header.sequence);
            if let Some(first) = ends.segments.front().map(|segment| segment.header.clone()) {
                (ends.first_index, ends.first_offset) = (first.base_index, first.base_offset);
            }
            let first_index = ends.first_index;
            ends.recent.retain(|(header, ..)| header.index >= first_index);
            (first_index, ends.first_offset)
        };
        self.shared.forget_loaded(&dead);
        if is_planted(Bug::TrimmedTooEarly) {
            self.remove(&dead)?;
        }
        let stored = self.lock_meta().store(|state| {
            (state.first_index, state.first_offset) = (first_index, first_offset);
        });
        let kept =
            stored.and_then(|()| self.shared.damage.keep_within(first_index, Index(u64::MAX)));
        self.fence_unless(kept)?;
        trimmed.dead = dead.into();
        Ok(trimmed)
    }
}

/// Where a log ends once it is cut.
struct Cut {
    segment: Arc<Segment>,
    position: u64,
    cursor: Cursor,
    /// The last batch that stays, if it can be read.
    last: Option<BatchHeader>,
}

/// How far a walk came.
struct Reached {
    position: u64,
    cursor: Cursor,
    last: Option<BatchHeader>,
}

/// Walks behind everything that holds a part of `index`.
fn walk_to(mut walk: Walk<'_>, index: Index) -> io::Result<Reached> {
    let mut reached = Reached { position: walk.position(), cursor: walk.cursor(), last: None };
    while let Some(step) = walk.next()? {
        match step {
            Found::Batch(_, header) if header.index > index => break,
            Found::Lost(range) if range.first_index > index => break,
            Found::Batch(_, header) if !header.batch_type.is_local() => reached.last = Some(header),
            _ => {}
        }
        (reached.position, reached.cursor) = (walk.position(), walk.cursor());
    }
    Ok(reached)
}

/// Segments that are given up but still on the disk. Dropped unfinished, the next start of the
/// log removes them.
#[must_use = "the segments stay on the disk until the trim is finished"]
pub struct Trimmed {
    device: Arc<Device>,
    dir: PathBuf,
    dead: VecDeque<Arc<Segment>>,
    /// Sequences of segments that were found damaged.
    damaged: BTreeSet<u64>,
}

impl Trimmed {
    /// Removes all of them.
    pub fn finish(mut self) -> io::Result<()> {
        while self.remove_one()? {}
        Ok(())
    }

    /// Gives up one segment, to the pool if nobody reads it and nothing of it was lost; returns
    /// whether there are more.
    pub fn remove_one(&mut self) -> io::Result<bool> {
        let Some(segment) = self.dead.pop_front() else { return Ok(false) };
        let disk = &**self.device.disk();
        remove_if_there(disk, &index::path_of(&segment.path))?;
        // A store into a part of a page that the device cannot read fails, and where a log ends in
        // front of one, nothing tells what is lost. A new file is written whole, and has none.
        let is_whole = !self.damaged.contains(&segment.header.sequence);
        match Arc::try_unwrap(segment) {
            Ok(segment) if is_whole => self.device.pool.recycle(&segment.path, segment.file)?,
            Ok(given_up) => remove_if_there(disk, &given_up.path)?,
            Err(read) => remove_if_there(disk, &read.path)?,
        }
        if self.dead.is_empty() {
            disk.sync_dir(&self.dir)?;
        }
        Ok(!self.dead.is_empty())
    }
}
