//! Owns: what a batch must say behind the end of a log, and how much is stored at once.
//! Never: touches a disk.
//! Invariants: log time is a function of the log: a batch without a clock repeats the time before
//! it. What a leader sent is stored only if its offset and its chain follow from what is here.

use super::Fence;
use super::engine::StoredMembership;
use super::shared::Shared;
use weir_protocol::batch::BatchHeader;
use weir_protocol::peer::LogPlace;
use weir_protocol::types::Offset;
use weir_storage::NewBatch;

/// Bytes of one storage call, unless one index alone is larger: the engine joins what a leader sent
/// in many requests, and counts records, not bytes.
const STORE_BYTES_MAX: usize = 4 << 20;

/// The end of a log, as the next batch must continue it.
pub(super) struct Tail {
    pub log_time_ms: u64,
    log_end: Offset,
    chain: u32,
}

impl Tail {
    pub(super) fn of(shared: &Shared) -> Self {
        let chain = shared.log().chain();
        let bounds = shared.reader.bounds();
        Self { log_time_ms: bounds.log_time_ms, log_end: bounds.log_end, chain }
    }

    /// The fence where received batches do not continue this log, although their index and term say
    /// that they do: the prefixes differ.
    pub(super) fn check(&self, batches: &[NewBatch]) -> Result<(), Fence> {
        let (mut log_end, mut chain) = (self.log_end, self.chain);
        for NewBatch { header, body } in batches {
            let expected = header.expected_chain(chain, control_crc_of(header, body));
            if (header.base_offset, header.chain) != (log_end, expected) {
                let at = header.index;
                return Err(Fence::Engine(format!("the log differs from its leader's at {at}")));
            }
            (log_end, chain) = (header.end_offset(), header.chain);
        }
        Ok(())
    }

    /// Moves behind batches of one index. Offset and chain of those made here are the log's to give:
    /// they are never followed by received ones in the same append.
    pub(super) fn pass(&mut self, batches: &[NewBatch]) {
        let Some(last) = batches.last() else { return };
        self.log_time_ms = self.log_time_ms.max(last.header.log_time_ms);
        (self.log_end, self.chain) = (last.header.end_offset(), last.header.chain);
    }
}

/// Whole indexes that are stored together.
#[derive(Default)]
pub(super) struct Piece {
    pub batches: Vec<NewBatch>,
    pub places: Vec<LogPlace>,
    pub memberships: Vec<StoredMembership>,
    bytes: usize,
}

impl Piece {
    /// Whether these batches belong into the next piece.
    pub(super) fn is_full_before(&self, batches: &[NewBatch]) -> bool {
        !self.batches.is_empty() && self.bytes + bytes_of(batches) > STORE_BYTES_MAX
    }

    /// Adds one index.
    pub(super) fn push(
        &mut self,
        place: LogPlace,
        batches: Vec<NewBatch>,
        membership: Option<StoredMembership>,
    ) {
        self.bytes += bytes_of(&batches);
        self.batches.extend(batches);
        self.places.push(place);
        self.memberships.extend(membership);
    }
}

fn bytes_of(batches: &[NewBatch]) -> usize {
    batches.iter().map(|batch| batch.header.stored_len()).sum()
}

fn control_crc_of(header: &BatchHeader, body: &[bytes::Bytes]) -> Option<u32> {
    let control = body.first()?.get(..header.control_len as usize)?;
    control.last_chunk::<4>().map(|crc| u32::from_le_bytes(*crc))
}
