//! The frames of the control lane: beats, votes, news, metadata, formation.

use super::{AppendResult, GroupAddress, LogPlace, PeerRefusal, Vote};
use crate::frame::Refusal;
use crate::types::{BrokerId, Index, Name, Offset, ReplicaId, RequestId, Term};
use bytes::Bytes;

/// A leader says that it leads: an append without records, under the committed vote of `from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// Follower and leader.
    pub address: GroupAddress,
    /// The leader's term.
    pub term: Term,
    /// The last place where leader and follower are known to agree.
    pub matching: LogPlace,
    /// What the leader knows to be committed.
    pub commit: LogPlace,
}

/// The newest beats of all replicas that lead followers on the peer.
#[derive(Debug, Clone, PartialEq)]
pub struct Beats {
    /// Number of the frame within its connection; answers name it.
    pub round: u32,
    /// At most one for each address.
    pub beats: Vec<Beat>,
}

/// The answer to one beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beaten {
    /// The frame that the beat came in.
    pub round: u32,
    /// Of the beat.
    pub address: GroupAddress,
    /// What an append would have been answered.
    pub result: AppendResult,
}

/// What a vote is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum VoteKind {
    /// An election.
    Election = 0,
    /// Whether an election would be won; changes nothing.
    Trial = 1,
    /// An election that the leader asked for: its lease does not stand in the way.
    Transfer = 2,
}

impl VoteKind {
    /// The kind of this number, if it is one.
    pub const fn from_u8(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Election),
            1 => Some(Self::Trial),
            2 => Some(Self::Transfer),
            _ => None,
        }
    }
}

/// Asks for a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VoteAsk {
    /// Echoed in the answer.
    pub request: RequestId,
    /// Voter and candidate.
    pub address: GroupAddress,
    /// What for.
    pub kind: VoteKind,
    /// The candidate's vote.
    pub vote: Vote,
    /// The end of the candidate's log.
    pub last: LogPlace,
}

/// The answer to a vote that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Voted {
    /// Of the request.
    pub request: RequestId,
    /// What the voter says, or why it can not vote.
    pub answer: Result<VoteAnswer, PeerRefusal>,
}

/// What a voter says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VoteAnswer {
    /// The vote is given.
    pub granted: bool,
    /// The voter's vote as it stands now.
    pub vote: Vote,
    /// The end of the voter's log.
    pub last: LogPlace,
}

/// A leader hands over to `target`; every voter is told, so that none keeps the leader's lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// Echoed in the answer.
    pub request: RequestId,
    /// Who is told, and the leader.
    pub address: GroupAddress,
    /// The leader's vote.
    pub vote: Vote,
    /// Who shall lead.
    pub target: ReplicaId,
    /// The target must have flushed up to here.
    pub last: LogPlace,
}

/// The answer to a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transferred {
    /// Of the request.
    pub request: RequestId,
    /// What became of it.
    pub answer: Result<TransferAnswer, PeerRefusal>,
}

/// What became of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransferAnswer {
    /// It is obeyed.
    Obeyed,
    /// The vote has become another.
    VoteChanged(Vote),
    /// The log is flushed only up to here.
    NotFlushed(LogPlace),
}

/// What a broker tells every other: how it is, and what it leads.
#[derive(Debug, Clone, PartialEq)]
pub struct News {
    /// Bytes that its disks have left.
    pub free_bytes: u64,
    /// It is shutting down: give it no leader.
    pub draining: bool,
    /// The newest gate that this build can pass.
    pub gate: u32,
    /// Replicas it leads: those that changed, and all of them every now and then.
    pub led: Vec<Led>,
}

/// A replica that leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Led {
    /// Who leads.
    pub replica: ReplicaId,
    /// Since which term: of two that lead, the higher counts.
    pub term: Term,
    /// First offset of the log.
    pub log_start: Offset,
    /// The high watermark (exclusive).
    pub high_watermark: Offset,
    /// Bytes of the log.
    pub bytes: u64,
}

/// A question to the leader of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// Echoed in the answer.
    pub request: RequestId,
    /// Not proposed later than this after it was read; 0 = none.
    pub deadline_ms: u32,
    /// The question.
    pub question: Question,
}

/// What the leader of the metadata is asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Question {
    /// Propose this command, as the metadata encodes it.
    Command(Bytes),
    /// Which index must be applied so that a read is not stale?
    ReadIndex,
}

/// The answer to a question to the leader of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub struct Forwarded {
    /// Of the request.
    pub request: RequestId,
    /// The answer, or the refusal that the client gets.
    pub answer: Result<ForwardedAnswer, Refusal>,
}

/// What the leader of the metadata says.
#[derive(Debug, Clone, PartialEq)]
pub enum ForwardedAnswer {
    /// The command is committed: what it changed, as the metadata encodes it.
    Applied(Bytes),
    /// What must be applied.
    ReadIndex(Index),
}

/// How far a broker has become part of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MemberState {
    /// Not at all.
    Empty = 0,
    /// It obeyed a FORM and waits for the cluster's first record.
    Forming = 1,
    /// It is.
    Member = 2,
}

impl MemberState {
    /// The state of this number, if it is one.
    pub const fn from_u8(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Empty),
            1 => Some(Self::Forming),
            2 => Some(Self::Member),
            _ => None,
        }
    }
}

/// Who a broker is, and how far its formation got.
#[derive(Debug, Clone, PartialEq)]
pub struct Probed {
    /// Of the request.
    pub request: RequestId,
    /// Identity of its cluster; 0 = none yet.
    pub cluster: u128,
    /// Its identity; 0 = none yet.
    pub broker: BrokerId,
    /// How far it is.
    pub state: MemberState,
    /// Brokers that it was told to form a cluster of.
    pub expect: u16,
    /// xxh64 of its seeds: brokers that were told of different ones form nothing.
    pub seeds_hash: u64,
    /// The newest gate that its build can pass.
    pub gate: u32,
    /// Where clients reach it.
    pub client_address: String,
    /// Where brokers reach it.
    pub peer_address: String,
    /// Where it stands: replicas are spread over racks.
    pub rack: Option<Name>,
    /// Its name.
    pub name: Name,
}

/// Form a cluster of these brokers.
#[derive(Debug, Clone, PartialEq)]
pub struct Form {
    /// Echoed in the answer.
    pub request: RequestId,
    /// Identity of the cluster.
    pub cluster: u128,
    /// The identity that the receiver gets in it.
    pub broker: BrokerId,
    /// Every broker of it.
    pub seeds: Vec<Seed>,
}

/// A broker of a cluster that is being formed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// Where brokers reach it.
    pub peer_address: String,
    /// The identity it gets.
    pub broker: BrokerId,
    /// Its replica of the metadata, if it is one of the first voters.
    pub voter: Option<ReplicaId>,
}

/// The answer to FORM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Formed {
    /// Of the request.
    pub request: RequestId,
    /// It is written down, or why not.
    pub answer: Result<(), PeerRefusal>,
}
