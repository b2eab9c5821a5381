//! Reads the batches of one segment file in order, trusting nothing.
//!
//! Owns: what must hold from one batch to the next, and the search for the next whole batch behind
//! bytes that cannot be read.
//! Never: decides what bytes that cannot be read mean: recovery does.

use crate::disk::{DiskFile, is_unreadable, pages};
use crate::error::CorruptionKind;
use crate::limits::NUMBERS_END;
use crate::planted::{Bug, is_planted};
use crate::segment::SegmentHeader;
use std::cell::Cell;
use std::io;
use weir_protocol::batch::{BATCH_MAGIC, BatchHeader, BatchType, HeaderError};
use weir_protocol::limits::{BATCH_ALIGN_BYTES, BATCH_HEADER_BYTES};
use weir_protocol::types::{Index, Offset, Term};

/// What holds behind a batch, and so what the next one must say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Cursor {
    pub(crate) last_index: Index,
    /// More batches of the last index follow.
    pub(crate) open_index: bool,
    pub(crate) log_end: Offset,
    /// Term and chain of the last batch that is not local.
    pub(crate) term: Term,
    pub(crate) chain: u32,
}

impl Cursor {
    /// In front of the first batch of a segment.
    pub(crate) fn before(header: &SegmentHeader) -> Self {
        Self {
            last_index: Index(header.base_index.0 - 1),
            open_index: false,
            log_end: header.base_offset,
            term: header.prev_term,
            chain: header.prev_chain,
        }
    }

    /// The index of the next batch.
    pub(crate) fn next_index(&self) -> Index {
        if self.open_index { self.last_index } else { Index(self.last_index.0 + 1) }
    }

    /// Whether a batch may stand here, its chain included.
    pub(crate) fn is_followed_by(&self, header: &BatchHeader, control_crc: Option<u32>) -> bool {
        let chain = match header.batch_type.is_local() {
            true => self.chain,
            false => header.expected_chain(self.chain, control_crc),
        };
        self.is_at(header) && (header.chain == chain || is_planted(Bug::ChainNotChecked))
    }

    /// Whether a batch has the index and the offset that are due here.
    pub(crate) fn is_at(&self, header: &BatchHeader) -> bool {
        let due = if header.batch_type.is_local() { self.last_index } else { self.next_index() };
        (header.index, header.base_offset) == (due, self.log_end)
    }

    /// Whether a batch may stand somewhere behind, where batches between were lost.
    fn may_precede(&self, header: &BatchHeader) -> bool {
        let least = if header.batch_type.is_local() { self.last_index } else { self.next_index() };
        header.index >= least && header.base_offset >= self.log_end
    }

    /// Moves behind a batch.
    pub(crate) fn pass(&mut self, header: &BatchHeader) {
        *self = Self {
            last_index: header.index,
            open_index: !header.batch_type.is_local() && !header.is_last_of_index(),
            log_end: header.end_offset(),
            term: header.term,
            chain: header.chain,
        };
    }

    /// Moves in front of a batch that is whole while those before it are lost. What it must chain
    /// to is not known: it is taken at its word.
    pub(crate) fn jump_to(&mut self, header: &BatchHeader) {
        if header.index > self.last_index {
            let local = header.batch_type.is_local();
            self.last_index = if local { header.index } else { Index(header.index.0 - 1) };
            self.open_index = false;
        }
        self.log_end = header.base_offset;
    }
}

/// Index and offset of what stands behind a stretch of batches, which none of them reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Edge {
    pub(crate) index: Index,
    pub(crate) offset: Offset,
}

impl Edge {
    /// Where nothing tells what stands behind.
    pub(crate) const UNKNOWN: Self = Self { index: Index(u64::MAX), offset: Offset(u64::MAX) };

    /// In front of the first batch of a segment.
    pub(crate) fn before(header: &SegmentHeader) -> Self {
        Self { index: header.base_index, offset: header.base_offset }
    }

    /// Behind everything that a cursor passed.
    pub(crate) fn behind(cursor: &Cursor) -> Self {
        Self { index: Index(cursor.last_index.0 + 1), offset: cursor.log_end }
    }

    fn is_behind(&self, header: &BatchHeader) -> bool {
        header.index < self.index && header.end_offset() <= self.offset
    }
}

/// A file as far as its device can read it. The rest is noise, over which no checksum is right.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    file: &'a dyn DiskFile,
    /// Told when some of it cannot be read.
    unreadable: Option<&'a Cell<bool>>,
}

impl<'a> Source<'a> {
    pub(crate) fn of(file: &'a dyn DiskFile) -> Self {
        Self { file, unreadable: None }
    }

