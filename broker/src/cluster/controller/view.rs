//! What is known when it is decided.
//!
//! Owns: how long a broker may be silent before it is not counted on, and before it is given up.
//! Never: looks at a clock: [`Watch::view`] is told what time it is.
//! Invariants: a broker is dead only when it was silent for [`DEAD_AFTER`] under the eyes of one
//! controller: what happened before it began to watch, it can not judge. One that is silent while a
//! later broker is found at its address lost its data, and is dead at once.

use crate::cluster::leaders::{Condition, LeaderBoard};
use crate::replication::metadata::{Catalog, Standing};
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::{Duration, Instant};
use weir_protocol::types::{BrokerId, ReplicaId};

/// A broker that told nothing for this long is not counted on: it tells all it leads three times
/// within.
pub const HEARD_WITHIN: Duration = Duration::from_secs(30);
/// A broker that is silent for this long is taken for dead, and what it held is put elsewhere
/// (`replication.md` 7, failure detection). A restart takes less.
pub const DEAD_AFTER: Duration = Duration::from_secs(600);
/// A broker with fewer bytes left than this gets no more replicas.
pub const HOME_BYTES_MIN: u64 = 1 << 30;

/// What may be expected of a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// It may hold more and lead more.
    Well,
    /// Its disks are nearly full: it may lead more.
    Full,
    /// It is shutting down: it answers, and shall be given nothing.
    Going,
    /// It was not heard of lately.
    Quiet,
    /// It was not heard of for [`DEAD_AFTER`], or lately and another has its place.
    Dead,
}

/// What is known when it is decided.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The metadata as it is committed.
    pub catalog: &'a Catalog,
    /// The replicas that lead, as far as it was told.
    pub leaders: &'a BTreeSet<ReplicaId>,
    /// What may be expected of each broker; one that is missing is quiet.
    pub reach: &'a BTreeMap<BrokerId, Reach>,
    /// How many preferences may change now.
    pub preferences: usize,
}

impl View<'_> {
    fn reach(&self, broker: BrokerId) -> Reach {
        self.reach.get(&broker).copied().unwrap_or(Reach::Quiet)
    }

    /// Whether a broker may be given more to hold.
    pub(super) fn may_hold(&self, broker: BrokerId) -> bool {
        self.catalog.is_active(broker) && self.reach(broker) == Reach::Well
    }

    /// Whether a broker may be given more to lead.
    pub(super) fn may_lead(&self, broker: BrokerId) -> bool {
        let reach = self.reach(broker);
        self.catalog.is_active(broker) && matches!(reach, Reach::Well | Reach::Full)
    }

    /// Whether a broker was heard of lately.
    pub(super) fn is_heard(&self, broker: BrokerId) -> bool {
        matches!(self.reach(broker), Reach::Well | Reach::Full | Reach::Going)
    }

    pub(super) fn is_dead(&self, broker: BrokerId) -> bool {
        self.reach(broker) == Reach::Dead
    }

    /// Whether a broker shall hand over all that it holds.
    pub(super) fn drains(&self, broker: BrokerId) -> bool {
        let card = self.catalog.brokers.get(&broker);
        card.is_some_and(|card| card.standing == Standing::Draining)
    }
}

/// One controller's eyes.
#[derive(Debug, Clone, Copy)]
pub struct Watch {
    /// Since when it looks.
    pub since: Instant,
    /// Its own broker, which it need not hear of.
    pub me: BrokerId,
}

impl Watch {
    /// What may be expected of every broker of the cluster at `now`.
    pub fn reach(
        &self,
        catalog: &Catalog,
        board: &LeaderBoard,
        now: Instant,
    ) -> BTreeMap<BrokerId, Reach> {
        let conditions = board.conditions();
        let brokers = catalog.brokers.keys();
        let reach = |id: &BrokerId| match self.reach_of(*id, conditions.get(id), now) {
            Reach::Quiet if catalog.is_succeeded(*id) => Reach::Dead,
            reach => reach,
        };
        brokers.map(|id| (*id, reach(id))).collect()
    }

    fn reach_of(&self, id: BrokerId, told: Option<&Condition>, now: Instant) -> Reach {
        let since = told.map_or(self.since, |told| told.heard.max(self.since));
        let heard =
            told.is_some_and(|told| now.saturating_duration_since(told.heard) < HEARD_WITHIN);
        match told {
            Some(told) if heard && told.going => Reach::Going,
            Some(told) if heard && told.free_bytes < HOME_BYTES_MIN => Reach::Full,
            _ if heard || id == self.me => Reach::Well,
            _ if now.saturating_duration_since(since) >= DEAD_AFTER => Reach::Dead,
            _ => Reach::Quiet,
        }
    }
}
