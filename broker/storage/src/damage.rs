//! What of a log is known to be damaged.
//!
//! Owns: the damaged ranges of one log, in memory and in its file `damage`.
//! Never: judges bytes (recovery and the readers do); drops a range that lies in the log, unless it
//! was found to be whole again.
//! Invariants: ranges rise and do not overlap; there are at most [`DAMAGED_RANGES_MAX`], and what is
//! found beyond them is found anew by every read.
//!
//! ```text
//! magic8 "WEIRDMG\x01" | crc4 of the rest | count4 | ranges of 64 bytes:
//!  0 sequence8  8 start8  16 end8  24 first_index8  32 last_index8  40 first_offset8
//! 48 end_offset8  56 accepted4  60 zero4
//! ```

use crate::disk::{Disk, remove_if_there};
use crate::limits::DAMAGED_RANGES_MAX;
use crate::planted::{Bug, unless};
use crate::sealed::{self, FRAME_BYTES};
use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use weir_protocol::batch::BatchHeader;
use weir_protocol::types::{Index, Offset};

const MAGIC: [u8; 8] = *b"WEIRDMG\x01";
const HEAD_BYTES: usize = 16;
const RANGE_BYTES: usize = 64;
/// One more than a whole file: what follows one is not overlooked.
const FILE_BYTES_MAX: usize = HEAD_BYTES + DAMAGED_RANGES_MAX * RANGE_BYTES + 1;
const FILE_NAME: &str = "damage";

/// Batches that were written once and cannot be read any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedRange {
    /// Sequence of the segment that held them.
    pub sequence: u64,
    /// Where they stood in its file; empty where the file is missing.
    pub positions: Range<u64>,
    /// First index that lacks batches.
    pub first_index: Index,
    /// Last index that lacks batches; before the first where only marks of the log's own are missing.
    pub last_index: Index,
    /// First offset that is missing.
    pub first_offset: Offset,
    /// Behind the last; equal to the first where only control batches are missing.
    pub end_offset: Offset,
    /// Somebody accepted the loss: readers pass over the range.
    pub accepted: bool,
}

impl DamagedRange {
    /// One batch.
    pub(crate) fn of_batch(sequence: u64, position: u64, header: &BatchHeader) -> Self {
        let local = header.batch_type.is_local();
        Self {
            sequence,
            positions: position..position + header.stored_len() as u64,
            first_index: if local { Index(header.index.0 + 1) } else { header.index },
            last_index: header.index,
            first_offset: header.base_offset,
            end_offset: header.end_offset(),
            accepted: false,
        }
    }

    /// Whether nothing that anybody reads is in it: only marks that the log left for itself.
    pub fn is_empty(&self) -> bool {
        self.first_index > self.last_index && self.first_offset == self.end_offset
    }

    /// Whether a range begins where this one does.
    pub(crate) fn begins_with(&self, range: &Self) -> bool {
        (self.sequence, self.positions.start) == (range.sequence, range.positions.start)
    }

    /// Of a range that begins with this accepted one: what of it is accepted, and what is not.
    pub(crate) fn accepted_of(&self, range: Self) -> (Option<Self>, Option<Self>) {
        let ends = |of: &Self| (of.positions.end, of.last_index, of.end_offset);
        let (known, found) = (ends(self), ends(&range));
        if found.0 <= known.0 && found.1 <= known.1 && found.2 <= known.2 {
            return (Some(Self { accepted: true, ..range }), None);
        }
        if self.positions.is_empty()
            || known.0 >= found.0
            || known.1 >= found.1
            || known.2 > found.2
        {
            return (None, Some(range));
        }
        let rest = Self {
            positions: known.0..found.0,
            first_index: Index(known.1.0 + 1),
            first_offset: known.2,
            ..range
        };
        (Some(self.clone()), Some(rest))
    }

    fn holds_offset(&self, offset: Offset) -> bool {
        self.first_offset <= offset && offset < self.end_offset
    }

    fn holds_index(&self, index: Index) -> bool {
        self.first_index <= index && index <= self.last_index
    }
}

