//! Owns: between what peers send and what the engine carries: batches as they are stored, cut into
//! indexes, verified.
//! Never: stamps anything; trusts a length, a type or an order.
//! Invariant: every byte of what leaves here was covered by a checksum of its maker.

use super::codec::{self, CodecError};
use super::engine::{self, EngineEntry};
use super::payload::{Batches, Record};
use crate::planted::{Bug, is_planted};
use bytes::Bytes;
use weir_protocol::batch::{BatchHeader, BatchType, HeaderError};
use weir_protocol::limits::BATCH_HEADER_BYTES;
use weir_protocol::peer::{Append, SegmentPart};
use weir_storage::{BatchSlice, NewBatch};

/// Why what a peer sent is not a piece of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReceiveError {
    #[error("a batch is cut short")]
    Short,
    #[error(transparent)]
    Batch(#[from] HeaderError),
    #[error("a batch of one disk only was sent")]
    Local,
    #[error("indexes are not whole, or not in order")]
    Order,
    #[error("the membership: {0}")]
    Membership(#[from] CodecError),
}

/// The batches of records that were read back, as they are stored.
pub(super) fn parts_of(records: &[EngineEntry]) -> Vec<SegmentPart> {
    let slices = records.iter().flat_map(|record| match &record.payload.batches {
        Batches::Stored(slices) => slices,
        _ => unreachable!("what is sent was read back"),
    });
    parts_from(slices)
}

/// Batches as they are stored, those of one segment together.
pub(super) fn parts_from<'a>(slices: impl Iterator<Item = &'a BatchSlice>) -> Vec<SegmentPart> {
    let mut parts: Vec<SegmentPart> = Vec::new();
    for slice in slices {
        match parts.last_mut().filter(|part| part.salt == slice.salt) {
            Some(part) => part.batches.push(slice.bytes.clone()),
            None => {
                let batches = vec![slice.bytes.clone()];
                parts.push(SegmentPart { salt: slice.salt, batches });
            }
        }
    }
    parts
}

/// The records of an append.
pub(super) fn records_of(append: &Append) -> Result<Vec<EngineEntry>, ReceiveError> {
    let records = records_in(&append.parts)?;
    let first = records.first().map(|record| engine::place_of(&record.log_id).index);
    match first.is_none_or(|first| first.0 == append.prev.index.0 + 1) {
        true => Ok(records),
        false => Err(ReceiveError::Order),
    }
}

/// The records in stored batches of whole indexes, one behind the other.
pub(super) fn records_in(parts: &[SegmentPart]) -> Result<Vec<EngineEntry>, ReceiveError> {
    let mut records: Vec<EngineEntry> = Vec::new();
    let mut open: Vec<NewBatch> = Vec::new();
    for part in parts {
        for slice in &part.batches {
            let mut rest = slice.clone();
            while !rest.is_empty() {
                let batch = batch_of(&mut rest, part.salt)?;
                check_order(records.last(), open.last(), &batch.header)?;
                let is_last = batch.header.is_last_of_index();
                open.push(batch);
                if is_last {
                    records.push(record_of(std::mem::take(&mut open))?);
                }
            }
        }
    }
    if open.is_empty() { Ok(records) } else { Err(ReceiveError::Order) }
}

/// Takes one batch off the front, and its padding.
fn batch_of(rest: &mut Bytes, salt: u64) -> Result<NewBatch, ReceiveError> {
    let header = rest.first_chunk::<BATCH_HEADER_BYTES>().ok_or(ReceiveError::Short)?;
    let header = BatchHeader::decode(header, salt)?;
    if header.batch_type.is_local() {
        return Err(ReceiveError::Local);
    }
    if header.stored_len() > rest.len() {
        return Err(ReceiveError::Short);
    }
    let body = rest.split_to(header.stored_len()).slice(BATCH_HEADER_BYTES..header.wire_len());
    if !is_planted(Bug::ReceivedBodyNotChecked) {
        header.check_body(&body)?;
    }
    Ok(NewBatch { header, body: vec![body] })
}

