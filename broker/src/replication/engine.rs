//! Owns: the types that tie the consensus engine to ours, and the maps between the two: the
//! engine numbers from 0, our [`Index`] from 1 (0 = none); its term is a bare integer.
//! Never: leaves `replication`.
//! Invariant: one runtime type serves production and simulation. Timers and tasks are tokio's, so
//! a paused clock and a seeded scheduler repeat a run; the engine's own random numbers descend
//! from the seed that `Runtime::scope` puts around its start.

use super::payload::{Batches, Record};
use super::refusal::RefusalGuard;
use super::runtime::PromptRuntime;
use openraft::OptionalSend;
use openraft::RaftTypeConfig;
use openraft::impls::leader_id_std;
use openraft::metrics::{RaftDataMetrics, RaftServerMetrics};
use openraft::type_config::alias::WatchReceiverOf;
use openraft::vote::RaftLeaderId;
use openraft_rt::deterministic_rng::DeterministicRng;
use weir_protocol::peer::{self, LogPlace};
use weir_protocol::types::{BrokerId, Index, ReplicaId, Term};

/// The engine's runtime.
pub(super) type Runtime = DeterministicRng<PromptRuntime>;

/// The engine's types, filled with ours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Types;

impl RaftTypeConfig for Types {
    type D = Batches;
    type R = ();
    type NodeId = ReplicaId;
    type Node = BrokerId;
    type Term = u64;
    type LeaderId = leader_id_std::LeaderId<u64, ReplicaId>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = Record;
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

/// What the engine shows of its group's log while it leads.
pub(super) type DataSeen = WatchReceiverOf<Types, RaftDataMetrics<Types>>;
/// What it shows of its role and its group.
pub(super) type ServerSeen = WatchReceiverOf<Types, RaftServerMetrics<Types>>;
pub(super) type Vote = <Types as RaftTypeConfig>::Vote;
pub(super) type EngineEntry = <Types as RaftTypeConfig>::Entry;
pub(super) type LogId = openraft::type_config::alias::LogIdOf<Types>;
pub(super) type Membership = openraft::Membership<ReplicaId, BrokerId>;
pub(super) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Types>;
pub(super) type Snapshot =
    openraft::type_config::alias::SnapshotOf<Types, super::codec::Checkpoint>;

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

/// Where a log id stands.
pub(super) fn place_of(log_id: &LogId) -> LogPlace {
    LogPlace { term: Term(log_id.committed_leader_id().term), index: index_of(log_id.index()) }
}

/// Where an optional log id stands; none is index 0.
pub(super) fn place_from(log_id: Option<&LogId>) -> LogPlace {
    log_id.map(place_of).unwrap_or_default()
}

/// The engine's log id of a place, or none for index 0.
pub(super) fn log_id_at(place: LogPlace) -> Option<LogId> {
    log_id(place.term.0, place.index)
}

/// The engine's vote of a peer's.
pub(super) fn vote_of(vote: peer::Vote) -> Vote {
    match vote.committed {
        true => Vote::new_committed(vote.term.0, vote.replica),
        false => Vote::new(vote.term.0, vote.replica),
    }
}

/// A peer's vote of the engine's.
pub(super) fn vote_from(vote: &Vote) -> peer::Vote {
    peer::Vote {
        term: Term(vote.leader_id.term),
        replica: vote.leader_id.voted_for,
        committed: vote.committed,
    }
}