impl fmt::Display for DamagedRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { positions, first_index, last_index, first_offset, end_offset, .. } = self;
        match (self.is_empty(), first_offset < end_offset) {
            (true, _) => write!(f, "no records (marks of its own) are damaged: ")?,
            (false, true) => {
                let last_offset = end_offset.0 - 1;
                write!(f, "offsets {first_offset} to {last_offset} (indexes {first_index} to ")?;
                write!(f, "{last_index}) are damaged: ")?;
            }
            (false, false) => {
                write!(f, "control batches (indexes {first_index} to {last_index}) are damaged: ")?;
            }
        }
        write!(f, "segment {}, bytes {} to {}", self.sequence, positions.start, positions.end)
    }
}

/// The damaged ranges of one log.
pub(crate) struct DamageBook {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    ranges: Mutex<Vec<DamagedRange>>,
    /// So that readers of a healthy log take no lock.
    any: AtomicBool,
    /// Held while the file is written.
    storing: Mutex<()>,
}

impl DamageBook {
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: PathBuf, ranges: Vec<DamagedRange>) -> Self {
        let any = AtomicBool::new(!ranges.is_empty());
        Self { disk, dir, ranges: Mutex::new(ranges), any, storing: Mutex::new(()) }
    }

    fn ranges(&self) -> MutexGuard<'_, Vec<DamagedRange>> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn all(&self) -> Vec<DamagedRange> {
        if self.any.load(Ordering::Acquire) { self.ranges().clone() } else { Vec::new() }
    }

    fn find(&self, holds: impl Fn(&DamagedRange) -> bool) -> Option<DamagedRange> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        self.ranges().iter().find(|range| holds(range)).cloned()
    }

    /// The range that holds an offset.
    pub(crate) fn at_offset(&self, offset: Offset) -> Option<DamagedRange> {
        self.find(|range| range.holds_offset(offset))
    }

    /// The range that holds an index.
    pub(crate) fn at_index(&self, index: Index) -> Option<DamagedRange> {
        self.find(|range| range.holds_index(index))
    }

    /// Whether anything behind an index is damaged.
    pub(crate) fn reaches_behind(&self, index: Index) -> bool {
        self.find(|range| range.last_index > index && !range.is_empty()).is_some()
    }

    /// The range that a walk over the segment's batches meets at `position`.
    pub(crate) fn at_position(&self, sequence: u64, position: u64) -> Option<DamagedRange> {
        self.find(|range| {
            range.sequence == sequence
                && (range.positions.start == position || range.positions.contains(&position))
        })
    }

    /// Remembers a range, durably if the disk lets it: the range stays refused in any case.
    pub(crate) fn record(&self, range: DamagedRange) {
        tracing::error!(dir = %self.dir.display(), "{range}");
        {
            let mut ranges = self.ranges();
            if !insert(&mut ranges, range) {
                return;
            }
        }
        self.any.store(true, Ordering::Release);
        if let Err(error) = unless(Bug::DamageMetNotKept, || self.store()) {
            tracing::warn!(dir = %self.dir.display(), %error, "damage was found but not noted");
        }
    }

    /// Drops what lies outside the indexes that the log still holds, the end of a range too.
    pub(crate) fn keep_within(&self, first: Index, last: Index) -> io::Result<()> {
        if !self.any.load(Ordering::Acquire) {
            return Ok(());
        }
        {
            let mut ranges = self.ranges();
            let before = ranges.clone();
            // A range of nothing but a segment's header ends before it begins.
            let reaches = |range: &DamagedRange| range.first_index.max(range.last_index) >= first;
            ranges.retain(|range| reaches(range) && range.first_index <= last);
            ranges.iter_mut().for_each(|range| range.last_index = range.last_index.min(last));
            if *ranges == before {
                return Ok(());
            }
            self.any.store(!ranges.is_empty(), Ordering::Release);
        }
        self.store()
    }

    /// Makes the ranges durable as they are now.
    pub(crate) fn store(&self) -> io::Result<()> {
        let _storing = self.storing.lock().unwrap_or_else(PoisonError::into_inner);
        store(&*self.disk, &self.dir, &self.all())
    }
}

/// Inserts in order, unless the range is known or there are too many.
pub(crate) fn insert(ranges: &mut Vec<DamagedRange>, range: DamagedRange) -> bool {
    let same = |known: &DamagedRange| {
        known.sequence == range.sequence
            && known.positions.start <= range.positions.start
            && range.positions.end <= known.positions.end
    };
    if ranges.iter().any(same) || ranges.len() >= DAMAGED_RANGES_MAX {
        return false;
    }
    // What was found in parts before may turn out to be one.
    ranges.retain(|known| {
        known.sequence != range.sequence
            || known.positions.end <= range.positions.start
            || known.positions.start >= range.positions.end
    });
    let place = |known: &DamagedRange| (known.sequence, known.positions.start);
    let at = ranges.partition_point(|known| place(known) < place(&range));
    ranges.insert(at, range);
    true
}

