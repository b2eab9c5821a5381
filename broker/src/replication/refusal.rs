//! Owns: how the refusal of a proposal finds its way back, and the count of proposals in flight.
//! Never: allocates or waits. A refusal lowers a register in the replica's state: the only thing
//! the partition must learn is from which number on a run is lost.
//! Invariant: every proposal handed to the engine holds one [`RefusalGuard`]; however the engine
//! lets go of it, the count falls once and a proposal that was not applied is reported.

use super::engine::Types;
use super::{Refused, ReplicaState, StoredOutcome};
use openraft::OptionalSend;
use openraft::errors::ClientWriteError;
use openraft::raft::ClientWriteResult;
use openraft::raft::responder::Responder;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::watch;

/// What all guards of one replica share.
pub(super) struct Flight {
    in_flight: AtomicUsize,
    state: watch::Sender<ReplicaState>,
}

impl Flight {
    pub(super) fn new(state: watch::Sender<ReplicaState>) -> Arc<Self> {
        Arc::new(Self { in_flight: AtomicUsize::new(0), state })
    }

    /// Counts one more proposal, unless `max` are in flight already.
    pub(super) fn admit(
        self: &Arc<Self>,
        place: Refused,
        max: usize,
    ) -> Option<RefusalGuard<ClientWriteResult<Types>>> {
        let admitted = self.in_flight.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
            (count < max).then_some(count + 1)
        });
        admitted.ok()?;
        Some(RefusalGuard(Box::new(Held {
            flight: self.clone(),
            place,
            pending: true,
            outcome_of: outcome_of_write,
        })))
    }

    /// Proposals that were neither applied nor refused yet.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    fn refuse(&self, refused: Refused) {
        self.state.send_modify(|state| {
            state.refused = Some(match state.refused {
                Some(known) => known.merge(refused),
                None => refused,
            });
        });
    }
}

/// Waits with one proposal for its fate.
///
/// The engine asks for a responder of any result type; `outcome_of` is set where the type is
/// known, so that the guard can stay generic. Boxed, because the engine keeps a ring of thousands
/// of responders for every group.
pub(super) struct RefusalGuard<T>(Box<Held<T>>);

struct Held<T> {
    flight: Arc<Flight>,
    /// The refusal to report, should it come to that.
    place: Refused,
    pending: bool,
    outcome_of: fn(&T) -> Option<StoredOutcome>,
}

/// The engine checks the leader before it appends, so `ForwardToLeader` is certain; a discarded
/// proposal was appended, and another replica may have committed it.
fn outcome_of_write(result: &ClientWriteResult<Types>) -> Option<StoredOutcome> {
    match result {
        Ok(_) => None,
        Err(ClientWriteError::ForwardToLeader(_)) => Some(StoredOutcome::NotStored),
        Err(_) => Some(StoredOutcome::Unknown),
    }
}

impl<T> RefusalGuard<T> {
    /// Counts the proposal out, then reports: who sees the report finds the count right.
    fn land(&mut self, refused: Option<StoredOutcome>) {
        if !std::mem::take(&mut self.0.pending) {
            return;
        }
        self.0.flight.in_flight.fetch_sub(1, Ordering::AcqRel);
        if let Some(outcome) = refused {
            self.0.flight.refuse(Refused { outcome, ..self.0.place });
        }
    }
}

impl<T: OptionalSend + 'static> Responder<Types, T> for RefusalGuard<T> {
    fn on_complete(mut self, result: T) {
        self.land((self.0.outcome_of)(&result));
    }
}

impl<T> Drop for RefusalGuard<T> {
    fn drop(&mut self) {
        self.land(Some(StoredOutcome::Unknown));
    }
}