/// Indexes follow one another, and a batch belongs to the index that is open.
fn check_order(
    before: Option<&EngineEntry>,
    open: Option<&NewBatch>,
    header: &BatchHeader,
) -> Result<(), ReceiveError> {
    let in_order = match (open, before) {
        (Some(open), _) => (open.header.index, open.header.term) == (header.index, header.term),
        (None, Some(before)) => {
            let place = engine::place_of(&before.log_id);
            header.index.0 == place.index.0 + 1 && header.term >= place.term
        }
        (None, None) => header.index.0 > 0,
    };
    if in_order { Ok(()) } else { Err(ReceiveError::Order) }
}

fn record_of(batches: Vec<NewBatch>) -> Result<EngineEntry, ReceiveError> {
    let [NewBatch { header, body }, ..] = batches.as_slice() else {
        return Err(ReceiveError::Order);
    };
    let membership = match header.batch_type {
        BatchType::Config => {
            let content = body.first().map_or(&[][..], |body| super::control_content(header, body));
            Some(codec::decode_membership(content)?)
        }
        _ => None,
    };
    let log_id = engine::log_id(header.term.0, header.index).ok_or(ReceiveError::Order)?;
    let payload = Record { batches: Batches::Received(batches), membership, held: None };
    Ok(EngineEntry { log_id, payload })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weir_protocol::batch::{ATTR_LAST_OF_INDEX, WIRE_SALT};
    use weir_protocol::peer::{LogPlace, Vote};
    use weir_protocol::types::{Index, StreamId, Term};

    fn stored(index: u64, is_last: bool) -> Bytes {
        let mut header = BatchHeader::empty(BatchType::Data);
        (header.index, header.term) = (Index(index), Term(3));
        header.attrs = if is_last { ATTR_LAST_OF_INDEX } else { 0 };
        let body = [index as u8; 40];
        header.body_len = 40;
        header.body_crc = crc32fast::hash(&body);
        let mut bytes = header.stamp(WIRE_SALT, 0, None).to_vec();
        bytes.extend_from_slice(&body);
        bytes.resize(header.stored_len(), 0);
        bytes.into()
    }

    fn append(prev: u64, batches: Vec<Bytes>) -> Append {
        Append {
            stream: StreamId(1),
            number: 1,
            vote: Vote::default(),
            prev: LogPlace { term: Term(3), index: Index(prev) },
            commit: LogPlace::default(),
            parts: vec![SegmentPart { salt: WIRE_SALT, batches }],
        }
    }

    #[test]
    fn batches_of_one_index_become_one_record_however_they_are_cut() {
        let whole: Vec<u8> = [stored(7, false), stored(7, true), stored(8, true)].concat();
        let apart = append(6, vec![stored(7, false), stored(7, true), stored(8, true)]);
        for append in [apart, append(6, vec![whole.into()])] {
            let records = records_of(&append).unwrap();
            let counts = records.iter().map(|record| match &record.payload.batches {
                Batches::Received(batches) => batches.len(),
                other => panic!("{other}"),
            });
            assert_eq!(counts.collect::<Vec<_>>(), [2, 1]);
        }
    }

    #[test]
    fn what_is_not_whole_or_not_in_order_is_refused() {
        let wrong = [
            append(6, vec![stored(7, false)]),
            append(6, vec![stored(7, true), stored(9, true)]),
            append(6, vec![stored(7, false), stored(8, true)]),
            append(6, vec![stored(8, true)]),
        ];
        for append in wrong {
            assert_eq!(records_of(&append).map(drop), Err(ReceiveError::Order));
        }
        let cut = stored(7, true).slice(..150);
        assert_eq!(records_of(&append(6, vec![cut])).map(drop), Err(ReceiveError::Short));
    }

    proptest! {
        /// Padding is the receiver's own; every other bit counts.
        #[test]
        fn a_flipped_bit_is_refused(at in 0usize..168, bit in 0u8..8) {
            let mut bytes = stored(7, true).to_vec();
            bytes[at] ^= 1 << bit;
            prop_assert!(records_of(&append(6, vec![bytes.into()])).is_err());
        }

        #[test]
        fn garbage_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 1..400)) {
            prop_assert!(records_of(&append(6, vec![bytes.into()])).is_err());
        }
    }
}
