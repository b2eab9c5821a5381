//! Who keeps the metadata, and who of them votes.
//!
//! Owns: how many vote, and which; carried out by the leader of the metadata like by that of any
//! partition.
//! Never: gives up a vote without another for it.
//! Invariants: one, three or five vote, as many as there are brokers for; with those who vote as
//! they shall, the same are chosen again; a broker keeps its copy until somebody removes it, vote or
//! not: without one it would show what once was to everybody who asks it, and would not see that it
//! is to hold something again.

use super::View;
use crate::cluster::members::Wanted;
use crate::replication::metadata::{Catalog, Command, Placement, Stage};
use std::collections::BTreeSet;
use weir_protocol::types::{BrokerId, ReplicaId};

/// From so many active brokers on, five replicas of the metadata vote where nothing else is set.
const FIVE_VOTE_FROM_BROKERS: usize = 7;

/// How many replicas of the metadata shall vote, of a cluster of `brokers` active ones. `setting`: 0 =
/// by the number of brokers; else no more than this.
pub fn metadata_voters(setting: u8, brokers: usize) -> usize {
    let wished = match setting {
        0 if brokers >= FIVE_VOTE_FROM_BROKERS => 5,
        0 => 3,
        set => usize::from(set),
    };
    // An even number bears no more losses than the odd one below.
    let most = wished.min(brokers).max(1);
    if most.is_multiple_of(2) { most - 1 } else { most }
}

/// Every active broker keeps a copy of the metadata.
pub(super) fn missing(catalog: &Catalog) -> impl Iterator<Item = Command> {
    let has = |broker| catalog.metadata.iter().any(|placement| placement.broker == broker);
    let without = catalog.active().filter(move |card| catalog.gate > 0 && !has(card.id));
    without.map(|card| Command::JoinMetadata { broker: card.id })
}

/// What the metadata's own group shall be. `setting`: as for [`metadata_voters`].
pub fn wanted(view: &View<'_>, setting: u8) -> Wanted {
    let catalog = view.catalog;
    let holds = catalog.partitions().flat_map(|(_, partition)| &partition.replicas);
    let holding: BTreeSet<BrokerId> = holds.map(|placement| placement.broker).collect();
    let is_needed =
        |here: &&Placement| catalog.is_active(here.broker) || holding.contains(&here.broker);
    let count = metadata_voters(setting, catalog.active().count());
    let voters = choose(view, catalog.metadata.iter().filter(is_needed).collect(), count);
    // Where nobody could take the vote over, who has it keeps it.
    let votes = |here: &&Placement| here.stage == Stage::Voter;
    let stand = || catalog.metadata.iter().filter(votes).map(|here| here.replica).collect();
    let voters = if voters.is_empty() { stand() } else { voters };
    Wanted::of_metadata(catalog, &voters)
}

/// One after another: in the rack that the chosen use least, then who votes already and is not dead,
/// then who is heard of, then a dead voter; then the lowest id.
fn choose(view: &View<'_>, of: Vec<&Placement>, count: usize) -> BTreeSet<ReplicaId> {
    let rack = |broker: BrokerId| view.catalog.brokers.get(&broker).and_then(|card| card.rack());
    let rank = |here: &Placement| match here.stage {
        Stage::Voter if !view.is_dead(here.broker) => Some(0),
        Stage::Joining | Stage::Ready if view.is_heard(here.broker) => Some(1),
        Stage::Voter => Some(2),
        Stage::Joining | Stage::Ready | Stage::Leaving | Stage::Lost(_) => None,
    };
    let mut left: Vec<_> =
        of.into_iter().filter_map(|here| rank(here).map(|rank| (rank, here))).collect();
    let mut chosen: Vec<(i32, &Placement)> = Vec::new();
    while chosen.len() < count {
        let shared =
            |broker| chosen.iter().filter(|(_, other)| rack(other.broker) == rack(broker)).count();
        let key = |(rank, here): &(i32, &Placement)| {
            // A dead one is no gain in whatever rack.
            (*rank == 2, shared(here.broker), *rank, here.replica)
        };
        let best = left.iter().enumerate().min_by_key(|(_, seat)| key(seat)).map(|(at, _)| at);
        let Some(at) = best else { break };
        chosen.push(left.swap_remove(at));
    }
    // An even number that nobody needs is not begun.
    if chosen.len().is_multiple_of(2)
        && let Some(at) = chosen.iter().rposition(|(rank, _)| *rank == 1)
    {
        chosen.remove(at);
    }
    chosen.into_iter().map(|(_, here)| here.replica).collect()
}
