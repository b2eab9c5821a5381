//! Where the holes of a log are.
//!
//! Owns: what stands in front of a damaged range and behind it.
//! Never: decides what is damaged: recovery did.

use super::{Around, Behind, Hole, Kind, Place, Unmendable};
use crate::damage::DamagedRange;
use crate::limits::SEGMENT_HEADER_BYTES;
use crate::meta::Mark;
use crate::recovery::{Examined, ExaminedSegment};
use crate::scan::{Batches, Cursor, Source};
use std::io;
use weir_protocol::types::Index;

/// The holes of a log that was examined, the oldest first.
pub(super) fn holes(examined: &Examined, mark: Option<Mark>) -> io::Result<Vec<Hole>> {
    let ranges = joined(&examined.damage);
    let place_of = |range: &DamagedRange| {
        let segments = &examined.segments;
        match segments.iter().position(|s| s.header.sequence == range.sequence) {
            Some(number) => inside(segments, number, range, (&ranges, mark)),
            None => Ok(of_segments(examined, range)),
        }
    };
    let hole = |range: &DamagedRange| Ok(Hole { range: range.clone(), place: place_of(range)? });
    ranges.iter().map(hole).collect()
}

/// The damaged ranges, those that touch one another as one: what was accepted of a range that grew
/// is noted by itself, and no whole batch stands between.
fn joined(damage: &[DamagedRange]) -> Vec<DamagedRange> {
    let mut joined: Vec<DamagedRange> = Vec::new();
    for range in damage {
        let touched = joined.last_mut().filter(|last| {
            last.sequence == range.sequence && last.positions.end == range.positions.start
        });
        match touched {
            Some(last) if !range.positions.is_empty() => {
                last.positions.end = range.positions.end;
                last.last_index = range.last_index.max(last.last_index);
                last.end_offset = range.end_offset.max(last.end_offset);
                last.accepted &= range.accepted;
            }
            _ => joined.push(range.clone()),
        }
    }
    joined
}

fn around(segment: &ExaminedSegment) -> Around {
    Around { header: segment.header.clone(), path: segment.path.clone() }
}

/// A hole in a segment that is there.
fn inside(
    segments: &[ExaminedSegment],
    number: usize,
    range: &DamagedRange,
    (ranges, mark): (&[DamagedRange], Option<Mark>),
) -> io::Result<Result<Place, Unmendable>> {
    let segment = &segments[number];
    let batches = Batches {
        file: Source::of(&*segment.file),
        salt: segment.header.salt,
        end: segment.file.len(),
    };
    let start = range.positions.start;
    let Some(before) = cursor_at(segment, &batches, ranges, start)? else {
        return Ok(Err(Unmendable::Contradiction));
    };
    let next = segments.get(number + 1).map(|next| &next.header);
    let mark = mark.filter(|mark| mark.sequence == range.sequence && mark.position >= start);
    let found = if range.positions.end < segment.end {
        let whole = batches.whole_at(range.positions.end)?.ok();
        whole.map(|whole| (range.positions.end, Behind::Batch(whole.header, whole.control_crc)))
    } else if let Some(next) = next.filter(|next| next.prev_sequence == range.sequence) {
        // The file may be shorter than the segment was.
        Some((next.prev_cut_pos, Behind::Place(Cursor::before(next))))
    } else {
        mark.map(|mark| (mark.position, Behind::Place(mark.cursor)))
    };
    let Some((end, behind)) = found.filter(|(end, _)| *end >= start) else {
        return Ok(Err(Unmendable::Contradiction));
    };
    let is_newest = number + 1 == segments.len();
    let proven = if is_newest { mark.map_or(0, |mark| mark.position) } else { u64::MAX };
    let kind = Kind::Inside { end, proven };
    Ok(Ok(Place { before, behind, segment: Some(around(segment)), start, kind }))
}

/// What holds at a position of a segment: what its last whole batch in front of it says. None where
/// the segment is not what recovery found.
fn cursor_at(
    segment: &ExaminedSegment,
    batches: &Batches<'_>,
    ranges: &[DamagedRange],
    end: u64,
) -> io::Result<Option<Cursor>> {
    let mut cursor = Cursor::before(&segment.header);
    let mut position = SEGMENT_HEADER_BYTES;
    let lost_at = |position: u64| {
        let here = |range: &&DamagedRange| {
            range.sequence == segment.header.sequence && range.positions.start == position
        };
        ranges.iter().find(here).map(|range| range.positions.end)
    };
    while position < end {
        position = match (lost_at(position), batches.header_at(position)?) {
            (Some(behind), _) => behind.max(position + 1),
            (None, Ok(header)) => {
                cursor.pass(&header);
                position + header.stored_len() as u64
            }
            (None, Err(_)) => return Ok(None),
        };
    }
    Ok((position == end).then_some(cursor))
}

/// A hole of whole segments, and of what was lost at the end of the one in front of them.
fn of_segments(examined: &Examined, range: &DamagedRange) -> Result<Place, Unmendable> {
    let segments = &examined.segments;
    let is_behind = |s: &ExaminedSegment| s.header.prev_sequence == range.sequence;
    let number = segments.iter().position(is_behind).ok_or(Unmendable::Contradiction)?;
    let next = &segments[number].header;
    let front = number.checked_sub(1).map(|front| &segments[front]);
    let before = match front {
        Some(front) => front.cursor,
        None if examined.first_index == Index(1) => Cursor::default(),
        None => return Err(Unmendable::Beginning),
    };
    Ok(Place {
        before,
        behind: Behind::Place(Cursor::before(next)),
        segment: front.map(around),
        start: front.map_or(SEGMENT_HEADER_BYTES, |front| front.end),
        kind: Kind::Segments { last: range.sequence, end: next.prev_cut_pos },
    })
}
