//! Owns: the types that tie the consensus engine to ours, and the maps between the two: the
//! engine numbers from 0, our [`Index`] from 1 (0 = none); its term is a bare integer.
//! Never: leaves `replication`.
//! Invariant: one runtime type serves production and simulation. Timers and tasks are tokio's, so
//! a paused clock and a seeded scheduler repeat a run; the engine's own random numbers descend
//! from the seed that `Runtime::scope` puts around its start.

use super::refusal::RefusalGuard;
use super::runtime::PromptRuntime;
use openraft::OptionalSend;
use openraft::RaftTypeConfig;
use openraft::impls::leader_id_std;
use openraft::vote::RaftLeaderId;
use openraft_rt::deterministic_rng::DeterministicRng;
use std::fmt;
use weir_protocol::types::{BrokerId, Index, ReplicaId};
use weir_storage::{BatchSlice, NewBatch};

/// The engine's runtime.
pub(super) type Runtime = DeterministicRng<PromptRuntime>;

/// The engine's types, filled with ours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Types;

/// What one index holds, on its way into the log or out of it.
pub(super) enum Batches {
    /// Handed in by this broker; the log stamps them.
    Proposed(Vec<NewBatch>),
    /// Read back. Empty where the reader needs the log id only (the state machine does).
    Stored(Vec<BatchSlice>),
}

impl fmt::Display for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proposed(batches) => write!(f, "{} proposed", batches.len()),
            Self::Stored(slices) => write!(f, "{} stored", slices.len()),
        }
    }
}

impl fmt::Debug for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl RaftTypeConfig for Types {
    type D = Batches;
    type R = ();
    type NodeId = ReplicaId;
    type Node = BrokerId;
    type Term = u64;
    type LeaderId = leader_id_std::LeaderId<u64, ReplicaId>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::impls::EntryPayload<Batches, ReplicaId, BrokerId>;
    type Entry = openraft::impls::Entry<<Self::LeaderId as RaftLeaderId>::Committed, Self::Payload>;
    type AsyncRuntime = Runtime;
    type Responder<T>
        = RefusalGuard<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(super) type Vote = <Types as RaftTypeConfig>::Vote;
pub(super) type EngineEntry = <Types as RaftTypeConfig>::Entry;
pub(super) type LogId = openraft::type_config::alias::LogIdOf<Types>;
pub(super) type Membership = openraft::Membership<ReplicaId, BrokerId>;
pub(super) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Types>;
pub(super) type Snapshot = openraft::type_config::alias::SnapshotOf<Types, bytes::Bytes>;

/// Our number of the engine's index.
pub(super) const fn index_of(engine: u64) -> Index {
    Index(engine + 1)
}

/// The engine's number of our index; none for [`Index`] 0.
pub(super) const fn engine_index(index: Index) -> Option<u64> {
    index.0.checked_sub(1)
}

/// The engine's log id of a batch, or none for [`Index`] 0.
pub(super) fn log_id(term: u64, index: Index) -> Option<LogId> {
    engine_index(index).map(|engine| LogId::new(term.into(), engine))
}
