//! Owns: what the engine carries as one index of the log: its batches, and the membership where it
//! is one.
//! Never: decides a field of a batch; the log does, once, where the batch comes into being.
//! Invariant: an index that was stored or received keeps its bytes wherever it goes, the engine's
//! own batches included: only a leader makes a NOOP or a CONFIG.

use super::engine::Membership;
use super::window::Held;
use openraft::entry::RaftPayload;
use std::fmt;
use std::sync::Arc;
use weir_protocol::types::{BrokerId, ReplicaId};
use weir_storage::{BatchSlice, NewBatch};

/// What one index holds, on its way into the log or out of it.
pub(super) enum Batches {
    /// The engine's own, which does not exist yet: the log makes the NOOP or the CONFIG.
    Own,
    /// Handed in by this broker; the log stamps them.
    Proposed(Vec<NewBatch>),
    /// From the leader, verified; the log takes them as they are.
    Received(Vec<NewBatch>),
    /// Read back. Empty where the reader needs the log id only (the state machine does).
    Stored(Vec<BatchSlice>),
}

impl fmt::Display for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own => f.write_str("the engine's own"),
            Self::Proposed(batches) => write!(f, "{} proposed", batches.len()),
            Self::Received(batches) => write!(f, "{} received", batches.len()),
            Self::Stored(slices) => write!(f, "{} stored", slices.len()),
        }
    }
}

impl fmt::Debug for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One index as the engine carries it.
#[derive(Debug)]
pub(super) struct Record {
    pub batches: Batches,
    /// Set where the index is a membership.
    pub membership: Option<Membership>,
    /// Of what was received: given back once it is flushed.
    pub held: Option<Arc<Held>>,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.membership {
            Some(membership) => write!(f, "{}, {membership}", self.batches),
            None => self.batches.fmt(f),
        }
    }
}

impl RaftPayload for Record {
    type D = Batches;
    type NodeId = ReplicaId;
    type Node = BrokerId;

    fn blank() -> Self {
        Self { batches: Batches::Own, membership: None, held: None }
    }

    fn with_normal(self, batches: Batches) -> Self {
        Self { batches, ..self }
    }

    fn with_membership(self, membership: Membership) -> Self {
        Self { membership: Some(membership), ..self }
    }

    fn get_membership(&self) -> Option<Membership> {
        self.membership.clone()
    }
}
