//! What one segment knows of its batches: a sparse index (offset, index and time to position) and
//! where terms and memberships change.
//!
//! Owns: a row per [`INDEX_STRIDE_BYTES`] of batches; the file that keeps both when a segment is
//! sealed.
//! Never: is the truth: it is built from the batches, as they are appended or recovered, and a file
//! that does not fit its segment is built anew.
//! Invariants: rows rise in position, index, offset and time.
//!
//! ```text
//! <base_index:020>-<sequence:08x>.idx
//!   0 magic8 "WEIRIDX\x01"   8 crc4 of [12..)        12 version2     14 zero2
//!  16 salt8                 24 end8                  32 last_index8  40 log_end8
//!  48 term8                 56 chain4                60 open_index4  64 row_count4
//!  68 term_count4           72 config_count4         76 zero4
//!  80 last_position8 (of the last batch that is not local; 0 = none)
//!  88 rows (position8 index8 offset8 log_time_ms8), terms (first_index8 term8), configs (index8)
//! ```

use crate::disk::Disk;
use crate::limits::INDEX_STRIDE_BYTES;
use crate::scan::Cursor;
use crate::sealed::{self, FRAME_BYTES};
use std::io;
use std::path::{Path, PathBuf};
use weir_protocol::batch::{BatchHeader, BatchType};
use weir_protocol::types::{Index, Offset, Term};

const MAGIC: [u8; 8] = *b"WEIRIDX\x01";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 88;
const ROW_BYTES: usize = 32;
const TERM_BYTES: usize = 16;
const CONFIG_BYTES: usize = 8;

/// Where a batch begins and what comes first in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Bytes from the start of the segment.
    pub position: u64,
    /// Index of the batch.
    pub index: Index,
    /// Offset of its first record.
    pub offset: Offset,
    /// Its log time.
    pub log_time_ms: u64,
}

/// Rows by position.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct SparseIndex {
    pub(crate) rows: Vec<Row>,
}

/// Where terms begin and memberships stand in a segment: few, so that they stay in memory.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Marks {
    /// First index of each term.
    pub(crate) terms: Vec<(Index, Term)>,
    /// Indexes of memberships.
    pub(crate) configs: Vec<Index>,
}

/// What a sealed segment's file says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredIndex {
    pub(crate) salt: u64,
    /// Where its batches end.
    pub(crate) end: u64,
    /// Where its last batch stands that is not local.
    pub(crate) last_position: Option<u64>,
    /// What holds behind it.
    pub(crate) cursor: Cursor,
    pub(crate) marks: Marks,
    pub(crate) rows: SparseIndex,
}

impl SparseIndex {
    /// Notes a batch at `position` when the last row is far enough behind.
    pub(crate) fn note(&mut self, position: u64, header: &BatchHeader) {
        let due = self.rows.last().is_none_or(|row| position - row.position >= INDEX_STRIDE_BYTES);
        if due && !header.batch_type.is_local() {
            self.rows.push(Row {
                position,
                index: header.index,
                offset: header.base_offset,
                log_time_ms: header.log_time_ms,
            });
        }
    }

    /// The last row that is surely not behind `index`.
    pub(crate) fn before_index(&self, index: Index) -> Option<Row> {
        // A row with the same index may stand behind an earlier batch of that index.
        self.last_where(|row| row.index < index)
    }

    /// The last row at or below `offset`.
    pub(crate) fn before_offset(&self, offset: Offset) -> Option<Row> {
        self.last_where(|row| row.offset < offset)
    }

    /// The last row older than `log_time_ms`.
    pub(crate) fn before_time(&self, log_time_ms: u64) -> Option<Row> {
        self.last_where(|row| row.log_time_ms < log_time_ms)
    }

    fn last_where(&self, holds: impl Fn(&Row) -> bool) -> Option<Row> {
        let count = self.rows.partition_point(holds);
        self.rows.get(count.checked_sub(1)?).copied()
    }
}

impl Marks {
    pub(crate) fn note(&mut self, header: &BatchHeader) {
        if self.terms.last().is_none_or(|(_, term)| *term != header.term) {
            self.terms.push((header.index, header.term));
        }
        if header.batch_type == BatchType::Config && self.configs.last() != Some(&header.index) {
            self.configs.push(header.index);
        }
    }

    /// Forgets what stands behind an index: the segment was cut.
    pub(crate) fn truncate_after(&mut self, index: Index) {
        self.terms.retain(|(first, _)| *first <= index);
        self.configs.retain(|at| *at <= index);
    }
}

/// The file that belongs to the segment at `segment`.
pub(crate) fn path_of(segment: &Path) -> PathBuf {
    segment.with_extension("idx")
}

/// Writes the index of a sealed segment beside it. No name needs to be durable: what is missing or
/// torn is built anew.
pub(crate) fn store(disk: &dyn Disk, segment: &Path, index: &StoredIndex) -> io::Result<()> {
    let (path, bytes) = (path_of(segment), encode(index));
    crate::disk::remove_if_there(disk, &path)?;
    let file = disk.create(&path, bytes.len() as u64)?;
    file.write_at(0, &bytes)?;
    file.flush(0..bytes.len() as u64)
}