/// Writes the file, or removes it where nothing is damaged.
pub(crate) fn store(disk: &dyn Disk, dir: &Path, ranges: &[DamagedRange]) -> io::Result<()> {
    if ranges.is_empty() {
        remove_if_there(disk, &dir.join(FILE_NAME))?;
        return disk.sync_dir(dir);
    }
    sealed::replace_small(disk, dir, FILE_NAME, &encode(ranges))
}

/// Reads the file: none where it does not verify, empty where there is none.
pub(crate) fn load(disk: &dyn Disk, dir: &Path) -> io::Result<Option<Vec<DamagedRange>>> {
    let bytes = sealed::read_small(disk, &dir.join(FILE_NAME), FILE_BYTES_MAX)?;
    Ok(bytes.map_or_else(|| Some(Vec::new()), |bytes| decode(&bytes)))
}

fn encode(ranges: &[DamagedRange]) -> Vec<u8> {
    let mut bytes = vec![0; FRAME_BYTES];
    bytes.extend_from_slice(&(ranges.len() as u32).to_le_bytes());
    for range in ranges {
        let numbers = [
            range.sequence,
            range.positions.start,
            range.positions.end,
            range.first_index.0,
            range.last_index.0,
            range.first_offset.0,
            range.end_offset.0,
            u64::from(range.accepted),
        ];
        numbers.iter().for_each(|number| bytes.extend_from_slice(&number.to_le_bytes()));
    }
    sealed::seal(&mut bytes, MAGIC);
    bytes
}

fn decode(bytes: &[u8]) -> Option<Vec<DamagedRange>> {
    let (head, rest) = bytes.split_at_checked(HEAD_BYTES)?;
    let count = u32::from_le_bytes([head[12], head[13], head[14], head[15]]) as usize;
    if !sealed::is_whole(bytes, MAGIC) || rest.len() != count * RANGE_BYTES {
        return None;
    }
    let ranges = rest.chunks(RANGE_BYTES).map(|range| {
        let number =
            |at: usize| range[at * 8..].first_chunk().map_or(0, |field| u64::from_le_bytes(*field));
        DamagedRange {
            sequence: number(0),
            positions: number(1)..number(2),
            first_index: Index(number(3)),
            last_index: Index(number(4)),
            first_offset: Offset(number(5)),
            end_offset: Offset(number(6)),
            accepted: number(7) & 1 != 0,
        }
    });
    Some(ranges.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(sequence: u64, positions: Range<u64>) -> DamagedRange {
        DamagedRange {
            sequence,
            first_index: Index(sequence * 10),
            last_index: Index(sequence * 10 + 1),
            first_offset: Offset(positions.start),
            end_offset: Offset(positions.end),
            positions,
            accepted: sequence == 2,
        }
    }

    #[test]
    fn a_file_survives_and_every_flipped_bit_is_noticed() {
        let ranges = vec![range(1, 4096..5000), range(2, 8192..8192)];
        let bytes = encode(&ranges);
        assert_eq!(decode(&bytes), Some(ranges));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&flipped), None, "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_eq!(decode(&bytes[..len]), None, "{len} bytes");
        }
    }

    #[test]
    fn ranges_are_kept_in_order_once_and_the_wider_one_wins() {
        let mut ranges = Vec::new();
        assert!(insert(&mut ranges, range(2, 4096..5000)));
        assert!(insert(&mut ranges, range(1, 9000..9500)));
        assert!(insert(&mut ranges, range(2, 6000..7000)));
        assert!(!insert(&mut ranges, range(2, 6100..6200)), "known");
        assert!(insert(&mut ranges, range(2, 4096..6500)), "wider than both");
        assert_eq!(ranges, [range(1, 9000..9500), range(2, 4096..6500)]);
    }

    #[test]
    fn there_is_a_limit() {
        let mut ranges = Vec::new();
        let count = DAMAGED_RANGES_MAX as u64;
        assert!((0..count).all(|at| insert(&mut ranges, range(1, at * 10..at * 10 + 5))));
        assert!(!insert(&mut ranges, range(2, 0..5)));
    }
}
