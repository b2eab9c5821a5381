//! The frames by which consumers share a durable subscription: its members, and who reads what.
//!
//! Owns: one struct per frame, without its bytes.
//! Never: decides who reads what.

use crate::types::{Name, PartitionId, RequestId, StreamId};

/// Feature bit of HELLO and WELCOME: consumers may share durable subscriptions.
pub const FEATURE_SHARING: u64 = 1;

/// A member of those that share a subscription, chosen at random by its client; never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

/// Joins those that share a durable subscription, on a stream of the leader of partition 0.
/// Answered by DONE, behind which the first ASSIGNMENT follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// Number of the new stream.
    pub stream: StreamId,
    /// Echoed in the answer.
    pub request: RequestId,
    /// What is read.
    pub topic: Name,
    /// What is shared.
    pub subscription: Name,
    /// Who joins; one that is a member already goes on as it was.
    pub member: MemberId,
}

/// All partitions that a member reads from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The member's stream.
    pub stream: StreamId,
    /// Rises with everything that changes who reads what.
    pub epoch: u64,
    /// Its partitions, rising.
    pub partitions: Vec<PartitionId>,
}

/// A member is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Present {
    /// The member's stream.
    pub stream: StreamId,
    /// The newest assignment outside of which the member reads nothing any more; 0 = none yet.
    pub epoch: u64,
}