    pub(crate) fn telling(file: &'a dyn DiskFile, unreadable: &'a Cell<bool>) -> Self {
        Self { file, unreadable: Some(unreadable) }
    }

    pub(crate) fn read_at(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        match self.file.read_at(position, into) {
            Err(error) if is_unreadable(&error) => {}
            read => return read,
        }
        self.unreadable.inspect(|unreadable| unreadable.set(true));
        for (at, page) in pages(position, into) {
            match self.file.read_at(at, page) {
                Err(error) if is_unreadable(&error) => page.fill(NOISE),
                read => read?,
            }
        }
        Ok(())
    }
}

/// Stands for bytes that cannot be read.
const NOISE: u8 = 0xa5;

/// The batches of one file, below `end`.
pub(crate) struct Batches<'a> {
    pub(crate) file: Source<'a>,
    pub(crate) salt: u64,
    pub(crate) end: u64,
}

/// A batch that is whole in itself.
pub(crate) struct Whole {
    pub(crate) header: BatchHeader,
    pub(crate) body: Vec<u8>,
    /// Nothing but zeros stands behind its body.
    pub(crate) zero_padded: bool,
    /// What the chain takes in of its control section.
    pub(crate) control_crc: Option<u32>,
}

impl Batches<'_> {
    /// The batch at `position`, if it is whole, follows `cursor` and does not reach over `edge`.
    pub(crate) fn at(
        &self,
        position: u64,
        (cursor, edge): (&Cursor, Edge),
    ) -> io::Result<Result<Whole, CorruptionKind>> {
        Ok(match self.whole_at(position)? {
            Err(error) => Err(CorruptionKind::Batch(error)),
            Ok(whole) => {
                let follows = cursor.is_followed_by(&whole.header, whole.control_crc);
                let fits = follows && edge.is_behind(&whole.header);
                if fits { Ok(whole) } else { Err(CorruptionKind::OutOfPlace) }
            }
        })
    }

    /// The batch at `position`, if header and body verify.
    pub(crate) fn whole_at(&self, position: u64) -> io::Result<Result<Whole, HeaderError>> {
        let header = match self.header_at(position)? {
            Ok(header) => header,
            Err(error) => return Ok(Err(error)),
        };
        let mut body = vec![0; header.stored_len() - BATCH_HEADER_BYTES];
        self.file.read_at(position + BATCH_HEADER_BYTES as u64, &mut body)?;
        let zero_padded = body[header.body_len as usize..].iter().all(|byte| *byte == 0);
        body.truncate(header.body_len as usize);
        let checked = header.check_body(&body);
        Ok(checked.map(|control_crc| Whole { header, body, zero_padded, control_crc }))
    }

    /// The header at `position`, of a batch that ends where batches may be.
    pub(crate) fn header_at(&self, position: u64) -> io::Result<Result<BatchHeader, HeaderError>> {
        if position + BATCH_HEADER_BYTES as u64 > self.end {
            return Ok(Err(HeaderError::Lengths));
        }
        let mut bytes = [0u8; BATCH_HEADER_BYTES];
        self.file.read_at(position, &mut bytes)?;
        let fits = |header: &BatchHeader| {
            position + header.stored_len() as u64 <= self.end && is_possible(header)
        };
        let header = BatchHeader::decode(&bytes, self.salt);
        Ok(header.and_then(|header| fits(&header).then_some(header).ok_or(HeaderError::Lengths)))
    }

    /// The next whole batch at or behind `from` that may stand between `cursor` and `edge`.
    pub(crate) fn next_whole(
        &self,
        from: u64,
        (cursor, edge): (&Cursor, Edge),
    ) -> io::Result<Option<(u64, BatchHeader)>> {
        // A batch never says that more was flushed than stood in front of it: this one was written
        // further behind, and is here in a page that is in the wrong place.
        let is_misplaced = |position, header: &BatchHeader| header.durable_pos > position;
        self.next_where(from, |position, header| {
            let fits = cursor.may_precede(header) && edge.is_behind(header);
            fits && !is_misplaced(position, header)
        })
    }

    /// Where the next whole batch stands at or behind `from`, whatever it is.
    pub(crate) fn next_whole_anywhere(&self, from: u64) -> io::Result<Option<u64>> {
        Ok(self.next_where(from, |_, _| true)?.map(|(position, _)| position))
    }

    fn next_where(
        &self,
        from: u64,
        fits: impl Fn(u64, &BatchHeader) -> bool,
    ) -> io::Result<Option<(u64, BatchHeader)>> {
        let mut position = from.next_multiple_of(BATCH_ALIGN_BYTES as u64);
        while let Some(found) = self.next_header(position)? {
            if let Ok(Whole { header, .. }) = self.whole_at(found)?
                && fits(found, &header)
            {
                return Ok(Some((found, header)));
            }
            position = found + BATCH_ALIGN_BYTES as u64;
        }
        Ok(None)
    }

    /// Where the next valid header stands at or behind `from`.
    fn next_header(&self, from: u64) -> io::Result<Option<u64>> {
        let mut found = None;
        for_each_block(self.file, from..self.end, |position, block| {
            found = headers_in(block, self.salt).next().map(|(at, _)| position + at);
            found.is_none()
        })?;
        Ok(found)
    }

    /// What the valid headers at and behind `from` testify to: see [`flushed_below`].
    pub(crate) fn evidence_behind(&self, from: u64, unflushed_max: u64) -> io::Result<Evidence> {
        let mut evidence = Evidence::default();
        for_each_block(self.file, from..self.end, |position, block| {
            for (at, header) in headers_in(block, self.salt) {
                evidence.headers = true;
                let flushed = flushed_below(&header, position + at, unflushed_max);
                evidence.flushed = evidence.flushed.max(flushed);
            }
            true
        })?;
        Ok(evidence)
    }
}