/// The index of a sealed segment; none when its file is missing or does not verify.
pub(crate) fn load(disk: &dyn Disk, segment: &Path) -> io::Result<Option<StoredIndex>> {
    let bytes = sealed::read_small(disk, &path_of(segment), usize::MAX)?;
    Ok(bytes.and_then(|bytes| decode(&bytes)))
}

fn encode(index: &StoredIndex) -> Vec<u8> {
    let StoredIndex { salt, end, last_position, cursor, marks, rows } = index;
    let SparseIndex { rows } = rows;
    let mut bytes = Vec::with_capacity(HEAD_BYTES + rows.len() * ROW_BYTES);
    bytes.resize(FRAME_BYTES, 0);
    bytes.extend_from_slice(&u32::from(VERSION).to_le_bytes());
    for number in [*salt, *end, cursor.last_index.0, cursor.log_end.0, cursor.term.0] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    let counts = [rows.len(), marks.terms.len(), marks.configs.len(), 0].map(|count| count as u32);
    for number in [cursor.chain, u32::from(cursor.open_index)].into_iter().chain(counts) {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(&last_position.unwrap_or(0).to_le_bytes());
    for row in rows {
        for number in [row.position, row.index.0, row.offset.0, row.log_time_ms] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
    }
    for (first, term) in &marks.terms {
        bytes.extend_from_slice(&first.to_le_bytes());
        bytes.extend_from_slice(&term.to_le_bytes());
    }
    marks.configs.iter().for_each(|index| bytes.extend_from_slice(&index.to_le_bytes()));
    sealed::seal(&mut bytes, MAGIC);
    bytes
}

fn decode(bytes: &[u8]) -> Option<StoredIndex> {
    let (head, rest) = bytes.split_at_checked(HEAD_BYTES)?;
    let u32_at = |at: usize| head[at..].first_chunk().map_or(0, |field| u32::from_le_bytes(*field));
    let u64_at = |at: usize| head[at..].first_chunk().map_or(0, |field| u64::from_le_bytes(*field));
    // Of another version: built anew as well.
    if !sealed::is_whole(bytes, MAGIC) || u32_at(12) != u32::from(VERSION) {
        return None;
    }
    let [rows, terms, configs] = [64, 68, 72].map(|at| u32_at(at) as usize);
    let (rows, rest) = rest.split_at_checked(rows.checked_mul(ROW_BYTES)?)?;
    let (terms, configs_of) = rest.split_at_checked(terms.checked_mul(TERM_BYTES)?)?;
    if configs_of.len() != configs.checked_mul(CONFIG_BYTES)? {
        return None;
    }
    let numbers = |bytes: &[u8]| -> Vec<u64> {
        bytes.as_chunks().0.iter().map(|field| u64::from_le_bytes(*field)).collect()
    };
    let rows = rows.chunks(ROW_BYTES).map(numbers).map(|row| Row {
        position: row[0],
        index: Index(row[1]),
        offset: Offset(row[2]),
        log_time_ms: row[3],
    });
    let rows: Vec<Row> = rows.collect();
    if rows.iter().any(|row| row.index == Index(0) || row.position >= u64_at(24)) {
        return None;
    }
    let terms = terms.chunks(TERM_BYTES).map(numbers).map(|term| (Index(term[0]), Term(term[1])));
    Some(StoredIndex {
        salt: u64_at(16),
        end: u64_at(24),
        last_position: Some(u64_at(80)).filter(|position| *position != 0),
        cursor: Cursor {
            last_index: Index(u64_at(32)),
            log_end: Offset(u64_at(40)),
            term: Term(u64_at(48)),
            chain: u32_at(56),
            open_index: u32_at(60) != 0,
        },
        rows: SparseIndex { rows },
        marks: Marks {
            terms: terms.collect(),
            configs: numbers(configs_of).into_iter().map(Index).collect(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> StoredIndex {
        let (mut rows, mut marks) = (SparseIndex::default(), Marks::default());
        for number in 1..=9 {
            let mut header = BatchHeader::empty(BatchType::Data);
            header.index = Index(number);
            header.term = Term(number / 4);
            header.base_offset = Offset(number * 10);
            header.log_time_ms = number * 100;
            if number == 5 {
                header.batch_type = BatchType::Config;
            }
            rows.note(4096 + number * INDEX_STRIDE_BYTES, &header);
            marks.note(&header);
        }
        let cursor = Cursor {
            last_index: Index(9),
            log_end: Offset(100),
            term: Term(2),
            chain: 77,
            open_index: false,
        };
        StoredIndex { salt: 3, end: 1 << 20, last_position: Some(4096), cursor, marks, rows }
    }

    #[test]
    fn a_file_survives_and_every_flipped_bit_or_lost_byte_is_noticed() {
        let index = stored();
        let bytes = encode(&index);
        assert_eq!(decode(&bytes).as_ref(), Some(&index));
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
    fn terms_and_memberships_are_noted_once() {
        let marks = stored().marks;
        assert_eq!(marks.terms, [(Index(1), Term(0)), (Index(4), Term(1)), (Index(8), Term(2))]);
        assert_eq!(marks.configs, [Index(5)]);
    }
}
