//! Which brokers hold a new replica.
//!
//! Owns: the order in which brokers are taken: the rack that the partition uses least, then the
//! broker that holds least, then the one preferred least, then the lowest id.
//! Never: uses randomness: the metadata that it sees decides.
//! Invariants: the replicas of a partition are on different brokers; no rack has two more of them
//! than another that has a free broker.

use crate::replication::metadata::{Catalog, NewPartition, Stage};
use std::collections::BTreeMap;
use weir_protocol::types::{BrokerId, Name};

/// Too few brokers can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} replicas need as many brokers, and {usable} can be used")]
pub struct TooFewBrokers {
    /// Replicas that were asked for.
    pub wanted: usize,
    /// Brokers that may hold one.
    pub usable: usize,
}

/// What a broker has already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Load {
    /// Replicas that are there to stay.
    pub(super) replicas: usize,
    /// Those of them that are preferred to lead.
    pub(super) preferred: usize,
}

/// The brokers that may hold a replica, and what they have.
#[derive(Debug, Clone)]
pub struct Seats<'a> {
    catalog: &'a Catalog,
    loads: BTreeMap<BrokerId, Load>,
}

impl<'a> Seats<'a> {
    /// The active brokers of which `is_usable` is true.
    pub fn of(catalog: &'a Catalog, is_usable: impl Fn(BrokerId) -> bool) -> Self {
        let usable = catalog.active().filter(|card| is_usable(card.id));
        let mut loads: BTreeMap<_, _> = usable.map(|card| (card.id, Load::default())).collect();
        for (_, partition) in catalog.partitions() {
            for placement in &partition.replicas {
                let Some(load) = loads.get_mut(&placement.broker) else { continue };
                load.preferred += usize::from(partition.preferred == placement.replica);
                let stays = !matches!(placement.stage, Stage::Leaving | Stage::Lost(_));
                load.replicas += usize::from(stays);
            }
        }
        Self { catalog, loads }
    }

    /// Places new partitions of `replicas` each, evenly also among themselves.
    pub fn place(
        &mut self,
        replicas: u8,
        uuids: impl IntoIterator<Item = u128>,
    ) -> Result<Vec<NewPartition>, TooFewBrokers> {
        let one = |uuid| self.place_one(replicas).map(|brokers| NewPartition { uuid, brokers });
        uuids.into_iter().map(one).collect()
    }

    /// Where the replicas of one partition go, the preferred leader first.
    fn place_one(&mut self, replicas: u8) -> Result<Vec<BrokerId>, TooFewBrokers> {
        let (wanted, usable) = (usize::from(replicas), self.loads.len());
        let mut homes = Vec::with_capacity(wanted);
        while homes.len() < wanted {
            let next = self.home(&homes, |_| true).ok_or(TooFewBrokers { wanted, usable })?;
            homes.push(next);
        }
        let load = |broker: &BrokerId| self.load(*broker);
        let leads = |broker: &BrokerId| (load(broker).preferred, load(broker).replicas, *broker);
        homes.sort_by_key(leads);
        homes.iter().for_each(|broker| self.take(*broker));
        if let Some(load) = homes.first().and_then(|first| self.loads.get_mut(first)) {
            load.preferred += 1;
        }
        Ok(homes)
    }

    /// The best broker for one more replica beside those on `others`.
    pub(super) fn home(
        &self,
        others: &[BrokerId],
        may: impl Fn(BrokerId) -> bool,
    ) -> Option<BrokerId> {
        let free = self.loads.iter().filter(|(id, _)| !others.contains(id) && may(**id));
        free.min_by_key(|(id, load)| (self.shared(others, **id), **load, **id)).map(|(id, _)| *id)
    }

    /// How many of `others` fail together with a broker.
    pub(super) fn shared(&self, others: &[BrokerId], broker: BrokerId) -> usize {
        let rack = self.rack(broker);
        others.iter().filter(|other| self.rack(**other) == rack).count()
    }

    /// Brokers that never told a rack are taken to share one.
    fn rack(&self, broker: BrokerId) -> Option<&'a Name> {
        self.catalog.brokers.get(&broker).and_then(|card| card.rack())
    }

    pub(super) fn load(&self, broker: BrokerId) -> Load {
        self.loads.get(&broker).copied().unwrap_or_default()
    }

    pub(super) fn has(&self, broker: BrokerId) -> bool {
        self.loads.contains_key(&broker)
    }

    pub(super) fn brokers(&self) -> impl Iterator<Item = BrokerId> {
        self.loads.keys().copied()
    }

    /// Counts one more replica.
    pub(super) fn take(&mut self, broker: BrokerId) {
        if let Some(load) = self.loads.get_mut(&broker) {
            load.replicas += 1;
        }
    }

    /// Counts one replica less.
    pub(super) fn leave(&mut self, broker: BrokerId) {
        if let Some(load) = self.loads.get_mut(&broker) {
            load.replicas = load.replicas.saturating_sub(1);
        }
    }
}