/// Whether a log writes such a header: none gets so far that its numbers could overflow.
fn is_possible(header: &BatchHeader) -> bool {
    header.index.0 < NUMBERS_END && header.base_offset.0 < NUMBERS_END
}

/// What valid headers testify to.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Evidence {
    /// There is one.
    pub(crate) headers: bool,
    /// Everything below was flushed.
    pub(crate) flushed: u64,
}

/// How far a segment was flushed when a batch was written at `position`: as far as it says, and all
/// but what may be unflushed at any time.
pub(crate) fn flushed_below(header: &BatchHeader, position: u64, unflushed_max: u64) -> u64 {
    let said = header.durable_pos.min(position);
    let is_evidence = header.batch_type != BatchType::Seal;
    let end = position + header.stored_len() as u64;
    // A SEAL is written beyond the limit of what may be unflushed.
    if is_evidence { said.max(end.saturating_sub(unflushed_max)) } else { said }
}

/// The valid headers that begin in the part of a block that no later block repeats.
fn headers_in(block: &[u8], salt: u64) -> impl Iterator<Item = (u64, BatchHeader)> {
    let count = block.len().saturating_sub(BATCH_HEADER_BYTES - 1);
    (0..count).step_by(BATCH_ALIGN_BYTES).filter_map(move |at| {
        let candidate = block[at..].first_chunk::<BATCH_HEADER_BYTES>();
        let bytes = candidate.filter(|bytes| bytes[..4] == BATCH_MAGIC)?;
        BatchHeader::decode(bytes, salt).ok().map(|header| (at as u64, header))
    })
}

/// Bytes that are read at a time.
const BLOCK_BYTES: u64 = 1 << 20;

/// Calls `look` with the bytes of a range, block by block, until it says no. A header that begins
/// in a block is seen whole.
fn for_each_block(
    file: Source<'_>,
    range: std::ops::Range<u64>,
    mut look: impl FnMut(u64, &[u8]) -> bool,
) -> io::Result<()> {
    let mut position = range.start;
    let mut block = Vec::new();
    while position < range.end {
        let len = (range.end - position).min(BLOCK_BYTES + BATCH_HEADER_BYTES as u64);
        block.resize(len as usize, 0);
        file.read_at(position, &mut block)?;
        if !look(position, &block) {
            return Ok(());
        }
        position += BLOCK_BYTES;
    }
    Ok(())
}

/// Where the last byte that is not zero ends, within a range; none where all are zeros.
pub(crate) fn last_byte_in(
    file: Source<'_>,
    range: std::ops::Range<u64>,
) -> io::Result<Option<u64>> {
    let mut end = None;
    for_each_block(file, range, |position, block| {
        // Nearly always all zeros: compared by pages, which is as quick as memory.
        let pages = block.chunks(ZEROS.len()).enumerate();
        let is_dirty = |(_, page): &(usize, &[u8])| **page != ZEROS[..page.len()];
        if let Some((number, page)) = pages.rev().find(is_dirty) {
            let last = page.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
            end = Some(position + (number * ZEROS.len() + last) as u64);
        }
        true
    })?;
    Ok(end)
}

const ZEROS: [u8; 4096] = [0; 4096];

/// Whether a range of a file, looked at here and there, holds anything but zeros.
pub(crate) fn is_touched(file: Source<'_>, range: std::ops::Range<u64>) -> io::Result<bool> {
    let mut page = [0; ZEROS.len()];
    let mut position = range.start;
    while position + page.len() as u64 <= range.end {
        file.read_at(position, &mut page)?;
        if page != ZEROS {
            return Ok(true);
        }
        position += BLOCK_BYTES;
    }
    Ok(false)
}
