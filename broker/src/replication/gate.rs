//! Owns: what the replicas of a broker know of the gate of its cluster: which formats may be written.
//! Never: decides it; the metadata does.
//! Invariant: it only rises.

use super::metadata::GATE_CLUSTER;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The gate that the cluster has passed, for all replicas of a broker. Cheap to clone; the default is
/// closed: what is written then is what the builds before clusters read.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<AtomicU32>);

impl Gate {
    /// The cluster has passed `gate`.
    pub fn raise(&self, gate: u32) {
        self.0.fetch_max(gate, Ordering::Relaxed);
    }

    /// Whether there may be others who need what only newer builds read.
    pub(super) fn is_of_cluster(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= GATE_CLUSTER
    }
}
