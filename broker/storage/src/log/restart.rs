//! Begins a log anew behind an index that it does not reach.
//!
//! Owns: the order in which what the log held is given up.
//! Never: begins behind an index of which there is no checkpoint.
//! Invariant: one store of the hard state decides. Before it the log is what it was; behind it the
//! log is empty and begins behind its new start, whatever is still on the disk.

use super::Log;
use crate::checkpoint;
use crate::limits::NUMBERS_END;
use crate::meta::Start;
use crate::planted::{Bug, is_planted};
use crate::scan::Cursor;
use crate::segment::Segment;
use std::io;
use std::sync::Arc;
use weir_protocol::batch::BatchHeader;
use weir_protocol::types::{Index, Offset, Term};

/// What a log continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogStart {
    /// The last index before the log.
    pub index: Index,
    /// Its term.
    pub term: Term,
    /// The chain of its last batch.
    pub chain: u32,
    /// The offset behind the last record before the log.
    pub log_end: Offset,
    /// The log time there, milliseconds since the epoch.
    pub log_time_ms: u64,
}

impl LogStart {
    /// What stands behind a batch that is the last of its index.
    pub(crate) fn behind(header: &BatchHeader) -> Self {
        Self {
            index: header.index,
            term: header.term,
            chain: header.chain,
            log_end: header.end_offset(),
            log_time_ms: header.log_time_ms,
        }
    }

    /// Whether a log can begin there: no number gets so far that it could overflow.
    pub fn is_possible(&self) -> bool {
        let numbers = [self.index.0, self.term.0, self.log_end.0, self.log_time_ms];
        self.index > Index(0) && numbers.iter().all(|number| *number < NUMBERS_END)
    }
}

impl Log {
    /// Gives up everything that the log holds: it is empty then and begins behind `start`, with
    /// `meta` as its owner's hard state. Needs a durable checkpoint at that index; durable when this
    /// returns. A failure behind the point of no return fences the log.
    pub fn restart_behind(&mut self, start: LogStart, meta: &[u8]) -> io::Result<()> {
        self.check_fence()?;
        self.check_start(&start)?;
        // Nobody waits for a flush of what goes.
        self.shared.flush.settle(self.device.flushes.observer()).map_err(io::Error::other)?;
        let cursor = Cursor {
            last_index: start.index,
            open_index: false,
            log_end: start.log_end,
            term: start.term,
            chain: start.chain,
        };
        let begun = Start { sequence: self.sequence, log_time_ms: start.log_time_ms, cursor };
        let mut dead: Vec<Arc<Segment>> = self.shared.ends().segments.iter().cloned().collect();
        if is_planted(Bug::RestartedTooEarly) {
            self.remove(&std::mem::take(&mut dead))?;
        }
        let stored = self.lock_meta().store(|state| state.begin_anew(begun, meta));
        self.fence_unless(stored)?;
        self.forget_all(&begun, &dead);
        let removed = self.remove(&dead);
        let kept = removed.and_then(|()| {
            self.shared.damage.keep_within(Index(start.index.0 + 1), Index(u64::MAX))
        });
        self.fence_unless(kept)
    }

    fn check_start(&self, start: &LogStart) -> io::Result<()> {
        let invalid = |text| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        if !start.is_possible() {
            return invalid(format!("no log begins behind {start:?}"));
        }
        let disk = &**self.device.disk();
        let listed = checkpoint::list(disk, &self.dir)?.contains(&start.index);
        let uuid = Some(self.options.uuid);
        if !listed || checkpoint::read(disk, &self.dir, uuid, start.index)?.is_none() {
            return invalid(format!("no checkpoint of index {} is whole", start.index));
        }
        Ok(())
    }

    /// Nothing in memory is of what was before.
    fn forget_all(&mut self, begun: &Start, dead: &[Arc<Segment>]) {
        let Start { cursor, log_time_ms, .. } = *begun;
        {
            let mut ends = self.shared.ends_mut();
            ends.segments.clear();
            ends.recent.clear();
            (ends.first_index, ends.first_offset) = (cursor.next_index(), cursor.log_end);
            (ends.last_index, ends.log_end) = (cursor.last_index, cursor.log_end);
            (ends.last, ends.log_time_ms) = (None, log_time_ms);
        }
        self.shared.forget_loaded(dead);
        self.shared.flush.restart(cursor.last_index);
        self.cursor = cursor;
        (self.position, self.prepared_to) = (0, 0);
        (self.marked_to, self.asked_at) = (0, 0);
        self.note_room();
    }
}
