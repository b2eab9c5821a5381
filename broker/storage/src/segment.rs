//! One file of a log: its header, its batches, its sparse index.
//!
//! Owns: the segment header's codec, and how far the file is published.
//! Never: decides where a log rolls; stores a byte below the published end.
//! Invariants: the published end only rises; everything below it is never stored to again.
//!
//! ```text
//! two copies of 512 bytes, at 0 and at 2048; batches begin at 4096
//!   0 magic8 "WEIRSEG\x01"    8 crc4 of [12..512)   12 version2   14 min_reader2
//!  16 flags4 (1 = recycled)  20 batch_align4 (32)   24 partition_uuid16
//!  40 segment_seq8           48 salt8               56 base_index8   64 base_offset8
//!  72 prev_term8             80 prev_chain4         84 unflushed_max4
//!  88 prev_segment_seq8      96 prev_cut_pos8      104 capacity8    112 created_ms8
//! 120 zeros
//! ```

use crate::disk::{DiskFile, is_unreadable};
use crate::index::{Marks, SparseIndex};
use crate::limits::{NUMBERS_END, SEGMENT_HEADER_BYTES};
use crate::planted::{Bug, is_planted};
use crate::scan::{Batches, Source};
use crate::sealed;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use weir_protocol::batch::{BatchHeader, HeaderError};
use weir_protocol::limits::BATCH_ALIGN_BYTES;
use weir_protocol::types::{Index, Offset, Term};

/// First bytes of a segment.
const MAGIC: [u8; 8] = *b"WEIRSEG\x01";
/// The version of this build's segments.
pub(crate) const SEGMENT_VERSION: u16 = 1;
/// Flag: the file had an earlier life, whose bytes lie behind the batches.
const FLAG_RECYCLED: u32 = 1;
/// What may have been unflushed at a time in segments that do not say it.
const UNFLUSHED_MAX_UNSAID: u32 = 32 << 20;
const COPY_BYTES: usize = 512;
const COPY_POSITIONS: [u64; 2] = [0, 2048];

/// What a segment says about itself; written once, before the segment is linked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) partition_uuid: u128,
    pub(crate) sequence: u64,
    /// Kills the batches that an earlier life of the file left behind.
    pub(crate) salt: u64,
    /// Index of the first batch.
    pub(crate) base_index: Index,
    /// Offset of the first record.
    pub(crate) base_offset: Offset,
    /// Term and chain of the batch before the first.
    pub(crate) prev_term: Term,
    pub(crate) prev_chain: u32,
    /// The segment before this one (0 = none) and where it ends: what lies behind is cut.
    pub(crate) prev_sequence: u64,
    pub(crate) prev_cut_pos: u64,
    pub(crate) capacity: u64,
    pub(crate) created_ms: u64,
    /// Bytes behind the batches are those of an earlier life of the file.
    pub(crate) recycled: bool,
    /// At no time were more bytes of the segment unflushed.
    pub(crate) unflushed_max: u32,
}

/// Why a segment header cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SegmentHeaderError {
    /// Neither copy is valid.
    Damaged,
    /// The segment needs a newer reader.
    Newer(u16),
}

impl SegmentHeader {
    /// Whether a log writes such a header: indexes begin at 1, links lead back, and no number gets so
    /// far that it could overflow.
    pub(crate) fn is_possible(&self) -> bool {
        (1..NUMBERS_END).contains(&self.base_index.0)
            && self.base_offset.0 < NUMBERS_END
            && self.prev_sequence < self.sequence
    }

