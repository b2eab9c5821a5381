//! Reads sealed segments from the device itself, in search of bytes that rotted.
//!
//! Owns: one piece of a segment at a time; who asks decides how fast.
//! Never: trusts the cache, nor fills it; changes anything but the list of damaged ranges; stops at
//! what cannot be read: that is damage too.

mod from_device;

use crate::damage::DamagedRange;
use crate::error::ReadError;
use crate::limits::{SCRUB_PIECE_BYTES, SEGMENT_HEADER_BYTES};
use crate::reader::{Found, LogReader, Walk};
use crate::scan::Cursor;
use crate::segment::{Segment, SegmentHeader};
use from_device::FromDevice;
use std::io;
use std::sync::Arc;
use weir_protocol::batch::BatchHeader;
use weir_protocol::limits::BATCH_HEADER_BYTES;
use weir_protocol::types::Index;

/// How far a log was scrubbed. The default is its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScrubPlace {
    sequence: u64,
    position: u64,
    cursor: Cursor,
    /// Something is lost in front of it.
    behind_loss: bool,
}

/// One piece of a sealed segment.
pub struct ScrubPiece {
    log: LogReader,
    segment: Arc<Segment>,
    place: ScrubPlace,
}

/// What a piece came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scrubbed {
    /// Where to go on.
    pub next: ScrubPlace,
    /// Bytes that the device was asked for.
    pub bytes: u64,
    /// Damaged ranges that were not known before.
    pub found: u64,
}

impl LogReader {
    /// The piece at or behind `place`; none when every sealed segment was read.
    pub fn scrub_from(&self, place: ScrubPlace) -> Option<ScrubPiece> {
        let ends = self.shared().ends();
        let sealed = ends.segments.iter().zip(ends.segments.iter().skip(1));
        let mut left = sealed.map(|(segment, _)| segment).filter(|segment| {
            let sequence = segment.header.sequence;
            sequence > place.sequence
                || (sequence == place.sequence && place.position < segment.published())
        });
        let segment = left.next()?.clone();
        let place = match segment.header.sequence == place.sequence {
            true => place,
            false => ScrubPlace {
                sequence: segment.header.sequence,
                cursor: Cursor::before(&segment.header),
                ..ScrubPlace::default()
            },
        };
        Some(ScrubPiece { log: self.clone(), segment, place })
    }
}

impl ScrubPiece {
    /// Where to go on if the file of this piece cannot be read at all: at the next segment.
    pub fn behind_segment(&self) -> ScrubPlace {
        ScrubPlace { position: u64::MAX, ..self.place }
    }

    /// Reads the piece; waits for the device. Damage is remembered by the log.
    pub fn run(self) -> Result<Scrubbed, ReadError> {
        self.read().map_err(|source| {
            let file = self.segment.path.clone();
            ReadError::Device { file, source }
        })
    }

    fn read(&self) -> io::Result<Scrubbed> {
        let ScrubPlace { sequence, position, cursor, behind_loss } = self.place;
        let (shared, mut found) = (self.log.shared(), 0);
        let known = shared.damage.all();
        let end = (position + SCRUB_PIECE_BYTES).min(self.segment.published());
        if end <= position {
            // It was cut meanwhile.
            return Ok(Scrubbed { next: self.place, bytes: 0, found: 0 });
        }
        let file = Arc::new(FromDevice::holding(self.segment.file.clone(), position..end)?);
        if position < SEGMENT_HEADER_BYTES
            && let Some(range) = self.damage_of_header(&file)?
        {
            found += u64::from(!known.contains(&range));
            shared.damage.record(range);
        }
        let as_on_device = self.segment.read_by(file.clone());
        let position = position.max(SEGMENT_HEADER_BYTES);
        let mut walk = Walk::at(shared, &as_on_device, position, cursor, behind_loss);
        while walk.position() < end {
            match walk.next()? {
                None => break,
                Some(Found::Lost(range)) => found += u64::from(!known.contains(&range)),
                Some(Found::Batch(position, header)) => {
                    if !is_whole(&file, position, &header)? {
                        found += 1;
                        shared.damage.record(DamagedRange::of_batch(sequence, position, &header));
                    }
                }
            }
        }
        let (position, cursor) = (walk.position(), walk.cursor());
        let next = ScrubPlace { sequence, position, cursor, behind_loss: walk.is_behind_loss() };
        Ok(Scrubbed { next, bytes: file.bytes_read(), found })
    }

    /// The range without records that the header is, where no copy of it can be used any more. Its
    /// batches are served until the log is opened anew.
    fn damage_of_header(&self, file: &FromDevice) -> io::Result<Option<DamagedRange>> {
        let path = self.segment.path.display();
        let SegmentHeader { sequence, base_index, base_offset, .. } = self.segment.header;
        let copies = SegmentHeader::copies(file)?;
        let whole = copies.iter().filter(|copy| **copy == Ok(self.segment.header.clone())).count();
        if whole == copies.len() {
            return Ok(None);
        }
        if whole > 0 {
            tracing::warn!(file = %path, "one of two copies of the segment's header is damaged");
            return Ok(None);
        }
        tracing::error!(file = %path, "the segment's header is damaged: no start can use the file");
        Ok(Some(DamagedRange {
            sequence,
            positions: 0..SEGMENT_HEADER_BYTES,
            first_index: base_index,
            last_index: Index(base_index.0 - 1),
            first_offset: base_offset,
            end_offset: base_offset,
            accepted: false,
        }))
    }
}

/// Whether the device holds the whole batch behind a header.
fn is_whole(file: &FromDevice, position: u64, header: &BatchHeader) -> io::Result<bool> {
    let mut stored = vec![0; header.stored_len()];
    file.read(position, &mut stored)?;
    let body = &stored[BATCH_HEADER_BYTES..header.wire_len()];
    let range = position..position + header.stored_len() as u64;
    Ok(header.check_body(body).is_ok() && file.is_readable(&range))
}
