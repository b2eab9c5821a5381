//! The frames of the bulk lane: records, snapshots, repair.

use super::limits::PEER_FRAME_COST;
use super::{GroupAddress, LogPlace, PeerRefusal, Vote};
use crate::frame::Grant;
use crate::types::{Index, Offset, RequestId, StreamId};
use bytes::Bytes;

/// Batches that stand in one segment, each with header, body and padding as they are stored.
///
/// The receiver checks header, body and control CRC of each, writes its own header CRC and
/// durable position, and keeps every other byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentPart {
    /// Salt of the segment: the header CRCs are made with it.
    pub salt: u64,
    /// The batches, in the order of the log; several slices when they do not touch on disk.
    pub batches: Vec<Bytes>,
}

impl SegmentPart {
    /// Bytes of the batches.
    pub fn len(&self) -> usize {
        self.batches.iter().map(Bytes::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Records of a leader, whole indexes each, behind `prev`.
#[derive(Debug, Clone, PartialEq)]
pub struct Append {
    /// The stream.
    pub stream: StreamId,
    /// Number of the append within its stream, from 1, without gaps.
    pub number: u64,
    /// The leader's vote.
    pub vote: Vote,
    /// What stands before the first batch.
    pub prev: LogPlace,
    /// What the leader knows to be committed.
    pub commit: LogPlace,
    /// The batches; none only tells `commit`.
    pub parts: Vec<SegmentPart>,
}

impl Append {
    /// What the append costs of its stream's credit.
    pub fn cost(&self) -> u64 {
        self.parts.iter().map(|part| part.len() as u64).sum::<u64>() + PEER_FRAME_COST
    }
}

/// What became of an append or a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendResult {
    /// Everything up to here is flushed and equals the leader's.
    Flushed(LogPlace),
    /// The follower holds something else at `prev`, or nothing.
    Conflict(LogPlace),
    /// The follower has seen a higher vote.
    Outvoted(Vote),
    /// The follower can not say: it is not there, or not whole.
    Refused(PeerRefusal),
}

/// The answer to every append up to `number` that was not answered before.
#[derive(Debug, Clone, PartialEq)]
pub struct Appended {
    /// The stream.
    pub stream: StreamId,
    /// The last append that this answers.
    pub number: u64,
    /// What became of it; anything but flushed ends the stream.
    pub result: AppendResult,
    /// The newest grant of the stream.
    pub grant: Grant,
}

/// What a snapshot stands for; its state follows in parts.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotHead {
    /// Leader and follower.
    pub address: GroupAddress,
    /// The leader's vote.
    pub vote: Vote,
    /// The last place that the snapshot covers.
    pub place: LogPlace,
    /// The chain at that place.
    pub chain: u32,
    /// The log end at that place.
    pub log_end: Offset,
    /// The log time at that place, milliseconds since the epoch.
    pub log_time_ms: u64,
    /// Where the membership was written.
    pub membership_place: LogPlace,
    /// The membership, as replication encodes it.
    pub membership: Bytes,
    /// Bytes of the state.
    pub state_len: u64,
    /// CRC-32 of the state.
    pub state_crc: u32,
}

/// A part of a snapshot's state.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotPart {
    /// The snapshot's stream.
    pub stream: StreamId,
    /// Bytes of the state before this part.
    pub position: u64,
    /// The bytes; their CRC was checked.
    pub content: Bytes,
}

impl SnapshotPart {
    /// What the part costs of its stream's credit.
    pub fn cost(&self) -> u64 {
        self.content.len() as u64 + PEER_FRAME_COST
    }
}

/// Asks for stored batches of a log, to repair with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetch {
    /// Echoed in the answer.
    pub request: RequestId,
    /// Who holds them, who needs them.
    pub address: GroupAddress,
    /// The first index.
    pub first: Index,
    /// The last index, inclusive.
    pub last: Index,
    /// Bytes of batches that the asker has room for; the first index comes whole all the same.
    pub bytes_max: u32,
}

/// The answer to FETCH: whole indexes from the first on, whatever their term: whether they fit is
/// for the asker's chain to tell.
#[derive(Debug, Clone, PartialEq)]
pub struct Fetched {
    /// Of the request.
    pub request: RequestId,
    /// The batches, or why there are none.
    pub answer: Result<FetchedBatches, PeerRefusal>,
}

/// Batches that were asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct FetchedBatches {
    /// More of what was asked for stands behind these.
    pub more: bool,
    /// The batches.
    pub parts: Vec<SegmentPart>,
}
