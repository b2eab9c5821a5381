//! Takes away from a log: its tail by rolling, its head by whole segments.
//!
//! Owns: what of the segments is given up, and when that is durable.
//! Never: overwrites a byte; removes a file before what replaces it is durable.
//! Invariant: a failure behind the point of no return fences the log.

use super::Log;
use crate::disk::{Disk, remove_if_there};
use crate::limits::{CONTROL_RESERVE_BYTES, SEGMENT_HEADER_BYTES};
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
        if index >= self.shared.ends().last_index() {
            return Ok(());
        }
        self.cut_after(index)
    }

    /// Cuts everything behind `index`, which is held or the one before the first, torn bytes
    /// included.
    pub(super) fn cut_after(&mut self, index: Index) -> io::Result<()> {
        let first_index = self.shared.ends().first_index;
        let kept = match index < first_index {
            true => Vec::new(),
            false => self.reader().headers(index, usize::MAX).map_err(io::Error::other)?,
        };
        let kept = kept.into_iter().take_while(|header| header.index == index).last();
        let place = self.end_of(index)?;
        let needed = SEGMENT_HEADER_BYTES + CONTROL_RESERVE_BYTES;
        let spare = self.take_spare(needed)?.ok_or(io::ErrorKind::StorageFull)?;
        let dead: Vec<Arc<Segment>> = {
            let mut ends = self.shared.ends_mut();
            ends.last = kept;
            ends.recent.retain(|(header, ..)| header.index <= index);
            let sequence = place.as_ref().map_or(0, |(segment, _)| segment.header.sequence);
            let count = ends.segments.partition_point(|s| s.header.sequence <= sequence);
            let dead = ends.segments.drain(count..).collect();
            if let Some((segment, position)) = &place {
                segment.cut_at(*position);
            }
            if let Some(header) = kept {
                ends.log_end = header.end_offset();
                self.tail = (header.term, header.chain);
            } else if let Some((segment, _)) = &place {
                ends.log_end = segment.header.base_offset;
                self.tail = (segment.header.prev_term, segment.header.prev_chain);
            }
            dead
        };
        self.shared.flush.truncate(index);
        let (sequence, position) =
            place.map_or((0, 0), |(segment, position)| (segment.header.sequence, position));
        let linked = self.link(spare, sequence, position).and_then(|_| self.remove(&dead));
        self.fence_unless(linked)
    }

    fn remove(&self, dead: &[Arc<Segment>]) -> io::Result<()> {
        for segment in dead {
            self.device.disk().remove(&segment.path)?;
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
            let mut position = SEGMENT_HEADER_BYTES;
            if let Some(row) = segment.index().before_index(index) {
                position = row.position;
            }
            while position < segment.published() {
                let header = segment.header_at(position).map_err(io::Error::other)?;
                if header.index > index {
                    break;
                }
                position += header.stored_len() as u64;
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
        let disk = self.device.disk().clone();
        let Some(last) = dead.last() else {
            return Ok(Trimmed { disk, dir: self.dir.clone(), dead: VecDeque::new() });
        };
        let first_index = {
            let mut ends = self.shared.ends_mut();
            ends.segments.retain(|s| s.header.sequence > last.header.sequence);
            let first = ends.segments.front().map(|segment| segment.header.base_index);
            ends.first_index = first.unwrap_or(ends.first_index);
            let first_index = ends.first_index;
            ends.recent.retain(|(header, ..)| header.index >= first_index);
            first_index
        };
        let blob = self.meta.blob().to_vec();
        let stored = self.meta.store(first_index, &blob);
        self.fence_unless(stored)?;
        Ok(Trimmed { disk, dir: self.dir.clone(), dead: dead.into() })
    }
}

/// Segments that are given up but still on the disk. Dropped unfinished, the next start of the
/// log removes them.
#[must_use = "the segments stay on the disk until the trim is finished"]
pub struct Trimmed {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    dead: VecDeque<Arc<Segment>>,
}

impl Trimmed {
    /// Removes all of them.
    pub fn finish(mut self) -> io::Result<()> {
        while self.remove_one()? {}
        Ok(())
    }

    /// Removes one segment; returns whether there are more.
    pub fn remove_one(&mut self) -> io::Result<bool> {
        let Some(segment) = self.dead.pop_front() else { return Ok(false) };
        remove_if_there(&*self.disk, &segment.path)?;
        if self.dead.is_empty() {
            self.disk.sync_dir(&self.dir)?;
        }
        Ok(!self.dead.is_empty())
    }
}
