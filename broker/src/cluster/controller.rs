//! What has to be done so that the cluster is as it shall be.
//!
//! Owns: the order of urgency: what is lost or drains comes before what is merely uneven.
//! Never: does any of it, remembers anything or looks at a clock; it is asked again with what has
//! become of its orders, so a controller that dies leaves nothing half known.
//! Invariants: the same view gives the same orders; a view that is as it shall be gives none;
//! orders of one round do not get into each other's way.

mod balance;
mod place;
mod replace;
mod spread;
#[cfg(test)]
mod tests;

pub use balance::{TRANSFERS_APART, TRANSFERS_PERCENT, TransferPace};
pub use place::{Seats, TooFewBrokers};

use crate::replication::metadata::{Catalog, Command, GATE_HERE};
use std::collections::BTreeSet;
use weir_protocol::types::{BrokerId, ReplicaId};

/// What is known when it is decided.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The metadata as it is committed.
    pub catalog: &'a Catalog,
    /// The replicas that lead, as far as it was told.
    pub leaders: &'a BTreeSet<ReplicaId>,
    /// The brokers that were heard of lately.
    pub reachable: &'a BTreeSet<BrokerId>,
}

impl View<'_> {
    /// Whether a broker may be given more to hold or to lead.
    fn is_usable(&self, broker: BrokerId) -> bool {
        self.catalog.is_active(broker) && self.reachable.contains(&broker)
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Commit a change of the metadata.
    Propose(Command),
    /// Let the leader of a partition hand over.
    Transfer {
        /// Who leads.
        from: ReplicaId,
        /// Who shall.
        to: ReplicaId,
    },
}

/// What is to be done next, the most urgent first, with no more transfers than `transfers`.
pub fn decide(view: &View<'_>, transfers: usize) -> Vec<Order> {
    let first = next_gate(view.catalog).into_iter().chain(metadata_copies(view.catalog));
    let mut orders: Vec<_> = first.map(Order::Propose).collect();
    let mut plan = replace::Plan::of(view);
    plan.replace();
    plan.resize();
    plan.drain();
    // What is uneven waits until nothing is missing.
    if plan.is_empty() && view.catalog.moves.is_empty() {
        spread::spread(&mut plan);
    }
    orders.extend(plan.into_commands().into_iter().map(Order::Propose));
    orders.extend(balance::preferences(view).into_iter().map(Order::Propose));
    orders.extend(balance::transfers(view, transfers));
    orders
}

/// The gate that all brokers read and that nobody passed yet. Who never told, reads none.
fn next_gate(catalog: &Catalog) -> Option<Command> {
    let told = catalog.brokers.values().map(|card| card.facts.as_ref().map_or(0, |f| f.gate));
    let gate = told.min()?.min(GATE_HERE);
    (gate > catalog.gate).then_some(Command::RaiseGate { gate })
}

/// Every broker keeps a copy of the metadata.
fn metadata_copies(catalog: &Catalog) -> impl Iterator<Item = Command> {
    let has = |broker| catalog.metadata.iter().any(|placement| placement.broker == broker);
    let without = catalog.active().filter(move |card| catalog.gate > 0 && !has(card.id));
    without.map(|card| Command::JoinMetadata { broker: card.id })
}