    fn encode(&self) -> [u8; COPY_BYTES] {
        let mut bytes = [0u8; COPY_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(12, &SEGMENT_VERSION.to_le_bytes());
        put(14, &SEGMENT_VERSION.to_le_bytes());
        put(16, &(if self.recycled { FLAG_RECYCLED } else { 0 }).to_le_bytes());
        put(20, &(BATCH_ALIGN_BYTES as u32).to_le_bytes());
        put(24, &self.partition_uuid.to_le_bytes());
        put(40, &self.sequence.to_le_bytes());
        put(48, &self.salt.to_le_bytes());
        put(56, &self.base_index.to_le_bytes());
        put(64, &self.base_offset.to_le_bytes());
        put(72, &self.prev_term.to_le_bytes());
        put(80, &self.prev_chain.to_le_bytes());
        put(84, &self.unflushed_max.to_le_bytes());
        put(88, &self.prev_sequence.to_le_bytes());
        put(96, &self.prev_cut_pos.to_le_bytes());
        put(104, &self.capacity.to_le_bytes());
        put(112, &self.created_ms.to_le_bytes());
        sealed::seal(&mut bytes, MAGIC);
        bytes
    }

    fn decode(bytes: &[u8; COPY_BYTES]) -> Result<Self, SegmentHeaderError> {
        let u32_at = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if !sealed::is_whole(bytes, MAGIC) {
            return Err(SegmentHeaderError::Damaged);
        }
        let min_reader = u16::from_le_bytes([bytes[14], bytes[15]]);
        if min_reader > SEGMENT_VERSION {
            return Err(SegmentHeaderError::Newer(min_reader));
        }
        Ok(Self {
            partition_uuid: u128::from(u64_at(24)) | u128::from(u64_at(32)) << 64,
            sequence: u64_at(40),
            salt: u64_at(48),
            base_index: Index(u64_at(56)),
            base_offset: Offset(u64_at(64)),
            prev_term: Term(u64_at(72)),
            prev_chain: u32_at(80),
            prev_sequence: u64_at(88),
            prev_cut_pos: u64_at(96),
            capacity: u64_at(104),
            created_ms: u64_at(112),
            recycled: u32_at(16) & FLAG_RECYCLED != 0,
            unflushed_max: match u32_at(84) {
                0 => UNFLUSHED_MAX_UNSAID,
                said => said,
            },
        })
    }

    /// Writes both copies. The caller flushes.
    pub(crate) fn store(&self, file: &dyn DiskFile) -> std::io::Result<()> {
        let bytes = self.encode();
        COPY_POSITIONS.iter().try_for_each(|position| file.write_at(*position, &bytes))
    }

    /// Reads the first valid copy, from the device: opening a thousand segments is to read a thousand
    /// pages, not what a cache reads ahead of them.
    pub(crate) fn load(file: &dyn DiskFile) -> std::io::Result<Result<Self, SegmentHeaderError>> {
        let mut decided = Self::copies(file)?.into_iter();
        let decided = decided.find(|copy| *copy != Err(SegmentHeaderError::Damaged));
        Ok(decided.unwrap_or(Err(SegmentHeaderError::Damaged)))
    }

    /// Both copies, from the device.
    pub(crate) fn copies(
        file: &dyn DiskFile,
    ) -> std::io::Result<[Result<Self, SegmentHeaderError>; 2]> {
        let mut bytes = vec![0; file.len().min(SEGMENT_HEADER_BYTES) as usize];
        match file.read_device(0, &mut bytes) {
            Err(error) if is_unreadable(&error) => bytes.clear(),
            read => read?,
        }
        let copies = COPY_POSITIONS.map(|position| bytes.get(position as usize..)?.first_chunk());
        Ok(copies.map(|copy| copy.map_or(Err(SegmentHeaderError::Damaged), Self::decode)))
    }
}

/// A segment that is part of a log.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) header: SegmentHeader,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn DiskFile>,
    /// Everything below is complete and never stored to again.
    published: AtomicU64,
    /// What this process did not append lies below: nobody knows that it is in memory.
    found: u64,
    /// Everything below is durable.
    flushed: AtomicU64,
    /// Where a later truncation cut it; batches behind are dead.
    cut: AtomicU64,
    /// No batch is appended any more.
    sealed: AtomicBool,
    /// None while it is only in its file.
    rows: Mutex<Option<SparseIndex>>,
    marks: Mutex<Marks>,
}

