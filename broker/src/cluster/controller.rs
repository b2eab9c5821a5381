//! What the metadata shall say so that the cluster becomes as it shall be.
//!
//! Owns: the order of urgency: what is lost, dead or drains comes before what is merely uneven;
//! [`Controller`], which asks again and again on the broker that leads the metadata.
//! Never: tells a group anything: its leader reads what is wished (`members`). The core remembers
//! nothing and looks at no clock; it is asked again with what has become of its commands, so a
//! controller that dies leaves nothing half known.
//! Invariants: the same view gives the same commands, no more than [`COMMANDS_MAX`] at once; a view
//! that is as it shall be gives none; commands of one round do not get into each other's way.

mod balance;
mod copies;
mod place;
mod reinstate;
mod replace;
mod run;
mod spread;
#[cfg(test)]
mod tests;
mod view;

pub use copies::{metadata_voters, wanted as wanted_metadata};
pub use place::{Seats, TooFewBrokers};
pub use run::Controller;
pub(super) use run::wanted_copies;
pub use view::{DEAD_AFTER, HEARD_WITHIN, HOME_BYTES_MIN, Reach, View, Watch};

use crate::replication::metadata::{Catalog, Command, GATE_HERE};
use weir_protocol::types::ReplicaId;

/// Commands of one round; the rest follows in the next.
pub const COMMANDS_MAX: usize = 64;

/// What is to be said next, the most urgent first.
pub fn decide(view: &View<'_>) -> Vec<Command> {
    let mut commands: Vec<_> = next_gate(view.catalog).into_iter().collect();
    commands.extend(copies::missing(view.catalog));
    let mut plan = replace::Plan::of(view);
    plan.advance();
    plan.replace();
    plan.resize();
    plan.empty();
    // What is uneven waits until nothing is missing.
    if plan.is_idle() {
        spread::spread(&mut plan);
    }
    commands.extend(plan.into_commands());
    commands.extend(balance::preferences(view));
    commands.truncate(COMMANDS_MAX);
    commands
}

/// The gate that all brokers read and that nobody passed yet. Who never told, reads none.
fn next_gate(catalog: &Catalog) -> Option<Command> {
    let told = catalog.brokers.values().map(|card| card.facts.as_ref().map_or(0, |f| f.gate));
    let gate = told.min()?.min(GATE_HERE);
    (gate > catalog.gate).then_some(Command::RaiseGate { gate })
}

/// Notes the partitions whose groups have their first leader, of those that `leads` tells. Whoever
/// leads says so itself: until then nobody publishes.
pub fn formed(catalog: &Catalog, leads: impl Fn(ReplicaId) -> bool) -> Option<Command> {
    let fresh = catalog.partitions().filter(|(_, partition)| !partition.formed);
    let led = fresh.filter_map(|(_, partition)| {
        let mut replicas = partition.replicas.iter().map(|here| here.replica);
        replicas.find(|replica| leads(*replica))
    });
    let replicas: Vec<_> = led.take(FORMED_MAX).collect();
    let knows = catalog.gate > 0 && !replicas.is_empty();
    knows.then_some(Command::NoteFormed { replicas })
}

/// Partitions that are noted by one command: 8 bytes each.
const FORMED_MAX: usize = 1_024;
