//! Takes away from a log: its tail by rolling, its head by whole segments.
//!
//! Owns: what of the segments is given up, and when that is durable.
//! Never: overwrites a byte; removes a file before what replaces it is durable.
//! Invariant: a failure behind the point of no return fences the log.

use super::Log;
use crate::device::Device;
use crate::disk::remove_if_there;
use crate::index;
use crate::limits::SEGMENT_LADDER_BYTES;
use crate::planted::{Bug, is_planted};
use crate::reader::{Found, From, Walk};
use crate::scan::Cursor;
use crate::segment::Segment;
use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use weir_protocol::types::Index;

impl Log {
    /// Cuts everything behind `index`, durably, by rolling to a fresh segment. Without room for
    /// that segment nothing is changed; any other failure fences the log.
    pub fn truncate_after(&mut self, index: Index) -> io::Result<()> {
        self.check_fence()?;
        if index >= self.shared.ends().last_index {
            return Ok(());
        }
        self.cut_after(index)
    }

    /// Cuts everything behind `index`, which is held or the one before the first, torn bytes
    /// included.
    pub(super) fn cut_after(&mut self, index: Index) -> io::Result<()> {
        // Where nothing but bytes behind the last index goes, what stands before it need not be read.
        let at_end = index == self.cursor.last_index && !self.cursor.open_index;
        let first_index = self.shared.ends().first_index;
        let kept = match at_end || index < first_index {
            true => self.shared.ends().last.filter(|_| at_end),
            false => {
                let headers = self.reader().headers(index, usize::MAX).map_err(io::Error::other)?;
                headers.into_iter().take_while(|header| header.index == index).last()
            }
        };
        let place = match at_end {
            true => self.active().map(|segment| (segment, self.position)),
            false => self.end_of(index)?,
        };
        // A small one: what the cut segment had left stays on the disk too, and counts.
        let [smallest, ..] = SEGMENT_LADDER_BYTES;
        let spare = self.device.pool.take(smallest)?.ok_or(io::ErrorKind::StorageFull)?;
        let mut dead: Vec<Arc<Segment>> = {
            let mut ends = self.shared.ends_mut();
            ends.last = kept;
            ends.recent.retain(|(header, ..)| header.index <= index);
            let sequence = place.as_ref().map_or(0, |(segment, _)| segment.header.sequence);
            let count = ends.segments.partition_point(|s| s.header.sequence <= sequence);
            let dead = ends.segments.drain(count..).collect();
            if let Some((segment, position)) = &place {
                segment.cut_at(*position);
                segment.marks().truncate_after(index);
            }
            if let Some(header) = kept.filter(|_| !at_end) {
                self.cursor.pass(&header);
            } else if let Some((segment, _)) = place.as_ref().filter(|_| !at_end) {
                self.cursor = Cursor::before(&segment.header);
            }
            (ends.last_index, ends.log_end) = (self.cursor.last_index, self.cursor.log_end);
            dead
        };
        self.shared.forget_loaded(&dead);
        self.shared.flush.truncate(index);
        if is_planted(Bug::TruncatedTooEarly) {
            self.remove(&std::mem::take(&mut dead))?;
        }
        let (sequence, position) =
            place.map_or((0, 0), |(segment, position)| (segment.header.sequence, position));
        let linked = self.link(spare, sequence, position).and_then(|_| self.remove(&dead));
        let first_index = self.shared.ends().first_index;
        let linked = linked.and_then(|()| self.shared.damage.keep_within(first_index, index));
        self.fence_unless(linked)
    }

    fn remove(&self, dead: &[Arc<Segment>]) -> io::Result<()> {
        for segment in dead {
            self.device.disk().remove(&segment.path)?;
            remove_if_there(&**self.device.disk(), &index::path_of(&segment.path))?;
        }
        self.device.disk().sync_dir(&self.dir)
    }

    /// The segment and position behind the last batch of `index`.
    fn end_of(&self, index: Index) -> io::Result<Option<(Arc<Segment>, u64)>> {
        let segments: Vec<Arc<Segment>> = self.shared.ends().segments.iter().cloned().collect();
        let mut place = None;
        for segment in segments {
            if segment.header.base_index > index && place.is_some() {
                break;
            }
            self.shared.load_index(&segment)?;
            let mut walk = Walk::towards(&self.shared, &segment, From::Index(index));
            let mut position = walk.position();
            while let Some(step) = walk.next()? {
                match step {
                    Found::Batch(_, header) if header.index > index => break,
                    Found::Lost(range) if range.last_index > index => break,
                    _ => position = walk.position(),
                }
            }
            place = Some((segment, position));
        }
        Ok(place)
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
        let mut trimmed =
            Trimmed { device: self.device.clone(), dir: self.dir.clone(), dead: VecDeque::new() };
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

/// Segments that are given up but still on the disk. Dropped unfinished, the next start of the
/// log removes them.
#[must_use = "the segments stay on the disk until the trim is finished"]
pub struct Trimmed {
    device: Arc<Device>,
    dir: PathBuf,
    dead: VecDeque<Arc<Segment>>,
}

impl Trimmed {
    /// Removes all of them.
    pub fn finish(mut self) -> io::Result<()> {
        while self.remove_one()? {}
        Ok(())
    }

    /// Gives up one segment, to the pool if nobody reads it; returns whether there are more.
    pub fn remove_one(&mut self) -> io::Result<bool> {
        let Some(segment) = self.dead.pop_front() else { return Ok(false) };
        let disk = &**self.device.disk();
        remove_if_there(disk, &index::path_of(&segment.path))?;
        match Arc::try_unwrap(segment) {
            Ok(segment) => self.device.pool.recycle(&segment.path, segment.file)?,
            Err(read) => remove_if_there(disk, &read.path)?,
        }
        if self.dead.is_empty() {
            disk.sync_dir(&self.dir)?;
        }
        Ok(!self.dead.is_empty())
    }
}
