//! What of the cluster is not as it shall be.
//!
//! Owns: when a partition counts as under-replicated or leaderless, and the one word for how a
//! broker is.
//! Never: judges by one replica's numbers; those only its leader knows (`led`).
//! Invariant: each partition is looked at once, whatever is counted.

use super::{Look, has_majority, is_heard};
use crate::cluster::controller::Reach;
use crate::replication::metadata::{
    BrokerCard, LossReason, Partition, Placement, Stage, Standing, Topic,
};
use std::collections::BTreeMap;
use weir_protocol::types::BrokerId;

/// Every word for how a broker is; one that fits several is called by the first of them.
pub(super) const BROKER_STATES: [&str; 5] = ["silent", "going", "draining", "full", "well"];

/// How a broker is, in one word of [`BROKER_STATES`].
pub(super) fn state_of(card: &BrokerCard, reach: Reach) -> &'static str {
    match (reach, card.standing) {
        (Reach::Quiet | Reach::Dead, _) => "silent",
        (Reach::Going, _) => "going",
        (Reach::Well | Reach::Full, Standing::Draining) => "draining",
        (Reach::Full, Standing::Active) => "full",
        (Reach::Well, Standing::Active) => "well",
    }
}

/// A partition and its topic.
pub(super) type Placed<'a> = (&'a Topic, &'a Partition);

/// What was counted in one look at every partition.
#[derive(Default)]
pub(super) struct Health<'a> {
    /// Fewer voters on brokers that are heard of than the topic asks for, and how many there are.
    pub(super) under_replicated: Vec<(Placed<'a>, usize)>,
    /// No leader is known, or none that a majority can answer.
    pub(super) leaderless: Vec<Placed<'a>>,
    /// Replicas that will never serve again; those of the metadata have no partition.
    pub(super) lost: Vec<(Option<Placed<'a>>, &'a Placement, LossReason)>,
    /// Replicas of partitions on each broker, in whatever stage.
    pub(super) held: BTreeMap<BrokerId, usize>,
    /// Partitions that each broker leads.
    pub(super) led: BTreeMap<BrokerId, usize>,
}

impl<'a> Health<'a> {
    /// Counts what a look saw.
    pub(super) fn of(look: &'a Look) -> Self {
        let (mut health, reach) = (Self::default(), look.reach());
        for (topic, partition) in look.catalog.partitions() {
            health.count(look, &reach, (topic, partition));
        }
        health.note_lost(None, &look.catalog.metadata);
        health
    }

    fn count(&mut self, look: &Look, reach: &BTreeMap<BrokerId, Reach>, placed: Placed<'a>) {
        let (topic, partition) = placed;
        let leader = look.leader_of(&partition.replicas);
        match leader.filter(|_| has_majority(&partition.replicas, reach)) {
            Some(leader) => *self.led.entry(leader.broker).or_default() += 1,
            None => self.leaderless.push(placed),
        }
        let there = partition.voters().filter(|voter| is_heard(reach, voter.broker)).count();
        if there < usize::from(topic.replicas) {
            self.under_replicated.push((placed, there));
        }
        for here in &partition.replicas {
            *self.held.entry(here.broker).or_default() += 1;
        }
        self.note_lost(Some(placed), &partition.replicas);
    }

    fn note_lost(&mut self, placed: Option<Placed<'a>>, replicas: &'a [Placement]) {
        for here in replicas {
            if let Stage::Lost(reason) = here.stage {
                self.lost.push((placed, here, reason));
            }
        }
    }
}