impl Segment {
    pub(crate) fn new(
        header: SegmentHeader,
        path: PathBuf,
        file: Arc<dyn DiskFile>,
        (published, rows, marks): (u64, Option<SparseIndex>, Marks),
    ) -> Arc<Self> {
        assert!(published >= SEGMENT_HEADER_BYTES, "batches begin behind the header");
        Arc::new(Self {
            header,
            path,
            file,
            published: AtomicU64::new(published),
            found: published,
            flushed: AtomicU64::new(published),
            cut: AtomicU64::new(u64::MAX),
            sealed: AtomicBool::new(false),
            rows: Mutex::new(rows),
            marks: Mutex::new(marks),
        })
    }

    /// The same segment, read in another way; of its index it knows nothing.
    pub(crate) fn read_by(&self, file: Arc<dyn DiskFile>) -> Arc<Self> {
        let start = (self.published(), None, Marks::default());
        Self::new(self.header.clone(), self.path.clone(), file, start)
    }

    /// Where the batches end that are published and not cut.
    pub(crate) fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire).min(self.cut.load(Ordering::Acquire))
    }

    /// Where the batches begin that this process appended.
    pub(crate) fn found(&self) -> u64 {
        self.found
    }

    /// Cuts everything at and behind `position`; its bytes stay as they are.
    pub(crate) fn cut_at(&self, position: u64) {
        self.cut.fetch_min(position, Ordering::AcqRel);
    }

    /// Bytes that are known to be durable: what `durable_pos` of the next batch says.
    pub(crate) fn flushed_end(&self) -> u64 {
        self.flushed.load(Ordering::Acquire)
    }

    pub(crate) fn flushed(&self, end: u64) {
        let end = if is_planted(Bug::DurablePosNeverSaid) { 0 } else { end };
        self.flushed.fetch_max(end, Ordering::AcqRel);
    }

    /// Readers see bytes below `end` from now on.
    pub(crate) fn publish(&self, end: u64) {
        let before = self.published.swap(end, Ordering::Release);
        assert!(before <= end, "the published end only rises");
        if is_planted(Bug::DurablePosTooLarge) {
            self.flushed(end);
        }
    }

    pub(crate) fn seal(&self) {
        self.sealed.store(true, Ordering::Release);
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    /// Takes a batch at `position` into the index.
    pub(crate) fn note(&self, position: u64, header: &BatchHeader) {
        self.marks().note(header);
        if let Some(rows) = &mut *self.rows() {
            rows.note(position, header);
        }
    }

    pub(crate) fn marks(&self) -> MutexGuard<'_, Marks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn rows(&self) -> MutexGuard<'_, Option<SparseIndex>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The header at `position`, which must lie below the published end.
    pub(crate) fn header_at(
        &self,
        position: u64,
    ) -> std::io::Result<Result<BatchHeader, HeaderError>> {
        self.batches().header_at(position)
    }

    /// Its batches, read without trust.
    pub(crate) fn batches(&self) -> Batches<'_> {
        // A file that lost its end holds less than what was published.
        let end = self.published().min(self.file.len());
        Batches { file: Source::of(&*self.file), salt: self.header.salt, end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_and_every_flipped_bit_is_noticed() {
        let header = SegmentHeader {
            partition_uuid: 0x0123_4567_89ab_cdef_0011_2233_4455_6677,
            sequence: 9,
            salt: 77,
            base_index: Index(5),
            base_offset: Offset(6),
            prev_term: Term(2),
            prev_chain: 3,
            prev_sequence: 8,
            prev_cut_pos: 4096,
            capacity: 1 << 20,
            created_ms: 10,
            recycled: true,
            unflushed_max: 1 << 20,
        };
        let bytes = header.encode();
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
        for bit in 0..COPY_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&flipped), Err(SegmentHeaderError::Damaged));
        }
    }
}
