//! Reads sealed segments from the device itself, in search of bytes that rotted.
//!
//! Owns: one piece of a segment at a time; who asks decides how fast.
//! Never: trusts the cache; changes anything but the list of damaged ranges.

use crate::damage::DamagedRange;
use crate::error::ReadError;
use crate::limits::{SCRUB_PIECE_BYTES, SEGMENT_HEADER_BYTES};
use crate::reader::{Found, LogReader, Walk};
use crate::scan::Cursor;
use crate::segment::Segment;
use std::io;
use std::sync::Arc;
use weir_protocol::batch::BatchHeader;
use weir_protocol::limits::BATCH_HEADER_BYTES;

/// How far a log was scrubbed. The default is its beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScrubPlace {
    sequence: u64,
    position: u64,
    cursor: Cursor,
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
    /// Bytes that were read from the device.
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
                position: SEGMENT_HEADER_BYTES,
                cursor: Cursor::before(&segment.header),
            },
        };
        Some(ScrubPiece { log: self.clone(), segment, place })
    }
}

impl ScrubPiece {
    /// Reads the piece; waits for the device. Damage is remembered by the log.
    pub fn run(self) -> Result<Scrubbed, ReadError> {
        let device = |source| ReadError::Device { file: self.segment.path.clone(), source };
        let ScrubPlace { sequence, position, cursor } = self.place;
        let mut walk = Walk::at(self.log.shared(), &self.segment, position, cursor);
        let (mut bytes, mut found) = (0, 0);
        while bytes < SCRUB_PIECE_BYTES {
            let (position, header) = match walk.next().map_err(device)? {
                None => break,
                Some(Found::Lost(_)) => continue,
                Some(Found::Batch(position, header)) => (position, header),
            };
            bytes += header.stored_len() as u64;
            if !self.is_whole(position, &header).map_err(device)? {
                found += 1;
                self.log
                    .shared()
                    .damage
                    .record(DamagedRange::of_batch(sequence, position, &header));
            }
        }
        let next = ScrubPlace { sequence, position: walk.position(), cursor: walk.cursor() };
        Ok(Scrubbed { next, bytes, found })
    }

    /// Whether the device holds the batch whose header the cache shows.
    fn is_whole(&self, position: u64, header: &BatchHeader) -> io::Result<bool> {
        let mut stored = vec![0; header.wire_len()];
        self.segment.file.read_device(position, &mut stored)?;
        let (head, body) = stored.split_at(BATCH_HEADER_BYTES);
        Ok(head == header.encode() && header.check_body(body).is_ok())
    }
}
